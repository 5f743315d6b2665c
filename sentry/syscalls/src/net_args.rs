//! The arguments of socket calls: addresses, message headers, control messages, options.

use std::sync::Arc;

use abi::net::{CmsgHdr, MsgHdr, Ucred};
use sentry_base::{Errno, Result};
use sentry_kernel::{Current, Task};
use sentry_memory::UserMemory;
use sentry_net::{ControlIn, ControlMessage, check_credentials};
use sentry_vfs::FileDescription;
use zerocopy::{FromBytes, IntoBytes};

/// `struct sockaddr_storage`, the longest address.
const ADDRESS_MAX: usize = 128;
/// The most control data of one message (`net.core.optmem_max`).
const CONTROL_MAX: usize = 20_480;
/// `SCM_MAX_FD`.
const RIGHTS_MAX: usize = 253;
/// Length of a control message's header.
const CMSG_LEN: usize = size_of::<CmsgHdr>();

fn align(n: usize) -> usize {
    n.next_multiple_of(8)
}

/// Copies an address in (`move_addr_to_kernel`).
pub(crate) fn read_address(task: &Task, addr: u64, len: i32) -> Result<Vec<u8>> {
    let len = usize::try_from(len).ok().filter(|n| *n <= ADDRESS_MAX).ok_or(Errno::EINVAL)?;
    let mut bytes = vec![0; len];
    task.copy_in(addr, &mut bytes)?;
    Ok(bytes)
}

/// Stores an address at `addr`, cut to the room that `len_at` names, and its full length there (`move_addr_to_user`).
pub(crate) fn store_address(task: &Task, address: &[u8], addr: u64, len_at: u64) -> Result<()> {
    let mut room = [0; 4];
    task.copy_in(len_at, &mut room)?;
    let room = usize::try_from(i32::from_ne_bytes(room)).map_err(|_| Errno::EINVAL)?;
    store_cut(task, address, addr, room)?;
    let len = u32::try_from(address.len()).unwrap_or(0);
    task.copy_out(len_at, &len.to_ne_bytes())
}

/// Stores what fits of `bytes`.
pub(crate) fn store_cut(task: &Task, bytes: &[u8], addr: u64, room: usize) -> Result<()> {
    let n = bytes.len().min(room);
    task.copy_out(addr, bytes.get(..n).unwrap_or_default())
}

/// Reads the control messages of a message to send (`__scm_send`).
pub(crate) fn read_control(cx: &Current, hdr: &MsgHdr) -> Result<ControlIn> {
    let mut control = ControlIn::default();
    let len = usize::try_from(hdr.controllen).map_err(|_| Errno::ENOBUFS)?;
    if len > CONTROL_MAX {
        return Err(Errno::ENOBUFS);
    }
    // Linux ignores what is too short to be one.
    if len < CMSG_LEN || hdr.control == 0 {
        return Ok(control);
    }
    let mut bytes = vec![0; len];
    cx.copy_in(hdr.control, &mut bytes)?;
    let mut rest = bytes.as_slice();
    while let Ok((header, _)) = CmsgHdr::read_from_prefix(rest) {
        let len = usize::try_from(header.len).map_err(|_| Errno::EINVAL)?;
        let data = rest.get(CMSG_LEN..len).ok_or(Errno::EINVAL)?;
        if header.level == libc::SOL_SOCKET {
            match header.kind {
                libc::SCM_RIGHTS => {
                    for fd in data.chunks_exact(4) {
                        let fd = fd.first_chunk().map_or(-1, |b| i32::from_ne_bytes(*b));
                        control.rights.push(cx.file_or_path(fd)?);
                    }
                    if control.rights.len() > RIGHTS_MAX {
                        return Err(Errno::EINVAL);
                    }
                }
                libc::SCM_CREDENTIALS => {
                    let claim = Ucred::read_from_bytes(data).map_err(|_| Errno::EINVAL)?;
                    let claim = known_credentials(cx, claim)?;
                    check_credentials(cx.task.as_ref(), &claim)?;
                    control.creds = Some(claim);
                }
                _ => return Err(Errno::EINVAL),
            }
        } else {
            control.other.push(ControlMessage {
                level: header.level,
                kind: header.kind,
                data: data.to_vec(),
            });
        }
        rest = rest.get(align(len)..).unwrap_or_default();
    }
    Ok(control)
}

