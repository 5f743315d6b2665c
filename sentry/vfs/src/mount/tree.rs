//! All mounts of a sandbox under one lock: which hangs where, and which are peers or slaves of which.
//!
//! A mount's **peer group** is a number; so is its **master**, the group that it receives from. Mounts are named by
//! number here, so that the tree itself holds exactly one reference to each.

use core::mem::take;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use sentry_base::{Errno, Result};

use super::{Location, Mount, MountFlags};
use crate::{Dentry, FileSystem, SuperBlock, UserNs};

/// A mount on a place: by the parent mount's id and the dentry's.
type PointKey = (u64, u64);

fn key_of(at: &Location) -> PointKey {
    (at.mount.id, at.dentry.id())
}

fn address(fs: &Arc<dyn FileSystem>) -> usize {
    Arc::as_ptr(fs).cast::<()>().addr()
}

/// What the tree keeps of a mount.
#[derive(Debug)]
pub(crate) struct Node {
    pub mount: Arc<Mount>,
    children: BTreeSet<u64>,
    /// What is mounted on its root.
    over: Option<u64>,
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
    /// A namespace of the same user namespace. Files of mount namespaces stay out: they are older than the copy.
    Namespace,
    /// A namespace of less privilege: shared mounts become slaves too.
    LesserNamespace,
}

#[derive(Default)]
pub(crate) struct Tree {
    nodes: HashMap<u64, Node>,
    at: HashMap<PointKey, u64>,
    /// The mounts of each file system, by the address of that.
    of_fs: HashMap<usize, BTreeSet<u64>>,
    pub(super) peers: HashMap<u64, BTreeSet<u64>>,
    pub(super) slaves: HashMap<u64, BTreeSet<u64>>,
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

    /// The user namespace of a mount namespace.
    pub fn owner_of(&self, ns: u64) -> Option<&Arc<UserNs>> {
        self.owners.get(&ns)
    }

    /// How many mounts a namespace has.
    pub fn nr_mounts(&self, ns: u64) -> usize {
        self.nr_mounts.get(&ns).copied().unwrap_or(0)
    }

    /// The last of the mounts that lie one on the other on a place.
    pub fn topmost(&self, at: &Location) -> Option<&Arc<Mount>> {
        let mut top = self.nodes.get(self.at.get(&key_of(at))?)?;
        while let Some(over) = top.over.and_then(|id| self.nodes.get(&id)) {
            top = over;
        }
        Some(&top.mount)
    }

    /// The superblock of a file system that is mounted already.
    pub fn superblock_of(&self, fs: &Arc<dyn FileSystem>) -> Option<&Arc<SuperBlock>> {
        let id = self.of_fs.get(&address(fs))?.first()?;
        self.nodes.get(id).map(|n| &n.mount.sb)
    }

    /// The number of what is mounted directly on `dentry` of a mount.
    pub fn id_at(&self, mount: u64, dentry: &Dentry) -> Option<u64> {
        self.at.get(&(mount, dentry.id())).copied()
    }

