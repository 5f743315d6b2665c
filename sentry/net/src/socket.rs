//! What a socket of any family does, and the open file around it.

use core::any::Any;
use core::fmt::Debug;
use core::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use abi::net::Ucred;
use sentry_base::{Errno, Events, Nanos, Result, WaitQueue};
use sentry_memory::{UserReader, UserWriter};
use sentry_mm::Mappable;
use sentry_vfs::{
    Attr, Caller, FileDescription, FileKind, FileOps, Inode, IoCtx, IoStart, OpenFlags, Pos, WaitLimit, cap,
};

/// The device number of sockfs.
const SOCKFS_DEV: u64 = 8;

/// Attributes of a new socket of this owner.
pub(crate) fn new_attr(uid: u32, gid: u32) -> Attr {
    Attr { uid, gid, btime: None, ..Attr::new(FileKind::Socket, 0o777, next_ino(), SOCKFS_DEV) }
}

/// A number for a socket, or for memory of one that is mapped.
pub(crate) fn next_ino() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0x2000);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// The methods of a [`Socket`] that is a handle of a shared part with fields `options`, `queue` and `attr`, and passes these
/// calls on to it.
macro_rules! served_by_shared_part {
    () => {
        fn get_option(
            &self,
            _caller: &dyn sentry_vfs::Caller,
            level: i32,
            name: i32,
        ) -> sentry_base::Result<Vec<u8>> {
            self.0.get_option(level, name)
        }

        fn set_option(
            &self,
            caller: &dyn sentry_vfs::Caller,
            level: i32,
            name: i32,
            value: &[u8],
        ) -> sentry_base::Result<()> {
            self.0.set_option(caller, level, name, value)
        }

        fn timeout(&self, sending: bool) -> Option<sentry_base::Nanos> {
            self.0.options.timeout(sending)
        }

        fn readiness(&self) -> sentry_base::Events {
            self.0.readiness()
        }

        fn wait_queue(&self) -> &sentry_base::WaitQueue {
            &self.0.queue
        }

        fn ioctl(&self, caller: &dyn sentry_vfs::Caller, command: u32, arg: u64) -> sentry_base::Result<i64> {
            self.0.ioctl(caller, command, arg)
        }

        fn attr(&self) -> sentry_vfs::Attr {
            self.0.attr
        }

        fn as_any(&self) -> &dyn core::any::Any {
            self
        }
    };
}
pub(crate) use served_by_shared_part;

/// How a socket reaches the file system for addresses that are paths.
pub trait SocketPaths {
    /// The inode at `path`, which the caller may write (`EACCES` otherwise).
    fn find(&self, path: &[u8]) -> Result<Arc<dyn Inode>>;
    /// Makes a socket file at `path`; `EADDRINUSE` where the name is taken.
    fn make(&self, path: &[u8]) -> Result<Arc<dyn Inode>>;
}

/// For transfers by `read` and `write`, which carry no address.
#[derive(Debug)]
pub struct NoPaths;

impl SocketPaths for NoPaths {
    fn find(&self, _path: &[u8]) -> Result<Arc<dyn Inode>> {
        Err(Errno::ENOENT)
    }
    fn make(&self, _path: &[u8]) -> Result<Arc<dyn Inode>> {
        Err(Errno::EACCES)
    }
}

/// Who calls, and how.
#[derive(Clone, Copy)]
pub struct SockCtx<'a> {
    pub caller: &'a dyn Caller,
    /// The call will not wait: `O_NONBLOCK` or `MSG_DONTWAIT`.
    pub nonblock: bool,
    pub paths: &'a dyn SocketPaths,
}

impl Debug for SockCtx<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "SockCtx(nonblock: {})", self.nonblock)
    }
}

impl SockCtx<'_> {
    /// The caller's credentials as a peer sees them.
    pub fn credentials(&self) -> Ucred {
        let creds = self.caller.creds();
        Ucred { pid: self.caller.pid(), uid: creds.euid, gid: creds.egid }
    }
}

