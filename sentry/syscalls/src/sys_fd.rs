//! Descriptors: open(2), close(2), dup(2), fcntl(2), flock(2), ioctl(2), and calls on the size and the state on disk
//! of an open file.

use core::sync::atomic::Ordering;
use std::sync::Arc;

use abi::fs::{FOwnerEx, Flock, OpenHow as RawHow};
use fs_pipe::PipeEnd;
use fs_tmpfs::{OpenTmpfs, open_tmpfs_file};
use sentry_base::{Errno, Events, Nanos, Result};
use sentry_kernel::seccomp::Listener;
use sentry_kernel::sigio;
use sentry_kernel::{BlockEnd, Call, Current, Restart, Stop, SysResult};
use sentry_vfs::watch::event;
use sentry_vfs::{
    FileDescription, FileKind, FileLocks, Inode, IoCtx, IoStart, JobControl, LeaseKind, Leased, LockOwner,
    LookupFlags, OpenFlags, OpenHow, Opened, PendingOpen, RangeLock, as_dir,
};

use crate::args::{Bits, DirFd, PathPtr, Ptr};
use crate::at_hand;
use crate::closing::close;
use crate::fs_args::Paths;
use crate::sys_io::readable_bytes;
use crate::table::syscalls;

syscalls! {
    2 open(path: PathPtr, flags: Bits, mode: Bits) [call];
    3 close(fd: i32) [call];
    16 ioctl(fd: i32, command: Bits, arg: u64) [call];
    32 dup(fd: i32) [sync];
    33 dup2(old: i32, new: i32) [sync];
    72 fcntl(fd: i32, command: i32, arg: u64) [call];
    73 flock(fd: i32, operation: i32) [call];
    74 fsync(fd: i32) [sync];
    75 fdatasync(fd: i32) [sync];
    77 ftruncate(fd: i32, len: i64) [sync];
    85 creat(path: PathPtr, mode: Bits) [call];
    162 sync() [sync];
    187 readahead(fd: i32, offset: i64, count: usize) [sync, "without effect"];
    221 fadvise64(fd: i32, offset: i64, len: i64, advice: i32) [sync, "without effect"];
    257 openat(dir: DirFd, path: PathPtr, flags: Bits, mode: Bits) [call];
    277 sync_file_range(fd: i32, offset: i64, len: i64, flags: Bits) [sync];
    285 fallocate(fd: i32, mode: Bits, offset: i64, len: i64) [sync];
    292 dup3(old: i32, new: i32, flags: Bits) [sync];
    306 syncfs(fd: i32) [sync];
    436 close_range(first: u32, last: u32, flags: Bits) [sync];
    437 openat2(dir: DirFd, path: PathPtr, how: Ptr, size: usize) [call];
}

fn nofile(cx: &Current) -> u64 {
    cx.rlimit(libc::RLIMIT_NOFILE)
}

fn install(cx: &Current, file: Arc<FileDescription>, cloexec: bool) -> SysResult {
    let fd = cx.fds().add(file, cloexec, nofile(cx))?;
    Ok(u64::from(fd.cast_unsigned()))
}

fn install_at_hand(cx: &mut Current, file: Arc<FileDescription>, cloexec: bool) -> SysResult {
    let fd = cx.fds().add(Arc::clone(&file), cloexec, nofile(cx))?;
    at_hand::offer(cx, fd, &file);
    Ok(u64::from(fd.cast_unsigned()))
}

fn open_common(cx: &mut Current, dir: DirFd, path: PathPtr, how: OpenHow) -> Call<'_> {
    let cloexec = how.flags.contains(OpenFlags::CLOEXEC);
    match open_once(cx, dir, path, how) {
        Ok(Opened::File(file)) => Call::Done(install_at_hand(cx, file, cloexec)),
        Ok(Opened::Wait(pending)) => Call::Wait(Box::pin(open_waiting(cx, pending, cloexec))),
        Ok(Opened::Leased(inode, until)) => {
            Call::Wait(Box::pin(open_leased(cx, dir, path, how, (inode, until))))
        }
        Err(e) => Call::Done(Err(e.into())),
    }
}

fn open_once(cx: &Current, dir: DirFd, path: PathPtr, how: OpenHow) -> Result<Opened> {
    let path = cx.path(path.0)?;
    cx.fds().check_room(nofile(cx))?;
    let paths = Paths::of(cx);
    let base = paths.base(dir, &path, how.resolve)?;
    paths.cx().open(base.as_ref(), &path, how)
}

