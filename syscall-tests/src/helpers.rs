//! What the program does when a case execs it: print a piece of its own state.

use std::io::Write;

/// Runs the helper that `args` names and gives the exit status.
pub fn run(args: &[String]) -> i32 {
    let rest: &[String] = args.get(1..).unwrap_or(&[]);
    match args.first().map(String::as_str) {
        Some("args") => println!("{}", rest.join("|")),
        Some("argv") => println!("{}", std::env::args().collect::<Vec<_>>().join("|")),
        Some("env") => {
            let all: Vec<String> = std::env::vars().map(|(k, v)| format!("{k}={v}")).collect();
            println!("{}", all.join("|"));
        }
        Some("exit") => return rest.first().and_then(|s| s.parse().ok()).unwrap_or(0),
        Some("fd-open") => {
            for arg in rest {
                let fd: i32 = arg.parse().unwrap_or(-1);
                let open = unsafe { libc::fcntl(fd, libc::F_GETFD) } >= 0;
                print!("{}", if open { "open " } else { "closed " });
            }
        }
        Some("fd-closed") => {
            let fd = rest.first().and_then(|arg| arg.parse().ok()).unwrap_or(-1);
            return i32::from(unsafe { libc::fcntl(fd, libc::F_GETFD) } >= 0);
        }
        Some("skip-input") => {
            let len = rest.first().and_then(|arg| arg.parse().ok()).unwrap_or(0);
            let mut bytes = vec![0_u8; len];
            let read = unsafe { libc::read(0, bytes.as_mut_ptr().cast(), len) };
            return i32::from(usize::try_from(read) != Ok(len));
        }
        Some("ids") => unsafe {
            let (mut r, mut e, mut s) = (0, 0, 0);
            libc::getresuid(&raw mut r, &raw mut e, &raw mut s);
            print!("{r} {e} {s} {}", libc::getauxval(libc::AT_SECURE));
        },
        Some("signals") => signals(rest),
        Some("actions") => {
            for arg in rest {
                let signal: i32 = arg.parse().unwrap_or(0);
                let mut action = [9_u64; 4];
                unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, 0, action.as_mut_ptr(), 8) };
                print!("{action:?}");
            }
        }
        Some("auxv") => unsafe {
            let random = libc::getauxval(libc::AT_RANDOM) as *const u8;
            let name = libc::getauxval(libc::AT_EXECFN) as *const libc::c_char;
            let name = std::ffi::CStr::from_ptr(name).to_string_lossy().into_owned();
            print!(
                "page={} random={} execfn={name} uid={} secure={} phdr={}",
                libc::getauxval(libc::AT_PAGESZ),
                !random.is_null(),
                libc::getauxval(libc::AT_UID),
                libc::getauxval(libc::AT_SECURE),
                libc::getauxval(libc::AT_PHDR) != 0,
            );
        },
        Some("comm") => {
            let mut name = [0u8; 16];
            unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
            let end = name.iter().position(|b| *b == 0).unwrap_or(16);
            print!("{}", String::from_utf8_lossy(&name[..end]));
        }
        Some("pid") => print!("{} {}", std::process::id(), crate::sys::gettid()),
        Some("exe") => print!("{}", std::fs::read_link("/proc/self/exe").unwrap_or_default().display()),
        Some("threads") => print!("{}", std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count)),
        Some("membarrier") => unsafe {
            let ret = libc::syscall(libc::SYS_membarrier, 8, 0, 0);
            print!(
                "{}",
                if ret == 0 { "ok".to_string() } else { crate::harness::errno_name(crate::harness::errno()) }
            );
        },
        Some("getppid") => unsafe {
            let ret = libc::syscall(libc::SYS_getppid);
            print!(
                "{}",
                if ret >= 0 { "ok".to_string() } else { crate::harness::errno_name(crate::harness::errno()) }
            );
        },
        Some("keepcaps") => print!("{}", unsafe { libc::prctl(libc::PR_GET_KEEPCAPS, 0, 0, 0, 0) }),
        Some("pdeathsig") => {
            let mut signo = -1;
            unsafe { libc::prctl(libc::PR_GET_PDEATHSIG, &raw mut signo, 0, 0, 0) };
            print!("{signo}");
        }
        Some("stack") => {
            let here = 0u8;
            print!("{:x}", &raw const here as usize);
        }
        Some("caps") => print!("{}", caps()),
        Some("warm") => {
            let times = rest.first().and_then(|s| s.parse().ok()).unwrap_or(0);
            let mut ends = [0; 2];
            unsafe { libc::pipe(ends.as_mut_ptr()) };
            for _ in 0..times {
                let mut byte = 7u8;
                unsafe { libc::write(ends[1], (&raw const byte).cast(), 1) };
                unsafe { libc::read(ends[0], (&raw mut byte).cast(), 1) };
                let mut about: libc::stat = unsafe { std::mem::zeroed() };
                unsafe { libc::stat(c"/etc/passwd".as_ptr(), &raw mut about) };
                unsafe { libc::fstat(ends[0], &raw mut about) };
                for path in ["/etc/passwd", "/bin/busybox"] {
                    let _ = std::fs::File::open(path).and_then(|f| f.metadata());
                    let _ = std::fs::metadata(path);
                }
                unsafe { libc::access(c"/bin/busybox".as_ptr(), libc::X_OK) };
                let _ = std::fs::read_link("/bin/sh");
                let _ = std::fs::metadata("/etc/no-such-file");
            }
        }
        Some("bombs") => bombs(),
        Some("object-bombs") => object_bombs(),
        Some("deaf-threads") => deaf_threads(forge_a_fork),
        Some("deaf-siblings") => deaf_threads(wake_by_a_silenced_sibling),
        Some("list") => {
            let found = std::fs::read_dir(rest.first().map_or(".", String::as_str));
            let sizes =
                found.map(|dir| dir.filter_map(|e| e.ok()?.metadata().ok()).map(|m| m.len()).sum::<u64>());
            print!("{}", sizes.unwrap_or(0));
        }
        Some("sleep") => std::thread::sleep(std::time::Duration::from_secs(60)),
        _ => {
            eprintln!("unknown helper {args:?}");
            return 2;
        }
    }
    let _ = std::io::stdout().flush();
    0
}

