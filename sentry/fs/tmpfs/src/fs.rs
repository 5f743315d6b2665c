//! The file system as a whole: limits, counters, its root.

use core::any::Any;
use core::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use sentry_base::{Errno, Mutex, Result};
use sentry_memory::MemoryFile;
use sentry_vfs::{Caller, FileKind, FileSystem, FsType, Inode, Owner, StatFs, anonymous_dev};

use crate::TmpfsOptions;
use crate::inode::TmpInode;

/// `TMPFS_MAGIC`
const MAGIC: u64 = 0x0102_1994;

/// What all inodes of one tmpfs share.
pub(crate) struct Shared {
    pub dev: u64,
    pub memory: Arc<MemoryFile>,
    pub options: TmpfsOptions,
    used_bytes: AtomicU64,
    used_inodes: AtomicU64,
    next_ino: AtomicU64,
    /// Held over every change of names.
    pub tree: Mutex<(), 46>,
    fs: OnceLock<Weak<TmpFs>>,
}

impl Shared {
    pub fn next_ino(&self) -> u64 {
        self.next_ino.fetch_add(1, Ordering::Relaxed)
    }

    /// Charges up to `want` bytes, in whole pages; returns what fits.
    pub fn charge(&self, want: u64) -> u64 {
        let Some(max) = self.options.size else {
            self.used_bytes.fetch_add(want, Ordering::Relaxed);
            return want;
        };
        let mut granted = 0;
        let update = self.used_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            let room = max.saturating_sub(used);
            granted = want.min(room - room % 4096);
            Some(used + granted)
        });
        if update.is_ok() { granted } else { 0 }
    }

    /// Charges all of `want` bytes or fails with `ENOSPC`.
    pub fn charge_all(&self, want: u64) -> Result<()> {
        let granted = self.charge(want);
        if granted == want {
            return Ok(());
        }
        self.release(granted);
        Err(Errno::ENOSPC)
    }

    pub fn release(&self, bytes: u64) {
        self.used_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub fn charge_inode(&self) -> Result<()> {
        let max = self.options.inodes.unwrap_or(u64::MAX);
        self.used_inodes
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| (used < max).then_some(used + 1))
            .map(|_| ())
            .map_err(|_| Errno::ENOSPC)
    }

    pub fn release_inode(&self) {
        self.used_inodes.fetch_sub(1, Ordering::Relaxed);
    }

    /// The file system of these inodes. Open files keep it through their mount; should it be gone all the same, an empty
    /// one stands in.
    pub fn filesystem(self: &Arc<Self>) -> Arc<dyn FileSystem> {
        match self.fs.get().and_then(Weak::upgrade) {
            Some(fs) => fs,
            None => Arc::new(TmpFs { shared: Arc::clone(self), root: OnceLock::new() }),
        }
    }
}

/// A tmpfs.
pub struct TmpFs {
    shared: Arc<Shared>,
    root: OnceLock<Arc<TmpInode>>,
}

impl core::fmt::Debug for TmpFs {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "TmpFs({:#x})", self.shared.dev)
    }
}

impl TmpFs {
    /// An empty tmpfs whose data goes to `memory`.
    pub fn new(memory: &Arc<MemoryFile>, options: TmpfsOptions) -> Arc<Self> {
        let shared = Arc::new(Shared {
            dev: anonymous_dev(),
            memory: Arc::clone(memory),
            options,
            used_bytes: AtomicU64::new(0),
            used_inodes: AtomicU64::new(0),
            next_ino: AtomicU64::new(1),
            tree: Mutex::new(()),
            fs: OnceLock::new(),
        });
        let fs = Arc::new(Self { shared, root: OnceLock::new() });
        // The first `set` of a fresh cell cannot fail.
        let _ = fs.shared.fs.set(Arc::downgrade(&fs));
        fs
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub(crate) fn root_inode(&self) -> &Arc<TmpInode> {
        self.root.get_or_init(|| {
            let options = &self.shared.options;
            let owner = Owner { uid: options.uid, gid: options.gid };
            TmpInode::uncharged(&self.shared, FileKind::Directory, options.mode, owner)
        })
    }

    /// Bytes of data and inodes in use.
    pub fn usage(&self) -> (u64, u64) {
        let (bytes, inodes) = (&self.shared.used_bytes, &self.shared.used_inodes);
        (bytes.load(Ordering::Relaxed), inodes.load(Ordering::Relaxed))
    }
}

impl FileSystem for TmpFs {
    fn name(&self) -> &'static str {
        "tmpfs"
    }

    fn root(&self) -> Arc<dyn Inode> {
        Arc::clone(self.root_inode()) as Arc<dyn Inode>
    }

    fn statfs(&self) -> Result<StatFs> {
        let (bytes, inodes) = self.usage();
        let total = self.shared.options.size.unwrap_or(0);
        let free = total.saturating_sub(bytes) / 4096;
        let files = self.shared.options.inodes.unwrap_or(0);
        Ok(StatFs {
            magic: MAGIC,
            block_size: 4096,
            blocks: total / 4096,
            blocks_free: free,
            blocks_available: free,
            files,
            files_free: files.saturating_sub(inodes),
            name_max: 255,
            flags: 0,
        })
    }

    fn dev(&self) -> u64 {
        self.shared.dev
    }

    fn options(&self) -> String {
        self.shared.options.text()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// tmpfs as `mount(2)` makes it.
#[derive(Debug)]
pub struct TmpfsType {
    pub memory: Arc<MemoryFile>,
    /// Bytes of memory that the sandbox sees: a tmpfs gets half of it unless `size=` says otherwise.
    pub total_memory: u64,
}

impl FsType for TmpfsType {
    fn mount(&self, _source: &str, data: &str, caller: &dyn Caller) -> Result<Arc<dyn FileSystem>> {
        let mut options = TmpfsOptions::parse(data, self.total_memory)?;
        if !data.contains("size=") && !data.contains("nr_blocks=") {
            options.size = Some(self.total_memory / 2 / 4096 * 4096);
        }
        // Ids are named as in the mounter's user namespace.
        let creds = caller.creds();
        options.uid = if data.contains("uid=") { creds.user_ns.uid(options.uid)? } else { creds.fsuid };
        options.gid = if data.contains("gid=") { creds.user_ns.gid(options.gid)? } else { creds.fsgid };
        Ok(TmpFs::new(&self.memory, options))
    }
}
