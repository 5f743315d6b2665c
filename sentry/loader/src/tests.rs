//! Programs built by hand, good ones and hostile ones.

use std::sync::Arc;

use abi::elf::{EM_X86_64, ET_DYN, ET_EXEC, Ehdr, PT_INTERP, PT_LOAD, Phdr, at};
use platform::PAGE_SIZE;
use proptest::prelude::*;
use sentry_base::lock::rank;
use sentry_base::{Errno, Mutex, Result};
use sentry_memory::{MemoryFile, PagedData, UserMemory};
use sentry_mm::testing::FakePlatform;
use sentry_mm::{MapName, Mappable, MappedFile, MappedPiece, Mm, MmLimits};
use zerocopy::{FromZeros, IntoBytes};

use crate::*;

/// An executable in memory.
struct Exe {
    bytes: Vec<u8>,
    pages: Arc<Pages>,
}

struct Pages(Mutex<PagedData, { rank::FILE_DATA }>, u64);

impl Mappable for Pages {
    fn pieces(&self, offset: u64, len: u64, _write: bool) -> Result<Vec<MappedPiece>> {
        let mut data = self.0.lock();
        let pieces = data.pieces(offset, len, self.1)?;
        Ok(MappedPiece::of_data(data.memory_file(), &pieces))
    }
    fn identity(&self) -> (u64, u64) {
        (1, 2)
    }
}

impl ExecFile for Exe {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        self.bytes.as_slice().read_at(offset, buf)
    }
    fn mappable(&self) -> Result<Arc<dyn Mappable>> {
        Ok(Arc::clone(&self.pages) as Arc<dyn Mappable>)
    }
    fn name(&self) -> Option<Arc<dyn MappedFile>> {
        None
    }
}

impl Exe {
    fn new(memory: &Arc<MemoryFile>, bytes: Vec<u8>) -> Self {
        let mut data = PagedData::new(memory);
        data.write(0, &bytes).unwrap();
        let len = bytes.len() as u64;
        Self { bytes, pages: Arc::new(Pages(Mutex::new(data), len)) }
    }
}

fn load_at(offset: u64, vaddr: u64, filesz: u64, memsz: u64, flags: u32) -> Phdr {
    Phdr { kind: PT_LOAD, flags, offset, vaddr, paddr: 0, filesz, memsz, align: PAGE_SIZE }
}

/// A file of three pages: headers and code, then data, then a string for `PT_INTERP` at 0x2800.
fn elf(kind: u16, entry: u64, phdrs: &[Phdr]) -> Vec<u8> {
    let mut header = Ehdr::new_zeroed();
    header.ident[..6].copy_from_slice(b"\x7fELF\x02\x01");
    header.kind = kind;
    header.machine = EM_X86_64;
    header.entry = entry;
    header.phoff = 64;
    header.phentsize = 56;
    header.phnum = u16::try_from(phdrs.len()).unwrap();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(phdrs.as_bytes());
    bytes.resize(0x3000, 0xcc);
    bytes[0x2800..0x2810].copy_from_slice(b"/lib/ld-test.so\0");
    bytes
}

fn program(kind: u16, base: u64) -> Vec<u8> {
    let phdrs = [load_at(0, base, 0x1000, 0x1000, 5), load_at(0x1000, base + 0x1000, 0x234, 0x3000, 6)];
    elf(kind, base + 0x100, &phdrs)
}

fn parse(exe: &Exe) -> Result<Elf> {
    match identify(exe)? {
        Format::Elf(elf) => Ok(elf),
        Format::Script(_) => panic!("not a script"),
    }
}

fn image<'a>(program: &'a Elf, file: &'a Exe, argv: &'a [Vec<u8>], envp: &'a [Vec<u8>]) -> Image<'a> {
    Image {
        program,
        file,
        interpreter: None,
        argv,
        envp,
        filename: b"/bin/prog",
        ids: Ids { uid: 5, secure: true, ..Ids::default() },
        machine: Machine { hwcap: 0xfe, hwcap2: 2, min_signal_stack: 3632 },
        limits: MmLimits::DEFAULT,
        randomize: true,
    }
}

