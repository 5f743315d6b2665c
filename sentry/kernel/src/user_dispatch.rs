//! Syscall user dispatch: a thread's system calls from outside a range of its code become SIGSYS
//! (`prctl(PR_SET_SYSCALL_USER_DISPATCH)`, `kernel/entry/syscall_user_dispatch.c`).

use abi::seccomp::AUDIT_ARCH_X86_64;
use abi::signal::{SYS_USER_DISPATCH, SigInfo, sig};
use sentry_memory::UserMemory;

use crate::Current;

/// What a thread has asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UserDispatch {
    /// Calls from here are never caught.
    pub start: u64,
    pub len: u64,
    /// The address of a byte that says whether calls are caught now; 0 for always.
    pub selector: u64,
}

/// Values of the selector (`SYSCALL_DISPATCH_FILTER_ALLOW`, `_BLOCK`).
const ALLOW: u8 = 0;
const BLOCK: u8 = 1;

/// Whether the call that the task has just made is caught, and its signal sent.
pub(crate) fn catches(cx: &mut Current) -> bool {
    let Some(wanted) = cx.user_dispatch else { return false };
    if cx.regs.rip.wrapping_sub(wanted.start) < wanted.len {
        return false;
    }
    if wanted.selector != 0 {
        let mut selector = [0];
        if cx.task.copy_in(wanted.selector, &mut selector).is_err() {
            cx.task.force_fatal(sig::SEGV);
            return true;
        }
        match selector {
            [ALLOW] => return false,
            [BLOCK] => {}
            _ => {
                cx.task.force_fatal(sig::SYS);
                return true;
            }
        }
    }
    // As before the call.
    cx.regs.rax = cx.regs.orig_rax;
    let nr = i32::try_from(cx.regs.orig_rax & 0xffff_ffff).unwrap_or(-1);
    let mut info = SigInfo::seccomp(cx.regs.rip, nr, AUDIT_ARCH_X86_64, 0);
    info.code = SYS_USER_DISPATCH;
    cx.task.force_signal(info);
    true
}
