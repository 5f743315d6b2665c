//! Changing attributes and extended attributes (`fs/attr.c`, `fs/open.c`, `xattr(7)`).

use sentry_base::{Errno, Result};

use crate::access::{Access, check_inode, is_owner};
use crate::watch::event;
use crate::{Attr, Credentials, FileKind, Location, PathCx, SetAttr, SetTime, acl, cap, epoch};

/// The mode without the set-id bits that a write by `creds` takes away; `None` where none is (`file_remove_privs`).
pub fn without_set_ids(attr: &Attr, creds: &Credentials) -> Option<u32> {
    let mut drop = attr.mode & libc::S_ISUID;
    if attr.mode & 0o2010 == 0o2010 {
        drop |= libc::S_ISGID;
    }
    let keeps =
        drop == 0 || attr.kind() != FileKind::Regular || creds.has_cap_for((attr.uid, attr.gid), cap::FSETID);
    (!keeps).then_some(attr.mode & 0o7777 & !drop)
}

fn may_write(at: &Location) -> Result<()> {
    if at.mount.is_read_only() { Err(Errno::EROFS) } else { Ok(()) }
}

/// To be called after a change that may keep somebody from what is below.
fn permissions_changed(at: &Location) {
    if at.inode().kind() == FileKind::Directory {
        epoch::advance();
    }
}

/// Whether the value is `struct vfs_cap_data` of the second revision or `struct vfs_ns_cap_data` of the third.
fn is_capability_value(value: &[u8]) -> bool {
    let revision = value.get(3).copied();
    matches!((revision, value.len()), (Some(2), 20) | (Some(3), 24))
}

