//! The epoch of directories: a number that changes when an absolute path may have stopped leading to a directory.
//!
//! Who has looked such a path up may take the result for true as long as the number is what it was before the look-up, without
//! looking again. It holds for walks that met no symbolic link and no directory whose names change behind the VFS
//! ([`crate::Inode::volatile_names`]), for the same credentials and the same root. It changes when a directory is removed or
//! renamed, when anything is mounted or unmounted, when some root becomes another, and when the permissions of a directory do.
//! Each of these changes the number after it is done and before its call returns.

use core::sync::atomic::{AtomicU64, Ordering};
use std::sync::OnceLock;

/// Where the number is, if somebody wants to read it without asking.
static ELSEWHERE: OnceLock<&'static AtomicU64> = OnceLock::new();
static HERE: AtomicU64 = AtomicU64::new(1);

fn word() -> &'static AtomicU64 {
    ELSEWHERE.get().copied().unwrap_or(&HERE)
}

/// Has the number kept in `word` from here on. The first caller wins: there is one number for the whole program.
pub fn keep_in(word: &'static AtomicU64) {
    let _ = ELSEWHERE.get_or_init(|| {
        word.store(HERE.load(Ordering::SeqCst), Ordering::SeqCst);
        word
    });
}

/// The present epoch; never zero.
pub fn present() -> u64 {
    word().load(Ordering::SeqCst)
}

/// Begins another.
pub(crate) fn advance() {
    word().fetch_add(1, Ordering::SeqCst);
}
