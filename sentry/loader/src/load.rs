//! Building the new address space of an exec (`load_elf_binary`).

use std::sync::Arc;

use abi::elf::at;
use platform::{AddrRange, PAGE_SIZE, Platform};
use sentry_base::{Errno, Result};
use sentry_memory::{MemoryFile, UserMemory};
use sentry_mm::{FileMapping, Mm, MmConfig, MmLimits, MmapArgs, map_flags as mf};

use crate::elf::{Elf, Plan};
use crate::file::ExecFile;
use crate::stack;

/// The stack is mapped this far at once; a larger limit is grown into.
const STACK_MAPPED: u64 = 8 << 20;
/// Room for the program below its first stack pointer, whatever the limit (`stack_expand`).
const STACK_ROOM: u64 = 128 << 10;
/// How far the heap may start behind the image (`arch_randomize_brk`).
const BRK_RANDOM: u64 = 32 << 20;
/// How far a position-independent program may move up (`mmap_rnd_bits` = 28).
const PIE_RANDOM: u64 = 1 << 40;
/// The random distance between strings and pointers on the stack (`arch_align_stack`).
const STACK_GAP: u64 = 8192;

/// The ids that a program sees in its auxiliary vector.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ids {
    pub uid: u32,
    pub euid: u32,
    pub gid: u32,
    pub egid: u32,
    /// `AT_SECURE`: the program got privileges that its caller has not.
    pub secure: bool,
}

/// What the processor offers, as the host's auxiliary vector says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Machine {
    pub hwcap: u64,
    pub hwcap2: u64,
    /// Bytes that a signal frame needs at least.
    pub min_signal_stack: u64,
}

impl Machine {
    /// Reads the figures from a host's auxiliary vector (`/proc/self/auxv`).
    pub fn from_auxv(bytes: &[u8]) -> Self {
        let mut out = Self { min_signal_stack: 2048, ..Self::default() };
        for pair in bytes.chunks_exact(16) {
            let word = |at: usize| {
                let bytes = pair.get(at..at + 8).and_then(|b| b.try_into().ok());
                bytes.map_or(0, u64::from_le_bytes)
            };
            match word(0) {
                at::HWCAP => out.hwcap = word(8),
                at::HWCAP2 => out.hwcap2 = word(8),
                at::MINSIGSTKSZ => out.min_signal_stack = word(8),
                _ => {}
            }
        }
        out
    }
}

/// A program to load.
pub struct Image<'a> {
    pub program: &'a Elf,
    pub file: &'a dyn ExecFile,
    /// The dynamic loader that the program names.
    pub interpreter: Option<(&'a Elf, &'a dyn ExecFile)>,
    pub argv: &'a [Vec<u8>],
    pub envp: &'a [Vec<u8>],
    /// The path that was executed, a script's before its interpreter's (`AT_EXECFN`).
    pub filename: &'a [u8],
    pub ids: Ids,
    pub machine: Machine,
    pub limits: MmLimits,
    /// False for `personality(ADDR_NO_RANDOMIZE)`.
    pub randomize: bool,
}

impl core::fmt::Debug for Image<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Image({})", String::from_utf8_lossy(self.filename))
    }
}

/// A program that is ready to run.
#[derive(Debug)]
pub struct Loaded {
    pub mm: Arc<Mm>,
    /// Where execution starts.
    pub entry: u64,
    /// The stack pointer at the start.
    pub stack_pointer: u64,
}

