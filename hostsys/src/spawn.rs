//! Starts a program in new namespaces with exactly the descriptors that it is given (`clone3(2)`, `execveat(2)`).
//!
//! The child waits until its identity maps are written, puts its descriptors at 0, 1, 2, …, closes every other
//! one, and executes. A failure before `execveat` has succeeded is reported to the caller with the step's name.

use std::ffi::CString;
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::ptr;

use crate::fd;

/// What to start.
#[derive(Debug)]
pub struct Spawn<'a> {
    /// The program, opened by the caller.
    pub exe: BorrowedFd<'a>,
    /// Arguments, the program's name first.
    pub args: Vec<CString>,
    /// The environment as `NAME=value`.
    pub env: Vec<CString>,
    /// Descriptors of the child, from 0 on.
    pub fds: Vec<BorrowedFd<'a>>,
    /// `CLONE_NEW*` flags.
    pub namespaces: libc::c_int,
}

/// A started child. Dropping it neither kills nor reaps the child.
#[derive(Debug)]
pub struct Child {
    pub pid: libc::pid_t,
    pub pidfd: OwnedFd,
}

impl Child {
    /// Kills the child; one that is gone already is no error (`pidfd_send_signal(2)`).
    pub fn kill(&self) -> io::Result<()> {
        // SAFETY: no pointer but the null siginfo is passed.
        let rc = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.pidfd.as_raw_fd(),
                libc::SIGKILL,
                ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        match fd::check(rc) {
            Err(error) if error.raw_os_error() != Some(libc::ESRCH) => Err(error),
            _ => Ok(()),
        }
    }

    /// Waits for the child's end and returns its wait status (`waitpid(2)`).
    pub fn wait(&self) -> io::Result<libc::c_int> {
        let mut status = 0;
        loop {
            // SAFETY: `status` is writable for the call.
            let rc = unsafe { libc::waitpid(self.pid, &raw mut status, 0) };
            match fd::check(rc.into()) {
                Ok(_) => return Ok(status),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Everything that the child needs after the clone, laid out before it: the child may only make system calls.
struct Plan {
    sources: Vec<OwnedFd>,
    exe: OwnedFd,
    sync: OwnedFd,
    argv: Vec<*const libc::c_char>,
    envp: Vec<*const libc::c_char>,
}

/// Copies of descriptors are made from here on, so that placing them at 0, 1, 2, … overwrites none.
const FIRST_COPY: RawFd = 64;

impl Spawn<'_> {
    /// Starts the child. On return it has executed the program.
    pub fn start(&self) -> io::Result<Child> {
        let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
            strings.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect()
        };
        let (mut ours, theirs) = UnixStream::pair()?;
        let first = FIRST_COPY.max(RawFd::try_from(self.fds.len() + 2).unwrap_or(RawFd::MAX));
        let plan = Plan {
            sources: self
                .fds
                .iter()
                .map(|source| fd::duplicate_from(*source, first))
                .collect::<io::Result<_>>()?,
            exe: fd::duplicate_from(self.exe, first)?,
            sync: fd::duplicate_from(theirs.as_fd(), first)?,
            argv: pointers(&self.args),
            envp: pointers(&self.env),
        };
        drop(theirs);

        let mut pidfd: libc::c_int = -1;
        let args = CloneArgs {
            flags: u64::from(self.namespaces.cast_unsigned())
                | u64::from(libc::CLONE_PIDFD.cast_unsigned()),
            pidfd: (&raw mut pidfd).addr() as u64,
            exit_signal: libc::SIGCHLD as u64,
            ..CloneArgs::default()
        };
        // SAFETY: `args` has the size that is passed; without CLONE_VM the child has its own copy of all memory,
        // and it runs nothing but `run_child`, which only makes system calls.
        let rc = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) };
        let pid = fd::check(rc)?;
        if pid == 0 {
            run_child(&plan);
        }
        drop(plan);
        // SAFETY: the kernel has just stored a new descriptor here, which nobody else owns.
        let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
        let child = Child { pid: libc::pid_t::try_from(pid).map_err(io::Error::other)?, pidfd };
        match self.release(&child, &mut ours) {
            Ok(()) => Ok(child),
            Err(error) => {
                child.kill()?;
                child.wait()?;
                Err(error)
            }
        }
    }

    /// Writes the child's identity maps, lets it run, and reads how its start went.
    fn release(&self, child: &Child, sync: &mut UnixStream) -> io::Result<()> {
        if self.namespaces & libc::CLONE_NEWUSER != 0 {
            write_id_maps(child.pid)?;
        }
        sync.write_all(&[1])?;
        let mut report = Vec::new();
        sync.read_to_end(&mut report)?;
        let Some((step, errno)) = report.split_first_chunk::<4>() else { return Ok(()) };
        let errno = errno.first_chunk::<4>().map_or(libc::EIO, |e| i32::from_ne_bytes(*e));
        let step = match u32::from_ne_bytes(*step) {
            STEP_FDS => "place its descriptors",
            _ => "execute the program",
        };
        let cause = io::Error::from_raw_os_error(errno);
        Err(io::Error::new(cause.kind(), format!("the child could not {step}: {cause}")))
    }
}

