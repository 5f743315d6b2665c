//! Names and directories at their edges: renameat2(2), getdents64(2) while names change, limits of names and paths,
//! sticky and setgid rules, file handles, quotas and fanotify as they refuse.

use crate::harness::Outcome;
use crate::sys::{self, c, put};
use libc::*;
use std::collections::BTreeSet;
use std::os::fd::{AsRawFd, OwnedFd};

cases![
    longest_name_and_longer,
    longest_path_and_longer,
    very_deep_tree,
    renameat2_flag_errors,
    exchange_of_file_and_directory,
    exchange_in_a_loop_is_einval,
    noreplace_and_missing,
    whiteout_needs_the_right_or_einval,
    rename_directory_keeps_open_descriptors,
    rename_dot_names_are_ebusy,
    rename_over_a_full_directory,
    rename_file_over_directory_and_back,
    rename_parent_link_count,
    cookies_survive_removal,
    cookies_survive_insertion,
    rewinddir_sees_new_names,
    telldir_seekdir_come_back,
    listing_of_many_names_is_complete_under_churn,
    old_getdents_works,
    lseek_of_a_directory,
    inode_numbers_match_stat,
    inode_numbers_are_stable,
    sticky_rename_and_unlink,
    setgid_directory_passes_group_and_bit,
    setgid_bit_is_dropped_for_strangers,
    chown_by_a_group_member,
    unlink_of_an_open_directory,
    create_in_a_removed_directory,
    dotdot_of_a_moved_directory,
    link_to_a_link,
    link_limits_and_permissions,
    symlink_targets,
    mknod_rules,
    name_to_handle_sizes,
    fanotify_needs_the_right,
    quotactl_without_quotas,
    utimensat_forms,
    access_of_links_and_flags,
    statfs_names_the_limits,
    directory_size_and_blocks,
    many_links_to_one_file,
    remove_while_listing,
    unlinkat_forms,
    mkdir_edges,
    rmdir_edges,
    odd_bytes_in_names,
];

fn longest_name_and_longer() -> Outcome {
    let longest = "n".repeat(255);
    let longer = "n".repeat(256);
    put(&longest, b"x")?;
    same!(sys::slurp(&longest)?, "x");
    fails!(ENAMETOOLONG, open(c(&longer).as_ptr(), O_CREAT | O_RDWR, 0o600));
    fails!(ENAMETOOLONG, access(c(&longer).as_ptr(), F_OK));
    fails!(ENAMETOOLONG, mkdir(c(&longer).as_ptr(), 0o700));
    fails!(ENAMETOOLONG, rename(c(&longest).as_ptr(), c(&longer).as_ptr()));
    fails!(ENAMETOOLONG, symlink(c("x").as_ptr(), c(&longer).as_ptr()));
    fails!(ENAMETOOLONG, unlink(c(&longer).as_ptr()));
    fails!(ENAMETOOLONG, link(c(&longest).as_ptr(), c(&longer).as_ptr()));
    fails!(ENAMETOOLONG, access(c(&format!("{longer}/x")).as_ptr(), F_OK));
    Ok(())
}

fn longest_path_and_longer() -> Outcome {
    put("f", b"")?;
    let longest = format!("{}f", "./".repeat(2047));
    same!(longest.len(), 4095);
    ok!(access(c(&longest).as_ptr(), F_OK));
    fails!(ENAMETOOLONG, access(c(&format!("/{longest}")).as_ptr(), F_OK));
    fails!(ENAMETOOLONG, open(c(&"x/".repeat(3000)).as_ptr(), O_RDONLY));
    fails!(ENAMETOOLONG, symlink(c(&"t".repeat(4096)).as_ptr(), c("l").as_ptr()));
    Ok(())
}

fn very_deep_tree() -> Outcome {
    let name = c(&"d".repeat(200));
    let top = sys::open(".", O_RDONLY)?;
    for _ in 0..30 {
        ok!(mkdir(name.as_ptr(), 0o755));
        ok!(chdir(name.as_ptr()));
    }
    put("f", b"deep")?;
    let mut buf = vec![0u8; 10_000];
    // The path is too long for getcwd.
    let r = unsafe { syscall(SYS_getcwd, buf.as_mut_ptr(), buf.len()) };
    want!(r < 0 && crate::harness::errno() == ENAMETOOLONG, "getcwd gave {r}");
    same!(sys::slurp("f")?, "deep");
    ok!(unlink(c("f").as_ptr()));
    for _ in 0..30 {
        ok!(chdir(c("..").as_ptr()));
        ok!(rmdir(name.as_ptr()));
    }
    same!(sys::stat(".")?.st_ino, sys::fstat(&top)?.st_ino);
    Ok(())
}

fn rename2(a: &str, b: &str, flags: u32) -> i64 {
    unsafe { syscall(SYS_renameat2, AT_FDCWD, c(a).as_ptr(), AT_FDCWD, c(b).as_ptr(), flags) }
}

