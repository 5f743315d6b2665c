//! seccomp(2), its part of prctl(2), and the requests of a notification descriptor (seccomp_unotify(2)).

use std::sync::Arc;

use abi::process::rlimit;
use abi::seccomp::{
    ADDFD_SEND, ADDFD_SETFD, MAX_INSNS, NOTIF_CONTINUE, SeccompData, SeccompNotif, SeccompNotifAddfd,
    SeccompNotifResp, SockFilter, SockFprog, flag, mode, op,
};
use sentry_base::{Errno, Events, Result};
use sentry_kernel::seccomp::{self, Added, Listener, Program};
use sentry_kernel::{Current, Restart, SysResult};
use zerocopy::{FromZeros, IntoBytes};

use crate::args::{Bits, Ptr};
use crate::table::syscalls;

syscalls! {
    317 seccomp(operation: u32, flags: Bits, args: Ptr) [sync, "no log"];
}

fn seccomp(cx: &mut Current, operation: u32, flags: Bits, args: Ptr) -> Result<i32> {
    match operation {
        op::SET_MODE_STRICT if flags.0 == 0 && args.is_null() => cx.set_seccomp_strict().map(|()| 0),
        op::SET_MODE_FILTER => add_filter(cx, flags.0, args),
        op::GET_ACTION_AVAIL if flags.0 == 0 => {
            let action: u32 = cx.read_obj(args.0)?;
            if seccomp::knows_action(action) { Ok(0) } else { Err(Errno::EOPNOTSUPP) }
        }
        op::GET_NOTIF_SIZES if flags.0 == 0 => {
            let sizes = [size_of::<SeccompNotif>(), size_of::<SeccompNotifResp>(), size_of::<SeccompData>()];
            cx.write_obj(args.0, &sizes.map(|s| u16::try_from(s).unwrap_or(0)))?;
            Ok(0)
        }
        _ => Err(Errno::EINVAL),
    }
}

/// `PR_SET_SECCOMP`.
pub(crate) fn set_mode(cx: &mut Current, wanted: u64, filter: u64) -> Result<()> {
    match u32::try_from(wanted) {
        Ok(mode::STRICT) => cx.set_seccomp_strict(),
        Ok(mode::FILTER) => add_filter(cx, 0, Ptr(filter)).map(drop),
        _ => Err(Errno::EINVAL),
    }
}

fn add_filter(cx: &mut Current, flags: u32, at: Ptr) -> Result<i32> {
    let has = |bit| flags & bit != 0;
    if flags & !flag::ALL != 0
        || (has(flag::TSYNC) && has(flag::NEW_LISTENER) && !has(flag::TSYNC_ESRCH))
        || (has(flag::WAIT_KILLABLE_RECV) && !has(flag::NEW_LISTENER))
    {
        return Err(Errno::EINVAL);
    }
    let head: SockFprog = cx.read_obj(at.0)?;
    let len = usize::from(head.len);
    if len == 0 || len > MAX_INSNS {
        return Err(Errno::EINVAL);
    }
    cx.may_filter()?;
    let mut insns = vec![SockFilter::default(); len];
    cx.copy_in(head.filter, insns.as_mut_slice().as_mut_bytes())?;
    let program = Program::check(&insns)?;
    let limit = cx.rlimit(rlimit::NOFILE);
    if has(flag::NEW_LISTENER) {
        cx.fds().check_room(limit)?;
    }
    let task = Arc::clone(&cx.task);
    match task.add_filter(program, flags)? {
        Added::Filter(None) => Ok(0),
        Added::Filter(Some(listener)) => cx.fds().add(listener.open(), true, limit),
        Added::Diverged(tid) => Ok(tid),
    }
}

/// Requests of a notification descriptor: `SECCOMP_IOCTL_NOTIF_*`.
mod request {
    pub const RECV: u32 = 0xc050_2100;
    pub const SEND: u32 = 0xc018_2101;
    pub const ID_VALID: u32 = 0x4008_2102;
    /// With the direction that older headers have.
    pub const ID_VALID_WRONG_DIR: u32 = 0x8008_2102;
    pub const ADDFD: u32 = 0x4018_2103;
    pub const SET_FLAGS: u32 = 0x4008_2104;
}

pub(crate) async fn listener_ioctl(
    cx: &mut Current,
    listener: Arc<Listener>,
    command: u32,
    arg: u64,
) -> SysResult {
    match command {
        request::RECV => {
            let mut given = SeccompNotif::new_zeroed();
            cx.copy_in(arg, given.as_mut_bytes())?;
            if given != SeccompNotif::default() {
                return Err(Errno::EINVAL.into());
            }
            let mut notice = cx
                .block_on(listener.events(), Events::READABLE | Events::HUP, None, |_| listener.receive())
                .await
                .map_err(|end| end.or_restart(Restart::Sys))?;
            notice.pid = cx.show_pid(notice.pid.cast_signed()).cast_unsigned();
            if let Err(errno) = cx.write_obj(arg, &notice) {
                listener.unreceive(notice.id);
                return Err(errno.into());
            }
            Ok(0)
        }
        request::SEND => {
            let answer: SeccompNotifResp = cx.read_obj(arg)?;
            let goes_on = answer.flags & NOTIF_CONTINUE != 0;
            if answer.flags & !NOTIF_CONTINUE != 0 || (goes_on && (answer.error != 0 || answer.val != 0)) {
                return Err(Errno::EINVAL.into());
            }
            listener.reply(&answer)?;
            Ok(0)
        }
        request::ID_VALID | request::ID_VALID_WRONG_DIR => {
            let id: u64 = cx.read_obj(arg)?;
            listener.task_of(id).map_err(|_| Errno::ENOENT)?;
            Ok(0)
        }
        request::ADDFD => Ok(u64::from(add_fd(cx, &listener, arg)?.cast_unsigned())),
        // Waking on the same CPU: a hint.
        request::SET_FLAGS if arg <= 1 => Ok(0),
        _ => Err(Errno::EINVAL.into()),
    }
}

/// Gives the waiting task a descriptor of the supervisor's.
fn add_fd(cx: &Current, listener: &Listener, arg: u64) -> Result<i32> {
    const CLOEXEC: u32 = libc::O_CLOEXEC as u32;
    let add: SeccompNotifAddfd = cx.read_obj(arg)?;
    let chosen = add.flags & ADDFD_SETFD != 0;
    if add.newfd_flags & !CLOEXEC != 0
        || add.flags & !(ADDFD_SETFD | ADDFD_SEND) != 0
        || (add.newfd != 0 && !chosen)
    {
        return Err(Errno::EINVAL);
    }
    let file = cx.file_or_path(add.srcfd.cast_signed())?;
    let task = listener.task_of(add.id)?;
    task.recall_files();
    let (fds, limit) = (task.fds(), task.rlimit(rlimit::NOFILE));
    let cloexec = add.newfd_flags & CLOEXEC != 0;
    let fd = if chosen {
        let fd = add.newfd.cast_signed();
        if fd < 0 || u64::from(add.newfd) >= limit {
            return Err(Errno::EBADF);
        }
        let old = fds.set(fd, file, cloexec, limit)?;
        if let Some(old) = old {
            fds.closed(old, task.pid());
        }
        fd
    } else {
        fds.add(file, cloexec, limit)?
    };
    if add.flags & ADDFD_SEND != 0 {
        listener.reply(&SeccompNotifResp { id: add.id, val: i64::from(fd), error: 0, flags: 0 })?;
    }
    Ok(fd)
}
