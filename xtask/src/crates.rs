//! The workspace's crates, as `cargo metadata` tells them.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{place, shell};

/// One crate of the workspace.
#[derive(Debug, Clone)]
pub struct Crate {
    pub name: String,
    pub folder: PathBuf,
    /// Crates of the workspace that the shipped code depends on; not those of tests alone.
    pub needs: Vec<String>,
    /// Root files of its libraries and programs; not those of tests, examples and benchmarks.
    pub roots: Vec<PathBuf>,
}

/// Every crate of the workspace, by name.
pub fn all() -> Result<Vec<Crate>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(place::workspace());
    let metadata: Value = serde_json::from_str(&shell::output(&mut command)?)?;
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let packages = list(&metadata["packages"]);
    let names: Vec<String> = packages.iter().map(|package| text(&package["name"])).collect();
    let mut crates = Vec::new();
    for package in &packages {
        let manifest = PathBuf::from(text(&package["manifest_path"]));
        let shipped = |need: &&Value| need["kind"].as_str() != Some("dev");
        let needs = list(&package["dependencies"]);
        let needs = needs.iter().filter(shipped).map(|need| text(&need["name"]));
        let kinds = ["lib", "bin", "proc-macro"];
        let rooted =
            |target: &&Value| list(&target["kind"]).iter().any(|k| kinds.contains(&text(k).as_str()));
        let targets = list(&package["targets"]);
        crates.push(Crate {
            name: text(&package["name"]),
            folder: manifest.parent().context("a manifest without a folder")?.to_path_buf(),
            needs: needs.filter(|need| names.contains(need)).collect(),
            roots: targets.iter().filter(rooted).map(|t| PathBuf::from(text(&t["src_path"]))).collect(),
        });
    }
    crates.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(crates)
}
