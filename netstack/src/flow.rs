//! One TCP connection with the outside, over packets: smoltcp's state machine with everything around it taken away.
//!
//! Each flow has an interface and a one-slot socket set of its own, so that flows share nothing and what one connection
//! costs does not depend on how many there are. Finding the flow of a packet, listening, and what rests in TIME_WAIT are
//! the flow table's matter ([`crate::table`]).

use std::net::{IpAddr, SocketAddr};

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{self, Checksum, Device, DeviceCapabilities, Medium, PacketMeta};
use smoltcp::socket::tcp::{CongestionControl, Socket, SocketBuffer, State};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr, IpEndpoint, IpListenEndpoint};

use crate::Error;
use crate::frame::{Frame, Offload};
use crate::packet::{HEADER_V4, HEADER_V6, Packet, TCP, pseudo_header};
use crate::stream::TcpState;
use crate::table::Segment;

mod urgent;

use urgent::{Heard, Shape};

/// The longest packet that is handed to a link to be cut into segments. With its Ethernet header it must stay below 64 KiB
/// (`gso_max_size`): what is longer the kernel cuts itself, packet by packet. Linux keeps as much free (`MAX_TCP_HEADER`).
const LONGEST: usize = 65_536 - 320;
/// Bytes of a TCP header without options, and where its sum is.
const TCP_HEADER: usize = 20;
const TCP_SUM: u16 = 16;
/// The least that a path may carry, below which nothing is believed.
const LEAST_MTU_V4: usize = 552;
const LEAST_MTU_V6: usize = 1280;

/// What is set on a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// The link's, in bytes of an IP packet.
    pub mtu: usize,
    pub hops: u8,
    /// `TCP_NODELAY`.
    pub no_delay: bool,
    /// When the other end is asked whether it is there (`SO_KEEPALIVE`). The owner asks, with [`TcpFlow::probe`].
    pub keep_alive: Option<KeepAlive>,
}

/// `TCP_KEEPIDLE`, `TCP_KEEPINTVL` and `TCP_KEEPCNT`; times in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeepAlive {
    pub idle: u64,
    pub interval: u64,
    pub count: u32,
}

/// How many times faster than real time an open connection's clock goes. smoltcp sends again after a second at the
/// least, which is what RFC 6298 says; Linux does after 200 ms (`TCP_RTO_MIN`), and so do flows by this clock. Round
/// trips are measured by the same clock, so that only the bounds move: the longest wait is 12 s.
const HASTE: u64 = 5;
/// How long an acknowledgement may be held back, by the connection's clock: 10 ms of real time.
const ACK_DELAY: Duration = Duration::from_millis(10 * HASTE);

/// A connection's clock. In a handshake time-outs go by real time (`TCP_TIMEOUT_INIT`, a second); what arrives is dated
/// by the fast clock, by which the first round trip must be measured.
#[derive(Debug)]
struct Clock {
    /// A moment in real time, and what the clock showed then; nanoseconds.
    since: u64,
    shown: u64,
    opening: bool,
}

impl Clock {
    fn fast(&self, now: u64) -> u64 {
        self.shown.saturating_add(now.saturating_sub(self.since).saturating_mul(HASTE))
    }

    fn show(&self, now: u64) -> u64 {
        if self.opening {
            return self.shown.saturating_add(now.saturating_sub(self.since));
        }
        self.fast(now)
    }

    /// The real time at which it will show `shown`.
    fn when(&self, shown: u64) -> u64 {
        let ahead = shown.saturating_sub(self.shown);
        self.since.saturating_add(if self.opening { ahead } else { ahead.div_ceil(HASTE) })
    }

    /// A packet has come; the connection may be open now.
    fn arrived(&mut self, now: u64, opening: bool) {
        if self.opening {
            (self.shown, self.since) = (self.fast(now), now);
            self.opening = opening;
        }
    }
}

/// A flow's two ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tuple {
    pub local: SocketAddr,
    pub remote: SocketAddr,
}

