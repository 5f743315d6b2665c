//! Contexts: a task's thread, run and stopped.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context as Poller, Poll, ready};

use platform::{
    Addr, AtHand, Cause, Context, Defaulted, FpuState, GIVEN_BYTES, GIVEN_PIECES, Identity, Kick, Regs,
    SpaceError, TrapEvent, Untrusted,
};

use crate::frame::{Channel, FrameAt};
use crate::layout::{self, NR_STAGED, STAGE_MAX, resident, word};
use crate::space::Space;
use crate::thread::{Running, Thread};

/// A context of the platform.
#[derive(Debug)]
pub struct SystrapContext {
    /// Keeps the process alive.
    space: Arc<Space>,
    thread: Arc<Thread>,
    /// The frame that the next run returns to; `None` while the thread runs.
    frame: Option<FrameAt>,
    /// The thread rests in the handler of a system call, where faults of its copies are mended.
    may_copy: bool,
    /// The next run begins with copies.
    has_given: bool,
    /// The next run may be waited for.
    may_linger: bool,
    /// Decides which calls of patched code take a trap all the same; zero for none.
    chance: u64,
    /// The registers that `frame` holds, where they were read from it.
    taken: Option<Regs>,
    /// The extended state that `frame` lacks after a call of patched code, once the thread has stored it.
    saved: Option<FpuState>,
    /// The thread is storing it.
    saving: bool,
    stage: [Piece; NR_STAGED],
    /// The signals that [`Context::answer_actions`] has named, without those that the application has set since.
    untouched: u64,
}

/// A piece of application memory that came with the last trap.
#[derive(Debug)]
struct Piece {
    address: Addr,
    len: usize,
    bytes: [u8; STAGE_MAX],
}

impl Default for Piece {
    fn default() -> Self {
        Self { address: 0, len: 0, bytes: [0; STAGE_MAX] }
    }
}

impl SystrapContext {
    pub(crate) fn new(space: Arc<Space>, thread: Arc<Thread>) -> Self {
        let frame = Some(thread.channel.fresh_frame());
        thread.channel.reset();
        let chance = match space.platform().slow.load(Ordering::Relaxed) {
            0 => 0,
            seed => {
                let which = (u64::from(thread.process.pid.unsigned_abs()) << 16) ^ thread.slot;
                (seed ^ which.wrapping_mul(0x9e37_79b9_7f4a_7c15)) | 1
            }
        };
        Self {
            space,
            thread,
            frame,
            may_copy: false,
            has_given: false,
            may_linger: false,
            chance,
            taken: None,
            saved: None,
            saving: false,
            stage: Default::default(),
            untouched: 0,
        }
    }

    fn take_trap(&mut self, regs: &mut Regs) -> TrapEvent {
        let channel = &self.thread.channel;
        let Some(frame) = channel.frame() else {
            let cause = Cause::Protocol("a trap without a signal frame");
            self.thread.process.kill(cause);
            return TrapEvent::Died(cause);
        };
        *regs = channel.read_regs(frame);
        self.taken = Some(*regs);
        let event = channel.event(frame, regs);
        self.frame = Some(frame);
        self.has_given = false;
        self.may_copy = match event {
            TrapEvent::Syscall => true,
            TrapEvent::Undelivered => self.may_copy,
            _ => false,
        };
        if event == TrapEvent::Interrupted {
            // One kick, one interruption, where the two meet.
            self.thread.take_kick();
        }
        self.take_stage();
        event
    }

    /// Throws dice for the run that begins: whether the next call of patched code takes a trap, and whether a return to such
    /// code goes through the host.
    fn try_luck(&mut self) -> bool {
        if self.chance == 0 {
            return false;
        }
        // xorshift64
        self.chance ^= self.chance << 13;
        self.chance ^= self.chance >> 7;
        self.chance ^= self.chance << 17;
        let takes_calls = self.thread.channel.takes_calls && self.chance & 1 == 0;
        self.thread.channel.window.store32(word::TAKES_CALLS, u32::from(takes_calls));
        self.chance & 6 == 0
    }

