//! `--network=host`: a sandbox with a network namespace of its own whose sockets the host's kernel makes there. The tests make
//! the namespaces: a veth pair leads from the sandbox' to another one.

use std::net::{Ipv4Addr, TcpListener};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use xtask::bundle::{Bundle, write_config};
use xtask::trial::Trial;

use crate::common::debian;
use crate::links::{Pair, possible};

/// Answers every client with what it sends, in capitals.
const SERVER: &str = "
import socket
s = socket.create_server(('', 7007), family=socket.AF_INET6, dualstack_ipv6=True)
while True:
    c, _ = s.accept()
    while data := c.recv(65536): c.sendall(data.upper())
    c.close()
";

/// Asks it, once it is there.
const CLIENT: &str = "
import socket, sys, time
for _ in range(1000):
    try: s = socket.create_connection((sys.argv[1], 7007), 30); break
    except OSError: time.sleep(0.02)
s.sendall(b'hello '); s.sendall(sys.argv[2].encode()); s.shutdown(1)
got = b''
while data := s.recv(100): got += data
print(got.decode())
";

/// A bundle of a Python program whose network namespace lies at `path`, or is a new one.
fn bundle(trial: &Trial, name: &str, program: &str, path: Option<&str>, annotations: Value) -> Result<()> {
    let mut config = Bundle::new(debian()?, ["python3", "-c", program]).config();
    ensure!(config["linux"]["namespaces"][1]["type"] == "network", "the namespaces have another order");
    if let Some(path) = path {
        config["linux"]["namespaces"][1]["path"] = path.into();
    }
    config["annotations"] = annotations;
    write_config(&trial.path().join("bundle").join(name), &config)
}

