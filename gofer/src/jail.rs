//! Shuts the gofer in: a root with the mounted trees alone, and no rights beyond serving them.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, PathBeneath, Ruleset, RulesetAttr, RulesetCreatedAttr,
};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, mount_bind,
    mount_change, mount_remount, move_mount, open_tree, unmount,
};
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::config::{Config, Mount};

/// A step of the jail that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step} {}: {cause}", subject.display())]
pub(crate) struct JailError {
    step: &'static str,
    subject: PathBuf,
    cause: io::Error,
}

trait Step<T> {
    /// Names the step and what it was done to, for the one who reads the error.
    fn step(self, step: &'static str, subject: impl AsRef<Path>) -> Result<T, JailError>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, step: &'static str, subject: impl AsRef<Path>) -> Result<T, JailError> {
        self.map_err(|e| JailError { step, subject: subject.as_ref().to_path_buf(), cause: e.into() })
    }
}

/// Where the new root is put together: the one directory that every host has, since the gofer reads it anyway.
const STAGE: &str = "/proc";

/// Kernel file systems: views of the host that no sandbox gets through its gofer.
const KERNEL_FILESYSTEMS: &[&str] = &[
    "proc",
    "sysfs",
    "devtmpfs",
    "devpts",
    "cgroup",
    "cgroup2",
    "debugfs",
    "tracefs",
    "securityfs",
    "bpf",
    "configfs",
    "pstore",
    "mqueue",
    "efivarfs",
    "fusectl",
    "binfmt_misc",
    "autofs",
    "rpc_pipefs",
    "nfsd",
    "selinuxfs",
    "hugetlbfs",
    "resctrl",
    "nsfs",
];

/// Whether a file system of this kind is such a view.
pub fn is_kernel_file_system(kind: &str) -> bool {
    KERNEL_FILESYSTEMS.contains(&kind)
}

/// Makes the calling process, which must have one thread, the jailed one, and gives its root directory.
pub(crate) fn enter(config: &Config) -> Result<OwnedFd, JailError> {
    rustix::process::umask(Mode::empty());
    rustix::process::setrlimit(
        rustix::process::Resource::Core,
        rustix::process::Rlimit { current: Some(0), maximum: Some(0) },
    )
    .step("switch off", "core dumps")?;
    build_root(&config.mounts)?;
    let root = rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .step("open", "/")?;
    let writable = config.mounts.iter().any(|m| !m.read_only);
    reduce_capabilities(writable)?;
    rustix::thread::set_no_new_privs(true).step("bar itself from", "new privileges")?;
    restrict_paths(&config.mounts)?;
    hostsys::process::set_dumpable(false).step("close itself to", "debuggers")?;
    Ok(root)
}

/// A mount's source, cloned and restricted, not yet attached anywhere.
struct Detached {
    tree: OwnedFd,
    is_dir: bool,
    /// Mounts in it that are not served, as paths relative to its root.
    to_cover: Vec<PathBuf>,
}

/// A mount of the host.
#[derive(Debug, PartialEq, Eq)]
struct Mounted {
    at: PathBuf,
    is_kernel_file_system: bool,
}

fn build_root(mounts: &[Mount]) -> Result<(), JailError> {
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).step("make private the mounts under", "/")?;
    let mounted = mount_points()?;
    // Cloned before the stage is mounted, so that no clone holds it.
    let trees = mounts.iter().map(|m| detach(m, &mounted)).collect::<Result<Vec<Detached>, JailError>>()?;

    let stage = Path::new(STAGE);
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("none", stage, "tmpfs", flags, Some(c"mode=0755,size=1m")).step("mount a tmpfs on", stage)?;
    let (no_dir, no_file) = (stage.join("empty"), stage.join("nothing"));
    fs::create_dir(&no_dir).step("make", &no_dir)?;
    fs::File::create(&no_file).step("make", &no_file)?;
    for (index, (tree, source)) in trees.iter().zip(mounts).enumerate() {
        let target = stage.join(index.to_string());
        if tree.is_dir {
            fs::create_dir(&target).step("make", &target)?;
        } else {
            fs::File::create(&target).step("make", &target)?;
        }
        move_mount(&tree.tree, c"", CWD, &target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .step("attach", &source.source)?;
        for relative in &tree.to_cover {
            let at = target.join(relative);
            // What cannot be reached any more needs no cover.
            let Ok(found) = fs::symlink_metadata(&at) else { continue };
            let cover = if found.is_dir() { &no_dir } else { &no_file };
            mount_bind(cover, &at).step("cover", &at)?;
        }
    }
    // The file system and not this mount alone: the covers are mounts of it too.
    mount_remount(stage, flags | MountFlags::RDONLY, c"").step("make read-only", stage)?;

    rustix::process::chdir(stage).step("change to", stage)?;
    rustix::process::pivot_root(".", ".").step("pivot to", stage)?;
    unmount(".", UnmountFlags::DETACH).step("detach", "the old root")?;
    rustix::process::chdir("/").step("change to", "/")
}

