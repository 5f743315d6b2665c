//! Datagrams to groups over the loopback: ip(7), ipv6(7), and `ip_mc_sf_allow` of net/ipv4/igmp.c.

use crate::harness::Outcome;
use crate::inet::*;
use crate::sys;
use libc::*;
use std::ffi::c_void;
use std::os::fd::{AsRawFd, OwnedFd};

cases![
    a_member_hears_the_group,
    nobody_hears_a_group_without_members,
    the_loopback_brings_back_what_need_not_come,
    every_member_hears,
    others_hear_unless_they_say_no,
    a_former_member_hears_nothing,
    another_group_is_not_heard,
    another_port_is_not_heard,
    the_sender_is_the_interface,
    the_group_is_told,
    the_hops_are_those_of_groups,
    a_connected_socket_sends_to_its_group,
    a_group_can_be_bound_to,
    a_membership_without_an_interface_is_refused,
    a_membership_ends_with_its_socket,
    memberships_are_listed,
    memberships_are_limited,
    a_group_is_no_stream,
];

/// A group of this case's own: cases run beside one another, and a member anywhere is heard of by others.
fn group() -> [u8; 4] {
    let [low, high, ..] = unsafe { getpid() }.to_le_bytes();
    [239, 77, high, low]
}

fn other() -> [u8; 4] {
    let [_, _, high, low] = group();
    [239, 79, high, low]
}

fn membership(s: &OwnedFd, group: [u8; 4], join: bool) -> i32 {
    let mreq = ip_mreq {
        imr_multiaddr: in_addr { s_addr: u32::from_ne_bytes(group) },
        imr_interface: in_addr { s_addr: u32::from_ne_bytes(LOCALHOST) },
    };
    let name = if join { IP_ADD_MEMBERSHIP } else { IP_DROP_MEMBERSHIP };
    unsafe { setsockopt(s.as_raw_fd(), IPPROTO_IP, name, (&raw const mreq).cast::<c_void>(), 8) }
}

/// A socket whose datagrams to groups go out by the loopback.
fn sender() -> Result<OwnedFd, String> {
    let s = udp()?;
    ok!(setsockopt(s.as_raw_fd(), IPPROTO_IP, IP_MULTICAST_IF, LOCALHOST.as_ptr().cast(), 4));
    Ok(s)
}

/// A socket at any address, and its port.
fn receiver(port: u16) -> Result<(OwnedFd, u16), String> {
    let s = udp()?;
    ok!(set_int(&s, SOL_SOCKET, SO_REUSEADDR, 1));
    ok!(bind4(&s, [0; 4], port));
    let port = port_of(&s)?;
    Ok((s, port))
}

fn member(port: u16) -> Result<(OwnedFd, u16), String> {
    let (s, port) = receiver(port)?;
    ok!(membership(&s, group(), true));
    Ok((s, port))
}

fn say(s: &OwnedFd, group: [u8; 4], port: u16, what: &[u8]) -> isize {
    let to = v4(group, port);
    unsafe { sendto(s.as_raw_fd(), what.as_ptr().cast(), what.len(), 0, (&raw const to).cast(), 16) }
}

fn hears(s: &OwnedFd, what: &[u8]) -> Outcome {
    same!(poll_for(s.as_raw_fd(), POLLIN, 2000)?, POLLIN);
    same!(recv_flags(s, 99, MSG_DONTWAIT)?, what);
    Ok(())
}

fn hears_nothing(s: &OwnedFd) -> Outcome {
    same!(poll_for(s.as_raw_fd(), POLLIN, 20)?, 0);
    Ok(())
}

fn a_member_hears_the_group() -> Outcome {
    let (s, port) = member(0)?;
    same!(say(&sender()?, group(), port, b"all"), 3);
    hears(&s, b"all")
}

fn nobody_hears_a_group_without_members() -> Outcome {
    let (s, port) = receiver(0)?;
    same!(say(&sender()?, group(), port, b"all"), 3);
    hears_nothing(&s)
}

