//! A TCP connection with the outside, joined to its socket.
//!
//! The socket has one end of a [`LoopStream`], as over the loopback; the other end, the *wire*, is served by the flow:
//! it moves bytes between the stream and the flow's packets, and a FIN or a reset that happens on one side to the other.
//! So a socket need not know where its peer is.
//!
//! **Locks.** A flow's own lock comes after the turn of a reader or writer, and before the stream's. No socket's state is
//! locked under it: what sockets are to hear is told after it is released.

use core::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use netstack::flow::{KeepAlive, Settings, TcpFlow, Tuple};
use netstack::frame::Frame;
use netstack::iface::Route;
use netstack::stream::{Change, End, LoopStream, Taken, TcpState};
use netstack::{Chunk, buffer};
use sentry_base::{Mutex, Nanos, lock::rank, mono_now};

use super::memory::Granted;
use super::outbox::{Outbox, Turn};
use super::outside::Outside;
use super::tcp::{Link, Side, TcpCore};
use super::{Inet, addr};

/// What a socket may have queued at the wire, and the wire at the socket, in bytes.
pub(super) const QUEUE_OUT: usize = 512 << 10;
pub(super) const QUEUE_IN: usize = 2 << 20;

const SECOND: Nanos = 1_000_000_000;
/// How long a program that reads has, with half a queue of bytes before it, until more is put there.
const PATIENCE: Nanos = 5_000_000;
/// How long an unanswered SYN, an unanswered SYN of the other end, and unacknowledged data are sent again
/// (`tcp_syn_retries`, `tcp_synack_retries`, `tcp_retries2`).
const OPENING: Nanos = 127 * SECOND;
const HALF_OPEN: Nanos = 63 * SECOND;
const UNANSWERED: Nanos = 924 * SECOND;
/// The same for connections that no socket has any more (`tcp_orphan_retries`), and how long such a one waits for the
/// other end's FIN (`tcp_fin_timeout`).
const ORPHAN: Nanos = 100 * SECOND;
const FIN_WAIT: Nanos = 60 * SECOND;

#[derive(Debug)]
enum Stage {
    /// A socket connects.
    Opening(Weak<TcpCore>),
    /// The other end connects to a listener.
    HalfOpen(Weak<TcpCore>),
    /// The listener takes it in.
    Admitting,
    Open,
    Over,
}

#[derive(Debug)]
struct Inner {
    tcp: TcpFlow,
    stage: Stage,
    /// The stream that it shares with a socket, once there is one.
    link: Option<Arc<Link>>,
    /// The end of that which is the wire.
    wire: End,
    /// When the other end was heard of last, and since when it owes an answer.
    heard: Nanos,
    waits_since: Option<Nanos>,
    /// Since when no socket has it.
    orphan_since: Option<Nanos>,
    /// Since when bytes are held back from a socket that has enough.
    held_since: Option<Nanos>,
    /// Packets have come that [`Flow::answer`] will be called for.
    is_to_answer: bool,
    /// A FIN was passed on: to the packets, to the socket.
    sent_fin: bool,
    told_fin: bool,
    user_timeout: Option<Nanos>,
    keep_alive: Option<KeepAlive>,
    /// Questions that the other end has not answered, and when the last one was sent.
    probes: u32,
    probed: Nanos,
}

/// A connection with the outside.
#[derive(Debug)]
pub(crate) struct Flow {
    me: Weak<Flow>,
    net: Arc<Inet>,
    tuple: Tuple,
    route: Route,
    /// Held for its buffers.
    _granted: Granted,
    inner: Mutex<Inner, { rank::FILE_DATA }>,
    /// Filled under `inner`, and emptied without it.
    outbox: Outbox,
    /// The earliest time for which it is in the list of timers.
    scheduled: AtomicU64,
}

/// What a turn has brought about, to be told without the flow's lock.
#[derive(Default)]
struct News {
    change: Change,
    link: Option<Arc<Link>>,
    opened: Option<(Weak<TcpCore>, bool)>,
    failed: Option<(Weak<TcpCore>, netstack::Error)>,
    gone: bool,
}

