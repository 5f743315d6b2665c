//! File descriptions: what descriptors name and `dup` and `fork` share (`open(2)`, "open file description").

use core::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use sentry_base::{Mutex, Result};

use crate::lock_table::{FileLocks, LockOwner};
use crate::{Attr, FileOps, Inode, Location, OpenFlags};

/// An open file description.
#[derive(Debug)]
pub struct FileDescription {
    id: u64,
    ops: Arc<dyn FileOps>,
    flags: AtomicU32,
    /// Where it was opened; `None` for pipes, sockets and the like.
    location: Option<Location>,
    position: Mutex<u64, 45>,
    /// Set once it has taken an OFD lock or a `flock`, to be given up with the description.
    locks: OnceLock<Arc<FileLocks>>,
    /// `F_SETOWN` and `F_SETSIG`.
    owner: AtomicI32,
    signal: AtomicI32,
}

impl Drop for FileDescription {
    fn drop(&mut self) {
        if let Some(locks) = self.locks.get() {
            locks.release(self.lock_owner());
        }
    }
}

impl FileDescription {
    pub fn new(ops: Arc<dyn FileOps>, flags: OpenFlags, location: Option<Location>) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Arc::new(Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            ops,
            flags: AtomicU32::new(flags.bits()),
            location,
            position: Mutex::new(0),
            locks: OnceLock::new(),
            owner: AtomicI32::new(0),
            signal: AtomicI32::new(0),
        })
    }

    /// Unique in this sandbox; orders locks and names lock owners.
    pub fn id(&self) -> u64 {
        self.id
    }

    pub fn ops(&self) -> &Arc<dyn FileOps> {
        &self.ops
    }

    pub fn flags(&self) -> OpenFlags {
        OpenFlags::from_bits_retain(self.flags.load(Ordering::Relaxed))
    }

    pub fn location(&self) -> Option<&Location> {
        self.location.as_ref()
    }

    pub fn inode(&self) -> Option<&Arc<dyn Inode>> {
        self.location.as_ref().map(Location::inode)
    }

    /// The position; locked for as long as a transfer needs it to stand still. Never held over a wait.
    pub fn position(&self) -> &Mutex<u64, 45> {
        &self.position
    }

    /// Replaces the status flags that `F_SETFL` may change and tells the file.
    pub fn set_flags(&self, flags: OpenFlags) {
        self.flags.store(flags.bits(), Ordering::Relaxed);
        self.ops.flags_changed(flags);
    }

    /// `fstat(2)`.
    pub fn attr(&self) -> Result<Attr> {
        match (self.ops.attr(), self.inode()) {
            (Some(attr), _) => attr,
            (None, Some(inode)) => inode.attr(),
            (None, None) => Err(sentry_base::Errno::EBADF),
        }
    }

    /// The owner of this description's OFD locks and `flock`s.
    pub fn lock_owner(&self) -> LockOwner {
        LockOwner::Description(self.id)
    }

    /// Remembers the locks of its file, to give up its own with the last descriptor.
    pub fn note_locks(&self, locks: &Arc<FileLocks>) {
        drop(self.locks.set(Arc::clone(locks)));
    }

    /// The process (or, negative, process group) of `F_SETOWN`.
    pub fn owner(&self) -> &AtomicI32 {
        &self.owner
    }

    /// The signal of `F_SETSIG`.
    pub fn signal(&self) -> &AtomicI32 {
        &self.signal
    }
}
