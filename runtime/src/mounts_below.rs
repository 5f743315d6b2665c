//! What is mounted on the host below the source of a bind mount (`proc_pid_mountinfo(5)`).
//!
//! A bind mount that is read-only by `ro` and not by `rro` is so at its top alone. The gofer's view of its source is read-only
//! as a whole; mounts below that can be written to become attach points and mounts of their own, with their own flags.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use control_protocol::MountFlags;

/// A mount of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Below {
    /// Relative to the source.
    pub path: PathBuf,
    pub flags: MountFlags,
}

/// Mounts below `source` that can be written to although it cannot, outer before inner.
pub(crate) fn writable(source: &Path) -> Vec<Below> {
    let table = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    of_table(&table, source)
}

fn of_table(table: &[u8], source: &Path) -> Vec<Below> {
    // What is mounted later at the same place hides what was there.
    let mut all: Vec<Below> = Vec::new();
    for mount in table.split(|byte| *byte == b'\n').filter_map(|line| parse(line, source)) {
        all.retain(|earlier| !earlier.path.starts_with(&mount.path));
        all.push(mount);
    }
    all.sort_by(|a, b| a.path.cmp(&b.path));
    // What lies below a mount that is attached comes along with it, as it is.
    let mut found: Vec<Below> = Vec::new();
    for mount in all.into_iter().filter(|mount| !mount.flags.readonly) {
        if !found.iter().any(|outer| mount.path.starts_with(&outer.path)) {
            found.push(mount);
        }
    }
    found
}

/// A line of the table, if it is of a mount below `source` that a gofer serves.
fn parse(line: &[u8], source: &Path) -> Option<Below> {
    let mut fields = line.split(|byte| *byte == b' ');
    let point = PathBuf::from(OsString::from_vec(hostsys::mount::unescape(fields.nth(4)?)));
    let options = std::str::from_utf8(fields.next()?).ok()?;
    let kind = std::str::from_utf8(fields.skip_while(|field| *field != b"-").nth(1)?).ok()?;
    let path = point.strip_prefix(source).ok().filter(|path| !path.as_os_str().is_empty())?;
    if gofer::is_kernel_file_system(kind) {
        return None;
    }
    let has = |name| options.split(',').any(|option| option == name);
    let flags = MountFlags {
        readonly: has("ro"),
        nosuid: has("nosuid"),
        nodev: has("nodev"),
        noexec: has("noexec"),
        noatime: has("noatime"),
    };
    Some(Below { path: path.to_path_buf(), flags })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_written_to_is_found() {
        let table = br"1 0 8:1 / / rw - ext4 /dev/vda rw
2 1 0:20 / /s/a\040b rw,nosuid shared:7 - tmpfs tmpfs rw
3 2 0:21 / /s/a\040b/inner rw - tmpfs tmpfs rw
4 1 0:22 / /s/ro ro,noexec - tmpfs tmpfs rw
5 4 0:23 / /s/ro/deep rw,noexec - tmpfs tmpfs rw
6 1 0:24 / /s/proc rw - proc proc rw
7 1 0:25 / /s/hidden rw - tmpfs tmpfs rw
8 1 0:26 / /s/hidden ro - tmpfs tmpfs rw
9 1 0:27 / /sibling rw - tmpfs tmpfs rw
";
        let found = of_table(table, Path::new("/s"));
        let paths: Vec<_> = found.iter().map(|below| below.path.to_str().unwrap()).collect();
        assert_eq!(paths, ["a b", "ro/deep"]);
        assert!(found[0].flags.nosuid && !found[0].flags.noexec);
        assert!(found[1].flags.noexec);
        assert_eq!(of_table(table, Path::new("/sibling")), []);
    }
}
