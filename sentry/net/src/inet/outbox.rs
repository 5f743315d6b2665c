//! Frames of a flow on their way to its link: they leave in order, one thread at a time.
//!
//! To write a frame can take long, since the host's kernel does in the meantime what it makes of it: the other end's answer to an
//! acknowledgement, where that is on the same host. So nobody waits for whoever is writing: what there is to send is left to it.

use std::collections::VecDeque;

use netstack::frame::Frame;
use sentry_base::{Mutex, lock::rank};

/// Frames that wait, beyond which those that come are lost.
const MOST: usize = 1024;

#[derive(Debug, Default)]
struct Queue {
    frames: VecDeque<Frame>,
    /// Somebody writes, and goes on until the queue is empty.
    is_served: bool,
}

#[derive(Debug, Default)]
pub(super) struct Outbox(Mutex<Queue, { rank::LEAF }>);

/// The turn to write, until the queue is empty.
#[must_use]
pub(super) struct Turn<'o>(&'o Outbox);

impl Outbox {
    /// Puts frames at the end. Gives the turn to write them, with the flow's lock released, unless another thread has it.
    pub(super) fn put(&self, frames: Vec<Frame>) -> Option<Turn<'_>> {
        if frames.is_empty() {
            return None;
        }
        let mut queue = self.0.lock();
        let room = MOST.saturating_sub(queue.frames.len());
        queue.frames.extend(frames.into_iter().take(room));
        let mine = !core::mem::replace(&mut queue.is_served, true);
        mine.then_some(Turn(self))
    }
}

impl Iterator for Turn<'_> {
    type Item = Frame;

    fn next(&mut self) -> Option<Frame> {
        let mut queue = self.0.0.lock();
        let frame = queue.frames.pop_front();
        queue.is_served = frame.is_some();
        frame
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "test code")]
    use super::*;

    fn frame(n: u8) -> Frame {
        Frame::of(&[&[n]])
    }

    fn first(frame: Option<Frame>) -> Option<u8> {
        frame.and_then(|frame| frame.packet().first().copied())
    }

    #[test]
    fn one_thread_writes_what_others_leave_to_it() {
        let outbox = Outbox::default();
        assert!(outbox.put(Vec::new()).is_none());
        let mut turn = outbox.put(vec![frame(1), frame(2)]).unwrap();
        assert_eq!(first(turn.next()), Some(1));
        assert!(outbox.put(vec![frame(3)]).is_none());
        assert_eq!([first(turn.next()), first(turn.next())], [Some(2), Some(3)]);
        assert_eq!(first(turn.next()), None);
        assert_eq!(first(outbox.put(vec![frame(4)]).unwrap().next()), Some(4));
    }

    #[test]
    fn no_more_wait_than_may() {
        let outbox = Outbox::default();
        let turn = outbox.put(vec![frame(0)]).unwrap();
        for _ in 0..MOST * 2 {
            assert!(outbox.put(vec![frame(1)]).is_none());
        }
        assert_eq!(turn.count(), MOST);
    }
}
