//! What exec does to credentials: set-id bits, file capabilities, ambient capabilities: capabilities(7).

use crate::harness::Outcome;
use crate::sys::{self, c};
use libc::*;
use std::os::unix::fs::PermissionsExt;

cases![
    plain_program_keeps_the_ids,
    set_user_id_changes_the_effective_user,
    set_user_id_root_brings_all_capabilities,
    set_group_id_changes_the_effective_group,
    set_group_id_without_group_exec_does_nothing,
    no_new_privs_ignores_set_id_bits,
    no_new_privs_ignores_file_capabilities,
    scripts_ignore_set_id_bits,
    file_capabilities_are_permitted_and_effective,
    file_capabilities_without_the_effective_bit,
    inheritable_meets_inheritable,
    bounding_set_cuts_and_refuses,
    ambient_passes_to_a_plain_program,
    ambient_is_cleared_by_set_user_id,
    ambient_is_cleared_by_file_capabilities,
    ambient_rules,
    noroot_takes_the_specialness_of_root,
    real_root_with_other_effective_user,
    root_loses_capabilities_by_bounding,
    keepcaps_is_cleared_by_exec,
    malformed_attribute_is_refused_at_setting,
    attribute_needs_the_right,
    attribute_of_another_namespace_is_ignored,
    writing_drops_file_capabilities,
    chown_drops_file_capabilities,
    unreadable_program_is_not_dumpable,
    pdeathsig_is_cleared_by_a_privileged_exec,
    securebits_rules,
    securebits_no_ambient_raise,
    saved_ids_follow_the_effective,
];

const NET_RAW: u64 = 1 << 13;
const CHOWN: u64 = 1;
const KILL: u64 = 1 << 5;
const USER: u32 = 1234;

/// A copy of this program that anybody may run.
fn program(mode: u32) -> Result<String, String> {
    let here = std::env::current_dir().map_err(|e| e.to_string())?;
    std::fs::set_permissions(&here, std::fs::Permissions::from_mode(0o755)).map_err(|e| e.to_string())?;
    let exe = sys::self_exe()?;
    let path = here.join("prog");
    std::fs::copy(exe.to_str().unwrap_or(""), &path).map_err(|e| format!("copy: {e}"))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).map_err(|e| e.to_string())?;
    Ok(path.display().to_string())
}

/// Whether set-id bits count where the case's files are.
fn suid_counts(path: &str) -> Result<bool, String> {
    let path = c(path);
    let mut s: statvfs = unsafe { std::mem::zeroed() };
    ok!(statvfs(path.as_ptr(), &raw mut s));
    Ok(s.f_flag & ST_NOSUID == 0)
}

macro_rules! needs_suid {
    ($path:expr) => {
        if !suid_counts($path)? {
            skip!("the directory is mounted nosuid");
        }
    };
}

/// A `struct vfs_cap_data` of the second revision.
fn attribute(permitted: u64, inheritable: u64, effective: bool) -> Vec<u8> {
    let words = [
        0x0200_0000 | u32::from(effective),
        permitted as u32,
        inheritable as u32,
        (permitted >> 32) as u32,
        (inheritable >> 32) as u32,
    ];
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

fn set_caps(path: &str, value: &[u8]) -> i32 {
    let path = c(path);
    unsafe { setxattr(path.as_ptr(), c"security.capability".as_ptr(), value.as_ptr().cast(), value.len(), 0) }
}

fn capset(permitted: u64, effective: u64, inheritable: u64) -> Outcome {
    let header = [0x2008_0522u32, 0];
    let half = |v: u64, i: u32| (v >> (32 * i)) as u32;
    let data = [
        half(effective, 0),
        half(permitted, 0),
        half(inheritable, 0),
        half(effective, 1),
        half(permitted, 1),
        half(inheritable, 1),
    ];
    ok!(syscall(SYS_capset, header.as_ptr(), data.as_ptr()));
    Ok(())
}

/// What the program says about itself when `before` has run in the child.
fn show(path: &str, before: impl FnOnce() -> Outcome) -> Result<String, String> {
    let (out, status) = sys::exec_capture(&c(path), &["prog", "helper", "caps"], &[], before)?;
    if status == 0 { Ok(out) } else { Err(format!("status {status:#x}, output {out:?}")) }
}

fn field<'a>(text: &'a str, name: &str) -> &'a str {
    text.split(' ').find_map(|f| f.strip_prefix(name)?.strip_prefix('=')).unwrap_or("?")
}

