//! A bundle's `config.json`: read with bounds, parsed, checked.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use serde_json::Value;

use crate::capability;
use crate::error::{Context, Error, Result, show, words};
use crate::validate;

/// The largest `config.json` that is read, in bytes.
const MAX_CONFIG: u64 = 8 << 20;

/// A checked configuration.
#[derive(Debug, Clone)]
pub struct Config {
    pub spec: Spec,
    /// Absolute.
    pub bundle: PathBuf,
    /// Absolute, without symbolic links.
    pub rootfs: PathBuf,
    /// What the configuration asks for and does not get, one sentence each.
    pub warnings: Vec<String>,
}

impl Config {
    /// Reads and checks the bundle at `bundle`.
    pub fn load(bundle: &Path) -> Result<Self> {
        let bundle = fs::canonicalize(bundle).context(|| format!("bundle {}", show(bundle)))?;
        let text = read(&bundle.join("config.json"))?;
        let (spec, mut warnings) = parse(&text)?;
        warnings.extend(validate::spec(&spec)?);
        let path = spec.root().as_ref().map(|root| root.path().clone()).unwrap_or_default();
        let path = bundle.join(path);
        let not_usable = |error: io::Error| Error::Rootfs(format!("stat {}: {}", show(&path), words(&error)));
        let rootfs = fs::canonicalize(&path).map_err(not_usable)?;
        if !fs::metadata(&rootfs).map_err(not_usable)?.is_dir() {
            return Err(Error::Rootfs(format!("{} is not a directory", show(&path))));
        }
        Ok(Self { spec, bundle, rootfs, warnings })
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    // A FIFO in its place must not make us wait.
    let file = fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let file: File = match file {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Error::NoConfig),
        file => file.context(|| format!("open {}", show(path)))?,
    };
    let metadata = file.metadata().context(|| format!("stat {}", show(path)))?;
    if !metadata.is_file() {
        return Err(Error::Config("is not a regular file".into()));
    }
    let mut text = Vec::new();
    file.take(MAX_CONFIG + 1).read_to_end(&mut text).context(|| format!("read {}", show(path)))?;
    if text.len() as u64 > MAX_CONFIG {
        return Err(Error::Config(format!("is larger than {MAX_CONFIG} bytes")));
    }
    Ok(text)
}

/// Parses the text. An error names the field.
pub(crate) fn parse(text: &[u8]) -> Result<(Spec, Vec<String>)> {
    let mut value: Value = serde_json::from_slice(text).map_err(|e| Error::Config(e.to_string()))?;
    if !value.is_object() {
        return Err(Error::Config("must be a JSON object".into()));
    }
    let warnings = capability::remove_unknown(&mut value);
    let spec = serde_path_to_error::deserialize(value)
        .map_err(|error| Error::field(error.path().to_string(), error.inner().to_string()))?;
    Ok((spec, warnings))
}
