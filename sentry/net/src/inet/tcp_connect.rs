//! Names and connections of TCP: bind, listen, connect, accept, shutdown, close (`net/ipv4/af_inet.c`,
//! `net/ipv4/inet_connection_sock.c`).

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Weak};

use netstack::flow::Tuple;
use netstack::iface::{Route, or_this_host};
use netstack::packet::TCP;
use netstack::ports::BindingId;
use netstack::stream::{End, LoopStream};
use sentry_base::{Errno, Events, Result, mono_now};
use sentry_vfs::{Caller, IoStart};

use super::addr::{self, Domain, errno};
use super::flow::Flow;
use super::options::Options;
use super::outside::{Outside, listens};
use super::tcp::{Connection, Link, Listening, Phase, Side, State, TcpCore, TcpSocket};
use crate::{SockCtx, Socket};

/// `net.core.somaxconn`.
const SOMAXCONN: usize = 4096;
/// Ports that are tried for a connection with the outside.
const PORTS_TRIED: u32 = 256;
/// Connects that wait at a listener whose queue is full; more are refused.
const MAX_WAITING: usize = 1024;

/// How an attempt to reach a listener ended.
enum Attempt {
    Connected,
    Refused,
    /// It may yet go well: the listener's queue is full, or the other end is outside.
    Pending,
}

impl TcpCore {
    /// `__inet_bind`.
    pub(super) fn bind(&self, cx: &SockCtx<'_>, address: &[u8]) -> Result<()> {
        let at = addr::parse_for_bind(self.domain, address)?;
        let ip = self.check_bind_address(at.ip())?;
        self.net.check_port(cx.caller, at.port())?;
        let state = self.state.lock();
        if !matches!(state.phase, Phase::Closed) || state.binding.is_some() {
            return Err(Errno::EINVAL);
        }
        drop(state);
        let later = at.port() == 0 && self.options.flag(libc::IPPROTO_IP, 24);
        let binding = if later {
            None
        } else {
            let (local, sharing) = (self.local(ip), self.sharing());
            let mut table = self.net.tcp.lock();
            Some(table.bind(local, at.port(), sharing, self.me.clone(), mono_now()).map_err(errno)?)
        };
        let mut state = self.state.lock();
        if state.binding.is_some() || !matches!(state.phase, Phase::Closed) {
            drop(state);
            if let Some(id) = binding {
                self.net.tcp.lock().release(id);
            }
            return Err(Errno::EINVAL);
        }
        state.binding = binding;
        state.local = SocketAddr::new(ip, binding.map_or(0, |id| id.port));
        state.bound_port = at.port() != 0;
        state.bound_ip = !ip.is_unspecified();
        Ok(())
    }

    fn check_bind_address(&self, ip: IpAddr) -> Result<IpAddr> {
        if self.v6_only() && ip.is_ipv4() {
            return Err(Errno::EINVAL);
        }
        let free = self.options.flag(libc::IPPROTO_IP, libc::IP_FREEBIND)
            || self.options.flag(libc::IPPROTO_IP, libc::IP_TRANSPARENT);
        if free || self.net.interfaces.lock().may_bind(ip) { Ok(ip) } else { Err(Errno::EADDRNOTAVAIL) }
    }

    /// Takes any free port, for a listener that has none.
    fn autobind(&self) -> Result<()> {
        let ip = {
            let state = self.state.lock();
            if state.binding.is_some() {
                return Ok(());
            }
            state.local.ip()
        };
        let (local, sharing) = (self.local(ip), self.sharing());
        let id = self.net.tcp.lock().bind(local, 0, sharing, self.me.clone(), mono_now()).map_err(errno)?;
        let mut state = self.state.lock();
        if state.binding.is_some() {
            drop(state);
            self.net.tcp.lock().release(id);
            return Ok(());
        }
        state.binding = Some(id);
        state.local.set_port(id.port);
        Ok(())
    }

