//! `linux.seccomp` of a configuration as a filter in classic BPF, which the Sentry runs on the container's calls.
//!
//! The rules mean what runc and libseccomp make of them: a rule without conditions on arguments settles its call; of those
//! with conditions the first that holds counts; a rule that says what the default does is dropped; names that are not
//! known are skipped; calls newer than every one that the profile names fail with `ENOSYS`, so that programs fall back
//! to what the profile's author knew (runc's `patchbpf`).
//!
//! **Threat.** The profile may be a stranger's: its length is bounded by what the kernel takes of a filter.

use std::collections::BTreeMap;

use control_protocol::{FilterInsn, SyscallFilter};
use hostsys::syscall_names;
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSeccompOperator,
};

use crate::error::{Error, Result};

/// The most instructions of a filter (`BPF_MAXINSNS`).
const MAX_INSNS: usize = 4096;
/// `AUDIT_ARCH_X86_64`.
const AUDIT_ARCH: u32 = 0xc000_003e;
/// Calls of the x32 ABI have this bit (`__X32_SYSCALL_BIT`).
const X32_BIT: u32 = 0x4000_0000;
/// Offsets in `struct seccomp_data`.
const NR: u32 = 0;
const ARCH: u32 = 4;
const ARGS: u32 = 16;

/// What a filter returns (`SECCOMP_RET_*`).
mod ret {
    pub const KILL_PROCESS: u32 = 0x8000_0000;
    pub const KILL_THREAD: u32 = 0;
    pub const TRAP: u32 = 0x0003_0000;
    pub const ERRNO: u32 = 0x0005_0000;
    pub const TRACE: u32 = 0x7ff0_0000;
    pub const LOG: u32 = 0x7ffc_0000;
    pub const ALLOW: u32 = 0x7fff_0000;
}

/// A profile as the Sentry takes it.
#[derive(Debug)]
pub(crate) struct Compiled {
    pub filter: SyscallFilter,
    /// Names of calls that x86-64 does not have, or that are not known.
    pub skipped: Vec<String>,
}

/// What is said of one call.
#[derive(Debug, Default)]
struct Rules {
    /// Settles the call.
    plain: Option<u32>,
    /// Otherwise the first of which every condition holds.
    conditional: Vec<(Vec<LinuxSeccompArg>, u32)>,
}

fn wrong(field: &str, problem: impl Into<String>) -> Error {
    Error::field(format!("linux.seccomp.{field}"), problem.into())
}

/// An action as a filter returns it. runc gives `EPERM` where no error is said.
fn answer(field: &str, action: LinuxSeccompAction, errno: Option<u32>) -> Result<u32> {
    let low = || match errno {
        None => Ok(1),
        Some(errno) => u16::try_from(errno)
            .map(u32::from)
            .map_err(|_| wrong(&format!("{field}.errnoRet"), format!("must be at most 65535, got {errno}"))),
    };
    let takes_errno = matches!(action, LinuxSeccompAction::ScmpActErrno | LinuxSeccompAction::ScmpActTrace);
    if errno.is_some() && !takes_errno {
        return Err(wrong(field, format!("errnoRet cannot be set with action {action}")));
    }
    Ok(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => ret::KILL_THREAD,
        LinuxSeccompAction::ScmpActKillProcess => ret::KILL_PROCESS,
        LinuxSeccompAction::ScmpActTrap => ret::TRAP,
        LinuxSeccompAction::ScmpActErrno => ret::ERRNO | low()?,
        LinuxSeccompAction::ScmpActTrace => ret::TRACE | low()?,
        LinuxSeccompAction::ScmpActLog => ret::LOG,
        LinuxSeccompAction::ScmpActAllow => ret::ALLOW,
        LinuxSeccompAction::ScmpActNotify => {
            return Err(wrong(
                field,
                "SCMP_ACT_NOTIFY: the sandbox's calls cannot be decided by a host process",
            ));
        }
    })
}

fn flags_of(profile: &LinuxSeccomp) -> u32 {
    let flags = profile.flags().iter().flatten();
    flags.fold(0, |all, flag| match flag {
        LinuxSeccompFilterFlag::SeccompFilterFlagLog => all | 2,
        LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => all | 4,
        // The first thread has nobody to synchronize with, and nobody listens.
        _ => all,
    })
}

