//! Control groups that systemd makes: a container's is that of a transient scope (`org.freedesktop.systemd1(5)`,
//! `systemd.scope(5)`, "Control Group APIs and Delegation" of systemd's documentation).
//!
//! systemd is asked over the bus for the scope, for its limits, and for its end; what it has no property for is written
//! directly, which `Delegate=` allows. Where no systemd answers, groups are made directly at the same places.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

mod bus;
mod property;
mod wire;

use bus::{Bus, refused};
pub(crate) use property::given;
pub(crate) use wire::Value;
use wire::{Message, Method, Reader, Writer};

use crate::state;

/// A scope that is to be made, by the rules of `cgroupsPath`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    pub slice: String,
    /// With its ending.
    pub unit: String,
    /// Properties that the configuration gives it, in place of any of ours.
    pub(crate) given: Vec<(String, Value)>,
}

/// What is kept of a scope that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unit {
    pub name: String,
    /// Whether it is one of a user's systemd.
    pub user: bool,
}

pub(crate) type Property = (&'static str, Value);

const SYSTEMD: &str = "org.freedesktop.systemd1";
const OBJECT: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";

/// How long a job of systemd's may take.
const JOB: Duration = Duration::from_secs(30);

/// Properties that an older systemd does not have: without them the limit is still written directly.
const NEWER: [&str; 4] = ["CPUQuotaPeriodUSec", "AllowedCPUs", "AllowedMemoryNodes", "CollectMode"];

/// systemd, on a connection of its own.
#[derive(Debug)]
pub(crate) struct Manager {
    bus: Bus,
    /// Whether it is a user's.
    user: bool,
    /// The group of systemd itself below the mount of the hierarchy.
    root: PathBuf,
}

/// The address of the bus that this caller's systemd is on.
fn address(user: bool) -> io::Result<String> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    if !user {
        let usual = || "unix:path=/run/dbus/system_bus_socket".to_owned();
        return Ok(variable("DBUS_SYSTEM_BUS_ADDRESS").unwrap_or_else(usual));
    }
    let of_dir = || variable("XDG_RUNTIME_DIR").map(|dir| format!("unix:path={dir}/bus"));
    let missing = || io::Error::new(io::ErrorKind::NotFound, "XDG_RUNTIME_DIR does not say where the bus is");
    variable("DBUS_SESSION_BUS_ADDRESS").or_else(of_dir).ok_or_else(missing)
}

impl Manager {
    /// Connects to the systemd of the system, or of the user without rights.
    pub fn connect() -> io::Result<Self> {
        Self::of(state::is_rootless())
    }

    fn of(user: bool) -> io::Result<Self> {
        Self::at(&address(user)?, user)
    }

    fn at(address: &str, user: bool) -> io::Result<Self> {
        let mut manager = Self { bus: Bus::connect(address)?, user, root: PathBuf::new() };
        let interface = "org.freedesktop.DBus.Properties";
        let get = Method { destination: SYSTEMD, path: OBJECT, interface, member: "Get" };
        let mut body = Writer::default();
        body.text(MANAGER).text("ControlGroup");
        let answer = manager.bus.call(&get, "ss", &body)?;
        manager.root = Reader::of(&answer).text_variant()?.into();
        manager.call("Subscribe", "", &Writer::default())?;
        manager.bus.watch(&format!(
            "type='signal',sender='{SYSTEMD}',path='{OBJECT}',interface='{MANAGER}',member='JobRemoved'"
        ))?;
        Ok(manager)
    }

    fn call(&mut self, member: &str, signature: &str, body: &Writer) -> io::Result<Message> {
        let method = Method { destination: SYSTEMD, path: OBJECT, interface: MANAGER, member };
        self.bus.call(&method, signature, body)
    }

    /// Where the group of `scope`, which is `path` below systemd's own, is below the mount.
    pub fn place(&self, path: &Path) -> PathBuf {
        // The system's own is the root of the hierarchy, unless systemd runs in a container.
        self.root.strip_prefix("/").unwrap_or(&self.root).join(path)
    }

    pub fn unit(&self, scope: &Scope) -> Unit {
        Unit { name: scope.unit.clone(), user: self.user }
    }

