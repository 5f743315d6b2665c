//! The limits of an IPC namespace in `/proc/sys`: what they say, take and do. Each case sets those of a namespace of its own.

use std::fs;

use crate::harness::Outcome;
use crate::sys::{self, fork};
use libc::*;

cases![
    first_values,
    what_a_limit_takes,
    shm_limits_hold,
    msg_limits_hold,
    sem_limits_hold,
    mqueue_limits_hold,
    mqueue_defaults_hold,
    a_namespace_has_its_own,
    only_the_owner_sets_them,
    forced_segment_ends_with_its_last_detach,
    forced_segment_ends_with_its_maker,
    forced_segment_of_a_living_maker_stays,
    forcing_ends_what_nobody_has,
    forced_segment_ends_with_its_makers_thread,
];

const KERNEL: &str = "/proc/sys/kernel/";
const MQUEUE: &str = "/proc/sys/fs/mqueue/";

fn read(name: &str) -> Result<String, String> {
    fs::read_to_string(name).map_err(|e| format!("{name}: {e}"))
}

fn set(name: &str, value: &str) -> Result<(), String> {
    fs::write(name, value).map_err(|e| format!("{name} = {value:?}: {e}"))
}

/// The error of setting a limit; 0 for none.
fn refusal(name: &str, value: &str) -> i32 {
    fs::write(name, value).err().map_or(0, |e| e.raw_os_error().unwrap_or(-1))
}

/// Runs `body` in an IPC namespace of its own.
fn apart(body: impl FnOnce() -> Outcome) -> Outcome {
    fork(|| {
        ok!(unshare(CLONE_NEWIPC));
        body()
    })?
    .ok()
}

fn kernel(name: &str) -> String {
    format!("{KERNEL}{name}")
}

fn mqueue(name: &str) -> String {
    format!("{MQUEUE}{name}")
}

fn first_values() -> Outcome {
    apart(|| {
        for (name, value) in [
            ("shmmax", "18446744073692774399\n"),
            ("shmall", "18446744073692774399\n"),
            ("shmmni", "4096\n"),
            ("shm_rmid_forced", "0\n"),
            ("msgmax", "8192\n"),
            ("msgmnb", "16384\n"),
            ("msgmni", "32000\n"),
            ("sem", "32000\t1024000000\t500\t32000\n"),
        ] {
            same!(read(&kernel(name))?, value);
        }
        for (name, value) in [
            ("queues_max", "256\n"),
            ("msg_max", "10\n"),
            ("msgsize_max", "8192\n"),
            ("msg_default", "10\n"),
            ("msgsize_default", "8192\n"),
        ] {
            same!(read(&mqueue(name))?, value);
        }
        Ok(())
    })
}

fn what_a_limit_takes() -> Outcome {
    apart(|| {
        let shmmni = kernel("shmmni");
        set(&shmmni, "  77 \n")?;
        same!(read(&shmmni)?, "77\n");
        set(&shmmni, "0x10\n")?;
        same!(read(&shmmni)?, "16\n");
        for wrong in ["-1", "32769", "x"] {
            same!(refusal(&shmmni, wrong), EINVAL);
        }
        same!(read(&shmmni)?, "16\n");
        same!(refusal(&kernel("shm_rmid_forced"), "2"), EINVAL);
        same!(refusal(&mqueue("msg_max"), "0"), EINVAL);
        same!(refusal(&mqueue("msg_max"), "65537"), EINVAL);
        same!(refusal(&mqueue("msgsize_max"), "127"), EINVAL);
        set(&mqueue("msgsize_max"), "16777216")?;
        // What is not named stays.
        set(&kernel("sem"), "100 200")?;
        same!(read(&kernel("sem"))?, "100\t200\t500\t32000\n");
        set(&kernel("sem"), "1\t2\t3\t4\n")?;
        same!(read(&kernel("sem"))?, "1\t2\t3\t4\n");
        Ok(())
    })
}

fn shm_limits_hold() -> Outcome {
    apart(|| {
        set(&kernel("shmmax"), "8192")?;
        fails!(EINVAL, shmget(IPC_PRIVATE, 8193, 0o600));
        ok!(shmget(IPC_PRIVATE, 8192, 0o600));
        // Two pages of three are taken.
        set(&kernel("shmall"), "3")?;
        fails!(ENOSPC, shmget(IPC_PRIVATE, 8192, 0o600));
        ok!(shmget(IPC_PRIVATE, 4096, 0o600));
        set(&kernel("shmall"), "100")?;
        set(&kernel("shmmni"), "2")?;
        fails!(ENOSPC, shmget(IPC_PRIVATE, 1, 0o600));
        let mut info: [u64; 16] = [0; 16];
        ok!(shmctl(0, IPC_INFO, info.as_mut_ptr().cast()));
        same!((info[0], info[2], info[4]), (8192, 2, 100));
        Ok(())
    })
}

