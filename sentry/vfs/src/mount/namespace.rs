//! Mount namespaces: the trees of mounts that processes see, and the operations of `mount(2)`, `umount2(2)` and
//! `pivot_root(2)` on them (`fs/namespace.c`).

use core::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use sentry_base::lock::rank;
use sentry_base::unnest::{Waiting, drop_in_turn};
use sentry_base::{Errno, Result, RwLock};

use super::tree::{CopyFor, Tree};
use super::{Location, Mount, MountFlags, MountInfo, Propagation};
use crate::{Dentry, FileSystem, SuperBlock, UserNs, Vfs, next_ns_ino};

/// Mounts that one namespace may hold (`fs.mount-max`).
const MOUNT_MAX: usize = 100_000;

bitflags::bitflags! {
    /// Flags of `umount2(2)`.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct UmountFlags: u32 {
        const FORCE = 1;
        const DETACH = 2;
        const EXPIRE = 4;
        const NOFOLLOW = 8;
    }
}

/// A tree of mounts, as one or more processes see it.
pub struct MountNamespace {
    id: u64,
    vfs: Arc<Vfs>,
    /// Whose capabilities count for changing it.
    user_ns: Arc<UserNs>,
    root: RwLock<Arc<Mount>, { rank::LEAF }>,
}

impl core::fmt::Debug for MountNamespace {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "MountNamespace({})", self.id)
    }
}

impl Drop for MountNamespace {
    fn drop(&mut self) {
        let root = self.root.get_mut().id;
        let mut tree = self.vfs.mounts().write();
        tree.forget_namespace(self.id);
        let gone = tree.dissolve(root);
        drop(tree);
        let_go(gone);
    }
}

thread_local! {
    /// Mounts that wait to be let go by the call further up this thread's stack.
    static WAITING: Waiting<Arc<Mount>> = const { RefCell::new(None) };
}

/// Lets the mounts of a namespace go. One may show the file of another namespace, and hold that alone.
fn let_go(mounts: Vec<Arc<Mount>>) {
    drop_in_turn(&WAITING, mounts);
}

/// A tree of mounts that hangs nowhere yet and goes away with this (`open_tree(2)` with `OPEN_TREE_CLONE`, `fsmount(2)`).
#[derive(Debug)]
pub struct MountTree {
    vfs: Arc<Vfs>,
    top: Arc<Mount>,
}

impl MountTree {
    /// The place of its root.
    pub fn root(&self) -> Location {
        Location { dentry: Arc::clone(&self.top.root), mount: Arc::clone(&self.top) }
    }
}

impl Drop for MountTree {
    fn drop(&mut self) {
        let mut tree = self.vfs.mounts().write();
        // Once attached it belongs to its namespace.
        let loose = tree.node(self.top.id).is_some_and(|n| n.ns == 0) && self.top.point().is_none();
        let gone = if loose { tree.dissolve(self.top.id) } else { Vec::new() };
        drop(tree);
        drop(gone);
    }
}

/// Where the mounts of a copied namespace went.
#[derive(Debug)]
pub struct MountMap(HashMap<u64, Arc<Mount>>);

impl MountMap {
    /// The same place in the copy.
    #[must_use]
    pub fn translate(&self, at: &Location) -> Location {
        let mount = self.0.get(&at.mount.id).unwrap_or(&at.mount);
        Location { mount: Arc::clone(mount), dentry: Arc::clone(&at.dentry) }
    }
}

impl MountNamespace {
    /// A namespace whose root is the root of `root_fs`.
    pub fn new(vfs: &Arc<Vfs>, root_fs: Arc<dyn FileSystem>, flags: MountFlags, source: &str) -> Arc<Self> {
        let sb = SuperBlock::new(root_fs);
        let root = Arc::clone(sb.root());
        let mount = Mount::new(sb, root, flags, source);
        let id = next_ns_ino();
        let mut tree = vfs.mounts().write();
        tree.insert(Arc::clone(&mount), id);
        Self::with_root(&mut tree, vfs, id, mount, UserNs::initial())
    }

