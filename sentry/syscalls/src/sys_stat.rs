//! Looking at files: stat(2) and its kin, statx(2), statfs(2), access(2), readlink(2), getdents(2).

use abi::fs::{DIRENT_HEADER, DIRENT64_HEADER};
use abi::stat::{Stat, Statfs, Statx, StatxTimestamp};
use sentry_base::{Errno, Result};
use sentry_kernel::Current;
use sentry_vfs::{
    Access, Attr, CapSet, Credentials, DirEntry, FileKind, Location, LookupFlags, MountFlags, PathCx,
    Timestamp, as_dir,
};

use crate::args::{Bits, DirFd, PathPtr, Ptr};
use crate::fs_args::{Paths, Target, target};
use crate::table::syscalls;

syscalls! {
    4 stat(path: PathPtr, buf: Ptr) [sync];
    5 fstat(fd: i32, buf: Ptr) [sync];
    6 lstat(path: PathPtr, buf: Ptr) [sync];
    21 access(path: PathPtr, mode: i32) [sync];
    78 getdents(fd: i32, buf: Ptr, len: u32) [sync];
    89 readlink(path: PathPtr, buf: Ptr, len: i32) [sync];
    137 statfs(path: PathPtr, buf: Ptr) [sync];
    138 fstatfs(fd: i32, buf: Ptr) [sync];
    217 getdents64(fd: i32, buf: Ptr, len: u32) [sync];
    262 newfstatat(dir: DirFd, path: PathPtr, buf: Ptr, flags: i32) [sync];
    267 readlinkat(dir: DirFd, path: PathPtr, buf: Ptr, len: i32) [sync];
    269 faccessat(dir: DirFd, path: PathPtr, mode: i32) [sync];
    332 statx(dir: DirFd, path: PathPtr, flags: i32, mask: Bits, buf: Ptr) [sync];
    439 faccessat2(dir: DirFd, path: PathPtr, mode: i32, flags: i32) [sync];
}

/// A device number as `struct stat` holds it (`new_encode_dev`, widened by `huge_encode_dev`): makedev(3)'s layout.
pub(crate) fn to_stat(cx: &Current, attr: &Attr) -> Stat {
    let user_ns = &cx.creds().user_ns;
    Stat {
        dev: attr.dev,
        ino: attr.ino,
        nlink: u64::from(attr.nlink),
        mode: attr.mode,
        uid: user_ns.show_uid(attr.uid),
        gid: user_ns.show_gid(attr.gid),
        rdev: attr.rdev,
        size: attr.size.cast_signed(),
        blksize: i64::from(attr.blksize),
        blocks: attr.blocks.cast_signed(),
        atime: attr.atime.sec,
        atime_nsec: u64::from(attr.atime.nsec),
        mtime: attr.mtime.sec,
        mtime_nsec: u64::from(attr.mtime.nsec),
        ctime: attr.ctime.sec,
        ctime_nsec: u64::from(attr.ctime.nsec),
        ..Stat::default()
    }
}

fn stat_at(cx: &Current, dir: DirFd, path: Ptr, flags: i32) -> Result<Attr> {
    let paths = Paths::of(cx);
    match target(&paths, cx, dir, path, flags)? {
        Target::At(at) => at.inode().attr(),
        Target::File(file) => file.attr(),
    }
}

const CWD: DirFd = DirFd(libc::AT_FDCWD);

fn stat(cx: &mut Current, path: PathPtr, buf: Ptr) -> Result<()> {
    let attr = stat_at(cx, CWD, Ptr(path.0), 0)?;
    cx.write_obj(buf.0, &to_stat(cx, &attr))
}

fn lstat(cx: &mut Current, path: PathPtr, buf: Ptr) -> Result<()> {
    let attr = stat_at(cx, CWD, Ptr(path.0), libc::AT_SYMLINK_NOFOLLOW)?;
    cx.write_obj(buf.0, &to_stat(cx, &attr))
}

fn fstat(cx: &mut Current, fd: i32, buf: Ptr) -> Result<()> {
    let attr = cx.file_or_path(fd)?.attr()?;
    cx.write_obj(buf.0, &to_stat(cx, &attr))
}

