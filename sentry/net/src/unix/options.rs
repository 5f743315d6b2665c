//! Socket options (`socket(7)`, `net/core/sock.c`).

use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, AtomicUsize, Ordering};
use std::collections::BTreeMap;

use abi::net::SockTimeval;
use sentry_base::{Errno, Mutex, Nanos, Result, lock::rank};
use sentry_vfs::{Caller, cap};
use zerocopy::{FromBytes, IntoBytes};

use super::Core;

/// `net.core.wmem_default`, `wmem_max` and their like for receiving, in bytes.
const BUFFER_DEFAULT: usize = 212_992;
const BUFFER_MAX: usize = 212_992;
/// `SOCK_MIN_SNDBUF` and `SOCK_MIN_RCVBUF`.
const SEND_MIN: usize = 4608;
const RECEIVE_MIN: usize = 2304;

/// A timeout of no limit.
const FOREVER: u64 = u64::MAX;

/// The options of one socket.
#[derive(Debug)]
pub(super) struct Options {
    send_buffer: AtomicUsize,
    receive_buffer: AtomicUsize,
    pass_credentials: AtomicBool,
    receive_timeout: AtomicU64,
    send_timeout: AtomicU64,
    peek_offset: AtomicI32,
    /// Options that are kept and shown but mean nothing here, by name.
    kept: Mutex<BTreeMap<i32, Vec<u8>>, { rank::LEAF }>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            send_buffer: AtomicUsize::new(BUFFER_DEFAULT),
            receive_buffer: AtomicUsize::new(BUFFER_DEFAULT),
            pass_credentials: AtomicBool::new(false),
            receive_timeout: AtomicU64::new(FOREVER),
            send_timeout: AtomicU64::new(FOREVER),
            peek_offset: AtomicI32::new(-1),
            kept: Mutex::new(BTreeMap::new()),
        }
    }
}

impl Options {
    pub(super) fn send_buffer(&self) -> usize {
        self.send_buffer.load(Ordering::Relaxed)
    }

    pub(super) fn passes_credentials(&self) -> bool {
        self.pass_credentials.load(Ordering::Relaxed)
    }

    /// `SO_OOBINLINE`.
    pub(super) fn takes_urgent_inline(&self) -> bool {
        self.kept.lock().get(&libc::SO_OOBINLINE).is_some_and(|value| value.iter().any(|byte| *byte != 0))
    }

    /// Where the next peek begins (`SO_PEEK_OFF`).
    pub(super) fn peek_offset(&self) -> usize {
        usize::try_from(self.peek_offset.load(Ordering::Relaxed)).unwrap_or(0)
    }

    /// Moves that place, where one is set: on by a peek, back by a read.
    pub(super) fn move_peek_offset(&self, n: usize, peek: bool) {
        let now = self.peek_offset.load(Ordering::Relaxed);
        if now >= 0 && n > 0 {
            let n = i32::try_from(n).unwrap_or(i32::MAX);
            let next = if peek { now.saturating_add(n) } else { (now - n).max(0) };
            self.peek_offset.store(next, Ordering::Relaxed);
        }
    }

    pub(super) fn timeout(&self, sending: bool) -> Option<Nanos> {
        let timeout = if sending { &self.send_timeout } else { &self.receive_timeout };
        Some(timeout.load(Ordering::Relaxed)).filter(|ns| *ns != FOREVER)
    }

    /// An accepted socket passes credentials if its listener does.
    pub(super) fn inherit(&self, listener: &Self) {
        self.pass_credentials.store(listener.passes_credentials(), Ordering::Relaxed);
    }
}

fn int(value: &[u8]) -> Result<i32> {
    value.first_chunk().map(|b| i32::from_ne_bytes(*b)).ok_or(Errno::EINVAL)
}

/// Doubled for bookkeeping, as Linux does and shows.
fn buffer(value: &[u8], min: usize, max: usize) -> Result<usize> {
    // A negative size is a large unsigned one.
    let size = usize::try_from(int(value)?).unwrap_or(usize::MAX).min(max);
    Ok((size * 2).max(min))
}

fn timeout(value: &[u8]) -> Result<u64> {
    let (time, _) = SockTimeval::read_from_prefix(value).map_err(|_| Errno::EINVAL)?;
    let usec = u64::try_from(time.usec).ok().filter(|u| *u < 1_000_000).ok_or(Errno::EDOM)?;
    Ok(match u64::try_from(time.sec) {
        // Already over.
        Err(_) => 0,
        Ok(0) if usec == 0 => FOREVER,
        Ok(sec) => sec.saturating_mul(1_000_000_000).saturating_add(usec * 1000),
    })
}

fn timeval(ns: u64) -> Vec<u8> {
    let time = match ns {
        FOREVER => SockTimeval::default(),
        ns => SockTimeval {
            sec: i64::try_from(ns / 1_000_000_000).unwrap_or(i64::MAX),
            usec: i64::try_from(ns % 1_000_000_000 / 1000).unwrap_or(0),
        },
    };
    time.as_bytes().to_vec()
}

