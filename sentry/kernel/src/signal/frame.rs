//! The x86-64 signal frame: written for a handler, read back by `rt_sigreturn` (`arch/x86/kernel/signal_64.c`).
//!
//! **Threat.** A frame that is read back is the application's: it may be forged. What could leave user mode's bounds
//! (segments, privileged flags, addresses outside user space, a malformed XSAVE image) is refused with SIGSEGV.

use abi::signal::{
    RtSigFrame, SA_ONSTACK, SA_RESTORER, SI_KERNEL, SS_AUTODISARM, SS_DISABLE, SS_ONSTACK, SigAction,
    SigContext, SigInfo, SigSet, StackT, UC_FP_XSTATE, UC_SIGCONTEXT_SS, UC_STRICT_RESTORE_SS, UContext, sig,
};
use platform::{FpuState, Regs};
use sentry_base::{Errno, Result};
use sentry_memory::UserMemory;
use zerocopy::{FromBytes, IntoBytes};

use crate::{Current, Stop};

/// Flags that user code may set: AC, RF, OF, DF, TF, SF, ZF, AF, PF, CF.
const USER_FLAGS: u64 = 0x0005_0dd5;
/// DF, RF, TF: clear when a handler starts.
const HANDLER_CLEARS: u64 = 0x0001_0500;
/// The 128 bytes below the stack pointer that the ABI lets a function use.
const RED_ZONE: u64 = 128;
/// The 64-bit user code segment.
const USER_CS: u16 = 0x33;
/// The user data segment.
const USER_SS: u16 = 0x2b;

/// Whether `sp` is on the alternate stack.
fn on_stack(stack: &StackT, sp: u64) -> bool {
    stack.flags & SS_AUTODISARM == 0 && sp > stack.sp && sp - stack.sp <= stack.size
}

/// The flags of the alternate stack as `sigaltstack` shows them.
fn stack_flags(stack: &StackT, sp: u64) -> i32 {
    let mode = stack.flags & SS_AUTODISARM;
    if stack.size == 0 {
        mode | SS_DISABLE
    } else if on_stack(stack, sp) {
        mode | SS_ONSTACK
    } else {
        mode
    }
}

/// Writes a frame and points the registers at the handler. An error leaves the registers as they were.
pub(super) fn push(
    cx: &mut Current,
    info: &SigInfo,
    action: &SigAction,
    mask: SigSet,
    stack: StackT,
) -> Result<()> {
    if action.flags & SA_RESTORER == 0 {
        return Err(Errno::EFAULT);
    }
    let regs = cx.regs;
    let nested = on_stack(&stack, regs.rsp);
    let use_alt = action.flags & SA_ONSTACK != 0 && stack.size != 0 && !nested;
    let mut sp = if use_alt { stack.sp.wrapping_add(stack.size) } else { regs.rsp.wrapping_sub(RED_ZONE) };
    let fpu = cx.context.fpu().map_err(|_| Errno::EFAULT)?;
    let fpstate = if fpu.0.is_empty() {
        0
    } else {
        sp = sp.wrapping_sub(fpu.0.len() as u64) & !63;
        sp
    };
    let at = (sp.wrapping_sub(size_of::<RtSigFrame>() as u64) & !15).wrapping_sub(8);
    if (use_alt || nested) && !on_stack(&StackT { flags: 0, ..stack }, at) {
        return Err(Errno::EFAULT);
    }
    let frame = RtSigFrame {
        pretcode: action.restorer,
        uc: UContext {
            flags: UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS | if fpstate == 0 { 0 } else { UC_FP_XSTATE },
            link: 0,
            stack: StackT { flags: stack_flags(&stack, regs.rsp), ..stack },
            mcontext: save(&regs, fpstate, mask, cx.last_fault),
            sigmask: mask,
        },
        info: *info,
    };
    if fpstate != 0 {
        cx.task.copy_out(fpstate, &fpu.0)?;
    }
    cx.task.copy_out(at, frame.as_bytes())?;
    if stack.flags & SS_AUTODISARM != 0 {
        cx.task.signals.lock().alt_stack = StackT { flags: SS_DISABLE, ..StackT::default() };
    }
    // A handler starts with the initial extended state.
    cx.context.set_fpu(&FpuState::default()).map_err(|_| Errno::EFAULT)?;
    let uc = at + core::mem::offset_of!(RtSigFrame, uc) as u64;
    let info_at = at + core::mem::offset_of!(RtSigFrame, info) as u64;
    cx.regs.rdi = u64::from(info.signo.cast_unsigned());
    cx.regs.rsi = info_at;
    cx.regs.rdx = uc;
    cx.regs.rax = 0;
    cx.regs.rip = action.handler;
    cx.regs.rsp = at;
    cx.regs.eflags &= !HANDLER_CLEARS;
    cx.regs.orig_rax = u64::MAX;
    Ok(())
}

