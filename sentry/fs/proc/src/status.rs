//! The texts of `/proc/PID/stat`, `status`, `statm`, `limits`, `maps` and `smaps` (`proc_pid_stat(5)` and its kin).

use core::fmt::Write;

use abi::process::RLIM_INFINITY;
use abi::signal::SigSet;
use abi::time::ticks;
use platform::PAGE_SIZE;
use sentry_kernel::{Task, TaskState, ThreadGroup};
use sentry_mm::{MapName, Resident};
use sentry_vfs::{Caller, FileDescription, JobControl, Location};

use crate::process::Subject;

/// The letter of a task's state; a task that looks at itself runs.
pub(crate) fn state_letter(task: &Task, caller_tid: i32) -> char {
    if Subject::is_zombie(task) {
        return 'Z';
    }
    match task.state() {
        TaskState::Stopped => 'T',
        TaskState::Traced => 't',
        TaskState::Dead => 'X',
        TaskState::App => 'R',
        _ if task.tid() == caller_tid => 'R',
        _ => 'S',
    }
}

fn state_word(letter: char) -> &'static str {
    match letter {
        'R' => "R (running)",
        'T' => "T (stopped)",
        't' => "t (tracing stop)",
        'Z' => "Z (zombie)",
        'X' => "X (dead)",
        _ => "S (sleeping)",
    }
}

struct Memory {
    total: u64,
    peak: u64,
    resident: Resident,
    high_water: u64,
    library: u64,
    data: u64,
    stack: u64,
    exec: u64,
    locked: u64,
}

fn memory(task: &Task) -> Memory {
    let mm = task.mm();
    let usage = mm.usage();
    let resident = mm.resident();
    let layout = mm.layout();
    let code = layout.end_code.saturating_sub(layout.start_code).min(usage.exec);
    Memory {
        total: usage.total,
        peak: usage.peak,
        resident,
        high_water: task.group().note_peak_resident(resident.total().max(mm.peak_resident())),
        library: usage.exec.saturating_sub(code),
        data: usage.data,
        stack: usage.stack,
        exec: code,
        locked: usage.locked,
    }
}

pub(crate) fn stat(subject: &Subject, task: &Task, caller_tid: i32) -> String {
    let group = task.group();
    let m = memory(task);
    let layout = task.mm().layout();
    let (utime, stime) = if subject.is_thread() { task.cpu_times() } else { group.cpu_times() };
    let (cutime, cstime) = group.children_cpu_times();
    let terminal = task.controlling_terminal();
    let tty = terminal.as_ref().map_or(0, |t| t.rdev());
    let foreground = terminal.as_ref().map_or(-1, |t| subject.show(t.foreground()));
    let scheduling = task.scheduling();
    let start = ticks(group.started().saturating_sub(group.kernel().boot_mono()));
    let (ignored, caught) = group.actions().sets();
    let comm = String::from_utf8_lossy(&task.comm()).into_owned();
    let real_time = scheduling.priority > 0;
    let priority = if real_time { -1 - scheduling.priority } else { 20 + scheduling.nice };
    let mut out = format!(
        "{} ({comm}) {} {} {} {} {tty} {foreground} 0 0 0 0 0 {} {} {} {} {priority} {} {} 0 {start} {} {} {}",
        subject.show(task.tid()),
        state_letter(task, caller_tid),
        subject.show(group.ppid()),
        subject.show(group.pgid()),
        subject.show(group.sid()),
        ticks(utime),
        ticks(stime),
        ticks(cutime),
        ticks(cstime),
        scheduling.nice,
        group.nr_threads().max(1),
        m.total,
        m.resident.total() / PAGE_SIZE,
        RLIM_INFINITY,
    );
    let _ = writeln!(
        out,
        " {} {} {} 0 0 {} {} {} {} 0 0 0 {} 0 {} {} 0 0 0 {} {} {} {} {} {} {} 0",
        layout.start_code,
        layout.end_code,
        layout.start_stack,
        task.pending_signals().0 & 0x7fff_ffff,
        task.signal_mask().0 & 0x7fff_ffff,
        ignored.0 & 0x7fff_ffff,
        caught.0 & 0x7fff_ffff,
        17,
        scheduling.priority,
        scheduling.policy,
        layout.start_data,
        layout.end_data,
        layout.start_brk,
        layout.arg_start,
        layout.arg_end,
        layout.env_start,
        layout.env_end,
    );
    out
}