    /// Fails when there is a unit of this name; one that has failed is no container's any more, and is forgotten.
    pub fn make_room(&mut self, unit: &str) -> io::Result<()> {
        for again in [false, true] {
            let mut body = Writer::default();
            body.text(unit);
            match self.call("GetUnit", "s", &body) {
                Err(error) if refused(&error) == "org.freedesktop.systemd1.NoSuchUnit" => return Ok(()),
                answer => drop(answer?),
            }
            if !again {
                self.reset(unit)?;
            }
        }
        Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is a unit of this name"))
    }

    /// Makes `scope` with the process `pid` in it.
    pub fn start(&mut self, scope: &Scope, id: &str, pid: u32, limits: &[Property]) -> io::Result<()> {
        let flags = ["Delegate", "MemoryAccounting", "CPUAccounting", "TasksAccounting"];
        let mut properties = vec![
            ("Description", Value::Text(format!("casemate container {id}"))),
            ("Slice", Value::Text(scope.slice.clone())),
            ("PIDs", Value::Pids(vec![pid])),
            // It is not to be stopped before the engine has stopped its containers.
            ("DefaultDependencies", Value::Flag(false)),
            // Nobody looks at a failed one.
            ("CollectMode", Value::Text("inactive-or-failed".into())),
        ];
        properties.extend(flags.map(|flag| (flag, Value::Flag(true))));
        properties.extend_from_slice(limits);
        let job = self.start_unit(scope, &properties)?;
        match self.await_job(&job)?.as_str() {
            "done" => Ok(()),
            other => Err(io::Error::other(format!("the job of {} ended as {other:?}", scope.unit))),
        }
    }

    fn start_unit(&mut self, scope: &Scope, properties: &[Property]) -> io::Result<String> {
        without_newer(properties, |properties| {
            let mut body = Writer::default();
            body.text(&scope.unit).text("fail");
            write(&mut body, properties, &scope.given);
            // No units besides.
            body.array(8, |_| {});
            let answer = self.call("StartTransientUnit", "ssa(sv)a(sa(sv))", &body)?;
            Reader::of(&answer).text()
        })
    }

    /// Changes limits of a scope that is there.
    pub fn set(&mut self, unit: &str, properties: &[Property]) -> io::Result<()> {
        without_newer(properties, |properties| {
            let mut body = Writer::default();
            // Until the end of the unit, which is not written down anywhere.
            body.text(unit).flag(true);
            write(&mut body, properties, &[]);
            self.call("SetUnitProperties", "sba(sv)", &body).map(drop)
        })
    }

    /// Ends a scope; one that is not there any more is none to end.
    pub fn stop(&mut self, unit: &str) -> io::Result<()> {
        let mut body = Writer::default();
        body.text(unit).text("replace");
        match self.call("StopUnit", "ss", &body) {
            Err(error) if refused(&error) == "org.freedesktop.systemd1.NoSuchUnit" => return Ok(()),
            answer => {
                let job = Reader::of(&answer?).text()?;
                self.await_job(&job)?;
            }
        }
        self.reset(unit)
    }

    fn reset(&mut self, unit: &str) -> io::Result<()> {
        let mut body = Writer::default();
        body.text(unit);
        match self.call("ResetFailedUnit", "s", &body) {
            Err(error) if refused(&error) == "org.freedesktop.systemd1.NoSuchUnit" => Ok(()),
            answer => answer.map(drop),
        }
    }

    /// Waits for the end of a job, and tells how it ended.
    fn await_job(&mut self, job: &str) -> io::Result<String> {
        let until = Instant::now() + JOB;
        while Instant::now() < until {
            let signal = self.bus.signal()?;
            if signal.member != "JobRemoved" {
                continue;
            }
            // The job's number and path, its unit, its result.
            let mut reader = Reader::of(&signal);
            reader.number()?;
            let which = reader.text()?;
            reader.text()?;
            if which == job {
                return reader.text();
            }
        }
        Err(io::Error::new(io::ErrorKind::TimedOut, format!("job {job} of systemd does not end")))
    }
}

impl Unit {
    /// Connects to the systemd that this unit is one of.
    pub(crate) fn manager(&self) -> io::Result<Manager> {
        Manager::of(self.user)
    }
}

/// Tries once more without what an older systemd does not have.
fn without_newer<T>(
    properties: &[Property],
    mut ask: impl FnMut(&[Property]) -> io::Result<T>,
) -> io::Result<T> {
    match ask(properties) {
        Err(error)
            if ["PropertyReadOnly", "UnknownProperty", "InvalidArgs"]
                .iter()
                .any(|name| refused(&error).rsplit('.').next() == Some(*name)) =>
        {
            let older = properties.iter().filter(|(name, _)| !NEWER.contains(name));
            let older: Vec<Property> = older.cloned().collect();
            if older.len() == properties.len() { Err(error) } else { ask(&older) }
        }
        done => done,
    }
}

