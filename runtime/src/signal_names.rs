//! Names and numbers of signals (`signal(7)`, x86-64).

use crate::error::{Error, Result};

const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
    "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
    "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];

/// The highest signal number.
const LAST: i32 = 64;

/// Reads `9`, `KILL` or `SIGKILL`, in any case, and `RTMIN+n`, `RTMAX-n`.
pub fn parse(text: &str) -> Result<i32> {
    let unknown = || Error::UnknownSignal(text.to_owned());
    // Whether there is such a signal is asked when it is sent.
    if let Ok(number) = text.parse::<i32>() {
        return Ok(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let offset = |rest: &str, sign: char| -> Option<i32> {
        if rest.is_empty() { Some(0) } else { rest.strip_prefix(sign)?.parse().ok() }
    };
    let number = match name {
        "IOT" => Some(6),
        "POLL" => Some(29),
        "CLD" => Some(17),
        _ if name.starts_with("RTMIN") => name.get(5..).and_then(|rest| offset(rest, '+')).map(|n| 34 + n),
        _ if name.starts_with("RTMAX") => name.get(5..).and_then(|rest| offset(rest, '-')).map(|n| LAST - n),
        _ => NAMES.iter().position(|known| *known == name).and_then(|at| i32::try_from(at + 1).ok()),
    };
    number.filter(|number| (1..=LAST).contains(number)).ok_or_else(unknown)
}

/// `SIGKILL` for 9; `signal 40` for a number without a name.
pub fn name(number: i32) -> String {
    usize::try_from(number)
        .ok()
        .and_then(|number| NAMES.get(number.checked_sub(1)?))
        .map_or_else(|| format!("signal {number}"), |name| format!("SIG{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling() {
        for text in ["9", "KILL", "SIGKILL", "sigkill", "Kill"] {
            assert_eq!(parse(text).unwrap(), 9, "{text}");
        }
        assert_eq!(parse("RTMIN+1").unwrap(), 35);
        assert_eq!(parse("SIGRTMAX").unwrap(), 64);
        assert_eq!(parse("-1").unwrap(), -1);
        for text in ["NOPE", "", "SIG", "RTMIN+99"] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert_eq!(name(15), "SIGTERM");
        assert_eq!(name(40), "signal 40");
    }
}
