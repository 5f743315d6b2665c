"""One of two programs that exchange urgent data: urgent.py serve|connect ADDRESS send|receive SCENARIO...

What the receiver prints does not depend on how fast anything is, so that it is the same for every pair of kernels. The
two agree on when to go on over a connection of their own.
"""
import errno, fcntl, os, random, select, signal, socket, struct, sys

SIOCATMARK, FIONREAD = 0x8905, 0x541B
PATIENCE = 60_000


def say(*words):
    print(*words, flush=True)


def number(s, which):
    return struct.unpack("i", fcntl.ioctl(s, which, bytes(4)))[0]


def at_mark(s):
    return number(s, SIOCATMARK)


def result(call, *args):
    """What a call gives, or the name of its error."""
    try:
        return call(*args)
    except OSError as e:
        return errno.errorcode[e.errno]


def urgent(s):
    return result(s.recv, 4, socket.MSG_OOB)


def wait(s, events):
    p = select.poll()
    p.register(s, events)
    got = p.poll(PATIENCE)
    assert got, "nothing came"
    return got[0][1]


def exactly(s, n):
    """The next `n` bytes, however many reads they take."""
    out = b""
    while len(out) < n:
        part = s.recv(n - len(out))
        assert part, f"the end after {len(out)} of {n}"
        out += part
    return out


def own(s):
    fcntl.fcntl(s, fcntl.F_SETOWN, os.getpid())


def heard(seconds=60):
    return signal.sigtimedwait({signal.SIGURG}, seconds) is not None


class Ends:
    """Connections, one for each scenario, and one over which the two agree."""

    def __init__(self, how, address):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.at, self.listener = (address, 7100), None
        if how == "serve":
            self.listener = socket.create_server(self.at, family=family)
            say("ready")
        self.control = self.open()
        # Over a bad link the next one could be accepted before it.
        self.meet()

    def open(self):
        if self.listener:
            s, _ = self.listener.accept()
        else:
            s = socket.create_connection(self.at)
        # Python's own time limits would have every call wait until the socket is readable.
        s.settimeout(None)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("qq", PATIENCE // 1000, 0))
        return s

    def tell(self, word=0):
        self.control.sendall(struct.pack("q", word))

    def hear(self):
        return struct.unpack("q", exactly(self.control, 8))[0]

    def meet(self):
        self.tell()
        self.hear()


# Every scenario is a pair of functions: what the one does that sends, and the one that receives.


def plain_send(ends, s):
    s.send(b"abc")
    s.send(b"deX", socket.MSG_OOB)
    s.send(b"fgh")
    ends.tell()
    ends.hear()


def plain_receive(ends, s):
    own(s)
    ends.meet()
    say("signal", heard(), "poll", wait(s, select.POLLPRI) == select.POLLPRI)
    ends.hear()
    while number(s, FIONREAD) != 5:
        pass
    say(at_mark(s), s.recv(9, socket.MSG_PEEK), s.recv(9), at_mark(s), number(s, FIONREAD))
    say(s.recv(1, socket.MSG_OOB | socket.MSG_PEEK), s.recvmsg(9, 0, socket.MSG_OOB)[2] == socket.MSG_OOB)
    say(urgent(s), exactly(s, 3), at_mark(s), urgent(s))
    ends.tell()


def inline_receive(ends, s):
    s.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    own(s)
    ends.meet()
    say("signal", heard())
    ends.hear()
    say(exactly(s, 5), at_mark(s), urgent(s), exactly(s, 4), at_mark(s))
    ends.tell()


def epoll_receive(ends, s):
    e = select.epoll()
    e.register(s, select.EPOLLPRI | select.EPOLLET)
    ends.meet()
    say("edge", [events for _, events in e.poll(60)])
    say(urgent(s), e.poll(0))
    ends.hear()
    ends.tell()


def second_send(ends, s):
    for part in [b"xA", b"B", b"C", b"yD"]:
        s.send(part, socket.MSG_OOB)
        ends.tell()
        ends.hear()


def second_receive(ends, s):
    own(s)
    ends.meet()
    for _ in range(4):
        ends.hear()
        say("signal", heard())
        while not wait(s, select.POLLPRI) & select.POLLPRI:
            pass
        waiting, read = (number(s, FIONREAD), at_mark(s)), result(s.recv, 9, socket.MSG_DONTWAIT)
        say(*waiting, read, at_mark(s), urgent(s))
        ends.tell()


def last_send(ends, s):
    s.send(b"zU", socket.MSG_OOB)
    s.close()
    ends.hear()


def last_receive(ends, s):
    own(s)
    ends.meet()
    say("signal", heard())
    wait(s, select.POLLRDHUP)
    say(s.recv(9), at_mark(s), urgent(s), s.recv(9), urgent(s))
    ends.tell()


def full_send(ends, s):
    """Sends until nothing more is taken, for the urgent byte to be far behind what the other end has room for."""
    s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 200_000)
    sent, p = 0, select.poll()
    p.register(s, select.POLLOUT)
    while p.poll(1000):
        try:
            while True:
                sent += s.send(bytes(65536), socket.MSG_DONTWAIT)
        except BlockingIOError:
            pass
    ends.tell(sent)
    s.send(b"!", socket.MSG_OOB)
    s.send(b"after")
    ends.hear()


