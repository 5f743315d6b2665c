//! inotify instances (`inotify(7)`, `fs/notify/inotify`).

use core::any::Any;
use core::sync::atomic::{AtomicU32, Ordering};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Weak};

use sentry_base::lock::rank;
use sentry_base::{Errno, Events, KeyedMap, Mutex, Result, WaitQueue};
use sentry_memory::{UserReader, UserWriter};

use crate::watch::{WatchSink, event};
use crate::{FileOps, IoCtx, IoStart, Location, Pos, SuperBlock};

/// `fs.inotify.max_queued_events`
const QUEUE_MAX: usize = 16_384;
/// `fs.inotify.max_user_watches`, here of one instance.
const WATCH_MAX: usize = 65_536;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Queued {
    wd: i32,
    mask: u32,
    cookie: u32,
    name: Vec<u8>,
}

impl Queued {
    /// Bytes of the name with its NULs: the next multiple of the header's size.
    fn name_len(&self) -> usize {
        if self.name.is_empty() { 0 } else { (self.name.len() + 1).next_multiple_of(16) }
    }

    fn bytes(&self) -> Vec<u8> {
        let name_len = self.name_len();
        let mut out = Vec::with_capacity(16 + name_len);
        out.extend_from_slice(&self.wd.to_ne_bytes());
        out.extend_from_slice(&self.mask.to_ne_bytes());
        out.extend_from_slice(&self.cookie.to_ne_bytes());
        out.extend_from_slice(&u32::try_from(name_len).unwrap_or(0).to_ne_bytes());
        out.extend_from_slice(&self.name);
        out.resize(16 + name_len, 0);
        out
    }
}

struct Watched {
    sb: Weak<SuperBlock>,
    ino: u64,
    mask: u32,
}

/// The address of a superblock, which the watch keeps from being another one's, and an inode of it.
type Place = (usize, u64);

fn place_of(sb: &Weak<SuperBlock>, ino: u64) -> Place {
    (sb.as_ptr().addr(), ino)
}

#[derive(Default)]
struct State {
    queue: VecDeque<Queued>,
    watches: BTreeMap<i32, Watched>,
    /// The watch of each inode that has one.
    numbers: KeyedMap<Place, i32>,
    last_wd: i32,
}

impl State {
    fn remove(&mut self, wd: i32) -> Option<Watched> {
        let watched = self.watches.remove(&wd)?;
        self.numbers.remove(&place_of(&watched.sb, watched.ino));
        Some(watched)
    }
}

/// An inotify instance.
pub struct Inotify {
    me: Weak<Self>,
    state: Mutex<State, { rank::LEAF }>,
    waiters: WaitQueue,
}

impl core::fmt::Debug for Inotify {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Inotify")
    }
}

impl Drop for Inotify {
    fn drop(&mut self) {
        let sink: Weak<dyn WatchSink> = self.me.clone();
        for (wd, watched) in &self.state.get_mut().watches {
            if let Some(sb) = watched.sb.upgrade() {
                sb.watches().remove(watched.ino, *wd, &sink);
            }
        }
    }
}

/// A new number that ties the two events of one rename together.
pub(crate) fn next_cookie() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl Inotify {
    pub fn new() -> Arc<Self> {
        Arc::new_cyclic(|me| Self { me: me.clone(), state: Mutex::default(), waiters: WaitQueue::new() })
    }

    /// `inotify_add_watch(2)` on the inode at a place; `mask` as given.
    pub fn add_watch(self: &Arc<Self>, at: &Location, mask: u32) -> Result<i32> {
        let ino = at.inode().attr()?.ino;
        let sb = Arc::downgrade(at.mount.superblock());
        let keep = event::ALL | event::ONESHOT | event::EXCL_UNLINK;
        let (wd, mask) = {
            let mut state = self.state.lock();
            let place = place_of(&sb, ino);
            let held = state.numbers.get(&place).copied();
            if let Some((wd, watched)) = held.and_then(|wd| Some((wd, state.watches.get_mut(&wd)?))) {
                if mask & event::MASK_CREATE != 0 {
                    return Err(Errno::EEXIST);
                }
                let old = if mask & event::MASK_ADD != 0 { watched.mask } else { 0 };
                watched.mask = old | mask & keep;
                (wd, watched.mask)
            } else {
                if state.watches.len() >= WATCH_MAX {
                    return Err(Errno::ENOSPC);
                }
                state.last_wd = state.last_wd.checked_add(1).ok_or(Errno::ENOSPC)?;
                let wd = state.last_wd;
                state.numbers.insert(place, wd);
                state.watches.insert(wd, Watched { sb, ino, mask: mask & keep });
                (wd, mask & keep)
            }
        };
        let sink: Arc<dyn WatchSink> = Arc::clone(self) as Arc<dyn WatchSink>;
        at.watch(wd, mask, &sink)?;
        Ok(wd)
    }

    /// `inotify_rm_watch(2)`; `EINVAL` for a number that is no watch.
    pub fn remove_watch(&self, wd: i32) -> Result<()> {
        let watched = self.state.lock().remove(wd).ok_or(Errno::EINVAL)?;
        if let Some(sb) = watched.sb.upgrade() {
            let sink: Weak<dyn WatchSink> = self.me.clone();
            sb.watches().remove(watched.ino, wd, &sink);
        }
        self.push(Queued { wd, mask: event::IGNORED, cookie: 0, name: Vec::new() });
        Ok(())
    }

    fn push(&self, queued: Queued) {
        {
            let mut state = self.state.lock();
            if state.queue.back() == Some(&queued) {
                return;
            }
            if state.queue.len() >= QUEUE_MAX {
                let lost = Queued { wd: -1, mask: event::Q_OVERFLOW, cookie: 0, name: Vec::new() };
                if state.queue.back() != Some(&lost) {
                    state.queue.push_back(lost);
                }
                return;
            }
            state.queue.push_back(queued);
        }
        self.waiters.notify(Events::READABLE);
    }
}

