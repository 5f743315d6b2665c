//! Mounts, mount namespaces and places in the tree (`mount(2)`, `mount_namespaces(7)`).
//!
//! A [`Mount`] is a file system at a place; [`tree`] holds all of them, [`propagate`] carries mounts
//! to where they are received, [`namespace`] has the trees that processes see.

mod info;
mod namespace;
mod propagate;
mod tree;

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::Arc;

use sentry_base::RwLock;
use sentry_base::lock::rank;

use crate::{Dentry, FileSystem, Inode, SuperBlock, UserNs};

pub use info::MountInfo;
pub use namespace::{MountMap, MountNamespace, MountTree, UmountFlags};
pub use tree::Propagation;
pub(crate) use tree::Tree;

bitflags::bitflags! {
    /// Per-mount flags, with the values of `mount(2)`'s `MS_*`.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct MountFlags: u32 {
        const RDONLY = 1;
        const NOSUID = 2;
        const NODEV = 4;
        const NOEXEC = 8;
        const NOSYMFOLLOW = 256;
        const NOATIME = 1024;
        const NODIRATIME = 2048;
        const RELATIME = 1 << 21;
        const STRICTATIME = 1 << 24;
    }
}

impl MountFlags {
    /// The flags that choose how access times are kept.
    pub const ATIME: Self =
        Self::NOATIME.union(Self::NODIRATIME).union(Self::RELATIME).union(Self::STRICTATIME);
}

/// A file system at a place.
pub struct Mount {
    id: u64,
    sb: Arc<SuperBlock>,
    /// The file system's root, or the directory or file that a bind mount shows.
    root: Arc<Dentry>,
    flags: AtomicU32,
    /// Flags that the namespace's user may not take away.
    locked_flags: AtomicU32,
    source: String,
    /// Where it is mounted; `None` for a namespace's root and for what has been unmounted.
    point: RwLock<Option<Location>, { rank::LEAF }>,
}

impl core::fmt::Debug for Mount {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Mount({} {})", self.id, self.sb.filesystem().name())
    }
}

impl Mount {
    fn new(sb: Arc<SuperBlock>, root: Arc<Dentry>, flags: MountFlags, source: &str) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Arc::new(Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            sb,
            root,
            flags: AtomicU32::new(flags.bits()),
            locked_flags: AtomicU32::new(0),
            source: source.to_owned(),
            point: RwLock::new(None),
        })
    }

    /// A mount in no namespace, for the kernel's own files (`memfd_create(2)`, pipes in the like of `pipefs`).
    pub fn detached(fs: Arc<dyn FileSystem>) -> Arc<Self> {
        let sb = SuperBlock::new(fs);
        let (root, name) = (Arc::clone(sb.root()), sb.filesystem().name());
        Self::new(sb, root, MountFlags::empty(), name)
    }

    /// The mount id of `/proc/PID/mountinfo` and `statx(2)`.
    pub fn id(&self) -> u64 {
        self.id
    }

    pub fn filesystem(&self) -> &Arc<dyn FileSystem> {
        self.sb.filesystem()
    }

    pub fn superblock(&self) -> &Arc<SuperBlock> {
        &self.sb
    }

    pub fn root(&self) -> &Arc<Dentry> {
        &self.root
    }

    pub fn flags(&self) -> MountFlags {
        MountFlags::from_bits_truncate(self.flags.load(Ordering::Relaxed))
    }

    pub fn set_flags(&self, flags: MountFlags) {
        self.flags.store(flags.bits(), Ordering::Relaxed);
    }

    /// Whether changes through this mount are refused with `EROFS`.
    pub fn is_read_only(&self) -> bool {
        self.flags().contains(MountFlags::RDONLY) || self.sb.is_read_only()
    }

    /// Whether device nodes seen through it are dead (`may_open_dev`): also where its file system was mounted inside a user
    /// namespace of the application's own.
    pub fn denies_devices(&self) -> bool {
        self.flags().contains(MountFlags::NODEV) || !self.sb.user_ns().is_initial()
    }

    /// Whether set-user-id bits and file capabilities count for a process of `user_ns` (`mnt_may_suid`).
    pub fn honours_set_id(&self, user_ns: &UserNs) -> bool {
        !self.flags().contains(MountFlags::NOSUID) && user_ns.is_same_or_below(self.sb.user_ns())
    }

    /// The flags that a less privileged namespace must leave as they are.
    pub fn locked_flags(&self) -> MountFlags {
        MountFlags::from_bits_truncate(self.locked_flags.load(Ordering::Relaxed))
    }

    /// Locks the flags that are set, and how access times are kept.
    fn lock_flags(&self) {
        let secure = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        let locked = (self.flags() & secure) | MountFlags::ATIME;
        self.locked_flags.fetch_or(locked.bits(), Ordering::Relaxed);
    }

    /// Whether flags may be replaced by `new` (`can_change_locked_flags`).
    pub fn may_change_flags(&self, new: MountFlags) -> bool {
        let locked = self.locked_flags();
        let secure = locked - MountFlags::ATIME;
        let atime = MountFlags::ATIME - MountFlags::STRICTATIME;
        new.contains(secure) && (!locked.contains(MountFlags::ATIME) || self.flags() & atime == new & atime)
    }

    /// A mount like this one that hangs nowhere and shows `root`.
    fn copy_showing(&self, root: &Arc<Dentry>) -> Arc<Self> {
        let copy = Self::new(Arc::clone(&self.sb), Arc::clone(root), self.flags(), &self.source);
        copy.locked_flags.store(self.locked_flags.load(Ordering::Relaxed), Ordering::Relaxed);
        copy
    }

    pub fn source(&self) -> &str {
        &self.source
    }

    /// Where it is mounted.
    pub fn point(&self) -> Option<Location> {
        self.point.read().clone()
    }
}

