//! futex(2) with its priority-inheritance operations, futex_waitv(2) and its kin, set_robust_list(2), get_robust_list(2), set_tid_address(2).

use std::sync::Arc;

use abi::process::RobustListHead;
use abi::time::Timespec;
use platform::AtomicOp;
use sentry_base::{Errno, Nanos, Result, WaitClass, WaitEnd, mono_at_real, mono_now};
use sentry_kernel::{
    Current, FutexWaiter, MATCH_ANY, PiAttempt, PiWaiter, Restart, RestartBlock, Stop, SysResult,
};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use crate::args::{Bits, Ptr};
use crate::table::syscalls;

syscalls! {
    202 futex(uaddr: Ptr, op: Bits, val: u32, timeout: Ptr, uaddr2: Ptr, val3: u32)
        [wait, "PI operations hand locks over and lend no priority: the host schedules"];
    449 futex_waitv(waiters: Ptr, nr: u32, flags: Bits, timeout: Ptr, clock: i32) [wait];
    454 futex_wake(uaddr: Ptr, mask: u64, nr: i32, flags: Bits) [sync];
    455 futex_wait(uaddr: Ptr, val: u64, mask: u64, flags: Bits, timeout: Ptr, clock: i32) [wait];
    456 futex_requeue(waiters: Ptr, flags: Bits, nr_wake: i32, nr_requeue: i32) [sync];
    273 set_robust_list(head: Ptr, len: usize) [sync];
    274 get_robust_list(pid: i32, head: Ptr, len: Ptr) [sync];
    218 set_tid_address(tidptr: Ptr) [sync];
}

/// `FUTEX_LOCK_PI2`.
const LOCK_PI2: i32 = 13;
const PRIVATE: u32 = libc::FUTEX_PRIVATE_FLAG as u32;
const REALTIME: u32 = libc::FUTEX_CLOCK_REALTIME as u32;

/// A call's word, checked for alignment.
fn word(at: Ptr) -> Result<u64> {
    if at.0.is_multiple_of(4) { Ok(at.0) } else { Err(Errno::EINVAL) }
}

/// A count argument: Linux takes an `int`.
fn count(raw: u64) -> Result<usize> {
    #[allow(clippy::cast_possible_truncation, reason = "Linux takes the low 32 bits")]
    let count = raw as i32;
    usize::try_from(count).map_err(|_| Errno::EINVAL)
}

async fn futex(
    cx: &mut Current,
    uaddr: Ptr,
    op: Bits,
    val: u32,
    timeout: Ptr,
    uaddr2: Ptr,
    val3: u32,
) -> SysResult {
    let private = op.0 & PRIVATE != 0;
    let realtime = op.0 & REALTIME != 0;
    let command = (op.0 & !(PRIVATE | REALTIME)).cast_signed();
    let timed = matches!(
        command,
        libc::FUTEX_WAIT | libc::FUTEX_WAIT_BITSET | libc::FUTEX_WAIT_REQUEUE_PI | LOCK_PI2
    );
    if realtime && !timed {
        return Err(Errno::ENOSYS.into());
    }
    match command {
        libc::FUTEX_WAIT | libc::FUTEX_WAIT_BITSET => {
            let relative = command == libc::FUTEX_WAIT;
            let deadline = deadline(cx, timeout, relative, realtime)?;
            let bitset = if relative { MATCH_ANY } else { val3 };
            wait(cx, word(uaddr)?, val, bitset, private, deadline).await
        }
        libc::FUTEX_WAKE => wake(cx, word(uaddr)?, val, MATCH_ANY, private),
        libc::FUTEX_WAKE_BITSET => wake(cx, word(uaddr)?, val, val3, private),
        libc::FUTEX_REQUEUE => requeue(cx, uaddr, val, timeout.0, uaddr2, None, private),
        libc::FUTEX_CMP_REQUEUE => requeue(cx, uaddr, val, timeout.0, uaddr2, Some(val3), private),
        libc::FUTEX_WAKE_OP => wake_op(cx, uaddr, val, timeout.0, uaddr2, val3, private),
        libc::FUTEX_LOCK_PI => {
            let deadline = deadline(cx, timeout, false, true)?;
            lock_pi(cx, word(uaddr)?, private, deadline, false).await
        }
        LOCK_PI2 => {
            let deadline = deadline(cx, timeout, false, realtime)?;
            lock_pi(cx, word(uaddr)?, private, deadline, false).await
        }
        libc::FUTEX_TRYLOCK_PI => lock_pi(cx, word(uaddr)?, private, None, true).await,
        libc::FUTEX_UNLOCK_PI => unlock_pi(cx, word(uaddr)?, private).await,
        libc::FUTEX_WAIT_REQUEUE_PI => {
            let deadline = deadline(cx, timeout, false, realtime)?;
            wait_requeue_pi(cx, word(uaddr)?, val, private, deadline, word(uaddr2)?).await
        }
        libc::FUTEX_CMP_REQUEUE_PI => requeue_pi(cx, uaddr, val, timeout.0, uaddr2, val3, private).await,
        _ => Err(Errno::ENOSYS.into()),
    }
}

