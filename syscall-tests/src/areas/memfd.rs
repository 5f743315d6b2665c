//! memfd_create(2), seals, and mappings of files that change under them.

use crate::harness::Outcome;
use crate::sys::{self, Map, PAGE, dies_of, fork};
use libc::*;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::null_mut;
use std::sync::atomic::Ordering::SeqCst;

cases![
    memfd_flags_and_names,
    seals_need_the_flag,
    seals_are_listed_and_final,
    seal_shrink_and_grow,
    seal_write_refuses_writes,
    seal_write_waits_for_writable_mappings,
    seal_write_leaves_private_mappings,
    seal_future_write_keeps_old_mappings,
    sealed_files_map_read_only,
    seal_exec_keeps_the_mode,
    noexec_seal_takes_execution,
    a_memfd_is_shared_by_fork_and_proc,
    past_the_end_is_sigbus_and_back,
    truncation_takes_private_copies_too,
    truncation_races_with_a_reader,
    calls_on_truncated_memory_are_efault,
    unmapping_races_with_a_call,
    protection_races_with_a_call,
    exited_memory_is_not_seen_again,
    fresh_memory_after_many_lives_is_zero,
];

const RW: i32 = PROT_READ | PROT_WRITE;
const SEAL_SEAL: i32 = 1;
const SEAL_SHRINK: i32 = 2;
const SEAL_GROW: i32 = 4;
const SEAL_WRITE: i32 = 8;
const SEAL_FUTURE_WRITE: i32 = 16;
const SEAL_EXEC: i32 = 32;
const NOEXEC_SEAL: u32 = 8;
const EXEC: u32 = 16;

fn memfd(flags: u32) -> Result<OwnedFd, String> {
    let fd = sys::own(ok!(memfd_create(c"m".as_ptr(), flags)));
    ok!(ftruncate(fd.as_raw_fd(), 4 * PAGE as i64));
    Ok(fd)
}

fn sealable() -> Result<OwnedFd, String> {
    memfd(MFD_ALLOW_SEALING)
}

fn seal(fd: &OwnedFd, seals: i32) -> i32 {
    unsafe { fcntl(fd.as_raw_fd(), F_ADD_SEALS, seals) }
}

fn seals(fd: &OwnedFd) -> i32 {
    unsafe { fcntl(fd.as_raw_fd(), F_GET_SEALS) }
}

fn memfd_flags_and_names() -> Outcome {
    fails!(EINVAL, memfd_create(c"m".as_ptr(), 1 << 20));
    fails!(EFAULT, memfd_create(8 as *const c_char, 0));
    let long = sys::c(&"x".repeat(250));
    fails!(EINVAL, memfd_create(long.as_ptr(), 0));
    let fd = sys::own(ok!(memfd_create(c"a name".as_ptr(), MFD_CLOEXEC)));
    let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).map_err(|e| e.to_string())?;
    same!(link.to_string_lossy(), "/memfd:a name (deleted)");
    same!(ok!(fcntl(fd.as_raw_fd(), F_GETFD)), FD_CLOEXEC);
    fails!(EINVAL, memfd_create(c"m".as_ptr(), EXEC | NOEXEC_SEAL));
    Ok(())
}

fn seals_need_the_flag() -> Outcome {
    let fd = memfd(0)?;
    same!(ok!(seals(&fd)), SEAL_SEAL);
    fails!(EPERM, seal(&fd, SEAL_SHRINK));
    let file = sys::create("f")?;
    fails!(EINVAL, seal(&file, SEAL_SHRINK));
    let (rd, _wr) = sys::pipe()?;
    fails!(EINVAL, seals(&rd));
    Ok(())
}

fn seals_are_listed_and_final() -> Outcome {
    let fd = sealable()?;
    same!(ok!(seals(&fd)), 0);
    fails!(EINVAL, seal(&fd, 1 << 10));
    ok!(seal(&fd, SEAL_SHRINK));
    ok!(seal(&fd, SEAL_GROW));
    same!(ok!(seals(&fd)), SEAL_SHRINK | SEAL_GROW);
    ok!(seal(&fd, SEAL_SEAL));
    fails!(EPERM, seal(&fd, SEAL_WRITE));
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let reader = sys::open(&path, O_RDONLY)?;
    same!(ok!(seals(&reader)), SEAL_SHRINK | SEAL_GROW | SEAL_SEAL);
    // Seals are added through a descriptor for writing.
    let other = sealable()?;
    let reader = sys::open(&format!("/proc/self/fd/{}", other.as_raw_fd()), O_RDONLY)?;
    fails!(EPERM, seal(&reader, SEAL_GROW));
    Ok(())
}

