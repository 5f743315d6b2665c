//! Native asynchronous I/O: io_setup(2), io_submit(2), io_getevents(2), io_cancel(2), io_destroy(2).

use crate::harness::Outcome;
use crate::sys::{self, fd_read, fd_write, own, ts};
use libc::*;
use std::os::fd::{AsRawFd, OwnedFd};

cases![
    setup_checks_its_arguments,
    setup_names_a_mapping,
    setup_is_counted_and_limited,
    a_write_and_a_read_complete,
    vectors_and_offsets,
    results_are_errors_of_the_transfer,
    submission_refuses_nonsense,
    submission_stops_at_the_first_refusal,
    a_full_context_is_eagain,
    append_ignores_the_offset,
    a_pipe_ignores_the_offset,
    fsync_completes,
    an_eventfd_counts_completions,
    a_poll_of_a_ready_file_completes_at_once,
    a_poll_waits_for_its_file,
    a_poll_ends_at_a_hangup,
    a_poll_is_cancelled,
    getevents_checks_its_arguments,
    getevents_waits_and_times_out,
    getevents_is_interrupted,
    getevents_bad_address_loses_nothing,
    pgetevents_changes_the_mask,
    a_destroyed_context_is_gone,
    destruction_ends_a_wait,
    a_child_has_no_contexts,
    exec_and_exit_end_contexts,
];

#[repr(C)]
#[derive(Default, Clone, Copy)]
struct Cb {
    data: u64,
    key: u32,
    rw_flags: i32,
    opcode: u16,
    reqprio: i16,
    fd: u32,
    buf: u64,
    nbytes: u64,
    offset: i64,
    reserved2: u64,
    flags: u32,
    resfd: u32,
}

#[repr(C)]
#[derive(Default, Clone, Copy, Debug, PartialEq)]
struct Event {
    data: u64,
    obj: u64,
    res: i64,
    res2: i64,
}

const PREAD: u16 = 0;
const PWRITE: u16 = 1;
const FSYNC: u16 = 2;
const FDSYNC: u16 = 3;
const POLL: u16 = 5;
const PREADV: u16 = 7;
const PWRITEV: u16 = 8;

struct Ctx(u64);

impl Drop for Ctx {
    fn drop(&mut self) {
        unsafe { syscall(SYS_io_destroy, self.0) };
    }
}

fn setup(n: u32) -> Result<Ctx, String> {
    let mut ctx = 0u64;
    if unsafe { syscall(SYS_io_setup, n, &raw mut ctx) } == -1 && crate::harness::errno() == ENOSYS {
        skip!("this kernel has no native asynchronous I/O");
    }
    let mut ctx = 0u64;
    ok!(syscall(SYS_io_setup, n, &raw mut ctx));
    Ok(Ctx(ctx))
}

fn cb(opcode: u16, fd: &OwnedFd, buf: &mut [u8], offset: i64) -> Cb {
    Cb {
        data: 7,
        opcode,
        fd: fd.as_raw_fd() as u32,
        buf: buf.as_mut_ptr() as u64,
        nbytes: buf.len() as u64,
        offset,
        ..Cb::default()
    }
}

fn submit(ctx: &Ctx, cbs: &mut [&mut Cb]) -> i64 {
    let list: Vec<*mut Cb> = cbs.iter_mut().map(|cb| &raw mut **cb).collect();
    unsafe { syscall(SYS_io_submit, ctx.0, list.len(), list.as_ptr()) }
}

fn get(ctx: &Ctx, min: i64, max: usize, ms: i64) -> Result<Vec<Event>, String> {
    let mut events = vec![Event::default(); max];
    let t = ts(ms);
    let n = ok!(syscall(SYS_io_getevents, ctx.0, min, max, events.as_mut_ptr(), &raw const t));
    events.truncate(n as usize);
    Ok(events)
}

/// Submits one request and gives its result.
fn one(ctx: &Ctx, mut cb: Cb) -> Result<i64, String> {
    let at = &raw const cb as u64;
    same!(ok!(submit(ctx, &mut [&mut cb])), 1);
    let events = get(ctx, 1, 4, 5000)?;
    same!(events.len(), 1);
    same!((events[0].data, events[0].obj, events[0].res2), (7, at, 0));
    Ok(events[0].res)
}

