//! Moving data between files inside the kernel: sendfile(2), splice(2), tee(2), vmsplice(2), copy_file_range(2).

use crate::harness::Outcome;
use crate::sys::{self, put};
use libc::*;
use std::os::fd::AsRawFd;

cases![
    sendfile_between_files,
    sendfile_with_an_offset_leaves_the_position,
    sendfile_stops_at_the_end,
    sendfile_errors,
    sendfile_to_a_socket,
    sendfile_takes_no_stream,
    sendfile_into_a_pipe_is_a_splice,
    splice_file_to_pipe_and_back,
    splice_with_offsets,
    splice_errors,
    splice_nonblocking,
    splice_at_the_end_is_zero,
    splice_in_append_mode_is_einval,
    tee_leaves_the_data,
    tee_errors,
    vmsplice_gives_user_memory,
    vmsplice_reads_into_user_memory,
    vmsplice_errors,
    copy_file_range_moves_both_positions,
    copy_file_range_with_offsets,
    copy_file_range_at_the_end_is_zero,
    copy_file_range_grows_the_target,
    copy_file_range_errors,
    copy_file_range_overlap_is_einval,
    copy_file_range_of_a_hole,
    splice_between_pipes_and_sockets,
    readahead_and_fadvise,
];

fn sendfile_between_files() -> Outcome {
    put("a", b"0123456789")?;
    let (a, b) = (sys::open("a", O_RDONLY)?, sys::create("b")?);
    ok!(lseek(a.as_raw_fd(), 2, SEEK_SET));
    same!(ok!(sendfile(b.as_raw_fd(), a.as_raw_fd(), std::ptr::null_mut(), 5)), 5);
    same!(sys::slurp("b")?, "23456");
    same!(ok!(lseek(a.as_raw_fd(), 0, SEEK_CUR)), 7);
    same!(ok!(lseek(b.as_raw_fd(), 0, SEEK_CUR)), 5);
    Ok(())
}

fn sendfile_with_an_offset_leaves_the_position() -> Outcome {
    put("a", b"0123456789")?;
    let (a, b) = (sys::open("a", O_RDONLY)?, sys::create("b")?);
    let mut off: off_t = 4;
    same!(ok!(sendfile(b.as_raw_fd(), a.as_raw_fd(), &raw mut off, 3)), 3);
    same!(off, 7);
    same!(ok!(lseek(a.as_raw_fd(), 0, SEEK_CUR)), 0);
    same!(sys::slurp("b")?, "456");
    Ok(())
}

fn sendfile_stops_at_the_end() -> Outcome {
    put("a", b"012")?;
    let (a, b) = (sys::open("a", O_RDONLY)?, sys::create("b")?);
    same!(ok!(sendfile(b.as_raw_fd(), a.as_raw_fd(), std::ptr::null_mut(), 100)), 3);
    same!(ok!(sendfile(b.as_raw_fd(), a.as_raw_fd(), std::ptr::null_mut(), 100)), 0);
    let mut off: off_t = 50;
    same!(ok!(sendfile(b.as_raw_fd(), a.as_raw_fd(), &raw mut off, 100)), 0);
    same!(ok!(sendfile(b.as_raw_fd(), a.as_raw_fd(), &raw mut off, 0)), 0);
    Ok(())
}

fn sendfile_errors() -> Outcome {
    put("a", b"012")?;
    let null = std::ptr::null_mut();
    let (a, b) = (sys::open("a", O_RDONLY)?, sys::create("b")?);
    fails!(EBADF, sendfile(a.as_raw_fd(), b.as_raw_fd(), null, 1));
    fails!(EBADF, sendfile(99, a.as_raw_fd(), null, 1));
    fails!(EBADF, sendfile(b.as_raw_fd(), 99, null, 1));
    let mut off: off_t = -1;
    fails!(EINVAL, sendfile(b.as_raw_fd(), a.as_raw_fd(), &raw mut off, 1));
    fails!(EFAULT, sendfile(b.as_raw_fd(), a.as_raw_fd(), 24 as *mut off_t, 1));
    let append = sys::open("b", O_WRONLY | O_APPEND)?;
    fails!(EINVAL, sendfile(append.as_raw_fd(), a.as_raw_fd(), null, 1));
    let (r, w) = sys::pipe()?;
    let mut off: off_t = 0;
    fails!(ESPIPE, sendfile(b.as_raw_fd(), r.as_raw_fd(), &raw mut off, 1));
    drop(w);
    Ok(())
}

