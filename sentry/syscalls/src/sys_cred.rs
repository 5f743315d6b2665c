//! User and group ids, supplementary groups, capabilities (`credentials(7)`, `capabilities(7)`).

use std::sync::Arc;

use sentry_base::{Errno, Result};
use sentry_kernel::{Current, Task};
use sentry_vfs::{CapSet, Credentials, cap};

use crate::args::Ptr;
use crate::table::syscalls;

syscalls! {
    102 getuid() [sync];
    104 getgid() [sync];
    105 setuid(uid: u32) [sync];
    106 setgid(gid: u32) [sync];
    107 geteuid() [sync];
    108 getegid() [sync];
    113 setreuid(ruid: u32, euid: u32) [sync];
    114 setregid(rgid: u32, egid: u32) [sync];
    115 getgroups(size: i32, list: Ptr) [sync];
    116 setgroups(size: i32, list: Ptr) [sync];
    117 setresuid(ruid: u32, euid: u32, suid: u32) [sync];
    118 getresuid(ruid: Ptr, euid: Ptr, suid: Ptr) [sync];
    119 setresgid(rgid: u32, egid: u32, sgid: u32) [sync];
    120 getresgid(rgid: Ptr, egid: Ptr, sgid: Ptr) [sync];
    122 setfsuid(uid: u32) [sync];
    123 setfsgid(gid: u32) [sync];
    125 capget(header: Ptr, data: Ptr) [sync];
    126 capset(header: Ptr, data: Ptr) [sync];
}

/// "Leave it as it is" in the `setre*` and `setres*` calls.
const KEEP: u32 = u32::MAX;
/// The most supplementary groups (`NGROUPS_MAX`).
const NGROUPS_MAX: i32 = 65536;
/// `SECBIT_NO_SETUID_FIXUP`.
const NO_SETUID_FIXUP: u32 = 1 << 2;

fn getuid(cx: &mut Current) -> Result<u32> {
    let creds = cx.creds();
    Ok(creds.user_ns.show_uid(creds.uid))
}

fn geteuid(cx: &mut Current) -> Result<u32> {
    let creds = cx.creds();
    Ok(creds.user_ns.show_uid(creds.euid))
}

fn getgid(cx: &mut Current) -> Result<u32> {
    let creds = cx.creds();
    Ok(creds.user_ns.show_gid(creds.gid))
}

fn getegid(cx: &mut Current) -> Result<u32> {
    let creds = cx.creds();
    Ok(creds.user_ns.show_gid(creds.egid))
}

/// What a change of user ids does to capabilities (`cap_emulate_setxuid`).
fn fix_caps(task: &Task, old: &Credentials, new: &mut Credentials) {
    if new.securebits & NO_SETUID_FIXUP != 0 {
        return;
    }
    let root = |id| old.user_ns.is_root(id);
    let had_root = root(old.uid) || root(old.euid) || root(old.suid);
    let has_root = root(new.uid) || root(new.euid) || root(new.suid);
    if had_root && !has_root {
        if !task.keeps_caps() {
            new.permitted = CapSet::EMPTY;
            new.effective = CapSet::EMPTY;
        }
        new.ambient = CapSet::EMPTY;
    }
    if root(old.euid) && !root(new.euid) {
        new.effective = CapSet::EMPTY;
    }
    if !root(old.euid) && root(new.euid) {
        new.effective = new.permitted;
    }
}

/// Makes `change` to the credentials; user ids bring their capabilities along.
fn change(cx: &Current, change: impl FnOnce(&mut Credentials) -> Result<()>) -> Result<()> {
    let old = cx.creds();
    let mut new = Credentials::clone(&old);
    change(&mut new)?;
    fix_caps(&cx.task, &old, &mut new);
    if (new.euid, new.egid, new.fsuid, new.fsgid) != (old.euid, old.egid, old.fsuid, old.fsgid) {
        cx.set_pdeath_signal(0);
        cx.group().set_dumpable(0);
    }
    let new_user = new.uid != old.uid;
    cx.set_creds(Arc::new(new));
    if new_user {
        cx.note_task_limit();
    }
    Ok(())
}