/// Waits until the holder of a lease gives it up, or its time is over, and opens again.
async fn open_leased(
    cx: &mut Current,
    dir: DirFd,
    path: PathPtr,
    how: OpenHow,
    mut leased: (Arc<dyn Inode>, Nanos),
) -> SysResult {
    let cloexec = how.flags.contains(OpenFlags::CLOEXEC);
    let writes = how.flags.writes() || how.flags.contains(OpenFlags::TRUNC);
    loop {
        let (inode, until) = &leased;
        if let Some(usage) = inode.usage() {
            let attempt = |_: &sentry_kernel::Task| {
                Ok(match usage.break_leases(writes) {
                    Leased::Free => IoStart::Done(()),
                    Leased::Until(_) => IoStart::WouldBlock,
                })
            };
            match cx.block_on(usage.wait_queue(), Events::OUT, Some(*until), attempt).await {
                Ok(()) | Err(BlockEnd::TimedOut) => {}
                Err(end) => return Err(end.or_restart(Restart::Sys)),
            }
        }
        match open_once(cx, dir, path, how)? {
            Opened::File(file) => return install(cx, file, cloexec),
            Opened::Wait(pending) => return open_waiting(cx, pending, cloexec).await,
            Opened::Leased(inode, until) => leased = (inode, until),
        }
    }
}

async fn open_waiting(cx: &mut Current, pending: PendingOpen, cloexec: bool) -> SysResult {
    let events = Events::READABLE | Events::WRITABLE;
    let file = cx.block_on(pending.wait_queue(), events, None, |_| pending.poll()).await?;
    install(cx, file, cloexec)
}

/// The flags of the older calls, which ignore what they do not know.
fn how(flags: Bits, mode: Bits) -> OpenHow {
    OpenHow {
        flags: OpenFlags::from_bits_retain(flags.0 & KNOWN_FLAGS),
        mode: mode.0 & 0o7777,
        resolve: LookupFlags::empty(),
    }
}

/// `VALID_OPEN_FLAGS`
const KNOWN_FLAGS: u32 = 0o37_777_703;

fn open(cx: &mut Current, path: PathPtr, flags: Bits, mode: Bits) -> Call<'_> {
    open_common(cx, DirFd(libc::AT_FDCWD), path, how(flags, mode))
}

fn openat(cx: &mut Current, dir: DirFd, path: PathPtr, flags: Bits, mode: Bits) -> Call<'_> {
    open_common(cx, dir, path, how(flags, mode))
}

fn creat(cx: &mut Current, path: PathPtr, mode: Bits) -> Call<'_> {
    let flags = OpenFlags::CREAT | OpenFlags::WRONLY | OpenFlags::TRUNC;
    open_common(cx, DirFd(libc::AT_FDCWD), path, how(Bits(flags.bits()), mode))
}

fn openat2(cx: &mut Current, dir: DirFd, path: PathPtr, raw: Ptr, size: usize) -> Call<'_> {
    match strict_how(cx, raw, size) {
        Ok(how) => open_common(cx, dir, path, how),
        Err(e) => Call::Done(Err(e.into())),
    }
}

fn strict_how(cx: &Current, at: Ptr, size: usize) -> Result<OpenHow> {
    let known = size_of::<RawHow>();
    if size < known {
        return Err(Errno::EINVAL);
    }
    if size > 4096 {
        return Err(Errno::E2BIG);
    }
    let raw: RawHow = cx.read_obj(at.0)?;
    let mut rest = vec![0; size - known];
    cx.copy_in(at.0.wrapping_add(known as u64), &mut rest)?;
    if rest.iter().any(|b| *b != 0) {
        return Err(Errno::E2BIG);
    }
    let bits = u32::try_from(raw.flags).map_err(|_| Errno::EINVAL)?;
    let flags = OpenFlags::from_bits_retain(bits);
    let makes = flags.contains(OpenFlags::CREAT) || flags.contains(OpenFlags::TMPFILE);
    if bits & !KNOWN_FLAGS != 0 || raw.mode & !0o7777 != 0 || (raw.mode != 0 && !makes) {
        return Err(Errno::EINVAL);
    }
    let with_path = OpenFlags::PATH | OpenFlags::DIRECTORY | OpenFlags::NOFOLLOW | OpenFlags::CLOEXEC;
    if flags.contains(OpenFlags::PATH) && !with_path.contains(flags) {
        return Err(Errno::EINVAL);
    }
    let resolve = LookupFlags::from_resolve(raw.resolve)?;
    if resolve.contains(LookupFlags::CACHED) && (makes || flags.contains(OpenFlags::TRUNC)) {
        return Err(Errno::EAGAIN);
    }
    Ok(OpenHow { flags, mode: u32::try_from(raw.mode).unwrap_or(0), resolve })
}

