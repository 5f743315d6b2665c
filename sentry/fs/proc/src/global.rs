//! The files of `/proc` that are about the system as a whole.

use core::fmt::Write;
use std::sync::Arc;

use abi::time::ticks;
use sentry_base::{Errno, Result, mono_now};
use sentry_ipc::IpcNamespace;
use sentry_kernel::{Kernel, TaskState};
use sentry_vfs::pseudo::PseudoFs;
use sentry_vfs::{Caller, Inode};

use crate::task_of;

/// Version strings of the kernel that the sandbox shows; `uname(2)` says the same.
pub(crate) const RELEASE: &str = sentry_kernel::RELEASE;
pub(crate) const VERSION: &str = sentry_kernel::VERSION;

type Maker = fn(&Kernel, &dyn Caller) -> String;

const FILES: &[(&str, Maker)] = &[
    ("buddyinfo", buddyinfo),
    ("cpuinfo", cpuinfo),
    ("filesystems", filesystems),
    ("loadavg", loadavg),
    ("meminfo", meminfo),
    ("softirqs", softirqs),
    ("stat", stat),
    ("uptime", uptime),
    ("vmstat", vmstat),
    ("zoneinfo", zoneinfo),
];

const FIXED: &[(&str, &str)] = &[
    (
        "cgroups",
        "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpuset\t0\t1\t1\ncpu\t0\t1\t1\ncpuacct\t0\t1\t1\n\
         blkio\t0\t1\t1\nmemory\t0\t1\t1\npids\t0\t1\t1\n",
    ),
    ("cmdline", "\n"),
    ("consoles", ""),
    (
        "devices",
        "Character devices:\n  1 mem\n  5 /dev/tty\n  5 /dev/console\n  5 /dev/ptmx\n136 pts\n\nBlock devices:\n",
    ),
    ("diskstats", ""),
    ("execdomains", "0-0\tLinux           \t[kernel]\n"),
    ("fb", ""),
    ("interrupts", ""),
    ("iomem", ""),
    ("ioports", ""),
    ("kallsyms", ""),
    ("key-users", ""),
    ("keys", ""),
    ("locks", ""),
    ("misc", ""),
    ("modules", ""),
    ("mtrr", ""),
    ("pagetypeinfo", ""),
    ("partitions", "major minor  #blocks  name\n\n"),
    ("schedstat", "version 16\n"),
    ("slabinfo", "slabinfo - version: 2.1\n"),
    ("swaps", "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"),
];

