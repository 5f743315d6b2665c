//! path_resolution(7), symlink(7), chdir(2), openat2(2).

use crate::harness::Outcome;
use crate::sys::{self, c, put, slurp};
use libc::*;
use std::os::fd::AsRawFd;

cases![
    relative_and_at_paths,
    dots_and_slashes,
    dotdot_after_a_symlink_is_the_targets_parent,
    absolute_symlinks,
    forty_links_and_no_more,
    trailing_slash_rules,
    search_permission_is_needed,
    root_passes_everywhere,
    chdir_and_getcwd,
    getcwd_of_a_removed_directory,
    fchdir_and_at_descriptors,
    empty_path,
    chroot_confines,
    openat2_beneath,
    openat2_no_symlinks_and_errors,
    access_uses_the_real_ids,
    proc_self_links,
    dev_nodes,
];

fn relative_and_at_paths() -> Outcome {
    ok!(mkdir(c("d").as_ptr(), 0o755));
    put("d/f", b"in d")?;
    let d = sys::open("d", O_RDONLY | O_DIRECTORY)?;
    let f = sys::own(ok!(openat(d.as_raw_fd(), c("f").as_ptr(), O_RDONLY)));
    same!(sys::fd_read(&f, 9)?, b"in d");
    fails!(ENOTDIR, openat(f.as_raw_fd(), c("x").as_ptr(), O_RDONLY));
    fails!(EBADF, openat(500, c("x").as_ptr(), O_RDONLY));
    // An absolute path needs no descriptor.
    sys::own(ok!(openat(500, c("/").as_ptr(), O_RDONLY)));
    Ok(())
}

fn dots_and_slashes() -> Outcome {
    ok!(mkdir(c("d").as_ptr(), 0o755));
    put("f", b"x")?;
    for p in ["./f", ".//f", "d/../f", "d/./../././f", "d//..//f"] {
        same!(slurp(p)?, "x");
    }
    same!(sys::stat("/..")?.st_ino, sys::stat("/")?.st_ino);
    fails!(ENOENT, access(c("none/../f").as_ptr(), F_OK));
    fails!(ENOTDIR, access(c("f/../f").as_ptr(), F_OK));
    Ok(())
}

fn dotdot_after_a_symlink_is_the_targets_parent() -> Outcome {
    ok!(mkdir(c("a").as_ptr(), 0o755));
    ok!(mkdir(c("a/b").as_ptr(), 0o755));
    put("a/f", b"in a")?;
    ok!(symlink(c("a/b").as_ptr(), c("l").as_ptr()));
    same!(slurp("l/../f")?, "in a");
    Ok(())
}

fn absolute_symlinks() -> Outcome {
    let cwd = std::env::current_dir().map_err(|e| e.to_string())?;
    put("f", b"abs")?;
    ok!(symlink(c(&format!("{}/f", cwd.display())).as_ptr(), c("l").as_ptr()));
    same!(slurp("l")?, "abs");
    Ok(())
}

fn forty_links_and_no_more() -> Outcome {
    put("l0", b"end")?;
    for i in 1..=41 {
        ok!(symlink(c(&format!("l{}", i - 1)).as_ptr(), c(&format!("l{i}")).as_ptr()));
    }
    same!(slurp("l40")?, "end");
    fails!(ELOOP, open(c("l41").as_ptr(), O_RDONLY));
    Ok(())
}

fn trailing_slash_rules() -> Outcome {
    put("f", b"")?;
    ok!(mkdir(c("d").as_ptr(), 0o755));
    ok!(symlink(c("d").as_ptr(), c("l").as_ptr()));
    fails!(ENOTDIR, access(c("f/").as_ptr(), F_OK));
    ok!(access(c("d/").as_ptr(), F_OK));
    same!(sys::lstat("l/")?.st_mode & S_IFMT, S_IFDIR);
    ok!(mkdir(c("e/").as_ptr(), 0o755));
    fails!(EISDIR, open(c("new/").as_ptr(), O_CREAT | O_RDWR, 0o600));
    ok!(rename(c("e/").as_ptr(), c("e2/").as_ptr()));
    fails!(ENOTDIR, rename(c("f").as_ptr(), c("g/").as_ptr()));
    Ok(())
}

