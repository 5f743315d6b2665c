//! `/proc/sys`: the values that programs read; few of them can be set.

use std::sync::Arc;

use sentry_base::{Errno, Result, rand};
use sentry_kernel::ns::UtsNs;
use sentry_kernel::{Kernel, PID_MAX, UtsNames};
use sentry_vfs::pseudo::{Content, PseudoFs};
use sentry_vfs::{Caller, Inode, cap};

use crate::global::{RELEASE, VERSION};
use crate::sysctl_ipc;

const VM: &[(&str, &str)] = &[
    ("overcommit_memory", "0\n"),
    ("overcommit_ratio", "50\n"),
    ("max_map_count", "65530\n"),
    ("mmap_min_addr", "65536\n"),
    ("swappiness", "60\n"),
    ("admin_reserve_kbytes", "8192\n"),
    ("dirty_background_bytes", "0\n"),
    ("dirty_bytes", "0\n"),
    ("dirty_expire_centisecs", "3000\n"),
    ("dirty_ratio", "20\n"),
    ("dirty_writeback_centisecs", "500\n"),
    ("laptop_mode", "0\n"),
    ("legacy_va_layout", "0\n"),
    ("lowmem_reserve_ratio", "256\t256\t32\t0\t0\n"),
    ("min_free_kbytes", "67584\n"),
    ("mmap_rnd_bits", "28\n"),
    ("nr_overcommit_hugepages", "0\n"),
    ("oom_dump_tasks", "1\n"),
    ("oom_kill_allocating_task", "0\n"),
    ("overcommit_kbytes", "0\n"),
    ("page-cluster", "3\n"),
    ("panic_on_oom", "0\n"),
    ("unprivileged_userfaultfd", "0\n"),
    ("user_reserve_kbytes", "131072\n"),
    ("vfs_cache_pressure", "100\n"),
    ("zone_reclaim_mode", "0\n"),
    ("dirty_background_ratio", "10\n"),
    ("nr_hugepages", "0\n"),
];

const KERNEL: &[(&str, &str)] = &[
    ("arch", "x86_64\n"),
    ("ctrl-alt-del", "0\n"),
    ("hung_task_timeout_secs", "120\n"),
    ("io_uring_disabled", "2\n"),
    ("modules_disabled", "1\n"),
    ("nmi_watchdog", "0\n"),
    ("numa_balancing", "0\n"),
    ("ostype", "Linux\n"),
    ("panic_on_oops", "0\n"),
    ("perf_event_max_sample_rate", "100000\n"),
    ("perf_event_mlock_kb", "516\n"),
    ("printk", "4\t4\t1\t7\n"),
    ("sched_autogroup_enabled", "0\n"),
    ("sched_rt_period_us", "1000000\n"),
    ("sched_rt_runtime_us", "950000\n"),
    ("sysrq", "0\n"),
    ("unprivileged_bpf_disabled", "2\n"),
    ("threads-max", "63000\n"),
    ("cap_last_cap", "40\n"),
    ("core_pattern", "core\n"),
    ("core_uses_pid", "0\n"),
    ("ngroups_max", "65536\n"),
    ("overflowuid", "65534\n"),
    ("overflowgid", "65534\n"),
    ("panic", "0\n"),
    ("perf_event_paranoid", "2\n"),
    ("randomize_va_space", "2\n"),
    ("sched_child_runs_first", "0\n"),
    ("tainted", "0\n"),
    ("kptr_restrict", "1\n"),
    ("dmesg_restrict", "1\n"),
];

const USER: &[&str] = &[
    "max_cgroup_namespaces",
    "max_ipc_namespaces",
    "max_mnt_namespaces",
    "max_net_namespaces",
    "max_pid_namespaces",
    "max_time_namespaces",
    "max_user_namespaces",
    "max_uts_namespaces",
];

const FS: &[(&str, &str)] = &[
    ("dentry-state", "0\t0\t45\t0\t0\t0\n"),
    ("dir-notify-enable", "1\n"),
    ("file-max", "9223372036854775807\n"),
    ("file-nr", "0\t0\t9223372036854775807\n"),
    ("inode-nr", "0\t0\n"),
    ("inode-state", "0\t0\t0\t0\t0\t0\t0\n"),
    ("lease-break-time", "45\n"),
    ("leases-enable", "1\n"),
    ("mount-max", "100000\n"),
    ("nr_open", "1048576\n"),
    ("pipe-max-size", "1048576\n"),
    ("pipe-user-pages-hard", "0\n"),
    ("pipe-user-pages-soft", "16384\n"),
    ("aio-max-nr", "65536\n"),
    ("overflowgid", "65534\n"),
    ("overflowuid", "65534\n"),
    ("protected_fifos", "0\n"),
    ("protected_regular", "0\n"),
    ("protected_hardlinks", "0\n"),
    ("protected_symlinks", "0\n"),
    ("suid_dumpable", "0\n"),
];

