//! Making, removing and renaming names (`fs/namei.c`).
//!
//! Every change is made, and checked once more, under the directory's own lock, so that a removed directory never
//! gets a new name and a name is never given twice.

use std::sync::Arc;

use sentry_base::{Errno, Result};

use crate::access::{Access, check_inode};
use crate::acl::Inherited;
use crate::inotify::next_cookie;
use crate::watch::event;
use crate::{
    Attr, Dentry, FileKind, Inode, Last, Location, LookupFlags, Owner, Parent, PathCx, RenameFlags,
    SuperBlock, cap,
};

/// Whether two inodes are one file.
fn same_file(a: &Arc<dyn Inode>, b: &Arc<dyn Inode>) -> Result<bool> {
    if Arc::ptr_eq(a, b) {
        return Ok(true);
    }
    if a.kind() != b.kind() || a.kind() == FileKind::Directory {
        return Ok(false);
    }
    let (a, b) = (a.attr()?, b.attr()?);
    Ok((a.dev, a.ino) == (b.dev, b.ino))
}

/// Keeps what is about to lose a name reachable for those who hold it. Where names change behind the VFS the cache
/// holds nothing, so that any reference but the caller's is a holder's.
fn keep_if_held(dir: &Location, victim: &Arc<Dentry>) {
    if dir.inode().volatile_names() && Arc::strong_count(victim) > 1 {
        victim.inode().keep_reachable();
    }
}

