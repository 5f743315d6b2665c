//! Dentries: names in the tree, with their cache of known and known-absent children.
//!
//! A dentry is one name of one inode; a directory has exactly one live dentry, so its [`Dentry::dir`] lock is the
//! directory's lock. A parent holds its cached children and a child holds its parent: [`SuperBlock`] breaks that
//! cycle when it evicts unused dentries and when the last mount goes away.

use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::collections::VecDeque;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Weak};

use sentry_base::lock::rank;
use sentry_base::{Errno, KeyedMap, Mutex, Result, RwLock};

use crate::epoch;
use crate::watch::Watches;
use crate::{FileKind, FileSystem, Inode, UserNs};

/// The name was removed; `/proc` shows it with ` (deleted)`.
const UNLINKED: u8 = 1;
/// Looked up since the cache last considered it for eviction.
const REFERENCED: u8 = 2;
/// A nameless file that never gets a name (`O_TMPFILE` with `O_EXCL`).
const NO_LINKS: u8 = 4;

/// Dentries and absent names that one file system may keep cached without anyone using them.
const CACHE_CAP: usize = 50_000;

struct Links {
    parent: Option<Arc<Dentry>>,
    name: Arc<[u8]>,
}

enum Child {
    Cached(Arc<Dentry>),
    /// In a directory whose names change behind the VFS: kept only for as long as somebody uses it.
    InUse(Weak<Dentry>),
    Absent,
}

#[derive(Default)]
struct Children {
    map: KeyedMap<Arc<[u8]>, Child>,
    /// Number of entries at which dead `InUse` entries are swept out.
    sweep_at: usize,
}

/// What the cache knows of a name.
#[derive(Debug)]
pub(crate) enum Known {
    Present(Arc<Dentry>),
    Absent,
    Unknown,
}

/// A name in the tree with its inode.
pub struct Dentry {
    inode: Arc<dyn Inode>,
    links: RwLock<Links, { rank::LEAF }>,
    children: RwLock<Option<Box<Children>>, { rank::LEAF }>,
    /// Held shared to look up, exclusively to change the directory's names.
    pub(crate) dir: RwLock<(), { rank::DIR_INODE }>,
    mounts: AtomicU32,
    flags: AtomicU8,
    id: u64,
}

impl core::fmt::Debug for Dentry {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Dentry({})", String::from_utf8_lossy(&self.name()))
    }
}

impl Drop for Dentry {
    fn drop(&mut self) {
        // A long chain of removed directories must not be dropped by recursion.
        let mut next = self.links.get_mut().parent.take();
        while let Some(parent) = next {
            next = Arc::into_inner(parent).and_then(|mut d| d.links.get_mut().parent.take());
        }
    }
}