    fn with_root(
        tree: &mut Tree,
        vfs: &Arc<Vfs>,
        id: u64,
        root: Arc<Mount>,
        user_ns: Arc<UserNs>,
    ) -> Arc<Self> {
        tree.know_namespace(id, Arc::clone(&user_ns));
        Arc::new(Self { id, vfs: Arc::clone(vfs), user_ns, root: RwLock::new(root) })
    }

    /// The inode number of `/proc/PID/ns/mnt`.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// What all namespaces share.
    pub fn vfs(&self) -> &Arc<Vfs> {
        &self.vfs
    }

    /// The user namespace whose capabilities count here.
    pub fn user_ns(&self) -> &Arc<UserNs> {
        &self.user_ns
    }

    /// The place that `/` means to a process that never changed its root.
    pub fn root(&self) -> Location {
        let mount = Arc::clone(&self.root.read());
        let mut at = Location { dentry: Arc::clone(&mount.root), mount };
        self.follow_mounts(&mut at);
        at
    }

    /// Moves `at` to the root of what is mounted on it; true if it moved.
    pub fn follow_mounts(&self, at: &mut Location) -> bool {
        if !at.dentry.is_mountpoint() {
            return false;
        }
        let Some(mount) = self.vfs.mounts().read().topmost(at).cloned() else { return false };
        *at = Location { dentry: Arc::clone(&mount.root), mount };
        true
    }

    /// Whether the mount hangs in this namespace (`check_mnt`).
    pub fn contains(&self, mount: &Mount) -> bool {
        self.vfs.mounts().read().node(mount.id).is_some_and(|n| n.ns == self.id)
    }

    /// Whether something is mounted on the dentry in this namespace (`is_local_mountpoint`).
    pub fn is_local_mountpoint(&self, dentry: &Arc<Dentry>) -> bool {
        dentry.is_mountpoint()
            && self
                .vfs
                .mounts()
                .read()
                .nodes()
                .any(|n| n.ns == self.id && n.mount.point().is_some_and(|p| Arc::ptr_eq(&p.dentry, dentry)))
    }

    /// Takes away what other namespaces have mounted on a name that is gone (`detach_mounts`).
    pub fn detach_mounts_on(&self, dentry: &Arc<Dentry>) {
        if !dentry.is_mountpoint() {
            return;
        }
        let mut tree = self.vfs.mounts().write();
        let mut gone = Vec::new();
        loop {
            let found = tree
                .nodes()
                .find(|n| n.mount.point().is_some_and(|p| Arc::ptr_eq(&p.dentry, dentry)))
                .map(|n| n.mount.id);
            match found {
                Some(id) => gone.extend(tree.dissolve(id)),
                None => break,
            }
        }
        drop(tree);
        drop(gone);
    }

    fn check_kinds(at: &Location, root: &Arc<Dentry>) -> Result<()> {
        if at.is_dir() == root.is_dir() { Ok(()) } else { Err(Errno::ENOTDIR) }
    }

    /// Mounts `fs` at `at`; returns the new mount's root. A file system that is mounted already shares its dentries with
    /// the first mount. `ENOTDIR` where only one of the two is a directory, `ENOENT` on a removed place.
    pub fn mount_at(
        &self,
        at: &Location,
        fs: Arc<dyn FileSystem>,
        flags: MountFlags,
        source: &str,
    ) -> Result<Location> {
        let mount = self.new_mount(fs, flags, source, &UserNs::initial());
        self.attach_new(at, mount)
    }

    /// [`MountNamespace::mount_at`] on behalf of a process of `user_ns`, which owns the file system then. `EPERM` where
    /// it would show what the mounts of its type in this namespace hide, `EBUSY` for the same file system twice on one
    /// place.
    pub fn mount_for(
        &self,
        at: &Location,
        fs: Arc<dyn FileSystem>,
        flags: MountFlags,
        source: &str,
        user_ns: &Arc<UserNs>,
    ) -> Result<Location> {
        self.check_revealing(&*fs, flags, user_ns)?;
        let mount = self.new_mount(fs, flags, source, user_ns);
        self.attach_new(at, mount)
    }

