//! Names: mkdir(2), mknod(2), link(2), symlink(2), unlink(2), rename(2), the working directory, the root.

use sentry_base::{Errno, Result};
use sentry_kernel::Current;
use sentry_vfs::{Access, LookupFlags, RenameFlags, cap};

use crate::args::{Bits, DirFd, PathPtr, Ptr};
use crate::fs_args::{Paths, Target, target};
use crate::table::syscalls;

syscalls! {
    79 getcwd(buf: Ptr, size: usize) [sync];
    80 chdir(path: PathPtr) [sync];
    81 fchdir(fd: i32) [sync];
    82 rename(old: PathPtr, new: PathPtr) [sync];
    83 mkdir(path: PathPtr, mode: Bits) [sync];
    84 rmdir(path: PathPtr) [sync];
    86 link(old: PathPtr, new: PathPtr) [sync];
    87 unlink(path: PathPtr) [sync];
    88 symlink(target: PathPtr, path: PathPtr) [sync];
    95 umask(mask: Bits) [sync];
    133 mknod(path: PathPtr, mode: Bits, dev: u32) [sync];
    161 chroot(path: PathPtr) [sync];
    258 mkdirat(dir: DirFd, path: PathPtr, mode: Bits) [sync];
    259 mknodat(dir: DirFd, path: PathPtr, mode: Bits, dev: u32) [sync];
    263 unlinkat(dir: DirFd, path: PathPtr, flags: i32) [sync];
    264 renameat(old_dir: DirFd, old: PathPtr, new_dir: DirFd, new: PathPtr) [sync];
    265 linkat(old_dir: DirFd, old: PathPtr, new_dir: DirFd, new: PathPtr, flags: i32) [sync];
    266 symlinkat(target: PathPtr, dir: DirFd, path: PathPtr) [sync];
    303 name_to_handle_at(dir: DirFd, path: PathPtr, handle: Ptr, mount_id: Ptr, flags: i32)
        [sync, "no file system gives handles: EOPNOTSUPP"];
    316 renameat2(old_dir: DirFd, old: PathPtr, new_dir: DirFd, new: PathPtr, flags: Bits) [sync];
}

const CWD: DirFd = DirFd(libc::AT_FDCWD);
const PLAIN: LookupFlags = LookupFlags::empty();

fn getcwd(cx: &mut Current, buf: Ptr, size: usize) -> Result<usize> {
    let paths = Paths::of(cx);
    let cwd = paths.cwd().path_from(paths.root());
    if paths.cwd().dentry.is_unlinked() {
        return Err(Errno::ENOENT);
    }
    let mut text = if cwd.reachable { Vec::new() } else { b"(unreachable)".to_vec() };
    text.extend_from_slice(&cwd.bytes);
    text.push(0);
    if text.len() > sentry_vfs::PATH_MAX {
        return Err(Errno::ENAMETOOLONG);
    }
    if text.len() > size {
        return Err(Errno::ERANGE);
    }
    cx.copy_out(buf.0, &text)?;
    Ok(text.len())
}

fn chdir(cx: &mut Current, path: PathPtr) -> Result<()> {
    let paths = Paths::of(cx);
    let at = paths.at(CWD, &cx.path(path.0)?, LookupFlags::FOLLOW | LookupFlags::DIRECTORY)?;
    paths.cx().check(&at, Access::EXEC)?;
    paths.fs().set_cwd(at);
    Ok(())
}

fn fchdir(cx: &mut Current, fd: i32) -> Result<()> {
    let file = cx.file_or_path(fd)?;
    let at = file.location().filter(|at| at.is_dir()).ok_or(Errno::ENOTDIR)?;
    let paths = Paths::of(cx);
    paths.cx().check(at, Access::EXEC)?;
    paths.fs().set_cwd(at.clone());
    Ok(())
}

fn chroot(cx: &mut Current, path: PathPtr) -> Result<()> {
    let paths = Paths::of(cx);
    let at = paths.at(CWD, &cx.path(path.0)?, LookupFlags::FOLLOW | LookupFlags::DIRECTORY)?;
    paths.cx().check(&at, Access::EXEC)?;
    if !paths.creds.has_cap_here(cap::SYS_CHROOT) {
        return Err(Errno::EPERM);
    }
    paths.fs().set_root(at);
    Ok(())
}

fn umask(cx: &mut Current, mask: Bits) -> Result<u32> {
    Ok(cx.fs().set_umask(mask.0))
}

fn mkdir(cx: &mut Current, path: PathPtr, mode: Bits) -> Result<()> {
    mkdirat(cx, CWD, path, mode)
}

fn mkdirat(cx: &mut Current, dir: DirFd, path: PathPtr, mode: Bits) -> Result<()> {
    let (paths, path) = (Paths::of(cx), cx.path(path.0)?);
    let base = paths.base(dir, &path, PLAIN)?;
    paths.cx().mkdir(base.as_ref(), &path, mode.0).map(|_| ())
}

fn mknod(cx: &mut Current, path: PathPtr, mode: Bits, dev: u32) -> Result<()> {
    mknodat(cx, CWD, path, mode, dev)
}