fn fixed(
    fs: &Arc<PseudoFs>,
    rows: &'static [(&'static str, &'static str)],
) -> Vec<(&'static str, Arc<dyn Inode>)> {
    rows.iter().map(|(name, text)| (*name, fs.fixed(*text))).collect()
}

pub(crate) fn tree(fs: &Arc<PseudoFs>, kernel: &Arc<Kernel>) -> Arc<dyn Inode> {
    let mut entries = fixed(fs, KERNEL);
    entries.push(("osrelease", fs.fixed(format!("{RELEASE}\n"))));
    entries.push(("version", fs.fixed(format!("{VERSION}\n"))));
    entries.push(("pid_max", fs.fixed(format!("{PID_MAX}\n"))));
    entries.push(("hostname", fs.file(0o644, Name { kernel: Arc::clone(kernel), domain: false })));
    entries.push(("domainname", fs.file(0o644, Name { kernel: Arc::clone(kernel), domain: true })));
    let boot_id = uuid();
    entries.push((
        "random",
        fs.dir([
            ("boot_id", fs.fixed(boot_id)),
            ("uuid", fs.file(0o444, |_: &dyn Caller| -> Result<Vec<u8>> { Ok(uuid().into_bytes()) })),
            ("entropy_avail", fs.fixed("256\n")),
            ("poolsize", fs.fixed("256\n")),
        ]),
    ));
    let pty = fs.dir([("max", fs.fixed("4096\n")), ("nr", fs.fixed("0\n")), ("reserve", fs.fixed("1024\n"))]);
    entries.push(("pty", pty));
    entries.push(("yama", fs.dir([("ptrace_scope", fs.fixed("0\n"))])));
    let inotify = fs.dir([
        ("max_queued_events", fs.fixed("16384\n")),
        ("max_user_instances", fs.fixed("128\n")),
        ("max_user_watches", fs.fixed("65536\n")),
    ]);
    let mut files = fixed(fs, FS);
    files.push(("inotify", inotify));
    let aio = Arc::clone(kernel.aio());
    let aio_nr =
        move |_: &dyn Caller| -> Result<Vec<u8>> { Ok(format!("{}\n", aio.requests()).into_bytes()) };
    files.push(("aio-nr", fs.file(0o444, aio_nr)));
    files.push(("epoll", fs.dir([("max_user_watches", fs.fixed("5000000\n"))])));
    entries.extend(sysctl_ipc::kernel(fs, kernel));
    files.push(("mqueue", fs.dir(sysctl_ipc::mqueue(fs, kernel))));
    fs.dir([
        ("kernel", fs.dir(entries)),
        ("vm", fs.dir(fixed(fs, VM))),
        ("fs", fs.dir(files)),
        ("net", crate::net::sysctls(fs, kernel)),
        ("user", fs.dir(USER.iter().map(|name| (*name, fs.fixed("31500\n"))))),
    ])
}

/// A random version 4 UUID (RFC 9562), with a newline.
fn uuid() -> String {
    let high = rand::next_u64() & !0xf000 | 0x4000;
    let low = rand::next_u64() & !(3 << 62) | 2 << 62;
    format!(
        "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}\n",
        high >> 32,
        high >> 16 & 0xffff,
        high & 0xffff,
        low >> 48,
        low & 0xffff_ffff_ffff
    )
}

/// The host or domain name.
struct Name {
    kernel: Arc<Kernel>,
    domain: bool,
}

impl Name {
    fn uts(&self, caller: &dyn Caller) -> Arc<UtsNs> {
        match crate::task_of(caller) {
            Some(task) => Arc::clone(&task.namespaces().uts),
            None => Arc::clone(self.kernel.first_uts()),
        }
    }
}

impl Content for Name {
    fn text(&self, caller: &dyn Caller) -> Result<Vec<u8>> {
        let names = self.uts(caller).names();
        let mut text = if self.domain { names.domainname } else { names.hostname };
        text.push(b'\n');
        Ok(text)
    }

    fn store(&self, caller: &dyn Caller, data: &[u8]) -> Result<usize> {
        let uts = self.uts(caller);
        if !caller.creds().has_cap_in(uts.user_ns(), cap::SYS_ADMIN) {
            return Err(Errno::EPERM);
        }
        let name: Vec<u8> = data.iter().copied().take_while(|b| *b != b'\n' && *b != 0).take(64).collect();
        let old = uts.names();
        uts.set_names(if self.domain {
            UtsNames { domainname: name, ..old }
        } else {
            UtsNames { hostname: name, ..old }
        });
        Ok(data.len())
    }
}
