//! Permission checks (`path_resolution(7)`, `capabilities(7)`, `fs/namei.c`: `inode_permission`).

use sentry_base::{Errno, Result};

use crate::{Attr, Caller, Credentials, FileKind, Inode, Location, acl, cap};

bitflags::bitflags! {
    /// What is asked for, with the values of `access(2)`.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct Access: u32 {
        const EXEC = 1;
        const WRITE = 2;
        const READ = 4;
    }
}

/// Whether mode bits and capabilities allow `want` on an object with these attributes.
pub fn check_attr(attr: &Attr, want: Access, creds: &Credentials) -> Result<()> {
    if bits_allow(attr, want, creds) { Ok(()) } else { check_capabilities(attr, want, creds) }
}

fn bits_allow(attr: &Attr, want: Access, creds: &Credentials) -> bool {
    let class = if attr.uid == creds.fsuid {
        attr.mode >> 6
    } else if creds.in_group(attr.gid) {
        attr.mode >> 3
    } else {
        attr.mode
    };
    Access::from_bits_truncate(class & 7).contains(want)
}

fn check_capabilities(attr: &Attr, want: Access, creds: &Credentials) -> Result<()> {
    let owner = (attr.uid, attr.gid);
    let dac_override = creds.has_cap_for(owner, cap::DAC_OVERRIDE);
    let allowed = if attr.is_dir() {
        dac_override || (!want.contains(Access::WRITE) && creds.has_cap_for(owner, cap::DAC_READ_SEARCH))
    } else {
        (dac_override && (!want.contains(Access::EXEC) || attr.mode & 0o111 != 0))
            || (want == Access::READ && creds.has_cap_for(owner, cap::DAC_READ_SEARCH))
    };
    if allowed { Ok(()) } else { Err(Errno::EACCES) }
}

/// Whether `creds` may do `want` to the inode, mount flags aside.
pub fn check_inode(inode: &dyn Inode, want: Access, creds: &Credentials, caller: &dyn Caller) -> Result<()> {
    if let Some(answer) = inode.permission(want.bits(), caller) {
        return answer;
    }
    if want.is_empty() {
        return Ok(());
    }
    // A directory's attributes need not be fetched for those whom they cannot refuse.
    if inode.kind() == FileKind::Directory && creds.has_cap(cap::DAC_OVERRIDE) {
        return Ok(());
    }
    let attr = inode.attr()?;
    // An access control list speaks of those who are not the owner, and changes nothing for those who override it.
    let by_list = if attr.uid == creds.fsuid || creds.has_cap(cap::DAC_OVERRIDE) {
        None
    } else {
        acl::answer(inode, &attr, want, creds)
    };
    if by_list.unwrap_or_else(|| bits_allow(&attr, want, creds)) {
        Ok(())
    } else {
        check_capabilities(&attr, want, creds)
    }
}

/// Like [`check_inode`], and `EROFS` for writing to what a read-only mount holds.
pub fn check_location(at: &Location, want: Access, creds: &Credentials, caller: &dyn Caller) -> Result<()> {
    if want.contains(Access::WRITE)
        && matches!(at.inode().kind(), FileKind::Regular | FileKind::Directory | FileKind::Symlink)
        && at.mount.is_read_only()
    {
        return Err(Errno::EROFS);
    }
    check_inode(&**at.inode(), want, creds, caller)
}

/// Whether `creds` owns the object or may act as its owner (`CAP_FOWNER`).
pub fn is_owner(attr: &Attr, creds: &Credentials) -> bool {
    attr.uid == creds.fsuid
        || (creds.has_cap_here(cap::FOWNER) && creds.user_ns.show(crate::IdKind::User, attr.uid).is_some())
}
