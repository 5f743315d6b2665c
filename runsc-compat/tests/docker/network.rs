//! Docker's networks: the default bridge, published ports, the host's own, a network of the user's with names, `docker-compose`.
//!
//! The daemon has a network namespace of its own for a host, so that the machine's addresses and rules stay as they are;
//! a second namespace is the world outside, with a name server.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use xtask::engine::{self, Did, busybox_layer, eventually, installed, limited};
use xtask::place::TempDir;
use xtask::{programs, shell};

use super::{client, daemon_in};

/// The daemon's host and the world outside, joined by a link.
struct Hosts {
    host: String,
    outside: String,
}

fn ip(words: &str) -> Result<()> {
    shell::run(Command::new("ip").args(words.split(' ')))
}

impl Hosts {
    fn new() -> Result<Self> {
        let name = format!("cmd{}", std::process::id());
        let hosts = Self { host: format!("{name}h"), outside: format!("{name}o") };
        let Self { host, outside } = &hosts;
        ip(&format!("netns add {host}"))?;
        ip(&format!("netns add {outside}"))?;
        ip(&format!("-n {host} link add wan type veth peer name wan netns {outside}"))?;
        for (ns, number) in [(outside, 1), (host, 2)] {
            ip(&format!("-n {ns} link set lo up"))?;
            ip(&format!("-n {ns} link set wan up"))?;
            ip(&format!("-n {ns} addr add 10.79.0.{number}/24 dev wan"))?;
        }
        ip(&format!("-n {host} route add default via 10.79.0.1"))?;
        Ok(hosts)
    }

    /// A program in one of the namespaces: unlike `ip netns exec` it sees the machine's control groups.
    fn enter(ns: &str, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{ns}")).arg(program);
        command
    }

    fn outside(&self, words: &[&str]) -> Result<Did> {
        let mut command = limited("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.outside)).args(words);
        Did::by(command)
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for name in [&self.host, &self.outside] {
            let _ = Command::new("ip").args(["netns", "del", name]).output();
        }
    }
}

/// Killed when dropped.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Gives every name the address 10.79.0.1.
const NAMES: &str = r"
import socket, struct
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('10.79.0.1', 53))
while True:
    q, asker = s.recvfrom(2000)
    end = q.index(b'\0', 12) + 5
    a = q[end - 4:end - 2] == b'\0\1'
    answer = b'\xc0\x0c' + struct.pack('!HHIH4B', 1, 1, 60, 4, 10, 79, 0, 1) if a else b''
    s.sendto(q[:2] + struct.pack('!HHHHH', 0x8180, 1, a, 0, 0) + q[12:end] + answer, asker)
";

struct Daemon {
    engine: engine::Daemon,
    _names: Server,
    hosts: Hosts,
}

impl Daemon {
    fn start(casemate: &Path) -> Result<Self> {
        let hosts = Hosts::new()?;
        let mut names = Hosts::enter(&hosts.outside, "python3");
        names.args(["-c", NAMES]).stdin(Stdio::null());
        let names = Server(names.spawn()?);
        let dir = TempDir::new("dockernet")?;
        let flags = [
            ["--bip", "10.80.0.1/24"],
            ["--default-address-pool", "base=10.81.0.0/16,size=24"],
            ["--ip6tables=false", "--dns=10.79.0.1"],
        ];
        let dockerd = Hosts::enter(&hosts.host, "dockerd");
        let daemon = daemon_in(dir, dockerd, casemate, flags.as_flattened())?;
        let image = busybox_layer(daemon.path("").as_path())?;
        let all = Self { engine: daemon, _names: names, hosts };
        all.docker(&["import", &image.to_string_lossy(), "busybox"])?.ok()?;
        Ok(all)
    }

    fn docker(&self, words: &[&str]) -> Result<Did> {
        let mut command = client(&self.engine);
        command.args(words);
        Did::by(command)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Ok(list) = self.docker(&["ps", "-aq"]) {
            for id in list.out.split_whitespace() {
                let _ = self.docker(&["rm", "-f", id]);
            }
        }
    }
}

#[test]
fn docker_connects_containers() -> Result<()> {
    if !installed(&["dockerd", "docker", "containerd", "ip", "nsenter", "iptables"]) {
        return Ok(());
    }
    let nat = Command::new("unshare").args(["--net", "iptables", "-t", "nat", "-L", "-n"]).output()?;
    if !nat.status.success() {
        println!("skipped: the host's kernel does not translate addresses");
        return Ok(());
    }
    let daemon = Daemon::start(&programs::get()?.casemate)?;
    bridge(&daemon)
        .and_then(|()| host_network(&daemon))
        .and_then(|()| host_sockets(&daemon))
        .and_then(|()| user_network(&daemon))
        .and_then(|()| compose(&daemon))
        .with_context(|| format!("the daemon's log ends with\n{}", daemon.engine.log()))
}