fn setup_checks_its_arguments() -> Outcome {
    drop(setup(1)?);
    let mut ctx = 0u64;
    fails!(EINVAL, syscall(SYS_io_setup, 0, &raw mut ctx));
    fails!(EFAULT, syscall(SYS_io_setup, 1, 0));
    fails!(EFAULT, syscall(SYS_io_setup, 0, 0));
    ctx = 5;
    fails!(EINVAL, syscall(SYS_io_setup, 1, &raw mut ctx));
    ctx = 0;
    fails!(EINVAL, syscall(SYS_io_setup, 0x1000_0000, &raw mut ctx));
    fails!(EINVAL, syscall(SYS_io_setup, u32::MAX / 4, &raw mut ctx));
    fails!(EAGAIN, syscall(SYS_io_setup, 2_000_000, &raw mut ctx));
    same!(ctx, 0);
    // A name that cannot be stored is no context.
    let page = sys::Map::new(4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)?;
    fails!(EFAULT, syscall(SYS_io_setup, 1, page.at(0)));
    fails!(EINVAL, syscall(SYS_io_destroy, 0));
    fails!(EINVAL, syscall(SYS_io_destroy, page.at(0)));
    Ok(())
}

fn setup_names_a_mapping() -> Outcome {
    let ctx = setup(8)?;
    let maps = sys::slurp("/proc/self/maps")?;
    want!(maps.contains(&format!("{:x}-", ctx.0)), "context {:x} is no mapping in {maps}", ctx.0);
    same!(ctx.0 % 4096, 0);
    ok!(syscall(SYS_io_destroy, ctx.0));
    let maps = sys::slurp("/proc/self/maps")?;
    want!(!maps.contains(&format!("{:x}-", ctx.0)), "the mapping is still there");
    Ok(())
}

fn setup_is_counted_and_limited() -> Outcome {
    drop(setup(1)?);
    let max: u64 = sys::slurp("/proc/sys/fs/aio-max-nr")?.trim().parse().unwrap_or(0);
    want!(max >= 1024, "aio-max-nr is {max}");
    let nr = || -> Result<u64, String> {
        Ok(sys::slurp("/proc/sys/fs/aio-nr")?.trim().parse().unwrap_or(u64::MAX))
    };
    let ctx = setup(1000)?;
    want!(nr()? >= 1000, "aio-nr is {} with a context of 1000", nr()?);
    drop(ctx);
    Ok(())
}

fn a_write_and_a_read_complete() -> Outcome {
    let ctx = setup(8)?;
    let fd = sys::create("f")?;
    let mut out = *b"hello world";
    same!(one(&ctx, cb(PWRITE, &fd, &mut out, 3))?, 11);
    same!(sys::slurp("f")?, "\0\0\0hello world");
    // The file's own position has not moved.
    same!(ok!(lseek(fd.as_raw_fd(), 0, SEEK_CUR)), 0);
    let rw = sys::open("f", O_RDWR)?;
    let mut buf = [0u8; 32];
    same!(one(&ctx, cb(PREAD, &rw, &mut buf, 8))?, 6);
    same!(&buf[..6], b" world");
    same!(one(&ctx, cb(PREAD, &rw, &mut buf, 100))?, 0);
    // The key is written, whatever it was.
    let mut request = cb(PREAD, &rw, &mut buf, 0);
    request.key = 99;
    same!(ok!(submit(&ctx, &mut [&mut request])), 1);
    let key = unsafe { std::ptr::read_volatile(&raw const request.key) };
    same!(key, 0);
    same!(get(&ctx, 1, 1, 1000)?.len(), 1);
    // Many at once.
    let mut bufs = vec![[b'x'; 16]; 20];
    let mut cbs: Vec<Cb> = bufs
        .iter_mut()
        .enumerate()
        .map(|(i, b)| Cb { data: i as u64, ..cb(PWRITE, &rw, b, i as i64 * 16) })
        .collect();
    let mut refs: Vec<&mut Cb> = cbs.iter_mut().collect();
    same!(ok!(submit(&ctx, &mut refs)), 20);
    let mut data: Vec<u64> = get(&ctx, 20, 32, 5000)?.iter().map(|e| e.data).collect();
    data.sort_unstable();
    same!(data, (0..20).collect::<Vec<_>>());
    same!(sys::slurp("f")?, "x".repeat(320));
    Ok(())
}

