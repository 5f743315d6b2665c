//! POSIX message queues: mq_overview(7).

use crate::harness::{Outcome, errno};
use crate::sys::{self, fork};
use libc::*;
use std::sync::atomic::{AtomicI32, AtomicI64, Ordering::SeqCst};

cases![
    messages_come_by_priority_then_age,
    open_creates_and_finds,
    open_errors,
    names_are_checked,
    attributes_and_their_limits,
    default_attributes,
    unlinked_queue_lives_while_open,
    nonblocking_calls_are_eagain,
    calls_time_out,
    a_receiver_waits_for_a_sender,
    a_sender_waits_for_room,
    sizes_are_checked,
    access_mode_is_checked,
    permissions_are_checked,
    getsetattr_changes_nonblock_alone,
    poll_states,
    epoll_reports_a_message,
    notification_comes_once,
    notification_is_one_at_a_time,
    notification_skips_for_a_waiting_receiver,
    notification_ends_with_the_descriptor,
    notification_errors,
    reading_gives_the_state,
    interrupted_receive,
    msgqueue_limit_is_emfile,
    priorities_are_bounded,
    queue_descriptor_is_cloexec,
    umask_applies,
    bad_descriptors,
];

/// A queue that is unlinked when dropped.
struct Queue {
    fd: i32,
    name: String,
}

impl Drop for Queue {
    fn drop(&mut self) {
        let name = sys::c(&self.name);
        unsafe {
            close(self.fd);
            syscall(SYS_mq_unlink, name.as_ptr());
        }
    }
}

fn name(tag: &str) -> String {
    format!("st-{tag}-{}", unsafe { getpid() })
}

/// `mq_open` as the kernel has it: no slash.
fn open_raw(name: &str, flags: i32, mode: i32, attr: Option<(i64, i64)>) -> i64 {
    let name = sys::c(name);
    let attr = attr.map(|(max, size)| [0, max, size, 0, 0, 0, 0, 0]);
    let at = attr.as_ref().map_or(std::ptr::null(), |a| a.as_ptr());
    unsafe { syscall(SYS_mq_open, name.as_ptr(), flags, mode, at) }
}

fn queue(tag: &str, flags: i32, max: i64, size: i64) -> Result<Queue, String> {
    let name = name(tag);
    let fd = ok!(open_raw(&name, O_RDWR | O_CREAT | O_EXCL | flags, 0o600, Some((max, size)))) as i32;
    Ok(Queue { fd, name })
}

fn send(fd: i32, text: &[u8], prio: u32, timeout: Option<&timespec>) -> i64 {
    let t = timeout.map_or(std::ptr::null(), |t| &raw const *t);
    unsafe { syscall(SYS_mq_timedsend, fd, text.as_ptr(), text.len(), prio, t) }
}

fn receive(fd: i32, room: usize, timeout: Option<&timespec>) -> Result<(Vec<u8>, u32), i32> {
    let t = timeout.map_or(std::ptr::null(), |t| &raw const *t);
    let mut buf = vec![0u8; room];
    let mut prio = 0u32;
    let got = unsafe { syscall(SYS_mq_timedreceive, fd, buf.as_mut_ptr(), room, &raw mut prio, t) };
    if got < 0 {
        return Err(errno());
    }
    buf.truncate(got as usize);
    Ok((buf, prio))
}

fn attr(fd: i32) -> Result<[i64; 4], String> {
    let mut a = [0i64; 8];
    ok!(syscall(SYS_mq_getsetattr, fd, 0usize, a.as_mut_ptr()));
    Ok([a[0], a[1], a[2], a[3]])
}

fn soon(ms: i64) -> Result<timespec, String> {
    let t = sys::clock(CLOCK_REALTIME)? + i128::from(ms) * 1_000_000;
    Ok(timespec { tv_sec: (t / 1_000_000_000) as i64, tv_nsec: (t % 1_000_000_000) as i64 })
}

fn messages_come_by_priority_then_age() -> Outcome {
    let q = queue("prio", 0, 10, 16)?;
    for (text, prio) in [("a", 1), ("b", 5), ("c", 1), ("d", 5), ("e", 0)] {
        ok!(send(q.fd, text.as_bytes(), prio, None));
    }
    same!(attr(q.fd)?[3], 5);
    let got: Result<Vec<_>, i32> = (0..5).map(|_| receive(q.fd, 16, None)).collect();
    let got = got.map_err(|e| format!("errno {e}"))?;
    let want = [("b", 5), ("d", 5), ("a", 1), ("c", 1), ("e", 0)].map(|(t, p)| (t.as_bytes().to_vec(), p));
    same!(got, want);
    Ok(())
}