/// Serves a file of three million bytes.
const SERVE: &str = "mkdir /www; yes 0123456789 | head -c 3000000 >/www/f; exec httpd -f -p 80 -h /www";

/// What `sha256sum` says of it.
fn digest() -> Result<String> {
    let mut command = limited("sh");
    command.args(["-c", "yes 0123456789 | head -c 3000000 | sha256sum"]);
    Did::by(command)?.ok()
}

/// The default bridge: out by address translation, in by a published port.
fn bridge(daemon: &Daemon) -> Result<()> {
    let script = "ping -c 1 -W 10 10.79.0.1 | grep -o '1 packets received'; grep nameserver /etc/resolv.conf
        nslookup -type=a some.name.example | grep -c 'Address: 10.79.0.1'";
    let expected = "1 packets received\nnameserver 10.79.0.1\n1\n";
    daemon.docker(&["run", "--rm", "busybox", "sh", "-c", script])?.expect(0, expected)?;
    daemon.docker(&["run", "-d", "--name", "shown", "-p", "8080:80", "busybox", "sh", "-c", SERVE])?.ok()?;
    let fetch = "import hashlib, urllib.request as r
print(hashlib.sha256(r.urlopen('http://10.79.0.2:8080/f', timeout=20).read()).hexdigest(), ' -')";
    let digest = digest()?;
    eventually("the published port serves the file", Duration::from_secs(30), || {
        Ok(daemon.hosts.outside(&["python3", "-c", fetch])?.out == digest)
    })?;
    daemon.docker(&["rm", "-f", "shown"])?.expect(0, "shown\n")
}

/// The host's own network: its addresses, its ports and its loopback.
fn host_network(daemon: &Daemon) -> Result<()> {
    let serve =
        "mkdir /www; yes 0123456789 | head -c 3000000 >/www/f; exec httpd -f -p 10.79.0.2:8090 -h /www";
    let words = ["run", "-d", "--name", "hosts", "--network", "host", "busybox", "sh", "-c", serve];
    daemon.docker(&words)?.ok()?;
    let fetch = "import hashlib, urllib.request as r
print(hashlib.sha256(r.urlopen('http://10.79.0.2:8090/f', timeout=20).read()).hexdigest(), ' -')";
    let digest = digest()?;
    eventually("a server on the host's network serves the file", Duration::from_secs(30), || {
        Ok(daemon.hosts.outside(&["python3", "-c", fetch])?.out == digest)
    })?;
    let ask =
        "ip -4 -o addr show wan | grep -o 10.79.0.2/24; wget -q -O - http://10.79.0.2:8090/f | sha256sum
        nslookup -type=a some.name.example | grep -c 'Address: 10.79.0.1'";
    let expected = format!("10.79.0.2/24\n{digest}1\n");
    daemon.docker(&["run", "--rm", "--network", "host", "busybox", "sh", "-c", ask])?.expect(0, &expected)?;
    daemon.docker(&["rm", "-f", "hosts"])?.expect(0, "hosts\n")
}

/// The bridge with the host's sockets: out, in by a published port, by an executed program, and after a restart.
fn host_sockets(daemon: &Daemon) -> Result<()> {
    let run = |words: &[&str]| daemon.docker(&[&["run", "--runtime", "casemate-host"], words].concat());
    let script =
        "ping -c 1 -W 10 10.79.0.1 | grep -o '1 packets received'; ip -4 -o addr show eth0 | grep -c 10.80.0
        nslookup -type=a some.name.example | grep -c 'Address: 10.79.0.1'";
    run(&["--rm", "busybox", "sh", "-c", script])?.expect(0, "1 packets received\n1\n1\n")?;
    run(&["-d", "--name", "fast", "-p", "8081:80", "busybox", "sh", "-c", SERVE])?.ok()?;
    let fetch = "import hashlib, urllib.request as r
print(hashlib.sha256(r.urlopen('http://10.79.0.2:8081/f', timeout=20).read()).hexdigest(), ' -')";
    let digest = digest()?;
    for time in ["at first", "after a restart"] {
        let what = format!("the published port of host sockets serves the file {time}");
        eventually(&what, Duration::from_secs(30), || {
            Ok(daemon.hosts.outside(&["python3", "-c", fetch])?.out == digest)
        })?;
        let ask = ["exec", "fast", "sh", "-c", "wget -q -O - http://127.0.0.1/f | sha256sum"];
        daemon.docker(&ask)?.expect(0, &digest)?;
        // Here mkdir in the script would fail: the directory is kept.
        daemon.docker(&["exec", "fast", "rm", "-r", "/www"])?.ok()?;
        daemon.docker(&["restart", "-t", "0", "fast"])?.ok()?;
    }
    // Another container of the same network, by way of the first one's loopback.
    let joined = ["--rm", "--network", "container:fast", "busybox", "sh", "-c"];
    let ask = "until wget -q -O got http://127.0.0.1/f 2>/dev/null; do sleep 0.2; done; sha256sum <got";
    run(&[&joined[..], &[ask]].concat())?.expect(0, &digest)?;
    let other = daemon.docker(&[&["run"], &joined[..], &["true"]].concat())?;
    ensure!(other.err.contains("have one network"), "{other}");
    daemon.docker(&["rm", "-f", "fast"])?.expect(0, "fast\n")
}