fn renameat2_flag_errors() -> Outcome {
    put("a", b"")?;
    put("b", b"")?;
    fails!(EINVAL, rename2("a", "b", 0x100));
    fails!(EINVAL, rename2("a", "b", RENAME_NOREPLACE | RENAME_EXCHANGE));
    fails!(EINVAL, rename2("a", "b", RENAME_WHITEOUT | RENAME_EXCHANGE));
    fails!(EEXIST, rename2("a", "b", RENAME_NOREPLACE));
    fails!(ENOENT, rename2("a", "none", RENAME_EXCHANGE));
    fails!(ENOENT, rename2("none", "a", RENAME_EXCHANGE));
    Ok(())
}

fn exchange_of_file_and_directory() -> Outcome {
    put("f", b"file")?;
    ok!(mkdir(c("d").as_ptr(), 0o755));
    put("d/x", b"inner")?;
    ok!(rename2("f", "d", RENAME_EXCHANGE));
    same!(sys::slurp("d")?, "file");
    same!(sys::slurp("f/x")?, "inner");
    ok!(rename2("f", "f", RENAME_EXCHANGE));
    // Between directories, where the link counts of both move.
    ok!(mkdir(c("p").as_ptr(), 0o755));
    put("p/y", b"file2")?;
    ok!(rename2("p/y", "f", RENAME_EXCHANGE));
    same!(sys::slurp("p/y/x")?, "inner");
    same!(sys::slurp("f")?, "file2");
    Ok(())
}

fn exchange_in_a_loop_is_einval() -> Outcome {
    ok!(mkdir(c("a").as_ptr(), 0o755));
    ok!(mkdir(c("a/b").as_ptr(), 0o755));
    fails!(EINVAL, rename2("a", "a/b", RENAME_EXCHANGE));
    fails!(EINVAL, rename2("a/b", "a", RENAME_EXCHANGE));
    fails!(EINVAL, rename2("a", "a/b/c", 0));
    fails!(ENOTEMPTY, rename2("a/b", "a", 0));
    Ok(())
}

fn noreplace_and_missing() -> Outcome {
    put("a", b"1")?;
    ok!(rename2("a", "b", RENAME_NOREPLACE));
    same!(sys::slurp("b")?, "1");
    ok!(symlink(c("nowhere").as_ptr(), c("l").as_ptr()));
    fails!(EEXIST, rename2("b", "l", RENAME_NOREPLACE));
    fails!(EEXIST, rename2("b", "b", RENAME_NOREPLACE));
    fails!(ENOENT, rename2("none", "x", RENAME_NOREPLACE));
    Ok(())
}

fn whiteout_needs_the_right_or_einval() -> Outcome {
    put("a", b"")?;
    sys::fork(|| {
        ok!(chmod(c(".").as_ptr(), 0o777));
        sys::drop_root()?;
        let r = rename2("a", "b", RENAME_WHITEOUT);
        let e = crate::harness::errno();
        want!(r == 0 || e == EPERM || e == EINVAL, "{r}, errno {e}");
        Ok(())
    })?
    .ok()
}

fn rename_directory_keeps_open_descriptors() -> Outcome {
    ok!(mkdir(c("a").as_ptr(), 0o755));
    put("a/f", b"x")?;
    let (d, f) = (sys::open("a", O_RDONLY)?, sys::open("a/f", O_RDWR)?);
    ok!(rename(c("a").as_ptr(), c("b").as_ptr()));
    ok!(mkdirat(d.as_raw_fd(), c("new").as_ptr(), 0o755));
    same!(sys::stat("b/new")?.st_mode & S_IFMT, S_IFDIR);
    sys::fd_write(&f, b"y")?;
    same!(sys::slurp("b/f")?, "y");
    let link = std::fs::read_link(format!("/proc/self/fd/{}", f.as_raw_fd())).map_err(|e| e.to_string())?;
    want!(link.ends_with("b/f"), "the descriptor shows {link:?}");
    Ok(())
}

fn rename_dot_names_are_ebusy() -> Outcome {
    ok!(mkdir(c("d").as_ptr(), 0o755));
    put("f", b"")?;
    fails!(EBUSY, rename(c("d/.").as_ptr(), c("x").as_ptr()));
    fails!(EBUSY, rename(c("d/..").as_ptr(), c("x").as_ptr()));
    fails!(EBUSY, rename(c("f").as_ptr(), c("d/..").as_ptr()));
    let r = unsafe { rename(c("/").as_ptr(), c("x").as_ptr()) };
    let e = crate::harness::errno();
    want!(r < 0 && (e == EBUSY || e == EXDEV), "{r}, errno {e}");
    fails!(EINVAL, rmdir(c("d/.").as_ptr()));
    fails!(ENOTEMPTY, rmdir(c("d/..").as_ptr()));
    fails!(EBUSY, rmdir(c("/").as_ptr()));
    fails!(EISDIR, unlink(c("d/.").as_ptr()));
    fails!(EEXIST, mkdir(c("d/.").as_ptr(), 0o700));
    fails!(EEXIST, mkdir(c("/").as_ptr(), 0o700));
    Ok(())
}

