//! pipe(2), pipe(7), fifo(7).

use crate::harness::Outcome;
use crate::sys::{self, Map, c, fd_read, fd_write, fork, nonblock, pipe, pipe2};
use libc::*;
use std::os::fd::AsRawFd;

cases![
    bytes_come_out_in_order,
    read_of_an_empty_pipe_without_writers_is_the_end,
    read_of_an_empty_nonblocking_pipe_is_eagain,
    write_without_readers_is_epipe_and_sigpipe,
    write_to_a_full_nonblocking_pipe_is_eagain,
    large_nonblocking_write_is_partial,
    small_write_is_atomic_when_space_is_short,
    blocking_write_waits_for_a_reader,
    large_write_arrives_whole,
    capacity_is_sixteen_pages,
    capacity_can_be_changed,
    fionread_counts_bytes,
    pipe2_flags,
    pipe2_bad_flag_is_einval,
    pipe_bad_pointer_is_efault_and_leaks_nothing,
    lseek_is_espipe,
    pread_is_espipe,
    read_from_the_write_end_is_ebadf,
    fstat_is_a_fifo,
    zero_length_read_and_write,
    bad_buffer_keeps_the_bytes,
    interrupted_read_is_eintr,
    readv_and_writev,
    fifo_open_waits_for_the_peer,
    fifo_nonblocking_open,
    fifo_opened_for_both_never_ends,
    poll_states,
    splice_moves_bytes_between_pipes,
    tee_copies_bytes,
];

fn bytes_come_out_in_order() -> Outcome {
    let (rd, wr) = pipe()?;
    same!(fd_write(&wr, b"one")?, 3);
    same!(fd_write(&wr, b"two")?, 3);
    same!(fd_read(&rd, 4)?, b"onet");
    same!(fd_read(&rd, 9)?, b"wo");
    Ok(())
}

fn read_of_an_empty_pipe_without_writers_is_the_end() -> Outcome {
    let (rd, wr) = pipe()?;
    fd_write(&wr, b"x")?;
    drop(wr);
    same!(fd_read(&rd, 9)?, b"x");
    same!(fd_read(&rd, 9)?, b"");
    same!(fd_read(&rd, 9)?, b"");
    Ok(())
}

fn read_of_an_empty_nonblocking_pipe_is_eagain() -> Outcome {
    let (rd, _wr) = pipe2(O_NONBLOCK)?;
    let mut b = [0u8; 1];
    fails!(EAGAIN, read(rd.as_raw_fd(), b.as_mut_ptr().cast(), 1));
    Ok(())
}

fn write_without_readers_is_epipe_and_sigpipe() -> Outcome {
    sys::on_signal(SIGPIPE, sys::count_handler, 0)?;
    let (rd, wr) = pipe()?;
    drop(rd);
    fails!(EPIPE, write(wr.as_raw_fd(), b"x".as_ptr().cast(), 1));
    same!(sys::hits(), 1);
    sys::dies_of(SIGPIPE, || unsafe {
        signal(SIGPIPE, SIG_DFL);
        write(wr.as_raw_fd(), b"x".as_ptr().cast(), 1);
    })
}

fn write_to_a_full_nonblocking_pipe_is_eagain() -> Outcome {
    let (rd, wr) = pipe2(O_NONBLOCK)?;
    let page = [7u8; 4096];
    for _ in 0..16 {
        same!(fd_write(&wr, &page)?, 4096);
    }
    fails!(EAGAIN, write(wr.as_raw_fd(), page.as_ptr().cast(), 1));
    same!(fd_read(&rd, 4096)?.len(), 4096);
    same!(fd_write(&wr, b"x")?, 1);
    Ok(())
}

fn large_nonblocking_write_is_partial() -> Outcome {
    let (rd, wr) = pipe2(O_NONBLOCK)?;
    let data: Vec<u8> = (0..100_000u32).map(|i| i as u8).collect();
    let n = fd_write(&wr, &data)?;
    same!(n, 65536);
    let mut got = Vec::new();
    while got.len() < n {
        got.extend(fd_read(&rd, 10_000)?);
    }
    want!(got == data[..n], "other bytes came out");
    Ok(())
}

