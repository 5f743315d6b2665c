//! Objects by key and id (`ipc/util.c`).
//!
//! An id is an index and, above it, a sequence number that tells an object from an earlier one of the same index.

use std::collections::BTreeMap;
use std::sync::Arc;

use abi::ipc::{IPC_CREAT, IPC_EXCL, IPC_PRIVATE};
use sentry_base::{Errno, Mutex, Result, lock::rank};
use sentry_vfs::Credentials;

use crate::{Limit, Limits, Perm};

/// Bits of an id that are the index (`IPCMNI_SHIFT`).
pub(crate) const INDEX_BITS: u32 = 15;
const INDEX_MASK: i32 = (1 << INDEX_BITS) - 1;
const SEQ_MAX: i32 = i32::MAX >> INDEX_BITS;

/// What the registry asks of its objects.
pub trait Entry {
    fn perm(&self) -> Perm;
    /// Its key becomes private: nobody finds it by name any more.
    fn forget_key(&self);
    /// What it counts against a limit of all objects together. It does not change.
    fn weight(&self) -> u64 {
        0
    }
}

#[derive(Debug)]
struct Slots<T> {
    by_index: BTreeMap<i32, Arc<T>>,
    /// Of all of them together.
    weight: u64,
    last_index: i32,
    seq: i32,
}

/// The objects of one kind.
#[derive(Debug)]
pub struct Registry<T> {
    slots: Mutex<Slots<T>, { rank::FILE_DATA }>,
    limits: Arc<Limits>,
    /// The most objects.
    max: Limit,
}

impl<T: Entry> Registry<T> {
    /// At most as many objects as `max` says, which is no more than an index can tell apart.
    pub(crate) fn new(limits: &Arc<Limits>, max: Limit) -> Self {
        let slots = Slots { by_index: BTreeMap::new(), weight: 0, last_index: -1, seq: 0 };
        Self { slots: Mutex::new(slots), limits: Arc::clone(limits), max }
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The object of `key`, or a new one that `make` makes for a permission record (`ipcget`). `check` sees one that is
    /// there before its permissions are looked at; `make` is also told the weight of those that there are. `ENOSPC` when
    /// there are too many.
    pub fn get(
        &self,
        key: i32,
        flags: u32,
        creds: &Credentials,
        check: impl FnOnce(&T) -> Result<()>,
        make: impl FnOnce(Perm, u64) -> Result<T>,
    ) -> Result<i32> {
        let mut slots = self.slots.lock();
        if key != IPC_PRIVATE {
            let found = slots.by_index.values().find(|e| e.perm().key == key);
            if let Some(found) = found {
                if flags & IPC_CREAT != 0 && flags & IPC_EXCL != 0 {
                    return Err(Errno::EEXIST);
                }
                check(found)?;
                let perm = found.perm();
                perm.check(flags, creds)?;
                return Ok(perm.id);
            }
            if flags & IPC_CREAT == 0 {
                return Err(Errno::ENOENT);
            }
        }
        if slots.by_index.len() >= self.limits.count(self.max) {
            return Err(Errno::ENOSPC);
        }
        let mut index = slots.last_index;
        loop {
            index += 1;
            if index > INDEX_MASK {
                index = 0;
            }
            if !slots.by_index.contains_key(&index) {
                break;
            }
        }
        if index <= slots.last_index {
            slots.seq = if slots.seq >= SEQ_MAX { 0 } else { slots.seq + 1 };
        }
        slots.last_index = index;
        let id = slots.seq << INDEX_BITS | index;
        let made = make(Perm::new(key, id, flags, creds), slots.weight)?;
        slots.weight = slots.weight.saturating_add(made.weight());
        slots.by_index.insert(index, Arc::new(made));
        Ok(id)
    }

    /// The object of an id. `EINVAL` if there is none, `EIDRM` if its index is another's now.
    pub fn find(&self, id: i32) -> Result<Arc<T>> {
        if id < 0 {
            return Err(Errno::EINVAL);
        }
        let slots = self.slots.lock();
        let entry = slots.by_index.get(&(id & INDEX_MASK)).ok_or(Errno::EINVAL)?;
        if entry.perm().id == id { Ok(Arc::clone(entry)) } else { Err(Errno::EIDRM) }
    }

    /// The object at an index (`*_STAT`).
    pub fn at_index(&self, index: i32) -> Result<Arc<T>> {
        let slots = self.slots.lock();
        slots.by_index.get(&(index & INDEX_MASK)).cloned().ok_or(Errno::EINVAL)
    }

    /// Takes an object out of the tables; false if another call was first.
    pub fn remove(&self, entry: &Arc<T>) -> bool {
        let index = entry.perm().id & INDEX_MASK;
        let removed = {
            let mut slots = self.slots.lock();
            let present = slots.by_index.get(&index).is_some_and(|e| Arc::ptr_eq(e, entry));
            let removed = if present { slots.by_index.remove(&index) } else { None };
            if removed.is_some() {
                slots.weight = slots.weight.saturating_sub(entry.weight());
            }
            removed
        };
        removed.is_some()
    }

    /// Every object, by index.
    pub fn all(&self) -> Vec<Arc<T>> {
        self.slots.lock().by_index.values().cloned().collect()
    }

    /// The highest index in use; 0 for none.
    pub fn max_index(&self) -> i32 {
        self.slots.lock().by_index.keys().next_back().copied().unwrap_or(0)
    }

    /// How many objects there are.
    pub fn count(&self) -> usize {
        self.slots.lock().by_index.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sentry_base::Mutex;

    struct Thing(Mutex<Perm, { rank::LEAF }>);

    impl Entry for Thing {
        fn perm(&self) -> Perm {
            *self.0.lock()
        }
        fn forget_key(&self) {
            self.0.lock().key = IPC_PRIVATE;
        }
    }

    fn get(registry: &Registry<Thing>, key: i32, flags: u32) -> Result<i32> {
        let root = Credentials::root();
        registry.get(key, flags, &root, |_| Ok(()), |perm, _| Ok(Thing(Mutex::new(perm))))
    }

    #[test]
    fn keys_and_ids() {
        let limits = Arc::<Limits>::default();
        limits.set(Limit::ShmMni, 4).unwrap();
        let registry = Registry::<Thing>::new(&limits, Limit::ShmMni);
        assert_eq!(get(&registry, 7, 0o600), Err(Errno::ENOENT));
        let id = get(&registry, 7, 0o600 | IPC_CREAT).unwrap();
        assert_eq!(get(&registry, 7, 0o600), Ok(id));
        assert_eq!(get(&registry, 7, IPC_CREAT | IPC_EXCL), Err(Errno::EEXIST));
        let private = get(&registry, IPC_PRIVATE, 0).unwrap();
        assert_ne!(private, id);
        let thing = registry.find(id).unwrap();
        assert!(registry.remove(&thing));
        assert!(!registry.remove(&thing));
        assert_eq!(registry.find(id).err(), Some(Errno::EINVAL));
        for _ in 0..3 {
            get(&registry, IPC_PRIVATE, 0).unwrap();
        }
        assert_eq!(get(&registry, IPC_PRIVATE, 0), Err(Errno::ENOSPC));
    }
}
