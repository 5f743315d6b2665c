//! Changes of a network by route messages and ioctls, in a network namespace of the case's own: rtnetlink(7), ip-route(8).

use super::netdev::{DUMP, ask, attr, attrs, request, route_socket};
use crate::harness::Outcome;
use crate::inet::*;
use libc::*;
use std::os::fd::{AsRawFd, OwnedFd};

cases![
    a_new_network_has_its_loopback_down,
    the_loopback_goes_up,
    the_loopback_goes_up_by_ioctl,
    an_address_is_added,
    an_address_twice_is_refused,
    an_address_is_deleted,
    an_address_of_no_interface_is_refused,
    a_prefix_that_is_too_long_is_refused,
    the_mtu_is_set,
    an_interface_of_no_known_kind_is_refused_in_words,
    the_loopback_stays,
    a_route_is_added,
    a_route_twice_is_refused,
    a_route_is_deleted,
    a_route_that_is_not_there,
    a_route_to_no_interface_is_refused,
    a_route_of_a_crooked_network_is_refused,
    listeners_hear_of_an_address,
    listeners_hear_of_a_route,
    two_networks_have_the_same_ports,
];

const ACK: u16 = NLM_F_ACK as u16;
const CREATE: u16 = (NLM_F_CREATE | NLM_F_EXCL) as u16;

/// Goes into a network of its own, with a socket to change it.
fn fresh() -> Result<OwnedFd, String> {
    if unsafe { unshare(CLONE_NEWNET) } != 0 {
        // Without the right to it, by way of a user namespace.
        ok!(unshare(CLONE_NEWUSER | CLONE_NEWNET));
    }
    route_socket()
}

/// The errno of a change, 0 for success.
fn change(s: &OwnedFd, kind: u16, flags: u16, body: &[u8]) -> Result<i32, String> {
    let answers = ask(s, &request(kind, flags | ACK, body))?;
    let (kind, _, body) = answers.first().ok_or("no answer")?;
    same!(*kind, NLMSG_ERROR as u16);
    Ok(-i32::from_ne_bytes(body[..4].try_into().unwrap()))
}

fn with(mut body: Vec<u8>, attributes: &[(u16, &[u8])]) -> Vec<u8> {
    for (kind, data) in attributes {
        body.extend_from_slice(&(4 + data.len() as u16).to_ne_bytes());
        body.extend_from_slice(&kind.to_ne_bytes());
        body.extend_from_slice(data);
        body.resize(body.len().next_multiple_of(4), 0);
    }
    body
}

/// `struct ifinfomsg` for the loopback.
fn link(flags: u32, change: u32) -> Vec<u8> {
    let mut body = vec![0; 4];
    body.extend_from_slice(&1i32.to_ne_bytes());
    body.extend_from_slice(&flags.to_ne_bytes());
    body.extend_from_slice(&change.to_ne_bytes());
    body
}

fn up(s: &OwnedFd) -> Outcome {
    same!(change(s, RTM_NEWLINK, 0, &link(IFF_UP as u32, IFF_UP as u32))?, 0);
    Ok(())
}

/// `struct ifaddrmsg` with the address as local one.
fn address(ip: [u8; 4], prefix: u8, index: u32) -> Vec<u8> {
    let mut body = vec![AF_INET as u8, prefix, 0, 0];
    body.extend_from_slice(&index.to_ne_bytes());
    with(body, &[(2, &ip), (1, &ip)])
}

/// `struct rtmsg` of the main table, by the loopback unless another number is given.
fn route(to: [u8; 4], prefix: u8, index: u32) -> Vec<u8> {
    let body = vec![AF_INET as u8, prefix, 0, 0, 254, 4, 253, 1, 0, 0, 0, 0];
    with(body, &[(1, &to), (4, &index.to_ne_bytes())])
}

