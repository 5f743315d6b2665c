//! The state directory: what is kept of each container between commands.
//!
//! `<root>/<id>/state.json`, written whole or not at all; beside it the socket that the Sentry listens on, and, until the
//! container is started, a mark that says so. A container is there as long as its init lives on the host: a process that
//! is named by number and start time, so that a reused number is not taken for it.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use oci_spec::runtime::Hooks;
use rustix::fs::{Mode, OFlags};
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde::{Deserialize, Serialize};

use crate::cgroup::Group;
use crate::error::{Context, Error, Result, show};
use crate::network_mode::HostSockets;

/// The state root of this user: `$XDG_RUNTIME_DIR/casemate` for all but the host's root.
pub fn default_root() -> PathBuf {
    if is_rootless()
        && let Some(dir) = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty())
    {
        return PathBuf::from(dir).join("casemate");
    }
    PathBuf::from("/run/casemate")
}

/// Whether this command runs without the rights of the host's root: as somebody else, or as the root of a user namespace
/// that somebody else has made.
pub(crate) fn is_rootless() -> bool {
    if hostsys::credentials::effective_uid() != 0 {
        return true;
    }
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let mut words = map.split_whitespace();
    words.next() == Some("0") && words.next() != Some("0")
}

/// A process on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostProcess {
    pub pid: u32,
    /// Clock ticks since the host's start (`proc_pid_stat(5)`, field 22).
    pub start_time: u64,
}

impl HostProcess {
    /// The process that has this number now.
    pub fn of(pid: u32) -> io::Result<Self> {
        Ok(Self { pid, start_time: start_time(pid)?.1 })
    }

    /// Whether it still runs; a zombie does not.
    pub fn is_alive(&self) -> bool {
        matches!(start_time(self.pid), Ok((state, start)) if start == self.start_time && !"ZX".contains(state))
    }

    /// A descriptor for it, or `None` if it is gone.
    pub fn open(&self) -> io::Result<Option<std::os::fd::OwnedFd>> {
        let pid = i32::try_from(self.pid).map_err(io::Error::other)?;
        let descriptor = match hostsys::process::pidfd_open(pid) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
            descriptor => descriptor?,
        };
        // Asked after the number was pinned: the answer is about the process that the descriptor names.
        Ok(self.is_alive().then_some(descriptor))
    }
}

fn start_time(pid: u32) -> io::Result<(char, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in parentheses may hold anything, parentheses included.
    let rest = text.rsplit_once(") ").map_or("", |(_, rest)| rest);
    let state = rest.chars().next().unwrap_or('X');
    let start = rest.split(' ').nth(19).and_then(|field| field.parse().ok());
    start.map(|start| (state, start)).ok_or_else(|| io::Error::other("/proc/PID/stat is not understood"))
}

/// What `state.json` holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    pub oci_version: String,
    pub id: String,
    pub bundle: PathBuf,
    pub rootfs: PathBuf,
    /// RFC 3339 with nanoseconds.
    pub created: String,
    pub owner: u32,
    /// What stands for the container's first process on the host: it ends as that does.
    pub init: HostProcess,
    /// What is killed to end the container: the Sentry, or init for one that is in another one's sandbox.
    pub sandbox: HostProcess,
    pub gofer: HostProcess,
    /// The container whose sandbox this one is in, if it has none of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    #[serde(default)]
    pub cgroup: Group,
    #[serde(default)]
    pub hooks: Option<Hooks>,
    /// How its sockets are made, where they are the host's in a network namespace of the container's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_sockets: Option<HostSockets>,
    /// Its directory.
    #[serde(skip)]
    pub dir: PathBuf,
}

/// Where a container is in its life (`runtime.md` of the OCI specification, and "paused").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Created,
    Running,
    Paused,
    Stopped,
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        })
    }
}

impl State {
    pub fn status(&self) -> Status {
        if !self.init.is_alive() {
            Status::Stopped
        } else if self.cgroup.is_frozen() {
            Status::Paused
        } else if self.dir.join(HELD).exists() {
            Status::Created
        } else {
            Status::Running
        }
    }

    /// Notes that the container has been started.
    pub(crate) fn mark_started(&self) -> Result<()> {
        let mark = self.dir.join(HELD);
        match fs::remove_file(&mark) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).context(|| format!("remove {}", show(&mark)))
            }
            _ => Ok(()),
        }
    }
}

/// A directory of containers.
#[derive(Debug, Clone)]
pub struct StateRoot {
    path: PathBuf,
}

impl StateRoot {
    /// `path`, or the default. Nothing is created yet.
    pub fn new(path: Option<&Path>) -> Result<Self> {
        let Some(given) = path else { return Ok(Self { path: default_root() }) };
        let path = std::path::absolute(given).context(|| format!("--root {}", show(given)))?;
        if crate::mounts::clean(&path) == Path::new("/") {
            return Err(Error::Usage("--root must not be the root directory".into()));
        }
        Ok(Self { path })
    }

