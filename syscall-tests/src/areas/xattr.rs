//! Extended attributes (xattr(7)) and access control lists as the calls treat them.

use crate::harness::Outcome;
use crate::sys::{self, c, put};
use libc::*;
use std::os::fd::AsRawFd;

cases![
    set_get_list_remove,
    create_and_replace_flags,
    sizes_are_asked_with_zero_length,
    short_buffers_are_erange,
    empty_value_is_a_value,
    names_must_have_a_known_namespace,
    long_names_are_erange,
    long_values_are_e2big,
    missing_attribute_is_enodata,
    links_carry_no_user_attributes,
    special_files_carry_no_user_attributes,
    trusted_needs_the_right,
    user_attributes_follow_the_mode,
    sticky_directory_attributes_belong_to_the_owner,
    by_descriptor,
    path_descriptors_are_ebadf,
    bad_pointers_are_efault,
    attributes_survive_rename_and_link,
    unlinked_file_keeps_its_attributes,
    list_has_every_name_with_its_nul,
    read_only_descriptor_may_set,
    setting_moves_ctime_alone,
    capability_attribute_goes_at_write,
    acl_names_without_acl_are_enodata_or_unsupported,
];

fn set(path: &str, name: &str, value: &[u8], flags: i32) -> c_int {
    unsafe { setxattr(c(path).as_ptr(), c(name).as_ptr(), value.as_ptr().cast(), value.len(), flags) }
}

fn get(path: &str, name: &str) -> Result<Vec<u8>, String> {
    let mut buf = vec![0u8; 70_000];
    let n = ok!(getxattr(c(path).as_ptr(), c(name).as_ptr(), buf.as_mut_ptr().cast(), buf.len()));
    buf.truncate(n as usize);
    Ok(buf)
}

fn get_raw(path: &str, name: &str) -> isize {
    let mut buf = [0u8; 256];
    unsafe { getxattr(c(path).as_ptr(), c(name).as_ptr(), buf.as_mut_ptr().cast(), buf.len()) }
}

fn names(path: &str) -> Result<Vec<String>, String> {
    let mut buf = vec![0u8; 70_000];
    let n = ok!(listxattr(c(path).as_ptr(), buf.as_mut_ptr().cast(), buf.len())) as usize;
    let mut out: Vec<String> = buf[..n]
        .split(|b| *b == 0)
        .filter(|n| n.starts_with(b"user.") || n.starts_with(b"trusted."))
        .map(|n| String::from_utf8_lossy(n).into_owned())
        .collect();
    out.sort();
    Ok(out)
}

fn set_get_list_remove() -> Outcome {
    put("f", b"")?;
    ok!(set("f", "user.a", b"one", 0));
    ok!(set("f", "user.b", b"two", 0));
    same!(get("f", "user.a")?, b"one".to_vec());
    same!(names("f")?, vec!["user.a".to_string(), "user.b".to_string()]);
    ok!(set("f", "user.a", b"other", 0));
    same!(get("f", "user.a")?, b"other".to_vec());
    ok!(removexattr(c("f").as_ptr(), c("user.a").as_ptr()));
    same!(names("f")?, vec!["user.b".to_string()]);
    Ok(())
}

fn create_and_replace_flags() -> Outcome {
    put("f", b"")?;
    fails!(ENODATA, set("f", "user.a", b"x", XATTR_REPLACE));
    ok!(set("f", "user.a", b"x", XATTR_CREATE));
    fails!(EEXIST, set("f", "user.a", b"y", XATTR_CREATE));
    ok!(set("f", "user.a", b"z", XATTR_REPLACE));
    same!(get("f", "user.a")?, b"z".to_vec());
    fails!(EINVAL, set("f", "user.a", b"z", 8));
    Ok(())
}

fn sizes_are_asked_with_zero_length() -> Outcome {
    put("f", b"")?;
    ok!(set("f", "user.a", b"12345", 0));
    let null = std::ptr::null_mut::<c_void>();
    same!(ok!(getxattr(c("f").as_ptr(), c("user.a").as_ptr(), null, 0)), 5);
    let n = ok!(listxattr(c("f").as_ptr(), null.cast(), 0));
    want!(n >= 7, "a list of {n} bytes");
    Ok(())
}

