//! Shared memory segments (`shmget(2)`, `ipc/shm.c`).
//!
//! A mapping of a segment holds the segment itself, so the references tell how often it is attached. A segment that is
//! removed while attached leaves the registry's strong hold and lives on with its mappings alone.
//!
//! With `kernel.shm_rmid_forced` a segment ends with its last attachment, and one that nobody attached with its maker. That a
//! mapping is gone is seen by whoever looks at the segments next, and at the end of a task that made some.

use core::any::Any;
use std::sync::{Arc, Weak};

use abi::ipc::{IPC_PRIVATE, IpcPerm, SHM_DEST, SHM_LOCKED, ShmidDs};
use sentry_base::{Errno, Mutex, Result, lock::rank};
use sentry_memory::MemoryFile;
use sentry_mm::{FileMapping, Mappable, MappedFile, MappedPiece, SharedAnon};
use sentry_vfs::Credentials;

use crate::registry::{Entry, Registry};
use crate::{Limit, Limits, Perm, now_s};

#[derive(Debug)]
struct State {
    perm: Perm,
    atime: i64,
    dtime: i64,
    ctime: i64,
    cpid: i32,
    lpid: i32,
    /// The task that made it, while it is there; 0 after that.
    maker: usize,
    /// Whether it was attached since its end was forced.
    was_attached: bool,
}

/// A segment.
#[derive(Debug)]
pub struct Segment {
    pages: Arc<SharedAnon>,
    size: u64,
    state: Mutex<State, { rank::LEAF }>,
}

impl Segment {
    fn new(perm: Perm, size: u64, memory: &Arc<MemoryFile>, (pid, maker): (i32, usize)) -> Self {
        let pages = SharedAnon::new(memory, size.next_multiple_of(4096));
        let state = State {
            perm,
            atime: 0,
            dtime: 0,
            ctime: now_s(),
            cpid: pid,
            lpid: 0,
            maker,
            was_attached: false,
        };
        Self { pages, size, state: Mutex::new(state) }
    }

    /// Bytes, as asked for.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// How many mappings show the segment. `held` is how many references the caller has.
    fn attachments(self: &Arc<Self>, held: usize) -> u64 {
        self.attachments_of(&self.perm(), held)
    }

    fn attachments_of(self: &Arc<Self>, perm: &Perm, held: usize) -> u64 {
        let listed = usize::from(perm.mode & SHM_DEST == 0);
        Arc::strong_count(self).saturating_sub(held + listed) as u64
    }

    /// `IPC_STAT`; the caller has one reference.
    pub fn stat(self: &Arc<Self>) -> ShmidDs {
        let nattch = self.attachments(1);
        let state = self.state.lock();
        ShmidDs {
            perm: state.perm.show(),
            segsz: self.size,
            atime: state.atime,
            dtime: state.dtime,
            ctime: state.ctime,
            cpid: state.cpid,
            lpid: state.lpid,
            nattch,
            ..ShmidDs::default()
        }
    }

    /// `IPC_SET`.
    pub fn set(&self, from: &IpcPerm) {
        let mut state = self.state.lock();
        state.perm.set(from);
        state.ctime = now_s();
    }

    /// `SHM_LOCK` and `SHM_UNLOCK`: noted, as nothing is swapped here.
    pub fn set_locked(&self, locked: bool) {
        let mut state = self.state.lock();
        state.perm.mode = state.perm.mode & !SHM_LOCKED | if locked { SHM_LOCKED } else { 0 };
    }

    /// A mapping of the whole segment by process `pid`.
    pub fn attach(self: &Arc<Self>, writable: bool, pid: i32) -> FileMapping {
        let key = {
            let mut state = self.state.lock();
            state.atime = now_s();
            state.lpid = pid;
            state.was_attached = true;
            state.perm.key
        };
        FileMapping {
            file: Arc::clone(self) as Arc<dyn Mappable>,
            name: Some(Arc::new(Attachment { key })),
            offset: 0,
            readable: true,
            writable,
            noexec: false,
        }
    }

    /// Process `pid` has detached the segment.
    pub fn detached(&self, pid: i32) {
        let mut state = self.state.lock();
        state.dtime = now_s();
        state.lpid = pid;
    }
}

impl Entry for Segment {
    fn perm(&self) -> Perm {
        self.state.lock().perm
    }

    fn forget_key(&self) {
        let mut state = self.state.lock();
        state.perm.key = IPC_PRIVATE;
        state.perm.mode |= SHM_DEST;
    }

    fn weight(&self) -> u64 {
        self.size.div_ceil(4096)
    }
}

impl Mappable for Segment {
    fn pieces(&self, offset: u64, len: u64, write: bool) -> Result<Vec<MappedPiece>> {
        self.pages.pieces(offset, len, write)
    }

    fn identity(&self) -> (u64, u64) {
        self.pages.identity()
    }

    fn punch(&self, offset: u64, len: u64) -> Result<()> {
        self.pages.punch(offset, len)
    }
}

/// Names the mappings of a segment in `/proc/PID/maps`.
#[derive(Debug)]
pub struct Attachment {
    key: i32,
}

