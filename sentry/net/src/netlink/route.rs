//! `NETLINK_ROUTE`: interfaces, addresses and routes, shown and changed (`rtnetlink(7)`, `net/core/rtnetlink.c`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use abi::net::{IfAddrMsg, IfInfoMsg, NlMsgHdr, RtMsg};
use netstack::iface::{Interface, InterfaceAddress, MainRoute, StaticRoute};
use sentry_base::{Errno, Result};
use sentry_vfs::{Caller, cap};
use zerocopy::{FromBytes, IntoBytes};

use super::link::{self, Refusal, not_here, wanted_link};
use super::wire::{Message, NLM_F_DUMP, NLM_F_MULTI, attributes};
use crate::Inet;

pub(super) const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWNEIGH: u16 = 28;
const RTM_GETNEIGH: u16 = 30;
const RTM_NEWRULE: u16 = 32;
const RTM_GETRULE: u16 = 34;
const RTM_GETQDISC: u16 = 38;
const RTM_GETNEIGHTBL: u16 = 66;
const RTM_GETADDRLABEL: u16 = 74;
const RTM_GETNETCONF: u16 = 82;
/// The largest type that Linux knows.
const RTM_MAX: u16 = 123;

/// Multicast groups, as numbers (`RTNLGRP_*`).
pub(super) const GROUP_LINK: u32 = 1;
pub(super) const GROUP_V4_ADDRESS: u32 = 5;
pub(super) const GROUP_V6_ADDRESS: u32 = 9;
pub(super) const GROUP_V4_ROUTE: u32 = 7;
pub(super) const GROUP_V6_ROUTE: u32 = 11;

const FAMILY_V4: u8 = 2;
const FAMILY_V6: u8 = 10;

const TABLE_MAIN: u8 = 254;
const TABLE_LOCAL: u8 = 255;
/// `RTM_F_LOOKUP_TABLE`: the answer is to name the table in which it was found.
const LOOKUP_TABLE: u32 = 0x1000;
/// `RTPROT_KERNEL`.
const BY_KERNEL: u8 = 2;
const SCOPE_UNIVERSE: u8 = 0;
const SCOPE_LINK: u8 = 253;
const SCOPE_HOST: u8 = 254;
const RTN_UNICAST: u8 = 1;
const RTN_LOCAL: u8 = 2;
const RTN_BROADCAST: u8 = 3;

/// What a request gives: replies, and what to tell listeners of a group.
#[derive(Debug, Default)]
pub(super) struct Answer {
    pub(super) messages: Vec<Vec<u8>>,
    pub(super) told: Vec<(u32, Vec<u8>)>,
}

/// Serves one request.
pub(super) fn serve(
    net: &Inet,
    caller: &dyn Caller,
    header: &NlMsgHdr,
    body: &[u8],
    pid: u32,
) -> Result<Answer, Refusal> {
    if !(RTM_NEWLINK..=RTM_MAX).contains(&header.kind) {
        return Err(Errno::EOPNOTSUPP.into());
    }
    // Of each four types the third is the one that only looks.
    let looks = header.kind % 4 == 2;
    if !looks && !net.allows(caller, cap::NET_ADMIN) {
        return Err(Errno::EPERM.into());
    }
    let family = *body.first().ok_or(Errno::EINVAL)?;
    let dump = header.flags & NLM_F_DUMP == NLM_F_DUMP;
    let reply = Reply { header, pid, flags: if dump { NLM_F_MULTI } else { 0 } };
    let mut answer = Answer::default();
    match header.kind {
        RTM_GETLINK if dump => {
            let interfaces = net.interfaces.lock();
            answer.messages = interfaces.iter().map(|i| reply.link(net, i)).collect();
        }
        RTM_GETLINK => {
            let interfaces = net.interfaces.lock();
            let found = wanted_link(&interfaces, body)?;
            answer.messages.push(reply.link(net, found));
        }
        RTM_GETADDR if dump => {
            for interface in net.interfaces.lock().iter() {
                for address in interface.addresses.iter().filter(|a| of_family(a.ip, family)) {
                    answer.messages.push(reply.address(interface, address, RTM_NEWADDR));
                }
            }
        }
        RTM_GETROUTE if dump => answer.messages = reply.routes(net, family),
        RTM_GETROUTE => answer.messages.push(reply.route_to(net, body)?),
        RTM_GETRULE if dump => answer.messages = reply.rules(family),
        RTM_GETQDISC if dump => answer.messages.push(reply.qdisc()),
        RTM_GETNEIGH if dump => answer.messages = reply.neighbors(net, family),
        RTM_GETNEIGHTBL | RTM_GETADDRLABEL | RTM_GETNETCONF if dump => {}
        RTM_NEWLINK | RTM_SETLINK => link::set(net, body, &reply, &mut answer)?,
        RTM_DELLINK => {
            wanted_link(&net.interfaces.lock(), body)?;
            return Err(not_here("Interfaces of a sandbox cannot be deleted"));
        }
        RTM_NEWADDR => add_address(net, body, &reply, &mut answer)?,
        RTM_DELADDR => delete_address(net, body, &reply, &mut answer)?,
        RTM_NEWROUTE => add_route(net, body, &reply, &mut answer)?,
        RTM_DELROUTE => delete_route(net, body, &reply, &mut answer)?,
        _ => return Err(Errno::EOPNOTSUPP.into()),
    }
    Ok(answer)
}

