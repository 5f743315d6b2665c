//! `ss` on local sockets, and netlink messages that are none: sock_diag(7), netlink(7).

use super::netdev::{DUMP, ask, attrs, request, route_socket, u32_at};
use crate::harness::Outcome;
use crate::inet::*;
use crate::sys::{own, socketpair};
use libc::*;
use std::os::fd::{AsRawFd, OwnedFd};

cases![
    local_sockets_are_listed,
    one_local_socket_is_found,
    states_choose_local_sockets,
    local_sockets_that_are_not_there,
    diagnosis_of_bad_lengths,
    route_messages_of_bad_lengths,
    attributes_of_bad_lengths,
    random_messages_do_no_harm,
    a_long_message_is_bounded,
    packet_sockets_need_a_capability,
];

const BY_FAMILY: u16 = 20;

fn diagnosis() -> Result<OwnedFd, String> {
    Ok(own(ok!(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG))))
}

/// `struct unix_diag_req`.
fn wanted(states: u32, inode: u32, show: u32) -> Vec<u8> {
    let mut body = vec![AF_UNIX as u8, 0, 0, 0];
    for word in [states, inode, show, u32::MAX, u32::MAX] {
        body.extend_from_slice(&word.to_ne_bytes());
    }
    body
}

fn inode_of(s: &OwnedFd) -> Result<u32, String> {
    let mut st: stat = unsafe { std::mem::zeroed() };
    ok!(fstat(s.as_raw_fd(), &raw mut st));
    Ok(st.st_ino as u32)
}

/// Type, state, and attributes.
type Found = (u8, u8, Vec<(u16, Vec<u8>)>);

fn found(s: &OwnedFd, states: u32, inode: u32, show: u32) -> Result<Option<Found>, String> {
    let answers = ask(s, &request(BY_FAMILY, DUMP, &wanted(states, 0, show)))?;
    let row = answers.iter().find(|(kind, _, body)| *kind == BY_FAMILY && u32_at(body, 4) == inode);
    Ok(row.map(|(_, _, body)| (body[1], body[2], attrs(body, 16))))
}

fn local_sockets_are_listed() -> Outcome {
    let s = own(ok!(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)));
    let name = b"\0diag-listener";
    let mut at: sockaddr_un = unsafe { std::mem::zeroed() };
    at.sun_family = AF_UNIX as u16;
    for (to, from) in at.sun_path.iter_mut().zip(name) {
        *to = *from as c_char;
    }
    ok!(bind(s.as_raw_fd(), (&raw const at).cast(), 2 + name.len() as u32));
    ok!(listen(s.as_raw_fd(), 7));
    let (a, b) = socketpair(SOCK_SEQPACKET)?;
    let nl = diagnosis()?;
    let (kind, state, all) = found(&nl, u32::MAX, inode_of(&s)?, 1 | 16)?.ok_or("the listener")?;
    same!((i32::from(kind), state), (SOCK_STREAM, 10));
    same!(all.contains(&(0, name.to_vec())), true);
    same!(all.contains(&(4, [0u32.to_ne_bytes(), 7u32.to_ne_bytes()].concat())), true);
    let (kind, state, all) = found(&nl, u32::MAX, inode_of(&a)?, 4)?.ok_or("the pair")?;
    same!((i32::from(kind), state), (SOCK_SEQPACKET, 1));
    same!(all.contains(&(2, inode_of(&b)?.to_ne_bytes().to_vec())), true);
    Ok(())
}

fn one_local_socket_is_found() -> Outcome {
    let (a, _b) = socketpair(SOCK_DGRAM)?;
    let nl = diagnosis()?;
    let answers = ask(&nl, &request(BY_FAMILY, 0, &wanted(0, inode_of(&a)?, 0)))?;
    let (kind, _, body) = answers.first().ok_or("no answer")?;
    same!((*kind, body[0], u32_at(body, 4)), (BY_FAMILY, AF_UNIX as u8, inode_of(&a)?));
    Ok(())
}

fn states_choose_local_sockets() -> Outcome {
    let (a, _b) = socketpair(SOCK_STREAM)?;
    let nl = diagnosis()?;
    same!(found(&nl, 1 << 1, inode_of(&a)?, 0)?.is_some(), true);
    same!(found(&nl, 1 << 10, inode_of(&a)?, 0)?.is_some(), false);
    Ok(())
}