impl Flow {
    fn make(
        net: &Arc<Inet>,
        outside: &Outside,
        (tuple, route): (Tuple, Route),
        core: &Arc<TcpCore>,
        granted: Granted,
        connects: bool,
        link: impl FnOnce(&Weak<Self>) -> Option<Arc<Link>>,
    ) -> Option<Arc<Self>> {
        let now = mono_now();
        let first = outside.flows.lock().first_sequence(&tuple, now);
        let settings = core.flow_settings(&route);
        let core = Arc::downgrade(core);
        let stage = if connects { Stage::Opening(core) } else { Stage::HalfOpen(core) };
        let tcp = if connects {
            TcpFlow::connect(tuple, first, granted.buffer, &settings, now)
        } else {
            TcpFlow::accept(tuple, first, granted.buffer, &settings, now)
        };
        let tcp = tcp.ok()?;
        let flow = Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            net: Arc::clone(net),
            tuple,
            route,
            _granted: granted,
            inner: Mutex::new(Inner {
                tcp,
                stage,
                link: link(me),
                wire: if connects { End::Server } else { End::Client },
                heard: now,
                waits_since: None,
                orphan_since: None,
                held_since: None,
                is_to_answer: false,
                sent_fin: false,
                told_fin: false,
                user_timeout: None,
                keep_alive: settings.keep_alive,
                probes: 0,
                probed: now,
            }),
            outbox: Outbox::default(),
            scheduled: AtomicU64::new(Nanos::MAX),
        });
        outside.flows.lock().insert(tuple, Arc::clone(&flow)).then_some(flow)
    }

    /// A connection that the other end opens.
    pub(super) fn half_open(
        net: &Arc<Inet>,
        outside: &Outside,
        listener: &Arc<TcpCore>,
        (tuple, route): (Tuple, Route),
        granted: Granted,
    ) -> Option<Arc<Self>> {
        Self::make(net, outside, (tuple, route), listener, granted, false, |_| None)
    }

    /// A connection that `core` opens. Call [`Flow::begin`] when the socket knows of it.
    pub(super) fn opening(
        net: &Arc<Inet>,
        outside: &Outside,
        core: &Arc<TcpCore>,
        tuple: Tuple,
        route: Route,
        side: Side,
    ) -> Option<Arc<Self>> {
        let granted = net.memory.grant(true)?;
        Self::make(net, outside, (tuple, route), core, granted, true, |me| {
            let mut stream = LoopStream::new(core.limits_outside(), (0, 0));
            core.configure_stream(&mut stream, End::Client, true);
            stream.set_urgent_inline(End::Server, true);
            Some(Link::new(net, stream, side, Side::Wire(Weak::clone(me))))
        })
    }

    pub(super) fn begin(&self) {
        self.turn(None);
    }

    pub(super) fn tuple(&self) -> Tuple {
        self.tuple
    }

    /// Takes a packet. True if nothing has been done about it but to keep what it brought: [`Flow::answer`] is to be called
    /// when the packets that came with it have been taken, too, so that one answer does for all.
    pub(super) fn arrived(&self, packet: &[u8]) -> bool {
        let Some(outside) = self.net.outside.get() else { return false };
        let mut frames = Vec::new();
        let mut inner = self.inner.lock();
        if !matches!(inner.stage, Stage::Open) {
            drop(inner);
            self.turn(Some(packet));
            return false;
        }
        inner.take(packet, mono_now(), &mut frames);
        // Urgent data is told of at once, and before the bytes that come with it are there.
        let goes_on =
            matches!(inner.tcp.state(), TcpState::Established | TcpState::FinWait1 | TcpState::FinWait2)
                && !inner.tcp.has_urgent();
        inner.is_to_answer = goes_on;
        let turn = self.leave(&mut inner, frames);
        drop(inner);
        self.send_all(outside, turn);
        if !goes_on {
            self.turn(None);
        }
        goes_on
    }

    pub(super) fn timer_fired(&self) {
        self.scheduled.store(Nanos::MAX, Ordering::Relaxed);
        self.turn(None);
    }

    /// The socket has read, written or closed.
    pub(super) fn stirred(&self) {
        self.turn(None);
    }

    /// Packets have come.
    pub(super) fn answer(&self) {
        self.inner.lock().is_to_answer = false;
        self.turn(None);
    }

    /// The socket does not want to connect any more.
    pub(super) fn cancel(&self) {
        {
            let mut inner = self.inner.lock();
            inner.tcp.abort();
            inner.stage = Stage::Over;
        }
        self.forget();
    }

    /// Too many others have begun since this was: it is forgotten, unless it stands by now.
    pub(super) fn lose_place(&self) {
        {
            let mut inner = self.inner.lock();
            if !matches!(inner.stage, Stage::HalfOpen(_)) {
                return;
            }
            inner.stage = Stage::Over;
        }
        self.forget();
    }

    /// Options of the socket have changed.
    pub(super) fn configure(&self, settings: &Settings, user_timeout: Option<Nanos>) {
        let mut inner = self.inner.lock();
        inner.tcp.configure(settings);
        inner.user_timeout = user_timeout;
        inner.keep_alive = settings.keep_alive;
    }

    /// The state as the packets have it, and bytes that are not acknowledged.
    pub(super) fn condition(&self) -> (TcpState, usize, usize) {
        let inner = self.inner.lock();
        (inner.tcp.state(), inner.tcp.unacknowledged(), inner.tcp.segment_size())
    }

    pub(super) fn route(&self) -> &Route {
        &self.route
    }

    /// Whether an error may be about a segment of this flow: one that is sent and not acknowledged (RFC 5927).
    pub(super) fn has_sent(&self, sequence: u32) -> bool {
        self.inner.lock().tcp.is_unacknowledged(sequence)
    }

    pub(super) fn has_unsent(&self) -> bool {
        self.inner.lock().has_unsent()
    }

    /// The path carries less than was thought.
    pub(super) fn narrow_path(&self, mtu: usize) {
        self.inner.lock().tcp.narrow_path(mtu);
    }

    /// A router says that the other end cannot be reached: the end of a connection that is being opened, and otherwise no
    /// reason to give up (`tcp_v4_err`).
    pub(super) fn unreachable(&self, error: netstack::Error) {
        let owner = {
            let mut inner = self.inner.lock();
            let Stage::Opening(owner) = &inner.stage else { return };
            let owner = Weak::clone(owner);
            inner.stage = Stage::Over;
            owner
        };
        self.forget();
        if let Some(core) = owner.upgrade() {
            core.fail(addr::errno(error));
        }
    }

    fn forget(&self) {
        if let Some(outside) = self.net.outside.get() {
            let is_this = |flow: &Arc<Self>| core::ptr::eq(Arc::as_ptr(flow), self);
            let gone = outside.flows.lock().remove(&self.tuple, is_this);
            drop(gone);
        }
    }

    /// Takes a packet, moves what can be moved, sends what is due, and tells.
    fn turn(&self, arrived: Option<&[u8]>) {
        let Some(outside) = self.net.outside.get() else { return };
        let mut again = self.turn_once(outside, arrived);
        while again {
            again = self.turn_once(outside, None);
        }
    }

    fn turn_once(&self, outside: &Outside, arrived: Option<&[u8]>) -> bool {
        let now = mono_now();
        let mut news = News::default();
        let mut frames = Vec::new();
        let turn = 'turn: {
            let mut inner = self.inner.lock();
            if matches!(inner.stage, Stage::Over) {
                return false;
            }
            if let Some(packet) = arrived {
                inner.take(packet, now, &mut frames);
            }
            let inner = &mut *inner;
            inner.note_opening(&mut news);
            let mut has_sent = false;
            if let (Stage::Open, Some(link)) = (&inner.stage, inner.link.clone()) {
                inner.move_in(&self.net, &link, now, &mut news.change);
                has_sent = inner.move_out(&self.net, &link, &mut news.change);
                news.link = Some(link);
            }
            // The links' thread sees to the rest in no time, and to an acknowledgement of all that came.
            if inner.is_to_answer && !has_sent {
                break 'turn None;
            }
            inner.check_patience(now);
            inner.keep_alive(now, &mut frames);
            inner.tcp.advance(now, &mut frames);
            inner.note_end(now, &mut news);
            if let Some((ours, expected)) = inner.rests() {
                outside.flows.lock().rest(self.tuple, ours, expected, now);
                news.gone = true;
            }
            if inner.tcp.is_over() && (inner.tcp.readable() == 0 || inner.is_unheard()) {
                news.gone = true;
            }
            if news.gone {
                if !matches!(inner.stage, Stage::Admitting) {
                    inner.stage = Stage::Over;
                }
            } else if let Some(at) = inner.deadline(now) {
                self.wake_at(outside, at);
            }
            self.leave(inner, frames)
        };
        self.send_all(outside, turn);
        self.tell(news)
    }

    /// Leaves frames to whoever has the turn to write, and counts what was sent again with them.
    fn leave(&self, inner: &mut Inner, frames: Vec<Frame>) -> Option<Turn<'_>> {
        self.net.stats.tcp_sent_again.add(inner.tcp.take_sent_again());
        self.outbox.put(frames)
    }

    fn send_all(&self, outside: &Outside, turn: Option<Turn<'_>>) {
        for frame in turn.into_iter().flatten() {
            self.net.stats.tcp_sent.add(1);
            outside.send(&self.route, frame);
        }
    }

    fn wake_at(&self, outside: &Outside, at: Nanos) {
        if self.scheduled.fetch_min(at, Ordering::Relaxed) > at {
            outside.schedule(&self.me, at);
        }
    }

    /// Tells sockets; true if there is more to do at once.
    fn tell(&self, news: News) -> bool {
        if news.gone {
            self.forget();
        }
        if let Some(link) = news.link {
            link.apply_to_sockets(news.change);
        }
        if let Some((core, error)) = news.failed
            && let Some(core) = core.upgrade()
        {
            core.fail(addr::errno(error));
        }
        match news.opened {
            Some((core, true)) => {
                let link = self.inner.lock().link.clone();
                match (core.upgrade(), link) {
                    (Some(core), Some(link)) => core.opened(link, self.tuple.remote),
                    _ => self.abandon(),
                }
                true
            }
            Some((listener, false)) => {
                let admitted = listener.upgrade().and_then(|listener| listener.admit(self));
                match admitted {
                    Some(link) => {
                        let mut inner = self.inner.lock();
                        inner.link = Some(link);
                        inner.stage = Stage::Open;
                    }
                    None => self.abandon(),
                }
                true
            }
            None => false,
        }
    }

    /// Nobody wants it any more.
    fn abandon(&self) {
        let mut inner = self.inner.lock();
        inner.tcp.abort();
        inner.stage = Stage::Open;
    }

    pub(super) fn weak(&self) -> Weak<Self> {
        Weak::clone(&self.me)
    }

    /// A stream for the socket that a listener makes for this flow.
    pub(super) fn stream_for(core: &TcpCore) -> LoopStream {
        let mut stream = LoopStream::new((0, 0), core.limits_outside());
        core.configure_stream(&mut stream, End::Server, true);
        stream.set_urgent_inline(End::Client, true);
        stream
    }
}