fn write(body: &mut Writer, properties: &[Property], given: &[(String, Value)]) {
    // Of two of one name systemd takes the later one, or both where it is a list.
    let own = properties.iter().map(|(name, value)| (*name, value));
    body.array(8, |array| {
        for (name, value) in own.chain(given.iter().map(|(name, value)| (name.as_str(), value))) {
            array.align(8).text(name).variant(value);
        }
    });
}

/// No limit.
const INFINITY: u64 = u64::MAX;

/// The highest processor or memory node that is told.
const MAX_NODE: usize = 8191;

/// The properties for limits that are given as files of a control group, of either version, and what to write to them. Where
/// a file is named twice, the later one counts.
pub(crate) fn properties<'a>(settings: impl IntoIterator<Item = (&'a str, &'a str)>) -> Vec<Property> {
    let mut properties: Vec<Property> = Vec::new();
    let (mut quota, mut period) = (None, None);
    for (file, value) in settings {
        let number = || match value.trim() {
            "max" | "-1" => Some(INFINITY),
            digits => digits.parse().ok(),
        };
        let (name, value) = match file {
            "memory.max" => ("MemoryMax", number().map(Value::Number)),
            "memory.low" => ("MemoryLow", number().map(Value::Number)),
            "memory.min" => ("MemoryMin", number().map(Value::Number)),
            "memory.high" => ("MemoryHigh", number().map(Value::Number)),
            "memory.swap.max" => ("MemorySwapMax", number().map(Value::Number)),
            "memory.limit_in_bytes" => ("MemoryLimit", number().map(Value::Number)),
            "pids.max" => ("TasksMax", number().map(Value::Number)),
            "cpu.weight" => ("CPUWeight", number().map(Value::Number)),
            "cpu.shares" => ("CPUShares", number().map(Value::Number)),
            "cpuset.cpus" => ("AllowedCPUs", mask(value).map(Value::Bytes)),
            "cpuset.mems" => ("AllowedMemoryNodes", mask(value).map(Value::Bytes)),
            "cpu.max" => {
                let mut words = value.split_whitespace();
                quota = words.next().map(|word| word.parse::<u64>().ok());
                period = words.next().and_then(|word| word.parse().ok());
                continue;
            }
            "cpu.cfs_quota_us" => {
                quota = Some(value.parse::<u64>().ok());
                continue;
            }
            "cpu.cfs_period_us" => {
                period = value.parse().ok();
                continue;
            }
            _ => continue,
        };
        let Some(value) = value else { continue };
        properties.retain(|(known, _)| *known != name);
        properties.push((name, value));
    }
    if let Some(quota) = quota {
        properties.push(("CPUQuotaPerSecUSec", Value::Number(per_second(quota, period))));
    }
    if let Some(period) = period {
        properties.push(("CPUQuotaPeriodUSec", Value::Number(period)));
    }
    properties
}

/// Microseconds of a processor in a second. systemd counts in hundredths of a processor: rounded up, so that nobody gets
/// less than was asked for.
fn per_second(quota: Option<u64>, period: Option<u64>) -> u64 {
    const HUNDREDTH: u64 = 10_000;
    let Some(quota) = quota.filter(|quota| *quota > 0) else { return INFINITY };
    let period = period.filter(|period| *period > 0).unwrap_or(100_000);
    quota
        .saturating_mul(1_000_000)
        .checked_div(period)
        .map_or(INFINITY, |each| each.max(1).checked_next_multiple_of(HUNDREDTH).unwrap_or(INFINITY))
}

/// The set bits of a list like `0-3,8`, the lowest first.
fn mask(list: &str) -> Option<Vec<u8>> {
    let mut mask = Vec::new();
    for part in list.trim().split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.parse::<usize>().ok()?, last.parse::<usize>().ok()?);
        if first > last || last > MAX_NODE {
            return None;
        }
        for node in first..=last {
            if mask.len() <= node / 8 {
                mask.resize(node / 8 + 1, 0);
            }
            if let Some(byte) = mask.get_mut(node / 8) {
                *byte |= 1 << (node % 8);
            }
        }
    }
    Some(mask).filter(|mask| !mask.is_empty())
}

#[cfg(test)]
#[path = "systemd/tests.rs"]
mod tests;
