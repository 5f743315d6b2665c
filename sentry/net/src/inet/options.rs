//! Socket options of the Internet families: a table of the numeric ones, and those that have a shape of their own
//! (`socket(7)`, `ip(7)`, `ipv6(7)`, `tcp(7)`; `net/core/sock.c`, `net/ipv4/ip_sockglue.c`, `net/ipv6/ipv6_sockglue.c`).

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::collections::BTreeMap;

use std::net::IpAddr;

use abi::net::{Linger, SockTimeval};
use sentry_base::{Errno, Mutex, Nanos, Result, lock::rank};
use sentry_vfs::{Caller, cap};
use zerocopy::{FromBytes, IntoBytes};

use super::Inet;
use super::addr::Domain;

/// `net.core.wmem_max` and `rmem_max`, in bytes.
const BUFFER_MAX: usize = 212_992;
/// With `CAP_NET_ADMIN`; Linux has no limit here, but what waits at a receiver is the Sentry's memory.
const FORCED_MAX: usize = 16 << 20;
/// `SOCK_MIN_SNDBUF` and `SOCK_MIN_RCVBUF`.
const SEND_MIN: usize = 4608;
const RECEIVE_MIN: usize = 2304;

/// A timeout of no limit.
const FOREVER: u64 = u64::MAX;

/// What values a numeric option takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Range {
    /// Anything but zero is one.
    Flag,
    Any,
    /// These; `EINVAL` otherwise.
    Within(i32, i32),
    /// These, or -1 for the default.
    OrDefault(i32, i32),
    /// Can be read, not set.
    ReadOnly,
}

/// What kind of socket an option is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Tcp,
    Udp,
    /// Raw sockets and netlink: no level of their own.
    Other,
}

use Range::{Any, Flag, OrDefault, ReadOnly, Within};

type Row = (i32, i32, i32, Range);

const IP_BIND_ADDRESS_NO_PORT: i32 = 24;
const IP_RECVFRAGSIZE: i32 = 25;
const IP_MULTICAST_ALL: i32 = 49;
const IPV6_AUTOFLOWLABEL: i32 = 70;
const IPV6_FREEBIND: i32 = 78;
/// Names of RFC 2292, which programs still use.
pub(super) const IPV6_2292PKTINFO: i32 = 2;
pub(super) const IPV6_2292HOPLIMIT: i32 = 8;
const IPV6_FLOWINFO: i32 = 11;
const IPV6_FLOWINFO_SEND: i32 = 33;
const IPV6_MULTICAST_ALL: i32 = 29;
const IPV6_RECVERR_RFC4884: i32 = 31;
const IP_RECVERR_RFC4884: i32 = 26;

