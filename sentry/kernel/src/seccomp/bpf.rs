//! Classic BPF as seccomp takes it: programs are checked once, then run over the data of each call
//! (`net/core/filter.c: bpf_check_classic`, `kernel/seccomp.c: seccomp_check_filter`).
//!
//! A checked program has only forward jumps inside itself and ends with a return on every path, so a run ends after at
//! most as many steps as it has instructions.

use abi::seccomp::{AUDIT_ARCH_X86_64, MAX_INSNS, SeccompData, SockFilter};
use sentry_base::{Errno, Result};
use zerocopy::IntoBytes;

/// Words of scratch memory (`BPF_MEMWORDS`).
const MEM_WORDS: usize = 16;
/// Bytes of the data (`sizeof(struct seccomp_data)`).
const DATA_LEN: u32 = 64;

/// The second operand: a constant or the index register.
#[derive(Debug, Clone, Copy)]
enum Operand {
    K(u32),
    X,
}

#[derive(Debug, Clone, Copy)]
enum Alu {
    Add,
    Sub,
    Mul,
    Div,
    And,
    Or,
    Xor,
    Lsh,
    Rsh,
}

#[derive(Debug, Clone, Copy)]
enum Test {
    Equal,
    Greater,
    GreaterEqual,
    AnyBit,
}

#[derive(Debug, Clone, Copy)]
enum Insn {
    /// A word of the data, by index.
    LoadData(usize),
    Load(u32),
    LoadMem(usize),
    LoadX(u32),
    LoadXMem(usize),
    Store(usize),
    StoreX(usize),
    Alu(Alu, Operand),
    Negate,
    /// Skips this many instructions.
    Jump(usize),
    JumpIf(Test, Operand, usize, usize),
    Return(u32),
    ReturnA,
    ToX,
    FromX,
}

/// A checked program.
#[derive(Debug)]
pub struct Program(Vec<Insn>);

/// Codes as the C macros of `linux/bpf_common.h` compose them.
mod code {
    pub const LD_W_ABS: u16 = 0x20;
    pub const LD_W_LEN: u16 = 0x80;
    pub const LD_IMM: u16 = 0x00;
    pub const LD_MEM: u16 = 0x60;
    pub const LDX_W_LEN: u16 = 0x81;
    pub const LDX_IMM: u16 = 0x01;
    pub const LDX_MEM: u16 = 0x61;
    pub const ST: u16 = 0x02;
    pub const STX: u16 = 0x03;
    pub const ALU: u16 = 0x04;
    pub const NEG: u16 = 0x84;
    pub const JMP: u16 = 0x05;
    pub const RET_K: u16 = 0x06;
    pub const RET_A: u16 = 0x16;
    pub const TAX: u16 = 0x07;
    pub const TXA: u16 = 0x87;
    pub const CLASS: u16 = 0x07;
    pub const SOURCE_X: u16 = 0x08;
    pub const OP: u16 = 0xf0;
    /// Every bit that an ALU or jump code may have.
    pub const KNOWN: u16 = 0xff;
}

impl Program {
    /// Checks a program; `EINVAL` for one that Linux would refuse.
    pub fn check(filter: &[SockFilter]) -> Result<Self> {
        if filter.is_empty() || filter.len() > MAX_INSNS {
            return Err(Errno::EINVAL);
        }
        let mut insns = Vec::with_capacity(filter.len());
        for (pc, raw) in filter.iter().enumerate() {
            insns.push(decode(*raw, filter.len() - pc - 1)?);
        }
        if !matches!(insns.last(), Some(Insn::Return(_) | Insn::ReturnA)) {
            return Err(Errno::EINVAL);
        }
        check_memory(&insns)?;
        Ok(Self(insns))
    }

    /// Instructions of the program as Linux translates it (`bpf_convert_filter`), which its limit counts.
    pub fn weight(&self) -> usize {
        /// Clears the registers and keeps the context.
        const PROLOGUE: usize = 3;
        PROLOGUE + self.0.iter().map(Insn::weight).sum::<usize>()
    }

