//! System V IPC: shmget(2), shmat(2), semop(2), msgsnd(2) and their kin.

use std::sync::Arc;

use abi::ipc::{
    IPC_NOWAIT, IpcPerm, MSG_COPY, MSG_EXCEPT, MSG_NOERROR, MsgInfo, MsqidDs, SHM_EXEC, SHM_HUGETLB,
    SHM_RDONLY, SHM_REMAP, SHM_RND, SemBuf, SemInfo, SemidDs, ShmLimits, ShmUse, ShmidDs, cmd,
};
use abi::time::Timespec;
use sentry_base::{Errno, Events, Nanos, Result, mono_now};
use sentry_ipc::{Entry, Limit, Pick, Try};
use sentry_kernel::{BlockEnd, Current, Restart, SysResult};
use sentry_mm::{MmapArgs, map_flags};
use sentry_vfs::{IoStart, cap};
use zerocopy::IntoBytes;

use crate::args::{Bits, Ptr};
use crate::table::syscalls;

syscalls! {
    29 shmget(key: i32, size: u64, flags: Bits) [sync, "no huge pages"];
    30 shmat(id: i32, addr: u64, flags: Bits) [sync];
    31 shmctl(id: i32, command: i32, buf: Ptr) [sync];
    67 shmdt(addr: u64) [sync];
    64 semget(key: i32, nsems: i32, flags: Bits) [sync];
    65 semop(id: i32, ops: Ptr, nr: usize) [wait];
    220 semtimedop(id: i32, ops: Ptr, nr: usize, timeout: Ptr) [wait];
    66 semctl(id: i32, num: i32, command: i32, arg: u64) [sync];
    68 msgget(key: i32, flags: Bits) [sync];
    69 msgsnd(id: i32, msg: Ptr, size: i64, flags: Bits) [wait];
    70 msgrcv(id: i32, msg: Ptr, size: i64, kind: i64, flags: Bits) [wait];
    71 msgctl(id: i32, command: i32, buf: Ptr) [sync];
}

const PAGE: u64 = 4096;
const READ: u32 = 0o444;
const WRITE: u32 = 0o222;

/// Owner and maker as the caller's user namespace names them.
fn show_perm(cx: &Current, perm: &mut IpcPerm) {
    let ns = &cx.creds().user_ns;
    (perm.uid, perm.gid) = (ns.show_uid(perm.uid), ns.show_gid(perm.gid));
    (perm.cuid, perm.cgid) = (ns.show_uid(perm.cuid), ns.show_gid(perm.cgid));
}

/// The owner that the caller names in an `IPC_SET`; `EINVAL` for one without a mapping.
fn known_perm(cx: &Current, mut perm: IpcPerm) -> Result<IpcPerm> {
    let ns = &cx.creds().user_ns;
    (perm.uid, perm.gid) = (ns.uid(perm.uid)?, ns.gid(perm.gid)?);
    Ok(perm)
}

/// A process's number as the caller sees it; 0 for none.
fn show_pid(cx: &Current, pid: i32) -> i32 {
    if pid == 0 { 0 } else { cx.show_pid(pid) }
}

// Shared memory.

fn shmget(cx: &mut Current, key: i32, size: u64, flags: Bits) -> Result<i32> {
    if flags.0 & SHM_HUGETLB != 0 {
        return Err(Errno::ENOMEM);
    }
    let memory = Arc::clone(cx.kernel().memory());
    let maker = cx.task.shm_maker();
    cx.ipc().shm.get(key, size, flags.0, &cx.creds(), &memory, (cx.pid(), maker))
}