/// Loads a program into a new address space.
///
/// `E2BIG` for too many or too long strings, `EINVAL` for segments that make no sense, `ENOMEM` for addresses or memory
/// that cannot be had, `EFAULT` for a data segment past the end of its file, `ENOEXEC` and `ELIBBAD` for a file that
/// cannot be mapped.
pub fn load(platform: &dyn Platform, memory: &Arc<MemoryFile>, image: &Image<'_>) -> Result<Loaded> {
    let empty = [Vec::new()];
    // A program always has an argv[0], since some walk past it (CVE-2021-4034).
    let argv = if image.argv.is_empty() { &empty } else { image.argv };
    stack::check_strings(image.filename, argv, image.envp, image.limits.stack)?;
    let config = MmConfig { randomize: image.randomize, stack_limit: image.limits.stack };
    let mm = Mm::new(platform, memory, config)?;
    // Nothing runs there yet: all mappings are made at once.
    mm.space().hold();
    map_stack(&mm, image, argv)?;

    let bias = program_bias(&mm, image)?;
    let mut zeroes = Vec::new();
    let plan =
        map_image(&mm, image.program, image.file, bias, &image.limits, &mut zeroes).map_err(|e| match e {
            Errno::ENODEV => Errno::ENOEXEC,
            other => other,
        })?;
    let mut entry = plan.entry;
    let mut base = 0;
    if let Some((elf, file)) = image.interpreter {
        let bias = free_bias(&mm, elf)?;
        let plan = map_image(&mm, elf, file, bias, &image.limits, &mut zeroes).map_err(|e| match e {
            Errno::ENODEV => Errno::ELIBBAD,
            other => other,
        })?;
        entry = plan.entry;
        base = plan.bias;
    }

    mm.space().release().map_err(|_| Errno::ENOMEM)?;
    for zero in zeroes {
        let len = usize::try_from(zero.len()).map_err(|_| Errno::EFAULT)?;
        mm.copy_out(zero.start, &vec![0; len])?;
    }

    let mut random = [0; 16];
    sentry_base::rand::fill(&mut random)?;
    let gap = if image.randomize { sentry_base::rand::next_u64() % STACK_GAP } else { 0 };
    let vdso = mm.vdso().map(|v| v.start);
    let stack = stack::build(mm.stack_top(), image.filename, argv, image.envp, random, gap, |places| {
        aux_vector(image, &plan, base, vdso, places)
    })?;
    mm.copy_out(stack.sp, &stack.bytes)?;

    let brk = heap_start(&mm, image, &plan);
    mm.set_layout(|layout| {
        layout.start_code = plan.code.start.min(plan.code.end);
        layout.end_code = plan.code.end;
        layout.start_data = plan.data.start;
        layout.end_data = plan.data.end;
        layout.start_brk = brk;
        layout.brk = brk;
        layout.start_stack = stack.sp;
        layout.arg_start = stack.arg_start;
        layout.arg_end = stack.arg_end;
        layout.env_start = stack.env_start;
        layout.env_end = stack.env_end;
        layout.auxv = stack.auxv;
    });
    Ok(Loaded { mm, entry, stack_pointer: stack.sp })
}

fn map_stack(mm: &Mm, image: &Image<'_>, argv: &[Vec<u8>]) -> Result<()> {
    let need = stack::stack_size(image.filename, argv, image.envp) + STACK_GAP + STACK_ROOM;
    let size = image.limits.stack.min(STACK_MAPPED).max(need).next_multiple_of(PAGE_SIZE);
    let top = mm.stack_top();
    let start = top.checked_sub(size).ok_or(Errno::ENOMEM)?;
    let exec = if image.program.exec_stack { 4 } else { 0 };
    let args = MmapArgs {
        addr: start,
        len: size,
        prot: 3 | exec,
        flags: mf::PRIVATE | mf::FIXED | mf::GROWSDOWN | mf::NORESERVE,
        file: None,
    };
    mm.mmap(&args, &image.limits).map(drop)
}

/// Where a program goes: where it says, or, if it does not care, at two thirds of the address space for one with a
/// dynamic loader, which leaves the heap room to grow, and among the mappings for one without.
fn program_bias(mm: &Mm, image: &Image<'_>) -> Result<u64> {
    let elf = image.program;
    if elf.is_relocatable() && image.interpreter.is_some() {
        let extent = elf.extent()?;
        let start = pie_base(mm) & !(elf.alignment() - 1);
        if AddrRange::new(start, extent.len()).is_some_and(|range| mm.is_free(range)) {
            return Ok(start.wrapping_sub(extent.start));
        }
    }
    free_bias(mm, elf)
}

fn pie_base(mm: &Mm) -> u64 {
    let user = mm.user_range();
    let random =
        if mm.randomizes() { sentry_base::rand::next_u64() % PIE_RANDOM.min(user.len() / 8) } else { 0 };
    let base = user.end / 3 * 2 + random;
    base - base % PAGE_SIZE
}

