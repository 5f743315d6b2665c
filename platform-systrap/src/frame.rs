//! Signal frames in a channel: the registers of a parked thread, read and edited where the kernel put them.
//!
//! The place of a frame comes from the application's memory, so it is checked against the slot's signal stack before
//! use; what it holds are the application's own registers, which the host kernel checks again when it restores them.

use std::sync::OnceLock;

use platform::{FpuState, Prot, Regs, SigInfo, SpaceError, TrapEvent, Untrusted};

use crate::channel::Window;
use crate::layout::{self, KICK, hand, ucontext, word};

/// A thread's channel as the Sentry sees it, and where the application sees it.
#[derive(Debug, Clone, Copy)]
pub struct Channel {
    pub window: Window,
    /// Address in the application.
    pub address: u64,
    /// Calls of patched code may come in: gs is the channel where the application leaves it at zero.
    pub takes_calls: bool,
}

/// An offset of a whole frame inside the signal stack of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameAt(usize);

impl FrameAt {
    /// Where a call of patched code has left its registers, without the extended state.
    pub const CALL: Self = Self(word::CALL_FRAME);
}

/// `FP_XSTATE_MAGIC1`, `FP_XSTATE_MAGIC2` of `<asm/sigcontext.h>`.
const MAGIC1: u32 = 0x4650_5853;
const MAGIC2: u32 = 0x4650_5845;
/// Offset of `struct _fpx_sw_bytes` in the FXSAVE area.
const SW_BYTES: usize = 464;
/// Legacy area and XSAVE header.
const XSAVE_MIN: usize = 576;

/// What this host's XSAVE images look like.
#[derive(Debug, Clone, Copy)]
pub struct Xsave {
    /// Bytes of the largest image.
    pub size: usize,
    /// Components that are enabled (XCR0).
    pub features: u64,
    /// Bits that MXCSR may have.
    pub mxcsr_mask: u32,
}

impl Xsave {
    pub fn host() -> Self {
        static HOST: OnceLock<Xsave> = OnceLock::new();
        *HOST.get_or_init(Self::probe)
    }

    fn probe() -> Self {
        #[repr(C, align(16))]
        struct Legacy([u8; 512]);
        let mut legacy = Legacy([0; 512]);
        // SAFETY: FXSAVE writes the 512 aligned bytes that are passed; every x86-64 processor has it.
        unsafe {
            core::arch::asm!("fxsave64 [{}]", in(reg) &raw mut legacy, options(nostack, preserves_flags));
        }
        let mask = legacy.0.get(28..32).and_then(|b| b.try_into().ok()).map_or(0, u32::from_ne_bytes);
        let leaf = core::arch::x86_64::__cpuid_count(0xd, 0);
        let (low, high): (u32, u32);
        // SAFETY: XGETBV of XCR0 is available where the kernel has enabled XSAVE, without which this platform does not
        // start (`Systrap::new` checks).
        unsafe {
            core::arch::asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags));
        }
        Self {
            size: leaf.ebx as usize,
            features: u64::from(low) | (u64::from(high) << 32),
            mxcsr_mask: if mask == 0 { 0xffbf } else { mask },
        }
    }

    /// The image of the initial state, as the host would write it.
    fn initial(&self) -> Vec<u8> {
        let mut image = vec![0; self.size + 4];
        let mut put = |at: usize, bytes: &[u8]| {
            if let Some(slot) = image.get_mut(at..at + bytes.len()) {
                slot.copy_from_slice(bytes);
            }
        };
        put(0, &0x37f_u16.to_ne_bytes());
        put(24, &0x1f80_u32.to_ne_bytes());
        put(28, &self.mxcsr_mask.to_ne_bytes());
        put(SW_BYTES, &MAGIC1.to_ne_bytes());
        put(SW_BYTES + 4, &(self.size as u32 + 4).to_ne_bytes());
        put(SW_BYTES + 8, &self.features.to_ne_bytes());
        put(SW_BYTES + 16, &(self.size as u32).to_ne_bytes());
        put(self.size, &MAGIC2.to_ne_bytes());
        image
    }

    /// Makes what XSAVE has stored an image as a signal frame has it.
    pub fn complete(&self, image: &mut [u8]) {
        let mut put = |at: usize, bytes: &[u8]| {
            if let Some(slot) = image.get_mut(at..at + bytes.len()) {
                slot.copy_from_slice(bytes);
            }
        };
        put(SW_BYTES, &[0; 48]);
        put(SW_BYTES, &MAGIC1.to_ne_bytes());
        put(SW_BYTES + 4, &(self.size as u32 + 4).to_ne_bytes());
        put(SW_BYTES + 8, &self.features.to_ne_bytes());
        put(SW_BYTES + 16, &(self.size as u32).to_ne_bytes());
        put(self.size, &MAGIC2.to_ne_bytes());
    }

    /// Whether the host kernel would restore `image`: the checks of `copy_sigframe_from_user_to_xstate` and XRSTOR.
    fn accepts(&self, image: &[u8]) -> bool {
        let word32 =
            |at: usize| image.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_ne_bytes);
        let word64 =
            |at: usize| image.get(at..at + 8).and_then(|b| b.try_into().ok()).map(u64::from_ne_bytes);
        let size = image.len().saturating_sub(4);
        if size < XSAVE_MIN || size > self.size || !size.is_multiple_of(4) {
            return false;
        }
        let sw = (word32(SW_BYTES), word32(SW_BYTES + 4), word64(SW_BYTES + 8), word32(SW_BYTES + 16));
        let (Some(MAGIC1), Some(extended), Some(features), Some(inner)) = sw else { return false };
        let header = (word64(512), word64(520), word64(528));
        let (Some(used), Some(0), Some(0)) = header else { return false };
        let reserved_clear = (536..576).step_by(8).all(|at| word64(at) == Some(0));
        extended as usize == image.len()
            && inner as usize == size
            && word32(size) == Some(MAGIC2)
            && features & !self.features == 0
            && used & !features == 0
            && reserved_clear
            && word32(24).is_some_and(|mxcsr| mxcsr & !self.mxcsr_mask == 0)
    }
}