    /// The frame with which the thread can go back to `regs`: after a call of patched code not always the one it has.
    fn poll_frame_to_leave(
        &mut self,
        cx: &mut Poller<'_>,
        frame: FrameAt,
        regs: &Regs,
    ) -> Poll<Result<FrameAt, SpaceError>> {
        // Where the state is being stored for this, the dice are thrown.
        if !self.saving {
            let slow = self.try_luck();
            if frame != FrameAt::CALL || (Channel::leaves_call(regs) && !slow) {
                return Poll::Ready(Ok(frame));
            }
        }
        ready!(self.poll_settle(cx))?;
        if let Some(state) = self.saved.take() {
            let taken = self.set_fpu(&state);
            if taken.is_err() {
                self.thread
                    .process
                    .kill(Cause::Protocol("a thread stored a state that the host would refuse"));
            }
            taken?;
        }
        Poll::Ready(self.frame.ok_or(SpaceError::Gone))
    }

    /// Has the stub store the extended state that is still in the processor's registers. The thread may refuse, and keeps
    /// nobody by it.
    fn poll_save(&mut self, cx: &mut Poller<'_>) -> Poll<()> {
        let running = &self.space.platform().running;
        if !self.saving {
            self.thread.channel.ask_to_save();
            if running.start_saving(&self.thread) {
                return Poll::Ready(());
            }
            self.saving = true;
            self.thread.set_waker(cx.waker());
            running.list(&self.thread);
            return Poll::Pending;
        }
        if !running.finish(&self.thread) {
            self.thread.set_waker(cx.waker());
            // As in a run.
            if !running.finish(&self.thread) {
                return Poll::Pending;
            }
        }
        self.saving = false;
        Poll::Ready(())
    }

    fn take_stage(&mut self) {
        let window = &self.thread.channel.window;
        for (index, piece) in self.stage.iter_mut().enumerate() {
            let at = word::STAGE + index * 16;
            let len = Untrusted::fetched(window.load64(at + 8)).check(|len| *len <= STAGE_MAX as u64);
            piece.len = len.unwrap_or(0) as usize;
            if piece.len == 0 {
                continue;
            }
            piece.address = window.load64(at);
            if let Some(bytes) = piece.bytes.get_mut(..piece.len) {
                window.read(word::STAGE_DATA + index * STAGE_MAX, bytes);
            }
        }
    }
}

impl Context for SystrapContext {
    fn poll_switch(&mut self, cx: &mut Poller<'_>, regs: &mut Regs) -> Poll<TrapEvent> {
        let space = Arc::clone(&self.space);
        let platform = space.platform();
        if let Some(frame) = self.frame {
            if self.thread.process.is_gone() {
                return Poll::Ready(TrapEvent::Died(self.thread.process.cause()));
            }
            let Ok(frame) = ready!(self.poll_frame_to_leave(cx, frame, regs)) else {
                return Poll::Ready(TrapEvent::Died(self.thread.process.cause()));
            };
            self.saved = None;
            self.thread.channel.write_regs(frame, regs, self.taken.take().as_ref());
            let is_free = std::mem::take(&mut self.may_linger);
            if !platform.running.start(&self.thread, is_free) {
                if std::mem::take(&mut self.has_given) {
                    self.thread.channel.window.store32(word::GIVEN_COUNT, 0);
                    return Poll::Ready(TrapEvent::Undelivered);
                }
                return Poll::Ready(TrapEvent::Interrupted);
            }
            self.frame = None;
            if is_free && platform.running.linger(&self.thread) {
                return Poll::Ready(self.take_trap(regs));
            }
            self.thread.set_waker(cx.waker());
            platform.running.list(&self.thread);
            return Poll::Pending;
        }
        if !platform.running.finish(&self.thread) {
            self.thread.set_waker(cx.waker());
            // The trap may have been announced to the waker before.
            if !platform.running.finish(&self.thread) {
                return Poll::Pending;
            }
        }
        if self.thread.process.is_gone() {
            self.frame = Some(self.thread.channel.fresh_frame());
            self.taken = None;
            self.may_copy = false;
            return Poll::Ready(TrapEvent::Died(self.thread.process.cause()));
        }
        Poll::Ready(self.take_trap(regs))
    }

    fn staged(&self, addr: Addr) -> Option<&[u8]> {
        let piece = self.stage.iter().find(|piece| piece.len > 0 && piece.address == addr)?;
        piece.bytes.get(..piece.len)
    }

