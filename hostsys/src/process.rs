//! Processes: descriptors for them, signals to them, waiting for them, and properties of the calling one.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::check;

/// Why a child ended (`waitid(2)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It called exit with this status.
    Code(i32),
    /// It was ended by this signal.
    Signal(i32),
}

/// A descriptor for process `pid` (`pidfd_open(2)`).
pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: no memory is passed.
    let fd = check(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    // SAFETY: the kernel has just made this descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// A copy of descriptor `fd` of the process behind `pidfd` (`pidfd_getfd(2)`).
pub fn pidfd_getfd(pidfd: BorrowedFd<'_>, fd: i32) -> io::Result<OwnedFd> {
    // SAFETY: no memory is passed.
    let fd = check(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), fd, 0) })?;
    // SAFETY: the kernel has just made this descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Sends `signal` to the process behind `pidfd` (`pidfd_send_signal(2)`).
pub fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: a null siginfo is allowed; no memory is passed.
    check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, 0usize, 0) })?;
    Ok(())
}

/// Sends `signal` to process `pid` (`kill(2)`).
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::syscall(libc::SYS_kill, pid, signal) })?;
    Ok(())
}

/// Sends `signal` to thread `tid` of process `pid` (`tgkill(2)`).
pub fn tgkill(pid: i32, tid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, signal) })?;
    Ok(())
}

/// Waits for any child to end (`waitid(2)`), and leaves it a zombie unless `reap`. With `quiet_only`, children whose
/// exit signal is not `SIGCHLD` alone (`__WCLONE`). `ECHILD` when there is none.
pub fn wait_any(quiet_only: bool, reap: bool) -> io::Result<(i32, Exit)> {
    wait(libc::P_ALL, 0, quiet_only, reap)
}

/// Waits for child `pid` under the rules of [`wait_any`].
pub fn wait_pid(pid: i32, quiet_only: bool, reap: bool) -> io::Result<Exit> {
    wait(libc::P_PID, pid as u32, quiet_only, reap).map(|(_, exit)| exit)
}

/// Whether child `pid` (of either kind) has ended; leaves it a zombie. `EAGAIN` while it runs.
pub fn has_ended(pid: i32) -> io::Result<Exit> {
    match wait_with(libc::P_PID, pid as u32, libc::WEXITED | libc::WNOWAIT | libc::WNOHANG | libc::__WALL)? {
        (0, _) => Err(io::Error::from_raw_os_error(libc::EAGAIN)),
        (_, exit) => Ok(exit),
    }
}

fn wait(kind: libc::idtype_t, id: u32, quiet_only: bool, reap: bool) -> io::Result<(i32, Exit)> {
    let mut options = libc::WEXITED;
    if quiet_only {
        options |= libc::__WCLONE;
    }
    if !reap {
        options |= libc::WNOWAIT;
    }
    wait_with(kind, id, options)
}

fn wait_with(kind: libc::idtype_t, id: u32, options: i32) -> io::Result<(i32, Exit)> {
    // SAFETY: all-zero is a valid siginfo_t.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes the one siginfo_t that is passed.
    check(unsafe { libc::syscall(libc::SYS_waitid, kind, id, &raw mut info, options, 0usize) })?;
    // SAFETY: waitid fills the fields of a SIGCHLD.
    let pid = unsafe { info.si_pid() };
    // SAFETY: waitid fills the fields of a SIGCHLD.
    let status = unsafe { info.si_status() };
    let exit = if info.si_code == libc::CLD_EXITED { Exit::Code(status) } else { Exit::Signal(status) };
    Ok((pid, exit))
}

/// `prctl(2)` with numbers for arguments.
///
/// # Safety
/// The operation may not write memory or change how Rust code runs (`PR_SET_SECCOMP` apart).
pub unsafe fn prctl(operation: i32, arguments: [u64; 4]) -> io::Result<i64> {
    let [a, b, c, d] = arguments;
    // SAFETY: the caller vouches for the operation.
    check(unsafe { libc::syscall(libc::SYS_prctl, operation, a, b, c, d) })
}

/// Bars the calling thread and its children from gaining privileges by exec (`PR_SET_NO_NEW_PRIVS`).
pub fn set_no_new_privs() -> io::Result<()> {
    // SAFETY: the operation touches no memory.
    unsafe { prctl(libc::PR_SET_NO_NEW_PRIVS, [1, 0, 0, 0]) }.map(drop)
}

/// Lets, or bars, processes of the same user from reading this one's memory (`PR_SET_DUMPABLE`).
pub fn set_dumpable(dumpable: bool) -> io::Result<()> {
    // SAFETY: the operation touches no memory.
    unsafe { prctl(libc::PR_SET_DUMPABLE, [u64::from(dumpable), 0, 0, 0]) }.map(drop)
}

/// Has `signal` sent to the calling process when the thread that made it ends (`PR_SET_PDEATHSIG`).
pub fn set_parent_death_signal(signal: i32) -> io::Result<()> {
    // SAFETY: the operation touches no memory.
    unsafe { prctl(libc::PR_SET_PDEATHSIG, [signal as u64, 0, 0, 0]) }.map(drop)
}

/// Names the calling thread; 15 bytes are kept (`PR_SET_NAME`).
pub fn set_name(name: &CStr) -> io::Result<()> {
    // SAFETY: the kernel reads a C string that lives through the call.
    unsafe { prctl(libc::PR_SET_NAME, [name.as_ptr() as u64, 0, 0, 0]) }.map(drop)
}

/// Gives up every capability of the calling thread: effective, permitted, inheritable and ambient (`capset(2)`).
pub fn drop_capabilities() -> io::Result<()> {
    const VERSION_3: u32 = 0x2008_0522;
    let header = [VERSION_3, 0];
    let none = [0u32; 6];
    // SAFETY: the operation touches no memory. The ambient set may be absent: emptying it is then no loss.
    let _ = unsafe { prctl(libc::PR_CAP_AMBIENT, [libc::PR_CAP_AMBIENT_CLEAR_ALL as u64, 0, 0, 0]) };
    // SAFETY: the kernel reads the header and the two sets (and would write a version into the header only if it
    // refused ours, for which the const-ness is cast away on a local).
    check(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) })?;
    Ok(())
}

/// Closes descriptors `first..=last` (`close_range(2)`).
///
/// # Safety
/// No live owner may be left for any of them.
pub unsafe fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: the caller says that nobody owns these.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) })?;
    Ok(())
}

/// The CPUs that the calling thread may run on; at least one (`sched_getaffinity(2)`).
pub fn nr_cpus() -> usize {
    let mut set = [0u64; 128];
    // SAFETY: the kernel writes at most the size that is passed.
    let written = unsafe {
        libc::syscall(libc::SYS_sched_getaffinity, 0, std::mem::size_of_val(&set), set.as_mut_ptr())
    };
    if written <= 0 {
        return 1;
    }
    set.iter().map(|word| word.count_ones() as usize).sum::<usize>().max(1)
}