fn newfstatat(cx: &mut Current, dir: DirFd, path: PathPtr, buf: Ptr, flags: i32) -> Result<()> {
    if flags & !(libc::AT_SYMLINK_NOFOLLOW | libc::AT_EMPTY_PATH | libc::AT_NO_AUTOMOUNT) != 0 {
        return Err(Errno::EINVAL);
    }
    let attr = stat_at(cx, dir, Ptr(path.0), flags)?;
    cx.write_obj(buf.0, &to_stat(cx, &attr))
}

fn statx_time(time: Timestamp) -> StatxTimestamp {
    StatxTimestamp { sec: time.sec, nsec: time.nsec, reserved: 0 }
}

fn statx(cx: &mut Current, dir: DirFd, path: PathPtr, flags: i32, mask: Bits, buf: Ptr) -> Result<()> {
    const SYNC_TYPE: i32 = 0x6000;
    const MOUNT_ROOT: u64 = 0x2000;
    const MNT_ID: u32 = 0x1000;
    let known = libc::AT_SYMLINK_NOFOLLOW | libc::AT_EMPTY_PATH | libc::AT_NO_AUTOMOUNT | SYNC_TYPE;
    if flags & !known != 0 || flags & SYNC_TYPE == SYNC_TYPE || mask.0 & 0x8000_0000 != 0 {
        return Err(Errno::EINVAL);
    }
    let paths = Paths::of(cx);
    let found = target(&paths, cx, dir, Ptr(path.0), flags)?;
    let (attr, at) = match &found {
        Target::At(at) => (at.inode().attr()?, Some(at)),
        Target::File(file) => (file.attr()?, file.location()),
    };
    let out = Statx {
        mask: 0x7ff | if attr.btime.is_some() { 0x800 } else { 0 } | if at.is_some() { MNT_ID } else { 0 },
        blksize: attr.blksize,
        attributes: if at.is_some_and(Location::is_mount_root) { MOUNT_ROOT } else { 0 },
        nlink: attr.nlink,
        uid: paths.creds.user_ns.show_uid(attr.uid),
        gid: paths.creds.user_ns.show_gid(attr.gid),
        mode: u16::try_from(attr.mode & 0xffff).unwrap_or(0),
        ino: attr.ino,
        size: attr.size,
        blocks: attr.blocks,
        attributes_mask: MOUNT_ROOT,
        atime: statx_time(attr.atime),
        btime: attr.btime.map(statx_time).unwrap_or_default(),
        ctime: statx_time(attr.ctime),
        mtime: statx_time(attr.mtime),
        rdev_major: libc::major(attr.rdev),
        rdev_minor: libc::minor(attr.rdev),
        dev_major: libc::major(attr.dev),
        dev_minor: libc::minor(attr.dev),
        mnt_id: at.map_or(0, |a| a.mount.id()),
        ..Statx::default()
    };
    cx.write_obj(buf.0, &out)
}

fn statfs_of(at: &Location) -> Result<Statfs> {
    const ST_VALID: u64 = 0x20;
    let fs = at.mount.filesystem();
    let s = fs.statfs()?;
    let mount = at.mount.flags();
    let mut flags = ST_VALID | s.flags;
    for (set, bit) in [
        (at.mount.is_read_only(), libc::ST_RDONLY),
        (mount.contains(MountFlags::NOSUID), libc::ST_NOSUID),
        (mount.contains(MountFlags::NODEV), libc::ST_NODEV),
        (mount.contains(MountFlags::NOEXEC), libc::ST_NOEXEC),
        (mount.contains(MountFlags::NOATIME), libc::ST_NOATIME),
        (mount.contains(MountFlags::NODIRATIME), libc::ST_NODIRATIME),
        (!mount.intersects(MountFlags::NOATIME | MountFlags::STRICTATIME), libc::ST_RELATIME),
    ] {
        if set {
            flags |= bit;
        }
    }
    let dev = fs.dev();
    let size = s.block_size.cast_signed();
    Ok(Statfs {
        kind: s.magic.cast_signed(),
        bsize: size,
        blocks: s.blocks,
        bfree: s.blocks_free,
        bavail: s.blocks_available,
        files: s.files,
        ffree: s.files_free,
        fsid: [libc::major(dev).cast_signed(), libc::minor(dev).cast_signed()],
        namelen: s.name_max.cast_signed(),
        frsize: size,
        flags: flags.cast_signed(),
        spare: [0; 4],
    })
}

