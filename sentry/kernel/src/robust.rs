//! Robust futexes of a task that dies (`kernel/futex/core.c`).

use abi::process::RobustListHead;
use sentry_base::{Errno, Result};
use sentry_memory::UserMemory;
use sentry_mm::Mm;
use zerocopy::{FromZeros, IntoBytes};

use crate::{MATCH_ANY, Task};

/// Somebody waits for the word.
pub(crate) const WAITERS: u32 = 0x8000_0000;
/// The owner died with its id in the word.
pub(crate) const OWNER_DIED: u32 = 0x4000_0000;
pub(crate) const TID_MASK: u32 = 0x3fff_ffff;
/// A list longer than this is not walked on (`ROBUST_LIST_LIMIT`).
const ROBUST_LIMIT: usize = 2048;
/// Attempts beyond the first at words that others change meanwhile, for the whole of a list.
const RETRIES: usize = 256;

/// Marks every robust futex that a dying task holds and wakes one waiter of each (`exit_robust_list`). The list is the
/// application's: the walk is bounded and ends at the first bad pointer.
pub(crate) fn release(task: &Task, head_addr: u64) {
    let mm = task.mm();
    let mut head = RobustListHead::new_zeroed();
    if mm.copy_in(head_addr, head.as_mut_bytes()).is_err() {
        return;
    }
    let word = |entry: u64| (entry & !1).wrapping_add_signed(head.futex_offset);
    let pending = head.pending;
    let mut retries = RETRIES;
    let mut entry = head.next;
    for _ in 0..ROBUST_LIMIT {
        if entry & !1 == head_addr {
            break;
        }
        // The next pointer is read first: a woken owner may free the entry.
        let mut next = 0_u64;
        let read = mm.copy_in(entry & !1, next.as_mut_bytes());
        if entry & !1 != pending & !1
            && release_word(task, &mm, word(entry), entry & 1 != 0, false, &mut retries).is_err()
        {
            return;
        }
        if read.is_err() {
            return;
        }
        entry = next;
    }
    if pending & !1 != 0 {
        let _ = release_word(task, &mm, word(pending), pending & 1 != 0, true, &mut retries);
    }
}

/// `handle_futex_death`. A word that others keep changing is given up.
fn release_word(task: &Task, mm: &Mm, addr: u64, pi: bool, pending: bool, retries: &mut usize) -> Result<()> {
    if !addr.is_multiple_of(4) {
        return Err(Errno::EINVAL);
    }
    let mut value = mm.load_u32(addr)?;
    let wake = || -> Result<()> {
        let key = mm.futex_key(addr, false)?;
        task.kernel().futexes().wake(&key, 1, MATCH_ANY);
        Ok(())
    };
    if pending && !pi && value == 0 {
        return wake();
    }
    loop {
        if value & TID_MASK != task.ns_tid().cast_unsigned() {
            return Ok(());
        }
        let seen = mm.cmpxchg_u32(addr, value, value & WAITERS | OWNER_DIED)?;
        if seen == value {
            break;
        }
        *retries = retries.checked_sub(1).ok_or(Errno::EAGAIN)?;
        value = seen;
    }
    if !pi && value & WAITERS != 0 { wake() } else { Ok(()) }
}
