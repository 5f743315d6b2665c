//! The thread that serves a network's links: reads what comes from descriptors that the command has opened, and looks at
//! the clock for connections.
//!
//! The descriptors are packet sockets, bound to one interface each, and nothing is done with them but reading and writing
//! frames. Whoever sends writes by itself; the thread is woken by the clock, by a frame, or by the bell when an earlier
//! time is to be waited for.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use control_protocol::Network;
use hostsys::polling::{self, Interest};
use netstack::frame::{HEADROOM, OFFLOAD_HEADER};
use netstack::iface::{
    BROADCAST, Interface, InterfaceAddress, LOWER_UP, MULTICAST, RUNNING, StaticRoute, UP,
};
use netstack::shaper::{Shaper, Verdict};
use sentry_base::{mono_now, real_now};
use sentry_net::{Inet, LinkHost, LinkSetup, Links, RESOLVER_LINK};

/// Frames, and bytes, that are read from one link before they are answered and another one has its turn.
const TURN: usize = 64;
const TURN_BYTES: usize = 256 << 10;
/// The longest frame that a link gives, in bytes: a packet that it has put together.
const LONGEST: usize = HEADROOM + (64 << 10) + 256;
/// When the links have carried so many bytes since the thread looked last, it lets frames gather for a while before it looks
/// again: a wake costs as much as several frames.
const BULK: u64 = 128 << 10;
const GATHER: Duration = Duration::from_micros(30);
/// `ARPHRD_ETHER`.
const ETHERNET: u16 = 1;

/// How the thread is woken. Made before the filter, which has no call for it.
#[derive(Debug)]
pub struct LinkBell {
    ringer: UnixStream,
    ear: UnixStream,
}

impl LinkBell {
    pub fn new() -> io::Result<Self> {
        let (ringer, ear) = UnixStream::pair()?;
        ringer.set_nonblocking(true)?;
        ear.set_nonblocking(true)?;
        Ok(Self { ringer, ear })
    }
}

/// Where frames are written to besides, as `tcpdump` writes them.
#[derive(Debug, Default)]
pub struct Capture {
    on: AtomicBool,
    file: Mutex<Option<File>>,
}

impl Capture {
    /// `pcap-savefile(5)`: microseconds, version 2.4, frames of up to 256 KiB, Ethernet.
    const HEAD: [u32; 6] = [0xa1b2_c3d4, (4 << 16) | 2, 0, 0, 0x4_0000, 1];

    /// Begins to write to a file, which must be open for writing, or ends it.
    pub fn to(&self, file: Option<OwnedFd>) -> io::Result<()> {
        let mut file = file.map(File::from);
        if let Some(file) = &mut file {
            file.write_all(&Self::HEAD.map(u32::to_ne_bytes).concat())?;
        }
        self.on.store(file.is_some(), Ordering::Relaxed);
        if let Ok(mut slot) = self.file.lock() {
            *slot = file;
        }
        Ok(())
    }

    /// Writes a frame that is behind its `struct virtio_net_hdr`.
    fn note(&self, frame: &[u8]) {
        if !self.on.load(Ordering::Relaxed) {
            return;
        }
        let frame = frame.get(OFFLOAD_HEADER..).unwrap_or_default();
        let now = real_now();
        let word = |n: u64| u32::try_from(n & u64::from(u32::MAX)).unwrap_or(0).to_ne_bytes();
        let len = word(frame.len() as u64);
        let mut record = [word(now / 1_000_000_000), word(now / 1000 % 1_000_000), len, len].concat();
        record.extend_from_slice(frame);
        if let Ok(mut slot) = self.file.lock()
            && let Some(file) = slot.as_mut()
            && file.write_all(&record).is_err()
        {
            // A disk that is full ends it.
            self.on.store(false, Ordering::Relaxed);
            *slot = None;
        }
    }
}

/// Bits in a second that each link may carry to and from the sandbox; 0 for no limit.
#[derive(Debug, Clone, Copy, Default)]
pub struct Bandwidth {
    pub ingress: u64,
    pub egress: u64,
}

/// A descriptor, and what limits it in either direction.
#[derive(Debug)]
struct Link {
    fd: OwnedFd,
    ingress: Option<Mutex<Shaper>>,
    egress: Option<Mutex<Shaper>>,
}

