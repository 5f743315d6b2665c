//! rename(2), link(2), unlink(2), rmdir(2), symlink(2).

use crate::harness::{Outcome, errno};
use crate::sys::{self, c, put, slurp};
use libc::*;

cases![
    rename_moves_a_file,
    rename_replaces_a_file,
    rename_to_itself_and_to_a_link_of_it,
    rename_directory_over_an_empty_one,
    rename_errors,
    rename_into_its_own_subtree_is_einval,
    rename_keeps_open_files,
    rename_noreplace,
    rename_exchange,
    rename_leaves_a_whiteout_for_everyone,
    rename_moves_directories_with_contents,
    rename_needs_write_permission,
    sticky_directories_protect_names,
    link_shares_the_inode,
    link_errors,
    link_follows_only_when_asked,
    unlink_errors,
    rmdir_errors,
    symlink_and_readlink,
    dangling_link,
    link_count_of_directories,
];

fn rename_moves_a_file() -> Outcome {
    put("a", b"1")?;
    let ino = sys::stat("a")?.st_ino;
    ok!(rename(c("a").as_ptr(), c("b").as_ptr()));
    fails!(ENOENT, access(c("a").as_ptr(), F_OK));
    same!(slurp("b")?, "1");
    same!(sys::stat("b")?.st_ino, ino);
    Ok(())
}

fn rename_replaces_a_file() -> Outcome {
    put("a", b"new")?;
    put("b", b"old")?;
    let old = sys::open("b", O_RDONLY)?;
    ok!(rename(c("a").as_ptr(), c("b").as_ptr()));
    same!(slurp("b")?, "new");
    same!(sys::fd_read(&old, 9)?, b"old");
    same!(sys::fstat(&old)?.st_nlink, 0);
    Ok(())
}

fn rename_to_itself_and_to_a_link_of_it() -> Outcome {
    put("a", b"1")?;
    ok!(rename(c("a").as_ptr(), c("a").as_ptr()));
    ok!(link(c("a").as_ptr(), c("b").as_ptr()));
    ok!(rename(c("a").as_ptr(), c("b").as_ptr()));
    // Both names stay: POSIX.
    ok!(access(c("a").as_ptr(), F_OK));
    ok!(access(c("b").as_ptr(), F_OK));
    Ok(())
}

fn rename_directory_over_an_empty_one() -> Outcome {
    ok!(mkdir(c("d").as_ptr(), 0o755));
    put("d/f", b"x")?;
    ok!(mkdir(c("e").as_ptr(), 0o755));
    ok!(rename(c("d").as_ptr(), c("e").as_ptr()));
    same!(slurp("e/f")?, "x");
    Ok(())
}

fn rename_errors() -> Outcome {
    put("f", b"")?;
    ok!(mkdir(c("d").as_ptr(), 0o755));
    put("d/x", b"")?;
    ok!(mkdir(c("e").as_ptr(), 0o755));
    fails!(ENOENT, rename(c("none").as_ptr(), c("y").as_ptr()));
    fails!(ENOENT, rename(c("f").as_ptr(), c("none/y").as_ptr()));
    fails!(EISDIR, rename(c("f").as_ptr(), c("e").as_ptr()));
    fails!(ENOTDIR, rename(c("e").as_ptr(), c("f").as_ptr()));
    fails!(ENOTEMPTY, rename(c("e").as_ptr(), c("d").as_ptr()));
    fails!(ENOTDIR, rename(c("f/x").as_ptr(), c("y").as_ptr()));
    fails!(EBUSY, rename(c(".").as_ptr(), c("y").as_ptr()));
    fails!(EFAULT, rename(8 as *const c_char, c("y").as_ptr()));
    Ok(())
}

fn rename_into_its_own_subtree_is_einval() -> Outcome {
    ok!(mkdir(c("d").as_ptr(), 0o755));
    ok!(mkdir(c("d/e").as_ptr(), 0o755));
    fails!(EINVAL, rename(c("d").as_ptr(), c("d/e/f").as_ptr()));
    fails!(EINVAL, rename(c("d").as_ptr(), c("d/f").as_ptr()));
    fails!(ENOTEMPTY, rename(c("d/e").as_ptr(), c("d").as_ptr()));
    Ok(())
}