fn vectors_and_offsets() -> Outcome {
    let ctx = setup(4)?;
    sys::put("f", b"0123456789")?;
    let fd = sys::open("f", O_RDWR)?;
    let (mut a, mut b) = ([0u8; 3], [0u8; 4]);
    let mut iov = [
        iovec { iov_base: a.as_mut_ptr().cast(), iov_len: 3 },
        iovec { iov_base: b.as_mut_ptr().cast(), iov_len: 4 },
    ];
    let request = |opcode, iov: &mut [iovec], offset| Cb {
        data: 7,
        opcode,
        fd: fd.as_raw_fd() as u32,
        buf: iov.as_mut_ptr() as u64,
        nbytes: iov.len() as u64,
        offset,
        ..Cb::default()
    };
    same!(one(&ctx, request(PREADV, &mut iov, 2))?, 7);
    same!((&a, &b), (b"234", b"5678"));
    same!(one(&ctx, request(PWRITEV, &mut iov, 0))?, 7);
    same!(sys::slurp("f")?, "2345678789");
    let mut many = request(PREADV, &mut iov, 0);
    many.nbytes = 1025;
    fails!(EINVAL, submit(&ctx, &mut [&mut many]));
    many.nbytes = 2;
    many.buf = 1 << 60;
    fails!(EFAULT, submit(&ctx, &mut [&mut many]));
    Ok(())
}

fn results_are_errors_of_the_transfer() -> Outcome {
    let ctx = setup(4)?;
    sys::put("f", b"0123456789")?;
    let fd = sys::open("f", O_RDWR)?;
    let page = sys::Map::new(4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)?;
    let bad = |opcode, nbytes| Cb {
        data: 7,
        opcode,
        fd: fd.as_raw_fd() as u32,
        buf: page.at(0) as u64,
        nbytes,
        ..Cb::default()
    };
    same!(one(&ctx, bad(PREAD, 4))?, -i64::from(EFAULT));
    let (reader, writer) = sys::pipe2(O_NONBLOCK)?;
    let mut buf = [0u8; 8];
    same!(one(&ctx, cb(PREAD, &reader, &mut buf, 0))?, -i64::from(EAGAIN));
    drop(reader);
    ok!(signal(SIGPIPE, SIG_IGN) as i64);
    same!(one(&ctx, cb(PWRITE, &writer, &mut buf, 0))?, -i64::from(EPIPE));
    Ok(())
}

fn submission_refuses_nonsense() -> Outcome {
    let ctx = setup(4)?;
    sys::put("f", b"0123456789")?;
    let fd = sys::open("f", O_RDONLY)?;
    let mut buf = [0u8; 8];
    let good = cb(PREAD, &fd, &mut buf, 0);
    let try_one = |change: &dyn Fn(&mut Cb)| -> i64 {
        let mut request = good;
        change(&mut request);
        let n = submit(&ctx, &mut [&mut request]);
        if n == -1 { -i64::from(crate::harness::errno()) } else { n }
    };
    let e = |errno: i32| -i64::from(errno);
    same!(try_one(&|c| c.fd = 999), e(EBADF));
    same!(try_one(&|c| c.opcode = PWRITE), e(EBADF));
    same!(try_one(&|c| c.opcode = 4), e(EINVAL));
    same!(try_one(&|c| c.opcode = 6), e(EINVAL));
    same!(try_one(&|c| c.opcode = 99), e(EINVAL));
    same!(try_one(&|c| c.reserved2 = 1), e(EINVAL));
    same!(try_one(&|c| c.nbytes = 1 << 63), e(EINVAL));
    same!(try_one(&|c| c.offset = -1), e(EINVAL));
    same!(try_one(&|c| c.rw_flags = 0x4000_0000), e(EOPNOTSUPP));
    same!(try_one(&|c| (c.flags, c.resfd) = (1, 999)), e(EBADF));
    same!(try_one(&|c| (c.flags, c.resfd) = (1, fd.as_raw_fd() as u32)), e(EINVAL));
    same!(try_one(&|c| (c.flags, c.reqprio) = (2, -1)), e(EINVAL));
    let dir = sys::open(".", O_RDONLY)?;
    same!(try_one(&|c| c.fd = dir.as_raw_fd() as u32), e(EINVAL));
    let path = sys::open("f", O_PATH)?;
    same!(try_one(&|c| c.fd = path.as_raw_fd() as u32), e(EBADF));
    fails!(EFAULT, syscall(SYS_io_submit, ctx.0, 1, 0));
    let list = [8u64];
    fails!(EFAULT, syscall(SYS_io_submit, ctx.0, 1, list.as_ptr()));
    fails!(EINVAL, syscall(SYS_io_submit, ctx.0, -1_i64, list.as_ptr()));
    fails!(EINVAL, syscall(SYS_io_submit, 0, 1, list.as_ptr()));
    same!(ok!(syscall(SYS_io_submit, ctx.0, 0, 0)), 0);
    same!(get(&ctx, 0, 4, 0)?.len(), 0);
    Ok(())
}