/// What a fault leaves for `sigcontext`: trap number, error code, address.
#[derive(Debug, Clone, Copy, Default)]
pub struct FaultRecord {
    pub trapno: u64,
    pub err: u64,
    pub cr2: u64,
}

fn save(regs: &Regs, fpstate: u64, mask: SigSet, fault: FaultRecord) -> SigContext {
    SigContext {
        r8: regs.r8,
        r9: regs.r9,
        r10: regs.r10,
        r11: regs.r11,
        r12: regs.r12,
        r13: regs.r13,
        r14: regs.r14,
        r15: regs.r15,
        rdi: regs.rdi,
        rsi: regs.rsi,
        rbp: regs.rbp,
        rbx: regs.rbx,
        rdx: regs.rdx,
        rax: regs.rax,
        rcx: regs.rcx,
        rsp: regs.rsp,
        rip: regs.rip,
        eflags: regs.eflags,
        cs: USER_CS,
        gs: 0,
        fs: 0,
        ss: USER_SS,
        err: fault.err,
        trapno: fault.trapno,
        oldmask: mask.0,
        cr2: fault.cr2,
        fpstate,
        reserved: [0; 8],
    }
}

/// `rt_sigreturn(2)`: takes registers, mask and alternate stack back from the frame at the stack pointer.
pub async fn sigreturn(cx: &mut Current) -> Stop {
    cx.settle_state().await;
    // A call that waited to be gone on with when the handler began ends with EINTR (`restore_sigcontext`).
    cx.take_restart_block();
    if restore(cx).is_err() {
        cx.task.force_signal(SigInfo::kernel(sig::SEGV, SI_KERNEL));
    }
    Stop::RegistersSet
}

fn restore(cx: &mut Current) -> Result<()> {
    let at = cx.regs.rsp.wrapping_sub(8).wrapping_add(core::mem::offset_of!(RtSigFrame, uc) as u64);
    let mut bytes = [0_u8; size_of::<UContext>()];
    cx.task.copy_in(at, &mut bytes)?;
    let uc = UContext::read_from_bytes(&bytes).map_err(|_| Errno::EFAULT)?;
    cx.task.set_signal_mask(uc.sigmask);
    let saved = &uc.mcontext;
    if saved.cs != USER_CS || (uc.flags & UC_STRICT_RESTORE_SS != 0 && saved.ss != USER_SS) {
        return Err(Errno::EFAULT);
    }
    // Any address may be gone to: one that is not the application's faults there, as it does on Linux.
    let old = cx.regs;
    cx.regs = Regs {
        r15: saved.r15,
        r14: saved.r14,
        r13: saved.r13,
        r12: saved.r12,
        rbp: saved.rbp,
        rbx: saved.rbx,
        r11: saved.r11,
        r10: saved.r10,
        r9: saved.r9,
        r8: saved.r8,
        rax: saved.rax,
        rcx: saved.rcx,
        rdx: saved.rdx,
        rsi: saved.rsi,
        rdi: saved.rdi,
        orig_rax: u64::MAX,
        rip: saved.rip,
        cs: old.cs,
        eflags: (old.eflags & !USER_FLAGS) | (saved.eflags & USER_FLAGS),
        rsp: saved.rsp,
        ss: old.ss,
        fs_base: old.fs_base,
        gs_base: old.gs_base,
    };
    // After the registers, as on Linux: a handler of the SIGSEGV for a bad image sees where the frame led.
    let restored =
        read_fpu(cx, saved.fpstate).and_then(|fpu| cx.context.set_fpu(&fpu).map_err(|_| Errno::EFAULT));
    if let Err(errno) = restored {
        cx.context.set_fpu(&FpuState::default()).map_err(|_| Errno::EFAULT)?;
        return Err(errno);
    }
    // Linux ignores what is wrong with the stack, apart from memory that cannot be read.
    let _ = set_alt_stack(cx, uc.stack);
    Ok(())
}

