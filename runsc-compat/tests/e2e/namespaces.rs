//! Programs that make namespaces and mounts of their own: what they do stays inside.

use anyhow::Result;
use xtask::bundle::Bundle;
use xtask::trial::Trial;

use crate::common::debian;

/// What a virtual root does to its own namespaces has no effect outside.
#[test]
fn namespace_calls_are_virtual() -> Result<()> {
    let trial = Trial::new("ns-virtual")?;
    let script = r"
        mkdir -p /tmp/new/old && mount -t tmpfs t /tmp/new && mkdir /tmp/new/old
        unshare -m sh -c 'cd /tmp/new && pivot_root . old && umount -l /old && ls /' 2>&1 | head -5
        unshare -Urm mount --bind /proc/1/root /mnt 2>&1 || echo refused
        nsenter -t 1 -m -p -u -i -n readlink /proc/self/ns/mnt > /dev/null && echo own-namespaces
        unshare -u hostname changed; nsenter --mount=/proc/1/ns/mnt cat /etc/hostname > /dev/null; echo done
    ";
    let before = trial.host(["hostname"]).run()?.out();
    let run = trial.run(&Bundle::bash(debian()?, script).all_capabilities())?.run()?.expect(0)?;
    anyhow::ensure!(run.out().contains("own-namespaces") && run.out().contains("done"), "{run}");
    let after = trial.host(["hostname"]).run()?.out();
    anyhow::ensure!(before == after, "the host changed: {before} to {after}");
    trial.finish()
}
