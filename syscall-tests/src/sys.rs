//! Small helpers that the cases share: descriptors, children, mappings, signal handlers.

use crate::harness::{Outcome, errno, errno_name};
use std::ffi::{CStr, CString};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

pub const PAGE: usize = 4096;

/// A C string for a path; no case uses a NUL inside one.
pub fn c(s: &str) -> CString {
    CString::new(s).expect("no NUL in a path")
}

fn last(call: &str) -> String {
    format!("{call} failed with {}", errno_name(errno()))
}

/// Takes ownership of a descriptor that a call has just returned.
pub fn own(fd: RawFd) -> OwnedFd {
    unsafe { OwnedFd::from_raw_fd(fd) }
}

pub fn open(path: &str, flags: i32) -> Result<OwnedFd, String> {
    let fd = unsafe { libc::open(c(path).as_ptr(), flags | libc::O_CLOEXEC, 0o644) };
    if fd < 0 { Err(last(&format!("open({path}, {flags:#o})"))) } else { Ok(own(fd)) }
}

/// Creates (or truncates) a file and opens it for reading and writing.
pub fn create(path: &str) -> Result<OwnedFd, String> {
    open(path, libc::O_CREAT | libc::O_TRUNC | libc::O_RDWR)
}

pub fn put(path: &str, data: &[u8]) -> Outcome {
    std::fs::write(path, data).map_err(|e| format!("write file {path}: {e}"))
}

pub fn slurp(path: &str) -> Result<String, String> {
    let bytes = std::fs::read(path).map_err(|e| format!("read file {path}: {e}"))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A pipe: (read end, write end).
pub fn pipe() -> Result<(OwnedFd, OwnedFd), String> {
    pipe2(libc::O_CLOEXEC)
}

pub fn pipe2(flags: i32) -> Result<(OwnedFd, OwnedFd), String> {
    let mut fds = [0; 2];
    if unsafe { libc::pipe2(fds.as_mut_ptr(), flags) } != 0 {
        return Err(last("pipe2"));
    }
    Ok((own(fds[0]), own(fds[1])))
}

pub fn socketpair(kind: i32) -> Result<(OwnedFd, OwnedFd), String> {
    let mut fds = [0; 2];
    if unsafe { libc::socketpair(libc::AF_UNIX, kind | libc::SOCK_CLOEXEC, 0, fds.as_mut_ptr()) } != 0 {
        return Err(last("socketpair"));
    }
    Ok((own(fds[0]), own(fds[1])))
}

pub fn fd_write(fd: &OwnedFd, data: &[u8]) -> Result<usize, String> {
    let n = unsafe { libc::write(fd.as_raw_fd(), data.as_ptr().cast(), data.len()) };
    usize::try_from(n).map_err(|_| last("write"))
}

/// One `read` of at most `max` bytes.
pub fn fd_read(fd: &OwnedFd, max: usize) -> Result<Vec<u8>, String> {
    let mut buf = vec![0u8; max];
    let n = unsafe { libc::read(fd.as_raw_fd(), buf.as_mut_ptr().cast(), max) };
    let n = usize::try_from(n).map_err(|_| last("read"))?;
    buf.truncate(n);
    Ok(buf)
}

pub fn nonblock(fd: &OwnedFd) -> Outcome {
    let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
    if flags < 0 || unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) } < 0 {
        return Err(last("fcntl(O_NONBLOCK)"));
    }
    Ok(())
}

pub fn fstat(fd: &OwnedFd) -> Result<libc::stat, String> {
    let mut st = unsafe { std::mem::zeroed() };
    if unsafe { libc::fstat(fd.as_raw_fd(), &raw mut st) } != 0 {
        return Err(last("fstat"));
    }
    Ok(st)
}

pub fn stat(path: &str) -> Result<libc::stat, String> {
    let mut st = unsafe { std::mem::zeroed() };
    if unsafe { libc::stat(c(path).as_ptr(), &raw mut st) } != 0 {
        return Err(last(&format!("stat({path})")));
    }
    Ok(st)
}

