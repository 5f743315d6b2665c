//! One connection: a flow towards the sandbox, a host socket towards the world.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use netstack::flow::{Settings, TcpFlow, Tuple};
use netstack::frame::Frame;
use netstack::stream::TcpState;
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType, sockopt};

/// Bytes of the flow's buffers, and of one turn.
const BUFFER: usize = 256 << 10;
const PIECE: usize = 64 << 10;
/// How long nobody says anything until a connection is given up, in nanoseconds.
const SILENCE: u64 = 7200 * 1_000_000_000;

/// How far the host's connection is.
#[derive(Debug, PartialEq, Eq)]
enum Host {
    Connecting,
    Open,
    /// The other end has closed.
    Ended,
}

#[derive(Debug)]
pub(crate) struct Connection {
    flow: TcpFlow,
    /// The SYN, until the host's connection stands.
    syn: Option<Vec<u8>>,
    socket: OwnedFd,
    host: Host,
    /// Bytes that the host's socket has yet to take, from `at` on.
    pending: Vec<u8>,
    at: usize,
    shut: bool,
    last: u64,
}

/// What is to be done with a connection.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Goes,
    /// It never stood: the sandbox is to hear why.
    Refused(io::ErrorKind),
    Over,
}

/// A host socket that connects.
fn dial(to: SocketAddr) -> io::Result<OwnedFd> {
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    let _ = sockopt::set_tcp_nodelay(&socket, true);
    match rustix::net::connect(&socket, &to) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => Ok(socket),
        Err(error) => Err(error.into()),
    }
}

impl Connection {
    /// Begins a connection for the SYN `packet` of the sandbox.
    pub fn open(tuple: Tuple, first: u32, packet: &[u8], now: u64) -> io::Result<Self> {
        let settings = Settings { mtu: usize::from(crate::MTU), hops: 64, no_delay: true, keep_alive: None };
        let flow = TcpFlow::accept(tuple, first, BUFFER, &settings, now).map_err(io::Error::other)?;
        Ok(Self {
            flow,
            syn: Some(packet.to_vec()),
            socket: dial(tuple.local)?,
            host: Host::Connecting,
            pending: Vec::new(),
            at: 0,
            shut: false,
            last: now,
        })
    }

    /// The SYN, as long as the host's connection does not stand.
    pub fn syn(&self) -> Option<&[u8]> {
        self.syn.as_deref()
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// What to wait for at the host's socket.
    pub fn interest(&self) -> i16 {
        let mut events = 0;
        if self.host == Host::Connecting || self.at < self.pending.len() {
            events |= libc::POLLOUT;
        }
        if self.host == Host::Open && self.flow.room() > 0 {
            events |= libc::POLLIN;
        }
        events
    }

    pub fn deadline(&mut self, now: u64) -> Option<u64> {
        if self.syn.is_some() { None } else { self.flow.deadline(now) }
    }

    /// A packet of the sandbox.
    pub fn arrived(&mut self, packet: &[u8], now: u64, out: &mut Vec<Frame>) {
        self.last = now;
        // Until the host's connection stands the sandbox asks again.
        if self.syn.is_none() {
            self.flow.arrive(packet, now, out);
        }
    }

    /// Moves what can be moved. `ready` says what has happened at the host's socket.
    pub fn turn(&mut self, ready: i16, now: u64, out: &mut Vec<Frame>) -> Verdict {
        if self.host == Host::Connecting {
            if ready == 0 {
                return Verdict::Goes;
            }
            match sockopt::socket_error(&self.socket) {
                Ok(Ok(())) => self.host = Host::Open,
                Ok(Err(error)) | Err(error) => return Verdict::Refused(io::Error::from(error).kind()),
            }
            if let Some(syn) = self.syn.take() {
                self.flow.arrive(&syn, now, out);
            }
        }
        let moved = self.pull(ready, now).and_then(|()| self.push(now));
        if moved.is_err() {
            self.flow.abort();
        }
        self.flow.advance(now, out);
        let silent = now.saturating_sub(self.last) > SILENCE;
        if self.flow.ended().is_some() || silent {
            // The other end is to hear of a reset, too.
            let _ = sockopt::set_socket_linger(&self.socket, Some(std::time::Duration::ZERO));
            return Verdict::Over;
        }
        // The sandbox may be done long before the host's socket has taken what it said last.
        let is_told = self.at == self.pending.len() && self.flow.readable() == 0;
        if is_told && (self.flow.is_over() || self.flow.state() == TcpState::TimeWait) {
            return Verdict::Over;
        }
        Verdict::Goes
    }

    fn pull(&mut self, ready: i16, now: u64) -> io::Result<()> {
        if self.host != Host::Open || ready & (libc::POLLIN | libc::POLLHUP | libc::POLLERR) == 0 {
            return Ok(());
        }
        let mut buffer = vec![0; PIECE];
        loop {
            let room = self.flow.room().min(PIECE);
            if room == 0 {
                return Ok(());
            }
            match rustix::io::read(&self.socket, buffer.get_mut(..room).unwrap_or_default()) {
                Ok(0) => {
                    self.host = Host::Ended;
                    self.flow.close();
                    return Ok(());
                }
                Ok(got) => {
                    self.last = now;
                    self.flow.send(buffer.get(..got).unwrap_or_default());
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn push(&mut self, now: u64) -> io::Result<()> {
        loop {
            if self.at == self.pending.len() {
                let readable = self.flow.readable().min(PIECE);
                if readable == 0 {
                    break;
                }
                self.pending.resize(readable, 0);
                let got = self.flow.receive(&mut self.pending);
                self.pending.truncate(got);
                self.at = 0;
            }
            match rustix::io::write(&self.socket, self.pending.get(self.at..).unwrap_or_default()) {
                Ok(sent) => {
                    self.last = now;
                    self.at += sent;
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        if self.flow.is_finished() && !self.shut {
            self.shut = true;
            let _ = rustix::net::shutdown(&self.socket, Shutdown::Write);
        }
        Ok(())
    }

    /// The next sequence numbers, if the connection is to rest.
    pub fn rests(&self) -> Option<(u32, u32)> {
        (self.flow.state() == TcpState::TimeWait).then(|| self.flow.next_numbers())
    }
}