/// Signals that application threads leave unblocked: those of traps, and the kick.
fn blocked_signals() -> u64 {
    let trap = [libc::SIGSYS, libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP, KICK];
    trap.into_iter().fold(!0, |mask, signal| mask & !(1u64 << (signal - 1)))
}

/// Bits of RFLAGS that an application may set: `FIX_EFLAGS` of the kernel's signal return.
const USER_FLAGS: u64 = 0x5_0dd5;

/// The general registers in the order of a signal frame (`struct sigcontext`).
const GENERAL: [fn(&Regs) -> u64; 17] = [
    |regs| regs.r8,
    |regs| regs.r9,
    |regs| regs.r10,
    |regs| regs.r11,
    |regs| regs.r12,
    |regs| regs.r13,
    |regs| regs.r14,
    |regs| regs.r15,
    |regs| regs.rdi,
    |regs| regs.rsi,
    |regs| regs.rbp,
    |regs| regs.rbx,
    |regs| regs.rdx,
    |regs| regs.rax,
    |regs| regs.rcx,
    |regs| regs.rsp,
    |regs| regs.rip,
];

impl Channel {
    /// Where a frame that the Sentry makes stands: below the largest extended state.
    fn own_frame() -> FrameAt {
        let below = (word::STACK_END - Xsave::host().size - 4) & !63;
        FrameAt((below - ucontext::SIZE - ucontext::INFO_SIZE) & !15)
    }

    /// The frame of the current trap, where the channel says it is.
    pub fn frame(&self) -> Option<FrameAt> {
        let address = Untrusted::fetched(self.window.load64(word::CONTEXT));
        let start = self.address + word::STACK as u64;
        if address.any() == self.address + FrameAt::CALL.0 as u64 && self.takes_calls {
            return Some(FrameAt::CALL);
        }
        let last = self.address + (word::STACK_END - ucontext::SIZE - ucontext::INFO_SIZE) as u64;
        let address = address.check(|at| (start..=last).contains(at) && at.is_multiple_of(8))?;
        usize::try_from(address - self.address).ok().map(FrameAt)
    }

    /// A frame from which a thread starts afresh: initial extended state, empty registers.
    pub fn fresh_frame(&self) -> FrameAt {
        let at = Self::own_frame();
        self.empty_frame(at);
        self.window.store64(word::CONTEXT, self.address + at.0 as u64);
        at
    }

    fn empty_frame(&self, at: FrameAt) {
        for offset in (0..ucontext::SIZE).step_by(8) {
            self.window.store64(at.0 + offset, 0);
        }
        // UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS
        self.window.store64(at.0 + ucontext::FLAGS, 7);
        self.window.store64(at.0 + ucontext::STACK_POINTER, self.address + word::STACK as u64);
        self.window.store64(at.0 + ucontext::STACK_FLAGS, 0);
        self.window.store64(at.0 + ucontext::STACK_SIZE, (word::STACK_END - word::STACK) as u64);
        self.window.store64(at.0 + ucontext::SIGMASK, blocked_signals());
    }

