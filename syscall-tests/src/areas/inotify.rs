//! inotify(7): which events come, in which order, with which masks, names and cookies.

use crate::harness::Outcome;
use crate::sys::{self, c, put};
use libc::*;
use std::os::fd::{AsRawFd, OwnedFd};

cases![
    create_write_close_of_a_child,
    open_and_close_without_writing,
    truncating_open_is_modify,
    chmod_is_attrib_for_child_and_self,
    removal_is_delete_and_delete_self_and_ignored,
    open_file_keeps_its_watch_until_closed,
    rename_in_one_directory_has_a_cookie,
    rename_between_two_watched_directories,
    move_self_of_a_file,
    rename_over_a_watched_file,
    directories_carry_isdir,
    hard_link_is_create_and_attrib,
    symlinks_are_watched_themselves_only_when_asked,
    oneshot_fires_once,
    mask_add_and_mask_create,
    same_inode_gives_the_same_number,
    rm_watch_gives_ignored,
    onlydir_refuses_files,
    excl_unlink_drops_events_of_unlinked_children,
    equal_events_are_merged,
    small_buffer_is_einval,
    nonblocking_and_poll,
    fionread_counts_bytes,
    errors,
    names_are_padded,
    numbers_are_not_reused,
    ftruncate_and_write_events,
    overflow_is_reported_once,
    read_is_access,
    mkdir_and_rmdir_of_a_watched_directory,
    unlinked_while_linked_elsewhere_is_attrib,
    mmap_and_fallocate_events,
];

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Event {
    wd: i32,
    pub(super) mask: u32,
    cookie: u32,
    name: String,
}

pub(super) fn start() -> Result<OwnedFd, String> {
    Ok(sys::own(ok!(inotify_init1(IN_NONBLOCK | IN_CLOEXEC))))
}

pub(super) fn watch(fd: &OwnedFd, path: &str, mask: u32) -> Result<i32, String> {
    Ok(ok!(inotify_add_watch(fd.as_raw_fd(), c(path).as_ptr(), mask)))
}

/// Everything that is queued now.
pub(super) fn drain(fd: &OwnedFd) -> Result<Vec<Event>, String> {
    let mut out = Vec::new();
    let mut buf = vec![0u8; 64 * 1024];
    loop {
        let n = unsafe { read(fd.as_raw_fd(), buf.as_mut_ptr().cast(), buf.len()) };
        if n < 0 {
            same!(crate::harness::errno(), EAGAIN);
            return Ok(out);
        }
        let mut at = 0;
        while at < n as usize {
            let word = |i: usize| u32::from_ne_bytes(buf[at + i..at + i + 4].try_into().unwrap());
            let len = word(12) as usize;
            let name: Vec<u8> = buf[at + 16..at + 16 + len].iter().copied().take_while(|b| *b != 0).collect();
            out.push(Event {
                wd: word(0) as i32,
                mask: word(4),
                cookie: word(8),
                name: String::from_utf8_lossy(&name).into_owned(),
            });
            at += 16 + len;
        }
    }
}

/// Masks and names, in order.
fn seen(fd: &OwnedFd) -> Result<Vec<(u32, String)>, String> {
    Ok(drain(fd)?.into_iter().map(|e| (e.mask, e.name)).collect())
}

fn named(list: &[(u32, &str)]) -> Vec<(u32, String)> {
    list.iter().map(|(m, n)| (*m, (*n).to_string())).collect()
}

fn create_write_close_of_a_child() -> Outcome {
    let fd = start()?;
    watch(&fd, ".", IN_ALL_EVENTS)?;
    put("f", b"abc")?;
    same!(seen(&fd)?, named(&[(IN_CREATE, "f"), (IN_OPEN, "f"), (IN_MODIFY, "f"), (IN_CLOSE_WRITE, "f")]));
    Ok(())
}

fn open_and_close_without_writing() -> Outcome {
    put("f", b"abc")?;
    let fd = start()?;
    watch(&fd, "f", IN_ALL_EVENTS)?;
    drop(sys::open("f", O_RDONLY)?);
    drop(sys::open("f", O_RDWR)?);
    same!(seen(&fd)?, named(&[(IN_OPEN, ""), (IN_CLOSE_NOWRITE, ""), (IN_OPEN, ""), (IN_CLOSE_WRITE, "")]));
    Ok(())
}