fn sendfile_to_a_socket() -> Outcome {
    put("a", &vec![7; 100_000])?;
    let a = sys::open("a", O_RDONLY)?;
    let (s, t) = sys::socketpair(SOCK_STREAM)?;
    let kid = sys::fork(|| {
        let mut got = 0;
        while got < 100_000 {
            let n = sys::fd_read(&t, 65536)?;
            want!(!n.is_empty() && n.iter().all(|b| *b == 7), "wrong data after {got}");
            got += n.len();
        }
        Ok(())
    })?;
    let mut sent = 0;
    while sent < 100_000 {
        sent += ok!(sendfile(s.as_raw_fd(), a.as_raw_fd(), std::ptr::null_mut(), 100_000));
    }
    kid.ok()
}

/// Only what can seek is sent to what is not a pipe: the rest would be lost if the target took less.
fn sendfile_takes_no_stream() -> Outcome {
    let null: *mut off_t = std::ptr::null_mut();
    let (s, t) = sys::socketpair(SOCK_STREAM)?;
    let (r, w) = sys::pipe()?;
    let file = sys::create("b")?;
    sys::fd_write(&t, b"socket")?;
    sys::fd_write(&w, b"pipe")?;
    let (mut master, mut slave) = (0, 0);
    ok!(openpty(&raw mut master, &raw mut slave, null.cast(), null.cast(), null.cast()));
    let (master, slave) = (sys::own(master), sys::own(slave));
    sys::fd_write(&master, b"line\n")?;
    for from in [s.as_raw_fd(), r.as_raw_fd(), slave.as_raw_fd()] {
        fails!(EINVAL, sendfile(file.as_raw_fd(), from, null, 3));
        fails!(EINVAL, sendfile(t.as_raw_fd(), from, null, 3));
    }
    same!(sys::fd_read(&s, 10)?, b"socket");
    same!(sys::fd_read(&r, 10)?, b"pipe");
    same!(sys::fd_read(&slave, 10)?, b"line\n");
    Ok(())
}

fn sendfile_into_a_pipe_is_a_splice() -> Outcome {
    let null = std::ptr::null_mut();
    let (s, t) = sys::socketpair(SOCK_STREAM)?;
    let (r, w) = sys::pipe()?;
    sys::fd_write(&t, b"socket")?;
    same!(ok!(sendfile(w.as_raw_fd(), s.as_raw_fd(), null, 100)), 6);
    same!(sys::fd_read(&r, 10)?, b"socket");
    // From a pipe to a pipe it is not.
    let (r2, w2) = sys::pipe()?;
    sys::fd_write(&w2, b"pipe")?;
    fails!(EINVAL, sendfile(w.as_raw_fd(), r2.as_raw_fd(), null, 4));
    // What fits into the pipe, and then nothing of it.
    put("a", &vec![7; 100_000])?;
    let a = sys::open("a", O_RDONLY)?;
    same!(ok!(sendfile(w.as_raw_fd(), a.as_raw_fd(), null, 100_000)), 65536);
    same!(ok!(lseek(a.as_raw_fd(), 0, SEEK_CUR)), 65536);
    ok!(fcntl(w.as_raw_fd(), F_SETFL, O_NONBLOCK));
    fails!(EAGAIN, sendfile(w.as_raw_fd(), a.as_raw_fd(), null, 1));
    let mut off: off_t = 10;
    sys::fd_read(&r, 65536)?;
    same!(ok!(sendfile(w.as_raw_fd(), a.as_raw_fd(), &raw mut off, 20)), 20);
    same!(off, 30);
    same!(ok!(lseek(a.as_raw_fd(), 0, SEEK_CUR)), 65536);
    Ok(())
}