/// Tells the Sentry of a fork in the name of patched text, by the words of the thread's own channel, and never looks at
/// them again.
fn forge_a_fork() -> ! {
    unsafe {
        core::arch::asm!(
            "rdgsbase rdx",
            "mov dword ptr [rdx + 0x40], 31",
            "lea rax, [rdx + 0xc00]",
            "mov [rdx + 0x48], rax",
            "mov dword ptr [rdx + 0xd48], 57",
            "mov eax, 1",
            "xchg [rdx], eax",
            "2: jmp 2b",
            options(noreturn)
        )
    }
}

/// Changes a word by futex(2) for ever, while another thread takes back whatever threads besides these two tell the Sentry.
fn wake_by_a_silenced_sibling() -> ! {
    const SLOT: usize = 0x1_0000;
    fn channel() -> usize {
        let at: usize;
        unsafe { core::arch::asm!("rdgsbase {}", out(reg) at) };
        at
    }
    let main = channel();
    std::thread::spawn(move || {
        let spared = [main, channel()];
        let first = main - main % (8 * SLOT);
        let others: Vec<usize> = (0..8).map(|n| first + n * SLOT).filter(|at| !spared.contains(at)).collect();
        loop {
            for at in &others {
                unsafe { (*at as *mut u32).write_volatile(0) };
            }
        }
    });
    let words = [0u32; 2];
    loop {
        // Adds one to the second word.
        let operation = 1 << 28 | 1 << 12;
        let (wake, second) = (libc::FUTEX_WAKE_OP | libc::FUTEX_PRIVATE_FLAG, &raw const words[1]);
        unsafe { libc::syscall(libc::SYS_futex, words.as_ptr(), wake, 1, 1, second, operation) };
    }
}

/// Counts the forks that are served while processes deny the Sentry what it needs of them, until one of those is dead.
fn deaf_threads(deny: fn() -> !) {
    const DEAF: usize = 8;
    let Ok(map) = crate::sys::Map::shared(crate::sys::PAGE) else { return println!("no memory") };
    let begun = unsafe { &*map.at(0).cast::<std::sync::atomic::AtomicUsize>() };
    let deaf: Vec<i32> = (0..DEAF)
        .map(|_| match unsafe { libc::fork() } {
            0 => {
                begun.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                deny()
            }
            child => child,
        })
        .collect();
    let is_dead = |pid: &i32| unsafe { libc::waitpid(*pid, std::ptr::null_mut(), libc::WNOHANG) != 0 };
    let mut served = 0;
    while !deaf.iter().any(is_dead) && served < 50 {
        match unsafe { libc::fork() } {
            0 => unsafe { libc::_exit(0) },
            child => unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) },
        };
        served += usize::from(begun.load(std::sync::atomic::Ordering::SeqCst) == DEAF);
    }
    println!("{}", if served >= 8 { "served" } else { "kept" });
    for pid in deaf {
        unsafe { libc::kill(pid, libc::SIGKILL) };
    }
}

/// What exec made of the credentials: real, effective and saved ids, permitted, effective, inheritable and ambient
/// capabilities, `AT_SECURE`, dumpable.
fn caps() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let set = |name: &str| {
        let line = status.lines().find_map(|l| l.strip_prefix(name)).unwrap_or("").trim();
        u64::from_str_radix(line, 16).unwrap_or(u64::MAX)
    };
    unsafe {
        let (mut r, mut e, mut s) = (0, 0, 0);
        libc::getresuid(&raw mut r, &raw mut e, &raw mut s);
        format!(
            "uid={r},{e},{s} egid={} prm={:x} eff={:x} inh={:x} amb={:x} secure={} dumpable={}",
            libc::getegid(),
            set("CapPrm:"),
            set("CapEff:"),
            set("CapInh:"),
            set("CapAmb:"),
            libc::getauxval(libc::AT_SECURE),
            libc::prctl(libc::PR_GET_DUMPABLE),
        )
    }
}

