//! The Sentry's `/sys`: the part of sysfs that programs read to learn of CPUs and memory.
//!
//! It shows what the sandbox was given, never what the host has, and nothing in it can be written.
//!
//! **Lock ranks:** none; everything is made once.
//!
//! **Threat.** Read by the application; holds no host secret: CPU numbers and page sizes only.

use std::sync::Arc;

use sentry_base::{Errno, Result};
use sentry_vfs::pseudo::PseudoFs;
use sentry_vfs::{Caller, FileSystem, FsType, Inode, anonymous_dev, cap};

/// `SYSFS_MAGIC` (`include/uapi/linux/magic.h`).
const MAGIC: u64 = 0x6265_6572;

/// Builds the tree for a sandbox with `cpus` processors.
pub fn new(dev: u64, cpus: u32) -> Arc<dyn FileSystem> {
    let fs = PseudoFs::new("sysfs", MAGIC, dev, 1);
    let empty = |fs: &Arc<PseudoFs>| fs.dir([]);
    let root = fs.dir([
        ("block", empty(&fs)),
        ("bus", fs.dir([("pci", fs.dir([("devices", empty(&fs))])), ("cpu", empty(&fs))])),
        (
            "class",
            fs.dir([
                ("net", fs.dir([("lo", fs.link("../../devices/virtual/net/lo"))])),
                ("block", empty(&fs)),
                ("tty", empty(&fs)),
            ]),
        ),
        ("dev", fs.dir([("block", empty(&fs)), ("char", empty(&fs))])),
        (
            "devices",
            fs.dir([
                ("system", fs.dir([("cpu", cpu_dir(&fs, cpus)), ("node", node_dir(&fs, cpus))])),
                ("virtual", fs.dir([("net", fs.dir([("lo", loopback_dir(&fs))]))])),
            ]),
        ),
        ("firmware", empty(&fs)),
        ("fs", fs.dir([("cgroup", empty(&fs))])),
        ("hypervisor", empty(&fs)),
        ("kernel", kernel_dir(&fs)),
        ("module", empty(&fs)),
        ("power", empty(&fs)),
    ]);
    fs.set_root(root);
    fs
}

/// sysfs as `mount(2)` makes it.
#[derive(Debug)]
pub struct SysType {
    pub cpus: u32,
}

impl FsType for SysType {
    fn mount(&self, _source: &str, _data: &str, caller: &dyn Caller) -> Result<Arc<dyn FileSystem>> {
        // Linux asks for the network namespace, whose devices it shows.
        if !caller.creds().has_cap_here(cap::SYS_ADMIN) {
            return Err(Errno::EPERM);
        }
        Ok(new(anonymous_dev(), self.cpus))
    }
}

/// `0` or `0-3`: a CPU list as the kernel prints it.
fn cpu_list(cpus: u32) -> String {
    if cpus > 1 { format!("0-{}\n", cpus - 1) } else { "0\n".to_owned() }
}

fn cpu_dir(fs: &Arc<PseudoFs>, cpus: u32) -> Arc<dyn Inode> {
    let mut entries: Vec<(String, Arc<dyn Inode>)> = vec![
        ("online".to_owned(), fs.fixed(cpu_list(cpus))),
        ("possible".to_owned(), fs.fixed(cpu_list(cpus))),
        ("present".to_owned(), fs.fixed(cpu_list(cpus))),
        ("offline".to_owned(), fs.fixed("\n")),
        ("isolated".to_owned(), fs.fixed("\n")),
        ("kernel_max".to_owned(), fs.fixed("255\n")),
    ];
    for cpu in 0..cpus {
        let topology = fs.dir([
            ("core_id", fs.fixed(format!("{cpu}\n"))),
            ("physical_package_id", fs.fixed("0\n")),
            ("die_id", fs.fixed("0\n")),
            ("core_cpus_list", fs.fixed(format!("{cpu}\n"))),
            ("thread_siblings_list", fs.fixed(format!("{cpu}\n"))),
            ("core_siblings_list", fs.fixed(cpu_list(cpus))),
            ("package_cpus_list", fs.fixed(cpu_list(cpus))),
            ("thread_siblings", fs.fixed(mask(1_u64 << (cpu % 64)))),
            ("core_siblings", fs.fixed(mask(all_mask(cpus)))),
        ]);
        entries.push((format!("cpu{cpu}"), fs.dir([("topology", topology), ("online", fs.fixed("1\n"))])));
    }
    fs.dir(entries.iter().map(|(name, inode)| (name.as_str(), Arc::clone(inode))))
}