fn words<const N: usize>(mm: &Mm, at: u64) -> [u64; N] {
    std::array::from_fn(|i| {
        let mut bytes = [0; 8];
        mm.copy_in(at + 8 * i as u64, &mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    })
}

fn text(mm: &Mm, at: u64) -> Vec<u8> {
    sentry_memory::copy_in_cstr(mm, at, 4096, Errno::E2BIG).unwrap()
}

fn aux(mm: &Mm, key: u64) -> Option<u64> {
    let auxv = mm.layout().auxv;
    let word = |b: &[u8]| u64::from_le_bytes(b.try_into().unwrap());
    auxv.chunks_exact(16).find(|p| word(&p[..8]) == key).map(|p| word(&p[8..]))
}

fn strings(list: &[&str]) -> Vec<Vec<u8>> {
    list.iter().map(|s| s.as_bytes().to_vec()).collect()
}

#[test]
fn a_static_program_gets_its_segments_and_stack() {
    let memory = MemoryFile::create(1 << 30).unwrap();
    let exe = Exe::new(&memory, program(ET_EXEC, 0x40_0000));
    let elf = parse(&exe).unwrap();
    let (argv, envp) = (strings(&["prog", "-x"]), strings(&["A=1"]));
    let loaded = load(&FakePlatform, &memory, &image(&elf, &exe, &argv, &envp)).unwrap();
    let mm = &loaded.mm;
    assert_eq!(loaded.entry, 0x40_0100);
    assert_eq!(loaded.stack_pointer % 16, 0);

    // The data segment: file bytes, then zeroes to the end of the page, then pages of zeroes.
    let mut edge = [9; 4];
    mm.copy_in(0x40_1232, &mut edge).unwrap();
    assert_eq!(edge, [0xcc, 0xcc, 0, 0]);
    mm.copy_in(0x40_3ffc, &mut edge).unwrap();
    assert_eq!(edge, [0; 4]);
    // The file itself is as it was.
    let mut raw = [0; 4];
    exe.pages.0.lock().read(0x1234, &mut raw);
    assert_eq!(raw, [0xcc; 4]);

    let [argc, arg0, arg1, end, env0, env_end] = words(mm, loaded.stack_pointer);
    assert_eq!((argc, end, env_end), (2, 0, 0));
    assert_eq!(text(mm, arg0), b"prog");
    assert_eq!(text(mm, arg1), b"-x");
    assert_eq!(text(mm, env0), b"A=1");
    let [first_key] = words(mm, loaded.stack_pointer + 48);
    assert_eq!(first_key, at::SYSINFO_EHDR);
    assert_eq!(aux(mm, at::PHDR), Some(0x40_0040));
    assert_eq!(aux(mm, at::PHNUM), Some(2));
    assert_eq!(aux(mm, at::ENTRY), Some(0x40_0100));
    assert_eq!(aux(mm, at::BASE), Some(0));
    assert_eq!(aux(mm, at::UID), Some(5));
    assert_eq!(aux(mm, at::SECURE), Some(1));
    assert_eq!(text(mm, aux(mm, at::EXECFN).unwrap()), b"/bin/prog");
    assert_eq!(text(mm, aux(mm, at::PLATFORM).unwrap()), b"x86_64");
    assert_ne!(words::<2>(mm, aux(mm, at::RANDOM).unwrap()), [0; 2]);

    let layout = mm.layout();
    assert_eq!(layout.arg_end - layout.arg_start, 8);
    assert_eq!(layout.env_end - layout.env_start, 4);
    assert!(layout.brk >= 0x40_4000 && layout.brk.is_multiple_of(PAGE_SIZE));
    let maps = mm.maps();
    let stack = maps.iter().find(|m| matches!(m.name, MapName::Stack)).unwrap();
    assert_eq!((stack.range.len(), stack.access()), (8 << 20, *b"rw-p"));
    assert!(maps.iter().any(|m| matches!(m.name, MapName::Vdso)));
    let heap = mm.brk(layout.brk + 100, &MmLimits::DEFAULT);
    assert_eq!(heap, layout.brk + 100);
}

#[test]
fn a_dynamic_program_starts_in_its_loader() {
    let memory = MemoryFile::create(1 << 30).unwrap();
    let interp = Phdr { kind: PT_INTERP, ..load_at(0x2800, 0, 16, 16, 4) };
    let exe = Exe::new(&memory, elf(ET_DYN, 0x100, &[interp, load_at(0, 0, 0x3000, 0x3000, 5)]));
    let ld = Exe::new(&memory, program(ET_DYN, 0));
    let elf = parse(&exe).unwrap();
    assert_eq!(elf.interpreter.as_deref(), Some(&b"/lib/ld-test.so"[..]));
    let ld_elf = Elf::parse_interpreter(&ld).unwrap();
    let argv = strings(&["prog"]);
    let image = Image { interpreter: Some((&ld_elf, &ld)), ..image(&elf, &exe, &argv, &[]) };
    let loaded = load(&FakePlatform, &memory, &image).unwrap();
    let base = aux(&loaded.mm, at::BASE).unwrap();
    assert_eq!(loaded.entry, base + 0x100);
    let entry = aux(&loaded.mm, at::ENTRY).unwrap();
    assert_ne!(entry, loaded.entry);
    assert_eq!(aux(&loaded.mm, at::PHDR), Some(entry - 0x100 + 64));
    // The heap follows the program.
    assert!(loaded.mm.layout().brk >= entry - 0x100 + 0x3000);
    let again = load(&FakePlatform, &memory, &image).unwrap();
    assert_ne!(again.entry, loaded.entry);
    let fixed = Image { randomize: false, ..image };
    let same = [0; 2].map(|_| load(&FakePlatform, &memory, &fixed).unwrap().stack_pointer);
    assert_eq!(same[0], same[1]);
}

#[test]
fn an_empty_argument_vector_becomes_one_empty_string() {
    let memory = MemoryFile::create(1 << 30).unwrap();
    let exe = Exe::new(&memory, program(ET_DYN, 0));
    let elf = parse(&exe).unwrap();
    let loaded = load(&FakePlatform, &memory, &image(&elf, &exe, &[], &[])).unwrap();
    let [argc, arg0, end] = words(&loaded.mm, loaded.stack_pointer);
    assert_eq!((argc, end), (1, 0));
    assert_eq!(text(&loaded.mm, arg0), b"");
}

#[test]
fn hostile_tables_are_refused() {
    let memory = MemoryFile::create(1 << 30).unwrap();
    let top = 0x7fff_0000_0000;
    let cases: &[(&str, Phdr, Errno)] = &[
        ("file size over memory size", load_at(0, 0x40_0000, 0x1000, 0x800, 5), Errno::EINVAL),
        ("end of memory wraps", load_at(0, 0x40_0000, 0x1000, u64::MAX, 5), Errno::EINVAL),
        ("huge memory", load_at(0, 0x40_0000, 0x1000, 1 << 47, 5), Errno::ENOMEM),
        ("address zero", load_at(0, 0, 0x1000, 0x1000, 5), Errno::ENOMEM),
        ("address above all", load_at(0, top, 0x1000, 0x1000, 5), Errno::ENOMEM),
        ("offset not congruent", load_at(0x10, 0x40_0000, 0x1000, 0x1000, 5), Errno::EINVAL),
        ("offset before the file", load_at(0, 0x40_0800, 0x1000, 0x1000, 5), Errno::EINVAL),
        ("offset overflows", load_at(!4095, 0x40_0000, 0x1000, 0x1000, 5), Errno::EINVAL),
        ("data past the end of the file", load_at(0x5000, 0x40_0000, 0x10, 0x1000, 6), Errno::EFAULT),
        ("on the stack", load_at(0, top - 0x2000_0000, 0x1000, 0x2000_0000, 5), Errno::ENOMEM),
        ("no load at all", Phdr { kind: 0, ..load_at(0, 0x40_0000, 1, 1, 5) }, Errno::EINVAL),
    ];
    for (what, phdr, expected) in cases {
        let exe = Exe::new(&memory, elf(ET_EXEC, 0x40_0000, &[*phdr]));
        let elf = parse(&exe).unwrap();
        let argv = strings(&["x"]);
        let fixed = Image { randomize: false, ..image(&elf, &exe, &argv, &[]) };
        assert_eq!(load(&FakePlatform, &memory, &fixed).unwrap_err(), *expected, "{what}");
    }
    // Overlapping segments: the later one wins, as on Linux.
    let phdrs = [load_at(0, 0x40_0000, 0x2000, 0x2000, 5), load_at(0x2000, 0x40_1000, 0x1000, 0x1000, 6)];
    let exe = Exe::new(&memory, elf(ET_EXEC, 0x40_0000, &phdrs));
    let elf = parse(&exe).unwrap();
    let argv = strings(&["x"]);
    let loaded = load(&FakePlatform, &memory, &image(&elf, &exe, &argv, &[])).unwrap();
    assert_eq!(loaded.mm.find(0x40_1000).unwrap().offset, 0x2000);
}

#[test]
fn headers_are_checked() {
    let good = program(ET_EXEC, 0x40_0000);
    let with = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        identify(&bytes.as_slice()).map(drop)
    };
    assert_eq!(with(0, 0), Err(Errno::ENOEXEC));
    assert_eq!(with(4, 1), Err(Errno::ENOEXEC));
    assert_eq!(with(16, 1), Err(Errno::ENOEXEC));
    assert_eq!(with(18, 3), Err(Errno::ENOEXEC));
    assert_eq!(with(54, 55), Err(Errno::ENOEXEC));
    assert_eq!(with(56, 0), Err(Errno::ENOEXEC));
    assert_eq!(with(56, 74), Err(Errno::ENOEXEC));
    assert_eq!(with(39, 0xff), Err(Errno::ENOEXEC));
    assert_eq!(identify(&&good[..60]).map(drop), Err(Errno::ENOEXEC));
    assert_eq!(identify(&&good[..100]).map(drop), Err(Errno::ENOEXEC));
    assert_eq!(Elf::parse_interpreter(&&good[..60]).map(drop), Err(Errno::EIO));
    assert_eq!(
        Elf::parse_interpreter(&&b"#!/bin/sh                                                        "[..]),
        Err(Errno::ELIBBAD)
    );
    for (offset, len, expected) in [
        (0x2800, 1, Errno::ENOEXEC),
        (0x2800, 15, Errno::ENOEXEC),
        (0x2800, 5000, Errno::ENOEXEC),
        (0x2ff8, 16, Errno::EIO),
    ] {
        let interp = Phdr { kind: PT_INTERP, ..load_at(offset, 0, len, len, 4) };
        let bytes = elf(ET_DYN, 0, &[interp]);
        assert_eq!(identify(&bytes.as_slice()), Err(expected), "{offset:#x} {len}");
    }
}

