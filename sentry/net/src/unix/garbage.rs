//! Sockets that only messages keep open (`net/unix/garbage.c`).
//!
//! A socket may be sent through itself, or two through one another, and then be closed: nothing but their own queues
//! holds them, and nobody can ever receive them. When sockets close while others are in flight, what cannot be
//! reached any more is found and emptied.

use core::sync::atomic::Ordering;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};

use sentry_vfs::FileDescription;

use super::addr::UnixNamespace;
use super::{Core, UnixSocket};
use crate::SocketFile;

/// A socket's description in flight, and how often.
#[derive(Debug)]
pub(super) struct Flying {
    file: Weak<FileDescription>,
    times: usize,
}

/// The socket of this family behind a description.
fn core_of(file: &FileDescription) -> Option<Arc<Core>> {
    let socket = file.ops().as_any().downcast_ref::<SocketFile>()?.socket();
    Some(Arc::clone(&socket.as_any().downcast_ref::<UnixSocket>()?.0))
}

impl UnixNamespace {
    /// Notes which of the files that take off are sockets of this family.
    pub(super) fn note_flight(&self, files: &[Arc<FileDescription>]) {
        for file in files.iter().filter(|f| core_of(f).is_some()) {
            let mut flying = self.flying.lock();
            let entry =
                flying.entry(file.id()).or_insert_with(|| Flying { file: Arc::downgrade(file), times: 0 });
            entry.times += 1;
        }
    }

    /// They have arrived, or are dropped.
    pub(super) fn note_landing(&self, files: &[Arc<FileDescription>]) {
        let mut flying = self.flying.lock();
        for file in files {
            if let Some(entry) = flying.get_mut(&file.id()) {
                entry.times = entry.times.saturating_sub(1);
                if entry.times == 0 {
                    flying.remove(&file.id());
                }
            }
        }
    }

    /// Empties the queues of sockets that nobody can reach. Call it without locks.
    pub(super) fn collect_garbage(&self) {
        let flying = self.flying.lock().len();
        // A search costs as much as sockets are in flight: the more there are, the more closes go by before the next.
        let closes = self.closes.fetch_add(1, Ordering::Relaxed);
        if flying == 0 || closes < flying / 16 || self.collecting.swap(true, Ordering::SeqCst) {
            return;
        }
        self.closes.store(0, Ordering::Relaxed);
        let unreachable = self.find_unreachable();
        let messages: Vec<_> = unreachable.iter().map(|core| core.drain()).collect();
        self.collecting.store(false, Ordering::SeqCst);
        drop(messages);
    }

    fn find_unreachable(&self) -> Vec<Arc<Core>> {
        // Files are let go after the lock.
        let all: Vec<(Arc<FileDescription>, usize)> = {
            let flying = self.flying.lock();
            flying.values().filter_map(|f| Some((f.file.upgrade()?, f.times))).collect()
        };
        // Only in flight: no descriptor, no call, no other holder.
        let mut candidates = HashMap::new();
        for (file, times) in &all {
            if Arc::strong_count(file) == times + 1
                && let Some(core) = core_of(file)
            {
                candidates.insert(file.id(), (core, *times));
            }
        }
        let mut inside: HashMap<u64, usize> = HashMap::new();
        let mut held: HashMap<u64, Vec<u64>> = HashMap::new();
        for (id, (core, _)) in &candidates {
            let ids = core.rights_held();
            for target in &ids {
                *inside.entry(*target).or_default() += 1;
            }
            held.insert(*id, ids);
        }
        // What some other queue holds can be received, and so can everything in its queue.
        let mut todo: Vec<u64> = candidates
            .iter()
            .filter(|(id, (_, times))| inside.get(*id).copied().unwrap_or(0) < *times)
            .map(|(id, _)| *id)
            .collect();
        let mut reachable: HashSet<u64> = todo.iter().copied().collect();
        while let Some(id) = todo.pop() {
            for next in held.get(&id).into_iter().flatten() {
                if reachable.insert(*next) {
                    todo.push(*next);
                }
            }
        }
        candidates.retain(|id, _| !reachable.contains(id));
        candidates.into_values().map(|(core, _)| core).collect()
    }
}
