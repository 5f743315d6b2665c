//! `AF_INET` and `AF_INET6` sockets that are the host's (`--network=host`): each stands in front of a descriptor that a broker
//! has made in the container's network namespace.
//!
//! What such a socket is, its state, its queues and its errors, is the host kernel's to say; nothing of it is repeated
//! here. This module turns the calls of a program into calls that do not block, keeps back what would block or is none of
//! a sandbox' business, and passes readiness on to those who wait.
//!
//! **Readiness.** A descriptor is watched for one report at a time, and only when somebody has found that he has to wait.
//! One that an epoll instance looks after is followed: each change that the host's kernel tells is told on, so that edges
//! are the host's.

mod options;
mod report;

pub(crate) use report::rows;

use core::any::Any;
use core::fmt::Debug;
use core::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use sentry_base::wait::Observer;
use sentry_base::{Errno, Events, Mutex, Nanos, Result, WaitQueue, WatchedQueue, lock::rank};
use sentry_vfs::{Attr, Caller, IoStart, cap};

use crate::inet::addr::{self, Domain};
use crate::inet::broken_pipe;
use crate::inet::netdev;
use crate::inet::options::{Options, Transport};
use crate::{ControlMessage, Inet, RecvMsg, SendMsg, SockCtx, Socket};

/// Makes sockets in a network namespace of the host's.
pub trait HostNet: Send + Sync + Debug {
    /// A socket of domain, type and protocol; `observer` is told of what it is [armed](HostEnd::arm) for.
    fn socket(&self, how: [i32; 3], observer: Weak<dyn Observer>) -> Result<Box<dyn HostEnd>>;
    /// The host's list of the sockets there, as its `/proc/net` has it: 0 for TCP, 1 for TCP over IPv6, 2 and 3 for UDP.
    fn table(&self, number: u8) -> String;
}

/// A message that a host socket has received.
#[derive(Debug, Default)]
pub struct HostMessage {
    /// Bytes, which may be more than there was room for.
    pub len: usize,
    /// A `struct sockaddr`, or nothing.
    pub from: Vec<u8>,
    pub control: Vec<ControlMessage>,
    /// `MSG_*`.
    pub flags: i32,
}

/// A host socket. No call waits.
pub trait HostEnd: Send + Sync + Debug {
    fn bind(&self, address: &[u8]) -> Result<()>;
    fn connect(&self, address: &[u8]) -> Result<()>;
    fn listen(&self, backlog: i32) -> Result<()>;
    /// A connection that has come, and its peer's address.
    fn accept(&self, observer: Weak<dyn Observer>) -> Result<(Box<dyn HostEnd>, Vec<u8>)>;
    fn send(&self, data: &[u8], to: &[u8], control: &[ControlMessage], flags: i32) -> Result<usize>;
    fn receive(&self, data: &mut [u8], flags: i32) -> Result<HostMessage>;
    fn shutdown(&self, how: i32) -> Result<()>;
    fn address(&self, peer: bool) -> Result<Vec<u8>>;
    fn option(&self, level: i32, name: i32) -> Result<Vec<u8>>;
    fn set_option(&self, level: i32, name: i32, value: &[u8]) -> Result<()>;
    /// `SIOCINQ` or one of its kin.
    fn queued(&self, query: u32) -> Result<i32>;
    /// Its number in the host's lists of sockets.
    fn inode(&self) -> u64;
    /// What it has of `events` now, errors and hang-ups besides.
    fn poll(&self, events: Events) -> Events;
    /// Has the observer told once when it has one of `events`, an error or a hang-up.
    fn arm(&self, events: Events);
    /// Has the observer told of every change from now on.
    fn follow(&self);
}

/// Bytes that go through one buffer.
const CHUNK: usize = 64 * 1024;
/// Buffers that one call fills or empties before others have a turn.
const TURN: usize = 16;

const SIOCINQ: u32 = 0x541b;
const SIOCOUTQ: u32 = 0x5411;
const SIOCOUTQNSD: u32 = 0x894b;
const SIOCATMARK: u32 = 0x8905;

