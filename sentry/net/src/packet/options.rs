//! Options of packet sockets (`SOL_PACKET`), and those of every socket as they are here.

use core::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::Arc;

use abi::net::SockTimeval;
use abi::seccomp::{SockFilter, SockFprog};
use abi::time::Timespec;
use netstack::bpf::{Instruction, MAX_INSTRUCTIONS, Program};
use sentry_base::{Errno, Nanos, Result};
use sentry_vfs::Caller;
use zerocopy::{FromBytes, IntoBytes};

use super::ring::{self, Ring};
use super::{PacketCore, kind};
use crate::RecvMsg;
use crate::inet::options::{Options, int};

const ADD_MEMBERSHIP: i32 = 1;
const DROP_MEMBERSHIP: i32 = 2;
const RX_RING: i32 = 5;
const STATISTICS: i32 = 6;
const COPY_THRESH: i32 = 7;
const AUXDATA: i32 = 8;
const ORIGDEV: i32 = 9;
const VERSION: i32 = 10;
pub(super) const HDRLEN: i32 = 11;
const RESERVE: i32 = 12;
const LOSS: i32 = 14;
const TIMESTAMP: i32 = 17;
const QDISC_BYPASS: i32 = 20;
const IGNORE_OUTGOING: i32 = 23;

const SO_LOCK_FILTER: i32 = 44;
/// Memberships of one socket; Linux has no limit of its own.
const MAX_MEMBERSHIPS: usize = 256;
/// Bytes of `struct packet_mreq` and of `struct tpacket_req`.
const MEMBERSHIP: usize = 16;
const RING_REQUEST: usize = 16;

/// The options that are numbers.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    auxdata: AtomicBool,
    ignore_outgoing: AtomicBool,
    origdev: AtomicBool,
    loss: AtomicBool,
    bypass: AtomicBool,
    timestamp: AtomicI32,
    /// `TPACKET_V*`.
    version: AtomicI32,
    reserve: AtomicI32,
}

impl Numbers {
    pub(super) fn auxdata(&self) -> bool {
        self.auxdata.load(Ordering::Relaxed)
    }

    pub(super) fn ignores_outgoing(&self) -> bool {
        self.ignore_outgoing.load(Ordering::Relaxed)
    }

    fn flag(&self, name: i32) -> Option<&AtomicBool> {
        Some(match name {
            AUXDATA => &self.auxdata,
            ORIGDEV => &self.origdev,
            LOSS => &self.loss,
            QDISC_BYPASS => &self.bypass,
            IGNORE_OUTGOING => &self.ignore_outgoing,
            _ => return None,
        })
    }
}

/// The control message that tells when a frame came, where it is asked for.
pub(super) fn describe_time(options: &Options, stamp: Nanos, msg: &mut RecvMsg<'_, '_>) {
    let flag = |name| options.set_or(libc::SOL_SOCKET, name, 0) != 0;
    let sec = i64::try_from(stamp / 1_000_000_000).unwrap_or(0);
    let nsec = i64::try_from(stamp % 1_000_000_000).unwrap_or(0);
    if flag(libc::SO_TIMESTAMP) {
        let stamp = SockTimeval { sec, usec: nsec / 1000 };
        msg.describe(libc::SOL_SOCKET, libc::SO_TIMESTAMP, stamp.as_bytes());
    } else if flag(libc::SO_TIMESTAMPNS) {
        msg.describe(libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, Timespec { sec, nsec }.as_bytes());
    }
}

/// Bytes of the header by which a version of the ring describes frames; `None` for one that is not here.
pub(super) fn header_len(given: &[u8]) -> Option<Vec<u8>> {
    let len = match int(given).ok()? {
        0 => ring::HEADER_V1,
        1 => ring::HEADER_V2,
        _ => return None,
    };
    Some(len.to_ne_bytes().to_vec())
}

