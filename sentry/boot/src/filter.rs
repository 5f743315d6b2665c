//! The host system calls that the Sentry may make: a table, and the seccomp filters made from it.
//!
//! One filter holds for every thread from [`Lock::close`] on: it has no call that opens, connects, binds, executes,
//! traces or mounts anything. Each thread then narrows itself to its role with [`enter_role`], which cannot be undone.
//! A call that is not listed is not made; `SIGSYS` names it and ends the process.

use std::collections::BTreeMap;

use platform_systrap::HostCall;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition as Condition,
    SeccompFilter, SeccompRule as Rule, TargetArch,
};

/// What a thread does, as far as its host calls go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Runs tasks, and serves the platform.
    Worker,
    /// Talks to the command, or relays a terminal.
    Control,
}

/// Calls that every thread may make with any arguments: memory, locks, time, its own end.
const COMMON: &[i64] = &[
    libc::SYS_brk,
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_madvise,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_read,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    libc::SYS_write,
];

/// Calls on descriptors that are open already, and to stubs.
const WORKER: &[i64] = &[
    libc::SYS_accept4,
    libc::SYS_copy_file_range,
    libc::SYS_dup,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_wait,
    libc::SYS_eventfd2,
    libc::SYS_fadvise64,
    libc::SYS_fallocate,
    libc::SYS_fdatasync,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_futex_waitv,
    libc::SYS_getsockopt,
    libc::SYS_lseek,
    libc::SYS_membarrier,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_readv,
    libc::SYS_shutdown,
    libc::SYS_sync_file_range,
    libc::SYS_waitid,
    libc::SYS_writev,
];

/// Calls of the main thread: commands connect to the socket that it listens on.
const CONTROL: &[i64] = &[libc::SYS_accept4];

/// One allowed form of a call: the argument and one value that it may have.
type Form = (i64, u8, u64);

/// Calls that are allowed in certain forms alone, in every thread.
const COMMON_FORMS: &[Form] = &[
    // Threads, never processes: the flags that the C library starts a thread with.
    (libc::SYS_clone, 0, THREAD_FLAGS),
    (libc::SYS_fcntl, 1, libc::F_GETFD as u64),
    (libc::SYS_fcntl, 1, libc::F_SETFD as u64),
    (libc::SYS_fcntl, 1, libc::F_GETFL as u64),
    (libc::SYS_fcntl, 1, libc::F_DUPFD_CLOEXEC as u64),
    // A file by its descriptor, not by a path; there is no path in an empty root either.
    (libc::SYS_newfstatat, 3, libc::AT_EMPTY_PATH as u64),
    (libc::SYS_statx, 2, libc::AT_EMPTY_PATH as u64),
    (libc::SYS_prctl, 0, libc::PR_SET_NAME as u64),
    // Memory is given back by whoever lets go of it last: at the end that is the thread that takes the kernel down.
    (libc::SYS_fallocate, 1, (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE) as u64),
    // A nudge to a stub, from any thread that sends a signal to its task.
    (libc::SYS_tgkill, 2, libc::SIGURG as u64),
    // `abort(3)`.
    (libc::SYS_tgkill, 2, libc::SIGABRT as u64),
];

const WORKER_FORMS: &[Form] = &[
    (libc::SYS_fcntl, 1, libc::F_SETFL as u64),
    // Attributes and sizes of a terminal that the caller gave as standard input, output or error.
    (libc::SYS_ioctl, 1, libc::TCGETS),
    (libc::SYS_ioctl, 1, libc::TCSETS),
    (libc::SYS_ioctl, 1, libc::TCFLSH),
    (libc::SYS_ioctl, 1, libc::TIOCGWINSZ),
    (libc::SYS_ioctl, 1, libc::FIONREAD),
];

/// `CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM | CLONE_SETTLS |
/// CLONE_PARENT_SETTID | CLONE_CHILD_CLEARTID`.
const THREAD_FLAGS: u64 = 0x003d_0f00;

