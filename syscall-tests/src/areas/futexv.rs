//! futex_waitv(2) and the calls that come with it: futex_wake, futex_wait, futex_requeue.

use crate::harness::Outcome;
use crate::sys::{self, Map, fork};
use libc::*;
use std::sync::atomic::Ordering::SeqCst;

cases![
    waitv_checks_every_value,
    waitv_names_the_woken_word,
    waitv_times_out_on_both_clocks,
    waitv_is_interrupted,
    waitv_limits,
    waitv_checks_its_descriptions,
    wake_and_wait_by_mask,
    wake_of_zero_wakes_none,
    futex_wait_checks_and_times_out,
    requeue_moves_to_the_second,
];

const NR_WAITV: i64 = 449;
const NR_WAKE: i64 = 454;
const NR_WAIT: i64 = 455;
const NR_REQUEUE: i64 = 456;
const U32: u32 = 2;
const PRIVATE: u32 = 128;

#[repr(C)]
#[derive(Clone, Copy)]
struct Waitv {
    val: u64,
    uaddr: u64,
    flags: u32,
    reserved: u32,
}

fn on(map: &Map, i: usize, val: u64) -> Waitv {
    Waitv { val, uaddr: map.word(i).as_ptr() as u64, flags: U32, reserved: 0 }
}

fn waitv(words: &[Waitv], timeout: Option<&timespec>, clock: i32) -> i64 {
    let t = timeout.map_or(std::ptr::null(), |t| &raw const *t);
    unsafe { syscall(NR_WAITV, words.as_ptr(), words.len(), 0, t, clock) }
}

fn at(clock: i32, ms: i64) -> Result<timespec, String> {
    let t = sys::clock(clock)? + i128::from(ms) * 1_000_000;
    Ok(timespec { tv_sec: (t / 1_000_000_000) as i64, tv_nsec: (t % 1_000_000_000) as i64 })
}

fn waitv_checks_every_value() -> Outcome {
    let map = Map::shared(sys::PAGE)?;
    fails!(EAGAIN, waitv(&[on(&map, 0, 0), on(&map, 1, 1)], None, 0));
    fails!(EAGAIN, waitv(&[on(&map, 0, 5)], None, 0));
    Ok(())
}

fn waitv_names_the_woken_word() -> Outcome {
    let map = Map::shared(sys::PAGE)?;
    let kid = fork(|| {
        let words = [on(&map, 0, 0), on(&map, 1, 0), on(&map, 2, 0)];
        same!(ok!(waitv(&words, None, 0)), 1);
        Ok(())
    })?;
    sys::eventually("the child waits", || unsafe {
        syscall(SYS_futex, map.word(1).as_ptr(), FUTEX_WAKE, 1) == 1
    })?;
    kid.ok()?;
    // Nobody waits on the others any more.
    same!(unsafe { syscall(SYS_futex, map.word(0).as_ptr(), FUTEX_WAKE, 1) }, 0);
    same!(unsafe { syscall(SYS_futex, map.word(2).as_ptr(), FUTEX_WAKE, 1) }, 0);
    Ok(())
}

fn waitv_times_out_on_both_clocks() -> Outcome {
    let map = Map::shared(sys::PAGE)?;
    for clock in [CLOCK_MONOTONIC, CLOCK_REALTIME] {
        let t = at(clock, 20)?;
        fails!(ETIMEDOUT, waitv(&[on(&map, 0, 0), on(&map, 1, 0)], Some(&t), clock));
    }
    let t = at(CLOCK_MONOTONIC, 20)?;
    fails!(EINVAL, waitv(&[on(&map, 0, 0)], Some(&t), CLOCK_BOOTTIME));
    Ok(())
}

fn waitv_is_interrupted() -> Outcome {
    let map = Map::shared(sys::PAGE)?;
    sys::on_signal(SIGALRM, sys::count_handler, 0)?;
    sys::tick(20)?;
    fails!(EINTR, waitv(&[on(&map, 0, 0), on(&map, 1, 0)], None, 0));
    Ok(())
}

fn waitv_limits() -> Outcome {
    let map = Map::shared(sys::PAGE)?;
    fails!(EINVAL, waitv(&[], None, 0));
    let many = vec![on(&map, 0, 0); 129];
    fails!(EINVAL, waitv(&many, None, 0));
    let t = at(CLOCK_MONOTONIC, 5)?;
    fails!(ETIMEDOUT, waitv(&many[..128], Some(&t), CLOCK_MONOTONIC));
    fails!(EINVAL, syscall(NR_WAITV, many.as_ptr(), 1, 1, 0, 0));
    fails!(EINVAL, syscall(NR_WAITV, 0usize, 1, 0, 0, 0));
    fails!(EFAULT, syscall(NR_WAITV, 8usize, 1, 0, 0, 0));
    Ok(())
}

