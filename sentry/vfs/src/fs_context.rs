//! Root directory, working directory and umask, which threads share with `CLONE_FS` (`fs_struct` of Linux).

use std::sync::Arc;

use sentry_base::RwLock;
use sentry_base::lock::rank;

use crate::{Location, MountMap, epoch};

/// One state of an [`FsContext`].
#[derive(Debug, Clone)]
pub struct FsContextView {
    pub root: Location,
    pub cwd: Location,
    pub umask: u32,
}

/// The shared, changing one.
#[derive(Debug)]
pub struct FsContext(RwLock<Arc<FsContextView>, { rank::LEAF }>);

impl FsContext {
    pub fn new(root: Location, cwd: Location, umask: u32) -> Arc<Self> {
        Self::from_view(FsContextView { root, cwd, umask: umask & 0o777 })
    }

    pub fn root(&self) -> Location {
        self.0.read().root.clone()
    }

    pub fn cwd(&self) -> Location {
        self.0.read().cwd.clone()
    }

    pub fn umask(&self) -> u32 {
        self.0.read().umask
    }

    pub fn from_view(view: FsContextView) -> Arc<Self> {
        Arc::new(Self(RwLock::new(Arc::new(view))))
    }

    /// The present state: cheap, and steady while a call uses it.
    pub fn view(&self) -> Arc<FsContextView> {
        Arc::clone(&self.0.read())
    }

    /// A copy of its own (`clone(2)` without `CLONE_FS`).
    pub fn fork(&self) -> Arc<Self> {
        Arc::new(Self(RwLock::new(self.view())))
    }

    fn change(&self, change: impl FnOnce(&mut FsContextView)) {
        let mut slot = self.0.write();
        let mut view = (**slot).clone();
        change(&mut view);
        let old = core::mem::replace(&mut *slot, Arc::new(view));
        drop(slot);
        drop(old);
    }

    pub fn set_cwd(&self, cwd: Location) {
        self.change(|v| v.cwd = cwd);
    }

    pub fn set_root(&self, root: Location) {
        self.change(|v| v.root = root);
        epoch::advance();
    }

    /// Sets the umask (only its lower nine bits count) and returns the old one.
    pub fn set_umask(&self, umask: u32) -> u32 {
        let mut old = 0;
        self.change(|v| old = core::mem::replace(&mut v.umask, umask & 0o777));
        old
    }

    /// Moves root and working directory into a copied namespace.
    pub fn translate(&self, map: &MountMap) {
        self.change(|v| {
            v.root = map.translate(&v.root);
            v.cwd = map.translate(&v.cwd);
        });
        epoch::advance();
    }
}
