//! `/dev/null`, `/dev/zero`, `/dev/full`, `/dev/random`, `/dev/urandom` (`null(4)`, `full(4)`, `random(4)`,
//! `drivers/char/mem.c`).

use core::any::Any;
use std::sync::Arc;

use sentry_base::{Errno, Result, WaitQueue, rand};
use sentry_memory::{UserReader, UserWriter};
use sentry_vfs::{FileKind, FileOps, IoCtx, IoStart, Pos, Whence};

/// The most that one read of random bytes gives (`random(4)`).
const RANDOM_MAX: usize = (32 << 20) - 1;
/// `RNDGETENTCNT`: bits of entropy, of which there are always enough.
const RNDGETENTCNT: u32 = 0x8004_5200;
const ENTROPY_BITS: i32 = 256;

/// Opens the memory device of this minor number.
pub(crate) fn open(minor: u32) -> Result<Arc<dyn FileOps>> {
    Ok(match minor {
        3 => Arc::new(NullFile),
        5 => Arc::new(ZeroFile),
        7 => Arc::new(FullFile),
        8 => Arc::new(RandomFile { queue: Some(WaitQueue::new()) }),
        9 => Arc::new(RandomFile { queue: None }),
        _ => return Err(Errno::ENXIO),
    })
}

/// Whether mapping this file means anonymous memory: it is `/dev/zero`.
pub fn is_zero(file: &dyn FileOps) -> bool {
    file.as_any().is::<ZeroFile>()
}

fn read_zeros(dst: &mut UserWriter<'_>) -> Result<IoStart<usize>> {
    let n = dst.fill(usize::MAX, |buf, _| {
        buf.fill(0);
        Ok(buf.len())
    })?;
    Ok(IoStart::Done(n))
}

/// `/dev/null`.
#[derive(Debug)]
struct NullFile;

impl FileOps for NullFile {
    fn try_read(&self, _io: &IoCtx<'_>, _dst: &mut UserWriter<'_>, _pos: Pos) -> Result<IoStart<usize>> {
        Ok(IoStart::Done(0))
    }
    fn try_write(&self, _io: &IoCtx<'_>, src: &mut UserReader<'_>, _pos: Pos) -> Result<IoStart<usize>> {
        // Not even looked at: a bad address is no error here.
        Ok(IoStart::Done(src.skip(usize::MAX)))
    }
    fn seekable(&self) -> bool {
        true
    }
    fn seek(&self, _offset: i64, _whence: Whence, _current: u64, _size: u64) -> Result<u64> {
        Ok(0)
    }
    fn kind(&self) -> FileKind {
        FileKind::CharDevice
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// `/dev/zero`.
#[derive(Debug)]
struct ZeroFile;

impl FileOps for ZeroFile {
    fn try_read(&self, _io: &IoCtx<'_>, dst: &mut UserWriter<'_>, _pos: Pos) -> Result<IoStart<usize>> {
        read_zeros(dst)
    }
    fn try_write(&self, _io: &IoCtx<'_>, src: &mut UserReader<'_>, _pos: Pos) -> Result<IoStart<usize>> {
        Ok(IoStart::Done(src.skip(usize::MAX)))
    }
    fn seekable(&self) -> bool {
        true
    }
    fn seek(&self, _offset: i64, _whence: Whence, _current: u64, _size: u64) -> Result<u64> {
        Ok(0)
    }
    fn mappable(&self) -> Result<Arc<dyn sentry_mm::Mappable>> {
        Ok(Arc::new(sentry_mm::ZeroPages))
    }
    fn kind(&self) -> FileKind {
        FileKind::CharDevice
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// `/dev/full`.
#[derive(Debug)]
struct FullFile;

impl FileOps for FullFile {
    fn try_read(&self, _io: &IoCtx<'_>, dst: &mut UserWriter<'_>, _pos: Pos) -> Result<IoStart<usize>> {
        read_zeros(dst)
    }
    fn try_write(&self, _io: &IoCtx<'_>, _src: &mut UserReader<'_>, _pos: Pos) -> Result<IoStart<usize>> {
        Err(Errno::ENOSPC)
    }
    fn seekable(&self) -> bool {
        true
    }
    fn seek(&self, _offset: i64, _whence: Whence, _current: u64, _size: u64) -> Result<u64> {
        Ok(0)
    }
    fn kind(&self) -> FileKind {
        FileKind::CharDevice
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// `/dev/random`, which can be polled, and `/dev/urandom`, which cannot. Neither ever blocks.
#[derive(Debug)]
struct RandomFile {
    queue: Option<WaitQueue>,
}

impl FileOps for RandomFile {
    fn wait_queue(&self) -> Option<&WaitQueue> {
        self.queue.as_ref()
    }
    fn try_read(&self, _io: &IoCtx<'_>, dst: &mut UserWriter<'_>, _pos: Pos) -> Result<IoStart<usize>> {
        let n = dst.fill(RANDOM_MAX, |buf, _| {
            rand::fill(buf)?;
            Ok(buf.len())
        })?;
        Ok(IoStart::Done(n))
    }
    fn try_write(&self, _io: &IoCtx<'_>, src: &mut UserReader<'_>, _pos: Pos) -> Result<IoStart<usize>> {
        // The host's pool needs no seed of ours.
        Ok(IoStart::Done(src.skip(usize::MAX)))
    }
    fn seekable(&self) -> bool {
        true
    }
    fn seek(&self, _offset: i64, _whence: Whence, current: u64, _size: u64) -> Result<u64> {
        Ok(current)
    }
    fn ioctl(&self, io: &IoCtx<'_>, command: u32, arg: u64) -> Result<i64> {
        match command {
            RNDGETENTCNT => {
                io.caller.mem().copy_out(arg, &ENTROPY_BITS.to_ne_bytes())?;
                Ok(0)
            }
            _ => Err(Errno::EINVAL),
        }
    }
    fn kind(&self) -> FileKind {
        FileKind::CharDevice
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}
