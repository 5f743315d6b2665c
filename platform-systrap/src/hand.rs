//! The file at hand in a channel, as the Sentry puts it there: see [`platform::AtHand`] and [`crate::layout::hand`].
//!
//! The stub checks descriptor and epoch, copies, and then moves the position, in this order: who looks from outside finds
//! the position before or after an answer that is under way.

use std::sync::atomic::{AtomicU64, Ordering};

use platform::{AtHand, HAND_BYTES, HandFile, HandPiece, HandUse, Untrusted};

use crate::channel::Window;
use crate::layout::{hand, word};
use crate::thread::Thread;

/// What the Sentry knows of the file at hand in one channel.
#[derive(Debug, Default)]
pub struct Hand {
    /// The number of the file that is there; zero for none.
    present: AtomicU64,
    /// The last number that was given.
    last: AtomicU64,
}

impl Hand {
    /// Takes away what is there. The thread is at rest.
    pub fn forget(&self, window: &Window) {
        if self.present.swap(0, Ordering::SeqCst) != 0 {
            window.store64(hand::WHICH, 0);
        }
    }

    fn is(&self, number: u64) -> bool {
        number != 0 && self.present.load(Ordering::SeqCst) == number
    }
}

fn write_piece(window: &Window, piece: HandPiece<'_>) {
    let bytes = piece.bytes.get(..HAND_BYTES).unwrap_or(piece.bytes);
    window.write(word::HAND_DATA, bytes);
    window.store64(hand::START, piece.start);
    window.store64(hand::END, piece.start.saturating_add(bytes.len() as u64));
}

impl AtHand for Thread {
    fn put(&self, file: &HandFile<'_>) -> u64 {
        let window = &self.channel.window;
        let stat = file.stat.get(..hand::STAT_LEN).unwrap_or(file.stat);
        let number = self.hand.last.fetch_add(1, Ordering::Relaxed) + 1;
        // Nobody takes the position of the one for that of the other.
        self.hand.present.store(0, Ordering::SeqCst);
        window.write(hand::STAT, stat);
        window.store32(hand::IS_STEADY, u32::from(!stat.is_empty()));
        write_piece(window, file.piece);
        window.store64(hand::EPOCH, file.epoch);
        window.store64(hand::POSITION, file.position);
        window.store64(hand::SIZE, file.size);
        window.store32(hand::CALLS, 0);
        window.store32(hand::READS, 0);
        window.store64(hand::READ_BYTES, 0);
        window.store32(hand::MAY_CLOSE, u32::from(file.may_close));
        window.store64(hand::WHICH, u64::from(file.fd) | hand::OPEN);
        self.hand.present.store(number, Ordering::SeqCst);
        number
    }

    fn renew(&self, number: u64, position: u64, epoch: u64) {
        if self.hand.is(number) {
            let window = &self.channel.window;
            window.store64(hand::POSITION, position);
            window.store64(hand::EPOCH, epoch);
        }
    }

    fn put_piece(&self, number: u64, piece: HandPiece<'_>) {
        if self.hand.is(number) {
            write_piece(&self.channel.window, piece);
        }
    }

    fn position(&self, number: u64) -> Option<u64> {
        let position = Untrusted::fetched(self.channel.window.load64(hand::POSITION));
        // Asked after it was read: another file would have its own there.
        position.check(|at| i64::try_from(*at).is_ok()).filter(|_| self.hand.is(number))
    }

    fn is_closed(&self, number: u64) -> bool {
        self.channel.window.u64(hand::WHICH).load(Ordering::SeqCst) == hand::CLOSED && self.hand.is(number)
    }

    fn revoke(&self, number: u64) {
        if !self.hand.is(number) {
            return;
        }
        // One that was closed stays so.
        let which = self.channel.window.u64(hand::WHICH);
        let _ = which
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |which| (which != hand::CLOSED).then_some(0));
    }

    fn take_use(&self, number: u64) -> HandUse {
        if !self.hand.is(number) {
            return HandUse::default();
        }
        let window = &self.channel.window;
        let calls = window.load32(hand::CALLS);
        if calls == 0 {
            return HandUse::default();
        }
        let reads = window.load32(hand::READS);
        let read_bytes = Untrusted::fetched(window.load64(hand::READ_BYTES))
            .check(|bytes| *bytes <= u64::from(reads) * HAND_BYTES as u64);
        window.store32(hand::CALLS, 0);
        window.store32(hand::READS, 0);
        window.store64(hand::READ_BYTES, 0);
        HandUse { calls, reads, read_bytes: read_bytes.unwrap_or(0) }
    }

    fn clear(&self, number: u64) {
        if self.hand.is(number) {
            self.hand.forget(&self.channel.window);
        }
    }
}
