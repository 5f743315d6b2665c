//! proc(5).

use crate::harness::Outcome;
use crate::sys::{self, slurp};
use libc::*;

cases![
    stat_has_fifty_two_fields,
    status_names_the_process,
    cmdline_and_comm,
    maps_show_mappings,
    fd_lists_open_descriptors,
    exe_runs_again,
    limits_follow_setrlimit,
    task_lists_threads,
    missing_processes_are_enoent,
    meminfo_and_cpuinfo_parse,
    mounts_have_a_root,
    uptime_grows,
    kernel_switches,
    foreign_environ_is_private,
    loadavg_and_stat_parse,
    io_counts_bytes_and_calls,
    sysinfo_and_loadavg_agree,
];

fn stat_has_fifty_two_fields() -> Outcome {
    let text = slurp("/proc/self/stat")?;
    let rest = text.rsplit_once(") ").ok_or("no command in parentheses")?.1;
    same!(rest.split_whitespace().count(), 50);
    want!(text.starts_with(&format!("{} (", unsafe { getpid() })), "it starts with {}", &text[..10]);
    let parent = unsafe { getppid() }.to_string();
    same!(rest.split(' ').nth(1), Some(parent.as_str()));
    Ok(())
}

fn field(text: &str, name: &str) -> Result<String, String> {
    let line = text.lines().find(|l| l.starts_with(name)).ok_or(format!("no {name}"))?;
    Ok(line[name.len()..].trim().to_string())
}

fn status_names_the_process() -> Outcome {
    let text = slurp("/proc/self/status")?;
    same!(field(&text, "Pid:")?, unsafe { getpid() }.to_string());
    same!(field(&text, "PPid:")?, unsafe { getppid() }.to_string());
    same!(field(&text, "Uid:")?, "0\t0\t0\t0");
    same!(field(&text, "Threads:")?, "1");
    want!(field(&text, "VmSize:")?.ends_with("kB"), "no size");
    sys::block(&[SIGUSR1])?;
    same!(field(&slurp("/proc/self/status")?, "SigBlk:")?, format!("{:016x}", 1 << (SIGUSR1 - 1)));
    Ok(())
}

fn cmdline_and_comm() -> Outcome {
    let text = slurp("/proc/self/cmdline")?;
    want!(text.ends_with('\0') && text.contains("run"), "the command line is {text:?}");
    ok!(prctl(PR_SET_NAME, c"renamed-by-case-x".as_ptr()));
    same!(slurp("/proc/self/comm")?, "renamed-by-case\n");
    std::fs::write("/proc/self/comm", "other").map_err(|e| e.to_string())?;
    same!(slurp("/proc/self/comm")?, "other\n");
    Ok(())
}

fn maps_show_mappings() -> Outcome {
    sys::put("mapped", &[0u8; 8192])?;
    let f = sys::open("mapped", O_RDONLY)?;
    let map = sys::Map::new(8192, PROT_READ, MAP_PRIVATE, std::os::fd::AsRawFd::as_raw_fd(&f), 0)?;
    let text = slurp("/proc/self/maps")?;
    let start = format!("{:x}-{:x} r--p 00000000", map.at(0) as usize, map.at(0) as usize + 8192);
    let line = text.lines().find(|l| l.starts_with(&start)).ok_or(format!("no line {start}"))?;
    want!(line.ends_with("/mapped"), "the line is {line}");
    want!(text.contains("[stack]") && text.contains("[heap]"), "no stack or heap");
    Ok(())
}

fn fd_lists_open_descriptors() -> Outcome {
    ok!(dup2(0, 77));
    let names: Vec<String> = std::fs::read_dir("/proc/self/fd")
        .map_err(|e| e.to_string())?
        .filter_map(|e| Some(e.ok()?.file_name().to_string_lossy().into_owned()))
        .collect();
    for n in ["0", "1", "2", "77"] {
        want!(names.iter().any(|x| x == n), "{n} is not among {names:?}");
    }
    let info = slurp("/proc/self/fdinfo/77")?;
    want!(info.contains("pos:\t0") && info.contains("flags:"), "fdinfo is {info}");
    Ok(())
}

fn exe_runs_again() -> Outcome {
    let (out, status) =
        sys::exec_capture(c"/proc/self/exe", &["x", "helper", "args", "again"], &[], || Ok(()))?;
    same!((out.trim(), status), ("again", 0));
    Ok(())
}

fn limits_follow_setrlimit() -> Outcome {
    let l = rlimit { rlim_cur: 123, rlim_max: 456 };
    ok!(setrlimit(RLIMIT_NOFILE, &raw const l));
    let line = field(&slurp("/proc/self/limits")?, "Max open files")?;
    same!(line.split_whitespace().collect::<Vec<_>>(), vec!["123", "456", "files"]);
    Ok(())
}

fn task_lists_threads() -> Outcome {
    let (tx, rx) = std::sync::mpsc::channel::<()>();
    let t = std::thread::spawn(move || rx.recv());
    let count = std::fs::read_dir("/proc/self/task").map_err(|e| e.to_string())?.count();
    same!(count, 2);
    drop(tx);
    let _ = t.join();
    Ok(())
}

