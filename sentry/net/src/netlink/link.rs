//! Changes of interfaces by route messages, and why requests are refused (`do_setlink` and `rtnl_newlink` of
//! net/core/rtnetlink.c).

use abi::net::IfInfoMsg;
use netstack::iface::{Interface, Interfaces, MULTICAST, UP};
use sentry_base::Errno;
use zerocopy::FromBytes;

use super::route::{Answer, GROUP_LINK, RTM_NEWLINK, Reply};
use super::wire::{NLM_F_CREATE, NLM_F_EXCL, attributes};
use crate::Inet;

/// `IFLA_*` (`linux/if_link.h`).
const ADDRESS: u16 = 1;
const IFNAME: u16 = 3;
const MTU: u16 = 4;
const TXQLEN: u16 = 13;
const LINKMODE: u16 = 17;
const EXT_MASK: u16 = 29;
const GROUP: u16 = 27;
const ALT_IFNAME: u16 = 53;

/// `IFF_NOARP`, `IFF_PROMISC`, `IFF_ALLMULTI`.
const NOARP: u32 = 0x80;
const PROMISC: u32 = 0x100;
const ALLMULTI: u32 = 0x200;

/// The least MTU (`ETH_MIN_MTU`).
const MIN_MTU: u32 = 68;

/// Why a request is refused, and in the kernel's words where it has some (`struct netlink_ext_ack`).
#[derive(Debug, Clone, Copy)]
pub(super) struct Refusal {
    pub(super) errno: Errno,
    pub(super) words: Option<&'static str>,
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Self {
        Self { errno, words: None }
    }
}

/// What this kernel has not, as one says it that was built without.
pub(super) fn not_here(words: &'static str) -> Refusal {
    Refusal { errno: Errno::EOPNOTSUPP, words: Some(words) }
}

/// The interface that a link request names by number or name.
pub(super) fn wanted_link<'i>(interfaces: &'i Interfaces, body: &[u8]) -> Result<&'i Interface, Errno> {
    let (info, _) = IfInfoMsg::read_from_prefix(body).map_err(|_| Errno::EINVAL)?;
    if info.index != 0 {
        let index = u32::try_from(info.index).map_err(|_| Errno::ENODEV)?;
        return interfaces.by_index(index).ok_or(Errno::ENODEV);
    }
    let attributes = attributes(body, size_of::<IfInfoMsg>());
    let name =
        attributes.iter().find(|(kind, _)| [IFNAME, ALT_IFNAME].contains(kind)).ok_or(Errno::EINVAL)?.1;
    interfaces.by_name(text(name)).ok_or(Errno::ENODEV)
}

fn text(bytes: &[u8]) -> &[u8] {
    bytes.split(|b| *b == 0).next().unwrap_or_default()
}

/// Changes an interface. Others cannot be made.
pub(super) fn set(net: &Inet, body: &[u8], reply: &Reply<'_>, answer: &mut Answer) -> Result<(), Refusal> {
    let (info, _) = IfInfoMsg::read_from_prefix(body).map_err(|_| Errno::EINVAL)?;
    let mut interfaces = net.interfaces.lock();
    let new = reply.header.kind == RTM_NEWLINK;
    let index = match wanted_link(&interfaces, body) {
        Ok(_) if new && reply.header.flags & NLM_F_EXCL != 0 => return Err(Errno::EEXIST.into()),
        Ok(found) => found.index,
        Err(_) if new && reply.header.flags & NLM_F_CREATE != 0 => {
            return Err(not_here("Unknown device type"));
        }
        Err(_) if new => return Err(Errno::ENODEV.into()),
        Err(errno) => return Err(errno.into()),
    };
    let attributes = attributes(body, size_of::<IfInfoMsg>());
    let by_number = info.index != 0;
    let mut changed = interfaces.by_index(index).ok_or(Errno::ENODEV)?.clone();
    for (kind, data) in attributes {
        let number = data.first_chunk().map(|b| u32::from_ne_bytes(*b));
        match (kind, number) {
            (MTU, Some(mtu)) if mtu < MIN_MTU && !changed.is_loopback() => {
                return Err(Refusal { errno: Errno::EINVAL, words: Some("mtu less than device minimum") });
            }
            (MTU, Some(mtu)) => changed.mtu = mtu,
            (TXQLEN, Some(len)) => changed.tx_queue_len = len,
            (IFNAME, _) if by_number => rename(&interfaces, &mut changed, text(data))?,
            (ADDRESS, _) if data == changed.hardware.as_slice() => {}
            // Its name, or what changes nothing here.
            (IFNAME | ALT_IFNAME | EXT_MASK | LINKMODE, _) | (GROUP, Some(0)) => {}
            _ => return Err(not_here("Interfaces of a sandbox have no such setting")),
        }
    }
    let change = if info.change == 0 { info.flags } else { info.change };
    let kept = change & (NOARP | PROMISC | ALLMULTI | MULTICAST);
    changed.flags = changed.flags & !kept | info.flags & kept;
    if change & UP != 0 {
        changed.set_up(info.flags & UP != 0);
    }
    interfaces.add(changed);
    let interface = interfaces.by_index(index).ok_or(Errno::ENODEV)?;
    let note = Reply { flags: 0, ..*reply }.link(net, interface);
    answer.told.push((GROUP_LINK, note));
    Ok(())
}

/// `dev_change_name`, `dev_valid_name`.
fn rename(interfaces: &Interfaces, interface: &mut Interface, name: &[u8]) -> Result<(), Errno> {
    let odd = |b: &u8| *b == b'/' || *b == b':' || b.is_ascii_whitespace();
    if name.is_empty() || name.len() > 15 || name == b"." || name == b".." || name.iter().any(odd) {
        return Err(Errno::EINVAL);
    }
    if name == interface.name.as_bytes() {
        return Ok(());
    }
    if interfaces.by_name(name).is_some() {
        return Err(Errno::EEXIST);
    }
    interface.name = String::from_utf8(name.to_vec()).map_err(|_| Errno::EINVAL)?;
    Ok(())
}