/// Level, name, default, range.
const ROWS: &[Row] = &[
    (libc::SOL_SOCKET, libc::SO_REUSEADDR, 0, Flag),
    (libc::SOL_SOCKET, libc::SO_REUSEPORT, 0, Flag),
    (libc::SOL_SOCKET, libc::SO_DONTROUTE, 0, Flag),
    (libc::SOL_SOCKET, libc::SO_BROADCAST, 0, Flag),
    (libc::SOL_SOCKET, libc::SO_KEEPALIVE, 0, Flag),
    (libc::SOL_SOCKET, libc::SO_OOBINLINE, 0, Flag),
    (libc::SOL_SOCKET, libc::SO_NO_CHECK, 0, Flag),
    (libc::SOL_SOCKET, libc::SO_PRIORITY, 0, Any),
    (libc::SOL_SOCKET, libc::SO_MARK, 0, Any),
    (libc::SOL_SOCKET, libc::SO_RCVLOWAT, 1, Any),
    (libc::SOL_SOCKET, libc::SO_TIMESTAMP, 0, Flag),
    (libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 0, Flag),
    (libc::SOL_SOCKET, libc::SO_TIMESTAMPING, 0, Any),
    (libc::SOL_SOCKET, libc::SO_RXQ_OVFL, 0, Flag),
    (libc::SOL_SOCKET, libc::SO_BUSY_POLL, 0, Any),
    (libc::SOL_SOCKET, libc::SO_INCOMING_CPU, -1, Any),
    (libc::SOL_SOCKET, libc::SO_PEEK_OFF, -1, Any),
    (libc::SOL_SOCKET, libc::SO_ZEROCOPY, 0, Flag),
    (libc::SOL_SOCKET, libc::SO_SELECT_ERR_QUEUE, 0, Flag),
    (libc::SOL_SOCKET, libc::SO_DEBUG, 0, Flag),
    (libc::SOL_SOCKET, libc::SO_SNDLOWAT, 1, ReadOnly),
    (libc::IPPROTO_IP, libc::IP_TOS, 0, Any),
    (libc::IPPROTO_IP, libc::IP_TTL, 64, OrDefault(1, 255)),
    (libc::IPPROTO_IP, libc::IP_PKTINFO, 0, Flag),
    (libc::IPPROTO_IP, libc::IP_RECVERR, 0, Flag),
    (libc::IPPROTO_IP, libc::IP_RECVTTL, 0, Flag),
    (libc::IPPROTO_IP, libc::IP_RECVTOS, 0, Flag),
    (libc::IPPROTO_IP, libc::IP_RECVOPTS, 0, Flag),
    (libc::IPPROTO_IP, libc::IP_RETOPTS, 0, Flag),
    (libc::IPPROTO_IP, libc::IP_RECVORIGDSTADDR, 0, Flag),
    (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, 1, Within(0, 5)),
    (libc::IPPROTO_IP, libc::IP_MULTICAST_TTL, 1, OrDefault(0, 255)),
    (libc::IPPROTO_IP, libc::IP_MULTICAST_LOOP, 1, Flag),
    (libc::IPPROTO_IP, IP_MULTICAST_ALL, 1, Within(0, 1)),
    (libc::IPPROTO_IP, libc::IP_FREEBIND, 0, Flag),
    (libc::IPPROTO_IP, libc::IP_TRANSPARENT, 0, Flag),
    (libc::IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 0, Flag),
    (libc::IPPROTO_IP, IP_RECVFRAGSIZE, 0, Flag),
    (libc::IPPROTO_IP, libc::IP_MINTTL, 0, Within(0, 255)),
    (libc::IPPROTO_IP, IP_RECVERR_RFC4884, 0, Flag),
    (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 0, Flag),
    (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, 64, OrDefault(0, 255)),
    (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_HOPS, 1, OrDefault(0, 255)),
    (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_LOOP, 1, Within(0, 1)),
    (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_IF, 0, Any),
    (libc::IPPROTO_IPV6, IPV6_MULTICAST_ALL, 1, Within(0, 1)),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 0, Flag),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT, 0, Flag),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 0, Flag),
    (libc::IPPROTO_IPV6, IPV6_2292PKTINFO, 0, Flag),
    (libc::IPPROTO_IPV6, IPV6_2292HOPLIMIT, 0, Flag),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVRTHDR, 0, Flag),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVHOPOPTS, 0, Flag),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVDSTOPTS, 0, Flag),
    (libc::IPPROTO_IPV6, libc::IPV6_TCLASS, 0, OrDefault(0, 255)),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVERR, 0, Flag),
    (libc::IPPROTO_IPV6, IPV6_RECVERR_RFC4884, 0, Flag),
    (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, 1, Within(0, 5)),
    (libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, 0, Flag),
    (libc::IPPROTO_IPV6, libc::IPV6_TRANSPARENT, 0, Flag),
    (libc::IPPROTO_IPV6, IPV6_FREEBIND, 0, Flag),
    (libc::IPPROTO_IPV6, IPV6_AUTOFLOWLABEL, 1, Flag),
    (libc::IPPROTO_IPV6, IPV6_FLOWINFO, 0, Flag),
    (libc::IPPROTO_IPV6, IPV6_FLOWINFO_SEND, 0, Flag),
];

