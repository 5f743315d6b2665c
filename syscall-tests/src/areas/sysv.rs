//! System V IPC: shmget(2), semop(2), msgsnd(2) and their kin.

use crate::harness::Outcome;
use crate::sys::{self, Map, fork};
use libc::*;

cases![
    shm_is_shared_with_children,
    shm_is_found_by_key,
    shm_get_errors,
    shm_stat_counts_attachments,
    shm_stat_fields,
    shm_removed_lives_until_the_last_detach,
    shm_removed_key_is_free_at_once,
    shm_read_only_attachment_faults_on_write,
    shm_address_rules,
    shm_remap_replaces,
    shm_detach_errors,
    shm_detach_after_partial_unmap,
    shm_permissions,
    shm_set_changes_mode_and_owner,
    shm_exec_detaches,
    shm_memory_is_zero_and_paged,
    shm_info_calls,
    shm_maps_line,
    shm_proc_table_lists_it,
    shm_ids_differ_after_reuse,
    sem_values_are_set_and_read,
    sem_get_errors,
    sem_operations_are_atomic,
    sem_waits_for_zero_and_for_more,
    sem_nowait_is_eagain,
    sem_times_out_with_eagain,
    sem_interrupted_is_eintr_even_with_sa_restart,
    sem_removed_is_eidrm,
    sem_limits,
    sem_undo_at_exit,
    sem_undo_is_forgotten_by_setval,
    sem_undo_is_not_inherited,
    sem_undo_of_a_thread_waits_for_the_process,
    sem_counts_waiters,
    sem_getpid_names_the_last,
    sem_ctl_errors,
    sem_permissions,
    sem_stat_times,
    msg_keeps_order_and_types,
    msg_negative_type_takes_the_lowest,
    msg_except_and_noerror,
    msg_copy_leaves_it,
    msg_too_long_is_e2big,
    msg_full_queue_is_eagain_or_waits,
    msg_send_errors,
    msg_receive_errors,
    msg_waits_for_a_sender,
    msg_removed_is_eidrm,
    msg_interrupted_is_eintr,
    msg_stat_fields,
    msg_set_needs_the_right_for_more,
    msg_permissions,
    msg_zero_length,
    rmid_needs_the_owner,
    stat_by_index,
];

struct Shm(i32);

impl Drop for Shm {
    fn drop(&mut self) {
        unsafe { shmctl(self.0, IPC_RMID, std::ptr::null_mut()) };
    }
}

struct Sem(i32);

impl Drop for Sem {
    fn drop(&mut self) {
        unsafe { semctl(self.0, 0, IPC_RMID) };
    }
}

struct Msg(i32);

impl Drop for Msg {
    fn drop(&mut self) {
        unsafe { msgctl(self.0, IPC_RMID, std::ptr::null_mut()) };
    }
}

/// A key that no other case uses at the same time.
fn key(salt: i32) -> i32 {
    0x4000_0000 | (unsafe { getpid() } << 6) | salt
}

fn shm(size: usize) -> Result<Shm, String> {
    Ok(Shm(ok!(shmget(IPC_PRIVATE, size, 0o600))))
}

fn sem(n: i32) -> Result<Sem, String> {
    Ok(Sem(ok!(semget(IPC_PRIVATE, n, 0o600))))
}

fn msg() -> Result<Msg, String> {
    Ok(Msg(ok!(msgget(IPC_PRIVATE, 0o600))))
}

fn attach(id: i32, flags: i32) -> Result<*mut u8, String> {
    Ok(ok!(shmat(id, std::ptr::null(), flags)).cast())
}

fn stat(id: i32) -> Result<shmid_ds, String> {
    let mut ds = unsafe { std::mem::zeroed() };
    ok!(shmctl(id, IPC_STAT, &raw mut ds));
    Ok(ds)
}

fn shm_is_shared_with_children() -> Outcome {
    let seg = shm(4096)?;
    let p = attach(seg.0, 0)?;
    fork(|| {
        unsafe { p.write(42) };
        Ok(())
    })?
    .ok()?;
    same!(unsafe { p.read() }, 42);
    ok!(shmdt(p.cast()));
    Ok(())
}

fn shm_is_found_by_key() -> Outcome {
    let k = key(1);
    fails!(ENOENT, shmget(k, 100, 0o600));
    let seg = Shm(ok!(shmget(k, 100, 0o600 | IPC_CREAT | IPC_EXCL)));
    same!(ok!(shmget(k, 100, 0o600)), seg.0);
    same!(ok!(shmget(k, 0, 0)), seg.0);
    same!(ok!(shmget(k, 50, 0o600 | IPC_CREAT)), seg.0);
    fails!(EEXIST, shmget(k, 100, 0o600 | IPC_CREAT | IPC_EXCL));
    fails!(EINVAL, shmget(k, 5000, 0o600));
    Ok(())
}

