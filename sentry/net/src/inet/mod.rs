//! `AF_INET` and `AF_INET6` sockets over the network stack (`ip(7)`, `tcp(7)`, `udp(7)`, `net/ipv4/af_inet.c`).
//!
//! Each socket is a handle that an open file (or a listener's backlog) owns, and a core behind it that tables, peers and
//! waiters may keep a while longer. Dropping the handle closes.

pub(crate) mod addr;
mod control;
mod flow;
pub(crate) mod groups;
mod icmp_errors;
mod info;
mod memory;
pub(crate) mod netdev;
pub(crate) mod options;
mod outbox;
mod outside;
pub(crate) mod raw;
pub(crate) mod report;
mod resolver;
mod tcp;
mod tcp_connect;
mod tcp_io;
mod tcp_options;
mod udp;
mod udp_io;

use core::sync::atomic::{AtomicU16, Ordering};
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock, Weak};

use netstack::iface::{Interface, Interfaces, StaticRoute};
use netstack::ports::PortTable;
use netstack::stats::Stats;
use netstack::{BufferPool, Ready};
use sentry_base::{Errno, Events, Mutex, Result, lock::rank};
use sentry_vfs::{Caller, UserNs, cap};

use crate::Socket;
use crate::host::{HostNet, HostSocket};
use crate::netlink::NetlinkTable;
use crate::packet::Taps;
pub use addr::Domain;
use outside::Outside;
pub use outside::{LinkHost, LinkSetup, Links};
use raw::{RawSocket, RawTable};
pub use resolver::LINK as RESOLVER_LINK;
use tcp::{TcpCore, TcpSocket};
use udp::{UdpCore, UdpSocket};

/// The Internet protocols of one network: who has which port, the interfaces, the counters.
#[derive(Debug)]
pub struct Inet {
    pub(crate) tcp: Mutex<PortTable<Weak<TcpCore>>, { rank::LEAF }>,
    pub(crate) udp: Mutex<PortTable<Weak<UdpCore>>, { rank::LEAF }>,
    pub(crate) interfaces: Mutex<Interfaces, { rank::LEAF }>,
    /// All TCP sockets that are open, by inode number, for `/proc/net/tcp`.
    tcp_sockets: Mutex<BTreeMap<u64, Weak<TcpCore>>, { rank::LEAF }>,
    raws: RawTable,
    pub(crate) taps: Arc<Taps>,
    pub(crate) groups: groups::Groups,
    pub(crate) netlink: NetlinkTable,
    buffers: Mutex<BufferPool, { rank::LEAF }>,
    memory: Arc<memory::Memory>,
    pub(crate) stats: Stats,
    /// `net.ipv4.ip_unprivileged_port_start`.
    unprivileged_port_start: AtomicU16,
    /// The user namespace whose capabilities count here.
    owner: OnceLock<Arc<UserNs>>,
    /// The `AF_UNIX` sockets of the same network.
    pub(crate) unix: OnceLock<Weak<crate::UnixNamespace>>,
    /// Links, where this network has some.
    pub(crate) outside: OnceLock<Outside>,
    /// Who makes its sockets, where they are the host's.
    host: OnceLock<Arc<dyn HostNet>>,
    /// These, by inode number.
    pub(crate) host_sockets: Mutex<BTreeMap<u64, Weak<HostSocket>>, { rank::LEAF }>,
}

impl Default for Inet {
    fn default() -> Self {
        Self {
            tcp: Mutex::default(),
            udp: Mutex::default(),
            interfaces: Mutex::default(),
            tcp_sockets: Mutex::default(),
            raws: Mutex::default(),
            taps: Arc::default(),
            groups: groups::Groups::default(),
            netlink: NetlinkTable::default(),
            buffers: Mutex::default(),
            memory: Arc::default(),
            stats: Stats::default(),
            unprivileged_port_start: AtomicU16::new(1024),
            owner: OnceLock::new(),
            unix: OnceLock::new(),
            outside: OnceLock::new(),
            host: OnceLock::new(),
            host_sockets: Mutex::default(),
        }
    }
}

impl Inet {
    /// The lowest port that needs no capability.
    pub fn unprivileged_port_start(&self) -> u16 {
        self.unprivileged_port_start.load(Ordering::Relaxed)
    }

    pub fn set_unprivileged_port_start(&self, port: u16) {
        self.unprivileged_port_start.store(port, Ordering::Relaxed);
    }

    /// Says how much memory the container may use, in bytes: connections hold a part of it at the most.
    pub fn set_memory(&self, total: u64) {
        self.memory.set_total(usize::try_from(total).unwrap_or(usize::MAX));
    }

