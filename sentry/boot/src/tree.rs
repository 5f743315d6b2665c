//! Builds what the container sees as its files: the root, then every mount in its order.
//!
//! Paths are walked inside the new tree, as the container itself would: a symbolic link that the root file system
//! ships leads to another place in it, and never out.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use control_protocol::{Boot, Mount, MountFlags as Asked, MountKind, Options};
use fs_dev::{DevPts, Terminals};
use fs_gofer::{GoferFs, Session};
use fs_overlay::OverlayFs;
use fs_tmpfs::{TmpFs, TmpfsOptions};
use sentry_base::{Errno, Result};
use sentry_kernel::{Kernel, PidNs};
use sentry_memory::{MemoryFile, UserReader};
use sentry_vfs::pseudo::PseudoFs;
use sentry_vfs::{
    FileSystem, FsContextView, IoCtx, IoStart, Location, LookupFlags, MountFlags, MountNamespace, OpenFlags,
    OpenHow, Opened, PathCx, Pos, anonymous_dev,
};

use crate::caller::KernelCaller;
use crate::cgroup;

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
    #[error("write sysctl key {name}: {value:?} is not taken: {errno}")]
    Sysctl { name: String, value: String, errno: Errno },
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
    /// Where the contents of what is written on the root go.
    pub filestore: &'a Arc<MemoryFile>,
    pub gofer: &'a Arc<Session>,
    pub terminals: &'a Arc<Terminals>,
    pub pid_ns: &'a Arc<PidNs>,
    pub options: &'a Options,
    /// The limit of its memory, in bytes; 0 for none.
    pub memory_limit: &'a Arc<AtomicU64>,
    /// Whether there is a `/dev/console`.
    pub console: bool,
}

/// The finished tree.
#[derive(Debug)]
pub struct Tree {
    pub ns: Arc<MountNamespace>,
    caller: KernelCaller,
    view: FsContextView,
    /// What could not be done and does not matter to most programs.
    pub notes: Vec<String>,
}

impl Tree {
    /// Builds the tree that `boot` describes.
    pub fn build(boot: &Boot, parts: &Parts<'_>) -> core::result::Result<Self, TreeError> {
        let root = root_fs(boot, parts).map_err(TreeError::Root)?;
        // Mount points may have to be made: the root becomes read-only last.
        let ns = MountNamespace::new(parts.kernel.vfs(), root, MountFlags::empty(), "overlay");
        let at = ns.root();
        let view = FsContextView { root: at.clone(), cwd: at.clone(), umask: 0o022 };
        let mut tree = Self { ns, caller: KernelCaller::new(), view, notes: Vec::new() };
        for mount in &boot.mounts {
            tree.mount(parts, mount)?;
        }
        // The places of some are read-only in a moment.
        for (name, value) in &boot.sysctls {
            match tree.set_sysctl(name, value) {
                Ok(()) => {}
                // Of the network there are more of them than are kept here.
                Err(errno) if name.starts_with("net") => {
                    tree.notes
                        .push(format!("linux.sysctl[{name:?}]: not applied inside the sandbox: {errno}"));
                }
                Err(errno) => {
                    return Err(TreeError::Sysctl { name: name.clone(), value: value.clone(), errno });
                }
            }
        }
        for path in &boot.masked_paths {
            tree.mask(path)?;
        }
        for path in &boot.readonly_paths {
            tree.make_read_only(path)?;
        }
        let cwd = boot.process.cwd.as_bytes();
        tree.make_path(cwd, false)
            .map_err(|errno| TreeError::WorkingDirectory { place: show(cwd), errno })?;
        if boot.root.readonly {
            at.mount.set_flags(at.mount.flags() | MountFlags::RDONLY);
        }
        Ok(tree)
    }

