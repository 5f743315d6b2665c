//! The program's own code in memory.

use core::slice;

const PAGE: usize = 4096;

/// Unmaps the pages of the program's code and constants that its start has used, so that they no longer count as this process's
/// (`madvise(2)`, `MADV_DONTNEED`). What runs on comes back from the page cache, 64 KiB with each fault.
pub fn let_go_of_code() {
    for (start, end) in fixed_parts() {
        // SAFETY: an integer becomes the address that it was. The range is a segment of the program that is mapped without
        // write access from its file, and was so from the start: what was in a page is read from the file again.
        let _ = unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED) };
    }
}

/// The program's loaded segments that nobody can write to: page-aligned starts and ends. What is protected only after it has been
/// relocated is none of these.
fn fixed_parts() -> Vec<(usize, usize)> {
    // SAFETY: a look at the auxiliary vector, without pointers.
    let [at, count, size] =
        [libc::AT_PHDR, libc::AT_PHNUM, libc::AT_PHENT].map(|what| unsafe { libc::getauxval(what) } as usize);
    if at == 0 || size != size_of::<libc::Elf64_Phdr>() {
        return Vec::new();
    }
    // SAFETY: the kernel says where it has mapped the program headers, which stay as they are, and how many there are.
    let headers = unsafe { slice::from_raw_parts(at as *const libc::Elf64_Phdr, count) };
    let of = |kind: u32| headers.iter().filter(move |header| header.p_type == kind);
    // Where the headers lie in the file's own addresses tells by how much all is moved.
    let Some(own) = of(libc::PT_PHDR).next() else { return Vec::new() };
    let moved = at.wrapping_sub(own.p_vaddr as usize);
    let fixed = of(libc::PT_LOAD).filter(|header| header.p_flags & libc::PF_W == 0);
    fixed
        .map(|header| {
            let start = moved.wrapping_add(header.p_vaddr as usize);
            (start & !(PAGE - 1), (start + header.p_memsz as usize).next_multiple_of(PAGE))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// KiB of the program's code that this process has mapped.
    fn mapped() -> u64 {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut is_code = false;
        let mut sum = 0;
        for line in maps.lines() {
            let mut words = line.split_whitespace();
            match (words.next(), words.next()) {
                (Some(range), Some(rights)) if range.contains('-') => {
                    is_code = rights == "r-xp" && line.contains(char::from(b'/'));
                }
                (Some("Rss:"), Some(kib)) if is_code => sum += kib.parse::<u64>().unwrap(),
                _ => {}
            }
        }
        sum
    }

    #[test]
    fn code_goes_and_comes_back() {
        static RELOCATED: [&str; 2] = ["a", "b"];
        let before = mapped();
        assert!(!fixed_parts().is_empty());
        let_go_of_code();
        let after = mapped();
        assert!(after < before, "{before} KiB, then {after}");
        assert_eq!(std::hint::black_box(&RELOCATED).concat(), "ab");
    }
}
