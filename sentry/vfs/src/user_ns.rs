//! User namespaces (`user_namespaces(7)`, `kernel/user_namespace.c`).
//!
//! Ids inside the Sentry are those of the sandbox's first namespace; a call translates them at its edge, for its
//! caller. Whether credentials have a capability is always asked with the namespace that owns the object.

use core::fmt::Write;
use core::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use sentry_base::lock::rank;
use sentry_base::{Errno, Result, RwLock};

use crate::Credentials;

/// What an id without a mapping is shown as (`/proc/sys/kernel/overflowuid`).
pub const OVERFLOW_ID: u32 = 65534;
/// Inode number of the first namespace (`PROC_USER_INIT_INO`).
const INITIAL_INO: u64 = 0xefff_fffd;
/// Namespaces that may be nested.
const MAX_LEVEL: u32 = 32;
/// Lines that a map may have.
const MAX_EXTENTS: usize = 340;

/// A number for a new namespace of any kind, as `stat(2)` of its file shows it.
pub fn next_ns_ino() -> u64 {
    // Below are the numbers of the first namespaces (`include/linux/proc_ns.h`).
    static NEXT: AtomicU64 = AtomicU64::new(0xf000_0000);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// User or group ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdKind {
    User,
    Group,
}

/// One line of a map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Extent {
    first: u32,
    /// The first id in the sandbox's first namespace.
    kernel_first: u32,
    count: u32,
}

impl Extent {
    fn to_kernel(self, id: u32) -> Option<u32> {
        let at = id.checked_sub(self.first).filter(|at| *at < self.count)?;
        self.kernel_first.checked_add(at)
    }

    fn of_kernel(self, id: u32) -> Option<u32> {
        let at = id.checked_sub(self.kernel_first).filter(|at| *at < self.count)?;
        self.first.checked_add(at)
    }
}

#[derive(Debug, Default)]
struct Maps {
    user: Vec<Extent>,
    group: Vec<Extent>,
    deny_setgroups: bool,
}

impl Maps {
    fn of(&self, kind: IdKind) -> &[Extent] {
        match kind {
            IdKind::User => &self.user,
            IdKind::Group => &self.group,
        }
    }
}

/// A user namespace.
pub struct UserNs {
    ino: u64,
    parent: Option<Arc<UserNs>>,
    level: u32,
    /// Effective ids of who made it, in the first namespace's numbers.
    owner: u32,
    owner_group: u32,
    /// Whether its maker could have set file capabilities, for a map of the parent's root.
    maker_could_setfcap: bool,
    maps: RwLock<Maps, { rank::LEAF }>,
}

impl core::fmt::Debug for UserNs {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "UserNs({})", self.ino)
    }
}

impl PartialEq for UserNs {
    fn eq(&self, other: &Self) -> bool {
        self.ino == other.ino
    }
}

impl Eq for UserNs {}

impl UserNs {
    /// The sandbox's first namespace, in which every id stands for itself. All of them are equal.
    pub fn initial() -> Arc<Self> {
        let all = Extent { first: 0, kernel_first: 0, count: u32::MAX };
        Arc::new(Self {
            ino: INITIAL_INO,
            parent: None,
            level: 0,
            owner: 0,
            owner_group: 0,
            maker_could_setfcap: true,
            maps: RwLock::new(Maps { user: vec![all], group: vec![all], deny_setgroups: false }),
        })
    }

    /// A child of the namespace of `creds`, without maps. `EPERM` where the maker's ids have no mapping, `ENOSPC` below
    /// 32 others.
    pub fn create(creds: &Credentials) -> Result<Arc<Self>> {
        let parent = Arc::clone(&creds.user_ns);
        if parent.level > MAX_LEVEL {
            return Err(Errno::ENOSPC);
        }
        if parent.show(IdKind::User, creds.euid).is_none() || parent.show(IdKind::Group, creds.egid).is_none()
        {
            return Err(Errno::EPERM);
        }
        let deny_setgroups = parent.maps.read().deny_setgroups;
        Ok(Arc::new(Self {
            ino: next_ns_ino(),
            level: parent.level + 1,
            owner: creds.euid,
            owner_group: creds.egid,
            maker_could_setfcap: creds.has_cap_in(&parent, crate::cap::SETFCAP),
            maps: RwLock::new(Maps { deny_setgroups, ..Maps::default() }),
            parent: Some(parent),
        }))
    }