    /// `inet_listen`.
    pub(super) fn listen(&self, backlog: i32) -> Result<()> {
        let limit = usize::try_from(backlog).unwrap_or(SOMAXCONN).min(SOMAXCONN);
        {
            let mut state = self.state.lock();
            match &mut state.phase {
                Phase::Closed => {}
                Phase::Listening(listening) => {
                    listening.limit = limit;
                    return Ok(());
                }
                _ => return Err(Errno::EINVAL),
            }
        }
        self.autobind()?;
        let mut state = self.state.lock();
        let id = state.binding.ok_or(Errno::EINVAL)?;
        if !matches!(state.phase, Phase::Closed) {
            return Err(Errno::EINVAL);
        }
        let sharing = self.sharing();
        {
            let mut table = self.net.tcp.lock();
            if let Some(binding) = table.get_mut(id) {
                binding.sharing = sharing;
            }
            table.listen(id).map_err(errno)?;
        }
        state.shut_read = false;
        state.shut_write = false;
        state.phase = Phase::Listening(Listening { limit, queue: VecDeque::new(), waiting: VecDeque::new() });
        Ok(())
    }

    /// `__inet_stream_connect`.
    pub(super) fn try_connect(&self, cx: &SockCtx<'_>, address: &[u8]) -> Result<IoStart<()>> {
        if addr::family(address)? == libc::AF_UNSPEC {
            return self.disconnect().map(IoStart::Done);
        }
        {
            let mut state = self.state.lock();
            match &mut state.phase {
                Phase::Connected { told, .. } if !*told => {
                    *told = true;
                    return Ok(IoStart::Done(()));
                }
                Phase::Connected { .. } | Phase::Listening(_) => return Err(Errno::EISCONN),
                Phase::Connecting(_) if cx.nonblock => return Err(Errno::EALREADY),
                Phase::Connecting(_) => return Ok(IoStart::WouldBlock),
                Phase::Failed => {
                    state.phase = Phase::Closed;
                    return Err(state.fault.take().unwrap_or(Errno::ECONNABORTED));
                }
                Phase::Closed => {}
            }
        }
        let to = addr::parse(self.domain, address)?;
        self.start_connect(to)?;
        self.net.stats.tcp_active_opens.add(1);
        match self.attempt(Some(cx.caller)) {
            Attempt::Connected if cx.nonblock => {
                if let Phase::Connected { told, .. } = &mut self.state.lock().phase {
                    *told = false;
                }
                // As Linux has it: the answer comes when the call is over.
                self.queue.notify(Events::WRITABLE);
                Err(Errno::EINPROGRESS)
            }
            Attempt::Connected => Ok(IoStart::Done(())),
            Attempt::Refused => {
                self.fail(Errno::ECONNREFUSED);
                if cx.nonblock {
                    return Err(Errno::EINPROGRESS);
                }
                let mut state = self.state.lock();
                state.phase = Phase::Closed;
                Err(state.fault.take().unwrap_or(Errno::ECONNREFUSED))
            }
            Attempt::Pending if cx.nonblock => Err(Errno::EINPROGRESS),
            Attempt::Pending => Ok(IoStart::WouldBlock),
        }
    }