/// What every script begins with: `rt`, the command in this mode, and `no_broker`, which waits until none is left in a namespace.
fn prelude(trial: &Trial) -> String {
    format!(
        "plain() {{ {} --root {} --log $dir/log \"$@\"; }}; rt() {{ plain --network=host \"$@\"; }}
         id={}; bundle={}; dir={}
         trap 'for part in $id-b $id-c $id; do plain delete -f $part; done' EXIT
         until_() {{ for i in $(seq 1000); do \"$@\" && return 0; sleep 0.02; done; echo \"not in time: $*\"; }}
         brokers() {{
           for p in $(ip netns pids $1); do
             tr '\\0' ' ' 2>/dev/null </proc/$p/cmdline | grep -q ^casemate-sockets && echo $p
           done
         }}
         gone() {{ [ -z \"$(brokers $1)\" ]; }}
         ",
        trial.programs().casemate.display(),
        trial.path().join("state").display(),
        trial.id(),
        trial.path().join("bundle").display(),
        trial.path().join("scratch").display(),
    )
}

#[test]
fn sockets_are_made_in_the_containers_namespace() -> Result<()> {
    if !possible() {
        return Ok(());
    }
    let (trial, pair) = (Trial::new("hostns")?, Pair::new("hn", false)?);
    bundle(&trial, "a", SERVER, Some(&pair.path()), Value::Null)?;
    // Of the machine, whose loopback is another one.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let inside = format!(
        "import os, socket
print([name for _, name in socket.if_nameindex()])
print(socket.socket().connect_ex(('127.0.0.1', {})))
s = socket.create_server(('127.0.0.1', 0))
c = socket.create_connection(s.getsockname()); a, at = s.accept()
print(at == c.getsockname(), c.send(b'xyz'), a.recv(10))
rows = [row.split() for kind in ('tcp', 'tcp6') for row in open('/proc/net/' + kind) if 'sl' not in row]
ports = {{int(row[1].split(':')[1], 16): int(row[9]) for row in rows if row[3] == '0A'}}
print(7007 in ports, ports[s.getsockname()[1]] == os.fstat(s.fileno()).st_ino)
print(open('/proc/net/dev').read().count('eth0:'), open('/proc/net/route').read().count('eth0'))
c = socket.create_connection(('10.77.0.1', 7007)); c.sendall(b'me'); print(c.recv(2), c.getsockname()[0])
",
        listener.local_addr()?.port()
    );
    std::fs::write(trial.path().join("scratch/inside.py"), inside)?;
    std::fs::write(trial.path().join("scratch/client.py"), CLIENT)?;
    let script = prelude(&trial)
        + &format!(
            "ns={}; out={}
             ask() {{ ip netns exec $out python3 $dir/client.py \"$@\"; }}
             for word in first again; do
               rt create --bundle $bundle/a $id </dev/null >/dev/null 2>&1 || exit 1
               rt start $id || exit 2
               ask 10.77.0.1 $word; ask fd77::1 $word
               [ $(brokers $ns | wc -l) = 1 ] || echo brokers: $(brokers $ns)
               grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/$(brokers $ns)/status
               rt exec $id python3 -c \"$(cat $dir/inside.py)\"
               # The addresses are still the host kernel's, and so is what listens there.
               ip -n $ns -o addr show eth0 | grep -c 10.77.0.1/24
               ip netns exec $ns ss -Hltn | grep -c :7007
               rt kill $id KILL; until_ gone $ns; rt delete -f $id
             done
             grep -v 'killed by SIGKILL' $dir/log; true",
            pair.inside, pair.outside
        );
    let out = trial.host(["bash", "-c", &script]).run()?.expect(0)?;
    let once = |word: &str| {
        format!(
            "HELLO {word}\nHELLO {word}\nCapEff:\t0000000000002400\nNoNewPrivs:\t1\nSeccomp:\t2\n\
             ['lo', 'eth0']\n111\nTrue 3 b'xyz'\nTrue True\n1 2\nb'ME' 10.77.0.1\n1\n1\n"
        )
    };
    out.expect_out(&(once("FIRST") + &once("AGAIN")))?;
    trial.finish()
}

/// A namespace that nobody sets up has a loopback that is up, settings as they are configured, and nothing of the machine's.
#[test]
fn a_new_namespace_has_a_loopback() -> Result<()> {
    if !possible() {
        return Ok(());
    }
    let trial = Trial::new("hostnew")?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let program = format!(
        "import os, socket
print([name for _, name in socket.if_nameindex()], socket.socket().connect_ex(('127.0.0.1', {})))
os.setuid(1000)
s = socket.create_server(('127.0.0.1', 80)); c = socket.create_connection(s.getsockname()); print('connected')
print(open('/proc/sys/net/ipv4/ip_unprivileged_port_start').read().strip())
try: socket.create_connection(('192.0.2.1', 80))
except OSError as e: print(e.errno)",
        listener.local_addr()?.port()
    );
    let mut config = Bundle::new(debian()?, ["python3", "-c", &program]).config();
    config["linux"]["sysctl"] = json!({ "net.ipv4.ip_unprivileged_port_start": "0" });
    let dir = trial.path().join("bundle/new");
    write_config(&dir, &config)?;
    let dir = dir.to_string_lossy().into_owned();
    let out = trial.casemate(["--network=host", "run", "--bundle", &dir, trial.id()]).run()?.expect(0)?;
    out.expect_out("['lo'] 111\nconnected\n0\n101\n")?.expect_err("")?;
    trial.finish()
}

#[test]
fn a_policy_holds_in_the_containers_namespace() -> Result<()> {
    if !possible() {
        return Ok(());
    }
    let (trial, pair) = (Trial::new("hostnspol")?, Pair::new("hp", false)?);
    let policy = trial.path().join("policy.json");
    let rules = json!([{ "action": "allow", "to": ["10.77.0.2"], "ports": [80] }]);
    std::fs::write(&policy, json!({ "default": "deny", "rules": rules }).to_string())?;
    let program = "
import errno, socket
for port in (80, 81):
    print(errno.errorcode[socket.socket().connect_ex(('10.77.0.2', port))])
print(errno.errorcode[socket.socket().connect_ex(('127.0.0.1', 80))])
";
    bundle(&trial, "a", program, Some(&pair.path()), Value::Null)?;
    let (dir, policy) = (trial.path().join("bundle/a"), policy.to_string_lossy().into_owned());
    let words = [
        "--network=host",
        "--host-net-policy",
        &policy,
        "run",
        "--bundle",
        &dir.to_string_lossy(),
        trial.id(),
    ];
    let out = trial.casemate(words).run()?.expect(0)?;
    let denied = "network policy: denied TCP to 10.77.0.2:81\nnetwork policy: denied TCP to 127.0.0.1:80\n";
    out.expect_out("ECONNREFUSED\nEHOSTUNREACH\nEHOSTUNREACH\n")?.expect_err(denied)?;
    trial.finish()
}

/// The containers of a pod have one network: one that is to have another is refused.
#[test]
fn a_pod_is_in_one_mode() -> Result<()> {
    if !possible() {
        return Ok(());
    }
    let (trial, pair) = (Trial::new("hostnspod")?, Pair::new("hd", false)?);
    let path = pair.path();
    let pod = |kind: &str, mode: Option<&str>| {
        let mut all =
            json!({ "io.kubernetes.cri.container-type": kind, "io.kubernetes.cri.sandbox-id": trial.id() });
        if let Some(mode) = mode {
            all["casemate/network"] = mode.into();
        }
        all
    };
    bundle(&trial, "s", SERVER, Some(&path), pod("sandbox", None))?;
    bundle(&trial, "m", "import time; time.sleep(1000)", Some(&path), pod("container", None))?;
    bundle(&trial, "t", "import time; time.sleep(1000)", Some(&path), pod("container", Some("sandbox")))?;
    bundle(&trial, "h", "0", Some(&path), json!({ "casemate/network": "host" }))?;
    std::fs::write(trial.path().join("scratch/client.py"), CLIENT)?;
    let script = prelude(&trial)
        + &format!(
            "out={}
             rt create --bundle $bundle/s $id </dev/null >/dev/null 2>&1 && rt start $id || exit 1
             for how in 'plain create --bundle '$bundle/m 'rt create --bundle '$bundle/t; do
               $how $id-b 2>&1 </dev/null | grep -o 'is to be .* one network' | sed s/$id/ID/
             done
             rt create --bundle $bundle/m $id-c </dev/null >/dev/null 2>&1 && rt start $id-c || exit 2
             rt exec $id-c python3 -c \"$(cat $dir/client.py)\" 127.0.0.1 member
             ip netns exec $out python3 $dir/client.py 10.77.0.1 outside
             plain create --bundle $bundle/h $id-b 2>&1 </dev/null | grep -o 'annotation.*'
             plain --network=bridge create --bundle $bundle/m $id-b 2>&1 </dev/null | grep -o 'invalid value.*' | head -n 1",
            pair.outside
        );
    let out = trial.host(["bash", "-c", &script]).run()?.expect(0)?;
    let refused = "is to be \"sandbox\", and that of the sandbox ID which it goes into is \"host\": \
                   the containers of a sandbox have one network\n";
    out.expect_out(&format!(
        "{refused}{refused}HELLO MEMBER\nHELLO OUTSIDE\n\
         annotation casemate/network: \"host\" is not for an annotation to ask for: the runtime's --network is \"sandbox\"\n\
         invalid value \"bridge\" for flag -network: must be sandbox or host\n"
    ))?;
    trial.finish()
}
