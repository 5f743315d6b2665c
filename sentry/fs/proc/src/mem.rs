//! `/proc/PID/mem`, a process's memory as a file, and `pagemap`, what is at each of its pages (`fs/proc/base.c`,
//! `fs/proc/task_mmu.c`).

use core::any::Any;
use std::sync::Arc;

use platform::{AddrRange, PAGE_SIZE};
use sentry_base::{Errno, Result};
use sentry_kernel::Mm;
use sentry_kernel::ptrace::{Access, may_access};
use sentry_memory::{UserReader, UserWriter};
use sentry_mm::PagePresence;
use sentry_vfs::pseudo::PseudoFs;
use sentry_vfs::{
    Attr, Caller, FileKind, FileOps, FileSystem, Inode, IoCtx, IoStart, OpenFlags, Pos, SetAttr, Whence,
};

use crate::process::{Subject, plain_inode};
use crate::task_of;

/// The file before it is opened.
pub(crate) struct MemFile {
    pub attr: Attr,
    pub fs: Arc<PseudoFs>,
    pub subject: Subject,
    /// `pagemap`, not `mem`.
    pub pages: bool,
}

impl Inode for MemFile {
    plain_inode!(FileKind::Regular);

    fn attr(&self) -> Result<Attr> {
        Ok(self.attr)
    }
    fn open(self: Arc<Self>, _flags: OpenFlags, caller: &dyn Caller) -> Result<Arc<dyn FileOps>> {
        let task = self.subject.task()?;
        let access = if self.pages { Access::Read } else { Access::AttachFs };
        if !task_of(caller).is_some_and(|c| may_access(c, &task, access)) {
            return Err(Errno::EACCES);
        }
        if self.pages {
            return Ok(Arc::new(OpenPagemap { mm: task.mm() }));
        }
        Ok(Arc::new(OpenMem { mm: task.mm() }))
    }
}

/// The open file: it stays with the memory that the process had then, whatever the process executes later.
struct OpenMem {
    mm: Arc<Mm>,
}

/// `pagemap`, open: eight bytes for each page of the address space.
struct OpenPagemap {
    mm: Arc<Mm>,
}

impl FileOps for OpenPagemap {
    fn try_read(&self, _io: &IoCtx<'_>, dst: &mut UserWriter<'_>, pos: Pos) -> Result<IoStart<usize>> {
        const WORD: u64 = 8;
        const PRESENT: u64 = 1 << 63;
        const FILE: u64 = 1 << 61;
        /// Pages that one look covers.
        const PIECE: u64 = 1 << 15;
        let Pos::At(pos) = pos else { return Err(Errno::EINVAL) };
        let want = dst.remaining() as u64;
        if !pos.is_multiple_of(WORD) || !want.is_multiple_of(WORD) {
            return Err(Errno::EINVAL);
        }
        let end = self.mm.user_range().end / PAGE_SIZE;
        let (mut page, mut left) = (pos / WORD, want / WORD);
        let mut done = 0;
        while left > 0 && page < end {
            let count = left.min(PIECE).min(end - page);
            let range = AddrRange { start: page * PAGE_SIZE, end: (page + count) * PAGE_SIZE };
            let mut bytes = Vec::with_capacity(usize::try_from(count * WORD).unwrap_or(0));
            for presence in self.mm.presence(range) {
                // Frame numbers are the host's, and nobody's business inside.
                let word: u64 = match presence {
                    PagePresence::Absent => 0,
                    PagePresence::Anon => PRESENT,
                    PagePresence::File => PRESENT | FILE,
                };
                bytes.extend_from_slice(&word.to_le_bytes());
            }
            done += dst.write(&bytes)?;
            page += count;
            left -= count;
        }
        Ok(IoStart::Done(done))
    }

    fn seekable(&self) -> bool {
        true
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Bytes that one copy moves.
const PIECE: usize = 64 << 10;

impl FileOps for OpenMem {
    fn try_read(&self, _io: &IoCtx<'_>, dst: &mut UserWriter<'_>, pos: Pos) -> Result<IoStart<usize>> {
        let Pos::At(mut at) = pos else { return Err(Errno::EINVAL) };
        let mut done = 0;
        let mut buf = vec![0; dst.remaining().min(PIECE)];
        while dst.remaining() > 0 {
            let want = dst.remaining().min(PIECE);
            let part = buf.get_mut(..want).unwrap_or_default();
            let got = match self.mm.copy_in_forced(at, part) {
                Ok(got) => got,
                Err(_) if done > 0 => break,
                Err(_) => return Err(Errno::EIO),
            };
            dst.write(part.get(..got).unwrap_or_default())?;
            done += got;
            at = at.wrapping_add(got as u64);
            if got < want {
                break;
            }
        }
        Ok(IoStart::Done(done))
    }

    fn try_write(&self, _io: &IoCtx<'_>, src: &mut UserReader<'_>, pos: Pos) -> Result<IoStart<usize>> {
        let Pos::At(mut at) = pos else { return Err(Errno::EINVAL) };
        let mut done = 0;
        let mut buf = vec![0; src.remaining().min(PIECE)];
        while src.remaining() > 0 {
            let want = src.remaining().min(PIECE);
            let part = buf.get_mut(..want).unwrap_or_default();
            let have = src.read(part)?;
            let put = match self.mm.copy_out_forced(at, part.get(..have).unwrap_or_default()) {
                Ok(put) => put,
                Err(_) if done > 0 => break,
                Err(_) => return Err(Errno::EIO),
            };
            done += put;
            at = at.wrapping_add(put as u64);
            if put < have {
                break;
            }
        }
        Ok(IoStart::Done(done))
    }

    fn seekable(&self) -> bool {
        true
    }

    fn seek(&self, offset: i64, whence: Whence, current: u64, _size: u64) -> Result<u64> {
        match whence {
            Whence::Set => Ok(offset.cast_unsigned()),
            Whence::Current => Ok(current.wrapping_add_signed(offset)),
            Whence::End | Whence::Data | Whence::Hole => Err(Errno::EINVAL),
        }
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
