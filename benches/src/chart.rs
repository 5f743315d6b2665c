//! The ratios of a table as a chart of bars, in SVG.

use std::fmt::Write;

use crate::table::{Line, ratio};

/// Colours of the peers after the first, which is the line at 1.
const COLOURS: [&str; 4] = ["#7a8ba6", "#c98b5b", "#2f7d5b", "#8a5ba6"];
/// Pixels of a bar, and between two rows.
const BAR: usize = 12;
const GAP: usize = 10;
/// Where bars start, and how long the longest may be.
const LEFT: usize = 260;
const WIDTH: usize = 460;
const TOP: usize = 50;

/// A bar for each peer of each line, as long as the logarithm of its ratio to the first peer. Bars to the left of the line
/// are quicker than that one.
pub fn svg(title: &str, peers: &[String], lines: &[Line]) -> String {
    let ratios: Vec<f64> =
        lines.iter().flat_map(|line| (1..peers.len()).filter_map(|n| line.ratio(n))).collect();
    let most = ratios.iter().copied().fold(2.0, f64::max).log2();
    let least = ratios.iter().copied().fold(1.0, f64::min).max(1.0 / 64.0).log2();
    let place = |value: f64| LEFT as f64 + (value.log2().max(least) - least) / (most - least) * WIDTH as f64;
    let row = BAR * (peers.len() - 1).max(1) + GAP;
    let height = TOP + row * lines.len() + 20;
    let width = LEFT + WIDTH + 80;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"10\" y=\"20\" font-size=\"14\">{}</text>",
        escaped(title)
    );
    for (n, peer) in peers.iter().enumerate().skip(1) {
        let (x, colour) = (LEFT + (n - 1) * 110, COLOURS[(n - 1) % COLOURS.len()]);
        let _ = writeln!(
            text,
            "<rect x=\"{x}\" y=\"30\" width=\"10\" height=\"10\" fill=\"{colour}\"/>\
             <text x=\"{}\" y=\"39\">{}</text>",
            x + 14,
            escaped(peer)
        );
    }
    for (index, line) in lines.iter().enumerate() {
        let y = TOP + index * row;
        let _ = writeln!(
            text,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>",
            LEFT - 8,
            y + (row - GAP) / 2 + 4,
            escaped(&line.title)
        );
        for n in 1..peers.len() {
            let Some(value) = line.ratio(n) else { continue };
            let (from, to) = (place(1.0).min(place(value)), place(1.0).max(place(value)));
            let (top, colour) = (y + (n - 1) * BAR, COLOURS[(n - 1) % COLOURS.len()]);
            let _ = writeln!(
                text,
                "<rect x=\"{from:.1}\" y=\"{top}\" width=\"{:.1}\" height=\"{}\" fill=\"{colour}\"/>\
                 <text x=\"{:.1}\" y=\"{}\" font-size=\"10\">{}</text>",
                (to - from).max(1.0),
                BAR - 2,
                to + 4.0,
                top + BAR - 3,
                ratio(value)
            );
        }
    }
    let one = place(1.0);
    let _ = writeln!(
        text,
        "<line x1=\"{one:.1}\" y1=\"{}\" x2=\"{one:.1}\" y2=\"{}\" stroke=\"#333\"/>\n</svg>",
        TOP - 4,
        height - 20
    );
    text
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::Unit;
    use crate::table::Figures;

    #[test]
    fn a_chart_has_a_bar_for_each_figure() {
        let one = |value| Figures::of(&[value]).ok_or_else(String::new);
        let cells = vec![one(2.0), one(8.0), Err("no".into()), one(0.5)];
        let lines = [Line { title: "a & b".into(), unit: Unit::KiB, cells }];
        let text = svg("of", &["n", "x", "y", "z"].map(str::to_owned), &lines);
        assert!(text.contains("4.00×") && text.contains("0.25×") && text.contains("a &amp; b"));
        assert_eq!(text.matches("<rect").count(), 1 + 3 + 2);
    }
}