fn shm_get_errors() -> Outcome {
    fails!(EINVAL, shmget(IPC_PRIVATE, 0, 0o600));
    fails!(EINVAL, shmget(IPC_PRIVATE, usize::MAX, 0o600));
    fails!(EINVAL, shmctl(-1, IPC_STAT, std::ptr::null_mut()));
    // A number that is none: one of an unused place would do, but who knows the places of others.
    fails!(EINVAL, shmctl(-2, IPC_RMID, std::ptr::null_mut()));
    let seg = shm(10)?;
    fails!(EINVAL, shmctl(seg.0, 77, std::ptr::null_mut()));
    fails!(EFAULT, shmctl(seg.0, IPC_STAT, std::ptr::dangling_mut::<shmid_ds>()));
    Ok(())
}

fn shm_stat_counts_attachments() -> Outcome {
    let seg = shm(8192)?;
    same!(stat(seg.0)?.shm_nattch, 0);
    let a = attach(seg.0, 0)?;
    let b = attach(seg.0, 0)?;
    same!(stat(seg.0)?.shm_nattch, 2);
    let (rd, wr) = sys::pipe()?;
    let kid = fork(|| {
        sys::fd_read(&rd, 1)?;
        Ok(())
    })?;
    same!(stat(seg.0)?.shm_nattch, 4);
    sys::fd_write(&wr, b"x")?;
    kid.ok()?;
    sys::eventually("the child's attachments end", || stat(seg.0).is_ok_and(|s| s.shm_nattch == 2))?;
    ok!(shmdt(a.cast()));
    ok!(shmdt(b.cast()));
    same!(stat(seg.0)?.shm_nattch, 0);
    Ok(())
}

fn shm_stat_fields() -> Outcome {
    let k = key(2);
    let seg = Shm(ok!(shmget(k, 1234, 0o640 | IPC_CREAT)));
    let s = stat(seg.0)?;
    let me = unsafe { getpid() };
    same!(s.shm_segsz, 1234);
    same!((s.shm_cpid, s.shm_lpid), (me, 0));
    same!((s.shm_atime, s.shm_dtime), (0, 0));
    want!(s.shm_ctime > 0, "no ctime");
    same!((s.shm_perm.uid, s.shm_perm.cuid), (0, 0));
    same!(i32::from(s.shm_perm.mode), 0o640);
    same!(s.shm_perm.__key, k);
    let p = attach(seg.0, 0)?;
    let s = stat(seg.0)?;
    want!(s.shm_atime > 0 && s.shm_lpid == me, "atime {} lpid {}", s.shm_atime, s.shm_lpid);
    ok!(shmdt(p.cast()));
    want!(stat(seg.0)?.shm_dtime > 0, "no dtime");
    Ok(())
}

fn shm_removed_lives_until_the_last_detach() -> Outcome {
    let seg = shm(4096)?;
    let p = attach(seg.0, 0)?;
    ok!(shmctl(seg.0, IPC_RMID, std::ptr::null_mut()));
    unsafe { p.write(7) };
    // By its id it can still be attached.
    let q = attach(seg.0, 0)?;
    same!(unsafe { q.read() }, 7);
    let s = stat(seg.0)?;
    same!(i32::from(s.shm_perm.mode) & 0o1000, 0o1000);
    same!(s.shm_nattch, 2);
    ok!(shmdt(q.cast()));
    ok!(shmdt(p.cast()));
    let mut gone: shmid_ds = unsafe { std::mem::zeroed() };
    fails!(EINVAL, shmctl(seg.0, IPC_STAT, &raw mut gone));
    Ok(())
}

fn shm_removed_key_is_free_at_once() -> Outcome {
    let k = key(3);
    let first = Shm(ok!(shmget(k, 100, 0o600 | IPC_CREAT)));
    let p = attach(first.0, 0)?;
    ok!(shmctl(first.0, IPC_RMID, std::ptr::null_mut()));
    let second = Shm(ok!(shmget(k, 100, 0o600 | IPC_CREAT | IPC_EXCL)));
    want!(first.0 != second.0, "the same id");
    ok!(shmdt(p.cast()));
    Ok(())
}

fn shm_read_only_attachment_faults_on_write() -> Outcome {
    let seg = shm(4096)?;
    let p = attach(seg.0, SHM_RDONLY)?;
    same!(unsafe { p.read() }, 0);
    sys::dies_of(SIGSEGV, || unsafe { p.write_volatile(1) })?;
    fails!(EACCES, mprotect(p.cast(), 4096, PROT_READ | PROT_WRITE));
    ok!(shmdt(p.cast()));
    Ok(())
}

