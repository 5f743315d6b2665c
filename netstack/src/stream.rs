//! TCP over the loopback: a connection is a pair of queues and two states, with no packet in between.
//!
//! What a segment would do at the other end is done at once, under the owner's lock: bytes enter the peer's queue, a
//! FIN or a reset changes its state. So there is no loss, no retransmission and no window to probe; the states are
//! those that a connection over Linux's loopback passes through as programs see it (`tcp(7)`, `net/ipv4/tcp.c`,
//! `net/ipv4/tcp_input.c`).

use std::collections::VecDeque;

use crate::{Chunk, Error, Ready};

/// A state of RFC 793, with its number in `/proc/net/tcp` and `TCP_INFO`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum TcpState {
    Established = 1,
    SynSent = 2,
    SynRecv = 3,
    FinWait1 = 4,
    FinWait2 = 5,
    TimeWait = 6,
    Close = 7,
    CloseWait = 8,
    LastAck = 9,
    Listen = 10,
    Closing = 11,
}

impl TcpState {
    fn carries(self) -> bool {
        matches!(self, Self::Established | Self::CloseWait)
    }
}

/// One of the two ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The one that connected.
    Client,
    /// The one that was accepted.
    Server,
}

impl End {
    pub fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}

/// The urgent byte of a stream (`MSG_OOB`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// Bytes of the stream before it.
    pub at: u64,
    /// Itself, once it has come: that there is one may be known before.
    pub byte: Option<u8>,
}

/// The mark as a reader has it.
#[derive(Debug, Clone, Copy)]
struct Urgent {
    mark: Mark,
    /// Taken by `MSG_OOB`; the place stays marked until the reader is past it.
    read: bool,
}

/// What `MSG_OOB` finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UrgentTaken {
    Byte(u8),
    /// None was sent, or it has been read, or is in the stream.
    Nothing,
    /// It is on its way.
    NotYet,
    /// It will not come.
    End,
    /// The connection is gone.
    Closed,
}

#[derive(Debug)]
struct Side {
    state: TcpState,
    shut_read: bool,
    shut_write: bool,
    /// Reported once (`sk_err`).
    fault: Option<Error>,
    /// A FIN has come (`SOCK_DONE`).
    done: bool,
    /// Closed by its owner.
    orphan: bool,
    /// What the peer has sent.
    inbox: VecDeque<Chunk>,
    /// Unread bytes, those of a chunk that a reader has in hand included.
    unread: usize,
    /// Bytes taken so far: the place of the next one to read.
    taken: u64,
    /// Bytes sent so far.
    sent: u64,
    receive_limit: usize,
    send_limit: usize,
    /// Reset by the other end.
    was_reset: bool,
    /// A writer has met a full queue.
    no_space: bool,
    urgent: Option<Urgent>,
    /// The urgent byte stays in the stream (`SO_OOBINLINE`).
    urgent_inline: bool,
    /// Bytes that make the socket readable (`SO_RCVLOWAT`).
    low_water: usize,
}

impl Side {
    fn new(receive_limit: usize, send_limit: usize) -> Self {
        Self {
            state: TcpState::Established,
            shut_read: false,
            shut_write: false,
            fault: None,
            done: false,
            orphan: false,
            inbox: VecDeque::new(),
            unread: 0,
            taken: 0,
            sent: 0,
            receive_limit,
            send_limit,
            was_reset: false,
            no_space: false,
            urgent: None,
            urgent_inline: false,
            low_water: 1,
        }
    }

    /// A reset has come (`tcp_reset`).
    fn reset(&mut self) -> Ready {
        if self.state == TcpState::Close {
            return Ready::empty();
        }
        self.was_reset = true;
        self.fault = Some(if self.state == TcpState::CloseWait { Error::Broken } else { Error::Reset });
        self.finish();
        Ready::all().difference(Ready::PRI | Ready::URGENT)
    }

    fn finish(&mut self) {
        self.state = TcpState::Close;
        self.shut_read = true;
        self.shut_write = true;
    }

