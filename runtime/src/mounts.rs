//! Mounts of a configuration in the sandbox's terms.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use control_protocol::{MountFlags, MountKind, Text};
use oci_spec::runtime::Mount;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, show};
use crate::mounts_below;

/// A checked mount, its source not looked at yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Parsed {
    pub destination: PathBuf,
    pub kind: Kind,
    pub flags: MountFlags,
}

/// How much of what is mounted below its source a bind mount has, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// `bind`: the top alone.
    Top,
    /// `rbind`: everything, with flags of its own.
    All,
    /// `rbind` and `rro`: everything, read-only.
    AllReadOnly,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A file system that the Sentry has itself.
    Internal(MountKind),
    Bind {
        source: PathBuf,
        reach: Reach,
    },
}

/// A host file or tree that the gofer serves. Its place in the list is its attach point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Absolute, without symbolic links.
    pub source: PathBuf,
    pub read_only: bool,
    /// With what is mounted below the source.
    #[serde(default = "yes")]
    pub recursive: bool,
}

const fn yes() -> bool {
    true
}

impl Attachment {
    /// A source with all that is mounted below, read-only.
    pub fn read_only(source: impl Into<PathBuf>) -> Self {
        Self { source: source.into(), read_only: true, recursive: true }
    }
}

/// Options that say nothing here: defaults, and times of access that the host's mount decides.
const NO_EFFECT: [&str; 23] = [
    "defaults",
    "rw",
    "suid",
    "dev",
    "exec",
    "atime",
    "async",
    "relatime",
    "norelatime",
    "strictatime",
    "nostrictatime",
    "diratime",
    "nodiratime",
    "loud",
    "nomand",
    "noiversion",
    "rrw",
    "rsuid",
    "rdev",
    "rexec",
    "ratime",
    "rdiratime",
    "rrelatime",
];

const PRIVATE: [&str; 8] =
    ["private", "rprivate", "slave", "rslave", "unbindable", "runbindable", "sync", "dirsync"];

/// The options that are known, whether or not they change anything here.
pub fn options() -> Vec<&'static str> {
    let mut all = vec!["ro", "rro", "nosuid", "nodev", "noexec", "noatime", "bind", "rbind", "tmpcopyup"];
    all.extend(["rnosuid", "rnodev", "rnoexec", "rnoatime"]);
    all.extend(NO_EFFECT);
    all.extend(PRIVATE);
    all.sort_unstable();
    all
}

/// Checks `mounts[index]`.
pub(crate) fn parse(index: usize, mount: &Mount) -> Result<Parsed> {
    let name = |part: &str| format!("mounts[{index}].{part}");
    let destination = mount.destination();
    if destination.as_os_str().as_bytes().contains(&0) {
        return Err(Error::field(name("destination"), "must not contain a NUL byte"));
    }
    if !destination.is_absolute() {
        let problem = format!("must be an absolute path, got {:?}", show(destination));
        return Err(Error::field(name("destination"), problem));
    }
    let destination = clean(destination);
    if destination == Path::new("/") {
        return Err(Error::field(name("destination"), "must not be the root"));
    }
    if mount.uid_mappings().is_some() || mount.gid_mappings().is_some() {
        return Err(Error::field(
            name("uidMappings"),
            "mounts with mapped identities cannot be made; must be absent",
        ));
    }

    let mut flags = MountFlags::default();
    let mut bind = mount.typ().as_deref() == Some("bind");
    let mut reach = None;
    let mut all_read_only = false;
    let mut data = Vec::new();
    let mut copy_up = false;
    for option in mount.options().iter().flatten() {
        match option.as_str() {
            "ro" => flags.readonly = true,
            "rro" => (flags.readonly, all_read_only) = (true, true),
            "nosuid" | "rnosuid" => flags.nosuid = true,
            "nodev" | "rnodev" => flags.nodev = true,
            "noexec" | "rnoexec" => flags.noexec = true,
            "noatime" | "rnoatime" => flags.noatime = true,
            "bind" | "rbind" => {
                bind = true;
                // Either says all that is needed; `rbind` says more.
                reach = reach.max(Some(option == "rbind"));
            }
            known if NO_EFFECT.contains(&known) || PRIVATE.contains(&known) => {}
            "shared" | "rshared" => {
                let problem =
                    format!("{option:?} would carry mounts to the host; use \"private\" or \"slave\"");
                return Err(Error::field(name("options"), problem));
            }
            "tmpcopyup" => copy_up = true,
            "idmap" | "ridmap" => {
                return Err(Error::field(name("options"), format!("{option:?} is not supported")));
            }
            other if other.contains('\0') => {
                return Err(Error::field(name("options"), "must not contain a NUL byte"));
            }
            other => data.push(other.to_owned()),
        }
    }

    if bind {
        if let Some(unknown) = data.first() {
            return Err(Error::field(name("options"), format!("{unknown:?} is no option of a bind mount")));
        }
        let source = match mount.source() {
            Some(source) if !source.as_os_str().is_empty() => source.clone(),
            _ => return Err(Error::field(name("source"), "must be the path of a file or directory")),
        };
        if source.as_os_str().as_bytes().contains(&0) {
            return Err(Error::field(name("source"), "must not contain a NUL byte"));
        }
        let reach = match reach {
            _ if all_read_only => Reach::AllReadOnly,
            Some(false) => Reach::Top,
            _ => Reach::All,
        };
        return Ok(Parsed { destination, kind: Kind::Bind { source, reach }, flags });
    }

    let data = data.join(",");
    let kind = match mount.typ().as_deref().unwrap_or("none") {
        "proc" => MountKind::Proc,
        "sysfs" => MountKind::Sysfs,
        "tmpfs" if destination == Path::new("/dev") => MountKind::Dev { data },
        "devtmpfs" => MountKind::Dev { data },
        "tmpfs" => MountKind::Tmpfs { data, copy_up },
        "devpts" => MountKind::Devpts { data },
        "mqueue" => MountKind::Mqueue,
        "cgroup" | "cgroup2" => MountKind::Cgroup,
        other => {
            let known = "bind, cgroup, cgroup2, devpts, devtmpfs, mqueue, proc, sysfs, tmpfs";
            return Err(Error::field(name("type"), format!("must be one of {known}, got {other:?}")));
        }
    };
    Ok(Parsed { destination, kind: Kind::Internal(kind), flags })
}

