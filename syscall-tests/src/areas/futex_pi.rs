//! Priority-inheritance futexes and robust lists: futex(2), set_robust_list(2).

use crate::harness::Outcome;
use crate::sys::{self, Kid, Map, fork};
use libc::*;
use std::sync::atomic::{AtomicI32, Ordering::SeqCst};

cases![
    lock_takes_a_free_word,
    lock_keeps_the_owner_died_bit,
    own_lock_is_edeadlk,
    lock_of_nobody_is_esrch,
    unlock_without_waiters_frees_the_word,
    unlock_of_anothers_is_eperm,
    trylock_of_anothers_is_eagain,
    lock_waits_for_the_owner,
    unlock_hands_over_with_the_waiters_bit,
    lock_times_out,
    lock2_times_out_on_the_monotonic_clock,
    lock_timeout_is_absolute_real_time,
    lock_is_restarted_after_a_signal,
    shared_lock_between_processes,
    owner_death_hands_over,
    robust_pi_lock_has_the_owner_died_bit,
    robust_pthread_mutex_reports_owner_dead,
    requeue_pi_needs_one_to_wake,
    requeue_pi_moves_to_the_lock,
    requeue_pi_takes_a_free_lock,
    wait_requeue_pi_times_out,
    wait_requeue_pi_checks_the_value,
    cmp_requeue_pi_checks_the_value,
    requeue_pi_to_another_lock_is_einval,
    wake_does_not_touch_a_requeue_pi_waiter,
    misaligned_and_unmapped_words,
    robust_list_with_a_loop_ends,
    robust_list_with_bad_pointers_ends,
    robust_list_pending_entry_is_released,
    robust_list_head_has_one_length,
    robust_words_of_others_are_left_alone,
    pi_mutex_counts_correctly,
    pi_condition_variable_works,
];

const LOCK_PI2: i32 = 13;
const WAITERS: u32 = 0x8000_0000;
const OWNER_DIED: u32 = 0x4000_0000;
const PRIV: i32 = FUTEX_PRIVATE_FLAG;

fn futex(word: &AtomicI32, op: i32, val: i32, timeout: Option<&timespec>, word2: usize, val3: u32) -> i64 {
    let t = timeout.map_or(std::ptr::null(), |t| &raw const *t);
    unsafe { syscall(SYS_futex, word.as_ptr(), op, val, t, word2, val3) }
}

fn lock(w: &AtomicI32) -> i64 {
    futex(w, FUTEX_LOCK_PI, 0, None, 0, 0)
}

fn unlock(w: &AtomicI32) -> i64 {
    futex(w, FUTEX_UNLOCK_PI, 0, None, 0, 0)
}

fn value(w: &AtomicI32) -> u32 {
    w.load(SeqCst) as u32
}

fn tid() -> u32 {
    sys::gettid() as u32
}

/// The time of `clock` and some milliseconds.
fn at(clock: i32, ms: i64) -> Result<timespec, String> {
    let t = sys::clock(clock)? + i128::from(ms) * 1_000_000;
    Ok(timespec { tv_sec: (t / 1_000_000_000) as i64, tv_nsec: (t % 1_000_000_000) as i64 })
}

fn lock_takes_a_free_word() -> Outcome {
    let w = AtomicI32::new(0);
    same!(ok!(lock(&w)), 0);
    same!(value(&w), tid());
    same!(ok!(unlock(&w)), 0);
    same!(ok!(futex(&w, FUTEX_TRYLOCK_PI | PRIV, 0, None, 0, 0)), 0);
    same!(value(&w), tid());
    Ok(())
}

fn lock_keeps_the_owner_died_bit() -> Outcome {
    let w = AtomicI32::new(OWNER_DIED as i32);
    ok!(lock(&w));
    same!(value(&w), OWNER_DIED | tid());
    Ok(())
}

fn own_lock_is_edeadlk() -> Outcome {
    let w = AtomicI32::new(sys::gettid());
    fails!(EDEADLK, lock(&w));
    fails!(EDEADLK, futex(&w, FUTEX_TRYLOCK_PI, 0, None, 0, 0));
    Ok(())
}

fn lock_of_nobody_is_esrch() -> Outcome {
    let w = AtomicI32::new(0x3fff_fff0);
    fails!(ESRCH, lock(&w));
    Ok(())
}