def full_receive(ends, s):
    own(s)
    ends.meet()
    sent, got = ends.hear(), 0
    while not heard(0.2):
        got += len(s.recv(65536))
    say("before the byte", urgent(s), sent - got > 65536)
    while got < sent:
        got += len(s.recv(min(65536, sent - got)))
    say("at the byte", got == sent, at_mark(s), wait(s, select.POLLPRI), urgent(s), exactly(s, 5), at_mark(s))
    ends.tell()


def parts(seed):
    """Data, each part followed by an urgent byte."""
    r = random.Random(seed)
    for n in range(30):
        yield r.randbytes(r.choice([0, 1, r.randrange(3000), r.randrange(200_000)])), bytes([65 + n])


def bulk_send(ends, s):
    for data, mark in parts(1):
        s.sendall(data)
        s.send(mark, socket.MSG_OOB)
        ends.hear()


def bulk_receive(ends, s):
    ends.meet()
    good = 0
    for data, mark in parts(1):
        got = exactly(s, len(data)) if data else b""
        wait(s, select.POLLPRI)
        good += (got == data) & at_mark(s) & (urgent(s) == mark)
        ends.tell()
    say("good", good)


def stream_send(ends, s):
    for data, mark in parts(2):
        # Who reads what comes before the urgent byte knows of that, and cannot miss it.
        s.sendall(data)
        s.send(b"-" + mark, socket.MSG_OOB)
    s.close()
    ends.hear()


def stream_receive(ends, s):
    s.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    ends.meet()
    whole, places = b"", set()
    for data, mark in parts(2):
        whole += data + b"-"
        places.add(len(whole))
        whole += mark
    got, marks = bytearray(), set()
    while True:
        if at_mark(s):
            marks.add(len(got))
        part = s.recv(50_000)
        if not part:
            break
        got += part
    say("whole", bytes(got) == whole, "marks", marks <= places, max(marks) == max(places))
    ends.tell()


SCENARIOS = {
    "plain": (plain_send, plain_receive),
    "inline": (plain_send, inline_receive),
    "epoll": (plain_send, epoll_receive),
    "second": (second_send, second_receive),
    "last": (last_send, last_receive),
    "full": (full_send, full_receive),
    "bulk": (bulk_send, bulk_receive),
    "stream": (stream_send, stream_receive),
}


def main():
    how, address, role, *wanted = sys.argv[1:]
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGURG])
    ends = Ends(how, address)
    for name in wanted:
        send, receive = SCENARIOS[name]
        s = ends.open()
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Nothing is sent before the receiver is ready.
        if role == "send":
            ends.meet()
            send(ends, s)
        else:
            say(name)
            receive(ends, s)
            signal.sigtimedwait({signal.SIGURG}, 0)
        s.close()
    say("done")


main()
