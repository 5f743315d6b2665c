//! Commands on containers that some other command runs.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use hostsys::{polling, process};

use crate::cgroup;
use crate::error::{Context, Error, Result};
use crate::state::{State, StateRoot};

/// Sends a signal to a container's init. The Sentry takes it and hands it on; `SIGKILL` ends the sandbox.
pub fn kill(root: &StateRoot, id: &str, signo: i32) -> Result<()> {
    let state = root.load(id)?;
    send(&state, signo)
}

fn send(state: &State, signo: i32) -> Result<()> {
    let sandbox = state.sandbox.open().context(|| format!("open process {}", state.sandbox.pid))?;
    let sandbox = sandbox.ok_or(Error::NotRunning)?;
    match process::pidfd_send_signal(sandbox.as_fd(), signo) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Err(Error::NotRunning),
        sent => sent.context(|| format!("send a signal to process {}", state.sandbox.pid)),
    }
}

/// Removes a stopped container; with `force` also a running one, a half-made one, or none at all.
pub fn delete(root: &StateRoot, id: &str, force: bool) -> Result<()> {
    let state = match root.load(id) {
        Err(Error::DoesNotExist) if force => return root.remove(id),
        state => state?,
    };
    if state.sandbox.is_alive() {
        if !force {
            return Err(Error::NotStopped { id: id.to_owned(), status: state.status().to_owned() });
        }
        end(&state)?;
    }
    root.remove(id)?;
    cgroup::remove(&state.cgroups);
    Ok(())
}

/// Kills the sandbox and waits until it is gone.
fn end(state: &State) -> Result<()> {
    let opened = state.sandbox.open().context(|| format!("open process {}", state.sandbox.pid))?;
    let Some(sandbox) = opened else { return Ok(()) };
    // Gone in between is as good.
    let _ = process::pidfd_send_signal(sandbox.as_fd(), libc::SIGKILL);
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let left_ms = i32::try_from(left.as_millis()).unwrap_or(i32::MAX);
        let mut interests = [polling::Interest::new(sandbox.as_fd(), libc::POLLIN)];
        if polling::wait(&mut interests, Some(left_ms)).context(|| "poll".into())? > 0 {
            return Ok(());
        }
        if left.is_zero() {
            let message = format!("process {} of container {} does not end", state.sandbox.pid, state.id);
            return Err(Error::Sandbox { code: 1, message });
        }
    }
}