fn shm_address_rules() -> Outcome {
    let seg = shm(4096)?;
    let hole = Map::anon(16 * 4096)?;
    let at = hole.at(4 * 4096);
    ok!(munmap(at.cast(), 4 * 4096));
    let want: *const c_void = at.cast_const().cast();
    fails!(EINVAL, shmat(seg.0, want.wrapping_byte_add(100), 0));
    same!(ok!(shmat(seg.0, want.wrapping_byte_add(100), SHM_RND)).cast::<u8>(), at);
    // Something is there now.
    fails!(EINVAL, shmat(seg.0, want, 0));
    fails!(EINVAL, shmat(seg.0, std::ptr::null(), SHM_REMAP));
    ok!(shmdt(want));
    same!(ok!(shmat(seg.0, want, 0)).cast::<u8>(), at);
    ok!(shmdt(want));
    Ok(())
}

fn shm_remap_replaces() -> Outcome {
    let seg = shm(4096)?;
    let map = Map::anon(2 * 4096)?;
    map.set(0, 9);
    map.set(4096, 8);
    same!(ok!(shmat(seg.0, map.at(0).cast(), SHM_REMAP)).cast::<u8>(), map.at(0));
    same!((map.get(0), map.get(4096)), (0, 8));
    ok!(shmdt(map.at(0).cast()));
    Ok(())
}

fn shm_detach_errors() -> Outcome {
    let map = Map::anon(4096)?;
    fails!(EINVAL, shmdt(map.at(0).cast()));
    fails!(EINVAL, shmdt(map.at(1).cast()));
    fails!(EINVAL, shmdt(std::ptr::null()));
    Ok(())
}

fn shm_detach_after_partial_unmap() -> Outcome {
    let seg = shm(3 * 4096)?;
    let p = attach(seg.0, 0)?;
    ok!(munmap(p.wrapping_add(4096).cast(), 4096));
    same!(stat(seg.0)?.shm_nattch, 2);
    ok!(shmdt(p.cast()));
    same!(stat(seg.0)?.shm_nattch, 0);
    Ok(())
}

fn shm_permissions() -> Outcome {
    let seg = shm(4096)?;
    let open = Shm(ok!(shmget(key(4), 4096, 0o644 | IPC_CREAT)));
    fork(|| {
        sys::drop_root()?;
        fails!(EACCES, shmat(seg.0, std::ptr::null(), 0));
        let mut ds: shmid_ds = unsafe { std::mem::zeroed() };
        fails!(EACCES, shmctl(seg.0, IPC_STAT, &raw mut ds));
        fails!(EPERM, shmctl(seg.0, IPC_RMID, std::ptr::null_mut()));
        fails!(EACCES, shmat(open.0, std::ptr::null(), 0));
        ok!(shmat(open.0, std::ptr::null(), SHM_RDONLY));
        fails!(EACCES, shmget(key_of_parent(4), 0, 0o666));
        Ok(())
    })?
    .ok()
}

fn key_of_parent(salt: i32) -> i32 {
    0x4000_0000 | (unsafe { getppid() } << 6) | salt
}

fn shm_set_changes_mode_and_owner() -> Outcome {
    let seg = shm(4096)?;
    let mut s = stat(seg.0)?;
    s.shm_perm.uid = 1234;
    s.shm_perm.gid = 77;
    s.shm_perm.mode = 0o7644;
    ok!(shmctl(seg.0, IPC_SET, &raw mut s));
    let s = stat(seg.0)?;
    same!((s.shm_perm.uid, s.shm_perm.gid, s.shm_perm.cuid), (1234, 77, 0));
    same!(i32::from(s.shm_perm.mode), 0o644);
    fork(|| {
        sys::drop_root()?;
        // Now the owner.
        ok!(shmctl(seg.0, IPC_RMID, std::ptr::null_mut()));
        Ok(())
    })?
    .ok()
}

fn shm_exec_detaches() -> Outcome {
    let seg = shm(4096)?;
    let p = attach(seg.0, 0)?;
    let (out, status) = sys::helper(&["args", "x"], &[], || Ok(()))?;
    same!((out.as_str(), status), ("x\n", 0));
    same!(stat(seg.0)?.shm_nattch, 1);
    ok!(shmdt(p.cast()));
    Ok(())
}

fn shm_memory_is_zero_and_paged() -> Outcome {
    let seg = shm(5000)?;
    let p = attach(seg.0, 0)?;
    let bytes = unsafe { std::slice::from_raw_parts_mut(p, 8192) };
    want!(bytes.iter().all(|b| *b == 0), "not zero");
    bytes[8191] = 1;
    ok!(shmdt(p.cast()));
    let p = attach(seg.0, 0)?;
    same!(unsafe { p.add(8191).read() }, 1);
    ok!(shmdt(p.cast()));
    Ok(())
}

