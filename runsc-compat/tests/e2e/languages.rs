//! Programs of several language runtimes, with threads and processes, run to the right result.

use anyhow::Result;
use xtask::bundle::Bundle;
use xtask::programs::{self, INSIDE};
use xtask::trial::Trial;

use crate::common::{debian, long};

fn python(name: &str, program: &str, expected: &str) -> Result<()> {
    let trial = Trial::new(name)?;
    // From a file: the spawn method of multiprocessing imports it again.
    std::fs::write(trial.path().join("program.py"), program)?;
    let bundle = Bundle::new(debian()?, ["python3", "/data/program.py"]).bind(trial.path(), "/data", "ro");
    trial.run(&bundle)?.run()?.expect(0)?.expect_out(expected)?;
    trial.finish()
}

#[test]
fn python_threads() -> Result<()> {
    let program = r"
import queue, threading
work, done, total, lock = queue.Queue(), queue.Queue(), [0], threading.Lock()
start = threading.Barrier(8)
def run():
    start.wait()
    while True:
        n = work.get()
        if n is None:
            break
        with lock:
            total[0] += n
        done.put(sum(range(n)))
threads = [threading.Thread(target=run) for _ in range(8)]
for t in threads: t.start()
for n in range(4000): work.put(n)
for t in threads: work.put(None)
for t in threads: t.join()
print(total[0], sum(done.get() for _ in range(4000)))
event = threading.Event()
threading.Timer(0.05, event.set).start()
print(event.wait(60), event.wait(0.01))
";
    let sums: u64 = (0..4000u64).map(|n| n * n.saturating_sub(1) / 2).sum();
    python("py-threads", program, &format!("7998000 {sums}\nTrue True\n"))
}

fn multiprocessing(method: &str) -> Result<()> {
    let program = format!(
        r"
import multiprocessing as mp
def square(n):
    return n * n
def count(value, lock, queue):
    for _ in range(200):
        with lock:
            value.value += 1
    queue.put(mp.current_process().name)
if __name__ == '__main__':
    mp.set_start_method('{method}')
    with mp.Pool(4) as pool:
        print(sum(pool.map(square, range(1000))))
    value, lock, queue = mp.Value('i', 0, lock=False), mp.Lock(), mp.Queue()
    workers = [mp.Process(target=count, args=(value, lock, queue)) for _ in range(4)]
    for w in workers: w.start()
    names = [queue.get() for _ in workers]
    for w in workers: w.join()
    print(value.value, len(set(names)), [w.exitcode for w in workers])
    a, b = mp.Pipe()
    a.send({{'x': list(range(10000))}})
    print(len(b.recv()['x']))
"
    );
    python(&format!("py-{method}"), &program, "332833500\n800 4 [0, 0, 0, 0]\n10000\n")
}

#[test]
fn python_multiprocessing_by_fork() -> Result<()> {
    multiprocessing("fork")
}

#[test]
fn python_multiprocessing_by_spawn() -> Result<()> {
    multiprocessing("spawn")
}

