//! Suites of many small programs, run by the host kernel and in the sandbox: stress-ng, the POSIX test suite and Perl's
//! own tests. Each program's exit code must be the host's; what the sandbox lacks is listed by name.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail, ensure};

use crate::native::Native;
use crate::place::TempDir;
use crate::{jobs, rootfs, shell};

/// Programs that may end otherwise in the sandbox: a name, a colon, the reason.
const KNOWN: &str = include_str!("../jobs/suites-known.txt");

const CLASSES: &[&str] = &["scheduler", "os", "memory", "pipe", "interrupt", "vm", "filesystem"];

const STRESS: &str = r#"
mkdir /tmp/s && cd /tmp/s
for class in $classes; do
  for name in $(stress-ng --class "$class?" 2>&1 | sed 's/.*: //' | tr ' ' '\n' | grep -E '^[a-z0-9-]+$' | sort -u); do
    case " $done " in *" $name "*) continue ;; esac
    done="$done $name" code=0
    said=$(timeout -s KILL $((seconds + 60)) stress-ng --verify "--$name" 1 -t "$seconds" --temp-path /tmp/s 2>&1) || code=$?
    case "$said" in *skipp*) [ $code = 0 ] && code=skipped ;; esac
    echo "$name $code $(echo "$said" | grep -i -m 1 -E 'fail:|error:|skipp' | cut -c1-150)"
  done
done
"#;

const POSIX: &str = r#"
mkdir /tmp/p && cd /tmp/p
one() {
  name=$1 code=0 limit=60
  # Millions of calls that the vDSO hands on to the kernel.
  case $name in clock/1-1 | clock_getcpuclockid/1-1 | clock_gettime/4-1) limit=1200 ;; esac
  mkdir -p "$name" && cd "$name"
  # Into a file: what a test leaves running would keep a pipe open.
  timeout -s KILL $limit "/data/$name.test" >out 2>&1 </dev/null || code=$?
  echo "$name $code $(tail -n 1 out | cut -c1-150)"
}
export -f one
# Without the right to set the clock: the host's is everybody's.
find /data -name '*.test' -printf '%P\n' | sed 's/\.test$//' | sort |
  setpriv --bounding-set -sys_time xargs -P 4 -n 1 bash -c 'one "$0"'
"#;

/// Compiles every test of the chosen areas into `/out`; one that does not compile is no test.
const POSIX_BUILD: &str = r#"
mkdir /tmp/src && cd /tmp/src
apt-get update -qq && apt-get source --download-only -qq posixtestsuite && dpkg-source --no-check -x ./*.dsc >/dev/null
cd posixtestsuite-*/conformance/interfaces
one() {
  out=/out/$(dirname "$1")/$(basename "$1" .c).test
  mkdir -p "$(dirname "$out")"
  gcc -w -O1 -std=gnu99 -D_XOPEN_SOURCE=700 -D_GNU_SOURCE -I../../include "$1" -o "$out" -pthread -lrt -lm 2>/dev/null || true
}
export -f one
find . -name '[0-9]*-[0-9]*.c' | sed 's|^\./||' | grep -E "^(${areas// /|})" | sort | xargs -P 2 -n 8 bash -c 'for f; do one "$f"; done' bash
"#;

/// Perl's own tests that lean on the kernel, and the modules whose tests run from their own directory.
const PERL_CORE: &str = "t/base t/cmd t/comp t/io t/op";
const PERL_MODULES: &str = "ext/POSIX dist/IO cpan/Socket cpan/IPC-SysV dist/Time-HiRes cpan/IPC-Cmd cpan/File-Temp dist/threads dist/threads-shared dist/Thread-Queue dist/Thread-Semaphore ext/File-Glob cpan/IO-Socket-IP ext/IPC-Open3 ext/Sys-Hostname dist/PathTools cpan/File-Path ext/File-Find ext/Fcntl ext/SDBM_File cpan/DB_File";

/// Gets Perl's source into `/out`, with the installed Perl where the tests look for the one that they test.
const PERL_BUILD: &str = r#"
cd /out
apt-get update -qq && apt-get source --download-only -qq perl && dpkg-source --no-check -x ./*.dsc src >/dev/null
mkdir lib && cp -r /usr/share/perl/5.*/. lib && cp -r /usr/lib/x86_64-linux-gnu/perl/5.*/. lib && cp -r /usr/lib/x86_64-linux-gnu/perl-base/. lib
mkdir -p perl && cp -r src/t perl/t && ln -s /usr/bin/perl perl/t/perl && ln -s /usr/bin/perl perl/perl && mv lib perl/lib
for module in $modules; do [ ! -d "src/$module" ] || { mkdir -p "perl/$module" && cp -r "src/$module/." "perl/$module"; }; done
rm -rf src ./*.dsc ./*.tar.*
"#;

const PERL: &str = r#"
# There is no terminal on either side.
export PERL_SKIP_TTY_TEST=1
cp -r /data/perl /tmp/perl && cd /tmp/perl
one() {
  code=0 name=$1
  case $name in
    t/*) said=$(cd t && timeout -s KILL 150 ./perl -I../lib "${name#t/}" 2>&1 </dev/null) || code=$? ;;
    *) said=$(cd "${name%%/t/*}" && timeout -s KILL 150 perl "t/${name#*/t/}" 2>&1 </dev/null) || code=$? ;;
  esac
  failed=$(echo "$said" | grep -a '^not ok' | grep -a -v -i -c '# *todo')
  [ $code != 0 ] || [ "$failed" = 0 ] || code=1
  echo "$name $code $failed: $(echo "$said" | grep -a '^not ok' | grep -a -v -i '# *todo' | head -3 | tr '
