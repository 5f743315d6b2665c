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
}

/// The interfaces of a network.
#[derive(Debug, Clone)]
pub struct Interfaces {
    list: Vec<Interface>,
}

impl Default for Interfaces {
    fn default() -> Self {
        Self { list: vec![Interface::loopback()] }
    }
}

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
        let interface = self.local(to).ok_or(Error::Unreachable)?;
        let primary = interface
            .addresses
            .iter()
            .find(|a| a.ip.is_ipv4() == to.is_ipv4() && (a.covers(to) || a.ip == to))
            .ok_or(Error::Unreachable)?;
        Ok(Route { interface: interface.index, source: from.unwrap_or(primary.ip) })
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
