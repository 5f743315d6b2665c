//! `#!` lines (`fs/binfmt_script.c`).

use sentry_base::{Errno, Result};

use crate::HEAD_SIZE;

/// Scripts whose interpreters are scripts themselves: the sixth in a row is `ELOOP` (`exec_binprm`).
pub const MAX_SCRIPTS: usize = 5;

/// An interpreter line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Script {
    /// The interpreter's path.
    pub interpreter: Vec<u8>,
    /// All of the rest of the line, as one argument.
    pub argument: Option<Vec<u8>>,
}

fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

fn ends_word(byte: u8) -> bool {
    is_blank(byte) || byte == 0
}

fn after_blanks(bytes: &[u8]) -> &[u8] {
    let at = bytes.iter().position(|b| !is_blank(*b)).unwrap_or(bytes.len());
    bytes.get(at..).unwrap_or_default()
}

impl Script {
    /// Parses the first bytes of a file that starts with `#!`, padded with zeroes. `ENOEXEC` where there is no
    /// interpreter name, or where it may have been cut off.
    pub fn parse(head: &[u8; HEAD_SIZE]) -> Result<Self> {
        let line = head.strip_prefix(b"#!").ok_or(Errno::ENOEXEC)?;
        let line = if let Some(end) = line.iter().position(|b| *b == b'\n') {
            line.get(..end).unwrap_or_default()
        } else {
            // A cut argument is passed on; a cut path must not be.
            if !after_blanks(line).iter().any(|b| ends_word(*b)) {
                return Err(Errno::ENOEXEC);
            }
            line.get(..line.len() - 1).unwrap_or_default()
        };
        let end = line.iter().rposition(|b| !is_blank(*b)).map_or(0, |last| last + 1);
        let line = after_blanks(line.get(..end).unwrap_or_default());
        let name_end = line.iter().position(|b| ends_word(*b)).unwrap_or(line.len());
        let (name, rest) = line.split_at_checked(name_end).unwrap_or_default();
        if name.is_empty() {
            return Err(Errno::ENOEXEC);
        }
        // A NUL ends the line for good.
        let argument = match rest.first() {
            Some(0) | None => None,
            Some(_) => {
                let text = after_blanks(rest);
                let end = text.iter().position(|b| *b == 0).unwrap_or(text.len());
                text.get(..end).filter(|a| !a.is_empty())
            }
        };
        Ok(Self { interpreter: name.to_vec(), argument: argument.map(<[u8]>::to_vec) })
    }

    /// The argument vector for the interpreter: its name, the line's argument, the script's path, and the arguments
    /// after the first.
    pub fn apply(&self, script: &[u8], argv: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let mut out = vec![self.interpreter.clone()];
        out.extend(self.argument.clone());
        out.push(script.to_vec());
        out.extend(argv.iter().skip(1).cloned());
        out
    }
}
