//! Shell scripts do inside what they do on the host: processes, pipes, jobs, traps, signals.

use std::time::Duration;

use anyhow::{Result, ensure};
use xtask::bundle::Bundle;
use xtask::trial::Trial;

use crate::common::{debian, long, same_as_host};

macro_rules! same {
    ($($name:ident: $script:expr;)*) => {
        $(
            #[test]
            fn $name() -> Result<()> {
                same_as_host(concat!("sh-", stringify!($name)), $script)
            }
        )*
    };
}

#[test]
fn a_loop_of_pipelines() -> Result<()> {
    let count = if long() { 500 } else { 50 };
    same_as_host("sh-loop", &format!("for i in $(seq {count}); do ls -l /usr/bin | wc -l; done"))
}

same! {
    pipelines: r#"
        seq 1000 | grep 7 | sort -r | head -20 | tac | paste -sd,
        yes | head -3; echo "${PIPESTATUS[@]}"
        set -o pipefail; false | true; echo $?; true | false | true; echo $?
        for n in 1 2 3; do echo $n; done | while read x; do echo "<$x>"; done
        seq 100000 | tail -1; seq 100000 | wc -c
        head -c 3M /dev/zero | tr '\0' x | cat | cat | sha256sum
        cat <(echo one) <(echo two) | tac
        echo to both | tee /dev/stderr 2>&1 >/dev/null | cat
    "#;
    substitution: r#"
        x=$(echo a; echo b); echo "$x"; echo "$(echo $(echo $(echo deep)))"
        y=$(exit 7); echo $?
        echo "$(cat <<< here)"; cat << END
$((1 + 2)) $(echo three)
END
        printf '%s\n' {a,b}{1,2}; echo `echo old`
        z=$(seq 20000); echo ${#z}
    "#;
    background_jobs: r#"
        for n in 5 4 3 2 1; do (exit $n) & pids[n]=$!; done
        for n in 1 2 3 4 5; do wait ${pids[n]}; echo $n: $?; done
        sleep 0.1 & wait; echo waited $?
        (sleep 0.2; echo late) & echo early; wait
        for n in $(seq 20); do (echo $n) & done | sort -n | paste -sd' '; wait
        sleep 100 & kill $!; wait $!; echo $?
        sleep 100 & kill -9 $!; wait $!; echo $?
        sleep 100 & p=$!; sleep 0.2; kill -STOP $p; kill -CONT $p; kill -INT $p; kill $p; wait $p; echo $?
        jobs -p | wc -l
        coproc cat; echo through >&${COPROC[1]}; read -u ${COPROC[0]} line; echo "$line"
        exec {COPROC[1]}>&-; wait; echo all $?
        wait -n; echo none $?
    "#;
    traps: r#"
        trap 'echo usr1' USR1; kill -USR1 $$; trap 'echo usr2; exit 3' USR2
        bash -c 'trap "echo child term; exit 9" TERM; kill -TERM $$; sleep 10'; echo $?
        bash -c 'trap "echo bye" EXIT; exit 4'; echo $?
        bash -c 'trap "" TERM; kill -TERM $$; echo alive'; echo $?
        bash -c 'kill -TERM $$; echo not reached'; echo $?
        bash -c 'trap "echo hup" HUP; (sleep 0.1; kill -HUP $$) & wait $!; wait; echo after'; echo $?
        bash -c 'ulimit -c 0; kill -SEGV $$'; echo $?
        bash -c 'kill -KILL $$'; echo $?
        bash -c 'trap "echo chld" CHLD; /bin/true; echo done'
        kill -0 $$; echo $?; kill -0 99999 2>/dev/null; echo $?
        kill -USR2 $$; echo not reached
    "#;
    time_limits: r"
        timeout 0.2 sleep 10; echo $?
        timeout -s KILL 0.2 sleep 10; echo $?
        timeout 5 true; echo $?
        timeout -k 0.2 0.2 bash -c 'trap : TERM; while :; do sleep 0.05; done'; echo $?
    ";
    redirections: r"
        cd /tmp; echo one >f; echo two >>f; cat <f; cat f f 2>&1 | wc -l
        exec 3>g; echo three >&3; exec 3>&-; cat g
        { echo out; echo err >&2; } 2>h; cat h; ls nonesuch 2>&1; echo $?
        set -C; echo x >f; echo $?; set +C
        : >empty; wc -c <empty; exec 5<>rw; echo rw >&5; cat rw
        mkfifo p; cat p & echo through a pipe >p; wait
        dd if=/dev/zero of=sparse bs=1 count=1 seek=1M 2>/dev/null; stat -c %s sparse
    ";
    files: r"
        cd /tmp; umask 027; mkdir -p a/b/c; touch a/b/f; ln -s b/f a/l; ln a/b/f a/hard; chmod 4755 a/hard
        find a -printf '%p %y %m %n %l\n' | sort
        mv a/b a/moved; ls -R a; cp -a a copy; diff -r a copy 2>&1; rm -r a; ls
        echo data >x; chmod 0 x; cat x; chown 1000:1000 x; stat -c '%u %g %a' x
        touch -d 2001-02-03T04:05:06Z t; stat -c %Y t; truncate -s 5 t; stat -c '%s %F' t
        mkdir sticky; chmod 1777 sticky; stat -c %a sticky; rmdir sticky nonesuch 2>&1
        test -e x -a ! -e y && echo tests; readlink -f copy/l; basename $PWD; pwd -P
        mkdir many; cd many; touch $(seq 3000); ls | wc -l; ls -U | sort -n | tail -1; cd ..; rm -rf many; ls -d many 2>&1
    ";
    text_tools: r"
        sort -u /etc/passwd | cut -d: -f1 | paste -sd' '; grep -c . /etc/services /etc/passwd
        sed -n '1,3p' /etc/passwd; awk -F: '$3 < 5 { print $1 }' /etc/passwd; tr a-z A-Z </etc/hostname
        grep -rl root /etc 2>/dev/null | sort; grep -r --include=*.conf . /etc 2>/dev/null | wc -l
        seq 200000 | sort -R --random-source=<(yes) | sort -n | md5sum; seq 100 | xargs -n7 -P3 echo | wc -l
        diff <(seq 5) <(seq 2 6); seq 3 | tac | nl; date -u -d @1000000000; expr 6 '*' 7
        perl -ne 'print if /sh$/' /etc/passwd; base64 /etc/hostname; sha256sum /bin/bash | cut -c1-64
    ";
    the_whole_tree: r"
        find / -xdev \( -path /opt/programs -o -path /proc -o -path /dev -o -path /sys -o -path /tmp \) -prune -o ! -type d -printf '%p %y %m %U %G %n %s %l\n' | sort
        find / -xdev \( -path /opt/programs -o -path /proc -o -path /dev -o -path /sys \) -prune -o -type d -printf '%p %m %U %G\n' | sort | sha256sum
    ";
    packages: r"
        dpkg -l | tail -n +6; dpkg -S /bin/ls; dpkg -L bash | head; dpkg --verify 2>&1 | head; dpkg-query -W | wc -l
    ";
    archives: r"
        cd /tmp; tar -C / -cf all.tar etc usr/share/doc 2>/dev/null; tar -tf all.tar | wc -l
        mkdir x; tar -xf all.tar -C x; diff -r --no-dereference /etc x/etc && echo same; du -s --apparent-size x/etc >/dev/null
        gzip -k all.tar; zcat all.tar.gz | cmp - all.tar && echo same; tar -czf - -C x etc | tar -tzf - | wc -l
    ";
    perl: r"
        perl -e 'my $pid = fork; if (!$pid) { exit 5 } waitpid $pid, 0; print $? >> 8, qq(\n);
            pipe my $r, my $w; if (!fork) { print $w qq(hi\n); exit } close $w; print <$r>; wait;
            local $SIG{ALRM} = sub { print qq(alarm\n) }; alarm 1; select undef, undef, undef, 5;
            open my $f, q(<), q(/etc/passwd); my @l = <$f>; print scalar(@l), qq(\n); print qx(echo sub);
            my @s = sort { $b <=> $a } map { $_ * 7 % 1009 } 1 .. 5000; print qq(@s[0..9]\n); system q(exit 3); print $? >> 8, qq(\n)'
    ";
    processes: r"
        ps -o comm= -p $$; ps -o pid= -p 1; bash -c 'echo $PPID' | grep -cx $$
        cat /proc/self/comm; tr '\0' ' ' </proc/self/cmdline; echo; readlink /proc/self/exe; readlink /proc/$$/cwd
        grep -E '^(Name|Threads|PPid|Uid|Umask):' /proc/self/status | grep -v PPid
        nice -n 5 nice; bash -c 'ulimit -n 77; ulimit -n'; getconf PAGESIZE; id; whoami; uname -s; hostname
        env -i A=1 env; setsid sleep 0.1; (cd /usr; exec readlink /proc/self/cwd); exec -a name bash -c 'echo $0'
    ";
    git: r"
        cd /tmp; export GIT_AUTHOR_DATE=2001-01-01T00:00:00Z GIT_COMMITTER_DATE=2001-01-01T00:00:00Z
        git config --global user.name n; git config --global user.email e@example.org; git init -q -b main r; cd r
        for n in $(seq 50); do mkdir d$n; echo $n >d$n/f; done; git add .; git commit -qm one; git rev-parse HEAD
        git mv d1/f d1/g; echo x >>d2/f; git status --short; git diff --stat; git stash -q; git stash pop -q
        git checkout -qb b; git commit -qam two; git checkout -q main; git merge -q b; git log --oneline | cat
        cd ..; git clone -q r s; cd s; git fsck 2>&1; git gc -q; git rev-parse HEAD; git ls-files | wc -l
    ";
    make_and_gcc: r#"
        mkdir /tmp/c; cd /tmp/c
        for n in 1 2 3 4; do printf 'int f%d(int x) { return x * %d; }\n' $n $n >f$n.c; done
        cat >main.c << 'END'
#include <stdio.h>
int f1(int), f2(int), f3(int), f4(int);
int main(void) { printf("%d\n", f1(1) + f2(2) + f3(3) + f4(4)); return 0; }
END
        printf 'OBJS = main.o f1.o f2.o f3.o f4.o\nprog: $(OBJS)\n\tgcc -o $@ $(OBJS)\n%%.o: %%.c\n\tgcc -O2 -c -o $@ $<\n' >Makefile
        make -s -j2; ./prog; make; touch f2.c; make | sort; gcc -static -o static main.c f*.c && ./static
        printf 'int main(void) { return *(volatile int *)0; }' >crash.c; gcc crash.c -o crash; ./crash; echo $?
        make nonesuch; echo $?
    "#;
}

#[test]
fn sort_of_a_large_file() -> Result<()> {
    let megabytes = if long() { 100 } else { 20 };
    let script = format!(
        "cd /tmp; perl -e 'my $x = 1; my $n = 0; while ($n < {megabytes}e6) {{ $x = $x * 1103515245 + 12345 & 0x7fffffff; \
         $n += length sprintf q(%s), $x; print $x, qq(\\n); $n++ }}' >big; wc -c big; sort -n big | sha256sum; \
         sort --parallel=2 -S 5M big | sha256sum"
    );
    same_as_host("sh-sort", &script)
}

#[test]
fn scripts_start_by_their_first_line() -> Result<()> {
    let trial = Trial::new("sh-hashbang")?;
    let script = "cd /tmp; printf '#!/bin/sh -e\\necho \"$0 $@\"; false; echo no\\n' >s; chmod +x s; ./s a b; echo $?; \
                  printf '#! /tmp/s\\n' >t; chmod +x t; ./t c; echo $?; printf '#!/nonesuch\\n' >u; chmod +x u; \
                  ./u 2>/dev/null; echo $?; printf 'echo plain\\n' >v; chmod +x v; ./v; : >w; chmod +x w; ./w; echo $?";
    let out = trial.run(&Bundle::bash(debian()?, script))?.run()?.expect(0)?;
    let lines: Vec<String> = out.out().lines().map(str::to_owned).collect();
    let want = ["./s a b", "1", "/tmp/s ./t c", "1", "126", "plain", "0"];
    // Bash says 126 or 127 for an interpreter that is not there, depending on its version.
    let equal = lines.len() == want.len()
        && lines.iter().zip(want).all(|(a, b)| a == b || (b == "126" && a == "127"));
    ensure!(equal, "unexpected output: {out}");
    trial.finish()
}

/// What the README's first command runs.
#[test]
fn every_step_of_the_demonstration_passes() -> Result<()> {
    let trial = Trial::new("demo")?;
    let bundle = Bundle::bash(debian()?, &xtask::demo::script());
    let out = trial.run(&bundle)?.limit(Duration::from_mins(3)).run()?.expect(0)?;
    ensure!(out.out().contains("\n0 of the steps failed"), "{out}");
    trial.finish()
}
