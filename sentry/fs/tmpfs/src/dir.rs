//! The entries of a directory, by name and in the order in which they were made.

use std::collections::BTreeMap;
use std::sync::Arc;

use sentry_base::KeyedMap;
use sentry_vfs::{DirEntry, Inode};

use crate::inode::TmpInode;

/// Entries that one step of a listing takes under the lock.
const BATCH: usize = 128;

/// The names of one directory. A name keeps its cookie for life, so that a listing that goes on after others were
/// made or removed misses none and shows none twice.
#[derive(Default)]
pub(crate) struct Entries {
    by_name: KeyedMap<Arc<[u8]>, u64>,
    by_cookie: BTreeMap<u64, (Arc<[u8]>, Arc<TmpInode>)>,
    last_cookie: u64,
}

impl Entries {
    /// False where the name is taken.
    pub fn insert(&mut self, name: &[u8], inode: &Arc<TmpInode>) -> bool {
        if self.by_name.contains_key(name) {
            return false;
        }
        let name: Arc<[u8]> = Arc::from(name);
        self.last_cookie = self.last_cookie.max(2) + 1;
        self.by_name.insert(Arc::clone(&name), self.last_cookie);
        self.by_cookie.insert(self.last_cookie, (name, Arc::clone(inode)));
        true
    }

    pub fn remove(&mut self, name: &[u8]) -> Option<Arc<TmpInode>> {
        let cookie = self.by_name.remove(name)?;
        self.by_cookie.remove(&cookie).map(|(_, inode)| inode)
    }

    pub fn get(&self, name: &[u8]) -> Option<Arc<TmpInode>> {
        let cookie = self.by_name.get(name)?;
        self.by_cookie.get(cookie).map(|(_, inode)| Arc::clone(inode))
    }

    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// The next few entries after `cookie`.
    pub fn batch(&self, cookie: u64) -> Vec<DirEntry> {
        self.by_cookie
            .range(cookie.saturating_add(1)..)
            .take(BATCH)
            .map(|(cookie, (name, inode))| DirEntry {
                name: name.to_vec(),
                ino: inode.ino,
                kind: inode.kind(),
                next_cookie: *cookie,
            })
            .collect()
    }

    pub fn take_all(&mut self) -> Vec<Arc<TmpInode>> {
        self.by_name.clear();
        core::mem::take(&mut self.by_cookie).into_values().map(|(_, inode)| inode).collect()
    }
}
