//! openat2(2): `RESOLVE_*` and the checks of `struct open_how`; open(2) flags at their edges.

use crate::harness::Outcome;
use crate::sys::{self, c, put};
use libc::*;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

cases![
    beneath_refuses_dotdot_and_absolute,
    beneath_allows_dotdot_that_stays,
    beneath_checks_links,
    in_root_confines_links_and_dotdot,
    no_symlinks_refuses_all_links,
    no_magiclinks_refuses_proc_links,
    no_xdev_refuses_mounts,
    cached_is_eagain_or_the_file,
    sizes_of_the_structure,
    unknown_bits_are_einval,
    mode_without_create_is_einval,
    path_flag_allows_few_others,
    beneath_and_in_root_exclude_each_other,
    descriptor_base_is_needed,
    tmpfile_through_openat2,
    openat_ignores_unknown_flags,
    access_mode_three,
    nofollow_and_path,
    creat_in_a_read_only_place,
    create_through_a_dangling_link,
    creat_on_a_directory,
    directory_and_create,
    noatime_needs_the_owner,
    trunc_with_read_only_access,
    excl_without_creat,
    o_path_descriptor_limits,
    o_path_of_a_link_reads_it,
    reopen_through_proc_self_fd,
    open_of_a_socket_is_enxio,
    fifo_and_device_flags,
    create_mode_bits,
    tmpfile_errors,
    tmpfile_linked_through_proc,
    tmpfile_excl_cannot_be_linked,
];

#[repr(C)]
#[derive(Default)]
struct How {
    flags: u64,
    mode: u64,
    resolve: u64,
}

const NO_XDEV: u64 = 1;
const NO_MAGICLINKS: u64 = 2;
const NO_SYMLINKS: u64 = 4;
const BENEATH: u64 = 8;
const IN_ROOT: u64 = 16;
const CACHED: u64 = 32;

fn raw(dir: i32, path: &str, how: &How, size: usize) -> i64 {
    let r = unsafe { syscall(SYS_openat2, dir, c(path).as_ptr(), std::ptr::from_ref(how), size) };
    if r >= 0 {
        unsafe { close(r as i32) };
    }
    r
}

fn resolve(dir: &OwnedFd, path: &str, resolve: u64) -> i64 {
    raw(dir.as_raw_fd(), path, &How { flags: O_RDONLY as u64, mode: 0, resolve }, 24)
}

fn tree() -> Result<OwnedFd, String> {
    ok!(mkdir(c("d").as_ptr(), 0o755));
    ok!(mkdir(c("d/e").as_ptr(), 0o755));
    put("d/f", b"inside")?;
    put("out", b"outside")?;
    ok!(symlink(c("f").as_ptr(), c("d/to-f").as_ptr()));
    ok!(symlink(c("../out").as_ptr(), c("d/to-out").as_ptr()));
    ok!(symlink(c("/f").as_ptr(), c("d/to-root").as_ptr()));
    ok!(symlink(c("../f").as_ptr(), c("d/e/up").as_ptr()));
    sys::open("d", O_RDONLY | O_DIRECTORY)
}

fn beneath_refuses_dotdot_and_absolute() -> Outcome {
    let d = tree()?;
    fails!(EXDEV, resolve(&d, "..", BENEATH));
    fails!(EXDEV, resolve(&d, "../out", BENEATH));
    fails!(EXDEV, resolve(&d, "/etc", BENEATH));
    fails!(EXDEV, resolve(&d, "e/../../out", BENEATH));
    Ok(())
}

fn beneath_allows_dotdot_that_stays() -> Outcome {
    let d = tree()?;
    ok!(resolve(&d, "e/../f", BENEATH));
    ok!(resolve(&d, "./e/./../e/..", BENEATH));
    Ok(())
}

fn beneath_checks_links() -> Outcome {
    let d = tree()?;
    ok!(resolve(&d, "to-f", BENEATH));
    ok!(resolve(&d, "e/up", BENEATH));
    fails!(EXDEV, resolve(&d, "to-out", BENEATH));
    fails!(EXDEV, resolve(&d, "to-root", BENEATH));
    Ok(())
}

fn in_root_confines_links_and_dotdot() -> Outcome {
    let d = tree()?;
    ok!(resolve(&d, "/f", IN_ROOT));
    ok!(resolve(&d, "../../../f", IN_ROOT));
    ok!(resolve(&d, "to-root", IN_ROOT));
    fails!(ENOENT, resolve(&d, "to-out", IN_ROOT));
    fails!(ENOENT, resolve(&d, "/out", IN_ROOT));
    Ok(())
}

