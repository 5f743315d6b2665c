//! The finer points of terminals: n_tty, packet mode, job control, sessions (pty(7), termios(3), ioctl_tty(2)).

use crate::harness::{Outcome, errno};
use crate::sys::{self, fd_read, fd_write, own};
use libc::*;
use std::os::fd::{AsRawFd, OwnedFd};

cases![
    vmin_waits_for_enough,
    vmin_larger_than_the_buffer,
    vtime_alone_times_out,
    vmin_and_vtime_between_bytes,
    vmin_zero_returns_at_once,
    poll_heeds_vmin,
    word_erase_and_reprint,
    literal_next_takes_control_characters,
    iexten_off_makes_them_plain,
    echo_of_control_characters,
    echo_newline_without_echo,
    kill_character_variants,
    erase_without_echoe_shows_the_character,
    icrnl_inlcr_igncr,
    istrip_clears_the_top_bit,
    opost_variants,
    tab_expansion,
    end_of_line_characters,
    end_of_file_in_the_middle,
    several_lines_are_read_one_by_one,
    long_line_is_cut,
    switch_to_raw_gives_the_partial_line,
    stop_and_start_characters,
    tcflow_stops_output,
    flush_drops_input,
    flush_on_set,
    interrupt_flushes_unless_told,
    quit_and_suspend_signals,
    isig_off_passes_them,
    packet_mode_marks_data,
    packet_mode_tells_of_stop_and_start,
    packet_mode_tells_of_flushes,
    get_peer_opens_the_slave,
    pty_number_and_lock,
    locked_slave_is_eio,
    master_reads_eio_after_the_slave_closes,
    master_hangup_is_polled,
    slave_after_master_close,
    hangup_signals_the_leader,
    leader_exit_signals_the_foreground,
    window_change_signals,
    same_window_does_not_signal,
    set_attributes_on_the_own_terminal,
    set_attributes_from_the_background_stops,
    background_write_with_tostop,
    background_write_without_tostop,
    background_read_of_orphans_is_eio,
    ignored_ttin_is_eio,
    foreground_group_must_be_in_the_session,
    foreground_group_round_trip,
    session_of_the_terminal,
    no_controlling_terminal_is_enxio,
    give_up_the_terminal,
    second_terminal_is_refused,
    steal_needs_privilege,
    exclusive_mode,
    input_queue_length,
    injecting_input_is_refused,
    line_discipline_is_zero,
    nonblocking_reads_and_writes,
    old_style_attributes,
    attributes_of_both_sides_are_one,
    master_signal_ioctl,
    locked_settings_stay,
];