fn free_bias(mm: &Mm, elf: &Elf) -> Result<u64> {
    if !elf.is_relocatable() {
        return Ok(0);
    }
    let extent = elf.extent()?;
    let align = elf.alignment();
    let len = extent.len().checked_add(align - PAGE_SIZE).ok_or(Errno::ENOMEM)?;
    let start = mm.pick_free(len)?.next_multiple_of(align);
    Ok(start.wrapping_sub(extent.start))
}

/// Maps the segments of a program. What is left to be cleared behind their ends goes to `zeroes`.
fn map_image(
    mm: &Mm,
    elf: &Elf,
    file: &dyn ExecFile,
    bias: u64,
    limits: &MmLimits,
    zeroes: &mut Vec<AddrRange>,
) -> Result<Plan> {
    let plan = elf.plan(bias, mm.user_range())?;
    if !mm.is_free(plan.range) {
        return Err(Errno::ENOMEM);
    }
    let source = file.mappable()?;
    let name = file.name();
    let fixed = mf::PRIVATE | mf::FIXED;
    for segment in &plan.segments {
        if !segment.file.is_empty() {
            let mapping = FileMapping {
                file: Arc::clone(&source),
                name: name.clone(),
                offset: segment.offset,
                readable: true,
                writable: false,
                noexec: false,
            };
            let args = MmapArgs {
                addr: segment.file.start,
                len: segment.file.len(),
                prot: segment.prot,
                flags: fixed,
                file: Some(mapping),
            };
            mm.mmap(&args, limits)?;
            zeroes.retain(|zero| !zero.overlaps(&segment.file));
            // A page that cannot be written keeps the file's bytes, as on Linux.
            if segment.prot & 2 != 0 && !segment.zero.is_empty() {
                zeroes.push(segment.zero);
            }
        }
        if !segment.bss.is_empty() {
            let args = MmapArgs {
                addr: segment.bss.start,
                len: segment.bss.len(),
                prot: 3 | (segment.prot & 4),
                flags: fixed,
                file: None,
            };
            mm.mmap(&args, limits)?;
        }
    }
    Ok(plan)
}

fn heap_start(mm: &Mm, image: &Image<'_>, plan: &Plan) -> u64 {
    let random = if mm.randomizes() { sentry_base::rand::next_u64() % BRK_RANDOM } else { 0 };
    // A static program among the mappings has no room behind it (`load_elf_binary`, "brk_moved").
    let moved = image.program.is_relocatable() && image.interpreter.is_none();
    let base = if moved { pie_base(mm) } else { plan.brk };
    let at = base.saturating_add(random);
    at - at % PAGE_SIZE
}

fn aux_vector(
    image: &Image<'_>,
    plan: &Plan,
    base: u64,
    vdso: Option<u64>,
    places: stack::Places,
) -> Vec<(u64, u64)> {
    let mut out = Vec::with_capacity(24);
    if let Some(vdso) = vdso {
        out.push((at::SYSINFO_EHDR, vdso));
    }
    let ids = &image.ids;
    out.extend([
        (at::MINSIGSTKSZ, image.machine.min_signal_stack),
        (at::HWCAP, image.machine.hwcap),
        (at::PAGESZ, PAGE_SIZE),
        (at::CLKTCK, 100),
        (at::PHDR, plan.phdr),
        (at::PHENT, size_of::<abi::elf::Phdr>() as u64),
        (at::PHNUM, image.program.segments.len() as u64),
        (at::BASE, base),
        (at::FLAGS, 0),
        (at::ENTRY, plan.entry),
        (at::UID, ids.uid.into()),
        (at::EUID, ids.euid.into()),
        (at::GID, ids.gid.into()),
        (at::EGID, ids.egid.into()),
        (at::SECURE, ids.secure.into()),
        (at::RANDOM, places.random),
        (at::HWCAP2, image.machine.hwcap2),
        (at::EXECFN, places.execfn),
        (at::PLATFORM, places.platform),
    ]);
    out
}
