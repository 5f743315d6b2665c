//! Interfaces, their addresses, and which of them a packet would take (`netdevice(7)`, `rtnetlink(7)`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::Error;

/// `IFF_UP`, `IFF_BROADCAST`, `IFF_LOOPBACK`, `IFF_RUNNING`, `IFF_MULTICAST`, `IFF_LOWER_UP`.
pub const UP: u32 = 0x1;
pub const BROADCAST: u32 = 0x2;
pub const LOOPBACK: u32 = 0x8;
pub const RUNNING: u32 = 0x40;
pub const MULTICAST: u32 = 0x1000;
pub const LOWER_UP: u32 = 0x1_0000;

/// `RT_SCOPE_HOST`.
pub const SCOPE_HOST: u8 = 254;

/// Addresses that one interface may have.
const MAX_ADDRESSES: usize = 1024;

/// An address of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InterfaceAddress {
    pub ip: IpAddr,
    /// Bits of the network.
    pub prefix: u8,
    /// `RT_SCOPE_*`.
    pub scope: u8,
}

impl InterfaceAddress {
    /// Whether `ip` is in this address's network.
    pub fn covers(&self, ip: IpAddr) -> bool {
        match (self.ip, ip) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix.min(32))).unwrap_or(0);
                a.to_bits() & mask == b.to_bits() & mask
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix.min(128))).unwrap_or(0);
                a.to_bits() & mask == b.to_bits() & mask
            }
            _ => false,
        }
    }

    /// The address's network.
    pub fn network(&self) -> IpAddr {
        match self.ip {
            IpAddr::V4(ip) => IpAddr::V4(Ipv4Addr::from_bits(ip.to_bits() & self.netmask().to_bits())),
            IpAddr::V6(ip) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix.min(128))).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() & mask))
            }
        }
    }

    /// The mask of an IPv4 address.
    pub fn netmask(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(u32::MAX.checked_shl(32 - u32::from(self.prefix.min(32))).unwrap_or(0))
    }
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    pub index: u32,
    pub name: String,
    /// `IFF_*`.
    pub flags: u32,
    pub mtu: u32,
    pub hardware: [u8; 6],
    /// `ARPHRD_*`.
    pub kind: u16,
    pub tx_queue_len: u32,
    pub addresses: Vec<InterfaceAddress>,
}

impl Interface {
    /// `lo`, up, with its usual addresses.
    pub fn loopback() -> Self {
        Self {
            index: 1,
            name: "lo".into(),
            flags: UP | LOOPBACK | RUNNING | LOWER_UP,
            mtu: 65_536,
            hardware: [0; 6],
            kind: 772,
            tx_queue_len: 1000,
            addresses: vec![
                InterfaceAddress { ip: IpAddr::V4(Ipv4Addr::LOCALHOST), prefix: 8, scope: SCOPE_HOST },
                InterfaceAddress { ip: IpAddr::V6(Ipv6Addr::LOCALHOST), prefix: 128, scope: SCOPE_HOST },
            ],
        }
    }

    /// Brings it up or down. The loopback gets its usual addresses when it has none.
    pub fn set_up(&mut self, up: bool) {
        const ALL: u32 = UP | RUNNING | LOWER_UP;
        self.flags = if up { self.flags | ALL } else { self.flags & !ALL };
        if up && self.is_loopback() && self.addresses.is_empty() {
            self.addresses = Self::loopback().addresses;
        }
    }

    pub fn is_up(&self) -> bool {
        self.flags & UP != 0
    }

    pub fn is_loopback(&self) -> bool {
        self.flags & LOOPBACK != 0
    }
}

/// Where a packet goes out and from which address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    pub interface: u32,
    pub source: IpAddr,
    /// Who takes the packet from the link: its destination or a gateway. `None` where it does not leave this network.
    pub next_hop: Option<IpAddr>,
    pub mtu: u32,
}

/// A route that somebody has set, besides those that addresses make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StaticRoute {
    pub to: IpAddr,
    /// Bits of the network; 0 for the default route.
    pub prefix: u8,
    pub gateway: Option<IpAddr>,
    pub interface: u32,
    /// The lower is taken.
    pub metric: u32,
    /// The address that packets come from.
    pub source: Option<IpAddr>,
    /// `RTPROT_*` and `RT_SCOPE_*`, as shown.
    pub protocol: u8,
    pub scope: u8,
}

