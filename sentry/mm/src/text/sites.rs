//! Which calls of a text can be changed: the instructions before each, if they may move and nothing leads between them.
//!
//! One instruction of five bytes or more has no inside that anything could lead to. Where several shorter ones are to make
//! room for the jump, somebody could come to the second of them by another way, and everything that could be one is
//! looked for: a branch of the same function, which must be understood from its first byte to its last; bytes anywhere in
//! the text that would lead there if they were the distance of a branch or of an address; a short branch of the
//! neighbourhood; an address among the data, be it a table, a symbol or a relocation; a jump by a table, which a
//! function with such calls must not make, nor any that it jumps to; a landing pad. What is not certain stays as it is.

use std::collections::BTreeMap;

use iced_x86::{
    Code, ConditionCode, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register,
};

use super::elf::{Elf, Reader, word32};
use super::functions::{Function, Functions};
use super::{JUMP, MOVABLE};

/// What becomes of an instruction that moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moved {
    Same,
    /// Four bytes at `field` are the distance to `target` from its end.
    Relative {
        field: u8,
        target: u64,
    },
    /// A branch to `target` if the condition of this number holds, which becomes one of six bytes.
    Branch {
        condition: u8,
        target: u64,
    },
}

/// An instruction before a call, to be replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Step {
    pub moved: Moved,
    /// Bytes in the text.
    pub len: u8,
}

impl Step {
    /// Bytes in a detour.
    pub fn moved_len(&self) -> u8 {
        if matches!(self.moved, Moved::Branch { .. }) { 6 } else { self.len }
    }
}

/// Instructions that are to be replaced, from `start` to the call.
#[derive(Debug)]
pub(super) struct Range {
    pub start: u64,
    pub call: u64,
    pub steps: Vec<Step>,
}

impl Range {
    /// The addresses that a thread may be at only if it came from `start`.
    fn inside(&self) -> core::ops::Range<u64> {
        self.start + 1..self.call
    }
}

/// Finds what can be changed, in the order of addresses.
pub(super) fn find(elf: &Elf, text: &[u8], read: &mut Reader<'_>) -> Vec<Range> {
    let calls: Vec<u64> =
        memchr::memmem::find_iter(text, &[0x0f, 0x05]).map(|at| elf.text.addr + at as u64).collect();
    if calls.is_empty() {
        return Vec::new();
    }
    find_among(elf, text, &calls, &Functions::of(elf, text, read), read)
}

fn find_among(
    elf: &Elf,
    text: &[u8],
    calls: &[u64],
    functions: &Functions<'_>,
    read: &mut Reader<'_>,
) -> Vec<Range> {
    let mut search = Search { elf, text, budget: text.len().saturating_mul(4), jumps: BTreeMap::new() };
    let mut found = Vec::new();
    let mut unsure = Vec::new();
    let mut calls = calls;
    while let Some((first, rest)) = calls.split_first() {
        let Some(function) = functions.around(*first, read) else {
            calls = rest;
            continue;
        };
        let (inside, rest) = calls.split_at(calls.partition_point(|call| *call < function.end));
        calls = rest;
        let (sure, mut several) = search.ranges(function, inside);
        found.extend(sure);
        if !several.is_empty() && search.is_straight(function, &mut several, functions, read) {
            unsure.extend(several.into_iter().map(|range| (function, range)));
        }
    }
    search.drop_reachable(&mut unsure, functions, read);
    found.extend(unsure.into_iter().map(|(_, range)| range));
    found.sort_unstable_by_key(|range| range.start);
    found
}

/// Decodes `code`, which stands at `start`. False if it does not come out at its end.
pub(super) fn decode(code: &[u8], start: u64, each: &mut dyn FnMut(&Instruction)) -> bool {
    let mut decoder = Decoder::with_ip(64, code, start, DecoderOptions::NONE);
    let mut here = Instruction::default();
    while decoder.can_decode() {
        decoder.decode_out(&mut here);
        if here.is_invalid() {
            return false;
        }
        each(&here);
    }
    true
}

struct Search<'a> {
    elf: &'a Elf,
    text: &'a [u8],
    /// Bytes that may still be decoded: the file may say that all of its functions are as large as its text.
    budget: usize,
    /// Functions by their start, and whether they jump by tables.
    jumps: BTreeMap<u64, bool>,
}