fn waitv_checks_its_descriptions() -> Outcome {
    let map = Map::shared(sys::PAGE)?;
    let good = on(&map, 0, 0);
    fails!(EINVAL, waitv(&[Waitv { reserved: 1, ..good }], None, 0));
    fails!(EINVAL, waitv(&[Waitv { flags: 0, ..good }], None, 0));
    fails!(EINVAL, waitv(&[Waitv { flags: U32 | 1 << 20, ..good }], None, 0));
    fails!(EINVAL, waitv(&[Waitv { val: 1 << 32, ..good }], None, 0));
    fails!(EINVAL, waitv(&[Waitv { uaddr: good.uaddr + 1, ..good }], None, 0));
    fails!(EFAULT, waitv(&[Waitv { uaddr: 8, flags: U32 | PRIVATE, ..good }], None, 0));
    Ok(())
}

fn wake_and_wait_by_mask() -> Outcome {
    let map = Map::shared(sys::PAGE)?;
    let word = map.word(0).as_ptr();
    let kid = fork(|| {
        ok!(syscall(NR_WAIT, word, 0usize, 2usize, U32, 0usize, 0));
        Ok(())
    })?;
    sys::sleep_ms(20);
    same!(ok!(syscall(NR_WAKE, word, 1usize, 10, U32)), 0);
    sys::eventually("the child waits", || unsafe { syscall(NR_WAKE, word, 2usize, 1, U32) } == 1)?;
    kid.ok()
}

fn wake_of_zero_wakes_none() -> Outcome {
    let map = Map::shared(sys::PAGE)?;
    let word = map.word(0).as_ptr();
    let kid = fork(|| {
        map.word(1).store(1, SeqCst);
        ok!(syscall(NR_WAIT, word, 0usize, !0u32 as usize, U32, 0usize, 0));
        Ok(())
    })?;
    sys::eventually("the child runs", || map.word(1).load(SeqCst) == 1)?;
    sys::sleep_ms(20);
    same!(ok!(syscall(NR_WAKE, word, !0u32 as usize, 0, U32)), 0);
    fails!(EINVAL, syscall(NR_WAKE, word, 0usize, 1, U32));
    fails!(EINVAL, syscall(NR_WAKE, word, 1usize, 1, 0));
    sys::eventually("the child waits", || unsafe { syscall(NR_WAKE, word, !0u32 as usize, 1, U32) } == 1)?;
    kid.ok()
}

fn futex_wait_checks_and_times_out() -> Outcome {
    let map = Map::shared(sys::PAGE)?;
    let word = map.word(0).as_ptr();
    fails!(EAGAIN, syscall(NR_WAIT, word, 1usize, 1usize, U32, 0usize, 0));
    fails!(EINVAL, syscall(NR_WAIT, word, 0usize, 0usize, U32, 0usize, 0));
    let t = at(CLOCK_MONOTONIC, 10)?;
    fails!(ETIMEDOUT, syscall(NR_WAIT, word, 0usize, 1usize, U32, &raw const t, CLOCK_MONOTONIC));
    Ok(())
}

fn requeue_moves_to_the_second() -> Outcome {
    let map = Map::shared(sys::PAGE)?;
    let kid = fork(|| {
        ok!(syscall(NR_WAIT, map.word(0).as_ptr(), 0usize, 1usize, U32, 0usize, 0));
        Ok(())
    })?;
    let pair = [on(&map, 0, 0), on(&map, 1, 0)];
    sys::eventually("the child moves", || unsafe { syscall(NR_REQUEUE, pair.as_ptr(), 0, 0, 1) } == 1)?;
    fails!(EINVAL, syscall(NR_REQUEUE, pair.as_ptr(), 1, 0, 1));
    let other = [on(&map, 0, 9), on(&map, 1, 0)];
    fails!(EAGAIN, syscall(NR_REQUEUE, other.as_ptr(), 0, 0, 1));
    same!(ok!(syscall(NR_WAKE, map.word(1).as_ptr(), 1usize, 1, U32)), 1);
    kid.ok()
}