fn open_creates_and_finds() -> Outcome {
    let q = queue("find", 0, 3, 16)?;
    let other = ok!(open_raw(&q.name, O_RDWR, 0, None)) as i32;
    ok!(send(q.fd, b"x", 0, None));
    same!(receive(other, 16, None), Ok((b"x".to_vec(), 0)));
    let third = ok!(open_raw(&q.name, O_RDWR | O_CREAT, 0o600, Some((9, 9)))) as i32;
    same!(attr(third)?[1..3], [3, 16]);
    ok!(close(other));
    ok!(close(third));
    Ok(())
}

fn open_errors() -> Outcome {
    fails!(ENOENT, open_raw("st-none", O_RDWR, 0, None));
    let q = queue("err", 0, 3, 16)?;
    fails!(EEXIST, open_raw(&q.name, O_RDWR | O_CREAT | O_EXCL, 0o600, None));
    fails!(EFAULT, syscall(SYS_mq_open, 8usize, O_RDWR, 0, 0));
    Ok(())
}

fn names_are_checked() -> Outcome {
    fails!(ENOENT, open_raw("", O_RDWR | O_CREAT, 0o600, None));
    fails!(EACCES, open_raw("/a", O_RDWR | O_CREAT, 0o600, None));
    fails!(EACCES, open_raw("a/b", O_RDWR | O_CREAT, 0o600, None));
    fails!(ENAMETOOLONG, open_raw(&"x".repeat(256), O_RDWR | O_CREAT, 0o600, None));
    let missing = sys::c("st-none");
    fails!(ENOENT, syscall(SYS_mq_unlink, missing.as_ptr()));
    Ok(())
}

fn attributes_and_their_limits() -> Outcome {
    let q = queue("attr", 0, 7, 100)?;
    same!(attr(q.fd)?, [0, 7, 100, 0]);
    let n = name("bad");
    for bad in [(0, 10), (10, 0), (-1, 10), (10, -1), (1 << 40, 10)] {
        fails!(EINVAL, open_raw(&n, O_RDWR | O_CREAT, 0o600, Some(bad)));
    }
    fork(|| {
        sys::drop_root()?;
        fails!(EINVAL, open_raw(&name("user"), O_RDWR | O_CREAT, 0o600, Some((11, 10))));
        fails!(EINVAL, open_raw(&name("user"), O_RDWR | O_CREAT, 0o600, Some((10, 8193))));
        Ok(())
    })?
    .ok()
}

fn default_attributes() -> Outcome {
    let n = name("default");
    let fd = ok!(open_raw(&n, O_RDWR | O_CREAT, 0o600, None)) as i32;
    let q = Queue { fd, name: n };
    same!(attr(q.fd)?, [0, 10, 8192, 0]);
    Ok(())
}

fn unlinked_queue_lives_while_open() -> Outcome {
    let q = queue("gone", 0, 3, 16)?;
    let n = sys::c(&q.name);
    ok!(syscall(SYS_mq_unlink, n.as_ptr()));
    fails!(ENOENT, open_raw(&q.name, O_RDWR, 0, None));
    ok!(send(q.fd, b"still", 0, None));
    same!(receive(q.fd, 16, None), Ok((b"still".to_vec(), 0)));
    Ok(())
}

fn nonblocking_calls_are_eagain() -> Outcome {
    let q = queue("nb", O_NONBLOCK, 1, 16)?;
    same!(receive(q.fd, 16, None), Err(EAGAIN));
    ok!(send(q.fd, b"x", 0, None));
    fails!(EAGAIN, send(q.fd, b"y", 0, None));
    same!(attr(q.fd)?[0], i64::from(O_NONBLOCK));
    Ok(())
}

fn calls_time_out() -> Outcome {
    let q = queue("to", 0, 1, 16)?;
    same!(receive(q.fd, 16, Some(&soon(20)?)), Err(ETIMEDOUT));
    ok!(send(q.fd, b"x", 0, Some(&soon(20)?)));
    fails!(ETIMEDOUT, send(q.fd, b"y", 0, Some(&soon(20)?)));
    let past = timespec { tv_sec: 1, tv_nsec: 0 };
    fails!(ETIMEDOUT, send(q.fd, b"y", 0, Some(&past)));
    let bad = timespec { tv_sec: 1, tv_nsec: 1_000_000_000 };
    fails!(EINVAL, send(q.fd, b"y", 0, Some(&bad)));
    same!(receive(q.fd, 16, Some(&bad)), Err(EINVAL));
    same!(receive(q.fd, 16, Some(&past)), Ok((b"x".to_vec(), 0)));
    Ok(())
}

