//! The control group of a sandbox, in either version of the host's interface (`cgroups(7)`).
//!
//! Groups are made by systemd where that is asked for and answers, and otherwise directly; either way they are written
//! directly. What cannot be written is left out, and said: a caller without the right to limit anything can still run a
//! container.
//!
//! A sandbox has threads and processes of its own besides those of the container, so the host's limit on their number
//! is wider than the one that was asked for; the exact one is kept by the Sentry.

use std::cell::RefCell;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use oci_spec::runtime::LinuxResources;
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

use crate::error::{Context, Result, words};
use crate::log::{Level, Log};
use crate::plan::Limits;
use crate::systemd::{self, Manager, Property, Scope, Unit};

mod settings;

use settings::Setting;
pub(crate) use settings::weight_of;

/// Controllers that are used: for limits, for pausing, and for the statistics that engines read.
const USED: [&str; 7] = ["cpu", "cpuacct", "cpuset", "memory", "pids", "freezer", "blkio"];

/// Controllers of version 2 that are switched on for the group.
const USED_V2: [&str; 5] = ["cpu", "cpuset", "memory", "pids", "io"];

/// A directory that processes are put into.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leaf {
    place: PathBuf,
    /// Where its hierarchy is mounted.
    #[serde(default)]
    mount: PathBuf,
    /// Controllers of a version 1 hierarchy; empty for version 2.
    controllers: Vec<String>,
    #[serde(skip)]
    held: Held,
}

/// The directory, opened by a process that is about to leave the mounts by which it is named. It says nothing more than
/// the name does.
#[derive(Debug, Clone, Default)]
struct Held(Option<Arc<OwnedFd>>);

impl PartialEq for Held {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Held {}

/// What a container's state keeps of its group.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    pub leaves: Vec<Leaf>,
    /// Leaves that were made, and not found. Directories above them may be others' by now, and stay.
    pub made: Vec<PathBuf>,
    /// The unit that the group is of, if systemd made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<Unit>,
}

/// A group that was made for a container. Dropped, it is removed.
#[derive(Debug, Default)]
pub struct ControlGroup {
    group: Group,
    /// A scope has a process from its beginning: it is made when the first one is to be added.
    pending: RefCell<Option<Pending>>,
}

/// A scope that systemd is to make.
#[derive(Debug)]
struct Pending {
    manager: Manager,
    scope: Scope,
    id: String,
    resources: Option<LinuxResources>,
}