#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    #[error("building a seccomp filter: {0}")]
    Build(#[from] seccompiler::BackendError),
    #[error("installing a seccomp filter: {0}")]
    Install(#[from] seccompiler::Error),
}

type Rules = BTreeMap<i64, Vec<Rule>>;

fn add_any(rules: &mut Rules, number: i64) {
    rules.insert(number, Vec::new());
}

fn add_form(rules: &mut Rules, (number, argument, value): Form) -> Result<(), FilterError> {
    // Every argument that is compared here is an int for the kernel, but for the flags of clone.
    let len = if number == libc::SYS_clone { Len::Qword } else { Len::Dword };
    let rule = Rule::new(vec![Condition::new(argument, len, Op::Eq, value)?])?;
    match rules.get_mut(&number) {
        // An empty list allows every form.
        Some(forms) if forms.is_empty() => {}
        Some(forms) => forms.push(rule),
        None => drop(rules.insert(number, vec![rule])),
    }
    Ok(())
}

/// An anonymous mapping, or one of an open file; never one that is executable.
fn add_mmap(rules: &mut Rules) -> Result<(), FilterError> {
    let not_executable = Op::MaskedEq(libc::PROT_EXEC as u64);
    let rule = Rule::new(vec![Condition::new(2, Len::Dword, not_executable, 0)?])?;
    rules.insert(libc::SYS_mmap, vec![rule]);
    Ok(())
}

/// Sends that do not connect on their way: a host socket leads where the broker has connected it.
fn add_sends(rules: &mut Rules) -> Result<(), FilterError> {
    for (number, flags) in [(libc::SYS_sendto, 3), (libc::SYS_sendmsg, 2)] {
        let not_opening = Op::MaskedEq(libc::MSG_FASTOPEN as u64);
        let rule = Rule::new(vec![Condition::new(flags, Len::Dword, not_opening, 0)?])?;
        rules.insert(number, vec![rule]);
    }
    Ok(())
}

fn rules_of(role: Role) -> Result<Rules, FilterError> {
    let mut rules = Rules::new();
    for number in COMMON {
        add_any(&mut rules, *number);
    }
    for form in COMMON_FORMS {
        add_form(&mut rules, *form)?;
    }
    add_mmap(&mut rules)?;
    add_sends(&mut rules)?;
    if role == Role::Control {
        for number in CONTROL {
            add_any(&mut rules, *number);
        }
    }
    if role == Role::Worker {
        for number in WORKER {
            add_any(&mut rules, *number);
        }
        for form in WORKER_FORMS {
            add_form(&mut rules, *form)?;
        }
        for HostCall { number, allowed } in platform_systrap::host_calls() {
            match allowed {
                None => add_any(&mut rules, number),
                Some((argument, values)) => {
                    for value in values {
                        add_form(&mut rules, (number, argument, *value))?;
                    }
                }
            }
        }
    }
    Ok(rules)
}

fn program(rules: Rules) -> Result<BpfProgram, FilterError> {
    let filter = SeccompFilter::new(rules, SeccompAction::Trap, SeccompAction::Allow, TargetArch::x86_64)?;
    Ok(BpfProgram::try_from(filter)?)
}

/// `clone3(2)` hides its flags from a filter. Told that it does not exist, the C library uses `clone(2)`.
fn no_clone3() -> Result<BpfProgram, FilterError> {
    let mut rules = Rules::new();
    add_any(&mut rules, libc::SYS_clone3);
    let absent = SeccompAction::Errno(libc::ENOSYS.cast_unsigned());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, absent, TargetArch::x86_64)?;
    Ok(BpfProgram::try_from(filter)?)
}

/// What holds every thread of the process, present and future, to the union of all roles.
pub struct Lock {
    no_clone3: BpfProgram,
    all: BpfProgram,
}

impl Lock {
    /// Compiles the filters.
    pub fn new() -> Result<Self, FilterError> {
        let mut rules = rules_of(Role::Worker)?;
        for number in CONTROL {
            add_any(&mut rules, *number);
        }
        // Each thread installs its own, narrower filter once.
        add_any(&mut rules, libc::SYS_seccomp);
        add_form(&mut rules, (libc::SYS_prctl, 0, libc::PR_SET_NO_NEW_PRIVS as u64))?;
        // The filter that answers instead of refusing must be asked too, and the weaker answer would lose: `clone3` is
        // allowed by the one and answered by the other.
        add_any(&mut rules, libc::SYS_clone3);
        Ok(Self { no_clone3: no_clone3()?, all: program(rules)? })
    }

    /// From here on it holds.
    pub fn close(self) -> Result<(), FilterError> {
        seccompiler::apply_filter_all_threads(&self.no_clone3)?;
        seccompiler::apply_filter_all_threads(&self.all)?;
        Ok(())
    }
}

/// Narrows the calling thread, for good.
pub fn enter_role(role: Role) -> Result<(), FilterError> {
    let mut rules = rules_of(role)?;
    add_any(&mut rules, libc::SYS_clone3);
    seccompiler::apply_filter(&program(rules)?)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_role_can_reach_out() {
        let never = [
            libc::SYS_open,
            libc::SYS_openat,
            libc::SYS_openat2,
            libc::SYS_creat,
            libc::SYS_socket,
            libc::SYS_connect,
            libc::SYS_bind,
            libc::SYS_listen,
            libc::SYS_setsockopt,
            libc::SYS_sendmmsg,
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_ptrace,
            libc::SYS_mount,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_rt_sigaction,
            libc::SYS_io_uring_setup,
            libc::SYS_bpf,
        ];
        for role in [Role::Worker, Role::Control] {
            let rules = rules_of(role).unwrap();
            for number in never {
                assert!(!rules.contains_key(&number), "{role:?} may call {number}");
            }
            assert!(program(rules).is_ok());
        }
        assert!(!rules_of(Role::Control).unwrap().contains_key(&libc::SYS_process_vm_writev));
    }
}
