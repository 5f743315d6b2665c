//! Statistics of a container's control group, in the messages of either version (`containerd/cgroups`).

use std::collections::BTreeMap;

use prost::Message;
use runtime::Group;

use crate::messages::Any;

#[derive(Clone, PartialEq, Eq, Message)]
struct Pids {
    #[prost(uint64, tag = "1")]
    current: u64,
    #[prost(uint64, tag = "2")]
    limit: u64,
}

mod v1 {
    use prost::Message;

    #[derive(Clone, PartialEq, Eq, Message)]
    pub struct Usage {
        #[prost(uint64, tag = "1")]
        pub total: u64,
        #[prost(uint64, tag = "2")]
        pub kernel: u64,
        #[prost(uint64, tag = "3")]
        pub user: u64,
        #[prost(uint64, repeated, tag = "4")]
        pub per_cpu: Vec<u64>,
    }

    #[derive(Clone, PartialEq, Eq, Message)]
    pub struct Throttle {
        #[prost(uint64, tag = "1")]
        pub periods: u64,
        #[prost(uint64, tag = "2")]
        pub throttled_periods: u64,
        #[prost(uint64, tag = "3")]
        pub throttled_time: u64,
    }

    #[derive(Clone, PartialEq, Eq, Message)]
    pub struct Cpu {
        #[prost(message, optional, tag = "1")]
        pub usage: Option<Usage>,
        #[prost(message, optional, tag = "2")]
        pub throttling: Option<Throttle>,
    }

    #[derive(Clone, PartialEq, Eq, Message)]
    pub struct Entry {
        #[prost(uint64, tag = "1")]
        pub limit: u64,
        #[prost(uint64, tag = "2")]
        pub usage: u64,
        #[prost(uint64, tag = "3")]
        pub max: u64,
        #[prost(uint64, tag = "4")]
        pub failcnt: u64,
    }

    #[derive(Clone, PartialEq, Eq, Message)]
    pub struct Memory {
        #[prost(uint64, tag = "1")]
        pub cache: u64,
        #[prost(uint64, tag = "2")]
        pub rss: u64,
        #[prost(uint64, tag = "4")]
        pub mapped_file: u64,
        #[prost(uint64, tag = "9")]
        pub pg_fault: u64,
        #[prost(uint64, tag = "10")]
        pub pg_maj_fault: u64,
        #[prost(uint64, tag = "11")]
        pub inactive_anon: u64,
        #[prost(uint64, tag = "12")]
        pub active_anon: u64,
        #[prost(uint64, tag = "13")]
        pub inactive_file: u64,
        #[prost(uint64, tag = "14")]
        pub active_file: u64,
        #[prost(uint64, tag = "18")]
        pub total_cache: u64,
        #[prost(uint64, tag = "19")]
        pub total_rss: u64,
        #[prost(uint64, tag = "30")]
        pub total_inactive_file: u64,
        #[prost(uint64, tag = "31")]
        pub total_active_file: u64,
        #[prost(message, optional, tag = "33")]
        pub usage: Option<Entry>,
        #[prost(message, optional, tag = "34")]
        pub swap: Option<Entry>,
        #[prost(message, optional, tag = "35")]
        pub kernel: Option<Entry>,
    }

    #[derive(Clone, PartialEq, Eq, Message)]
    pub struct OomControl {
        #[prost(uint64, tag = "1")]
        pub oom_kill_disable: u64,
        #[prost(uint64, tag = "2")]
        pub under_oom: u64,
        #[prost(uint64, tag = "3")]
        pub oom_kill: u64,
    }

    #[derive(Clone, PartialEq, Eq, Message)]
    pub struct Metrics {
        #[prost(message, optional, tag = "2")]
        pub pids: Option<super::Pids>,
        #[prost(message, optional, tag = "3")]
        pub cpu: Option<Cpu>,
        #[prost(message, optional, tag = "4")]
        pub memory: Option<Memory>,
        #[prost(message, optional, tag = "9")]
        pub oom_control: Option<OomControl>,
    }
}

mod v2 {
    use prost::Message;

    #[derive(Clone, PartialEq, Eq, Message)]
    pub struct Cpu {
        #[prost(uint64, tag = "1")]
        pub usage_usec: u64,
        #[prost(uint64, tag = "2")]
        pub user_usec: u64,
        #[prost(uint64, tag = "3")]
        pub system_usec: u64,
        #[prost(uint64, tag = "4")]
        pub nr_periods: u64,
        #[prost(uint64, tag = "5")]
        pub nr_throttled: u64,
        #[prost(uint64, tag = "6")]
        pub throttled_usec: u64,
    }

