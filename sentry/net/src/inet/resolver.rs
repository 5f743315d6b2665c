//! The engine's resolver: Docker gives networks of its users a name server at an address of their loopback, whose other
//! side is a socket in the network namespace on the host. Queries of the sandbox pass through a descriptor that is
//! connected to it, each under a number of its own, so that an answer finds its asker. Connections to it are flows over a
//! link that is no interface: at its other end a process of ours connects in their place, to the resolver and nothing else.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use netstack::frame::Hardware;
use netstack::iface::Route;
use sentry_base::{Mutex, Nanos, lock::rank, mono_now};

use super::Inet;
use super::outside::Outside;

/// The number of that link. No interface has it.
pub const LINK: u32 = u32::MAX;
/// The longest packet that it carries, in bytes, and the hardware addresses of its ends.
const MTU: u32 = 32_768;
pub(super) const OUR_STATION: Hardware = [0x52, 0x55, 127, 0, 0, 1];
pub(super) const ITS_STATION: Hardware = [0x52, 0x55, 10, 0, 2, 2];

/// Where the sandbox's programs look for it.
pub(super) const ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 11)), 53);

/// Queries without an answer that are remembered, and for how long, in nanoseconds.
const MAX_PENDING: usize = 1024;
const PATIENCE_NS: Nanos = 15_000_000_000;
/// Bytes of the header of a message (RFC 1035), and of the longest one.
const HEADER: usize = 12;
const MAX_MESSAGE: usize = 65_507;

#[derive(Debug, Clone, Copy)]
struct Asked {
    by: SocketAddr,
    number: [u8; 2],
    at: Nanos,
}

#[derive(Debug, Default)]
pub(crate) struct Resolver {
    pending: Mutex<(u16, HashMap<u16, Asked>), { rank::LEAF }>,
}

impl Resolver {
    /// The query as it is passed on; `None` for what is none, or if too many wait.
    pub(super) fn ask(&self, query: &[u8], by: SocketAddr) -> Option<Vec<u8>> {
        if query.len() < HEADER || query.len() > MAX_MESSAGE {
            return None;
        }
        let now = mono_now();
        let mut pending = self.pending.lock();
        let (next, asked) = &mut *pending;
        if asked.len() >= MAX_PENDING {
            asked.retain(|_, a| now.saturating_sub(a.at) < PATIENCE_NS);
        }
        if asked.len() >= MAX_PENDING {
            return None;
        }
        while asked.contains_key(next) {
            *next = next.wrapping_add(1);
        }
        let mut copy = query.to_vec();
        let number: &mut [u8; 2] = copy.first_chunk_mut()?;
        asked.insert(*next, Asked { by, number: *number, at: now });
        *number = next.to_be_bytes();
        *next = next.wrapping_add(1);
        Some(copy)
    }

    /// Brings an answer to its asker.
    pub(super) fn answered(&self, net: &Inet, answer: &[u8]) {
        let Some(number) = answer.first_chunk::<2>().map(|b| u16::from_be_bytes(*b)) else { return };
        let Some(asked) = self.pending.lock().1.remove(&number) else { return };
        let mut copy = answer.to_vec();
        if let Some(field) = copy.first_chunk_mut() {
            *field = asked.number;
        }
        net.receive_answer(copy, ADDRESS, asked.by);
    }
}

impl Inet {
    /// The way of a connection to the resolver, where connections are passed on.
    pub(super) fn route_to_resolver(&self, to: SocketAddr, from: IpAddr) -> Option<(&Outside, Route)> {
        let outside = self.outside.get().filter(|outside| to == ADDRESS && outside.resolver_stream)?;
        let route = Route { interface: LINK, source: from, next_hop: Some(to.ip()), mtu: MTU };
        Some((outside, route))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_get_numbers_of_their_own() {
        let resolver = Resolver::default();
        let by: SocketAddr = "127.0.0.1:40000".parse().unwrap();
        let query = [7; 20];
        let (a, b) = (resolver.ask(&query, by).unwrap(), resolver.ask(&query, by).unwrap());
        assert_ne!(a[..2], b[..2]);
        assert_eq!(a[2..], query[2..]);
        assert_eq!(resolver.ask(&query[..11], by), None);
        while resolver.ask(&query, by).is_some() {}
        assert_eq!(resolver.pending.lock().1.len(), MAX_PENDING);
    }
}
