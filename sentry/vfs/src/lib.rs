//! The virtual file system: inodes and files as traits, dentries, mounts, path walk, descriptor tables.
//!
//! A file system gives [`Inode`]s; opening one gives a [`FileOps`]; a [`FileDescription`] is what a descriptor
//! names. Objects are synchronous: a call answers at once with a result or `WouldBlock`, and whoever wants to wait
//! does so on the file's wait queue.
//!
//! **Invariants.** A directory has one live dentry, whose lock is the directory's: names change under it and are checked
//! once more there. What nobody uses is only cached, and the cache of each file system is bounded. A descriptor's file
//! is flushed and dropped after the table's lock is released.
//!
//! **Lock ranks:** file position 15 (held over a whole transfer), `Rename` 30, `DirInode` 40, `FileData`
//! 50, `FdTable` 60, `MountTree` 190; dentry links, child caches, watches and lock lists are leaves. No user copy that may fault is
//! made under a directory's lock.
//!
//! **Threat.** Paths, names and flags come from the application; replies of a file system on the gofer's side have
//! been validated by that file system.

mod access;
pub mod acl;
mod attr;
mod attrs;
mod caller;
mod creds;
mod dentry;
mod description;
mod dir;
pub mod epoch;
mod fd_table;
mod file;
pub mod file_epoch;
mod fs_context;
mod inode;
mod inotify;
mod lock_table;
mod modify;
mod mount;
mod open;
mod usage;
mod user_ns;
mod vfs;
mod walk;
pub mod watch;

pub mod pseudo;
#[cfg(feature = "testing")]
pub mod testing;

pub use access::{Access, check_attr, check_inode, check_location, is_owner};
pub use attr::{Attr, FileKind, SetAttr, SetTime, StatFs, Timestamp};
pub use attrs::without_set_ids;
pub use caller::{Caller, JobControl, SignalSink, Terminal};
pub use creds::{CapSet, Credentials, cap};
pub use dentry::{Dentry, SuperBlock};
pub use description::{CloseWatcher, FileDescription};
pub use dir::{DirFile, as_dir};
pub use fd_table::{FdTable, NR_OPEN};
pub use file::{FileOps, IoCtx, IoStart, OpenFlags, Pos, WaitLimit, Whence};
pub use fs_context::{FsContext, FsContextView};
pub use inode::{Attachment, DirEntry, FileSystem, Inode, Owner, RenameFlags};
pub use inotify::{Inotify, as_inotify};
pub use lock_table::{FileKey, FileLocks, LockOwner, LockTable, RangeLock};
pub use mount::{
    Location, Mount, MountFlags, MountInfo, MountMap, MountNamespace, MountTree, PathText, Propagation,
    UmountFlags,
};
pub use open::{OpenHow, Opened, PendingOpen, anonymous};
pub use usage::{InUse, LeaseKind, Leased, Usage, Use};
pub use user_ns::{IdKind, OVERFLOW_ID, UserNs, next_ns_ino};
pub use vfs::{DeviceOpener, FifoOpen, FifoOpener, FifoWait, FsType, Vfs, anonymous_dev};
pub use walk::{Last, LookupFlags, NAME_MAX, PATH_MAX, Parent, PathCx};
