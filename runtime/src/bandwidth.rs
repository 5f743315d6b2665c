//! Limits of what a sandbox's links carry: by flags, and by annotations that can only make them narrower.

use std::collections::HashMap;

use control_protocol::Options;

use crate::error::{Error, Result};

/// What Kubernetes names them, and our own names.
const INGRESS: [&str; 2] = ["kubernetes.io/ingress-bandwidth", "casemate/ingress-bandwidth"];
const EGRESS: [&str; 2] = ["kubernetes.io/egress-bandwidth", "casemate/egress-bandwidth"];

/// Bits in a second, as Kubernetes writes quantities: a whole number, and `k`, `M`, `G`, `T` or `Ki`, `Mi`, `Gi`, `Ti`.
pub fn parse(text: &str) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let unit: u64 = match unit {
        "" => 1,
        "k" | "K" => 1000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(unit).filter(|bits| *bits > 0)
}

/// Makes the limits as narrow as the annotations say.
pub(crate) fn tighten(options: &mut Options, annotations: Option<&HashMap<String, String>>) -> Result<()> {
    let Some(annotations) = annotations else { return Ok(()) };
    let limits = [(&mut options.ingress_bandwidth, INGRESS), (&mut options.egress_bandwidth, EGRESS)];
    for (limit, names) in limits {
        for name in names {
            let Some(text) = annotations.get(name) else { continue };
            let bits = parse(text).ok_or_else(|| {
                Error::Config(format!(
                    "annotation {name}: {text:?} is no number of bits in a second, such as 10M"
                ))
            })?;
            *limit = if *limit == 0 { bits } else { bits.min(*limit) };
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_only_tighten() {
        let said = |pairs: &[(&str, &str)]| {
            let all = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            let mut options =
                Options { ingress_bandwidth: 5_000_000, egress_bandwidth: 0, ..Options::default() };
            tighten(&mut options, Some(&all)).map(|()| (options.ingress_bandwidth, options.egress_bandwidth))
        };
        assert_eq!(said(&[(INGRESS[0], "1M"), (EGRESS[0], "64k")]).unwrap(), (1_000_000, 64_000));
        assert_eq!(said(&[(INGRESS[0], "1G"), (EGRESS[1], "1Mi")]).unwrap(), (5_000_000, 1 << 20));
        assert!(said(&[(EGRESS[0], "fast")]).unwrap_err().to_string().contains("fast"));
        for bad in ["", "0", "-1", "1.5M", "1m", "M", "99999999999T"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