    /// Prepares a channel for a new context.
    pub fn reset(&self) {
        self.window.store32(word::GIVEN_COUNT, 0);
        self.window.store32(word::RESIDENT, 0);
        self.window.store64(word::UNTOUCHED, 0);
        self.window.store64(word::DEFAULTED, 0);
        self.window.store64(hand::WHICH, 0);
        self.window.store32(word::KICKED, 0);
        self.window.store32(word::IN_CLOCK, 0);
        self.window.store32(word::TAKES_CALLS, u32::from(self.takes_calls));
        if self.takes_calls {
            self.empty_frame(FrameAt::CALL);
            self.window.store64(FrameAt::CALL.0 + ucontext::REGS + 18 * 8, 0x33 | (0x2b << 48));
            self.window.store32(FrameAt::CALL.0 + ucontext::INFO_ARCH, hostsys::seccomp::ARCH_X86_64);
        }
    }

    /// Has the stub store the extended state when it is set running, and nothing else.
    pub fn ask_to_save(&self) {
        let area = self.address + ((word::STACK_END - Xsave::host().size - 4) & !63) as u64;
        self.window.store64(word::SAVE_ADDRESS, area);
        self.window.store32(word::SAVE, 1);
    }

    /// The extended state that the stub has stored.
    pub fn saved_state(&self) -> FpuState {
        let host = Xsave::host();
        let mut image = vec![0; host.size + 4];
        self.window.read((word::STACK_END - host.size - 4) & !63, &mut image);
        host.complete(&mut image);
        FpuState(image)
    }

    pub fn read_regs(&self, frame: FrameAt) -> Regs {
        let at = frame.0 + ucontext::REGS;
        let g = |index: usize| self.window.load64(at + index * 8);
        let segments = g(18);
        Regs {
            r8: g(0),
            r9: g(1),
            r10: g(2),
            r11: g(3),
            r12: g(4),
            r13: g(5),
            r14: g(6),
            r15: g(7),
            rdi: g(8),
            rsi: g(9),
            rbp: g(10),
            rbx: g(11),
            rdx: g(12),
            rax: g(13),
            rcx: g(14),
            rsp: g(15),
            rip: g(16),
            eflags: g(17),
            cs: segments & 0xffff,
            ss: segments >> 48,
            orig_rax: u64::MAX,
            fs_base: self.window.load64(word::FS_BASE),
            gs_base: match self.window.load64(word::GS_BASE) {
                own if self.takes_calls && own == self.address => 0,
                base => base,
            },
        }
    }

    /// Puts registers into a frame. `known` are those that were read from it: what has not changed is there, and a store
    /// would take its cache line away from the stub.
    pub fn write_regs(&self, frame: FrameAt, regs: &Regs, known: Option<&Regs>) {
        let at = frame.0 + ucontext::REGS;
        let changed = |of: fn(&Regs) -> u64| known.is_none_or(|known| of(known) != of(regs));
        for (index, of) in GENERAL.iter().enumerate() {
            if changed(*of) {
                self.window.store64(at + index * 8, of(regs));
            }
        }
        if changed(|regs| regs.eflags) {
            self.window.store64(at + 17 * 8, (regs.eflags & USER_FLAGS) | 0x202);
        }
        if changed(|regs| regs.cs) || changed(|regs| regs.ss) {
            // The two code segments of user space and its one data segment (`__USER_CS`, `__USER32_CS`, `__USER_DS`).
            let cs = if regs.cs == 0x23 { 0x23 } else { 0x33 };
            self.window.store64(at + 18 * 8, cs | (0x2b << 48));
        }
        // A base that is not canonical would fault in the stub.
        let base = |value: u64| if value >> 47 == 0 { value } else { 0 };
        if changed(|regs| regs.fs_base) {
            self.window.store64(word::FS_BASE, base(regs.fs_base));
        }
        if changed(|regs| regs.gs_base) {
            let gs = match base(regs.gs_base) {
                0 if self.takes_calls => self.address,
                base => base,
            };
            self.window.store64(word::GS_BASE, gs);
        }
    }

    /// Whether the stub can go back to `regs` from a call of patched code by itself.
    pub fn leaves_call(regs: &Regs) -> bool {
        const TRAP_FLAG: u64 = 0x100;
        regs.eflags & TRAP_FLAG == 0 && regs.cs != 0x23 && regs.gs_base == 0
    }

