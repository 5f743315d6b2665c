//! futex(2).

use crate::harness::Outcome;
use crate::sys::{self, Map, fork};
use libc::*;
use std::sync::atomic::{AtomicI32, Ordering::SeqCst};

cases![
    wait_on_another_value_is_eagain,
    wait_times_out,
    wait_with_a_bad_timeout_is_einval,
    wake_without_waiters_is_zero,
    wake_wakes_as_many_as_asked,
    shared_words_wake_across_processes,
    private_words_of_a_fork_are_apart,
    bitset_selects_waiters,
    zero_bitset_is_einval,
    absolute_timeout_of_a_bitset_wait,
    requeue_moves_waiters,
    cmp_requeue_checks_the_value,
    wake_op_changes_the_second_word,
    misaligned_word_is_einval,
    unmapped_word_is_efault,
    interrupted_wait_is_eintr,
    interrupted_wait_restarts_with_sa_restart,
    unknown_operation_is_enosys,
    robust_list_marks_the_owner_dead,
    clear_child_tid_wakes_a_joiner,
    shared_file_words_meet_at_the_offset,
];

fn futex(word: &AtomicI32, op: i32, val: i32, timeout: Option<&timespec>, word2: usize, val3: u32) -> i64 {
    let t = timeout.map_or(std::ptr::null(), |t| &raw const *t);
    unsafe { syscall(SYS_futex, word.as_ptr(), op, val, t, word2, val3) }
}

const PRIV: i32 = FUTEX_PRIVATE_FLAG;

fn wait_on_another_value_is_eagain() -> Outcome {
    let w = AtomicI32::new(5);
    fails!(EAGAIN, futex(&w, FUTEX_WAIT | PRIV, 4, None, 0, 0));
    fails!(EAGAIN, futex(&w, FUTEX_WAIT, 4, None, 0, 0));
    Ok(())
}

fn wait_times_out() -> Outcome {
    let w = AtomicI32::new(5);
    let start = sys::clock(CLOCK_MONOTONIC)?;
    fails!(ETIMEDOUT, futex(&w, FUTEX_WAIT | PRIV, 5, Some(&sys::ts(30)), 0, 0));
    let took = sys::clock(CLOCK_MONOTONIC)? - start;
    want!(took >= 30_000_000, "woke after {took} ns of 30 ms");
    Ok(())
}

fn wait_with_a_bad_timeout_is_einval() -> Outcome {
    let w = AtomicI32::new(5);
    let bad = timespec { tv_sec: 0, tv_nsec: 1_000_000_000 };
    fails!(EINVAL, futex(&w, FUTEX_WAIT | PRIV, 5, Some(&bad), 0, 0));
    let bad = timespec { tv_sec: -1, tv_nsec: 0 };
    fails!(EINVAL, futex(&w, FUTEX_WAIT | PRIV, 5, Some(&bad), 0, 0));
    Ok(())
}

fn wake_without_waiters_is_zero() -> Outcome {
    let w = AtomicI32::new(0);
    same!(futex(&w, FUTEX_WAKE | PRIV, 1, None, 0, 0), 0);
    Ok(())
}

/// Starts `n` threads that wait on word `i` of `map`; each adds one to the last word when woken.
fn waiters(map: &'static Map, i: usize, n: usize, bits: u32) -> Vec<std::thread::JoinHandle<()>> {
    let threads = (0..n)
        .map(|_| {
            let map = &MapRef(map);
            let map = MapRef(map.0);
            std::thread::spawn(move || {
                let map = map;
                map.0.word(100).fetch_add(1, SeqCst);
                futex(map.0.word(i), FUTEX_WAIT_BITSET | PRIV, 0, None, 0, bits);
                map.0.word(101).fetch_add(1, SeqCst);
            })
        })
        .collect();
    while (map.word(100).load(SeqCst) as usize) < n {
        sys::sleep_ms(1);
    }
    sys::sleep_ms(50);
    threads
}

struct MapRef(&'static Map);
unsafe impl Send for MapRef {}

fn leaked() -> Result<&'static Map, String> {
    Ok(Box::leak(Box::new(Map::anon(sys::PAGE)?)))
}

/// Wakes until `n` waiters have been woken in all, however late they came.
fn wake_all(map: &Map, i: usize, n: i32) -> Outcome {
    sys::eventually("all waiters are awake", || {
        futex(map.word(i), FUTEX_WAKE | PRIV, i32::MAX, None, 0, 0);
        map.word(101).load(SeqCst) == n
    })
}

fn wake_wakes_as_many_as_asked() -> Outcome {
    let map = leaked()?;
    let threads = waiters(map, 0, 3, !0);
    let mut woken = 0;
    sys::eventually("one waiter to wake", || {
        woken += futex(map.word(0), FUTEX_WAKE | PRIV, 1, None, 0, 0);
        woken == 1
    })?;
    sys::eventually("one awake", || map.word(101).load(SeqCst) == 1)?;
    wake_all(map, 0, 3)?;
    for t in threads {
        t.join().map_err(|_| "a waiter panicked".to_string())?;
    }
    Ok(())
}

