//! Terminals: a line discipline between a program's side (the slave) and the side that types and shows (a master file
//! or the host), with sessions and job control (`pty(7)`, `drivers/tty/pty.c`, `drivers/tty/tty_jobctrl.c`).

mod file;
mod host;
mod ioctl;
mod ldisc;
mod registry;

use core::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Weak};

use abi::tty::{Termios, Winsize, lflag, pkt};
use sentry_base::{Errno, Events, Mutex, Nanos, Result, WaitQueue, lock::rank, mono_now};
use sentry_vfs::{Attr, Caller, FileKind, SignalSink, Terminal};
use zerocopy::FromZeros;

pub use file::{MasterFile, TtyFile};
pub use host::HostSide;
pub use registry::Terminals;

use ldisc::{Effects, Ldisc};

/// The major number of pseudo-terminal slaves (`Documentation/admin-guide/devices.txt`).
pub const PTS_MAJOR: u32 = 136;
/// The device number of devpts.
pub(crate) const DEVPTS_DEV: u64 = 22;

/// A terminal.
pub struct Tty {
    me: Weak<Tty>,
    index: u32,
    sink: Arc<dyn SignalSink>,
    state: Mutex<State, { rank::FILE_DATA }>,
    /// Foreground process group and session, 0 for none. Outside of the lock: the kernel looks at them under its own.
    foreground: AtomicI32,
    session: AtomicI32,
    /// What `stat` shows of its node in devpts.
    attr: Mutex<Attr, { rank::LEAF }>,
    /// Programs wait here.
    slave_queue: WaitQueue,
    /// The other side waits here.
    master_queue: WaitQueue,
}

impl core::fmt::Debug for Tty {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Tty({})", self.index)
    }
}

#[derive(Debug)]
struct State {
    ldisc: Ldisc,
    winsize: Winsize,
    /// Open slave files.
    slaves: usize,
    /// A slave was open and the last one has closed: the master reads `EIO`.
    slaves_gone: bool,
    /// The other side is gone: for good.
    hung_up: bool,
    /// Not to be opened yet (`TIOCSPTLCK`).
    locked: bool,
    /// What of the settings cannot be changed (`TIOCSLCKTRMIOS`).
    fixed: Termios,
    /// No further opens (`TIOCEXCL`).
    exclusive: bool,
    /// The master is in packet mode, and has these status bits to see.
    packet: bool,
    status: u8,
    /// When the last byte was typed, and how often that was, for `VTIME`.
    typed_at: Nanos,
    typed: u64,
}