impl Search<'_> {
    fn bytes(&self, start: u64, end: u64) -> Option<&[u8]> {
        part((self.elf.text.addr, self.text), start, end)
    }

    /// Decodes from `start` to `end`. False if it does not come out there.
    fn decode(&mut self, start: u64, end: u64, mut each: impl FnMut(&Instruction)) -> bool {
        let len = usize::try_from(end.saturating_sub(start)).unwrap_or(usize::MAX);
        let Some(left) = self.budget.checked_sub(len) else { return false };
        self.budget = left;
        self.bytes(start, end).is_some_and(|code| decode(code, start, &mut each))
    }

    /// What can move before each of `calls`: one instruction, and, less surely, several.
    fn ranges(&mut self, function: Function, calls: &[u64]) -> (Vec<Range>, Vec<Range>) {
        let (mut sure, mut several) = (Vec::new(), Vec::new());
        let Some(last) = calls.last() else { return (sure, several) };
        // Where the last instructions start, as many as a jump can have in its place, in a ring.
        let (mut before, mut count) = ([function.start; JUMP], 0);
        let text = (self.elf.text.addr, self.text);
        self.decode(function.start, last + 2, |here| {
            if here.code() == Code::Syscall && calls.binary_search(&here.ip()).is_ok() {
                let starts = (1..=count.min(JUMP)).filter_map(|back| before.get((count - back) % JUMP));
                if let Some(range) = range_before(here.ip(), starts.copied(), text) {
                    if range.steps.len() == 1 { sure.push(range) } else { several.push(range) }
                }
            }
            if let Some(start) = before.get_mut(count % JUMP) {
                *start = here.ip();
            }
            count += 1;
        });
        (sure, several)
    }

    /// Leaves of `ranges` those that no branch of their function leads into; false if the function is not understood.
    fn is_straight(
        &mut self,
        function: Function,
        ranges: &mut Vec<Range>,
        functions: &Functions<'_>,
        read: &mut Reader<'_>,
    ) -> bool {
        if function.has_pads {
            return false;
        }
        let (mut leaves, mut targets, mut by_table) = (Vec::new(), Vec::new(), false);
        let whole = self.decode(function.start, function.end, |here| {
            by_table |= jumps_by_table(here);
            if let Some(target) = branch_target(here) {
                let inside = (function.start..function.end).contains(&target);
                if inside {
                    targets.push(target);
                } else if here.flow_control() != FlowControl::Call {
                    leaves.push(target);
                }
            }
        });
        if !whole || by_table {
            return false;
        }
        targets.sort_unstable();
        ranges.retain(|range| {
            let first = targets.partition_point(|target| *target <= range.start);
            targets.get(first).is_none_or(|target| *target >= range.call)
        });
        // A part of the function that stands apart may hold a jump by a table that leads back.
        leaves.sort_unstable();
        leaves.dedup();
        !ranges.is_empty()
            && leaves
                .into_iter()
                .all(|target| functions.around(target, read).is_some_and(|other| !self.has_table_jump(other)))
    }

    fn has_table_jump(&mut self, function: Function) -> bool {
        if let Some(known) = self.jumps.get(&function.start) {
            return *known;
        }
        let mut by_table = false;
        let whole = self.decode(function.start, function.end, |here| by_table |= jumps_by_table(here));
        let unsure = by_table || !whole;
        self.jumps.insert(function.start, unsure);
        unsure
    }

    /// Drops the ranges that anything outside of their function might lead into.
    fn drop_reachable(
        &mut self,
        ranges: &mut Vec<(Function, Range)>,
        functions: &Functions<'_>,
        read: &mut Reader<'_>,
    ) {
        if ranges.is_empty() {
            return;
        }
        let mut inside = Addresses::new(self.elf.text.addr, self.text.len());
        ranges.iter().flat_map(|(_, range)| range.inside()).for_each(|addr| inside.insert(addr));
        let mut reached = self.distances_to(&inside);
        match self.data_words_in(&inside, read) {
            Some(words) => reached.extend(words),
            None => return ranges.clear(),
        }
        reached.sort_unstable();
        ranges.retain(|(function, range)| {
            let first = reached.partition_point(|addr| *addr <= range.start);
            reached.get(first).is_none_or(|addr| *addr >= range.call)
                && !self.has_short_branch(function, range, functions, read)
        });
    }

    /// The addresses in `wanted` that some bytes of the text would lead to, or name, if an instruction ended there.
    fn distances_to(&self, wanted: &Addresses) -> Vec<u64> {
        // Four bytes name a place only in a program that has its place low down for good.
        let base = u32::try_from(self.elf.text.addr).ok().filter(|_| self.elf.is_fixed);
        let mut found = Vec::new();
        let mut check = |place: u32| {
            if wanted.may_hold(place) && wanted.holds(place) {
                found.push(wanted.base + u64::from(place));
            }
        };
        distances(self.text, |at| {
            // Both wrap, but the text is shorter than that.
            if let (Some(distance), Ok(at)) = (word32(self.text, at), u32::try_from(at)) {
                check(at.wrapping_add(4).wrapping_add(distance));
            }
        });
        if let Some(base) = base {
            addresses(self.text, base.wrapping_add(wanted.low), wanted.span, |at| {
                if let Some(addr) = word32(self.text, at) {
                    check(addr.wrapping_sub(base));
                }
            });
        }
        found
    }

    /// The addresses in `wanted` that stand as words among the data. `None` if there is too much of it.
    fn data_words_in(&self, wanted: &Addresses, read: &mut Reader<'_>) -> Option<Vec<u64>> {
        /// Bytes of data that are looked through, and at once.
        const MOST: u64 = 32 << 20;
        const PART: u64 = 64 << 10;
        let data = self.elf.loads.iter().filter(|segment| !segment.is_text);
        if data.clone().map(|segment| segment.len.min(MOST)).sum::<u64>() >= MOST {
            return None;
        }
        let mut found = Vec::new();
        for segment in data {
            let skew = segment.addr.wrapping_neg() % 8;
            let mut at = skew;
            while at + 8 <= segment.len {
                let len = PART.min(segment.len - at);
                for bytes in read(segment.offset.checked_add(at)?, len)?.chunks_exact(8) {
                    let value = u64::from_le_bytes(bytes.try_into().ok()?);
                    let place = u32::try_from(value.wrapping_sub(wanted.base)).ok();
                    if place.is_some_and(|place| wanted.may_hold(place) && wanted.holds(place)) {
                        found.push(value);
                    }
                }
                at += len;
            }
        }
        Some(found)
    }

    /// Whether a short branch outside of the function may lead into the range: one of a function that is understood, or
    /// bytes of any other that would be one.
    fn has_short_branch(
        &mut self,
        function: &Function,
        range: &Range,
        functions: &Functions<'_>,
        read: &mut Reader<'_>,
    ) -> bool {
        /// A short branch, and how far it goes.
        const LEN: u64 = 2;
        const REACH: u64 = 128;
        let text = self.elf.text;
        let from = range.start.saturating_sub(REACH + LEN).max(text.addr);
        let to = (range.call + REACH + LEN).min(text.addr + self.text.len() as u64);
        let Some(around) = self.bytes(from, to) else { return true };
        let seeming: Vec<u64> = (from..)
            .zip(around.windows(2))
            .filter(|(at, bytes)| {
                let &&[operation, distance] = bytes else { return false };
                let outside = *at < function.start || *at >= function.end;
                let target = (at + LEN).checked_add_signed(i64::from(distance.cast_signed()));
                outside
                    && matches!(operation, 0x70..=0x7f | 0xe0..=0xe3 | 0xeb)
                    && target.is_some_and(|target| range.inside().contains(&target))
            })
            .map(|(at, _)| at)
            .collect();
        seeming.into_iter().any(|at| {
            let Some(other) = functions.around(at, read) else { return true };
            let mut is_there = false;
            let whole = self.decode(other.start, other.end, |here| {
                is_there |= branch_target(here).is_some_and(|target| range.inside().contains(&target));
            });
            !whole || is_there
        })
    }
}