fn unlock_without_waiters_frees_the_word() -> Outcome {
    let w = AtomicI32::new(sys::gettid());
    ok!(unlock(&w));
    same!(value(&w), 0);
    // The bit without a waiter is no obstacle.
    w.store((tid() | WAITERS) as i32, SeqCst);
    ok!(unlock(&w));
    same!(value(&w), 0);
    Ok(())
}

fn unlock_of_anothers_is_eperm() -> Outcome {
    let w = AtomicI32::new(0);
    fails!(EPERM, unlock(&w));
    w.store(unsafe { getppid() }, SeqCst);
    fails!(EPERM, unlock(&w));
    Ok(())
}

/// A child that takes the lock in word 0, says so in word 1, and does `f`.
fn holder(map: &Map, f: impl FnOnce() -> Outcome) -> Result<Kid, String> {
    let kid = fork(|| {
        ok!(lock(map.word(0)));
        map.word(1).store(1, SeqCst);
        f()
    })?;
    sys::eventually("the child holds the lock", || map.word(1).load(SeqCst) == 1)?;
    Ok(kid)
}

/// Waits until somebody waits for word 0.
fn contended(map: &Map) -> Outcome {
    sys::eventually("a waiter", || value(map.word(0)) & WAITERS != 0)
}

fn trylock_of_anothers_is_eagain() -> Outcome {
    let map = Map::shared(sys::PAGE)?;
    let kid = holder(&map, || sys::eventually("the end", || map.word(2).load(SeqCst) == 1))?;
    fails!(EAGAIN, futex(map.word(0), FUTEX_TRYLOCK_PI, 0, None, 0, 0));
    map.word(2).store(1, SeqCst);
    kid.ok()
}

fn lock_waits_for_the_owner() -> Outcome {
    let map = Map::shared(sys::PAGE)?;
    let kid = holder(&map, || {
        contended(&map)?;
        map.word(2).store(7, SeqCst);
        ok!(unlock(map.word(0)));
        Ok(())
    })?;
    ok!(lock(map.word(0)));
    same!(map.word(2).load(SeqCst), 7);
    kid.ok()?;
    same!(value(map.word(0)) & 0x3fff_ffff, tid());
    ok!(unlock(map.word(0)));
    same!(value(map.word(0)), 0);
    Ok(())
}

fn unlock_hands_over_with_the_waiters_bit() -> Outcome {
    let map = Map::shared(sys::PAGE)?;
    let kid = holder(&map, || {
        contended(&map)?;
        ok!(unlock(map.word(0)));
        // The word never looks free in between.
        want!(value(map.word(0)) & 0x3fff_ffff != 0, "the word is free");
        Ok(())
    })?;
    ok!(lock(map.word(0)));
    same!(value(map.word(0)) & 0x3fff_ffff, tid());
    kid.ok()
}

fn lock_times_out() -> Outcome {
    let map = Map::shared(sys::PAGE)?;
    let kid = holder(&map, || sys::eventually("the end", || map.word(2).load(SeqCst) == 1))?;
    let t = at(CLOCK_REALTIME, 30)?;
    fails!(ETIMEDOUT, futex(map.word(0), FUTEX_LOCK_PI, 0, Some(&t), 0, 0));
    // The owner's unlock finds nobody.
    map.word(2).store(1, SeqCst);
    kid.ok()
}

fn lock2_times_out_on_the_monotonic_clock() -> Outcome {
    let map = Map::shared(sys::PAGE)?;
    let kid = holder(&map, || sys::eventually("the end", || map.word(2).load(SeqCst) == 1))?;
    let t = at(CLOCK_MONOTONIC, 20)?;
    fails!(ETIMEDOUT, futex(map.word(0), LOCK_PI2, 0, Some(&t), 0, 0));
    let t = at(CLOCK_REALTIME, 20)?;
    fails!(ETIMEDOUT, futex(map.word(0), LOCK_PI2 | FUTEX_CLOCK_REALTIME, 0, Some(&t), 0, 0));
    map.word(2).store(1, SeqCst);
    kid.ok()
}

