//! The groups that sockets have joined, by interface, as `/proc/net/igmp` and `igmp6` tell of them
//! (`igmp_mc_seq_show` of net/ipv4/igmp.c, `igmp6_mc_seq_show` of net/ipv6/mcast.c).

use core::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use sentry_base::{Mutex, lock::rank};

use super::Inet;

/// Group, interface, members; the latest comes last.
#[derive(Debug, Default)]
pub(crate) struct Groups(Mutex<Vec<(IpAddr, u32, u32)>, { rank::LEAF }>);

const LOOPBACK: u32 = 1;
/// Groups whose members nobody outside is told of, and those whose last member is here (`MAF_*`).
const UNREPORTED: u32 = 8;
const LAST_REPORTER: u32 = 4;

impl Groups {
    pub(super) fn join(&self, (ip, interface): (IpAddr, u32)) {
        let mut all = self.0.lock();
        match all.iter_mut().find(|g| (g.0, g.1) == (ip, interface)) {
            Some((.., members)) => *members = members.saturating_add(1),
            None => all.push((ip, interface, 1)),
        }
    }

    pub(super) fn leave(&self, (ip, interface): (IpAddr, u32)) {
        let mut all = self.0.lock();
        let Some(at) = all.iter().position(|g| (g.0, g.1) == (ip, interface)) else { return };
        let Some((.., members)) = all.get_mut(at) else { return };
        *members = members.saturating_sub(1);
        if *members == 0 {
            all.remove(at);
        }
    }

    /// Groups with members on an interface, the latest first.
    fn of(&self, interface: u32, v4: bool) -> Vec<(IpAddr, u32)> {
        let all = self.0.lock();
        let here = all.iter().rev().filter(|(ip, at, _)| *at == interface && ip.is_ipv4() == v4);
        here.map(|(ip, _, members)| (*ip, *members)).collect()
    }
}

/// Name and number of each interface, and the groups that its own IPv6 addresses are in.
fn interfaces(net: &Inet) -> Vec<(String, u32, Vec<IpAddr>)> {
    let all = net.interfaces.lock();
    let each = all.iter().map(|interface| {
        let solicited = interface.addresses.iter().filter_map(|address| match address.ip {
            IpAddr::V6(ip) if interface.index != LOOPBACK => {
                let [.., a, b, c] = ip.octets();
                Some(IpAddr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c]))
            }
            _ => None,
        });
        (interface.name.clone(), interface.index, solicited.collect())
    });
    each.collect()
}

pub(crate) fn igmp(net: &Inet) -> String {
    let mut out = "Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter\n".to_owned();
    for (name, index, _) in interfaces(net) {
        let mut groups = net.groups.of(index, true);
        groups.push((IpAddr::V4(Ipv4Addr::new(224, 0, 0, 1)), 1));
        let _ = writeln!(out, "{index}\t{name:<10}: {:5} {:>7}", groups.len(), "V3");
        for (ip, members) in groups {
            let IpAddr::V4(ip) = ip else { continue };
            let ip = u32::from_ne_bytes(ip.octets());
            let _ = writeln!(out, "\t\t\t\t{ip:08X} {members:5} 0:00000000\t\t0");
        }
    }
    out
}

pub(crate) fn igmp6(net: &Inet) -> String {
    let mut out = String::new();
    for (name, index, solicited) in interfaces(net) {
        let mut groups = net.groups.of(index, false);
        for own in solicited {
            match groups.iter_mut().find(|(ip, _)| *ip == own) {
                Some((_, members)) => *members = members.saturating_add(1),
                None => groups.push((own, 1)),
            }
        }
        // All nodes, of the link and of this one.
        let nodes = [Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1), Ipv6Addr::new(0xff01, 0, 0, 0, 0, 0, 0, 1)];
        groups.extend(nodes.map(|ip| (IpAddr::V6(ip), 1)));
        for (ip, members) in groups {
            let IpAddr::V6(ip) = ip else { continue };
            let hex = ip.octets().map(|byte| format!("{byte:02x}")).concat();
            let flags = match ip {
                ip if ip == nodes[0] => UNREPORTED | LAST_REPORTER,
                ip if index == LOOPBACK || ip.octets()[1] & 0xf < 2 => UNREPORTED,
                _ => LAST_REPORTER,
            };
            let _ = writeln!(out, "{index:<4} {name:<15} {hex} {members:5} {flags:08X} 0");
        }
    }
    out
}