fn splice_file_to_pipe_and_back() -> Outcome {
    put("a", b"0123456789")?;
    let (a, b) = (sys::open("a", O_RDONLY)?, sys::create("b")?);
    let (r, w) = sys::pipe()?;
    let null = std::ptr::null_mut();
    same!(ok!(splice(a.as_raw_fd(), null, w.as_raw_fd(), null, 6, 0)), 6);
    same!(ok!(lseek(a.as_raw_fd(), 0, SEEK_CUR)), 6);
    same!(ok!(splice(r.as_raw_fd(), null, b.as_raw_fd(), null, 100, 0)), 6);
    same!(sys::slurp("b")?, "012345");
    same!(ok!(lseek(b.as_raw_fd(), 0, SEEK_CUR)), 6);
    Ok(())
}

fn splice_with_offsets() -> Outcome {
    put("a", b"0123456789")?;
    let (a, b) = (sys::open("a", O_RDONLY)?, sys::create("b")?);
    let (r, w) = sys::pipe()?;
    let null = std::ptr::null_mut();
    let (mut from, mut to) = (3i64, 2i64);
    same!(ok!(splice(a.as_raw_fd(), &raw mut from, w.as_raw_fd(), null, 4, 0)), 4);
    same!(from, 7);
    same!(ok!(lseek(a.as_raw_fd(), 0, SEEK_CUR)), 0);
    same!(ok!(splice(r.as_raw_fd(), null, b.as_raw_fd(), &raw mut to, 4, 0)), 4);
    same!(to, 6);
    same!(sys::slurp("b")?, "\0\u{0}3456");
    Ok(())
}

fn splice_errors() -> Outcome {
    put("a", b"012")?;
    let (a, b) = (sys::open("a", O_RDONLY)?, sys::create("b")?);
    let (r, w) = sys::pipe()?;
    let null = std::ptr::null_mut();
    let mut off = 0i64;
    fails!(EINVAL, splice(a.as_raw_fd(), null, b.as_raw_fd(), null, 1, 0));
    fails!(ESPIPE, splice(r.as_raw_fd(), &raw mut off, b.as_raw_fd(), null, 1, 0));
    fails!(ESPIPE, splice(a.as_raw_fd(), null, w.as_raw_fd(), &raw mut off, 1, 0));
    fails!(EINVAL, splice(a.as_raw_fd(), null, w.as_raw_fd(), null, 1, 0x100));
    fails!(EBADF, splice(99, null, w.as_raw_fd(), null, 1, 0));
    fails!(EBADF, splice(b.as_raw_fd(), null, r.as_raw_fd(), null, 1, 0));
    fails!(EBADF, splice(r.as_raw_fd(), null, a.as_raw_fd(), null, 1, 0));
    same!(ok!(splice(a.as_raw_fd(), null, w.as_raw_fd(), null, 0, 0)), 0);
    // A pipe into itself.
    fails!(EINVAL, splice(r.as_raw_fd(), null, w.as_raw_fd(), null, 1, 0));
    Ok(())
}

fn splice_nonblocking() -> Outcome {
    let b = sys::create("b")?;
    let (r, w) = sys::pipe()?;
    let null = std::ptr::null_mut();
    fails!(EAGAIN, splice(r.as_raw_fd(), null, b.as_raw_fd(), null, 1, SPLICE_F_NONBLOCK));
    let size = ok!(fcntl(w.as_raw_fd(), F_GETPIPE_SZ)) as usize;
    sys::nonblock(&w)?;
    let data = vec![0u8; size];
    same!(ok!(write(w.as_raw_fd(), data.as_ptr().cast(), size)), size as isize);
    put("a", b"x")?;
    let a = sys::open("a", O_RDONLY)?;
    fails!(EAGAIN, splice(a.as_raw_fd(), null, w.as_raw_fd(), null, 1, SPLICE_F_NONBLOCK));
    Ok(())
}