fn deadline(cx: &Current, timeout: Ptr, relative: bool, realtime: bool) -> Result<Option<Nanos>> {
    if timeout.is_null() {
        return Ok(None);
    }
    let at = cx.read_obj::<Timespec>(timeout.0)?.to_nanos().ok_or(Errno::EINVAL)?;
    Ok(Some(if relative {
        mono_now().saturating_add(at)
    } else if realtime {
        mono_at_real(at)
    } else {
        at
    }))
}

async fn wait(
    cx: &mut Current,
    addr: u64,
    value: u32,
    bitset: u32,
    private: bool,
    deadline: Option<Nanos>,
) -> SysResult {
    if bitset == 0 {
        return Err(Errno::EINVAL.into());
    }
    let kernel = Arc::clone(cx.kernel());
    let waiter = {
        let mm = cx.mm();
        let key = mm.futex_key(addr, private)?;
        let sleeper = Arc::clone(cx.sleeper());
        sleeper.arm();
        kernel.futexes().enqueue(&mm, addr, key, value, bitset, &sleeper)?
    };
    loop {
        let end = cx.sleep(WaitClass::Interruptible, deadline).await;
        if waiter.is_woken() || (end != WaitEnd::Ready && !kernel.futexes().dequeue(&waiter)) {
            return Ok(0);
        }
        match (end, deadline) {
            (WaitEnd::Ready, _) => {}
            (WaitEnd::TimedOut, _) => return Err(Errno::ETIMEDOUT.into()),
            (WaitEnd::Interrupted | WaitEnd::Killed, None) => return Err(Stop::Restart(Restart::Sys)),
            (WaitEnd::Interrupted | WaitEnd::Killed, Some(deadline)) => {
                cx.set_restart_block(RestartBlock::Futex { addr, value, bitset, shared: !private, deadline });
                return Err(Stop::Restart(Restart::Block));
            }
        }
    }
}

/// Goes on with an interrupted timed wait.
pub(crate) async fn restart_wait(
    cx: &mut Current,
    addr: u64,
    value: u32,
    bitset: u32,
    shared: bool,
    deadline: Nanos,
) -> SysResult {
    wait(cx, addr, value, bitset, !shared, Some(deadline)).await
}

fn wake(cx: &Current, addr: u64, nr: u32, bitset: u32, private: bool) -> SysResult {
    if bitset == 0 {
        return Err(Errno::EINVAL.into());
    }
    let key = cx.mm().futex_key(addr, private)?;
    // A count of zero or less wakes one, as Linux does.
    let nr = usize::try_from(nr.cast_signed()).unwrap_or(1).max(1);
    Ok(cx.kernel().futexes().wake(&key, nr, bitset) as u64)
}

fn requeue(
    cx: &Current,
    uaddr: Ptr,
    nr_wake: u32,
    nr_requeue: u64,
    uaddr2: Ptr,
    expect: Option<u32>,
    private: bool,
) -> SysResult {
    let (from, to) = (word(uaddr)?, word(uaddr2)?);
    let counts = (count(u64::from(nr_wake))?, count(nr_requeue)?);
    let mm = cx.mm();
    let (from_key, to_key) = (mm.futex_key(from, private)?, mm.futex_key(to, private)?);
    let (woken, moved) = cx.kernel().futexes().requeue(&mm, (&from_key, from), &to_key, counts, expect)?;
    Ok((woken + moved) as u64)
}

