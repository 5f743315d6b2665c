//! Netlink messages as bytes: headers, attributes, and the parser of requests (`netlink(7)`, `lib/nlattr.c`).

use abi::net::NlMsgHdr;
use zerocopy::{FromBytes, IntoBytes};

pub(super) const NLMSG_ERROR: u16 = 2;
pub(super) const NLMSG_DONE: u16 = 3;
pub(super) const NLM_F_MULTI: u16 = 2;
pub(super) const NLM_F_ACK: u16 = 4;
pub(super) const NLM_F_CAPPED: u16 = 0x100;
pub(super) const NLM_F_ACK_TLVS: u16 = 0x200;
pub(super) const NLM_F_EXCL: u16 = 0x200;
pub(super) const NLM_F_CREATE: u16 = 0x400;
/// `NLM_F_ROOT` and `NLM_F_MATCH`.
pub(super) const NLM_F_DUMP: u16 = 0x300;

const HEADER: usize = size_of::<NlMsgHdr>();

fn align(n: usize) -> usize {
    n.next_multiple_of(4)
}

/// A message under construction.
#[derive(Debug)]
pub(super) struct Message {
    header: NlMsgHdr,
    bytes: Vec<u8>,
}

impl Message {
    pub(super) fn new(kind: u16, flags: u16, to: &NlMsgHdr, pid: u32) -> Self {
        let header = NlMsgHdr { len: 0, kind, flags, seq: to.seq, pid };
        Self { header, bytes: vec![0; HEADER] }
    }

    /// Appends the fixed part of the message.
    pub(super) fn fixed(&mut self, part: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(part);
        self.bytes.resize(align(self.bytes.len()), 0);
        self
    }

    pub(super) fn attr(&mut self, kind: u16, data: &[u8]) -> &mut Self {
        let len = u16::try_from(data.len() + 4).unwrap_or(u16::MAX);
        self.bytes.extend_from_slice(&len.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.fixed(data)
    }

    pub(super) fn u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attr(kind, &value.to_ne_bytes())
    }

    pub(super) fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attr(kind, &bytes)
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        self.header.len = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        if let Some(head) = self.bytes.get_mut(..HEADER) {
            head.copy_from_slice(self.header.as_bytes());
        }
        self.bytes
    }
}

/// The requests of one datagram: header and what follows it. Ends at the first that is malformed, as the kernel does.
pub(super) fn requests(mut bytes: &[u8]) -> Vec<(NlMsgHdr, &[u8])> {
    let mut out = Vec::new();
    while let Ok((header, _)) = NlMsgHdr::read_from_prefix(bytes) {
        let len = usize::try_from(header.len).unwrap_or(usize::MAX);
        let Some(body) = bytes.get(HEADER..len) else { break };
        out.push((header, body));
        bytes = bytes.get(align(len)..).unwrap_or_default();
    }
    out
}

/// The attributes after a fixed part of `skip` bytes.
pub(super) fn attributes(body: &[u8], skip: usize) -> Vec<(u16, &[u8])> {
    let mut rest = body.get(align(skip)..).unwrap_or_default();
    let mut out = Vec::new();
    while let [l0, l1, k0, k1, ..] = *rest {
        let len = usize::from(u16::from_ne_bytes([l0, l1]));
        let Some(data) = rest.get(4..len) else { break };
        // The top two bits say how the data is laid out.
        out.push((u16::from_ne_bytes([k0, k1]) & 0x3fff, data));
        rest = rest.get(align(len)..).unwrap_or_default();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_built_and_taken_apart() {
        let to = NlMsgHdr { seq: 7, ..NlMsgHdr::default() };
        let mut message = Message::new(16, NLM_F_MULTI, &to, 9);
        message.fixed(&[1, 2, 3, 4]).text(3, "lo").u32(4, 65_536);
        let bytes = message.finish();
        let parsed = requests(&bytes);
        let [(header, body)] = parsed.as_slice() else { panic!("{parsed:?}") };
        assert_eq!((header.len, header.kind, header.seq, header.pid), (36, 16, 7, 9));
        assert_eq!(attributes(body, 4), [(3, &b"lo\0"[..]), (4, &65_536_u32.to_ne_bytes()[..])]);
        assert!(requests(&bytes[..20]).is_empty());
        assert!(attributes(&[0, 0, 0, 0, 3, 0, 1, 0], 4).is_empty());
    }
}
