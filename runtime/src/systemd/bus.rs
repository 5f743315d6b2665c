//! A connection to a message bus: authentication, calls and their answers, signals in between.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

use super::wire::{self, FIXED, Kind, Message, Method, Writer};

/// How long the bus, or who is called, may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Signals that are kept until somebody asks for them.
const MAX_SIGNALS: usize = 1024;

const DAEMON: &str = "org.freedesktop.DBus";

/// An error that was the answer to a call.
#[derive(Debug)]
pub(super) struct Refusal {
    /// Like `org.freedesktop.systemd1.NoSuchUnit`.
    pub name: String,
    pub text: String,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { name, text } = self;
        if text.is_empty() { write!(f, "{name}") } else { write!(f, "{text} ({name})") }
    }
}

impl std::error::Error for Refusal {}

/// The name of the error that was the answer to a call, or nothing if it failed otherwise.
pub(super) fn refused(error: &io::Error) -> &str {
    error.get_ref().and_then(|inner| inner.downcast_ref::<Refusal>()).map_or("", |refusal| &refusal.name)
}

#[derive(Debug)]
pub(super) struct Bus {
    stream: UnixStream,
    serial: u32,
    signals: VecDeque<Message>,
}

/// The sockets that an address of a bus names (specification, "Server Addresses").
fn sockets(address: &str) -> Vec<io::Result<SocketAddr>> {
    let named = |one: &str| {
        let keys = one.strip_prefix("unix:")?;
        keys.split(',').find_map(|pair| {
            let (key, value) = pair.split_once('=')?;
            let value = unescape(value)?;
            match key {
                "path" => Some(SocketAddr::from_pathname(PathBuf::from(OsString::from_vec(value)))),
                "abstract" => Some(SocketAddr::from_abstract_name(value)),
                _ => None,
            }
        })
    };
    address.split(';').filter_map(named).collect()
}

fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        bytes.push(digit(rest.next()?)? << 4 | digit(rest.next()?)?);
    }
    Some(bytes)
}

impl Bus {
    /// Connects to the first socket of `address` that answers.
    pub fn connect(address: &str) -> io::Result<Self> {
        let mut failure = io::Error::new(io::ErrorKind::InvalidInput, "the address names no unix socket");
        for socket in sockets(address) {
            match socket.and_then(|socket| UnixStream::connect_addr(&socket)) {
                Ok(stream) => return Self::greet(stream),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    fn greet(stream: UnixStream) -> io::Result<Self> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut bus = Self { stream, serial: 0, signals: VecDeque::new() };
        // Without a name of ours in it: in a user namespace ours is not the one that the bus sees.
        bus.stream.write_all(b"\0AUTH EXTERNAL\r\n")?;
        bus.expect_line("DATA")?;
        bus.stream.write_all(b"DATA\r\n")?;
        bus.expect_line("OK ")?;
        bus.stream.write_all(b"BEGIN\r\n")?;
        bus.call(&Self::of_daemon("Hello"), "", &Writer::default())?;
        Ok(bus)
    }

    fn of_daemon(member: &str) -> Method<'_> {
        Method { destination: DAEMON, path: "/org/freedesktop/DBus", interface: DAEMON, member }
    }

    fn expect_line(&mut self, beginning: &str) -> io::Result<()> {
        const MAX_LINE: usize = 512;
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            let mut byte = [0];
            self.stream.read_exact(&mut byte)?;
            line.extend(byte);
            if line.len() > MAX_LINE {
                break;
            }
        }
        if line.starts_with(beginning.as_bytes()) {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&line);
        let said = said.trim();
        Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("the bus refuses us: {said:?}")))
    }

    /// Has the bus deliver signals that match `rule`.
    pub fn watch(&mut self, rule: &str) -> io::Result<()> {
        let mut body = Writer::default();
        body.text(rule);
        self.call(&Self::of_daemon("AddMatch"), "s", &body).map(drop)
    }

    /// Calls a method and waits for its answer.
    pub fn call(&mut self, method: &Method<'_>, signature: &str, body: &Writer) -> io::Result<Message> {
        self.serial += 1;
        let serial = self.serial;
        self.stream.write_all(&wire::call(method, serial, signature, body))?;
        loop {
            let message = self.receive()?;
            match message.kind {
                Kind::Signal if self.signals.len() < MAX_SIGNALS => self.signals.push_back(message),
                Kind::Return if message.reply_to == Some(serial) => return Ok(message),
                Kind::Error if message.reply_to == Some(serial) => {
                    let text = if message.signature.starts_with('s') {
                        wire::Reader::of(&message).text().unwrap_or_default()
                    } else {
                        String::new()
                    };
                    return Err(io::Error::other(Refusal { name: message.error, text }));
                }
                _ => {}
            }
        }
    }

    /// The next signal, if there was one already; otherwise waits for it.
    pub fn signal(&mut self) -> io::Result<Message> {
        if let Some(message) = self.signals.pop_front() {
            return Ok(message);
        }
        loop {
            let message = self.receive()?;
            if message.kind == Kind::Signal {
                return Ok(message);
            }
        }
    }

    fn receive(&mut self) -> io::Result<Message> {
        let mut fixed = [0; FIXED];
        self.read(&mut fixed)?;
        let mut bytes = fixed.to_vec();
        bytes.resize(wire::total(&fixed)?, 0);
        let rest = bytes.get_mut(FIXED..).unwrap_or_default();
        self.read(rest)?;
        wire::parse(&bytes)
    }

    fn read(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        self.stream.read_exact(bytes).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => io::Error::new(io::ErrorKind::TimedOut, "no answer from the bus"),
            _ => error,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let paths = |address: &str| -> Vec<PathBuf> {
            let found = sockets(address).into_iter().map(Result::unwrap);
            found.filter_map(|socket| socket.as_pathname().map(PathBuf::from)).collect()
        };
        assert_eq!(
            paths("unix:path=/a%20b,guid=1;tcp:host=x;unix:path=/c"),
            ["/a b", "/c"].map(PathBuf::from)
        );
        assert!(paths("unix:path=/a%2").is_empty());
        assert_eq!(sockets("unix:abstract=/x")[0].as_ref().unwrap().as_abstract_name(), Some(&b"/x"[..]));
        assert!(Bus::connect("").is_err());
    }
}
