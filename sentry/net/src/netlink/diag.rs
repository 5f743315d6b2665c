//! `NETLINK_SOCK_DIAG`: the sockets of the Internet families and of `AF_UNIX`, for `ss` (`sock_diag(7)`,
//! `net/ipv4/inet_diag.c`, `net/unix/diag.c`).

use abi::net::NlMsgHdr;
use sentry_base::{Errno, Result};

use super::wire::{Message, NLM_F_DUMP, NLM_F_MULTI};
use crate::Inet;
use crate::inet::report::Row;
use crate::unix::report::UnixRow;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// Bytes of `struct inet_diag_req_v2`.
const REQUEST: usize = 56;

/// Serves one request: dumps only.
pub(super) fn serve(net: &Inet, header: &NlMsgHdr, body: &[u8], pid: u32) -> Result<Vec<Vec<u8>>> {
    if header.kind != SOCK_DIAG_BY_FAMILY {
        return Err(Errno::EINVAL);
    }
    let [family, protocol, extensions, ..] = *body else { return Err(Errno::EINVAL) };
    if i32::from(family) == libc::AF_UNIX {
        return unix(net, header, body, pid);
    }
    if header.flags & NLM_F_DUMP != NLM_F_DUMP {
        return Err(Errno::ENOENT);
    }
    let domain = match i32::from(family) {
        libc::AF_INET => crate::Domain::V4,
        libc::AF_INET6 => crate::Domain::V6,
        libc::AF_NETLINK | libc::AF_PACKET => return Ok(Vec::new()),
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
    let describe = |row: &Row| {
        let mut message = describe(row, family, header, pid);
        for (kind, name) in [(INFO, libc::TCP_INFO), (CONGESTION, libc::TCP_CONGESTION)] {
            // Each attribute is asked for by a bit, that of the first one the lowest.
            let asked = extensions >> (kind - 1) & 1 != 0 && i32::from(protocol) == libc::IPPROTO_TCP;
            if let Some(value) = asked.then(|| net.tcp_option_of(row.inode, name)).flatten() {
                message.attr(kind, &value);
            }
        }
        message.finish()
    };
    Ok(wanted.map(describe).collect())
}

/// `INET_DIAG_INFO`, `INET_DIAG_CONG`.
const INFO: u16 = 2;
const CONGESTION: u16 = 4;

/// Bytes of `struct unix_diag_req`.
const UNIX_REQUEST: usize = 24;

/// `unix_diag_handler_dump`: all sockets in the states asked for, or the one with an inode number.
fn unix(net: &Inet, header: &NlMsgHdr, body: &[u8], pid: u32) -> Result<Vec<Vec<u8>>> {
    if body.len() < UNIX_REQUEST {
        return Err(Errno::EINVAL);
    }
    let word = |at: usize| {
        let bytes = body.get(at..at + 4).and_then(<[u8]>::first_chunk);
        bytes.map_or(0, |b| u32::from_ne_bytes(*b))
    };
    let (states, inode, show) = (word(4), word(8), word(12));
    let Some(names) = net.unix.get().and_then(std::sync::Weak::upgrade) else { return Ok(Vec::new()) };
    if header.flags & NLM_F_DUMP == NLM_F_DUMP {
        let asked = |row: &UnixRow| states & 1_u32.checked_shl(u32::from(row.state)).unwrap_or(0) != 0;
        let rows = names.rows();
        let wanted = rows.iter().filter(|row| asked(row));
        return Ok(wanted.map(|row| describe_unix(row, show, NLM_F_MULTI, header, pid)).collect());
    }
    if inode == 0 {
        return Err(Errno::EINVAL);
    }
    let row = names.row_of(u64::from(inode)).ok_or(Errno::ENOENT)?;
    let cookie = [word(16), word(20)];
    if cookie != [u32::MAX; 2] && cookie != [inode, 0] {
        return Err(Errno::ESTALE);
    }
    Ok(vec![describe_unix(&row, show, 0, header, pid)])
}

/// `struct unix_diag_msg` and the attributes that `show` names.
fn describe_unix(row: &UnixRow, show: u32, flags: u16, header: &NlMsgHdr, pid: u32) -> Vec<u8> {
    const NAME: u32 = 1;
    const VFS: u32 = 2;
    const PEER: u32 = 4;
    const ICONS: u32 = 8;
    const RQLEN: u32 = 16;
    const MEMINFO: u32 = 32;
    const UID: u32 = 64;
    let short = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    let pair = |a: u32, b: u32| [a.to_ne_bytes(), b.to_ne_bytes()].concat();
    let mut fixed = vec![u8::try_from(libc::AF_UNIX).unwrap_or(1), row.kind, row.state, 0];
    // The inode number, and again as a cookie.
    fixed.extend_from_slice(&short(row.inode).to_ne_bytes());
    fixed.extend_from_slice(&row.inode.to_ne_bytes());
    let mut message = Message::new(SOCK_DIAG_BY_FAMILY, flags, header, pid);
    message.fixed(&fixed);
    if show & NAME != 0 && !row.name.is_empty() {
        message.attr(0, &row.name);
    }
    if let Some((inode, device)) = row.file.filter(|_| show & VFS != 0) {
        message.attr(1, &pair(short(inode), short(device)));
    }
    if let Some(peer) = row.peer.filter(|_| show & PEER != 0) {
        message.u32(2, short(peer));
    }
    if show & ICONS != 0 && row.listens {
        let all: Vec<[u8; 4]> = row.waiting.iter().map(|inode| short(*inode).to_ne_bytes()).collect();
        message.attr(3, all.as_flattened());
    }
    if show & RQLEN != 0 {
        message.attr(4, &pair(row.queues.0, row.queues.1));
    }
    if show & MEMINFO != 0 {
        message.attr(5, &[0; 36]);
    }
    message.attr(6, &[row.shut]);
    if show & UID != 0 {
        message.u32(7, row.uid);
    }
    message.finish()
}

/// `struct inet_diag_msg`.
fn describe(row: &Row, family: u8, header: &NlMsgHdr, pid: u32) -> Message {
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
    message
}
