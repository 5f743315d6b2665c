//! Frames sent and received (`packet_snd`, `packet_recvmsg`).

use netstack::asker::TYPE_ASKER;
use netstack::frame::{ETHERNET_HEADER, OFFLOAD_HEADER, TYPE_V4, TYPE_V6};
use netstack::packet::{ICMPV6, Packet, UDP};
use sentry_base::{Errno, Result};
use sentry_vfs::IoStart;

use super::{ADDRESS, PacketCore, Sight, kind, options};
use crate::inet::raw::Message;
use crate::{Inet, RecvMsg, SendMsg};

/// Bytes of a tag of a virtual network, by which a frame may be longer.
const VLAN_TAG: usize = 4;
/// `struct tpacket_auxdata`, `TP_STATUS_USER`, `TP_STATUS_CSUMNOTREADY`.
const AUXDATA: i32 = 8;
const STATUS_USER: u32 = 1;
const STATUS_UNSUMMED: u32 = 8;
/// What a receive may ask for.
const RECEIVE_FLAGS: i32 =
    libc::MSG_PEEK | libc::MSG_DONTWAIT | libc::MSG_TRUNC | libc::MSG_ERRQUEUE | libc::MSG_CMSG_CLOEXEC;

/// Where a frame is to go: interface, protocol, hardware address.
type Target = (u32, u16, [u8; 6]);

impl PacketCore {
    fn target(&self, to: Option<&[u8]>) -> Result<Target> {
        let Some(to) = to.filter(|to| !to.is_empty()) else {
            let state = self.state.lock();
            return Ok((state.interface, state.protocol, [0; 6]));
        };
        let at: &[u8; ADDRESS] = to.first_chunk().ok_or(Errno::EINVAL)?;
        let [_, _, p0, p1, i0, i1, i2, i3, _, _, _, len, a0, a1, a2, a3, a4, a5, _, _] = *at;
        if to.len() < usize::from(len) + 12 {
            return Err(Errno::EINVAL);
        }
        let interface = u32::from_ne_bytes([i0, i1, i2, i3]);
        Ok((interface, u16::from_be_bytes([p0, p1]), [a0, a1, a2, a3, a4, a5]))
    }

    pub(super) fn send(&self, msg: &mut SendMsg<'_, '_>) -> Result<usize> {
        let (index, protocol, station) = self.target(msg.to)?;
        let len = msg.data.remaining();
        let found = {
            let interfaces = self.net.interfaces.lock();
            let found = interfaces.by_index(index).ok_or(Errno::ENXIO)?;
            (found.is_up(), found.mtu as usize, found.kind, found.hardware, found.is_loopback())
        };
        let (up, mtu, hardware, own, loopback) = found;
        if !up {
            return Err(Errno::ENETDOWN);
        }
        let front = if self.cooked { 0 } else { ETHERNET_HEADER };
        if len > mtu + front + if self.cooked { 0 } else { VLAN_TAG } {
            return Err(Errno::EMSGSIZE);
        }
        if len < front {
            return Err(Errno::EINVAL);
        }
        // Behind the header by which links are told what is left to do: nothing.
        let mut bytes = vec![0; OFFLOAD_HEADER];
        if self.cooked {
            bytes.extend_from_slice(&station);
            bytes.extend_from_slice(&own);
            bytes.extend_from_slice(&protocol.to_be_bytes());
        }
        let at = bytes.len();
        bytes.resize(at + len, 0);
        let copied = msg.data.read(bytes.get_mut(at..).unwrap_or_default())?;
        if copied < len {
            return Err(Errno::EFAULT);
        }
        let frame = bytes.get(OFFLOAD_HEADER..).unwrap_or_default();
        let sight = Sight { interface: index, hardware, kind: kind::OUTGOING, frame, unsummed: false };
        self.net.taps.show_but(&sight, Some(self));
        if loopback {
            self.net.loop_back(frame);
        } else if let Some(outside) = self.net.outside.get()
            && sight.protocol() != TYPE_ASKER
        {
            outside.send_raw(index, &bytes);
        }
        Ok(len)
    }

