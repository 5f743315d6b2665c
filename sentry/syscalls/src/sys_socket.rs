//! Sockets: socket(2), bind(2), connect(2), accept(2), send(2), recv(2) and their kin (`net/socket.c`).

use std::sync::Arc;

use abi::net::{MMsgHdr, MsgHdr};
use abi::time::Timespec;
use sentry_base::{Errno, Events, Nanos, Result, mono_now};
use sentry_kernel::{BlockEnd, Call, Current, IntoRax, Restart, Stop, SysResult, Task};
use sentry_memory::{IoSeg, UserReader, UserWriter};
use sentry_net::{
    ControlIn, ControlMessage, Domain, NetlinkSocket, NetworkNamespace, PacketSocket, RecvMsg, SendMsg,
    SockCtx, Socket, SocketFile, SocketPaths, UnixSocket,
};
use sentry_vfs::{Access, FileDescription, Inode, IoStart, LookupFlags, OpenFlags, PathCx};

use zerocopy::{FromBytes, IntoBytes};

use crate::args::{Bits, Ptr};
use crate::files::add_file;
use crate::fs_args::{MAX_RW, cut, segments};
use crate::net_args::{ControlOut, read_address, read_control, store_address, store_cut};
use crate::table::syscalls;

syscalls! {
    41 socket(domain: i32, kind: i32, protocol: i32) [sync, "AF_UNIX, AF_INET, AF_INET6, AF_NETLINK and AF_PACKET"];
    42 connect(fd: i32, addr: Ptr, len: i32) [call];
    43 accept(fd: i32, addr: Ptr, len: Ptr) [call];
    44 sendto(fd: i32, buf: Ptr, len: usize, flags: i32, addr: Ptr, addr_len: i32) [call];
    45 recvfrom(fd: i32, buf: Ptr, len: usize, flags: i32, addr: Ptr, addr_len: Ptr) [call];
    46 sendmsg(fd: i32, msg: Ptr, flags: i32) [call];
    47 recvmsg(fd: i32, msg: Ptr, flags: i32) [call];
    48 shutdown(fd: i32, how: i32) [sync];
    49 bind(fd: i32, addr: Ptr, len: i32) [sync];
    50 listen(fd: i32, backlog: i32) [sync];
    51 getsockname(fd: i32, addr: Ptr, len: Ptr) [sync];
    52 getpeername(fd: i32, addr: Ptr, len: Ptr) [sync];
    53 socketpair(domain: i32, kind: i32, protocol: i32, fds: Ptr) [sync, "AF_UNIX only"];
    54 setsockopt(fd: i32, level: i32, name: i32, value: Ptr, len: i32) [sync];
    55 getsockopt(fd: i32, level: i32, name: i32, value: Ptr, len: Ptr) [sync];
    288 accept4(fd: i32, addr: Ptr, len: Ptr, flags: Bits) [call];
    299 recvmmsg(fd: i32, vec: Ptr, count: u32, flags: i32, timeout: Ptr) [wait];
    307 sendmmsg(fd: i32, vec: Ptr, count: u32, flags: i32) [wait];
}

/// Messages that one `sendmmsg` or `recvmmsg` carries (`UIO_MAXIOV`).
const BATCH_MAX: u32 = 1024;
/// The longest option value that is copied in.
const OPTION_MAX: usize = 4096;

/// The type of a socket and its flags.
fn split_kind(kind: i32) -> Result<(i32, OpenFlags, bool)> {
    let flags = kind & !0xf;
    if flags & !(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK) != 0 {
        return Err(Errno::EINVAL);
    }
    let status = if flags & libc::SOCK_NONBLOCK != 0 { OpenFlags::NONBLOCK } else { OpenFlags::empty() };
    Ok((kind & 0xf, OpenFlags::RDWR | status, flags & libc::SOCK_CLOEXEC != 0))
}

