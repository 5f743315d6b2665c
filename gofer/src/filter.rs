//! The host system calls that a serving thread may make.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Width, SeccompCmpOp as Op, SeccompCondition as Cond,
    SeccompFilter, SeccompRule, TargetArch,
};

/// Calls that are allowed whatever their arguments: none takes a path outside of the `*at` family, whose paths end
/// in the jail, and none makes a process, a socket or a mount.
const ALLOWED: &[libc::c_long] = &[
    // The session.
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    // Files.
    libc::SYS_openat2,
    libc::SYS_statx,
    libc::SYS_fstatfs,
    libc::SYS_getdents64,
    libc::SYS_lseek,
    libc::SYS_readlinkat,
    libc::SYS_mkdirat,
    libc::SYS_symlinkat,
    libc::SYS_renameat2,
    libc::SYS_linkat,
    libc::SYS_unlinkat,
    libc::SYS_fchmod,
    SYS_FCHMODAT2,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_ftruncate,
    libc::SYS_syncfs,
    libc::SYS_fgetxattr,
    libc::SYS_flistxattr,
    libc::SYS_fsetxattr,
    libc::SYS_fremovexattr,
    libc::SYS_close,
    // The allocator, locks, messages on standard error, the end.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_getrandom,
    libc::SYS_clock_gettime,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigaction,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_tgkill,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

const SYS_FCHMODAT2: libc::c_long = 452;

/// Applies the filter to every thread of the process; a call outside of it kills the process, which ends the sandbox.
pub(crate) fn install_for_all() -> Result<(), seccompiler::Error> {
    seccompiler::apply_filter_all_threads(&program()?)
}

fn program() -> Result<BpfProgram, seccompiler::Error> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = ALLOWED.iter().map(|nr| (*nr, Vec::new())).collect();
    let when = |arg: u8, op: Op, value: u64| -> Result<Vec<SeccompRule>, seccompiler::Error> {
        Ok(vec![SeccompRule::new(vec![Cond::new(arg, Width::Dword, op, value)?])?])
    };
    let word = |flag: libc::c_int| u64::from(flag.cast_unsigned());
    // Memory that runs code is never made.
    rules.insert(libc::SYS_mmap, when(2, Op::MaskedEq(word(libc::PROT_EXEC)), 0)?);
    rules.insert(libc::SYS_mprotect, when(2, Op::MaskedEq(word(libc::PROT_EXEC)), 0)?);
    let mut fcntl = Vec::new();
    for command in [libc::F_DUPFD_CLOEXEC, libc::F_GETFL, libc::F_SETFL, libc::F_GETFD] {
        fcntl.extend(when(1, Op::Eq, word(command))?);
    }
    rules.insert(libc::SYS_fcntl, fcntl);
    // No device node is made: FIFOs, socket names and marks of removed files, which have the number of no device.
    let mut mknod = Vec::new();
    for kind in [libc::S_IFIFO, libc::S_IFSOCK, libc::S_IFCHR] {
        let of_kind = Op::MaskedEq(u64::from(libc::S_IFMT));
        let conditions = vec![
            Cond::new(2, Width::Dword, of_kind, u64::from(kind))?,
            Cond::new(3, Width::Dword, Op::Eq, 0)?,
        ];
        mknod.push(SeccompRule::new(conditions)?);
    }
    rules.insert(libc::SYS_mknodat, mknod);
    let filter =
        SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, TargetArch::x86_64)?;
    Ok(filter.try_into()?)
}