fn shared_words_wake_across_processes() -> Outcome {
    let map = Map::shared(sys::PAGE)?;
    let kid = fork(|| {
        same!(futex(map.word(0), FUTEX_WAIT, 0, None, 0, 0), 0);
        Ok(())
    })?;
    sys::eventually("the child waits", || futex(map.word(0), FUTEX_WAKE, 1, None, 0, 0) == 1)?;
    kid.ok()
}

fn private_words_of_a_fork_are_apart() -> Outcome {
    let map = Map::anon(sys::PAGE)?;
    let kid = fork(|| {
        fails!(ETIMEDOUT, futex(map.word(0), FUTEX_WAIT, 0, Some(&sys::ts(100)), 0, 0));
        Ok(())
    })?;
    sys::sleep_ms(30);
    same!(futex(map.word(0), FUTEX_WAKE, 1, None, 0, 0), 0);
    kid.ok()
}

fn bitset_selects_waiters() -> Outcome {
    let map = leaked()?;
    let threads = waiters(map, 0, 1, 0b10);
    same!(futex(map.word(0), FUTEX_WAKE_BITSET | PRIV, 9, None, 0, 0b01), 0);
    sys::eventually("the matching bit wakes", || {
        futex(map.word(0), FUTEX_WAKE_BITSET | PRIV, 9, None, 0, 0b11) == 1
    })?;
    for t in threads {
        t.join().map_err(|_| "a waiter panicked".to_string())?;
    }
    Ok(())
}

fn zero_bitset_is_einval() -> Outcome {
    let w = AtomicI32::new(0);
    fails!(EINVAL, futex(&w, FUTEX_WAIT_BITSET | PRIV, 0, None, 0, 0));
    fails!(EINVAL, futex(&w, FUTEX_WAKE_BITSET | PRIV, 1, None, 0, 0));
    Ok(())
}

fn absolute_timeout_of_a_bitset_wait() -> Outcome {
    let w = AtomicI32::new(0);
    for (clock, flag) in [(CLOCK_MONOTONIC, 0), (CLOCK_REALTIME, FUTEX_CLOCK_REALTIME)] {
        let start = sys::clock(clock)?;
        let at = start + 30_000_000;
        let t = timespec { tv_sec: (at / 1_000_000_000) as i64, tv_nsec: (at % 1_000_000_000) as i64 };
        fails!(ETIMEDOUT, futex(&w, FUTEX_WAIT_BITSET | PRIV | flag, 0, Some(&t), 0, !0));
        want!(sys::clock(clock)? >= at, "woke before the time of clock {clock}");
        fails!(ETIMEDOUT, futex(&w, FUTEX_WAIT_BITSET | PRIV | flag, 0, Some(&sys::ts(1)), 0, !0));
    }
    Ok(())
}

fn requeue_moves_waiters() -> Outcome {
    let map = leaked()?;
    let threads = waiters(map, 0, 3, !0);
    let second = map.word(8).as_ptr() as usize;
    let moved =
        unsafe { syscall(SYS_futex, map.word(0).as_ptr(), FUTEX_REQUEUE | PRIV, 1, 9usize, second, 0) };
    same!(moved, 3);
    same!(futex(map.word(0), FUTEX_WAKE | PRIV, 9, None, 0, 0), 0);
    wake_all(map, 8, 3)?;
    for t in threads {
        t.join().map_err(|_| "a waiter panicked".to_string())?;
    }
    Ok(())
}

fn cmp_requeue_checks_the_value() -> Outcome {
    let map = Map::anon(sys::PAGE)?;
    let second = map.word(8).as_ptr() as usize;
    fails!(EAGAIN, syscall(SYS_futex, map.word(0).as_ptr(), FUTEX_CMP_REQUEUE | PRIV, 1, 9usize, second, 7));
    same!(ok!(syscall(SYS_futex, map.word(0).as_ptr(), FUTEX_CMP_REQUEUE | PRIV, 1, 9usize, second, 0)), 0);
    fails!(EINVAL, syscall(SYS_futex, map.word(0).as_ptr(), FUTEX_CMP_REQUEUE | PRIV, 1, -1i64, second, 0));
    Ok(())
}

fn wake_op_changes_the_second_word() -> Outcome {
    let map = Map::anon(sys::PAGE)?;
    let second = map.word(8).as_ptr() as usize;
    map.word(8).store(40, SeqCst);
    // FUTEX_OP_ADD 2, FUTEX_OP_CMP_EQ 40.
    let op: u32 = (1 << 28) | (2 << 12) | 40;
    same!(ok!(syscall(SYS_futex, map.word(0).as_ptr(), FUTEX_WAKE_OP | PRIV, 1, 1usize, second, op)), 0);
    same!(map.word(8).load(SeqCst), 42);
    // FUTEX_OP_ANDN 0xf.
    let op: u32 = (3 << 28) | (0xf << 12);
    ok!(syscall(SYS_futex, map.word(0).as_ptr(), FUTEX_WAKE_OP | PRIV, 1, 1usize, second, op));
    same!(map.word(8).load(SeqCst), 32);
    Ok(())
}

