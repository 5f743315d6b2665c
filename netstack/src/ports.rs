//! Who has which port: bindings, their conflicts, the choice of free ports, and addresses that rest in TIME_WAIT
//! (`net/ipv4/inet_connection_sock.c`, `net/ipv4/inet_hashtables.c`, `ip(7)`).

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::net::{IpAddr, SocketAddr};

use crate::Error;

/// `net.ipv4.ip_local_port_range`.
pub const EPHEMERAL: core::ops::RangeInclusive<u16> = 32768..=60999;

/// How long an address rests after its connection, in nanoseconds (`TCP_TIMEWAIT_LEN`).
const TIME_WAIT_NS: u64 = 60_000_000_000;
/// A connection over the loopback may follow another one after this time (`net.ipv4.tcp_tw_reuse` of 2).
const REUSE_NS: u64 = 1_000_000_000;
/// Resting addresses that are kept (`net.ipv4.tcp_max_tw_buckets`).
const MAX_RESTING: usize = 65_536;

/// A local address as a socket binds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Local {
    pub ip: IpAddr,
    /// An IPv6 socket that takes no IPv4 traffic (`IPV6_V6ONLY`).
    pub v6_only: bool,
    /// The interface that all its traffic goes by (`SO_BINDTODEVICE`), or 0.
    pub device: u32,
}

impl Local {
    /// Whether both would take the same packet (`inet_rcv_saddr_equal`).
    pub fn overlaps(&self, other: &Self) -> bool {
        if self.device != 0 && other.device != 0 && self.device != other.device {
            return false;
        }
        match (self.ip, other.ip) {
            (IpAddr::V4(a), IpAddr::V4(b)) => a == b || a.is_unspecified() || b.is_unspecified(),
            (IpAddr::V6(a), IpAddr::V6(b)) => a == b || a.is_unspecified() || b.is_unspecified(),
            (IpAddr::V4(_), IpAddr::V6(six)) => six.is_unspecified() && !other.v6_only,
            (IpAddr::V6(six), IpAddr::V4(_)) => six.is_unspecified() && !self.v6_only,
        }
    }

    /// How much better than others this takes what comes by an interface; `None` for not at all.
    pub fn score_of_device(&self, interface: u32) -> Option<u32> {
        match self.device {
            0 => Some(0),
            device => (device == interface).then_some(4),
        }
    }

    /// How well this takes packets for `to`: 0 for not at all (`compute_score`).
    pub fn score(&self, to: IpAddr) -> u32 {
        match (self.ip, to) {
            (a, b) if a == b => 4,
            (IpAddr::V4(a), IpAddr::V4(_)) if a.is_unspecified() => 3,
            (IpAddr::V6(a), IpAddr::V6(_)) if a.is_unspecified() => 3,
            (IpAddr::V6(a), IpAddr::V4(_)) if a.is_unspecified() && !self.v6_only => 2,
            _ => 0,
        }
    }
}

/// How a socket shares its port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sharing {
    /// `SO_REUSEADDR`.
    pub address: bool,
    /// `SO_REUSEPORT`.
    pub port: bool,
    /// Who made the socket: ports are shared within one user.
    pub uid: u32,
}

/// Names a binding of one table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BindingId {
    pub port: u16,
    serial: u64,
}

/// One socket's hold on a port.
#[derive(Debug, Clone)]
pub struct Binding<T> {
    pub id: BindingId,
    pub local: Local,
    pub sharing: Sharing,
    pub listening: bool,
    /// The other end of a connection.
    pub peer: Option<SocketAddr>,
    /// The port was chosen for that connection alone.
    pub connected_only: bool,
    /// Resting in TIME_WAIT until then.
    pub rests_until: Option<u64>,
    pub owner: T,
}

/// The ports of one protocol.
#[derive(Debug)]
pub struct PortTable<T> {
    ports: HashMap<u16, Vec<Binding<T>>>,
    next_serial: u64,
    resting: usize,
    /// Keyed by a secret, so that nobody foretells the next port.
    key: RandomState,
}

impl<T> Default for PortTable<T> {
    fn default() -> Self {
        Self { ports: HashMap::new(), next_serial: 0, resting: 0, key: RandomState::new() }
    }
}

