//! What the shim's program does: `start` one in the background, `delete` what a dead one has left, `-info`, or serve.

use std::ffi::OsString;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::SystemTime;

use hostsys::{fd, process, signals};
use prost::Message;
use runtime::StateRoot;
use runtime::log::Log;

use crate::events::Events;
use crate::messages::{Any, DeleteReply, RuntimeInfo, RuntimeVersion};
use crate::service::{Tasks, root_of};
use crate::{NAME, fail, oci, rootfs, ttrpc};

/// Where shims' sockets are.
const SOCKETS: &str = "/run/containerd/s";

/// Annotations that put containers into one shim, the strongest first.
const GROUPS: [&str; 3] =
    ["io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id", "io.kubernetes.cri-o.SandboxID"];

/// The most that is read from standard input, in bytes.
const MAX_INPUT: u64 = 10 << 20;

/// The status that a container has which nobody saw ending.
const KILLED: u32 = 137;

#[derive(Debug, Default)]
struct Flags {
    namespace: String,
    id: String,
    address: String,
    bundle: PathBuf,
    debug: bool,
    version: bool,
    info: bool,
    action: String,
}

/// Flags as Go's `flag` package takes them: one dash or two, the value behind `=` or in the next word.
fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Flags, String> {
    let mut flags = Flags::default();
    let mut args = args.into_iter().map(|arg| arg.to_string_lossy().into_owned());
    while let Some(arg) = args.next() {
        let Some(name) = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-')) else {
            flags.action = arg;
            break;
        };
        let (name, value) = match name.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (name, None),
        };
        let on = |value: Option<String>| value.is_none_or(|value| value == "true" || value == "1");
        match name {
            "debug" => flags.debug = on(value),
            "v" | "version" => flags.version = on(value),
            "info" => flags.info = on(value),
            _ => {
                let value =
                    value.or_else(|| args.next()).ok_or(format!("flag needs an argument: -{name}"))?;
                match name {
                    "namespace" => flags.namespace = value,
                    "id" => flags.id = value,
                    "address" => flags.address = value,
                    "bundle" => flags.bundle = value.into(),
                    "publish-binary" | "socket" | "debug-socket" => {}
                    _ => return Err(format!("flag provided but not defined: -{name}")),
                }
            }
        }
    }
    Ok(flags)
}

/// Runs the shim's program with the command line `args`, its name first.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let flags = match parse(args.into_iter().skip(1)) {
        Ok(flags) => flags,
        Err(error) => return fail(&error),
    };
    let version = env!("CARGO_PKG_VERSION");
    if flags.version {
        println!("{NAME}:\n  Version: {version}");
        return ExitCode::SUCCESS;
    }
    if flags.info {
        return print(&info(version));
    }
    if flags.namespace.is_empty() || flags.id.is_empty() {
        return fail(&"shim namespace and id cannot be empty");
    }
    match flags.action.as_str() {
        "start" => match start(&flags) {
            Ok(address) => {
                // Nothing else may be on standard output.
                print!("{address}");
                ExitCode::SUCCESS
            }
            Err(error) => fail(&error),
        },
        "delete" => print(&delete(&flags)),
        "" => serve(&flags),
        other => fail(&format!("unknown action {other:?}")),
    }
}