fn one_segment(buf: Ptr, len: usize) -> Vec<IoSeg> {
    vec![IoSeg { addr: buf.0, len: len.min(MAX_RW) as u64 }]
}

fn network(cx: &Current) -> Arc<NetworkNamespace> {
    let net = Arc::clone(&cx.namespaces().net);
    let network = net.extension::<NetworkNamespace>();
    let first = cx.kernel().first_network().ino() == net.ino();
    network.belong_to(net.user_ns(), !first);
    network
}

/// Families and types of sockets that have numbers (`NPROTO`, `SOCK_MAX`, `include/linux/net.h`).
const FAMILIES: i32 = 46;
const TYPES: i32 = 11;

fn socket(cx: &mut Current, domain: i32, kind: i32, protocol: i32) -> Result<i32> {
    let (kind, status, cloexec) = split_kind(kind)?;
    // A type that is none is told of before a family that is not there (`__sock_create`, `net/socket.c`).
    if (0..FAMILIES).contains(&domain) && !(0..TYPES).contains(&kind) {
        return Err(Errno::EINVAL);
    }
    let (network, task) = (network(cx), Arc::clone(&cx.task));
    let socket: Arc<dyn Socket> = match domain {
        libc::AF_UNIX => UnixSocket::new(task.as_ref(), network.unix(), kind, protocol)?,
        libc::AF_INET => network.inet().socket(task.as_ref(), Domain::V4, kind, protocol)?,
        libc::AF_INET6 => network.inet().socket(task.as_ref(), Domain::V6, kind, protocol)?,
        libc::AF_NETLINK => NetlinkSocket::new(task.as_ref(), network.inet(), kind, protocol)?,
        libc::AF_PACKET => PacketSocket::new(task.as_ref(), network.inet(), kind, protocol)?,
        _ => return Err(Errno::EAFNOSUPPORT),
    };
    add_file(cx, SocketFile::new(socket), status, cloexec)
}

fn socketpair(cx: &mut Current, domain: i32, kind: i32, protocol: i32, fds: Ptr) -> Result<()> {
    let (kind, status, cloexec) = split_kind(kind)?;
    match domain {
        libc::AF_UNIX => {}
        libc::AF_INET | libc::AF_INET6 => return Err(Errno::EOPNOTSUPP),
        _ => return Err(Errno::EAFNOSUPPORT),
    }
    let (a, b) = UnixSocket::pair(cx.task.as_ref(), network(cx).unix(), kind, protocol)?;
    let pid = cx.pid();
    let first = add_file(cx, SocketFile::new(a), status, cloexec)?;
    let second = match add_file(cx, SocketFile::new(b), status, cloexec) {
        Ok(fd) => fd,
        Err(errno) => {
            let _ = cx.fds().close(first, pid);
            return Err(errno);
        }
    };
    if let Err(errno) = cx.write_obj(fds.0, &[first, second]) {
        let _ = cx.fds().close(first, pid);
        let _ = cx.fds().close(second, pid);
        return Err(errno);
    }
    Ok(())
}

/// The file system as a task's sockets see it.
struct TaskPaths<'a>(&'a Task);

impl TaskPaths<'_> {
    fn walk<T>(&self, use_paths: impl FnOnce(&PathCx<'_>) -> Result<T>) -> Result<T> {
        let (ns, view, creds) = (self.0.mount_ns(), self.0.fs().view(), self.0.creds());
        use_paths(&PathCx::new(&ns, &view, &creds, self.0))
    }
}

impl SocketPaths for TaskPaths<'_> {
    fn find(&self, path: &[u8]) -> Result<Arc<dyn Inode>> {
        self.walk(|paths| {
            let at = paths.lookup(None, path, LookupFlags::FOLLOW)?;
            paths.check(&at, Access::WRITE)?;
            Ok(Arc::clone(at.inode()))
        })
    }

    fn make(&self, path: &[u8]) -> Result<Arc<dyn Inode>> {
        self.walk(|paths| match paths.mknod(None, path, libc::S_IFSOCK | 0o777, 0) {
            Ok(at) => Ok(Arc::clone(at.inode())),
            Err(Errno::EEXIST) => Err(Errno::EADDRINUSE),
            Err(errno) => Err(errno),
        })
    }
}

