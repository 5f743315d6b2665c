//! readlink(2) of directories, asked again and again as realpath(3) does, while what it depends on changes.

use super::mount::{NULL, stage, tmpfs};
use super::seccomp::{install, only};
use crate::harness::{Outcome, errno};
use crate::sys::{self, c};
use libc::*;
use std::os::fd::AsRawFd;

cases![
    a_directory_is_no_link,
    a_removed_directory_is_gone,
    a_directory_is_replaced_by_a_link,
    a_directory_and_a_link_change_places,
    a_directory_above_is_renamed,
    another_process_renames_it,
    another_thread_renames_it,
    a_mount_hides_it,
    a_moved_mount_takes_it_along,
    permissions_of_others_count_at_once,
    an_access_list_counts_at_once,
    credentials_count_at_once,
    a_new_root_counts_at_once,
    a_root_shared_with_a_thread_counts_at_once,
    a_thread_knows_nothing_of_an_earlier_one,
    a_filter_sees_each_call,
];

/// Asks several times; the answers must be one. The target of a link, or the errno.
fn asked(path: &str) -> Result<Result<String, i32>, String> {
    let name = c(path);
    let mut buf = [0_u8; 256];
    let mut first = None;
    for turn in 0..4 {
        let n = if turn % 2 == 0 {
            unsafe { readlink(name.as_ptr(), buf.as_mut_ptr().cast(), buf.len()) }
        } else {
            // The descriptor is of no account.
            unsafe { readlinkat(777, name.as_ptr(), buf.as_mut_ptr().cast(), buf.len()) }
        };
        let answer = match usize::try_from(n) {
            Ok(n) => Ok(String::from_utf8_lossy(&buf[..n]).into_owned()),
            Err(_) => Err(errno()),
        };
        match &first {
            None => first = Some(answer),
            Some(first) => same!(answer, *first),
        }
    }
    first.ok_or_else(|| "nothing was asked".to_string())
}

/// Makes directories below the working directory, and gives the absolute path of the last.
fn dirs(paths: &[&str]) -> Result<String, String> {
    let here = std::env::current_dir().map_err(|e| format!("current_dir: {e}"))?;
    for path in paths {
        ok!(mkdir(c(path).as_ptr(), 0o755));
    }
    Ok(here.join(paths.last().copied().unwrap_or_default()).display().to_string())
}

fn a_directory_is_no_link() -> Outcome {
    let d = dirs(&["d"])?;
    for path in ["/", "/proc", &d, &format!("{d}/"), &format!("{d}/."), &format!("{d}/../d")] {
        same!(asked(path)?, Err(EINVAL));
    }
    same!(asked(&format!("{d}/none"))?, Err(ENOENT));
    // A bad buffer and a bad length make no difference to a directory.
    fails!(EINVAL, readlink(c(&d).as_ptr(), 8 as *mut c_char, 10));
    fails!(EINVAL, readlink(c(&d).as_ptr(), std::ptr::null_mut(), 0));
    fails!(EFAULT, readlink(8 as *const c_char, std::ptr::null_mut(), 10));
    sys::put("f", b"")?;
    same!(asked(&d.replace("/d", "/f"))?, Err(EINVAL));
    Ok(())
}

fn a_removed_directory_is_gone() -> Outcome {
    let d = dirs(&["d", "d/e"])?;
    for _ in 0..3 {
        same!(asked(&d)?, Err(EINVAL));
        ok!(rmdir(c("d/e").as_ptr()));
        same!(asked(&d)?, Err(ENOENT));
        ok!(mkdir(c("d/e").as_ptr(), 0o755));
    }
    Ok(())
}

fn a_directory_is_replaced_by_a_link() -> Outcome {
    let d = dirs(&["d"])?;
    same!(asked(&d)?, Err(EINVAL));
    ok!(rename(c("d").as_ptr(), c("e").as_ptr()));
    same!(asked(&d)?, Err(ENOENT));
    ok!(symlink(c("e").as_ptr(), c("d").as_ptr()));
    same!(asked(&d)?, Ok("e".to_string()));
    // And back, by a directory that takes the place of another.
    ok!(unlink(c("d").as_ptr()));
    ok!(mkdir(c("d").as_ptr(), 0o755));
    ok!(mkdir(c("e/below").as_ptr(), 0o755));
    same!(asked(&format!("{d}/below"))?, Err(ENOENT));
    ok!(rename(c("e").as_ptr(), c("d").as_ptr()));
    same!(asked(&format!("{d}/below"))?, Err(EINVAL));
    Ok(())
}