impl StaticRoute {
    fn covers(&self, ip: IpAddr) -> bool {
        InterfaceAddress { ip: self.to, prefix: self.prefix, scope: 0 }.covers(ip)
    }
}

/// The interfaces of a network.
#[derive(Debug, Clone)]
pub struct Interfaces {
    list: Vec<Interface>,
    routes: Vec<StaticRoute>,
}

impl Default for Interfaces {
    fn default() -> Self {
        Self { list: vec![Interface::loopback()], routes: Vec::new() }
    }
}

/// A route of the main table, to be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MainRoute<'i> {
    pub to: IpAddr,
    pub prefix: u8,
    pub gateway: Option<IpAddr>,
    pub interface: u32,
    pub name: &'i str,
    pub metric: u32,
    pub source: Option<IpAddr>,
    pub protocol: u8,
    pub scope: u8,
}

/// Routes that one network may have.
const MAX_ROUTES: usize = 4096;

impl Interfaces {
    /// As a network is before anybody has set it up: interfaces down and without addresses.
    pub fn take_down(&mut self) {
        for interface in &mut self.list {
            interface.set_up(false);
            interface.addresses.clear();
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = &Interface> {
        self.list.iter()
    }

    pub fn by_index(&self, index: u32) -> Option<&Interface> {
        self.list.iter().find(|i| i.index == index)
    }

    pub fn by_name(&self, name: &[u8]) -> Option<&Interface> {
        self.list.iter().find(|i| i.name.as_bytes() == name)
    }

    pub fn by_index_mut(&mut self, index: u32) -> Option<&mut Interface> {
        self.list.iter_mut().find(|i| i.index == index)
    }

    /// Adds an interface, which replaces one of its number.
    pub fn add(&mut self, interface: Interface) {
        self.list.retain(|i| i.index != interface.index);
        self.list.push(interface);
        self.list.sort_by_key(|i| i.index);
    }

    /// The routes that somebody has set.
    pub fn routes(&self) -> &[StaticRoute] {
        &self.routes
    }

    /// The main table: the networks of links' addresses, and the routes that somebody has set.
    pub fn main_routes(&self) -> impl Iterator<Item = MainRoute<'_>> {
        let links = || self.list.iter().filter(|i| i.is_up() && !i.is_loopback());
        let connected = links().flat_map(|i| {
            i.addresses.iter().filter(|a| a.prefix < if a.ip.is_ipv4() { 32 } else { 128 }).map(|a| {
                MainRoute {
                    to: a.network(),
                    prefix: a.prefix,
                    gateway: None,
                    interface: i.index,
                    name: &i.name,
                    metric: if a.ip.is_ipv4() { 0 } else { 256 },
                    source: a.ip.is_ipv4().then_some(a.ip),
                    // RTPROT_KERNEL, RT_SCOPE_LINK
                    protocol: 2,
                    scope: if a.ip.is_ipv4() { 253 } else { 0 },
                }
            })
        });
        let set = self.routes.iter().filter_map(|r| {
            let interface = self.by_index(r.interface)?;
            Some(MainRoute {
                to: r.to,
                prefix: r.prefix,
                gateway: r.gateway,
                interface: r.interface,
                name: &interface.name,
                metric: r.metric,
                source: r.source,
                protocol: r.protocol,
                scope: r.scope,
            })
        });
        set.chain(connected)
    }

    /// Sets a route; false where there is one to that network by that metric, or there are too many.
    pub fn add_route(&mut self, route: StaticRoute) -> bool {
        let same = |r: &StaticRoute| (r.to, r.prefix, r.metric) == (route.to, route.prefix, route.metric);
        if self.routes.len() >= MAX_ROUTES || self.routes.iter().any(same) {
            return false;
        }
        self.routes.push(route);
        true
    }

    /// Takes back the first route that `is` the one meant.
    pub fn remove_route(&mut self, is: impl Fn(&StaticRoute) -> bool) -> Option<StaticRoute> {
        let at = self.routes.iter().position(is)?;
        Some(self.routes.remove(at))
    }

    /// Forgets routes that no interface or address carries any more.
    pub fn prune_routes(&mut self) {
        let list = &self.list;
        self.routes.retain(|route| {
            list.iter().any(|i| i.index == route.interface && i.is_up())
                && route
                    .source
                    .is_none_or(|source| list.iter().any(|i| i.addresses.iter().any(|a| a.ip == source)))
        });
    }

    /// Gives an interface an address; false where it has it, or too many.
    pub fn add_address(&mut self, index: u32, address: InterfaceAddress) -> bool {
        match self.by_index_mut(index) {
            Some(i) if i.addresses.len() < MAX_ADDRESSES && !i.addresses.contains(&address) => {
                i.addresses.push(address);
                true
            }
            _ => false,
        }
    }

    /// The interface that has `ip`, which a packet to it therefore never leaves (the local routing table).
    pub fn local(&self, ip: IpAddr) -> Option<&Interface> {
        self.list.iter().filter(|i| i.is_up()).find(|i| {
            i.addresses.iter().any(|a| a.ip == ip || (i.is_loopback() && a.ip.is_ipv4() && a.covers(ip)))
        })
    }

    /// Whether a socket may be bound to `ip`.
    pub fn may_bind(&self, ip: IpAddr) -> bool {
        ip.is_unspecified() || self.local(ip).is_some()
    }

    /// The route to `to`, from `from` if that is set (`ip_route_output_key`). An unspecified address is this host.
    pub fn route(&self, to: IpAddr, from: Option<IpAddr>) -> Result<Route, Error> {
        self.route_by(0, to, from)
    }

    /// The same by the interface `device` alone, where that is not 0 (`flowi_oif`).
    pub fn route_by(&self, device: u32, to: IpAddr, from: Option<IpAddr>) -> Result<Route, Error> {
        let local = self.local(to).filter(|i| device == 0 || device == i.index);
        let Some(interface) = local else { return self.route_out(device, to, from) };
        let primary = interface
            .addresses
            .iter()
            .find(|a| a.ip == to)
            .or_else(|| interface.addresses.iter().find(|a| a.ip.is_ipv4() == to.is_ipv4() && a.covers(to)))
            .ok_or(Error::Unreachable)?;
        Ok(Route {
            interface: interface.index,
            source: from.unwrap_or(if interface.is_loopback() { primary.ip } else { to }),
            next_hop: None,
            mtu: 65_535,
        })
    }

    /// The route over a link: the most special network, then the lowest metric.
    fn route_out(&self, device: u32, to: IpAddr, from: Option<IpAddr>) -> Result<Route, Error> {
        let link_local = matches!(to, IpAddr::V6(ip) if ip.is_unicast_link_local() || ip.is_multicast());
        let mut best: Option<(u8, u32, Route)> = None;
        let mut offer = |prefix: u8, metric: u32, route: Route| {
            if best.is_none_or(|(p, m, _)| prefix > p || prefix == p && metric < m) {
                best = Some((prefix, metric, route));
            }
        };
        let leads = |i: &&Interface| i.is_up() && !i.is_loopback() && (device == 0 || device == i.index);
        for interface in self.list.iter().filter(leads) {
            let (index, mtu) = (interface.index, interface.mtu);
            for address in interface.addresses.iter().filter(|a| a.covers(to)) {
                let everybody = matches!(to, IpAddr::V4(ip) if interface.is_broadcast(ip));
                let hop = if everybody { IpAddr::V4(Ipv4Addr::BROADCAST) } else { to };
                let source = from.unwrap_or(address.ip);
                let route = Route { interface: index, source, next_hop: Some(hop), mtu };
                offer(address.prefix, 0, route);
            }
            let spread = to == IpAddr::V4(Ipv4Addr::BROADCAST) || link_local;
            if spread && let Some(source) = from.or_else(|| interface.source_for(to)) {
                offer(0, u32::MAX - 1, Route { interface: index, source, next_hop: Some(to), mtu });
            }
        }
        for route in self.routes.iter().filter(|r| r.covers(to)) {
            let by_link = device == 0 || device == route.interface;
            let Some(interface) = self.by_index(route.interface).filter(|i| i.is_up() && by_link) else {
                continue;
            };
            let near = route.gateway.unwrap_or(to);
            // IPv4 chooses by who takes the packet, IPv6 by whom it is for.
            let whom = if to.is_ipv4() { near } else { to };
            let source = from.or(route.source).or_else(|| interface.source_for(whom));
            if let Some(source) = source {
                let next_hop = Some(if to.is_multicast() { to } else { near });
                let (index, mtu) = (interface.index, interface.mtu);
                offer(route.prefix, route.metric, Route { interface: index, source, next_hop, mtu });
            }
        }
        let best = best.map(|(_, _, route)| route);
        best.or_else(|| Self::assumed(self.by_index(device).filter(leads)?, to, from))
            .ok_or(Error::Unreachable)
    }

    /// Where no route leads by an interface that was chosen, what IPv4 sends by it all the same: the destination is taken to be
    /// on the link, from no address if the interface has none, as who asks for one has (`ip_route_output_key_hash_rcu`).
    fn assumed(interface: &Interface, to: IpAddr, from: Option<IpAddr>) -> Option<Route> {
        let to_v4 = Some(to).filter(IpAddr::is_ipv4)?;
        let source = from.or_else(|| interface.source_for(to)).unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        Some(Route { interface: interface.index, source, next_hop: Some(to_v4), mtu: interface.mtu })
    }

    /// Whether a packet to `ip` that came in by `interface` is for us: an address of ours, a broadcast or a group.
    pub fn is_for_us(&self, ip: IpAddr, interface: u32) -> bool {
        if ip.is_multicast() || self.local(ip).is_some_and(|i| !i.is_loopback()) {
            return true;
        }
        let IpAddr::V4(ip) = ip else { return false };
        ip.is_broadcast() || self.by_index(interface).is_some_and(|i| i.is_broadcast(ip))
    }

    /// Whether `ip` stands for all stations of a link.
    pub fn is_broadcast(&self, ip: IpAddr) -> bool {
        let IpAddr::V4(ip) = ip else { return false };
        ip.is_broadcast() || self.list.iter().any(|i| i.is_broadcast(ip))
    }
}

impl Interface {
    /// The address that packets to `to` come from (`inet_select_addr`; RFC 6724: the right scope, then the longest common
    /// prefix).
    fn source_for(&self, to: IpAddr) -> Option<IpAddr> {
        let own = || self.addresses.iter().filter(|a| a.ip.is_ipv4() == to.is_ipv4());
        let far = |ip: IpAddr| !matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
        let wanted = far(to) || to.is_multicast();
        if let IpAddr::V6(to) = to {
            let common = |a: &&InterfaceAddress| match a.ip {
                IpAddr::V6(ip) => (ip.to_bits() ^ to.to_bits()).leading_zeros(),
                IpAddr::V4(_) => 0,
            };
            // Of equals the last one is the greatest, and the first one is meant.
            let best = own().rev().filter(|a| far(a.ip) == wanted).max_by_key(common);
            return best.or_else(|| own().next()).map(|a| a.ip);
        }
        own()
            .find(|a| a.covers(to) && far(a.ip) == wanted)
            .or_else(|| own().find(|a| far(a.ip) == wanted))
            .or_else(|| own().next())
            .map(|a| a.ip)
    }

