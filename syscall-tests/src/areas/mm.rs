//! mmap(2), munmap(2), mprotect(2), mremap(2), madvise(2), brk(2), msync(2), mincore(2), mlock(2).

use crate::harness::Outcome;
use crate::sys::{self, Map, PAGE, dies_of, fork};
use libc::*;
use std::os::fd::AsRawFd;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering::SeqCst};

cases![
    anonymous_memory_is_zero,
    bad_arguments_are_einval,
    hint_is_taken_when_free,
    fixed_replaces_what_was_there,
    fixed_noreplace_refuses,
    munmap_makes_a_hole,
    munmap_of_nothing_is_fine,
    private_file_mapping_keeps_its_writes,
    shared_file_mapping_writes_through,
    shared_mapping_sees_writes_of_the_file,
    mapping_rights_follow_the_descriptor,
    mapping_outlives_the_descriptor,
    tail_of_the_last_page_is_zero,
    touching_past_the_end_is_sigbus,
    truncated_mapping_is_sigbus,
    grown_file_appears_in_the_mapping,
    read_only_memory_cannot_be_written,
    no_access_memory_cannot_be_read,
    fault_tells_address_and_code,
    mprotect_splits_and_restores,
    mprotect_errors,
    code_can_be_made_and_run,
    mremap_grows_and_moves,
    mremap_shrinks,
    mremap_to_a_fixed_place,
    mremap_errors,
    dontneed_zeroes_private_memory,
    dontneed_rereads_the_file,
    dontfork_and_wipeonfork,
    brk_grows_and_shrinks,
    shared_anonymous_memory_crosses_fork,
    private_memory_parts_at_fork,
    msync_and_mincore,
    mlock_and_limit,
    address_space_limit_is_enomem,
    stack_grows_by_itself,
    stack_overflow_is_sigsegv,
    many_mappings,
    munmap_while_a_thread_reads,
    populate_and_noreserve,
];

const RW: i32 = PROT_READ | PROT_WRITE;
const ANON: i32 = MAP_PRIVATE | MAP_ANONYMOUS;

fn anonymous_memory_is_zero() -> Outcome {
    let map = Map::anon(40 * PAGE)?;
    want!(map.bytes().iter().all(|b| *b == 0), "fresh memory is not zero");
    Ok(())
}

fn bad_arguments_are_einval() -> Outcome {
    fails!(EINVAL, mmap(null_mut(), 0, RW, ANON, -1, 0));
    fails!(EINVAL, mmap(null_mut(), PAGE, RW, MAP_ANONYMOUS, -1, 0));
    fails!(EINVAL, mmap(0x1001 as *mut c_void, PAGE, RW, ANON | MAP_FIXED, -1, 0));
    fails!(ENOMEM, mmap(null_mut(), 1 << 60, RW, ANON, -1, 0));
    fails!(EBADF, mmap(null_mut(), PAGE, RW, MAP_PRIVATE, 77, 0));
    let fd = sys::create("f")?;
    fails!(EINVAL, mmap(null_mut(), PAGE, RW, MAP_PRIVATE, fd.as_raw_fd(), 100));
    let (rd, _wr) = sys::pipe()?;
    fails!(ENODEV, mmap(null_mut(), PAGE, PROT_READ, MAP_PRIVATE, rd.as_raw_fd(), 0));
    fails!(EINVAL, munmap(0x1001 as *mut c_void, PAGE));
    fails!(EINVAL, munmap(null_mut(), 0));
    Ok(())
}

fn hint_is_taken_when_free() -> Outcome {
    let map = Map::anon(4 * PAGE)?;
    let at = map.at(0);
    drop(map);
    let again = ok!(mmap(at.cast(), PAGE, RW, ANON, -1, 0));
    same!(again, at.cast());
    let other = ok!(mmap(at.cast(), PAGE, RW, ANON, -1, 0));
    want!(other != at.cast(), "a taken hint was given twice");
    Ok(())
}

