//! What a tracer does with a tracee that has stopped for it (`ptrace_request`, `kernel/ptrace.c`).

use core::sync::atomic::Ordering;
use std::sync::Arc;

use abi::signal::{SI_USER, SigInfo, SigSet, sig};
use platform::FpuState;
use sentry_base::{Errno, Result};
use sentry_vfs::cap;

use super::link::unlink;
use super::{NR_USER_REGS, Standing, StopRecord, USER_REGS_SIZE, mode, options, regs};
use crate::Task;
use crate::signal::{Origin, recalc};
use crate::task::work;

/// How a tracee goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Go {
    Cont,
    /// To the next begin or end of a system call.
    Calls,
    /// One instruction.
    Step,
    /// To the next system call, which is not made.
    Emulate,
    EmulateStep,
}

/// `struct ptrace_syscall_info`, by what the tracee stands at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyscallInfo {
    None,
    Entry { nr: u64, args: [u64; 6] },
    Exit { value: i64 },
    Seccomp { nr: u64, args: [u64; 6], data: u32 },
}

/// A tracee of the caller.
#[derive(Debug)]
pub struct Tracee {
    task: Arc<Task>,
}

/// The legacy part of an XSAVE image, which `PTRACE_GETFPREGS` shows.
const FXSAVE: usize = 512;
/// Software-defined bytes of that part.
const SW_BYTES: core::ops::Range<usize> = 464..512;
/// Where a signal frame's image keeps the mask of its components, inside [`SW_BYTES`].
const FRAME_FEATURES: core::ops::Range<usize> = 472..480;
/// Where `PTRACE_GETREGSET` has that mask.
const REGSET_FEATURES: core::ops::Range<usize> = 464..472;
/// The bitmap of components in use, behind the legacy part.
const HEADER: core::ops::Range<usize> = 512..520;
const MXCSR: core::ops::Range<usize> = 24..28;
const MXCSR_MASK: core::ops::Range<usize> = 28..32;
/// The closing magic of a signal frame's image.
const MAGIC2_LEN: usize = 4;

fn word(bytes: &[u8], at: core::ops::Range<usize>) -> u64 {
    let mut word = [0; 8];
    for (to, from) in word.iter_mut().zip(bytes.get(at).unwrap_or_default()) {
        *to = *from;
    }
    u64::from_le_bytes(word)
}

fn put(image: &mut [u8], at: core::ops::Range<usize>, bytes: &[u8]) {
    if let Some(slot) = image.get_mut(at).filter(|slot| slot.len() == bytes.len()) {
        slot.copy_from_slice(bytes);
    }
}

impl Tracee {
    /// The tracee `tid` of `tracer`, which has to stand in a stop unless `any_state` (`ptrace_check_attach`).
    pub fn find(tracer: &Arc<Task>, tid: i32, any_state: bool) -> Result<Self> {
        let task = tracer.find_task(tid).ok_or(Errno::ESRCH)?;
        {
            let own = task.signals.lock();
            let trace = own.trace.as_ref().ok_or(Errno::ESRCH)?;
            if !Arc::ptr_eq(&trace.tracer, tracer) || (!any_state && own.stops.standing != Standing::Traced) {
                return Err(Errno::ESRCH);
            }
        }
        Ok(Self { task })
    }

    pub fn task(&self) -> &Arc<Task> {
        &self.task
    }

    /// Works on what the stopped tracee has left; `ESRCH` if it was killed meanwhile.
    fn record<T>(&self, f: impl FnOnce(&mut StopRecord) -> Result<T>) -> Result<T> {
        let mut record = self.task.trace_stop.lock();
        f(record.as_mut().ok_or(Errno::ESRCH)?)
    }

    /// One general register.
    pub fn reg(&self, index: usize) -> Result<u64> {
        self.record(|r| Ok(regs::get(&r.regs, index)?))
    }

    pub fn set_reg(&self, index: usize, value: u64) -> Result<()> {
        self.record(|r| Ok(regs::set(&mut r.regs, index, value)?))
    }

    /// `struct user_regs_struct`.
    pub fn regs(&self) -> Result<Vec<u8>> {
        self.record(|r| {
            let mut bytes = Vec::with_capacity(USER_REGS_SIZE);
            for index in 0..NR_USER_REGS {
                bytes.extend_from_slice(&regs::get(&r.regs, index)?.to_le_bytes());
            }
            Ok(bytes)
        })
    }

    /// Sets the first registers of `struct user_regs_struct`, as many as `bytes` has. Those before one that is refused
    /// are set.
    pub fn set_regs(&self, bytes: &[u8]) -> Result<()> {
        self.record(|r| {
            for (index, value) in bytes.chunks_exact(8).enumerate() {
                regs::set(&mut r.regs, index, word(value, 0..8))?;
            }
            Ok(())
        })
    }