struct Hierarchy {
    mount: PathBuf,
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
        match kind {
            "cgroup2" => {
                let controllers =
                    fs::read_to_string(Path::new(mount).join("cgroup.controllers")).unwrap_or_default();
                if controllers.split_whitespace().any(|name| USED_V2.contains(&name)) {
                    found.push(Hierarchy { mount: mount.into(), controllers: Vec::new() });
                }
            }
            "cgroup" => {
                let controllers: Vec<String> =
                    options.split(',').filter(|name| USED.contains(name)).map(str::to_owned).collect();
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
    /// Finds what is to be made for `limits`, and makes nothing yet: [`Self::group`] can be written down before, so that it
    /// is removed whatever happens.
    pub fn plan(id: &str, limits: &Limits, log: &Log) -> Result<Self> {
        let mut planned = Self::default();
        let Some(path) = &limits.path else { return Ok(planned) };
        let mut path = path.clone();
        if let Some(scope) = &limits.scope {
            match Manager::connect() {
                Ok(mut manager) => {
                    // It would be another container's that is stopped with this one.
                    manager
                        .make_room(&scope.unit)
                        .context(|| format!("have systemd start {}", scope.unit))?;
                    path = manager.place(&path);
                    planned.group.unit = Some(manager.unit(scope));
                    let resources = limits.resources.clone();
                    let pending = Pending { manager, scope: scope.clone(), id: id.to_owned(), resources };
                    planned.pending = RefCell::new(Some(pending));
                }
                Err(error) => {
                    let message = format!(
                        "no systemd answers, so {} is made as a directory: {}",
                        scope.unit,
                        words(&error)
                    );
                    log.write(Level::Debug, &message);
                }
            }
        }
        for Hierarchy { mount, controllers } in hierarchies() {
            let place = mount.join(&path);
            if !place.exists() {
                planned.group.made.push(place.clone());
            }
            planned.group.leaves.push(Leaf { place, mount, controllers, held: Held::default() });
        }
        Ok(planned)
    }

    /// Makes the group that was planned, and gives sentences about what could not be had. A scope is made by [`Self::add`].
    pub fn make(&mut self, limits: &Limits) -> Vec<String> {
        if self.pending.borrow().is_some() {
            return Vec::new();
        }
        let mut warnings = Vec::new();
        let planned = std::mem::take(&mut self.group);
        for leaf in planned.leaves {
            match leaf.make(true) {
                Ok(made) => {
                    self.group.made.extend(made.then(|| leaf.place.clone()));
                    self.group.leaves.push(leaf);
                }
                Err(error) => warnings.push(error),
            }
        }
        if let Some(resources) = &limits.resources {
            warnings.extend(self.group.apply_directly(resources));
        }
        warnings
    }

    /// Moves a process, and what it will start, into the group. The first one is what a scope is made with.
    pub fn add(&self, pid: u32) -> Result<Vec<String>> {
        let mut warnings = Vec::new();
        let mut pending = self.pending.borrow_mut();
        if let Some(scope) = pending.as_mut() {
            warnings = self.start_scope(scope, pid)?;
            *pending = None;
        }
        warnings.extend(self.group.add(pid));
        Ok(warnings)
    }

    fn start_scope(&self, pending: &mut Pending, pid: u32) -> Result<Vec<String>> {
        let Pending { manager, scope, id, resources } = pending;
        let limits = resources.as_ref().map(|resources| self.group.properties(resources)).unwrap_or_default();
        let started = manager.start(scope, id, pid, &limits);
        started.context(|| format!("have systemd start {}", scope.unit))?;
        let mut warnings = Vec::new();
        for leaf in &self.group.leaves {
            // In version 2 it is there; in version 1 systemd leaves out hierarchies that it does not use.
            warnings.extend(leaf.make(false).err());
        }
        if let Some(resources) = resources {
            warnings.extend(self.group.apply_directly(resources));
        }
        Ok(warnings)
    }

    pub fn group(&self) -> &Group {
        &self.group
    }

    /// Leaves the group in place.
    pub fn keep(&mut self) {
        self.group = Group::default();
    }
}

/// A new group of version 1 has no processors and no memory nodes, and takes no process (`cpuset(7)`).
fn inherit_cpuset(parent: &Path, place: &Path) -> io::Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if fs::read_to_string(place.join(file))?.trim().is_empty() {
            fs::write(place.join(file), fs::read_to_string(parent.join(file))?.trim())?;
        }
    }
    Ok(())
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        if self.pending.get_mut().is_some() {
            // It was not made: one of this name is another's.
            self.group.unit = None;
        }
        self.group.remove();
    }
}

impl Leaf {
    /// Makes the directory and those above it, and with `enable` switches controllers on for them. Says whether it was made,
    /// and not there before.
    fn make(&self, enable: bool) -> std::result::Result<bool, String> {
        let named = |place: &Path, error: &io::Error| format!("control group {}: {error}", place.display());
        let mut place = self.mount.clone();
        let mut made = false;
        for part in self.place.strip_prefix(&self.mount).unwrap_or(Path::new("")).components() {
            if self.is_v2() && enable {
                for controller in USED_V2 {
                    // Refused for a controller that the group does not have; the write of the limit then says so.
                    let _ = fs::write(place.join("cgroup.subtree_control"), format!("+{controller}"));
                }
            }
            let parent = place.clone();
            place.push(part);
            made = match fs::create_dir(&place) {
                Ok(()) => true,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
                Err(error) => return Err(named(&place, &error)),
            };
            if self.controllers.iter().any(|controller| controller == "cpuset") {
                inherit_cpuset(&parent, &place).map_err(|error| named(&place, &error))?;
            }
        }
        Ok(made)
    }

    fn is_v2(&self) -> bool {
        self.controllers.is_empty()
    }

    fn has(&self, controller: &str) -> bool {
        self.is_v2() || self.controllers.iter().any(|name| name == controller)
    }