/// A connection.
pub struct TcpFlow {
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    tuple: Tuple,
    mtu: usize,
    /// What the path carries, where that is less.
    path_mtu: usize,
    /// Why the connection is no more.
    ended: Option<Error>,
    aborted: bool,
    told: Told,
    clock: Clock,
    no_delay: bool,
    /// The sequence numbers of the first byte in either direction, the other end's once it is known.
    first: u32,
    first_of_other: Option<u32>,
    /// Bytes that [`TcpFlow::send`] has taken, and that [`TcpFlow::receive`] has given.
    sent: u64,
    given: u64,
    /// Where the urgent data ends that we send: a number of bytes.
    urgent: Option<u64>,
    heard: Heard,
}

impl core::fmt::Debug for TcpFlow {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "TcpFlow({} to {}, {:?})", self.tuple.local, self.tuple.remote, self.state())
    }
}

/// What packets have told the other end.
#[derive(Debug, Clone, Copy, Default)]
struct Told {
    /// The sequence number after everything.
    next: u32,
    /// What the last one has acknowledged.
    acknowledged: u32,
    /// Segments that were sent again.
    again: u64,
    /// The other end has no room, and the number at which that was tried last.
    is_full: bool,
    tried: Option<u32>,
}

/// What one turn of a flow reads from and writes to.
struct Port<'p> {
    arrived: Option<&'p [u8]>,
    out: &'p mut Vec<Frame>,
    told: &'p mut Told,
    mtu: usize,
    path_mtu: usize,
    urgent: Option<u32>,
}

struct Arrival<'p>(&'p [u8]);

struct Departure<'p> {
    out: &'p mut Vec<Frame>,
    told: &'p mut Told,
    path_mtu: usize,
    /// The sequence number at which urgent data ends.
    urgent: Option<u32>,
    segment: Option<u16>,
}

impl phy::RxToken for Arrival<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

impl phy::TxToken for Departure<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = Frame::zeroed(len);
        let result = f(frame.packet_mut());
        let mut rest = Some(frame);
        while let Some(mut frame) = rest.take() {
            if let Some(mut shape) = shape(&frame) {
                let room = self.path_mtu.saturating_sub(shape.headers);
                let size = self.segment.map_or(room, |size| usize::from(size).min(room)).max(1);
                if let Some(end) = self.urgent {
                    rest = urgent::point(&mut frame, &mut shape, end, size, self.told.next);
                }
                leave_to_link(&mut frame, &shape, size);
                self.told.note(&shape.segment, size);
            }
            self.out.push(frame);
        }
        result
    }

    fn set_meta(&mut self, meta: PacketMeta) {
        self.segment = meta.segmentation_offload_size.map(u16::from);
    }
}

/// `None` for what is no segment.
fn shape(frame: &Frame) -> Option<Shape> {
    let packet = Packet::parse(frame.packet()).filter(|packet| packet.protocol == TCP)?;
    let segment = Segment::parse(packet.payload)?;
    let start = packet.whole.len() - packet.payload.len();
    let headers = packet.whole.len() - segment.len;
    Some(Shape { from: packet.from, to: packet.to, start, headers, segment })
}

/// Leaves the sum of a TCP packet, and cutting it into segments of `size` bytes, to the link. For that its sum is that of the
/// pseudo header alone.
fn leave_to_link(frame: &mut Frame, shape: &Shape, size: usize) {
    let len = shape.headers - shape.start + shape.segment.len;
    let sum = !crate::icmp::checksum(&[&pseudo_header(shape.from, shape.to, TCP, len)]);
    let short = |n: usize| u16::try_from(n).unwrap_or(u16::MAX);
    let cut = shape.segment.len > size;
    frame.offload = Offload {
        checksum: Some((short(shape.start), TCP_SUM)),
        segment: cut.then_some((short(size), short(shape.headers))),
    };
    let at = shape.start + usize::from(TCP_SUM);
    if let Some(field) = frame.packet_mut().get_mut(at..at + 2) {
        field.copy_from_slice(&sum.to_be_bytes());
    }
}

impl Told {
    /// Notes what a packet tells. A reset may name numbers that the other end has made up.
    fn note(&mut self, segment: &Segment, size: usize) {
        if segment.resets() {
            return;
        }
        if self.is_full && segment.len == 1 {
            self.tried = Some(segment.sequence);
        }
        let old = segment.sequence.wrapping_sub(self.next).cast_signed() < 0;
        if old && segment.end() != segment.sequence && self.tried != Some(segment.sequence) {
            self.again += segment.len.div_ceil(size).max(1) as u64;
        }
        if segment.end().wrapping_sub(self.next).cast_signed() > 0 {
            self.next = segment.end();
        }
        self.acknowledged = segment.acknowledged;
    }
}