/// A set of addresses of a text.
struct Addresses {
    base: u64,
    bits: Vec<u64>,
    /// The lowest place in it, and how far behind that the highest is.
    low: u32,
    span: u32,
}

impl Addresses {
    fn new(base: u64, len: usize) -> Self {
        Self { base, bits: vec![0; len / 64 + 1], low: u32::MAX, span: 0 }
    }

    fn insert(&mut self, addr: u64) {
        let Ok(place) = u32::try_from(addr - self.base) else { return };
        if let Some(bits) = self.bits.get_mut(place as usize / 64) {
            *bits |= 1 << (place % 64);
        }
        let high = if self.low == u32::MAX { place } else { place.max(self.low + self.span) };
        self.low = self.low.min(place);
        self.span = high - self.low;
    }

    fn may_hold(&self, place: u32) -> bool {
        place.wrapping_sub(self.low) <= self.span
    }

    fn holds(&self, place: u32) -> bool {
        self.bits.get(place as usize / 64).is_some_and(|bits| bits >> (place % 64) & 1 != 0)
    }
}

/// The fewest instructions before a call that leave room for a jump, of those that start at `starts`, the last first.
fn range_before(call: u64, starts: impl Iterator<Item = u64>, text: (u64, &[u8])) -> Option<Range> {
    let (mut start, mut moved_len, mut steps) = (call, 0, Vec::new());
    for at in starts {
        let code = part(text, at, start)?;
        let mut decoder = Decoder::with_ip(64, code, at, DecoderOptions::NONE);
        let instruction = decoder.decode();
        let alone = steps.is_empty() && code.len() >= JUMP;
        let constants = decoder.get_constant_offsets(&instruction);
        // Short addresses, by a prefix, are not meant to go as far.
        let field = (constants.displacement_size() == 4).then(|| constants.displacement_offset());
        let step = Step { moved: moved(&instruction, alone, field)?, len: u8::try_from(code.len()).ok()? };
        start = at;
        moved_len += usize::from(step.moved_len());
        steps.push(step);
        if (call - start) >= JUMP as u64 {
            steps.reverse();
            return (moved_len <= MOVABLE).then_some(Range { start, call, steps });
        }
    }
    None
}

