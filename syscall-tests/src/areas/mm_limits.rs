//! Memory: limits, locking, seals, all forms of mremap(2) and madvise(2), growing stacks, what /proc says of memory.

use crate::harness::Outcome;
use crate::sys::{self, Map, PAGE, dies_of, fork};
use libc::*;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::null_mut;

cases![
    fixed_noreplace_is_exact,
    map_32bit_is_low,
    map_shared_validate_checks_flags,
    map_sync_needs_dax,
    hugetlb_without_huge_pages_is_enomem,
    growsdown_grows_to_a_touch,
    growsdown_stops_at_a_neighbour,
    prot_growsdown_reaches_the_start,
    populated_memory_is_resident,
    locked_mapping_is_resident_and_counted,
    mlock_without_a_limit_fails,
    mlock_rounds_and_needs_mappings,
    mlock_counts_a_page_once,
    mlock2_on_fault,
    mlockall_and_future_mappings,
    munlock_gives_back,
    locks_do_not_cross_fork,
    mremap_of_size_zero_doubles_shared_memory,
    mremap_dontunmap_leaves_an_empty_source,
    mremap_fixed_replaces_the_target,
    mremap_flags_are_checked,
    mremap_across_mappings_is_efault,
    mremap_grows_in_place_where_there_is_room,
    mremap_keeps_file_offsets,
    mprotect_splits_are_seen_in_maps,
    mprotect_over_a_hole_changes_what_comes_before,
    mprotect_of_a_read_only_file_is_eacces,
    madvise_errors,
    madvise_free_and_populate,
    madvise_remove_punches_the_file,
    madvise_dontneed_of_locked_memory,
    process_madvise_and_its_errors,
    data_limit_stops_brk_and_mmap,
    stack_limit_stops_the_stack,
    address_space_limit_stops_mremap,
    map_count_is_limited,
    brk_below_the_start_changes_nothing,
    remap_file_pages_shuffles,
    msync_errors,
    mincore_tells_what_is_there,
    process_vm_copies,
    process_vm_errors,
    process_vm_is_partial,
    process_vm_moves_much,
    text_that_a_static_program_maps_is_its_file,
    pkeys_without_keys,
    userfaultfd_is_refused,
    maxrss_grows_with_memory,
    rss_follows_touch_and_dontneed,
    statm_matches_status,
    smaps_names_its_fields,
    smaps_rollup_sums,
    pagemap_or_a_clear_errno,
    vm_lck_follows_mlock,
];

const RW: i32 = PROT_READ | PROT_WRITE;
const ANON: i32 = MAP_PRIVATE | MAP_ANONYMOUS;
const MREMAP_DONTUNMAP: i32 = 4;

fn fixed_noreplace_is_exact() -> Outcome {
    let map = Map::anon(4 * PAGE)?;
    ok!(munmap(map.at(PAGE).cast(), PAGE));
    let flags = ANON | MAP_FIXED_NOREPLACE;
    fails!(EEXIST, mmap(map.at(0).cast(), PAGE, RW, flags, -1, 0));
    fails!(EEXIST, mmap(map.at(PAGE).cast(), 2 * PAGE, RW, flags, -1, 0));
    same!(ok!(mmap(map.at(PAGE).cast(), PAGE, RW, flags, -1, 0)), map.at(PAGE).cast());
    fails!(EINVAL, mmap(map.at(1).cast(), PAGE, RW, flags, -1, 0));
    Ok(())
}

fn map_32bit_is_low() -> Outcome {
    let map = Map::new(3 * PAGE, RW, ANON | MAP_32BIT, -1, 0)?;
    want!((map.ptr as u64) < 1 << 31, "mapped at {:?}", map.ptr);
    map.set(0, 1);
    Ok(())
}

fn map_shared_validate_checks_flags() -> Outcome {
    let fd = sys::create("f")?;
    ok!(ftruncate(fd.as_raw_fd(), PAGE as i64));
    let map = Map::new(PAGE, RW, MAP_SHARED_VALIDATE, fd.as_raw_fd(), 0)?;
    map.set(0, 7);
    fails!(EOPNOTSUPP, mmap(null_mut(), PAGE, RW, MAP_SHARED_VALIDATE | 1 << 23, fd.as_raw_fd(), 0));
    fails!(EINVAL, mmap(null_mut(), PAGE, RW, MAP_ANONYMOUS, -1, 0));
    Ok(())
}

fn map_sync_needs_dax() -> Outcome {
    let fd = sys::create("f")?;
    fails!(EOPNOTSUPP, mmap(null_mut(), PAGE, RW, MAP_SHARED_VALIDATE | MAP_SYNC, fd.as_raw_fd(), 0));
    Ok(())
}

fn hugetlb_without_huge_pages_is_enomem() -> Outcome {
    let total = sys::slurp("/proc/sys/vm/nr_hugepages").unwrap_or_else(|_| "0".into());
    if total.trim() != "0" {
        skip!("the host has huge pages set aside");
    }
    fails!(ENOMEM, mmap(null_mut(), 2 << 20, RW, ANON | MAP_HUGETLB, -1, 0));
    let fd = sys::create("f")?;
    fails!(EINVAL, mmap(null_mut(), 2 << 20, RW, MAP_PRIVATE | MAP_HUGETLB, fd.as_raw_fd(), 0));
    Ok(())
}

/// A growing page with `room` free pages below.
fn growing(room: usize) -> Result<(Map, *mut u8), String> {
    let map = Map::new((room + 1) * PAGE, PROT_NONE, ANON, -1, 0)?;
    let at = map.at(room * PAGE);
    ok!(munmap(map.ptr.cast(), (room + 1) * PAGE));
    let flags = ANON | MAP_FIXED_NOREPLACE | MAP_GROWSDOWN;
    ok!(mmap(at.cast(), PAGE, RW, flags, -1, 0));
    Ok((map, at))
}

