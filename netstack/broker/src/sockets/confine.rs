//! What the broker gives up, and the calls that it may make.

use std::collections::BTreeMap;

use hostsys::credentials::{self, Limit};
use hostsys::{process, signals};
use rustix::thread::{CapabilitySet, CapabilitySets};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition as Condition,
    SeccompFilter, SeccompRule as Rule, TargetArch,
};

use super::{BIND_SERVICE, Grant, RAW};

/// Descriptors that relays may need.
const MAX_FILES: u64 = 1 << 20;

/// Calls with any arguments. Each socket that it makes is of an Internet family, or joins it to the sandbox.
const CALLS: &[i64] = &[
    libc::SYS_bind,
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_close,
    libc::SYS_connect,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_wait,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_futex,
    libc::SYS_getpeername,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_gettid,
    libc::SYS_ioctl,
    libc::SYS_listen,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_recvmsg,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sendmsg,
    libc::SYS_setsockopt,
    libc::SYS_sigaltstack,
    libc::SYS_write,
];

/// Calls in certain forms: the argument and the values that it may have.
const FORMS: &[(i64, u8, &[u64])] = &[
    (libc::SYS_newfstatat, 3, &[libc::AT_EMPTY_PATH as u64]),
    (libc::SYS_socket, 0, &[libc::AF_INET as u64, libc::AF_INET6 as u64]),
    (libc::SYS_socketpair, 0, &[libc::AF_UNIX as u64]),
    (libc::SYS_tgkill, 2, &[libc::SIGABRT as u64]),
];

fn filter() -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<Rule>> = CALLS.iter().map(|number| (*number, Vec::new())).collect();
    for (number, argument, values) in FORMS {
        let mut forms = Vec::new();
        for value in *values {
            forms.push(Rule::new(vec![Condition::new(*argument, Len::Dword, Op::Eq, *value)?])?);
        }
        rules.insert(*number, forms);
    }
    let not_executable = Op::MaskedEq(libc::PROT_EXEC as u64);
    for number in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(
            number,
            vec![Rule::new(vec![Condition::new(2, Len::Dword, not_executable.clone(), 0)?])?],
        );
    }
    let filter = SeccompFilter::new(rules, SeccompAction::Trap, SeccompAction::Allow, TargetArch::x86_64)?;
    BpfProgram::try_from(filter)
}

/// Gives up everything but the two capabilities that sockets can need, as far as the sandbox' programs have them.
pub(super) fn enter(grant: &Grant) -> Result<(), String> {
    let failed = |what: &'static str| move |error: std::io::Error| format!("{what}: {error}");
    let _ = std::env::set_current_dir("/");
    process::set_no_new_privs().map_err(failed("prctl(PR_SET_NO_NEW_PRIVS)"))?;
    credentials::set_limit(Limit::CoreSize, 0).map_err(failed("setrlimit(RLIMIT_CORE)"))?;
    credentials::set_limit(Limit::OpenFiles, MAX_FILES).map_err(failed("setrlimit(RLIMIT_NOFILE)"))?;
    signals::report_refused_calls().map_err(failed("sigaction(SIGSYS)"))?;
    let held = rustix::thread::capabilities(None).map_err(|error| failed("capget")(error.into()))?;
    let mut keep = CapabilitySet::empty();
    keep.set(CapabilitySet::NET_BIND_SERVICE, grant.has(BIND_SERVICE));
    keep.set(CapabilitySet::NET_RAW, grant.has(RAW) && grant.policy.is_none());
    let keep = keep & held.permitted;
    let sets = CapabilitySets { effective: keep, permitted: keep, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets).map_err(|error| failed("capset")(error.into()))?;
    let program = filter().map_err(|error| format!("building a seccomp filter: {error}"))?;
    seccompiler::apply_filter(&program).map_err(|error| format!("installing a seccomp filter: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filter_is_one() {
        assert!(!filter().unwrap().is_empty());
        for never in [libc::SYS_openat, libc::SYS_execve, libc::SYS_ptrace, libc::SYS_clone, libc::SYS_setns]
        {
            assert!(!CALLS.contains(&never));
        }
    }
}