fn rename_over_a_full_directory() -> Outcome {
    ok!(mkdir(c("a").as_ptr(), 0o755));
    ok!(mkdir(c("b").as_ptr(), 0o755));
    put("b/f", b"")?;
    fails!(ENOTEMPTY, rename(c("a").as_ptr(), c("b").as_ptr()));
    ok!(unlink(c("b/f").as_ptr()));
    ok!(rename(c("a").as_ptr(), c("b").as_ptr()));
    fails!(ENOENT, rename(c("a").as_ptr(), c("b").as_ptr()));
    Ok(())
}

fn rename_file_over_directory_and_back() -> Outcome {
    put("f", b"")?;
    ok!(mkdir(c("d").as_ptr(), 0o755));
    fails!(EISDIR, rename(c("f").as_ptr(), c("d").as_ptr()));
    fails!(ENOTDIR, rename(c("d").as_ptr(), c("f").as_ptr()));
    fails!(ENOTDIR, rename(c("f").as_ptr(), c("g/").as_ptr()));
    ok!(rename(c("d").as_ptr(), c("e/").as_ptr()));
    fails!(ENOTDIR, rename(c("f/").as_ptr(), c("g").as_ptr()));
    Ok(())
}

fn rename_parent_link_count() -> Outcome {
    ok!(mkdir(c("a").as_ptr(), 0o755));
    ok!(mkdir(c("b").as_ptr(), 0o755));
    ok!(mkdir(c("a/x").as_ptr(), 0o755));
    let (a, b) = (sys::stat("a")?.st_nlink, sys::stat("b")?.st_nlink);
    ok!(rename(c("a/x").as_ptr(), c("b/x").as_ptr()));
    // A file system that does not count says 1.
    if a == 1 {
        skip!("no link counts of directories here");
    }
    same!((sys::stat("a")?.st_nlink, sys::stat("b")?.st_nlink), (a - 1, b + 1));
    Ok(())
}

/// One call: (name, cookie, inode) of each entry.
fn once(d: &OwnedFd, size: usize) -> Result<Vec<(String, i64, u64)>, String> {
    let mut buf = vec![0u64; size / 8];
    let n = ok!(syscall(SYS_getdents64, d.as_raw_fd(), buf.as_mut_ptr(), size)) as usize;
    let bytes: Vec<u8> = buf.iter().flat_map(|w| w.to_ne_bytes()).collect();
    let mut out = Vec::new();
    let mut at = 0;
    while at < n {
        let word = |i: usize| u64::from_ne_bytes(bytes[at + i..at + i + 8].try_into().unwrap());
        let len = usize::from(u16::from_ne_bytes([bytes[at + 16], bytes[at + 17]]));
        let name: Vec<u8> = bytes[at + 19..at + len].iter().copied().take_while(|b| *b != 0).collect();
        out.push((String::from_utf8_lossy(&name).into_owned(), word(8) as i64, word(0)));
        at += len;
    }
    Ok(out)
}

fn rest(d: &OwnedFd) -> Result<Vec<String>, String> {
    let mut out = Vec::new();
    loop {
        let part = once(d, 512)?;
        if part.is_empty() {
            return Ok(out);
        }
        out.extend(part.into_iter().map(|e| e.0).filter(|n| n != "." && n != ".."));
    }
}

fn fill(n: usize) -> Result<BTreeSet<String>, String> {
    ok!(mkdir(c("many").as_ptr(), 0o755));
    (0..n)
        .map(|i| {
            let name = format!("entry-number-{i:04}");
            put(&format!("many/{name}"), b"").map(|()| name)
        })
        .collect()
}

fn cookies_survive_removal() -> Outcome {
    let all = fill(100)?;
    let d = sys::open("many", O_RDONLY)?;
    let first: Vec<String> =
        once(&d, 1024)?.into_iter().map(|e| e.0).filter(|n| n != "." && n != "..").collect();
    want!(!first.is_empty() && first.len() < 100, "{} entries at once", first.len());
    // What was given goes away: the rest must come once each all the same.
    for n in &first {
        ok!(unlink(c(&format!("many/{n}")).as_ptr()));
    }
    let mut left: BTreeSet<String> = all;
    for n in &first {
        left.remove(n);
    }
    let got = rest(&d)?;
    same!(got.len(), left.len());
    same!(got.into_iter().collect::<BTreeSet<_>>(), left);
    Ok(())
}

fn cookies_survive_insertion() -> Outcome {
    let all = fill(100)?;
    let d = sys::open("many", O_RDONLY)?;
    let mut got: Vec<String> = once(&d, 1024)?.into_iter().map(|e| e.0).collect();
    for i in 0..50 {
        put(&format!("many/new-{i}"), b"")?;
    }
    got.extend(rest(&d)?);
    let old: Vec<&String> = got.iter().filter(|n| n.starts_with("entry-")).collect();
    same!(old.len(), 100);
    same!(old.into_iter().cloned().collect::<BTreeSet<_>>(), all);
    Ok(())
}