fn shmat(cx: &mut Current, id: i32, addr: u64, flags: Bits) -> Result<u64> {
    let has = |bit| flags.0 & bit != 0;
    if id < 0 {
        return Err(Errno::EINVAL);
    }
    let mut at = addr;
    if !addr.is_multiple_of(PAGE) {
        if !has(SHM_RND) {
            return Err(Errno::EINVAL);
        }
        at = addr / PAGE * PAGE;
    }
    if at == 0 && has(SHM_REMAP) {
        return Err(Errno::EINVAL);
    }
    let segment = cx.ipc().shm.find(id)?;
    let writable = !has(SHM_RDONLY);
    let mut want = READ;
    let mut prot = libc::PROT_READ;
    if writable {
        want |= WRITE;
        prot |= libc::PROT_WRITE;
    }
    if has(SHM_EXEC) {
        want |= 0o111;
        prot |= libc::PROT_EXEC;
    }
    segment.perm().check(want, &cx.creds())?;
    let place = match (at, has(SHM_REMAP)) {
        (0, _) => 0,
        (_, true) => map_flags::FIXED,
        (_, false) => map_flags::FIXED_NOREPLACE,
    };
    let args = MmapArgs {
        addr: at,
        len: segment.size(),
        prot: prot.cast_unsigned(),
        flags: map_flags::SHARED | place,
        file: Some(segment.attach(writable, cx.pid())),
    };
    match cx.mm().mmap(&args, &cx.mm_limits()) {
        Err(Errno::EEXIST) => Err(Errno::EINVAL),
        other => other,
    }
}

fn shmdt(cx: &mut Current, addr: u64) -> Result<()> {
    if !addr.is_multiple_of(PAGE) {
        return Err(Errno::EINVAL);
    }
    let (mm, ipc) = (cx.mm(), cx.ipc());
    // The first mapping at or above that could be a part of one that began at `addr`.
    let maps = mm.maps();
    let part = |m: &&sentry_mm::MapInfo| m.range.start >= addr && m.range.start - addr == m.offset;
    let found = maps
        .iter()
        .filter(part)
        .find_map(|m| Some((m.identity, ipc.shm.of_mapping(m.identity)?)))
        .ok_or(Errno::EINVAL)?;
    let (identity, segment) = found;
    let end = addr.saturating_add(segment.size().next_multiple_of(PAGE));
    for m in maps.iter().filter(part).filter(|m| m.identity == identity && m.range.end <= end) {
        mm.munmap(m.range.start, m.range.len())?;
    }
    segment.detached(cx.pid());
    drop(segment);
    // Where the end of segments is forced, this may have been the last attachment.
    ipc.shm.sweep();
    Ok(())
}

fn shmctl(cx: &mut Current, id: i32, command: i32, buf: Ptr) -> Result<i32> {
    if id < 0 || command < 0 {
        return Err(Errno::EINVAL);
    }
    let (ipc, creds) = (cx.ipc(), cx.creds());
    match command {
        cmd::IPC_INFO => {
            let limits = ShmLimits {
                shmmax: ipc.limits.get(Limit::ShmMax),
                shmmin: 1,
                shmmni: ipc.limits.get(Limit::ShmMni),
                shmseg: ipc.limits.get(Limit::ShmMni),
                shmall: ipc.limits.get(Limit::ShmAll),
                ..ShmLimits::default()
            };
            cx.write_obj(buf.0, &limits)?;
            Ok(ipc.shm.max_index())
        }
        cmd::SHM_INFO => {
            let all = ipc.shm.all();
            let pages = all.iter().map(|s| s.size().div_ceil(PAGE)).sum();
            let used = ShmUse {
                used_ids: i32::try_from(all.len()).unwrap_or(i32::MAX),
                shm_tot: pages,
                ..ShmUse::default()
            };
            drop(all);
            cx.write_obj(buf.0, &used)?;
            Ok(ipc.shm.max_index())
        }
        cmd::IPC_STAT | cmd::SHM_STAT | cmd::SHM_STAT_ANY => {
            let segment = if command == cmd::IPC_STAT { ipc.shm.find(id)? } else { ipc.shm.at_index(id)? };
            let perm = segment.perm();
            if command != cmd::SHM_STAT_ANY {
                perm.check(READ, &creds)?;
            }
            let mut stat = segment.stat();
            drop(segment);
            show_perm(cx, &mut stat.perm);
            (stat.cpid, stat.lpid) = (show_pid(cx, stat.cpid), show_pid(cx, stat.lpid));
            cx.write_obj(buf.0, &stat)?;
            Ok(if command == cmd::IPC_STAT { 0 } else { perm.id })
        }
        cmd::IPC_SET => {
            let new: ShmidDs = cx.read_obj(buf.0)?;
            let segment = ipc.shm.find(id)?;
            segment.perm().check_owner(&creds)?;
            segment.set(&known_perm(cx, new.perm)?);
            Ok(0)
        }
        cmd::IPC_RMID => {
            let segment = ipc.shm.find(id)?;
            segment.perm().check_owner(&creds)?;
            ipc.shm.remove(segment);
            Ok(0)
        }
        cmd::SHM_LOCK | cmd::SHM_UNLOCK => {
            let segment = ipc.shm.find(id)?;
            let perm = segment.perm();
            let owner = creds.euid == perm.uid || creds.euid == perm.cuid;
            if !creds.has_cap(cap::IPC_LOCK)
                && !(owner && (command == cmd::SHM_UNLOCK || cx.mm_limits().memlock > 0))
            {
                return Err(Errno::EPERM);
            }
            segment.set_locked(command == cmd::SHM_LOCK);
            Ok(0)
        }
        _ => Err(Errno::EINVAL),
    }
}

