//! `events`: statistics of a container's control group, one JSON object a line, and its out-of-memory events.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use runtime::{Group, StateRoot, Status};
use serde_json::{Map, Value, json};

use crate::args::Events;
use crate::output;

pub fn show(events: &Events, root: &StateRoot) -> Result<()> {
    let interval = match events.interval.strip_prefix('-') {
        // Go's durations have a sign; none below zero is of use.
        Some(negative) if duration(negative).is_ok() => Duration::ZERO,
        _ => duration(&events.interval).map_err(|_| {
            anyhow::anyhow!("invalid value {:?} for flag -interval: parse error", events.interval)
        })?,
    };
    if interval.is_zero() {
        bail!("duration interval must be greater than 0");
    }
    let state = root.load(&events.id)?;
    if state.status() == Status::Stopped {
        bail!("container with id {} is not running", events.id);
    }
    let mut kills = oom_kills(&state.cgroup);
    loop {
        let data = stats(&state.cgroup);
        line("stats", &events.id, &data)?;
        if events.stats {
            return Ok(());
        }
        thread::sleep(interval);
        let now = oom_kills(&state.cgroup);
        if now > kills {
            line("oom", &events.id, &Value::Null)?;
        }
        kills = now;
        if state.status() == Status::Stopped {
            return Ok(());
        }
    }
}

fn line(kind: &str, id: &str, data: &Value) -> Result<()> {
    let mut event = Map::new();
    event.insert("type".into(), kind.into());
    event.insert("id".into(), id.into());
    if !data.is_null() {
        event.insert("data".into(), data.clone());
    }
    output::print(&format!("{}\n", serde_json::to_string(&event)?));
    Ok(())
}

/// A duration as Go writes it: numbers with units, such as `1m30s` or `500ms`.
fn duration(text: &str) -> Result<Duration> {
    let invalid = || format!("invalid duration {text:?}");
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').with_context(invalid)?;
        let (number, after) = rest.split_at(digits);
        let unit_len = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_len);
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" => 1e-6,
            "ns" => 1e-9,
            _ => bail!(invalid()),
        };
        let number: f64 = number.parse().with_context(invalid)?;
        total += Duration::try_from_secs_f64(number * seconds).with_context(invalid)?;
        rest = after;
    }
    Ok(total)
}

fn oom_kills(group: &Group) -> u64 {
    let file = if group.is_v2() { "memory.events" } else { "memory.oom_control" };
    table(group, "memory", file).get("oom_kill").copied().unwrap_or(0)
}

fn number(group: &Group, controller: &str, file: &str) -> u64 {
    let text = group.read(controller, file).unwrap_or_default();
    // "max" stands for no limit, which runc shows as the largest number.
    if text.trim() == "max" { u64::MAX } else { text.trim().parse().unwrap_or(0) }
}

/// Lines of a name and a number.
fn table(group: &Group, controller: &str, file: &str) -> std::collections::BTreeMap<String, u64> {
    let text = group.read(controller, file).unwrap_or_default();
    text.lines()
        .filter_map(|line| {
            let (name, value) = line.split_once(' ')?;
            Some((name.to_owned(), value.trim().parse().ok()?))
        })
        .collect()
}

fn stats(group: &Group) -> Value {
    if group.is_v2() { stats_v2(group) } else { stats_v1(group) }
}

fn stats_v1(group: &Group) -> Value {
    /// Nanoseconds in a tick of `cpuacct.stat`.
    const TICK_NS: u64 = 10_000_000;
    let raw = table(group, "memory", "memory.stat");
    let times = table(group, "cpuacct", "cpuacct.stat");
    let throttling = table(group, "cpu", "cpu.stat");
    let percpu: Vec<u64> = group
        .read("cpuacct", "cpuacct.usage_percpu")
        .unwrap_or_default()
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect();
    let of = |map: &std::collections::BTreeMap<String, u64>, name: &str| map.get(name).copied().unwrap_or(0);
    let memory = |prefix: &str| {
        json!({
            "limit": number(group, "memory", &format!("memory.{prefix}limit_in_bytes")),
            "usage": number(group, "memory", &format!("memory.{prefix}usage_in_bytes")),
            "max": number(group, "memory", &format!("memory.{prefix}max_usage_in_bytes")),
            "failcnt": number(group, "memory", &format!("memory.{prefix}failcnt")),
        })
    };
    json!({
        "cpu": {
            "usage": {
                "total": number(group, "cpuacct", "cpuacct.usage"),
                "percpu": percpu,
                "kernel": of(&times, "system").saturating_mul(TICK_NS),
                "user": of(&times, "user").saturating_mul(TICK_NS),
            },
            "throttling": {
                "periods": of(&throttling, "nr_periods"),
                "throttledPeriods": of(&throttling, "nr_throttled"),
                "throttledTime": of(&throttling, "throttled_time"),
            },
        },
        "cpuset": {},
        "memory": {
            "cache": of(&raw, "cache"),
            "usage": memory(""),
            "swap": memory("memsw."),
            "kernel": memory("kmem."),
            "kernelTCP": memory("kmem.tcp."),
            "raw": raw,
        },
        "pids": { "current": number(group, "pids", "pids.current"), "limit": number(group, "pids", "pids.max") },
        "blkio": {},
        "hugetlb": {},
        "intel_rdt": {},
        "network_interfaces": null,
    })
}

fn stats_v2(group: &Group) -> Value {
    let raw = table(group, "memory", "memory.stat");
    let times = table(group, "cpu", "cpu.stat");
    let of = |map: &std::collections::BTreeMap<String, u64>, name: &str| map.get(name).copied().unwrap_or(0);
    let micro = |name: &str| of(&times, name).saturating_mul(1000);
    json!({
        "cpu": {
            "usage": { "total": micro("usage_usec"), "kernel": micro("system_usec"), "user": micro("user_usec") },
            "throttling": {
                "periods": of(&times, "nr_periods"),
                "throttledPeriods": of(&times, "nr_throttled"),
                "throttledTime": micro("throttled_usec"),
            },
        },
        "cpuset": {},
        "memory": {
            "cache": of(&raw, "file"),
            "usage": {
                "limit": number(group, "memory", "memory.max"),
                "usage": number(group, "memory", "memory.current"),
                "max": number(group, "memory", "memory.peak"),
                "failcnt": 0,
            },
            "swap": {
                "limit": number(group, "memory", "memory.swap.max"),
                "usage": number(group, "memory", "memory.swap.current"),
                "failcnt": 0,
            },
            "raw": raw,
        },
        "pids": { "current": number(group, "pids", "pids.current"), "limit": number(group, "pids", "pids.max") },
        "blkio": {},
        "hugetlb": {},
        "intel_rdt": {},
        "network_interfaces": null,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(duration("5s").unwrap(), Duration::from_secs(5));
        assert_eq!(duration("1m30s").unwrap(), Duration::from_secs(90));
        assert_eq!(duration("500ms").unwrap(), Duration::from_millis(500));
        assert!(duration("5").is_err() && duration("x").is_err());
    }
}
