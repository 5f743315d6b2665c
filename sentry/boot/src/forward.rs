//! Joins connections that processes of the host make in a pod's network namespace to the pod's own loopback.
//!
//! Engines forward a port of a pod by a connection to its loopback in the namespace that they made (`kubectl port-forward`).
//! There a rule of the host's turns such connections to a socket that listens for us; each says which port it was meant for.
//! Nobody but processes in that namespace gets there, and no process of the sandbox is in it.
//!
//! One thread waits for connections, and each connection has a thread; their number is bounded.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hostsys::polling::{self, Interest};
use rustix::net::{Shutdown, SocketFlags};
use sentry_base::{Errno, Events, Observer, Result};
use sentry_memory::{UserReader, UserWriter};
use sentry_net::{ControlIn, Domain, Inet, NoPaths, RecvMsg, SendMsg, SockCtx, Socket};
use sentry_vfs::IoStart;

use crate::caller::KernelCaller;
use crate::console::Bell;

/// Connections at the same time; more are turned away.
const MOST: usize = 64;

/// How long a connection to the pod's loopback may take to be made.
const CONNECT: Duration = Duration::from_secs(5);

/// The most that is held on the way in one direction, in bytes.
const PIECE: usize = 32 << 10;

/// Serves a listening socket until the sandbox ends.
pub(crate) fn serve(inet: &Arc<Inet>, listener: OwnedFd) -> std::io::Result<()> {
    let inet = Arc::clone(inet);
    let open = Arc::new(AtomicUsize::new(0));
    let run = move || {
        loop {
            let mut interests = [Interest::new(listener.as_fd(), libc::POLLIN)];
            if polling::wait(&mut interests, None).is_err() {
                return;
            }
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let Ok(socket) = rustix::net::accept_with(&listener, flags) else {
                // Without a descriptor for it, it goes on to be announced.
                thread::sleep(Duration::from_millis(20));
                continue;
            };
            let Ok(meant) = rustix::net::sockopt::ip_original_dst(&socket) else { continue };
            if open.fetch_add(1, Ordering::AcqRel) >= MOST {
                open.fetch_sub(1, Ordering::AcqRel);
                continue;
            }
            let (inet, counted) = (Arc::clone(&inet), Arc::clone(&open));
            let join = move || {
                // Whoever has connected sees an end either way.
                let _ = Connection::to(&inet, meant.port())
                    .and_then(|inner| inner.relay(TcpStream::from(socket)));
                counted.fetch_sub(1, Ordering::AcqRel);
            };
            if thread::Builder::new().name("forward".into()).spawn(join).is_err() {
                open.fetch_sub(1, Ordering::AcqRel);
            }
        }
    };
    thread::Builder::new().name("forward".into()).spawn(run).map(drop)
}

/// `struct sockaddr_in` or `sockaddr_in6` of a port of the loopback.
fn loopback(domain: Domain, port: u16) -> Vec<u8> {
    let family = if domain == Domain::V4 { libc::AF_INET } else { libc::AF_INET6 };
    let mut address = u16::try_from(family).unwrap_or(0).to_ne_bytes().to_vec();
    address.extend_from_slice(&port.to_be_bytes());
    if domain == Domain::V4 {
        address.extend_from_slice(&Ipv4Addr::LOCALHOST.octets());
        address.resize(16, 0);
    } else {
        // No label of a flow.
        address.resize(8, 0);
        address.extend_from_slice(&Ipv6Addr::LOCALHOST.octets());
        address.resize(28, 0);
    }
    address
}

/// A connection of ours inside.
struct Connection {
    socket: Arc<dyn Socket>,
    bell: Arc<Bell>,
    caller: KernelCaller,
}

impl Connection {
    /// Connects to a port of the loopback, of the older family before the newer one.
    fn to(inet: &Arc<Inet>, port: u16) -> Result<Self> {
        Self::connect(inet, Domain::V4, &loopback(Domain::V4, port))
            .or_else(|_| Self::connect(inet, Domain::V6, &loopback(Domain::V6, port)))
    }