fn splice_at_the_end_is_zero() -> Outcome {
    put("a", b"")?;
    let (a, b) = (sys::open("a", O_RDONLY)?, sys::create("b")?);
    let (r, w) = sys::pipe()?;
    let null = std::ptr::null_mut();
    same!(ok!(splice(a.as_raw_fd(), null, w.as_raw_fd(), null, 10, 0)), 0);
    drop(w);
    same!(ok!(splice(r.as_raw_fd(), null, b.as_raw_fd(), null, 10, 0)), 0);
    Ok(())
}

fn splice_in_append_mode_is_einval() -> Outcome {
    put("b", b"x")?;
    let b = sys::open("b", O_WRONLY | O_APPEND)?;
    let (r, w) = sys::pipe()?;
    sys::fd_write(&w, b"abc")?;
    fails!(EINVAL, splice(r.as_raw_fd(), std::ptr::null_mut(), b.as_raw_fd(), std::ptr::null_mut(), 3, 0));
    Ok(())
}

fn tee_leaves_the_data() -> Outcome {
    let (r, w) = sys::pipe()?;
    let (r2, w2) = sys::pipe()?;
    sys::fd_write(&w, b"abcdef")?;
    same!(ok!(tee(r.as_raw_fd(), w2.as_raw_fd(), 4, 0)), 4);
    same!(sys::fd_read(&r2, 10)?, b"abcd".to_vec());
    same!(sys::fd_read(&r, 10)?, b"abcdef".to_vec());
    drop(w);
    same!(ok!(tee(r.as_raw_fd(), w2.as_raw_fd(), 4, 0)), 0);
    Ok(())
}

fn tee_errors() -> Outcome {
    put("a", b"x")?;
    let a = sys::open("a", O_RDWR)?;
    let (r, w) = sys::pipe()?;
    fails!(EINVAL, tee(a.as_raw_fd(), w.as_raw_fd(), 1, 0));
    fails!(EINVAL, tee(r.as_raw_fd(), a.as_raw_fd(), 1, 0));
    fails!(EINVAL, tee(r.as_raw_fd(), w.as_raw_fd(), 1, 0));
    fails!(EBADF, tee(w.as_raw_fd(), w.as_raw_fd(), 1, 0));
    let (_r2, w2) = sys::pipe()?;
    fails!(EAGAIN, tee(r.as_raw_fd(), w2.as_raw_fd(), 1, SPLICE_F_NONBLOCK));
    fails!(EINVAL, tee(r.as_raw_fd(), w2.as_raw_fd(), 1, 0x100));
    Ok(())
}

fn vmsplice_gives_user_memory() -> Outcome {
    let (r, w) = sys::pipe()?;
    let iov = [
        iovec { iov_base: b"hello ".as_ptr().cast_mut().cast(), iov_len: 6 },
        iovec { iov_base: b"world".as_ptr().cast_mut().cast(), iov_len: 5 },
    ];
    same!(ok!(vmsplice(w.as_raw_fd(), iov.as_ptr(), 2, 0)), 11);
    same!(sys::fd_read(&r, 20)?, b"hello world".to_vec());
    Ok(())
}

fn vmsplice_reads_into_user_memory() -> Outcome {
    let (r, w) = sys::pipe()?;
    sys::fd_write(&w, b"abcdef")?;
    let mut buf = [0u8; 4];
    let iov = iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: 4 };
    same!(ok!(vmsplice(r.as_raw_fd(), &raw const iov, 1, 0)), 4);
    same!(&buf, b"abcd");
    Ok(())
}

fn vmsplice_errors() -> Outcome {
    put("a", b"x")?;
    let a = sys::open("a", O_RDWR)?;
    let (_r, w) = sys::pipe()?;
    let iov = iovec { iov_base: 8 as *mut c_void, iov_len: 4 };
    fails!(EBADF, vmsplice(a.as_raw_fd(), &raw const iov, 1, 0));
    fails!(EBADF, vmsplice(99, &raw const iov, 1, 0));
    fails!(EFAULT, vmsplice(w.as_raw_fd(), &raw const iov, 1, 0));
    fails!(EINVAL, vmsplice(w.as_raw_fd(), &raw const iov, 5000, 0));
    fails!(EINVAL, vmsplice(w.as_raw_fd(), &raw const iov, 1, 0x100));
    same!(ok!(vmsplice(w.as_raw_fd(), &raw const iov, 0, 0)), 0);
    Ok(())
}