fn submission_stops_at_the_first_refusal() -> Outcome {
    let ctx = setup(8)?;
    sys::put("f", b"0123456789")?;
    let fd = sys::open("f", O_RDONLY)?;
    let mut buf = [0u8; 8];
    let (mut a, mut b, mut c) =
        (cb(PREAD, &fd, &mut buf, 0), cb(99, &fd, &mut buf, 0), cb(PREAD, &fd, &mut buf, 0));
    same!(ok!(submit(&ctx, &mut [&mut a, &mut b, &mut c])), 1);
    same!(get(&ctx, 1, 8, 1000)?.len(), 1);
    fails!(EINVAL, submit(&ctx, &mut [&mut b, &mut a]));
    same!(get(&ctx, 0, 8, 0)?.len(), 0);
    Ok(())
}

fn a_full_context_is_eagain() -> Outcome {
    let ctx = setup(1)?;
    sys::put("f", b"0123456789")?;
    let fd = sys::open("f", O_RDONLY)?;
    let mut buf = [0u8; 8];
    let mut request = cb(PREAD, &fd, &mut buf, 0);
    let mut taken = 0;
    while submit(&ctx, &mut [&mut request]) == 1 {
        taken += 1;
        want!(taken < 100_000, "a context for one request takes {taken}");
    }
    same!(crate::harness::errno(), EAGAIN);
    want!(taken >= 1, "not even one");
    // What is fetched makes room.
    same!(get(&ctx, 1, taken + 8, 1000)?.len(), taken);
    same!(ok!(submit(&ctx, &mut [&mut request])), 1);
    Ok(())
}

fn append_ignores_the_offset() -> Outcome {
    let ctx = setup(4)?;
    sys::put("f", b"abc")?;
    let fd = sys::open("f", O_WRONLY | O_APPEND)?;
    let mut out = *b"def";
    same!(one(&ctx, cb(PWRITE, &fd, &mut out, 0))?, 3);
    let plain = sys::open("f", O_WRONLY)?;
    let mut request = cb(PWRITE, &plain, &mut out, 0);
    request.rw_flags = 0x10;
    same!(one(&ctx, request)?, 3);
    same!(sys::slurp("f")?, "abcdefdef");
    Ok(())
}

fn a_pipe_ignores_the_offset() -> Outcome {
    let ctx = setup(4)?;
    let (reader, writer) = sys::pipe()?;
    let mut out = *b"through";
    same!(one(&ctx, cb(PWRITE, &writer, &mut out, 100))?, 7);
    let mut buf = [0u8; 16];
    same!(one(&ctx, cb(PREAD, &reader, &mut buf, 50))?, 7);
    same!(&buf[..7], b"through");
    Ok(())
}

fn fsync_completes() -> Outcome {
    let ctx = setup(4)?;
    let fd = sys::create("f")?;
    fd_write(&fd, b"data")?;
    for opcode in [FSYNC, FDSYNC] {
        same!(one(&ctx, cb(opcode, &fd, &mut [], 0).without_buffer())?, 0);
        let mut odd = cb(opcode, &fd, &mut [], 4).without_buffer();
        fails!(EINVAL, submit(&ctx, &mut [&mut odd]));
        let (reader, _writer) = sys::pipe()?;
        let mut pipe = cb(opcode, &reader, &mut [], 0).without_buffer();
        fails!(EINVAL, submit(&ctx, &mut [&mut pipe]));
    }
    Ok(())
}

