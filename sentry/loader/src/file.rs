//! What the loader needs of an executable file.

use std::sync::Arc;

use sentry_base::{Errno, Result};
use sentry_memory::UserWriter;
use sentry_mm::{Mappable, MappedFile};
use sentry_vfs::{Caller, FileDescription, IoCtx, IoStart, OpenFlags, Pos};

/// An executable file.
pub trait ExecFile {
    /// Reads at `offset`; fewer bytes than asked for only at the end of the file.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<usize>;
    /// The file as something to map; `ENODEV` for one that cannot be.
    fn mappable(&self) -> Result<Arc<dyn Mappable>>;
    /// What names the mappings and keeps the file open.
    fn name(&self) -> Option<Arc<dyn MappedFile>>;
}

/// An open file of the VFS, read on behalf of a task.
#[derive(Clone, Copy)]
pub struct OpenedFile<'a> {
    pub description: &'a Arc<FileDescription>,
    pub caller: &'a dyn Caller,
}

impl core::fmt::Debug for OpenedFile<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "OpenedFile({})", self.description.id())
    }
}

impl ExecFile for OpenedFile<'_> {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let io = IoCtx { caller: self.caller, flags: OpenFlags::empty() };
        let mut writer = UserWriter::buffer(buf);
        match self.description.ops().try_read(&io, &mut writer, Pos::At(offset))? {
            IoStart::Done(n) => Ok(n),
            // A regular file never makes a reader wait.
            IoStart::WouldBlock => Err(Errno::EIO),
        }
    }

    fn mappable(&self) -> Result<Arc<dyn Mappable>> {
        self.description.ops().mappable()
    }

    fn name(&self) -> Option<Arc<dyn MappedFile>> {
        Some(Arc::clone(self.description) as Arc<dyn MappedFile>)
    }
}

/// Bytes that can be parsed and not mapped.
impl ExecFile for &[u8] {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let rest = usize::try_from(offset).ok().and_then(|at| self.get(at..)).unwrap_or_default();
        let n = rest.len().min(buf.len());
        if let (Some(to), Some(from)) = (buf.get_mut(..n), rest.get(..n)) {
            to.copy_from_slice(from);
        }
        Ok(n)
    }

    fn mappable(&self) -> Result<Arc<dyn Mappable>> {
        Err(Errno::ENODEV)
    }

    fn name(&self) -> Option<Arc<dyn MappedFile>> {
        None
    }
}

/// Fills `buf` as far as the file goes and returns how far that is.
pub(crate) fn read_up_to(file: &dyn ExecFile, offset: u64, buf: &mut [u8]) -> Result<usize> {
    let mut done = 0;
    while let Some(rest) = buf.get_mut(done..).filter(|r| !r.is_empty()) {
        let at = offset.checked_add(done as u64).ok_or(Errno::EINVAL)?;
        match file.read_at(at, rest)? {
            0 => break,
            n => done = done.saturating_add(n),
        }
    }
    Ok(done)
}

/// Fills all of `buf`; `EIO` where the file is too short, as `elf_read` has it.
pub(crate) fn read_exact(file: &dyn ExecFile, offset: u64, buf: &mut [u8]) -> Result<()> {
    let len = buf.len();
    if read_up_to(file, offset, buf)? >= len { Ok(()) } else { Err(Errno::EIO) }
}
