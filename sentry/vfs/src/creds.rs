//! Credentials: user and group ids, supplementary groups, capabilities (`credentials(7)`, `capabilities(7)`).

use std::sync::Arc;

use crate::{IdKind, UserNs};

/// A set of capabilities, bit by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct CapSet(pub u64);

impl CapSet {
    pub const EMPTY: Self = Self(0);
    /// Capabilities 0 to 40 (`CAP_CHECKPOINT_RESTORE`).
    pub const FULL: Self = Self((1 << 41) - 1);

    pub fn has(self, cap: u32) -> bool {
        cap < 64 && self.0 & (1 << cap) != 0
    }

    #[must_use]
    pub fn intersect(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub fn is_subset_of(self, other: Self) -> bool {
        self.0 & !other.0 == 0
    }
}

/// Capability numbers (`include/uapi/linux/capability.h`).
pub mod cap {
    pub const CHOWN: u32 = 0;
    pub const DAC_OVERRIDE: u32 = 1;
    pub const DAC_READ_SEARCH: u32 = 2;
    pub const FOWNER: u32 = 3;
    pub const FSETID: u32 = 4;
    pub const KILL: u32 = 5;
    pub const SETGID: u32 = 6;
    pub const SETUID: u32 = 7;
    pub const SETPCAP: u32 = 8;
    pub const LINUX_IMMUTABLE: u32 = 9;
    pub const NET_BIND_SERVICE: u32 = 10;
    pub const NET_BROADCAST: u32 = 11;
    pub const NET_ADMIN: u32 = 12;
    pub const NET_RAW: u32 = 13;
    pub const IPC_LOCK: u32 = 14;
    pub const IPC_OWNER: u32 = 15;
    pub const SYS_MODULE: u32 = 16;
    pub const SYS_RAWIO: u32 = 17;
    pub const SYS_CHROOT: u32 = 18;
    pub const SYS_PTRACE: u32 = 19;
    pub const SYS_PACCT: u32 = 20;
    pub const SYS_ADMIN: u32 = 21;
    pub const SYS_BOOT: u32 = 22;
    pub const SYS_NICE: u32 = 23;
    pub const SYS_RESOURCE: u32 = 24;
    pub const SYS_TIME: u32 = 25;
    pub const SYS_TTY_CONFIG: u32 = 26;
    pub const MKNOD: u32 = 27;
    pub const LEASE: u32 = 28;
    pub const AUDIT_WRITE: u32 = 29;
    pub const AUDIT_CONTROL: u32 = 30;
    pub const SETFCAP: u32 = 31;
}

/// The credentials of a task. Immutable: a change makes a new one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    pub uid: u32,
    pub euid: u32,
    pub suid: u32,
    pub fsuid: u32,
    pub gid: u32,
    pub egid: u32,
    pub sgid: u32,
    pub fsgid: u32,
    pub groups: Arc<[u32]>,
    pub permitted: CapSet,
    pub effective: CapSet,
    pub inheritable: CapSet,
    pub bounding: CapSet,
    pub ambient: CapSet,
    pub securebits: u32,
    pub no_new_privs: bool,
    /// The namespace in which the capability sets count; ids here are those of the first one.
    pub user_ns: Arc<UserNs>,
}

impl Credentials {
    /// Root with every capability.
    pub fn root() -> Self {
        Self::new(0, 0, Arc::from([]), CapSet::FULL)
    }

    /// All four user and group ids alike; `caps` permitted, effective and bounding.
    pub fn new(uid: u32, gid: u32, groups: Arc<[u32]>, caps: CapSet) -> Self {
        Self {
            uid,
            euid: uid,
            suid: uid,
            fsuid: uid,
            gid,
            egid: gid,
            sgid: gid,
            fsgid: gid,
            groups,
            permitted: caps,
            effective: caps,
            inheritable: CapSet::EMPTY,
            bounding: caps,
            ambient: CapSet::EMPTY,
            securebits: 0,
            no_new_privs: false,
            user_ns: UserNs::initial(),
        }
    }

    /// Whether the effective set holds `cap` (a number of [`cap`]) over the sandbox as a whole (`capable`): never inside a
    /// user namespace of the application's own.
    pub fn has_cap(&self, cap: u32) -> bool {
        self.effective.has(cap) && self.user_ns.is_initial()
    }

    /// Whether the effective set holds `cap` over what belongs to the caller's own user namespace
    /// (`ns_capable(current_user_ns())`).
    pub fn has_cap_here(&self, cap: u32) -> bool {
        self.effective.has(cap)
    }

    /// Whether `cap` is held over what belongs to `ns` (`ns_capable`): in that namespace or one above, or as the owner of
    /// a namespace that leads there.
    pub fn has_cap_in(&self, ns: &UserNs, cap: u32) -> bool {
        let mut ns = ns;
        loop {
            if *ns == *self.user_ns {
                return self.effective.has(cap);
            }
            if ns.level() <= self.user_ns.level() {
                return false;
            }
            let Some(parent) = ns.parent() else { return false };
            if **parent == *self.user_ns && ns.owner() == self.euid {
                return true;
            }
            ns = parent;
        }
    }

    /// Whether `cap` is held over a file of this owner and group (`capable_wrt_inode_uidgid`): both must have a mapping in
    /// the caller's namespace.
    pub fn has_cap_for(&self, (uid, gid): (u32, u32), cap: u32) -> bool {
        self.effective.has(cap)
            && (self.user_ns.is_initial()
                || (self.user_ns.show(IdKind::User, uid).is_some()
                    && self.user_ns.show(IdKind::Group, gid).is_some()))
    }

    /// These credentials as the first ones of `ns`: every capability there, and none kept for later
    /// (`set_cred_user_ns`).
    #[must_use]
    pub fn in_new_user_ns(&self, ns: &Arc<UserNs>) -> Self {
        Self {
            permitted: CapSet::FULL,
            effective: CapSet::FULL,
            inheritable: CapSet::EMPTY,
            bounding: CapSet::FULL,
            ambient: CapSet::EMPTY,
            securebits: 0,
            user_ns: Arc::clone(ns),
            ..self.clone()
        }
    }

    /// Whether `gid` is the file-system group or a supplementary one.
    pub fn in_group(&self, gid: u32) -> bool {
        self.fsgid == gid || self.groups.contains(&gid)
    }
}