pub fn lstat(path: &str) -> Result<libc::stat, String> {
    let mut st = unsafe { std::mem::zeroed() };
    if unsafe { libc::lstat(c(path).as_ptr(), &raw mut st) } != 0 {
        return Err(last(&format!("lstat({path})")));
    }
    Ok(st)
}

/// A forked child that runs a closure and reports what the closure found wrong.
#[derive(Debug)]
pub struct Kid {
    pub pid: i32,
    report: OwnedFd,
}

/// Forks a child for `f`; it ends with 0 when `f` is content, else with 1 and a reason for [`Kid::ok`].
pub fn fork(f: impl FnOnce() -> Outcome) -> Result<Kid, String> {
    let (report, out) = pipe()?;
    match unsafe { libc::fork() } {
        -1 => Err(last("fork")),
        0 => {
            drop(report);
            let high = unsafe { libc::fcntl(out.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 90) };
            drop(out);
            let code = match f() {
                Ok(()) => 0,
                Err(why) => {
                    let mut file = std::mem::ManuallyDrop::new(unsafe { std::fs::File::from_raw_fd(high) });
                    let _ = file.write_all(why.as_bytes());
                    1
                }
            };
            unsafe { libc::_exit(code) }
        }
        pid => Ok(Kid { pid, report }),
    }
}

impl Kid {
    /// Waits for the child's end and gives its raw wait status.
    pub fn status(&self) -> Result<i32, String> {
        wait_status(self.pid)
    }

    /// The child must end with 0.
    pub fn ok(self) -> Outcome {
        let status = self.status()?;
        if status == 0 {
            return Ok(());
        }
        let mut why = String::new();
        let _ = std::fs::File::from(self.report).read_to_string(&mut why);
        Err(format!("child ended with wait status {status:#x}: {why}"))
    }
}

pub fn wait_status(pid: i32) -> Result<i32, String> {
    let mut status = 0;
    loop {
        let got = unsafe { libc::waitpid(pid, &raw mut status, 0) };
        if got == pid {
            return Ok(status);
        }
        if errno() != libc::EINTR {
            return Err(last(&format!("waitpid({pid})")));
        }
    }
}

/// The wait status of a child that runs `f` and then ends with 0 unless `f` ends it otherwise.
pub fn status_of(f: impl FnOnce()) -> Result<i32, String> {
    fork(|| {
        f();
        Ok(())
    })?
    .status()
}

/// The child must be killed by `signal`.
pub fn dies_of(signal: i32, f: impl FnOnce()) -> Outcome {
    let status = status_of(f)?;
    if libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == signal {
        return Ok(());
    }
    Err(format!("wait status {status:#x}, expected death by signal {signal}"))
}

pub fn sleep_ms(ms: u64) {
    std::thread::sleep(Duration::from_millis(ms));
}

/// Polls `f` for up to ten seconds.
pub fn eventually(what: &str, mut f: impl FnMut() -> bool) -> Outcome {
    let end = Instant::now() + Duration::from_secs(10);
    while Instant::now() < end {
        if f() {
            return Ok(());
        }
        sleep_ms(2);
    }
    Err(format!("not within 10 s: {what}"))
}

/// A mapping that is unmapped when dropped.
#[derive(Debug)]
pub struct Map {
    pub ptr: *mut u8,
    pub len: usize,
}

