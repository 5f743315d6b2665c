//! What executing a program does to credentials: set-user-id bits, file capabilities, the special user 0
//! (`capabilities(7)`, `fs/exec.c: bprm_fill_uid`, `security/commoncap.c: cap_bprm_creds_from_file`).

use sentry_base::{Errno, Result};
use sentry_vfs::{CapSet, Credentials, FileDescription, IdKind, UserNs, cap};

const S_ISUID: u32 = 0o4000;
const S_ISGID: u32 = 0o2000;
const S_IXGRP: u32 = 0o010;
/// `SECBIT_NOROOT`.
const SECBIT_NOROOT: u32 = 1;
/// `SECBIT_KEEP_CAPS`.
const SECBIT_KEEP_CAPS: u32 = 1 << 4;

/// The credentials of a program, and what else follows from how they came about.
#[derive(Debug)]
pub(crate) struct ExecCreds {
    pub creds: Credentials,
    /// The program must not trust its environment (`AT_SECURE`).
    pub secure: bool,
    /// Risky parts of the persona are cleared.
    pub clears_persona: bool,
}

/// The capabilities of a file (`security.capability`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileCaps {
    permitted: CapSet,
    inheritable: CapSet,
    effective: bool,
}

/// Reads `struct vfs_cap_data` or `struct vfs_ns_cap_data`. `EINVAL` for a malformed one; `None` for one of another user
/// namespace.
fn parse(raw: &[u8], user_ns: &UserNs) -> Result<Option<FileCaps>> {
    const REVISION: u32 = 0xff00_0000;
    const EFFECTIVE: u32 = 1;
    let word = |index: usize| {
        let bytes = raw.get(index * 4..).and_then(|b| b.first_chunk::<4>());
        bytes.map(|b| u32::from_le_bytes(*b)).ok_or(Errno::EINVAL)
    };
    let magic = word(0)?;
    let (words, root) = match (magic & REVISION, raw.len()) {
        (0x0100_0000, 12) => (1, 0),
        (0x0200_0000, 20) => (2, 0),
        (0x0300_0000, 24) => (2, word(5)?),
        _ => return Err(Errno::EINVAL),
    };
    if !user_ns.is_root(root) {
        return Ok(None);
    }
    let set = |which: usize| -> Result<CapSet> {
        let low = u64::from(word(1 + which)?);
        let high = if words == 2 { u64::from(word(3 + which)?) } else { 0 };
        Ok(CapSet(low | high << 32).intersect(CapSet::FULL))
    };
    Ok(Some(FileCaps { permitted: set(0)?, inheritable: set(1)?, effective: magic & EFFECTIVE != 0 }))
}

/// The capabilities of the file, if it has any.
fn file_caps(file: &FileDescription, user_ns: &UserNs) -> Result<Option<FileCaps>> {
    let Some(inode) = file.inode() else { return Ok(None) };
    match inode.get_xattr(b"security.capability") {
        Ok(raw) => parse(&raw, user_ns),
        // None, or a file system without such attributes.
        Err(_) => Ok(None),
    }
}

/// The credentials that a task with `old` has after it executes `file`. `EPERM` if the file demands capabilities that the
/// bounding set takes away.
/// `distrusted`: a tracer without rights of its own watches, so nothing may be gained that the task could not take.
pub(crate) fn of_file(old: &Credentials, file: &FileDescription, distrusted: bool) -> Result<ExecCreds> {
    let attr = file.attr()?;
    let user_ns = &old.user_ns;
    let honoured = file.location().is_none_or(|at| at.mount.honours_set_id(user_ns));
    let caps = if honoured { file_caps(file, user_ns)? } else { None };
    // Ids that the caller's namespace cannot name are not taken over.
    let mapped =
        user_ns.show(IdKind::User, attr.uid).is_some() && user_ns.show(IdKind::Group, attr.gid).is_some();
    let owner = (honoured && mapped).then_some((attr.mode, attr.uid, attr.gid));
    compute(old, owner, caps, distrusted)
}