// Semaphores.

fn semget(cx: &mut Current, key: i32, nsems: i32, flags: Bits) -> Result<i32> {
    cx.ipc().sem.get_set(key, nsems, flags.0, &cx.creds())
}

async fn semop(cx: &mut Current, id: i32, ops: Ptr, nr: usize) -> SysResult<()> {
    semtimedop(cx, id, ops, nr, Ptr(0)).await
}

async fn semtimedop(cx: &mut Current, id: i32, ops: Ptr, nr: usize, timeout: Ptr) -> SysResult<()> {
    if nr == 0 || id < 0 {
        return Err(Errno::EINVAL.into());
    }
    let ipc = cx.ipc();
    if nr > ipc.limits.count(Limit::SemOpm) {
        return Err(Errno::E2BIG.into());
    }
    let mut list = vec![SemBuf::default(); nr];
    cx.copy_in(ops.0, list.as_mut_slice().as_mut_bytes())?;
    let deadline: Option<Nanos> = if timeout.is_null() {
        None
    } else {
        let wait = cx.read_obj::<Timespec>(timeout.0)?.to_nanos().ok_or(Errno::EINVAL)?;
        Some(mono_now().saturating_add(wait))
    };
    let set = ipc.sem.find(id)?;
    if list.iter().any(|op| usize::from(op.num) >= set.len()) {
        return Err(Errno::EFBIG.into());
    }
    let want = if list.iter().any(|op| op.op != 0) { WRITE } else { READ };
    set.perm().check(want, &cx.creds())?;
    let undo =
        list.iter().any(|op| u32::from(op.flags) & abi::ipc::SEM_UNDO != 0).then(|| cx.sem_undo_list());
    let who = (cx.tid(), cx.pid());
    let attempt = |_: &sentry_kernel::Task| {
        Ok(match set.operate(&list, who, undo.as_ref())? {
            Try::Done => IoStart::Done(()),
            Try::Blocked => IoStart::WouldBlock,
        })
    };
    let end = cx.block_on(set.changed(), Events::IN, deadline, attempt).await;
    if end.is_err() {
        set.unblock(who.0);
    }
    end.map_err(|end| match end {
        BlockEnd::Errno(errno) => errno.into(),
        BlockEnd::TimedOut => Errno::EAGAIN.into(),
        // Never made again by itself.
        BlockEnd::Interrupted => Errno::EINTR.into(),
    })
}

