//! Servers and clients over the loopback of a sandbox, in real programs.

use anyhow::Result;
use xtask::bundle::Bundle;
use xtask::trial::Trial;

use crate::common::{busybox, debian};

fn python(name: &str, program: &str, expected: &str) -> Result<()> {
    let trial = Trial::new(name)?;
    std::fs::write(trial.path().join("program.py"), program)?;
    let bundle = Bundle::new(debian()?, ["python3", "/data/program.py"]).bind(trial.path(), "/data", "ro");
    trial.run(&bundle)?.run()?.expect(0)?.expect_out(expected)?;
    trial.finish()
}

#[test]
fn an_http_server_serves_files() -> Result<()> {
    let program = r"
import hashlib, http.server, os, random, threading, urllib.request
os.chdir('/tmp')
data = random.Random(7).randbytes(5_000_000)
open('big', 'wb').write(data)
class Quiet(http.server.SimpleHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def log_message(self, *args): pass
server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Quiet)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f'http://127.0.0.1:{server.server_port}/'
for _ in range(3):
    got = urllib.request.urlopen(url + 'big').read()
    assert hashlib.sha256(got).digest() == hashlib.sha256(data).digest()
try:
    urllib.request.urlopen(url + 'none')
except urllib.error.HTTPError as e:
    print(e.code)
server.shutdown()
print(len(got))
";
    python("net-http", program, "404\n5000000\n")
}

#[test]
fn asyncio_echoes_over_many_connections() -> Result<()> {
    let program = r"
import asyncio
async def serve(reader, writer):
    while data := await reader.read(4096):
        writer.write(data)
        await writer.drain()
    writer.close()
async def client(port, n):
    reader, writer = await asyncio.open_connection('127.0.0.1', port)
    text = (f'{n} ' * 2000).encode()
    writer.write(text)
    writer.write_eof()
    got = await reader.read()
    writer.close()
    return got == text
async def main():
    server = await asyncio.start_server(serve, '127.0.0.1', 0)
    port = server.sockets[0].getsockname()[1]
    print(sum(await asyncio.gather(*(client(port, n) for n in range(100)))))
    loop = asyncio.get_running_loop()
    class Echo(asyncio.DatagramProtocol):
        def connection_made(self, t): self.t = t
        def datagram_received(self, data, addr): self.t.sendto(data.upper(), addr)
    t, _ = await loop.create_datagram_endpoint(Echo, local_addr=('::1', 0))
    answer = loop.create_future()
    class Ask(asyncio.DatagramProtocol):
        def connection_made(self, t): t.sendto(b'shout')
        def datagram_received(self, data, addr): answer.set_result(data)
    await loop.create_datagram_endpoint(Ask, remote_addr=t.get_extra_info('sockname')[:2])
    print((await answer).decode())
asyncio.run(main())
";
    python("net-asyncio", program, "100\nSHOUT\n")
}

#[test]
fn perl_and_bash_talk_tcp() -> Result<()> {
    let trial = Trial::new("net-bash")?;
    let script = r#"
perl -MIO::Socket::INET -e '
  my $s = IO::Socket::INET->new(LocalAddr => "127.0.0.1", LocalPort => 4321, Listen => 5, ReuseAddr => 1) or die $@;
  STDOUT->autoflush(1); print "ready\n";
  my $c = $s->accept; while (<$c>) { print $c uc }' | {
    read -r line; echo "$line"
    exec 3<>/dev/tcp/127.0.0.1/4321; echo hello >&3; read -r -u 3 line
    echo "$line"; exec 3>&-; echo done; }
( exec 3<>/dev/tcp/127.0.0.1/9 ) 2>&1 | grep -o 'Connection refused'
grep -c lo: /proc/net/dev
"#;
    let bundle = Bundle::bash(debian()?, script);
    trial
        .run(&bundle)?
        .run()?
        .expect(0)?
        .expect_out("ready\nHELLO\ndone\nConnection refused\nConnection refused\n1\n")?;
    trial.finish()
}

#[test]
fn busybox_sees_and_pings_the_loopback() -> Result<()> {
    let trial = Trial::new("net-busybox")?;
    let script = "ip addr show lo | grep -c -e LOOPBACK,UP -e 127.0.0.1/8 -e ::1/128
ifconfig lo | grep -o 'inet addr:127.0.0.1'
ping -c 1 127.0.0.1 | grep -o '1 packets received'
ping -c 1 ::1 | grep -o 'ttl=64'
nc -l -p 777 -e cat & sleep 0.5
netstat -ltn | grep -c ':777 '
echo through the server | nc 127.0.0.1 777";
    let bundle = Bundle::new(busybox()?, ["sh", "-c", script]);
    let expected = "3\ninet addr:127.0.0.1\n1 packets received\nttl=64\n1\nthrough the server\n";
    trial.run(&bundle)?.run()?.expect(0)?.expect_out(expected)?;
    trial.finish()
}