fn short_buffers_are_erange() -> Outcome {
    put("f", b"")?;
    ok!(set("f", "user.a", b"12345", 0));
    let mut buf = [0u8; 4];
    fails!(ERANGE, getxattr(c("f").as_ptr(), c("user.a").as_ptr(), buf.as_mut_ptr().cast(), 4));
    fails!(ERANGE, listxattr(c("f").as_ptr(), buf.as_mut_ptr().cast(), 4));
    Ok(())
}

fn empty_value_is_a_value() -> Outcome {
    put("f", b"")?;
    ok!(set("f", "user.empty", b"", 0));
    same!(get("f", "user.empty")?, Vec::<u8>::new());
    same!(names("f")?, vec!["user.empty".to_string()]);
    Ok(())
}

fn names_must_have_a_known_namespace() -> Outcome {
    put("f", b"")?;
    fails!(EOPNOTSUPP, set("f", "nothing.a", b"x", 0));
    fails!(EOPNOTSUPP, set("f", "plain", b"x", 0));
    fails!(EOPNOTSUPP, get_raw("f", "nothing.a"));
    fails!(EOPNOTSUPP, removexattr(c("f").as_ptr(), c("nothing.a").as_ptr()));
    fails!(EINVAL, set("f", "user.", b"x", 0));
    Ok(())
}

fn long_names_are_erange() -> Outcome {
    put("f", b"")?;
    let longest = format!("user.{}", "n".repeat(250));
    ok!(set("f", &longest, b"x", 0));
    same!(get("f", &longest)?, b"x".to_vec());
    let longer = format!("user.{}", "n".repeat(251));
    fails!(ERANGE, set("f", &longer, b"x", 0));
    fails!(ERANGE, get_raw("f", &longer));
    fails!(ERANGE, set("f", "", b"x", 0));
    Ok(())
}

fn long_values_are_e2big() -> Outcome {
    put("f", b"")?;
    fails!(E2BIG, set("f", "user.a", &vec![1; 65537], 0));
    ok!(set("f", "user.a", &vec![7; 1000], 0));
    same!(get("f", "user.a")?, vec![7u8; 1000]);
    Ok(())
}

fn missing_attribute_is_enodata() -> Outcome {
    put("f", b"")?;
    fails!(ENODATA, get_raw("f", "user.none"));
    fails!(ENODATA, removexattr(c("f").as_ptr(), c("user.none").as_ptr()));
    fails!(ENOENT, get_raw("none", "user.a"));
    fails!(ENOENT, set("none", "user.a", b"", 0));
    fails!(ENODATA, get_raw("f", "security.capability"));
    Ok(())
}

fn links_carry_no_user_attributes() -> Outcome {
    put("f", b"")?;
    ok!(symlink(c("f").as_ptr(), c("l").as_ptr()));
    fails!(EPERM, lsetxattr(c("l").as_ptr(), c("user.a").as_ptr(), b"x".as_ptr().cast(), 1, 0));
    ok!(set("l", "user.a", b"through", 0));
    same!(get("f", "user.a")?, b"through".to_vec());
    let mut buf = [0u8; 16];
    fails!(ENODATA, lgetxattr(c("l").as_ptr(), c("user.a").as_ptr(), buf.as_mut_ptr().cast(), 16));
    fails!(EPERM, lremovexattr(c("l").as_ptr(), c("user.a").as_ptr()));
    Ok(())
}

fn special_files_carry_no_user_attributes() -> Outcome {
    ok!(mkfifo(c("p").as_ptr(), 0o600));
    fails!(EPERM, set("p", "user.a", b"x", 0));
    fails!(ENODATA, get_raw("p", "user.a"));
    Ok(())
}

