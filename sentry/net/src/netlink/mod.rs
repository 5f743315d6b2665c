//! `AF_NETLINK` sockets (`netlink(7)`, `net/netlink/af_netlink.c`): route and socket-diagnosis messages, answered at
//! once by the Sentry, and multicast groups that hear of changes.

mod diag;
mod link;
mod route;
mod wire;

use core::any::Any;
use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use abi::net::NlMsgHdr;
use sentry_base::{Errno, Events, Mutex, Nanos, Result, WaitQueue, lock::rank};
use sentry_vfs::{Attr, Caller, IoStart};
use zerocopy::IntoBytes;

use crate::inet::netdev;
use crate::inet::options::{Options, Transport, int};
use crate::socket::new_attr;
use crate::{Domain, Inet, RecvMsg, SendMsg, SockCtx, Socket};
use link::Refusal;
use wire::{
    Message, NLM_F_ACK, NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_DUMP, NLM_F_MULTI, NLMSG_DONE, NLMSG_ERROR,
};

const NETLINK_ROUTE: i32 = 0;
const NETLINK_SOCK_DIAG: i32 = 4;
const NETLINK_KOBJECT_UEVENT: i32 = 15;

const BUFFER_DEFAULT: usize = 212_992;
/// Bytes that one datagram of a dump gathers.
const DUMP_STEP: usize = 4096;
/// `NLM_F_REQUEST`.
const REQUEST: u16 = 1;
/// Types below this are for control (`NLMSG_MIN_TYPE`).
const MIN_TYPE: u16 = 0x10;
/// Groups of one protocol.
const MAX_GROUPS: u32 = 64;
/// The lowest port of those that are not process ids.
const FIRST_PORT: u32 = 0xffff_f000;

const SOL_NETLINK: i32 = 270;
const ADD_MEMBERSHIP: i32 = 1;
const DROP_MEMBERSHIP: i32 = 2;
const PKTINFO: i32 = 3;
const LIST_MEMBERSHIPS: i32 = 9;
const CAP_ACK: i32 = 10;
const EXT_ACK: i32 = 11;

#[derive(Debug, Default)]
struct State {
    /// The socket's own address; 0 until bound.
    port: u32,
    /// A bit a group, group 1 the lowest.
    groups: u64,
    inbox: VecDeque<(u32, Vec<u8>)>,
    held: usize,
    /// A message was lost.
    overrun: bool,
    /// Options of the netlink level that are on, a bit each.
    flags: u32,
}

/// What a socket is, apart from who holds it.
#[derive(Debug)]
pub(crate) struct NetlinkCore {
    net: Arc<Inet>,
    protocol: i32,
    kind: i32,
    attr: Attr,
    state: Mutex<State, { rank::FILE_DATA }>,
    queue: WaitQueue,
    options: Options,
}

/// A socket's handle.
#[derive(Debug)]
pub struct NetlinkSocket(Arc<NetlinkCore>);

/// The netlink sockets of one network, for their groups and the choice of ports.
#[derive(Debug, Default)]
pub(crate) struct NetlinkTable(Mutex<Vec<Weak<NetlinkCore>>, { rank::LEAF }>);

impl NetlinkTable {
    fn all(&self) -> Vec<Arc<NetlinkCore>> {
        let mut list = self.0.lock();
        list.retain(|core| core.strong_count() > 0);
        list.iter().filter_map(Weak::upgrade).collect()
    }
}

impl NetlinkSocket {
    /// `socket(AF_NETLINK, kind, protocol)`; `kind` without its flags.
    pub fn new(caller: &dyn Caller, net: &Arc<Inet>, kind: i32, protocol: i32) -> Result<Arc<Self>> {
        if ![libc::SOCK_RAW, libc::SOCK_DGRAM].contains(&kind) {
            return Err(Errno::ESOCKTNOSUPPORT);
        }
        if ![NETLINK_ROUTE, NETLINK_SOCK_DIAG, NETLINK_KOBJECT_UEVENT].contains(&protocol) {
            return Err(Errno::EPROTONOSUPPORT);
        }
        let creds = caller.creds();
        let core = Arc::new(NetlinkCore {
            net: Arc::clone(net),
            protocol,
            kind,
            attr: new_attr(creds.fsuid, creds.fsgid),
            state: Mutex::new(State::default()),
            queue: WaitQueue::new(),
            options: Options::new(Transport::Other, Domain::V4, BUFFER_DEFAULT, BUFFER_DEFAULT),
        });
        net.netlink.0.lock().push(Arc::downgrade(&core));
        Ok(Arc::new(Self(core)))
    }