    /// Chooses the route, the address and the port of a connection.
    fn start_connect(&self, to: SocketAddr) -> Result<()> {
        let to = SocketAddr::new(or_this_host(to.ip()), to.port());
        let mapped = self.domain == Domain::V6 && to.is_ipv4();
        if mapped && self.v6_only() || to.ip().is_multicast() {
            return Err(Errno::ENETUNREACH);
        }
        let (binding, local) = {
            let state = self.state.lock();
            (state.binding, state.local)
        };
        let given = Some(local.ip()).filter(|ip| !ip.is_unspecified());
        if given.is_some_and(|ip| ip.is_ipv4() != to.is_ipv4()) {
            return Err(Errno::EAFNOSUPPORT);
        }
        let route =
            self.net.interfaces.lock().route_by(self.options.device(), to.ip(), given).map_err(errno)?;
        let (now, sharing) = (mono_now(), self.sharing());
        // The packets of a connection that was closed may still be on their way, after its port was given up.
        let lingers = |port| {
            let tuple = Tuple { local: SocketAddr::new(route.source, port), remote: to };
            let outside = self.net.outside.get().filter(|_| route.next_hop.is_some());
            outside.is_some_and(|outside| outside.flows.lock().get(&tuple).is_some())
        };
        if binding.is_some_and(|id| lingers(id.port)) {
            return Err(Errno::EADDRNOTAVAIL);
        }
        let mut tries = PORTS_TRIED;
        let id = loop {
            let mut table = self.net.tcp.lock();
            let id = match binding {
                Some(id) if table.is_connected(id, route.source, to, now) => {
                    return Err(Errno::EADDRNOTAVAIL);
                }
                Some(id) => {
                    if let Some(binding) = table.get_mut(id) {
                        binding.local.ip = route.source;
                        binding.peer = Some(to);
                    }
                    id
                }
                None => table
                    .bind_for_connection(route.source, to, sharing, self.me.clone(), now)
                    .map_err(errno)?,
            };
            drop(table);
            if binding.is_some() || !lingers(id.port) {
                break id;
            }
            self.net.tcp.lock().release(id);
            tries -= 1;
            if tries == 0 {
                return Err(Errno::EADDRNOTAVAIL);
            }
        };
        let mut state = self.state.lock();
        state.binding = Some(id);
        state.local = SocketAddr::new(route.source, id.port);
        state.shut_read = false;
        state.shut_write = false;
        state.phase = Phase::Connecting(to);
        Ok(())
    }

    /// A connect has failed: the port is free again, and the error waits to be read.
    pub(super) fn fail(&self, errno: Errno) {
        self.net.stats.tcp_failed.add(1);
        let freed = {
            let mut state = self.state.lock();
            if !matches!(state.phase, Phase::Connecting(_)) {
                return;
            }
            state.phase = Phase::Failed;
            state.fault = Some(errno);
            self.unbind(&mut state)
        };
        self.release_binding(freed);
        self.queue.notify(Events::ERR | Events::HUP | Events::READABLE | Events::WRITABLE);
    }

    /// Forgets a connection's address, as far as `bind` did not set it. What it gives is to be released.
    fn unbind(&self, state: &mut State) -> Option<BindingId> {
        if !state.bound_ip {
            state.local.set_ip(self.domain.any());
        }
        if state.bound_port {
            let mut table = self.net.tcp.lock();
            if let Some(binding) = state.binding.and_then(|id| table.get_mut(id)) {
                binding.local.ip = state.local.ip();
                binding.peer = None;
                binding.listening = false;
            }
            return None;
        }
        state.local.set_port(0);
        state.binding.take()
    }

    fn release_binding(&self, id: Option<BindingId>) {
        if let Some(id) = id {
            self.net.tcp.lock().release(id);
        }
    }

