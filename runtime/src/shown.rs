//! What engines find of a container's processes when they enter the mount namespace of its init and read `/proc` there, as
//! `podman top` does.
//!
//! The host has no processes of a container, and so no procfs of them. In the monitor's mount namespace there is a small
//! tmpfs in its place, with the files that `ps` needs. It is filled when somebody opens the directory, who waits for that
//! (`fanotify(7)`): until then it costs nothing.
//!
//! **Threat.** What is written comes from the Sentry: numbers, and text that goes into files of fixed names.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use control_protocol::{Channel, ProcessInfo};
use hostsys::{fanotify, polling};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::mount::MountFlags;

use crate::{session, state};

/// Terminals that have a node, by which readers find their names.
const TERMINALS: u32 = 16;

/// The major number of the nodes in devpts.
const PTS: u32 = 136;

/// Units of times in `/proc/PID/stat`, per second (`USER_HZ`).
const TICKS: u64 = 100;

/// A directory in place of `/proc`.
#[derive(Debug)]
pub(crate) struct Shown {
    /// The state directory of the container, where its Sentry listens.
    state: OwnedFd,
    proc: OwnedFd,
    openings: OwnedFd,
    listed: BTreeSet<i32>,
    /// When the host was started.
    boot: SystemTime,
}

impl Shown {
    /// Puts it into this process's mount namespace, which is its own. It takes the rights of the host's root.
    pub fn new(state: OwnedFd, boot: SystemTime) -> io::Result<Self> {
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        rustix::mount::mount("none", "/dev", "tmpfs", flags, c"size=64k,mode=755")?;
        rustix::fs::mkdir("/dev/pts", Mode::from_raw_mode(0o755))?;
        for number in 0..TERMINALS {
            let device = rustix::fs::makedev(PTS, number);
            let path = format!("/dev/pts/{number}");
            rustix::fs::mknodat(CWD, path, FileType::CharacterDevice, Mode::empty(), device)?;
        }
        rustix::mount::mount("none", "/proc", "tmpfs", flags, c"size=32m,mode=755")?;
        let proc = rustix::fs::open("/proc", OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let since = boot.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        fs::write("/proc/stat", format!("btime {since}\n"))?;
        let openings = fanotify::watch_opens(proc.as_fd())?;
        Ok(Self { state, proc, openings, listed: BTreeSet::new(), boot })
    }

    pub fn interest(&self) -> polling::Interest {
        polling::Interest::new(self.openings.as_fd(), libc::POLLIN)
    }

    /// Brings the directory up to date for those who wait for it, and lets them in.
    pub fn turn(&mut self) {
        while let Ok(Some(opening)) = fanotify::next(&self.openings) {
            // Whoever looks sees what could be had.
            let _ = self.refresh();
            let _ = opening.allow(&self.openings);
        }
    }

    fn refresh(&mut self) -> io::Result<()> {
        let channel = Channel::from_socket(state::connect_at(self.state.as_fd())?);
        let processes = session::processes_on(&channel).map_err(io::Error::other)?;
        let now = SystemTime::now().duration_since(self.boot).unwrap_or_default();
        let mut listed = BTreeSet::new();
        // A tmpfs lists what is newest first.
        for process in processes.iter().rev().filter(|process| process.pid > 0) {
            if self.listed.remove(&process.pid) {
                self.write(process, now)?;
            } else {
                self.add(process, now)?;
            }
            listed.insert(process.pid);
        }
        for gone in std::mem::replace(&mut self.listed, listed) {
            self.remove(gone)?;
        }
        Ok(())
    }

    fn add(&self, process: &ProcessInfo, now: Duration) -> io::Result<()> {
        let dir = process.pid.to_string();
        rustix::fs::mkdirat(&self.proc, &dir, Mode::from_raw_mode(0o755))?;
        rustix::fs::mkdirat(&self.proc, format!("{dir}/ns"), Mode::from_raw_mode(0o755))?;
        rustix::fs::symlinkat("pid:[1]", &self.proc, format!("{dir}/ns/pid"))?;
        self.write(process, now)
    }

    fn write(&self, process: &ProcessInfo, now: Duration) -> io::Result<()> {
        let files =
            [("stat", stat(process, now)), ("status", status(process)), ("cmdline", cmdline(process))];
        for (name, text) in files {
            let path = format!("{}/{name}", process.pid);
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
            let file = rustix::fs::openat(&self.proc, path, flags, Mode::from_raw_mode(0o444))?;
            File::from(file).write_all(text.as_bytes())?;
        }
        Ok(())
    }

    fn remove(&self, pid: i32) -> io::Result<()> {
        for name in ["stat", "status", "cmdline", "ns/pid"] {
            rustix::fs::unlinkat(&self.proc, format!("{pid}/{name}"), AtFlags::empty())?;
        }
        rustix::fs::unlinkat(&self.proc, format!("{pid}/ns"), AtFlags::REMOVEDIR)?;
        Ok(rustix::fs::unlinkat(&self.proc, pid.to_string(), AtFlags::REMOVEDIR)?)
    }
}

/// When the host was started, by its procfs.
pub(crate) fn boot_time() -> Option<SystemTime> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    let seconds = text.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    Some(UNIX_EPOCH + Duration::from_secs(seconds))
}