impl Cb {
    fn without_buffer(self) -> Self {
        Self { buf: 0, nbytes: 0, ..self }
    }
}

fn an_eventfd_counts_completions() -> Outcome {
    let ctx = setup(4)?;
    sys::put("f", b"0123456789")?;
    let fd = sys::open("f", O_RDONLY)?;
    let event = own(ok!(eventfd(0, EFD_NONBLOCK)));
    let mut buf = [0u8; 4];
    let with = |c: Cb| Cb { flags: 1, resfd: event.as_raw_fd() as u32, ..c };
    let mut a = with(cb(PREAD, &fd, &mut buf, 0));
    let mut b = with(cb(PREAD, &fd, &mut buf, 4));
    same!(ok!(submit(&ctx, &mut [&mut a, &mut b])), 2);
    let mut p = pollfd { fd: event.as_raw_fd(), events: POLLIN, revents: 0 };
    same!(ok!(poll(&raw mut p, 1, 5000)), 1);
    sys::eventually("two completions", || get(&ctx, 0, 0, 0).is_ok())?;
    same!(fd_read(&event, 8)?, 2u64.to_ne_bytes());
    same!(get(&ctx, 2, 4, 1000)?.len(), 2);
    // A poll rings too, when it ends.
    let (reader, writer) = sys::pipe()?;
    let mut wait = with(poll_of(&reader, POLLIN));
    same!(ok!(submit(&ctx, &mut [&mut wait])), 1);
    let mut none = [0u8; 8];
    fails!(EAGAIN, read(event.as_raw_fd(), none.as_mut_ptr().cast(), 8));
    fd_write(&writer, b"x")?;
    p.revents = 0;
    same!(ok!(poll(&raw mut p, 1, 5000)), 1);
    same!(get(&ctx, 1, 4, 1000)?.len(), 1);
    Ok(())
}

fn poll_of(fd: &OwnedFd, events: i16) -> Cb {
    Cb { data: 7, opcode: POLL, fd: fd.as_raw_fd() as u32, buf: events as u16 as u64, ..Cb::default() }
}

fn a_poll_of_a_ready_file_completes_at_once() -> Outcome {
    let ctx = setup(4)?;
    let (reader, writer) = sys::pipe()?;
    same!(one(&ctx, poll_of(&writer, POLLOUT | POLLIN))?, i64::from(POLLOUT));
    fd_write(&writer, b"x")?;
    same!(one(&ctx, poll_of(&reader, POLLIN | POLLOUT))?, i64::from(POLLIN));
    let mut odd = poll_of(&reader, POLLIN);
    odd.buf = 1 << 16;
    fails!(EINVAL, submit(&ctx, &mut [&mut odd]));
    odd.buf = 1;
    odd.offset = 1;
    fails!(EINVAL, submit(&ctx, &mut [&mut odd]));
    Ok(())
}

fn a_poll_waits_for_its_file() -> Outcome {
    let ctx = setup(4)?;
    let (reader, writer) = sys::pipe()?;
    let mut request = poll_of(&reader, POLLIN);
    same!(ok!(submit(&ctx, &mut [&mut request])), 1);
    same!(get(&ctx, 1, 4, 30)?.len(), 0);
    let kid = sys::fork(|| {
        sys::sleep_ms(50);
        fd_write(&writer, b"x").map(drop)
    })?;
    // It keeps its file open.
    drop(reader);
    let events = get(&ctx, 1, 4, 10_000)?;
    same!(events.len(), 1);
    // Linux tells more than was asked for here.
    same!(events[0].res & i64::from(POLLIN), i64::from(POLLIN));
    kid.ok()
}

fn a_poll_ends_at_a_hangup() -> Outcome {
    let ctx = setup(4)?;
    let (reader, writer) = sys::pipe()?;
    let mut request = poll_of(&reader, POLLIN);
    same!(ok!(submit(&ctx, &mut [&mut request])), 1);
    same!(get(&ctx, 1, 4, 20)?.len(), 0);
    drop(writer);
    let events = get(&ctx, 1, 4, 10_000)?;
    same!(events.len(), 1);
    same!(events[0].res & i64::from(POLLHUP), i64::from(POLLHUP));
    Ok(())
}

