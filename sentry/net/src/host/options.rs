//! Options of a host socket: a few are kept here, the rest is the host's to know.

use abi::net::Linger;
use sentry_base::{Errno, Result};
use sentry_vfs::{Caller, cap};
use zerocopy::FromBytes;

use super::HostSocket;
use crate::inet::options::SO_BINDTOIFINDEX;

impl HostSocket {
    pub(super) fn option(&self, level: i32, name: i32) -> Result<Vec<u8>> {
        let number = match (level, name) {
            (libc::SOL_SOCKET, libc::SO_TYPE) => self.kind,
            (libc::SOL_SOCKET, libc::SO_DOMAIN) => self.domain.raw(),
            (libc::SOL_SOCKET, libc::SO_PROTOCOL) => self.protocol,
            (libc::SOL_SOCKET, libc::SO_RCVTIMEO | libc::SO_SNDTIMEO | libc::SO_LINGER) => {
                return self.options.get(level, name);
            }
            (libc::SOL_SOCKET, libc::SO_PEERNAME) => return self.end.address(true),
            // Shown where a program asks whether there is one.
            (libc::IPPROTO_IP, libc::IP_OPTIONS) | (libc::IPPROTO_TCP, libc::TCP_ULP) => {
                return Ok(Vec::new());
            }
            // What the host does not give is kept here, as far as it is known.
            _ => match self.end.option(level, name) {
                Err(Errno::ENOPROTOOPT) => return self.options.get(level, name),
                answered => return answered,
            },
        };
        Ok(number.to_ne_bytes().to_vec())
    }

    pub(super) fn put_option(&self, caller: &dyn Caller, level: i32, name: i32, value: &[u8]) -> Result<()> {
        match (level, name) {
            // Waits are the Sentry's.
            (libc::SOL_SOCKET, libc::SO_RCVTIMEO | libc::SO_SNDTIMEO) => {
                self.options.set(caller, level, name, value)
            }
            (libc::SOL_SOCKET, libc::SO_LINGER) => {
                self.options.set(caller, level, name, value)?;
                let (linger, _) = Linger::read_from_prefix(value).map_err(|_| Errno::EINVAL)?;
                // A close that waits would keep a worker. One that resets does not.
                let resets = linger.onoff != 0 && linger.linger == 0;
                let off = [0; 8];
                self.end.set_option(level, name, if resets { value } else { &off })
            }
            // Who may is the Sentry's to say: the broker's rights are those of the whole container.
            (libc::SOL_SOCKET, libc::SO_PRIORITY) => {
                self.options.set(caller, level, name, value)?;
                self.end.set_option(level, name, value)
            }
            (libc::SOL_SOCKET, libc::SO_SNDBUFFORCE | libc::SO_RCVBUFFORCE) => {
                self.options.set(caller, level, name, value)?;
                let plain = if name == libc::SO_SNDBUFFORCE { libc::SO_SNDBUF } else { libc::SO_RCVBUF };
                self.end.set_option(level, plain, value)
            }
            (libc::SOL_SOCKET, libc::SO_BINDTODEVICE | SO_BINDTOIFINDEX)
                if !self.net.allows(caller, cap::NET_RAW)
                    && self.end.option(level, SO_BINDTOIFINDEX)?.iter().any(|byte| *byte != 0) =>
            {
                Err(Errno::EPERM)
            }
            (libc::SOL_SOCKET, libc::SO_ATTACH_FILTER | libc::SO_ATTACH_BPF) => Err(Errno::EINVAL),
            (libc::SOL_SOCKET, libc::SO_DETACH_FILTER) => Err(Errno::ENOENT),
            (libc::IPPROTO_IP, libc::IP_OPTIONS) if value.is_empty() => Ok(()),
            (libc::IPPROTO_TCP, libc::TCP_ULP) => Err(Errno::ENOENT),
            _ => match self.end.set_option(level, name, value) {
                Err(Errno::ENOPROTOOPT) => self.options.set(caller, level, name, value),
                answered => answered,
            },
        }
    }
}
