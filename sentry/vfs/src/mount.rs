//! Dentries, mounts and places in the tree.

use std::sync::Arc;

use crate::{FileSystem, Inode};

/// A name in the tree with its inode. Grown by the path walk.
#[derive(Debug)]
pub struct Dentry {
    pub(crate) inode: Arc<dyn Inode>,
}

impl Dentry {
    pub fn inode(&self) -> &Arc<dyn Inode> {
        &self.inode
    }
}

/// A file system at a place.
#[derive(Debug)]
pub struct Mount {
    pub(crate) fs: Arc<dyn FileSystem>,
}

impl Mount {
    pub fn filesystem(&self) -> &Arc<dyn FileSystem> {
        &self.fs
    }
}

/// A place: a dentry as seen through a mount (`struct path` of Linux).
#[derive(Debug, Clone)]
pub struct Location {
    pub mount: Arc<Mount>,
    pub dentry: Arc<Dentry>,
}

impl Location {
    pub fn inode(&self) -> &Arc<dyn Inode> {
        self.dentry.inode()
    }
}
