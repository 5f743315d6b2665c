//! One side of the control connection.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use hostsys::{retry, sealed, sock};
use serde::{Serialize, de::DeserializeOwned};

use crate::Boot;

/// The longest ordinary message, in bytes.
pub const MAX_MESSAGE: usize = 64 << 10;

/// The longest boot message, in bytes: arguments and environment may be megabytes.
pub const MAX_BOOT: u64 = 16 << 20;

/// `MSG_DONTWAIT` (`recv(2)`).
const DONT_WAIT: i32 = 0x40;

#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    #[error("control connection: {0}")]
    Io(#[from] io::Error),
    #[error("control connection: a message is malformed: {0}")]
    Malformed(#[from] serde_json::Error),
    #[error("control connection: a message of {0} bytes is too long")]
    TooLong(u64),
    #[error("control connection: the boot message says {said} descriptors, {came} came")]
    Descriptors { said: usize, came: usize },
    #[error("control connection: the boot message is of version {0}, not of ours")]
    Version(u32),
    #[error("control connection: the peer is gone")]
    Closed,
}

/// A connected socket that carries messages.
#[derive(Debug)]
pub struct Channel {
    socket: OwnedFd,
}

impl Channel {
    /// Two connected ends.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (a, b) = sock::packet_pair()?;
        Ok((Self { socket: a }, Self { socket: b }))
    }

    /// The end that an inherited descriptor is.
    pub fn from_socket(socket: OwnedFd) -> Self {
        Self { socket }
    }

    pub fn send(&self, message: &impl Serialize) -> Result<(), ChannelError> {
        let bytes = serde_json::to_vec(message)?;
        if bytes.len() > MAX_MESSAGE {
            return Err(ChannelError::TooLong(bytes.len() as u64));
        }
        retry(|| sock::send(self.socket.as_fd(), &bytes, &[], 0))?;
        Ok(())
    }

    /// The next message. With `block` unset, `None` says that there is none yet.
    pub fn receive<T: DeserializeOwned>(&self, block: bool) -> Result<Option<T>, ChannelError> {
        let mut bytes = Vec::with_capacity(MAX_MESSAGE);
        let flags = if block { 0 } else { DONT_WAIT };
        let message = match retry(|| sock::receive_into(self.socket.as_fd(), &mut bytes, flags)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                return Err(ChannelError::Closed);
            }
            message => message?,
        };
        if message.len == 0 {
            return Err(ChannelError::Closed);
        }
        if message.truncated {
            return Err(ChannelError::TooLong(MAX_MESSAGE as u64 + 1));
        }
        Ok(Some(serde_json::from_slice(&bytes)?))
    }

    /// Sends the boot message; `descriptors` are those that [`Boot::descriptors`] names.
    pub fn send_boot(&self, boot: &Boot, descriptors: &[BorrowedFd<'_>]) -> Result<(), ChannelError> {
        self.send_sealed(boot, descriptors)
    }

    /// Receives the boot message and the descriptors that it names.
    pub fn receive_boot(&self) -> Result<(Boot, Vec<OwnedFd>), ChannelError> {
        let (boot, fds) = self.receive_sealed::<Boot>(true)?.ok_or(ChannelError::Closed)?;
        if boot.version != Boot::VERSION {
            return Err(ChannelError::Version(boot.version));
        }
        if boot.descriptors.len() != fds.len() {
            return Err(ChannelError::Descriptors { said: boot.descriptors.len(), came: fds.len() });
        }
        Ok((boot, fds))
    }

    /// Sends a message of up to [`MAX_BOOT`] bytes in a sealed memfd, and descriptors with it.
    pub fn send_sealed(
        &self,
        message: &impl Serialize,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), ChannelError> {
        let bytes = serde_json::to_vec(message)?;
        if bytes.len() as u64 > MAX_BOOT {
            return Err(ChannelError::TooLong(bytes.len() as u64));
        }
        let file = sealed::of_bytes(&bytes)?;
        let mut all = vec![file.as_fd()];
        all.extend_from_slice(descriptors);
        retry(|| sock::send(self.socket.as_fd(), b"boot", &all, 0))?;
        Ok(())
    }

    /// Receives what [`Channel::send_sealed`] sends. With `block` unset, `None` says that there is nothing yet.
    pub fn receive_sealed<T: DeserializeOwned>(
        &self,
        block: bool,
    ) -> Result<Option<(T, Vec<OwnedFd>)>, ChannelError> {
        let mut mark = [0; 8];
        let flags = if block { 0 } else { DONT_WAIT };
        let mut message = match retry(|| sock::receive(self.socket.as_fd(), &mut mark, flags)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                return Err(ChannelError::Closed);
            }
            message => message?,
        };
        if message.fds.is_empty() {
            return Err(ChannelError::Closed);
        }
        let file = File::from(message.fds.remove(0));
        let len = file.metadata()?.len();
        if len > MAX_BOOT {
            return Err(ChannelError::TooLong(len));
        }
        let mut bytes = Vec::new();
        file.take(MAX_BOOT).read_to_end(&mut bytes)?;
        Ok(Some((serde_json::from_slice(&bytes)?, message.fds)))
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::*;

    fn boot() -> Boot {
        Boot {
            version: Boot::VERSION,
            id: "one".into(),
            process: Process {
                args: vec!["true".into(), Text(vec![0xff, b'x'])],
                env: vec![Text(vec![b'A'; 1 << 20])],
                cwd: "/".into(),
                ..Process::default()
            },
            hostname: None,
            domainname: None,
            root: Root { attach: 0, readonly: false, write_through: false },
            mounts: Vec::new(),
            masked_paths: Vec::new(),
            readonly_paths: Vec::new(),
            filter: None,
            sysctls: Vec::new(),
            options: Options::default(),
            network: None,
            held: false,
            descriptors: vec![Descriptor::Guest(0)],
        }
    }

    #[test]
    fn a_boot_message_of_a_megabyte_arrives_with_its_descriptor() {
        let (command, sentry) = Channel::pair().unwrap();
        let null = File::open("/dev/null").unwrap();
        command.send_boot(&boot(), &[null.as_fd()]).unwrap();
        let (got, fds) = sentry.receive_boot().unwrap();
        assert_eq!(got, boot());
        assert_eq!(fds.len(), 1);
    }

    #[test]
    fn a_missing_descriptor_is_named() {
        let (command, sentry) = Channel::pair().unwrap();
        command.send_boot(&boot(), &[]).unwrap();
        assert!(matches!(sentry.receive_boot(), Err(ChannelError::Descriptors { said: 1, came: 0 })));
    }

    #[test]
    fn events_arrive_and_a_dead_peer_is_seen() {
        let (command, sentry) = Channel::pair().unwrap();
        assert!(command.receive::<Event>(false).unwrap().is_none());
        sentry.send(&Event::Ready).unwrap();
        assert_eq!(command.receive::<Event>(true).unwrap(), Some(Event::Ready));
        drop(sentry);
        assert!(matches!(command.receive::<Event>(true), Err(ChannelError::Closed)));
    }
}
