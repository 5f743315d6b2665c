//! Interfaces and netlink: netlink(7), rtnetlink(7), netdevice(7), getifaddrs(3), and the files of /proc/net.

use crate::harness::Outcome;
use crate::inet::*;
use crate::sys::{self, own, slurp};
use libc::*;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::null_mut;

cases![
    netlink_socket_arguments,
    netlink_names,
    link_dump_has_the_loopback,
    link_by_index_and_name,
    link_that_is_not_there,
    address_dump_has_the_loopback,
    address_dump_of_one_family,
    route_to_the_loopback,
    unknown_type_is_refused,
    acknowledgement,
    changes_need_a_capability,
    peek_tells_the_length,
    dump_ends_with_done,
    diagnosis_lists_a_listener,
    getifaddrs_has_the_loopback,
    names_and_indices,
    ioctl_flags_and_address,
    ioctl_on_any_socket,
    ioctl_conf,
    ioctl_errors,
    proc_tcp_shows_sockets,
    proc_udp_shows_sockets,
    proc_unix_shows_sockets,
    proc_files_of_the_network,
    sysctls_of_the_network,
    sys_class_net,
];

pub(super) fn route_socket() -> Result<OwnedFd, String> {
    Ok(own(ok!(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE))))
}

pub(super) fn request(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend_from_slice(&((16 + body.len()) as u32).to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(&(flags | NLM_F_REQUEST as u16).to_ne_bytes());
    out.extend_from_slice(&77u32.to_ne_bytes());
    out.extend_from_slice(&0u32.to_ne_bytes());
    out.extend_from_slice(body);
    out
}

pub(super) const DUMP: u16 = NLM_F_DUMP as u16;

pub(super) fn u16_at(b: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([b[at], b[at + 1]])
}

pub(super) fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}

/// The messages of an answer: type, flags, body. A dump ends with its DONE.
pub(super) fn ask(s: &OwnedFd, request: &[u8]) -> Result<Vec<(u16, u16, Vec<u8>)>, String> {
    ok!(send(s.as_raw_fd(), request.as_ptr().cast(), request.len(), 0));
    let mut out = Vec::new();
    loop {
        let got = recv_flags(s, 65_536, 0)?;
        let mut rest = &got[..];
        let mut more = false;
        while rest.len() >= 16 {
            let len = u32_at(rest, 0) as usize;
            let (kind, flags) = (u16_at(rest, 4), u16_at(rest, 6));
            same!(u32_at(rest, 8), 77);
            out.push((kind, flags, rest[16..len].to_vec()));
            more = flags & NLM_F_MULTI as u16 != 0 && kind != NLMSG_DONE as u16;
            rest = &rest[len.next_multiple_of(4).min(rest.len())..];
        }
        if !more {
            return Ok(out);
        }
    }
}

pub(super) fn attrs(body: &[u8], skip: usize) -> Vec<(u16, Vec<u8>)> {
    let mut rest = &body[skip.min(body.len())..];
    let mut out = Vec::new();
    while rest.len() >= 4 {
        let len = u16_at(rest, 0) as usize;
        out.push((u16_at(rest, 2) & 0x3fff, rest[4..len].to_vec()));
        rest = &rest[len.next_multiple_of(4).min(rest.len())..];
    }
    out
}

pub(super) fn attr(body: &[u8], skip: usize, kind: u16) -> Result<Vec<u8>, String> {
    let found = attrs(body, skip).into_iter().find(|(k, _)| *k == kind);
    found.map(|(_, data)| data).ok_or(format!("no attribute {kind}"))
}

fn netlink_socket_arguments() -> Outcome {
    fails!(ESOCKTNOSUPPORT, socket(AF_NETLINK, SOCK_STREAM, NETLINK_ROUTE));
    fails!(EPROTONOSUPPORT, socket(AF_NETLINK, SOCK_RAW, 1000));
    fails!(EPROTONOSUPPORT, socket(AF_NETLINK, SOCK_RAW, -1));
    let s = own(ok!(socket(AF_NETLINK, SOCK_DGRAM, NETLINK_ROUTE)));
    same!(get_int(&s, SOL_SOCKET, SO_TYPE)?, SOCK_DGRAM);
    same!(get_int(&s, SOL_SOCKET, SO_PROTOCOL)?, NETLINK_ROUTE);
    same!(get_int(&s, SOL_SOCKET, SO_DOMAIN)?, AF_NETLINK);
    fails!(EOPNOTSUPP, listen(s.as_raw_fd(), 1));
    fails!(EOPNOTSUPP, accept(s.as_raw_fd(), null_mut(), null_mut()));
    fails!(EOPNOTSUPP, shutdown(s.as_raw_fd(), SHUT_RD));
    fails!(EAGAIN, try_recv(&s, MSG_DONTWAIT));
    Ok(())
}