fn growsdown_grows_to_a_touch() -> Outcome {
    let (_map, at) = growing(1024)?;
    for page in [1, 2, 60] {
        unsafe { at.wrapping_sub(page * PAGE).write_volatile(page as u8) };
        same!(unsafe { at.wrapping_sub(page * PAGE).read_volatile() }, page as u8);
    }
    fails!(EINVAL, mmap(null_mut(), PAGE, RW, MAP_SHARED | MAP_ANONYMOUS | MAP_GROWSDOWN, -1, 0));
    Ok(())
}

fn growsdown_stops_at_a_neighbour() -> Outcome {
    let (_map, at) = growing(1024)?;
    let flags = ANON | MAP_FIXED_NOREPLACE;
    ok!(mmap(at.wrapping_sub(300 * PAGE).cast(), PAGE, RW, flags, -1, 0));
    // 256 pages stay free above the neighbour.
    unsafe { at.wrapping_sub(40 * PAGE).write_volatile(1) };
    dies_of(SIGSEGV, || unsafe { at.wrapping_sub(60 * PAGE).write_volatile(1) })
}

fn prot_growsdown_reaches_the_start() -> Outcome {
    let (_map, at) = growing(1024)?;
    unsafe { at.wrapping_sub(2 * PAGE).write_volatile(1) };
    const PROT_GROWSDOWN: i32 = 0x0100_0000;
    ok!(mprotect(at.cast(), PAGE, PROT_READ | PROT_GROWSDOWN));
    dies_of(SIGSEGV, || unsafe { at.wrapping_sub(2 * PAGE).write_volatile(1) })?;
    let plain = Map::anon(PAGE)?;
    fails!(EINVAL, mprotect(plain.ptr.cast(), PAGE, PROT_READ | PROT_GROWSDOWN));
    fails!(EINVAL, mprotect(plain.ptr.cast(), PAGE, PROT_READ | PROT_GROWSDOWN | PROT_GROWSDOWN << 1));
    Ok(())
}

fn resident(map: &Map) -> Result<Vec<bool>, String> {
    let mut vec = vec![0u8; map.len / PAGE];
    ok!(mincore(map.ptr.cast(), map.len, vec.as_mut_ptr()));
    Ok(vec.iter().map(|b| b & 1 == 1).collect())
}

fn populated_memory_is_resident() -> Outcome {
    let map = Map::new(16 * PAGE, RW, ANON | MAP_POPULATE, -1, 0)?;
    want!(resident(&map)?.iter().all(|r| *r), "not resident");
    Ok(())
}

fn locked_mapping_is_resident_and_counted() -> Outcome {
    let before = status_kb("VmLck")?;
    let map = Map::new(16 * PAGE, RW, ANON | MAP_LOCKED, -1, 0)?;
    want!(resident(&map)?.iter().all(|r| *r), "not resident");
    same!(status_kb("VmLck")? - before, 64);
    Ok(())
}

fn limit(resource: u32, bytes: u64) -> Outcome {
    let l = rlimit { rlim_cur: bytes, rlim_max: bytes };
    ok!(setrlimit(resource, &raw const l));
    Ok(())
}

fn mlock_without_a_limit_fails() -> Outcome {
    let map = Map::anon(4 * PAGE)?;
    fork(|| {
        limit(RLIMIT_MEMLOCK, 0)?;
        sys::drop_root()?;
        fails!(EPERM, mlock(map.ptr.cast(), PAGE));
        fails!(EPERM, mlockall(MCL_CURRENT));
        fails!(EPERM, mmap(null_mut(), PAGE, RW, ANON | MAP_LOCKED, -1, 0));
        ok!(munlock(map.ptr.cast(), PAGE));
        ok!(munlockall());
        Ok(())
    })?
    .ok()?;
    fork(|| {
        limit(RLIMIT_MEMLOCK, 2 * PAGE as u64)?;
        sys::drop_root()?;
        fails!(ENOMEM, mlock(map.ptr.cast(), 3 * PAGE));
        ok!(mlock(map.ptr.cast(), 2 * PAGE));
        fails!(EAGAIN, mmap(null_mut(), PAGE, RW, ANON | MAP_LOCKED, -1, 0));
        fails!(ENOMEM, mlockall(MCL_CURRENT));
        Ok(())
    })?
    .ok()
}

fn mlock_rounds_and_needs_mappings() -> Outcome {
    let map = Map::anon(4 * PAGE)?;
    ok!(munmap(map.at(2 * PAGE).cast(), PAGE));
    ok!(mlock(map.at(100).cast(), 10));
    fails!(ENOMEM, mlock(map.ptr.cast(), 4 * PAGE));
    fails!(ENOMEM, munlock(map.ptr.cast(), 4 * PAGE));
    // Rounded up, this length is none.
    ok!(mlock(map.ptr.cast(), usize::MAX));
    fails!(EINVAL, mlock(map.ptr.cast(), usize::MAX - 2 * PAGE));
    ok!(mlock(map.ptr.cast(), 0));
    Ok(())
}

fn mlock_counts_a_page_once() -> Outcome {
    let before = status_kb("VmLck")?;
    let map = Map::anon(8 * PAGE)?;
    ok!(mlock(map.ptr.cast(), 4 * PAGE));
    ok!(mlock(map.at(2 * PAGE).cast(), 4 * PAGE));
    same!(status_kb("VmLck")? - before, 24);
    ok!(munlock(map.ptr.cast(), 8 * PAGE));
    same!(status_kb("VmLck")?, before);
    Ok(())
}

fn mlock2_on_fault() -> Outcome {
    let map = Map::anon(4 * PAGE)?;
    ok!(syscall(SYS_mlock2, map.ptr, 4 * PAGE, 1));
    want!(resident(&map)?.iter().all(|r| !*r), "resident before the first touch");
    fails!(EINVAL, syscall(SYS_mlock2, map.ptr, PAGE, 2));
    ok!(syscall(SYS_mlock2, map.ptr, 2 * PAGE, 0));
    same!(resident(&map)?, [true, true, false, false]);
    Ok(())
}

