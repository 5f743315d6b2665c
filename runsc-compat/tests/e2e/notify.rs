//! `NOTIFY_SOCKET`: a container tells whoever started it as a service that it is ready.

use anyhow::Result;
use xtask::bundle::Bundle;
use xtask::trial::Trial;

use crate::common::debian;
use crate::lifecycle::script_in;

#[test]
fn readiness_is_told_on() -> Result<()> {
    let trial = Trial::new("notify")?;
    let program = "
import os, socket
name = os.environ['NOTIFY_SOCKET']
assert name[0] == '@'
sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
for words in ['STATUS=on the way', 'MAINPID=1', 'READY=1']:
    sender.sendto(words.encode(), '\\0' + name[1:])
input()
";
    Bundle::new(debian()?, ["python3", "-c", program])
        .env("NOTIFY_SOCKET", "/what/the/bundle/says")
        .write(&trial.path().join("bundle"))?;
    // Prints the first message that comes, without the number in it, and writes that to a file.
    let manager = "
import re, socket, sys
listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
listener.bind(sys.argv[1])
listener.settimeout(60)
print('listens', flush=True)
text = listener.recv(4096).decode()
open(sys.argv[1] + '.pid', 'w').write(''.join(re.findall(r'MAINPID=(\\d+)', text)))
print(repr(re.sub(r'\\d\\d+', 'N', text)), flush=True)
";
    let script = format!(
        "manager() {{ python3 -c \"{manager}\" $dir/$1 >$dir/$1.out & until [ -s $dir/$1.out ]; do sleep 0.02; done; }}
         manager a; mkfifo $dir/input; exec 3<>$dir/input
         NOTIFY_SOCKET=$dir/a rt create --bundle $bundle --pid-file $dir/pid $id <$dir/input || exit 1
         rt start $id; wait; cat $dir/a.out
         [ $(cat $dir/pid) = $(cat $dir/a.pid) ] || echo another process
         rt delete -f $id
         manager b; (sleep 0.1; until [ -e $dir/b.pid ]; do sleep 0.02; done; echo) | NOTIFY_SOCKET=$dir/b rt run --bundle $bundle $id; echo $?
         wait; cat $dir/b.out"
    );
    let out = script_in(&trial, &script)?.expect(0)?;
    let told = "listens\n'MAINPID=N\\nREADY=1\\n'\n";
    out.expect_out(&format!("{told}0\n{told}"))?;
    trial.finish()
}
