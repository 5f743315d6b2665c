//! A file system of two layers: a lower one that is never written, and an upper one that takes every change
//! (`Documentation/filesystems/overlayfs.rst`).
//!
//! A name is looked up in the upper layer first. An object of the lower layer is copied up before its first change, with
//! the directories above it. Unlike the kernel's overlayfs, which must keep its notes in the layers themselves, this
//! one keeps them in the Sentry: whiteouts are not visible anywhere, a directory that was renamed still shows its
//! lower contents, files keep their inode numbers and their hard links when they are copied up, and an open file shows
//! what is written after it was opened.
//!
//! **Invariants.** What an upper directory hides and shows of the lower layer is in its [`UpperNote`], which lives as long
//! as that directory has a name, whether or not anyone uses it. An object has one [`OverlayInode`] at a time. The lower
//! layer does not change.
//!
//! **Lock ranks:** copy-up 40 (of one inode at a time, its directory's being done before), an open file's backing 47;
//! tables are leaves. The VFS holds the locks of the directories whose names change.
//!
//! **Threat.** Names and sizes come from the application. A copy-up is bounded by the upper layer's limits.

mod copy_up;
mod file;
mod inode;
mod kernel_caller;

use std::any::Any;
use std::sync::{Arc, Weak};

use sentry_base::lock::rank;
use sentry_base::{KeyedMap, KeyedSet, Mutex, Result};
use sentry_vfs::{FileSystem, Inode, SetAttr, SetTime, StatFs};

pub use copy_up::copy_tree;
pub use inode::OverlayInode;

/// `OVERLAYFS_SUPER_MAGIC`.
const MAGIC: u64 = 0x794c_7630;

/// Added to the inode numbers of objects that were made in the upper layer, so that they differ from the lower ones'.
const UPPER_INO: u64 = 1 << 48;

/// What is known of an object of the upper layer beyond that layer.
#[derive(Debug, Default)]
struct UpperNote {
    /// The inode number that it shows.
    ino: u64,
    live: Weak<OverlayInode>,
    /// The lower directory whose contents it shows too.
    lower: Option<Arc<dyn Inode>>,
    /// Names of `lower` that are gone.
    whiteouts: KeyedSet<Box<[u8]>>,
}

/// What is known of a file of the lower layer that has several names there.
#[derive(Debug)]
struct LinkNote {
    live: Weak<OverlayInode>,
    /// Its copy with its inode number in the upper layer, which all its lower names stand for now.
    copy: Option<(Arc<dyn Inode>, u64)>,
    /// Lower names that are neither removed nor covered.
    names_left: u32,
}

#[derive(Default)]
struct Tables {
    /// By the upper layer's inode number.
    upper: KeyedMap<u64, UpperNote>,
    /// By the lower layer's inode number.
    links: KeyedMap<u64, LinkNote>,
}

/// The two layers as one file system.
pub struct OverlayFs {
    lower: Arc<dyn FileSystem>,
    upper: Arc<dyn FileSystem>,
    dev: u64,
    root: Arc<OverlayInode>,
    tables: Mutex<Tables, { rank::LEAF }>,
}

impl core::fmt::Debug for OverlayFs {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "OverlayFs({:?} over {:?})", self.upper, self.lower)
    }
}

impl OverlayFs {
    /// Puts `upper`, which must be empty, over `lower`. `dev` is the device number of the files.
    pub fn new(lower: Arc<dyn FileSystem>, upper: Arc<dyn FileSystem>, dev: u64) -> Result<Arc<Self>> {
        let (lower_root, upper_root) = (lower.root(), upper.root());
        let attr = lower_root.attr()?;
        upper_root.set_attr(&SetAttr {
            mode: Some(attr.mode & 0o7777),
            uid: Some(attr.uid),
            gid: Some(attr.gid),
            size: None,
            atime: Some(SetTime::At(attr.atime)),
            mtime: Some(SetTime::At(attr.mtime)),
        })?;
        let upper_ino = upper_root.attr()?.ino;
        Ok(Arc::new_cyclic(|fs| {
            let root = OverlayInode::root(fs, attr.ino, Arc::clone(&lower_root), (upper_root, upper_ino));
            let note = UpperNote {
                ino: attr.ino,
                live: Arc::downgrade(&root),
                lower: Some(lower_root),
                whiteouts: KeyedSet::default(),
            };
            let tables =
                Tables { upper: KeyedMap::from_iter([(upper_ino, note)]), links: KeyedMap::default() };
            Self { lower, upper, dev, root, tables: Mutex::new(tables) }
        }))
    }

    pub fn lower(&self) -> &Arc<dyn FileSystem> {
        &self.lower
    }

    pub fn upper(&self) -> &Arc<dyn FileSystem> {
        &self.upper
    }

    /// Whether names of the lower layer stand for a copy of the file with this number.
    fn stands_for_lower_names(&self, ino: u64) -> bool {
        self.tables.lock().links.get(&ino).is_some_and(|links| links.copy.is_some() && links.names_left > 0)
    }

    /// Drops what is known of an upper object that has lost its last name.
    fn forget_upper(&self, upper_ino: u64) {
        let note = self.tables.lock().upper.remove(&upper_ino);
        drop(note);
    }
}

impl FileSystem for OverlayFs {
    fn name(&self) -> &'static str {
        "overlay"
    }

    fn root(&self) -> Arc<dyn Inode> {
        self.root.clone()
    }

    fn statfs(&self) -> Result<StatFs> {
        let mut all = self.upper.statfs()?;
        // A layer in memory without a limit of its own has no size. Programs that look for room first, as apt does,
        // would find none: they see what the files below it have.
        if all.blocks == 0 {
            all = StatFs { flags: all.flags, ..self.lower.statfs()? };
        }
        Ok(StatFs { magic: MAGIC, ..all })
    }

    fn dev(&self) -> u64 {
        self.dev
    }

    fn sync(&self) -> Result<()> {
        self.upper.sync()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[cfg(test)]
mod tests;
