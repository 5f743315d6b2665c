//! execve(2): arguments, what survives, scripts, and the ways in which it fails.

use crate::harness::Outcome;
use crate::sys::{self, c, fork, helper};
use libc::*;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;

cases![
    passes_arguments_and_environment,
    passes_an_empty_environment,
    missing_file_is_enoent,
    file_without_x_bit_is_eacces,
    directory_is_eacces,
    garbage_is_enoexec,
    empty_file_is_enoexec,
    path_through_a_file_is_enotdir,
    symlink_loop_is_eloop,
    bad_path_pointer_is_efault,
    bad_argv_pointer_is_efault,
    one_string_above_128k_is_e2big,
    failed_exec_leaves_the_caller_intact,
    cloexec_closes_only_marked_descriptors,
    handlers_reset_ignored_stay,
    signal_mask_and_pending_survive,
    shebang_runs_the_interpreter,
    shebang_passes_one_argument,
    shebang_nests,
    shebang_loop_is_eloop,
    shebang_without_interpreter_is_enoent,
    execveat_relative_to_directory,
    execveat_empty_path_runs_the_descriptor,
    exec_from_a_thread_keeps_the_pid,
    comm_is_the_base_name,
    auxv_describes_the_program,
    proc_self_exe_names_the_program,
    running_program_is_etxtbsy_for_writers,
    file_open_for_writing_is_etxtbsy_for_exec,
    pid_and_parent_stay_over_exec,
    cwd_and_umask_stay_over_exec,
    truncated_elf_is_enoexec,
];

fn quiet() -> Outcome {
    Ok(())
}

/// Tries to exec `path` in this process, which must fail.
fn try_exec(path: &str) -> i32 {
    let argv = [c"x".as_ptr(), std::ptr::null()];
    let env = [std::ptr::null()];
    unsafe { execve(c(path).as_ptr(), argv.as_ptr(), env.as_ptr()) }
}

fn script(path: &str, text: &str) -> Outcome {
    sys::put(path, text.as_bytes())?;
    executable(path)
}

fn executable(path: &str) -> Outcome {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).map_err(|e| e.to_string())
}

/// Copies this program to `path`, for cases that need a program of their own.
fn copy_self(path: &str) -> Outcome {
    let exe = sys::self_exe()?;
    std::fs::copy(exe.to_str().unwrap_or(""), path).map_err(|e| format!("copy the program: {e}"))?;
    executable(path)
}

fn passes_arguments_and_environment() -> Outcome {
    same!(helper(&["args", "a b", "", "ü", "-x"], &[], quiet)?, ("a b||ü|-x\n".to_string(), 0));
    same!(helper(&["env"], &["A=1", "B=two words", "C="], quiet)?, ("A=1|B=two words|C=\n".to_string(), 0));
    Ok(())
}

fn passes_an_empty_environment() -> Outcome {
    same!(helper(&["env"], &[], quiet)?, ("\n".to_string(), 0));
    Ok(())
}

fn missing_file_is_enoent() -> Outcome {
    fails!(ENOENT, try_exec("nothing"));
    fails!(ENOENT, try_exec(""));
    Ok(())
}

fn file_without_x_bit_is_eacces() -> Outcome {
    sys::put("f", b"#!/bin/sh\n")?;
    // Even root needs one execute bit.
    fails!(EACCES, try_exec("./f"));
    Ok(())
}

fn directory_is_eacces() -> Outcome {
    fails!(EACCES, try_exec("/"));
    fails!(EACCES, try_exec("."));
    Ok(())
}

fn garbage_is_enoexec() -> Outcome {
    script("f", "just some text\n")?;
    fails!(ENOEXEC, try_exec("./f"));
    Ok(())
}

fn empty_file_is_enoexec() -> Outcome {
    script("f", "")?;
    fails!(ENOEXEC, try_exec("./f"));
    Ok(())
}

fn path_through_a_file_is_enotdir() -> Outcome {
    sys::put("f", b"")?;
    fails!(ENOTDIR, try_exec("f/x"));
    Ok(())
}