fn number(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

impl Core {
    pub(super) fn get_option(&self, level: i32, name: i32) -> Result<Vec<u8>> {
        if level != libc::SOL_SOCKET {
            return Err(Errno::EOPNOTSUPP);
        }
        let options = &self.options;
        let value = match name {
            libc::SO_TYPE => self.kind.raw(),
            libc::SO_DOMAIN => libc::AF_UNIX,
            libc::SO_PROTOCOL => 0,
            libc::SO_ACCEPTCONN => i32::from(self.state.lock().listening.is_some()),
            libc::SO_ERROR => self.state.lock().error.take().map_or(0, sentry_base::Errno::raw),
            libc::SO_SNDBUF => number(options.send_buffer()),
            libc::SO_RCVBUF => number(options.receive_buffer.load(Ordering::Relaxed)),
            libc::SO_PASSCRED => i32::from(options.passes_credentials()),
            libc::SO_RCVTIMEO => return Ok(timeval(options.receive_timeout.load(Ordering::Relaxed))),
            libc::SO_SNDTIMEO => return Ok(timeval(options.send_timeout.load(Ordering::Relaxed))),
            libc::SO_PEERCRED => return Ok(self.peer_credentials().as_bytes().to_vec()),
            libc::SO_SNDLOWAT => 1,
            libc::SO_PEEK_OFF => options.peek_offset.load(Ordering::Relaxed),
            _ => {
                let default = match name {
                    libc::SO_RCVLOWAT => 1_i32.to_ne_bytes().to_vec(),
                    libc::SO_LINGER => vec![0; 8],
                    _ if is_kept(name) => vec![0; 4],
                    _ => return Err(Errno::ENOPROTOOPT),
                };
                return Ok(options.kept.lock().get(&name).cloned().unwrap_or(default));
            }
        };
        Ok(value.to_ne_bytes().to_vec())
    }

    pub(super) fn set_option(&self, caller: &dyn Caller, level: i32, name: i32, value: &[u8]) -> Result<()> {
        if level != libc::SOL_SOCKET {
            return Err(Errno::EOPNOTSUPP);
        }
        let options = &self.options;
        let admin = || {
            if caller.creds().has_cap(cap::NET_ADMIN) { Ok(()) } else { Err(Errno::EPERM) }
        };
        match name {
            libc::SO_SNDBUF => {
                options.send_buffer.store(buffer(value, SEND_MIN, BUFFER_MAX)?, Ordering::Relaxed);
            }
            libc::SO_RCVBUF => {
                options.receive_buffer.store(buffer(value, RECEIVE_MIN, BUFFER_MAX)?, Ordering::Relaxed);
            }
            libc::SO_SNDBUFFORCE => {
                admin()?;
                // Bounded all the same: what waits at a receiver is the Sentry's memory.
                options.send_buffer.store(buffer(value, SEND_MIN, 16 << 20)?, Ordering::Relaxed);
            }
            libc::SO_RCVBUFFORCE => {
                admin()?;
                options.receive_buffer.store(buffer(value, RECEIVE_MIN, 16 << 20)?, Ordering::Relaxed);
            }
            libc::SO_PASSCRED => options.pass_credentials.store(int(value)? != 0, Ordering::Relaxed),
            libc::SO_RCVTIMEO => options.receive_timeout.store(timeout(value)?, Ordering::Relaxed),
            libc::SO_SNDTIMEO => options.send_timeout.store(timeout(value)?, Ordering::Relaxed),
            libc::SO_LINGER => {
                let value = value.get(..8).ok_or(Errno::EINVAL)?.to_vec();
                options.kept.lock().insert(name, value);
            }
            libc::SO_PRIORITY | libc::SO_MARK if !(0..=6).contains(&int(value)?) => admin()?,
            libc::SO_TYPE
            | libc::SO_DOMAIN
            | libc::SO_PROTOCOL
            | libc::SO_ERROR
            | libc::SO_ACCEPTCONN
            | libc::SO_PEERCRED
            | libc::SO_SNDLOWAT => return Err(Errno::ENOPROTOOPT),
            libc::SO_PEEK_OFF => options.peek_offset.store(int(value)?, Ordering::Relaxed),
            _ if is_kept(name) || name == libc::SO_RCVLOWAT => {
                let value = int(value)?.to_ne_bytes().to_vec();
                options.kept.lock().insert(name, value);
            }
            _ => return Err(Errno::ENOPROTOOPT),
        }
        Ok(())
    }
}

/// Options that every socket takes and that change nothing on one of this family.
fn is_kept(name: i32) -> bool {
    matches!(
        name,
        libc::SO_DEBUG
            | libc::SO_REUSEADDR
            | libc::SO_REUSEPORT
            | libc::SO_DONTROUTE
            | libc::SO_BROADCAST
            | libc::SO_KEEPALIVE
            | libc::SO_OOBINLINE
            | libc::SO_NO_CHECK
            | libc::SO_PRIORITY
            | libc::SO_TIMESTAMP
            | libc::SO_TIMESTAMPNS
            | libc::SO_PASSSEC
            | libc::SO_MARK
            | libc::SO_RXQ_OVFL
            | libc::SO_BUSY_POLL
            | libc::SO_INCOMING_CPU
    )
}
