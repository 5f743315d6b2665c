//! The same command lines for the real runc and for casemate: exit code, standard output and the last error in the log
//! must be equal, but for what is listed with its reason.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "test code")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use xtask::bundle::Bundle;
use xtask::place::TempDir;
use xtask::{programs, rootfs, shell};

/// How standard output is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Out {
    Same,
    /// JSON: the names of the fields, and the values that do not depend on the run.
    Json,
    /// Words that tell of the run, such as process numbers: the first line alone.
    FirstLine,
    Any,
}

/// A command line, how its output is compared, and, where casemate differs on purpose, why.
type Line = (&'static str, Out, Option<&'static str>);

const SAME: Option<&str> = None;

/// One life after the other; each line sees what those before it have left.
const LINES: &[Line] = &[
    ("list", Out::Same, SAME),
    ("list -q", Out::Same, SAME),
    ("list -f json", Out::Same, SAME),
    ("list --format json", Out::Same, SAME),
    ("list -f bogus", Out::Same, SAME),
    ("state a", Out::Same, SAME),
    ("start a", Out::Same, SAME),
    ("kill a", Out::Same, SAME),
    ("kill a KILL", Out::Same, SAME),
    ("delete a", Out::Same, SAME),
    ("delete -f a", Out::Same, SAME),
    ("delete --force a", Out::Same, SAME),
    ("delete --force=true a", Out::Same, SAME),
    ("pause a", Out::Same, SAME),
    ("resume a", Out::Same, SAME),
    ("ps a", Out::Same, SAME),
    ("ps -f json a", Out::Same, SAME),
    ("events --stats a", Out::Same, SAME),
    ("update --memory 100m a", Out::Same, SAME),
    ("exec a true", Out::Same, SAME),
    ("exec a", Out::Same, SAME),
    ("start", Out::Any, SAME),
    ("start a b", Out::Any, SAME),
    ("state", Out::Any, SAME),
    ("delete", Out::Any, SAME),
    ("kill", Out::Any, SAME),
    ("pause", Out::Any, SAME),
    ("resume", Out::Any, SAME),
    ("create", Out::Any, SAME),
    ("run", Out::Any, SAME),
    ("events", Out::Any, SAME),
    ("update", Out::Any, SAME),
    ("ps", Out::Any, SAME),
    ("exec", Out::Any, SAME),
    ("state --bogus a", Out::Any, SAME),
    ("state -bogus a", Out::Any, SAME),
    ("delete --bogus=1 a", Out::Any, SAME),
    ("list extra", Out::Any, SAME),
    ("list --quiet", Out::Same, SAME),
    ("features extra", Out::Any, SAME),
    ("kill a 99", Out::Same, SAME),
    ("kill a USR1 extra", Out::Any, SAME),
    ("pause --bogus a", Out::Any, SAME),
    ("spec --bundle {bundle}", Out::Same, SAME),
    ("create --bundle {nocwd} a", Out::Same, Some("the sentence names the file and the field")),
    ("create --bundle {dupns} a", Out::Same, Some("the sentence names the file and the field")),
    ("create --bundle {sysctl} a", Out::Same, SAME),
    ("create --bundle {seccomp} a", Out::Same, Some("the sentence names the file and the field")),
    ("state a", Out::Same, SAME),
    ("create --bundle {bundle} --pid-file /nonesuch/pid a", Out::Same, SAME),
    ("state a", Out::Same, SAME),
    (
        "create --bundle {bundle} a/b",
        Out::Same,
        Some("the sentence says besides which characters are allowed"),
    ),
    (
        "create --bundle {bundle} ..",
        Out::Same,
        Some("the sentence says besides which characters are allowed"),
    ),
    ("create --bundle /nonesuch a", Out::Same, Some("the sentence names the bundle")),
    ("create --bundle {missing} a", Out::Same, SAME),
    ("state a", Out::Same, SAME),
    ("create --bundle {noargs} a", Out::Same, Some("the sentence names the file and the field")),
    ("state a", Out::Same, SAME),
    ("create -bundle {bundle} -pid-file {dir}/pid a", Out::Same, SAME),
    ("create --bundle {bundle} a", Out::Same, SAME),
    ("state a", Out::Json, SAME),
    ("list", Out::FirstLine, SAME),
    ("list -q", Out::Same, SAME),
    ("list -f json", Out::Json, SAME),
    ("exec a echo in a created container", Out::Same, SAME),
    ("resume a", Out::Same, SAME),
    ("start a", Out::Same, SAME),
    ("start a", Out::Same, SAME),
    ("state a", Out::Json, SAME),
    ("exec a echo hello", Out::Same, SAME),
    ("exec a sh -c {exit7}", Out::Same, SAME),
    ("exec a sh -c {kill}", Out::Same, SAME),
    ("exec -e A=b -e C=d a printenv A C", Out::Same, SAME),
    ("exec --cwd /tmp a pwd", Out::Same, SAME),
    ("exec --cwd /nonesuch a pwd", Out::Same, SAME),
    ("exec --user 5:6 a id -u", Out::Same, SAME),
    ("exec -u 5:6 a id -g", Out::Same, SAME),
    ("exec -u bogus a true", Out::Same, SAME),
    ("exec -u 5:bogus a true", Out::Same, SAME),
    ("exec -g 7 a id -G", Out::Same, SAME),
    ("exec --additional-gids 7 --user 3 a id -G", Out::Same, SAME),
    ("exec --cap CAP_BOGUS a true", Out::Same, SAME),
    ("exec -e BAD a true", Out::Same, SAME),
    ("exec --cwd relative a pwd", Out::Same, SAME),
    ("exec --no-new-privs a grep NoNewPrivs /proc/self/status", Out::Same, SAME),
    ("exec --env A=1 --env=B=2 a printenv A B", Out::Same, SAME),
    ("exec --pid-file /nonesuch/pid a true", Out::Same, SAME),
    ("exec --process /nonesuch a", Out::Same, SAME),
    ("exec --process {dir}/bad.json a", Out::Same, Some("the sentence says which file is wrong, and where")),
    ("exec a nonesuch", Out::Same, SAME),
    ("exec a /nonesuch", Out::Same, SAME),
    ("exec a /etc/passwd", Out::Same, SAME),
    ("exec --process {process} a", Out::Same, SAME),
    ("exec -d --pid-file {dir}/exec-pid a sleep 1", Out::Same, SAME),
    ("exec --detach --tty a true", Out::Same, SAME),
    ("exec --console-socket {dir}/none a true", Out::Same, SAME),
    ("ps a", Out::FirstLine, SAME),
    ("ps -f bogus a", Out::Same, SAME),
    ("events --interval 0s a", Out::Same, SAME),
    ("events --interval -1s a", Out::Same, SAME),
    ("events --interval x a", Out::Any, SAME),
    ("update --pids-limit abc a", Out::Any, SAME),
    ("update --memory 1x a", Out::Same, SAME),
    ("update --cpu-period abc a", Out::Same, SAME),
    ("update --cpu-share 512 a", Out::Same, SAME),
    ("update --cpu-quota 50000 --cpu-period 100000 a", Out::Same, SAME),
    ("update -r /nonesuch a", Out::Same, SAME),
    ("update -r {dir}/bad.json a", Out::Same, Some("the sentence says what is wrong, and where")),
    ("update -r {dir}/resources.json a", Out::Same, SAME),
    ("update a", Out::Same, SAME),
    ("ps a aux", Out::Any, SAME),
    ("run --bundle {bundle} a", Out::Same, SAME),
    ("checkpoint a", Out::Same, Some("there are no checkpoints yet")),
    ("kill a -1", Out::Same, SAME),
    ("kill a 0", Out::Same, SAME),
    ("kill a 99", Out::Same, SAME),
    ("update --memory 100000000 a", Out::Same, SAME),
    ("update --pids-limit 100 a", Out::Same, SAME),
    ("kill a BOGUS", Out::Same, SAME),
    ("kill a 0x", Out::Same, SAME),
    ("kill a USR1", Out::Same, SAME),
    ("kill a sigusr1", Out::Same, SAME),
    ("kill a 10", Out::Same, SAME),
    ("delete a", Out::Same, SAME),
    ("pause a", Out::Same, SAME),
    ("state a", Out::Json, SAME),
    ("pause a", Out::Same, SAME),
    ("exec a true", Out::Same, SAME),
    ("delete a", Out::Same, SAME),
    ("kill a TERM", Out::Same, SAME),
    ("resume a", Out::Same, SAME),
    ("resume a", Out::Same, SAME),
    ("kill a KILL", Out::Same, SAME),
    ("{settle}", Out::Same, SAME),
    ("state a", Out::Json, SAME),
    ("list -q", Out::Same, SAME),
    ("start a", Out::Same, SAME),
    ("exec a true", Out::Same, SAME),
    ("kill a TERM", Out::Same, SAME),
    ("kill -a a KILL", Out::Same, SAME),
    ("kill --all a KILL", Out::Same, SAME),
    ("pause a", Out::Any, Some("a stopped container cannot be paused; runc freezes its empty group")),
    ("resume a", Out::Any, Some("it was not paused")),
    (
        "ps a",
        Out::Any,
        Some("a stopped container has no processes: runc lists none, or says what its groups lack"),
    ),
    ("delete a", Out::Same, SAME),
    ("delete a", Out::Same, SAME),
    ("state a", Out::Same, SAME),
    ("run -d --bundle {bundle} a", Out::Same, SAME),
    ("state a", Out::Json, SAME),
    ("delete -f a", Out::Same, SAME),
    ("create --bundle {bundle} a", Out::Same, SAME),
    ("delete a", Out::Same, SAME),
    ("create --bundle {nonesuch} a", Out::Same, SAME),
    ("create --bundle {noexec} a", Out::Same, SAME),
    ("state a", Out::Same, SAME),
    ("run --bundle {seven} a", Out::Same, SAME),
    ("state a", Out::Same, SAME),
    ("create --bundle {tty} a", Out::Same, SAME),
    ("create --console-socket {dir}/none --bundle {bundle} a", Out::Same, SAME),
    ("state a", Out::Same, SAME),
    ("bogus", Out::Any, SAME),
];

