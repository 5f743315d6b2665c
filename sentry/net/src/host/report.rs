//! The sockets of the host's network as rows for `/proc/net` and socket diagnosis: the host's own lists, in which the
//! sandbox' sockets have the sandbox' numbers and the others none.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Weak};

use netstack::stream::TcpState;

use super::{HostNet, HostSocket};
use crate::Inet;
use crate::inet::addr::Domain;
use crate::inet::report::Row;

/// Whom sockets belong to that are not the sandbox's: nobody.
const OTHERS: u32 = 65_534;

/// An address as the kernel prints it: words of the machine's order, a colon, a port.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| Some(u32::from_str_radix(ip.get(at * 8..at * 8 + 8)?, 16).ok()?.to_ne_bytes());
    let ip = match ip.len() {
        8 => IpAddr::from(word(0)?),
        32 => {
            let words = [word(0)?, word(1)?, word(2)?, word(3)?];
            IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(words.concat()).ok()?))
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// A line of one of the lists, with the host's inode number.
fn row(line: &str) -> Option<Row> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let &[_, local, remote, state, queues, _, _, _, _, inode, ..] = words.as_slice() else { return None };
    let (sent, received) = queues.split_once(':')?;
    let hex = |text: &str| u32::from_str_radix(text, 16).ok();
    Some(Row {
        local: address(local)?,
        remote: address(remote)?,
        state: u8::from_str_radix(state, 16).ok()?,
        receive_queue: hex(received)?,
        send_queue: hex(sent)?,
        uid: OTHERS,
        inode: inode.parse().ok()?,
        drops: 0,
    })
}

/// The sockets of a family and a protocol, listeners first.
pub(crate) fn rows(net: &Inet, host: &dyn HostNet, domain: Domain, protocol: i32) -> Vec<Row> {
    let all: Vec<Arc<HostSocket>> = net.host_sockets.lock().values().filter_map(Weak::upgrade).collect();
    let own: HashMap<u64, (u64, u32)> =
        all.iter().map(|socket| (socket.end.inode(), (socket.attr.ino, socket.attr.uid))).collect();
    let number = u8::from(domain == Domain::V6) + if protocol == libc::IPPROTO_TCP { 0 } else { 2 };
    let mut rows: Vec<Row> = host.table(number).lines().skip(1).filter_map(row).collect();
    for row in &mut rows {
        match own.get(&row.inode) {
            Some((inode, uid)) => (row.inode, row.uid) = (*inode, *uid),
            None => row.inode = 0,
        }
    }
    rows.sort_by_key(|row| (row.state != TcpState::Listen as u8, row.inode));
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_host_are_read() {
        let line = "   1: 0100007F:1F90 00000000:0000 0A 00000000:00000003 00:00000000 00000000  1000        0 4711 1 x";
        let got = row(line).unwrap();
        assert_eq!((got.local, got.state), ("127.0.0.1:8080".parse().unwrap(), TcpState::Listen as u8));
        assert_eq!((got.receive_queue, got.inode, got.uid), (3, 4711, OTHERS));
        let six = address("00000000000000000000000001000000:0050").unwrap();
        assert_eq!(six, "[::1]:80".parse().unwrap());
        for wrong in ["", "  sl  local_address", "1: 0100007F 0:0 0A 0:0 0 0 0 0 1", "1: 0100007F:1F90"] {
            assert!(row(wrong).is_none(), "{wrong:?}");
        }
    }
}