fn has_route(s: &OwnedFd, to: [u8; 4], prefix: u8) -> Result<bool, String> {
    let mut body = vec![0u8; 12];
    body[0] = AF_INET as u8;
    let dump = ask(s, &request(RTM_GETROUTE, DUMP, &body))?;
    Ok(dump.iter().any(|(kind, _, body)| {
        *kind == RTM_NEWROUTE && body[1] == prefix && body[4] == 254 && attr(body, 12, 1) == Ok(to.to_vec())
    }))
}

fn has_address(s: &OwnedFd, ip: [u8; 4]) -> Result<bool, String> {
    let mut body = vec![0u8; 8];
    body[0] = AF_INET as u8;
    let dump = ask(s, &request(RTM_GETADDR, DUMP, &body))?;
    Ok(dump.iter().any(|(_, _, body)| attrs(body, 8).contains(&(2, ip.to_vec()))))
}

/// `struct ifinfomsg` for no interface yet, with a name.
fn named(name: &[u8]) -> Vec<u8> {
    with(vec![0; 16], &[(IFLA_IFNAME, name)])
}

fn an_interface_of_no_known_kind_is_refused_in_words() -> Outcome {
    const EXT_ACK: i32 = 11;
    const CAP_ACK: i32 = 10;
    let s = fresh()?;
    for option in [EXT_ACK, CAP_ACK] {
        ok!(set_int(&s, SOL_NETLINK, option, 1));
    }
    // IFLA_LINKINFO with IFLA_INFO_KIND.
    let kind = with(Vec::new(), &[(1, b"nosuchkind\0")]);
    let body = with(named(b"new0\0"), &[(18, &kind)]);
    let answers = ask(&s, &request(RTM_NEWLINK, CREATE | ACK, &body))?;
    let (_, flags, body) = answers.first().ok_or("no answer")?;
    same!(-i32::from_ne_bytes(body[..4].try_into().unwrap()), EOPNOTSUPP);
    // NLM_F_CAPPED and NLM_F_ACK_TLVS; behind the errno and the request's header the sentence.
    same!(*flags & 0x300, 0x300);
    same!(attr(body, 20, 1)?, b"Unknown device type\0");
    same!(change(&s, RTM_NEWLINK, 0, &named(b"new0\0"))?, ENODEV);
    // What `ip` asks to learn whether it can ask.
    same!(change(&s, RTM_NEWLINK, 0, &[0; 16])?, ENODEV);
    same!(change(&s, RTM_NEWLINK, CREATE, &named(b"lo\0"))?, EEXIST);
    Ok(())
}

fn the_loopback_stays() -> Outcome {
    let s = fresh()?;
    same!(change(&s, RTM_DELLINK, 0, &link(0, 0))?, EOPNOTSUPP);
    let mut none = link(0, 0);
    none[4..8].copy_from_slice(&9999i32.to_ne_bytes());
    same!(change(&s, RTM_DELLINK, 0, &none)?, ENODEV);
    same!(change(&s, RTM_SETLINK, 0, &none)?, ENODEV);
    Ok(())
}

fn a_new_network_has_its_loopback_down() -> Outcome {
    let s = fresh()?;
    want!(!has_address(&s, LOCALHOST)?, "an address");
    let t = tcp()?;
    fails!(ENETUNREACH, connect4(&t, LOCALHOST, 9));
    Ok(())
}

fn the_loopback_goes_up() -> Outcome {
    let s = fresh()?;
    up(&s)?;
    want!(has_address(&s, LOCALHOST)?, "no address");
    fails!(ECONNREFUSED, connect4(&tcp()?, LOCALHOST, 9));
    pair().map(drop)
}

fn the_loopback_goes_up_by_ioctl() -> Outcome {
    let s = fresh()?;
    let mut ifr: ifreq = unsafe { std::mem::zeroed() };
    ifr.ifr_name[..2].copy_from_slice(&[b'l' as i8, b'o' as i8]);
    ifr.ifr_ifru.ifru_flags = IFF_UP as i16;
    ok!(ioctl(s.as_raw_fd(), SIOCSIFFLAGS as _, &raw mut ifr));
    want!(has_address(&s, LOCALHOST)?, "no address");
    Ok(())
}

