//! Runs cases in forked children with time limits, and the macros with which a case states what must hold.
//!
//! The runner itself stays single-threaded and uses few system calls, so that it works on a young kernel too.

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// `Err` says what differed from Linux; a reason that starts with [`SKIP`] means the case cannot be judged here.
pub type Outcome = Result<(), String>;

/// Marks the reason of a skipped case.
pub const SKIP: &str = "SKIP: ";

/// One case: a name unique in its area, and the function that makes the calls.
#[derive(Debug)]
pub struct Case {
    pub name: &'static str,
    pub run: fn() -> Outcome,
}

/// The cases of one family of system calls.
#[derive(Debug)]
pub struct Area {
    pub name: &'static str,
    pub cases: &'static [Case],
}

/// A case that the command line chose, with its full `area/name`.
#[derive(Debug)]
pub struct Selected {
    pub name: String,
    pub case: &'static Case,
}

/// How to run the chosen cases.
#[derive(Debug)]
pub struct Options {
    pub json: bool,
    pub jobs: usize,
    pub timeout_s: u64,
    pub dir: PathBuf,
}

impl Default for Options {
    fn default() -> Self {
        Self { json: false, jobs: 4, timeout_s: 30, dir: std::env::temp_dir() }
    }
}

/// Lists the cases of an area by their functions' names.
macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        pub const CASES: &[$crate::harness::Case] =
            &[$($crate::harness::Case { name: stringify!($name), run: $name }),*];
    };
}

/// Makes one system call that must succeed, and gives its value.
macro_rules! ok {
    ($($call:tt)*) => {{
        #[allow(unused_unsafe, reason = "some calls stand in a block that is unsafe already")]
        let ret = unsafe { $($call)* };
        $crate::harness::succeed(line!(), stringify!($($call)*), ret)?
    }};
}

/// Makes one system call that must fail with the named errno.
macro_rules! fails {
    ($errno:ident, $($call:tt)*) => {{
        #[allow(unused_unsafe, reason = "some calls stand in a block that is unsafe already")]
        let ret = unsafe { $($call)* };
        $crate::harness::fail_with(line!(), stringify!($($call)*), ret, libc::$errno)?
    }};
}

/// States that two values are equal.
macro_rules! same {
    ($got:expr, $want:expr) => {{
        let (got, want) = (&$got, &$want);
        if got != want {
            return Err(format!("line {}: {} is {:?}, expected {:?}", line!(), stringify!($got), got, want));
        }
    }};
}

/// States that a condition holds; the rest is a message for when it does not.
macro_rules! want {
    ($cond:expr, $($msg:tt)*) => {
        let holds: bool = $cond;
        if !holds {
            return Err(format!("line {}: {}", line!(), format!($($msg)*)));
        }
    };
}

/// Ends the case without a verdict.
macro_rules! skip {
    ($($msg:tt)*) => { return Err(format!("{}{}", $crate::harness::SKIP, format!($($msg)*))) };
}

/// A return value of a system call wrapper, where -1 stands for failure.
pub trait Ret: Copy + std::fmt::Debug {
    fn failed(self) -> bool;
}

impl Ret for i32 {
    fn failed(self) -> bool {
        self == -1
    }
}
impl Ret for i64 {
    fn failed(self) -> bool {
        self == -1
    }
}
impl Ret for isize {
    fn failed(self) -> bool {
        self == -1
    }
}
impl<T> Ret for *mut T {
    fn failed(self) -> bool {
        self as isize == -1
    }
}

pub fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// Checks a call that must succeed.
pub fn succeed<T: Ret>(line: u32, call: &str, ret: T) -> Result<T, String> {
    if ret.failed() {
        let e = errno();
        return Err(format!("line {line}: {} failed with {}", brief(call), errno_name(e)));
    }
    Ok(ret)
}

/// Checks a call that must fail with `want`.
pub fn fail_with<T: Ret>(line: u32, call: &str, ret: T, want: i32) -> Outcome {
    let e = errno();
    let want_name = errno_name(want);
    if !ret.failed() {
        return Err(format!("line {line}: {} gave {ret:?}, expected {want_name}", brief(call)));
    }
    if e != want {
        let name = errno_name(e);
        return Err(format!("line {line}: {} failed with {name}, expected {want_name}", brief(call)));
    }
    Ok(())
}

