//! Mounts by descriptor: open_tree(2), move_mount(2), fsopen(2), fsconfig(2), fsmount(2), fspick(2), mount_setattr(2).

use core::any::Any;
use std::sync::Arc;

use sentry_base::{Errno, Mutex, Result, lock::rank};
use sentry_kernel::Current;
use sentry_vfs::{
    FileDescription, FileOps, FileSystem, Location, MountFlags, MountTree, OpenFlags, Propagation, cap,
};

use crate::args::{Bits, DirFd, PathPtr, Ptr};
use crate::files::add_file;
use crate::fs_args::{Paths, Target, target};
use crate::sys_mount::{may_mount, new_file_system};
use crate::table::syscalls;

syscalls! {
    428 open_tree(dir: DirFd, path: PathPtr, flags: Bits) [sync];
    429 move_mount(from_dir: DirFd, from: PathPtr, to_dir: DirFd, to: PathPtr, flags: Bits)
        [sync, "no MOVE_MOUNT_SET_GROUP and MOVE_MOUNT_BENEATH"];
    430 fsopen(kind: PathPtr, flags: Bits) [sync];
    431 fsconfig(fd: i32, command: Bits, key: PathPtr, value: Ptr, aux: i32) [sync, "flags and strings"];
    432 fsmount(fd: i32, flags: Bits, attributes: Bits) [sync];
    433 fspick(dir: DirFd, path: PathPtr, flags: Bits) [sync];
    442 mount_setattr(dir: DirFd, path: PathPtr, flags: Bits, attr: Ptr, size: usize) [sync, "no mapped ids"];
}

const OPEN_TREE_CLONE: u32 = 1;
const CLOEXEC: u32 = 0x8_0000;
const AT_SYMLINK_NOFOLLOW: u32 = 0x100;
const AT_NO_AUTOMOUNT: u32 = 0x800;
const AT_EMPTY_PATH: u32 = 0x1000;
const AT_RECURSIVE: u32 = 0x8000;

/// An open mount that hangs nowhere, or just a place. Closing it lets go of what was never attached.
struct TreeFile {
    _tree: Option<MountTree>,
}

impl FileOps for TreeFile {
    fn as_any(&self) -> &dyn Any {
        self
    }
}

fn place_of(
    cx: &Current,
    paths: &Paths,
    dir: DirFd,
    path: PathPtr,
    empty: bool,
    follow: bool,
) -> Result<Location> {
    let flags =
        if empty { libc::AT_EMPTY_PATH } else { 0 } | if follow { 0 } else { libc::AT_SYMLINK_NOFOLLOW };
    match target(paths, cx, dir, Ptr(path.0), flags)? {
        Target::At(at) => Ok(at),
        Target::File(_) => Err(Errno::EINVAL),
    }
}

fn add_place(cx: &Current, at: Location, tree: Option<MountTree>, cloexec: bool) -> Result<i32> {
    let file = FileDescription::new(Arc::new(TreeFile { _tree: tree }), OpenFlags::PATH, Some(at));
    cx.fds().add(file, cloexec, cx.rlimit(abi::process::rlimit::NOFILE))
}

fn open_tree(cx: &mut Current, dir: DirFd, path: PathPtr, flags: Bits) -> Result<i32> {
    let known =
        OPEN_TREE_CLONE | CLOEXEC | AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | AT_EMPTY_PATH | AT_RECURSIVE;
    let clone = flags.0 & OPEN_TREE_CLONE != 0;
    let recursive = flags.0 & AT_RECURSIVE != 0;
    if flags.0 & !known != 0 || (recursive && !clone) {
        return Err(Errno::EINVAL);
    }
    let paths = Paths::of(cx);
    if clone {
        may_mount(&paths)?;
    }
    let (empty, follow) = (flags.0 & AT_EMPTY_PATH != 0, flags.0 & AT_SYMLINK_NOFOLLOW == 0);
    let at = place_of(cx, &paths, dir, path, empty, follow)?;
    let cloexec = flags.0 & CLOEXEC != 0;
    if !clone {
        return add_place(cx, at, None, cloexec);
    }
    let tree = paths.ns().loose_bind(&at, recursive)?;
    add_place(cx, tree.root(), Some(tree), cloexec)
}