fn semctl(cx: &mut Current, id: i32, num: i32, command: i32, arg: u64) -> Result<i32> {
    if id < 0 {
        return Err(Errno::EINVAL);
    }
    let (ipc, creds) = (cx.ipc(), cx.creds());
    match command {
        cmd::IPC_INFO | cmd::SEM_INFO => {
            let mut info = SemInfo {
                semmap: 1_024_000_000,
                semmni: ipc.limits.int(Limit::SemMni),
                semmns: ipc.limits.int(Limit::SemMns),
                semmnu: 1_024_000_000,
                semmsl: ipc.limits.int(Limit::SemMsl),
                semopm: ipc.limits.int(Limit::SemOpm),
                semume: 500,
                semusz: 20,
                semvmx: 32_767,
                semaem: 32_767,
            };
            if command == cmd::SEM_INFO {
                let sets = ipc.sem.all();
                info.semusz = i32::try_from(sets.len()).unwrap_or(i32::MAX);
                info.semaem = i32::try_from(sets.iter().map(|s| s.len()).sum::<usize>()).unwrap_or(i32::MAX);
            }
            cx.write_obj(arg, &info)?;
            Ok(ipc.sem.max_index())
        }
        cmd::IPC_STAT | cmd::SEM_STAT | cmd::SEM_STAT_ANY => {
            let set = if command == cmd::IPC_STAT { ipc.sem.find(id)? } else { ipc.sem.at_index(id)? };
            let perm = set.perm();
            if command != cmd::SEM_STAT_ANY {
                perm.check(READ, &creds)?;
            }
            let mut stat = set.stat();
            show_perm(cx, &mut stat.perm);
            cx.write_obj(arg, &stat)?;
            Ok(if command == cmd::IPC_STAT { 0 } else { perm.id })
        }
        cmd::IPC_SET => {
            let new: SemidDs = cx.read_obj(arg)?;
            let set = ipc.sem.find(id)?;
            set.perm().check_owner(&creds)?;
            set.set_perm(&known_perm(cx, new.perm)?);
            Ok(0)
        }
        cmd::IPC_RMID => {
            let set = ipc.sem.find(id)?;
            set.perm().check_owner(&creds)?;
            if ipc.sem.remove(&set) {
                set.end();
            }
            Ok(0)
        }
        cmd::GETALL => {
            let set = ipc.sem.find(id)?;
            set.perm().check(READ, &creds)?;
            cx.copy_out(arg, set.values().as_slice().as_bytes())?;
            Ok(0)
        }
        cmd::SETALL => {
            let set = ipc.sem.find(id)?;
            set.perm().check(WRITE, &creds)?;
            let mut values = vec![0_u16; set.len()];
            cx.copy_in(arg, values.as_mut_slice().as_mut_bytes())?;
            set.set_values(&values, cx.pid())?;
            Ok(0)
        }
        cmd::GETVAL | cmd::GETPID | cmd::GETNCNT | cmd::GETZCNT => {
            let set = ipc.sem.find(id)?;
            set.perm().check(READ, &creds)?;
            let at = usize::try_from(num).map_err(|_| Errno::EINVAL)?;
            let (value, pid) = set.value(at)?;
            let place = u16::try_from(num).map_err(|_| Errno::EINVAL)?;
            Ok(match command {
                cmd::GETVAL => value,
                cmd::GETPID => show_pid(cx, pid),
                cmd::GETNCNT => set.waiting(place, false),
                _ => set.waiting(place, true),
            })
        }
        cmd::SETVAL => {
            let set = ipc.sem.find(id)?;
            #[allow(clippy::cast_possible_truncation, reason = "the union's member is an int")]
            let value = arg as i32;
            if !(0..=32_767).contains(&value) {
                return Err(Errno::ERANGE);
            }
            set.perm().check(WRITE, &creds)?;
            let at = usize::try_from(num).map_err(|_| Errno::EINVAL)?;
            set.set_value(at, value, cx.pid())?;
            Ok(0)
        }
        _ => Err(Errno::EINVAL),
    }
}

// Message queues.

fn msgget(cx: &mut Current, key: i32, flags: Bits) -> Result<i32> {
    cx.ipc().msg.get_queue(key, flags.0, &cx.creds())
}

async fn msgsnd(cx: &mut Current, id: i32, msg: Ptr, size: i64, flags: Bits) -> SysResult<()> {
    let kind: i64 = cx.read_obj(msg.0)?;
    let ipc = cx.ipc();
    let longest = ipc.limits.count(Limit::MsgMax);
    let size = usize::try_from(size).ok().filter(|s| *s <= longest).ok_or(Errno::EINVAL)?;
    if id < 0 || kind < 1 {
        return Err(Errno::EINVAL.into());
    }
    let mut text = vec![0; size];
    cx.copy_in(msg.0.wrapping_add(8), &mut text)?;
    let text: Arc<[u8]> = Arc::from(text);
    let queue = ipc.msg.find(id)?;
    let (pid, creds) = (cx.pid(), cx.creds());
    if flags.0 & IPC_NOWAIT != 0 {
        return match queue.try_send(kind, &text, pid, &creds)? {
            IoStart::Done(()) => Ok(()),
            IoStart::WouldBlock => Err(Errno::EAGAIN.into()),
        };
    }
    let attempt = |_: &sentry_kernel::Task| queue.try_send(kind, &text, pid, &creds);
    let end = cx.block_on(queue.changed(), Events::OUT, None, attempt).await;
    end.map_err(|end| end.or_restart(Restart::NoHand))
}

