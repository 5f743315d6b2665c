//! Joins the guest's terminal to the socket whose other end the command relays to the user's.
//!
//! One thread with blocking I/O on the socket. The terminal tells it of output, or of room for input, by an eventfd.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fs_dev::HostSide;
use hostsys::polling::{self, Interest};
use rustix::event::{EventfdFlags, eventfd};
use sentry_base::{Events, Observer};

/// The most that is held on the way to the command, in bytes.
const PIECE: usize = 16 << 10;

/// Wakes the relay's thread.
#[derive(Debug)]
pub struct Bell {
    /// An eventfd: a ring that nobody has heard yet adds to the one before.
    ringer: File,
    over: AtomicBool,
}

impl Bell {
    pub(crate) fn new() -> io::Result<Arc<Self>> {
        let ringer = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Arc::new(Self { ringer: ringer.into(), over: AtomicBool::new(false) }))
    }

    fn ring(&self) {
        let _ = (&self.ringer).write(&1_u64.to_ne_bytes());
    }

    /// To wait for a ring.
    pub(crate) fn interest(&self) -> Interest {
        Interest::new(self.ringer.as_fd(), libc::POLLIN)
    }

    /// Forgets every ring so far.
    pub(crate) fn hear(&self) {
        let _ = (&self.ringer).read(&mut [0; 8]);
    }

    /// Makes the relay end once it has sent what programs have written.
    pub fn end(&self) {
        self.over.store(true, Ordering::Release);
        self.ring();
    }
}

impl Observer for Bell {
    fn notify(&self, _events: Events) {
        self.ring();
    }
}

/// The relay, before its thread runs.
#[derive(Debug)]
pub struct Console {
    side: Arc<HostSide>,
    socket: UnixStream,
    bell: Arc<Bell>,
}

impl Console {
    pub fn new(side: &Arc<HostSide>, socket: OwnedFd) -> io::Result<Self> {
        let bell = Bell::new()?;
        let observer: Arc<dyn Observer> = Arc::clone(&bell) as _;
        side.wait_queue().add(Events::READABLE | Events::WRITABLE, observer);
        Ok(Self { side: Arc::clone(side), socket: UnixStream::from(socket), bell })
    }

    pub fn bell(&self) -> Arc<Bell> {
        Arc::clone(&self.bell)
    }

    /// Relays until the command closes its end, or the container is over. Then the terminal is hung up.
    pub fn run(mut self) {
        let mut inward: Vec<u8> = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            if !inward.is_empty() {
                let taken = self.side.push_input(&inward);
                inward.drain(..taken.min(inward.len()));
            }
            let over = self.bell.over.load(Ordering::Acquire);
            if !self.flush() || over {
                break;
            }
            let mut interests = [
                Interest::new(self.bell.ringer.as_fd(), libc::POLLIN),
                // More is taken only when the terminal has taken what there was.
                if inward.is_empty() {
                    Interest::new(self.socket.as_fd(), libc::POLLIN)
                } else {
                    Interest::none()
                },
            ];
            if polling::wait(&mut interests, None).is_err() {
                break;
            }
            let [bell, socket] = &interests;
            if bell.any() {
                self.bell.hear();
            }
            if socket.any() {
                match self.socket.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(len) => inward.extend_from_slice(buffer.get(..len).unwrap_or_default()),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(_) => break,
                }
            }
        }
        self.side.hang_up();
    }

    /// Sends what programs have written; false if nobody takes it any more.
    fn flush(&mut self) -> bool {
        loop {
            let output = self.side.take_output(PIECE);
            if output.is_empty() {
                return true;
            }
            if self.socket.write_all(&output).is_err() {
                return false;
            }
        }
    }
}