impl Link {
    fn new(fd: OwnedFd, bandwidth: Bandwidth) -> Self {
        let limit = |bits: u64| (bits > 0).then(|| Mutex::new(Shaper::new(bits)));
        Self { fd, ingress: limit(bandwidth.ingress), egress: limit(bandwidth.egress) }
    }

    fn write(&self, frame: &[u8]) {
        // A frame that the link does not take is lost, as any frame may be.
        let _ = hostsys::retry(|| Ok(rustix::io::write(&self.fd, frame)?));
    }

    /// When a frame that waits may go on, in either direction.
    fn deadline(&self) -> Option<u64> {
        let both = [&self.ingress, &self.egress].into_iter().flatten();
        both.filter_map(|shaper| shaper.lock().ok()?.deadline()).min()
    }

    /// Hands on what has waited long enough.
    fn serve(&self, capture: &Capture, mut take: impl FnMut(&[u8])) {
        let due = |shaper: &Option<Mutex<Shaper>>| shaper.as_ref()?.lock().ok()?.due(mono_now());
        while let Some(frame) = due(&self.egress) {
            capture.note(&frame);
            self.write(&frame);
        }
        while let Some(frame) = due(&self.ingress) {
            take(&frame);
        }
    }
}

fn offer(shaper: Option<&Mutex<Shaper>>, frame: &[u8]) -> Verdict {
    match shaper.map(Mutex::lock) {
        None => Verdict::Goes,
        Some(Ok(mut shaper)) => shaper.offer(frame, mono_now()),
        Some(Err(_)) => Verdict::Lost,
    }
}

#[derive(Debug)]
struct Host {
    capture: Arc<Capture>,
    /// Bytes that the links have carried in either direction.
    carried: AtomicU64,
    links: BTreeMap<u32, Link>,
    resolver: Option<OwnedFd>,
    ringer: UnixStream,
}

impl LinkHost for Host {
    fn send(&self, interface: u32, frame: &[u8]) {
        let Some(link) = self.links.get(&interface) else { return };
        self.carried.fetch_add(frame.len() as u64, Ordering::Relaxed);
        match offer(link.egress.as_ref(), frame) {
            Verdict::Goes => {
                self.capture.note(frame);
                link.write(frame);
            }
            // The thread learns when that frame's time comes.
            Verdict::Waits { first: true } => self.ring(),
            Verdict::Waits { first: false } | Verdict::Lost => {}
        }
    }

    fn ring(&self) {
        // One that is full has woken the thread already.
        let _ = (&self.ringer).write(&[1]);
    }

    fn ask_resolver(&self, query: &[u8]) {
        if let Some(fd) = &self.resolver {
            let _ = hostsys::retry(|| Ok(rustix::io::write(fd, query)?));
        }
    }
}

/// The interfaces that a network says.
pub fn interfaces(network: &Network) -> Vec<Interface> {
    let interfaces = network.links.iter().map(|link| Interface {
        index: link.index,
        name: link.name.clone(),
        flags: UP | BROADCAST | RUNNING | MULTICAST | LOWER_UP,
        mtu: link.mtu,
        hardware: link.hardware,
        kind: ETHERNET,
        tx_queue_len: 1000,
        addresses: link
            .addresses
            .iter()
            .map(|a| InterfaceAddress { ip: a.ip, prefix: a.prefix, scope: a.scope })
            .collect(),
    });
    interfaces.collect()
}

/// The routes that it says, but for those that are none.
pub fn routes(network: &Network) -> Vec<StaticRoute> {
    let most = |ip: IpAddr| if ip.is_ipv4() { 32 } else { 128 };
    let routes = network.routes.iter().filter(|r| r.prefix <= most(r.to)).map(|r| StaticRoute {
        to: r.to,
        prefix: r.prefix,
        gateway: r.gateway,
        interface: r.link,
        metric: r.metric,
        source: r.source,
        protocol: r.protocol,
        scope: r.scope,
    });
    routes.collect()
}

fn setup(network: &Network, host: Arc<Host>) -> LinkSetup {
    LinkSetup {
        interfaces: interfaces(network),
        routes: routes(network),
        routed: network.links.iter().filter(|link| link.accepts_routers).map(|link| link.index).collect(),
        resolver: host.resolver.is_some(),
        resolver_stream: network.resolver_stream,
        tell_askers: network.tell_askers,
        host,
    }
}

