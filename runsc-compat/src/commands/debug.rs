//! `debug`: what a running sandbox is at.

use std::fs::File;

use anyhow::{Context, Result, bail};
use runtime::{StateRoot, Trace};

use crate::args::Debug;
use crate::output;

pub fn show(debug: &Debug, root: &StateRoot) -> Result<()> {
    let trace = match debug.trace.as_deref() {
        None => Trace::Unchanged,
        Some("off") => Trace::Off,
        Some(path) => {
            let file = File::options()
                .append(true)
                .create(true)
                .open(path)
                .with_context(|| format!("open {path}"))?;
            // Tasks wait for what they write: a file takes everything.
            if !file.metadata()?.is_file() {
                bail!("--trace must be \"off\" or a regular file, {path} is none");
            }
            Trace::To(file)
        }
    };
    let lines = runtime::inspect(root, &debug.id, debug.files, trace)?;
    output::print(&(lines.join("\n") + "\n"));
    Ok(())
}