/// Checks a profile and makes a filter of it.
pub(crate) fn compile(profile: &LinuxSeccomp) -> Result<Compiled> {
    if profile.listener_path().as_ref().is_some_and(|path| !path.as_os_str().is_empty()) {
        return Err(wrong(
            "listenerPath",
            "the sandbox's calls cannot be decided by a host process; must be absent",
        ));
    }
    let default_action = profile.default_action();
    let default = match default_action {
        LinuxSeccompAction::ScmpActErrno | LinuxSeccompAction::ScmpActTrace => {
            answer("defaultAction", default_action, profile.default_errno_ret())?
        }
        other => answer("defaultAction", other, None)?,
    };
    let mut calls: BTreeMap<u32, Rules> = BTreeMap::new();
    let mut skipped = Vec::new();
    let mut newest = None;
    for (index, entry) in profile.syscalls().iter().flatten().enumerate() {
        let field = format!("syscalls[{index}]");
        let action = answer(&field, entry.action(), entry.errno_ret())?;
        if entry.names().is_empty() {
            return Err(wrong(&field, "names must not be empty"));
        }
        let conditions = entry.args().as_deref().unwrap_or_default();
        for (at, condition) in conditions.iter().enumerate() {
            if condition.index() > 5 {
                let problem = format!("must be from 0 to 5, got {}", condition.index());
                return Err(wrong(&format!("{field}.args[{at}].index"), problem));
            }
        }
        for name in entry.names() {
            if name.is_empty() {
                return Err(wrong(&field, "names must not be empty"));
            }
            let Some(number) = syscall_names::number(name) else {
                skipped.push(name.clone());
                continue;
            };
            newest = newest.max(Some(number));
            if action == default {
                continue;
            }
            let rules = calls.entry(number).or_default();
            if conditions.is_empty() {
                rules.plain.get_or_insert(action);
            } else if names_an_argument_twice(conditions) {
                // Each by itself, as runc does for old profiles.
                rules.conditional.extend(conditions.iter().map(|one| (vec![*one], action)));
            } else {
                rules.conditional.push((conditions.to_vec(), action));
            }
        }
    }
    let knows_x32 = profile.architectures().iter().flatten().any(|arch| *arch == Arch::ScmpArchX32);
    let lenient = matches!(default_action, LinuxSeccompAction::ScmpActAllow | LinuxSeccompAction::ScmpActLog)
        || default_action == LinuxSeccompAction::ScmpActTrace;
    // `None`: no call is too new.
    let newest = newest.filter(|_| !lenient);
    let program = assemble(&calls, default, newest, knows_x32)?;
    skipped.sort_unstable();
    skipped.dedup();
    Ok(Compiled { filter: SyscallFilter { program, flags: flags_of(profile) }, skipped })
}

fn names_an_argument_twice(conditions: &[LinuxSeccompArg]) -> bool {
    conditions
        .iter()
        .enumerate()
        .any(|(at, one)| conditions.iter().skip(at + 1).any(|o| o.index() == one.index()))
}

/// Where a jump leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum To {
    Next,
    Label(usize),
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Load(u32),
    And(u32),
    Return(u32),
    /// Unconditional; may be long.
    Jump(usize),
    /// A test of the accumulator and where to go on each outcome: short jumps.
    Test(u16, u32, To, To),
    Mark(usize),
}

const JEQ: u16 = 0x15;
const JGT: u16 = 0x25;
const JGE: u16 = 0x35;

#[derive(Debug, Default)]
struct Assembler {
    steps: Vec<Step>,
    labels: usize,
}

impl Assembler {
    fn label(&mut self) -> usize {
        self.labels += 1;
        self.labels - 1
    }

    fn push(&mut self, step: Step) {
        self.steps.push(step);
    }

