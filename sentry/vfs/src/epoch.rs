//! The epoch of directories: a number that changes when an absolute path may have stopped leading to a directory.
//!
//! Who has looked such a path up may take the result for true as long as the number is what it was before the look-up, without
//! looking again. It holds for walks that met no symbolic link and no directory whose names change behind the VFS
//! ([`crate::Inode::volatile_names`]), for the same credentials and the same root. It changes when a directory is removed or
//! renamed, when anything is mounted or unmounted, when some root becomes another, and when the permissions of a directory do.
//! Each of these changes the number after it is done and before its call returns.

use core::sync::atomic::{AtomicU64, Ordering};
use std::sync::OnceLock;

static DIRECTORIES: Epoch = Epoch::new();

/// A number that changes, and where it is.
#[derive(Debug)]
pub(crate) struct Epoch {
    /// If somebody wants to read it without asking.
    elsewhere: OnceLock<&'static AtomicU64>,
    here: AtomicU64,
}

impl Epoch {
    pub const fn new() -> Self {
        Self { elsewhere: OnceLock::new(), here: AtomicU64::new(1) }
    }

    fn word(&self) -> &AtomicU64 {
        self.elsewhere.get().copied().unwrap_or(&self.here)
    }

    pub fn keep_in(&self, word: &'static AtomicU64) {
        let _ = self.elsewhere.get_or_init(|| {
            word.store(self.here.load(Ordering::SeqCst), Ordering::SeqCst);
            word
        });
    }

    pub fn present(&self) -> u64 {
        self.word().load(Ordering::SeqCst)
    }

    pub fn advance(&self) {
        self.word().fetch_add(1, Ordering::SeqCst);
    }
}

/// Has the number kept in `word` from here on. The first caller wins: there is one number for the whole program.
pub fn keep_in(word: &'static AtomicU64) {
    DIRECTORIES.keep_in(word);
}

/// The present epoch; never zero.
pub fn present() -> u64 {
    DIRECTORIES.present()
}

/// Begins another.
pub(crate) fn advance() {
    DIRECTORIES.advance();
}
