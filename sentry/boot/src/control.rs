//! The main thread once init runs: takes orders and host signals, waits for the end, reports it.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use abi::process::WaitStatus;
use control_protocol::{Channel, ChannelError, Order, Report, Status, Unsupported};
use hostsys::polling::{self, Interest};
use hostsys::signals;

use crate::container::Container;

/// Why the loop ended.
#[derive(Debug)]
pub enum End {
    /// Init is gone; its wait status.
    Exited(WaitStatus),
    /// The command is gone, and nobody waits for a report.
    Abandoned,
}

/// Takes the wait status of init, on a worker.
pub type Ending = Box<dyn FnOnce(WaitStatus) + Send>;

/// The wait status of init, handed from a worker to the main thread.
pub fn ending() -> std::io::Result<(Ending, UnixStream)> {
    let (teller, listener) = UnixStream::pair()?;
    let tell = move |status: WaitStatus| {
        let mut teller = &teller;
        // The main thread is there as long as the process is.
        let _ = std::io::Write::write_all(&mut teller, &status.0.to_ne_bytes());
    };
    Ok((Box::new(tell), listener))
}

/// Serves until init has ended or the command is gone.
pub fn serve(
    control: &Channel,
    pending: &OwnedFd,
    ended: &mut UnixStream,
    container: &Container,
) -> Result<End, ChannelError> {
    loop {
        let mut interests = [
            Interest::new(control.as_fd(), libc::POLLIN),
            Interest::new(pending.as_fd(), libc::POLLIN),
            Interest::new(ended.as_fd(), libc::POLLIN),
        ];
        polling::wait(&mut interests, None)?;
        let [orders, host_signals, ended_now] = &interests;
        if ended_now.any() {
            let mut status = [0; 4];
            ended.read_exact(&mut status)?;
            return Ok(End::Exited(WaitStatus(i32::from_ne_bytes(status))));
        }
        if host_signals.any() {
            while let Some(signal) = signals::next(pending.as_fd())? {
                forward(container, signal.signo);
            }
        }
        if orders.any() {
            match control.receive(false) {
                Ok(Some(order)) => obey(container, &order),
                Ok(None) => {}
                Err(ChannelError::Closed) => return Ok(End::Abandoned),
                Err(error) => return Err(error),
            }
        }
    }
}

fn obey(container: &Container, order: &Order) {
    match order {
        Order::Signal(signo) => container.kernel.signal_init(*signo),
        Order::Resize(size) => {
            if let Some(terminal) = &container.terminal {
                terminal.resize(size.rows, size.columns);
            }
        }
    }
}

/// A signal sent to this process on the host is meant for the container, but for those that our own children and
/// descriptors raise.
fn forward(container: &Container, signo: i32) {
    if ![libc::SIGCHLD, libc::SIGURG, libc::SIGPIPE, libc::SIGIO].contains(&signo) {
        container.kernel.signal_init(signo);
    }
}

/// What there is to tell about a container that has ended.
pub fn report(container: &Container, status: WaitStatus) -> Report {
    container.log.debug(&format!("the gofer has answered {} requests", container.gofer.calls()));
    let byte = |value: i32| u8::try_from(value & 0xff).unwrap_or(u8::MAX);
    let unsupported = container
        .kernel
        .unsupported_report()
        .into_iter()
        .map(|call| Unsupported { name: call.name, program: call.comm, count: call.count })
        .take(MAX_UNSUPPORTED)
        .collect();
    let deaths = container.kernel.host_deaths();
    let cause = if container.gofer.is_lost() {
        Some("the file server (gofer) was lost".to_owned())
    } else {
        deaths.first().cloned()
    };
    Report {
        status: match status.signal() {
            Some(signo) => Status::Signaled(byte(signo)),
            None => Status::Exited(byte(status.0 >> 8)),
        },
        unsupported,
        cause,
    }
}

/// A report fits into one message.
const MAX_UNSUPPORTED: usize = 200;