fn no_symlinks_refuses_all_links() -> Outcome {
    let d = tree()?;
    ok!(resolve(&d, "f", NO_SYMLINKS));
    fails!(ELOOP, resolve(&d, "to-f", NO_SYMLINKS));
    ok!(symlink(c("e").as_ptr(), c("d/dir").as_ptr()));
    fails!(ELOOP, resolve(&d, "dir/up", NO_SYMLINKS));
    fails!(ELOOP, resolve(&d, "to-f/", NO_SYMLINKS));
    Ok(())
}

fn no_magiclinks_refuses_proc_links() -> Outcome {
    let d = tree()?;
    let path = format!("/proc/self/fd/{}", d.as_raw_fd());
    ok!(resolve(&d, &path, 0));
    fails!(ELOOP, resolve(&d, &path, NO_MAGICLINKS));
    fails!(ELOOP, resolve(&d, &format!("{path}/f"), NO_MAGICLINKS));
    fails!(ELOOP, resolve(&d, "/proc/self/exe", NO_MAGICLINKS));
    // An ordinary link is none of them.
    ok!(resolve(&d, "to-f", NO_MAGICLINKS));
    Ok(())
}

fn no_xdev_refuses_mounts() -> Outcome {
    let d = tree()?;
    let root = sys::open("/", O_RDONLY)?;
    ok!(resolve(&d, "f", NO_XDEV));
    fails!(EXDEV, resolve(&root, "proc/self", NO_XDEV));
    let proc = sys::open("/proc", O_RDONLY)?;
    fails!(EXDEV, resolve(&proc, "..", NO_XDEV));
    ok!(resolve(&proc, "self/stat", NO_XDEV));
    Ok(())
}

fn cached_is_eagain_or_the_file() -> Outcome {
    let d = tree()?;
    sys::stat("d/f")?;
    // EAGAIN is allowed, and tells nothing but that somebody has to be asked.
    let r = resolve(&d, "f", CACHED);
    want!(r >= 0 || crate::harness::errno() == EAGAIN, "errno {}", crate::harness::errno());
    let how = How { flags: (O_RDWR | O_CREAT) as u64, mode: 0o600, resolve: CACHED };
    fails!(EAGAIN, raw(d.as_raw_fd(), "new", &how, 24));
    let how = How { flags: (O_RDWR | O_TRUNC) as u64, mode: 0, resolve: CACHED };
    fails!(EAGAIN, raw(d.as_raw_fd(), "f", &how, 24));
    Ok(())
}

fn sizes_of_the_structure() -> Outcome {
    let d = tree()?;
    let mut big = [0u64; 8];
    let call = |big: &[u64; 8], size: usize| {
        let r = unsafe { syscall(SYS_openat2, d.as_raw_fd(), c"f".as_ptr(), big.as_ptr(), size) };
        if r >= 0 {
            unsafe { close(r as i32) };
        }
        r
    };
    fails!(EINVAL, call(&big, 0));
    fails!(EINVAL, call(&big, 23));
    ok!(call(&big, 24));
    ok!(call(&big, 32));
    ok!(call(&big, 64));
    big[4] = 1;
    fails!(E2BIG, call(&big, 40));
    ok!(call(&big, 32));
    fails!(E2BIG, call(&big, 5000));
    fails!(EFAULT, syscall(SYS_openat2, d.as_raw_fd(), c"f".as_ptr(), 8usize, 24usize));
    Ok(())
}

fn unknown_bits_are_einval() -> Outcome {
    let d = tree()?;
    fails!(EINVAL, raw(d.as_raw_fd(), "f", &How { flags: 1 << 40, ..How::default() }, 24));
    fails!(EINVAL, raw(d.as_raw_fd(), "f", &How { flags: 1 << 30, ..How::default() }, 24));
    fails!(EINVAL, raw(d.as_raw_fd(), "f", &How { resolve: 1 << 20, ..How::default() }, 24));
    let how = How { flags: (O_CREAT | O_RDWR) as u64, mode: 0o20000, resolve: 0 };
    fails!(EINVAL, raw(d.as_raw_fd(), "new", &how, 24));
    Ok(())
}

fn mode_without_create_is_einval() -> Outcome {
    let d = tree()?;
    fails!(EINVAL, raw(d.as_raw_fd(), "f", &How { mode: 0o600, ..How::default() }, 24));
    Ok(())
}

fn path_flag_allows_few_others() -> Outcome {
    let d = tree()?;
    let how = |extra: i32| How { flags: (O_PATH | extra) as u64, ..How::default() };
    ok!(raw(d.as_raw_fd(), "e", &how(O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC), 24));
    fails!(EINVAL, raw(d.as_raw_fd(), "f", &how(O_RDWR), 24));
    fails!(EINVAL, raw(d.as_raw_fd(), "f", &how(O_NONBLOCK), 24));
    Ok(())
}