    fn read(&self, file: &str) -> String {
        self.open(file).and_then(io::read_to_string).unwrap_or_default()
    }

    fn open(&self, file: &str) -> io::Result<fs::File> {
        match &self.held.0 {
            None => fs::File::open(self.place.join(file)),
            Some(dir) => {
                let flags = OFlags::RDONLY | OFlags::CLOEXEC;
                Ok(rustix::fs::openat(dir, file, flags, Mode::empty())?.into())
            }
        }
    }
}

impl Group {
    /// The limits that systemd has properties for.
    fn properties(&self, resources: &LinuxResources) -> Vec<Property> {
        let mut settings: Vec<(&str, String)> = Vec::new();
        for leaf in &self.leaves {
            settings.extend(leaf.settings(resources));
            if leaf.is_v2() {
                let unified = resources.unified().iter().flatten();
                settings.extend(unified.map(|(file, value)| (file.as_str(), value.clone())));
            }
        }
        systemd::properties(settings.iter().map(|(file, value)| (*file, value.as_str())))
    }

    /// Moves a process into the group, which is there; gives sentences about where it could not be put.
    pub(crate) fn add(&self, pid: u32) -> Vec<String> {
        let put = |leaf: &Leaf| {
            let error = fs::write(leaf.place.join("cgroup.procs"), pid.to_string()).err()?;
            Some(format!("control group {}: {error}", leaf.place.display()))
        };
        self.leaves.iter().filter_map(put).collect()
    }

    /// Changes limits; gives sentences about what could not be changed.
    pub fn apply(&self, resources: &LinuxResources) -> Vec<String> {
        let mut warnings = Vec::new();
        // A systemd that does not answer writes nothing over what is written here.
        if let Some(unit) = &self.unit
            && let Ok(mut manager) = unit.manager()
            && let Err(error) = manager.set(&unit.name, &self.properties(resources))
        {
            warnings.push(format!("have systemd set limits of {}: {error}", unit.name));
        }
        warnings.extend(self.apply_directly(resources));
        warnings
    }

    /// Writes limits; gives sentences about those that could not be written.
    fn apply_directly(&self, resources: &LinuxResources) -> Vec<String> {
        let mut warnings = Vec::new();
        for leaf in &self.leaves {
            let write = |(file, value): &Setting| fs::write(leaf.place.join(file), value);
            // A limit may not pass another one that is still to be written: what failed is tried once more.
            let failed: Vec<Setting> =
                leaf.settings(resources).into_iter().filter(|setting| write(setting).is_err()).collect();
            for setting in failed {
                if let Err(error) = write(&setting) {
                    let (file, value) = setting;
                    warnings
                        .push(format!("control group {}: {file} = {value}: {error}", leaf.place.display()));
                }
            }
            if leaf.is_v2() {
                for (file, value) in resources.unified().iter().flatten() {
                    if let Err(error) = fs::write(leaf.place.join(file), value) {
                        warnings.push(format!(
                            "control group {}: {file} = {value}: {error}",
                            leaf.place.display()
                        ));
                    }
                }
            }
        }
        warnings
    }

    /// The leaf that pauses processes.
    fn freezer(&self) -> Option<&Leaf> {
        self.leaves
            .iter()
            .find(|leaf| leaf.controllers.iter().any(|name| name == "freezer"))
            .or_else(|| self.leaves.iter().find(|leaf| leaf.is_v2()))
    }

    pub fn is_frozen(&self) -> bool {
        self.freezer().is_some_and(|leaf| {
            if leaf.is_v2() {
                leaf.read("cgroup.freeze").trim() == "1"
            } else {
                ["FROZEN", "FREEZING"].contains(&leaf.read("freezer.state").trim())
            }
        })
    }