fn cfr(a: i32, from: *mut i64, b: i32, to: *mut i64, len: usize, flags: u32) -> i64 {
    unsafe { syscall(SYS_copy_file_range, a, from, b, to, len, flags) }
}

fn copy_file_range_moves_both_positions() -> Outcome {
    put("a", b"0123456789")?;
    let (a, b) = (sys::open("a", O_RDONLY)?, sys::create("b")?);
    let null = std::ptr::null_mut();
    same!(ok!(cfr(a.as_raw_fd(), null, b.as_raw_fd(), null, 4, 0)), 4);
    same!(ok!(cfr(a.as_raw_fd(), null, b.as_raw_fd(), null, 100, 0)), 6);
    same!(ok!(cfr(a.as_raw_fd(), null, b.as_raw_fd(), null, 100, 0)), 0);
    same!(sys::slurp("b")?, "0123456789");
    same!(ok!(lseek(b.as_raw_fd(), 0, SEEK_CUR)), 10);
    Ok(())
}

fn copy_file_range_with_offsets() -> Outcome {
    put("a", b"0123456789")?;
    let (a, b) = (sys::open("a", O_RDONLY)?, sys::create("b")?);
    let (mut from, mut to) = (2i64, 5i64);
    same!(ok!(cfr(a.as_raw_fd(), &raw mut from, b.as_raw_fd(), &raw mut to, 3, 0)), 3);
    same!((from, to), (5, 8));
    same!(ok!(lseek(a.as_raw_fd(), 0, SEEK_CUR)), 0);
    same!(ok!(lseek(b.as_raw_fd(), 0, SEEK_CUR)), 0);
    same!(sys::slurp("b")?, "\0\0\0\0\u{0}234");
    Ok(())
}

fn copy_file_range_at_the_end_is_zero() -> Outcome {
    put("a", b"012")?;
    let (a, b) = (sys::open("a", O_RDONLY)?, sys::create("b")?);
    let (mut from, mut to) = (3i64, 0i64);
    same!(ok!(cfr(a.as_raw_fd(), &raw mut from, b.as_raw_fd(), &raw mut to, 3, 0)), 0);
    same!((from, to), (3, 0));
    Ok(())
}

fn copy_file_range_grows_the_target() -> Outcome {
    let data: Vec<u8> = (0..300_000u32).map(|i| (i % 251) as u8).collect();
    put("a", &data)?;
    let (a, b) = (sys::open("a", O_RDONLY)?, sys::create("b")?);
    let null = std::ptr::null_mut();
    let mut done = 0;
    while done < 300_000 {
        let n = ok!(cfr(a.as_raw_fd(), null, b.as_raw_fd(), null, 300_000, 0));
        want!(n > 0, "nothing copied after {done}");
        done += n;
    }
    want!(std::fs::read("b").is_ok_and(|d| d == data), "the copy differs");
    Ok(())
}

fn copy_file_range_errors() -> Outcome {
    put("a", b"012")?;
    let (a, b) = (sys::open("a", O_RDONLY)?, sys::create("b")?);
    let null = std::ptr::null_mut();
    fails!(EBADF, cfr(b.as_raw_fd(), null, a.as_raw_fd(), null, 1, 0));
    fails!(EINVAL, cfr(a.as_raw_fd(), null, b.as_raw_fd(), null, 1, 1));
    let append = sys::open("b", O_WRONLY | O_APPEND)?;
    fails!(EBADF, cfr(a.as_raw_fd(), null, append.as_raw_fd(), null, 1, 0));
    let (r, _w) = sys::pipe()?;
    fails!(EINVAL, cfr(r.as_raw_fd(), null, b.as_raw_fd(), null, 1, 0));
    let d = sys::open(".", O_RDONLY)?;
    fails!(EISDIR, cfr(d.as_raw_fd(), null, b.as_raw_fd(), null, 1, 0));
    let mut off = -5i64;
    fails!(EINVAL, cfr(a.as_raw_fd(), &raw mut off, b.as_raw_fd(), null, 1, 0));
    fails!(EFAULT, cfr(a.as_raw_fd(), 24 as *mut i64, b.as_raw_fd(), null, 1, 0));
    Ok(())
}

