//! Inodes and file systems.

use core::any::Any;
use std::sync::Arc;

use parking_lot::Mutex;
use sentry_base::{Errno, Result};

use crate::{Attr, Caller, FileKind, FileOps, OpenFlags, SetAttr, StatFs};

/// Who will own a new object (the caller's file-system ids; the set-group-id rule is applied by the VFS).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
}

/// One entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    pub name: Vec<u8>,
    pub ino: u64,
    pub kind: FileKind,
    /// Where a listing that stopped after this entry goes on; never 0, never less than an earlier one's.
    pub next_cookie: u64,
}

bitflags::bitflags! {
    /// Flags of `renameat2(2)`.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct RenameFlags: u32 {
        const NOREPLACE = 1;
        const EXCHANGE = 2;
        const WHITEOUT = 4;
    }
}

/// What the kernel hangs on an inode: the pipe of a FIFO, the bound socket of a socket file. Lives as long as the
/// inode does.
#[derive(Default)]
pub struct Attachment(Mutex<Option<Arc<dyn Any + Send + Sync>>>);

impl Attachment {
    pub const fn new() -> Self {
        Self(Mutex::new(None))
    }

    /// The attached value of type `T`, made by `make` if there is none.
    pub fn get_or_insert<T: Any + Send + Sync>(&self, make: impl FnOnce() -> Arc<T>) -> Option<Arc<T>> {
        let mut slot = self.0.lock();
        Arc::clone(slot.get_or_insert_with(|| make())).downcast().ok()
    }

    pub fn get<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        Arc::clone(self.0.lock().as_ref()?).downcast().ok()
    }

    pub fn set(&self, value: Arc<dyn Any + Send + Sync>) {
        *self.0.lock() = Some(value);
    }

    pub fn clear(&self) {
        *self.0.lock() = None;
    }
}

impl core::fmt::Debug for Attachment {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Attachment")
    }
}

/// A file system object. The VFS has checked permissions, name syntax (non-empty, no `/`, not `.` or `..`, at most 255
/// bytes), mount flags and sticky bits before it calls; it holds the directories' locks over changes. The file system
/// keeps its own data consistent under any calls.
pub trait Inode: Send + Sync {
    /// Cheap, and the same for the inode's life.
    fn kind(&self) -> FileKind;
    fn attr(&self) -> Result<Attr>;
    /// Changes attributes and `ctime`. A change of size applies to regular files.
    fn set_attr(&self, set: &SetAttr) -> Result<()>;

    /// The number of the mount namespace that this is the file of.
    fn mount_namespace(&self) -> Option<u64> {
        None
    }

    /// The child `name`; `ENOENT` where there is none.
    fn lookup(&self, name: &[u8]) -> Result<Arc<dyn Inode>> {
        let _ = name;
        Err(Errno::ENOTDIR)
    }

    /// The walk is about to look up `names` one below the other: a remote file system fetches them at once. A hint.
    fn prefetch(&self, names: &[&[u8]]) {
        let _ = names;
    }

    /// Makes a regular file; `EEXIST` where the name is taken. `mode` has the umask applied.
    fn create(&self, name: &[u8], mode: u32, owner: Owner) -> Result<Arc<dyn Inode>> {
        let _ = (name, mode, owner);
        Err(Errno::EROFS)
    }

    fn mkdir(&self, name: &[u8], mode: u32, owner: Owner) -> Result<Arc<dyn Inode>> {
        let _ = (name, mode, owner);
        Err(Errno::EROFS)
    }

    fn symlink(&self, name: &[u8], target: &[u8], owner: Owner) -> Result<Arc<dyn Inode>> {
        let _ = (name, target, owner);
        Err(Errno::EROFS)
    }

    /// Makes a FIFO, socket or device node; `mode` holds the type.
    fn mknod(&self, name: &[u8], mode: u32, rdev: u64, owner: Owner) -> Result<Arc<dyn Inode>> {
        let _ = (name, mode, rdev, owner);
        Err(Errno::EROFS)
    }

    /// A nameless regular file of this directory's file system (`O_TMPFILE`).
    fn tmpfile(&self, mode: u32, owner: Owner) -> Result<Arc<dyn Inode>> {
        let _ = (mode, owner);
        Err(Errno::EOPNOTSUPP)
    }

    /// A new name for `target`, which is of the same file system.
    fn link(&self, name: &[u8], target: &Arc<dyn Inode>) -> Result<()> {
        let _ = (name, target);
        Err(Errno::EROFS)
    }

    /// Removes a name that is not a directory's.
    fn unlink(&self, name: &[u8]) -> Result<()> {
        let _ = name;
        Err(Errno::EROFS)
    }

    /// Removes an empty directory; `ENOTEMPTY` otherwise.
    fn rmdir(&self, name: &[u8]) -> Result<()> {
        let _ = name;
        Err(Errno::EROFS)
    }

    /// Moves `name` to `new_name` in `new_dir`, of the same file system. The VFS has ruled out loops.
    fn rename(
        &self,
        name: &[u8],
        new_dir: &Arc<dyn Inode>,
        new_name: &[u8],
        flags: RenameFlags,
    ) -> Result<()> {
        let _ = (name, new_dir, new_name, flags);
        Err(Errno::EROFS)
    }