/// A socket of the host's.
#[derive(Debug)]
pub(crate) struct HostSocket {
    net: Arc<Inet>,
    domain: Domain,
    kind: i32,
    protocol: i32,
    attr: Attr,
    end: Box<dyn HostEnd>,
    queue: Arc<WatchedQueue>,
    /// Time limits, and what else is kept here.
    options: Options,
    /// Of an accepted connection.
    peer: Option<Vec<u8>>,
    followed: AtomicBool,
    /// Received bytes that an application's memory did not take: for the next reader.
    kept: Mutex<Vec<u8>, { rank::LEAF }>,
    has_kept: AtomicBool,
}

/// Which sockets there are: domain, type and protocol as the host is to make them.
fn check(net: &Inet, caller: &dyn Caller, domain: Domain, kind: i32, protocol: i32) -> Result<[i32; 3]> {
    let echo = match domain {
        Domain::V4 => libc::IPPROTO_ICMP,
        Domain::V6 => libc::IPPROTO_ICMPV6,
    };
    let protocol = match (kind, protocol) {
        (libc::SOCK_STREAM, libc::IPPROTO_IP | libc::IPPROTO_TCP) => libc::IPPROTO_TCP,
        (libc::SOCK_DGRAM, libc::IPPROTO_IP | libc::IPPROTO_UDP) => libc::IPPROTO_UDP,
        (libc::SOCK_DGRAM, protocol) if protocol == echo => echo,
        (libc::SOCK_RAW, 0) => return Err(Errno::EPROTONOSUPPORT),
        (libc::SOCK_RAW, _) if !net.allows(caller, cap::NET_RAW) => return Err(Errno::EPERM),
        (libc::SOCK_RAW, protocol) if protocol == echo => echo,
        (libc::SOCK_STREAM | libc::SOCK_DGRAM | libc::SOCK_RAW, _) => return Err(Errno::EPROTONOSUPPORT),
        _ => return Err(Errno::ESOCKTNOSUPPORT),
    };
    Ok([domain.raw(), kind, protocol])
}

impl HostSocket {
    /// `socket(2)`.
    pub(crate) fn open(
        net: &Arc<Inet>,
        host: &dyn HostNet,
        caller: &dyn Caller,
        domain: Domain,
        kind: i32,
        protocol: i32,
    ) -> Result<Arc<dyn Socket>> {
        let how = check(net, caller, domain, kind, protocol)?;
        let queue = Arc::new(WatchedQueue::default());
        let end = host.socket(how, queue.observer())?;
        let creds = caller.creds();
        let socket = Self {
            net: Arc::clone(net),
            domain,
            kind,
            protocol: how[2],
            attr: crate::socket::new_attr(creds.fsuid, creds.fsgid),
            end,
            queue,
            options: Options::new(transport(how[2]), domain, 0, 0),
            peer: None,
            followed: AtomicBool::new(false),
            kept: Mutex::default(),
            has_kept: AtomicBool::new(false),
        };
        Ok(socket.enter())
    }

    /// Lists it for `/proc/net`.
    fn enter(self) -> Arc<Self> {
        let socket = Arc::new(self);
        socket.net.host_sockets.lock().insert(socket.attr.ino, Arc::downgrade(&socket));
        socket
    }

    fn is_stream(&self) -> bool {
        self.kind == libc::SOCK_STREAM
    }

    fn wait<T>(&self, events: Events) -> IoStart<T> {
        self.end.arm(events);
        IoStart::WouldBlock
    }