fn netlink_names() -> Outcome {
    let s = route_socket()?;
    let mut a: sockaddr_nl = unsafe { std::mem::zeroed() };
    a.nl_family = AF_NETLINK as u16;
    fails!(EINVAL, bind(s.as_raw_fd(), (&raw const a).cast(), 8));
    ok!(bind(s.as_raw_fd(), (&raw const a).cast(), 12));
    let mut len = 12;
    ok!(getsockname(s.as_raw_fd(), (&raw mut a).cast(), &raw mut len));
    same!((len, a.nl_pid as i32), (12, unsafe { getpid() }));
    // The process id is taken: the next socket gets another number.
    let t = route_socket()?;
    a.nl_pid = 0;
    ok!(bind(t.as_raw_fd(), (&raw const a).cast(), 12));
    ok!(getsockname(t.as_raw_fd(), (&raw mut a).cast(), &raw mut len));
    want!(a.nl_pid != 0 && a.nl_pid as i32 != unsafe { getpid() }, "port {}", a.nl_pid);
    let u = route_socket()?;
    fails!(EADDRINUSE, bind(u.as_raw_fd(), (&raw const a).cast(), 12));
    Ok(())
}

fn check_loopback(body: &[u8]) -> Outcome {
    same!(u16_at(body, 2), ARPHRD_LOOPBACK);
    same!(u32_at(body, 4), 1);
    let flags = u32_at(body, 8);
    let want = (IFF_UP | IFF_LOOPBACK | IFF_RUNNING | IFF_LOWER_UP) as u32;
    same!(flags & want, want);
    same!(attr(body, 16, IFLA_IFNAME)?, b"lo\0");
    same!(attr(body, 16, IFLA_MTU)?, 65_536u32.to_ne_bytes());
    same!(attr(body, 16, IFLA_ADDRESS)?, [0; 6]);
    same!(attr(body, 16, IFLA_QDISC)?, b"noqueue\0");
    want!(attr(body, 16, IFLA_STATS64)?.len() >= 184, "short statistics");
    Ok(())
}

fn link_dump_has_the_loopback() -> Outcome {
    let s = route_socket()?;
    let answer = ask(&s, &request(RTM_GETLINK, DUMP, &[0; 16]))?;
    let lo = answer.iter().find(|(kind, _, body)| *kind == RTM_NEWLINK && u32_at(body, 4) == 1);
    let (_, flags, body) = lo.ok_or("no loopback in the dump")?;
    same!(*flags & NLM_F_MULTI as u16, NLM_F_MULTI as u16);
    check_loopback(body)?;
    // One byte of a family is enough for a dump (rtgenmsg).
    let answer = ask(&s, &request(RTM_GETLINK, DUMP, &[0, 0, 0, 0]))?;
    want!(answer.iter().any(|(kind, ..)| *kind == RTM_NEWLINK), "no links");
    Ok(())
}

fn link_by_index_and_name() -> Outcome {
    let s = route_socket()?;
    let mut body = vec![0u8; 16];
    body[4] = 1;
    let answer = ask(&s, &request(RTM_GETLINK, 0, &body))?;
    same!((answer.len(), answer[0].0), (1, RTM_NEWLINK));
    check_loopback(&answer[0].2)?;
    let mut body = vec![0u8; 16];
    body.extend_from_slice(&[7, 0, 3, 0, b'l', b'o', 0, 0]);
    let answer = ask(&s, &request(RTM_GETLINK, 0, &body))?;
    same!(answer[0].0, RTM_NEWLINK);
    check_loopback(&answer[0].2)
}

fn error_of(answer: &[(u16, u16, Vec<u8>)]) -> Result<i32, String> {
    same!((answer.len(), answer[0].0), (1, NLMSG_ERROR as u16));
    Ok(-(u32_at(&answer[0].2, 0) as i32))
}

