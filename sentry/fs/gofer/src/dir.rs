//! What is known of a directory: its children by name, and a listing with cookies that stay valid.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use sentry_base::{KeyedMap, Nanos};
use sentry_vfs::{Attr, DirEntry, FileKind};

use crate::GoferInode;
use crate::inode::Ahead;

/// Entries that are looked at for each file that may be opened ahead.
const REACH: usize = 4;

/// Attributes that came along with a name, until an inode is made of them.
#[derive(Debug, Clone)]
pub(crate) struct Seed {
    pub attr: Attr,
    /// Device and inode number on the host.
    pub host: (u64, u64),
    /// Of a symbolic link.
    pub target: Box<[u8]>,
    pub checked: Nanos,
}

#[derive(Debug)]
struct Child {
    live: Weak<GoferInode>,
    seed: Option<Seed>,
    ino: u64,
    kind: FileKind,
    /// Its place in the listing, once there is one.
    cookie: Option<u64>,
}

impl Child {
    fn of(attr: &Attr) -> Self {
        Self { live: Weak::new(), seed: None, ino: attr.ino, kind: attr.kind(), cookie: None }
    }
}

/// What is known of one name.
#[derive(Debug)]
pub(crate) enum Known {
    Live(Arc<GoferInode>),
    Seed(Seed),
    Absent,
    Unknown,
}

/// The children of a directory that are known.
#[derive(Debug)]
pub(crate) struct DirCache {
    children: KeyedMap<Arc<[u8]>, Child>,
    /// Names that a walk found missing, until they are asked for.
    absent: KeyedMap<Box<[u8]>, Nanos>,
    listing: BTreeMap<u64, Arc<[u8]>>,
    next_cookie: u64,
    /// When the listing was fetched; a name that is in it nowhere does not exist.
    listed: Option<Nanos>,
    /// Lookups that had to ask the gofer.
    pub misses: u32,
    /// How many files are opened together.
    pub ahead: Ahead,
    /// The number of children at which dead entries are swept out.
    sweep_at: usize,
}

impl Default for DirCache {
    fn default() -> Self {
        Self {
            children: KeyedMap::default(),
            absent: KeyedMap::default(),
            listing: BTreeMap::new(),
            // The VFS needs cookies above 2.
            next_cookie: 3,
            listed: None,
            misses: 0,
            ahead: Ahead::default(),
            sweep_at: 64,
        }
    }
}

impl DirCache {
    /// `fresh` says whether something checked at that time still holds.
    pub fn known(&mut self, name: &[u8], fresh: impl Fn(Nanos) -> bool) -> Known {
        if let Some(child) = self.children.get(name) {
            if let Some(inode) = child.live.upgrade() {
                return Known::Live(inode);
            }
            return match &child.seed {
                Some(seed) if fresh(seed.checked) => Known::Seed(seed.clone()),
                _ => Known::Unknown,
            };
        }
        if self.listed.is_some_and(&fresh) {
            return Known::Absent;
        }
        // The VFS remembers absence itself: once is enough here.
        match self.absent.remove(name) {
            Some(checked) if fresh(checked) => Known::Absent,
            _ => Known::Unknown,
        }
    }

    pub fn is_listed(&self, fresh: impl Fn(Nanos) -> bool) -> bool {
        self.listed.is_some_and(fresh)
    }

    /// Remembers that a walk did not find `name`.
    pub fn note_absent(&mut self, name: &[u8], now: Nanos) {
        self.remove(name);
        if self.absent.len() >= 64 {
            self.absent.clear();
        }
        self.absent.insert(name.into(), now);
    }

    /// Remembers the inode of a name. Unless `fixed`, its attributes may change from now on, and only the inode knows.
    pub fn set_live(&mut self, name: &[u8], inode: &Arc<GoferInode>, attr: &Attr, fixed: bool) {
        self.sweep();
        let child = self.child(name, attr);
        child.live = Arc::downgrade(inode);
        if !fixed {
            child.seed = None;
        }
    }

    pub fn set_seed(&mut self, name: &[u8], seed: Seed) {
        let attr = seed.attr;
        self.child(name, &attr).seed = Some(seed);
    }

    fn child(&mut self, name: &[u8], attr: &Attr) -> &mut Child {
        self.absent.remove(name);
        let key: Arc<[u8]> = match self.children.get_key_value(name) {
            Some((key, _)) => Arc::clone(key),
            None => Arc::from(name),
        };
        let child = self.children.entry(Arc::clone(&key)).or_insert_with(|| Child::of(attr));
        (child.ino, child.kind) = (attr.ino, attr.kind());
        if self.listed.is_some() && child.cookie.is_none() {
            child.cookie = Some(self.next_cookie);
            self.listing.insert(self.next_cookie, key);
            self.next_cookie += 1;
        }
        child
    }