const TCP_ROWS: &[Row] = &[
    (libc::IPPROTO_TCP, libc::TCP_NODELAY, 0, Flag),
    (libc::IPPROTO_TCP, libc::TCP_CORK, 0, Flag),
    (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, 7200, Within(1, 32_767)),
    (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, 75, Within(1, 32_767)),
    (libc::IPPROTO_TCP, libc::TCP_KEEPCNT, 9, Within(1, 127)),
    (libc::IPPROTO_TCP, libc::TCP_SYNCNT, 6, Within(1, 255)),
    (libc::IPPROTO_TCP, libc::TCP_LINGER2, 60, Any),
    (libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, 0, Any),
    (libc::IPPROTO_TCP, libc::TCP_WINDOW_CLAMP, 0, Any),
    (libc::IPPROTO_TCP, libc::TCP_QUICKACK, 1, Flag),
    (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, 0, Within(0, i32::MAX)),
    (libc::IPPROTO_TCP, libc::TCP_FASTOPEN, 0, Within(0, i32::MAX)),
    (libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT, 0, Within(0, 1)),
    (libc::IPPROTO_TCP, libc::TCP_FASTOPEN_NO_COOKIE, 0, Within(0, 1)),
    (libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, 0, Any),
    (libc::IPPROTO_TCP, libc::TCP_THIN_LINEAR_TIMEOUTS, 0, Within(0, 1)),
    (libc::IPPROTO_TCP, libc::TCP_THIN_DUPACK, 0, Within(0, 1)),
    (libc::IPPROTO_TCP, libc::TCP_SAVE_SYN, 0, Within(0, 2)),
    (libc::IPPROTO_TCP, libc::TCP_INQ, 0, Within(0, 1)),
    (libc::IPPROTO_TCP, libc::TCP_TIMESTAMP, 0, ReadOnly),
];

const UDP_ROWS: &[Row] = &[
    (libc::IPPROTO_UDP, libc::UDP_CORK, 0, Flag),
    (libc::IPPROTO_UDP, libc::UDP_SEGMENT, 0, Within(0, 65_535)),
    (libc::IPPROTO_UDP, libc::UDP_GRO, 0, Flag),
];

const RAW_ROWS: &[Row] = &[(libc::IPPROTO_IP, libc::IP_HDRINCL, 0, Flag)];

fn row(transport: Transport, domain: Domain, level: i32, name: i32) -> Option<&'static Row> {
    if level == libc::IPPROTO_IPV6 && domain == Domain::V4 {
        return None;
    }
    let own = match transport {
        Transport::Tcp => TCP_ROWS,
        Transport::Udp => UDP_ROWS,
        Transport::Other => RAW_ROWS,
    };
    ROWS.iter().chain(own).find(|row| (row.0, row.1) == (level, name))
}

/// The options of one socket.
#[derive(Debug)]
pub(crate) struct Options {
    transport: Transport,
    domain: Domain,
    send_buffer: AtomicUsize,
    receive_buffer: AtomicUsize,
    receive_timeout: AtomicU64,
    send_timeout: AtomicU64,
    /// Whether any numeric option has been set: most sockets never set one, and transfers ask for some.
    any_set: AtomicBool,
    /// The interface that all traffic goes by (`SO_BINDTODEVICE`), or 0.
    device: AtomicU32,
    /// Numeric options that are not at their defaults.
    numbers: Mutex<BTreeMap<(i32, i32), i32>, { rank::LEAF }>,
    /// Options of another shape, as they were set.
    kept: Mutex<BTreeMap<(i32, i32), Vec<u8>>, { rank::LEAF }>,
}

impl Options {
    /// `send` and `receive`: the sizes of a new socket's buffers, in bytes.
    pub(crate) fn new(transport: Transport, domain: Domain, send: usize, receive: usize) -> Self {
        Self {
            transport,
            domain,
            send_buffer: AtomicUsize::new(send),
            receive_buffer: AtomicUsize::new(receive),
            receive_timeout: AtomicU64::new(FOREVER),
            send_timeout: AtomicU64::new(FOREVER),
            any_set: AtomicBool::new(false),
            device: AtomicU32::new(0),
            numbers: Mutex::new(BTreeMap::new()),
            kept: Mutex::new(BTreeMap::new()),
        }
    }

