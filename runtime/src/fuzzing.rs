//! What a fuzz target calls: everything that is done with the bytes of a `config.json` before the host is touched.

use crate::{config, mounts, plan, validate};

/// Any bytes give a plan or an error.
pub fn config(text: &[u8]) {
    let Ok((spec, _)) = config::parse(text) else { return };
    if validate::spec(&spec).is_err() {
        return;
    }
    for (index, mount) in spec.mounts().iter().flatten().enumerate() {
        let _ = mounts::parse(index, mount);
    }
    if let Some(process) = spec.process() {
        let made = plan::of_process(process);
        assert!(!made.args.is_empty(), "a checked process has a program");
    }
    for systemd in [false, true] {
        if let Some(linux) = spec.linux()
            && let Ok(limits) = plan::limits_of("id", linux, systemd)
        {
            let path = limits.path.unwrap_or_default();
            let inside = path.is_relative() && !path.components().any(|part| part.as_os_str() == "..");
            assert!(inside, "a control group outside: {}", path.display());
        }
    }
}