    /// Tries to enter the queue of the listener at the address that this socket connects to. `caller`: who connects, where
    /// this is the first attempt.
    fn attempt(&self, caller: Option<&dyn Caller>) -> Attempt {
        let (to, from, id) = {
            let state = self.state.lock();
            match (&state.phase, state.binding) {
                (Phase::Connecting(to), Some(id)) => (*to, state.local, id),
                (Phase::Connected { .. }, _) => return Attempt::Connected,
                _ => return Attempt::Refused,
            }
        };
        let resolver = self.net.route_to_resolver(to, from.ip());
        if let Some((outside, route)) =
            resolver.or_else(|| self.net.route_out(self.options.device(), to.ip(), from.ip()))
        {
            if let Some(caller) = caller {
                outside.tell_asker(route.interface, TCP, from.port(), caller);
            }
            return self.open_flow(outside, route, (from, id), to);
        }
        self.net.stats.packet(60);
        let interface = self.net.arrives_by(to.ip());
        let listener = {
            let table = self.net.tcp.lock();
            let found = table.find(to, from, |binding| listens(binding, interface));
            found.and_then(|binding| binding.owner.upgrade())
        };
        let Some(me) = self.me.upgrade() else { return Attempt::Refused };
        let Some(listener) = listener else {
            if to == from {
                return self.connect_to_itself((from, id));
            }
            self.net.stats.tcp_resets.add(1);
            return Attempt::Refused;
        };
        let mut theirs = listener.state.lock();
        let Phase::Listening(listening) = &mut theirs.phase else { return Attempt::Refused };
        if listening.queue.len() > listening.limit {
            if listening.waiting.len() >= MAX_WAITING {
                return Attempt::Refused;
            }
            self.net.stats.listen_overflows.add(1);
            listening.waiting.push_back(Arc::downgrade(&me));
            return Attempt::Pending;
        }
        let (server, link) = listener.accepted(self, (from, id), to);
        listening.queue.push_back(server);
        drop(theirs);
        {
            let mut state = self.state.lock();
            let connection = Connection { link, end: End::Client, peer: to };
            state.phase = Phase::Connected { connection, told: true };
        }
        self.net.stats.tcp_passive_opens.add(1);
        listener.queue.notify(Events::READABLE);
        Attempt::Connected
    }

    /// A socket that connects to its own address meets its own SYN (RFC 793, simultaneous open).
    fn connect_to_itself(&self, (at, id): (SocketAddr, BindingId)) -> Attempt {
        let mut stream = LoopStream::new(self.limits(), self.limits());
        self.configure_stream(&mut stream, End::Client, false);
        self.configure_stream(&mut stream, End::Server, false);
        let side = || Side::Socket { queue: Arc::clone(&self.queue), binding: id };
        let link = Link::new(&self.net, stream, side(), side());
        let connection = Connection { link, end: End::Client, peer: at };
        self.state.lock().phase = Phase::Connected { connection, told: true };
        Attempt::Connected
    }

    /// What `SO_LINGER` has `close` wait for, in nanoseconds: bytes that the other end's system has not taken.
    pub(super) fn lingers(&self) -> Option<u64> {
        let seconds = self.options.linger().and_then(|s| u64::try_from(s).ok()).filter(|s| *s > 0)?;
        let connection = self.connection()?;
        let waits = if let Some(flow) = connection.link.flow() {
            flow.has_unsent()
        } else {
            let stream = connection.link.stream.lock();
            let open = stream.state(connection.end) != netstack::stream::TcpState::Close;
            open && stream.is_beyond_receiver(connection.end)
        };
        waits.then(|| seconds.saturating_mul(1_000_000_000))
    }

    /// Makes the server's end of a connection that `client` opens, and the connection.
    fn accepted(
        &self,
        client: &TcpCore,
        (from, id): (SocketAddr, BindingId),
        to: SocketAddr,
    ) -> (Arc<TcpSocket>, Arc<Link>) {
        let server = self.new_server(to);
        let sharing = self.sharing();
        let at = (to, self.options.device());
        let server_id = self.net.tcp.lock().adopt(at, from, sharing, server.me.clone());
        let mut stream = LoopStream::new(client.limits(), server.limits());
        client.configure_stream(&mut stream, End::Client, false);
        server.configure_stream(&mut stream, End::Server, false);
        let client_side = Side::Socket { queue: Arc::clone(&client.queue), binding: id };
        let server_side = Side::Socket { queue: Arc::clone(&server.queue), binding: server_id };
        let link = Link::new(&self.net, stream, client_side, server_side);
        (server.become_server(&link, server_id, from), link)
    }

    /// The listener's new socket has its connection.
    fn become_server(self: Arc<Self>, link: &Arc<Link>, id: BindingId, peer: SocketAddr) -> Arc<TcpSocket> {
        {
            let mut state = self.state.lock();
            let connection = Connection { link: Arc::clone(link), end: End::Server, peer };
            state.phase = Phase::Connected { connection, told: true };
            state.binding = Some(id);
        }
        Arc::new(TcpSocket(self))
    }

