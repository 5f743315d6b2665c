//! The page of figures: a table and charts in a folder, kept from run to run.
//!
//! A run that measures some rows replaces these and leaves the others: each row's peers were measured in one run, the rows
//! among themselves perhaps not.

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::chart::svg;
use crate::rows::ROWS;
use crate::table::{Line, markdown};

/// What the folder holds, as `figures.json`.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Page {
    /// Names and versions, in the order of cells.
    pub peers: Vec<(String, String)>,
    pub machine: String,
    pub lines: Vec<Line>,
}

impl Page {
    /// Puts these figures into the page in `dir`, which is made if it is not there. Figures of other peers are dropped.
    pub fn update(self, dir: &Path) -> Result<()> {
        std::fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
        let file = dir.join("figures.json");
        let old: Self = match std::fs::read(&file) {
            Ok(text) => serde_json::from_slice(&text).with_context(|| file.display().to_string())?,
            Err(_) => Self::default(),
        };
        let names = |page: &Self| page.peers.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
        let kept = if names(&old) == names(&self) { old.lines } else { Vec::new() };
        let new = |title: &str| self.lines.iter().chain(&kept).find(|line| line.title == title).cloned();
        let lines = ROWS.iter().filter_map(|row| new(row.title)).collect();
        let page = Self { lines, ..self };
        page.write(dir)?;
        std::fs::write(&file, serde_json::to_string_pretty(&page)? + "\n")
            .with_context(|| file.display().to_string())
    }

    fn write(&self, dir: &Path) -> Result<()> {
        let names: Vec<String> = self.peers.iter().map(|(name, _)| name.clone()).collect();
        let (calls, programs): (Vec<Line>, Vec<Line>) = self
            .lines
            .iter()
            .cloned()
            .partition(|line| ROWS.iter().any(|row| row.title == line.title && row.is_call()));
        let put = |name: &str, text: &str| {
            std::fs::write(dir.join(name), text).with_context(|| format!("write {name}"))
        };
        put("calls.svg", &svg("Single calls, as multiples of native time", &names, &calls))?;
        put("programs.svg", &svg("Programs, starts and memory, as multiples of native", &names, &programs))?;
        let mut text = String::from("# Performance\n\n");
        let _ = write!(
            text,
            "Written by `cargo run --release -p benches --bin report -- --out docs/performance`, on {}: medians, in \
             brackets the ratio to native, below the lowest and the highest value. The peers of a row took turns in one \
             run.\n\n{}\n![single calls](calls.svg)\n\n![programs](programs.svg)\n",
            self.machine,
            markdown(&names, &self.lines, true),
        );
        for (name, version) in &self.peers {
            let _ = write!(text, "\n- {name}: {version}");
        }
        text.push('\n');
        put("README.md", &text)
    }
}

/// The machine in general terms.
pub fn machine() -> String {
    let count = std::thread::available_parallelism().map_or(1, usize::from);
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let is_guest = info.lines().any(|line| line.starts_with("flags") && line.contains(" hypervisor"));
    let kind = if is_guest { "virtual machine" } else { "machine" };
    let cores = match count {
        1 => "a one-core".to_owned(),
        2 => "a two-core".to_owned(),
        4 => "a four-core".to_owned(),
        n => format!("an {n}-core"),
    };
    format!("{cores} x86-64 {kind}")
}
