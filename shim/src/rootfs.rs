//! Mounts a container's root filesystem as containerd describes it, and takes it away again.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};

use crate::messages::Mount;

/// Options that are flags, with the bit to set or, after `!`, to clear (`mount(8)`).
const FLAGS: &[(&str, MountFlags)] = &[
    ("ro", MountFlags::RDONLY),
    ("nosuid", MountFlags::NOSUID),
    ("nodev", MountFlags::NODEV),
    ("noexec", MountFlags::NOEXEC),
    ("noatime", MountFlags::NOATIME),
    ("nodiratime", MountFlags::NODIRATIME),
    ("relatime", MountFlags::RELATIME),
    ("sync", MountFlags::SYNCHRONOUS),
    ("bind", MountFlags::BIND),
];

/// Options that are the default.
const DEFAULTS: [&str; 7] = ["rw", "suid", "dev", "exec", "atime", "diratime", "defaults"];

fn options(all: &[String]) -> (MountFlags, String) {
    let mut flags = MountFlags::empty();
    let mut data = Vec::new();
    for option in all {
        if option == "rbind" {
            flags |= MountFlags::BIND | MountFlags::REC;
        } else if let Some((_, flag)) = FLAGS.iter().find(|(name, _)| name == option) {
            flags |= *flag;
        } else if !DEFAULTS.contains(&option.as_str()) {
            data.push(option.as_str());
        }
    }
    (flags, data.join(","))
}

/// Mounts `mounts` at `place`, one over the other. What was mounted before a failure is taken away.
pub fn mount_all(mounts: &[Mount], place: &Path) -> io::Result<()> {
    for one in mounts {
        if let Err(error) = mount_one(one, place) {
            unmount_all(place);
            let message = format!("mount {} ({}) at {}: {error}", one.source, one.kind, place.display());
            return Err(io::Error::new(error.kind(), message));
        }
    }
    Ok(())
}

fn mount_one(one: &Mount, place: &Path) -> io::Result<()> {
    let place = match one.target.trim_start_matches('/') {
        "" => place.to_owned(),
        below => place.join(below),
    };
    let (flags, data) = options(&one.options);
    let data = CString::new(data)?;
    let (source, kind) = (one.source.as_str(), one.kind.as_str());
    if !flags.contains(MountFlags::BIND) {
        return Ok(mount(source, &place, kind, flags, data.as_c_str())?);
    }
    mount(source, &place, "", flags & (MountFlags::BIND | MountFlags::REC), None)?;
    // A bind takes no other flags at first.
    let others = flags - (MountFlags::BIND | MountFlags::REC);
    if !others.is_empty() {
        mount_remount(&place, MountFlags::BIND | others, "")?;
    }
    Ok(())
}

/// Takes away everything that is mounted at `place` or below it.
pub fn unmount_all(place: &Path) {
    let Ok(place) = fs::canonicalize(place) else { return };
    for point in points(&place, &fs::read("/proc/self/mountinfo").unwrap_or_default()) {
        // Busy ones go when their last user does.
        let _ = unmount(&point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
    }
}

/// Mount points at `place` and below, the last mounted first.
fn points(place: &Path, table: &[u8]) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = table
        .split(|byte| *byte == b'\n')
        .filter_map(|line| line.split(|byte| *byte == b' ').nth(4))
        .map(|point| PathBuf::from(std::ffi::OsStr::from_bytes(&hostsys::mount::unescape(point))))
        .filter(|point| point.starts_with(place))
        .collect();
    found.reverse();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_flags_or_data() {
        let all = ["rw", "nosuid", "ro", "lowerdir=/a:/b", "index=off"].map(str::to_owned);
        let (flags, data) = options(&all);
        assert_eq!(flags, MountFlags::NOSUID | MountFlags::RDONLY);
        assert_eq!(data, "lowerdir=/a:/b,index=off");
    }

    #[test]
    fn mounts_below_a_place_are_found_last_first() {
        let table = b"20 1 0:1 / / rw - ext4 a b\n21 20 0:2 / /x\\040y rw - t a b\n22 21 0:3 / /x\\040y/z rw - t a b\n23 20 0:4 / /x rw - t a b\n";
        assert_eq!(points(Path::new("/x y"), table), [PathBuf::from("/x y/z"), PathBuf::from("/x y")]);
    }
}
