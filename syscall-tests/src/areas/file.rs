//! open(2), read(2), write(2), lseek(2), truncate(2), fallocate(2) and their kin on regular files.

use crate::harness::Outcome;
use crate::sys::{self, Map, c, fd_read, fd_write};
use libc::*;
use std::os::fd::AsRawFd;

cases![
    create_applies_the_umask,
    excl_refuses_what_is_there,
    trunc_empties,
    append_writes_at_the_end,
    read_and_write_move_the_offset,
    pread_and_pwrite_do_not,
    seek_past_the_end_leaves_a_hole,
    lseek_edges,
    seek_data_and_hole,
    ftruncate_grows_with_zeroes,
    truncate_by_path,
    read_at_the_end_is_zero,
    write_to_a_read_only_descriptor_is_ebadf,
    reading_a_directory_is_eisdir,
    open_errors,
    open_directory_flag,
    o_path_descriptors,
    tmpfile_has_no_name_until_linked,
    bad_buffers_are_efault_or_partial,
    readv_spans_buffers,
    pwritev_at_an_offset,
    unlinked_file_lives_while_open,
    fallocate_grows_keeps_and_punches,
    copy_file_range_copies,
    sendfile_to_a_pipe,
    file_size_limit_is_efbig,
    written_data_is_seen_by_other_descriptors,
    fsync_and_fdatasync,
    append_of_two_processes_interleaves_whole_lines,
    huge_offsets_are_refused,
    memfd_is_a_file,
    memfd_seals,
];

fn create_applies_the_umask() -> Outcome {
    unsafe { umask(0o027) };
    let fd = sys::own(ok!(open(c("f").as_ptr(), O_CREAT | O_RDWR, 0o666)));
    same!(sys::fstat(&fd)?.st_mode & 0o7777, 0o640);
    Ok(())
}

fn excl_refuses_what_is_there() -> Outcome {
    sys::put("f", b"")?;
    fails!(EEXIST, open(c("f").as_ptr(), O_CREAT | O_EXCL | O_RDWR, 0o600));
    ok!(symlink(c("nowhere").as_ptr(), c("l").as_ptr()));
    fails!(EEXIST, open(c("l").as_ptr(), O_CREAT | O_EXCL | O_RDWR, 0o600));
    sys::own(ok!(open(c("l").as_ptr(), O_CREAT | O_RDWR, 0o600)));
    same!(sys::stat("nowhere")?.st_size, 0);
    Ok(())
}

fn trunc_empties() -> Outcome {
    sys::put("f", b"hello")?;
    sys::open("f", O_WRONLY | O_TRUNC)?;
    same!(sys::stat("f")?.st_size, 0);
    Ok(())
}

fn append_writes_at_the_end() -> Outcome {
    sys::put("f", b"abc")?;
    let fd = sys::open("f", O_RDWR | O_APPEND)?;
    ok!(lseek(fd.as_raw_fd(), 0, SEEK_SET));
    fd_write(&fd, b"def")?;
    same!(ok!(lseek(fd.as_raw_fd(), 0, SEEK_CUR)), 6);
    // Linux appends even for pwrite.
    ok!(pwrite(fd.as_raw_fd(), b"g".as_ptr().cast(), 1, 0));
    same!(sys::slurp("f")?, "abcdefg");
    Ok(())
}

fn read_and_write_move_the_offset() -> Outcome {
    let fd = sys::create("f")?;
    fd_write(&fd, b"abcdef")?;
    same!(ok!(lseek(fd.as_raw_fd(), 2, SEEK_SET)), 2);
    same!(fd_read(&fd, 2)?, b"cd");
    fd_write(&fd, b"XY")?;
    same!(sys::slurp("f")?, "abcdXY");
    Ok(())
}

fn pread_and_pwrite_do_not() -> Outcome {
    let fd = sys::create("f")?;
    ok!(pwrite(fd.as_raw_fd(), b"abc".as_ptr().cast(), 3, 2));
    let mut b = [9u8; 5];
    same!(ok!(pread(fd.as_raw_fd(), b.as_mut_ptr().cast(), 5, 0)), 5);
    same!(&b, b"\0\0abc");
    same!(ok!(lseek(fd.as_raw_fd(), 0, SEEK_CUR)), 0);
    fails!(EINVAL, pread(fd.as_raw_fd(), b.as_mut_ptr().cast(), 1, -1));
    fails!(EINVAL, pwrite(fd.as_raw_fd(), b.as_ptr().cast(), 1, -1));
    Ok(())
}

