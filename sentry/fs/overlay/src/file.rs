//! Open files: each call goes to the layer that holds the file at that moment.

use std::any::Any;
use std::sync::Arc;

use sentry_base::{Mutex, Result};
use sentry_memory::{UserReader, UserWriter};
use sentry_mm::Mappable;
use sentry_vfs::{FileOps, IoCtx, IoStart, OpenFlags, Pos, Whence};

use crate::inode::OverlayInode;
use crate::kernel_caller::KernelCaller;

/// The open file of a layer.
struct Backing {
    file: Arc<dyn FileOps>,
    is_upper: bool,
}

/// An open regular file of the overlay.
pub(crate) struct OverlayFile {
    inode: Arc<OverlayInode>,
    flags: OpenFlags,
    backing: Mutex<Backing, 47>,
}

impl core::fmt::Debug for OverlayFile {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "OverlayFile({:?})", self.inode)
    }
}

impl OverlayFile {
    pub fn new(inode: Arc<OverlayInode>, flags: OpenFlags, file: Arc<dyn FileOps>, is_upper: bool) -> Self {
        Self { inode, flags, backing: Mutex::new(Backing { file, is_upper }) }
    }

    /// The layer's file, which changes once if the file is copied up while it is open.
    fn file(&self) -> Result<Arc<dyn FileOps>> {
        let mut backing = self.backing.lock();
        if !backing.is_upper
            && let Some(upper) = self.inode.upper()
        {
            let flags = self.flags - OpenFlags::TRUNC;
            let file = Arc::clone(upper).open(flags, &KernelCaller)?;
            let old = core::mem::replace(&mut *backing, Backing { file: Arc::clone(&file), is_upper: true });
            drop(backing);
            drop(old);
            return Ok(file);
        }
        Ok(Arc::clone(&backing.file))
    }
}

impl FileOps for OverlayFile {
    fn try_read(&self, io: &IoCtx<'_>, dst: &mut UserWriter<'_>, pos: Pos) -> Result<IoStart<usize>> {
        self.file()?.try_read(io, dst, pos)
    }

    fn try_write(&self, io: &IoCtx<'_>, src: &mut UserReader<'_>, pos: Pos) -> Result<IoStart<usize>> {
        self.file()?.try_write(io, src, pos)
    }

    fn seekable(&self) -> bool {
        true
    }

    fn seek(&self, offset: i64, whence: Whence, current: u64, size: u64) -> Result<u64> {
        self.file()?.seek(offset, whence, current, size)
    }

    fn ioctl(&self, io: &IoCtx<'_>, command: u32, arg: u64) -> Result<i64> {
        self.file()?.ioctl(io, command, arg)
    }

    fn mappable(&self) -> Result<Arc<dyn Mappable>> {
        // The layer's own object: it is what the layer takes truncated pages back from. A mapping made before a copy-up
        // keeps showing the lower file, as with the kernel's overlayfs.
        self.file()?.mappable()
    }

    fn truncate(&self, len: u64) -> Result<()> {
        self.file()?.truncate(len)
    }

    fn allocate(&self, mode: u32, offset: u64, len: u64) -> Result<()> {
        self.file()?.allocate(mode, offset, len)
    }

    fn sync(&self, data_only: bool) -> Result<()> {
        self.file()?.sync(data_only)
    }

    fn flags_changed(&self, flags: OpenFlags) {
        if let Ok(file) = self.file() {
            file.flags_changed(flags);
        }
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