fn of_family(ip: IpAddr, family: u8) -> bool {
    match family {
        FAMILY_V4 => ip.is_ipv4(),
        FAMILY_V6 => ip.is_ipv6(),
        _ => true,
    }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn parse_ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => bytes.first_chunk::<4>().map(|b| IpAddr::from(*b)),
        16 => bytes.first_chunk::<16>().map(|b| IpAddr::from(*b)),
        _ => None,
    }
}

fn family_of(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { FAMILY_V4 } else { FAMILY_V6 }
}

/// The address, and its interface, that an address request names.
fn wanted_address(body: &[u8]) -> Result<(u32, InterfaceAddress)> {
    let (info, _) = IfAddrMsg::read_from_prefix(body).map_err(|_| Errno::EINVAL)?;
    let attributes = attributes(body, size_of::<IfAddrMsg>());
    let find =
        |wanted: u16| attributes.iter().find(|(kind, _)| *kind == wanted).and_then(|(_, d)| parse_ip(d));
    // IFA_LOCAL, else IFA_ADDRESS.
    let ip = find(2).or_else(|| find(1)).ok_or(Errno::EINVAL)?;
    let most = if ip.is_ipv4() { 32 } else { 128 };
    if info.prefixlen > most || info.family != family_of(ip) {
        return Err(Errno::EINVAL);
    }
    Ok((info.index, InterfaceAddress { ip, prefix: info.prefixlen, scope: info.scope }))
}

fn address_group(ip: IpAddr) -> u32 {
    if ip.is_ipv4() { GROUP_V4_ADDRESS } else { GROUP_V6_ADDRESS }
}

fn add_address(net: &Inet, body: &[u8], reply: &Reply<'_>, answer: &mut Answer) -> Result<()> {
    let (index, address) = wanted_address(body)?;
    let mut interfaces = net.interfaces.lock();
    if interfaces.by_index(index).is_none() {
        return Err(Errno::ENODEV);
    }
    if !interfaces.add_address(index, address) {
        return Err(Errno::EEXIST);
    }
    let interface = interfaces.by_index(index).ok_or(Errno::ENODEV)?;
    answer.told.push((address_group(address.ip), reply.address(interface, &address, RTM_NEWADDR)));
    Ok(())
}

fn delete_address(net: &Inet, body: &[u8], reply: &Reply<'_>, answer: &mut Answer) -> Result<()> {
    let (index, address) = wanted_address(body)?;
    let mut interfaces = net.interfaces.lock();
    let interface = interfaces.by_index_mut(index).ok_or(Errno::ENODEV)?;
    let same = |a: &InterfaceAddress| a.ip == address.ip && a.prefix == address.prefix;
    let at = interface.addresses.iter().position(same).ok_or(Errno::EADDRNOTAVAIL)?;
    let gone = interface.addresses.remove(at);
    answer.told.push((address_group(gone.ip), reply.address(interface, &gone, RTM_DELADDR)));
    Ok(())
}

