//! Tracers and debuggers: strace and gdb see inside what they see on the host.

use std::time::Duration;

use anyhow::{Result, ensure};
use xtask::jobs;

use crate::common::same_as_host;

#[test]
fn strace_follows_children() -> Result<()> {
    // Numbers of processes and the order of their lines differ from run to run: the calls of each kind do not.
    same_as_host(
        "strace-f",
        r#"
cd /tmp
strace -f -o trace -e trace=execve,exit_group,wait4,dup2 sh -c 'ls / | wc -l; exit 3'; echo "status $?"
sed -E 's/^[0-9]+ +//' trace | grep -E '^(execve|exit_group|dup2|\+\+\+)' | sed -E 's/\(.*//' | sort | uniq -c
strace -o trace -e trace=none sh -c 'kill -TERM $$'; echo "status $?"
sed -E 's/si_(pid|uid)=[0-9]+/si_\1=N/g' trace
"#,
    )
}

#[test]
fn strace_counts_and_attaches() -> Result<()> {
    same_as_host(
        "strace-c",
        r"
cd /tmp
strace -c -o counts ls / > /dev/null
grep -cE ' (execve|openat|close|mmap)$' counts
mkfifo fifo
sh -c 'read x < fifo; exit 5' &
strace -o trace -p $! 2> log &
tracer=$!
while ! grep -q attached log; do sleep 0.02; done
echo go > fifo
wait $tracer
grep -c 'exited with 5' trace
grep attached log | sed 's/[0-9]\+/N/'
",
    )
}

#[test]
fn gdb_stops_steps_and_prints() -> Result<()> {
    if !crate::common::jobs() {
        return Ok(());
    }
    let pair = jobs::pair(
        "gdb-batch",
        r#"
cat > prog.c << 'END'
#include <stdio.h>
#include <pthread.h>
int twice(int x) {
    int y = x * 2;
    return y;
}
static void *run(void *arg) { return (void *)(long)twice((int)(long)arg); }
int main(void) {
    pthread_t t;
    void *r;
    int a = twice(4);
    pthread_create(&t, 0, run, (void *)5L);
    pthread_join(t, &r);
    printf("%d %ld\n", a, (long)r);
    return 0;
}
END
gcc -g -O0 -o prog prog.c -lpthread
gdb -batch -nx -ex 'break main' -ex run -ex bt -ex step -ex 'print x' -ex 'watch y' -ex 'delete 2' -ex finish \
    -ex 'break twice' -ex continue -ex 'print x' -ex 'set var x = 50' -ex stepi -ex bt -ex continue ./prog 2>&1 |
    grep -v -e '^\[' -e '^warning' -e '0x' -e atchpoint
"#,
        Duration::from_mins(2),
    )?;
    ensure!(pair.host.code() == 0, "gdb fails on the host: {}", pair.host);
    ensure!(pair.equal(), "{pair}");
    Ok(())
}

/// A debugger that comes to a process in the midst of its calls finds the library's own code, and can stop between the
/// instructions before a call.
#[test]
fn gdb_stops_before_a_call_of_the_library() -> Result<()> {
    if !crate::common::jobs() {
        return Ok(());
    }
    let pair = jobs::pair(
        "gdb-attach",
        r#"
cat > prog.c << 'END'
#include <fcntl.h>
#include <unistd.h>
int main(void) {
    char byte;
    int zero = open("/dev/zero", O_RDONLY);
    while (read(zero, &byte, 1) == 1)
        ;
    return 1;
}
END
gcc -o prog prog.c
./prog &
sleep 0.2
gdb -batch -nx -p $! -ex 'x/24xb read' -ex 'x/6i read' -ex 'delete' -ex 'break *((char *)read + 9)' -ex continue \
    -ex 'print (long)$rip - (long)read' -ex stepi -ex 'print (long)$rip - (long)read' -ex 'print $rax' -ex stepi \
    -ex 'print (long)$rip - (long)read' -ex 'print $rax' -ex continue -ex 'print (long)$rip - (long)read' \
    -ex delete -ex detach 2>&1 | grep -E '^\$|<.*read.*>:' | sed 's/0x[0-9a-f]\{5,\}//g'
kill -0 $! && echo alive
kill $!
"#,
        Duration::from_mins(2),
    )?;
    ensure!(pair.host.code() == 0, "gdb fails on the host: {}", pair.host);
    ensure!(pair.equal(), "{pair}");
    ensure!(pair.host.out().contains("$1 = 9"), "the host has another library: {}", pair.host);
    Ok(())
}
