//! One trial of the sandbox: a directory, an ID and a state root of its own, commands under a supervisor, and at the
//! end a look at what is left.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::process::{Pid, Signal};

use crate::bundle::Bundle;
use crate::native::Native;
use crate::place::TempDir;
use crate::processes::{self, Process};
use crate::programs::{self, INSIDE, Programs};
use crate::supervise::Report;

/// How long a command may take unless a test says otherwise: far above what is needed on a busy two-core machine.
/// `$CASEMATE_TEST_LIMIT` is another number of seconds, for somebody who waits for a test that hangs.
fn patience() -> Duration {
    let asked = std::env::var("CASEMATE_TEST_LIMIT").ok().and_then(|text| text.parse().ok());
    asked.map_or(Duration::from_mins(3), Duration::from_secs)
}
const POLL: Duration = Duration::from_millis(5);

/// A place for one test to run sandboxes in.
#[derive(Debug)]
pub struct Trial {
    dir: TempDir,
    id: String,
    programs: &'static Programs,
}

impl Trial {
    pub fn new(name: &str) -> Result<Self> {
        let programs = programs::get()?;
        ensure!(programs.casemate.is_file(), "there is no casemate at {}", programs.casemate.display());
        let dir = TempDir::new(name)?;
        let id = dir.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
        for part in ["bundle", "state", "tmp", "scratch"] {
            fs::create_dir(dir.path().join(part))?;
        }
        Ok(Self { dir, id, programs })
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn programs(&self) -> &'static Programs {
        self.programs
    }

    /// An invocation of casemate with this trial's state root.
    pub fn casemate<S: Into<OsString>>(&self, args: impl IntoIterator<Item = S>) -> Invocation<'_> {
        let mut words: Vec<OsString> = vec![self.programs.casemate.clone().into()];
        words.push("--root".into());
        words.push(self.path().join("state").into());
        words.extend(args.into_iter().map(Into::into));
        self.invoke(words)
    }

    /// `casemate run` of a bundle, with the test programs bound in.
    pub fn run(&self, bundle: &Bundle) -> Result<Invocation<'_>> {
        self.run_as(bundle, &self.id)
    }

    /// The same under another ID.
    pub fn run_as(&self, bundle: &Bundle, id: &str) -> Result<Invocation<'_>> {
        let dir = self.path().join("bundle").join(id);
        bundle.clone().bind(&self.programs.inside, INSIDE, "ro").write(&dir)?;
        Ok(self.casemate([OsString::from("run"), "--bundle".into(), dir.into(), id.into()]))
    }

    /// A host command.
    pub fn host<S: Into<OsString>>(&self, args: impl IntoIterator<Item = S>) -> Invocation<'_> {
        self.invoke(args.into_iter().map(Into::into).collect())
    }

    /// A program that the host kernel serves in a root filesystem, with the test programs bound in.
    pub fn native<S: AsRef<str>>(
        &self,
        rootfs: &Path,
        cwd: &str,
        args: impl IntoIterator<Item = S>,
    ) -> Invocation<'_> {
        let native = Native::new(rootfs, self.path().join("scratch")).cwd(cwd).bind(
            &self.programs.inside,
            INSIDE,
            "ro",
        );
        self.host(native.command(args))
    }

    fn invoke(&self, words: Vec<OsString>) -> Invocation<'_> {
        Invocation {
            trial: self,
            words,
            stdin: Input::Nothing,
            env: Vec::new(),
            cwd: None,
            limit: patience(),
            stdout: None,
        }
    }

    /// Fails when a sandbox of this trial has left a state file, a temporary file, a mount or a control group.
    pub fn finish(self) -> Result<()> {
        for part in ["state", "tmp"] {
            let left = names(&self.path().join(part));
            ensure!(left.is_empty(), "left in the {part} directory: {left:?}");
        }
        for public in ["/run/casemate", "/tmp", "/dev/shm", "/var/tmp"] {
            let ours = self.path().file_name();
            let mut left = names(Path::new(public));
            left.retain(|name| name.contains(&self.id) && Some(name.as_ref()) != ours);
            ensure!(left.is_empty(), "left in {public}: {left:?}");
        }
        let table = fs::read_to_string("/proc/self/mountinfo")?;
        let mounts: Vec<&str> = table.lines().filter(|line| line.contains(&self.id)).collect();
        ensure!(mounts.is_empty(), "left mounted:\n{}", mounts.join("\n"));
        let groups = folders_named(Path::new("/sys/fs/cgroup"), &self.id, 6);
        ensure!(groups.is_empty(), "left control groups: {groups:?}");
        Ok(())
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn folders_named(dir: &Path, part: &str, depth: usize) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if depth > 0 && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            if entry.file_name().to_string_lossy().contains(part) {
                found.push(entry.path());
            }
            found.extend(folders_named(&entry.path(), part, depth - 1));
        }
    }
    found
}

