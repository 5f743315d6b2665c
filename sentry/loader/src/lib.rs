//! From an executable file to a new address space that is ready to run (`fs/exec.c`, `fs/binfmt_elf.c`,
//! `fs/binfmt_script.c`).
//!
//! The kernel walks paths; this crate reads files. An exec goes: [`identify`] the file; while it is a [`Script`], apply it and
//! go on with its interpreter, at most [`MAX_SCRIPTS`] times; open the interpreter that an [`Elf`] names and
//! [`Elf::parse_interpreter`] it; [`load`] both.
//!
//! **Invariants.** The image is built in a new address space: an error leaves the caller's as it was. Every number of
//! a file is checked before it is added to another; segments are planned in full ([`Plan`]) before the first is mapped.
//!
//! **Lock ranks:** none of its own; takes those of files and of `Mm`.
//!
//! **Threat.** The bytes of the file, the argument vector and the environment are the application's.

mod elf;
mod file;
mod load;
mod script;
mod stack;
#[cfg(test)]
mod tests;

pub use elf::{Elf, Plan, Segment};
pub use file::{ExecFile, OpenedFile};
pub use load::{Ids, Image, Loaded, Machine, load};
pub use script::{MAX_SCRIPTS, Script};
pub use stack::{check_strings, strings_limit};

use sentry_base::{Errno, Result};

/// Bytes at the start of a file that tell its format (`BINPRM_BUF_SIZE`).
pub const HEAD_SIZE: usize = 256;

/// What a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Format {
    Elf(Elf),
    Script(Script),
}

/// Tells what a file is and reads its headers. `ENOEXEC` for anything unknown or malformed.
pub fn identify(file: &dyn ExecFile) -> Result<Format> {
    let mut head = [0; HEAD_SIZE];
    file::read_up_to(file, 0, &mut head)?;
    if head.starts_with(b"#!") {
        return Script::parse(&head).map(Format::Script);
    }
    if !head.starts_with(&abi::elf::MAGIC) {
        return Err(Errno::ENOEXEC);
    }
    Elf::parse(file, &head).map(Format::Elf)
}

/// Takes bytes through every parser of this crate, for fuzzing: nothing may panic, whatever they are.
pub fn fuzz(bytes: &[u8]) {
    match identify(&bytes) {
        Ok(Format::Elf(elf)) => {
            for bias in [0, 0x5555_5555_4000, !4095] {
                let user = platform::AddrRange { start: 0x1_0000, end: 0x7fff_ffff_f000 };
                let _ = elf.plan(bias, user);
            }
        }
        Ok(Format::Script(script)) => drop(script.apply(b"/script", &[])),
        Err(_) => {}
    }
    let _ = Elf::parse_interpreter(&bytes);
}