fn search_permission_is_needed() -> Outcome {
    ok!(mkdir(c("d").as_ptr(), 0o755));
    put("d/f", b"x")?;
    ok!(chmod(c("d").as_ptr(), 0o644));
    sys::fork(|| {
        sys::drop_root()?;
        fails!(EACCES, open(c("d/f").as_ptr(), O_RDONLY));
        fails!(EACCES, access(c("d/none").as_ptr(), F_OK));
        sys::open("d", O_RDONLY)?;
        Ok(())
    })?
    .ok()?;
    ok!(chmod(c("d").as_ptr(), 0o711));
    sys::fork(|| {
        sys::drop_root()?;
        sys::open("d/f", O_RDONLY)?;
        fails!(EACCES, open(c("d").as_ptr(), O_RDONLY));
        Ok(())
    })?
    .ok()
}

fn root_passes_everywhere() -> Outcome {
    ok!(mkdir(c("d").as_ptr(), 0));
    put("d/f", b"x")?;
    ok!(chmod(c("d/f").as_ptr(), 0));
    same!(slurp("d/f")?, "x");
    fails!(EACCES, access(c("d/f").as_ptr(), X_OK));
    Ok(())
}

fn cwd() -> Result<String, String> {
    let mut buf = [0u8; 4096];
    let n = ok!(syscall(SYS_getcwd, buf.as_mut_ptr(), 4096));
    Ok(String::from_utf8_lossy(&buf[..n as usize - 1]).into_owned())
}

fn chdir_and_getcwd() -> Outcome {
    let start = cwd()?;
    ok!(mkdir(c("d").as_ptr(), 0o755));
    ok!(symlink(c("d").as_ptr(), c("l").as_ptr()));
    ok!(chdir(c("l").as_ptr()));
    same!(cwd()?, format!("{start}/d"));
    ok!(chdir(c("..").as_ptr()));
    same!(cwd()?, start);
    put("f", b"")?;
    fails!(ENOTDIR, chdir(c("f").as_ptr()));
    fails!(ENOENT, chdir(c("none").as_ptr()));
    let mut small = [0u8; 2];
    fails!(ERANGE, syscall(SYS_getcwd, small.as_mut_ptr(), 2));
    Ok(())
}

fn getcwd_of_a_removed_directory() -> Outcome {
    ok!(mkdir(c("d").as_ptr(), 0o755));
    ok!(chdir(c("d").as_ptr()));
    ok!(rmdir(c("../d").as_ptr()));
    let mut buf = [0u8; 4096];
    fails!(ENOENT, syscall(SYS_getcwd, buf.as_mut_ptr(), 4096));
    fails!(ENOENT, open(c("f").as_ptr(), O_CREAT | O_RDWR, 0o600));
    sys::open("..", O_RDONLY)?;
    Ok(())
}

fn fchdir_and_at_descriptors() -> Outcome {
    ok!(mkdir(c("d").as_ptr(), 0o755));
    let d = sys::open("d", O_PATH | O_DIRECTORY)?;
    ok!(mkdirat(d.as_raw_fd(), c("e").as_ptr(), 0o755));
    ok!(fchdir(d.as_raw_fd()));
    ok!(access(c("e").as_ptr(), F_OK));
    put("f", b"")?;
    let f = sys::open("f", O_RDONLY)?;
    fails!(ENOTDIR, fchdir(f.as_raw_fd()));
    Ok(())
}

fn empty_path() -> Outcome {
    put("f", b"abc")?;
    let f = sys::open("f", O_RDONLY)?;
    let mut st: stat = unsafe { std::mem::zeroed() };
    ok!(fstatat(f.as_raw_fd(), c("").as_ptr(), &raw mut st, AT_EMPTY_PATH));
    same!(st.st_size, 3);
    fails!(ENOENT, fstatat(f.as_raw_fd(), c("").as_ptr(), &raw mut st, 0));
    fails!(EINVAL, fstatat(f.as_raw_fd(), c("").as_ptr(), &raw mut st, 0x80));
    Ok(())
}

fn chroot_confines() -> Outcome {
    ok!(mkdir(c("jail").as_ptr(), 0o755));
    put("jail/f", b"inside")?;
    put("f", b"outside")?;
    sys::fork(|| {
        ok!(chroot(c("jail").as_ptr()));
        ok!(chdir(c("/").as_ptr()));
        same!(slurp("/f")?, "inside");
        same!(slurp("../../../f")?, "inside");
        same!(cwd()?, "/");
        Ok(())
    })?
    .ok()?;
    sys::drop_root()?;
    fails!(EPERM, chroot(c("/").as_ptr()));
    Ok(())
}