fn node_dir(fs: &Arc<PseudoFs>, cpus: u32) -> Arc<dyn Inode> {
    let node = fs.dir([
        ("cpulist", fs.fixed(cpu_list(cpus))),
        ("cpumap", fs.fixed(mask(all_mask(cpus)))),
        ("distance", fs.fixed("10\n")),
    ]);
    fs.dir([
        ("online", fs.fixed("0\n")),
        ("possible", fs.fixed("0\n")),
        ("has_cpu", fs.fixed("0\n")),
        ("has_memory", fs.fixed("0\n")),
        ("node0", node),
    ])
}

/// The loopback interface (`net/core/net-sysfs.c`).
fn loopback_dir(fs: &Arc<PseudoFs>) -> Arc<dyn Inode> {
    const ATTRIBUTES: &[(&str, &str)] = &[
        ("addr_assign_type", "0\n"),
        ("addr_len", "6\n"),
        ("address", "00:00:00:00:00:00\n"),
        ("broadcast", "00:00:00:00:00:00\n"),
        ("carrier", "1\n"),
        ("carrier_changes", "0\n"),
        ("dev_id", "0x0\n"),
        ("dev_port", "0\n"),
        ("dormant", "0\n"),
        ("flags", "0x9\n"),
        ("ifalias", ""),
        ("ifindex", "1\n"),
        ("iflink", "1\n"),
        ("link_mode", "0\n"),
        ("mtu", "65536\n"),
        ("netdev_group", "0\n"),
        ("operstate", "unknown\n"),
        ("proto_down", "0\n"),
        ("tx_queue_len", "1000\n"),
        ("type", "772\n"),
        ("uevent", "INTERFACE=lo\nIFINDEX=1\n"),
    ];
    const COUNTERS: &[&str] = &[
        "collisions",
        "multicast",
        "rx_bytes",
        "rx_compressed",
        "rx_crc_errors",
        "rx_dropped",
        "rx_errors",
        "rx_fifo_errors",
        "rx_frame_errors",
        "rx_length_errors",
        "rx_missed_errors",
        "rx_nohandler",
        "rx_over_errors",
        "rx_packets",
        "tx_aborted_errors",
        "tx_bytes",
        "tx_carrier_errors",
        "tx_compressed",
        "tx_dropped",
        "tx_errors",
        "tx_fifo_errors",
        "tx_heartbeat_errors",
        "tx_packets",
        "tx_window_errors",
    ];
    let mut entries: Vec<(&str, Arc<dyn Inode>)> =
        ATTRIBUTES.iter().map(|(name, text)| (*name, fs.fixed(*text))).collect();
    entries.push(("statistics", fs.dir(COUNTERS.iter().map(|name| (*name, fs.fixed("0\n"))))));
    let queue = |name: &'static str| (name, fs.dir([]));
    entries.push(("queues", fs.dir([queue("rx-0"), queue("tx-0")])));
    fs.dir(entries)
}

fn kernel_dir(fs: &Arc<PseudoFs>) -> Arc<dyn Inode> {
    let huge = fs.dir([
        ("enabled", fs.fixed("always [madvise] never\n")),
        ("defrag", fs.fixed("always defer defer+madvise [madvise] never\n")),
        ("hpage_pmd_size", fs.fixed("2097152\n")),
    ]);
    fs.dir([
        ("mm", fs.dir([("transparent_hugepage", huge), ("hugepages", fs.dir([]))])),
        ("debug", fs.dir([])),
    ])
}

fn all_mask(cpus: u32) -> u64 {
    if cpus >= 64 { u64::MAX } else { (1_u64 << cpus) - 1 }
}

/// A CPU mask as the kernel prints it for up to 64 CPUs.
fn mask(bits: u64) -> String {
    if bits > u64::from(u32::MAX) {
        format!("{:08x},{:08x}\n", bits >> 32, bits & u64::from(u32::MAX))
    } else {
        format!("{bits:x}\n")
    }
}
