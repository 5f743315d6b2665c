//! How a mount or unmount travels from where it happens to the peers and slaves of that mount
//! (`Documentation/filesystems/sharedsubtree.rst`, `fs/pnode.c`).

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use sentry_base::{Errno, Result};

use super::{Location, Mount, Propagation, Tree};
use crate::{Dentry, UserNs};

/// A mount that receives an event.
struct Receiver {
    mount: u64,
    /// Its own peer group; 0 for none.
    own_group: u64,
    /// The group that it receives from; `None` for a peer of where the event began.
    from: Option<u64>,
}

/// One mount of a tree that is being attached, as it was before the tree or a copy of it hung anywhere. Files of mount
/// namespaces do not travel.
struct Piece {
    mount: Arc<Mount>,
    /// The number of its parent's piece and where on that it hangs; `None` for the top.
    point: Option<(usize, Arc<Dentry>)>,
    locked: bool,
}

/// The groups of one copy, piece by piece.
struct Groups<'a> {
    shared: Option<&'a [u64]>,
    masters: &'a [u64],
}

impl Tree {
    /// The mounts that receive what happens at `parent`, each with how it is related, nearest first.
    fn receivers(&self, parent: u64) -> Vec<Receiver> {
        let mut all = Vec::new();
        let Some(first) = self.node(parent).map(|n| n.shared).filter(|g| *g != 0) else { return all };
        let peers = self.peers.get(&first).into_iter().flatten().filter(|m| **m != parent);
        all.extend(peers.map(|m| Receiver { mount: *m, own_group: first, from: None }));
        let mut pending = vec![first];
        let mut seen = HashSet::from([first]);
        while let Some(group) = pending.pop() {
            for slave in self.slaves.get(&group).into_iter().flatten() {
                let own_group = self.node(*slave).map_or(0, |n| n.shared);
                all.push(Receiver { mount: *slave, own_group, from: Some(group) });
                if own_group != 0 && seen.insert(own_group) {
                    pending.push(own_group);
                }
            }
        }
        all
    }

    /// Attaches the tree with top `id` at `at` and everywhere that receives it (`attach_recursive_mnt`). A tree of no
    /// namespace comes into that of `at`; it receives nothing of itself, though it may be in the peer group of `at` already.
    /// `own` is the user namespace of who mounts, `room` how many mounts a namespace may hold. `ENOSPC`, with nothing
    /// changed, where one would hold more; `EINVAL` where the file of a mount namespace would be received.
    pub fn attach_everywhere(
        &mut self,
        at: &Location,
        id: u64,
        room: usize,
        own: &Arc<UserNs>,
    ) -> Result<()> {
        let parent = self.node(at.mount.id).ok_or(Errno::EINVAL)?;
        let (ns, top_group) = (parent.ns, parent.shared);
        let reached = self.receivers(at.mount.id);
        let reached: Vec<(Receiver, u64, Arc<Mount>)> = reached
            .into_iter()
            .filter_map(|r| {
                let node = self.node(r.mount)?;
                let sees = node.ns != 0 && node.mount.root.is_same_or_above(&at.dentry);
                sees.then(|| (r, node.ns, Arc::clone(&node.mount)))
            })
            .collect();
        let source = self.subtree(id);
        let pieces = self.pieces(&source);
        let coming = self.node(id).is_some_and(|n| n.ns != ns);
        if pieces.is_empty() && !reached.is_empty() {
            return Err(Errno::EINVAL);
        }
        let mut needed = HashMap::from([(ns, if coming { source.len() } else { 0 })]);
        for (_, ns, _) in &reached {
            *needed.entry(*ns).or_default() += pieces.len();
        }
        if needed.iter().any(|(ns, more)| *more != 0 && self.nr_mounts(*ns) + more > room) {
            return Err(Errno::ENOSPC);
        }
        if top_group != 0 {
            for id in &source {
                self.set_propagation(*id, Propagation::Shared);
            }
        }
        let of_pieces = |f: fn(&super::tree::Node) -> u64| -> Vec<u64> {
            pieces.iter().map(|p| self.node(p.mount.id).map_or(0, f)).collect()
        };
        let (shared, source_masters) = (of_pieces(|n| n.shared), of_pieces(|n| n.master));
        let unrelated = vec![0; pieces.len()];
        // The groups of the copies in each receiving group.
        let mut made = HashMap::from([(top_group, shared)]);
        self.unhook(id);
        if coming {
            self.set_ns(id, ns);
        }
        self.attach(at, id);
        for (receiver, ns, mount) in reached {
            let group = receiver.own_group;
            if group != 0 && !made.contains_key(&group) {
                made.insert(group, pieces.iter().map(|_| self.new_group()).collect());
            }
            let masters = receiver.from.map_or(Some(&source_masters), |from| made.get(&from));
            let groups = Groups {
                shared: made.get(&group).filter(|_| group != 0).map(Vec::as_slice),
                masters: masters.unwrap_or(&unrelated),
            };
            let Some(copy) = self.copy_pieces(&pieces, ns, &groups) else { continue };
            if self.owner_of(ns).is_some_and(|owner| owner != own) {
                self.lock_tree(copy);
            }
            self.attach(&Location { mount, dentry: Arc::clone(&at.dentry) }, copy);
        }
        Ok(())
    }

