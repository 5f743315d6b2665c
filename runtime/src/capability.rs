//! Capabilities by name (`capabilities(7)`).

use control_protocol::Capabilities;
use oci_spec::runtime::LinuxCapabilities;
use serde_json::Value;

/// In the order of their numbers.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// Every capability.
pub const ALL: u64 = (1 << NAMES.len()) - 1;

const SETS: [&str; 5] = ["bounding", "effective", "inheritable", "permitted", "ambient"];

fn number(name: &str) -> Option<usize> {
    let name = name.strip_prefix("CAP_").unwrap_or(name);
    NAMES.iter().position(|known| *known == name)
}

/// The bit of a capability, with or without `CAP_` before its name, in any case.
pub fn bit(name: &str) -> Option<u64> {
    number(&name.to_ascii_uppercase()).map(|number| 1 << number)
}

/// The names of all capabilities.
pub fn names() -> Vec<String> {
    NAMES.iter().map(|name| format!("CAP_{name}")).collect()
}

/// Takes capabilities that this kernel does not know out of a parsed `config.json`: the specification wants a
/// warning for them, not an error. Returns the warnings.
pub(crate) fn remove_unknown(config: &mut Value) -> Vec<String> {
    let mut warnings = Vec::new();
    for set in SETS {
        let list = config.pointer_mut(&format!("/process/capabilities/{set}")).and_then(Value::as_array_mut);
        let Some(list) = list else { continue };
        list.retain(|entry| match entry.as_str() {
            Some(name) if number(name).is_none() => {
                warnings.push(format!("process.capabilities.{set}: unknown capability {name:?} ignored"));
                false
            }
            _ => true,
        });
    }
    warnings
}

/// The sets as words of bits.
pub(crate) fn to_sets(from: &LinuxCapabilities) -> Capabilities {
    let word = |set: &Option<oci_spec::runtime::Capabilities>| {
        set.iter().flatten().filter_map(|one| number(&one.to_string())).fold(0, |word, bit| word | 1 << bit)
    };
    Capabilities {
        bounding: word(from.bounding()),
        effective: word(from.effective()),
        inheritable: word(from.inheritable()),
        permitted: word(from.permitted()),
        ambient: word(from.ambient()),
    }
}
