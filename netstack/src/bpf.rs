//! Filters of packet sockets: classic BPF, checked once and run over each frame (`net/core/filter.c`,
//! `Documentation/networking/filter.rst`).
//!
//! A checked program has only forward jumps inside itself and ends with a return on every path, so a run ends after at
//! most as many steps as it has instructions.

/// Instructions of the longest program (`BPF_MAXINSNS`), and words of scratch memory (`BPF_MEMWORDS`).
pub const MAX_INSTRUCTIONS: usize = 4096;
const MEM_WORDS: usize = 16;

/// Offsets from here on up ask for what is beside the packet's bytes, counted from its Ethernet or its network header
/// (`SKF_AD_OFF`, `SKF_NET_OFF`, `SKF_LL_OFF`).
const BESIDE: u32 = 0xffff_f000;
const FROM_NETWORK: u32 = 0xfff0_0000;
const FROM_LINK: u32 = 0xffe0_0000;

/// One instruction (`struct sock_filter`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    pub code: u16,
    pub jt: u8,
    pub jf: u8,
    pub k: u32,
}

/// Parts of a code (`linux/bpf_common.h`).
mod class {
    pub(super) const LD: u16 = 0;
    pub(super) const LDX: u16 = 1;
    pub(super) const ST: u16 = 2;
    pub(super) const STX: u16 = 3;
    pub(super) const ALU: u16 = 4;
    pub(super) const JMP: u16 = 5;
    pub(super) const RET: u16 = 6;
}

const SOURCE_X: u16 = 8;

/// What a program looks at.
#[derive(Debug, Clone, Copy)]
pub struct View<'p> {
    /// The frame from its Ethernet header on.
    pub frame: &'p [u8],
    /// Where the program's offset 0 is: the Ethernet or the network header.
    pub start: usize,
    /// Where the network header is.
    pub network: usize,
    /// `ETH_P_*`, `PACKET_*`, the interface's number, `ARPHRD_*`.
    pub protocol: u16,
    pub kind: u8,
    pub interface: u32,
    pub hardware: u16,
}

impl View<'_> {
    fn load(&self, at: u32, size: usize) -> Option<u32> {
        let index = match at {
            BESIDE.. => return self.beside(at - BESIDE),
            FROM_NETWORK.. => self.network.checked_add(usize::try_from(at - FROM_NETWORK).ok()?)?,
            FROM_LINK.. => usize::try_from(at - FROM_LINK).ok()?,
            _ => self.start.checked_add(usize::try_from(at).ok()?)?,
        };
        let bytes = self.frame.get(index..index.checked_add(size)?)?;
        Some(bytes.iter().fold(0, |word, byte| word << 8 | u32::from(*byte)))
    }

    /// `SKF_AD_*`.
    fn beside(&self, what: u32) -> Option<u32> {
        Some(match what {
            0 => self.protocol.into(),
            4 => self.kind.into(),
            8 => self.interface,
            28 => self.hardware.into(),
            // Marks, queues, hashes, processors and tags of virtual networks: no frame here has one.
            12..=60 => 0,
            _ => return None,
        })
    }
}

/// A checked program.
#[derive(Debug)]
pub struct Program(Vec<Instruction>);

impl Program {
    /// Checks a program (`bpf_check_classic`); `None` for one that might not end, or is none.
    pub fn check(program: Vec<Instruction>) -> Option<Self> {
        let len = program.len();
        if len == 0 || len > MAX_INSTRUCTIONS || program.last()?.code & 7 != class::RET {
            return None;
        }
        let lands = |at: usize, skip: u32| usize::try_from(skip).is_ok_and(|skip| skip < len - at - 1);
        for (at, one) in program.iter().enumerate() {
            let fine = match (one.code & 7, one.code) {
                (class::LD | class::LDX, 0x60 | 0x61) | (class::ST, 0x02) | (class::STX, 0x03) => {
                    usize::try_from(one.k).is_ok_and(|k| k < MEM_WORDS)
                }
                // Word, half and byte: at a place, behind the index; a constant, the length, four times a nibble.
                (class::LD, 0x20 | 0x28 | 0x30) => one.k < BESIDE || one.k - BESIDE <= 60,
                (class::LD, 0x40 | 0x48 | 0x50 | 0x00 | 0x80) | (class::LDX, 0x01 | 0x81 | 0xb1) => true,
                // A division by zero, a shift by the whole word.
                (class::ALU, 0x34 | 0x94) => one.k != 0,
                (class::ALU, 0x64 | 0x74) => one.k < 32,
                (class::ALU, code) => matches!(code & 0xf0, 0x00..=0xa0) && code & !0xff == 0,
                (class::JMP, 0x05) => lands(at, one.k),
                (class::JMP, 0x15 | 0x1d | 0x25 | 0x2d | 0x35 | 0x3d | 0x45 | 0x4d) => {
                    lands(at, one.jt.into()) && lands(at, one.jf.into())
                }
                // A constant, the accumulator; to and from the index.
                (class::RET, 0x06 | 0x16) | (7, 0x07 | 0x87) => true,
                _ => false,
            };
            if !fine {
                return None;
            }
        }
        Some(Self(program))
    }

