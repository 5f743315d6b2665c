//! ptrace(2): the requests, and what they copy. The tracing itself is the kernel's.

use std::sync::Arc;

use abi::signal::{SigInfo, SigSet};
use sentry_base::{Errno, Events, Result};
use sentry_kernel::ptrace::{
    Go, NR_USER_REGS, SyscallInfo, Tracee, USER_REGS_SIZE, attach, check_options, trace_me,
};
use sentry_kernel::{Call, Current, Stop, SysResult};
use sentry_vfs::IoStart;
use zerocopy::IntoBytes;

use crate::args::Ptr;
use crate::table::syscalls;

syscalls! {
    101 ptrace(request: i64, pid: i32, addr: Ptr, data: Ptr)
        [call, "no hardware breakpoints, no PTRACE_SINGLEBLOCK, no PTRACE_SECCOMP_GET_FILTER"];
}

/// `PTRACE_*` of `<linux/ptrace.h>` and `<asm/ptrace-abi.h>`.
mod request {
    pub const TRACEME: i64 = 0;
    pub const PEEKTEXT: i64 = 1;
    pub const PEEKDATA: i64 = 2;
    pub const PEEKUSR: i64 = 3;
    pub const POKETEXT: i64 = 4;
    pub const POKEDATA: i64 = 5;
    pub const POKEUSR: i64 = 6;
    pub const CONT: i64 = 7;
    pub const KILL: i64 = 8;
    pub const SINGLESTEP: i64 = 9;
    pub const GETREGS: i64 = 12;
    pub const SETREGS: i64 = 13;
    pub const GETFPREGS: i64 = 14;
    pub const SETFPREGS: i64 = 15;
    pub const ATTACH: i64 = 16;
    pub const DETACH: i64 = 17;
    pub const OLDSETOPTIONS: i64 = 21;
    pub const SYSCALL: i64 = 24;
    pub const ARCH_PRCTL: i64 = 30;
    pub const SYSEMU: i64 = 31;
    pub const SYSEMU_SINGLESTEP: i64 = 32;
    pub const SETOPTIONS: i64 = 0x4200;
    pub const GETEVENTMSG: i64 = 0x4201;
    pub const GETSIGINFO: i64 = 0x4202;
    pub const SETSIGINFO: i64 = 0x4203;
    pub const GETREGSET: i64 = 0x4204;
    pub const SETREGSET: i64 = 0x4205;
    pub const SEIZE: i64 = 0x4206;
    pub const INTERRUPT: i64 = 0x4207;
    pub const LISTEN: i64 = 0x4208;
    pub const PEEKSIGINFO: i64 = 0x4209;
    pub const GETSIGMASK: i64 = 0x420a;
    pub const SETSIGMASK: i64 = 0x420b;
    pub const SECCOMP_GET_FILTER: i64 = 0x420c;
    pub const GET_SYSCALL_INFO: i64 = 0x420e;
    pub const GET_RSEQ_CONFIGURATION: i64 = 0x420f;
}
use request as rq;

/// `sizeof(struct user)`.
const USER_SIZE: u64 = 928;
/// `offsetof(struct user, u_debugreg)` and its end.
const DEBUG_REGS: core::ops::Range<u64> = 848..912;

fn ptrace(cx: &mut Current, request: i64, pid: i32, addr: Ptr, data: Ptr) -> Call<'_> {
    let seize = match request {
        rq::ATTACH => None,
        rq::SEIZE => Some((addr.0, data.0)),
        _ => return Call::Done(simple(cx, request, pid, addr, data).map_err(Stop::from)),
    };
    Call::Wait(Box::pin(do_attach(cx, pid, seize)))
}

async fn do_attach(cx: &mut Current, pid: i32, seize: Option<(u64, u64)>) -> SysResult {
    let options = match seize {
        Some((0, options)) => Some(check_options(options, &cx.task).map_err(|e| match e {
            Errno::EINVAL => Errno::EIO,
            other => other,
        })?),
        Some(_) => return Err(Errno::EIO.into()),
        None => None,
    };
    if attach(&cx.task, pid, options)? {
        // The tracee is on its way from one stop to the other; Linux returns when it is there.
        let group = Arc::clone(cx.group());
        let arrived = |task: &sentry_kernel::Task| {
            let tracee = task.find_task(pid);
            let done = tracee.is_none_or(|t| t.stands_for_tracer() || !t.has_stops_due());
            Ok(if done { IoStart::Done(()) } else { IoStart::WouldBlock })
        };
        // An interruption leaves the tracee attached, as a signal at the end of the call would.
        let _ = cx.block_on(group.child_events(), Events::IN, None, arrived).await;
    }
    Ok(0)
}