/// The name of the program, at most 15 bytes of it.
fn comm(process: &ProcessInfo) -> String {
    let first = process.command.split(' ').next().unwrap_or_default();
    let name = first.rsplit('/').next().unwrap_or_default();
    let plain = name.trim_start_matches('[').trim_end_matches(']');
    // What a terminal's title or a parser could mistake does not get in.
    plain.chars().filter(char::is_ascii_graphic).filter(|c| !"()".contains(*c)).take(15).collect()
}

fn cmdline(process: &ProcessInfo) -> String {
    process.command.replace(' ', "\0") + "\0"
}

/// `proc_pid_stat(5)`; what is not known is 0.
fn stat(process: &ProcessInfo, now: Duration) -> String {
    let ProcessInfo { pid, ppid, resident, .. } = process;
    let terminal = process.terminal.map_or(0, |number| PTS << 8 | number & 0xff | (number & 0xfff00) << 12);
    let ticks = |milliseconds: u64| milliseconds.saturating_mul(TICKS) / 1000;
    let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
    let (used, started) = (ticks(process.cpu_ms), ticks(now.saturating_sub(process.age_ms)));
    let mut text = format!("{pid} ({}) S {ppid} {pid} {pid} {terminal} -1 0 0 0 0 0 ", comm(process));
    let _ = write!(text, "{used} 0 0 0 20 0 1 0 {started} {resident} {}", resident / 4096);
    text.push_str(&" 0".repeat(28));
    text.push('\n');
    text
}

/// `proc_pid_status(5)`, as far as it is known.
fn status(process: &ProcessInfo) -> String {
    let ProcessInfo { pid, ppid, uid, gid, resident, .. } = process;
    let four = |id: &u32| format!("{id}\t{id}\t{id}\t{id}");
    let kib = resident / 1024;
    format!(
        "Name:\t{}\nState:\tS (sleeping)\nTgid:\t{pid}\nPid:\t{pid}\nPPid:\t{ppid}\nUid:\t{}\nGid:\t{}\n\
         Groups:\t{gid}\nNStgid:\t{pid}\nNSpid:\t{pid}\nVmSize:\t{kib} kB\nVmRSS:\t{kib} kB\n",
        comm(process),
        four(uid),
        four(gid),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(command: &str) -> ProcessInfo {
        ProcessInfo {
            pid: 7,
            ppid: 1,
            uid: 1000,
            gid: 1001,
            age_ms: 60_000,
            cpu_ms: 2500,
            resident: 8192,
            terminal: Some(3),
            command: command.into(),
        }
    }

    #[test]
    fn files_of_a_process() {
        let sleep = process("/bin/sleep 10");
        let text = stat(&sleep, Duration::from_secs(100));
        let fields: Vec<&str> = text.trim_end().split(' ').collect();
        assert_eq!(fields.len(), 52);
        let shown = [0, 1, 2, 3, 6, 13, 21, 22, 23].map(|at| fields[at]);
        assert_eq!(shown, ["7", "(sleep)", "S", "1", "34819", "250", "4000", "8192", "2"]);
        assert!(status(&sleep).contains("Uid:\t1000\t1000\t1000\t1000\nGid:\t1001"));
        assert_eq!(cmdline(&sleep), "/bin/sleep\x0010\x00");
    }

    #[test]
    fn a_name_breaks_no_parser() {
        assert_eq!(comm(&process("/x/a) R 1 (b")), "a");
        assert_eq!(comm(&process("[kworker/0]")), "0");
        assert_eq!(comm(&process("a\u{1b}b-0123456789abcdef")), "ab-0123456789ab");
        assert_eq!(comm(&process("")), "");
    }
}
