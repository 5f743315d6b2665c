//! What follows an open(2) of a file that nobody has changed yet, or an lseek(2) in any: fstat(2), read(2), lseek(2) and close(2)
//! of it, while all that they depend on changes between them.
//!
//! The files are `/lower/CASE/f0` and so on, of an unchanged root file system: [`text`] says what is in each. Without them
//! a case is skipped.

mod moved;

use super::inotify::{drain, start, watch};
use super::seccomp::{install, only};
use super::unix::{recv_fd, send_fd};
use crate::harness::{Outcome, errno};
use crate::sys::{self, Map, c};
use libc::*;
use moved::*;
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

cases![
    reads_and_seeks,
    a_child_changes_it,
    the_process_changes_it,
    a_thread_changes_it,
    a_descriptor_is_replaced,
    a_duplicate_moves_it,
    a_child_reads_on,
    a_child_in_the_same_memory_reads_on,
    a_program_reads_on,
    a_thread_reads_on,
    an_earlier_thread_reads_on,
    a_receiver_reads_on,
    a_thief_reads_on,
    its_place_is_seen_from_outside,
    its_end_is_seen_from_outside,
    a_mapping_shows_it,
    buffers_end_in_the_middle,
    no_bytes_and_many_pieces,
    a_handler_reads_on,
    a_timer_reads_on,
    watchers_hear_of_each_use,
    a_late_watcher_hears_of_each_use,
    a_late_watcher_hears_of_no_earlier_use,
    locks_end_with_a_close,
    a_lease_sees_who_reads,
    a_mount_is_free_once_it_is_closed,
    numbers_are_used_again,
    closed_is_closed,
    descriptors_are_counted,
    reads_are_counted,
    a_filter_sees_each_call,
    another_user_is_told_the_same,
    many_files_one_after_the_other,
    a_file_that_is_written_is_sought_in,
    a_file_that_changes_is_read_anew,
    two_files_are_sought_in_by_turns,
    appends_move_to_the_end,
    a_duplicate_is_sought_in,
    a_child_is_sought_with,
    others_see_and_move_a_place,
    a_large_file_is_read_here_and_there,
    a_large_file_is_changed_between,
    a_pipe_and_a_directory_are_sought_in,
    a_close_after_a_seek_gives_up_locks,
];

/// How many bytes each file has, and of the one called `big`.
const SIZE: usize = 3000;
const BIG: usize = 100_000;

/// The bytes of a file: its numbered lines.
pub fn text(size: usize) -> Vec<u8> {
    (0..size / 5 + 1).flat_map(|n| format!("{:04}\n", n % 10_000).into_bytes()).take(size).collect()
}

/// The path of file `n` of the case that runs.
fn file(case: &str, n: usize) -> Result<String, String> {
    let path = format!("/lower/{case}/f{n}");
    if unsafe { access(c(&path).as_ptr(), F_OK) } != 0 {
        skip!("no {path} here");
    }
    Ok(path)
}

/// Opens a file as a program does that has just read others.
fn open(path: &str) -> Result<OwnedFd, String> {
    sys::open(path, O_RDONLY)
}

/// Closes a file by one call: the library looks at a descriptor before it does.
fn shut(fd: OwnedFd) -> Outcome {
    ok!(close(fd.into_raw_fd()));
    Ok(())
}

fn read_n(fd: &OwnedFd, n: usize) -> Result<Vec<u8>, String> {
    sys::fd_read(fd, n)
}

fn seek(fd: &OwnedFd, to: i64, whence: i32) -> Result<i64, String> {
    Ok(ok!(lseek(fd.as_raw_fd(), to, whence)))
}

type Shown = (u64, u64, u32, u32, u32, i64, [i64; 4]);

fn shown(st: &libc::stat) -> Shown {
    let times = [st.st_mtime, st.st_mtime_nsec, st.st_ctime, st.st_ctime_nsec];
    (st.st_ino, st.st_nlink, st.st_mode, st.st_uid, st.st_gid, st.st_size, times)
}

fn by_fd(fd: &OwnedFd) -> Result<Shown, String> {
    let old = shown(&sys::fstat(fd)?);
    let mut st = unsafe { std::mem::zeroed() };
    ok!(syscall(SYS_newfstatat, fd.as_raw_fd(), c"".as_ptr(), &raw mut st, AT_EMPTY_PATH));
    same!(shown(&st), old);
    ok!(syscall(SYS_fstat, fd.as_raw_fd(), &raw mut st));
    same!(shown(&st), old);
    Ok(old)
}

fn by_path(path: &str) -> Result<Shown, String> {
    Ok(shown(&sys::stat(path)?))
}

/// A process that was there before, and does something whenever it is asked to, while its parent makes no call that has to
/// do with files but the two on the pipes.
struct Other {
    kid: sys::Kid,
    ask: OwnedFd,
    answer: OwnedFd,
}

impl Other {
    fn new(mut act: impl FnMut(u8) -> Outcome) -> Result<Self, String> {
        let (asked, ask) = sys::pipe()?;
        let (answer, answers) = sys::pipe()?;
        let ask_here = ask.as_raw_fd();
        let kid = sys::fork(|| {
            ok!(close(ask_here));
            loop {
                let order = sys::fd_read(&asked, 1)?;
                let Some(order) = order.first() else { return Ok(()) };
                act(*order)?;
                sys::fd_write(&answers, b"y")?;
            }
        })?;
        Ok(Self { kid, ask, answer })
    }

    fn does(&self, order: u8) -> Outcome {
        sys::fd_write(&self.ask, &[order])?;
        same!(sys::fd_read(&self.answer, 1)?, b"y");
        Ok(())
    }

    fn ends(self) -> Outcome {
        drop(self.ask);
        self.kid.ok()
    }
}