/// A place: a dentry as seen through a mount (`struct path` of Linux).
#[derive(Debug, Clone)]
pub struct Location {
    pub mount: Arc<Mount>,
    pub dentry: Arc<Dentry>,
}

impl PartialEq for Location {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.dentry, &other.dentry) && Arc::ptr_eq(&self.mount, &other.mount)
    }
}

impl Eq for Location {}

/// A place in words, see [`Location::path_from`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathText {
    pub bytes: Vec<u8>,
    /// False where the place is not below the root that was asked about.
    pub reachable: bool,
    pub deleted: bool,
}

impl Location {
    pub fn inode(&self) -> &Arc<dyn Inode> {
        self.dentry.inode()
    }

    pub fn is_dir(&self) -> bool {
        self.dentry.is_dir()
    }

    /// Whether it is its mount's root.
    pub fn is_mount_root(&self) -> bool {
        Arc::ptr_eq(&self.dentry, &self.mount.root)
    }

    /// The path from `root`, across mounts. Never fails: a place that is not below `root` has its path from the root
    /// of the outermost mount reached.
    pub fn path_from(&self, root: &Location) -> PathText {
        let mut names: Vec<Arc<[u8]>> = Vec::new();
        let mut at = self.clone();
        let mut deleted = self.dentry.is_unlinked();
        let reachable = loop {
            if at == *root {
                break true;
            }
            if at.is_mount_root() {
                match at.mount.point() {
                    Some(point) => at = point,
                    None => break false,
                }
                deleted |= at.dentry.is_unlinked();
                continue;
            }
            let (parent, name) = at.dentry.parent_and_name();
            let Some(parent) = parent else {
                // A nameless file, or a bind mount's directory that was moved out of its tree.
                if !name.is_empty() {
                    names.push(name);
                }
                break false;
            };
            names.push(name);
            at.dentry = parent;
        };
        let mut bytes = Vec::new();
        for name in names.iter().rev() {
            bytes.push(b'/');
            bytes.extend_from_slice(name);
        }
        if bytes.is_empty() {
            bytes.push(b'/');
        }
        PathText { bytes, reachable, deleted }
    }

    /// The path as links in `/proc/PID` show it (`d_path`): with ` (deleted)` after a removed name.
    pub fn display_path(&self, root: &Location) -> Vec<u8> {
        let mut text = self.path_from(root);
        if text.deleted {
            text.bytes.extend_from_slice(b" (deleted)");
        }
        text.bytes
    }
}
