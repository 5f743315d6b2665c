//! All mounts of a sandbox under one lock: which hangs where, and how mounts and unmounts travel between peers and to
//! slaves (`Documentation/filesystems/sharedsubtree.rst`, `fs/pnode.c`).
//!
//! A mount's **peer group** is a number; so is its **master**, the group that it receives from. Mounts are named by
//! number here, so that the tree itself holds exactly one reference to each.

use core::mem::take;
use std::collections::HashMap;
use std::sync::Arc;

use sentry_base::{Errno, Result};

use super::{Location, Mount, MountFlags};
use crate::{Dentry, UserNs};

/// A mount on a place: by the parent mount's id and the dentry's.
type PointKey = (u64, u64);

fn key_of(at: &Location) -> PointKey {
    (at.mount.id, at.dentry.id())
}

/// What the tree keeps of a mount.
#[derive(Debug)]
pub(crate) struct Node {
    pub mount: Arc<Mount>,
    children: Vec<u64>,
    /// The namespace that it belongs to; 0 for none.
    pub ns: u64,
    /// The peer group; 0 for none.
    pub shared: u64,
    /// The group that it receives from; 0 for none.
    pub master: u64,
    pub unbindable: bool,
    /// It came along into a less privileged namespace, which may not take it away (`MNT_LOCKED`).
    pub locked: bool,
    /// `MNT_EXPIRE` was asked for once.
    pub expiring: bool,
}

/// How propagation is set (`mount_namespaces(7)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    Shared,
    Private,
    Slave,
    Unbindable,
}

/// What a copy of a tree leaves out and how it is related to the original.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CopyFor {
    /// A recursive bind mount: without what is unbindable.
    Bind,
    /// A namespace of the same user namespace.
    Namespace,
    /// A namespace of less privilege: shared mounts become slaves.
    LesserNamespace,
}

/// The groups that the copies made for one receiving mount get, in place of the source's.
enum Relation {
    /// A peer: the copies join the source's groups.
    Peer(HashMap<u64, u64>),
    /// A slave: the copies receive from these groups, and are shared in new ones where the receiver is shared.
    Slave { masters: HashMap<u64, u64>, shared: Option<HashMap<u64, u64>> },
}

#[derive(Default)]
pub(crate) struct Tree {
    nodes: HashMap<u64, Node>,
    at: HashMap<PointKey, u64>,
    peers: HashMap<u64, Vec<u64>>,
    slaves: HashMap<u64, Vec<u64>>,
    nr_mounts: HashMap<u64, usize>,
    /// The user namespace of each mount namespace.
    owners: HashMap<u64, Arc<UserNs>>,
    last_group: u64,
}

impl Tree {
    pub fn node(&self, id: u64) -> Option<&Node> {
        self.nodes.get(&id)
    }

    pub fn node_mut(&mut self, id: u64) -> Option<&mut Node> {
        self.nodes.get_mut(&id)
    }

    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    pub fn know_namespace(&mut self, ns: u64, owner: Arc<UserNs>) {
        self.owners.insert(ns, owner);
    }

    pub fn forget_namespace(&mut self, ns: u64) {
        self.owners.remove(&ns);
    }

    /// The user namespace of each mount namespace.
    pub fn namespace_owners(&self) -> HashMap<u64, Arc<UserNs>> {
        self.owners.clone()
    }

    /// How many mounts a namespace has.
    pub fn nr_mounts(&self, ns: u64) -> usize {
        self.nr_mounts.get(&ns).copied().unwrap_or(0)
    }

    /// What is mounted directly on a place.
    pub fn mounted_at(&self, at: &Location) -> Option<&Arc<Mount>> {
        self.at.get(&key_of(at)).and_then(|id| self.nodes.get(id)).map(|n| &n.mount)
    }

    pub fn children(&self, id: u64) -> &[u64] {
        self.nodes.get(&id).map_or(&[], |n| n.children.as_slice())
    }