/// Names of containers, names outside, and IPv6 where the host has it.
fn user_network(daemon: &Daemon) -> Result<()> {
    let v6 = Path::new("/proc/sys/net/ipv6").exists();
    let words: &[&str] = if v6 {
        &["network", "create", "--ipv6", "--subnet", "fd81::/64", "user"]
    } else {
        &["network", "create", "user"]
    };
    daemon.docker(words)?.ok()?;
    let words = ["run", "-d", "--name", "web", "--network", "user", "--network-alias", "other", "busybox"];
    daemon.docker(&[&words[..], &["sh", "-c", SERVE]].concat())?.ok()?;
    let on =
        |script: &str| daemon.docker(&["run", "--rm", "--network", "user", "busybox", "sh", "-c", script]);
    let digest = digest()?;
    eventually("a container finds another one by its name", Duration::from_secs(30), || {
        Ok(on("wget -q -O - http://web/f | sha256sum")?.out == digest)
    })?;
    let script = "grep nameserver /etc/resolv.conf; ping -4 -c 1 -W 10 other | grep -o '1 packets received'
        ping -c 1 -W 10 some.name.example | grep -o '1 packets received'";
    on(script)?.expect(0, "nameserver 127.0.0.11\n1 packets received\n1 packets received\n")?;
    let by_hosts = ["run", "--rm", "--runtime", "casemate-host", "--network", "user", "busybox", "sh", "-c"];
    daemon
        .docker(&[&by_hosts[..], &["wget -q -O - http://web/f | sha256sum"]].concat())?
        .expect(0, &digest)?;
    if v6 {
        let address = daemon.docker(&[
            "inspect",
            "-f",
            "{{.NetworkSettings.Networks.user.GlobalIPv6Address}}",
            "web",
        ])?;
        let fetch = format!("wget -q -O - http://[{}]/f | sha256sum", address.ok()?.trim());
        on(&fetch)?.expect(0, &digest)?;
    }
    // What has an address in the namespace still answers for the sandbox alone.
    let address =
        daemon.docker(&["inspect", "-f", "{{.NetworkSettings.Networks.user.IPAddress}}", "web"])?.ok()?;
    let knock = format!("nc -w 5 {} 81 </dev/null 2>&1 | grep -o refused", address.trim());
    on(&knock)?.expect(0, "refused\n")?;
    daemon.docker(&["rm", "-f", "web"])?.expect(0, "web\n")
}

/// Two services that talk to each other, where `docker-compose` is installed.
fn compose(daemon: &Daemon) -> Result<()> {
    if !installed(&["docker-compose"]) {
        return Ok(());
    }
    let file = daemon.engine.path("compose.yml");
    let ask = "until wget -q -O got http://web/f 2>/dev/null; do sleep 0.2; done; sha256sum <got";
    // The file's own meaning of the dollar sign does not show up in these.
    let services = json!({ "version": "3", "services": {
        "web": { "image": "busybox", "command": ["sh", "-c", SERVE] },
        "ask": { "image": "busybox", "command": ["sh", "-c", ask], "depends_on": ["web"] },
    }});
    fs::write(&file, serde_json::to_vec(&services)?)?;
    let by = |words: &[&str]| {
        let mut command = limited("docker-compose");
        command.env("DOCKER_HOST", format!("unix://{}", daemon.engine.path("socket").display()));
        command.arg("-f").arg(&file).args(["-p", "two", "--ansi", "never"]).args(words);
        Did::by(command)
    };
    let up = by(&["up", "--exit-code-from", "ask"])?;
    ensure!(up.code == 0, "{up}");
    up.out_has(digest()?.split(' ').next().unwrap_or_default())?;
    by(&["down", "-t", "1"])?.ok()?;
    Ok(())
}
