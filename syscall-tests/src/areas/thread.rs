//! Threads: clone(2) with CLONE_THREAD, thread ids, shared and own state.

use crate::harness::Outcome;
use crate::sys;
use libc::*;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Barrier, Condvar, Mutex};

cases![
    threads_share_pid_and_have_their_own_tid,
    counters_under_a_mutex_add_up,
    condition_variables_hand_over,
    many_short_threads,
    tgkill_reaches_one_thread,
    tgkill_errors,
    thread_local_storage_is_separate,
    sigmask_is_per_thread,
    exec_in_a_thread_ends_the_others,
    cwd_is_shared,
    fatal_signal_ends_all_threads,
    floating_point_state_is_per_thread,
    blocked_reader_does_not_stop_the_others,
    threads_by_the_thousand_with_signals_and_forks,
];

fn join<T>(t: std::thread::JoinHandle<T>) -> Result<T, String> {
    t.join().map_err(|_| "a thread panicked".to_string())
}

fn threads_share_pid_and_have_their_own_tid() -> Outcome {
    let (pid, tid) = (unsafe { getpid() }, sys::gettid());
    same!(pid, tid);
    let (p, t) = join(std::thread::spawn(|| (unsafe { getpid() }, sys::gettid())))?;
    same!(p, pid);
    want!(t != tid, "two threads have the id {t}");
    Ok(())
}

fn counters_under_a_mutex_add_up() -> Outcome {
    let n = Arc::new(Mutex::new(0u64));
    let threads: Vec<_> = (0..8)
        .map(|_| {
            let n = n.clone();
            std::thread::spawn(move || {
                for _ in 0..5000 {
                    *n.lock().unwrap_or_else(|e| e.into_inner()) += 1;
                }
            })
        })
        .collect();
    for t in threads {
        join(t)?;
    }
    same!(*n.lock().unwrap_or_else(|e| e.into_inner()), 40_000);
    Ok(())
}

fn condition_variables_hand_over() -> Outcome {
    let pair = Arc::new((Mutex::new(0u32), Condvar::new()));
    let other = pair.clone();
    let t = std::thread::spawn(move || {
        for i in 0..500 {
            let mut v = other.0.lock().unwrap_or_else(|e| e.into_inner());
            while *v != 2 * i + 1 {
                v = other.1.wait(v).unwrap_or_else(|e| e.into_inner());
            }
            *v += 1;
            other.1.notify_all();
        }
    });
    for i in 0..500 {
        let mut v = pair.0.lock().unwrap_or_else(|e| e.into_inner());
        while *v != 2 * i {
            v = pair.1.wait(v).unwrap_or_else(|e| e.into_inner());
        }
        *v += 1;
        pair.1.notify_all();
    }
    join(t)?;
    same!(*pair.0.lock().unwrap_or_else(|e| e.into_inner()), 1000);
    Ok(())
}

fn many_short_threads() -> Outcome {
    let n = Arc::new(AtomicUsize::new(0));
    for _ in 0..25 {
        let threads: Vec<_> = (0..20)
            .map(|_| {
                let n = n.clone();
                std::thread::spawn(move || n.fetch_add(1, SeqCst))
            })
            .collect();
        for t in threads {
            join(t)?;
        }
    }
    same!(n.load(SeqCst), 500);
    Ok(())
}

static WHO: AtomicI32 = AtomicI32::new(0);

extern "C" fn who(_: i32, _: *mut siginfo_t, _: *mut c_void) {
    WHO.store(sys::gettid(), SeqCst);
}

fn tgkill_reaches_one_thread() -> Outcome {
    sys::on_signal(SIGUSR1, who, SA_RESTART)?;
    let tid = Arc::new(AtomicI32::new(0));
    let seen = tid.clone();
    let t = std::thread::spawn(move || {
        seen.store(sys::gettid(), SeqCst);
        sys::eventually("the signal", || WHO.load(SeqCst) != 0)
    });
    sys::eventually("the thread", || tid.load(SeqCst) != 0)?;
    ok!(syscall(SYS_tgkill, getpid(), tid.load(SeqCst), SIGUSR1));
    join(t)??;
    same!(WHO.load(SeqCst), tid.load(SeqCst));
    Ok(())
}

fn tgkill_errors() -> Outcome {
    fails!(EINVAL, syscall(SYS_tgkill, -1, 1, 0));
    fails!(EINVAL, syscall(SYS_tgkill, getpid(), sys::gettid(), 99));
    fails!(ESRCH, syscall(SYS_tgkill, getpid(), 4_000_000, 0));
    ok!(syscall(SYS_tgkill, getpid(), sys::gettid(), 0));
    Ok(())
}

