//! What a container sees as `/sys/fs/cgroup`: its own group as the root of a cgroup namespace shows it (`cgroups(7)`,
//! `Documentation/admin-guide/cgroup-v2.rst`).
//!
//! Language runtimes size heaps and thread pools by these files. They say what the host's group holds the container to, and
//! how much its programs use; nothing can be set here.

use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use control_protocol::Options;
use sentry_base::Result;
use sentry_kernel::{Kernel, Task, ThreadGroup};
use sentry_vfs::pseudo::PseudoFs;
use sentry_vfs::{Caller, Inode, anonymous_dev};

use crate::container::members;

/// `CGROUP2_SUPER_MAGIC` (`include/uapi/linux/magic.h`).
const MAGIC: u64 = 0x6367_7270;

/// Files that say the same at all times.
const FIXED: &[(&str, &str)] = &[
    ("cgroup.controllers", "cpuset cpu io memory pids\n"),
    ("cgroup.events", "populated 1\nfrozen 0\n"),
    ("cgroup.freeze", "0\n"),
    ("cgroup.max.depth", "max\n"),
    ("cgroup.max.descendants", "max\n"),
    ("cgroup.stat", "nr_descendants 0\nnr_dying_descendants 0\n"),
    ("cgroup.subtree_control", "\n"),
    ("cgroup.type", "domain\n"),
    ("cpu.idle", "0\n"),
    ("cpu.max.burst", "0\n"),
    ("cpu.weight.nice", "0\n"),
    ("cpuset.cpus", "\n"),
    ("cpuset.mems", "\n"),
    ("cpuset.mems.effective", "0\n"),
    ("io.max", ""),
    ("io.stat", ""),
    ("memory.events", "low 0\nhigh 0\nmax 0\noom 0\noom_kill 0\noom_group_kill 0\n"),
    ("memory.high", "max\n"),
    ("memory.low", "0\n"),
    ("memory.min", "0\n"),
    ("memory.oom.group", "0\n"),
    ("memory.swap.current", "0\n"),
    ("memory.swap.events", "high 0\nmax 0\nfail 0\n"),
    ("memory.swap.high", "max\n"),
    ("memory.swap.max", "0\n"),
    ("pids.events", "max 0\n"),
];

/// A file system of the group of a container that is held to `options`.
pub(crate) fn new(kernel: &Arc<Kernel>, options: &Options, memory_limit: &Arc<AtomicU64>) -> Arc<PseudoFs> {
    let fs = PseudoFs::new("cgroup2", MAGIC, anonymous_dev(), 1);
    let mut files: Vec<(&str, Arc<dyn Inode>)> =
        FIXED.iter().map(|(name, text)| (*name, fs.fixed(*text))).collect();
    let limit = |value: u64| if value == 0 { "max\n".to_owned() } else { format!("{value}\n") };
    let or = |value: u64, usual: u64| if value == 0 { usual } else { value };
    let quota = match options.cpu_quota {
        0 => "max".to_owned(),
        quota => quota.to_string(),
    };
    let cpus = match kernel.nr_cpus() {
        0 | 1 => "0\n".to_owned(),
        more => format!("0-{}\n", more - 1),
    };
    files.extend([
        ("cpu.max", fs.fixed(format!("{quota} {}\n", or(options.cpu_period, 100_000)))),
        ("cpu.weight", fs.fixed(format!("{}\n", or(options.cpu_weight, 100)))),
        ("cpuset.cpus.effective", fs.fixed(cpus)),
        ("memory.max", {
            let memory_limit = Arc::clone(memory_limit);
            fs.file(0o444, move |_: &dyn Caller| Ok(limit(memory_limit.load(Ordering::Relaxed)).into_bytes()))
        }),
        ("pids.max", fs.fixed(limit(options.tasks))),
    ]);
    let live: [(&str, Text); 6] = [
        ("cgroup.procs", processes),
        ("cgroup.threads", threads),
        ("cpu.stat", cpu),
        ("memory.current", |groups| format!("{}\n", memory(groups).into_iter().sum::<u64>())),
        ("memory.stat", memory_stat),
        ("pids.current", |groups| format!("{}\n", groups.iter().map(|g| g.nr_threads()).sum::<usize>())),
    ];
    for (name, text) in live {
        let kernel = Arc::clone(kernel);
        let content = move |caller: &dyn Caller| -> Result<Vec<u8>> {
            let container = caller.as_any().downcast_ref::<Task>().map_or(0, |task| task.group().container());
            Ok(text(&members(&kernel, container)).into_bytes())
        };
        files.push((name, fs.file(0o444, content)));
    }
    fs.set_root(fs.dir(files));
    fs
}

/// The text of a file, by the processes of the container that reads it.
type Text = fn(&[Arc<ThreadGroup>]) -> String;

fn lines(numbers: impl Iterator<Item = impl Display>) -> String {
    numbers.fold(String::new(), |text, number| text + &format!("{number}\n"))
}

fn processes(groups: &[Arc<ThreadGroup>]) -> String {
    lines(groups.iter().map(|group| group.pid_ns().local(group.pid())))
}

fn threads(groups: &[Arc<ThreadGroup>]) -> String {
    let of = |group: &Arc<ThreadGroup>| group.threads().into_iter().map(|task| task.ns_tid());
    lines(groups.iter().flat_map(of))
}

fn cpu(groups: &[Arc<ThreadGroup>]) -> String {
    let (mut user, mut system) = (0_u64, 0_u64);
    for group in groups {
        let (utime, stime) = group.cpu_times();
        user = user.saturating_add(utime / 1000);
        system = system.saturating_add(stime / 1000);
    }
    format!(
        "usage_usec {}\nuser_usec {user}\nsystem_usec {system}\nnr_periods 0\nnr_throttled 0\nthrottled_usec 0\n",
        user.saturating_add(system)
    )
}

/// Anonymous memory, memory of files, shared memory, in bytes.
fn memory(groups: &[Arc<ThreadGroup>]) -> [u64; 3] {
    let mut sums = [0_u64; 3];
    for group in groups {
        let Some(task) = group.threads().into_iter().next() else { continue };
        let resident = task.mm().resident();
        for (sum, part) in sums.iter_mut().zip([resident.anon, resident.file, resident.shmem]) {
            *sum = sum.saturating_add(part);
        }
    }
    sums
}

fn memory_stat(groups: &[Arc<ThreadGroup>]) -> String {
    let [anon, file, shmem] = memory(groups);
    format!(
        "anon {anon}\nfile {}\nkernel 0\nkernel_stack 0\npagetables 0\nsock 0\nshmem {shmem}\nfile_mapped {file}\n\
         file_dirty 0\nfile_writeback 0\nswapcached 0\ninactive_anon 0\nactive_anon {anon}\ninactive_file {file}\n\
         active_file 0\nunevictable 0\nslab_reclaimable 0\nslab_unreclaimable 0\nslab 0\npgfault 0\npgmajfault 0\n",
        file.saturating_add(shmem)
    )
}
