//! A shell on a terminal: job control, Ctrl-C, window size, and the caller's terminal as it was afterwards.

use std::io::Write;

use anyhow::{Context, Result, ensure};
use xtask::bundle::Bundle;
use xtask::trial::{Running, Trial};

use crate::common::debian;

/// `casemate run` on a pseudo-terminal that `script(1)` makes; what is typed comes from the test.
fn on_terminal(trial: &Trial, bundle: &Bundle) -> Result<Running> {
    let id = trial.id();
    let dir = trial.path().join("bundle").join(id);
    bundle.clone().terminal().write(&dir)?;
    let line = format!(
        "stty rows 33 cols 77; before=$(stty -g); {} --root {} run --bundle {} {id}; code=$?; \
         [ \"$(stty -g)\" = \"$before\" ] || echo the terminal was left changed; exit $code",
        trial.programs().casemate.display(),
        trial.path().join("state").display(),
        dir.display()
    );
    trial.host(["script", "-q", "-e", "-c", &line, "/dev/null"]).piped_stdin().start()
}

fn type_in(running: &mut Running, text: &str) -> Result<()> {
    let input = running.stdin.as_mut().context("no input")?;
    input.write_all(text.as_bytes())?;
    Ok(input.flush()?)
}

#[test]
fn an_interactive_shell() -> Result<()> {
    let trial = Trial::new("tty-shell")?;
    let bundle = Bundle::new(debian()?, ["bash", "--norc", "--noprofile", "-i"]).env("PS1", "prompt> ");
    let mut running = on_terminal(&trial, &bundle)?;
    running.until_says("prompt> ")?;
    // What is typed is echoed: each answer is one that the typed text does not contain.
    type_in(&mut running, "echo answer-$((6 * 7))\n")?;
    running.until_says("answer-42")?;
    type_in(&mut running, "test -t 0 -a -t 1 -a -t 2 && tty && stty size | tr ' ' x\n")?;
    running.until_says("33x77")?;
    type_in(&mut running, "echo begin-$((1)); sleep 1000\n")?;
    running.until_says("begin-1")?;
    // Until the sleep is in the foreground an interrupt would meet the shell alone.
    std::thread::sleep(std::time::Duration::from_millis(500));
    type_in(&mut running, "\u{3}")?;
    type_in(&mut running, "\necho code-$?\n")?;
    running.until_says("code-130")?;
    type_in(&mut running, "sleep 1000 & jobs | sed s/Running/job-runs/; kill %1\n")?;
    running.until_says("job-runs")?;
    type_in(&mut running, "exit 23\n")?;
    let out = running.wait()?.expect(23)?;
    ensure!(!out.out().contains("no job control") && !out.out().contains("left changed"), "{out}");
    trial.finish()
}

#[test]
fn a_stopped_job_goes_on() -> Result<()> {
    let trial = Trial::new("tty-jobs")?;
    let bundle = Bundle::new(debian()?, ["bash", "--norc", "--noprofile", "-i"]).env("PS1", "prompt> ");
    let mut running = on_terminal(&trial, &bundle)?;
    running.until_says("prompt> ")?;
    type_in(&mut running, "(echo in-$((0 + 1)); read x; echo read-$x-$((1 + 1)))\n")?;
    running.until_says("in-1")?;
    type_in(&mut running, "\u{1a}")?;
    running.until_says("Stopped")?;
    type_in(&mut running, "fg\n")?;
    std::thread::sleep(std::time::Duration::from_millis(300));
    type_in(&mut running, "typed\n")?;
    running.until_says("read-typed-2")?;
    type_in(&mut running, "\u{4}")?;
    running.wait()?.expect(0)?;
    trial.finish()
}

/// A command on a terminal whose output goes into a pipe sets the caller's own terminal, which is as before afterwards.
#[test]
fn the_callers_terminal_is_set_and_set_back() -> Result<()> {
    let trial = Trial::new("tty-modes")?;
    let line = format!(
        "before=$(stty -g); {} --root {} do -- sh -c 'stty -echo -icanon min 1; stty -a; echo ready-$((1)); \
         head -c 4; stty size' | cat; [ \"$(stty -g)\" = \"$before\" ] && echo set-$((2))-back",
        trial.programs().casemate.display(),
        trial.path().join("state").display(),
    );
    let mut running = trial.host(["script", "-q", "-e", "-c", &line, "/dev/null"]).piped_stdin().start()?;
    running.until_says("ready-1")?;
    // Without a line's end, and without an echo.
    type_in(&mut running, "four")?;
    let out = running.wait()?.expect(0)?;
    let text = out.out();
    ensure!(text.contains("-icanon") && text.contains("-echo ") && text.contains("set-2-back"), "{out}");
    ensure!(text.matches("four").count() == 1, "it was echoed: {out}");
    trial.finish()
}
