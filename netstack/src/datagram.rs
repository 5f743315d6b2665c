//! A bounded queue of datagrams, charged as Linux charges its packet buffers (`net/ipv4/udp.c`, `net/core/sock.c`).

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

/// What a packet's bookkeeping weighs, and the unit in which its bytes are charged.
const OVERHEAD: usize = 256;
const UNIT: usize = 512;
/// Below this a datagram is charged by power-of-two pieces; above, by pages.
const PAGE: usize = 4096;

/// One message and where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Datagram {
    pub data: Vec<u8>,
    pub from: SocketAddr,
    /// The address and the interface on which it came.
    pub to: IpAddr,
    pub interface: u32,
    /// `TTL` or hop limit; `TOS` or traffic class.
    pub hops: u8,
    pub class: u8,
    /// `CLOCK_REALTIME`, in nanoseconds.
    pub stamp: u64,
}

impl Datagram {
    /// What it weighs in a queue.
    pub fn weight(&self) -> usize {
        weight(self.data.len())
    }
}

/// What a message of `len` bytes weighs in a queue (`skb->truesize`).
pub fn weight(len: usize) -> usize {
    let head = len + 384;
    OVERHEAD + if head <= PAGE { head.next_multiple_of(UNIT) } else { head.next_multiple_of(PAGE) }
}

/// The datagrams that wait at a socket.
#[derive(Debug)]
pub struct DatagramQueue {
    queue: VecDeque<Datagram>,
    weight: usize,
    /// Bytes (`SO_RCVBUF`).
    limit: usize,
    /// Datagrams that found no room (`SO_RXQ_OVFL`).
    dropped: u32,
}

impl DatagramQueue {
    pub fn new(limit: usize) -> Self {
        Self { queue: VecDeque::new(), weight: 0, limit, dropped: 0 }
    }

    pub fn set_limit(&mut self, bytes: usize) {
        self.limit = bytes;
    }

    /// Appends a datagram; false when the queue is full and it is lost.
    pub fn push(&mut self, datagram: Datagram) -> bool {
        if self.weight > self.limit {
            self.dropped = self.dropped.wrapping_add(1);
            return false;
        }
        self.weight += datagram.weight();
        self.queue.push_back(datagram);
        true
    }

    pub fn front(&self) -> Option<&Datagram> {
        self.queue.front()
    }

    pub fn pop(&mut self) -> Option<Datagram> {
        let datagram = self.queue.pop_front()?;
        self.weight = self.weight.saturating_sub(datagram.weight());
        Some(datagram)
    }

    /// Puts the datagram that was taken last back.
    pub fn unpop(&mut self, datagram: Datagram) {
        self.weight += datagram.weight();
        self.queue.push_front(datagram);
    }

    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Bytes charged.
    pub fn weight(&self) -> usize {
        self.weight
    }

    pub fn dropped(&self) -> u32 {
        self.dropped
    }

    pub fn clear(&mut self) {
        self.queue.clear();
        self.weight = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn datagram(len: usize) -> Datagram {
        let ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
        Datagram {
            data: vec![0; len],
            from: SocketAddr::new(ip, 1),
            to: ip,
            interface: 1,
            hops: 64,
            class: 0,
            stamp: 0,
        }
    }

    #[test]
    fn a_full_queue_loses_what_comes() {
        let mut queue = DatagramQueue::new(2000);
        let taken = (0..9).filter(|_| queue.push(datagram(1))).count();
        assert_eq!((taken, queue.dropped()), (3, 6));
        while queue.pop().is_some() {}
        assert_eq!(queue.weight(), 0);
        assert!(queue.push(datagram(60_000)));
    }
}
