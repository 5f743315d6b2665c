//! getdents64(2), directory contents.

use crate::harness::Outcome;
use crate::sys::{self, c, put};
use libc::*;
use std::collections::BTreeSet;
use std::os::fd::{AsRawFd, OwnedFd};

cases![
    listing_has_every_name_once,
    dot_entries_and_types,
    small_buffers_and_seeks,
    removed_and_added_names,
    errors,
    large_directory,
    removed_directory_lists_nothing,
];

/// The (name, type, offset) triples of one call with `size` bytes of buffer.
fn once(d: &OwnedFd, size: usize) -> Result<Vec<(String, u8, i64)>, String> {
    let mut buf = vec![0u64; size / 8];
    let n = ok!(syscall(SYS_getdents64, d.as_raw_fd(), buf.as_mut_ptr(), size)) as usize;
    let bytes: Vec<u8> = buf.iter().flat_map(|w| w.to_ne_bytes()).collect();
    let mut out = Vec::new();
    let mut at = 0;
    while at < n {
        let off = i64::from_ne_bytes(bytes[at + 8..at + 16].try_into().map_err(|_| "short entry")?);
        let len = usize::from(u16::from_ne_bytes([bytes[at + 16], bytes[at + 17]]));
        want!(len % 8 == 0 && at + len <= n, "an entry of {len} bytes");
        let name: Vec<u8> = bytes[at + 19..at + len].iter().copied().take_while(|b| *b != 0).collect();
        out.push((String::from_utf8_lossy(&name).into_owned(), bytes[at + 18], off));
        at += len;
    }
    Ok(out)
}

fn all(d: &OwnedFd, size: usize) -> Result<Vec<(String, u8, i64)>, String> {
    let mut out = Vec::new();
    loop {
        let part = once(d, size)?;
        if part.is_empty() {
            return Ok(out);
        }
        out.extend(part);
    }
}

fn names(list: &[(String, u8, i64)]) -> BTreeSet<String> {
    list.iter().map(|e| e.0.clone()).filter(|n| n != "." && n != "..").collect()
}

fn listing_has_every_name_once() -> Outcome {
    let want: BTreeSet<String> = (0..300).map(|i| format!("file-{i}")).collect();
    for n in &want {
        put(n, b"")?;
    }
    let list = all(&sys::open(".", O_RDONLY)?, 1024)?;
    same!(list.len(), 302);
    same!(names(&list), want);
    Ok(())
}

fn dot_entries_and_types() -> Outcome {
    put("f", b"")?;
    ok!(mkdir(c("d").as_ptr(), 0o755));
    ok!(symlink(c("f").as_ptr(), c("l").as_ptr()));
    ok!(mkfifo(c("p").as_ptr(), 0o600));
    let list = all(&sys::open(".", O_RDONLY)?, 4096)?;
    let kind = |n: &str| list.iter().find(|e| e.0 == n).map(|e| e.1);
    same!(kind("."), Some(DT_DIR));
    same!(kind(".."), Some(DT_DIR));
    same!(
        (kind("f"), kind("d"), kind("l"), kind("p")),
        (Some(DT_REG), Some(DT_DIR), Some(DT_LNK), Some(DT_FIFO))
    );
    Ok(())
}

fn small_buffers_and_seeks() -> Outcome {
    for i in 0..20 {
        put(&format!("n{i}"), b"")?;
    }
    let d = sys::open(".", O_RDONLY)?;
    let first = once(&d, 64)?;
    want!(!first.is_empty(), "64 bytes hold one entry");
    let rest = all(&d, 64)?;
    same!(first.len() + rest.len(), 22);
    // Back to after the first entry, by its offset.
    ok!(lseek(d.as_raw_fd(), first[0].2, SEEK_SET));
    let again = all(&d, 4096)?;
    same!(again.len(), 21);
    ok!(lseek(d.as_raw_fd(), 0, SEEK_SET));
    same!(all(&d, 4096)?.len(), 22);
    Ok(())
}

fn removed_and_added_names() -> Outcome {
    for i in 0..50 {
        put(&format!("a{i}"), b"")?;
    }
    let d = sys::open(".", O_RDONLY)?;
    let mut seen: Vec<_> = once(&d, 512)?;
    for i in 0..50 {
        let name = format!("a{i}");
        if !seen.iter().any(|e| e.0 == name) && i % 2 == 0 {
            ok!(unlink(c(&name).as_ptr()));
        }
    }
    let before = seen.len();
    seen.extend(all(&d, 512)?);
    let unique = names(&seen);
    let dots = seen.iter().filter(|e| e.0 == "." || e.0 == "..").count();
    same!(unique.len() + dots, seen.len());
    want!(seen.len() > before, "nothing after the first part");
    ok!(lseek(d.as_raw_fd(), 0, SEEK_SET));
    put("new", b"")?;
    want!(names(&all(&d, 4096)?).contains("new"), "a new name is not listed after a rewind");
    Ok(())
}

fn errors() -> Outcome {
    put("f", b"")?;
    let f = sys::open("f", O_RDONLY)?;
    let mut buf = [0u64; 64];
    fails!(ENOTDIR, syscall(SYS_getdents64, f.as_raw_fd(), buf.as_mut_ptr(), 512usize));
    let d = sys::open(".", O_RDONLY)?;
    fails!(EINVAL, syscall(SYS_getdents64, d.as_raw_fd(), buf.as_mut_ptr(), 4usize));
    fails!(EFAULT, syscall(SYS_getdents64, d.as_raw_fd(), 8usize, 512usize));
    fails!(EBADF, syscall(SYS_getdents64, 500, buf.as_mut_ptr(), 512usize));
    Ok(())
}

fn large_directory() -> Outcome {
    ok!(mkdir(c("big").as_ptr(), 0o755));
    for i in 0..3000 {
        sys::create(&format!("big/{i}"))?;
    }
    same!(names(&all(&sys::open("big", O_RDONLY)?, 32768)?).len(), 3000);
    for i in 0..3000 {
        ok!(unlink(c(&format!("big/{i}")).as_ptr()));
    }
    ok!(rmdir(c("big").as_ptr()));
    Ok(())
}

fn removed_directory_lists_nothing() -> Outcome {
    ok!(mkdir(c("d").as_ptr(), 0o755));
    let d = sys::open("d", O_RDONLY)?;
    ok!(rmdir(c("d").as_ptr()));
    let mut buf = [0u64; 64];
    let n = unsafe { syscall(SYS_getdents64, d.as_raw_fd(), buf.as_mut_ptr(), 512usize) };
    want!(n == -1 && crate::harness::errno() == ENOENT || n >= 0, "getdents64 gave {n}");
    Ok(())
}
