//! Real servers in the sandbox with clients outside, and the other way round, over a link of their own: python, node,
//! redis and git, nginx and iperf3, PostgreSQL, sshd. What they carry is compared by its digest.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use xtask::bundle::{Bundle, write_config};
use xtask::native::Native;
use xtask::rootfs;
use xtask::trial::{Invocation, Trial};

use crate::common::{jobs, long};
use crate::links::{Pair, possible};

const SERVERS: &str = include_str!("../programs/servers.sh");
const CLIENTS: &str = include_str!("../programs/clients.py");
const LOAD: &str = include_str!("../programs/load.sh");
const POSTGRES: &str = include_str!("../programs/postgres.sh");
const SSH: &str = include_str!("../programs/ssh.sh");

/// Million bytes of each transfer.
fn size() -> &'static str {
    if long() { "1000" } else { "10" }
}

fn limit() -> Duration {
    Duration::from_mins(if long() { 20 } else { 2 })
}

/// A program in the sandbox, whose network is that of the inner namespace.
fn inside<'t>(trial: &'t Trial, pair: &Pair, root: &Path, words: &[&str]) -> Result<Invocation<'t>> {
    let bundle = Bundle::new(root, words.iter().copied()).all_capabilities();
    start(trial, pair, bundle)
}

fn start<'t>(trial: &'t Trial, pair: &Pair, bundle: Bundle) -> Result<Invocation<'t>> {
    let mut config = bundle.config();
    config["linux"]["namespaces"][1] = json!({ "type": "network", "path": pair.path() });
    let dir = trial.path().join("bundle");
    write_config(&dir, &config)?;
    let words: [PathBuf; 4] = ["run".into(), "--bundle".into(), dir, trial.id().into()];
    Ok(trial.casemate(words).limit(limit()))
}

