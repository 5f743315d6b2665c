//! What connections may hold of the sandbox' memory (`net.ipv4.tcp_mem`).
//!
//! Peers outside decide how much waits in a connection's buffers, so all of them together are held to a share of the
//! memory that the container may use. A flow's own buffers cannot change their size while it lives: they are counted
//! whole when it begins, and are the smaller, the less is left. What waits in streams is counted as it is; where that
//! is much, each stream must do with less.

use core::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

use netstack::buffer::{LARGE, SMALL};

/// Parts of the memory: for the buffers of flows, and for what waits in streams.
const FLOWS_PART: usize = 4;
const STREAMS_PART: usize = 8;
/// The most that flows and streams get, in bytes, however much memory there is.
const FLOWS_MAX: usize = 2 << 30;
const STREAMS_MAX: usize = 512 << 20;
/// What one flow gets of what is left for those that come early.
const SHARE: usize = 32;
/// Bytes of either buffer of a flow.
const BUFFER_MIN: usize = 4 << 10;
const BUFFER_MAX: usize = 512 << 10;
/// What a flow is besides its buffers, in bytes, roughly.
const FLOW: usize = 4 << 10;

/// The count.
#[derive(Debug)]
pub(super) struct Memory {
    flows_max: AtomicUsize,
    streams_max: AtomicUsize,
    /// Bytes of flows and of their buffers.
    flows: AtomicUsize,
    /// Bytes that wait in streams.
    queued: AtomicUsize,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            flows_max: AtomicUsize::new(FLOWS_MAX),
            streams_max: AtomicUsize::new(STREAMS_MAX),
            flows: AtomicUsize::new(0),
            queued: AtomicUsize::new(0),
        }
    }
}

/// A flow's part, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Granted {
    memory: Arc<Memory>,
    /// Bytes of either buffer.
    pub(super) buffer: usize,
}

impl Granted {
    fn bytes(&self) -> usize {
        self.buffer * 2 + FLOW
    }
}

impl Drop for Granted {
    fn drop(&mut self) {
        self.memory.flows.fetch_sub(self.bytes(), Ordering::Relaxed);
    }
}

impl Memory {
    /// Says how much memory there is, in bytes.
    pub(super) fn set_total(&self, total: usize) {
        self.flows_max.store((total / FLOWS_PART).min(FLOWS_MAX), Ordering::Relaxed);
        self.streams_max.store((total / STREAMS_PART).min(STREAMS_MAX), Ordering::Relaxed);
    }

    /// Memory for one more flow. `None` where there is none left, unless the container itself wants it (`own`): how many
    /// connections that begins is its own affair.
    pub(super) fn grant(self: &Arc<Self>, own: bool) -> Option<Granted> {
        let max = self.flows_max.load(Ordering::Relaxed);
        let used = self.flows.load(Ordering::Relaxed);
        // A quarter is for those that come when the rest is gone.
        let left = (max - max / 4).saturating_sub(used);
        let buffer = (left / SHARE / 2).clamp(BUFFER_MIN, BUFFER_MAX);
        if !own && used + buffer * 2 + FLOW > max {
            return None;
        }
        let granted = Granted { memory: Arc::clone(self), buffer };
        self.flows.fetch_add(granted.bytes(), Ordering::Relaxed);
        Some(granted)
    }

    /// Notes bytes that wait in a stream now.
    pub(super) fn queue(&self, bytes: usize) {
        self.queued.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Notes bytes that wait no more.
    pub(super) fn unqueue(&self, bytes: usize) {
        self.queued.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// The most that may wait in one direction of a stream before more is taken in, in bytes: as the socket's limits have
    /// it, what one buffer holds, or hardly anything.
    pub(super) fn stream_cap(&self) -> usize {
        let max = self.streams_max.load(Ordering::Relaxed);
        match self.queued.load(Ordering::Relaxed) {
            queued if queued > max => SMALL,
            queued if queued > max / 2 => LARGE,
            _ => usize::MAX,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "test code")]
    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn flows_share_what_there_is() {
        let memory = Arc::<Memory>::default();
        assert_eq!(memory.grant(false).unwrap().buffer, BUFFER_MAX);
        let memory = Arc::<Memory>::default();
        memory.set_total(64 * MIB);
        let first = memory.grant(false).unwrap();
        assert!(first.buffer >= 128 << 10, "{first:?}");
        let mut all = vec![first];
        while let Some(granted) = memory.grant(false) {
            assert!(granted.buffer <= all.last().unwrap().buffer);
            all.push(granted);
        }
        assert!(all.len() > 350, "{} flows", all.len());
        assert!(all.iter().map(Granted::bytes).sum::<usize>() <= 16 * MIB);
        // What the container asks for itself it gets.
        let own = memory.grant(true).unwrap();
        assert_eq!(own.buffer, BUFFER_MIN);
        let largest = all[0].buffer;
        // With less than is held there is nothing for others, until it is given back.
        memory.set_total(16 * MIB);
        assert!(memory.grant(false).is_none() && memory.grant(true).is_some());
        drop((own, all));
        assert_eq!(memory.grant(false).unwrap().buffer, (3 * MIB) / SHARE / 2);
        memory.set_total(64 * MIB);
        assert_eq!(memory.grant(false).unwrap().buffer, largest);
    }

    #[test]
    fn streams_do_with_less_when_much_waits() {
        let memory = Arc::<Memory>::default();
        memory.set_total(64 * MIB);
        assert_eq!(memory.stream_cap(), usize::MAX);
        memory.queue(5 * MIB);
        assert_eq!(memory.stream_cap(), LARGE);
        memory.queue(4 * MIB);
        assert_eq!(memory.stream_cap(), SMALL);
        memory.unqueue(9 * MIB);
        assert_eq!(memory.stream_cap(), usize::MAX);
    }
}
