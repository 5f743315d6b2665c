//! Owners and modes of System V objects (`ipc/util.c: ipcperms`).

use abi::ipc::IpcPerm;
use sentry_base::{Errno, Result};
use sentry_vfs::{Credentials, cap};

/// Who made an object, who owns it, and what others may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Perm {
    pub key: i32,
    pub id: i32,
    pub uid: u32,
    pub gid: u32,
    pub cuid: u32,
    pub cgid: u32,
    /// The nine permission bits and flags of the kind.
    pub mode: u32,
}

impl Perm {
    /// The permissions of an object that `creds` makes with the bits of `flags`.
    pub(crate) fn new(key: i32, id: i32, flags: u32, creds: &Credentials) -> Self {
        let (uid, gid) = (creds.euid, creds.egid);
        Self { key, id, uid, gid, cuid: uid, cgid: gid, mode: flags & 0o777 }
    }

    /// `EACCES` unless `creds` may do what the bits of `want` ask, in any of their three places.
    pub fn check(&self, want: u32, creds: &Credentials) -> Result<()> {
        let want = (want >> 6 | want >> 3 | want) & 7;
        let granted = if creds.euid == self.cuid || creds.euid == self.uid {
            self.mode >> 6
        } else if creds.in_group(self.cgid) || creds.in_group(self.gid) {
            self.mode >> 3
        } else {
            self.mode
        };
        if want & !granted == 0 || creds.has_cap(cap::IPC_OWNER) { Ok(()) } else { Err(Errno::EACCES) }
    }

    /// `EPERM` unless `creds` may remove the object or change its owner.
    pub fn check_owner(&self, creds: &Credentials) -> Result<()> {
        let owner = creds.euid == self.cuid || creds.euid == self.uid;
        if owner || creds.has_cap(cap::SYS_ADMIN) { Ok(()) } else { Err(Errno::EPERM) }
    }

    /// Takes owner and permission bits from an `IPC_SET`.
    pub(crate) fn set(&mut self, from: &IpcPerm) {
        self.uid = from.uid;
        self.gid = from.gid;
        self.mode = self.mode & !0o777 | from.mode & 0o777;
    }

    /// As the status calls show it.
    pub(crate) fn show(&self) -> IpcPerm {
        IpcPerm {
            key: self.key,
            uid: self.uid,
            gid: self.gid,
            cuid: self.cuid,
            cgid: self.cgid,
            mode: self.mode,
            seq: u16::try_from(self.id >> crate::registry::INDEX_BITS).unwrap_or(0),
            ..IpcPerm::default()
        }
    }
}
