//! Mounts: mount(2), umount2(2), pivot_root(2) (`fs/namespace.c`).

use std::sync::Arc;

use sentry_base::{Errno, Result};
use sentry_kernel::Current;
use sentry_vfs::{FileSystem, Location, LookupFlags, MountFlags, Propagation, UmountFlags, cap};

use crate::args::{Bits, DirFd, PathPtr, Ptr};
use crate::fs_args::Paths;
use crate::table::syscalls;

syscalls! {
    155 pivot_root(new_root: PathPtr, put_old: PathPtr) [sync];
    165 mount(source: PathPtr, at: PathPtr, kind: PathPtr, flags: u64, data: Ptr)
        [sync, "tmpfs, ramfs, proc, sysfs, devpts, mqueue and cgroup2; bind, move and propagation"];
    166 umount2(at: PathPtr, flags: Bits) [sync];
}

const CWD: DirFd = DirFd(libc::AT_FDCWD);

const MS_RDONLY: u64 = 1;
const MS_REMOUNT: u64 = 32;
const MS_BIND: u64 = 4096;
const MS_MOVE: u64 = 8192;
const MS_REC: u64 = 16384;
const MS_SILENT: u64 = 32768;
const MS_UNBINDABLE: u64 = 1 << 17;
const MS_PRIVATE: u64 = 1 << 18;
const MS_SLAVE: u64 = 1 << 19;
const MS_SHARED: u64 = 1 << 20;
const PROPAGATION: u64 = MS_UNBINDABLE | MS_PRIVATE | MS_SLAVE | MS_SHARED;
/// `MS_MGC_VAL` in the upper half was once obligatory, and means nothing.
const MAGIC: u64 = 0xc0ed_0000;
const MAGIC_MASK: u64 = 0xffff_0000;
/// The longest text of options: a page, less its NUL.
const DATA_MAX: usize = 4095;

/// Whether the caller may change its mount namespace (`may_mount`).
pub(crate) fn may_mount(paths: &Paths) -> Result<()> {
    if paths.creds.has_cap_in(paths.ns().user_ns(), cap::SYS_ADMIN) { Ok(()) } else { Err(Errno::EPERM) }
}

/// The mount's own flags of a `mount(2)` (`path_mount`). A remount that says nothing of access times keeps what was.
fn mount_flags(flags: u64, remounted: Option<&Location>) -> MountFlags {
    let mut set = MountFlags::from_bits_truncate(u32::try_from(flags & 0xffff_ffff).unwrap_or(0));
    if let Some(at) = remounted
        && !set.intersects(MountFlags::ATIME)
    {
        return set | (at.mount.flags() & MountFlags::ATIME);
    }
    if set.contains(MountFlags::STRICTATIME) {
        set.remove(MountFlags::NOATIME | MountFlags::RELATIME);
    }
    set
}

fn text(cx: &Current, at: u64) -> Result<Option<String>> {
    if at == 0 {
        return Ok(None);
    }
    String::from_utf8(cx.path(at)?).map(Some).map_err(|_| Errno::EINVAL)
}

/// The options, up to a NUL or the end of what can be read (`copy_mount_options`).
fn options(cx: &Current, at: Ptr) -> Result<String> {
    if at.is_null() {
        return Ok(String::new());
    }
    let mut bytes = vec![0; DATA_MAX];
    let got = sentry_memory::UserMemory::copy_in_partial(cx.task.as_ref(), at.0, &mut bytes)?;
    bytes.truncate(got);
    if got == 0 {
        return Err(Errno::EFAULT);
    }
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(got);
    bytes.truncate(end);
    // Options of unknown kind may be binary: no file system here has any.
    Ok(String::from_utf8(bytes).unwrap_or_default())
}

/// A new file system of a type, if the caller may mount it (`mount_capable`).
pub(crate) fn new_file_system(
    cx: &Current,
    paths: &Paths,
    kind: &str,
    source: &str,
    options: &str,
) -> Result<Arc<dyn FileSystem>> {
    let fs_type = paths.ns().vfs().fs_type(kind).ok_or(Errno::ENODEV)?;
    let allowed = if fs_type.allowed_in_user_ns() {
        paths.creds.has_cap_here(cap::SYS_ADMIN)
    } else {
        paths.creds.has_cap(cap::SYS_ADMIN)
    };
    if !allowed {
        return Err(Errno::EPERM);
    }
    fs_type.mount(source, options, &*cx.task)
}