fn close_range(cx: &mut Current, first: u32, last: u32, flags: Bits) -> Result<()> {
    const UNSHARE: u32 = 2;
    const CLOEXEC: u32 = 4;
    if flags.0 & !(UNSHARE | CLOEXEC) != 0 || first > last {
        return Err(Errno::EINVAL);
    }
    if flags.0 & UNSHARE != 0 && Arc::strong_count(&cx.fds()) > 2 {
        cx.set_fds(cx.fds().fork());
    }
    cx.fds().close_range(first, last, flags.0 & CLOEXEC != 0, cx.pid());
    Ok(())
}

fn dup(cx: &mut Current, fd: i32) -> Result<i32> {
    let fds = cx.fds();
    fds.add(fds.get(fd)?, false, nofile(cx))
}

fn replace(cx: &Current, old: i32, new: i32, cloexec: bool) -> Result<i32> {
    let fds = cx.fds();
    let file = fds.get(old)?;
    if let Some(displaced) = fds.set(new, file, cloexec, nofile(cx))? {
        fds.closed(displaced, cx.pid());
    }
    Ok(new)
}

fn dup2(cx: &mut Current, old: i32, new: i32) -> Result<i32> {
    if old == new {
        return cx.fds().get(old).map(|_| new);
    }
    replace(cx, old, new, false)
}

fn dup3(cx: &mut Current, old: i32, new: i32, flags: Bits) -> Result<i32> {
    let cloexec = OpenFlags::CLOEXEC.bits();
    if flags.0 & !cloexec != 0 || old == new {
        return Err(Errno::EINVAL);
    }
    replace(cx, old, new, flags.0 & cloexec != 0)
}

/// The flags that `F_SETFL` changes.
const SETTABLE: OpenFlags = OpenFlags::APPEND
    .union(OpenFlags::NONBLOCK)
    .union(OpenFlags::ASYNC)
    .union(OpenFlags::DIRECT)
    .union(OpenFlags::NOATIME);

fn set_status(cx: &Current, fd: i32, file: &Arc<FileDescription>, arg: u64) -> Result<()> {
    let wanted = OpenFlags::from_bits_retain(u32::try_from(arg & 0xffff_ffff).unwrap_or(0)) & SETTABLE;
    let old = file.flags();
    if wanted.contains(OpenFlags::NOATIME) && !old.contains(OpenFlags::NOATIME) {
        let attr = file.attr()?;
        if !sentry_vfs::is_owner(&attr, &cx.creds()) {
            return Err(Errno::EPERM);
        }
    }
    let wanted = sigio::settle_async(cx.task.kernel(), file, fd, wanted);
    file.set_flags(old.difference(SETTABLE) | wanted);
    Ok(())
}

fn fcntl(cx: &mut Current, fd: i32, command: i32, arg: u64) -> Call<'_> {
    let wait = match command {
        libc::F_SETLKW => false,
        libc::F_OFD_SETLKW => true,
        _ => return Call::Done(fcntl_now(cx, fd, command, arg)),
    };
    match range_lock(cx, fd, arg, wait) {
        Ok(request) => match request.attempt() {
            Ok(IoStart::Done(())) => Call::Done(Ok(0)),
            Ok(IoStart::WouldBlock) => Call::Wait(Box::pin(request.wait(cx))),
            Err(e) => Call::Done(Err(e.into())),
        },
        Err(e) => Call::Done(Err(e.into())),
    }
}

fn fcntl_now(cx: &mut Current, fd: i32, command: i32, arg: u64) -> SysResult {
    let fds = cx.fds();
    // `int` arguments use the low half of the register.
    #[allow(clippy::cast_possible_truncation, reason = "the argument is an int")]
    let int = arg as i32;
    let any = fds.get(fd)?;
    let value = match command {
        libc::F_DUPFD | libc::F_DUPFD_CLOEXEC => {
            fds.add_from(int, any, command == libc::F_DUPFD_CLOEXEC, nofile(cx))?
        }
        libc::F_GETFD => i32::from(fds.cloexec(fd)?),
        libc::F_SETFD => {
            fds.set_cloexec(fd, int & libc::FD_CLOEXEC != 0)?;
            0
        }
        libc::F_GETFL => any.flags().bits().cast_signed(),
        _ => {
            let file = cx.file(fd)?;
            return file_control(cx, fd, &file, command, arg, int);
        }
    };
    Ok(u64::from(value.cast_unsigned()))
}