/// Runs `call` with the context of a task and a file.
fn with_context<T>(task: &Task, nonblock: bool, call: impl FnOnce(&SockCtx<'_>) -> T) -> T {
    call(&SockCtx { caller: task, nonblock, paths: &TaskPaths(task) })
}

fn nonblocking(file: &FileDescription, flags: i32) -> bool {
    flags & libc::MSG_DONTWAIT != 0 || file.flags().contains(OpenFlags::NONBLOCK)
}

fn failed<'a>(errno: Errno) -> Call<'a> {
    Call::Done(Err(errno.into()))
}

fn bind(cx: &mut Current, fd: i32, addr: Ptr, len: i32) -> Result<()> {
    let file = cx.file(fd)?;
    let socket = SocketFile::of(&file)?;
    let address = read_address(&cx.task, addr.0, len)?;
    with_context(&cx.task, false, |context| socket.bind(context, &address))
}

fn listen(cx: &mut Current, fd: i32, backlog: i32) -> Result<()> {
    let file = cx.file(fd)?;
    let socket = SocketFile::of(&file)?;
    with_context(&cx.task, false, |context| socket.listen(context, backlog))
}

fn shutdown(cx: &mut Current, fd: i32, how: i32) -> Result<()> {
    let file = cx.file(fd)?;
    SocketFile::of(&file)?.shutdown(how)
}

fn getsockname(cx: &mut Current, fd: i32, addr: Ptr, len: Ptr) -> Result<()> {
    let file = cx.file(fd)?;
    let address = SocketFile::of(&file)?.local_address()?;
    store_address(&cx.task, &address, addr.0, len.0)
}

fn getpeername(cx: &mut Current, fd: i32, addr: Ptr, len: Ptr) -> Result<()> {
    let file = cx.file(fd)?;
    let address = SocketFile::of(&file)?.peer_address()?;
    store_address(&cx.task, &address, addr.0, len.0)
}

fn setsockopt(cx: &mut Current, fd: i32, level: i32, name: i32, value: Ptr, len: i32) -> Result<()> {
    let file = cx.file(fd)?;
    let socket = SocketFile::of(&file)?;
    let len = usize::try_from(len).map_err(|_| Errno::EINVAL)?.min(OPTION_MAX);
    let mut bytes = vec![0; len];
    cx.copy_in(value.0, &mut bytes)?;
    socket.set_option(cx.task.as_ref(), level, name, &bytes)
}

fn getsockopt(cx: &mut Current, fd: i32, level: i32, name: i32, value: Ptr, len: Ptr) -> Result<()> {
    let file = cx.file(fd)?;
    let socket = SocketFile::of(&file)?;
    let room: i32 = cx.read_obj(len.0)?;
    let room = usize::try_from(room).map_err(|_| Errno::EINVAL)?;
    let mut option = if socket.answers_by_value(level, name) {
        let mut given = vec![0; room.min(OPTION_MAX)];
        cx.copy_in(value.0, &mut given)?;
        socket.get_option_for(cx.task.as_ref(), level, name, &given)?
    } else {
        socket.get_option(cx.task.as_ref(), level, name)?
    };
    if (level, name) == (libc::SOL_SOCKET, libc::SO_PEERCRED)
        && let Ok(peer) = abi::net::Ucred::read_from_bytes(&option)
    {
        option = crate::net_args::shown_credentials(cx, peer).as_bytes().to_vec();
    }
    store_cut(&cx.task, &option, value.0, room)?;
    let stored = u32::try_from(option.len().min(room)).unwrap_or(0);
    cx.write_obj(len.0, &stored)
}

/// The end of a socket call's wait: without a time limit of the socket it is restarted after a signal, with one it is
/// interrupted for good (`sock_intr_errno`).
fn interrupted(socket: &Arc<dyn Socket>, sending: bool, end: BlockEnd) -> Stop {
    match end {
        BlockEnd::Interrupted if socket.timeout(sending).is_some() => Stop::Errno(Errno::EINTR),
        end => end.or_restart(Restart::Sys),
    }
}

fn deadline(socket: &Arc<dyn Socket>, sending: bool) -> Option<Nanos> {
    socket.timeout(sending).map(|ns| mono_now().saturating_add(ns))
}

fn connect(cx: &mut Current, fd: i32, addr: Ptr, len: i32) -> Call<'_> {
    let parsed = || -> Result<_> {
        let file = cx.file(fd)?;
        let socket = Arc::clone(SocketFile::of(&file)?);
        Ok((read_address(&cx.task, addr.0, len)?, nonblocking(&file, 0), socket))
    };
    let (address, nonblock, socket) = match parsed() {
        Ok(parsed) => parsed,
        Err(errno) => return failed(errno),
    };
    match with_context(&cx.task, nonblock, |context| socket.try_connect(context, &address)) {
        Ok(IoStart::Done(())) => return Call::Done(Ok(0)),
        Ok(IoStart::WouldBlock) if nonblock => return failed(Errno::EAGAIN),
        Ok(IoStart::WouldBlock) => {}
        Err(errno) => return failed(errno),
    }
    Call::Wait(Box::pin(async move {
        let until = deadline(&socket, true);
        cx.block_on(socket.wait_queue(), Events::WRITABLE, until, |task| {
            with_context(task, false, |context| socket.try_connect(context, &address))
        })
        .await
        .map(IntoRax::into_rax)
        .map_err(|end| match end {
            // The attempt goes on without the caller.
            BlockEnd::TimedOut => Stop::Errno(Errno::EINPROGRESS),
            end => interrupted(&socket, true, end),
        })
    }))
}

