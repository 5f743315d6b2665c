//! The Sentry's log: lines to a descriptor that the command gave.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use control_protocol::{Options, Stopwatch};
use hostsys::futex::monotonic_ns;

/// Something that was done before the log was there.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    at_ns: u64,
    what: &'static str,
}

impl Moment {
    pub fn now(what: &'static str) -> Self {
        Self { at_ns: monotonic_ns(), what }
    }
}

/// A sink of lines; without a descriptor they are dropped.
#[derive(Debug, Clone, Default)]
pub struct Log {
    file: Option<Arc<File>>,
    json: bool,
    debug: bool,
    stopwatch: Option<Stopwatch>,
}

impl Log {
    /// The log that `options` ask for, in `file`.
    pub fn new(file: Option<OwnedFd>, options: &Options) -> Self {
        let file = file.map(|fd| Arc::new(File::from(fd)));
        Self { file, json: options.log_json, debug: options.debug, stopwatch: options.timing }
    }

    /// A line for whoever asked for `--debug`.
    pub fn debug(&self, message: &str) {
        if self.debug {
            self.write("debug", message);
        }
    }

    /// A log of lines as they are.
    pub fn to_file(fd: OwnedFd) -> Self {
        Self::new(Some(fd), &Options::default())
    }

    /// With `--timing`: what has been done by now on the way to init's first instruction.
    pub fn moment(&self, what: &str) {
        self.moment_at(monotonic_ns(), what);
    }

    /// The same for moments that were noted before anybody could be told.
    pub fn moments(&self, noted: &[Moment]) {
        for moment in noted {
            self.moment_at(moment.at_ns, moment.what);
        }
    }

    fn moment_at(&self, at_ns: u64, what: &str) {
        if let Some(stopwatch) = self.stopwatch {
            self.write("debug", &stopwatch.line(at_ns, "sandbox", what));
        }
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