/// Control data of a message to send, checked.
#[derive(Debug, Default)]
pub struct ControlIn {
    /// `SCM_RIGHTS`. Taken by the first piece of the message that is queued.
    pub rights: Vec<Arc<FileDescription>>,
    /// `SCM_CREDENTIALS`, which [`check_credentials`] has passed.
    pub creds: Option<Ucred>,
    /// Those of other levels, for the protocol to read.
    pub other: Vec<ControlMessage>,
}

/// One control message (`cmsg(3)`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlMessage {
    pub level: i32,
    pub kind: i32,
    pub data: Vec<u8>,
}

/// A message to send, or what is left of one.
#[derive(Debug)]
pub struct SendMsg<'m, 'd> {
    pub data: &'m mut UserReader<'d>,
    /// `MSG_*` of the call.
    pub flags: i32,
    /// The address, as given.
    pub to: Option<&'m [u8]>,
    pub control: ControlIn,
}

/// A message to receive into, and what came with it. The same one goes on over several attempts of a call.
#[derive(Debug)]
pub struct RecvMsg<'m, 'd> {
    pub data: &'m mut UserWriter<'d>,
    /// `MSG_*` of the call.
    pub flags: i32,
    /// The sender's address as `struct sockaddr`; empty for a sender without one.
    pub from: Option<Vec<u8>>,
    pub rights: Vec<Arc<FileDescription>>,
    /// The sender, where the socket asks for it (`SO_PASSCRED`).
    pub creds: Option<Ucred>,
    /// What the protocol tells besides.
    pub other: Vec<ControlMessage>,
    /// `MSG_TRUNC` and the like, to report.
    pub out_flags: i32,
}

impl<'m, 'd> RecvMsg<'m, 'd> {
    pub fn new(data: &'m mut UserWriter<'d>, flags: i32) -> Self {
        Self { data, flags, from: None, rights: Vec::new(), creds: None, other: Vec::new(), out_flags: 0 }
    }

    /// Adds a control message of a protocol.
    pub(crate) fn describe(&mut self, level: i32, kind: i32, data: &[u8]) {
        self.other.push(ControlMessage { level, kind, data: data.to_vec() });
    }
}

/// Whether the caller may claim these credentials (`unix(7)`, `scm_check_creds`): its own, or any with the right
/// capability.
pub fn check_credentials(caller: &dyn Caller, claim: &Ucred) -> Result<()> {
    let creds = caller.creds();
    let pid = claim.pid == caller.pid() || creds.has_cap(cap::SYS_ADMIN);
    let uid = [creds.uid, creds.euid, creds.suid].contains(&claim.uid) || creds.has_cap_here(cap::SETUID);
    let gid = [creds.gid, creds.egid, creds.sgid].contains(&claim.gid) || creds.has_cap_here(cap::SETGID);
    if pid && uid && gid { Ok(()) } else { Err(Errno::EPERM) }
}