    fn is_broadcast(&self, ip: Ipv4Addr) -> bool {
        self.addresses.iter().any(|a| match a.ip {
            IpAddr::V4(own) if a.prefix < 31 && !self.is_loopback() => {
                own.to_bits() | !a.netmask().to_bits() == ip.to_bits()
            }
            _ => false,
        })
    }
}

/// This host, where `ip` stands for any address (`connect` to `0.0.0.0`).
pub fn or_this_host(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_special_route_is_taken() {
        let ip = |s: &str| s.parse::<IpAddr>().unwrap();
        let mut all = Interfaces::default();
        let mut eth0 = Interface { index: 7, name: "eth0".into(), mtu: 1400, ..Interface::loopback() };
        eth0.flags = UP | BROADCAST | MULTICAST | RUNNING | LOWER_UP;
        eth0.addresses = vec![
            InterfaceAddress { ip: ip("172.17.0.2"), prefix: 16, scope: 0 },
            InterfaceAddress { ip: ip("fd00::2"), prefix: 64, scope: 0 },
            InterfaceAddress { ip: ip("fe80::2"), prefix: 64, scope: 253 },
        ];
        all.add(eth0);
        let default = StaticRoute {
            to: ip("0.0.0.0"),
            prefix: 0,
            gateway: Some(ip("172.17.0.1")),
            interface: 7,
            metric: 0,
            source: None,
            protocol: 3,
            scope: 0,
        };
        assert!(all.add_route(default) && !all.add_route(default));
        let route = |to: &str| all.route(ip(to), None).map(|r| (r.interface, r.source, r.next_hop));
        let (own, near) = (ip("172.17.0.2"), Some(ip("172.17.0.9")));
        assert_eq!(route("172.17.0.9"), Ok((7, own, near)));
        assert_eq!(route("8.8.8.8"), Ok((7, own, Some(ip("172.17.0.1")))));
        assert_eq!(route("172.17.0.2"), Ok((7, own, None)));
        assert_eq!(route("127.0.0.1"), Ok((1, ip("127.0.0.1"), None)));
        assert_eq!(route("fd00::3"), Ok((7, ip("fd00::2"), Some(ip("fd00::3")))));
        assert_eq!(route("fe80::3"), Ok((7, ip("fe80::2"), Some(ip("fe80::3")))));
        assert_eq!(route("fd11::3"), Err(Error::Unreachable));
        assert!(all.is_for_us(ip("172.17.255.255"), 7) && all.is_for_us(own, 7));
        assert!(!all.is_for_us(ip("127.0.0.1"), 7) && !all.is_for_us(ip("172.17.0.9"), 7));
    }

    #[test]
    fn a_device_restricts_the_routes() {
        let ip = |s: &str| s.parse::<IpAddr>().unwrap();
        let link = |index, addresses: &[&str]| Interface {
            index,
            flags: UP | BROADCAST,
            addresses: addresses
                .iter()
                .map(|s| InterfaceAddress { ip: ip(s), prefix: 24, scope: 0 })
                .collect(),
            ..Interface::loopback()
        };
        let mut all = Interfaces::default();
        all.add(link(2, &["10.1.0.1"]));
        all.add(link(3, &["10.2.0.1", "fd02::1"]));
        all.add(link(4, &[]));
        let default = StaticRoute {
            to: ip("0.0.0.0"),
            prefix: 0,
            gateway: Some(ip("10.1.0.9")),
            interface: 2,
            metric: 0,
            source: None,
            protocol: 3,
            scope: 0,
        };
        assert!(all.add_route(default));
        let route = |device, to: &str| {
            all.route_by(device, ip(to), None).map(|r| (r.interface, r.source, r.next_hop))
        };
        assert_eq!(route(0, "9.9.9.9"), Ok((2, ip("10.1.0.1"), Some(ip("10.1.0.9")))));
        assert_eq!(route(2, "10.2.0.7"), Ok((2, ip("10.1.0.1"), Some(ip("10.1.0.9")))));
        // Nothing leads there by this one: it is taken to be on the link.
        assert_eq!(route(3, "9.9.9.9"), Ok((3, ip("10.2.0.1"), Some(ip("9.9.9.9")))));
        assert_eq!(route(4, "255.255.255.255"), Ok((4, ip("0.0.0.0"), Some(ip("255.255.255.255")))));
        assert_eq!(route(2, "fd02::2"), Err(Error::Unreachable));
        assert_eq!(route(3, "fd02::2"), Ok((3, ip("fd02::1"), Some(ip("fd02::2")))));
        // Own addresses are those of their interfaces.
        assert_eq!(route(3, "10.2.0.1"), Ok((3, ip("10.2.0.1"), None)));
        assert_eq!(route(1, "127.0.0.1"), Ok((1, ip("127.0.0.1"), None)));
        assert_eq!(route(1, "9.9.9.9"), Err(Error::Unreachable));
        assert!(route(9, "9.9.9.9").is_err());
    }

    #[test]
    fn only_own_addresses_are_reached() {
        let mut all = Interfaces::default();
        let ip = |s: &str| s.parse::<IpAddr>().unwrap();
        assert_eq!(all.route(ip("127.9.9.9"), None).unwrap().source, ip("127.0.0.1"));
        assert_eq!(all.route(ip("::1"), None).unwrap().source, ip("::1"));
        assert_eq!(all.route(ip("10.1.2.3"), None), Err(Error::Unreachable));
        assert_eq!(all.route(ip("::2"), None), Err(Error::Unreachable));
        let more = InterfaceAddress { ip: ip("10.1.2.3"), prefix: 32, scope: 0 };
        assert!(all.add_address(1, more) && !all.add_address(1, more));
        assert_eq!(all.route(ip("10.1.2.3"), None).unwrap().source, ip("10.1.2.3"));
        all.by_index_mut(1).unwrap().set_up(false);
        assert_eq!(all.route(ip("127.0.0.1"), None), Err(Error::Unreachable));
    }
}
