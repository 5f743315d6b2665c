//! Changing attributes: chmod(2), chown(2), utimensat(2), truncate(2), xattr(7).

use abi::fs::Utimbuf;
use abi::time::{Timespec, Timeval};
use sentry_base::{Errno, Result};
use sentry_kernel::Current;
use sentry_memory::copy_in_cstr;
use sentry_vfs::{FileDescription, Location, LookupFlags, SetTime, Timestamp};

use crate::args::{Bits, DirFd, PathPtr, Ptr};
use crate::fs_args::{Paths, Target, target};
use crate::sys_fd::check_size;
use crate::table::syscalls;

syscalls! {
    76 truncate(path: PathPtr, len: i64) [sync];
    90 chmod(path: PathPtr, mode: Bits) [sync];
    91 fchmod(fd: i32, mode: Bits) [sync];
    92 chown(path: PathPtr, uid: u32, gid: u32) [sync];
    93 fchown(fd: i32, uid: u32, gid: u32) [sync];
    94 lchown(path: PathPtr, uid: u32, gid: u32) [sync];
    132 utime(path: PathPtr, times: Ptr) [sync];
    188 setxattr(path: PathPtr, name: PathPtr, value: Ptr, size: usize, flags: i32) [sync];
    189 lsetxattr(path: PathPtr, name: PathPtr, value: Ptr, size: usize, flags: i32) [sync];
    190 fsetxattr(fd: i32, name: PathPtr, value: Ptr, size: usize, flags: i32) [sync];
    191 getxattr(path: PathPtr, name: PathPtr, value: Ptr, size: usize) [sync];
    192 lgetxattr(path: PathPtr, name: PathPtr, value: Ptr, size: usize) [sync];
    193 fgetxattr(fd: i32, name: PathPtr, value: Ptr, size: usize) [sync];
    194 listxattr(path: PathPtr, list: Ptr, size: usize) [sync];
    195 llistxattr(path: PathPtr, list: Ptr, size: usize) [sync];
    196 flistxattr(fd: i32, list: Ptr, size: usize) [sync];
    197 removexattr(path: PathPtr, name: PathPtr) [sync];
    198 lremovexattr(path: PathPtr, name: PathPtr) [sync];
    199 fremovexattr(fd: i32, name: PathPtr) [sync];
    235 utimes(path: PathPtr, times: Ptr) [sync];
    260 fchownat(dir: DirFd, path: PathPtr, uid: u32, gid: u32, flags: i32) [sync];
    261 futimesat(dir: DirFd, path: PathPtr, times: Ptr) [sync];
    268 fchmodat(dir: DirFd, path: PathPtr, mode: Bits) [sync];
    280 utimensat(dir: DirFd, path: PathPtr, times: Ptr, flags: i32) [sync];
    452 fchmodat2(dir: DirFd, path: PathPtr, mode: Bits, flags: i32) [sync];
}

const CWD: DirFd = DirFd(libc::AT_FDCWD);

/// The place that a path call changes; `EPERM` for a file that has none.
fn place(paths: &Paths, cx: &Current, dir: DirFd, path: PathPtr, flags: i32) -> Result<Location> {
    match target(paths, cx, dir, Ptr(path.0), flags)? {
        Target::At(at) => Ok(at),
        Target::File(_) => Err(Errno::EPERM),
    }
}

/// The place of a descriptor's file; `EPERM` for one that has none (a pipe, a socket).
fn place_of(file: &FileDescription) -> Result<&Location> {
    file.location().ok_or(Errno::EPERM)
}

fn truncate(cx: &mut Current, path: PathPtr, len: i64) -> Result<()> {
    let len = u64::try_from(len).map_err(|_| Errno::EINVAL)?;
    let paths = Paths::of(cx);
    let at = paths.at(CWD, &cx.path(path.0)?, LookupFlags::FOLLOW)?;
    if at.inode().kind() == sentry_vfs::FileKind::Regular {
        check_size(cx, len)?;
    }
    paths.cx().truncate(&at, len)
}