fn mlockall_and_future_mappings() -> Outcome {
    fails!(EINVAL, mlockall(0));
    fails!(EINVAL, mlockall(8));
    fails!(EINVAL, mlockall(4));
    ok!(mlockall(MCL_FUTURE));
    let map = Map::anon(4 * PAGE)?;
    want!(resident(&map)?.iter().all(|r| *r), "a future mapping is not resident");
    want!(status_kb("VmLck")? >= 16, "not counted");
    ok!(munlockall());
    same!(status_kb("VmLck")?, 0);
    let map = Map::anon(4 * PAGE)?;
    want!(resident(&map)?.iter().all(|r| !*r), "resident after munlockall");
    Ok(())
}

fn munlock_gives_back() -> Outcome {
    let map = Map::anon(4 * PAGE)?;
    fork(|| {
        limit(RLIMIT_MEMLOCK, 2 * PAGE as u64)?;
        sys::drop_root()?;
        for _ in 0..3 {
            ok!(mlock(map.ptr.cast(), 2 * PAGE));
            ok!(munlock(map.ptr.cast(), 2 * PAGE));
        }
        ok!(mlock(map.at(2 * PAGE).cast(), 2 * PAGE));
        ok!(munmap(map.at(2 * PAGE).cast(), 2 * PAGE));
        ok!(mlock(map.ptr.cast(), 2 * PAGE));
        Ok(())
    })?
    .ok()
}

fn locks_do_not_cross_fork() -> Outcome {
    let map = Map::anon(4 * PAGE)?;
    ok!(mlock(map.ptr.cast(), 4 * PAGE));
    fork(|| {
        same!(status_kb("VmLck")?, 0);
        Ok(())
    })?
    .ok()
}

fn mremap_of_size_zero_doubles_shared_memory() -> Outcome {
    let map = Map::shared(2 * PAGE)?;
    map.set(PAGE, 5);
    let twin = ok!(mremap(map.ptr.cast(), 0, 2 * PAGE, MREMAP_MAYMOVE)).cast::<u8>();
    want!(twin != map.ptr, "the twin is the original");
    same!(unsafe { twin.add(PAGE).read_volatile() }, 5);
    unsafe { twin.write_volatile(9) };
    same!(map.get(0), 9);
    let private = Map::anon(PAGE)?;
    fails!(EINVAL, mremap(private.ptr.cast(), 0, PAGE, MREMAP_MAYMOVE));
    Ok(())
}

fn mremap_dontunmap_leaves_an_empty_source() -> Outcome {
    let map = Map::anon(3 * PAGE)?;
    map.set(PAGE, 5);
    let to =
        ok!(mremap(map.ptr.cast(), 3 * PAGE, 3 * PAGE, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, 0)).cast::<u8>();
    want!(to != map.ptr, "it has not moved");
    same!((unsafe { to.add(PAGE).read_volatile() }, map.get(PAGE)), (5, 0));
    map.set(0, 1);
    same!(unsafe { to.read_volatile() }, 0);
    fails!(EINVAL, mremap(map.ptr.cast(), 3 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, 0));
    fails!(EINVAL, mremap(map.ptr.cast(), 3 * PAGE, 3 * PAGE, MREMAP_DONTUNMAP, 0));
    Ok(())
}

fn mremap_fixed_replaces_the_target() -> Outcome {
    let (from, to) = (Map::anon(2 * PAGE)?, Map::anon(4 * PAGE)?);
    from.set(0, 1);
    to.set(PAGE, 2);
    to.set(3 * PAGE, 3);
    let flags = MREMAP_MAYMOVE | MREMAP_FIXED;
    let at = ok!(mremap(from.ptr.cast(), 2 * PAGE, 3 * PAGE, flags, to.at(0)));
    same!(at, to.ptr.cast());
    same!((to.get(0), to.get(PAGE), to.get(2 * PAGE), to.get(3 * PAGE)), (1, 0, 0, 3));
    dies_of(SIGSEGV, || from.set(0, 1))?;
    // Smaller at the new place: what is left over at the old one is gone.
    ok!(mremap(to.ptr.cast(), 3 * PAGE, PAGE, flags, from.at(0)));
    same!(from.get(0), 1);
    dies_of(SIGSEGV, || to.set(PAGE, 1))
}

fn mremap_flags_are_checked() -> Outcome {
    let map = Map::anon(4 * PAGE)?;
    fails!(EINVAL, mremap(map.ptr.cast(), PAGE, 2 * PAGE, MREMAP_FIXED, map.at(2 * PAGE)));
    fails!(EINVAL, mremap(map.ptr.cast(), PAGE, 2 * PAGE, 64));
    fails!(EINVAL, mremap(map.at(1).cast(), PAGE, 2 * PAGE, MREMAP_MAYMOVE));
    fails!(EINVAL, mremap(map.ptr.cast(), PAGE, 0, MREMAP_MAYMOVE));
    let flags = MREMAP_MAYMOVE | MREMAP_FIXED;
    fails!(EINVAL, mremap(map.ptr.cast(), 2 * PAGE, 2 * PAGE, flags, map.at(PAGE)));
    fails!(EINVAL, mremap(map.ptr.cast(), PAGE, PAGE, flags, map.at(2 * PAGE + 1)));
    Ok(())
}

fn mremap_across_mappings_is_efault() -> Outcome {
    let map = Map::anon(4 * PAGE)?;
    ok!(mprotect(map.at(PAGE).cast(), PAGE, PROT_READ));
    fails!(EFAULT, mremap(map.ptr.cast(), 2 * PAGE, 8 * PAGE, MREMAP_MAYMOVE));
    ok!(munmap(map.at(3 * PAGE).cast(), PAGE));
    fails!(EFAULT, mremap(map.at(3 * PAGE).cast(), PAGE, 2 * PAGE, MREMAP_MAYMOVE));
    Ok(())
}