/// Names and inodes.
pub(crate) fn files(fs: &Arc<PseudoFs>, kernel: &Arc<Kernel>) -> Vec<(&'static str, Arc<dyn Inode>)> {
    let mut all: Vec<(&'static str, Arc<dyn Inode>)> = Vec::new();
    for (name, make) in FILES {
        let kernel = Arc::clone(kernel);
        let content =
            move |caller: &dyn Caller| -> Result<Vec<u8>> { Ok(make(&kernel, caller).into_bytes()) };
        all.push((name, fs.file(0o444, content)));
    }
    for (name, text) in FIXED {
        all.push((name, fs.fixed(*text)));
    }
    let pressure =
        "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n";
    all.push(("pressure", fs.dir(["cpu", "io", "memory"].map(|name| (name, fs.fixed(pressure))))));
    all.push(("bus", fs.dir([])));
    all.push(("driver", fs.dir([])));
    all.push(("fs", fs.dir([])));
    all.push(("irq", fs.dir([])));
    let drivers = "/dev/tty             /dev/tty        5       0 system:/dev/tty\n\
                   /dev/console         /dev/console    5       1 system:console\n\
                   /dev/ptmx            /dev/ptmx       5       2 system\n\
                   pty_slave            /dev/pts      136 0-1048575 pty:slave\n";
    all.push(("tty", fs.dir([("drivers", fs.fixed(drivers)), ("ldiscs", fs.fixed("n_tty       0\n"))])));
    let table = |make: fn(&IpcNamespace) -> String| {
        let content = move |caller: &dyn Caller| -> Result<Vec<u8>> {
            let task = task_of(caller).ok_or(Errno::ESRCH)?;
            Ok(make(&task.ipc()).into_bytes())
        };
        fs.file(0o444, content)
    };
    all.push((
        "sysvipc",
        fs.dir([
            ("msg", table(|ipc| ipc.msg.table())),
            ("sem", table(|ipc| ipc.sem.table())),
            ("shm", table(|ipc| ipc.shm.table())),
        ]),
    ));
    all.push(("version", fs.fixed(format!("Linux version {RELEASE} (casemate@casemate) {VERSION}\n"))));
    all
}

/// What the host's `cpuid` says, which application code can ask itself: flags come from there.
fn cpuinfo(kernel: &Kernel, _caller: &dyn Caller) -> String {
    let cpu = sentry_base::cpu::identify();
    let mut out = String::new();
    for number in 0..kernel.nr_cpus() {
        let _ = write!(
            out,
            "processor\t: {number}\nvendor_id\t: {}\ncpu family\t: {}\nmodel\t\t: {}\nmodel name\t: {}\nstepping\t: {}\n\
             cpu MHz\t\t: 2000.000\ncache size\t: 512 KB\nphysical id\t: 0\nsiblings\t: {n}\ncore id\t\t: {number}\n\
             cpu cores\t: {n}\napicid\t\t: {number}\ninitial apicid\t: {number}\nfpu\t\t: yes\nfpu_exception\t: yes\n\
             cpuid level\t: 13\nwp\t\t: yes\nflags\t\t: {}\nbugs\t\t:\nbogomips\t: 4000.00\nclflush size\t: 64\n\
             cache_alignment\t: 64\naddress sizes\t: 46 bits physical, 48 bits virtual\npower management:\n\n",
            cpu.vendor,
            cpu.family,
            cpu.model,
            cpu.brand,
            cpu.stepping,
            cpu.flags.join(" "),
            n = kernel.nr_cpus(),
        );
    }
    out
}

/// The types of file systems that can be mounted, and those that the kernel uses itself.
fn filesystems(kernel: &Kernel, _caller: &dyn Caller) -> String {
    let mut names = kernel.vfs().fs_types();
    names.extend(["overlay", "pipefs", "sockfs", "nsfs"].map(str::to_owned));
    names.sort_unstable();
    names.dedup();
    let mut out = String::new();
    for name in names {
        let _ = writeln!(out, "nodev\t{name}");
    }
    out
}

fn buddyinfo(kernel: &Kernel, caller: &dyn Caller) -> String {
    // All that is free, in blocks of the largest order.
    format!("Node 0, zone   Normal {}{:>6} \n", "     0 ".repeat(10), free_kib(kernel, caller) / 4096)
}

fn zoneinfo(kernel: &Kernel, caller: &dyn Caller) -> String {
    let pages = kernel.total_memory() / 4096;
    format!(
        "Node 0, zone   Normal\n  pages free     {}\n        min      0\n        low      0\n        high     0\n        \
         spanned  {pages}\n        present  {pages}\n        managed  {pages}\n  start_pfn:           0\n",
        free_kib(kernel, caller) / 4
    )
}

fn softirqs(kernel: &Kernel, _caller: &dyn Caller) -> String {
    let mut out = String::from("                    ");
    for cpu in 0..kernel.nr_cpus() {
        let _ = write!(out, "{:<11}", format!("CPU{cpu}"));
    }
    out.push('\n');
    for name in ["HI", "TIMER", "NET_TX", "NET_RX", "BLOCK", "IRQ_POLL", "TASKLET", "SCHED", "HRTIMER", "RCU"]
    {
        let _ = write!(out, "{name:>12}:");
        for _ in 0..kernel.nr_cpus() {
            out.push_str("          0");
        }
        out.push('\n');
    }
    out
}

fn running(kernel: &Kernel) -> usize {
    kernel.tasks().iter().filter(|t| t.state() == TaskState::App).count()
}

fn loadavg(kernel: &Kernel, caller: &dyn Caller) -> String {
    let tasks = kernel.tasks().len();
    let last = task_of(caller).map_or(1, sentry_kernel::Task::ns_tid);
    let [one, five, fifteen] = kernel.load_averages();
    format!("{one:.2} {five:.2} {fifteen:.2} {}/{tasks} {last}\n", running(kernel).max(1))
}

fn free_kib(kernel: &Kernel, caller: &dyn Caller) -> u64 {
    let (file, resident) = used_kib(kernel, caller);
    (kernel.total_memory() / 1024).saturating_sub(file).saturating_sub(resident)
}

/// Memory of files and memory of processes, in KiB.
fn used_kib(kernel: &Kernel, caller: &dyn Caller) -> (u64, u64) {
    let file = task_of(caller).map_or(0, |t| t.mm().memory_file().allocated() / 1024);
    let resident: u64 = kernel
        .processes()
        .iter()
        .filter_map(|g| g.threads().first().map(|t| t.mm().resident().total() / 1024))
        .sum();
    (file, resident)
}

fn meminfo(kernel: &Kernel, caller: &dyn Caller) -> String {
    let total = kernel.total_memory() / 1024;
    let (file, resident) = used_kib(kernel, caller);
    let free = total.saturating_sub(file).saturating_sub(resident);
    let rows = [
        ("MemTotal", total),
        ("MemFree", free),
        ("MemAvailable", free),
        ("Buffers", 0),
        ("Cached", file),
        ("SwapCached", 0),
        ("Active", resident),
        ("Inactive", file),
        ("Active(anon)", resident),
        ("Inactive(anon)", 0),
        ("Active(file)", 0),
        ("Inactive(file)", file),
        ("Unevictable", 0),
        ("Mlocked", 0),
        ("SwapTotal", 0),
        ("SwapFree", 0),
        ("Dirty", 0),
        ("Writeback", 0),
        ("AnonPages", resident),
        ("Mapped", file),
        ("Shmem", file),
        ("KReclaimable", 0),
        ("Slab", 0),
        ("SReclaimable", 0),
        ("SUnreclaim", 0),
        ("KernelStack", 0),
        ("PageTables", 0),
        ("SecPageTables", 0),
        ("NFS_Unstable", 0),
        ("Bounce", 0),
        ("WritebackTmp", 0),
        ("CommitLimit", total),
        ("Committed_AS", resident),
        ("VmallocTotal", 34_359_738_367),
        ("VmallocUsed", 0),
        ("VmallocChunk", 0),
        ("Percpu", 0),
        ("AnonHugePages", 0),
        ("ShmemHugePages", 0),
        ("ShmemPmdMapped", 0),
        ("FileHugePages", 0),
        ("FilePmdMapped", 0),
    ];
    let mut out = String::new();
    for (name, value) in rows {
        let label = format!("{name}:");
        let _ = writeln!(out, "{label:<16}{value:>8} kB");
    }
    out.push_str(
        "HugePages_Total:       0\nHugePages_Free:        0\nHugePages_Rsvd:        0\nHugePages_Surp:        0\n\
         Hugepagesize:       2048 kB\nHugetlb:               0 kB\n",
    );
    out
}

fn stat(kernel: &Kernel, _caller: &dyn Caller) -> String {
    let (user, system) = kernel.cpu_times();
    let (user, system) = (ticks(user), ticks(system));
    let cpus = u64::from(kernel.nr_cpus());
    let up = ticks(mono_now().saturating_sub(kernel.boot_mono()));
    let idle = (up * cpus).saturating_sub(user + system);
    let mut out = format!("cpu  {user} 0 {system} {idle} 0 0 0 0 0 0\n");
    for cpu in 0..cpus {
        let _ = writeln!(out, "cpu{cpu} {} 0 {} {} 0 0 0 0 0 0", user / cpus, system / cpus, idle / cpus);
    }
    let _ = write!(
        out,
        "intr 0\nctxt 0\nbtime {}\nprocesses {}\nprocs_running {}\nprocs_blocked 0\nsoftirq 0 0 0 0 0 0 0 0 0 0 0\n",
        kernel.boot_real() / 1_000_000_000,
        kernel.tasks().len(),
        running(kernel).max(1),
    );
    out
}

fn uptime(kernel: &Kernel, _caller: &dyn Caller) -> String {
    let up = mono_now().saturating_sub(kernel.boot_mono()) / 10_000_000;
    let idle = up * u64::from(kernel.nr_cpus());
    format!("{}.{:02} {}.{:02}\n", up / 100, up % 100, idle / 100, idle % 100)
}

fn vmstat(_kernel: &Kernel, _caller: &dyn Caller) -> String {
    "nr_free_pages 0\nnr_zone_inactive_anon 0\nnr_zone_active_anon 0\nnr_dirty 0\nnr_writeback 0\nnr_mapped 0\nnr_shmem 0\npgpgin 0\npgpgout 0\npswpin 0\npswpout 0\npgfault 0\npgmajfault 0\noom_kill 0\n".to_owned()
}
