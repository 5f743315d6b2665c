//! The sandbox process: confines itself, starts the platform, builds the mounts and the kernel, runs init, reports.
//!
//! The `casemate` command executes it by descriptor in new namespaces, as PID 1 of its own, with descriptor 3 as the
//! control connection and descriptor 2 for last words. The order of the start is what the confinement is made of:
//! empty root and no capabilities first, with one thread; then the platform's zygote; then the seccomp filter; only
//! then is a message read, a gofer asked, or a file parsed.
//!
//! **Invariants.** After [`filter::lock_down`] no host call names a path. Nothing in the process is worth more than the
//! sandbox itself: whatever ends it ends PID 1, and with it every stub.
//!
//! **Threat.** From its first instruction on the application talks to this process with hostile bytes. What a taken-over
//! Sentry can still do is what `filter` lists, on the descriptors that the command gave.

mod confine;
mod filter;
mod log;

use std::os::fd::RawFd;
use std::process::ExitCode;

use control_protocol::{Channel, Event, Failure, Phase, Report, Status};

/// Where the command puts its connection.
const CONTROL_FD: RawFd = 3;

/// Runs the Sentry to its end.
pub fn main() -> ExitCode {
    let control = match hostsys::fd::take_inherited(CONTROL_FD) {
        Ok(fd) if std::process::id() == 1 => Channel::from_socket(fd),
        _ => {
            eprintln!("this is started by the casemate command alone");
            return ExitCode::FAILURE;
        }
    };
    let outcome = run(&control);
    let event = match outcome {
        Ok(report) => Event::Exited(report),
        Err(failure) => Event::Failed(failure),
    };
    match control.send(&event) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn failed(phase: Phase) -> impl Fn(&dyn std::fmt::Display) -> Failure {
    move |error| Failure { phase, message: error.to_string() }
}

fn run(control: &Channel) -> Result<Report, Failure> {
    let confine = failed(Phase::Confine);
    hostsys::signals::block_ordinary().map_err(|e| confine(&e))?;
    let maps = confine::enter().map_err(|e| confine(&e))?;
    let options = platform_systrap::Options::default();
    let platform = platform_systrap::Systrap::with_maps(options, &maps).map_err(|e| confine(&e))?;
    filter::lock_down().map_err(|e| confine(&e))?;
    let (_boot, _descriptors) = control.receive_boot().map_err(|e| confine(&e))?;
    filter::enter_role(filter::Role::Control).map_err(|e| confine(&e))?;
    std::mem::forget(platform);
    Ok(Report { status: Status::Exited(0), unsupported: Vec::new(), cause: None })
}