    /// Bytes of the packet that are wanted; 0 for none.
    pub fn run(&self, view: &View<'_>) -> u32 {
        self.interpret(view).unwrap_or(0)
    }

    /// `None` where the program reads past the packet or divides by zero.
    fn interpret(&self, view: &View<'_>) -> Option<u32> {
        let (mut a, mut x) = (0_u32, 0_u32);
        let mut mem = [0_u32; MEM_WORDS];
        let mut pc = 0_usize;
        let len = u32::try_from(view.frame.len().saturating_sub(view.start)).unwrap_or(u32::MAX);
        while let Some(one) = self.0.get(pc) {
            pc += 1;
            let k = one.k;
            let slot = usize::try_from(k).unwrap_or(MEM_WORDS);
            let operand = if one.code & SOURCE_X == 0 { k } else { x };
            let size = match one.code & 0x18 {
                0x08 => 2,
                0x10 => 1,
                _ => 4,
            };
            match (one.code & 7, one.code & 0xe0) {
                (class::LD, 0x00) => a = k,
                (class::LD, 0x20) => a = view.load(k, size)?,
                (class::LD, 0x40) => {
                    // An index is no way to what is beside the packet.
                    let at = x.checked_add(k).filter(|at| *at < FROM_LINK)?;
                    a = view.load(at, size)?;
                }
                (class::LD, 0x60) => a = mem.get(slot).copied().unwrap_or(0),
                (class::LD, _) => a = len,
                (class::LDX, 0x00) => x = k,
                (class::LDX, 0x60) => x = mem.get(slot).copied().unwrap_or(0),
                (class::LDX, 0xa0) => x = (view.load(k, 1)? & 0xf) << 2,
                (class::LDX, _) => x = len,
                (class::ST, _) => store(&mut mem, slot, a),
                (class::STX, _) => store(&mut mem, slot, x),
                (class::ALU, _) => a = compute(one.code & 0xf0, a, operand)?,
                (class::JMP, _) => {
                    let yes = match one.code & 0xf0 {
                        0x00 => {
                            pc += slot_of(k);
                            continue;
                        }
                        0x10 => a == operand,
                        0x20 => a > operand,
                        0x30 => a >= operand,
                        _ => a & operand != 0,
                    };
                    pc += usize::from(if yes { one.jt } else { one.jf });
                }
                (class::RET, _) => return Some(if one.code & 0x10 == 0 { k } else { a }),
                _ if one.code & 0x80 == 0 => x = a,
                _ => a = x,
            }
        }
        // Not reached: every path of a checked program returns.
        None
    }
}

fn slot_of(k: u32) -> usize {
    usize::try_from(k).unwrap_or(usize::MAX)
}

fn store(mem: &mut [u32; MEM_WORDS], at: usize, value: u32) {
    if let Some(word) = mem.get_mut(at) {
        *word = value;
    }
}