/// The bytes from `start` to `end` of a text that begins at `base`.
fn part((base, text): (u64, &[u8]), start: u64, end: u64) -> Option<&[u8]> {
    let at = |addr: u64| usize::try_from(addr.checked_sub(base)?).ok();
    text.get(at(start)?..at(end)?)
}

/// How an instruction does the same elsewhere; `None` if it does not. One that moves `alone` can be almost any, one of
/// several must be such that a thread can be taken over it step by step.
/// Its distance to what it names, if it has one, stands at byte `field`.
fn moved(instruction: &Instruction, alone: bool, field: Option<usize>) -> Option<Moved> {
    const RT_SIGRETURN: u64 = 15;
    // Unwinders know the return from a handler by its bytes.
    let sigreturn =
        matches!(instruction.code(), Code::Mov_r32_imm32 | Code::Mov_rm64_imm32 | Code::Mov_r64_imm64)
            && instruction.immediate(1) == RT_SIGRETURN;
    if sigreturn || instruction.code() == Code::Syscall {
        return None;
    }
    if !alone && instruction.is_jcc_short_or_near() && instruction.op0_kind() == OpKind::NearBranch64 {
        let condition = condition_number(instruction.condition_code())?;
        return Some(Moved::Branch { condition, target: instruction.near_branch_target() });
    }
    if instruction.flow_control() != FlowControl::Next || !(alone || is_simple(instruction)) {
        return None;
    }
    if !instruction.is_ip_rel_memory_operand() {
        return Some(Moved::Same);
    }
    let usual = instruction.memory_base() == Register::RIP;
    let field = u8::try_from(field?).ok()?;
    usual.then_some(Moved::Relative { field, target: instruction.ip_rel_memory_address() })
}

/// Plain arithmetic on registers and memory, with neither the stack's pointer nor flags that the processor keeps for itself.
fn is_simple(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    let known = matches!(
        instruction.mnemonic(),
        M::Mov
            | M::Movzx
            | M::Movsx
            | M::Movsxd
            | M::Lea
            | M::Xor
            | M::And
            | M::Or
            | M::Add
            | M::Sub
            | M::Inc
            | M::Dec
            | M::Neg
            | M::Not
            | M::Shl
            | M::Shr
            | M::Sar
            | M::Rol
            | M::Ror
            | M::Cmp
            | M::Test
            | M::Nop
            | M::Cdqe
            | M::Cdq
            | M::Cqo
    ) || (instruction.op_count() == 2 && instruction.condition_code() != ConditionCode::None);
    let writes_stack = instruction.op0_kind() == OpKind::Register
        && instruction.op0_register().full_register() == Register::RSP
        && !matches!(instruction.mnemonic(), M::Cmp | M::Test);
    let segment =
        instruction.op0_kind() == OpKind::Register && instruction.op0_register().is_segment_register();
    known && !writes_stack && !segment && !instruction.has_lock_prefix()
}

