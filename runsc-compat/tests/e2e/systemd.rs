//! `--systemd-cgroup` with a systemd behind it: a real one, in namespaces of its own with a bus and no other service.

use anyhow::Result;
use serde_json::json;
use xtask::bundle::{Bundle, write_config};
use xtask::shell;
use xtask::trial::Trial;

use crate::common::{busybox, long};

/// Starts a systemd that has a bus and nothing else, as process 1 of namespaces of its own; kills it at the end.
const BOOT: &str = r#"
    set -e
    here=$dir/systemd; mkdir $here
    cat >$here/boot <<'END'
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs $1
mkdir $1/units
printf '[Unit]\nDefaultDependencies=no\n[Socket]\nListenStream=/run/dbus/system_bus_socket\n' >$1/units/dbus.socket
printf '[Unit]\nDefaultDependencies=no\nRequires=dbus.socket\nAfter=dbus.socket\n[Service]\nExecStart=/usr/bin/dbus-daemon --system --address=systemd: --nofork --nopidfile --systemd-activation\n' >$1/units/dbus.service
printf '[Unit]\nDefaultDependencies=no\nRequires=dbus.service\n' >$1/units/test.target
for name in basic sysinit shutdown sockets timers slices; do
    printf '[Unit]\nDefaultDependencies=no\n' >$1/units/$name.target
done
if [ ! -e /sys/fs/cgroup/cgroup.procs ]; then
    # systemd makes directories beside the hierarchies of version 1, and takes the right to write from their file system.
    mkdir $1/groups
    mount -t tmpfs tmpfs $1/groups
    for hierarchy in /sys/fs/cgroup/*; do
        mountpoint -q $hierarchy || continue
        mkdir $1/groups/${hierarchy##*/}
        mount --bind $hierarchy $1/groups/${hierarchy##*/}
    done
    mount --rbind $1/groups /sys/fs/cgroup
fi
mount -t tmpfs tmpfs /run
mkdir -p /run/dbus /run/systemd
mount --bind $1/units /lib/systemd/system
mount -t tmpfs tmpfs /etc/systemd/system
mount -t proc proc /proc
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
exec env -i container=other PATH=$PATH /lib/systemd/systemd --system --unit=test.target
END
    # systemd makes its groups below the one that it is in.
    groups=
    for hierarchy in /sys/fs/cgroup /sys/fs/cgroup/unified /sys/fs/cgroup/systemd; do
        if [ -e $hierarchy/cgroup.procs ]; then
            mkdir $hierarchy/$id.test; groups="$groups $hierarchy/$id.test"
        fi
    done
    (for group in $groups; do echo $BASHPID >$group/cgroup.procs; done
     exec unshare --mount --pid --fork --kill-child --net --uts --ipc sh $here/boot $here </dev/null >/dev/null 2>&1) &
    outer=$!
    end() {
        kill -KILL $outer 2>/dev/null; wait $outer 2>/dev/null || true
        # In version 1 systemd has made some in other hierarchies, too.
        for group in /sys/fs/cgroup/$id.test /sys/fs/cgroup/*/$id.test; do
            [ -e $group ] || continue
            for i in $(seq 300); do
                find $group -depth -type d -exec rmdir {} + 2>/dev/null && break; sleep 0.01
            done
        done
    }
    trap end EXIT
    for i in $(seq 600); do
        inner=$(pgrep -P $outer || true)
        [ "$inner" ] && nsenter -t $inner -m -p systemctl is-active test.target >/dev/null 2>&1 && break
        sleep 0.1
    done
    inside() { nsenter -t $inner -m -p "$@"; }
    inside systemctl is-active test.target >/dev/null || { echo systemd does not start; exit 1; }
    rt() { inside $rt --debug --log $dir/log --systemd-cgroup "$@"; }
    show() { inside systemctl show -p $1 --value $unit; }
"#;

#[test]
fn a_scope_of_systemd() -> Result<()> {
    let programs = ["/lib/systemd/systemd", "/usr/bin/dbus-daemon"];
    let there = programs.iter().all(|path| std::path::Path::new(path).exists()) && shell::has("nsenter");
    if !long() || !there || !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let trial = Trial::new("systemd")?;
    let mut config = Bundle::new(busybox()?, ["sleep", "1000"]).config();
    config["linux"]["resources"] = json!({
        "memory": { "limit": 256 << 20 }, "pids": { "limit": 10 }, "cpu": { "quota": 50_000, "period": 100_000 }
    });
    config["linux"]["cgroupsPath"] = json!(format!("system-test.slice:box:{}", trial.id()));
    write_config(&trial.path().join("bundle"), &config)?;
    let script = format!(
        "{BOOT}
         unit=box-$id.scope
         rt create --bundle $bundle --pid-file $dir/pid $id </dev/null >/dev/null
         rt start $id
         show ActiveState; show Slice; show Delegate; show TasksMax; show CPUQuotaPerSecUSec
         inside grep -o system-test.slice/$unit /proc/$(cat $dir/pid)/cgroup | sort -u
         rt update --pids-limit 20 $id; show TasksMax
         rt exec $id true; echo exec $?
         # The unit is its container's: another one does not get it, and takes nothing of it along.
         rt create --bundle $bundle other </dev/null 2>&1 | grep -o 'there is a unit of this name'
         show ActiveState
         rt delete -f $id; show ActiveState
         grep -c 'no systemd answers' $dir/log || true"
    );
    let out = crate::lifecycle::script_in(&trial, &script)?.expect(0)?;
    out.expect_out(
        "active\nsystem-test.slice\nyes\n148\n500ms\nsystem-test.slice/box-UNIT\n168\nexec 0\n\
         there is a unit of this name\nactive\ninactive\n0\n"
            .replace("box-UNIT", &format!("box-{}.scope", trial.id()))
            .as_str(),
    )?;
    trial.finish()
}
