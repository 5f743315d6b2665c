//! The task API: a request's bytes to a container's method, and back.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prost::Message;

use crate::container::Container;
use crate::events::Events;
use crate::io::Places;
use crate::messages::{
    Any, CloseIoRequest, ConnectReply, CreateRequest, Empty, ExecRequest, KillRequest, PidReply, PidsReply,
    ProcessDetails, ProcessInfo, ProcessRequest, ResizeRequest, RuncOptions, ShutdownRequest, StatsReply,
    TaskCreate, TaskIo, UpdateRequest,
};
use crate::oci::Runtime;
use crate::ttrpc::{Code, Failure, Service};
use crate::{rootfs, settings};

/// The service's names: the third version is the second one under another name.
const NAMES: [&str; 2] = ["containerd.task.v2.Task", "containerd.task.v3.Task"];

/// Where the state of the containers of a namespace is, unless options say otherwise.
const ROOT: &str = "/run/containerd/casemate";

/// A file of the bundle that says where the container's state is.
const ROOT_FILE: &str = "casemate.root";

/// The state directory that the container of `bundle` was created with.
pub fn root_of(bundle: &Path, namespace: &str) -> PathBuf {
    fs::read_to_string(bundle.join(ROOT_FILE)).map_or_else(|_| Path::new(ROOT).join(namespace), PathBuf::from)
}

/// Every container of this shim.
#[derive(Debug)]
pub struct Tasks {
    namespace: String,
    debug: bool,
    events: Events,
    containers: Mutex<BTreeMap<String, Slot>>,
    /// Told when the shim is to end.
    over: Mutex<Sender<()>>,
}

#[derive(Debug, Clone)]
enum Slot {
    /// It is being made.
    Taken,
    There(Arc<Container>),
}

fn parse<T: Message + Default>(payload: &[u8]) -> Result<T, Failure> {
    T::decode(payload).map_err(|error| Failure::new(Code::InvalidArgument, error.to_string()))
}

fn done(result: Result<(), Failure>) -> Result<Vec<u8>, Failure> {
    result.map(|()| Empty {}.encode_to_vec())
}

fn reply(result: Result<impl Message, Failure>) -> Result<Vec<u8>, Failure> {
    result.map(|message| message.encode_to_vec())
}

impl Tasks {
    pub fn new(namespace: &str, debug: bool, events: Events, over: Sender<()>) -> Self {
        Self {
            namespace: namespace.to_owned(),
            debug,
            events,
            containers: Mutex::new(BTreeMap::new()),
            over: Mutex::new(over),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Slot>> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, id: &str) -> Result<Arc<Container>, Failure> {
        match self.lock().get(id) {
            Some(Slot::There(container)) => Ok(Arc::clone(container)),
            _ => Err(Failure::new(Code::NotFound, "container not created: not found")),
        }
    }

    fn create(&self, request: CreateRequest) -> Result<PidReply, Failure> {
        if !request.checkpoint.is_empty() {
            return Err(Failure::new(Code::Unimplemented, "restore from a checkpoint is not supported yet"));
        }
        {
            let mut containers = self.lock();
            if containers.contains_key(&request.id) {
                return Err(Failure::new(Code::AlreadyExists, format!("task {} already exists", request.id)));
            }
            containers.insert(request.id.clone(), Slot::Taken);
        }
        let made = self.make(&request);
        let mut containers = self.lock();
        match made {
            Ok(container) => {
                let pid = container.init_pid();
                containers.insert(request.id, Slot::There(container));
                Ok(PidReply { pid })
            }
            Err(failure) => {
                containers.remove(&request.id);
                Err(failure)
            }
        }
    }

    fn make(&self, request: &CreateRequest) -> Result<Arc<Container>, Failure> {
        let failed = |error: io::Error| Failure::new(Code::Unknown, error.to_string());
        let bundle = PathBuf::from(&request.bundle);
        let options = RuncOptions::of(request.options.as_ref());
        let base = if options.root.is_empty() { Path::new(ROOT) } else { Path::new(&options.root) };
        let runtime = Runtime {
            root: base.join(&self.namespace),
            systemd_cgroup: options.systemd_cgroup,
            debug: self.debug,
            flags: settings::flags(request.options.as_ref())
                .map_err(|problem| Failure::new(Code::InvalidArgument, problem))?,
        };
        fs::write(bundle.join(ROOT_FILE), runtime.root.as_os_str().as_encoded_bytes()).map_err(failed)?;
        let place = bundle.join("rootfs");
        if !request.rootfs.is_empty() {
            match fs::create_dir(&place) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
                _ => {}
            }
            rootfs::mount_all(&request.rootfs, &place).map_err(failed)?;
        }
        let places = Places {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        };
        let created = |pid| {
            let io = TaskIo {
                stdin: request.stdin.clone(),
                stdout: request.stdout.clone(),
                stderr: request.stderr.clone(),
                terminal: request.terminal,
            };
            self.events.put(
                "/tasks/create",
                "TaskCreate",
                &TaskCreate {
                    container_id: request.id.clone(),
                    bundle: request.bundle.clone(),
                    rootfs: request.rootfs.clone(),
                    io: Some(io),
                    pid,
                },
            );
        };
        let events = self.events.clone();
        let made = Container::create(&request.id, bundle, places, runtime, events, &self.namespace, created);
        if made.is_err() && !request.rootfs.is_empty() {
            rootfs::unmount_all(&place);
        }
        made
    }