/// For each signal: `d`efault, `i`gnored or `h`andled, then `b`locked and `p`ending.
fn signals(list: &[String]) {
    for arg in list {
        let sig: i32 = arg.parse().unwrap_or(0);
        unsafe {
            let mut act: libc::sigaction = std::mem::zeroed();
            libc::sigaction(sig, std::ptr::null(), &raw mut act);
            let kind = match act.sa_sigaction {
                libc::SIG_DFL => "d",
                libc::SIG_IGN => "i",
                _ => "h",
            };
            let mut set = std::mem::zeroed();
            libc::sigprocmask(libc::SIG_BLOCK, std::ptr::null(), &raw mut set);
            let blocked = libc::sigismember(&raw const set, sig) == 1;
            libc::sigpending(&raw mut set);
            let pending = libc::sigismember(&raw const set, sig) == 1;
            print!("{kind}{}{} ", if blocked { "b" } else { "" }, if pending { "p" } else { "" });
        }
    }
}

/// Takes objects of each kind until the kernel refuses, says with what errno, and gives them all back; then makes names
/// come and go. Ends with a wait, so that the kernel can be looked at.
fn bombs() {
    let refusal = |what: &str, take: &mut dyn FnMut() -> i64| {
        let mut taken = Vec::new();
        let errno = loop {
            match take() {
                -1 => break crate::harness::errno_name(crate::harness::errno()),
                fd => taken.push(fd as i32),
            }
            if taken.len() > 100_000 {
                break "none".to_string();
            }
        };
        for fd in taken {
            unsafe { libc::close(fd) };
        }
        println!("{what} {errno}");
    };
    let _ = std::fs::create_dir("bombs");
    unsafe {
        refusal("files", &mut || libc::open(c"/dev/null".as_ptr(), libc::O_RDONLY).into());
        refusal("pipes", &mut || {
            let mut ends = [0; 2];
            if libc::pipe(ends.as_mut_ptr()) != 0 {
                return -1;
            }
            libc::close(ends[1]);
            ends[0].into()
        });
        refusal("epolls", &mut || libc::epoll_create1(0).into());
        refusal("eventfds", &mut || libc::eventfd(0, 0).into());
        refusal("timers", &mut || libc::timerfd_create(libc::CLOCK_MONOTONIC, 0).into());
        refusal("inotifies", &mut || libc::inotify_init1(0).into());
        refusal("sockets", &mut || libc::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0).into());
        refusal("memfds", &mut || libc::memfd_create(c"bomb".as_ptr(), 0).into());
    }
    for n in 0..60_000_u32 {
        let path = format!("bombs/{n}");
        if n % 4 == 0 {
            drop(std::fs::File::create(&path));
            let _ = std::fs::remove_file(&path);
        } else {
            let _ = std::fs::metadata(&path);
        }
    }
    println!("churned");
    let _ = std::io::stdout().flush();
    std::thread::sleep(std::time::Duration::from_secs(60));
}

/// Takes what is no descriptor without end: mappings, queued signals, timers, IPC objects; says with what errno each is
/// refused. Ends with a wait, so that the kernel can be looked at.
fn object_bombs() {
    let refusal = |what: &str, take: &mut dyn FnMut(usize) -> i64| {
        let refused = (0..400_000).find(|n| take(*n) < 0);
        let errno = refused.map(|_| crate::harness::errno_name(crate::harness::errno()));
        println!("{what} {}", errno.as_deref().unwrap_or("none"));
    };
    const PAGES: usize = 200_000;
    unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let at = libc::mmap(std::ptr::null_mut(), PAGES * 4096, libc::PROT_NONE, flags, -1, 0).cast::<u8>();
        refusal("mappings", &mut |n| {
            let page = at.wrapping_add((2 * n + 1) % PAGES * 4096);
            libc::mprotect(page.cast(), 4096, libc::PROT_READ).into()
        });
        libc::munmap(at.cast(), PAGES * 4096);
        let mut set = std::mem::zeroed();
        libc::sigfillset(&raw mut set);
        libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        let value = libc::sigval { sival_ptr: std::ptr::null_mut() };
        refusal("signals", &mut |_| libc::sigqueue(libc::getpid(), libc::SIGRTMIN(), value).into());
        refusal("timers", &mut |_| {
            let mut timer = 0;
            libc::syscall(libc::SYS_timer_create, libc::CLOCK_MONOTONIC, 0, &raw mut timer)
        });
        let mode = libc::IPC_CREAT | 0o600;
        refusal("shared segments", &mut |_| libc::shmget(libc::IPC_PRIVATE, 4096, mode).into());
        refusal("semaphores", &mut |_| libc::semget(libc::IPC_PRIVATE, 1, mode).into());
        refusal("queues", &mut |_| libc::msgget(libc::IPC_PRIVATE, mode).into());
    }
    println!("end");
    let _ = std::io::stdout().flush();
    std::thread::sleep(std::time::Duration::from_secs(60));
}
