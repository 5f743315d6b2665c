//! Settings of the C library's allocator, which serves the whole process.

/// Keeps the allocator to one arena. With more it opens `/proc/sys/vm/overcommit_memory` when it gives memory back
/// (glibc, `shrink_heap`), which a confined process may not do; caches of each thread stay.
pub fn use_one_arena() {
    // SAFETY: a setting without pointers; it is made before there are threads.
    let _ = unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}