    /// Keeps bytes that were received before those that are still to come.
    fn keep(&self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.kept.lock().splice(0..0, bytes.iter().copied());
            self.has_kept.store(true, Ordering::Release);
            self.queue.notify(Events::IN);
        }
    }

    /// Gives what was kept, if anything was.
    fn receive_kept(&self, msg: &mut RecvMsg<'_, '_>, flags: i32) -> Option<Result<usize>> {
        if flags & (libc::MSG_OOB | libc::MSG_ERRQUEUE) != 0 || !self.has_kept.swap(false, Ordering::AcqRel) {
            return None;
        }
        let bytes = core::mem::take(&mut *self.kept.lock());
        let done = msg.data.write(&bytes);
        let taken = if flags & libc::MSG_PEEK != 0 { 0 } else { *done.as_ref().unwrap_or(&0) };
        self.keep(bytes.get(taken..).unwrap_or_default());
        Some(done)
    }

    fn send_stream(&self, cx: &SockCtx<'_>, msg: &mut SendMsg<'_, '_>) -> Result<IoStart<usize>> {
        let flags = msg.flags & (libc::MSG_OOB | libc::MSG_MORE | libc::MSG_DONTROUTE | libc::MSG_EOR);
        let mut buffer = vec![0; msg.data.remaining().min(CHUNK)];
        let mut done = 0;
        for turn in 1..=TURN {
            let got = match msg.data.clone().read(&mut buffer) {
                Ok(got) => got,
                Err(_) if done > 0 => break,
                Err(errno) => return Err(errno),
            };
            let more = if msg.data.remaining() > got && turn < TURN { libc::MSG_MORE } else { 0 };
            let part = buffer.get(..got).unwrap_or_default();
            // No segment ends where a buffer of ours does.
            match self.end.send(part, &[], &[], flags | more) {
                Ok(sent) => {
                    done += msg.data.skip(sent);
                    if sent < got {
                        break;
                    }
                }
                Err(_) if done > 0 => break,
                Err(Errno::EAGAIN) => return Ok(self.wait(Events::OUT)),
                Err(Errno::EPIPE) => return Err(broken_pipe(cx.caller, msg.flags)),
                Err(errno) => return Err(errno),
            }
            if msg.data.remaining() == 0 {
                break;
            }
        }
        Ok(IoStart::Done(done))
    }

    fn send_datagram(&self, cx: &SockCtx<'_>, msg: &mut SendMsg<'_, '_>) -> Result<IoStart<usize>> {
        let flags = msg.flags & (libc::MSG_MORE | libc::MSG_DONTROUTE | libc::MSG_CONFIRM);
        let len = msg.data.remaining();
        if len > CHUNK {
            return Err(Errno::EMSGSIZE);
        }
        if msg.flags & libc::MSG_OOB != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let mut buffer = vec![0; len];
        let mut data = msg.data.clone();
        let mut got = 0;
        while got < len {
            got += data.read(buffer.get_mut(got..).unwrap_or_default())?;
        }
        match self.end.send(&buffer, msg.to.unwrap_or_default(), &msg.control.other, flags) {
            Ok(sent) => {
                msg.data.skip(len);
                Ok(IoStart::Done(sent))
            }
            Err(Errno::EAGAIN) => Ok(self.wait(Events::OUT)),
            Err(Errno::EPIPE) => Err(broken_pipe(cx.caller, msg.flags)),
            Err(errno) => Err(errno),
        }
    }

    /// Receives once into `buffer`, and tells what came along.
    fn receive(&self, buffer: &mut [u8], msg: &mut RecvMsg<'_, '_>, flags: i32) -> Result<usize> {
        const TOLD: i32 =
            libc::MSG_TRUNC | libc::MSG_CTRUNC | libc::MSG_OOB | libc::MSG_EOR | libc::MSG_ERRQUEUE;
        let got = self.end.receive(buffer, flags)?;
        msg.out_flags |= got.flags & TOLD;
        if !got.from.is_empty() {
            msg.from = Some(got.from);
        }
        msg.other.extend(got.control);
        Ok(got.len)
    }

    /// The flags of a receive that the host is to see.
    fn flags_to_receive(msg: &RecvMsg<'_, '_>) -> i32 {
        msg.flags & (libc::MSG_PEEK | libc::MSG_OOB | libc::MSG_TRUNC | libc::MSG_ERRQUEUE)
    }

    fn receive_stream(&self, msg: &mut RecvMsg<'_, '_>) -> Result<IoStart<usize>> {
        let flags = Self::flags_to_receive(msg);
        // One look, or one byte: what is behind it is another call's.
        let once = flags != 0;
        let most = if once { CHUNK * TURN } else { CHUNK };
        if let Some(kept) = self.receive_kept(msg, flags) {
            return kept.map(IoStart::Done);
        }
        let mut buffer = vec![0; msg.data.remaining().min(most)];
        let mut done = 0;
        for _ in 0..TURN {
            let room = msg.data.remaining().min(buffer.len());
            let got = match self.receive(buffer.get_mut(..room).unwrap_or_default(), msg, flags) {
                Ok(got) => got,
                Err(_) if done > 0 => break,
                Err(Errno::EAGAIN) if flags & (libc::MSG_OOB | libc::MSG_ERRQUEUE) == 0 => {
                    return Ok(self.wait(Events::IN | Events::RDHUP));
                }
                Err(errno) => return Err(errno),
            };
            if flags & libc::MSG_TRUNC != 0 {
                // Thrown away, not copied.
                return Ok(IoStart::Done(got));
            }
            let written = msg.data.write(buffer.get(..got).unwrap_or_default());
            let copied = *written.as_ref().unwrap_or(&0);
            done += copied;
            if copied < got {
                if !once {
                    self.keep(buffer.get(copied..got).unwrap_or_default());
                }
                if done == 0 {
                    return written.map(IoStart::Done);
                }
                break;
            }
            if once || got < room || msg.data.remaining() == 0 {
                break;
            }
        }
        Ok(IoStart::Done(done))
    }

    fn receive_datagram(&self, cx: &SockCtx<'_>, msg: &mut RecvMsg<'_, '_>) -> Result<IoStart<usize>> {
        let flags = Self::flags_to_receive(msg);
        let mut buffer = vec![0; msg.data.remaining().min(CHUNK)];
        match self.receive(&mut buffer, msg, flags) {
            Ok(len) => {
                let copied = len.min(buffer.len());
                msg.data.write(buffer.get(..copied).unwrap_or_default())?;
                Ok(IoStart::Done(if flags & libc::MSG_TRUNC != 0 { len } else { copied }))
            }
            Err(Errno::EAGAIN) if flags & libc::MSG_ERRQUEUE == 0 => {
                // Who waits at an end that was shut for reading gets nothing; who does not wait is told to.
                if !cx.nonblock && self.end.poll(Events::RDHUP).contains(Events::RDHUP) {
                    return Ok(IoStart::Done(0));
                }
                Ok(self.wait(Events::IN | Events::RDHUP))
            }
            Err(errno) => Err(errno),
        }
    }
}

