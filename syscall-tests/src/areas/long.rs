//! Much at once: transfers of many mebibytes, and the size limit of every way to write (getrlimit(2), RLIMIT_FSIZE).

use crate::harness::Outcome;
use crate::sys::{self, put};
use libc::*;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::null_mut;

cases![
    long_reads_and_writes_are_whole,
    long_vectors_are_whole,
    a_long_read_moves_the_position,
    a_long_read_of_zeros_is_whole,
    a_long_read_ends_where_memory_does,
    a_long_write_ends_where_memory_does,
    a_long_read_ends_with_the_file,
    sendfile_of_much,
    copy_file_range_of_much,
    sendfile_keeps_the_size_limit,
    copy_file_range_keeps_the_size_limit,
    splice_keeps_the_size_limit,
    long_writes_keep_the_size_limit,
];

const MIB: usize = 1 << 20;
const MUCH: usize = 9 * MIB + 4097;

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at ^ (at >> 8) ^ (at >> 16)) as u8).collect()
}

fn file_of(name: &str, bytes: &[u8]) -> Result<OwnedFd, String> {
    put(name, bytes)?;
    sys::open(name, O_RDWR)
}

fn same_bytes(name: &str, bytes: &[u8]) -> Outcome {
    let found = std::fs::read(name).map_err(|e| format!("{name}: {e}"))?;
    same!(found.len(), bytes.len());
    if found != bytes { Err(format!("{name} holds other bytes")) } else { Ok(()) }
}

fn long_reads_and_writes_are_whole() -> Outcome {
    let bytes = pattern(MUCH);
    let f = sys::create("f")?;
    same!(ok!(write(f.as_raw_fd(), bytes.as_ptr().cast(), MUCH)), MUCH as isize);
    same!(ok!(pwrite(f.as_raw_fd(), bytes.as_ptr().cast(), MUCH, MUCH as i64)), MUCH as isize);
    same_bytes("f", &[bytes.as_slice(), &bytes].concat())?;
    let r = sys::open("f", O_RDONLY)?;
    let mut back = vec![0_u8; 2 * MUCH];
    same!(ok!(read(r.as_raw_fd(), back.as_mut_ptr().cast(), 2 * MUCH)), 2 * MUCH as isize);
    same!(back[..MUCH] == bytes[..] && back[MUCH..] == bytes[..], true);
    back.fill(0);
    same!(ok!(pread(r.as_raw_fd(), back.as_mut_ptr().cast(), MUCH, MUCH as i64)), MUCH as isize);
    same!(back[..MUCH] == bytes[..], true);
    Ok(())
}

fn long_vectors_are_whole() -> Outcome {
    let bytes = pattern(MUCH);
    let f = sys::create("f")?;
    let seg =
        |at: usize, len: usize| iovec { iov_base: bytes[at..].as_ptr().cast_mut().cast(), iov_len: len };
    let parts = [seg(0, 5), seg(5, 5 * MIB), seg(5 + 5 * MIB, 0), seg(5 + 5 * MIB, MUCH - 5 - 5 * MIB)];
    same!(ok!(writev(f.as_raw_fd(), parts.as_ptr(), 4)), MUCH as isize);
    same_bytes("f", &bytes)
}

fn a_long_read_moves_the_position() -> Outcome {
    let f = file_of("f", &pattern(MUCH))?;
    let mut back = vec![0_u8; MUCH];
    ok!(lseek(f.as_raw_fd(), 1, SEEK_SET));
    same!(ok!(read(f.as_raw_fd(), back.as_mut_ptr().cast(), 8 * MIB)), 8 * MIB as isize);
    same!(ok!(lseek(f.as_raw_fd(), 0, SEEK_CUR)), 8 * MIB as i64 + 1);
    Ok(())
}

fn a_long_read_of_zeros_is_whole() -> Outcome {
    let zero = sys::open("/dev/zero", O_RDONLY)?;
    let mut back = vec![1_u8; MUCH];
    same!(ok!(read(zero.as_raw_fd(), back.as_mut_ptr().cast(), MUCH)), MUCH as isize);
    same!(back.iter().all(|byte| *byte == 0), true);
    Ok(())
}

/// Ten mebibytes of which the last four are not there.
fn short_memory() -> Result<*mut u8, String> {
    let flags = MAP_PRIVATE | MAP_ANONYMOUS;
    let at = unsafe { mmap(null_mut(), 10 * MIB, PROT_READ | PROT_WRITE, flags, -1, 0) };
    if at == MAP_FAILED {
        return Err(format!("mmap: {}", std::io::Error::last_os_error()));
    }
    ok!(munmap(at.byte_add(6 * MIB), 4 * MIB));
    Ok(at.cast())
}

