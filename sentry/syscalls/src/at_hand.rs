//! Putting a file at hand that was just opened: its context then answers `fstat(2)`, `read(2)`, `lseek(2)` and `close(2)` of it
//! without a trap ([`platform::AtHand`]).

use std::sync::Arc;

use platform::{HAND_BYTES, HandFile, HandPiece, PAGE_SIZE};
use sentry_kernel::{Current, HAND_PIECE};
use sentry_vfs::{Attr, FileDescription, Location, file_epoch};
use zerocopy::IntoBytes;

use crate::sys_stat::to_stat;

/// Of a file that is longer than what can be at hand: what loaders look at first.
const HEAD: usize = 4096;

/// Puts `file`, which was just opened as `fd`, at hand if its contents and attributes stay what they are and the task is one
/// that asks for them.
pub(crate) fn offer(cx: &mut Current, fd: i32, file: &Arc<FileDescription>) {
    let steady = || file.inode().is_some_and(|inode| inode.is_steady());
    if !steady() || !cx.wants_at_hand(file) {
        return;
    }
    let epoch = file_epoch::present();
    let is_watched = || file.location().is_none_or(Location::is_watched);
    // Asked again in the epoch.
    if !steady() || is_watched() {
        return;
    }
    let Ok(attr) = file.attr() else { return };
    let mut bytes = Vec::new();
    if cx.wants_bytes_at_hand() {
        let len = usize::try_from(attr.size).ok().filter(|size| *size <= HAND_BYTES).unwrap_or(HEAD);
        bytes = cx.piece_of(file, 0, len);
        if bytes.len() != len {
            return;
        }
    }
    put(cx, fd, file, epoch, (&attr, 0, HandPiece { start: 0, bytes: &bytes }), false);
}

/// Puts all at hand that is known of a steady file: its attributes, its position, and a piece.
fn put(
    cx: &mut Current,
    fd: i32,
    file: &Arc<FileDescription>,
    epoch: u64,
    (attr, position, piece): (&Attr, u64, HandPiece<'_>),
    is_moved: bool,
) {
    let Ok(fd) = u32::try_from(fd) else { return };
    let stat = to_stat(cx, attr);
    // What was done since it was opened may have to be undone by its close: locks, leases.
    let may_close = !is_moved && !cx.fds().has_posix_locks();
    let found = HandFile { fd, stat: stat.as_bytes(), position, size: attr.size, piece, epoch, may_close };
    cx.put_at_hand(file, &found, is_moved);
}

/// Puts a file at hand whose position was just moved to `position`: of one that does not stay what it is the position alone.
pub(crate) fn offer_moved(cx: &mut Current, fd: i32, file: &Arc<FileDescription>, position: u64) {
    if !cx.wants_moved_at_hand(file) {
        return;
    }
    let epoch = file_epoch::present();
    let is_steady = Current::may_answer_reads(file) && file.inode().is_some_and(|inode| inode.is_steady());
    if is_steady && let Ok(attr) = file.attr() {
        let start = position - position % PAGE_SIZE;
        let bytes = if cx.wants_bytes_at_hand() { cx.piece_of(file, start, HAND_PIECE) } else { Vec::new() };
        put(cx, fd, file, epoch, (&attr, position, HandPiece { start, bytes: &bytes }), true);
    } else if let Ok(fd) = u32::try_from(fd) {
        let piece = HandPiece::default();
        let found = HandFile { fd, stat: &[], position, size: 0, piece, epoch, may_close: false };
        cx.put_at_hand(file, &found, true);
    }
}