fn wake_op(
    cx: &Current,
    uaddr: Ptr,
    nr_wake: u32,
    nr_wake2: u64,
    uaddr2: Ptr,
    encoded: u32,
    private: bool,
) -> SysResult {
    let (first, second) = (word(uaddr)?, word(uaddr2)?);
    let mm = cx.mm();
    let (key, key2) = (mm.futex_key(first, private)?, mm.futex_key(second, private)?);
    // FUTEX_OP: 4 bits operation, 4 bits comparison, 12 bits each of signed operand and comparison value.
    let operand = (encoded << 8).cast_signed() >> 20;
    let compare = (encoded << 20).cast_signed() >> 20;
    let shifted = encoded >> 28 & 8 != 0;
    let operand =
        if shifted { 1_i32.wrapping_shl(operand.cast_unsigned() & 31) } else { operand }.cast_unsigned();
    let op = match encoded >> 28 & 7 {
        0 => AtomicOp::Store(operand),
        1 => AtomicOp::Add(operand),
        2 => AtomicOp::Or(operand),
        3 => AtomicOp::And(!operand),
        4 => AtomicOp::Xor(operand),
        _ => return Err(Errno::ENOSYS.into()),
    };
    let old = mm.atomic_u32(second, op)?.cast_signed();
    let holds = match encoded >> 24 & 15 {
        0 => old == compare,
        1 => old != compare,
        2 => old < compare,
        3 => old <= compare,
        4 => old > compare,
        5 => old >= compare,
        _ => return Err(Errno::ENOSYS.into()),
    };
    let futexes = cx.kernel().futexes();
    let mut woken = futexes.wake(&key, count(u64::from(nr_wake))?.max(1), MATCH_ANY);
    if holds {
        woken += futexes.wake(&key2, count(nr_wake2)?.max(1), MATCH_ANY);
    }
    Ok(woken as u64)
}

async fn lock_pi(
    cx: &mut Current,
    addr: u64,
    private: bool,
    deadline: Option<Nanos>,
    try_only: bool,
) -> SysResult {
    let kernel = Arc::clone(cx.kernel());
    let key = cx.mm().futex_key(addr, private)?;
    loop {
        let waiter = PiWaiter::new(&cx.task, addr, key);
        cx.sleeper().arm();
        match kernel.futexes().pi_lock(&waiter, try_only)? {
            PiAttempt::Acquired => return Ok(0),
            PiAttempt::Queued => return wait_for_pi(cx, &waiter, deadline).await,
            PiAttempt::Again => let_others_run(cx).await?,
        }
    }
}

/// Between two attempts, which a signal ends for the time being.
async fn let_others_run(cx: &mut Current) -> Result<(), Stop> {
    crate::turn::give_up().await;
    if cx.sleeper().is_interrupted() || cx.sleeper().is_killed() {
        return Err(Stop::Restart(Restart::NoIntr));
    }
    Ok(())
}

/// Waits in the queue of a lock.
async fn wait_for_pi(cx: &mut Current, waiter: &Arc<PiWaiter>, deadline: Option<Nanos>) -> SysResult {
    let kernel = Arc::clone(cx.kernel());
    loop {
        let end = cx.sleep(WaitClass::Interruptible, deadline).await;
        if waiter.is_granted() || (end != WaitEnd::Ready && !kernel.futexes().pi_cancel(waiter)) {
            return Ok(0);
        }
        match end {
            WaitEnd::Ready => {}
            WaitEnd::TimedOut => return Err(Errno::ETIMEDOUT.into()),
            WaitEnd::Interrupted | WaitEnd::Killed => return Err(Stop::Restart(Restart::NoIntr)),
        }
    }
}

async fn unlock_pi(cx: &mut Current, addr: u64, private: bool) -> SysResult {
    let mm = cx.mm();
    let key = mm.futex_key(addr, private)?;
    while !cx.kernel().futexes().pi_unlock(&cx.task, &mm, addr, &key)? {
        let_others_run(cx).await?;
    }
    Ok(0)
}

/// Waits on a word to be moved to a lock: how a condition variable's waiters come to its mutex.
async fn wait_requeue_pi(
    cx: &mut Current,
    addr: u64,
    value: u32,
    private: bool,
    deadline: Option<Nanos>,
    lock_addr: u64,
) -> SysResult {
    if addr == lock_addr {
        return Err(Errno::EINVAL.into());
    }
    let kernel = Arc::clone(cx.kernel());
    let (wants, waiter) = {
        let mm = cx.mm();
        let (key, lock_key) = (mm.futex_key(addr, private)?, mm.futex_key(lock_addr, private)?);
        let wants = PiWaiter::new(&cx.task, lock_addr, lock_key);
        let sleeper = Arc::clone(cx.sleeper());
        sleeper.arm();
        let wanted = Some(Arc::clone(&wants));
        let waiter = kernel.futexes().enqueue_for(&mm, addr, key, value, MATCH_ANY, &sleeper, wanted)?;
        (wants, waiter)
    };
    loop {
        let end = cx.sleep(WaitClass::Interruptible, deadline).await;
        if wants.is_granted() {
            return Ok(0);
        }
        if end == WaitEnd::Ready {
            continue;
        }
        let timed_out = end == WaitEnd::TimedOut;
        if kernel.futexes().dequeue(&waiter) {
            // Not moved yet.
            let stop = if timed_out { Errno::ETIMEDOUT.into() } else { Stop::Restart(Restart::NoIntr) };
            return Err(stop);
        }
        if !kernel.futexes().pi_cancel(&wants) {
            return Ok(0);
        }
        // Moved: to wait again would be to wait on the other word.
        return Err(if timed_out { Errno::ETIMEDOUT } else { Errno::EAGAIN }.into());
    }
}