    pub(super) fn try_recv(&self, msg: &mut RecvMsg<'_, '_>) -> Result<IoStart<usize>> {
        if msg.flags & !RECEIVE_FLAGS != 0 {
            return Err(Errno::EINVAL);
        }
        if msg.flags & libc::MSG_ERRQUEUE != 0 {
            return Err(Errno::EAGAIN);
        }
        let peek = msg.flags & libc::MSG_PEEK != 0;
        let held = {
            let mut state = self.state.lock();
            let next = if peek { state.inbox.front().cloned() } else { state.inbox.pop_front() };
            let Some(held) = next else { return Ok(IoStart::WouldBlock) };
            if !peek {
                state.held = state.held.saturating_sub(netstack::datagram::weight(held.data.len()));
            }
            state.read_stamp = Some(held.stamp);
            held
        };
        let (len, room) = (held.data.len(), msg.data.remaining());
        let copied = if len == 0 || room == 0 { 0 } else { msg.data.write(&held.data)? };
        if len > room {
            msg.out_flags |= libc::MSG_TRUNC;
        }
        options::describe_time(&self.options, held.stamp, msg);
        if self.numbers.auxdata() {
            let word = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).to_ne_bytes();
            let status = STATUS_USER | if held.unsummed { STATUS_UNSUMMED } else { 0 };
            let mut data = [status.to_ne_bytes(), word(held.len), word(len)].concat();
            // Where its headers are: from the start; and no tag.
            data.extend_from_slice(&0_u16.to_ne_bytes());
            data.extend_from_slice(&u16::try_from(held.network).unwrap_or(0).to_ne_bytes());
            data.extend_from_slice(&[0; 4]);
            msg.describe(libc::SOL_PACKET, AUXDATA, &data);
        }
        msg.from = Some(held.from);
        Ok(IoStart::Done(if msg.flags & libc::MSG_TRUNC != 0 { len } else { copied }))
    }
}

/// `ARPHRD_LOOPBACK`.
const LOOPBACK: u16 = 772;

impl Inet {
    /// Shows a packet of the loopback to packet sockets, as it goes and as it comes.
    pub(crate) fn show_loopback(&self, packet: &[u8]) {
        if !self.taps.any() {
            return;
        }
        let protocol = if packet.first().is_some_and(|b| b >> 4 == 6) { TYPE_V6 } else { TYPE_V4 };
        let mut frame = vec![0; ETHERNET_HEADER - 2];
        frame.extend_from_slice(&protocol.to_be_bytes());
        frame.extend_from_slice(packet);
        for kind in [kind::OUTGOING, kind::HOST] {
            let sight = Sight { interface: 1, hardware: LOOPBACK, kind, frame: &frame, unsummed: false };
            self.taps.show(&sight);
        }
    }

    /// Takes in a frame that a packet socket has sent by the loopback (`loopback_xmit`).
    fn loop_back(&self, frame: &[u8]) {
        let kind = match frame.first_chunk::<6>() {
            Some([0, 0, 0, 0, 0, 0]) => kind::HOST,
            Some([0xff, 0xff, 0xff, 0xff, 0xff, 0xff]) => kind::BROADCAST,
            Some([first, ..]) if first & 1 != 0 => kind::MULTICAST,
            _ => kind::OTHER,
        };
        let sight = Sight { interface: 1, hardware: LOOPBACK, kind, frame, unsummed: false };
        self.taps.show(&sight);
        self.stats.packet(frame.len());
        // Addresses of this host are martians where the way of a packet has not been chosen by this host's own output, and
        // IPv4's input looks at them on the loopback too (`ip_route_input_slow`).
        if kind == kind::OTHER || sight.protocol() != TYPE_V6 {
            return;
        }
        let bytes = frame.get(ETHERNET_HEADER..).unwrap_or_default();
        let Some(packet) = Packet::parse(bytes).filter(|p| p.fragment.is_none() && p.is_intact()) else {
            return;
        };
        let ours = {
            let interfaces = self.interfaces.lock();
            let own = |ip| interfaces.local(ip).is_some();
            (packet.to.is_multicast() || own(packet.to)) && own(packet.from)
        };
        if !ours {
            return;
        }
        match packet.protocol {
            UDP => drop(self.receive_udp(&packet, 1)),
            ICMPV6 => self.deliver_raw(&Message::of(&packet, 1)),
            _ => {}
        }
    }
}