fn file_control(
    cx: &Current,
    fd: i32,
    file: &Arc<FileDescription>,
    command: i32,
    arg: u64,
    int: i32,
) -> SysResult {
    const F_SETOWN_EX: i32 = 15;
    const F_GETOWN_EX: i32 = 16;
    const F_SETSIG: i32 = 10;
    const F_GETSIG: i32 = 11;
    let pipe = || file.ops().as_any().downcast_ref::<PipeEnd>().ok_or(Errno::EBADF);
    match command {
        libc::F_SETFL => set_status(cx, fd, file, arg)?,
        libc::F_GETLK | libc::F_OFD_GETLK => return get_lock(cx, fd, arg, command == libc::F_OFD_GETLK),
        libc::F_SETLK | libc::F_OFD_SETLK => {
            return match range_lock(cx, fd, arg, command == libc::F_OFD_SETLK)?.attempt()? {
                IoStart::Done(()) => Ok(0),
                IoStart::WouldBlock => Err(Errno::EAGAIN.into()),
            };
        }
        libc::F_SETOWN => {
            let id = resolve_owner(cx, int)?;
            set_owner(cx, file, fd, id);
        }
        libc::F_GETOWN => {
            return Ok(i64::from(show_owner(cx, file.owner().load(Ordering::Relaxed))).cast_unsigned());
        }
        F_SETOWN_EX => {
            let owner: FOwnerEx = cx.read_obj(arg)?;
            // 0 a thread, 1 a process, 2 a process group.
            let id = match owner.kind {
                0 | 1 => owner.pid,
                2 => owner.pid.wrapping_neg(),
                _ => return Err(Errno::EINVAL.into()),
            };
            let id = resolve_owner(cx, id)?;
            set_owner(cx, file, fd, id);
        }
        F_GETOWN_EX => {
            let id = show_owner(cx, file.owner().load(Ordering::Relaxed));
            let owner = FOwnerEx { kind: if id < 0 { 2 } else { 1 }, pid: id.wrapping_abs() };
            cx.write_obj(arg, &owner)?;
        }
        F_SETSIG => {
            if !(0..=64).contains(&int) {
                return Err(Errno::EINVAL.into());
            }
            file.signal().store(int, Ordering::Relaxed);
        }
        F_GETSIG => return Ok(u64::from(file.signal().load(Ordering::Relaxed).cast_unsigned())),
        libc::F_GETPIPE_SZ => return Ok(pipe()?.size() as u64),
        libc::F_SETPIPE_SZ => {
            let size = u64::from(int.cast_unsigned());
            return Ok(pipe()?.set_size(&*cx.task, size)? as u64);
        }
        libc::F_ADD_SEALS => {
            let sealed = sealable(file).ok_or(Errno::EINVAL)?;
            if !file.flags().writes() {
                return Err(Errno::EPERM.into());
            }
            sealed.add_seals(int.cast_unsigned())?;
        }
        libc::F_GET_SEALS => {
            let sealed = sealable(file).ok_or(Errno::EINVAL)?;
            return Ok(u64::from(sealed.seals()));
        }
        libc::F_GETLEASE => {
            let lease = file.inode().and_then(|inode| inode.usage()?.lease_of(file));
            let kind = match lease {
                None => libc::F_UNLCK,
                Some(LeaseKind::Read) => libc::F_RDLCK,
                Some(LeaseKind::Write) => libc::F_WRLCK,
            };
            return Ok(u64::from(kind.unsigned_abs()));
        }
        libc::F_SETLEASE => set_lease(cx, fd, file, int)?,
        libc::F_NOTIFY => {
            note_owner_creds(cx, file);
            sigio::notify(cx.task.kernel(), file, fd, int.cast_unsigned(), cx.pid())?;
        }
        _ => return Err(Errno::EINVAL.into()),
    }
    Ok(0)
}