#[test]
fn python_subprocesses() -> Result<()> {
    let program = r"
import subprocess
total = 0
for n in range(200):
    out = subprocess.run(['sh', '-c', f'read x; echo $((x + {n})); exit {n % 256}'], input=b'1\n', capture_output=True)
    assert out.returncode == n % 256, (n, out)
    total += int(out.stdout)
print(total)
p = [subprocess.Popen(['sleep', '0.2']) for _ in range(20)]
print([q.wait() for q in p].count(0))
try:
    subprocess.run(['sleep', '100'], timeout=0.2)
except subprocess.TimeoutExpired:
    print('timeout')
p = subprocess.Popen(['cat'], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
print(len(p.communicate(b'x' * 1000000)[0]))
";
    python("py-subprocess", program, "20100\n20\ntimeout\n1000000\n")
}

#[test]
fn python_sockets_files_and_selectors() -> Result<()> {
    let program = r"
import asyncio, mmap, os, select, signal, socket, sqlite3, tempfile, threading
a, b = socket.socketpair()
threading.Thread(target=lambda: b.sendall(b'y' * 500000) or b.close()).start()
got = 0
while chunk := a.recv(65536): got += len(chunk)
print(got)
async def main():
    server = await asyncio.start_unix_server(lambda r, w: serve(r, w), '/tmp/socket')
    async def serve(r, w):
        w.write((await r.readline()).upper()); await w.drain(); w.close()
    async def client(n):
        r, w = await asyncio.open_unix_connection('/tmp/socket')
        w.write(b'hello %d\n' % n); return await r.read()
    print(sorted(await asyncio.gather(*[client(n) for n in range(10)]))[3])
    p = await asyncio.create_subprocess_exec('echo', 'sub', stdout=asyncio.subprocess.PIPE)
    print((await p.communicate())[0]); server.close()
asyncio.run(main())
with tempfile.NamedTemporaryFile() as f:
    f.write(b'0' * 8192); f.flush(); m = mmap.mmap(f.fileno(), 8192); m[4096] = 65; m.flush()
    f.seek(4096); print(f.read(1)); m.close()
db = sqlite3.connect('/tmp/db'); db.execute('create table t(x)')
db.executemany('insert into t values(?)', [(n,) for n in range(1000)]); db.commit()
print(sqlite3.connect('/tmp/db').execute('select sum(x) from t').fetchone())
signal.signal(signal.SIGALRM, lambda *_: print('alarm')); signal.setitimer(signal.ITIMER_REAL, 0.05); signal.pause()
r, w = os.pipe(); e = select.epoll(); e.register(r, select.EPOLLIN); print(e.poll(0)); os.write(w, b'x'); print(len(e.poll(5)))
";
    let expected = "500000\nb'HELLO 3\\n'\nb'sub\\n'\nb'A'\n(499500,)\nalarm\n[]\n1\n";
    python("py-io", program, expected)
}

#[test]
fn a_static_rust_program_of_many_threads() -> Result<()> {
    let trial = Trial::new("rs-threads")?;
    let count: u64 = if long() { 128 } else { 32 };
    let guest = format!("{INSIDE}/guest");
    let bundle = Bundle::new(debian()?, [guest.as_str(), "threads", &count.to_string()]);
    let sum = 50 * count + count * 1000 + count * 1000 + count;
    trial.run(&bundle)?.run()?.expect(0)?.expect_out(&format!("{sum}\n"))?;
    trial.finish()
}

#[test]
fn a_static_go_program_of_many_threads() -> Result<()> {
    let trial = Trial::new("go-threads")?;
    if programs::go().is_none() {
        eprintln!("left out: Go is not installed");
        return Ok(());
    }
    let jobs: u64 = 64 * 200;
    let bundle = Bundle::new(debian()?, [format!("{INSIDE}/threads-go")]);
    trial.run(&bundle)?.run()?.expect(0)?.expect_out(&format!("64 {}\n", jobs * (jobs - 1) / 2))?;
    trial.finish()
}

/// Text of Go is changed like other text: wherever the runtime's signals find a thread, it is in a function that Go knows.
#[test]
fn a_static_go_program_that_is_interrupted() -> Result<()> {
    let trial = Trial::new("go-signals")?;
    if programs::go().is_none() {
        eprintln!("left out: Go is not installed");
        return Ok(());
    }
    let bundle = Bundle::new(debian()?, [format!("{INSIDE}/signals-go")]);
    trial.run(&bundle)?.run()?.expect(0)?.expect_out("2400 2400 1000000 5 true\n")?;
    trial.finish()
}

#[test]
fn busybox_alone() -> Result<()> {
    let trial = Trial::new("busybox")?;
    let script = "seq 100 | awk '{ s += $1 } END { print s }'; ls / | wc -l; echo hi > /tmp/f; cat /tmp/f; \
                  (exit 3); echo $?; sleep 1 & wait $!; echo $?";
    let bundle = Bundle::new(crate::common::busybox()?, ["sh", "-c", script]);
    let out = trial.run(&bundle)?.run()?.expect(0)?;
    anyhow::ensure!(out.out().starts_with("5050\n") && out.out().ends_with("hi\n3\n0\n"), "{out}");
    trial.finish()
}