    #[derive(Clone, PartialEq, Eq, Message)]
    pub struct Memory {
        #[prost(uint64, tag = "1")]
        pub anon: u64,
        #[prost(uint64, tag = "2")]
        pub file: u64,
        #[prost(uint64, tag = "11")]
        pub inactive_anon: u64,
        #[prost(uint64, tag = "12")]
        pub active_anon: u64,
        #[prost(uint64, tag = "13")]
        pub inactive_file: u64,
        #[prost(uint64, tag = "14")]
        pub active_file: u64,
        #[prost(uint64, tag = "18")]
        pub pgfault: u64,
        #[prost(uint64, tag = "19")]
        pub pgmajfault: u64,
        #[prost(uint64, tag = "32")]
        pub usage: u64,
        #[prost(uint64, tag = "33")]
        pub usage_limit: u64,
        #[prost(uint64, tag = "34")]
        pub swap_usage: u64,
        #[prost(uint64, tag = "35")]
        pub swap_limit: u64,
        #[prost(uint64, tag = "36")]
        pub max_usage: u64,
    }

    #[derive(Clone, PartialEq, Eq, Message)]
    pub struct MemoryEvents {
        #[prost(uint64, tag = "1")]
        pub low: u64,
        #[prost(uint64, tag = "2")]
        pub high: u64,
        #[prost(uint64, tag = "3")]
        pub max: u64,
        #[prost(uint64, tag = "4")]
        pub oom: u64,
        #[prost(uint64, tag = "5")]
        pub oom_kill: u64,
    }

    #[derive(Clone, PartialEq, Eq, Message)]
    pub struct Metrics {
        #[prost(message, optional, tag = "1")]
        pub pids: Option<super::Pids>,
        #[prost(message, optional, tag = "2")]
        pub cpu: Option<Cpu>,
        #[prost(message, optional, tag = "4")]
        pub memory: Option<Memory>,
        #[prost(message, optional, tag = "8")]
        pub memory_events: Option<MemoryEvents>,
    }
}

/// A file of one number; "max" stands for no limit.
fn number(group: &Group, controller: &str, file: &str) -> u64 {
    let text = group.read(controller, file).unwrap_or_default();
    if text.trim() == "max" { u64::MAX } else { text.trim().parse().unwrap_or(0) }
}

/// A file whose lines are a name and a number.
struct Table(BTreeMap<String, u64>);

impl Table {
    fn read(group: &Group, controller: &str, file: &str) -> Self {
        let text = group.read(controller, file).unwrap_or_default();
        let pair = |line: &str| {
            let (name, value) = line.split_once(' ')?;
            Some((name.to_owned(), value.trim().parse().ok()?))
        };
        Self(text.lines().filter_map(pair).collect())
    }

    fn get(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }
}

/// How many processes the host has killed in the group for want of memory.
pub fn oom_kills(group: &Group) -> u64 {
    let file = if group.is_v2() { "memory.events" } else { "memory.oom_control" };
    Table::read(group, "memory", file).get("oom_kill")
}

/// The group's statistics as containerd takes them.
pub fn of(group: &Group) -> Any {
    if group.is_v2() {
        Any::of("io.containerd.cgroups.v2.Metrics", &of_v2(group))
    } else {
        Any::of("io.containerd.cgroups.v1.Metrics", &of_v1(group))
    }
}

/// The statistics of a container that shares its sandbox' group with others: the sums over its processes.
pub fn of_sums(group: &Group, cpu_ms: u64, resident: u64, nr: u64) -> Any {
    let pids = Some(Pids { current: nr, limit: 0 });
    if group.is_v2() {
        let metrics = v2::Metrics {
            pids,
            cpu: Some(v2::Cpu { usage_usec: cpu_ms.saturating_mul(1000), ..v2::Cpu::default() }),
            memory: Some(v2::Memory { anon: resident, usage: resident, ..v2::Memory::default() }),
            memory_events: Some(v2::MemoryEvents::default()),
        };
        return Any::of("io.containerd.cgroups.v2.Metrics", &metrics);
    }
    let usage = v1::Usage { total: cpu_ms.saturating_mul(1_000_000), ..v1::Usage::default() };
    let metrics = v1::Metrics {
        pids,
        // What is not told apart is the sandbox'.
        cpu: Some(v1::Cpu { usage: Some(usage), throttling: Some(throttle_v1(group)) }),
        memory: Some(v1::Memory {
            rss: resident,
            total_rss: resident,
            usage: Some(v1::Entry { usage: resident, ..v1::Entry::default() }),
            swap: Some(v1::Entry { usage: resident, ..v1::Entry::default() }),
            kernel: Some(v1::Entry::default()),
            ..v1::Memory::default()
        }),
        oom_control: Some(oom_control_v1(group)),
    };
    Any::of("io.containerd.cgroups.v1.Metrics", &metrics)
}