fn copy_file_range_overlap_is_einval() -> Outcome {
    put("a", b"0123456789")?;
    let a = sys::open("a", O_RDWR)?;
    let (mut from, mut to) = (0i64, 2i64);
    fails!(EINVAL, cfr(a.as_raw_fd(), &raw mut from, a.as_raw_fd(), &raw mut to, 4, 0));
    let (mut from, mut to) = (0i64, 5i64);
    same!(ok!(cfr(a.as_raw_fd(), &raw mut from, a.as_raw_fd(), &raw mut to, 5, 0)), 5);
    same!(sys::slurp("a")?, "0123401234");
    // Overlap is judged after the length is cut at the file's end.
    let (mut from, mut to) = (8i64, 10i64);
    same!(ok!(cfr(a.as_raw_fd(), &raw mut from, a.as_raw_fd(), &raw mut to, 100, 0)), 2);
    Ok(())
}

fn copy_file_range_of_a_hole() -> Outcome {
    let (a, b) = (sys::create("a")?, sys::create("b")?);
    ok!(ftruncate(a.as_raw_fd(), 100_000));
    ok!(pwrite(a.as_raw_fd(), b"end".as_ptr().cast(), 3, 99_997));
    let null = std::ptr::null_mut();
    let mut done = 0;
    while done < 100_000 {
        done += ok!(cfr(a.as_raw_fd(), null, b.as_raw_fd(), null, 100_000, 0));
    }
    let data = std::fs::read("b").map_err(|e| e.to_string())?;
    same!(data.len(), 100_000);
    want!(data[..99_997].iter().all(|x| *x == 0) && &data[99_997..] == b"end", "the copy differs");
    Ok(())
}

fn splice_between_pipes_and_sockets() -> Outcome {
    let (r, w) = sys::pipe()?;
    let (s, t) = sys::socketpair(SOCK_STREAM)?;
    let null = std::ptr::null_mut();
    sys::fd_write(&w, b"through")?;
    same!(ok!(splice(r.as_raw_fd(), null, s.as_raw_fd(), null, 100, 0)), 7);
    same!(ok!(splice(t.as_raw_fd(), null, w.as_raw_fd(), null, 4, 0)), 4);
    same!(sys::fd_read(&r, 10)?, b"thro".to_vec());
    same!(sys::fd_read(&t, 10)?, b"ugh".to_vec());
    Ok(())
}

fn readahead_and_fadvise() -> Outcome {
    put("a", b"012")?;
    let a = sys::open("a", O_RDONLY)?;
    ok!(readahead(a.as_raw_fd(), 0, 4096));
    same!(ok!(posix_fadvise(a.as_raw_fd(), 0, 0, POSIX_FADV_SEQUENTIAL)), 0);
    same!(ok!(posix_fadvise(a.as_raw_fd(), 0, 0, 77)), EINVAL);
    same!(ok!(posix_fadvise(a.as_raw_fd(), 0, -1, POSIX_FADV_NORMAL)), EINVAL);
    let (r, w) = sys::pipe()?;
    same!(ok!(posix_fadvise(r.as_raw_fd(), 0, 0, POSIX_FADV_NORMAL)), ESPIPE);
    same!(ok!(posix_fadvise(99, 0, 0, POSIX_FADV_NORMAL)), EBADF);
    fails!(EINVAL, readahead(r.as_raw_fd(), 0, 1));
    fails!(EBADF, readahead(w.as_raw_fd(), 0, 1));
    Ok(())
}