fn statfs(cx: &mut Current, path: PathPtr, buf: Ptr) -> Result<()> {
    let at = Paths::of(cx).at(CWD, &cx.path(path.0)?, LookupFlags::FOLLOW)?;
    cx.write_obj(buf.0, &statfs_of(&at)?)
}

fn fstatfs(cx: &mut Current, fd: i32, buf: Ptr) -> Result<()> {
    /// `ANON_INODE_FS_MAGIC`
    const ANON: i64 = 0x0904_1934;
    /// `PIPEFS_MAGIC` and `SOCKFS_MAGIC`
    const PIPE: i64 = 0x5049_5045;
    const SOCK: i64 = 0x534f_434b;
    let file = cx.file_or_path(fd)?;
    let out = match file.location() {
        Some(at) => statfs_of(at)?,
        None => Statfs {
            kind: match file.ops().kind() {
                FileKind::Fifo => PIPE,
                FileKind::Socket => SOCK,
                _ => ANON,
            },
            bsize: 4096,
            frsize: 4096,
            namelen: 255,
            flags: 0x20,
            ..Statfs::default()
        },
    };
    cx.write_obj(buf.0, &out)
}

/// The credentials that access(2) asks about: the real ids, and the capabilities that they would have.
fn real_creds(creds: &Credentials) -> Credentials {
    let mut real = creds.clone();
    real.fsuid = creds.uid;
    real.fsgid = creds.gid;
    real.effective = if creds.user_ns.is_root(creds.uid) { creds.permitted } else { CapSet::EMPTY };
    real
}

fn access_at(cx: &Current, dir: DirFd, path: PathPtr, mode: i32, flags: i32) -> Result<()> {
    let known = libc::AT_EACCESS | libc::AT_SYMLINK_NOFOLLOW | libc::AT_EMPTY_PATH;
    if mode & !7 != 0 || flags & !known != 0 {
        return Err(Errno::EINVAL);
    }
    let mut paths = Paths::of(cx);
    if flags & libc::AT_EACCESS == 0 {
        paths.creds = real_creds(&paths.creds).into();
    }
    let at = match target(&paths, cx, dir, Ptr(path.0), flags)? {
        Target::At(at) => at,
        Target::File(file) => {
            let want = Access::from_bits_truncate(mode.cast_unsigned());
            return sentry_vfs::check_attr(&file.attr()?, want, &paths.creds);
        }
    };
    let want = Access::from_bits_truncate(mode.cast_unsigned());
    check_access(&paths.cx(), &at, want)
}

fn check_access(cx: &PathCx<'_>, at: &Location, want: Access) -> Result<()> {
    if want.contains(Access::EXEC)
        && at.inode().kind() == FileKind::Regular
        && at.mount.flags().contains(MountFlags::NOEXEC)
    {
        return Err(Errno::EACCES);
    }
    cx.check(at, want)
}

fn access(cx: &mut Current, path: PathPtr, mode: i32) -> Result<()> {
    access_at(cx, CWD, path, mode, 0)
}

fn faccessat(cx: &mut Current, dir: DirFd, path: PathPtr, mode: i32) -> Result<()> {
    access_at(cx, dir, path, mode, 0)
}

fn faccessat2(cx: &mut Current, dir: DirFd, path: PathPtr, mode: i32, flags: i32) -> Result<()> {
    access_at(cx, dir, path, mode, flags)
}

fn readlink(cx: &mut Current, path: PathPtr, buf: Ptr, len: i32) -> Result<usize> {
    readlinkat(cx, CWD, path, buf, len)
}

