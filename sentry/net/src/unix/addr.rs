//! Addresses of `AF_UNIX`: none, a path, or a name in the abstract namespace (`unix(7)`).

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Weak};

use abi::net::UNIX_PATH_MAX;
use sentry_base::{Errno, Mutex, Result, lock::rank};

use super::Core;
use super::garbage::Flying;
use crate::Inet;

/// `struct sockaddr_un` without its path.
const FAMILY_LEN: usize = 2;

/// Descriptors that may be in flight in one sandbox.
const MAX_IN_FLIGHT: usize = 16_384;

/// The name of a socket.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) enum Address {
    #[default]
    Unnamed,
    Path(Arc<[u8]>),
    /// Without the leading NUL.
    Abstract(Arc<[u8]>),
}

impl Address {
    /// Reads a `struct sockaddr_un` (`unix_validate_addr`). One that is the family alone is [`Address::Unnamed`].
    pub(super) fn parse(bytes: &[u8]) -> Result<Self> {
        let (family, name) = bytes.split_at_checked(FAMILY_LEN).ok_or(Errno::EINVAL)?;
        if name.len() > UNIX_PATH_MAX || family != family_bytes() {
            return Err(Errno::EINVAL);
        }
        Ok(match name.split_first() {
            None => Self::Unnamed,
            Some((0, rest)) => Self::Abstract(Arc::from(rest)),
            Some(_) => Self::Path(Arc::from(name.split(|b| *b == 0).next().unwrap_or_default())),
        })
    }

    /// As a received message names its sender: nothing for one without a name.
    pub(super) fn sender_bytes(&self) -> Vec<u8> {
        if *self == Self::Unnamed { Vec::new() } else { self.to_bytes() }
    }

    /// As `struct sockaddr_un`, as long as it says.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut out = family_bytes().to_vec();
        match self {
            Self::Unnamed => {}
            Self::Path(path) => {
                out.extend_from_slice(path);
                out.push(0);
            }
            Self::Abstract(name) => {
                out.push(0);
                out.extend_from_slice(name);
            }
        }
        out
    }
}

/// `AF_UNIX` as it stands in a `struct sockaddr`.
fn family_bytes() -> [u8; 2] {
    u16::try_from(libc::AF_UNIX).unwrap_or(1).to_ne_bytes()
}

/// A socket type and a name: stream and datagram sockets may bear the same name.
type Key = (i32, Arc<[u8]>);

/// The abstract names of a sandbox, and its count of descriptors in flight.
#[derive(Debug, Default)]
pub struct UnixNamespace {
    /// The network whose interfaces these sockets' ioctls are about.
    pub(super) inet: Arc<Inet>,
    names: Mutex<HashMap<Key, Weak<Core>>, { rank::LEAF }>,
    next_auto: AtomicU32,
    in_flight: AtomicUsize,
    /// Sockets of this family that are in flight, by the id of their description.
    pub(super) flying: Mutex<HashMap<u64, Flying>, { rank::LEAF }>,
    pub(super) collecting: AtomicBool,
    /// All sockets, by inode number, for `/proc/net/unix`.
    pub(super) sockets: Mutex<BTreeMap<u64, Weak<Core>>, { rank::LEAF }>,
    /// Sockets that closed since the last search for garbage.
    pub(super) closes: AtomicUsize,
}

impl UnixNamespace {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// The names beside these Internet protocols.
    pub(crate) fn beside(inet: &Arc<Inet>) -> Arc<Self> {
        let names = Arc::new(Self { inet: Arc::clone(inet), ..Self::default() });
        let _ = inet.unix.set(Arc::downgrade(&names));
        names
    }

    pub(super) fn find(&self, kind: i32, name: &Arc<[u8]>) -> Option<Arc<Core>> {
        self.names.lock().get(&(kind, Arc::clone(name)))?.upgrade()
    }

    /// Takes a name; `EADDRINUSE` while a live socket has it.
    pub(super) fn claim(&self, kind: i32, name: &Arc<[u8]>, core: &Weak<Core>) -> Result<()> {
        let mut names = self.names.lock();
        let slot = names.entry((kind, Arc::clone(name))).or_default();
        if slot.strong_count() > 0 {
            return Err(Errno::EADDRINUSE);
        }
        *slot = Weak::clone(core);
        Ok(())
    }

    /// Takes a free name of five hexadecimal digits (`unix_autobind`).
    pub(super) fn claim_any(&self, kind: i32, core: &Weak<Core>) -> Result<Arc<[u8]>> {
        for _ in 0..=0xf_ffff {
            let number = self.next_auto.fetch_add(1, Ordering::Relaxed) & 0xf_ffff;
            let name: Arc<[u8]> = Arc::from(format!("{number:05x}").as_bytes());
            if self.claim(kind, &name, core).is_ok() {
                return Ok(name);
            }
        }
        Err(Errno::ENOSPC)
    }

    pub(super) fn release(&self, kind: i32, name: &Arc<[u8]>) {
        self.names.lock().remove(&(kind, Arc::clone(name)));
    }

    /// Counts `n` descriptors as in flight; `ETOOMANYREFS` above the limit.
    pub(super) fn take_off(&self, n: usize) -> Result<()> {
        let before = self.in_flight.fetch_add(n, Ordering::Relaxed);
        if before.saturating_add(n) > MAX_IN_FLIGHT {
            self.land(n);
            return Err(Errno::ETOOMANYREFS);
        }
        Ok(())
    }

    pub(super) fn land(&self, n: usize) {
        self.in_flight.fetch_sub(n, Ordering::Relaxed);
    }
}
