//! Compiled profiles against what they say, read word for word.

use super::*;
use serde_json::json;

/// A call as a filter sees it.
#[derive(Debug, Clone, Copy)]
struct Call {
    nr: u32,
    args: [u64; 6],
}

/// Runs what the compiler makes; it uses few of the instructions that there are.
fn run(program: &[FilterInsn], call: Call) -> u32 {
    let word = |offset: u32| -> u32 {
        match offset {
            NR => call.nr,
            ARCH => AUDIT_ARCH,
            at => {
                let at = usize::try_from(at - ARGS).unwrap();
                let half = if at % 8 == 0 { 0 } else { 32 };
                u32::try_from(call.args[at / 8] >> half & 0xffff_ffff).unwrap()
            }
        }
    };
    let (mut pc, mut a) = (0, 0);
    loop {
        let insn = program[pc];
        pc += 1;
        let holds = match insn.code {
            0x20 => {
                a = word(insn.k);
                continue;
            }
            0x54 => {
                a &= insn.k;
                continue;
            }
            0x06 => return insn.k,
            0x05 => {
                pc += usize::try_from(insn.k).unwrap();
                continue;
            }
            JEQ => a == insn.k,
            JGT => a > insn.k,
            JGE => a >= insn.k,
            other => panic!("instruction {other:#x}"),
        };
        pc += usize::from(if holds { insn.jt } else { insn.jf });
    }
}

fn profile(value: serde_json::Value) -> LinuxSeccomp {
    serde_json::from_value(value).unwrap()
}

fn compiled(value: serde_json::Value) -> Vec<FilterInsn> {
    compile(&profile(value)).unwrap().filter.program
}

fn answer_of(program: &[FilterInsn], name: &str, args: [u64; 6]) -> u32 {
    run(program, Call { nr: syscall_names::number(name).unwrap(), args })
}

const EPERM: u32 = ret::ERRNO | 1;
const ENOSYS: u32 = ret::ERRNO | 0x26;

#[test]
fn a_profile_like_that_of_docker() {
    let program = compiled(json!({
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1,
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [
            {"names": ["read", "write", "chown32", "openat2"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["personality"], "action": "SCMP_ACT_ALLOW",
             "args": [{"index": 0, "value": 0, "op": "SCMP_CMP_EQ"}]},
            {"names": ["personality"], "action": "SCMP_ACT_ALLOW",
             "args": [{"index": 0, "value": 131_072, "op": "SCMP_CMP_EQ"}]},
            {"names": ["socket"], "action": "SCMP_ACT_ALLOW",
             "args": [{"index": 0, "value": 40, "op": "SCMP_CMP_NE"}]},
            {"names": ["clone"], "action": "SCMP_ACT_ALLOW",
             "args": [{"index": 0, "value": 2_114_060_288, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]},
            {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}
        ]
    }));
    let first = |value| [value, 0, 0, 0, 0, 0];
    assert_eq!(answer_of(&program, "read", first(9)), ret::ALLOW);
    assert_eq!(answer_of(&program, "mount", first(9)), EPERM);
    assert_eq!(answer_of(&program, "personality", first(0)), ret::ALLOW);
    assert_eq!(answer_of(&program, "personality", first(131_072)), ret::ALLOW);
    assert_eq!(answer_of(&program, "personality", first(8)), EPERM);
    assert_eq!(answer_of(&program, "personality", first(1 << 32)), EPERM);
    assert_eq!(answer_of(&program, "socket", first(2)), ret::ALLOW);
    assert_eq!(answer_of(&program, "socket", first(40)), EPERM);
    assert_eq!(answer_of(&program, "clone", first(0x11)), ret::ALLOW);
    assert_eq!(answer_of(&program, "clone", first(0x1000_0000)), EPERM);
    assert_eq!(answer_of(&program, "clone3", first(0)), ENOSYS);
    // Newer than the newest that is named.
    assert_eq!(answer_of(&program, "mseal", first(0)), ENOSYS);
    assert_eq!(run(&program, Call { nr: X32_BIT | 1, args: [0; 6] }), ENOSYS);
}

#[test]
fn names_that_are_not_known_are_told() {
    let made = compile(&profile(json!({
        "defaultAction": "SCMP_ACT_KILL_PROCESS",
        "syscalls": [{"names": ["read", "no_such_call", "chown32"], "action": "SCMP_ACT_ALLOW"}]
    })));
    assert_eq!(made.unwrap().skipped, ["chown32", "no_such_call"]);
}

#[test]
fn a_rule_without_conditions_settles_its_call() {
    let conditional = json!({"names": ["read"], "action": "SCMP_ACT_ALLOW",
                             "args": [{"index": 0, "value": 3, "op": "SCMP_CMP_EQ"}]});
    let plain = json!({"names": ["read"], "action": "SCMP_ACT_LOG"});
    for rules in [json!([conditional, plain]), json!([plain, conditional])] {
        let program = compiled(json!({"defaultAction": "SCMP_ACT_TRAP", "syscalls": rules}));
        assert_eq!(answer_of(&program, "read", [3, 0, 0, 0, 0, 0]), ret::LOG);
        assert_eq!(answer_of(&program, "write", [3, 0, 0, 0, 0, 0]), ENOSYS);
        assert_eq!(run(&program, Call { nr: u32::MAX, args: [0; 6] }), ENOSYS);
    }
}

#[test]
fn a_lenient_default_lets_new_calls_pass() {
    let program = compiled(json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["read"], "action": "SCMP_ACT_ERRNO"}, {"names": ["write"], "action": "SCMP_ACT_KILL"}]}));
    assert_eq!(answer_of(&program, "read", [0; 6]), EPERM);
    assert_eq!(answer_of(&program, "write", [0; 6]), ret::KILL_THREAD);
    assert_eq!(answer_of(&program, "mseal", [0; 6]), ret::ALLOW);
}

