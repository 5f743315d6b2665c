//! Hooks of a configuration (`config.md`, "POSIX-platform Hooks").
//!
//! All but `startContainer` run on the host, in the runtime's own namespaces; `createContainer` ones in the network
//! namespace of the container, the only one of its namespaces that the host has. `startContainer` hooks run as processes
//! of the container.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use control_protocol::{Process, Status, Text};
use hostsys::sealed;
use oci_spec::runtime::{Hook, Hooks};
use rustix::thread::LinkNameSpaceType;
use serde::Serialize;

use crate::capability;
use crate::error::{Error, Result, show};
use crate::log::{Level, Log};
use crate::session;
use crate::state::State;

/// What a hook reads from its standard input (`runtime.md`, "State").
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct HookState<'a> {
    oci_version: &'a str,
    id: &'a str,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
    bundle: &'a Path,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: &'a BTreeMap<String, String>,
}

impl<'a> HookState<'a> {
    /// `pid` is the process whose namespaces are the container's to the host.
    pub fn new(state: &'a State, pid: u32) -> Self {
        Self {
            oci_version: &state.oci_version,
            id: &state.id,
            status: "creating",
            pid: Some(pid),
            bundle: &state.bundle,
            annotations: &state.annotations,
        }
    }

    pub fn with_status(&self, status: &'static str) -> Self {
        let pid = self.pid.filter(|_| status != "stopped");
        Self { status, pid, ..self.clone() }
    }

    fn text(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }
}

/// The hooks of the creation.
pub(crate) fn before_start(hooks: &Hooks, state: &HookState<'_>, log: &Log) -> Result<()> {
    run_all("prestart", hooks.prestart().as_ref(), state, log)?;
    run_all("createRuntime", hooks.create_runtime().as_ref(), state, log)?;
    for (index, hook) in hooks.create_container().iter().flatten().enumerate() {
        in_network_of(state.pid, index, hook, state, log)?;
    }
    Ok(())
}

/// Runs a `createContainer` hook in the network namespace of process `pid`.
fn in_network_of(
    pid: Option<u32>,
    index: usize,
    hook: &Hook,
    state: &HookState<'_>,
    log: &Log,
) -> Result<()> {
    const NAME: &str = "createContainer";
    let Some(pid) = pid else { return run(NAME, index, hook, state, log) };
    let namespace = File::open(format!("/proc/{pid}/ns/net"));
    // A namespace is left by ending the thread that has entered it.
    std::thread::scope(|scope| {
        let enter_and_run = || {
            let entered = namespace.and_then(|namespace| {
                let kind = Some(LinkNameSpaceType::Network);
                Ok(rustix::thread::move_into_link_name_space(namespace.as_fd(), kind)?)
            });
            // Where that is not allowed, the container has no network namespace but the runtime's.
            if let Err(error) = entered {
                log.write(
                    Level::Debug,
                    &format!("{NAME} hook #{index}: stays in our network namespace: {error}"),
                );
            }
            run(NAME, index, hook, state, log)
        };
        let ended = scope.spawn(enter_and_run).join();
        ended.unwrap_or_else(|_| Err(failed(NAME, index, hook, "it could not be run")))
    })
}

/// The hooks after the start.
pub(crate) fn after_start(hooks: &Hooks, state: &HookState<'_>, log: &Log) -> Result<()> {
    run_all("poststart", hooks.poststart().as_ref(), state, log)
}

/// The hooks after the end. One that fails keeps nothing from being cleaned up.
pub(crate) fn post_stop(state: &State, log: &Log) {
    let Some(hooks) = &state.hooks else { return };
    let shown = HookState::new(state, 0).with_status("stopped");
    for (index, hook) in hooks.poststop().iter().flatten().enumerate() {
        if let Err(error) = run("poststop", index, hook, &shown, log) {
            log.write(Level::Warning, &error.to_string());
        }
    }
}