fn a_receiver_waits_for_a_sender() -> Outcome {
    let q = queue("wait", 0, 1, 16)?;
    let kid = fork(|| {
        same!(receive(q.fd, 16, None), Ok((b"hi".to_vec(), 3)));
        Ok(())
    })?;
    sys::sleep_ms(20);
    ok!(send(q.fd, b"hi", 3, None));
    kid.ok()
}

fn a_sender_waits_for_room() -> Outcome {
    let q = queue("room", 0, 1, 16)?;
    ok!(send(q.fd, b"1", 0, None));
    let kid = fork(|| {
        ok!(send(q.fd, b"2", 0, None));
        Ok(())
    })?;
    sys::sleep_ms(20);
    same!(receive(q.fd, 16, None), Ok((b"1".to_vec(), 0)));
    kid.ok()?;
    same!(receive(q.fd, 16, None), Ok((b"2".to_vec(), 0)));
    Ok(())
}

fn sizes_are_checked() -> Outcome {
    let q = queue("size", 0, 2, 4)?;
    fails!(EMSGSIZE, send(q.fd, b"12345", 0, None));
    ok!(send(q.fd, b"1234", 0, None));
    same!(receive(q.fd, 3, None), Err(EMSGSIZE));
    same!(receive(q.fd, 4, None), Ok((b"1234".to_vec(), 0)));
    ok!(send(q.fd, b"", 0, None));
    same!(receive(q.fd, 4, None), Ok((Vec::new(), 0)));
    fails!(EFAULT, syscall(SYS_mq_timedsend, q.fd, 8usize, 2, 0, 0));
    Ok(())
}

fn access_mode_is_checked() -> Outcome {
    let q = queue("mode", 0, 2, 4)?;
    let rd = ok!(open_raw(&q.name, O_RDONLY, 0, None)) as i32;
    let wr = ok!(open_raw(&q.name, O_WRONLY, 0, None)) as i32;
    fails!(EBADF, send(rd, b"x", 0, None));
    same!(receive(wr, 4, None), Err(EBADF));
    ok!(send(wr, b"x", 0, None));
    same!(receive(rd, 4, None), Ok((b"x".to_vec(), 0)));
    Ok(())
}

fn permissions_are_checked() -> Outcome {
    let n = name("perm");
    let fd = ok!(open_raw(&n, O_RDWR | O_CREAT, 0o644, None)) as i32;
    let q = Queue { fd, name: n };
    fork(|| {
        sys::drop_root()?;
        fails!(EACCES, open_raw(&q.name, O_RDWR, 0, None));
        fails!(EACCES, open_raw(&q.name, O_WRONLY, 0, None));
        ok!(open_raw(&q.name, O_RDONLY, 0, None));
        Ok(())
    })?
    .ok()
}

fn getsetattr_changes_nonblock_alone() -> Outcome {
    let q = queue("set", 0, 2, 4)?;
    let mut old = [0i64; 8];
    let new = [i64::from(O_NONBLOCK), 99, 99, 99, 0, 0, 0, 0];
    ok!(syscall(SYS_mq_getsetattr, q.fd, new.as_ptr(), old.as_mut_ptr()));
    same!(old[..4], [0, 2, 4, 0]);
    same!(attr(q.fd)?, [i64::from(O_NONBLOCK), 2, 4, 0]);
    same!(receive(q.fd, 4, None), Err(EAGAIN));
    let bad = [i64::from(O_APPEND), 0, 0, 0, 0, 0, 0, 0];
    fails!(EINVAL, syscall(SYS_mq_getsetattr, q.fd, bad.as_ptr(), 0usize));
    Ok(())
}

fn ready(fd: i32) -> i16 {
    let mut p = pollfd { fd, events: POLLIN | POLLOUT, revents: 0 };
    unsafe { poll(&raw mut p, 1, 0) };
    p.revents
}

fn poll_states() -> Outcome {
    let q = queue("poll", 0, 1, 4)?;
    same!(ready(q.fd), POLLOUT);
    ok!(send(q.fd, b"x", 0, None));
    same!(ready(q.fd), POLLIN);
    Ok(())
}