fn move_mount(
    cx: &mut Current,
    from_dir: DirFd,
    from: PathPtr,
    to_dir: DirFd,
    to: PathPtr,
    flags: Bits,
) -> Result<()> {
    const F_SYMLINKS: u32 = 1;
    const F_EMPTY_PATH: u32 = 4;
    const T_SYMLINKS: u32 = 0x10;
    const T_EMPTY_PATH: u32 = 0x40;
    let paths = Paths::of(cx);
    may_mount(&paths)?;
    if flags.0 & !0x77 != 0 {
        return Err(Errno::EINVAL);
    }
    let has = |flag| flags.0 & flag != 0;
    let to = place_of(cx, &paths, to_dir, to, has(T_EMPTY_PATH), has(T_SYMLINKS))?;
    let from = place_of(cx, &paths, from_dir, from, has(F_EMPTY_PATH), has(F_SYMLINKS))?;
    paths.ns().move_mount(&from, &to)
}

/// The state of a file system that is being set up or changed (`struct fs_context`).
struct Setup {
    kind: String,
    source: Option<String>,
    options: Vec<String>,
    read_only: bool,
    /// Made, and not yet mounted.
    made: Option<Arc<dyn FileSystem>>,
    /// What is to be changed, for one that exists.
    picked: Option<Location>,
}

struct FsContextFile(Mutex<Setup, { rank::LEAF }>);

impl FileOps for FsContextFile {
    fn try_read(
        &self,
        _io: &sentry_vfs::IoCtx<'_>,
        _dst: &mut sentry_memory::UserWriter<'_>,
        _pos: sentry_vfs::Pos,
    ) -> Result<sentry_vfs::IoStart<usize>> {
        // The log of messages, which is always empty.
        Err(Errno::ENODATA)
    }

