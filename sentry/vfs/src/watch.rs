//! Watching files: who wants to hear of what happens to which inode (`inotify(7)`, `fs/notify/fsnotify.c`).
//!
//! Each file system in use keeps its watches by inode number. Without any, an event costs one load.

use core::sync::atomic::{AtomicUsize, Ordering};
use std::collections::HashMap;
use std::sync::{Arc, Weak};

use sentry_base::RwLock;
use sentry_base::lock::rank;

use crate::{Dentry, Location, file_epoch};

/// Events and flags, with the values of `inotify(7)`.
pub mod event {
    pub const ACCESS: u32 = 0x1;
    pub const MODIFY: u32 = 0x2;
    pub const ATTRIB: u32 = 0x4;
    pub const CLOSE_WRITE: u32 = 0x8;
    pub const CLOSE_NOWRITE: u32 = 0x10;
    pub const OPEN: u32 = 0x20;
    pub const MOVED_FROM: u32 = 0x40;
    pub const MOVED_TO: u32 = 0x80;
    pub const CREATE: u32 = 0x100;
    pub const DELETE: u32 = 0x200;
    pub const DELETE_SELF: u32 = 0x400;
    pub const MOVE_SELF: u32 = 0x800;
    pub const ALL: u32 = 0xfff;
    pub const UNMOUNT: u32 = 0x2000;
    pub const Q_OVERFLOW: u32 = 0x4000;
    pub const IGNORED: u32 = 0x8000;
    pub const ONLYDIR: u32 = 0x0100_0000;
    pub const DONT_FOLLOW: u32 = 0x0200_0000;
    pub const EXCL_UNLINK: u32 = 0x0400_0000;
    pub const MASK_CREATE: u32 = 0x1000_0000;
    pub const MASK_ADD: u32 = 0x2000_0000;
    pub const ISDIR: u32 = 0x4000_0000;
    pub const ONESHOT: u32 = 0x8000_0000;
    /// What a watch on a directory hears of the directory's children.
    pub const ON_CHILD: u32 = ACCESS | MODIFY | ATTRIB | CLOSE_WRITE | CLOSE_NOWRITE | OPEN;
}

/// One who watches.
pub trait WatchSink: Send + Sync {
    /// An event that the watch `wd` asked for. Called with locks of directories held: it only queues.
    fn event(&self, wd: i32, mask: u32, cookie: u32, name: &[u8]);
    /// The watched inode is gone, and the watch with it.
    fn ignored(&self, wd: i32);
}

impl core::fmt::Debug for dyn WatchSink {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("WatchSink")
    }
}

struct Watch {
    wd: i32,
    mask: u32,
    sink: Weak<dyn WatchSink>,
}

/// The watches of one file system.
#[derive(Default)]
pub struct Watches {
    count: AtomicUsize,
    by_ino: RwLock<HashMap<u64, Vec<Watch>>, { rank::LEAF }>,
}

impl core::fmt::Debug for Watches {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Watches({})", self.count.load(Ordering::Relaxed))
    }
}

impl Watches {
    fn is_empty(&self) -> bool {
        self.count.load(Ordering::SeqCst) == 0
    }

    /// Adds a watch, or sets the mask of the one that `sink` has there by this number.
    pub fn set(&self, ino: u64, wd: i32, mask: u32, sink: &Weak<dyn WatchSink>) {
        let mut by_ino = self.by_ino.write();
        let list = by_ino.entry(ino).or_default();
        if let Some(watch) = list.iter_mut().find(|w| w.wd == wd && w.sink.ptr_eq(sink)) {
            watch.mask = mask;
        } else {
            list.push(Watch { wd, mask, sink: Weak::clone(sink) });
            self.count.fetch_add(1, Ordering::SeqCst);
        }
        file_epoch::advance();
    }

    /// Removes the watches of a sink that is going away, or one of them.
    pub fn remove(&self, ino: u64, wd: i32, sink: &Weak<dyn WatchSink>) {
        let mut by_ino = self.by_ino.write();
        if let Some(list) = by_ino.get_mut(&ino) {
            let before = list.len();
            list.retain(|w| w.wd != wd || !w.sink.ptr_eq(sink));
            self.count.fetch_sub(before - list.len(), Ordering::Relaxed);
            if list.is_empty() {
                by_ino.remove(&ino);
            }
        }
    }

    fn raise(&self, ino: u64, mask: u32, cookie: u32, name: &[u8]) {
        self.raise_unless(ino, mask, cookie, name, 0);
    }