fn pair() -> Result<(OwnedFd, OwnedFd), String> {
    let (mut m, mut s) = (0, 0);
    let null = std::ptr::null_mut();
    ok!(openpty(&raw mut m, &raw mut s, null, null.cast(), null.cast()));
    let (m, s) = (own(m), own(s));
    // Descriptors of a case start at 3 and close with it.
    ok!(fcntl(m.as_raw_fd(), F_SETFD, FD_CLOEXEC));
    Ok((m, s))
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

fn raw(fd: &OwnedFd, min: u8, time: u8) -> Outcome {
    change(fd, |t| {
        unsafe { cfmakeraw(t) };
        t.c_cc[VMIN] = min;
        t.c_cc[VTIME] = time;
    })
}

/// Everything that is there now.
fn drain(fd: &OwnedFd) -> Result<Vec<u8>, String> {
    let mut all = Vec::new();
    loop {
        let mut p = pollfd { fd: fd.as_raw_fd(), events: POLLIN, revents: 0 };
        if ok!(poll(&raw mut p, 1, 50)) == 0 || p.revents & POLLIN == 0 {
            return Ok(all);
        }
        let got = fd_read(fd, 4096)?;
        if got.is_empty() {
            return Ok(all);
        }
        all.extend(got);
    }
}

fn echoed(m: &OwnedFd, typed: &[u8]) -> Result<Vec<u8>, String> {
    fd_write(m, typed)?;
    drain(m)
}

fn readable(fd: &OwnedFd, ms: i32) -> Result<bool, String> {
    let mut p = pollfd { fd: fd.as_raw_fd(), events: POLLIN, revents: 0 };
    Ok(ok!(poll(&raw mut p, 1, ms)) == 1 && p.revents & POLLIN != 0)
}

fn vmin_waits_for_enough() -> Outcome {
    let (m, s) = pair()?;
    raw(&s, 3, 0)?;
    fd_write(&m, b"ab")?;
    let kid = sys::fork(|| {
        sys::sleep_ms(50);
        fd_write(&m, b"cd")?;
        Ok(())
    })?;
    same!(fd_read(&s, 10)?, b"abcd");
    kid.ok()
}

fn vmin_larger_than_the_buffer() -> Outcome {
    let (m, s) = pair()?;
    raw(&s, 10, 0)?;
    fd_write(&m, b"abc")?;
    same!(fd_read(&s, 2)?, b"ab");
    Ok(())
}

fn vtime_alone_times_out() -> Outcome {
    let (m, s) = pair()?;
    raw(&s, 0, 1)?;
    let start = sys::clock(CLOCK_MONOTONIC)?;
    same!(fd_read(&s, 10)?, b"");
    let took = sys::clock(CLOCK_MONOTONIC)? - start;
    want!(took >= 80_000_000, "{took} ns");
    fd_write(&m, b"x")?;
    same!(fd_read(&s, 10)?, b"x");
    Ok(())
}

fn vmin_and_vtime_between_bytes() -> Outcome {
    let (m, s) = pair()?;
    raw(&s, 5, 2)?;
    // A short gap is waited out, a long one ends the read.
    let kid = sys::fork(|| {
        fd_write(&m, b"a")?;
        sys::sleep_ms(60);
        fd_write(&m, b"b")?;
        sys::sleep_ms(60);
        fd_write(&m, b"c")?;
        Ok(())
    })?;
    same!(fd_read(&s, 10)?, b"abc");
    kid.ok()?;
    fd_write(&m, b"12345")?;
    let start = sys::clock(CLOCK_MONOTONIC)?;
    same!(fd_read(&s, 10)?, b"12345");
    let took = sys::clock(CLOCK_MONOTONIC)? - start;
    want!(took < 150_000_000, "waited {took} ns with enough there");
    Ok(())
}

fn vmin_zero_returns_at_once() -> Outcome {
    let (_m, s) = pair()?;
    raw(&s, 0, 0)?;
    same!(fd_read(&s, 10)?, b"");
    Ok(())
}

fn poll_heeds_vmin() -> Outcome {
    let (m, s) = pair()?;
    raw(&s, 3, 0)?;
    fd_write(&m, b"ab")?;
    want!(!readable(&s, 30)?, "readable with two bytes of three");
    fd_write(&m, b"c")?;
    want!(readable(&s, 1000)?, "not readable with three");
    Ok(())
}

fn word_erase_and_reprint() -> Outcome {
    let (m, s) = pair()?;
    same!(echoed(&m, b"one two\x17")?, b"one two\x08 \x08\x08 \x08\x08 \x08");
    same!(echoed(&m, b"x\x12")?, b"x^R\r\none x");
    fd_write(&m, b"\n")?;
    same!(fd_read(&s, 99)?, b"one x\n");
    Ok(())
}

fn literal_next_takes_control_characters() -> Outcome {
    let (m, s) = pair()?;
    same!(echoed(&m, b"\x16\x04")?, b"^\x08^D");
    fd_write(&m, b"\n")?;
    same!(fd_read(&s, 99)?, b"\x04\n");
    Ok(())
}

fn iexten_off_makes_them_plain() -> Outcome {
    let (m, s) = pair()?;
    quiet(&s)?;
    change(&s, |t| t.c_lflag &= !IEXTEN)?;
    fd_write(&m, b"one\x17\x16\x12\n")?;
    same!(fd_read(&s, 99)?, b"one\x17\x16\x12\n");
    Ok(())
}

fn echo_of_control_characters() -> Outcome {
    let (m, s) = pair()?;
    same!(echoed(&m, b"\x01\t\x1b")?, b"^A\t^[");
    change(&s, |t| t.c_lflag &= !ECHOCTL)?;
    same!(echoed(&m, b"\x01")?, b"\x01");
    Ok(())
}

fn echo_newline_without_echo() -> Outcome {
    let (m, s) = pair()?;
    change(&s, |t| {
        t.c_lflag &= !ECHO;
        t.c_lflag |= ECHONL;
    })?;
    same!(echoed(&m, b"hidden\n")?, b"\r\n");
    Ok(())
}

fn kill_character_variants() -> Outcome {
    let (m, s) = pair()?;
    same!(echoed(&m, b"abc\x15")?, b"abc\x08 \x08\x08 \x08\x08 \x08");
    change(&s, |t| t.c_lflag &= !ECHOKE)?;
    same!(echoed(&m, b"abc\x15")?, b"abc^U\r\n");
    change(&s, |t| t.c_lflag &= !ECHOK)?;
    same!(echoed(&m, b"abc\x15")?, b"abc^U");
    fd_write(&m, b"\n")?;
    same!(fd_read(&s, 99)?, b"\n");
    Ok(())
}

fn erase_without_echoe_shows_the_character() -> Outcome {
    let (m, s) = pair()?;
    change(&s, |t| t.c_lflag &= !ECHOE)?;
    same!(echoed(&m, b"ab\x7f")?, b"ab^?");
    fd_write(&m, b"\n")?;
    same!(fd_read(&s, 99)?, b"a\n");
    Ok(())
}

fn icrnl_inlcr_igncr() -> Outcome {
    let (m, s) = pair()?;
    raw(&s, 1, 0)?;
    change(&s, |t| t.c_iflag |= ICRNL)?;
    fd_write(&m, b"a\rb")?;
    same!(fd_read(&s, 9)?, b"a\nb");
    change(&s, |t| t.c_iflag = INLCR)?;
    fd_write(&m, b"a\nb\r")?;
    same!(fd_read(&s, 9)?, b"a\rb\r");
    change(&s, |t| t.c_iflag = IGNCR)?;
    fd_write(&m, b"a\rb")?;
    same!(fd_read(&s, 9)?, b"ab");
    Ok(())
}

fn istrip_clears_the_top_bit() -> Outcome {
    let (m, s) = pair()?;
    raw(&s, 1, 0)?;
    change(&s, |t| t.c_iflag |= ISTRIP)?;
    fd_write(&m, b"\xe1\xff")?;
    same!(fd_read(&s, 9)?, b"\x61\x7f");
    Ok(())
}

fn opost_variants() -> Outcome {
    let (m, s) = pair()?;
    fd_write(&s, b"a\nb")?;
    same!(drain(&m)?, b"a\r\nb");
    change(&s, |t| t.c_oflag = OPOST | OCRNL)?;
    fd_write(&s, b"a\rb\n")?;
    same!(drain(&m)?, b"a\nb\n");
    change(&s, |t| t.c_oflag = OPOST | ONOCR | ONLRET)?;
    fd_write(&s, b"\n\rab\r\rc")?;
    same!(drain(&m)?, b"\nab\rc");
    change(&s, |t| t.c_oflag = OPOST | OLCUC)?;
    fd_write(&s, b"aBc")?;
    same!(drain(&m)?, b"ABC");
    change(&s, |t| t.c_oflag = ONLCR)?;
    fd_write(&s, b"a\n")?;
    same!(drain(&m)?, b"a\n");
    Ok(())
}

fn tab_expansion() -> Outcome {
    let (m, s) = pair()?;
    change(&s, |t| t.c_oflag |= TAB3)?;
    fd_write(&s, b"\rab\tc")?;
    same!(drain(&m)?, b"\rab      c");
    Ok(())
}

fn end_of_line_characters() -> Outcome {
    let (m, s) = pair()?;
    quiet(&s)?;
    change(&s, |t| {
        t.c_cc[VEOL] = b';';
        t.c_cc[VEOL2] = b':';
    })?;
    fd_write(&m, b"a;b:c\n")?;
    same!(fd_read(&s, 9)?, b"a;");
    same!(fd_read(&s, 9)?, b"b:");
    same!(fd_read(&s, 9)?, b"c\n");
    Ok(())
}

fn end_of_file_in_the_middle() -> Outcome {
    let (m, s) = pair()?;
    quiet(&s)?;
    fd_write(&m, b"ab\x04cd\n\x04")?;
    same!(fd_read(&s, 9)?, b"ab");
    same!(fd_read(&s, 9)?, b"cd\n");
    same!(fd_read(&s, 9)?, b"");
    Ok(())
}

fn several_lines_are_read_one_by_one() -> Outcome {
    let (m, s) = pair()?;
    quiet(&s)?;
    fd_write(&m, b"one\ntwo\nthr")?;
    same!(fd_read(&s, 99)?, b"one\n");
    same!(fd_read(&s, 2)?, b"tw");
    same!(fd_read(&s, 99)?, b"o\n");
    want!(!readable(&s, 20)?, "a part of a line is readable");
    Ok(())
}

fn long_line_is_cut() -> Outcome {
    let (m, s) = pair()?;
    quiet(&s)?;
    sys::nonblock(&m)?;
    let long = vec![b'x'; 5000];
    fd_write(&m, &long)?;
    fd_write(&m, b"\n")?;
    let mut got = Vec::new();
    while got.last() != Some(&b'\n') {
        got.extend(fd_read(&s, 8192)?);
    }
    same!(got.len(), 4096);
    Ok(())
}

fn switch_to_raw_gives_the_partial_line() -> Outcome {
    let (m, s) = pair()?;
    quiet(&s)?;
    fd_write(&m, b"part")?;
    want!(!readable(&s, 20)?, "readable too early");
    change(&s, |t| t.c_lflag &= !ICANON)?;
    same!(fd_read(&s, 9)?, b"part");
    Ok(())
}

fn stop_and_start_characters() -> Outcome {
    let (m, s) = pair()?;
    quiet(&s)?;
    fd_write(&m, b"\x13")?;
    sys::nonblock(&s)?;
    // The line discipline sees both characters a little later (drivers/tty/tty_buffer.c).
    let mut said = Vec::new();
    while unsafe { write(s.as_raw_fd(), b"x".as_ptr().cast(), 1) } == 1 {
        said.push(b'x');
        want!(said.len() < 1000, "output does not stop");
        sys::sleep_ms(1);
    }
    same!(errno(), EAGAIN);
    fd_write(&m, b"\x11")?;
    let mut tries = 0;
    while unsafe { write(s.as_raw_fd(), b"y".as_ptr().cast(), 1) } != 1 {
        same!(errno(), EAGAIN);
        tries += 1;
        want!(tries < 1000, "output does not start again");
        sys::sleep_ms(1);
    }
    said.push(b'y');
    same!(drain(&m)?, said);
    Ok(())
}

fn tcflow_stops_output() -> Outcome {
    let (m, s) = pair()?;
    sys::nonblock(&s)?;
    ok!(tcflow(s.as_raw_fd(), TCOOFF));
    fails!(EAGAIN, write(s.as_raw_fd(), b"x".as_ptr().cast(), 1));
    ok!(tcflow(s.as_raw_fd(), TCOON));
    same!(fd_write(&s, b"y")?, 1);
    same!(drain(&m)?, b"y");
    fails!(EINVAL, tcflow(s.as_raw_fd(), 77));
    Ok(())
}

fn flush_drops_input() -> Outcome {
    let (m, s) = pair()?;
    quiet(&s)?;
    fd_write(&m, b"gone\n")?;
    want!(readable(&s, 1000)?, "nothing to flush");
    ok!(tcflush(s.as_raw_fd(), TCIFLUSH));
    want!(!readable(&s, 20)?, "still there");
    fails!(EINVAL, tcflush(s.as_raw_fd(), 77));
    Ok(())
}

fn flush_on_set() -> Outcome {
    let (m, s) = pair()?;
    quiet(&s)?;
    fd_write(&m, b"gone\n")?;
    want!(readable(&s, 1000)?, "nothing to flush");
    let t = attributes(&s)?;
    ok!(tcsetattr(s.as_raw_fd(), TCSAFLUSH, &raw const t));
    want!(!readable(&s, 20)?, "still there");
    Ok(())
}

/// Makes the slave the controlling terminal of this process, a session leader, which does not mind its hang-up: the
/// master is closed with the case.
fn control(s: &OwnedFd) -> Outcome {
    unsafe { libc::signal(SIGHUP, SIG_IGN) };
    ok!(ioctl(s.as_raw_fd(), TIOCSCTTY, 0));
    Ok(())
}

fn interrupt_flushes_unless_told() -> Outcome {
    let (m, s) = pair()?;
    control(&s)?;
    sys::on_signal(SIGINT, sys::count_handler, SA_RESTART)?;
    fd_write(&m, b"one\n\x03")?;
    sys::eventually("SIGINT", || sys::hits() == 1)?;
    want!(!readable(&s, 20)?, "the input is still there");
    change(&s, |t| t.c_lflag |= NOFLSH)?;
    fd_write(&m, b"two\n\x03")?;
    sys::eventually("SIGINT", || sys::hits() == 2)?;
    same!(fd_read(&s, 9)?, b"two\n");
    Ok(())
}

fn quit_and_suspend_signals() -> Outcome {
    let (m, s) = pair()?;
    control(&s)?;
    sys::block(&[SIGQUIT, SIGTSTP])?;
    fd_write(&m, b"\x1c\x1a")?;
    sys::eventually("both signals", || {
        sys::pending(SIGQUIT).unwrap_or(false) && sys::pending(SIGTSTP).unwrap_or(false)
    })
}

fn isig_off_passes_them() -> Outcome {
    let (m, s) = pair()?;
    control(&s)?;
    quiet(&s)?;
    change(&s, |t| t.c_lflag &= !ISIG)?;
    fd_write(&m, b"\x03\x1c\x1a\n")?;
    same!(fd_read(&s, 9)?, b"\x03\x1c\x1a\n");
    Ok(())
}

fn packet(m: &OwnedFd) -> Outcome {
    let on = 1i32;
    ok!(ioctl(m.as_raw_fd(), TIOCPKT, &raw const on));
    Ok(())
}

fn packet_mode_marks_data() -> Outcome {
    let (m, s) = pair()?;
    packet(&m)?;
    fd_write(&s, b"hi")?;
    same!(fd_read(&m, 9)?, b"\0hi");
    Ok(())
}

fn packet_mode_tells_of_stop_and_start() -> Outcome {
    let (m, s) = pair()?;
    packet(&m)?;
    ok!(tcflow(s.as_raw_fd(), TCOOFF));
    let mut p = pollfd { fd: m.as_raw_fd(), events: POLLPRI, revents: 0 };
    same!(ok!(poll(&raw mut p, 1, 1000)), 1);
    same!(p.revents & POLLPRI, POLLPRI);
    same!(fd_read(&m, 9)?, [4]);
    ok!(tcflow(s.as_raw_fd(), TCOON));
    same!(fd_read(&m, 9)?, [8]);
    change(&s, |t| t.c_iflag &= !IXON)?;
    same!(fd_read(&m, 9)?, [16]);
    change(&s, |t| t.c_iflag |= IXON)?;
    same!(fd_read(&m, 9)?, [32]);
    Ok(())
}

fn packet_mode_tells_of_flushes() -> Outcome {
    let (m, s) = pair()?;
    packet(&m)?;
    ok!(tcflush(s.as_raw_fd(), TCIFLUSH));
    same!(fd_read(&m, 9)?, [1]);
    ok!(tcflush(s.as_raw_fd(), TCOFLUSH));
    same!(fd_read(&m, 9)?, [2]);
    Ok(())
}

const TIOCGPTPEER: c_ulong = 0x5441;
const TIOCGPTLCK: c_ulong = 0x8004_5439;

fn get_peer_opens_the_slave() -> Outcome {
    let m = own(ok!(posix_openpt(O_RDWR | O_NOCTTY)));
    ok!(unlockpt(m.as_raw_fd()));
    let s = own(ok!(ioctl(m.as_raw_fd(), TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC)));
    fd_write(&s, b"peer")?;
    same!(drain(&m)?, b"peer");
    same!(ok!(fcntl(s.as_raw_fd(), F_GETFD)), FD_CLOEXEC);
    let mut number = 0u32;
    ok!(ioctl(m.as_raw_fd(), TIOCGPTN, &raw mut number));
    let link = std::fs::read_link(format!("/proc/self/fd/{}", s.as_raw_fd())).map_err(|e| e.to_string())?;
    want!(link.display().to_string().ends_with(&format!("/{number}")), "{}", link.display());
    Ok(())
}

fn pty_number_and_lock() -> Outcome {
    let m = own(ok!(posix_openpt(O_RDWR | O_NOCTTY)));
    let mut locked = 0i32;
    ok!(ioctl(m.as_raw_fd(), TIOCGPTLCK, &raw mut locked));
    same!(locked, 1);
    ok!(unlockpt(m.as_raw_fd()));
    ok!(ioctl(m.as_raw_fd(), TIOCGPTLCK, &raw mut locked));
    same!(locked, 0);
    let mut number = 0u32;
    ok!(ioctl(m.as_raw_fd(), TIOCGPTN, &raw mut number));
    want!(sys::stat(&format!("/dev/pts/{number}")).is_ok(), "no node");
    Ok(())
}

fn locked_slave_is_eio() -> Outcome {
    let m = own(ok!(posix_openpt(O_RDWR | O_NOCTTY)));
    let mut number = 0u32;
    ok!(ioctl(m.as_raw_fd(), TIOCGPTN, &raw mut number));
    let path = sys::c(&format!("/dev/pts/{number}"));
    fails!(EIO, open(path.as_ptr(), O_RDWR | O_NOCTTY));
    Ok(())
}

fn master_reads_eio_after_the_slave_closes() -> Outcome {
    let (m, s) = pair()?;
    fd_write(&s, b"last")?;
    drop(s);
    same!(fd_read(&m, 9)?, b"last");
    let mut byte = 0u8;
    fails!(EIO, read(m.as_raw_fd(), (&raw mut byte).cast(), 1));
    Ok(())
}

fn master_hangup_is_polled() -> Outcome {
    let (m, s) = pair()?;
    drop(s);
    let mut p = pollfd { fd: m.as_raw_fd(), events: POLLIN, revents: 0 };
    same!(ok!(poll(&raw mut p, 1, 1000)), 1);
    want!(p.revents & POLLHUP != 0, "revents {:#x}", p.revents);
    Ok(())
}

fn slave_after_master_close() -> Outcome {
    let (m, s) = pair()?;
    drop(m);
    same!(fd_read(&s, 9)?, b"");
    fails!(EIO, write(s.as_raw_fd(), b"x".as_ptr().cast(), 1));
    let mut t: termios = unsafe { std::mem::zeroed() };
    fails!(EIO, tcgetattr(s.as_raw_fd(), &raw mut t));
    let mut p = pollfd { fd: s.as_raw_fd(), events: POLLIN | POLLOUT, revents: 0 };
    same!(ok!(poll(&raw mut p, 1, 1000)), 1);
    want!(p.revents & (POLLHUP | POLLERR) != 0, "revents {:#x}", p.revents);
    Ok(())
}

fn hangup_signals_the_leader() -> Outcome {
    let (m, s) = pair()?;
    control(&s)?;
    sys::on_signal(SIGHUP, sys::count_handler, 0)?;
    sys::on_signal(SIGCONT, sys::count_handler, 0)?;
    drop(m);
    sys::eventually("SIGHUP and SIGCONT", || sys::hits() == 2)?;
    fails!(ENXIO, open(c"/dev/tty".as_ptr(), O_RDWR));
    Ok(())
}

fn leader_exit_signals_the_foreground() -> Outcome {
    let (_m, s) = pair()?;
    let (watch, held) = sys::pipe()?;
    let leader = sys::fork(|| {
        ok!(setsid());
        control(&s)?;
        let (ready, tell) = sys::pipe()?;
        let kid = sys::fork(|| {
            unsafe { libc::signal(SIGHUP, SIG_DFL) };
            sys::fd_write(&tell, b"x")?;
            loop {
                unsafe { pause() };
            }
        })?;
        sys::fd_read(&ready, 1)?;
        let _ = kid;
        Ok(())
    })?;
    drop(held);
    leader.ok()?;
    // The member of the foreground group dies of SIGHUP and lets go of the pipe.
    same!(sys::fd_read(&watch, 1)?, b"");
    Ok(())
}

fn window_change_signals() -> Outcome {
    let (m, s) = pair()?;
    control(&s)?;
    sys::on_signal(SIGWINCH, sys::count_handler, 0)?;
    let size = winsize { ws_row: 10, ws_col: 20, ws_xpixel: 0, ws_ypixel: 0 };
    ok!(ioctl(m.as_raw_fd(), TIOCSWINSZ, &raw const size));
    sys::eventually("SIGWINCH", || sys::hits() == 1)
}

fn same_window_does_not_signal() -> Outcome {
    let (m, s) = pair()?;
    let size = winsize { ws_row: 10, ws_col: 20, ws_xpixel: 0, ws_ypixel: 0 };
    ok!(ioctl(m.as_raw_fd(), TIOCSWINSZ, &raw const size));
    control(&s)?;
    sys::on_signal(SIGWINCH, sys::count_handler, 0)?;
    ok!(ioctl(s.as_raw_fd(), TIOCSWINSZ, &raw const size));
    sys::sleep_ms(20);
    same!(sys::hits(), 0);
    Ok(())
}

fn set_attributes_on_the_own_terminal() -> Outcome {
    let (_m, s) = pair()?;
    control(&s)?;
    let tty = sys::open("/dev/tty", O_RDWR)?;
    raw(&tty, 1, 0)?;
    same!(attributes(&s)?.c_lflag & ICANON, 0);
    let size = winsize { ws_row: 33, ws_col: 44, ws_xpixel: 0, ws_ypixel: 0 };
    ok!(ioctl(tty.as_raw_fd(), TIOCSWINSZ, &raw const size));
    Ok(())
}

/// Runs `f` in a background group of a session that controls the terminal; gives the wait status with stops.
fn background(s: &OwnedFd, f: impl FnOnce() -> Outcome) -> Result<i32, String> {
    control(s)?;
    let kid = sys::fork(|| {
        ok!(setpgid(0, 0));
        f()
    })?;
    let mut status = 0;
    ok!(waitpid(kid.pid, &raw mut status, WUNTRACED));
    if WIFSTOPPED(status) {
        unsafe { kill(kid.pid, SIGKILL) };
        kid.status()?;
    } else if status != 0 {
        return Err(format!("the background process ended with {status:#x}"));
    }
    Ok(status)
}

fn set_attributes_from_the_background_stops() -> Outcome {
    let (_m, s) = pair()?;
    let status = background(&s, || quiet(&s))?;
    want!(WIFSTOPPED(status) && WSTOPSIG(status) == SIGTTOU, "status {status:#x}");
    Ok(())
}

fn background_write_with_tostop() -> Outcome {
    let (_m, s) = pair()?;
    change(&s, |t| t.c_lflag |= TOSTOP)?;
    let status = background(&s, || {
        fd_write(&s, b"x")?;
        Ok(())
    })?;
    want!(WIFSTOPPED(status) && WSTOPSIG(status) == SIGTTOU, "status {status:#x}");
    Ok(())
}

fn background_write_without_tostop() -> Outcome {
    let (m, s) = pair()?;
    same!(
        background(&s, || {
            fd_write(&s, b"x")?;
            Ok(())
        })?,
        0
    );
    same!(drain(&m)?, b"x");
    Ok(())
}

fn background_read_of_orphans_is_eio() -> Outcome {
    let (_m, s) = pair()?;
    control(&s)?;
    // A group whose only parent outside is in the same group is orphaned.
    let kid = sys::fork(|| {
        ok!(setpgid(0, 0));
        let (ready, tell) = sys::pipe()?;
        let map = sys::Map::shared(4096)?;
        let inner = sys::fork(|| {
            sys::fd_read(&ready, 1)?;
            sys::eventually("the parent is gone", || map.get(0) == 1 && unsafe { getppid() } != 0)?;
            Ok(())
        })?;
        map.set(0, 1);
        sys::fd_write(&tell, b"x")?;
        inner.ok()?;
        Ok(())
    })?;
    kid.ok()?;
    let (out, wr) = sys::pipe()?;
    let kid = sys::fork(|| {
        ok!(setpgid(0, 0));
        let (hold, keep) = sys::pipe()?;
        sys::fork(|| {
            unsafe { close(keep.as_raw_fd()) };
            // Until the parent, which ties the group to the session, is gone.
            sys::fd_read(&hold, 1)?;
            sys::sleep_ms(30);
            let mut byte = 0u8;
            let n = unsafe { read(s.as_raw_fd(), (&raw mut byte).cast(), 1) };
            let text = format!("{n} {}", crate::harness::errno_name(crate::harness::errno()));
            sys::fd_write(&wr, text.as_bytes())?;
            Ok(())
        })?;
        Ok(())
    })?;
    kid.ok()?;
    same!(sys::fd_read(&out, 64)?, b"-1 EIO");
    Ok(())
}

fn ignored_ttin_is_eio() -> Outcome {
    let (_m, s) = pair()?;
    let status = background(&s, || {
        unsafe { signal(SIGTTIN, SIG_IGN) };
        let mut byte = 0u8;
        fails!(EIO, read(s.as_raw_fd(), (&raw mut byte).cast(), 1));
        Ok(())
    })?;
    same!(status, 0);
    Ok(())
}

fn foreground_group_must_be_in_the_session() -> Outcome {
    let (_m, s) = pair()?;
    control(&s)?;
    fails!(ESRCH, tcsetpgrp(s.as_raw_fd(), 0x3ff_fff0));
    fails!(EINVAL, tcsetpgrp(s.as_raw_fd(), -1));
    let (hold, keep) = sys::pipe()?;
    let (ready, tell) = sys::pipe()?;
    let kid = sys::fork(|| {
        unsafe { close(keep.as_raw_fd()) };
        ok!(setsid());
        sys::fd_write(&tell, b"x")?;
        sys::fd_read(&hold, 1)?;
        Ok(())
    })?;
    sys::fd_read(&ready, 1)?;
    fails!(EPERM, tcsetpgrp(s.as_raw_fd(), kid.pid));
    drop(keep);
    kid.ok()
}

fn foreground_group_round_trip() -> Outcome {
    let (_m, s) = pair()?;
    control(&s)?;
    same!(ok!(tcgetpgrp(s.as_raw_fd())), unsafe { getpgrp() });
    let (hold, keep) = sys::pipe()?;
    let kid = sys::fork(|| {
        unsafe { close(keep.as_raw_fd()) };
        sys::fd_read(&hold, 1)?;
        Ok(())
    })?;
    ok!(setpgid(kid.pid, kid.pid));
    unsafe { signal(SIGTTOU, SIG_IGN) };
    ok!(tcsetpgrp(s.as_raw_fd(), kid.pid));
    same!(ok!(tcgetpgrp(s.as_raw_fd())), kid.pid);
    ok!(tcsetpgrp(s.as_raw_fd(), getpgrp()));
    drop(keep);
    kid.ok()
}

fn session_of_the_terminal() -> Outcome {
    let (_m, s) = pair()?;
    fails!(ENOTTY, tcgetsid(s.as_raw_fd()));
    fails!(ENOTTY, tcgetpgrp(s.as_raw_fd()));
    control(&s)?;
    same!(ok!(tcgetsid(s.as_raw_fd())), unsafe { getsid(0) });
    Ok(())
}

fn no_controlling_terminal_is_enxio() -> Outcome {
    fails!(ENXIO, open(c"/dev/tty".as_ptr(), O_RDWR));
    Ok(())
}

fn give_up_the_terminal() -> Outcome {
    let (_m, s) = pair()?;
    fails!(ENOTTY, ioctl(s.as_raw_fd(), TIOCNOTTY));
    control(&s)?;
    unsafe { signal(SIGHUP, SIG_IGN) };
    ok!(ioctl(s.as_raw_fd(), TIOCNOTTY));
    fails!(ENXIO, open(c"/dev/tty".as_ptr(), O_RDWR));
    fails!(ENOTTY, tcgetsid(s.as_raw_fd()));
    control(&s)
}

fn second_terminal_is_refused() -> Outcome {
    let (_m, s) = pair()?;
    let (_n, t) = pair()?;
    control(&s)?;
    fails!(EPERM, ioctl(t.as_raw_fd(), TIOCSCTTY, 0));
    control(&s)
}

fn steal_needs_privilege() -> Outcome {
    let (_m, s) = pair()?;
    control(&s)?;
    sys::fork(|| {
        ok!(setsid());
        fails!(EPERM, ioctl(s.as_raw_fd(), TIOCSCTTY, 0));
        sys::drop_root()?;
        fails!(EPERM, ioctl(s.as_raw_fd(), TIOCSCTTY, 1));
        Ok(())
    })?
    .ok()
}

fn exclusive_mode() -> Outcome {
    let (m, s) = pair()?;
    let mut number = 0u32;
    ok!(ioctl(m.as_raw_fd(), TIOCGPTN, &raw mut number));
    ok!(ioctl(s.as_raw_fd(), TIOCEXCL));
    sys::fork(|| {
        sys::drop_root()?;
        let path = sys::c(&format!("/dev/pts/{number}"));
        let got = unsafe { open(path.as_ptr(), O_RDWR | O_NOCTTY) };
        let errno = crate::harness::errno();
        want!(got == -1 && (errno == EBUSY || errno == EACCES), "{got} {errno}");
        Ok(())
    })?
    .ok()?;
    ok!(ioctl(s.as_raw_fd(), TIOCNXCL));
    Ok(())
}

fn input_queue_length() -> Outcome {
    let (m, s) = pair()?;
    quiet(&s)?;
    let mut n = 0i32;
    fd_write(&m, b"part")?;
    ok!(ioctl(s.as_raw_fd(), FIONREAD, &raw mut n));
    same!(n, 0);
    fd_write(&m, b"ly\n")?;
    want!(readable(&s, 1000)?, "no line");
    ok!(ioctl(s.as_raw_fd(), FIONREAD, &raw mut n));
    same!(n, 7);
    fd_write(&s, b"out")?;
    want!(readable(&m, 1000)?, "no output");
    ok!(ioctl(m.as_raw_fd(), FIONREAD, &raw mut n));
    same!(n, 3);
    Ok(())
}

fn injecting_input_is_refused() -> Outcome {
    let (_m, s) = pair()?;
    sys::drop_root()?;
    let byte = b'x';
    let got = unsafe { ioctl(s.as_raw_fd(), TIOCSTI, &raw const byte) };
    let errno = crate::harness::errno();
    want!(got == -1 && (errno == EPERM || errno == EIO), "{got} {errno}");
    Ok(())
}

fn line_discipline_is_zero() -> Outcome {
    let (_m, s) = pair()?;
    let mut line = 7i32;
    ok!(ioctl(s.as_raw_fd(), TIOCGETD, &raw mut line));
    same!(line, 0);
    ok!(ioctl(s.as_raw_fd(), TIOCSETD, &raw const line));
    Ok(())
}

fn nonblocking_reads_and_writes() -> Outcome {
    let (m, s) = pair()?;
    sys::nonblock(&s)?;
    sys::nonblock(&m)?;
    let mut byte = 0u8;
    fails!(EAGAIN, read(s.as_raw_fd(), (&raw mut byte).cast(), 1));
    fails!(EAGAIN, read(m.as_raw_fd(), (&raw mut byte).cast(), 1));
    let block = [b'x'; 4096];
    let mut total = 0;
    loop {
        let n = unsafe { write(s.as_raw_fd(), block.as_ptr().cast(), block.len()) };
        if n < 0 {
            same!(crate::harness::errno(), EAGAIN);
            break;
        }
        total += n;
        want!(total < 10 << 20, "the buffer has no end");
    }
    Ok(())
}

fn old_style_attributes() -> Outcome {
    let (_m, s) = pair()?;
    // struct termio: four 16-bit flag words, the line, 8 characters.
    let mut old = [0u16; 9];
    ok!(ioctl(s.as_raw_fd(), TCGETA, old.as_mut_ptr()));
    let t = attributes(&s)?;
    same!(u32::from(old[3]), t.c_lflag & 0xffff);
    old[3] &= !(ECHO as u16);
    ok!(ioctl(s.as_raw_fd(), TCSETA, old.as_ptr()));
    same!(attributes(&s)?.c_lflag & ECHO, 0);
    Ok(())
}

fn attributes_of_both_sides_are_one() -> Outcome {
    let (m, s) = pair()?;
    quiet(&m)?;
    same!(attributes(&s)?.c_lflag & ECHO, 0);
    Ok(())
}

const TIOCSIG: c_ulong = 0x4004_5436;

fn master_signal_ioctl() -> Outcome {
    let (m, s) = pair()?;
    control(&s)?;
    sys::on_signal(SIGINT, sys::count_handler, 0)?;
    ok!(ioctl(m.as_raw_fd(), TIOCSIG, SIGINT));
    sys::eventually("SIGINT", || sys::hits() == 1)?;
    fails!(EINVAL, ioctl(m.as_raw_fd(), TIOCSIG, SIGUSR1));
    fails!(ENOTTY, ioctl(s.as_raw_fd(), TIOCSIG, SIGINT));
    Ok(())
}

fn locked_settings_stay() -> Outcome {
    let (_m, s) = pair()?;
    let fd = s.as_raw_fd();
    // The kernel's structure is shorter than the library's.
    let mut locked = [0u32; 16];
    ok!(ioctl(fd, TIOCGLCKTRMIOS as _, locked.as_mut_ptr()));
    same!(locked, [0; 16]);
    locked[3] = ECHO;
    ok!(ioctl(fd, TIOCSLCKTRMIOS as _, locked.as_ptr()));
    change(&s, |t| t.c_lflag &= !(ECHO | ICANON))?;
    same!(attributes(&s)?.c_lflag & (ECHO | ICANON), ECHO);
    sys::fork(|| {
        ok!(setresuid(1000, 1000, 1000));
        fails!(EPERM, ioctl(fd, TIOCSLCKTRMIOS as _, locked.as_ptr()));
        Ok(())
    })?
    .ok()?;
    locked[3] = 0;
    ok!(ioctl(fd, TIOCSLCKTRMIOS as _, locked.as_ptr()));
    change(&s, |t| t.c_lflag &= !ECHO)?;
    same!(attributes(&s)?.c_lflag & ECHO, 0);
    Ok(())
}