/// The bundles that lines name.
const BUNDLES: [&str; 11] = [
    "bundle", "missing", "noargs", "nonesuch", "noexec", "seven", "tty", "nocwd", "dupns", "sysctl",
    "seccomp",
];

struct Place {
    dir: PathBuf,
    program: PathBuf,
}

/// What a command line did.
#[derive(Debug, PartialEq, Eq)]
struct Did {
    code: Option<i32>,
    out: String,
    error: String,
}

impl Place {
    fn bundle(&self, name: &str) -> PathBuf {
        self.dir.join("bundles").join(name)
    }

    fn words(&self, line: &str) -> Vec<String> {
        let word = |word: &str| match word {
            "{exit7}" => "exit 7".to_owned(),
            "{kill}" => "kill -TERM $$".to_owned(),
            "{process}" => self.dir.join("process.json").display().to_string(),
            other => {
                let mut text = other.replace("{dir}", &self.dir.display().to_string());
                for name in BUNDLES {
                    text = text.replace(&format!("{{{name}}}"), &self.bundle(name).display().to_string());
                }
                text
            }
        };
        line.split(' ').map(word).collect()
    }

    fn run(&self, line: &str) -> Result<Did> {
        let log = self.dir.join("log");
        let _ = fs::remove_file(&log);
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(self.dir.join("root")).arg("--log").arg(&log);
        // Their output is not a pipe: a container that is created keeps it open.
        let out = self.dir.join("out");
        command.args(["--log-format", "json"]).args(self.words(line)).stdin(Stdio::null());
        command.stdout(fs::File::create(&out)?).stderr(Stdio::null());
        let status = command.status().with_context(|| line.to_owned())?;
        let text = fs::read_to_string(&log).unwrap_or_default();
        let mut errors = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let last = errors.rfind(|entry| entry["level"] == "error");
        let error = last.map_or(String::new(), |entry| entry["msg"].as_str().unwrap_or_default().to_owned());
        Ok(Did {
            code: status.code(),
            out: fs::read_to_string(&out)?,
            error: error
                .trim()
                .replace(&self.program.display().to_string(), "runc")
                .replace(&self.dir.display().to_string(), "DIR")
                .replace("casemate", "runc"),
        })
    }
}