fn mremap_grows_in_place_where_there_is_room() -> Outcome {
    let map = Map::anon(8 * PAGE)?;
    map.set(0, 3);
    ok!(munmap(map.at(2 * PAGE).cast(), 4 * PAGE));
    same!(ok!(mremap(map.ptr.cast(), 2 * PAGE, 4 * PAGE, 0)), map.ptr.cast());
    map.set(3 * PAGE, 1);
    fails!(ENOMEM, mremap(map.ptr.cast(), 4 * PAGE, 16 * PAGE, 0));
    let moved = ok!(mremap(map.ptr.cast(), 4 * PAGE, 16 * PAGE, MREMAP_MAYMOVE)).cast::<u8>();
    same!(unsafe { moved.read_volatile() }, 3);
    Ok(())
}

fn mremap_keeps_file_offsets() -> Outcome {
    let fd = sys::create("f")?;
    for page in 0..8u8 {
        sys::fd_write(&fd, &[page; PAGE])?;
    }
    let map = Map::new(4 * PAGE, RW, MAP_SHARED, fd.as_raw_fd(), 2 * PAGE as i64)?;
    same!(map.get(PAGE), 3);
    let moved = ok!(mremap(map.at(PAGE).cast(), 3 * PAGE, 5 * PAGE, MREMAP_MAYMOVE)).cast::<u8>();
    for page in 0..5 {
        same!(unsafe { moved.add(page * PAGE).read_volatile() }, 3 + page as u8);
    }
    unsafe { moved.add(4 * PAGE).write_volatile(77) };
    let mut byte = [0u8];
    ok!(pread(fd.as_raw_fd(), byte.as_mut_ptr().cast(), 1, 7 * PAGE as i64));
    same!(byte[0], 77);
    Ok(())
}

/// The `rwxp` columns of the mappings in a range.
fn access_in(start: *mut u8, len: usize) -> Result<Vec<(u64, u64, String)>, String> {
    let (low, high) = (start as u64, start as u64 + len as u64);
    let mut out = Vec::new();
    for line in sys::slurp("/proc/self/maps")?.lines() {
        let mut words = line.split_whitespace();
        let (range, access) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
        let (a, b) = range.split_once('-').ok_or("no range")?;
        let a = u64::from_str_radix(a, 16).map_err(|e| e.to_string())?;
        let b = u64::from_str_radix(b, 16).map_err(|e| e.to_string())?;
        if a < high && low < b {
            out.push((a.max(low) - low, b.min(high) - low, access.to_owned()));
        }
    }
    Ok(out)
}

fn mprotect_splits_are_seen_in_maps() -> Outcome {
    let map = Map::anon(6 * PAGE)?;
    let page = PAGE as u64;
    ok!(mprotect(map.at(2 * PAGE).cast(), PAGE, PROT_READ));
    ok!(mprotect(map.at(3 * PAGE).cast(), PAGE, PROT_NONE));
    let own = access_in(map.ptr, map.len)?;
    let parts: Vec<_> = own.iter().map(|(a, b, s)| (a / page, b / page, s.as_str())).collect();
    same!(parts, [(0, 2, "rw-p"), (2, 3, "r--p"), (3, 4, "---p"), (4, 6, "rw-p")]);
    ok!(mprotect(map.ptr.cast(), map.len, RW));
    same!(access_in(map.ptr, map.len)?.len(), 1);
    Ok(())
}

fn mprotect_over_a_hole_changes_what_comes_before() -> Outcome {
    let map = Map::anon(4 * PAGE)?;
    ok!(munmap(map.at(2 * PAGE).cast(), PAGE));
    fails!(ENOMEM, mprotect(map.ptr.cast(), 4 * PAGE, PROT_READ));
    dies_of(SIGSEGV, || map.set(PAGE, 1))?;
    map.set(3 * PAGE, 1);
    fails!(EINVAL, mprotect(map.at(1).cast(), PAGE, PROT_READ));
    fails!(EINVAL, mprotect(map.ptr.cast(), PAGE, 0x40));
    ok!(mprotect(map.ptr.cast(), 0, PROT_READ));
    Ok(())
}

fn mprotect_of_a_read_only_file_is_eacces() -> Outcome {
    sys::put("f", b"x")?;
    let fd = sys::open("f", O_RDONLY)?;
    let shared = Map::new(PAGE, PROT_READ, MAP_SHARED, fd.as_raw_fd(), 0)?;
    fails!(EACCES, mprotect(shared.ptr.cast(), PAGE, RW));
    let private = Map::new(PAGE, PROT_READ, MAP_PRIVATE, fd.as_raw_fd(), 0)?;
    ok!(mprotect(private.ptr.cast(), PAGE, RW));
    private.set(0, 1);
    Ok(())
}

fn madvise_errors() -> Outcome {
    let map = Map::anon(4 * PAGE)?;
    fails!(EINVAL, madvise(map.at(1).cast(), PAGE, MADV_DONTNEED));
    fails!(EINVAL, madvise(map.ptr.cast(), PAGE, 999));
    fails!(EINVAL, madvise(map.ptr.cast(), usize::MAX - 100, MADV_DONTNEED));
    ok!(munmap(map.at(PAGE).cast(), PAGE));
    map.set(2 * PAGE, 1);
    fails!(ENOMEM, madvise(map.ptr.cast(), 4 * PAGE, MADV_DONTNEED));
    // What lies behind the hole is done all the same.
    same!(map.get(2 * PAGE), 0);
    ok!(madvise(map.ptr.cast(), 0, MADV_DONTNEED));
    fails!(EINVAL, madvise(map.ptr.cast(), PAGE, MADV_REMOVE));
    Ok(())
}