    /// Makes the directory of a new container. Whoever makes it owns the ID.
    pub fn create(&self, id: &str) -> Result<ContainerDir> {
        check_id(id)?;
        make_private(&self.path).context(|| format!("create {}", show(&self.path)))?;
        let path = self.path.join(id);
        match DirBuilder::new().mode(0o711).create(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(Error::AlreadyExists),
            made => made.context(|| format!("create {}", show(&path)))?,
        }
        let inode = fs::metadata(&path).context(|| format!("stat {}", show(&path)))?.ino();
        Ok(ContainerDir { path, inode, keep: false })
    }

    /// The state of one container.
    pub fn load(&self, id: &str) -> Result<State> {
        check_id(id)?;
        let path = self.path.join(id).join(STATE);
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Error::DoesNotExist),
            text => text.context(|| format!("read {}", show(&path)))?,
        };
        let mut state: State = serde_json::from_slice(&text)
            .map_err(|error| Error::Config(format!("{}: {error}", show(&path))))?;
        state.dir = self.path.join(id);
        Ok(state)
    }

    /// Keeps other commands from starting this container until the lock is dropped.
    pub(crate) fn lock_start(&self, id: &str) -> Result<File> {
        check_id(id)?;
        Self::lock(&self.path.join(id))
    }

    /// Claims a container for its removal; `None` if another command has removed it while this one waited for that. Without,
    /// the second one could remove another container that has got the ID since.
    pub(crate) fn lock_removal(&self, id: &str) -> Result<Option<File>> {
        check_id(id)?;
        let lock = Self::lock(&self.path.join(id).join(STATE))?;
        let links = lock.metadata().context(|| format!("stat the state of container {id}"))?.nlink();
        Ok((links > 0).then_some(lock))
    }

    fn lock(path: &Path) -> Result<File> {
        let lock = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Error::DoesNotExist),
            file => file.context(|| format!("open {}", show(path)))?,
        };
        lock.lock().context(|| format!("lock {}", show(path)))?;
        Ok(lock)
    }

    /// Every container, by ID. One whose state cannot be read is told by `skipped`, and hides no other one.
    pub fn list(&self, mut skipped: impl FnMut(&str, &Error)) -> Result<Vec<State>> {
        let entries = match fs::read_dir(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.context(|| format!("open {}", show(&self.path)))?,
        };
        let mut states = Vec::new();
        for entry in entries {
            let entry = entry.context(|| format!("read {}", show(&self.path)))?;
            let Ok(id) = entry.file_name().into_string() else { continue };
            match self.load(&id) {
                // Not a container, one that is being made, or one that has just gone.
                Err(Error::DoesNotExist | Error::InvalidId(_)) => {}
                Ok(state) => states.push(state),
                Err(error) => skipped(&id, &error),
            }
        }
        states.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(states)
    }

    /// Removes what was left by a command that died while it made a container.
    pub fn remove_half_made(&self, id: &str) -> Result<()> {
        check_id(id)?;
        let noted = fs::read(self.path.join(id).join(GROUP)).ok();
        if let Some(group) = noted.and_then(|text| serde_json::from_slice::<Group>(&text).ok()) {
            group.kill();
            group.remove();
        }
        self.remove(id)
    }

    /// Removes what is left of a container; what is not there is no error.
    pub fn remove(&self, id: &str) -> Result<()> {
        check_id(id)?;
        let path = self.path.join(id);
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done.context(|| format!("remove {}", show(&path))),
        }
    }
}

fn make_private(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

const STATE: &str = "state.json";

/// The control group of a container that is being made.
const GROUP: &str = "cgroup.json";

/// A file that is there until the container is started.
const HELD: &str = "created";

/// The socket that commands connect to.
const SOCKET: &str = "control.sock";

/// A path of the socket in `dir`, which is short enough for an address however long the directory's own is.
fn socket_path(dir: &File) -> String {
    use std::os::fd::AsRawFd;
    format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd())
}

/// Connects to the Sentry of the container in `dir`.
pub(crate) fn connect(dir: &Path) -> io::Result<OwnedFd> {
    let dir = File::open(dir)?;
    let socket = net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    net::connect(&socket, &SocketAddrUnix::new(socket_path(&dir))?)?;
    Ok(socket)
}

/// The same where there is no procfs by which a directory could be named. For a process of one thread, whose working
/// directory is `/`.
pub(crate) fn connect_at(dir: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let socket = net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    rustix::process::fchdir(dir)?;
    let connected = net::connect(&socket, &SocketAddrUnix::new(SOCKET)?);
    rustix::process::chdir("/")?;
    connected?;
    Ok(socket)
}

/// The directory of a container that this process has made; dropped, it is removed.
#[derive(Debug)]
pub struct ContainerDir {
    path: PathBuf,
    inode: u64,
    keep: bool,
}

impl ContainerDir {
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn write(&self, state: &State) -> Result<()> {
        let text = serde_json::to_vec(state).map_err(|error| Error::Config(error.to_string()))?;
        let path = self.path.join(STATE);
        write_whole(&path, &text, 0o600).context(|| format!("write {}", show(&path)))
    }