fn setuid(cx: &mut Current, uid: u32) -> Result<()> {
    let uid = cx.creds().user_ns.uid(uid)?;
    change(cx, |c| {
        if c.has_cap_here(cap::SETUID) {
            (c.uid, c.suid) = (uid, uid);
        } else if uid != c.uid && uid != c.suid {
            return Err(Errno::EPERM);
        }
        (c.euid, c.fsuid) = (uid, uid);
        Ok(())
    })
}

fn setgid(cx: &mut Current, gid: u32) -> Result<()> {
    let gid = cx.creds().user_ns.gid(gid)?;
    change(cx, |c| {
        if c.has_cap_here(cap::SETGID) {
            (c.gid, c.sgid) = (gid, gid);
        } else if gid != c.gid && gid != c.sgid {
            return Err(Errno::EPERM);
        }
        (c.egid, c.fsgid) = (gid, gid);
        Ok(())
    })
}

/// The Sentry's id for a user id of the caller's, [`KEEP`] left alone. `EINVAL` for one without a mapping.
fn known_uid(cx: &Current, uid: u32) -> Result<u32> {
    if uid == KEEP { Ok(KEEP) } else { cx.creds().user_ns.uid(uid) }
}

/// As [`known_uid`], for a group.
fn known_gid(cx: &Current, gid: u32) -> Result<u32> {
    if gid == KEEP { Ok(KEEP) } else { cx.creds().user_ns.gid(gid) }
}

fn setreuid(cx: &mut Current, ruid: u32, euid: u32) -> Result<()> {
    let (ruid, euid) = (known_uid(cx, ruid)?, known_uid(cx, euid)?);
    change(cx, |c| {
        let old = c.clone();
        let free = c.has_cap_here(cap::SETUID);
        if ruid != KEEP {
            if !free && ruid != old.uid && ruid != old.euid {
                return Err(Errno::EPERM);
            }
            c.uid = ruid;
        }
        if euid != KEEP {
            if !free && euid != old.uid && euid != old.euid && euid != old.suid {
                return Err(Errno::EPERM);
            }
            c.euid = euid;
        }
        if ruid != KEEP || (euid != KEEP && euid != old.uid) {
            c.suid = c.euid;
        }
        c.fsuid = c.euid;
        Ok(())
    })
}

fn setregid(cx: &mut Current, rgid: u32, egid: u32) -> Result<()> {
    let (rgid, egid) = (known_gid(cx, rgid)?, known_gid(cx, egid)?);
    change(cx, |c| {
        let old = c.clone();
        let free = c.has_cap_here(cap::SETGID);
        if rgid != KEEP {
            if !free && rgid != old.gid && rgid != old.egid {
                return Err(Errno::EPERM);
            }
            c.gid = rgid;
        }
        if egid != KEEP {
            if !free && egid != old.gid && egid != old.egid && egid != old.sgid {
                return Err(Errno::EPERM);
            }
            c.egid = egid;
        }
        if rgid != KEEP || (egid != KEEP && egid != old.gid) {
            c.sgid = c.egid;
        }
        c.fsgid = c.egid;
        Ok(())
    })
}

fn setresuid(cx: &mut Current, ruid: u32, euid: u32, suid: u32) -> Result<()> {
    let (ruid, euid, suid) = (known_uid(cx, ruid)?, known_uid(cx, euid)?, known_uid(cx, suid)?);
    change(cx, |c| {
        let may = [c.uid, c.euid, c.suid, KEEP];
        if !c.has_cap_here(cap::SETUID) && ![ruid, euid, suid].iter().all(|id| may.contains(id)) {
            return Err(Errno::EPERM);
        }
        c.uid = pick(ruid, c.uid);
        c.euid = pick(euid, c.euid);
        c.suid = pick(suid, c.suid);
        c.fsuid = c.euid;
        Ok(())
    })
}

