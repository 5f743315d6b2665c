//! `report [--rows PART] [--peers NAME,...] [--repeat N] [--out DIR]`: runs every row on every peer and prints the table.
//!
//! Purpose: the figures of the README, and with `--out` the page in `docs/performance`. Invariants: the peers take turns
//! within each repetition, so that a slow spell of the machine meets all of them. Lock ranks: none. Threat: none.
#![allow(clippy::indexing_slicing, reason = "a developer's tool; its input is its own")]

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use benches::docs::{Page, machine};
use benches::peer::{Peer, Place};
use benches::rows::ROWS;
use benches::table::{ABSENT, Figures, Line, markdown};
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
    let mut out = None;
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let value = args.next().with_context(|| format!("{arg}: give a value"))?;
        match arg.as_str() {
            "--rows" => part = value,
            "--peers" => names = value.split(',').map(str::to_owned).collect(),
            "--repeat" => repeat = value.parse().context("--repeat")?,
            "--out" => out = Some(value),
            _ => bail!("usage: report [--rows PART] [--peers NAME,...] [--repeat N] [--out DIR]"),
        }
    }
    rootfs::need_root("running containers")?;
    let programs = programs::get()?;
    let place = Place::new(rootfs::debian()?, programs.inside.clone());
    let mut peers = Peer::all(&programs.casemate)?;
    peers.retain(|peer| names.is_empty() || names.iter().any(|name| name == peer.name));
    let mut lines = Vec::new();
    for row in ROWS.iter().filter(|row| row.title.contains(&part)) {
        let mut values: Vec<Result<Vec<f64>, String>> = peers.iter().map(|_| Ok(Vec::new())).collect();
        for _ in 0..repeat {
            for (peer, taken) in peers.iter().zip(&mut values) {
                let Ok(numbers) = taken else { continue };
                match row.measure(peer, &place) {
                    Ok(number) => numbers.extend(number),
                    Err(error) => {
                        eprintln!("{}: {error:#}", row.title);
                        *taken = Err(format!("{error:#}"));
                    }
                }
            }
        }
        let figures = |taken: Result<Vec<f64>, String>| Figures::of(&taken?).ok_or_else(|| ABSENT.to_owned());
        let cells = values.into_iter().map(figures).collect();
        let line = Line { title: row.title.to_owned(), unit: row.unit, cells };
        eprintln!("{}: done", line.title);
        lines.push(line);
    }
    let names: Vec<String> = peers.iter().map(|peer| peer.name.to_owned()).collect();
    print!("{}", markdown(&names, &lines, false));
    println!("\nMedians of {repeat} runs, in brackets the ratio to native, all taken in one run.");
    for peer in &peers {
        println!("{}: {}", peer.name, peer.version);
    }
    if let Some(dir) = out {
        let peers = peers.into_iter().map(|peer| (peer.name.to_owned(), peer.version)).collect();
        Page { peers, machine: machine(), lines }.update(dir.as_ref())?;
    }
    Ok(())
}
