//! A limit on the bytes that a link carries in one direction: a token bucket with a bounded queue behind it
//! (`net/sched/sch_tbf.c`).
//!
//! The bucket is kept as a time: when the link would be free again if it carried what has passed at the limit's rate. That
//! time may lie ahead by a burst and no further.

use std::collections::VecDeque;

const SECOND: u64 = 1_000_000_000;
/// A burst lasts so long at the limit's rate and holds one of the longest frames at least; it hides how coarse the clock is
/// that wakes whoever serves the queue.
const BURST_NS: u64 = 10_000_000;
const BURST_MIN: u64 = 70_000;
/// What waits in the queue at the most: so long a time at the limit's rate, and some of the longest frames.
const QUEUE_NS: u64 = 100_000_000;
const QUEUE_MIN: u64 = 140_000;

/// What is to be done with a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It may go now.
    Goes,
    /// It waits its turn; the first one is what [`Shaper::deadline`] is about.
    Waits { first: bool },
    /// There is no room for it.
    Lost,
}

#[derive(Debug)]
pub struct Shaper {
    /// Bytes in a second; never 0.
    rate: u64,
    burst_ns: u64,
    free_at: u64,
    queue: VecDeque<Vec<u8>>,
    held: u64,
    room: u64,
}

impl Shaper {
    /// `bits`: in a second.
    pub fn new(bits: u64) -> Self {
        let rate = (bits / 8).max(1);
        let at_rate = |ns: u64| u128::from(rate) * u128::from(ns) / u128::from(SECOND);
        let within = |bytes: u128, least: u64| u64::try_from(bytes).unwrap_or(u64::MAX).max(least);
        let mut shaper = Self {
            rate,
            burst_ns: 0,
            free_at: 0,
            queue: VecDeque::new(),
            held: 0,
            room: within(at_rate(QUEUE_NS), QUEUE_MIN),
        };
        shaper.burst_ns = shaper.time_of(within(at_rate(BURST_NS), BURST_MIN));
        shaper
    }

    /// How long so many bytes take, in nanoseconds.
    fn time_of(&self, bytes: u64) -> u64 {
        let ns = u128::from(bytes) * u128::from(SECOND) / u128::from(self.rate);
        u64::try_from(ns).unwrap_or(u64::MAX)
    }

    fn may_pass(&self, now: u64) -> bool {
        self.free_at <= now.saturating_add(self.burst_ns)
    }

    fn pass(&mut self, len: usize, now: u64) {
        let time = self.time_of(len as u64);
        self.free_at = self.free_at.max(now).saturating_add(time);
    }

    /// Takes a frame; one that waits is copied.
    pub fn offer(&mut self, frame: &[u8], now: u64) -> Verdict {
        if self.queue.is_empty() && self.may_pass(now) {
            self.pass(frame.len(), now);
            return Verdict::Goes;
        }
        let len = frame.len() as u64;
        if self.held + len > self.room {
            return Verdict::Lost;
        }
        self.held += len;
        self.queue.push_back(frame.to_vec());
        Verdict::Waits { first: self.queue.len() == 1 }
    }

    /// The next frame whose time has come.
    pub fn due(&mut self, now: u64) -> Option<Vec<u8>> {
        if !self.may_pass(now) {
            return None;
        }
        let frame = self.queue.pop_front()?;
        self.held = self.held.saturating_sub(frame.len() as u64);
        self.pass(frame.len(), now);
        Some(frame)
    }

    /// When [`Shaper::due`] gives a frame.
    pub fn deadline(&self) -> Option<u64> {
        (!self.queue.is_empty()).then(|| self.free_at.saturating_sub(self.burst_ns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that pass in `seconds` where more is offered all the time, the queue served every `step` nanoseconds.
    fn carried(bits: u64, frame: usize, seconds: u64, step: u64) -> u64 {
        let mut shaper = Shaper::new(bits);
        let frame = vec![0; frame];
        let mut total = 0;
        let mut now = SECOND;
        while now < (seconds + 1) * SECOND {
            while let Some(frame) = shaper.due(now) {
                total += frame.len() as u64;
            }
            loop {
                match shaper.offer(&frame, now) {
                    Verdict::Goes => total += frame.len() as u64,
                    Verdict::Waits { .. } => {}
                    Verdict::Lost => break,
                }
            }
            now += step;
        }
        total
    }

    #[test]
    fn as_much_passes_as_may() {
        for (bits, frame, step) in
            [(8_000_000, 1500, 1_000_000), (80_000_000, 65_000, 3_000_000), (1_000_000_000, 1500, 5_000_000)]
        {
            let want = bits / 8 * 10;
            let got = carried(bits, frame, 10, step);
            assert!(got.abs_diff(want) < want / 10, "{bits}: {got} of {want}");
        }
    }

    #[test]
    fn frames_keep_their_order_and_are_bounded() {
        let mut shaper = Shaper::new(8000);
        let mut waiting = Vec::new();
        for n in 0..1000_u16 {
            let frame = [n.to_be_bytes().as_slice(), &[0; 998]].concat();
            if matches!(shaper.offer(&frame, 0), Verdict::Waits { .. }) {
                waiting.push(n);
            }
        }
        assert!(shaper.held <= shaper.room && waiting.len() < 200, "{}", waiting.len());
        let at = shaper.deadline().unwrap();
        assert_eq!(shaper.due(at - 1), None);
        let mut now = at;
        for n in waiting {
            now = now.max(shaper.deadline().unwrap());
            assert_eq!(shaper.due(now).unwrap()[..2], n.to_be_bytes());
        }
        assert_eq!((shaper.deadline(), shaper.held), (None, 0));
    }
}
