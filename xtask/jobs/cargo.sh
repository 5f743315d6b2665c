# A crate with vendored dependencies: cargo build and cargo test, offline.
mkdir .cargo
printf '[source.crates-io]\nreplace-with = "vendored"\n[source.vendored]\ndirectory = "/usr/share/cargo/registry"\n[build]\njobs = 2\n' >.cargo/config.toml
export CARGO_NET_OFFLINE=true CARGO_HOME=/work/home
cargo new --quiet --lib app 2>/dev/null && cd app
cat >>Cargo.toml <<'T'
semver = "1"
serde_json = "1"
T
cat >src/lib.rs <<'T'
//! ```
//! assert_eq!(app::newest("[\"1.2.3\", \"1.10.0\", \"1.9.9\"]"), "1.10.0");
//! ```
pub fn newest(list: &str) -> String {
    let all: Vec<String> = serde_json::from_str(list).unwrap();
    all.iter().map(|v| semver::Version::parse(v).unwrap()).max().unwrap().to_string()
}
#[cfg(test)]
mod tests {
    #[test]
    fn sorts() { assert_eq!(super::newest("[\"0.1.0\", \"0.0.9\"]"), "0.1.0"); }
    #[test]
    fn threads() {
        let t: Vec<_> = (0..8).map(|n| std::thread::spawn(move || (0..=n).sum::<u64>())).collect();
        assert_eq!(t.into_iter().map(|t| t.join().unwrap()).sum::<u64>(), 84);
    }
    #[test]
    #[should_panic]
    fn panics() { super::newest("["); }
}
T
quiet cargo build
if [ -n "${LONG:-}" ]; then
  cargo test 2>/tmp/log | sed 's/finished in .*//' | sort || { tail -40 /tmp/log >&2; exit 1; }
  cp -r /usr/share/cargo/registry/semver-1* ../semver && cd ../semver && rm -f .cargo-checksum.json
  sed -i '/^\[dev-dep/,/^$/d' Cargo.toml
  quiet cargo build --release
  cargo test 2>/tmp/log | sed 's/finished in .*//' | sort || { tail -40 /tmp/log >&2; exit 1; }
else
  cargo test --lib 2>/tmp/log | sed 's/finished in .*//' | sort || { tail -40 /tmp/log >&2; exit 1; }
fi
