//! The figures as a Markdown table.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

use crate::rows::Unit;

/// What one peer's repetitions of a row gave.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    pub median: f64,
    pub low: f64,
    pub high: f64,
}

impl Figures {
    /// `None` without a value.
    pub fn of(values: &[f64]) -> Option<Self> {
        let low = values.iter().copied().min_by(f64::total_cmp)?;
        let high = values.iter().copied().max_by(f64::total_cmp)?;
        Some(Self { median: median(values)?, low, high })
    }
}

/// Why there is no cell where a row means nothing for a peer.
pub const ABSENT: &str = "not measured";

/// One row, a cell per peer; `Err` says why there is none. The first peer with one is what the others are held to.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Line {
    pub title: String,
    pub unit: Unit,
    pub cells: Vec<Result<Figures, String>>,
}

impl Line {
    /// The number of the peer that others are held to.
    fn base(&self) -> Option<usize> {
        self.cells.iter().position(|cell| !cell.as_ref().is_err_and(|why| why == ABSENT))
    }

    /// How many times the median of the peer that all are held to that of peer number `n` is; `None` for itself.
    pub fn ratio(&self, n: usize) -> Option<f64> {
        let cell = self.cells.get(n)?.as_ref().ok()?;
        let base = self.base().filter(|base| *base != n)?;
        let base = self.cells.get(base)?.as_ref().ok()?.median;
        (base > 0.0).then(|| cell.median / base)
    }
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

/// A table with a column per peer: the median, in brackets the ratio to the first column, and with `ranges` the lowest and
/// the highest value.
pub fn markdown(peers: &[String], lines: &[Line], ranges: bool) -> String {
    let mut text = format!("| | {} |\n| --- |{}\n", peers.join(" | "), " ---: |".repeat(peers.len()));
    for line in lines {
        let _ = write!(text, "| {} |", line.title);
        for (n, cell) in line.cells.iter().enumerate() {
            let cell = match cell {
                Ok(cell) => cell,
                Err(why) => {
                    text.push_str(if why == ABSENT { " |" } else { " fails |" });
                    continue;
                }
            };
            let _ = write!(text, " {}", quantity(cell.median, line.unit));
            if let Some(times) = line.ratio(n) {
                let _ = write!(text, " ({})", ratio(times));
            }
            if ranges {
                let [low, high] = [cell.low, cell.high].map(|value| quantity(value, line.unit));
                let _ = write!(text, "<br>{low} to {high}");
            }
            text.push_str(" |");
        }
        text.push('\n');
    }
    text
}

pub fn ratio(value: f64) -> String {
    if value >= 9.95 { format!("{value:.0}×") } else { format!("{value:.2}×") }
}

fn quantity(value: f64, unit: Unit) -> String {
    let (scaled, name) = match unit {
        Unit::Nanoseconds if value < 1e3 => (value, "ns"),
        Unit::Nanoseconds if value < 1e6 => (value / 1e3, "µs"),
        Unit::Nanoseconds if value < 1e9 => (value / 1e6, "ms"),
        Unit::Nanoseconds => (value / 1e9, "s"),
        Unit::KiB => (value / 1024.0, "MiB"),
        Unit::PerSecond => (value, "a second"),
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
        let one = |value| Figures::of(&[value]).ok_or_else(String::new);
        let line = |title: &str, cells| Line { title: title.into(), unit: Unit::Nanoseconds, cells };
        let lines = [
            line("stat", vec![one(400.0), one(4_400.0), Err("no".into())]),
            line("delete", vec![Err(ABSENT.into()), one(100.0), one(50.0)]),
        ];
        let text = markdown(&["native", "a", "b"].map(str::to_owned), &lines, false);
        assert_eq!(
            text,
            "| | native | a | b |\n| --- | ---: | ---: | ---: |\n| stat | 400 ns | 4.4 µs (11×) | fails |\n\
             | delete | | 100 ns | 50 ns (0.50×) |\n"
        );
    }
}