fn reads_and_seeks() -> Outcome {
    let all = text(SIZE);
    for n in 0..4 {
        let path = file("reads_and_seeks", n)?;
        let fd = open(&path)?;
        same!(by_fd(&fd)?, by_path(&path)?);
        same!(by_fd(&fd)?.5, SIZE as i64);
        same!(read_n(&fd, 100)?, all[..100]);
        same!(seek(&fd, 0, SEEK_CUR)?, 100);
        same!(seek(&fd, 0, SEEK_END)?, SIZE as i64);
        same!(read_n(&fd, 100)?, b"");
        same!(seek(&fd, -10, SEEK_CUR)?, SIZE as i64 - 10);
        same!(read_n(&fd, 100)?, all[SIZE - 10..]);
        same!(seek(&fd, 7, SEEK_SET)?, 7);
        let mut buf = [0_u8; 50];
        same!(ok!(pread(fd.as_raw_fd(), buf.as_mut_ptr().cast(), 50, 1000)), 50);
        same!(buf[..], all[1000..1050]);
        same!(ok!(pread(fd.as_raw_fd(), buf.as_mut_ptr().cast(), 50, SIZE as i64 - 5)), 5);
        same!(ok!(pread(fd.as_raw_fd(), buf.as_mut_ptr().cast(), 50, SIZE as i64 + 5)), 0);
        fails!(EINVAL, pread(fd.as_raw_fd(), buf.as_mut_ptr().cast(), 50, -1));
        fails!(EINVAL, pread(fd.as_raw_fd(), buf.as_mut_ptr().cast(), 50, i64::MAX - 10));
        same!(read_n(&fd, 3)?, all[7..10]);
        fails!(EINVAL, lseek(fd.as_raw_fd(), -1, SEEK_SET));
        fails!(EINVAL, lseek(fd.as_raw_fd(), -11, SEEK_CUR));
        fails!(EINVAL, lseek(fd.as_raw_fd(), 0, 17));
        same!(seek(&fd, 5, SEEK_DATA)?, 5);
        same!(seek(&fd, 5, SEEK_HOLE)?, SIZE as i64);
        fails!(ENXIO, lseek(fd.as_raw_fd(), SIZE as i64, SEEK_DATA));
        same!(seek(&fd, SIZE as i64 + 9, SEEK_SET)?, SIZE as i64 + 9);
        same!(read_n(&fd, 10)?, b"");
        fails!(ENOTTY, ioctl(fd.as_raw_fd(), TCGETS, buf.as_mut_ptr()));
        let mut left = 0;
        same!(seek(&fd, -9, SEEK_END)?, SIZE as i64 - 9);
        ok!(ioctl(fd.as_raw_fd(), FIONREAD, &raw mut left));
        same!(left, 9);
        fails!(EBADF, write(fd.as_raw_fd(), buf.as_ptr().cast(), 1));
        same!(ok!(posix_fadvise(fd.as_raw_fd(), 0, 0, POSIX_FADV_SEQUENTIAL)), 0);
        fails!(ENOTDIR, fchdir(fd.as_raw_fd()));
        same!(seek(&fd, 0, SEEK_SET)?, 0);
        same!(read_n(&fd, SIZE * 2)?, all);
        // The same with a path that is not empty, and with flags that do not count.
        let mut st = unsafe { std::mem::zeroed() };
        fails!(ENOTDIR, fstatat(fd.as_raw_fd(), c"x".as_ptr(), &raw mut st, AT_EMPTY_PATH));
        fails!(ENOENT, fstatat(fd.as_raw_fd(), c"".as_ptr(), &raw mut st, 0));
        ok!(fstatat(fd.as_raw_fd(), c"".as_ptr(), &raw mut st, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW));
        same!(shown(&st), by_path(&path)?);
    }
    // One that is longer than what a program reads at once.
    let all = text(BIG);
    let fd = open("/lower/reads_and_seeks/big")?;
    same!(read_n(&fd, 832)?, all[..832]);
    same!(read_n(&fd, 4000)?, all[832..4832]);
    same!(read_n(&fd, BIG)?, all[4832..]);
    same!(read_n(&fd, BIG)?, b"");
    Ok(())
}

/// What may happen to a file while it is open; `n` is the number of the change, and how many there are.
const CHANGES: usize = 11;

fn change(case: &str, base: usize, n: usize) -> Outcome {
    let path = file(case, base + n)?;
    let name = c(&path);
    match n {
        0 => same!(ok!(chmod(name.as_ptr(), 0o600)), 0),
        1 => same!(ok!(chown(name.as_ptr(), 7, 8)), 0),
        2 => {
            let times = [timespec { tv_sec: 5, tv_nsec: 6 }; 2];
            ok!(utimensat(AT_FDCWD, name.as_ptr(), times.as_ptr(), 0));
        }
        3 => same!(ok!(truncate(name.as_ptr(), 10)), 0),
        4 => {
            let fd = sys::open(&path, O_WRONLY | O_APPEND)?;
            sys::fd_write(&fd, b"more")?;
            shut(fd)?;
        }
        5 => {
            let fd = sys::open(&path, O_WRONLY)?;
            sys::fd_write(&fd, &[b'X'; 40])?;
            shut(fd)?;
        }
        6 => same!(ok!(unlink(name.as_ptr())), 0),
        7 => same!(ok!(rename(name.as_ptr(), c(&format!("{path}.new")).as_ptr())), 0),
        8 => {
            sys::put("other", b"another")?;
            sys::put(&format!("{path}.by"), b"another")?;
            ok!(rename(c(&format!("{path}.by")).as_ptr(), name.as_ptr()));
        }
        9 => same!(ok!(link(name.as_ptr(), c(&format!("{path}.new")).as_ptr())), 0),
        _ => {
            let fd = sys::open(&path, O_RDWR | O_TRUNC)?;
            sys::fd_write(&fd, b"all new")?;
            shut(fd)?;
        }
    }
    Ok(())
}