fn openat2(dir: i32, path: &str, flags: u64, resolve: u64) -> i64 {
    let how = [flags, 0, resolve];
    unsafe { syscall(SYS_openat2, dir, c(path).as_ptr(), how.as_ptr(), 24usize) }
}

fn openat2_beneath() -> Outcome {
    ok!(mkdir(c("d").as_ptr(), 0o755));
    put("d/f", b"")?;
    put("out", b"")?;
    ok!(symlink(c("../out").as_ptr(), c("d/l").as_ptr()));
    let d = sys::open("d", O_RDONLY | O_DIRECTORY)?;
    let raw = d.as_raw_fd();
    ok!(openat2(raw, "f", 0, RESOLVE_BENEATH));
    fails!(EXDEV, openat2(raw, "../out", 0, RESOLVE_BENEATH));
    fails!(EXDEV, openat2(raw, "l", 0, RESOLVE_BENEATH));
    fails!(EXDEV, openat2(raw, "/etc", 0, RESOLVE_BENEATH));
    ok!(openat2(raw, "/f", 0, RESOLVE_IN_ROOT));
    ok!(openat2(raw, "../f", 0, RESOLVE_IN_ROOT));
    Ok(())
}

fn openat2_no_symlinks_and_errors() -> Outcome {
    put("f", b"")?;
    ok!(symlink(c("f").as_ptr(), c("l").as_ptr()));
    fails!(ELOOP, openat2(AT_FDCWD, "l", 0, RESOLVE_NO_SYMLINKS));
    fails!(ELOOP, openat2(AT_FDCWD, "/proc/self/exe", 0, RESOLVE_NO_MAGICLINKS));
    fails!(EINVAL, openat2(AT_FDCWD, "f", 1 << 40, 0));
    fails!(EINVAL, openat2(AT_FDCWD, "f", 0, 1 << 30));
    let how = [0u64; 3];
    fails!(EINVAL, syscall(SYS_openat2, AT_FDCWD, c("f").as_ptr(), how.as_ptr(), 8usize));
    Ok(())
}

fn access_uses_the_real_ids() -> Outcome {
    put("f", b"")?;
    ok!(chmod(c("f").as_ptr(), 0o600));
    ok!(setresuid(1234, 0, 0));
    fails!(EACCES, access(c("f").as_ptr(), R_OK));
    ok!(faccessat(AT_FDCWD, c("f").as_ptr(), R_OK, AT_EACCESS));
    fails!(EINVAL, access(c("f").as_ptr(), 99));
    Ok(())
}

fn proc_self_links() -> Outcome {
    put("f", b"abc")?;
    let f = sys::open("f", O_RDONLY)?;
    let here = cwd()?;
    let link = std::fs::read_link(format!("/proc/self/fd/{}", f.as_raw_fd())).map_err(|e| e.to_string())?;
    same!(link.to_string_lossy(), format!("{here}/f"));
    same!(slurp(&format!("/proc/self/fd/{}", f.as_raw_fd()))?, "abc");
    let link = std::fs::read_link("/proc/self/cwd").map_err(|e| e.to_string())?;
    same!(link.to_string_lossy(), here);
    ok!(unlink(c("f").as_ptr()));
    let link = std::fs::read_link(format!("/proc/self/fd/{}", f.as_raw_fd())).map_err(|e| e.to_string())?;
    same!(link.to_string_lossy(), format!("{here}/f (deleted)"));
    Ok(())
}

fn dev_nodes() -> Outcome {
    let null = sys::open("/dev/null", O_RDWR)?;
    same!(sys::fd_write(&null, b"gone")?, 4);
    same!(sys::fd_read(&null, 9)?, b"");
    let zero = sys::open("/dev/zero", O_RDONLY)?;
    same!(sys::fd_read(&zero, 5)?, [0u8; 5]);
    let random = sys::open("/dev/urandom", O_RDONLY)?;
    want!(sys::fd_read(&random, 64)? != sys::fd_read(&random, 64)?, "/dev/urandom repeats itself");
    let full = sys::open("/dev/full", O_WRONLY)?;
    fails!(ENOSPC, write(full.as_raw_fd(), b"x".as_ptr().cast(), 1));
    same!(sys::stat("/dev/null")?.st_rdev, makedev(1, 3));
    Ok(())
}