async fn msgrcv(cx: &mut Current, id: i32, msg: Ptr, size: i64, kind: i64, flags: Bits) -> SysResult<usize> {
    let has = |bit| flags.0 & bit != 0;
    let room = usize::try_from(size).map_err(|_| Errno::EINVAL)?;
    if id < 0 {
        return Err(Errno::EINVAL.into());
    }
    let pick = if has(MSG_COPY) {
        if has(MSG_EXCEPT) || !has(IPC_NOWAIT) {
            return Err(Errno::EINVAL.into());
        }
        Pick::Copy(usize::try_from(kind).unwrap_or(usize::MAX))
    } else {
        match kind {
            0 => Pick::First,
            1.. if has(MSG_EXCEPT) => Pick::Not(kind),
            1.. => Pick::Type(kind),
            _ => Pick::UpTo(kind.checked_neg().unwrap_or(i64::MAX)),
        }
    };
    let queue = cx.ipc().msg.find(id)?;
    let (pid, creds) = (cx.pid(), cx.creds());
    let attempt = |_: &sentry_kernel::Task| queue.try_receive(pick, room, has(MSG_NOERROR), pid, &creds);
    let received = if has(IPC_NOWAIT) {
        match attempt(&cx.task)? {
            IoStart::Done(received) => received,
            IoStart::WouldBlock => return Err(Errno::ENOMSG.into()),
        }
    } else {
        let end = cx.block_on(queue.changed(), Events::IN, None, attempt).await;
        end.map_err(|end| end.or_restart(Restart::NoHand))?
    };
    // Linux, too, has taken the message when the copy fails.
    cx.write_obj(msg.0, &received.kind)?;
    cx.copy_out(msg.0.wrapping_add(8), &received.text)?;
    Ok(received.text.len())
}

fn msgctl(cx: &mut Current, id: i32, command: i32, buf: Ptr) -> Result<i32> {
    if id < 0 || command < 0 {
        return Err(Errno::EINVAL);
    }
    let (ipc, creds) = (cx.ipc(), cx.creds());
    match command {
        cmd::IPC_INFO | cmd::MSG_INFO => {
            let mut info = MsgInfo {
                msgpool: 512_000,
                msgmap: 16_384,
                msgmax: ipc.limits.int(Limit::MsgMax),
                msgmnb: ipc.limits.int(Limit::MsgMnb),
                msgmni: ipc.limits.int(Limit::MsgMni),
                msgssz: 16,
                msgtql: 16_384,
                msgseg: 0xffff,
                pad: 0,
            };
            if command == cmd::MSG_INFO {
                let stats: Vec<MsqidDs> = ipc.msg.all().iter().map(|q| q.stat()).collect();
                let small = |sum: u64| i32::try_from(sum).unwrap_or(i32::MAX);
                info.msgpool = small(stats.len() as u64);
                info.msgmap = small(stats.iter().map(|s| s.qnum).sum());
                info.msgtql = small(stats.iter().map(|s| s.cbytes).sum());
            }
            cx.write_obj(buf.0, &info)?;
            Ok(ipc.msg.max_index())
        }
        cmd::IPC_STAT | cmd::MSG_STAT | cmd::MSG_STAT_ANY => {
            let queue = if command == cmd::IPC_STAT { ipc.msg.find(id)? } else { ipc.msg.at_index(id)? };
            let perm = queue.perm();
            if command != cmd::MSG_STAT_ANY {
                perm.check(READ, &creds)?;
            }
            let mut stat = queue.stat();
            show_perm(cx, &mut stat.perm);
            (stat.lspid, stat.lrpid) = (show_pid(cx, stat.lspid), show_pid(cx, stat.lrpid));
            cx.write_obj(buf.0, &stat)?;
            Ok(if command == cmd::IPC_STAT { 0 } else { perm.id })
        }
        cmd::IPC_SET => {
            let new: MsqidDs = cx.read_obj(buf.0)?;
            let queue = ipc.msg.find(id)?;
            queue.perm().check_owner(&creds)?;
            queue.set(&known_perm(cx, new.perm)?, new.qbytes, &creds, &ipc.limits)?;
            Ok(0)
        }
        cmd::IPC_RMID => {
            let queue = ipc.msg.find(id)?;
            queue.perm().check_owner(&creds)?;
            if ipc.msg.remove(&queue) {
                queue.end();
            }
            Ok(0)
        }
        _ => Err(Errno::EINVAL),
    }
}