fn accept(cx: &mut Current, fd: i32, addr: Ptr, len: Ptr) -> Call<'_> {
    accept4(cx, fd, addr, len, Bits(0))
}

/// Enters an accepted socket and tells its peer's address.
fn enter_accepted(
    cx: &Current,
    socket: Arc<dyn Socket>,
    (status, cloexec): (OpenFlags, bool),
    addr: Ptr,
    len: Ptr,
) -> Result<i32> {
    let peer = if addr.is_null() { None } else { Some(socket.accepted_peer()) };
    let fd = add_file(cx, SocketFile::new(socket), status, cloexec)?;
    if let Some(peer) = peer {
        // A peer that has gone already has no address to tell.
        let stored =
            peer.or(Err(Errno::ECONNABORTED)).and_then(|p| store_address(&cx.task, &p, addr.0, len.0));
        if let Err(errno) = stored {
            let _ = cx.fds().close(fd, cx.pid());
            return Err(errno);
        }
    }
    Ok(fd)
}

fn accept4(cx: &mut Current, fd: i32, addr: Ptr, len: Ptr, flags: Bits) -> Call<'_> {
    let parsed = || -> Result<_> {
        let (_, status, cloexec) = split_kind(flags.0.cast_signed())?;
        if flags.0 & 0xf != 0 {
            return Err(Errno::EINVAL);
        }
        let file = cx.file(fd)?;
        let socket = Arc::clone(SocketFile::of(&file)?);
        Ok((socket, nonblocking(&file, 0), (status, cloexec)))
    };
    let (socket, nonblock, how) = match parsed() {
        Ok(parsed) => parsed,
        Err(errno) => return failed(errno),
    };
    match with_context(&cx.task, nonblock, |context| socket.try_accept(context)) {
        Ok(IoStart::Done(new)) => {
            return Call::Done(
                enter_accepted(cx, new, how, addr, len).map(IntoRax::into_rax).map_err(Into::into),
            );
        }
        Ok(IoStart::WouldBlock) if nonblock => return failed(Errno::EAGAIN),
        Ok(IoStart::WouldBlock) => {}
        Err(errno) => return failed(errno),
    }
    Call::Wait(Box::pin(async move {
        let until = deadline(&socket, false);
        let new = cx
            .block_on(socket.wait_queue(), Events::READABLE, until, |task| {
                with_context(task, false, |context| socket.try_accept(context))
            })
            .await
            .map_err(|end| interrupted(&socket, false, end))?;
        Ok(enter_accepted(cx, new, how, addr, len)?.into_rax())
    }))
}