    /// The options of a connection that a listener accepts: the listener's.
    pub(crate) fn inherit(listener: &Self) -> Self {
        let copy = |word: &AtomicU64| AtomicU64::new(word.load(Ordering::Relaxed));
        Self {
            transport: listener.transport,
            domain: listener.domain,
            send_buffer: AtomicUsize::new(listener.send_buffer()),
            receive_buffer: AtomicUsize::new(listener.receive_buffer()),
            receive_timeout: copy(&listener.receive_timeout),
            send_timeout: copy(&listener.send_timeout),
            any_set: AtomicBool::new(listener.any_set.load(Ordering::Relaxed)),
            device: AtomicU32::new(listener.device()),
            numbers: Mutex::new(listener.numbers.lock().clone()),
            kept: Mutex::new(listener.kept.lock().clone()),
        }
    }

    /// `SO_SNDBUF`, in bytes.
    pub(crate) fn send_buffer(&self) -> usize {
        self.send_buffer.load(Ordering::Relaxed)
    }

    /// The number of the interface that it is bound to, or 0.
    pub(crate) fn device(&self) -> u32 {
        self.device.load(Ordering::Relaxed)
    }

    /// `SO_RCVBUF`, in bytes.
    pub(crate) fn receive_buffer(&self) -> usize {
        self.receive_buffer.load(Ordering::Relaxed)
    }

    pub(crate) fn timeout(&self, sending: bool) -> Option<Nanos> {
        let timeout = if sending { &self.send_timeout } else { &self.receive_timeout };
        Some(timeout.load(Ordering::Relaxed)).filter(|ns| *ns != FOREVER)
    }

    /// The value of a numeric option.
    pub(crate) fn number(&self, level: i32, name: i32) -> i32 {
        let set = self.numbers.lock().get(&(level, name)).copied();
        set.or_else(|| row(self.transport, self.domain, level, name).map(|row| row.2)).unwrap_or(0)
    }

    /// The value of a numeric option whose default the caller knows: quick where none is set.
    pub(crate) fn set_or(&self, level: i32, name: i32, default: i32) -> i32 {
        if !self.any_set.load(Ordering::Relaxed) {
            return default;
        }
        self.numbers.lock().get(&(level, name)).copied().unwrap_or(default)
    }

    /// Whether any numeric option has been set.
    pub(crate) fn any_set(&self) -> bool {
        self.any_set.load(Ordering::Relaxed)
    }

    pub(crate) fn flag(&self, level: i32, name: i32) -> bool {
        self.number(level, name) != 0
    }

    pub(crate) fn put_number(&self, level: i32, name: i32, value: i32) {
        self.numbers.lock().insert((level, name), value);
        self.any_set.store(true, Ordering::Relaxed);
    }

    /// `SO_LINGER`: seconds, if it is on.
    pub(crate) fn linger(&self) -> Option<i32> {
        let kept = self.kept.lock();
        let value = kept.get(&(libc::SOL_SOCKET, libc::SO_LINGER))?;
        let linger = Linger::read_from_bytes(value).ok()?;
        (linger.onoff != 0).then_some(linger.linger)
    }

    /// The value of an option that is the same for every transport; `ENOPROTOOPT` for one that nobody knows.
    pub(crate) fn get(&self, level: i32, name: i32) -> Result<Vec<u8>> {
        let number = match (level, name) {
            (libc::SOL_SOCKET, libc::SO_SNDBUF) => i32::try_from(self.send_buffer()).unwrap_or(i32::MAX),
            (libc::SOL_SOCKET, libc::SO_RCVBUF) => i32::try_from(self.receive_buffer()).unwrap_or(i32::MAX),
            (libc::SOL_SOCKET, libc::SO_RCVTIMEO) => return Ok(timeval(&self.receive_timeout)),
            (libc::SOL_SOCKET, libc::SO_SNDTIMEO) => return Ok(timeval(&self.send_timeout)),
            (libc::SOL_SOCKET, libc::SO_LINGER) => return Ok(self.kept(level, name, &[0; 8])),
            (libc::SOL_SOCKET, libc::SO_BINDTODEVICE) => return Ok(self.kept(level, name, &[])),
            (libc::SOL_SOCKET, SO_BINDTOIFINDEX) => i32::try_from(self.device()).unwrap_or(0),
            (libc::IPPROTO_IP, libc::IP_OPTIONS) => return Ok(Vec::new()),
            (libc::IPPROTO_IP, libc::IP_MULTICAST_IF) => return Ok(self.kept(level, name, &[0; 4])),
            (libc::IPPROTO_TCP, libc::TCP_CONGESTION) if self.transport == Transport::Tcp => {
                return Ok(self.kept(level, name, b"cubic\0\0\0\0\0\0\0\0\0\0\0"));
            }
            (libc::IPPROTO_TCP, libc::TCP_ULP) if self.transport == Transport::Tcp => return Ok(Vec::new()),
            _ => match row(self.transport, self.domain, level, name) {
                Some(_) => self.number(level, name),
                None => return Err(self.unknown(level)),
            },
        };
        Ok(number.to_ne_bytes().to_vec())
    }