impl<T> PortTable<T> {
    fn insert(
        &mut self,
        port: u16,
        local: Local,
        sharing: Sharing,
        peer: Option<SocketAddr>,
        owner: T,
    ) -> BindingId {
        self.next_serial += 1;
        let id = BindingId { port, serial: self.next_serial };
        let connected_only = peer.is_some();
        self.ports.entry(port).or_default().push(Binding {
            id,
            local,
            sharing,
            listening: false,
            peer,
            connected_only,
            rests_until: None,
            owner,
        });
        id
    }

    /// Forgets what has rested long enough at `port`.
    fn expire(&mut self, port: u16, now: u64) {
        if self.resting == 0 {
            return;
        }
        if let Some(list) = self.ports.get_mut(&port) {
            let before = list.len();
            list.retain(|b| b.rests_until.is_none_or(|until| until > now));
            self.resting = self.resting.saturating_sub(before - list.len());
            if list.is_empty() {
                self.ports.remove(&port);
            }
        }
    }

    /// Whether `local` may not join those at `port` (`inet_csk_bind_conflict`).
    fn conflicts(&self, port: u16, local: &Local, sharing: Sharing, but: Option<BindingId>) -> bool {
        self.ports.get(&port).is_some_and(|list| {
            list.iter().any(|other| {
                if Some(other.id) == but || !other.local.overlaps(local) {
                    return false;
                }
                let address = sharing.address && other.sharing.address && !other.listening;
                let port = sharing.port
                    && other.sharing.port
                    && (other.sharing.uid == sharing.uid || other.rests_until.is_some());
                !address && !port
            })
        })
    }

    /// Takes `port`, or any free one for 0.
    pub fn bind(
        &mut self,
        local: Local,
        port: u16,
        sharing: Sharing,
        owner: T,
        now: u64,
    ) -> Result<BindingId, Error> {
        if port != 0 {
            self.expire(port, now);
            if self.conflicts(port, &local, sharing, None) {
                return Err(Error::AddressInUse);
            }
            return Ok(self.insert(port, local, sharing, None, owner));
        }
        self.next_serial += 1;
        let start = self.key.hash_one((self.next_serial, now));
        // Odd ports first: connections prefer even ones.
        for port in candidates(start | 1) {
            self.expire(port, now);
            if !self.conflicts(port, &local, Sharing::default(), None) {
                return Ok(self.insert(port, local, sharing, None, owner));
            }
        }
        Err(Error::AddressInUse)
    }

    /// Takes a port for a connection from `ip` to `peer` (`__inet_hash_connect`). Connections to different places may
    /// share one.
    pub fn bind_for_connection(
        &mut self,
        ip: IpAddr,
        peer: SocketAddr,
        sharing: Sharing,
        owner: T,
        now: u64,
    ) -> Result<BindingId, Error> {
        self.next_serial += 1;
        // One after the other from a secret place: a port that has just been given up comes back last.
        let start = self.key.hash_one((ip, peer)).wrapping_add(self.next_serial.wrapping_mul(2));
        let local = Local { ip, v6_only: ip.is_ipv6(), device: 0 };
        for port in candidates(start & !1) {
            self.expire(port, now);
            if self.connection_fits(port, ip, peer, now, None) {
                return Ok(self.insert(port, local, sharing, Some(peer), owner));
            }
        }
        Err(Error::AddressNotAvailable)
    }

    fn connection_fits(
        &self,
        port: u16,
        ip: IpAddr,
        peer: SocketAddr,
        now: u64,
        but: Option<BindingId>,
    ) -> bool {
        self.ports.get(&port).is_none_or(|list| {
            list.iter().all(|other| {
                let same = other.local.ip == ip && other.peer == Some(peer);
                let rested = other.rests_until.is_some_and(|until| until <= now + TIME_WAIT_NS - REUSE_NS);
                Some(other.id) == but || (other.connected_only && (!same || rested))
            })
        })
    }

    /// Whether another connection goes from this bound socket's address to `peer` already.
    pub fn is_connected(&self, id: BindingId, ip: IpAddr, peer: SocketAddr, now: u64) -> bool {
        self.ports.get(&id.port).is_some_and(|list| {
            list.iter().any(|other| {
                other.id != id
                    && other.local.ip == ip
                    && other.peer == Some(peer)
                    && other.rests_until.is_none_or(|until| until > now + TIME_WAIT_NS - REUSE_NS)
            })
        })
    }