fn an_address_is_added() -> Outcome {
    let s = fresh()?;
    up(&s)?;
    let t = tcp()?;
    fails!(EADDRNOTAVAIL, bind4(&t, [10, 9, 8, 7], 0));
    same!(change(&s, RTM_NEWADDR, CREATE, &address([10, 9, 8, 7], 24, 1))?, 0);
    want!(has_address(&s, [10, 9, 8, 7])?, "not there");
    ok!(bind4(&t, [10, 9, 8, 7], 0));
    ok!(listen(t.as_raw_fd(), 1));
    ok!(connect4(&tcp()?, [10, 9, 8, 7], port_of(&t)?));
    Ok(())
}

fn an_address_twice_is_refused() -> Outcome {
    let s = fresh()?;
    same!(change(&s, RTM_NEWADDR, CREATE, &address([10, 9, 8, 7], 24, 1))?, 0);
    same!(change(&s, RTM_NEWADDR, CREATE, &address([10, 9, 8, 7], 24, 1))?, EEXIST);
    Ok(())
}

fn an_address_is_deleted() -> Outcome {
    let s = fresh()?;
    up(&s)?;
    same!(change(&s, RTM_NEWADDR, CREATE, &address([10, 9, 8, 7], 24, 1))?, 0);
    same!(change(&s, RTM_DELADDR, 0, &address([10, 9, 8, 7], 24, 1))?, 0);
    want!(!has_address(&s, [10, 9, 8, 7])?, "still there");
    fails!(EADDRNOTAVAIL, bind4(&tcp()?, [10, 9, 8, 7], 0));
    same!(change(&s, RTM_DELADDR, 0, &address([10, 9, 8, 7], 24, 1))?, EADDRNOTAVAIL);
    Ok(())
}

fn an_address_of_no_interface_is_refused() -> Outcome {
    let s = fresh()?;
    same!(change(&s, RTM_NEWADDR, CREATE, &address([10, 9, 8, 7], 24, 99))?, ENODEV);
    Ok(())
}

fn a_prefix_that_is_too_long_is_refused() -> Outcome {
    let s = fresh()?;
    same!(change(&s, RTM_NEWADDR, CREATE, &address([10, 9, 8, 7], 33, 1))?, EINVAL);
    Ok(())
}

fn the_mtu_is_set() -> Outcome {
    let s = fresh()?;
    same!(change(&s, RTM_SETLINK, 0, &with(link(0, 0), &[(4, &1400u32.to_ne_bytes())]))?, 0);
    let answers = ask(&s, &request(RTM_GETLINK, 0, &link(0, 0)))?;
    same!(attr(&answers[0].2, 16, 4)?, 1400u32.to_ne_bytes().to_vec());
    Ok(())
}

fn a_route_is_added() -> Outcome {
    let s = fresh()?;
    up(&s)?;
    want!(!has_route(&s, [10, 20, 0, 0], 16)?, "there before");
    same!(change(&s, RTM_NEWROUTE, CREATE, &route([10, 20, 0, 0], 16, 1))?, 0);
    want!(has_route(&s, [10, 20, 0, 0], 16)?, "not there");
    Ok(())
}

fn a_route_twice_is_refused() -> Outcome {
    let s = fresh()?;
    up(&s)?;
    same!(change(&s, RTM_NEWROUTE, CREATE, &route([10, 20, 0, 0], 16, 1))?, 0);
    same!(change(&s, RTM_NEWROUTE, CREATE, &route([10, 20, 0, 0], 16, 1))?, EEXIST);
    same!(change(&s, RTM_NEWROUTE, CREATE, &route([10, 20, 0, 0], 17, 1))?, 0);
    Ok(())
}

