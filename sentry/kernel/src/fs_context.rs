//! Root, working directory and umask of a task (`struct fs_struct` of Linux).

use std::sync::Arc;

use sentry_base::{Mutex, lock::rank};
use sentry_vfs::Location;

/// Root, working directory and umask; shared by tasks made with `CLONE_FS`.
#[derive(Debug)]
pub struct FsContext {
    inner: Mutex<FsPlaces, { rank::TASK }>,
}

#[derive(Debug, Clone)]
struct FsPlaces {
    root: Location,
    cwd: Location,
    umask: u32,
}

impl FsContext {
    pub fn new(root: Location, cwd: Location, umask: u32) -> Arc<Self> {
        Arc::new(Self { inner: Mutex::new(FsPlaces { root, cwd, umask }) })
    }

    pub fn root(&self) -> Location {
        self.inner.lock().root.clone()
    }

    pub fn cwd(&self) -> Location {
        self.inner.lock().cwd.clone()
    }

    pub fn umask(&self) -> u32 {
        self.inner.lock().umask
    }

    pub fn set_root(&self, root: Location) {
        let old = core::mem::replace(&mut self.inner.lock().root, root);
        drop(old);
    }

    pub fn set_cwd(&self, cwd: Location) {
        let old = core::mem::replace(&mut self.inner.lock().cwd, cwd);
        drop(old);
    }

    /// Replaces the umask and returns the old one.
    pub fn set_umask(&self, umask: u32) -> u32 {
        core::mem::replace(&mut self.inner.lock().umask, umask & 0o777)
    }

    /// A copy for a child that does not share it.
    pub fn fork(&self) -> Arc<Self> {
        Arc::new(Self { inner: Mutex::new(self.inner.lock().clone()) })
    }
}