    fn connect(inet: &Arc<Inet>, domain: Domain, address: &[u8]) -> Result<Self> {
        let caller = KernelCaller::new();
        let socket = inet.socket(&caller, domain, libc::SOCK_STREAM, 0)?;
        let bell = Bell::new().map_err(|_| Errno::EMFILE)?;
        let observer: Arc<dyn Observer> = Arc::clone(&bell) as _;
        socket.wait_queue().add(Events::READABLE | Events::WRITABLE, observer);
        let made = Self { socket, bell, caller };
        let until = Instant::now() + CONNECT;
        while let IoStart::WouldBlock = made.socket.try_connect(&made.cx(), address)? {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Errno::ETIMEDOUT);
            }
            let mut interests = [made.bell.interest()];
            let wait = i32::try_from(left.as_millis()).unwrap_or(i32::MAX);
            polling::wait(&mut interests, Some(wait)).map_err(|_| Errno::EIO)?;
            made.bell.hear();
        }
        Ok(made)
    }

    fn cx(&self) -> SockCtx<'_> {
        SockCtx { caller: &self.caller, nonblock: false, paths: &NoPaths }
    }

    /// Sends what fits; how much that was.
    fn send(&self, bytes: &[u8]) -> Result<usize> {
        let mut data = UserReader::buffer(bytes);
        let (flags, control) = (libc::MSG_NOSIGNAL, ControlIn::default());
        let mut message = SendMsg { data: &mut data, flags, to: None, control };
        Ok(match self.socket.try_send(&self.cx(), &mut message)? {
            IoStart::Done(sent) => sent,
            IoStart::WouldBlock => 0,
        })
    }

    /// What has come; `None` for nothing yet, empty at the end.
    fn receive(&self) -> Result<Option<Vec<u8>>> {
        let mut buffer = vec![0; PIECE];
        let mut data = UserWriter::buffer(&mut buffer);
        let got = match self.socket.try_recv(&self.cx(), &mut RecvMsg::new(&mut data, 0))? {
            IoStart::Done(got) => got,
            IoStart::WouldBlock => return Ok(None),
        };
        buffer.truncate(got);
        Ok(Some(buffer))
    }

    /// Carries bytes both ways until both have ended, or one of them has failed.
    fn relay(&self, mut outer: TcpStream) -> Result<()> {
        let (mut inward, mut outward) = (Vec::new(), Vec::new());
        let (mut outer_over, mut inner_over) = (false, false);
        let (mut told_inner, mut told_outer) = (false, false);
        let lost = |_| Errno::ECONNRESET;
        loop {
            // What rings after this is not missed by the wait.
            self.bell.hear();
            let mut moved = false;
            if !inward.is_empty() {
                let sent = self.send(&inward)?;
                inward.drain(..sent.min(inward.len()));
                moved |= sent > 0;
            }
            if !outer_over && inward.is_empty() {
                let mut buffer = vec![0; PIECE];
                match outer.read(&mut buffer) {
                    Ok(got) => {
                        buffer.truncate(got);
                        outer_over = got == 0;
                        inward = buffer;
                        moved = true;
                    }
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(lost(error)),
                }
            }
            if outer_over && inward.is_empty() && !told_inner {
                self.socket.shutdown(libc::SHUT_WR)?;
                told_inner = true;
            }
            if !inner_over
                && outward.is_empty()
                && let Some(got) = self.receive()?
            {
                inner_over = got.is_empty();
                outward = got;
                moved = true;
            }
            if !outward.is_empty() {
                match outer.write(&outward) {
                    Ok(sent) => {
                        outward.drain(..sent.min(outward.len()));
                        moved |= sent > 0;
                    }
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(lost(error)),
                }
            }
            if inner_over && outward.is_empty() && !told_outer {
                rustix::net::shutdown(&outer, Shutdown::Write).map_err(|_| Errno::ECONNRESET)?;
                told_outer = true;
            }
            if told_inner && told_outer {
                return Ok(());
            }
            if moved {
                continue;
            }
            let mut events = 0;
            if !outer_over && inward.is_empty() {
                events |= libc::POLLIN;
            }
            if !outward.is_empty() {
                events |= libc::POLLOUT;
            }
            // One that has ended both ways would be told again and again.
            let outside = if events == 0 { Interest::none() } else { Interest::new(outer.as_fd(), events) };
            let mut interests = [self.bell.interest(), outside];
            polling::wait(&mut interests, None).map_err(|_| Errno::EIO)?;
        }
    }
}