    fn exec(&self, request: ExecRequest) -> Result<(), Failure> {
        let places = Places {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
        };
        let mut spec = request.spec.unwrap_or_default().value;
        if request.terminal {
            spec = with_terminal(&spec)?;
        }
        self.find(&request.id)?.add(&request.exec_id, places, spec)
    }

    fn delete(&self, request: &ProcessRequest) -> Result<crate::messages::DeleteReply, Failure> {
        let deleted = self.find(&request.id)?.delete(&request.exec_id)?;
        if request.exec_id.is_empty() {
            self.lock().remove(&request.id);
        }
        Ok(deleted)
    }

    fn pids(&self, id: &str) -> Result<PidsReply, Failure> {
        let processes = self.find(id)?.pids().into_iter().map(|(pid, exec_id)| {
            let details =
                || Any::of("containerd.runc.v1.ProcessDetails", &ProcessDetails { exec_id: exec_id.clone() });
            ProcessInfo { pid, info: (!exec_id.is_empty()).then(details) }
        });
        Ok(PidsReply { processes: processes.collect() })
    }

    fn connect(&self, id: &str) -> ConnectReply {
        let task_pid = self.find(id).map_or(0, |container| container.init_pid());
        ConnectReply { shim_pid: std::process::id(), task_pid, version: String::new() }
    }
}

/// The process with `terminal` set: containerd may say so beside it.
fn with_terminal(spec: &[u8]) -> Result<Vec<u8>, Failure> {
    let invalid = |error: serde_json::Error| Failure::new(Code::InvalidArgument, format!("spec: {error}"));
    let mut value: serde_json::Value = serde_json::from_slice(spec).map_err(invalid)?;
    if let Some(process) = value.as_object_mut() {
        process.insert("terminal".into(), true.into());
    }
    serde_json::to_vec(&value).map_err(invalid)
}

impl Service for Tasks {
    fn call(&self, service: &str, method: &str, payload: &[u8]) -> Result<Vec<u8>, Failure> {
        if !NAMES.contains(&service) {
            return Err(Failure::new(Code::Unimplemented, format!("service {service}")));
        }
        // Requests about one process have the same first two fields.
        let process = || parse::<ProcessRequest>(payload);
        match method {
            "State" => process().and_then(|r| reply(self.find(&r.id)?.state(&r.exec_id))),
            "Create" => parse(payload).and_then(|r| reply(self.create(r))),
            "Start" => {
                process().and_then(|r| reply(self.find(&r.id)?.start(&r.exec_id).map(|pid| PidReply { pid })))
            }
            "Delete" => process().and_then(|r| reply(self.delete(&r))),
            "Pids" => process().and_then(|r| reply(self.pids(&r.id))),
            "Pause" => process().and_then(|r| done(self.find(&r.id)?.pause(true))),
            "Resume" => process().and_then(|r| done(self.find(&r.id)?.pause(false))),
            "Checkpoint" => Err(Failure::new(Code::Unimplemented, "checkpoint is not supported yet")),
            "Kill" => parse::<KillRequest>(payload)
                .and_then(|r| done(self.find(&r.id)?.kill(&r.exec_id, r.signal, r.all))),
            "Exec" => parse(payload).and_then(|r| done(self.exec(r))),
            "ResizePty" => parse::<ResizeRequest>(payload)
                .and_then(|r| done(self.find(&r.id)?.resize(&r.exec_id, r.height, r.width))),
            "CloseIO" => parse::<CloseIoRequest>(payload).and_then(|r| {
                let container = self.find(&r.id)?;
                done(if r.stdin { container.close_input(&r.exec_id) } else { Ok(()) })
            }),
            "Update" => parse::<UpdateRequest>(payload).and_then(|r| {
                let resources = r.resources.unwrap_or_default().value;
                done(self.find(&r.id)?.update(&resources))
            }),
            "Wait" => process().and_then(|r| reply(self.find(&r.id)?.wait(&r.exec_id))),
            "Stats" => process().and_then(|r| {
                reply(self.find(&r.id)?.stats().map(|stats| StatsReply { stats: Some(stats) }))
            }),
            "Connect" => process().and_then(|r| reply(Ok(self.connect(&r.id)))),
            "Shutdown" => parse::<ShutdownRequest>(payload).and_then(|_| done(Ok(()))),
            _ => Err(Failure::new(Code::Unimplemented, format!("method {method}"))),
        }
    }

    fn sent(&self, method: &str) {
        // A shim ends when it is told to and has nothing left.
        if method == "Shutdown" && self.lock().is_empty() {
            let over = self.over.lock().unwrap_or_else(PoisonError::into_inner);
            let _ = over.send(());
        }
    }
}