/// `EOPNOTSUPP` for a route of another table or kind than there are (`rtm_to_fib_config`).
fn check_route(info: &RtMsg, attributes: &[(u16, &[u8])]) -> Result<(), Refusal> {
    /// `RTA_MULTIPATH`, `RTA_VIA`, `RTA_ENCAP`, `RTA_NH_ID`; `RTA_TABLE`.
    const OTHERS: [u16; 4] = [9, 18, 22, 30];
    const TABLE: u16 = 15;
    let table = attributes.iter().find(|(kind, _)| *kind == TABLE).and_then(|(_, d)| d.first_chunk());
    let table = table.map_or(u32::from(info.table), |b| u32::from_ne_bytes(*b));
    if table != 0 && table != u32::from(TABLE_MAIN) {
        return Err(not_here("A sandbox has no routing tables but the main one"));
    }
    if info.kind > RTN_UNICAST || attributes.iter().any(|(kind, _)| OTHERS.contains(kind)) {
        return Err(not_here("A sandbox has no routes of this kind"));
    }
    Ok(())
}

/// The route that a request names.
fn wanted_route(net: &Inet, body: &[u8]) -> Result<StaticRoute, Refusal> {
    let (info, _) = RtMsg::read_from_prefix(body).map_err(|_| Errno::EINVAL)?;
    let attributes = attributes(body, size_of::<RtMsg>());
    let find = |wanted: u16| attributes.iter().find(|(kind, _)| *kind == wanted).map(|(_, data)| *data);
    let ip = |wanted: u16| find(wanted).and_then(parse_ip).filter(|ip| family_of(*ip) == info.family);
    let number = |wanted: u16| find(wanted).and_then(|d| d.first_chunk()).map(|b| u32::from_ne_bytes(*b));
    let nowhere = match info.family {
        FAMILY_V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        FAMILY_V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return Err(Errno::EAFNOSUPPORT.into()),
    };
    check_route(&info, &attributes)?;
    let to = ip(1).unwrap_or(nowhere);
    let most = if to.is_ipv4() { 32 } else { 128 };
    let whole = InterfaceAddress { ip: to, prefix: info.dst_len.min(most), scope: 0 }.network();
    if info.dst_len > most || whole != to {
        return Err(Errno::EINVAL.into());
    }
    let gateway = ip(5);
    let interfaces = net.interfaces.lock();
    let interface = match (number(4), gateway) {
        (Some(index), _) => interfaces.by_index(index).ok_or(Errno::ENODEV)?.index,
        // The gateway's own network says where it is.
        (None, Some(gateway)) => {
            let near = interfaces.route(gateway, None).map_err(|_| Errno::ENETUNREACH)?;
            if near.next_hop != Some(gateway) {
                return Err(Errno::ENETUNREACH.into());
            }
            near.interface
        }
        (None, None) => return Err(Errno::ENODEV.into()),
    };
    let metric = number(6).unwrap_or(if to.is_ipv4() { 0 } else { 1024 });
    let (protocol, scope) = (info.protocol, info.scope);
    Ok(StaticRoute { to, prefix: info.dst_len, gateway, interface, metric, source: ip(7), protocol, scope })
}

fn route_group(ip: IpAddr) -> u32 {
    if ip.is_ipv4() { GROUP_V4_ROUTE } else { GROUP_V6_ROUTE }
}

fn shown(route: &StaticRoute) -> MainRoute<'static> {
    MainRoute {
        to: route.to,
        prefix: route.prefix,
        gateway: route.gateway,
        interface: route.interface,
        name: "",
        metric: route.metric,
        source: route.source,
        protocol: route.protocol,
        scope: route.scope,
    }
}

fn add_route(net: &Inet, body: &[u8], reply: &Reply<'_>, answer: &mut Answer) -> Result<(), Refusal> {
    /// `NLM_F_REPLACE`.
    const REPLACE: u16 = 0x100;
    let route = wanted_route(net, body)?;
    let mut interfaces = net.interfaces.lock();
    if interfaces.by_index(route.interface).is_none_or(|i| !i.is_up()) {
        return Err(Errno::ENETDOWN.into());
    }
    if reply.header.flags & REPLACE != 0 {
        interfaces.remove_route(|r| (r.to, r.prefix) == (route.to, route.prefix));
    }
    if !interfaces.add_route(route) {
        return Err(Errno::EEXIST.into());
    }
    answer.told.push((route_group(route.to), reply.main_route(&shown(&route), RTM_NEWROUTE)));
    Ok(())
}

