//! Takes a network over for a sandbox: reads what an engine has set up in a network namespace, opens its interfaces, and
//! has the host's kernel keep out of them.
//!
//! The host's kernel answers for an address only as long as it has it. So the addresses go, and the routes with them; the
//! interface stays up, and what comes in by it reaches the Sentry through a packet socket. The loopback of the namespace
//! is left as it is: an engine's resolver may be there. Where it is, the IPv4 addresses stay for it, behind a filter.

use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;

use control_protocol::{Address, Link, MAX_LINKS, Network, Request};
use hostsys::packet;

use crate::error::{Context, Error, Result, show};
use crate::filter;
use crate::log::{Level, Log};
use crate::netlink::Routing;
use crate::session;

/// Bytes that may wait at one link, in either direction.
const LINK_BUFFER: i32 = 8 << 20;

/// The engine's resolver, on the loopback of the namespace.
const RESOLVER: (Ipv4Addr, u16) = (Ipv4Addr::new(127, 0, 0, 11), 53);

/// A network, and what reaches it.
#[derive(Debug)]
pub(crate) struct Taken {
    pub network: Network,
    /// In the order that [`Network`] says.
    pub descriptors: Vec<OwnedFd>,
}

/// The network namespace of a process.
pub(crate) fn of_process(pid: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/ns/net"))
}

/// Takes over the network of a namespace; `None` where that is this command's own, or has no interface with an address.
///
/// With `forward`, connections that processes of the host make to the loopback there reach that of the sandbox.
pub(crate) fn take_over(namespace: &Path, forward: bool, log: &Log) -> Result<Option<Taken>> {
    let Some(file) = open(namespace, log)? else { return Ok(None) };
    let taken = inside(&file, || {
        let mut taken = take_all(log)?;
        if let Some(taken) = taken.as_mut().filter(|_| forward) {
            taken.forward_loopback(log);
        }
        Ok(taken)
    });
    match taken {
        Ok(Some(mut taken)) => {
            if taken.network.resolver_stream {
                match crate::nat::start_for_resolver(&file) {
                    Ok(link) => {
                        // A socket for forwarded ports comes last of all.
                        let last = taken.descriptors.len().saturating_sub(usize::from(taken.network.forward));
                        taken.descriptors.insert(last, link);
                    }
                    Err(error) => {
                        taken.network.resolver_stream = false;
                        let text = format!("the engine's resolver takes no queries by TCP: {error}");
                        log.write(Level::Warning, &text);
                    }
                }
            }
            Ok(Some(taken))
        }
        Ok(None) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            say_refused(&error, log);
            Ok(None)
        }
        Err(error) => Err(error).context(|| format!("take over the network namespace {}", show(namespace))),
    }
}

/// Opens a network namespace; `None` where that is this command's own, or may not be opened.
pub(crate) fn open(namespace: &Path, log: &Log) -> Result<Option<File>> {
    let opening = || format!("open the network namespace {}", show(namespace));
    let file = match File::open(namespace) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            say_refused(&error, log);
            return Ok(None);
        }
        file => file.context(opening)?,
    };
    let (theirs, own) = (file.metadata().context(opening)?, fs::metadata("/proc/self/ns/net"));
    Ok(Some(file).filter(|_| !own.is_ok_and(|own| own.ino() == theirs.ino())))
}

pub(crate) fn say_refused(error: &io::Error, log: &Log) {
    let text = format!("the container has a loopback alone: its network cannot be taken over: {error}");
    log.write(Level::Warning, &text);
}

/// Does something in a network namespace, on a thread of its own, so that this one stays where it is.
pub(crate) fn inside<T: Send>(
    namespace: &File,
    work: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    thread::scope(|scope| {
        let inside = scope.spawn(|| {
            packet::enter_network(namespace.as_fd())?;
            work()
        });
        inside.join().unwrap_or_else(|_| Err(io::Error::other("the thread has panicked")))
    })
}