fn shm_info_calls() -> Outcome {
    let seg = shm(4096)?;
    let mut info = [0u64; 9];
    let top = ok!(shmctl(0, IPC_INFO, info.as_mut_ptr().cast()));
    want!(info[0] > 1 << 40 && info[1] == 1 && info[2] == 4096, "{info:?}");
    want!(top >= seg.0 & 0x7fff, "highest index {top}");
    let mut used = [0u64; 6];
    ok!(shmctl(0, SHM_INFO, used.as_mut_ptr().cast()));
    want!(used[0] as u32 >= 1 && used[1] >= 1, "{used:?}");
    Ok(())
}

const SHM_INFO: i32 = 14;

fn shm_maps_line() -> Outcome {
    let k = key(5);
    let seg = Shm(ok!(shmget(k, 4096, 0o600 | IPC_CREAT)));
    let p = attach(seg.0, 0)?;
    let maps = sys::slurp("/proc/self/maps")?;
    let line = maps.lines().find(|l| l.starts_with(&format!("{:x}-", p as usize))).unwrap_or("");
    want!(line.contains("rw-s") && line.ends_with(&format!("/SYSV{k:08x} (deleted)")), "{line:?}");
    ok!(shmdt(p.cast()));
    Ok(())
}

fn shm_proc_table_lists_it() -> Outcome {
    let seg = shm(4321)?;
    let table = sys::slurp("/proc/sysvipc/shm")?;
    want!(table.starts_with("       key      shmid perms"), "{table:?}");
    let id = seg.0.to_string();
    let line = table.lines().find(|l| l.split_whitespace().nth(1) == Some(&id)).unwrap_or("");
    let fields: Vec<&str> = line.split_whitespace().collect();
    same!(fields.get(2..4), Some(&["600", "4321"][..]));
    for (path, head) in [("/proc/sysvipc/sem", "semid"), ("/proc/sysvipc/msg", "msqid")] {
        want!(sys::slurp(path)?.contains(head), "{path}");
    }
    Ok(())
}

fn shm_ids_differ_after_reuse() -> Outcome {
    let first = ok!(shmget(IPC_PRIVATE, 10, 0o600));
    ok!(shmctl(first, IPC_RMID, std::ptr::null_mut()));
    let second = shm(10)?;
    want!(first != second.0, "the id came back at once");
    Ok(())
}

// Semaphores.

const UNDO: i16 = SEM_UNDO as i16;
const NOWAIT: i16 = IPC_NOWAIT as i16;

fn op(num: u16, change: i16, flags: i16) -> sembuf {
    sembuf { sem_num: num, sem_op: change, sem_flg: flags }
}

fn run(id: i32, ops: &[sembuf]) -> i32 {
    let mut ops = ops.to_vec();
    unsafe { semop(id, ops.as_mut_ptr(), ops.len()) }
}

fn ctl(id: i32, num: i32, cmd: i32, arg: usize) -> i32 {
    unsafe { semctl(id, num, cmd, arg) }
}

fn val(id: i32, num: i32) -> i32 {
    ctl(id, num, GETVAL, 0)
}

const GETPID: i32 = 11;
const GETVAL: i32 = 12;
const GETALL: i32 = 13;
const GETNCNT: i32 = 14;
const GETZCNT: i32 = 15;
const SETVAL: i32 = 16;
const SETALL: i32 = 17;

fn sem_values_are_set_and_read() -> Outcome {
    let s = sem(3)?;
    ok!(ctl(s.0, 1, SETVAL, 5));
    same!((val(s.0, 0), val(s.0, 1), val(s.0, 2)), (0, 5, 0));
    let all: [u16; 3] = [7, 8, 9];
    ok!(ctl(s.0, 0, SETALL, all.as_ptr() as usize));
    let mut got = [0u16; 3];
    ok!(ctl(s.0, 0, GETALL, got.as_mut_ptr() as usize));
    same!(got, all);
    Ok(())
}

fn sem_get_errors() -> Outcome {
    fails!(EINVAL, semget(IPC_PRIVATE, 0, 0o600));
    fails!(EINVAL, semget(IPC_PRIVATE, -1, 0o600));
    fails!(EINVAL, semget(IPC_PRIVATE, 32001, 0o600));
    let k = key(6);
    fails!(ENOENT, semget(k, 1, 0o600));
    let s = Sem(ok!(semget(k, 2, 0o600 | IPC_CREAT)));
    same!(ok!(semget(k, 0, 0)), s.0);
    fails!(EINVAL, semget(k, 3, 0));
    fails!(EEXIST, semget(k, 2, IPC_CREAT | IPC_EXCL));
    Ok(())
}

fn sem_operations_are_atomic() -> Outcome {
    let s = sem(2)?;
    ok!(ctl(s.0, 0, SETVAL, 2));
    fails!(EAGAIN, run(s.0, &[op(0, -1, 0), op(1, -1, NOWAIT)]));
    same!(val(s.0, 0), 2);
    ok!(run(s.0, &[op(0, -2, 0), op(1, 3, 0), op(0, 0, 0)]));
    same!((val(s.0, 0), val(s.0, 1)), (0, 3));
    Ok(())
}