fn compute(operation: u16, a: u32, operand: u32) -> Option<u32> {
    Some(match operation {
        0x00 => a.wrapping_add(operand),
        0x10 => a.wrapping_sub(operand),
        0x20 => a.wrapping_mul(operand),
        0x30 => a.checked_div(operand)?,
        0x40 => a | operand,
        0x50 => a & operand,
        0x60 => a.wrapping_shl(operand),
        0x70 => a.wrapping_shr(operand),
        0x80 => a.wrapping_neg(),
        0x90 => a.checked_rem(operand)?,
        _ => a ^ operand,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(list: &[(u16, u8, u8, u32)]) -> Option<Program> {
        let one =
            |(code, jt, jf, k): &(u16, u8, u8, u32)| Instruction { code: *code, jt: *jt, jf: *jf, k: *k };
        Program::check(list.iter().map(one).collect())
    }

    fn view(frame: &[u8]) -> View<'_> {
        View { frame, start: 0, network: 14, protocol: 0x800, kind: 0, interface: 7, hardware: 1 }
    }

    /// What `tcpdump -dd 'udp dst port 53'` gives for Ethernet, IPv4 alone.
    const PORT_53: &[(u16, u8, u8, u32)] = &[
        (0x28, 0, 0, 12),
        (0x15, 0, 8, 0x800),
        (0x30, 0, 0, 23),
        (0x15, 0, 6, 17),
        (0x28, 0, 0, 20),
        (0x45, 4, 0, 0x1fff),
        (0xb1, 0, 0, 14),
        (0x48, 0, 0, 16),
        (0x15, 0, 1, 53),
        (0x06, 0, 0, 0x4_0000),
        (0x06, 0, 0, 0),
    ];

    #[test]
    fn a_filter_by_port_takes_what_it_names() {
        let filter = program(PORT_53).unwrap();
        let mut frame = vec![0; 60];
        frame[12..15].copy_from_slice(&[8, 0, 0x45]);
        frame[23] = 17;
        frame[36..38].copy_from_slice(&53_u16.to_be_bytes());
        assert_eq!(filter.run(&view(&frame)), 0x4_0000);
        frame[37] = 54;
        assert_eq!(filter.run(&view(&frame)), 0);
        // One that ends too early is not taken.
        assert_eq!(filter.run(&view(&frame[..30])), 0);
    }

    #[test]
    fn what_is_beside_a_packet_is_read() {
        let run = |list: &[(u16, u8, u8, u32)]| program(list).unwrap().run(&view(&[9; 20]));
        assert_eq!(run(&[(0x20, 0, 0, BESIDE), (0x16, 0, 0, 0)]), 0x800);
        assert_eq!(run(&[(0x20, 0, 0, BESIDE + 8), (0x16, 0, 0, 0)]), 7);
        assert_eq!(run(&[(0x30, 0, 0, FROM_NETWORK + 5), (0x16, 0, 0, 0)]), 9);
        assert_eq!(run(&[(0x30, 0, 0, FROM_NETWORK + 6), (0x16, 0, 0, 0)]), 0);
        assert_eq!(run(&[(0x80, 0, 0, 0), (0x16, 0, 0, 0)]), 20);
        // Three shifted by two, in scratch memory and back.
        assert_eq!(
            run(&[
                (0, 0, 0, 3),
                (0x64, 0, 0, 2),
                (2, 0, 0, 15),
                (0x61, 0, 0, 15),
                (0x87, 0, 0, 0),
                (0x16, 0, 0, 0)
            ]),
            12
        );
    }

    #[test]
    fn programs_that_might_not_end_are_refused() {
        for bad in [
            &[][..],
            &[(0, 0, 0, 1)],
            &[(5, 0, 0, 1), (6, 0, 0, 0)],
            &[(5, 0, 0, u32::MAX), (6, 0, 0, 0)],
            &[(0x15, 0, 1, 0), (6, 0, 0, 0)],
            &[(0x34, 0, 0, 0), (6, 0, 0, 0)],
            &[(0x60, 0, 0, 16), (6, 0, 0, 0)],
            &[(0x64, 0, 0, 32), (6, 0, 0, 0)],
            &[(0x20, 0, 0, BESIDE + 61), (6, 0, 0, 0)],
            &[(0xff, 0, 0, 0), (6, 0, 0, 0)],
        ] {
            assert!(program(bad).is_none(), "{bad:?}");
        }
        let mut long = vec![(0, 0, 0, 0); MAX_INSTRUCTIONS];
        long.push((6, 0, 0, 0));
        assert!(program(&long).is_none() && program(&long[1..]).is_some());
    }

    /// Instructions of every class.
    const CODES: [u16; 34] = [
        0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x0c, 0x15, 0x16, 0x1c, 0x1d, 0x20, 0x25, 0x28, 0x30,
        0x34, 0x3c, 0x40, 0x45, 0x48, 0x50, 0x60, 0x61, 0x6c, 0x74, 0x80, 0x81, 0x84, 0x87, 0x94, 0xac, 0xb1,
    ];

    #[test]
    fn random_programs_end() {
        let mut word = 88_172_645_463_325_252_u64;
        let mut next = move || {
            word ^= word << 13;
            word ^= word >> 7;
            word ^= word << 17;
            word
        };
        let mut checked = 0;
        for _ in 0..20_000 {
            let mut list: Vec<_> = (0..6)
                .map(|_| {
                    let bits = next();
                    let byte = |at: u32| u8::try_from(bits >> at & 0xff).unwrap();
                    let k = if bits >> 60 > 3 { byte(40) & 31 } else { byte(40) };
                    let k = u32::from(k) | if byte(50) < 32 { 0xffff_f000 } else { 0 };
                    (CODES[usize::from(byte(0)) % CODES.len()], byte(8) & 3, byte(16) & 3, k)
                })
                .collect();
            list.push((6, 0, 0, 1));
            if let Some(program) = program(&list) {
                checked += 1;
                program.run(&view(&[0x45; 40]));
            }
        }
        assert!(checked > 100, "{checked}");
    }
}