fn delete_route(net: &Inet, body: &[u8], reply: &Reply<'_>, answer: &mut Answer) -> Result<()> {
    let (info, _) = RtMsg::read_from_prefix(body).map_err(|_| Errno::EINVAL)?;
    let attributes = attributes(body, size_of::<RtMsg>());
    let find = |wanted: u16| attributes.iter().find(|(kind, _)| *kind == wanted).map(|(_, data)| *data);
    let to = find(1).and_then(parse_ip);
    let gateway = find(5).and_then(parse_ip);
    let index = find(4).and_then(|d| d.first_chunk()).map(|b| u32::from_ne_bytes(*b));
    let gone = net.interfaces.lock().remove_route(|r| {
        family_of(r.to) == info.family
            && r.prefix == info.dst_len
            && to.is_none_or(|to| to == r.to)
            && gateway.is_none_or(|gateway| Some(gateway) == r.gateway)
            && index.is_none_or(|index| index == r.interface)
    });
    let gone = gone.ok_or(Errno::ESRCH)?;
    answer.told.push((route_group(gone.to), reply.main_route(&shown(&gone), RTM_DELROUTE)));
    Ok(())
}

/// How replies to one request are headed.
#[derive(Clone, Copy)]
pub(super) struct Reply<'h> {
    pub(super) header: &'h NlMsgHdr,
    pub(super) pid: u32,
    pub(super) flags: u16,
}