fn sem_waits_for_zero_and_for_more() -> Outcome {
    let s = sem(1)?;
    ok!(ctl(s.0, 0, SETVAL, 1));
    let zero = fork(|| {
        ok!(run(s.0, &[op(0, 0, 0)]));
        Ok(())
    })?;
    let more = fork(|| {
        ok!(run(s.0, &[op(0, -5, 0)]));
        Ok(())
    })?;
    sys::eventually("both wait", || ctl(s.0, 0, GETNCNT, 0) == 1 && ctl(s.0, 0, GETZCNT, 0) == 1)?;
    ok!(run(s.0, &[op(0, 4, 0)]));
    more.ok()?;
    zero.ok()?;
    same!(val(s.0, 0), 0);
    Ok(())
}

fn sem_nowait_is_eagain() -> Outcome {
    let s = sem(1)?;
    fails!(EAGAIN, run(s.0, &[op(0, -1, NOWAIT)]));
    ok!(ctl(s.0, 0, SETVAL, 1));
    fails!(EAGAIN, run(s.0, &[op(0, 0, NOWAIT)]));
    Ok(())
}

fn sem_times_out_with_eagain() -> Outcome {
    let s = sem(1)?;
    let start = sys::clock(CLOCK_MONOTONIC)?;
    let mut ops = [op(0, -1, 0)];
    let short = sys::ts(30);
    fails!(EAGAIN, syscall(SYS_semtimedop, s.0, ops.as_mut_ptr(), 1, &raw const short));
    want!(sys::clock(CLOCK_MONOTONIC)? - start >= 30_000_000, "too early");
    let bad = timespec { tv_sec: 0, tv_nsec: -1 };
    fails!(EINVAL, syscall(SYS_semtimedop, s.0, ops.as_mut_ptr(), 1, &raw const bad));
    Ok(())
}

fn sem_interrupted_is_eintr_even_with_sa_restart() -> Outcome {
    let s = sem(1)?;
    sys::on_signal(SIGALRM, sys::count_handler, SA_RESTART)?;
    sys::tick(20)?;
    fails!(EINTR, run(s.0, &[op(0, -1, 0)]));
    Ok(())
}

fn sem_removed_is_eidrm() -> Outcome {
    let s = sem(1)?;
    let kid = fork(|| {
        fails!(EIDRM, run(s.0, &[op(0, -1, 0)]));
        fails!(EINVAL, run(s.0, &[op(0, -1, 0)]));
        Ok(())
    })?;
    sys::eventually("the child waits", || ctl(s.0, 0, GETNCNT, 0) == 1)?;
    ok!(ctl(s.0, 0, IPC_RMID, 0));
    kid.ok()
}

fn sem_limits() -> Outcome {
    let s = sem(1)?;
    fails!(EINVAL, run(s.0, &[]));
    fails!(E2BIG, run(s.0, &vec![op(0, 1, 0); 501]));
    fails!(EFBIG, run(s.0, &[op(1, 1, 0)]));
    ok!(ctl(s.0, 0, SETVAL, 32767));
    fails!(ERANGE, run(s.0, &[op(0, 1, 0)]));
    fails!(ERANGE, ctl(s.0, 0, SETVAL, 32768));
    fails!(ERANGE, ctl(s.0, 0, SETVAL, -1i32 as usize));
    let all = [40000u16];
    fails!(ERANGE, ctl(s.0, 0, SETALL, all.as_ptr() as usize));
    fails!(EFAULT, syscall(SYS_semop, s.0, 8usize, 1));
    Ok(())
}

fn sem_undo_at_exit() -> Outcome {
    let s = sem(2)?;
    ok!(ctl(s.0, 0, SETVAL, 3));
    fork(|| {
        ok!(run(s.0, &[op(0, -2, UNDO), op(1, 4, UNDO)]));
        ok!(run(s.0, &[op(1, 1, 0)]));
        same!((val(s.0, 0), val(s.0, 1)), (1, 5));
        Ok(())
    })?
    .ok()?;
    same!((val(s.0, 0), val(s.0, 1)), (3, 1));
    Ok(())
}

fn sem_undo_is_forgotten_by_setval() -> Outcome {
    let s = sem(1)?;
    fork(|| {
        ok!(run(s.0, &[op(0, 4, UNDO)]));
        ok!(ctl(s.0, 0, SETVAL, 9));
        Ok(())
    })?
    .ok()?;
    same!(val(s.0, 0), 9);
    Ok(())
}

fn sem_undo_is_not_inherited() -> Outcome {
    let s = sem(1)?;
    ok!(run(s.0, &[op(0, 4, UNDO)]));
    fork(|| Ok(()))?.ok()?;
    same!(val(s.0, 0), 4);
    // But it stays over exec: the helper takes nothing back, the end of this process will.
    Ok(())
}