    /// What happened, from the signal and its siginfo. Sets `orig_rax` at a system call.
    pub fn event(&self, frame: FrameAt, regs: &mut Regs) -> TrapEvent {
        let signal = Untrusted::fetched(self.window.load32(word::SIGNAL)).any() as i32;
        let code = self.window.load32(frame.0 + ucontext::INFO_CODE) as i32;
        let address = self.window.load64(frame.0 + ucontext::INFO_ADDRESS);
        const UNDELIVERED: i32 = layout::signal::UNDELIVERED as i32;
        match signal {
            UNDELIVERED => TrapEvent::Undelivered,
            libc::SIGSYS => {
                if self.window.load32(frame.0 + ucontext::INFO_ARCH) != hostsys::seccomp::ARCH_X86_64 {
                    // `int 0x80`: what a kernel without the 32-bit interface answers.
                    let signo = libc::SIGSEGV;
                    return TrapEvent::Exception(SigInfo { signo, code: libc::SI_KERNEL, addr: 0 });
                }
                regs.orig_rax = u64::from(self.window.load32(frame.0 + ucontext::INFO_SYSCALL));
                TrapEvent::Syscall
            }
            KICK => TrapEvent::Interrupted,
            libc::SIGSEGV if self.window.load64(frame.0 + ucontext::TRAP) == 14 => {
                let error = self.window.load64(frame.0 + ucontext::ERROR);
                let access = if error & 16 != 0 {
                    Prot::EXEC
                } else if error & 2 != 0 {
                    Prot::WRITE
                } else {
                    Prot::READ
                };
                TrapEvent::Fault { addr: address, access }
            }
            signo => TrapEvent::Exception(SigInfo { signo, code, addr: address }),
        }
    }

    /// The extended state of a frame.
    pub fn fpu(&self, frame: FrameAt) -> Result<FpuState, SpaceError> {
        let pointer = Untrusted::fetched(self.window.load64(frame.0 + ucontext::FPSTATE)).any();
        let host = Xsave::host();
        if pointer == 0 {
            return Ok(FpuState(host.initial()));
        }
        let bad = SpaceError::Host(libc::EFAULT);
        let start = self.address + word::STACK as u64;
        let at = Untrusted::fetched(pointer)
            .check(|at| (start..self.address + word::STACK_END as u64).contains(at) && at.is_multiple_of(64))
            .ok_or(bad)?;
        let at = usize::try_from(at - self.address).map_err(|_| bad)?;
        if at + SW_BYTES + 8 > word::STACK_END {
            return Err(bad);
        }
        let len = Untrusted::fetched(self.window.load32(at + SW_BYTES + 4))
            .check(|len| {
                let len = *len as usize;
                len >= XSAVE_MIN + 4 && len <= host.size + 4 && at + len <= word::STACK_END
            })
            .ok_or(bad)?;
        let mut image = vec![0; len as usize];
        self.window.read(at, &mut image);
        Ok(FpuState(image))
    }

    /// The frame, moved to where the Sentry makes frames.
    fn moved(&self, frame: FrameAt) -> FrameAt {
        let mut saved = [0; ucontext::SIZE];
        self.window.read(frame.0, &mut saved);
        let frame = Self::own_frame();
        self.window.write(frame.0, &saved);
        self.window.store64(word::CONTEXT, self.address + frame.0 as u64);
        frame
    }

    /// Puts an extended state into the frame; returns the frame, which moves if it stood in the way.
    pub fn set_fpu(&self, frame: FrameAt, state: &FpuState) -> Result<FrameAt, SpaceError> {
        let mut frame = frame;
        if state.0.is_empty() {
            if frame == FrameAt::CALL {
                frame = self.moved(frame);
            }
            self.window.store64(frame.0 + ucontext::FPSTATE, 0);
            return Ok(frame);
        }
        if !Xsave::host().accepts(&state.0) {
            return Err(SpaceError::Host(libc::EINVAL));
        }
        let at = (word::STACK_END - state.0.len()) & !63;
        if frame == FrameAt::CALL || frame.0 + ucontext::SIZE + ucontext::INFO_SIZE > at {
            frame = self.moved(frame);
        }
        self.window.write(at, &state.0);
        self.window.store64(frame.0 + ucontext::FPSTATE, self.address + at as u64);
        Ok(frame)
    }
}
