//! Flags as Go's `flag` package takes them: one dash or two before a long name, `=true` and `=false` behind a switch.
//!
//! Engines that drive runc write such lines. They are turned into what the grammar expects; arguments of a program that
//! is to be run are left alone.

use std::ffi::OsString;

/// Switches: flags that take no value.
const SWITCHES: [&str; 32] = [
    "containerd",
    "docker",
    "files",
    "podman",
    "all",
    "auto-dedup",
    "debug",
    "detach",
    "ext-unix-sk",
    "file-locks",
    "force",
    "help",
    "ignore-paused",
    "keep",
    "lazy-pages",
    "leave-running",
    "no-new-keyring",
    "no-new-privs",
    "no-pivot",
    "no-subreaper",
    "pre-dump",
    "quiet",
    "shell-job",
    "stats",
    "strace",
    "systemd-cgroup",
    "timing",
    "tcp-established",
    "tcp-skip-in-flight",
    "tty",
    "version",
    "link-remap",
];

/// Commands whose words after the first are another program's.
const PASSING: [&str; 3] = ["do", "exec", "ps"];

/// Flags whose value is the next word, which may look like anything.
const TAKING: [&str; 38] = [
    "network",
    "host-net-policy",
    "ingress-bandwidth",
    "egress-bandwidth",
    "inject-interrupts",
    "config",
    "name",
    "path",
    "trace",
    "filestore",
    "patch",
    "writes",
    "log",
    "log-format",
    "root",
    "rootless",
    "cgroup-manager",
    "bundle",
    "b",
    "console-socket",
    "pid-file",
    "preserve-fds",
    "pidfd-socket",
    "cwd",
    "env",
    "e",
    "user",
    "u",
    "additional-gids",
    "g",
    "process",
    "p",
    "format",
    "f",
    "cap",
    "c",
    "cgroup",
    "interval",
];

pub fn normalise(args: Vec<OsString>) -> Vec<OsString> {
    let mut out = Vec::with_capacity(args.len());
    let mut args = args.into_iter();
    out.extend(args.next());
    let mut command: Option<String> = None;
    while let Some(arg) = args.next() {
        let Some(text) = arg.to_str().map(str::to_owned) else {
            out.push(arg);
            continue;
        };
        if text == "--" {
            out.push(arg);
            break;
        }
        if !text.starts_with('-') || text == "-" {
            out.push(arg);
            match &command {
                None => {
                    let is_do = text == "do";
                    command = Some(text);
                    if is_do {
                        break_at_program(&mut out, &mut args);
                    }
                }
                Some(name) if PASSING.contains(&name.as_str()) => break,
                Some(_) => {}
            }
            continue;
        }
        let name = text.trim_start_matches('-');
        let (name, value) = match name.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (name, None),
        };
        let is_switch = SWITCHES.contains(&name)
            || ["d", "t", "q", "a", "h", "v"].contains(&name)
            || is_short_force(name, command.as_deref());
        match value {
            Some("true" | "1" | "t" | "TRUE" | "True") if is_switch => out.push(dashed(name).into()),
            Some("false" | "0" | "f" | "FALSE" | "False") if is_switch => {}
            Some(value) => out.push(format!("{}={value}", dashed(name)).into()),
            None => {
                out.push(dashed(name).into());
                if !is_switch && TAKING.contains(&name) {
                    out.extend(args.next());
                }
            }
        }
    }
    out.extend(args);
    out
}

/// `-f` is `--force` for `delete`, and `--format` elsewhere.
fn is_short_force(name: &str, command: Option<&str>) -> bool {
    name == "f" && command == Some("delete")
}

fn dashed(name: &str) -> String {
    if name.chars().count() == 1 { format!("-{name}") } else { format!("--{name}") }
}

/// What follows `do` is a program, or flags in one form alone.
fn break_at_program(out: &mut Vec<OsString>, args: &mut std::vec::IntoIter<OsString>) {
    out.extend(args);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turned(line: &str) -> String {
        let words = line.split(' ').map(OsString::from).collect();
        let out: Vec<_> = normalise(words).into_iter().map(|word| word.into_string().unwrap()).collect();
        out.join(" ")
    }

    #[test]
    fn one_dash_is_as_good_as_two() {
        assert_eq!(
            turned("c -root /r create -bundle=/b -no-pivot x"),
            "c --root /r create --bundle=/b --no-pivot x"
        );
        assert_eq!(turned("c restore -no-subreaper x"), "c restore --no-subreaper x");
    }

    #[test]
    fn switches_have_values() {
        assert_eq!(turned("c delete --force=true x"), "c delete --force x");
        assert_eq!(turned("c exec -t=false --detach=1 x sh"), "c exec --detach x sh");
    }

    #[test]
    fn a_program_keeps_its_words() {
        assert_eq!(turned("c exec -e -x=1 id ls -color -l=true"), "c exec -e -x=1 id ls -color -l=true");
        assert_eq!(turned("c do ls -color"), "c do ls -color");
        assert_eq!(turned("c ps id -ef"), "c ps id -ef");
    }
}
