//! Putting a file at hand that was just opened: its context then answers `fstat(2)`, `read(2)`, `lseek(2)` and `close(2)` of it
//! without a trap ([`platform::AtHand`]).

use std::sync::Arc;

use platform::{HAND_BYTES, HandFile};
use sentry_kernel::Current;
use sentry_memory::UserWriter;
use sentry_vfs::{FileDescription, IoCtx, IoStart, Location, Pos, file_epoch};
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
    let (Ok(attr), Ok(fd)) = (file.attr(), u32::try_from(fd)) else { return };
    let mut bytes = Vec::new();
    if cx.wants_bytes_at_hand() {
        let len = usize::try_from(attr.size).ok().filter(|size| *size <= HAND_BYTES).unwrap_or(HEAD);
        bytes.resize(len, 0);
        let io = IoCtx { caller: &*cx.task, flags: file.flags() };
        let read = file.ops().try_read(&io, &mut UserWriter::buffer(&mut bytes), Pos::At(0));
        if !matches!(read, Ok(IoStart::Done(n)) if n == len) {
            return;
        }
    }
    let stat = to_stat(cx, &attr);
    let found = HandFile {
        fd,
        stat: stat.as_bytes(),
        position: 0,
        size: attr.size,
        bytes: &bytes,
        epoch,
        may_close: !cx.fds().has_posix_locks(),
    };
    cx.put_at_hand(file, &found);
}