    /// What is mounted on a mount, oldest first.
    pub fn children(&self, id: u64) -> impl Iterator<Item = u64> + '_ {
        self.nodes.get(&id).into_iter().flat_map(|n| n.children.iter().copied())
    }

    /// The mount and all below it, parents first.
    pub fn subtree(&self, id: u64) -> Vec<u64> {
        let mut all = vec![id];
        let mut next = 0;
        while let Some(at) = all.get(next).copied() {
            all.extend(self.children(at));
            next += 1;
        }
        all
    }

    /// Enters a mount that hangs nowhere yet.
    pub fn insert(&mut self, mount: Arc<Mount>, ns: u64) -> u64 {
        let id = mount.id;
        *self.nr_mounts.entry(ns).or_default() += 1;
        self.of_fs.entry(address(mount.filesystem())).or_default().insert(id);
        let node = Node {
            mount,
            children: BTreeSet::new(),
            over: None,
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

    /// Hangs a mount on a place. What is there already goes on top of all that is on it.
    pub fn attach(&mut self, at: &Location, id: u64) {
        let Some(mount) = self.nodes.get(&id).map(|n| Arc::clone(&n.mount)) else { return };
        let above = self.at.get(&key_of(at)).copied();
        if let Some(above) = above {
            self.unhook(above);
        }
        self.hook(at, id);
        if let Some(above) = above {
            let root = Location { dentry: Arc::clone(&mount.root), mount };
            let top =
                self.topmost(&root).map(|m| Location { dentry: Arc::clone(&m.root), mount: Arc::clone(m) });
            self.hook(&top.unwrap_or(root), above);
        }
    }

    pub(super) fn hook(&mut self, at: &Location, id: u64) {
        let Some(node) = self.nodes.get(&id) else { return };
        at.dentry.add_mount();
        *node.mount.point.write() = Some(at.clone());
        self.at.insert(key_of(at), id);
        if let Some(parent) = self.nodes.get_mut(&at.mount.id) {
            parent.children.insert(id);
            if at.is_mount_root() {
                parent.over = Some(id);
            }
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
                parent.children.remove(&id);
                if point.is_mount_root() {
                    parent.over = None;
                }
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
                self.forget_use(&node.mount);
                gone.push(node.mount);
            }
        }
        gone
    }

    fn forget_use(&mut self, mount: &Mount) {
        let fs = address(mount.filesystem());
        if let Some(uses) = self.of_fs.get_mut(&fs) {
            uses.remove(&mount.id);
            if uses.is_empty() {
                self.of_fs.remove(&fs);
            }
        }
    }

    pub(super) fn new_group(&mut self) -> u64 {
        self.last_group += 1;
        self.last_group
    }

    pub(super) fn join(&mut self, id: u64, group: u64) {
        self.leave(id);
        if let Some(node) = self.nodes.get_mut(&id) {
            node.shared = group;
            node.unbindable = false;
            self.peers.entry(group).or_default().insert(id);
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
        members.remove(&id);
        if members.is_empty() {
            self.peers.remove(&group);
            let own_master = self.nodes.get(&id)?.master;
            for slave in self.slaves.remove(&group).unwrap_or_default() {
                if let Some(node) = self.nodes.get_mut(&slave) {
                    node.master = own_master;
                }
                if own_master != 0 {
                    self.slaves.entry(own_master).or_default().insert(slave);
                }
            }
            return None;
        }
        Some(group)
    }

    pub(super) fn set_master(&mut self, id: u64, group: u64) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let old = core::mem::replace(&mut node.master, group);
        if let Some(slaves) = self.slaves.get_mut(&old) {
            slaves.remove(&id);
            if slaves.is_empty() {
                self.slaves.remove(&old);
            }
        }
        if group != 0 {
            self.slaves.entry(group).or_default().insert(id);
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
            for child in self.children(parent).collect::<Vec<_>>() {
                let Some(node) = self.nodes.get(&child) else { continue };
                let (Some(point), child_root) = (node.mount.point(), Arc::clone(&node.mount.root)) else {
                    continue;
                };
                if parent == id && !root.is_same_or_above(&point.dentry) {
                    continue;
                }
                if how != CopyFor::Bind && child_root.inode().mount_namespace().is_some() {
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

    /// Whether a bind mount of `root` alone would show what locked mounts hide (`has_locked_children`).
    pub fn has_locked_children(&self, id: u64, root: &Arc<Dentry>) -> bool {
        self.children(id)
            .filter_map(|c| self.nodes.get(&c))
            .any(|n| n.locked && n.mount.point().is_some_and(|p| root.is_same_or_above(&p.dentry)))
    }

    /// Whether the tree holds a mount that must not be copied (`tree_contains_unbindable`).
    pub fn contains_unbindable(&self, id: u64) -> bool {
        self.subtree(id).iter().filter_map(|id| self.nodes.get(id)).any(|n| n.unbindable)
    }

    /// Whether the tree shows the file of `ns` or of an older namespace, which must not hang in `ns`: mount namespaces hold
    /// newer ones alone, so that none holds itself (`check_for_nsfs_mounts`).
    pub fn would_loop(&self, id: u64, ns: u64) -> bool {
        self.subtree(id)
            .iter()
            .filter_map(|id| self.nodes.get(id)?.mount.root.inode().mount_namespace())
            .any(|shown| shown <= ns)
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
