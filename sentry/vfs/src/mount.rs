//! Mounts, mount namespaces and places in the tree (`mount(2)`, `mount_namespaces(7)`).
//!
//! Propagation types are accepted and mean nothing: every mount is private.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::collections::HashMap;
use std::sync::Arc;

use sentry_base::lock::rank;
use sentry_base::{Errno, Result, RwLock};

use crate::{Dentry, FileSystem, Inode, SuperBlock, Vfs};

bitflags::bitflags! {
    /// Per-mount flags, with the values of `mount(2)`'s `MS_*`.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct MountFlags: u32 {
        const RDONLY = 1;
        const NOSUID = 2;
        const NODEV = 4;
        const NOEXEC = 8;
        const NOSYMFOLLOW = 256;
        const NOATIME = 1024;
        const NODIRATIME = 2048;
        const RELATIME = 1 << 21;
        const STRICTATIME = 1 << 24;
    }
}

/// Mounts that one namespace may hold (`fs.mount-max`).
const MOUNT_MAX: usize = 100_000;

/// A file system at a place.
pub struct Mount {
    id: u64,
    sb: Arc<SuperBlock>,
    /// The file system's root, or the directory or file that a bind mount shows.
    root: Arc<Dentry>,
    flags: AtomicU32,
    source: String,
    /// Where it is mounted; `None` for a namespace's root and for what has been unmounted.
    point: RwLock<Option<Location>, { rank::LEAF }>,
}

impl core::fmt::Debug for Mount {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Mount({} {})", self.id, self.sb.filesystem().name())
    }
}

impl Mount {
    fn new(sb: Arc<SuperBlock>, root: Arc<Dentry>, flags: MountFlags, source: &str) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Arc::new(Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            sb,
            root,
            flags: AtomicU32::new(flags.bits()),
            source: source.to_owned(),
            point: RwLock::new(None),
        })
    }

    /// A mount in no namespace, for the kernel's own files (`memfd_create(2)`, pipes in the like of `pipefs`).
    pub fn detached(fs: Arc<dyn FileSystem>) -> Arc<Self> {
        let sb = SuperBlock::new(fs);
        let root = Arc::clone(sb.root());
        Self::new(sb, root, MountFlags::empty(), "none")
    }

    /// The mount id of `/proc/PID/mountinfo` and `statx(2)`.
    pub fn id(&self) -> u64 {
        self.id
    }

    pub fn filesystem(&self) -> &Arc<dyn FileSystem> {
        self.sb.filesystem()
    }

    pub fn superblock(&self) -> &Arc<SuperBlock> {
        &self.sb
    }

    pub fn root(&self) -> &Arc<Dentry> {
        &self.root
    }

    pub fn flags(&self) -> MountFlags {
        MountFlags::from_bits_truncate(self.flags.load(Ordering::Relaxed))
    }

    pub fn set_flags(&self, flags: MountFlags) {
        self.flags.store(flags.bits(), Ordering::Relaxed);
    }

    /// Whether changes through this mount are refused with `EROFS`.
    pub fn is_read_only(&self) -> bool {
        self.flags().contains(MountFlags::RDONLY) || self.sb.filesystem().read_only()
    }

    pub fn source(&self) -> &str {
        &self.source
    }

    /// Where it is mounted.
    pub fn point(&self) -> Option<Location> {
        self.point.read().clone()
    }
}

/// A place: a dentry as seen through a mount (`struct path` of Linux).
#[derive(Debug, Clone)]
pub struct Location {
    pub mount: Arc<Mount>,
    pub dentry: Arc<Dentry>,
}

impl PartialEq for Location {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.dentry, &other.dentry) && Arc::ptr_eq(&self.mount, &other.mount)
    }
}

impl Eq for Location {}

/// A place in words, see [`Location::path_from`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathText {
    pub bytes: Vec<u8>,
    /// False where the place is not below the root that was asked about.
    pub reachable: bool,
    pub deleted: bool,
}

impl Location {
    pub fn inode(&self) -> &Arc<dyn Inode> {
        self.dentry.inode()
    }

    pub fn is_dir(&self) -> bool {
        self.dentry.is_dir()
    }

    /// Whether it is its mount's root.
    pub fn is_mount_root(&self) -> bool {
        Arc::ptr_eq(&self.dentry, &self.mount.root)
    }

