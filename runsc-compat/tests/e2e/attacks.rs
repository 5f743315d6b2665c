//! Attacks from inside that need a sandbox of their own, seen from outside. `docs/attacks.md` lists every scenario with
//! the tests that carry it out; names here begin with the scenario's number.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::json;
use xtask::bundle::{Bundle, write_config};
use xtask::place;
use xtask::programs::INSIDE;
use xtask::trial::{Invocation, Running, Trial, kill};

use crate::common::{busybox, debian, parts};
use crate::lifecycle::script_in;

/// `casemate run` of a bundle with resource limits.
fn limited<'t>(trial: &'t Trial, bundle: &Bundle, resources: serde_json::Value) -> Result<Invocation<'t>> {
    let dir = trial.path().join("bundle/limited");
    let mut config = bundle.config();
    config["linux"]["resources"] = resources;
    config["linux"]["cgroupsPath"] = json!(format!("/{}", trial.id()));
    write_config(&dir, &config)?;
    Ok(trial.casemate(["run".into(), "--bundle".into(), dir.into_os_string(), trial.id().into()]))
}

/// Another sandbox that waits for a word and repeats it.
fn peer(trial: &Trial) -> Result<Running> {
    let bundle = Bundle::new(busybox()?, ["sh", "-c", "echo ready; read word; echo $word"]);
    let mut peer = trial.run_as(&bundle, &format!("{}-peer", trial.id()))?.piped_stdin().start()?;
    peer.until_says("ready")?;
    Ok(peer)
}

fn lives(mut peer: Running) -> Result<()> {
    use std::io::Write;
    peer.stdin.take().context("a pipe")?.write_all(b"alive\n")?;
    peer.wait()?.expect(0)?.expect_out("ready\nalive\n")?;
    Ok(())
}

