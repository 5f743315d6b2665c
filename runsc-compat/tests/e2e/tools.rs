//! What casemate does besides running containers: `install`, `doctor`, `lint`, `debug`.

use std::fs;

use anyhow::{Result, ensure};
use xtask::bundle::{Bundle, write_config};
use xtask::trial::Trial;

use crate::common::busybox;

#[test]
fn an_engine_s_file_is_as_before_when_all_is_undone() -> Result<()> {
    let trial = Trial::new("tools-install")?;
    let scratch = trial.path().join("scratch");
    for (engine, before) in [
        ("--docker", "{\n\t\"debug\" : true }\n"),
        ("--docker", ""),
        ("--containerd", "# mine\nversion = 3\n"),
        ("--containerd", ""),
        ("--podman", ""),
    ] {
        let file = scratch.join("conf");
        if !before.is_empty() {
            fs::write(&file, before)?;
        }
        let path = file.display().to_string();
        let out = trial.casemate(["install", engine, "--config", &path]).run()?.expect(0)?;
        ensure!(out.out().contains("installed in"), "{out}");
        let program = trial.programs().casemate.display().to_string();
        ensure!(fs::read_to_string(&file)?.contains(&program), "{}", fs::read_to_string(&file)?);
        let again = trial.casemate(["install", engine, "--config", &path]).run()?.expect(0)?;
        ensure!(again.out().contains("nothing to do"), "{again}");
        trial.casemate(["uninstall", engine, "--config", &path]).run()?.expect(0)?;
        let after = fs::read_to_string(&file).unwrap_or_default();
        ensure!(
            after == before && file.exists() != before.is_empty(),
            "{engine}: {before:?} became {after:?}"
        );
        let _ = fs::remove_file(&file);
    }
    trial.casemate(["install"]).run()?.expect(1)?.expect_err("--docker")?;
    trial.finish()
}

#[test]
fn the_doctor_finds_this_host_well() -> Result<()> {
    let trial = Trial::new("tools-doctor")?;
    let out = trial.casemate(["doctor"]).run()?.expect(0)?;
    ensure!(out.out().contains("ok    a sandbox: started"), "{out}");
    trial.finish()
}

#[test]
fn a_start_tells_its_moments() -> Result<()> {
    let trial = Trial::new("tools-timing")?;
    let out = trial.casemate(["--timing", "do", "--", "true"]).run()?.expect(0)?;
    let errors = out.err();
    // `timing:     3.214 ms  sandbox: confined`
    let moments: Vec<(f64, &str)> = errors
        .lines()
        .filter_map(|line| line.strip_prefix("timing:")?.trim().split_once(" ms  "))
        .map(|(ms, what)| Ok((ms.parse()?, what)))
        .collect::<Result<_>>()?;
    let at = |wanted: &str| moments.iter().find(|(_, what)| *what == wanted).map(|(ms, _)| *ms);
    let order = [
        "command: sandbox process started",
        "sandbox: confined",
        "sandbox: complete",
        "command: sandbox gone",
    ];
    let times: Vec<f64> = order.iter().filter_map(|what| at(what)).collect();
    ensure!(times.len() == order.len() && times.is_sorted(), "{times:?} of {out}");
    trial.casemate(["do", "--", "true"]).run()?.expect(0)?.expect_err("")?;
    trial.finish()
}

#[test]
fn lint_names_what_goes_beyond() -> Result<()> {
    let trial = Trial::new("tools-lint")?;
    let mut config = Bundle::new(busybox()?, ["true"]).config();
    config["mounts"].as_array_mut().unwrap().push(serde_json::json!({
        "destination": "/s", "type": "bind", "source": "/var/run/docker.sock", "options": ["rbind"]
    }));
    config["hooks"] = serde_json::json!({ "poststop": [{ "path": "/bin/true" }] });
    let dir = trial.path().join("bundle");
    write_config(&dir, &config)?;
    let out = trial.casemate(["lint".into(), dir.clone().into_os_string()]).run()?.expect(0)?;
    for words in ["docker.sock", "hooks.poststop[0]: /bin/true runs on the host", "linux.seccomp: absent"] {
        ensure!(out.out().contains(words), "{words}: {out}");
    }
    fs::write(dir.join("config.json"), "{")?;
    trial.casemate(["lint".into(), dir.into_os_string()]).run()?.expect(1)?.expect_err("config.json")?;
    trial.finish()
}

#[test]
fn debug_shows_tasks_calls_files_and_memory() -> Result<()> {
    let trial = Trial::new("tools-debug")?;
    let script = "exec 7</etc/passwd; sleep 1000 & while :; do sleep 0.05; done";
    let bundle = trial.path().join("bundle");
    Bundle::new(busybox()?, ["sh", "-c", script]).write(&bundle)?;
    let text = format!(
        "rt() {{ {} --root {} \"$@\"; }}; id={}; dir={}
         rt run -d --bundle {} $id </dev/null >/dev/null || exit 1
         for try in $(seq 100); do rt debug $id | grep -q wait4 && break; sleep 0.05; done
         rt debug --files --trace $dir/trace $id; sleep 0.5; rt debug --trace off $id >/dev/null; sleep 0.3
         before=$(stat -c %s $dir/trace); sleep 0.3; [ $before = $(stat -c %s $dir/trace) ] || echo traced on
         grep -q nanosleep $dir/trace || echo no calls
         rt delete -f $id",
        trial.programs().casemate.display(),
        trial.path().join("state").display(),
        trial.id(),
        trial.path().join("scratch").display(),
        bundle.display(),
    );
    let out = trial.host(["bash", "-c", &text]).run()?.expect(0)?;
    for words in ["COMMAND", "wait4", "    7 r    /etc/passwd", "memory: anonymous memory of processes: "] {
        ensure!(out.out().contains(words), "{words}: {out}");
    }
    ensure!(!out.out().contains("traced on") && !out.out().contains("no calls"), "{out}");
    trial.finish()
}