    /// The path from `root`, across mounts. Never fails: a place that is not below `root` has its path from the root
    /// of the outermost mount reached.
    pub fn path_from(&self, root: &Location) -> PathText {
        let mut names: Vec<Arc<[u8]>> = Vec::new();
        let mut at = self.clone();
        let mut deleted = self.dentry.is_unlinked();
        let reachable = loop {
            if at == *root {
                break true;
            }
            if at.is_mount_root() {
                match at.mount.point() {
                    Some(point) => at = point,
                    None => break false,
                }
                deleted |= at.dentry.is_unlinked();
                continue;
            }
            let (parent, name) = at.dentry.parent_and_name();
            let Some(parent) = parent else {
                // A nameless file, or a bind mount's directory that was moved out of its tree.
                if !name.is_empty() {
                    names.push(name);
                }
                break false;
            };
            names.push(name);
            at.dentry = parent;
        };
        let mut bytes = Vec::new();
        for name in names.iter().rev() {
            bytes.push(b'/');
            bytes.extend_from_slice(name);
        }
        if bytes.is_empty() {
            bytes.push(b'/');
        }
        PathText { bytes, reachable, deleted }
    }

    /// The path as links in `/proc/PID` show it (`d_path`): with ` (deleted)` after a removed name.
    pub fn display_path(&self, root: &Location) -> Vec<u8> {
        let mut text = self.path_from(root);
        if text.deleted {
            text.bytes.extend_from_slice(b" (deleted)");
        }
        text.bytes
    }
}

/// One line of `/proc/PID/mountinfo`, in parts.
#[derive(Debug, Clone)]
pub struct MountInfo {
    pub id: u64,
    /// The namespace root's own id stands for a parent that is not there.
    pub parent_id: u64,
    pub dev: u64,
    /// The path of the mount's root within its file system.
    pub root: Vec<u8>,
    /// The mount point, relative to the root that was asked about.
    pub point: Vec<u8>,
    pub flags: MountFlags,
    pub fs_type: &'static str,
    pub source: String,
    /// The file system's own options, without `ro` or `rw`.
    pub fs_options: String,
    pub fs_read_only: bool,
}

/// Blanks and backslashes as octal, which the readers of these files expect.
fn mangle(out: &mut Vec<u8>, text: &[u8]) {
    for &byte in text {
        if matches!(byte, b' ' | b'\t' | b'\n' | b'\\') {
            out.extend_from_slice(format!("\\{byte:03o}").as_bytes());
        } else {
            out.push(byte);
        }
    }
}

impl MountInfo {
    fn options(&self) -> String {
        let mut text = String::from(if self.flags.contains(MountFlags::RDONLY) { "ro" } else { "rw" });
        for (flag, name) in [
            (MountFlags::NOSUID, ",nosuid"),
            (MountFlags::NODEV, ",nodev"),
            (MountFlags::NOEXEC, ",noexec"),
            (MountFlags::NOATIME, ",noatime"),
            (MountFlags::NODIRATIME, ",nodiratime"),
            (MountFlags::NOSYMFOLLOW, ",nosymfollow"),
        ] {
            if self.flags.contains(flag) {
                text.push_str(name);
            }
        }
        if !self.flags.intersects(MountFlags::NOATIME | MountFlags::STRICTATIME) {
            text.push_str(",relatime");
        }
        text
    }

    /// The line of `/proc/PID/mounts` (`fstab(5)`), with its newline.
    pub fn mounts_line(&self) -> Vec<u8> {
        let mut out = Vec::new();
        mangle(&mut out, self.source.as_bytes());
        out.push(b' ');
        mangle(&mut out, &self.point);
        let mut options = self.options();
        if self.fs_read_only && !self.flags.contains(MountFlags::RDONLY) {
            options.replace_range(..2, "ro");
        }
        if !self.fs_options.is_empty() {
            options = format!("{options},{}", self.fs_options);
        }
        out.extend_from_slice(format!(" {} {options} 0 0\n", self.fs_type).as_bytes());
        out
    }

    /// The line of `/proc/PID/mountinfo` (`proc_pid_mountinfo(5)`), with its newline.
    pub fn mountinfo_line(&self) -> Vec<u8> {
        let (major, minor) = (libc::major(self.dev), libc::minor(self.dev));
        let mut out = format!("{} {} {major}:{minor} ", self.id, self.parent_id).into_bytes();
        mangle(&mut out, &self.root);
        out.push(b' ');
        mangle(&mut out, &self.point);
        out.extend_from_slice(format!(" {} - {} ", self.options(), self.fs_type).as_bytes());
        mangle(&mut out, self.source.as_bytes());
        out.extend_from_slice(if self.fs_read_only { b" ro" } else { b" rw" });
        if !self.fs_options.is_empty() {
            out.push(b',');
            out.extend_from_slice(self.fs_options.as_bytes());
        }
        out.push(b'\n');
        out
    }
}

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