impl Map {
    pub fn new(len: usize, prot: i32, flags: i32, fd: RawFd, off: i64) -> Result<Self, String> {
        let ptr = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, fd, off) };
        if ptr == libc::MAP_FAILED {
            return Err(last(&format!("mmap({len:#x}, {prot}, {flags:#x}, {fd}, {off})")));
        }
        Ok(Self { ptr: ptr.cast(), len })
    }

    /// Private anonymous memory, readable and writable.
    pub fn anon(len: usize) -> Result<Self, String> {
        Self::new(len, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
    }

    /// Shared anonymous memory, for words that parent and child both see.
    pub fn shared(len: usize) -> Result<Self, String> {
        Self::new(len, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1, 0)
    }

    /// One writable page followed by one that no access may touch.
    pub fn guarded() -> Result<Self, String> {
        let map = Self::anon(2 * PAGE)?;
        if unsafe { libc::mprotect(map.at(PAGE).cast(), PAGE, libc::PROT_NONE) } != 0 {
            return Err(last("mprotect"));
        }
        Ok(map)
    }

    pub fn at(&self, off: usize) -> *mut u8 {
        assert!(off <= self.len, "offset within the mapping");
        self.ptr.wrapping_add(off)
    }

    pub fn get(&self, off: usize) -> u8 {
        assert!(off < self.len, "offset within the mapping");
        unsafe { self.at(off).read_volatile() }
    }

    pub fn set(&self, off: usize, v: u8) {
        assert!(off < self.len, "offset within the mapping");
        unsafe { self.at(off).write_volatile(v) }
    }

    pub fn bytes(&self) -> &[u8] {
        unsafe { std::slice::from_raw_parts(self.ptr, self.len) }
    }

    /// The `i`-th word as an atomic, for use between processes and as a futex.
    pub fn word(&self, i: usize) -> &AtomicI32 {
        assert!(i * 4 + 4 <= self.len, "word within the mapping");
        unsafe { AtomicI32::from_ptr(self.ptr.add(i * 4).cast()) }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        unsafe { libc::munmap(self.ptr.cast(), self.len) };
    }
}

/// A signal handler as SA_SIGINFO wants it.
pub type Handler = extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void);

pub fn on_signal(sig: i32, handler: Handler, flags: i32) -> Outcome {
    on_signal_masking(sig, handler, flags, &[])
}

pub fn on_signal_masking(sig: i32, handler: Handler, flags: i32, mask: &[i32]) -> Outcome {
    let mut act: libc::sigaction = unsafe { std::mem::zeroed() };
    act.sa_sigaction = handler as usize;
    act.sa_flags = flags | libc::SA_SIGINFO;
    act.sa_mask = sigset(mask);
    if unsafe { libc::sigaction(sig, &raw const act, std::ptr::null_mut()) } != 0 {
        return Err(last(&format!("sigaction({sig})")));
    }
    Ok(())
}

pub fn sigset(signals: &[i32]) -> libc::sigset_t {
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for s in signals {
            libc::sigaddset(&raw mut set, *s);
        }
        set
    }
}

/// Changes the mask of the calling thread and gives the old one.
pub fn mask(how: i32, signals: &[i32]) -> Result<libc::sigset_t, String> {
    let set = sigset(signals);
    let mut old = sigset(&[]);
    if unsafe { libc::sigprocmask(how, &raw const set, &raw mut old) } != 0 {
        return Err(last("sigprocmask"));
    }
    Ok(old)
}

pub fn block(signals: &[i32]) -> Result<libc::sigset_t, String> {
    mask(libc::SIG_BLOCK, signals)
}

pub fn pending(sig: i32) -> Result<bool, String> {
    let mut set = sigset(&[]);
    if unsafe { libc::sigpending(&raw mut set) } != 0 {
        return Err(last("sigpending"));
    }
    Ok(unsafe { libc::sigismember(&raw const set, sig) } == 1)
}

/// Counts handler runs; [`count_handler`] adds one.
pub static HITS: AtomicUsize = AtomicUsize::new(0);

pub extern "C" fn count_handler(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    HITS.fetch_add(1, Ordering::SeqCst);
}

pub fn hits() -> usize {
    HITS.load(Ordering::SeqCst)
}

/// SIGALRM every `ms` milliseconds (0 stops it), so that a blocked call is surely interrupted in the end.
pub fn tick(ms: i64) -> Outcome {
    let step = libc::timeval { tv_sec: ms / 1000, tv_usec: (ms % 1000) * 1000 };
    let timer = libc::itimerval { it_interval: step, it_value: step };
    if unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut()) } != 0 {
        return Err(last("setitimer"));
    }
    Ok(())
}