    /// Stops or continues every process of the group, and waits until the kernel has done it.
    pub fn freeze(&self, freeze: bool) -> io::Result<()> {
        let Some(leaf) = self.freezer() else {
            return Err(io::Error::other("the container has no freezer control group"));
        };
        let (file, value) = match (leaf.is_v2(), freeze) {
            (true, _) => ("cgroup.freeze", if freeze { "1" } else { "0" }),
            (false, true) => ("freezer.state", "FROZEN"),
            (false, false) => ("freezer.state", "THAWED"),
        };
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            fs::write(leaf.place.join(file), value)?;
            let done = if leaf.is_v2() {
                leaf.read("cgroup.events").lines().any(|line| line == format!("frozen {value}"))
            } else {
                leaf.read("freezer.state").trim() == value
            };
            if done {
                return Ok(());
            }
            if Instant::now() >= until {
                if freeze {
                    let _ = self.freeze(false);
                }
                return Err(io::Error::other("the control group does not change its state"));
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Whether the host's out-of-memory killer has killed in this group.
    pub fn out_of_memory(&self) -> bool {
        self.leaves.iter().filter(|leaf| leaf.has("memory")).any(|leaf| {
            ["memory.events", "memory.oom_control"].iter().any(|file| {
                leaf.read(file)
                    .lines()
                    .any(|line| line.strip_prefix("oom_kill ").is_some_and(|count| count.trim() != "0"))
            })
        })
    }

    /// The memory limit and the most that was used, in bytes, as the group says them.
    pub fn memory_peak(&self) -> Option<(String, String)> {
        let leaf = self.leaves.iter().find(|leaf| leaf.has("memory"))?;
        let (limit, peak) = if leaf.is_v2() {
            ("memory.max", "memory.peak")
        } else {
            ("memory.limit_in_bytes", "memory.max_usage_in_bytes")
        };
        let text = |file: &str| Some(leaf.read(file).trim().to_owned()).filter(|text| !text.is_empty());
        Some((text(limit)?, text(peak)?))
    }

    /// A file of the leaf that has `controller`.
    pub fn read(&self, controller: &str, file: &str) -> Option<String> {
        let leaf = self.leaves.iter().find(|leaf| leaf.has(controller))?;
        leaf.open(file).and_then(io::read_to_string).ok()
    }

    /// Opens a file of the leaf that has `controller`, by its name in version 2 or 1.
    pub(crate) fn open(&self, controller: &str, [v2, v1]: [&str; 2], write: bool) -> Option<fs::File> {
        let leaf = self.leaves.iter().find(|leaf| leaf.has(controller))?;
        let path = leaf.place.join(if leaf.is_v2() { v2 } else { v1 });
        fs::File::options().read(true).write(write).open(path).ok()
    }

    /// Keeps the directories open: they can be read whatever becomes of the mounts of this process.
    pub fn hold(&mut self) {
        for leaf in &mut self.leaves {
            leaf.held = Held(fs::File::open(&leaf.place).ok().map(|dir| Arc::new(dir.into())));
        }
    }

    /// Whether the limits are those of version 2.
    pub fn is_v2(&self) -> bool {
        self.leaves.iter().any(Leaf::is_v2)
    }

    /// Kills every process in the directories that were made for the container: nobody else's are there.
    pub fn kill(&self) {
        for place in &self.made {
            if fs::write(place.join("cgroup.kill"), "1").is_ok() {
                continue;
            }
            let members = fs::read_to_string(place.join("cgroup.procs")).unwrap_or_default();
            for pid in members.lines().filter_map(|line| line.parse::<i32>().ok()) {
                let Ok(process) = hostsys::process::pidfd_open(pid) else { continue };
                // Asked again after the number was pinned.
                let now = fs::read_to_string(place.join("cgroup.procs")).unwrap_or_default();
                if now.lines().any(|line| line.parse() == Ok(pid)) {
                    let _ = hostsys::process::pidfd_send_signal(process.as_fd(), libc::SIGKILL);
                }
            }
        }
    }

    /// Ends the unit, and removes the directories that were made. A group stays busy for a moment after its last process has gone.
    pub fn remove(&self) {
        if let Some(unit) = &self.unit
            && let Ok(mut manager) = unit.manager()
        {
            // Left over, it is an empty one that nobody looks at.
            let _ = manager.stop(&unit.name);
        }
        let until = Instant::now() + Duration::from_secs(2);
        for place in &self.made {
            while let Err(error) = fs::remove_dir(place) {
                if error.raw_os_error() != Some(libc::EBUSY) || Instant::now() >= until {
                    break;
                }
                thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

#[cfg(test)]
#[path = "cgroup/tests.rs"]
mod tests;