fn truncating_open_is_modify() -> Outcome {
    put("f", b"abc")?;
    let fd = start()?;
    watch(&fd, "f", IN_ALL_EVENTS)?;
    drop(sys::open("f", O_WRONLY | O_TRUNC)?);
    let got = seen(&fd)?;
    want!(got.contains(&(IN_MODIFY, String::new())), "no IN_MODIFY in {got:?}");
    same!(got.last(), Some(&(IN_CLOSE_WRITE, String::new())));
    Ok(())
}

fn chmod_is_attrib_for_child_and_self() -> Outcome {
    put("f", b"")?;
    let fd = start()?;
    let dir = watch(&fd, ".", IN_ATTRIB)?;
    let file = watch(&fd, "f", IN_ATTRIB)?;
    ok!(chmod(c("f").as_ptr(), 0o600));
    let got = drain(&fd)?;
    same!(got.len(), 2);
    let find = |wd| got.iter().find(|e| e.wd == wd).map(|e| (e.mask, e.name.clone()));
    same!(find(dir), Some((IN_ATTRIB, "f".to_string())));
    same!(find(file), Some((IN_ATTRIB, String::new())));
    Ok(())
}

fn removal_is_delete_and_delete_self_and_ignored() -> Outcome {
    put("f", b"")?;
    let fd = start()?;
    let file = watch(&fd, "f", IN_ALL_EVENTS)?;
    ok!(unlink(c("f").as_ptr()));
    let got = drain(&fd)?;
    let masks: Vec<u32> = got.iter().map(|e| e.mask).collect();
    same!(masks, vec![IN_ATTRIB, IN_DELETE_SELF, IN_IGNORED]);
    want!(got.iter().all(|e| e.wd == file), "another watch in {got:?}");
    fails!(EINVAL, inotify_rm_watch(fd.as_raw_fd(), file));
    Ok(())
}

fn open_file_keeps_its_watch_until_closed() -> Outcome {
    let file = sys::create("f")?;
    let fd = start()?;
    watch(&fd, "f", IN_ALL_EVENTS)?;
    ok!(unlink(c("f").as_ptr()));
    same!(seen(&fd)?, named(&[(IN_ATTRIB, "")]));
    sys::fd_write(&file, b"x")?;
    same!(seen(&fd)?, named(&[(IN_MODIFY, "")]));
    drop(file);
    same!(seen(&fd)?, named(&[(IN_CLOSE_WRITE, ""), (IN_DELETE_SELF, ""), (IN_IGNORED, "")]));
    Ok(())
}

fn rename_in_one_directory_has_a_cookie() -> Outcome {
    put("a", b"")?;
    let fd = start()?;
    watch(&fd, ".", IN_ALL_EVENTS)?;
    ok!(rename(c("a").as_ptr(), c("b").as_ptr()));
    let got = drain(&fd)?;
    same!(got.len(), 2);
    same!((got[0].mask, got[0].name.as_str()), (IN_MOVED_FROM, "a"));
    same!((got[1].mask, got[1].name.as_str()), (IN_MOVED_TO, "b"));
    same!(got[0].cookie, got[1].cookie);
    want!(got[0].cookie != 0, "the cookie is zero");
    ok!(rename(c("b").as_ptr(), c("c").as_ptr()));
    let next = drain(&fd)?;
    want!(next[0].cookie != got[0].cookie, "the cookie was used before");
    Ok(())
}

fn rename_between_two_watched_directories() -> Outcome {
    ok!(mkdir(c("x").as_ptr(), 0o755));
    ok!(mkdir(c("y").as_ptr(), 0o755));
    put("x/a", b"")?;
    let fd = start()?;
    let (x, y) = (watch(&fd, "x", IN_MOVE)?, watch(&fd, "y", IN_MOVE)?);
    ok!(rename(c("x/a").as_ptr(), c("y/b").as_ptr()));
    let got = drain(&fd)?;
    same!(got.len(), 2);
    same!((got[0].wd, got[0].mask, got[0].name.as_str()), (x, IN_MOVED_FROM, "a"));
    same!((got[1].wd, got[1].mask, got[1].name.as_str()), (y, IN_MOVED_TO, "b"));
    same!(got[0].cookie, got[1].cookie);
    Ok(())
}