fn madvise_free_and_populate() -> Outcome {
    let map = Map::anon(4 * PAGE)?;
    map.set(0, 1);
    ok!(madvise(map.ptr.cast(), PAGE, MADV_FREE));
    map.set(0, 2);
    same!(map.get(0), 2);
    const POPULATE_READ: i32 = 22;
    const POPULATE_WRITE: i32 = 23;
    ok!(madvise(map.ptr.cast(), 4 * PAGE, POPULATE_WRITE));
    want!(resident(&map)?.iter().all(|r| *r), "not populated");
    ok!(mprotect(map.at(PAGE).cast(), PAGE, PROT_READ));
    fails!(EINVAL, madvise(map.ptr.cast(), 2 * PAGE, POPULATE_WRITE));
    ok!(munmap(map.at(2 * PAGE).cast(), PAGE));
    fails!(ENOMEM, madvise(map.ptr.cast(), 4 * PAGE, POPULATE_READ));
    sys::put("f", &[])?;
    let fd = sys::open("f", O_RDONLY)?;
    let file = Map::new(PAGE, PROT_READ, MAP_SHARED, fd.as_raw_fd(), 0)?;
    fails!(EFAULT, madvise(file.ptr.cast(), PAGE, POPULATE_READ));
    fails!(EINVAL, madvise(file.ptr.cast(), PAGE, MADV_FREE));
    Ok(())
}

fn memfd(flags: u32) -> Result<OwnedFd, String> {
    Ok(sys::own(ok!(memfd_create(c"m".as_ptr(), flags))))
}

fn madvise_remove_punches_the_file() -> Outcome {
    let fd = memfd(0)?;
    ok!(ftruncate(fd.as_raw_fd(), 2 * PAGE as i64));
    let map = Map::new(2 * PAGE, RW, MAP_SHARED, fd.as_raw_fd(), 0)?;
    let twin = Map::new(2 * PAGE, RW, MAP_SHARED, fd.as_raw_fd(), 0)?;
    map.set(0, 1);
    map.set(PAGE, 2);
    ok!(madvise(map.ptr.cast(), PAGE, MADV_REMOVE));
    same!((map.get(0), twin.get(0), twin.get(PAGE)), (0, 0, 2));
    let read_only = sys::open(&format!("/proc/self/fd/{}", fd.as_raw_fd()), O_RDONLY)?;
    let reader = Map::new(PAGE, PROT_READ, MAP_SHARED, read_only.as_raw_fd(), 0)?;
    fails!(EACCES, madvise(reader.ptr.cast(), PAGE, MADV_REMOVE));
    Ok(())
}

fn madvise_dontneed_of_locked_memory() -> Outcome {
    let map = Map::anon(PAGE)?;
    map.set(0, 1);
    ok!(mlock(map.ptr.cast(), PAGE));
    fails!(EINVAL, madvise(map.ptr.cast(), PAGE, MADV_DONTNEED));
    same!(map.get(0), 1);
    ok!(madvise(map.ptr.cast(), PAGE, 24));
    same!(map.get(0), 0);
    Ok(())
}

fn process_madvise_and_its_errors() -> Outcome {
    let map = Map::anon(2 * PAGE)?;
    let me = ok!(syscall(SYS_pidfd_open, getpid(), 0)) as i32;
    let v = iovec { iov_base: map.ptr.cast(), iov_len: 2 * PAGE };
    const COLD: i32 = 20;
    same!(ok!(syscall(SYS_process_madvise, me, &raw const v, 1, COLD, 0)), 2 * PAGE as i64);
    same!(ok!(syscall(SYS_process_madvise, me, &raw const v, 1, MADV_WILLNEED, 0)), 2 * PAGE as i64);
    fails!(EINVAL, syscall(SYS_process_madvise, me, &raw const v, 1, COLD, 1));
    fails!(EBADF, syscall(SYS_process_madvise, -1, &raw const v, 1, COLD, 0));
    fails!(EINVAL, syscall(SYS_process_madvise, me, &raw const v, 5000, COLD, 0));
    let bad = iovec { iov_base: map.at(1).cast(), iov_len: PAGE };
    fails!(EINVAL, syscall(SYS_process_madvise, me, &raw const bad, 1, COLD, 0));
    Ok(())
}

fn data_limit_stops_brk_and_mmap() -> Outcome {
    fork(|| {
        let data = status_kb("VmData")? * 1024;
        limit(RLIMIT_DATA, data + 64 * PAGE as u64)?;
        let at = ok!(mmap(null_mut(), 32 * PAGE, RW, ANON, -1, 0));
        fails!(ENOMEM, mmap(null_mut(), 64 * PAGE, RW, ANON, -1, 0));
        ok!(munmap(at, 32 * PAGE));
        // Memory that is not writable does not count, until it becomes so.
        let at = ok!(mmap(null_mut(), 128 * PAGE, PROT_READ, ANON, -1, 0));
        fails!(ENOMEM, mprotect(at, 128 * PAGE, RW));
        let now = ok!(syscall(SYS_brk, 0)) as usize;
        same!(ok!(syscall(SYS_brk, now + (1 << 30))) as usize, now);
        Ok(())
    })?
    .ok()
}

fn recurse(depth: usize) -> usize {
    let page = std::hint::black_box([depth as u8; 4096]);
    if depth == 0 { page[7] as usize } else { recurse(depth - 1) + page[9] as usize }
}

fn stack_limit_stops_the_stack() -> Outcome {
    limit(RLIMIT_STACK, 1 << 20)?;
    fork(|| {
        want!(recurse(100) > 0, "a shallow stack");
        Ok(())
    })?
    .ok()?;
    dies_of(SIGSEGV, || {
        // Rust reports an overflow in its own handler with SIGABRT.
        unsafe { signal(SIGSEGV, SIG_DFL) };
        std::hint::black_box(recurse(2000));
    })
}

fn address_space_limit_stops_mremap() -> Outcome {
    let map = Map::anon(PAGE)?;
    fork(|| {
        limit(RLIMIT_AS, status_kb("VmSize")? * 1024 + 64 * PAGE as u64)?;
        fails!(ENOMEM, mremap(map.ptr.cast(), PAGE, 256 * PAGE, MREMAP_MAYMOVE));
        fails!(ENOMEM, mmap(null_mut(), 256 * PAGE, PROT_NONE, ANON | MAP_NORESERVE, -1, 0));
        let now = ok!(syscall(SYS_brk, 0)) as usize;
        same!(ok!(syscall(SYS_brk, now + 256 * PAGE)) as usize, now);
        Ok(())
    })?
    .ok()
}