/// The hooks that run inside, before the program does.
pub(crate) fn in_container(hooks: &Hooks, state: &State, shown: &HookState<'_>) -> Result<()> {
    for (index, hook) in hooks.start_container().iter().flatten().enumerate() {
        let fails = |problem: String| failed("startContainer", index, hook, &problem);
        let texts = |list: &Option<Vec<String>>| {
            list.iter().flatten().map(|text| Text::from(text.as_str())).collect::<Vec<_>>()
        };
        let mut args = texts(hook.args());
        // The first argument is the program that is looked for.
        let path = Text::from(hook.path().as_os_str());
        match args.first_mut() {
            Some(first) => *first = path,
            None => args.push(path),
        }
        let all = capability::ALL;
        let process = Process {
            args,
            env: texts(hook.env()),
            cwd: "/".into(),
            capabilities: control_protocol::Capabilities {
                bounding: all,
                effective: all,
                permitted: all,
                ..Default::default()
            },
            ..Process::default()
        };
        let patience =
            hook.timeout().and_then(|seconds| u64::try_from(seconds).ok()).map(Duration::from_secs);
        match session::run_quietly(&state.dir, process, &shown.text(), patience) {
            Ok(Status::Exited(0)) => {}
            Ok(status) => return Err(fails(format!("exit status {}", status.code()))),
            Err(error) => return Err(fails(error.to_string())),
        }
    }
    Ok(())
}

fn run_all(name: &'static str, hooks: Option<&Vec<Hook>>, state: &HookState<'_>, log: &Log) -> Result<()> {
    hooks.into_iter().flatten().enumerate().try_for_each(|(index, hook)| run(name, index, hook, state, log))
}

fn failed(name: &'static str, index: usize, hook: &Hook, problem: &str) -> Error {
    let message = format!("error running {name} hook #{index} ({}): {problem}", show(hook.path()));
    Error::Hook(message)
}

fn run(name: &'static str, index: usize, hook: &Hook, state: &HookState<'_>, log: &Log) -> Result<()> {
    let fails = |problem: String| failed(name, index, hook, &problem);
    log.write(Level::Debug, &format!("{name} hook #{index}: {}", show(hook.path())));
    let mut command = Command::new(hook.path());
    let mut args = hook.args().iter().flatten();
    if let Some(first) = args.next() {
        std::os::unix::process::CommandExt::arg0(&mut command, first);
    }
    command.args(args).env_clear().current_dir(state.bundle);
    command.envs(hook.env().iter().flatten().filter_map(|entry| entry.split_once('=')));
    // A file and no pipe: a hook need not read it, however long it is.
    let text = sealed::of_bytes(&state.text()).map_err(|error| fails(error.to_string()))?;
    command.stdin(Stdio::from(text)).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| fails(error.to_string()))?;
    // Read beside, so that a hook that says much does not wait for us while we wait for it.
    let listener = child.stderr.take().map(|mut stderr| {
        std::thread::spawn(move || {
            let mut words = Vec::new();
            let _ = stderr.by_ref().take(4096).read_to_end(&mut words);
            let _ = std::io::copy(&mut stderr, &mut std::io::sink());
            String::from_utf8_lossy(&words).trim().to_owned()
        })
    });
    let patience = hook.timeout().and_then(|seconds| u64::try_from(seconds).ok()).map(Duration::from_secs);
    let status = wait(&mut child, patience).map_err(fails)?;
    if status.success() {
        return Ok(());
    }
    let words = listener.and_then(|listener| listener.join().ok()).unwrap_or_default();
    Err(fails(format!("{status}, stderr: {words}")))
}

fn wait(
    child: &mut Child,
    patience: Option<Duration>,
) -> std::result::Result<std::process::ExitStatus, String> {
    let Some(patience) = patience else { return child.wait().map_err(|error| error.to_string()) };
    let until = Instant::now() + patience;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Ok(status),
            Ok(None) if Instant::now() < until => std::thread::sleep(Duration::from_millis(5)),
            Ok(None) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("hook ran past specified timeout of {} s", patience.as_secs()));
            }
            Err(error) => return Err(error.to_string()),
        }
    }
}