/// A mount on a place: by the parent mount's id and the dentry's.
type PointKey = (u64, u64);

fn key_of(at: &Location) -> PointKey {
    (at.mount.id, at.dentry.id())
}

#[derive(Default)]
struct Tree {
    /// Every mount but the root, by where it is mounted.
    at: HashMap<PointKey, Arc<Mount>>,
}

impl Tree {
    /// The mounts directly on `mount`.
    fn children(&self, mount: &Arc<Mount>) -> Vec<Arc<Mount>> {
        let mut found: Vec<_> =
            self.at.iter().filter(|((id, _), _)| *id == mount.id).map(|(_, m)| Arc::clone(m)).collect();
        found.sort_by_key(|m| m.id);
        found
    }

    fn attach(&mut self, at: &Location, mount: &Arc<Mount>) {
        at.dentry.add_mount();
        *mount.point.write() = Some(at.clone());
        self.at.insert(key_of(at), Arc::clone(mount));
    }

    /// Takes a mount out of the tree, without those on it.
    fn detach(&mut self, mount: &Arc<Mount>) {
        let point = mount.point.write().take();
        if let Some(point) = point {
            self.at.remove(&key_of(&point));
            point.dentry.remove_mount();
        }
    }
}

/// A tree of mounts, as one or more processes see it.
pub struct MountNamespace {
    id: u64,
    vfs: Arc<Vfs>,
    root: RwLock<Arc<Mount>, { rank::LEAF }>,
    tree: RwLock<Tree, { rank::MOUNT_TREE }>,
}

impl core::fmt::Debug for MountNamespace {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "MountNamespace({})", self.id)
    }
}

impl Drop for MountNamespace {
    fn drop(&mut self) {
        let mut tree = self.tree.write();
        let mounts: Vec<_> = tree.at.values().cloned().collect();
        for mount in &mounts {
            tree.detach(mount);
        }
    }
}

impl MountNamespace {
    /// A namespace whose root is the root of `root_fs`.
    pub fn new(vfs: &Arc<Vfs>, root_fs: Arc<dyn FileSystem>, flags: MountFlags, source: &str) -> Arc<Self> {
        let sb = SuperBlock::new(root_fs);
        let root = Arc::clone(sb.root());
        Self::with_root(vfs, Mount::new(sb, root, flags, source))
    }