impl Tty {
    fn new(index: u32, sink: Arc<dyn SignalSink>, uid: u32, gid: u32, locked: bool) -> Arc<Self> {
        let rdev = libc::makedev(PTS_MAJOR, index);
        Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            index,
            sink,
            state: Mutex::new(State {
                ldisc: Ldisc::default(),
                winsize: Winsize::default(),
                slaves: 0,
                slaves_gone: false,
                hung_up: false,
                locked,
                fixed: Termios::new_zeroed(),
                exclusive: false,
                packet: false,
                status: 0,
                typed_at: 0,
                typed: 0,
            }),
            foreground: AtomicI32::new(0),
            session: AtomicI32::new(0),
            attr: Mutex::new(Attr {
                uid,
                gid,
                rdev,
                ..Attr::new(FileKind::CharDevice, 0o620, u64::from(index) + 3, DEVPTS_DEV)
            }),
            slave_queue: WaitQueue::new(),
            master_queue: WaitQueue::new(),
        })
    }

    pub fn index(&self) -> u32 {
        self.index
    }

    pub(crate) fn attr(&self) -> &Mutex<Attr, { rank::LEAF }> {
        &self.attr
    }

    /// Acts on what the line discipline found, after the state's lock is released.
    fn finish(&self, effects: &Effects) {
        let foreground = self.foreground();
        if foreground > 0 {
            for signal in &effects.signals {
                self.sink.signal_group(foreground, *signal);
            }
        }
        if effects.status & pkt::START != 0 || effects.status & pkt::FLUSHWRITE != 0 {
            self.slave_queue.notify(Events::WRITABLE);
        }
        if effects.wrote || effects.status != 0 {
            self.master_queue.notify(Events::READABLE | Events::PRI);
        }
    }

    /// Runs `change` on the line discipline and acts on its effects.
    fn with_ldisc<T>(&self, change: impl FnOnce(&mut Ldisc, &mut Effects) -> T) -> T {
        let mut effects = Effects::default();
        let mut state = self.state.lock();
        let result = change(&mut state.ldisc, &mut effects);
        if state.packet {
            // Opposite bits replace one another.
            for (new, old) in [(pkt::STOP, pkt::START), (pkt::NOSTOP, pkt::DOSTOP)] {
                if effects.status & new != 0 {
                    state.status &= !old;
                }
                if effects.status & old != 0 {
                    state.status &= !new;
                }
            }
            state.status |= effects.status;
        }
        drop(state);
        self.finish(&effects);
        result
    }

    /// Bytes typed on the other side; returns how many there was room for.
    fn input(&self, bytes: &[u8]) -> usize {
        {
            let mut state = self.state.lock();
            state.typed_at = mono_now();
            state.typed = state.typed.wrapping_add(1);
        }
        let n = self.with_ldisc(|ldisc, effects| ldisc.receive(bytes, effects));
        self.slave_queue.notify(Events::READABLE);
        n
    }

    fn input_room(&self) -> bool {
        self.state.lock().ldisc.input_room()
    }

    /// Takes output for the other side.
    fn take_output(&self, max: usize) -> Vec<u8> {
        let out = self.state.lock().ldisc.take_output(max);
        if !out.is_empty() {
            self.slave_queue.notify(Events::WRITABLE);
        }
        out
    }

    /// Changes the size; SIGWINCH to the foreground group if it did change (`tty_do_resize`).
    fn resize(&self, size: Winsize) {
        {
            let mut state = self.state.lock();
            if state.winsize == size {
                return;
            }
            state.winsize = size;
        }
        let foreground = self.foreground();
        if foreground > 0 {
            self.sink.signal_group(foreground, libc::SIGWINCH);
        }
    }

    /// The other side is gone (`__tty_hangup`): SIGHUP and SIGCONT to the session's leader; every open file is dead.
    fn vhangup(&self) {
        {
            let mut state = self.state.lock();
            if state.hung_up {
                return;
            }
            state.hung_up = true;
            state.ldisc.flush_pending();
        }
        self.set_foreground(0);
        let session = self.session.swap(0, Ordering::SeqCst);
        if session > 0 {
            self.sink.signal_group(session, libc::SIGHUP);
            self.sink.signal_group(session, libc::SIGCONT);
        }
        self.slave_queue.notify(Events::READABLE | Events::WRITABLE | Events::HUP | Events::ERR);
        self.master_queue.notify(Events::READABLE | Events::WRITABLE | Events::HUP);
    }

    /// The master or the host opened nothing yet, or is still there.
    fn is_hung_up(&self) -> bool {
        self.state.lock().hung_up
    }

    fn is_controlling(&self, caller: &dyn Caller) -> bool {
        caller
            .controlling_terminal()
            .is_some_and(|t| t.as_any().downcast_ref::<Self>().is_some_and(|t| core::ptr::eq(t, self)))
    }

    /// Job control for a background caller (`__tty_check_change`): sends `signal` (SIGTTIN, SIGTTOU) to its group and
    /// asks for a restart, lets it through, or refuses with `EIO`.
    fn check_change(&self, caller: &dyn Caller, signal: i32) -> Result<()> {
        let foreground = self.foreground();
        let group = caller.pgid();
        if foreground <= 0 || group == foreground || !self.is_controlling(caller) {
            return Ok(());
        }
        if caller.ignores_or_blocks(signal) {
            return if signal == libc::SIGTTIN { Err(Errno::EIO) } else { Ok(()) };
        }
        if caller.group_is_orphaned() {
            return Err(Errno::EIO);
        }
        caller.signal_group(group, signal);
        Err(Errno::ERESTARTSYS)
    }

    /// A new open file of the slave side. Without `no_ctty`, a session leader without a terminal gets this one.
    fn open_slave(&self, caller: &dyn Caller, reads: bool, no_ctty: bool) -> Result<Arc<TtyFile>> {
        let me = self.me.upgrade().ok_or(Errno::EIO)?;
        {
            let mut state = self.state.lock();
            if state.hung_up || state.locked {
                return Err(Errno::EIO);
            }
            if state.exclusive && !caller.creds().has_cap(sentry_vfs::cap::SYS_ADMIN) {
                return Err(Errno::EBUSY);
            }
            state.slaves += 1;
            state.slaves_gone = false;
        }
        let file = Arc::new(TtyFile::new(Arc::clone(&me)));
        if self.session() == 0
            && reads
            && !no_ctty
            && caller.sid() == caller.pid()
            && caller.controlling_terminal().is_none()
        {
            // A refusal leaves it without one; the open itself stands.
            let _ = self.make_controlling(caller, false);
        }
        Ok(file)
    }

    fn make_controlling(&self, caller: &dyn Caller, steal: bool) -> Result<()> {
        let me = self.me.upgrade().ok_or(Errno::EIO)?;
        caller.set_controlling_terminal(me, steal)?;
        self.set_session(caller.sid());
        self.set_foreground(caller.pgid());
        Ok(())
    }

    fn close_slave(&self) {
        let last = {
            let mut state = self.state.lock();
            state.slaves = state.slaves.saturating_sub(1);
            let last = state.slaves == 0;
            if last {
                state.slaves_gone = true;
                state.exclusive = false;
            }
            last
        };
        if last {
            self.master_queue.notify(Events::READABLE | Events::HUP);
        }
    }

    /// Whether a background write is to be stopped (`TOSTOP`).
    fn stops_writers(&self) -> bool {
        self.state.lock().ldisc.l(lflag::TOSTOP)
    }
}