/// Kibibytes of memory that a process has resident.
pub(crate) fn resident_kib(pid: i32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

#[test]
fn t01_a_fork_bomb_meets_the_limit_of_processes() -> Result<()> {
    let trial = Trial::new("t01-forks")?;
    let script = "(f() { f | f & }; f) 2>/dev/null & exec sleep 1000";
    let bundle = Bundle::bash(debian()?, script);
    let mut running = limited(&trial, &bundle, json!({ "pids": { "limit": 60 } }))?.start()?;
    let (mut most, end) = (0, Instant::now() + Duration::from_mins(1));
    // It takes a while until the bomb has gone off; from then on, it must not get worse.
    let mut looks = 0;
    while looks < 30 {
        ensure!(Instant::now() < end, "the bomb does not go off: {most} host processes");
        std::thread::sleep(Duration::from_millis(50));
        let Ok(parts) = parts(&mut running) else { continue };
        most = most.max(parts.stubs.len());
        looks += usize::from(most > 20);
    }
    ensure!((20..100).contains(&most), "{most} host processes for a limit of 60");
    // The bombed sandbox obeys, and others start.
    let quick = Duration::from_secs(20);
    trial.casemate(["state", trial.id()]).limit(quick).run()?.expect(0)?;
    lives(peer(&trial)?)?;
    trial.casemate(["kill", trial.id(), "KILL"]).limit(quick).run()?.expect(0)?;
    running.wait()?.expect(137)?;
    trial.finish()
}

#[test]
fn t01_a_thread_bomb_meets_the_limit_of_processes() -> Result<()> {
    let trial = Trial::new("t01-threads")?;
    let program = "import os, threading, time\nn = 1\ntry:\n  while True:\n    threading.Thread(target=time.sleep, args=(1000,)).start()\n    n += 1\n\
                   except RuntimeError as error: print(n, error, flush=True)\nos._exit(5)";
    let bundle = Bundle::new(debian()?, ["python3", "-c", program]);
    let out = limited(&trial, &bundle, json!({ "pids": { "limit": 60 } }))?.run()?.expect(5)?;
    out.expect_out("60 can't start new thread\n")?;
    trial.finish()
}

#[test]
fn t02_memory_bombs_are_killed() -> Result<()> {
    let bombs = [
        ("private memory", "x = []\nwhile True: x.append(b'x' * (1 << 22))"),
        (
            "shared memory",
            "import mmap\nx = []\nwhile True: x.append(mmap.mmap(-1, 1 << 22)); x[-1].write(b'x' * (1 << 22))",
        ),
        ("a memfd", "import os\nf = os.memfd_create('x')\nwhile True: os.write(f, b'x' * (1 << 22))"),
        ("a file system in memory", "f = open('/big/f', 'wb', 0)\nwhile True: f.write(b'x' * (1 << 22))"),
        (
            "page tables",
            "import mmap\nm = mmap.mmap(-1, 1 << 42, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)\nfor i in range(0, 1 << 42, 1 << 21): m[i]",
        ),
    ];
    let trial = Trial::new("t02-memory")?;
    let peer = peer(&trial)?;
    for (what, program) in bombs {
        let bundle = Bundle::new(debian()?, ["python3", "-c", program]).tmpfs("/big");
        let limit = json!({ "memory": { "limit": 128 << 20, "swap": 128 << 20 } });
        let out = limited(&trial, &bundle, limit)?.run()?;
        ensure!(out.code() == 137, "a bomb of {what}: {out}");
    }
    lives(peer)?;
    trial.finish()
}

#[test]
fn t02_running_out_of_memory_is_one_event() -> Result<()> {
    let trial = Trial::new("t02-event")?;
    let bundle =
        Bundle::new(busybox()?, ["sh", "-c", "read x; exec dd if=/dev/zero of=/dev/null bs=200M count=1"]);
    let mut config = bundle.config();
    config["linux"]["resources"] = json!({ "memory": { "limit": 64 << 20, "swap": 64 << 20 } });
    config["linux"]["cgroupsPath"] = json!(format!("/{}", trial.id()));
    write_config(&trial.path().join("bundle"), &config)?;
    let out = script_in(
        &trial,
        "mkfifo $dir/in; rt create --bundle $bundle --pid-file $dir/pid $id <>$dir/in >/dev/null 2>&1 || exit 1
         rt start $id; rt events --interval 50ms $id >$dir/events & watcher=$!
         sleep 0.5; echo >$dir/in; for i in $(seq 100); do grep -q oom $dir/events && break; sleep 0.1; done
         gone $(cat $dir/pid); wait $watcher 2>/dev/null; grep -c '\"type\":\"oom\"' $dir/events
         rt delete -f $id",
    )?
    .expect(0)?;
    out.expect_out("1\n")?;
    trial.finish()
}

/// The host kills the reader whose memory the Sentry was filling. Where the machine is busy, it may find no page for
/// the copy all the same and take the sandbox too; so not every round has to end well.
#[test]
fn t02_a_reader_that_runs_out_of_memory_ends_alone() -> Result<()> {
    const ROUNDS: usize = 5;
    let trial = Trial::new("t02-reader")?;
    let script = "dd if=/dev/zero of=/dev/null bs=200M count=1; echo $? and on";
    let bundle = Bundle::new(busybox()?, ["sh", "-c", script]);
    let limit = json!({ "memory": { "limit": 64 << 20, "swap": 64 << 20 } });
    let mut alone = 0;
    for _ in 0..ROUNDS {
        let out = limited(&trial, &bundle, limit.clone())?.run()?;
        if out.code() == 0 {
            out.expect_out("137 and on\n")?;
            alone += 1;
        } else {
            ensure!(out.code() == 137, "{out}");
        }
    }
    ensure!(alone * 2 > ROUNDS, "only {alone} of {ROUNDS} sandboxes outlived their reader");
    trial.finish()
}

/// Mappings, queued signals, timers and IPC objects without end.
#[test]
fn t03_bombs_of_kernel_objects_are_refused() -> Result<()> {
    let trial = Trial::new("t03-objects")?;
    let program = format!("{INSIDE}/syscall-tests");
    let mut running =
        trial.run(&Bundle::new(busybox()?, [program.as_str(), "helper", "object-bombs"]))?.start()?;
    running.until_says("end\n")?;
    let sentry = parts(&mut running)?.sentry.pid;
    let (resident, said) = (resident_kib(sentry)?, running.so_far());
    lives(peer(&trial)?)?;
    kill(sentry, Signal::KILL)?;
    running.wait()?;
    let expected = "mappings ENOMEM\nsignals EAGAIN\ntimers EAGAIN\nshared segments ENOSPC\nsemaphores ENOSPC\nqueues ENOSPC\nend\n";
    ensure!(said == expected, "{said}");
    ensure!(resident < 200 * 1024, "the Sentry has {resident} KiB resident");
    trial.finish()
}

/// Threads that do not store their state when they are to, and threads of which nothing is heard while a word is to be
/// changed.
#[test]
fn t41_deaf_threads_keep_no_worker() -> Result<()> {
    let trial = Trial::new("t41-deaf")?;
    let program = format!("{INSIDE}/syscall-tests");
    for helper in ["deaf-threads", "deaf-siblings"] {
        let bundle = Bundle::new(busybox()?, [program.as_str(), "helper", helper]);
        trial.run(&bundle)?.run()?.expect(0)?.expect_out("served\n")?;
    }
    trial.finish()
}

#[test]
fn t04_disks_are_filled_up_to_the_limit() -> Result<()> {
    let trial = Trial::new("t04-disk")?;
    let store = trial.path().join("store");
    fs::create_dir(&store)?;
    let script = "
        cd /tmp; ulimit -c unlimited
        truncate -s 1T sparse && echo end | dd of=sparse bs=1 seek=1000000000000 conv=notrunc status=none && stat -c %s sparse
        bash -c 'kill -SEGV $$'; ls | grep -c core
        for n in $(seq 40); do head -c 4M /dev/zero >f$n 2>/dev/null || break; done; [ $n -lt 20 ] && echo full
        echo x >y 2>/dev/null; [ -s y ] || echo still full; rm f*; echo x >y && echo room
    ";
    let bundle = trial.path().join("bundle");
    Bundle::bash(debian()?, script).write(&bundle)?;
    let place = format!("{},size=48m", store.display());
    let run = ["run".into(), "--bundle".into(), bundle.into_os_string(), trial.id().into()];
    let words = ["--filestore".into(), place.into()].into_iter().chain(run);
    let out = trial.casemate(words).cwd(&store).run()?.expect(0)?;
    ensure!(out.out() == "1099511627776\n0\nfull\nstill full\nroom\n", "{out}");
    ensure!(fs::read_dir(&store)?.next().is_none(), "something is left in {}", store.display());
    trial.finish()
}

/// Writes past the rights of a read-only mapping (as Dirty COW did) and to the root's files in every other way.
const T31: &str = r#"
import ctypes, os, threading
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
path = "/etc/debian_version"
before = open(path).read()
fd = os.open(path, os.O_RDONLY)
for flags in (2, 1):
    at = libc.mmap(None, 4096, 1, flags, fd, 0)
    stop = False
    def advise():
        while not stop: libc.madvise(ctypes.c_void_p(at), ctypes.c_size_t(4096), 4)
    thread = threading.Thread(target=advise)
    thread.start()
    mem = os.open("/proc/self/mem", os.O_RDWR)
    for _ in range(2000):
        try: os.pwrite(mem, b"overwritten", at)
        except OSError: pass
    stop = True
    thread.join()
    if libc.mprotect(ctypes.c_void_p(at), ctypes.c_size_t(4096), 3) == 0 and flags == 1: print("shared mapping became writable")
for call in (lambda: os.open(path, os.O_RDWR), lambda: os.open(f"/proc/self/fd/{fd}", os.O_WRONLY), lambda: os.truncate(path, 0),
             lambda: os.rename(path, path + "x"), lambda: os.setxattr(path, "user.a", b"b"), lambda: os.chmod(path, 0o777),
             lambda: os.write(fd, b"x"), lambda: os.copy_file_range(fd, fd, 1, 0, 100), lambda: os.utime(path)):
    try: print("done:", call())
    except OSError: pass
print(open(path).read() == before)
"#;

#[test]
fn t31_a_read_only_root_stays_as_it_is() -> Result<()> {
    let trial = Trial::new("t31-root")?;
    let victim = debian()?.join("etc/debian_version");
    let look = |path: &Path| -> Result<_> {
        let meta = fs::metadata(path)?;
        Ok((fs::read(path)?, meta.modified()?, meta.permissions()))
    };
    let before = look(&victim)?;
    let bundle = Bundle::new(debian()?, ["python3", "-c", T31]).readonly().all_capabilities();
    trial.run(&bundle)?.run()?.expect(0)?.expect_out("True\n")?;
    ensure!(look(&victim)? == before, "{} has changed", victim.display());
    trial.finish()
}

/// Calls that lead deep into a host's kernel, and what each says here.
const T39: &str = r#"
import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
buf = ctypes.create_string_buffer(4096)
for name, nr, args in [
    ("io_uring_setup", 425, (8, buf)), ("io_uring_enter", 426, (3, 1, 1, 0, 0, 0)), ("io_uring_register", 427, (3, 0, 0, 0)),
    ("userfaultfd", 323, (0,)), ("bpf", 321, (0, buf, 72)), ("perf_event_open", 298, (buf, 0, -1, -1, 0)),
    ("add_key", 248, (b"user", b"x", b"y", 1, -3)), ("request_key", 249, (b"user", b"x", 0, -3)), ("keyctl", 250, (0, -3, 0)),
    ("kexec_load", 246, (0, 0, buf, 0)), ("kexec_file_load", 320, (0, 0, 1, b"x", 0)), ("init_module", 175, (buf, 4096, b"")),
    ("finit_module", 313, (0, b"", 0)), ("delete_module", 176, (b"x", 0)), ("iopl", 172, (3,)), ("ioperm", 173, (0, 8, 1)),
    ("reboot", 169, (0xfee1dead, 672274793, 0x1234567, 0)), ("settimeofday", 164, (buf, 0)), ("modify_ldt", 154, (1, buf, 16)),
    ("open_by_handle_at", 304, (-100, buf, 0)), ("swapon", 167, (b"/x", 0)),
]:
    result = libc.syscall(nr, *args)
    print(name, errno.errorcode[ctypes.get_errno()] if result < 0 else result)
"#;

#[test]
fn t39_calls_into_the_depths_of_a_kernel_are_refused() -> Result<()> {
    let trial = Trial::new("t39-calls")?;
    let out = trial.run(&Bundle::new(debian()?, ["python3", "-c", T39]))?.run()?.expect(0)?;
    let wrong: Vec<String> = out
        .out()
        .lines()
        .filter(|line| {
            let refused = ["userfaultfd", "reboot", "settimeofday"].iter().any(|name| line.starts_with(name));
            !line.ends_with(if refused { " EPERM" } else { " ENOSYS" })
        })
        .map(str::to_owned)
        .collect();
    ensure!(out.out().lines().count() == 21 && wrong.is_empty(), "{wrong:?} of {out}");
    // The end of a job says what it asked for in vain.
    let said = trial.casemate(["do", "--", "python3", "-c", T39]).run()?.expect(0)?.err();
    ensure!(said.matches("unsupported: io_uring_setup (called by python3, 1 time)").count() == 1, "{said}");
    trial.finish()
}

/// Every test that the list of attacks names is there.
#[test]
fn the_list_of_attacks_names_tests() -> Result<()> {
    let list = fs::read_to_string(place::workspace().join("docs/attacks.md"))?;
    let mut sources = String::new();
    for dir in
        ["runsc-compat/tests/e2e", "runsc-compat/tests", "syscall-tests/src/areas", "fuzz/fuzz_targets"]
    {
        for entry in fs::read_dir(place::workspace().join(dir))?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if let Some(stem) = name.strip_suffix(".rs") {
                for line in fs::read_to_string(entry.path())?.lines() {
                    let name = line.trim().trim_end_matches(',');
                    let name =
                        name.strip_prefix("fn ").map_or(name, |rest| rest.split('(').next().unwrap_or(""));
                    sources.push_str(&format!("{stem}::{name}\n"));
                }
            }
        }
    }
    let named: Vec<&str> = list.split('`').skip(1).step_by(2).filter(|word| word.contains("::")).collect();
    ensure!(named.len() > 60, "only {} tests are named", named.len());
    let missing: Vec<&&str> = named.iter().filter(|name| !sources.contains(&format!("{name}\n"))).collect();
    ensure!(missing.is_empty(), "named, but not there: {missing:?}");
    Ok(())
}