fn epoll_reports_a_message() -> Outcome {
    let q = queue("epoll", 0, 2, 4)?;
    let ep = ok!(epoll_create1(0));
    let mut ev = epoll_event { events: EPOLLIN as u32, u64: 9 };
    ok!(epoll_ctl(ep, EPOLL_CTL_ADD, q.fd, &raw mut ev));
    same!(ok!(epoll_wait(ep, &raw mut ev, 1, 0)), 0);
    let kid = fork(|| {
        sys::sleep_ms(20);
        ok!(send(q.fd, b"x", 0, None));
        Ok(())
    })?;
    same!(ok!(epoll_wait(ep, &raw mut ev, 1, 5000)), 1);
    kid.ok()
}

static SIGNO: AtomicI32 = AtomicI32::new(0);
static CODE: AtomicI32 = AtomicI32::new(0);
static PID: AtomicI32 = AtomicI32::new(0);
static VALUE: AtomicI64 = AtomicI64::new(0);
static TIMES: AtomicI32 = AtomicI32::new(0);

extern "C" fn on_notify(signo: i32, info: *mut siginfo_t, _: *mut c_void) {
    unsafe {
        SIGNO.store(signo, SeqCst);
        CODE.store((*info).si_code, SeqCst);
        PID.store((*info).si_pid(), SeqCst);
        VALUE.store((*info).si_value().sival_ptr as i64, SeqCst);
    }
    TIMES.fetch_add(1, SeqCst);
}

/// A `struct sigevent` of the kernel: value, signal, kind.
fn notify(fd: i32, signo: i32, kind: i32, value: i64) -> i64 {
    let event = [value as u64, u64::from(signo as u32) | u64::from(kind as u32) << 32, 0, 0, 0, 0, 0, 0];
    unsafe { syscall(SYS_mq_notify, fd, event.as_ptr()) }
}

fn notification_comes_once() -> Outcome {
    let q = queue("once", 0, 4, 4)?;
    sys::on_signal(SIGUSR1, on_notify, 0)?;
    ok!(notify(q.fd, SIGUSR1, SIGEV_SIGNAL, 0x1234_5678_9abc));
    let kid = fork(|| {
        ok!(send(q.fd, b"x", 0, None));
        ok!(send(q.fd, b"y", 0, None));
        Ok(())
    })?;
    let pid = kid.pid;
    kid.ok()?;
    sys::eventually("the signal", || TIMES.load(SeqCst) == 1)?;
    same!((SIGNO.load(SeqCst), CODE.load(SeqCst), PID.load(SeqCst)), (SIGUSR1, -3, pid));
    same!(VALUE.load(SeqCst), 0x1234_5678_9abc);
    // Registered again, it comes at the next message on an empty queue.
    ok!(notify(q.fd, SIGUSR1, SIGEV_SIGNAL, 1));
    ok!(send(q.fd, b"z", 0, None));
    same!(TIMES.load(SeqCst), 1);
    for _ in 0..3 {
        receive(q.fd, 4, None).map_err(|e| format!("errno {e}"))?;
    }
    ok!(send(q.fd, b"w", 0, None));
    sys::eventually("the second signal", || TIMES.load(SeqCst) == 2)
}

fn notification_is_one_at_a_time() -> Outcome {
    let q = queue("busy", 0, 4, 4)?;
    ok!(notify(q.fd, 0, SIGEV_NONE, 0));
    fails!(EBUSY, notify(q.fd, SIGUSR1, SIGEV_SIGNAL, 0));
    fork(|| {
        fails!(EBUSY, notify(q.fd, SIGUSR1, SIGEV_SIGNAL, 0));
        // Only its owner takes it back.
        ok!(syscall(SYS_mq_notify, q.fd, 0usize));
        fails!(EBUSY, notify(q.fd, SIGUSR1, SIGEV_SIGNAL, 0));
        Ok(())
    })?
    .ok()?;
    ok!(syscall(SYS_mq_notify, q.fd, 0usize));
    ok!(notify(q.fd, 0, SIGEV_NONE, 0));
    Ok(())
}