fn move_self_of_a_file() -> Outcome {
    put("a", b"")?;
    let fd = start()?;
    let wd = watch(&fd, "a", IN_ALL_EVENTS)?;
    ok!(rename(c("a").as_ptr(), c("b").as_ptr()));
    same!(seen(&fd)?, named(&[(IN_MOVE_SELF, "")]));
    // The watch follows the inode.
    ok!(chmod(c("b").as_ptr(), 0o600));
    let got = drain(&fd)?;
    same!((got[0].wd, got[0].mask), (wd, IN_ATTRIB));
    Ok(())
}

fn rename_over_a_watched_file() -> Outcome {
    put("a", b"")?;
    put("b", b"")?;
    let fd = start()?;
    watch(&fd, "b", IN_ALL_EVENTS)?;
    ok!(rename(c("a").as_ptr(), c("b").as_ptr()));
    let masks: Vec<u32> = drain(&fd)?.iter().map(|e| e.mask).collect();
    same!(masks, vec![IN_ATTRIB, IN_DELETE_SELF, IN_IGNORED]);
    Ok(())
}

fn directories_carry_isdir() -> Outcome {
    let fd = start()?;
    watch(&fd, ".", IN_ALL_EVENTS)?;
    ok!(mkdir(c("d").as_ptr(), 0o755));
    drop(sys::open("d", O_RDONLY | O_DIRECTORY)?);
    ok!(chmod(c("d").as_ptr(), 0o700));
    ok!(rmdir(c("d").as_ptr()));
    same!(
        seen(&fd)?,
        named(&[
            (IN_CREATE | IN_ISDIR, "d"),
            (IN_OPEN | IN_ISDIR, "d"),
            (IN_CLOSE_NOWRITE | IN_ISDIR, "d"),
            (IN_ATTRIB | IN_ISDIR, "d"),
            (IN_DELETE | IN_ISDIR, "d"),
        ])
    );
    Ok(())
}

fn hard_link_is_create_and_attrib() -> Outcome {
    put("f", b"")?;
    ok!(mkdir(c("d").as_ptr(), 0o755));
    let fd = start()?;
    let (dir, file) = (watch(&fd, "d", IN_ALL_EVENTS)?, watch(&fd, "f", IN_ALL_EVENTS)?);
    ok!(link(c("f").as_ptr(), c("d/g").as_ptr()));
    let got = drain(&fd)?;
    same!(got.len(), 2);
    want!(got.iter().any(|e| e.wd == file && e.mask == IN_ATTRIB), "no IN_ATTRIB in {got:?}");
    want!(got.iter().any(|e| e.wd == dir && e.mask == IN_CREATE && e.name == "g"), "no IN_CREATE in {got:?}");
    Ok(())
}

fn symlinks_are_watched_themselves_only_when_asked() -> Outcome {
    put("f", b"")?;
    ok!(symlink(c("f").as_ptr(), c("l").as_ptr()));
    let fd = start()?;
    let through = watch(&fd, "l", IN_ATTRIB)?;
    same!(watch(&fd, "f", IN_ATTRIB)?, through);
    let itself = watch(&fd, "l", IN_ATTRIB | IN_DONT_FOLLOW)?;
    want!(itself != through, "the link has its target's number");
    ok!(chmod(c("f").as_ptr(), 0o600));
    let got = drain(&fd)?;
    same!(got.len(), 1);
    same!(got[0].wd, through);
    Ok(())
}

fn oneshot_fires_once() -> Outcome {
    put("f", b"")?;
    let fd = start()?;
    let wd = watch(&fd, "f", IN_ATTRIB | IN_ONESHOT)?;
    ok!(chmod(c("f").as_ptr(), 0o600));
    ok!(chmod(c("f").as_ptr(), 0o644));
    same!(seen(&fd)?, named(&[(IN_ATTRIB, ""), (IN_IGNORED, "")]));
    fails!(EINVAL, inotify_rm_watch(fd.as_raw_fd(), wd));
    Ok(())
}

