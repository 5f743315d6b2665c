//! `lint`: what a bundle's configuration asks for beyond a plain sandbox.

use std::path::Path;

use anyhow::Result;
use runtime::Config;
use serde_json::Value;

use crate::output;

/// Host files that give more than their contents, and what they give.
const TELLING: [(&str, &str); 9] = [
    ("/var/run/docker.sock", "whoever reaches Docker's socket is root on the host"),
    ("/run/docker.sock", "whoever reaches Docker's socket is root on the host"),
    ("/run/containerd", "whoever reaches containerd's socket is root on the host"),
    ("/proc", "the host's processes and kernel settings"),
    ("/sys", "the host's devices and control groups"),
    ("/dev", "the host's devices"),
    ("/etc", "the host's configuration and secrets"),
    ("/root", "root's files"),
    ("/boot", "the host's kernel"),
];

pub fn show(bundle: &Path) -> Result<()> {
    let config = Config::load(bundle)?;
    let mut findings = config.warnings.clone();
    let spec = serde_json::to_value(&config.spec)?;
    findings.extend(mounts(&spec));
    findings.extend(namespaces(&spec));
    findings.extend(process(&spec));
    findings.extend(others(&spec));
    if findings.is_empty() {
        findings.push("nothing beyond a plain sandbox".to_owned());
    }
    let text = findings.join("\n") + "\n";
    output::print(&text);
    Ok(())
}

fn list<'a>(spec: &'a Value, pointer: &str) -> &'a [Value] {
    spec.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn mounts(spec: &Value) -> Vec<String> {
    let mut findings = Vec::new();
    for (index, mount) in list(spec, "/mounts").iter().enumerate() {
        let options = list(mount, "/options");
        let has = |word: &str| options.iter().any(|option| option == word);
        let source = mount.get("source").and_then(Value::as_str).unwrap_or_default();
        let bind = mount.get("type").is_some_and(|kind| kind == "bind") || has("bind") || has("rbind");
        if !bind {
            continue;
        }
        let telling = TELLING.iter().find(|(path, _)| Path::new(source).starts_with(path));
        let to_write = !has("ro") && !has("rro");
        match (telling, to_write) {
            _ if source == "/" => {
                findings.push(format!("mounts[{index}]: the whole file system of the host"));
            }
            (Some((_, why)), true) => {
                findings.push(format!("mounts[{index}]: {source} of the host, to be written: {why}"));
            }
            (Some((_, why)), false) => findings.push(format!("mounts[{index}]: {source} of the host: {why}")),
            (None, true) => findings.push(format!("mounts[{index}]: {source} of the host, to be written")),
            (None, false) => {}
        }
    }
    findings
}

fn namespaces(spec: &Value) -> Vec<String> {
    let all = list(spec, "/linux/namespaces");
    let mut findings = Vec::new();
    for (kind, without) in [
        ("network", "the network of the host: its loopback, its ports and whatever it reaches"),
        ("pid", "the processes of the host, which the sandbox never sees"),
        ("ipc", "the shared memory of the host, which the sandbox never sees"),
        ("mount", "the mounts of the host, which the sandbox never sees"),
    ] {
        if !all.iter().any(|namespace| namespace.get("type").is_some_and(|it| it == kind)) {
            findings.push(format!("linux.namespaces: without one of type {kind}: {without}"));
        }
    }
    findings
}

fn process(spec: &Value) -> Vec<String> {
    const MIGHTY: [&str; 7] = [
        "CAP_SYS_ADMIN",
        "CAP_SYS_PTRACE",
        "CAP_SYS_MODULE",
        "CAP_NET_ADMIN",
        "CAP_SYS_RAWIO",
        "CAP_BPF",
        "CAP_DAC_READ_SEARCH",
    ];
    let mut findings = Vec::new();
    let held: Vec<_> = list(spec, "/process/capabilities/bounding")
        .iter()
        .filter_map(Value::as_str)
        .filter(|name| MIGHTY.contains(name))
        .collect();
    if !held.is_empty() {
        findings
            .push(format!("process.capabilities: {}: they count inside the sandbox alone", held.join(", ")));
    }
    if spec.pointer("/process/noNewPrivileges") != Some(&Value::Bool(true)) {
        findings.push("process.noNewPrivileges: set-user-ID programs work inside".to_owned());
    }
    findings
}

fn others(spec: &Value) -> Vec<String> {
    let mut findings = Vec::new();
    for name in ["prestart", "createRuntime", "createContainer", "poststart", "poststop"] {
        for (index, hook) in list(spec, &format!("/hooks/{name}")).iter().enumerate() {
            let path = hook.get("path").and_then(Value::as_str).unwrap_or_default();
            findings.push(format!("hooks.{name}[{index}]: {path} runs on the host, outside the sandbox"));
        }
    }
    for (index, device) in list(spec, "/linux/devices").iter().enumerate() {
        let path = device.get("path").and_then(Value::as_str).unwrap_or_default();
        findings.push(format!("linux.devices[{index}]: {path}: no device of the host is passed on"));
    }
    if spec.pointer("/linux/seccomp").is_none_or(Value::is_null) {
        findings.push("linux.seccomp: absent: every call that the sandbox has can be made".to_owned());
    }
    for field in ["memory", "pids", "cpu"] {
        if spec.pointer(&format!("/linux/resources/{field}")).is_none_or(Value::is_null) {
            findings.push(format!("linux.resources.{field}: absent: nothing limits it"));
        }
    }
    findings
}