fn a_poll_is_cancelled() -> Outcome {
    let ctx = setup(4)?;
    let (reader, _writer) = sys::pipe()?;
    let mut request = poll_of(&reader, POLLIN);
    let mut result = Event::default();
    fails!(EINVAL, syscall(SYS_io_cancel, ctx.0, &raw mut request, &raw mut result));
    same!(ok!(submit(&ctx, &mut [&mut request])), 1);
    fails!(EINVAL, syscall(SYS_io_cancel, 0, &raw mut request, &raw mut result));
    fails!(EFAULT, syscall(SYS_io_cancel, ctx.0, 0, &raw mut result));
    let mut other = request;
    fails!(EINVAL, syscall(SYS_io_cancel, ctx.0, &raw mut other, &raw mut result));
    // The completion comes through the ring.
    fails!(EINPROGRESS, syscall(SYS_io_cancel, ctx.0, &raw mut request, &raw mut result));
    let events = get(&ctx, 1, 4, 5000)?;
    same!(events.len(), 1);
    same!((events[0].obj, events[0].res), (&raw const request as u64, 0));
    fails!(EINVAL, syscall(SYS_io_cancel, ctx.0, &raw mut request, &raw mut result));
    Ok(())
}

fn getevents_checks_its_arguments() -> Outcome {
    let ctx = setup(4)?;
    let mut events = [Event::default(); 4];
    let e = events.as_mut_ptr();
    let zero = ts(0);
    let t = &raw const zero;
    fails!(EINVAL, syscall(SYS_io_getevents, ctx.0, 2_i64, 1_i64, e, t));
    fails!(EINVAL, syscall(SYS_io_getevents, ctx.0, -1_i64, 1_i64, e, t));
    fails!(EINVAL, syscall(SYS_io_getevents, 0, 0_i64, 1_i64, e, t));
    fails!(EFAULT, syscall(SYS_io_getevents, ctx.0, 0_i64, 1_i64, e, 8));
    same!(ok!(syscall(SYS_io_getevents, ctx.0, 0_i64, 0_i64, 0, 0)), 0);
    same!(ok!(syscall(SYS_io_getevents, ctx.0, 0_i64, 4_i64, e, 0)), 0);
    same!(ok!(syscall(SYS_io_getevents, ctx.0, 4_i64, 4_i64, e, t)), 0);
    Ok(())
}

fn getevents_waits_and_times_out() -> Outcome {
    let ctx = setup(8)?;
    sys::put("f", b"0123456789")?;
    let fd = sys::open("f", O_RDONLY)?;
    let mut buf = [0u8; 4];
    let mut request = cb(PREAD, &fd, &mut buf, 0);
    same!(ok!(submit(&ctx, &mut [&mut request])), 1);
    // Fewer than the least, at the end of the time: what there is.
    let before = sys::clock(CLOCK_MONOTONIC)?;
    same!(get(&ctx, 3, 4, 60)?.len(), 1);
    want!(sys::clock(CLOCK_MONOTONIC)? - before >= 60_000_000, "it did not wait");
    for _ in 0..3 {
        same!(ok!(submit(&ctx, &mut [&mut request])), 1);
    }
    // More than the least, up to the most.
    same!(get(&ctx, 1, 2, 1000)?.len(), 2);
    same!(get(&ctx, 1, 4, 1000)?.len(), 1);
    Ok(())
}

fn getevents_is_interrupted() -> Outcome {
    let ctx = setup(4)?;
    sys::on_signal(SIGALRM, sys::count_handler, SA_RESTART)?;
    let mut events = [Event::default(); 4];
    sys::tick(30)?;
    fails!(EINTR, syscall(SYS_io_getevents, ctx.0, 1_i64, 4_i64, events.as_mut_ptr(), 0));
    want!(sys::hits() >= 1, "no signal came");
    // With something in hand, that is the result.
    sys::put("f", b"0123456789")?;
    let fd = sys::open("f", O_RDONLY)?;
    let mut buf = [0u8; 4];
    let mut request = cb(PREAD, &fd, &mut buf, 0);
    same!(ok!(submit(&ctx, &mut [&mut request])), 1);
    sys::tick(30)?;
    same!(ok!(syscall(SYS_io_getevents, ctx.0, 2_i64, 4_i64, events.as_mut_ptr(), 0)), 1);
    Ok(())
}