/// Maps every identity of this user namespace onto itself, or, without the right to, the caller alone as root
/// (`user_namespaces(7)`).
fn write_id_maps(pid: libc::pid_t) -> io::Result<()> {
    let named = |what: &str, error: io::Error| {
        io::Error::new(error.kind(), format!("cannot write {what} of the child: {error}"))
    };
    // SAFETY: geteuid has no preconditions.
    let uid = unsafe { libc::geteuid() };
    // SAFETY: getegid has no preconditions.
    let gid = unsafe { libc::getegid() };
    let (uids, gids) = if uid == 0 {
        (identity_map("/proc/self/uid_map")?, identity_map("/proc/self/gid_map")?)
    } else {
        fs::write(format!("/proc/{pid}/setgroups"), "deny").map_err(|e| named("setgroups", e))?;
        (format!("0 {uid} 1\n"), format!("0 {gid} 1\n"))
    };
    fs::write(format!("/proc/{pid}/uid_map"), uids).map_err(|e| named("uid_map", e))?;
    fs::write(format!("/proc/{pid}/gid_map"), gids).map_err(|e| named("gid_map", e))
}

fn identity_map(of: &str) -> io::Result<String> {
    let mut map = String::new();
    for line in fs::read_to_string(of)?.lines() {
        let mut words = line.split_ascii_whitespace();
        if let (Some(inside), _, Some(count)) = (words.next(), words.next(), words.next()) {
            map.push_str(&format!("{inside} {inside} {count}\n"));
        }
    }
    Ok(map)
}

/// `struct clone_args` (`include/uapi/linux/sched.h`), its first version.
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

const STEP_FDS: u32 = 1;
const STEP_EXEC: u32 = 2;

/// The child's life up to `execveat`. Makes system calls and nothing else.
fn run_child(plan: &Plan) -> ! {
    let sync = plan.sync.as_raw_fd();
    let mut go = 0_u8;
    loop {
        // SAFETY: `go` is one writable byte.
        let n = unsafe { libc::read(sync, (&raw mut go).cast(), 1) };
        if n == 1 {
            break;
        }
        if n == 0 || last_errno() != libc::EINTR {
            // The caller is gone or has given up.
            give_up();
        }
    }

    let mut next: RawFd = 0;
    for source in &plan.sources {
        place(sync, source.as_raw_fd(), next, 0);
        next += 1;
    }
    place(sync, sync, next, libc::O_CLOEXEC);
    let sync = next;
    place(sync, plan.exe.as_raw_fd(), next + 1, libc::O_CLOEXEC);
    let exe = next + 1;
    // SAFETY: close_range takes no pointer; descriptors above `exe` are used by nobody from here on.
    let rc = unsafe { libc::syscall(libc::SYS_close_range, exe + 1, libc::c_uint::MAX, 0) };
    if rc != 0 {
        report(sync, STEP_FDS);
    }

    let none = 0_u64;
    // SAFETY: `none` is an empty kernel signal set of 8 bytes.
    let _ = unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const none,
            ptr::null_mut::<u64>(),
            size_of::<u64>(),
        )
    };
    // SAFETY: both vectors end with a null pointer, and the strings that they point to live as long as `plan`.
    let _ = unsafe {
        libc::syscall(
            libc::SYS_execveat,
            exe,
            c"".as_ptr(),
            plan.argv.as_ptr(),
            plan.envp.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    report(sync, STEP_EXEC)
}

fn place(sync: RawFd, from: RawFd, to: RawFd, flags: libc::c_int) {
    // SAFETY: `to` is either free or one of the caller's copies, of which this process has its own table.
    if unsafe { libc::dup3(from, to, flags) } < 0 {
        report(sync, STEP_FDS);
    }
}

fn report(sync: RawFd, step: u32) -> ! {
    let words = [step, last_errno().cast_unsigned()];
    // SAFETY: `words` is readable for its eight bytes.
    let _ = unsafe { libc::write(sync, words.as_ptr().cast(), size_of_val(&words)) };
    give_up()
}

fn give_up() -> ! {
    // SAFETY: _exit runs no destructor of the copied process.
    unsafe { libc::_exit(127) }
}

fn last_errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn the_child_has_its_descriptors_and_no_others() {
        let exe = File::open("/bin/sh").unwrap();
        let null = File::open("/dev/null").unwrap();
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let script = "for f in 0 1 2 3 4 5 6 7 8 9; do [ -e /proc/self/fd/$f ] && printf '%s ' $f; done; exit 3";
        let spawn = Spawn {
            exe: exe.as_fd(),
            args: vec![c"sh".into(), c"-c".into(), CString::new(script).unwrap()],
            env: vec![c"PATH=/bin".into()],
            fds: vec![null.as_fd(), theirs.as_fd(), null.as_fd()],
            namespaces: 0,
        };
        let child = spawn.start().unwrap();
        drop(theirs);
        let mut seen = String::new();
        ours.read_to_string(&mut seen).unwrap();
        assert_eq!(libc::WEXITSTATUS(child.wait().unwrap()), 3);
        assert_eq!(seen, "0 1 2 ");
    }

    #[test]
    fn a_failed_exec_names_its_step() {
        let exe = File::open("/dev/null").unwrap();
        let spawn = Spawn {
            exe: exe.as_fd(),
            args: vec![c"none".into()],
            env: Vec::new(),
            fds: Vec::new(),
            namespaces: 0,
        };
        let error = spawn.start().unwrap_err();
        assert!(error.to_string().contains("execute the program"), "{error}");
    }
}