impl Inner {
    fn take(&mut self, packet: &[u8], now: Nanos, frames: &mut Vec<Frame>) {
        self.heard = now;
        self.probes = 0;
        self.tcp.arrive(packet, now, frames);
    }

    /// Whether the handshake is over.
    fn note_opening(&mut self, news: &mut News) {
        let whole = !matches!(
            self.tcp.state(),
            TcpState::SynSent | TcpState::SynRecv | TcpState::Listen | TcpState::Close
        );
        match &self.stage {
            Stage::Opening(core) if whole => {
                news.opened = Some((Weak::clone(core), true));
                self.stage = Stage::Open;
            }
            Stage::HalfOpen(listener) if whole => {
                news.opened = Some((Weak::clone(listener), false));
                self.stage = Stage::Admitting;
            }
            _ => {}
        }
    }

    /// Whether the socket has so much to read that more can wait. Each move opens the window, and a window that opens is told to
    /// the other end: better in few large steps than in many small ones.
    fn holds_back(&mut self, net: &Inet, link: &Link, now: Nanos) -> bool {
        let has_enough = {
            let mut stream = link.stream.lock();
            let unread = stream.unread_by_peer(self.wire);
            let room = stream.room(self.wire, net.memory.stream_cap());
            stream.wait_for_room(self.wire);
            room.is_ok_and(|room| room < unread)
        };
        if !has_enough || self.tcp.readable() == 0 {
            self.held_since = None;
            return false;
        }
        now.saturating_sub(*self.held_since.get_or_insert(now)) < PATIENCE
    }

