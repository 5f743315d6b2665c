//! Permission events of a directory (`fanotify(7)`): whoever opens it waits until that is allowed.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Starts to watch who opens `dir` itself. It takes `CAP_SYS_ADMIN` on the host; the descriptor that is returned can be
/// polled, and when it is closed nobody waits any more.
pub fn watch_opens(dir: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = libc::FAN_CLASS_CONTENT | libc::FAN_CLOEXEC | libc::FAN_NONBLOCK;
    let opened_as = (libc::O_RDONLY | libc::O_CLOEXEC).cast_unsigned();
    // SAFETY: no memory is passed.
    let group = unsafe { libc::fanotify_init(flags, opened_as) };
    if group < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new, and nobody else's.
    let group = unsafe { OwnedFd::from_raw_fd(group) };
    let events = libc::FAN_OPEN_PERM | libc::FAN_ONDIR;
    // SAFETY: without a path, the descriptor alone names the object.
    let done = unsafe {
        libc::fanotify_mark(group.as_raw_fd(), libc::FAN_MARK_ADD, events, dir.as_raw_fd(), std::ptr::null())
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(group) }
}

/// An opening that waits.
#[derive(Debug)]
pub struct Opening {
    object: OwnedFd,
}

/// The next opening that waits, if there is one.
pub fn next(group: &OwnedFd) -> io::Result<Option<Opening>> {
    const METADATA: usize = 24;
    const FD_AT: usize = 16;
    let mut event = [0; METADATA];
    // Room for one event is what makes the kernel give one alone.
    match File::from(group.try_clone()?).read(&mut event) {
        Ok(METADATA) => {}
        Ok(_) => return Err(io::Error::from(io::ErrorKind::InvalidData)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
        Err(error) => return Err(error),
    }
    let number: [u8; 4] = event
        .get(FD_AT..FD_AT + 4)
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or(io::ErrorKind::InvalidData)?;
    let number = i32::from_ne_bytes(number);
    if number < 0 {
        return Err(io::Error::from(io::ErrorKind::InvalidData));
    }
    // SAFETY: the kernel has made this descriptor for the reader of the event.
    let object = unsafe { OwnedFd::from_raw_fd(number) };
    Ok(Some(Opening { object }))
}

impl Opening {
    /// Lets it go on.
    pub fn allow(self, group: &OwnedFd) -> io::Result<()> {
        let mut response = [0; 8];
        let (object, verdict) = response.split_at_mut(4);
        object.copy_from_slice(&self.object.as_fd().as_raw_fd().to_ne_bytes());
        verdict.copy_from_slice(&libc::FAN_ALLOW.to_ne_bytes());
        File::from(group.try_clone()?).write_all(&response)
    }
}