fn mask_add_and_mask_create() -> Outcome {
    put("f", b"")?;
    let fd = start()?;
    let wd = watch(&fd, "f", IN_ATTRIB)?;
    fails!(EEXIST, inotify_add_watch(fd.as_raw_fd(), c("f").as_ptr(), IN_OPEN | IN_MASK_CREATE));
    same!(watch(&fd, "f", IN_OPEN | IN_MASK_ADD)?, wd);
    ok!(chmod(c("f").as_ptr(), 0o600));
    drop(sys::open("f", O_RDONLY)?);
    same!(seen(&fd)?, named(&[(IN_ATTRIB, ""), (IN_OPEN, "")]));
    // Without IN_MASK_ADD the mask is replaced.
    same!(watch(&fd, "f", IN_CLOSE_NOWRITE)?, wd);
    ok!(chmod(c("f").as_ptr(), 0o644));
    drop(sys::open("f", O_RDONLY)?);
    same!(seen(&fd)?, named(&[(IN_CLOSE_NOWRITE, "")]));
    fails!(
        EINVAL,
        inotify_add_watch(fd.as_raw_fd(), c("f").as_ptr(), IN_OPEN | IN_MASK_CREATE | IN_MASK_ADD)
    );
    Ok(())
}

fn same_inode_gives_the_same_number() -> Outcome {
    put("f", b"")?;
    ok!(link(c("f").as_ptr(), c("g").as_ptr()));
    let fd = start()?;
    same!(watch(&fd, "f", IN_OPEN)?, watch(&fd, "g", IN_OPEN)?);
    Ok(())
}

fn rm_watch_gives_ignored() -> Outcome {
    put("f", b"")?;
    let fd = start()?;
    let wd = watch(&fd, "f", IN_OPEN)?;
    ok!(inotify_rm_watch(fd.as_raw_fd(), wd));
    drop(sys::open("f", O_RDONLY)?);
    same!(seen(&fd)?, named(&[(IN_IGNORED, "")]));
    Ok(())
}

fn onlydir_refuses_files() -> Outcome {
    put("f", b"")?;
    let fd = start()?;
    fails!(ENOTDIR, inotify_add_watch(fd.as_raw_fd(), c("f").as_ptr(), IN_OPEN | IN_ONLYDIR));
    watch(&fd, ".", IN_OPEN | IN_ONLYDIR)?;
    Ok(())
}

fn excl_unlink_drops_events_of_unlinked_children() -> Outcome {
    let file = sys::create("f")?;
    let other = sys::create("g")?;
    let (with, without) = (start()?, start()?);
    watch(&with, ".", IN_MODIFY | IN_EXCL_UNLINK)?;
    watch(&without, ".", IN_MODIFY)?;
    ok!(unlink(c("f").as_ptr()));
    sys::fd_write(&file, b"x")?;
    sys::fd_write(&other, b"x")?;
    same!(seen(&with)?, named(&[(IN_MODIFY, "g")]));
    same!(seen(&without)?, named(&[(IN_MODIFY, "f"), (IN_MODIFY, "g")]));
    Ok(())
}

fn equal_events_are_merged() -> Outcome {
    let file = sys::create("f")?;
    let fd = start()?;
    watch(&fd, "f", IN_MODIFY | IN_ATTRIB)?;
    for _ in 0..5 {
        sys::fd_write(&file, b"x")?;
    }
    ok!(fchmod(file.as_raw_fd(), 0o600));
    sys::fd_write(&file, b"x")?;
    same!(seen(&fd)?, named(&[(IN_MODIFY, ""), (IN_ATTRIB, ""), (IN_MODIFY, "")]));
    Ok(())
}

fn small_buffer_is_einval() -> Outcome {
    let fd = start()?;
    watch(&fd, ".", IN_CREATE)?;
    put("a-name-of-some-length", b"")?;
    let mut buf = [0u8; 32];
    fails!(EINVAL, read(fd.as_raw_fd(), buf.as_mut_ptr().cast(), 16));
    fails!(EINVAL, read(fd.as_raw_fd(), buf.as_mut_ptr().cast(), 32));
    same!(seen(&fd)?.len(), 1);
    Ok(())
}