fn sem_undo_of_a_thread_waits_for_the_process() -> Outcome {
    let s = sem(1)?;
    let id = s.0;
    fork(|| {
        let got = std::thread::spawn(move || run(id, &[op(0, 4, UNDO)])).join();
        same!(got.map_err(|_| "no join".to_string())?, 0);
        same!(val(id, 0), 4);
        Ok(())
    })?
    .ok()?;
    same!(val(id, 0), 0);
    Ok(())
}

fn sem_counts_waiters() -> Outcome {
    let s = sem(2)?;
    let kids = [
        fork(|| {
            run(s.0, &[op(1, -1, 0)]);
            Ok(())
        })?,
        fork(|| {
            run(s.0, &[op(1, -1, 0)]);
            Ok(())
        })?,
    ];
    sys::eventually("two wait", || ctl(s.0, 1, GETNCNT, 0) == 2)?;
    same!((ctl(s.0, 0, GETNCNT, 0), ctl(s.0, 1, GETZCNT, 0)), (0, 0));
    ok!(run(s.0, &[op(1, 1, 0)]));
    sys::eventually("one waits", || ctl(s.0, 1, GETNCNT, 0) == 1)?;
    ok!(run(s.0, &[op(1, 1, 0)]));
    for kid in kids {
        kid.ok()?;
    }
    Ok(())
}

fn sem_getpid_names_the_last() -> Outcome {
    let s = sem(1)?;
    same!(ctl(s.0, 0, GETPID, 0), 0);
    let kid = fork(|| {
        ok!(run(s.0, &[op(0, 1, 0)]));
        Ok(())
    })?;
    let pid = kid.pid;
    kid.ok()?;
    same!(ctl(s.0, 0, GETPID, 0), pid);
    ok!(ctl(s.0, 0, SETVAL, 1));
    same!(ctl(s.0, 0, GETPID, 0), unsafe { getpid() });
    Ok(())
}

fn sem_ctl_errors() -> Outcome {
    let s = sem(1)?;
    fails!(EINVAL, ctl(s.0, 1, GETVAL, 0));
    fails!(EINVAL, ctl(s.0, -1, GETVAL, 0));
    fails!(EINVAL, ctl(s.0, 0, 99, 0));
    fails!(EINVAL, ctl(-1, 0, GETVAL, 0));
    fails!(EFAULT, ctl(s.0, 0, GETALL, 8));
    Ok(())
}

fn sem_permissions() -> Outcome {
    let s = Sem(ok!(semget(IPC_PRIVATE, 1, 0o644)));
    fork(|| {
        sys::drop_root()?;
        same!(val(s.0, 0), 0);
        ok!(run(s.0, &[op(0, 0, 0)]));
        fails!(EACCES, run(s.0, &[op(0, 1, 0)]));
        fails!(EACCES, ctl(s.0, 0, SETVAL, 1));
        fails!(EPERM, ctl(s.0, 0, IPC_RMID, 0));
        Ok(())
    })?
    .ok()
}

fn sem_stat_times() -> Outcome {
    let s = sem(4)?;
    let mut ds: semid_ds = unsafe { std::mem::zeroed() };
    ok!(ctl(s.0, 0, IPC_STAT, &raw mut ds as usize));
    same!((ds.sem_nsems, ds.sem_otime), (4, 0));
    want!(ds.sem_ctime > 0, "no ctime");
    ok!(run(s.0, &[op(0, 1, 0)]));
    ok!(ctl(s.0, 0, IPC_STAT, &raw mut ds as usize));
    want!(ds.sem_otime > 0, "no otime");
    Ok(())
}

// Messages.

#[repr(C)]
struct Text {
    kind: i64,
    text: [u8; 64],
}

fn put(id: i32, kind: i64, text: &[u8], flags: i32) -> i32 {
    let mut m = Text { kind, text: [0; 64] };
    m.text[..text.len()].copy_from_slice(text);
    unsafe { msgsnd(id, (&raw const m).cast(), text.len(), flags) }
}

fn take(id: i32, kind: i64, room: usize, flags: i32) -> Result<(i64, Vec<u8>), i32> {
    let mut m = Text { kind: 0, text: [0; 64] };
    let got = unsafe { msgrcv(id, (&raw mut m).cast(), room, kind, flags) };
    if got < 0 { Err(crate::harness::errno()) } else { Ok((m.kind, m.text[..got as usize].to_vec())) }
}

