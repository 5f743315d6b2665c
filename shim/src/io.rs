//! Standard input and output of a process: FIFOs of containerd's, a log file, a logging program, or a terminal.
//!
//! Without a terminal the process gets the FIFO, file or pipe itself: no byte passes through the shim. What is held here
//! keeps the other side from being taken for closed while containerd's clients come and go.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use hostsys::polling::{self, Interest};
use hostsys::sock;
use rustix::fs::OFlags;
use rustix::termios::{Winsize, tcsetwinsize};

/// Where a process reads from and writes to, as containerd says it. An empty text is nowhere.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Places {
    pub stdin: String,
    pub stdout: String,
    pub stderr: String,
    pub terminal: bool,
}

/// Whose output a logging program takes.
#[derive(Debug, Clone, Copy)]
pub struct Whose<'a> {
    pub id: &'a str,
    pub namespace: &'a str,
}

/// How long a logging program may take until it is ready.
const LOGGER_START: Duration = Duration::from_secs(10);

/// How long the last output may take to be passed on.
const DRAIN: Duration = Duration::from_secs(10);

/// What is held for a process while it lives.
#[derive(Debug, Default)]
pub struct Streams {
    /// Our own ends of FIFOs.
    held: Vec<File>,
    /// Our writer of standard input: the process sees no end of it before this is closed.
    input: Option<File>,
    console: Option<Console>,
    terminal: Option<Terminal>,
    logger: Option<Child>,
}

/// What a process is started with.
#[derive(Debug)]
pub struct Ends {
    pub stdin: Stdio,
    pub stdout: Stdio,
    pub stderr: Stdio,
    /// Where the runtime sends the terminal.
    pub console_socket: Option<PathBuf>,
}

/// A terminal that has yet to come.
#[derive(Debug)]
struct Console {
    dir: PathBuf,
    listener: UnixListener,
    input: Option<File>,
    output: Option<File>,
}

#[derive(Debug)]
struct Terminal {
    master: File,
    output: Option<JoinHandle<()>>,
}

fn is_fifo(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_fifo())
}

/// From here on reads and writes wait.
fn let_wait(file: &File) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(file)?;
    Ok(rustix::fs::fcntl_setfl(file, flags - OFlags::NONBLOCK)?)
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("open {}: {error}", path.display()))
}

