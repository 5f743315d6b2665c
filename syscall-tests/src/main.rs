//! Differential system-call cases: one static program that states what Linux does.
//!
//! Purpose: the same binary runs on the host kernel and inside a sandbox, and every case that holds on the host
//! must hold inside. A case is a plain function that makes system calls and returns what it found wrong.
//! Invariants: each case runs in a forked child of its own, in a directory of its own, under a time limit; no case
//! depends on another, on a network beyond the loopback, or on any program but this one.
//! Lock ranks: none. Threat: none, the program is itself the workload.
#![allow(unsafe_code, reason = "the program exists to make raw system calls with good and bad arguments")]
#![allow(
    clippy::undocumented_unsafe_blocks,
    clippy::multiple_unsafe_ops_per_block,
    reason = "every block is one system call under test, made through the `ok!` and `fails!` macros"
)]
#![allow(
    clippy::pedantic,
    clippy::cast_possible_truncation,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::exit,
    reason = "cases are test code: a panic fails one case in a child of its own, and kernel words are cast as C does"
)]

#[macro_use]
mod harness;
mod areas;
mod fsx;
mod helpers;
mod inet;
mod sys;
mod tracing;
mod traffic;

use harness::{Options, Selected};

const USAGE: &str = "usage: syscall-tests list
       syscall-tests run [--json] [--jobs N] [--timeout SECONDS] [--dir DIR] [--skip AREA/NAME]... (--all | AREA | AREA/NAME)...
       syscall-tests traffic serve ADDRESS | traffic connect ADDRESS COUNT JOBS
       syscall-tests fsx [--seed N] [--seconds N] [--ops N] [--dir DIR]";

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let rest: &[String] = args.get(2..).unwrap_or(&[]);
    match args.get(1).map(String::as_str) {
        Some("list") => {
            for area in areas::AREAS {
                for case in area.cases {
                    println!("{}/{}", area.name, case.name);
                }
            }
        }
        Some("run") => std::process::exit(run(rest)),
        Some("fsx") => std::process::exit(fsx::main(rest)),
        Some("traffic") => std::process::exit(traffic::main(rest)),
        Some("helper") => std::process::exit(helpers::run(rest)),
        _ => {
            eprintln!("{USAGE}");
            std::process::exit(2);
        }
    }
}

/// Parses the arguments of `run`, runs the chosen cases, and gives the exit status: 0 when none failed.
fn run(args: &[String]) -> i32 {
    let mut options = Options::default();
    let mut wanted: Vec<&str> = Vec::new();
    let mut skipped: Vec<&str> = Vec::new();
    let mut all = false;
    let mut it = args.iter().map(String::as_str);
    while let Some(arg) = it.next() {
        match arg {
            "--all" => all = true,
            "--json" => options.json = true,
            "--jobs" | "--timeout" => {
                let Some(n) = it.next().and_then(|v| v.parse::<u32>().ok()).filter(|n| *n > 0) else {
                    eprintln!("{arg}: give a number above 0\n{USAGE}");
                    return 2;
                };
                if arg == "--jobs" {
                    options.jobs = n as usize;
                } else {
                    options.timeout_s = n.into();
                }
            }
            "--dir" => match it.next() {
                Some(dir) => options.dir = dir.into(),
                None => {
                    eprintln!("--dir: give a directory\n{USAGE}");
                    return 2;
                }
            },
            "--skip" => skipped.extend(it.next()),
            _ if arg.starts_with('-') => {
                eprintln!("{arg}: unknown option\n{USAGE}");
                return 2;
            }
            _ => wanted.push(arg),
        }
    }
    let mut chosen = Vec::new();
    for area in areas::AREAS {
        for case in area.cases {
            let full = format!("{}/{}", area.name, case.name);
            let named = wanted.iter().any(|w| *w == area.name || *w == full);
            if (all || named) && !skipped.contains(&full.as_str()) {
                chosen.push(Selected { name: full, case });
            }
        }
    }
    if chosen.is_empty() {
        eprintln!("no case chosen; `syscall-tests list` names them all\n{USAGE}");
        return 2;
    }
    harness::run(&chosen, &options)
}