fn a_directory_and_a_link_change_places() -> Outcome {
    let d = dirs(&["d"])?;
    ok!(symlink(c("there").as_ptr(), c("l").as_ptr()));
    for turn in 0..4 {
        same!(asked(&d)?, if turn % 2 == 0 { Err(EINVAL) } else { Ok("there".to_string()) });
        let (at, exchange) = (AT_FDCWD, RENAME_EXCHANGE);
        if unsafe { renameat2(at, c("d").as_ptr(), at, c("l").as_ptr(), exchange) } != 0 {
            skip!("no exchange here");
        }
    }
    Ok(())
}

fn a_directory_above_is_renamed() -> Outcome {
    let d = dirs(&["a", "a/b", "a/b/d"])?;
    for _ in 0..3 {
        same!(asked(&d)?, Err(EINVAL));
        ok!(rename(c("a").as_ptr(), c("x").as_ptr()));
        same!(asked(&d)?, Err(ENOENT));
        ok!(rename(c("x").as_ptr(), c("a").as_ptr()));
    }
    Ok(())
}

fn another_process_renames_it() -> Outcome {
    let d = dirs(&["a", "a/d"])?;
    for _ in 0..5 {
        same!(asked(&d)?, Err(EINVAL));
        sys::fork(|| {
            same!(asked(&d)?, Err(EINVAL));
            ok!(rename(c("a").as_ptr(), c("b").as_ptr()));
            Ok(())
        })?
        .ok()?;
        same!(asked(&d)?, Err(ENOENT));
        ok!(rename(c("b").as_ptr(), c("a").as_ptr()));
    }
    Ok(())
}

fn another_thread_renames_it() -> Outcome {
    let d = dirs(&["d"])?;
    for _ in 0..20 {
        same!(asked(&d)?, Err(EINVAL));
        let moved = std::thread::spawn(|| unsafe { rename(c("d").as_ptr(), c("e").as_ptr()) }).join();
        same!(moved.ok(), Some(0));
        same!(asked(&d)?, Err(ENOENT));
        ok!(rename(c("e").as_ptr(), c("d").as_ptr()));
    }
    Ok(())
}

fn a_mount_hides_it() -> Outcome {
    stage()?;
    let d = dirs(&["a", "a/d"])?;
    for _ in 0..3 {
        same!(asked(&d)?, Err(EINVAL));
        tmpfs("a")?;
        same!(asked(&d)?, Err(ENOENT));
        ok!(umount2(c"a".as_ptr(), 0));
    }
    // In a namespace that was copied from this one nothing is hidden.
    sys::fork(|| {
        ok!(unshare(CLONE_NEWNS));
        same!(asked(&d)?, Err(EINVAL));
        tmpfs("a")?;
        same!(asked(&d)?, Err(ENOENT));
        Ok(())
    })?
    .ok()?;
    same!(asked(&d)?, Err(EINVAL));
    Ok(())
}

fn a_moved_mount_takes_it_along() -> Outcome {
    stage()?;
    let d = dirs(&["to", "from"])?;
    tmpfs("from")?;
    ok!(mkdir(c"from/d".as_ptr(), 0o755));
    let below = format!("{d}/d");
    same!(asked(&below)?, Err(EINVAL));
    ok!(mount(c"from".as_ptr(), c"to".as_ptr(), NULL, MS_MOVE, NULL.cast()));
    same!(asked(&below)?, Err(ENOENT));
    Ok(())
}

/// A child without privileges that asks for `path` whenever it is told to; what it finds must be what it is told.
fn asking_user(path: &str, each: &[(i32, &dyn Fn() -> Outcome)]) -> Outcome {
    let (mine, theirs) = sys::socketpair(SOCK_STREAM)?;
    let kid = sys::fork(|| {
        sys::drop_root()?;
        loop {
            let told = sys::fd_read(&theirs, 4)?;
            let Ok(told) = told.try_into() else { return Ok(()) };
            let found = asked(path)?;
            same!(found, Err(i32::from_ne_bytes(told)));
            sys::fd_write(&theirs, b".")?;
        }
    })?;
    drop(theirs);
    for (want, change) in each {
        change()?;
        sys::fd_write(&mine, &want.to_ne_bytes())?;
        if sys::fd_read(&mine, 1)?.is_empty() {
            break;
        }
    }
    ok!(shutdown(mine.as_raw_fd(), SHUT_WR));
    kid.ok()
}