fn setresgid(cx: &mut Current, rgid: u32, egid: u32, sgid: u32) -> Result<()> {
    let (rgid, egid, sgid) = (known_gid(cx, rgid)?, known_gid(cx, egid)?, known_gid(cx, sgid)?);
    change(cx, |c| {
        let may = [c.gid, c.egid, c.sgid, KEEP];
        if !c.has_cap_here(cap::SETGID) && ![rgid, egid, sgid].iter().all(|id| may.contains(id)) {
            return Err(Errno::EPERM);
        }
        c.gid = pick(rgid, c.gid);
        c.egid = pick(egid, c.egid);
        c.sgid = pick(sgid, c.sgid);
        c.fsgid = c.egid;
        Ok(())
    })
}

fn pick(new: u32, old: u32) -> u32 {
    if new == KEEP { old } else { new }
}

fn getresuid(cx: &mut Current, ruid: Ptr, euid: Ptr, suid: Ptr) -> Result<()> {
    let c = cx.creds();
    cx.write_obj(ruid.0, &c.user_ns.show_uid(c.uid))?;
    cx.write_obj(euid.0, &c.user_ns.show_uid(c.euid))?;
    cx.write_obj(suid.0, &c.user_ns.show_uid(c.suid))
}

fn getresgid(cx: &mut Current, rgid: Ptr, egid: Ptr, sgid: Ptr) -> Result<()> {
    let c = cx.creds();
    cx.write_obj(rgid.0, &c.user_ns.show_gid(c.gid))?;
    cx.write_obj(egid.0, &c.user_ns.show_gid(c.egid))?;
    cx.write_obj(sgid.0, &c.user_ns.show_gid(c.sgid))
}

/// Returns the old id, whether or not the change was allowed.
fn setfsuid(cx: &mut Current, uid: u32) -> Result<u32> {
    let old = cx.creds();
    let shown = old.user_ns.show_uid(old.fsuid);
    let Ok(uid) = old.user_ns.uid(uid) else { return Ok(shown) };
    let allowed = [old.uid, old.euid, old.suid, old.fsuid].contains(&uid) || old.has_cap_here(cap::SETUID);
    if uid != KEEP && allowed && uid != old.fsuid {
        let mut new = Credentials::clone(&old);
        new.fsuid = uid;
        if new.securebits & NO_SETUID_FIXUP == 0 {
            let fs = CapSet(
                [cap::CHOWN, cap::DAC_OVERRIDE, cap::DAC_READ_SEARCH, cap::FOWNER, cap::FSETID, cap::MKNOD]
                    .iter()
                    .fold(1 << cap::LINUX_IMMUTABLE | 1 << 32, |set, c| set | 1 << c),
            );
            if old.user_ns.is_root(old.fsuid) {
                new.effective = CapSet(new.effective.0 & !fs.0);
            } else if old.user_ns.is_root(uid) {
                new.effective = new.effective.union(new.permitted.intersect(fs));
            }
        }
        cx.set_creds(Arc::new(new));
    }
    Ok(shown)
}

fn setfsgid(cx: &mut Current, gid: u32) -> Result<u32> {
    let old = cx.creds();
    let shown = old.user_ns.show_gid(old.fsgid);
    let Ok(gid) = old.user_ns.gid(gid) else { return Ok(shown) };
    let allowed = [old.gid, old.egid, old.sgid, old.fsgid].contains(&gid) || old.has_cap_here(cap::SETGID);
    if gid != KEEP && allowed && gid != old.fsgid {
        cx.set_creds(Arc::new(Credentials { fsgid: gid, ..Credentials::clone(&old) }));
    }
    Ok(shown)
}

fn getgroups(cx: &mut Current, size: i32, list: Ptr) -> Result<usize> {
    let creds = cx.creds();
    let groups: Vec<u32> = creds.groups.iter().map(|g| creds.user_ns.show_gid(*g)).collect();
    let room = usize::try_from(size).map_err(|_| Errno::EINVAL)?;
    if room > 0 {
        if room < groups.len() {
            return Err(Errno::EINVAL);
        }
        let bytes: Vec<u8> = groups.iter().flat_map(|g| g.to_ne_bytes()).collect();
        cx.copy_out(list.0, &bytes)?;
    }
    Ok(groups.len())
}