fn msg_keeps_order_and_types() -> Outcome {
    let q = msg()?;
    for (kind, text) in [(1, b"a"), (2, b"b"), (1, b"c"), (3, b"d")] {
        ok!(put(q.0, kind, text, 0));
    }
    same!(take(q.0, 2, 64, 0), Ok((2, b"b".to_vec())));
    same!(take(q.0, 0, 64, 0), Ok((1, b"a".to_vec())));
    same!(take(q.0, 9, 64, IPC_NOWAIT), Err(ENOMSG));
    same!(take(q.0, 0, 64, 0), Ok((1, b"c".to_vec())));
    same!(take(q.0, 0, 64, 0), Ok((3, b"d".to_vec())));
    same!(take(q.0, 0, 64, IPC_NOWAIT), Err(ENOMSG));
    Ok(())
}

fn msg_negative_type_takes_the_lowest() -> Outcome {
    let q = msg()?;
    for (kind, text) in [(5, b"a"), (3, b"b"), (4, b"c"), (3, b"d")] {
        ok!(put(q.0, kind, text, 0));
    }
    same!(take(q.0, -4, 64, 0), Ok((3, b"b".to_vec())));
    same!(take(q.0, -4, 64, 0), Ok((3, b"d".to_vec())));
    same!(take(q.0, -4, 64, 0), Ok((4, b"c".to_vec())));
    same!(take(q.0, -4, 64, IPC_NOWAIT), Err(ENOMSG));
    Ok(())
}

fn msg_except_and_noerror() -> Outcome {
    let q = msg()?;
    ok!(put(q.0, 1, b"one", 0));
    ok!(put(q.0, 2, b"twelve", 0));
    same!(take(q.0, 1, 64, MSG_EXCEPT), Ok((2, b"twelve".to_vec())));
    same!(take(q.0, 0, 2, MSG_NOERROR), Ok((1, b"on".to_vec())));
    Ok(())
}

fn msg_copy_leaves_it() -> Outcome {
    let q = msg()?;
    ok!(put(q.0, 1, b"one", 0));
    ok!(put(q.0, 2, b"two", 0));
    match take(q.0, 1, 64, MSG_COPY | IPC_NOWAIT) {
        Err(ENOSYS) => skip!("the host is built without it"),
        got => same!(got, Ok((2, b"two".to_vec()))),
    }
    same!(take(q.0, 0, 64, 0), Ok((1, b"one".to_vec())));
    same!(take(q.0, 5, 64, MSG_COPY | IPC_NOWAIT), Err(ENOMSG));
    same!(take(q.0, 0, 64, MSG_COPY), Err(EINVAL));
    Ok(())
}

fn msg_too_long_is_e2big() -> Outcome {
    let q = msg()?;
    ok!(put(q.0, 1, b"hello", 0));
    same!(take(q.0, 0, 4, 0), Err(E2BIG));
    same!(take(q.0, 0, 5, 0), Ok((1, b"hello".to_vec())));
    Ok(())
}

fn msg_full_queue_is_eagain_or_waits() -> Outcome {
    let q = msg()?;
    let big = vec![0u8; 8 + 8192];
    let mut sent = 0;
    let mut m = big;
    m[0] = 1;
    while unsafe { msgsnd(q.0, m.as_ptr().cast(), 8192, IPC_NOWAIT) } == 0 {
        sent += 1;
        want!(sent < 100, "no limit");
    }
    same!(crate::harness::errno(), EAGAIN);
    same!(sent, 2);
    let kid = fork(|| {
        ok!(put(q.0, 2, b"late", 0));
        Ok(())
    })?;
    sys::sleep_ms(20);
    ok!(msgrcv(q.0, m.as_mut_ptr().cast(), 8192, 1, 0));
    kid.ok()?;
    same!(take(q.0, 2, 64, 0), Ok((2, b"late".to_vec())));
    Ok(())
}

fn msg_send_errors() -> Outcome {
    let q = msg()?;
    fails!(EINVAL, put(q.0, 0, b"x", 0));
    fails!(EINVAL, put(q.0, -1, b"x", 0));
    let m = vec![1u8; 9000];
    fails!(EINVAL, msgsnd(q.0, m.as_ptr().cast(), 8193, 0));
    fails!(EINVAL, msgsnd(q.0, m.as_ptr().cast(), usize::MAX, 0));
    fails!(EFAULT, msgsnd(q.0, 8usize as *const c_void, 1, 0));
    fails!(EINVAL, put(-1, 1, b"x", 0));
    fails!(EINVAL, put(-2, 1, b"x", 0));
    Ok(())
}

fn msg_receive_errors() -> Outcome {
    let q = msg()?;
    same!(take(-1, 0, 1, 0), Err(EINVAL));
    fails!(EINVAL, msgrcv(q.0, 8usize as *mut c_void, usize::MAX, 0, 0));
    ok!(put(q.0, 1, b"x", 0));
    fails!(EFAULT, msgrcv(q.0, 8usize as *mut c_void, 1, 0, 0));
    Ok(())
}