fn symlink_loop_is_eloop() -> Outcome {
    ok!(symlink(c"a".as_ptr(), c"b".as_ptr()));
    ok!(symlink(c"b".as_ptr(), c"a".as_ptr()));
    fails!(ELOOP, try_exec("a"));
    Ok(())
}

fn bad_path_pointer_is_efault() -> Outcome {
    let argv = [std::ptr::null()];
    fails!(EFAULT, execve(8 as *const c_char, argv.as_ptr(), argv.as_ptr()));
    Ok(())
}

fn bad_argv_pointer_is_efault() -> Outcome {
    let exe = sys::self_exe()?;
    let env = [std::ptr::null()];
    fails!(EFAULT, execve(exe.as_ptr(), std::ptr::dangling::<*const c_char>(), env.as_ptr()));
    let argv = [8 as *const c_char, std::ptr::null()];
    fails!(EFAULT, execve(exe.as_ptr(), argv.as_ptr(), env.as_ptr()));
    Ok(())
}

fn one_string_above_128k_is_e2big() -> Outcome {
    let exe = sys::self_exe()?;
    let long = c(&"x".repeat(32 * sys::PAGE));
    let argv = [c"x".as_ptr(), long.as_ptr(), std::ptr::null()];
    let env = [std::ptr::null()];
    fails!(E2BIG, execve(exe.as_ptr(), argv.as_ptr(), env.as_ptr()));
    let fits = "y".repeat(32 * sys::PAGE - 1);
    let (out, status) = helper(&["args", &fits], &[], quiet)?;
    same!((out.len(), status), (fits.len() + 1, 0));
    Ok(())
}

fn failed_exec_leaves_the_caller_intact() -> Outcome {
    sys::on_signal(SIGUSR1, sys::count_handler, 0)?;
    let (rd, wr) = sys::pipe()?;
    script("f", "text")?;
    fails!(ENOEXEC, try_exec("./f"));
    ok!(raise(SIGUSR1));
    same!(sys::hits(), 1);
    sys::fd_write(&wr, b"x")?;
    same!(sys::fd_read(&rd, 1)?, b"x");
    Ok(())
}

fn cloexec_closes_only_marked_descriptors() -> Outcome {
    let (out, _) = helper(&["fd-open", "40", "41"], &[], || {
        ok!(dup3(1, 40, O_CLOEXEC));
        ok!(dup2(1, 41));
        Ok(())
    })?;
    same!(out, "closed open ");
    Ok(())
}

fn handlers_reset_ignored_stay() -> Outcome {
    let list: Vec<String> = [SIGUSR1, SIGUSR2, SIGHUP].iter().map(ToString::to_string).collect();
    let args: Vec<&str> = std::iter::once("signals").chain(list.iter().map(String::as_str)).collect();
    let (out, _) = helper(&args, &[], || {
        sys::on_signal(SIGUSR1, sys::count_handler, 0)?;
        unsafe { signal(SIGUSR2, SIG_IGN) };
        Ok(())
    })?;
    same!(out, "d i d ");
    Ok(())
}

fn signal_mask_and_pending_survive() -> Outcome {
    let list: Vec<String> = [SIGUSR1, SIGUSR2].iter().map(ToString::to_string).collect();
    let (out, _) = helper(&["signals", &list[0], &list[1]], &[], || {
        sys::block(&[SIGUSR1, SIGUSR2])?;
        ok!(raise(SIGUSR2));
        Ok(())
    })?;
    same!(out, "db dbp ");
    Ok(())
}

fn shebang_runs_the_interpreter() -> Outcome {
    copy_self("prog")?;
    script("s", "#!./prog\n")?;
    // The interpreter sees: itself, the script's path, the rest of the caller's arguments.
    let (_, status) = sys::exec_capture(&c("./s"), &["ignored", "x"], &[], quiet)?;
    same!(WEXITSTATUS(status), 2);
    Ok(())
}

