//! Seen by strace from outside: while the application runs, neither the Sentry nor a stub makes a path, socket or
//! exec call on the host. Only the gofer opens files.
//!
//! Tracing lists what the application's own system calls are, too, as the host kernel meets them in a stub: each is
//! refused by the stub's filter with SIGSYS, never carried out. Those mark when the application runs.

use std::collections::{HashMap, HashSet};
use std::fs;

use anyhow::{Context, Result, ensure};
use xtask::bundle::Bundle;
use xtask::trial::Trial;

use crate::common::debian;

/// Calls that name a file, make or join a socket, run a program, or change what can be named.
const FORBIDDEN: &[&str] = &[
    "open",
    "openat",
    "openat2",
    "creat",
    "stat",
    "lstat",
    "newfstatat",
    "statx",
    "access",
    "faccessat",
    "faccessat2",
    "readlink",
    "readlinkat",
    "mkdir",
    "mkdirat",
    "rmdir",
    "unlink",
    "unlinkat",
    "rename",
    "renameat",
    "renameat2",
    "link",
    "linkat",
    "symlink",
    "symlinkat",
    "mknod",
    "mknodat",
    "chmod",
    "fchmodat",
    "fchmodat2",
    "chown",
    "lchown",
    "fchownat",
    "utime",
    "utimes",
    "utimensat",
    "futimesat",
    "truncate",
    "statfs",
    "chdir",
    "fchdir",
    "chroot",
    "getxattr",
    "lgetxattr",
    "setxattr",
    "lsetxattr",
    "listxattr",
    "llistxattr",
    "removexattr",
    "lremovexattr",
    "name_to_handle_at",
    "open_by_handle_at",
    "inotify_add_watch",
    "swapon",
    "swapoff",
    "acct",
    "quotactl",
    "execve",
    "execveat",
    "uselib",
    "socket",
    "socketpair",
    "connect",
    "bind",
    "listen",
    "accept",
    "accept4",
    "mount",
    "umount",
    "umount2",
    "pivot_root",
    "move_mount",
    "open_tree",
    "fsopen",
    "fsmount",
    "fspick",
    "mount_setattr",
    "unshare",
    "setns",
    "ptrace",
    "bpf",
    "perf_event_open",
    "userfaultfd",
    "io_uring_setup",
    "init_module",
    "finit_module",
    "kexec_load",
    "keyctl",
    "add_key",
    "request_key",
];

/// A line of strace's output, an interrupted call joined with its end.
#[derive(Debug)]
struct Event {
    thread: String,
    text: String,
}

/// Reads `strace -f -o` output. `<unfinished ...>` and `<... resumed>` halves are joined at the place of the second.
fn parse(log: &str) -> Vec<Event> {
    let mut open: HashMap<String, String> = HashMap::new();
    let mut events = Vec::new();
    for line in log.lines() {
        let Some((thread, text)) = line.split_once(' ') else { continue };
        let (thread, text) = (thread.to_owned(), text.trim_start());
        if let Some(head) = text.strip_suffix("<unfinished ...>") {
            open.insert(thread, head.trim_end().to_owned());
            continue;
        }
        let mut whole = text.to_owned();
        if let Some(rest) = text.strip_prefix("<... ") {
            let tail = rest.split_once("resumed>").map_or("", |(_, tail)| tail);
            whole = open.remove(&thread).unwrap_or_default() + tail;
        }
        events.push(Event { thread, text: whole });
    }
    events
}