fn the_loopback_brings_back_what_need_not_come() -> Outcome {
    let (s, port) = member(0)?;
    let from = sender()?;
    ok!(set_int(&from, IPPROTO_IP, IP_MULTICAST_LOOP, 0));
    same!(say(&from, group(), port, b"far"), 3);
    hears(&s, b"far")
}

fn every_member_hears() -> Outcome {
    let (a, port) = member(0)?;
    let (b, _) = member(port)?;
    same!(say(&sender()?, group(), port, b"both"), 4);
    hears(&a, b"both")?;
    hears(&b, b"both")
}

fn others_hear_unless_they_say_no() -> Outcome {
    let (a, port) = member(0)?;
    let (b, _) = receiver(port)?;
    let (c, _) = receiver(port)?;
    ok!(set_int(&c, IPPROTO_IP, 49, 0));
    same!(say(&sender()?, group(), port, b"all"), 3);
    hears(&a, b"all")?;
    hears(&b, b"all")?;
    hears_nothing(&c)
}

fn a_former_member_hears_nothing() -> Outcome {
    let (s, port) = member(0)?;
    ok!(membership(&s, group(), false));
    same!(say(&sender()?, group(), port, b"gone"), 4);
    hears_nothing(&s)
}

fn another_group_is_not_heard() -> Outcome {
    let (s, port) = member(0)?;
    same!(say(&sender()?, other(), port, b"other"), 5);
    hears_nothing(&s)
}

fn another_port_is_not_heard() -> Outcome {
    let (s, port) = member(0)?;
    same!(say(&sender()?, group(), port ^ 1, b"port"), 4);
    hears_nothing(&s)
}

fn the_sender_is_the_interface() -> Outcome {
    let (s, port) = member(0)?;
    let from = sender()?;
    same!(say(&from, group(), port, b"who"), 3);
    same!(poll_for(s.as_raw_fd(), POLLIN, 2000)?, POLLIN);
    let mut at: sockaddr_in = unsafe { std::mem::zeroed() };
    let (mut len, mut data) = (16, [0u8; 9]);
    same!(
        ok!(recvfrom(s.as_raw_fd(), data.as_mut_ptr().cast(), 9, 0, (&raw mut at).cast(), &raw mut len)),
        3
    );
    same!(at.sin_addr.s_addr, u32::from_ne_bytes(LOCALHOST));
    same!(u16::from_be(at.sin_port), port_of(&from)?);
    Ok(())
}

fn the_group_is_told() -> Outcome {
    let (s, port) = member(0)?;
    ok!(set_int(&s, IPPROTO_IP, IP_PKTINFO, 1));
    same!(say(&sender()?, group(), port, b"x"), 1);
    same!(poll_for(s.as_raw_fd(), POLLIN, 2000)?, POLLIN);
    let message = recv_message(&s, 9, 0)?;
    let (_, _, info) =
        message.control.iter().find(|c| (c.0, c.1) == (IPPROTO_IP, IP_PKTINFO)).ok_or("no info")?;
    same!(info[8..12], group());
    same!(info[..4], 1u32.to_ne_bytes());
    Ok(())
}

fn the_hops_are_those_of_groups() -> Outcome {
    let (s, port) = member(0)?;
    ok!(set_int(&s, IPPROTO_IP, IP_RECVTTL, 1));
    let from = sender()?;
    for (ttl, wanted) in [(-1, 1i32), (7, 7)] {
        ok!(set_int(&from, IPPROTO_IP, IP_MULTICAST_TTL, ttl));
        same!(say(&from, group(), port, b"x"), 1);
        same!(poll_for(s.as_raw_fd(), POLLIN, 2000)?, POLLIN);
        let message = recv_message(&s, 9, 0)?;
        let (_, _, got) =
            message.control.iter().find(|c| (c.0, c.1) == (IPPROTO_IP, IP_TTL)).ok_or("no ttl")?;
        same!(got[..4], wanted.to_ne_bytes());
    }
    Ok(())
}