/// `generic_setlease` of `fs/locks.c`.
fn set_lease(cx: &Current, fd: i32, file: &Arc<FileDescription>, kind: i32) -> Result<()> {
    let inode = file.inode().ok_or(Errno::EINVAL)?;
    let attr = inode.attr()?;
    let creds = cx.creds();
    let kind = match kind {
        libc::F_UNLCK => None,
        libc::F_RDLCK => Some(LeaseKind::Read),
        libc::F_WRLCK => Some(LeaseKind::Write),
        _ => return Err(Errno::EINVAL),
    };
    if kind.is_some() && attr.uid != creds.fsuid && !creds.has_cap(sentry_vfs::cap::LEASE) {
        return Err(Errno::EACCES);
    }
    let usage = inode.usage().filter(|_| inode.kind() == FileKind::Regular).ok_or(Errno::EINVAL)?;
    note_owner_creds(cx, file);
    cx.kernel().settle_files();
    usage.set_lease(file, kind, Arc::clone(cx.task.kernel()) as _, fd)?;
    let _ = file.owner().compare_exchange(0, cx.pid(), Ordering::Relaxed, Ordering::Relaxed);
    Ok(())
}

/// A range lock that is asked for, or a range that is given up.
struct LockRequest {
    file: Arc<FileDescription>,
    locks: Arc<FileLocks>,
    wanted: RangeLock,
    unlock: bool,
    vfs: Arc<sentry_vfs::Vfs>,
}

/// The range of a `struct flock`, end exclusive.
fn lock_range(file: &FileDescription, raw: &Flock) -> Result<(u64, u64)> {
    let base = match i32::from(raw.whence) {
        libc::SEEK_SET => 0,
        libc::SEEK_CUR => file.position().lock().cast_signed(),
        libc::SEEK_END => file.attr()?.size.cast_signed(),
        _ => return Err(Errno::EINVAL),
    };
    let start = base.checked_add(raw.start).ok_or(Errno::EOVERFLOW)?;
    let (start, end) = match raw.len {
        0 => (start, None),
        // The last byte that an offset can name stands for the end of the file.
        len if len > 0 => match start.checked_add(len - 1).ok_or(Errno::EOVERFLOW)? {
            i64::MAX => (start, None),
            last => (start, Some(last + 1)),
        },
        len => (start.checked_add(len).ok_or(Errno::EINVAL)?, Some(start)),
    };
    let start = u64::try_from(start).map_err(|_| Errno::EINVAL)?;
    Ok((start, end.map_or(u64::MAX, i64::cast_unsigned)))
}

fn range_lock(cx: &Current, fd: i32, arg: u64, ofd: bool) -> Result<LockRequest> {
    let file = cx.file(fd)?;
    let raw: Flock = cx.read_obj(arg)?;
    if ofd && raw.pid != 0 {
        return Err(Errno::EINVAL);
    }
    let kind = i32::from(raw.kind);
    let allowed = match kind {
        libc::F_RDLCK => file.flags().reads(),
        libc::F_WRLCK => file.flags().writes(),
        libc::F_UNLCK => true,
        _ => return Err(Errno::EINVAL),
    };
    let (start, end) = lock_range(&file, &raw)?;
    if !allowed {
        return Err(Errno::EBADF);
    }
    let attr = file.attr()?;
    let key = (attr.dev, attr.ino);
    let vfs = Arc::clone(cx.mount_ns().vfs());
    let locks = vfs.locks().of(key);
    let fds = cx.fds();
    let owner = if ofd { file.lock_owner() } else { fds.lock_owner() };
    if kind != libc::F_UNLCK {
        if ofd {
            file.note_locks(&locks);
        } else {
            fds.note_posix_lock(key, &locks);
        }
    }
    let wanted = RangeLock {
        owner,
        pid: if ofd { -1 } else { cx.pid() },
        exclusive: kind == libc::F_WRLCK,
        start,
        end,
    };
    Ok(LockRequest { file, locks, wanted, unlock: kind == libc::F_UNLCK, vfs })
}

impl LockRequest {
    fn attempt(&self) -> Result<IoStart<()>> {
        if self.unlock {
            self.locks.unlock(self.wanted.owner, self.wanted.start, self.wanted.end);
            return Ok(IoStart::Done(()));
        }
        Ok(self.locks.try_lock(self.wanted))
    }

    async fn wait(self, cx: &mut Current) -> SysResult {
        let waiter = match self.wanted.owner {
            LockOwner::Table(id) => Some(id),
            LockOwner::Description(_) => None,
        };
        let attempt = |_: &sentry_kernel::Task| {
            let start = self.attempt()?;
            // Noted before each wait: the holder may be another one by now.
            if let (IoStart::WouldBlock, Some(waiter)) = (&start, waiter)
                && let Some(RangeLock { owner: LockOwner::Table(holder), .. }) =
                    self.locks.conflicting(&self.wanted)
            {
                self.vfs.locks().begin_wait(waiter, holder)?;
            }
            Ok(start)
        };
        let end = cx.block_on(self.locks.wait_queue(), Events::OUT, None, attempt).await;
        if let Some(waiter) = waiter {
            self.vfs.locks().end_wait(waiter);
        }
        end?;
        // The file stays open for as long as the call.
        drop(self.file);
        Ok(0)
    }
}

