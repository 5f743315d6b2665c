"""Clients of what servers.sh starts at the address argv[1]: prints what ought to be the same everywhere."""
import hashlib, os, socket, subprocess, sys, tempfile, threading, urllib.request

host, count = sys.argv[1], int(sys.argv[2])


def digest(chunks):
    total = hashlib.sha256()
    for chunk in chunks:
        total.update(chunk)
    return total.hexdigest()


def get(port):
    with urllib.request.urlopen(f"http://{host}:{port}/big", timeout=60) as answer:
        return digest(iter(lambda: answer.read(1 << 16), b""))


big = get(8082)
several = []
threads = [threading.Thread(target=lambda port=port: several.append(get(port))) for port in [8082, 8083] * 2]
[t.start() for t in threads], [t.join() for t in threads]
print("downloads", big, several.count(big))

data = os.urandom(count * 1_000_000)
put = urllib.request.Request(f"http://{host}:8083/x", data=data, method="PUT")
print("upload", urllib.request.urlopen(put, timeout=60).read().decode() == hashlib.sha256(data).hexdigest())


def command(*words):
    parts = [word if isinstance(word, bytes) else str(word).encode() for word in words]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)


with socket.create_connection((host, 6379), timeout=60) as redis:
    answers = redis.makefile("rb")
    redis.sendall(command("SET", "k", data[:5_000_000]) + command("GET", "k"))
    stored = answers.readline()
    length = int(answers.readline()[1:])
    print("redis", stored, answers.read(length) == data[:5_000_000], answers.readline())
    pipeline = command("INCR", "n") * 10_000
    threading.Thread(target=redis.sendall, args=(pipeline,)).start()
    print("pipeline", [answers.readline() for _ in range(10_000)][-1])

with tempfile.TemporaryDirectory() as at:
    run = lambda *words: subprocess.run(words, check=True, capture_output=True, timeout=120)
    run("git", "clone", "-q", f"git://{host}/r", f"{at}/r")
    run("git", "-C", f"{at}/r", "fsck", "--full")
    with open(f"{at}/r/big", "rb") as file:
        print("clone", digest(iter(lambda: file.read(1 << 16), b"")) == big)