    /// A FIN has come (`tcp_fin`). True if this end has to stay in TIME_WAIT.
    fn receive_fin(&mut self) -> bool {
        self.shut_read = true;
        self.done = true;
        match self.state {
            TcpState::Established => {
                self.state = TcpState::CloseWait;
                false
            }
            TcpState::FinWait1 | TcpState::FinWait2 => {
                self.finish();
                true
            }
            _ => false,
        }
    }

    /// Bytes up to the urgent byte, where there is one ahead that stops a read.
    fn until_urgent(&self) -> Option<u64> {
        self.urgent.and_then(|u| u.mark.at.checked_sub(self.taken))
    }

    /// Forgets the mark that the reader is past.
    fn pass_urgent(&mut self) {
        self.urgent = self.urgent.filter(|u| u.mark.at >= self.taken);
    }

    /// Hears of the urgent byte, `before` bytes of those that are unread having come earlier (`tcp_check_urg`). Gives what to
    /// tell, and the bytes that have left the queue.
    fn hear_urgent(&mut self, mark: Mark, before: usize) -> (Ready, usize) {
        self.pass_urgent();
        let there = if mark.byte.is_some() { Ready::PRI | Ready::IN } else { Ready::empty() };
        let mut freed = 0;
        match &mut self.urgent {
            _ if mark.at < self.taken => return (Ready::empty(), 0),
            Some(known) if known.mark.at == mark.at => {
                let has_come = known.mark.byte.is_none() && mark.byte.is_some();
                known.mark.byte = known.mark.byte.or(mark.byte);
                return (if has_come { there } else { Ready::empty() }, 0);
            }
            Some(known) if known.mark.at > mark.at => return (Ready::empty(), 0),
            // One who stands at the older byte would read it as data.
            Some(known) if known.mark.at == self.taken && before > 0 && !self.urgent_inline => {
                self.skip(1);
                freed = 1;
            }
            _ => {}
        }
        self.urgent = Some(Urgent { mark, read: false });
        (there | Ready::URGENT, freed)
    }
}

/// What a call changed: what to tell each end's waiters, and who stays in TIME_WAIT.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[must_use]
pub struct Change {
    pub client: Ready,
    pub server: Ready,
    /// This end's address must rest before it is used again.
    pub time_wait: Option<End>,
    /// Bytes that have left a queue, read or thrown away.
    pub freed: usize,
}

impl Change {
    /// Adds what another call has changed.
    pub fn merge(&mut self, other: Self) {
        self.client |= other.client;
        self.server |= other.server;
        self.time_wait = self.time_wait.or(other.time_wait);
        self.freed += other.freed;
    }

    fn tell(&mut self, end: End, what: Ready) {
        match end {
            End::Client => self.client |= what,
            End::Server => self.server |= what,
        }
    }
}

/// What a reader finds.
#[derive(Debug)]
pub enum Taken {
    /// Bytes, of which up to `limit` may be used; hand the chunk to [`LoopStream::give_back`].
    Chunk { chunk: Chunk, limit: usize },
    /// Nothing yet.
    WouldBlock,
    /// The urgent byte stops this read here.
    Mark,
    /// The end of the stream.
    End,
}

/// A connection over the loopback.
#[derive(Debug)]
pub struct LoopStream {
    client: Side,
    server: Side,
}

impl LoopStream {
    /// A whole connection. The limits are in bytes: what a receiver takes in, and what a sender may have queued besides.
    pub fn new(client_limits: (usize, usize), server_limits: (usize, usize)) -> Self {
        Self {
            client: Side::new(client_limits.0, client_limits.1),
            server: Side::new(server_limits.0, server_limits.1),
        }
    }

    fn both(&mut self, end: End) -> (&mut Side, &mut Side) {
        match end {
            End::Client => (&mut self.client, &mut self.server),
            End::Server => (&mut self.server, &mut self.client),
        }
    }

