//! POSIX message queues: mq_open(3), mq_send(3), mq_receive(3), mq_notify(3) and their kin.

use std::sync::Arc;

use abi::ipc::MqAttr;
use abi::process::rlimit;
use abi::signal::{SI_MESGQ, SigInfo, sig};
use abi::time::Timespec;
use sentry_base::{Errno, Events, Nanos, Result, mono_at_real};
use sentry_ipc::{MqOpen, Mqueue, MqueueFile, Notifier};
use sentry_kernel::signal::Origin;
use sentry_kernel::{BlockEnd, Current, Stop, SysResult};
use sentry_vfs::{FileDescription, IoStart, OpenFlags, anonymous};

use crate::args::{Bits, PathPtr, Ptr};
use crate::table::syscalls;

syscalls! {
    240 mq_open(name: PathPtr, flags: Bits, mode: Bits, attr: Ptr) [sync];
    241 mq_unlink(name: PathPtr) [sync];
    242 mq_timedsend(fd: i32, msg: Ptr, len: usize, priority: u32, timeout: Ptr) [wait];
    243 mq_timedreceive(fd: i32, msg: Ptr, len: usize, priority: Ptr, timeout: Ptr) [wait];
    244 mq_notify(fd: i32, event: Ptr) [sync, "no SIGEV_THREAD"];
    245 mq_getsetattr(fd: i32, new: Ptr, old: Ptr) [sync];
}

/// Priorities are below this (`MQ_PRIO_MAX`).
const PRIORITY_MAX: u32 = 32_768;

fn mq_open(cx: &mut Current, name: PathPtr, flags: Bits, mode: Bits, attr: Ptr) -> Result<i32> {
    let name = cx.path(name.0)?;
    let attr: Option<MqAttr> = if attr.is_null() { None } else { Some(cx.read_obj(attr.0)?) };
    let flags = OpenFlags::from_bits_retain(flags.0);
    if flags.bits() & 3 == 3 {
        return Err(Errno::EINVAL);
    }
    let limit = cx.rlimit(rlimit::NOFILE);
    cx.fds().check_room(limit)?;
    let open = MqOpen {
        name: &name,
        flags,
        mode: mode.0 & !cx.fs().umask(),
        attr,
        limit: cx.rlimit(rlimit::MSGQUEUE),
    };
    let file = cx.ipc().mqueues.open(&open, &cx.creds())?;
    let kept = OpenFlags::from_bits_retain(flags.bits() & 3) | flags & OpenFlags::NONBLOCK;
    cx.fds().add(anonymous(file, kept), true, limit)
}

fn mq_unlink(cx: &mut Current, name: PathPtr) -> Result<()> {
    let name = cx.path(name.0)?;
    cx.ipc().mqueues.unlink(&name, &cx.creds())
}

/// The queue of a descriptor; `EBADF` for another kind of file.
fn queue_of(cx: &Current, fd: i32) -> Result<(Arc<FileDescription>, Arc<Mqueue>)> {
    let file = cx.file(fd)?;
    let queue = file.ops().as_any().downcast_ref::<MqueueFile>().map(|f| Arc::clone(f.queue()));
    Ok((file, queue.ok_or(Errno::EBADF)?))
}

/// An absolute time on the clock of day, as a deadline.
fn deadline(cx: &Current, timeout: Ptr) -> Result<Option<Nanos>> {
    if timeout.is_null() {
        return Ok(None);
    }
    let at = cx.read_obj::<Timespec>(timeout.0)?.to_nanos().ok_or(Errno::EINVAL)?;
    Ok(Some(mono_at_real(at)))
}

fn wait_end(end: BlockEnd) -> Stop {
    match end {
        BlockEnd::TimedOut => Errno::ETIMEDOUT.into(),
        other => other.into(),
    }
}

