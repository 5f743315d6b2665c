//! Many sandboxes, one after another and at once: nothing adds up and nothing mixes.

use std::time::Duration;

use anyhow::{Result, ensure};
use xtask::bundle::Bundle;
use xtask::trial::Trial;

use crate::common::{busybox, debian};

#[test]
fn two_hundred_in_a_row() -> Result<()> {
    let trial = Trial::new("row")?;
    let bundle = trial.path().join("bundle/row");
    Bundle::new(busybox()?, ["sh", "-c", "exit 3"]).write(&bundle)?;
    let script = "for n in $(seq 200); do \"$0\" --root \"$1\" run --bundle \"$2\" \"$3-$n\"; \
                  code=$?; [ $code = 3 ] || { echo run $n: code $code; exit 1; }; done";
    let casemate = trial.programs().casemate.display().to_string();
    let state = trial.path().join("state").display().to_string();
    let bundle = bundle.display().to_string();
    trial
        .host(["bash", "-c", script, &casemate, &state, &bundle, trial.id()])
        .limit(Duration::from_mins(10))
        .run()?
        .expect(0)?
        .expect_out("")?;
    trial.finish()
}

#[test]
fn twenty_at_once() -> Result<()> {
    let trial = Trial::new("parallel")?;
    let mut runs = Vec::new();
    for n in 0..20 {
        let script = format!(
            "echo {n} >/tmp/own; for i in $(seq 20); do x=$(cat /tmp/own); [ $x = {n} ] || exit 9; done; \
             python3 -c 'print(sum(range({n} + 1)))'; hostname; exit {n}"
        );
        let id = format!("{}-{n}", trial.id());
        let run = trial.run_as(&Bundle::bash(debian()?, &script), &id)?;
        runs.push(run.limit(Duration::from_mins(10)).start()?);
    }
    for (n, run) in runs.into_iter().enumerate() {
        let code = i32::try_from(n)?;
        run.wait()?.expect(code)?.expect_out(&format!("{}\ncasemate\n", n * (n + 1) / 2))?;
    }
    trial.finish()
}

#[test]
fn an_id_is_taken_once() -> Result<()> {
    let trial = Trial::new("same-id")?;
    let bundle = Bundle::bash(debian()?, "echo ready; read x; exit 4");
    let mut first = trial.run(&bundle)?.piped_stdin().start()?;
    first.until_says("ready")?;
    trial.run(&bundle)?.run()?.expect(1)?.expect_err("exists")?;
    let out = first.wait()?.expect(4)?;
    ensure!(out.out() == "ready\n", "{out}");
    trial.finish()
}