fn fixed_replaces_what_was_there() -> Outcome {
    let map = Map::anon(3 * PAGE)?;
    for i in 0..3 {
        map.set(i * PAGE, 1);
    }
    let mid = ok!(mmap(map.at(PAGE).cast(), PAGE, RW, ANON | MAP_FIXED, -1, 0));
    same!(mid, map.at(PAGE).cast());
    same!((map.get(0), map.get(PAGE), map.get(2 * PAGE)), (1, 0, 1));
    Ok(())
}

fn fixed_noreplace_refuses() -> Outcome {
    let map = Map::anon(PAGE)?;
    fails!(EEXIST, mmap(map.at(0).cast(), PAGE, RW, ANON | MAP_FIXED_NOREPLACE, -1, 0));
    Ok(())
}

fn munmap_makes_a_hole() -> Outcome {
    let map = Map::anon(3 * PAGE)?;
    map.set(0, 1);
    map.set(2 * PAGE, 3);
    ok!(munmap(map.at(PAGE).cast(), PAGE));
    same!((map.get(0), map.get(2 * PAGE)), (1, 3));
    dies_of(SIGSEGV, || {
        map.get(PAGE);
    })
}

fn munmap_of_nothing_is_fine() -> Outcome {
    let map = Map::anon(PAGE)?;
    ok!(munmap(map.at(0).cast(), PAGE));
    ok!(munmap(map.at(0).cast(), PAGE));
    Ok(())
}

fn private_file_mapping_keeps_its_writes() -> Outcome {
    sys::put("f", b"hello")?;
    let fd = sys::open("f", O_RDONLY)?;
    let map = Map::new(PAGE, RW, MAP_PRIVATE, fd.as_raw_fd(), 0)?;
    map.set(0, b'J');
    same!(&map.bytes()[..5], b"Jello");
    same!(sys::slurp("f")?, "hello");
    Ok(())
}

fn shared_file_mapping_writes_through() -> Outcome {
    sys::put("f", b"hello")?;
    let fd = sys::open("f", O_RDWR)?;
    let map = Map::new(PAGE, RW, MAP_SHARED, fd.as_raw_fd(), 0)?;
    map.set(0, b'J');
    // Past the end of the file, within the page: lost.
    map.set(10, b'x');
    same!(sys::slurp("f")?, "Jello");
    let again = Map::new(PAGE, PROT_READ, MAP_SHARED, fd.as_raw_fd(), 0)?;
    same!(again.get(0), b'J');
    Ok(())
}

fn shared_mapping_sees_writes_of_the_file() -> Outcome {
    let fd = sys::create("f")?;
    ok!(ftruncate(fd.as_raw_fd(), 10_000));
    let map = Map::new(3 * PAGE, PROT_READ, MAP_SHARED, fd.as_raw_fd(), 0)?;
    for at in [0usize, 4096, 9000] {
        ok!(pwrite(fd.as_raw_fd(), b"z".as_ptr().cast(), 1, at as i64));
        same!(map.get(at), b'z');
    }
    Ok(())
}

fn mapping_rights_follow_the_descriptor() -> Outcome {
    sys::put("f", b"hello")?;
    let ro = sys::open("f", O_RDONLY)?;
    let wo = sys::open("f", O_WRONLY)?;
    fails!(EACCES, mmap(null_mut(), PAGE, RW, MAP_SHARED, ro.as_raw_fd(), 0));
    fails!(EACCES, mmap(null_mut(), PAGE, PROT_READ, MAP_PRIVATE, wo.as_raw_fd(), 0));
    let map = Map::new(PAGE, PROT_READ, MAP_SHARED, ro.as_raw_fd(), 0)?;
    fails!(EACCES, mprotect(map.at(0).cast(), PAGE, RW));
    let map = Map::new(PAGE, PROT_READ, MAP_PRIVATE, ro.as_raw_fd(), 0)?;
    ok!(mprotect(map.at(0).cast(), PAGE, RW));
    Ok(())
}