fn mknodat(cx: &mut Current, dir: DirFd, path: PathPtr, mode: Bits, dev: u32) -> Result<()> {
    let (paths, path) = (Paths::of(cx), cx.path(path.0)?);
    let base = paths.base(dir, &path, PLAIN)?;
    // `new_decode_dev`: 12 bits of major, 20 of minor in two parts.
    let (major, minor) = ((dev & 0xfff00) >> 8, (dev & 0xff) | ((dev >> 12) & 0xfff00));
    paths.cx().mknod(base.as_ref(), &path, mode.0, libc::makedev(major, minor)).map(|_| ())
}

fn symlink(cx: &mut Current, text: PathPtr, path: PathPtr) -> Result<()> {
    symlinkat(cx, text, CWD, path)
}

fn symlinkat(cx: &mut Current, text: PathPtr, dir: DirFd, path: PathPtr) -> Result<()> {
    let (paths, text, path) = (Paths::of(cx), cx.path(text.0)?, cx.path(path.0)?);
    let base = paths.base(dir, &path, PLAIN)?;
    paths.cx().symlink(&text, base.as_ref(), &path).map(|_| ())
}

fn link(cx: &mut Current, old: PathPtr, new: PathPtr) -> Result<()> {
    linkat(cx, CWD, old, CWD, new, 0)
}

fn linkat(
    cx: &mut Current,
    old_dir: DirFd,
    old: PathPtr,
    new_dir: DirFd,
    new: PathPtr,
    flags: i32,
) -> Result<()> {
    if flags & !(libc::AT_SYMLINK_FOLLOW | libc::AT_EMPTY_PATH) != 0 {
        return Err(Errno::EINVAL);
    }
    let paths = Paths::of(cx);
    if flags & libc::AT_EMPTY_PATH != 0 && !paths.creds.has_cap(cap::DAC_READ_SEARCH) {
        return Err(Errno::ENOENT);
    }
    let nofollow = if flags & libc::AT_SYMLINK_FOLLOW == 0 { libc::AT_SYMLINK_NOFOLLOW } else { 0 };
    let at = match target(&paths, cx, old_dir, Ptr(old.0), flags & libc::AT_EMPTY_PATH | nofollow)? {
        Target::At(at) => at,
        Target::File(_) => return Err(Errno::EXDEV),
    };
    let new = cx.path(new.0)?;
    let base = paths.base(new_dir, &new, PLAIN)?;
    paths.cx().link(&at, base.as_ref(), &new)
}

fn unlink(cx: &mut Current, path: PathPtr) -> Result<()> {
    unlinkat(cx, CWD, path, 0)
}

fn rmdir(cx: &mut Current, path: PathPtr) -> Result<()> {
    unlinkat(cx, CWD, path, libc::AT_REMOVEDIR)
}

fn unlinkat(cx: &mut Current, dir: DirFd, path: PathPtr, flags: i32) -> Result<()> {
    if flags & !libc::AT_REMOVEDIR != 0 {
        return Err(Errno::EINVAL);
    }
    let (paths, path) = (Paths::of(cx), cx.path(path.0)?);
    let base = paths.base(dir, &path, PLAIN)?;
    if flags & libc::AT_REMOVEDIR != 0 {
        paths.cx().rmdir(base.as_ref(), &path)
    } else {
        paths.cx().unlink(base.as_ref(), &path)
    }
}

fn rename(cx: &mut Current, old: PathPtr, new: PathPtr) -> Result<()> {
    renameat2(cx, CWD, old, CWD, new, Bits(0))
}

fn renameat(cx: &mut Current, old_dir: DirFd, old: PathPtr, new_dir: DirFd, new: PathPtr) -> Result<()> {
    renameat2(cx, old_dir, old, new_dir, new, Bits(0))
}

fn renameat2(
    cx: &mut Current,
    old_dir: DirFd,
    old: PathPtr,
    new_dir: DirFd,
    new: PathPtr,
    flags: Bits,
) -> Result<()> {
    let flags = RenameFlags::from_bits(flags.0).ok_or(Errno::EINVAL)?;
    let (paths, old, new) = (Paths::of(cx), cx.path(old.0)?, cx.path(new.0)?);
    let old_base = paths.base(old_dir, &old, PLAIN)?;
    let new_base = paths.base(new_dir, &new, PLAIN)?;
    paths.cx().rename(old_base.as_ref(), &old, new_base.as_ref(), &new, flags)
}

fn name_to_handle_at(
    cx: &mut Current,
    dir: DirFd,
    path: PathPtr,
    _handle: Ptr,
    _mount_id: Ptr,
    flags: i32,
) -> Result<()> {
    /// `AT_HANDLE_FID`, `AT_HANDLE_MNT_ID_UNIQUE`, `AT_HANDLE_CONNECTABLE`
    const HANDLE: i32 = 0x203;
    if flags & !(libc::AT_SYMLINK_FOLLOW | libc::AT_EMPTY_PATH | HANDLE) != 0 {
        return Err(Errno::EINVAL);
    }
    let nofollow = if flags & libc::AT_SYMLINK_FOLLOW == 0 { libc::AT_SYMLINK_NOFOLLOW } else { 0 };
    target(&Paths::of(cx), cx, dir, Ptr(path.0), flags & libc::AT_EMPTY_PATH | nofollow)?;
    Err(Errno::EOPNOTSUPP)
}