fn caps(text: &str, name: &str) -> u64 {
    u64::from_str_radix(field(text, name), 16).unwrap_or(u64::MAX)
}

fn bounding() -> u64 {
    (0..=40).filter(|c| unsafe { prctl(PR_CAPBSET_READ, *c, 0, 0, 0) } == 1).fold(0, |set, c| set | 1 << c)
}

fn plain_program_keeps_the_ids() -> Outcome {
    let path = program(0o755)?;
    let got = show(&path, sys::drop_root)?;
    same!(got.as_str(), "uid=1234,1234,1234 egid=1234 prm=0 eff=0 inh=0 amb=0 secure=0 dumpable=1");
    Ok(())
}

fn set_user_id_changes_the_effective_user() -> Outcome {
    let path = program(0o755)?;
    needs_suid!(&path);
    ok!(chown(c(&path).as_ptr(), 4000, 0));
    ok!(chmod(c(&path).as_ptr(), 0o4755));
    let got = show(&path, sys::drop_root)?;
    same!(field(&got, "uid"), "1234,4000,4000");
    same!((field(&got, "secure"), field(&got, "dumpable")), ("1", "0"));
    same!(caps(&got, "eff"), 0);
    Ok(())
}

fn set_user_id_root_brings_all_capabilities() -> Outcome {
    let path = program(0o4755)?;
    needs_suid!(&path);
    let all = bounding();
    let got = show(&path, sys::drop_root)?;
    same!(field(&got, "uid"), "1234,0,0");
    same!((caps(&got, "prm"), caps(&got, "eff"), field(&got, "secure")), (all, all, "1"));
    Ok(())
}

fn set_group_id_changes_the_effective_group() -> Outcome {
    let path = program(0o755)?;
    needs_suid!(&path);
    ok!(chown(c(&path).as_ptr(), 0, 4001));
    ok!(chmod(c(&path).as_ptr(), 0o2755));
    let got = show(&path, sys::drop_root)?;
    same!((field(&got, "uid"), field(&got, "egid"), field(&got, "secure")), ("1234,1234,1234", "4001", "1"));
    Ok(())
}

fn set_group_id_without_group_exec_does_nothing() -> Outcome {
    let path = program(0o755)?;
    ok!(chown(c(&path).as_ptr(), 0, 4001));
    ok!(chmod(c(&path).as_ptr(), 0o2705));
    let got = show(&path, sys::drop_root)?;
    same!((field(&got, "egid"), field(&got, "secure")), ("1234", "0"));
    Ok(())
}

