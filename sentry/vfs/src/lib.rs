//! The virtual file system: inodes and files as traits, dentries, mounts, path walk, descriptor tables.
//!
//! A file system gives [`Inode`]s; opening one gives a [`FileOps`]; a [`FileDescription`] is what a descriptor
//! names. Objects are synchronous: a call answers at once with a result or `WouldBlock`, and whoever wants to wait
//! does so on the file's wait queue.
//!
//! **Lock ranks:** `MountTree` 20, `Rename` 30, `DirInode` 40, file position 45, `FileData` 50, `FdTable` 60. No user
//! copy that may fault is made under a directory's lock; a file's data lock may be held over a copy, because a fault
//! on user memory never needs it back.
//!
//! **Threat.** Paths, names and flags come from the application; replies of a file system on the gofer's side have
//! been validated by that file system.

mod attr;
mod caller;
mod creds;
mod description;
mod file;
mod inode;
mod mount;

pub mod pseudo;
#[cfg(feature = "testing")]
pub mod testing;

pub use attr::{Attr, FileKind, SetAttr, SetTime, StatFs, Timestamp};
pub use caller::{Caller, JobControl, SignalSink, Terminal};
pub use creds::{CapSet, Credentials, cap};
pub use description::{CloseWatcher, FileDescription};
pub use file::{FileOps, IoCtx, IoStart, OpenFlags, Pos, WaitLimit, Whence};
pub use inode::{Attachment, DirEntry, FileSystem, Inode, Owner, RenameFlags};
pub use mount::{Dentry, Location, Mount};