fn rewinddir_sees_new_names() -> Outcome {
    fill(5)?;
    let d = sys::open("many", O_RDONLY)?;
    same!(rest(&d)?.len(), 5);
    put("many/zzz", b"")?;
    ok!(unlink(c("many/entry-number-0001").as_ptr()));
    same!(ok!(lseek(d.as_raw_fd(), 0, SEEK_SET)), 0);
    let got: BTreeSet<String> = rest(&d)?.into_iter().collect();
    same!(got.len(), 5);
    want!(got.contains("zzz") && !got.contains("entry-number-0001"), "{got:?}");
    Ok(())
}

fn telldir_seekdir_come_back() -> Outcome {
    fill(60)?;
    let d = sys::open("many", O_RDONLY)?;
    let part = once(&d, 1024)?;
    let after = rest(&d)?;
    let last = part.last().ok_or("no entry")?.1;
    ok!(lseek(d.as_raw_fd(), last, SEEK_SET));
    same!(rest(&d)?, after);
    // The cookie of an entry in the middle leads to the one after it.
    ok!(lseek(d.as_raw_fd(), part[4].1, SEEK_SET));
    same!(once(&d, 1024)?.first().map(|e| e.0.clone()), part.get(5).map(|e| e.0.clone()));
    Ok(())
}

fn listing_of_many_names_is_complete_under_churn() -> Outcome {
    let all = fill(200)?;
    let stop = sys::Map::shared(4096)?;
    let kid = sys::fork(|| {
        let mut i = 0;
        while stop.word(0).load(std::sync::atomic::Ordering::SeqCst) == 0 {
            put(&format!("many/churn-{}", i % 7), b"")?;
            let _ = std::fs::remove_file(format!("many/churn-{}", (i + 3) % 7));
            i += 1;
        }
        Ok(())
    })?;
    for _ in 0..10 {
        let d = sys::open("many", O_RDONLY)?;
        let got: Vec<String> = rest(&d)?.into_iter().filter(|n| n.starts_with("entry-")).collect();
        if got.len() != 200 || got.into_iter().collect::<BTreeSet<_>>() != all {
            stop.word(0).store(1, std::sync::atomic::Ordering::SeqCst);
            return Err("an entry that was there all the time came not or twice".into());
        }
    }
    stop.word(0).store(1, std::sync::atomic::Ordering::SeqCst);
    kid.ok()
}

fn old_getdents_works() -> Outcome {
    fill(3)?;
    let d = sys::open("many", O_RDONLY)?;
    let mut buf = [0u8; 1024];
    let n = ok!(syscall(SYS_getdents, d.as_raw_fd(), buf.as_mut_ptr(), 1024)) as usize;
    let (mut at, mut seen) = (0, 0);
    while at < n {
        let len = usize::from(u16::from_ne_bytes([buf[at + 16], buf[at + 17]]));
        let name: Vec<u8> = buf[at + 18..].iter().copied().take_while(|b| *b != 0).collect();
        let kind = buf[at + len - 1];
        same!(kind, if name.starts_with(b".") { DT_DIR } else { DT_REG });
        seen += 1;
        at += len;
    }
    same!(seen, 5);
    Ok(())
}

fn lseek_of_a_directory() -> Outcome {
    fill(3)?;
    let d = sys::open("many", O_RDONLY)?;
    fails!(EINVAL, lseek(d.as_raw_fd(), -1, SEEK_SET));
    same!(ok!(lseek(d.as_raw_fd(), 0, SEEK_CUR)), 0);
    rest(&d)?;
    want!(ok!(lseek(d.as_raw_fd(), 0, SEEK_CUR)) > 0, "the position did not move");
    let mut b = [0u8; 8];
    // ext4 says EINVAL of a read of a directory on some kernels, the others EISDIR.
    let r = unsafe { read(d.as_raw_fd(), b.as_mut_ptr().cast(), 8) };
    let e = crate::harness::errno();
    want!(r < 0 && (e == EISDIR || e == EINVAL), "{r}, errno {e}");
    Ok(())
}

fn inode_numbers_match_stat() -> Outcome {
    fill(5)?;
    ok!(mkdir(c("many/sub").as_ptr(), 0o755));
    ok!(symlink(c("x").as_ptr(), c("many/link").as_ptr()));
    let d = sys::open("many", O_RDONLY)?;
    for (name, _, ino) in once(&d, 4096)? {
        // An overlay of the kernel numbers directories anew where its layers are of different file systems.
        if ![".", "..", "sub"].contains(&name.as_str()) {
            same!((name.clone(), ino), (name.clone(), sys::lstat(&format!("many/{name}"))?.st_ino));
        }
    }
    Ok(())
}

fn inode_numbers_are_stable() -> Outcome {
    put("f", b"x")?;
    let ino = sys::stat("f")?.st_ino;
    put("f", b"longer")?;
    ok!(chmod(c("f").as_ptr(), 0o600));
    ok!(rename(c("f").as_ptr(), c("g").as_ptr()));
    ok!(link(c("g").as_ptr(), c("h").as_ptr()));
    same!((sys::stat("g")?.st_ino, sys::stat("h")?.st_ino), (ino, ino));
    same!(sys::fstat(&sys::open("h", O_RDONLY)?)?.st_ino, ino);
    Ok(())
}