fn no_new_privs() -> Outcome {
    ok!(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    Ok(())
}

fn no_new_privs_ignores_set_id_bits() -> Outcome {
    let path = program(0o6755)?;
    let got = show(&path, || {
        sys::drop_root()?;
        no_new_privs()
    })?;
    same!(got.as_str(), "uid=1234,1234,1234 egid=1234 prm=0 eff=0 inh=0 amb=0 secure=0 dumpable=1");
    Ok(())
}

fn no_new_privs_ignores_file_capabilities() -> Outcome {
    let path = program(0o755)?;
    ok!(set_caps(&path, &attribute(NET_RAW, 0, true)));
    let got = show(&path, || {
        sys::drop_root()?;
        no_new_privs()
    })?;
    same!((caps(&got, "prm"), caps(&got, "eff")), (0, 0));
    Ok(())
}

fn scripts_ignore_set_id_bits() -> Outcome {
    let path = program(0o755)?;
    sys::put("script", format!("#!{path} helper\n").as_bytes())?;
    ok!(chown(c"script".as_ptr(), 4000, 4000));
    ok!(chmod(c"script".as_ptr(), 0o6755));
    let here = std::env::current_dir().map_err(|e| e.to_string())?;
    let script = c(&here.join("script").display().to_string());
    // The interpreter gets `helper SCRIPT caps`: it knows no such helper, and ends with 2, as the user it was.
    let (_, status) = sys::exec_capture(&script, &["script", "caps"], &[], sys::drop_root)?;
    same!(WEXITSTATUS(status), 2);
    Ok(())
}

fn file_capabilities_are_permitted_and_effective() -> Outcome {
    let path = program(0o755)?;
    needs_suid!(&path);
    ok!(set_caps(&path, &attribute(NET_RAW | CHOWN, 0, true)));
    let got = show(&path, sys::drop_root)?;
    same!((caps(&got, "prm"), caps(&got, "eff")), (NET_RAW | CHOWN, NET_RAW | CHOWN));
    same!((field(&got, "uid"), field(&got, "secure"), field(&got, "dumpable")), ("1234,1234,1234", "1", "0"));
    Ok(())
}

fn file_capabilities_without_the_effective_bit() -> Outcome {
    let path = program(0o755)?;
    needs_suid!(&path);
    ok!(set_caps(&path, &attribute(NET_RAW, 0, false)));
    let got = show(&path, sys::drop_root)?;
    same!((caps(&got, "prm"), caps(&got, "eff"), field(&got, "secure")), (NET_RAW, 0, "1"));
    Ok(())
}

/// An ordinary user that keeps some capabilities.
fn user_with(permitted: u64, inheritable: u64) -> Outcome {
    ok!(prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0));
    sys::drop_root()?;
    capset(permitted, permitted, inheritable)
}

fn inheritable_meets_inheritable() -> Outcome {
    let path = program(0o755)?;
    needs_suid!(&path);
    ok!(set_caps(&path, &attribute(0, NET_RAW | CHOWN, true)));
    let got = show(&path, || user_with(NET_RAW | KILL, NET_RAW | KILL))?;
    same!((caps(&got, "prm"), caps(&got, "eff"), caps(&got, "inh")), (NET_RAW, NET_RAW, NET_RAW | KILL));
    Ok(())
}

fn bounding_set_cuts_and_refuses() -> Outcome {
    let path = program(0o755)?;
    needs_suid!(&path);
    let drop_bounding = || -> Outcome {
        ok!(prctl(PR_CAPBSET_DROP, 13, 0, 0, 0));
        sys::drop_root()
    };
    ok!(set_caps(&path, &attribute(NET_RAW | CHOWN, 0, false)));
    let got = show(&path, drop_bounding)?;
    same!(caps(&got, "prm"), CHOWN);
    // A program that does not know of capabilities would run without what it needs.
    ok!(set_caps(&path, &attribute(NET_RAW | CHOWN, 0, true)));
    let exe = c(&path);
    sys::fork(|| {
        drop_bounding()?;
        let argv = [exe.as_ptr(), std::ptr::null()];
        fails!(EPERM, execv(exe.as_ptr(), argv.as_ptr()));
        Ok(())
    })?
    .ok()
}

fn raise_ambient(cap: i32) -> i32 {
    unsafe { prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap, 0, 0) }
}

fn ambient_passes_to_a_plain_program() -> Outcome {
    let path = program(0o755)?;
    let got = show(&path, || {
        user_with(NET_RAW | KILL, NET_RAW)?;
        ok!(raise_ambient(13));
        Ok(())
    })?;
    same!((caps(&got, "prm"), caps(&got, "eff"), caps(&got, "amb")), (NET_RAW, NET_RAW, NET_RAW));
    same!(field(&got, "secure"), "0");
    Ok(())
}