    fn link_text(&self) -> Option<String> {
        Some("anon_inode:[fscontext]".to_owned())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

fn add_context(cx: &Current, setup: Setup, cloexec: bool) -> Result<i32> {
    add_file(cx, Arc::new(FsContextFile(Mutex::new(setup))), OpenFlags::RDWR, cloexec)
}

fn fsopen(cx: &mut Current, kind: PathPtr, flags: Bits) -> Result<i32> {
    let paths = Paths::of(cx);
    may_mount(&paths)?;
    if flags.0 & !1 != 0 {
        return Err(Errno::EINVAL);
    }
    let kind = String::from_utf8(cx.path(kind.0)?).map_err(|_| Errno::ENODEV)?;
    paths.ns().vfs().fs_type(&kind).ok_or(Errno::ENODEV)?;
    let setup = Setup { kind, source: None, options: Vec::new(), read_only: false, made: None, picked: None };
    add_context(cx, setup, flags.0 & 1 != 0)
}

fn fspick(cx: &mut Current, dir: DirFd, path: PathPtr, flags: Bits) -> Result<i32> {
    let paths = Paths::of(cx);
    may_mount(&paths)?;
    // FSPICK_CLOEXEC, SYMLINK_NOFOLLOW, NO_AUTOMOUNT, EMPTY_PATH.
    if flags.0 & !0xf != 0 {
        return Err(Errno::EINVAL);
    }
    let at = place_of(cx, &paths, dir, path, flags.0 & 8 != 0, flags.0 & 2 == 0)?;
    if !at.is_mount_root() {
        return Err(Errno::EINVAL);
    }
    let setup = Setup {
        kind: at.mount.filesystem().name().to_owned(),
        source: None,
        options: Vec::new(),
        read_only: at.mount.superblock().is_read_only(),
        made: None,
        picked: Some(at),
    };
    add_context(cx, setup, flags.0 & 1 != 0)
}

fn fsconfig(cx: &mut Current, fd: i32, command: Bits, key: PathPtr, value: Ptr, aux: i32) -> Result<()> {
    const SET_FLAG: u32 = 0;
    const SET_STRING: u32 = 1;
    const CREATE: u32 = 6;
    const RECONFIGURE: u32 = 7;
    if fd < 0 {
        return Err(Errno::EINVAL);
    }
    let (has_key, has_value) = (key.0 != 0, !value.is_null());
    match command.0 {
        SET_FLAG if !has_key || has_value || aux != 0 => return Err(Errno::EINVAL),
        SET_STRING if !has_key || !has_value || aux != 0 => return Err(Errno::EINVAL),
        CREATE | RECONFIGURE if has_key || has_value || aux != 0 => return Err(Errno::EINVAL),
        SET_FLAG | SET_STRING | CREATE | RECONFIGURE => {}
        _ => return Err(Errno::EOPNOTSUPP),
    }
    let file = cx.file(fd)?;
    let context = file.ops().as_any().downcast_ref::<FsContextFile>().ok_or(Errno::EINVAL)?;
    let read = |at: u64| String::from_utf8(cx.path(at)?).map_err(|_| Errno::EINVAL);
    let paths = Paths::of(cx);
    match command.0 {
        CREATE => {
            let (kind, source, options) = {
                let setup = context.0.lock();
                if setup.made.is_some() || setup.picked.is_some() {
                    return Err(Errno::EBUSY);
                }
                (setup.kind.clone(), setup.source.clone().unwrap_or_default(), setup.options.join(","))
            };
            let made = new_file_system(cx, &paths, &kind, &source, &options)?;
            context.0.lock().made = Some(made);
            Ok(())
        }
        RECONFIGURE => {
            let (at, options, read_only) = {
                let setup = context.0.lock();
                (setup.picked.clone().ok_or(Errno::EBUSY)?, setup.options.join(","), setup.read_only)
            };
            let sb = at.mount.superblock();
            if !paths.creds.has_cap_in(sb.user_ns(), cap::SYS_ADMIN) {
                return Err(Errno::EPERM);
            }
            sb.filesystem().reconfigure(&options)?;
            sb.set_read_only(read_only);
            Ok(())
        }
        _ => {
            let key = read(key.0)?;
            let value = if command.0 == SET_STRING { Some(read(value.0)?) } else { None };
            let mut setup = context.0.lock();
            match (key.as_str(), value) {
                ("source", Some(source)) => setup.source = Some(source),
                ("ro", None) => setup.read_only = true,
                ("rw", None) => setup.read_only = false,
                (_, None) => setup.options.push(key),
                (_, Some(value)) => setup.options.push(format!("{key}={value}")),
            }
            Ok(())
        }
    }
}

/// `MOUNT_ATTR__ATIME`, in which relative access times are zero.
const ATTR_ATIME: u64 = 0x70;
/// Every attribute that is known but for mapped ids.
const ATTR_VALID: u64 = 0x0020_00ff;

/// The flags that attributes of a mount stand for; `EINVAL` for unknown ones.
fn flags_of(attributes: u64) -> Result<MountFlags> {
    if attributes & !ATTR_VALID != 0 {
        return Err(Errno::EINVAL);
    }
    let mut flags = MountFlags::from_bits_truncate(u32::try_from(attributes & 0xf).unwrap_or(0));
    match attributes & ATTR_ATIME {
        0 => flags |= MountFlags::RELATIME,
        0x10 => flags |= MountFlags::NOATIME,
        0x20 => flags |= MountFlags::STRICTATIME,
        _ => return Err(Errno::EINVAL),
    }
    flags.set(MountFlags::NODIRATIME, attributes & 0x80 != 0);
    flags.set(MountFlags::NOSYMFOLLOW, attributes & 0x0020_0000 != 0);
    Ok(flags)
}

fn fsmount(cx: &mut Current, fd: i32, flags: Bits, attributes: Bits) -> Result<i32> {
    let paths = Paths::of(cx);
    may_mount(&paths)?;
    if flags.0 & !1 != 0 {
        return Err(Errno::EINVAL);
    }
    let set = flags_of(u64::from(attributes.0))?;
    let file = cx.file(fd)?;
    let context = file.ops().as_any().downcast_ref::<FsContextFile>().ok_or(Errno::EINVAL)?;
    let (fs, source, read_only) = {
        let mut setup = context.0.lock();
        let fs = setup.made.take().ok_or(Errno::EINVAL)?;
        (fs, setup.source.clone().unwrap_or_else(|| "none".to_owned()), setup.read_only)
    };
    let tree = paths.ns().loose_mount(fs, set, &source, &paths.creds.user_ns)?;
    let root = tree.root();
    root.mount.superblock().set_read_only(read_only);
    add_place(cx, root, Some(tree), flags.0 & 1 != 0)
}

fn mount_setattr(
    cx: &mut Current,
    dir: DirFd,
    path: PathPtr,
    flags: Bits,
    attr: Ptr,
    size: usize,
) -> Result<()> {
    const SIZE: usize = 32;
    if flags.0 & !(AT_EMPTY_PATH | AT_RECURSIVE | AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT) != 0 {
        return Err(Errno::EINVAL);
    }
    let mut raw = [0; SIZE];
    if size > 4096 {
        return Err(Errno::E2BIG);
    }
    if size < SIZE {
        return Err(Errno::EINVAL);
    }
    let paths = Paths::of(cx);
    may_mount(&paths)?;
    crate::args::copy_struct(cx, attr, size, SIZE, &mut raw)?;
    let mut words = raw.chunks_exact(8).map(|w| w.iter().rev().fold(0_u64, |v, b| v << 8 | u64::from(*b)));
    let mut word = || words.next().unwrap_or(0);
    let (set, clear, propagation) = (word(), word(), word());
    if set == 0 && clear == 0 && propagation == 0 {
        return Ok(());
    }
    let propagation = match propagation {
        0 => None,
        0x2_0000 => Some(Propagation::Unbindable),
        0x4_0000 => Some(Propagation::Private),
        0x8_0000 => Some(Propagation::Slave),
        0x10_0000 => Some(Propagation::Shared),
        _ => return Err(Errno::EINVAL),
    };
    if (set | clear) & !ATTR_VALID != 0 {
        return Err(Errno::EINVAL);
    }
    // Access times are one choice: it is cleared as a whole, and only then set.
    let clears_atime = match clear & ATTR_ATIME {
        0 if set & ATTR_ATIME == 0 => false,
        ATTR_ATIME => true,
        _ => return Err(Errno::EINVAL),
    };
    let mut added = flags_of(set)?;
    let mut removed = MountFlags::from_bits_truncate(u32::try_from(clear & 0xf).unwrap_or(0));
    removed.set(MountFlags::NODIRATIME, clear & 0x80 != 0);
    removed.set(MountFlags::NOSYMFOLLOW, clear & 0x0020_0000 != 0);
    if clears_atime {
        removed |= MountFlags::NOATIME | MountFlags::RELATIME | MountFlags::STRICTATIME;
    } else {
        added.remove(MountFlags::RELATIME);
    }
    let (empty, follow) = (flags.0 & AT_EMPTY_PATH != 0, flags.0 & AT_SYMLINK_NOFOLLOW == 0);
    let at = place_of(cx, &paths, dir, path, empty, follow)?;
    let recursive = flags.0 & AT_RECURSIVE != 0;
    let mut mounts = paths.ns().mounts_below(&at)?;
    if !recursive {
        mounts.truncate(1);
    }
    let changed = |old: MountFlags| (old - removed) | added;
    if !mounts.iter().all(|m| m.may_change_flags(changed(m.flags()))) {
        return Err(Errno::EPERM);
    }
    for mount in mounts {
        mount.set_flags(changed(mount.flags()));
    }
    match propagation {
        Some(to) => paths.ns().set_propagation(&at, to, recursive),
        None => Ok(()),
    }
}
