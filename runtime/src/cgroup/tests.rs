use super::*;

fn resources() -> LinuxResources {
    serde_json::from_value(serde_json::json!({
        "memory": { "limit": 1_048_576, "swap": 3_145_728, "reservation": 0 },
        "cpu": { "shares": 1024, "quota": 50_000, "period": 100_000, "burst": 1000, "cpus": "0-1" },
        "pids": { "limit": 10 },
        "blockIO": {
            "weight": 0,
            "throttleReadBpsDevice": [{ "major": 8, "minor": 0, "rate": 1024 }],
            "throttleWriteIOPSDevice": [{ "major": 8, "minor": 16, "rate": 0 }],
        },
    }))
    .unwrap()
}

fn leaf(place: &str, controllers: &[&str]) -> Leaf {
    let controllers = controllers.iter().map(|name| (*name).to_owned()).collect();
    Leaf { place: place.into(), mount: PathBuf::new(), controllers, held: Held::default() }
}

/// A group of version 2 that is made at `path` below `mount`.
fn made(mount: &Path, path: &str) -> std::result::Result<ControlGroup, String> {
    let leaf = Leaf { mount: mount.into(), ..leaf(&mount.join(path).display().to_string(), &[]) };
    let mut group = ControlGroup::default();
    group.group.made.extend(leaf.make(true)?.then(|| leaf.place.clone()));
    group.group.leaves.push(leaf);
    Ok(group)
}

#[test]
fn limits_in_both_versions() {
    let v1 = leaf("/g", &["memory", "pids", "cpu", "blkio"]);
    let expected = [
        ("pids.max", "148"),
        ("memory.limit_in_bytes", "1048576"),
        ("memory.memsw.limit_in_bytes", "3145728"),
        ("cpu.shares", "1024"),
        ("cpu.cfs_period_us", "100000"),
        ("cpu.cfs_quota_us", "50000"),
        ("cpu.cfs_burst_us", "1000"),
        ("blkio.throttle.read_bps_device", "8:0 1024"),
        ("blkio.throttle.write_iops_device", "8:16 0"),
    ];
    assert_eq!(v1.settings(&resources()), expected.map(|(file, value)| (file, value.to_owned())));
    let v2 = leaf("/g", &[]);
    let expected = [
        ("pids.max", "148"),
        ("memory.max", "1048576"),
        ("memory.swap.max", "2097152"),
        ("cpu.weight", "100"),
        ("cpu.max", "50000 100000"),
        ("cpu.max.burst", "1000"),
        ("cpuset.cpus", "0-1"),
        ("io.max", "8:0 rbps=1024"),
        ("io.max", "8:16 wiops=max"),
    ];
    assert_eq!(v2.settings(&resources()), expected.map(|(file, value)| (file, value.to_owned())));
}

/// A directory that goes with its owner.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A tree of plain files has everything of version 2 but the kernel behind it.
#[test]
fn a_group_of_version_2() {
    let scratch = Scratch(std::env::temp_dir().join(format!("casemate-cgroup-{}", std::process::id())));
    let _ = fs::remove_dir_all(&scratch.0);
    fs::create_dir_all(&scratch.0).unwrap();
    let mut group = made(&scratch.0, "a.slice/b.scope").unwrap();
    let place = scratch.0.join("a.slice/b.scope");
    assert_eq!(group.group().made, [place.as_path()]);
    // Each level hands its controllers down before the next one is made; the leaf, which has processes, does not.
    for level in ["", "a.slice"] {
        let handed = scratch.0.join(level).join("cgroup.subtree_control");
        assert_eq!(fs::read_to_string(handed).unwrap(), "+io");
    }
    assert!(!place.join("cgroup.subtree_control").exists());

    let mut resources = resources();
    let unified = [("memory.high".to_owned(), "900000".to_owned())];
    resources.set_unified(Some(unified.into_iter().collect()));
    assert_eq!(group.group().apply(&resources), Vec::<String>::new());
    let read = |file: &str| fs::read_to_string(place.join(file)).unwrap();
    assert_eq!(read("memory.max"), "1048576");
    assert_eq!(read("cpu.max"), "50000 100000");
    assert_eq!(read("memory.high"), "900000");
    assert!(group.add(7).unwrap().is_empty());
    assert_eq!(read("cgroup.procs"), "7");

    fs::write(place.join("cgroup.events"), "populated 1\nfrozen 1\n").unwrap();
    group.group().freeze(true).unwrap();
    assert!(group.group().is_frozen() && group.group().is_v2());
    fs::write(place.join("memory.events"), "oom 1\noom_kill 0\n").unwrap();
    assert!(!group.group().out_of_memory());
    fs::write(place.join("memory.events"), "oom 1\noom_kill 2\n").unwrap();
    assert!(group.group().out_of_memory());
    assert_eq!(group.group().memory_peak(), None);
    fs::write(place.join("memory.peak"), "1000\n").unwrap();
    assert_eq!(group.group().memory_peak(), Some(("1048576".into(), "1000".into())));
    group.group().kill();
    assert_eq!(read("cgroup.kill"), "1");
    group.keep();
}

/// The kernel's own, where it is mounted: a group can be made, frozen, killed and removed.
#[test]
fn a_group_of_the_kernel() {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mount =
        table.lines().find(|line| line.contains(" - cgroup2 ")).and_then(|line| line.split(' ').nth(4));
    let Some(mount) = mount else { return };
    let name = format!("casemate-test-{}", std::process::id());
    // Without the right to make groups there is nothing to test.
    let Ok(group) = made(Path::new(mount), &name) else { return };
    let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    assert!(group.add(child.id()).unwrap().is_empty());
    group.group().freeze(true).unwrap();
    assert!(group.group().is_frozen());
    group.group().freeze(false).unwrap();
    assert!(!group.group().is_frozen());
    group.group().kill();
    assert!(!child.wait().unwrap().success());
    drop(group);
    assert!(!Path::new(mount).join(name).exists());
}
