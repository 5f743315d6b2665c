//! clock_gettime(2), nanosleep(2), timers.

use crate::harness::Outcome;
use crate::sys::{self, ts};
use libc::*;

cases![
    monotonic_never_goes_back,
    clocks_agree_with_each_other,
    resolution_is_one_nanosecond,
    unknown_clock_is_einval,
    setting_the_clock_is_refused_without_the_right,
    nanosleep_sleeps_long_enough,
    nanosleep_bad_values_are_einval,
    interrupted_nanosleep_tells_the_rest,
    absolute_sleep_in_the_past_returns_at_once,
    cpu_clocks_count_work,
    itimer_real_repeats,
    getitimer_tells_the_rest,
    posix_timer_sends_its_value,
    posix_timer_overrun_and_delete,
    times_and_getrusage_grow,
    stopped_sleep_goes_on_after_continue,
];

fn monotonic_never_goes_back() -> Outcome {
    let mut last = 0;
    for _ in 0..10_000 {
        let now = sys::clock(CLOCK_MONOTONIC)?;
        want!(now >= last, "{now} after {last}");
        last = now;
    }
    Ok(())
}

fn clocks_agree_with_each_other() -> Outcome {
    let real = sys::clock(CLOCK_REALTIME)? / 1_000_000_000;
    let mut tv = timeval { tv_sec: 0, tv_usec: 0 };
    ok!(syscall(SYS_gettimeofday, &raw mut tv, 0usize));
    let secs = ok!(syscall(SYS_time, 0usize));
    want!((i128::from(tv.tv_sec) - real).abs() <= 1, "gettimeofday {} against {real}", tv.tv_sec);
    want!((i128::from(secs) - real).abs() <= 1, "time {secs} against {real}");
    let mut t = ts(0);
    // The call itself and not the vDSO.
    ok!(syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &raw mut t));
    let vdso = sys::clock(CLOCK_MONOTONIC)?;
    let call = i128::from(t.tv_sec) * 1_000_000_000 + i128::from(t.tv_nsec);
    want!((0..1_000_000_000).contains(&(vdso - call)), "the call says {call}, the vDSO {vdso}");
    for id in [CLOCK_BOOTTIME, CLOCK_MONOTONIC_RAW, CLOCK_REALTIME_COARSE, CLOCK_MONOTONIC_COARSE] {
        sys::clock(id)?;
    }
    Ok(())
}

fn resolution_is_one_nanosecond() -> Outcome {
    let mut t = ts(0);
    ok!(clock_getres(CLOCK_MONOTONIC, &raw mut t));
    same!((t.tv_sec, t.tv_nsec), (0, 1));
    ok!(clock_getres(CLOCK_REALTIME, std::ptr::null_mut()));
    Ok(())
}

fn unknown_clock_is_einval() -> Outcome {
    let mut t = ts(0);
    fails!(EINVAL, syscall(SYS_clock_gettime, 99, &raw mut t));
    fails!(EFAULT, syscall(SYS_clock_gettime, CLOCK_BOOTTIME, 8usize));
    Ok(())
}

fn setting_the_clock_is_refused_without_the_right() -> Outcome {
    sys::drop_root()?;
    let t = ts(1);
    fails!(EPERM, clock_settime(CLOCK_REALTIME, &raw const t));
    Ok(())
}

fn nanosleep_sleeps_long_enough() -> Outcome {
    for ms in [0, 1, 20] {
        let start = sys::clock(CLOCK_MONOTONIC)?;
        ok!(syscall(SYS_nanosleep, &ts(ms), 0usize));
        let took = sys::clock(CLOCK_MONOTONIC)? - start;
        want!(took >= i128::from(ms) * 1_000_000, "slept {took} ns of {ms} ms");
    }
    Ok(())
}

fn nanosleep_bad_values_are_einval() -> Outcome {
    let bad = timespec { tv_sec: 0, tv_nsec: 1_000_000_000 };
    fails!(EINVAL, syscall(SYS_nanosleep, &raw const bad, 0usize));
    let bad = timespec { tv_sec: -1, tv_nsec: 0 };
    fails!(EINVAL, syscall(SYS_nanosleep, &raw const bad, 0usize));
    fails!(EFAULT, syscall(SYS_nanosleep, 8usize, 0usize));
    Ok(())
}

fn interrupted_nanosleep_tells_the_rest() -> Outcome {
    sys::on_signal(SIGALRM, sys::count_handler, SA_RESTART)?;
    sys::tick(30)?;
    let mut rest = ts(0);
    fails!(EINTR, syscall(SYS_nanosleep, &ts(5000), &raw mut rest));
    sys::tick(0)?;
    let ms = rest.tv_sec * 1000 + rest.tv_nsec / 1_000_000;
    want!((1000..4980).contains(&ms), "{ms} ms are left of 5000");
    Ok(())
}

fn absolute_sleep_in_the_past_returns_at_once() -> Outcome {
    for clock in [CLOCK_MONOTONIC, CLOCK_REALTIME] {
        same!(unsafe { clock_nanosleep(clock, TIMER_ABSTIME, &ts(1), std::ptr::null_mut()) }, 0);
        let at = sys::clock(clock)? + 20_000_000;
        let t = timespec { tv_sec: (at / 1_000_000_000) as i64, tv_nsec: (at % 1_000_000_000) as i64 };
        same!(unsafe { clock_nanosleep(clock, TIMER_ABSTIME, &raw const t, std::ptr::null_mut()) }, 0);
        want!(sys::clock(clock)? >= at, "woke too early by clock {clock}");
    }
    Ok(())
}