async fn requeue_pi(
    cx: &mut Current,
    uaddr: Ptr,
    nr_wake: u32,
    nr_requeue: u64,
    uaddr2: Ptr,
    expect: u32,
    private: bool,
) -> SysResult {
    let (from, to) = (word(uaddr)?, word(uaddr2)?);
    let (nr_wake, nr_requeue) = (count(u64::from(nr_wake))?, count(nr_requeue)?);
    if nr_wake != 1 || from == to {
        return Err(Errno::EINVAL.into());
    }
    let mm = cx.mm();
    let (from_key, to_key) = (mm.futex_key(from, private)?, mm.futex_key(to, private)?);
    loop {
        let futexes = cx.kernel().futexes();
        let (from, to) = ((&from_key, from), (&to_key, to));
        if let Some(moved) = futexes.pi_requeue(&cx.task, from, to, nr_requeue, expect)? {
            return Ok(moved as u64);
        }
        let_others_run(cx).await?;
    }
}

/// `struct futex_waitv`.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct FutexWaitV {
    val: u64,
    uaddr: u64,
    flags: u32,
    reserved: u32,
}

/// The most words of one wait (`FUTEX_WAITV_MAX`).
const WAITV_MAX: u32 = 128;
/// `FUTEX2_SIZE_U32`, the only size.
const SIZE_U32: u32 = 2;

/// Checks the flags of the newer calls; whether the word is private.
fn futex2_private(flags: u32) -> Result<bool> {
    if flags & !PRIVATE == SIZE_U32 { Ok(flags & PRIVATE != 0) } else { Err(Errno::EINVAL) }
}

/// The absolute timeout of the newer calls.
fn deadline_on(cx: &Current, timeout: Ptr, clock: i32) -> Result<Option<Nanos>> {
    if timeout.is_null() {
        return Ok(None);
    }
    match clock {
        libc::CLOCK_MONOTONIC => deadline(cx, timeout, false, false),
        libc::CLOCK_REALTIME => deadline(cx, timeout, false, true),
        _ => Err(Errno::EINVAL),
    }
}

/// Reads and checks `nr` descriptions of words.
fn read_waitv(cx: &Current, at: Ptr, nr: usize) -> Result<Vec<FutexWaitV>> {
    let mut words = vec![FutexWaitV::new_zeroed(); nr];
    cx.copy_in(at.0, words.as_mut_slice().as_mut_bytes())?;
    for word in &words {
        futex2_private(word.flags)?;
        if word.reserved != 0 || u32::try_from(word.val).is_err() {
            return Err(Errno::EINVAL);
        }
    }
    Ok(words)
}

/// Waits on several words; the index of one that was woken.
async fn futex_waitv(
    cx: &mut Current,
    waiters: Ptr,
    nr: u32,
    flags: Bits,
    timeout: Ptr,
    clock: i32,
) -> SysResult {
    if flags.0 != 0 || nr == 0 || nr > WAITV_MAX || waiters.is_null() {
        return Err(Errno::EINVAL.into());
    }
    let deadline = deadline_on(cx, timeout, clock)?;
    let words = read_waitv(cx, waiters, usize::try_from(nr).unwrap_or(0))?;
    let kernel = Arc::clone(cx.kernel());
    let mut queued: Vec<Arc<FutexWaiter>> = Vec::with_capacity(words.len());
    let mut failed = None;
    {
        let mm = cx.mm();
        let sleeper = Arc::clone(cx.sleeper());
        sleeper.arm();
        for one in &words {
            let enqueue = || {
                let addr = word(Ptr(one.uaddr))?;
                let key = mm.futex_key(addr, futex2_private(one.flags)?)?;
                let value = u32::try_from(one.val).unwrap_or(0);
                kernel.futexes().enqueue(&mm, addr, key, value, MATCH_ANY, &sleeper)
            };
            match enqueue() {
                Ok(waiter) => queued.push(waiter),
                Err(errno) => {
                    failed = Some(errno);
                    break;
                }
            }
        }
    }
    let end = match failed {
        Some(_) => WaitEnd::Ready,
        None => loop {
            let end = cx.sleep(WaitClass::Interruptible, deadline).await;
            if end != WaitEnd::Ready || queued.iter().any(|w| w.is_woken()) {
                break end;
            }
        },
    };
    // Every one is taken out; one that was woken meanwhile is the answer.
    let mut woken = None;
    for (index, waiter) in queued.iter().enumerate() {
        if !kernel.futexes().dequeue(waiter) {
            woken.get_or_insert(index);
        }
    }
    match (woken, failed, end) {
        (Some(index), ..) => Ok(index as u64),
        (None, Some(errno), _) => Err(errno.into()),
        (None, None, WaitEnd::TimedOut) => Err(Errno::ETIMEDOUT.into()),
        _ => Err(Stop::Restart(Restart::Sys)),
    }
}