fn trusted_needs_the_right() -> Outcome {
    put("f", b"")?;
    if set("f", "trusted.t", b"x", 0) != 0 {
        skip!("trusted: {}", crate::harness::errno_name(crate::harness::errno()));
    }
    same!(get("f", "trusted.t")?, b"x".to_vec());
    same!(names("f")?, vec!["trusted.t".to_string()]);
    ok!(chown(c("f").as_ptr(), 1234, 1234));
    sys::fork(|| {
        sys::drop_root()?;
        fails!(EPERM, set("f", "trusted.t", b"y", 0));
        fails!(ENODATA, get_raw("f", "trusted.t"));
        fails!(EPERM, removexattr(c("f").as_ptr(), c("trusted.t").as_ptr()));
        same!(names("f")?, Vec::<String>::new());
        Ok(())
    })?
    .ok()
}

fn user_attributes_follow_the_mode() -> Outcome {
    put("f", b"")?;
    ok!(set("f", "user.a", b"x", 0));
    ok!(chmod(c("f").as_ptr(), 0o644));
    ok!(chmod(c(".").as_ptr(), 0o755));
    sys::fork(|| {
        sys::drop_root()?;
        same!(get_raw("f", "user.a"), 1);
        fails!(EACCES, set("f", "user.b", b"x", 0));
        fails!(EACCES, removexattr(c("f").as_ptr(), c("user.a").as_ptr()));
        Ok(())
    })?
    .ok()?;
    ok!(chmod(c("f").as_ptr(), 0o200));
    sys::fork(|| {
        sys::drop_root()?;
        fails!(EACCES, get_raw("f", "user.a"));
        Ok(())
    })?
    .ok()
}

fn sticky_directory_attributes_belong_to_the_owner() -> Outcome {
    ok!(mkdir(c("d").as_ptr(), 0o777));
    ok!(chmod(c("d").as_ptr(), 0o1777));
    sys::fork(|| {
        sys::drop_root()?;
        fails!(EPERM, set("d", "user.a", b"x", 0));
        Ok(())
    })?
    .ok()?;
    ok!(chmod(c("d").as_ptr(), 0o777));
    sys::fork(|| {
        sys::drop_root()?;
        ok!(set("d", "user.a", b"x", 0));
        Ok(())
    })?
    .ok()
}

fn by_descriptor() -> Outcome {
    let fd = sys::create("f")?;
    ok!(fsetxattr(fd.as_raw_fd(), c("user.a").as_ptr(), b"x".as_ptr().cast(), 1, 0));
    let mut buf = [0u8; 16];
    same!(ok!(fgetxattr(fd.as_raw_fd(), c("user.a").as_ptr(), buf.as_mut_ptr().cast(), 16)), 1);
    want!(ok!(flistxattr(fd.as_raw_fd(), buf.as_mut_ptr().cast(), 0)) >= 7, "a short list");
    ok!(fremovexattr(fd.as_raw_fd(), c("user.a").as_ptr()));
    fails!(ENODATA, fremovexattr(fd.as_raw_fd(), c("user.a").as_ptr()));
    fails!(EBADF, fremovexattr(99, c("user.a").as_ptr()));
    Ok(())
}

fn path_descriptors_are_ebadf() -> Outcome {
    put("f", b"")?;
    let fd = sys::open("f", O_PATH)?;
    let mut buf = [0u8; 16];
    fails!(EBADF, fgetxattr(fd.as_raw_fd(), c("user.a").as_ptr(), buf.as_mut_ptr().cast(), 16));
    fails!(EBADF, fsetxattr(fd.as_raw_fd(), c("user.a").as_ptr(), b"x".as_ptr().cast(), 1, 0));
    fails!(EBADF, flistxattr(fd.as_raw_fd(), buf.as_mut_ptr().cast(), 0));
    Ok(())
}

