//! What a sandbox writes stays in the sandbox, unless a bind mount says otherwise.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use xtask::bundle::Bundle;
use xtask::shell;
use xtask::trial::Trial;

use crate::common::debian;

/// Everything about a tree that a write would change: names, kinds, modes, owners, link counts, targets, sizes,
/// times of change of every file and folder, and the time of the last change of the inode, which nobody can set back.
fn fingerprint(root: &Path) -> Result<String> {
    let script = "find \"$1\" -xdev -printf '%P %y %m %U %G %n %l %s %T@ %C@\\n' | LC_ALL=C sort";
    shell::output(Command::new("bash").args(["-c", script, "bash"]).arg(root))
}

#[test]
fn the_lower_root_never_changes() -> Result<()> {
    let trial = Trial::new("lower")?;
    let before = fingerprint(debian()?)?;
    let script = r#"
        set -e
        echo new >/etc/new; echo more >>/etc/passwd; : >/etc/hostname; rm /etc/issue; mv /etc/nsswitch.conf /etc/moved
        chmod 600 /etc/debian_version; chown 1:1 /etc/host.conf; touch -d 2001-01-01 /etc/profile; ln /etc/fstab /etc/hard
        ln -s x /etc/soft; mkdir -p /srv/a/b; rmdir /srv/a/b; mkfifo /srv/fifo; truncate -s 1 /etc/bash.bashrc
        cp /bin/true /usr/bin/true-copy; mv /usr/share/doc /usr/share/docs; rm -r /usr/share/docs/bash
        sed -i s/root/toor/ /etc/group; perl -e 'open F, q(+<), q(/usr/bin/perl) or exit 0; seek F, 0, 2; print F q(x)'
        python3 -c 'import mmap; f = open("/etc/shadow", "r+"); m = mmap.mmap(f.fileno(), 0); m[0] = 65; m.flush()'
        grep -q more /etc/passwd; test ! -e /etc/issue; test -s /etc/moved; test ! -e /etc/nsswitch.conf; head -c1 /etc/shadow
        test $(stat -c %a /etc/debian_version) = 600; test $(stat -c %u /etc/host.conf) = 1; test -p /srv/fifo
        test $(stat -c %h /etc/hard) = 2; test ! -e /usr/share/docs/bash; test -d /usr/share/docs; true-copy; echo all
    "#;
    trial.run(&Bundle::bash(debian()?, script))?.run()?.expect(0)?.expect_out("Aall\n")?;
    // The next sandbox of the same root sees none of it.
    let script = "test -e /etc/issue && test ! -e /etc/new && test -d /usr/share/doc/bash && echo fresh";
    trial.run(&Bundle::bash(debian()?, script))?.run()?.expect(0)?.expect_out("fresh\n")?;
    let after = fingerprint(debian()?)?;
    let changed: Vec<&str> = after.lines().filter(|line| !before.contains(*line)).take(20).collect();
    ensure!(before == after, "the lower root has changed:\n{}", changed.join("\n"));
    trial.finish()
}

#[test]
fn a_readonly_root() -> Result<()> {
    let trial = Trial::new("readonly")?;
    let script = "touch /new; echo $?; echo x >>/etc/passwd; echo $?; rm /etc/issue; echo $?; echo t >/tmp/t; cat /tmp/t";
    let bundle = Bundle::bash(debian()?, script).readonly().tmpfs("/tmp");
    let out = trial.run(&bundle)?.run()?.expect(0)?.expect_out("1\n1\n1\nt\n")?;
    ensure!(out.err().matches("Read-only file system").count() == 3, "{out}");
    trial.finish()
}

