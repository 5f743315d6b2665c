//! Waiting for descriptors (`poll(2)`).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// A descriptor and what to wait for; after [`wait`], what has happened.
#[derive(Debug, Clone, Copy)]
#[repr(transparent)]
pub struct Interest(libc::pollfd);

impl Interest {
    /// `events` is a set of `POLLIN`, `POLLOUT` and their kin.
    pub fn new(fd: BorrowedFd<'_>, events: i16) -> Self {
        Self(libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 })
    }

    /// An entry that [`wait`] passes over.
    pub fn none() -> Self {
        Self(libc::pollfd { fd: -1, events: 0, revents: 0 })
    }

    /// What happened.
    pub fn found(&self) -> i16 {
        self.0.revents
    }

    /// Whether anything happened: readiness, an error or a hang-up.
    pub fn any(&self) -> bool {
        self.0.revents != 0
    }
}

/// Waits until a descriptor is ready, or `timeout_ms` have passed (`None`: for ever). A signal ends the wait
/// with nothing found.
pub fn wait(interests: &mut [Interest], timeout_ms: Option<i32>) -> io::Result<usize> {
    for interest in interests.iter_mut() {
        interest.0.revents = 0;
    }
    let count = libc::nfds_t::try_from(interests.len()).unwrap_or(0);
    let first = interests.as_mut_ptr().cast::<libc::pollfd>();
    // SAFETY: `Interest` is a transparent `pollfd`, and `first` points to `count` of them.
    let found = unsafe { libc::poll(first, count, timeout_ms.unwrap_or(-1)) };
    usize::try_from(found).or_else(|_| {
        let error = io::Error::last_os_error();
        if error.kind() == io::ErrorKind::Interrupted { Ok(0) } else { Err(error) }
    })
}