/// Byte offsets in an XSAVE image (`struct _fpstate_64`).
mod xsave {
    pub const MXCSR: usize = 24;
    pub const MXCSR_MASK: usize = 28;
    /// `_fpx_sw_bytes`: magic, extended size, features, size.
    pub const SW_BYTES: usize = 464;
    /// `XSTATE_BV`, `XCOMP_BV` and reserved bytes.
    pub const HEADER: usize = 512;
    pub const LEGACY: usize = 512;
    pub const MAGIC1: u32 = 0x4650_5853;
}

fn u32_at(image: &[u8], at: usize) -> u32 {
    image.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_le_bytes(*b))
}

fn u64_at(image: &[u8], at: usize) -> u64 {
    image.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u64::from_le_bytes(*b))
}

fn put(image: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(slot) = image.get_mut(at..).and_then(|rest| rest.get_mut(..bytes.len())) {
        slot.copy_from_slice(bytes);
    }
}

/// Reads the extended state that a frame points at, cut to what the host's own image has.
fn read_fpu(cx: &mut Current, addr: u64) -> Result<FpuState> {
    if addr == 0 {
        return Ok(FpuState::default());
    }
    if !addr.is_multiple_of(64) {
        return Err(Errno::EFAULT);
    }
    // The host's image says how large one is and which features it has.
    let own = cx.context.fpu().map_err(|_| Errno::EFAULT)?.0;
    if own.len() < xsave::LEGACY {
        return Err(Errno::EFAULT);
    }
    let mut image = own.clone();
    let legacy = image.get_mut(..xsave::LEGACY).ok_or(Errno::EFAULT)?;
    cx.task.copy_in(addr, legacy)?;
    let extended = u32_at(&image, xsave::SW_BYTES) == xsave::MAGIC1
        && u32_at(&image, xsave::SW_BYTES + 4) as usize == own.len();
    if extended {
        let rest = image.get_mut(xsave::LEGACY..).ok_or(Errno::EFAULT)?;
        cx.task.copy_in(addr.wrapping_add(xsave::LEGACY as u64), rest)?;
    } else if let Some(rest) = image.get_mut(xsave::LEGACY..) {
        // Only the legacy part: x87 and SSE.
        rest.fill(0);
        put(&mut image, xsave::HEADER, &3_u64.to_le_bytes());
    }
    sanitize(&mut image, &own)?;
    Ok(FpuState(image))
}

/// Clears or refuses what XRSTOR would fault on.
fn sanitize(image: &mut [u8], own: &[u8]) -> Result<()> {
    let mask = match u32_at(own, xsave::MXCSR_MASK) {
        0 => 0xffbf,
        mask => mask,
    };
    let mxcsr = u32_at(image, xsave::MXCSR);
    if mxcsr & !mask != 0 {
        return Err(Errno::EFAULT);
    }
    put(image, xsave::MXCSR_MASK, &mask.to_le_bytes());
    // The description of the image is the host's.
    let sw_bytes = own.get(xsave::SW_BYTES..xsave::LEGACY).ok_or(Errno::EFAULT)?;
    put(image, xsave::SW_BYTES, sw_bytes);
    let features = u64_at(own, xsave::SW_BYTES + 8);
    let bv = u64_at(image, xsave::HEADER);
    if own.len() > xsave::LEGACY {
        put(image, xsave::HEADER, &(bv & features).to_le_bytes());
        // XCOMP_BV and the reserved bytes are zero in the standard format.
        put(image, xsave::HEADER + 8, &[0; 56]);
        // The closing magic is the host's too.
        let tail = own.len().saturating_sub(4);
        if let Some(magic) = own.get(tail..).filter(|_| tail >= xsave::HEADER + 64) {
            put(image, tail, magic);
        }
    }
    Ok(())
}

