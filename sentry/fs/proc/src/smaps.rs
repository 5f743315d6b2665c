//! `/proc/PID/maps`, `smaps` and `smaps_rollup` (`fs/proc/task_mmu.c`).

use core::fmt::Write;

use sentry_kernel::Task;
use sentry_mm::{MapInfo, VmFlags};
use sentry_vfs::Location;

use crate::status::map_name;

/// Which of the three files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Detail {
    Maps,
    Smaps,
    Rollup,
}

/// One line of `maps`, its end of line included.
fn line(map: &MapInfo, root: &Location, out: &mut Vec<u8>) {
    let access = map.access();
    let (dev, ino) = map.identity;
    let mut line = format!(
        "{:08x}-{:08x} {} {:08x} {:02x}:{:02x} {ino} ",
        map.range.start,
        map.range.end,
        String::from_utf8_lossy(&access),
        map.offset,
        libc::major(dev),
        libc::minor(dev),
    );
    let name = map_name(&map.name, root);
    if !name.is_empty() {
        while line.len() < 73 {
            line.push(' ');
        }
    }
    out.extend_from_slice(line.as_bytes());
    for byte in name {
        if byte == b'\n' {
            out.extend_from_slice(b"\\012");
        } else {
            out.push(byte);
        }
    }
    out.push(b'\n');
}

/// Figures of a mapping, or of all, in bytes. The host knows what is there, not who else has it: shared mappings count
/// as shared, the rest as private.
#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    rss: u64,
    shared_clean: u64,
    shared_dirty: u64,
    private_clean: u64,
    private_dirty: u64,
    anonymous: u64,
    locked: u64,
}

impl Counts {
    fn of(map: &MapInfo, rss: u64) -> Self {
        let mut counts = Self { rss, ..Self::default() };
        let writable = map.flags.contains(VmFlags::WRITE);
        if map.is_anon {
            counts.anonymous = rss;
            counts.private_dirty = rss;
        } else if map.flags.is_shared() {
            let slot = if writable { &mut counts.shared_dirty } else { &mut counts.shared_clean };
            *slot = rss;
        } else {
            counts.private_clean = rss;
        }
        if map.flags.contains(VmFlags::LOCKED) {
            counts.locked = rss;
        }
        counts
    }

    fn add(&mut self, other: &Self) {
        self.rss += other.rss;
        self.shared_clean += other.shared_clean;
        self.shared_dirty += other.shared_dirty;
        self.private_clean += other.private_clean;
        self.private_dirty += other.private_dirty;
        self.anonymous += other.anonymous;
        self.locked += other.locked;
    }

    fn pss_dirty(&self) -> u64 {
        self.private_dirty + self.shared_dirty
    }

    /// The lines from `Rss` on; a rollup splits `Pss` by kind.
    fn show(&self, rollup: bool, out: &mut String) {
        let mut row = |name: &str, bytes: u64| {
            let _ = writeln!(out, "{name:<15} {:>8} kB", bytes / 1024);
        };
        row("Rss:", self.rss);
        row("Pss:", self.rss);
        row("Pss_Dirty:", self.pss_dirty());
        if rollup {
            row("Pss_Anon:", self.anonymous);
            row("Pss_File:", self.rss - self.anonymous);
            row("Pss_Shmem:", 0);
        }
        row("Shared_Clean:", self.shared_clean);
        row("Shared_Dirty:", self.shared_dirty);
        row("Private_Clean:", self.private_clean);
        row("Private_Dirty:", self.private_dirty);
        row("Referenced:", self.rss);
        row("Anonymous:", self.anonymous);
        for name in [
            "KSM:",
            "LazyFree:",
            "AnonHugePages:",
            "ShmemPmdMapped:",
            "FilePmdMapped:",
            "Shared_Hugetlb:",
            "Private_Hugetlb:",
            "Swap:",
            "SwapPss:",
        ] {
            row(name, 0);
        }
        row("Locked:", self.locked);
    }
}

/// `VmFlags:` of `smaps`: two letters for each flag (`show_smap_vma_flags`).
fn flag_letters(flags: VmFlags) -> String {
    const LETTERS: &[(VmFlags, &str)] = &[
        (VmFlags::READ, "rd"),
        (VmFlags::WRITE, "wr"),
        (VmFlags::EXEC, "ex"),
        (VmFlags::SHARED, "sh"),
        (VmFlags::MAYREAD, "mr"),
        (VmFlags::MAYWRITE, "mw"),
        (VmFlags::MAYEXEC, "me"),
        (VmFlags::MAYSHARE, "ms"),
        (VmFlags::GROWSDOWN, "gd"),
        (VmFlags::LOCKED, "lo"),
        (VmFlags::SEQ_READ, "sr"),
        (VmFlags::RAND_READ, "rr"),
        (VmFlags::DONTCOPY, "dc"),
        (VmFlags::LOCKONFAULT, "lf"),
        (VmFlags::NORESERVE, "nr"),
        (VmFlags::WIPEONFORK, "wf"),
        (VmFlags::DONTDUMP, "dd"),
        (VmFlags::HUGEPAGE, "hg"),
        (VmFlags::NOHUGEPAGE, "nh"),
        (VmFlags::MERGEABLE, "mg"),
    ];
    LETTERS.iter().filter(|(flag, _)| flags.contains(*flag)).fold(String::new(), |mut out, (_, letters)| {
        out.push_str(letters);
        out.push(' ');
        out
    })
}

pub(crate) fn maps(task: &Task, detail: Detail) -> Vec<u8> {
    let mut out = Vec::new();
    let root = task.fs().root();
    let mm = task.mm();
    if detail == Detail::Maps {
        for map in mm.maps() {
            line(&map, &root, &mut out);
        }
        return out;
    }
    let mut maps = mm.resident_maps();
    maps.extend(mm.maps().into_iter().filter(|m| mm.vdso() == Some(m.range)).map(|m| (m, 0)));
    maps.sort_by_key(|(map, _)| map.range.start);
    let mut sum = Counts::default();
    let mut text = String::new();
    for (map, rss) in &maps {
        let counts = Counts::of(map, *rss);
        sum.add(&counts);
        if detail == Detail::Smaps {
            line(map, &root, &mut out);
            text.clear();
            let _ = writeln!(text, "Size:           {:>8} kB", map.range.len() / 1024);
            text.push_str("KernelPageSize:        4 kB\nMMUPageSize:           4 kB\n");
            counts.show(false, &mut text);
            let _ = writeln!(text, "THPeligible:           0\nVmFlags: {}", flag_letters(map.flags));
            out.extend_from_slice(text.as_bytes());
        }
    }
    if detail == Detail::Rollup
        && let (Some((first, _)), Some((last, _))) = (maps.first(), maps.last())
    {
        let mut head = format!("{:08x}-{:08x} ---p 00000000 00:00 0 ", first.range.start, last.range.end);
        while head.len() < 73 {
            head.push(' ');
        }
        let _ = writeln!(head, "[rollup]");
        sum.show(true, &mut head);
        out.extend_from_slice(head.as_bytes());
    }
    out
}
