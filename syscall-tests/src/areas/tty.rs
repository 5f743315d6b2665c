//! Pseudo-terminals: pty(7), termios(3), ioctl_tty(2).

use crate::harness::Outcome;
use crate::sys::{self, fd_read, fd_write, own};
use libc::*;
use std::os::fd::{AsRawFd, OwnedFd};

cases![
    pair_carries_lines,
    canonical_editing,
    raw_mode_passes_bytes,
    echo_and_newline_translation,
    end_of_file_character,
    window_size,
    interrupt_character_signals_the_foreground,
    background_read_is_stopped,
    hangup_on_master_close,
    isatty_and_names,
    controlling_terminal_opens_as_dev_tty,
    ioctls_on_other_files_are_enotty,
];

fn pair() -> Result<(OwnedFd, OwnedFd), String> {
    let master = own(ok!(posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC)));
    ok!(grantpt(master.as_raw_fd()));
    ok!(unlockpt(master.as_raw_fd()));
    let mut name = [0 as c_char; 64];
    same!(unsafe { ptsname_r(master.as_raw_fd(), name.as_mut_ptr(), 64) }, 0);
    let slave = own(ok!(open(name.as_ptr(), O_RDWR | O_NOCTTY | O_CLOEXEC)));
    Ok((master, slave))
}

fn attributes(fd: &OwnedFd) -> Result<termios, String> {
    let mut t: termios = unsafe { std::mem::zeroed() };
    ok!(tcgetattr(fd.as_raw_fd(), &raw mut t));
    Ok(t)
}

fn change(fd: &OwnedFd, f: impl FnOnce(&mut termios)) -> Outcome {
    let mut t = attributes(fd)?;
    f(&mut t);
    ok!(tcsetattr(fd.as_raw_fd(), TCSANOW, &raw const t));
    Ok(())
}

fn quiet(fd: &OwnedFd) -> Outcome {
    change(fd, |t| t.c_lflag &= !(ECHO | ECHOE | ECHOK | ECHONL))
}

fn pair_carries_lines() -> Outcome {
    let (m, s) = pair()?;
    quiet(&s)?;
    fd_write(&m, b"hello\nrest")?;
    same!(fd_read(&s, 99)?, b"hello\n");
    fd_write(&m, b" of it\n")?;
    same!(fd_read(&s, 4)?, b"rest");
    same!(fd_read(&s, 99)?, b" of it\n");
    Ok(())
}

fn canonical_editing() -> Outcome {
    let (m, s) = pair()?;
    quiet(&s)?;
    fd_write(&m, b"abX\x7fc\n")?;
    same!(fd_read(&s, 99)?, b"abc\n");
    fd_write(&m, b"gone\x15kept\n")?;
    same!(fd_read(&s, 99)?, b"kept\n");
    fd_write(&m, b"a\x16\x03b\n")?;
    same!(fd_read(&s, 99)?, b"a\x03b\n");
    Ok(())
}

fn raw_mode_passes_bytes() -> Outcome {
    let (m, s) = pair()?;
    change(&s, |t| unsafe { cfmakeraw(t) })?;
    fd_write(&m, b"\x03\x04\r\n\x7f")?;
    same!(fd_read(&s, 99)?, b"\x03\x04\r\n\x7f");
    fd_write(&s, b"a\nb")?;
    same!(fd_read(&m, 99)?, b"a\nb");
    Ok(())
}

fn echo_and_newline_translation() -> Outcome {
    let (m, s) = pair()?;
    fd_write(&m, b"hi\r")?;
    same!(fd_read(&s, 99)?, b"hi\n");
    let mut got = Vec::new();
    while got.len() < 4 {
        got.extend(fd_read(&m, 99)?);
    }
    same!(got, b"hi\r\n");
    fd_write(&s, b"x\ny")?;
    let mut got = Vec::new();
    while got.len() < 4 {
        got.extend(fd_read(&m, 99)?);
    }
    same!(got, b"x\r\ny");
    Ok(())
}

fn end_of_file_character() -> Outcome {
    let (m, s) = pair()?;
    quiet(&s)?;
    fd_write(&m, b"part\x04")?;
    same!(fd_read(&s, 99)?, b"part");
    fd_write(&m, b"\x04")?;
    same!(fd_read(&s, 99)?, b"");
    Ok(())
}

fn window_size() -> Outcome {
    let (m, s) = pair()?;
    let size = winsize { ws_row: 50, ws_col: 132, ws_xpixel: 1, ws_ypixel: 2 };
    ok!(ioctl(m.as_raw_fd(), TIOCSWINSZ, &raw const size));
    let mut got: winsize = unsafe { std::mem::zeroed() };
    ok!(ioctl(s.as_raw_fd(), TIOCGWINSZ, &raw mut got));
    same!((got.ws_row, got.ws_col, got.ws_xpixel, got.ws_ypixel), (50, 132, 1, 2));
    Ok(())
}

