//! Texts made for the purpose: what may move, and each way into the midst of it.

use super::super::elf::Segment;
use super::*;

const BASE: u64 = 0x1000;
/// `mov edi, ebx`, `mov esi, ebx`, `mov eax, ebp`, `syscall`.
const SHORT: &[u8] = &[0x89, 0xdf, 0x89, 0xde, 0x89, 0xe8, 0x0f, 0x05];
const RET: u8 = 0xc3;

/// Where ranges start and how many instructions they have, in functions of these bytes, one behind the other, and with
/// `word` among the data.
fn ranges(functions: &[&[u8]], word: u64) -> Vec<(u64, usize)> {
    let text = functions.concat();
    let segment = |addr: u64, len: u64, is_text: bool| Segment { offset: addr, addr, len, is_text };
    let code = segment(BASE, text.len() as u64, true);
    let elf = Elf::for_test(code, vec![code, segment(0x8000, 8, false)]);
    let mut read =
        |offset: u64, len: u64| ((offset, len) == (0x8000, 8)).then(|| word.to_le_bytes().to_vec());
    let mut listed = Vec::new();
    let mut start = BASE;
    for bytes in functions {
        listed.push((start, start + bytes.len() as u64));
        start += bytes.len() as u64;
    }
    let calls: Vec<u64> =
        memchr::memmem::find_iter(&text, &[0x0f, 0x05]).map(|at| BASE + at as u64).collect();
    let functions = Functions::for_test(&elf, &text, listed);
    let found = find_among(&elf, &text, &calls, &functions, &mut read);
    found.into_iter().map(|range| (range.start, range.steps.len())).collect()
}

fn alone(bytes: &[u8]) -> Vec<(u64, usize)> {
    ranges(&[bytes], 0)
}

/// `SHORT` with bytes around it.
fn around(before: &[u8], after: &[u8]) -> Vec<u8> {
    [before, SHORT, after].concat()
}

#[test]
fn addresses_in_four_bytes_are_found_wherever_they_stand() {
    let mut state = 7_u32;
    let mut random = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    for (first, span) in
        [(0x0040_1234, 0), (0x0040_f000, 0x2000), (0x00ff_0000, 0x3_0000), (0xffff_ff00, 0xff)]
    {
        for len in [0, 3, 4, 64, 67, 130, 1000] {
            let mut text: Vec<u8> = (0..len).map(|_| random()).collect();
            for at in [0_usize, 1, 60, 61, 63, 64, 126, 993] {
                let addr = first + u32::from(random()) * span / 255;
                if let Some(place) = text.get_mut(at..at + 4) {
                    place.copy_from_slice(&addr.to_le_bytes());
                }
            }
            let is_one = |at: &usize| word32(&text, *at).is_some_and(|addr| addr.wrapping_sub(first) <= span);
            let mut found = Vec::new();
            addresses(&text, first, span, |at| found.push(at));
            found.retain(is_one);
            assert_eq!(found, (0..text.len()).filter(is_one).collect::<Vec<_>>(), "{first:x} {len}");
        }
    }
}

#[test]
fn one_instruction_moves() {
    assert_eq!(alone(&[0xb8, 39, 0, 0, 0, 0x0f, 0x05]), [(BASE, 1)], "mov eax, 39");
    assert_eq!(alone(&[0x4c, 0x8b, 0x4c, 0x24, 8, 0x0f, 0x05]), [(BASE, 1)], "mov r9, [rsp + 8]");
    assert_eq!(alone(&[0x48, 0x8d, 0x35, 1, 0, 0, 0, 0x0f, 0x05]), [(BASE, 1)], "lea rsi, [rip + 1]");
    assert_eq!(alone(&[0x48, 0xc7, 0xc0, 15, 0, 0, 0, 0x0f, 0x05]), [], "the return from a handler");
    assert_eq!(alone(&[0xe8, 0, 0, 0, 0, 0x0f, 0x05]), [], "a call");
    assert_eq!(alone(&[0x0f, 0x84, 0, 0, 0, 0, 0x0f, 0x05]), [], "a branch");
}