    fn give(&mut self, pieces: &[(Addr, usize)], bytes: &[u8]) -> bool {
        let fits = pieces.len() <= GIVEN_PIECES && bytes.len() <= GIVEN_BYTES;
        let whole =
            pieces.iter().try_fold(0_usize, |sum, (_, len)| sum.checked_add(*len)) == Some(bytes.len());
        let theirs = |(at, len): &(Addr, usize)| {
            at.checked_add(*len as u64).is_some_and(|end| end <= layout::user_range().end)
        };
        if !(self.may_copy && self.frame.is_some() && fits && whole && pieces.iter().all(theirs)) {
            return false;
        }
        let window = &self.thread.channel.window;
        for (index, (at, len)) in pieces.iter().enumerate() {
            window.store64(word::GIVEN + index * 16, *at);
            window.store64(word::GIVEN + index * 16 + 8, *len as u64);
        }
        window.write(word::GIVEN_DATA, bytes);
        window.store32(word::GIVEN_COUNT, pieces.len() as u32);
        self.has_given = !pieces.is_empty();
        true
    }

    fn answer(&mut self, identity: Option<Identity>) {
        let window = &self.thread.channel.window;
        self.thread.known.forget(window);
        self.thread.hand.forget(window);
        let identity = identity.filter(|_| self.space.platform().answers.load(Ordering::Relaxed));
        let Some(Identity { pid, tid, uid, euid, gid, egid }) = identity else {
            window.store32(word::RESIDENT, 0);
            return;
        };
        let answers = [
            (resident::PID, pid),
            (resident::TID, tid),
            (resident::UID, uid),
            (resident::EUID, euid),
            (resident::GID, gid),
            (resident::EGID, egid),
        ];
        for (index, answer) in answers {
            window.store32(word::ANSWERS + index as usize * 4, answer);
        }
        window.store32(word::RESIDENT, resident::ALL);
    }

    fn answer_actions(&mut self, untouched: u64) {
        self.untouched = untouched;
        self.thread.channel.window.store64(word::UNTOUCHED, untouched);
    }

    fn take_defaulted(&mut self) -> Option<Defaulted> {
        let window = &self.thread.channel.window;
        let defaulted = window.load64(word::DEFAULTED);
        if defaulted == 0 {
            return None;
        }
        window.store64(word::DEFAULTED, 0);
        let signals = defaulted & self.untouched & layout::MAY_DEFAULT;
        self.untouched &= !signals;
        let load = |index: usize| window.load64(word::DEFAULT + index * 8);
        Some(Defaulted { signals, flags: load(0), restorer: load(1), mask: load(2) })
    }

    fn remember_directory(&mut self, path: &[u8], epoch: u64) {
        self.thread.known.remember(&self.thread.channel.window, path, epoch);
    }

    fn at_hand(&self) -> Option<Arc<dyn AtHand>> {
        let answers = self.space.platform().answers.load(Ordering::Relaxed);
        answers.then(|| Arc::clone(&self.thread) as Arc<dyn AtHand>)
    }

    fn poll_settle(&mut self, cx: &mut Poller<'_>) -> Poll<Result<(), SpaceError>> {
        const BUSY: SpaceError = SpaceError::Host(libc::EBUSY);
        if self.frame.ok_or(BUSY)? != FrameAt::CALL || self.saved.is_some() {
            return Poll::Ready(Ok(()));
        }
        ready!(self.poll_save(cx));
        if self.thread.process.is_gone() {
            return Poll::Ready(Err(SpaceError::Gone));
        }
        self.saved = Some(self.thread.channel.saved_state());
        Poll::Ready(Ok(()))
    }

    fn fpu(&mut self) -> Result<FpuState, SpaceError> {
        const BUSY: SpaceError = SpaceError::Host(libc::EBUSY);
        let frame = self.frame.ok_or(BUSY)?;
        if frame == FrameAt::CALL { self.saved.clone().ok_or(BUSY) } else { self.thread.channel.fpu(frame) }
    }

    fn set_fpu(&mut self, state: &FpuState) -> Result<(), SpaceError> {
        const BUSY: SpaceError = SpaceError::Host(libc::EBUSY);
        let frame = self.frame.filter(|_| !self.saving).ok_or(BUSY)?;
        self.frame = Some(self.thread.channel.set_fpu(frame, state)?);
        self.taken = None;
        self.saved = None;
        Ok(())
    }

    fn will_block(&mut self) {
        self.thread.stop_spinning();
    }

    fn may_linger(&mut self, may: bool) {
        self.may_linger = may;
    }

    fn kicker(&self) -> Arc<dyn Kick> {
        Arc::clone(&self.thread) as Arc<dyn Kick>
    }
}

impl Drop for SystrapContext {
    fn drop(&mut self) {
        Running::abandon(&self.thread);
    }
}