fn take_all(log: &Log) -> io::Result<Option<Taken>> {
    let routing = Routing::open()?;
    let addresses = routing.addresses()?;
    let mut network = Network { routes: routing.routes()?, ..Network::default() };
    let mut descriptors = Vec::new();
    for interface in routing.interfaces()? {
        let own: Vec<_> = addresses.iter().filter(|address| address.index == interface.index).collect();
        let taken = interface.alias.as_deref() == Some(TAKEN);
        if !interface.is_ethernet
            || !interface.is_up
            || taken
            || own.is_empty()
            || network.links.len() >= MAX_LINKS
        {
            continue;
        }
        descriptors.push(packet::link_socket(interface.index, LINK_BUFFER)?);
        let accepts_routers = accepts_routers(&interface.name);
        network.links.push(Link {
            index: interface.index,
            name: interface.name,
            mtu: interface.mtu,
            hardware: interface.hardware,
            addresses: own.iter().map(|a| Address { ip: a.ip, prefix: a.prefix, scope: a.scope }).collect(),
            accepts_routers,
        });
    }
    if network.links.is_empty() {
        return Ok(None);
    }
    network.routes.retain(|route| network.links.iter().any(|link| link.index == route.link));
    // What an address makes by itself is not a route that somebody has set.
    network.routes.retain(|route| route.protocol != BY_KERNEL);
    if let Some(socket) = resolver()? {
        network.resolver = true;
        network.resolver_stream = listens("tcp");
        descriptors.push(socket);
    }
    let mut filtered = false;
    if network.resolver {
        match filter::set_rules() {
            Ok(()) => filtered = true,
            Err(error) => {
                let text = format!("the engine's resolver finds no names outside: {error}");
                log.write(Level::Warning, &text);
            }
        }
    }
    // From here on the host's kernel answers for none of them.
    for link in network.links.iter().filter(|_| filtered) {
        routing.set_alias(link.index, TAKEN)?;
    }
    for address in addresses.iter().filter(|a| network.links.iter().any(|link| link.index == a.index)) {
        if filtered && address.ip.is_ipv4() {
            continue;
        }
        match routing.remove(address) {
            // Gone with another one: the secondaries of an address go with it.
            Err(error) if error.raw_os_error() == Some(libc::EADDRNOTAVAIL) => {}
            done => done?,
        }
    }
    Ok(Some(Taken { network, descriptors }))
}

/// Other name of an interface whose addresses are still there and yet a sandbox's.
const TAKEN: &str = "casemate";

/// `RTPROT_KERNEL`.
const BY_KERNEL: u8 = 2;

/// Whether the host's kernel, in the calling thread's network, would believe routers of a link.
fn accepts_routers(interface: &str) -> bool {
    let setting = |name: &str| {
        let path = format!("/proc/sys/net/ipv6/conf/{interface}/{name}");
        fs::read_to_string(path).ok()?.trim().parse::<i32>().ok()
    };
    let forwards = setting("forwarding").is_some_and(|value| value != 0);
    let accepts = setting("accept_ra").is_some_and(|value| value == 2 || (value == 1 && !forwards));
    accepts && setting("autoconf") == Some(1) && setting("disable_ipv6") == Some(0)
}

/// Whether something is bound at the resolver's address, by the table of a protocol.
fn listens(protocol: &str) -> bool {
    let hex = format!("{:08X}:", u32::from_ne_bytes(RESOLVER.0.octets()));
    let table = fs::read_to_string(format!("/proc/thread-self/net/{protocol}")).unwrap_or_default();
    table.lines().any(|line| line.split_whitespace().nth(1).is_some_and(|at| at.starts_with(&hex)))
}

/// A socket to the engine's resolver, where one is there: something listens at its address, under whichever port it has
/// been moved to.
fn resolver() -> io::Result<Option<OwnedFd>> {
    if !listens("udp") {
        return Ok(None);
    }
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(RESOLVER)?;
    socket.set_nonblocking(true)?;
    Ok(Some(socket.into()))
}

impl Taken {
    /// Has connections to the loopback of this thread's network come to a socket for the Sentry. It is for an engine's
    /// forwarding of ports, without which a pod does all the rest.
    fn forward_loopback(&mut self, log: &Log) {
        let listen = || -> io::Result<TcpListener> {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            listener.set_nonblocking(true)?;
            filter::turn_loopback(listener.local_addr()?.port())?;
            Ok(listener)
        };
        match listen() {
            Ok(listener) => {
                self.network.forward = true;
                self.descriptors.push(listener.into());
            }
            Err(error) => {
                log.write(Level::Warning, &format!("ports of the pod cannot be forwarded: {error}"));
            }
        }
    }

    /// Gives it to the Sentry of the container whose state is in `dir`.
    pub fn hand_over(self, dir: &Path) -> Result<()> {
        let request = Request::Connect(Box::new(self.network));
        match session::ask_with(dir, &request, &self.descriptors) {
            Err(Error::Sandbox { message, .. }) => {
                let message = format!("the sandbox does not take the network: {message}");
                Err(Error::Sandbox { code: 1, message })
            }
            done => done,
        }
    }
}