fn chmod(cx: &mut Current, path: PathPtr, mode: Bits) -> Result<()> {
    fchmodat2(cx, CWD, path, mode, 0)
}

fn fchmodat(cx: &mut Current, dir: DirFd, path: PathPtr, mode: Bits) -> Result<()> {
    fchmodat2(cx, dir, path, mode, 0)
}

fn fchmodat2(cx: &mut Current, dir: DirFd, path: PathPtr, mode: Bits, flags: i32) -> Result<()> {
    if flags & !(libc::AT_SYMLINK_NOFOLLOW | libc::AT_EMPTY_PATH) != 0 {
        return Err(Errno::EINVAL);
    }
    let paths = Paths::of(cx);
    let at = place(&paths, cx, dir, path, flags)?;
    paths.cx().chmod(&at, mode.0)
}

fn fchmod(cx: &mut Current, fd: i32, mode: Bits) -> Result<()> {
    let file = cx.file(fd)?;
    Paths::of(cx).cx().chmod(place_of(&file)?, mode.0)
}

/// An id argument: -1 leaves it as it is.
fn ids(cx: &Current, uid: u32, gid: u32) -> Result<(Option<u32>, Option<u32>)> {
    let user_ns = &cx.creds().user_ns;
    let uid = if uid == u32::MAX { None } else { Some(user_ns.uid(uid)?) };
    let gid = if gid == u32::MAX { None } else { Some(user_ns.gid(gid)?) };
    Ok((uid, gid))
}

fn chown(cx: &mut Current, path: PathPtr, uid: u32, gid: u32) -> Result<()> {
    fchownat(cx, CWD, path, uid, gid, 0)
}

fn lchown(cx: &mut Current, path: PathPtr, uid: u32, gid: u32) -> Result<()> {
    fchownat(cx, CWD, path, uid, gid, libc::AT_SYMLINK_NOFOLLOW)
}

fn fchownat(cx: &mut Current, dir: DirFd, path: PathPtr, uid: u32, gid: u32, flags: i32) -> Result<()> {
    if flags & !(libc::AT_SYMLINK_NOFOLLOW | libc::AT_EMPTY_PATH) != 0 {
        return Err(Errno::EINVAL);
    }
    let paths = Paths::of(cx);
    let at = place(&paths, cx, dir, path, flags)?;
    let (uid, gid) = ids(cx, uid, gid)?;
    paths.cx().chown(&at, uid, gid)
}

fn fchown(cx: &mut Current, fd: i32, uid: u32, gid: u32) -> Result<()> {
    let file = cx.file(fd)?;
    let (uid, gid) = ids(cx, uid, gid)?;
    Paths::of(cx).cx().chown(place_of(&file)?, uid, gid)
}

type Times = (Option<SetTime>, Option<SetTime>);

const NOW: Times = (Some(SetTime::Now), Some(SetTime::Now));

fn from_timespec(time: Timespec) -> Result<Option<SetTime>> {
    match time.nsec {
        libc::UTIME_NOW => Ok(Some(SetTime::Now)),
        libc::UTIME_OMIT => Ok(None),
        nsec if (0..1_000_000_000).contains(&nsec) => {
            Ok(Some(SetTime::At(Timestamp { sec: time.sec, nsec: u32::try_from(nsec).unwrap_or(0) })))
        }
        _ => Err(Errno::EINVAL),
    }
}

fn from_timeval(time: Timeval) -> Result<Option<SetTime>> {
    let nsec = u32::try_from(time.usec).ok().filter(|u| *u < 1_000_000).ok_or(Errno::EINVAL)? * 1000;
    Ok(Some(SetTime::At(Timestamp { sec: time.sec, nsec })))
}