    /// The extended state in the layout of `NT_X86_XSTATE`.
    pub fn xstate(&self) -> Result<Vec<u8>> {
        self.record(|r| {
            let FpuState(mut image) = r.context.fpu().map_err(|_| Errno::EIO)?;
            let len =
                image.len().checked_sub(MAGIC2_LEN).filter(|len| *len >= HEADER.end).ok_or(Errno::ENODEV)?;
            image.truncate(len);
            let features = word(&image, FRAME_FEATURES).to_le_bytes();
            put(&mut image, SW_BYTES, &[0; 48]);
            put(&mut image, REGSET_FEATURES, &features);
            Ok(image)
        })
    }

    /// Sets the extended state from the layout of `NT_X86_XSTATE`: `EFAULT` unless it is whole, `EINVAL` if the processor
    /// would refuse it.
    pub fn set_xstate(&self, bytes: &[u8]) -> Result<()> {
        self.record(|r| {
            let FpuState(mut image) = r.context.fpu().map_err(|_| Errno::EIO)?;
            if image.len() != bytes.len() + MAGIC2_LEN {
                return Err(Errno::EFAULT);
            }
            let description = image.get(SW_BYTES).unwrap_or_default().to_vec();
            let mask = image.get(MXCSR_MASK).unwrap_or_default().to_vec();
            put(&mut image, 0..bytes.len(), bytes);
            put(&mut image, SW_BYTES, &description);
            put(&mut image, MXCSR_MASK, &mask);
            r.context.set_fpu(&FpuState(image)).map_err(|_| Errno::EINVAL)
        })
    }

    /// `struct user_fpregs_struct`: the FXSAVE area.
    pub fn fpregs(&self) -> Result<Vec<u8>> {
        let mut image = self.xstate()?;
        image.truncate(FXSAVE);
        put(&mut image, SW_BYTES, &[0; 48]);
        Ok(image)
    }

    /// Sets the FXSAVE area; `EINVAL` unless it is whole and its MXCSR is one.
    pub fn set_fpregs(&self, bytes: &[u8]) -> Result<()> {
        if bytes.len() != FXSAVE {
            return Err(Errno::EINVAL);
        }
        let mut image = self.xstate()?;
        let allowed = word(&image, MXCSR_MASK);
        let allowed = if allowed == 0 { 0xffbf } else { allowed };
        if word(bytes, MXCSR) & !allowed != 0 {
            return Err(Errno::EINVAL);
        }
        put(&mut image, 0..SW_BYTES.start, bytes.get(..SW_BYTES.start).unwrap_or_default());
        // x87 and SSE are in use from now on.
        let used = word(&image, HEADER) | 3;
        put(&mut image, HEADER, &used.to_le_bytes());
        self.set_xstate(&image)
    }

    /// FS and GS base (`PTRACE_ARCH_PRCTL`).
    pub fn bases(&self) -> Result<(u64, u64)> {
        self.record(|r| Ok((r.regs.fs_base, r.regs.gs_base)))
    }

    /// Lets the tracee go on; `signal` is delivered to it at a stop for a signal (`ptrace_resume`).
    pub fn go(&self, how: Go, signal: i32) -> Result<()> {
        check_signal(signal)?;
        let set = match how {
            Go::Cont => 0,
            Go::Calls => mode::CALLS,
            Go::Step => mode::STEP,
            Go::Emulate => mode::EMULATED,
            Go::EmulateStep => mode::EMULATED | mode::STEP,
        };
        let mut own = self.task.signals.lock();
        let trace = own.trace.as_mut().ok_or(Errno::ESRCH)?;
        trace.inject = signal;
        self.task.trace_mode.store(mode::TRACED | set, Ordering::SeqCst);
        trace.report = None;
        own.stops.standing = Standing::Running;
        drop(own);
        self.task.sleeper().wake();
        Ok(())
    }

    /// Ends the tracing; `signal` is delivered as with [`Tracee::go`].
    pub fn detach(&self, signal: i32) -> Result<()> {
        check_signal(signal)?;
        let ended = {
            let mut set = self.task.kernel().task_set();
            let link = set.traces.remove(&self.task.tid());
            let group = self.task.group().signals.lock();
            let mut own = self.task.signals.lock();
            own.detach_signal = signal;
            unlink(&group, &self.task, &mut own);
            link.is_some_and(|l| l.zombie.is_some())
        };
        if ended {
            let removed = self.task.kernel().task_set().tasks.remove(&self.task.tid());
            drop(removed);
        }
        Ok(())
    }

    /// `PTRACE_KILL`.
    pub fn kill(&self) {
        let info = SigInfo::user(sig::KILL, SI_USER, 0, 0);
        let _ = self.task.send(info, Origin::Inside);
    }

    /// `PTRACE_INTERRUPT`: the tracee stops soon, wherever it is. `EIO` for one that was not seized.
    pub fn interrupt(&self) -> Result<()> {
        let group = self.task.group().signals.lock();
        let mut own = self.task.signals.lock();
        if !own.trace.as_ref().is_some_and(|t| t.seized) {
            return Err(Errno::EIO);
        }
        own.stops.trap = true;
        if own.stops.standing == Standing::Listening {
            own.stops.standing = Standing::Running;
            self.task.sleeper().wake();
        }
        self.task.notify(work::STOP);
        drop(own);
        drop(group);
        Ok(())
    }