#[derive(Debug)]
enum Input {
    Nothing,
    Closed,
    Bytes(Vec<u8>),
    Pipe,
    File(File),
}

/// A command about to run.
#[derive(Debug)]
pub struct Invocation<'t> {
    trial: &'t Trial,
    words: Vec<OsString>,
    stdin: Input,
    env: Vec<(OsString, OsString)>,
    cwd: Option<PathBuf>,
    limit: Duration,
    stdout: Option<Stdio>,
}

impl Invocation<'_> {
    /// Standard input gives these bytes, then ends. Without this it is `/dev/null`.
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Input::Bytes(bytes.into());
        self
    }

    /// Descriptor 0 is not open.
    #[must_use]
    pub fn closed_stdin(mut self) -> Self {
        self.stdin = Input::Closed;
        self
    }

    /// Standard input is a pipe whose writing end the test holds.
    #[must_use]
    pub fn piped_stdin(mut self) -> Self {
        self.stdin = Input::Pipe;
        self
    }

    #[must_use]
    pub fn stdin_file(mut self, file: File) -> Self {
        self.stdin = Input::File(file);
        self
    }

    /// Standard output goes there and is not captured.
    #[must_use]
    pub fn stdout(mut self, to: impl Into<Stdio>) -> Self {
        self.stdout = Some(to.into());
        self
    }

    #[must_use]
    pub fn env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    #[must_use]
    pub fn cwd(mut self, dir: impl Into<PathBuf>) -> Self {
        self.cwd = Some(dir.into());
        self
    }

    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Puts a host command in front, such as a tracer.
    #[must_use]
    pub fn under<S: Into<OsString>>(mut self, front: impl IntoIterator<Item = S>) -> Self {
        self.words.splice(0..0, front.into_iter().map(Into::into));
        self
    }

    /// Starts it and gives what it did; an error when it left processes behind or did not end in time.
    pub fn run(self) -> Result<Outcome> {
        self.start()?.wait()
    }

    pub fn start(mut self) -> Result<Running> {
        if matches!(self.stdin, Input::Closed) {
            self = self.under(["sh", "-c", "exec \"$@\" <&-", "sh"]);
        }
        let shown =
            self.words.iter().map(|word| brief(&word.to_string_lossy())).collect::<Vec<_>>().join(" ");
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let serial = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let report = self.trial.path().join(format!("report-{serial}"));
        let mut command = Command::new(&self.trial.programs.xtask);
        command.arg("supervise").arg("--limit").arg(self.limit.as_secs().to_string());
        command.arg("--report").arg(&report).arg("--").args(&self.words);
        command.env("TMPDIR", self.trial.path().join("tmp")).envs(self.env);
        if let Some(dir) = self.cwd {
            command.current_dir(dir);
        }
        let (bytes, stdin) = match self.stdin {
            Input::Nothing | Input::Closed => (None, Stdio::null()),
            Input::Bytes(bytes) => (Some(bytes), Stdio::piped()),
            Input::Pipe => (None, Stdio::piped()),
            Input::File(file) => (None, file.into()),
        };
        let captured = self.stdout.is_none();
        command.stdin(stdin).stdout(self.stdout.unwrap_or_else(Stdio::piped)).stderr(Stdio::piped());
        let mut child =
            command.spawn().with_context(|| format!("cannot start the supervisor of `{shown}`"))?;
        let mut writer = None;
        let mut input = child.stdin.take();
        if let Some(bytes) = bytes
            && let Some(mut pipe) = input.take()
        {
            // A reader that goes away is the command's business.
            writer = Some(std::thread::spawn(move || drop(pipe.write_all(&bytes))));
        }
        let stdout = if captured { child.stdout.take().map(Capture::of) } else { None };
        let stderr = child.stderr.take().map(Capture::of);
        Ok(Running { shown, child, report, stdin: input, writer, stdout, stderr })
    }
}