fn small_write_is_atomic_when_space_is_short() -> Outcome {
    let (rd, wr) = pipe2(O_NONBLOCK)?;
    fd_write(&wr, &[1u8; 65536 - 100])?;
    fails!(EAGAIN, write(wr.as_raw_fd(), [2u8; 4096].as_ptr().cast(), 4096));
    drop(rd);
    Ok(())
}

fn blocking_write_waits_for_a_reader() -> Outcome {
    let (rd, wr) = pipe()?;
    fd_write(&wr, &[1u8; 65536])?;
    let kid = fork(|| {
        same!(fd_write(&wr, &[2u8; 10])?, 10);
        Ok(())
    })?;
    let mut left = 65536;
    while left > 0 {
        left -= fd_read(&rd, left)?.len();
    }
    kid.ok()?;
    same!(fd_read(&rd, 100)?, [2u8; 10]);
    Ok(())
}

fn large_write_arrives_whole() -> Outcome {
    let (rd, wr) = pipe()?;
    let data: Vec<u8> = (0..1_000_000u32).map(|i| ((i * 7) >> 3) as u8).collect();
    let copy = data.clone();
    let kid = fork(|| {
        same!(fd_write(&wr, &copy)?, copy.len());
        Ok(())
    })?;
    drop(wr);
    let mut got = Vec::new();
    loop {
        let part = fd_read(&rd, 33_333)?;
        if part.is_empty() {
            break;
        }
        got.extend(part);
    }
    kid.ok()?;
    want!(got == data, "{} bytes differ from the {} written", got.len(), data.len());
    Ok(())
}

fn capacity_is_sixteen_pages() -> Outcome {
    let (rd, _wr) = pipe()?;
    same!(ok!(fcntl(rd.as_raw_fd(), F_GETPIPE_SZ)), 65536);
    Ok(())
}

fn capacity_can_be_changed() -> Outcome {
    let (rd, wr) = pipe2(O_NONBLOCK)?;
    same!(ok!(fcntl(rd.as_raw_fd(), F_SETPIPE_SZ, 5000)), 8192);
    same!(fd_write(&wr, &[1u8; 20_000])?, 8192);
    fails!(EBUSY, fcntl(rd.as_raw_fd(), F_SETPIPE_SZ, 4096));
    same!(ok!(fcntl(wr.as_raw_fd(), F_SETPIPE_SZ, 131_072)), 131_072);
    Ok(())
}

fn fionread_counts_bytes() -> Outcome {
    let (rd, wr) = pipe()?;
    let mut n = -1;
    ok!(ioctl(rd.as_raw_fd(), FIONREAD, &raw mut n));
    same!(n, 0);
    fd_write(&wr, &[0u8; 5000])?;
    ok!(ioctl(rd.as_raw_fd(), FIONREAD, &raw mut n));
    same!(n, 5000);
    Ok(())
}

fn pipe2_flags() -> Outcome {
    let (rd, wr) = pipe2(O_CLOEXEC | O_NONBLOCK)?;
    same!(ok!(fcntl(rd.as_raw_fd(), F_GETFD)), FD_CLOEXEC);
    same!(ok!(fcntl(rd.as_raw_fd(), F_GETFL)), O_NONBLOCK | O_RDONLY);
    same!(ok!(fcntl(wr.as_raw_fd(), F_GETFL)), O_NONBLOCK | O_WRONLY);
    let (rd, _wr) = pipe2(0)?;
    same!(ok!(fcntl(rd.as_raw_fd(), F_GETFD)), 0);
    Ok(())
}

fn pipe2_bad_flag_is_einval() -> Outcome {
    let mut fds = [0; 2];
    fails!(EINVAL, libc::pipe2(fds.as_mut_ptr(), O_APPEND));
    Ok(())
}

