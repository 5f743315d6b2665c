//! POSIX access control lists (`acl(5)`, `fs/posix_acl.c`): what `system.posix_acl_access` and
//! `system.posix_acl_default` hold, and what they mean for permission checks, `chmod` and new objects.
//!
//! A file system stores the lists as extended attributes like any other; the rules are here. The stored list of an
//! object agrees with its mode bits: the group bits are the list's mask.

use sentry_base::{Errno, Result};

use crate::access::is_owner;
use crate::{Access, Attr, Credentials, FileKind, Inode, SetAttr, cap};

/// The list that rules access to an object.
pub const ACCESS: &[u8] = b"system.posix_acl_access";
/// The list that a directory's new objects get.
pub const DEFAULT: &[u8] = b"system.posix_acl_default";

/// The version in an attribute's header (`POSIX_ACL_XATTR_VERSION`).
const VERSION: u32 = 2;
const UNDEFINED_ID: u32 = u32::MAX;

/// Kinds of entries, with the values of `linux/posix_acl.h`; a valid list has them in this order.
mod tag {
    pub const USER_OBJ: u16 = 1;
    pub const USER: u16 = 2;
    pub const GROUP_OBJ: u16 = 4;
    pub const GROUP: u16 = 8;
    pub const MASK: u16 = 0x10;
    pub const OTHER: u16 = 0x20;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    tag: u16,
    perm: u16,
    id: u32,
}

/// A valid list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acl(Vec<Entry>);

impl Acl {
    /// Reads an attribute's value; `None` for the empty list, which means none.
    ///
    /// # Errors
    /// `EOPNOTSUPP` for another version, `EINVAL` for what is not a list.
    pub fn parse(value: &[u8]) -> Result<Option<Self>> {
        if value.is_empty() {
            return Ok(None);
        }
        let (version, rest) = value.split_first_chunk::<4>().ok_or(Errno::EINVAL)?;
        if u32::from_le_bytes(*version) != VERSION {
            return Err(Errno::EOPNOTSUPP);
        }
        let (entries, partial) = rest.as_chunks::<8>();
        if !partial.is_empty() {
            return Err(Errno::EINVAL);
        }
        if entries.is_empty() {
            return Ok(None);
        }
        let entries = entries.iter().map(|&[t0, t1, p0, p1, i0, i1, i2, i3]| {
            let tag = u16::from_le_bytes([t0, t1]);
            let named = matches!(tag, tag::USER | tag::GROUP);
            let id = u32::from_le_bytes([i0, i1, i2, i3]);
            Entry { tag, perm: u16::from_le_bytes([p0, p1]), id: if named { id } else { UNDEFINED_ID } }
        });
        let acl = Self(entries.collect());
        if acl.is_valid() { Ok(Some(acl)) } else { Err(Errno::EINVAL) }
    }

    /// The attribute's value.
    pub fn value(&self) -> Vec<u8> {
        let mut out = VERSION.to_le_bytes().to_vec();
        for entry in &self.0 {
            out.extend_from_slice(&entry.tag.to_le_bytes());
            out.extend_from_slice(&entry.perm.to_le_bytes());
            out.extend_from_slice(&entry.id.to_le_bytes());
        }
        out
    }

    /// `posix_acl_valid`: each of the three base entries once, in order, and a mask where someone is named.
    fn is_valid(&self) -> bool {
        let count = |tag| self.0.iter().filter(|entry| entry.tag == tag).count();
        let named = count(tag::USER) + count(tag::GROUP) > 0;
        self.0.is_sorted_by_key(|entry| entry.tag)
            && [tag::USER_OBJ, tag::GROUP_OBJ, tag::OTHER].iter().all(|tag| count(*tag) == 1)
            && count(tag::MASK) <= 1
            && (count(tag::MASK) == 1 || !named)
            && self.0.iter().all(|entry| {
                let known = tag::USER_OBJ | tag::USER | tag::GROUP_OBJ | tag::GROUP | tag::MASK | tag::OTHER;
                entry.tag.is_power_of_two()
                    && entry.tag & known != 0
                    && entry.perm <= 7
                    && (!matches!(entry.tag, tag::USER | tag::GROUP) || entry.id != UNDEFINED_ID)
            })
    }