fn shebang_passes_one_argument() -> Outcome {
    copy_self("prog")?;
    script("s", "#! ./prog  helper \n")?;
    ok!(symlink(c"s".as_ptr(), c"argv".as_ptr()));
    // "helper" is the one argument; the script's path follows as the helper's name, here "argv" through a symlink.
    let (out, status) = sys::exec_capture(&c("argv"), &["zero", "p", "q r"], &[], quiet)?;
    same!((out.as_str(), status), ("./prog|helper|argv|p|q r\n", 0));
    Ok(())
}

fn shebang_nests() -> Outcome {
    copy_self("prog")?;
    script("inner", "#!./prog helper\n")?;
    script("args", "#!./inner\n")?;
    let (out, status) = sys::exec_capture(&c("args"), &["zero", "last"], &[], quiet)?;
    // ./prog helper ./inner args last: the helper is named "./inner", which it does not know.
    same!((out.as_str(), WEXITSTATUS(status)), ("", 2));
    Ok(())
}

fn shebang_loop_is_eloop() -> Outcome {
    script("s", "#!./s\n")?;
    fails!(ELOOP, try_exec("./s"));
    Ok(())
}

fn shebang_without_interpreter_is_enoent() -> Outcome {
    script("s", "#!/no/such/interpreter\n")?;
    fails!(ENOENT, try_exec("./s"));
    script("t", "#!   \n")?;
    fails!(ENOEXEC, try_exec("./t"));
    Ok(())
}

fn execveat_relative_to_directory() -> Outcome {
    std::fs::create_dir("d").map_err(|e| e.to_string())?;
    copy_self("d/prog")?;
    let dir = sys::open("d", O_RDONLY | O_DIRECTORY)?;
    let status = sys::status_of(|| unsafe {
        let argv = [c"x".as_ptr(), c"helper".as_ptr(), c"exit".as_ptr(), c"33".as_ptr(), std::ptr::null()];
        let env = [std::ptr::null::<c_char>()];
        syscall(SYS_execveat, dir.as_raw_fd(), c"prog".as_ptr(), argv.as_ptr(), env.as_ptr(), 0);
    })?;
    same!(WEXITSTATUS(status), 33);
    Ok(())
}

fn execveat_empty_path_runs_the_descriptor() -> Outcome {
    copy_self("prog")?;
    let fd = sys::open("prog", O_PATH)?;
    ok!(unlink(c"prog".as_ptr()));
    let status = sys::status_of(|| unsafe {
        let argv = [c"x".as_ptr(), c"helper".as_ptr(), c"exit".as_ptr(), c"34".as_ptr(), std::ptr::null()];
        let env = [std::ptr::null::<c_char>()];
        syscall(SYS_execveat, fd.as_raw_fd(), c"".as_ptr(), argv.as_ptr(), env.as_ptr(), AT_EMPTY_PATH);
    })?;
    same!(WEXITSTATUS(status), 34);
    fails!(ENOENT, syscall(SYS_execveat, fd.as_raw_fd(), c"".as_ptr(), 0, 0, 0));
    Ok(())
}

fn exec_from_a_thread_keeps_the_pid() -> Outcome {
    let exe = sys::self_exe()?;
    let (rd, wr) = sys::pipe()?;
    let kid = fork(|| {
        ok!(dup2(wr.as_raw_fd(), 1));
        for _ in 0..3 {
            std::thread::spawn(|| {
                loop {
                    unsafe { pause() };
                }
            });
        }
        std::thread::spawn(move || unsafe {
            let argv = [c"x".as_ptr(), c"helper".as_ptr(), c"pid".as_ptr(), std::ptr::null()];
            let env = [std::ptr::null()];
            execve(exe.as_ptr(), argv.as_ptr(), env.as_ptr());
            _exit(99)
        });
        loop {
            unsafe { pause() };
        }
    })?;
    drop(wr);
    let out = String::from_utf8_lossy(&sys::fd_read(&rd, 100)?).into_owned();
    let pid = kid.pid;
    same!(kid.status()?, 0);
    same!(out, format!("{pid} {pid}"));
    Ok(())
}

