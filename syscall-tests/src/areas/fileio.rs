//! More of files: fallocate(2) modes, preadv2(2)/pwritev2(2) flags, statx(2), sizes and holes, limits, syncing,
//! mappings of files that change.

use crate::harness::Outcome;
use crate::sys::{self, Map, PAGE, c, put};
use libc::*;
use std::os::fd::{AsRawFd, OwnedFd};

cases![
    fallocate_keep_size,
    fallocate_punch_hole_frees_blocks,
    fallocate_zero_range,
    fallocate_collapse_and_insert,
    fallocate_errors,
    fallocate_past_the_size_limit,
    preadv2_minus_one_uses_the_position,
    pwritev2_append_and_noappend,
    rwf_flags_that_are_unknown,
    rwf_sync_flags,
    nowait_read_of_a_file_or_eagain,
    iovec_errors,
    zero_length_io,
    negative_offsets,
    write_at_the_largest_offset,
    sparse_file_has_few_blocks,
    huge_sparse_file,
    seek_data_in_a_sparse_file,
    seek_errors,
    truncate_errors,
    truncate_shrinks_and_zeroes,
    ftruncate_needs_a_writable_descriptor,
    statx_masks,
    statx_of_a_descriptor_and_errors,
    statx_birth_time_does_not_move,
    blocks_follow_the_data,
    mapping_sees_later_writes,
    mapping_of_an_unlinked_file,
    shared_mapping_reaches_a_read,
    private_mapping_misses_nothing_before_its_copy,
    mapping_grows_with_the_file,
    punched_page_reads_zero_through_a_mapping,
    sync_calls,
    sync_file_range_errors,
    fsync_of_odd_descriptors,
    append_moves_the_position_to_the_end,
    pwrite_with_append_appends,
    reads_across_the_end,
    write_updates_mtime_and_ctime,
    read_updates_atime_relatively,
    file_size_limit_cuts_a_write,
    posix_fallocate_enospc_or_works,
    o_direct_or_einval,
    dup_shares_append_and_position,
    efault_in_the_middle_of_a_write,
    large_io_is_whole,
];

fn data(n: usize) -> Vec<u8> {
    (0..n).map(|i| (i * 7 + i / 251) as u8).collect()
}

fn whole(path: &str) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|e| e.to_string())
}

fn fallocate_keep_size() -> Outcome {
    let fd = sys::create("f")?;
    ok!(fallocate(fd.as_raw_fd(), FALLOC_FL_KEEP_SIZE, 0, 100_000));
    let st = sys::fstat(&fd)?;
    same!(st.st_size, 0);
    want!(st.st_blocks * 512 >= 100_000, "{} blocks", st.st_blocks);
    ok!(fallocate(fd.as_raw_fd(), 0, 0, 5000));
    same!(sys::fstat(&fd)?.st_size, 5000);
    ok!(fallocate(fd.as_raw_fd(), 0, 0, 10));
    same!(sys::fstat(&fd)?.st_size, 5000);
    Ok(())
}