fn msg_limits_hold() -> Outcome {
    apart(|| {
        let text = [0_u64, 0, 0, 0, 0, 0, 0, 0, 0].map(|_| 1_u64);
        set(&kernel("msgmnb"), "50")?;
        let id = ok!(msgget(IPC_PRIVATE, 0o600));
        let mut ds: msqid_ds = unsafe { std::mem::zeroed() };
        ok!(msgctl(id, IPC_STAT, &raw mut ds));
        same!(ds.msg_qbytes, 50);
        ok!(msgsnd(id, text.as_ptr().cast(), 40, IPC_NOWAIT));
        fails!(EAGAIN, msgsnd(id, text.as_ptr().cast(), 40, IPC_NOWAIT));
        set(&kernel("msgmax"), "16")?;
        fails!(EINVAL, msgsnd(id, text.as_ptr().cast(), 17, IPC_NOWAIT));
        set(&kernel("msgmni"), "1")?;
        fails!(ENOSPC, msgget(IPC_PRIVATE, 0o600));
        Ok(())
    })
}

fn sem_limits_hold() -> Outcome {
    apart(|| {
        set(&kernel("sem"), "10 14 2 2")?;
        fails!(EINVAL, semget(IPC_PRIVATE, 11, 0o600));
        let id = ok!(semget(IPC_PRIVATE, 10, 0o600));
        fails!(ENOSPC, semget(IPC_PRIVATE, 5, 0o600));
        let mut ops = [sembuf { sem_num: 0, sem_op: 1, sem_flg: 0 }; 3];
        fails!(E2BIG, semop(id, ops.as_mut_ptr(), 3));
        ok!(semop(id, ops.as_mut_ptr(), 2));
        ok!(semget(IPC_PRIVATE, 4, 0o600));
        fails!(ENOSPC, semget(IPC_PRIVATE, 1, 0o600));
        Ok(())
    })
}

/// `mq_open` of a queue that may not be there, with room for messages of a size if there is any.
fn open_queue(name: &str, attr: Option<(i64, i64)>) -> i64 {
    let name = sys::c(name);
    let attr = attr.map(|(max, size)| [0, max, size, 0, 0, 0, 0, 0]);
    let at = attr.as_ref().map_or(std::ptr::null(), |a| a.as_ptr());
    unsafe { syscall(SYS_mq_open, name.as_ptr(), O_RDWR | O_CREAT | O_EXCL, 0o600, at) }
}

fn become_ordinary() -> Outcome {
    ok!(setresgid(1000, 1000, 1000));
    ok!(setresuid(1000, 1000, 1000));
    Ok(())
}

fn mqueue_limits_hold() -> Outcome {
    apart(|| {
        set(&mqueue("msg_max"), "20")?;
        set(&mqueue("msgsize_max"), "256")?;
        set(&mqueue("queues_max"), "2")?;
        become_ordinary()?;
        ok!(open_queue("a", Some((20, 256))));
        fails!(EINVAL, open_queue("b", Some((21, 256))));
        fails!(EINVAL, open_queue("b", Some((20, 257))));
        ok!(open_queue("b", Some((1, 1))));
        fails!(ENOSPC, open_queue("c", Some((1, 1))));
        Ok(())
    })
}

fn mqueue_defaults_hold() -> Outcome {
    apart(|| {
        let sizes = |fd: i64| -> Result<(i64, i64), String> {
            let mut attr = [0_i64; 8];
            ok!(syscall(SYS_mq_getsetattr, fd, std::ptr::null::<i64>(), attr.as_mut_ptr()));
            Ok((attr[1], attr[2]))
        };
        set(&mqueue("msg_default"), "3")?;
        set(&mqueue("msgsize_default"), "128")?;
        same!(sizes(ok!(open_queue("a", None)))?, (3, 128));
        // No more than the most, even to root.
        set(&mqueue("msg_default"), "100")?;
        set(&mqueue("msgsize_default"), "9000")?;
        same!(sizes(ok!(open_queue("b", None)))?, (10, 8192));
        Ok(())
    })
}

