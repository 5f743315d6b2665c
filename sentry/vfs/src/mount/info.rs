//! The lines of `/proc/PID/mounts`, `mountinfo` and `mountstats`.

use std::sync::Arc;

use super::tree::Node;
use super::{Location, MountFlags};
use crate::Dentry;

/// One line of `/proc/PID/mountinfo`, in parts.
#[derive(Debug, Clone)]
pub struct MountInfo {
    pub id: u64,
    /// The namespace root's own id stands for a parent that is not there.
    pub parent_id: u64,
    pub dev: u64,
    /// The path of the mount's root within its file system.
    pub root: Vec<u8>,
    /// The mount point, relative to the root that was asked about.
    pub point: Vec<u8>,
    pub flags: MountFlags,
    pub fs_type: &'static str,
    pub source: String,
    /// The file system's own options, without `ro` or `rw`.
    pub fs_options: String,
    pub fs_read_only: bool,
    /// Peer group; 0 for a mount that is not shared.
    pub shared: u64,
    /// The group that it receives mounts from; 0 for none.
    pub master: u64,
    pub unbindable: bool,
}

/// Blanks and backslashes as octal, which the readers of these files expect.
fn mangle(out: &mut Vec<u8>, text: &[u8]) {
    for &byte in text {
        if matches!(byte, b' ' | b'\t' | b'\n' | b'\\') {
            out.extend_from_slice(format!("\\{byte:03o}").as_bytes());
        } else {
            out.push(byte);
        }
    }
}

impl MountInfo {
    /// What a process whose root is `root` sees of a mount; `None` where that is outside.
    pub(super) fn of(node: &Node, root: &Location) -> Option<Self> {
        let mount = &node.mount;
        let fs_root = Location { dentry: Arc::clone(&mount.root), mount: Arc::clone(mount) };
        let shown = fs_root.path_from(root);
        if !shown.reachable {
            return None;
        }
        let fs = mount.filesystem();
        Some(Self {
            id: mount.id,
            parent_id: mount.point().map_or(mount.id, |p| p.mount.id),
            dev: fs.dev(),
            root: dentry_path(&mount.root, mount.sb.root()),
            point: shown.bytes,
            flags: mount.flags(),
            fs_type: fs.name(),
            source: mount.source.clone(),
            fs_options: fs.options(),
            fs_read_only: mount.sb.is_read_only(),
            shared: node.shared,
            master: node.master,
            unbindable: node.unbindable,
        })
    }

    fn options(&self) -> String {
        let mut text = String::from(if self.flags.contains(MountFlags::RDONLY) { "ro" } else { "rw" });
        for (flag, name) in [
            (MountFlags::NOSUID, ",nosuid"),
            (MountFlags::NODEV, ",nodev"),
            (MountFlags::NOEXEC, ",noexec"),
            (MountFlags::NOATIME, ",noatime"),
            (MountFlags::NODIRATIME, ",nodiratime"),
            (MountFlags::NOSYMFOLLOW, ",nosymfollow"),
        ] {
            if self.flags.contains(flag) {
                text.push_str(name);
            }
        }
        if !self.flags.intersects(MountFlags::NOATIME | MountFlags::STRICTATIME) {
            text.push_str(",relatime");
        }
        text
    }

    /// The line of `/proc/PID/mounts` (`fstab(5)`), with its newline.
    pub fn mounts_line(&self) -> Vec<u8> {
        let mut out = Vec::new();
        mangle(&mut out, self.source.as_bytes());
        out.push(b' ');
        mangle(&mut out, &self.point);
        let mut options = self.options();
        if self.fs_read_only && !self.flags.contains(MountFlags::RDONLY) {
            options.replace_range(..2, "ro");
        }
        if !self.fs_options.is_empty() {
            options = format!("{options},{}", self.fs_options);
        }
        out.extend_from_slice(format!(" {} {options} 0 0\n", self.fs_type).as_bytes());
        out
    }

    /// The line of `/proc/PID/mountinfo` (`proc_pid_mountinfo(5)`), with its newline.
    pub fn mountinfo_line(&self) -> Vec<u8> {
        let (major, minor) = (libc::major(self.dev), libc::minor(self.dev));
        let mut out = format!("{} {} {major}:{minor} ", self.id, self.parent_id).into_bytes();
        mangle(&mut out, &self.root);
        out.push(b' ');
        mangle(&mut out, &self.point);
        out.extend_from_slice(format!(" {}", self.options()).as_bytes());
        if self.shared != 0 {
            out.extend_from_slice(format!(" shared:{}", self.shared).as_bytes());
        }
        if self.master != 0 {
            out.extend_from_slice(format!(" master:{}", self.master).as_bytes());
        }
        if self.unbindable {
            out.extend_from_slice(b" unbindable");
        }
        out.extend_from_slice(format!(" - {} ", self.fs_type).as_bytes());
        mangle(&mut out, self.source.as_bytes());
        out.extend_from_slice(if self.fs_read_only { b" ro" } else { b" rw" });
        if !self.fs_options.is_empty() {
            out.push(b',');
            out.extend_from_slice(self.fs_options.as_bytes());
        }
        out.push(b'\n');
        out
    }

    /// The line of `/proc/PID/mountstats`, with its newline.
    pub fn mountstats_line(&self) -> Vec<u8> {
        let mut out = b"device ".to_vec();
        mangle(&mut out, self.source.as_bytes());
        out.extend_from_slice(b" mounted on ");
        mangle(&mut out, &self.point);
        out.extend_from_slice(format!(" with fstype {}\n", self.fs_type).as_bytes());
        out
    }
}

/// The path of `dentry` within its file system; a nameless file is shown by what its file system calls it.
fn dentry_path(dentry: &Arc<Dentry>, root: &Arc<Dentry>) -> Vec<u8> {
    let mut names = Vec::new();
    let mut at = Arc::clone(dentry);
    while !Arc::ptr_eq(&at, root) {
        let (parent, name) = at.parent_and_name();
        match parent {
            Some(parent) => {
                names.push(name);
                at = parent;
            }
            None if names.is_empty() => return name.to_vec(),
            None => {
                names.push(name);
                break;
            }
        }
    }
    if names.is_empty() {
        return b"/".to_vec();
    }
    let mut out = Vec::new();
    for name in names.iter().rev() {
        out.push(b'/');
        out.extend_from_slice(name);
    }
    out
}