    /// Notes the control group before anything else is known, so that it can be removed whatever happens to us.
    pub fn write_group(&self, group: &Group) -> Result<()> {
        let text = serde_json::to_vec(group).map_err(|error| Error::Config(error.to_string()))?;
        let path = self.path.join(GROUP);
        write_whole(&path, &text, 0o600).context(|| format!("write {}", show(&path)))
    }

    /// Notes that the container has yet to be started.
    pub fn mark_held(&self) -> Result<()> {
        let mark = self.path.join(HELD);
        File::create(&mark).map(drop).context(|| format!("create {}", show(&mark)))
    }

    /// A descriptor for the directory, by which the socket in it can be found.
    pub fn open(&self) -> Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::open(&self.path, flags, Mode::empty()).map_err(io::Error::from);
        opened.context(|| format!("open {}", show(&self.path)))
    }

    /// Makes the socket that the Sentry is to listen on.
    pub fn listen(&self) -> Result<OwnedFd> {
        let listen = || -> io::Result<OwnedFd> {
            let dir = File::open(&self.path)?;
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
            let path = socket_path(&dir);
            net::bind(&socket, &SocketAddrUnix::new(&path)?)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
            net::listen(&socket, 128)?;
            Ok(socket)
        };
        listen().context(|| format!("listen in {}", show(&self.path)))
    }

    /// Leaves the directory in place.
    pub fn keep(&mut self) {
        self.keep = true;
    }
}

impl Drop for ContainerDir {
    fn drop(&mut self) {
        // Somebody may have deleted the container and made another with its ID.
        let ours = fs::metadata(&self.path).is_ok_and(|metadata| metadata.ino() == self.inode);
        if ours && !self.keep {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// Writes a file so that readers see all of it or none (`rename(2)`).
pub fn write_whole(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default();
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    let temporary = path.with_file_name(hidden);
    let open = || fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary);
    let mut file: File = match open() {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs::remove_file(&temporary)?;
            open()?
        }
        file => file?,
    };
    let written = file.write_all(bytes).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// Letters, digits and `_+.-`, but neither `.` nor `..`.
pub fn check_id(id: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_+.-".contains(c);
    if id.is_empty() || id.len() > 255 || id == "." || id == ".." || !id.chars().all(plain) {
        return Err(Error::InvalidId(id.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids() {
        for id in ["a", "A.b_c+d-9", "...", "-"] {
            assert!(check_id(id).is_ok(), "{id}");
        }
        for id in ["", ".", "..", "a/b", "a b", "é", "a\0"] {
            assert!(check_id(id).is_err(), "{id}");
        }
    }

    #[test]
    fn a_directory_is_owned_once_and_goes_with_its_owner() {
        let base = std::env::temp_dir().join(format!("casemate-state-{}", std::process::id()));
        let root = StateRoot::new(Some(&base)).unwrap();
        let dir = root.create("one").unwrap();
        assert!(matches!(root.create("one"), Err(Error::AlreadyExists)));
        assert!(matches!(root.load("one"), Err(Error::DoesNotExist)));
        let state = State {
            oci_version: "1.0.2".into(),
            id: "one".into(),
            bundle: "/b".into(),
            rootfs: "/b/rootfs".into(),
            created: String::new(),
            owner: 0,
            init: HostProcess::of(std::process::id()).unwrap(),
            sandbox: HostProcess::of(std::process::id()).unwrap(),
            gofer: HostProcess::of(std::process::id()).unwrap(),
            pod: None,
            annotations: BTreeMap::new(),
            cgroup: Group::default(),
            hooks: None,
            host_sockets: None,
            dir: base.join("one"),
        };
        dir.write(&state).unwrap();
        assert_eq!(root.load("one").unwrap(), state);
        assert_eq!(state.status(), Status::Running);
        dir.mark_held().unwrap();
        assert_eq!(state.status(), Status::Created);
        state.mark_started().unwrap();
        assert_eq!(state.status(), Status::Running);
        let reused = HostProcess { start_time: state.init.start_time + 1, ..state.init };
        assert!(!reused.is_alive());
        let quiet = |_: &str, _: &Error| panic!("nothing is wrong with it");
        assert_eq!(root.list(quiet).unwrap().len(), 1);
        // Another one's state is broken: it hides nothing, and is not there to be used.
        let broken = root.create("broken").unwrap();
        fs::write(broken.path().join(STATE), "{").unwrap();
        let mut skipped = Vec::new();
        let states = root.list(|id, error| skipped.push(format!("{id}: {error}"))).unwrap();
        assert_eq!((states.len(), skipped.len()), (1, 1));
        assert!(skipped[0].starts_with("broken: "));
        drop(broken);
        // The second one to remove it finds it gone, whoever has its ID by then.
        let claim = root.lock_removal("one").unwrap();
        assert!(claim.is_some());
        let waits = File::open(dir.path().join(STATE)).unwrap();
        assert!(waits.try_lock().is_err());
        drop(claim);
        waits.lock().unwrap();
        drop(waits);
        drop(dir);
        assert!(root.list(quiet).unwrap().is_empty());
        fs::remove_dir(&base).unwrap();
    }
}
