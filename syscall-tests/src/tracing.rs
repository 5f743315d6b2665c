//! Helpers of the cases on ptrace(2): requests as the kernel has them, and children that ask to be traced.

use crate::harness::{Outcome, errno, errno_name};
use crate::sys::{self, Kid};
use libc::{SIGSTOP, user_regs_struct};

/// The raw call: unlike libc's wrapper it stores what `PEEK` requests read at `data`.
pub fn pt(request: i64, pid: i32, addr: usize, data: usize) -> i64 {
    unsafe { libc::syscall(libc::SYS_ptrace, request, pid as i64, addr, data) }
}

pub const TRACEME: i64 = 0;
pub const PEEKDATA: i64 = 2;
pub const PEEKUSR: i64 = 3;
pub const POKEDATA: i64 = 5;
pub const POKEUSR: i64 = 6;
pub const CONT: i64 = 7;
pub const KILL: i64 = 8;
pub const STEP: i64 = 9;
pub const GETREGS: i64 = 12;
pub const SETREGS: i64 = 13;
pub const GETFPREGS: i64 = 14;
pub const SETFPREGS: i64 = 15;
pub const ATTACH: i64 = 16;
pub const DETACH: i64 = 17;
pub const SYSCALL: i64 = 24;
pub const ARCH_PRCTL: i64 = 30;
pub const SYSEMU: i64 = 31;
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
pub const GET_SYSCALL_INFO: i64 = 0x420e;

/// A child that is traced from its first stop on, where this leaves it; then it runs `f`.
pub fn tracee(f: impl FnOnce() -> Outcome) -> Result<Kid, String> {
    let kid = sys::fork(|| {
        ok!(pt(TRACEME, 0, 0, 0));
        ok!(libc::raise(SIGSTOP));
        f()
    })?;
    let status = stop_of(kid.pid)?;
    same!(status, SIGSTOP);
    Ok(kid)
}

/// Waits for any change of `pid`; the raw status.
pub fn change(pid: i32) -> Result<i32, String> {
    let mut status = 0;
    loop {
        let got = unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) };
        if got == pid {
            return Ok(status);
        }
        if errno() != libc::EINTR {
            return Err(format!("waitpid({pid}) failed with {}", errno_name(errno())));
        }
    }
}

/// Waits for a stop of `pid`: its status without the low byte, so a signal and maybe an event.
pub fn stop_of(pid: i32) -> Result<i32, String> {
    let status = change(pid)?;
    if status & 0xff != 0x7f {
        return Err(format!("{pid} has ended with {status:#x}, expected a stop"));
    }
    Ok(status >> 8)
}

pub fn go(request: i64, pid: i32, signal: i32) -> Outcome {
    ok!(pt(request, pid, 0, signal as usize));
    Ok(())
}

/// Lets `pid` go on to its next stop.
pub fn to_stop(request: i64, pid: i32) -> Result<i32, String> {
    go(request, pid, 0)?;
    stop_of(pid)
}

pub fn regs(pid: i32) -> Result<user_regs_struct, String> {
    let mut regs: user_regs_struct = unsafe { std::mem::zeroed() };
    ok!(pt(GETREGS, pid, 0, &raw mut regs as usize));
    Ok(regs)
}

pub fn set_regs(pid: i32, regs: &user_regs_struct) -> Outcome {
    ok!(pt(SETREGS, pid, 0, std::ptr::from_ref(regs) as usize));
    Ok(())
}

pub fn peek(pid: i32, addr: usize) -> Result<u64, String> {
    let mut word = 0u64;
    ok!(pt(PEEKDATA, pid, addr, &raw mut word as usize));
    Ok(word)
}

pub fn siginfo(pid: i32) -> Result<libc::siginfo_t, String> {
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    ok!(pt(GETSIGINFO, pid, 0, &raw mut info as usize));
    Ok(info)
}

pub fn message(pid: i32) -> Result<u64, String> {
    let mut message = 0u64;
    ok!(pt(GETEVENTMSG, pid, 0, &raw mut message as usize));
    Ok(message)
}

/// `struct iovec` for the register sets.
pub fn iov<T>(value: &mut T) -> libc::iovec {
    libc::iovec { iov_base: std::ptr::from_mut(value).cast(), iov_len: size_of::<T>() }
}