impl Dentry {
    fn new(inode: Arc<dyn Inode>, parent: Option<Arc<Dentry>>, name: Arc<[u8]>) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Arc::new(Self {
            inode,
            links: RwLock::new(Links { parent, name }),
            children: RwLock::new(None),
            dir: RwLock::new(()),
            mounts: AtomicU32::new(0),
            flags: AtomicU8::new(0),
            id: NEXT.fetch_add(1, Ordering::Relaxed),
        })
    }

    /// A dentry outside the cache and every directory, shown as `text` (the files of namespaces).
    pub fn nameless(inode: Arc<dyn Inode>, text: &[u8]) -> Arc<Self> {
        Self::new(inode, None, Arc::from(text))
    }

    /// A dentry outside the cache, for a nameless file (`O_TMPFILE`, memfd); it shows as `name (deleted)`.
    pub fn detached(inode: Arc<dyn Inode>, parent: Option<Arc<Dentry>>, name: &[u8]) -> Arc<Self> {
        let dentry = Self::new(inode, parent, Arc::from(name));
        dentry.flags.store(UNLINKED, Ordering::Relaxed);
        dentry
    }

    pub fn inode(&self) -> &Arc<dyn Inode> {
        &self.inode
    }

    /// Unique in this sandbox; orders the locks of two directories neither of which is above the other.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The present name; empty for the root of a file system.
    pub fn name(&self) -> Arc<[u8]> {
        Arc::clone(&self.links.read().name)
    }

    /// The directory that it is (or, once unlinked, last was) in; `None` for the root of a file system.
    pub fn parent(&self) -> Option<Arc<Dentry>> {
        self.links.read().parent.clone()
    }

    pub(crate) fn parent_and_name(&self) -> (Option<Arc<Dentry>>, Arc<[u8]>) {
        let links = self.links.read();
        (links.parent.clone(), Arc::clone(&links.name))
    }

    pub fn is_dir(&self) -> bool {
        self.inode.kind() == FileKind::Directory
    }

    pub fn is_unlinked(&self) -> bool {
        self.flags.load(Ordering::Acquire) & UNLINKED != 0
    }

    pub(crate) fn forbid_links(&self) {
        self.flags.fetch_or(NO_LINKS, Ordering::Relaxed);
    }

    pub(crate) fn forbids_links(&self) -> bool {
        self.flags.load(Ordering::Relaxed) & NO_LINKS != 0
    }

    /// Whether something is mounted here in any namespace.
    pub fn is_mountpoint(&self) -> bool {
        self.mounts.load(Ordering::Acquire) != 0
    }

    pub(crate) fn add_mount(&self) {
        self.mounts.fetch_add(1, Ordering::AcqRel);
        epoch::advance();
    }

    pub(crate) fn remove_mount(&self) {
        self.mounts.fetch_sub(1, Ordering::AcqRel);
        epoch::advance();
    }

    /// Whether `self` is `other` or a directory above it.
    pub fn is_same_or_above(&self, other: &Arc<Dentry>) -> bool {
        let mut at = Some(Arc::clone(other));
        while let Some(dentry) = at {
            if core::ptr::eq(self, Arc::as_ptr(&dentry)) {
                return true;
            }
            at = dentry.parent();
        }
        false
    }

    /// What is cached of `name`. A volatile directory knows only the dentries in use.
    pub(crate) fn known(&self, name: &[u8]) -> Known {
        let children = self.children.read();
        match children.as_ref().and_then(|c| c.map.get(name)) {
            Some(Child::Cached(dentry)) => {
                if dentry.flags.load(Ordering::Relaxed) & REFERENCED == 0 {
                    dentry.flags.fetch_or(REFERENCED, Ordering::Relaxed);
                }
                Known::Present(Arc::clone(dentry))
            }
            Some(Child::InUse(weak)) => weak.upgrade().map_or(Known::Unknown, Known::Present),
            Some(Child::Absent) => Known::Absent,
            None => Known::Unknown,
        }
    }

    fn put(&self, name: Arc<[u8]>, child: Child) -> Option<Child> {
        let mut children = self.children.write();
        let children = children.get_or_insert_default();
        let old = children.map.insert(name, child);
        if children.map.len() > children.sweep_at.max(64) {
            // Only `Weak`s are dropped here, so that nothing but memory is freed under the lock.
            children.map.retain(|_, c| !matches!(c, Child::InUse(w) if w.strong_count() == 0));
            children.sweep_at = children.map.len() * 2;
        }
        old
    }

    fn forget(&self, name: &[u8]) {
        let old = self.children.write().as_mut().and_then(|c| c.map.remove(name));
        drop(old);
    }
}

enum Used {
    Entry(Weak<Dentry>),
    Absent(Weak<Dentry>, Arc<[u8]>),
}

/// A file system in use: its root dentry and the order in which cached dentries are given up.
pub struct SuperBlock {
    fs: Arc<dyn FileSystem>,
    root: Arc<Dentry>,
    queue: Mutex<VecDeque<Used>, { rank::LEAF }>,
    watches: Watches,
    /// The user namespace that mounted it: its root rules the file system.
    user_ns: Arc<UserNs>,
    /// Mounted or remounted read-only as a whole, beyond what its mounts say.
    read_only: AtomicBool,
    /// Serialises renames that move a name between directories (`s_vfs_rename_mutex`).
    pub(crate) rename: Mutex<(), { rank::RENAME }>,
}

impl core::fmt::Debug for SuperBlock {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "SuperBlock({})", self.fs.name())
    }
}

impl Drop for SuperBlock {
    fn drop(&mut self) {
        // First hold every dentry, then cut all links: no drop below frees more than itself.
        let entries: Vec<Arc<Dentry>> = core::mem::take(self.queue.get_mut())
            .into_iter()
            .filter_map(|used| match used {
                Used::Entry(weak) => weak.upgrade(),
                Used::Absent(..) => None,
            })
            .collect();
        for dentry in entries.iter().chain([&self.root]) {
            let children = dentry.children.write().take();
            drop(children);
        }
    }
}

impl SuperBlock {
    pub fn new(fs: Arc<dyn FileSystem>) -> Arc<Self> {
        Self::owned(fs, UserNs::initial())
    }

    /// A file system mounted by a process of `user_ns`.
    pub fn owned(fs: Arc<dyn FileSystem>, user_ns: Arc<UserNs>) -> Arc<Self> {
        let root = Dentry::new(fs.root(), None, Arc::from(&b""[..]));
        Arc::new(Self {
            fs,
            root,
            queue: Mutex::new(VecDeque::new()),
            watches: Watches::default(),
            user_ns,
            read_only: AtomicBool::new(false),
            rename: Mutex::new(()),
        })
    }