impl Reply<'_> {
    fn message(&self, kind: u16) -> Message {
        Message::new(kind, self.flags, self.header, self.pid)
    }

    /// `rtnl_fill_ifinfo`.
    pub(super) fn link(&self, net: &Inet, interface: &Interface) -> Vec<u8> {
        let mut message = self.message(RTM_NEWLINK);
        let info = IfInfoMsg {
            kind: interface.kind,
            index: i32::try_from(interface.index).unwrap_or(0),
            flags: interface.flags,
            ..IfInfoMsg::default()
        };
        let carried = net.carried(interface.index);
        let ((packets, bytes), (sent, sent_bytes)) = (carried.received, carried.sent);
        let is_link = !interface.is_loopback();
        let everybody: [u8; 6] = if is_link { [0xff; 6] } else { [0; 6] };
        // IF_OPER_UP, or unknown.
        let condition = if is_link && interface.is_up() { 6 } else { 0 };
        let mut wide = [0_u64; 25];
        let mut narrow = [0_u32; 24];
        for (at, value) in [(0, packets), (1, sent), (2, bytes), (3, sent_bytes), (6, carried.dropped)] {
            if let (Some(wide), Some(narrow)) = (wide.get_mut(at), narrow.get_mut(at)) {
                *wide = value;
                // The old counters wrap.
                *narrow = u32::try_from(value & u64::from(u32::MAX)).unwrap_or(0);
            }
        }
        message
            .fixed(info.as_bytes())
            .text(3, &interface.name)
            .u32(13, interface.tx_queue_len)
            .attr(16, &[condition]) // IFLA_OPERSTATE
            .attr(17, &[0]) // IFLA_LINKMODE
            .u32(4, interface.mtu)
            .u32(50, 0) // IFLA_MIN_MTU
            .u32(51, 0) // IFLA_MAX_MTU
            .u32(27, 0) // IFLA_GROUP
            .u32(30, 0) // IFLA_PROMISCUITY
            .u32(31, 1) // IFLA_NUM_TX_QUEUES
            .u32(40, 65_535) // IFLA_GSO_MAX_SEGS
            .u32(41, 65_536) // IFLA_GSO_MAX_SIZE
            .u32(32, 1) // IFLA_NUM_RX_QUEUES
            .attr(33, &[1]) // IFLA_CARRIER
            .text(6, "noqueue")
            .u32(35, 0) // IFLA_CARRIER_CHANGES
            .attr(14, &[0; 32]) // IFLA_MAP
            .attr(1, &interface.hardware)
            .attr(2, &everybody)
            .attr(23, wide.as_bytes())
            .attr(7, narrow.as_bytes());
        message.finish()
    }

    /// `inet_fill_ifaddr` and `inet6_fill_ifaddr`.
    fn address(&self, interface: &Interface, address: &InterfaceAddress, kind: u16) -> Vec<u8> {
        /// `IFA_F_PERMANENT`.
        const PERMANENT: u8 = 0x80;
        let mut message = self.message(kind);
        let info = IfAddrMsg {
            family: family_of(address.ip),
            prefixlen: address.prefix,
            flags: PERMANENT,
            scope: address.scope,
            index: interface.index,
        };
        let bytes = octets(address.ip);
        message.fixed(info.as_bytes()).attr(1, &bytes);
        if address.ip.is_ipv4() {
            message.attr(2, &bytes);
            if let (IpAddr::V4(ip), false) = (address.ip, interface.is_loopback() || address.prefix > 30) {
                let all = ip.to_bits() | !address.netmask().to_bits();
                message.attr(4, &all.to_be_bytes());
            }
            message.text(3, &interface.name);
        }
        let forever = [u32::MAX, u32::MAX, 0, 0];
        message.u32(8, u32::from(PERMANENT)).attr(6, forever.as_bytes());
        message.finish()
    }

    /// A route of the main table.
    fn main_route(&self, shown: &MainRoute<'_>, kind: u16) -> Vec<u8> {
        let route = RtMsg {
            family: family_of(shown.to),
            dst_len: shown.prefix,
            table: TABLE_MAIN,
            protocol: shown.protocol,
            scope: shown.scope,
            kind: RTN_UNICAST,
            ..RtMsg::default()
        };
        let mut message = self.message(kind);
        message.fixed(route.as_bytes()).u32(15, u32::from(TABLE_MAIN));
        if shown.prefix > 0 {
            message.attr(1, &octets(shown.to));
        }
        if shown.metric > 0 {
            message.u32(6, shown.metric);
        }
        if let Some(gateway) = shown.gateway {
            message.attr(5, &octets(gateway));
        }
        if let Some(source) = shown.source {
            message.attr(7, &octets(source));
        }
        message.u32(4, shown.interface);
        message.finish()
    }

    fn route(
        &self,
        route: RtMsg,
        to: IpAddr,
        index: u32,
        source: Option<IpAddr>,
        metric: Option<u32>,
    ) -> Vec<u8> {
        let mut message = self.message(RTM_NEWROUTE);
        message.fixed(route.as_bytes()).u32(15, u32::from(route.table));
        if route.dst_len > 0 {
            message.attr(1, &octets(to));
        }
        if let Some(metric) = metric {
            message.u32(6, metric);
        }
        if let Some(source) = source {
            message.attr(7, &octets(source));
        }
        message.u32(4, index);
        if route.family == FAMILY_V6 {
            message.attr(12, &[0; 32]).attr(20, &[0]);
        }
        message.finish()
    }

    /// The routes that interfaces' addresses make.
    fn routes(&self, net: &Inet, family: u8) -> Vec<Vec<u8>> {
        let interfaces = net.interfaces.lock();
        let main = interfaces.main_routes().filter(|r| of_family(r.to, family));
        let mut out: Vec<_> = main.map(|r| self.main_route(&r, RTM_NEWROUTE)).collect();
        for interface in interfaces.iter().filter(|i| i.is_up()) {
            for address in interface.addresses.iter().filter(|a| of_family(a.ip, family)) {
                let base = RtMsg {
                    family: family_of(address.ip),
                    table: TABLE_LOCAL,
                    protocol: BY_KERNEL,
                    scope: SCOPE_HOST,
                    kind: RTN_LOCAL,
                    ..RtMsg::default()
                };
                let index = interface.index;
                match address.ip {
                    IpAddr::V4(ip) => {
                        let mask = address.netmask().to_bits();
                        let network = Ipv4Addr::from_bits(ip.to_bits() & mask);
                        let all = Ipv4Addr::from_bits(ip.to_bits() | !mask);
                        let source = Some(address.ip);
                        let route =
                            |base: RtMsg, to: Ipv4Addr| self.route(base, IpAddr::V4(to), index, source, None);
                        if interface.is_loopback() && address.prefix < 32 {
                            out.push(route(RtMsg { dst_len: address.prefix, ..base }, network));
                        }
                        out.push(route(RtMsg { dst_len: 32, ..base }, ip));
                        if address.prefix < 31 {
                            let base = RtMsg { dst_len: 32, scope: SCOPE_LINK, kind: RTN_BROADCAST, ..base };
                            out.push(route(base, all));
                        }
                    }
                    IpAddr::V6(_) => {
                        let base = RtMsg { dst_len: 128, scope: SCOPE_UNIVERSE, ..base };
                        out.push(self.route(base, address.ip, index, None, Some(0)));
                        if !interface.is_loopback() {
                            continue;
                        }
                        let main =
                            RtMsg { table: TABLE_MAIN, kind: RTN_UNICAST, dst_len: address.prefix, ..base };
                        out.push(self.route(main, address.ip, index, None, Some(256)));
                    }
                }
            }
        }
        out
    }

    /// The route to one address (`inet_rtm_getroute`).
    fn route_to(&self, net: &Inet, body: &[u8]) -> Result<Vec<u8>> {
        let (asked, _) = RtMsg::read_from_prefix(body).map_err(|_| Errno::EINVAL)?;
        let attributes = attributes(body, size_of::<RtMsg>());
        let to = attributes.iter().find(|(kind, _)| *kind == 1).and_then(|(_, data)| parse_ip(data));
        let to = to.unwrap_or(if asked.family == FAMILY_V6 {
            IpAddr::V6(Ipv6Addr::LOCALHOST)
        } else {
            IpAddr::V4(Ipv4Addr::LOCALHOST)
        });
        let route = net.interfaces.lock().route(to, None).map_err(|_| Errno::ENETUNREACH)?;
        if let Some(hop) = route.next_hop {
            let shown = MainRoute {
                to,
                prefix: if to.is_ipv4() { 32 } else { 128 },
                gateway: Some(hop).filter(|hop| *hop != to),
                interface: route.interface,
                name: "",
                metric: 0,
                source: Some(route.source),
                protocol: 0,
                scope: SCOPE_UNIVERSE,
            };
            return Ok(self.main_route(&shown, RTM_NEWROUTE));
        }
        let answer = RtMsg {
            family: family_of(to),
            dst_len: if to.is_ipv4() { 32 } else { 128 },
            table: if asked.flags & LOOKUP_TABLE != 0 { TABLE_LOCAL } else { TABLE_MAIN },
            scope: SCOPE_UNIVERSE,
            kind: RTN_LOCAL,
            // RTM_F_CLONED, and that the route is a local one.
            flags: if to.is_ipv4() { 0x8000_0200 } else { 0 },
            protocol: if to.is_ipv4() { 0 } else { BY_KERNEL },
            ..RtMsg::default()
        };
        let metric = to.is_ipv6().then_some(0);
        Ok(self.route(answer, to, route.interface, Some(route.source), metric))
    }

    /// `neigh_fill_info`.
    fn neighbors(&self, net: &Inet, family: u8) -> Vec<Vec<u8>> {
        /// `NUD_REACHABLE`, `NUD_STALE`.
        const REACHABLE: u16 = 2;
        const STALE: u16 = 4;
        let all = net.neighbors();
        let wanted = all.into_iter().filter(|(_, ip, ..)| of_family(*ip, family));
        let messages = wanted.map(|(index, ip, hardware, fresh)| {
            // struct ndmsg: family, index, state, flags, type RTN_UNICAST.
            let mut fixed = vec![family_of(ip), 0, 0, 0];
            fixed.extend_from_slice(&index.to_ne_bytes());
            fixed.extend_from_slice(&(if fresh { REACHABLE } else { STALE }).to_ne_bytes());
            fixed.extend_from_slice(&[0, RTN_UNICAST]);
            let mut message = self.message(RTM_NEWNEIGH);
            message.fixed(&fixed).attr(1, &octets(ip)).attr(2, &hardware);
            message.finish()
        });
        messages.collect()
    }

    /// The three rules of a fresh network, two for IPv6.
    fn rules(&self, family: u8) -> Vec<Vec<u8>> {
        let mut out = Vec::new();
        for (of, tables) in [
            (FAMILY_V4, &[(255_u8, 0_u32), (254, 32_766), (253, 32_767)][..]),
            (FAMILY_V6, &[(255, 0), (254, 32_766)][..]),
        ] {
            if family != 0 && family != of {
                continue;
            }
            for (table, priority) in tables {
                let mut message = self.message(RTM_NEWRULE);
                // struct fib_rule_hdr: action FR_ACT_TO_TBL.
                message.fixed(&[of, 0, 0, 0, *table, 0, 0, 1, 0, 0, 0, 0]).u32(15, u32::from(*table));
                message.u32(14, u32::MAX);
                if *priority > 0 {
                    message.u32(6, *priority);
                }
                out.push(message.finish());
            }
        }
        out
    }

    fn qdisc(&self) -> Vec<u8> {
        let mut message = self.message(36);
        // struct tcmsg: interface 1, parent the root.
        let mut fixed = [0_u32; 5];
        for (at, value) in [(1, 1), (3, u32::MAX), (4, 2)] {
            if let Some(word) = fixed.get_mut(at) {
                *word = value;
            }
        }
        message.fixed(fixed.as_bytes()).text(1, "noqueue");
        message.finish()
    }
}
