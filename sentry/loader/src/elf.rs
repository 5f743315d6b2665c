//! ELF headers, and the plan of a load: which addresses show what.

use abi::elf::{
    EI_CLASS, EI_DATA, ELFCLASS64, ELFDATA2LSB, EM_X86_64, ET_DYN, ET_EXEC, Ehdr, MAGIC, PF_R, PF_W, PF_X,
    PT_GNU_STACK, PT_INTERP, PT_LOAD, Phdr,
};
use platform::{AddrRange, PAGE_SIZE};
use sentry_base::{Errno, Result};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::file::{ExecFile, read_exact};

/// The longest interpreter path, its NUL included.
const PATH_MAX: u64 = 4096;
/// The program headers fit in a page (`load_elf_phdrs`).
const PHDRS_MAX: usize = 4096;

/// A checked ELF header with its program headers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Elf {
    pub header: Ehdr,
    pub segments: Vec<Phdr>,
    /// `PT_INTERP`: the path of the dynamic loader.
    pub interpreter: Option<Vec<u8>>,
    /// `PT_GNU_STACK` asks for a stack that can be executed.
    pub exec_stack: bool,
}

/// One `PT_LOAD` at its final addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Pages that show the file; may be empty.
    pub file: AddrRange,
    /// Byte of the file at the start of `file`.
    pub offset: u64,
    /// Bytes after the file's part, in its last page, that must read as zeroes.
    pub zero: AddrRange,
    /// Pages of zeroes after it; may be empty.
    pub bss: AddrRange,
    /// `PROT_*`.
    pub prot: u32,
}

/// Where an image goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub segments: Vec<Segment>,
    /// All of it, in whole pages.
    pub range: AddrRange,
    pub entry: u64,
    /// Where the program headers are in memory; zero if no segment holds them.
    pub phdr: u64,
    /// What is added to the file's addresses.
    pub bias: u64,
    pub code: AddrRange,
    pub data: AddrRange,
    /// The end of the highest segment, in whole pages: where the heap may start.
    pub brk: u64,
}

fn page_down(at: u64) -> u64 {
    at - at % PAGE_SIZE
}

fn page_up(at: u64) -> Option<u64> {
    at.checked_next_multiple_of(PAGE_SIZE)
}

fn check_header(header: &Ehdr) -> bool {
    header.ident.starts_with(&MAGIC)
        && header.ident.get(EI_CLASS) == Some(&ELFCLASS64)
        && header.ident.get(EI_DATA) == Some(&ELFDATA2LSB)
        && matches!(header.kind, ET_EXEC | ET_DYN)
        && header.machine == EM_X86_64
}

fn read_phdrs(file: &dyn ExecFile, header: &Ehdr) -> Result<Vec<Phdr>> {
    let count = usize::from(header.phnum);
    if usize::from(header.phentsize) != size_of::<Phdr>()
        || count == 0
        || count * size_of::<Phdr>() > PHDRS_MAX
    {
        return Err(Errno::ENOEXEC);
    }
    let mut table = vec![Phdr::new_zeroed(); count];
    read_exact(file, header.phoff, table.as_mut_bytes()).map_err(|_| Errno::ENOEXEC)?;
    Ok(table)
}

impl Elf {
    /// Reads the headers of a program whose first bytes are `head`. `ENOEXEC` for what is no program for this machine.
    pub fn parse(file: &dyn ExecFile, head: &[u8]) -> Result<Self> {
        let (header, _) = Ehdr::read_from_prefix(head).map_err(|_| Errno::ENOEXEC)?;
        if !check_header(&header) {
            return Err(Errno::ENOEXEC);
        }
        let segments = read_phdrs(file, &header)?;
        let interpreter = match segments.iter().find(|p| p.kind == PT_INTERP) {
            Some(phdr) => Some(read_interpreter(file, phdr)?),
            None => None,
        };
        let exec_stack =
            segments.iter().rev().find(|p| p.kind == PT_GNU_STACK).is_some_and(|p| p.flags & PF_X != 0);
        Ok(Self { header, segments, interpreter, exec_stack })
    }

    /// Reads the headers of a dynamic loader. Its own `PT_INTERP` is ignored. `EIO` for a file without a whole header,
    /// `ELIBBAD` for any other that cannot be one.
    pub fn parse_interpreter(file: &dyn ExecFile) -> Result<Self> {
        let mut header = Ehdr::new_zeroed();
        read_exact(file, 0, header.as_mut_bytes())?;
        if !check_header(&header) {
            return Err(Errno::ELIBBAD);
        }
        let segments = read_phdrs(file, &header).map_err(|_| Errno::ELIBBAD)?;
        Ok(Self { header, segments, interpreter: None, exec_stack: false })
    }

    /// Whether the image may go anywhere (`ET_DYN`).
    pub fn is_relocatable(&self) -> bool {
        self.header.kind == ET_DYN
    }

    fn loads(&self) -> impl Iterator<Item = &Phdr> {
        self.segments.iter().filter(|p| p.kind == PT_LOAD)
    }

