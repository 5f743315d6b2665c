//! eventfd: a counter to wait on (`eventfd(2)`, `fs/eventfd.c`).

use core::any::Any;
use std::sync::Arc;

use sentry_base::{Errno, Events, Mutex, Result, WaitQueue, lock::rank};
use sentry_memory::{UserReader, UserWriter};
use sentry_vfs::{Attr, FileOps, IoCtx, IoStart, Pos};

/// A counter below `u64::MAX`.
#[derive(Debug)]
pub struct EventFd {
    count: Mutex<u64, { rank::LEAF }>,
    /// A read takes one and not all (`EFD_SEMAPHORE`).
    semaphore: bool,
    queue: WaitQueue,
}

impl EventFd {
    pub fn new(initial: u32, semaphore: bool) -> Arc<Self> {
        Arc::new(Self { count: Mutex::new(u64::from(initial)), semaphore, queue: WaitQueue::new() })
    }
}

impl EventFd {
    /// Counts an event of the kernel's own, which never waits (`eventfd_signal`).
    pub fn signal(&self) {
        {
            let mut count = self.count.lock();
            *count = count.saturating_add(1);
        }
        self.queue.notify(Events::IN);
    }
}

impl FileOps for EventFd {
    fn readiness(&self) -> Events {
        let count = *self.count.lock();
        let mut events = Events::empty();
        if count > 0 {
            events |= Events::IN;
        }
        if count == u64::MAX {
            events |= Events::ERR;
        }
        if count < u64::MAX - 1 {
            events |= Events::OUT;
        }
        events
    }

    fn wait_queue(&self) -> Option<&WaitQueue> {
        Some(&self.queue)
    }

    fn try_read(&self, _io: &IoCtx<'_>, dst: &mut UserWriter<'_>, _pos: Pos) -> Result<IoStart<usize>> {
        if dst.remaining() < 8 {
            return Err(Errno::EINVAL);
        }
        let value = {
            let mut count = self.count.lock();
            if *count == 0 {
                return Ok(IoStart::WouldBlock);
            }
            let value = if self.semaphore { 1 } else { *count };
            *count -= value;
            value
        };
        self.queue.notify(Events::OUT);
        // Linux, too, has taken the value when the copy fails.
        if dst.write(&value.to_ne_bytes())? < 8 {
            return Err(Errno::EFAULT);
        }
        Ok(IoStart::Done(8))
    }

    fn try_write(&self, _io: &IoCtx<'_>, src: &mut UserReader<'_>, _pos: Pos) -> Result<IoStart<usize>> {
        if src.remaining() < 8 {
            return Err(Errno::EINVAL);
        }
        let mut bytes = [0; 8];
        // A look first: a write that has to wait takes nothing from its source.
        let mut look = src.clone();
        if look.read(&mut bytes)? < 8 {
            return Err(Errno::EFAULT);
        }
        let add = u64::from_ne_bytes(bytes);
        if add == u64::MAX {
            return Err(Errno::EINVAL);
        }
        {
            let mut count = self.count.lock();
            if u64::MAX - *count <= add {
                return Ok(IoStart::WouldBlock);
            }
            *count += add;
        }
        *src = look;
        self.queue.notify(Events::IN);
        Ok(IoStart::Done(8))
    }

    fn attr(&self) -> Option<Result<Attr>> {
        Some(Ok(crate::anon_attr()))
    }

    fn link_text(&self) -> Option<String> {
        Some("anon_inode:[eventfd]".into())
    }

    fn fdinfo(&self) -> String {
        format!("eventfd-count: {:16x}\n", *self.count.lock())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sentry_vfs::OpenFlags;
    use sentry_vfs::testing::TestCaller;

    #[test]
    fn counts_and_blocks_at_both_ends() {
        let c = TestCaller::new(1);
        let io = c.io(OpenFlags::default());
        let read = |fd: &EventFd| {
            let mut buf = [0; 8];
            fd.try_read(&io, &mut UserWriter::buffer(&mut buf), Pos::Stream)
                .map(|s| matches!(s, IoStart::Done(8)).then(|| u64::from_ne_bytes(buf)))
        };
        let write =
            |fd: &EventFd, v: u64| fd.try_write(&io, &mut UserReader::buffer(&v.to_ne_bytes()), Pos::Stream);
        let fd = EventFd::new(3, false);
        assert_eq!(read(&fd), Ok(Some(3)));
        assert_eq!(read(&fd), Ok(None));
        assert_eq!(write(&fd, u64::MAX), Err(Errno::EINVAL));
        assert_eq!(write(&fd, u64::MAX - 1), Ok(IoStart::Done(8)));
        assert_eq!(write(&fd, 1), Ok(IoStart::WouldBlock));
        assert_eq!(fd.readiness(), Events::IN);
        let fd = EventFd::new(2, true);
        assert_eq!((read(&fd), read(&fd), read(&fd)), (Ok(Some(1)), Ok(Some(1)), Ok(None)));
    }
}