fn comm_is_the_base_name() -> Outcome {
    copy_self("a-rather-long-name")?;
    let (out, _) = sys::exec_capture(&c("./a-rather-long-name"), &["zero", "helper", "comm"], &[], quiet)?;
    same!(out, "a-rather-long-n");
    Ok(())
}

fn auxv_describes_the_program() -> Outcome {
    copy_self("prog")?;
    let (out, _) = sys::exec_capture(&c("./prog"), &["zero", "helper", "auxv"], &[], quiet)?;
    same!(out, "page=4096 random=true execfn=./prog uid=0 secure=0 phdr=true");
    Ok(())
}

fn proc_self_exe_names_the_program() -> Outcome {
    copy_self("prog")?;
    ok!(symlink(c"prog".as_ptr(), c"link".as_ptr()));
    let (out, _) = sys::exec_capture(&c("./link"), &["zero", "helper", "exe"], &[], quiet)?;
    let want = std::env::current_dir().map_err(|e| e.to_string())?.join("prog");
    same!(out, want.display().to_string());
    Ok(())
}

fn running_program_is_etxtbsy_for_writers() -> Outcome {
    copy_self("prog")?;
    let (rd, wr) = sys::pipe()?;
    let kid = fork(|| {
        let _keep = &wr;
        let argv = [c"x".as_ptr(), c"helper".as_ptr(), c"sleep".as_ptr(), std::ptr::null()];
        let env = [std::ptr::null()];
        ok!(execve(c"./prog".as_ptr(), argv.as_ptr(), env.as_ptr()));
        Ok(())
    })?;
    drop(wr);
    same!(sys::fd_read(&rd, 1)?, b"");
    fails!(ETXTBSY, open(c"prog".as_ptr(), O_WRONLY));
    fails!(ETXTBSY, truncate(c"prog".as_ptr(), 0));
    ok!(unlink(c"prog".as_ptr()));
    ok!(kill(kid.pid, SIGKILL));
    kid.status().map(drop)
}

fn file_open_for_writing_is_etxtbsy_for_exec() -> Outcome {
    copy_self("prog")?;
    let _writer = sys::open("prog", O_WRONLY)?;
    fails!(ETXTBSY, try_exec("./prog"));
    Ok(())
}

fn pid_and_parent_stay_over_exec() -> Outcome {
    let exe = sys::self_exe()?;
    let (rd, wr) = sys::pipe()?;
    let kid = fork(|| {
        ok!(dup2(wr.as_raw_fd(), 1));
        let argv = [c"x".as_ptr(), c"helper".as_ptr(), c"pid".as_ptr(), std::ptr::null()];
        let env = [std::ptr::null()];
        ok!(execve(exe.as_ptr(), argv.as_ptr(), env.as_ptr()));
        Ok(())
    })?;
    drop(wr);
    let out = String::from_utf8_lossy(&sys::fd_read(&rd, 100)?).into_owned();
    same!(out, format!("{} {}", kid.pid, kid.pid));
    kid.ok()
}

fn cwd_and_umask_stay_over_exec() -> Outcome {
    copy_self("prog")?;
    std::fs::create_dir("d").map_err(|e| e.to_string())?;
    let (out, _) = sys::exec_capture(&c("../prog"), &["zero", "helper", "auxv"], &[], || {
        ok!(chdir(c"d".as_ptr()));
        Ok(())
    })?;
    want!(out.contains("execfn=../prog"), "the relative path resolved elsewhere: {out}");
    Ok(())
}

fn truncated_elf_is_enoexec() -> Outcome {
    let exe = sys::self_exe()?;
    let bytes = std::fs::read(exe.to_str().unwrap_or("")).map_err(|e| e.to_string())?;
    sys::put("cut", &bytes[..40])?;
    executable("cut")?;
    fails!(ENOEXEC, try_exec("./cut"));
    // A header whose machine is not ours.
    let mut wrong = bytes[..4096].to_vec();
    wrong[18] = 0xb7;
    sys::put("arm", &wrong)?;
    executable("arm")?;
    fails!(ENOEXEC, try_exec("./arm"));
    Ok(())
}
