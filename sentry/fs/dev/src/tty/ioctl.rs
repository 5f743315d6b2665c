//! Terminal control (`ioctl_tty(2)`, `drivers/tty/tty_ioctl.c`, `drivers/tty/pty.c`).

use abi::tty::{Termio, Termios, Termios2, Winsize, ioc, pkt};
use sentry_base::{Errno, Events, Result};
use sentry_memory::UserMemory;
use sentry_vfs::{Caller, IoCtx, Terminal, cap};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use super::{Tty, ldisc::Ldisc};

/// Sends a signal to the foreground group, from the master.
const TIOCSIG: u32 = 0x4004_5436;

/// 38,400 baud, what `ispeed` and `ospeed` say.
const SPEED: u32 = 38_400;

fn get<T: FromBytes + IntoBytes>(mem: &dyn UserMemory, addr: u64) -> Result<T> {
    let mut value = T::new_zeroed();
    mem.copy_in(addr, value.as_mut_bytes())?;
    Ok(value)
}

fn put<T: IntoBytes + Immutable>(mem: &dyn UserMemory, addr: u64, value: &T) -> Result<i64> {
    mem.copy_out(addr, value.as_bytes())?;
    Ok(0)
}

/// `new`, but for what is set in `fixed` and stays as in `old` (`unset_locked_termios`, `drivers/tty/tty_ioctl.c`).
fn keep_fixed(fixed: &Termios, old: &Termios, new: &Termios) -> Termios {
    let word = |fixed: u32, old: u32, new: u32| (new & !fixed) | (old & fixed);
    let byte = |fixed: u8, old: u8, new: u8| if fixed == 0 { new } else { old };
    let mut cc = new.cc;
    for ((to, old), fixed) in cc.iter_mut().zip(old.cc).zip(fixed.cc) {
        *to = byte(fixed, old, *to);
    }
    Termios {
        iflag: word(fixed.iflag, old.iflag, new.iflag),
        oflag: word(fixed.oflag, old.oflag, new.oflag),
        cflag: word(fixed.cflag, old.cflag, new.cflag),
        lflag: word(fixed.lflag, old.lflag, new.lflag),
        line: byte(fixed.line, old.line, new.line),
        cc,
    }
}

fn low(word: u32) -> u16 {
    u16::try_from(word & 0xffff).unwrap_or(0)
}