    /// Forgets a name; in a listed directory it is absent from now on.
    pub fn remove(&mut self, name: &[u8]) {
        if let Some(cookie) = self.children.remove(name).and_then(|child| child.cookie) {
            self.listing.remove(&cookie);
        }
    }

    /// Takes over a complete listing. Names that stay keep their cookies.
    pub fn set_listing(&mut self, entries: Vec<(Vec<u8>, Seed)>, now: Nanos) {
        self.absent.clear();
        self.listed = Some(now);
        let mut before = core::mem::take(&mut self.children);
        self.listing.clear();
        for (name, seed) in entries {
            let (key, mut child) = before
                .remove_entry(name.as_slice())
                .unwrap_or_else(|| (Arc::from(name), Child::of(&seed.attr)));
            if child.live.strong_count() == 0 {
                child.seed = Some(seed);
            }
            let cookie = *child.cookie.get_or_insert_with(|| {
                self.next_cookie += 1;
                self.next_cookie - 1
            });
            self.listing.insert(cookie, Arc::clone(&key));
            self.children.insert(key, child);
        }
    }

    /// At most `max` entries after `cookie`.
    pub fn after(&self, cookie: u64, max: usize) -> Vec<DirEntry> {
        let from = (core::ops::Bound::Excluded(cookie), core::ops::Bound::Unbounded);
        let entry = |(cookie, name): (&u64, &Arc<[u8]>)| {
            let child = self.children.get(name)?;
            Some(DirEntry { name: name.to_vec(), ino: child.ino, kind: child.kind, next_cookie: *cookie })
        };
        self.listing.range(from).take(max).filter_map(entry).collect()
    }

    /// At most `max` regular files that have no host file yet, from the start of the listing.
    pub fn first_files(&self, max: usize) -> Vec<Arc<[u8]>> {
        let first = self.listing.values().take(max * REACH);
        first.filter(|name| self.is_closed(name)).take(max).cloned().collect()
    }

    /// Whether it is a regular file that has no host file yet.
    fn is_closed(&self, name: &[u8]) -> bool {
        self.children.get(name).is_some_and(|child| {
            let is_open = child.live.upgrade().is_some_and(|inode| inode.has_host_file());
            child.kind == FileKind::Regular && !is_open
        })
    }

    /// At most `max` regular files that have no host file yet and come after `name`, by name or in the listing.
    pub fn files_after(&self, name: &[u8], by_name: bool, max: usize) -> Vec<Arc<[u8]>> {
        /// Children of a directory that is searched for the next names.
        const MOST_SEARCHED: usize = 4096;
        let reach = max * REACH;
        let Some(own) = self.cookie(name) else { return Vec::new() };
        if max == 0 {
            return Vec::new();
        }
        if !by_name || self.children.len() > MOST_SEARCHED {
            let next = self.following(own, reach).map(|(_, name)| name);
            return next.filter(|n| self.is_closed(n)).take(max).cloned().collect();
        }
        let mut next: Vec<&Arc<[u8]>> = self.children.keys().filter(|other| ***other > *name).collect();
        if next.len() > reach {
            next.select_nth_unstable(reach);
            next.truncate(reach);
        }
        next.sort_unstable();
        next.into_iter().filter(|n| self.is_closed(n)).take(max).cloned().collect()
    }

    /// Whether who came to `name` from `last` goes by the names: it is the greater one, and does not stand shortly after it in
    /// the listing, with `max` files between them at most.
    pub fn goes_by_name(&self, name: &[u8], last: &[u8], max: usize) -> bool {
        let own = self.cookie(name);
        let is_near = |last| self.following(last, max * REACH).any(|(cookie, _)| Some(*cookie) == own);
        last < name && !self.cookie(last).is_some_and(is_near)
    }

    fn cookie(&self, name: &[u8]) -> Option<u64> {
        self.children.get(name).and_then(|child| child.cookie)
    }

    fn following(&self, cookie: u64, max: usize) -> impl Iterator<Item = (&u64, &Arc<[u8]>)> {
        self.listing.range((core::ops::Bound::Excluded(cookie), core::ops::Bound::Unbounded)).take(max)
    }

    /// Drops entries that tell nothing any more.
    fn sweep(&mut self) {
        if self.children.len() > self.sweep_at {
            if self.listed.is_none() {
                self.children.retain(|_, c| c.seed.is_some() || c.live.strong_count() > 0);
            }
            self.sweep_at = (self.children.len() * 2).max(64);
        }
    }
}