    /// Whether the caller may bind to a port.
    pub(crate) fn check_port(&self, caller: &dyn Caller, port: u16) -> Result<()> {
        let free = port == 0 || port >= self.unprivileged_port_start();
        if free || self.allows(caller, cap::NET_BIND_SERVICE) { Ok(()) } else { Err(Errno::EACCES) }
    }

    /// Whether the caller has a capability over this network.
    pub(crate) fn allows(&self, caller: &dyn Caller, cap: u32) -> bool {
        if cap == cap::NET_ADMIN && self.host.get().is_some() {
            // The interfaces are the host's, and only shown.
            return false;
        }
        let creds = caller.creds();
        self.owner.get().map_or_else(|| creds.has_cap(cap), |owner| creds.has_cap_in(owner, cap))
    }

    /// Notes once to which user namespace this network belongs. In one that is `fresh` the loopback is down until
    /// somebody brings it up.
    pub(crate) fn belong_to(&self, owner: &Arc<UserNs>, fresh: bool) {
        self.owner.get_or_init(|| {
            if fresh {
                self.interfaces.lock().take_down();
            }
            Arc::clone(owner)
        });
    }

    /// Whether this network's sockets are the host's.
    pub(crate) fn is_the_hosts(&self) -> bool {
        self.host.get().is_some()
    }

    /// Makes this network the host's: its sockets are made by `host`, and these are its interfaces besides the loopback. The
    /// first time counts.
    pub fn be_the_hosts(&self, host: Arc<dyn HostNet>, shown: Vec<Interface>, routes: Vec<StaticRoute>) {
        let mut interfaces = self.interfaces.lock();
        for interface in shown {
            interfaces.add(interface);
        }
        for route in routes {
            interfaces.add_route(route);
        }
        drop(interfaces);
        let _ = self.host.set(host);
    }

    /// `socket(AF_INET or AF_INET6, kind, protocol)`; `kind` without its flags.
    pub fn socket(
        self: &Arc<Self>,
        caller: &dyn Caller,
        domain: Domain,
        kind: i32,
        protocol: i32,
    ) -> Result<Arc<dyn Socket>> {
        if !(0..=255).contains(&protocol) && protocol != libc::IPPROTO_MPTCP {
            return Err(Errno::EINVAL);
        }
        if let Some(host) = self.host.get() {
            return HostSocket::open(self, host.as_ref(), caller, domain, kind, protocol);
        }
        match (kind, protocol) {
            (libc::SOCK_STREAM, libc::IPPROTO_IP | libc::IPPROTO_TCP) => {
                Ok(TcpSocket::new(caller, self, domain))
            }
            (libc::SOCK_DGRAM, libc::IPPROTO_IP | libc::IPPROTO_UDP) => {
                Ok(UdpSocket::new(caller, self, domain))
            }
            (libc::SOCK_DGRAM, libc::IPPROTO_ICMP) if domain == Domain::V4 => {
                Ok(RawSocket::new(caller, self, domain, true, 1))
            }
            (libc::SOCK_DGRAM, libc::IPPROTO_ICMPV6) if domain == Domain::V6 => {
                Ok(RawSocket::new(caller, self, domain, true, 58))
            }
            (libc::SOCK_RAW, 0) => Err(Errno::EPROTONOSUPPORT),
            (libc::SOCK_RAW, _) if !self.allows(caller, cap::NET_RAW) => Err(Errno::EPERM),
            (libc::SOCK_RAW, protocol) => {
                let protocol = u8::try_from(protocol).map_err(|_| Errno::EPROTONOSUPPORT)?;
                Ok(RawSocket::new(caller, self, domain, false, protocol))
            }
            (libc::SOCK_STREAM | libc::SOCK_DGRAM, _) => Err(Errno::EPROTONOSUPPORT),
            _ => Err(Errno::ESOCKTNOSUPPORT),
        }
    }

    /// A buffer for about `want` bytes.
    fn buffer(&self, want: usize) -> Vec<u8> {
        let pooled = self.buffers.lock().get(want);
        pooled.unwrap_or_else(|| BufferPool::fresh(want))
    }

    fn recycle(&self, buffer: Option<Vec<u8>>) {
        if let Some(buffer) = buffer {
            self.buffers.lock().put(buffer);
        }
    }
}

/// Readiness of the network stack as the Sentry names it: the values are the same.
fn events(ready: Ready) -> Events {
    Events::from_bits_truncate(ready.bits())
}

/// Sends the caller SIGPIPE, unless it asked not to.
pub(crate) fn broken_pipe(caller: &dyn Caller, flags: i32) -> Errno {
    if flags & libc::MSG_NOSIGNAL == 0 {
        caller.signal_self(libc::SIGPIPE);
    }
    Errno::EPIPE
}
