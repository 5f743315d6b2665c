//! `report [--rows PART] [--peers NAME,...] [--repeat N] [--json FILE]`: runs every row on every peer and prints the
//! table.
//!
//! Purpose: the figures of the README. Invariants: the peers take turns within each repetition, so that a slow spell
//! of the machine meets all of them. Lock ranks: none. Threat: none.
#![allow(clippy::indexing_slicing, reason = "a developer's tool; its input is its own")]

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use benches::peer::{Peer, Place};
use benches::rows::ROWS;
use benches::table::{Line, markdown, median};
use xtask::{programs, rootfs};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("report: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let mut part = String::new();
    let mut names: Vec<String> = Vec::new();
    let mut repeat = 5;
    let mut json = None;
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let value = args.next().with_context(|| format!("{arg}: give a value"))?;
        match arg.as_str() {
            "--rows" => part = value,
            "--peers" => names = value.split(',').map(str::to_owned).collect(),
            "--repeat" => repeat = value.parse().context("--repeat")?,
            "--json" => json = Some(value),
            _ => bail!("usage: report [--rows PART] [--peers NAME,...] [--repeat N] [--json FILE]"),
        }
    }
    rootfs::need_root("running containers")?;
    let programs = programs::get()?;
    let place = Place { rootfs: rootfs::debian()?, inside: programs.inside.clone() };
    let mut peers = Peer::all(&programs.casemate)?;
    peers.retain(|peer| names.is_empty() || names.iter().any(|name| name == peer.name));
    let mut lines = Vec::new();
    for row in ROWS.iter().filter(|row| row.title.contains(&part)) {
        let mut values: Vec<Result<Vec<f64>, String>> = peers.iter().map(|_| Ok(Vec::new())).collect();
        for _ in 0..repeat {
            for (peer, taken) in peers.iter().zip(&mut values) {
                let Ok(numbers) = taken else { continue };
                match row.measure(peer, &place) {
                    Ok(number) => numbers.push(number),
                    Err(error) => {
                        eprintln!("{}: {error:#}", row.title);
                        *taken = Err(format!("{error:#}"));
                    }
                }
            }
        }
        let middle =
            |taken: Result<Vec<f64>, String>| median(&taken?).ok_or_else(|| "not measured".to_owned());
        let line = Line { title: row.title, unit: row.unit, cells: values.into_iter().map(middle).collect() };
        eprintln!("{}: done", line.title);
        lines.push(line);
    }
    let titles: Vec<&str> = peers.iter().map(|peer| peer.name).collect();
    print!("{}", markdown(&titles, &lines));
    println!("\nMedians of {repeat} runs, in brackets the ratio to native, all taken in one run.");
    for peer in &peers {
        println!("{}: {}", peer.name, peer.version);
    }
    if let Some(path) = json {
        let row = |line: &Line| {
            let cells: serde_json::Map<String, serde_json::Value> = titles
                .iter()
                .zip(&line.cells)
                .map(|(name, cell)| ((*name).to_owned(), cell.as_ref().ok().copied().into()))
                .collect();
            (line.title.to_owned(), serde_json::Value::Object(cells))
        };
        let all: serde_json::Map<String, serde_json::Value> = lines.iter().map(row).collect();
        std::fs::write(&path, serde_json::to_string_pretty(&all)?).with_context(|| path.clone())?;
    }
    Ok(())
}
