//! Putting a file at hand that was just opened: its context then answers `fstat(2)`, `read(2)`, `lseek(2)` and `close(2)` of it
//! without a trap ([`platform::AtHand`]).

use std::sync::Arc;

use platform::{HAND_BYTES, HandFile, HandPiece, PAGE_SIZE};
use sentry_kernel::{Current, HAND_PIECE};
use sentry_vfs::{Attr, FileDescription, file_epoch};
use zerocopy::IntoBytes;

use crate::sys_stat::to_stat;

/// Of a file that is longer than what can be at hand: what loaders look at first.
const HEAD: usize = 4096;

/// Puts `file`, which was just opened as `fd`, at hand if its contents and attributes stay what they are and the task is one
/// that asks for them.
pub(crate) fn offer(cx: &mut Current, fd: i32, file: &Arc<FileDescription>) {
    if !Current::is_steady(file) || !cx.wants_at_hand(file) {
        return;
    }
    let epoch = file_epoch::present();
    // Asked again in the epoch.
    if !Current::is_steady(file) {
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
    put(cx, (fd, file), epoch, Some((&attr, HandPiece { start: 0, bytes: &bytes })), None);
}

/// Puts a file at hand whose position was just moved to `position`: of one that does not stay what it is the position alone.
pub(crate) fn offer_moved(cx: &mut Current, fd: i32, file: &Arc<FileDescription>, position: u64) {
    if !cx.wants_moved_at_hand(file) {
        return;
    }
    let epoch = file_epoch::present();
    let attr = Current::is_steady(file).then(|| file.attr().ok()).flatten();
    let start = position - position % PAGE_SIZE;
    let reads = attr.is_some() && cx.wants_bytes_at_hand();
    let bytes = if reads { cx.piece_of(file, start, HAND_PIECE) } else { Vec::new() };
    let known = attr.as_ref().map(|attr| (attr, HandPiece { start, bytes: &bytes }));
    put(cx, (fd, file), epoch, known, Some(position));
}

/// Puts all at hand that is known of a file: where it was moved to if it was, and of a steady one its attributes and a piece.
fn put(
    cx: &mut Current,
    (fd, file): (i32, &Arc<FileDescription>),
    epoch: u64,
    known: Option<(&Attr, HandPiece<'_>)>,
    moved_to: Option<u64>,
) {
    let Ok(fd) = u32::try_from(fd) else { return };
    let stat = known.map(|(attr, _)| to_stat(cx, attr));
    let found = HandFile {
        fd,
        stat: stat.as_ref().map_or(&[], IntoBytes::as_bytes),
        position: moved_to.unwrap_or(0),
        size: known.map_or(0, |(attr, _)| attr.size),
        piece: known.map_or_else(HandPiece::default, |(_, piece)| piece),
        epoch,
        // What was done since it was opened may have to be undone by its close: locks, leases.
        may_close: moved_to.is_none() && !cx.fds().has_posix_locks(),
    };
    cx.put_at_hand(file, &found, moved_to.is_some());
}
