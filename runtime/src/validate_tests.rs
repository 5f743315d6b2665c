//! Configurations that must be refused, and how the error names what is wrong.

use serde_json::{Value, json};

use crate::config::parse;

fn good() -> Value {
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": ["PATH=/bin"],
            "cwd": "/",
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1, "hard": 2}],
            "capabilities": {"bounding": ["CAP_KILL", "CAP_FROM_THE_FUTURE"]}
        },
        "root": {"path": "rootfs"},
        "hostname": "box",
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "linux": {"namespaces": [{"type": "pid"}, {"type": "uts"}]}
    })
}

fn check(value: &Value) -> Result<Vec<String>, String> {
    let text = serde_json::to_vec(value).unwrap();
    let (spec, mut warnings) = parse(&text).map_err(|error| error.to_string())?;
    warnings.extend(super::spec(&spec).map_err(|error| error.to_string())?);
    Ok(warnings)
}

#[test]
fn a_good_one_passes_and_an_unknown_capability_is_a_warning() {
    let warnings = check(&good()).unwrap();
    assert_eq!(
        warnings,
        ["process.capabilities.bounding: unknown capability \"CAP_FROM_THE_FUTURE\" ignored"]
    );
}

#[test]
fn each_bad_value_is_named() {
    let cases = [
        ("/process/cwd", json!("x"), "process.cwd: must be an absolute path, got \"x\""),
        ("/process/cwd", json!("/a\0b"), "process.cwd: must not contain a NUL byte"),
        ("/process/args", json!([]), "process.args: args must not be empty"),
        ("/process/args", json!(["a\0"]), "process.args[0]: must not contain a NUL byte"),
        ("/process/args", json!("sh"), "process.args: invalid type: string \"sh\", expected a sequence"),
        ("/process/env", json!(["A"]), "process.env[0]: must be NAME=value, got \"A\""),
        ("/process/user/uid", json!(-1), "process.user.uid: invalid value: integer `-1`, expected u32"),
        (
            "/process/user/uid",
            json!(4_294_967_295_u32),
            "process.user.uid: must be from 0 to 4294967294, got 4294967295",
        ),
        (
            "/process/user/uid",
            json!(4_294_967_296_u64),
            "process.user.uid: invalid value: integer `4294967296`, expected u32",
        ),
        ("/process/rlimits/0/soft", json!(3), "process.rlimits[0]: soft (3) must not be above hard (2)"),
        (
            "/process/rlimits/0/type",
            json!("RLIMIT_FOO"),
            "process.rlimits[0].type: unknown variant `RLIMIT_FOO`",
        ),
        ("/root/path", json!(""), "root.path: must be the path of a directory, got \"\""),
        ("/ociVersion", json!("2.0"), "ociVersion: must be a version 1.x, such as \"1.2.0\", got \"2.0\""),
        (
            "/mounts/0/destination",
            json!("proc"),
            "mounts[0].destination: must be an absolute path, got \"proc\"",
        ),
        ("/mounts/0/type", json!("ext4"), "mounts[0].type: must be one of"),
        (
            "/linux/namespaces",
            json!([{"type": "pid"}, {"type": "pid"}]),
            "linux.namespaces[1]: duplicate namespace",
        ),
        ("/linux/namespaces", json!([{"type": "pid"}]), "hostname: unable to set hostname without"),
        ("/linux/sysctl", json!({"a": "1\nb"}), "linux.sysctl[\"a\"]: must be one line, got \"1\\nb\""),
        (
            "/linux/sysctl",
            json!({"net/../kernel/core_pattern": "|/x"}),
            "linux.sysctl[\"net/../kernel/core_pattern\"]: must be named by",
        ),
        ("/linux/cgroupsPath", json!("/a/../b"), "linux.cgroupsPath: must not contain \"..\""),
        (
            "/linux/resources",
            json!({"pids": {"limit": -7}}),
            "linux.resources.pids.limit: must be -1 (no limit) or more, got -7",
        ),
        ("/linux/maskedPaths", json!(["proc"]), "linux.maskedPaths[0]: must be an absolute path"),
    ];
    for (pointer, value, expected) in cases {
        let mut config = good();
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        match config.pointer_mut(parent).unwrap() {
            Value::Object(map) => {
                map.insert(name.into(), value.clone());
            }
            other => other[name.parse::<usize>().unwrap()] = value.clone(),
        }
        let error = check(&config).expect_err(pointer);
        let wanted = format!("config.json: {expected}");
        assert!(error.starts_with(&wanted), "{pointer} = {value}: {error:?} instead of {wanted:?}");
    }
}

#[test]
fn deep_nesting_is_an_error() {
    let mut text = b"{\"annotations\":".to_vec();
    text.extend(vec![b'['; 100_000]);
    assert!(parse(&text).unwrap_err().to_string().contains("recursion limit"));
}