async fn mq_timedsend(
    cx: &mut Current,
    fd: i32,
    msg: Ptr,
    len: usize,
    priority: u32,
    timeout: Ptr,
) -> SysResult<()> {
    if priority >= PRIORITY_MAX {
        return Err(Errno::EINVAL.into());
    }
    let deadline = deadline(cx, timeout)?;
    let (file, queue) = queue_of(cx, fd)?;
    if file.flags().bits() & 3 == 0 {
        return Err(Errno::EBADF.into());
    }
    if len > queue.message_bytes() {
        return Err(Errno::EMSGSIZE.into());
    }
    let mut text = vec![0; len];
    cx.copy_in(msg.0, &mut text)?;
    let sender = (cx.pid(), cx.creds().uid);
    if file.flags().contains(OpenFlags::NONBLOCK) {
        return match queue.try_send(&text, priority, sender) {
            IoStart::Done(()) => Ok(()),
            IoStart::WouldBlock => Err(Errno::EAGAIN.into()),
        };
    }
    let attempt = |_: &sentry_kernel::Task| Ok(queue.try_send(&text, priority, sender));
    cx.block_on(queue.events(), Events::WRITABLE, deadline, attempt).await.map_err(wait_end)
}

async fn mq_timedreceive(
    cx: &mut Current,
    fd: i32,
    msg: Ptr,
    len: usize,
    priority: Ptr,
    timeout: Ptr,
) -> SysResult<usize> {
    let deadline = deadline(cx, timeout)?;
    let (file, queue) = queue_of(cx, fd)?;
    if file.flags().bits() & 3 == 1 {
        return Err(Errno::EBADF.into());
    }
    if len < queue.message_bytes() {
        return Err(Errno::EMSGSIZE.into());
    }
    let (text, found) = match queue.try_receive() {
        IoStart::Done(message) => message,
        IoStart::WouldBlock if file.flags().contains(OpenFlags::NONBLOCK) => return Err(Errno::EAGAIN.into()),
        IoStart::WouldBlock => {
            queue.set_waiting(true);
            let attempt = |_: &sentry_kernel::Task| Ok(queue.try_receive());
            let end = cx.block_on(queue.events(), Events::READABLE, deadline, attempt).await;
            queue.set_waiting(false);
            end.map_err(wait_end)?
        }
    };
    if !priority.is_null() {
        cx.write_obj(priority.0, &found)?;
    }
    cx.copy_out(msg.0, &text)?;
    Ok(text.len())
}

fn mq_notify(cx: &mut Current, fd: i32, event: Ptr) -> Result<()> {
    let event = if event.is_null() { None } else { Some(cx.read_obj::<[u64; 2]>(event.0)?) };
    let Some([value, rest]) = event else {
        let (_, queue) = queue_of(cx, fd)?;
        queue.forget_notifier(cx.pid());
        return Ok(());
    };
    let signo = i32::try_from(rest & 0x7fff_ffff).unwrap_or(0);
    let kind = i32::try_from(rest >> 32).unwrap_or(-1);
    match kind {
        libc::SIGEV_NONE => {}
        libc::SIGEV_SIGNAL if rest & 0x8000_0000 == 0 && signo <= sig::MAX => {}
        libc::SIGEV_THREAD => return Err(Errno::ENOSYS),
        _ => return Err(Errno::EINVAL),
    }
    let (_, queue) = queue_of(cx, fd)?;
    let group = Arc::downgrade(cx.group());
    let tell: Box<dyn FnOnce(i32, u32) + Send> = Box::new(move |pid, uid| {
        if signo > 0
            && let Some(group) = group.upgrade()
        {
            let sender = group.pid_ns().local(pid);
            let info = SigInfo::queued(signo, SI_MESGQ, sender, uid, value);
            let _ = group.send(info, Origin::Inside);
        }
    });
    let notifier =
        Notifier { pid: cx.pid(), kind, signo, tell: (kind == libc::SIGEV_SIGNAL).then_some(tell) };
    queue.notify_me(notifier)
}

fn mq_getsetattr(cx: &mut Current, fd: i32, new: Ptr, old: Ptr) -> Result<()> {
    let nonblock = i64::from(OpenFlags::NONBLOCK.bits());
    let wanted = if new.is_null() {
        None
    } else {
        let attr: MqAttr = cx.read_obj(new.0)?;
        if attr.flags & !nonblock != 0 {
            return Err(Errno::EINVAL);
        }
        Some(attr.flags)
    };
    let (file, queue) = queue_of(cx, fd)?;
    let flags = file.flags();
    let present = MqAttr { flags: i64::from((flags & OpenFlags::NONBLOCK).bits()), ..queue.attr() };
    if let Some(wanted) = wanted {
        let rest = flags.difference(OpenFlags::NONBLOCK);
        file.set_flags(if wanted != 0 { rest | OpenFlags::NONBLOCK } else { rest });
    }
    if old.is_null() { Ok(()) } else { cx.write_obj(old.0, &present) }
}