fn print(message: &impl Message) -> ExitCode {
    match io::stdout().write_all(&message.encode_to_vec()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

fn info(version: &str) -> RuntimeInfo {
    let mut input = Vec::new();
    let _ = io::stdin().take(MAX_INPUT).read_to_end(&mut input);
    let features = oci::features().unwrap_or_default();
    RuntimeInfo {
        name: "io.containerd.casemate.v1".into(),
        version: Some(RuntimeVersion { version: version.to_owned(), revision: String::new() }),
        options: Any::decode(input.as_slice()).ok().filter(|any| !any.type_url.is_empty()),
        features: Some(Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/features/Features".into(),
            value: features,
        }),
    }
}

/// The annotations of a bundle.
fn annotations(bundle: &Path) -> serde_json::Map<String, serde_json::Value> {
    let text = File::open(bundle.join("config.json")).and_then(|file| {
        let mut text = Vec::new();
        file.take(MAX_INPUT).read_to_end(&mut text)?;
        Ok(text)
    });
    let value: serde_json::Value = serde_json::from_slice(&text.unwrap_or_default()).unwrap_or_default();
    value.get("annotations").and_then(|all| all.as_object()).cloned().unwrap_or_default()
}

/// What the container shares a shim with: its pod, or itself alone.
fn group_of(bundle: &Path, id: &str) -> String {
    let annotations = annotations(bundle);
    let group = GROUPS.iter().find_map(|name| annotations.get(*name)?.as_str());
    group.unwrap_or(id).to_owned()
}

/// The socket of a shim. Its name is short enough for an address, whatever the names that it stands for.
fn socket_path(address: &str, namespace: &str, group: &str) -> PathBuf {
    let half = |which: u8| {
        let mut hasher = DefaultHasher::new();
        (which, address, namespace, group).hash(&mut hasher);
        hasher.finish()
    };
    Path::new(SOCKETS).join(format!("casemate-{:016x}{:016x}", half(0), half(1)))
}

/// Starts a shim in the background, or finds the one of the container's pod; its address.
fn start(flags: &Flags) -> io::Result<String> {
    let bundle = std::env::current_dir()?;
    let group = group_of(&bundle, &flags.id);
    let path = socket_path(&flags.address, &flags.namespace, &group);
    let address = format!("unix://{}", path.display());
    fs::DirBuilder::new().recursive(true).mode(0o711).create(SOCKETS)?;
    let listener = match UnixListener::bind(&path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            if group != flags.id && UnixStream::connect(&path).is_ok() {
                return Ok(address);
            }
            fs::remove_file(&path)?;
            UnixListener::bind(&path)?
        }
        listener => listener?,
    };
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    // containerd reads a FIFO of this name, as long as it is there.
    let log = File::options().write(true).custom_flags(libc::O_NONBLOCK).open(bundle.join("log"));
    let mut command = Command::new("/proc/self/exe");
    command.arg0(NAME).args(["-namespace", &flags.namespace, "-id", &flags.id, "-address", &flags.address]);
    if flags.debug {
        command.arg("-debug");
    }
    command.arg("-socket").arg(&path);
    command.current_dir("/").process_group(0);
    command.stdin(Stdio::from(std::os::fd::OwnedFd::from(listener))).stdout(Stdio::null());
    command.stderr(log.map_or_else(|_| Stdio::null(), Stdio::from));
    let started = command.spawn();
    if started.is_err() {
        let _ = fs::remove_file(&path);
    }
    // It has a better claim to live than what it looks after.
    let pid = started?.id();
    let _ = fs::write(format!("/proc/{pid}/oom_score_adj"), "-998");
    Ok(address)
}

/// Removes what a shim that is gone has left of a container. It is repeated until it succeeds.
fn delete(flags: &Flags) -> DeleteReply {
    let bundle = if flags.bundle.as_os_str().is_empty() {
        std::env::current_dir().unwrap_or_default()
    } else {
        flags.bundle.clone()
    };
    let reply = DeleteReply { pid: 0, exit_status: KILLED, exited_at: Some(SystemTime::now().into()) };
    let root = match StateRoot::new(Some(&root_of(&bundle, &flags.namespace))) {
        Ok(root) => root,
        Err(error) => {
            fail(&error);
            return reply;
        }
    };
    let pid = root.load(&flags.id).map_or(0, |state| state.init.pid);
    if let Err(error) = runtime::delete(&root, &flags.id, true, &Log::default()) {
        fail(&error);
    }
    rootfs::unmount_all(&bundle.join("rootfs"));
    // The socket of a shim that was killed; that of a pod may belong to one that is alive.
    let socket = socket_path(&flags.address, &flags.namespace, &group_of(&bundle, &flags.id));
    if UnixStream::connect(&socket).is_err() {
        let _ = fs::remove_file(socket);
    }
    DeleteReply { pid, ..reply }
}

/// Serves the task API at the socket that is standard input.
fn serve(flags: &Flags) -> ExitCode {
    let prepare = || -> io::Result<UnixListener> {
        let listener = UnixListener::from(fd::take_inherited(0)?);
        // Nobody but containerd ends a shim, and it does so by a request.
        signals::block_ordinary()?;
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
        process::set_name(c"casemate-shim")?;
        Ok(listener)
    };
    let listener = match prepare() {
        Ok(listener) => listener,
        Err(error) => return fail(&error),
    };
    let path = listener.local_addr().ok().and_then(|address| address.as_pathname().map(Path::to_path_buf));
    let events = Events::new(std::env::var("TTRPC_ADDRESS").unwrap_or_default(), &flags.namespace);
    let (over, ended) = mpsc::channel();
    let tasks = Arc::new(Tasks::new(&flags.namespace, flags.debug, events.clone(), over));
    thread::spawn(move || ttrpc::serve(&listener, &tasks));
    let _ = ended.recv();
    if let Some(path) = path {
        let _ = fs::remove_file(path);
    }
    events.flush();
    ExitCode::SUCCESS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_those_of_go() {
        let words =
            ["-namespace", "k8s.io", "--id=a", "-debug", "-address", "/a", "-publish-binary", "", "start"];
        let flags = parse(words.map(OsString::from)).unwrap();
        assert_eq!(
            (flags.namespace.as_str(), flags.id.as_str(), flags.address.as_str()),
            ("k8s.io", "a", "/a")
        );
        assert!(flags.debug && flags.action == "start");
        assert!(parse(["-nonesuch".into(), "x".into()]).is_err());
    }

    #[test]
    fn sockets_of_a_group_are_one() {
        let path = socket_path("/a", "n", "pod");
        assert_eq!(path, socket_path("/a", "n", "pod"));
        assert_ne!(path, socket_path("/a", "m", "pod"));
        assert!(path.as_os_str().len() < 100);
    }
}