fn nonblocking_and_poll() -> Outcome {
    let fd = start()?;
    watch(&fd, ".", IN_CREATE)?;
    let mut buf = [0u8; 256];
    fails!(EAGAIN, read(fd.as_raw_fd(), buf.as_mut_ptr().cast(), 256));
    let mut p = pollfd { fd: fd.as_raw_fd(), events: POLLIN, revents: 0 };
    same!(ok!(poll(&raw mut p, 1, 0)), 0);
    let kid = sys::fork(|| {
        sys::sleep_ms(20);
        put("f", b"")
    })?;
    same!(ok!(poll(&raw mut p, 1, 5000)), 1);
    same!(p.revents, POLLIN);
    kid.ok()?;
    fails!(EBADF, write(fd.as_raw_fd(), buf.as_ptr().cast(), 1));
    Ok(())
}

fn fionread_counts_bytes() -> Outcome {
    let fd = start()?;
    watch(&fd, ".", IN_CREATE)?;
    let mut n = -1;
    ok!(ioctl(fd.as_raw_fd(), FIONREAD, &raw mut n));
    same!(n, 0);
    put("f", b"")?;
    put("g", b"")?;
    ok!(ioctl(fd.as_raw_fd(), FIONREAD, &raw mut n));
    same!(n, 64);
    Ok(())
}

fn errors() -> Outcome {
    let fd = start()?;
    put("f", b"")?;
    fails!(EINVAL, inotify_init1(1));
    fails!(EINVAL, inotify_add_watch(fd.as_raw_fd(), c("f").as_ptr(), 0));
    fails!(ENOENT, inotify_add_watch(fd.as_raw_fd(), c("none").as_ptr(), IN_OPEN));
    fails!(ENOENT, inotify_add_watch(fd.as_raw_fd(), c("").as_ptr(), IN_OPEN));
    fails!(EFAULT, inotify_add_watch(fd.as_raw_fd(), 8 as *const c_char, IN_OPEN));
    fails!(EBADF, inotify_add_watch(99, c("f").as_ptr(), IN_OPEN));
    let file = sys::open("f", O_RDONLY)?;
    fails!(EINVAL, inotify_add_watch(file.as_raw_fd(), c("f").as_ptr(), IN_OPEN));
    fails!(EINVAL, inotify_rm_watch(file.as_raw_fd(), 1));
    fails!(EINVAL, inotify_rm_watch(fd.as_raw_fd(), 1));
    fails!(EBADF, inotify_rm_watch(99, 1));
    let dir = c("closed");
    ok!(mkdir(dir.as_ptr(), 0o700));
    put("closed/f", b"")?;
    ok!(chmod(c("f").as_ptr(), 0o000));
    sys::fork(|| {
        sys::drop_root()?;
        fails!(EACCES, inotify_add_watch(fd.as_raw_fd(), c("f").as_ptr(), IN_OPEN));
        fails!(EACCES, inotify_add_watch(fd.as_raw_fd(), c("closed/f").as_ptr(), IN_OPEN));
        Ok(())
    })?
    .ok()
}

fn names_are_padded() -> Outcome {
    let fd = start()?;
    watch(&fd, ".", IN_CREATE)?;
    put("123456789012345", b"")?;
    put("1234567890123456", b"")?;
    let mut buf = [0xffu8; 256];
    let n = ok!(read(fd.as_raw_fd(), buf.as_mut_ptr().cast(), 256));
    let len = |at: usize| u32::from_ne_bytes(buf[at + 12..at + 16].try_into().unwrap());
    same!(n, 16 + 16 + 16 + 32);
    same!(len(0), 16);
    same!(len(32), 32);
    want!(buf[64..80].iter().all(|b| *b == 0), "the padding is not zero");
    Ok(())
}

fn numbers_are_not_reused() -> Outcome {
    put("f", b"")?;
    let fd = start()?;
    same!(watch(&fd, "f", IN_OPEN)?, 1);
    ok!(inotify_rm_watch(fd.as_raw_fd(), 1));
    same!(watch(&fd, "f", IN_OPEN)?, 2);
    same!(watch(&fd, ".", IN_OPEN)?, 3);
    Ok(())
}