fn seek_past_the_end_leaves_a_hole() -> Outcome {
    let fd = sys::create("f")?;
    ok!(lseek(fd.as_raw_fd(), 100_000, SEEK_SET));
    same!(sys::stat("f")?.st_size, 0);
    fd_write(&fd, b"x")?;
    same!(sys::stat("f")?.st_size, 100_001);
    let mut b = [9u8; 10];
    ok!(pread(fd.as_raw_fd(), b.as_mut_ptr().cast(), 10, 50_000));
    same!(b, [0u8; 10]);
    Ok(())
}

fn lseek_edges() -> Outcome {
    sys::put("f", b"hello")?;
    let fd = sys::open("f", O_RDONLY)?;
    let raw = fd.as_raw_fd();
    fails!(EINVAL, lseek(raw, -1, SEEK_SET));
    same!(ok!(lseek(raw, -2, SEEK_END)), 3);
    same!(ok!(lseek(raw, 4, SEEK_CUR)), 7);
    fails!(EINVAL, lseek(raw, -8, SEEK_CUR));
    fails!(EINVAL, lseek(raw, 0, 99));
    fails!(EBADF, lseek(77, 0, SEEK_SET));
    Ok(())
}

fn seek_data_and_hole() -> Outcome {
    sys::put("f", b"hello")?;
    let fd = sys::open("f", O_RDONLY)?;
    same!(ok!(lseek(fd.as_raw_fd(), 2, SEEK_DATA)), 2);
    same!(ok!(lseek(fd.as_raw_fd(), 2, SEEK_HOLE)), 5);
    fails!(ENXIO, lseek(fd.as_raw_fd(), 5, SEEK_DATA));
    fails!(ENXIO, lseek(fd.as_raw_fd(), 9, SEEK_HOLE));
    Ok(())
}

fn ftruncate_grows_with_zeroes() -> Outcome {
    let fd = sys::create("f")?;
    fd_write(&fd, &[7u8; 5000])?;
    ok!(ftruncate(fd.as_raw_fd(), 10));
    ok!(ftruncate(fd.as_raw_fd(), 6000));
    let mut b = vec![9u8; 6000];
    same!(ok!(pread(fd.as_raw_fd(), b.as_mut_ptr().cast(), 6000, 0)), 6000);
    want!(b[..10] == [7u8; 10] && b[10..].iter().all(|x| *x == 0), "old bytes came back");
    fails!(EINVAL, ftruncate(fd.as_raw_fd(), -1));
    let ro = sys::open("f", O_RDONLY)?;
    fails!(EINVAL, ftruncate(ro.as_raw_fd(), 0));
    Ok(())
}

fn truncate_by_path() -> Outcome {
    sys::put("f", b"hello")?;
    ok!(truncate(c("f").as_ptr(), 2));
    same!(sys::slurp("f")?, "he");
    fails!(EISDIR, truncate(c(".").as_ptr(), 0));
    fails!(ENOENT, truncate(c("none").as_ptr(), 0));
    Ok(())
}

fn read_at_the_end_is_zero() -> Outcome {
    sys::put("f", b"hi")?;
    let fd = sys::open("f", O_RDONLY)?;
    same!(fd_read(&fd, 10)?, b"hi");
    same!(fd_read(&fd, 10)?, b"");
    ok!(lseek(fd.as_raw_fd(), 1000, SEEK_SET));
    same!(fd_read(&fd, 10)?, b"");
    Ok(())
}

fn write_to_a_read_only_descriptor_is_ebadf() -> Outcome {
    sys::put("f", b"hi")?;
    let ro = sys::open("f", O_RDONLY)?;
    let wo = sys::open("f", O_WRONLY)?;
    let mut b = [0u8; 1];
    fails!(EBADF, write(ro.as_raw_fd(), b.as_ptr().cast(), 1));
    fails!(EBADF, read(wo.as_raw_fd(), b.as_mut_ptr().cast(), 1));
    Ok(())
}

