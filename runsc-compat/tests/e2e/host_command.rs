//! `casemate do`: host commands, on the host's files, which stay as they are.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use xtask::trial::{Invocation, Trial};
use xtask::{place, shell};

/// `casemate do -- ARGS`; the trial's directory is the working directory.
fn host_do<'t>(trial: &'t Trial, args: &[&str]) -> Invocation<'t> {
    let words = ["do", "--"].iter().chain(args).map(|word| (*word).to_owned());
    trial.casemate(words.collect::<Vec<String>>()).cwd(trial.path())
}

fn git(dir: &Path, args: &[&str]) -> Result<String> {
    shell::output(
        Command::new("git")
            .args(["-c", "user.name=n", "-c", "user.email=e@example.org"])
            .args(args)
            .current_dir(dir),
    )
}

#[test]
fn cargo() -> Result<()> {
    let trial = Trial::new("do-cargo")?;
    let host = shell::output(Command::new("cargo").arg("--version").current_dir(trial.path()))?;
    host_do(&trial, &["cargo", "--version"]).run()?.expect(0)?.expect_out(&host)?;
    trial.finish()
}

#[test]
fn git_status() -> Result<()> {
    let trial = Trial::new("do-git")?;
    let repo = trial.path().join("repo");
    fs::create_dir(&repo)?;
    git(&repo, &["init", "-q", "-b", "main"])?;
    for n in 0..40 {
        fs::create_dir(repo.join(format!("d{n}")))?;
        fs::write(repo.join(format!("d{n}/f")), n.to_string())?;
    }
    git(&repo, &["add", "."])?;
    git(&repo, &["commit", "-q", "-m", "one"])?;
    fs::write(repo.join("d3/f"), "changed")?;
    fs::write(repo.join("untracked"), "")?;
    fs::remove_file(repo.join("d5/f"))?;
    let host = git(&repo, &["status"])?;
    host_do(&trial, &["git", "status"]).cwd(&repo).run()?.expect(0)?.expect_out(&host)?;
    // A commit inside is a commit that the host never sees.
    let inside =
        host_do(&trial, &["git", "-c", "user.name=n", "-c", "user.email=e", "commit", "-aqm", "two"]);
    inside.cwd(&repo).run()?.expect(0)?;
    ensure!(git(&repo, &["status"])? == host);
    ensure!(git(&repo, &["log", "--oneline"])?.lines().count() == 1);
    trial.finish()
}

#[test]
fn git_status_of_this_project() -> Result<()> {
    let trial = Trial::new("do-git-own")?;
    let top = place::workspace();
    if !top.join(".git").exists() {
        eprintln!("left out: the project is not in a git work tree");
        return Ok(());
    }
    // What is untracked may change while the tests run.
    let args = ["git", "status", "--porcelain", "--untracked-files=no"];
    let host = git(&top, &args[1..])?;
    host_do(&trial, &args).cwd(&top).run()?.expect(0)?.expect_out(&host)?;
    trial.finish()
}

#[test]
fn python() -> Result<()> {
    let trial = Trial::new("do-python")?;
    let program =
        "import os, sys; print(sum(range(1000)), os.environ['CASEMATE_SAYS'], os.getcwd()); sys.exit(4)";
    let out =
        host_do(&trial, &["python3", "-c", program]).env("CASEMATE_SAYS", "hello world").run()?.expect(4)?;
    let want = format!("499500 hello world {}\n", trial.path().display());
    ensure!(out.out() == want, "{out}");
    trial.finish()
}

#[test]
fn a_small_c_project() -> Result<()> {
    let trial = Trial::new("do-make")?;
    let dir = trial.path().join("project");
    fs::create_dir(&dir)?;
    let mut objects = String::from("main.o");
    let mut calls = String::new();
    for n in 0..6 {
        fs::write(dir.join(format!("f{n}.c")), format!("int f{n}(int x) {{ return x + {n}; }}\n"))?;
        objects += &format!(" f{n}.o");
        calls += &format!(" x = f{n}(x);");
    }
    let declared: String = (0..6).map(|n| format!("int f{n}(int);\n")).collect();
    let main = format!(
        "#include <stdio.h>\n{declared}int main(void) {{ int x = 0;{calls} printf(\"%d\\n\", x); return 0; }}\n"
    );
    fs::write(dir.join("main.c"), main)?;
    fs::write(dir.join("Makefile"), format!("prog: {objects}\n\t$(CC) -o $@ $^\ncheck: prog\n\t./prog\n"))?;
    let before = names(&dir)?;
    let out = host_do(&trial, &["make", "-s", "-j2", "check"]).cwd(&dir).run()?.expect(0)?;
    ensure!(out.out() == "15\n", "{out}");
    ensure!(names(&dir)? == before, "the build left files on the host: {:?}", names(&dir)?);
    trial.finish()
}