/// Gives the sandbox's network its links, and starts the thread.
pub fn connect(
    inet: &Arc<Inet>,
    bell: LinkBell,
    capture: &Arc<Capture>,
    (network, bandwidth): (&Network, Bandwidth),
    fds: Vec<OwnedFd>,
) -> Result<(), String> {
    let resolvers = usize::from(network.resolver) + usize::from(network.resolver_stream);
    let wanted = network.links.len() + resolvers;
    if fds.len() != wanted {
        return Err(format!("the network says {wanted} descriptors, {} came", fds.len()));
    }
    let mut fds = fds.into_iter();
    let described = network.links.iter().map(|link| link.index).zip(fds.by_ref());
    let mut links: BTreeMap<u32, Link> =
        described.map(|(index, fd)| (index, Link::new(fd, bandwidth))).collect();
    let resolver = if network.resolver { fds.next() } else { None };
    if let Some(fd) = fds.next() {
        links.insert(RESOLVER_LINK, Link::new(fd, Bandwidth::default()));
    }
    let host = Arc::new(Host {
        capture: Arc::clone(capture),
        carried: AtomicU64::new(0),
        links,
        resolver,
        ringer: bell.ringer,
    });
    let links = inet.attach(setup(network, Arc::clone(&host)));
    let serve = move || serve(&links, &host, bell.ear);
    thread::Builder::new().name("links".into()).spawn(serve).map_err(|error| error.to_string())?;
    Ok(())
}

/// How long until `deadline`, in milliseconds, rounded up.
fn timeout(deadline: Option<u64>) -> Option<i32> {
    let left = deadline?.saturating_sub(mono_now());
    Some(i32::try_from(left.div_ceil(1_000_000)).unwrap_or(i32::MAX))
}

fn serve(links: &Links, host: &Host, mut ear: UnixStream) {
    let mut buffer = vec![0; LONGEST];
    let mut carried = 0;
    loop {
        let mut interests = vec![
            Interest::new(ear.as_fd(), libc::POLLIN),
            host.resolver.as_ref().map_or(Interest::none(), |fd| Interest::new(fd.as_fd(), libc::POLLIN)),
        ];
        interests.extend(host.links.values().map(|link| Interest::new(link.fd.as_fd(), libc::POLLIN)));
        let held = host.links.values().filter_map(Link::deadline);
        if polling::wait(&mut interests, timeout(held.chain(links.deadline()).min())).is_err() {
            return;
        }
        let [bell, resolver, of_links @ ..] = interests.as_slice() else { return };
        if bell.any() {
            let _ = ear.read(&mut [0; 64]);
        }
        if resolver.any()
            && let Some(fd) = &host.resolver
        {
            drain(fd, &mut buffer, |answer| links.resolved(answer));
        }
        let mut failed = false;
        for ((index, link), interest) in host.links.iter().zip(of_links) {
            let take = |frame: &[u8]| {
                host.carried.fetch_add(frame.len() as u64, Ordering::Relaxed);
                host.capture.note(frame);
                links.arrived(*index, frame);
            };
            link.serve(&host.capture, take);
            if interest.any() {
                let got = drain(&link.fd, &mut buffer, |frame| {
                    if offer(link.ingress.as_ref(), frame) == Verdict::Goes {
                        take(frame);
                    }
                });
                failed |= got == 0 && interest.found() & libc::POLLIN == 0;
            }
        }
        if failed {
            // An interface that is gone says so for ever.
            thread::sleep(Duration::from_millis(100));
        }
        links.answer();
        links.tick();
        let before = std::mem::replace(&mut carried, host.carried.load(Ordering::Relaxed));
        if carried - before >= BULK {
            thread::sleep(GATHER);
        }
    }
}

/// Reads what is there, up to a turn's worth; gives the number of frames.
fn drain(fd: &OwnedFd, buffer: &mut [u8], mut take: impl FnMut(&[u8])) -> usize {
    let mut bytes = 0;
    for done in 0..TURN {
        match rustix::io::read(fd, &mut *buffer) {
            Ok(len) => {
                take(buffer.get(..len).unwrap_or_default());
                bytes += len;
                if bytes >= TURN_BYTES {
                    return done + 1;
                }
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return done,
        }
    }
    TURN
}