    /// Adds a connection that shares the port of a listener, as every accepted one does, and is bound to `device` with it.
    pub fn adopt(
        &mut self,
        (at, device): (SocketAddr, u32),
        peer: SocketAddr,
        sharing: Sharing,
        owner: T,
    ) -> BindingId {
        let local = Local { ip: at.ip(), v6_only: at.is_ipv6(), device };
        let id = self.insert(at.port(), local, sharing, Some(peer), owner);
        if let Some(binding) = self.get_mut(id) {
            binding.connected_only = false;
        }
        id
    }

    pub fn get_mut(&mut self, id: BindingId) -> Option<&mut Binding<T>> {
        self.ports.get_mut(&id.port)?.iter_mut().find(|b| b.id == id)
    }

    pub fn get(&self, id: BindingId) -> Option<&Binding<T>> {
        self.ports.get(&id.port)?.iter().find(|b| b.id == id)
    }

    /// Starts to listen, if nobody else does so there.
    pub fn listen(&mut self, id: BindingId) -> Result<(), Error> {
        let Some((local, sharing)) = self.get(id).map(|b| (b.local, b.sharing)) else {
            return Err(Error::AddressInUse);
        };
        if self.conflicts(id.port, &local, sharing, Some(id)) {
            return Err(Error::AddressInUse);
        }
        if let Some(binding) = self.get_mut(id) {
            binding.listening = true;
        }
        Ok(())
    }

    pub fn release(&mut self, id: BindingId) {
        if let Some(list) = self.ports.get_mut(&id.port) {
            list.retain(|b| b.id != id || b.rests_until.is_some());
            if list.is_empty() {
                self.ports.remove(&id.port);
            }
        }
    }

    /// Puts a connection's address to rest; it lasts past the socket.
    pub fn rest(&mut self, id: BindingId, now: u64) {
        if self.resting >= MAX_RESTING {
            self.sweep(now);
        }
        if self.resting >= MAX_RESTING {
            return;
        }
        if let Some(binding) = self.get_mut(id)
            && binding.rests_until.is_none()
        {
            binding.rests_until = Some(now + TIME_WAIT_NS);
            binding.listening = false;
            self.resting += 1;
        }
    }

    fn sweep(&mut self, now: u64) {
        let ports: Vec<u16> = self.ports.keys().copied().collect();
        for port in ports {
            self.expire(port, now);
        }
    }

    /// Addresses that rest now.
    pub fn resting(&mut self, now: u64) -> usize {
        if self.resting > 0 {
            self.sweep(now);
        }
        self.resting
    }

    /// Those at `port`.
    pub fn at(&self, port: u16) -> &[Binding<T>] {
        self.ports.get(&port).map(Vec::as_slice).unwrap_or_default()
    }

    /// All bindings, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Binding<T>> {
        self.ports.values().flatten()
    }

    /// The binding at `to` that `fits` and takes packets for it best; where several are equal (`SO_REUSEPORT`), the one
    /// that `from` is hashed to.
    pub fn find(
        &self,
        to: SocketAddr,
        from: SocketAddr,
        fits: impl Fn(&Binding<T>) -> u32,
    ) -> Option<&Binding<T>> {
        let mut best = 0;
        let mut found: Vec<&Binding<T>> = Vec::new();
        for binding in self.at(to.port()) {
            let local = binding.local.score(to.ip());
            let extra = fits(binding);
            if local == 0 || extra == 0 || binding.rests_until.is_some() {
                continue;
            }
            let score = local + extra;
            if score > best {
                best = score;
                found.clear();
            }
            if score == best {
                found.push(binding);
            }
        }
        if found.len() > 1 && found.iter().all(|b| b.sharing.port) {
            let at = self.key.hash_one((to, from)) % found.len() as u64;
            return usize::try_from(at).ok().and_then(|at| found.get(at).copied());
        }
        // Of equal ones that merely share their address, the last to come wins.
        found.last().copied()
    }
}