fn setgroups(cx: &mut Current, size: i32, list: Ptr) -> Result<()> {
    let creds = cx.creds();
    if !creds.has_cap_here(cap::SETGID) || !creds.user_ns.may_setgroups() {
        return Err(Errno::EPERM);
    }
    if !(0..=NGROUPS_MAX).contains(&size) {
        return Err(Errno::EINVAL);
    }
    let mut bytes = vec![0; usize::try_from(size).unwrap_or(0) * 4];
    cx.copy_in(list.0, &mut bytes)?;
    let groups: Result<Vec<u32>> = bytes
        .chunks_exact(4)
        .map(|b| b.iter().rev().fold(0_u32, |value, byte| value << 8 | u32::from(*byte)))
        .map(|gid| creds.user_ns.gid(gid))
        .collect();
    let mut groups = groups?;
    groups.sort_unstable();
    cx.set_creds(Arc::new(Credentials { groups: Arc::from(groups), ..Credentials::clone(&cx.creds()) }));
    Ok(())
}

/// Versions of the capability structures (`_LINUX_CAPABILITY_VERSION_*`) and their 32-bit words a set.
const VERSION_1: u32 = 0x1998_0330;
const VERSION_2: u32 = 0x2007_1026;
const VERSION_3: u32 = 0x2008_0522;

/// The number of 32-bit words of a set in the caller's version; an unknown version is answered with ours.
fn cap_words(cx: &Current, header: Ptr) -> Result<Option<(usize, i32)>> {
    let [version, pid] = cx.read_obj::<[u32; 2]>(header.0)?;
    match version {
        VERSION_1 => Ok(Some((1, pid.cast_signed()))),
        VERSION_2 | VERSION_3 => Ok(Some((2, pid.cast_signed()))),
        _ => {
            cx.write_obj(header.0, &VERSION_3)?;
            Ok(None)
        }
    }
}

fn capget(cx: &mut Current, header: Ptr, data: Ptr) -> Result<()> {
    let Some((words, pid)) = cap_words(cx, header)? else {
        return if data.is_null() { Ok(()) } else { Err(Errno::EINVAL) };
    };
    let creds = match pid {
        0 => cx.creds(),
        pid if pid < 0 => return Err(Errno::EINVAL),
        pid => cx.find_task(pid).ok_or(Errno::ESRCH)?.creds(),
    };
    if data.is_null() {
        return Ok(());
    }
    let mut out = Vec::new();
    for word in 0..words {
        for set in [creds.effective, creds.permitted, creds.inheritable] {
            let half = (set.0 >> (32 * word)) & u64::from(u32::MAX);
            out.extend_from_slice(&u32::try_from(half).unwrap_or(0).to_ne_bytes());
        }
    }
    cx.copy_out(data.0, &out)
}

fn capset(cx: &mut Current, header: Ptr, data: Ptr) -> Result<()> {
    let Some((words, pid)) = cap_words(cx, header)? else { return Err(Errno::EINVAL) };
    if pid != 0 && pid != cx.tid() {
        return Err(Errno::EPERM);
    }
    let mut raw = vec![0_u8; words * 12];
    cx.copy_in(data.0, &mut raw)?;
    let mut sets = [0_u64; 3];
    for (at, bytes) in raw.chunks_exact(4).enumerate() {
        let value = bytes.iter().rev().fold(0_u64, |value, byte| value << 8 | u64::from(*byte));
        if let Some(set) = sets.get_mut(at % 3) {
            *set |= value << (32 * (at / 3));
        }
    }
    let [effective, permitted, inheritable] = sets.map(|set| CapSet(set).intersect(CapSet::FULL));
    let old = cx.creds();
    let may_inherit =
        old.inheritable.union(if old.has_cap_here(cap::SETPCAP) { old.bounding } else { old.permitted });
    if !permitted.is_subset_of(old.permitted)
        || !effective.is_subset_of(permitted)
        || !inheritable.is_subset_of(may_inherit)
        || !inheritable.is_subset_of(old.inheritable.union(old.bounding))
    {
        return Err(Errno::EPERM);
    }
    let ambient = old.ambient.intersect(permitted).intersect(inheritable);
    cx.set_creds(Arc::new(Credentials {
        effective,
        permitted,
        inheritable,
        ambient,
        ..Credentials::clone(&old)
    }));
    Ok(())
}