    /// Serves the messages of one datagram and gives the answers: a send, and as many receives as there is to receive.
    pub fn ask(&self, caller: &dyn Caller, datagram: &[u8]) -> Vec<Vec<u8>> {
        self.0.serve(caller, datagram);
        let mut state = self.0.state.lock();
        state.held = 0;
        core::mem::take(&mut state.inbox).into_iter().map(|(_, message)| message).collect()
    }
}

/// `struct sockaddr_nl`: port and groups.
fn parse(address: &[u8]) -> Result<(u32, u32)> {
    let bytes: &[u8; 12] = address.first_chunk().ok_or(Errno::EINVAL)?;
    let [f0, f1, _, _, p0, p1, p2, p3, g0, g1, g2, g3] = *bytes;
    if i32::from(u16::from_ne_bytes([f0, f1])) != libc::AF_NETLINK {
        return Err(Errno::EINVAL);
    }
    Ok((u32::from_ne_bytes([p0, p1, p2, p3]), u32::from_ne_bytes([g0, g1, g2, g3])))
}

fn address(port: u32, groups: u32) -> Vec<u8> {
    let mut out = vec![0; 4];
    if let Some(family) = out.get_mut(..2) {
        family.copy_from_slice(&u16::try_from(libc::AF_NETLINK).unwrap_or(16).to_ne_bytes());
    }
    out.extend_from_slice(&port.to_ne_bytes());
    out.extend_from_slice(&groups.to_ne_bytes());
    out
}

impl NetlinkCore {
    /// Takes an address: the one given, the caller's process id, or a free number (`netlink_autobind`).
    fn take_port(&self, caller: &dyn Caller, given: u32) -> Result<()> {
        let taken: Vec<u32> = self
            .net
            .netlink
            .all()
            .iter()
            .filter(|core| core.protocol == self.protocol && !core::ptr::eq(core.as_ref(), self))
            .map(|core| core.state.lock().port)
            .collect();
        let mut port = if given == 0 { caller.pid().cast_unsigned() } else { given };
        if taken.contains(&port) {
            if given != 0 {
                return Err(Errno::EADDRINUSE);
            }
            port = (FIRST_PORT..u32::MAX).find(|p| !taken.contains(p)).ok_or(Errno::EADDRINUSE)?;
        }
        let mut state = self.state.lock();
        match state.port {
            0 => state.port = port,
            bound if given != 0 && bound != given => return Err(Errno::EINVAL),
            _ => {}
        }
        Ok(())
    }

    /// Queues a message for the application; one that finds no room is lost, and the next receive says so.
    fn deliver(&self, group: u32, message: Vec<u8>) {
        {
            let mut state = self.state.lock();
            if state.held + message.len() > self.options.receive_buffer() {
                state.overrun = true;
            } else {
                state.held += message.len();
                state.inbox.push_back((group, message));
            }
        }
        self.queue.notify(Events::READABLE);
    }

    /// Serves the requests of one datagram (`netlink_rcv_skb`).
    fn serve(&self, caller: &dyn Caller, bytes: &[u8]) {
        let port = self.state.lock().port;
        for (header, body) in wire::requests(bytes) {
            if header.flags & REQUEST == 0 || header.kind < MIN_TYPE {
                if header.flags & NLM_F_ACK != 0 {
                    self.acknowledge(&header, body, port, None);
                }
                continue;
            }
            let outcome = match self.protocol {
                NETLINK_ROUTE => route::serve(&self.net, caller, &header, body, port),
                NETLINK_SOCK_DIAG => diag::serve(&self.net, &header, body, port)
                    .map(|messages| route::Answer { messages, told: Vec::new() })
                    .map_err(Refusal::from),
                _ => Err(Errno::EOPNOTSUPP.into()),
            };
            let dump = header.flags & NLM_F_DUMP == NLM_F_DUMP;
            let failed = outcome.as_ref().err().copied();
            if let Ok(answer) = outcome {
                if dump {
                    self.dump(answer.messages, &header, port);
                } else {
                    for message in answer.messages {
                        self.deliver(0, message);
                    }
                }
                for (group, message) in answer.told {
                    for core in self.net.netlink.all() {
                        let joined = core.state.lock().groups & group_bit(group) != 0;
                        if joined && core.protocol == self.protocol {
                            core.deliver(group, message.clone());
                        }
                    }
                }
            }
            if failed.is_some() || (header.flags & NLM_F_ACK != 0 && !dump) {
                self.acknowledge(&header, body, port, failed);
            }
        }
    }