    fn perm(&self, tag: u16) -> Option<u32> {
        self.0.iter().find(|entry| entry.tag == tag).map(|entry| u32::from(entry.perm))
    }

    /// The permission bits that say the same, and whether they say all of it (`posix_acl_equiv_mode`).
    fn mode(&self) -> (u32, bool) {
        let group = self.perm(tag::MASK).or_else(|| self.perm(tag::GROUP_OBJ)).unwrap_or(0);
        let user = self.perm(tag::USER_OBJ).unwrap_or(0);
        let mode = user << 6 | group << 3 | self.perm(tag::OTHER).unwrap_or(0);
        (mode, self.0.len() == 3)
    }

    /// Takes new permission bits over (`__posix_acl_chmod_masq`).
    fn set_mode(&mut self, mode: u32) {
        let group_tag = if self.perm(tag::MASK).is_some() { tag::MASK } else { tag::GROUP_OBJ };
        for entry in &mut self.0 {
            let bits = match entry.tag {
                tag::USER_OBJ => mode >> 6,
                tag::OTHER => mode,
                t if t == group_tag => mode >> 3,
                _ => continue,
            };
            entry.perm = u16::try_from(bits & 7).unwrap_or(0);
        }
    }

    /// Whether the list grants `want` to one who is not the owner (`posix_acl_permission`).
    fn allows(&self, attr: &Attr, want: Access, creds: &Credentials) -> bool {
        let wanted = u16::try_from(want.bits()).unwrap_or(u16::MAX);
        let mask = self.0.iter().find(|entry| entry.tag == tag::MASK).map_or(7, |entry| entry.perm);
        let mut in_some_group = false;
        for entry in &self.0 {
            let applies = match entry.tag {
                tag::USER => entry.id == creds.fsuid,
                tag::GROUP_OBJ => creds.in_group(attr.gid),
                tag::GROUP => creds.in_group(entry.id),
                tag::OTHER => return !in_some_group && entry.perm & wanted == wanted,
                _ => false,
            };
            if !applies {
                continue;
            }
            if entry.tag == tag::USER {
                return entry.perm & mask & wanted == wanted;
            }
            in_some_group = true;
            if entry.perm & wanted == wanted {
                return mask & wanted == wanted;
            }
        }
        false
    }
}

/// The answer of the object's list to one who is not its owner; `None` where it has none. Not called for those whom
/// no list can refuse.
pub(crate) fn answer(inode: &dyn Inode, attr: &Attr, want: Access, creds: &Credentials) -> Option<bool> {
    if attr.mode & 0o070 == 0 || attr.kind() == FileKind::Symlink {
        return None;
    }
    let value = inode.get_xattr(ACCESS).ok()?;
    Acl::parse(&value).ok().flatten().map(|acl| acl.allows(attr, want, creds))
}

/// Whether `name` is a list.
pub(crate) fn is_acl(name: &[u8]) -> bool {
    name == ACCESS || name == DEFAULT
}

/// `vfs_set_acl` and `vfs_remove_acl`: an empty value removes the list.
pub(crate) fn set(inode: &dyn Inode, name: &[u8], value: &[u8], creds: &Credentials) -> Result<()> {
    let attr = inode.attr()?;
    if attr.kind() == FileKind::Symlink {
        return Err(Errno::EOPNOTSUPP);
    }
    let acl = Acl::parse(value)?;
    // Only now: a file system without lists says so to anybody.
    match inode.get_xattr(name) {
        Err(Errno::EOPNOTSUPP) => return Err(Errno::EOPNOTSUPP),
        _ if !is_owner(&attr, creds) => return Err(Errno::EPERM),
        _ => {}
    }
    if name == DEFAULT {
        return match acl {
            Some(_) if !attr.is_dir() => Err(Errno::EACCES),
            Some(acl) => inode.set_xattr(name, &acl.value(), 0),
            None => remove(inode, name),
        };
    }
    let Some(acl) = acl else { return remove(inode, name) };
    let (bits, is_all) = acl.mode();
    let mut mode = attr.mode & 0o7000 | bits;
    if !creds.in_group(attr.gid) && !creds.has_cap(cap::FSETID) {
        mode &= !libc::S_ISGID;
    }
    if is_all {
        remove(inode, name)?;
    } else {
        inode.set_xattr(name, &acl.value(), 0)?;
    }
    inode.set_attr(&SetAttr { mode: Some(mode), ..SetAttr::default() })
}

