//! Open files of a gofer mount: data goes through the donated descriptor, without the gofer.

use std::any::Any;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::ReadWriteFlags;
use sentry_base::{Errno, Result};
use sentry_memory::{UserReader, UserWriter};
use sentry_mm::{Mappable, MappedPiece, TextSlot};
use sentry_vfs::{FileOps, IoCtx, IoStart, Pos, Whence};

use crate::{GoferFs, GoferInode, from_rustix};

/// The most bytes that one call moves from application memory at once.
const CHUNK: usize = 64 * 1024;

/// An open regular file.
#[derive(Debug)]
pub(crate) struct GoferFile {
    inode: Arc<GoferInode>,
    fs: Arc<GoferFs>,
}

impl GoferFile {
    /// The inode has counted one more open file.
    pub fn new(inode: Arc<GoferInode>, fs: Arc<GoferFs>) -> Self {
        Self { inode, fs }
    }

    fn read_file(&self) -> Result<Arc<OwnedFd>> {
        self.inode.file_to_read(&self.fs)
    }

    fn write_file(&self) -> Result<Arc<OwnedFd>> {
        self.inode.file_to_write(&self.fs)
    }
}

impl Drop for GoferFile {
    fn drop(&mut self) {
        self.inode.closed();
    }
}

fn offset_of(pos: Pos) -> Result<u64> {
    match pos {
        Pos::At(offset) => Ok(offset),
        Pos::Stream | Pos::Append => Err(Errno::EINVAL),
    }
}

impl FileOps for GoferFile {
    fn try_read(&self, _io: &IoCtx<'_>, dst: &mut UserWriter<'_>, pos: Pos) -> Result<IoStart<usize>> {
        let start = offset_of(pos)?;
        let file = self.read_file()?;
        let limit = dst.remaining();
        dst.fill(limit, |buf, done| {
            let at = start.checked_add(done as u64).ok_or(Errno::EINVAL)?;
            rustix::io::pread(&file, buf, at).map_err(from_rustix)
        })
        .map(IoStart::Done)
    }

    fn try_write(&self, _io: &IoCtx<'_>, src: &mut UserReader<'_>, pos: Pos) -> Result<IoStart<usize>> {
        let file = self.write_file()?;
        let mut buf = vec![0_u8; src.remaining().min(CHUNK)];
        let mut done = 0_usize;
        while src.remaining() > 0 {
            // Taken from the source only once it is stored.
            let got = match src.clone().read(&mut buf) {
                Ok(got) => got,
                Err(e) if done == 0 => return Err(e),
                Err(_) => break,
            };
            let part = buf.get(..got).unwrap_or_default();
            let wrote = if pos == Pos::Append {
                let slices = [std::io::IoSlice::new(part)];
                rustix::io::pwritev2(&file, &slices, 0, ReadWriteFlags::APPEND)
            } else {
                let at = offset_of(pos)?.checked_add(done as u64).ok_or(Errno::EFBIG)?;
                rustix::io::pwrite(&file, part, at)
            };
            match wrote {
                Ok(n) => {
                    done += src.skip(n);
                    if n < got {
                        break;
                    }
                }
                Err(e) if done == 0 => return Err(from_rustix(e)),
                Err(_) => break,
            }
        }
        Ok(IoStart::Done(done))
    }

    fn seekable(&self) -> bool {
        true
    }

    fn seek(&self, offset: i64, whence: Whence, current: u64, size: u64) -> Result<u64> {
        let unsigned = || u64::try_from(offset).map_err(|_| Errno::ENXIO);
        let base = match whence {
            Whence::Set => 0,
            Whence::Current => current,
            Whence::End => size,
            Whence::Data | Whence::Hole => {
                let to = if whence == Whence::Data {
                    SeekFrom::Data(unsigned()?)
                } else {
                    SeekFrom::Hole(unsigned()?)
                };
                return rustix::fs::seek(self.read_file()?, to).map_err(from_rustix);
            }
        };
        base.checked_add_signed(offset).filter(|p| i64::try_from(*p).is_ok()).ok_or(Errno::EINVAL)
    }

    fn mappable(&self) -> Result<Arc<dyn Mappable>> {
        Ok(Arc::clone(&self.inode) as Arc<dyn Mappable>)
    }

    fn allocate(&self, mode: u32, offset: u64, len: u64) -> Result<()> {
        let mode = FallocateFlags::from_bits(mode).ok_or(Errno::EOPNOTSUPP)?;
        rustix::fs::fallocate(self.write_file()?, mode, offset, len).map_err(from_rustix)
    }

    fn sync(&self, data_only: bool) -> Result<()> {
        if self.fs.is_fixed() {
            return Ok(());
        }
        let file = self.read_file()?;
        let done = if data_only { rustix::fs::fdatasync(file) } else { rustix::fs::fsync(file) };
        done.map_err(from_rustix)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// A regular file to be mapped: its host file, page by page.
impl Mappable for GoferInode {
    fn pieces(&self, offset: u64, len: u64, write: bool) -> Result<Vec<MappedPiece>> {
        let fs = self.fs()?;
        let fd = if write { self.file_to_write(&fs)? } else { self.file_to_read(&fs)? };
        Ok(vec![MappedPiece { offset, len, fd, fd_offset: offset, pin: None }])
    }

    fn is_host_file(&self) -> bool {
        true
    }

    fn text(&self) -> Option<(&TextSlot, u64)> {
        Some((self.text_slot(), self.contents_stamp()))
    }

    fn identity(&self) -> (u64, u64) {
        self.device_and_ino()
    }

    fn sync(&self, offset: u64, len: u64) -> Result<()> {
        let fs = self.fs()?;
        if fs.is_fixed() {
            return Ok(());
        }
        // The host writes back what its page cache holds of the file, wherever it was mapped.
        let _ = (offset, len);
        rustix::fs::fdatasync(self.file_to_read(&fs)?).map_err(from_rustix)
    }
}