/// The text of a call on one line, without the crate prefix.
fn brief(call: &str) -> String {
    let flat: Vec<&str> = call.split_whitespace().collect();
    flat.join(" ").replace("libc :: ", "").replace("libc::", "")
}

/// The symbolic name of an errno.
pub fn errno_name(e: i32) -> String {
    macro_rules! names {
        ($($n:ident)*) => { match e { $(libc::$n => stringify!($n).to_string(),)* _ => format!("errno {e}") } };
    }
    names!(EPERM ENOENT ESRCH EINTR EIO ENXIO E2BIG ENOEXEC EBADF ECHILD EAGAIN ENOMEM EACCES EFAULT ENOTBLK EBUSY
        EEXIST EXDEV ENODEV ENOTDIR EISDIR EINVAL ENFILE EMFILE ENOTTY ETXTBSY EFBIG ENOSPC ESPIPE EROFS EMLINK EPIPE
        EDOM ERANGE EDEADLK ENAMETOOLONG ENOLCK ENOSYS ENOTEMPTY ELOOP ENODATA EOVERFLOW EILSEQ ENOTSOCK
        EDESTADDRREQ EMSGSIZE EPROTOTYPE ENOPROTOOPT EPROTONOSUPPORT ESOCKTNOSUPPORT EOPNOTSUPP EAFNOSUPPORT
        EADDRINUSE EADDRNOTAVAIL ENETUNREACH ECONNABORTED ECONNRESET ENOBUFS EISCONN ENOTCONN ETIMEDOUT ECONNREFUSED
        EALREADY EINPROGRESS ESTALE EDQUOT ECANCELED EOWNERDEAD ENOTRECOVERABLE)
}

/// A case under way.
struct Running {
    index: usize,
    pid: i32,
    report: OwnedFd,
    started: Instant,
    dir: PathBuf,
}

struct Verdict {
    index: usize,
    kind: &'static str,
    reason: String,
    took: Duration,
}

/// Runs all cases, a few at a time, prints each verdict, and gives the exit status.
pub fn run(chosen: &[Selected], options: &Options) -> i32 {
    let base = options.dir.join(format!("syscall-tests-{}", std::process::id()));
    if let Err(e) = std::fs::create_dir_all(&base) {
        eprintln!("cannot make the work directory {}: {e}", base.display());
        return 2;
    }
    let limit = Duration::from_secs(options.timeout_s);
    let mut next = 0;
    let mut running: Vec<Running> = Vec::new();
    let mut counts = [0usize; 3];
    while next < chosen.len() || !running.is_empty() {
        while next < chosen.len() && running.len() < options.jobs {
            match start(chosen, next, &base) {
                Ok(case) => running.push(case),
                Err(reason) => {
                    let took = Duration::ZERO;
                    print(chosen, options, &Verdict { index: next, kind: "fail", reason, took }, &mut counts);
                }
            }
            next += 1;
        }
        let mut i = 0;
        let mut moved = false;
        while i < running.len() {
            match finished(&running[i], limit) {
                Some(verdict) => {
                    let case = running.swap_remove(i);
                    let _ = std::fs::remove_dir_all(&case.dir);
                    print(chosen, options, &verdict, &mut counts);
                    moved = true;
                }
                None => i += 1,
            }
        }
        if !moved {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    let _ = std::fs::remove_dir_all(&base);
    let [passed, failed, skipped] = counts;
    if options.json {
        println!("{{\"passed\":{passed},\"failed\":{failed},\"skipped\":{skipped}}}");
    } else {
        println!("{passed} passed, {failed} failed, {skipped} skipped");
    }
    i32::from(failed > 0)
}

/// Forks the child of one case.
fn start(chosen: &[Selected], index: usize, base: &std::path::Path) -> Result<Running, String> {
    let dir = base.join(format!("c{index}"));
    std::fs::create_dir(&dir).map_err(|e| format!("cannot make {}: {e}", dir.display()))?;
    let mut ends = [0; 2];
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(format!("the runner's pipe2: {}", errno_name(errno())));
    }
    let (report, out) = unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) };
    let _ = std::io::stdout().flush();
    match unsafe { libc::fork() } {
        -1 => Err(format!("the runner's fork: {}", errno_name(errno()))),
        0 => {
            drop(report);
            child(&chosen[index], &dir, out)
        }
        pid => Ok(Running { index, pid, report, started: Instant::now(), dir }),
    }
}

