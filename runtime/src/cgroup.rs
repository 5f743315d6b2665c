//! The control group of a sandbox, in either version of the host's interface (`cgroups(7)`).
//!
//! Made only when it is asked for. What cannot be written is left out, and said: a caller without the right to
//! limit anything can still run a container.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::plan::Limits;

/// Directories that were made, outermost first within each hierarchy. Dropped, they are removed.
#[derive(Debug, Default)]
pub struct ControlGroup {
    /// Where the sandbox's processes are put.
    leaves: Vec<PathBuf>,
    made: Vec<PathBuf>,
}

struct Hierarchy {
    mount: PathBuf,
    /// Controllers of a version 1 hierarchy; empty for version 2.
    controllers: Vec<String>,
}

/// The mounted hierarchies that have a controller which is used here.
fn hierarchies() -> Vec<Hierarchy> {
    let Ok(table) = fs::read_to_string("/proc/self/mountinfo") else { return Vec::new() };
    let mut found = Vec::new();
    for line in table.lines() {
        let Some((before, after)) = line.split_once(" - ") else { continue };
        let Some(mount) = before.split(' ').nth(4) else { continue };
        let mut after = after.split(' ');
        let (kind, options) = (after.next().unwrap_or(""), after.nth(1).unwrap_or(""));
        let used = |name: &&str| ["memory", "pids", "cpu"].contains(name);
        match kind {
            "cgroup2" => {
                let controllers =
                    fs::read_to_string(Path::new(mount).join("cgroup.controllers")).unwrap_or_default();
                if controllers.split_whitespace().any(|name| used(&name)) {
                    found.push(Hierarchy { mount: mount.into(), controllers: Vec::new() });
                }
            }
            "cgroup" => {
                let controllers: Vec<String> = options.split(',').filter(used).map(str::to_owned).collect();
                if !controllers.is_empty() {
                    found.push(Hierarchy { mount: mount.into(), controllers });
                }
            }
            _ => {}
        }
    }
    found
}

impl ControlGroup {
    /// Makes the group that `limits` ask for, and gives sentences about what could not be had.
    pub fn create(limits: &Limits) -> (Self, Vec<String>) {
        let mut group = Self::default();
        let mut warnings = Vec::new();
        let Some(path) = &limits.path else { return (group, warnings) };
        for hierarchy in hierarchies() {
            if let Err(error) = group.create_in(&hierarchy, path, limits, &mut warnings) {
                let place = hierarchy.mount.join(path);
                warnings.push(format!("control group {}: {error}", place.display()));
            }
        }
        (group, warnings)
    }

    fn create_in(
        &mut self,
        hierarchy: &Hierarchy,
        path: &Path,
        limits: &Limits,
        warnings: &mut Vec<String>,
    ) -> io::Result<()> {
        let version2 = hierarchy.controllers.is_empty();
        let mut place = hierarchy.mount.clone();
        for part in path.components() {
            if version2 {
                for controller in ["memory", "pids", "cpu"] {
                    // Refused for a controller that the group does not have; the write of the limit then says so.
                    let _ = fs::write(place.join("cgroup.subtree_control"), format!("+{controller}"));
                }
            }
            place.push(part);
            match fs::create_dir(&place) {
                Ok(()) => self.made.push(place.clone()),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        self.leaves.push(place.clone());
        let has = |name: &str| version2 || hierarchy.controllers.iter().any(|controller| controller == name);
        let mut set = |file: &str, value: String| {
            if let Err(error) = fs::write(place.join(file), &value) {
                warnings.push(format!("control group {}: {file} = {value}: {error}", place.display()));
            }
        };
        if let Some(pids) = limits.pids.filter(|_| has("pids")) {
            set("pids.max", pids.to_string());
        }
        if let Some(memory) = limits.memory.filter(|_| has("memory")) {
            set(if version2 { "memory.max" } else { "memory.limit_in_bytes" }, memory.to_string());
        }
        if let (Some(quota), Some(period)) = (limits.cpu_quota, limits.cpu_period)
            && has("cpu")
        {
            if version2 {
                set("cpu.max", format!("{quota} {period}"));
            } else {
                set("cpu.cfs_period_us", period.to_string());
                set("cpu.cfs_quota_us", quota.to_string());
            }
        }
        Ok(())
    }

    /// Moves a process, and what it will start, into the group.
    pub fn add(&self, pid: u32) -> Vec<String> {
        let mut warnings = Vec::new();
        for place in &self.leaves {
            if let Err(error) = fs::write(place.join("cgroup.procs"), pid.to_string()) {
                warnings.push(format!("control group {}: {error}", place.display()));
            }
        }
        warnings
    }

    /// Whether the host's out-of-memory killer has killed in this group.
    pub fn out_of_memory(&self) -> bool {
        self.leaves.iter().any(|place| {
            ["memory.events", "memory.oom_control"].iter().any(|file| {
                let text = fs::read_to_string(place.join(file)).unwrap_or_default();
                text.lines()
                    .any(|line| line.strip_prefix("oom_kill ").is_some_and(|count| count.trim() != "0"))
            })
        })
    }

    /// The directories that were made.
    pub fn made(&self) -> &[PathBuf] {
        &self.made
    }
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        remove(&self.made);
    }
}

/// Removes groups, innermost first. A group stays busy for a moment after its last process has gone.
pub fn remove(made: &[PathBuf]) {
    let until = Instant::now() + Duration::from_secs(2);
    for place in made.iter().rev() {
        while let Err(error) = fs::remove_dir(place) {
            if error.raw_os_error() != Some(libc::EBUSY) || Instant::now() >= until {
                break;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}
