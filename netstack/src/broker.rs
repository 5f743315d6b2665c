//! Messages between a sandbox and the broker that makes host sockets for it: one packet each way.
//!
//! A request is about the socket whose descriptor comes along with it; [`Op::Socket`] comes without, and its answer brings
//! one. Addresses, and values of options, are bytes as the host's kernel has them.

/// Bytes that follow a head.
pub const MAX_DATA: usize = 4096;

/// Bytes of the longest message.
pub const MAX_MESSAGE: usize = REQUEST_HEAD + MAX_DATA;

const REQUEST_HEAD: usize = 16;
const REPLY_HEAD: usize = 8;

/// What is asked for. The arguments are ints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Domain, type, protocol.
    Socket = 1,
    /// Data: the address.
    Connect = 2,
    /// Data: the address.
    Bind = 3,
    /// Backlog.
    Listen = 4,
    /// Level, name; data: the value.
    SetOption = 5,
    /// Level, name, the most bytes.
    GetOption = 6,
    LocalAddress = 7,
    PeerAddress = 8,
    /// `SIOCINQ` or one of its kin.
    Queued = 9,
}

impl Op {
    const ALL: [Self; 9] = [
        Self::Socket,
        Self::Connect,
        Self::Bind,
        Self::Listen,
        Self::SetOption,
        Self::GetOption,
        Self::LocalAddress,
        Self::PeerAddress,
        Self::Queued,
    ];
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request<'a> {
    pub op: Op,
    pub arguments: [i32; 3],
    pub data: &'a [u8],
}

fn int(bytes: &[u8], at: usize) -> Option<i32> {
    bytes.get(at..)?.first_chunk().map(|b| i32::from_ne_bytes(*b))
}

impl<'a> Request<'a> {
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(REQUEST_HEAD + self.data.len());
        out.extend_from_slice(&(self.op as i32).to_ne_bytes());
        for argument in self.arguments {
            out.extend_from_slice(&argument.to_ne_bytes());
        }
        out.extend_from_slice(self.data);
        out
    }

    /// `None` for what is no request.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (head, data) = bytes.split_at_checked(REQUEST_HEAD)?;
        let number = int(head, 0)?;
        let op = Op::ALL.into_iter().find(|op| *op as i32 == number)?;
        let arguments = [int(head, 4)?, int(head, 8)?, int(head, 12)?];
        (data.len() <= MAX_DATA).then_some(Self { op, arguments, data })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reply<'a> {
    /// 0 where it was done.
    pub errno: i32,
    /// What was asked for, where that is an int. Of [`Op::Socket`]: 1 where the descriptor is that of a [relay](Datagram).
    pub value: i32,
    pub data: &'a [u8],
}

impl<'a> Reply<'a> {
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(REPLY_HEAD + self.data.len());
        out.extend_from_slice(&self.errno.to_ne_bytes());
        out.extend_from_slice(&self.value.to_ne_bytes());
        out.extend_from_slice(self.data);
        out
    }

    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (head, data) = bytes.split_at_checked(REPLY_HEAD)?;
        Some(Self { errno: int(head, 0)?, value: int(head, 4)?, data })
    }
}

/// A datagram as a relay carries it: where it goes to or comes from (empty: the connected peer), and its bytes.
///
/// Under a policy a sandbox does not hold its datagram sockets, for whoever holds one may send anywhere by it. It holds one
/// end of a packet socket pair; the broker looks at each datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Datagram<'a> {
    /// A `struct sockaddr`.
    pub address: &'a [u8],
    pub data: &'a [u8],
}

/// The packet by which a relay tells of an error: no address is as long as its first byte says.
pub fn error_packet(errno: i32) -> [u8; 5] {
    let [a, b, c, d] = errno.to_ne_bytes();
    [u8::MAX, a, b, c, d]
}

/// The errno, where a packet is one of those.
pub fn error_of(packet: &[u8]) -> Option<i32> {
    let (mark, errno) = packet.split_first()?;
    let errno: [u8; 4] = errno.try_into().ok()?;
    (*mark == u8::MAX).then(|| i32::from_ne_bytes(errno))
}

/// Bytes of the longest datagram with its address.
pub const MAX_DATAGRAM: usize = 65_536 + 256;

impl<'a> Datagram<'a> {
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(1 + self.address.len() + self.data.len());
        // Addresses of the Internet families are shorter than a byte can say.
        out.push(u8::try_from(self.address.len()).unwrap_or(0));
        out.extend_from_slice(self.address);
        out.extend_from_slice(self.data);
        out
    }

    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (len, rest) = bytes.split_first()?;
        let (address, data) = rest.split_at_checked(usize::from(*len))?;
        Some(Self { address, data })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_go_there_and_back() {
        for op in Op::ALL {
            let request = Request { op, arguments: [2, -1, i32::MAX], data: b"address" };
            assert_eq!(Request::parse(&request.to_bytes()), Some(request));
        }
        let reply = Reply { errno: 111, value: -7, data: &[] };
        assert_eq!(Reply::parse(&reply.to_bytes()), Some(reply));
        let datagram = Datagram { address: &[2; 16], data: &[] };
        assert_eq!(Datagram::parse(&datagram.to_bytes()), Some(datagram));
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let whole = Request { op: Op::Socket, arguments: [0; 3], data: &[0; 4] }.to_bytes();
        assert_eq!(Request::parse(&whole[..15]), None);
        assert_eq!(Request::parse(&[0xff; 16]), None);
        assert_eq!(Request::parse(&[vec![1, 0, 0, 0], vec![0; 12 + MAX_DATA + 1]].concat()), None);
        assert_eq!(Reply::parse(&[0; 7]), None);
        assert_eq!(Datagram::parse(&[]), None);
        assert_eq!(Datagram::parse(&[4, 1, 2, 3]), None);
        assert_eq!(error_of(&error_packet(113)), Some(113));
        assert_eq!((Datagram::parse(&error_packet(113)), error_of(&[0; 5])), (None, None));
    }
}