    pub fn ino(&self) -> u64 {
        self.ino
    }

    pub fn parent(&self) -> Option<&Arc<Self>> {
        self.parent.as_ref()
    }

    pub fn owner(&self) -> u32 {
        self.owner
    }

    pub fn owner_group(&self) -> u32 {
        self.owner_group
    }

    pub fn is_initial(&self) -> bool {
        self.level == 0
    }

    /// Whether it is `other` or lies below it (`in_userns`).
    pub fn is_same_or_below(&self, other: &Self) -> bool {
        let mut at = self;
        loop {
            if at == other {
                return true;
            }
            match &at.parent {
                Some(parent) if at.level > other.level => at = parent,
                _ => return false,
            }
        }
    }

    pub(crate) fn level(&self) -> u32 {
        self.level
    }

    /// The Sentry's id for `id` of this namespace (`make_kuid`); `None` without a mapping.
    pub fn resolve(&self, kind: IdKind, id: u32) -> Option<u32> {
        if self.is_initial() {
            return (id != u32::MAX).then_some(id);
        }
        self.maps.read().of(kind).iter().find_map(|e| e.to_kernel(id))
    }

    /// This namespace's id for the Sentry's (`from_kuid`); `None` without a mapping.
    pub fn show(&self, kind: IdKind, id: u32) -> Option<u32> {
        if self.is_initial() {
            return Some(id);
        }
        self.maps.read().of(kind).iter().find_map(|e| e.of_kernel(id))
    }

    /// [`UserNs::resolve`] of a user id; `EINVAL` without a mapping.
    pub fn uid(&self, id: u32) -> Result<u32> {
        self.resolve(IdKind::User, id).ok_or(Errno::EINVAL)
    }

    /// [`UserNs::resolve`] of a group id; `EINVAL` without a mapping.
    pub fn gid(&self, id: u32) -> Result<u32> {
        self.resolve(IdKind::Group, id).ok_or(Errno::EINVAL)
    }

    /// The user id to show, 65534 without a mapping (`from_kuid_munged`).
    pub fn show_uid(&self, id: u32) -> u32 {
        self.show(IdKind::User, id).unwrap_or(OVERFLOW_ID)
    }

    /// The group id to show, 65534 without a mapping.
    pub fn show_gid(&self, id: u32) -> u32 {
        self.show(IdKind::Group, id).unwrap_or(OVERFLOW_ID)
    }

    /// Whether this is its root user's id (`make_kuid(ns, 0)`).
    pub fn is_root(&self, id: u32) -> bool {
        self.resolve(IdKind::User, 0) == Some(id)
    }

    /// The text of `/proc/PID/uid_map` or `gid_map` for a reader in `reader`.
    pub fn map_text(&self, kind: IdKind, reader: &Self) -> String {
        let lower = match &self.parent {
            Some(parent) if reader == self => parent,
            _ => reader,
        };
        let mut text = String::new();
        for e in self.maps.read().of(kind) {
            let first = lower.show(kind, e.kernel_first).unwrap_or(u32::MAX);
            let _ = writeln!(text, "{:>10} {first:>10} {:>10}", e.first, e.count);
        }
        text
    }

