//! `NETLINK_SOCK_DIAG`: the sockets of the Internet families, for `ss` (`sock_diag(7)`, `net/ipv4/inet_diag.c`).

use abi::net::NlMsgHdr;
use sentry_base::{Errno, Result};

use super::wire::{Message, NLM_F_DUMP, NLM_F_MULTI};
use crate::Inet;
use crate::inet::report::Row;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// Bytes of `struct inet_diag_req_v2`.
const REQUEST: usize = 56;

/// Serves one request: dumps only.
pub(super) fn serve(net: &Inet, header: &NlMsgHdr, body: &[u8], pid: u32) -> Result<Vec<Vec<u8>>> {
    if header.kind != SOCK_DIAG_BY_FAMILY {
        return Err(Errno::EINVAL);
    }
    let [family, protocol, ..] = *body else { return Err(Errno::EINVAL) };
    if header.flags & NLM_F_DUMP != NLM_F_DUMP {
        return Err(Errno::ENOENT);
    }
    let domain = match i32::from(family) {
        libc::AF_INET => crate::Domain::V4,
        libc::AF_INET6 => crate::Domain::V6,
        libc::AF_UNIX | libc::AF_NETLINK | libc::AF_PACKET => return Ok(Vec::new()),
        _ => return Err(Errno::ENOENT),
    };
    if body.len() < REQUEST {
        return Err(Errno::EINVAL);
    }
    let states = body.get(4..8).and_then(<[u8]>::first_chunk).map_or(0, |b| u32::from_ne_bytes(*b));
    let rows = match i32::from(protocol) {
        libc::IPPROTO_TCP => net.tcp_rows(domain),
        libc::IPPROTO_UDP => net.udp_rows(domain),
        _ => Vec::new(),
    };
    let wanted = rows.iter().filter(|row| states & 1_u32.checked_shl(u32::from(row.state)).unwrap_or(0) != 0);
    Ok(wanted.map(|row| describe(row, family, header, pid)).collect())
}

/// `struct inet_diag_msg`.
fn describe(row: &Row, family: u8, header: &NlMsgHdr, pid: u32) -> Vec<u8> {
    let mut fixed = vec![family, row.state, 0, 0];
    fixed.extend_from_slice(&row.local.port().to_be_bytes());
    fixed.extend_from_slice(&row.remote.port().to_be_bytes());
    for at in [row.local, row.remote] {
        let start = fixed.len();
        match at.ip() {
            std::net::IpAddr::V4(ip) if family == 2 => fixed.extend_from_slice(&ip.octets()),
            std::net::IpAddr::V4(ip) => fixed.extend_from_slice(&ip.to_ipv6_mapped().octets()),
            std::net::IpAddr::V6(ip) => fixed.extend_from_slice(&ip.octets()),
        }
        fixed.resize(start + 16, 0);
    }
    // The interface, then a cookie.
    fixed.extend_from_slice(&[0; 4]);
    fixed.extend_from_slice(&row.inode.to_ne_bytes());
    for word in [0, row.receive_queue, row.send_queue, row.uid, u32::try_from(row.inode).unwrap_or(0)] {
        fixed.extend_from_slice(&word.to_ne_bytes());
    }
    let mut message = Message::new(SOCK_DIAG_BY_FAMILY, NLM_F_MULTI, header, pid);
    message.fixed(&fixed);
    // INET_DIAG_SHUTDOWN
    message.attr(8, &[0]);
    message.finish()
}