fn detach(m: &Mount, mounted: &[Mounted]) -> Result<Detached, JailError> {
    let source = fs::canonicalize(&m.source).step("find the mount source", &m.source)?;
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let tree = open_tree(CWD, &source, flags).step("clone the mounts under", &source)?;
    let mut attributes = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
    if m.read_only {
        attributes |= libc::MOUNT_ATTR_RDONLY;
    }
    hostsys::mount::restrict_tree(tree.as_fd(), attributes).step("restrict the mounts under", &source)?;
    let is_dir = fs::metadata(&source).step("look at", &source)?.is_dir();
    // In a user namespace what the host has mounted cannot be taken away to show what is below.
    let covered =
        |mounted: &&Mounted| mounted.is_kernel_file_system || (!m.recursive && mounted.at != source);
    let inside = |mounted: &Mounted| mounted.at.strip_prefix(&source).ok().map(Path::to_path_buf);
    let to_cover = mounted.iter().filter(covered).filter_map(inside).collect();
    Ok(Detached { tree, is_dir, to_cover })
}

/// What is mounted, from `proc_pid_mountinfo(5)`, outer before inner.
fn mount_points() -> Result<Vec<Mounted>, JailError> {
    let table = "/proc/self/mountinfo";
    let text = fs::read(table).step("read", table)?;
    Ok(text.split(|b| *b == b'\n').filter_map(mount_point).collect())
}

fn mount_point(line: &[u8]) -> Option<Mounted> {
    let mut fields = line.split(|b| *b == b' ');
    let point = fields.nth(4)?;
    let kind = fields.skip_while(|f| *f != b"-").nth(1)?;
    let kind = std::str::from_utf8(kind).ok()?;
    let at = PathBuf::from(std::ffi::OsString::from_vec(hostsys::mount::unescape(point)));
    Some(Mounted { at, is_kernel_file_system: is_kernel_file_system(kind) })
}

/// Keeps what serving files takes: reading any, and, where some mount is writable, making them with their owners.
fn reduce_capabilities(writable: bool) -> Result<(), JailError> {
    let mut keep = CapabilitySet::DAC_READ_SEARCH;
    if writable {
        keep |= CapabilitySet::DAC_OVERRIDE
            | CapabilitySet::CHOWN
            | CapabilitySet::FOWNER
            | CapabilitySet::FSETID;
    }
    let who = "its capabilities";
    rustix::thread::clear_ambient_capability_set().step("reduce", who)?;
    for cap in CapabilitySet::all().iter().filter(|cap| !keep.contains(*cap)) {
        match rustix::thread::remove_capability_from_bounding_set(cap) {
            // A capability that this kernel does not know.
            Err(rustix::io::Errno::INVAL) => {}
            other => other.step("reduce", who)?,
        }
    }
    let held = rustix::thread::capabilities(None).step("read", who)?;
    let keep = keep & held.permitted;
    let sets = CapabilitySets { effective: keep, permitted: keep, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets).step("reduce", who)
}

/// Lets the process read the mounts, and change the writable ones; as far as the kernel has Landlock.
fn restrict_paths(mounts: &[Mount]) -> Result<(), JailError> {
    let abi = ABI::V5;
    let reads = AccessFs::ReadFile | AccessFs::ReadDir;
    // Everything but running programs and making block devices. Of character devices an overlay's mark of a removed file can be
    // made: the filter lets no other number pass, and the kernel makes no device in a user namespace.
    let changes = AccessFs::from_all(abi) & !(AccessFs::Execute | AccessFs::MakeBlock | AccessFs::IoctlDev);
    let broken = |e: landlock::RulesetError| JailError {
        step: "restrict itself to",
        subject: "its mounts".into(),
        cause: io::Error::other(e),
    };
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(abi))
        .map_err(broken)?
        .create()
        .map_err(broken)?;
    for (index, m) in mounts.iter().enumerate() {
        let at = Path::new("/").join(index.to_string());
        let node = rustix::fs::open(&at, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).step("open", &at)?;
        let mut access = if m.read_only { reads } else { changes };
        if !fs::metadata(&at).step("look at", &at)?.is_dir() {
            access &= AccessFs::from_file(abi);
        }
        rules = rules.add_rule(PathBeneath::new(node, access)).map_err(broken)?;
    }
    rules.restrict_self().map_err(broken).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_table_lines() {
        let line = br"36 35 0:21 / /mnt/a\040b\134 rw,nosuid shared:7 master:1 - proc proc rw";
        let mounted =
            |at: &str, is_kernel_file_system| Some(Mounted { at: at.into(), is_kernel_file_system });
        assert_eq!(mount_point(line), mounted(r"/mnt/a b\", true));
        assert_eq!(mount_point(b"36 35 8:1 / / rw - ext4 /dev/vda rw"), mounted("/", false));
        assert_eq!(mount_point(b"36 35 8:1 / / rw"), None);
        assert_eq!(mount_point(b""), None);
    }
}