fn lock_timeout_is_absolute_real_time() -> Outcome {
    let map = Map::shared(sys::PAGE)?;
    let kid = holder(&map, || sys::eventually("the end", || map.word(2).load(SeqCst) == 1))?;
    let past = timespec { tv_sec: 1, tv_nsec: 0 };
    fails!(ETIMEDOUT, futex(map.word(0), FUTEX_LOCK_PI, 0, Some(&past), 0, 0));
    let bad = timespec { tv_sec: 1, tv_nsec: 2_000_000_000 };
    fails!(EINVAL, futex(map.word(0), FUTEX_LOCK_PI, 0, Some(&bad), 0, 0));
    map.word(2).store(1, SeqCst);
    kid.ok()
}

fn lock_is_restarted_after_a_signal() -> Outcome {
    let map = Map::shared(sys::PAGE)?;
    sys::on_signal(SIGUSR1, sys::count_handler, 0)?;
    let me = unsafe { getpid() };
    let kid = holder(&map, || {
        contended(&map)?;
        for _ in 0..5 {
            ok!(kill(me, SIGUSR1));
            sys::sleep_ms(5);
        }
        contended(&map)?;
        ok!(unlock(map.word(0)));
        Ok(())
    })?;
    same!(ok!(lock(map.word(0))), 0);
    want!(sys::hits() > 0, "no signal came");
    kid.ok()
}

fn shared_lock_between_processes() -> Outcome {
    let map = Map::shared(sys::PAGE)?;
    let work = || -> Outcome {
        for _ in 0..300 {
            let me = sys::gettid();
            if map.word(0).compare_exchange(0, me, SeqCst, SeqCst).is_err() {
                ok!(lock(map.word(0)));
            }
            let seen = map.word(5).load(SeqCst);
            std::hint::spin_loop();
            map.word(5).store(seen + 1, SeqCst);
            if map.word(0).compare_exchange(me, 0, SeqCst, SeqCst).is_err() {
                ok!(unlock(map.word(0)));
            }
        }
        Ok(())
    };
    let kids: Result<Vec<_>, _> = (0..3).map(|_| fork(work)).collect();
    for kid in kids? {
        kid.ok()?;
    }
    same!(map.word(5).load(SeqCst), 900);
    Ok(())
}

fn owner_death_hands_over() -> Outcome {
    let map = Map::shared(sys::PAGE)?;
    let kid = holder(&map, || contended(&map))?;
    // The owner ends with the lock.
    ok!(lock(map.word(0)));
    same!(value(map.word(0)) & 0x3fff_ffff, tid());
    want!(value(map.word(0)) & OWNER_DIED != 0, "word {:#x}", value(map.word(0)));
    kid.ok()
}

/// A robust list with one entry in `map`: head at byte 256, entry at 320, its lock word `offset` bytes further.
fn robust(map: &Map, offset: usize, pi: bool) -> Outcome {
    let head = map.at(256).cast::<usize>();
    let entry = map.at(320).cast::<usize>();
    unsafe {
        head.write(entry as usize | usize::from(pi));
        head.add(1).write(offset);
        head.add(2).write(0);
        entry.write(head as usize);
    }
    ok!(syscall(SYS_set_robust_list, head, 24usize));
    Ok(())
}

fn robust_pi_lock_has_the_owner_died_bit() -> Outcome {
    let map = Map::shared(sys::PAGE)?;
    let kid = fork(|| {
        robust(&map, 16, true)?;
        ok!(lock(map.word(84)));
        map.word(1).store(1, SeqCst);
        sys::eventually("a waiter", || value(map.word(84)) & WAITERS != 0)
    })?;
    sys::eventually("the child holds the lock", || map.word(1).load(SeqCst) == 1)?;
    ok!(lock(map.word(84)));
    let word = value(map.word(84));
    same!(word & 0x3fff_ffff, tid());
    want!(word & OWNER_DIED != 0, "word {word:#x}");
    kid.ok()
}

