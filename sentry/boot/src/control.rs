//! The main thread once init is there: takes orders, requests and host signals, waits for the end, reports it.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use abi::process::WaitStatus;
use abi::signal::{SI_USER, SigInfo};
use control_protocol::{Channel, ChannelError, Order, Report, Status, Unsupported};
use hostsys::polling::{self, Interest};
use hostsys::signals;
use rustix::net::SocketFlags;
use sentry_kernel::signal::Origin;
use sentry_kernel::{Kernel, ThreadGroup};

use crate::container::{self, Container};
use crate::session::{Session, SessionEvent};
use crate::started::Ending;

/// Why the loop ended.
#[derive(Debug)]
pub enum End {
    /// Init is gone; its wait status.
    Exited(WaitStatus),
    /// The command is gone, and nobody waits for a report.
    Abandoned,
}

/// What other threads tell the main thread.
#[derive(Debug)]
pub enum Note {
    /// Init and every other task is gone.
    Ended(WaitStatus),
    /// Something about the session of this number.
    Session(u64, SessionEvent),
    /// The gofer of the container of this number is gone; whom to tell that its processes have been ended.
    Lost(u32, mpsc::Sender<()>),
}

/// How long a call to a lost gofer waits for the end of its program at most.
const LOSS_PATIENCE: Duration = Duration::from_secs(2);

impl Address {
    /// What is to be done when the gofer of this container is lost: its processes are ended before any of them sees a
    /// file fail. Whoever waits here may hold what the main thread turns out to need: it does not wait for ever.
    pub fn loss(&self, container: u32) -> fs_gofer::OnLoss {
        let address = self.clone();
        Box::new(move || {
            let (done, ended) = mpsc::channel();
            address.post(Note::Lost(container, done));
            let _ = ended.recv_timeout(LOSS_PATIENCE);
        })
    }
}

/// The main thread's mail.
#[derive(Debug)]
pub struct Mailbox {
    notes: mpsc::Receiver<Note>,
    ear: UnixStream,
    pub address: Address,
}

/// Where mail for the main thread is put.
#[derive(Debug, Clone)]
pub struct Address {
    notes: mpsc::Sender<Note>,
    /// Non-blocking: one that is full has woken the thread already.
    ringer: Arc<UnixStream>,
}

impl Address {
    pub fn post(&self, note: Note) {
        // The main thread is there as long as the process is.
        let _ = self.notes.send(note);
        let _ = (&*self.ringer).write(&[1]);
    }
}

impl Mailbox {
    /// Made before the filter, which has no call for it.
    pub fn new() -> io::Result<Self> {
        let (ringer, ear) = UnixStream::pair()?;
        ringer.set_nonblocking(true)?;
        let (sender, notes) = mpsc::channel();
        let address = Address { notes: sender, ringer: Arc::new(ringer) };
        Ok(Self { notes, ear, address })
    }

    /// Hands init's wait status from a worker to the main thread.
    pub fn ending(&self) -> Ending {
        let address = self.address.clone();
        Box::new(move |status| address.post(Note::Ended(status)))
    }
}

/// Commands at the same time; more are turned away.
const MAX_SESSIONS: usize = 512;

/// How long the ends of other processes may take to be told after init's.
const LAST_ENDS: Duration = Duration::from_secs(2);

/// Everything that the main thread looks after.
#[derive(Debug)]
pub struct Server<'a> {
    pub control: &'a Channel,
    pub pending: &'a OwnedFd,
    pub mailbox: &'a mut Mailbox,
    pub container: &'a Container,
}