    /// A new mount that hangs nowhere, as `fsmount(2)` makes it.
    pub fn loose_mount(
        &self,
        fs: Arc<dyn FileSystem>,
        flags: MountFlags,
        source: &str,
        user_ns: &Arc<UserNs>,
    ) -> Result<MountTree> {
        self.check_revealing(&*fs, flags, user_ns)?;
        let top = self.new_mount(fs, flags, source, user_ns);
        self.vfs.mounts().write().insert(Arc::clone(&top), 0);
        Ok(MountTree { vfs: Arc::clone(&self.vfs), top })
    }

    fn check_revealing(&self, fs: &dyn FileSystem, flags: MountFlags, user_ns: &UserNs) -> Result<()> {
        if user_ns.is_initial() || !matches!(fs.name(), "proc" | "sysfs") {
            return Ok(());
        }
        let tree = self.vfs.mounts().read();
        if tree.too_revealing(self.id, fs.name(), flags) { Err(Errno::EPERM) } else { Ok(()) }
    }

    fn new_mount(
        &self,
        fs: Arc<dyn FileSystem>,
        flags: MountFlags,
        source: &str,
        user_ns: &Arc<UserNs>,
    ) -> Arc<Mount> {
        let known = self.vfs.mounts().read().superblock_of(&fs).cloned();
        let sb = known.unwrap_or_else(|| SuperBlock::owned(fs, Arc::clone(user_ns)));
        let root = Arc::clone(sb.root());
        Mount::new(sb, root, flags, source)
    }

    /// The place on top of all that is mounted at `at`, where a mount may be hung in this namespace.
    fn mount_place(&self, tree: &Tree, at: &Location) -> Result<Location> {
        let mut at = at.clone();
        if let Some(mount) = tree.topmost(&at).cloned() {
            at = Location { dentry: Arc::clone(&mount.root), mount };
        }
        if at.dentry.is_unlinked() {
            return Err(Errno::ENOENT);
        }
        if tree.node(at.mount.id).is_none_or(|n| n.ns != self.id) {
            return Err(Errno::EINVAL);
        }
        Ok(at)
    }

    fn attach_new(&self, at: &Location, mount: Arc<Mount>) -> Result<Location> {
        let mut tree = self.vfs.mounts().write();
        let at = self.mount_place(&tree, at)?;
        if at.is_mount_root() && Arc::ptr_eq(&at.mount.sb, &mount.sb) && Arc::ptr_eq(&at.dentry, &mount.root)
        {
            return Err(Errno::EBUSY);
        }
        let id = tree.insert(Arc::clone(&mount), 0);
        let attached = self.graft(&mut tree, &at, id);
        let gone = if attached.is_err() { tree.dissolve(id) } else { Vec::new() };
        drop(tree);
        drop(gone);
        attached?;
        Ok(Location { dentry: Arc::clone(&mount.root), mount })
    }

    /// Hangs the tree of `id` at `at` and wherever that is received.
    fn graft(&self, tree: &mut Tree, at: &Location, id: u64) -> Result<()> {
        let root = tree.node(id).map(|n| Arc::clone(&n.mount.root)).ok_or(Errno::EINVAL)?;
        Self::check_kinds(at, &root)?;
        tree.attach_everywhere(at, id, MOUNT_MAX, &self.user_ns)
    }

    /// `MS_BIND`: shows `source` at `at` too; with `recursive`, the mounts below it as well. `EINVAL` for what is unbindable,
    /// of another namespace, or would show what locked mounts hide, and for the file of a mount namespace not newer than this.
    pub fn bind(&self, source: &Location, at: &Location, recursive: bool) -> Result<Location> {
        let mut tree = self.vfs.mounts().write();
        let at = self.mount_place(&tree, at)?;
        let id = self.copy_for_bind(&mut tree, source, recursive)?;
        let looped = tree.would_loop(id, self.id);
        let attached = if looped { Err(Errno::EINVAL) } else { self.graft(&mut tree, &at, id) };
        let top = tree.node(id).map(|n| Arc::clone(&n.mount));
        let gone = if attached.is_err() { tree.dissolve(id) } else { Vec::new() };
        drop(tree);
        drop(gone);
        attached?;
        let mount = top.ok_or(Errno::EINVAL)?;
        Ok(Location { dentry: Arc::clone(&mount.root), mount })
    }