/// The ephemeral ports from a hashed start on: first those of the start's parity, then the others.
fn candidates(start: u64) -> impl Iterator<Item = u16> {
    let low = u64::from(*EPHEMERAL.start());
    let count = u64::from(*EPHEMERAL.end()) - low + 1;
    let half = count / 2;
    let parity = start & 1;
    let first = (start >> 1) % half;
    [parity, 1 - parity].into_iter().flat_map(move |parity| {
        (0..half).map(move |i| {
            let at = low + (first + i) % half * 2 + parity;
            u16::try_from(at).unwrap_or(*EPHEMERAL.end())
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    const ANY4: Local = Local { ip: IpAddr::V4(Ipv4Addr::UNSPECIFIED), v6_only: false, device: 0 };
    const LO4: Local = Local { ip: IpAddr::V4(Ipv4Addr::LOCALHOST), v6_only: false, device: 0 };
    const ANY6: Local = Local { ip: IpAddr::V6(Ipv6Addr::UNSPECIFIED), v6_only: false, device: 0 };
    const ONLY6: Local = Local { ip: IpAddr::V6(Ipv6Addr::UNSPECIFIED), v6_only: true, device: 0 };
    const REUSE: Sharing = Sharing { address: true, port: false, uid: 0 };
    const SHARE: Sharing = Sharing { address: false, port: true, uid: 0 };

    fn peer(port: u16) -> SocketAddr {
        SocketAddr::new(LO4.ip, port)
    }

    #[test]
    fn overlapping_addresses_conflict_unless_shared() {
        let mut table = PortTable::default();
        let none = Sharing::default();
        table.bind(LO4, 80, none, 1, 0).unwrap();
        assert_eq!(table.bind(ANY4, 80, REUSE, 2, 0), Err(Error::AddressInUse));
        assert_eq!(table.bind(ANY6, 80, none, 2, 0), Err(Error::AddressInUse));
        table.bind(ONLY6, 80, none, 2, 0).unwrap();
        let one = table.bind(ANY4, 81, REUSE, 1, 0).unwrap();
        let two = table.bind(ANY4, 81, REUSE, 2, 0).unwrap();
        table.listen(one).unwrap();
        assert_eq!(table.listen(two), Err(Error::AddressInUse));
        assert_eq!(table.bind(ANY4, 81, REUSE, 3, 0), Err(Error::AddressInUse));
        table.bind(ANY4, 82, SHARE, 1, 0).unwrap();
        table.bind(ANY4, 82, SHARE, 2, 0).unwrap();
        assert_eq!(table.bind(ANY4, 82, Sharing { uid: 7, ..SHARE }, 3, 0), Err(Error::AddressInUse));
    }

    #[test]
    fn the_most_special_listener_is_found() {
        let mut table = PortTable::default();
        for (local, owner) in [(ANY6, 6), (LO4, 4)] {
            let id = table.bind(local, 80, SHARE, owner, 0).unwrap();
            table.listen(id).unwrap();
        }
        let find = |ip: IpAddr| {
            table.find(SocketAddr::new(ip, 80), peer(1), |b| u32::from(b.listening)).map(|b| b.owner)
        };
        assert_eq!(find(LO4.ip), Some(4));
        assert_eq!(find(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2))), Some(6));
        assert_eq!(find(IpAddr::V6(Ipv6Addr::LOCALHOST)), Some(6));
    }

    #[test]
    fn a_resting_address_is_busy_for_a_minute() {
        let mut table = PortTable::default();
        let id = table.bind(LO4, 80, Sharing::default(), 1, 0).unwrap();
        table.rest(id, 0);
        table.release(id);
        assert_eq!(table.bind(LO4, 80, Sharing::default(), 2, TIME_WAIT_NS - 1), Err(Error::AddressInUse));
        assert_eq!(table.resting(TIME_WAIT_NS - 1), 1);
        table.bind(LO4, 80, Sharing::default(), 2, TIME_WAIT_NS).unwrap();
        assert_eq!(table.resting(TIME_WAIT_NS), 0);
    }

    #[test]
    fn connections_take_even_ports_and_share_them_across_peers() {
        let mut table = PortTable::default();
        let a = table.bind_for_connection(LO4.ip, peer(80), Sharing::default(), 1, 0).unwrap();
        assert_eq!(a.port % 2, 0);
        assert!(EPHEMERAL.contains(&a.port));
        assert!(!table.connection_fits(a.port, LO4.ip, peer(80), 0, None));
        assert!(table.connection_fits(a.port, LO4.ip, peer(81), 0, None));
        let b = table.bind(LO4, 0, Sharing::default(), 2, 0).unwrap();
        assert_eq!(b.port % 2, 1);
        assert!(!table.connection_fits(b.port, LO4.ip, peer(81), 0, None));
    }
}
