//! Host signals of our own processes: block them all, read them from a descriptor (`signalfd(2)`), and report a
//! call that the seccomp filter refused before dying of it.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Signals that a fault of our own raises; they are never blocked or forwarded.
const FAULTS: [i32; 6] =
    [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP, libc::SIGSYS];

fn set_of(signals: impl Iterator<Item = i32>) -> libc::sigset_t {
    // SAFETY: `sigset_t` is plain data; zero is the empty set.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    for signo in signals {
        // SAFETY: `set` is writable.
        let _ = unsafe { libc::sigaddset(&raw mut set, signo) };
    }
    set
}

/// Every signal that can be blocked and is no fault; 32 and 33 belong to the C library.
fn ordinary() -> impl Iterator<Item = i32> {
    (1..=64)
        .filter(|signo| !FAULTS.contains(signo) && !matches!(*signo, libc::SIGKILL | libc::SIGSTOP | 32 | 33))
}

/// Blocks every ordinary signal in the calling thread and the threads that it will start.
pub fn block_ordinary() -> io::Result<()> {
    let set = set_of(ordinary());
    // SAFETY: `set` is a valid signal set; the old one is not asked for.
    let done = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
    if done == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(done)) }
}

/// A descriptor that yields the ordinary signals sent to this process, which must be blocked. Non-blocking.
pub fn descriptor() -> io::Result<OwnedFd> {
    let set = set_of(ordinary());
    // SAFETY: `set` is a valid signal set; -1 asks for a new descriptor.
    let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made the descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// One signal read from a descriptor of [`descriptor`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    pub signo: i32,
    /// `si_code` (`sigaction(2)`): positive when the kernel itself sent it.
    pub code: i32,
}

/// The next pending signal, or `None`.
pub fn next(descriptor: BorrowedFd<'_>) -> io::Result<Option<Received>> {
    // SAFETY: the structure is plain data; zero is a valid value of it.
    let mut info: libc::signalfd_siginfo = unsafe { std::mem::zeroed() };
    let size = size_of::<libc::signalfd_siginfo>();
    // SAFETY: `info` is writable for `size` bytes.
    let got = unsafe { libc::read(descriptor.as_raw_fd(), (&raw mut info).cast(), size) };
    if usize::try_from(got) == Ok(size) {
        return Ok(Some(Received { signo: info.ssi_signo as i32, code: info.ssi_code }));
    }
    let error = io::Error::last_os_error();
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
        _ => Err(error),
    }
}

/// Gives `signo` its default action and sends it to this process: a way to die of a signal.
pub fn die_of(signo: i32) {
    // SAFETY: `SIG_DFL` is a valid disposition.
    let _ = unsafe { libc::signal(signo, libc::SIG_DFL) };
    let set = set_of(std::iter::once(signo));
    // SAFETY: `set` is a valid signal set.
    let _ = unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut()) };
    // SAFETY: raising a signal touches no memory of ours.
    let _ = unsafe { libc::raise(signo) };
}

/// Stops the calling process as `SIGTSTP` would, until it is continued.
pub fn stop_self() {
    // SAFETY: sending a signal touches no memory of ours.
    let _ = unsafe { libc::raise(libc::SIGSTOP) };
}

/// Makes `SIGSYS` write one line to descriptor 2 ("seccomp: system call NR refused ...") and end the process.
///
/// With this handler a filter's action may be `SECCOMP_RET_TRAP`: the refused call is not made either way.
pub fn report_refused_calls() -> io::Result<()> {
    // SAFETY: `sigaction` is plain data; zero is a valid value of it.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_refused_call as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
    // SAFETY: `action` is whole, and its handler is async-signal-safe.
    let done = unsafe { libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut()) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Offset of `si_syscall` in `siginfo_t` on 64-bit Linux, in ints (`include/uapi/asm-generic/siginfo.h`).
const SI_SYSCALL: usize = 6;

extern "C" fn on_refused_call(_signo: i32, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    let at = info.cast::<i32>().wrapping_add(SI_SYSCALL);
    // SAFETY: the kernel passes a whole `siginfo_t`, which holds an aligned int at that offset for SIGSYS.
    let number = unsafe { at.read() };
    let mut line = Line::default();
    line.text(b"seccomp: refused system call ");
    line.text(crate::syscall_names::name(number).as_bytes());
    line.text(b" (");
    line.number(number.unsigned_abs());
    line.text(b")\n");
    // SAFETY: the bytes written are initialized up to `len`.
    let _ = unsafe { libc::write(2, line.bytes.as_ptr().cast(), line.len) };
    // SAFETY: ends the process; nothing is touched.
    unsafe { libc::_exit(crate::signals::REFUSED_EXIT) };
}

/// Exit status of a process that made a refused call: 128 + `SIGSYS`.
pub const REFUSED_EXIT: i32 = 128 + libc::SIGSYS;

/// A line put together without allocation.
struct Line {
    bytes: [u8; 96],
    len: usize,
}

impl Default for Line {
    fn default() -> Self {
        Self { bytes: [0; 96], len: 0 }
    }
}

impl Line {
    fn text(&mut self, text: &[u8]) {
        for byte in text {
            if let Some(slot) = self.bytes.get_mut(self.len) {
                *slot = *byte;
                self.len += 1;
            }
        }
    }

    fn number(&mut self, number: u32) {
        let mut divisor = 1_000_000_000;
        let mut started = false;
        while divisor > 0 {
            let digit = (number / divisor % 10) as u8;
            started |= digit != 0 || divisor == 1;
            if started {
                self.text(&[b'0' + digit]);
            }
            divisor /= 10;
        }
    }
}
