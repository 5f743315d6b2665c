//! Answers of name servers, and the policy that they open.
#![no_main]

use libfuzzer_sys::fuzz_target;
use net_broker::dns;
use net_broker::policy::{Names, Policy, Protocol};

fuzz_target!(|data: &[u8]| {
    let policy = r#"{ "default": "deny", "rules": [{ "action": "allow", "to": ["*.example.org"] }] }"#;
    let policy = Policy::parse(policy).unwrap();
    let mut names = Names::default();
    if let Some((name, found)) = dns::answer(data) {
        let opens = name.ends_with(".example.org");
        for ip in found {
            names.learn(&name, ip);
            assert_eq!(policy.allows(Protocol::Tcp, (ip, 443).into(), &names), opens);
        }
    }
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = Policy::parse(text);
    }
});