fn utime(cx: &mut Current, path: PathPtr, times: Ptr) -> Result<()> {
    let times = if times.is_null() {
        NOW
    } else {
        let raw: Utimbuf = cx.read_obj(times.0)?;
        let at = |sec| Some(SetTime::At(Timestamp { sec, nsec: 0 }));
        (at(raw.actime), at(raw.modtime))
    };
    set_times(cx, CWD, path, times, 0)
}

fn utimes(cx: &mut Current, path: PathPtr, times: Ptr) -> Result<()> {
    futimesat(cx, CWD, path, times)
}

fn futimesat(cx: &mut Current, dir: DirFd, path: PathPtr, times: Ptr) -> Result<()> {
    let times = if times.is_null() {
        NOW
    } else {
        let [atime, mtime]: [Timeval; 2] = cx.read_obj(times.0)?;
        (from_timeval(atime)?, from_timeval(mtime)?)
    };
    if path.0 == 0 {
        return set_times_fd(cx, dir, times);
    }
    set_times(cx, dir, path, times, 0)
}

fn utimensat(cx: &mut Current, dir: DirFd, path: PathPtr, times: Ptr, flags: i32) -> Result<()> {
    if flags & !(libc::AT_SYMLINK_NOFOLLOW | libc::AT_EMPTY_PATH) != 0 {
        return Err(Errno::EINVAL);
    }
    let times = if times.is_null() {
        NOW
    } else {
        let [atime, mtime]: [Timespec; 2] = cx.read_obj(times.0)?;
        (from_timespec(atime)?, from_timespec(mtime)?)
    };
    if times == (None, None) {
        return Ok(());
    }
    if path.0 == 0 && flags & libc::AT_EMPTY_PATH == 0 {
        if flags != 0 {
            return Err(Errno::EINVAL);
        }
        return set_times_fd(cx, dir, times);
    }
    set_times(cx, dir, path, times, flags)
}

/// A null path: the descriptor's own file (`futimens(3)`).
fn set_times_fd(cx: &Current, dir: DirFd, times: Times) -> Result<()> {
    if dir.0 == libc::AT_FDCWD {
        return Err(Errno::EFAULT);
    }
    let file = cx.file(dir.0)?;
    match file.location() {
        Some(at) => Paths::of(cx).cx().set_times(at, times.0, times.1),
        // The times of a pipe or socket are nobody's business.
        None => Ok(()),
    }
}

fn set_times(cx: &Current, dir: DirFd, path: PathPtr, times: Times, flags: i32) -> Result<()> {
    let paths = Paths::of(cx);
    let at = place(&paths, cx, dir, path, flags)?;
    paths.cx().set_times(&at, times.0, times.1)
}

/// `XATTR_SIZE_MAX`
const VALUE_MAX: usize = 65536;

fn attr_name(cx: &Current, name: PathPtr) -> Result<Vec<u8>> {
    let name = copy_in_cstr(&*cx.task, name.0, 256, Errno::ERANGE)?;
    if name.is_empty() { Err(Errno::ERANGE) } else { Ok(name) }
}

/// What the path and the descriptor forms of a call work on.
enum On {
    Path(PathPtr, i32),
    Fd(i32),
}

impl On {
    fn place(&self, paths: &Paths, cx: &Current) -> Result<Location> {
        match self {
            Self::Path(path, flags) => place(paths, cx, CWD, *path, *flags),
            Self::Fd(fd) => cx.file(*fd)?.location().cloned().ok_or(Errno::EOPNOTSUPP),
        }
    }
}

fn set_xattr(cx: &Current, on: On, name: PathPtr, value: Ptr, size: usize, flags: i32) -> Result<()> {
    if flags & !(libc::XATTR_CREATE | libc::XATTR_REPLACE) != 0 {
        return Err(Errno::EINVAL);
    }
    let name = attr_name(cx, name)?;
    if size > VALUE_MAX {
        return Err(Errno::E2BIG);
    }
    let mut bytes = vec![0; size];
    cx.copy_in(value.0, &mut bytes)?;
    let paths = Paths::of(cx);
    let at = on.place(&paths, cx)?;
    paths.cx().set_xattr(&at, &name, &bytes, flags)
}