    /// What asking for an option that is not there gives: IPv4 sockets tell a level of others apart
    /// (`ip_getsockopt`).
    fn unknown(&self, level: i32) -> Errno {
        let own = match self.transport {
            Transport::Tcp => libc::IPPROTO_TCP,
            Transport::Udp => libc::IPPROTO_UDP,
            Transport::Other => libc::IPPROTO_IP,
        };
        let known = [libc::SOL_SOCKET, libc::IPPROTO_IP, own].contains(&level);
        if known || self.domain == Domain::V6 { Errno::ENOPROTOOPT } else { Errno::EOPNOTSUPP }
    }

    /// The interface that datagrams to groups go out by, as far as it was set: an address, or a number.
    pub(super) fn group_interface(&self, six: bool) -> (Option<IpAddr>, u32) {
        if six {
            let index = self.set_or(libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_IF, 0);
            return (None, u32::try_from(index).unwrap_or(0));
        }
        let kept = self.kept(libc::IPPROTO_IP, libc::IP_MULTICAST_IF, &[0; 4]);
        let ip = kept.first_chunk::<4>().map(|b| IpAddr::from(*b));
        (ip.filter(|ip| !ip.is_unspecified()), 0)
    }

    fn kept(&self, level: i32, name: i32, default: &[u8]) -> Vec<u8> {
        self.kept.lock().get(&(level, name)).cloned().unwrap_or_else(|| default.to_vec())
    }

    /// Sets such an option.
    pub(crate) fn set(&self, caller: &dyn Caller, level: i32, name: i32, value: &[u8]) -> Result<()> {
        let admin = || {
            if caller.creds().has_cap(cap::NET_ADMIN) { Ok(()) } else { Err(Errno::EPERM) }
        };
        match (level, name) {
            (libc::SOL_SOCKET, libc::SO_SNDBUF) => {
                self.send_buffer.store(buffer(value, SEND_MIN, BUFFER_MAX)?, Ordering::Relaxed);
            }
            (libc::SOL_SOCKET, libc::SO_RCVBUF) => {
                self.receive_buffer.store(buffer(value, RECEIVE_MIN, BUFFER_MAX)?, Ordering::Relaxed);
            }
            (libc::SOL_SOCKET, libc::SO_SNDBUFFORCE) => {
                admin()?;
                self.send_buffer.store(buffer(value, SEND_MIN, FORCED_MAX)?, Ordering::Relaxed);
            }
            (libc::SOL_SOCKET, libc::SO_RCVBUFFORCE) => {
                admin()?;
                self.receive_buffer.store(buffer(value, RECEIVE_MIN, FORCED_MAX)?, Ordering::Relaxed);
            }
            (libc::SOL_SOCKET, libc::SO_RCVTIMEO) => {
                self.receive_timeout.store(timeout(value)?, Ordering::Relaxed);
            }
            (libc::SOL_SOCKET, libc::SO_SNDTIMEO) => {
                self.send_timeout.store(timeout(value)?, Ordering::Relaxed);
            }
            (libc::SOL_SOCKET, libc::SO_LINGER) => {
                let value = value.get(..8).ok_or(Errno::EINVAL)?.to_vec();
                self.kept.lock().insert((level, name), value);
            }
            // The network has done it, which knows the interfaces.
            (libc::SOL_SOCKET, libc::SO_BINDTODEVICE | SO_BINDTOIFINDEX) => {}
            (libc::SOL_SOCKET, libc::SO_ATTACH_FILTER | libc::SO_ATTACH_BPF) => return Err(Errno::EINVAL),
            (libc::SOL_SOCKET, libc::SO_DETACH_FILTER) => return Err(Errno::ENOENT),
            (libc::IPPROTO_IP, libc::IP_OPTIONS) if value.is_empty() => {}
            (libc::IPPROTO_IP, libc::IP_MULTICAST_IF) => {
                let at = match value.len() {
                    12.. => 4,
                    8.. => 4,
                    4.. => 0,
                    _ => return Err(Errno::EINVAL),
                };
                let address = value.get(at..at + 4).unwrap_or(&[0; 4]).to_vec();
                self.kept.lock().insert((level, name), address);
            }
            (libc::IPPROTO_TCP, libc::TCP_CONGESTION) if self.transport == Transport::Tcp => {
                let mut chosen: Vec<u8> = value.iter().copied().take(15).take_while(|b| *b != 0).collect();
                if !matches!(chosen.as_slice(), b"cubic" | b"reno") {
                    return Err(if chosen.is_empty() { Errno::EINVAL } else { Errno::ENOENT });
                }
                chosen.resize(16, 0);
                self.kept.lock().insert((level, name), chosen);
            }
            (libc::IPPROTO_TCP, libc::TCP_ULP) if self.transport == Transport::Tcp => {
                return Err(Errno::ENOENT);
            }
            _ => return self.set_number(caller, level, name, value),
        }
        Ok(())
    }