    /// Sends the messages of a dump, several to a datagram, and its end.
    fn dump(&self, messages: Vec<Vec<u8>>, header: &NlMsgHdr, port: u32) {
        let mut done = Message::new(NLMSG_DONE, NLM_F_MULTI, header, port);
        done.fixed(&0_u32.to_ne_bytes());
        let mut gathered: Vec<u8> = Vec::new();
        for message in messages {
            if !gathered.is_empty() && gathered.len() + message.len() > DUMP_STEP {
                self.deliver(0, core::mem::take(&mut gathered));
            }
            gathered.extend_from_slice(&message);
        }
        if !gathered.is_empty() {
            self.deliver(0, gathered);
        }
        self.deliver(0, done.finish());
    }

    /// `NLMSG_ERROR`: the errno, or 0, and the request that it answers.
    ///
    /// Who wants to know more gets a sentence about it, where there is one (`netlink_ack_tlv_fill`).
    fn acknowledge(&self, header: &NlMsgHdr, body: &[u8], port: u32, failed: Option<Refusal>) {
        /// `NLMSGERR_ATTR_MSG`.
        const SENTENCE: u16 = 1;
        let options = self.state.lock().flags;
        let capped = failed.is_none() || options & flag_bit(CAP_ACK) != 0;
        let words = failed.and_then(|failed| failed.words).filter(|_| options & flag_bit(EXT_ACK) != 0);
        let flags = if capped { NLM_F_CAPPED } else { 0 } | if words.is_some() { NLM_F_ACK_TLVS } else { 0 };
        let mut message = Message::new(NLMSG_ERROR, flags, header, port);
        let errno = failed.map_or(0, |failed| -failed.errno.raw());
        message.fixed(&errno.to_ne_bytes()).fixed(header.as_bytes());
        if !capped {
            message.fixed(body);
        }
        if let Some(words) = words {
            message.text(SENTENCE, words);
        }
        self.deliver(0, message.finish());
    }

    fn join(&self, group: u32, on: bool) -> Result<()> {
        if group == 0 || group > MAX_GROUPS {
            return Err(Errno::EINVAL);
        }
        let mut state = self.state.lock();
        if on {
            state.groups |= group_bit(group);
        } else {
            state.groups &= !group_bit(group);
        }
        Ok(())
    }
}

fn group_bit(group: u32) -> u64 {
    1_u64.checked_shl(group.wrapping_sub(1)).unwrap_or(0)
}

fn flag_bit(name: i32) -> u32 {
    1_u32.checked_shl(name.cast_unsigned()).unwrap_or(0)
}

impl Socket for NetlinkSocket {
    fn domain(&self) -> i32 {
        libc::AF_NETLINK
    }

    fn kind(&self) -> i32 {
        self.0.kind
    }

    fn bind(&self, cx: &SockCtx<'_>, at: &[u8]) -> Result<()> {
        let (port, groups) = parse(at)?;
        self.0.take_port(cx.caller, port)?;
        let mut state = self.0.state.lock();
        state.groups = state.groups >> 32 << 32 | u64::from(groups);
        Ok(())
    }

    fn listen(&self, _cx: &SockCtx<'_>, _backlog: i32) -> Result<()> {
        Err(Errno::EOPNOTSUPP)
    }

    fn try_connect(&self, cx: &SockCtx<'_>, at: &[u8]) -> Result<IoStart<()>> {
        if crate::inet::addr::family(at)? == libc::AF_UNSPEC {
            return Ok(IoStart::Done(()));
        }
        // The kernel alone answers here.
        if parse(at)?.0 != 0 {
            return Err(Errno::EPERM);
        }
        self.0.take_port(cx.caller, 0).map(IoStart::Done)
    }

    fn try_accept(&self, _cx: &SockCtx<'_>) -> Result<IoStart<Arc<dyn Socket>>> {
        Err(Errno::EOPNOTSUPP)
    }

    fn try_send(&self, cx: &SockCtx<'_>, msg: &mut SendMsg<'_, '_>) -> Result<IoStart<usize>> {
        if msg.flags & libc::MSG_OOB != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        if let Some(to) = msg.to {
            let (port, groups) = parse(to)?;
            if groups != 0 {
                return Err(Errno::EPERM);
            }
            if port != 0 {
                return Err(Errno::ECONNREFUSED);
            }
        }
        if self.0.state.lock().port == 0 {
            self.0.take_port(cx.caller, 0)?;
        }
        let len = msg.data.remaining();
        if len > self.0.options.send_buffer().saturating_sub(32) {
            return Err(Errno::EMSGSIZE);
        }
        let mut data = vec![0; len];
        if msg.data.read(&mut data)? < len {
            return Err(Errno::EFAULT);
        }
        self.0.serve(cx.caller, &data);
        Ok(IoStart::Done(len))
    }

