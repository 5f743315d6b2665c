//! `daemon.json` of Docker: one member of the object `runtimes`.

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::Entry;

/// The text of the file that we make where there is none.
fn whole(entry: &Entry) -> String {
    format!("{{\n    \"runtimes\": {{\n        {}\n    }}\n}}\n", member(entry))
}

fn member(entry: &Entry) -> String {
    let (name, path) = (Value::from(entry.name.as_str()), Value::from(entry.program.display().to_string()));
    format!("{name}: {{ \"path\": {path} }}")
}

/// What goes in, by what is there: behind the brace of `runtimes`, or of the whole.
fn inserted(entry: &Entry, has_runtimes: bool, alone: bool) -> String {
    let comma = if alone { "" } else { "," };
    let member = member(entry);
    if has_runtimes {
        format!("\n        {member}{comma}")
    } else {
        format!("\n    \"runtimes\": {{\n        {member}\n    }}{comma}")
    }
}

fn parse(text: &str) -> Result<Value> {
    let value: Value = serde_json::from_str(text).context("it is not valid JSON")?;
    if !value.is_object() {
        bail!("it is no JSON object");
    }
    if value.get("runtimes").is_some_and(|runtimes| !runtimes.is_object()) {
        bail!("its \"runtimes\" is no object");
    }
    Ok(value)
}

/// The entry that stands in the file under that name, if any.
fn present(value: &Value, entry: &Entry) -> Option<Entry> {
    let there = value.get("runtimes")?.get(&entry.name)?;
    let program = there.get("path").and_then(Value::as_str).unwrap_or_default();
    Some(Entry { program: program.into(), ..entry.clone() })
}

pub fn insert(text: &str, entry: &Entry) -> Result<Option<String>> {
    if text.trim().is_empty() {
        return Ok(Some(whole(entry)));
    }
    let value = parse(text)?;
    if let Some(old) = present(&value, entry) {
        if old.program == entry.program {
            return Ok(None);
        }
        let without = remove(text, &old)?.unwrap_or_default();
        return insert(&without, entry);
    }
    let runtimes = value.get("runtimes").and_then(Value::as_object);
    let (place, alone) = match runtimes {
        Some(runtimes) => (object_of(text, "runtimes"), runtimes.is_empty()),
        None => (text.find('{').map(|at| at + 1), value.as_object().is_none_or(serde_json::Map::is_empty)),
    };
    let place = place.context("the place for it was not found")?;
    let (before, after) = text.split_at_checked(place).context("the place for it was not found")?;
    let new = format!("{before}{}{after}", inserted(entry, runtimes.is_some(), alone));
    // Whatever the text was like, what comes of it says what it should.
    let wanted = parse(&new).context("the new text is not valid")?;
    if present(&wanted, entry).is_none_or(|there| there.program != entry.program) {
        bail!("the entry could not be put in; add {} to \"runtimes\" by hand", member(entry));
    }
    Ok(Some(new))
}

pub fn remove(text: &str, entry: &Entry) -> Result<Option<String>> {
    if text.trim().is_empty() {
        return Ok(None);
    }
    let value = parse(text)?;
    let Some(there) = present(&value, entry) else { return Ok(None) };
    if text == whole(&there) {
        return Ok(Some(String::new()));
    }
    let mut expected = value;
    let runtimes = expected.get_mut("runtimes").and_then(Value::as_object_mut);
    let others = runtimes.map_or(0, |runtimes| {
        runtimes.remove(&entry.name);
        runtimes.len()
    });
    let mut expected_without = expected.clone();
    if others == 0
        && let Some(object) = expected_without.as_object_mut()
    {
        object.remove("runtimes");
    }
    // As we have written it: exactly that is taken out.
    for (has_runtimes, alone) in [(false, false), (false, true), (true, false), (true, true)] {
        let ours = inserted(&there, has_runtimes, alone);
        if text.matches(&ours).count() == 1 {
            let without = text.replacen(&ours, "", 1);
            if parse(&without).is_ok_and(|got| got == expected || got == expected_without) {
                return Ok(Some(without));
            }
        }
    }
    // Somebody has written it in their own way.
    let mut new = serde_json::to_string_pretty(&expected)?;
    new.push('\n');
    Ok(Some(new))
}

/// The place behind the brace that opens the value of the member `key` of the whole object.
fn object_of(text: &str, key: &str) -> Option<usize> {
    let wanted = Value::from(key).to_string();
    let (mut depth, mut at) = (0_usize, 0);
    let bytes = text.as_bytes();
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'"' => {
                let end = string_end(bytes, at)?;
                if depth == 1 && text.get(at..end) == Some(wanted.as_str()) {
                    let rest = text.get(end..)?;
                    let value = rest.trim_start().strip_prefix(':')?.trim_start();
                    if value.starts_with('{') {
                        return Some(text.len() - value.len() + 1);
                    }
                }
                at = end;
                continue;
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.checked_sub(1)?,
            _ => {}
        }
        at += 1;
    }
    None
}

/// The place behind the string that begins at `start`.
fn string_end(bytes: &[u8], start: usize) -> Option<usize> {
    let mut at = start + 1;
    loop {
        match bytes.get(at)? {
            b'\\' => at += 2,
            b'"' => return Some(at + 1),
            _ => at += 1,
        }
    }
}