/// `owner`: mode and owner of the file, where set-id bits count.
fn compute(
    old: &Credentials,
    owner: Option<(u32, u32, u32)>,
    caps: Option<FileCaps>,
    distrusted: bool,
) -> Result<ExecCreds> {
    let mut new = old.clone();
    let mut clears_persona = false;
    if let Some((mode, uid, gid)) = owner
        && !old.no_new_privs
    {
        if mode & S_ISUID != 0 {
            new.euid = uid;
            clears_persona = true;
        }
        if mode & (S_ISGID | S_IXGRP) == S_ISGID | S_IXGRP {
            new.egid = gid;
            clears_persona = true;
        }
    }
    new.permitted = CapSet::EMPTY;
    let mut effective = false;
    if let Some(caps) = caps {
        effective = caps.effective;
        let granted = new.bounding.intersect(caps.permitted);
        new.permitted = granted.union(new.inheritable.intersect(caps.inheritable));
        if effective && !caps.permitted.is_subset_of(new.permitted) {
            return Err(Errno::EPERM);
        }
    }
    // A file that was given a few capabilities is not given all by its set-user-id bit.
    let root = |id| old.user_ns.is_root(id);
    let mixed = caps.is_some() && root(new.euid) && !root(new.uid);
    if old.securebits & SECBIT_NOROOT == 0 && !mixed {
        if root(new.euid) || root(new.uid) {
            new.permitted = old.bounding.union(old.inheritable);
        }
        effective |= root(new.euid);
    }
    let gained = !new.permitted.is_subset_of(old.permitted);
    clears_persona |= gained;
    let id_changed = new.euid != old.euid || !new.in_group(new.egid);
    if (id_changed || gained) && (old.no_new_privs || distrusted) {
        if old.no_new_privs || !old.has_cap_here(cap::SETUID) {
            new.euid = new.uid;
            new.egid = new.gid;
        }
        new.permitted = new.permitted.intersect(old.permitted);
    }
    new.suid = new.euid;
    new.fsuid = new.euid;
    new.sgid = new.egid;
    new.fsgid = new.egid;
    if caps.is_some() || id_changed {
        new.ambient = CapSet::EMPTY;
    }
    new.permitted = new.permitted.union(new.ambient);
    new.effective = if effective { new.permitted } else { new.ambient };
    new.securebits &= !SECBIT_KEEP_CAPS;
    let grew = !new.permitted.is_subset_of(new.ambient);
    let secure =
        id_changed || new.euid != old.uid || new.egid != old.gid || (!root(new.uid) && (effective || grew));
    Ok(ExecCreds { creds: new, secure, clears_persona })
}

/// Whether the change makes the process's memory private to it (`commit_creds`).
pub(crate) fn hides_memory(old: &Credentials, new: &Credentials) -> bool {
    new.euid != new.uid
        || new.egid != new.gid
        || (old.euid, old.egid, old.fsuid, old.fsgid) != (new.euid, new.egid, new.fsuid, new.fsgid)
        || !new.permitted.is_subset_of(old.permitted)
}

