//! Real servers in the sandbox with clients outside, and the other way round, over a link of their own: python, node,
//! redis and git. What they carry is compared by its digest.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;
use xtask::bundle::{Bundle, write_config};
use xtask::native::Native;
use xtask::rootfs;
use xtask::trial::{Invocation, Trial};

use crate::common::{jobs, long};
use crate::links::{Pair, possible};

const SERVERS: &str = include_str!("../programs/servers.sh");
const CLIENTS: &str = include_str!("../programs/clients.py");

/// Million bytes of each transfer.
fn size() -> &'static str {
    if long() { "1000" } else { "10" }
}

fn limit() -> Duration {
    Duration::from_mins(if long() { 20 } else { 2 })
}

/// A program in the sandbox, whose network is that of the inner namespace.
fn inside<'t>(trial: &'t Trial, pair: &Pair, words: &[&str]) -> Result<Invocation<'t>> {
    let bundle = Bundle::new(rootfs::jobs()?, words.iter().copied()).all_capabilities();
    let mut config = bundle.config();
    config["linux"]["namespaces"][1] = json!({ "type": "network", "path": pair.path() });
    let dir = trial.path().join("bundle");
    write_config(&dir, &config)?;
    let words: [PathBuf; 4] = ["run".into(), "--bundle".into(), dir, trial.id().into()];
    Ok(trial.casemate(words).limit(limit()))
}

/// The same program of the same root filesystem on the host's kernel, in the outer namespace.
fn outside<'t>(trial: &'t Trial, pair: &Pair, words: &[&str]) -> Result<Invocation<'t>> {
    let front = format!("--net=/run/netns/{}", pair.outside);
    let native = Native::new(rootfs::jobs()?, trial.path().join("scratch")).with_network().command(words);
    let words = ["nsenter".to_owned(), front].into_iter().chain(native);
    Ok(trial.host(words).limit(limit()))
}

fn exchange(name: &str, server_inside: bool) -> Result<()> {
    if !possible() || !jobs() {
        return Ok(());
    }
    let trial = Trial::new(&format!("servers-{name}"))?;
    let pair = Pair::new(name, false)?;
    let at = if server_inside { "10.77.0.1" } else { "10.77.0.2" };
    let servers = ["bash", "-c", SERVERS, "servers", at, size()];
    let clients = ["python3", "-c", CLIENTS, at, size()];
    let (servers, clients) = if server_inside {
        (inside(&trial, &pair, &servers)?, outside(&trial, &pair, &clients)?)
    } else {
        (outside(&trial, &pair, &servers)?, inside(&trial, &pair, &clients)?)
    };
    let mut servers = servers.piped_stdin().start()?;
    servers.until_says("ready")?;
    let said = servers.so_far();
    let digest = said.split_whitespace().next().context("the servers name no digest")?;
    let expected = format!(
        "downloads {digest} 4\nupload True\nredis b'+OK\\r\\n' True b'\\r\\n'\npipeline b':10000\\r\\n'\nclone True\n"
    );
    clients.run()?.expect(0)?.expect_out(&expected)?;
    drop(servers.stdin.take());
    servers.wait()?.expect(0)?;
    trial.finish()
}

#[test]
fn servers_inside_serve_clients_outside() -> Result<()> {
    exchange("si", true)
}

#[test]
fn servers_outside_serve_clients_inside() -> Result<()> {
    exchange("so", false)
}
