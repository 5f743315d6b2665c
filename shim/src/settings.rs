//! Settings that containerd hands on to the shim: a file of TOML, or its text. Each entry of its table `casemate_config` is a
//! global flag of the command line, such as `network = "host"`.

use std::fs;

use prost::Message;
use toml::Value;

use crate::messages::{Any, RuntimeOptions};

/// The table, as the shims of other sandboxes name theirs.
const TABLE: &str = "casemate_config";

/// What the shim says itself.
const OWN: [&str; 3] = ["root", "log", "log-format"];

/// The flags that the options of a container ask for.
pub fn flags(options: Option<&Any>) -> Result<Vec<String>, String> {
    let Some(any) = options.filter(|any| RuntimeOptions::NAMES.contains(&any.name())) else {
        return Ok(Vec::new());
    };
    let options = RuntimeOptions::decode(any.value.as_slice()).map_err(|error| error.to_string())?;
    if options.config_path.is_empty() {
        let text = String::from_utf8_lossy(&options.config_body);
        return of_text(&text).map_err(|problem| format!("the runtime's options: {problem}"));
    }
    let path = &options.config_path;
    let read = fs::read_to_string(path).map_err(|error| error.to_string());
    read.and_then(|text| of_text(&text)).map_err(|problem| format!("{path}: {problem}"))
}

fn of_text(text: &str) -> Result<Vec<String>, String> {
    let all: toml::Table = text.parse().map_err(|error: toml::de::Error| error.message().to_owned())?;
    let Some(entries) = all.get(TABLE) else { return Ok(Vec::new()) };
    let entries = entries.as_table().ok_or_else(|| format!("{TABLE}: must be a table"))?;
    let flag = |(name, value): (&String, &Value)| {
        let value = match value {
            Value::String(text) => text.clone(),
            Value::Boolean(on) => on.to_string(),
            Value::Integer(number) => number.to_string(),
            _ => return Err(format!("{TABLE}.{name}: must be a string, a number, true or false")),
        };
        if OWN.contains(&name.as_str()) {
            return Err(format!("{TABLE}.{name}: is for containerd to say"));
        }
        Ok(format!("--{name}={value}"))
    };
    entries.iter().map(flag).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_of_the_table_are_flags() {
        let text =
            "version = 2\n[casemate_config] # ours\nnetwork = \"host\"\ndebug = true\n[other]\nnetwork = 1\n";
        assert_eq!(of_text(text).unwrap(), ["--debug=true", "--network=host"]);
        assert!(of_text("").unwrap().is_empty() && of_text("SystemdCgroup = true").unwrap().is_empty());
        for (wrong, said) in [
            ("casemate_config = 1", "table"),
            ("[casemate_config]\nroot = \"/r\"", "root"),
            ("[casemate_config]\nnetwork = [\"host\"]", "network"),
            ("[casemate_config\n", "]"),
        ] {
            let problem = of_text(wrong).unwrap_err();
            assert!(problem.contains(said), "{wrong:?}: {problem}");
        }
    }

    #[test]
    fn options_of_other_kinds_say_nothing() {
        let body = |text: &str| RuntimeOptions { config_body: text.into(), ..RuntimeOptions::default() };
        let ours = body("[casemate_config]\nwrites = \"discard\"");
        let [name, older] = RuntimeOptions::NAMES;
        for name in [name, older] {
            assert_eq!(flags(Some(&Any::of(name, &ours))).unwrap(), ["--writes=discard"]);
        }
        assert!(flags(Some(&Any::of("containerd.runc.v1.Options", &ours))).unwrap().is_empty());
        let missing = RuntimeOptions { config_path: "/none/x.toml".into(), ..RuntimeOptions::default() };
        assert!(flags(Some(&Any::of(name, &missing))).unwrap_err().starts_with("/none/x.toml: "));
    }
}