/// Finds the host file of a bind mount and makes it an attach point; so with what lies below it and has to be one of its own.
pub(crate) fn resolve(
    index: usize,
    parsed: Parsed,
    bundle: &Path,
    attachments: &mut Vec<Attachment>,
    mounts: &mut Vec<control_protocol::Mount>,
) -> Result<()> {
    let mut inner = Vec::new();
    let kind = match parsed.kind {
        Kind::Internal(kind) => kind,
        Kind::Bind { source, reach } => {
            let wrong = |problem: String| Error::field(format!("mounts[{index}].source"), problem);
            let path = bundle.join(&source);
            let found = fs::canonicalize(&path)
                .and_then(|source| fs::metadata(&source).map(|metadata| (source, metadata)));
            let (source, metadata) =
                found.map_err(|error| wrong(format!("cannot be mounted: {}: {error}", show(&path))))?;
            if !metadata.is_dir() && !metadata.is_file() {
                let problem = format!("must be a regular file or a directory, {} is neither", show(&source));
                return Err(wrong(problem));
            }
            if parsed.flags.readonly && reach == Reach::All && metadata.is_dir() {
                inner = mounts_below::writable(&source)
                    .into_iter()
                    .map(|below| (source.join(&below.path), below))
                    .collect();
            }
            attach(attachments, source, parsed.flags.readonly, reach != Reach::Top, metadata.is_dir())
        }
    };
    let destination = Text::from(parsed.destination.as_os_str());
    mounts.push(control_protocol::Mount { destination, kind, flags: parsed.flags });
    for (source, below) in inner {
        // One that has gone since is none.
        let Ok(metadata) = fs::metadata(&source) else { continue };
        if metadata.is_dir() || metadata.is_file() {
            let kind = attach(attachments, source, false, true, metadata.is_dir());
            let destination = Text::from(parsed.destination.join(&below.path).as_os_str());
            mounts.push(control_protocol::Mount { destination, kind, flags: below.flags });
        }
    }
    Ok(())
}

fn attach(
    attachments: &mut Vec<Attachment>,
    source: PathBuf,
    read_only: bool,
    recursive: bool,
    is_directory: bool,
) -> MountKind {
    let attach = u32::try_from(attachments.len()).unwrap_or(u32::MAX);
    attachments.push(Attachment { source, read_only, recursive });
    MountKind::Bind { attach, is_directory }
}

/// The path without `.`, `..` and empty components; `..` never leaves the root.
pub(crate) fn clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            _ => {}
        }
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::MountBuilder;

    fn mount(typ: &str, options: &[&str]) -> Mount {
        MountBuilder::default()
            .destination("/a/../dev/./x")
            .typ(typ)
            .source("/etc")
            .options(options.iter().map(|o| (*o).to_owned()).collect::<Vec<_>>())
            .build()
            .unwrap()
    }

    #[test]
    fn options_become_flags_or_data() {
        let parsed =
            parse(0, &mount("tmpfs", &["nosuid", "size=64k", "ro", "mode=755", "rprivate"])).unwrap();
        assert_eq!(parsed.destination, Path::new("/dev/x"));
        assert_eq!(parsed.flags, MountFlags { readonly: true, nosuid: true, ..MountFlags::default() });
        assert_eq!(
            parsed.kind,
            Kind::Internal(MountKind::Tmpfs { data: "size=64k,mode=755".into(), copy_up: false })
        );
    }

    #[test]
    fn a_bind_is_known_by_type_or_option() {
        for (typ, options, reach) in [
            ("bind", &[][..], Reach::All),
            ("none", &["rbind"], Reach::All),
            ("ext4", &["bind", "ro"], Reach::Top),
            ("bind", &["bind", "rbind"], Reach::All),
            ("bind", &["rbind", "rro"], Reach::AllReadOnly),
        ] {
            let parsed = parse(0, &mount(typ, options)).unwrap();
            assert_eq!(parsed.kind, Kind::Bind { source: "/etc".into(), reach }, "{typ} {options:?}");
        }
        assert!(parse(0, &mount("bind", &["size=1"])).is_err());
        assert!(parse(0, &mount("bind", &["rshared"])).is_err());
    }
}