/// A socket. Calls that may have to wait answer `WouldBlock`; wait on the queue and call again.
pub trait Socket: Send + Sync + Debug {
    /// `AF_*`.
    fn domain(&self) -> i32;
    /// `SOCK_*`.
    fn kind(&self) -> i32;
    fn bind(&self, cx: &SockCtx<'_>, address: &[u8]) -> Result<()>;
    fn listen(&self, cx: &SockCtx<'_>, backlog: i32) -> Result<()>;
    fn try_connect(&self, cx: &SockCtx<'_>, address: &[u8]) -> Result<IoStart<()>>;
    fn try_accept(&self, cx: &SockCtx<'_>) -> Result<IoStart<Arc<dyn Socket>>>;
    /// Sends what fits now. Streams may take a part; the count says how much.
    fn try_send(&self, cx: &SockCtx<'_>, msg: &mut SendMsg<'_, '_>) -> Result<IoStart<usize>>;
    fn try_recv(&self, cx: &SockCtx<'_>, msg: &mut RecvMsg<'_, '_>) -> Result<IoStart<usize>>;
    /// `SHUT_RD`, `SHUT_WR` or `SHUT_RDWR`.
    fn shutdown(&self, how: i32) -> Result<()>;
    /// `struct sockaddr` of this end.
    fn local_address(&self) -> Result<Vec<u8>>;
    fn peer_address(&self) -> Result<Vec<u8>>;
    /// The peer of a connection that was just accepted: known even if the peer has gone already.
    fn accepted_peer(&self) -> Result<Vec<u8>> {
        self.peer_address()
    }
    /// The value of an option, at full length.
    fn get_option(&self, caller: &dyn Caller, level: i32, name: i32) -> Result<Vec<u8>>;
    fn set_option(&self, caller: &dyn Caller, level: i32, name: i32, value: &[u8]) -> Result<()>;
    /// Whether the answer depends on what the caller has put where it is to go, and [`Socket::get_option_for`] is to be
    /// asked.
    fn answers_by_value(&self, level: i32, name: i32) -> bool {
        let _ = (level, name);
        false
    }
    /// The value of an option for what the caller has given.
    fn get_option_for(&self, caller: &dyn Caller, level: i32, name: i32, given: &[u8]) -> Result<Vec<u8>> {
        let _ = given;
        self.get_option(caller, level, name)
    }
    /// `SO_RCVTIMEO`, or `SO_SNDTIMEO` with `sending`; `None` for no limit.
    fn timeout(&self, sending: bool) -> Option<Nanos>;
    /// How long `close` waits, in nanoseconds, where `SO_LINGER` asks for it and something is left to be sent.
    fn lingers(&self) -> Option<Nanos> {
        None
    }
    fn readiness(&self) -> Events;
    fn wait_queue(&self) -> &WaitQueue;
    fn ioctl(&self, caller: &dyn Caller, command: u32, arg: u64) -> Result<i64>;
    /// What `mmap` of the socket maps.
    fn mappable(&self) -> Result<Arc<dyn Mappable>> {
        Err(Errno::ENODEV)
    }
    fn attr(&self) -> Attr;
    fn as_any(&self) -> &dyn Any;
}

/// The open file of a socket.
#[derive(Debug)]
pub struct SocketFile(Arc<dyn Socket>);

impl SocketFile {
    pub fn new(socket: Arc<dyn Socket>) -> Arc<Self> {
        Arc::new(Self(socket))
    }

    pub fn socket(&self) -> &Arc<dyn Socket> {
        &self.0
    }

    /// The socket behind an open file; `ENOTSOCK` for others.
    pub fn of(file: &FileDescription) -> Result<&Arc<dyn Socket>> {
        file.ops().as_any().downcast_ref::<Self>().map(Self::socket).ok_or(Errno::ENOTSOCK)
    }
}

fn context<'a>(io: &IoCtx<'a>) -> SockCtx<'a> {
    SockCtx { caller: io.caller, nonblock: io.flags.contains(OpenFlags::NONBLOCK), paths: &NoPaths }
}

impl FileOps for SocketFile {
    fn readiness(&self) -> Events {
        self.0.readiness()
    }

    fn wait_queue(&self) -> Option<&WaitQueue> {
        Some(self.0.wait_queue())
    }

    fn try_read(&self, io: &IoCtx<'_>, dst: &mut UserWriter<'_>, _pos: Pos) -> Result<IoStart<usize>> {
        if dst.remaining() == 0 {
            return Ok(IoStart::Done(0));
        }
        self.0.try_recv(&context(io), &mut RecvMsg::new(dst, 0))
    }

    fn try_write(&self, io: &IoCtx<'_>, src: &mut UserReader<'_>, _pos: Pos) -> Result<IoStart<usize>> {
        let mut msg = SendMsg { data: src, flags: 0, to: None, control: ControlIn::default() };
        self.0.try_send(&context(io), &mut msg)
    }

    fn wait_limit(&self, writing: bool) -> Option<WaitLimit> {
        self.0.timeout(writing).map(|ns| WaitLimit { ns, then: Err(Errno::EAGAIN) })
    }

    fn ioctl(&self, io: &IoCtx<'_>, command: u32, arg: u64) -> Result<i64> {
        self.0.ioctl(io.caller, command, arg)
    }

    fn mappable(&self) -> Result<Arc<dyn Mappable>> {
        self.0.mappable()
    }

    fn attr(&self) -> Option<Result<Attr>> {
        Some(Ok(self.0.attr()))
    }

    fn link_text(&self) -> Option<String> {
        Some(format!("socket:[{}]", self.0.attr().ino))
    }

    fn kind(&self) -> FileKind {
        FileKind::Socket
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
