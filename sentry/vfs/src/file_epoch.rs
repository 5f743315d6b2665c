//! The epoch of files: a number that changes when what an open file shows may have changed, of files that say that nothing
//! else changes it ([`crate::Inode::is_steady`]).
//!
//! Who has taken attributes and contents of such a file may show them to those who have it open as long as the number is what
//! it was before they were taken. It changes when a file of a lower layer gets a copy in the upper one, which may then differ,
//! when such a file loses a name, and when somebody begins to watch anything: from then on each use is to be told of. Each
//! of these changes the number after it is done and before its call returns.

use core::sync::atomic::AtomicU64;

use crate::epoch::Epoch;

static FILES: Epoch = Epoch::new();

/// Has the number kept in `word` from here on. The first caller wins: there is one number for the whole program.
pub fn keep_in(word: &'static AtomicU64) {
    FILES.keep_in(word);
}

/// The present epoch; never zero.
pub fn present() -> u64 {
    FILES.present()
}

/// Begins another.
pub fn advance() {
    FILES.advance();
}