/// The Sentry's number for an owner that the caller names: a process, or a group as a negative number.
fn resolve_owner(cx: &Current, id: i32) -> Result<i32> {
    if id == 0 {
        return Ok(0);
    }
    let number = id.checked_abs().ok_or(Errno::EINVAL)?;
    let found = cx.resolve_pid(number)?;
    // A process, or a group that has outlived its leader.
    if cx.kernel().task(found).is_none() && cx.task.session_of_group(found).is_none() {
        return Err(Errno::ESRCH);
    }
    Ok(if id < 0 { -found } else { found })
}

/// `f_setown`
fn set_owner(cx: &Current, file: &Arc<FileDescription>, fd: i32, id: i32) {
    let creds = cx.creds();
    file.note_owner_set_by(creds.uid, creds.euid);
    file.owner().store(id, Ordering::Relaxed);
    sigio::settle_owner(cx.task.kernel(), file, fd);
}

/// The same where the file may have an owner already, who stays.
fn note_owner_creds(cx: &Current, file: &FileDescription) {
    if file.owner().load(Ordering::Relaxed) == 0 {
        let creds = cx.creds();
        file.note_owner_set_by(creds.uid, creds.euid);
    }
}

fn show_owner(cx: &Current, id: i32) -> i32 {
    if id < 0 { -cx.show_pid(id.wrapping_neg()) } else { cx.show_pid(id) }
}

fn get_lock(cx: &Current, fd: i32, arg: u64, ofd: bool) -> SysResult {
    let file = cx.file(fd)?;
    let mut raw: Flock = cx.read_obj(arg)?;
    if ofd && raw.pid != 0 {
        return Err(Errno::EINVAL.into());
    }
    let exclusive = match i32::from(raw.kind) {
        libc::F_RDLCK => false,
        libc::F_WRLCK => true,
        _ => return Err(Errno::EINVAL.into()),
    };
    let (start, end) = lock_range(&file, &raw)?;
    let attr = file.attr()?;
    let locks = cx.mount_ns().vfs().locks().of((attr.dev, attr.ino));
    let owner = if ofd { file.lock_owner() } else { cx.fds().lock_owner() };
    match locks.conflicting(&RangeLock { owner, pid: 0, exclusive, start, end }) {
        None => raw.kind = i16::try_from(libc::F_UNLCK).unwrap_or(2),
        Some(held) => {
            let kind = if held.exclusive { libc::F_WRLCK } else { libc::F_RDLCK };
            raw.kind = i16::try_from(kind).unwrap_or(1);
            raw.whence = 0;
            raw.start = held.start.cast_signed();
            raw.len = if held.end == u64::MAX { 0 } else { (held.end - held.start).cast_signed() };
            raw.pid = if held.pid == -1 { -1 } else { cx.show_pid(held.pid) };
        }
    }
    cx.write_obj(arg, &raw)?;
    Ok(0)
}

fn flock(cx: &mut Current, fd: i32, operation: i32) -> Call<'_> {
    let prepared = (|| {
        let file = cx.file(fd)?;
        let exclusive = match operation & !libc::LOCK_NB {
            libc::LOCK_SH => Some(false),
            libc::LOCK_EX => Some(true),
            libc::LOCK_UN => None,
            _ => return Err(Errno::EINVAL),
        };
        let attr = file.attr()?;
        let locks = cx.mount_ns().vfs().locks().of((attr.dev, attr.ino));
        Ok((file, locks, exclusive))
    })();
    let (file, locks, exclusive) = match prepared {
        Ok(prepared) => prepared,
        Err(e) => return Call::Done(Err(Stop::from(e))),
    };
    let Some(exclusive) = exclusive else {
        locks.unflock(file.lock_owner());
        return Call::Done(Ok(0));
    };
    file.note_locks(&locks);
    match locks.try_flock(file.lock_owner(), exclusive) {
        IoStart::Done(()) => Call::Done(Ok(0)),
        IoStart::WouldBlock if operation & libc::LOCK_NB != 0 => Call::Done(Err(Errno::EAGAIN.into())),
        IoStart::WouldBlock => Call::Wait(Box::pin(async move {
            let attempt = |_: &sentry_kernel::Task| Ok(locks.try_flock(file.lock_owner(), exclusive));
            cx.block_on(locks.wait_queue(), Events::OUT, None, attempt).await?;
            Ok(0)
        })),
    }
}