fn reading_a_directory_is_eisdir() -> Outcome {
    let d = sys::open(".", O_RDONLY)?;
    let mut b = [0u8; 1];
    fails!(EISDIR, read(d.as_raw_fd(), b.as_mut_ptr().cast(), 1));
    fails!(EISDIR, open(c(".").as_ptr(), O_RDWR));
    fails!(EISDIR, open(c(".").as_ptr(), O_WRONLY | O_CREAT, 0o600));
    Ok(())
}

fn open_errors() -> Outcome {
    fails!(ENOENT, open(c("none").as_ptr(), O_RDONLY));
    fails!(ENOENT, open(c("").as_ptr(), O_RDONLY));
    fails!(ENOENT, open(c("none/f").as_ptr(), O_CREAT | O_RDWR, 0o600));
    sys::put("f", b"")?;
    fails!(ENOTDIR, open(c("f/x").as_ptr(), O_RDONLY));
    fails!(ENOTDIR, open(c("f/").as_ptr(), O_RDONLY));
    fails!(EFAULT, open(8 as *const c_char, O_RDONLY));
    fails!(ENAMETOOLONG, open(c(&"x".repeat(256)).as_ptr(), O_RDONLY));
    fails!(ENAMETOOLONG, open(c(&"x/".repeat(2100)).as_ptr(), O_RDONLY));
    ok!(symlink(c("l").as_ptr(), c("l").as_ptr()));
    fails!(ELOOP, open(c("l").as_ptr(), O_RDONLY));
    fails!(ELOOP, open(c("l").as_ptr(), O_RDONLY | O_NOFOLLOW));
    Ok(())
}

fn open_directory_flag() -> Outcome {
    sys::put("f", b"")?;
    fails!(ENOTDIR, open(c("f").as_ptr(), O_RDONLY | O_DIRECTORY));
    sys::open(".", O_RDONLY | O_DIRECTORY)?;
    Ok(())
}

fn o_path_descriptors() -> Outcome {
    sys::put("f", b"data")?;
    let p = sys::open("f", O_PATH)?;
    let mut b = [0u8; 1];
    fails!(EBADF, read(p.as_raw_fd(), b.as_mut_ptr().cast(), 1));
    same!(sys::fstat(&p)?.st_size, 4);
    ok!(symlink(c("f").as_ptr(), c("l").as_ptr()));
    let l = sys::open("l", O_PATH | O_NOFOLLOW)?;
    same!(sys::fstat(&l)?.st_mode & S_IFMT, S_IFLNK);
    Ok(())
}

fn tmpfile_has_no_name_until_linked() -> Outcome {
    let fd = sys::open(".", O_TMPFILE | O_RDWR)?;
    fd_write(&fd, b"late")?;
    same!(sys::fstat(&fd)?.st_nlink, 0);
    let proc = format!("/proc/self/fd/{}", fd.as_raw_fd());
    ok!(linkat(AT_FDCWD, c(&proc).as_ptr(), AT_FDCWD, c("named").as_ptr(), AT_SYMLINK_FOLLOW));
    same!(sys::slurp("named")?, "late");
    Ok(())
}

fn bad_buffers_are_efault_or_partial() -> Outcome {
    let fd = sys::create("f")?;
    fails!(EFAULT, write(fd.as_raw_fd(), 8 as *const c_void, 1));
    fd_write(&fd, &[5u8; 100])?;
    ok!(lseek(fd.as_raw_fd(), 0, SEEK_SET));
    fails!(EFAULT, read(fd.as_raw_fd(), 8 as *mut c_void, 1));
    let map = Map::guarded()?;
    let n = unsafe { read(fd.as_raw_fd(), map.at(sys::PAGE - 10).cast(), 100) };
    want!(n == 10 || n == -1, "read across a bad page gave {n}");
    same!(map.get(sys::PAGE - 1), 5);
    Ok(())
}

fn readv_spans_buffers() -> Outcome {
    sys::put("f", b"abcdefgh")?;
    let fd = sys::open("f", O_RDONLY)?;
    let (mut a, mut b) = ([0u8; 3], [0u8; 3]);
    let v = [
        iovec { iov_base: a.as_mut_ptr().cast(), iov_len: 3 },
        iovec { iov_base: b.as_mut_ptr().cast(), iov_len: 3 },
    ];
    same!(ok!(readv(fd.as_raw_fd(), v.as_ptr(), 2)), 6);
    same!((&a, &b), (b"abc", b"def"));
    same!(ok!(preadv(fd.as_raw_fd(), v.as_ptr(), 2, 4)), 4);
    same!(&a, b"efg");
    let huge = [iovec { iov_base: a.as_mut_ptr().cast(), iov_len: usize::MAX }];
    fails!(EINVAL, readv(fd.as_raw_fd(), huge.as_ptr(), 1));
    Ok(())
}