fn beneath_and_in_root_exclude_each_other() -> Outcome {
    let d = tree()?;
    fails!(EINVAL, resolve(&d, "f", BENEATH | IN_ROOT));
    Ok(())
}

fn descriptor_base_is_needed() -> Outcome {
    let d = tree()?;
    fails!(EBADF, raw(99, "f", &How::default(), 24));
    fails!(ENOTDIR, raw(sys::open("out", O_RDONLY)?.as_raw_fd(), "f", &How::default(), 24));
    // Confined walks need the base for an absolute path too.
    fails!(EBADF, raw(99, "/f", &How { resolve: IN_ROOT, ..How::default() }, 24));
    ok!(raw(99, "/", &How::default(), 24));
    drop(d);
    Ok(())
}

fn tmpfile_through_openat2() -> Outcome {
    let how = How { flags: (O_TMPFILE | O_RDWR) as u64, mode: 0o600, resolve: 0 };
    ok!(raw(AT_FDCWD, ".", &how, 24));
    let how = How { flags: (O_TMPFILE | O_RDONLY) as u64, mode: 0o600, resolve: 0 };
    fails!(EINVAL, raw(AT_FDCWD, ".", &how, 24));
    Ok(())
}

fn openat_ignores_unknown_flags() -> Outcome {
    put("f", b"")?;
    let fd = ok!(open(c("f").as_ptr(), O_RDONLY | 1 << 30));
    same!(ok!(fcntl(fd, F_GETFL)) & (1 << 30), 0);
    Ok(())
}

fn access_mode_three() -> Outcome {
    put("f", b"abc")?;
    // Needs read and write permission, and gives a descriptor for ioctl alone.
    let fd = sys::own(ok!(open(c("f").as_ptr(), 3)));
    let mut buf = [0u8; 4];
    fails!(EBADF, read(fd.as_raw_fd(), buf.as_mut_ptr().cast(), 1));
    fails!(EBADF, write(fd.as_raw_fd(), buf.as_ptr().cast(), 1));
    ok!(chmod(c("f").as_ptr(), 0o444));
    sys::fork(|| {
        sys::drop_root()?;
        fails!(EACCES, open(c("f").as_ptr(), 3));
        Ok(())
    })?
    .ok()
}

fn nofollow_and_path() -> Outcome {
    put("f", b"")?;
    ok!(symlink(c("f").as_ptr(), c("l").as_ptr()));
    fails!(ELOOP, open(c("l").as_ptr(), O_RDONLY | O_NOFOLLOW));
    fails!(ENOTDIR, open(c("l").as_ptr(), O_RDONLY | O_NOFOLLOW | O_DIRECTORY));
    let fd = sys::own(ok!(open(c("l").as_ptr(), O_PATH | O_NOFOLLOW)));
    same!(sys::fstat(&fd)?.st_mode & S_IFMT, S_IFLNK);
    Ok(())
}

fn creat_in_a_read_only_place() -> Outcome {
    ok!(mkdir(c("d").as_ptr(), 0o555));
    sys::fork(|| {
        sys::drop_root()?;
        fails!(EACCES, open(c("d/f").as_ptr(), O_CREAT | O_RDWR, 0o600));
        fails!(EACCES, open(c("d").as_ptr(), O_TMPFILE | O_RDWR, 0o600));
        Ok(())
    })?
    .ok()
}

fn create_through_a_dangling_link() -> Outcome {
    ok!(symlink(c("d/none").as_ptr(), c("l").as_ptr()));
    fails!(ENOENT, open(c("l").as_ptr(), O_CREAT | O_RDWR, 0o600));
    ok!(mkdir(c("d").as_ptr(), 0o755));
    sys::own(ok!(open(c("l").as_ptr(), O_CREAT | O_RDWR, 0o600)));
    sys::stat("d/none")?;
    Ok(())
}

fn creat_on_a_directory() -> Outcome {
    ok!(mkdir(c("d").as_ptr(), 0o755));
    fails!(EISDIR, open(c("d").as_ptr(), O_CREAT | O_RDONLY, 0o600));
    fails!(EISDIR, open(c("d").as_ptr(), O_WRONLY));
    fails!(EISDIR, open(c("d").as_ptr(), O_RDONLY | O_TRUNC));
    fails!(EISDIR, open(c("new/").as_ptr(), O_CREAT | O_RDWR, 0o600));
    fails!(EEXIST, open(c("d").as_ptr(), O_CREAT | O_EXCL | O_RDWR, 0o600));
    fails!(EISDIR, open(c(".").as_ptr(), O_CREAT | O_RDWR, 0o600));
    Ok(())
}