    /// What the program returns for call `nr` of x86-64 if it looks at nothing else of the call
    /// (`kernel/seccomp.c: seccomp_is_const_allow`).
    pub fn settles(&self, nr: i32) -> Option<u32> {
        let looked_at = |index: usize| match index {
            0 => Some(nr.cast_unsigned()),
            1 => Some(AUDIT_ARCH_X86_64),
            _ => None,
        };
        self.interpret(looked_at)
    }

    /// What the program returns for a call.
    pub fn run(&self, data: &SeccompData) -> u32 {
        let bytes = data.as_bytes();
        let word = |index: usize| {
            let at = bytes.get(index * 4..).and_then(|b| b.first_chunk::<4>());
            Some(at.map_or(0, |b| u32::from_le_bytes(*b)))
        };
        self.interpret(word).unwrap_or(abi::seccomp::ret::KILL_PROCESS)
    }

    /// Runs the program; `word` gives a word of the data by its index. `None` if it gave none.
    fn interpret(&self, word: impl Fn(usize) -> Option<u32>) -> Option<u32> {
        let (mut a, mut x) = (0_u32, 0_u32);
        let mut mem = [0_u32; MEM_WORDS];
        let mut pc = 0;
        while let Some(insn) = self.0.get(pc) {
            pc += 1;
            match *insn {
                Insn::LoadData(index) => a = word(index)?,
                Insn::Load(k) => a = k,
                Insn::LoadMem(at) => a = mem.get(at).copied().unwrap_or(0),
                Insn::LoadX(k) => x = k,
                Insn::LoadXMem(at) => x = mem.get(at).copied().unwrap_or(0),
                Insn::Store(at) => store(&mut mem, at, a),
                Insn::StoreX(at) => store(&mut mem, at, x),
                Insn::Alu(op, operand) => {
                    let operand = operand.value(x);
                    a = match op {
                        Alu::Add => a.wrapping_add(operand),
                        Alu::Sub => a.wrapping_sub(operand),
                        Alu::Mul => a.wrapping_mul(operand),
                        // A division by zero ends the program with zero.
                        Alu::Div => match a.checked_div(operand) {
                            Some(quotient) => quotient,
                            None => return Some(0),
                        },
                        Alu::And => a & operand,
                        Alu::Or => a | operand,
                        Alu::Xor => a ^ operand,
                        Alu::Lsh => a.wrapping_shl(operand),
                        Alu::Rsh => a.wrapping_shr(operand),
                    };
                }
                Insn::Negate => a = a.wrapping_neg(),
                Insn::Jump(skip) => pc += skip,
                Insn::JumpIf(test, operand, yes, no) => {
                    let operand = operand.value(x);
                    let holds = match test {
                        Test::Equal => a == operand,
                        Test::Greater => a > operand,
                        Test::GreaterEqual => a >= operand,
                        Test::AnyBit => a & operand != 0,
                    };
                    pc += if holds { yes } else { no };
                }
                Insn::Return(k) => return Some(k),
                Insn::ReturnA => return Some(a),
                Insn::ToX => x = a,
                Insn::FromX => a = x,
            }
        }
        // Not reached: every path of a checked program returns.
        Some(abi::seccomp::ret::KILL_PROCESS)
    }
}

impl Insn {
    fn weight(&self) -> usize {
        match self {
            Self::Return(_) => 2,
            Self::Alu(Alu::Div, Operand::X) => 5,
            Self::JumpIf(test, operand, yes, no) => {
                let wide = matches!(operand, Operand::K(k) if k.cast_signed() < 0);
                let one = *no == 0 || (*yes == 0 && !matches!(test, Test::AnyBit));
                1 + usize::from(wide) + usize::from(!one)
            }
            _ => 1,
        }
    }
}

impl Operand {
    fn value(self, x: u32) -> u32 {
        match self {
            Self::K(k) => k,
            Self::X => x,
        }
    }
}

fn store(mem: &mut [u32; MEM_WORDS], at: usize, value: u32) {
    if let Some(slot) = mem.get_mut(at) {
        *slot = value;
    }
}