#[test]
fn what_is_refused() {
    for (value, field) in [
        (json!({"defaultAction": "SCMP_ACT_NOTIFY"}), "defaultAction"),
        (json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/run/a"}), "listenerPath"),
        (
            json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": [], "action": "SCMP_ACT_LOG"}]}),
            "names",
        ),
        (
            json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_LOG",
                   "args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]}]}),
            "args[0].index",
        ),
        (
            json!({"defaultAction": "SCMP_ACT_ALLOW",
                   "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": 65_536}]}),
            "errnoRet",
        ),
    ] {
        let error = compile(&profile(value)).unwrap_err().to_string();
        assert!(error.contains("linux.seccomp") && error.contains(field), "{error}");
    }
}

/// Every operator, by plain arithmetic.
fn holds(condition: &LinuxSeccompArg, args: [u64; 6]) -> bool {
    let arg = args[condition.index()];
    let value = condition.value();
    match condition.op() {
        LinuxSeccompOperator::ScmpCmpNe => arg != value,
        LinuxSeccompOperator::ScmpCmpLt => arg < value,
        LinuxSeccompOperator::ScmpCmpLe => arg <= value,
        LinuxSeccompOperator::ScmpCmpEq => arg == value,
        LinuxSeccompOperator::ScmpCmpGe => arg >= value,
        LinuxSeccompOperator::ScmpCmpGt => arg > value,
        LinuxSeccompOperator::ScmpCmpMaskedEq => arg & value == condition.value_two().unwrap_or(0),
    }
}

#[test]
fn operators_compare_all_64_bits() {
    const VALUES: [u64; 7] = [0, 1, 7, 0xffff_ffff, 1 << 32, (7 << 32) | 3, u64::MAX];
    for op in ["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"] {
        for value in VALUES {
            for two in [0_u64, 1, 1 << 32] {
                let value = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
                    {"names": ["write"], "action": "SCMP_ACT_LOG", "args": [
                        {"index": 2, "value": value, "valueTwo": two, "op": format!("SCMP_CMP_{op}")},
                        {"index": 1, "value": 5, "op": "SCMP_CMP_LT"}]}]});
                let program = compiled(value.clone());
                let conditions = profile(value).syscalls().clone().unwrap()[0].args().clone().unwrap();
                for arg in VALUES {
                    for other in [4, 5] {
                        let args = [9, other, arg, 9, 9, 9];
                        let expected = conditions.iter().all(|condition| holds(condition, args));
                        let expected = if expected { ret::LOG } else { ret::ALLOW };
                        assert_eq!(
                            answer_of(&program, "write", args),
                            expected,
                            "{op} {conditions:?} {args:?}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn long_profiles_keep_within_short_jumps() {
    let names: Vec<_> = (0..330).map(syscall_names::name).filter(|name| *name != "unknown").collect();
    let program = compiled(json!({"defaultAction": "SCMP_ACT_ERRNO",
                                  "syscalls": [{"names": names, "action": "SCMP_ACT_ALLOW"}]}));
    for name in names {
        assert_eq!(answer_of(&program, name, [0; 6]), ret::ALLOW, "{name}");
    }
}