/// `/proc/PID/sched`: what is known of it here.
pub(crate) fn sched(subject: &Subject, task: &Task) -> String {
    let (utime, stime) = task.cpu_times();
    let runtime_ns = utime.saturating_add(stime);
    let scheduling = task.scheduling();
    let comm = String::from_utf8_lossy(&task.comm()).into_owned();
    let mut out = format!(
        "{comm} ({}, #threads: {})\n{}\n",
        subject.show(task.tid()),
        task.group().nr_threads().max(1),
        "-".repeat(67)
    );
    let rows = [
        ("se.sum_exec_runtime", format!("{}.{:06}", runtime_ns / 1_000_000, runtime_ns % 1_000_000)),
        ("nr_switches", "0".to_owned()),
        ("nr_voluntary_switches", "0".to_owned()),
        ("nr_involuntary_switches", "0".to_owned()),
        ("policy", scheduling.policy.to_string()),
        ("prio", (120 + scheduling.nice).to_string()),
    ];
    for (name, value) in rows {
        let _ = writeln!(out, "{name:<45}:{value:>21}");
    }
    out
}

/// `/proc/PID/io`. What reaches a disk is the host's business.
pub(crate) fn io(used: sentry_kernel::IoUse) -> String {
    format!(
        "rchar: {}\nwchar: {}\nsyscr: {}\nsyscw: {}\nread_bytes: 0\nwrite_bytes: 0\ncancelled_write_bytes: 0\n",
        used.read_bytes, used.written_bytes, used.reads, used.writes
    )
}

pub(crate) fn statm(task: &Task) -> String {
    let m = memory(task);
    format!(
        "{} {} {} {} 0 {} 0\n",
        m.total / PAGE_SIZE,
        m.resident.total() / PAGE_SIZE,
        (m.resident.file + m.resident.shmem) / PAGE_SIZE,
        m.exec / PAGE_SIZE,
        (m.data + m.stack) / PAGE_SIZE,
    )
}

fn set_line(out: &mut String, name: &str, set: SigSet) {
    let _ = writeln!(out, "{name}:\t{:016x}", set.0);
}

/// A task's numbers from the namespace that is shown down to its own.
fn numbers(subject: &Subject, task: &Task, number: i32) -> String {
    let all = task.group().pid_ns().locals(number);
    let shown = usize::try_from(subject.ns().level()).unwrap_or(0);
    let mut text = String::new();
    for number in all.iter().skip(shown) {
        let _ = write!(text, "\t{number}");
    }
    text
}

pub(crate) fn status(subject: &Subject, task: &Task, caller: &dyn Caller) -> String {
    let caller_tid = caller.tid();
    let user_ns = &caller.creds().user_ns;
    let group = task.group();
    let creds = task.creds();
    let mut out = String::new();
    let comm = String::from_utf8_lossy(&task.comm()).replace('\\', "\\\\").replace('\n', "\\n");
    let mut groups = String::new();
    for group in creds.groups.iter() {
        let _ = write!(groups, "{} ", user_ns.show_gid(*group));
    }
    let _ = write!(
        out,
        "Name:\t{comm}\nUmask:\t{:04o}\nState:\t{}\nTgid:\t{}\nNgid:\t0\nPid:\t{}\nPPid:\t{}\nTracerPid:\t{}\n\
         Uid:\t{}\t{}\t{}\t{}\nGid:\t{}\t{}\t{}\t{}\nFDSize:\t{}\nGroups:\t{groups}\nNStgid:{}\nNSpid:{}\nNSpgid:{}\nNSsid:{}\n",
        task.fs().umask(),
        state_word(state_letter(task, caller_tid)),
        subject.show(group.pid()),
        subject.show(task.tid()),
        subject.show(group.ppid()),
        subject.show(task.tracer_tid()),
        user_ns.show_uid(creds.uid),
        user_ns.show_uid(creds.euid),
        user_ns.show_uid(creds.suid),
        user_ns.show_uid(creds.fsuid),
        user_ns.show_gid(creds.gid),
        user_ns.show_gid(creds.egid),
        user_ns.show_gid(creds.sgid),
        user_ns.show_gid(creds.fsgid),
        task.fds().capacity(),
        numbers(subject, task, group.pid()),
        numbers(subject, task, task.tid()),
        numbers(subject, task, group.pgid()),
        numbers(subject, task, group.sid()),
    );
    if !Subject::is_zombie(task) {
        let m = memory(task);
        let kib = |bytes: u64| bytes / 1024;
        let _ = write!(
            out,
            "VmPeak:\t{:>8} kB\nVmSize:\t{:>8} kB\nVmLck:\t{:>8} kB\nVmPin:\t       0 kB\nVmHWM:\t{:>8} kB\nVmRSS:\t{:>8} kB\n\
             RssAnon:\t{:>8} kB\nRssFile:\t{:>8} kB\nRssShmem:\t{:>8} kB\nVmData:\t{:>8} kB\nVmStk:\t{:>8} kB\n\
             VmExe:\t{:>8} kB\nVmLib:\t{:>8} kB\nVmPTE:\t       0 kB\nVmSwap:\t       0 kB\n",
            kib(m.peak),
            kib(m.total),
            kib(m.locked),
            kib(m.high_water),
            kib(m.resident.total()),
            kib(m.resident.anon),
            kib(m.resident.file),
            kib(m.resident.shmem),
            kib(m.data),
            kib(m.stack),
            kib(m.exec),
            kib(m.library),
        );
    }
    let _ = writeln!(out, "Threads:\t{}", group.nr_threads().max(1));
    let _ = writeln!(out, "SigQ:\t0/{}", task.rlimit(libc::RLIMIT_SIGPENDING));
    let (ignored, caught) = group.actions().sets();
    set_line(&mut out, "SigPnd", task.pending_signals());
    set_line(&mut out, "ShdPnd", group.pending_signals());
    set_line(&mut out, "SigBlk", task.signal_mask());
    set_line(&mut out, "SigIgn", ignored);
    set_line(&mut out, "SigCgt", caught);
    for (name, set) in [
        ("CapInh", creds.inheritable),
        ("CapPrm", creds.permitted),
        ("CapEff", creds.effective),
        ("CapBnd", creds.bounding),
        ("CapAmb", creds.ambient),
    ] {
        let _ = writeln!(out, "{name}:\t{:016x}", set.0);
    }
    let [mask, _] = task.scheduling().affinity;
    let list = cpu_list(mask);
    let _ = write!(
        out,
        "NoNewPrivs:\t{}\nSeccomp:\t{}\nSeccomp_filters:\t{}\nSpeculation_Store_Bypass:\tvulnerable\n\
         Cpus_allowed:\t{mask:x}\nCpus_allowed_list:\t{list}\nMems_allowed:\t1\nMems_allowed_list:\t0\n\
         voluntary_ctxt_switches:\t0\nnonvoluntary_ctxt_switches:\t0\n",
        u8::from(creds.no_new_privs),
        task.seccomp_mode(),
        task.seccomp_filters(),
    );
    out
}