    /// The first and one past the last address of the file's segments, in whole pages (`total_mapping_size`);
    /// `EINVAL` where there is none or they wrap.
    pub fn extent(&self) -> Result<AddrRange> {
        let mut range: Option<AddrRange> = None;
        for phdr in self.loads() {
            let start = page_down(phdr.vaddr);
            let end = phdr.vaddr.checked_add(phdr.memsz).and_then(page_up).ok_or(Errno::EINVAL)?;
            range = Some(match range {
                Some(r) => AddrRange { start: r.start.min(start), end: r.end.max(end) },
                None => AddrRange { start, end },
            });
        }
        range.filter(|r| !r.is_empty()).ok_or(Errno::EINVAL)
    }

    /// The alignment that the segments ask for (`maximum_alignment`), at least a page.
    pub fn alignment(&self) -> u64 {
        let wanted = self.loads().map(|p| p.align).filter(|a| a.is_power_of_two());
        // A gigabyte is far beyond any linker, and keeps a hostile file from pushing the image out of the range.
        wanted.max().unwrap_or(0).clamp(PAGE_SIZE, 1 << 30)
    }

    /// Plans the image at `bias` inside `user`. `EINVAL` for segments that make no sense, `ENOMEM` for addresses that
    /// cannot be had.
    pub fn plan(&self, bias: u64, user: AddrRange) -> Result<Plan> {
        let extent = self.extent()?;
        let range = AddrRange { start: extent.start.wrapping_add(bias), end: extent.end.wrapping_add(bias) };
        if range.is_empty() || !user.contains_range(&range) {
            return Err(Errno::ENOMEM);
        }
        let mut plan = Plan {
            segments: Vec::new(),
            range,
            entry: self.header.entry.wrapping_add(bias),
            phdr: 0,
            bias,
            code: AddrRange { start: u64::MAX, end: 0 },
            data: AddrRange { start: 0, end: 0 },
            brk: 0,
        };
        for phdr in self.loads() {
            plan.add(phdr, &self.header)?;
        }
        if !user.contains(plan.entry) {
            return Err(Errno::EINVAL);
        }
        Ok(plan)
    }
}

impl Plan {
    fn add(&mut self, phdr: &Phdr, header: &Ehdr) -> Result<()> {
        if phdr.filesz > phdr.memsz {
            return Err(Errno::EINVAL);
        }
        // `extent` has checked that the file's addresses do not wrap, and `plan` that the biased ones are usable.
        let start = phdr.vaddr.wrapping_add(self.bias);
        let file_end = start.checked_add(phdr.filesz).ok_or(Errno::EINVAL)?;
        let end = start.checked_add(phdr.memsz).ok_or(Errno::EINVAL)?;
        let first = page_down(start);
        let file_pages = if phdr.filesz > 0 { page_up(file_end).ok_or(Errno::EINVAL)? } else { first };
        let last = page_up(end).ok_or(Errno::EINVAL)?;
        if !self.range.contains_range(&AddrRange { start: first, end: last }) {
            return Err(Errno::EINVAL);
        }
        let offset = phdr.offset.wrapping_sub(start - first);
        if phdr.filesz > 0
            && (!offset.is_multiple_of(PAGE_SIZE)
                || offset > phdr.offset
                || phdr.offset.checked_add(phdr.filesz).is_none_or(|e| i64::try_from(e).is_err()))
        {
            return Err(Errno::EINVAL);
        }
        let bit = |flag: u32, prot: u32| if phdr.flags & flag != 0 { prot } else { 0 };
        let has_zeroes = phdr.memsz > phdr.filesz && phdr.filesz > 0;
        self.segments.push(Segment {
            file: AddrRange { start: first, end: file_pages },
            offset,
            zero: AddrRange { start: file_end, end: if has_zeroes { file_pages } else { file_end } },
            bss: AddrRange { start: file_pages, end: last.max(file_pages) },
            prot: bit(PF_R, 1) | bit(PF_W, 2) | bit(PF_X, 4),
        });
        if phdr.offset <= header.phoff && header.phoff - phdr.offset < phdr.filesz {
            self.phdr = start + (header.phoff - phdr.offset);
        }
        if phdr.flags & PF_X != 0 {
            self.code.start = self.code.start.min(start);
            self.code.end = self.code.end.max(file_end);
        }
        self.data.start = self.data.start.max(start);
        self.data.end = self.data.end.max(file_end);
        self.brk = self.brk.max(last);
        Ok(())
    }
}

fn read_interpreter(file: &dyn ExecFile, phdr: &Phdr) -> Result<Vec<u8>> {
    if !(2..=PATH_MAX).contains(&phdr.filesz) {
        return Err(Errno::ENOEXEC);
    }
    let mut path = vec![0; usize::try_from(phdr.filesz).map_err(|_| Errno::ENOEXEC)?];
    read_exact(file, phdr.offset, &mut path)?;
    if path.pop() != Some(0) {
        return Err(Errno::ENOEXEC);
    }
    // Linux opens what is before the first NUL.
    let end = path.iter().position(|b| *b == 0).unwrap_or(path.len());
    path.truncate(end);
    Ok(path)
}
