//! `/proc/PID/mem`: a process's memory as a file, for debuggers (`fs/proc/base.c`).

use core::any::Any;
use std::sync::Arc;

use sentry_base::{Errno, Result};
use sentry_kernel::Mm;
use sentry_kernel::ptrace::{Access, may_access};
use sentry_memory::{UserReader, UserWriter};
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
}

impl Inode for MemFile {
    plain_inode!(FileKind::Regular);

    fn attr(&self) -> Result<Attr> {
        Ok(self.attr)
    }
    fn open(self: Arc<Self>, _flags: OpenFlags, caller: &dyn Caller) -> Result<Arc<dyn FileOps>> {
        let task = self.subject.task()?;
        let allowed = task_of(caller).is_some_and(|c| may_access(c, &task, Access::AttachFs));
        if !allowed {
            return Err(Errno::EACCES);
        }
        Ok(Arc::new(OpenMem { mm: task.mm() }))
    }
}

/// The open file: it stays with the memory that the process had then, whatever the process executes later.
struct OpenMem {
    mm: Arc<Mm>,
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
