//! Frames between a link and the stack: an Ethernet frame behind the header by which a Linux packet socket or TAP tells
//! of checksums and segmentation (`struct virtio_net_hdr`, `packet(7)`, `PACKET_VNET_HDR`).

/// Bytes of `struct virtio_net_hdr`, of an Ethernet header, and of both.
pub const OFFLOAD_HEADER: usize = 10;
pub const ETHERNET_HEADER: usize = 14;
pub const HEADROOM: usize = OFFLOAD_HEADER + ETHERNET_HEADER;

/// `ETH_P_IP`, `ETH_P_ARP`, `ETH_P_IPV6`.
pub const TYPE_V4: u16 = 0x0800;
pub const TYPE_ARP: u16 = 0x0806;
pub const TYPE_V6: u16 = 0x86dd;

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`, `VIRTIO_NET_HDR_F_DATA_VALID`.
const NEEDS_CHECKSUM: u8 = 1;
const DATA_VALID: u8 = 2;
/// `VIRTIO_NET_HDR_GSO_TCPV4`, `VIRTIO_NET_HDR_GSO_TCPV6`.
const SEGMENT_V4: u8 = 1;
const SEGMENT_V6: u8 = 4;

/// A hardware address.
pub type Hardware = [u8; 6];

/// All stations.
pub const EVERYBODY: Hardware = [0xff; 6];

/// What is left for the link to do to a frame. Offsets are in bytes from the start of the IP packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offload {
    /// Where the sum starts that goes `offset` bytes behind that start.
    pub checksum: Option<(u16, u16)>,
    /// Payload bytes of each TCP segment that the packet is to be cut into, and the bytes of its headers.
    pub segment: Option<(u16, u16)>,
}

/// An IP packet on its way out, with room for the headers of the link before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    bytes: Vec<u8>,
    pub offload: Offload,
}

impl Frame {
    /// A packet of `len` zero bytes, to be filled.
    pub fn zeroed(len: usize) -> Self {
        Self { bytes: vec![0; HEADROOM + len], offload: Offload::default() }
    }

    /// A packet of these parts.
    pub fn of(parts: &[&[u8]]) -> Self {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        let mut bytes = Vec::with_capacity(HEADROOM + len);
        bytes.resize(HEADROOM, 0);
        for part in parts {
            bytes.extend_from_slice(part);
        }
        Self { bytes, offload: Offload::default() }
    }

    /// The IP packet.
    pub fn packet(&self) -> &[u8] {
        self.bytes.get(HEADROOM..).unwrap_or_default()
    }

    pub fn packet_mut(&mut self) -> &mut [u8] {
        self.bytes.get_mut(HEADROOM..).unwrap_or_default()
    }

    /// Writes the headers of the link; gives what is to be written to it.
    pub fn finish(&mut self, to: Hardware, from: Hardware, kind: u16) -> &[u8] {
        let mut head = [0; HEADROOM];
        let ethernet = u16::try_from(ETHERNET_HEADER).unwrap_or(0);
        if let Some((start, offset)) = self.offload.checksum {
            head[0] = NEEDS_CHECKSUM;
            head[6..8].copy_from_slice(&(start + ethernet).to_le_bytes());
            head[8..10].copy_from_slice(&offset.to_le_bytes());
        }
        if let Some((size, headers)) = self.offload.segment {
            head[1] = if kind == TYPE_V6 { SEGMENT_V6 } else { SEGMENT_V4 };
            head[2..4].copy_from_slice(&(headers + ethernet).to_le_bytes());
            head[4..6].copy_from_slice(&size.to_le_bytes());
        }
        head[10..16].copy_from_slice(&to);
        head[16..22].copy_from_slice(&from);
        head[22..24].copy_from_slice(&kind.to_be_bytes());
        if let Some(room) = self.bytes.get_mut(..HEADROOM) {
            room.copy_from_slice(&head);
        }
        &self.bytes
    }
}

/// A frame as it came from a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrived<'f> {
    pub to: Hardware,
    pub from: Hardware,
    pub kind: u16,
    pub packet: &'f [u8],
    /// The link vouches for the sums of the transport's header.
    pub verified: bool,
}

impl<'f> Arrived<'f> {
    /// Reads the headers of the link; `None` where the frame is too short for them.
    pub fn parse(bytes: &'f [u8]) -> Option<Self> {
        let (head, packet) = bytes.split_at_checked(HEADROOM)?;
        let verified = head.first()? & (NEEDS_CHECKSUM | DATA_VALID) != 0;
        Some(Self {
            to: *head.get(10..)?.first_chunk()?,
            from: *head.get(16..)?.first_chunk()?,
            kind: u16::from_be_bytes(*head.get(22..)?.first_chunk()?),
            packet,
            verified,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_goes_out_and_comes_in() {
        let mut frame = Frame::of(&[b"pack", b"et"]);
        frame.offload = Offload { checksum: Some((20, 16)), segment: Some((1448, 52)) };
        let bytes = frame.finish([1; 6], [2; 6], TYPE_V4).to_vec();
        assert_eq!(bytes[..10], [1, 1, 66, 0, 0xa8, 5, 34, 0, 16, 0]);
        let arrived = Arrived::parse(&bytes).unwrap();
        assert_eq!((arrived.to, arrived.from, arrived.kind), ([1; 6], [2; 6], TYPE_V4));
        assert_eq!((arrived.packet, arrived.verified), (&b"packet"[..], true));
        assert_eq!(Arrived::parse(&bytes[..23]), None);
    }
}