/// A pipe's content, collected as it comes.
#[derive(Debug)]
struct Capture {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: JoinHandle<()>,
}

impl Capture {
    fn of(mut pipe: impl Read + Send + 'static) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::clone(&bytes);
        let reader = std::thread::spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            while let Ok(n @ 1..) = pipe.read(&mut buffer) {
                if let Ok(mut bytes) = shared.lock() {
                    bytes.extend_from_slice(&buffer[..n]);
                }
            }
        });
        Self { bytes, reader }
    }

    fn so_far(&self) -> Vec<u8> {
        self.bytes.lock().map(|bytes| bytes.clone()).unwrap_or_default()
    }

    fn end(self) -> Vec<u8> {
        let _ = self.reader.join();
        self.bytes.lock().map(|mut bytes| std::mem::take(&mut *bytes)).unwrap_or_default()
    }
}

/// A command under way.
#[derive(Debug)]
pub struct Running {
    shown: String,
    child: Child,
    report: PathBuf,
    /// The writing end of the command's standard input, where the test asked for it.
    pub stdin: Option<ChildStdin>,
    writer: Option<JoinHandle<()>>,
    stdout: Option<Capture>,
    stderr: Option<Capture>,
}

impl Running {
    /// The process number of the command itself.
    pub fn pid(&mut self) -> Result<i32> {
        let mut found = None;
        let report = self.report.clone();
        self.until("the command starts", || {
            let text = fs::read_to_string(&report).unwrap_or_default();
            found = text.split_once('\n').and_then(|(line, _)| line.parse().ok());
            found.is_some()
        })?;
        found.context("no process number")
    }

    /// Every process that the command has started, itself first.
    pub fn processes(&mut self) -> Result<Vec<Process>> {
        let pid = self.pid()?;
        let own = Process::of(pid).with_context(|| format!("`{}` has ended", self.shown))?;
        Ok([vec![own], processes::descendants(pid)].concat())
    }

    /// What it has written so far.
    pub fn so_far(&self) -> String {
        let bytes = self.stdout.as_ref().map(Capture::so_far).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until it has written `text` to standard output.
    pub fn until_says(&mut self, text: &str) -> Result<()> {
        let capture = self.stdout.as_ref().map(|capture| Arc::clone(&capture.bytes));
        self.until(&format!("it says {text:?}"), || {
            let said = capture.as_ref().and_then(|bytes| bytes.lock().ok().map(|b| b.clone()));
            String::from_utf8_lossy(&said.unwrap_or_default()).contains(text)
        })
    }

    /// Waits until `done`; an error when the command has ended before, or after a long time.
    pub fn until(&mut self, what: &str, mut done: impl FnMut() -> bool) -> Result<()> {
        let start = Instant::now();
        loop {
            let ended = self.child.try_wait()?.is_some();
            if done() {
                return Ok(());
            }
            if ended || start.elapsed() > patience() {
                let why = if ended { "it has ended" } else { "nothing happens" };
                bail!(
                    "waiting until {what}: {why}: `{}`\nstdout so far: {}\nstderr so far: {}\n{}",
                    self.shown,
                    self.so_far(),
                    self.stderr.as_ref().map_or(String::new(), |c| text_of(&c.so_far())),
                    i32::try_from(self.child.id()).map(processes::describe).unwrap_or_default(),
                );
            }
            std::thread::sleep(POLL);
        }
    }

    /// Sends a signal to the command itself.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        let pid = self.pid()?;
        kill(pid, signal)
    }

