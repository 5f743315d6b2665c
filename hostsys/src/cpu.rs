//! What the processor says of itself (`cpuid`), which application code can ask as well.

use std::arch::x86_64::{__cpuid, __cpuid_count, CpuidResult};

/// The identity of the processor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cpu {
    pub vendor: String,
    pub brand: String,
    pub family: u32,
    pub model: u32,
    pub stepping: u32,
    /// Names as `/proc/cpuinfo` has them.
    pub flags: Vec<&'static str>,
}

fn text(registers: &[u32]) -> String {
    let bytes: Vec<u8> = registers.iter().flat_map(|r| r.to_le_bytes()).filter(|b| *b != 0).collect();
    String::from_utf8_lossy(&bytes).trim().to_owned()
}

/// Leaf, register (`a` to `d`), bit, name: the flags that programs look for.
const FLAGS: &[(u32, char, u32, &str)] = &[
    (1, 'd', 0, "fpu"),
    (1, 'd', 4, "tsc"),
    (1, 'd', 8, "cx8"),
    (1, 'd', 15, "cmov"),
    (1, 'd', 19, "clflush"),
    (1, 'd', 23, "mmx"),
    (1, 'd', 24, "fxsr"),
    (1, 'd', 25, "sse"),
    (1, 'd', 26, "sse2"),
    (1, 'd', 28, "ht"),
    (0x8000_0001, 'd', 11, "syscall"),
    (0x8000_0001, 'd', 20, "nx"),
    (0x8000_0001, 'd', 26, "pdpe1gb"),
    (0x8000_0001, 'd', 27, "rdtscp"),
    (0x8000_0001, 'd', 29, "lm"),
    (1, 'c', 0, "pni"),
    (1, 'c', 1, "pclmulqdq"),
    (1, 'c', 9, "ssse3"),
    (1, 'c', 12, "fma"),
    (1, 'c', 13, "cx16"),
    (1, 'c', 19, "sse4_1"),
    (1, 'c', 20, "sse4_2"),
    (1, 'c', 22, "movbe"),
    (1, 'c', 23, "popcnt"),
    (1, 'c', 25, "aes"),
    (1, 'c', 26, "xsave"),
    (1, 'c', 28, "avx"),
    (1, 'c', 29, "f16c"),
    (1, 'c', 30, "rdrand"),
    (0x8000_0001, 'c', 0, "lahf_lm"),
    (0x8000_0001, 'c', 5, "abm"),
    (0x8000_0001, 'c', 6, "sse4a"),
    (7, 'b', 0, "fsgsbase"),
    (7, 'b', 3, "bmi1"),
    (7, 'b', 5, "avx2"),
    (7, 'b', 8, "bmi2"),
    (7, 'b', 9, "erms"),
    (7, 'b', 16, "avx512f"),
    (7, 'b', 17, "avx512dq"),
    (7, 'b', 18, "rdseed"),
    (7, 'b', 19, "adx"),
    (7, 'b', 23, "clflushopt"),
    (7, 'b', 28, "avx512cd"),
    (7, 'b', 29, "sha_ni"),
    (7, 'b', 30, "avx512bw"),
    (7, 'b', 31, "avx512vl"),
    (7, 'c', 9, "vaes"),
    (7, 'c', 10, "vpclmulqdq"),
    (7, 'd', 4, "fsrm"),
];

fn leaf(number: u32) -> CpuidResult {
    let base = number & 0x8000_0000;
    if __cpuid(base).eax < number {
        CpuidResult { eax: 0, ebx: 0, ecx: 0, edx: 0 }
    } else {
        __cpuid_count(number, 0)
    }
}

/// Asks the processor.
pub fn identify() -> Cpu {
    let zero = leaf(0);
    let one = leaf(1);
    let base_family = one.eax >> 8 & 15;
    let family = if base_family == 15 { base_family + (one.eax >> 20 & 255) } else { base_family };
    let brand: Vec<u32> = (0x8000_0002..=0x8000_0004)
        .flat_map(|number| {
            let r = leaf(number);
            [r.eax, r.ebx, r.ecx, r.edx]
        })
        .collect();
    let flags = FLAGS
        .iter()
        .filter(|(number, register, bit, _)| {
            let r = leaf(*number);
            let value = match register {
                'a' => r.eax,
                'b' => r.ebx,
                'c' => r.ecx,
                _ => r.edx,
            };
            value >> bit & 1 == 1
        })
        .map(|(_, _, _, name)| *name)
        .collect();
    Cpu {
        vendor: text(&[zero.ebx, zero.edx, zero.ecx]),
        brand: text(&brand),
        family,
        model: (one.eax >> 4 & 15) | (one.eax >> 12 & 0xf0),
        stepping: one.eax & 15,
        flags,
    }
}