    /// The server's end of a connection, as a listener makes it.
    fn new_server(&self, at: SocketAddr) -> Arc<Self> {
        let options = Options::inherit(&self.options);
        let attr = crate::socket::new_attr(self.attr.uid, self.attr.gid);
        let state = State {
            phase: Phase::Closed,
            binding: None,
            local: at,
            bound_port: true,
            bound_ip: true,
            fault: None,
            shut_read: false,
            shut_write: false,
            opening: Weak::new(),
        };
        Self::make(&self.net, self.domain, attr, options, state)
    }

    /// Begins a connection with the outside.
    fn open_flow(
        &self,
        outside: &Outside,
        route: Route,
        (from, id): (SocketAddr, BindingId),
        to: SocketAddr,
    ) -> Attempt {
        let Some(me) = self.me.upgrade() else { return Attempt::Refused };
        let side = Side::Socket { queue: Arc::clone(&self.queue), binding: id };
        let tuple = Tuple { local: from, remote: to };
        let Some(flow) = Flow::opening(&self.net, outside, &me, tuple, route, side) else {
            return Attempt::Refused;
        };
        self.state.lock().opening = flow.weak();
        flow.configure(&self.flow_settings(&route), self.user_timeout());
        flow.begin();
        Attempt::Pending
    }

    /// `TCP_USER_TIMEOUT`, in nanoseconds.
    pub(super) fn user_timeout(&self) -> Option<u64> {
        let ms = self.options.number(libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT);
        u64::try_from(ms).ok().filter(|ms| *ms > 0).map(|ms| ms * 1_000_000)
    }

    /// The other end has answered.
    pub(super) fn opened(&self, link: Arc<Link>, peer: SocketAddr) {
        {
            let mut state = self.state.lock();
            if !matches!(state.phase, Phase::Connecting(_)) {
                return;
            }
            let connection = Connection { link, end: End::Client, peer };
            state.phase = Phase::Connected { connection, told: false };
            state.opening = Weak::new();
        }
        self.queue.notify(Events::WRITABLE);
    }

    /// Whether a connection from outside may begin.
    pub(super) fn has_room_for_syn(&self) -> bool {
        match &self.state.lock().phase {
            Phase::Listening(listening) => listening.queue.len() <= listening.limit,
            _ => false,
        }
    }

    /// Takes in a connection from outside whose handshake is over. `None` where this does not listen any more.
    pub(super) fn admit(&self, flow: &Flow) -> Option<Arc<Link>> {
        let Tuple { local, remote } = flow.tuple();
        let server = self.new_server(local);
        let sharing = self.sharing();
        let at = (local, self.options.device());
        let id = self.net.tcp.lock().adopt(at, remote, sharing, server.me.clone());
        let stream = Flow::stream_for(&server);
        let side = Side::Socket { queue: Arc::clone(&server.queue), binding: id };
        let link = Link::new(&self.net, stream, Side::Wire(flow.weak()), side);
        let socket = server.become_server(&link, id, remote);
        {
            let mut state = self.state.lock();
            let Phase::Listening(listening) = &mut state.phase else {
                drop(state);
                return None;
            };
            listening.queue.push_back(socket);
        }
        self.net.stats.tcp_passive_opens.add(1);
        self.queue.notify(Events::READABLE);
        Some(link)
    }

    pub(super) fn try_accept(&self) -> Result<IoStart<Arc<dyn Socket>>> {
        let (socket, waiting) = {
            let mut state = self.state.lock();
            let Phase::Listening(listening) = &mut state.phase else { return Err(Errno::EINVAL) };
            match listening.queue.pop_front() {
                Some(socket) => (socket, listening.waiting.pop_front()),
                None => return Ok(IoStart::WouldBlock),
            }
        };
        if let Some(core) = waiting.and_then(|core| core.upgrade()) {
            core.retry();
        }
        Ok(IoStart::Done(socket))
    }