fn futex_wake(cx: &mut Current, uaddr: Ptr, mask: u64, nr: i32, flags: Bits) -> SysResult {
    let private = futex2_private(flags.0)?;
    let mask = u32::try_from(mask).map_err(|_| Errno::EINVAL)?;
    if nr < 0 || mask == 0 {
        return Err(Errno::EINVAL.into());
    }
    let key = cx.mm().futex_key(word(uaddr)?, private)?;
    // Unlike the old operation, a count of zero wakes none.
    Ok(cx.kernel().futexes().wake(&key, usize::try_from(nr).unwrap_or(0), mask) as u64)
}

async fn futex_wait(
    cx: &mut Current,
    uaddr: Ptr,
    val: u64,
    mask: u64,
    flags: Bits,
    timeout: Ptr,
    clock: i32,
) -> SysResult {
    let private = futex2_private(flags.0)?;
    let value = u32::try_from(val).map_err(|_| Errno::EINVAL)?;
    let mask = u32::try_from(mask).map_err(|_| Errno::EINVAL)?;
    let deadline = deadline_on(cx, timeout, clock)?;
    wait(cx, word(uaddr)?, value, mask, private, deadline).await
}

fn futex_requeue(cx: &mut Current, waiters: Ptr, flags: Bits, nr_wake: i32, nr_requeue: i32) -> SysResult {
    if flags.0 != 0 || waiters.is_null() {
        return Err(Errno::EINVAL.into());
    }
    let words = read_waitv(cx, waiters, 2)?;
    let [from, to] = words.as_slice() else { return Err(Errno::EINVAL.into()) };
    let counts = (
        usize::try_from(nr_wake).map_err(|_| Errno::EINVAL)?,
        usize::try_from(nr_requeue).map_err(|_| Errno::EINVAL)?,
    );
    let mm = cx.mm();
    let (from_addr, to_addr) = (word(Ptr(from.uaddr))?, word(Ptr(to.uaddr))?);
    let from_key = mm.futex_key(from_addr, futex2_private(from.flags)?)?;
    let to_key = mm.futex_key(to_addr, futex2_private(to.flags)?)?;
    let expect = u32::try_from(from.val).ok();
    let (woken, moved) =
        cx.kernel().futexes().requeue(&mm, (&from_key, from_addr), &to_key, counts, expect)?;
    Ok((woken + moved) as u64)
}

fn set_robust_list(cx: &mut Current, head: Ptr, len: usize) -> Result<()> {
    if len != size_of::<RobustListHead>() {
        return Err(Errno::EINVAL);
    }
    cx.task.set_robust_list(head.0);
    Ok(())
}

fn get_robust_list(cx: &mut Current, pid: i32, head: Ptr, len: Ptr) -> Result<()> {
    let task = match pid {
        0 => Arc::clone(&cx.task),
        pid => cx.find_task(pid).ok_or(Errno::ESRCH)?,
    };
    if task.pid() != cx.pid() && !cx.creds().has_cap_in(&task.creds().user_ns, sentry_vfs::cap::SYS_PTRACE) {
        return Err(Errno::EPERM);
    }
    cx.write_obj(len.0, &(size_of::<RobustListHead>() as u64))?;
    cx.write_obj(head.0, &task.robust_list())
}

fn set_tid_address(cx: &mut Current, tidptr: Ptr) -> Result<i32> {
    cx.set_clear_child_tid(tidptr.0);
    Ok(cx.ns_tid())
}