fn pwritev_at_an_offset() -> Outcome {
    let fd = sys::create("f")?;
    let v = [
        iovec { iov_base: b"ab".as_ptr() as *mut c_void, iov_len: 2 },
        iovec { iov_base: b"cd".as_ptr() as *mut c_void, iov_len: 2 },
    ];
    same!(ok!(pwritev(fd.as_raw_fd(), v.as_ptr(), 2, 3)), 4);
    same!(sys::slurp("f")?, "\0\0\0abcd");
    Ok(())
}

fn unlinked_file_lives_while_open() -> Outcome {
    let fd = sys::create("f")?;
    fd_write(&fd, b"still")?;
    ok!(unlink(c("f").as_ptr()));
    fails!(ENOENT, open(c("f").as_ptr(), O_RDONLY));
    same!(sys::fstat(&fd)?.st_nlink, 0);
    ok!(lseek(fd.as_raw_fd(), 0, SEEK_SET));
    same!(fd_read(&fd, 9)?, b"still");
    sys::put("f", b"new")?;
    ok!(lseek(fd.as_raw_fd(), 0, SEEK_SET));
    same!(fd_read(&fd, 9)?, b"still");
    Ok(())
}

fn fallocate_grows_keeps_and_punches() -> Outcome {
    let fd = sys::create("f")?;
    let raw = fd.as_raw_fd();
    ok!(fallocate(raw, 0, 0, 10_000));
    same!(sys::fstat(&fd)?.st_size, 10_000);
    ok!(fallocate(raw, FALLOC_FL_KEEP_SIZE, 0, 20_000));
    same!(sys::fstat(&fd)?.st_size, 10_000);
    ok!(pwrite(raw, [1u8; 10_000].as_ptr().cast(), 10_000, 0));
    ok!(fallocate(raw, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 1000, 5000));
    let mut b = vec![9u8; 10_000];
    ok!(pread(raw, b.as_mut_ptr().cast(), 10_000, 0));
    want!(b[999] == 1 && b[1000..6000].iter().all(|x| *x == 0) && b[6000] == 1, "the hole is elsewhere");
    fails!(EINVAL, fallocate(raw, 0, 0, 0));
    fails!(EINVAL, fallocate(raw, 0, -1, 10));
    fails!(EOPNOTSUPP, fallocate(raw, FALLOC_FL_PUNCH_HOLE, 0, 10));
    Ok(())
}

fn copy_file_range_copies() -> Outcome {
    sys::put("a", b"0123456789")?;
    let a = sys::open("a", O_RDONLY)?;
    let b = sys::create("b")?;
    let mut from = 2i64;
    let null = std::ptr::null_mut();
    let n = unsafe { copy_file_range(a.as_raw_fd(), &raw mut from, b.as_raw_fd(), null, 5, 0) };
    same!(n, 5);
    same!(from, 7);
    same!(sys::slurp("b")?, "23456");
    fails!(EBADF, copy_file_range(b.as_raw_fd(), null, a.as_raw_fd(), null, 5, 0));
    Ok(())
}

fn sendfile_to_a_pipe() -> Outcome {
    sys::put("a", b"0123456789")?;
    let a = sys::open("a", O_RDONLY)?;
    let (rd, wr) = sys::pipe()?;
    let mut off = 4i64;
    same!(ok!(sendfile(wr.as_raw_fd(), a.as_raw_fd(), &raw mut off, 3)), 3);
    same!(off, 7);
    same!(ok!(sendfile(wr.as_raw_fd(), a.as_raw_fd(), std::ptr::null_mut(), 2)), 2);
    same!(fd_read(&rd, 99)?, b"45601");
    Ok(())
}

fn file_size_limit_is_efbig() -> Outcome {
    sys::on_signal(SIGXFSZ, sys::count_handler, 0)?;
    let limit = rlimit { rlim_cur: 100, rlim_max: RLIM_INFINITY };
    ok!(setrlimit(RLIMIT_FSIZE, &raw const limit));
    let fd = sys::create("f")?;
    same!(fd_write(&fd, &[0u8; 150])?, 100);
    fails!(EFBIG, write(fd.as_raw_fd(), b"x".as_ptr().cast(), 1));
    same!(sys::hits(), 1);
    fails!(EFBIG, ftruncate(fd.as_raw_fd(), 101));
    Ok(())
}

