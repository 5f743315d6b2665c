//! Which crate may depend on which: the architecture's direction of dependencies, checked.
//!
//! `abi ← hostsys ← platform ← platform-systrap`; `abi ← sentry/base ← memory ← mm ← vfs ← fs/*, net, ipc, loader ←
//! kernel ← fs/proc, syscalls ← boot`; `netstack` knows no Sentry type and is used by `net` and `boot`;
//! the life-cycle side (`runtime`, `runsc-compat`, `shim`) never imports a sentry crate
//! and meets it in the control protocol; `casemate` alone links both.

use anyhow::{Result, bail};

use crate::crates::{self, Crate};

/// Each crate and the crates of the workspace that it may use. `fs-*` stands for the file systems below the kernel.
const ALLOWED: &[(&str, &[&str])] = &[
    ("abi", &[]),
    ("hostsys", &["abi"]),
    ("platform", &["abi", "hostsys"]),
    ("platform-systrap", &["abi", "hostsys", "platform"]),
    ("sentry-base", &["abi", "hostsys"]),
    ("sentry-memory", &["abi", "hostsys", "platform", "sentry-base"]),
    ("sentry-mm", &["abi", "hostsys", "platform", "sentry-base", "sentry-memory"]),
    ("sentry-vfs", &["abi", "platform", "sentry-base", "sentry-memory", "sentry-mm"]),
    ("netstack", &[]),
    (
        "sentry-net",
        &["abi", "platform", "sentry-base", "sentry-memory", "sentry-mm", "sentry-vfs", "netstack"],
    ),
    ("sentry-ipc", &["abi", "platform", "sentry-base", "sentry-memory", "sentry-mm", "sentry-vfs"]),
    ("sentry-loader", &["abi", "platform", "sentry-base", "sentry-memory", "sentry-mm", "sentry-vfs"]),
    // The device file system is a tmpfs whose nodes are devices.
    ("fs-dev", &["abi", "platform", "sentry-base", "sentry-memory", "sentry-mm", "sentry-vfs", "fs-tmpfs"]),
    ("fs-event", UNDER_FS),
    ("fs-overlay", UNDER_FS),
    ("fs-pipe", UNDER_FS),
    ("fs-sys", UNDER_FS),
    ("fs-tmpfs", UNDER_FS),
    ("fs-gofer", UNDER_HOST_FS),
    ("fs-host", UNDER_HOST_FS),
    (
        "sentry-kernel",
        &[
            "abi",
            "platform",
            "sentry-base",
            "sentry-memory",
            "sentry-mm",
            "sentry-vfs",
            "sentry-net",
            "sentry-ipc",
            "sentry-loader",
            "fs-*",
        ],
    ),
    (
        "fs-proc",
        &[
            "abi",
            "platform",
            "sentry-base",
            "sentry-memory",
            "sentry-mm",
            "sentry-vfs",
            "sentry-net",
            "sentry-ipc",
            "sentry-loader",
            "sentry-kernel",
            "fs-*",
        ],
    ),
    (
        "sentry-syscalls",
        &[
            "abi",
            "platform",
            "sentry-base",
            "sentry-memory",
            "sentry-mm",
            "sentry-vfs",
            "sentry-net",
            "sentry-ipc",
            "sentry-loader",
            "sentry-kernel",
            "fs-proc",
            "fs-*",
        ],
    ),
    (
        "sentry-boot",
        &[
            "abi",
            "hostsys",
            "platform",
            "platform-systrap",
            "sentry-base",
            "sentry-memory",
            "sentry-mm",
            "sentry-vfs",
            "sentry-net",
            "sentry-ipc",
            "sentry-loader",
            "sentry-kernel",
            "sentry-syscalls",
            "fs-proc",
            "fs-*",
            "netstack",
            "gofer-protocol",
            "control-protocol",
        ],
    ),
    ("gofer-protocol", &["abi", "hostsys"]),
    ("gofer", &["abi", "hostsys", "gofer-protocol"]),
    ("control-protocol", &["abi", "hostsys"]),
    // The life-cycle side starts the gofer; it knows the Sentry by the control protocol alone.
    ("runtime", &["abi", "hostsys", "control-protocol", "gofer"]),
    ("runsc-compat", &["abi", "hostsys", "control-protocol", "runtime"]),
    ("shim", &["abi", "hostsys", "runtime"]),
    ("casemate", &["abi", "hostsys", "runsc-compat", "shim", "runtime", "sentry-boot", "gofer"]),
    ("syscall-tests", &[]),
    ("benches", &["xtask"]),
    ("xtask", &[]),
];

const UNDER_FS: &[&str] = &["abi", "platform", "sentry-base", "sentry-memory", "sentry-mm", "sentry-vfs"];
const UNDER_HOST_FS: &[&str] = &[
    "abi",
    "hostsys",
    "platform",
    "sentry-base",
    "sentry-memory",
    "sentry-mm",
    "sentry-vfs",
    "gofer-protocol",
];
/// File systems that know nothing of tasks.
const BELOW_KERNEL: &[&str] =
    &["fs-dev", "fs-event", "fs-overlay", "fs-pipe", "fs-sys", "fs-tmpfs", "fs-gofer", "fs-host"];

/// Fails with every dependency that goes the wrong way.
pub fn check() -> Result<()> {
    let wrong = violations(&crates::all()?);
    if !wrong.is_empty() {
        bail!("dependencies against the architecture:\n  {}", wrong.join("\n  "));
    }
    Ok(())
}

fn violations(crates: &[Crate]) -> Vec<String> {
    let mut wrong = Vec::new();
    for Crate { name, needs, .. } in crates {
        let Some((_, allowed)) = ALLOWED.iter().find(|(known, _)| known == name) else {
            wrong.push(format!("{name}: not in the table of xtask/src/layers.rs: say where it stands"));
            continue;
        };
        for need in needs {
            let grouped = allowed.contains(&"fs-*") && BELOW_KERNEL.contains(&need.as_str());
            if !grouped && !allowed.contains(&need.as_str()) {
                wrong.push(format!("{name} must not depend on {need}"));
            }
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_dependency_goes_the_right_way() {
        check().unwrap();
    }

    #[test]
    fn a_wrong_dependency_is_named() {
        let one = |name: &str, needs: &[&str]| Crate {
            name: name.into(),
            folder: "/".into(),
            needs: needs.iter().map(|need| (*need).to_owned()).collect(),
            roots: Vec::new(),
        };
        let found = violations(&[one("runtime", &["abi", "sentry-kernel"]), one("stranger", &[])]);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("runtime must not depend on sentry-kernel"));
        assert!(violations(&[one("sentry-kernel", &["fs-pipe"])]).is_empty());
        assert_eq!(violations(&[one("sentry-kernel", &["fs-proc"])]).len(), 1);
    }
}