    fn set_number(&self, caller: &dyn Caller, level: i32, name: i32, value: &[u8]) -> Result<()> {
        let Some(&(_, _, default, range)) = row(self.transport, self.domain, level, name) else {
            return Err(Errno::ENOPROTOOPT);
        };
        let mut number = match value {
            // The IP level takes single bytes too.
            [byte, ..] if value.len() < 4 && level == libc::IPPROTO_IP => i32::from(*byte),
            _ => int(value)?,
        };
        let may = |wanted: u32| caller.creds().has_cap(wanted);
        match (level, name) {
            (libc::SOL_SOCKET, libc::SO_PRIORITY)
                if !(0..=6).contains(&number) && !may(cap::NET_ADMIN) && !may(cap::NET_RAW) =>
            {
                return Err(Errno::EPERM);
            }
            (libc::SOL_SOCKET, libc::SO_MARK) if !may(cap::NET_ADMIN) && !may(cap::NET_RAW) => {
                return Err(Errno::EPERM);
            }
            (libc::SOL_SOCKET, libc::SO_DEBUG) if number != 0 && !may(cap::NET_ADMIN) => {
                return Err(Errno::EACCES);
            }
            (libc::IPPROTO_IP, libc::IP_TRANSPARENT) | (libc::IPPROTO_IPV6, libc::IPV6_TRANSPARENT)
                if number != 0 && !may(cap::NET_RAW) && !may(cap::NET_ADMIN) =>
            {
                return Err(Errno::EPERM);
            }
            (libc::SOL_SOCKET, libc::SO_RCVLOWAT) => {
                number = match number {
                    0 => 1,
                    n if n < 0 => i32::MAX,
                    n => n,
                };
            }
            (libc::IPPROTO_IP, libc::IP_TOS) => {
                // The two bits of congestion notification are TCP's own.
                number &= if self.transport == Transport::Tcp { 0xfc } else { 0xff };
            }
            _ => {}
        }
        let stored = match range {
            Flag => i32::from(number != 0),
            Any => number,
            Within(low, high) if (low..=high).contains(&number) => number,
            OrDefault(..) if number == -1 => default,
            OrDefault(low, high) if (low..=high).contains(&number) => number,
            Within(..) | OrDefault(..) => return Err(Errno::EINVAL),
            ReadOnly => return Err(Errno::ENOPROTOOPT),
        };
        // The two forms of time stamps exclude one another.
        if level == libc::SOL_SOCKET && name == libc::SO_TIMESTAMP {
            self.put_number(level, libc::SO_TIMESTAMPNS, 0);
        }
        if level == libc::SOL_SOCKET && name == libc::SO_TIMESTAMPNS {
            self.put_number(level, libc::SO_TIMESTAMP, 0);
        }
        self.put_number(level, name, stored);
        Ok(())
    }
}

