//! What commands print: tables as Go's `text/tabwriter` lays them out, JSON with runc's fields.

use std::fs;
use std::io::{self, Write};

use runtime::{State, Status};
use serde::Serialize;

/// The version of the OCI runtime specification that is followed.
pub const SPEC_VERSION: &str = "1.2.0";

/// Prints to standard output; a reader that has gone away is no error.
pub fn print(text: &str) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// A container as `state` and `list` show it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Shown<'a> {
    oci_version: &'a str,
    id: &'a str,
    pid: u32,
    status: String,
    bundle: &'a std::path::Path,
    rootfs: &'a std::path::Path,
    created: &'a str,
    #[serde(skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    annotations: &'a std::collections::BTreeMap<String, String>,
    owner: String,
}

impl<'a> Shown<'a> {
    pub fn new(state: &'a State, with_owner: bool) -> Self {
        let status = state.status();
        let pid = if status == Status::Stopped { 0 } else { state.init.pid };
        Self {
            oci_version: if state.oci_version.is_empty() { SPEC_VERSION } else { &state.oci_version },
            id: &state.id,
            pid,
            status: status.to_string(),
            bundle: &state.bundle,
            rootfs: &state.rootfs,
            created: &state.created,
            annotations: &state.annotations,
            owner: if with_owner { user_name(state.owner) } else { String::new() },
        }
    }

    fn row(&self) -> [String; 6] {
        [
            self.id.to_owned(),
            self.pid.to_string(),
            self.status.clone(),
            self.bundle.display().to_string(),
            self.created.to_owned(),
            self.owner.clone(),
        ]
    }
}

/// The name of a user, or `#` and the number.
pub fn user_name(uid: u32) -> String {
    let table = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let found = table.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    });
    found.unwrap_or_else(|| format!("#{uid}"))
}

/// The table of `list`.
pub fn table(states: &[State]) -> String {
    let mut rows = vec![["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned)];
    rows.extend(states.iter().map(|state| Shown::new(state, true).row()));
    align(&rows)
}

/// Columns of at least 12 characters with at least 3 of space behind them, but for the last.
fn align<const N: usize>(rows: &[[String; N]]) -> String {
    let mut text = String::new();
    let width = |column: usize| {
        let longest = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
        (longest.unwrap_or(0) + 3).max(12)
    };
    let widths: Vec<usize> = (0..N).map(width).collect();
    for row in rows {
        for (column, cell) in row.iter().enumerate() {
            text.push_str(cell);
            if column + 1 < N {
                let wide = widths.get(column).copied().unwrap_or(0);
                text.extend(std::iter::repeat_n(' ', wide.saturating_sub(cell.chars().count())));
            }
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_empty_table_is_runc_s() {
        assert_eq!(table(&[]), "ID          PID         STATUS      BUNDLE      CREATED     OWNER\n");
    }

    #[test]
    fn a_long_cell_widens_its_column() {
        let rows = [["ID".to_owned(), "X".to_owned()], ["a-name-of-16-char".to_owned(), "y".to_owned()]];
        assert_eq!(align(&rows), "ID                  X\na-name-of-16-char   y\n");
    }
}
