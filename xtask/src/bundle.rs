//! Writes OCI bundles: a directory with a `config.json` that runc, runsc and casemate all take.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// The capabilities that Docker gives a container.
const DEFAULT_CAPABILITIES: &[&str] = &[
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// What root of the initial user namespace has besides, so that a sandboxed root can be compared with the host's.
const MORE_CAPABILITIES: &[&str] = &[
    "CAP_AUDIT_CONTROL",
    "CAP_BLOCK_SUSPEND",
    "CAP_DAC_READ_SEARCH",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_LEASE",
    "CAP_LINUX_IMMUTABLE",
    "CAP_MAC_ADMIN",
    "CAP_MAC_OVERRIDE",
    "CAP_NET_ADMIN",
    "CAP_NET_BROADCAST",
    "CAP_SYSLOG",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_MODULE",
    "CAP_SYS_NICE",
    "CAP_SYS_PACCT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_WAKE_ALARM",
];

/// What a bundle says; [`Bundle::write`] makes it a directory.
#[derive(Debug, Clone)]
pub struct Bundle {
    rootfs: PathBuf,
    args: Vec<String>,
    env: Vec<String>,
    cwd: String,
    terminal: bool,
    readonly: bool,
    all_capabilities: bool,
    user: (u32, u32),
    mounts: Vec<Value>,
    network: Option<PathBuf>,
    max_files: u32,
}

impl Bundle {
    /// A program in a root filesystem, as root, in `/`, with a writable root.
    pub fn new<S: Into<String>>(rootfs: impl Into<PathBuf>, args: impl IntoIterator<Item = S>) -> Self {
        Self {
            rootfs: rootfs.into(),
            args: args.into_iter().map(Into::into).collect(),
            env: [
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "HOME=/root",
                "LC_ALL=C.UTF-8",
            ]
            .map(str::to_owned)
            .to_vec(),
            cwd: "/".into(),
            terminal: false,
            readonly: false,
            all_capabilities: false,
            user: (0, 0),
            mounts: Vec::new(),
            network: None,
            max_files: 4096,
        }
    }

    /// `bash -c SCRIPT`.
    pub fn bash(rootfs: impl Into<PathBuf>, script: &str) -> Self {
        Self::new(rootfs, ["bash", "-c", script])
    }

    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push(format!("{name}={value}"));
        self
    }

    #[must_use]
    pub fn cwd(mut self, dir: &str) -> Self {
        dir.clone_into(&mut self.cwd);
        self
    }

    #[must_use]
    pub fn terminal(mut self) -> Self {
        self.terminal = true;
        self
    }

    #[must_use]
    pub fn readonly(mut self) -> Self {
        self.readonly = true;
        self
    }

    #[must_use]
    pub fn all_capabilities(mut self) -> Self {
        self.all_capabilities = true;
        self
    }

    #[must_use]
    pub fn user(mut self, uid: u32, gid: u32) -> Self {
        self.user = (uid, gid);
        self
    }

    /// A directory or file of the host at `inside`; `how` is `ro` or `rw`.
    #[must_use]
    pub fn bind(mut self, host: &Path, inside: &str, how: &str) -> Self {
        let options = ["rbind", "rprivate", how];
        self.mounts
            .push(json!({ "destination": inside, "type": "bind", "source": host, "options": options }));
        self
    }

    /// An empty file system in memory at `inside`.
    #[must_use]
    pub fn tmpfs(mut self, inside: &str) -> Self {
        self.mounts.push(json!({
            "destination": inside, "type": "tmpfs", "source": "tmpfs", "options": ["nodev", "mode=1777"]
        }));
        self
    }

    /// The network namespace at this path, instead of a new one.
    #[must_use]
    pub fn network(mut self, path: impl Into<PathBuf>) -> Self {
        self.network = Some(path.into());
        self
    }

    /// How many files a process may have open.
    #[must_use]
    pub fn max_files(mut self, count: u32) -> Self {
        self.max_files = count;
        self
    }

    /// The configuration as JSON.
    pub fn config(&self) -> Value {
        let more: &[&str] = if self.all_capabilities { MORE_CAPABILITIES } else { &[] };
        let capabilities: Vec<&str> = [DEFAULT_CAPABILITIES, more].concat();
        let mut mounts = vec![
            json!({ "destination": "/proc", "type": "proc", "source": "proc" }),
            json!({ "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] }),
            json!({ "destination": "/dev/pts", "type": "devpts", "source": "devpts",
                "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"] }),
            json!({ "destination": "/dev/shm", "type": "tmpfs", "source": "shm",
                "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"] }),
            json!({ "destination": "/sys", "type": "sysfs", "source": "sysfs",
                "options": ["nosuid", "noexec", "nodev", "ro"] }),
        ];
        mounts.extend(self.mounts.iter().cloned());
        let mut network = json!({ "type": "network" });
        if let Some(path) = &self.network {
            network["path"] = json!(path);
        }
        json!({
            "ociVersion": "1.0.2",
            "process": {
                "terminal": self.terminal,
                "user": { "uid": self.user.0, "gid": self.user.1 },
                "args": self.args,
                "env": self.env,
                "cwd": self.cwd,
                "capabilities": {
                    "bounding": capabilities, "effective": capabilities, "permitted": capabilities
                },
                "rlimits": [{
                    "type": "RLIMIT_NOFILE", "hard": self.max_files, "soft": self.max_files.min(1024)
                }],
                "noNewPrivileges": !self.all_capabilities
            },
            "root": { "path": self.rootfs, "readonly": self.readonly },
            "hostname": "casemate",
            "mounts": mounts,
            "linux": {
                "namespaces": [
                    { "type": "pid" }, network, { "type": "ipc" }, { "type": "uts" },
                    { "type": "mount" }
                ]
            }
        })
    }

    /// Writes `dir/config.json`; the directory is made if need be.
    pub fn write(&self, dir: &Path) -> Result<()> {
        write_config(dir, &self.config())
    }
}

/// Writes any JSON as the `config.json` of a bundle.
pub fn write_config(dir: &Path, config: &Value) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("cannot make the bundle {}", dir.display()))?;
    let path = dir.join("config.json");
    let text = serde_json::to_vec_pretty(config)?;
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}