    /// A copy that hangs nowhere (`open_tree(2)` with `OPEN_TREE_CLONE`).
    pub fn loose_bind(&self, source: &Location, recursive: bool) -> Result<MountTree> {
        let mut tree = self.vfs.mounts().write();
        let id = self.copy_for_bind(&mut tree, source, recursive)?;
        let top = tree.node(id).map(|n| Arc::clone(&n.mount)).ok_or(Errno::EINVAL)?;
        drop(tree);
        Ok(MountTree { vfs: Arc::clone(&self.vfs), top })
    }

    /// A copy in no namespace.
    fn copy_for_bind(&self, tree: &mut Tree, source: &Location, recursive: bool) -> Result<u64> {
        let id = source.mount.id;
        let Some(node) = tree.node(id) else {
            // Files of the kernel's own, such as those of namespaces, may be bound though they hang nowhere.
            if source.mount.filesystem().name() != "nsfs" {
                return Err(Errno::EINVAL);
            }
            return Ok(tree.insert(source.mount.copy_showing(&source.dentry), 0));
        };
        let foreign = node.ns != self.id && node.ns != 0;
        if node.unbindable || foreign || (!recursive && tree.has_locked_children(id, &source.dentry)) {
            return Err(Errno::EINVAL);
        }
        let copy = if recursive {
            tree.copy_tree(id, &source.dentry, 0, CopyFor::Bind)?.0
        } else {
            tree.copy_mount(id, &source.dentry, 0, false)?
        };
        if let Some(node) = tree.node_mut(copy) {
            node.locked = false;
        }
        Ok(copy)
    }

    /// `MS_MOVE`: takes the mount whose root is `source` to `at`, or hangs a tree that hangs nowhere there. `EINVAL` where
    /// `source` is no mount's root, is locked, or where its parent is shared; `ELOOP` where `at` is below it or
    /// it shows the file of a mount namespace not newer than this.
    pub fn move_mount(&self, source: &Location, at: &Location) -> Result<()> {
        let mut tree = self.vfs.mounts().write();
        let at = self.mount_place(&tree, at)?;
        let id = source.mount.id;
        let node = tree.node(id).ok_or(Errno::EINVAL)?;
        let loose = node.ns == 0;
        let parent = source.mount.point().map(|p| p.mount.id);
        let parent_shared = parent.and_then(|p| tree.node(p)).is_some_and(|n| n.shared != 0);
        let to_shared = tree.node(at.mount.id).is_some_and(|n| n.shared != 0);
        if !source.is_mount_root()
            || node.locked
            || (parent.is_none() && !loose)
            || (!loose && node.ns != self.id)
            || parent_shared
            || at.is_dir() != source.is_dir()
            || (to_shared && tree.contains_unbindable(id))
        {
            return Err(Errno::EINVAL);
        }
        if tree.would_loop(id, self.id) {
            return Err(Errno::ELOOP);
        }
        let mut above = Some(at.clone());
        while let Some(place) = above {
            if Arc::ptr_eq(&place.mount, &source.mount) {
                return Err(Errno::ELOOP);
            }
            above = place.mount.point();
        }
        self.graft(&mut tree, &at, id)
    }

    /// `MS_SHARED`, `MS_PRIVATE`, `MS_SLAVE`, `MS_UNBINDABLE` on the mount whose root is `at`.
    pub fn set_propagation(&self, at: &Location, to: Propagation, recursive: bool) -> Result<()> {
        if !at.is_mount_root() {
            return Err(Errno::EINVAL);
        }
        let mut tree = self.vfs.mounts().write();
        if tree.node(at.mount.id).is_none_or(|n| n.ns != self.id && n.ns != 0) {
            return Err(Errno::EINVAL);
        }
        let all = if recursive { tree.subtree(at.mount.id) } else { vec![at.mount.id] };
        for id in all {
            tree.set_propagation(id, to);
        }
        Ok(())
    }