fn notification_skips_for_a_waiting_receiver() -> Outcome {
    let q = queue("skip", 0, 4, 4)?;
    sys::on_signal(SIGUSR1, on_notify, 0)?;
    let kid = fork(|| {
        receive(q.fd, 4, None).map_err(|e| format!("errno {e}"))?;
        Ok(())
    })?;
    sys::sleep_ms(50);
    ok!(notify(q.fd, SIGUSR1, SIGEV_SIGNAL, 0));
    ok!(send(q.fd, b"x", 0, None));
    kid.ok()?;
    same!(TIMES.load(SeqCst), 0);
    fails!(EBUSY, notify(q.fd, SIGUSR1, SIGEV_SIGNAL, 0));
    Ok(())
}

fn notification_ends_with_the_descriptor() -> Outcome {
    let q = queue("end", 0, 4, 4)?;
    let other = ok!(open_raw(&q.name, O_RDWR, 0, None)) as i32;
    ok!(notify(other, SIGUSR1, SIGEV_SIGNAL, 0));
    ok!(close(other));
    ok!(notify(q.fd, 0, SIGEV_NONE, 0));
    Ok(())
}

fn notification_errors() -> Outcome {
    let q = queue("nerr", 0, 4, 4)?;
    fails!(EINVAL, notify(q.fd, SIGUSR1, 77, 0));
    fails!(EINVAL, notify(q.fd, 65, SIGEV_SIGNAL, 0));
    fails!(EBADF, notify(0, SIGUSR1, SIGEV_SIGNAL, 0));
    fails!(EBADF, notify(99, SIGUSR1, SIGEV_SIGNAL, 0));
    fails!(EFAULT, syscall(SYS_mq_notify, q.fd, 8usize));
    Ok(())
}

fn reading_gives_the_state() -> Outcome {
    let q = queue("read", 0, 4, 8)?;
    ok!(send(q.fd, b"12345", 0, None));
    let mut buf = [0u8; 100];
    let n = ok!(read(q.fd, buf.as_mut_ptr().cast(), 100)) as usize;
    let text = String::from_utf8_lossy(&buf[..n]).into_owned();
    same!(text.split_whitespace().next(), Some("QSIZE:5"));
    want!(text.contains("NOTIFY:0") && text.contains("NOTIFY_PID:0"), "{text:?}");
    Ok(())
}

fn interrupted_receive() -> Outcome {
    let q = queue("intr", 0, 4, 8)?;
    sys::on_signal(SIGALRM, sys::count_handler, 0)?;
    sys::tick(20)?;
    same!(receive(q.fd, 8, None), Err(EINTR));
    Ok(())
}

fn msgqueue_limit_is_emfile() -> Outcome {
    fork(|| {
        sys::drop_root()?;
        let l = rlimit { rlim_cur: 5000, rlim_max: 5000 };
        ok!(setrlimit(RLIMIT_MSGQUEUE, &raw const l));
        fails!(EMFILE, open_raw(&name("big"), O_RDWR | O_CREAT, 0o600, Some((10, 1000))));
        let n = name("small");
        let fd = ok!(open_raw(&n, O_RDWR | O_CREAT, 0o600, Some((2, 100)))) as i32;
        let _q = Queue { fd, name: n };
        Ok(())
    })?
    .ok()
}

fn priorities_are_bounded() -> Outcome {
    let q = queue("pmax", 0, 4, 8)?;
    fails!(EINVAL, send(q.fd, b"x", 32768, None));
    ok!(send(q.fd, b"x", 32767, None));
    same!(receive(q.fd, 8, None), Ok((b"x".to_vec(), 32767)));
    Ok(())
}

fn queue_descriptor_is_cloexec() -> Outcome {
    let q = queue("cloexec", 0, 4, 8)?;
    same!(ok!(fcntl(q.fd, F_GETFD)), FD_CLOEXEC);
    Ok(())
}

fn umask_applies() -> Outcome {
    unsafe { umask(0o077) };
    let n = name("umask");
    let fd = ok!(open_raw(&n, O_RDWR | O_CREAT, 0o666, None)) as i32;
    let q = Queue { fd, name: n };
    let mut st: stat = unsafe { std::mem::zeroed() };
    ok!(fstat(q.fd, &raw mut st));
    same!(st.st_mode & 0o7777, 0o600);
    Ok(())
}

fn bad_descriptors() -> Outcome {
    let (rd, _wr) = sys::pipe()?;
    let fd = std::os::fd::AsRawFd::as_raw_fd(&rd);
    fails!(EBADF, send(fd, b"x", 0, None));
    same!(receive(99, 8, None), Err(EBADF));
    let mut a = [0i64; 8];
    fails!(EBADF, syscall(SYS_mq_getsetattr, fd, 0usize, a.as_mut_ptr()));
    Ok(())
}
