//! Which program begins a connection: what a sandbox tells the process that ends its connections, on their common link and
//! before the connection's first packet, so that a denial can be told with it.
//!
//! It is for people to read and decides nothing: a sandbox that was taken over may say what it likes.

use crate::frame::Frame;

/// The type of such frames: one of those that are left for private use (`ETH_P_802_EX1`).
pub const TYPE_ASKER: u16 = 0x88b5;

/// Bytes before the name.
const HEAD: usize = 8;
/// Bytes of the longest name (`TASK_COMM_LEN`, without the zero).
const MAX_NAME: usize = 15;

/// Who asks for a connection from a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asker {
    /// `IPPROTO_*`.
    pub protocol: u8,
    /// The sandbox's own port.
    pub port: u16,
    /// The process, as it sees itself.
    pub pid: u32,
    /// The name of the task (`PR_SET_NAME`).
    pub name: Vec<u8>,
}

impl Asker {
    pub fn frame(&self) -> Frame {
        let name = self.name.get(..MAX_NAME).unwrap_or(&self.name);
        Frame::of(&[&[self.protocol, 0], &self.port.to_be_bytes(), &self.pid.to_be_bytes(), name])
    }

    /// Reads what a frame of that type carries.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (head, name) = bytes.split_first_chunk::<HEAD>()?;
        Some(Self {
            protocol: head[0],
            port: u16::from_be_bytes([head[2], head[3]]),
            pid: u32::from_be_bytes([head[4], head[5], head[6], head[7]]),
            name: name.get(..MAX_NAME).unwrap_or(name).to_vec(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_asker_arrives_as_it_was_told() {
        let mut asker = Asker { protocol: 17, port: 40_000, pid: 12, name: b"curl".to_vec() };
        assert_eq!(Asker::parse(asker.frame().packet()), Some(asker.clone()));
        asker.name = vec![b'x'; 40];
        assert_eq!(Asker::parse(asker.frame().packet()).map(|a| a.name.len()), Some(MAX_NAME));
        assert_eq!(Asker::parse(&[6; HEAD - 1]), None);
    }
}