    /// A path walk from the container's root with every right.
    pub fn walk(&self) -> PathCx<'_> {
        PathCx::new(&self.ns, &self.view, &self.caller.0, &self.caller)
    }

    pub fn root(&self) -> Location {
        self.view.root.clone()
    }

    pub fn caller(&self) -> &KernelCaller {
        &self.caller
    }

    /// Finds `path`, and makes the directories that are missing; with `file`, a file in the last place.
    fn make_path(&self, path: &[u8], file: bool) -> Result<Location> {
        let walk = self.walk();
        let mut at = self.root();
        let mut made = Vec::new();
        let mut names = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).peekable();
        while let Some(name) = names.next() {
            made.push(b'/');
            made.extend_from_slice(name);
            at = match walk.lookup(None, &made, LookupFlags::FOLLOW) {
                Err(Errno::ENOENT) if file && names.peek().is_none() => walk.mknod(None, &made, 0o644, 0)?,
                Err(Errno::ENOENT) => walk.mkdir(None, &made, 0o755)?,
                found => found?,
            };
        }
        Ok(at)
    }

    fn mount(&self, parts: &Parts<'_>, mount: &Mount) -> core::result::Result<(), TreeError> {
        let path = mount.destination.as_bytes();
        let file = matches!(mount.kind, MountKind::Bind { is_directory: false, .. });
        let at = self.make_path(path, file).map_err(|errno| TreeError::Point { place: show(path), errno })?;
        let (what, made) = file_system(parts, mount);
        let made = match mount.kind {
            // What a mode says of the new root stays said.
            MountKind::Tmpfs { copy_up: true, .. } if at.is_dir() => made.and_then(|fs| {
                fs_overlay::copy_tree(at.dentry.inode(), &fs.root())?;
                Ok(fs)
            }),
            _ => made,
        };
        made.and_then(|fs| self.ns.mount_at(&at, fs, flags_of(mount.flags), what))
            .map_err(|errno| TreeError::Mount { what, place: show(path), errno })?;
        Ok(())
    }

    /// Sets a value of `/proc/sys`.
    fn set_sysctl(&self, name: &str, value: &str) -> Result<()> {
        // With slashes, dots belong to names such as those of interfaces.
        let name = if name.contains('/') { name.to_owned() } else { name.replace('.', "/") };
        let path = format!("/proc/sys/{name}");
        let opened = self.walk().open(None, path.as_bytes(), OpenHow::new(OpenFlags::WRONLY))?;
        let Opened::File(file) = opened else { return Err(Errno::EINVAL) };
        let io = IoCtx { flags: OpenFlags::WRONLY, caller: &self.caller };
        match file.ops().try_write(&io, &mut UserReader::buffer(value.as_bytes()), Pos::At(0))? {
            IoStart::Done(_) => Ok(()),
            IoStart::WouldBlock => Err(Errno::EAGAIN),
        }
    }

    /// Hides a path, if it is there: a file behind an empty one, a directory behind an empty one.
    fn mask(&self, path: &str) -> core::result::Result<(), TreeError> {
        let hide = || -> Result<()> {
            let at = match self.walk().lookup(None, path.as_bytes(), LookupFlags::FOLLOW) {
                Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(()),
                at => at?,
            };
            let fs = PseudoFs::new("tmpfs", MASK_MAGIC, anonymous_dev(), 1);
            fs.set_root(if at.is_dir() { fs.dir([]) } else { fs.fixed("") });
            self.ns.mount_at(&at, fs, MountFlags::RDONLY, "tmpfs")?;
            Ok(())
        };
        hide().map_err(|errno| TreeError::Mask { place: path.to_owned(), errno })
    }

    /// Mounts a path on itself, read-only, if it is there.
    fn make_read_only(&self, path: &str) -> core::result::Result<(), TreeError> {
        let change = || -> Result<()> {
            let at = match self.walk().lookup(None, path.as_bytes(), LookupFlags::FOLLOW) {
                Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(()),
                at => at?,
            };
            let bound = self.ns.bind(&at, &at, true)?;
            bound.mount.set_flags(at.mount.flags() | MountFlags::RDONLY);
            Ok(())
        };
        change().map_err(|errno| TreeError::ReadOnly { place: path.to_owned(), errno })
    }
}

fn show(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

/// The gofer's tree below, everything that is written in a layer of the Sentry's own above; or the gofer's tree alone.
fn root_fs(boot: &Boot, parts: &Parts<'_>) -> Result<Arc<dyn FileSystem>> {
    let dev = anonymous_dev();
    let root = boot.root;
    let attach = root.attach;
    if root.write_through {
        // The engine copies files in and out while the container runs.
        let options = fs_gofer::Options { read_only: false, shared: true, dev };
        return Ok(GoferFs::attach(parts.gofer, attach, options)?);
    }
    let lower = fs_gofer::Options { read_only: true, shared: false, dev };
    let lower = GoferFs::attach(parts.gofer, attach, lower)?;
    let size = Some(boot.options.filestore_limit).filter(|limit| *limit > 0);
    let upper = TmpFs::new(parts.filestore, TmpfsOptions { size, ..TmpfsOptions::default() });
    Ok(OverlayFs::new(lower, upper, dev)?)
}

fn file_system(parts: &Parts<'_>, mount: &Mount) -> (&'static str, Result<Arc<dyn FileSystem>>) {
    match &mount.kind {
        MountKind::Proc => ("proc", Ok(fs_proc::of_namespace(parts.kernel, parts.pid_ns, anonymous_dev()))),
        MountKind::Sysfs => ("sysfs", Ok(fs_sys::new(anonymous_dev(), parts.kernel.nr_cpus()))),
        MountKind::Dev { data } => {
            let made =
                tmpfs(parts, data).and_then(|fs| fs_dev::populate(&fs.root(), parts.console).map(|()| fs));
            ("tmpfs", made.map(|fs| fs as Arc<dyn FileSystem>))
        }
        // Options of devpts choose owners and modes, which are the usual ones here.
        MountKind::Devpts { .. } => {
            let fs: Arc<dyn FileSystem> = DevPts::new(Arc::clone(parts.terminals));
            ("devpts", Ok(fs))
        }
        MountKind::Mqueue => ("mqueue", tmpfs(parts, "").map(|fs| fs as Arc<dyn FileSystem>)),
        MountKind::Cgroup => ("cgroup2", Ok(cgroup::new(parts.kernel, parts.options, parts.memory_limit))),
        MountKind::Tmpfs { data, .. } => ("tmpfs", tmpfs(parts, data).map(|fs| fs as Arc<dyn FileSystem>)),
        MountKind::Bind { attach, .. } => {
            // Others may change the host's files at any time.
            let options =
                fs_gofer::Options { read_only: mount.flags.readonly, shared: true, dev: anonymous_dev() };
            let made = GoferFs::attach(parts.gofer, *attach, options);
            ("bind", made.map(|fs| fs as Arc<dyn FileSystem>))
        }
    }
}

fn tmpfs(parts: &Parts<'_>, data: &str) -> Result<Arc<TmpFs>> {
    let options = TmpfsOptions::parse(data, parts.kernel.total_memory())?;
    Ok(TmpFs::new(parts.memory, options))
}

fn flags_of(asked: Asked) -> MountFlags {
    [
        (asked.readonly, MountFlags::RDONLY),
        (asked.nosuid, MountFlags::NOSUID),
        (asked.nodev, MountFlags::NODEV),
        (asked.noexec, MountFlags::NOEXEC),
        (asked.noatime, MountFlags::NOATIME),
    ]
    .into_iter()
    .filter(|(set, _)| *set)
    .fold(MountFlags::empty(), |all, (_, flag)| all | flag)
}
