//! What all mount namespaces share: the openers of devices and FIFOs, and file locks.

use core::any::{Any, TypeId};
use core::fmt::Debug;
use core::sync::atomic::{AtomicU32, Ordering};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use sentry_base::lock::rank;
use sentry_base::{Mutex, Result, RwLock, WaitQueue};

use crate::lock_table::LockTable;
use crate::mount::Tree;
use crate::{Attachment, Caller, FileOps, FileSystem, IoStart, OpenFlags};

/// Opens the devices of one major number.
pub trait DeviceOpener: Send + Sync {
    /// Opens the device `rdev` (`makedev(3)`); `ENXIO` for a minor number that is not there.
    fn open(&self, rdev: u64, flags: OpenFlags, caller: &dyn Caller) -> Result<Arc<dyn FileOps>>;
}

impl Debug for dyn DeviceOpener {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("DeviceOpener")
    }
}

/// Opens FIFOs (`fifo(7)`).
pub trait FifoOpener: Send + Sync {
    /// Opens the pipe that hangs on `attachment`, making it at the first open. `ENXIO` for a non-blocking open for
    /// writing without a reader.
    fn open(&self, attachment: &Attachment, flags: OpenFlags, caller: &dyn Caller) -> Result<FifoOpen>;
}

impl Debug for dyn FifoOpener {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("FifoOpener")
    }
}

/// How the opening of a FIFO went.
#[derive(Debug)]
pub enum FifoOpen {
    Ready(Arc<dyn FileOps>),
    /// The other end is missing. This end counts as open until the wait is dropped.
    Wait(Box<dyn FifoWait>),
}

/// An end of a FIFO that waits for the other.
pub trait FifoWait: Send + Sync {
    /// Notified when the other end may have come.
    fn wait_queue(&self) -> &WaitQueue;
    /// The open file once the other end has come (even if it has gone again since).
    fn try_open(&self) -> Result<IoStart<Arc<dyn FileOps>>>;
}

impl Debug for dyn FifoWait {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("FifoWait")
    }
}

/// A type of file system, for `mount(2)`.
pub trait FsType: Send + Sync {
    /// A file system to mount. `data` holds the mount options; `EINVAL` for options that are not understood.
    fn mount(&self, source: &str, data: &str, caller: &dyn Caller) -> Result<Arc<dyn FileSystem>>;

    /// Whether the root of a user namespace may mount it (`FS_USERNS_MOUNT`).
    fn allowed_in_user_ns(&self) -> bool {
        true
    }
}

impl Debug for dyn FsType {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("FsType")
    }
}

#[derive(Default)]
struct Openers {
    char_devices: HashMap<u32, Arc<dyn DeviceOpener>>,
    block_devices: HashMap<u32, Arc<dyn DeviceOpener>>,
    fifo: Option<Arc<dyn FifoOpener>>,
    types: BTreeMap<String, Arc<dyn FsType>>,
}

type Singletons = HashMap<TypeId, Arc<dyn Any + Send + Sync>>;

/// The virtual file system of a sandbox.
#[derive(Default)]
pub struct Vfs {
    openers: RwLock<Openers, { rank::LEAF }>,
    locks: LockTable,
    singletons: Mutex<Singletons, { rank::LEAF }>,
    mounts: RwLock<Tree, { rank::MOUNT_TREE }>,
}

impl Debug for Vfs {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Vfs")
    }
}

impl Vfs {
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Registers who opens the character devices of `major`.
    pub fn register_char(&self, major: u32, opener: Arc<dyn DeviceOpener>) {
        self.openers.write().char_devices.insert(major, opener);
    }

    /// Registers who opens the block devices of `major`.
    pub fn register_block(&self, major: u32, opener: Arc<dyn DeviceOpener>) {
        self.openers.write().block_devices.insert(major, opener);
    }

    pub fn register_fifo(&self, opener: Arc<dyn FifoOpener>) {
        self.openers.write().fifo = Some(opener);
    }

    pub(crate) fn device_opener(&self, block: bool, rdev: u64) -> Option<Arc<dyn DeviceOpener>> {
        let openers = self.openers.read();
        let table = if block { &openers.block_devices } else { &openers.char_devices };
        table.get(&libc::major(rdev)).cloned()
    }

    pub(crate) fn fifo_opener(&self) -> Option<Arc<dyn FifoOpener>> {
        self.openers.read().fifo.clone()
    }

    /// Registers a type of file system for `mount(2)` and `/proc/filesystems`.
    pub fn register_type(&self, name: &str, fs_type: Arc<dyn FsType>) {
        self.openers.write().types.insert(name.to_owned(), fs_type);
    }

    pub fn fs_type(&self, name: &str) -> Option<Arc<dyn FsType>> {
        self.openers.read().types.get(name).cloned()
    }

    /// The names of the types that can be mounted.
    pub fn fs_types(&self) -> Vec<String> {
        self.openers.read().types.keys().cloned().collect()
    }

    /// The one object of type `T` in this sandbox, made by `make` at the first call (the maker of memory files, say).
    /// `None` never comes: a type has one entry.
    pub fn singleton<T: Any + Send + Sync>(&self, make: impl FnOnce() -> Arc<T>) -> Option<Arc<T>> {
        let mut all = self.singletons.lock();
        Arc::clone(all.entry(TypeId::of::<T>()).or_insert_with(|| make())).downcast().ok()
    }

    /// All mounts of all namespaces.
    pub(crate) fn mounts(&self) -> &RwLock<Tree, { rank::MOUNT_TREE }> {
        &self.mounts
    }

    /// The locks of all files.
    pub fn locks(&self) -> &LockTable {
        &self.locks
    }
}

/// A device number for a file system without a device (`get_anon_bdev`): major 0 and a minor of its own.
pub fn anonymous_dev() -> u64 {
    // Below are the numbers that the kernel's own singletons use.
    static NEXT: AtomicU32 = AtomicU32::new(64);
    libc::makedev(0, NEXT.fetch_add(1, Ordering::Relaxed))
}
