//! Instants as text, in UTC (RFC 3339).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// `now` with nine digits of fraction, as the state of a container shows it.
pub fn nanoseconds(now: SystemTime) -> String {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{}.{:09}Z", date_and_time(since.as_secs()), since.subsec_nanos())
}

/// `now` to the second, as log lines show it.
pub fn seconds(now: SystemTime) -> String {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{}Z", date_and_time(since.as_secs()))
}

/// `HH:MM` of what was `ago_ms` milliseconds ago.
pub fn hour_and_minute(ago_ms: u64) -> String {
    let then = SystemTime::now().checked_sub(Duration::from_millis(ago_ms)).unwrap_or(UNIX_EPOCH);
    let seconds = then.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() % 86_400;
    format!("{:02}:{:02}", seconds / 3600, seconds / 60 % 60)
}

fn date_and_time(seconds: u64) -> String {
    let (year, month, day) = date(seconds / 86_400);
    let rest = seconds % 86_400;
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}", rest / 3600, rest / 60 % 60, rest % 60)
}

/// The Gregorian date of a day counted from 1970-01-01.
fn date(days: u64) -> (u64, u64, u64) {
    let mut year = 1970;
    let mut left = days;
    loop {
        let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let length = if leap { 366 } else { 365 };
        if left >= length {
            left -= length;
            year += 1;
            continue;
        }
        let february = if leap { 29 } else { 28 };
        let mut month = 1;
        for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
            if left < length {
                break;
            }
            left -= length;
            month += 1;
        }
        return (year, month, left + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_instants() {
        let at = |seconds| super::seconds(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01T00:00:00Z");
        assert_eq!(at(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(at(4_107_542_400), "2100-03-01T00:00:00Z");
        assert_eq!(nanoseconds(UNIX_EPOCH + Duration::new(1, 5)), "1970-01-01T00:00:01.000000005Z");
    }
}
