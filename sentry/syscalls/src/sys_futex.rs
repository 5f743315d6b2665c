//! futex(2), set_robust_list(2), get_robust_list(2), set_tid_address(2).

use std::sync::Arc;

use abi::process::RobustListHead;
use abi::time::Timespec;
use platform::AtomicOp;
use sentry_base::{Errno, Nanos, Result, WaitClass, WaitEnd, mono_now, real_now};
use sentry_kernel::{Current, MATCH_ANY, Restart, RestartBlock, Stop, SysResult};

use crate::args::{Bits, Ptr};
use crate::table::syscalls;

syscalls! {
    202 futex(uaddr: Ptr, op: Bits, val: u32, timeout: Ptr, uaddr2: Ptr, val3: u32)
        [wait, "no priority inheritance: the PI operations give ENOSYS"];
    273 set_robust_list(head: Ptr, len: usize) [sync];
    274 get_robust_list(pid: i32, head: Ptr, len: Ptr) [sync];
    218 set_tid_address(tidptr: Ptr) [sync];
}

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
    let timed = matches!(command, libc::FUTEX_WAIT | libc::FUTEX_WAIT_BITSET);
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
        mono_now().saturating_add(at.saturating_sub(real_now()))
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
