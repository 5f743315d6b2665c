# Real servers at the address $1, which hold $2 million bytes each. Says "ready", and ends with its input.
set -e
export HOME=/tmp/servers
mkdir -p $HOME/www $HOME/git/r && cd $HOME
head -c "$2"000000 /dev/urandom >www/big
(cd www && exec python3 -m http.server 8082 --bind "$1") >/dev/null 2>&1 </dev/null &
cat >server.js <<'J'
const { createHash } = require('crypto'), { createReadStream } = require('fs');
require('http').createServer((ask, answer) => {
  if (ask.method === 'PUT') {
    const hash = createHash('sha256');
    ask.on('data', (part) => hash.update(part)).on('end', () => answer.end(hash.digest('hex')));
  } else createReadStream('www/big').pipe(answer);
}).listen(8083, process.argv[2]);
J
node server.js "$1" >/dev/null 2>&1 </dev/null &
redis-server --bind "$1" --protected-mode no --save '' >/dev/null 2>&1 </dev/null &
cp www/big git/r/big && cd git/r && git init -q
git add big && git -c user.name=a -c user.email=a@example.org commit -q -m big && touch .git/git-daemon-export-ok
git daemon --listen="$1" --base-path=$HOME/git --reuseaddr >/dev/null 2>&1 </dev/null &
cd $HOME
for port in 8082 8083 6379 9418; do
  until (exec 3<>"/dev/tcp/$1/$port") 2>/dev/null; do sleep 0.1; done
done
sha256sum <www/big
echo ready
cat >/dev/null