    /// From the packets to the socket.
    fn move_in(&mut self, net: &Inet, link: &Link, now: Nanos, change: &mut Change) {
        if let Some(mark) = self.tcp.take_urgent() {
            change.merge(link.stream.lock().announce_urgent(self.wire, mark));
        }
        if self.holds_back(net, link, now) {
            return;
        }
        loop {
            let readable = self.tcp.readable();
            if readable == 0 {
                break;
            }
            let room = link.stream.lock().room(self.wire, net.memory.stream_cap());
            let Ok(room @ 1..) = room else { break };
            let want = readable.min(room).min(buffer::LARGE);
            let mut bytes = net.buffer(want);
            let got = self.tcp.receive(bytes.get_mut(..want).unwrap_or_default());
            let pushed = {
                let mut stream = link.stream.lock();
                let before = stream.unread();
                let pushed = stream.push(self.wire, Chunk::new(bytes, got));
                net.memory.queue(stream.unread().saturating_sub(before));
                pushed
            };
            let Ok((told, spare)) = pushed else { break };
            net.recycle(spare);
            change.merge(told);
            if got == 0 {
                break;
            }
        }
        if self.tcp.is_finished() && !self.told_fin {
            self.told_fin = true;
            change.merge(link.stream.lock().shutdown(self.wire, false, true));
        }
    }