impl Tty {
    /// `ioctl` on the slave or, with `master`, on the master. Settings are the slave's on both.
    pub(super) fn ioctl(&self, io: &IoCtx<'_>, command: u32, arg: u64, master: bool) -> Result<i64> {
        let caller = io.caller;
        let mem = caller.mem();
        if !master && self.is_hung_up() {
            return Err(if command == ioc::TIOCSPGRP { Errno::ENOTTY } else { Errno::EIO });
        }
        match command {
            ioc::TCGETS => put(mem, arg, &self.termios()),
            ioc::TCGETS2 => {
                put(mem, arg, &Termios2 { termios: self.termios(), ispeed: SPEED, ospeed: SPEED })
            }
            ioc::TIOCGLCKTRMIOS => {
                let fixed = self.state.lock().fixed;
                put(mem, arg, &fixed)
            }
            ioc::TIOCSLCKTRMIOS => {
                if !caller.creds().has_cap(cap::SYS_ADMIN) {
                    return Err(Errno::EPERM);
                }
                let fixed: Termios = get(mem, arg)?;
                self.state.lock().fixed = fixed;
                Ok(0)
            }
            ioc::TCGETA => {
                let t = self.termios();
                let mut old = Termio::new_zeroed();
                old.iflag = low(t.iflag);
                old.oflag = low(t.oflag);
                old.cflag = low(t.cflag);
                old.lflag = low(t.lflag);
                old.line = t.line;
                for (to, from) in old.cc.iter_mut().zip(t.cc) {
                    *to = from;
                }
                put(mem, arg, &old)
            }
            ioc::TCSETS | ioc::TCSETSW | ioc::TCSETSF => {
                let new: Termios = get(mem, arg)?;
                self.set_termios(caller, new, command == ioc::TCSETSF)
            }
            ioc::TCSETS2 | ioc::TCSETSW2 | ioc::TCSETSF2 => {
                let new: Termios2 = get(mem, arg)?;
                self.set_termios(caller, new.termios, command == ioc::TCSETSF2)
            }
            ioc::TCSETA | ioc::TCSETAW | ioc::TCSETAF => {
                let new: Termio = get(mem, arg)?;
                let mut t = self.termios();
                let merge = |old: u32, new: u16| (old & !0xffff) | u32::from(new);
                t.iflag = merge(t.iflag, new.iflag);
                t.oflag = merge(t.oflag, new.oflag);
                t.cflag = merge(t.cflag, new.cflag);
                t.lflag = merge(t.lflag, new.lflag);
                for (to, from) in t.cc.iter_mut().zip(new.cc) {
                    *to = from;
                }
                self.set_termios(caller, t, command == ioc::TCSETAF)
            }
            ioc::TIOCGWINSZ => {
                let size = self.state.lock().winsize;
                put(mem, arg, &size)
            }
            ioc::TIOCSWINSZ => {
                let size: Winsize = get(mem, arg)?;
                self.resize(size);
                Ok(0)
            }
            ioc::TIOCSCTTY if !master => self.claim(caller, arg),
            ioc::TIOCNOTTY if !master => {
                if !self.is_controlling(caller) {
                    return Err(Errno::ENOTTY);
                }
                // The kernel tells the foreground group if the leader does this.
                caller.drop_controlling_terminal().map(|()| 0)
            }
            ioc::TIOCGPGRP => {
                if !master && !self.is_controlling(caller) {
                    return Err(Errno::ENOTTY);
                }
                let foreground = caller.show_pid(self.foreground());
                put(mem, arg, &foreground)
            }
            ioc::TIOCSPGRP => self.set_foreground_of(caller, arg),
            ioc::TIOCGSID => {
                if !master && !self.is_controlling(caller) {
                    return Err(Errno::ENOTTY);
                }
                match self.session() {
                    0 => Err(Errno::ENOTTY),
                    sid => put(mem, arg, &caller.show_pid(sid)),
                }
            }
            ioc::TIOCGPTN if master => put(mem, arg, &self.index()),
            ioc::TIOCSPTLCK if master => {
                let lock: i32 = get(mem, arg)?;
                self.state.lock().locked = lock != 0;
                Ok(0)
            }
            ioc::TIOCGPTLCK if master => {
                let locked = i32::from(self.state.lock().locked);
                put(mem, arg, &locked)
            }
            TIOCSIG if master => {
                let signal = i32::try_from(arg).map_err(|_| Errno::EINVAL)?;
                if !matches!(signal, libc::SIGINT | libc::SIGQUIT | libc::SIGTSTP) {
                    return Err(Errno::EINVAL);
                }
                let foreground = self.foreground();
                if foreground > 0 {
                    self.sink.signal_group(foreground, signal);
                }
                Ok(0)
            }
            ioc::TIOCPKT if master => {
                let on: i32 = get(mem, arg)?;
                let mut state = self.state.lock();
                if !state.packet {
                    state.status = 0;
                }
                state.packet = on != 0;
                Ok(0)
            }
            ioc::TIOCGPKT if master => {
                let on = i32::from(self.state.lock().packet);
                put(mem, arg, &on)
            }
            ioc::FIONREAD => {
                let state = self.state.lock();
                let n = if master { state.ldisc.output_len() } else { state.ldisc.available() };
                drop(state);
                put(mem, arg, &i32::try_from(n).unwrap_or(i32::MAX))
            }
            ioc::TIOCOUTQ => put(mem, arg, &0_i32),
            ioc::TCFLSH => self.flush(caller, arg, master),
            ioc::TCXONC => self.flow(caller, arg, master),
            // Output is on the other side as soon as it is written: nothing to wait for, and breaks go nowhere.
            ioc::TCSBRK | ioc::TCSBRKP => {
                if !master {
                    self.check_change(caller, libc::SIGTTOU)?;
                }
                Ok(0)
            }
            ioc::TIOCEXCL | ioc::TIOCNXCL => {
                self.state.lock().exclusive = command == ioc::TIOCEXCL;
                Ok(0)
            }
            ioc::TIOCGEXCL => {
                let on = i32::from(self.state.lock().exclusive);
                put(mem, arg, &on)
            }
            ioc::TIOCGETD => put(mem, arg, &0_i32),
            // N_TTY, which it is, is the only discipline.
            ioc::TIOCSETD => {
                let line: i32 = get(mem, arg)?;
                if line == 0 { Ok(0) } else { Err(Errno::EINVAL) }
            }
            ioc::TIOCGDEV => {
                let rdev = if master { libc::makedev(5, 2) } else { self.rdev() };
                put(mem, arg, &u32::try_from(rdev).unwrap_or(0))
            }
            // Typing on behalf of the user is how one escapes from `su`: refused, as by Linux with
            // `dev.tty.legacy_tiocsti` off. The console's output stays where it is, too.
            ioc::TIOCSTI => Err(Errno::EIO),
            ioc::TIOCCONS => Err(Errno::EPERM),
            _ => Err(Errno::ENOTTY),
        }
    }