    /// The mount and all below it, parents first.
    pub fn subtree(&self, id: u64) -> Vec<u64> {
        let mut all = vec![id];
        let mut next = 0;
        while let Some(at) = all.get(next).copied() {
            all.extend_from_slice(self.children(at));
            next += 1;
        }
        all
    }

    /// Enters a mount that hangs nowhere yet.
    pub fn insert(&mut self, mount: Arc<Mount>, ns: u64) -> u64 {
        let id = mount.id;
        *self.nr_mounts.entry(ns).or_default() += 1;
        let node = Node {
            mount,
            children: Vec::new(),
            ns,
            shared: 0,
            master: 0,
            unbindable: false,
            locked: false,
            expiring: false,
        };
        self.nodes.insert(id, node);
        id
    }

    /// Moves a mount and all below it to another namespace.
    pub fn set_ns(&mut self, id: u64, ns: u64) {
        for id in self.subtree(id) {
            let Some(node) = self.nodes.get_mut(&id) else { continue };
            let old = core::mem::replace(&mut node.ns, ns);
            self.uncount(old);
            *self.nr_mounts.entry(ns).or_default() += 1;
        }
    }

    fn uncount(&mut self, ns: u64) {
        if let Some(count) = self.nr_mounts.get_mut(&ns) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.nr_mounts.remove(&ns);
            }
        }
    }

    /// Hangs a mount on a place. What is there already goes on top of it.
    pub fn attach(&mut self, at: &Location, id: u64) {
        let Some(mount) = self.nodes.get(&id).map(|n| Arc::clone(&n.mount)) else { return };
        let above = self.at.get(&key_of(at)).copied();
        if let Some(above) = above {
            self.unhook(above);
        }
        self.hook(at, id);
        if let Some(above) = above {
            let top = Location { dentry: Arc::clone(&mount.root), mount };
            self.hook(&top, above);
        }
    }

    fn hook(&mut self, at: &Location, id: u64) {
        let Some(node) = self.nodes.get(&id) else { return };
        at.dentry.add_mount();
        *node.mount.point.write() = Some(at.clone());
        self.at.insert(key_of(at), id);
        if let Some(parent) = self.nodes.get_mut(&at.mount.id) {
            parent.children.push(id);
        }
    }

    /// Takes a mount off its place, with what is on it.
    pub fn unhook(&mut self, id: u64) {
        let Some(node) = self.nodes.get(&id) else { return };
        let point = node.mount.point.write().take();
        if let Some(point) = point {
            self.at.remove(&key_of(&point));
            point.dentry.remove_mount();
            if let Some(parent) = self.nodes.get_mut(&point.mount.id) {
                parent.children.retain(|c| *c != id);
            }
        }
    }

    /// Takes the tree below and with `id` apart, for good. The mounts are given back, to be dropped after the lock.
    pub fn dissolve(&mut self, id: u64) -> Vec<Arc<Mount>> {
        let mut gone = Vec::new();
        for id in self.subtree(id).into_iter().rev() {
            self.set_propagation(id, Propagation::Private);
            self.unhook(id);
            if let Some(node) = self.nodes.remove(&id) {
                self.uncount(node.ns);
                gone.push(node.mount);
            }
        }
        gone
    }

    fn new_group(&mut self) -> u64 {
        self.last_group += 1;
        self.last_group
    }

    fn join(&mut self, id: u64, group: u64) {
        self.leave(id);
        if let Some(node) = self.nodes.get_mut(&id) {
            node.shared = group;
            node.unbindable = false;
            self.peers.entry(group).or_default().push(id);
        }
    }

    /// Leaves the peer group, and gives it back if others are still in it. The slaves of a group that ends go to the
    /// master of its last member.
    fn leave(&mut self, id: u64) -> Option<u64> {
        let group = take(&mut self.nodes.get_mut(&id)?.shared);
        if group == 0 {
            return None;
        }
        let members = self.peers.get_mut(&group)?;
        members.retain(|m| *m != id);
        if members.is_empty() {
            self.peers.remove(&group);
            let own_master = self.nodes.get(&id)?.master;
            for slave in self.slaves.remove(&group).unwrap_or_default() {
                if let Some(node) = self.nodes.get_mut(&slave) {
                    node.master = own_master;
                }
                if own_master != 0 {
                    self.slaves.entry(own_master).or_default().push(slave);
                }
            }
            return None;
        }
        Some(group)
    }

    fn set_master(&mut self, id: u64, group: u64) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let old = core::mem::replace(&mut node.master, group);
        if let Some(slaves) = self.slaves.get_mut(&old) {
            slaves.retain(|s| *s != id);
            if slaves.is_empty() {
                self.slaves.remove(&old);
            }
        }
        if group != 0 {
            self.slaves.entry(group).or_default().push(id);
        }
    }

    /// `MS_SHARED` and its kin on one mount (`change_mnt_propagation`).
    pub fn set_propagation(&mut self, id: u64, to: Propagation) {
        match to {
            Propagation::Shared => {
                if self.nodes.get(&id).is_some_and(|n| n.shared == 0) {
                    let group = self.new_group();
                    self.join(id, group);
                }
            }
            Propagation::Slave => {
                // A shared mount receives from its former peers; without any, from its own master as before.
                if let Some(group) = self.leave(id) {
                    self.set_master(id, group);
                }
            }
            Propagation::Private | Propagation::Unbindable => {
                self.leave(id);
                self.set_master(id, 0);
                if let Some(node) = self.nodes.get_mut(&id) {
                    node.unbindable = to == Propagation::Unbindable;
                }
            }
        }
    }

    /// A copy of one mount that shows `root`, hanging nowhere, in namespace `ns` (`clone_mnt`). Peer groups and masters are
    /// kept as for a bind mount.
    pub fn copy_mount(&mut self, id: u64, root: &Arc<Dentry>, ns: u64, lesser: bool) -> Result<u64> {
        let node = self.nodes.get(&id).ok_or(Errno::EINVAL)?;
        let (shared, master, unbindable) = (node.shared, node.master, node.unbindable);
        let (locked, mount) = (node.locked, Arc::clone(&node.mount));
        let copy = self.insert(mount.copy_showing(root), ns);
        if lesser && shared != 0 {
            self.set_master(copy, shared);
        } else {
            if shared != 0 {
                self.join(copy, shared);
            }
            self.set_master(copy, master);
        }
        if let Some(node) = self.nodes.get_mut(&copy) {
            node.locked = locked;
            node.unbindable = unbindable;
        }
        Ok(copy)
    }

    /// A copy of the tree of mounts at and below `root` of mount `id`, hanging nowhere; with the new number of each.
    /// `EPERM` where a locked mount would have to be left out.
    pub fn copy_tree(
        &mut self,
        id: u64,
        root: &Arc<Dentry>,
        ns: u64,
        how: CopyFor,
    ) -> Result<(u64, HashMap<u64, u64>)> {
        let lesser = how == CopyFor::LesserNamespace;
        let top = self.copy_mount(id, root, ns, lesser)?;
        let mut copies = HashMap::from([(id, top)]);
        let mut pending = vec![id];
        while let Some(parent) = pending.pop() {
            for child in self.children(parent).to_vec() {
                let Some(node) = self.nodes.get(&child) else { continue };
                let (Some(point), child_root) = (node.mount.point(), Arc::clone(&node.mount.root)) else {
                    continue;
                };
                if parent == id && !root.is_same_or_above(&point.dentry) {
                    continue;
                }
                if how == CopyFor::Bind && node.unbindable {
                    if node.locked {
                        drop(self.dissolve(top));
                        return Err(Errno::EPERM);
                    }
                    continue;
                }
                let copy = self.copy_mount(child, &child_root, ns, lesser)?;
                let new_parent = copies.get(&parent).and_then(|p| self.nodes.get(p));
                let Some(mount) = new_parent.map(|n| Arc::clone(&n.mount)) else { continue };
                self.hook(&Location { mount, dentry: point.dentry }, copy);
                copies.insert(child, copy);
                pending.push(child);
            }
        }
        Ok((top, copies))
    }

    /// Locks a tree that comes into a less privileged namespace (`lock_mnt_tree`): all but its top stay where they are,
    /// and none becomes more permissive.
    pub fn lock_tree(&mut self, top: u64) {
        for id in self.subtree(top) {
            let Some(node) = self.nodes.get_mut(&id) else { continue };
            node.locked |= id != top;
            node.mount.lock_flags();
        }
    }

    /// The mounts that receive what happens at `parent`, each with how it is related, nearest first.
    fn receivers(&self, parent: u64) -> Vec<Receiver> {
        let mut all = Vec::new();
        let Some(group) = self.nodes.get(&parent).map(|n| n.shared).filter(|g| *g != 0) else { return all };
        let mut pending = vec![group];
        let mut first = true;
        while let Some(group) = pending.pop() {
            if first {
                let peers = self.peers.get(&group).map_or(&[][..], Vec::as_slice);
                all.extend(peers.iter().filter(|m| **m != parent).map(|m| Receiver {
                    mount: *m,
                    own_group: group,
                    from: None,
                }));
                first = false;
            }
            for slave in self.slaves.get(&group).map_or(&[][..], Vec::as_slice) {
                let own_group = self.nodes.get(slave).map_or(0, |n| n.shared);
                all.push(Receiver { mount: *slave, own_group, from: Some(group) });
                if own_group != 0 && !pending.contains(&own_group) {
                    pending.push(own_group);
                }
            }
        }
        all
    }

    /// Attaches the tree with top `id` at `at` and everywhere that receives it (`attach_recursive_mnt`). `lesser` says
    /// whether a namespace has other privileges than the one that mounts; `room` is what a namespace may hold.
    pub fn attach_everywhere(
        &mut self,
        at: &Location,
        id: u64,
        room: usize,
        lesser: &dyn Fn(u64) -> bool,
    ) -> Result<()> {
        let receivers = self.receivers(at.mount.id);
        let source = self.subtree(id);
        let shared = self.nodes.get(&at.mount.id).is_some_and(|n| n.shared != 0);
        let reached: Vec<Receiver> = receivers
            .into_iter()
            .filter(|r| {
                self.nodes
                    .get(&r.mount)
                    .is_some_and(|n| n.ns != 0 && n.mount.root.is_same_or_above(&at.dentry))
            })
            .collect();
        for receiver in &reached {
            let ns = self.nodes.get(&receiver.mount).map_or(0, |n| n.ns);
            if self.nr_mounts(ns) + source.len() > room {
                return Err(Errno::ENOSPC);
            }
        }
        if shared {
            for id in &source {
                self.set_propagation(*id, Propagation::Shared);
            }
        }
        let groups: HashMap<u64, u64> =
            source.iter().filter_map(|id| Some((*id, self.nodes.get(id)?.shared))).collect();
        let top_group = self.nodes.get(&at.mount.id).map_or(0, |n| n.shared);
        // The groups of the copies in each receiving group, by the source's mounts.
        let mut made: HashMap<u64, HashMap<u64, u64>> = HashMap::from([(top_group, groups)]);
        self.attach(at, id);
        for receiver in reached {
            let relation = match receiver.from {
                None => Relation::Peer(made.get(&top_group).cloned().unwrap_or_default()),
                Some(master) => {
                    let masters = made.get(&master).cloned().unwrap_or_default();
                    let shared = (receiver.own_group != 0).then(|| {
                        made.get(&receiver.own_group)
                            .cloned()
                            .unwrap_or_else(|| source.iter().map(|id| (*id, self.new_group())).collect())
                    });
                    if let Some(shared) = &shared {
                        made.insert(receiver.own_group, shared.clone());
                    }
                    Relation::Slave { masters, shared }
                }
            };
            let Some(parent) = self.nodes.get(&receiver.mount) else { continue };
            let (ns, mount) = (parent.ns, Arc::clone(&parent.mount));
            let copy = self.copy_related(id, ns, &relation);
            if let Some(copy) = copy {
                if lesser(ns) {
                    self.lock_tree(copy);
                }
                self.attach(&Location { mount, dentry: Arc::clone(&at.dentry) }, copy);
            }
        }
        Ok(())
    }

    fn copy_related(&mut self, top: u64, ns: u64, relation: &Relation) -> Option<u64> {
        let mut copies: HashMap<u64, u64> = HashMap::new();
        for id in self.subtree(top) {
            let node = self.nodes.get(&id)?;
            let (mount, point, locked) =
                (node.mount.copy_showing(&node.mount.root), node.mount.point(), node.locked);
            let copy = self.insert(mount, ns);
            match relation {
                Relation::Peer(groups) => {
                    if let Some(group) = groups.get(&id).filter(|g| **g != 0) {
                        self.join(copy, *group);
                    }
                    let master = self.nodes.get(&id).map_or(0, |n| n.master);
                    self.set_master(copy, master);
                }
                Relation::Slave { masters, shared } => {
                    self.set_master(copy, masters.get(&id).copied().unwrap_or(0));
                    if let Some(group) = shared.as_ref().and_then(|s| s.get(&id)) {
                        self.join(copy, *group);
                    }
                }
            }
            if let Some(node) = self.nodes.get_mut(&copy) {
                node.locked = locked && id != top;
            }
            if id != top {
                let parent =
                    point.as_ref().and_then(|p| copies.get(&p.mount.id)).and_then(|p| self.nodes.get(p));
                let (Some(parent), Some(point)) = (parent, &point) else { continue };
                let place = Location { mount: Arc::clone(&parent.mount), dentry: Arc::clone(&point.dentry) };
                self.hook(&place, copy);
            }
            copies.insert(id, copy);
        }
        copies.get(&top).copied()
    }

    /// The mounts that go away with the one at a shared place: one for each receiver that has one there without others
    /// on it (`propagate_umount`).
    pub fn counterparts(&self, id: u64) -> Vec<u64> {
        let Some(node) = self.nodes.get(&id) else { return Vec::new() };
        let Some(point) = node.mount.point() else { return Vec::new() };
        self.receivers(point.mount.id)
            .into_iter()
            .filter_map(|r| {
                let found = *self.at.get(&(r.mount, point.dentry.id()))?;
                let child = self.nodes.get(&found)?;
                (!child.locked && found != id && Arc::ptr_eq(&child.mount.root, &node.mount.root))
                    .then_some(found)
            })
            .collect()
    }

    /// Whether a bind mount of `root` alone would show what locked mounts hide (`has_locked_children`).
    pub fn has_locked_children(&self, id: u64, root: &Arc<Dentry>) -> bool {
        self.children(id)
            .iter()
            .filter_map(|c| self.nodes.get(c))
            .any(|n| n.locked && n.mount.point().is_some_and(|p| root.is_same_or_above(&p.dentry)))
    }

    /// Whether the tree holds a mount that must not be copied (`tree_contains_unbindable`).
    pub fn contains_unbindable(&self, id: u64) -> bool {
        self.subtree(id).iter().filter_map(|id| self.nodes.get(id)).any(|n| n.unbindable)
    }

    /// `mount_too_revealing`: whether `ns` shows no mount of this type in full, so that a new one would show what it hides.
    pub fn too_revealing(&self, ns: u64, fs_type: &str, flags: MountFlags) -> bool {
        !self.nodes.values().any(|n| {
            n.ns == ns
                && n.mount.filesystem().name() == fs_type
                && Arc::ptr_eq(&n.mount.root, n.mount.sb.root())
                && flags.contains(n.mount.locked_flags() & MountFlags::RDONLY)
                && !n.children.iter().filter_map(|c| self.nodes.get(c)).any(|c| {
                    let point = c.mount.point();
                    c.locked && !point.is_some_and(|p| p.dentry.inode().is_empty_for_good())
                })
        })
    }
}

/// A mount that receives an event.
struct Receiver {
    mount: u64,
    /// Its own peer group; 0 for none.
    own_group: u64,
    /// The group that it receives from; `None` for a peer of where the event began.
    from: Option<u64>,
}
