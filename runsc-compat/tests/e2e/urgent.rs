//! Urgent data on connections between the sandbox and the host's kernel, in both directions. What two of the host's own
//! programs say of it is what a program inside is to say.

use std::time::Duration;

use anyhow::{Result, ensure};
use xtask::bundle::Bundle;
use xtask::trial::{Invocation, Outcome, Trial};

use crate::common::debian;
use crate::links::{BAD, Pair, outside, possible, set_addresses};
use crate::packets::run;

const PROGRAM: &str = include_str!("../programs/urgent.py");

/// Addresses of the sandbox and of the other end.
const V4: [&str; 2] = ["10.77.0.1", "10.77.0.2"];
const V6: [&str; 2] = ["fd77::1", "fd77::2"];

const ALL: [&str; 8] = ["plain", "inline", "epoll", "second", "last", "full", "bulk", "stream"];

/// How long all scenarios take over a bad link on a busy machine, many times over.
const LIMIT: Duration = Duration::from_mins(5);

/// Runs both programs, the one that listens first; gives what they say, the listener's first.
fn talk(listener: Invocation<'_>, other: Invocation<'_>) -> Result<[Outcome; 2]> {
    let mut listener = listener.limit(LIMIT).start()?;
    listener.until_says("ready")?;
    let other = other.limit(LIMIT).run()?.expect(0)?;
    Ok([listener.wait()?.expect(0)?, other])
}

/// Runs `scenarios` between the two ends of a link, the sandbox as each of four: who listens or connects, and sends or
/// receives.
fn exchange(name: &str, bad: Option<&str>, [ours, theirs]: [&str; 2], scenarios: &[&str]) -> Result<()> {
    if !possible() {
        return Ok(());
    }
    let trial = Trial::new(&format!("urgent-{name}"))?;
    let pair = Pair::new(name, bad.is_some())?;
    let own = trial.programs().inside.join("syscall-tests").to_string_lossy().into_owned();
    let mut relay = None;
    if let (Some(how), Some(middle)) = (bad, pair.middle()) {
        let words = ["ip", "netns", "exec", middle, &own, "traffic", "relay", "left", "right"];
        let mut running = trial.host(words.into_iter().chain(how.split(' '))).limit(LIMIT * 6).start()?;
        running.until_says("ready")?;
        relay = Some(running);
    }
    let words = |how, at, role| [&["python3", "-c", PROGRAM, how, at, role], scenarios].concat();
    let there = |how, at, role| outside(&trial, &pair, &words(how, at, role));
    let sandbox = |how, at, role| {
        let bundle = Bundle::new(debian()?, words(how, at, role)).all_capabilities();
        run(&trial, &pair, &bundle, &[], &[])
    };
    // What Linux says to itself is what is right.
    let front = ["ip", "netns", "exec", &pair.inside];
    let listener = trial.host(front.into_iter().chain(words("serve", ours, "receive")));
    let [right, _] = talk(listener, there("connect", ours, "send"))?;
    let said = |outcome: &Outcome| outcome.out().trim_start_matches("ready\n").to_owned();
    let right = said(&right);
    ensure!(scenarios.iter().all(|name| right.contains(name)) && right.ends_with("done\n"), "{right}");
    for role in ["receive", "send"] {
        let other = if role == "send" { "receive" } else { "send" };
        for serves in [true, false] {
            let outcomes = if serves {
                talk(sandbox("serve", ours, role)?, there("connect", ours, other))?
            } else {
                talk(there("serve", theirs, other), sandbox("connect", theirs, role)?)?
            };
            let receiver = usize::from((role == "receive") != serves);
            let got = said(&outcomes[receiver]);
            ensure!(got == right, "the sandbox is to {role}: {got}Linux says: {right}");
            // The sandbox has taken the addresses with it.
            set_addresses(&pair.inside, 1)?;
        }
    }
    if let Some(mut relay) = relay {
        relay.signal(rustix::process::Signal::KILL)?;
        relay.wait()?;
    }
    trial.finish()
}

#[test]
fn urgent_data_over_a_good_link() -> Result<()> {
    exchange("ug", None, V4, &ALL)
}

#[test]
fn urgent_data_over_a_good_link_v6() -> Result<()> {
    exchange("us", None, V6, &["plain", "last", "full", "bulk", "stream"])
}

#[test]
fn urgent_data_over_a_bad_link() -> Result<()> {
    exchange("ub", Some(BAD), V4, &["plain", "last", "bulk", "stream"])
}