    /// Gives the entries after `cookie` (0 for the first) to `sink` until it answers false; without `.` and `..`, which
    /// the VFS adds. Cookies are above 2.
    fn list(&self, cookie: u64, sink: &mut dyn FnMut(DirEntry) -> bool) -> Result<()> {
        let _ = (cookie, sink);
        Err(Errno::ENOTDIR)
    }

    fn readlink(&self, caller: &dyn Caller) -> Result<Vec<u8>> {
        let _ = caller;
        Err(Errno::EINVAL)
    }

    /// For a link that leads to an object and not along a path (`/proc/PID/fd/N`, `exe`, `cwd`): that object.
    fn magic_link(&self, caller: &dyn Caller) -> Option<Result<crate::Location>> {
        let _ = caller;
        None
    }

    /// For the directory of a process in `/proc`: the number of that process, by which `pidfd_send_signal(2)` takes the
    /// directory's descriptor for a pidfd.
    fn process(&self) -> Option<i32> {
        None
    }

    /// For a magic link to an open file that has no place (a pipe, a socket, a file of the host): that file. Opening the
    /// link gives another description of it.
    fn magic_file(&self, caller: &dyn Caller) -> Option<Arc<crate::FileDescription>> {
        let _ = caller;
        None
    }

    /// The last name may be about to go while somebody still holds the object by an `O_PATH` descriptor: a remote file
    /// system makes sure that it can be reached without one.
    fn keep_reachable(&self) {}

    /// Opens a regular file, directory or the inode's own kind of device. FIFOs, sockets and device nodes of ordinary
    /// file systems are opened by the VFS and never reach this. Truncation is done by the VFS.
    fn open(self: Arc<Self>, flags: OpenFlags, caller: &dyn Caller) -> Result<Arc<dyn FileOps>>;

    /// Opening it right after `open(2)`-time checks is up to the inode itself (procfs: `ESRCH`, ptrace rules).
    fn permission(&self, mask: u32, caller: &dyn Caller) -> Option<Result<()>> {
        let _ = (mask, caller);
        None
    }

    fn get_xattr(&self, name: &[u8]) -> Result<Vec<u8>> {
        let _ = name;
        Err(Errno::EOPNOTSUPP)
    }

    /// `flags`: `XATTR_CREATE`, `XATTR_REPLACE`.
    fn set_xattr(&self, name: &[u8], value: &[u8], flags: i32) -> Result<()> {
        let _ = (name, value, flags);
        Err(Errno::EOPNOTSUPP)
    }

    fn remove_xattr(&self, name: &[u8]) -> Result<()> {
        let _ = name;
        Err(Errno::EOPNOTSUPP)
    }

    fn list_xattr(&self) -> Result<Vec<Vec<u8>>> {
        Ok(Vec::new())
    }

    /// Whether names in this directory change without the VFS being told (procfs, shared mounts): its dentries are
    /// then looked up anew every time.
    fn volatile_names(&self) -> bool {
        false
    }

    /// Whether the contents and attributes of this regular file stay as they are in an epoch of files
    /// ([`crate::file_epoch`]).
    fn is_steady(&self) -> bool {
        false
    }

    /// Who has this file open; `None` where nobody counts (files of the kernel).
    fn usage(&self) -> Option<&crate::Usage> {
        None
    }

    /// Whether this directory never holds a name: a mount on it hides nothing (`is_empty_dir_inode`).
    fn is_empty_for_good(&self) -> bool {
        false
    }

    /// The place for a FIFO's pipe or a socket file's socket.
    fn attachment(&self) -> Option<&Attachment> {
        None
    }

    /// The file system that this inode belongs to.
    fn filesystem(&self) -> Arc<dyn FileSystem>;

    fn as_any(&self) -> &dyn Any;
    /// The same object as `Any`, kept alive (for file systems that need their own type back).
    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
}

/// A mountable file system.
pub trait FileSystem: Send + Sync {
    /// The type's name in `/proc/mounts`.
    fn name(&self) -> &'static str;
    fn root(&self) -> Arc<dyn Inode>;
    fn statfs(&self) -> Result<StatFs>;
    /// The device number of its files.
    fn dev(&self) -> u64;
    /// Whether every change is refused with `EROFS`.
    fn read_only(&self) -> bool {
        false
    }
    /// Mount options beyond the mount's own, for `/proc/mounts`, such as `size=64k`.
    fn options(&self) -> String {
        String::new()
    }
    fn sync(&self) -> Result<()> {
        Ok(())
    }
    /// Takes new mount options (a remount); `EINVAL` for what it does not know.
    fn reconfigure(&self, options: &str) -> Result<()> {
        let _ = options;
        Ok(())
    }
    fn as_any(&self) -> &dyn Any;
}

impl core::fmt::Debug for dyn Inode {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Inode({:?})", self.kind())
    }
}
impl core::fmt::Debug for dyn FileSystem {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "FileSystem({})", self.name())
    }
}
impl core::fmt::Debug for dyn Caller {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Caller({})", self.tid())
    }
}
impl core::fmt::Debug for dyn crate::Terminal {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Terminal({:#x})", self.rdev())
    }
}
