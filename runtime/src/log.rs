//! The log of a command: lines of text, or of JSON for engines that read it.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::SystemTime;

use control_protocol::Stopwatch;
use hostsys::futex::monotonic_ns;

use crate::timestamp;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    #[default]
    Text,
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    Debug,
    Warning,
    Error,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// Where log lines go. Without a file, only what `--debug` asks for is written, to standard error.
#[derive(Debug, Default)]
pub struct Log {
    file: Option<File>,
    format: Format,
    debug: bool,
    moments: Option<(&'static str, Stopwatch)>,
}

impl Log {
    /// Opens `path` for appending, and makes it if it is missing.
    pub fn open(path: Option<&Path>, format: Format, debug: bool) -> io::Result<Self> {
        let open = |path: &Path| {
            File::options().append(true).create(true).mode(0o644).custom_flags(libc::O_SYNC).open(path)
        };
        Ok(Self { file: path.map(open).transpose()?, format, debug, moments: None })
    }

    /// A log in a file that is open already.
    pub(crate) fn of_file(file: Option<File>, format: Format, debug: bool) -> Self {
        Self { file, format, debug, moments: None }
    }

    pub(crate) fn set_file(&mut self, file: File) {
        self.file = Some(file);
    }

    /// Logs moments of the start besides ([`Self::moment`]).
    #[must_use]
    pub fn with_moments(self, process: &'static str, stopwatch: Option<Stopwatch>) -> Self {
        Self { moments: stopwatch.map(|stopwatch| (process, stopwatch)), ..self }
    }

    pub fn stopwatch(&self) -> Option<Stopwatch> {
        self.moments.map(|(_, stopwatch)| stopwatch)
    }

    pub fn has_file(&self) -> bool {
        self.file.is_some()
    }

    pub fn format(&self) -> Format {
        self.format
    }

    pub fn is_debug(&self) -> bool {
        self.debug
    }

    /// Writes one line.
    pub fn write(&self, level: Level, message: &str) {
        if level == Level::Debug && !self.debug {
            return;
        }
        if self.file.is_some() || (self.debug && level != Level::Error) {
            self.append(&line(self.format, level, message));
        }
    }

    /// With a stopwatch: what has been done by now, on the way to the container's first instruction or to its end.
    pub fn moment(&self, what: &str) {
        let Some((process, stopwatch)) = self.moments else { return };
        let moment = stopwatch.line(monotonic_ns(), process, what);
        match self.file {
            Some(_) => self.append(&line(self.format, Level::Debug, &moment)),
            None => self.append(&format!("{moment}\n")),
        }
    }

    fn append(&self, line: &str) {
        // The log is the last resort for errors; there is nowhere to tell of its own.
        let _ = match &self.file {
            Some(file) => {
                let mut file: &File = file;
                file.write_all(line.as_bytes())
            }
            None => io::stderr().write_all(line.as_bytes()),
        };
    }

    pub fn warnings(&self, messages: impl IntoIterator<Item = String>) {
        for message in messages {
            self.write(Level::Warning, &message);
        }
    }

    /// A descriptor for the Sentry to append to, if anybody would read it.
    pub(crate) fn descriptor(&self, strace: bool) -> io::Result<Option<OwnedFd>> {
        match &self.file {
            Some(file) => Ok(Some(file.as_fd().try_clone_to_owned()?)),
            None if self.debug || strace || self.moments.is_some() => {
                Ok(Some(io::stderr().as_fd().try_clone_to_owned()?))
            }
            None => Ok(None),
        }
    }
}

fn line(format: Format, level: Level, message: &str) -> String {
    let time = timestamp::seconds(SystemTime::now());
    match format {
        Format::Text => format!("time={time:?} level={} msg={message:?}\n", level.name()),
        Format::Json => {
            let message = serde_json::Value::from(message);
            format!("{{\"level\":\"{}\",\"msg\":{message},\"time\":\"{time}\"}}\n", level.name())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_json_line_is_one_object_on_one_line() {
        let line = line(Format::Json, Level::Error, "a \"b\"\nc");
        assert_eq!(line.matches('\n').count(), 1);
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["level"], "error");
        assert_eq!(value["msg"], "a \"b\"\nc");
    }
}