fn bad_pointers_are_efault() -> Outcome {
    put("f", b"")?;
    ok!(set("f", "user.a", b"value", 0));
    let bad = 8 as *mut c_void;
    fails!(EFAULT, getxattr(c("f").as_ptr(), c("user.a").as_ptr(), bad, 100));
    fails!(EFAULT, setxattr(c("f").as_ptr(), c("user.a").as_ptr(), bad, 100, 0));
    fails!(EFAULT, getxattr(c("f").as_ptr(), bad.cast(), bad, 100));
    fails!(EFAULT, listxattr(c("f").as_ptr(), bad.cast(), 100));
    Ok(())
}

fn attributes_survive_rename_and_link() -> Outcome {
    put("f", b"")?;
    ok!(set("f", "user.a", b"x", 0));
    ok!(link(c("f").as_ptr(), c("g").as_ptr()));
    ok!(rename(c("f").as_ptr(), c("h").as_ptr()));
    same!(get("g", "user.a")?, b"x".to_vec());
    ok!(set("g", "user.a", b"y", 0));
    same!(get("h", "user.a")?, b"y".to_vec());
    Ok(())
}

fn unlinked_file_keeps_its_attributes() -> Outcome {
    let fd = sys::create("f")?;
    ok!(fsetxattr(fd.as_raw_fd(), c("user.a").as_ptr(), b"x".as_ptr().cast(), 1, 0));
    ok!(unlink(c("f").as_ptr()));
    let mut buf = [0u8; 16];
    same!(ok!(fgetxattr(fd.as_raw_fd(), c("user.a").as_ptr(), buf.as_mut_ptr().cast(), 16)), 1);
    ok!(fsetxattr(fd.as_raw_fd(), c("user.b").as_ptr(), b"yz".as_ptr().cast(), 2, 0));
    same!(ok!(fgetxattr(fd.as_raw_fd(), c("user.b").as_ptr(), buf.as_mut_ptr().cast(), 16)), 2);
    Ok(())
}

fn list_has_every_name_with_its_nul() -> Outcome {
    put("f", b"")?;
    let mut want = Vec::new();
    for i in 0..20 {
        let name = format!("user.name-{i:02}");
        ok!(set("f", &name, b"v", 0));
        want.push(name);
    }
    same!(names("f")?, want);
    Ok(())
}

fn read_only_descriptor_may_set() -> Outcome {
    put("f", b"")?;
    let fd = sys::open("f", O_RDONLY)?;
    ok!(fsetxattr(fd.as_raw_fd(), c("user.a").as_ptr(), b"x".as_ptr().cast(), 1, 0));
    Ok(())
}

fn setting_moves_ctime_alone() -> Outcome {
    put("f", b"")?;
    let before = sys::stat("f")?;
    sys::sleep_ms(20);
    ok!(set("f", "user.a", b"x", 0));
    let after = sys::stat("f")?;
    same!((after.st_mtime, after.st_mtime_nsec), (before.st_mtime, before.st_mtime_nsec));
    want!(
        (after.st_ctime, after.st_ctime_nsec) > (before.st_ctime, before.st_ctime_nsec),
        "ctime did not move"
    );
    Ok(())
}

fn capability_attribute_goes_at_write() -> Outcome {
    put("f", b"")?;
    // VFS_CAP_REVISION_2 with CAP_NET_RAW.
    let mut value = vec![0u8; 20];
    value[3] = 2;
    value[5] = 0x20;
    ok!(set("f", "security.capability", &value, 0));
    same!(get("f", "security.capability")?, value);
    put("f", b"x")?;
    fails!(ENODATA, get_raw("f", "security.capability"));
    ok!(set("f", "security.capability", &value, 0));
    ok!(chown(c("f").as_ptr(), 5, 5));
    fails!(ENODATA, get_raw("f", "security.capability"));
    fails!(EINVAL, set("f", "security.capability", b"short", 0));
    Ok(())
}

fn acl_names_without_acl_are_enodata_or_unsupported() -> Outcome {
    put("f", b"")?;
    let r = get_raw("f", "system.posix_acl_access");
    let e = crate::harness::errno();
    want!(r < 0 && (e == ENODATA || e == EOPNOTSUPP), "{r}, errno {e}");
    Ok(())
}