    fn with_root(vfs: &Arc<Vfs>, root: Arc<Mount>) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0xF000_0000);
        Arc::new(Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            vfs: Arc::clone(vfs),
            root: RwLock::new(root),
            tree: RwLock::default(),
        })
    }

    /// The inode number of `/proc/PID/ns/mnt`.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// What all namespaces share.
    pub fn vfs(&self) -> &Arc<Vfs> {
        &self.vfs
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
        let mut moved = false;
        while at.dentry.is_mountpoint() {
            let tree = self.tree.read();
            let Some(mount) = tree.at.get(&key_of(at)).cloned() else { break };
            drop(tree);
            *at = Location { dentry: Arc::clone(&mount.root), mount };
            moved = true;
        }
        moved
    }

    fn check_kinds(at: &Location, root: &Arc<Dentry>) -> Result<()> {
        if at.is_dir() == root.is_dir() { Ok(()) } else { Err(Errno::ENOTDIR) }
    }

    /// Mounts `fs` at `at`; returns the new mount's root. A file system that this namespace shows already shares its
    /// dentries with the first mount. `ENOTDIR` where only one of the two is a directory, `ENOENT` on a removed place.
    pub fn mount_at(
        &self,
        at: &Location,
        fs: Arc<dyn FileSystem>,
        flags: MountFlags,
        source: &str,
    ) -> Result<Location> {
        let sb = self.superblock_of(&fs).unwrap_or_else(|| SuperBlock::new(fs));
        let root = Arc::clone(sb.root());
        self.attach_new(at, Mount::new(sb, root, flags, source))
    }

    fn superblock_of(&self, fs: &Arc<dyn FileSystem>) -> Option<Arc<SuperBlock>> {
        let root = Arc::clone(&self.root.read());
        let tree = self.tree.read();
        core::iter::once(&root)
            .chain(tree.at.values())
            .find(|m| core::ptr::addr_eq(Arc::as_ptr(m.sb.filesystem()), Arc::as_ptr(fs)))
            .map(|m| Arc::clone(&m.sb))
    }

    fn attach_new(&self, at: &Location, mount: Arc<Mount>) -> Result<Location> {
        let mut at = at.clone();
        self.follow_mounts(&mut at);
        Self::check_kinds(&at, &mount.root)?;
        if at.dentry.is_unlinked() {
            return Err(Errno::ENOENT);
        }
        let mut tree = self.tree.write();
        if tree.at.len() >= MOUNT_MAX {
            return Err(Errno::ENOSPC);
        }
        if tree.at.contains_key(&key_of(&at)) {
            return Err(Errno::EBUSY);
        }
        tree.attach(&at, &mount);
        drop(tree);
        Ok(Location { dentry: Arc::clone(&mount.root), mount })
    }

    /// `MS_BIND`: shows `source` at `at` too; with `recursive`, the mounts below it as well.
    pub fn bind(&self, source: &Location, at: &Location, recursive: bool) -> Result<Location> {
        let top = Mount::new(
            Arc::clone(&source.mount.sb),
            Arc::clone(&source.dentry),
            source.mount.flags(),
            &source.mount.source,
        );
        // Copied before it is attached: a bind of `/` below itself must not copy its own copy.
        let mut copies = Vec::new();
        if recursive {
            let tree = self.tree.read();
            copy_below(&tree, &source.mount, &source.dentry, &top, &mut copies);
        }
        let root = self.attach_new(at, top)?;
        let mut tree = self.tree.write();
        for (point, mount) in copies {
            tree.attach(&point, &mount);
        }
        Ok(root)
    }

    /// `MS_MOVE`: takes the mount whose root is `source` to `at`. `EINVAL` where `source` is no mount's root, `ELOOP`
    /// where `at` is below it.
    pub fn move_mount(&self, source: &Location, at: &Location) -> Result<()> {
        if !source.is_mount_root() || source.mount.point().is_none() {
            return Err(Errno::EINVAL);
        }
        Self::check_kinds(at, &source.dentry)?;
        let mut above = Some(at.clone());
        while let Some(place) = above {
            if Arc::ptr_eq(&place.mount, &source.mount) {
                return Err(Errno::ELOOP);
            }
            above = place.mount.point();
        }
        let mut at = at.clone();
        self.follow_mounts(&mut at);
        let mut tree = self.tree.write();
        tree.detach(&source.mount);
        tree.attach(&at, &source.mount);
        Ok(())
    }

    /// `umount2(2)` of the mount whose root is `target`, which is given up: a mount that anyone else uses is `EBUSY`
    /// unless `DETACH` is given. `EINVAL` where `target` is no mount's root or the namespace's root.
    pub fn umount(&self, target: Location, flags: UmountFlags) -> Result<()> {
        let mount = target.mount.clone();
        if !target.is_mount_root() || mount.point().is_none() {
            return Err(Errno::EINVAL);
        }
        drop(target);
        let mut tree = self.tree.write();
        let mut doomed = vec![Arc::clone(&mount)];
        if flags.contains(UmountFlags::DETACH) {
            let mut next = 0;
            while let Some(above) = doomed.get(next).cloned() {
                doomed.extend(tree.children(&above));
                next += 1;
            }
        } else if Arc::strong_count(&mount) > 3 {
            // The tree's, ours and the list's; a fourth is a file, a working directory or a mount on it.
            return Err(Errno::EBUSY);
        }
        for mount in &doomed {
            tree.detach(mount);
        }
        drop(tree);
        Ok(())
    }

    /// A copy of the whole tree (`CLONE_NEWNS`), and how to translate the places of the old one.
    pub fn copy(&self) -> (Arc<Self>, MountMap) {
        let old_root = Arc::clone(&self.root.read());
        let new_root = Mount::new(
            Arc::clone(&old_root.sb),
            Arc::clone(&old_root.root),
            old_root.flags(),
            &old_root.source,
        );
        let mut map = HashMap::from([(old_root.id, Arc::clone(&new_root))]);
        let copy = Self::with_root(&self.vfs, Arc::clone(&new_root));
        let old = self.tree.read();
        let mut todo = vec![old_root];
        while let Some(parent) = todo.pop() {
            for child in old.children(&parent) {
                let (Some(point), Some(new_parent)) = (child.point(), map.get(&parent.id).cloned()) else {
                    continue;
                };
                let fresh =
                    Mount::new(Arc::clone(&child.sb), Arc::clone(&child.root), child.flags(), &child.source);
                let point = Location { mount: new_parent, dentry: point.dentry };
                copy.tree.write().attach(&point, &fresh);
                map.insert(child.id, fresh);
                todo.push(child);
            }
        }
        (copy, MountMap(map))
    }

    /// `pivot_root(2)`: the mount whose root is `new_root` becomes the root, the old root goes to `put_old`.
    pub fn pivot_root(&self, new_root: &Location, put_old: &Location) -> Result<()> {
        let old_root = Arc::clone(&self.root.read());
        if Arc::ptr_eq(&new_root.mount, &old_root) {
            return Err(Errno::EBUSY);
        }
        if !new_root.is_mount_root() || !new_root.is_dir() {
            return Err(Errno::EINVAL);
        }
        let mut below = Some(put_old.clone());
        loop {
            match below {
                Some(place) if Arc::ptr_eq(&place.mount, &new_root.mount) => break,
                Some(place) => below = place.mount.point(),
                None => return Err(Errno::EINVAL),
            }
        }
        let mut tree = self.tree.write();
        tree.detach(&new_root.mount);
        if put_old != new_root {
            tree.attach(put_old, &old_root);
        } else {
            // `pivot_root(".", ".")`: the old root is stacked on the new one.
            tree.attach(new_root, &old_root);
        }
        *self.root.write() = Arc::clone(&new_root.mount);
        Ok(())
    }

    /// The mounts that a process whose root is `root` sees, parents first.
    pub fn mounts(&self, root: &Location) -> Vec<MountInfo> {
        let top = Arc::clone(&self.root.read());
        let mut all = vec![Arc::clone(&top)];
        {
            let tree = self.tree.read();
            let mut rest: Vec<_> = tree.at.values().cloned().collect();
            rest.sort_by_key(|m| m.id);
            all.extend(rest);
        }
        all.into_iter()
            .filter_map(|mount| {
                let fs_root = Location { dentry: Arc::clone(&mount.root), mount: Arc::clone(&mount) };
                let shown = fs_root.path_from(root);
                if !shown.reachable {
                    return None;
                }
                let sb_root = Location { dentry: Arc::clone(mount.sb.root()), mount: Arc::clone(&mount) };
                Some(MountInfo {
                    id: mount.id,
                    parent_id: mount.point().map_or(mount.id, |p| p.mount.id),
                    dev: mount.filesystem().dev(),
                    root: dentry_path(&mount.root, &sb_root.dentry),
                    point: shown.bytes,
                    flags: mount.flags(),
                    fs_type: mount.filesystem().name(),
                    source: mount.source.clone(),
                    fs_options: mount.filesystem().options(),
                    fs_read_only: mount.filesystem().read_only(),
                })
            })
            .collect()
    }

    /// `sync(2)`: every file system once.
    pub fn sync_all(&self) {
        let mut systems: Vec<Arc<dyn FileSystem>> = vec![Arc::clone(self.root.read().filesystem())];
        for mount in self.tree.read().at.values() {
            if !systems.iter().any(|fs| Arc::ptr_eq(fs, mount.filesystem())) {
                systems.push(Arc::clone(mount.filesystem()));
            }
        }
        for fs in systems {
            // `sync(2)` cannot fail; a write-back error is reported by the `fsync` of its file.
            let _ = fs.sync();
        }
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

fn copy_below(
    tree: &Tree,
    old: &Arc<Mount>,
    below: &Arc<Dentry>,
    new: &Arc<Mount>,
    out: &mut Vec<(Location, Arc<Mount>)>,
) {
    let mut todo = vec![(Arc::clone(old), Some(Arc::clone(below)), Arc::clone(new))];
    while let Some((old, below, new)) = todo.pop() {
        for child in tree.children(&old) {
            let Some(point) = child.point() else { continue };
            if below.as_ref().is_some_and(|b| !b.is_same_or_above(&point.dentry)) {
                continue;
            }
            let fresh =
                Mount::new(Arc::clone(&child.sb), Arc::clone(&child.root), child.flags(), &child.source);
            out.push((Location { mount: Arc::clone(&new), dentry: point.dentry }, Arc::clone(&fresh)));
            todo.push((child, None, fresh));
        }
    }
}

/// The path of `dentry` within its file system.
fn dentry_path(dentry: &Arc<Dentry>, root: &Arc<Dentry>) -> Vec<u8> {
    let mut names = Vec::new();
    let mut at = Arc::clone(dentry);
    while !Arc::ptr_eq(&at, root) {
        let (parent, name) = at.parent_and_name();
        names.push(name);
        match parent {
            Some(parent) => at = parent,
            None => break,
        }
    }
    if names.is_empty() {
        return b"/".to_vec();
    }
    let mut out = Vec::new();
    for name in names.iter().rev() {
        out.push(b'/');
        out.extend_from_slice(name);
    }
    out
}
