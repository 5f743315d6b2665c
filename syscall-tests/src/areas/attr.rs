//! stat(2), statx(2), chmod(2), chown(2), utimensat(2), xattr(7), statfs(2).

use crate::harness::Outcome;
use crate::sys::{self, c, put};
use libc::*;
use std::os::fd::AsRawFd;

cases![
    stat_shows_what_is_there,
    times_move_as_they_should,
    utimensat_sets_omits_and_now,
    chmod_rules,
    chown_rules,
    chown_clears_setuid,
    write_clears_setuid,
    setgid_directories_pass_their_group,
    statx_mask_and_errors,
    statfs_of_files,
    xattrs_of_users,
    xattr_errors,
    stat_errors,
    mknod_kinds,
    umask_applies_to_all_makers,
];

fn stat_shows_what_is_there() -> Outcome {
    put("f", &[1u8; 5000])?;
    ok!(chmod(c("f").as_ptr(), 0o641));
    let s = sys::stat("f")?;
    same!((s.st_mode, s.st_nlink, s.st_uid, s.st_gid, s.st_size), (S_IFREG | 0o641, 1, 0, 0, 5000));
    want!(s.st_blocks >= 8 && s.st_blksize > 0, "{} blocks of {}", s.st_blocks, s.st_blksize);
    let f = sys::open("f", O_RDONLY)?;
    let t = sys::fstat(&f)?;
    same!((s.st_dev, s.st_ino), (t.st_dev, t.st_ino));
    Ok(())
}

fn nanos(sec: i64, nsec: i64) -> i128 {
    i128::from(sec) * 1_000_000_000 + i128::from(nsec)
}

fn times_move_as_they_should() -> Outcome {
    put("f", b"a")?;
    let old = sys::stat("f")?;
    sys::sleep_ms(20);
    put("f", b"bb")?;
    let new = sys::stat("f")?;
    want!(
        nanos(new.st_mtime, new.st_mtime_nsec) > nanos(old.st_mtime, old.st_mtime_nsec),
        "mtime stood still"
    );
    sys::sleep_ms(20);
    ok!(chmod(c("f").as_ptr(), 0o600));
    let last = sys::stat("f")?;
    want!(
        nanos(last.st_ctime, last.st_ctime_nsec) > nanos(new.st_ctime, new.st_ctime_nsec),
        "ctime stood still"
    );
    same!((last.st_mtime, last.st_mtime_nsec), (new.st_mtime, new.st_mtime_nsec));
    let dir = sys::stat(".")?;
    sys::sleep_ms(20);
    put("g", b"")?;
    let dir2 = sys::stat(".")?;
    want!(
        nanos(dir2.st_mtime, dir2.st_mtime_nsec) > nanos(dir.st_mtime, dir.st_mtime_nsec),
        "the directory's mtime stood still"
    );
    Ok(())
}

fn utimensat_sets_omits_and_now() -> Outcome {
    put("f", b"")?;
    let t = [timespec { tv_sec: 1000, tv_nsec: 5 }, timespec { tv_sec: 2000, tv_nsec: 7 }];
    ok!(utimensat(AT_FDCWD, c("f").as_ptr(), t.as_ptr(), 0));
    let s = sys::stat("f")?;
    same!((s.st_atime, s.st_atime_nsec, s.st_mtime, s.st_mtime_nsec), (1000, 5, 2000, 7));
    let t = [timespec { tv_sec: 0, tv_nsec: UTIME_OMIT }, timespec { tv_sec: 0, tv_nsec: UTIME_NOW }];
    ok!(utimensat(AT_FDCWD, c("f").as_ptr(), t.as_ptr(), 0));
    let s = sys::stat("f")?;
    want!(s.st_atime == 1000 && s.st_mtime > 1_000_000_000, "times are {} and {}", s.st_atime, s.st_mtime);
    let bad = [timespec { tv_sec: 0, tv_nsec: 1_000_000_000 }; 2];
    fails!(EINVAL, utimensat(AT_FDCWD, c("f").as_ptr(), bad.as_ptr(), 0));
    sys::drop_root()?;
    fails!(EPERM, utimensat(AT_FDCWD, c("f").as_ptr(), [timespec { tv_sec: 1, tv_nsec: 1 }; 2].as_ptr(), 0));
    fails!(EACCES, utimensat(AT_FDCWD, c("f").as_ptr(), std::ptr::null(), 0));
    Ok(())
}