fn mapping_outlives_the_descriptor() -> Outcome {
    sys::put("f", b"hello")?;
    let fd = sys::open("f", O_RDONLY)?;
    let map = Map::new(PAGE, PROT_READ, MAP_PRIVATE, fd.as_raw_fd(), 0)?;
    drop(fd);
    ok!(unlink(sys::c("f").as_ptr()));
    same!(&map.bytes()[..5], b"hello");
    Ok(())
}

fn tail_of_the_last_page_is_zero() -> Outcome {
    sys::put("f", &[7u8; 5000])?;
    let fd = sys::open("f", O_RDONLY)?;
    let map = Map::new(2 * PAGE, PROT_READ, MAP_PRIVATE, fd.as_raw_fd(), 0)?;
    same!(map.get(4999), 7);
    want!(map.bytes()[5000..].iter().all(|b| *b == 0), "bytes past the end are not zero");
    Ok(())
}

fn touching_past_the_end_is_sigbus() -> Outcome {
    sys::put("f", b"hello")?;
    let fd = sys::open("f", O_RDONLY)?;
    let map = Map::new(2 * PAGE, PROT_READ, MAP_SHARED, fd.as_raw_fd(), 0)?;
    dies_of(SIGBUS, || {
        map.get(PAGE);
    })?;
    let map = Map::new(2 * PAGE, PROT_READ, MAP_PRIVATE, fd.as_raw_fd(), 0)?;
    dies_of(SIGBUS, || {
        map.get(PAGE);
    })
}

fn truncated_mapping_is_sigbus() -> Outcome {
    let fd = sys::create("f")?;
    ok!(ftruncate(fd.as_raw_fd(), 8192));
    let map = Map::new(2 * PAGE, RW, MAP_SHARED, fd.as_raw_fd(), 0)?;
    map.set(PAGE, 1);
    ok!(ftruncate(fd.as_raw_fd(), 4096));
    map.set(0, 1);
    dies_of(SIGBUS, || {
        map.get(PAGE);
    })
}

fn grown_file_appears_in_the_mapping() -> Outcome {
    let fd = sys::create("f")?;
    ok!(ftruncate(fd.as_raw_fd(), 10));
    let map = Map::new(4 * PAGE, RW, MAP_SHARED, fd.as_raw_fd(), 0)?;
    ok!(ftruncate(fd.as_raw_fd(), 4 * PAGE as i64));
    map.set(3 * PAGE, 9);
    let mut b = [0u8; 1];
    ok!(pread(fd.as_raw_fd(), b.as_mut_ptr().cast(), 1, 3 * PAGE as i64));
    same!(b[0], 9);
    Ok(())
}

fn read_only_memory_cannot_be_written() -> Outcome {
    let map = Map::new(PAGE, PROT_READ, ANON, -1, 0)?;
    dies_of(SIGSEGV, || map.set(0, 1))
}

fn no_access_memory_cannot_be_read() -> Outcome {
    let map = Map::new(PAGE, PROT_NONE, ANON, -1, 0)?;
    dies_of(SIGSEGV, || {
        map.get(0);
    })
}

static CODE: AtomicI32 = AtomicI32::new(-1);
static ADDR: AtomicUsize = AtomicUsize::new(0);
static FIX: AtomicUsize = AtomicUsize::new(0);

/// Notes the fault and makes the page accessible, so that the access is tried again.
extern "C" fn repair(_: i32, info: *mut siginfo_t, _: *mut c_void) {
    unsafe {
        CODE.store((*info).si_code, SeqCst);
        ADDR.store((*info).si_addr() as usize, SeqCst);
        let page = FIX.load(SeqCst) as *mut c_void;
        mmap(page, PAGE, RW, ANON | MAP_FIXED, -1, 0);
    }
}

fn fault_tells_address_and_code() -> Outcome {
    sys::on_signal(SIGSEGV, repair, 0)?;
    let map = Map::new(PAGE, PROT_READ, ANON, -1, 0)?;
    FIX.store(map.at(0) as usize, SeqCst);
    map.set(123, 1);
    same!((CODE.load(SeqCst), ADDR.load(SeqCst)), (2, map.at(123) as usize));
    ok!(munmap(map.at(0).cast(), PAGE));
    map.set(77, 1);
    same!((CODE.load(SeqCst), ADDR.load(SeqCst)), (1, map.at(77) as usize));
    Ok(())
}

