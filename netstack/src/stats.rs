//! Counters of `/proc/net/snmp` and of interfaces. Read and raised without a lock.

use core::sync::atomic::{AtomicU64, Ordering};

/// A counter that only rises, or a gauge.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub fn sub(&self, n: u64) {
        self.0.fetch_sub(n, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The counters of one network.
#[derive(Debug, Default)]
pub struct Stats {
    /// Packets and bytes that the loopback would have carried.
    pub packets: Counter,
    pub bytes: Counter,
    pub tcp_active_opens: Counter,
    pub tcp_passive_opens: Counter,
    pub tcp_failed: Counter,
    pub tcp_resets: Counter,
    pub tcp_established: Counter,
    pub tcp_received: Counter,
    pub tcp_sent: Counter,
    /// Segments that went out once more.
    pub tcp_sent_again: Counter,
    pub udp_received: Counter,
    pub udp_sent: Counter,
    pub udp_no_ports: Counter,
    pub udp_dropped: Counter,
    pub icmp_messages: Counter,
    pub listen_overflows: Counter,
}

impl Stats {
    /// Counts one packet over the loopback.
    pub fn packet(&self, bytes: usize) {
        self.packets.add(1);
        self.bytes.add(bytes as u64);
    }
}