fn a_long_read_ends_where_memory_does() -> Outcome {
    let bytes = pattern(MUCH);
    let f = file_of("f", &bytes)?;
    let at = short_memory()?;
    same!(ok!(read(f.as_raw_fd(), at.cast(), MUCH)), 6 * MIB as isize);
    same!(unsafe { std::slice::from_raw_parts(at, 6 * MIB) } == &bytes[..6 * MIB], true);
    same!(ok!(lseek(f.as_raw_fd(), 0, SEEK_CUR)), 6 * MIB as i64);
    Ok(())
}

fn a_long_write_ends_where_memory_does() -> Outcome {
    let f = sys::create("f")?;
    let at = short_memory()?;
    same!(ok!(write(f.as_raw_fd(), at.cast(), 10 * MIB)), 6 * MIB as isize);
    same_bytes("f", &vec![0; 6 * MIB])
}

fn a_long_read_ends_with_the_file() -> Outcome {
    let f = file_of("f", &pattern(5 * MIB))?;
    let mut back = vec![0_u8; MUCH];
    same!(ok!(read(f.as_raw_fd(), back.as_mut_ptr().cast(), MUCH)), 5 * MIB as isize);
    same!(ok!(read(f.as_raw_fd(), back.as_mut_ptr().cast(), MUCH)), 0);
    Ok(())
}

fn sendfile_of_much() -> Outcome {
    let bytes = pattern(MUCH);
    let (a, b) = (file_of("a", &bytes)?, sys::create("b")?);
    same!(ok!(sendfile(b.as_raw_fd(), a.as_raw_fd(), null_mut(), MUCH)), MUCH as isize);
    same_bytes("b", &bytes)
}

fn copy_file_range_of_much() -> Outcome {
    let bytes = pattern(MUCH);
    let (a, b) = (file_of("a", &bytes)?, sys::create("b")?);
    let mut moved = 0;
    while moved < MUCH {
        let n = ok!(copy_file_range(a.as_raw_fd(), null_mut(), b.as_raw_fd(), null_mut(), MUCH - moved, 0));
        same!(n > 0, true);
        moved += n as usize;
    }
    same_bytes("b", &bytes)
}

/// Files may have one mebibyte from now on.
fn limit() -> Outcome {
    unsafe { signal(SIGXFSZ, SIG_IGN) };
    let limit = rlimit { rlim_cur: MIB as u64, rlim_max: RLIM_INFINITY };
    ok!(setrlimit(RLIMIT_FSIZE, &raw const limit));
    Ok(())
}

fn sendfile_keeps_the_size_limit() -> Outcome {
    let (a, b) = (file_of("a", &pattern(4 * MIB))?, sys::create("b")?);
    limit()?;
    same!(ok!(sendfile(b.as_raw_fd(), a.as_raw_fd(), null_mut(), 4 * MIB)), MIB as isize);
    fails!(EFBIG, sendfile(b.as_raw_fd(), a.as_raw_fd(), null_mut(), 4 * MIB));
    Ok(())
}

fn copy_file_range_keeps_the_size_limit() -> Outcome {
    let (a, b) = (file_of("a", &pattern(4 * MIB))?, sys::create("b")?);
    limit()?;
    let more =
        || unsafe { copy_file_range(a.as_raw_fd(), null_mut(), b.as_raw_fd(), null_mut(), 4 * MIB, 0) };
    same!(more(), MIB as isize);
    fails!(EFBIG, copy_file_range(a.as_raw_fd(), null_mut(), b.as_raw_fd(), null_mut(), 4 * MIB, 0));
    Ok(())
}

fn splice_keeps_the_size_limit() -> Outcome {
    let b = sys::create("b")?;
    limit()?;
    let (r, w) = sys::pipe()?;
    sys::fd_write(&w, b"0123456789")?;
    let mut at = MIB as i64 - 4;
    let splice_at =
        |at: &mut i64| unsafe { splice(r.as_raw_fd(), null_mut(), b.as_raw_fd(), at, 10, SPLICE_F_NONBLOCK) };
    same!(splice_at(&mut at), 4);
    fails!(EFBIG, splice(r.as_raw_fd(), null_mut(), b.as_raw_fd(), &raw mut at, 10, SPLICE_F_NONBLOCK));
    Ok(())
}

fn long_writes_keep_the_size_limit() -> Outcome {
    let b = sys::create("b")?;
    unsafe { signal(SIGXFSZ, SIG_IGN) };
    let limit = rlimit { rlim_cur: 6 * MIB as u64, rlim_max: RLIM_INFINITY };
    ok!(setrlimit(RLIMIT_FSIZE, &raw const limit));
    let bytes = pattern(MUCH);
    same!(ok!(write(b.as_raw_fd(), bytes.as_ptr().cast(), MUCH)), 6 * MIB as isize);
    fails!(EFBIG, write(b.as_raw_fd(), bytes.as_ptr().cast(), MUCH));
    Ok(())
}
