//! Runs a program natively in a root filesystem: what the sandbox is compared with.
//!
//! The host kernel serves it in namespaces of its own (mount, pid, net, ipc, uts), as pid 1, under a throw-away
//! overlay in memory, so that it may write anywhere and the root filesystem in the cache stays as it is.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Makes the root in a private mount namespace, then becomes the program there.
/// Arguments: root filesystem, scratch directory, number of binds, (source, destination, ro|rw)..., program...
const SCRIPT: &str = r#"
set -eu
rootfs=$1 scratch=$2 nr_binds=$3 cwd=$4
shift 4
mount -t tmpfs -o mode=755 casemate "$scratch"
mkdir "$scratch/upper" "$scratch/work" "$scratch/root"
root=$scratch/root
mount -t overlay -o "lowerdir=$rootfs,upperdir=$scratch/upper,workdir=$scratch/work" casemate "$root"
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=666,mode=620 devpts "$root/dev/pts"
mount -t tmpfs -o mode=1777 shm "$root/dev/shm"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
ln -s /proc/self/fd/0 "$root/dev/stdin"
ln -s /proc/self/fd/1 "$root/dev/stdout"
ln -s /proc/self/fd/2 "$root/dev/stderr"
for node in null zero full random urandom tty; do
  touch "$root/dev/$node"
  mount --bind "/dev/$node" "$root/dev/$node"
done
while [ "$nr_binds" -gt 0 ]; do
  source=$1 inside=$root$2 how=$3
  shift 3
  case $how in
  tmpfs)
    mkdir -p "$inside"
    mount -t tmpfs -o mode=1777 tmpfs "$inside"
    ;;
  *)
    if [ -d "$source" ]; then mkdir -p "$inside"; else mkdir -p "${inside%/*}"; touch "$inside"; fi
    mount --bind "$source" "$inside"
    [ "$how" = rw ] || mount -o remount,bind,ro "$inside"
    ;;
  esac
  nr_binds=$((nr_binds - 1))
done
hostname casemate
# As a container runtime leaves it.
if command -v ip >/dev/null; then ip link set lo up; fi
# As a runtime enters it. After a mere chroot(2) the program could make no user namespace (user_namespaces(7)).
mkdir "$root/dev/host"
cd "$root"
pivot_root . dev/host
umount -l /dev/host
rmdir /dev/host
exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
  HOME=/root LC_ALL=C.UTF-8 sh -c 'cd "$0" && exec "$@"' "$cwd" "$@"
"#;

/// A program to run natively.
#[derive(Debug, Clone)]
pub struct Native {
    rootfs: PathBuf,
    scratch: PathBuf,
    cwd: String,
    binds: Vec<[String; 3]>,
    network: bool,
}

impl Native {
    /// `scratch` is an existing empty directory that is mounted over in the program's own mount namespace.
    pub fn new(rootfs: impl Into<PathBuf>, scratch: impl Into<PathBuf>) -> Self {
        Self {
            rootfs: rootfs.into(),
            scratch: scratch.into(),
            cwd: "/".into(),
            binds: Vec::new(),
            network: false,
        }
    }

    #[must_use]
    pub fn cwd(mut self, dir: &str) -> Self {
        dir.clone_into(&mut self.cwd);
        self
    }

    /// A directory or file of the host at `inside`; `how` is `ro` or `rw`.
    #[must_use]
    pub fn bind(mut self, host: &Path, inside: &str, how: &str) -> Self {
        self.binds.push([host.display().to_string(), inside.to_owned(), how.to_owned()]);
        self
    }

    /// The host's network, for a program that gets packages.
    #[must_use]
    pub fn with_network(self) -> Self {
        self.in_caller_network().bind(Path::new("/etc/resolv.conf"), "/etc/resolv.conf", "ro")
    }

    /// The network namespace of whoever runs the command.
    #[must_use]
    pub fn in_caller_network(mut self) -> Self {
        self.network = true;
        self
    }

    /// An empty file system in memory at `inside`.
    #[must_use]
    pub fn tmpfs(mut self, inside: &str) -> Self {
        self.binds.push(["tmpfs".into(), inside.to_owned(), "tmpfs".into()]);
        self
    }

    /// The host command that runs `args` there; needs root.
    pub fn command<S: AsRef<str>>(&self, args: impl IntoIterator<Item = S>) -> Vec<String> {
        // Whoever runs this may ignore some: a program would inherit that (`signal(7)`), and no container does.
        let mut words: Vec<String> = [
            "env",
            "--default-signal",
            "unshare",
            "--mount",
            "--propagation=private",
            "--pid",
            "--net",
            "--ipc",
            "--uts",
            "--fork",
            "--kill-child=KILL",
            "sh",
            "-c",
            SCRIPT,
            "native",
        ]
        .map(str::to_owned)
        .to_vec();
        words.retain(|word| !self.network || word != "--net");
        words.push(self.rootfs.display().to_string());
        words.push(self.scratch.display().to_string());
        words.push(self.binds.len().to_string());
        words.push(self.cwd.clone());
        words.extend(self.binds.iter().flatten().cloned());
        words.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        words
    }

    /// The same as a [`Command`].
    pub fn spawn<S: AsRef<str>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let words = self.command(args);
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        command
    }
}