fn chmod_rules() -> Outcome {
    put("f", b"")?;
    ok!(chmod(c("f").as_ptr(), 0o7755));
    same!(sys::stat("f")?.st_mode & 0o7777, 0o7755);
    let f = sys::open("f", O_RDONLY)?;
    ok!(fchmod(f.as_raw_fd(), 0o600));
    same!(sys::stat("f")?.st_mode & 0o7777, 0o600);
    fails!(ENOENT, chmod(c("none").as_ptr(), 0o600));
    sys::drop_root()?;
    fails!(EPERM, chmod(c("f").as_ptr(), 0o666));
    Ok(())
}

fn chown_rules() -> Outcome {
    put("f", b"")?;
    ok!(symlink(c("f").as_ptr(), c("l").as_ptr()));
    ok!(chown(c("l").as_ptr(), 10, 20));
    let s = sys::stat("f")?;
    same!((s.st_uid, s.st_gid), (10, 20));
    ok!(chown(c("f").as_ptr(), u32::MAX, 30));
    same!(sys::stat("f")?.st_gid, 30);
    ok!(lchown(c("l").as_ptr(), 5, 6));
    same!(sys::lstat("l")?.st_uid, 5);
    ok!(chown(c("f").as_ptr(), 1234, 1234));
    sys::drop_root()?;
    fails!(EPERM, chown(c("f").as_ptr(), 0, u32::MAX));
    fails!(EPERM, chown(c("f").as_ptr(), u32::MAX, 0));
    ok!(chown(c("f").as_ptr(), 1234, 1234));
    Ok(())
}

fn chown_clears_setuid() -> Outcome {
    put("f", b"")?;
    ok!(chmod(c("f").as_ptr(), 0o6755));
    ok!(chown(c("f").as_ptr(), 10, 10));
    same!(sys::stat("f")?.st_mode & 0o7777, 0o755);
    Ok(())
}

fn write_clears_setuid() -> Outcome {
    put("f", b"")?;
    ok!(chown(c("f").as_ptr(), 1234, 1234));
    ok!(chmod(c("f").as_ptr(), 0o6777));
    sys::fork(|| {
        sys::drop_root()?;
        let f = sys::open("f", O_WRONLY)?;
        sys::fd_write(&f, b"x")?;
        Ok(())
    })?
    .ok()?;
    same!(sys::stat("f")?.st_mode & 0o7777, 0o777);
    Ok(())
}

fn setgid_directories_pass_their_group() -> Outcome {
    ok!(mkdir(c("d").as_ptr(), 0o755));
    ok!(chown(c("d").as_ptr(), 0, 77));
    ok!(chmod(c("d").as_ptr(), 0o2755));
    put("d/f", b"")?;
    ok!(mkdir(c("d/e").as_ptr(), 0o755));
    same!(sys::stat("d/f")?.st_gid, 77);
    let e = sys::stat("d/e")?;
    same!((e.st_gid, e.st_mode & S_ISGID), (77, S_ISGID));
    Ok(())
}

fn statx_mask_and_errors() -> Outcome {
    put("f", b"abc")?;
    let mut x: statx = unsafe { std::mem::zeroed() };
    ok!(statx(AT_FDCWD, c("f").as_ptr(), 0, STATX_BASIC_STATS, &raw mut x));
    want!(x.stx_mask & STATX_BASIC_STATS == STATX_BASIC_STATS, "mask {:#x}", x.stx_mask);
    same!((x.stx_size, u32::from(x.stx_mode)), (3, S_IFREG | 0o644));
    fails!(EINVAL, statx(AT_FDCWD, c("f").as_ptr(), 0x80_0000, STATX_BASIC_STATS, &raw mut x));
    fails!(EFAULT, statx(AT_FDCWD, c("f").as_ptr(), 0, STATX_BASIC_STATS, std::ptr::dangling_mut::<statx>()));
    fails!(ENOENT, statx(AT_FDCWD, c("").as_ptr(), 0, STATX_BASIC_STATS, &raw mut x));
    Ok(())
}