/// CPUs by bit as ranges, such as `0-1,3`.
fn cpu_list(mask: u64) -> String {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for cpu in (0..64).filter(|cpu| mask & 1 << cpu != 0) {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == cpu => *last = cpu,
            _ => ranges.push((cpu, cpu)),
        }
    }
    let show = |(first, last): &(u32, u32)| {
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    };
    ranges.iter().map(show).collect::<Vec<_>>().join(",")
}

const LIMITS: [(&str, &str); 16] = [
    ("Max cpu time", "seconds"),
    ("Max file size", "bytes"),
    ("Max data size", "bytes"),
    ("Max stack size", "bytes"),
    ("Max core file size", "bytes"),
    ("Max resident set", "bytes"),
    ("Max processes", "processes"),
    ("Max open files", "files"),
    ("Max locked memory", "bytes"),
    ("Max address space", "bytes"),
    ("Max file locks", "locks"),
    ("Max pending signals", "signals"),
    ("Max msgqueue size", "bytes"),
    ("Max nice priority", ""),
    ("Max realtime priority", ""),
    ("Max realtime timeout", "us"),
];

pub(crate) fn limits(group: &ThreadGroup) -> String {
    let show = |value: u64| if value == RLIM_INFINITY { "unlimited".to_owned() } else { value.to_string() };
    let limits = group.limits();
    let mut out = format!("{:<25} {:<20} {:<20} {:<10}\n", "Limit", "Soft Limit", "Hard Limit", "Units");
    for (resource, (name, unit)) in (0..).zip(LIMITS) {
        if let Some(limit) = limits.get(resource) {
            let _ = writeln!(out, "{name:<25} {:<20} {:<20} {unit:<10}", show(limit.cur), show(limit.max));
        }
    }
    out
}

pub(crate) fn map_name(name: &MapName, root: &Location) -> Vec<u8> {
    match name {
        MapName::None => Vec::new(),
        MapName::Heap => b"[heap]".to_vec(),
        MapName::Stack => b"[stack]".to_vec(),
        MapName::Vdso => b"[vdso]".to_vec(),
        MapName::File(file) => match file.as_any().downcast_ref::<FileDescription>() {
            Some(file) => match (file.location(), file.ops().link_text()) {
                (Some(location), _) => location.display_path(root),
                (None, text) => text.unwrap_or_default().into_bytes(),
            },
            None => file.path().unwrap_or_default(),
        },
        MapName::Text(text) => text.clone(),
    }
}