fn seal_shrink_and_grow() -> Outcome {
    let fd = sealable()?;
    ok!(seal(&fd, SEAL_SHRINK));
    fails!(EPERM, ftruncate(fd.as_raw_fd(), PAGE as i64));
    ok!(ftruncate(fd.as_raw_fd(), 8 * PAGE as i64));
    ok!(seal(&fd, SEAL_GROW));
    fails!(EPERM, ftruncate(fd.as_raw_fd(), 9 * PAGE as i64));
    fails!(EPERM, fallocate(fd.as_raw_fd(), 0, 0, 9 * PAGE as i64));
    fails!(EPERM, pwrite(fd.as_raw_fd(), c"x".as_ptr().cast(), 1, 8 * PAGE as i64));
    same!(ok!(pwrite(fd.as_raw_fd(), c"x".as_ptr().cast(), 1, 0)), 1);
    Ok(())
}

fn seal_write_refuses_writes() -> Outcome {
    let fd = sealable()?;
    ok!(seal(&fd, SEAL_WRITE));
    fails!(EPERM, write(fd.as_raw_fd(), c"x".as_ptr().cast(), 1));
    fails!(EPERM, pwrite(fd.as_raw_fd(), c"x".as_ptr().cast(), 1, 0));
    fails!(EPERM, fallocate(fd.as_raw_fd(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, PAGE as i64));
    fails!(EPERM, mmap(null_mut(), PAGE, RW, MAP_SHARED, fd.as_raw_fd(), 0));
    // The size is not sealed.
    ok!(ftruncate(fd.as_raw_fd(), PAGE as i64));
    Ok(())
}

fn seal_write_waits_for_writable_mappings() -> Outcome {
    let fd = sealable()?;
    let map = Map::new(PAGE, RW, MAP_SHARED, fd.as_raw_fd(), 0)?;
    fails!(EBUSY, seal(&fd, SEAL_WRITE));
    // Neither a lesser protection nor a fork's copy frees it.
    ok!(mprotect(map.ptr.cast(), PAGE, PROT_READ));
    fails!(EBUSY, seal(&fd, SEAL_WRITE));
    let moved = ok!(mremap(map.ptr.cast(), PAGE, 2 * PAGE, MREMAP_MAYMOVE));
    fails!(EBUSY, seal(&fd, SEAL_WRITE));
    ok!(munmap(moved, PAGE));
    fails!(EBUSY, seal(&fd, SEAL_WRITE));
    ok!(munmap(moved.cast::<u8>().wrapping_add(PAGE).cast(), PAGE));
    ok!(seal(&fd, SEAL_WRITE));
    Ok(())
}

fn seal_write_leaves_private_mappings() -> Outcome {
    let fd = sealable()?;
    sys::fd_write(&fd, b"abc")?;
    let private = Map::new(PAGE, RW, MAP_PRIVATE, fd.as_raw_fd(), 0)?;
    ok!(seal(&fd, SEAL_WRITE));
    private.set(0, b'z');
    let mut byte = [0u8];
    ok!(pread(fd.as_raw_fd(), byte.as_mut_ptr().cast(), 1, 0));
    same!((byte[0], private.get(1)), (b'a', b'b'));
    let later = Map::new(PAGE, RW, MAP_PRIVATE, fd.as_raw_fd(), 0)?;
    later.set(0, 1);
    Ok(())
}

fn seal_future_write_keeps_old_mappings() -> Outcome {
    let fd = sealable()?;
    let map = Map::new(PAGE, RW, MAP_SHARED, fd.as_raw_fd(), 0)?;
    ok!(seal(&fd, SEAL_FUTURE_WRITE));
    map.set(0, 5);
    fails!(EPERM, write(fd.as_raw_fd(), c"x".as_ptr().cast(), 1));
    fails!(EPERM, mmap(null_mut(), PAGE, RW, MAP_SHARED, fd.as_raw_fd(), 0));
    let reader = Map::new(PAGE, PROT_READ, MAP_SHARED, fd.as_raw_fd(), 0)?;
    same!(reader.get(0), 5);
    fails!(EACCES, mprotect(reader.ptr.cast(), PAGE, RW));
    Ok(())
}

fn sealed_files_map_read_only() -> Outcome {
    let fd = sealable()?;
    ok!(seal(&fd, SEAL_WRITE | SEAL_SHRINK | SEAL_GROW));
    let private = Map::new(PAGE, PROT_READ, MAP_PRIVATE, fd.as_raw_fd(), 0)?;
    same!(private.get(0), 0);
    ok!(mprotect(private.ptr.cast(), PAGE, RW));
    private.set(0, 1);
    Ok(())
}

fn seal_exec_keeps_the_mode() -> Outcome {
    let fd = sealable()?;
    same!(sys::fstat(&fd)?.st_mode & 0o777, 0o777);
    ok!(seal(&fd, SEAL_EXEC));
    fails!(EPERM, fchmod(fd.as_raw_fd(), 0o600));
    ok!(fchmod(fd.as_raw_fd(), 0o777));
    // An executable file is sealed against writes with it.
    same!(ok!(seals(&fd)), SEAL_EXEC | SEAL_SHRINK | SEAL_GROW | SEAL_WRITE | SEAL_FUTURE_WRITE);
    Ok(())
}

fn noexec_seal_takes_execution() -> Outcome {
    let fd = memfd(NOEXEC_SEAL)?;
    same!(sys::fstat(&fd)?.st_mode & 0o777, 0o666);
    same!(ok!(seals(&fd)), SEAL_EXEC);
    fails!(EPERM, fchmod(fd.as_raw_fd(), 0o777));
    ok!(seal(&fd, SEAL_GROW));
    Ok(())
}

fn a_memfd_is_shared_by_fork_and_proc() -> Outcome {
    let fd = memfd(0)?;
    let map = Map::new(PAGE, RW, MAP_SHARED, fd.as_raw_fd(), 0)?;
    fork(|| {
        map.set(0, 3);
        let again = sys::open(&format!("/proc/self/fd/{}", fd.as_raw_fd()), O_RDWR)?;
        same!(sys::fd_read(&again, 1)?, [3]);
        sys::fd_write(&again, b"q").map(drop)
    })?
    .ok()?;
    same!((map.get(0), map.get(1)), (3, b'q'));
    Ok(())
}

fn past_the_end_is_sigbus_and_back() -> Outcome {
    for fd in [memfd(0)?, sys::create("f")?] {
        ok!(ftruncate(fd.as_raw_fd(), 100));
        let map = Map::new(3 * PAGE, RW, MAP_SHARED, fd.as_raw_fd(), 0)?;
        map.set(PAGE - 1, 1);
        dies_of(SIGBUS, || map.set(PAGE, 1))?;
        dies_of(SIGBUS, || map.set(2 * PAGE, 1))?;
        ok!(ftruncate(fd.as_raw_fd(), 3 * PAGE as i64));
        map.set(2 * PAGE, 7);
        // What was written past the end of the file but inside its last page is gone or zero when it grows.
        ok!(ftruncate(fd.as_raw_fd(), PAGE as i64));
        dies_of(SIGBUS, || map.set(2 * PAGE, 1))?;
        ok!(ftruncate(fd.as_raw_fd(), 3 * PAGE as i64));
        same!(map.get(2 * PAGE), 0);
    }
    Ok(())
}

fn truncation_takes_private_copies_too() -> Outcome {
    let fd = sys::create("f")?;
    sys::fd_write(&fd, &[1; 2 * PAGE])?;
    let map = Map::new(2 * PAGE, RW, MAP_PRIVATE, fd.as_raw_fd(), 0)?;
    map.set(PAGE, 9);
    ok!(ftruncate(fd.as_raw_fd(), PAGE as i64));
    dies_of(SIGBUS, || map.set(PAGE, 1))?;
    ok!(ftruncate(fd.as_raw_fd(), 2 * PAGE as i64));
    same!((map.get(0), map.get(PAGE)), (1, 0));
    Ok(())
}

fn truncation_races_with_a_reader() -> Outcome {
    let fd = memfd(0)?;
    let done = Map::shared(PAGE)?;
    let map = Map::new(PAGE, RW, MAP_SHARED, fd.as_raw_fd(), 0)?;
    // A child truncates for ever; each touch gives zero, what was written, or SIGBUS: nothing else.
    let kid = fork(|| {
        while done.word(0).load(SeqCst) == 0 {
            ok!(ftruncate(fd.as_raw_fd(), 0));
            ok!(ftruncate(fd.as_raw_fd(), PAGE as i64));
        }
        Ok(())
    })?;
    for _ in 0..20 {
        let status = sys::status_of(|| {
            for _ in 0..500 {
                let seen = map.get(5);
                if seen != 0 && seen != 0x5a {
                    unsafe { _exit(9) };
                }
                map.set(5, 0x5a);
            }
        })?;
        want!(status == 0 || status == SIGBUS, "wait status {status:#x}");
    }
    done.word(0).store(1, SeqCst);
    kid.ok()
}

fn calls_on_truncated_memory_are_efault() -> Outcome {
    let fd = memfd(0)?;
    let map = Map::new(4 * PAGE, RW, MAP_SHARED, fd.as_raw_fd(), 0)?;
    map.set(0, 1);
    ok!(ftruncate(fd.as_raw_fd(), PAGE as i64));
    let (rd, wr) = sys::pipe()?;
    fails!(EFAULT, write(wr.as_raw_fd(), map.at(PAGE).cast(), 10));
    sys::fd_write(&wr, b"abcd")?;
    fails!(EFAULT, read(rd.as_raw_fd(), map.at(2 * PAGE).cast(), 4));
    Ok(())
}

/// Runs `change` on another thread while this one makes a call that reads from and writes to `map`.
fn race(map: &Map, change: impl Fn(*mut u8) + Send) -> Outcome {
    let (rd, wr) = sys::pipe()?;
    let stop = std::sync::atomic::AtomicBool::new(false);
    let at = map.ptr as usize;
    std::thread::scope(|s| {
        let stop = &stop;
        s.spawn(move || {
            while !stop.load(SeqCst) {
                change(at as *mut u8);
            }
        });
        let result = (|| {
            for _ in 0..2000 {
                let put = unsafe { write(wr.as_raw_fd(), map.ptr.cast(), PAGE) };
                if put < 0 {
                    same!(crate::harness::errno(), EFAULT);
                    continue;
                }
                // Whatever was put into the pipe can be taken out again in whole.
                let mut left = put as usize;
                while left > 0 {
                    let got = sys::fd_read(&rd, left)?;
                    want!(
                        !got.is_empty() && got.iter().all(|b| *b == 0 || *b == 7),
                        "strange bytes in the pipe"
                    );
                    left -= got.len();
                }
            }
            Ok(())
        })();
        stop.store(true, SeqCst);
        result
    })
}

fn unmapping_races_with_a_call() -> Outcome {
    let map = Map::anon(PAGE)?;
    race(&map, |at| unsafe {
        munmap(at.cast(), PAGE);
        let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
        mmap(at.cast(), PAGE, RW, flags, -1, 0);
        at.write_bytes(7, PAGE);
    })
}

fn protection_races_with_a_call() -> Outcome {
    let map = Map::anon(PAGE)?;
    unsafe { map.ptr.write_bytes(7, PAGE) };
    race(&map, |at| unsafe {
        mprotect(at.cast(), PAGE, PROT_NONE);
        mprotect(at.cast(), PAGE, RW);
    })
}

const CANARY: u8 = 0xd7;

fn exited_memory_is_not_seen_again() -> Outcome {
    for _ in 0..8 {
        fork(|| {
            let map = Map::anon(1 << 20)?;
            unsafe { map.ptr.write_bytes(CANARY, map.len) };
            let shared = Map::shared(1 << 20)?;
            unsafe { shared.ptr.write_bytes(CANARY, shared.len) };
            let fd = memfd(0)?;
            let file = Map::new(4 * PAGE, RW, MAP_SHARED, fd.as_raw_fd(), 0)?;
            unsafe { file.ptr.write_bytes(CANARY, file.len) };
            Ok(())
        })?
        .ok()?;
        fork(|| {
            for map in [Map::anon(1 << 20)?, Map::shared(1 << 20)?] {
                want!(map.bytes().iter().all(|b| *b == 0), "fresh memory is not zero");
            }
            let fd = memfd(0)?;
            let file = Map::new(4 * PAGE, RW, MAP_SHARED, fd.as_raw_fd(), 0)?;
            want!(file.bytes().iter().all(|b| *b == 0), "a fresh file is not zero");
            Ok(())
        })?
        .ok()?;
    }
    Ok(())
}

fn fresh_memory_after_many_lives_is_zero() -> Outcome {
    let fd = memfd(0)?;
    for round in 0..200 {
        let map = Map::new(4 * PAGE, RW, MAP_SHARED, fd.as_raw_fd(), 0)?;
        want!(map.bytes().iter().all(|b| *b == 0), "round {round}: the file shows what was truncated");
        unsafe { map.ptr.write_bytes(CANARY, map.len) };
        drop(map);
        ok!(ftruncate(fd.as_raw_fd(), 0));
        ok!(ftruncate(fd.as_raw_fd(), 4 * PAGE as i64));
        let anon = Map::anon(4 * PAGE)?;
        want!(anon.bytes().iter().all(|b| *b == 0), "round {round}: fresh memory is not zero");
        unsafe { anon.ptr.write_bytes(CANARY, anon.len) };
    }
    Ok(())
}