fn robust_pthread_mutex_reports_owner_dead() -> Outcome {
    for protocol in [PTHREAD_PRIO_NONE, PTHREAD_PRIO_INHERIT] {
        let map = Map::shared(sys::PAGE)?;
        let mutex = map.at(64).cast::<pthread_mutex_t>();
        unsafe {
            let mut attr = std::mem::zeroed();
            pthread_mutexattr_init(&raw mut attr);
            pthread_mutexattr_setpshared(&raw mut attr, PTHREAD_PROCESS_SHARED);
            pthread_mutexattr_setrobust(&raw mut attr, PTHREAD_MUTEX_ROBUST);
            pthread_mutexattr_setprotocol(&raw mut attr, protocol);
            same!(pthread_mutex_init(mutex, &raw const attr), 0);
        }
        let kid = fork(|| {
            same!(unsafe { pthread_mutex_lock(mutex) }, 0);
            map.word(1).store(1, SeqCst);
            sys::sleep_ms(20);
            Ok(())
        })?;
        sys::eventually("the child holds the lock", || map.word(1).load(SeqCst) == 1)?;
        same!(unsafe { pthread_mutex_lock(mutex) }, EOWNERDEAD);
        same!(unsafe { pthread_mutex_consistent(mutex) }, 0);
        same!(unsafe { pthread_mutex_unlock(mutex) }, 0);
        same!(unsafe { pthread_mutex_lock(mutex) }, 0);
        kid.ok()?;
    }
    Ok(())
}

/// `nr_requeue` goes where a timeout would.
fn requeue(map: &Map, nr_wake: i32, nr_requeue: usize, target: usize, expect: u32) -> i64 {
    unsafe {
        syscall(
            SYS_futex,
            map.word(10).as_ptr(),
            FUTEX_CMP_REQUEUE_PI,
            nr_wake,
            nr_requeue,
            map.word(target).as_ptr(),
            expect,
        )
    }
}

fn wait_requeue(map: &Map, timeout: Option<&timespec>, target: usize) -> i64 {
    futex(map.word(10), FUTEX_WAIT_REQUEUE_PI, 0, timeout, map.word(target).as_ptr() as usize, 0)
}

fn requeue_pi_needs_one_to_wake() -> Outcome {
    let map = Map::shared(sys::PAGE)?;
    fails!(EINVAL, requeue(&map, 0, 1, 0, 0));
    fails!(EINVAL, requeue(&map, 2, 1, 0, 0));
    fails!(EINVAL, requeue(&map, 1, 1, 10, 0));
    same!(ok!(requeue(&map, 1, 1, 0, 0)), 0);
    Ok(())
}

/// Requeues until `n` waiters have been moved or woken.
fn requeue_all(map: &Map, n: i64) -> Outcome {
    let mut moved = 0;
    sys::eventually("the waiters move", || {
        moved += requeue(map, 1, 100, 0, 0).max(0);
        moved == n
    })
}

fn requeue_pi_moves_to_the_lock() -> Outcome {
    let map = Map::shared(sys::PAGE)?;
    ok!(lock(map.word(0)));
    let waiter = || -> Outcome {
        same!(ok!(wait_requeue(&map, None, 0)), 0);
        // Back with the lock.
        same!(value(map.word(0)) & 0x3fff_ffff, tid());
        map.word(20).fetch_add(1, SeqCst);
        ok!(unlock(map.word(0)));
        Ok(())
    };
    let kids = [fork(waiter)?, fork(waiter)?, fork(waiter)?];
    requeue_all(&map, 3)?;
    same!(map.word(20).load(SeqCst), 0);
    ok!(unlock(map.word(0)));
    for kid in kids {
        kid.ok()?;
    }
    same!(map.word(20).load(SeqCst), 3);
    Ok(())
}

fn requeue_pi_takes_a_free_lock() -> Outcome {
    let map = Map::shared(sys::PAGE)?;
    let kid = fork(|| {
        same!(ok!(wait_requeue(&map, None, 0)), 0);
        same!(value(map.word(0)) & 0x3fff_ffff, tid());
        ok!(unlock(map.word(0)));
        Ok(())
    })?;
    requeue_all(&map, 1)?;
    kid.ok()
}

fn wait_requeue_pi_times_out() -> Outcome {
    let map = Map::shared(sys::PAGE)?;
    let t = at(CLOCK_MONOTONIC, 20)?;
    fails!(ETIMEDOUT, wait_requeue(&map, Some(&t), 0));
    // Moved, but the lock does not come.
    ok!(lock(map.word(0)));
    let kid = fork(|| {
        let t = at(CLOCK_MONOTONIC, 200)?;
        fails!(ETIMEDOUT, wait_requeue(&map, Some(&t), 0));
        Ok(())
    })?;
    requeue_all(&map, 1)?;
    kid.ok()?;
    ok!(unlock(map.word(0)));
    Ok(())
}

