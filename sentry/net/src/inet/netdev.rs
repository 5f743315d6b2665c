//! Ioctls about interfaces, which any socket takes (`netdevice(7)`, `net/core/dev_ioctl.c`).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use netstack::iface::{BROADCAST, Interface, UP};
use sentry_base::{Errno, Result};
use sentry_vfs::{Caller, cap};

use super::Inet;
use super::addr::{self, Domain};

const SIOCGIFNAME: u32 = 0x8910;
const SIOCGIFCONF: u32 = 0x8912;
const SIOCGIFFLAGS: u32 = 0x8913;
const SIOCSIFFLAGS: u32 = 0x8914;
const SIOCGIFADDR: u32 = 0x8915;
const SIOCGIFDSTADDR: u32 = 0x8917;
const SIOCGIFBRDADDR: u32 = 0x8919;
const SIOCGIFNETMASK: u32 = 0x891b;
const SIOCGIFMETRIC: u32 = 0x891d;
const SIOCGIFMTU: u32 = 0x8921;
const SIOCGIFHWADDR: u32 = 0x8927;
const SIOCGIFINDEX: u32 = 0x8933;
const SIOCGIFPFLAGS: u32 = 0x8935;
const SIOCGIFTXQLEN: u32 = 0x8942;
const SIOCETHTOOL: u32 = 0x8946;
const SIOCGIFMAP: u32 = 0x8970;
const SIOCGSTAMP: u32 = 0x8906;
const SIOCGSTAMPNS: u32 = 0x8907;

/// Bytes of `struct ifreq` and of its name.
const IFREQ: usize = 40;
const IFNAMSIZ: usize = 16;

/// Flags that `SIOCGIFFLAGS` shows: a signed 16-bit number.
const FLAGS_SHOWN: u32 = 0xffff;

/// Serves an ioctl of the device range; `ENOTTY` for others.
pub(crate) fn ioctl(net: &Inet, caller: &dyn Caller, command: u32, arg: u64) -> Result<i64> {
    match command {
        SIOCGIFCONF => return list(net, caller, arg),
        SIOCGSTAMP | SIOCGSTAMPNS => return Err(Errno::ENOENT),
        0x8910..=0x894a | 0x8970 => {}
        _ => return Err(Errno::ENOTTY),
    }
    let mut request = [0; IFREQ];
    caller.mem().copy_in(arg, &mut request)?;
    let (name, value) = request.split_at_mut(IFNAMSIZ);
    let end = name.iter().position(|b| *b == 0).unwrap_or(IFNAMSIZ - 1);
    let interfaces = net.interfaces.lock();
    if command == SIOCGIFNAME {
        let index = value.first_chunk().map_or(0, |b| u32::from_ne_bytes(*b));
        let found = interfaces.by_index(index).ok_or(Errno::ENODEV)?;
        name.fill(0);
        put(name, found.name.as_bytes());
    } else {
        // What follows a colon names an alias of the device.
        let plain: Vec<u8> = name.iter().copied().take(end).take_while(|b| *b != b':').collect();
        let found = interfaces.by_name(&plain).ok_or(Errno::ENODEV)?;
        if command == SIOCSIFFLAGS {
            if !net.allows(caller, cap::NET_ADMIN) {
                return Err(Errno::EPERM);
            }
            let index = found.index;
            let wanted = value.first_chunk().map_or(0, |b| u32::from(u16::from_ne_bytes(*b)));
            drop(interfaces);
            if let Some(interface) = net.interfaces.lock().by_index_mut(index) {
                interface.set_up(wanted & UP != 0);
            }
            return Ok(0);
        }
        answer(found, command, value)?;
    }
    drop(interfaces);
    caller.mem().copy_out(arg, &request)?;
    Ok(0)
}

fn put(to: &mut [u8], from: &[u8]) {
    if let Some(to) = to.get_mut(..from.len()) {
        to.copy_from_slice(from);
    }
}

fn first_v4(interface: &Interface) -> Option<(Ipv4Addr, Ipv4Addr)> {
    interface.addresses.iter().find_map(|a| match a.ip {
        IpAddr::V4(ip) => Some((ip, a.netmask())),
        IpAddr::V6(_) => None,
    })
}

fn sockaddr(ip: Ipv4Addr) -> Vec<u8> {
    addr::to_bytes(Domain::V4, SocketAddr::new(IpAddr::V4(ip), 0))
}

fn answer(interface: &Interface, command: u32, value: &mut [u8]) -> Result<()> {
    let v4 = || first_v4(interface).ok_or(Errno::EADDRNOTAVAIL);
    match command {
        SIOCGIFFLAGS => {
            let flags = u16::try_from(interface.flags & FLAGS_SHOWN).unwrap_or(0);
            put(value, &flags.to_ne_bytes());
        }
        SIOCGIFADDR | SIOCGIFDSTADDR => put(value, &sockaddr(v4()?.0)),
        SIOCGIFNETMASK => put(value, &sockaddr(v4()?.1)),
        SIOCGIFBRDADDR => {
            let (ip, mask) = v4()?;
            let all = if interface.flags & BROADCAST != 0 { ip.to_bits() | !mask.to_bits() } else { 0 };
            put(value, &sockaddr(Ipv4Addr::from_bits(all)));
        }
        SIOCGIFMTU => put(value, &interface.mtu.to_ne_bytes()),
        SIOCGIFMETRIC | SIOCGIFPFLAGS => put(value, &0_u32.to_ne_bytes()),
        SIOCGIFTXQLEN => put(value, &interface.tx_queue_len.to_ne_bytes()),
        SIOCGIFINDEX => put(value, &interface.index.to_ne_bytes()),
        SIOCGIFHWADDR => {
            put(value, &interface.kind.to_ne_bytes());
            if let Some(rest) = value.get_mut(2..) {
                rest.fill(0);
                put(rest, &interface.hardware);
            }
        }
        SIOCGIFMAP => value.fill(0),
        SIOCETHTOOL => return Err(Errno::EOPNOTSUPP),
        // Settings that no interface here takes.
        _ => return Err(Errno::EOPNOTSUPP),
    }
    Ok(())
}

/// `SIOCGIFCONF`: the IPv4 addresses, one `struct ifreq` each.
fn list(net: &Inet, caller: &dyn Caller, arg: u64) -> Result<i64> {
    let mut head = [0; 16];
    caller.mem().copy_in(arg, &mut head)?;
    let room = head.first_chunk().map_or(0, |b| i32::from_ne_bytes(*b));
    let at = head.get(8..).and_then(<[u8]>::first_chunk).map_or(0, |b| u64::from_ne_bytes(*b));
    let room = usize::try_from(room).map_err(|_| Errno::EINVAL)?;
    let mut out = Vec::new();
    for interface in net.interfaces.lock().iter() {
        for address in &interface.addresses {
            if let IpAddr::V4(ip) = address.ip {
                let mut one = interface.name.as_bytes().to_vec();
                one.resize(IFNAMSIZ, 0);
                one.extend_from_slice(&sockaddr(ip));
                one.resize(IFREQ, 0);
                out.extend_from_slice(&one);
            }
        }
    }
    // Without a buffer the question is how large it has to be.
    if at != 0 {
        out.truncate(room / IFREQ * IFREQ);
        caller.mem().copy_out(at, &out)?;
    }
    let len = i32::try_from(out.len()).unwrap_or(i32::MAX);
    caller.mem().copy_out(arg, &len.to_ne_bytes())?;
    Ok(0)
}