    /// Goes to `fail` unless the condition holds.
    fn condition(&mut self, condition: &LinuxSeccompArg, fail: usize) {
        let low = ARGS + 8 * u32::try_from(condition.index()).unwrap_or(0);
        let high = low + 4;
        let halves = |value: u64| {
            let bytes = value.to_le_bytes();
            let word = |at: usize| {
                bytes.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_le_bytes(*b))
            };
            (word(4), word(0))
        };
        let (value_high, value_low) = halves(condition.value());
        let (fail, pass) = (To::Label(fail), self.label());
        let passes = To::Label(pass);
        let steps = match condition.op() {
            LinuxSeccompOperator::ScmpCmpEq => vec![
                Step::Load(high),
                Step::Test(JEQ, value_high, To::Next, fail),
                Step::Load(low),
                Step::Test(JEQ, value_low, To::Next, fail),
            ],
            LinuxSeccompOperator::ScmpCmpNe => vec![
                Step::Load(high),
                Step::Test(JEQ, value_high, To::Next, passes),
                Step::Load(low),
                Step::Test(JEQ, value_low, fail, To::Next),
            ],
            LinuxSeccompOperator::ScmpCmpGt | LinuxSeccompOperator::ScmpCmpGe => {
                let test = if condition.op() == LinuxSeccompOperator::ScmpCmpGt { JGT } else { JGE };
                vec![
                    Step::Load(high),
                    Step::Test(JGT, value_high, passes, To::Next),
                    Step::Test(JEQ, value_high, To::Next, fail),
                    Step::Load(low),
                    Step::Test(test, value_low, To::Next, fail),
                ]
            }
            LinuxSeccompOperator::ScmpCmpLt | LinuxSeccompOperator::ScmpCmpLe => {
                let test = if condition.op() == LinuxSeccompOperator::ScmpCmpLt { JGE } else { JGT };
                vec![
                    Step::Load(high),
                    Step::Test(JGT, value_high, fail, To::Next),
                    Step::Test(JEQ, value_high, To::Next, passes),
                    Step::Load(low),
                    Step::Test(test, value_low, fail, To::Next),
                ]
            }
            LinuxSeccompOperator::ScmpCmpMaskedEq => {
                let (wanted_high, wanted_low) = halves(condition.value_two().unwrap_or(0));
                vec![
                    Step::Load(high),
                    Step::And(value_high),
                    Step::Test(JEQ, wanted_high, To::Next, fail),
                    Step::Load(low),
                    Step::And(value_low),
                    Step::Test(JEQ, wanted_low, To::Next, fail),
                ]
            }
        };
        self.steps.extend(steps);
        self.push(Step::Mark(pass));
    }

    /// The instructions; an error if a test would jump too far or there are too many of them.
    fn finish(self) -> Result<Vec<FilterInsn>> {
        let mut places = vec![0; self.labels];
        let mut at = 0_usize;
        for step in &self.steps {
            match step {
                Step::Mark(label) => {
                    if let Some(place) = places.get_mut(*label) {
                        *place = at;
                    }
                }
                _ => at += 1,
            }
        }
        if at > MAX_INSNS {
            let problem = format!("makes a filter of {at} instructions; at most {MAX_INSNS} are possible");
            return Err(wrong("syscalls", problem));
        }
        let mut program = Vec::with_capacity(at);
        for step in self.steps {
            let next = program.len() + 1;
            let far = |label: usize| places.get(label).copied().unwrap_or(next).saturating_sub(next);
            let near = |to: To| match to {
                To::Next => Ok(0),
                To::Label(label) => u8::try_from(far(label))
                    .map_err(|_| wrong("syscalls", "has too many conditions for one call")),
            };
            program.push(match step {
                Step::Mark(_) => continue,
                Step::Load(offset) => FilterInsn { code: 0x20, jt: 0, jf: 0, k: offset },
                Step::And(mask) => FilterInsn { code: 0x54, jt: 0, jf: 0, k: mask },
                Step::Return(k) => FilterInsn { code: 0x06, jt: 0, jf: 0, k },
                Step::Jump(label) => {
                    FilterInsn { code: 0x05, jt: 0, jf: 0, k: u32::try_from(far(label)).unwrap_or(0) }
                }
                Step::Test(code, k, yes, no) => FilterInsn { code, jt: near(yes)?, jf: near(no)?, k },
            });
        }
        Ok(program)
    }
}

fn assemble(
    calls: &BTreeMap<u32, Rules>,
    default: u32,
    newest: Option<u32>,
    knows_x32: bool,
) -> Result<Vec<FilterInsn>> {
    const ENOSYS: u32 = 38;
    let mut to = Assembler::default();
    to.push(Step::Load(ARCH));
    let native = to.label();
    to.push(Step::Test(JEQ, AUDIT_ARCH, To::Label(native), To::Next));
    // What libseccomp answers to an architecture that the filter has no rules for.
    to.push(Step::Return(ret::KILL_THREAD));
    to.push(Step::Mark(native));
    to.push(Step::Load(NR));
    // The sandbox has no x32 calls. -1 is a number that a tracer has taken away.
    let usual = to.label();
    to.push(Step::Test(JGE, X32_BIT, To::Next, To::Label(usual)));
    to.push(Step::Test(JEQ, u32::MAX, To::Label(usual), To::Next));
    to.push(Step::Return(if knows_x32 { ret::ERRNO | ENOSYS } else { ret::KILL_THREAD }));
    to.push(Step::Mark(usual));
    if let Some(newest) = newest {
        let known = to.label();
        to.push(Step::Test(JGT, newest, To::Next, To::Label(known)));
        to.push(Step::Return(ret::ERRNO | ENOSYS));
        to.push(Step::Mark(known));
    }
    // Calls whose arguments are looked at come first: the answers to the others are kept and rarely asked for.
    for (number, rules) in calls.iter().filter(|(_, rules)| rules.plain.is_none()) {
        let (this, other) = (to.label(), to.label());
        to.push(Step::Test(JEQ, *number, To::Label(this), To::Next));
        to.push(Step::Jump(other));
        to.push(Step::Mark(this));
        for (conditions, action) in &rules.conditional {
            let fail = to.label();
            for condition in conditions {
                to.condition(condition, fail);
            }
            to.push(Step::Return(*action));
            to.push(Step::Mark(fail));
        }
        to.push(Step::Return(default));
        to.push(Step::Mark(other));
    }
    let mut by_action: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for (number, rules) in calls {
        if let Some(action) = rules.plain {
            by_action.entry(action).or_default().push(*number);
        }
    }
    for (action, numbers) in by_action {
        // Within the reach of a short jump.
        for some in numbers.chunks(250) {
            let (take, leave) = (to.label(), to.label());
            for number in some {
                to.push(Step::Test(JEQ, *number, To::Label(take), To::Next));
            }
            to.push(Step::Jump(leave));
            to.push(Step::Mark(take));
            to.push(Step::Return(action));
            to.push(Step::Mark(leave));
        }
    }
    to.push(Step::Return(default));
    to.finish()
}

#[cfg(test)]
#[path = "seccomp_tests.rs"]
mod tests;