fn remove(inode: &dyn Inode, name: &[u8]) -> Result<()> {
    match inode.get_xattr(name) {
        Ok(_) => inode.remove_xattr(name),
        Err(_) => Ok(()),
    }
}

/// Keeps the list in step with a new mode (`posix_acl_chmod`).
pub(crate) fn chmod(inode: &dyn Inode, mode: u32) -> Result<()> {
    let Ok(value) = inode.get_xattr(ACCESS) else { return Ok(()) };
    let Some(mut acl) = Acl::parse(&value)? else { return Ok(()) };
    acl.set_mode(mode);
    inode.set_xattr(ACCESS, &acl.value(), 0)
}

/// What a new object gets from its directory's default list.
#[derive(Debug, Default)]
pub(crate) struct Inherited {
    access: Option<Acl>,
    default: Option<Acl>,
}

impl Inherited {
    /// The lists, and the mode that they leave of `mode`; `None` where the directory has no default list and the
    /// umask counts instead (`posix_acl_create`).
    pub fn of(dir: &dyn Inode, mode: u32, is_dir: bool) -> Option<(u32, Self)> {
        let value = dir.get_xattr(DEFAULT).ok()?;
        let default = Acl::parse(&value).ok().flatten()?;
        let mut access = default.clone();
        let (bits, is_all) = default.mode();
        let mode = mode & (bits | !0o777);
        access.set_mode(mode);
        let access = (!is_all).then_some(access);
        Some((mode, Self { access, default: is_dir.then_some(default) }))
    }

    /// Gives the lists to the new object.
    pub fn give(self, inode: &dyn Inode) -> Result<()> {
        for (name, acl) in [(ACCESS, self.access), (DEFAULT, self.default)] {
            if let Some(acl) = acl {
                inode.set_xattr(name, &acl.value(), 0)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        Acl(entries.iter().map(|&(tag, perm, id)| Entry { tag, perm, id }).collect()).value()
    }

    #[test]
    fn only_lists_in_order_with_a_mask_are_valid() {
        const U: u32 = UNDEFINED_ID;
        assert_eq!(Acl::parse(&[]), Ok(None));
        assert_eq!(Acl::parse(&[2, 0, 0, 0]), Ok(None));
        assert_eq!(Acl::parse(&[1, 0, 0, 0]), Err(Errno::EOPNOTSUPP));
        let three = list(&[(1, 6, U), (4, 4, U), (0x20, 0, U)]);
        assert_eq!(Acl::parse(&three).unwrap().unwrap().mode(), (0o640, true));
        assert_eq!(Acl::parse(&three[..20]), Err(Errno::EINVAL));
        assert_eq!(Acl::parse(&list(&[(1, 6, U), (2, 4, 7), (4, 4, U), (0x20, 0, U)])), Err(Errno::EINVAL));
        assert_eq!(Acl::parse(&list(&[(4, 4, U), (1, 6, U), (0x20, 0, U)])), Err(Errno::EINVAL));
        let full = list(&[(1, 7, U), (2, 6, 7), (4, 4, U), (0x10, 5, U), (0x20, 1, U)]);
        let mut acl = Acl::parse(&full).unwrap().unwrap();
        assert_eq!(acl.mode(), (0o751, false));
        acl.set_mode(0o640);
        assert_eq!(acl.mode(), (0o640, false));
        assert_eq!(acl.perm(tag::GROUP_OBJ), Some(4));
    }
}