impl PathCx<'_> {
    /// `chmod(2)`.
    pub fn chmod(&self, at: &Location, mode: u32) -> Result<()> {
        may_write(at)?;
        if at.inode().kind() == FileKind::Symlink {
            return Err(Errno::EOPNOTSUPP);
        }
        let attr = at.inode().attr()?;
        if !is_owner(&attr, self.creds) {
            return Err(Errno::EPERM);
        }
        let mut mode = mode & 0o7777;
        if !self.creds.in_group(attr.gid) && !self.creds.has_cap_for((attr.uid, attr.gid), cap::FSETID) {
            mode &= !libc::S_ISGID;
        }
        at.inode().set_attr(&SetAttr { mode: Some(mode), ..SetAttr::default() })?;
        let listed = acl::chmod(&**at.inode(), mode);
        permissions_changed(at);
        listed?;
        at.notify(event::ATTRIB);
        Ok(())
    }

    /// `chown(2)`; `None` leaves an id as it is.
    pub fn chown(&self, at: &Location, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
        may_write(at)?;
        let attr = at.inode().attr()?;
        if !self.creds.has_cap_for((attr.uid, attr.gid), cap::CHOWN) {
            let owner = attr.uid == self.creds.fsuid;
            let uid_stays = uid.is_none_or(|u| owner && u == attr.uid);
            let gid_may = gid.is_none_or(|g| owner && (g == attr.gid || self.creds.in_group(g)));
            if !uid_stays || !gid_may {
                return Err(Errno::EPERM);
            }
        }
        let mut set = SetAttr { uid, gid, ..SetAttr::default() };
        if attr.kind() != FileKind::Directory {
            let mut drop = attr.mode & libc::S_ISUID;
            if attr.mode & 0o2010 == 0o2010 {
                drop |= libc::S_ISGID;
            }
            if drop != 0 {
                set.mode = Some(attr.mode & 0o7777 & !drop);
            }
        }
        at.inode().set_attr(&set)?;
        if attr.kind() == FileKind::Regular {
            // A new owner must not inherit what the old one could give away. Most files have none.
            let _ = at.inode().remove_xattr(b"security.capability");
        }
        permissions_changed(at);
        at.notify(event::ATTRIB);
        Ok(())
    }

    /// `utimensat(2)`; `None` leaves a time as it is.
    pub fn set_times(&self, at: &Location, atime: Option<SetTime>, mtime: Option<SetTime>) -> Result<()> {
        if atime.is_none() && mtime.is_none() {
            return Ok(());
        }
        may_write(at)?;
        let attr = at.inode().attr()?;
        if !is_owner(&attr, self.creds) {
            if (atime, mtime) != (Some(SetTime::Now), Some(SetTime::Now)) {
                return Err(Errno::EPERM);
            }
            check_inode(&**at.inode(), Access::WRITE, self.creds, self.caller)?;
        }
        at.inode().set_attr(&SetAttr { atime, mtime, ..SetAttr::default() })?;
        at.notify(event::ATTRIB);
        Ok(())
    }

    /// `truncate(2)`.
    pub fn truncate(&self, at: &Location, len: u64) -> Result<()> {
        match at.inode().kind() {
            FileKind::Regular => {}
            FileKind::Directory => return Err(Errno::EISDIR),
            _ => return Err(Errno::EINVAL),
        }
        self.check(at, Access::WRITE)?;
        let _in_use = crate::InUse::begin(at.inode(), crate::Use::Write)?;
        self.truncate_unchecked(at, len)
    }

    fn check_xattr(&self, at: &Location, name: &[u8], write: bool) -> Result<()> {
        if write {
            may_write(at)?;
        }
        let refused = if write { Errno::EPERM } else { Errno::ENODATA };
        if [&b"user."[..], b"trusted.", b"security."].contains(&name) {
            return Err(Errno::EINVAL);
        }
        if name.starts_with(b"trusted.") {
            return if self.creds.has_cap(cap::SYS_ADMIN) { Ok(()) } else { Err(refused) };
        }
        if name.starts_with(b"security.") {
            let needed = if name == b"security.capability" { cap::SETFCAP } else { cap::SYS_ADMIN };
            let allowed = !write
                || self.creds.has_cap(needed)
                || (needed == cap::SETFCAP && self.creds.has_cap_in(at.mount.superblock().user_ns(), needed));
            return if allowed { Ok(()) } else { Err(Errno::EPERM) };
        }
        if name.starts_with(b"user.") {
            if !matches!(at.inode().kind(), FileKind::Regular | FileKind::Directory) {
                return Err(refused);
            }
            if write && at.is_dir() {
                let attr = at.inode().attr()?;
                if attr.mode & libc::S_ISVTX != 0 && !is_owner(&attr, self.creds) {
                    return Err(Errno::EPERM);
                }
            }
            let want = if write { Access::WRITE } else { Access::READ };
            return check_inode(&**at.inode(), want, self.creds, self.caller);
        }
        Err(Errno::EOPNOTSUPP)
    }

    /// `getxattr(2)`.
    pub fn get_xattr(&self, at: &Location, name: &[u8]) -> Result<Vec<u8>> {
        if !acl::is_acl(name) {
            self.check_xattr(at, name, false)?;
        } else if at.inode().kind() == FileKind::Symlink {
            return Err(Errno::EOPNOTSUPP);
        }
        at.inode().get_xattr(name)
    }

    fn set_acl(&self, at: &Location, name: &[u8], value: &[u8]) -> Result<()> {
        let set = acl::set(&**at.inode(), name, value, self.creds);
        permissions_changed(at);
        set
    }

    /// `setxattr(2)`.
    pub fn set_xattr(&self, at: &Location, name: &[u8], value: &[u8], flags: i32) -> Result<()> {
        if name == b"security.capability" && !value.is_empty() && !is_capability_value(value) {
            return Err(Errno::EINVAL);
        }
        if acl::is_acl(name) {
            may_write(at)?;
            self.set_acl(at, name, value)?;
        } else {
            self.check_xattr(at, name, true)?;
            at.inode().set_xattr(name, value, flags)?;
        }
        at.notify(event::ATTRIB);
        Ok(())
    }

    /// `removexattr(2)`.
    pub fn remove_xattr(&self, at: &Location, name: &[u8]) -> Result<()> {
        if acl::is_acl(name) {
            may_write(at)?;
            self.set_acl(at, name, &[])?;
        } else {
            self.check_xattr(at, name, true)?;
            at.inode().remove_xattr(name)?;
        }
        at.notify(event::ATTRIB);
        Ok(())
    }

    /// `listxattr(2)`, each name with its NUL.
    pub fn list_xattr(&self, at: &Location) -> Result<Vec<u8>> {
        let all = self.creds.has_cap(cap::SYS_ADMIN);
        let mut out = Vec::new();
        for name in at.inode().list_xattr()? {
            if all || !name.starts_with(b"trusted.") {
                out.extend_from_slice(&name);
                out.push(0);
            }
        }
        Ok(out)
    }
}