    /// Tells the watches of an inode whose own mask has none of the flags in `not`.
    fn raise_unless(&self, ino: u64, mask: u32, cookie: u32, name: &[u8], not: u32) {
        let due: Vec<_> = match self.by_ino.read().get(&ino) {
            Some(list) => list
                .iter()
                .filter(|w| w.mask & mask & event::ALL != 0 && w.mask & not == 0)
                .map(|w| (w.wd, Weak::clone(&w.sink)))
                .collect(),
            None => return,
        };
        for (wd, sink) in due {
            if let Some(sink) = sink.upgrade() {
                sink.event(wd, mask, cookie, name);
            }
        }
    }

    fn forget(&self, ino: u64) {
        let list = self.by_ino.write().remove(&ino).unwrap_or_default();
        self.count.fetch_sub(list.len(), Ordering::Relaxed);
        for watch in list {
            if let Some(sink) = watch.sink.upgrade() {
                sink.ignored(watch.wd);
            }
        }
    }

    /// Something happened to a name in `dir`.
    pub(crate) fn on_name(&self, dir: &Dentry, name: &[u8], mask: u32, is_dir: bool, cookie: u32) {
        if self.is_empty() {
            return;
        }
        if let Ok(attr) = dir.inode().attr() {
            self.raise(attr.ino, mask | if is_dir { event::ISDIR } else { 0 }, cookie, name);
        }
    }

    /// Something happened to an inode itself, heard by its own watchers alone.
    pub(crate) fn on_self(&self, dentry: &Dentry, mask: u32) {
        if self.is_empty() {
            return;
        }
        if let Ok(attr) = dentry.inode().attr() {
            self.raise(attr.ino, mask, 0, b"");
        }
    }

    /// A name of this inode was removed from `dir`.
    pub(crate) fn on_removed(&self, dir: &Dentry, victim: &Arc<Dentry>) {
        if self.is_empty() {
            return;
        }
        self.on_replaced(victim);
        self.on_name(dir, &victim.name(), event::DELETE, victim.is_dir(), 0);
    }

    /// An inode has lost a name. With the last one its watches go too, once nobody has it open.
    pub(crate) fn on_replaced(&self, victim: &Arc<Dentry>) {
        if self.is_empty() {
            return;
        }
        let Ok(attr) = victim.inode().attr() else { return };
        if !attr.is_dir() {
            self.raise(attr.ino, event::ATTRIB, 0, b"");
        }
        // The caller's own reference is the only one left.
        if Arc::strong_count(victim) == 1 && (attr.nlink == 0 || attr.is_dir()) {
            self.gone(attr.ino);
        }
    }

    fn gone(&self, ino: u64) {
        self.raise(ino, event::DELETE_SELF, 0, b"");
        self.forget(ino);
    }
}

impl Location {
    /// Tells those who watch this inode, or the directory that it is in, of an event on it.
    pub fn notify(&self, mask: u32) {
        let watches = self.mount.superblock().watches();
        if watches.is_empty() {
            return;
        }
        let Ok(attr) = self.inode().attr() else { return };
        let mask = mask | if attr.is_dir() { event::ISDIR } else { 0 };
        watches.raise(attr.ino, mask, 0, b"");
        if mask & event::ON_CHILD != 0
            && let (Some(parent), name) = self.dentry.parent_and_name()
            && let Ok(parent) = parent.inode().attr()
        {
            // The directory hears of a file that was in it until it is closed.
            let not = if self.dentry.is_unlinked() { event::EXCL_UNLINK } else { 0 };
            watches.raise_unless(parent.ino, mask, 0, &name, not);
        }
    }

    /// Whether somebody watches anything in this file system.
    pub fn is_watched(&self) -> bool {
        !self.mount.superblock().watches().is_empty()
    }

    /// A description of this place is being closed: if it was the last use of a file without a name, its watches end.
    pub(crate) fn notify_last_use(&self) {
        let watches = self.mount.superblock().watches();
        if watches.is_empty() || !self.dentry.is_unlinked() || Arc::strong_count(&self.dentry) > 1 {
            return;
        }
        if let Ok(attr) = self.inode().attr()
            && (attr.nlink == 0 || attr.is_dir())
        {
            watches.gone(attr.ino);
        }
    }

    /// Watches the inode here for the events in `mask`, under the number `wd` of `sink`. Returns its inode number.
    pub fn watch(&self, wd: i32, mask: u32, sink: &Arc<dyn WatchSink>) -> sentry_base::Result<u64> {
        let ino = self.inode().attr()?.ino;
        self.mount.superblock().watches().set(ino, wd, mask, &Arc::downgrade(sink));
        Ok(ino)
    }
}