/// A message to send, parsed.
struct Outgoing {
    file: Arc<FileDescription>,
    socket: Arc<dyn Socket>,
    segs: Vec<IoSeg>,
    to: Option<Vec<u8>>,
    control: ControlIn,
    flags: i32,
}

impl Outgoing {
    /// From a `struct msghdr`.
    fn from_header(cx: &Current, fd: i32, hdr: &MsgHdr, flags: i32) -> Result<Self> {
        let file = cx.file(fd)?;
        let socket = Arc::clone(SocketFile::of(&file)?);
        let to = if hdr.name != 0 && hdr.namelen > 0 {
            // Longer than any address is cut, as `__copy_msghdr` does.
            let len = i32::try_from(hdr.namelen).map_err(|_| Errno::EINVAL)?.min(128);
            Some(read_address(&cx.task, hdr.name, len)?)
        } else {
            None
        };
        let count = usize::try_from(hdr.iovlen).ok().filter(|n| *n <= 1024).ok_or(Errno::EMSGSIZE)?;
        let segs = segments(cx, Ptr(hdr.iov), count)?;
        let control = read_control(cx, hdr)?;
        Ok(Self { file, socket, segs, to, control, flags })
    }

    /// Sends at once what can be sent at once, and goes on with a wait if need be.
    fn start(mut self, cx: &mut Current) -> Call<'_> {
        let nonblock = nonblocking(&self.file, self.flags);
        let task = Arc::clone(&cx.task);
        // What the trap carried along needs no copy from the application.
        let staged = match self.segs.as_slice() {
            [seg] => usize::try_from(seg.len).ok().and_then(|n| cx.context.staged(seg.addr)?.get(..n)),
            _ => None,
        };
        let mut data = staged.map_or_else(|| UserReader::user(task.as_ref(), &self.segs), UserReader::buffer);
        let control = core::mem::take(&mut self.control);
        let mut msg = SendMsg { data: &mut data, flags: self.flags, to: self.to.as_deref(), control };
        let first = with_context(&task, nonblock, |context| self.socket.try_send(context, &mut msg));
        let rest = msg.data.remaining();
        let sent = match first {
            Ok(IoStart::Done(n)) if rest == 0 || nonblock => return Call::Done(Ok(n.into_rax())),
            Ok(IoStart::Done(n)) if self.socket.kind() != libc::SOCK_STREAM => {
                return Call::Done(Ok(n.into_rax()));
            }
            Ok(IoStart::Done(n)) => n,
            Ok(IoStart::WouldBlock) if nonblock => return failed(Errno::EAGAIN),
            Ok(IoStart::WouldBlock) => 0,
            Err(errno) => return failed(errno),
        };
        self.control = msg.control;
        let taken = data.taken();
        Call::Wait(Box::pin(async move { self.go_on(cx, sent, taken).await.map(IntoRax::into_rax) }))
    }

    /// Sends the rest, of which `taken` bytes have been read already and `sent` have gone out.
    async fn go_on(self, cx: &mut Current, mut sent: usize, taken: usize) -> SysResult<usize> {
        let task = Arc::clone(&cx.task);
        let mut data = UserReader::user(task.as_ref(), &self.segs);
        data.skip(taken);
        let stream = self.socket.kind() == libc::SOCK_STREAM;
        let mut control = self.control;
        let until = deadline(&self.socket, true);
        loop {
            let mut msg = SendMsg {
                data: &mut data,
                flags: self.flags,
                to: self.to.as_deref(),
                control: core::mem::take(&mut control),
            };
            let step = cx
                .block_on(self.socket.wait_queue(), Events::WRITABLE, until, |task| {
                    with_context(task, false, |context| self.socket.try_send(context, &mut msg))
                })
                .await;
            control = msg.control;
            match step {
                Ok(n) => sent += n,
                Err(_) if sent > 0 => return Ok(sent),
                Err(end) => return Err(interrupted(&self.socket, true, end)),
            }
            if !stream || data.remaining() == 0 {
                return Ok(sent);
            }
        }
    }
}