fn misaligned_word_is_einval() -> Outcome {
    let map = Map::anon(sys::PAGE)?;
    fails!(EINVAL, syscall(SYS_futex, map.at(2), FUTEX_WAIT | PRIV, 0, 0usize, 0usize, 0));
    fails!(EINVAL, syscall(SYS_futex, map.at(1), FUTEX_WAKE | PRIV, 1, 0usize, 0usize, 0));
    Ok(())
}

fn unmapped_word_is_efault() -> Outcome {
    fails!(EFAULT, syscall(SYS_futex, 64usize, FUTEX_WAIT | PRIV, 0, 0usize, 0usize, 0));
    fails!(EFAULT, syscall(SYS_futex, 64usize, FUTEX_WAIT, 0, 0usize, 0usize, 0));
    let w = AtomicI32::new(0);
    fails!(EFAULT, syscall(SYS_futex, w.as_ptr(), FUTEX_WAIT | PRIV, 0, 8usize, 0usize, 0));
    Ok(())
}

fn interrupted_wait_is_eintr() -> Outcome {
    sys::on_signal(SIGALRM, sys::count_handler, 0)?;
    let w = AtomicI32::new(0);
    sys::tick(20)?;
    fails!(EINTR, futex(&w, FUTEX_WAIT | PRIV, 0, None, 0, 0));
    sys::tick(0)
}

fn interrupted_wait_restarts_with_sa_restart() -> Outcome {
    sys::on_signal(SIGALRM, sys::count_handler, SA_RESTART)?;
    let map = Map::shared(sys::PAGE)?;
    let parent = unsafe { getpid() };
    let kid = fork(|| {
        sys::sleep_ms(30);
        ok!(kill(parent, SIGALRM));
        sys::sleep_ms(30);
        map.word(0).store(1, SeqCst);
        sys::eventually("the parent waits", || {
            futex(map.word(0), FUTEX_WAKE, 1, None, 0, 0) >= 1 || map.word(1).load(SeqCst) == 1
        })
    })?;
    let got = futex(map.word(0), FUTEX_WAIT, 0, None, 0, 0);
    map.word(1).store(1, SeqCst);
    // A wait that began after the store sees the new value instead.
    want!(got == 0 || crate::harness::errno() == EAGAIN, "the wait gave {got}");
    kid.ok()?;
    same!(sys::hits(), 1);
    Ok(())
}

fn unknown_operation_is_enosys() -> Outcome {
    let w = AtomicI32::new(0);
    fails!(ENOSYS, futex(&w, 100, 0, None, 0, 0));
    Ok(())
}

fn robust_list_marks_the_owner_dead() -> Outcome {
    let map = Map::shared(sys::PAGE)?;
    let kid = fork(|| {
        // A list head at word 64, one entry at word 80 whose lock word is 16 bytes on.
        let head = map.at(256).cast::<usize>();
        let entry = map.at(320).cast::<usize>();
        unsafe {
            head.write(entry as usize);
            head.add(1).write(16);
            head.add(2).write(0);
            entry.write(head as usize);
        }
        map.word(84).store(sys::gettid() | FUTEX_WAITERS as i32, SeqCst);
        ok!(syscall(SYS_set_robust_list, head, 24usize));
        Ok(())
    })?;
    kid.ok()?;
    let word = map.word(84).load(SeqCst) as u32;
    want!(word & FUTEX_OWNER_DIED != 0, "the word is {word:#x}");
    Ok(())
}

fn clear_child_tid_wakes_a_joiner() -> Outcome {
    let tid = std::sync::Arc::new(AtomicI32::new(0));
    for _ in 0..50 {
        let t = tid.clone();
        std::thread::spawn(move || t.fetch_add(1, SeqCst)).join().map_err(|_| "no join".to_string())?;
    }
    same!(tid.load(SeqCst), 50);
    Ok(())
}

fn shared_file_words_meet_at_the_offset() -> Outcome {
    sys::put("f", &[0u8; 8192])?;
    let fd = sys::open("f", O_RDWR)?;
    let raw = std::os::fd::AsRawFd::as_raw_fd(&fd);
    let one = Map::new(8192, PROT_READ | PROT_WRITE, MAP_SHARED, raw, 0)?;
    let two = Map::new(4096, PROT_READ | PROT_WRITE, MAP_SHARED, raw, 4096)?;
    let kid = fork(|| {
        same!(futex(one.word(1024), FUTEX_WAIT, 0, None, 0, 0), 0);
        Ok(())
    })?;
    sys::eventually("the child waits", || futex(two.word(0), FUTEX_WAKE, 1, None, 0, 0) == 1)?;
    kid.ok()
}