fn mprotect_splits_and_restores() -> Outcome {
    let map = Map::anon(5 * PAGE)?;
    map.set(2 * PAGE, 5);
    ok!(mprotect(map.at(2 * PAGE).cast(), PAGE, PROT_READ));
    map.set(PAGE, 1);
    map.set(3 * PAGE, 1);
    same!(map.get(2 * PAGE), 5);
    dies_of(SIGSEGV, || map.set(2 * PAGE, 6))?;
    ok!(mprotect(map.at(0).cast(), 5 * PAGE, RW));
    map.set(2 * PAGE, 6);
    Ok(())
}

fn mprotect_errors() -> Outcome {
    let map = Map::anon(3 * PAGE)?;
    fails!(EINVAL, mprotect(map.at(1).cast(), PAGE, RW));
    ok!(munmap(map.at(PAGE).cast(), PAGE));
    fails!(ENOMEM, mprotect(map.at(0).cast(), 3 * PAGE, PROT_READ));
    ok!(mprotect(map.at(0).cast(), 0, PROT_READ));
    Ok(())
}

fn code_can_be_made_and_run() -> Outcome {
    let map = Map::anon(PAGE)?;
    // mov eax, 42; ret
    for (i, b) in [0xb8u8, 42, 0, 0, 0, 0xc3].into_iter().enumerate() {
        map.set(i, b);
    }
    ok!(mprotect(map.at(0).cast(), PAGE, PROT_READ | PROT_EXEC));
    let f: extern "C" fn() -> i32 = unsafe { std::mem::transmute(map.at(0)) };
    same!(f(), 42);
    ok!(mprotect(map.at(0).cast(), PAGE, PROT_READ | PROT_WRITE));
    dies_of(SIGSEGV, || {
        f();
    })
}

fn mremap_grows_and_moves() -> Outcome {
    let map = Map::anon(2 * PAGE)?;
    map.set(0, 1);
    map.set(PAGE, 2);
    // A neighbour keeps it from growing in place.
    let next = unsafe { mmap(map.at(2 * PAGE).cast(), PAGE, RW, ANON | MAP_FIXED_NOREPLACE, -1, 0) };
    let _ = next;
    fails!(ENOMEM, mremap(map.at(0).cast(), 2 * PAGE, 100 * PAGE, 0));
    let new = ok!(mremap(map.at(0).cast(), 2 * PAGE, 100 * PAGE, MREMAP_MAYMOVE)).cast::<u8>();
    unsafe {
        same!((*new, *new.add(PAGE), *new.add(50 * PAGE)), (1, 2, 0));
    }
    want!(new != map.at(0), "it did not move");
    dies_of(SIGSEGV, || {
        map.get(0);
    })
}

fn mremap_shrinks() -> Outcome {
    let map = Map::anon(4 * PAGE)?;
    map.set(0, 1);
    same!(ok!(mremap(map.at(0).cast(), 4 * PAGE, PAGE, 0)), map.at(0).cast());
    same!(map.get(0), 1);
    dies_of(SIGSEGV, || {
        map.get(2 * PAGE);
    })
}

fn mremap_to_a_fixed_place() -> Outcome {
    let from = Map::anon(PAGE)?;
    let to = Map::anon(3 * PAGE)?;
    from.set(5, 55);
    to.set(0, 1);
    let new = ok!(mremap(from.at(0).cast(), PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to.at(PAGE)));
    same!(new, to.at(PAGE).cast());
    same!((to.get(0), to.get(PAGE + 5)), (1, 55));
    Ok(())
}

