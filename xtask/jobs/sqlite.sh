# sqlite3: many inserts in both journal modes, an index, a vacuum, an integrity check, and several writers at once.
n=$([ -n "${LONG:-}" ] && echo 1000000 || echo 100000)
for mode in delete wal; do
  sqlite3 $mode.db <<Q
PRAGMA journal_mode=$mode;
CREATE TABLE t(id INTEGER PRIMARY KEY, a TEXT, b INTEGER);
BEGIN;
WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM c WHERE n < $n) INSERT INTO t SELECT n, printf('row %d', n), (n*7919)%10007 FROM c;
COMMIT;
CREATE INDEX i ON t(b);
SELECT count(*), sum(b), max(a) FROM t;
DELETE FROM t WHERE id%3=0;
VACUUM;
PRAGMA integrity_check;
SELECT count(*) FROM t WHERE b=77;
Q
done
sqlite3 many.db 'PRAGMA journal_mode=wal; CREATE TABLE t(w, n)'
for w in 1 2 3 4; do
  (for n in $(seq 25); do echo "INSERT INTO t VALUES($w, $n);"; done | sqlite3 -cmd '.timeout 60000' many.db) &
done
wait
sqlite3 many.db 'SELECT w, count(*), sum(n) FROM t GROUP BY w; PRAGMA integrity_check'
sqlite3 delete.db .dump | sha256sum