fn simple(cx: &mut Current, request: i64, pid: i32, addr: Ptr, data: Ptr) -> Result<u64> {
    if request == rq::TRACEME {
        return trace_me(&cx.task).map(|()| 0);
    }
    let any_state = matches!(request, rq::KILL | rq::INTERRUPT);
    let tracee = Tracee::find(&cx.task, pid, any_state)?;
    let signal = || i32::try_from(data.0).map_err(|_| Errno::EIO);
    match request {
        rq::PEEKTEXT | rq::PEEKDATA => peek(cx, &tracee, addr.0, data),
        rq::POKETEXT | rq::POKEDATA => {
            let bytes = data.0.to_le_bytes();
            let done = tracee.task().mm().copy_out_forced(addr.0, &bytes).map_err(|_| Errno::EIO)?;
            if done == bytes.len() { Ok(0) } else { Err(Errno::EIO) }
        }
        rq::PEEKUSR => peek_user(cx, &tracee, addr.0, data),
        rq::POKEUSR => poke_user(&tracee, addr.0, data.0).map(|()| 0),
        rq::CONT => tracee.go(Go::Cont, signal()?).map(|()| 0),
        rq::SYSCALL => tracee.go(Go::Calls, signal()?).map(|()| 0),
        rq::SINGLESTEP => tracee.go(Go::Step, signal()?).map(|()| 0),
        rq::SYSEMU => tracee.go(Go::Emulate, signal()?).map(|()| 0),
        rq::SYSEMU_SINGLESTEP => tracee.go(Go::EmulateStep, signal()?).map(|()| 0),
        rq::KILL => {
            tracee.kill();
            Ok(0)
        }
        rq::DETACH => tracee.detach(signal()?).map(|()| 0),
        rq::INTERRUPT => tracee.interrupt().map(|()| 0),
        rq::LISTEN => tracee.listen().map(|()| 0),
        rq::GETREGS => cx.copy_out(data.0, &tracee.regs()?).map(|()| 0),
        rq::SETREGS => {
            let mut bytes = [0; USER_REGS_SIZE];
            cx.copy_in(data.0, &mut bytes)?;
            tracee.set_regs(&bytes).map(|()| 0)
        }
        rq::GETFPREGS => cx.copy_out(data.0, &tracee.fpregs()?).map(|()| 0),
        rq::SETFPREGS => {
            let mut bytes = [0; FPREGS_SIZE];
            cx.copy_in(data.0, &mut bytes)?;
            tracee.set_fpregs(&bytes).map(|()| 0)
        }
        rq::GETREGSET => get_regset(cx, &tracee, addr.0, data).map(|()| 0),
        rq::SETREGSET => set_regset(cx, &tracee, addr.0, data).map(|()| 0),
        rq::SETOPTIONS | rq::OLDSETOPTIONS => tracee.set_options(data.0, &cx.task).map(|()| 0),
        rq::GETEVENTMSG => cx.write_obj(data.0, &tracee.message()).map(|()| 0),
        rq::GETSIGINFO => cx.copy_out(data.0, tracee.siginfo()?.as_bytes()).map(|()| 0),
        rq::SETSIGINFO => {
            let info: SigInfo = cx.read_obj(data.0)?;
            tracee.set_siginfo(info).map(|()| 0)
        }
        rq::PEEKSIGINFO => peek_siginfo(cx, &tracee, addr, data),
        rq::GETSIGMASK if addr.0 == 8 => cx.write_obj(data.0, &tracee.signal_mask().0).map(|()| 0),
        rq::SETSIGMASK if addr.0 == 8 => {
            let mask: u64 = cx.read_obj(data.0)?;
            tracee.set_signal_mask(SigSet(mask));
            Ok(0)
        }
        rq::GETSIGMASK | rq::SETSIGMASK | rq::SECCOMP_GET_FILTER => Err(Errno::EINVAL),
        rq::GET_SYSCALL_INFO => syscall_info(cx, &tracee, addr.0, data),
        rq::GET_RSEQ_CONFIGURATION => {
            let none = [0; 24];
            let len = none.len().min(usize::try_from(addr.0).unwrap_or(usize::MAX));
            cx.copy_out(data.0, none.get(..len).unwrap_or_default())?;
            Ok(none.len() as u64)
        }
        rq::ARCH_PRCTL => arch_prctl(cx, &tracee, data.0, addr).map(|()| 0),
        _ => Err(Errno::EIO),
    }
}

