//! Programs that make namespaces and mounts of their own: util-linux, and a root file system that plays tricks.

use anyhow::Result;
use xtask::bundle::Bundle;
use xtask::trial::Trial;

use crate::common::{debian, same_as_host};

#[test]
fn util_linux_makes_namespaces() -> Result<()> {
    same_as_host(
        "ns-util-linux",
        r#"
        set -e
        unshare -r id -u
        unshare -Ur cat /proc/self/uid_map | tr -s ' '
        unshare -u sh -c 'echo inner > /proc/sys/kernel/hostname; uname -n'
        unshare -Urpf --mount-proc sh -c 'echo pid $$; ls /proc | grep -c "^[0-9]"'
        unshare -m sh -c 'mount -t tmpfs tmpfs /mnt; findmnt -n -o TARGET,FSTYPE /mnt; mkdir /mnt/r
            mount --bind / /mnt/r; chroot /mnt/r sh -c "test -d /etc && echo inside"; umount -l /mnt; findmnt /mnt || echo gone'
        unshare -p -f --kill-child sh -c 'sleep 100 & sleep 100 & exit 7' || echo code $?
        unshare -n ip link 2>/dev/null | grep -c UP || true
        for kind in ipc mnt pid user uts; do readlink /proc/self/ns/$kind | cut -d: -f1; done
        nsenter -t $$ -m -u -i true && echo entered
        setpriv --reuid 1000 --regid 1000 --clear-groups unshare -Ur sh -c 'touch /root/x 2>&1 || true; id -u'
        "#,
    )
}

/// What a virtual root does to its own namespaces has no effect outside.
#[test]
fn namespace_calls_are_virtual() -> Result<()> {
    let trial = Trial::new("ns-virtual")?;
    let script = r#"
        mkdir -p /tmp/new/old && mount -t tmpfs t /tmp/new && mkdir /tmp/new/old
        unshare -m sh -c 'cd /tmp/new && pivot_root . old && umount -l /old && ls /' 2>&1 | head -5
        unshare -Urm mount --bind /proc/1/root /mnt 2>&1 || echo refused
        nsenter -t 1 -m -p -u -i -n readlink /proc/self/ns/mnt > /dev/null && echo own-namespaces
        unshare -u hostname changed; nsenter --mount=/proc/1/ns/mnt cat /etc/hostname > /dev/null; echo done
    "#;
    let before = trial.host(["hostname"]).run()?.out();
    let run = trial.run(&Bundle::bash(debian()?, script).all_capabilities())?.run()?.expect(0)?;
    anyhow::ensure!(run.out().contains("own-namespaces") && run.out().contains("done"), "{run}");
    let after = trial.host(["hostname"]).run()?.out();
    anyhow::ensure!(before == after, "the host changed: {before} to {after}");
    trial.finish()
}