fn missing_processes_are_enoent() -> Outcome {
    fails!(ENOENT, open(c"/proc/4000000".as_ptr(), O_RDONLY));
    fails!(ENOENT, open(c"/proc/self/nothing".as_ptr(), O_RDONLY));
    let kid = sys::fork(|| Ok(()))?;
    let pid = kid.pid;
    kid.ok()?;
    fails!(ENOENT, open(sys::c(&format!("/proc/{pid}")).as_ptr(), O_RDONLY));
    Ok(())
}

fn meminfo_and_cpuinfo_parse() -> Outcome {
    let mem = slurp("/proc/meminfo")?;
    let total: u64 = field(&mem, "MemTotal:")?.trim_end_matches(" kB").parse().map_err(|_| "MemTotal")?;
    let free: u64 = field(&mem, "MemFree:")?.trim_end_matches(" kB").parse().map_err(|_| "MemFree")?;
    want!(total > 0 && free <= total, "{free} of {total} kB are free");
    let cpus = slurp("/proc/cpuinfo")?.lines().filter(|l| l.starts_with("processor")).count();
    same!(cpus as i64, unsafe { sysconf(_SC_NPROCESSORS_ONLN) });
    Ok(())
}

fn mounts_have_a_root() -> Outcome {
    let mounts = slurp("/proc/self/mounts")?;
    want!(mounts.lines().any(|l| l.split(' ').nth(1) == Some("/")), "no mount at /");
    for line in slurp("/proc/self/mountinfo")?.lines() {
        want!(line.contains(" - ") && line.split(' ').count() >= 10, "the line {line}");
    }
    Ok(())
}

fn uptime_grows() -> Outcome {
    let read = || -> Result<f64, String> {
        slurp("/proc/uptime")?.split(' ').next().and_then(|s| s.parse().ok()).ok_or("no number".into())
    };
    let a = read()?;
    sys::sleep_ms(50);
    want!(read()? > a, "the uptime stands still");
    Ok(())
}

fn kernel_switches() -> Outcome {
    let pid_max: i64 = slurp("/proc/sys/kernel/pid_max")?.trim().parse().map_err(|_| "pid_max")?;
    want!(pid_max >= 4096, "pid_max is {pid_max}");
    same!(slurp("/proc/sys/kernel/ostype")?, "Linux\n");
    let mut names: utsname = unsafe { std::mem::zeroed() };
    ok!(uname(&raw mut names));
    let release: String = names.release.iter().take_while(|c| **c != 0).map(|c| *c as u8 as char).collect();
    let shown = slurp("/proc/sys/kernel/osrelease")?;
    same!(shown.trim(), release);
    want!(slurp("/proc/sys/fs/pipe-max-size")?.trim().parse::<u64>().is_ok(), "pipe-max-size");
    same!(slurp("/proc/sys/kernel/random/uuid")?.len(), 37);
    Ok(())
}

fn foreign_environ_is_private() -> Outcome {
    let parent = unsafe { getpid() };
    sys::fork(|| {
        sys::drop_root()?;
        fails!(EACCES, open(sys::c(&format!("/proc/{parent}/environ")).as_ptr(), O_RDONLY));
        fails!(EACCES, open(sys::c(&format!("/proc/{parent}/fd")).as_ptr(), O_RDONLY));
        slurp(&format!("/proc/{parent}/status"))?;
        Ok(())
    })?
    .ok()
}

fn loadavg_and_stat_parse() -> Outcome {
    same!(slurp("/proc/loadavg")?.split_whitespace().count(), 5);
    let stat = slurp("/proc/stat")?;
    want!(stat.starts_with("cpu  "), "it starts with {}", stat.lines().next().unwrap_or(""));
    want!(field(&stat, "btime")?.parse::<u64>().is_ok(), "btime");
    Ok(())
}

fn io_counts_bytes_and_calls() -> Outcome {
    let count = |name: &str| -> Result<u64, String> {
        field(&slurp("/proc/self/io")?, name)?.parse().map_err(|_| format!("{name} is no number"))
    };
    let fd = sys::create("f")?;
    let (written, writes) = (count("wchar:")?, count("syscw:")?);
    sys::fd_write(&fd, &[7; 5000])?;
    sys::fd_write(&fd, &[7; 3000])?;
    same!((count("wchar:")? - written, count("syscw:")? - writes), (8000, 2));
    let (read, reads) = (count("rchar:")?, count("syscr:")?);
    let rd = sys::open("f", O_RDONLY)?;
    sys::fd_read(&rd, 6000)?;
    let (after, calls) = (count("rchar:")? - read, count("syscr:")? - reads);
    want!((6000..20_000).contains(&after) && (1..40).contains(&calls), "{after} bytes in {calls} calls");
    // A thread's bytes stay the process' after its end.
    let thread = std::thread::spawn(move || sys::fd_write(&fd, &[7; 100]));
    thread.join().map_err(|_| "the thread panicked")??;
    want!(count("wchar:")? - written >= 8100, "the thread's bytes are gone");
    Ok(())
}

fn sysinfo_and_loadavg_agree() -> Outcome {
    let mut info: libc::sysinfo = unsafe { std::mem::zeroed() };
    ok!(sysinfo(&raw mut info));
    let text = slurp("/proc/loadavg")?;
    let shown: f64 = text.split(' ').next().and_then(|word| word.parse().ok()).ok_or("no number")?;
    let told = info.loads[0] as f64 / 65536.0;
    want!((shown - told).abs() <= 0.5, "sysinfo says {told}, /proc/loadavg {shown}");
    want!((0.0..10_000.0).contains(&shown), "a load of {shown}");
    Ok(())
}