/// Copies a value out; a `size` of 0 only asks for its length.
fn give(cx: &Current, bytes: &[u8], to: Ptr, size: usize) -> Result<usize> {
    if size != 0 {
        if bytes.len() > size {
            return Err(Errno::ERANGE);
        }
        cx.copy_out(to.0, bytes)?;
    }
    Ok(bytes.len())
}

fn get_xattr(cx: &Current, on: On, name: PathPtr, value: Ptr, size: usize) -> Result<usize> {
    let name = attr_name(cx, name)?;
    let paths = Paths::of(cx);
    let at = on.place(&paths, cx)?;
    give(cx, &paths.cx().get_xattr(&at, &name)?, value, size)
}

fn list_xattr(cx: &Current, on: On, list: Ptr, size: usize) -> Result<usize> {
    let paths = Paths::of(cx);
    let at = on.place(&paths, cx)?;
    give(cx, &paths.cx().list_xattr(&at)?, list, size)
}

fn remove_xattr(cx: &Current, on: On, name: PathPtr) -> Result<()> {
    let name = attr_name(cx, name)?;
    let paths = Paths::of(cx);
    let at = on.place(&paths, cx)?;
    paths.cx().remove_xattr(&at, &name)
}

const NOFOLLOW: i32 = libc::AT_SYMLINK_NOFOLLOW;

fn setxattr(
    cx: &mut Current,
    path: PathPtr,
    name: PathPtr,
    value: Ptr,
    size: usize,
    flags: i32,
) -> Result<()> {
    set_xattr(cx, On::Path(path, 0), name, value, size, flags)
}

fn lsetxattr(
    cx: &mut Current,
    path: PathPtr,
    name: PathPtr,
    value: Ptr,
    size: usize,
    flags: i32,
) -> Result<()> {
    set_xattr(cx, On::Path(path, NOFOLLOW), name, value, size, flags)
}

fn fsetxattr(cx: &mut Current, fd: i32, name: PathPtr, value: Ptr, size: usize, flags: i32) -> Result<()> {
    set_xattr(cx, On::Fd(fd), name, value, size, flags)
}

fn getxattr(cx: &mut Current, path: PathPtr, name: PathPtr, value: Ptr, size: usize) -> Result<usize> {
    get_xattr(cx, On::Path(path, 0), name, value, size)
}

fn lgetxattr(cx: &mut Current, path: PathPtr, name: PathPtr, value: Ptr, size: usize) -> Result<usize> {
    get_xattr(cx, On::Path(path, NOFOLLOW), name, value, size)
}

fn fgetxattr(cx: &mut Current, fd: i32, name: PathPtr, value: Ptr, size: usize) -> Result<usize> {
    get_xattr(cx, On::Fd(fd), name, value, size)
}

fn listxattr(cx: &mut Current, path: PathPtr, list: Ptr, size: usize) -> Result<usize> {
    list_xattr(cx, On::Path(path, 0), list, size)
}

fn llistxattr(cx: &mut Current, path: PathPtr, list: Ptr, size: usize) -> Result<usize> {
    list_xattr(cx, On::Path(path, NOFOLLOW), list, size)
}

fn flistxattr(cx: &mut Current, fd: i32, list: Ptr, size: usize) -> Result<usize> {
    list_xattr(cx, On::Fd(fd), list, size)
}

fn removexattr(cx: &mut Current, path: PathPtr, name: PathPtr) -> Result<()> {
    remove_xattr(cx, On::Path(path, 0), name)
}

fn lremovexattr(cx: &mut Current, path: PathPtr, name: PathPtr) -> Result<()> {
    remove_xattr(cx, On::Path(path, NOFOLLOW), name)
}

fn fremovexattr(cx: &mut Current, fd: i32, name: PathPtr) -> Result<()> {
    remove_xattr(cx, On::Fd(fd), name)
}