/// The error that answers a message.
fn refused(s: &OwnedFd, message: &[u8]) -> Result<i32, String> {
    let answers = ask(s, message)?;
    let (kind, _, body) = answers.first().ok_or("no answer")?;
    same!(*kind, NLMSG_ERROR as u16);
    Ok(-(u32_at(body, 0).cast_signed()))
}

fn local_sockets_that_are_not_there() -> Outcome {
    let nl = diagnosis()?;
    same!(refused(&nl, &request(BY_FAMILY, 0, &wanted(0, 0x7fff_fff0, 0)))?, ENOENT);
    same!(refused(&nl, &request(BY_FAMILY, 0, &wanted(0, 0, 0)))?, EINVAL);
    Ok(())
}

fn diagnosis_of_bad_lengths() -> Outcome {
    let nl = diagnosis()?;
    same!(refused(&nl, &request(BY_FAMILY, NLM_F_ACK as u16, &[]))?, EINVAL);
    same!(refused(&nl, &request(BY_FAMILY, DUMP, &[AF_UNIX as u8, 0, 0, 0]))?, EINVAL);
    Ok(())
}

fn route_messages_of_bad_lengths() -> Outcome {
    let s = route_socket()?;
    // Shorter than the fixed part of each.
    for kind in [RTM_NEWLINK, RTM_NEWADDR, RTM_NEWROUTE, RTM_DELADDR, RTM_DELROUTE] {
        same!(refused(&s, &request(kind, NLM_F_ACK as u16, &[2, 0]))?, EINVAL);
    }
    Ok(())
}

fn attributes_of_bad_lengths() -> Outcome {
    let s = route_socket()?;
    for len in [0u16, 1, 3, 200, u16::MAX] {
        let mut body = vec![AF_INET as u8, 8, 0, 0, 1, 0, 0, 0];
        body.extend_from_slice(&len.to_ne_bytes());
        body.extend_from_slice(&2u16.to_ne_bytes());
        body.extend_from_slice(&[10, 9]);
        let errno = refused(&s, &request(RTM_NEWADDR, NLM_F_ACK as u16, &body))?;
        same!([EINVAL, EPERM, ERANGE].contains(&errno), true);
    }
    Ok(())
}

fn random_messages_do_no_harm() -> Outcome {
    let bytes = pattern(40_000);
    for s in [route_socket()?, diagnosis()?] {
        for (n, part) in bytes.chunks(40).enumerate() {
            // Only questions: a change could by chance be one that is allowed.
            let kind = [RTM_GETLINK, RTM_GETADDR, RTM_GETROUTE, BY_FAMILY, 999][n % 5];
            let mut message = request(kind, part[0].into(), part);
            let lie = u32::from(part[1]) % 80;
            message[..4].copy_from_slice(&lie.to_ne_bytes());
            unsafe { send(s.as_raw_fd(), message.as_ptr().cast(), message.len(), MSG_DONTWAIT) };
            while unsafe { recv(s.as_raw_fd(), message.as_mut_ptr().cast(), message.len(), MSG_DONTWAIT) } > 0
            {
            }
        }
    }
    // A socket that nobody has spoilt still works.
    let s = route_socket()?;
    let mut body = vec![0u8; 16];
    body[0] = AF_UNSPEC as u8;
    same!(ask(&s, &request(RTM_GETLINK, DUMP, &body))?.is_empty(), false);
    Ok(())
}

fn a_long_message_is_bounded() -> Outcome {
    let s = route_socket()?;
    let message = request(RTM_GETLINK, DUMP, &vec![0; 1 << 20]);
    fails!(EMSGSIZE, send(s.as_raw_fd(), message.as_ptr().cast(), message.len(), 0));
    Ok(())
}

fn packet_sockets_need_a_capability() -> Outcome {
    ok!(setresuid(65_534, 65_534, 65_534));
    let ret = unsafe { socket(AF_PACKET, SOCK_RAW, 0) };
    same!(ret, -1);
    Ok(())
}