fn permissions_of_others_count_at_once() -> Outcome {
    let d = dirs(&["p", "p/d"])?;
    // The way here must not be what keeps the user out.
    if sys::fork(|| {
        sys::drop_root()?;
        ok!(access(c(&d).as_ptr(), F_OK));
        Ok(())
    })?
    .ok()
    .is_err()
    {
        skip!("an ordinary user cannot come here");
    }
    let mode = |mode: mode_t| {
        move || {
            ok!(chmod(c"p".as_ptr(), mode));
            Ok(())
        }
    };
    let owner = |id: uid_t| {
        move || {
            ok!(chown(c"p".as_ptr(), id, id));
            Ok(())
        }
    };
    let (open, shut) = (mode(0o755), mode(0o700));
    let (theirs, ours) = (owner(1234), owner(0));
    asking_user(
        &d,
        &[
            (EINVAL, &open),
            (EACCES, &shut),
            (EINVAL, &open),
            (EACCES, &shut),
            (EINVAL, &theirs),
            (EACCES, &ours),
        ],
    )
}

fn an_access_list_counts_at_once() -> Outcome {
    let d = dirs(&["p", "p/d"])?;
    // Version 2; the owner, user 1234, the group, the mask and others (`struct posix_acl_xattr_entry`).
    let list = |permissions: u16| {
        let mut value = 2_u32.to_ne_bytes().to_vec();
        let entries: [(u16, u16, u32); 5] =
            [(1, 7, !0), (2, permissions, 1234), (4, 5, !0), (0x10, 7, !0), (0x20, 5, !0)];
        for (tag, permissions, id) in entries {
            value.extend([tag.to_ne_bytes(), permissions.to_ne_bytes()].concat());
            value.extend(id.to_ne_bytes());
        }
        value
    };
    let set = |value: &[u8]| unsafe {
        let name = c"system.posix_acl_access";
        setxattr(c"p".as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0)
    };
    if set(&list(5)) != 0 {
        skip!("no access lists here");
    }
    let give = |permissions: u16| {
        move || {
            ok!(set(&list(permissions)));
            Ok(())
        }
    };
    let remove = || {
        ok!(removexattr(c"p".as_ptr(), c"system.posix_acl_access".as_ptr()));
        Ok(())
    };
    let way = asking_user(&d, &[(EINVAL, &give(5))]);
    if way.is_err() {
        skip!("an ordinary user cannot come here");
    }
    let (open, shut) = (give(5), give(0));
    asking_user(&d, &[(EINVAL, &open), (EACCES, &shut), (EINVAL, &open), (EACCES, &shut), (EINVAL, &remove)])
}

fn credentials_count_at_once() -> Outcome {
    let d = dirs(&["p", "p/d"])?;
    ok!(chmod(c"p".as_ptr(), 0o700));
    same!(asked(&d)?, Err(EINVAL));
    unsafe { setfsuid(1234) };
    same!(asked(&d)?, Err(EACCES));
    unsafe { setfsuid(0) };
    same!(asked(&d)?, Err(EINVAL));
    sys::drop_root()?;
    same!(asked(&d)?, Err(EACCES));
    Ok(())
}

fn a_new_root_counts_at_once() -> Outcome {
    let d = dirs(&["jail", "d"])?;
    same!(asked(&d)?, Err(EINVAL));
    sys::fork(|| {
        same!(asked(&d)?, Err(EINVAL));
        ok!(chroot(c"jail".as_ptr()));
        same!(asked(&d)?, Err(ENOENT));
        same!(asked("/")?, Err(EINVAL));
        Ok(())
    })?
    .ok()?;
    same!(asked(&d)?, Err(EINVAL));
    Ok(())
}

fn a_root_shared_with_a_thread_counts_at_once() -> Outcome {
    let d = dirs(&["jail", "d"])?;
    same!(asked(&d)?, Err(EINVAL));
    let moved = std::thread::spawn(|| unsafe { chroot(c"jail".as_ptr()) }).join();
    same!(moved.ok(), Some(0));
    same!(asked(&d)?, Err(ENOENT));
    Ok(())
}

fn a_thread_knows_nothing_of_an_earlier_one() -> Outcome {
    let d = dirs(&["jail", "jail/only", "jail/only/here"])?;
    let asked_there = |root: Option<&'static std::ffi::CStr>| {
        let asking = move || -> Result<Result<String, i32>, String> {
            ok!(unshare(CLONE_FS));
            if let Some(root) = root {
                ok!(chroot(root.as_ptr()));
            }
            asked("/only/here")
        };
        std::thread::spawn(asking).join().map_err(|_| "the thread panicked".to_owned())?
    };
    for _ in 0..10 {
        same!(asked_there(Some(c"jail"))?, Err(EINVAL));
        same!(asked_there(None)?, Err(ENOENT));
    }
    same!(asked(&d)?, Err(EINVAL));
    Ok(())
}

fn a_filter_sees_each_call() -> Outcome {
    let d = dirs(&["d"])?;
    same!(asked(&d)?, Err(EINVAL));
    for call in [SYS_readlink, SYS_readlinkat] {
        install(&only(call, SECCOMP_RET_ERRNO | 77))?;
    }
    same!(asked(&d)?, Err(77));
    Ok(())
}