    /// Sets a map from what `writer` writes to `/proc/PID/uid_map` or `gid_map` (`map_write`): once, `EPERM` after that
    /// and for what the writer may not map, `EINVAL` for text that is no map.
    pub fn set_map(&self, kind: IdKind, text: &[u8], writer: &Credentials) -> Result<()> {
        let parent = self.parent.as_ref().ok_or(Errno::EPERM)?;
        if *writer.user_ns != *self && writer.user_ns != *parent {
            return Err(Errno::EPERM);
        }
        if text.len() >= 4096 {
            return Err(Errno::EINVAL);
        }
        if !self.maps.read().of(kind).is_empty() || !writer.has_cap_in(self, crate::cap::SYS_ADMIN) {
            return Err(Errno::EPERM);
        }
        let lines = parse_map(text)?;
        if !self.may_map(kind, &lines, parent, writer) {
            return Err(Errno::EPERM);
        }
        let extents: Option<Vec<Extent>> = lines
            .iter()
            .map(|(first, lower, count)| {
                let kernel_first = parent.resolve_range(kind, *lower, *count)?;
                Some(Extent { first: *first, kernel_first, count: *count })
            })
            .collect();
        let extents = extents.ok_or(Errno::EPERM)?;
        let mut maps = self.maps.write();
        let slot = match kind {
            IdKind::User => &mut maps.user,
            IdKind::Group => &mut maps.group,
        };
        if !slot.is_empty() {
            return Err(Errno::EPERM);
        }
        *slot = extents;
        Ok(())
    }

    fn resolve_range(&self, kind: IdKind, first: u32, count: u32) -> Option<u32> {
        let last = first.checked_add(count.checked_sub(1)?)?;
        let maps = self.maps.read();
        maps.of(kind).iter().find(|e| e.to_kernel(last).is_some()).and_then(|e| e.to_kernel(first))
    }

    /// `new_idmap_permitted`.
    fn may_map(
        &self,
        kind: IdKind,
        lines: &[(u32, u32, u32)],
        parent: &Arc<Self>,
        writer: &Credentials,
    ) -> bool {
        if kind == IdKind::User && lines.iter().any(|(_, lower, _)| *lower == 0) {
            let could = if *writer.user_ns == *self {
                self.maker_could_setfcap
            } else {
                writer.has_cap_in(parent, crate::cap::SETFCAP)
            };
            if !could {
                return false;
            }
        }
        if let [(_, lower, 1)] = lines
            && self.owner == writer.euid
        {
            match kind {
                IdKind::User if parent.resolve(kind, *lower) == Some(writer.euid) => return true,
                IdKind::Group
                    if self.maps.read().deny_setgroups
                        && parent.resolve(kind, *lower) == Some(writer.egid) =>
                {
                    return true;
                }
                _ => {}
            }
        }
        let needed = match kind {
            IdKind::User => crate::cap::SETUID,
            IdKind::Group => crate::cap::SETGID,
        };
        writer.has_cap_in(parent, needed)
    }

    /// `/proc/PID/setgroups`.
    pub fn setgroups_text(&self) -> &'static str {
        if self.maps.read().deny_setgroups { "deny\n" } else { "allow\n" }
    }

    /// Writes `/proc/PID/setgroups`: `deny` only before the group map is set, and for good.
    pub fn write_setgroups(&self, text: &[u8], writer: &Credentials) -> Result<()> {
        if !writer.has_cap_in(self, crate::cap::SYS_ADMIN) {
            return Err(Errno::EPERM);
        }
        if text.len() >= 8 {
            return Err(Errno::EINVAL);
        }
        let deny = match text.trim_ascii_end() {
            b"allow" => false,
            b"deny" => true,
            _ => return Err(Errno::EINVAL),
        };
        let mut maps = self.maps.write();
        if deny {
            if !maps.group.is_empty() {
                return Err(Errno::EPERM);
            }
            maps.deny_setgroups = true;
        } else if maps.deny_setgroups {
            return Err(Errno::EPERM);
        }
        Ok(())
    }

    /// Whether `setgroups(2)` may be called at all in this namespace.
    pub fn may_setgroups(&self) -> bool {
        let maps = self.maps.read();
        !maps.group.is_empty() && !maps.deny_setgroups
    }
}