/// One instruction that has `after` others behind it.
fn decode(raw: SockFilter, after: usize) -> Result<Insn> {
    let SockFilter { code: op, jt, jf, k } = raw;
    let memory = || usize::try_from(k).ok().filter(|k| *k < MEM_WORDS).ok_or(Errno::EINVAL);
    Ok(match op {
        code::LD_W_ABS if k < DATA_LEN && k.is_multiple_of(4) => {
            Insn::LoadData(usize::try_from(k / 4).unwrap_or(0))
        }
        code::LD_W_LEN => Insn::Load(DATA_LEN),
        code::LDX_W_LEN => Insn::LoadX(DATA_LEN),
        code::LD_IMM => Insn::Load(k),
        code::LDX_IMM => Insn::LoadX(k),
        code::LD_MEM => Insn::LoadMem(memory()?),
        code::LDX_MEM => Insn::LoadXMem(memory()?),
        code::ST => Insn::Store(memory()?),
        code::STX => Insn::StoreX(memory()?),
        code::RET_K => Insn::Return(k),
        code::RET_A => Insn::ReturnA,
        code::TAX => Insn::ToX,
        code::TXA => Insn::FromX,
        code::NEG => Insn::Negate,
        op if op & !code::KNOWN == 0 && op & code::CLASS == code::ALU => alu(op, k)?,
        op if op & !code::KNOWN == 0 && op & code::CLASS == code::JMP => jump(op, k, jt, jf, after)?,
        _ => return Err(Errno::EINVAL),
    })
}

fn alu(op: u16, k: u32) -> Result<Insn> {
    let operand = if op & code::SOURCE_X != 0 { Operand::X } else { Operand::K(k) };
    let constant = op & code::SOURCE_X == 0;
    let operation = match op & code::OP {
        0x00 => Alu::Add,
        0x10 => Alu::Sub,
        0x20 => Alu::Mul,
        0x30 if constant && k == 0 => return Err(Errno::EINVAL),
        0x30 => Alu::Div,
        0x40 => Alu::Or,
        0x50 => Alu::And,
        0x60 | 0x70 if constant && k >= 32 => return Err(Errno::EINVAL),
        0x60 => Alu::Lsh,
        0x70 => Alu::Rsh,
        0xa0 => Alu::Xor,
        _ => return Err(Errno::EINVAL),
    };
    Ok(Insn::Alu(operation, operand))
}

fn jump(op: u16, k: u32, jt: u8, jf: u8, after: usize) -> Result<Insn> {
    let test = match op & code::OP {
        0x00 if op & code::SOURCE_X == 0 => {
            let skip = usize::try_from(k).unwrap_or(usize::MAX);
            return if skip < after { Ok(Insn::Jump(skip)) } else { Err(Errno::EINVAL) };
        }
        0x10 => Test::Equal,
        0x20 => Test::Greater,
        0x30 => Test::GreaterEqual,
        0x40 => Test::AnyBit,
        _ => return Err(Errno::EINVAL),
    };
    let (yes, no) = (usize::from(jt), usize::from(jf));
    if yes >= after || no >= after {
        return Err(Errno::EINVAL);
    }
    let operand = if op & code::SOURCE_X != 0 { Operand::X } else { Operand::K(k) };
    Ok(Insn::JumpIf(test, operand, yes, no))
}

