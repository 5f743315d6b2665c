//! `/proc/net/unix` (`unix_seq_show`), and what `ss` asks for (`net/unix/diag.c`).

use core::fmt::Write;
use std::sync::{Arc, Weak};

use super::Core;
use super::addr::{Address, UnixNamespace};

/// `__SO_ACCEPTCON`: the socket listens.
const LISTENS: u32 = 0x1_0000;
/// `SS_UNCONNECTED`, `SS_CONNECTED`.
const UNCONNECTED: u8 = 1;
const CONNECTED: u8 = 3;

/// One socket, for `NETLINK_SOCK_DIAG`.
#[derive(Debug)]
pub(crate) struct UnixRow {
    pub(crate) inode: u64,
    pub(crate) kind: u8,
    /// A state of TCP.
    pub(crate) state: u8,
    /// As `sun_path` has it.
    pub(crate) name: Vec<u8>,
    /// Inode and device of the file that it is bound to.
    pub(crate) file: Option<(u64, u64)>,
    pub(crate) peer: Option<u64>,
    /// Connections that wait to be accepted, by the inodes of who connects.
    pub(crate) waiting: Vec<u64>,
    /// What waits to be read, and what is under way; for a listener what waits to be accepted, and the limit.
    pub(crate) queues: (u32, u32),
    pub(crate) listens: bool,
    pub(crate) shut: u8,
    pub(crate) uid: u32,
}

fn short(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

impl Core {
    fn row(&self) -> UnixRow {
        use netstack::stream::TcpState;
        let state = self.state.lock();
        let connected = state.connected || state.peer.is_some();
        let listening = state.listening.as_ref();
        let shown = match (listening.is_some(), connected) {
            (true, _) => TcpState::Listen,
            (false, true) => TcpState::Established,
            (false, false) => TcpState::Close,
        };
        let name = state.address.to_bytes();
        UnixRow {
            inode: self.attr.ino,
            kind: u8::try_from(self.kind.raw()).unwrap_or(0),
            state: shown as u8,
            name: name.get(2..).unwrap_or_default().to_vec(),
            file: state.inode.as_ref().and_then(|inode| inode.attr().ok()).map(|attr| (attr.ino, attr.dev)),
            peer: state.peer.as_ref().map(|peer| peer.attr.ino),
            waiting: listening.map_or_else(Vec::new, |listening| {
                let peer = |socket: &super::UnixSocket| {
                    // Two sockets of one rank: whoever waits holds no lock of its own here.
                    socket.0.state.lock().peer.as_ref().map_or(0, |peer| peer.attr.ino)
                };
                listening.queue.iter().map(peer).collect()
            }),
            queues: match listening {
                Some(listening) => (short(listening.queue.len()), short(listening.limit)),
                None => (short(state.unread), short(self.sent.load(core::sync::atomic::Ordering::Relaxed))),
            },
            listens: listening.is_some(),
            shut: u8::from(state.shut_read) | u8::from(state.shut_write) << 1,
            uid: self.attr.uid,
        }
    }
}

impl UnixNamespace {
    /// All sockets.
    pub(crate) fn rows(&self) -> Vec<UnixRow> {
        let cores: Vec<Arc<Core>> = self.sockets.lock().values().filter_map(Weak::upgrade).collect();
        cores.iter().map(|core| core.row()).collect()
    }

    /// The socket with this inode number.
    pub(crate) fn row_of(&self, inode: u64) -> Option<UnixRow> {
        let core = self.sockets.lock().get(&inode).and_then(Weak::upgrade)?;
        Some(core.row())
    }

    /// The text of `/proc/net/unix`.
    pub(crate) fn proc_text(&self) -> String {
        let mut out = String::from("Num       RefCount Protocol Flags    Type St Inode Path\n");
        let cores: Vec<Arc<Core>> = self.sockets.lock().values().filter_map(Weak::upgrade).collect();
        for core in cores {
            let state = core.state.lock();
            let flags = if state.listening.is_some() { LISTENS } else { 0 };
            let connected = state.connected || state.peer.is_some();
            let _ = write!(
                out,
                "{:016x}: {:08X} {:08X} {flags:08X} {:04X} {:02X} {:5}",
                0,
                2 + u32::from(state.peer.is_some()),
                0,
                core.kind.raw(),
                if connected { CONNECTED } else { UNCONNECTED },
                core.attr.ino,
            );
            match &state.address {
                Address::Unnamed => {}
                Address::Path(path) => {
                    let _ = write!(out, " {}", String::from_utf8_lossy(path));
                }
                Address::Abstract(name) => {
                    let shown: Vec<u8> = name.iter().map(|b| if *b == 0 { b'@' } else { *b }).collect();
                    let _ = write!(out, " @{}", String::from_utf8_lossy(&shown));
                }
            }
            out.push('\n');
        }
        out
    }
}