/// Credentials that the caller names, in the Sentry's numbers: `ESRCH` and `EINVAL` for ids that are not there.
fn known_credentials(cx: &Current, claim: Ucred) -> Result<Ucred> {
    let user_ns = &cx.creds().user_ns;
    Ok(Ucred { pid: cx.resolve_pid(claim.pid)?, uid: user_ns.uid(claim.uid)?, gid: user_ns.gid(claim.gid)? })
}

/// Credentials as the caller sees them.
pub(crate) fn shown_credentials(cx: &Current, creds: Ucred) -> Ucred {
    if creds.uid == u32::MAX {
        // Of nobody: a socket without a peer.
        return creds;
    }
    let user_ns = &cx.creds().user_ns;
    Ucred { pid: cx.show_pid(creds.pid), uid: user_ns.show_uid(creds.uid), gid: user_ns.show_gid(creds.gid) }
}

/// Writes control messages into the room of a received message, one by one.
pub(crate) struct ControlOut {
    bytes: Vec<u8>,
    room: usize,
    truncated: bool,
}

impl ControlOut {
    pub(crate) fn new(hdr: &MsgHdr) -> Self {
        let room = if hdr.control == 0 { 0 } else { usize::try_from(hdr.controllen).unwrap_or(0) };
        Self { bytes: Vec::new(), room, truncated: false }
    }

    fn left(&self) -> usize {
        self.room.saturating_sub(self.bytes.len())
    }

    pub(crate) fn put(&mut self, level: i32, kind: i32, data: &[u8]) {
        let left = self.left();
        if left < CMSG_LEN {
            self.truncated = true;
            return;
        }
        let len = CMSG_LEN + data.len();
        let shown = len.min(left);
        self.truncated |= shown < len;
        let header = CmsgHdr { len: shown as u64, level, kind };
        let end = (self.bytes.len() + align(len)).min(self.room);
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(data.get(..shown - CMSG_LEN).unwrap_or_default());
        self.bytes.resize(end.max(self.bytes.len()), 0);
    }

    pub(crate) fn credentials(&mut self, creds: Ucred) {
        self.put(libc::SOL_SOCKET, libc::SCM_CREDENTIALS, creds.as_bytes());
    }

    /// Enters the descriptors that there is room for; the others are closed (`scm_detach_fds`).
    pub(crate) fn rights(&mut self, cx: &Current, files: Vec<Arc<FileDescription>>, cloexec: bool) {
        if files.is_empty() {
            return;
        }
        let most = self.left().saturating_sub(CMSG_LEN) / 4;
        let mut data = Vec::new();
        let mut entered = 0;
        for file in &files {
            if entered == most {
                break;
            }
            match crate::files::add_description(cx, Arc::clone(file), cloexec) {
                Ok(fd) => data.extend_from_slice(&fd.to_ne_bytes()),
                Err(_) => break,
            }
            entered += 1;
        }
        if entered > 0 {
            self.put(libc::SOL_SOCKET, libc::SCM_RIGHTS, &data);
        }
        if entered < files.len() {
            self.truncated = true;
        }
    }

    /// Stores everything; returns the length and `MSG_CTRUNC` if something did not fit.
    pub(crate) fn store(self, task: &Task, hdr: &MsgHdr) -> Result<(u64, i32)> {
        task.copy_out(hdr.control, &self.bytes)?;
        Ok((self.bytes.len() as u64, if self.truncated { libc::MSG_CTRUNC } else { 0 }))
    }
}