    fn ends(&self, end: End) -> (&Side, &Side) {
        match end {
            End::Client => (&self.client, &self.server),
            End::Server => (&self.server, &self.client),
        }
    }

    pub fn state(&self, end: End) -> TcpState {
        self.ends(end).0.state
    }

    /// Bytes that `end` has sent and its peer has not read.
    pub fn unread_by_peer(&self, end: End) -> usize {
        self.ends(end).1.unread
    }

    /// Whether `end` has sent more than its peer's buffer holds: on a network that would still be on this side.
    pub fn is_beyond_receiver(&self, end: End) -> bool {
        let peer = self.ends(end).1;
        peer.unread > peer.receive_limit && !peer.orphan
    }

    /// Bytes that a read would find (`SIOCINQ`): up to the urgent byte, if one stops it.
    pub fn readable(&self, end: End) -> usize {
        let side = self.ends(end).0;
        match side.until_urgent() {
            Some(ahead) if !side.urgent_inline => {
                usize::try_from(ahead).unwrap_or(usize::MAX).min(side.unread)
            }
            _ => side.unread,
        }
    }

    /// Bytes sent and received so far.
    pub fn totals(&self, end: End) -> (u64, u64) {
        let side = self.ends(end).0;
        (side.sent, side.taken + side.unread as u64)
    }

    pub fn set_limits(&mut self, end: End, receive: usize, send: usize) {
        let side = self.both(end).0;
        side.receive_limit = receive;
        side.send_limit = send;
    }

    pub fn set_low_water(&mut self, end: End, bytes: usize) {
        let side = self.both(end).0;
        side.low_water = bytes.clamp(1, side.receive_limit.max(1));
    }

    pub fn set_urgent_inline(&mut self, end: End, inline: bool) {
        self.both(end).0.urgent_inline = inline;
    }

    /// Bytes that wait in both directions.
    pub fn unread(&self) -> usize {
        self.client.unread + self.server.unread
    }

    /// Whether the next byte to read is the urgent one (`SIOCATMARK`).
    pub fn at_mark(&self, end: End) -> bool {
        self.ends(end).0.until_urgent() == Some(0)
    }

    /// Takes the pending error (`SO_ERROR`).
    pub fn take_fault(&mut self, end: End) -> Option<Error> {
        self.both(end).0.fault.take()
    }

    /// Whether the peer's queue has enough room to call this end writable (`sk_stream_is_writeable`).
    fn writable(&self, end: End, cap: usize) -> bool {
        let (me, peer) = self.ends(end);
        let capacity = (me.send_limit + peer.receive_limit).min(cap);
        capacity.saturating_sub(peer.unread) >= capacity / 3
    }

    /// `tcp_poll`; `cap` as for [`LoopStream::room`].
    pub fn readiness(&mut self, end: End, cap: usize) -> Ready {
        let writable = self.writable(end, cap);
        let me = self.both(end).0;
        let mut ready = Ready::empty();
        if (me.shut_read && me.shut_write) || me.state == TcpState::Close {
            ready |= Ready::HUP;
        }
        if me.shut_read {
            ready |= Ready::IN | Ready::RDHUP;
        }
        let readable = match me.until_urgent() {
            // The urgent byte itself is not there for ordinary reads.
            Some(0) if !me.urgent_inline => me.unread.saturating_sub(1),
            _ => me.unread,
        };
        if readable >= me.low_water {
            ready |= Ready::IN;
        }
        if me.shut_write || writable {
            ready |= Ready::OUT;
        } else {
            me.no_space = true;
        }
        if me.urgent.is_some_and(|u| u.mark.byte.is_some() && !u.read) {
            ready |= Ready::PRI;
        }
        if me.fault.is_some() {
            ready |= Ready::ERR;
        }
        ready
    }