fn map_count_is_limited() -> Outcome {
    fork(|| {
        // Every other page of one large mapping has another protection: each call adds two mappings.
        let pages = 140_000;
        let at = ok!(mmap(null_mut(), pages * PAGE, PROT_NONE, ANON | MAP_NORESERVE, -1, 0)).cast::<u8>();
        let mut made = 0;
        for page in (1..pages).step_by(2) {
            if unsafe { mprotect(at.wrapping_add(page * PAGE).cast(), PAGE, PROT_READ) } != 0 {
                same!(crate::harness::errno(), ENOMEM);
                break;
            }
            made += 1;
        }
        want!((32_000..33_000).contains(&made), "{made} calls before the limit");
        // Whole mappings can be unmapped at the limit.
        ok!(munmap(at.cast(), pages * PAGE));
        Map::anon(PAGE).map(drop)
    })?
    .ok()
}

fn brk_below_the_start_changes_nothing() -> Outcome {
    let now = ok!(syscall(SYS_brk, 0)) as usize;
    same!(ok!(syscall(SYS_brk, 4096)) as usize, now);
    same!(ok!(syscall(SYS_brk, usize::MAX)) as usize, now);
    same!(ok!(syscall(SYS_brk, now + 1)) as usize, now + 1);
    same!(ok!(syscall(SYS_brk, now)) as usize, now);
    Ok(())
}

fn remap_file_pages_shuffles() -> Outcome {
    let fd = memfd(0)?;
    for page in 0..4u8 {
        sys::fd_write(&fd, &[page; PAGE])?;
    }
    let map = Map::new(4 * PAGE, RW, MAP_SHARED, fd.as_raw_fd(), 0)?;
    ok!(syscall(SYS_remap_file_pages, map.at(0), PAGE, 0, 3, 0));
    same!((map.get(0), map.get(PAGE)), (3, 1));
    fails!(EINVAL, syscall(SYS_remap_file_pages, map.at(0), PAGE, 1, 3, 0));
    let anon = Map::anon(PAGE)?;
    fails!(EINVAL, syscall(SYS_remap_file_pages, anon.at(0), PAGE, 0, 0, 0));
    Ok(())
}

fn msync_errors() -> Outcome {
    let map = Map::shared(4 * PAGE)?;
    ok!(msync(map.ptr.cast(), 4 * PAGE, MS_SYNC));
    fails!(EINVAL, msync(map.ptr.cast(), PAGE, MS_SYNC | MS_ASYNC));
    fails!(EINVAL, msync(map.ptr.cast(), PAGE, 64));
    fails!(EINVAL, msync(map.at(1).cast(), PAGE, MS_SYNC));
    ok!(mlock(map.ptr.cast(), PAGE));
    fails!(EBUSY, msync(map.ptr.cast(), PAGE, MS_INVALIDATE));
    ok!(munmap(map.at(PAGE).cast(), PAGE));
    fails!(ENOMEM, msync(map.ptr.cast(), 4 * PAGE, MS_ASYNC));
    Ok(())
}

fn mincore_tells_what_is_there() -> Outcome {
    let map = Map::anon(4 * PAGE)?;
    same!(resident(&map)?, [false; 4]);
    map.set(PAGE, 1);
    same!(resident(&map)?, [false, true, false, false]);
    ok!(madvise(map.at(PAGE).cast(), PAGE, MADV_DONTNEED));
    same!(resident(&map)?, [false; 4]);
    let mut vec = [0u8; 4];
    fails!(EINVAL, mincore(map.at(1).cast(), PAGE, vec.as_mut_ptr()));
    fails!(EFAULT, mincore(map.ptr.cast(), PAGE, 8 as *mut u8));
    ok!(munmap(map.at(2 * PAGE).cast(), PAGE));
    fails!(ENOMEM, mincore(map.ptr.cast(), 4 * PAGE, vec.as_mut_ptr()));
    Ok(())
}

fn vm(nr: i64, pid: i32, local: &mut [u8], remote: &[(usize, usize)], flags: u64) -> i64 {
    let l = iovec { iov_base: local.as_mut_ptr().cast(), iov_len: local.len() };
    let r: Vec<iovec> =
        remote.iter().map(|(at, len)| iovec { iov_base: *at as *mut c_void, iov_len: *len }).collect();
    unsafe { syscall(nr, pid, &raw const l, 1, r.as_ptr(), r.len(), flags) }
}

fn process_vm_copies() -> Outcome {
    let map = Map::anon(2 * PAGE)?;
    map.set(PAGE - 1, 1);
    map.set(PAGE, 2);
    let (rd, wr) = sys::pipe()?;
    let kid = fork(|| {
        sys::fd_read(&rd, 1)?;
        same!((map.get(4), map.get(PAGE + 5)), (b'a', b'b'));
        Ok(())
    })?;
    let at = map.ptr as usize;
    let mut buf = [9u8; 4];
    same!(ok!(vm(SYS_process_vm_readv, kid.pid, &mut buf, &[(at + PAGE - 1, 2), (at, 2)], 0)), 4);
    same!(buf, [1, 2, 0, 0]);
    let mut out = *b"ab";
    same!(ok!(vm(SYS_process_vm_writev, kid.pid, &mut out, &[(at + 4, 1), (at + PAGE + 5, 1)], 0)), 2);
    sys::fd_write(&wr, b"x")?;
    kid.ok()?;
    same!(map.get(4), 0);
    Ok(())
}