    /// From the socket to the packets; true if there was something.
    fn move_out(&mut self, net: &Inet, link: &Link, change: &mut Change) -> bool {
        let mut has_sent = false;
        loop {
            let taken = {
                let mut stream = link.stream.lock();
                if stream.is_orphan(self.wire.other()) && self.orphan_since.is_none() {
                    self.orphan_since = Some(mono_now());
                }
                if stream.was_reset(self.wire) {
                    self.tcp.abort();
                    return true;
                }
                if let Some(end) = stream.take_mark(self.wire) {
                    self.tcp.send_urgent(end);
                    has_sent = true;
                }
                if self.sent_fin || self.tcp.room() == 0 {
                    return has_sent;
                }
                stream.take(self.wire, false, 1)
            };
            match taken {
                Ok(Taken::Chunk { chunk, limit }) => {
                    let bytes = chunk.bytes().get(..limit).unwrap_or_default();
                    let sent = self.tcp.send(bytes);
                    let (told, spare) = link.stream.lock().give_back(self.wire, chunk, sent);
                    net.recycle(spare);
                    change.merge(told);
                    if sent == 0 {
                        return has_sent;
                    }
                    has_sent = true;
                }
                Ok(Taken::End) => {
                    self.sent_fin = true;
                    self.tcp.close();
                    return true;
                }
                Ok(Taken::WouldBlock | Taken::Mark) | Err(_) => return has_sent,
            }
        }
    }

    /// Whether nobody will take what comes.
    fn is_unheard(&self) -> bool {
        matches!(self.stage, Stage::Open)
            && self.link.as_ref().is_none_or(|link| link.stream.lock().room(self.wire, usize::MAX).is_err())
    }

    fn limit(&self) -> Nanos {
        match self.stage {
            Stage::Opening(_) => self.user_timeout.unwrap_or(OPENING),
            Stage::HalfOpen(_) => HALF_OPEN,
            _ if self.orphan_since.is_some() => ORPHAN,
            _ => self.user_timeout.unwrap_or(UNANSWERED),
        }
    }

    /// Gives up on another end that is silent for too long.
    fn check_patience(&mut self, now: Nanos) {
        if self.tcp.awaits_answer() {
            let since = *self.waits_since.get_or_insert(now);
            if now.saturating_sub(since.max(self.heard)) >= self.limit() {
                self.tcp.give_up();
            }
        } else {
            self.waits_since = None;
        }
        if let Some(since) = self.orphan_since
            && self.tcp.state() == TcpState::FinWait2
            && now.saturating_sub(since) >= FIN_WAIT
        {
            self.tcp.give_up();
        }
    }