fn mount(cx: &mut Current, source: PathPtr, at: PathPtr, kind: PathPtr, flags: u64, data: Ptr) -> Result<()> {
    let kind = text(cx, kind.0)?;
    let source = if source.0 == 0 { None } else { Some(cx.path(source.0)?) };
    let data = options(cx, data)?;
    let paths = Paths::of(cx);
    let at = paths.at(CWD, &cx.path(at.0)?, LookupFlags::FOLLOW)?;
    let flags = if flags & MAGIC_MASK == MAGIC { flags & !MAGIC_MASK } else { flags };
    may_mount(&paths)?;
    if flags & MS_REMOUNT != 0 {
        return remount(&paths, &at, flags, &data);
    }
    if flags & MS_BIND != 0 {
        let source = place(&paths, source.as_deref())?;
        return paths.ns().bind(&source, &at, flags & MS_REC != 0).map(drop);
    }
    if flags & PROPAGATION != 0 {
        return paths.ns().set_propagation(&at, propagation(flags)?, flags & MS_REC != 0);
    }
    if flags & MS_MOVE != 0 {
        let source = place(&paths, source.as_deref())?;
        return paths.ns().move_mount(&source, &at);
    }
    let kind = kind.ok_or(Errno::EINVAL)?;
    let source = source.map(|s| String::from_utf8_lossy(&s).into_owned());
    let fs = new_file_system(cx, &paths, &kind, source.as_deref().unwrap_or_default(), &data)?;
    let source = source.filter(|s| !s.is_empty()).unwrap_or_else(|| "none".to_owned());
    let user_ns = &paths.creds.user_ns;
    let root = paths.ns().mount_for(&at, fs, mount_flags(flags, None), &source, user_ns)?;
    if flags & MS_RDONLY != 0 {
        root.mount.superblock().set_read_only(true);
    }
    Ok(())
}

/// The place that a bind or move takes its mount from.
fn place(paths: &Paths, source: Option<&[u8]>) -> Result<Location> {
    let source = source.filter(|s| !s.is_empty()).ok_or(Errno::EINVAL)?;
    paths.at(CWD, source, LookupFlags::FOLLOW)
}

/// One propagation type, and nothing else but `MS_REC` (`flags_to_propagation_type`).
fn propagation(flags: u64) -> Result<Propagation> {
    match flags & !(MS_REC | MS_SILENT) {
        MS_SHARED => Ok(Propagation::Shared),
        MS_PRIVATE => Ok(Propagation::Private),
        MS_SLAVE => Ok(Propagation::Slave),
        MS_UNBINDABLE => Ok(Propagation::Unbindable),
        _ => Err(Errno::EINVAL),
    }
}

/// `MS_REMOUNT`: with `MS_BIND` of the mount alone, else of its file system too.
fn remount(paths: &Paths, at: &Location, flags: u64, data: &str) -> Result<()> {
    if !at.is_mount_root() || !paths.ns().contains(&at.mount) {
        return Err(Errno::EINVAL);
    }
    let set = mount_flags(flags, Some(at));
    if !at.mount.may_change_flags(set) {
        return Err(Errno::EPERM);
    }
    if flags & MS_BIND == 0 {
        let sb = at.mount.superblock();
        if !paths.creds.has_cap_in(sb.user_ns(), cap::SYS_ADMIN) {
            return Err(Errno::EPERM);
        }
        sb.filesystem().reconfigure(data)?;
        sb.set_read_only(flags & MS_RDONLY != 0);
    }
    at.mount.set_flags(set);
    Ok(())
}

fn umount2(cx: &mut Current, at: PathPtr, flags: Bits) -> Result<()> {
    let flags = UmountFlags::from_bits(flags.0).ok_or(Errno::EINVAL)?;
    let paths = Paths::of(cx);
    let follow =
        if flags.contains(UmountFlags::NOFOLLOW) { LookupFlags::empty() } else { LookupFlags::FOLLOW };
    let mut target = paths.at(CWD, &cx.path(at.0)?, follow)?;
    may_mount(&paths)?;
    let ns = Arc::clone(paths.ns());
    // `.` may be covered by another mount since (`LOOKUP_MOUNTPOINT`).
    ns.follow_mounts(&mut target);
    // The caller's own view of root and working directory must not count as users.
    drop(paths);
    cx.kernel().settle_files();
    ns.umount(target, flags)
}

fn pivot_root(cx: &mut Current, new_root: PathPtr, put_old: PathPtr) -> Result<()> {
    let paths = Paths::of(cx);
    may_mount(&paths)?;
    let dir = LookupFlags::FOLLOW | LookupFlags::DIRECTORY;
    let new_root = paths.at(CWD, &cx.path(new_root.0)?, dir)?;
    let put_old = paths.at(CWD, &cx.path(put_old.0)?, dir)?;
    let old_root = paths.root().clone();
    paths.ns().pivot_root(&old_root, &new_root, &put_old)?;
    // Everybody whose root or working directory was the old root moves along (`chroot_fs_refs`).
    for task in cx.kernel().tasks() {
        let fs = task.fs();
        if fs.root() == old_root {
            fs.set_root(new_root.clone());
        }
        if fs.cwd() == old_root {
            fs.set_cwd(new_root.clone());
        }
    }
    Ok(())
}