fn sticky_rename_and_unlink() -> Outcome {
    ok!(mkdir(c("s").as_ptr(), 0o777));
    ok!(chmod(c("s").as_ptr(), 0o1777));
    ok!(chmod(c(".").as_ptr(), 0o777));
    put("s/roots", b"")?;
    sys::fork(|| {
        sys::drop_root()?;
        put("s/mine", b"")?;
        fails!(EPERM, unlink(c("s/roots").as_ptr()));
        fails!(EPERM, rename(c("s/roots").as_ptr(), c("s/other").as_ptr()));
        fails!(EPERM, rename(c("s/mine").as_ptr(), c("s/roots").as_ptr()));
        fails!(EPERM, rename2("s/mine", "s/roots", RENAME_EXCHANGE));
        ok!(rename(c("s/mine").as_ptr(), c("s/mine2").as_ptr()));
        ok!(unlink(c("s/mine2").as_ptr()));
        Ok(())
    })?
    .ok()
}

fn setgid_directory_passes_group_and_bit() -> Outcome {
    ok!(mkdir(c("d").as_ptr(), 0o777));
    ok!(chown(c("d").as_ptr(), 0, 777));
    ok!(chmod(c("d").as_ptr(), 0o2777));
    put("d/f", b"")?;
    ok!(mkdir(c("d/e").as_ptr(), 0o755));
    same!(sys::stat("d/f")?.st_gid, 777);
    let e = sys::stat("d/e")?;
    same!((e.st_gid, e.st_mode & 0o7777), (777, 0o2755));
    ok!(symlink(c("x").as_ptr(), c("d/l").as_ptr()));
    same!(sys::lstat("d/l")?.st_gid, 777);
    let t = sys::own(ok!(open(c("d").as_ptr(), O_TMPFILE | O_RDWR, 0o600)));
    same!(sys::fstat(&t)?.st_gid, 777);
    Ok(())
}

fn setgid_bit_is_dropped_for_strangers() -> Outcome {
    ok!(mkdir(c("d").as_ptr(), 0o777));
    ok!(chown(c("d").as_ptr(), 0, 777));
    ok!(chmod(c("d").as_ptr(), 0o2777));
    ok!(chmod(c(".").as_ptr(), 0o777));
    sys::fork(|| {
        sys::drop_root()?;
        unsafe { umask(0) };
        let fd = sys::own(ok!(open(c("d/f").as_ptr(), O_CREAT | O_RDWR, 0o2775)));
        let st = sys::fstat(&fd)?;
        same!((st.st_gid, st.st_mode & 0o7777), (777, 0o775));
        // chmod by the owner outside of the group drops the bit without an error.
        ok!(chmod(c("d/f").as_ptr(), 0o2775));
        same!(sys::stat("d/f")?.st_mode & 0o7777, 0o775);
        Ok(())
    })?
    .ok()
}

fn chown_by_a_group_member() -> Outcome {
    put("f", b"")?;
    ok!(chown(c("f").as_ptr(), 1234, 1234));
    sys::fork(|| {
        let groups = [1234, 55];
        ok!(setgroups(2, groups.as_ptr()));
        ok!(setresgid(1234, 1234, 1234));
        ok!(setresuid(1234, 1234, 1234));
        ok!(chown(c("f").as_ptr(), u32::MAX, 55));
        ok!(chown(c("f").as_ptr(), 1234, 1234));
        fails!(EPERM, chown(c("f").as_ptr(), u32::MAX, 66));
        fails!(EPERM, chown(c("f").as_ptr(), 55, u32::MAX));
        ok!(chown(c("f").as_ptr(), u32::MAX, u32::MAX));
        Ok(())
    })?
    .ok()
}

fn unlink_of_an_open_directory() -> Outcome {
    ok!(mkdir(c("d").as_ptr(), 0o755));
    let d = sys::open("d", O_RDONLY)?;
    ok!(rmdir(c("d").as_ptr()));
    let st = sys::fstat(&d)?;
    same!(st.st_nlink, 0);
    fails!(ENOENT, openat(d.as_raw_fd(), c("f").as_ptr(), O_CREAT | O_RDWR, 0o600));
    fails!(ENOENT, openat(d.as_raw_fd(), c("f").as_ptr(), O_RDONLY));
    fails!(ENOENT, mkdirat(d.as_raw_fd(), c("x").as_ptr(), 0o700));
    Ok(())
}

fn create_in_a_removed_directory() -> Outcome {
    ok!(mkdir(c("d").as_ptr(), 0o755));
    put("g", b"")?;
    ok!(chdir(c("d").as_ptr()));
    ok!(rmdir(c("../d").as_ptr()));
    fails!(ENOENT, open(c("f").as_ptr(), O_CREAT | O_RDWR, 0o600));
    fails!(ENOENT, symlink(c("x").as_ptr(), c("l").as_ptr()));
    fails!(ENOENT, link(c("../g").as_ptr(), c("h").as_ptr()));
    sys::open(".", O_RDONLY)?;
    sys::stat("..")?;
    Ok(())
}