impl Server<'_> {
    /// Serves until init has ended or the command is gone.
    pub fn serve(self) -> Result<End, ChannelError> {
        let mut sessions: BTreeMap<u64, Session> = BTreeMap::new();
        let mut last_number = 0;
        let mut ended: Option<(WaitStatus, Instant)> = None;
        // Further containers, by the number of the session that each was made for.
        let mut members: BTreeMap<u64, Container> = BTreeMap::new();
        loop {
            let mut interests = vec![
                Interest::new(self.control.as_fd(), libc::POLLIN),
                Interest::new(self.pending.as_fd(), libc::POLLIN),
                Interest::new(self.mailbox.ear.as_fd(), libc::POLLIN),
                match &self.container.listener {
                    Some(listener) => Interest::new(listener.as_fd(), libc::POLLIN),
                    None => Interest::none(),
                },
            ];
            interests.extend(sessions.values().map(Session::interest));
            interests.extend(members.values().map(|member| match &member.listener {
                Some(listener) => Interest::new(listener.as_fd(), libc::POLLIN),
                None => Interest::none(),
            }));
            let timeout = ended.map(|(_, until)| {
                i32::try_from(until.saturating_duration_since(Instant::now()).as_millis()).unwrap_or(0)
            });
            polling::wait(&mut interests, timeout)?;
            let [orders, host_signals, mail, newcomers, others @ ..] = interests.as_slice() else {
                continue;
            };
            let (of_sessions, of_members) = others.split_at_checked(sessions.len()).unwrap_or_default();
            let visited: Vec<u64> =
                members.keys().zip(of_members).filter(|(_, i)| i.any()).map(|(key, _)| *key).collect();
            let called: Vec<u64> =
                sessions.keys().zip(of_sessions).filter(|(_, i)| i.any()).map(|(key, _)| *key).collect();
            if mail.any() {
                let _ = self.mailbox.ear.read(&mut [0; 64]);
            }
            while let Ok(note) = self.mailbox.notes.try_recv() {
                match note {
                    Note::Ended(status) => ended = Some((status, Instant::now() + LAST_ENDS)),
                    Note::Lost(number, done) => {
                        for group in container::members(self.container.kernel(), number) {
                            send(&group, libc::SIGKILL);
                        }
                        let _ = done.send(());
                    }
                    Note::Session(number, mut event) => {
                        if let Some(member) = event.take_container() {
                            members.insert(number, member);
                        }
                        let over = sessions
                            .get_mut(&number)
                            .is_some_and(|session| session.take(event, number, &self.mailbox.address));
                        if over {
                            sessions.remove(&number);
                            members.remove(&number);
                        }
                    }
                }
            }
            if let Some((status, until)) = ended
                && (!sessions.values().any(Session::awaits_end) || Instant::now() >= until)
            {
                return Ok(End::Exited(status));
            }
            if host_signals.any() {
                while let Some(signal) = signals::next(self.pending.as_fd())? {
                    forward(self.container.kernel(), signal.signo);
                }
            }
            if orders.any() {
                match self.control.receive(false) {
                    Ok(Some(order)) => obey(self.container, &order),
                    Ok(None) => {}
                    Err(ChannelError::Closed) => return Ok(End::Abandoned),
                    Err(error) => return Err(error),
                }
            }
            for number in called {
                let Some(session) = sessions.get_mut(&number) else { continue };
                let address = &self.mailbox.address;
                let container = session.asks().map_or(Some(self.container), |asked| members.get(&asked));
                if session.turn(number, container, address) {
                    sessions.remove(&number);
                    members.remove(&number);
                }
            }
            for (number, member) in &members {
                // One that is to die before it has been started dies of its first signal.
                if sessions.get(number).is_none_or(Session::is_gone) {
                    member.start();
                }
            }
            let first = newcomers.any().then_some((None, self.container));
            let others = visited.iter().filter_map(|key| Some((Some(*key), members.get(key)?)));
            for (asked, container) in first.into_iter().chain(others) {
                if let Some(listener) = &container.listener
                    && let Ok(socket) = rustix::net::accept_with(listener, SocketFlags::CLOEXEC)
                    && sessions.len() < MAX_SESSIONS
                {
                    last_number += 1;
                    sessions.insert(last_number, Session::new(Channel::from_socket(socket), asked));
                }
            }
        }
    }
}

fn obey(container: &Container, order: &Order) {
    match order {
        Order::Signal(signo) => container.kernel().signal_init(*signo),
        Order::Start => drop(container.start()),
        // It has the whole sandbox' memory.
        Order::Memory => {}
        Order::Resize(size) => {
            if let Some(terminal) = &container.terminal {
                terminal.resize(size.rows, size.columns);
            }
        }
    }
}

/// A signal sent to this process on the host is meant for the container, but for those that our own children and
/// descriptors raise.
fn forward(kernel: &Kernel, signo: i32) {
    if ![libc::SIGCHLD, libc::SIGURG, libc::SIGPIPE, libc::SIGIO].contains(&signo) {
        kernel.signal_init(signo);
    }
}

/// Sends a signal as the runtime does.
pub fn send(to: &Arc<ThreadGroup>, signo: i32) {
    // Full queues exist for real-time signals alone, and these are sent like `kill(2)` does.
    let _ = to.send(SigInfo::user(signo, SI_USER, 0, 0), Origin::Outside);
}

/// How a process ended, for those outside.
pub fn status_of(status: WaitStatus) -> Status {
    let byte = |value: i32| u8::try_from(value & 0xff).unwrap_or(u8::MAX);
    match status.signal() {
        Some(signo) => Status::Signaled(byte(signo)),
        None => Status::Exited(byte(status.0 >> 8)),
    }
}

/// What there is to tell about a container that has ended.
pub fn report(container: &Container, status: WaitStatus) -> Report {
    container.log.debug(&format!("the gofer has answered {} requests", container.gofer.calls()));
    let unsupported = container
        .kernel()
        .unsupported_report()
        .into_iter()
        .map(|call| Unsupported { name: call.name, program: call.comm, count: call.count })
        .take(MAX_UNSUPPORTED)
        .collect();
    let deaths = container.kernel().host_deaths();
    let cause = if container.gofer.is_lost() {
        Some("the file server (gofer) was lost".to_owned())
    } else {
        deaths.first().cloned()
    };
    Report { status: status_of(status), unsupported, cause }
}

/// A report fits into one message.
const MAX_UNSUPPORTED: usize = 200;