fn pipe_bad_pointer_is_efault_and_leaks_nothing() -> Outcome {
    fails!(EFAULT, syscall(SYS_pipe, 8usize));
    let fd = ok!(dup(0));
    same!(fd, 3);
    Ok(())
}

fn lseek_is_espipe() -> Outcome {
    let (rd, _wr) = pipe()?;
    fails!(ESPIPE, lseek(rd.as_raw_fd(), 0, SEEK_CUR));
    Ok(())
}

fn pread_is_espipe() -> Outcome {
    let (rd, wr) = pipe()?;
    fd_write(&wr, b"x")?;
    let mut b = [0u8; 1];
    fails!(ESPIPE, pread(rd.as_raw_fd(), b.as_mut_ptr().cast(), 1, 0));
    fails!(ESPIPE, pwrite(wr.as_raw_fd(), b.as_ptr().cast(), 1, 0));
    Ok(())
}

fn read_from_the_write_end_is_ebadf() -> Outcome {
    let (rd, wr) = pipe()?;
    let mut b = [0u8; 1];
    fails!(EBADF, read(wr.as_raw_fd(), b.as_mut_ptr().cast(), 1));
    fails!(EBADF, write(rd.as_raw_fd(), b.as_ptr().cast(), 1));
    Ok(())
}

fn fstat_is_a_fifo() -> Outcome {
    let (rd, wr) = pipe()?;
    let (a, b) = (sys::fstat(&rd)?, sys::fstat(&wr)?);
    same!(a.st_mode & S_IFMT, S_IFIFO);
    same!(a.st_mode & 0o777, 0o600);
    same!(a.st_ino, b.st_ino);
    Ok(())
}

fn zero_length_read_and_write() -> Outcome {
    let (rd, wr) = pipe()?;
    same!(ok!(write(wr.as_raw_fd(), std::ptr::null(), 0)), 0);
    same!(ok!(read(rd.as_raw_fd(), std::ptr::null_mut(), 0)), 0);
    Ok(())
}

fn bad_buffer_keeps_the_bytes() -> Outcome {
    let (rd, wr) = pipe()?;
    fd_write(&wr, b"abc")?;
    fails!(EFAULT, read(rd.as_raw_fd(), 8 as *mut c_void, 3));
    fails!(EFAULT, write(wr.as_raw_fd(), 8 as *const c_void, 3));
    same!(fd_read(&rd, 9)?, b"abc");
    let map = Map::guarded()?;
    same!(ok!(write(wr.as_raw_fd(), map.at(sys::PAGE - 2).cast(), 2)), 2);
    Ok(())
}

fn interrupted_read_is_eintr() -> Outcome {
    sys::on_signal(SIGALRM, sys::count_handler, 0)?;
    let (rd, _wr) = pipe()?;
    sys::tick(20)?;
    let mut b = [0u8; 1];
    fails!(EINTR, read(rd.as_raw_fd(), b.as_mut_ptr().cast(), 1));
    sys::tick(0)
}

fn readv_and_writev() -> Outcome {
    let (rd, wr) = pipe()?;
    let out = [
        iovec { iov_base: b"ab".as_ptr() as *mut c_void, iov_len: 2 },
        iovec { iov_base: std::ptr::null_mut(), iov_len: 0 },
        iovec { iov_base: b"cde".as_ptr() as *mut c_void, iov_len: 3 },
    ];
    same!(ok!(writev(wr.as_raw_fd(), out.as_ptr(), 3)), 5);
    let (mut a, mut b) = ([0u8; 4], [0u8; 4]);
    let into = [
        iovec { iov_base: a.as_mut_ptr().cast(), iov_len: 4 },
        iovec { iov_base: b.as_mut_ptr().cast(), iov_len: 4 },
    ];
    same!(ok!(readv(rd.as_raw_fd(), into.as_ptr(), 2)), 5);
    same!(&a, b"abcd");
    same!(b[0], b'e');
    fails!(EINVAL, readv(rd.as_raw_fd(), into.as_ptr(), -1));
    fails!(EINVAL, readv(rd.as_raw_fd(), into.as_ptr(), 1025));
    Ok(())
}

