//! Builds what the container sees as its files: the root, then every mount in its order.
//!
//! Paths are walked inside the new tree, as the container itself would: a symbolic link that the root file system
//! ships leads to another place in it, and never out.

use std::sync::Arc;

use control_protocol::{Boot, Mount, MountFlags as Asked, MountKind};
use fs_dev::{DevPts, Terminals};
use fs_gofer::{GoferFs, Session};
use fs_overlay::OverlayFs;
use fs_tmpfs::{TmpFs, TmpfsOptions};
use sentry_base::{Errno, Result};
use sentry_kernel::Kernel;
use sentry_memory::MemoryFile;
use sentry_vfs::pseudo::PseudoFs;
use sentry_vfs::{
    Attr, Credentials, FileKind, FileSystem, FsContextView, Location, LookupFlags, MountFlags, MountNamespace,
    PathCx, SetAttr, anonymous_dev,
};

use crate::caller::KernelCaller;

/// `CGROUP2_SUPER_MAGIC` (`include/uapi/linux/magic.h`).
const CGROUP_MAGIC: u64 = 0x6367_7270;

/// `TMPFS_MAGIC`, for what hides masked paths.
const MASK_MAGIC: u64 = 0x0102_1994;

/// A step of the build that failed.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    #[error("cannot attach to the root file system: {0}")]
    Root(Errno),
    #[error("cannot mount {what} at {place:?}: {errno}")]
    Mount { what: &'static str, place: String, errno: Errno },
    #[error("cannot make the mount point {place:?}: {errno}")]
    Point { place: String, errno: Errno },
    #[error("cannot mask {place:?}: {errno}")]
    Mask { place: String, errno: Errno },
    #[error("cannot make {place:?} read-only: {errno}")]
    ReadOnly { place: String, errno: Errno },
    #[error("cannot make the working directory {place:?}: {errno}")]
    WorkingDirectory { place: String, errno: Errno },
}

/// What the file systems of a container are made from.
#[derive(Debug)]
pub struct Parts<'a> {
    pub kernel: &'a Arc<Kernel>,
    pub memory: &'a Arc<MemoryFile>,
    pub gofer: &'a Arc<Session>,
    pub terminals: &'a Arc<Terminals>,
}

/// The finished tree.
#[derive(Debug)]
pub struct Tree {
    pub ns: Arc<MountNamespace>,
    caller: KernelCaller,
    view: FsContextView,
}

impl Tree {
    /// Builds the tree that `boot` describes.
    pub fn build(boot: &Boot, parts: &Parts<'_>) -> core::result::Result<Self, TreeError> {
        let root = root_fs(boot, parts).map_err(TreeError::Root)?;
        // Mount points may have to be made: the root becomes read-only last.
        let ns = MountNamespace::new(root, MountFlags::empty(), "rootfs");
        let at = ns.root();
        let view = FsContextView { root: at.clone(), cwd: at.clone(), umask: 0o022 };
        let tree = Self { ns, caller: KernelCaller::new(), view };
        for mount in &boot.mounts {
            tree.mount(boot, parts, mount)?;
        }
        for path in &boot.masked_paths {
            tree.mask(path)?;
        }
        for path in &boot.readonly_paths {
            tree.make_read_only(path)?;
        }
        tree.make_working_directory(boot)?;
        if boot.root.readonly {
            at.mount.set_flags(at.mount.flags() | MountFlags::RDONLY);
        }
        Ok(tree)
    }

    /// A path walk from the container's root with every right.
    pub fn walk<'a>(&'a self, kernel: &'a Kernel) -> PathCx<'a> {
        self.walk_as(kernel, &self.caller.0)
    }

    fn walk_as<'a>(&'a self, kernel: &'a Kernel, creds: &'a Credentials) -> PathCx<'a> {
        PathCx::new(kernel.vfs(), &self.ns, &self.view, creds, &self.caller)
    }
}
