//! `/proc/PID/net` and `/proc/sys/net`: the network as text, and its settings.

use std::sync::Arc;

use sentry_base::{Errno, Mutex, Result, lock::rank};
use sentry_kernel::{Kernel, Task};
use sentry_net::NetworkNamespace;
use sentry_vfs::pseudo::{Content, PseudoFs};
use sentry_vfs::{Caller, Inode, cap};

/// `net.core`.
const CORE: &[(&str, &str)] = &[
    ("bpf_jit_enable", "1\n"),
    ("busy_poll", "0\n"),
    ("busy_read", "0\n"),
    ("default_qdisc", "pfifo_fast\n"),
    ("netdev_max_backlog", "1000\n"),
    ("optmem_max", "131072\n"),
    ("rmem_default", "212992\n"),
    ("rmem_max", "212992\n"),
    ("somaxconn", "4096\n"),
    ("wmem_default", "212992\n"),
    ("wmem_max", "212992\n"),
];

/// `net.ipv4`.
const IPV4: &[(&str, &str)] = &[
    ("icmp_echo_ignore_all", "0\n"),
    ("icmp_echo_ignore_broadcasts", "1\n"),
    ("igmp_max_memberships", "20\n"),
    ("ip_default_ttl", "64\n"),
    ("ip_forward", "0\n"),
    ("ip_local_port_range", "32768\t60999\n"),
    ("ip_local_reserved_ports", "\n"),
    ("ip_no_pmtu_disc", "0\n"),
    ("ip_nonlocal_bind", "0\n"),
    ("ping_group_range", "0\t2147483647\n"),
    ("tcp_abort_on_overflow", "0\n"),
    ("tcp_allowed_congestion_control", "reno cubic\n"),
    ("tcp_available_congestion_control", "reno cubic\n"),
    ("tcp_congestion_control", "cubic\n"),
    ("tcp_ecn", "2\n"),
    ("tcp_fastopen", "1\n"),
    ("tcp_fin_timeout", "60\n"),
    ("tcp_keepalive_intvl", "75\n"),
    ("tcp_keepalive_probes", "9\n"),
    ("tcp_keepalive_time", "7200\n"),
    ("tcp_max_syn_backlog", "2048\n"),
    ("tcp_max_tw_buckets", "65536\n"),
    ("tcp_mem", "287898\t383866\t575796\n"),
    ("tcp_moderate_rcvbuf", "1\n"),
    ("tcp_mtu_probing", "0\n"),
    ("tcp_no_metrics_save", "0\n"),
    ("tcp_notsent_lowat", "4294967295\n"),
    ("tcp_orphan_retries", "0\n"),
    ("tcp_retries1", "3\n"),
    ("tcp_retries2", "15\n"),
    ("tcp_rfc1337", "0\n"),
    ("tcp_rmem", "4096\t131072\t6291456\n"),
    ("tcp_sack", "1\n"),
    ("tcp_slow_start_after_idle", "1\n"),
    ("tcp_syn_retries", "6\n"),
    ("tcp_synack_retries", "5\n"),
    ("tcp_syncookies", "1\n"),
    ("tcp_timestamps", "1\n"),
    ("tcp_tw_reuse", "2\n"),
    ("tcp_window_scaling", "1\n"),
    ("tcp_wmem", "4096\t16384\t4194304\n"),
    ("udp_mem", "575799\t767732\t1151598\n"),
    ("udp_rmem_min", "4096\n"),
    ("udp_wmem_min", "4096\n"),
];

/// `net.ipv4.conf.*`.
const CONF_V4: &[(&str, &str)] = &[
    ("accept_redirects", "1\n"),
    ("accept_source_route", "0\n"),
    ("arp_ignore", "0\n"),
    ("forwarding", "0\n"),
    ("proxy_arp", "0\n"),
    ("route_localnet", "0\n"),
    ("rp_filter", "0\n"),
    ("send_redirects", "1\n"),
];

/// `net.ipv6.conf.*`.
const CONF_V6: &[(&str, &str)] = &[
    ("accept_dad", "-1\n"),
    ("accept_ra", "1\n"),
    ("addr_gen_mode", "0\n"),
    ("autoconf", "1\n"),
    ("disable_ipv6", "0\n"),
    ("forwarding", "0\n"),
    ("hop_limit", "64\n"),
    ("mtu", "65536\n"),
    ("use_tempaddr", "0\n"),
];