pub fn ts(ms: i64) -> libc::timespec {
    libc::timespec { tv_sec: ms / 1000, tv_nsec: (ms % 1000) * 1_000_000 }
}

pub fn clock(id: i32) -> Result<i128, String> {
    let mut t = ts(0);
    if unsafe { libc::clock_gettime(id, &raw mut t) } != 0 {
        return Err(last(&format!("clock_gettime({id})")));
    }
    Ok(i128::from(t.tv_sec) * 1_000_000_000 + i128::from(t.tv_nsec))
}

pub fn gettid() -> i32 {
    unsafe { libc::syscall(libc::SYS_gettid) as i32 }
}

/// A raw system call that touches no libc state, for threads without a thread area of their own. Negative is -errno.
///
/// # Safety
/// As for the call that `nr` names.
pub unsafe fn raw(nr: i64, a: [usize; 6]) -> isize {
    let ret: isize;
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") nr as isize => ret,
            in("rdi") a[0], in("rsi") a[1], in("rdx") a[2], in("r10") a[3], in("r8") a[4], in("r9") a[5],
            lateout("rcx") _, lateout("r11") _, options(nostack)
        );
    }
    ret
}

/// The absolute path of this program, for cases that exec it again.
pub fn self_exe() -> Result<CString, String> {
    let arg0 = std::env::args().next().unwrap_or_default();
    let path = std::env::current_exe().ok().filter(|p| p.exists()).unwrap_or_else(|| arg0.into());
    Ok(c(&path.display().to_string()))
}

/// Runs `syscall-tests helper ARGS` after `before` in the child; gives its standard output and wait status.
pub fn helper(
    args: &[&str],
    env: &[&str],
    before: impl FnOnce() -> Outcome,
) -> Result<(String, i32), String> {
    let exe = self_exe()?;
    let mut argv = vec!["syscall-tests", "helper"];
    argv.extend(args);
    exec_capture(&exe, &argv, env, before)
}

/// Runs any program in a child; gives its standard output and wait status. A failed exec ends the child with 127.
pub fn exec_capture(
    exe: &CStr,
    argv: &[&str],
    env: &[&str],
    before: impl FnOnce() -> Outcome,
) -> Result<(String, i32), String> {
    let (rd, wr) = pipe()?;
    let args: Vec<CString> = argv.iter().map(|s| c(s)).collect();
    let envs: Vec<CString> = env.iter().map(|s| c(s)).collect();
    let kid = fork(|| {
        if unsafe { libc::dup2(wr.as_raw_fd(), 1) } < 0 {
            return Err(last("dup2"));
        }
        before()?;
        let mut argp: Vec<_> = args.iter().map(|s| s.as_ptr()).collect();
        argp.push(std::ptr::null());
        let mut envp: Vec<_> = envs.iter().map(|s| s.as_ptr()).collect();
        envp.push(std::ptr::null());
        unsafe { libc::execve(exe.as_ptr(), argp.as_ptr(), envp.as_ptr()) };
        eprintln!("{}", last("execve"));
        unsafe { libc::_exit(127) }
    })?;
    drop(wr);
    let mut out = String::new();
    std::fs::File::from(rd).read_to_string(&mut out).map_err(|e| format!("read the helper's output: {e}"))?;
    let status = kid.status()?;
    Ok((out, status))
}

/// Becomes an ordinary user, for permission cases.
pub fn drop_root() -> Outcome {
    unsafe {
        if libc::setgroups(0, std::ptr::null()) != 0 {
            return Err(last("setgroups"));
        }
        if libc::setresgid(1234, 1234, 1234) != 0 {
            return Err(last("setresgid"));
        }
        if libc::setresuid(1234, 1234, 1234) != 0 {
            return Err(last("setresuid"));
        }
    }
    Ok(())
}