fn getevents_bad_address_loses_nothing() -> Outcome {
    let ctx = setup(4)?;
    sys::put("f", b"0123456789")?;
    let fd = sys::open("f", O_RDONLY)?;
    let mut buf = [0u8; 4];
    let mut request = cb(PREAD, &fd, &mut buf, 0);
    same!(ok!(submit(&ctx, &mut [&mut request])), 1);
    let zero = ts(0);
    fails!(EFAULT, syscall(SYS_io_getevents, ctx.0, 1_i64, 4_i64, 8, &raw const zero));
    same!(get(&ctx, 1, 4, 1000)?.len(), 1);
    Ok(())
}

#[repr(C)]
struct MaskArg {
    mask: *const u64,
    size: usize,
}

fn pgetevents_changes_the_mask() -> Outcome {
    let ctx = setup(4)?;
    sys::on_signal(SIGUSR1, sys::count_handler, 0)?;
    sys::block(&[SIGUSR1])?;
    ok!(kill(getpid(), SIGUSR1));
    let mut events = [Event::default(); 4];
    let empty = 0u64;
    let mut arg = MaskArg { mask: &raw const empty, size: 8 };
    let long = ts(20_000);
    let call = |arg: *const MaskArg| unsafe {
        syscall(333, ctx.0, 1_i64, 4_i64, events.as_ptr().cast_mut(), &raw const long, arg)
    };
    fails!(EINTR, call(&raw const arg));
    same!(sys::hits(), 1);
    arg.size = 4;
    fails!(EINVAL, call(&raw const arg));
    let zero = ts(0);
    same!(ok!(syscall(333, ctx.0, 0_i64, 4_i64, events.as_mut_ptr(), &raw const zero, 0_i64)), 0);
    Ok(())
}

fn a_destroyed_context_is_gone() -> Outcome {
    let ctx = setup(4)?;
    let (reader, _writer) = sys::pipe()?;
    let mut request = poll_of(&reader, POLLIN);
    same!(ok!(submit(&ctx, &mut [&mut request])), 1);
    ok!(syscall(SYS_io_destroy, ctx.0));
    fails!(EINVAL, syscall(SYS_io_destroy, ctx.0));
    fails!(EINVAL, submit(&ctx, &mut [&mut request]));
    let mut events = [Event::default(); 4];
    fails!(EINVAL, syscall(SYS_io_getevents, ctx.0, 0_i64, 4_i64, events.as_mut_ptr(), 0));
    Ok(())
}

fn destruction_ends_a_wait() -> Outcome {
    let ctx = setup(4)?;
    let id = ctx.0;
    let waiter = std::thread::spawn(move || {
        let mut events = [Event::default(); 4];
        let long = ts(20_000);
        loop {
            let n =
                unsafe { syscall(SYS_io_getevents, id, 1_i64, 4_i64, events.as_mut_ptr(), &raw const long) };
            let errno = crate::harness::errno();
            if n != -1 || errno != EINTR {
                return (n, errno);
            }
        }
    });
    sys::sleep_ms(60);
    ok!(syscall(SYS_io_destroy, ctx.0));
    same!(waiter.join().map_err(|_| "the waiter panicked")?, (-1, EINVAL));
    Ok(())
}

fn a_child_has_no_contexts() -> Outcome {
    let ctx = setup(4)?;
    let kid = sys::fork(|| {
        let mut events = [Event::default(); 4];
        let zero = ts(0);
        fails!(EINVAL, syscall(SYS_io_getevents, ctx.0, 0_i64, 4_i64, events.as_mut_ptr(), &raw const zero));
        fails!(EINVAL, syscall(SYS_io_destroy, ctx.0));
        Ok(())
    })?;
    kid.ok()?;
    same!(get(&ctx, 0, 4, 0)?.len(), 0);
    Ok(())
}

fn exec_and_exit_end_contexts() -> Outcome {
    drop(setup(1)?);
    // More than there may be at once, one child after the other.
    for _ in 0..8 {
        sys::fork(|| {
            let ctx = setup(20_000)?;
            let (reader, _writer) = sys::pipe()?;
            let mut request = poll_of(&reader, POLLIN);
            same!(ok!(submit(&ctx, &mut [&mut request])), 1);
            std::mem::forget(ctx);
            Ok(())
        })?
        .ok()?;
    }
    Ok(())
}
