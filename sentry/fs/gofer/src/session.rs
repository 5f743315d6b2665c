//! The connections to the gofer: one request and one reply at a time on each.

use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, OnceLock};

use gofer_protocol::{DecodeError, Hello, MAX_MESSAGE, MAX_TOGETHER, Reply, Request, RequestWriter, VERSION};
use hostsys::{retry, sock};
use sentry_base::lock::rank;
use sentry_base::{Errno, Mutex, MutexGuard, Result};

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("the gofer could not start: {0}")]
    Refused(String),
    #[error("the gofer ended before it served anything")]
    Ended,
    #[error("the gofer's hello cannot be read: {0}")]
    Io(#[from] io::Error),
    #[error("the gofer's hello is not one: {0}")]
    Decode(#[from] DecodeError),
    #[error("the gofer speaks version {0} of the protocol, not {VERSION}")]
    Version(u32),
    #[error("no connection to the gofer was given")]
    NoConnection,
}

/// A broken message of the gofer counts as an I/O error of the one who asked.
#[derive(Debug)]
pub(crate) struct Broken;

impl From<DecodeError> for Broken {
    fn from(_: DecodeError) -> Self {
        Self
    }
}

/// A successful reply and what came along.
#[derive(Debug)]
pub(crate) struct Answer<'a> {
    pub body: Reply<'a>,
    pub files: Vec<OwnedFd>,
}

struct Connection {
    socket: Arc<OwnedFd>,
    request: Vec<u8>,
    reply: Vec<u8>,
}

/// A running session. Calls from several threads use several connections.
pub struct Session {
    connections: Vec<Mutex<Connection, { rank::LEAF }>>,
    sockets: Vec<Arc<OwnedFd>>,
    next: AtomicUsize,
    lost: AtomicBool,
    on_loss: OnceLock<OnLoss>,
    calls: AtomicU64,
}

/// What is done when the gofer is lost, before the call that found out gives an error.
pub type OnLoss = Box<dyn Fn() + Send + Sync>;

impl core::fmt::Debug for Session {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Session({} connections, {} calls)", self.connections.len(), self.calls())
    }
}

impl Session {
    /// Waits for the gofer's hello on every connection.
    pub fn connect(sockets: Vec<OwnedFd>) -> core::result::Result<Arc<Self>, ConnectError> {
        if sockets.is_empty() {
            return Err(ConnectError::NoConnection);
        }
        let sockets: Vec<_> = sockets.into_iter().map(Arc::new).collect();
        let mut connections = Vec::new();
        for socket in &sockets {
            let mut reply = vec![0; MAX_MESSAGE];
            let received = retry(|| sock::receive(socket.as_fd(), &mut reply, 0))?;
            if received.len == 0 {
                return Err(ConnectError::Ended);
            }
            match Hello::decode(reply.get(..received.len).unwrap_or_default())? {
                Hello::Ready { version: VERSION } => {}
                Hello::Ready { version } => return Err(ConnectError::Version(version)),
                Hello::Failed { cause } => return Err(ConnectError::Refused(cause)),
            }
            connections.push(Mutex::new(Connection {
                socket: Arc::clone(socket),
                request: Vec::new(),
                reply,
            }));
        }
        Ok(Arc::new(Self {
            connections,
            sockets,
            next: AtomicUsize::new(0),
            lost: AtomicBool::new(false),
            on_loss: OnceLock::new(),
            calls: AtomicU64::new(0),
        }))
    }

    /// Has `then` called by every call that finds the gofer gone: a program must not see its files fail before it is
    /// ended. Locks of files, of address spaces and of a connection may be held by the caller. To be said once.
    pub fn on_loss(&self, then: OnLoss) {
        let _ = self.on_loss.set(then);
    }

    /// The sockets, to be watched for the gofer's end (`POLLHUP`). Nothing else may be done with them.
    pub fn sockets(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.sockets.iter().map(|socket| socket.as_fd())
    }

    /// Requests made so far.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// Whether the gofer has ended or broken the protocol. Every call then gives `EIO`.
    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    /// Sends a request and hands a successful reply to `read`, which must not take a lock.
    pub(crate) fn call<T>(
        &self,
        request: &Request<'_>,
        read: impl FnOnce(&mut Answer<'_>) -> core::result::Result<T, Broken>,
    ) -> Result<T> {
        if self.is_lost() {
            return Err(self.give_up());
        }
        self.calls.fetch_add(1, Ordering::Relaxed);
        let mut connection = self.free_connection().ok_or(Errno::EIO)?;
        let Connection { socket, request: out, reply } = &mut *connection;
        RequestWriter::encode(request, out).map_err(|_| Errno::ENAMETOOLONG)?;
        match exchange(socket, out, reply) {
            Ok((len, files)) => {
                let outcome = Reply::decode(reply.get(..len).unwrap_or_default());
                match outcome {
                    Ok(Err(errno)) => Err(Errno::from_raw(errno)),
                    Ok(Ok(body)) if body.descriptors() == files.len() => {
                        read(&mut Answer { body, files }).map_err(|Broken| self.give_up())
                    }
                    _ => Err(self.give_up()),
                }
            }
            Err(_) => Err(self.give_up()),
        }
    }

    fn give_up(&self) -> Errno {
        self.lost.store(true, Ordering::Release);
        if let Some(then) = self.on_loss.get() {
            then();
        }
        Errno::EIO
    }

    fn free_connection(&self) -> Option<MutexGuard<'_, Connection, { rank::LEAF }>> {
        if let Some(free) = self.connections.iter().find_map(Mutex::try_lock) {
            return Some(free);
        }
        let turn = self.next.fetch_add(1, Ordering::Relaxed) % self.connections.len().max(1);
        self.connections.get(turn).map(Mutex::lock)
    }
}

fn exchange(socket: &OwnedFd, out: &[u8], reply: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    retry(|| sock::send(socket.as_fd(), out, &[], 0))?;
    let received = retry(|| sock::receive(socket.as_fd(), reply, 0))?;
    if received.len == 0 || received.truncated || received.fds.len() > MAX_TOGETHER {
        return Err(io::Error::other("the gofer ended or broke the protocol"));
    }
    Ok((received.len, received.fds))
}