    /// The mounts of a subtree that travel, parents first.
    fn pieces(&self, subtree: &[u64]) -> Vec<Piece> {
        let mut numbers = HashMap::new();
        let mut pieces = Vec::with_capacity(subtree.len());
        for node in subtree.iter().filter_map(|id| self.node(*id)) {
            let point = node.mount.point();
            let point = point.and_then(|p| Some((*numbers.get(&p.mount.id)?, p.dentry)));
            let top = subtree.first() == Some(&node.mount.id);
            if node.mount.root.inode().mount_namespace().is_some() || (point.is_none() && !top) {
                continue;
            }
            numbers.insert(node.mount.id, pieces.len());
            pieces.push(Piece { mount: Arc::clone(&node.mount), point, locked: node.locked });
        }
        pieces
    }

    /// A copy of a tree that hangs nowhere; gives its top.
    fn copy_pieces(&mut self, pieces: &[Piece], ns: u64, groups: &Groups<'_>) -> Option<u64> {
        let mut copies: Vec<Arc<Mount>> = Vec::with_capacity(pieces.len());
        for (number, piece) in pieces.iter().enumerate() {
            let mount = piece.mount.copy_showing(&piece.mount.root);
            let copy = self.insert(Arc::clone(&mount), ns);
            if let Some(group) = groups.shared.and_then(|s| s.get(number)).filter(|g| **g != 0) {
                self.join(copy, *group);
            }
            self.set_master(copy, groups.masters.get(number).copied().unwrap_or(0));
            if let Some((parent, dentry)) = &piece.point {
                if let Some(node) = self.node_mut(copy) {
                    node.locked = piece.locked;
                }
                let parent = Arc::clone(copies.get(*parent)?);
                self.hook(&Location { mount: parent, dentry: Arc::clone(dentry) }, copy);
            }
            copies.push(mount);
        }
        copies.first().map(|top| top.id)
    }

    /// The mounts that go away with the one at a shared place: one for each receiver that has one there without others
    /// on it (`propagate_umount`).
    pub fn counterparts(&self, id: u64) -> Vec<u64> {
        let Some(node) = self.node(id) else { return Vec::new() };
        let Some(point) = node.mount.point() else { return Vec::new() };
        self.receivers(point.mount.id)
            .into_iter()
            .filter_map(|r| {
                let found = self.id_at(r.mount, &point.dentry)?;
                let child = self.node(found)?;
                (!child.locked && found != id && Arc::ptr_eq(&child.mount.root, &node.mount.root))
                    .then_some(found)
            })
            .collect()
    }
}