fn link_that_is_not_there() -> Outcome {
    let s = route_socket()?;
    let mut body = vec![0u8; 16];
    body[4..8].copy_from_slice(&9999u32.to_ne_bytes());
    let answer = ask(&s, &request(RTM_GETLINK, 0, &body))?;
    same!(error_of(&answer)?, ENODEV);
    // The request comes back behind the errno.
    same!(answer[0].2.len(), 4 + 32);
    Ok(())
}

fn address_dump_has_the_loopback() -> Outcome {
    let s = route_socket()?;
    let answer = ask(&s, &request(RTM_GETADDR, DUMP, &[0; 8]))?;
    let on_lo: Vec<&Vec<u8>> =
        answer.iter().filter(|(k, _, b)| *k == RTM_NEWADDR && u32_at(b, 4) == 1).map(|(_, _, b)| b).collect();
    let four = on_lo.iter().find(|b| b[0] == AF_INET as u8).ok_or("no IPv4 address")?;
    same!(four[1..4], [8, 0x80, 254]);
    same!(attr(four, 8, IFA_ADDRESS)?, LOCALHOST);
    same!(attr(four, 8, IFA_LOCAL)?, LOCALHOST);
    same!(attr(four, 8, IFA_LABEL)?, b"lo\0");
    if let Some(six) = on_lo.iter().find(|b| b[0] == AF_INET6 as u8) {
        same!(six[1], 128);
        same!(attr(six, 8, IFA_ADDRESS)?, LO6);
    }
    Ok(())
}

fn address_dump_of_one_family() -> Outcome {
    let s = route_socket()?;
    for family in [AF_INET, AF_INET6] {
        let mut body = [0; 8];
        body[0] = family as u8;
        let answer = ask(&s, &request(RTM_GETADDR, DUMP, &body))?;
        let other = answer.iter().any(|(k, _, b)| *k == RTM_NEWADDR && i32::from(b[0]) != family);
        want!(!other, "an address of another family than {family}");
    }
    Ok(())
}