    /// Bytes that may be sent now; 0 when the sender has to wait. However much the ends allow, no more than `cap` may wait:
    /// memory may be short.
    pub fn room(&mut self, end: End, cap: usize) -> Result<usize, Error> {
        let (me, peer) = self.both(end);
        if !me.state.carries() || me.fault.is_some() || me.shut_write {
            return Err(me.fault.take().unwrap_or(Error::Broken));
        }
        let room = (me.send_limit + peer.receive_limit).min(cap).saturating_sub(peer.unread);
        if room == 0 {
            me.no_space = true;
        }
        Ok(room)
    }

    /// Has `end` told that it may send when there is room enough, as if it had met a full queue.
    pub fn wait_for_room(&mut self, end: End) {
        self.both(end).0.no_space = true;
    }

    /// Sends a chunk, however large: ask [`LoopStream::room`] first. A buffer that was not needed comes back.
    pub fn push(&mut self, end: End, chunk: Chunk) -> Result<(Change, Option<Vec<u8>>), Error> {
        let (me, peer) = self.both(end);
        if !me.state.carries() || me.fault.is_some() || me.shut_write {
            return Err(me.fault.take().unwrap_or(Error::Broken));
        }
        let n = chunk.len();
        let mut change = Change::default();
        if n == 0 {
            return Ok((change, Some(chunk.into_buffer())));
        }
        let half_closed = peer.shut_read && !peer.state.carries();
        if peer.orphan || half_closed {
            // Nobody will read this: the answer is a reset.
            change.tell(end.other(), peer.reset());
            change.tell(end, me.reset());
            return Ok((change, Some(chunk.into_buffer())));
        }
        me.sent += n as u64;
        peer.unread += n;
        change.tell(end.other(), Ready::IN);
        if let Some(last) = peer.inbox.back_mut()
            && last.append(chunk.bytes())
        {
            return Ok((change, Some(chunk.into_buffer())));
        }
        peer.inbox.push_back(chunk);
        Ok((change, None))
    }

    /// Marks the last of the `sent` bytes as urgent that were sent just now.
    pub fn mark_urgent(&mut self, end: End, byte: u8, sent: usize) -> Change {
        let peer = self.ends(end).1;
        let at = peer.taken + peer.unread.saturating_sub(1) as u64;
        let before = peer.unread.saturating_sub(sent);
        self.announce(end, Mark { at, byte: Some(byte) }, before)
    }

    /// Tells the peer of `end` of an urgent byte among those that are yet to be sent, or that it has come.
    pub fn announce_urgent(&mut self, end: End, mark: Mark) -> Change {
        let before = self.ends(end).1.unread;
        self.announce(end, mark, before)
    }

    fn announce(&mut self, end: End, mark: Mark, before: usize) -> Change {
        let (me, peer) = self.both(end);
        let mut change = Change::default();
        if peer.orphan || me.state == TcpState::Close {
            return change;
        }
        let (told, freed) = peer.hear_urgent(mark, before);
        change.freed = freed;
        change.tell(end.other(), told);
        change
    }

    /// Takes away the mark that `end` would read to: the place behind the urgent byte, as a number of bytes.
    pub fn take_mark(&mut self, end: End) -> Option<u64> {
        self.both(end).0.urgent.take().map(|urgent| urgent.mark.at + 1)
    }

    /// Takes the urgent byte (`tcp_recv_urg`).
    pub fn take_urgent(&mut self, end: End, peek: bool) -> UrgentTaken {
        let me = self.both(end).0;
        me.pass_urgent();
        let over = me.state == TcpState::Close;
        match &mut me.urgent {
            None => UrgentTaken::Nothing,
            Some(urgent) if me.urgent_inline || urgent.read => UrgentTaken::Nothing,
            Some(_) if over && !me.done => UrgentTaken::Closed,
            Some(Urgent { mark: Mark { byte: Some(byte), .. }, read }) => {
                *read = !peek;
                UrgentTaken::Byte(*byte)
            }
            Some(_) if over || me.shut_read => UrgentTaken::End,
            Some(_) => UrgentTaken::NotYet,
        }
    }

