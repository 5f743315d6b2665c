//! The figures as a Markdown table.

use std::fmt::Write;

use crate::rows::Unit;

/// One row's medians, a cell per peer; `Err` says why there is none. The first peer is what the others are held to.
#[derive(Debug)]
pub struct Line {
    pub title: &'static str,
    pub unit: Unit,
    pub cells: Vec<Result<f64, String>>,
}

/// The middle of the values, or the mean of the two in the middle.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let half = sorted.len() / 2;
    match (sorted.len(), sorted.get(half)) {
        (n, Some(upper)) if n % 2 == 0 => Some(f64::midpoint(sorted[half - 1], *upper)),
        (_, middle) => middle.copied(),
    }
}

/// A table with a column per peer: the value, and in brackets the ratio to the first column.
pub fn markdown(peers: &[&str], lines: &[Line]) -> String {
    let mut text = format!("| | {} |\n| --- |{}\n", peers.join(" | "), " ---: |".repeat(peers.len()));
    for line in lines {
        let _ = write!(text, "| {} |", line.title);
        let base = line.cells.first().and_then(|cell| cell.as_ref().ok().copied());
        for (n, cell) in line.cells.iter().enumerate() {
            let shown = match (cell, base) {
                (Ok(value), Some(base)) if n > 0 && base > 0.0 => {
                    format!("{} ({})", quantity(*value, line.unit), ratio(value / base))
                }
                (Ok(value), _) => quantity(*value, line.unit),
                (Err(_), _) => "fails".to_owned(),
            };
            let _ = write!(text, " {shown} |");
        }
        text.push('\n');
    }
    text
}

fn ratio(value: f64) -> String {
    if value >= 9.95 { format!("{value:.0}×") } else { format!("{value:.2}×") }
}

fn quantity(value: f64, unit: Unit) -> String {
    let (scaled, name) = match unit {
        Unit::Nanoseconds if value < 1e3 => (value, "ns"),
        Unit::Nanoseconds if value < 1e6 => (value / 1e3, "µs"),
        Unit::Nanoseconds if value < 1e9 => (value / 1e6, "ms"),
        Unit::Nanoseconds => (value / 1e9, "s"),
        Unit::KiB => (value / 1024.0, "MiB"),
    };
    if scaled < 9.95 { format!("{scaled:.1} {name}") } else { format!("{scaled:.0} {name}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    #[test]
    fn a_table_has_values_and_ratios() {
        let line = |cells| Line { title: "stat", unit: Unit::Nanoseconds, cells };
        let text = markdown(&["native", "a", "b"], &[line(vec![Ok(400.0), Ok(4_400.0), Err("no".into())])]);
        assert_eq!(
            text,
            "| | native | a | b |\n| --- | ---: | ---: | ---: |\n| stat | 400 ns | 4.4 µs (11×) | fails |\n"
        );
    }
}
