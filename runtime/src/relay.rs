//! Carries bytes between the caller's terminal and the socket whose other end the Sentry joins to init's terminal.
//!
//! The Sentry never holds the caller's terminal: nothing but bytes can pass.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use hostsys::polling::Interest;
use hostsys::terminal::{self, RawMode, WindowSize};

/// The most that waits in one direction, in bytes.
const CAPACITY: usize = 16 << 10;

#[derive(Debug)]
pub(crate) struct Relay {
    socket: UnixStream,
    /// Bytes from the caller, for the guest.
    inward: Vec<u8>,
    /// Bytes from the guest, for the caller.
    outward: Vec<u8>,
    input_open: bool,
    socket_open: bool,
    raw: Option<RawMode>,
    input: File,
    output: File,
}

impl Relay {
    /// Relays the caller's standard input and output, and sets them to raw mode if they are a terminal. The second value
    /// is the Sentry's end.
    pub fn of_caller() -> io::Result<(Self, OwnedFd)> {
        let (socket, theirs) = UnixStream::pair()?;
        let (input, output) =
            (io::stdin().as_fd().try_clone_to_owned()?, io::stdout().as_fd().try_clone_to_owned()?);
        Ok((Self::new(input, output, socket.into())?, theirs.into()))
    }

    /// Relays a pseudo-terminal whose other side somebody else holds.
    pub fn of_terminal(terminal: OwnedFd, socket: OwnedFd) -> io::Result<Self> {
        let output = terminal.try_clone()?;
        Self::new(terminal, output, socket)
    }

    fn new(input: OwnedFd, output: OwnedFd, socket: OwnedFd) -> io::Result<Self> {
        let socket = UnixStream::from(socket);
        socket.set_nonblocking(true)?;
        let raw = if terminal::is_terminal(input.as_fd()) { Some(RawMode::enter(&input)?) } else { None };
        Ok(Self {
            socket,
            input: input.into(),
            output: output.into(),
            inward: Vec::new(),
            outward: Vec::new(),
            input_open: true,
            socket_open: true,
            raw,
        })
    }

    /// The size of the terminal, if it is one.
    pub fn window_size(&self) -> Option<WindowSize> {
        [self.input.as_fd(), self.output.as_fd(), io::stderr().as_fd()]
            .into_iter()
            .find_map(|fd| terminal::window_size(fd).ok())
    }

    /// What to wait for: input, output, socket.
    pub fn interests(&self) -> [Interest; 3] {
        let mut interests = [Interest::none(); 3];
        let [input, output, socket] = &mut interests;
        if self.input_open && self.inward.len() < CAPACITY {
            *input = Interest::new(self.input.as_fd(), libc::POLLIN);
        }
        if !self.outward.is_empty() {
            *output = Interest::new(self.output.as_fd(), libc::POLLOUT);
        }
        let mut events = 0;
        if self.outward.len() < CAPACITY {
            events |= libc::POLLIN;
        }
        if !self.inward.is_empty() {
            events |= libc::POLLOUT;
        }
        if self.socket_open && events != 0 {
            *socket = Interest::new(self.socket.as_fd(), events);
        }
        interests
    }

    /// Moves what can be moved, given what was found.
    pub fn turn(&mut self, found: &[Interest]) {
        let [input, output, socket] = found else { return };
        let mut buffer = [0; 4096];
        if input.any() {
            // The poll has said that one read does not wait.
            match self.input.read(&mut buffer) {
                Ok(len) if len > 0 => self.inward.extend_from_slice(buffer.get(..len).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                _ => {
                    self.input_open = false;
                }
            }
        }
        if socket.any() {
            self.receive(&mut buffer);
            if !self.inward.is_empty() {
                match self.socket.write(&self.inward) {
                    Ok(len) => drop(self.inward.drain(..len)),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(_) => self.inward.clear(),
                }
            }
        }
        if !self.input_open && self.inward.is_empty() {
            let _ = self.socket.shutdown(std::net::Shutdown::Write);
        }
        if output.any() {
            self.write_some();
        }
    }

    fn receive(&mut self, buffer: &mut [u8]) {
        while self.socket_open && self.outward.len() < CAPACITY {
            match self.socket.read(buffer) {
                Ok(0) => self.socket_open = false,
                Ok(len) => self.outward.extend_from_slice(buffer.get(..len).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => self.socket_open = false,
            }
        }
    }

    /// One write of at most a small piece: a terminal that the poll found writable takes it without waiting.
    fn write_some(&mut self) {
        let piece = self.outward.get(..self.outward.len().min(512)).unwrap_or_default();
        match (&self.output).write(piece) {
            Ok(len) => drop(self.outward.drain(..len)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Nobody reads any more: the guest's output is dropped, as that of a closed terminal.
            Err(_) => self.outward.clear(),
        }
    }

    /// Writes out what the guest has left behind, after its Sentry is gone.
    pub fn drain(&mut self) {
        let mut buffer = [0; 4096];
        while self.socket_open || !self.outward.is_empty() {
            self.receive(&mut buffer);
            let before = self.outward.len();
            self.write_some();
            if before == 0 {
                break;
            }
        }
    }

    /// Gives the terminal its former mode for a while.
    pub fn suspend(&mut self) {
        self.raw = None;
    }

    pub fn resume(&mut self) {
        if terminal::is_terminal(self.input.as_fd()) {
            self.raw = RawMode::enter(&self.input).ok();
        }
    }
}