    /// When the other end of an idle connection is to be asked whether it is there (`tcp_keepalive_timer`).
    fn next_probe(&self) -> Option<(KeepAlive, Nanos)> {
        let keep = self.keep_alive?;
        let open = matches!(self.tcp.state(), TcpState::Established | TcpState::CloseWait);
        if !open || self.tcp.awaits_answer() || self.orphan_since.is_some() {
            return None;
        }
        let asked = self.probes > 0;
        Some((keep, if asked { self.probed + keep.interval } else { self.heard + keep.idle }))
    }

    fn keep_alive(&mut self, now: Nanos, frames: &mut Vec<Frame>) {
        let Some((keep, _)) = self.next_probe().filter(|(_, at)| *at <= now) else { return };
        let silent = now.saturating_sub(self.heard);
        // `TCP_USER_TIMEOUT` takes the place of the count.
        let over = match self.user_timeout {
            Some(limit) => self.probes > 0 && silent >= limit,
            None => self.probes >= keep.count,
        };
        if over {
            return self.tcp.give_up();
        }
        self.probes += 1;
        self.probed = now;
        self.tcp.probe(now, frames);
    }

    /// Whether something is on its way that the other end has not acknowledged, or is yet to be sent: data, or a FIN.
    fn has_unsent(&self) -> bool {
        let waits = self.link.as_ref().is_some_and(|link| {
            let stream = link.stream.lock();
            stream.unread_by_peer(self.wire.other()) > 0 && !stream.was_reset(self.wire)
        });
        match self.stage {
            Stage::Open => {
                let owes = self.tcp.unacknowledged() > 0
                    || matches!(self.tcp.state(), TcpState::FinWait1 | TcpState::Closing | TcpState::LastAck);
                waits || owes
            }
            _ => false,
        }
    }

    /// The connection has ended before its time.
    fn note_end(&mut self, _now: Nanos, news: &mut News) {
        let Some(error) = self.tcp.ended() else { return };
        match core::mem::replace(&mut self.stage, Stage::Over) {
            Stage::Opening(core) => {
                news.failed = Some((core, error));
                news.gone = true;
            }
            // It has its own way of going.
            Stage::HalfOpen(listener) => {
                self.stage = Stage::HalfOpen(listener);
                news.gone = true;
            }
            Stage::Admitting => self.stage = Stage::Admitting,
            Stage::Open => {
                if self.tcp.readable() > 0
                    && self.link.as_ref().is_some_and(|l| l.stream.lock().room(self.wire, usize::MAX).is_ok())
                {
                    // What came before the reset is read first.
                    self.stage = Stage::Open;
                    return;
                }
                if let Some(link) = &self.link {
                    let told = link.stream.lock().fail(self.wire.other(), error);
                    news.change.merge(told);
                    news.link = Some(Arc::clone(link));
                }
                news.gone = true;
            }
            Stage::Over => {}
        }
    }

    /// The numbers of a connection of which nothing is left but TIME_WAIT.
    fn rests(&self) -> Option<(u32, u32)> {
        let over = self.tcp.state() == TcpState::TimeWait && self.tcp.readable() == 0 && self.told_fin;
        over.then(|| self.tcp.next_numbers())
    }

    fn deadline(&mut self, now: Nanos) -> Option<Nanos> {
        let mut at = self.tcp.deadline(now).map(|at| at.max(now + 1_000_000));
        let mut offer = |other: Nanos| at = Some(at.map_or(other, |at| at.min(other)));
        if let Some(since) = self.waits_since {
            offer(since.max(self.heard).saturating_add(self.limit()).max(now + SECOND));
        }
        if let Some(since) = self.orphan_since {
            offer((since + FIN_WAIT).max(now + SECOND));
        }
        if let Some((_, at)) = self.next_probe() {
            offer(at.max(now + 1_000_000));
        }
        if let Some(at) = self.held_since.map(|since| since + PATIENCE).filter(|at| *at > now) {
            offer(at);
        }
        at
    }
}