fn rename_keeps_open_files() -> Outcome {
    let fd = sys::create("a")?;
    sys::fd_write(&fd, b"one")?;
    ok!(rename(c("a").as_ptr(), c("b").as_ptr()));
    sys::fd_write(&fd, b"two")?;
    same!(slurp("b")?, "onetwo");
    Ok(())
}

fn renameat2(a: &str, b: &str, flags: u32) -> i64 {
    unsafe { syscall(SYS_renameat2, AT_FDCWD, c(a).as_ptr(), AT_FDCWD, c(b).as_ptr(), flags) }
}

fn rename_noreplace() -> Outcome {
    put("a", b"1")?;
    put("b", b"2")?;
    fails!(EEXIST, renameat2("a", "b", RENAME_NOREPLACE));
    ok!(renameat2("a", "c", RENAME_NOREPLACE));
    same!(slurp("c")?, "1");
    fails!(EINVAL, renameat2("c", "d", 0x100));
    fails!(EINVAL, renameat2("c", "b", RENAME_NOREPLACE | RENAME_EXCHANGE));
    Ok(())
}

/// As Linux has it since 5.8.
fn rename_leaves_a_whiteout_for_everyone() -> Outcome {
    ok!(chmod(c".".as_ptr(), 0o777));
    sys::fork(|| {
        sys::drop_root()?;
        put("a", b"1")?;
        fails!(ENOENT, renameat2("none", "b", RENAME_WHITEOUT));
        if renameat2("a", "b", RENAME_WHITEOUT) != 0 {
            // Not every file system makes them.
            same!(errno(), EINVAL);
            return Ok(());
        }
        let left = sys::lstat("a")?;
        same!((left.st_mode & S_IFMT, left.st_rdev), (S_IFCHR, 0));
        same!(slurp("b")?, "1");
        Ok(())
    })?
    .ok()
}

fn rename_exchange() -> Outcome {
    put("a", b"1")?;
    ok!(mkdir(c("d").as_ptr(), 0o755));
    put("d/x", b"in d")?;
    ok!(renameat2("a", "d", RENAME_EXCHANGE));
    same!(slurp("d")?, "1");
    same!(slurp("a/x")?, "in d");
    fails!(ENOENT, renameat2("a", "none", RENAME_EXCHANGE));
    Ok(())
}

fn rename_moves_directories_with_contents() -> Outcome {
    for d in ["p", "p/q", "p/q/r", "t"] {
        ok!(mkdir(c(d).as_ptr(), 0o755));
    }
    put("p/q/r/f", b"deep")?;
    ok!(rename(c("p/q").as_ptr(), c("t/moved").as_ptr()));
    same!(slurp("t/moved/r/f")?, "deep");
    same!(slurp("t/moved/../moved/r/f")?, "deep");
    fails!(ENOENT, access(c("p/q").as_ptr(), F_OK));
    Ok(())
}

fn rename_needs_write_permission() -> Outcome {
    ok!(mkdir(c("d").as_ptr(), 0o755));
    put("d/f", b"")?;
    sys::fork(|| {
        sys::drop_root()?;
        fails!(EACCES, rename(c("d/f").as_ptr(), c("d/g").as_ptr()));
        fails!(EACCES, unlink(c("d/f").as_ptr()));
        fails!(EACCES, open(c("d/new").as_ptr(), O_CREAT | O_RDWR, 0o600));
        Ok(())
    })?
    .ok()
}

fn sticky_directories_protect_names() -> Outcome {
    ok!(mkdir(c("d").as_ptr(), 0o777));
    ok!(chmod(c("d").as_ptr(), 0o1777));
    put("d/f", b"")?;
    sys::fork(|| {
        sys::drop_root()?;
        fails!(EPERM, unlink(c("d/f").as_ptr()));
        fails!(EPERM, rename(c("d/f").as_ptr(), c("d/g").as_ptr()));
        put("d/own", b"")?;
        ok!(unlink(c("d/own").as_ptr()));
        Ok(())
    })?
    .ok()
}

fn link_shares_the_inode() -> Outcome {
    put("a", b"1")?;
    ok!(link(c("a").as_ptr(), c("b").as_ptr()));
    let (a, b) = (sys::stat("a")?, sys::stat("b")?);
    same!((a.st_ino, a.st_nlink, b.st_nlink), (b.st_ino, 2, 2));
    put("b", b"22")?;
    same!(slurp("a")?, "22");
    ok!(unlink(c("a").as_ptr()));
    same!(sys::stat("b")?.st_nlink, 1);
    Ok(())
}

