# npm ci from an offline cache, then the test suites of mocha and of node itself.
cp /opt/npm/package*.json . && cp -r /opt/npm-cache cache
npm ci --offline --cache /work/cache --no-audit --no-fund --no-update-notifier 2>&1 | sed 's/ in [0-9.]*m*s//'
find node_modules | sort | sha256sum
mkdir test
cat >test/test.js <<'T'
const { expect } = require('chai'), semver = require('semver'), fs = require('fs'), cp = require('child_process');
const { Worker } = require('worker_threads');
describe('all', () => {
  it('sorts', () => expect(semver.sort(['1.10.0', '1.9.0'])).to.deep.equal(['1.9.0', '1.10.0']));
  it('reads', async () => expect((await fs.promises.readdir('node_modules')).length).above(50));
  it('runs', () => expect(cp.execSync('echo $((6*7))').toString()).equal('42\n'));
  it('works', (done) => { const w = new Worker('require("worker_threads").parentPort.postMessage(6*7)', { eval: true });
    w.on('message', (m) => { expect(m).equal(42); done(); }); });
  it('pipes', (done) => { const c = cp.spawn('cat'); let n = 0; c.stdout.on('data', (d) => n += d.length);
    c.on('close', () => { expect(n).equal(1 << 20); done(); }); c.stdin.end(Buffer.alloc(1 << 20)); });
  it('watches', (done) => { fs.mkdirSync('w'); const w = fs.watch('w', (e, f) => { w.close(); expect(f).equal('x'); done(); }); fs.writeFileSync('w/x', ''); });
  it('times', (done) => { setTimeout(done, 20); });
});
T
npx --no-install mocha --reporter tap test 2>&1
cat >own.test.js <<'T'
const test = require('node:test'), assert = require('node:assert'), zlib = require('zlib'), crypto = require('crypto');
test('zlib', async () => { const b = crypto.randomBytes(1 << 20);
  assert.deepEqual(await new Promise((r) => zlib.gzip(b, (e, z) => zlib.gunzip(z, (e, u) => r(u)))), b); });
test('scrypt', async () => assert.equal((await new Promise((r) => crypto.scrypt('a', 'b', 32, (e, k) => r(k)))).length, 32));
T
node --test own.test.js 2>&1 | grep -E '^# (tests|pass|fail)'