/// Opens each file, reads of it, has it changed, and looks again.
fn while_it_changes(case: &str, base: usize, mut changes: impl FnMut(usize) -> Outcome) -> Outcome {
    let all = text(SIZE);
    for n in 0..CHANGES {
        let path = file(case, base + n)?;
        let fd = open(&path)?;
        let before = by_fd(&fd)?;
        same!(read_n(&fd, 5)?, all[..5]);
        changes(n)?;
        let after = by_fd(&fd)?;
        match n {
            // Whether a name counts that only a lower layer has is up to the file system.
            6 | 8 => {
                want!(after.1 <= 1 && after.5 == before.5, "{after:?}");
            }
            7 => same!(after, by_path(&format!("{path}.new"))?),
            _ => same!(after, by_path(&path)?),
        }
        same!(after.0, before.0);
        if ![6, 7, 8].contains(&n) {
            want!(after != before, "change {n} does not show");
        }
        let expected = match n {
            3 => all[5..10].to_vec(),
            4 => [&all[5..], b"more"].concat(),
            5 => [&[b'X'; 35], &all[40..]].concat(),
            10 => b"ew".to_vec(),
            _ => all[5..].to_vec(),
        };
        same!((n, read_n(&fd, SIZE * 2)?), (n, expected));
        same!(read_n(&fd, SIZE)?, b"");
        same!(by_fd(&fd)?, after);
    }
    Ok(())
}

fn a_child_changes_it() -> Outcome {
    const CASE: &str = "a_child_changes_it";
    file(CASE, 0)?;
    let other = Other::new(|n| change(CASE, 0, n.into()))?;
    while_it_changes(CASE, 0, |n| other.does(n as u8))?;
    other.ends()
}

fn the_process_changes_it() -> Outcome {
    const CASE: &str = "the_process_changes_it";
    while_it_changes(CASE, 0, |n| change(CASE, 0, n))
}

fn a_thread_changes_it() -> Outcome {
    const CASE: &str = "a_thread_changes_it";
    // One that comes later, and one that was there before.
    while_it_changes(CASE, 0, |n| {
        std::thread::spawn(move || change(CASE, 0, n)).join().map_err(|_| "a panic".to_string())?
    })?;
    let (orders, taken) = std::sync::mpsc::channel::<usize>();
    let (tell, told) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        for n in taken {
            let _ = tell.send(change(CASE, CHANGES, n));
        }
    });
    while_it_changes(CASE, CHANGES, |n| {
        orders.send(n).map_err(|e| e.to_string())?;
        told.recv().map_err(|e| e.to_string())?
    })?;
    drop(orders);
    thread.join().map_err(|_| "a panic".to_string())
}

fn a_descriptor_is_replaced() -> Outcome {
    let all = text(SIZE);
    let [a, b] = [0, 1].map(|n| file("a_descriptor_is_replaced", n));
    let (a, b) = (a?, b?);
    for _ in 0..3 {
        let one = open(&a)?;
        same!(read_n(&one, 10)?, all[..10]);
        let two = open(&b)?;
        same!(read_n(&two, 20)?, all[..20]);
        ok!(dup2(two.as_raw_fd(), one.as_raw_fd()));
        same!(by_fd(&one)?, by_path(&b)?);
        same!(read_n(&one, 10)?, all[20..30]);
        same!(read_n(&two, 10)?, all[30..40]);
        // And by something that is no such file.
        let (rd, wr) = sys::pipe()?;
        sys::fd_write(&wr, b"piped")?;
        ok!(dup3(rd.as_raw_fd(), one.as_raw_fd(), O_CLOEXEC));
        same!(read_n(&one, 10)?, b"piped");
        same!(by_fd(&one)?.2 & S_IFMT, S_IFIFO);
        fails!(ESPIPE, lseek(one.as_raw_fd(), 0, SEEK_CUR));
        same!(read_n(&two, 10)?, all[40..50]);
        let three = open(&a)?;
        same!(read_n(&three, 10)?, all[..10]);
        let number = three.as_raw_fd();
        ok!(close_range(number as u32, number as u32, 0));
        std::mem::forget(three);
        fails!(EBADF, read(number, std::ptr::null_mut(), 1));
    }
    Ok(())
}