fn cpu_clocks_count_work() -> Outcome {
    for id in [CLOCK_PROCESS_CPUTIME_ID, CLOCK_THREAD_CPUTIME_ID] {
        let start = sys::clock(id)?;
        let end = sys::clock(CLOCK_MONOTONIC)? + 60_000_000;
        while sys::clock(CLOCK_MONOTONIC)? < end {
            std::hint::spin_loop();
        }
        let used = sys::clock(id)? - start;
        want!(used >= 5_000_000, "clock {id} moved by {used} ns over 60 ms of work");
    }
    Ok(())
}

fn itimer_real_repeats() -> Outcome {
    sys::on_signal(SIGALRM, sys::count_handler, SA_RESTART)?;
    sys::tick(10)?;
    sys::eventually("five ticks", || sys::hits() >= 5)?;
    sys::tick(0)?;
    let seen = sys::hits();
    sys::sleep_ms(40);
    same!(sys::hits(), seen);
    Ok(())
}

fn getitimer_tells_the_rest() -> Outcome {
    let timer = itimerval {
        it_interval: timeval { tv_sec: 7, tv_usec: 0 },
        it_value: timeval { tv_sec: 1000, tv_usec: 0 },
    };
    ok!(setitimer(ITIMER_REAL, &raw const timer, std::ptr::null_mut()));
    let mut now: itimerval = unsafe { std::mem::zeroed() };
    ok!(getitimer(ITIMER_REAL, &raw mut now));
    want!((999..=1000).contains(&now.it_value.tv_sec), "{} s are left", now.it_value.tv_sec);
    same!(now.it_interval.tv_sec, 7);
    fails!(EINVAL, syscall(SYS_getitimer, 9, &raw mut now));
    Ok(())
}

static VALUE: std::sync::atomic::AtomicI32 = std::sync::atomic::AtomicI32::new(0);

extern "C" fn keep_value(_: i32, info: *mut siginfo_t, _: *mut c_void) {
    let value = unsafe { (*info).si_value().sival_ptr as usize };
    VALUE.store(value as i32, std::sync::atomic::Ordering::SeqCst);
}

fn timer_to(sig: i32, value: usize) -> Result<i32, String> {
    let mut ev: sigevent = unsafe { std::mem::zeroed() };
    ev.sigev_notify = SIGEV_SIGNAL;
    ev.sigev_signo = sig;
    ev.sigev_value = sigval { sival_ptr: value as *mut c_void };
    let mut id = 0i32;
    ok!(syscall(SYS_timer_create, CLOCK_MONOTONIC, &raw mut ev, &raw mut id));
    Ok(id)
}

fn posix_timer_sends_its_value() -> Outcome {
    sys::on_signal(SIGUSR1, keep_value, 0)?;
    let id = timer_to(SIGUSR1, 4711)?;
    let spec = itimerspec { it_interval: ts(0), it_value: ts(10) };
    ok!(syscall(SYS_timer_settime, id, 0, &raw const spec, 0usize));
    sys::eventually("the timer's signal", || VALUE.load(std::sync::atomic::Ordering::SeqCst) == 4711)
}

fn posix_timer_overrun_and_delete() -> Outcome {
    sys::block(&[SIGUSR1])?;
    let id = timer_to(SIGUSR1, 1)?;
    let spec = itimerspec { it_interval: ts(5), it_value: ts(5) };
    ok!(syscall(SYS_timer_settime, id, 0, &raw const spec, 0usize));
    sys::sleep_ms(100);
    let set = sys::sigset(&[SIGUSR1]);
    same!(ok!(sigwaitinfo(&raw const set, std::ptr::null_mut())), SIGUSR1);
    let over = ok!(syscall(SYS_timer_getoverrun, id));
    want!(over >= 5, "{over} overruns in 100 ms of 5 ms each");
    ok!(syscall(SYS_timer_delete, id));
    fails!(EINVAL, syscall(SYS_timer_delete, id));
    Ok(())
}

fn times_and_getrusage_grow() -> Outcome {
    let mut buf: tms = unsafe { std::mem::zeroed() };
    let a = ok!(times(&raw mut buf));
    sys::sleep_ms(40);
    let b = ok!(times(&raw mut buf));
    want!(b - a >= 3, "{} ticks in 40 ms", b - a);
    let mut usage: rusage = unsafe { std::mem::zeroed() };
    ok!(getrusage(RUSAGE_SELF, &raw mut usage));
    ok!(getrusage(RUSAGE_CHILDREN, &raw mut usage));
    fails!(EINVAL, getrusage(99, &raw mut usage));
    Ok(())
}

fn stopped_sleep_goes_on_after_continue() -> Outcome {
    let kid = sys::fork(|| {
        let start = sys::clock(CLOCK_MONOTONIC)?;
        ok!(syscall(SYS_nanosleep, &ts(150), 0usize));
        let took = sys::clock(CLOCK_MONOTONIC)? - start;
        want!(took >= 150_000_000, "the sleep ended after {took} ns");
        Ok(())
    })?;
    sys::sleep_ms(40);
    ok!(kill(kid.pid, SIGSTOP));
    sys::sleep_ms(20);
    ok!(kill(kid.pid, SIGCONT));
    kid.ok()
}