fn sendto(cx: &mut Current, fd: i32, buf: Ptr, len: usize, flags: i32, addr: Ptr, addr_len: i32) -> Call<'_> {
    let parsed = || -> Result<Outgoing> {
        let file = cx.file(fd)?;
        let socket = Arc::clone(SocketFile::of(&file)?);
        let to = if addr.is_null() { None } else { Some(read_address(&cx.task, addr.0, addr_len)?) };
        let to = to.filter(|address| !address.is_empty());
        let segs = one_segment(buf, len);
        Ok(Outgoing { file, socket, segs, to, control: ControlIn::default(), flags })
    };
    match parsed() {
        Ok(outgoing) => outgoing.start(cx),
        Err(errno) => failed(errno),
    }
}

fn sendmsg(cx: &mut Current, fd: i32, msg: Ptr, flags: i32) -> Call<'_> {
    let parsed = || {
        let hdr: MsgHdr = cx.read_obj(msg.0)?;
        Outgoing::from_header(cx, fd, &hdr, flags)
    };
    match parsed() {
        Ok(outgoing) => outgoing.start(cx),
        Err(errno) => failed(errno),
    }
}

async fn sendmmsg(cx: &mut Current, fd: i32, vec: Ptr, count: u32, flags: i32) -> SysResult<u64> {
    let mut sent = 0_u64;
    for i in 0..u64::from(count.min(BATCH_MAX)) {
        let at = vec.0.wrapping_add(i * size_of::<MMsgHdr>() as u64);
        let one = async {
            let entry: MMsgHdr = cx.read_obj(at)?;
            let outgoing = Outgoing::from_header(cx, fd, &entry.hdr, flags)?;
            let n = match outgoing.start(cx) {
                Call::Done(result) => result?,
                Call::Wait(future) => future.await?,
            };
            cx.write_obj(at + 56, &u32::try_from(n).unwrap_or(u32::MAX))?;
            Ok::<_, Stop>(())
        };
        match one.await {
            Ok(()) => sent += 1,
            Err(_) if sent > 0 => break,
            Err(stop) => return Err(stop),
        }
    }
    Ok(sent)
}

/// Where a received message's parts go.
enum Destination {
    /// `recvfrom`: an address and its length.
    Plain { addr: Ptr, len: Ptr },
    /// `recvmsg`: a header.
    Header { at: u64, hdr: MsgHdr },
}

/// A message to receive, parsed.
struct Incoming {
    file: Arc<FileDescription>,
    socket: Arc<dyn Socket>,
    segs: Vec<IoSeg>,
    flags: i32,
    to: Destination,
}

/// What came with the data.
#[derive(Default)]
struct Extras {
    from: Option<Vec<u8>>,
    rights: Vec<Arc<FileDescription>>,
    creds: Option<abi::net::Ucred>,
    other: Vec<ControlMessage>,
    out_flags: i32,
}

impl Extras {
    /// Takes the extras out of a message.
    fn take(msg: &mut RecvMsg<'_, '_>) -> Self {
        Self {
            from: msg.from.take(),
            rights: core::mem::take(&mut msg.rights),
            creds: msg.creds.take(),
            other: core::mem::take(&mut msg.other),
            out_flags: msg.out_flags,
        }
    }