    /// Every mount at and below the one whose root is `at`, for a change of flags.
    pub fn mounts_below(&self, at: &Location) -> Result<Vec<Arc<Mount>>> {
        let tree = self.vfs.mounts().read();
        if !at.is_mount_root() || tree.node(at.mount.id).is_none_or(|n| n.ns != self.id && n.ns != 0) {
            return Err(Errno::EINVAL);
        }
        let ids = tree.subtree(at.mount.id);
        Ok(ids.iter().filter_map(|id| tree.node(*id)).map(|n| Arc::clone(&n.mount)).collect())
    }

    /// `umount2(2)` of the mount whose root is `target`, which is given up: a mount that anyone else uses is `EBUSY`
    /// unless `DETACH` is given. `EINVAL` where `target` is no mount's root, the namespace's root, or locked. With `EXPIRE`
    /// the first call answers `EAGAIN`.
    pub fn umount(&self, target: Location, flags: UmountFlags) -> Result<()> {
        let mount = target.mount.clone();
        let is_root = target.is_mount_root();
        drop(target);
        let mut tree = self.vfs.mounts().write();
        let node = tree.node_mut(mount.id).ok_or(Errno::EINVAL)?;
        if !is_root || node.ns != self.id || node.locked || mount.point().is_none() {
            return Err(Errno::EINVAL);
        }
        // The tree's reference and ours; another one is a file's, a directory's, or that of a mount on it.
        let busy = Arc::strong_count(&mount) > 2;
        if flags.contains(UmountFlags::EXPIRE) {
            if flags.intersects(UmountFlags::FORCE | UmountFlags::DETACH) {
                return Err(Errno::EINVAL);
            }
            if busy {
                return Err(Errno::EBUSY);
            }
            if !core::mem::replace(&mut node.expiring, true) {
                return Err(Errno::EAGAIN);
            }
        }
        let counterparts = tree.counterparts(mount.id);
        if !flags.contains(UmountFlags::DETACH) {
            let held = |id: &u64| {
                tree.children(*id).next().is_none()
                    && tree.node(*id).is_some_and(|n| Arc::strong_count(&n.mount) > 1)
            };
            if busy || counterparts.iter().any(held) {
                return Err(Errno::EBUSY);
            }
        }
        let mut gone = Vec::new();
        // Each mount of the tree goes wherever its place is received, innermost first.
        for id in tree.subtree(mount.id).into_iter().rev() {
            for other in tree.counterparts(id) {
                if tree.children(other).next().is_none() {
                    gone.extend(tree.dissolve(other));
                }
            }
            gone.extend(tree.dissolve(id));
        }
        drop(tree);
        drop(mount);
        drop(gone);
        Ok(())
    }

    /// A mount that was looked at again does not expire.
    pub fn touch(&self, mount: &Mount) {
        if let Some(node) = self.vfs.mounts().write().node_mut(mount.id) {
            node.expiring = false;
        }
    }

    /// A copy of the whole tree (`CLONE_NEWNS`) that belongs to the same user namespace, and how to translate the places of
    /// the old one.
    pub fn copy(&self) -> Result<(Arc<Self>, MountMap)> {
        self.copy_for(&self.user_ns)
    }

    /// A copy of the whole tree that belongs to `user_ns`. Where that is another, the mounts are locked and receive from the
    /// old ones instead of sharing with them.
    pub fn copy_for(&self, user_ns: &Arc<UserNs>) -> Result<(Arc<Self>, MountMap)> {
        let old_root = Arc::clone(&self.root.read());
        let id = next_ns_ino();
        let lesser = *user_ns != self.user_ns;
        let how = if lesser { CopyFor::LesserNamespace } else { CopyFor::Namespace };
        let mut tree = self.vfs.mounts().write();
        let (top, copies) = tree.copy_tree(old_root.id, &old_root.root, id, how)?;
        if lesser {
            tree.lock_tree(top);
        }
        let map = copies
            .into_iter()
            .filter_map(|(old, new)| Some((old, Arc::clone(&tree.node(new)?.mount))))
            .collect();
        let root = tree.node(top).map(|n| Arc::clone(&n.mount)).ok_or(Errno::ENOMEM)?;
        let copy = Self::with_root(&mut tree, &self.vfs, id, root, Arc::clone(user_ns));
        Ok((copy, MountMap(map)))
    }