fn statfs_of_files() -> Outcome {
    let mut s: statfs = unsafe { std::mem::zeroed() };
    ok!(statfs(c(".").as_ptr(), &raw mut s));
    want!(s.f_bsize > 0 && s.f_namelen == 255, "block size {}, name length {}", s.f_bsize, s.f_namelen);
    ok!(statfs(c("/proc").as_ptr(), &raw mut s));
    same!(s.f_type, 0x9fa0);
    fails!(ENOENT, statfs(c("none").as_ptr(), &raw mut s));
    Ok(())
}

fn xattrs_of_users() -> Outcome {
    put("f", b"")?;
    let name = c("user.note");
    if unsafe { setxattr(c("f").as_ptr(), name.as_ptr(), b"hi".as_ptr().cast(), 2, 0) } != 0 {
        skip!("user attributes are not supported by the file system here");
    }
    let mut buf = [0u8; 16];
    same!(ok!(getxattr(c("f").as_ptr(), name.as_ptr(), buf.as_mut_ptr().cast(), 16)), 2);
    same!(&buf[..2], b"hi");
    same!(ok!(getxattr(c("f").as_ptr(), name.as_ptr(), std::ptr::null_mut(), 0)), 2);
    fails!(ERANGE, getxattr(c("f").as_ptr(), name.as_ptr(), buf.as_mut_ptr().cast(), 1));
    fails!(EEXIST, setxattr(c("f").as_ptr(), name.as_ptr(), b"x".as_ptr().cast(), 1, XATTR_CREATE));
    let n = ok!(listxattr(c("f").as_ptr(), buf.as_mut_ptr().cast(), 16)) as usize;
    want!(buf[..n].split(|b| *b == 0).any(|s| s == b"user.note"), "the attribute is not listed");
    ok!(removexattr(c("f").as_ptr(), name.as_ptr()));
    fails!(ENODATA, getxattr(c("f").as_ptr(), name.as_ptr(), buf.as_mut_ptr().cast(), 16));
    fails!(ENODATA, setxattr(c("f").as_ptr(), name.as_ptr(), b"x".as_ptr().cast(), 1, XATTR_REPLACE));
    Ok(())
}

fn xattr_errors() -> Outcome {
    put("f", b"")?;
    fails!(EOPNOTSUPP, setxattr(c("f").as_ptr(), c("nospace.x").as_ptr(), b"x".as_ptr().cast(), 1, 0));
    fails!(
        ERANGE,
        setxattr(
            c("f").as_ptr(),
            c(&format!("user.{}", "x".repeat(300))).as_ptr(),
            b"x".as_ptr().cast(),
            1,
            0
        )
    );
    fails!(ENOENT, getxattr(c("none").as_ptr(), c("user.x").as_ptr(), std::ptr::null_mut(), 0));
    Ok(())
}

fn stat_errors() -> Outcome {
    let mut st: stat = unsafe { std::mem::zeroed() };
    fails!(EFAULT, syscall(SYS_stat, c(".").as_ptr(), 8usize));
    fails!(EBADF, fstat(500, &raw mut st));
    fails!(EBADF, fstat(-1, &raw mut st));
    Ok(())
}

fn mknod_kinds() -> Outcome {
    ok!(mknod(c("f").as_ptr(), S_IFREG | 0o600, 0));
    ok!(mknod(c("p").as_ptr(), S_IFIFO | 0o600, 0));
    ok!(mknod(c("s").as_ptr(), S_IFSOCK | 0o600, 0));
    same!(sys::stat("s")?.st_mode & S_IFMT, S_IFSOCK);
    fails!(EEXIST, mknod(c("f").as_ptr(), S_IFREG, 0));
    fails!(EPERM, mknod(c("d").as_ptr(), S_IFDIR, 0));
    fails!(EINVAL, mknod(c("x").as_ptr(), S_IFLNK, 0));
    Ok(())
}

fn umask_applies_to_all_makers() -> Outcome {
    unsafe { umask(0o077) };
    ok!(mkdir(c("d").as_ptr(), 0o777));
    ok!(mkfifo(c("p").as_ptr(), 0o666));
    same!(sys::stat("d")?.st_mode & 0o777, 0o700);
    same!(sys::stat("p")?.st_mode & 0o777, 0o600);
    same!(unsafe { umask(0o22) }, 0o077);
    Ok(())
}
