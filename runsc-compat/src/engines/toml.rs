//! TOML files of containerd and podman: a table of our own at the end, between two comments.

use anyhow::{Result, bail};

use super::Entry;

const BEGIN: &str = "# begin of what casemate has added";
const END: &str = "# end of what casemate has added";

/// The first lines of a file that we have made.
const MADE: &str = "# Made by casemate; removed with what it has added.\n";

/// A string of TOML.
fn quoted(text: &str) -> String {
    // JSON's strings are strings of TOML.
    serde_json::Value::from(text).to_string()
}

/// The block that is there, by its place, with the line feed that was put before it.
fn block(text: &str) -> Option<std::ops::Range<usize>> {
    let begin = text.find(BEGIN)?;
    let end = begin + text.get(begin..)?.find(END)? + END.len();
    let end = if text.get(end..)?.starts_with('\n') { end + 1 } else { end };
    Some(begin..end)
}

/// Puts the lines of a table at the end of the file.
fn append(text: &str, lines: &str) -> Option<String> {
    let ours = format!("{BEGIN}\n{lines}{END}\n");
    match block(text) {
        Some(range) if text.get(range.clone()) == Some(ours.as_str()) => None,
        Some(range) => {
            let mut new = text.to_owned();
            new.replace_range(range, &ours);
            Some(new)
        }
        // A file that does not end its last line gets it ended, and keeps that end in our block's first line.
        None if !text.is_empty() && !text.ends_with('\n') => Some(format!("{text}\n{ours}")),
        None => Some(format!("{text}{ours}")),
    }
}

pub fn remove(text: &str, _entry: &Entry) -> Result<Option<String>> {
    let Some(range) = block(text) else { return Ok(None) };
    let mut new = text.to_owned();
    let ended_by_us = text.get(range.clone()).is_some_and(|block| block.contains(UNENDED));
    let start = if ended_by_us { range.start.saturating_sub(1) } else { range.start };
    new.replace_range(start..range.end, "");
    if let Some(rest) = new.strip_prefix(MADE)
        && (rest.trim().is_empty() || rest.trim() == "version = 2")
    {
        new.clear();
    }
    Ok(Some(new))
}

/// Says in our block that the line before it had no end.
const UNENDED: &str = "# the line before had no end\n";

fn note_of(text: &str) -> &'static str {
    let already = block(text).and_then(|range| text.get(range)).is_some_and(|block| block.contains(UNENDED));
    let unended = block(text).is_none() && !text.is_empty() && !text.ends_with('\n');
    if already || unended { UNENDED } else { "" }
}

pub fn insert_podman(text: &str, entry: &Entry) -> Result<Option<String>> {
    let base = if text.is_empty() { MADE } else { text };
    let (name, program) = (quoted(&entry.name), quoted(&entry.program.display().to_string()));
    let note = note_of(text);
    let lines = format!("{note}[engine.runtimes]\n{name} = [{program}]\n");
    Ok(append(base, &lines))
}

pub fn insert_containerd(text: &str, entry: &Entry) -> Result<Option<String>> {
    let made = format!("{MADE}version = 2\n");
    let base = if text.is_empty() { made.as_str() } else { text };
    let plugin = match version(base) {
        Some(2) => "io.containerd.grpc.v1.cri",
        Some(3) => "io.containerd.cri.v1.runtime",
        _ => bail!(
            "it has no \"version = 2\" or \"version = 3\"; `containerd config migrate` makes one that has"
        ),
    };
    let table = format!("plugins.\"{plugin}\".containerd.runtimes.{}", bare_or_quoted(&entry.name));
    let others = match block(text) {
        Some(range) => {
            format!("{}{}", text.get(..range.start).unwrap_or(""), text.get(range.end..).unwrap_or(""))
        }
        None => text.to_owned(),
    };
    let spaceless = |text: &str| text.replace([' ', '\t', '\''], "").replace('"', "");
    let header = format!("[{}]", spaceless(&table));
    if others.lines().any(|line| spaceless(line) == header) {
        bail!("it has a table [{table}] that casemate has not written; remove it first");
    }
    let lines = if entry.has_shim {
        format!("[{table}]\nruntime_type = \"io.containerd.casemate.v1\"\n")
    } else {
        String::new()
    };
    let program = quoted(&entry.program.display().to_string());
    // Without a shim of its own it is run by that of runc.
    let by_runc_s = format!(
        "[{table}]\nruntime_type = \"io.containerd.runc.v2\"\n[{table}.options]\nBinaryName = {program}\n"
    );
    let lines = if entry.has_shim { lines } else { by_runc_s };
    Ok(append(base, &format!("{}{lines}", note_of(text))))
}

fn bare_or_quoted(name: &str) -> String {
    if name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_') {
        name.to_owned()
    } else {
        quoted(name)
    }
}

/// The version that the file says it is of, before its first table.
fn version(text: &str) -> Option<u32> {
    text.lines().map(str::trim).take_while(|line| !line.starts_with('[')).find_map(|line| {
        line.strip_prefix("version")?.trim_start().strip_prefix('=')?.split('#').next()?.trim().parse().ok()
    })
}