/// The same program of the same root filesystem on the host's kernel, in the outer namespace.
fn outside<'t>(trial: &'t Trial, pair: &Pair, root: &Path, words: &[&str]) -> Result<Invocation<'t>> {
    let front = format!("--net=/run/netns/{}", pair.outside);
    let native = Native::new(root, trial.path().join("scratch")).with_network().command(words);
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
    let root = rootfs::jobs()?;
    let (servers, clients) = if server_inside {
        (inside(&trial, &pair, &root, &servers)?, outside(&trial, &pair, &root, &clients)?)
    } else {
        (outside(&trial, &pair, &root, &servers)?, inside(&trial, &pair, &root, &clients)?)
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

/// One side runs a script as `serve`, which says a digest or nothing and then "ready", the other one as `load`; gives what
/// each of them has said.
fn talk(
    name: &str,
    root: &Path,
    script: &str,
    server_inside: bool,
    amounts: (&str, &str),
) -> Result<(String, String)> {
    let trial = Trial::new(&format!("servers-{name}"))?;
    let pair = Pair::new(name, false)?;
    let at = if server_inside { "10.77.0.1" } else { "10.77.0.2" };
    let serve = ["bash", "-c", script, name, "serve", at, amounts.0];
    let load = ["bash", "-c", script, name, "load", at, amounts.1];
    let (server, load) = if server_inside {
        (inside(&trial, &pair, root, &serve)?, outside(&trial, &pair, root, &load)?)
    } else {
        (outside(&trial, &pair, root, &serve)?, inside(&trial, &pair, root, &load)?)
    };
    let mut server = server.piped_stdin().start()?;
    server.until_says("ready")?;
    let out = load.run()?.expect(0)?;
    let said = (server.so_far(), out.out());
    drop(server.stdin.take());
    server.wait()?.expect(0)?;
    trial.finish()?;
    Ok(said)
}

/// The root filesystem of network servers, if it is there: it takes minutes to make.
fn servers_root() -> Result<Option<PathBuf>> {
    let there = xtask::place::cache().is_ok_and(|cache| cache.join("servers/usr/sbin/nginx").exists());
    if there || long() {
        return rootfs::servers().map(Some);
    }
    eprintln!("skipped: the root filesystem of the servers is not made");
    Ok(None)
}

fn load(name: &str, server_inside: bool) -> Result<()> {
    if !possible() {
        return Ok(());
    }
    let Some(root) = servers_root()? else { return Ok(()) };
    let (served, said) = talk(name, &root, LOAD, server_inside, (size(), if long() { "10" } else { "1" }))?;
    let digest = served.split_whitespace().next().context("the server names no digest")?;
    let runs = [("-P 1", 1), ("-P 8", 9), ("-R -P 1", 1), ("-R -P 8", 9)];
    let runs: String = runs.iter().map(|(how, lines)| format!("iperf3 {how}: {lines}\n")).collect();
    ensure!(said == format!("download {digest}\n0\n{runs}"), "{said}");
    Ok(())
}

#[test]
fn nginx_and_iperf3_inside_are_loaded_from_outside() -> Result<()> {
    load("wi", true)
}

#[test]
fn nginx_and_iperf3_outside_are_loaded_from_inside() -> Result<()> {
    load("wo", false)
}

fn postgres(name: &str, server_inside: bool) -> Result<()> {
    if !possible() || !jobs() {
        return Ok(());
    }
    let count = if long() { 2000 } else { 25 };
    let (_, said) = talk(name, &rootfs::jobs()?, POSTGRES, server_inside, ("", &count.to_string()))?;
    let all = count * 8;
    let expected = format!(
        "number of transactions actually processed: {all}/{all}\nnumber of failed transactions: 0 (0.000%)\n100000|t\n"
    );
    let digest = "packet".repeat(1_000_000) + "\n";
    ensure!(said.starts_with(&expected), "{said}");
    ensure!(said.ends_with(&format!("{}  -\n", sha256(digest.as_bytes())?)), "{said}");
    Ok(())
}

fn sha256(bytes: &[u8]) -> Result<String> {
    use std::io::Write;
    let mut sum = Command::new("sha256sum")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()?;
    sum.stdin.take().context("a pipe")?.write_all(bytes)?;
    let out = sum.wait_with_output()?;
    Ok(String::from_utf8_lossy(&out.stdout).split(' ').next().unwrap_or_default().to_owned())
}

#[test]
fn postgres_inside_serves_pgbench_outside() -> Result<()> {
    postgres("pi", true)
}

#[test]
fn postgres_outside_serves_pgbench_inside() -> Result<()> {
    postgres("po", false)
}

/// sshd and scp of the host, on the host's own root: no root filesystem of the tests has them.
fn ssh(name: &str, server_inside: bool) -> Result<()> {
    let there =
        ["/usr/sbin/sshd", "/usr/bin/scp", "/usr/bin/ssh-keygen"].iter().all(|p| Path::new(p).exists());
    if !possible() || !there {
        eprintln!("skipped: no sshd, scp and ssh-keygen here");
        return Ok(());
    }
    let trial = Trial::new(&format!("servers-{name}"))?;
    let pair = Pair::new(name, false)?;
    let keys = trial.path().join("keys");
    std::fs::create_dir(&keys)?;
    for key in ["host", "user"] {
        let words = ["-q", "-t", "ed25519", "-N", "", "-f"];
        let made = Command::new("ssh-keygen").args(words).arg(keys.join(key)).status()?;
        ensure!(made.success(), "ssh-keygen: {made}");
    }
    let at = if server_inside { "10.77.0.1" } else { "10.77.0.2" };
    let size = if long() { "1000" } else { "20" };
    let sandboxed = |what: &str| -> Result<Invocation<'_>> {
        let words = ["bash", "-c", SSH, "ssh", what, at, size, "/data"];
        let bundle = Bundle::new("/", words).all_capabilities().bind(&keys, "/data", "ro");
        start(&trial, &pair, bundle)
    };
    let native = |what: &str| {
        // What it leaves on the host goes with a mount namespace of its own.
        let front =
            ["ip", "netns", "exec", &pair.outside, "unshare", "-m", "--propagation", "private", "bash", "-c"];
        let script = format!("mount -t tmpfs none /tmp; mount -t tmpfs none /run; {SSH}");
        let keys = keys.to_string_lossy().into_owned();
        // Where the keys are may lie below what is covered.
        let script = format!("mkdir -p /mnt; mount --bind '{keys}' /mnt; {script}");
        let words: Vec<&str> =
            front.into_iter().chain([script.as_str(), "ssh", what, at, size, "/mnt"]).collect();
        trial.host(words).limit(limit())
    };
    let (server, copy) = if server_inside {
        (sandboxed("serve")?, native("copy"))
    } else {
        (native("serve"), sandboxed("copy")?)
    };
    let mut server = server.piped_stdin().start()?;
    server.until_says("ready")?;
    let out = copy.run()?.expect(0)?;
    let digest = server.so_far().split_whitespace().next().context("the server names no digest")?.to_owned();
    out.expect_out(&format!("down {digest}\nup {digest}\n"))?;
    drop(server.stdin.take());
    server.wait()?;
    trial.finish()
}

#[test]
fn sshd_inside_serves_scp_outside() -> Result<()> {
    ssh("xi", true)
}

#[test]
fn sshd_outside_serves_scp_inside() -> Result<()> {
    ssh("xo", false)
}