    pub fn filesystem(&self) -> &Arc<dyn FileSystem> {
        &self.fs
    }

    /// The user namespace that the file system belongs to (`s_user_ns`).
    pub fn user_ns(&self) -> &Arc<UserNs> {
        &self.user_ns
    }

    /// Whether every change is refused with `EROFS`, whatever the mount says.
    pub fn is_read_only(&self) -> bool {
        self.read_only.load(Ordering::Relaxed) || self.fs.read_only()
    }

    /// `mount(2)` or a remount with `MS_RDONLY`.
    pub fn set_read_only(&self, read_only: bool) {
        self.read_only.store(read_only, Ordering::Relaxed);
    }

    pub fn root(&self) -> &Arc<Dentry> {
        &self.root
    }

    /// Who watches this file system's inodes.
    pub fn watches(&self) -> &Watches {
        &self.watches
    }

    /// The child `name` of `dir`, from the cache or the file system; `None` where there is none.
    pub(crate) fn lookup(&self, dir: &Arc<Dentry>, name: &[u8]) -> Result<Option<Arc<Dentry>>> {
        if !dir.inode.volatile_names() {
            match dir.known(name) {
                Known::Present(dentry) => return Ok(Some(dentry)),
                Known::Absent => return Ok(None),
                Known::Unknown => {}
            }
        }
        let _shared = dir.dir.read();
        self.lookup_locked(dir, name)
    }

