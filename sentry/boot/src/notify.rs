//! The socket at which a container says how it is (`sd_notify(3)`): what comes there goes to the command that watches over
//! the container, which decides what of it is told on.
//!
//! It has an abstract name, so that it is there whatever the container mounts.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::thread::{self, Thread};

use sentry_base::{Events, Observer};
use sentry_memory::UserWriter;
use sentry_net::{NetworkNamespace, NoPaths, RecvMsg, SockCtx, Socket, UnixSocket};
use sentry_vfs::IoStart;

use crate::caller::KernelCaller;

/// The longest message that is taken, in bytes.
const LONGEST: usize = 4096;

/// Wakes the thread that takes messages.
struct Waker(Thread);

impl Observer for Waker {
    fn notify(&self, _events: Events) {
        self.0.unpark();
    }
}

/// Binds the socket `name` and passes on what comes to it, for as long as `watcher` is there.
pub fn serve(network: &NetworkNamespace, name: &str, watcher: OwnedFd) -> Result<(), String> {
    let caller = KernelCaller::new();
    let named = |error: &dyn std::fmt::Display| format!("the notify socket: {error}");
    let socket =
        UnixSocket::new(&caller, network.unix(), libc::SOCK_DGRAM, 0).map_err(|errno| named(&errno))?;
    let mut address = u16::try_from(libc::AF_UNIX).unwrap_or(1).to_ne_bytes().to_vec();
    address.push(0);
    address.extend_from_slice(name.as_bytes());
    let cx = SockCtx { caller: &caller, nonblock: true, paths: &NoPaths };
    socket.bind(&cx, &address).map_err(|errno| named(&errno))?;
    // It does not block: the watcher has seen to that.
    let watcher = UnixDatagram::from(watcher);
    let run = move || pass_on(&socket, &watcher);
    thread::Builder::new().name("notify".into()).spawn(run).map(drop).map_err(|error| named(&error))
}

fn pass_on(socket: &UnixSocket, watcher: &UnixDatagram) {
    let caller = KernelCaller::new();
    let cx = SockCtx { caller: &caller, nonblock: true, paths: &NoPaths };
    socket.wait_queue().add(Events::READABLE, Arc::new(Waker(thread::current())));
    loop {
        let mut buffer = [0; LONGEST];
        let mut writer = UserWriter::buffer(&mut buffer);
        // Descriptors that come along are closed.
        let taken = socket.try_recv(&cx, &mut RecvMsg::new(&mut writer, 0));
        let len = writer.written();
        match taken {
            Ok(IoStart::Done(_)) => {
                let message = buffer.get(..len).unwrap_or_default();
                // A watcher that does not keep up loses messages; one that has gone needs none.
                if watcher.send(message).is_err_and(|error| error.kind() != io::ErrorKind::WouldBlock) {
                    return;
                }
            }
            _ => thread::park(),
        }
    }
}