impl WatchSink for Inotify {
    fn event(&self, wd: i32, mask: u32, cookie: u32, name: &[u8]) {
        let (known, oneshot) = {
            let state = self.state.lock();
            let watched = state.watches.get(&wd);
            (watched.is_some(), watched.is_some_and(|w| w.mask & event::ONESHOT != 0))
        };
        if !known {
            return;
        }
        self.push(Queued { wd, mask, cookie, name: name.to_vec() });
        if oneshot {
            // Gone already if two events raced: the first took it.
            let _ = self.remove_watch(wd);
        }
    }

    fn ignored(&self, wd: i32) {
        if self.state.lock().remove(wd).is_some() {
            self.push(Queued { wd, mask: event::IGNORED, cookie: 0, name: Vec::new() });
        }
    }
}

impl FileOps for Inotify {
    fn readiness(&self) -> Events {
        if self.state.lock().queue.is_empty() { Events::empty() } else { Events::READABLE }
    }

    fn wait_queue(&self) -> Option<&WaitQueue> {
        Some(&self.waiters)
    }

    fn try_read(&self, _io: &IoCtx<'_>, dst: &mut UserWriter<'_>, _pos: Pos) -> Result<IoStart<usize>> {
        let mut bytes = Vec::new();
        {
            let mut state = self.state.lock();
            if state.queue.is_empty() {
                return Ok(IoStart::WouldBlock);
            }
            while let Some(next) = state.queue.front() {
                if bytes.len() + 16 + next.name_len() > dst.remaining() {
                    break;
                }
                bytes.extend_from_slice(&next.bytes());
                state.queue.pop_front();
            }
        }
        if bytes.is_empty() {
            return Err(Errno::EINVAL);
        }
        dst.write(&bytes).map(IoStart::Done)
    }

    fn try_write(&self, _: &IoCtx<'_>, _: &mut UserReader<'_>, _: Pos) -> Result<IoStart<usize>> {
        Err(Errno::EBADF)
    }

    fn ioctl(&self, io: &IoCtx<'_>, command: u32, arg: u64) -> Result<i64> {
        if command != abi::tty::ioc::FIONREAD {
            return Err(Errno::ENOTTY);
        }
        let bytes: usize = self.state.lock().queue.iter().map(|q| 16 + q.name_len()).sum();
        io.caller.mem().copy_out(arg, &i32::try_from(bytes).unwrap_or(i32::MAX).to_ne_bytes())?;
        Ok(0)
    }

    fn attr(&self) -> Option<Result<crate::Attr>> {
        // The inode that all anonymous files share (`fs/anon_inodes.c`).
        let attr = crate::Attr::new(crate::FileKind::Regular, 0o600, 0x400, 14);
        Some(Ok(crate::Attr { mode: 0o600, btime: None, ..attr }))
    }

    fn link_text(&self) -> Option<String> {
        Some("anon_inode:inotify".into())
    }

    fn fdinfo(&self) -> String {
        let state = self.state.lock();
        let line =
            |(wd, w): (&i32, &Watched)| format!("inotify wd:{wd:x} ino:{:x} mask:{:x}\n", w.ino, w.mask);
        state.watches.iter().map(line).collect()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// The inotify instance behind an open file; `EINVAL` for any other.
pub fn as_inotify(ops: &Arc<dyn FileOps>) -> Result<Arc<Inotify>> {
    ops.as_any().downcast_ref::<Inotify>().and_then(|i| i.me.upgrade()).ok_or(Errno::EINVAL)
}
