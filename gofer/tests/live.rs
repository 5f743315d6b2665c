//! A real gofer process in its jail, started from this test's own binary and read from outside.
//!
//! Needs root or unprivileged user namespaces, as the sandbox does.
#![expect(clippy::unwrap_used, reason = "a test program without a harness")]
#![expect(clippy::indexing_slicing, reason = "a test program without a harness")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use gofer::{Config, Mount};
use gofer_protocol::{
    Fid, FileHow, Hello, MAX_MESSAGE, Path as WirePath, Place, Reply, Request, RequestWriter,
};
use hostsys::process::Exit;
use hostsys::sock;

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some(gofer::launch::SUBCOMMAND) {
        return gofer::main();
    }
    let dir = Scratch::new();
    fs::create_dir_all(dir.0.join("rw")).unwrap();
    fs::write(dir.0.join("rw/file"), "text").unwrap();
    fs::write(dir.0.join("single"), "one").unwrap();
    serves_its_mounts_and_nothing_else(&dir.0);
    says_why_it_cannot_start(&dir.0);
    ends_by_a_kill_and_by_a_broken_message(&dir.0);
    println!("live: ok");
    ExitCode::SUCCESS
}

/// A directory that is removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        let dir = std::env::temp_dir().join(format!("gofer-live-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn mount(source: &Path, read_only: bool) -> Mount {
    Mount { source: source.into(), read_only, allow_special: false, recursive: true }
}

fn start(mounts: Vec<Mount>) -> gofer::launch::Running {
    let config = Config { mounts, connections: 2 };
    gofer::launch::start(&config, std::io::stderr().as_fd()).unwrap()
}

fn receive(socket: &OwnedFd, buf: &mut [u8]) -> (usize, Option<OwnedFd>) {
    let mut received = sock::receive(socket.as_fd(), buf, 0).unwrap();
    (received.len, received.fds.pop())
}

fn hello(socket: &OwnedFd) -> Hello {
    let mut buf = vec![0; MAX_MESSAGE];
    let (n, _) = receive(socket, &mut buf);
    Hello::decode(&buf[..n]).unwrap()
}

fn call(socket: &OwnedFd, request: &Request<'_>) -> Result<(Vec<u8>, Option<OwnedFd>), i32> {
    let mut message = Vec::new();
    RequestWriter::encode(request, &mut message).unwrap();
    sock::send(socket.as_fd(), &message, &[], 0).unwrap();
    let mut buf = vec![0; MAX_MESSAGE];
    let (n, fd) = receive(socket, &mut buf);
    buf.truncate(n);
    Reply::decode(&buf).unwrap()?;
    Ok((buf, fd))
}

fn place(fid: u32, path: &str) -> Place<'_> {
    Place { fid: Fid(fid), path: WirePath::new(path.as_bytes()).unwrap() }
}

fn names(socket: &OwnedFd, fid: u32, path: &str) -> Vec<String> {
    let (buf, _) = call(socket, &Request::ListPlus { at: place(fid, path), cookie: 0 }).unwrap();
    let mut reply = Reply::decode(&buf).unwrap().unwrap();
    std::iter::from_fn(|| reply.entry().unwrap())
        .map(|e| String::from_utf8_lossy(e.name).into_owned())
        .collect()
}

fn exit_of(running: gofer::launch::Running) -> Exit {
    drop(running.connections);
    hostsys::retry(|| hostsys::process::wait_pid(running.child.pid.cast_signed(), false, true)).unwrap()
}