    fn termios(&self) -> Termios {
        *self.state.lock().ldisc.termios()
    }

    fn set_termios(&self, caller: &dyn Caller, new: Termios, flush: bool) -> Result<i64> {
        self.check_change(caller, libc::SIGTTOU)?;
        let fixed = self.state.lock().fixed;
        let new = keep_fixed(&fixed, &self.termios(), &new);
        self.with_ldisc(|ldisc, effects| {
            if flush {
                ldisc.flush_pending();
            }
            ldisc.set_termios(new, effects);
        });
        // What is readable and what may be written may have changed with the mode.
        self.slave_queue.notify(Events::READABLE | Events::WRITABLE);
        self.master_queue.notify(Events::WRITABLE);
        Ok(0)
    }

    /// `TIOCSCTTY` (`tiocsctty`).
    fn claim(&self, caller: &dyn Caller, arg: u64) -> Result<i64> {
        let leader = caller.sid() == caller.pid();
        let session = self.session();
        if leader && session == caller.sid() {
            return Ok(0);
        }
        if !leader || caller.controlling_terminal().is_some() {
            return Err(Errno::EPERM);
        }
        let steal = session != 0;
        if steal && !(arg == 1 && caller.creds().has_cap(cap::SYS_ADMIN)) {
            return Err(Errno::EPERM);
        }
        self.make_controlling(caller, steal)?;
        Ok(0)
    }

    /// `TIOCSPGRP` (`tiocspgrp`).
    fn set_foreground_of(&self, caller: &dyn Caller, arg: u64) -> Result<i64> {
        match self.check_change(caller, libc::SIGTTOU) {
            Err(Errno::EIO) => return Err(Errno::ENOTTY),
            other => other?,
        }
        if !self.is_controlling(caller) || self.session() != caller.sid() {
            return Err(Errno::ENOTTY);
        }
        let group: i32 = get(caller.mem(), arg)?;
        if group < 0 {
            return Err(Errno::EINVAL);
        }
        let Some(group) = caller.resolve_pid(group) else { return Err(Errno::ESRCH) };
        match caller.session_of_group(group) {
            None => Err(Errno::ESRCH),
            Some(sid) if sid != caller.sid() => Err(Errno::EPERM),
            Some(_) => {
                self.set_foreground(group);
                Ok(0)
            }
        }
    }

    /// `TCFLSH`: on the master, input and output change places.
    fn flush(&self, caller: &dyn Caller, which: u64, master: bool) -> Result<i64> {
        if !master {
            self.check_change(caller, libc::SIGTTOU)?;
        }
        let which = i32::try_from(which).map_err(|_| Errno::EINVAL)?;
        let (input, output) = match which {
            libc::TCIFLUSH => (true, false),
            libc::TCOFLUSH => (false, true),
            libc::TCIOFLUSH => (true, true),
            _ => return Err(Errno::EINVAL),
        };
        let (input, output) = if master { (output, input) } else { (input, output) };
        self.with_ldisc(|ldisc, effects| {
            if input {
                ldisc.flush_pending();
                effects.status |= pkt::FLUSHREAD;
            }
            if output {
                let _ = ldisc.take_output(usize::MAX);
                effects.status |= pkt::FLUSHWRITE;
            }
        });
        self.master_queue.notify(Events::WRITABLE);
        Ok(0)
    }

    /// `TCXONC`.
    fn flow(&self, caller: &dyn Caller, action: u64, master: bool) -> Result<i64> {
        if master {
            return Ok(0);
        }
        self.check_change(caller, libc::SIGTTOU)?;
        match i32::try_from(action).map_err(|_| Errno::EINVAL)? {
            libc::TCOOFF => self.with_ldisc(Ldisc::stop),
            libc::TCOON => self.with_ldisc(Ldisc::resume),
            // Asks the other side to stop or go on; a pseudo-terminal's other side does not listen.
            libc::TCIOFF | libc::TCION => {}
            _ => return Err(Errno::EINVAL),
        }
        Ok(0)
    }
}