fn directory_and_create() -> Outcome {
    let r = unsafe { open(c("new").as_ptr(), O_CREAT | O_DIRECTORY | O_RDONLY, 0o600) };
    want!(r < 0 && crate::harness::errno() == EINVAL, "{r}");
    fails!(ENOENT, access(c("new").as_ptr(), F_OK));
    put("f", b"")?;
    fails!(ENOTDIR, open(c("f").as_ptr(), O_RDONLY | O_DIRECTORY));
    fails!(ENOTDIR, open(c("f/").as_ptr(), O_RDONLY));
    fails!(ENOTDIR, open(c("f/x").as_ptr(), O_RDONLY));
    Ok(())
}

fn noatime_needs_the_owner() -> Outcome {
    put("f", b"")?;
    sys::own(ok!(open(c("f").as_ptr(), O_RDONLY | O_NOATIME)));
    sys::fork(|| {
        sys::drop_root()?;
        fails!(EPERM, open(c("f").as_ptr(), O_RDONLY | O_NOATIME));
        Ok(())
    })?
    .ok()
}

fn trunc_with_read_only_access() -> Outcome {
    put("f", b"abc")?;
    ok!(chmod(c("f").as_ptr(), 0o444));
    sys::fork(|| {
        sys::drop_root()?;
        fails!(EACCES, open(c("f").as_ptr(), O_RDONLY | O_TRUNC));
        Ok(())
    })?
    .ok()?;
    same!(sys::stat("f")?.st_size, 3);
    sys::own(ok!(open(c("f").as_ptr(), O_RDONLY | O_TRUNC)));
    same!(sys::stat("f")?.st_size, 0);
    Ok(())
}

fn excl_without_creat() -> Outcome {
    put("f", b"")?;
    sys::own(ok!(open(c("f").as_ptr(), O_RDONLY | O_EXCL)));
    Ok(())
}

fn o_path_descriptor_limits() -> Outcome {
    put("f", b"abc")?;
    let fd = sys::open("f", O_PATH)?;
    let n = fd.as_raw_fd();
    let mut buf = [0u8; 8];
    fails!(EBADF, read(n, buf.as_mut_ptr().cast(), 1));
    fails!(EBADF, ftruncate(n, 0));
    fails!(EBADF, fchmod(n, 0o600));
    fails!(EBADF, fchown(n, 0, 0));
    fails!(EBADF, fsync(n));
    fails!(EBADF, lseek(n, 0, SEEK_SET));
    fails!(EBADF, ioctl(n, FIONREAD, buf.as_mut_ptr()));
    fails!(EBADF, mmap(std::ptr::null_mut(), 4096, PROT_READ, MAP_PRIVATE, n, 0));
    same!(sys::fstat(&fd)?.st_size, 3);
    same!(ok!(fcntl(n, F_GETFL)) & O_PATH, O_PATH);
    let copy = sys::own(ok!(dup(n)));
    same!(ok!(fcntl(copy.as_raw_fd(), F_GETFL)) & O_PATH, O_PATH);
    // Not even the permission to read the file was needed.
    ok!(chmod(c("f").as_ptr(), 0));
    sys::fork(|| {
        sys::drop_root()?;
        sys::open("f", O_PATH)?;
        Ok(())
    })?
    .ok()
}

fn o_path_of_a_link_reads_it() -> Outcome {
    ok!(symlink(c("somewhere").as_ptr(), c("l").as_ptr()));
    let fd = sys::own(ok!(open(c("l").as_ptr(), O_PATH | O_NOFOLLOW)));
    let mut buf = [0u8; 32];
    same!(ok!(readlinkat(fd.as_raw_fd(), c("").as_ptr(), buf.as_mut_ptr().cast(), 32)), 9);
    same!(&buf[..9], b"somewhere");
    put("f", b"")?;
    let file = sys::open("f", O_PATH)?;
    fails!(ENOENT, readlinkat(file.as_raw_fd(), c("").as_ptr(), buf.as_mut_ptr().cast(), 32));
    fails!(EINVAL, readlink(c("f").as_ptr(), buf.as_mut_ptr().cast(), 32));
    fails!(EINVAL, readlink(c("l").as_ptr(), buf.as_mut_ptr().cast(), 0));
    same!(ok!(readlink(c("l").as_ptr(), buf.as_mut_ptr().cast(), 4)), 4);
    Ok(())
}

