//! Makes containers and executes processes in them, as engines do: by our own command line.
//!
//! The command is a process of its own, so that what it starts begins with one thread. What it leaves behind for
//! the container, a monitor or a proxy, becomes our child when the command ends, and tells by its own end how the
//! container's process has ended.

use std::fs;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::io::Ends;

/// How long a container may take to be made: its hooks have a part in it.
const PATIENCE: Duration = Duration::from_mins(2);

/// The command line's global flags.
#[derive(Debug, Clone)]
pub struct Runtime {
    pub root: PathBuf,
    pub systemd_cgroup: bool,
    pub debug: bool,
    /// Further ones that the options ask for.
    pub flags: Vec<String>,
}

impl Runtime {
    fn command(&self, bundle: &Path, log: &Path) -> Command {
        let mut command = Command::new("/proc/self/exe");
        // Ours come last, and count.
        command.arg0("casemate").args(&self.flags).arg("--root").arg(&self.root);
        command.arg("--log").arg(log).args(["--log-format", "json"]).current_dir(bundle);
        if self.systemd_cgroup {
            command.arg("--systemd-cgroup");
        }
        if self.debug {
            command.arg("--debug");
        }
        command
    }

    /// Creates the container of `bundle`; the process that stands for its init.
    pub fn create(&self, id: &str, bundle: &Path, ends: Ends) -> io::Result<u32> {
        let log = bundle.join("log.json");
        let pid_file = bundle.join("init.pid");
        let mut command = self.command(bundle, &log);
        command.arg("create").arg("--bundle").arg(bundle).arg("--pid-file").arg(&pid_file);
        finish(command, ends, id, &log, &pid_file)
    }

    /// Executes the process that `spec` describes in JSON; the process that stands for it.
    pub fn exec(&self, id: &str, exec_id: &str, bundle: &Path, spec: &[u8], ends: Ends) -> io::Result<u32> {
        let at = |what: &str| bundle.join(format!("{exec_id}.{what}"));
        let (log, pid_file, file) = (at("log.json"), at("pid"), at("process.json"));
        fs::write(&file, spec)?;
        let mut command = self.command(bundle, &log);
        command.arg("exec").arg("--process").arg(&file).arg("--detach").arg("--pid-file").arg(&pid_file);
        let done = finish(command, ends, id, &log, &pid_file);
        for path in [file, pid_file, log] {
            let _ = fs::remove_file(path);
        }
        done
    }
}

fn finish(mut command: Command, ends: Ends, id: &str, log: &Path, pid_file: &Path) -> io::Result<u32> {
    if let Some(path) = &ends.console_socket {
        command.arg("--console-socket").arg(path);
    }
    command.arg("--").arg(id).stdin(ends.stdin).stdout(ends.stdout).stderr(ends.stderr);
    let mut child = command.spawn()?;
    drop(command);
    let until = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() >= until {
            let _ = child.kill();
            let _ = child.wait();
            return Err(io::Error::other("the runtime does not end"));
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    if !status.success() {
        let message = last_error(log).unwrap_or_else(|| format!("the runtime has failed ({status})"));
        return Err(io::Error::other(message));
    }
    let text = fs::read_to_string(pid_file)?;
    text.trim().parse().map_err(|_| io::Error::other(format!("{}: {text:?}", pid_file.display())))
}

/// The last line of a log that is an error.
fn last_error(log: &Path) -> Option<String> {
    let mut text = String::new();
    fs::File::open(log).ok()?.take(1 << 20).read_to_string(&mut text).ok()?;
    text.lines().rev().find_map(|line| {
        let value: serde_json::Value = serde_json::from_str(line).ok()?;
        let is_error = value.get("level")?.as_str()? == "error";
        is_error.then(|| value.get("msg")?.as_str().map(str::to_owned)).flatten()
    })
}

/// What our own command line answers to `features`.
pub fn features() -> io::Result<Vec<u8>> {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("casemate").arg("features").stdin(Stdio::null()).stderr(Stdio::null());
    let output = command.output()?;
    Ok(output.stdout)
}