/// Takes bytes through the reader of a frame, for fuzzing: nothing may panic, and what is accepted is what a processor
/// takes.
pub fn fuzz(bytes: &[u8]) {
    if let Ok((uc, _)) = UContext::read_from_prefix(bytes) {
        let _ =
            (uc.mcontext.cs, stack_flags(&uc.stack, uc.mcontext.rsp), on_stack(&uc.stack, uc.mcontext.rsp));
    }
    // The host's image: x87, SSE and AVX, 832 bytes and the closing magic.
    let mut own = vec![0_u8; 836];
    put(&mut own, xsave::MXCSR_MASK, &0x0002_ffff_u32.to_le_bytes());
    put(&mut own, xsave::SW_BYTES, &xsave::MAGIC1.to_le_bytes());
    put(&mut own, xsave::SW_BYTES + 8, &7_u64.to_le_bytes());
    let mut image = bytes.to_vec();
    image.resize(own.len(), 0);
    if sanitize(&mut image, &own).is_ok() {
        assert_eq!(u64_at(&image, xsave::HEADER) & !7, 0, "a component that the host does not have");
        assert_eq!(u64_at(&image, xsave::HEADER + 8), 0, "a compacted image");
        assert_eq!(u32_at(&image, xsave::MXCSR) & !0x0002_ffff, 0, "reserved bits of MXCSR");
    }
    // Whatever it says of its own length, and an image cut short.
    let _ = sanitize(&mut bytes.to_vec(), &own);
}

/// Sets the alternate stack (`sigaltstack(2)`).
pub fn set_alt_stack(cx: &Current, stack: StackT) -> Result<()> {
    let mut own = cx.task.signals.lock();
    if on_stack(&own.alt_stack, cx.regs.rsp) {
        return Err(Errno::EPERM);
    }
    let mode = stack.flags & !SS_AUTODISARM;
    if mode != SS_DISABLE && mode != SS_ONSTACK && mode != 0 {
        return Err(Errno::EINVAL);
    }
    own.alt_stack = if mode == SS_DISABLE {
        StackT { flags: stack.flags, ..StackT::default() }
    } else {
        if stack.size < abi::signal::MINSIGSTKSZ {
            return Err(Errno::ENOMEM);
        }
        StackT { flags: stack.flags & SS_AUTODISARM, pad: 0, ..stack }
    };
    Ok(())
}

/// The alternate stack as `sigaltstack(2)` shows it.
pub fn alt_stack(cx: &Current) -> StackT {
    let stack = cx.task.signals.lock().alt_stack;
    StackT { flags: stack_flags(&stack, cx.regs.rsp), pad: 0, ..stack }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forged_images_are_cut_to_the_hosts() {
        let mut own = vec![0_u8; 836];
        put(&mut own, xsave::MXCSR_MASK, &0x0000_ffff_u32.to_le_bytes());
        put(&mut own, xsave::SW_BYTES, &xsave::MAGIC1.to_le_bytes());
        put(&mut own, xsave::SW_BYTES + 8, &7_u64.to_le_bytes());
        let mut forged = vec![0xff_u8; 836];
        put(&mut forged, xsave::MXCSR, &0x1f80_u32.to_le_bytes());
        sanitize(&mut forged, &own).unwrap();
        assert_eq!(u64_at(&forged, xsave::HEADER), 7);
        assert_eq!(u64_at(&forged, xsave::HEADER + 8), 0);
        assert_eq!(u64_at(&forged, xsave::SW_BYTES + 8), 7);
        put(&mut forged, xsave::MXCSR, &0xffff_0000_u32.to_le_bytes());
        assert_eq!(sanitize(&mut forged, &own), Err(Errno::EFAULT));
    }

    #[test]
    fn alternate_stack_bounds() {
        let stack = StackT { sp: 0x1000, flags: 0, pad: 0, size: 0x2000 };
        assert!(!on_stack(&stack, 0x1000));
        assert!(on_stack(&stack, 0x3000));
        assert!(!on_stack(&stack, 0x3001));
        assert_eq!(stack_flags(&stack, 0x2000), SS_ONSTACK);
    }
}