fn ambient_is_cleared_by_set_user_id() -> Outcome {
    let path = program(0o755)?;
    needs_suid!(&path);
    ok!(chown(c(&path).as_ptr(), 4000, 0));
    ok!(chmod(c(&path).as_ptr(), 0o4755));
    let got = show(&path, || {
        user_with(NET_RAW, NET_RAW)?;
        ok!(raise_ambient(13));
        Ok(())
    })?;
    same!((caps(&got, "prm"), caps(&got, "eff"), caps(&got, "amb")), (0, 0, 0));
    Ok(())
}

fn ambient_is_cleared_by_file_capabilities() -> Outcome {
    let path = program(0o755)?;
    needs_suid!(&path);
    ok!(set_caps(&path, &attribute(CHOWN, 0, true)));
    let got = show(&path, || {
        user_with(NET_RAW, NET_RAW)?;
        ok!(raise_ambient(13));
        Ok(())
    })?;
    same!((caps(&got, "prm"), caps(&got, "amb")), (CHOWN, 0));
    Ok(())
}

fn ambient_rules() -> Outcome {
    sys::fork(|| {
        user_with(NET_RAW | KILL, NET_RAW)?;
        let is_set = |cap: i32| unsafe { prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, cap, 0, 0) };
        fails!(EPERM, raise_ambient(5));
        fails!(EPERM, raise_ambient(0));
        fails!(EINVAL, raise_ambient(64));
        ok!(raise_ambient(13));
        same!((is_set(13), is_set(5)), (1, 0));
        // What leaves the permitted or inheritable set leaves here too.
        capset(NET_RAW | KILL, KILL, 0)?;
        same!(is_set(13), 0);
        fails!(EINVAL, prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 1, 0, 0));
        ok!(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0));
        fails!(EINVAL, prctl(PR_CAP_AMBIENT, 9, 0, 0, 0));
        Ok(())
    })?
    .ok()
}

fn noroot_takes_the_specialness_of_root() -> Outcome {
    let path = program(0o755)?;
    let got = show(&path, || {
        ok!(prctl(PR_SET_SECUREBITS, 1, 0, 0, 0));
        Ok(())
    })?;
    same!((field(&got, "uid"), caps(&got, "prm"), caps(&got, "eff")), ("0,0,0", 0, 0));
    Ok(())
}

fn real_root_with_other_effective_user() -> Outcome {
    let path = program(0o755)?;
    let all = bounding();
    let got = show(&path, || {
        ok!(setresuid(0, USER, USER));
        Ok(())
    })?;
    same!((field(&got, "uid"), caps(&got, "prm"), caps(&got, "eff")), ("0,1234,1234", all, 0));
    same!(field(&got, "secure"), "1");
    Ok(())
}

fn root_loses_capabilities_by_bounding() -> Outcome {
    let path = program(0o755)?;
    let all = bounding();
    let got = show(&path, || {
        ok!(prctl(PR_CAPBSET_DROP, 13, 0, 0, 0));
        Ok(())
    })?;
    same!(caps(&got, "eff"), all & !NET_RAW);
    Ok(())
}

fn keepcaps_is_cleared_by_exec() -> Outcome {
    let (out, _) = sys::helper(&["keepcaps"], &[], || {
        ok!(prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0));
        Ok(())
    })?;
    same!(out.as_str(), "0");
    Ok(())
}

fn malformed_attribute_is_refused_at_setting() -> Outcome {
    let path = program(0o755)?;
    let good = attribute(NET_RAW, 0, true);
    fails!(EINVAL, set_caps(&path, &good[..19]));
    let mut bad = good.clone();
    bad[3] = 9;
    fails!(EINVAL, set_caps(&path, &bad));
    ok!(set_caps(&path, &good));
    Ok(())
}

fn attribute_needs_the_right() -> Outcome {
    let path = program(0o777)?;
    sys::fork(|| {
        sys::drop_root()?;
        fails!(EPERM, set_caps(&path, &attribute(NET_RAW, 0, true)));
        Ok(())
    })?
    .ok()
}