fn fifo_open_waits_for_the_peer() -> Outcome {
    ok!(mkfifo(c("f").as_ptr(), 0o600));
    let kid = fork(|| {
        let wr = sys::open("f", O_WRONLY)?;
        fd_write(&wr, b"hello")?;
        Ok(())
    })?;
    let rd = sys::open("f", O_RDONLY)?;
    same!(fd_read(&rd, 9)?, b"hello");
    kid.ok()?;
    same!(fd_read(&rd, 9)?, b"");
    Ok(())
}

fn fifo_nonblocking_open() -> Outcome {
    ok!(mkfifo(c("f").as_ptr(), 0o600));
    fails!(ENXIO, open(c("f").as_ptr(), O_WRONLY | O_NONBLOCK));
    let rd = sys::open("f", O_RDONLY | O_NONBLOCK)?;
    same!(fd_read(&rd, 1)?, b"");
    let wr = sys::open("f", O_WRONLY | O_NONBLOCK)?;
    let mut b = [0u8; 1];
    fails!(EAGAIN, read(rd.as_raw_fd(), b.as_mut_ptr().cast(), 1));
    fd_write(&wr, b"x")?;
    same!(fd_read(&rd, 1)?, b"x");
    Ok(())
}

fn fifo_opened_for_both_never_ends() -> Outcome {
    ok!(mkfifo(c("f").as_ptr(), 0o600));
    let both = sys::open("f", O_RDWR)?;
    fd_write(&both, b"q")?;
    same!(fd_read(&both, 1)?, b"q");
    nonblock(&both)?;
    let mut b = [0u8; 1];
    fails!(EAGAIN, read(both.as_raw_fd(), b.as_mut_ptr().cast(), 1));
    Ok(())
}

fn poll_states() -> Outcome {
    let state = |fd: &std::os::fd::OwnedFd| -> Result<i16, String> {
        let mut p = pollfd { fd: fd.as_raw_fd(), events: POLLIN | POLLOUT, revents: 0 };
        ok!(poll(&raw mut p, 1, 0));
        Ok(p.revents)
    };
    let (rd, wr) = pipe()?;
    same!(state(&rd)?, 0);
    same!(state(&wr)?, POLLOUT);
    fd_write(&wr, b"x")?;
    same!(state(&rd)?, POLLIN);
    drop(wr);
    same!(state(&rd)?, POLLIN | POLLHUP);
    fd_read(&rd, 1)?;
    same!(state(&rd)?, POLLHUP);
    let (rd, wr) = pipe()?;
    drop(rd);
    same!(state(&wr)?, POLLOUT | POLLERR);
    Ok(())
}

fn splice_moves_bytes_between_pipes() -> Outcome {
    let (ar, aw) = pipe()?;
    let (br, bw) = pipe()?;
    fd_write(&aw, b"through")?;
    let null = std::ptr::null_mut();
    same!(ok!(splice(ar.as_raw_fd(), null, bw.as_raw_fd(), null, 100, 0)), 7);
    same!(fd_read(&br, 100)?, b"through");
    sys::put("f", b"0123456789")?;
    let file = sys::open("f", O_RDONLY)?;
    let mut off = 3i64;
    same!(ok!(splice(file.as_raw_fd(), &raw mut off, bw.as_raw_fd(), null, 4, 0)), 4);
    same!(off, 7);
    same!(fd_read(&br, 100)?, b"3456");
    Ok(())
}

fn tee_copies_bytes() -> Outcome {
    let (ar, aw) = pipe()?;
    let (br, bw) = pipe()?;
    fd_write(&aw, b"twice")?;
    same!(ok!(tee(ar.as_raw_fd(), bw.as_raw_fd(), 100, 0)), 5);
    same!(fd_read(&br, 100)?, b"twice");
    same!(fd_read(&ar, 100)?, b"twice");
    Ok(())
}