' ';' | cut -c1-150)"
}
export -f one
{ for dir in $core; do ls $dir/*.t; done; for module in $modules; do find "$module/t" -name '*.t' 2>/dev/null; done; } | sort |
  xargs -P 2 -n 1 bash -c 'one "$0"'
"#;

/// Areas whose tests concern the kernel; threads alone come last, since there are many.
const AREAS: &[&str] = &[
    "sig",
    "kill",
    "killpg",
    "raise",
    "mq_",
    "sem_",
    "shm_",
    "mmap",
    "munmap",
    "mlock",
    "munlock",
    "timer_",
    "clock",
    "nanosleep",
    "sched_",
    "aio_",
    "lio_",
    "fork",
    "fsync",
    "pthread_mutex",
    "pthread_cond",
    "pthread_rwlock",
    "pthread_barrier",
    "pthread_spin",
    "pthread_kill",
    "pthread_sigmask",
    "pthread_cancel",
    "pthread_create",
];

/// Exit code and last words of each program.
type Ends = BTreeMap<String, (String, String)>;

fn ends(text: &str) -> Ends {
    let lines = text.lines().filter_map(|line| {
        let mut words = line.splitn(3, ' ');
        let (name, code) = (words.next()?, words.next()?);
        Some((name.to_owned(), (code.to_owned(), words.next().unwrap_or_default().to_owned())))
    });
    lines.collect()
}

fn reason(name: &str) -> Option<&'static str> {
    jobs::reason(KNOWN, |known| known == name)
}

/// `jobs stress`: five seconds each, or one in the short form.
pub fn stress(classes: &[&String], short: bool) -> Result<()> {
    let all = CLASSES.join(" ");
    let chosen = if classes.is_empty() {
        all
    } else {
        classes.iter().map(|c| c.as_str()).collect::<Vec<_>>().join(" ")
    };
    let seconds = if short { 1 } else { 5 };
    let script = format!("classes='{chosen}' seconds={seconds} done=\n{STRESS}");
    suite("stress", &script, None)
}

/// `jobs posix`.
pub fn posix(areas: &[&String]) -> Result<()> {
    let chosen: Vec<&str> =
        if areas.is_empty() { AREAS.to_vec() } else { areas.iter().map(|a| a.as_str()).collect() };
    let out = jobs::results()?.join("posix");
    if out.exists() {
        fs::remove_dir_all(&out)?;
    }
    fs::create_dir_all(&out)?;
    let scratch = TempDir::new("posix")?;
    let native = Native::new(rootfs::jobs()?, scratch.path()).bind(&out, "/out", "rw").with_network();
    let script = format!("areas='{}'\n{POSIX_BUILD}", chosen.join(" "));
    let words = native.command(["bash", "-c", &script]);
    shell::run(Command::new(&words[0]).args(&words[1..]))?;
    suite("posix", POSIX, Some(&out))
}

/// `jobs perl`: the whole, or the given directories of tests.
pub fn perl(dirs: &[&String]) -> Result<()> {
    let out = jobs::results()?.join("perl");
    if out.exists() {
        fs::remove_dir_all(&out)?;
    }
    fs::create_dir_all(&out)?;
    let scratch = TempDir::new("perl")?;
    let native = Native::new(rootfs::jobs()?, scratch.path()).bind(&out, "/out", "rw").with_network();
    let script = format!("set -e\nmodules='{PERL_MODULES}'\n{PERL_BUILD}");
    let words = native.command(["bash", "-c", &script]);
    shell::run(Command::new(&words[0]).args(&words[1..]))?;
    let (core, modules): (Vec<&str>, Vec<&str>) = if dirs.is_empty() {
        (vec![PERL_CORE], vec![PERL_MODULES])
    } else {
        dirs.iter().map(|dir| dir.as_str()).partition(|dir| dir.starts_with("t/"))
    };
    suite("perl", &format!("core='{}' modules='{}'\n{PERL}", core.join(" "), modules.join(" ")), Some(&out))
}

fn suite(name: &str, script: &str, data: Option<&Path>) -> Result<()> {
    let pair = jobs::pair_with(name, script, Duration::from_hours(2), data)?;
    let host = ends(&pair.host.out());
    let inside = ends(&pair.inside?.out());
    ensure!(!host.is_empty(), "nothing ran on the host: {}", pair.host);
    let out = jobs::results()?;
    let (mut equal, mut known, mut different) = (0, Vec::new(), Vec::new());
    let mut text = String::new();
    for (program, (code, _)) in &host {
        let missing = ("no end".to_owned(), String::new());
        let (got, words) = inside.get(program).unwrap_or(&missing);
        writeln!(text, "{program} {code} {got} {words}")?;
        // What fails on the host judges nobody.
        if got == code || (code != "0" && got != "137") {
            equal += 1;
        } else if let Some(why) = reason(program) {
            known.push(format!("  {program}: {why}"));
        } else {
            different.push(format!("  {program}: host {code}, sandbox {got} {words}"));
        }
    }
    fs::write(out.join(format!("{name}.table")), text)?;
    println!("{name}: {} ran on the host, {equal} end alike in the sandbox", host.len());
    println!("{} may end otherwise:\n{}", known.len(), known.join("\n"));
    if !different.is_empty() {
        bail!("{} of {name} end otherwise:\n{}", different.len(), different.join("\n"));
    }
    Ok(())
}
