//! The table of directories in a channel, as the Sentry fills it: see [`crate::layout::known`].

use std::sync::atomic::{AtomicU32, Ordering};

use crate::channel::Window;
use crate::layout::known::{ENTRY, LEN, MAX, MIX, NR_SETS, SHIFT, WAYS};
use crate::layout::word;

/// What the Sentry knows of the table of one channel. Written while the thread is at rest.
#[derive(Debug, Default)]
pub struct Known {
    /// Entries that were written since the table was void.
    written: AtomicU32,
}

impl Known {
    /// Makes the table void. Most are never written, and stay without memory.
    pub fn forget(&self, window: &Window) {
        if self.written.swap(0, Ordering::Relaxed) != 0 {
            for index in 0..NR_SETS * WAYS {
                window.store64(word::KNOWN + index * ENTRY, 0);
            }
        }
    }

    /// Enters a path without its NUL; longer ones than the table takes are left out.
    pub fn remember(&self, window: &Window, path: &[u8], epoch: u64) {
        let len = path.len() + 1;
        if len > MAX {
            return;
        }
        let mut text = [0; ENTRY - LEN];
        for (place, byte) in text.iter_mut().zip((len as u32).to_ne_bytes().iter().chain(path)) {
            *place = *byte;
        }
        let turn = self.written.load(Ordering::Relaxed);
        self.written.store(turn.wrapping_add(1).max(1), Ordering::Relaxed);
        let set = word::KNOWN + set_of(path) * WAYS * ENTRY;
        // A void entry, or either.
        let void = (0..WAYS).find(|way| window.load64(set + way * ENTRY) != epoch);
        let entry = set + void.unwrap_or(turn as usize % WAYS) * ENTRY;
        window.store64(entry, epoch);
        window.write(entry + LEN, &text);
    }
}

fn set_of(path: &[u8]) -> usize {
    let mut last = [0; 8];
    // Before the NUL.
    for (place, byte) in last.iter_mut().rev().skip(1).zip(path.iter().rev()) {
        *place = *byte;
    }
    let last = u64::from_le_bytes(last);
    (last.wrapping_add(path.len() as u64 + 1).wrapping_mul(MIX) >> SHIFT) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::known::PATH;

    #[test]
    fn a_set_is_that_of_the_last_eight_bytes() {
        let by_words = |bytes: [u8; 8], len: u64| {
            (u64::from_le_bytes(bytes).wrapping_add(len).wrapping_mul(MIX) >> SHIFT) as usize
        };
        assert_eq!(set_of(b"/usr/lib/gcc"), by_words(*b"lib/gcc\0", 13));
        assert_eq!(set_of(b"/usr"), by_words(*b"\0\0\0/usr\0", 5));
        assert_eq!(set_of(b"/"), by_words(*b"\0\0\0\0\0\0/\0", 2));
        assert_eq!(PATH + MAX, ENTRY);
        assert_eq!(LEN + size_of::<u32>(), PATH);
    }
}