impl Drop for HostSocket {
    fn drop(&mut self) {
        self.net.host_sockets.lock().remove(&self.attr.ino);
    }
}

fn transport(protocol: i32) -> Transport {
    match protocol {
        libc::IPPROTO_TCP => Transport::Tcp,
        libc::IPPROTO_UDP => Transport::Udp,
        _ => Transport::Other,
    }
}

impl Socket for HostSocket {
    fn domain(&self) -> i32 {
        self.domain.raw()
    }

    fn kind(&self) -> i32 {
        self.kind
    }

    fn bind(&self, cx: &SockCtx<'_>, address: &[u8]) -> Result<()> {
        let at = addr::parse_for_bind(self.domain, address)?;
        self.net.check_port(cx.caller, at.port())?;
        self.end.bind(address)
    }

    fn listen(&self, _cx: &SockCtx<'_>, backlog: i32) -> Result<()> {
        self.end.listen(backlog)
    }

    fn try_connect(&self, cx: &SockCtx<'_>, address: &[u8]) -> Result<IoStart<()>> {
        // The host's kernel knows how far an earlier call has come.
        match self.end.connect(address) {
            Ok(()) => Ok(IoStart::Done(())),
            Err(Errno::EINPROGRESS | Errno::EALREADY) if !cx.nonblock => {
                // What it is by now is found by whoever is told, or by the next try.
                Ok(self.wait(Events::OUT))
            }
            Err(errno) => Err(errno),
        }
    }

