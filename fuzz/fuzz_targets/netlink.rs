//! Netlink messages of an application that may change its network: links, addresses, routes, and questions of `ss`.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use sentry_net::{NetlinkSocket, NetworkNamespace, UnixSocket};
use sentry_vfs::testing::TestCaller;

fuzz_target!(|data: &[u8]| {
    let network = NetworkNamespace::default();
    let caller = TestCaller::new(1);
    let _pair = UnixSocket::pair(&caller, network.unix(), libc::SOCK_STREAM, 0).unwrap();
    let Some((first, rest)) = data.split_first() else { return };
    let protocol = if first & 1 == 0 { libc::NETLINK_ROUTE } else { libc::NETLINK_SOCK_DIAG };
    let socket = NetlinkSocket::new(&caller, &Arc::clone(network.inet()), libc::SOCK_RAW, protocol).unwrap();
    // Each piece of the input is a datagram, after two bytes of its length.
    let mut rest = rest;
    while let [a, b, tail @ ..] = rest {
        let len = usize::from(u16::from_le_bytes([*a, *b]) & 0x7ff).min(tail.len());
        let (piece, tail) = tail.split_at(len);
        rest = tail;
        for answer in socket.ask(&caller, piece) {
            // What goes back says how long it is.
            let said = answer.first_chunk().map_or(0, |b| u32::from_ne_bytes(*b));
            assert!(said >= 16 && said as usize <= answer.len());
        }
    }
});