/// `sizeof(struct user_fpregs_struct)`.
const FPREGS_SIZE: usize = 512;

fn peek(cx: &Current, tracee: &Tracee, addr: u64, data: Ptr) -> Result<u64> {
    let mut word = [0; 8];
    let got = tracee.task().mm().copy_in_forced(addr, &mut word).map_err(|_| Errno::EIO)?;
    if got != word.len() {
        return Err(Errno::EIO);
    }
    cx.copy_out(data.0, &word).map(|()| 0)
}

/// The index of the register at byte `addr` of `struct user`; `None` for what is no general register.
fn reg_index(addr: u64) -> Result<Option<usize>> {
    if !addr.is_multiple_of(8) || addr >= USER_SIZE {
        return Err(Errno::EIO);
    }
    Ok(usize::try_from(addr / 8).ok().filter(|i| *i < NR_USER_REGS))
}

fn peek_user(cx: &Current, tracee: &Tracee, addr: u64, data: Ptr) -> Result<u64> {
    // Debug registers are all clear, as the rest of `struct user` is.
    let value = reg_index(addr)?.map_or(Ok(0), |index| tracee.reg(index))?;
    cx.write_obj(data.0, &value).map(|()| 0)
}

/// Hardware breakpoints are the host's to give, and it is not asked: `ENOSPC`, as where all are taken.
fn poke_user(tracee: &Tracee, addr: u64, value: u64) -> Result<()> {
    if let Some(index) = reg_index(addr)? {
        return tracee.set_reg(index, value);
    }
    if !DEBUG_REGS.contains(&addr) {
        return Err(Errno::EIO);
    }
    const DR6: u64 = 6;
    match (addr - DEBUG_REGS.start) / 8 {
        4 | 5 => Err(Errno::EIO),
        DR6 => Ok(()),
        _ if value == 0 => Ok(()),
        _ => Err(Errno::ENOSPC),
    }
}

/// Register sets by their note types (`<elf.h>`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RegSet {
    General,
    Float,
    Extended,
}

impl RegSet {
    fn of(note: u64) -> Result<Self> {
        match note {
            1 => Ok(Self::General),
            2 => Ok(Self::Float),
            0x202 => Ok(Self::Extended),
            _ => Err(Errno::EINVAL),
        }
    }
}

/// The `iovec` of a register set: its place and length. The length is a multiple of eight.
fn regset_iov(cx: &Current, data: Ptr) -> Result<(u64, usize)> {
    let [base, len]: [u64; 2] = cx.read_obj(data.0)?;
    if !len.is_multiple_of(8) {
        return Err(Errno::EINVAL);
    }
    Ok((base, usize::try_from(len).map_err(|_| Errno::EINVAL)?))
}

fn write_iov_len(cx: &Current, data: Ptr, len: usize) -> Result<()> {
    cx.write_obj(data.0.wrapping_add(8), &(len as u64))
}

fn get_regset(cx: &Current, tracee: &Tracee, note: u64, data: Ptr) -> Result<()> {
    let (base, len) = regset_iov(cx, data)?;
    let mut bytes = match RegSet::of(note)? {
        RegSet::General => tracee.regs()?,
        RegSet::Float => tracee.fpregs()?,
        RegSet::Extended => tracee.xstate()?,
    };
    bytes.truncate(len);
    cx.copy_out(base, &bytes)?;
    write_iov_len(cx, data, bytes.len())
}

