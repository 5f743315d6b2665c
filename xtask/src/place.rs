//! Where things are: the workspace, the build's output, the cache, temporary directories.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

/// The directory of the workspace's `Cargo.toml`.
pub fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// Cargo's output directory.
pub fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => workspace().join(dir),
        None => workspace().join("target"),
    }
}

/// Where the root filesystems are kept: `$CASEMATE_CACHE`, else `/var/cache/casemate` if that exists, else a
/// directory of the build.
pub fn cache() -> Result<PathBuf> {
    let shared = Path::new("/var/cache/casemate");
    let dir = match std::env::var_os("CASEMATE_CACHE") {
        Some(dir) => std::path::absolute(dir)?,
        None if shared.is_dir() => shared.to_path_buf(),
        None => target().join("casemate-cache"),
    };
    fs::create_dir_all(&dir).with_context(|| format!("cannot make the cache directory {}", dir.display()))?;
    Ok(dir)
}

/// A directory below the system's temporary directory that goes with its owner.
#[derive(Debug)]
pub struct TempDir {
    path: PathBuf,
}

impl TempDir {
    /// A new directory whose name begins with `casemate-` and `name`. Its path is short enough for a socket.
    pub fn new(name: &str) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        loop {
            let serial = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = std::env::temp_dir().join(format!("casemate-{name}-{}-{serial}", std::process::id()));
            match fs::create_dir(&path) {
                // Left by a process of the same number, which was killed.
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                made => {
                    made.with_context(|| format!("cannot make {}", path.display()))?;
                    return Ok(Self { path });
                }
            }
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}