fn ftruncate_and_write_events() -> Outcome {
    let file = sys::create("f")?;
    let fd = start()?;
    watch(&fd, "f", IN_ALL_EVENTS)?;
    ok!(ftruncate(file.as_raw_fd(), 10));
    same!(seen(&fd)?, named(&[(IN_MODIFY, "")]));
    ok!(truncate(c("f").as_ptr(), 3));
    same!(seen(&fd)?, named(&[(IN_MODIFY, "")]));
    sys::fd_write(&file, b"")?;
    same!(seen(&fd)?, named(&[]));
    ok!(pwrite(file.as_raw_fd(), b"ab".as_ptr().cast(), 2, 5));
    same!(seen(&fd)?, named(&[(IN_MODIFY, "")]));
    Ok(())
}

fn overflow_is_reported_once() -> Outcome {
    let limit: usize = match std::fs::read_to_string("/proc/sys/fs/inotify/max_queued_events") {
        Ok(text) => text.trim().parse().map_err(|e| format!("max_queued_events: {e}"))?,
        Err(_) => 16384,
    };
    if limit > 20_000 {
        skip!("the queue holds {limit} events");
    }
    put("f", b"")?;
    put("g", b"")?;
    let fd = start()?;
    watch(&fd, "f", IN_ATTRIB)?;
    watch(&fd, "g", IN_ATTRIB)?;
    for _ in 0..=limit / 2 + 5 {
        ok!(chmod(c("f").as_ptr(), 0o600));
        ok!(chmod(c("g").as_ptr(), 0o600));
    }
    let got = drain(&fd)?;
    same!(got.len(), limit + 1);
    let last = got.last().unwrap();
    same!((last.wd, last.mask, last.name.as_str()), (-1, IN_Q_OVERFLOW, ""));
    same!(got.iter().filter(|e| e.mask == IN_Q_OVERFLOW).count(), 1);
    Ok(())
}

fn read_is_access() -> Outcome {
    put("f", b"abc")?;
    let file = sys::open("f", O_RDONLY)?;
    let fd = start()?;
    watch(&fd, "f", IN_ALL_EVENTS)?;
    sys::fd_read(&file, 2)?;
    same!(seen(&fd)?, named(&[(IN_ACCESS, "")]));
    let dir = sys::open(".", O_RDONLY)?;
    watch(&fd, ".", IN_ACCESS)?;
    let mut buf = [0u64; 128];
    ok!(syscall(SYS_getdents64, dir.as_raw_fd(), buf.as_mut_ptr(), 1024));
    same!(seen(&fd)?, named(&[(IN_ACCESS | IN_ISDIR, "")]));
    Ok(())
}

fn mkdir_and_rmdir_of_a_watched_directory() -> Outcome {
    ok!(mkdir(c("d").as_ptr(), 0o755));
    let fd = start()?;
    watch(&fd, "d", IN_ALL_EVENTS)?;
    ok!(mkdir(c("d/e").as_ptr(), 0o755));
    ok!(rmdir(c("d/e").as_ptr()));
    ok!(rmdir(c("d").as_ptr()));
    same!(
        seen(&fd)?,
        named(&[
            (IN_CREATE | IN_ISDIR, "e"),
            (IN_DELETE | IN_ISDIR, "e"),
            (IN_DELETE_SELF, ""),
            (IN_IGNORED, ""),
        ])
    );
    Ok(())
}

fn unlinked_while_linked_elsewhere_is_attrib() -> Outcome {
    put("f", b"")?;
    ok!(link(c("f").as_ptr(), c("g").as_ptr()));
    let fd = start()?;
    watch(&fd, "f", IN_ALL_EVENTS)?;
    ok!(unlink(c("f").as_ptr()));
    same!(seen(&fd)?, named(&[(IN_ATTRIB, "")]));
    ok!(chmod(c("g").as_ptr(), 0o600));
    same!(seen(&fd)?, named(&[(IN_ATTRIB, "")]));
    Ok(())
}

fn mmap_and_fallocate_events() -> Outcome {
    let file = sys::create("f")?;
    let fd = start()?;
    watch(&fd, "f", IN_ALL_EVENTS)?;
    ok!(fallocate(file.as_raw_fd(), 0, 0, 4096));
    same!(seen(&fd)?, named(&[(IN_MODIFY, "")]));
    let map = sys::Map::new(4096, PROT_READ | PROT_WRITE, MAP_SHARED, file.as_raw_fd(), 0)?;
    map.set(0, 1);
    same!(map.get(0), 1);
    same!(seen(&fd)?, named(&[]));
    Ok(())
}