fn route_to_the_loopback() -> Outcome {
    let s = route_socket()?;
    let mut body = vec![AF_INET as u8, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    body.extend_from_slice(&[8, 0, 1, 0, 127, 0, 0, 1]);
    let answer = ask(&s, &request(RTM_GETROUTE, 0, &body))?;
    let (kind, _, route) = &answer[0];
    same!(*kind, RTM_NEWROUTE);
    // Of type local; the table is not told unless asked for.
    same!((route[4], route[7]), (254, 2));
    same!(attr(route, 12, RTA_OIF)?, 1u32.to_ne_bytes());
    same!(attr(route, 12, RTA_PREFSRC)?, LOCALHOST);
    let answer = ask(&s, &request(RTM_GETROUTE, DUMP, &[AF_INET as u8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]))?;
    let local = answer.iter().any(|(k, _, b)| {
        *k == RTM_NEWROUTE && b[1] == 8 && b[4] == 255 && attr(b, 12, RTA_DST) == Ok(vec![127, 0, 0, 0])
    });
    want!(local, "no route to 127.0.0.0/8 in the local table");
    Ok(())
}

fn unknown_type_is_refused() -> Outcome {
    let s = route_socket()?;
    same!(error_of(&ask(&s, &request(3000, 0, &[0; 16]))?)?, EOPNOTSUPP);
    Ok(())
}

fn acknowledgement() -> Outcome {
    let s = route_socket()?;
    // A message for nobody, but to be acknowledged.
    let mut noop = request(1, NLM_F_ACK as u16, &[]);
    noop[4..6].copy_from_slice(&1u16.to_ne_bytes());
    let answer = ask(&s, &noop)?;
    same!(error_of(&answer)?, 0);
    same!(answer[0].2.len(), 4 + 16);
    Ok(())
}

fn changes_need_a_capability() -> Outcome {
    if unsafe { geteuid() } != 0 {
        skip!("not root");
    }
    sys::fork(|| {
        sys::drop_root()?;
        let s = route_socket()?;
        let mut body = vec![AF_INET as u8, 32, 0, 0, 1, 0, 0, 0];
        body.extend_from_slice(&[8, 0, 2, 0, 127, 0, 0, 77]);
        same!(error_of(&ask(&s, &request(RTM_NEWADDR, 0, &body))?)?, EPERM);
        let answer = ask(&s, &request(RTM_GETLINK, DUMP, &[0; 16]))?;
        want!(answer.len() > 1, "no links without privilege");
        Ok(())
    })?
    .ok()
}

fn peek_tells_the_length() -> Outcome {
    let s = route_socket()?;
    let r = request(RTM_GETLINK, DUMP, &[0; 16]);
    ok!(send(s.as_raw_fd(), r.as_ptr().cast(), r.len(), 0));
    let n = ok!(recv(s.as_raw_fd(), null_mut(), 0, MSG_PEEK | MSG_TRUNC));
    want!(n > 500, "the length is {n}");
    let m = recv_message(&s, 20, MSG_PEEK)?;
    same!((m.n, m.flags & MSG_TRUNC, m.name_len), (20, MSG_TRUNC, 12));
    same!(ok!(recv(s.as_raw_fd(), null_mut(), 0, MSG_PEEK | MSG_TRUNC)), n);
    Ok(())
}

fn dump_ends_with_done() -> Outcome {
    let s = route_socket()?;
    for kind in [RTM_GETLINK, RTM_GETADDR, RTM_GETROUTE, RTM_GETNEIGH, RTM_GETRULE] {
        let answer = ask(&s, &request(kind, DUMP, &[0; 16]))?;
        same!(answer.last().map(|(kind, ..)| *kind), Some(NLMSG_DONE as u16));
    }
    fails!(EAGAIN, try_recv(&s, MSG_DONTWAIT));
    Ok(())
}

fn diagnosis_lists_a_listener() -> Outcome {
    let (_server, port) = server(3)?;
    let s = own(ok!(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG)));
    let mut body = vec![0u8; 56];
    body[0] = AF_INET as u8;
    body[1] = IPPROTO_TCP as u8;
    // Listening sockets alone.
    body[4..8].copy_from_slice(&(1u32 << 10).to_ne_bytes());
    let answer = ask(&s, &request(20, DUMP, &body))?;
    if answer[0].0 == NLMSG_ERROR as u16 {
        skip!("no socket diagnosis here");
    }
    let found = answer.iter().find(|(k, _, b)| *k == 20 && b[4..6] == port.to_be_bytes());
    let (_, _, row) = found.ok_or("the listener is not listed")?;
    same!((row[0], row[1]), (AF_INET as u8, 10));
    same!(row[8..12], LOCALHOST);
    Ok(())
}

fn getifaddrs_has_the_loopback() -> Outcome {
    let mut list: *mut ifaddrs = null_mut();
    ok!(getifaddrs(&raw mut list));
    let (mut four, mut packet) = (false, false);
    let mut at = list;
    while !at.is_null() {
        let one = unsafe { *at };
        let name = unsafe { std::ffi::CStr::from_ptr(one.ifa_name) };
        if name == c"lo" && !one.ifa_addr.is_null() {
            let family = i32::from(unsafe { (*one.ifa_addr).sa_family });
            if family == AF_INET {
                let a = unsafe { *one.ifa_addr.cast::<sockaddr_in>() };
                let m = unsafe { *one.ifa_netmask.cast::<sockaddr_in>() };
                same!(a.sin_addr.s_addr.to_ne_bytes(), LOCALHOST);
                same!(m.sin_addr.s_addr.to_ne_bytes(), [255, 0, 0, 0]);
                four = true;
            }
            packet |= family == AF_PACKET;
        }
        at = one.ifa_next;
    }
    unsafe { freeifaddrs(list) };
    same!((four, packet), (true, true));
    Ok(())
}

fn names_and_indices() -> Outcome {
    same!(unsafe { if_nametoindex(c"lo".as_ptr()) }, 1);
    let mut name = [0 as c_char; IF_NAMESIZE];
    want!(!unsafe { if_indextoname(1, name.as_mut_ptr()) }.is_null(), "no name of index 1");
    same!(unsafe { std::ffi::CStr::from_ptr(name.as_ptr()) }, c"lo");
    same!(unsafe { if_nametoindex(c"none9".as_ptr()) }, 0);
    Ok(())
}