fn mremap_errors() -> Outcome {
    let map = Map::anon(PAGE)?;
    fails!(EINVAL, mremap(map.at(1).cast(), PAGE, PAGE, 0));
    fails!(EINVAL, mremap(map.at(0).cast(), PAGE, 0, 0));
    fails!(EINVAL, mremap(map.at(0).cast(), PAGE, PAGE, MREMAP_FIXED, map.at(0)));
    ok!(munmap(map.at(0).cast(), PAGE));
    fails!(EFAULT, mremap(map.at(0).cast(), PAGE, 2 * PAGE, MREMAP_MAYMOVE));
    Ok(())
}

fn dontneed_zeroes_private_memory() -> Outcome {
    let map = Map::anon(3 * PAGE)?;
    for i in 0..3 {
        map.set(i * PAGE, 9);
    }
    ok!(madvise(map.at(PAGE).cast(), PAGE, MADV_DONTNEED));
    same!((map.get(0), map.get(PAGE), map.get(2 * PAGE)), (9, 0, 9));
    fails!(EINVAL, madvise(map.at(1).cast(), PAGE, MADV_DONTNEED));
    fails!(EINVAL, madvise(map.at(0).cast(), PAGE, 9999));
    Ok(())
}

fn dontneed_rereads_the_file() -> Outcome {
    sys::put("f", b"hello")?;
    let fd = sys::open("f", O_RDONLY)?;
    let map = Map::new(PAGE, RW, MAP_PRIVATE, fd.as_raw_fd(), 0)?;
    map.set(0, b'J');
    ok!(madvise(map.at(0).cast(), PAGE, MADV_DONTNEED));
    same!(map.get(0), b'h');
    Ok(())
}

fn dontfork_and_wipeonfork() -> Outcome {
    let gone = Map::anon(PAGE)?;
    let wiped = Map::anon(PAGE)?;
    gone.set(0, 1);
    wiped.set(0, 2);
    ok!(madvise(gone.at(0).cast(), PAGE, MADV_DONTFORK));
    ok!(madvise(wiped.at(0).cast(), PAGE, MADV_WIPEONFORK));
    fork(|| {
        same!(wiped.get(0), 0);
        dies_of(SIGSEGV, || {
            gone.get(0);
        })
    })?
    .ok()?;
    same!((gone.get(0), wiped.get(0)), (1, 2));
    ok!(madvise(gone.at(0).cast(), PAGE, MADV_DOFORK));
    fork(|| {
        same!(gone.get(0), 1);
        Ok(())
    })?
    .ok()
}

fn brk_grows_and_shrinks() -> Outcome {
    let start = ok!(syscall(SYS_brk, 0usize)) as usize;
    let top = start + 10 * PAGE;
    same!(ok!(syscall(SYS_brk, top)) as usize, top);
    unsafe {
        ((top - 1) as *mut u8).write_volatile(7);
    }
    same!(ok!(syscall(SYS_brk, start)) as usize, start);
    // An impossible break leaves it where it is.
    same!(ok!(syscall(SYS_brk, 1usize)) as usize, start);
    same!(ok!(syscall(SYS_brk, top)) as usize, top);
    same!(unsafe { ((top - 1) as *const u8).read_volatile() }, 0);
    ok!(syscall(SYS_brk, start));
    Ok(())
}

fn shared_anonymous_memory_crosses_fork() -> Outcome {
    let map = Map::shared(3 * PAGE)?;
    fork(|| {
        map.set(2 * PAGE, 42);
        Ok(())
    })?
    .ok()?;
    same!(map.get(2 * PAGE), 42);
    Ok(())
}

fn private_memory_parts_at_fork() -> Outcome {
    let map = Map::anon(PAGE)?;
    map.set(0, 1);
    fork(|| {
        same!(map.get(0), 1);
        map.set(0, 2);
        Ok(())
    })?
    .ok()?;
    same!(map.get(0), 1);
    Ok(())
}