fn a_route_is_deleted() -> Outcome {
    let s = fresh()?;
    up(&s)?;
    same!(change(&s, RTM_NEWROUTE, CREATE, &route([10, 20, 0, 0], 16, 1))?, 0);
    same!(change(&s, RTM_DELROUTE, 0, &route([10, 20, 0, 0], 16, 1))?, 0);
    want!(!has_route(&s, [10, 20, 0, 0], 16)?, "still there");
    Ok(())
}

fn a_route_that_is_not_there() -> Outcome {
    let s = fresh()?;
    up(&s)?;
    same!(change(&s, RTM_DELROUTE, 0, &route([10, 20, 0, 0], 16, 1))?, ESRCH);
    Ok(())
}

fn a_route_to_no_interface_is_refused() -> Outcome {
    let s = fresh()?;
    up(&s)?;
    same!(change(&s, RTM_NEWROUTE, CREATE, &route([10, 20, 0, 0], 16, 99))?, ENODEV);
    Ok(())
}

fn a_route_of_a_crooked_network_is_refused() -> Outcome {
    let s = fresh()?;
    up(&s)?;
    same!(change(&s, RTM_NEWROUTE, CREATE, &route([10, 20, 1, 0], 16, 1))?, EINVAL);
    same!(change(&s, RTM_NEWROUTE, CREATE, &route([10, 20, 0, 0], 33, 1))?, EINVAL);
    Ok(())
}

/// A socket that hears of a group.
fn listener(group: u32) -> Result<OwnedFd, String> {
    let s = route_socket()?;
    let mut at: sockaddr_nl = unsafe { std::mem::zeroed() };
    at.nl_family = AF_NETLINK as u16;
    at.nl_groups = 1 << (group - 1);
    ok!(bind(s.as_raw_fd(), (&raw const at).cast(), 12));
    Ok(s)
}

fn told(s: &OwnedFd) -> Result<u16, String> {
    same!(poll_for(s.as_raw_fd(), POLLIN, 2000)?, POLLIN);
    let got = recv_flags(s, 8192, MSG_DONTWAIT)?;
    Ok(u16::from_ne_bytes([got[4], got[5]]))
}

fn listeners_hear_of_an_address() -> Outcome {
    let s = fresh()?;
    let ear = listener(5)?;
    same!(change(&s, RTM_NEWADDR, CREATE, &address([10, 9, 8, 7], 32, 1))?, 0);
    same!(told(&ear)?, RTM_NEWADDR);
    same!(change(&s, RTM_DELADDR, 0, &address([10, 9, 8, 7], 32, 1))?, 0);
    same!(told(&ear)?, RTM_DELADDR);
    Ok(())
}

fn listeners_hear_of_a_route() -> Outcome {
    let s = fresh()?;
    up(&s)?;
    let ear = listener(7)?;
    same!(change(&s, RTM_NEWROUTE, CREATE, &route([10, 20, 0, 0], 16, 1))?, 0);
    same!(told(&ear)?, RTM_NEWROUTE);
    same!(change(&s, RTM_DELROUTE, 0, &route([10, 20, 0, 0], 16, 1))?, 0);
    same!(told(&ear)?, RTM_DELROUTE);
    Ok(())
}

fn two_networks_have_the_same_ports() -> Outcome {
    let (outer, port) = server(1)?;
    let s = fresh()?;
    up(&s)?;
    let inner = tcp()?;
    ok!(bind4(&inner, LOCALHOST, port));
    ok!(listen(inner.as_raw_fd(), 1));
    ok!(connect4(&tcp()?, LOCALHOST, port));
    same!(poll_now(outer.as_raw_fd(), POLLIN)?, 0);
    same!(poll_for(inner.as_raw_fd(), POLLIN, 1000)?, POLLIN);
    Ok(())
}