    /// `pivot_root(2)` for a process whose root is `root`: the mount whose root is `new_root` becomes the root, the old
    /// root goes to `put_old`.
    pub fn pivot_root(&self, root: &Location, new_root: &Location, put_old: &Location) -> Result<()> {
        let mut tree = self.vfs.mounts().write();
        let put_old = self.mount_place(&tree, put_old)?;
        let (old_mount, new_mount) = (&root.mount, &new_root.mount);
        let shared =
            |mount: Option<&Arc<Mount>>| mount.and_then(|m| tree.node(m.id)).is_some_and(|n| n.shared != 0);
        let new_point = new_mount.point();
        let old_point = old_mount.point();
        if shared(Some(&put_old.mount))
            || shared(new_point.as_ref().map(|p| &p.mount))
            || shared(old_point.as_ref().map(|p| &p.mount))
        {
            return Err(Errno::EINVAL);
        }
        let here = |mount: &Mount| tree.node(mount.id).is_some_and(|n| n.ns == self.id);
        let locked = |mount: &Mount| tree.node(mount.id).is_some_and(|n| n.locked);
        if !here(old_mount) || !here(new_mount) || locked(new_mount) {
            return Err(Errno::EINVAL);
        }
        if new_root.dentry.is_unlinked() {
            return Err(Errno::ENOENT);
        }
        if Arc::ptr_eq(new_mount, old_mount) || Arc::ptr_eq(&put_old.mount, old_mount) {
            return Err(Errno::EBUSY);
        }
        if !root.is_mount_root() || !new_root.is_mount_root() || new_point.is_none() {
            return Err(Errno::EINVAL);
        }
        let root_inside = Location { mount: Arc::clone(old_mount), dentry: Arc::clone(&old_mount.root) };
        if !is_reachable(&put_old, new_root) || !is_reachable(new_root, &root_inside) {
            return Err(Errno::EINVAL);
        }
        let old_locked = locked(old_mount);
        tree.unhook(new_mount.id);
        if old_point.is_some() {
            tree.unhook(old_mount.id);
        }
        if old_locked {
            if let Some(node) = tree.node_mut(old_mount.id) {
                node.locked = false;
            }
            if let Some(node) = tree.node_mut(new_mount.id) {
                node.locked = true;
            }
        }
        tree.attach(&put_old, old_mount.id);
        match &old_point {
            Some(point) => tree.attach(point, new_mount.id),
            None => *self.root.write() = Arc::clone(new_mount),
        }
        Ok(())
    }

    /// The mounts that a process whose root is `root` sees, parents first.
    pub fn mounts(&self, root: &Location) -> Vec<MountInfo> {
        let top = Arc::clone(&self.root.read());
        let tree = self.vfs.mounts().read();
        let mut ids: Vec<u64> = tree.nodes().filter(|n| n.ns == self.id).map(|n| n.mount.id).collect();
        ids.sort_unstable_by_key(|id| (*id != top.id, *id));
        ids.iter().filter_map(|id| tree.node(*id)).filter_map(|node| MountInfo::of(node, root)).collect()
    }

    /// `sync(2)`: every file system once.
    pub fn sync_all(&self) {
        let mut systems: Vec<Arc<dyn FileSystem>> = Vec::new();
        for node in self.vfs.mounts().read().nodes().filter(|n| n.ns == self.id) {
            if !systems.iter().any(|fs| Arc::ptr_eq(fs, node.mount.filesystem())) {
                systems.push(Arc::clone(node.mount.filesystem()));
            }
        }
        for fs in systems {
            // `sync(2)` cannot fail; a write-back error is reported by the `fsync` of its file.
            let _ = fs.sync();
        }
    }
}

/// Whether `at` is `root` or below it, across mounts (`is_path_reachable`).
fn is_reachable(at: &Location, root: &Location) -> bool {
    let mut at = at.clone();
    while !Arc::ptr_eq(&at.mount, &root.mount) {
        match at.mount.point() {
            Some(point) => at = point,
            None => return false,
        }
    }
    root.dentry.is_same_or_above(&at.dentry)
}