fn throttle_v1(group: &Group) -> v1::Throttle {
    let throttling = Table::read(group, "cpu", "cpu.stat");
    v1::Throttle {
        periods: throttling.get("nr_periods"),
        throttled_periods: throttling.get("nr_throttled"),
        throttled_time: throttling.get("throttled_time"),
    }
}

fn oom_control_v1(group: &Group) -> v1::OomControl {
    let table = Table::read(group, "memory", "memory.oom_control");
    v1::OomControl {
        oom_kill_disable: table.get("oom_kill_disable"),
        under_oom: table.get("under_oom"),
        oom_kill: table.get("oom_kill"),
    }
}

fn pids(group: &Group) -> Option<Pids> {
    let limit = number(group, "pids", "pids.max");
    // No limit is zero in the message.
    Some(Pids {
        current: number(group, "pids", "pids.current"),
        limit: if limit == u64::MAX { 0 } else { limit },
    })
}

fn of_v1(group: &Group) -> v1::Metrics {
    /// Nanoseconds in a tick of `cpuacct.stat`.
    const TICK_NS: u64 = 10_000_000;
    let times = Table::read(group, "cpuacct", "cpuacct.stat");
    let memory = Table::read(group, "memory", "memory.stat");
    let entry = |kind: &str| {
        Some(v1::Entry {
            limit: number(group, "memory", &format!("memory.{kind}limit_in_bytes")),
            usage: number(group, "memory", &format!("memory.{kind}usage_in_bytes")),
            max: number(group, "memory", &format!("memory.{kind}max_usage_in_bytes")),
            failcnt: number(group, "memory", &format!("memory.{kind}failcnt")),
        })
    };
    let per_cpu = group.read("cpuacct", "cpuacct.usage_percpu").unwrap_or_default();
    v1::Metrics {
        pids: pids(group),
        cpu: Some(v1::Cpu {
            usage: Some(v1::Usage {
                total: number(group, "cpuacct", "cpuacct.usage"),
                kernel: times.get("system").saturating_mul(TICK_NS),
                user: times.get("user").saturating_mul(TICK_NS),
                per_cpu: per_cpu.split_whitespace().filter_map(|word| word.parse().ok()).collect(),
            }),
            throttling: Some(throttle_v1(group)),
        }),
        memory: Some(v1::Memory {
            cache: memory.get("cache"),
            rss: memory.get("rss"),
            mapped_file: memory.get("mapped_file"),
            pg_fault: memory.get("pgfault"),
            pg_maj_fault: memory.get("pgmajfault"),
            inactive_anon: memory.get("inactive_anon"),
            active_anon: memory.get("active_anon"),
            inactive_file: memory.get("inactive_file"),
            active_file: memory.get("active_file"),
            total_cache: memory.get("total_cache"),
            total_rss: memory.get("total_rss"),
            total_inactive_file: memory.get("total_inactive_file"),
            total_active_file: memory.get("total_active_file"),
            usage: entry(""),
            swap: entry("memsw."),
            kernel: entry("kmem."),
        }),
        oom_control: Some(oom_control_v1(group)),
    }
}

fn of_v2(group: &Group) -> v2::Metrics {
    let cpu = Table::read(group, "cpu", "cpu.stat");
    let memory = Table::read(group, "memory", "memory.stat");
    let events = Table::read(group, "memory", "memory.events");
    v2::Metrics {
        pids: pids(group),
        cpu: Some(v2::Cpu {
            usage_usec: cpu.get("usage_usec"),
            user_usec: cpu.get("user_usec"),
            system_usec: cpu.get("system_usec"),
            nr_periods: cpu.get("nr_periods"),
            nr_throttled: cpu.get("nr_throttled"),
            throttled_usec: cpu.get("throttled_usec"),
        }),
        memory: Some(v2::Memory {
            anon: memory.get("anon"),
            file: memory.get("file"),
            inactive_anon: memory.get("inactive_anon"),
            active_anon: memory.get("active_anon"),
            inactive_file: memory.get("inactive_file"),
            active_file: memory.get("active_file"),
            pgfault: memory.get("pgfault"),
            pgmajfault: memory.get("pgmajfault"),
            usage: number(group, "memory", "memory.current"),
            usage_limit: number(group, "memory", "memory.max"),
            swap_usage: number(group, "memory", "memory.swap.current"),
            swap_limit: number(group, "memory", "memory.swap.max"),
            max_usage: number(group, "memory", "memory.peak"),
        }),
        memory_events: Some(v2::MemoryEvents {
            low: events.get("low"),
            high: events.get("high"),
            max: events.get("max"),
            oom: events.get("oom"),
            oom_kill: events.get("oom_kill"),
        }),
    }
}