/// No word of scratch memory is read before it is written, whatever the path (`check_load_and_stores`).
fn check_memory(insns: &[Insn]) -> Result<()> {
    let mut on_arrival = vec![u16::MAX; insns.len()];
    let mut written = 0_u16;
    let narrow = |on_arrival: &mut Vec<u16>, at: usize, written: u16| {
        if let Some(mask) = on_arrival.get_mut(at) {
            *mask &= written;
        }
    };
    for (pc, insn) in insns.iter().enumerate() {
        written &= on_arrival.get(pc).copied().unwrap_or(0);
        match *insn {
            Insn::Store(at) | Insn::StoreX(at) => written |= 1 << at,
            Insn::LoadMem(at) | Insn::LoadXMem(at) if written & 1 << at == 0 => return Err(Errno::EINVAL),
            Insn::Jump(skip) => {
                narrow(&mut on_arrival, pc + 1 + skip, written);
                written = u16::MAX;
            }
            Insn::JumpIf(_, _, yes, no) => {
                narrow(&mut on_arrival, pc + 1 + yes, written);
                narrow(&mut on_arrival, pc + 1 + no, written);
                written = u16::MAX;
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn insn(code: u16, jt: u8, jf: u8, k: u32) -> SockFilter {
        SockFilter { code, jt, jf, k }
    }

    #[test]
    fn a_usual_filter() {
        let program = [
            insn(code::LD_W_ABS, 0, 0, 4),
            insn(0x15, 1, 0, abi::seccomp::AUDIT_ARCH_X86_64),
            insn(code::RET_K, 0, 0, 0),
            insn(code::LD_W_ABS, 0, 0, 0),
            insn(0x15, 0, 1, 39),
            insn(code::RET_K, 0, 0, 0x0005_0001),
            insn(code::RET_K, 0, 0, 0x7fff_0000),
        ];
        let program = Program::check(&program).unwrap();
        let data = |nr, arch| SeccompData { nr, arch, ..SeccompData::default() };
        assert_eq!(program.run(&data(39, abi::seccomp::AUDIT_ARCH_X86_64)), 0x0005_0001);
        assert_eq!(program.run(&data(40, abi::seccomp::AUDIT_ARCH_X86_64)), 0x7fff_0000);
        assert_eq!(program.run(&data(39, 3)), 0);
    }

    #[test]
    fn what_is_refused() {
        let refused = |program: &[SockFilter]| Program::check(program).is_err();
        let ret = insn(code::RET_K, 0, 0, 0);
        assert!(refused(&[]));
        assert!(refused(&[insn(code::LD_IMM, 0, 0, 0)]), "no return at the end");
        assert!(refused(&[insn(code::LD_W_ABS, 0, 0, 2), ret]), "misaligned");
        assert!(refused(&[insn(code::LD_W_ABS, 0, 0, 64), ret]), "past the data");
        assert!(refused(&[insn(0x34, 0, 0, 0), ret]), "division by zero");
        assert!(refused(&[insn(0x94, 0, 0, 3), ret]), "modulo");
        assert!(refused(&[insn(0x64, 0, 0, 32), ret]), "long shift");
        assert!(refused(&[insn(code::LD_MEM, 0, 0, 3), ret]), "memory that was not written");
        assert!(refused(&[insn(code::ST, 0, 0, 16), ret]), "no such word");
        assert!(refused(&[insn(0x05, 0, 0, 1), ret]), "a jump past the end");
        assert!(refused(&[insn(0x15, 1, 0, 0), ret]), "a branch past the end");
        assert!(refused(&[insn(0x28, 0, 0, 0), ret]), "half words");
        assert!(!refused(&[insn(code::ST, 0, 0, 3), insn(code::LD_MEM, 0, 0, 3), ret]));
        // Only one of two paths writes the word.
        let half = [
            insn(0x15, 0, 1, 7),
            insn(code::ST, 0, 0, 0),
            insn(code::LD_MEM, 0, 0, 0),
            insn(code::RET_A, 0, 0, 0),
        ];
        assert!(refused(&half));
    }

    #[test]
    fn division_by_a_zero_register_returns_zero() {
        let program = [insn(code::LD_IMM, 0, 0, 7), insn(0x3c, 0, 0, 0), insn(code::RET_K, 0, 0, 5)];
        assert_eq!(Program::check(&program).unwrap().run(&SeccompData::default()), 0);
    }

    #[test]
    fn every_checked_program_ends() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            u8::try_from(state % below).unwrap()
        };
        let mut checked = 0;
        for _ in 0..200_000 {
            let length = next(6) + 1;
            let random =
                (0..length).map(|_| insn(u16::from(next(256)), next(3), next(3), u32::from(next(70))));
            let program: Vec<_> = random.chain([insn(code::RET_A, 0, 0, 0)]).collect();
            if let Ok(program) = Program::check(&program) {
                program.run(&SeccompData { nr: 1, ..SeccompData::default() });
                checked += 1;
            }
        }
        assert!(checked > 1000);
    }
}
