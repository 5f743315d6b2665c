//! The configuration files of container engines: the lines that make casemate one of an engine's runtimes, put in and
//! taken out again.
//!
//! What stands in a file besides is not touched: text goes in at one place, and exactly that text is taken out. A file
//! that we have made is removed with it.

mod json;
mod toml;

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};

/// An engine that runs containers by a runtime of its user's choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    Docker,
    Containerd,
    Podman,
}

/// The runtime as an engine is to know it.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The name by which users ask for it.
    pub name: String,
    /// The program, by its absolute path.
    pub program: PathBuf,
    /// Whether containerd's shim for it stands in `PATH`.
    pub has_shim: bool,
}

/// What became of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    Written,
    Removed,
    /// It was as it should be.
    Unchanged,
}

/// The text of a file before and after.
type Edit = fn(&str, &Entry) -> Result<Option<String>>;

impl Engine {
    pub const ALL: [Self; 3] = [Self::Docker, Self::Containerd, Self::Podman];

    pub fn name(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Containerd => "containerd",
            Self::Podman => "podman",
        }
    }

    /// The program by which it is found to be installed.
    pub fn program(self) -> &'static str {
        match self {
            Self::Docker => "dockerd",
            Self::Containerd => "containerd",
            Self::Podman => "podman",
        }
    }

    /// Its usual configuration file.
    pub fn file(self) -> &'static Path {
        Path::new(match self {
            Self::Docker => "/etc/docker/daemon.json",
            Self::Containerd => "/etc/containerd/config.toml",
            Self::Podman => "/etc/containers/containers.conf.d/casemate.conf",
        })
    }

    /// What makes the engine read its file again.
    pub fn reload(self) -> &'static str {
        match self {
            Self::Docker => "systemctl reload docker (or send SIGHUP to dockerd)",
            Self::Containerd => "systemctl restart containerd",
            Self::Podman => "nothing to restart: podman reads its configuration each time",
        }
    }

    /// How a container is run with it.
    pub fn usage(self, name: &str) -> String {
        match self {
            Self::Docker => format!("docker run --runtime={name} ..."),
            Self::Containerd => format!(
                "a Kubernetes RuntimeClass with the handler \"{name}\", or nerdctl run --runtime={name} ..."
            ),
            Self::Podman => format!("podman --runtime {name} run ..."),
        }
    }

    fn edits(self) -> (Edit, Edit) {
        match self {
            Self::Docker => (json::insert, json::remove),
            Self::Containerd => (toml::insert_containerd, toml::remove),
            Self::Podman => (toml::insert_podman, toml::remove),
        }
    }

    /// Puts the entry into `file`.
    pub fn install(self, file: &Path, entry: &Entry) -> Result<Done> {
        Self::apply(file, entry, self.edits().0)
    }

    /// Takes the entry out of `file`.
    pub fn uninstall(self, file: &Path, entry: &Entry) -> Result<Done> {
        if !file.exists() {
            return Ok(Done::Unchanged);
        }
        Self::apply(file, entry, self.edits().1)
    }

    fn apply(file: &Path, entry: &Entry, edit: Edit) -> Result<Done> {
        let shown = file.display();
        let before = match fs::read_to_string(file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            text => text.with_context(|| format!("read {shown}"))?,
        };
        let Some(after) = edit(&before, entry).with_context(|| format!("edit {shown}"))? else {
            return Ok(Done::Unchanged);
        };
        if after.is_empty() {
            fs::remove_file(file).map_err(|error| refusal("remove", file, &error.into()))?;
            return Ok(Done::Removed);
        }
        replace(file, &after).map_err(|error| refusal("write", file, &error))?;
        Ok(Done::Written)
    }
}

/// Why a file stays as it is, and what to do about it.
fn refusal(what: &str, file: &Path, error: &anyhow::Error) -> anyhow::Error {
    let file = file.display();
    let Some(error) = error.downcast_ref::<io::Error>() else { return anyhow!("{what} {file}: {error:#}") };
    let hint = match error.kind() {
        io::ErrorKind::PermissionDenied => "; it takes root, or --config with a file of your own",
        _ => "",
    };
    anyhow!("{what} {file}: {}{hint}", runtime::words(error))
}

/// Puts a new file in the place of the old one, with its owner and mode, at once.
fn replace(file: &Path, text: &str) -> Result<()> {
    let Some(dir) = file.parent() else { bail!("it is no path of a file") };
    fs::create_dir_all(dir)?;
    // A link stays one: what it names is replaced.
    let file = fs::canonicalize(file).unwrap_or_else(|_| file.to_owned());
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(".casemate-new");
    let new = file.with_file_name(name);
    let _ = fs::remove_file(&new);
    let mut out = fs::File::options().write(true).create_new(true).mode(0o644).open(&new)?;
    let written = out.write_all(text.as_bytes()).and_then(|()| {
        if let Ok(old) = fs::metadata(&file) {
            out.set_permissions(fs::Permissions::from_mode(old.mode() & 0o7777))?;
            std::os::unix::fs::fchown(&out, Some(old.uid()), Some(old.gid()))?;
        }
        out.sync_all()?;
        fs::rename(&new, &file)
    });
    if written.is_err() {
        let _ = fs::remove_file(&new);
    }
    Ok(written?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Entry {
        Entry { name: "casemate".into(), program: "/usr/local/bin/casemate".into(), has_shim: false }
    }

    #[test]
    fn what_is_put_in_is_taken_out_and_nothing_else() {
        let docker = [
            "",
            "{}",
            "{}\n",
            "{\n  \"debug\": true\n}\n",
            "{ \"runtimes\": {} }",
            "{\"log-driver\": \"json-file\", \"runtimes\": {\"x\": {\"path\": \"/x\"}}, \"a\": [\"runtimes\", {\"runtimes\": 1}]}",
        ];
        let toml = [
            "",
            "version = 2\n",
            "version = 3\n[plugins]\n",
            "# a comment\nversion = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd]\n  snapshotter = \"overlayfs\"",
        ];
        for engine in Engine::ALL {
            let (insert, remove) = engine.edits();
            let texts = if engine == Engine::Docker { &docker[..] } else { &toml[..] };
            for text in texts {
                let with = insert(text, &entry()).unwrap().expect("it was not there");
                assert!(with.contains("/usr/local/bin/casemate"), "{with}");
                assert_eq!(insert(&with, &entry()).unwrap(), None, "twice is as once: {with}");
                let without = remove(&with, &entry()).unwrap().expect("it was there");
                assert_eq!(without, *text, "{engine:?}");
                assert_eq!(remove(text, &entry()).unwrap(), None, "{engine:?} {text:?}");
            }
        }
    }

    #[test]
    fn another_program_takes_the_place_of_the_old_one() {
        let new = Entry { program: "/opt/casemate".into(), ..entry() };
        for engine in Engine::ALL {
            let (insert, _) = engine.edits();
            let with = insert("", &entry()).unwrap().unwrap();
            let changed = insert(&with, &new).unwrap().unwrap();
            assert!(changed.contains("/opt/casemate") && !changed.contains("/usr/local/bin"), "{changed}");
        }
    }

    #[test]
    fn what_is_no_json_or_belongs_to_somebody_else_is_left_alone() {
        assert!(json::insert("{,}", &entry()).is_err());
        assert!(json::insert("[]", &entry()).is_err());
        assert!(json::insert("{\"runtimes\": 7}", &entry()).is_err());
        let foreign = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.casemate]\n";
        assert!(toml::insert_containerd(foreign, &entry()).is_err());
        assert!(toml::insert_containerd("version = 1\n", &entry()).is_err());
    }
}