fn process_vm_errors() -> Outcome {
    let map = Map::guarded()?;
    let at = map.ptr as usize;
    let me = ok!(getpid());
    let mut buf = [0u8; 8];
    fails!(EINVAL, vm(SYS_process_vm_readv, me, &mut buf, &[(at, 8)], 1));
    fails!(EFAULT, vm(SYS_process_vm_readv, me, &mut buf, &[(8, 8)], 0));
    fails!(EFAULT, vm(SYS_process_vm_readv, me, &mut buf, &[(at + PAGE, 8)], 0));
    let gone = fork(|| Ok(()))?;
    let pid = gone.pid;
    gone.ok()?;
    fails!(ESRCH, vm(SYS_process_vm_readv, pid, &mut buf, &[(at, 8)], 0));
    // Protection holds here: this is no debugger's door.
    let text = process_vm_errors as fn() -> Outcome as usize;
    fails!(EFAULT, vm(SYS_process_vm_writev, me, &mut buf, &[(text, 8)], 0));
    same!(ok!(vm(SYS_process_vm_readv, me, &mut [], &[(8, 8)], 0)), 0);
    fork(|| {
        let parent = ok!(getppid());
        sys::drop_root()?;
        let mut buf = [0u8; 8];
        fails!(EPERM, vm(SYS_process_vm_readv, parent, &mut buf, &[(at, 8)], 0));
        Ok(())
    })?
    .ok()
}

fn process_vm_is_partial() -> Outcome {
    let map = Map::guarded()?;
    let at = map.ptr as usize;
    let me = ok!(getpid());
    let mut buf = [0u8; 64];
    same!(ok!(vm(SYS_process_vm_readv, me, &mut buf, &[(at + PAGE - 8, 64)], 0)), 8);
    same!(ok!(vm(SYS_process_vm_readv, me, &mut buf, &[(at, 16), (8, 16), (at, 16)], 0)), 16);
    Ok(())
}

/// More than one turn of a worker, to and from many places.
fn process_vm_moves_much() -> Outcome {
    const MANY: usize = 12 << 20;
    let map = Map::anon(MANY)?;
    for page in 0..MANY / PAGE {
        map.set(page * PAGE, page as u8);
    }
    let at = map.ptr as usize;
    let me = ok!(getpid());
    let mut buf = vec![0u8; MANY];
    let remote: Vec<_> = (0..1024).map(|n| (at + n * (MANY / 1024), MANY / 1024)).collect();
    same!(ok!(vm(SYS_process_vm_readv, me, &mut buf, &remote, 0)), MANY as i64);
    same!((0..MANY / PAGE).all(|page| buf[page * PAGE] == page as u8), true);
    buf.fill(7);
    same!(ok!(vm(SYS_process_vm_writev, me, &mut buf, &remote, 0)), MANY as i64);
    same!((0..MANY).step_by(PAGE).all(|at| map.get(at) == 7), true);
    Ok(())
}

/// A processor in software maps what it runs as a loader does, and reads it.
fn text_that_a_static_program_maps_is_its_file() -> Outcome {
    const LIBRARY: &str = "/lib/x86_64-linux-gnu/libc.so.6";
    let path = if std::path::Path::new(LIBRARY).exists() { LIBRARY } else { "/proc/self/exe" };
    let file = std::fs::read(path).map_err(|e| e.to_string())?;
    let number = |at: usize, len: usize| {
        file[at..at + len].iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte))
    };
    let headers = (0..number(56, 2)).map(|n| number(32, 8) + n * number(54, 2));
    let text = headers.into_iter().find(|at| number(*at, 4) == 1 && number(at + 4, 4) & 1 != 0);
    let Some(text) = text else { return Err(format!("{path} has no text")) };
    let (offset, len) = (number(text + 8, 8), number(text + 32, 8));
    let (start, end) = (offset / PAGE * PAGE, offset + len);
    let fd = sys::open(path, O_RDONLY)?;
    let whole = ok!(mmap(null_mut(), file.len(), PROT_READ, MAP_PRIVATE, fd.as_raw_fd(), 0));
    let at = whole.wrapping_byte_add(start);
    let (prot, flags) = (PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_FIXED);
    ok!(mmap(at, end - start, prot, flags, fd.as_raw_fd(), start as i64));
    let mapped = unsafe { std::slice::from_raw_parts(at as *const u8, end - start) };
    same!(mapped.iter().zip(&file[start..end]).position(|(a, b)| a != b), None);
    Ok(())
}

fn pkeys_without_keys() -> Outcome {
    let map = Map::anon(PAGE)?;
    fails!(EINVAL, syscall(SYS_pkey_mprotect, map.ptr, PAGE, PROT_READ, 99));
    fails!(EINVAL, syscall(SYS_pkey_alloc, 1, 0));
    fails!(EINVAL, syscall(SYS_pkey_alloc, 0, 99));
    fails!(EINVAL, syscall(SYS_pkey_free, 7));
    ok!(syscall(SYS_pkey_mprotect, map.ptr, PAGE, PROT_READ, -1));
    dies_of(SIGSEGV, || map.set(0, 1))
}

fn userfaultfd_is_refused() -> Outcome {
    // For a user without privileges, as the kernel's default is; flags are looked at first.
    fork(|| {
        sys::drop_root()?;
        fails!(EPERM, syscall(SYS_userfaultfd, 0));
        Ok(())
    })?
    .ok()
}

/// A line of /proc/self/status, in KiB.
fn status_kb(name: &str) -> Result<u64, String> {
    let text = sys::slurp("/proc/self/status")?;
    let line =
        text.lines().find(|l| l.split(':').next() == Some(name)).ok_or_else(|| format!("no {name}"))?;
    line.split_whitespace().nth(1).and_then(|w| w.parse().ok()).ok_or_else(|| format!("{line:?}"))
}

fn maxrss_grows_with_memory() -> Outcome {
    let usage = |who| -> Result<i64, String> {
        let mut usage: rusage = unsafe { std::mem::zeroed() };
        ok!(getrusage(who, &raw mut usage));
        Ok(usage.ru_maxrss)
    };
    let before = usage(RUSAGE_SELF)?;
    want!(before > 100, "{before} KiB at the start");
    let map = Map::new(32 << 20, RW, ANON | MAP_POPULATE, -1, 0)?;
    let after = usage(RUSAGE_SELF)?;
    want!(after - before > 28 << 10, "from {before} to {after} KiB with 32 MiB more");
    drop(map);
    want!(usage(RUSAGE_SELF)? >= after, "the peak has fallen");
    fork(|| {
        Map::new(48 << 20, RW, ANON | MAP_POPULATE, -1, 0)?;
        Ok(())
    })?
    .ok()?;
    let children = usage(RUSAGE_CHILDREN)?;
    want!(children > 44 << 10, "a child with 48 MiB gives {children} KiB");
    Ok(())
}