fn set_regset(cx: &Current, tracee: &Tracee, note: u64, data: Ptr) -> Result<()> {
    let (base, len) = regset_iov(cx, data)?;
    let set = RegSet::of(note)?;
    let most = match set {
        RegSet::General => USER_REGS_SIZE,
        RegSet::Float => FPREGS_SIZE,
        RegSet::Extended => tracee.xstate()?.len(),
    };
    let mut bytes = vec![0; len.min(most)];
    cx.copy_in(base, &mut bytes)?;
    match set {
        RegSet::General => tracee.set_regs(&bytes)?,
        RegSet::Float => tracee.set_fpregs(&bytes)?,
        RegSet::Extended => tracee.set_xstate(&bytes)?,
    }
    write_iov_len(cx, data, bytes.len())
}

/// `struct ptrace_peeksiginfo_args` at `args`.
fn peek_siginfo(cx: &Current, tracee: &Tracee, args: Ptr, data: Ptr) -> Result<u64> {
    let [from, flags_and_count]: [u64; 2] = cx.read_obj(args.0)?;
    let flags = flags_and_count & 0xffff_ffff;
    let count = i64::from(((flags_and_count >> 32) as u32).cast_signed());
    if flags & !1 != 0 {
        return Err(Errno::EINVAL);
    }
    let count = usize::try_from(count).map_err(|_| Errno::EINVAL)?;
    // An offset that no queue can have.
    if from > i64::MAX.cast_unsigned() {
        return Ok(0);
    }
    let infos = tracee.peek_siginfo(flags == 1, from, count);
    let mut at = data.0;
    let mut done = 0;
    for info in &infos {
        if let Err(error) = cx.copy_out(at, info.as_bytes()) {
            return if done > 0 { Ok(done) } else { Err(error) };
        }
        at = at.wrapping_add(info.as_bytes().len() as u64);
        done += 1;
    }
    Ok(done)
}

/// `AUDIT_ARCH_X86_64`.
const AUDIT_ARCH: u32 = 0xc000_003e;

fn syscall_info(cx: &Current, tracee: &Tracee, room: u64, data: Ptr) -> Result<u64> {
    let (ip, sp, info) = tracee.syscall_info()?;
    let op: u8 = match info {
        SyscallInfo::None => 0,
        SyscallInfo::Entry { .. } => 1,
        SyscallInfo::Exit { .. } => 2,
        SyscallInfo::Seccomp { .. } => 3,
    };
    let mut bytes = vec![op, 0, 0, 0];
    bytes.extend(AUDIT_ARCH.to_le_bytes());
    bytes.extend(ip.to_le_bytes());
    bytes.extend(sp.to_le_bytes());
    let call = |bytes: &mut Vec<u8>, nr: u64, args: [u64; 6]| {
        for word in core::iter::once(nr).chain(args) {
            bytes.extend(word.to_le_bytes());
        }
    };
    match info {
        SyscallInfo::None => {}
        SyscallInfo::Entry { nr, args } => call(&mut bytes, nr, args),
        SyscallInfo::Exit { value } => {
            bytes.extend(value.to_le_bytes());
            bytes.push(u8::from((-4095..0).contains(&value)));
        }
        SyscallInfo::Seccomp { nr, args, data } => {
            call(&mut bytes, nr, args);
            bytes.extend(data.to_le_bytes());
        }
    }
    let part = bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX));
    cx.copy_out(data.0, bytes.get(..part).unwrap_or_default())?;
    Ok(bytes.len() as u64)
}

/// `arch_prctl(2)` on the tracee, for its bases.
fn arch_prctl(cx: &Current, tracee: &Tracee, code: u64, addr: Ptr) -> Result<()> {
    const SET_GS: u64 = 0x1001;
    const SET_FS: u64 = 0x1002;
    const GET_FS: u64 = 0x1003;
    const GET_GS: u64 = 0x1004;
    const FS_BASE: usize = 21;
    const GS_BASE: usize = 22;
    let refused = |_| Errno::EPERM;
    match code {
        SET_FS => tracee.set_reg(FS_BASE, addr.0).map_err(refused),
        SET_GS => tracee.set_reg(GS_BASE, addr.0).map_err(refused),
        GET_FS => cx.write_obj(addr.0, &tracee.bases()?.0),
        GET_GS => cx.write_obj(addr.0, &tracee.bases()?.1),
        _ => Err(Errno::EINVAL),
    }
}
