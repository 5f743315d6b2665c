//! inotify(7), and memory files of memfd_create(2).

use fs_tmpfs::MemfdMaker;
use sentry_base::{Errno, Result};
use sentry_kernel::Current;
use sentry_memory::copy_in_cstr;
use sentry_vfs::watch::event;
use sentry_vfs::{Access, Inotify, LookupFlags, OpenFlags, as_inotify};

use crate::args::{Bits, DirFd, PathPtr, Ptr};
use crate::files::{add_description, add_file};
use crate::fs_args::Paths;
use crate::table::syscalls;

syscalls! {
    253 inotify_init() [sync];
    254 inotify_add_watch(fd: i32, path: PathPtr, mask: Bits) [sync];
    255 inotify_rm_watch(fd: i32, wd: i32) [sync];
    294 inotify_init1(flags: Bits) [sync];
    319 memfd_create(name: Ptr, flags: Bits) [sync, "no huge pages"];
}

fn inotify_init(cx: &mut Current) -> Result<i32> {
    inotify_init1(cx, Bits(0))
}

fn inotify_init1(cx: &mut Current, flags: Bits) -> Result<i32> {
    let flags = OpenFlags::from_bits_retain(flags.0);
    if !(OpenFlags::CLOEXEC | OpenFlags::NONBLOCK).contains(flags) {
        return Err(Errno::EINVAL);
    }
    add_file(cx, Inotify::new(), flags & OpenFlags::NONBLOCK, flags.contains(OpenFlags::CLOEXEC))
}

fn inotify_add_watch(cx: &mut Current, fd: i32, path: PathPtr, mask: Bits) -> Result<i32> {
    let mask = mask.0;
    let both = event::MASK_ADD | event::MASK_CREATE;
    if mask & event::ALL == 0 || mask & both == both {
        return Err(Errno::EINVAL);
    }
    let inotify = as_inotify(cx.file(fd)?.ops())?;
    let mut flags = LookupFlags::empty();
    if mask & event::DONT_FOLLOW == 0 {
        flags |= LookupFlags::FOLLOW;
    }
    if mask & event::ONLYDIR != 0 {
        flags |= LookupFlags::DIRECTORY;
    }
    let paths = Paths::of(cx);
    let at = paths.at(DirFd(libc::AT_FDCWD), &cx.path(path.0)?, flags)?;
    paths.cx().check(&at, Access::READ)?;
    // What was closed before is not heard of.
    cx.kernel().settle_files();
    inotify.add_watch(&at, mask)
}

fn inotify_rm_watch(cx: &mut Current, fd: i32, wd: i32) -> Result<()> {
    as_inotify(cx.file(fd)?.ops())?.remove_watch(wd)
}

fn memfd_create(cx: &mut Current, name: Ptr, flags: Bits) -> Result<i32> {
    // 249 bytes and the NUL.
    let name = copy_in_cstr(&*cx.task, name.0, 250, Errno::EINVAL)?;
    let ns = cx.mount_ns();
    let maker = ns.vfs().singleton(|| MemfdMaker::new(cx.kernel().memory())).ok_or(Errno::ENOMEM)?;
    let file = maker.create(&name, flags.0, &cx.creds())?;
    add_description(cx, file, flags.0 & libc::MFD_CLOEXEC != 0)
}