fn names(dir: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        names.push(entry?.file_name().into_string().ok().context("a name")?);
    }
    names.sort();
    Ok(names)
}

#[test]
fn the_host_is_unchanged() -> Result<()> {
    let trial = Trial::new("do-writes")?;
    let own = trial.path().join("own");
    fs::write(&own, "host\n")?;
    let mark = format!("casemate-mark-{}", std::process::id());
    let script = format!(
        "echo changed >own; rm -f new; echo new >new; cat own new; touch /etc/{mark} /usr/{mark} /var/{mark} /tmp/{mark} /{mark}; \
         mkdir /opt/{mark}; ls /etc/{mark} /opt | grep -c {mark}; rm -rf /usr/share/doc; test ! -e /usr/share/doc"
    );
    host_do(&trial, &["bash", "-c", &script]).run()?.expect(0)?.expect_out("changed\nnew\n2\n")?;
    ensure!(fs::read_to_string(&own)? == "host\n");
    ensure!(!trial.path().join("new").exists() && Path::new("/usr/share/doc").exists());
    for dir in ["/etc", "/usr", "/var", "/tmp", "/opt", "/"] {
        ensure!(!Path::new(dir).join(&mark).exists(), "{dir}/{mark} is on the host");
    }
    trial.finish()
}

#[test]
fn codes_and_streams() -> Result<()> {
    let trial = Trial::new("do-codes")?;
    host_do(&trial, &["true"]).run()?.expect(0)?;
    host_do(&trial, &["false"]).run()?.expect(1)?;
    host_do(&trial, &["sh", "-c", "exit 77"]).run()?.expect(77)?;
    host_do(&trial, &["sh", "-c", "sh -c 'kill -TERM $$'; exit $?"]).run()?.expect(143)?;
    host_do(&trial, &["nonesuch-program"]).run()?.expect(127)?.expect_err("nonesuch-program")?;
    host_do(&trial, &["/etc/passwd"]).run()?.expect(126)?.expect_err("/etc/passwd")?;
    host_do(&trial, &["cat"]).stdin("through\n").run()?.expect(0)?.expect_out("through\n")?;
    // Without `--` too, as long as the command's own options come after its name.
    trial.casemate(["do", "sh", "-c", "echo $0", "-x"]).run()?.expect(0)?.expect_out("-x\n")?;
    trial.finish()
}

#[test]
fn the_callers_identity() -> Result<()> {
    let trial = Trial::new("do-identity")?;
    let host = shell::output(Command::new("sh").args(["-c", "id -u; id -g; umask"]))?;
    host_do(&trial, &["sh", "-c", "id -u; id -g; umask"]).run()?.expect(0)?.expect_out(&host)?;
    trial.finish()
}

#[test]
fn an_unsupported_call_is_named_with_its_caller() -> Result<()> {
    let trial = Trial::new("do-unsupported")?;
    // io_uring_setup is 425.
    let program = "use POSIX; for (1, 2, 3) { syscall(425, 0, 0); print $! == POSIX::ENOSYS() ? qq(ENOSYS\\n) : qq($!\\n) }";
    let out = host_do(&trial, &["perl", "-e", program]).run()?.expect(0)?;
    ensure!(out.out() == "ENOSYS\n".repeat(3), "{out}");
    let line = out.err().lines().find(|line| line.contains("io_uring_setup")).map(str::to_owned);
    let line = line.with_context(|| format!("no line about io_uring_setup: {out}"))?;
    ensure!(line.contains("unsupported: io_uring_setup (called by perl, 3 times)"), "{line}");
    trial.finish()
}

#[test]
fn no_network_but_its_own() -> Result<()> {
    let trial = Trial::new("do-network")?;
    let program = "import socket\nl = socket.create_server(('127.0.0.1', 0))\n\
                   c = socket.create_connection(l.getsockname()); c.send(b'x'); print(l.accept()[0].recv(1))\n\
                   try:\n  socket.create_connection(('192.0.2.1', 80))\nexcept OSError as e:\n  print(e.errno)";
    let out = host_do(&trial, &["python3", "-c", program]).run()?.expect(0)?;
    // ENETUNREACH: there is a loopback and no way out.
    ensure!(out.out() == "b'x'\n101\n", "{out}");
    trial.finish()
}
