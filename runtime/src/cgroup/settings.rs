//! Limits of a configuration as the files of a control group, in either version of the interface.

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources, LinuxThrottleDevice};

use super::Leaf;

/// Host tasks that a sandbox may have beyond two for each of the container's.
const OWN_TASKS: u64 = 128;

/// A file of a group and what to write into it.
pub(super) type Setting = (&'static str, String);

/// "max" where there is no limit.
fn or_max(value: i64) -> String {
    if value < 0 { "max".to_owned() } else { value.to_string() }
}

/// Zero is what engines send for "unset".
fn set(value: Option<i64>) -> Option<i64> {
    value.filter(|value| *value != 0)
}

impl Leaf {
    /// What to write for `resources`, in the order in which it is to be written.
    pub(super) fn settings(&self, resources: &LinuxResources) -> Vec<Setting> {
        let mut settings = Vec::new();
        if let Some(pids) = resources.pids().as_ref().filter(|_| self.has("pids")) {
            let limit = match u64::try_from(pids.limit()) {
                Ok(limit) => limit.saturating_mul(2).saturating_add(OWN_TASKS).to_string(),
                Err(_) => "max".to_owned(),
            };
            settings.push(("pids.max", limit));
        }
        if let Some(memory) = resources.memory().as_ref().filter(|_| self.has("memory")) {
            settings.extend(if self.is_v2() { memory_v2(memory) } else { memory_v1(memory) });
        }
        if let Some(cpu) = resources.cpu() {
            if self.has("cpu") {
                settings.extend(if self.is_v2() { cpu_v2(cpu) } else { cpu_v1(cpu) });
            }
            let named = |list: &Option<String>| list.clone().filter(|list| !list.trim().is_empty());
            if self.has("cpuset") {
                settings.extend(named(cpu.cpus()).map(|cpus| ("cpuset.cpus", cpus)));
                settings.extend(named(cpu.mems()).map(|mems| ("cpuset.mems", mems)));
            }
        }
        if let Some(block) = resources.block_io().as_ref().filter(|_| self.has("blkio")) {
            settings.extend(block_io(block, self.is_v2()));
        }
        settings
    }
}

fn memory_v1(memory: &LinuxMemory) -> Vec<Setting> {
    let mut settings = Vec::new();
    settings.extend(set(memory.limit()).map(|v| ("memory.limit_in_bytes", v.to_string())));
    settings.extend(set(memory.swap()).map(|v| ("memory.memsw.limit_in_bytes", v.to_string())));
    settings.extend(set(memory.reservation()).map(|v| ("memory.soft_limit_in_bytes", v.to_string())));
    settings.extend(memory.swappiness().map(|v| ("memory.swappiness", v.to_string())));
    if memory.disable_oom_killer() == Some(true) {
        settings.push(("memory.oom_control", "1".to_owned()));
    }
    settings
}

fn memory_v2(memory: &LinuxMemory) -> Vec<Setting> {
    let mut settings = Vec::new();
    settings.extend(set(memory.limit()).map(|v| ("memory.max", or_max(v))));
    settings.extend(set(memory.reservation()).map(|v| ("memory.low", or_max(v))));
    if let Some(swap) = set(memory.swap()) {
        // The caller's value holds both kinds of memory.
        let limit = set(memory.limit()).unwrap_or(0);
        let swap = if swap < 0 { swap } else { swap.saturating_sub(limit.max(0)).max(0) };
        settings.push(("memory.swap.max", or_max(swap)));
    }
    settings
}

fn cpu_v1(cpu: &LinuxCpu) -> Vec<Setting> {
    let mut settings = Vec::new();
    settings.extend(positive(cpu.shares()).map(|v| ("cpu.shares", v.to_string())));
    settings.extend(positive(cpu.period()).map(|v| ("cpu.cfs_period_us", v.to_string())));
    settings.extend(set(cpu.quota()).map(|v| ("cpu.cfs_quota_us", v.to_string())));
    // No more than the quota: after it.
    settings.extend(cpu.burst().map(|v| ("cpu.cfs_burst_us", v.to_string())));
    settings.extend(positive(cpu.realtime_period()).map(|v| ("cpu.rt_period_us", v.to_string())));
    settings.extend(set(cpu.realtime_runtime()).map(|v| ("cpu.rt_runtime_us", v.to_string())));
    settings.extend(cpu.idle().map(|v| ("cpu.idle", v.to_string())));
    settings
}

fn cpu_v2(cpu: &LinuxCpu) -> Vec<Setting> {
    let mut settings = Vec::new();
    let (quota, period) = (set(cpu.quota()), positive(cpu.period()));
    settings.extend(positive(cpu.shares()).map(|shares| ("cpu.weight", weight_of(shares).to_string())));
    if quota.is_some() || period.is_some() {
        let quota = or_max(quota.unwrap_or(-1));
        settings.push(("cpu.max", format!("{quota} {}", period.unwrap_or(100_000))));
    }
    settings.extend(cpu.burst().map(|v| ("cpu.max.burst", v.to_string())));
    settings.extend(cpu.idle().map(|v| ("cpu.idle", v.to_string())));
    settings
}

fn positive(value: Option<u64>) -> Option<u64> {
    value.filter(|value| *value != 0)
}

fn block_io(block: &LinuxBlockIo, v2: bool) -> Vec<Setting> {
    let mut settings = Vec::new();
    if let Some(weight) = block.weight().filter(|weight| *weight != 0) {
        settings.push((if v2 { "io.bfq.weight" } else { "blkio.bfq.weight" }, weight.to_string()));
    }
    let lists = [
        (block.throttle_read_bps_device(), "blkio.throttle.read_bps_device", "rbps"),
        (block.throttle_write_bps_device(), "blkio.throttle.write_bps_device", "wbps"),
        (block.throttle_read_iops_device(), "blkio.throttle.read_iops_device", "riops"),
        (block.throttle_write_iops_device(), "blkio.throttle.write_iops_device", "wiops"),
    ];
    for (list, file, key) in lists {
        for device in list.iter().flatten() {
            let (major, minor, rate) = (LinuxThrottleDevice::major(device), device.minor(), device.rate());
            settings.push(if v2 {
                // Zero takes a limit away.
                let rate = if rate == 0 { "max".to_owned() } else { rate.to_string() };
                ("io.max", format!("{major}:{minor} {key}={rate}"))
            } else {
                (file, format!("{major}:{minor} {rate}"))
            });
        }
    }
    settings
}

/// Shares of version 1 (2 to 262144, usually 1024) as a weight of version 2 (1 to 10000, usually 100): the curve through
/// these three pairs that runc and crun use.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "both ends are cut to their ranges before"
)]
pub(crate) fn weight_of(shares: u64) -> u64 {
    match shares {
        ..=2 => 1,
        262_144.. => 10_000,
        _ => {
            let log = (shares as f64).log2();
            10_f64.powf((log * log + 125.0 * log) / 612.0 - 7.0 / 34.0).ceil() as u64
        }
    }
}
