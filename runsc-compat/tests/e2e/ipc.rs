//! System V IPC, message queues and system-call filters, as tools and libraries use them.

use anyhow::Result;

use crate::common::same_as_host;

#[test]
fn tools_list_and_remove_ipc_objects() -> Result<()> {
    let script = r#"
        ipcmk -M 12345 -p 0640 >/dev/null; ipcmk -S 3 >/dev/null; ipcmk -Q >/dev/null
        ipcs -m | awk 'NF > 5 && $1 ~ /^0x/ { print "shm", $4, $5, $6 }'
        ipcs -s | awk '$1 ~ /^0x/ { print "sem", $4, $5 }'
        ipcs -q | awk '$1 ~ /^0x/ { print "msg", $4, $5, $6 }'
        ipcs -l | grep -E 'max (number of|queues|message|ops|size)' | sed 's/ *$//'
        awk 'NR > 1 { print $3, $4 }' /proc/sysvipc/shm
        ipcrm -a
        ipcs | grep -c ^0x
        true
    "#;
    same_as_host("ipc-tools", script)
}

#[test]
fn python_puts_a_filter_on_itself() -> Result<()> {
    let script = r#"
        python3 - <<'PY'
import ctypes, os, struct
libc = ctypes.CDLL(None, use_errno=True)
insns = [(0x20, 0, 0, 0), (0x15, 0, 1, 170), (6, 0, 0, 0x50000 | 99), (6, 0, 0, 0x7fff0000)]
raw = b"".join(struct.pack("HBBI", *i) for i in insns)
buf = ctypes.create_string_buffer(raw)
prog = struct.pack("HxxxxxxQ", len(insns), ctypes.addressof(buf))
print(libc.prctl(38, 1, 0, 0, 0), libc.prctl(22, 2, prog, 0, 0))
print(libc.sethostname(b"x", 1), ctypes.get_errno())
print([l.split()[1] for l in open("/proc/self/status") if l.startswith(("Seccomp:", "NoNewPrivs:"))])
print(os.system("exit 3") >> 8)
PY
    "#;
    same_as_host("ipc-filter", script)
}

#[test]
fn python_shares_memory_and_semaphores() -> Result<()> {
    let script = r#"
        python3 - <<'PY'
from multiprocessing import Process, Value, Semaphore, Queue, shared_memory
def work(counter, gate, out):
    for _ in range(200):
        with counter.get_lock():
            counter.value += 1
    gate.release()
    out.put("done")
if __name__ == "__main__":
    counter, gate, out = Value("i", 0), Semaphore(0), Queue()
    workers = [Process(target=work, args=(counter, gate, out)) for _ in range(3)]
    for w in workers: w.start()
    for _ in workers: gate.acquire()
    for w in workers: w.join()
    print(counter.value, sorted(out.get() for _ in workers))
    block = shared_memory.SharedMemory(create=True, size=5000)
    block.buf[:3] = b"abc"
    print(bytes(shared_memory.SharedMemory(block.name).buf[:3]))
    block.close(); block.unlink()
PY
    "#;
    same_as_host("ipc-python", script)
}
