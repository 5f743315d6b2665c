# tmux with a detached session, and script: terminals made by programs.
export TERM=xterm
tmux -L t -f /dev/null new-session -d -x 80 -y 24 'bash --norc --noprofile'
tmux -L t send-keys 'echo $((6*7)); stty size; tty | cut -c1-9' Enter
for i in $(seq 100); do tmux -L t capture-pane -p | grep -q '^/dev/pts' && break; sleep 0.05; done
tmux -L t capture-pane -p | grep -v -e '[$#]' -e '^$'
tmux -L t split-window -h 'sleep 100' && tmux -L t list-panes -F '#{pane_index} #{pane_width}x#{pane_height}'
until_so() { for i in $(seq 200); do eval "$1" && return; sleep 0.05; done; echo "not so: $1"; }
tmux -L t send-keys -t 0 'cat' Enter && until_so 'pgrep -x cat >/dev/null'
tmux -L t send-keys -t 0 C-c && until_so '! pgrep -x cat >/dev/null'
tmux -L t send-keys -t 0 'sleep 50' Enter && until_so 'pgrep -f "^sleep 50" >/dev/null'
tmux -L t send-keys -t 0 C-z && until_so 'tmux -L t capture-pane -p -t 0 | grep -q Stopped'
tmux -L t capture-pane -p -t 0 | grep Stopped | tr -s ' '
# The pane's program learns of its size some time later.
tmux -L t resize-pane -t 0 -x 20
until_so 'tmux -L t send-keys -t 0 "clear; stty size" Enter; sleep 0.3; tmux -L t capture-pane -p -t 0 | grep -q "^[0-9]* 20$"'
tmux -L t capture-pane -p -t 0 | grep -E '^[0-9]+ [0-9]+$' | tail -1
tmux -L t kill-server
for i in $(seq 100); do pgrep -f 'sleep (100|50)' >/dev/null || break; sleep 0.05; done
pgrep -fc 'sleep (100|50)' || true
script -qec 'tty | cut -c1-9; stty -a | head -3; ls --color=auto -C /usr | head -2; exit 3' typescript </dev/null >out || echo "script: $?"
tr -d '\r' <out
tr -d '\r' <typescript | grep -c /dev/pts
script -qec 'sleep 0.1; kill -TERM $$' /dev/null </dev/null || echo "code $?"
python3 - <<'T'
import os, pty, signal, time
pid, fd = pty.fork()
if pid == 0:
    os.execvp('bash', ['bash', '--norc', '-i'])
os.write(fd, b'PS1=; stty -echo; trap "echo int" INT; echo ready$((1+1))\n')
buf = b''
while b'ready2' not in buf: buf += os.read(fd, 1000)
time.sleep(0.2); os.write(fd, b'\x03'); time.sleep(0.2); os.write(fd, b'echo done$((1+2)); exit 5\n')
buf = b''
try:
    while True:
        b = os.read(fd, 1000)
        if not b: break
        buf += b
except OSError as e: print('end', e.errno)
print(b'done3' in buf, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
T
