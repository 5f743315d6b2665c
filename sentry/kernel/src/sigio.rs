//! Signals of files: `O_ASYNC`, urgent data of sockets and directory notification (`fcntl(2)` with `F_SETFL`,
//! `F_SETOWN`, `F_SETSIG` and `F_NOTIFY`; `fs/fcntl.c`, `fs/notify/dnotify`).
//!
//! What happens to a file is told under locks of that file, so that the signal itself is sent by a future of its own.

use core::any::Any;
use core::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};

use abi::signal::{SI_KERNEL, SigInfo};
use sentry_base::lock::rank;
use sentry_base::{Errno, Events, Mutex, Observer, Result};
use sentry_vfs::watch::{WatchSink, event};
use sentry_vfs::{FileDescription, FileKind, Inotify, OpenFlags, SuperBlock};

use crate::signal::Origin;
use crate::{Kernel, ThreadGroup};

/// `POLL_IN` and its kin: the `si_code` of a file's signal, and the `si_band` with it.
const REASONS: [(Events, i32, u32); 4] = [
    (Events::URGENT, 5, 0x082),
    (Events::READABLE, 1, 0x041),
    (Events::WRITABLE, 2, 0x304),
    (Events::ALWAYS, 6, 0x018),
];
const POLL_MSG: i32 = 3;
const POLL_MSG_BAND: u32 = 0x441;

/// Has `send` called with each process that owns a file (`F_SETOWN`) and that whoever set the owner may signal.
fn to_owners(kernel: &Kernel, file: &FileDescription, send: impl Fn(&Arc<ThreadGroup>)) {
    let owner = file.owner().load(Ordering::Relaxed);
    let to: Vec<Arc<ThreadGroup>> = match owner {
        0 => return,
        owner if owner < 0 => kernel.group_members(owner.wrapping_neg()),
        owner => kernel.process(owner).into_iter().collect(),
    };
    let (uid, euid) = file.owner_set_by();
    for process in to {
        let Some(leader) = process.threads().first().map(Arc::clone) else { continue };
        let creds = leader.creds();
        // `sigio_perm`
        if euid == 0 || [euid, uid].iter().any(|id| *id == creds.uid || *id == creds.suid) {
            send(&process);
        }
    }
}

/// Tells the owner of a file of an event on it (`send_sigio`).
fn send(kernel: &Kernel, file: &FileDescription, fd: i32, code: i32, band: u32) {
    let plain = SigInfo::kernel(libc::SIGIO, SI_KERNEL);
    to_owners(kernel, file, |process| {
        let sent = match file.signal().load(Ordering::Relaxed) {
            0 => process.send(plain, Origin::Inside),
            // A queue that is full loses the reason and not the event.
            signal => process
                .send(SigInfo::poll(signal, code, band, fd), Origin::Inside)
                .or_else(|_| process.send(plain, Origin::Inside)),
        };
        // One that is on its way out hears nothing any more.
        let _ = sent;
    });
}

/// Tells the owner of a socket of urgent data (`send_sigurg`).
fn send_urgent(kernel: &Kernel, file: &FileDescription) {
    to_owners(kernel, file, |process| {
        let _ = process.send(SigInfo::kernel(libc::SIGURG, SI_KERNEL), Origin::Inside);
    });
}

/// The lease on a file is to be given up.
pub(crate) fn tell_owner(kernel: &Kernel, file: &FileDescription, fd: i32) {
    send(kernel, file, fd, POLL_MSG, POLL_MSG_BAND);
}

/// Sits in the queue of a file whose owner hears of events.
struct Watch {
    me: Weak<Watch>,
    kernel: Weak<Kernel>,
    file: Weak<FileDescription>,
    fd: i32,
    /// Of every event (`O_ASYNC`), not of urgent data alone.
    every: bool,
    /// Events that are to be told.
    due: AtomicU32,
}

impl Watch {
    fn tell(&self, kernel: &Kernel, events: Events) {
        let Some(file) = self.file.upgrade() else { return };
        if events.contains(Events::URGENT) && file.ops().kind() == FileKind::Socket {
            send_urgent(kernel, &file);
        }
        for (which, code, band) in REASONS.iter().filter(|_| self.every) {
            // Urgent data has a signal of its own, and this one if it was chosen (`kill_fasync`).
            let has_own = *which == Events::URGENT && file.signal().load(Ordering::Relaxed) == 0;
            if events.intersects(*which) && !has_own {
                send(kernel, &file, self.fd, *code, *band);
            }
        }
    }
}

impl Observer for Watch {
    fn notify(&self, events: Events) {
        if self.due.fetch_or(events.bits(), Ordering::SeqCst) != 0 {
            return;
        }
        let (Some(me), Some(kernel)) = (self.me.upgrade(), self.kernel.upgrade()) else { return };
        let executor = Arc::clone(kernel.executor());
        executor.spawn(async move {
            me.tell(&kernel, Events::from_bits_truncate(me.due.swap(0, Ordering::SeqCst)));
        });
    }
}

/// Whether files of this kind send signals (`file_operations.fasync`).
pub fn can_signal(file: &FileDescription) -> bool {
    let ops = file.ops();
    let kind = file.inode().map_or_else(|| ops.kind(), |inode| inode.kind());
    let by_kind = matches!(kind, FileKind::Fifo | FileKind::Socket | FileKind::CharDevice);
    ops.wait_queue().is_some() && (by_kind || ops.as_any().is::<Inotify>())
}