/// The child's side: a clean state, then the case, then its reason through the pipe.
fn child(selected: &Selected, dir: &std::path::Path, out: OwnedFd) -> ! {
    unsafe {
        libc::setsid();
        libc::umask(0o022);
        let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        libc::setrlimit(libc::RLIMIT_CORE, &raw const none);
        // Descriptor 100 keeps the low numbers as a case expects them: 0, 1, 2 and nothing else.
        let high = libc::fcntl(out.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 100);
        drop(out);
        // What the runner holds for the cases beside this one.
        libc::syscall(libc::SYS_close_range, 3, 99, 0);
        let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
        if null > 0 {
            libc::dup2(null, 0);
            libc::close(null);
        }
        // Rust ignores SIGPIPE at start; a case expects the default.
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        let mut report = std::fs::File::from_raw_fd(high);
        let outcome = match std::env::set_current_dir(dir) {
            Ok(()) => (selected.case.run)(),
            Err(e) => Err(format!("cannot enter {}: {e}", dir.display())),
        };
        let code = match outcome {
            Ok(()) => 0,
            Err(reason) => {
                let _ = report.write_all(reason.as_bytes());
                1
            }
        };
        libc::_exit(code)
    }
}

/// The verdict of a case when its child has ended or its time is over.
fn finished(case: &Running, limit: Duration) -> Option<Verdict> {
    let took = case.started.elapsed();
    let mut status = 0;
    let done = unsafe { libc::waitpid(case.pid, &raw mut status, libc::WNOHANG) };
    if done == 0 {
        if took < limit {
            return None;
        }
        unsafe {
            libc::kill(-case.pid, libc::SIGKILL);
            libc::kill(case.pid, libc::SIGKILL);
            libc::waitpid(case.pid, &raw mut status, 0);
        }
        let reason = format!("no end within {} s", limit.as_secs());
        return Some(Verdict { index: case.index, kind: "fail", reason, took });
    }
    // What the case left behind in its session must not outlive it.
    unsafe { libc::kill(-case.pid, libc::SIGKILL) };
    let mut text = String::new();
    unsafe { libc::fcntl(case.report.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
    let mut buf = [0u8; 4096];
    let mut report =
        std::mem::ManuallyDrop::new(unsafe { std::fs::File::from_raw_fd(case.report.as_raw_fd()) });
    while let Ok(n @ 1..) = report.read(&mut buf) {
        text.push_str(&String::from_utf8_lossy(&buf[..n]));
    }
    let (kind, reason) = if done < 0 {
        ("fail", format!("the runner's waitpid: {}", errno_name(errno())))
    } else if libc::WIFSIGNALED(status) {
        ("fail", format!("killed by signal {} {text}", libc::WTERMSIG(status)))
    } else if libc::WEXITSTATUS(status) == 0 {
        ("ok", String::new())
    } else if let Some(why) = text.strip_prefix(SKIP) {
        ("skip", why.to_string())
    } else if text.is_empty() {
        ("fail", format!("exit status {} without a reason", libc::WEXITSTATUS(status)))
    } else {
        ("fail", text)
    };
    Some(Verdict { index: case.index, kind, reason, took })
}

fn print(chosen: &[Selected], options: &Options, v: &Verdict, counts: &mut [usize; 3]) {
    let slot = match v.kind {
        "ok" => 0,
        "fail" => 1,
        _ => 2,
    };
    counts[slot] += 1;
    let name = &chosen[v.index].name;
    let ms = v.took.as_millis();
    let line = if options.json {
        let reason = json_escape(&v.reason);
        format!("{{\"case\":\"{name}\",\"verdict\":\"{}\",\"ms\":{ms},\"reason\":\"{reason}\"}}", v.kind)
    } else if v.reason.is_empty() {
        format!("{:4} {name}", v.kind)
    } else {
        format!("{:4} {name}: {}", v.kind, v.reason)
    };
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}");
    let _ = out.flush();
}

fn json_escape(s: &str) -> String {
    let mut out = String::with_capacity(s.len());
    for c in s.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            c if (c as u32) < 0x20 => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out
}