impl Terminal for Tty {
    fn rdev(&self) -> u64 {
        libc::makedev(PTS_MAJOR, self.index)
    }

    fn foreground(&self) -> i32 {
        self.foreground.load(Ordering::SeqCst)
    }

    fn set_foreground(&self, pgid: i32) {
        self.foreground.store(pgid, Ordering::SeqCst);
    }

    fn session(&self) -> i32 {
        self.session.load(Ordering::SeqCst)
    }

    fn set_session(&self, sid: i32) {
        self.session.store(sid, Ordering::SeqCst);
    }

    /// The leader of its session exits (`disassociate_ctty`): as for any pseudo-terminal, the foreground group gets
    /// SIGHUP and the terminal is free again.
    fn hang_up(&self) {
        self.set_session(0);
        let foreground = self.foreground.swap(0, Ordering::SeqCst);
        if foreground > 0 {
            self.sink.signal_group(foreground, libc::SIGHUP);
        }
    }

    fn as_any(&self) -> &dyn core::any::Any {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use abi::tty::{Termios, cc, ioc};
    use sentry_memory::{UserMemory, UserReader, UserWriter};
    use sentry_vfs::testing::{BASE, TestCaller};
    use sentry_vfs::{FileOps, IoStart, OpenFlags, Pos};
    use zerocopy::IntoBytes;

    struct Pair {
        shell: Arc<TestCaller>,
        master: Arc<MasterFile>,
        slave: Arc<dyn FileOps>,
    }

    /// A terminal whose session is led by process 10.
    fn pair() -> Pair {
        let shell = Arc::new(TestCaller::new(10));
        let terminals = Terminals::new(Arc::clone(&shell) as Arc<dyn SignalSink>);
        let master = terminals.open_master(&*shell).unwrap();
        assert_eq!(terminals.open_slave(0, OpenFlags::RDWR, &*shell).err(), Some(Errno::EIO));
        ioctl(&shell, &*master, ioc::TIOCSPTLCK, &0_i32.to_ne_bytes()).unwrap();
        let slave = terminals.open_slave(0, OpenFlags::RDWR, &*shell).unwrap();
        Pair { shell, master, slave }
    }

    fn ioctl(c: &TestCaller, file: &dyn FileOps, command: u32, arg: &[u8]) -> Result<i64> {
        c.copy_out(BASE, arg).unwrap();
        file.ioctl(&c.io(OpenFlags::RDWR), command, BASE)
    }

    fn read(c: &TestCaller, file: &dyn FileOps) -> Result<IoStart<Vec<u8>>> {
        let mut buf = [0; 256];
        let io = c.io(OpenFlags::RDWR);
        Ok(match file.try_read(&io, &mut UserWriter::buffer(&mut buf), Pos::Stream)? {
            IoStart::Done(n) => IoStart::Done(buf[..n].to_vec()),
            IoStart::WouldBlock => IoStart::WouldBlock,
        })
    }

    fn write(c: &TestCaller, file: &dyn FileOps, data: &[u8]) {
        let io = c.io(OpenFlags::RDWR);
        let n = file.try_write(&io, &mut UserReader::buffer(data), Pos::Stream);
        assert_eq!(n, Ok(IoStart::Done(data.len())));
    }

    #[test]
    fn both_sides_talk() {
        let Pair { shell, master, slave } = pair();
        assert_eq!(read(&shell, &*slave), Ok(IoStart::WouldBlock));
        write(&shell, &*master, b"ls\r");
        assert_eq!(read(&shell, &*slave), Ok(IoStart::Done(b"ls\n".to_vec())));
        write(&shell, &*slave, b"a\n");
        assert_eq!(read(&shell, &*master), Ok(IoStart::Done(b"ls\r\na\r\n".to_vec())));
        drop(slave);
        assert!(master.readiness().contains(Events::HUP));
        assert_eq!(read(&shell, &*master), Err(Errno::EIO));
    }

    #[test]
    fn the_session_gets_the_signals() {
        let Pair { shell, master, slave } = pair();
        assert_eq!(master.tty().session(), 10);
        ioctl(&shell, &*slave, ioc::TIOCSPGRP, &20_i32.to_ne_bytes()).unwrap();
        write(&shell, &*master, b"\x03");
        let size = Winsize { rows: 24, cols: 80, ..Winsize::default() };
        ioctl(&shell, &*master, ioc::TIOCSWINSZ, size.as_bytes()).unwrap();
        ioctl(&shell, &*master, ioc::TIOCSWINSZ, size.as_bytes()).unwrap();
        assert_eq!(shell.sent(), [(20, libc::SIGINT), (20, libc::SIGWINCH)]);
        // Not in the foreground any more: reading stops the shell's group.
        write(&shell, &*master, b"x\n");
        assert_eq!(read(&shell, &*slave), Err(Errno::ERESTARTSYS));
        assert_eq!(shell.sent(), [(10, libc::SIGTTIN)]);
        assert_eq!(ioctl(&shell, &*slave, ioc::TCSETS, Termios::COOKED.as_bytes()), Err(Errno::ERESTARTSYS));
        assert_eq!(shell.sent(), [(10, libc::SIGTTOU)]);
        assert_eq!(ioctl(&shell, &*slave, ioc::TIOCSTI, b"x"), Err(Errno::EIO));
        drop(master);
        assert_eq!(shell.sent(), [(10, libc::SIGHUP), (10, libc::SIGCONT)]);
        assert_eq!(read(&shell, &*slave), Ok(IoStart::Done(Vec::new())));
        assert_eq!(ioctl(&shell, &*slave, ioc::TCGETS, &[]), Err(Errno::EIO));
    }

    #[test]
    fn raw_reads_follow_min_and_time() {
        let Pair { shell, master, slave } = pair();
        let mut raw = Termios { iflag: 0, oflag: 0, lflag: 0, ..Termios::COOKED };
        raw.cc[cc::VMIN] = 3;
        ioctl(&shell, &*slave, ioc::TCSETS, raw.as_bytes()).unwrap();
        write(&shell, &*master, b"ab");
        assert_eq!(read(&shell, &*slave), Ok(IoStart::WouldBlock));
        assert_eq!(slave.wait_limit(false), None);
        write(&shell, &*master, b"c");
        assert_eq!(read(&shell, &*slave), Ok(IoStart::Done(b"abc".to_vec())));
        raw.cc[cc::VMIN] = 0;
        ioctl(&shell, &*slave, ioc::TCSETS, raw.as_bytes()).unwrap();
        assert_eq!(read(&shell, &*slave), Ok(IoStart::Done(Vec::new())));
        raw.cc[cc::VTIME] = 5;
        ioctl(&shell, &*slave, ioc::TCSETS, raw.as_bytes()).unwrap();
        assert_eq!(read(&shell, &*slave), Ok(IoStart::WouldBlock));
        assert_eq!(slave.wait_limit(false).unwrap().ns, 500_000_000);
    }

    #[test]
    fn the_host_is_a_far_side() {
        let init = Arc::new(TestCaller::new(1));
        let terminals = Terminals::new(Arc::clone(&init) as Arc<dyn SignalSink>);
        assert_eq!(terminals.open_console(OpenFlags::RDWR, &*init).err(), Some(Errno::ENXIO));
        let host = terminals.new_console(0).unwrap();
        let slave = terminals.open_console(OpenFlags::RDWR, &*init).unwrap();
        assert_eq!(host.push_input(b"hi\x04"), 3);
        assert_eq!(read(&init, &*slave), Ok(IoStart::Done(b"hi".to_vec())));
        write(&init, &*slave, b"out");
        assert_eq!(host.take_output(100), b"hiout");
        host.resize(50, 100);
        assert_eq!(init.sent(), [(1, libc::SIGWINCH)]);
        host.hang_up();
        assert_eq!(init.sent(), [(1, libc::SIGHUP), (1, libc::SIGCONT)]);
        assert!(slave.readiness().contains(Events::HUP));
    }
}
