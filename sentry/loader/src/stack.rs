//! The first stack of a program: strings, pointers and the auxiliary vector (`create_elf_tables`, `copy_strings`).
//!
//! ```text
//! top ─►  8 zero bytes
//!         file name            (AT_EXECFN)
//!         environment strings
//!         argument strings
//!         random gap, platform name, 16 random bytes
//!         auxiliary vector
//!         environment pointers, 0
//!         argument pointers, 0
//! sp ──►  argc
//! ```

use sentry_base::{Errno, Result};

/// The longest string of an argument vector or environment, its NUL included (`MAX_ARG_STRLEN`).
const STRING_MAX: usize = 128 << 10;
/// The smallest limit on all strings together (`ARG_MAX`).
const TOTAL_MIN: u64 = 128 << 10;
/// The largest limit: three quarters of 8 MiB.
const TOTAL_MAX: u64 = 6 << 20;

const PLATFORM: &[u8] = b"x86_64";

/// The limit on the bytes of all strings and pointers, for this `RLIMIT_STACK` (`bprm_stack_limits`).
pub fn strings_limit(stack_limit: u64) -> u64 {
    (stack_limit / 4).clamp(TOTAL_MIN, TOTAL_MAX)
}

/// `E2BIG` where the arguments and the environment are more than a program may get.
pub fn check_strings(filename: &[u8], argv: &[Vec<u8>], envp: &[Vec<u8>], stack_limit: u64) -> Result<()> {
    let pointers = (argv.len().max(1) as u64).saturating_add(envp.len() as u64).saturating_mul(8);
    let room = strings_limit(stack_limit).checked_sub(pointers).filter(|r| *r > 0).ok_or(Errno::E2BIG)?;
    let mut used = filename.len() as u64 + 1;
    for string in argv.iter().chain(envp) {
        if string.len() >= STRING_MAX {
            return Err(Errno::E2BIG);
        }
        used = used.saturating_add(string.len() as u64 + 1);
    }
    if used > room { Err(Errno::E2BIG) } else { Ok(()) }
}

/// Where the stack's strings are, for the auxiliary vector.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Places {
    pub execfn: u64,
    pub platform: u64,
    pub random: u64,
}

/// A stack that is ready to be copied to `sp`.
#[derive(Debug)]
pub(crate) struct Stack {
    pub sp: u64,
    pub bytes: Vec<u8>,
    pub auxv: Vec<u8>,
    pub arg_start: u64,
    pub arg_end: u64,
    pub env_start: u64,
    pub env_end: u64,
}

/// Bytes that the stack of these strings takes at most, without the random gap.
pub(crate) fn stack_size(filename: &[u8], argv: &[Vec<u8>], envp: &[Vec<u8>]) -> u64 {
    let strings: u64 = argv.iter().chain(envp).map(|s| s.len() as u64 + 9).sum();
    strings + filename.len() as u64 + 1024
}

/// Builds the stack below `top`, with `gap` bytes between strings and pointers. `auxv` gets the places of what lies on
/// the stack and returns all pairs but the last, `AT_NULL`.
pub(crate) fn build(
    top: u64,
    filename: &[u8],
    argv: &[Vec<u8>],
    envp: &[Vec<u8>],
    random: [u8; 16],
    gap: u64,
    auxv: impl FnOnce(Places) -> Vec<(u64, u64)>,
) -> Result<Stack> {
    // Strings from low to high addresses; their end is 8 bytes below the top.
    let mut strings = Vec::new();
    let mut offsets = Vec::with_capacity(argv.len() + envp.len());
    for string in argv.iter().chain(envp) {
        offsets.push(strings.len() as u64);
        strings.extend_from_slice(string);
        strings.push(0);
    }
    let arg_bytes: u64 = argv.iter().map(|s| s.len() as u64 + 1).sum();
    let env_end_offset = strings.len() as u64;
    strings.extend_from_slice(filename);
    strings.extend_from_slice(&[0; 9]);
    let base = top.checked_sub(strings.len() as u64).ok_or(Errno::E2BIG)?;

    let align = |at: u64| at & !15;
    let mut low = align(base).checked_sub(align(gap)).ok_or(Errno::E2BIG)?;
    low = low.checked_sub(PLATFORM.len() as u64 + 1).ok_or(Errno::E2BIG)?;
    let platform = low;
    low = low.checked_sub(16).ok_or(Errno::E2BIG)?;
    let places = Places { execfn: base + env_end_offset, platform, random: low };

    let mut aux_words = Vec::new();
    for (key, value) in auxv(places).into_iter().chain([(0, 0)]) {
        aux_words.extend([key, value]);
    }
    let (arg_offsets, env_offsets) = offsets.split_at_checked(argv.len()).unwrap_or_default();
    let mut words = vec![argv.len() as u64];
    words.extend(arg_offsets.iter().map(|at| base + at));
    words.push(0);
    words.extend(env_offsets.iter().map(|at| base + at));
    words.push(0);
    words.extend(&aux_words);
    let sp = align(low.checked_sub(words.len() as u64 * 8).ok_or(Errno::E2BIG)?);

    let bytes_of = |words: &[u64]| words.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>();
    let mut bytes = bytes_of(&words);
    let mut put = |at: u64, part: &[u8]| {
        bytes.resize(usize::try_from(at - sp).unwrap_or(bytes.len()), 0);
        bytes.extend_from_slice(part);
    };
    put(places.random, &random);
    put(places.platform, PLATFORM);
    put(base, &strings);
    Ok(Stack {
        sp,
        bytes,
        auxv: bytes_of(&aux_words),
        arg_start: base,
        arg_end: base + arg_bytes,
        env_start: base + arg_bytes,
        env_end: base + env_end_offset,
    })
}