fn rss_follows_touch_and_dontneed() -> Outcome {
    let before = status_kb("VmRSS")?;
    let map = Map::anon(16 << 20)?;
    want!(status_kb("VmRSS")? < before + 1024, "memory that nobody has touched counts");
    for page in 0..map.len / PAGE {
        map.set(page * PAGE, 1);
    }
    let full = status_kb("VmRSS")?;
    want!(full > before + (15 << 10), "from {before} to {full} KiB with 16 MiB touched");
    want!(status_kb("VmHWM")? >= full, "the high water mark is below the water");
    ok!(madvise(map.ptr.cast(), map.len, MADV_DONTNEED));
    let empty = status_kb("VmRSS")?;
    want!(empty < before + (2 << 10), "{empty} KiB after it is given back, {before} before");
    Ok(())
}

fn statm_matches_status() -> Outcome {
    let map = Map::new(8 << 20, RW, ANON | MAP_POPULATE, -1, 0)?;
    let statm = sys::slurp("/proc/self/statm")?;
    let words: Vec<u64> = statm.split_whitespace().filter_map(|w| w.parse().ok()).collect();
    same!(words.len(), 7);
    // The host's statm reads three counters without what each processor has kept back of them, 32 pages or twice its number.
    let processors = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let kept_back = 3 * processors * 32.max(2 * processors);
    let near = |pages: u64, kb: u64| (pages * 4).abs_diff(kb) < 512 + 4 * kept_back;
    want!(near(words[0], status_kb("VmSize")?), "size {statm}");
    want!(near(words[1], status_kb("VmRSS")?), "resident {statm}");
    want!(words[1] >= words[2] && words[0] >= words[1], "{statm}");
    drop(map);
    Ok(())
}

/// The block of smaps for the mapping that starts at `at`, by field in KiB.
fn smaps_of(at: *mut u8) -> Result<std::collections::BTreeMap<String, u64>, String> {
    let text = sys::slurp("/proc/self/smaps")?;
    let start = format!("{:x}-", at as u64);
    let mut lines = text.lines().skip_while(|l| !l.starts_with(&start));
    lines.next().ok_or("no such mapping in smaps")?;
    let mut out = std::collections::BTreeMap::new();
    for line in lines {
        let Some((name, rest)) = line.split_once(':').filter(|(n, _)| !n.contains(' ')) else { break };
        let value = rest.split_whitespace().next().and_then(|w| w.parse().ok());
        out.insert(name.to_owned(), value.unwrap_or(0));
    }
    Ok(out)
}

fn smaps_names_its_fields() -> Outcome {
    let map = Map::anon(16 * PAGE)?;
    // Apart from its neighbours.
    ok!(mprotect(map.at(15 * PAGE).cast(), PAGE, PROT_NONE));
    ok!(mprotect(map.ptr.cast(), PAGE, PROT_NONE));
    for page in 1..4 {
        map.set(page * PAGE, 1);
    }
    let block = smaps_of(map.at(PAGE))?;
    same!(block.get("Size"), Some(&56));
    same!(block.get("Rss"), Some(&12));
    for name in [
        "KernelPageSize",
        "MMUPageSize",
        "Pss",
        "Pss_Dirty",
        "Shared_Clean",
        "Shared_Dirty",
        "Private_Clean",
        "Private_Dirty",
        "Referenced",
        "Anonymous",
        "LazyFree",
        "AnonHugePages",
        "ShmemPmdMapped",
        "FilePmdMapped",
        "Shared_Hugetlb",
        "Private_Hugetlb",
        "Swap",
        "SwapPss",
        "Locked",
        "THPeligible",
        "VmFlags",
    ] {
        want!(block.contains_key(name), "no {name} in smaps");
    }
    same!((block["Anonymous"], block["Private_Dirty"], block["Pss"]), (12, 12, 12));
    Ok(())
}

fn smaps_rollup_sums() -> Outcome {
    let map = Map::new(8 << 20, RW, ANON | MAP_POPULATE, -1, 0)?;
    let text = sys::slurp("/proc/self/smaps_rollup")?;
    let mut lines = text.lines();
    let head = lines.next().unwrap_or("");
    want!(head.ends_with("[rollup]") && head.contains(" ---p "), "{head:?}");
    let rss = lines.next().unwrap_or("");
    want!(rss.starts_with("Rss:"), "{rss:?}");
    let kb: u64 = rss.split_whitespace().nth(1).and_then(|w| w.parse().ok()).unwrap_or(0);
    want!(kb.abs_diff(status_kb("VmRSS")?) < 1024, "{kb} KiB in the rollup, {}", status_kb("VmRSS")?);
    drop(map);
    Ok(())
}

fn pagemap_or_a_clear_errno() -> Outcome {
    let map = Map::anon(2 * PAGE)?;
    map.set(0, 1);
    let fd = sys::open("/proc/self/pagemap", O_RDONLY)?;
    let mut words = [0u64; 2];
    let at = (map.ptr as usize / PAGE * 8) as i64;
    same!(ok!(pread(fd.as_raw_fd(), words.as_mut_ptr().cast(), 16, at)), 16);
    same!((words[0] >> 63, words[1] >> 63), (1, 0));
    fails!(EINVAL, pread(fd.as_raw_fd(), words.as_mut_ptr().cast(), 7, at));
    Ok(())
}

fn vm_lck_follows_mlock() -> Outcome {
    let before = status_kb("VmLck")?;
    let map = Map::anon(8 * PAGE)?;
    ok!(mlock(map.ptr.cast(), 8 * PAGE));
    same!(status_kb("VmLck")? - before, 32);
    ok!(munmap(map.at(4 * PAGE).cast(), 4 * PAGE));
    same!(status_kb("VmLck")? - before, 16);
    Ok(())
}
