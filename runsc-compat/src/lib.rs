//! The `casemate` command line: a drop-in for `runc`, and `do`.
//!
//! Flags, output formats and error sentences follow runc's, which engines parse. One error is one line on standard
//! error, and one entry in the log file if there is one.
//!
//! **Invariants.** Every exit is by a returned code, so that what a run owns is dropped first.

mod args;
mod commands;
mod engines;
mod go_style;
mod output;

use std::ffi::OsString;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use control_protocol::Stopwatch;
use runtime::log::{Format, Level, Log};

use crate::args::{Arguments, Parsed};

/// Runs the command line `args`, the program's name first.
pub fn main(args: Vec<OsString>) -> ExitCode {
    match args::parse(args) {
        Parsed::Run(arguments) => with_log(*arguments),
        Parsed::Shown => ExitCode::SUCCESS,
        Parsed::Wrong { log, json, message, code } => {
            let format = if json { Format::Json } else { Format::Text };
            let log = Log::open(log.as_deref(), format, false).unwrap_or_default();
            fail(&log, &message, code)
        }
    }
}

fn with_log(arguments: Arguments) -> ExitCode {
    let stopwatch = arguments.global.timing.then(Stopwatch::start);
    // Before anything is opened: the numbers are the caller's.
    let preserved = runtime::take_preserved(arguments.command.preserve_fds());
    let format = match arguments.global.log_format.as_str() {
        "text" => Format::Text,
        "json" => Format::Json,
        other => return fail(&Log::default(), &format!("invalid log-format: {other}"), 1),
    };
    // runc's default, which its callers sometimes spell out: what is no file of its own goes to standard error.
    let path = arguments.global.log.as_deref().filter(|path| *path != Path::new("/dev/stderr"));
    let log = match Log::open(path, format, arguments.global.debug) {
        Ok(log) => log.with_moments("command", stopwatch),
        Err(error) => {
            let path = path.unwrap_or(Path::new("")).display();
            return fail(&Log::default(), &format!("open log file {path}: {error}"), 1);
        }
    };
    let doing = arguments.command.failure_prefix();
    let is_exec = matches!(arguments.command, args::Command::Exec(_));
    let ended = preserved
        .map_err(anyhow::Error::from)
        .and_then(|preserved| commands::run(arguments, preserved, &log));
    match ended {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            let own = error.downcast_ref::<runtime::Error>();
            let code = if is_exec { runtime::EXEC_FAILED } else { own.map_or(1, runtime::Error::exit_code) };
            // An error of the library tells its source itself.
            let message = own.map_or_else(|| format!("{error:#}"), ToString::to_string);
            // A signal during the start has nothing to say.
            let doing = if message.is_empty() || message.starts_with(doing) { "" } else { doing };
            fail(&log, &format!("{doing}{message}"), code)
        }
    }
}

/// Writes a line to the standard error, at once: engines run many of us on one pipe.
pub(crate) fn say(line: &str) {
    // There is nobody to tell when that is closed.
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}

/// Says what went wrong, in one line. A signal during the start has nothing to say.
fn fail(log: &Log, message: &str, code: u8) -> ExitCode {
    let message = message.trim().replace('\n', " ");
    if !message.is_empty() {
        log.write(Level::Error, &message);
        // Some of runc's sentences begin with the name already.
        let named = log.has_file() || message.starts_with("casemate: ");
        if named { say(&message) } else { say(&format!("casemate: {message}")) }
    }
    ExitCode::from(code)
}
