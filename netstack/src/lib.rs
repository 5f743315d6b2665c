//! The network of a sandbox: transport protocols, ports, interfaces, routes and packets, as plain values.
//!
//! **What it is for.** Everything about the Internet protocols that needs no knowledge of tasks, files or waiting. The
//! Sentry's sockets wrap these values in their own locks, copy the application's bytes, and tell their wait queues
//! what a call here says has become ready. Links to the outside are descriptors that somebody else reads and writes.
//!
//! **What is here.** [`stream`] is TCP over the loopback, a pair of queues without packets; [`ports`] says who may have
//! which port; [`datagram`] is a bounded queue of messages; [`icmp`] reads and makes echo messages; [`iface`] holds
//! interfaces, addresses and the choice of a route.
//!
//! Towards the outside: [`frame`] is what a link carries, [`packet`] an IP packet and its fragments, [`neighbor`] the
//! hardware addresses of others, [`flow`] a TCP connection over packets, and [`table`] says whose a segment is.
//!
//! **Invariants.** No type here locks, blocks, allocates without a bound that its owner has set, or makes a system
//! call; time comes in as an argument. Addresses are in one form: an IPv4 address mapped into IPv6 is an IPv4 address.
//!
//! **Locks.** None.
//!
//! **Threat.** Both ends of a connection are untrusted, and hostile to one another: what one may make the other hold is
//! bounded by the receiver's and the sender's buffer sizes.

pub mod asker;
pub mod bpf;
pub mod broker;
pub mod buffer;
pub mod datagram;
pub mod error;
pub mod flow;
pub mod frame;
pub mod icmp;
pub mod iface;
pub mod neighbor;
pub mod packet;
pub mod ports;
pub mod router;
pub mod shaper;
pub mod stats;
pub mod stream;
pub mod table;

pub use buffer::{BufferPool, Chunk};
pub use error::Error;

bitflags::bitflags! {
    /// Readiness, with the values of `poll(2)`.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct Ready: u32 {
        const IN = 0x041;
        const PRI = 0x002;
        const OUT = 0x104;
        const ERR = 0x008;
        const HUP = 0x010;
        const RDHUP = 0x2000;
        /// Not of poll(2): urgent data is on its way (`SIGURG`), be it there or not.
        const URGENT = 0x1_0000;
    }
}