/// The lines of a map: first id inside, first id in the parent, count. `EINVAL` for overlaps, zero counts, overflows.
fn parse_map(text: &[u8]) -> Result<Vec<(u32, u32, u32)>> {
    let text = core::str::from_utf8(text).map_err(|_| Errno::EINVAL)?;
    let mut lines: Vec<(u32, u32, u32)> = Vec::new();
    let text = text.strip_suffix('\n').unwrap_or(text);
    for line in text.split('\n') {
        let mut words = line.split_ascii_whitespace();
        let mut next = || words.next().and_then(|w| w.parse::<u32>().ok()).ok_or(Errno::EINVAL);
        let (first, lower, count) = (next()?, next()?, next()?);
        if words.next().is_some()
            || count == 0
            || first.checked_add(count).is_none()
            || lower.checked_add(count).is_none()
        {
            return Err(Errno::EINVAL);
        }
        let overlaps =
            |a: u32, a_count: u32, b: u32| a < b.saturating_add(count) && b < a.saturating_add(a_count);
        if lines.iter().any(|(f, l, n)| overlaps(*f, *n, first) || overlaps(*l, *n, lower)) {
            return Err(Errno::EINVAL);
        }
        lines.push((first, lower, count));
        if lines.len() > MAX_EXTENTS {
            return Err(Errno::EINVAL);
        }
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_root_has_its_capabilities_inside_alone() {
        let maker = Credentials::new(1000, 1000, Arc::from([]), crate::CapSet::EMPTY);
        let ns = UserNs::create(&maker).unwrap();
        let inside = maker.in_new_user_ns(&ns);
        assert_eq!(ns.show_uid(1000), OVERFLOW_ID);
        assert_eq!(ns.set_map(IdKind::User, b"0 1000 2\n", &inside), Err(Errno::EPERM));
        assert_eq!(ns.set_map(IdKind::User, b"0 1000\n", &inside), Err(Errno::EINVAL));
        ns.set_map(IdKind::User, b"0 1000 1\n", &inside).unwrap();
        assert_eq!(ns.set_map(IdKind::User, b"0 1000 1\n", &inside), Err(Errno::EPERM));
        assert_eq!(ns.set_map(IdKind::Group, b"0 1000 1\n", &inside), Err(Errno::EPERM));
        ns.write_setgroups(b"deny\n", &inside).unwrap();
        ns.set_map(IdKind::Group, b"0 1000 1\n", &inside).unwrap();
        assert_eq!((ns.show_uid(1000), ns.uid(0), ns.uid(1)), (0, Ok(1000), Err(Errno::EINVAL)));
        assert!(!inside.has_cap(crate::cap::SYS_ADMIN));
        assert!(inside.has_cap_in(&ns, crate::cap::SYS_ADMIN));
        assert!(!maker.has_cap_in(&maker.user_ns, crate::cap::SYS_ADMIN));
        assert!(maker.has_cap_in(&ns, crate::cap::SYS_ADMIN), "the owner rules it from the parent");
        assert!(inside.has_cap_for((1000, 1000), crate::cap::CHOWN));
        assert!(!inside.has_cap_for((0, 0), crate::cap::CHOWN));
        assert_eq!(ns.map_text(IdKind::User, &maker.user_ns), "         0       1000          1\n");
    }

    #[test]
    fn maps_refuse_overlaps() {
        assert_eq!(parse_map(b"0 0 10\n5 100 1\n"), Err(Errno::EINVAL));
        assert_eq!(parse_map(b"0 0 10\n10 9 1\n"), Err(Errno::EINVAL));
        assert_eq!(parse_map(b"0 0 0\n"), Err(Errno::EINVAL));
        assert_eq!(parse_map(b"0 10 10\n10 30 1\n").map(|l| l.len()), Ok(2));
    }
}