impl Device for Port<'_> {
    type RxToken<'a>
        = Arrival<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = Departure<'a>
    where
        Self: 'a;

    fn receive(&mut self, now: Instant) -> Option<(Arrival<'_>, Departure<'_>)> {
        let arrived = self.arrived.take()?;
        Some((Arrival(arrived), self.transmit(now)?))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Departure<'_>> {
        let (path_mtu, urgent) = (self.path_mtu, self.urgent);
        Some(Departure { out: self.out, told: self.told, path_mtu, urgent, segment: None })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut all = DeviceCapabilities::default();
        all.medium = Medium::Ip;
        all.max_transmission_unit = self.mtu;
        all.checksum.ipv4 = Checksum::Tx;
        all.checksum.tcp = Checksum::None;
        all.segmentation.tcpv4 = core::num::NonZeroUsize::new(LONGEST);
        // Not for IPv6: smoltcp 0.14 drops a packet that the link is to cut.
        all
    }
}

fn instant(now: u64) -> Instant {
    Instant::from_micros(i64::try_from(now / 1000).unwrap_or(i64::MAX))
}

fn endpoint(at: SocketAddr) -> IpEndpoint {
    IpEndpoint::new(address(at.ip()), at.port())
}

fn address(ip: IpAddr) -> IpAddress {
    ip.into()
}

/// The seed with which the random numbers of a new interface give `first` as the sequence number that a connection
/// starts from: the second number that is drawn, after the one for an IP identification.
fn seed_for(first: u32) -> u64 {
    const MULTIPLIER: u64 = 0xbb2e_fcec_3c39_611d;
    const INCREMENT: u64 = 0x7590_ef39;
    // Newton's iteration for the inverse modulo 2^64 doubles the right bits each time.
    let mut inverse = MULTIPLIER;
    for _ in 0..6 {
        inverse = inverse.wrapping_mul(2_u64.wrapping_sub(MULTIPLIER.wrapping_mul(inverse)));
    }
    let before = |state: u64| state.wrapping_sub(INCREMENT).wrapping_mul(inverse);
    // With the three upper bits set the generator shifts its state by 22.
    let second = 7 << 61 | u64::from(first) << 22;
    before(before(second))
}

impl TcpFlow {
    fn new(tuple: Tuple, first: u32, buffer: usize, settings: &Settings, now: u64) -> Self {
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed_for(first);
        let mut out = Vec::new();
        let mtu = settings.mtu.clamp(LEAST_MTU_V4, LONGEST);
        let mut told = Told { next: first, ..Told::default() };
        let mut port =
            Port { arrived: None, out: &mut out, told: &mut told, mtu, path_mtu: mtu, urgent: None };
        let mut interface = Interface::new(config, &mut port, instant(now));
        let bits = if tuple.local.is_ipv4() { 32 } else { 128 };
        interface.update_ip_addrs(|all| {
            let _ = all.push(IpCidr::new(address(tuple.local.ip()), bits));
        });
        let mut socket = Socket::new(SocketBuffer::new(vec![0; buffer]), SocketBuffer::new(vec![0; buffer]));
        socket.set_congestion_control(CongestionControl::Cubic);
        socket.set_ack_delay(Some(ACK_DELAY));
        socket.set_hop_limit(Some(settings.hops.max(1)));
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        let clock = Clock { since: now, shown: now, opening: true };
        let mut flow = Self {
            interface,
            sockets,
            handle,
            tuple,
            mtu,
            path_mtu: mtu,
            ended: None,
            aborted: false,
            told,
            clock,
            no_delay: settings.no_delay,
            first: first.wrapping_add(1),
            first_of_other: None,
            sent: 0,
            given: 0,
            urgent: None,
            heard: Heard::default(),
        };
        flow.configure(settings);
        flow
    }

    /// A connection that is being opened. `first` is its first sequence number, `buffer` the bytes of its buffer in either
    /// direction.
    pub fn connect(
        tuple: Tuple,
        first: u32,
        buffer: usize,
        settings: &Settings,
        now: u64,
    ) -> Result<Self, Error> {
        let mut flow = Self::new(tuple, first, buffer, settings, now);
        let local = IpListenEndpoint { addr: Some(address(tuple.local.ip())), port: tuple.local.port() };
        let socket = flow.sockets.get_mut::<Socket<'_>>(flow.handle);
        socket
            .connect(flow.interface.context(), endpoint(tuple.remote), local)
            .map_err(|_| Error::AddressNotAvailable)?;
        Ok(flow)
    }

