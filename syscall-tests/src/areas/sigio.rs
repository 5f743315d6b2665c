//! Signals of files: `O_ASYNC` and directory notification (fcntl(2)).

use crate::harness::Outcome;
use crate::sys::{self, fd_read, fd_write};
use libc::*;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering::SeqCst};

cases![
    a_pipe_signals_its_reader,
    a_socket_signals_with_a_reason,
    fioasync_turns_it_on_and_off,
    without_an_owner_nobody_hears,
    a_regular_file_has_no_signals,
    owners_of_sockets_by_ioctl,
    notify_tells_of_a_new_file_once,
    notify_again_and_again,
    notify_needs_a_directory,
    notify_ends_with_its_descriptor,
    notify_names_its_descriptor,
];

const F_SETSIG: i32 = 10;
const DN_MODIFY: i32 = 0x2;
const DN_CREATE: i32 = 0x4;
const DN_DELETE: i32 = 0x8;
const DN_MULTISHOT: i32 = i32::MIN;

static CODE: AtomicI32 = AtomicI32::new(0);
static FD: AtomicI32 = AtomicI32::new(-1);

extern "C" fn note(sig: i32, info: *mut siginfo_t, context: *mut c_void) {
    unsafe {
        CODE.store((*info).si_code, SeqCst);
        // After signal number, errno, code, a gap and the band.
        FD.store(*info.cast::<i32>().add(6), SeqCst);
    }
    sys::count_handler(sig, info, context);
}

fn heard(n: usize) -> Outcome {
    sys::eventually("a signal", || sys::hits() >= n)
}

/// Nothing more comes.
fn silent(n: usize) -> Outcome {
    sys::sleep_ms(50);
    same!(sys::hits(), n);
    Ok(())
}

fn listen(fd: &OwnedFd) -> Outcome {
    ok!(fcntl(fd.as_raw_fd(), F_SETOWN, getpid()));
    let flags = ok!(fcntl(fd.as_raw_fd(), F_GETFL));
    ok!(fcntl(fd.as_raw_fd(), F_SETFL, flags | O_ASYNC));
    same!(ok!(fcntl(fd.as_raw_fd(), F_GETFL)) & O_ASYNC, O_ASYNC);
    Ok(())
}

fn a_pipe_signals_its_reader() -> Outcome {
    sys::on_signal(SIGIO, note, 0)?;
    let (reader, writer) = sys::pipe()?;
    listen(&reader)?;
    silent(0)?;
    fd_write(&writer, b"x")?;
    heard(1)?;
    same!(CODE.load(SeqCst), 0x80);
    fd_read(&reader, 8)?;
    let flags = ok!(fcntl(reader.as_raw_fd(), F_GETFL));
    ok!(fcntl(reader.as_raw_fd(), F_SETFL, flags & !O_ASYNC));
    let before = sys::hits();
    fd_write(&writer, b"x")?;
    silent(before)
}

fn a_socket_signals_with_a_reason() -> Outcome {
    let sig = SIGRTMIN() + 1;
    sys::on_signal(sig, note, 0)?;
    let (a, b) = sys::socketpair(SOCK_STREAM)?;
    listen(&a)?;
    ok!(fcntl(a.as_raw_fd(), F_SETSIG, sig));
    fd_write(&b, b"x")?;
    heard(1)?;
    // POLL_IN
    same!((CODE.load(SeqCst), FD.load(SeqCst)), (1, a.as_raw_fd()));
    Ok(())
}

fn fioasync_turns_it_on_and_off() -> Outcome {
    sys::on_signal(SIGIO, note, 0)?;
    let (a, b) = sys::socketpair(SOCK_DGRAM)?;
    ok!(fcntl(a.as_raw_fd(), F_SETOWN, getpid()));
    let mut on = 1;
    ok!(ioctl(a.as_raw_fd(), 0x5452, &raw mut on));
    same!(ok!(fcntl(a.as_raw_fd(), F_GETFL)) & O_ASYNC, O_ASYNC);
    fd_write(&b, b"x")?;
    heard(1)?;
    on = 0;
    ok!(ioctl(a.as_raw_fd(), 0x5452, &raw mut on));
    same!(ok!(fcntl(a.as_raw_fd(), F_GETFL)) & O_ASYNC, 0);
    let before = sys::hits();
    fd_write(&b, b"x")?;
    silent(before)
}