/// `TIOCGPTPEER`: opens the slave of a master. By its name in devpts where the caller sees that, so that the file has a
/// place.
fn open_peer(cx: &Current, master: &fs_dev::MasterFile, flags: u64) -> Result<i32> {
    let flags = OpenFlags::from_bits_truncate(u32::try_from(flags & 0xffff_ffff).unwrap_or(0));
    let paths = Paths::of(cx);
    let name = format!("/dev/pts/{}", master.tty().index());
    let status = flags.difference(OpenFlags::CLOEXEC);
    let file = match paths.cx().open(None, name.as_bytes(), OpenHow::new(status)) {
        Ok(Opened::File(file)) => file,
        _ => sentry_vfs::anonymous(master.open_peer(status, &*cx.task)?, status),
    };
    let cloexec = flags.contains(OpenFlags::CLOEXEC);
    cx.fds().add(file, cloexec, cx.rlimit(abi::process::rlimit::NOFILE))
}

fn ioctl(cx: &mut Current, fd: i32, command: Bits, arg: u64) -> Call<'_> {
    match cx.file(fd).ok().and_then(|file| Listener::of(&file)) {
        Some(listener) => {
            Call::Wait(Box::pin(crate::sys_seccomp::listener_ioctl(cx, listener, command.0, arg)))
        }
        None => Call::Done(control(cx, fd, command, arg)),
    }
}

fn control(cx: &mut Current, fd: i32, command: Bits, arg: u64) -> SysResult {
    const FIOASYNC: u32 = 0x5452;
    const FIOSETOWN: u32 = 0x8901;
    const SIOCSPGRP: u32 = 0x8902;
    const FIOGETOWN: u32 = 0x8903;
    const SIOCGPGRP: u32 = 0x8904;
    const FIONREAD: u32 = 0x541b;
    const FIONBIO: u32 = 0x5421;
    const TIOCGPTPEER: u32 = 0x5441;
    const FIOCLEX: u32 = 0x5451;
    const FIONCLEX: u32 = 0x5450;
    const FICLONE: u32 = 0x4004_9409;
    const FICLONERANGE: u32 = 0x4020_940d;
    let file = cx.file(fd)?;
    let set = |flag: OpenFlags| -> Result<()> {
        let on: i32 = cx.read_obj(arg)?;
        let old = file.flags();
        let wanted = if on != 0 { old | flag } else { old.difference(flag) };
        file.set_flags(sigio::settle_async(cx.task.kernel(), &file, fd, wanted));
        Ok(())
    };
    match command.0 {
        FIOCLEX | FIONCLEX => cx.fds().set_cloexec(fd, command.0 == FIOCLEX)?,
        FIONBIO => set(OpenFlags::NONBLOCK)?,
        FIOASYNC => set(OpenFlags::ASYNC)?,
        FIOSETOWN | SIOCSPGRP if file.ops().kind() == FileKind::Socket => {
            let id: i32 = cx.read_obj(arg)?;
            set_owner(cx, &file, fd, resolve_owner(cx, id)?);
        }
        FIOGETOWN | SIOCGPGRP if file.ops().kind() == FileKind::Socket => {
            cx.write_obj(arg, &show_owner(cx, file.owner().load(Ordering::Relaxed)))?;
        }
        FICLONE | FICLONERANGE => return Err(Errno::EOPNOTSUPP.into()),
        _ => {
            if command.0 == FIONREAD
                && let Some(bytes) = readable_bytes(&file, file.ops())
            {
                let bytes = i32::try_from(bytes).unwrap_or(i32::MAX);
                cx.write_obj(arg, &bytes)?;
                return Ok(0);
            }
            if command.0 == TIOCGPTPEER
                && let Some(master) = file.ops().as_any().downcast_ref::<fs_dev::MasterFile>()
            {
                return Ok(u64::from(open_peer(cx, master, arg)?.unsigned_abs()));
            }
            let io = IoCtx { caller: &*cx.task, flags: file.flags() };
            let value = file.ops().ioctl(&io, command.0, arg)?;
            return Ok(value.cast_unsigned());
        }
    }
    Ok(0)
}

fn fsync(cx: &mut Current, fd: i32) -> Result<()> {
    cx.file(fd)?.ops().sync(false)
}