fn a_duplicate_moves_it() -> Outcome {
    let all = text(SIZE);
    let path = file("a_duplicate_moves_it", 0)?;
    for how in 0..3 {
        let fd = open(&path)?;
        same!(read_n(&fd, 10)?, all[..10]);
        let twin = match how {
            0 => sys::own(ok!(dup(fd.as_raw_fd()))),
            1 => sys::own(ok!(fcntl(fd.as_raw_fd(), F_DUPFD_CLOEXEC, 50))),
            _ => sys::own(ok!(dup2(fd.as_raw_fd(), 60))),
        };
        same!(read_n(&twin, 10)?, all[10..20]);
        same!(read_n(&fd, 10)?, all[20..30]);
        same!(seek(&twin, 100, SEEK_SET)?, 100);
        same!(read_n(&fd, 10)?, all[100..110]);
        shut(twin)?;
        same!(read_n(&fd, 10)?, all[110..120]);
        // By another name it is another one.
        let again = open(&format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
        same!(read_n(&again, 10)?, all[..10]);
        same!(read_n(&fd, 10)?, all[120..130]);
    }
    Ok(())
}

fn a_child_reads_on() -> Outcome {
    let all = text(SIZE);
    let path = file("a_child_reads_on", 0)?;
    let fd = open(&path)?;
    for turn in 0..5 {
        let at = turn * 30;
        same!(read_n(&fd, 10)?, all[at..at + 10]);
        sys::fork(|| {
            same!(read_n(&fd, 10)?, all[at + 10..at + 20]);
            Ok(())
        })?
        .ok()?;
        same!(read_n(&fd, 10)?, all[at + 20..at + 30]);
        // The child's own are its own.
        sys::fork(|| {
            let own = open(&path)?;
            same!(read_n(&own, 10)?, all[..10]);
            Ok(())
        })?
        .ok()?;
    }
    Ok(())
}

/// Reads ten bytes of a descriptor in the memory of the parent.
extern "C" fn read_ten(at: *mut c_void) -> i32 {
    let (fd, buf) = unsafe { *at.cast::<(i32, [u8; 10])>() };
    let mut buf = buf;
    let n = unsafe { read(fd, buf.as_mut_ptr().cast(), 10) };
    unsafe { at.cast::<(i32, [u8; 10])>().write((fd, buf)) };
    i32::from(n != 10)
}

fn a_child_in_the_same_memory_reads_on() -> Outcome {
    let all = text(SIZE);
    let path = file("a_child_in_the_same_memory_reads_on", 0)?;
    let fd = open(&path)?;
    let stack = Map::anon(64 * 1024)?;
    for (turn, flags) in [0, CLONE_FILES, CLONE_VFORK, CLONE_VFORK | CLONE_FILES].into_iter().enumerate() {
        let at = turn * 30;
        same!(read_n(&fd, 10)?, all[at..at + 10]);
        let mut there = (fd.as_raw_fd(), [0_u8; 10]);
        let pid = ok!(clone(
            read_ten,
            stack.at(60 * 1024).cast(),
            CLONE_VM | flags | SIGCHLD,
            (&raw mut there).cast()
        ));
        same!(sys::wait_status(pid)?, 0);
        same!(there.1[..], all[at + 10..at + 20]);
        same!(read_n(&fd, 10)?, all[at + 20..at + 30]);
    }
    Ok(())
}

fn a_program_reads_on() -> Outcome {
    let all = text(SIZE);
    let path = file("a_program_reads_on", 0)?;
    let fd = open(&path)?;
    same!(read_n(&fd, 10)?, all[..10]);
    let program = c("/proc/self/exe");
    let kid = sys::fork(|| {
        ok!(dup2(fd.as_raw_fd(), 0));
        same!(read_n(&fd, 10)?, all[10..20]);
        let words = ["syscall-tests", "helper", "skip-input", "10"].map(c);
        let mut argv: Vec<_> = words.iter().map(|word| word.as_ptr()).collect();
        argv.push(std::ptr::null());
        ok!(execv(program.as_ptr(), argv.as_ptr()));
        Ok(())
    })?;
    kid.ok()?;
    same!(read_n(&fd, 10)?, all[30..40]);
    // One that it is not to have.
    let kid = sys::fork(|| {
        let own = open(&path)?;
        same!(read_n(&own, 10)?, all[..10]);
        let words =
            ["syscall-tests".to_string(), "helper".into(), "fd-closed".into(), own.as_raw_fd().to_string()]
                .map(|word| c(&word));
        let mut argv: Vec<_> = words.iter().map(|word| word.as_ptr()).collect();
        argv.push(std::ptr::null());
        ok!(execv(program.as_ptr(), argv.as_ptr()));
        Ok(())
    })?;
    kid.ok()
}

fn a_thread_reads_on() -> Outcome {
    let all = text(SIZE);
    let path = file("a_thread_reads_on", 0)?;
    let fd = open(&path)?;
    for turn in 0..5 {
        let at = turn * 30;
        same!(read_n(&fd, 10)?, all[at..at + 10]);
        let read = std::thread::scope(|scope| scope.spawn(|| read_n(&fd, 10)).join());
        same!(read.map_err(|_| "a panic".to_string())??, all[at + 10..at + 20]);
        same!(read_n(&fd, 10)?, all[at + 20..at + 30]);
    }
    Ok(())
}

/// The thread is there before the file, and takes turns without a call of the other.
fn an_earlier_thread_reads_on() -> Outcome {
    let all = text(SIZE);
    let path = file("an_earlier_thread_reads_on", 0)?;
    let (turn, number) = (AtomicI32::new(0), AtomicI32::new(-1));
    let wait = |n: i32| {
        while turn.load(Ordering::SeqCst) != n && turn.load(Ordering::SeqCst) != -1 {
            std::hint::spin_loop();
        }
    };
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let outcome = (0..10).try_for_each(|n| {
                wait(n * 2 + 1);
                let fd = std::mem::ManuallyDrop::new(sys::own(number.load(Ordering::SeqCst)));
                let at = n as usize * 30;
                same!(read_n(&fd, 10)?, all[at + 10..at + 20]);
                turn.store(n * 2 + 2, Ordering::SeqCst);
                Ok(())
            });
            turn.store(if outcome.is_ok() { 20 } else { -1 }, Ordering::SeqCst);
            outcome
        });
        let fd = open(&path)?;
        number.store(fd.as_raw_fd(), Ordering::SeqCst);
        let outcome = (0..10).try_for_each(|n| {
            let at = n as usize * 30;
            same!(read_n(&fd, 10)?, all[at..at + 10]);
            turn.store(n * 2 + 1, Ordering::SeqCst);
            wait(n * 2 + 2);
            same!(read_n(&fd, 10)?, all[at + 20..at + 30]);
            Ok(())
        });
        if outcome.is_err() {
            turn.store(-1, Ordering::SeqCst);
        }
        outcome.and(reader.join().map_err(|_| "a panic".to_string())?)
    })
}

fn a_receiver_reads_on() -> Outcome {
    let all = text(SIZE);
    let path = file("a_receiver_reads_on", 0)?;
    let (a, b) = sys::socketpair(SOCK_STREAM)?;
    let other = Other::new(|n| {
        let at = 10 + usize::from(n) * 30;
        let fd = recv_fd(&b)?;
        same!(read_n(&fd, 10)?, all[at..at + 10]);
        Ok(())
    })?;
    let fd = open(&path)?;
    for turn in 0..5 {
        let at = turn * 30;
        same!(read_n(&fd, 10)?, all[at..at + 10]);
        ok!(send_fd(&a, fd.as_raw_fd()));
        other.does(turn as u8)?;
        same!(read_n(&fd, 10)?, all[at + 20..at + 30]);
    }
    other.ends()
}

/// A process that was there before, and takes turns with its parent by a word of shared memory: the parent makes no call to
/// have it do something.
struct Outside {
    kid: sys::Kid,
    turns: Map,
}

