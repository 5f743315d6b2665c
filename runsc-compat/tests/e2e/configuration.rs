//! A wrong `config.json` gets an error that names the field, and leaves nothing.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use xtask::bundle::{Bundle, write_config};
use xtask::trial::{Outcome, Trial};

use crate::common::busybox;

fn run_config(trial: &Trial, text: &[u8]) -> Result<Outcome> {
    let dir = trial.path().join("bundle");
    std::fs::write(dir.join("config.json"), text)?;
    trial.casemate(["run".into(), "--bundle".into(), dir.into_os_string(), trial.id().into()]).run()
}

/// Each change of a good configuration, and what the error must name.
#[test]
fn wrong_values_are_named() -> Result<()> {
    let trial = Trial::new("config-values")?;
    let cases: &[(&str, Value, &str)] = &[
        ("/ociVersion", json!("2.0.0"), "ociVersion"),
        ("/ociVersion", json!(7), "ociVersion"),
        ("/root", Value::Null, "root"),
        ("/root/path", json!(""), "root.path"),
        ("/root/path", json!(["x"]), "root.path"),
        ("/root/path", json!("no/such/directory"), "no/such/directory"),
        ("/root/readonly", json!("yes"), "root.readonly"),
        ("/process", Value::Null, "process"),
        ("/process/args", json!([]), "process.args"),
        ("/process/args", json!("sh"), "process.args"),
        ("/process/args/0", json!("a\0b"), "process.args[0]"),
        ("/process/env", json!(["PATH=/bin", "novalue"]), "process.env[1]"),
        ("/process/cwd", json!("relative"), "process.cwd"),
        ("/process/cwd", json!(""), "process.cwd"),
        ("/process/user/uid", json!(4_294_967_296_u64), "process.user.uid"),
        ("/process/user/uid", json!(-1), "process.user.uid"),
        ("/process/user/gid", json!("root"), "process.user.gid"),
        ("/process/rlimits/0/type", json!("RLIMIT_NONE"), "process.rlimits[0]"),
        ("/process/rlimits/0/soft", json!(1_000_000), "process.rlimits[0]"),
        ("/process/terminal", json!("maybe"), "process.terminal"),
        ("/hostname", json!("x".repeat(65)), "hostname"),
        ("/mounts/0/destination", json!(3), "mounts[0].destination"),
        ("/mounts/1/options", json!("ro"), "mounts[1].options"),
        (
            "/mounts/5",
            json!({ "destination": "/data", "type": "bind", "source": "/no/such" , "options": ["bind"] }),
            "mounts[5]",
        ),
        ("/linux/namespaces/0/type", json!("planet"), "linux.namespaces[0].type"),
        ("/linux/namespaces/1/type", json!("pid"), "linux.namespaces[1]"),
    ];
    for (pointer, value, named) in cases {
        let mut config = Bundle::new(busybox()?, ["true"]).tmpfs("/data").config();
        *config.pointer_mut(pointer).unwrap_or_else(|| panic!("{pointer} is in no configuration")) =
            value.clone();
        let out = run_config(&trial, &serde_json::to_vec(&config)?)?;
        ensure!(out.code() == 1, "{pointer} = {value}: {out}");
        ensure!(out.err().contains(named), "{pointer} = {value}: the error must name {named}: {out}");
        ensure!(out.err().trim().lines().count() == 1, "{pointer} = {value}: one line is enough: {out}");
    }
    trial.finish()
}

#[test]
fn what_is_not_a_configuration() -> Result<()> {
    let trial = Trial::new("config-text")?;
    let deep = "[".repeat(100_000);
    let texts = ["", "{", "[]", "7", "{\"process\":", "\u{0}", "{}", &deep];
    for text in texts {
        let shown: String = text.chars().take(20).collect();
        let out = run_config(&trial, text.as_bytes())?;
        ensure!(out.code() == 1, "{shown:?}: {out}");
        ensure!(!out.err().trim().is_empty() && out.err().len() < 2000, "{shown:?}: {out}");
    }
    std::fs::remove_file(trial.path().join("bundle/config.json"))?;
    let dir = trial.path().join("bundle");
    let args = ["run".into(), "--bundle".into(), dir.into_os_string(), trial.id().into()];
    trial.casemate(args).run()?.expect(1)?.expect_err("config.json")?;
    let none =
        ["run".into(), "--bundle".into(), trial.path().join("nonesuch").into_os_string(), trial.id().into()];
    trial.casemate(none).run()?.expect(1)?.expect_err("nonesuch")?;
    trial.finish()
}

#[test]
fn unknown_fields_are_ignored() -> Result<()> {
    let trial = Trial::new("config-unknown")?;
    let mut config = Bundle::new(busybox()?, ["sh", "-c", "exit 5"]).config();
    config["futureField"] = json!({ "x": [1, 2, 3] });
    config["process"]["futureField"] = json!("y");
    write_config(&trial.path().join("bundle"), &config)?;
    run_config(&trial, &serde_json::to_vec(&config)?)?.expect(5)?;
    trial.finish()
}

#[test]
fn a_written_specification_runs() -> Result<()> {
    let trial = Trial::new("config-spec")?;
    let bundle = trial.path().join("bundle");
    trial.casemate(["spec".into(), "--bundle".into(), bundle.clone().into_os_string()]).run()?.expect(0)?;
    let path = bundle.join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path)?)?;
    config["root"]["path"] = json!(busybox()?);
    config["process"]["terminal"] = json!(false);
    config["process"]["args"] = json!(["sh", "-c", "id -u; exit 6"]);
    run_config(&trial, &serde_json::to_vec(&config)?)?.expect(6)?.expect_out("0\n")?;
    // It is not overwritten.
    trial
        .casemate(["spec".into(), "--bundle".into(), bundle.into_os_string()])
        .run()?
        .expect(1)?
        .expect_err("config.json")?;
    trial.finish()
}

#[test]
fn wrong_command_lines() -> Result<()> {
    let trial = Trial::new("config-line")?;
    for words in [&["run"][..], &["run", "a", "b"], &["nonesuch"], &["run", "--nonesuch", "x"], &["state"]] {
        let out = trial.casemate(words.iter().copied()).run()?;
        // Runc's code for a command that there is not.
        let code = if words[0] == "nonesuch" { 3 } else { 1 };
        ensure!(out.code() == code, "{words:?}: {out}");
        ensure!(!out.err().is_empty() || !out.out().is_empty(), "{words:?}: {out}");
    }
    for id in ["a/b", "..", "a b"] {
        trial.casemate(["run", "--bundle", "/", id]).run()?.expect(1)?;
    }
    trial.casemate(["state", "nonesuch"]).run()?.expect(1)?.expect_err("does not exist")?;
    let out = trial.casemate(["--version"]).run()?.expect(0)?;
    ensure!(out.out().starts_with("casemate version ") && out.out().contains("spec: "), "{out}");
    trial.finish()
}