fn prepare(dir: &Path, program: PathBuf) -> Result<Place> {
    let place = Place { dir: dir.to_owned(), program };
    let busybox = rootfs::busybox()?;
    // Both make a container of the same name: their control groups must not be the same.
    let group = format!("/{}", dir.display().to_string().trim_start_matches('/').replace('/', "-"));
    let write = |name: &str, bundle: &Bundle| {
        let mut config = bundle.config();
        config["linux"]["cgroupsPath"] = group.clone().into();
        if name == "noargs" {
            config["process"]["args"] = Value::Array(Vec::new());
        }
        match name {
            "nocwd" => config["process"]["cwd"] = "x".into(),
            "dupns" => config["linux"]["namespaces"] = serde_json::json!([{"type": "pid"}, {"type": "pid"}]),
            "sysctl" => config["linux"]["sysctl"] = serde_json::json!({ "kernel.core_pattern": "x" }),
            "seccomp" => {
                config["linux"]["seccomp"] = serde_json::json!({ "defaultAction": "SCMP_ACT_BOGUS" });
            }
            _ => {}
        }
        xtask::bundle::write_config(&place.bundle(name), &config)
    };
    let sleep = Bundle::new(&busybox, ["sleep", "1000"]);
    write("bundle", &sleep)?;
    write("nonesuch", &Bundle::new(&busybox, ["nonesuch"]))?;
    write("noexec", &Bundle::new(&busybox, ["/etc/passwd"]))?;
    write("seven", &Bundle::new(&busybox, ["sh", "-c", "echo seven; exit 7"]))?;
    write("tty", &sleep.clone().terminal())?;
    for name in ["noargs", "nocwd", "dupns", "sysctl", "seccomp"] {
        write(name, &sleep)?;
    }
    fs::write(place.dir.join("bad.json"), "{")?;
    fs::write(place.dir.join("resources.json"), "{\"pids\":{\"limit\":50}}")?;
    fs::create_dir_all(place.bundle("missing"))?;
    let mut process = sleep.config()["process"].take();
    process["args"] = serde_json::json!(["sh", "-c", "echo from a file; exit 9"]);
    fs::write(place.dir.join("process.json"), serde_json::to_vec(&process)?)?;
    Ok(place)
}

