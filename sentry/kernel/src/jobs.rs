//! Process groups, sessions and their terminals (`setsid(2)`, `setpgid(2)`, `drivers/tty/tty_jobctrl.c`).

use std::sync::Arc;

use abi::signal::{SI_KERNEL, SigInfo, sig};
use sentry_base::{Errno, Result};
use sentry_vfs::{Terminal, cap};

use crate::Task;
use crate::signal::Origin;
use crate::task_set::Session;

impl Task {
    /// `setsid(2)`: the new session's id.
    pub fn set_sid(&self) -> Result<i32> {
        let pid = self.pid();
        let mut set = self.kernel().task_set();
        if set.process(pid)?.pgid == pid || set.group_exists(pid) {
            return Err(Errno::EPERM);
        }
        set.sessions.insert(pid, Session::default());
        set.set_session(pid, pid);
        set.set_group(pid, pid);
        Ok(pid)
    }

    /// `setpgid(2)`; zeroes mean the caller and the process itself.
    pub fn set_pgid(&self, pid: i32, pgid: i32) -> Result<()> {
        if pgid < 0 {
            return Err(Errno::EINVAL);
        }
        let own = self.pid();
        let pid = if pid == 0 { own } else { pid };
        let pgid = if pgid == 0 { pid } else { pgid };
        let mut set = self.kernel().task_set();
        let sid = set.process(own)?.sid;
        let target = set.process(pid)?;
        if target.parent == own {
            if target.sid != sid {
                return Err(Errno::EPERM);
            }
            if target.has_execed {
                return Err(Errno::EACCES);
            }
        } else if pid != own {
            return Err(Errno::ESRCH);
        }
        if target.sid == pid {
            return Err(Errno::EPERM);
        }
        if pgid != pid && set.session_of_group(pgid) != Some(sid) {
            return Err(Errno::EPERM);
        }
        set.set_group(pid, pgid);
        Ok(())
    }

    /// `getpgid(2)`.
    pub fn pgid_of(&self, pid: i32) -> Result<i32> {
        if pid == 0 {
            return Ok(self.group().pgid());
        }
        self.kernel().task(pid).map(|t| t.group().pgid()).ok_or(Errno::ESRCH)
    }

    /// `getsid(2)`.
    pub fn sid_of(&self, pid: i32) -> Result<i32> {
        if pid == 0 {
            return Ok(self.group().sid());
        }
        self.kernel().task(pid).map(|t| t.group().sid()).ok_or(Errno::ESRCH)
    }

    pub(crate) fn take_terminal(&self, terminal: Arc<dyn Terminal>, steal: bool) -> Result<()> {
        let sid = self.group().sid();
        let mut set = self.kernel().task_set();
        if sid != self.pid() {
            return Err(Errno::EPERM);
        }
        let session = set.sessions.entry(sid).or_default();
        if session.terminal.is_some() {
            let same = terminal.session() == sid;
            return if same { Ok(()) } else { Err(Errno::EPERM) };
        }
        let other = terminal.session();
        if other != 0 && other != sid {
            if !(steal && self.creds().has_cap(cap::SYS_ADMIN)) {
                return Err(Errno::EPERM);
            }
            if let Some(session) = set.sessions.get_mut(&other) {
                session.terminal = None;
            }
        }
        let pgid = set.process(self.pid())?.pgid;
        set.sessions.entry(sid).or_default().terminal = Some(Arc::clone(&terminal));
        drop(set);
        terminal.set_session(sid);
        terminal.set_foreground(pgid);
        Ok(())
    }

    /// `TIOCNOTTY`: the session's leader takes the terminal from the whole session; others give up nothing, because the
    /// terminal is kept with the session.
    pub(crate) fn give_up_terminal(&self) -> Result<()> {
        let sid = self.group().sid();
        let terminal = {
            let mut set = self.kernel().task_set();
            let session = set.sessions.get_mut(&sid).ok_or(Errno::ENOTTY)?;
            if session.terminal.is_none() {
                return Err(Errno::ENOTTY);
            }
            if sid != self.pid() {
                return Ok(());
            }
            session.terminal.take().ok_or(Errno::ENOTTY)?
        };
        let foreground = terminal.foreground();
        terminal.set_session(0);
        terminal.set_foreground(0);
        if foreground > 0 {
            let members = self.kernel().task_set().members(foreground);
            for signo in [sig::HUP, sig::CONT] {
                for member in &members {
                    let _ = member.send(SigInfo::kernel(signo, SI_KERNEL), Origin::Inside);
                }
            }
        }
        Ok(())
    }
}
