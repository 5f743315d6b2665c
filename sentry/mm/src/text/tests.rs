//! Images of texts, and what is found in the texts of this machine.

use super::*;

fn image(sites: Vec<Site>) -> TextImage {
    TextImage {
        sites,
        pages: Vec::new(),
        detours: Vec::new(),
        text: (0x2000, 0x40_2000, 0x3000),
        lowest: 0x40_0000,
        area_len: 0x1000,
    }
}

#[test]
fn originals_show_in_any_window() {
    let sites = vec![
        Site { at: 0x2ffd, original: vec![1, 2, 3, 4, 5], steps: Vec::new() },
        Site { at: 0x3010, original: vec![6, 7, 8, 9, 10, 11], steps: Vec::new() },
    ];
    let image = image(sites);
    let mut all = [0; 0x40];
    image.restore(0x2ff0, &mut all);
    assert_eq!(all[0xd..0x12], [1, 2, 3, 4, 5]);
    assert_eq!(all[0x20..0x26], [6, 7, 8, 9, 10, 11]);
    assert_eq!(all.iter().filter(|byte| **byte != 0).count(), 11);
    let mut part = [0; 3];
    image.restore(0x2fff, &mut part);
    assert_eq!(part, [3, 4, 5]);
    let mut end = [0; 4];
    image.restore(0x3014, &mut end);
    assert_eq!(end, [10, 11, 0, 0]);
}

#[test]
fn detours_stand_below_the_program() {
    let image = image(Vec::new());
    let area = image.area(0x7f00_0000_2000, 0x2000);
    assert_eq!(area, Some(AddrRange { start: 0x7eff_ffff_f000, end: 0x7f00_0000_0000 }));
    assert_eq!(image.area(0x7f00_0000_3000, 0x3000), area);
    assert_eq!(image.area(0x7f00_0000_3000, 0x5000), None);
    assert_eq!(image.area(0x1000, 0x2000), None);
    let range = area.unwrap();
    assert_eq!(detour_at(range, range.start + 32), Some((1, 0)));
    assert_eq!(detour_at(range, range.start + 45), Some((1, 13)));
    assert_eq!(detour_at(range, range.end), None);
}

/// What this thread has had of the processor.
fn processor_ns() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0)
}

/// What of a file's calls can be changed: all `syscall`s, those with one instruction before them, those with several.
fn count(path: &str) -> Option<(usize, usize, usize)> {
    let file = std::fs::read(path).ok()?;
    let mut read = |offset: u64, len: u64| {
        let from = usize::try_from(offset).ok()?;
        file.get(from..from.checked_add(usize::try_from(len).ok()?)?).map(<[u8]>::to_vec)
    };
    let started = processor_ns();
    let elf = Elf::parse(&mut read)?;
    let text = read(elf.text.offset, elf.text.len)?;
    let ranges = sites::find(&elf, &text, &mut read);
    let took = processor_ns() - started;
    let calls = memchr::memmem::find_iter(&text, &[0x0f, 0x05]).count();
    let one = ranges.iter().filter(|range| range.steps.len() == 1).count();
    println!(
        "{path}: of {calls} calls {one} after one instruction, {} after several, {} us",
        ranges.len() - one,
        took / 1000
    );
    Some((calls, one, ranges.len() - one))
}

/// Run with `--nocapture`, and with paths in `CASEMATE_TEXTS`, to see the figures of other files.
#[test]
fn most_calls_of_this_machines_library_can_be_changed() {
    for path in std::env::var("CASEMATE_TEXTS").unwrap_or_default().split_whitespace() {
        assert!(count(path).is_some(), "{path} is no program");
    }
    let Some((calls, one, several)) = count("/lib/x86_64-linux-gnu/libc.so.6") else { return };
    assert!(several > 0 && (one + several) * 10 > calls * 9, "{one} and {several} of {calls}");
}
