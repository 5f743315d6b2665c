//! Stress-ng's own checks of what the kernel gives back.

use std::time::Duration;

use anyhow::{Result, ensure};
use xtask::bundle::Bundle;
use xtask::trial::Trial;

use crate::common::{debian, long};

fn stress(name: &str, options: &[&str]) -> Result<()> {
    let trial = Trial::new(&format!("stress-{name}"))?;
    let seconds = if long() { "30" } else { "3" };
    let mut args =
        vec!["stress-ng", "--verify", "--metrics-brief", "--temp-path", "/tmp", "--timeout", seconds];
    args.extend(options);
    let bundle = Bundle::new(debian()?, args).tmpfs("/tmp");
    let out = trial.run(&bundle)?.limit(Duration::from_mins(4)).run()?.expect(0)?;
    let said = out.out() + &out.err();
    ensure!(said.contains("successful run completed"), "{out}");
    // A stressor that could do nothing counts as done.
    let skipped = ["0 bogo-ops", "not implemented", "skipped: 1"].iter().find(|text| said.contains(**text));
    ensure!(skipped.is_none(), "the stressor was left out: {out}");
    trial.finish()
}

macro_rules! stressors {
    ($($name:ident: $($option:literal)*;)*) => {
        $(
            #[test]
            fn $name() -> Result<()> {
                stress(stringify!($name), &[$($option),*])
            }
        )*
    };
}

stressors! {
    cpu: "--cpu" "2";
    pipe: "--pipe" "2";
    futex: "--futex" "2";
    fork: "--fork" "2";
    vm: "--vm" "2" "--vm-bytes" "64M";
    mmap: "--mmap" "2" "--mmap-bytes" "32M";
    timer: "--timer" "1" "--timer-freq" "1000";
    signal: "--signal" "2";
}