/// Whether an unprivileged tracer or reader is kept off by the rights of the file alone (`would_dump`).
pub(crate) fn is_unreadable(file: &FileDescription, creds: &Credentials) -> bool {
    let Ok(attr) = file.attr() else { return true };
    let ids = (attr.uid, attr.gid);
    if creds.has_cap_for(ids, cap::DAC_OVERRIDE) || creds.has_cap_for(ids, cap::DAC_READ_SEARCH) {
        return false;
    }
    let class = if attr.uid == creds.fsuid {
        attr.mode >> 6
    } else if creds.in_group(attr.gid) {
        attr.mode >> 3
    } else {
        attr.mode
    };
    class & 4 == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn user(uid: u32) -> Credentials {
        Credentials { bounding: CapSet::FULL, ..Credentials::new(uid, uid, Arc::from([]), CapSet::EMPTY) }
    }

    fn caps(permitted: u64, inheritable: u64, effective: bool) -> Option<FileCaps> {
        Some(FileCaps { permitted: CapSet(permitted), inheritable: CapSet(inheritable), effective })
    }

    #[test]
    fn set_user_id_root() {
        let got = compute(&user(1000), Some((0o4755, 0, 0)), None, false).unwrap();
        assert_eq!((got.creds.uid, got.creds.euid, got.creds.suid, got.creds.fsuid), (1000, 0, 0, 0));
        assert_eq!(got.creds.effective, CapSet::FULL);
        assert!(got.secure && got.clears_persona);
        let nnp = Credentials { no_new_privs: true, ..user(1000) };
        let got = compute(&nnp, Some((0o4755, 0, 0)), None, false).unwrap();
        assert_eq!((got.creds.euid, got.creds.permitted, got.secure), (1000, CapSet::EMPTY, false));
        let got = compute(&user(1000), None, None, false).unwrap();
        assert_eq!(got.creds.euid, 1000, "a mount with nosuid");
    }

    #[test]
    fn a_weak_tracer_keeps_privileges_away() {
        let got = compute(&user(1000), Some((0o4755, 0, 0)), None, true).unwrap();
        assert_eq!((got.creds.euid, got.creds.permitted), (1000, CapSet::EMPTY));
    }

    #[test]
    fn file_capabilities() {
        let got = compute(&user(1000), Some((0o755, 0, 0)), caps(0b11, 0, true), false).unwrap();
        assert_eq!((got.creds.permitted.0, got.creds.effective.0, got.secure), (0b11, 0b11, true));
        let got = compute(&user(1000), Some((0o755, 0, 0)), caps(0b11, 0, false), false).unwrap();
        assert_eq!((got.creds.permitted.0, got.creds.effective.0), (0b11, 0));
        let bounded = Credentials { bounding: CapSet(0b01), ..user(1000) };
        assert_eq!(
            compute(&bounded, Some((0o755, 0, 0)), caps(0b11, 0, true), false).err(),
            Some(Errno::EPERM)
        );
        let got = compute(&bounded, Some((0o755, 0, 0)), caps(0b11, 0, false), false).unwrap();
        assert_eq!(got.creds.permitted.0, 0b01);
        // Root without the right to be special gets what the file says.
        let plain = Credentials { securebits: SECBIT_NOROOT, ..Credentials::root() };
        let got = compute(&plain, Some((0o755, 0, 0)), caps(0b100, 0, true), false).unwrap();
        assert_eq!(got.creds.permitted.0, 0b100);
    }

    #[test]
    fn ambient_capabilities_pass_to_plain_programs() {
        let with = Credentials {
            permitted: CapSet(0b1),
            inheritable: CapSet(0b1),
            ambient: CapSet(0b1),
            ..user(1000)
        };
        let got = compute(&with, Some((0o755, 0, 0)), None, false).unwrap();
        assert_eq!((got.creds.effective.0, got.creds.ambient.0, got.secure), (1, 1, false));
        let got = compute(&with, Some((0o755, 0, 0)), caps(0, 0b1, true), false).unwrap();
        assert_eq!((got.creds.effective.0, got.creds.ambient.0), (1, 0));
        let got = compute(&with, Some((0o4755, 5, 0)), None, false).unwrap();
        assert_eq!((got.creds.effective.0, got.creds.ambient.0), (0, 0));
    }

    #[test]
    fn attributes_are_parsed() {
        let ns = UserNs::initial();
        let v2 = [0x0200_0001_u32, 1, 2, 3, 4].map(u32::to_le_bytes).concat();
        let caps = parse(&v2, &ns).unwrap().unwrap();
        assert_eq!((caps.permitted.0, caps.inheritable.0, caps.effective), (1 | 3 << 32, 2 | 4 << 32, true));
        let other_root = [0x0300_0000_u32, 1, 0, 0, 0, 1000].map(u32::to_le_bytes).concat();
        assert_eq!(parse(&other_root, &ns), Ok(None));
        assert_eq!(parse(&v2[..16], &ns), Err(Errno::EINVAL));
        assert_eq!(parse(&[], &ns), Err(Errno::EINVAL));
    }
}