/// The name of the call that a line begins with.
fn call(text: &str) -> Option<&str> {
    let (name, _) = text.split_once('(')?;
    (!name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')).then_some(name)
}

/// The number of the thread or process that a clone made, as strace numbers it.
fn child_of(text: &str) -> Option<String> {
    let name = call(text)?;
    if !["clone", "clone3", "fork", "vfork"].contains(&name) {
        return None;
    }
    // `= 5 /* 1234 in strace's PID NS */`, or `= 1234` when both numbers are one.
    let (_, result) = text.rsplit_once(" = ")?;
    let number = match result.split_once("/* ") {
        Some((_, outer)) => outer.split(' ').next()?,
        None => result.split(' ').next()?,
    };
    number.parse::<u32>().is_ok().then(|| number.to_owned())
}

/// Whether the line is the SIGSYS by which a stub's filter refused call `name`.
fn refuses(text: &str, name: Option<&str>) -> bool {
    text.starts_with("--- SIGSYS")
        && name.is_none_or(|name| text.contains(&format!("si_syscall=__NR_{name},")))
}

#[test]
fn only_the_gofer_opens_files() -> Result<()> {
    let trial = Trial::new("strace")?;
    let log = trial.path().join("strace.log");
    let script = "cat /etc/passwd >/tmp/copy; ls -lR /etc | wc -l; python3 -c 'import socket, subprocess
a, b = socket.socketpair(); s = socket.socket(socket.AF_UNIX); s.bind(\"/tmp/s\"); s.listen()
c = socket.socket(socket.AF_UNIX); c.connect(\"/tmp/s\"); d, _ = s.accept(); c.send(b\"x\"); print(d.recv(1))
print(subprocess.check_output([\"/bin/echo\", \"hi\"]))'; mkdir /tmp/d; rm -r /tmp/d; (exit 3)";
    // Calls of patched text never meet the host's kernel, where strace could see them.
    let bundle = trial.path().join("bundle");
    Bundle::bash(debian()?, script).write(&bundle)?;
    let run = ["run".into(), "--bundle".into(), bundle.into_os_string(), trial.id().into()];
    let invocation = trial.casemate(["--patch=off".into()].into_iter().chain(run));
    let front =
        ["strace", "-f", "--decode-pids=pidns", "-s", "64", "-o", log.to_str().context("a path")?, "--"];
    let out = invocation.under(front).run()?.expect(3)?;
    ensure!(out.out().ends_with("b'x'\nb'hi\\n'\n"), "{out}");

    let text = fs::read_to_string(&log)?;
    let events = parse(&text);
    // Who is who: a process is named by the name that it was started under, and what it makes inherits that, but the
    // children of the Sentry are stubs.
    let mut role: HashMap<&str, &str> = HashMap::new();
    let mut made: HashMap<String, &Event> = HashMap::new();
    for event in &events {
        if let Some(child) = child_of(&event.text) {
            made.insert(child, event);
        }
        if call(&event.text) == Some("execve") || call(&event.text) == Some("execveat") {
            for name in ["casemate-sentry", "casemate-gofer"] {
                if event.text.contains(&format!("[\"{name}\"")) && event.text.ends_with(" = 0") {
                    role.insert(&event.thread, name);
                }
            }
        }
    }
    ensure!(role.len() == 2, "the Sentry and the gofer are not found in the trace: {role:?}");
    let role_of = |thread: &str| -> &str {
        let mut at = thread;
        let mut role_here = None;
        let mut new_process = false;
        for _ in 0..64 {
            if let Some(found) = role.get(at) {
                role_here = Some(*found);
                break;
            }
            let Some(event) = made.get(at) else { break };
            new_process |= !event.text.contains("CLONE_THREAD");
            at = &event.thread;
        }
        match role_here {
            Some("casemate-sentry") if new_process => "stub",
            Some(found) => found,
            // The command, and what it has made before these were named.
            None => "command",
        }
    };
    let (first, last) = (
        events.iter().position(|event| refuses(&event.text, None)).context("no system call was trapped")?,
        events.iter().rposition(|event| refuses(&event.text, None)).unwrap_or(0),
    );
    let trapped = events.iter().filter(|event| refuses(&event.text, None)).count();
    ensure!(trapped > 1000, "only {trapped} system calls were trapped: does the application run elsewhere?");

    let mut next: HashMap<&str, &Event> = HashMap::new();
    let mut wrong = Vec::new();
    let mut gofer_opened = 0;
    let mut seen = HashSet::new();
    // Backwards: what follows a call on its thread says whether it was refused.
    for (index, event) in events.iter().enumerate().rev() {
        let Event { thread, text } = event;
        let follower = next.insert(thread, event);
        let Some(name) = call(text).filter(|name| FORBIDDEN.contains(name)) else { continue };
        if index < first || index > last {
            continue;
        }
        let who = role_of(thread);
        seen.insert(who);
        if who == "casemate-gofer" {
            gofer_opened += usize::from(name.starts_with("open"));
            continue;
        }
        let refused = who == "stub" && follower.is_some_and(|after| refuses(&after.text, Some(name)));
        if !refused {
            wrong.push(format!("{who}, thread {thread}: {text}"));
        }
    }
    wrong.reverse();
    wrong.truncate(20);
    ensure!(wrong.is_empty(), "calls that must not reach the host:\n{}", wrong.join("\n"));
    ensure!(gofer_opened > 0, "the gofer opened nothing: the trace is not what it should be ({seen:?})");
    trial.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_joined_and_children_found() {
        let log = "10 openat(3, \"a\" <unfinished ...>\n11 getpid() = 1\n10 <... openat resumed>, O_RDONLY) = 4\n\
                   10 clone3({flags=CLONE_VM|CLONE_THREAD, x=1} => {parent_tid=[5]}, 88) = 5 /* 1234 in strace's PID NS */\n\
                   12 clone(child_stack=NULL, flags=SIGCHLD) = 77\n\
                   13 openat(AT_FDCWD, \"/etc\") = 257\n\
                   13 --- SIGSYS {si_signo=SIGSYS, si_code=SYS_SECCOMP, si_call_addr=0x1, si_syscall=__NR_openat, si_arch=X} ---";
        let events = parse(log);
        assert_eq!(events.len(), 6);
        assert_eq!(events[1].text, "openat(3, \"a\", O_RDONLY) = 4");
        assert_eq!(child_of(&events[2].text).as_deref(), Some("1234"));
        assert_eq!(child_of(&events[3].text).as_deref(), Some("77"));
        assert!(refuses(&events[5].text, Some("openat")) && !refuses(&events[5].text, Some("open")));
        assert_eq!(call(&events[4].text), Some("openat"));
        assert_eq!(call(&events[5].text), None);
    }
}