fn dotdot_of_a_moved_directory() -> Outcome {
    ok!(mkdir(c("a").as_ptr(), 0o755));
    ok!(mkdir(c("b").as_ptr(), 0o755));
    ok!(mkdir(c("a/x").as_ptr(), 0o755));
    put("b/mark", b"")?;
    ok!(chdir(c("a/x").as_ptr()));
    ok!(rename(c("../../a/x").as_ptr(), c("../../b/y").as_ptr()));
    sys::stat("../mark")?;
    let mut buf = [0u8; 4096];
    let n = ok!(syscall(SYS_getcwd, buf.as_mut_ptr(), buf.len())) as usize;
    want!(buf[..n - 1].ends_with(b"/b/y"), "{}", String::from_utf8_lossy(&buf[..n]));
    Ok(())
}

fn link_to_a_link() -> Outcome {
    ok!(symlink(c("target").as_ptr(), c("l").as_ptr()));
    ok!(link(c("l").as_ptr(), c("m").as_ptr()));
    same!((sys::lstat("m")?.st_ino, sys::lstat("m")?.st_nlink), (sys::lstat("l")?.st_ino, 2));
    fails!(ENOENT, linkat(AT_FDCWD, c("l").as_ptr(), AT_FDCWD, c("n").as_ptr(), AT_SYMLINK_FOLLOW));
    Ok(())
}

fn link_limits_and_permissions() -> Outcome {
    ok!(mkdir(c("d").as_ptr(), 0o755));
    put("f", b"")?;
    fails!(EPERM, link(c("d").as_ptr(), c("e").as_ptr()));
    fails!(EEXIST, link(c("f").as_ptr(), c("d").as_ptr()));
    fails!(ENOENT, link(c("none").as_ptr(), c("x").as_ptr()));
    fails!(EINVAL, linkat(AT_FDCWD, c("f").as_ptr(), AT_FDCWD, c("x").as_ptr(), 1));
    fails!(EXDEV, link(c("/proc/self/stat").as_ptr(), c("x").as_ptr()));
    ok!(chmod(c(".").as_ptr(), 0o755));
    ok!(chmod(c("f").as_ptr(), 0o666));
    sys::fork(|| {
        sys::drop_root()?;
        fails!(EACCES, link(c("f").as_ptr(), c("x").as_ptr()));
        Ok(())
    })?
    .ok()
}

fn symlink_targets() -> Outcome {
    fails!(ENOENT, symlink(c("").as_ptr(), c("l").as_ptr()));
    fails!(ENOENT, symlink(c("x").as_ptr(), c("").as_ptr()));
    fails!(EFAULT, symlink(8 as *const c_char, c("l").as_ptr()));
    let long = "t".repeat(4000);
    ok!(symlink(c(&long).as_ptr(), c("l").as_ptr()));
    same!(sys::lstat("l")?.st_size, 4000);
    let mut buf = vec![0u8; 5000];
    same!(ok!(readlink(c("l").as_ptr(), buf.as_mut_ptr().cast(), 5000)), 4000);
    same!(sys::lstat("l")?.st_mode, S_IFLNK | 0o777);
    fails!(EEXIST, symlink(c("y").as_ptr(), c("l").as_ptr()));
    fails!(ENOENT, symlink(c("y").as_ptr(), c("m/").as_ptr()));
    Ok(())
}

fn mknod_rules() -> Outcome {
    ok!(mknod(c("r").as_ptr(), 0o600, 0));
    same!(sys::stat("r")?.st_mode, S_IFREG | 0o600);
    ok!(mknod(c("p").as_ptr(), S_IFIFO | 0o600, 0));
    ok!(mknod(c("s").as_ptr(), S_IFSOCK | 0o600, 0));
    fails!(EEXIST, mknod(c("p").as_ptr(), S_IFIFO | 0o600, 0));
    fails!(EPERM, mknod(c("d").as_ptr(), S_IFDIR | 0o700, 0));
    fails!(EINVAL, mknod(c("x").as_ptr(), S_IFLNK | 0o700, 0));
    fails!(EINVAL, mknod(c("x").as_ptr(), 0o170000 | 0o700, 0));
    ok!(chmod(c(".").as_ptr(), 0o777));
    sys::fork(|| {
        sys::drop_root()?;
        fails!(EPERM, mknod(c("c").as_ptr(), S_IFCHR | 0o600, makedev(1, 3)));
        ok!(mknod(c("q").as_ptr(), S_IFIFO | 0o600, 0));
        Ok(())
    })?
    .ok()
}