    /// Puts them back for one more attempt.
    fn give(self, msg: &mut RecvMsg<'_, '_>) {
        msg.from = self.from;
        msg.rights = self.rights;
        msg.creds = self.creds;
        msg.other = self.other;
        msg.out_flags = self.out_flags;
    }
}

impl Incoming {
    fn from_header(cx: &Current, fd: i32, at: u64, flags: i32) -> Result<Self> {
        let file = cx.file(fd)?;
        let socket = Arc::clone(SocketFile::of(&file)?);
        let hdr: MsgHdr = cx.read_obj(at)?;
        let count = usize::try_from(hdr.iovlen).ok().filter(|n| *n <= 1024).ok_or(Errno::EMSGSIZE)?;
        let segs = segments(cx, Ptr(hdr.iov), count)?;
        Ok(Self { file, socket, segs, flags, to: Destination::Header { at, hdr } })
    }

    /// Whether a stream has to give more: `MSG_WAITALL` asks for everything.
    fn wants_more(&self, moved: usize, left: usize, has_rights: bool) -> bool {
        self.flags & libc::MSG_WAITALL != 0
            && self.flags & libc::MSG_PEEK == 0
            && self.socket.kind() == libc::SOCK_STREAM
            && moved > 0
            && left > 0
            && !has_rights
    }

    fn start(self, cx: &mut Current) -> Call<'_> {
        let nonblock = nonblocking(&self.file, self.flags);
        let task = Arc::clone(&cx.task);
        let memory = cx.memory();
        let mut data = UserWriter::user(&memory, &self.segs);
        let mut msg = RecvMsg::new(&mut data, self.flags);
        let first = with_context(&task, nonblock, |context| self.socket.try_recv(context, &mut msg));
        let extras = Extras::take(&mut msg);
        let left = data.remaining();
        let moved = match first {
            Ok(IoStart::Done(n)) if nonblock || !self.wants_more(n, left, !extras.rights.is_empty()) => {
                return Call::Done(self.deliver(cx, extras, n).map(IntoRax::into_rax).map_err(Into::into));
            }
            Ok(IoStart::Done(n)) => n,
            Ok(IoStart::WouldBlock) if nonblock => return failed(Errno::EAGAIN),
            Ok(IoStart::WouldBlock) => 0,
            Err(errno) => return failed(errno),
        };
        Call::Wait(Box::pin(async move { self.go_on(cx, extras, moved).await.map(IntoRax::into_rax) }))
    }

    /// Waits for the data, or for the rest of it after `moved` bytes.
    async fn go_on(self, cx: &mut Current, mut extras: Extras, mut moved: usize) -> SysResult<usize> {
        let until = deadline(&self.socket, false);
        let segs = cut(&self.segs, moved as u64, u64::MAX);
        let memory = cx.memory();
        let mut data = UserWriter::user(&memory, &segs);
        loop {
            let mut msg = RecvMsg::new(&mut data, self.flags);
            core::mem::take(&mut extras).give(&mut msg);
            let step = cx
                .block_on(self.socket.wait_queue(), Events::READABLE | Events::RDHUP, until, |task| {
                    with_context(task, false, |context| self.socket.try_recv(context, &mut msg))
                })
                .await;
            extras = Extras::take(&mut msg);
            match step {
                // The end of the stream: what is there is all there will be.
                Ok(0) => break,
                Ok(n) => moved += n,
                Err(_) if moved > 0 => break,
                Err(end) => return Err(interrupted(&self.socket, false, end)),
            }
            if !self.wants_more(moved, data.remaining(), !extras.rights.is_empty()) {
                break;
            }
        }
        Ok(self.deliver(cx, extras, moved)?)
    }

    /// Stores the address, control data and flags.
    fn deliver(&self, cx: &Current, extras: Extras, moved: usize) -> Result<usize> {
        match &self.to {
            Destination::Plain { addr, len } => {
                if !addr.is_null() {
                    let from = extras.from.unwrap_or_default();
                    store_address(&cx.task, &from, addr.0, len.0)?;
                }
            }
            Destination::Header { at, hdr } => {
                let mut control = ControlOut::new(hdr);
                if let Some(creds) = extras.creds {
                    control.credentials(crate::net_args::shown_credentials(cx, creds));
                }
                for message in &extras.other {
                    control.put(message.level, message.kind, &message.data);
                }
                control.rights(cx, extras.rights, self.flags & libc::MSG_CMSG_CLOEXEC != 0);
                let (controllen, truncated) = control.store(&cx.task, hdr)?;
                let mut namelen = hdr.namelen;
                if hdr.name != 0 {
                    let from = extras.from.unwrap_or_default();
                    store_cut(&cx.task, &from, hdr.name, usize::try_from(hdr.namelen).unwrap_or(0))?;
                    namelen = u32::try_from(from.len()).unwrap_or(0);
                }
                let cloexec = self.flags & libc::MSG_CMSG_CLOEXEC;
                let flags = extras.out_flags | truncated | cloexec;
                let out = MsgHdr { namelen, controllen, flags: flags.cast_unsigned(), ..*hdr };
                if out != *hdr {
                    cx.write_obj(*at, &out)?;
                }
            }
        }
        Ok(moved)
    }
}

