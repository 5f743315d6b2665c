//! Ratchets: counts per crate of what the project wants less of. They may fall, never rise.
//!
//! The committed counts stand in `xtask/ratchet.json`; `cargo xtask ratchet --write` writes today's. A rise is a
//! decision: it shows in the diff of that file and wants its reason in the commit.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::crates::{self, Crate};
use crate::{place, source};

/// Counts of one crate by kind; a kind that is not there is zero.
type Counts = BTreeMap<String, usize>;
type Table = BTreeMap<String, Counts>;

/// The longest file that passes without being counted, in lines.
const LONG_FILE: usize = 800;

fn committed_path() -> PathBuf {
    place::workspace().join("xtask/ratchet.json")
}

/// Fails when a count is above the committed one.
pub fn check() -> Result<()> {
    let text = fs::read(committed_path()).context("cannot read xtask/ratchet.json")?;
    let committed: Table = serde_json::from_slice(&text).context("xtask/ratchet.json")?;
    let risen = risen(&committed, &count(&crates::all()?)?);
    if !risen.is_empty() {
        bail!(
            "counts that may only fall have risen:\n  {}\nfind another way, or run `cargo xtask ratchet --write` \
             and give the reason in the commit",
            risen.join("\n  ")
        );
    }
    Ok(())
}

/// Writes today's counts, and says which have risen.
pub fn write() -> Result<()> {
    let path = committed_path();
    let committed: Table = match fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text).context("xtask/ratchet.json")?,
        Err(_) => Table::new(),
    };
    let now = count(&crates::all()?)?;
    for line in risen(&committed, &now) {
        println!("risen: {line}");
    }
    fs::write(&path, serde_json::to_string_pretty(&now)? + "\n")?;
    println!("wrote {}", path.display());
    Ok(())
}

fn risen(committed: &Table, now: &Table) -> Vec<String> {
    let mut lines = Vec::new();
    for (name, counts) in now {
        for (kind, count) in counts {
            let limit = committed.get(name).and_then(|old| old.get(kind)).copied().unwrap_or(0);
            if *count > limit {
                lines.push(format!("{name}: {kind}: {count}, was {limit}"));
            }
        }
    }
    lines
}

fn count(crates: &[Crate]) -> Result<Table> {
    let mut table = Table::new();
    for Crate { name, folder, .. } in crates {
        // These are tests and tools themselves: what they do unsafely harms nobody's sandbox.
        if ["syscall-tests", "benches", "xtask"].contains(&name.as_str()) {
            continue;
        }
        let mut counts = Counts::new();
        for file in rust_files(&folder.join("src"))?.into_iter().chain(rust_files(&folder.join("stub"))?) {
            let stem = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            if stem == "tests" || stem.ends_with("_tests") {
                continue;
            }
            let text =
                fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
            for (kind, more) in count_file(&text) {
                if more > 0 {
                    *counts.entry(kind.to_owned()).or_default() += more;
                }
            }
        }
        if !counts.is_empty() {
            table.insert(name.clone(), counts);
        }
    }
    Ok(table)
}

fn count_file(text: &str) -> [(&'static str, usize); 7] {
    let code = source::shipped_code(text);
    let word = |word: &str| source::count_word(&code, word);
    // `'static` is a lifetime; what is left of the word declares a global.
    let globals = code.replace("'static", "");
    [
        ("unsafe", word("unsafe")),
        ("transmute", word("transmute") + word("transmute_copy")),
        ("global", source::count_word(&globals, "static") + word("thread_local")),
        ("unfinished", word("todo") + word("unimplemented")),
        ("unwrap", code.matches(".unwrap()").count() + code.matches(".expect(").count()),
        ("panic", code.matches("panic!").count() + code.matches("unreachable!").count()),
        ("file over 800 lines", usize::from(text.lines().count() > LONG_FILE)),
    ]
}

/// The Rust files below a folder; none when there is no such folder.
pub fn rust_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(folder) else { return Ok(found) };
    for entry in entries {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            found.extend(rust_files(&path)?);
        } else if path.extension().is_some_and(|end| end == "rs") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_count_has_risen() {
        check().unwrap();
    }

    #[test]
    fn counting_sees_what_it_names() {
        let text = "static mut A: u8 = 0; static B: &'static str = \"static\"; fn f() { unsafe { transmute(x) } }\n\
                    fn g() { y.unwrap(); todo!() }\n#[cfg(test)] mod t { fn h() { z.unwrap(); } }";
        let counts = BTreeMap::from(count_file(text));
        let want =
            [("unsafe", 1), ("transmute", 1), ("global", 2), ("unfinished", 1), ("unwrap", 1), ("panic", 0)];
        for (kind, count) in want {
            assert_eq!(counts[kind], count, "{kind}");
        }
    }

    #[test]
    fn only_a_rise_is_reported() {
        let table = |n: usize| Table::from([("a".to_owned(), Counts::from([("unsafe".to_owned(), n)]))]);
        assert!(risen(&table(3), &table(3)).is_empty());
        assert!(risen(&table(3), &table(2)).is_empty());
        assert_eq!(risen(&table(3), &table(4)), ["a: unsafe: 4, was 3"]);
        assert_eq!(risen(&Table::new(), &table(1)).len(), 1);
    }

    #[test]
    fn every_crate_root_says_what_it_is_for() {
        let mut bare = Vec::new();
        for one in crates::all().unwrap() {
            for root in &one.roots {
                let text = fs::read_to_string(root).unwrap();
                let doc = text.lines().take_while(|line| line.starts_with("//!")).count();
                let first = text.lines().next().unwrap_or_default();
                if doc < 3 || first.contains("TBD") {
                    bare.push(root.display().to_string());
                }
            }
        }
        assert!(bare.is_empty(), "crate roots without a description: {bare:?}");
    }

    #[test]
    fn unsafe_code_is_allowed_where_the_architecture_says() {
        let homes = ["hostsys", "sentry-memory", "platform-systrap", "syscall-tests", "benches"];
        for one in crates::all().unwrap() {
            for file in rust_files(&one.folder.join("src")).unwrap() {
                let code = source::code_only(&fs::read_to_string(&file).unwrap());
                let opened = ["allow(unsafe_code", "expect(unsafe_code"].iter().any(|text| {
                    let squeezed: String = code.split_whitespace().collect();
                    squeezed.contains(text)
                });
                assert!(
                    !opened || homes.contains(&one.name.as_str()),
                    "{} allows unsafe code; only {homes:?} may",
                    file.display()
                );
            }
        }
    }
}