fn serves_its_mounts_and_nothing_else(dir: &Path) {
    let root = mount(Path::new("/"), true);
    let running = start(vec![root, mount(&dir.join("rw"), false), mount(&dir.join("single"), true)]);
    let socket = &running.connections[0];
    for socket in &running.connections {
        assert!(matches!(hello(socket), Hello::Ready { .. }));
    }

    // The host's root, without its kernel file systems, and not to be written.
    assert!(names(socket, 0, "").contains(&"proc".to_owned()));
    assert!(names(socket, 0, "proc").is_empty());
    assert!(names(socket, 0, "sys").is_empty());
    assert!(
        call(socket, &Request::OpenFile { at: place(0, "proc/self/status"), how: FileHow::READ }).is_err()
    );
    let made = Request::MakeDir { at: place(0, "gofer-live-must-not-exist"), mode: 0o755, uid: 0, gid: 0 };
    assert_eq!(call(socket, &made).unwrap_err(), libc::EROFS);

    // A writable tree, on the other connection.
    let how = FileHow::READ | FileHow::WRITE;
    let create = Request::Create { at: place(1, "new"), mode: 0o600, uid: 0, gid: 0, how };
    let (_, fd) = call(&running.connections[1], &create).unwrap();
    File::from(fd.unwrap()).set_len(9).unwrap();
    assert_eq!(fs::metadata(dir.join("rw/new")).unwrap().len(), 9);
    call(socket, &Request::Link { from: place(1, "new"), to: place(1, "new2") }).unwrap();
    let moved = Request::Rename { from: place(1, "new2"), to: place(1, "new3"), flags: 0 };
    call(socket, &moved).unwrap();

    // A single file.
    let (_, fd) = call(socket, &Request::OpenFile { at: place(2, ""), how: FileHow::READ }).unwrap();
    let mut text = String::new();
    File::from(fd.unwrap()).read_to_string(&mut text).unwrap();
    assert_eq!(text, "one");

    // One more answer each, so that no thread still holds what it sent before.
    for socket in &running.connections {
        call(socket, &Request::Attach { mount: 1 }).unwrap();
    }
    posture(running.child.pid);
    assert_eq!(exit_of(running), Exit::Code(0));
}

/// What `/proc` says of the process.
fn posture(pid: u32) {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let status: BTreeMap<&str, &str> = text
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(key, value)| (key, value.trim()))
        .collect();
    assert_eq!(status["NoNewPrivs"], "1");
    assert_eq!(status["Seccomp"], "2");
    // CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID: some mount is writable.
    assert_eq!(status["CapEff"], "000000000000001f");
    assert_eq!(status["CapPrm"], status["CapEff"]);
    assert_eq!(status["CapBnd"], status["CapEff"]);
    for empty in ["CapInh", "CapAmb"] {
        assert_eq!(status[empty], "0000000000000000", "{empty}");
    }
    for namespace in ["user", "mnt", "pid", "net", "ipc", "uts"] {
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{namespace}")).unwrap();
        assert_ne!(of(&pid.to_string()), of("self"), "{namespace}");
    }
    let mounts = fs::read_to_string(format!("/proc/{pid}/mounts")).unwrap();
    let root = mounts.lines().find(|line| line.split(' ').nth(1) == Some("/")).unwrap();
    assert!(root.starts_with("none / tmpfs ro,nosuid,nodev,noexec"), "{root}");
    let writable = |line: &&str| !line.contains(" ro,");
    assert_eq!(mounts.lines().filter(writable).count(), 1, "{mounts}");
    // Three descriptors of the start, two connections, the root.
    let files: Vec<_> = fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .map(|fd| fs::read_link(fd.unwrap().path()).unwrap())
        .collect();
    assert_eq!(files.len(), 6, "{files:?}");
}

fn says_why_it_cannot_start(dir: &Path) {
    let running = start(vec![mount(&dir.join("missing"), true)]);
    let Hello::Failed { cause } = hello(&running.connections[0]) else { panic!("a jail without its mount") };
    assert!(cause.contains("missing") && cause.contains("No such file"), "{cause}");
    assert_eq!(exit_of(running), Exit::Code(1));
}

fn ends_by_a_kill_and_by_a_broken_message(dir: &Path) {
    let running = start(vec![mount(dir, true)]);
    let mut buf = vec![0; MAX_MESSAGE];
    assert!(matches!(hello(&running.connections[0]), Hello::Ready { .. }));
    hostsys::process::pidfd_send_signal(running.child.pidfd.as_fd(), libc::SIGKILL).unwrap();
    assert_eq!(receive(&running.connections[0], &mut buf).0, 0);
    assert_eq!(exit_of(running), Exit::Signal(libc::SIGKILL));

    // One connection that breaks the protocol ends them all.
    let running = start(vec![mount(dir, true)]);
    for socket in &running.connections {
        assert!(matches!(hello(socket), Hello::Ready { .. }));
    }
    sock::send(running.connections[0].as_fd(), b"nonsense", &[], 0).unwrap();
    assert_eq!(receive(&running.connections[1], &mut buf).0, 0);
    assert_eq!(exit_of(running), Exit::Code(1));
}
