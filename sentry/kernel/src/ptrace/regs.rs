//! `struct user_regs_struct`: a tracee's registers as its tracer sees and sets them (`arch/x86/kernel/ptrace.c`).
//!
//! **Threat.** What a tracer sets goes into a processor later. Segments, privileged flags and bases outside user space
//! are refused or masked here, as Linux does, and once more by the platform.

use platform::Regs;
use sentry_base::{Errno, Result};

use crate::{Current, Restart};

/// Registers in `struct user_regs_struct`.
pub const NR_USER_REGS: usize = 27;
/// Bytes of `struct user_regs_struct`.
pub const USER_REGS_SIZE: usize = NR_USER_REGS * 8;

/// `FLAG_MASK` of the kernel: flags that a tracer may set.
const TRACER_FLAGS: u64 = 0x0005_4dd5;
/// End of the addresses of a process on x86-64 with four-level page tables.
const TASK_SIZE_MAX: u64 = 0x7fff_ffff_f000;

/// A register that cannot have the value which a tracer wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RegsError {
    /// There is no such register.
    #[error("no register {0} in the user area")]
    Unknown(usize),
    /// A segment register or a base may not be set to this.
    #[error("register {0} may not be {1:#x}")]
    Refused(usize, u64),
}

impl From<RegsError> for Errno {
    fn from(_: RegsError) -> Self {
        Self::EIO
    }
}

const EFLAGS: usize = 18;
const CS: usize = 17;
const SS: usize = 20;
const FS_BASE: usize = 21;
const GS_BASE: usize = 22;
/// `ds`, `es`, `fs`, `gs`: always zero in 64-bit programs here.
const OTHER_SEGMENTS: core::ops::Range<usize> = 23..27;

/// A general register by its place in `struct user_regs_struct`.
fn slot(regs: &mut Regs, index: usize) -> Option<&mut u64> {
    Some(match index {
        0 => &mut regs.r15,
        1 => &mut regs.r14,
        2 => &mut regs.r13,
        3 => &mut regs.r12,
        4 => &mut regs.rbp,
        5 => &mut regs.rbx,
        6 => &mut regs.r11,
        7 => &mut regs.r10,
        8 => &mut regs.r9,
        9 => &mut regs.r8,
        10 => &mut regs.rax,
        11 => &mut regs.rcx,
        12 => &mut regs.rdx,
        13 => &mut regs.rsi,
        14 => &mut regs.rdi,
        15 => &mut regs.orig_rax,
        16 => &mut regs.rip,
        CS => &mut regs.cs,
        EFLAGS => &mut regs.eflags,
        19 => &mut regs.rsp,
        SS => &mut regs.ss,
        FS_BASE => &mut regs.fs_base,
        GS_BASE => &mut regs.gs_base,
        _ => return None,
    })
}

/// The value of a register.
pub(super) fn get(regs: &Regs, index: usize) -> Result<u64, RegsError> {
    if OTHER_SEGMENTS.contains(&index) {
        return Ok(0);
    }
    let mut copy = *regs;
    slot(&mut copy, index).map(|value| *value).ok_or(RegsError::Unknown(index))
}

/// Sets a register, as `putreg` allows.
pub(super) fn set(regs: &mut Regs, index: usize, value: u64) -> Result<(), RegsError> {
    let refused = Err(RegsError::Refused(index, value));
    let user_selector = value & 3 == 3;
    match index {
        CS | SS => {
            // Any selector of user space is accepted; there is but one that runs 64-bit code, and one for its data.
            return if user_selector && value <= 0xffff { Ok(()) } else { refused };
        }
        _ if OTHER_SEGMENTS.contains(&index) => {
            return if (user_selector || value == 0) && value <= 0xffff { Ok(()) } else { refused };
        }
        FS_BASE | GS_BASE if value >= TASK_SIZE_MAX => return refused,
        EFLAGS => {
            regs.eflags = (regs.eflags & !TRACER_FLAGS) | (value & TRACER_FLAGS);
            return Ok(());
        }
        _ => {}
    }
    *slot(regs, index).ok_or(RegsError::Unknown(index))? = value;
    Ok(())
}

/// `ERESTARTSYS` and its kin, as a tracer sees them in `rax`.
const CODES: [(Restart, i64); 4] =
    [(Restart::Sys, -512), (Restart::NoIntr, -513), (Restart::NoHand, -514), (Restart::Block, -516)];

/// Shows an interrupted call in the registers, as Linux keeps it.
pub(super) fn show_restart(cx: &mut Current) {
    let Some(restart) = cx.restart.take() else { return };
    let code = CODES.iter().find(|(r, _)| *r == restart).map_or(-512, |(_, code)| *code);
    cx.regs.rax = code.cast_unsigned();
    cx.regs.orig_rax = cx.syscall_nr;
}

/// The inverse: whatever a tracer has made of the registers says whether a call goes on.
pub(super) fn take_restart(cx: &mut Current) {
    let nr = (cx.regs.orig_rax & 0xffff_ffff) as u32;
    if nr.cast_signed() < 0 {
        return;
    }
    let rax = cx.regs.rax.cast_signed();
    if let Some((restart, _)) = CODES.iter().find(|(_, code)| *code == rax) {
        cx.restart = Some(*restart);
        cx.syscall_nr = u64::from(nr);
        cx.regs.rax = Errno::EINTR.to_rax();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_tracer_sets_is_sanitised() {
        let mut regs = Regs { cs: 0x33, ss: 0x2b, eflags: 0x202, ..Regs::default() };
        assert_eq!(set(&mut regs, CS, 0x10), Err(RegsError::Refused(CS, 0x10)));
        assert_eq!(set(&mut regs, CS, 0), Err(RegsError::Refused(CS, 0)));
        assert_eq!(set(&mut regs, CS, 0x2b), Ok(()));
        assert_eq!(regs.cs, 0x33);
        assert!(set(&mut regs, FS_BASE, 1 << 63).is_err());
        assert!(set(&mut regs, GS_BASE, TASK_SIZE_MAX).is_err());
        // IOPL, IF and VM stay as they were.
        set(&mut regs, EFLAGS, u64::MAX).unwrap();
        assert_eq!(regs.eflags, 0x202 | TRACER_FLAGS);
        assert_eq!(set(&mut regs, 27, 0), Err(RegsError::Unknown(27)));
        for index in 0..NR_USER_REGS {
            assert!(get(&regs, index).is_ok());
        }
    }
}
