//! tmpfs: a file system in memory (`tmpfs(5)`, `mm/shmem.c`), and the files of `memfd_create(2)`.
//!
//! Data lies in the Sentry's memory file, so that it can be mapped; names, attributes and extended attributes are
//! Sentry objects.
//!
//! **Invariants.** A name change holds the file system's tree lock, so that link counts and names agree. Pages and inodes
//! are charged against the limits before they are used.
//!
//! **Lock ranks:** tree 46, writes to one file 48, `FileData` 50 (an inode's state). An inode's state is never locked
//! over a copy from or to user memory, since such a copy may fault on a mapping of this very file.
//!
//! **Threat.** Names, sizes and offsets come from the application; limits bound what it can make the Sentry hold, and
//! trees of any depth are dropped without recursion.

mod dir;
mod file;
mod fs;
mod inode;
mod memfd;
mod options;

pub use file::{OpenTmpfs, open_tmpfs_file};
pub use fs::{TmpFs, TmpfsType};
pub use memfd::{MemfdMaker, seal};
pub use options::TmpfsOptions;

#[cfg(test)]
mod tests;