/// Reads the program that a `struct sock_fprog` names (`__get_filter`).
fn program(caller: &dyn Caller, value: &[u8]) -> Result<Program> {
    let (given, _) = SockFprog::read_from_prefix(value).map_err(|_| Errno::EINVAL)?;
    let len = usize::from(given.len);
    if len == 0 || len > MAX_INSTRUCTIONS {
        return Err(Errno::EINVAL);
    }
    let mut bytes = vec![0; len * size_of::<SockFilter>()];
    caller.mem().copy_in(given.filter, &mut bytes)?;
    let list = bytes.chunks_exact(size_of::<SockFilter>()).filter_map(|one| {
        let one = SockFilter::read_from_bytes(one).ok()?;
        Some(Instruction { code: one.code, jt: one.jt, jf: one.jf, k: one.k })
    });
    Program::check(list.collect()).ok_or(Errno::EINVAL)
}

impl PacketCore {
    pub(super) fn get_option(&self, level: i32, name: i32) -> Result<Vec<u8>> {
        let number = match (level, name) {
            (libc::SOL_SOCKET, libc::SO_TYPE) => {
                if self.cooked {
                    libc::SOCK_DGRAM
                } else {
                    libc::SOCK_RAW
                }
            }
            (libc::SOL_SOCKET, libc::SO_DOMAIN) => libc::AF_PACKET,
            // Its protocol is not one of those that this tells.
            (libc::SOL_SOCKET, libc::SO_PROTOCOL | libc::SO_ERROR | libc::SO_ACCEPTCONN) => 0,
            (libc::SOL_SOCKET, _) => return self.options.get(level, name),
            (libc::SOL_PACKET, STATISTICS) => {
                let mut state = self.state.lock();
                let (taken, dropped) = (state.taken, state.dropped);
                (state.taken, state.dropped) = (0, 0);
                let all = taken.saturating_add(dropped);
                return Ok([all.to_ne_bytes(), dropped.to_ne_bytes()].concat());
            }
            (libc::SOL_PACKET, VERSION) => self.numbers.version.load(Ordering::Relaxed),
            (libc::SOL_PACKET, RESERVE) => self.numbers.reserve.load(Ordering::Relaxed),
            (libc::SOL_PACKET, TIMESTAMP) => self.numbers.timestamp.load(Ordering::Relaxed),
            // One that is not here.
            (libc::SOL_PACKET, HDRLEN) => return Err(Errno::EINVAL),
            (libc::SOL_PACKET, name) => {
                let flag = self.numbers.flag(name).ok_or(Errno::ENOPROTOOPT)?;
                i32::from(flag.load(Ordering::Relaxed))
            }
            _ => return Err(Errno::ENOPROTOOPT),
        };
        Ok(number.to_ne_bytes().to_vec())
    }

    pub(super) fn set_option(&self, caller: &dyn Caller, level: i32, name: i32, value: &[u8]) -> Result<()> {
        self.net.bind_to_device(caller, &self.options, (level, name), value)?;
        match (level, name) {
            (libc::SOL_SOCKET, libc::SO_ATTACH_FILTER) => {
                let program = Arc::new(program(caller, value)?);
                let old = self.state.lock().filter.replace(program);
                drop(old);
            }
            (libc::SOL_SOCKET, libc::SO_DETACH_FILTER) => {
                int(value)?;
                let old = self.state.lock().filter.take();
                old.ok_or(Errno::ENOENT)?;
            }
            (libc::SOL_SOCKET, SO_LOCK_FILTER) => drop(int(value)?),
            (libc::SOL_SOCKET, _) => return self.options.set(caller, level, name, value),
            (libc::SOL_PACKET, ADD_MEMBERSHIP | DROP_MEMBERSHIP) => {
                return self.change_membership(value, name == ADD_MEMBERSHIP);
            }
            (libc::SOL_PACKET, RX_RING) => return self.make_ring(caller, value),
            (libc::SOL_PACKET, VERSION) => {
                if self.state.lock().ring.is_some() {
                    return Err(Errno::EBUSY);
                }
                let version = int(value)?;
                // The third version's blocks, which are timed, are not made.
                if !(0..=1).contains(&version) {
                    return Err(Errno::EINVAL);
                }
                self.numbers.version.store(version, Ordering::Relaxed);
            }
            (libc::SOL_PACKET, RESERVE) => {
                if self.state.lock().ring.is_some() {
                    return Err(Errno::EBUSY);
                }
                let reserve = int(value)?;
                if !(0..=ring::MAX_RESERVE).contains(&reserve) {
                    return Err(Errno::EINVAL);
                }
                self.numbers.reserve.store(reserve, Ordering::Relaxed);
            }
            (libc::SOL_PACKET, TIMESTAMP) => self.numbers.timestamp.store(int(value)?, Ordering::Relaxed),
            (libc::SOL_PACKET, COPY_THRESH) => drop(int(value)?),
            (libc::SOL_PACKET, name) => {
                let flag = self.numbers.flag(name).ok_or(Errno::ENOPROTOOPT)?;
                flag.store(int(value)? != 0, Ordering::Relaxed);
            }
            _ => return Err(Errno::ENOPROTOOPT),
        }
        Ok(())
    }