#[repr(C)]
struct Request {
    name: [u8; 16],
    value: [u8; 24],
}

fn ifreq_of(name: &str) -> Request {
    let mut r = Request { name: [0; 16], value: [0; 24] };
    r.name[..name.len()].copy_from_slice(name.as_bytes());
    r
}

fn ioctl_flags_and_address() -> Outcome {
    let s = udp()?;
    let fd = s.as_raw_fd();
    let mut r = ifreq_of("lo");
    ok!(ioctl(fd, SIOCGIFFLAGS, &raw mut r));
    let want = (IFF_UP | IFF_LOOPBACK | IFF_RUNNING) as u16;
    same!(u16_at(&r.value, 0) & want, want);
    ok!(ioctl(fd, SIOCGIFADDR, &raw mut r));
    same!((u16_at(&r.value, 0), &r.value[4..8]), (AF_INET as u16, &LOCALHOST[..]));
    ok!(ioctl(fd, SIOCGIFNETMASK, &raw mut r));
    same!(r.value[4..8], [255, 0, 0, 0]);
    ok!(ioctl(fd, SIOCGIFMTU, &raw mut r));
    same!(u32_at(&r.value, 0), 65_536);
    ok!(ioctl(fd, SIOCGIFINDEX, &raw mut r));
    same!(u32_at(&r.value, 0), 1);
    ok!(ioctl(fd, SIOCGIFHWADDR, &raw mut r));
    same!((u16_at(&r.value, 0), &r.value[2..8]), (ARPHRD_LOOPBACK, &[0; 6][..]));
    let mut r = ifreq_of("");
    r.value[0] = 1;
    ok!(ioctl(fd, 0x8910, &raw mut r));
    same!(&r.name[..3], b"lo\0");
    Ok(())
}

fn ioctl_on_any_socket() -> Outcome {
    let (u, _) = sys::socketpair(SOCK_STREAM)?;
    for s in [&u, &tcp()?, &route_socket()?] {
        let mut r = ifreq_of("lo");
        ok!(ioctl(s.as_raw_fd(), SIOCGIFINDEX, &raw mut r));
        same!(u32_at(&r.value, 0), 1);
    }
    Ok(())
}

fn ioctl_conf() -> Outcome {
    let s = udp()?;
    let mut room = vec![0u8; 40 * 32];
    let mut conf = ifconf {
        ifc_len: room.len() as i32,
        ifc_ifcu: __c_anonymous_ifc_ifcu { ifcu_buf: room.as_mut_ptr().cast() },
    };
    ok!(ioctl(s.as_raw_fd(), SIOCGIFCONF, &raw mut conf));
    let n = conf.ifc_len as usize;
    want!(n >= 40 && n.is_multiple_of(40), "{n} bytes");
    let lo = room[..n].chunks(40).find(|r| r.starts_with(b"lo\0")).ok_or("no loopback")?;
    same!(lo[20..24], LOCALHOST);
    conf.ifc_ifcu.ifcu_buf = null_mut();
    ok!(ioctl(s.as_raw_fd(), SIOCGIFCONF, &raw mut conf));
    same!(conf.ifc_len as usize, n);
    Ok(())
}

fn ioctl_errors() -> Outcome {
    let s = udp()?;
    let mut r = ifreq_of("none9");
    fails!(ENODEV, ioctl(s.as_raw_fd(), SIOCGIFFLAGS, &raw mut r));
    fails!(EFAULT, ioctl(s.as_raw_fd(), SIOCGIFFLAGS, null_mut::<u8>()));
    fails!(ENOTTY, ioctl(s.as_raw_fd(), TCGETS, &raw mut r));
    Ok(())
}

fn proc_tcp_shows_sockets() -> Outcome {
    let (s, port) = server(3)?;
    let c = tcp()?;
    ok!(connect4(&c, LOCALHOST, port));
    let text = slurp("/proc/net/tcp")?;
    let head = text.lines().next().unwrap_or_default();
    same!(head.split_whitespace().next(), Some("sl"));
    same!(head.len(), 149);
    let at = format!("0100007F:{port:04X}");
    let listener =
        text.lines().find(|l| l.contains(&format!(" {at} 00000000:0000 0A "))).ok_or("no listener")?;
    let inode = sys::fstat(&s)?.st_ino.to_string();
    same!(listener.split_whitespace().nth(9), Some(inode.as_str()));
    let mine = format!(" 0100007F:{:04X} {at} 01 ", port_of(&c)?);
    want!(text.contains(&mine), "no line with {mine}");
    same!(listener.len(), 149);
    Ok(())
}

