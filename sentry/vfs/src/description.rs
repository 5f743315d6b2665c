//! File descriptions: what descriptors name and `dup` and `fork` share (`open(2)`, "open file description").

use core::any::Any;
use core::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use sentry_base::{Events, Mutex, Observer, Result, WaitId, lock::rank};

use crate::lock_table::{FileLocks, LockOwner};
use crate::watch::event;
use crate::{Attr, FileOps, InUse, Inode, Location, OpenFlags};

/// Somebody who must know when a description goes away: an epoll instance that watches it.
pub trait CloseWatcher: Send + Sync {
    /// The description with this id is being dropped; `ops` is still whole. Called without locks.
    fn closed(&self, id: u64, ops: &Arc<dyn FileOps>);
}

impl core::fmt::Debug for dyn CloseWatcher {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("CloseWatcher")
    }
}

/// An open file description. Drop it without locks held: closing a file may take that file's.
#[derive(Debug)]
pub struct FileDescription {
    id: u64,
    ops: Arc<dyn FileOps>,
    flags: AtomicU32,
    /// Where it was opened; `None` for pipes, sockets and the like.
    location: Option<Location>,
    position: Mutex<u64, 15>,
    /// Set once it has taken an OFD lock or a `flock`, to be given up with the description.
    locks: OnceLock<Arc<FileLocks>>,
    /// `F_SETOWN` and `F_SETSIG`.
    owner: AtomicI32,
    signal: AtomicI32,
    /// Real and effective user of who set the owner.
    owner_set_by: AtomicU64,
    /// In the file's queue, for the signals to its owner.
    waiter: Mutex<Option<WaitId>, { rank::LEAF }>,
    attachment: Mutex<Option<Arc<dyn Any + Send + Sync>>, { rank::LEAF }>,
    watchers: Mutex<Vec<Weak<dyn CloseWatcher>>, { rank::LEAF }>,
    /// Counts it among the users of its file.
    in_use: Option<InUse>,
}

impl Drop for FileDescription {
    fn drop(&mut self) {
        if let Some(at) = self.location.as_ref().filter(|_| !self.flags().contains(OpenFlags::PATH)) {
            at.notify(if self.flags().writes() { event::CLOSE_WRITE } else { event::CLOSE_NOWRITE });
            at.notify_last_use();
        }
        if self.in_use.is_some()
            && let Some(usage) = self.inode().and_then(|inode| inode.usage())
        {
            usage.drop_lease(self.id);
        }
        if let Some(locks) = self.locks.get() {
            locks.release(self.lock_owner());
        }
        self.watch_readiness(None);
        for watcher in core::mem::take(self.watchers.get_mut()) {
            if let Some(watcher) = watcher.upgrade() {
                watcher.closed(self.id, &self.ops);
            }
        }
    }
}

impl FileDescription {
    pub fn new(ops: Arc<dyn FileOps>, flags: OpenFlags, location: Option<Location>) -> Arc<Self> {
        Self::in_use(ops, flags, location, None)
    }

    /// The description of a regular file, which counts its users.
    pub(crate) fn in_use(
        ops: Arc<dyn FileOps>,
        flags: OpenFlags,
        location: Option<Location>,
        in_use: Option<InUse>,
    ) -> Arc<Self> {
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
            owner_set_by: AtomicU64::new(0),
            waiter: Mutex::new(None),
            attachment: Mutex::new(None),
            watchers: Mutex::new(Vec::new()),
            in_use,
        })
    }

    /// Lets others write to a file that was opened to run (`allow_write_access`).
    pub fn allow_write(&self) {
        if let Some(in_use) = &self.in_use {
            in_use.allow_write();
        }
    }

    /// Tells `watcher` when this description goes away.
    pub fn watch_close(&self, watcher: Weak<dyn CloseWatcher>) {
        let mut watchers = self.watchers.lock();
        // The same epoll instance may watch one description under many descriptors.
        watchers.retain(|w| w.strong_count() > 0 && !w.ptr_eq(&watcher));
        watchers.push(watcher);
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
    pub fn position(&self) -> &Mutex<u64, 15> {
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

    /// Real and effective user of who set the owner.
    pub fn owner_set_by(&self) -> (u32, u32) {
        let both = self.owner_set_by.load(Ordering::Relaxed);
        (u32::try_from(both >> 32).unwrap_or(u32::MAX), u32::try_from(both & 0xffff_ffff).unwrap_or(u32::MAX))
    }

    pub fn note_owner_set_by(&self, uid: u32, euid: u32) {
        self.owner_set_by.store(u64::from(uid) << 32 | u64::from(euid), Ordering::Relaxed);
    }

    /// Has one observer, or none, told of the file's events for as long as this description lives. The observer must
    /// not own the description.
    pub fn watch_readiness(&self, observer: Option<(Events, Arc<dyn Observer>)>) {
        let Some(queue) = self.ops.wait_queue() else { return };
        let new = observer.map(|(mask, observer)| queue.add(mask, observer));
        let old = core::mem::replace(&mut *self.waiter.lock(), new);
        if let Some(old) = old {
            queue.remove(old);
        }
    }

    /// What [`FileDescription::attach`] has left here.
    pub fn attachment(&self) -> Option<Arc<dyn Any + Send + Sync>> {
        self.attachment.lock().clone()
    }

    /// Keeps something that ends with this description, in place of what was kept before.
    pub fn attach(&self, what: Option<Arc<dyn Any + Send + Sync>>) {
        let old = core::mem::replace(&mut *self.attachment.lock(), what);
        drop(old);
    }

    /// The signal of `F_SETSIG`.
    pub fn signal(&self) -> &AtomicI32 {
        &self.signal
    }
}

impl sentry_mm::MappedFile for FileDescription {
    fn as_any(&self) -> &dyn core::any::Any {
        self
    }
}
