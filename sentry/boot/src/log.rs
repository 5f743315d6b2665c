//! The Sentry's log: lines to a descriptor that the command gave.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// A sink of lines; without a descriptor they are dropped.
#[derive(Debug, Clone, Default)]
pub struct Log {
    file: Option<Arc<File>>,
    json: bool,
    debug: bool,
}

impl Log {
    pub fn new(file: Option<OwnedFd>, json: bool, debug: bool) -> Self {
        Self { file: file.map(|fd| Arc::new(File::from(fd))), json, debug }
    }

    /// A line for whoever asked for `--debug`.
    pub fn debug(&self, message: &str) {
        if self.debug {
            self.write("debug", message);
        }
    }

    /// A log of lines as they are.
    pub fn to_file(fd: OwnedFd) -> Self {
        Self::new(Some(fd), false, false)
    }

    /// A line of `--strace`.
    pub fn trace(&self, message: &str) {
        self.write("info", message);
    }

    fn write(&self, level: &str, message: &str) {
        let Some(file) = &self.file else { return };
        let line = if self.json {
            let message = serde_json::Value::from(message);
            format!("{{\"level\":\"{level}\",\"msg\":{message}}}\n")
        } else {
            format!("{message}\n")
        };
        // One write a line: lines of several threads do not mix. A log that is full or gone loses lines.
        let mut file: &File = file;
        let _ = file.write_all(line.as_bytes());
    }
}