    /// `PTRACE_LISTEN`: the tracee stays stopped and tells when the stop of its process ends. `EIO` unless it was seized
    /// and stands in such a stop.
    pub fn listen(&self) -> Result<()> {
        let group = self.task.group().signals.lock();
        let mut own = self.task.signals.lock();
        let at_event = own
            .trace
            .as_ref()
            .is_some_and(|t| t.seized && t.info.is_some_and(|i| i.code >> 8 == options::EVENT_STOP));
        if !at_event {
            return Err(Errno::EIO);
        }
        own.stops.standing = Standing::Listening;
        if own.stops.notify {
            own.stops.standing = Standing::Running;
            self.task.sleeper().wake();
        }
        drop(own);
        drop(group);
        Ok(())
    }

    /// `PTRACE_SETOPTIONS`.
    pub fn set_options(&self, wanted: u64, tracer: &Task) -> Result<()> {
        let wanted = check_options(wanted, tracer)?;
        let mut own = self.task.signals.lock();
        own.trace.as_mut().ok_or(Errno::ESRCH)?.options = wanted;
        Ok(())
    }

    /// `PTRACE_GETEVENTMSG`.
    pub fn message(&self) -> u64 {
        self.task.signals.lock().trace.as_ref().map_or(0, |t| t.message)
    }

    /// `PTRACE_GETSIGINFO`; `EINVAL` at a group stop.
    pub fn siginfo(&self) -> Result<SigInfo> {
        self.task.signals.lock().trace.as_ref().and_then(|t| t.info).ok_or(Errno::EINVAL)
    }

    /// `PTRACE_SETSIGINFO`.
    pub fn set_siginfo(&self, info: SigInfo) -> Result<()> {
        let mut own = self.task.signals.lock();
        let slot = own.trace.as_mut().and_then(|t| t.info.as_mut()).ok_or(Errno::EINVAL)?;
        *slot = info;
        Ok(())
    }

    /// Pending signals from number `from` on, at most `count` of them (`PTRACE_PEEKSIGINFO`).
    pub fn peek_siginfo(&self, shared: bool, from: u64, count: usize) -> Vec<SigInfo> {
        let group = self.task.group().signals.lock();
        let own = self.task.signals.lock();
        let pending = if shared { &group.pending } else { &own.pending };
        let from = usize::try_from(from).unwrap_or(usize::MAX);
        pending.iter().skip(from).take(count).copied().collect()
    }

    /// Blocked signals; those outside of a call that has set a mask for its time.
    pub fn signal_mask(&self) -> SigSet {
        let own = self.task.signals.lock();
        own.saved_mask.unwrap_or(own.mask)
    }

    pub fn set_signal_mask(&self, mask: SigSet) {
        let group = self.task.group().signals.lock();
        let mut own = self.task.signals.lock();
        own.mask = mask.without(SigSet::UNBLOCKABLE);
        recalc(&group, &self.task, &own);
    }

    /// `PTRACE_GET_SYSCALL_INFO`, with the instruction and stack pointers.
    pub fn syscall_info(&self) -> Result<(u64, u64, SyscallInfo)> {
        let (code, message) = {
            let own = self.task.signals.lock();
            let trace = own.trace.as_ref().ok_or(Errno::ESRCH)?;
            (trace.info.map_or(0, |i| i.code), trace.message)
        };
        const CALL: i32 = sig::TRAP | 0x80;
        const SECCOMP: i32 = sig::TRAP | options::EVENT_SECCOMP << 8;
        self.record(|r| {
            let (nr, args) = (r.regs.orig_rax, r.regs.syscall_args());
            let info = match (code, message) {
                (CALL, options::EVENTMSG_SYSCALL_ENTRY) => SyscallInfo::Entry { nr, args },
                (CALL, options::EVENTMSG_SYSCALL_EXIT) => {
                    SyscallInfo::Exit { value: r.regs.rax.cast_signed() }
                }
                (SECCOMP, message) => {
                    SyscallInfo::Seccomp { nr, args, data: u32::try_from(message & 0xffff_ffff).unwrap_or(0) }
                }
                _ => SyscallInfo::None,
            };
            Ok((r.regs.rip, r.regs.rsp, info))
        })
    }
}

/// Whether a tracer may deliver this (`valid_signal`).
fn check_signal(signal: i32) -> Result<()> {
    if (0..=sig::MAX).contains(&signal) { Ok(()) } else { Err(Errno::EIO) }
}

/// Checks `PTRACE_O_*` (`check_ptrace_options`).
pub fn check_options(wanted: u64, tracer: &Task) -> Result<u32> {
    let wanted = u32::try_from(wanted).ok().filter(|w| w & !options::ALL == 0).ok_or(Errno::EINVAL)?;
    if wanted & options::SUSPEND_SECCOMP != 0 {
        if !tracer.creds().has_cap(cap::SYS_ADMIN) {
            return Err(Errno::EPERM);
        }
        // Nothing here can take a filter away for a time.
        return Err(Errno::EINVAL);
    }
    Ok(wanted)
}