    /// `packet_mc_add`: links bring every frame anyway, so that a membership changes nothing but is known.
    fn change_membership(&self, value: &[u8], join: bool) -> Result<()> {
        let wanted: &[u8; MEMBERSHIP] = value.first_chunk().ok_or(Errno::EINVAL)?;
        let [i0, i1, i2, i3, t0, t1, l0, l1, address @ ..] = *wanted;
        let index = u32::from_ne_bytes([i0, i1, i2, i3]);
        let len = usize::from(u16::from_ne_bytes([l0, l1]));
        let address = address.get(..len).ok_or(Errno::EINVAL)?;
        let one = (index, u16::from_ne_bytes([t0, t1]), address.to_vec());
        if join && self.net.interfaces.lock().by_index(index).is_none() {
            return Err(Errno::ENODEV);
        }
        let mut state = self.state.lock();
        if join {
            if state.memberships.len() >= MAX_MEMBERSHIPS {
                return Err(Errno::ENOBUFS);
            }
            state.memberships.push(one);
            return Ok(());
        }
        let at = state.memberships.iter().position(|known| *known == one);
        if let Some(at) = at {
            state.memberships.remove(at);
        }
        at.map(drop).ok_or(Errno::EADDRNOTAVAIL)
    }

    /// `packet_set_ring`; a ring of no blocks takes it away.
    fn make_ring(&self, caller: &dyn Caller, value: &[u8]) -> Result<()> {
        let wanted: &[u8; RING_REQUEST] = value.first_chunk().ok_or(Errno::EINVAL)?;
        let word = |at: usize| {
            let bytes = wanted.get(at..).and_then(<[u8]>::first_chunk);
            bytes.map_or(0, |b| u64::from(u32::from_ne_bytes(*b)))
        };
        let [block_size, blocks, frame_size, frames] = [word(0), word(4), word(8), word(12)];
        if blocks == 0 {
            if frames != 0 {
                return Err(Errno::EINVAL);
            }
            let old = self.state.lock().ring.take();
            drop(old);
            return Ok(());
        }
        if self.numbers.version.load(Ordering::Relaxed) != 1 {
            return Err(Errno::EINVAL);
        }
        let reserve = u64::try_from(self.numbers.reserve.load(Ordering::Relaxed)).unwrap_or(0);
        let shape = ring::Shape { block_size, blocks, frame_size, frames, reserve };
        let memory = caller.memory_file().ok_or(Errno::EINVAL)?;
        let ring = Ring::new(&memory, shape, self.cooked)?;
        let mut state = self.state.lock();
        if state.ring.is_some() {
            return Err(Errno::EBUSY);
        }
        state.ring = Some(ring);
        let old = core::mem::take(&mut state.inbox);
        state.held = 0;
        drop(state);
        drop(old);
        Ok(())
    }
}

/// What a frame that comes by a link is to its network (`eth_type_trans`).
pub(crate) fn kind_of(to: [u8; 6], own: [u8; 6]) -> u8 {
    match to {
        to if to == own => kind::HOST,
        [0xff, 0xff, 0xff, 0xff, 0xff, 0xff] => kind::BROADCAST,
        [first, ..] if first & 1 != 0 => kind::MULTICAST,
        _ => kind::OTHER,
    }
}