fn proc_udp_shows_sockets() -> Outcome {
    let (_a, port, _b, _) = udp_pair()?;
    let text = slurp("/proc/net/udp")?;
    let mine = format!(" 0100007F:{port:04X} 00000000:0000 07 ");
    let line = text.lines().find(|l| l.contains(&mine)).ok_or("the socket is not shown")?;
    same!(line.len(), 127);
    Ok(())
}

fn proc_unix_shows_sockets() -> Outcome {
    let s = own(ok!(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)));
    let mut a: sockaddr_un = unsafe { std::mem::zeroed() };
    a.sun_family = AF_UNIX as u16;
    a.sun_path[0] = b's' as c_char;
    ok!(bind(s.as_raw_fd(), (&raw const a).cast(), 4));
    ok!(listen(s.as_raw_fd(), 1));
    let inode = sys::fstat(&s)?.st_ino.to_string();
    let text = slurp("/proc/net/unix")?;
    let line = text.lines().find(|l| l.split_whitespace().nth(6) == Some(&inode)).ok_or("not shown")?;
    let words: Vec<&str> = line.split_whitespace().collect();
    same!((words[3], words[4], words[5], words[7]), ("00010000", "0001", "01", "s"));
    Ok(())
}

fn proc_files_of_the_network() -> Outcome {
    let dev = slurp("/proc/net/dev")?;
    let lo = dev.lines().find(|l| l.trim_start().starts_with("lo:")).ok_or("no loopback in dev")?;
    same!(lo.split_whitespace().count(), 17);
    for (name, first) in [
        ("route", "Iface"),
        ("arp", "IP address"),
        ("snmp", "Ip: Forwarding"),
        ("netstat", "TcpExt:"),
        ("sockstat", "sockets: used"),
        ("raw", "  sl  local_address"),
        ("packet", "sk "),
        ("netlink", "sk "),
        ("protocols", "protocol"),
    ] {
        let text = slurp(&format!("/proc/net/{name}"))?;
        want!(text.starts_with(first), "{name} starts with {:?}", text.lines().next());
    }
    same!(slurp("/proc/self/net/route")?, slurp("/proc/net/route")?);
    let snmp = slurp("/proc/net/snmp")?;
    for pair in snmp.lines().collect::<Vec<_>>().chunks(2) {
        if pair.iter().all(|l| !l.starts_with("IcmpMsg")) {
            same!(pair[0].split_whitespace().count(), pair[1].split_whitespace().count());
        }
    }
    Ok(())
}

fn sysctls_of_the_network() -> Outcome {
    for (name, want) in [
        ("core/somaxconn", "4096"),
        ("ipv4/ip_local_port_range", "32768\t60999"),
        ("ipv4/ip_default_ttl", "64"),
        ("ipv4/tcp_syn_retries", "6"),
        ("ipv4/tcp_keepalive_time", "7200"),
        ("ipv4/ip_unprivileged_port_start", "1024"),
        ("ipv6/bindv6only", "0"),
    ] {
        let text = slurp(&format!("/proc/sys/net/{name}"))?;
        same!((name, text.trim()), (name, want));
    }
    for name in ["ipv4/tcp_rmem", "ipv4/tcp_wmem"] {
        let text = slurp(&format!("/proc/sys/net/{name}"))?;
        same!(text.split_whitespace().filter(|w| w.parse::<u64>().is_ok()).count(), 3);
    }
    Ok(())
}

fn sys_class_net() -> Outcome {
    for (name, want) in [
        ("ifindex", "1"),
        ("mtu", "65536"),
        ("type", "772"),
        ("address", "00:00:00:00:00:00"),
        ("operstate", "unknown"),
    ] {
        let text = slurp(&format!("/sys/class/net/lo/{name}"))?;
        same!((name, text.trim()), (name, want));
    }
    want!(slurp("/sys/class/net/lo/statistics/rx_bytes")?.trim().parse::<u64>().is_ok(), "no number");
    Ok(())
}