fn wait_requeue_pi_checks_the_value() -> Outcome {
    let map = Map::shared(sys::PAGE)?;
    map.word(10).store(5, SeqCst);
    fails!(EAGAIN, wait_requeue(&map, None, 0));
    fails!(EINVAL, wait_requeue(&map, None, 10));
    Ok(())
}

fn cmp_requeue_pi_checks_the_value() -> Outcome {
    let map = Map::shared(sys::PAGE)?;
    fails!(EAGAIN, requeue(&map, 1, 1, 0, 3));
    Ok(())
}

fn requeue_pi_to_another_lock_is_einval() -> Outcome {
    let map = Map::shared(sys::PAGE)?;
    let kid = fork(|| {
        ok!(wait_requeue(&map, None, 0));
        ok!(unlock(map.word(0)));
        Ok(())
    })?;
    sys::eventually("the waiter is refused", || {
        requeue(&map, 1, 1, 4, 0) == -1 && crate::harness::errno() == EINVAL
    })?;
    requeue_all(&map, 1)?;
    kid.ok()
}

fn wake_does_not_touch_a_requeue_pi_waiter() -> Outcome {
    let map = Map::shared(sys::PAGE)?;
    let kid = fork(|| {
        map.word(1).store(1, SeqCst);
        ok!(wait_requeue(&map, None, 0));
        map.word(1).store(2, SeqCst);
        ok!(unlock(map.word(0)));
        Ok(())
    })?;
    sys::eventually("the child runs", || map.word(1).load(SeqCst) == 1)?;
    sys::sleep_ms(20);
    want!(futex(map.word(10), FUTEX_WAKE, 1, None, 0, 0) <= 0, "a waiter was woken");
    same!(map.word(1).load(SeqCst), 1);
    requeue_all(&map, 1)?;
    kid.ok()
}

fn misaligned_and_unmapped_words() -> Outcome {
    let at = |addr: usize, op: i32| unsafe { syscall(SYS_futex, addr, op, 0, 0, 0, 0) };
    let w = AtomicI32::new(0);
    for op in [FUTEX_LOCK_PI, FUTEX_TRYLOCK_PI, LOCK_PI2] {
        fails!(EINVAL, at(w.as_ptr() as usize + 1, op));
        fails!(EFAULT, at(8, op | PRIV));
    }
    fails!(EFAULT, at(8, FUTEX_UNLOCK_PI | PRIV));
    let ro = Map::new(sys::PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)?;
    fails!(EFAULT, at(ro.at(0) as usize, FUTEX_LOCK_PI | PRIV));
    Ok(())
}

fn robust_list_with_a_loop_ends() -> Outcome {
    let map = Map::shared(sys::PAGE)?;
    let kid = fork(|| {
        // Two entries that name each other and never the head.
        let head = map.at(256).cast::<usize>();
        let (a, b) = (map.at(320).cast::<usize>(), map.at(384).cast::<usize>());
        unsafe {
            head.write(a as usize);
            head.add(1).write(16);
            head.add(2).write(0);
            a.write(b as usize);
            b.write(a as usize);
        }
        map.word(84).store(sys::gettid(), SeqCst);
        ok!(syscall(SYS_set_robust_list, head, 24usize));
        Ok(())
    })?;
    kid.ok()?;
    same!(value(map.word(84)), OWNER_DIED);
    Ok(())
}

fn robust_list_with_bad_pointers_ends() -> Outcome {
    for (next, offset) in [(8usize, 0usize), (usize::MAX - 7, 16), (0x8000_0000_0000, 0), (0, usize::MAX)] {
        let map = Map::shared(sys::PAGE)?;
        fork(|| {
            let head = map.at(256).cast::<usize>();
            unsafe {
                head.write(next);
                head.add(1).write(offset);
                head.add(2).write(next);
            }
            ok!(syscall(SYS_set_robust_list, head, 24usize));
            Ok(())
        })?
        .ok()?;
    }
    // A head that is not there.
    fork(|| {
        ok!(syscall(SYS_set_robust_list, 8usize, 24usize));
        Ok(())
    })?
    .ok()
}