fn without_an_owner_nobody_hears() -> Outcome {
    sys::on_signal(SIGIO, note, 0)?;
    let (reader, writer) = sys::pipe()?;
    ok!(fcntl(reader.as_raw_fd(), F_SETFL, O_ASYNC));
    fd_write(&writer, b"x")?;
    silent(0)
}

fn a_regular_file_has_no_signals() -> Outcome {
    let fd = sys::create("f")?;
    ok!(fcntl(fd.as_raw_fd(), F_SETFL, O_ASYNC));
    same!(ok!(fcntl(fd.as_raw_fd(), F_GETFL)) & O_ASYNC, 0);
    Ok(())
}

fn owners_of_sockets_by_ioctl() -> Outcome {
    let (a, _b) = sys::socketpair(SOCK_STREAM)?;
    let mut owner = unsafe { getpid() };
    ok!(ioctl(a.as_raw_fd(), 0x8901, &raw mut owner));
    same!(ok!(fcntl(a.as_raw_fd(), F_GETOWN)), owner);
    let mut shown = 0;
    ok!(ioctl(a.as_raw_fd(), 0x8904, &raw mut shown));
    same!(shown, owner);
    owner = 0;
    ok!(ioctl(a.as_raw_fd(), 0x8902, &raw mut owner));
    ok!(ioctl(a.as_raw_fd(), 0x8903, &raw mut shown));
    same!(shown, 0);
    Ok(())
}

fn here(mask: i32) -> Result<OwnedFd, String> {
    let dir = sys::open(".", O_RDONLY | O_DIRECTORY)?;
    if unsafe { fcntl(dir.as_raw_fd(), F_NOTIFY, mask) } == -1 && crate::harness::errno() == EINVAL {
        skip!("this kernel has no dnotify");
    }
    Ok(dir)
}

fn notify_tells_of_a_new_file_once() -> Outcome {
    sys::on_signal(SIGIO, note, 0)?;
    let _dir = here(DN_CREATE)?;
    sys::put("f", b"")?;
    heard(1)?;
    sys::put("g", b"")?;
    silent(1)
}

fn notify_again_and_again() -> Outcome {
    sys::on_signal(SIGIO, note, 0)?;
    let dir = here(DN_DELETE | DN_MULTISHOT)?;
    for name in ["a", "b"] {
        sys::put(name, b"")?;
    }
    silent(0)?;
    std::fs::remove_file("a").map_err(|e| e.to_string())?;
    heard(1)?;
    std::fs::remove_file("b").map_err(|e| e.to_string())?;
    heard(2)?;
    // More is heard with the next call.
    ok!(fcntl(dir.as_raw_fd(), F_NOTIFY, DN_CREATE | DN_MULTISHOT));
    sys::put("c", b"")?;
    heard(3)?;
    ok!(fcntl(dir.as_raw_fd(), F_NOTIFY, 0));
    let before = sys::hits();
    std::fs::remove_file("c").map_err(|e| e.to_string())?;
    silent(before)
}

fn notify_needs_a_directory() -> Outcome {
    drop(here(DN_CREATE)?);
    let fd = sys::create("f")?;
    fails!(ENOTDIR, fcntl(fd.as_raw_fd(), F_NOTIFY, DN_CREATE));
    let (reader, _writer) = sys::pipe()?;
    fails!(ENOTDIR, fcntl(reader.as_raw_fd(), F_NOTIFY, DN_CREATE));
    fails!(EBADF, fcntl(999, F_NOTIFY, DN_CREATE));
    Ok(())
}

fn notify_ends_with_its_descriptor() -> Outcome {
    sys::on_signal(SIGIO, note, 0)?;
    drop(here(DN_CREATE | DN_MULTISHOT)?);
    sys::put("f", b"")?;
    silent(0)
}

fn notify_names_its_descriptor() -> Outcome {
    let sig = SIGRTMIN() + 2;
    sys::on_signal(sig, note, 0)?;
    sys::put("f", b"")?;
    let dir = here(DN_MODIFY)?;
    ok!(fcntl(dir.as_raw_fd(), F_SETSIG, sig));
    let fd = sys::open("f", O_WRONLY)?;
    fd_write(&fd, b"x")?;
    heard(1)?;
    // POLL_MSG
    same!((CODE.load(SeqCst), FD.load(SeqCst)), (3, dir.as_raw_fd()));
    Ok(())
}