#[test]
fn bind_mounts() -> Result<()> {
    let trial = Trial::new("bind")?;
    let (rw, ro, file) = (trial.path().join("rw"), trial.path().join("ro"), trial.path().join("file"));
    for dir in [&rw, &ro] {
        fs::create_dir(dir)?;
        fs::write(dir.join("from-host"), "host\n")?;
    }
    fs::write(&file, "one file\n")?;
    let script = r"
        set -e
        cat /data/rw/from-host /data/ro/from-host /data/file
        echo inside >/data/rw/new; echo more >>/data/rw/from-host; mkdir /data/rw/d; mv /data/rw/new /data/rw/d/moved
        ln -s moved /data/rw/d/link; cat /data/rw/d/link; chmod 600 /data/rw/d/moved; cp -r /etc/apt /data/rw/apt
        for f in new from-host; do ! echo no 2>/dev/null >>/data/ro/$f || echo written; done
        touch /data/ro/x 2>&1 | grep -c 'Read-only file system'; ! rm /data/ro/from-host 2>/dev/null
        echo ready; read line || true; cat /data/rw/later; stat -c %s /data/rw/from-host
    ";
    let bundle = Bundle::bash(debian()?, script)
        .tmpfs("/data")
        .bind(&rw, "/data/rw", "rw")
        .bind(&ro, "/data/ro", "ro")
        .bind(&file, "/data/file", "ro");
    let mut running = trial.run(&bundle)?.piped_stdin().start()?;
    running.until_says("ready")?;
    // What has been written is on the host now, and what the host writes is seen inside.
    ensure!(fs::read_to_string(rw.join("d/moved"))? == "inside\n");
    fs::write(rw.join("later"), "later\n")?;
    let out = running.wait()?.expect(0)?;
    ensure!(out.out() == "host\nhost\none file\ninside\n1\nready\nlater\n10\n", "{out}");
    ensure!(fs::read_to_string(rw.join("from-host"))? == "host\nmore\n");
    ensure!(fs::read_link(rw.join("d/link"))? == Path::new("moved"));
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(rw.join("d/moved"))?.permissions());
    ensure!(mode & 0o7777 == 0o600, "mode {mode:o}");
    shell::output(Command::new("diff").arg("-r").arg(debian()?.join("etc/apt")).arg(rw.join("apt")))?;
    ensure!(fs::read_dir(&ro)?.count() == 1 && fs::read_to_string(ro.join("from-host"))? == "host\n");
    trial.finish()
}

#[test]
fn symbolic_links_do_not_lead_out_of_a_bind_mount() -> Result<()> {
    let trial = Trial::new("bind-links")?;
    let (dir, secret) = (trial.path().join("dir"), trial.path().join("secret"));
    fs::create_dir(&dir)?;
    fs::write(&secret, "secret\n")?;
    std::os::unix::fs::symlink(&secret, dir.join("absolute"))?;
    std::os::unix::fs::symlink("../secret", dir.join("relative"))?;
    std::os::unix::fs::symlink("/etc/hostname", dir.join("hostname"))?;
    let script = "cd /data; cat absolute relative ../secret; ln -s ../../secret made; cat made; echo w >made; cat hostname";
    let bundle = Bundle::bash(debian()?, script).bind(&dir, "/data", "rw");
    // A link is followed inside: /etc/hostname is that of the sandbox.
    let out = trial.run(&bundle)?.run()?.expect(0)?;
    ensure!(!out.out().contains("secret") && out.out().ends_with("casemate\n"), "{out}");
    ensure!(fs::read_to_string(&secret)? == "secret\n");
    trial.finish()
}

#[test]
fn a_file_system_in_memory() -> Result<()> {
    let trial = Trial::new("tmpfs")?;
    let script = "cd /data; head -c 20M /dev/urandom >f; cp f g; cmp f g; rm f; du -sm . | cut -f1; df /data | tail -1 | cut -d' ' -f1; \
                  mkdir d; echo x >d/x; mv d e; cat e/x; stat -f -c %T /data";
    let bundle = Bundle::bash(debian()?, script).tmpfs("/data");
    trial.run(&bundle)?.run()?.expect(0)?.expect_out("20\ntmpfs\nx\ntmpfs\n")?;
    trial.finish()
}