impl PathCx<'_> {
    /// Mode and owner of a new object in `dir`: umask, and the rules of a set-group-id directory
    /// (`inode_init_owner`), or the directory's default access control list in the umask's place.
    pub(crate) fn new_mode(
        &self,
        dir: &Location,
        mode: u32,
        is_dir: bool,
    ) -> Result<(u32, Owner, Inherited)> {
        let mode = mode & 0o7777;
        let (mut mode, inherited) = Inherited::of(&**dir.inode(), mode, is_dir)
            .unwrap_or_else(|| (mode & !self.umask, Inherited::default()));
        let mut owner = Owner { uid: self.creds.fsuid, gid: self.creds.fsgid };
        let dir_attr = dir.inode().attr()?;
        if dir_attr.mode & libc::S_ISGID != 0 {
            owner.gid = dir_attr.gid;
            if is_dir {
                mode |= libc::S_ISGID;
            } else if mode & 0o2010 == 0o2010
                && !self.creds.in_group(owner.gid)
                && !self.creds.has_cap_for((owner.uid, dir_attr.gid), cap::FSETID)
            {
                mode &= !libc::S_ISGID;
            }
        }
        Ok((mode, owner, inherited))
    }

    /// Makes a name by `make`, which gets its directory. `EEXIST` where it is taken.
    fn make(
        &self,
        base: Option<&Location>,
        path: &[u8],
        is_dir: bool,
        make: impl FnOnce(&Location, &[u8]) -> Result<Arc<dyn Inode>>,
    ) -> Result<Location> {
        let Parent { dir, last, trailing_slash } = self.lookup_parent(base, path, LookupFlags::empty())?;
        let Last::Name(name) = last else { return Err(Errno::EEXIST) };
        let sb = dir.mount.superblock();
        let _exclusive = dir.dentry.dir.write();
        if sb.lookup_locked(&dir.dentry, &name)?.is_some() {
            return Err(Errno::EEXIST);
        }
        if trailing_slash && !is_dir {
            return Err(Errno::ENOENT);
        }
        self.may_change(&dir)?;
        let inode = make(&dir, &name)?;
        let dentry = sb.insert(&dir.dentry, &name, inode);
        sb.watches().on_name(&dir.dentry, &name, event::CREATE, is_dir, 0);
        Ok(Location { mount: Arc::clone(&dir.mount), dentry })
    }

    /// `mkdir(2)`.
    pub fn mkdir(&self, base: Option<&Location>, path: &[u8], mode: u32) -> Result<Location> {
        self.make(base, path, true, |dir, name| {
            let (mode, owner, inherited) = self.new_mode(dir, mode & 0o1777, true)?;
            let made = dir.inode().mkdir(name, mode, owner)?;
            inherited.give(&*made)?;
            Ok(made)
        })
    }

    /// `mknod(2)`; also makes the file of a bound socket (`mode` with `S_IFSOCK`).
    pub fn mknod(&self, base: Option<&Location>, path: &[u8], mode: u32, rdev: u64) -> Result<Location> {
        let kind = match mode & libc::S_IFMT {
            0 => FileKind::Regular,
            libc::S_IFDIR => return Err(Errno::EPERM),
            _ => FileKind::from_mode(mode).filter(|k| *k != FileKind::Symlink).ok_or(Errno::EINVAL)?,
        };
        self.make(base, path, false, |dir, name| {
            let device = matches!(kind, FileKind::CharDevice | FileKind::BlockDevice);
            let whiteout = kind == FileKind::CharDevice && rdev == 0;
            if device && !whiteout && !self.creds.has_cap(cap::MKNOD) {
                return Err(Errno::EPERM);
            }
            let (permissions, owner, inherited) = self.new_mode(dir, mode, false)?;
            let made = if kind == FileKind::Regular {
                dir.inode().create(name, permissions, owner)?
            } else {
                dir.inode().mknod(
                    name,
                    kind.mode_bits() | permissions,
                    if device { rdev } else { 0 },
                    owner,
                )?
            };
            inherited.give(&*made)?;
            Ok(made)
        })
    }

    /// `symlink(2)`.
    pub fn symlink(&self, target: &[u8], base: Option<&Location>, path: &[u8]) -> Result<Location> {
        if target.is_empty() {
            return Err(Errno::ENOENT);
        }
        if target.len() >= crate::PATH_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        self.make(base, path, false, |dir, name| {
            let (_, owner, _) = self.new_mode(dir, 0o777, false)?;
            dir.inode().symlink(name, target, owner)
        })
    }

    /// `link(2)`: a new name for what is at `target`.
    pub fn link(&self, target: &Location, base: Option<&Location>, path: &[u8]) -> Result<()> {
        self.make(base, path, false, |dir, name| {
            if !Arc::ptr_eq(&dir.mount, &target.mount) {
                return Err(Errno::EXDEV);
            }
            if target.is_dir() {
                return Err(Errno::EPERM);
            }
            if target.dentry.forbids_links() {
                return Err(Errno::ENOENT);
            }
            dir.inode().link(name, target.inode())?;
            Ok(Arc::clone(target.inode()))
        })?;
        target.notify(event::ATTRIB);
        Ok(())
    }

    /// `may_delete` of `fs/namei.c`: whether `victim`'s name may go away. The directory's lock is held.
    fn may_delete(&self, dir: &Location, victim: &Arc<Dentry>, as_dir: bool) -> Result<()> {
        check_inode(&**dir.inode(), Access::WRITE | Access::EXEC, self.creds, self.caller)?;
        if !self.creds.has_cap(cap::FOWNER) {
            let dir_attr: Attr = dir.inode().attr()?;
            let own = |attr: &Attr| attr.uid == self.creds.fsuid;
            if dir_attr.mode & libc::S_ISVTX != 0
                && !own(&dir_attr)
                && victim
                    .inode()
                    .attr()
                    .map(|a| !own(&a) && !self.creds.has_cap_for((a.uid, a.gid), cap::FOWNER))?
            {
                return Err(Errno::EPERM);
            }
        }
        match (as_dir, victim.is_dir()) {
            (true, false) => return Err(Errno::ENOTDIR),
            (false, true) => return Err(Errno::EISDIR),
            _ => {}
        }
        if dir.dentry.is_unlinked() {
            return Err(Errno::ENOENT);
        }
        if self.ns.is_local_mountpoint(victim) {
            return Err(Errno::EBUSY);
        }
        Ok(())
    }

    /// `unlink(2)`.
    pub fn unlink(&self, base: Option<&Location>, path: &[u8]) -> Result<()> {
        let Parent { dir, last, trailing_slash } = self.lookup_parent(base, path, LookupFlags::empty())?;
        let Last::Name(name) = last else { return Err(Errno::EISDIR) };
        if dir.mount.is_read_only() {
            return Err(Errno::EROFS);
        }
        let sb = dir.mount.superblock();
        let victim;
        {
            let _exclusive = dir.dentry.dir.write();
            victim = sb.lookup_locked(&dir.dentry, &name)?.ok_or(Errno::ENOENT)?;
            if trailing_slash {
                return Err(if victim.is_dir() { Errno::EISDIR } else { Errno::ENOTDIR });
            }
            self.may_delete(&dir, &victim, false)?;
            keep_if_held(&dir, &victim);
            dir.inode().unlink(&name)?;
            sb.unlinked(&dir.dentry, &victim);
            sb.watches().on_removed(&dir.dentry, &victim);
        }
        self.ns.detach_mounts_on(&victim);
        // The inode, and with it the file's pages, may go here, after the lock.
        drop(victim);
        Ok(())
    }

    /// `rmdir(2)`.
    pub fn rmdir(&self, base: Option<&Location>, path: &[u8]) -> Result<()> {
        let Parent { dir, last, .. } = self.lookup_parent(base, path, LookupFlags::empty())?;
        let name = match last {
            Last::Name(name) => name,
            Last::Dot => return Err(Errno::EINVAL),
            Last::DotDot => return Err(Errno::ENOTEMPTY),
            Last::Here => return Err(Errno::EBUSY),
        };
        if dir.mount.is_read_only() {
            return Err(Errno::EROFS);
        }
        let sb = dir.mount.superblock();
        let victim;
        {
            let _exclusive = dir.dentry.dir.write();
            victim = sb.lookup_locked(&dir.dentry, &name)?.ok_or(Errno::ENOENT)?;
            self.may_delete(&dir, &victim, true)?;
            let _inner = victim.dir.write();
            dir.inode().rmdir(&name)?;
            sb.unlinked(&dir.dentry, &victim);
            sb.watches().on_removed(&dir.dentry, &victim);
        }
        self.ns.detach_mounts_on(&victim);
        Ok(())
    }

    /// `renameat2(2)`.
    pub fn rename(
        &self,
        old_base: Option<&Location>,
        old_path: &[u8],
        new_base: Option<&Location>,
        new_path: &[u8],
        flags: RenameFlags,
    ) -> Result<()> {
        if let Some(replaced) = self.rename_locked(old_base, old_path, new_base, new_path, flags)? {
            self.ns.detach_mounts_on(&replaced);
        }
        Ok(())
    }

    /// The part of a rename under the directories' locks; what lost its name by it.
    fn rename_locked(
        &self,
        old_base: Option<&Location>,
        old_path: &[u8],
        new_base: Option<&Location>,
        new_path: &[u8],
        flags: RenameFlags,
    ) -> Result<Option<Arc<Dentry>>> {
        let exchange = flags.contains(RenameFlags::EXCHANGE);
        if exchange && flags.intersects(RenameFlags::NOREPLACE | RenameFlags::WHITEOUT) {
            return Err(Errno::EINVAL);
        }
        let old = self.lookup_parent(old_base, old_path, LookupFlags::empty())?;
        let new = self.lookup_parent(new_base, new_path, LookupFlags::empty())?;
        if !Arc::ptr_eq(&old.dir.mount, &new.dir.mount) {
            return Err(Errno::EXDEV);
        }
        let Last::Name(old_name) = &old.last else { return Err(Errno::EBUSY) };
        let Last::Name(new_name) = &new.last else {
            let taken = flags.contains(RenameFlags::NOREPLACE);
            return Err(if taken { Errno::EEXIST } else { Errno::EBUSY });
        };
        if old.dir.mount.is_read_only() {
            return Err(Errno::EROFS);
        }
        let sb = Arc::clone(old.dir.mount.superblock());
        let (old_dir, new_dir) = (&old.dir.dentry, &new.dir.dentry);
        let same_dir = Arc::ptr_eq(old_dir, new_dir);
        let _topology = (!same_dir).then(|| sb.rename.lock());
        let old_first = old_dir.is_same_or_above(new_dir)
            || (!new_dir.is_same_or_above(old_dir) && old_dir.id() < new_dir.id());
        let (first, second) = if old_first { (old_dir, new_dir) } else { (new_dir, old_dir) };
        let _first = first.dir.write();
        let _second = (!same_dir).then(|| second.dir.write());

        let source = sb.lookup_locked(old_dir, old_name)?.ok_or(Errno::ENOENT)?;
        let target = sb.lookup_locked(new_dir, new_name)?;
        if flags.contains(RenameFlags::NOREPLACE) && target.is_some() {
            return Err(Errno::EEXIST);
        }
        if exchange {
            let target = target.as_ref().ok_or(Errno::ENOENT)?;
            if new.trailing_slash && !target.is_dir() {
                return Err(Errno::ENOTDIR);
            }
        }
        if !source.is_dir() && (old.trailing_slash || (new.trailing_slash && !exchange)) {
            return Err(Errno::ENOTDIR);
        }
        if source.is_dir() && source.is_same_or_above(new_dir) {
            return Err(Errno::EINVAL);
        }
        if let Some(target) = &target
            && target.is_dir()
            && target.is_same_or_above(old_dir)
        {
            return Err(if exchange { Errno::EINVAL } else { Errno::ENOTEMPTY });
        }
        if let Some(target) = &target
            && same_file(source.inode(), target.inode())?
        {
            return Ok(None);
        }

        self.may_delete(&old.dir, &source, source.is_dir())?;
        match &target {
            None => self.may_change(&new.dir)?,
            Some(target) => {
                self.may_delete(&new.dir, target, if exchange { target.is_dir() } else { source.is_dir() })?;
            }
        }
        if !same_dir {
            // Its `..` changes.
            if source.is_dir() {
                check_inode(&**source.inode(), Access::WRITE, self.creds, self.caller)?;
            }
            if exchange && let Some(target) = target.as_ref().filter(|t| t.is_dir()) {
                check_inode(&**target.inode(), Access::WRITE, self.creds, self.caller)?;
            }
        }
        if let Some(target) = target.as_ref().filter(|_| !exchange) {
            keep_if_held(&new.dir, target);
        }
        let victim = target.as_ref().filter(|t| t.is_dir() && !exchange).map(|t| t.dir.write());
        old.dir.inode().rename(old_name, new.dir.inode(), new_name, flags)?;
        let watches = sb.watches();
        let moved = |name: &Dentry, from: (&Dentry, &[u8]), to: (&Dentry, &[u8])| {
            let cookie = next_cookie();
            watches.on_name(from.0, from.1, event::MOVED_FROM, name.is_dir(), cookie);
            watches.on_name(to.0, to.1, event::MOVED_TO, name.is_dir(), cookie);
            watches.on_self(name, event::MOVE_SELF);
        };
        moved(&source, (old_dir, old_name), (new_dir, new_name));
        match &target {
            Some(target) if exchange => {
                moved(target, (new_dir, new_name), (old_dir, old_name));
                sb.exchanged(&source, target);
            }
            _ => sb.renamed(old_dir, &source, new_dir, new_name, target.as_ref()),
        }
        if let Some(target) = target.as_ref().filter(|_| !exchange) {
            // A directory's link count is not told of by its removal, but by this.
            if target.is_dir() {
                watches.on_self(target, event::ATTRIB | event::ISDIR);
            }
            watches.on_replaced(target);
        }
        if flags.contains(RenameFlags::WHITEOUT) {
            // The old name now stands for a whiteout that the cache has not seen.
            SuperBlock::forget(old_dir, old_name);
        }
        drop(victim);
        Ok(target.filter(|_| !exchange))
    }
}