/// A child that leads a session with the slave as its controlling terminal.
fn session(s: &OwnedFd) -> Outcome {
    unsafe { setsid() };
    ok!(ioctl(s.as_raw_fd(), TIOCSCTTY, 0));
    Ok(())
}

fn interrupt_character_signals_the_foreground() -> Outcome {
    let (m, s) = pair()?;
    quiet(&s)?;
    let (rd, wr) = sys::pipe()?;
    let kid = sys::fork(|| {
        session(&s)?;
        unsafe { signal(SIGINT, SIG_DFL) };
        fd_write(&wr, b"r")?;
        sys::sleep_ms(20_000);
        Ok(())
    })?;
    fd_read(&rd, 1)?;
    fd_write(&m, b"\x03")?;
    let status = kid.status()?;
    want!(WIFSIGNALED(status) && WTERMSIG(status) == SIGINT, "wait status {status:#x}");
    Ok(())
}

fn background_read_is_stopped() -> Outcome {
    let (m, s) = pair()?;
    sys::fork(|| {
        session(&s)?;
        let kid = sys::fork(|| {
            ok!(setpgid(0, 0));
            unsafe { signal(SIGTTIN, SIG_DFL) };
            fd_read(&s, 1)?;
            Ok(())
        })?;
        let mut status = 0;
        same!(ok!(waitpid(kid.pid, &raw mut status, WUNTRACED)), kid.pid);
        want!(WIFSTOPPED(status) && WSTOPSIG(status) == SIGTTIN, "wait status {status:#x}");
        ok!(kill(kid.pid, SIGKILL));
        kid.status()?;
        Ok(())
    })?
    .ok()?;
    drop(m);
    Ok(())
}

fn hangup_on_master_close() -> Outcome {
    let (m, s) = pair()?;
    let (rd, wr) = sys::pipe()?;
    let kid = sys::fork(|| {
        session(&s)?;
        unsafe {
            signal(SIGHUP, SIG_DFL);
            close(m.as_raw_fd());
        }
        fd_write(&wr, b"r")?;
        sys::sleep_ms(20_000);
        Ok(())
    })?;
    fd_read(&rd, 1)?;
    drop(m);
    let status = kid.status()?;
    want!(WIFSIGNALED(status) && WTERMSIG(status) == SIGHUP, "wait status {status:#x}");
    same!(fd_read(&s, 1).unwrap_or_default(), b"");
    Ok(())
}

fn isatty_and_names() -> Outcome {
    let (m, s) = pair()?;
    same!(unsafe { isatty(s.as_raw_fd()) }, 1);
    let mut number = -1;
    ok!(ioctl(m.as_raw_fd(), TIOCGPTN, &raw mut number));
    let link = std::fs::read_link(format!("/proc/self/fd/{}", s.as_raw_fd())).map_err(|e| e.to_string())?;
    same!(link.to_string_lossy(), format!("/dev/pts/{number}"));
    let st = sys::fstat(&s)?;
    same!((st.st_mode & S_IFMT, major(st.st_rdev)), (S_IFCHR, 136));
    Ok(())
}

fn controlling_terminal_opens_as_dev_tty() -> Outcome {
    fails!(ENXIO, open(c"/dev/tty".as_ptr(), O_RDWR));
    let (m, s) = pair()?;
    quiet(&s)?;
    sys::fork(|| {
        session(&s)?;
        let tty = sys::open("/dev/tty", O_RDWR)?;
        fd_write(&tty, b"out")?;
        same!(unsafe { tcgetpgrp(tty.as_raw_fd()) }, unsafe { getpgrp() });
        same!(unsafe { tcgetsid(tty.as_raw_fd()) }, unsafe { getpid() });
        Ok(())
    })?
    .ok()?;
    same!(fd_read(&m, 99)?, b"out");
    Ok(())
}

fn ioctls_on_other_files_are_enotty() -> Outcome {
    let f = sys::create("f")?;
    let mut t: termios = unsafe { std::mem::zeroed() };
    fails!(ENOTTY, tcgetattr(f.as_raw_fd(), &raw mut t));
    let (rd, _wr) = sys::pipe()?;
    fails!(ENOTTY, tcgetattr(rd.as_raw_fd(), &raw mut t));
    fails!(ENOTTY, ioctl(f.as_raw_fd(), TIOCGWINSZ, &raw mut t));
    Ok(())
}