fn readlinkat(cx: &mut Current, dir: DirFd, path: PathPtr, buf: Ptr, len: i32) -> Result<usize> {
    let len = usize::try_from(len).ok().filter(|n| *n > 0).ok_or(Errno::EINVAL)?;
    let text = cx.path(path.0)?;
    let epoch = sentry_vfs::epoch::present();
    let at = Paths::of(cx).at(dir, &text, LookupFlags::EMPTY)?;
    if at.inode().kind() != FileKind::Symlink {
        // By names alone that nothing but this sandbox changes: `realpath(3)` asks of the same directories again and again.
        let is_absolute_dir = at.inode().kind() == FileKind::Directory && text.starts_with(b"/");
        let steady = LookupFlags::CACHED | LookupFlags::NO_SYMLINKS | LookupFlags::DIRECTORY;
        if is_absolute_dir && Paths::of(cx).at(dir, &text, steady).is_ok() {
            cx.remember_directory(&text, epoch);
        }
        return Err(if text.is_empty() { Errno::ENOENT } else { Errno::EINVAL });
    }
    let link = at.inode().readlink(&*cx.task)?;
    let n = link.len().min(len);
    cx.copy_out(buf.0, link.get(..n).unwrap_or_default())?;
    Ok(n)
}

/// The most that one listing gathers at once.
const LIST_MAX: usize = 128 * 1024;

/// `struct linux_dirent64`: inode, offset, length of the record, type, name.
fn push_dirent64(out: &mut Vec<u8>, entry: &DirEntry, max: usize) -> bool {
    let len = (DIRENT64_HEADER + entry.name.len() + 1).next_multiple_of(8);
    if out.len() + len > max {
        return false;
    }
    let end = out.len() + len;
    out.extend_from_slice(&entry.ino.to_ne_bytes());
    out.extend_from_slice(&entry.next_cookie.to_ne_bytes());
    out.extend_from_slice(&u16::try_from(len).unwrap_or(u16::MAX).to_ne_bytes());
    out.push(entry.kind.dirent_type());
    out.extend_from_slice(&entry.name);
    out.resize(end, 0);
    true
}

/// `struct linux_dirent`: inode, offset, length of the record, name, and the type in the last byte.
fn push_dirent(out: &mut Vec<u8>, entry: &DirEntry, max: usize) -> bool {
    let len = (DIRENT_HEADER + entry.name.len() + 2).next_multiple_of(8);
    if out.len() + len > max {
        return false;
    }
    let end = out.len() + len;
    out.extend_from_slice(&entry.ino.to_ne_bytes());
    out.extend_from_slice(&entry.next_cookie.to_ne_bytes());
    out.extend_from_slice(&u16::try_from(len).unwrap_or(u16::MAX).to_ne_bytes());
    out.extend_from_slice(&entry.name);
    out.resize(end - 1, 0);
    out.push(entry.kind.dirent_type());
    true
}

fn list(
    cx: &Current,
    fd: i32,
    buf: Ptr,
    len: u32,
    push: fn(&mut Vec<u8>, &DirEntry, usize) -> bool,
) -> Result<usize> {
    let file = cx.file(fd)?;
    let dir = as_dir(file.ops()).ok_or(Errno::ENOTDIR)?;
    let max = usize::try_from(len).unwrap_or(usize::MAX).min(LIST_MAX);
    let mut out = Vec::with_capacity(max.min(32 * 1024));
    let mut full = false;
    let mut position = file.position().lock();
    let mut at = *position;
    dir.read_entries(&mut at, &mut |entry| {
        let taken = push(&mut out, entry, max);
        full |= !taken;
        taken
    })?;
    if let Some(at) = file.location() {
        at.notify(sentry_vfs::watch::event::ACCESS);
    }
    if out.is_empty() {
        return if full { Err(Errno::EINVAL) } else { Ok(0) };
    }
    cx.copy_out(buf.0, &out)?;
    *position = at;
    Ok(out.len())
}

fn getdents64(cx: &mut Current, fd: i32, buf: Ptr, len: u32) -> Result<usize> {
    list(cx, fd, buf, len, push_dirent64)
}

fn getdents(cx: &mut Current, fd: i32, buf: Ptr, len: u32) -> Result<usize> {
    list(cx, fd, buf, len, push_dirent)
}
