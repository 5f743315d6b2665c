//! Room for many bytes at once.

/// An empty vector with room for `len` bytes exactly. The pages of a large one are there already: to fault each in when it is
/// first written takes a microsecond or two.
#[must_use]
pub fn room(len: usize) -> Vec<u8> {
    const PAGE: usize = 4096;
    const LARGE: usize = 64 << 10;
    let mut bytes = Vec::<u8>::with_capacity(len);
    if len >= LARGE {
        let start = bytes.as_mut_ptr().addr().next_multiple_of(PAGE);
        let end = (bytes.as_mut_ptr().addr() + len) & !(PAGE - 1);
        // A refusal changes nothing else.
        // SAFETY:
        // 1. The whole pages between are the vector's own, and stay so.
        // 2. The advice changes no contents (`madvise(2)`, `MADV_POPULATE_WRITE`).
        let _ = unsafe {
            libc::madvise(bytes.as_mut_ptr().with_addr(start).cast(), end - start, libc::MADV_POPULATE_WRITE)
        };
    }
    bytes
}