fn msg_waits_for_a_sender() -> Outcome {
    let q = msg()?;
    let kid = fork(|| {
        same!(take(q.0, 7, 64, 0), Ok((7, b"seven".to_vec())));
        Ok(())
    })?;
    sys::sleep_ms(10);
    ok!(put(q.0, 6, b"six", 0));
    ok!(put(q.0, 7, b"seven", 0));
    kid.ok()
}

fn msg_removed_is_eidrm() -> Outcome {
    let q = msg()?;
    let map = Map::shared(4096)?;
    let kid = fork(|| {
        map.set(0, 1);
        same!(take(q.0, 0, 64, 0), Err(EIDRM));
        Ok(())
    })?;
    sys::eventually("the child runs", || map.get(0) == 1)?;
    sys::sleep_ms(30);
    ok!(msgctl(q.0, IPC_RMID, std::ptr::null_mut()));
    kid.ok()
}

fn msg_interrupted_is_eintr() -> Outcome {
    let q = msg()?;
    sys::on_signal(SIGALRM, sys::count_handler, SA_RESTART)?;
    sys::tick(20)?;
    same!(take(q.0, 0, 64, 0), Err(EINTR));
    Ok(())
}

fn msg_stat_fields() -> Outcome {
    let q = msg()?;
    let me = unsafe { getpid() };
    ok!(put(q.0, 1, b"hello", 0));
    let mut ds: msqid_ds = unsafe { std::mem::zeroed() };
    ok!(msgctl(q.0, IPC_STAT, &raw mut ds));
    same!((ds.msg_qnum, ds.__msg_cbytes, ds.msg_qbytes), (1, 5, 16384));
    same!((ds.msg_lspid, ds.msg_lrpid), (me, 0));
    want!(ds.msg_stime > 0 && ds.msg_rtime == 0 && ds.msg_ctime > 0, "times");
    same!(take(q.0, 0, 64, 0), Ok((1, b"hello".to_vec())));
    ok!(msgctl(q.0, IPC_STAT, &raw mut ds));
    same!((ds.msg_qnum, ds.__msg_cbytes, ds.msg_lrpid), (0, 0, me));
    Ok(())
}

fn msg_set_needs_the_right_for_more() -> Outcome {
    let q = msg()?;
    let mut ds: msqid_ds = unsafe { std::mem::zeroed() };
    ok!(msgctl(q.0, IPC_STAT, &raw mut ds));
    ds.msg_qbytes = 3;
    ok!(msgctl(q.0, IPC_SET, &raw mut ds));
    fails!(EAGAIN, put(q.0, 1, b"four", IPC_NOWAIT));
    ok!(put(q.0, 1, b"abc", IPC_NOWAIT));
    ds.msg_perm.uid = 1234;
    ok!(msgctl(q.0, IPC_SET, &raw mut ds));
    fork(|| {
        sys::drop_root()?;
        ds.msg_qbytes = 1 << 20;
        fails!(EPERM, msgctl(q.0, IPC_SET, &raw mut ds));
        Ok(())
    })?
    .ok()
}

fn msg_permissions() -> Outcome {
    let q = Msg(ok!(msgget(IPC_PRIVATE, 0o622)));
    fork(|| {
        sys::drop_root()?;
        ok!(put(q.0, 1, b"x", 0));
        same!(take(q.0, 0, 64, IPC_NOWAIT), Err(EACCES));
        Ok(())
    })?
    .ok()
}

fn msg_zero_length() -> Outcome {
    let q = msg()?;
    ok!(put(q.0, 5, b"", 0));
    same!(take(q.0, 0, 0, 0), Ok((5, Vec::new())));
    Ok(())
}

fn rmid_needs_the_owner() -> Outcome {
    let (s, q) = (sem(1)?, msg()?);
    fork(|| {
        sys::drop_root()?;
        fails!(EPERM, ctl(s.0, 0, IPC_RMID, 0));
        fails!(EPERM, msgctl(q.0, IPC_RMID, std::ptr::null_mut()));
        Ok(())
    })?
    .ok()
}

fn stat_by_index() -> Outcome {
    let s = sem(1)?;
    let mut ds: semid_ds = unsafe { std::mem::zeroed() };
    same!(ok!(ctl(s.0 & 0x7fff, 0, 18, &raw mut ds as usize)), s.0);
    let q = msg()?;
    let mut ds: msqid_ds = unsafe { std::mem::zeroed() };
    same!(ok!(msgctl(q.0 & 0x7fff, 11, &raw mut ds)), q.0);
    let m = shm(4096)?;
    let mut ds: shmid_ds = unsafe { std::mem::zeroed() };
    same!(ok!(shmctl(m.0 & 0x7fff, 13, &raw mut ds)), m.0);
    fails!(EINVAL, shmctl(0x7ffe, 13, &raw mut ds));
    Ok(())
}