fn recvfrom(
    cx: &mut Current,
    fd: i32,
    buf: Ptr,
    len: usize,
    flags: i32,
    addr: Ptr,
    addr_len: Ptr,
) -> Call<'_> {
    let parsed = || -> Result<Incoming> {
        let file = cx.file(fd)?;
        let socket = Arc::clone(SocketFile::of(&file)?);
        let segs = one_segment(buf, len);
        Ok(Incoming { file, socket, segs, flags, to: Destination::Plain { addr, len: addr_len } })
    };
    match parsed() {
        Ok(incoming) => incoming.start(cx),
        Err(errno) => failed(errno),
    }
}

fn recvmsg(cx: &mut Current, fd: i32, msg: Ptr, flags: i32) -> Call<'_> {
    match Incoming::from_header(cx, fd, msg.0, flags) {
        Ok(incoming) => incoming.start(cx),
        Err(errno) => failed(errno),
    }
}

async fn recvmmsg(
    cx: &mut Current,
    fd: i32,
    vec: Ptr,
    count: u32,
    flags: i32,
    timeout: Ptr,
) -> SysResult<u64> {
    let until = if timeout.is_null() {
        None
    } else {
        let ns = cx.read_obj::<Timespec>(timeout.0)?.to_nanos().ok_or(Errno::EINVAL)?;
        Some(mono_now().saturating_add(ns))
    };
    let mut flags = flags;
    let mut received = 0_u64;
    for i in 0..u64::from(count.min(BATCH_MAX)) {
        let at = vec.0.wrapping_add(i * size_of::<MMsgHdr>() as u64);
        let one = async {
            let incoming = Incoming::from_header(cx, fd, at, flags & !libc::MSG_WAITFORONE)?;
            let n = match incoming.start(cx) {
                Call::Done(result) => result?,
                Call::Wait(future) => future.await?,
            };
            cx.write_obj(at + 56, &u32::try_from(n).unwrap_or(u32::MAX))?;
            Ok::<_, Stop>(())
        };
        match one.await {
            Ok(()) => received += 1,
            Err(_) if received > 0 => break,
            Err(stop) => return Err(stop),
        }
        if flags & libc::MSG_WAITFORONE != 0 {
            flags |= libc::MSG_DONTWAIT;
        }
        // The limit is looked at after each message, as in Linux.
        if until.is_some_and(|until| until <= mono_now()) {
            break;
        }
    }
    Ok(received)
}