/// A FIFO's reading end, then its writing end: neither waits for somebody else.
fn both_ends(path: &Path) -> io::Result<(File, File)> {
    let open = || {
        let reader = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        let writer = File::options().write(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        let_wait(&reader)?;
        let_wait(&writer)?;
        Ok((reader, writer))
    };
    open().map_err(|error| named(path, &error))
}

impl Streams {
    /// Opens what `places` name.
    pub fn open(places: &Places, whose: Whose<'_>) -> io::Result<(Self, Ends)> {
        let mut streams = Self::default();
        let input = streams.open_input(&places.stdin)?;
        if let Some(("binary" | "binary-v2", _)) = places.stdout.split_once("://") {
            let (out, err) = streams.start_logger(&places.stdout, whose)?;
            return streams.ends(places, input, Some(out), Some(err));
        }
        let output = streams.open_output(&places.stdout)?;
        let error = if places.terminal { None } else { streams.open_output(&places.stderr)? };
        streams.ends(places, input, output, error)
    }

    fn ends(
        mut self,
        places: &Places,
        input: Option<File>,
        output: Option<File>,
        error: Option<File>,
    ) -> io::Result<(Self, Ends)> {
        if places.terminal {
            let dir = private_dir()?;
            let path = dir.join("console");
            let listener = UnixListener::bind(&path)?;
            self.console = Some(Console { dir, listener, input, output });
            let ends = Ends {
                stdin: Stdio::null(),
                stdout: Stdio::null(),
                stderr: Stdio::null(),
                console_socket: Some(path),
            };
            return Ok((self, ends));
        }
        let end = |file: Option<File>| file.map_or_else(Stdio::null, Stdio::from);
        let ends = Ends { stdin: end(input), stdout: end(output), stderr: end(error), console_socket: None };
        Ok((self, ends))
    }

    fn open_input(&mut self, place: &str) -> io::Result<Option<File>> {
        if place.is_empty() {
            return Ok(None);
        }
        let path = Path::new(place);
        if !is_fifo(path) {
            return File::open(path).map(Some).map_err(|error| named(path, &error));
        }
        let (reader, writer) = both_ends(path)?;
        self.input = Some(writer);
        Ok(Some(reader))
    }

    fn open_output(&mut self, place: &str) -> io::Result<Option<File>> {
        let path = match place.split_once("://") {
            _ if place.is_empty() => return Ok(None),
            None => Path::new(place),
            Some(("fifo", path)) => Path::new(path),
            Some(("file", path)) => {
                let path = Path::new(path);
                if let Some(dir) = path.parent() {
                    fs::DirBuilder::new().recursive(true).mode(0o755).create(dir)?;
                }
                let file = File::options().append(true).create(true).mode(0o644).open(path);
                return file.map(Some).map_err(|error| named(path, &error));
            }
            Some((scheme, _)) => return Err(io::Error::other(format!("unknown STDIO scheme {scheme}"))),
        };
        if !is_fifo(path) {
            let file = File::options().append(true).open(path);
            return file.map(Some).map_err(|error| named(path, &error));
        }
        let (reader, writer) = both_ends(path)?;
        self.held.push(reader);
        Ok(Some(writer))
    }

    /// Starts a logging program with the two outputs as its descriptors 3 and 4 and the pipe that it says to be ready on
    /// as 5: an end of it, and for `binary-v2` a byte.
    fn start_logger(&mut self, place: &str, whose: Whose<'_>) -> io::Result<(File, File)> {
        let (scheme, rest) = place.split_once("://").unwrap_or_default();
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let ((out, to_out), (err, to_err), (ready, to_ready)) = (io::pipe()?, io::pipe()?, io::pipe()?);
        let mut command = Command::new("/bin/sh");
        // Descriptors above 2 are what a shell can lay out and this program cannot, without unsafe code.
        command.args(["-c", "exec 3<&0 4<&1 5>&2 </dev/null >/dev/null 2>&1; exec \"$@\"", "sh"]);
        command.arg(unescape(path));
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            command.arg(unescape(key));
            if !value.is_empty() {
                command.arg(unescape(value));
            }
        }
        command.env("CONTAINER_ID", whose.id).env("CONTAINER_NAMESPACE", whose.namespace);
        command.stdin(out).stdout(err).stderr(to_ready);
        let child = command.spawn()?;
        drop(command);
        self.logger = Some(child);
        let mut interests = [Interest::new(ready.as_fd(), libc::POLLIN)];
        let patience = i32::try_from(LOGGER_START.as_millis()).unwrap_or(i32::MAX);
        if polling::wait(&mut interests, Some(patience))? == 0 {
            return Err(io::Error::other(format!("the logging program {path} is not ready in time")));
        }
        let mut byte = [0];
        if (&ready).read(&mut byte)? == 0 && scheme == "binary-v2" {
            return Err(io::Error::other(format!("the logging program {path} has failed")));
        }
        Ok((OwnedFd::from(to_out).into(), OwnedFd::from(to_err).into()))
    }

    /// The process is there: takes its terminal, if it has one.
    pub fn attach(&mut self) -> io::Result<()> {
        let Some(console) = self.console.take() else { return Ok(()) };
        let _ = fs::remove_dir_all(&console.dir);
        // The runtime has connected before it said that the process is there.
        console.listener.set_nonblocking(true)?;
        let (socket, _) = console.listener.accept()?;
        let mut name = [0; 4096];
        let received = sock::receive(socket.as_fd(), &mut name, 0)?;
        let master = received.fds.into_iter().next();
        let master = File::from(master.ok_or_else(|| io::Error::other("no terminal came"))?);
        if let Some(input) = console.input {
            let to = master.try_clone()?;
            thread::spawn(move || copy(input, to));
        }
        // What nobody wants is read all the same: a full terminal would hold the container up.
        let from = master.try_clone()?;
        let output = console.output;
        let output = Some(thread::spawn(move || match output {
            Some(output) => copy(from, output),
            None => copy(from, io::sink()),
        }));
        self.terminal = Some(Terminal { master, output });
        Ok(())
    }

    pub fn resize(&self, rows: u32, columns: u32) -> io::Result<()> {
        let Some(terminal) = &self.terminal else { return Ok(()) };
        let size = |value: u32| u16::try_from(value).unwrap_or(u16::MAX);
        let size = Winsize { ws_row: size(rows), ws_col: size(columns), ws_xpixel: 0, ws_ypixel: 0 };
        Ok(tcsetwinsize(&terminal.master, size)?)
    }

    /// Lets the process see the end of its input, once containerd's own writer is closed too.
    pub fn close_input(&mut self) {
        self.input = None;
    }

    /// The process is gone: what it has left behind is passed on, then everything is let go.
    pub fn finish(mut self) {
        self.input = None;
        if let Some(output) = self.terminal.take().and_then(|terminal| terminal.output) {
            let until = Instant::now() + DRAIN;
            while !output.is_finished() && Instant::now() < until {
                thread::sleep(Duration::from_millis(2));
            }
        }
        self.held.clear();
        if let Some(mut logger) = self.logger.take() {
            // It ends when it has read everything.
            thread::spawn(move || logger.wait());
        }
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        if let Some(console) = &self.console {
            let _ = fs::remove_dir_all(&console.dir);
        }
    }
}