fn msync_and_mincore() -> Outcome {
    let fd = sys::create("f")?;
    ok!(ftruncate(fd.as_raw_fd(), 8192));
    let map = Map::new(2 * PAGE, RW, MAP_SHARED, fd.as_raw_fd(), 0)?;
    map.set(0, 1);
    ok!(msync(map.at(0).cast(), 2 * PAGE, MS_SYNC));
    fails!(EINVAL, msync(map.at(0).cast(), PAGE, MS_SYNC | MS_ASYNC));
    fails!(EINVAL, msync(map.at(1).cast(), PAGE, MS_SYNC));
    let mut seen = [9u8; 2];
    ok!(mincore(map.at(0).cast(), 2 * PAGE, seen.as_mut_ptr()));
    same!(seen[0] & 1, 1);
    ok!(munmap(map.at(PAGE).cast(), PAGE));
    fails!(ENOMEM, mincore(map.at(0).cast(), 2 * PAGE, seen.as_mut_ptr()));
    fails!(ENOMEM, msync(map.at(0).cast(), 2 * PAGE, MS_SYNC));
    Ok(())
}

fn mlock_and_limit() -> Outcome {
    let map = Map::anon(4 * PAGE)?;
    ok!(mlock(map.at(0).cast(), PAGE));
    ok!(munlock(map.at(0).cast(), PAGE));
    sys::drop_root()?;
    let limit = rlimit { rlim_cur: PAGE as u64, rlim_max: PAGE as u64 };
    ok!(setrlimit(RLIMIT_MEMLOCK, &raw const limit));
    fails!(ENOMEM, mlock(map.at(0).cast(), 3 * PAGE));
    Ok(())
}

fn address_space_limit_is_enomem() -> Outcome {
    let limit = rlimit { rlim_cur: 1 << 30, rlim_max: 1 << 30 };
    ok!(setrlimit(RLIMIT_AS, &raw const limit));
    fails!(ENOMEM, mmap(null_mut(), 2 << 30, RW, ANON, -1, 0));
    Map::anon(1 << 20)?;
    Ok(())
}

#[inline(never)]
fn deep(n: usize) -> usize {
    let block = std::hint::black_box([n as u8; 4096]);
    if n == 0 { block[0] as usize } else { deep(n - 1) + usize::from(block[n % 4096] == n as u8) }
}

fn stack_grows_by_itself() -> Outcome {
    same!(deep(1000), 1000);
    Ok(())
}

fn stack_overflow_is_sigsegv() -> Outcome {
    dies_of(SIGSEGV, || {
        unsafe { signal(SIGSEGV, SIG_DFL) };
        std::hint::black_box(deep(1_000_000));
    })
}

fn many_mappings() -> Outcome {
    // Alternating rights keep neighbours from merging.
    let map = Map::anon(2000 * PAGE)?;
    for i in (0..2000).step_by(2) {
        ok!(mprotect(map.at(i * PAGE).cast(), PAGE, PROT_READ));
    }
    for i in (1..2000).step_by(2) {
        map.set(i * PAGE, 1);
    }
    ok!(mprotect(map.at(0).cast(), 2000 * PAGE, RW));
    map.set(1998 * PAGE, 1);
    Ok(())
}

fn munmap_while_a_thread_reads() -> Outcome {
    // A read into memory that goes away fails or succeeds, and nothing else.
    sys::put("f", &[1u8; 65536])?;
    let fd = sys::open("f", O_RDONLY)?;
    for _ in 0..50 {
        let map = Map::anon(16 * PAGE)?;
        let (at, raw) = (map.at(0) as usize, fd.as_raw_fd());
        let thread = std::thread::spawn(move || unsafe { pread(raw, at as *mut c_void, 65536, 0) });
        ok!(mprotect(map.at(8 * PAGE).cast(), 8 * PAGE, PROT_NONE));
        let n = thread.join().map_err(|_| "the reader panicked".to_string())?;
        want!(n == -1 || (0..=65536).contains(&n), "pread gave {n}");
    }
    Ok(())
}

fn populate_and_noreserve() -> Outcome {
    let map = Map::new(64 * PAGE, RW, ANON | MAP_POPULATE, -1, 0)?;
    same!(map.get(63 * PAGE), 0);
    let big = Map::new(1 << 36, RW, ANON | MAP_NORESERVE, -1, 0)?;
    big.set(1 << 35, 3);
    same!(big.get(1 << 35), 3);
    Ok(())
}
