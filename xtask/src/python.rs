//! CPython's own tests, run by the host kernel and in the sandbox: every test must end in the same way.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::jobs;

/// The modules of Debian's libpython3-testsuite that lean on the kernel.
pub const MODULES: &[&str] = &[
    "test_os",
    "test_posix",
    "test_signal",
    "test_threading",
    "test_thread",
    "test_threadsignals",
    "test_subprocess",
    "test_multiprocessing_fork",
    "test_multiprocessing_forkserver",
    "test_multiprocessing_spawn",
    "test_mmap",
    "test_select",
    "test_selectors",
    "test_poll",
    "test_epoll",
    "test_pty",
    "test_fcntl",
    "test_time",
    "test_resource",
    "test_tempfile",
    "test_shutil",
    "test_pathlib",
    "test_stat",
    "test_socket",
    "test_socketserver",
    "test_fork1",
    "test_wait3",
    "test_wait4",
    "test_posixpath",
    "test_glob",
    "test_ioctl",
    "test_openpty",
    "test_pipes",
    "test_popen",
    "test_file",
    "test_fileio",
    "test_largefile",
    "test_mailbox",
    "test_zipfile",
    "test_tarfile",
    "test_concurrent_futures",
    "test_asyncio",
    "test_eintr",
    "test_faulthandler",
    "test_getpass",
    "test_grp",
    "test_pwd",
];

/// Tests that may end otherwise in the sandbox, each with its reason.
const KNOWN: &str = include_str!("../jobs/python-known.txt");

/// How each test ended, by its full name.
pub type Ends = BTreeMap<String, String>;

/// Reads what `python3 -m test -v` prints: `name (test.test_os.FileTests.name) ... ok`, where a test may print lines
/// of its own before its result.
pub fn ends(text: &str) -> Ends {
    let mut ends = Ends::new();
    let mut current: Option<String> = None;
    for line in text.lines() {
        let mut rest = line;
        if let Some((front, after)) = line.split_once(") ... ")
            && let Some((_, full)) = front.split_once(" (")
        {
            current = Some(full.to_owned());
            rest = after;
        } else if let Some((front, after)) = line.split_once(" ... ")
            && current.is_some()
            && !front.contains(" (")
        {
            // A documentation string stands on a line of its own, before the dots.
            rest = after;
        } else if let Some((_, full)) = line.strip_suffix(')').and_then(|line| line.split_once(" (test."))
            && !full.contains(' ')
        {
            current = Some(format!("test.{full}"));
            continue;
        }
        let Some(name) = &current else { continue };
        let word = rest.trim();
        let end = ["ok", "FAIL", "ERROR", "expected failure", "unexpected success"]
            .into_iter()
            .find(|end| word == *end)
            .or_else(|| word.starts_with("skipped ").then_some("skipped"));
        if let Some(end) = end {
            ends.insert(name.clone(), end.to_owned());
            current = None;
        }
    }
    ends
}

/// Whether a test that is well on the host is not so inside. One that fails on the host judges nobody, and one that is
/// left out there may do well.
fn worse(host: &str, inside: &str) -> bool {
    !matches!(host, "FAIL" | "ERROR" | "unexpected success")
        && inside != host
        && (host, inside) != ("skipped", "ok")
}

/// The reason why a test may differ, if there is one. A line of the list is `test.name: reason`.
fn reason(name: &str) -> Option<&'static str> {
    jobs::reason(KNOWN, |known| name.starts_with(known))
}

/// The command line `jobs python [MODULE...]`.
pub fn main(modules: &[&String]) -> Result<()> {
    let chosen: Vec<&str> =
        if modules.is_empty() { MODULES.to_vec() } else { modules.iter().map(|m| m.as_str()).collect() };
    let out = jobs::results()?;
    println!("{:32} {:>6} {:>6} {:>6} {:>9} {:>9}", "module", "tests", "equal", "known", "host", "sandbox");
    let mut bad = 0;
    for module in chosen {
        let script = format!(
            "mkdir -p /tmp/t; cd /tmp/t; export HOME=/tmp/t; timeout 600 python3 -m test -v -u network,subprocess {module} 2>&1; true"
        );
        let pair = jobs::pair("python", &script, Duration::from_secs(700))?;
        fs::write(out.join(format!("{module}.host")), pair.host.out())?;
        let said = match &pair.inside {
            Ok(outcome) => outcome.out(),
            Err(error) => format!("{error:#}"),
        };
        fs::write(out.join(format!("{module}.sandbox")), &said)?;
        let (host, inside) = (ends(&pair.host.out()), ends(&said));
        let mut known = 0;
        let mut lines = Vec::new();
        for (name, end) in &host {
            let got = inside.get(name).map_or("no result", String::as_str);
            if worse(end, got) {
                match reason(name) {
                    Some(_) => known += 1,
                    None => lines.push(format!("  {name}: host {end}, sandbox {got}")),
                }
            }
        }
        let took = pair.inside.as_ref().map_or(f64::NAN, |outcome| outcome.took().as_secs_f64());
        let equal = host.len() - known - lines.len();
        let host_s = pair.host.took().as_secs_f64();
        println!("{module:32} {:>6} {equal:>6} {known:>6} {host_s:>8.1}s {took:>8.1}s", host.len());
        bad += lines.len() + usize::from(host.is_empty());
        for line in &lines {
            println!("{line}");
        }
        if host.is_empty() {
            println!("  no result on the host: see {}", out.display());
        }
    }
    if bad > 0 {
        bail!("{bad} of the tests end otherwise than on the host; the output is in {}", out.display());
    }
    Ok(())
}

/// The same of one module, for a caller that wants the differences: names with the end on the host and inside.
pub fn compare(module: &str, patterns: &[&str], limit: Duration) -> Result<Vec<String>> {
    let matches: Vec<String> = patterns.iter().map(|pattern| format!("-m '{pattern}'")).collect();
    let script = format!("cd /tmp; HOME=/tmp python3 -m test -v {} {module} 2>&1; true", matches.join(" "));
    let pair = jobs::pair("python", &script, limit)?;
    let host = ends(&pair.host.out());
    let inside = ends(&pair.inside?.out());
    (!host.is_empty()).then_some(()).with_context(|| format!("no test of {module} ran: {}", pair.host))?;
    let differs = host.iter().filter(|(name, end)| {
        worse(end, inside.get(*name).map_or("no result", String::as_str)) && reason(name).is_none()
    });
    Ok(differs.map(|(name, end)| format!("{name}: host {end}, sandbox {:?}", inside.get(name))).collect())
}

#[cfg(test)]
mod tests {
    use super::ends;

    #[test]
    fn results_are_read_across_lines() {
        let text = "test_a (test.test_os.T.test_a) ... ok\ntest_b (test.test_os.T.test_b)\nSays so. ... skipped 'no'\n\
                    test_c (test.test_os.T.test_c) ... noise\nERROR\n";
        let ends = ends(text);
        let got: Vec<(&str, &str)> = ends.iter().map(|(name, end)| (name.as_str(), end.as_str())).collect();
        let expected = [
            ("test.test_os.T.test_a", "ok"),
            ("test.test_os.T.test_b", "skipped"),
            ("test.test_os.T.test_c", "ERROR"),
        ];
        assert_eq!(got, expected);
    }
}