fn copy(mut from: File, mut to: impl Write) {
    let mut buffer = [0; 16 << 10];
    loop {
        match from.read(&mut buffer) {
            // The end of a terminal is told as an error of input.
            Ok(0) => break,
            Ok(len) => {
                if to.write_all(buffer.get(..len).unwrap_or_default()).is_err() {
                    break;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
}

/// A directory of our own with a path that is short enough for a socket's address.
fn private_dir() -> io::Result<PathBuf> {
    static LAST: AtomicU32 = AtomicU32::new(0);
    let number = LAST.fetch_add(1, Ordering::Relaxed);
    let dir = std::env::temp_dir().join(format!("casemate-pty-{}-{number}", std::process::id()));
    match fs::DirBuilder::new().mode(0o700).create(&dir) {
        // Left by a process that had our number.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs::remove_dir_all(&dir)?;
            fs::DirBuilder::new().mode(0o700).create(&dir)?;
        }
        made => made?,
    }
    Ok(dir)
}

/// Takes `%41` and the like back to what they stand for (RFC 3986).
fn unescape(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let hex = after.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        let byte = hex.filter(|_| *first == b'%').and_then(|hex| u8::from_str_radix(hex, 16).ok());
        bytes.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { after.get(2..).unwrap_or_default() } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_file_takes_both_outputs() {
        let dir = private_dir().unwrap();
        let path = dir.join("deep/log");
        let place = format!("file://{}", path.display());
        let places = Places { stdout: place.clone(), stderr: place, ..Places::default() };
        let (streams, ends) = Streams::open(&places, Whose { id: "a", namespace: "n" }).unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo one; echo two >&2"]).stdout(ends.stdout).stderr(ends.stderr);
        assert!(command.status().unwrap().success());
        streams.finish();
        assert_eq!(fs::read_to_string(&path).unwrap(), "one\ntwo\n");
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_logging_program_gets_its_words_and_the_output() {
        let dir = private_dir().unwrap();
        let (program, log) = (dir.join("logger"), dir.join("log"));
        let script =
            format!("#!/bin/sh\nexec 5>&-\n(echo \"$CONTAINER_ID $*\"; cat <&3) > {}\n", log.display());
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let places =
            Places { stdout: format!("binary://{}?key=a%20b&c", program.display()), ..Places::default() };
        let (mut streams, ends) = Streams::open(&places, Whose { id: "me", namespace: "n" }).unwrap();
        let mut command = Command::new("echo");
        command.arg("hello").stdout(ends.stdout);
        assert!(command.status().unwrap().success());
        drop((command, ends.stderr));
        let mut logger = streams.logger.take().unwrap();
        assert!(logger.wait().unwrap().success());
        assert_eq!(fs::read_to_string(&log).unwrap(), "me key a b c\nhello\n");
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn escapes() {
        assert_eq!(unescape("a%20b%2fc%4"), "a b/c%4");
    }
}