fn fdatasync(cx: &mut Current, fd: i32) -> Result<()> {
    cx.file(fd)?.ops().sync(true)
}

fn sync(cx: &mut Current) -> Result<()> {
    cx.mount_ns().sync_all();
    Ok(())
}

fn syncfs(cx: &mut Current, fd: i32) -> Result<()> {
    match cx.file(fd)?.location() {
        Some(at) => at.mount.filesystem().sync(),
        None => Ok(()),
    }
}

fn sync_file_range(cx: &mut Current, fd: i32, offset: i64, len: i64, flags: Bits) -> Result<()> {
    let file = cx.file(fd)?;
    if flags.0 & !7 != 0 || offset < 0 || len < 0 || offset.checked_add(len).is_none() {
        return Err(Errno::EINVAL);
    }
    match file.inode().map(|i| i.kind()) {
        Some(FileKind::Regular) => file.ops().sync(true),
        Some(FileKind::Directory | FileKind::BlockDevice | FileKind::Symlink) => Ok(()),
        _ => Err(Errno::ESPIPE),
    }
}

/// `EFBIG` and SIGXFSZ for a size above `RLIMIT_FSIZE`.
pub(crate) fn check_size(cx: &Current, size: u64) -> Result<()> {
    if size > cx.rlimit(libc::RLIMIT_FSIZE) {
        sentry_vfs::Caller::signal_self(&*cx.task, libc::SIGXFSZ);
        return Err(Errno::EFBIG);
    }
    Ok(())
}

fn ftruncate(cx: &mut Current, fd: i32, len: i64) -> Result<()> {
    let len = u64::try_from(len).map_err(|_| Errno::EINVAL)?;
    let file = cx.file(fd)?;
    if !file.flags().writes() {
        return Err(Errno::EINVAL);
    }
    let at = match file.location() {
        Some(at) if at.inode().kind() == FileKind::Regular => at,
        Some(_) => return Err(Errno::EINVAL),
        None => return file.ops().truncate(len),
    };
    check_size(cx, len)?;
    let paths = Paths::of(cx);
    paths.cx().truncate_unchecked(at, len)
}

fn fallocate(cx: &mut Current, fd: i32, mode: Bits, offset: i64, len: i64) -> Result<()> {
    let file = cx.file(fd)?;
    let (Ok(offset), Ok(len)) = (u64::try_from(offset), u64::try_from(len)) else {
        return Err(Errno::EINVAL);
    };
    if len == 0 {
        return Err(Errno::EINVAL);
    }
    if !file.flags().writes() {
        return Err(Errno::EBADF);
    }
    let kind = file.inode().map_or_else(|| file.ops().kind(), |i| i.kind());
    match kind {
        FileKind::Regular => {}
        FileKind::Fifo => return Err(Errno::ESPIPE),
        FileKind::Directory => return Err(Errno::EISDIR),
        _ => return Err(Errno::ENODEV),
    }
    let end = offset.checked_add(len).filter(|e| i64::try_from(*e).is_ok()).ok_or(Errno::EFBIG)?;
    if mode.0 & 1 == 0 {
        check_size(cx, end)?;
    }
    file.ops().allocate(mode.0, offset, len)?;
    if let Some(at) = file.location() {
        at.notify(event::MODIFY);
    }
    Ok(())
}

fn fadvise64(cx: &mut Current, fd: i32, _offset: i64, len: i64, advice: i32) -> Result<()> {
    let file = cx.file(fd)?;
    if file.ops().kind() == FileKind::Fifo {
        return Err(Errno::ESPIPE);
    }
    if len < 0 || !(0..=5).contains(&advice) {
        return Err(Errno::EINVAL);
    }
    Ok(())
}

fn readahead(cx: &mut Current, fd: i32, _offset: i64, _count: usize) -> Result<()> {
    let file = cx.file(fd)?;
    if !file.flags().reads() {
        return Err(Errno::EBADF);
    }
    if as_dir(file.ops()).is_some() || file.ops().mappable().is_err() {
        return Err(Errno::EINVAL);
    }
    Ok(())
}

/// The file as one that can have seals: a memory file, or one of a tmpfs of its own right, not as the layer of an overlay.
fn sealable(file: &FileDescription) -> Option<&OpenTmpfs> {
    let layered = file.location().is_some_and(|at| at.mount.filesystem().name() != "tmpfs");
    if layered { None } else { open_tmpfs_file(file.ops()) }
}