fn reopen_through_proc_self_fd() -> Outcome {
    put("f", b"abc")?;
    let fd = sys::open("f", O_RDONLY)?;
    ok!(unlink(c("f").as_ptr()));
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let again = sys::open(&path, O_RDWR)?;
    sys::fd_write(&again, b"x")?;
    same!(sys::fd_read(&fd, 8)?, b"xbc".to_vec());
    let p = sys::open(".", O_PATH)?;
    let full = sys::open(&format!("/proc/self/fd/{}", p.as_raw_fd()), O_RDONLY)?;
    same!(sys::fstat(&full)?.st_ino, sys::stat(".")?.st_ino);
    Ok(())
}

fn open_of_a_socket_is_enxio() -> Outcome {
    let s = sys::own(ok!(socket(AF_UNIX, SOCK_STREAM, 0)));
    let mut addr: sockaddr_un = unsafe { std::mem::zeroed() };
    addr.sun_family = AF_UNIX as u16;
    addr.sun_path[0] = b's' as c_char;
    if unsafe { bind(s.as_raw_fd(), (&raw const addr).cast(), 4) } != 0 {
        skip!("bind: {}", crate::harness::errno_name(crate::harness::errno()));
    }
    fails!(ENXIO, open(c("s").as_ptr(), O_RDWR));
    sys::open("s", O_PATH)?;
    Ok(())
}

fn fifo_and_device_flags() -> Outcome {
    ok!(mkfifo(c("p").as_ptr(), 0o600));
    fails!(ENXIO, open(c("p").as_ptr(), O_WRONLY | O_NONBLOCK));
    let r = sys::open("p", O_RDONLY | O_NONBLOCK)?;
    same!(ok!(fcntl(r.as_raw_fd(), F_GETFL)) & (O_NONBLOCK | O_ACCMODE), O_NONBLOCK | O_RDONLY);
    fails!(ENOTDIR, open(c("p").as_ptr(), O_RDONLY | O_DIRECTORY | O_NONBLOCK));
    Ok(())
}

fn create_mode_bits() -> Outcome {
    unsafe { umask(0) };
    let fd = sys::own(ok!(open(c("f").as_ptr(), O_CREAT | O_RDWR, 0o7777)));
    same!(sys::fstat(&fd)?.st_mode & 0o7777, 0o7777);
    // What has no permission for its owner can be written by who made it.
    let fd = sys::own(ok!(open(c("g").as_ptr(), O_CREAT | O_RDWR, 0)));
    same!(sys::fd_write(&fd, b"x")?, 1);
    Ok(())
}

fn tmpfile_errors() -> Outcome {
    put("f", b"")?;
    fails!(ENOTDIR, open(c("f").as_ptr(), O_TMPFILE | O_RDWR, 0o600));
    fails!(ENOENT, open(c("none").as_ptr(), O_TMPFILE | O_RDWR, 0o600));
    fails!(EINVAL, open(c(".").as_ptr(), O_TMPFILE | O_RDONLY, 0o600));
    fails!(EINVAL, open(c(".").as_ptr(), O_TMPFILE | O_RDWR | O_CREAT, 0o600));
    let fd = sys::own(ok!(open(c(".").as_ptr(), O_TMPFILE | O_RDWR, 0o640)));
    let st = sys::fstat(&fd)?;
    same!((st.st_nlink, st.st_mode & 0o7777), (0, 0o640));
    Ok(())
}

fn tmpfile_linked_through_proc() -> Outcome {
    let fd = sys::own(ok!(open(c(".").as_ptr(), O_TMPFILE | O_RDWR, 0o600)));
    sys::fd_write(&fd, b"data")?;
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    ok!(linkat(AT_FDCWD, c(&path).as_ptr(), AT_FDCWD, c("named").as_ptr(), AT_SYMLINK_FOLLOW));
    same!(sys::slurp("named")?, "data");
    same!(sys::fstat(&fd)?.st_nlink, 1);
    ok!(linkat(fd.as_raw_fd(), c("").as_ptr(), AT_FDCWD, c("again").as_ptr(), AT_EMPTY_PATH));
    same!(sys::fstat(&fd)?.st_nlink, 2);
    Ok(())
}

fn tmpfile_excl_cannot_be_linked() -> Outcome {
    let fd = unsafe { OwnedFd::from_raw_fd(ok!(open(c(".").as_ptr(), O_TMPFILE | O_RDWR | O_EXCL, 0o600))) };
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    fails!(ENOENT, linkat(AT_FDCWD, c(&path).as_ptr(), AT_FDCWD, c("named").as_ptr(), AT_SYMLINK_FOLLOW));
    Ok(())
}
