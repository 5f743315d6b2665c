//! `/proc/net/unix` (`unix_seq_show`).

use core::fmt::Write;
use std::sync::{Arc, Weak};

use super::Core;
use super::addr::{Address, UnixNamespace};

/// `__SO_ACCEPTCON`: the socket listens.
const LISTENS: u32 = 0x1_0000;
/// `SS_UNCONNECTED`, `SS_CONNECTED`.
const UNCONNECTED: u8 = 1;
const CONNECTED: u8 = 3;

impl UnixNamespace {
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