thread_local! {
    static OWN: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

fn thread_local_storage_is_separate() -> Outcome {
    let threads: Vec<_> = (1..6)
        .map(|i| {
            std::thread::spawn(move || {
                OWN.set(i);
                for _ in 0..50 {
                    std::thread::yield_now();
                }
                OWN.get() == i
            })
        })
        .collect();
    for t in threads {
        want!(join(t)?, "a thread saw another's variable");
    }
    same!(OWN.get(), 0);
    Ok(())
}

fn sigmask_is_per_thread() -> Outcome {
    sys::block(&[SIGUSR1])?;
    let inherited = join(std::thread::spawn(|| -> Result<bool, String> {
        let old = sys::mask(SIG_UNBLOCK, &[SIGUSR1])?;
        Ok(unsafe { sigismember(&raw const old, SIGUSR1) } == 1)
    }))??;
    want!(inherited, "the mask is not inherited");
    let mine = sys::mask(SIG_BLOCK, &[])?;
    same!(unsafe { sigismember(&raw const mine, SIGUSR1) }, 1);
    Ok(())
}

fn exec_in_a_thread_ends_the_others() -> Outcome {
    let (out, status) = sys::helper(&["pid"], &[], || {
        let exe = sys::self_exe()?;
        let pid = unsafe { getpid() };
        let t = std::thread::spawn(move || unsafe {
            let arg = [c"x".as_ptr(), c"helper".as_ptr(), c"pid".as_ptr(), std::ptr::null()];
            std::thread::spawn(|| std::thread::sleep(std::time::Duration::from_secs(100)));
            sys::sleep_ms(10);
            execve(exe.as_ptr(), arg.as_ptr(), [std::ptr::null()].as_ptr());
        });
        let _ = (t.join(), pid);
        Ok(())
    })?;
    same!(status, 0);
    let ids: Vec<&str> = out.split(' ').collect();
    same!(ids.first(), ids.get(1));
    Ok(())
}

fn cwd_is_shared() -> Outcome {
    ok!(mkdir(c"d".as_ptr(), 0o755));
    join(std::thread::spawn(|| std::env::set_current_dir("d").map_err(|e| e.to_string())))??;
    let cwd = std::env::current_dir().map_err(|e| e.to_string())?;
    want!(cwd.ends_with("d"), "the directory is {}", cwd.display());
    Ok(())
}

fn fatal_signal_ends_all_threads() -> Outcome {
    sys::dies_of(SIGTERM, || {
        for _ in 0..4 {
            std::thread::spawn(|| std::thread::sleep(std::time::Duration::from_secs(100)));
        }
        sys::sleep_ms(20);
        unsafe { kill(getpid(), SIGTERM) };
        sys::sleep_ms(10_000);
    })
}

fn floating_point_state_is_per_thread() -> Outcome {
    let barrier = Arc::new(Barrier::new(4));
    let threads: Vec<_> = (0..4)
        .map(|i| {
            let barrier = barrier.clone();
            std::thread::spawn(move || {
                barrier.wait();
                let mut x = 1.0f64 + f64::from(i);
                for k in 1..20_000 {
                    x = (x * 1.000_001).sqrt() * x.sqrt() / (1.000_000_5 + f64::from(k % 2) * 1e-12);
                    if k % 1000 == 0 {
                        std::thread::yield_now();
                    }
                }
                x.to_bits()
            })
        })
        .collect();
    let first: Vec<u64> = threads.into_iter().map(join).collect::<Result<_, _>>()?;
    for (i, bits) in first.iter().enumerate() {
        let mut x = 1.0f64 + i as f64;
        for k in 1..20_000 {
            x = (x * 1.000_001).sqrt() * x.sqrt() / (1.000_000_5 + f64::from(k % 2) * 1e-12);
        }
        same!(*bits, x.to_bits());
    }
    Ok(())
}

fn blocked_reader_does_not_stop_the_others() -> Outcome {
    let (rd, wr) = sys::pipe()?;
    let t = std::thread::spawn(move || sys::fd_read(&rd, 9));
    for _ in 0..100 {
        unsafe { sched_yield() };
    }
    sys::fd_write(&wr, b"late")?;
    same!(join(t)??, b"late");
    Ok(())
}

/// Whether a call of the threads library has ended otherwise than it may: it ends the process where a futex does.
static STRANGE: AtomicI32 = AtomicI32::new(0);

fn expect_zero(error: i32) {
    if error != 0 {
        STRANGE.store(error, SeqCst);
    }
}

/// What the short threads contend for.
struct Contended {
    lock: std::cell::UnsafeCell<pthread_mutex_t>,
    changed: std::cell::UnsafeCell<pthread_cond_t>,
    begun: std::cell::UnsafeCell<sem_t>,
    count: AtomicUsize,
}

unsafe impl Sync for Contended {}

static CONTENDED: Contended = Contended {
    lock: std::cell::UnsafeCell::new(PTHREAD_MUTEX_INITIALIZER),
    changed: std::cell::UnsafeCell::new(PTHREAD_COND_INITIALIZER),
    begun: std::cell::UnsafeCell::new(unsafe { std::mem::zeroed() }),
    count: AtomicUsize::new(0),
};

extern "C" fn contend(number: *mut c_void) -> *mut c_void {
    let (lock, changed) = (CONTENDED.lock.get(), CONTENDED.changed.get());
    unsafe { expect_zero(sem_post(CONTENDED.begun.get())) };
    for turn in 0..5 {
        unsafe { expect_zero(pthread_mutex_lock(lock)) };
        // Under the lock: an addition that is not atomic would show its failure.
        CONTENDED.count.store(CONTENDED.count.load(SeqCst) + 1, SeqCst);
        if turn == number as usize % 5 {
            let mut until: timespec = unsafe { std::mem::zeroed() };
            unsafe { clock_gettime(CLOCK_REALTIME, &raw mut until) };
            until.tv_nsec += 500_000;
            if until.tv_nsec >= 1_000_000_000 {
                until.tv_nsec -= 1_000_000_000;
                until.tv_sec += 1;
            }
            let end = unsafe { pthread_cond_timedwait(changed, lock, &raw const until) };
            expect_zero(if end == ETIMEDOUT { 0 } else { end });
        } else {
            unsafe { expect_zero(pthread_cond_signal(changed)) };
        }
        unsafe { expect_zero(pthread_mutex_unlock(lock)) };
    }
    number
}

/// Makes threads, signals some of them, forks in between, and joins them all.
fn make_threads(rounds: usize, width: usize) {
    for round in 0..rounds {
        let mut made = Vec::with_capacity(width);
        for index in 0..width {
            let mut thread: pthread_t = 0;
            let number = (round + index) as *mut c_void;
            let made_it = unsafe { pthread_create(&raw mut thread, std::ptr::null(), contend, number) };
            expect_zero(made_it);
            if made_it != 0 {
                return;
            }
            made.push(thread);
            if index % 3 == 0 {
                let sent = unsafe { pthread_kill(thread, SIGUSR1) };
                expect_zero(if sent == ESRCH { 0 } else { sent });
            }
            while unsafe { sem_wait(CONTENDED.begun.get()) } != 0 {
                let error = crate::harness::errno();
                expect_zero(if error == EINTR { 0 } else { error });
            }
        }
        if round % 5 == 0 {
            match unsafe { fork() } {
                0 => unsafe { _exit(0) },
                child => {
                    let mut status = -1;
                    while unsafe { waitpid(child, &raw mut status, 0) } < 0
                        && crate::harness::errno() == EINTR
                    {}
                    expect_zero(status);
                }
            }
        }
        for (index, thread) in made.into_iter().enumerate() {
            let mut number = std::ptr::null_mut();
            unsafe { expect_zero(pthread_join(thread, &raw mut number)) };
            expect_zero(i32::from(number as usize != round + index));
        }
    }
}

fn threads_by_the_thousand_with_signals_and_forks() -> Outcome {
    extern "C" fn ignore(_: i32) {}
    const MAKERS: usize = 8;
    const ROUNDS: usize = 25;
    const WIDTH: usize = 10;
    ok!(sem_init(CONTENDED.begun.get(), 0, 0));
    for signo in [SIGALRM, SIGUSR1] {
        let mut action: sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = ignore as *const () as usize;
        action.sa_flags = if signo == SIGUSR1 { SA_RESTART } else { 0 };
        ok!(sigaction(signo, &raw const action, std::ptr::null_mut()));
    }
    let often = timeval { tv_sec: 0, tv_usec: 900 };
    let often = itimerval { it_interval: often, it_value: often };
    ok!(setitimer(ITIMER_REAL, &raw const often, std::ptr::null_mut()));
    let makers: Vec<_> = (0..MAKERS).map(|_| std::thread::spawn(|| make_threads(ROUNDS, WIDTH))).collect();
    for maker in makers {
        join(maker)?;
    }
    same!(STRANGE.load(SeqCst), 0);
    same!(CONTENDED.count.load(SeqCst), MAKERS * ROUNDS * WIDTH * 5);
    Ok(())
}