    /// Takes the chunk at the front. `some` says that this call has read bytes already; `least` how many must be there for
    /// it to begin, unless no more will come; 0 of one that wants none.
    pub fn take(&mut self, end: End, some: bool, least: usize) -> Result<Taken, Error> {
        let me = self.both(end).0;
        me.pass_urgent();
        if me.until_urgent() == Some(0) && me.unread > 0 && least > 0 {
            if some {
                return Ok(Taken::Mark);
            }
            if !me.urgent_inline {
                me.skip(1);
                me.urgent = None;
            }
        }
        let over = me.done || me.fault.is_some() || me.shut_read || me.state == TcpState::Close;
        let few = me.unread < me.low_water.min(least) && !some && !over;
        if !few && let Some(chunk) = me.inbox.pop_front() {
            // One that reads the urgent byte in line begins with it.
            let ahead = me.until_urgent().filter(|n| *n > 0).and_then(|n| usize::try_from(n).ok());
            let limit = chunk.len().min(ahead.unwrap_or(usize::MAX));
            return Ok(Taken::Chunk { chunk, limit });
        }
        if some {
            return Ok(Taken::WouldBlock);
        }
        if me.done {
            return Ok(Taken::End);
        }
        if let Some(fault) = me.fault.take() {
            return Err(fault);
        }
        if me.shut_read || me.state == TcpState::Close {
            return Ok(Taken::End);
        }
        Ok(Taken::WouldBlock)
    }

    /// Returns a chunk of which `used` bytes have been read. An empty chunk's buffer comes back to be used again.
    pub fn give_back(&mut self, end: End, mut chunk: Chunk, used: usize) -> (Change, Option<Vec<u8>>) {
        let me = self.both(end).0;
        let used = used.min(chunk.len());
        chunk.consume(used);
        let freed = used.min(me.unread);
        me.unread -= freed;
        me.taken += used as u64;
        me.pass_urgent();
        let mut spare = None;
        if chunk.is_empty() {
            spare = Some(chunk.into_buffer());
        } else {
            me.inbox.push_front(chunk);
        }
        (Change { freed, ..self.tell_room(end) }, spare)
    }

    /// Tells the sender to `end` of room, where it waits for some and there is enough.
    fn tell_room(&mut self, end: End) -> Change {
        let mut change = Change::default();
        let writable = self.writable(end.other(), usize::MAX);
        let peer = self.both(end).1;
        if peer.no_space && writable {
            peer.no_space = false;
            change.tell(end.other(), Ready::OUT);
        }
        change
    }

    /// Shows up to `want` unread bytes from `offset` on, in pieces; they stay. Gives the number shown.
    pub fn peek<E>(
        &self,
        end: End,
        offset: usize,
        want: usize,
        mut sink: impl FnMut(&[u8]) -> Result<usize, E>,
    ) -> Result<usize, E> {
        let me = self.ends(end).0;
        let (mut skip, mut shown) = (offset, 0);
        let mut want = match me.until_urgent().and_then(|n| usize::try_from(n).ok()) {
            Some(n) if n > offset => want.min(n - offset),
            Some(n) if n == offset && !me.urgent_inline => {
                skip += 1;
                want
            }
            _ => want,
        };
        for chunk in &me.inbox {
            let bytes = chunk.bytes();
            let Some(bytes) = bytes.get(skip..) else {
                skip -= bytes.len();
                continue;
            };
            skip = 0;
            let part = bytes.get(..bytes.len().min(want)).unwrap_or_default();
            if part.is_empty() {
                continue;
            }
            let n = match sink(part) {
                Ok(n) => n,
                Err(e) if shown == 0 => return Err(e),
                Err(_) => break,
            };
            shown += n;
            want -= n.min(want);
            if n < part.len() || want == 0 {
                break;
            }
        }
        Ok(shown)
    }

    /// What a peek that finds nothing gives: like [`LoopStream::take`] without a chunk.
    pub fn outcome_when_empty(&mut self, end: End) -> Result<Taken, Error> {
        let me = self.both(end).0;
        if me.done {
            return Ok(Taken::End);
        }
        if let Some(fault) = me.fault.take() {
            return Err(fault);
        }
        let over = me.shut_read || me.state == TcpState::Close;
        Ok(if over { Taken::End } else { Taken::WouldBlock })
    }