fn fallocate_punch_hole_frees_blocks() -> Outcome {
    let bytes = data(64 * 1024);
    put("f", &bytes)?;
    let fd = sys::open("f", O_RDWR)?;
    ok!(fsync(fd.as_raw_fd()));
    let before = sys::fstat(&fd)?.st_blocks;
    ok!(fallocate(fd.as_raw_fd(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 4096, 32 * 1024));
    ok!(fsync(fd.as_raw_fd()));
    want!(sys::fstat(&fd)?.st_blocks < before, "no block was freed");
    // Partial pages are zeroed.
    ok!(fallocate(fd.as_raw_fd(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 50_000, 100));
    let mut want = bytes;
    want[4096..4096 + 32 * 1024].fill(0);
    want[50_000..50_100].fill(0);
    want!(whole("f")? == want, "the contents differ");
    // Past the end it does nothing.
    ok!(fallocate(fd.as_raw_fd(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 1 << 20, 4096));
    same!(sys::fstat(&fd)?.st_size, 64 * 1024);
    Ok(())
}

fn fallocate_zero_range() -> Outcome {
    let bytes = data(20_000);
    put("f", &bytes)?;
    let fd = sys::open("f", O_RDWR)?;
    if unsafe { fallocate(fd.as_raw_fd(), FALLOC_FL_ZERO_RANGE, 1000, 9000) } != 0 {
        same!(crate::harness::errno(), EOPNOTSUPP);
        skip!("no FALLOC_FL_ZERO_RANGE here");
    }
    let mut want = bytes;
    want[1000..10_000].fill(0);
    want!(whole("f")? == want, "the contents differ");
    ok!(fallocate(fd.as_raw_fd(), FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, 19_000, 5000));
    same!(sys::fstat(&fd)?.st_size, 20_000);
    ok!(fallocate(fd.as_raw_fd(), FALLOC_FL_ZERO_RANGE, 19_000, 5000));
    same!(sys::fstat(&fd)?.st_size, 24_000);
    Ok(())
}

fn fallocate_collapse_and_insert() -> Outcome {
    let bytes = data(16 * 1024);
    put("f", &bytes)?;
    let fd = sys::open("f", O_RDWR)?;
    if unsafe { fallocate(fd.as_raw_fd(), FALLOC_FL_COLLAPSE_RANGE, 4096, 4096) } != 0 {
        same!(crate::harness::errno(), EOPNOTSUPP);
        skip!("no FALLOC_FL_COLLAPSE_RANGE here");
    }
    let mut want = bytes;
    want.drain(4096..8192);
    want!(whole("f")? == want, "the contents differ after the collapse");
    fails!(EINVAL, fallocate(fd.as_raw_fd(), FALLOC_FL_COLLAPSE_RANGE, 100, 4096));
    fails!(EINVAL, fallocate(fd.as_raw_fd(), FALLOC_FL_COLLAPSE_RANGE, 8192, 4096));
    ok!(fallocate(fd.as_raw_fd(), FALLOC_FL_INSERT_RANGE, 4096, 4096));
    want.splice(4096..4096, std::iter::repeat_n(0, 4096));
    want!(whole("f")? == want, "the contents differ after the insertion");
    Ok(())
}

fn fallocate_errors() -> Outcome {
    put("f", b"abc")?;
    let fd = sys::open("f", O_RDWR)?;
    let n = fd.as_raw_fd();
    fails!(EINVAL, fallocate(n, 0, 0, 0));
    fails!(EINVAL, fallocate(n, 0, -1, 10));
    fails!(EINVAL, fallocate(n, 0, 0, -1));
    fails!(EFBIG, fallocate(n, 0, i64::MAX, 1));
    fails!(EOPNOTSUPP, fallocate(n, FALLOC_FL_PUNCH_HOLE, 0, 10));
    fails!(EOPNOTSUPP, fallocate(n, 0x4000_0000, 0, 10));
    let read_only = sys::open("f", O_RDONLY)?;
    fails!(EBADF, fallocate(read_only.as_raw_fd(), 0, 0, 10));
    fails!(EBADF, fallocate(99, 0, 0, 10));
    let (_r, w) = sys::pipe()?;
    fails!(ESPIPE, fallocate(w.as_raw_fd(), 0, 0, 10));
    let d = sys::open(".", O_RDONLY)?;
    fails!(EBADF, fallocate(d.as_raw_fd(), 0, 0, 10));
    Ok(())
}

fn fallocate_past_the_size_limit() -> Outcome {
    let fd = sys::create("f")?;
    sys::on_signal(SIGXFSZ, sys::count_handler, 0)?;
    let limit = rlimit { rlim_cur: 10_000, rlim_max: 10_000 };
    ok!(setrlimit(RLIMIT_FSIZE, &raw const limit));
    fails!(EFBIG, fallocate(fd.as_raw_fd(), 0, 0, 20_000));
    ok!(fallocate(fd.as_raw_fd(), 0, 0, 10_000));
    fails!(EFBIG, ftruncate(fd.as_raw_fd(), 10_001));
    want!(sys::hits() > 0, "no SIGXFSZ");
    Ok(())
}

fn iov(b: &[u8]) -> iovec {
    iovec { iov_base: b.as_ptr().cast_mut().cast(), iov_len: b.len() }
}

fn pw2(fd: &OwnedFd, b: &[u8], off: i64, flags: i32) -> isize {
    unsafe { pwritev2(fd.as_raw_fd(), &raw const *Box::new(iov(b)), 1, off, flags) }
}

fn pr2(fd: &OwnedFd, b: &[u8], off: i64, flags: i32) -> isize {
    unsafe { preadv2(fd.as_raw_fd(), &raw const *Box::new(iov(b)), 1, off, flags) }
}

fn preadv2_minus_one_uses_the_position() -> Outcome {
    put("f", b"0123456789")?;
    let fd = sys::open("f", O_RDWR)?;
    let buf = [0u8; 4];
    same!(ok!(pr2(&fd, &buf, -1, 0)), 4);
    same!(ok!(lseek(fd.as_raw_fd(), 0, SEEK_CUR)), 4);
    same!(ok!(pr2(&fd, &buf, 1, 0)), 4);
    same!(ok!(lseek(fd.as_raw_fd(), 0, SEEK_CUR)), 4);
    same!(ok!(pw2(&fd, b"AB", -1, 0)), 2);
    same!(ok!(lseek(fd.as_raw_fd(), 0, SEEK_CUR)), 6);
    same!(sys::slurp("f")?, "0123AB6789");
    fails!(EINVAL, pr2(&fd, &buf, -2, 0));
    Ok(())
}

fn pwritev2_append_and_noappend() -> Outcome {
    put("f", b"0123")?;
    let fd = sys::open("f", O_RDWR)?;
    same!(ok!(pw2(&fd, b"AB", 0, RWF_APPEND)), 2);
    same!(sys::slurp("f")?, "0123AB");
    same!(ok!(lseek(fd.as_raw_fd(), 0, SEEK_CUR)), 0);
    same!(ok!(pw2(&fd, b"C", -1, RWF_APPEND)), 1);
    same!(ok!(lseek(fd.as_raw_fd(), 0, SEEK_CUR)), 7);
    let append = sys::open("f", O_RDWR | O_APPEND)?;
    const NOAPPEND: i32 = 0x20;
    let r = pw2(&append, b"x", 1, NOAPPEND);
    if r < 0 {
        same!(crate::harness::errno(), EOPNOTSUPP);
        skip!("no RWF_NOAPPEND here");
    }
    // An overlay of the kernel does not pass the flag on.
    let text = sys::slurp("f")?;
    want!(text == "0x23ABC" || text == "0123ABCx", "{text}");
    Ok(())
}

fn rwf_flags_that_are_unknown() -> Outcome {
    put("f", b"0123")?;
    let fd = sys::open("f", O_RDWR)?;
    let buf = [0u8; 4];
    fails!(EOPNOTSUPP, pr2(&fd, &buf, 0, 0x4000_0000));
    fails!(EOPNOTSUPP, pw2(&fd, &buf, 0, 0x4000_0000));
    fails!(EBADF, preadv2(99, &raw const *Box::new(iov(&buf)), 1, 0, 0));
    Ok(())
}

fn rwf_sync_flags() -> Outcome {
    let fd = sys::create("f")?;
    same!(ok!(pw2(&fd, b"abc", 0, RWF_DSYNC)), 3);
    same!(ok!(pw2(&fd, b"def", 3, RWF_SYNC)), 3);
    let buf = [0u8; 6];
    same!(ok!(pr2(&fd, &buf, 0, RWF_HIPRI)), 6);
    let sync = sys::open("f", O_WRONLY | O_SYNC)?;
    same!(sys::fd_write(&sync, b"xyz")?, 3);
    same!(ok!(fcntl(sync.as_raw_fd(), F_GETFL)) & O_SYNC, O_SYNC);
    Ok(())
}

fn nowait_read_of_a_file_or_eagain() -> Outcome {
    put("f", b"0123")?;
    let fd = sys::open("f", O_RDWR)?;
    let buf = [0u8; 4];
    let r = pr2(&fd, &buf, 0, RWF_NOWAIT);
    want!(r == 4 || [EAGAIN, EOPNOTSUPP].contains(&crate::harness::errno()), "{r}");
    let (r, _w) = sys::pipe()?;
    let n = pr2(&r, &buf, -1, RWF_NOWAIT);
    want!(n < 0 && [EAGAIN, EOPNOTSUPP].contains(&crate::harness::errno()), "{n}");
    Ok(())
}

fn iovec_errors() -> Outcome {
    put("f", b"0123")?;
    let fd = sys::open("f", O_RDWR)?;
    let n = fd.as_raw_fd();
    let buf = [0u8; 4];
    let many = vec![iov(&buf); 1025];
    fails!(EINVAL, readv(n, many.as_ptr(), 1025));
    fails!(EINVAL, readv(n, many.as_ptr(), -1));
    same!(ok!(readv(n, many.as_ptr(), 0)), 0);
    same!(ok!(readv(n, many.as_ptr(), 1024)), 4);
    fails!(EFAULT, readv(n, 24 as *const iovec, 1));
    let bad = [iov(&buf), iovec { iov_base: buf.as_ptr().cast_mut().cast(), iov_len: usize::MAX }];
    fails!(EINVAL, writev(n, bad.as_ptr(), 2));
    Ok(())
}

fn zero_length_io() -> Outcome {
    put("f", b"0123")?;
    let fd = sys::open("f", O_RDWR)?;
    let n = fd.as_raw_fd();
    same!(ok!(read(n, 8 as *mut c_void, 0)), 0);
    same!(ok!(write(n, 8 as *const c_void, 0)), 0);
    same!(ok!(pread(n, 8 as *mut c_void, 0, 1000)), 0);
    let before = sys::fstat(&fd)?;
    same!((before.st_size, ok!(lseek(n, 0, SEEK_CUR))), (4, 0));
    Ok(())
}

fn negative_offsets() -> Outcome {
    put("f", b"0123")?;
    let fd = sys::open("f", O_RDWR)?;
    let mut buf = [0u8; 4];
    fails!(EINVAL, pread(fd.as_raw_fd(), buf.as_mut_ptr().cast(), 4, -1));
    fails!(EINVAL, pwrite(fd.as_raw_fd(), buf.as_ptr().cast(), 4, -1));
    fails!(EINVAL, lseek(fd.as_raw_fd(), -1, SEEK_SET));
    fails!(EINVAL, lseek(fd.as_raw_fd(), -5, SEEK_END));
    Ok(())
}

fn write_at_the_largest_offset() -> Outcome {
    let fd = sys::create("f")?;
    let r = unsafe { pwrite(fd.as_raw_fd(), b"x".as_ptr().cast(), 1, i64::MAX) };
    let e = crate::harness::errno();
    want!(r < 0 && (e == EFBIG || e == EINVAL), "{r}, errno {e}");
    fails!(EINVAL, pwrite(fd.as_raw_fd(), b"xy".as_ptr().cast(), 2, i64::MAX));
    let mut buf = [0u8; 1];
    same!(ok!(pread(fd.as_raw_fd(), buf.as_mut_ptr().cast(), 1, 1 << 40)), 0);
    Ok(())
}

fn sparse_file_has_few_blocks() -> Outcome {
    let fd = sys::create("f")?;
    ok!(pwrite(fd.as_raw_fd(), b"x".as_ptr().cast(), 1, 10 << 20));
    let st = sys::fstat(&fd)?;
    same!(st.st_size, (10 << 20) + 1);
    want!(st.st_blocks < 1000, "{} blocks", st.st_blocks);
    let mut buf = [1u8; 16];
    same!(ok!(pread(fd.as_raw_fd(), buf.as_mut_ptr().cast(), 16, 5 << 20)), 16);
    same!(buf, [0u8; 16]);
    Ok(())
}

fn huge_sparse_file() -> Outcome {
    let fd = sys::create("f")?;
    let end: i64 = 1 << 40;
    ok!(ftruncate(fd.as_raw_fd(), end));
    same!(sys::fstat(&fd)?.st_size, end);
    same!(ok!(pwrite(fd.as_raw_fd(), b"tail".as_ptr().cast(), 4, end - 4)), 4);
    let mut buf = [0u8; 8];
    same!(ok!(pread(fd.as_raw_fd(), buf.as_mut_ptr().cast(), 8, end - 8)), 8);
    same!(&buf, b"\0\0\0\0tail");
    same!(ok!(lseek(fd.as_raw_fd(), 0, SEEK_END)), end);
    let map = Map::new(PAGE, PROT_READ, MAP_SHARED, fd.as_raw_fd(), end - PAGE as i64)?;
    same!(&map.bytes()[PAGE - 4..], b"tail");
    Ok(())
}

fn seek_data_in_a_sparse_file() -> Outcome {
    let fd = sys::create("f")?;
    let n = fd.as_raw_fd();
    let (at, len) = (1i64 << 20, 65536usize);
    ok!(pwrite(n, vec![1u8; len].as_ptr().cast(), len, at));
    ok!(ftruncate(n, 4 << 20));
    let first = ok!(lseek(n, 0, SEEK_DATA));
    want!(first <= at && first >= 0, "data begins at {first}");
    if first != 0 {
        same!(first, at);
        same!(ok!(lseek(n, at, SEEK_HOLE)), at + len as i64);
        same!(ok!(lseek(n, at + 5, SEEK_DATA)), at + 5);
        same!(ok!(lseek(n, 10, SEEK_HOLE)), 10);
        fails!(ENXIO, lseek(n, at + len as i64 + 4096, SEEK_DATA));
    }
    same!(ok!(lseek(n, 3 << 20, SEEK_HOLE)), 3 << 20);
    fails!(ENXIO, lseek(n, 4 << 20, SEEK_DATA));
    fails!(ENXIO, lseek(n, 4 << 20, SEEK_HOLE));
    fails!(ENXIO, lseek(n, -1, SEEK_DATA));
    Ok(())
}

fn seek_errors() -> Outcome {
    put("f", b"0123")?;
    let fd = sys::open("f", O_RDWR)?;
    fails!(EINVAL, lseek(fd.as_raw_fd(), 0, 77));
    fails!(EBADF, lseek(99, 0, SEEK_SET));
    ok!(lseek(fd.as_raw_fd(), 1 << 40, SEEK_SET));
    let r = unsafe { lseek(fd.as_raw_fd(), i64::MAX, SEEK_CUR) };
    want!(r < 0 && [EOVERFLOW, EINVAL].contains(&crate::harness::errno()), "{r}");
    Ok(())
}

fn truncate_errors() -> Outcome {
    put("f", b"0123")?;
    fails!(EINVAL, truncate(c("f").as_ptr(), -1));
    fails!(ENOENT, truncate(c("none").as_ptr(), 0));
    fails!(EISDIR, truncate(c(".").as_ptr(), 0));
    fails!(ENOTDIR, truncate(c("f/x").as_ptr(), 0));
    ok!(mkfifo(c("p").as_ptr(), 0o600));
    fails!(EINVAL, truncate(c("p").as_ptr(), 0));
    ok!(chmod(c("f").as_ptr(), 0o444));
    sys::fork(|| {
        sys::drop_root()?;
        fails!(EACCES, truncate(c("f").as_ptr(), 0));
        Ok(())
    })?
    .ok()
}

fn truncate_shrinks_and_zeroes() -> Outcome {
    put("f", &[7; 10_000])?;
    ok!(truncate(c("f").as_ptr(), 5000));
    ok!(truncate(c("f").as_ptr(), 10_000));
    let got = whole("f")?;
    want!(got[..5000].iter().all(|b| *b == 7) && got[5000..].iter().all(|b| *b == 0), "old bytes came back");
    Ok(())
}

fn ftruncate_needs_a_writable_descriptor() -> Outcome {
    put("f", b"0123")?;
    fails!(EINVAL, ftruncate(sys::open("f", O_RDONLY)?.as_raw_fd(), 0));
    fails!(EINVAL, ftruncate(sys::open("f", O_RDWR)?.as_raw_fd(), -1));
    fails!(EBADF, ftruncate(99, 0));
    let (_r, w) = sys::pipe()?;
    fails!(EINVAL, ftruncate(w.as_raw_fd(), 0));
    Ok(())
}

fn sx(dir: i32, path: &str, flags: i32, mask: u32) -> Result<statx, String> {
    let mut out: statx = unsafe { std::mem::zeroed() };
    ok!(statx(dir, c(path).as_ptr(), flags, mask, &raw mut out));
    Ok(out)
}

fn statx_masks() -> Outcome {
    put("f", b"0123")?;
    let out = sx(AT_FDCWD, "f", 0, STATX_BASIC_STATS)?;
    same!(out.stx_mask & STATX_BASIC_STATS, STATX_BASIC_STATS);
    let st = sys::stat("f")?;
    same!(
        (u64::from(out.stx_nlink), u32::from(out.stx_mode), out.stx_ino, out.stx_size as i64),
        (st.st_nlink, st.st_mode, st.st_ino, st.st_size)
    );
    same!(makedev(out.stx_dev_major, out.stx_dev_minor), st.st_dev);
    // More than was asked for may come.
    let few = sx(AT_FDCWD, "f", 0, STATX_TYPE)?;
    same!(few.stx_mask & STATX_TYPE, STATX_TYPE);
    Ok(())
}

fn statx_of_a_descriptor_and_errors() -> Outcome {
    let fd = sys::create("f")?;
    same!(sx(fd.as_raw_fd(), "", AT_EMPTY_PATH, STATX_BASIC_STATS)?.stx_ino, sys::fstat(&fd)?.st_ino);
    let mut out: statx = unsafe { std::mem::zeroed() };
    let p = &raw mut out;
    fails!(ENOENT, statx(AT_FDCWD, c("").as_ptr(), 0, STATX_BASIC_STATS, p));
    fails!(EINVAL, statx(AT_FDCWD, c("f").as_ptr(), 0x40_0000, STATX_BASIC_STATS, p));
    fails!(EINVAL, statx(AT_FDCWD, c("f").as_ptr(), AT_STATX_SYNC_TYPE, STATX_BASIC_STATS, p));
    fails!(EINVAL, statx(AT_FDCWD, c("f").as_ptr(), 0, 0x8000_0000, p));
    fails!(EFAULT, statx(AT_FDCWD, c("f").as_ptr(), 0, STATX_BASIC_STATS, 24 as *mut statx));
    fails!(EBADF, statx(99, c("f").as_ptr(), 0, STATX_BASIC_STATS, p));
    ok!(statx(AT_FDCWD, c("f").as_ptr(), AT_STATX_FORCE_SYNC, STATX_BASIC_STATS, p));
    ok!(statx(AT_FDCWD, c("f").as_ptr(), AT_STATX_DONT_SYNC, STATX_BASIC_STATS, p));
    Ok(())
}

fn statx_birth_time_does_not_move() -> Outcome {
    put("f", b"0123")?;
    let first = sx(AT_FDCWD, "f", 0, STATX_BTIME)?;
    if first.stx_mask & STATX_BTIME == 0 {
        skip!("no birth time here");
    }
    sys::sleep_ms(15);
    put("f", b"more")?;
    ok!(chmod(c("f").as_ptr(), 0o600));
    let later = sx(AT_FDCWD, "f", 0, STATX_BTIME)?;
    same!(
        (first.stx_btime.tv_sec, first.stx_btime.tv_nsec),
        (later.stx_btime.tv_sec, later.stx_btime.tv_nsec)
    );
    Ok(())
}

fn blocks_follow_the_data() -> Outcome {
    let fd = sys::create("f")?;
    same!(sys::fstat(&fd)?.st_blocks, 0);
    sys::fd_write(&fd, &[1; 100_000])?;
    ok!(fsync(fd.as_raw_fd()));
    want!(sys::fstat(&fd)?.st_blocks * 512 >= 100_000, "too few blocks");
    ok!(ftruncate(fd.as_raw_fd(), 0));
    same!(sys::fstat(&fd)?.st_blocks, 0);
    Ok(())
}

fn mapping_sees_later_writes() -> Outcome {
    put("f", &[1; 8192])?;
    let ro = sys::open("f", O_RDONLY)?;
    let map = Map::new(8192, PROT_READ, MAP_SHARED, ro.as_raw_fd(), 0)?;
    same!(map.get(0), 1);
    let rw = sys::open("f", O_RDWR)?;
    ok!(pwrite(rw.as_raw_fd(), [9u8; 10].as_ptr().cast(), 10, 4090));
    same!((map.get(4089), map.get(4090), map.get(4099), map.get(4100)), (1, 9, 9, 1));
    Ok(())
}

fn mapping_of_an_unlinked_file() -> Outcome {
    put("f", &[1; 4096])?;
    let fd = sys::open("f", O_RDWR)?;
    let map = Map::new(4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd.as_raw_fd(), 0)?;
    ok!(unlink(c("f").as_ptr()));
    map.set(5, 77);
    let mut b = [0u8; 1];
    ok!(pread(fd.as_raw_fd(), b.as_mut_ptr().cast(), 1, 5));
    same!(b[0], 77);
    drop(fd);
    same!((map.get(5), map.get(6)), (77, 1));
    Ok(())
}

fn shared_mapping_reaches_a_read() -> Outcome {
    put("f", &[0; 12_288])?;
    let fd = sys::open("f", O_RDWR)?;
    let map = Map::new(12_288, PROT_READ | PROT_WRITE, MAP_SHARED, fd.as_raw_fd(), 0)?;
    for i in 0..12_288 {
        map.set(i, (i % 250) as u8);
    }
    let got = whole("f")?;
    want!((0..12_288).all(|i| got[i] == (i % 250) as u8), "a read misses what the mapping holds");
    Ok(())
}

fn private_mapping_misses_nothing_before_its_copy() -> Outcome {
    put("f", &[1; 8192])?;
    let fd = sys::open("f", O_RDWR)?;
    let map = Map::new(8192, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd.as_raw_fd(), 0)?;
    map.set(0, 5);
    ok!(pwrite(fd.as_raw_fd(), [9u8; 2].as_ptr().cast(), 2, 1));
    // Its own page stays as it was.
    same!((map.get(0), map.get(1)), (5, 1));
    same!(whole("f")?[..3].to_vec(), vec![1, 9, 9]);
    Ok(())
}

fn mapping_grows_with_the_file() -> Outcome {
    let fd = sys::create("f")?;
    let map = Map::new(3 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd.as_raw_fd(), 0)?;
    ok!(ftruncate(fd.as_raw_fd(), 3 * PAGE as i64));
    map.set(2 * PAGE, 3);
    same!(whole("f")?[2 * PAGE], 3);
    ok!(ftruncate(fd.as_raw_fd(), PAGE as i64));
    ok!(ftruncate(fd.as_raw_fd(), 3 * PAGE as i64));
    same!(map.get(2 * PAGE), 0);
    Ok(())
}

fn punched_page_reads_zero_through_a_mapping() -> Outcome {
    put("f", &[1; 3 * PAGE])?;
    let fd = sys::open("f", O_RDWR)?;
    let map = Map::new(3 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd.as_raw_fd(), 0)?;
    same!(map.get(PAGE), 1);
    ok!(fallocate(fd.as_raw_fd(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, PAGE as i64, PAGE as i64));
    same!((map.get(PAGE - 1), map.get(PAGE), map.get(2 * PAGE)), (1, 0, 1));
    map.set(PAGE, 8);
    same!(whole("f")?[PAGE], 8);
    Ok(())
}

fn sync_calls() -> Outcome {
    let fd = sys::create("f")?;
    sys::fd_write(&fd, b"x")?;
    ok!(fsync(fd.as_raw_fd()));
    ok!(fdatasync(fd.as_raw_fd()));
    ok!(syncfs(fd.as_raw_fd()));
    ok!(sync_file_range(fd.as_raw_fd(), 0, 0, SYNC_FILE_RANGE_WRITE));
    unsafe { sync() };
    let d = sys::open(".", O_RDONLY)?;
    ok!(fsync(d.as_raw_fd()));
    ok!(fsync(sys::open("f", O_RDONLY)?.as_raw_fd()));
    Ok(())
}

fn sync_file_range_errors() -> Outcome {
    let fd = sys::create("f")?;
    fails!(EINVAL, sync_file_range(fd.as_raw_fd(), -1, 0, 0));
    fails!(EINVAL, sync_file_range(fd.as_raw_fd(), 0, -1, 0));
    fails!(EINVAL, sync_file_range(fd.as_raw_fd(), 0, 0, 0x100));
    fails!(EBADF, sync_file_range(99, 0, 0, 0));
    let (r, _w) = sys::pipe()?;
    fails!(ESPIPE, sync_file_range(r.as_raw_fd(), 0, 0, 0));
    Ok(())
}

fn fsync_of_odd_descriptors() -> Outcome {
    let (r, w) = sys::pipe()?;
    fails!(EINVAL, fsync(r.as_raw_fd()));
    fails!(EINVAL, fdatasync(w.as_raw_fd()));
    fails!(EBADF, fsync(99));
    fails!(EBADF, syncfs(99));
    Ok(())
}

fn append_moves_the_position_to_the_end() -> Outcome {
    put("f", b"0123")?;
    let fd = sys::open("f", O_RDWR | O_APPEND)?;
    sys::fd_write(&fd, b"45")?;
    same!(ok!(lseek(fd.as_raw_fd(), 0, SEEK_CUR)), 6);
    ok!(lseek(fd.as_raw_fd(), 1, SEEK_SET));
    same!(sys::fd_read(&fd, 2)?, b"12".to_vec());
    sys::fd_write(&fd, b"6")?;
    same!(sys::slurp("f")?, "0123456");
    ok!(fcntl(fd.as_raw_fd(), F_SETFL, 0));
    ok!(lseek(fd.as_raw_fd(), 0, SEEK_SET));
    sys::fd_write(&fd, b"x")?;
    same!(sys::slurp("f")?, "x123456");
    Ok(())
}

fn pwrite_with_append_appends() -> Outcome {
    put("f", b"0123")?;
    let fd = sys::open("f", O_RDWR | O_APPEND)?;
    ok!(pwrite(fd.as_raw_fd(), b"x".as_ptr().cast(), 1, 0));
    same!(sys::slurp("f")?, "0123x");
    same!(ok!(lseek(fd.as_raw_fd(), 0, SEEK_CUR)), 0);
    Ok(())
}

fn reads_across_the_end() -> Outcome {
    put("f", b"0123456789")?;
    let fd = sys::open("f", O_RDONLY)?;
    let mut buf = [0u8; 100];
    same!(ok!(pread(fd.as_raw_fd(), buf.as_mut_ptr().cast(), 100, 7)), 3);
    same!(ok!(pread(fd.as_raw_fd(), buf.as_mut_ptr().cast(), 100, 10)), 0);
    same!(ok!(pread(fd.as_raw_fd(), buf.as_mut_ptr().cast(), 100, 1000)), 0);
    let vecs = [iov(&buf[..5]), iov(&buf[5..8]), iov(&buf[8..20])];
    same!(ok!(preadv(fd.as_raw_fd(), vecs.as_ptr(), 3, 1)), 9);
    Ok(())
}

fn write_updates_mtime_and_ctime() -> Outcome {
    let fd = sys::create("f")?;
    let before = sys::fstat(&fd)?;
    sys::sleep_ms(20);
    sys::fd_write(&fd, b"x")?;
    let after = sys::fstat(&fd)?;
    want!((after.st_mtime, after.st_mtime_nsec) > (before.st_mtime, before.st_mtime_nsec), "mtime stays");
    want!((after.st_ctime, after.st_ctime_nsec) > (before.st_ctime, before.st_ctime_nsec), "ctime stays");
    Ok(())
}

fn read_updates_atime_relatively() -> Outcome {
    put("f", b"abc")?;
    // An access time before the modification is renewed by a read.
    let old = [timespec { tv_sec: 1000, tv_nsec: 0 }, timespec { tv_sec: 0, tv_nsec: UTIME_OMIT }];
    ok!(utimensat(AT_FDCWD, c("f").as_ptr(), old.as_ptr(), 0));
    sys::slurp("f")?;
    let mut fs: statvfs = unsafe { std::mem::zeroed() };
    ok!(statvfs(c("f").as_ptr(), &raw mut fs));
    if fs.f_flag & ST_NOATIME != 0 {
        skip!("the mount has noatime");
    }
    want!(sys::stat("f")?.st_atime > 1000, "atime stays");
    let noatime = sys::open("f", O_RDONLY | O_NOATIME)?;
    ok!(utimensat(AT_FDCWD, c("f").as_ptr(), old.as_ptr(), 0));
    sys::fd_read(&noatime, 3)?;
    same!(sys::stat("f")?.st_atime, 1000);
    Ok(())
}

fn file_size_limit_cuts_a_write() -> Outcome {
    let fd = sys::create("f")?;
    sys::on_signal(SIGXFSZ, sys::count_handler, 0)?;
    let limit = rlimit { rlim_cur: 1000, rlim_max: 1000 };
    ok!(setrlimit(RLIMIT_FSIZE, &raw const limit));
    same!(sys::fd_write(&fd, &[1; 1500])?, 1000);
    same!(sys::hits(), 0);
    fails!(EFBIG, write(fd.as_raw_fd(), b"x".as_ptr().cast(), 1));
    same!(sys::hits(), 1);
    same!(ok!(pwrite(fd.as_raw_fd(), b"x".as_ptr().cast(), 1, 5)), 1);
    fails!(EFBIG, truncate(c("f").as_ptr(), 2000));
    Ok(())
}

fn posix_fallocate_enospc_or_works() -> Outcome {
    let fd = sys::create("f")?;
    same!(ok!(posix_fallocate(fd.as_raw_fd(), 0, 10_000)), 0);
    same!(sys::fstat(&fd)?.st_size, 10_000);
    same!(whole("f")?, vec![0u8; 10_000]);
    Ok(())
}

fn o_direct_or_einval() -> Outcome {
    put("f", &[5; 8192])?;
    let fd = unsafe { open(c("f").as_ptr(), O_RDONLY | O_DIRECT) };
    if fd < 0 {
        same!(crate::harness::errno(), EINVAL);
        return Ok(());
    }
    let fd = sys::own(fd);
    let map = Map::anon(8192)?;
    same!(ok!(read(fd.as_raw_fd(), map.at(0).cast(), 4096)), 4096);
    same!(map.get(4095), 5);
    Ok(())
}

fn dup_shares_append_and_position() -> Outcome {
    let fd = sys::create("f")?;
    let copy = sys::own(ok!(dup(fd.as_raw_fd())));
    sys::fd_write(&fd, b"ab")?;
    sys::fd_write(&copy, b"cd")?;
    same!(sys::slurp("f")?, "abcd");
    ok!(fcntl(copy.as_raw_fd(), F_SETFL, O_APPEND));
    same!(ok!(fcntl(fd.as_raw_fd(), F_GETFL)) & O_APPEND, O_APPEND);
    Ok(())
}

fn efault_in_the_middle_of_a_write() -> Outcome {
    let fd = sys::create("f")?;
    let map = Map::guarded()?;
    fails!(EFAULT, write(fd.as_raw_fd(), map.at(PAGE).cast(), 10));
    let n = ok!(write(fd.as_raw_fd(), map.at(PAGE - 100).cast(), 200));
    want!((0..=100).contains(&n), "{n} bytes written");
    same!(sys::fstat(&fd)?.st_size, n as i64);
    put("g", &[1; 300])?;
    let g = sys::open("g", O_RDONLY)?;
    let n = unsafe { read(g.as_raw_fd(), map.at(PAGE - 100).cast(), 200) };
    want!(n == 100 || (n < 0 && crate::harness::errno() == EFAULT), "{n} bytes read");
    Ok(())
}

fn large_io_is_whole() -> Outcome {
    let bytes = data(5 << 20);
    let fd = sys::create("f")?;
    same!(sys::fd_write(&fd, &bytes)?, bytes.len());
    ok!(lseek(fd.as_raw_fd(), 0, SEEK_SET));
    want!(sys::fd_read(&fd, 6 << 20)? == bytes, "the bytes differ");
    Ok(())
}