#[test]
fn several_instructions_move() {
    assert_eq!(alone(&around(&[], &[RET])), [(BASE, 3)]);
    assert_eq!(alone(&around(&[0x90, 0x90], &[RET])), [(BASE + 2, 3)], "no more than are needed");
    assert_eq!(alone(&[0x58, 0x58, 0x89, 0xe8, 0x0f, 0x05]), [], "pop");
    assert_eq!(alone(&[0x48, 0x83, 0xec, 8, 0x89, 0xe8, 0x0f, 0x05]), [], "the stack's pointer");
    assert_eq!(alone(&[0x8e, 0xd8, 0x89, 0xde, 0x89, 0xe8, 0x0f, 0x05]), [], "a segment");
    assert_eq!(alone(&[0xf3, 0xa4, 0x89, 0xde, 0x89, 0xe8, 0x0f, 0x05]), [], "a loop of its own");
    assert_eq!(alone(&[0xc3, 0x0f, 0x05, 0x89, 0xde, 0x89, 0xe8, 0x0f, 0x05]), [], "another call");
    assert_eq!(alone(&[0x89, 0xe8, 0x0f, 0x05]), [], "too few");
}

#[test]
fn a_branch_moves() {
    // cmp dword ptr [rip + 0x10], 0; je to the end; xor eax, eax; syscall
    let code = [0x83, 0x3d, 0x10, 0, 0, 0, 0, 0x74, 4, 0x31, 0xc0, 0x0f, 0x05, RET];
    assert_eq!(alone(&code), [(BASE, 3)]);
}

#[test]
fn nothing_leads_into_the_midst() {
    for (target, expected) in [(0_i8, 1), (2, 0), (4, 0), (3, 0), (6, 1)] {
        let to = |end: i8| target.wrapping_sub(end).cast_unsigned();
        // jne, of the same function, behind and before
        let found = alone(&around(&[], &[0x75, to(10), RET]));
        assert_eq!(found.len(), expected, "to byte {target} from behind");
        let found = alone(&around(&[0x75, target.cast_unsigned()], &[RET]));
        assert_eq!(found.len(), expected, "to byte {target} from before");
        // jmp, and lea, of another function; a call like the jump
        let distance = i32::from(target) - 14;
        for operation in [&[0x90, 0xe9][..], &[0x90, 0xe8]] {
            let far = [operation, &distance.to_le_bytes(), &[RET]].concat();
            let found = ranges(&[&around(&[], &[]), &far], 0);
            assert_eq!(found.len(), expected, "{operation:x?} to byte {target} from another function");
        }
        let far = [&[0x48, 0x8d, 0x05][..], &(distance - 1).to_le_bytes(), &[RET]].concat();
        assert_eq!(ranges(&[&around(&[], &[]), &far], 0).len(), expected, "the address of byte {target}");
        // A short jump of another function, and the same as bytes of nothing that is known.
        let found = ranges(&[&around(&[], &[]), &[0xeb, to(10)]], 0);
        assert_eq!(found.len(), expected, "to byte {target} from close by");
        // An address among the data.
        let found = ranges(&[&around(&[], &[RET])], BASE.wrapping_add_signed(target.into()));
        assert_eq!(found.len(), expected, "byte {target} by its address");
    }
}

#[test]
fn tables_are_not_trusted() {
    // jmp [rax * 8 + 0x1000]
    let table = [0xff, 0x24, 0xc5, 0, 0x10, 0, 0];
    assert_eq!(alone(&around(&[], &table)), [], "a jump by a table");
    assert_eq!(ranges(&[&around(&[], &[RET]), &table], 0), [(BASE, 3)], "one of another function");
    // je to the other function, jmp to the other function
    assert_eq!(ranges(&[&around(&[], &[0x74, 0]), &table], 0), [], "one of a part of the function");
    // jmp [rip + 0x10]
    let linked = [0xff, 0x25, 0x10, 0, 0, 0];
    assert_eq!(alone(&around(&[], &linked)), [(BASE, 3)], "a jump to a linked function");
    assert_eq!(alone(&around(&[], &[0x06])), [], "bytes that are no instruction");
}
