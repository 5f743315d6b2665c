//! Starting one of our own processes in new namespaces (`clone(2)`, `execveat(2)`).
//!
//! The child waits, before it executes anything, until its parent has written its identity maps and put it into
//! its control group. Between `clone3` and `execveat` it makes raw system calls alone: no allocation, no lock.

use std::ffi::{CStr, CString};
use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// The namespaces of a fully confined process: user, mount, pid, network, IPC, UTS and control group.
pub const ALL_NAMESPACES: u64 = (libc::CLONE_NEWUSER
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP) as u64;

/// What to start.
#[derive(Debug)]
pub struct Command<'a> {
    /// The program, opened with `O_PATH` or as a memfd.
    pub program: BorrowedFd<'a>,
    pub arguments: Vec<CString>,
    pub environment: Vec<CString>,
    /// A set of `CLONE_NEW*` flags.
    pub namespaces: u64,
    /// These become descriptors 0, 1, 2 ... of the child, and there are no others.
    pub descriptors: &'a [BorrowedFd<'a>],
    /// Whether the child becomes user and group 0 (of its user namespace) without supplementary groups.
    pub become_root: bool,
    /// Whether the child lives on when the thread that started it ends.
    pub outlives: bool,
}

/// A process that waits for [`Child::release`]. Dropped before that, it exits without having run anything.
#[derive(Debug)]
pub struct Child {
    pub pid: u32,
    pub pidfd: OwnedFd,
    gate: Option<std::io::PipeWriter>,
}

#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
}

/// Descriptors are moved above this before the child arranges them, so that no move overwrites one.
const HIGH_FD: RawFd = 200;

impl Command<'_> {
    /// Starts the process. Call it while this process has one thread. The child is killed when that thread ends, unless it
    /// is to outlive it.
    pub fn start(&self) -> io::Result<Child> {
        let (gate_reader, gate_writer) = std::io::pipe()?;
        let gate = raise(gate_reader.as_raw_fd())?;
        let program = raise(self.program.as_raw_fd())?;
        let mut high = Vec::new();
        for fd in self.descriptors {
            high.push(raise(fd.as_raw_fd())?);
        }
        let mut plan = Vec::new();
        for (to, from) in high.iter().enumerate() {
            plan.push((from.as_raw_fd(), RawFd::try_from(to).unwrap_or(RawFd::MAX)));
        }
        let argv = pointers(&self.arguments);
        let envp = pointers(&self.environment);
        let mut pidfd: RawFd = -1;
        let args = CloneArgs {
            flags: self.namespaces | libc::CLONE_PIDFD as u64,
            pidfd: (&raw mut pidfd) as u64,
            exit_signal: libc::SIGCHLD as u64,
            ..CloneArgs::default()
        };
        let size = size_of::<CloneArgs>();
        // SAFETY: without CLONE_VM this is fork: the child continues on its own copy of this stack, and below makes
        // only async-signal-safe calls. `pidfd` is writable.
        let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size) };
        if pid < 0 {
            return Err(io::Error::last_os_error());
        }
        if pid == 0 {
            // Its own copy of the writing end would keep the child waiting for ever if we were killed now. It is closed
            // before any descriptor is moved, for a move may take its number.
            // SAFETY: integers only.
            let _ = unsafe { libc::close(gate_writer.as_raw_fd()) };
            let step = child(gate.as_raw_fd(), program.as_raw_fd(), &plan, self, &argv, &envp);
            complain(step);
            // SAFETY: ends the child; nothing is touched.
            unsafe { libc::_exit(127) };
        }
        // SAFETY: the kernel has just made the descriptor for us alone.
        let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
        Ok(Child { pid: u32::try_from(pid).unwrap_or(0), pidfd, gate: Some(gate_writer) })
    }
}