impl MappedFile for Attachment {
    fn path(&self) -> Option<Vec<u8>> {
        Some(format!("/SYSV{:08x} (deleted)", self.key).into_bytes())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// The segments of a namespace.
#[derive(Debug)]
pub struct Segments {
    limits: Arc<Limits>,
    live: Registry<Segment>,
    /// Removed, and still attached.
    dying: Mutex<Vec<(i32, Weak<Segment>)>, { rank::LEAF }>,
}

impl Segments {
    pub(crate) fn new(limits: &Arc<Limits>) -> Self {
        let live = Registry::new(limits, Limit::ShmMni);
        Self { limits: Arc::clone(limits), live, dying: Mutex::new(Vec::new()) }
    }

    /// Where a segment's end is forced, ends those that nobody has attached any more, or whose maker is gone. One that
    /// another thread looks at just now stays until the next look.
    pub fn sweep(&self) {
        if !self.limits.forced() {
            return;
        }
        for segment in self.live.all() {
            let (unwanted, attached) = {
                let state = segment.state.lock();
                (state.was_attached || state.maker == 0, segment.attachments_of(&state.perm, 1))
            };
            if unwanted && attached == 0 {
                self.live.remove(&segment);
            }
        }
    }

    /// From now on the end of segments is forced: those without a maker and attachments end at once.
    pub(crate) fn begin_to_force(&self) {
        for segment in self.live.all() {
            let mut state = segment.state.lock();
            state.was_attached = segment.attachments_of(&state.perm, 1) > 0;
        }
        self.sweep();
    }

    /// The task that `maker` stands for is gone, and its memory with it (`exit_shm`).
    pub fn maker_left(&self, maker: usize) {
        for segment in self.live.all() {
            let mut state = segment.state.lock();
            if state.maker == maker {
                state.maker = 0;
            }
        }
        self.sweep();
    }

    /// The segment of `key`, or a new one of `size` bytes for process `pid` and the task that `maker`, not 0, stands for.
    /// `EINVAL` for a size that cannot be or is larger than what is there, `ENOSPC` for more pages than the limit of all.
    pub fn get(
        &self,
        key: i32,
        size: u64,
        flags: u32,
        creds: &Credentials,
        memory: &Arc<MemoryFile>,
        by: (i32, usize),
    ) -> Result<i32> {
        self.sweep();
        let check = |s: &Segment| if s.size < size { Err(Errno::EINVAL) } else { Ok(()) };
        self.live.get(key, flags, creds, check, |perm, used| {
            if size == 0 || size > self.limits.get(Limit::ShmMax) {
                return Err(Errno::EINVAL);
            }
            if used.saturating_add(size.div_ceil(4096)) > self.limits.get(Limit::ShmAll) {
                return Err(Errno::ENOSPC);
            }
            // More than there are addresses can be had by nobody.
            if size > 1 << 46 {
                return Err(Errno::ENOMEM);
            }
            Ok(Segment::new(perm, size, memory, by))
        })
    }

    fn dying(&self) -> Vec<(i32, Arc<Segment>)> {
        let mut dying = self.dying.lock();
        dying.retain(|(_, segment)| segment.strong_count() > 0);
        dying.iter().filter_map(|(id, segment)| Some((*id, segment.upgrade()?))).collect()
    }

    /// The segment of an id; one that was removed and is still attached counts.
    pub fn find(&self, id: i32) -> Result<Arc<Segment>> {
        self.sweep();
        let found = self.live.find(id);
        if found.is_ok() {
            return found;
        }
        match self.dying().into_iter().find(|(dying, _)| *dying == id) {
            Some((_, segment)) => Ok(segment),
            None => found,
        }
    }

    /// The segment at an index (`SHM_STAT`).
    pub fn at_index(&self, index: i32) -> Result<Arc<Segment>> {
        self.sweep();
        self.live.at_index(index)
    }

    /// The segment whose pages a mapping shows.
    pub fn of_mapping(&self, identity: (u64, u64)) -> Option<Arc<Segment>> {
        let dying = self.dying().into_iter().map(|(_, segment)| segment);
        self.live.all().into_iter().chain(dying).find(|s| s.identity() == identity)
    }

    /// `IPC_RMID`: gone at once, or with the last attachment.
    pub fn remove(&self, segment: Arc<Segment>) {
        let id = segment.perm().id;
        // Weak first: at no time is an attached segment in neither place.
        self.dying.lock().push((id, Arc::downgrade(&segment)));
        segment.forget_key();
        self.live.remove(&segment);
    }

    /// Every segment, by id.
    pub fn all(&self) -> Vec<Arc<Segment>> {
        self.sweep();
        let mut all: Vec<_> = self.live.all();
        all.extend(self.dying().into_iter().map(|(_, segment)| segment));
        all.sort_by_key(|s| s.perm().id);
        all
    }

    /// The highest index in use; 0 for none.
    pub fn max_index(&self) -> i32 {
        self.sweep();
        self.live.max_index()
    }

    /// `/proc/sysvipc/shm`.
    pub fn table(&self) -> String {
        use core::fmt::Write;
        let mut out = String::from(
            "       key      shmid perms                  size  cpid  lpid nattch   uid   gid  cuid  cgid      \
             atime      dtime      ctime                   rss                  swap\n",
        );
        for segment in self.all() {
            let perm = segment.perm();
            let s = segment.stat();
            let _ = writeln!(
                out,
                "{:10} {:10}  {:4o} {:21} {:5} {:5}  {:5} {:5} {:5} {:5} {:5} {:10} {:10} {:10} {:21} {:21}",
                perm.key,
                perm.id,
                perm.mode,
                s.segsz,
                s.cpid,
                s.lpid,
                s.nattch,
                perm.uid,
                perm.gid,
                perm.cuid,
                perm.cgid,
                s.atime,
                s.dtime,
                s.ctime,
                0,
                0,
            );
        }
        out
    }
}