/// The name of an interface (`sock_setbindtodevice`).
fn device(value: &[u8]) -> Vec<u8> {
    value.iter().copied().take(15).take_while(|b| *b != 0).collect()
}

impl Inet {
    /// Binds a socket to an interface, if that is what the option does (`sock_setbindtodevice`, `sock_bindtoindex`). Who is
    /// bound already may be bound to another one by `CAP_NET_RAW`.
    pub(crate) fn bind_to_device(
        &self,
        caller: &dyn Caller,
        options: &Options,
        (level, name): (i32, i32),
        value: &[u8],
    ) -> Result<()> {
        if level != libc::SOL_SOCKET || ![libc::SO_BINDTODEVICE, SO_BINDTOIFINDEX].contains(&name) {
            return Ok(());
        }
        let (index, mut device) = if name == SO_BINDTOIFINDEX {
            // By its number also one that is not there.
            let index = int(value)?;
            let name = u32::try_from(index).ok().and_then(|index| {
                self.interfaces.lock().by_index(index).map(|i| i.name.clone().into_bytes())
            });
            (index, name.unwrap_or_default())
        } else {
            let name = device(value);
            let index = self.interfaces.lock().by_name(&name).map(|i| i.index);
            let index = if name.is_empty() { 0 } else { index.ok_or(Errno::ENODEV)? };
            (i32::try_from(index).unwrap_or(0), name)
        };
        if options.device() != 0 && !self.allows(caller, cap::NET_RAW) {
            return Err(Errno::EPERM);
        }
        let index = u32::try_from(index).map_err(|_| Errno::EINVAL)?;
        options.device.store(index, Ordering::Relaxed);
        let key = (libc::SOL_SOCKET, libc::SO_BINDTODEVICE);
        if device.is_empty() {
            options.kept.lock().remove(&key);
        } else {
            device.push(0);
            options.kept.lock().insert(key, device);
        }
        Ok(())
    }

    /// The interface by which a packet to an address of this host's comes that does not leave it.
    pub(crate) fn arrives_by(&self, to: IpAddr) -> u32 {
        self.interfaces.lock().local(to).map_or(LOOPBACK, |i| i.index)
    }
}

/// `SO_BINDTOIFINDEX` (`asm-generic/socket.h`).
pub(crate) const SO_BINDTOIFINDEX: i32 = 62;

/// The number of `lo`.
const LOOPBACK: u32 = 1;

pub(crate) fn int(value: &[u8]) -> Result<i32> {
    value.first_chunk().map(|b| i32::from_ne_bytes(*b)).ok_or(Errno::EINVAL)
}

/// Doubled for bookkeeping, as Linux does and shows.
fn buffer(value: &[u8], min: usize, max: usize) -> Result<usize> {
    // A negative size is a large unsigned one.
    let size = usize::try_from(int(value)?).unwrap_or(usize::MAX).min(max);
    Ok((size * 2).max(min))
}

fn timeout(value: &[u8]) -> Result<u64> {
    let (time, _) = SockTimeval::read_from_prefix(value).map_err(|_| Errno::EINVAL)?;
    let usec = u64::try_from(time.usec).ok().filter(|u| *u < 1_000_000).ok_or(Errno::EDOM)?;
    Ok(match u64::try_from(time.sec) {
        // Already over.
        Err(_) => 0,
        Ok(0) if usec == 0 => FOREVER,
        Ok(sec) => sec.saturating_mul(1_000_000_000).saturating_add(usec * 1000),
    })
}

fn timeval(ns: &AtomicU64) -> Vec<u8> {
    let time = match ns.load(Ordering::Relaxed) {
        FOREVER => SockTimeval::default(),
        ns => SockTimeval {
            sec: i64::try_from(ns / 1_000_000_000).unwrap_or(i64::MAX),
            usec: i64::try_from(ns % 1_000_000_000 / 1000).unwrap_or(0),
        },
    };
    time.as_bytes().to_vec()
}
