//! What can go wrong between the caller and a running container.
//!
//! Sentences that callers of `runc` look for are kept word for word.

use std::io;
use std::path::PathBuf;

/// An error that a caller sees as one line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A field of `config.json` is missing or wrong.
    #[error("{file}: {field}: {problem}")]
    Field { file: &'static str, field: String, problem: String },
    #[error("JSON specification file config.json not found")]
    NoConfig,
    #[error("config.json: {0}")]
    Config(String),
    #[error("invalid --filestore {0:?}: {1}")]
    Filestore(String, &'static str),
    #[error("invalid rootfs: {0}")]
    Rootfs(String),
    #[error("invalid container ID format: {0:?} (letters, digits and \"_+.-\" are allowed)")]
    InvalidId(String),
    #[error("container with given ID already exists")]
    AlreadyExists,
    #[error("container does not exist")]
    DoesNotExist,
    #[error("container not running")]
    NotRunning,
    #[error("cannot start an already running container")]
    AlreadyRunning,
    #[error("cannot start a container in the paused state")]
    StartPaused,
    #[error("cannot start a container that has stopped")]
    HasStopped,
    #[error("cannot exec in a stopped container")]
    ExecStopped,
    #[error("cannot exec in a paused container (use --ignore-paused to override)")]
    ExecPaused,
    #[error("container not paused")]
    NotPaused,
    #[error("cannot delete container {id} that is not stopped: {status}")]
    NotStopped { id: String, status: String },
    #[error("unknown signal {0:?}")]
    UnknownSignal(String),
    /// A host call failed.
    #[error("{what}: {}", words(source))]
    Host { what: String, source: io::Error },
    /// The Sentry could not start the container.
    #[error("{message}")]
    Start { code: u8, message: String },
    /// The sandbox came to an end that the container did not ask for.
    #[error("{message}")]
    Sandbox { code: u8, message: String },
    #[error("{0}")]
    Hook(String),
    /// The command line asks for what cannot be.
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    Control(#[from] control_protocol::ChannelError),
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// The exit status that the command ends with.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Start { code, .. } | Self::Sandbox { code, .. } => *code,
            _ => 1,
        }
    }

    pub(crate) fn field(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Field { file: "config.json", field: field.into(), problem: problem.into() }
    }
}

/// Says what was being done when a host call failed.
pub trait Context<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Context<T> for io::Result<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::Host { what: what(), source })
    }
}

/// An error as the C library words it, in lower case and without Rust's number behind it: as runc's callers know it.
pub fn words(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.rsplit_once(" (os error").map_or(text.as_str(), |(text, _)| text);
    let mut letters = text.chars();
    let first = letters.next().map(|first| first.to_ascii_lowercase());
    // A word in capitals stays one.
    match (first, letters.as_str().starts_with(|c: char| c.is_ascii_uppercase())) {
        (Some(first), false) => first.to_string() + letters.as_str(),
        _ => text.to_owned(),
    }
}

/// A path for an error message.
pub(crate) fn show(path: &std::path::Path) -> String {
    PathBuf::from(path).display().to_string()
}