    /// `shutdown(2)`.
    pub fn shutdown(&mut self, end: End, read: bool, write: bool) -> Change {
        let mut change = Change::default();
        let me = self.both(end).0;
        me.shut_read |= read;
        if write && !me.shut_write {
            me.shut_write = true;
            self.send_fin(end, &mut change);
        }
        change.tell(end, Ready::IN | Ready::OUT | Ready::RDHUP | Ready::HUP);
        change
    }

    /// Sends a FIN, which the other end acknowledges at once.
    fn send_fin(&mut self, end: End, change: &mut Change) {
        let (me, peer) = self.both(end);
        match me.state {
            TcpState::Established => me.state = TcpState::FinWait2,
            TcpState::CloseWait => me.finish(),
            _ => return,
        }
        if peer.receive_fin() {
            change.time_wait = Some(end.other());
        }
        change.tell(end.other(), Ready::IN | Ready::RDHUP | Ready::HUP | Ready::OUT);
    }

    /// The owner closed its socket (`tcp_close`): unread bytes, or `abort` (`SO_LINGER` of zero), make it a reset.
    pub fn close(&mut self, end: End, abort: bool) -> Change {
        let mut change = Change::default();
        let (me, peer) = self.both(end);
        me.orphan = true;
        let unread = me.unread > 0;
        change.freed = me.unread;
        me.inbox.clear();
        me.unread = 0;
        if me.state == TcpState::Close {
            return change;
        }
        me.shut_read = true;
        if abort || unread {
            me.finish();
            change.tell(end.other(), peer.reset());
            if peer.orphan {
                peer.finish();
            }
        } else if me.shut_write {
            // FIN_WAIT2 without an owner: the peer still may close in peace.
        } else {
            me.shut_write = true;
            self.send_fin(end, &mut change);
        }
        change
    }

    /// Ends the connection from within, as `connect(AF_UNSPEC)` does: the peer is reset, this end is as new.
    pub fn disconnect(&mut self, end: End) -> Change {
        let mut change = Change::default();
        let (me, peer) = self.both(end);
        let whole = me.state != TcpState::Close;
        change.freed = me.unread;
        me.inbox.clear();
        me.unread = 0;
        me.orphan = true;
        me.finish();
        if whole {
            change.tell(end.other(), peer.reset());
        }
        change
    }

    /// The connection of `end` has failed beyond its peer: nothing goes through any more.
    pub fn fail(&mut self, end: End, error: Error) -> Change {
        let mut change = Change::default();
        let (me, peer) = self.both(end);
        if me.state == TcpState::Close {
            return change;
        }
        let told = me.reset();
        if error != Error::Reset {
            me.fault = Some(error);
        }
        peer.finish();
        change.tell(end, told);
        change
    }

    /// Whether the other end has reset this one.
    pub fn was_reset(&self, end: End) -> bool {
        self.ends(end).0.was_reset
    }

    /// Whether the owner of `end` has closed it.
    pub fn is_orphan(&self, end: End) -> bool {
        self.ends(end).0.orphan
    }

    /// The unused buffers of an end that is closed are dropped with it; this says whether the connection is over.
    pub fn is_over(&self) -> bool {
        self.client.state == TcpState::Close && self.server.state == TcpState::Close
    }
}

impl Side {
    /// Passes over `n` bytes of the queue: the urgent byte, which is out of the stream.
    fn skip(&mut self, n: usize) {
        let mut left = n.min(self.unread);
        self.unread -= left;
        self.taken += left as u64;
        while left > 0 {
            let Some(front) = self.inbox.front_mut() else { break };
            let step = left.min(front.len());
            front.consume(step);
            left -= step;
            if front.is_empty() {
                self.inbox.pop_front();
            }
        }
    }
}

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;
