//! Go's own tests of its network packages over the loopback, run by the host kernel and in the sandbox: every test must
//! end in the same way. `-test.short` leaves out what needs other hosts.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail, ensure};

use crate::native::Native;
use crate::place::TempDir;
use crate::{jobs, rootfs, shell};

/// What is tested, by import path.
pub const PACKAGES: &[&str] = &[
    "net",
    "net/http",
    "net/http/cgi",
    "net/http/fcgi",
    "net/http/httptest",
    "net/http/httputil",
    "net/rpc",
    "net/rpc/jsonrpc",
    "net/smtp",
    "net/textproto",
    "crypto/tls",
];

/// Tests that may end otherwise in the sandbox: `package.Test`, a colon, the reason.
const KNOWN: &str = include_str!("../jobs/gonet-known.txt");

/// Compiles the tests of the packages, once for both kernels, into `/out`.
const BUILD: &str = r#"
set -e
export HOME=/tmp GOFLAGS=-buildvcs=false GOCACHE=/tmp/cache
for package in $packages; do (cd "$(go env GOROOT)/src/$package" && go test -c -o "/out/$(echo "$package" | tr / _).test" .); done
"#;

const RUN: &str = r#"
export HOME=/tmp
for package in $packages; do
  cd "$(go env GOROOT)/src/$package"
  # Into a file: what a test leaves running would keep a pipe open.
  timeout -s KILL 600 "/data/$(echo "$package" | tr / _).test" -test.v -test.short >/tmp/said 2>&1 </dev/null || true
  sed "s|^|$package |" /tmp/said
done
"#;

/// How each test ended, by `package.Test`.
fn ends(text: &str) -> BTreeMap<String, String> {
    let lines = text.lines().filter_map(|line| {
        let (package, rest) = line.split_once(' ')?;
        let (end, test) = rest.trim_start().strip_prefix("--- ")?.split_once(": ")?;
        let test = test.rsplit_once(" (").map_or(test, |(name, _)| name);
        Some((format!("{package}.{test}"), end.to_owned()))
    });
    lines.collect()
}

/// The command line `jobs gonet [PACKAGE...]`.
pub fn main(packages: &[&String]) -> Result<()> {
    let chosen: Vec<&str> =
        if packages.is_empty() { PACKAGES.to_vec() } else { packages.iter().map(|p| p.as_str()).collect() };
    let out = jobs::results()?;
    let built = out.join("gonet");
    if built.exists() {
        fs::remove_dir_all(&built)?;
    }
    fs::create_dir_all(&built)?;
    let scratch = TempDir::new("gonet")?;
    let native = Native::new(rootfs::jobs()?, scratch.path()).bind(&built, "/out", "rw");
    let packages = format!("packages='{}'\n", chosen.join(" "));
    let words = native.command(["bash", "-c", &format!("{packages}{BUILD}")]);
    shell::run(Command::new(&words[0]).args(&words[1..]))?;
    let pair = jobs::pair_with(
        "gonet",
        &format!("{packages}{RUN}"),
        Duration::from_hours(1),
        Some(built.as_path()),
    )?;
    fs::write(out.join("gonet.host"), pair.host.out())?;
    let inside = pair.inside?;
    fs::write(out.join("gonet.sandbox"), inside.out())?;
    let (host, inside) = (ends(&pair.host.out()), ends(&inside.out()));
    ensure!(!host.is_empty(), "nothing ran on the host: {}", pair.host);
    println!("{:20} {:>6} {:>6} {:>6}", "package", "tests", "equal", "known");
    let mut bad = 0;
    for package in chosen {
        let (mut equal, mut known, mut lines) = (0, 0, Vec::new());
        for (name, end) in
            host.iter().filter(|(name, _)| name.strip_prefix(package).is_some_and(|n| n.starts_with('.')))
        {
            let got = inside.get(name).map_or("no result", String::as_str);
            // What fails on the host judges nobody.
            if got == end || end == "FAIL" {
                equal += 1;
            } else if jobs::reason(KNOWN, |known| known == name).is_some() {
                known += 1;
            } else {
                lines.push(format!("  {name}: host {end}, sandbox {got}"));
            }
        }
        println!("{package:20} {:>6} {equal:>6} {known:>6}", equal + known + lines.len());
        bad += lines.len() + usize::from(equal == 0);
        for line in lines {
            println!("{line}");
        }
    }
    if bad > 0 {
        bail!("{bad} of the tests end otherwise than on the host; the output is in {}", out.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::ends;

    #[test]
    fn results_are_read_with_their_packages() {
        let text = "net === RUN   TestA\nnet --- PASS: TestA (0.00s)\nnet     --- SKIP: TestA/sub case (0.10s)\n\
                    net/http --- FAIL: TestB (1.00s)\n";
        let ends = ends(text);
        let got: Vec<(&str, &str)> = ends.iter().map(|(name, end)| (name.as_str(), end.as_str())).collect();
        assert_eq!(got, [("net.TestA", "PASS"), ("net.TestA/sub case", "SKIP"), ("net/http.TestB", "FAIL")]);
    }
}
