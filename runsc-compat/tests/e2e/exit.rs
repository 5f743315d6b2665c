//! How a run ends: exit codes, standard streams, signals to the foreground command.

use std::io::Read;

use anyhow::{Result, ensure};
use rustix::process::Signal;
use xtask::bundle::Bundle;
use xtask::trial::Trial;

use crate::common::{busybox, debian};

#[test]
fn codes_of_the_program() -> Result<()> {
    let trial = Trial::new("exit-codes")?;
    let shell = |script: &str| Bundle::new(busybox().unwrap(), ["sh", "-c", script]);
    for (script, code) in [
        ("true", 0),
        ("false", 1),
        ("exit 42", 42),
        ("exit 255", 255),
        ("/etc/passwd 2>/dev/null", 126),
        ("nonesuch 2>/dev/null", 127),
        ("sh -c 'kill -TERM $$'; exit $?", 128 + 15),
        ("sh -c 'kill -KILL $$'; exit $?", 128 + 9),
    ] {
        trial.run(&shell(script))?.run()?.expect(code)?;
    }
    trial.finish()
}

#[test]
fn a_program_that_crashes() -> Result<()> {
    let trial = Trial::new("exit-crash")?;
    // A real fault kills even the first process.
    let bundle = Bundle::new(debian()?, ["python3", "-c", "import ctypes; ctypes.string_at(0)"]);
    let out = trial.run(&bundle)?.run()?.expect(128 + 11)?;
    ensure!(!out.signalled(), "the command itself must not crash: {out}");
    trial.finish()
}

#[test]
fn a_program_that_cannot_start() -> Result<()> {
    let trial = Trial::new("exit-start")?;
    let bundle = |name: &str| Bundle::new(busybox().unwrap(), [name]);
    trial.run(&bundle("nonesuch"))?.run()?.expect(127)?.expect_err("nonesuch")?;
    trial.run(&bundle("/bin/nonesuch"))?.run()?.expect(127)?.expect_err("/bin/nonesuch")?;
    trial.run(&bundle("/etc/passwd"))?.run()?.expect(126)?.expect_err("/etc/passwd")?;
    let out = trial.run(&bundle("/etc"))?.run()?.expect(126)?.expect_err("/etc")?;
    ensure!(out.err().trim().lines().count() == 1, "the cause must be one line: {out}");
    trial.finish()
}

#[test]
fn standard_input() -> Result<()> {
    let trial = Trial::new("exit-stdin")?;
    let text = "line\n".repeat(200_000);
    let counted = Bundle::new(debian()?, ["wc", "-c"]);
    trial.run(&counted)?.stdin(text.as_str()).run()?.expect(0)?.expect_out("1000000\n")?;
    trial.run(&counted)?.run()?.expect(0)?.expect_out("0\n")?;
    // A file, read from where the caller's position stands, which then moves for the caller too.
    let path = trial.path().join("input");
    std::fs::write(&path, "one\ntwo\nthree\n")?;
    let mut file = std::fs::File::open(&path)?;
    file.read_exact(&mut [0; 4])?;
    trial
        .run(&Bundle::new(debian()?, ["cat"]))?
        .stdin_file(file)
        .run()?
        .expect(0)?
        .expect_out("two\nthree\n")?;
    trial.finish()
}

#[test]
fn closed_standard_input() -> Result<()> {
    let trial = Trial::new("exit-closed")?;
    let bundle = Bundle::bash(debian()?, "cat 2>/dev/null; echo end");
    trial.run(&bundle)?.closed_stdin().run()?.expect(0)?.expect_out("end\n")?;
    trial.finish()
}

#[test]
fn a_program_that_does_not_read_its_input() -> Result<()> {
    let trial = Trial::new("exit-unread")?;
    let bundle = Bundle::bash(debian()?, "read x; echo $x");
    trial.run(&bundle)?.stdin("first\n".repeat(100_000)).run()?.expect(0)?.expect_out("first\n")?;
    // The writing end stays open: the end of the program is the end of the run.
    let mut running = trial.run(&Bundle::bash(debian()?, "echo done"))?.piped_stdin().start()?;
    running.until_says("done")?;
    let held = running.stdin.take();
    running.wait()?.expect(0)?;
    drop(held);
    trial.finish()
}

#[test]
fn a_full_pipe_waits_for_its_reader() -> Result<()> {
    let trial = Trial::new("exit-full")?;
    let (mut reader, writer) = std::io::pipe()?;
    let bundle = Bundle::bash(debian()?, "head -c 10M /dev/zero; echo written >&2");
    let running = trial.run(&bundle)?.stdout(writer).start()?;
    std::thread::sleep(std::time::Duration::from_millis(500));
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes)?;
    running.wait()?.expect(0)?.expect_err("written")?;
    ensure!(bytes.len() == 10 << 20, "{} bytes came", bytes.len());
    trial.finish()
}

#[test]
fn a_reader_that_goes_away() -> Result<()> {
    let trial = Trial::new("exit-gone")?;
    let (mut reader, writer) = std::io::pipe()?;
    let bundle = Bundle::bash(debian()?, "yes; echo code $? >&2; exit 5");
    let running = trial.run(&bundle)?.stdout(writer).start()?;
    reader.read_exact(&mut [0; 2])?;
    drop(reader);
    running.wait()?.expect(5)?.expect_err("code 141")?;
    trial.finish()
}

#[test]
fn output_is_complete_and_in_order() -> Result<()> {
    let trial = Trial::new("exit-output")?;
    let out = trial.run(&Bundle::bash(debian()?, "seq 300000; echo err >&2; exit 3"))?.run()?.expect(3)?;
    let want: String = (1..=300_000).map(|n| format!("{n}\n")).collect();
    ensure!(out.out() == want, "the output is not what was written");
    ensure!(out.err() == "err\n", "{out}");
    trial.finish()
}

#[test]
fn signals_reach_the_program() -> Result<()> {
    for (signal, name) in
        [(Signal::TERM, "TERM"), (Signal::INT, "INT"), (Signal::HUP, "HUP"), (Signal::USR1, "USR1")]
    {
        let trial = Trial::new("exit-signal")?;
        let script =
            format!("trap 'echo got {name}; exit 7' {name}; echo ready; while :; do sleep 0.05; done");
        let mut running = trial.run(&Bundle::bash(debian()?, &script))?.start()?;
        running.until_says("ready")?;
        running.signal(signal)?;
        running.wait()?.expect(7)?.expect_out(&format!("ready\ngot {name}\n"))?;
        trial.finish()?;
    }
    Ok(())
}

#[test]
fn an_interrupt_ends_python() -> Result<()> {
    let trial = Trial::new("exit-python")?;
    let program = "import time\nprint('ready', flush=True)\ntry:\n  time.sleep(1000)\nexcept KeyboardInterrupt:\n  \
                   print('interrupted')\n  raise SystemExit(9)";
    let mut running = trial.run(&Bundle::new(debian()?, ["python3", "-c", program]))?.start()?;
    running.until_says("ready")?;
    running.signal(Signal::INT)?;
    running.wait()?.expect(9)?.expect_out("ready\ninterrupted\n")?;
    trial.finish()
}

#[test]
fn background_processes_end_with_the_first() -> Result<()> {
    let trial = Trial::new("exit-background")?;
    let script = "sleep 1000 & (setsid sleep 1000 &) ; exit 6";
    trial.run(&Bundle::bash(debian()?, script))?.run()?.expect(6)?;
    trial.finish()
}