fn name_to_handle_sizes() -> Outcome {
    put("f", b"")?;
    let mut handle = [0u32; 34];
    let mut mount = 0;
    let call = |path: &str, handle: *mut u32, mount: *mut i32, flags: i32| unsafe {
        syscall(SYS_name_to_handle_at, AT_FDCWD, c(path).as_ptr(), handle, mount, flags)
    };
    fails!(ENOENT, call("none", handle.as_mut_ptr(), &raw mut mount, 0));
    fails!(EINVAL, call("f", handle.as_mut_ptr(), &raw mut mount, 0x4000_0000));
    // No room gives the size that it takes, or no file system here has handles.
    let r = call("f", handle.as_mut_ptr(), &raw mut mount, 0);
    let e = crate::harness::errno();
    want!(r < 0 && (e == EOVERFLOW || e == EOPNOTSUPP), "{r}, errno {e}");
    Ok(())
}

fn fanotify_needs_the_right() -> Outcome {
    sys::fork(|| {
        sys::drop_root()?;
        let r = unsafe { syscall(SYS_fanotify_init, FAN_CLASS_CONTENT, O_RDONLY) };
        let e = crate::harness::errno();
        want!(r < 0 && (e == EPERM || e == ENOSYS), "{r}, errno {e}");
        Ok(())
    })?
    .ok()
}

fn quotactl_without_quotas() -> Outcome {
    // Q_GETFMT of a name that is no device.
    let r = unsafe { syscall(SYS_quotactl, 0x80_0004 << 8, c("none").as_ptr(), 0, std::ptr::null::<u8>()) };
    let e = crate::harness::errno();
    want!(r < 0 && [ENOENT, ENODEV, ENOTBLK, EINVAL, ENOSYS, EPERM].contains(&e), "{r}, errno {e}");
    Ok(())
}

fn ts(sec: i64, nsec: i64) -> timespec {
    timespec { tv_sec: sec, tv_nsec: nsec }
}

fn utimensat_forms() -> Outcome {
    put("f", b"")?;
    let fd = sys::open("f", O_RDONLY)?;
    let times = [ts(100, 5), ts(200, 6)];
    ok!(syscall(SYS_utimensat, fd.as_raw_fd(), std::ptr::null::<c_char>(), times.as_ptr(), 0));
    let st = sys::stat("f")?;
    same!((st.st_atime, st.st_atime_nsec, st.st_mtime, st.st_mtime_nsec), (100, 5, 200, 6));
    let bad = [ts(0, 1_000_000_000), ts(0, 0)];
    fails!(EINVAL, utimensat(AT_FDCWD, c("f").as_ptr(), bad.as_ptr(), 0));
    fails!(EINVAL, utimensat(AT_FDCWD, c("f").as_ptr(), times.as_ptr(), 0x4000));
    // Nothing to do: not even the file must be there.
    let omit = [ts(0, UTIME_OMIT), ts(0, UTIME_OMIT)];
    ok!(utimensat(AT_FDCWD, c("f").as_ptr(), omit.as_ptr(), 0));
    ok!(symlink(c("f").as_ptr(), c("l").as_ptr()));
    ok!(utimensat(AT_FDCWD, c("l").as_ptr(), [ts(7, 0), ts(8, 0)].as_ptr(), AT_SYMLINK_NOFOLLOW));
    same!((sys::lstat("l")?.st_mtime, sys::stat("f")?.st_mtime), (8, 200));
    let early = [ts(-5, 0), ts(-6, 0)];
    ok!(utimensat(AT_FDCWD, c("f").as_ptr(), early.as_ptr(), 0));
    same!(sys::stat("f")?.st_mtime, -6);
    ok!(chmod(c("f").as_ptr(), 0o666));
    sys::fork(|| {
        sys::drop_root()?;
        // Who may write may set both to now, and nothing else.
        ok!(utimensat(AT_FDCWD, c("f").as_ptr(), std::ptr::null(), 0));
        fails!(EPERM, utimensat(AT_FDCWD, c("f").as_ptr(), times.as_ptr(), 0));
        Ok(())
    })?
    .ok()
}

fn access_of_links_and_flags() -> Outcome {
    ok!(symlink(c("none").as_ptr(), c("l").as_ptr()));
    fails!(ENOENT, access(c("l").as_ptr(), F_OK));
    ok!(syscall(SYS_faccessat2, AT_FDCWD, c("l").as_ptr(), F_OK, AT_SYMLINK_NOFOLLOW));
    fails!(EINVAL, syscall(SYS_faccessat2, AT_FDCWD, c("l").as_ptr(), F_OK, 0x4000));
    fails!(EINVAL, access(c(".").as_ptr(), 8));
    put("f", b"")?;
    ok!(chmod(c("f").as_ptr(), 0o644));
    fails!(EACCES, access(c("f").as_ptr(), X_OK));
    Ok(())
}

fn statfs_names_the_limits() -> Outcome {
    let mut fs: statfs = unsafe { std::mem::zeroed() };
    ok!(statfs(c(".").as_ptr(), &raw mut fs));
    same!(fs.f_namelen, 255);
    want!(fs.f_bsize >= 512 && fs.f_blocks >= fs.f_bfree, "{} {} {}", fs.f_bsize, fs.f_blocks, fs.f_bfree);
    fails!(ENOENT, statfs(c("none").as_ptr(), &raw mut fs));
    fails!(EFAULT, statfs(c(".").as_ptr(), 24 as *mut statfs));
    fails!(EBADF, fstatfs(99, &raw mut fs));
    Ok(())
}

