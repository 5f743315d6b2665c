# strace -f and gdb with a breakpoint.
cat >p.c <<'T'
#include <stdio.h>
#include <stdlib.h>
static int square(int n) { return n * n; }
int main(void) { int s = 0; for (int i = 0; i < 3; i++) s += square(i); printf("%d\n", s); return s; }
T
gcc -g -O0 p.c -o p
strace -f -o trace sh -c 'ls / >/dev/null; exit 3' || echo "code $?"
# Another process may be shown between the halves of a call.
grep -c 'execve(' trace
gdb -q -batch -nx -ex 'set debuginfod enabled off' -ex 'set startup-with-shell off' -ex 'break square' -ex run -ex bt -ex 'print n' -ex next -ex continue -ex 'delete' -ex continue ./p 2>&1 | grep -v -e '^warning' -e 'libthread_db' | sed 's/0x[0-9a-f]*/ADDR/g; s/process [0-9]*/process N/'
