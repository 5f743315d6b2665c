//! The connections to the gofer: one request and one reply at a time on each.
//!
//! A request may be left to the gofer while its sender goes on ([`Session::ask`]). Its reply then waits on its connection
//! until it is collected, or is put aside by the next call that needs the connection.

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
    owed: Owed,
}

/// The reply to a request that was left to the gofer.
enum Owed {
    Nothing,
    Reply,
    /// Another request needed the connection.
    PutAside(Vec<u8>, Vec<OwnedFd>),
    /// It is to be thrown away.
    Unwanted,
}

/// The right to the reply of a request that was left to the gofer. To be collected.
#[derive(Debug)]
pub(crate) struct Ticket {
    connection: usize,
}

/// A running session. Calls from several threads use several connections.
pub struct Session {
    connections: Vec<Mutex<Connection, { rank::LEAF }>>,
    sockets: Vec<Arc<OwnedFd>>,
    next: AtomicUsize,
    lost: AtomicBool,
    on_loss: OnceLock<OnLoss>,
    calls: AtomicU64,
    /// A reply is yet to be collected.
    is_asked: AtomicBool,
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
            let mut reply = Vec::with_capacity(MAX_MESSAGE);
            retry(|| sock::receive_into(socket.as_fd(), &mut reply, 0))?;
            if reply.is_empty() {
                return Err(ConnectError::Ended);
            }
            match Hello::decode(&reply)? {
                Hello::Ready { version: VERSION } => {}
                Hello::Ready { version } => return Err(ConnectError::Version(version)),
                Hello::Failed { cause } => return Err(ConnectError::Refused(cause)),
            }
            connections.push(Mutex::new(Connection {
                socket: Arc::clone(socket),
                request: Vec::new(),
                reply,
                owed: Owed::Nothing,
            }));
        }
        Ok(Arc::new(Self {
            connections,
            sockets,
            next: AtomicUsize::new(0),
            lost: AtomicBool::new(false),
            on_loss: OnceLock::new(),
            calls: AtomicU64::new(0),
            is_asked: AtomicBool::new(false),
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
        let Connection { socket, request: out, reply, owed } = &mut *connection;
        RequestWriter::encode(request, out).map_err(|_| Errno::ENAMETOOLONG)?;
        if matches!(owed, Owed::Reply | Owed::Unwanted) {
            let (len, files) = receive(socket, reply).map_err(|_| self.give_up())?;
            *owed = match owed {
                Owed::Reply => Owed::PutAside(reply.get(..len).unwrap_or_default().to_vec(), files),
                _ => Owed::Nothing,
            };
        }
        let received = send(socket, out).and_then(|()| receive(socket, reply));
        let (len, files) = received.map_err(|_| self.give_up())?;
        self.finish(reply.get(..len).unwrap_or_default(), files, read)
    }

    /// Sends a request and leaves it to the gofer. `None` where that cannot be: another one is, no connection is free,
    /// or there would be none for what cannot wait. A gofer that is gone is noticed by the next call.
    pub(crate) fn ask(&self, request: &Request<'_>) -> Option<Ticket> {
        if self.connections.len() < 2 || self.is_lost() || self.is_asked.swap(true, Ordering::Acquire) {
            return None;
        }
        let mut locked = self.connections.iter().enumerate().filter_map(|(n, c)| Some((n, c.try_lock()?)));
        let sent = locked.find(|(_, connection)| matches!(connection.owed, Owed::Nothing));
        let sent = sent.and_then(|(n, mut connection)| {
            let Connection { socket, request: out, owed, .. } = &mut *connection;
            RequestWriter::encode(request, out).ok()?;
            send(socket, out).ok()?;
            *owed = Owed::Reply;
            Some(Ticket { connection: n })
        });
        if sent.is_some() {
            self.calls.fetch_add(1, Ordering::Relaxed);
        } else {
            self.is_asked.store(false, Ordering::Release);
        }
        sent
    }

    /// The outcome of a request that was left to the gofer, as [`Session::call`] would give it.
    pub(crate) fn collect<T>(
        &self,
        ticket: Ticket,
        read: impl FnOnce(&mut Answer<'_>) -> core::result::Result<T, Broken>,
    ) -> Result<T> {
        let mut connection = self.connections.get(ticket.connection).ok_or(Errno::EIO)?.lock();
        let Connection { socket, reply, owed, .. } = &mut *connection;
        let owed = core::mem::replace(owed, Owed::Nothing);
        self.is_asked.store(false, Ordering::Release);
        if self.is_lost() {
            return Err(self.give_up());
        }
        match owed {
            Owed::Nothing | Owed::Unwanted => Err(Errno::EIO),
            Owed::PutAside(reply, files) => self.finish(&reply, files, read),
            Owed::Reply => {
                let (len, files) = receive(socket, reply).map_err(|_| self.give_up())?;
                self.finish(reply.get(..len).unwrap_or_default(), files, read)
            }
        }
    }

    /// Gives up the right to a reply, whose files are closed when it is met.
    pub(crate) fn forget(&self, ticket: Ticket) {
        if let Some(connection) = self.connections.get(ticket.connection) {
            let mut connection = connection.lock();
            connection.owed = match connection.owed {
                Owed::Reply => Owed::Unwanted,
                _ => Owed::Nothing,
            };
            self.is_asked.store(false, Ordering::Release);
        }
    }

    /// Hands a successful reply to `read`.
    fn finish<T>(
        &self,
        reply: &[u8],
        files: Vec<OwnedFd>,
        read: impl FnOnce(&mut Answer<'_>) -> core::result::Result<T, Broken>,
    ) -> Result<T> {
        match Reply::decode(reply) {
            Ok(Err(errno)) => Err(Errno::from_raw(errno)),
            Ok(Ok(body)) if body.descriptors() == files.len() => {
                read(&mut Answer { body, files }).map_err(|Broken| self.give_up())
            }
            _ => Err(self.give_up()),
        }
    }

    fn give_up(&self) -> Errno {
        self.lost.store(true, Ordering::Release);
        if let Some(then) = self.on_loss.get() {
            then();
        }
        Errno::EIO
    }

    /// A connection that nobody uses and that owes no reply, if there is one.
    fn free_connection(&self) -> Option<MutexGuard<'_, Connection, { rank::LEAF }>> {
        let mut owes = None;
        for connection in self.connections.iter().filter_map(Mutex::try_lock) {
            match connection.owed {
                Owed::Reply | Owed::Unwanted => owes = Some(connection),
                Owed::Nothing | Owed::PutAside(..) => return Some(connection),
            }
        }
        if owes.is_some() {
            return owes;
        }
        let turn = self.next.fetch_add(1, Ordering::Relaxed) % self.connections.len().max(1);
        self.connections.get(turn).map(Mutex::lock)
    }
}

fn send(socket: &OwnedFd, out: &[u8]) -> io::Result<()> {
    retry(|| sock::send(socket.as_fd(), out, &[], 0)).map(drop)
}

fn receive(socket: &OwnedFd, reply: &mut Vec<u8>) -> io::Result<(usize, Vec<OwnedFd>)> {
    let received = retry(|| sock::receive_into(socket.as_fd(), reply, 0))?;
    if received.len == 0 || received.truncated || received.fds.len() > MAX_TOGETHER {
        return Err(io::Error::other("the gofer ended or broke the protocol"));
    }
    Ok((received.len, received.fds))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use gofer_protocol::{Fid, Path, Place};

    use super::*;

    const AT: Place<'_> = Place { fid: Fid(0), path: Path::EMPTY };

    /// A session with a gofer whose only mount has two files.
    fn session(name: &str, connections: u32) -> (std::path::PathBuf, Arc<Session>) {
        let dir = std::env::temp_dir().join(format!("gofer-session-{name}-{}", std::process::id()));
        fs::create_dir_all(dir.join("0")).unwrap();
        fs::write(dir.join("0/a"), "text of a").unwrap();
        fs::write(dir.join("0/b"), "text of b").unwrap();
        let mount =
            gofer::Mount { source: dir.clone(), read_only: true, allow_special: false, recursive: true };
        let served = gofer::serve_unjailed(&dir, vec![mount], connections).unwrap();
        (dir, Session::connect(served).unwrap())
    }

    fn together() -> Request<'static> {
        Request::OpenTogether { at: AT, names: Path::new(b"a/b").unwrap() }
    }

    fn texts(answer: &mut Answer<'_>) -> core::result::Result<Vec<String>, Broken> {
        let text = |file| std::io::read_to_string(File::from(file)).unwrap();
        Ok(answer.files.drain(..).map(text).collect())
    }

    fn stat(session: &Session) {
        session.call(&Request::StatFs { at: AT }, |reply| Ok(reply.body.stat_fs()?)).unwrap();
    }

    #[test]
    fn a_reply_that_is_owed_goes_to_the_one_who_asked() {
        let (dir, session) = session("owed", 2);
        // Collected from its connection; others use the other one.
        let ticket = session.ask(&together()).unwrap();
        assert!(session.ask(&together()).is_none(), "one at a time");
        (0..3).for_each(|_| stat(&session));
        assert_eq!(session.collect(ticket, texts).unwrap(), ["text of a", "text of b"]);
        // Put aside by who needs the connection.
        let ticket = session.ask(&together()).unwrap();
        let busy = session.connections[1].try_lock().unwrap();
        (0..3).for_each(|_| stat(&session));
        drop(busy);
        assert!(matches!(session.connections[0].lock().owed, Owed::PutAside(..)));
        assert_eq!(session.collect(ticket, texts).unwrap(), ["text of a", "text of b"]);
        // Not wanted any more, met or not.
        for met in [false, true] {
            let ticket = session.ask(&together()).unwrap();
            let busy = session.connections[1].try_lock().unwrap();
            if met {
                stat(&session);
            }
            session.forget(ticket);
            stat(&session);
            drop(busy);
            assert!(matches!(session.connections[0].lock().owed, Owed::Nothing));
        }
        let ticket = session.ask(&together()).unwrap();
        assert_eq!(session.collect(ticket, texts).unwrap().len(), 2);
        let missing = Request::OpenTogether { at: AT, names: Path::new(b"c/a").unwrap() };
        let ticket = session.ask(&missing).unwrap();
        assert_eq!(session.collect(ticket, texts).unwrap_err(), Errno::ENOENT);
        assert!(!session.is_lost());
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_single_connection_is_kept_for_what_cannot_wait() {
        let (dir, session) = session("single", 1);
        assert!(session.ask(&together()).is_none());
        stat(&session);
        fs::remove_dir_all(dir).unwrap();
    }

    /// Two connections, and the gofer's ends of them.
    fn by_hand() -> (Arc<Session>, Vec<OwnedFd>) {
        let (ours, theirs): (Vec<_>, Vec<_>) = (0..2).map(|_| sock::packet_pair().unwrap()).unzip();
        let mut hello = Vec::new();
        Hello::Ready { version: VERSION }.encode(&mut hello);
        for socket in &theirs {
            sock::send(socket.as_fd(), &hello, &[], 0).unwrap();
        }
        (Session::connect(ours).unwrap(), theirs)
    }

    #[test]
    fn a_gofer_that_is_lost_owes_an_io_error() {
        let (session, theirs) = by_hand();
        let ticket = session.ask(&together()).unwrap();
        drop(theirs);
        assert_eq!(session.collect(ticket, texts).unwrap_err(), Errno::EIO);
        assert!(session.is_lost());
        assert!(session.ask(&together()).is_none());

        // Gone before it is asked: the next call finds out.
        let (session, theirs) = by_hand();
        drop(theirs);
        assert!(session.ask(&together()).is_none());
        assert_eq!(session.call(&together(), texts).unwrap_err(), Errno::EIO);
        assert!(session.is_lost());
    }

    #[test]
    fn what_is_no_reply_is_none_when_it_is_owed_either() {
        let (session, theirs) = by_hand();
        let ticket = session.ask(&together()).unwrap();
        // Announces no descriptor and brings one.
        let mut reply = Vec::new();
        gofer_protocol::ReplyWriter::new(&mut reply).finish();
        sock::send(theirs[0].as_fd(), &reply, &[theirs[1].as_fd()], 0).unwrap();
        assert_eq!(session.collect(ticket, texts).unwrap_err(), Errno::EIO);
        assert!(session.is_lost());
    }
}