    fn try_accept(&self, _cx: &SockCtx<'_>) -> Result<IoStart<Arc<dyn Socket>>> {
        let queue = Arc::new(WatchedQueue::default());
        let (end, peer) = match self.end.accept(queue.observer()) {
            Err(Errno::EAGAIN) => return Ok(self.wait(Events::IN)),
            taken => taken?,
        };
        let socket = Self {
            net: Arc::clone(&self.net),
            domain: self.domain,
            kind: self.kind,
            protocol: self.protocol,
            attr: crate::socket::new_attr(self.attr.uid, self.attr.gid),
            end,
            queue,
            options: Options::inherit(&self.options),
            peer: Some(peer),
            followed: AtomicBool::new(false),
            kept: Mutex::default(),
            has_kept: AtomicBool::new(false),
        };
        Ok(IoStart::Done(socket.enter()))
    }

    fn try_send(&self, cx: &SockCtx<'_>, msg: &mut SendMsg<'_, '_>) -> Result<IoStart<usize>> {
        if msg.flags & libc::MSG_FASTOPEN != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        if self.is_stream() { self.send_stream(cx, msg) } else { self.send_datagram(cx, msg) }
    }

    fn try_recv(&self, cx: &SockCtx<'_>, msg: &mut RecvMsg<'_, '_>) -> Result<IoStart<usize>> {
        if self.is_stream() { self.receive_stream(msg) } else { self.receive_datagram(cx, msg) }
    }

    fn shutdown(&self, how: i32) -> Result<()> {
        self.end.shutdown(how)
    }

    fn local_address(&self) -> Result<Vec<u8>> {
        self.end.address(false)
    }

    fn peer_address(&self) -> Result<Vec<u8>> {
        self.end.address(true)
    }

    fn accepted_peer(&self) -> Result<Vec<u8>> {
        self.peer.clone().map_or_else(|| self.peer_address(), Ok)
    }

    fn get_option(&self, _caller: &dyn Caller, level: i32, name: i32) -> Result<Vec<u8>> {
        self.option(level, name)
    }

    fn set_option(&self, caller: &dyn Caller, level: i32, name: i32, value: &[u8]) -> Result<()> {
        self.put_option(caller, level, name, value)
    }

    fn lingers(&self) -> Option<Nanos> {
        let seconds = self.options.linger().and_then(|s| u64::try_from(s).ok()).filter(|s| *s > 0)?;
        let unsent = self.is_stream() && self.end.queued(SIOCOUTQ).is_ok_and(|bytes| bytes > 0);
        unsent.then(|| seconds.saturating_mul(1_000_000_000))
    }

    fn timeout(&self, sending: bool) -> Option<Nanos> {
        self.options.timeout(sending)
    }

    fn readiness(&self) -> Events {
        if !self.queue.0.is_empty() && !self.followed.swap(true, Ordering::Relaxed) {
            self.end.follow();
        }
        let asked = Events::READABLE | Events::WRITABLE | Events::PRI | Events::RDHUP;
        let mut found = self.end.poll(asked);
        if self.has_kept.load(Ordering::Acquire) {
            found |= Events::READABLE;
        }
        let mut missing = Events::empty();
        missing.set(Events::IN | Events::RDHUP, !found.contains(Events::IN));
        missing.set(Events::OUT, !found.contains(Events::OUT));
        if !missing.is_empty() && !found.intersects(Events::ALWAYS) {
            self.end.arm(missing);
        }
        found
    }

    fn wait_queue(&self) -> &WaitQueue {
        &self.queue.0
    }

    fn ioctl(&self, caller: &dyn Caller, command: u32, arg: u64) -> Result<i64> {
        match command {
            SIOCINQ | SIOCOUTQ | SIOCOUTQNSD | SIOCATMARK => {
                let value = self.end.queued(command)?;
                caller.mem().copy_out(arg, &value.to_ne_bytes())?;
                Ok(0)
            }
            _ => netdev::ioctl(&self.net, caller, command, arg),
        }
    }

    fn attr(&self) -> Attr {
        self.attr
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