fn attribute_of_another_namespace_is_ignored() -> Outcome {
    let path = program(0o755)?;
    let mut value = attribute(NET_RAW, 0, true);
    value[3] = 3;
    value.extend_from_slice(&1000u32.to_le_bytes());
    ok!(set_caps(&path, &value));
    let got = show(&path, sys::drop_root)?;
    same!((caps(&got, "prm"), field(&got, "secure")), (0, "0"));
    Ok(())
}

fn has_caps(path: &str) -> bool {
    let path = c(path);
    unsafe { getxattr(path.as_ptr(), c"security.capability".as_ptr(), std::ptr::null_mut(), 0) > 0 }
}

fn writing_drops_file_capabilities() -> Outcome {
    sys::put("f", b"x")?;
    ok!(set_caps("f", &attribute(NET_RAW, 0, true)));
    want!(has_caps("f"), "not set");
    let f = sys::open("f", O_WRONLY)?;
    sys::fd_write(&f, b"y")?;
    want!(!has_caps("f"), "still there");
    Ok(())
}

fn chown_drops_file_capabilities() -> Outcome {
    sys::put("f", b"x")?;
    ok!(set_caps("f", &attribute(NET_RAW, 0, true)));
    ok!(chown(c"f".as_ptr(), 0, 0));
    want!(!has_caps("f"), "still there");
    Ok(())
}

fn unreadable_program_is_not_dumpable() -> Outcome {
    let path = program(0o711)?;
    let got = show(&path, sys::drop_root)?;
    same!((field(&got, "dumpable"), field(&got, "secure")), ("0", "0"));
    Ok(())
}

fn pdeathsig_is_cleared_by_a_privileged_exec() -> Outcome {
    let path = program(0o4755)?;
    needs_suid!(&path);
    let shown = |before: fn() -> Outcome| -> Result<String, String> {
        let argv = ["prog", "helper", "pdeathsig"];
        Ok(sys::exec_capture(&c(&path), &argv, &[], || {
            before()?;
            ok!(prctl(PR_SET_PDEATHSIG, SIGUSR1, 0, 0, 0));
            Ok(())
        })?
        .0)
    };
    same!(shown(|| Ok(()))?, SIGUSR1.to_string());
    same!(shown(sys::drop_root)?, "0".to_string());
    Ok(())
}

fn securebits_rules() -> Outcome {
    sys::fork(|| {
        let set = |bits: i32| unsafe { prctl(PR_SET_SECUREBITS, bits, 0, 0, 0) };
        same!(ok!(prctl(PR_GET_SECUREBITS, 0, 0, 0, 0)), 0);
        ok!(set(0b11));
        // Bit and lock stay.
        fails!(EPERM, set(0b10));
        fails!(EPERM, set(0b01));
        fails!(EPERM, set(0));
        ok!(set(0b1111));
        same!(ok!(prctl(PR_GET_SECUREBITS, 0, 0, 0, 0)), 0b1111);
        fails!(EPERM, set(0x4000_0000));
        ok!(set(0b10_1111));
        fails!(EPERM, prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0));
        Ok(())
    })?
    .ok()?;
    sys::fork(|| {
        sys::drop_root()?;
        fails!(EPERM, prctl(PR_SET_SECUREBITS, 1, 0, 0, 0));
        Ok(())
    })?
    .ok()
}

fn securebits_no_ambient_raise() -> Outcome {
    sys::fork(|| {
        ok!(prctl(PR_SET_SECUREBITS, 1 << 6, 0, 0, 0));
        user_with(NET_RAW, NET_RAW)?;
        fails!(EPERM, raise_ambient(13));
        Ok(())
    })?
    .ok()
}

fn saved_ids_follow_the_effective() -> Outcome {
    let path = program(0o755)?;
    let got = show(&path, || {
        ok!(setresuid(USER, USER, 0));
        Ok(())
    })?;
    same!(field(&got, "uid"), "1234,1234,1234");
    Ok(())
}