    /// Tries again to connect, when a listener may have room or is gone.
    fn retry(&self) {
        if !matches!(self.state.lock().phase, Phase::Connecting(_)) {
            return;
        }
        match self.attempt(None) {
            Attempt::Connected => {
                if let Phase::Connected { told, .. } = &mut self.state.lock().phase {
                    *told = false;
                }
                self.queue.notify(Events::WRITABLE);
            }
            Attempt::Refused => self.fail(Errno::ECONNREFUSED),
            Attempt::Pending => {}
        }
    }

    /// `connect` to an address of no family: whatever the socket was, it is closed and may be used anew.
    fn disconnect(&self) -> Result<()> {
        self.end(true);
        self.state.lock().fault = None;
        Ok(())
    }

    /// `inet_shutdown`.
    pub(super) fn shutdown(&self, how: i32) -> Result<()> {
        let (read, write) = match how {
            libc::SHUT_RD => (true, false),
            libc::SHUT_WR => (false, true),
            libc::SHUT_RDWR => (true, true),
            _ => return Err(Errno::EINVAL),
        };
        let connection = {
            let mut state = self.state.lock();
            match &state.phase {
                Phase::Connected { connection, .. } => connection.clone(),
                Phase::Listening(_) if read => {
                    drop(state);
                    self.end(true);
                    self.queue.notify(Events::READABLE | Events::WRITABLE | Events::HUP);
                    return Ok(());
                }
                Phase::Listening(_) => return Ok(()),
                Phase::Connecting(_) => {
                    drop(state);
                    self.end(true);
                    return Ok(());
                }
                Phase::Closed | Phase::Failed => {
                    state.shut_read |= read;
                    state.shut_write |= write;
                    return Err(Errno::ENOTCONN);
                }
            }
        };
        let change = {
            let mut stream = connection.link.stream.lock();
            if stream.state(connection.end) == netstack::stream::TcpState::Close {
                return Err(Errno::ENOTCONN);
            }
            stream.shutdown(connection.end, read, write)
        };
        connection.link.apply(change);
        Ok(())
    }

    /// Ends whatever the socket does. `abort`: reset the peer; else as `close` does.
    fn end(&self, abort: bool) {
        let (phase, freed, opening) = {
            let mut state = self.state.lock();
            let phase = core::mem::take(&mut state.phase);
            let freed = self.unbind(&mut state);
            (phase, freed, core::mem::take(&mut state.opening))
        };
        if let Some(flow) = opening.upgrade() {
            flow.cancel();
        }
        match phase {
            Phase::Closed | Phase::Failed | Phase::Connecting(_) => {}
            Phase::Listening(listening) => {
                // Nobody will accept these: their peers are reset.
                for socket in listening.queue {
                    socket.0.end(true);
                }
                self.release_binding(freed);
                for core in listening.waiting {
                    if let Some(core) = core.upgrade() {
                        core.retry();
                    }
                }
                return;
            }
            Phase::Connected { connection, .. } => {
                let change = {
                    let mut stream = connection.link.stream.lock();
                    let mut change = if abort {
                        stream.disconnect(connection.end)
                    } else {
                        stream.close(connection.end, false)
                    };
                    if connection.is_own() {
                        change.merge(stream.disconnect(connection.end.other()));
                    }
                    change
                };
                connection.link.apply(change);
                let state = connection.link.stream.lock().state(connection.end);
                if state == netstack::stream::TcpState::FinWait2
                    && let Some(id) = connection.link.side(connection.end).binding()
                {
                    self.net.tcp.lock().rest(id, mono_now());
                }
            }
        }
        self.release_binding(freed);
    }

    /// The last descriptor is closed.
    pub(super) fn release(&self) {
        self.net.tcp_sockets.lock().remove(&self.attr.ino);
        {
            let mut state = self.state.lock();
            state.bound_port = false;
            state.bound_ip = false;
        }
        self.end(self.options.linger() == Some(0));
    }
}
