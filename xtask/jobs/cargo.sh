# A crate with vendored dependencies: cargo build and cargo test, offline.
mkdir .cargo
printf '[source.crates-io]\nreplace-with = "vendored"\n[source.vendored]\ndirectory = "/usr/share/cargo/registry"\n[build]\njobs = 2\n' >.cargo/config.toml
export CARGO_NET_OFFLINE=true CARGO_HOME=/work/home
results() { # What `cargo test` says, without times.
  cargo test "$@" 2>/tmp/log | sed 's/finished in .*//' | sort || { tail -n 40 /tmp/log >&2; exit 1; }
}
cargo new --quiet --lib app 2>/dev/null && cd app
echo 'semver = "1"' >>Cargo.toml
cat >src/lib.rs <<'T'
//! ```
//! assert_eq!(app::newest(&["1.2.3", "1.10.0", "1.9.9"]), "1.10.0");
//! ```
pub fn newest(all: &[&str]) -> String {
    all.iter().map(|v| semver::Version::parse(v).unwrap()).max().unwrap().to_string()
}
#[cfg(test)]
mod tests {
    #[test]
    fn sorts() { assert_eq!(super::newest(&["0.1.0", "0.0.9"]), "0.1.0"); }
    #[test]
    fn threads() {
        let t: Vec<_> = (0..8).map(|n| std::thread::spawn(move || (0..=n).sum::<u64>())).collect();
        assert_eq!(t.into_iter().map(|t| t.join().unwrap()).sum::<u64>(), 84);
    }
    #[test]
    #[should_panic]
    fn panics() { super::newest(&["["]); }
}
T
if [ -n "${LONG:-}" ]; then
  printf 'serde_json = "1"\n[profile.dev]\nopt-level = 1\n' >>Cargo.toml && mkdir tests
  cat >tests/json.rs <<'T'
#[test]
fn json() {
    let all: Vec<String> = serde_json::from_str("[\"1.2.3\", \"1.10.0\"]").unwrap();
    assert_eq!(app::newest(&all.iter().map(String::as_str).collect::<Vec<_>>()), "1.10.0");
}
T
  quiet cargo build
  results
  cp -r /usr/share/cargo/registry/semver-1* ../semver && cd ../semver && rm -f .cargo-checksum.json
  quiet cargo build --release
  results --lib
else
  quiet cargo build
  results --lib
fi