fn written_data_is_seen_by_other_descriptors() -> Outcome {
    sys::put("f", b"old contents")?;
    let reader = sys::open("f", O_RDONLY)?;
    same!(fd_read(&reader, 3)?, b"old");
    let writer = sys::open("f", O_WRONLY)?;
    fd_write(&writer, b"new")?;
    ok!(lseek(reader.as_raw_fd(), 0, SEEK_SET));
    same!(fd_read(&reader, 3)?, b"new");
    Ok(())
}

fn fsync_and_fdatasync() -> Outcome {
    let fd = sys::create("f")?;
    ok!(fsync(fd.as_raw_fd()));
    ok!(fdatasync(fd.as_raw_fd()));
    let (rd, _wr) = sys::pipe()?;
    fails!(EINVAL, fsync(rd.as_raw_fd()));
    fails!(EBADF, fsync(77));
    Ok(())
}

fn append_of_two_processes_interleaves_whole_lines() -> Outcome {
    let work = |tag: &'static str| {
        move || -> Outcome {
            let fd = sys::open("log", O_CREAT | O_WRONLY | O_APPEND)?;
            for i in 0..200 {
                fd_write(&fd, format!("{tag}{i}\n").as_bytes())?;
            }
            Ok(())
        }
    };
    let (a, b) = (sys::fork(work("a"))?, sys::fork(work("b"))?);
    a.ok()?;
    b.ok()?;
    let text = sys::slurp("log")?;
    same!(text.lines().count(), 400);
    for tag in ["a", "b"] {
        let mine: Vec<&str> = text.lines().filter(|l| l.starts_with(tag)).collect();
        let want: Vec<String> = (0..200).map(|i| format!("{tag}{i}")).collect();
        want!(mine == want, "lines of {tag} are torn or out of order");
    }
    Ok(())
}

fn huge_offsets_are_refused() -> Outcome {
    let fd = sys::create("f")?;
    let r = unsafe { pwrite(fd.as_raw_fd(), b"x".as_ptr().cast(), 1, i64::MAX) };
    want!(
        r == -1 && [EFBIG, EINVAL].contains(&crate::harness::errno()),
        "pwrite at the largest offset gave {r}"
    );
    Ok(())
}

fn memfd_is_a_file() -> Outcome {
    let fd = sys::own(ok!(memfd_create(c"name".as_ptr(), MFD_CLOEXEC)));
    fd_write(&fd, b"in memory")?;
    same!(sys::fstat(&fd)?.st_size, 9);
    let map = Map::new(4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd.as_raw_fd(), 0)?;
    same!(&map.bytes()[..9], b"in memory");
    map.set(0, b'I');
    let mut b = [0u8; 2];
    ok!(pread(fd.as_raw_fd(), b.as_mut_ptr().cast(), 2, 0));
    same!(&b, b"In");
    let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).map_err(|e| e.to_string())?;
    same!(link.to_string_lossy(), "/memfd:name (deleted)");
    Ok(())
}

fn memfd_seals() -> Outcome {
    let fd = sys::own(ok!(memfd_create(c"s".as_ptr(), MFD_ALLOW_SEALING)));
    let raw = fd.as_raw_fd();
    fd_write(&fd, b"abc")?;
    same!(ok!(fcntl(raw, F_GET_SEALS)), 0);
    ok!(fcntl(raw, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW));
    fails!(EPERM, ftruncate(raw, 1));
    fails!(EPERM, ftruncate(raw, 10));
    ok!(pwrite(raw, b"x".as_ptr().cast(), 1, 0));
    ok!(fcntl(raw, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SEAL));
    fails!(EPERM, pwrite(raw, b"y".as_ptr().cast(), 1, 0));
    fails!(EPERM, fcntl(raw, F_ADD_SEALS, F_SEAL_GROW));
    let plain = sys::own(ok!(memfd_create(c"p".as_ptr(), 0)));
    same!(ok!(fcntl(plain.as_raw_fd(), F_GET_SEALS)), F_SEAL_SEAL);
    Ok(())
}