    /// Waits for its end and for all that it started.
    pub fn wait(mut self) -> Result<Outcome> {
        drop(self.stdin.take());
        self.child.wait()?;
        let stdout = self.stdout.take().map(Capture::end).unwrap_or_default();
        let stderr = self.stderr.take().map(Capture::end).unwrap_or_default();
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
        let text = fs::read_to_string(&self.report).unwrap_or_default();
        let line = text.lines().nth(1).unwrap_or_default();
        let report: Report = serde_json::from_str(line)
            .map_err(|_| anyhow!("the supervisor of `{}` failed: {}", self.shown, text_of(&stderr)))?;
        let outcome = Outcome { shown: std::mem::take(&mut self.shown), report, stdout, stderr };
        if let Some(stuck) = &outcome.report.stuck {
            bail!("no end in time; its processes were\n{stuck}\n{outcome}");
        }
        ensure!(outcome.report.left.is_empty(), "it left processes: {:#?}\n{outcome}", outcome.report.left);
        Ok(outcome)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // The supervisor ends all below it when it is told so by the end of its parent; a test that fails half-way
        // has not waited, so tell it by the signal that its parent's end would have been.
        if let (Ok(None), Ok(pid)) = (self.child.try_wait(), i32::try_from(self.child.id())) {
            for process in processes::descendants(pid) {
                let _ = kill(process.pid, Signal::KILL);
            }
            let _ = self.child.wait();
        }
    }
}

/// A word of a command line, cut where it becomes a program of its own.
fn brief(word: &str) -> String {
    let text: String = word.trim_start().chars().take_while(|c| *c != '\n').take(120).collect();
    if text.len() < word.len() { format!("'{text}...'") } else { text }
}

/// Sends a signal to one process.
pub fn kill(pid: i32, signal: Signal) -> Result<()> {
    let pid = Pid::from_raw(pid).context("process number 0")?;
    rustix::process::kill_process(pid, signal).with_context(|| format!("cannot signal process {pid:?}"))
}

fn text_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What a command did.
#[derive(Debug)]
pub struct Outcome {
    shown: String,
    report: Report,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

impl Outcome {
    pub fn out(&self) -> String {
        text_of(&self.stdout)
    }

    pub fn err(&self) -> String {
        text_of(&self.stderr)
    }

    /// The exit code as a shell gives it: 128 and the signal's number when a signal ended the command.
    pub fn code(&self) -> i32 {
        self.report.code.unwrap_or_else(|| 128 + self.report.signal.unwrap_or(0))
    }

    /// Whether a signal ended the command itself.
    pub fn signalled(&self) -> bool {
        self.report.signal.is_some()
    }

    pub fn took(&self) -> Duration {
        Duration::from_millis(self.report.took_ms)
    }

    /// Fails, with all that is known, when the exit code is another.
    pub fn expect(self, code: i32) -> Result<Self> {
        ensure!(self.code() == code, "exit code {}, expected {code}\n{self}", self.code());
        Ok(self)
    }

    /// Fails when standard output is not `text`.
    pub fn expect_out(self, text: &str) -> Result<Self> {
        ensure!(self.out() == text, "stdout is not {text:?}\n{self}");
        Ok(self)
    }

    /// Fails when standard error does not contain `text`.
    pub fn expect_err(self, text: &str) -> Result<Self> {
        ensure!(self.err().contains(text), "stderr does not say {text:?}\n{self}");
        Ok(self)
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let tail = |text: String| {
            let lines: Vec<&str> = text.lines().collect();
            let from = lines.len().saturating_sub(60);
            lines[from..].join("\n  ")
        };
        let (out, err) = (tail(self.out()), tail(self.err()));
        write!(f, "`{}` ended with code {} after {:?}", self.shown, self.code(), self.took())?;
        write!(f, "\n stdout:\n  {out}\n stderr:\n  {err}")
    }
}
