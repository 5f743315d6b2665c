//! ICMP and ICMPv6 messages that the loopback answers (RFC 792, RFC 4443).

use std::net::{Ipv4Addr, Ipv6Addr};

pub const ECHO_REQUEST: u8 = 8;
pub const ECHO_REPLY: u8 = 0;
pub const ECHO_REQUEST_V6: u8 = 128;
pub const ECHO_REPLY_V6: u8 = 129;
/// Type, code, checksum, identifier and sequence number.
pub const HEADER: usize = 8;

/// The sum of RFC 1071 over `parts`, each of which but the last must be of even length.
pub fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u64;
    for part in parts {
        let mut words = part.chunks_exact(2);
        for word in &mut words {
            if let [high, low] = word {
                sum += u64::from(u16::from_be_bytes([*high, *low]));
            }
        }
        if let [last] = words.remainder() {
            sum += u64::from(*last) << 8;
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).map_or(0, |sum| !sum)
}

fn store_checksum(message: &mut [u8], parts_before: &[&[u8]]) {
    if let Some(field) = message.get_mut(2..4) {
        field.fill(0);
    }
    let mut parts = parts_before.to_vec();
    parts.push(message);
    let sum = checksum(&parts);
    if let Some(field) = message.get_mut(2..4) {
        field.copy_from_slice(&sum.to_be_bytes());
    }
}

/// Fills in the checksum of an ICMP message.
pub fn seal_v4(message: &mut [u8]) {
    store_checksum(message, &[]);
}

/// Fills in the checksum of an ICMPv6 message, which covers the addresses.
pub fn seal_v6(message: &mut [u8], from: Ipv6Addr, to: Ipv6Addr) {
    let len = u32::try_from(message.len()).unwrap_or(0).to_be_bytes();
    store_checksum(message, &[&from.octets(), &to.octets(), &len, &[0, 0, 0, 58]]);
}

/// Sets the identifier, which names a ping socket as a port names others.
pub fn set_identifier(message: &mut [u8], id: u16) {
    if let Some(field) = message.get_mut(4..6) {
        field.copy_from_slice(&id.to_be_bytes());
    }
}

pub fn identifier(message: &[u8]) -> Option<u16> {
    message.get(4..6)?.first_chunk().map(|b| u16::from_be_bytes(*b))
}

/// The reply to an echo request; `None` for other messages.
pub fn reply_v4(message: &[u8]) -> Option<Vec<u8>> {
    let mut reply = message.to_vec();
    if reply.len() < HEADER || message.first() != Some(&ECHO_REQUEST) || message.get(1) != Some(&0) {
        return None;
    }
    *reply.first_mut()? = ECHO_REPLY;
    seal_v4(&mut reply);
    Some(reply)
}

/// The same over IPv6, from `from` to `to` (the addresses of the reply).
pub fn reply_v6(message: &[u8], from: Ipv6Addr, to: Ipv6Addr) -> Option<Vec<u8>> {
    let mut reply = message.to_vec();
    if reply.len() < HEADER || message.first() != Some(&ECHO_REQUEST_V6) || message.get(1) != Some(&0) {
        return None;
    }
    *reply.first_mut()? = ECHO_REPLY_V6;
    seal_v6(&mut reply, from, to);
    Some(reply)
}

/// An IPv4 header without options, for raw sockets, which see it.
pub fn ipv4_header(
    from: Ipv4Addr,
    to: Ipv4Addr,
    protocol: u8,
    ttl: u8,
    tos: u8,
    id: u16,
    payload: usize,
) -> [u8; 20] {
    let total = u16::try_from(payload + 20).unwrap_or(u16::MAX).to_be_bytes();
    let [id0, id1] = id.to_be_bytes();
    let (f, t) = (from.octets(), to.octets());
    let mut header = [
        0x45, tos, total[0], total[1], id0, id1, 0, 0, ttl, protocol, 0, 0, f[0], f[1], f[2], f[3], t[0],
        t[1], t[2], t[3],
    ];
    let sum = checksum(&[&header]).to_be_bytes();
    header[10] = sum[0];
    header[11] = sum[1];
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_and_replies() {
        // The example of RFC 1071.
        assert_eq!(checksum(&[&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]]), !0xddf2);
        let mut ping = vec![ECHO_REQUEST, 0, 0, 0, 1, 2, 0, 1, b'x'];
        seal_v4(&mut ping);
        assert_eq!(checksum(&[&ping]), 0);
        let reply = reply_v4(&ping).unwrap();
        assert_eq!((reply[0], checksum(&[&reply]), identifier(&reply)), (ECHO_REPLY, 0, Some(0x102)));
        assert_eq!(reply_v4(&reply), None);
        let header = ipv4_header(Ipv4Addr::LOCALHOST, Ipv4Addr::LOCALHOST, 1, 64, 0, 7, 9);
        assert_eq!(checksum(&[&header]), 0);
    }
}
