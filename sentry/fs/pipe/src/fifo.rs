//! FIFOs as the VFS opens them: the pipe hangs on the inode.

use std::sync::Arc;

use sentry_base::{Errno, Result, WaitQueue};
use sentry_vfs::{Attachment, Caller, FifoOpener, FileOps, IoStart, OpenFlags};

use crate::{FifoOpen, FifoWait, Pipe, open_fifo};

/// Opens the FIFOs of all file systems; register it with [`sentry_vfs::Vfs::register_fifo`].
#[derive(Debug)]
pub struct Fifos;

impl FifoOpener for Fifos {
    fn open(
        &self,
        attachment: &Attachment,
        flags: OpenFlags,
        _caller: &dyn Caller,
    ) -> Result<sentry_vfs::FifoOpen> {
        // A FIFO's attachment is never anything but its pipe.
        let pipe = attachment.get_or_insert(Pipe::fifo).ok_or(Errno::ENXIO)?;
        Ok(match open_fifo(&pipe, flags)? {
            FifoOpen::Done(end) => sentry_vfs::FifoOpen::Ready(end),
            FifoOpen::Wait(wait) => sentry_vfs::FifoOpen::Wait(Box::new(wait)),
        })
    }
}

impl sentry_vfs::FifoWait for FifoWait {
    fn wait_queue(&self) -> &WaitQueue {
        Self::wait_queue(self)
    }

    fn try_open(&self) -> Result<IoStart<Arc<dyn FileOps>>> {
        Ok(match self.try_finish() {
            IoStart::Done(end) => IoStart::Done(end),
            IoStart::WouldBlock => IoStart::WouldBlock,
        })
    }
}