/// The network that a task is in.
fn network_of(task: &Task) -> Arc<NetworkNamespace> {
    task.namespaces().net.extension()
}

/// `/proc/PID/net`.
pub(crate) fn dir(fs: &Arc<PseudoFs>, task: &Task) -> Arc<dyn Inode> {
    let network = network_of(task);
    let files = sentry_net::proc::FILES.iter().map(|name| {
        let network = Arc::clone(&network);
        let text = move |_: &dyn Caller| -> Result<Vec<u8>> {
            network.proc_text(name).map(String::into_bytes).ok_or(Errno::ENOENT)
        };
        (*name, fs.file(0o444, text))
    });
    fs.dir(files.collect::<Vec<_>>())
}

/// A setting that keeps what is written to it.
struct Setting(Mutex<Vec<u8>, { rank::LEAF }>);

impl Content for Setting {
    fn text(&self, _caller: &dyn Caller) -> Result<Vec<u8>> {
        Ok(self.0.lock().clone())
    }

    fn store(&self, caller: &dyn Caller, data: &[u8]) -> Result<usize> {
        if !caller.creds().has_cap(cap::NET_ADMIN) {
            return Err(Errno::EPERM);
        }
        let mut line: Vec<u8> = data.split(|b| *b == b'\n').next().unwrap_or_default().to_vec();
        line.push(b'\n');
        *self.0.lock() = line;
        Ok(data.len())
    }
}

/// `net.ipv4.ip_unprivileged_port_start`, which the sockets heed.
struct PortStart(Arc<Kernel>);

impl PortStart {
    /// The network that the caller is in; the sandbox's first, if that is the sandbox itself.
    fn network(&self, caller: &dyn Caller) -> Arc<NetworkNamespace> {
        crate::task_of(caller).map_or_else(|| self.0.first_network().extension(), network_of)
    }
}

impl Content for PortStart {
    fn text(&self, caller: &dyn Caller) -> Result<Vec<u8>> {
        let start = self.network(caller).inet().unprivileged_port_start();
        Ok(format!("{start}\n").into_bytes())
    }

    fn store(&self, caller: &dyn Caller, data: &[u8]) -> Result<usize> {
        if !caller.creds().has_cap(cap::NET_ADMIN) {
            return Err(Errno::EPERM);
        }
        let text = core::str::from_utf8(data).map_err(|_| Errno::EINVAL)?;
        let start = text.trim().parse().map_err(|_| Errno::EINVAL)?;
        self.network(caller).inet().set_unprivileged_port_start(start);
        Ok(data.len())
    }
}

fn settings(
    fs: &Arc<PseudoFs>,
    rows: &'static [(&'static str, &'static str)],
) -> Vec<(&'static str, Arc<dyn Inode>)> {
    let file = |text: &str| fs.file(0o644, Setting(Mutex::new(text.as_bytes().to_vec())));
    rows.iter().map(|(name, text)| (*name, file(text))).collect()
}

fn per_interface(fs: &Arc<PseudoFs>, rows: &'static [(&'static str, &'static str)]) -> Arc<dyn Inode> {
    fs.dir(["all", "default", "lo"].map(|name| (name, fs.dir(settings(fs, rows)))))
}

/// `/proc/sys/net`.
pub(crate) fn sysctls(fs: &Arc<PseudoFs>, kernel: &Arc<Kernel>) -> Arc<dyn Inode> {
    let mut v4 = settings(fs, IPV4);
    v4.push(("ip_unprivileged_port_start", fs.file(0o644, PortStart(Arc::clone(kernel)))));
    v4.push(("conf", per_interface(fs, CONF_V4)));
    let v6 = [
        ("bindv6only", fs.fixed("0\n")),
        ("ip_nonlocal_bind", fs.fixed("0\n")),
        ("conf", per_interface(fs, CONF_V6)),
    ];
    fs.dir([
        ("core", fs.dir(settings(fs, CORE))),
        ("ipv4", fs.dir(v4)),
        ("ipv6", fs.dir(v6)),
        ("unix", fs.dir([("max_dgram_qlen", fs.fixed("512\n"))])),
    ])
}