    /// A connection that the other end opens: its SYN goes to [`TcpFlow::arrive`] next.
    pub fn accept(
        tuple: Tuple,
        first: u32,
        buffer: usize,
        settings: &Settings,
        now: u64,
    ) -> Result<Self, Error> {
        let mut flow = Self::new(tuple, first, buffer, settings, now);
        let local = IpListenEndpoint { addr: Some(address(tuple.local.ip())), port: tuple.local.port() };
        flow.socket_mut().listen(local).map_err(|_| Error::AddressNotAvailable)?;
        Ok(flow)
    }

    pub fn tuple(&self) -> Tuple {
        self.tuple
    }

    fn socket(&self) -> &Socket<'static> {
        self.sockets.get(self.handle)
    }

    fn socket_mut(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    /// Takes over options that can change.
    pub fn configure(&mut self, settings: &Settings) {
        self.no_delay = settings.no_delay;
        self.settle_nagle();
    }

    /// Asks the other end whether it is there, by a segment that it must answer (`tcp_write_wakeup`).
    pub fn probe(&mut self, now: u64, out: &mut Vec<Frame>) {
        // As smoltcp has it, the first one is due when this is turned on.
        self.socket_mut().set_keep_alive(Some(Duration::from_secs(3600)));
        let again = self.told.again;
        self.advance(now, out);
        self.told.again = again;
        self.socket_mut().set_keep_alive(None);
    }

    /// The path carries packets of at most `mtu` bytes (RFC 1191, RFC 8201). What was lost is sent again by its timer.
    pub fn narrow_path(&mut self, mtu: usize) {
        let least = if self.tuple.local.is_ipv4() { LEAST_MTU_V4 } else { LEAST_MTU_V6 };
        self.path_mtu = self.path_mtu.min(mtu.max(least));
    }

    /// Takes a packet of this flow. What is to be sent is put into `out`.
    pub fn arrive(&mut self, packet: &[u8], now: u64, out: &mut Vec<Frame>) {
        let before = self.socket().state();
        let (mtu, path_mtu) = (self.mtu, self.path_mtu);
        // Of two segments and more the other end is told at once (RFC 1122, 4.2.3.2), and the link may have joined them.
        let is_joined = packet.len() > path_mtu;
        self.socket_mut().set_ack_delay(Some(if is_joined { Duration::ZERO } else { ACK_DELAY }));
        let words = self.words_of(packet);
        let urgent = self.urgent_end();
        let mut port = Port { arrived: Some(packet), out, told: &mut self.told, mtu, path_mtu, urgent };
        let shown = instant(self.clock.fast(now));
        self.interface.poll_ingress_single(shown, &mut port, &mut self.sockets);
        self.take_words(before, words);
        let opening = matches!(self.socket().state(), State::SynSent | State::SynReceived | State::Listen);
        self.clock.arrived(now, opening);
        self.note_end(before, if before == State::SynSent { Error::Refused } else { Error::Reset });
    }

    /// Sends what is due.
    pub fn advance(&mut self, now: u64, out: &mut Vec<Frame>) {
        let before = self.socket().state();
        loop {
            let (mtu, path_mtu) = (self.mtu, self.path_mtu);
            let urgent = self.urgent_end();
            let mut port = Port { arrived: None, out, told: &mut self.told, mtu, path_mtu, urgent };
            let sent = port.out.len();
            self.interface.poll_egress(instant(self.clock.show(now)), &mut port, &mut self.sockets);
            if out.len() == sent {
                break;
            }
        }
        self.note_end(before, Error::TimedOut);
    }

    fn note_end(&mut self, before: State, why: Error) {
        let state = self.socket().state();
        // A listener again: the other end took its SYN back.
        let withdrawn = before == State::SynReceived && state == State::Listen;
        let over = state == State::Closed && before != State::Closed;
        let in_peace = matches!(before, State::LastAck | State::TimeWait | State::Closing);
        if (over && !in_peace || withdrawn) && self.ended.is_none() && !self.aborted {
            self.ended = Some(why);
        }
    }

    /// When [`TcpFlow::advance`] has something to do.
    pub fn deadline(&mut self, now: u64) -> Option<u64> {
        let at = self.interface.poll_at(instant(self.clock.show(now)), &self.sockets)?;
        u64::try_from(at.total_micros()).ok().map(|us| self.clock.when(us.saturating_mul(1000)))
    }

    /// Resets the connection.
    pub fn abort(&mut self) {
        self.aborted = true;
        self.socket_mut().abort();
    }

    /// Resets the connection because the other end does not answer.
    pub fn give_up(&mut self) {
        self.ended = self.ended.or(Some(Error::TimedOut));
        self.abort();
    }

    /// Nothing more will be sent: a FIN follows what is queued.
    pub fn close(&mut self) {
        self.socket_mut().close();
    }

    pub fn state(&self) -> TcpState {
        match self.socket().state() {
            State::Closed => TcpState::Close,
            State::Listen => TcpState::Listen,
            State::SynSent => TcpState::SynSent,
            State::SynReceived => TcpState::SynRecv,
            State::Established => TcpState::Established,
            State::FinWait1 => TcpState::FinWait1,
            State::FinWait2 => TcpState::FinWait2,
            State::CloseWait => TcpState::CloseWait,
            State::Closing => TcpState::Closing,
            State::LastAck => TcpState::LastAck,
            State::TimeWait => TcpState::TimeWait,
        }
    }

    /// Why the connection ended before its time.
    pub fn ended(&self) -> Option<Error> {
        self.ended
    }

    /// Whether nothing of the connection is left, a reset that is yet to be sent included.
    pub fn is_over(&self) -> bool {
        self.socket().state() == State::Closed && self.socket().remote_endpoint().is_none()
    }

    /// Whether the other end owes an acknowledgement.
    pub fn awaits_answer(&self) -> bool {
        let waits = matches!(
            self.socket().state(),
            State::SynSent | State::SynReceived | State::FinWait1 | State::Closing | State::LastAck
        );
        waits || self.socket().send_queue() > 0
    }

    /// Bytes that [`TcpFlow::send`] takes.
    pub fn room(&self) -> usize {
        let socket = self.socket();
        if socket.may_send() { socket.send_capacity() - socket.send_queue() } else { 0 }
    }

    /// Bytes that are not acknowledged.
    pub fn unacknowledged(&self) -> usize {
        self.socket().send_queue()
    }

    /// Whether a segment that began at `sequence` is on its way.
    pub fn is_unacknowledged(&self, sequence: u32) -> bool {
        let behind = self.told.next.wrapping_sub(sequence);
        // A handshake's own number counts, and a FIN's.
        behind > 0 && behind as usize <= self.unacknowledged() + 1
    }

    /// Segments that were sent again since this was asked last (`RetransSegs`).
    pub fn take_sent_again(&mut self) -> u64 {
        core::mem::take(&mut self.told.again)
    }

    pub fn send(&mut self, bytes: &[u8]) -> usize {
        let taken = self.socket_mut().send_slice(bytes).unwrap_or(0);
        self.sent += taken as u64;
        taken
    }

    /// Bytes that [`TcpFlow::receive`] gives.
    pub fn readable(&self) -> usize {
        self.socket().recv_queue()
    }

    pub fn receive(&mut self, into: &mut [u8]) -> usize {
        let given = self.socket_mut().recv_slice(into).unwrap_or(0);
        self.given += given as u64;
        given
    }

    /// Whether the other end has closed and everything before that was read.
    pub fn is_finished(&self) -> bool {
        let state = self.socket().state();
        self.readable() == 0
            && matches!(state, State::CloseWait | State::LastAck | State::Closing | State::TimeWait)
    }

    /// The next sequence numbers, ours and the other end's, as far as the other end was told of them.
    pub fn next_numbers(&self) -> (u32, u32) {
        (self.told.next, self.told.acknowledged)
    }

    /// The payload of a full segment.
    pub fn segment_size(&self) -> usize {
        let header = if self.tuple.local.is_ipv4() { HEADER_V4 } else { HEADER_V6 };
        self.path_mtu - header - TCP_HEADER
    }
}

#[cfg(test)]
#[path = "flow_tests.rs"]
mod tests;