/// The side of the process outside.
struct Turns<'a>(&'a Map);

impl Turns<'_> {
    /// Waits for the parent's turn `n` to end, and gives the number that it tells.
    fn wait(&self, n: i32) -> Result<i32, String> {
        while self.0.word(0).load(Ordering::SeqCst) != n {
            want!(unsafe { getppid() } != 1, "the parent is gone");
            std::thread::yield_now();
        }
        Ok(self.0.word(1).load(Ordering::SeqCst))
    }

    fn done(&self, n: i32) {
        self.0.word(0).store(-n, Ordering::SeqCst);
    }
}

impl Outside {
    fn new(act: impl FnOnce(&Turns<'_>) -> Outcome) -> Result<Self, String> {
        let turns = Map::shared(sys::PAGE)?;
        let kid = sys::fork(|| {
            let outcome = act(&Turns(&turns));
            if outcome.is_err() {
                turns.word(0).store(i32::MIN, Ordering::SeqCst);
            }
            outcome
        })?;
        Ok(Self { kid, turns })
    }

    /// Lets the other one have its turn `n`, and waits for its end. No system call.
    fn turn(&self, n: i32, told: i32) {
        if self.turns.word(0).load(Ordering::SeqCst) == i32::MIN {
            return;
        }
        self.turns.word(1).store(told, Ordering::SeqCst);
        self.turns.word(0).store(n, Ordering::SeqCst);
        while self.turns.word(0).load(Ordering::SeqCst) == n {
            std::hint::spin_loop();
        }
    }

    fn ends(self) -> Outcome {
        self.kid.ok()
    }
}

fn a_thief_reads_on() -> Outcome {
    let all = text(SIZE);
    let path = file("a_thief_reads_on", 0)?;
    let parent = unsafe { getpid() };
    let outside = Outside::new(|turns| {
        let pidfd = sys::own(ok!(syscall(SYS_pidfd_open, parent, 0)) as i32);
        for turn in 1..20 {
            let number = turns.wait(turn)?;
            let fd = sys::own(ok!(syscall(SYS_pidfd_getfd, pidfd.as_raw_fd(), number, 0)) as i32);
            let at = turn as usize * 30;
            same!(read_n(&fd, 10)?, all[at - 20..at - 10]);
            turns.done(turn);
        }
        Ok(())
    })?;
    let fd = open(&path)?;
    for turn in 1..20 {
        let at = turn as usize * 30;
        same!(read_n(&fd, 10)?, all[at - 30..at - 20]);
        outside.turn(turn, fd.as_raw_fd());
        same!(read_n(&fd, 10)?, all[at - 10..at]);
    }
    outside.ends()
}

fn its_place_is_seen_from_outside() -> Outcome {
    let all = text(SIZE);
    let path = file("its_place_is_seen_from_outside", 0)?;
    let parent = unsafe { getpid() };
    let outside = Outside::new(|turns| {
        for turn in 1..20 {
            let number = turns.wait(turn)?;
            let info = sys::slurp(&format!("/proc/{parent}/fdinfo/{number}"))?;
            let at = info.lines().find_map(|line| line.strip_prefix("pos:\t")).map(str::to_string);
            same!(at, Some((turn * 10).to_string()));
            turns.done(turn);
        }
        Ok(())
    })?;
    let fd = open(&path)?;
    for turn in 1..20 {
        let at = turn as usize * 10;
        same!(read_n(&fd, 10)?, all[at - 10..at]);
        outside.turn(turn, fd.as_raw_fd());
    }
    outside.ends()
}

fn its_end_is_seen_from_outside() -> Outcome {
    let all = text(SIZE);
    let path = file("its_end_is_seen_from_outside", 0)?;
    let parent = unsafe { getpid() };
    let outside = Outside::new(|turns| {
        for turn in 1..20 {
            let number = turns.wait(turn)?;
            for dir in ["fd", "fdinfo"] {
                let dir = format!("/proc/{parent}/{dir}");
                let one = format!("{dir}/{number}");
                let mut st = unsafe { std::mem::zeroed() };
                fails!(ENOENT, lstat(c(&one).as_ptr(), &raw mut st));
                let names = std::fs::read_dir(&dir).map_err(|e| e.to_string())?;
                let has = names.flatten().any(|e| e.file_name().to_string_lossy() == number.to_string());
                want!(!has, "{one} is listed");
            }
            let pidfd = sys::own(ok!(syscall(SYS_pidfd_open, parent, 0)) as i32);
            fails!(EBADF, syscall(SYS_pidfd_getfd, pidfd.as_raw_fd(), number, 0));
            turns.done(turn);
        }
        Ok(())
    })?;
    for turn in 1..20 {
        let fd = open(&path)?;
        let number = fd.as_raw_fd();
        same!(read_n(&fd, 10)?, all[..10]);
        shut(fd)?;
        outside.turn(turn, number);
    }
    outside.ends()
}

fn a_mapping_shows_it() -> Outcome {
    let all = text(SIZE);
    let path = file("a_mapping_shows_it", 0)?;
    let fd = open(&path)?;
    same!(read_n(&fd, 10)?, all[..10]);
    let map = Map::new(SIZE, PROT_READ, MAP_PRIVATE, fd.as_raw_fd(), 0)?;
    same!(map.bytes()[..SIZE], all[..]);
    same!(read_n(&fd, 10)?, all[10..20]);
    shut(fd)?;
    same!(map.bytes()[..SIZE], all[..]);
    Ok(())
}

fn buffers_end_in_the_middle() -> Outcome {
    let all = text(SIZE);
    let path = file("buffers_end_in_the_middle", 0)?;
    let guarded = Map::guarded()?;
    for room in [0, 1, 7, 100, 1000] {
        let fd = open(&path)?;
        same!(read_n(&fd, 10)?, all[..10]);
        let at = guarded.at(sys::PAGE - room);
        let n = unsafe { read(fd.as_raw_fd(), at.cast(), 2000) };
        if room == 0 {
            same!((n, errno()), (-1, EFAULT));
        } else {
            same!(n, room as isize);
        }
        same!(seek(&fd, 0, SEEK_CUR)?, 10 + room as i64);
        same!(read_n(&fd, 20)?, all[10 + room..30 + room]);
        let seen: Vec<u8> = (0..room).map(|i| guarded.get(sys::PAGE - room + i)).collect();
        same!(seen, all[10..10 + room]);
        for bad in [8 as *mut c_void, usize::MAX as *mut c_void, (1_usize << 63) as *mut c_void] {
            fails!(EFAULT, read(fd.as_raw_fd(), bad, 10));
            fails!(EFAULT, syscall(SYS_fstat, fd.as_raw_fd(), bad));
        }
        fails!(EFAULT, syscall(SYS_fstat, fd.as_raw_fd(), guarded.at(sys::PAGE - 100)));
        same!(read_n(&fd, 20)?, all[30 + room..50 + room]);
        // Nothing is read into no room at the end of the file.
        same!(seek(&fd, 0, SEEK_END)?, SIZE as i64);
        same!(ok!(read(fd.as_raw_fd(), 8 as *mut c_void, 10)), 0);
    }
    Ok(())
}

fn no_bytes_and_many_pieces() -> Outcome {
    let all = text(SIZE);
    let path = file("no_bytes_and_many_pieces", 0)?;
    let fd = open(&path)?;
    same!(ok!(read(fd.as_raw_fd(), std::ptr::null_mut(), 0)), 0);
    same!(read_n(&fd, 10)?, all[..10]);
    let (mut a, mut b) = ([0_u8; 5], [0_u8; 7]);
    let pieces = [
        iovec { iov_base: a.as_mut_ptr().cast(), iov_len: 5 },
        iovec { iov_base: b.as_mut_ptr().cast(), iov_len: 7 },
    ];
    same!(ok!(readv(fd.as_raw_fd(), pieces.as_ptr(), 2)), 12);
    same!((a[..].to_vec(), b[..].to_vec()), (all[10..15].to_vec(), all[15..22].to_vec()));
    same!(read_n(&fd, 10)?, all[22..32]);
    same!(ok!(preadv(fd.as_raw_fd(), pieces.as_ptr(), 2, 100)), 12);
    same!(ok!(preadv2(fd.as_raw_fd(), pieces.as_ptr(), 2, -1, 0)), 12);
    same!(read_n(&fd, 10)?, all[44..54]);
    let (rd, wr) = sys::pipe()?;
    same!(ok!(sendfile(wr.as_raw_fd(), fd.as_raw_fd(), std::ptr::null_mut(), 10)), 10);
    same!(read_n(&rd, 20)?, all[54..64]);
    same!(read_n(&fd, 10)?, all[64..74]);
    same!(ok!(splice(fd.as_raw_fd(), std::ptr::null_mut(), wr.as_raw_fd(), std::ptr::null_mut(), 10, 0)), 10);
    same!(read_n(&fd, 10)?, all[84..94]);
    Ok(())
}

static HANDLED: AtomicU32 = AtomicU32::new(0);
static SUM: AtomicU32 = AtomicU32::new(0);
static READ_FD: AtomicI32 = AtomicI32::new(-1);

/// Reads one byte of the file that is being read.
extern "C" fn read_one(_: c_int, _: *mut siginfo_t, _: *mut c_void) {
    let mut byte = 0_u8;
    let here = unsafe { *__errno_location() };
    if unsafe { read(READ_FD.load(Ordering::Relaxed), (&raw mut byte).cast(), 1) } == 1 {
        HANDLED.fetch_add(1, Ordering::Relaxed);
        SUM.fetch_add(byte.into(), Ordering::Relaxed);
    }
    unsafe { *__errno_location() = here };
}

fn a_handler_reads_on() -> Outcome {
    let all = text(SIZE);
    let path = file("a_handler_reads_on", 0)?;
    sys::on_signal(SIGUSR1, read_one, 0)?;
    let fd = open(&path)?;
    READ_FD.store(fd.as_raw_fd(), Ordering::Relaxed);
    for turn in 0..20 {
        same!(read_n(&fd, 4)?, all[turn * 5..turn * 5 + 4]);
        ok!(raise(SIGUSR1));
        same!(HANDLED.load(Ordering::Relaxed), turn as u32 + 1);
    }
    Ok(())
}

fn a_timer_reads_on() -> Outcome {
    let sum: u32 = text(SIZE).iter().map(|byte| u32::from(*byte)).sum();
    let path = file("a_timer_reads_on", 0)?;
    sys::on_signal(SIGALRM, read_one, SA_RESTART)?;
    let often = timeval { tv_sec: 0, tv_usec: 100 };
    let timer = itimerval { it_interval: often, it_value: often };
    for _ in 0..20 {
        let fd = open(&path)?;
        READ_FD.store(fd.as_raw_fd(), Ordering::Relaxed);
        HANDLED.store(0, Ordering::Relaxed);
        SUM.store(0, Ordering::Relaxed);
        ok!(setitimer(ITIMER_REAL, &raw const timer, std::ptr::null_mut()));
        let (mut count, mut here) = (0, 0);
        let mut byte = 0_u8;
        while ok!(read(fd.as_raw_fd(), (&raw mut byte).cast(), 1)) == 1 {
            count += 1;
            here += u32::from(byte);
        }
        let off: itimerval = unsafe { std::mem::zeroed() };
        ok!(setitimer(ITIMER_REAL, &raw const off, std::ptr::null_mut()));
        same!(
            (count + HANDLED.load(Ordering::Relaxed), here + SUM.load(Ordering::Relaxed)),
            (SIZE as u32, sum)
        );
    }
    Ok(())
}

fn heard(fd: &OwnedFd) -> Result<Vec<u32>, String> {
    Ok(drain(fd)?.iter().map(|event| event.mask).collect())
}

const USES: u32 = IN_OPEN | IN_ACCESS | IN_CLOSE_NOWRITE;

fn watchers_hear_of_each_use() -> Outcome {
    let path = file("watchers_hear_of_each_use", 0)?;
    for watched in [path.as_str(), "/lower/watchers_hear_of_each_use"] {
        let watcher = start()?;
        watch(&watcher, watched, USES)?;
        let fd = open(&path)?;
        by_fd(&fd)?;
        same!(heard(&watcher)?, [IN_OPEN]);
        read_n(&fd, 10)?;
        same!(heard(&watcher)?, [IN_ACCESS]);
        read_n(&fd, SIZE)?;
        read_n(&fd, SIZE)?;
        same!(heard(&watcher)?, [IN_ACCESS]);
        shut(fd)?;
        same!(heard(&watcher)?, [IN_CLOSE_NOWRITE]);
    }
    Ok(())
}

fn a_late_watcher_hears_of_each_use() -> Outcome {
    let path = file("a_late_watcher_hears_of_each_use", 0)?;
    let watcher = start()?;
    let other = Other::new(|_| watch(&watcher, &path, USES).map(drop))?;
    let fd = open(&path)?;
    by_fd(&fd)?;
    read_n(&fd, 10)?;
    other.does(0)?;
    read_n(&fd, 10)?;
    shut(fd)?;
    same!(heard(&watcher)?, [IN_ACCESS, IN_CLOSE_NOWRITE]);
    other.ends()
}

fn a_late_watcher_hears_of_no_earlier_use() -> Outcome {
    let path = file("a_late_watcher_hears_of_no_earlier_use", 0)?;
    let watcher = start()?;
    let outside = Outside::new(|turns| {
        turns.wait(1)?;
        watch(&watcher, &path, USES)?;
        turns.done(1);
        Ok(())
    })?;
    let fd = open(&path)?;
    read_n(&fd, 10)?;
    shut(fd)?;
    outside.turn(1, 0);
    same!(heard(&watcher)?, []);
    outside.ends()
}

fn locks_end_with_a_close() -> Outcome {
    let path = file("locks_end_with_a_close", 0)?;
    let whole = |kind: i32| libc::flock {
        l_type: kind as i16,
        l_whence: SEEK_SET as i16,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    let outside = Outside::new(|turns| {
        let fd = open(&path)?;
        for turn in 1..7 {
            turns.wait(turn)?;
            let mut lock = whole(F_WRLCK);
            ok!(fcntl(fd.as_raw_fd(), F_GETLK, &raw mut lock));
            same!((turn, i32::from(lock.l_type)), (turn, if turn % 2 == 1 { F_RDLCK } else { F_UNLCK }));
            turns.done(turn);
        }
        Ok(())
    })?;
    for turn in 0..3 {
        let locked = open(&path)?;
        let lock = whole(F_RDLCK);
        ok!(fcntl(locked.as_raw_fd(), F_SETLK, &raw const lock));
        let fd = open(&path)?;
        read_n(&fd, 10)?;
        outside.turn(turn * 2 + 1, 0);
        shut(fd)?;
        outside.turn(turn * 2 + 2, 0);
    }
    // The lock may come last.
    let locked = open(&path)?;
    let fd = open(&path)?;
    read_n(&fd, 10)?;
    let lock = whole(F_RDLCK);
    ok!(fcntl(locked.as_raw_fd(), F_SETLK, &raw const lock));
    shut(fd)?;
    let mut lock = whole(F_WRLCK);
    sys::fork(|| {
        ok!(fcntl(locked.as_raw_fd(), F_GETLK, &raw mut lock));
        same!(i32::from(lock.l_type), F_UNLCK);
        Ok(())
    })?
    .ok()?;
    outside.ends()
}

fn a_lease_sees_who_reads() -> Outcome {
    let path = file("a_lease_sees_who_reads", 0)?;
    let outside = Outside::new(|turns| {
        let mine = open(&path)?;
        turns.wait(1)?;
        fails!(EAGAIN, fcntl(mine.as_raw_fd(), F_SETLEASE, F_WRLCK));
        turns.done(1);
        turns.wait(2)?;
        ok!(fcntl(mine.as_raw_fd(), F_SETLEASE, F_WRLCK));
        ok!(fcntl(mine.as_raw_fd(), F_SETLEASE, F_UNLCK));
        turns.done(2);
        Ok(())
    })?;
    let fd = open(&path)?;
    read_n(&fd, 10)?;
    outside.turn(1, 0);
    shut(fd)?;
    let fd = open(&path)?;
    read_n(&fd, 10)?;
    shut(fd)?;
    outside.turn(2, 0);
    outside.ends()
}

fn a_mount_is_free_once_it_is_closed() -> Outcome {
    const CASE: &str = "a_mount_is_free_once_it_is_closed";
    let all = text(SIZE);
    file(CASE, 0)?;
    ok!(mkdir(c("m").as_ptr(), 0o755));
    let (from, at) = (c(&format!("/lower/{CASE}")), c("m"));
    let (none, bind) = (std::ptr::null(), MS_BIND);
    if unsafe { mount(from.as_ptr(), at.as_ptr(), none, bind, none.cast()) } != 0 {
        skip!("no mounts here: errno {}", errno());
    }
    let outside = Outside::new(|turns| {
        turns.wait(1)?;
        fails!(EBUSY, umount2(at.as_ptr(), 0));
        turns.done(1);
        turns.wait(2)?;
        ok!(umount2(at.as_ptr(), 0));
        turns.done(2);
        Ok(())
    })?;
    let fd = open("m/f0")?;
    same!(read_n(&fd, 10)?, all[..10]);
    outside.turn(1, 0);
    same!(read_n(&fd, 10)?, all[10..20]);
    shut(fd)?;
    let fd = open("m/f1")?;
    same!(read_n(&fd, 10)?, all[..10]);
    shut(fd)?;
    outside.turn(2, 0);
    outside.ends()
}

fn numbers_are_used_again() -> Outcome {
    let path = file("numbers_are_used_again", 0)?;
    let all = text(SIZE);
    for _ in 0..5 {
        let a = open(&path)?;
        read_n(&a, 10)?;
        let first = a.as_raw_fd();
        let b = open(&path)?;
        read_n(&b, 20)?;
        let second = b.as_raw_fd();
        want!(second > first, "{first} {second}");
        shut(a)?;
        shut(b)?;
        let (rd, wr) = sys::pipe()?;
        same!((rd.as_raw_fd(), wr.as_raw_fd()), (first, second));
        shut(rd)?;
        shut(wr)?;
        let a = open(&path)?;
        same!(a.as_raw_fd(), first);
        same!(read_n(&a, 10)?, all[..10]);
        shut(a)?;
        let twin = sys::own(ok!(dup(2)));
        same!(twin.as_raw_fd(), first);
        same!(ok!(fcntl(first, F_GETFD)), 0);
    }
    Ok(())
}

fn closed_is_closed() -> Outcome {
    let path = file("closed_is_closed", 0)?;
    let mut buf = [0_u8; 200];
    for turn in 0..8 {
        let fd = open(&path)?;
        read_n(&fd, 10)?;
        let number = fd.as_raw_fd();
        std::mem::forget(fd);
        ok!(close(number));
        match turn {
            0 => fails!(EBADF, close(number)),
            1 => fails!(EBADF, read(number, buf.as_mut_ptr().cast(), 10)),
            2 => fails!(EBADF, lseek(number, 0, SEEK_CUR)),
            3 => fails!(EBADF, syscall(SYS_fstat, number, buf.as_mut_ptr())),
            4 => fails!(EBADF, fcntl(number, F_GETFL)),
            5 => fails!(EBADF, dup(number)),
            6 => fails!(EBADF, ioctl(number, TCGETS, buf.as_mut_ptr())),
            _ => fails!(EBADF, pread(number, buf.as_mut_ptr().cast(), 10, 0)),
        };
        fails!(EBADF, close(number));
    }
    Ok(())
}

fn descriptors_are_counted() -> Outcome {
    let path = file("descriptors_are_counted", 0)?;
    let fd = open(&path)?;
    let limit = rlimit { rlim_cur: fd.as_raw_fd() as u64 + 1, rlim_max: 1000 };
    shut(fd)?;
    ok!(setrlimit(RLIMIT_NOFILE, &raw const limit));
    for _ in 0..5 {
        let fd = open(&path)?;
        read_n(&fd, 10)?;
        fails!(EMFILE, libc::open(c(&path).as_ptr(), O_RDONLY));
        shut(fd)?;
    }
    Ok(())
}

fn reads_are_counted() -> Outcome {
    let path = file("reads_are_counted", 0)?;
    let counted = || -> Result<[u64; 2], String> {
        let io = sys::slurp("/proc/self/io")?;
        let of = |name: &str| io.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        match (of("rchar:"), of("syscr:")) {
            (Some(chars), Some(calls)) => Ok([chars, calls]),
            _ => Err(io),
        }
    };
    counted()?;
    let [a, b] = [counted()?, counted()?];
    let fd = open(&path)?;
    read_n(&fd, 10)?;
    read_n(&fd, SIZE)?;
    read_n(&fd, SIZE)?;
    shut(fd)?;
    let last = counted()?;
    // What looking costs is taken off: the lengths of the two texts may differ by a digit.
    let (chars, calls) = (last[0] - b[0] - (b[0] - a[0]), last[1] - b[1] - (b[1] - a[1]));
    want!(chars.abs_diff(SIZE as u64) < 5, "{chars} bytes");
    same!(calls, 3);
    Ok(())
}

fn a_filter_sees_each_call() -> Outcome {
    let path = file("a_filter_sees_each_call", 0)?;
    let fd = open(&path)?;
    read_n(&fd, 10)?;
    by_fd(&fd)?;
    for (turn, call) in [SYS_lseek, SYS_newfstatat, SYS_fstat, SYS_close].into_iter().enumerate() {
        install(&only(call, SECCOMP_RET_ERRNO | (50 + turn as u32)))?;
        let fd = open(&path)?;
        read_n(&fd, 10)?;
        let mut st = unsafe { std::mem::zeroed::<libc::stat>() };
        let number = fd.as_raw_fd();
        let answers = unsafe {
            [
                (lseek(number, 0, SEEK_CUR), errno()).1,
                (syscall(SYS_newfstatat, number, c"".as_ptr(), &raw mut st, AT_EMPTY_PATH), errno()).1,
                (syscall(SYS_fstat, number, &raw mut st), errno()).1,
                (close(number), errno()).1,
            ]
        };
        std::mem::forget(fd);
        same!(answers[turn], 50 + turn as i32);
    }
    Ok(())
}

fn another_user_is_told_the_same() -> Outcome {
    let all = text(SIZE);
    let path = file("another_user_is_told_the_same", 0)?;
    let fd = open(&path)?;
    let before = by_fd(&fd)?;
    same!(read_n(&fd, 10)?, all[..10]);
    ok!(setgid(99));
    ok!(setuid(99));
    same!(by_fd(&fd)?, before);
    same!(read_n(&fd, 10)?, all[10..20]);
    Ok(())
}

fn many_files_one_after_the_other() -> Outcome {
    let all = text(SIZE);
    for turn in 0..200 {
        let path = file("many_files_one_after_the_other", turn % 24)?;
        let fd = open(&path)?;
        same!(by_fd(&fd)?.5, SIZE as i64);
        // Some are read, some are not, some are left open for a while.
        if turn % 40 < 20 {
            same!(read_n(&fd, SIZE + 1)?, all);
            same!(read_n(&fd, 1)?, b"");
        }
        let next = open(&path)?;
        same!(read_n(&next, 7)?, all[..7]);
        shut(fd)?;
        same!(read_n(&next, 7)?, all[7..14]);
    }
    Ok(())
}