fn link_errors() -> Outcome {
    put("a", b"1")?;
    put("b", b"")?;
    ok!(mkdir(c("d").as_ptr(), 0o755));
    fails!(EEXIST, link(c("a").as_ptr(), c("b").as_ptr()));
    fails!(ENOENT, link(c("none").as_ptr(), c("x").as_ptr()));
    fails!(EPERM, link(c("d").as_ptr(), c("x").as_ptr()));
    fails!(ENOENT, link(c("a").as_ptr(), c("none/x").as_ptr()));
    Ok(())
}

fn link_follows_only_when_asked() -> Outcome {
    put("a", b"1")?;
    ok!(symlink(c("a").as_ptr(), c("s").as_ptr()));
    ok!(link(c("s").as_ptr(), c("l").as_ptr()));
    same!(sys::lstat("l")?.st_mode & S_IFMT, S_IFLNK);
    ok!(linkat(AT_FDCWD, c("s").as_ptr(), AT_FDCWD, c("f").as_ptr(), AT_SYMLINK_FOLLOW));
    same!(sys::lstat("f")?.st_mode & S_IFMT, S_IFREG);
    Ok(())
}

fn unlink_errors() -> Outcome {
    ok!(mkdir(c("d").as_ptr(), 0o755));
    fails!(EISDIR, unlink(c("d").as_ptr()));
    fails!(ENOENT, unlink(c("none").as_ptr()));
    put("f", b"")?;
    fails!(ENOTDIR, unlink(c("f/").as_ptr()));
    fails!(EINVAL, unlinkat(AT_FDCWD, c("f").as_ptr(), 0x1));
    Ok(())
}

fn rmdir_errors() -> Outcome {
    ok!(mkdir(c("d").as_ptr(), 0o755));
    put("d/f", b"")?;
    fails!(ENOTEMPTY, rmdir(c("d").as_ptr()));
    fails!(ENOTDIR, rmdir(c("d/f").as_ptr()));
    fails!(ENOENT, rmdir(c("none").as_ptr()));
    fails!(EINVAL, rmdir(c("d/.").as_ptr()));
    fails!(ENOTEMPTY, rmdir(c("d/..").as_ptr()));
    ok!(unlink(c("d/f").as_ptr()));
    ok!(unlinkat(AT_FDCWD, c("d").as_ptr(), AT_REMOVEDIR));
    fails!(EEXIST, mkdir(c(".").as_ptr(), 0o755));
    Ok(())
}

fn symlink_and_readlink() -> Outcome {
    ok!(symlink(c("some/target").as_ptr(), c("s").as_ptr()));
    let mut buf = [0u8; 64];
    same!(ok!(readlink(c("s").as_ptr(), buf.as_mut_ptr().cast(), 64)), 11);
    same!(&buf[..11], b"some/target");
    same!(ok!(readlink(c("s").as_ptr(), buf.as_mut_ptr().cast(), 4)), 4);
    same!(sys::lstat("s")?.st_size, 11);
    fails!(EINVAL, readlink(c(".").as_ptr(), buf.as_mut_ptr().cast(), 64));
    fails!(EINVAL, readlink(c("s").as_ptr(), buf.as_mut_ptr().cast(), 0));
    fails!(EEXIST, symlink(c("x").as_ptr(), c("s").as_ptr()));
    fails!(ENOENT, symlink(c("").as_ptr(), c("t").as_ptr()));
    Ok(())
}

fn dangling_link() -> Outcome {
    ok!(symlink(c("none").as_ptr(), c("s").as_ptr()));
    fails!(ENOENT, open(c("s").as_ptr(), O_RDONLY));
    fails!(ENOENT, chmod(c("s").as_ptr(), 0o600));
    sys::lstat("s")?;
    ok!(unlink(c("s").as_ptr()));
    Ok(())
}

fn link_count_of_directories() -> Outcome {
    ok!(mkdir(c("d").as_ptr(), 0o755));
    let before = sys::stat("d")?.st_nlink;
    ok!(mkdir(c("d/e").as_ptr(), 0o755));
    let after = sys::stat("d")?.st_nlink;
    // Some file systems always say 1.
    want!(after == before + 1 || (before == 1 && after == 1), "{before} links became {after}");
    Ok(())
}