fn a_connected_socket_sends_to_its_group() -> Outcome {
    let (s, port) = member(0)?;
    let from = sender()?;
    ok!(connect4(&from, group(), port));
    same!(name_of(&from, true)?.2, port);
    same!(send_flags(&from, b"tied", 0), 4);
    hears(&s, b"tied")
}

fn a_group_can_be_bound_to() -> Outcome {
    let s = udp()?;
    ok!(bind4(&s, group(), 0));
    let port = port_of(&s)?;
    ok!(membership(&s, group(), true));
    same!(say(&sender()?, group(), port, b"bound"), 5);
    hears(&s, b"bound")?;
    same!(say(&sender()?, LOCALHOST, port, b"alone"), 5);
    hears_nothing(&s)
}

fn a_membership_without_an_interface_is_refused() -> Outcome {
    let s = udp()?;
    let mreq: [u8; 8] = [239, 77, 1, 2, 203, 0, 113, 9];
    fails!(ENODEV, setsockopt(s.as_raw_fd(), IPPROTO_IP, IP_ADD_MEMBERSHIP, mreq.as_ptr().cast(), 8));
    let mreq: [u8; 8] = [127, 0, 0, 1, 127, 0, 0, 1];
    fails!(EINVAL, setsockopt(s.as_raw_fd(), IPPROTO_IP, IP_ADD_MEMBERSHIP, mreq.as_ptr().cast(), 8));
    Ok(())
}

fn a_membership_ends_with_its_socket() -> Outcome {
    let (a, port) = member(0)?;
    let (b, _) = receiver(port)?;
    drop(a);
    same!(say(&sender()?, group(), port, b"late"), 4);
    hears_nothing(&b)
}

/// Lines of `/proc/net/igmp` or `igmp6` on a group, without the number of members.
fn listed(file: &str, group: &str) -> Result<Vec<String>, String> {
    let text = std::fs::read_to_string(format!("/proc/net/{file}")).map_err(|e| format!("{file}: {e}"))?;
    Ok(text.lines().filter(|line| line.contains(group)).map(str::to_owned).collect())
}

fn memberships_are_listed() -> Outcome {
    let name = format!("{:08X}", u32::from_ne_bytes(group()));
    let none: [String; 0] = [];
    same!(listed("igmp", &name)?, none);
    let (a, b) = (udp()?, udp()?);
    same!(membership(&a, group(), true), 0);
    same!(listed("igmp", &name)?, [format!("\t\t\t\t{name}     1 0:00000000\t\t0")]);
    same!(membership(&b, group(), true), 0);
    same!(listed("igmp", &name)?, [format!("\t\t\t\t{name}     2 0:00000000\t\t0")]);
    same!(membership(&a, group(), false), 0);
    drop(b);
    same!(listed("igmp", &name)?, none);

    let [.., high, low] = group();
    let mut mreq: ipv6_mreq = unsafe { std::mem::zeroed() };
    mreq.ipv6mr_multiaddr.s6_addr = [0xff, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x77, 0x77, high, low];
    mreq.ipv6mr_interface = 1;
    let s = sys::own(ok!(socket(AF_INET6, SOCK_DGRAM, 0)));
    ok!(setsockopt(s.as_raw_fd(), IPPROTO_IPV6, IPV6_ADD_MEMBERSHIP, (&raw const mreq).cast(), 20));
    let name = format!("ff01000000000000000000007777{high:02x}{low:02x}");
    same!(listed("igmp6", &name)?, [format!("1    lo              {name}     1 00000008 0")]);
    drop(s);
    same!(listed("igmp6", &name)?, none);
    same!(listed("igmp6", "lo ")?.len() >= 2, true);
    Ok(())
}

fn memberships_are_limited() -> Outcome {
    let s = udp()?;
    for n in 0..20 {
        ok!(membership(&s, [239, 78, 0, n], true));
    }
    fails!(ENOBUFS, membership(&s, [239, 78, 0, 20], true));
    Ok(())
}

fn a_group_is_no_stream() -> Outcome {
    let s = tcp()?;
    fails!(EPROTO, membership(&s, group(), true));
    fails!(ENETUNREACH, connect4(&s, group(), 80));
    Ok(())
}
