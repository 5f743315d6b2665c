//! `doctor`: what works on this host, and where something does not, why and what to do.

use std::env;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Result;
use hostsys::credentials;

use super::install::in_path;
use crate::engines::Engine;
use crate::output;

enum Found {
    Good(String),
    /// Works without it.
    Lacks(String),
    Bad(String),
}

use Found::{Bad, Good, Lacks};

/// What is looked at, and how.
type Check = (&'static str, fn() -> Found);

/// Prints the findings; the exit status is 1 if containers cannot run.
pub fn show() -> Result<u8> {
    let checks: [Check; 9] = [
        ("processor", processor),
        ("kernel", kernel),
        ("system call filters", filters),
        ("user namespaces", user_namespaces),
        ("file server's jail", landlock),
        ("control groups", control_groups),
        ("memory", memory),
        ("virtual machines", kvm),
        ("a sandbox", sandbox),
    ];
    let mut bad = false;
    let mut line = |name: &str, found: &Found| {
        let (mark, text) = match found {
            Good(text) => ("ok  ", text),
            Lacks(text) => ("note", text),
            Bad(text) => {
                bad = true;
                ("BAD ", text)
            }
        };
        output::print(&format!("{mark}  {name}: {text}\n"));
    };
    for (name, check) in checks {
        line(name, &check());
    }
    for engine in Engine::ALL {
        if let Some(program) = in_path(engine.program()) {
            line(engine.name(), &configured(engine, &program));
        }
    }
    Ok(u8::from(bad))
}

fn text(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn processor() -> Found {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    match env::consts::ARCH {
        "x86_64" => Good(format!("x86-64, {cpus} CPUs")),
        other => Bad(format!("{other}; only x86-64 is supported")),
    }
}

fn kernel() -> Found {
    let release = text("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(['.', '-']).filter_map(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= (5, 15) {
        Good(format!("Linux {release}"))
    } else {
        Bad(format!("Linux {release}; 5.15 or newer is needed"))
    }
}

fn filters() -> Found {
    let actions = text("/proc/sys/kernel/seccomp/actions_avail").unwrap_or_default();
    let missing: Vec<_> = ["trap", "user_notif", "errno", "allow"]
        .into_iter()
        .filter(|a| !actions.split(' ').any(|it| it == *a))
        .collect();
    if missing.is_empty() {
        Good("seccomp with user notification".to_owned())
    } else {
        Bad(format!(
            "the kernel lacks the seccomp actions {}; CONFIG_SECCOMP_FILTER is needed",
            missing.join(", ")
        ))
    }
}

fn user_namespaces() -> Found {
    let root = credentials::effective_uid() == 0;
    if text("/proc/sys/user/max_user_namespaces").as_deref() == Some("0") {
        return Bad("none is allowed; set user.max_user_namespaces above 0 by sysctl".to_owned());
    }
    if root {
        return Good("yes, and this is root".to_owned());
    }
    if text("/proc/sys/kernel/unprivileged_userns_clone").as_deref() == Some("0") {
        return Bad(
            "for root alone; run as root or set kernel.unprivileged_userns_clone to 1 by sysctl".to_owned()
        );
    }
    if text("/proc/sys/kernel/apparmor_restrict_unprivileged_userns").as_deref() == Some("1") {
        return Bad(
            "AppArmor keeps them from users; run as root or set kernel.apparmor_restrict_unprivileged_userns to 0"
                .to_owned(),
        );
    }
    Good("for everybody".to_owned())
}

fn landlock() -> Found {
    match text("/sys/kernel/security/lsm") {
        Some(list) if list.split(',').any(|name| name == "landlock") => Good("Landlock".to_owned()),
        Some(_) => Lacks("no Landlock (boot with lsm=landlock,...); namespaces confine it alone".to_owned()),
        None => {
            Lacks("whether there is Landlock cannot be read (/sys/kernel/security is not mounted)".to_owned())
        }
    }
}

fn control_groups() -> Found {
    let root = credentials::effective_uid() == 0;
    let (kind, controllers) = if let Some(controllers) = text("/sys/fs/cgroup/cgroup.controllers") {
        ("version 2", controllers)
    } else {
        let entries = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
        let mut all: Vec<_> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        all.sort_unstable();
        ("version 1", all.join(" "))
    };
    if controllers.is_empty() {
        return Lacks("none mounted at /sys/fs/cgroup: no limit of a container can be held".to_owned());
    }
    let missing: Vec<_> = ["memory", "cpu", "pids"]
        .into_iter()
        .filter(|name| !controllers.split([' ', ',']).any(|it| it == *name))
        .collect();
    if !missing.is_empty() {
        return Lacks(format!("{kind}, without {}: such limits cannot be held", missing.join(", ")));
    }
    if !root {
        return Lacks(format!("{kind}; limits are held for root alone"));
    }
    Good(format!("{kind} with {controllers}"))
}

fn memory() -> Found {
    let info = text("/proc/meminfo").unwrap_or_default();
    let available =
        info.lines().find_map(|line| line.strip_prefix("MemAvailable:")?.trim().strip_suffix(" kB"));
    match available.and_then(|kib| kib.parse::<u64>().ok()) {
        Some(kib) if kib < 256 * 1024 => Lacks(format!("{} MiB available, which is little", kib / 1024)),
        Some(kib) => Good(format!("{} MiB available", kib / 1024)),
        None => Lacks("how much is available cannot be read".to_owned()),
    }
}

fn kvm() -> Found {
    if Path::new("/dev/kvm").exists() {
        Good("/dev/kvm is there; not used yet".to_owned())
    } else {
        Lacks("no /dev/kvm; not needed".to_owned())
    }
}

/// Runs one, as a user would.
fn sandbox() -> Found {
    const PATIENCE: Duration = Duration::from_secs(20);
    let Ok(program) = env::current_exe() else {
        return Bad("the path of this program cannot be found".to_owned());
    };
    let start = Instant::now();
    let command = Command::new(program)
        .args(["do", "--", "/bin/sh", "-c", "exit 42"])
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match command {
        Ok(child) => child,
        Err(error) => return Bad(format!("casemate cannot be started: {error}")),
    };
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.code() == Some(42) => {
                return Good(format!("started and ended in {} ms", start.elapsed().as_millis()));
            }
            Ok(Some(status)) => {
                let mut words = String::new();
                if let Some(mut stderr) = child.stderr.take() {
                    let _ = std::io::Read::read_to_string(&mut stderr, &mut words);
                }
                return Bad(format!("{status}, not 42: {}", words.trim().replace('\n', "; ")));
            }
            Ok(None) if start.elapsed() < PATIENCE => std::thread::sleep(Duration::from_millis(2)),
            Ok(None) => {
                let _ = child.kill();
                let _ = child.wait();
                return Bad(format!("it did not end within {} s", PATIENCE.as_secs()));
            }
            Err(error) => return Bad(format!("it cannot be waited for: {error}")),
        }
    }
}

fn configured(engine: Engine, program: &Path) -> Found {
    let (name, file) = (engine.name(), engine.file());
    let there = fs::read_to_string(file).is_ok_and(|text| text.contains("casemate"));
    if there {
        Good(format!("{} is there and {} names casemate", program.display(), file.display()))
    } else {
        Lacks(format!(
            "{} is there and does not know casemate; `casemate install --{name}` tells it",
            program.display()
        ))
    }
}