impl Child {
    /// Maps user and group 0 of the child's user namespace to `uid` and `gid` of ours.
    ///
    /// A caller without `CAP_SETUID` may map its own identity alone; the kernel then wants `setgroups` refused.
    pub fn map_root_to(&self, uid: u32, gid: u32, privileged: bool) -> io::Result<()> {
        if !privileged {
            fs::write(format!("/proc/{}/setgroups", self.pid), "deny")?;
        }
        fs::write(format!("/proc/{}/gid_map", self.pid), format!("0 {gid} 1\n"))?;
        fs::write(format!("/proc/{}/uid_map", self.pid), format!("0 {uid} 1\n"))
    }

    /// Writes identity maps of several ranges: lines of `inside outside count` (`user_namespaces(7)`).
    pub fn write_maps(&self, uid_map: &str, gid_map: &str) -> io::Result<()> {
        fs::write(format!("/proc/{}/gid_map", self.pid), gid_map)?;
        fs::write(format!("/proc/{}/uid_map", self.pid), uid_map)
    }

    /// Lets the child execute its program.
    pub fn release(&mut self) -> io::Result<()> {
        match self.gate.take() {
            Some(mut gate) => gate.write_all(&[1]),
            None => Ok(()),
        }
    }
}

fn raise(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: integers only.
    let high = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, HIGH_FD) };
    if high < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made the descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(high) })
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|s| s.as_ptr()).chain(std::iter::once(std::ptr::null())).collect()
}

/// The child's part. Returns only when a step failed, with that step's name.
fn child(
    gate: RawFd,
    program: RawFd,
    plan: &[(RawFd, RawFd)],
    command: &Command<'_>,
    argv: &[*const libc::c_char],
    envp: &[*const libc::c_char],
) -> &'static CStr {
    for (from, to) in plan {
        // SAFETY: integers only.
        if unsafe { libc::dup2(*from, *to) } < 0 {
            return c"dup2";
        }
    }
    let mut byte = 0_u8;
    // SAFETY: `byte` is writable.
    if unsafe { libc::read(gate, (&raw mut byte).cast(), 1) } != 1 {
        // The parent is gone or gave up: there is nobody to complain to.
        // SAFETY: ends the child; nothing is touched.
        unsafe { libc::_exit(0) };
    }
    if command.become_root {
        // Refused where the parent had to write "deny" for the kernel to accept its group map.
        // SAFETY: a list of no groups. The raw call: the C library's own would address other threads.
        let _ = unsafe { libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<u32>()) };
        // SAFETY: integers only.
        if unsafe { libc::syscall(libc::SYS_setresgid, 0, 0, 0) } != 0 {
            return c"setresgid";
        }
        // SAFETY: integers only.
        if unsafe { libc::syscall(libc::SYS_setresuid, 0, 0, 0) } != 0 {
            return c"setresuid";
        }
    }
    // A session of its own keeps the terminal's Ctrl-C and Ctrl-Z from reaching the child directly.
    // SAFETY: no argument.
    let _ = unsafe { libc::setsid() };
    // SAFETY: integers only.
    if !command.outlives && unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) } != 0 {
        return c"prctl(PR_SET_PDEATHSIG)";
    }
    let first_unwanted = u32::try_from(plan.len()).unwrap_or(u32::MAX);
    // SAFETY: integers only; the program's own descriptor stays usable until the exec.
    let closed =
        unsafe { libc::syscall(libc::SYS_close_range, first_unwanted, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if closed != 0 {
        return c"close_range";
    }
    // SAFETY: the empty path with AT_EMPTY_PATH names the descriptor; both arrays end with null.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program,
            c"".as_ptr(),
            argv.as_ptr(),
            envp.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    c"execveat"
}

/// Writes "start: STEP failed with errno N" to descriptor 2.
fn complain(step: &CStr) {
    let errno = io::Error::last_os_error().raw_os_error().unwrap_or(0).unsigned_abs();
    let mut digits = [b'0'; 4];
    let mut rest = errno;
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    let parts: [&[u8]; 5] = [b"start: ", step.to_bytes(), b" failed with errno ", &digits, b"\n"];
    for part in parts {
        // SAFETY: `part` is readable for its length.
        let _ = unsafe { libc::write(2, part.as_ptr().cast(), part.len()) };
    }
}