    /// Like [`SuperBlock::lookup`], with `dir`'s lock held by the caller.
    pub(crate) fn lookup_locked(&self, dir: &Arc<Dentry>, name: &[u8]) -> Result<Option<Arc<Dentry>>> {
        let volatile = dir.inode.volatile_names();
        let known = dir.known(name);
        match &known {
            // What is mounted on stays, whatever the file system says.
            Known::Present(dentry) if !volatile || dentry.is_mountpoint() => {
                return Ok(Some(Arc::clone(dentry)));
            }
            Known::Absent if !volatile => return Ok(None),
            _ => {}
        }
        match dir.inode.lookup(name) {
            Ok(inode) => {
                if let Known::Present(dentry) = known
                    && Arc::ptr_eq(&dentry.inode, &inode)
                {
                    return Ok(Some(dentry));
                }
                Ok(Some(self.insert(dir, name, inode)))
            }
            Err(Errno::ENOENT) => {
                if volatile {
                    dir.forget(name);
                } else if !dir.is_unlinked() {
                    self.insert_absent(dir, Arc::from(name));
                }
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    /// Enters a child that the file system has just given. If another walk was first, its dentry wins.
    pub(crate) fn insert(&self, dir: &Arc<Dentry>, name: &[u8], inode: Arc<dyn Inode>) -> Arc<Dentry> {
        let name: Arc<[u8]> = Arc::from(name);
        let volatile = dir.inode.volatile_names();
        match dir.known(&name) {
            Known::Present(first) if !volatile || Arc::ptr_eq(&first.inode, &inode) => return first,
            _ => {}
        }
        let fresh = Dentry::new(inode, Some(Arc::clone(dir)), Arc::clone(&name));
        if volatile {
            drop(dir.put(name, Child::InUse(Arc::downgrade(&fresh))));
            return fresh;
        }
        {
            let mut children = dir.children.write();
            match children.get_or_insert_default().map.entry(name) {
                Entry::Occupied(mut slot) => {
                    if let Child::Cached(first) = slot.get() {
                        return Arc::clone(first);
                    }
                    slot.insert(Child::Cached(Arc::clone(&fresh)));
                }
                Entry::Vacant(slot) => {
                    slot.insert(Child::Cached(Arc::clone(&fresh)));
                }
            }
        }
        self.push(Used::Entry(Arc::downgrade(&fresh)));
        fresh
    }

    fn insert_absent(&self, dir: &Arc<Dentry>, name: Arc<[u8]>) {
        drop(dir.put(Arc::clone(&name), Child::Absent));
        self.push(Used::Absent(Arc::downgrade(dir), name));
    }

    /// The name of `dentry` in `dir` is gone. The directory's lock is held.
    pub(crate) fn unlinked(&self, dir: &Arc<Dentry>, dentry: &Arc<Dentry>) {
        let name = dentry.name();
        dentry.flags.fetch_or(UNLINKED, Ordering::AcqRel);
        if dir.inode.volatile_names() {
            dir.forget(&name);
        } else {
            self.insert_absent(dir, name);
        }
        // Not before the cache forgets the name: a walk in the new epoch must not find it.
        if dentry.is_dir() {
            epoch::advance();
        }
    }

    /// `dentry` has moved from `dir` to `name` in `new_dir`, replacing `victim`. Both directories' locks are held.
    pub(crate) fn renamed(
        &self,
        dir: &Arc<Dentry>,
        dentry: &Arc<Dentry>,
        new_dir: &Arc<Dentry>,
        name: &[u8],
        victim: Option<&Arc<Dentry>>,
    ) {
        if let Some(victim) = victim {
            victim.flags.fetch_or(UNLINKED, Ordering::AcqRel);
        }
        let old_name = dentry.name();
        if dir.inode.volatile_names() {
            dir.forget(&old_name);
        } else {
            self.insert_absent(dir, old_name);
        }
        self.place(dentry, new_dir, Arc::from(name));
        if dentry.is_dir() {
            epoch::advance();
        }
    }

    /// Two names have changed places. Both directories' locks are held.
    pub(crate) fn exchanged(&self, a: &Arc<Dentry>, b: &Arc<Dentry>) {
        let (dir_a, name_a) = a.parent_and_name();
        let (dir_b, name_b) = b.parent_and_name();
        if let (Some(dir_a), Some(dir_b)) = (dir_a, dir_b) {
            self.place(a, &dir_b, name_b);
            self.place(b, &dir_a, name_a);
        }
        if a.is_dir() || b.is_dir() {
            epoch::advance();
        }
    }

    /// The cache no longer knows what `name` stands for.
    pub(crate) fn forget(dir: &Dentry, name: &[u8]) {
        dir.forget(name);
    }

    fn place(&self, dentry: &Arc<Dentry>, dir: &Arc<Dentry>, name: Arc<[u8]>) {
        let old_parent = {
            let mut links = dentry.links.write();
            links.name = Arc::clone(&name);
            links.parent.replace(Arc::clone(dir))
        };
        drop(old_parent);
        if dir.inode.volatile_names() {
            drop(dir.put(name, Child::InUse(Arc::downgrade(dentry))));
        } else {
            drop(dir.put(name, Child::Cached(Arc::clone(dentry))));
            self.push(Used::Entry(Arc::downgrade(dentry)));
        }
    }

    fn push(&self, used: Used) {
        self.queue.lock().push_back(used);
        // Two considered for each one added: the queue shrinks back under its cap.
        for _ in 0..2 {
            let oldest = {
                let mut queue = self.queue.lock();
                if queue.len() <= CACHE_CAP {
                    return;
                }
                queue.pop_front()
            };
            if let Some(kept) = oldest.and_then(evict) {
                self.queue.lock().push_back(kept);
            }
        }
    }

    /// Gives up every unused dentry, as before an unmount.
    pub fn shrink(&self) {
        // Leaves come after their parents in the queue, hence from the back.
        let entries: Vec<Used> = self.queue.lock().drain(..).collect();
        let mut kept: VecDeque<Used> = VecDeque::new();
        for used in entries.into_iter().rev() {
            if let Used::Entry(weak) = &used
                && let Some(dentry) = weak.upgrade()
            {
                dentry.flags.fetch_and(!REFERENCED, Ordering::Relaxed);
            }
            if let Some(used) = evict(used) {
                kept.push_front(used);
            }
        }
        self.queue.lock().extend(kept);
    }

    /// Entries of the cache, the stale ones included.
    pub fn cached(&self) -> usize {
        self.queue.lock().len()
    }
}

/// Gives up one entry if nobody uses it; returns it if it stays.
fn evict(used: Used) -> Option<Used> {
    match used {
        Used::Absent(dir, name) => {
            let dir = dir.upgrade()?;
            let mut children = dir.children.write();
            if let Some(children) = children.as_mut()
                && matches!(children.map.get(&name), Some(Child::Absent))
            {
                children.map.remove(&name);
            }
            None
        }
        Used::Entry(weak) => {
            let dentry = weak.upgrade()?;
            if dentry.flags.fetch_and(!REFERENCED, Ordering::Relaxed) & REFERENCED != 0 {
                return Some(Used::Entry(weak));
            }
            let (Some(dir), name) = dentry.parent_and_name() else { return None };
            let removed = {
                let mut children = dir.children.write();
                let map = &mut children.as_mut()?.map;
                match map.get(&name) {
                    Some(Child::Cached(cached)) if Arc::ptr_eq(cached, &dentry) => {}
                    // Unlinked or moved: the queue holds it under another entry, or not at all.
                    _ => return None,
                }
                // One reference is the map's, one is ours; a third is somebody's who uses it. New ones can only come
                // from the map, whose lock is held.
                if Arc::strong_count(&dentry) > 2 {
                    return Some(Used::Entry(weak));
                }
                map.remove(&name)
            };
            drop(removed);
            None
        }
    }
}