    fn try_recv(&self, _cx: &SockCtx<'_>, msg: &mut RecvMsg<'_, '_>) -> Result<IoStart<usize>> {
        if msg.flags & libc::MSG_OOB != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let peek = msg.flags & libc::MSG_PEEK != 0;
        let (group, data, informs) = {
            let mut state = self.0.state.lock();
            if core::mem::take(&mut state.overrun) {
                return Err(Errno::ENOBUFS);
            }
            let informs = state.flags & flag_bit(PKTINFO) != 0;
            let next = if peek { state.inbox.front().cloned() } else { state.inbox.pop_front() };
            let Some((group, data)) = next else { return Ok(IoStart::WouldBlock) };
            if !peek {
                state.held = state.held.saturating_sub(data.len());
            }
            (group, data, informs)
        };
        let room = msg.data.remaining();
        let copied = if room == 0 { 0 } else { msg.data.write(&data)? };
        if data.len() > room {
            msg.out_flags |= libc::MSG_TRUNC;
        }
        let bit = u32::try_from(group_bit(group) & u64::from(u32::MAX)).unwrap_or(0);
        msg.from = Some(address(0, bit));
        if informs {
            msg.describe(SOL_NETLINK, PKTINFO, &group.to_ne_bytes());
        }
        Ok(IoStart::Done(if msg.flags & libc::MSG_TRUNC != 0 { data.len() } else { copied }))
    }

    fn shutdown(&self, _how: i32) -> Result<()> {
        Err(Errno::EOPNOTSUPP)
    }

    fn local_address(&self) -> Result<Vec<u8>> {
        let state = self.0.state.lock();
        Ok(address(state.port, u32::try_from(state.groups & u64::from(u32::MAX)).unwrap_or(0)))
    }

    fn peer_address(&self) -> Result<Vec<u8>> {
        Ok(address(0, 0))
    }

    fn get_option(&self, _caller: &dyn Caller, level: i32, name: i32) -> Result<Vec<u8>> {
        let number = match (level, name) {
            (libc::SOL_SOCKET, libc::SO_TYPE) => self.0.kind,
            (libc::SOL_SOCKET, libc::SO_DOMAIN) => libc::AF_NETLINK,
            (libc::SOL_SOCKET, libc::SO_PROTOCOL) => self.0.protocol,
            (libc::SOL_SOCKET, libc::SO_ERROR | libc::SO_ACCEPTCONN) => 0,
            (SOL_NETLINK, LIST_MEMBERSHIPS) => {
                return Ok(self.0.state.lock().groups.to_ne_bytes().to_vec());
            }
            (SOL_NETLINK, PKTINFO..=12) => i32::from(self.0.state.lock().flags & flag_bit(name) != 0),
            (libc::SOL_SOCKET, _) => return self.0.options.get(level, name),
            _ => return Err(Errno::ENOPROTOOPT),
        };
        Ok(number.to_ne_bytes().to_vec())
    }

    fn set_option(&self, caller: &dyn Caller, level: i32, name: i32, value: &[u8]) -> Result<()> {
        self.0.net.bind_to_device(caller, &self.0.options, (level, name), value)?;
        match (level, name) {
            (SOL_NETLINK, ADD_MEMBERSHIP | DROP_MEMBERSHIP) => {
                self.0.join(int(value)?.cast_unsigned(), name == ADD_MEMBERSHIP)
            }
            (SOL_NETLINK, PKTINFO..=12) if name != LIST_MEMBERSHIPS => {
                let on = int(value)? != 0;
                let mut state = self.0.state.lock();
                if on {
                    state.flags |= flag_bit(name);
                } else {
                    state.flags &= !flag_bit(name);
                }
                Ok(())
            }
            // A filter on what is received: this kernel sends nothing that it would keep out.
            (libc::SOL_SOCKET, libc::SO_ATTACH_FILTER | libc::SO_PASSCRED) => Ok(()),
            (libc::SOL_SOCKET, _) => self.0.options.set(caller, level, name, value),
            _ => Err(Errno::ENOPROTOOPT),
        }
    }

    fn timeout(&self, sending: bool) -> Option<Nanos> {
        self.0.options.timeout(sending)
    }

    fn readiness(&self) -> Events {
        let state = self.0.state.lock();
        let mut events = Events::WRITABLE | Events::WRBAND;
        if !state.inbox.is_empty() {
            events |= Events::READABLE;
        }
        if state.overrun {
            events |= Events::ERR;
        }
        events
    }

    fn wait_queue(&self) -> &WaitQueue {
        &self.0.queue
    }

    fn ioctl(&self, caller: &dyn Caller, command: u32, arg: u64) -> Result<i64> {
        netdev::ioctl(&self.0.net, caller, command, arg)
    }

    fn attr(&self) -> Attr {
        self.0.attr
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