/// Keeps of JSON what does not depend on the run.
fn shape(value: &mut Value) {
    match value {
        Value::Array(list) => list.iter_mut().for_each(shape),
        Value::Object(fields) => {
            for (name, value) in fields.iter_mut() {
                match name.as_str() {
                    "pid" if *value != 0 => *value = "a number".into(),
                    "created" | "bundle" | "ociVersion" => *value = "text".into(),
                    _ => {}
                }
            }
        }
        _ => {}
    }
}

fn comparable(out: &str, how: Out) -> String {
    match how {
        Out::Same => out.to_owned(),
        Out::Any => String::new(),
        Out::FirstLine => {
            out.lines().next().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
        }
        Out::Json => match serde_json::from_str::<Value>(out) {
            Ok(mut value) => {
                shape(&mut value);
                format!("{value} {}", out.ends_with('\n'))
            }
            Err(error) => format!("{out:?}: {error}"),
        },
    }
}

#[test]
fn command_lines_do_what_runc_s_do() -> Result<()> {
    let Some(runc) = shell::find("runc") else {
        println!("skipped: runc is not installed, so there is nothing to compare with");
        return Ok(());
    };
    let base = TempDir::new("golden")?;
    let mut places = Vec::new();
    for (name, program) in [("runc", runc), ("casemate", programs::get()?.casemate.clone())] {
        let dir = base.path().join(name);
        fs::create_dir_all(&dir)?;
        places.push(prepare(&dir, program)?);
    }
    let mut wrong = Vec::new();
    for (index, (line, how, reason)) in LINES.iter().enumerate() {
        if *line == "{settle}" {
            // Until a killed container is seen to be gone.
            for place in &places {
                for _ in 0..500 {
                    if place.run("state a")?.out.contains("\"stopped\"") {
                        break;
                    }
                    std::thread::sleep(std::time::Duration::from_millis(10));
                }
            }
            continue;
        }
        let [runc, casemate] = [places[0].run(line)?, places[1].run(line)?];
        let same = runc.code == casemate.code
            && runc.error == casemate.error
            && comparable(&runc.out, *how) == comparable(&casemate.out, *how);
        match (same, reason) {
            (false, None) => {
                wrong.push(format!("{index}: {line}\n  runc     {runc:?}\n  casemate {casemate:?}"));
            }
            // Even where the words differ, success and failure do not.
            (false, Some(_)) if *how != Out::Any && runc.code != casemate.code => {
                wrong.push(format!("{index}: {line}: {:?}, not {:?}", casemate.code, runc.code));
            }
            _ => {}
        }
    }
    for place in &places {
        let _ = place.run("delete -f a");
    }
    ensure!(wrong.is_empty(), "{} of {} lines differ:\n{}", wrong.len(), LINES.len(), wrong.join("\n"));
    Ok(())
}