/// Bytes that are looked at together: the processor compares many at once.
const PART: usize = 64;

/// Which of the flags are one, as bits.
fn bits_of(flags: &[u8; PART]) -> u64 {
    // The lowest bits of eight bytes, side by side in the highest byte of the product.
    let bits = |eight: &[u8]| {
        eight.try_into().map_or(0, u64::from_le_bytes).wrapping_mul(0x0102_0408_1020_4080) >> 56
    };
    flags.chunks_exact(8).rev().fold(0, |all, eight| (all << 8) | bits(eight))
}

/// The places of the bits that are set, the lowest first.
fn set_bits(mut rest: u64) -> impl Iterator<Item = usize> {
    core::iter::from_fn(move || {
        let at = (rest != 0).then(|| rest.trailing_zeros() as usize)?;
        rest &= rest - 1;
        Some(at)
    })
}

/// Calls `each` for where in `text` one of the addresses `first..=first + span` may stand in four bytes: by the two highest of
/// them.
fn addresses(text: &[u8], first: u32, span: u32, mut each: impl FnMut(usize)) {
    let last = first.saturating_add(span);
    let [_, _, third, fourth] = first.to_le_bytes();
    let [_, _, last_third, last_fourth] = last.to_le_bytes();
    let fourths = last_fourth - fourth;
    let (third, thirds) = if fourths == 0 { (third, last_third - third) } else { (0, u8::MAX) };
    let (upper, highest) = (text.get(2..).unwrap_or_default(), text.get(3..).unwrap_or_default());
    for (index, (upper, highest)) in upper.chunks(PART).zip(highest.chunks(PART)).enumerate() {
        let mut flags = [0_u8; PART];
        for ((flag, upper), highest) in flags.iter_mut().zip(upper).zip(highest) {
            *flag = u8::from(upper.wrapping_sub(third) <= thirds)
                & u8::from(highest.wrapping_sub(fourth) <= fourths);
        }
        set_bits(bits_of(&flags)).for_each(|at| each(index * PART + at));
    }
}

/// Calls `each` for where in `text` a distance may stand: behind what makes a branch, a call or the address of something of
/// four bytes.
fn distances(text: &[u8], mut each: impl FnMut(usize)) {
    let after = text.get(1..).unwrap_or_default();
    for (index, (bytes, after)) in text.chunks(PART).zip(after.chunks(PART)).enumerate() {
        let mut flags = [0_u8; PART];
        for ((flag, byte), next) in flags.iter_mut().zip(bytes).zip(after) {
            let near = u8::from(byte & 0xfe == 0xe8);
            let conditional = u8::from(*byte == 0x0f) & u8::from(next & 0xf0 == 0x80);
            let address = u8::from(*byte == 0x8d) & u8::from(next & 0xc7 == 0x05);
            let aborts = u8::from(*byte == 0xc7) & u8::from(*next == 0xf8);
            *flag = near | conditional | address | aborts;
        }
        for at in set_bits(bits_of(&flags)) {
            // The operation is one byte, or two.
            let is_near = bytes.get(at).is_some_and(|byte| byte & 0xfe == 0xe8);
            each(index * PART + at + if is_near { 1 } else { 2 });
        }
    }
}

/// The number of a condition in an instruction's last four bits.
fn condition_number(condition: ConditionCode) -> Option<u8> {
    use ConditionCode as C;
    const IN_ORDER: [ConditionCode; 16] = [
        C::o,
        C::no,
        C::b,
        C::ae,
        C::e,
        C::ne,
        C::be,
        C::a,
        C::s,
        C::ns,
        C::p,
        C::np,
        C::l,
        C::ge,
        C::le,
        C::g,
    ];
    IN_ORDER.iter().position(|known| *known == condition).and_then(|number| u8::try_from(number).ok())
}

/// A jump to where a register or a table says. Those through a pointer of their own, as of a linked function, lead to
/// functions.
fn jumps_by_table(instruction: &Instruction) -> bool {
    instruction.flow_control() == FlowControl::IndirectBranch && !instruction.is_ip_rel_memory_operand()
}

/// Where a branch or a call leads that says so itself.
pub(super) fn branch_target(instruction: &Instruction) -> Option<u64> {
    let near =
        matches!(instruction.op0_kind(), OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64);
    near.then(|| instruction.near_branch_target())
}

#[cfg(test)]
#[path = "sites_tests.rs"]
mod tests;