/// Has the owner of a file hear of its events: of every one with `O_ASYNC`, else of urgent data if it is a socket.
/// `fd` is what they name it by.
fn watch(kernel: &Arc<Kernel>, file: &Arc<FileDescription>, fd: i32, every: bool) {
    let mut mask = Events::empty();
    if every {
        mask.set(Events::READABLE | Events::URGENT | Events::RDHUP, file.flags().reads());
        mask.set(Events::WRITABLE, file.flags().writes());
    }
    if file.ops().kind() == FileKind::Socket && file.owner().load(Ordering::Relaxed) != 0 {
        mask |= Events::URGENT;
    }
    let observer = (!mask.is_empty()).then(|| {
        let observer: Arc<dyn Observer> = Arc::new_cyclic(|me| Watch {
            me: Weak::clone(me),
            kernel: Arc::downgrade(kernel),
            file: Arc::downgrade(file),
            fd,
            every,
            due: AtomicU32::new(0),
        });
        (mask, observer)
    });
    file.watch_readiness(observer);
}

/// The file has got another owner.
pub fn settle_owner(kernel: &Arc<Kernel>, file: &Arc<FileDescription>, fd: i32) {
    if !file.flags().contains(OpenFlags::ASYNC) {
        watch(kernel, file, fd, false);
    }
}

/// `DN_*` and the events that each stands for.
const NOTICES: [(u32, u32); 6] = [
    (0x01, event::ACCESS),
    (0x02, event::MODIFY),
    (0x04, event::CREATE | event::MOVED_TO),
    (0x08, event::DELETE | event::MOVED_FROM),
    (0x10, event::MOVED_FROM),
    (0x20, event::ATTRIB),
];
const DN_MULTISHOT: u32 = 0x8000_0000;

/// The notification that a descriptor of a directory has asked for.
struct Notify {
    me: Weak<Notify>,
    kernel: Weak<Kernel>,
    file: Weak<FileDescription>,
    fd: i32,
    sb: Weak<SuperBlock>,
    ino: u64,
    /// As asked for with `F_NOTIFY`; 0 when it is over.
    asked: Mutex<u32, { rank::LEAF }>,
}

impl Notify {
    fn forget(&self) {
        if let Some(sb) = self.sb.upgrade() {
            let me: Weak<dyn WatchSink> = self.me.clone();
            sb.watches().remove(self.ino, 0, &me);
        }
    }
}

impl Drop for Notify {
    fn drop(&mut self) {
        self.forget();
    }
}

impl WatchSink for Notify {
    fn event(&self, _wd: i32, _mask: u32, _cookie: u32, _name: &[u8]) {
        let once = {
            let mut asked = self.asked.lock();
            if *asked == 0 {
                return;
            }
            let once = *asked & DN_MULTISHOT == 0;
            if once {
                *asked = 0;
            }
            once
        };
        if once {
            self.forget();
        }
        let (Some(kernel), Some(file)) = (self.kernel.upgrade(), self.file.upgrade()) else { return };
        let fd = self.fd;
        let executor = Arc::clone(kernel.executor());
        executor.spawn(async move { send(&kernel, &file, fd, POLL_MSG, POLL_MSG_BAND) });
    }

    fn ignored(&self, _wd: i32) {
        *self.asked.lock() = 0;
    }
}

/// `F_NOTIFY`: adds to what `file`, a directory, is watched for, or ends that with 0. `ENOTDIR` for other files.
pub fn notify(
    kernel: &Arc<Kernel>,
    file: &Arc<FileDescription>,
    fd: i32,
    asked: u32,
    pid: i32,
) -> Result<()> {
    let at = file.location().ok_or(Errno::ENOTDIR)?;
    if at.inode().kind() != FileKind::Directory {
        return Err(Errno::ENOTDIR);
    }
    if asked & !DN_MULTISHOT == 0 {
        file.attach(None);
        return Ok(());
    }
    let _ = file.owner().compare_exchange(0, pid, Ordering::Relaxed, Ordering::Relaxed);
    let known = file.attachment().and_then(|any| any.downcast::<Notify>().ok());
    let (notify, asked) = if let Some(notify) = known {
        let asked = {
            let mut now = notify.asked.lock();
            *now |= asked;
            *now
        };
        (notify, asked)
    } else {
        let ino = at.inode().attr()?.ino;
        let notify = Arc::new_cyclic(|me| Notify {
            me: Weak::clone(me),
            kernel: Arc::downgrade(kernel),
            file: Arc::downgrade(file),
            fd,
            sb: Arc::downgrade(at.mount.superblock()),
            ino,
            asked: Mutex::new(asked),
        });
        let any: Arc<dyn Any + Send + Sync> = Arc::clone(&notify) as _;
        file.attach(Some(any));
        (notify, asked)
    };
    let mask = NOTICES.iter().filter(|(bit, _)| asked & bit != 0).fold(0, |mask, (_, events)| mask | events);
    let sink: Arc<dyn WatchSink> = notify;
    at.watch(0, mask, &sink)?;
    Ok(())
}

/// What `F_SETFL` and `FIOASYNC` leave of `O_ASYNC` on a file, and its signals set to it.
pub fn settle_async(
    kernel: &Arc<Kernel>,
    file: &Arc<FileDescription>,
    fd: i32,
    wanted: OpenFlags,
) -> OpenFlags {
    if !can_signal(file) {
        return wanted.difference(OpenFlags::ASYNC);
    }
    let on = wanted.contains(OpenFlags::ASYNC);
    if on != file.flags().contains(OpenFlags::ASYNC) {
        watch(kernel, file, fd, on);
    }
    wanted
}
