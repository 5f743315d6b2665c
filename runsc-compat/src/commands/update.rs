//! `update`: other limits for a container that is there.

use std::io::{self, Read};
use std::path::Path;

use anyhow::{Context, Result};
use runtime::StateRoot;
use serde_json::{Map, Value, json};

use crate::args::Update;

/// The longest description of limits that is read, in bytes.
const MAX_RESOURCES: u64 = 1 << 20;

pub fn run(update: &Update, root: &StateRoot) -> Result<()> {
    root.load(&update.id)?;
    let resources = match &update.resources {
        Some(path) if path == Path::new("-") => read(&mut io::stdin().lock())?,
        Some(path) => {
            let mut file = super::open(path)?;
            read(&mut file)?
        }
        None => serde_json::to_vec(&of_flags(update)?)?,
    };
    runtime::update(root, &update.id, &resources)?;
    Ok(())
}

fn read(from: &mut dyn Read) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    from.take(MAX_RESOURCES).read_to_end(&mut text).context("read the limits")?;
    Ok(text)
}

fn of_flags(update: &Update) -> Result<Value> {
    let memory = [
        ("limit", &update.memory),
        ("reservation", &update.memory_reservation),
        ("swap", &update.memory_swap),
    ];
    let mut of_memory = Map::new();
    for (name, given) in memory {
        if let Some(given) = given {
            let flag = match name {
                "limit" => "memory".to_owned(),
                other => format!("memory-{other}"),
            };
            let bytes = bytes(given).with_context(|| format!("invalid value for {flag}"))?;
            of_memory.insert(name.to_owned(), json!(bytes));
        }
    }
    let of_cpu = [
        ("period", update.cpu_period.map(Value::from)),
        ("quota", update.cpu_quota.map(Value::from)),
        ("burst", update.cpu_burst.map(Value::from)),
        ("shares", update.cpu_share.map(Value::from)),
        ("idle", update.cpu_idle.map(Value::from)),
        ("cpus", update.cpuset_cpus.clone().map(Value::from)),
        ("mems", update.cpuset_mems.clone().map(Value::from)),
    ];
    let of_cpu: Map<String, Value> =
        of_cpu.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect();
    let mut resources = Map::new();
    resources.insert("memory".into(), of_memory.into());
    resources.insert("cpu".into(), of_cpu.into());
    if let Some(limit) = update.pids_limit {
        resources.insert("pids".into(), json!({ "limit": limit }));
    }
    if let Some(weight) = update.blkio_weight {
        resources.insert("blockIO".into(), json!({ "weight": weight }));
    }
    Ok(resources.into())
}

/// A number of bytes, with `k`, `m`, `g` or `t` behind it for powers of 1024; -1 for no limit.
fn bytes(text: &str) -> Result<i64> {
    let lower = text.to_ascii_lowercase();
    let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match lower.get(digits.len()..).unwrap_or_default() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => anyhow::bail!("invalid size: '{text}'"),
    };
    let number: i64 = digits.parse().ok().with_context(|| format!("invalid size: '{text}'"))?;
    number.checked_mul(1 << shift).with_context(|| format!("invalid size: '{text}'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(bytes("100").unwrap(), 100);
        assert_eq!(bytes("64k").unwrap(), 65_536);
        assert_eq!(bytes("2GiB").unwrap(), 2 << 30);
        assert_eq!(bytes("-1").unwrap(), -1);
        assert!(bytes("x").is_err() && bytes("99999999t").is_err());
    }
}