#[test]
fn strings_are_limited() {
    let long = vec![b'a'; (128 << 10) - 1];
    assert_eq!(check_strings(b"f", std::slice::from_ref(&long), &[], 8 << 20), Ok(()));
    let longer = vec![b'a'; 128 << 10];
    assert_eq!(check_strings(b"f", &[longer], &[], 8 << 20), Err(Errno::E2BIG));
    let many = vec![long; 16];
    assert_eq!(check_strings(b"f", &many[..15], &[], 8 << 20), Ok(()));
    assert_eq!(check_strings(b"f", &many, &[], 8 << 20), Err(Errno::E2BIG));
    assert_eq!(check_strings(b"f", &many, &[], u64::MAX), Ok(()));
    let million = vec![Vec::new(); 1_000_000];
    assert_eq!(check_strings(b"f", &million, &[], u64::MAX), Err(Errno::E2BIG));
    assert_eq!(strings_limit(0), 128 << 10);
}

#[test]
fn interpreter_lines_follow_linux() {
    let line = |text: &[u8]| {
        let mut head = [0; HEAD_SIZE];
        let n = text.len().min(HEAD_SIZE);
        head[..n].copy_from_slice(&text[..n]);
        Script::parse(&head).map(|s| {
            let show = |b: Vec<u8>| String::from_utf8(b).unwrap();
            (show(s.interpreter), s.argument.map(show))
        })
    };
    let ok = |name: &str, arg: Option<&str>| Ok((name.to_owned(), arg.map(str::to_owned)));
    assert_eq!(line(b"#!/bin/sh\n"), ok("/bin/sh", None));
    assert_eq!(line(b"#! \t/bin/sh  -e  x \t\nrest"), ok("/bin/sh", Some("-e  x")));
    assert_eq!(line(b"#!/bin/sh"), ok("/bin/sh", None));
    assert_eq!(line(b"#!/bin/sh\0junk\n"), ok("/bin/sh", None));
    assert_eq!(line(b"#!\n/bin/sh"), Err(Errno::ENOEXEC));
    assert_eq!(line(b"#!   \n"), Err(Errno::ENOEXEC));
    assert_eq!(line(&[b"#!/", [b'a'; 300].as_slice()].concat()), Err(Errno::ENOEXEC));
    assert_eq!(line(&[b"#!", [b' '; 300].as_slice()].concat()), Err(Errno::ENOEXEC));
    let (name, arg) = line(&[b"#!/bin/sh ", [b'a'; 300].as_slice()].concat()).unwrap();
    assert_eq!((name.as_str(), arg.unwrap().len()), ("/bin/sh", 245));
    let script = Script { interpreter: b"/bin/sh".to_vec(), argument: Some(b"-e".to_vec()) };
    assert_eq!(script.apply(b"./s", &strings(&["s", "a"])), strings(&["/bin/sh", "-e", "./s", "a"]));
    assert_eq!(script.apply(b"./s", &[]), strings(&["/bin/sh", "-e", "./s"]));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]
    #[test]
    fn mangled_programs_never_panic(
        changes in proptest::collection::vec((0_usize..64 + 112, any::<u8>()), 1..12),
        dynamic in any::<bool>(),
        cut in 0_usize..0x3000,
    ) {
        let memory = MemoryFile::create(1 << 30).unwrap();
        let mut bytes = if dynamic { program(ET_DYN, 0) } else { program(ET_EXEC, 0x40_0000) };
        for (at, value) in changes {
            bytes[at] = value;
        }
        if cut < 0x400 {
            bytes.truncate(cut);
        }
        fuzz(&bytes);
        let exe = Exe::new(&memory, bytes);
        if let Ok(Format::Elf(elf)) = identify(&exe) {
            // Segments of terabytes are fine for a host and not for a table of pages.
            if elf.extent().is_ok_and(|e| e.len() < 1 << 26) {
                let _ = load(&FakePlatform, &memory, &image(&elf, &exe, &[], &[]));
            }
        }
    }

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600), script in any::<bool>()) {
        let mut bytes = bytes;
        if script {
            bytes.splice(0..0, *b"#!");
        }
        fuzz(&bytes);
    }
}
