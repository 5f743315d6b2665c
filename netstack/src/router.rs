//! What routers of a link say of themselves and of its networks (RFC 4861, RFC 4862).

use std::net::Ipv6Addr;

use crate::frame::Hardware;
use crate::iface::{InterfaceAddress, Interfaces, StaticRoute};

/// `ND_ROUTER_ADVERT`.
const ADVERTISEMENT: u8 = 134;
/// Bytes before its options.
const HEAD: usize = 16;
const PREFIX: u8 = 3;
const MTU: u8 = 5;
/// The host may make an address of its own of this prefix.
const AUTONOMOUS: u8 = 0x40;
/// `RTPROT_RA`, `IP6_RT_PRIO_USER`.
const BY_ROUTER: u8 = 9;
const METRIC: u32 = 1024;
/// Networks of one advertisement, and addresses of an interface, beyond which nothing is added.
const MAX_PREFIXES: usize = 8;
const MAX_ADDRESSES: usize = 16;
/// `IPV6_MIN_MTU`.
const MIN_MTU: u32 = 1280;

/// One advertisement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advertisement {
    /// Whether it may be asked for what is beyond the link.
    pub is_default: bool,
    /// Networks of which hosts make addresses; 64 bits each.
    pub prefixes: Vec<Ipv6Addr>,
    pub mtu: Option<u32>,
}

impl Advertisement {
    /// Reads an ICMPv6 message that came with 255 hops left from an address of the link.
    pub fn parse(message: &[u8]) -> Option<Self> {
        if message.get(..2)? != [ADVERTISEMENT, 0] {
            return None;
        }
        let is_default = message.get(6..8)? != [0, 0];
        let (mut prefixes, mut mtu) = (Vec::new(), None);
        let mut options = message.get(HEAD..)?;
        while let [kind, units, ..] = *options {
            let len = usize::from(units) * 8;
            // A length of zero makes the message none.
            let option = options.get(..len).filter(|_| len > 0)?;
            match (kind, len) {
                (PREFIX, 32) => {
                    let valid = option.get(4..8)? != [0; 4];
                    let autonomous = option.get(2) == Some(&64) && option.get(3)? & AUTONOMOUS != 0;
                    let network = Ipv6Addr::from(*option.get(16..)?.first_chunk::<16>()?);
                    let usable = !network.is_unicast_link_local() && !network.is_multicast();
                    if valid && autonomous && usable && prefixes.len() < MAX_PREFIXES {
                        prefixes.push(network);
                    }
                }
                (MTU, 8) => mtu = Some(u32::from_be_bytes(*option.get(4..)?.first_chunk()?)),
                _ => {}
            }
            options = options.get(len..)?;
        }
        Some(Self { is_default, prefixes, mtu })
    }

    /// Has an interface follow it, as Linux does one with `accept_ra`; `router` is where it came from. Without their
    /// lifetimes: what was learned stays until the router says that it is none any more.
    pub fn apply(&self, interfaces: &mut Interfaces, index: u32, router: Ipv6Addr) {
        let Some(interface) = interfaces.by_index_mut(index) else { return };
        if let Some(mtu) = self.mtu.filter(|mtu| (MIN_MTU..interface.mtu).contains(mtu)) {
            interface.mtu = mtu;
        }
        let hardware = interface.hardware;
        for network in &self.prefixes {
            let own = InterfaceAddress { ip: address(*network, hardware).into(), prefix: 64, scope: 0 };
            let known = interfaces.by_index(index).is_some_and(|interface| {
                let has = interface.addresses.iter().any(|a| a.ip.is_ipv6() && a.covers(own.ip));
                has || interface.addresses.len() >= MAX_ADDRESSES
            });
            if !known {
                interfaces.add_address(index, own);
            }
        }
        let route = StaticRoute {
            to: Ipv6Addr::UNSPECIFIED.into(),
            prefix: 0,
            gateway: Some(router.into()),
            interface: index,
            metric: METRIC,
            source: None,
            protocol: BY_ROUTER,
            scope: 0,
        };
        let same = |known: &StaticRoute| {
            (known.prefix, known.gateway, known.interface) == (0, route.gateway, index) && known.to.is_ipv6()
        };
        if !self.is_default {
            interfaces.remove_route(|known| same(known) && known.protocol == BY_ROUTER);
        } else if !interfaces.routes().iter().any(same) {
            interfaces.add_route(route);
        }
    }
}

/// The address that a station makes of a network (`addrconf_ifid_eui48`).
fn address(network: Ipv6Addr, hardware: Hardware) -> Ipv6Addr {
    let [a, b, c, d, e, f] = hardware;
    let identifier = u64::from_be_bytes([a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
    Ipv6Addr::from_bits(network.to_bits() & !u128::from(u64::MAX) | u128::from(identifier))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::iface::Interface;

    fn message() -> Vec<u8> {
        let mut message = vec![134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
        message.extend_from_slice(&[5, 1, 0, 0, 0, 0, 5, 0x78]);
        message.extend_from_slice(&[3, 4, 64, 0xc0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0]);
        message.extend_from_slice(&"fd88::".parse::<Ipv6Addr>().unwrap().octets());
        message
    }

    #[test]
    fn a_router_gives_an_address_and_a_way_out() {
        let advertisement = Advertisement::parse(&message()).unwrap();
        let mut all = Interfaces::default();
        let hardware = [2, 0x42, 0xac, 0x11, 0, 2];
        all.add(Interface {
            index: 7,
            name: "eth0".into(),
            mtu: 1500,
            hardware,
            addresses: Vec::new(),
            flags: crate::iface::UP,
            ..Interface::loopback()
        });
        let router: Ipv6Addr = "fe80::1".parse().unwrap();
        for _ in 0..2 {
            advertisement.apply(&mut all, 7, router);
        }
        let own: Ipv6Addr = "fd88::42:acff:fe11:2".parse().unwrap();
        let eth0 = all.by_index(7).unwrap();
        assert_eq!((eth0.mtu, eth0.addresses.len(), eth0.addresses[0].ip), (1400, 1, own.into()));
        let route = all.route("2001:db8::1".parse().unwrap(), None).unwrap();
        assert_eq!((route.source, route.next_hop), (own.into(), Some(router.into())));
        Advertisement { is_default: false, ..advertisement }.apply(&mut all, 7, router);
        assert!(all.route("2001:db8::1".parse().unwrap(), None).is_err());
    }

    #[test]
    fn messages_that_are_cut_are_none() {
        let whole = message();
        for cut in 0..whole.len() {
            if let Some(read) = Advertisement::parse(&whole[..cut]) {
                assert!(read.prefixes.is_empty(), "{cut}");
            }
        }
        let mut endless = whole;
        endless[17] = 0;
        assert_eq!(Advertisement::parse(&endless), None);
    }
}
