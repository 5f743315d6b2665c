//! Opening files (`open(2)`, `openat2(2)`, `fs/namei.c`: `path_openat`, `fs/open.c`).

use core::any::Any;
use std::sync::Arc;

use sentry_base::{Errno, Result, WaitQueue};

use crate::access::{Access, check_inode, is_owner};
use crate::walk::{NAME_MAX, Step, Walk};
use crate::watch::event;
use crate::{
    Caller, DirFile, FifoOpen, FifoWait, FileDescription, FileKind, FileOps, InUse, Inode, IoStart, Leased,
    Location, LookupFlags, MountFlags, OpenFlags, PathCx, SetAttr, Use,
};

/// The arguments of an open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenHow {
    pub flags: OpenFlags,
    /// Permission bits of a new file, before the umask.
    pub mode: u32,
    /// `NO_XDEV` and its kin; the others follow from `flags`.
    pub resolve: LookupFlags,
}

impl OpenHow {
    pub fn new(flags: OpenFlags) -> Self {
        Self { flags, mode: 0, resolve: LookupFlags::empty() }
    }
}

/// How an open went.
#[derive(Debug)]
pub enum Opened {
    File(Arc<FileDescription>),
    /// A FIFO whose other end is not open yet. Wait on its queue and poll; dropping it gives the open up.
    Wait(PendingOpen),
    /// Somebody holds a lease that forbids this open. Wait on the inode's [`Usage`](crate::Usage), no longer than to the
    /// time (`CLOCK_MONOTONIC`), and open again.
    Leased(Arc<dyn Inode>, sentry_base::Nanos),
}

/// Opens a file without a place once more (`/proc/self/fd/N` of a pipe): no more access than it was opened with.
fn reopen(file: &FileDescription, flags: OpenFlags) -> Result<Opened> {
    let had = file.flags();
    if flags.contains(OpenFlags::DIRECTORY) {
        return Err(Errno::ENOTDIR);
    }
    if (flags.reads() && !had.reads()) || (flags.writes() && !had.writes()) {
        return Err(Errno::EACCES);
    }
    if matches!(file.ops().kind(), FileKind::Socket) {
        return Err(Errno::ENXIO);
    }
    Ok(Opened::File(FileDescription::new(Arc::clone(file.ops()), flags, None)))
}

/// The open of a FIFO that waits for the other end.
#[derive(Debug)]
pub struct PendingOpen {
    wait: Box<dyn FifoWait>,
    flags: OpenFlags,
    location: Location,
}

impl PendingOpen {
    pub fn wait_queue(&self) -> &WaitQueue {
        self.wait.wait_queue()
    }

    /// The file, once the other end has come.
    pub fn poll(&self) -> Result<IoStart<Arc<FileDescription>>> {
        Ok(match self.wait.try_open()? {
            IoStart::Done(ops) => IoStart::Done(FileDescription::new(
                ops,
                status_flags(self.flags),
                Some(self.location.clone()),
            )),
            IoStart::WouldBlock => IoStart::WouldBlock,
        })
    }
}

/// The file behind an `O_PATH` descriptor: a place and nothing else.
#[derive(Debug)]
struct PathFile;

impl FileOps for PathFile {
    fn ioctl(&self, _io: &crate::IoCtx<'_>, _command: u32, _arg: u64) -> Result<i64> {
        Err(Errno::EBADF)
    }