fn directory_size_and_blocks() -> Outcome {
    ok!(mkdir(c("d").as_ptr(), 0o755));
    let st = sys::stat("d")?;
    want!(st.st_nlink == 2 || st.st_nlink == 1, "{} links", st.st_nlink);
    want!(st.st_blksize >= 512, "{}", st.st_blksize);
    Ok(())
}

fn many_links_to_one_file() -> Outcome {
    put("f", b"x")?;
    for i in 0..200 {
        ok!(link(c("f").as_ptr(), c(&format!("l{i}")).as_ptr()));
    }
    same!(sys::stat("l7")?.st_nlink, 201);
    put("l100", b"changed")?;
    same!(sys::slurp("f")?, "changed");
    for i in 0..200 {
        ok!(unlink(c(&format!("l{i}")).as_ptr()));
    }
    same!(sys::stat("f")?.st_nlink, 1);
    Ok(())
}

fn remove_while_listing() -> Outcome {
    fill(300)?;
    let d = sys::open("many", O_RDONLY)?;
    // As rm -r does: list some, remove them, list on.
    let mut removed = 0;
    loop {
        let part = once(&d, 2048)?;
        if part.is_empty() {
            break;
        }
        for (name, _, _) in part.iter().filter(|e| e.0 != "." && e.0 != "..") {
            ok!(unlinkat(d.as_raw_fd(), c(name).as_ptr(), 0));
            removed += 1;
        }
    }
    same!(removed, 300);
    ok!(rmdir(c("many").as_ptr()));
    Ok(())
}

fn unlinkat_forms() -> Outcome {
    put("f", b"")?;
    ok!(mkdir(c("d").as_ptr(), 0o755));
    fails!(EISDIR, unlinkat(AT_FDCWD, c("d").as_ptr(), 0));
    fails!(ENOTDIR, unlinkat(AT_FDCWD, c("f").as_ptr(), AT_REMOVEDIR));
    fails!(EINVAL, unlinkat(AT_FDCWD, c("f").as_ptr(), 1));
    fails!(ENOTDIR, unlinkat(AT_FDCWD, c("f/").as_ptr(), 0));
    fails!(EISDIR, unlink(c("d/").as_ptr()));
    ok!(unlinkat(AT_FDCWD, c("d/").as_ptr(), AT_REMOVEDIR));
    ok!(symlink(c("f").as_ptr(), c("l").as_ptr()));
    fails!(ENOTDIR, unlink(c("l/").as_ptr()));
    ok!(unlink(c("l").as_ptr()));
    sys::stat("f")?;
    Ok(())
}

fn mkdir_edges() -> Outcome {
    ok!(mkdir(c("d/").as_ptr(), 0o755));
    fails!(EEXIST, mkdir(c("d").as_ptr(), 0o755));
    fails!(ENOENT, mkdir(c("a/b").as_ptr(), 0o755));
    ok!(symlink(c("none").as_ptr(), c("l").as_ptr()));
    fails!(EEXIST, mkdir(c("l").as_ptr(), 0o755));
    unsafe { umask(0) };
    ok!(mkdir(c("m").as_ptr(), 0o7777));
    same!(sys::stat("m")?.st_mode & 0o7777, 0o1777);
    Ok(())
}

fn rmdir_edges() -> Outcome {
    put("f", b"")?;
    ok!(mkdir(c("d").as_ptr(), 0o755));
    ok!(symlink(c("d").as_ptr(), c("l").as_ptr()));
    fails!(ENOTDIR, rmdir(c("f").as_ptr()));
    fails!(ENOTDIR, rmdir(c("l").as_ptr()));
    fails!(ENOENT, rmdir(c("none").as_ptr()));
    put("d/x", b"")?;
    fails!(ENOTEMPTY, rmdir(c("d").as_ptr()));
    fails!(EBUSY, rmdir(c("/proc").as_ptr()));
    Ok(())
}

fn odd_bytes_in_names() -> Outcome {
    use std::ffi::{CString, OsString};
    use std::os::unix::ffi::OsStringExt;
    let names: [&[u8]; 5] = [b"\xff\xfe", b"a b\tc", b"new\nline", b"\\x", "schön".as_bytes()];
    for n in names {
        let path = CString::new(n).map_err(|e| e.to_string())?;
        sys::own(ok!(open(path.as_ptr(), O_CREAT | O_RDWR, 0o600)));
    }
    let got: BTreeSet<OsString> = std::fs::read_dir(".")
        .map_err(|e| e.to_string())?
        .filter_map(|e| e.ok().map(|e| e.file_name()))
        .collect();
    same!(got, names.iter().map(|n| OsString::from_vec(n.to_vec())).collect::<BTreeSet<_>>());
    Ok(())
}