fn robust_list_pending_entry_is_released() -> Outcome {
    let map = Map::shared(sys::PAGE)?;
    fork(|| {
        let head = map.at(256).cast::<usize>();
        let entry = map.at(320).cast::<usize>();
        unsafe {
            head.write(head as usize);
            head.add(1).write(16);
            head.add(2).write(entry as usize);
        }
        map.word(84).store(sys::gettid(), SeqCst);
        ok!(syscall(SYS_set_robust_list, head, 24usize));
        Ok(())
    })?
    .ok()?;
    same!(value(map.word(84)), OWNER_DIED);
    Ok(())
}

fn robust_list_head_has_one_length() -> Outcome {
    let map = Map::anon(sys::PAGE)?;
    fails!(EINVAL, syscall(SYS_set_robust_list, map.at(0), 23usize));
    fails!(EINVAL, syscall(SYS_set_robust_list, map.at(0), 25usize));
    ok!(syscall(SYS_set_robust_list, map.at(64), 24usize));
    let (mut head, mut len) = (0usize, 0usize);
    ok!(syscall(SYS_get_robust_list, 0, &raw mut head, &raw mut len));
    same!((head, len), (map.at(64) as usize, 24));
    fails!(ESRCH, syscall(SYS_get_robust_list, 4_100_000, &raw mut head, &raw mut len));
    Ok(())
}

fn robust_words_of_others_are_left_alone() -> Outcome {
    let map = Map::shared(sys::PAGE)?;
    let me = sys::gettid();
    fork(|| {
        robust(&map, 16, false)?;
        map.word(84).store(me, SeqCst);
        Ok(())
    })?
    .ok()?;
    same!(value(map.word(84)), tid());
    Ok(())
}

fn pi_mutex() -> pthread_mutex_t {
    unsafe {
        let mut attr = std::mem::zeroed();
        let mut mutex = std::mem::zeroed();
        pthread_mutexattr_init(&raw mut attr);
        pthread_mutexattr_setprotocol(&raw mut attr, PTHREAD_PRIO_INHERIT);
        pthread_mutex_init(&raw mut mutex, &raw const attr);
        mutex
    }
}

struct Shared {
    mutex: std::cell::UnsafeCell<pthread_mutex_t>,
    cond: std::cell::UnsafeCell<pthread_cond_t>,
    count: std::cell::UnsafeCell<u64>,
}

unsafe impl Sync for Shared {}

impl Shared {
    fn new() -> &'static Self {
        Box::leak(Box::new(Self {
            mutex: pi_mutex().into(),
            cond: PTHREAD_COND_INITIALIZER.into(),
            count: 0.into(),
        }))
    }
}

fn pi_mutex_counts_correctly() -> Outcome {
    let shared = Shared::new();
    let threads: Vec<_> = (0..4)
        .map(|_| {
            std::thread::spawn(move || {
                for _ in 0..2000 {
                    unsafe {
                        pthread_mutex_lock(shared.mutex.get());
                        *shared.count.get() += 1;
                        pthread_mutex_unlock(shared.mutex.get());
                    }
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().map_err(|_| "no join".to_string())?;
    }
    same!(unsafe { *shared.count.get() }, 8000);
    Ok(())
}

fn pi_condition_variable_works() -> Outcome {
    let shared = Shared::new();
    let threads: Vec<_> = (0..4)
        .map(|_| {
            std::thread::spawn(move || unsafe {
                pthread_mutex_lock(shared.mutex.get());
                while *shared.count.get() == 0 {
                    pthread_cond_wait(shared.cond.get(), shared.mutex.get());
                }
                pthread_mutex_unlock(shared.mutex.get());
            })
        })
        .collect();
    sys::sleep_ms(20);
    unsafe {
        pthread_mutex_lock(shared.mutex.get());
        *shared.count.get() = 1;
        pthread_cond_broadcast(shared.cond.get());
        pthread_mutex_unlock(shared.mutex.get());
    }
    for thread in threads {
        thread.join().map_err(|_| "no join".to_string())?;
    }
    Ok(())
}