    fn sync(&self, _data_only: bool) -> Result<()> {
        Err(Errno::EBADF)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// What of the open flags stays with the description.
fn status_flags(flags: OpenFlags) -> OpenFlags {
    flags.difference(
        OpenFlags::CREAT | OpenFlags::EXCL | OpenFlags::NOCTTY | OpenFlags::TRUNC | OpenFlags::CLOEXEC,
    )
}

/// `__O_TMPFILE` without the `O_DIRECTORY` that goes with it.
const TMPFILE_BIT: OpenFlags = OpenFlags::TMPFILE.difference(OpenFlags::DIRECTORY);

impl PathCx<'_> {
    /// Opens, and with `CREAT` makes, a file.
    pub fn open(&self, base: Option<&Location>, path: &[u8], how: OpenHow) -> Result<Opened> {
        let mut flags = how.flags;
        if flags.contains(OpenFlags::PATH) {
            flags &= OpenFlags::PATH | OpenFlags::DIRECTORY | OpenFlags::NOFOLLOW | OpenFlags::CLOEXEC;
        } else {
            flags |= OpenFlags::LARGEFILE;
        }
        if flags.intersects(TMPFILE_BIT) {
            if !flags.contains(OpenFlags::TMPFILE) || !flags.writes() || flags.contains(OpenFlags::CREAT) {
                return Err(Errno::EINVAL);
            }
            return self.open_tmpfile(base, path, flags, how);
        }
        if flags.contains(OpenFlags::CREAT | OpenFlags::DIRECTORY) {
            return Err(Errno::EINVAL);
        }
        let create = flags.contains(OpenFlags::CREAT);
        let exclusive = create && flags.contains(OpenFlags::EXCL);
        let follow = !flags.contains(OpenFlags::NOFOLLOW) && !exclusive;
        let mut walk = Walk::start(self, base, path, how.resolve)?;
        loop {
            let step = walk.walk_to_last()?;
            match step {
                Step::Here => {}
                Step::Dots(up) => walk.dots(up)?,
                Step::Name(name) => {
                    if create && walk.trailing_slash {
                        return Err(Errno::EISDIR);
                    }
                    match walk.child(&name)? {
                        Some(child) => {
                            if child.inode().kind() == FileKind::Symlink && (follow || walk.trailing_slash) {
                                if !flags.contains(OpenFlags::PATH)
                                    && let Some(file) = walk.placeless(&child)
                                {
                                    return reopen(&file, flags);
                                }
                                walk.follow(&child)?;
                                continue;
                            }
                            walk.at = child;
                        }
                        None if create => {
                            let name = walk.path.get(name).unwrap_or_default().to_vec();
                            match self.create(&walk.at, &name, how.mode)? {
                                (file, true) => return self.finish_open(file, flags, true),
                                (file, false) => {
                                    // Made by somebody else between the look and the lock.
                                    if file.inode().kind() == FileKind::Symlink && follow {
                                        walk.follow(&file)?;
                                        continue;
                                    }
                                    walk.at = file;
                                }
                            }
                        }
                        None => return Err(Errno::ENOENT),
                    }
                }
            }
            break;
        }
        let at = walk.at;
        if create {
            if exclusive {
                return Err(Errno::EEXIST);
            }
            if at.is_dir() {
                return Err(Errno::EISDIR);
            }
        }
        if (walk.trailing_slash || flags.contains(OpenFlags::DIRECTORY)) && !at.is_dir() {
            return Err(Errno::ENOTDIR);
        }
        self.open_at(at, flags)
    }

    /// Opens what is at a place, after the checks of `open(2)`.
    pub fn open_at(&self, at: Location, flags: OpenFlags) -> Result<Opened> {
        if flags.contains(OpenFlags::PATH) {
            return Ok(Opened::File(FileDescription::new(Arc::new(PathFile), status_flags(flags), Some(at))));
        }
        self.may_open(&at, flags)?;
        self.finish_open(at, flags, false)
    }

    /// Makes the file `name`, or finds that somebody else was faster (false).
    fn create(&self, dir: &Location, name: &[u8], mode: u32) -> Result<(Location, bool)> {
        if name.len() > NAME_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        let sb = dir.mount.superblock();
        let exclusive = dir.dentry.dir.write();
        if let Some(dentry) = sb.lookup_locked(&dir.dentry, name)? {
            let mut at = Location { mount: Arc::clone(&dir.mount), dentry };
            drop(exclusive);
            self.ns.follow_mounts(&mut at);
            return Ok((at, false));
        }
        self.may_change(dir)?;
        let (mode, owner, inherited) = self.new_mode(dir, mode, false)?;
        let inode = dir.inode().create(name, mode, owner)?;
        inherited.give(&*inode)?;
        let dentry = sb.insert(&dir.dentry, name, inode);
        sb.watches().on_name(&dir.dentry, name, event::CREATE, false, 0);
        Ok((Location { mount: Arc::clone(&dir.mount), dentry }, true))
    }

    fn open_tmpfile(
        &self,
        base: Option<&Location>,
        path: &[u8],
        flags: OpenFlags,
        how: OpenHow,
    ) -> Result<Opened> {
        let mut lookup = how.resolve | LookupFlags::DIRECTORY;
        if !flags.contains(OpenFlags::NOFOLLOW) {
            lookup |= LookupFlags::FOLLOW;
        }
        let dir = self.lookup(base, path, lookup)?;
        self.may_change(&dir)?;
        let (mode, owner, inherited) = self.new_mode(&dir, how.mode, false)?;
        let inode = dir.inode().tmpfile(mode, owner)?;
        inherited.give(&*inode)?;
        let name = format!("#{}", inode.attr()?.ino);
        let dentry = crate::Dentry::detached(inode, Some(Arc::clone(&dir.dentry)), name.as_bytes());
        if flags.contains(OpenFlags::EXCL) {
            dentry.forbid_links();
        }
        self.finish_open(Location { mount: dir.mount, dentry }, flags, true)
    }

    /// `may_open` of `fs/namei.c`.
    fn may_open(&self, at: &Location, flags: OpenFlags) -> Result<()> {
        let mut want = Access::empty();
        if flags.bits() & 3 != 1 {
            want |= Access::READ;
        }
        if flags.bits() & 3 != 0 || flags.contains(OpenFlags::TRUNC) {
            want |= Access::WRITE;
        }
        match at.inode().kind() {
            FileKind::Symlink => return Err(Errno::ELOOP),
            FileKind::Directory if want.contains(Access::WRITE) => return Err(Errno::EISDIR),
            FileKind::CharDevice | FileKind::BlockDevice if at.mount.denies_devices() => {
                return Err(Errno::EACCES);
            }
            _ => {}
        }
        self.check(at, want)?;
        if flags.contains(OpenFlags::NOATIME) && !is_owner(&at.inode().attr()?, self.creds) {
            return Err(Errno::EPERM);
        }
        Ok(())
    }

    /// Opens an inode whose permissions have been checked.
    fn finish_open(&self, at: Location, flags: OpenFlags, created: bool) -> Result<Opened> {
        let inode = at.inode();
        let kind = inode.kind();
        let mut in_use = None;
        let ops: Arc<dyn FileOps> = match kind {
            FileKind::Directory => Arc::new(DirFile::new(at.clone())),
            FileKind::Symlink => return Err(Errno::ELOOP),
            FileKind::Socket => return Err(Errno::ENXIO),
            FileKind::Fifo => match (inode.attachment(), self.ns.vfs().fifo_opener()) {
                (Some(attachment), Some(opener)) => match opener.open(attachment, flags, self.caller)? {
                    FifoOpen::Ready(ops) => ops,
                    FifoOpen::Wait(wait) => {
                        return Ok(Opened::Wait(PendingOpen { wait, flags, location: at }));
                    }
                },
                // A file system that opens its own FIFOs, or `ENXIO` from one that does not.
                _ => Arc::clone(inode).open(flags, self.caller)?,
            },
            FileKind::CharDevice | FileKind::BlockDevice => {
                let rdev = inode.attr()?.rdev;
                match self.ns.vfs().device_opener(kind == FileKind::BlockDevice, rdev) {
                    Some(opener) => opener.open(rdev, flags, self.caller)?,
                    None => Arc::clone(inode).open(flags, self.caller)?,
                }
            }
            FileKind::Regular => {
                let writes = flags.writes() || flags.contains(OpenFlags::TRUNC);
                let how = if writes { Use::Write } else { Use::Read };
                in_use = InUse::begin(inode, how)?;
                if let Some(usage) = inode.usage()
                    && let Leased::Until(until) = usage.break_leases(writes)
                {
                    let waits = !flags.contains(OpenFlags::NONBLOCK);
                    return if waits {
                        Ok(Opened::Leased(Arc::clone(inode), until))
                    } else {
                        Err(Errno::EAGAIN)
                    };
                }
                Arc::clone(inode).open(flags, self.caller)?
            }
        };
        if kind == FileKind::Regular && !created && flags.contains(OpenFlags::TRUNC) {
            self.truncate_unchecked(&at, 0)?;
        }
        at.notify(event::OPEN);
        Ok(Opened::File(FileDescription::in_use(ops, status_flags(flags), Some(at), in_use)))
    }

    /// Opens a program to run: a regular file with execute permission, not on a `noexec` mount.
    pub fn open_exec(
        &self,
        base: Option<&Location>,
        path: &[u8],
        flags: LookupFlags,
    ) -> Result<Arc<FileDescription>> {
        let at = self.lookup(base, path, flags)?;
        match at.inode().kind() {
            FileKind::Symlink => return Err(Errno::ELOOP),
            FileKind::Regular if !at.mount.flags().contains(MountFlags::NOEXEC) => {}
            _ => return Err(Errno::EACCES),
        }
        self.check(&at, Access::EXEC)?;
        // For reading, whatever the mode says: the kernel reads it, not the caller.
        let in_use = InUse::begin(at.inode(), Use::Run)?;
        let ops = Arc::clone(at.inode()).open(OpenFlags::empty(), self.caller)?;
        Ok(FileDescription::in_use(ops, OpenFlags::LARGEFILE, Some(at), in_use))
    }

    /// Whether names may be made or removed in `dir`.
    pub(crate) fn may_change(&self, dir: &Location) -> Result<()> {
        if dir.dentry.is_unlinked() {
            return Err(Errno::ENOENT);
        }
        if dir.mount.is_read_only() {
            return Err(Errno::EROFS);
        }
        check_inode(&**dir.inode(), Access::WRITE | Access::EXEC, self.creds, self.caller)
    }

    /// Sets the size and takes set-id bits away, permission having been checked.
    pub fn truncate_unchecked(&self, at: &Location, len: u64) -> Result<()> {
        let mut set = SetAttr { size: Some(len), ..SetAttr::default() };
        set.mode = crate::attrs::without_set_ids(&at.inode().attr()?, self.creds);
        at.inode().set_attr(&set)?;
        at.notify(event::MODIFY);
        Ok(())
    }
}

/// An open file that belongs to no namespace: made by the kernel itself.
pub fn anonymous(ops: Arc<dyn FileOps>, flags: OpenFlags) -> Arc<FileDescription> {
    FileDescription::new(ops, flags, None)
}

impl dyn Caller + '_ {
    /// The soft limit on descriptors.
    pub fn nofile_limit(&self) -> u64 {
        self.rlimit(libc::RLIMIT_NOFILE)
    }
}