fn a_namespace_has_its_own() -> Outcome {
    apart(|| {
        set(&kernel("shmmni"), "5")?;
        set(&mqueue("msg_max"), "11")?;
        apart(|| {
            same!(read(&kernel("shmmni"))?, "4096\n");
            same!(read(&mqueue("msg_max"))?, "10\n");
            set(&kernel("shmmni"), "6")
        })?;
        same!(read(&kernel("shmmni"))?, "5\n");
        Ok(())
    })
}

fn only_the_owner_sets_them() -> Outcome {
    apart(|| {
        become_ordinary()?;
        same!(refusal(&kernel("shmmni"), "5"), EACCES);
        same!(refusal(&mqueue("msg_max"), "5"), EACCES);
        Ok(())
    })
}

fn force() -> Outcome {
    set(&kernel("shm_rmid_forced"), "1")
}

/// Whether there is no segment of this number.
fn is_gone(id: i32) -> bool {
    let mut ds: shmid_ds = unsafe { std::mem::zeroed() };
    unsafe { shmctl(id, IPC_STAT, &raw mut ds) < 0 }
}

fn forced_segment_ends_with_its_last_detach() -> Outcome {
    apart(|| {
        force()?;
        let id = ok!(shmget(IPC_PRIVATE, 4096, 0o600));
        let (a, b) = (ok!(shmat(id, std::ptr::null(), 0)), ok!(shmat(id, std::ptr::null(), 0)));
        ok!(shmdt(a));
        want!(!is_gone(id), "it has an attachment left");
        ok!(shmdt(b));
        want!(is_gone(id), "it is there without an attachment");
        fails!(EINVAL, shmat(id, std::ptr::null(), 0));
        Ok(())
    })
}

/// The number of a segment that a child makes, which has ended.
fn of_a_child(key: i32, attach: bool) -> Result<i32, String> {
    let (rd, wr) = sys::pipe()?;
    fork(|| {
        let id = ok!(shmget(key, 4096, 0o600 | IPC_CREAT));
        if attach {
            ok!(shmat(id, std::ptr::null(), 0));
        }
        sys::fd_write(&wr, &id.to_ne_bytes())?;
        Ok(())
    })?
    .ok()?;
    let id = sys::fd_read(&rd, 4)?;
    id.as_slice().try_into().map(i32::from_ne_bytes).map_err(|_| "short read".to_owned())
}

fn forced_segment_ends_with_its_maker() -> Outcome {
    apart(|| {
        force()?;
        let id = of_a_child(IPC_PRIVATE, false)?;
        sys::eventually("the segment ends", || is_gone(id))?;
        let id = of_a_child(77, true)?;
        sys::eventually("the attached segment ends", || is_gone(id))?;
        fails!(ENOENT, shmget(77, 0, 0));
        Ok(())
    })
}

fn forced_segment_of_a_living_maker_stays() -> Outcome {
    apart(|| {
        force()?;
        let id = ok!(shmget(IPC_PRIVATE, 4096, 0o600));
        // A child's end is not its maker's.
        fork(|| Ok(()))?.ok()?;
        want!(!is_gone(id), "its maker is there");
        ok!(shmctl(id, IPC_RMID, std::ptr::null_mut()));
        want!(is_gone(id), "it was removed");
        Ok(())
    })
}

fn forcing_ends_what_nobody_has() -> Outcome {
    apart(|| {
        let own = ok!(shmget(IPC_PRIVATE, 4096, 0o600));
        ok!(shmdt(ok!(shmat(own, std::ptr::null(), 0))));
        let orphan = of_a_child(IPC_PRIVATE, false)?;
        let attached = of_a_child(IPC_PRIVATE, false)?;
        let at = ok!(shmat(attached, std::ptr::null(), 0));
        want!(!is_gone(orphan), "nothing is forced yet");
        force()?;
        want!(is_gone(orphan), "nobody has it");
        want!(!is_gone(own), "its maker is there");
        want!(!is_gone(attached), "it is attached");
        ok!(shmdt(at));
        want!(is_gone(attached), "nobody has it any more");
        Ok(())
    })
}

fn forced_segment_ends_with_its_makers_thread() -> Outcome {
    apart(|| {
        force()?;
        let made = std::thread::spawn(|| unsafe { shmget(IPC_PRIVATE, 4096, 0o600) });
        let id = made.join().map_err(|_| "the thread panicked".to_owned())?;
        want!(id >= 0, "shmget: {id}");
        sys::eventually("the segment ends", || is_gone(id))
    })
}
