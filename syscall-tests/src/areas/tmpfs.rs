//! /dev/shm and other tmpfs mounts (tmpfs(5)), shared memory by name.

use crate::harness::Outcome;
use crate::sys::{self, Map, c};
use libc::*;
use std::os::fd::AsRawFd;

cases![
    shared_memory_by_name,
    mount_and_umount,
    size_limit_is_enospc,
    read_only_mount_is_erofs,
    bind_mount_shows_the_same_files,
    umount_errors,
];

fn shared_memory_by_name() -> Outcome {
    let name = c(&format!("/syscall-tests-{}", unsafe { getpid() }));
    let fd = sys::own(ok!(shm_open(name.as_ptr(), O_CREAT | O_EXCL | O_RDWR, 0o600)));
    ok!(ftruncate(fd.as_raw_fd(), 4096));
    let map = Map::new(4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd.as_raw_fd(), 0)?;
    let kid = sys::fork(|| {
        let again = sys::own(ok!(shm_open(name.as_ptr(), O_RDWR, 0)));
        let view = Map::new(4096, PROT_READ | PROT_WRITE, MAP_SHARED, again.as_raw_fd(), 0)?;
        view.set(7, 42);
        Ok(())
    })?;
    let done = kid.ok();
    ok!(shm_unlink(name.as_ptr()));
    done?;
    same!(map.get(7), 42);
    Ok(())
}

/// Mounts a tmpfs at `t`; skips where mounts are not allowed or the mount namespace is not our own.
fn mounted(flags: u64, options: &str) -> Outcome {
    ok!(mkdir(c("t").as_ptr(), 0o755));
    let data = c(options);
    if unsafe { unshare(CLONE_NEWNS) } != 0 {
        skip!("no mount namespace of its own");
    }
    let null = std::ptr::null();
    unsafe { mount(null, c"/".as_ptr(), null, MS_REC | MS_PRIVATE, null.cast()) };
    let r =
        unsafe { mount(c"tmpfs".as_ptr(), c("t").as_ptr(), c"tmpfs".as_ptr(), flags, data.as_ptr().cast()) };
    if r != 0 {
        skip!("mount: {}", crate::harness::errno_name(crate::harness::errno()));
    }
    Ok(())
}

fn mount_and_umount() -> Outcome {
    mounted(0, "mode=750")?;
    same!(sys::stat("t")?.st_mode & 0o7777, 0o750);
    sys::put("t/f", b"x")?;
    want!(sys::stat("t")?.st_dev != sys::stat(".")?.st_dev, "the device is the same");
    ok!(umount2(c("t").as_ptr(), 0));
    fails!(ENOENT, access(c("t/f").as_ptr(), F_OK));
    Ok(())
}

fn size_limit_is_enospc() -> Outcome {
    mounted(0, "size=64k")?;
    let fd = sys::create("t/f")?;
    let mut total = 0;
    loop {
        let n = unsafe { write(fd.as_raw_fd(), [1u8; 4096].as_ptr().cast(), 4096) };
        if n < 0 {
            same!(crate::harness::errno(), ENOSPC);
            break;
        }
        total += n;
        want!(total <= 65536, "{total} bytes fit into 64 KiB");
    }
    ok!(ftruncate(fd.as_raw_fd(), 0));
    same!(sys::fd_write(&sys::create("t/g")?, b"fits")?, 4);
    Ok(())
}

fn read_only_mount_is_erofs() -> Outcome {
    mounted(MS_RDONLY, "")?;
    fails!(EROFS, open(c("t/f").as_ptr(), O_CREAT | O_RDWR, 0o600));
    fails!(EROFS, mkdir(c("t/d").as_ptr(), 0o700));
    fails!(EROFS, chmod(c("t").as_ptr(), 0o700));
    Ok(())
}

fn bind_mount_shows_the_same_files() -> Outcome {
    mounted(0, "")?;
    sys::put("t/f", b"one")?;
    ok!(mkdir(c("b").as_ptr(), 0o755));
    ok!(mount(c("t").as_ptr(), c("b").as_ptr(), std::ptr::null(), MS_BIND, std::ptr::null()));
    same!(sys::slurp("b/f")?, "one");
    sys::put("b/g", b"two")?;
    same!(sys::slurp("t/g")?, "two");
    Ok(())
}

fn umount_errors() -> Outcome {
    mounted(0, "")?;
    fails!(EINVAL, umount2(c(".").as_ptr(), 0));
    fails!(ENOENT, umount2(c("none").as_ptr(), 0));
    let held = sys::open("t", O_RDONLY)?;
    fails!(EBUSY, umount2(c("t").as_ptr(), 0));
    drop(held);
    ok!(umount2(c("t").as_ptr(), 0));
    Ok(())
}
