# PostgreSQL over its Unix socket: initdb, start, pgbench, stop, and a restart after kill -9.
PATH=/usr/lib/postgresql/15/bin:$PATH
chown postgres /work
as() { setpriv --reuid postgres --regid postgres --clear-groups "$@"; }
as initdb -D data -A trust -N >log 2>&1 || { cat log >&2; exit 1; }
echo "unix_socket_directories='/work'" >>data/postgresql.conf && echo "listen_addresses=''" >>data/postgresql.conf
as pg_ctl -D data -l server.log -w start >log 2>&1 || { cat log server.log >&2; exit 1; }
s=$([ -n "${LONG:-}" ] && echo 10 || echo 1)
as pgbench -h /work -i -s "$s" -q postgres 2>&1 | sed 's/ in .*//; /elapsed/d'
as pgbench -h /work -c 4 -j 2 -t $((s * 100)) postgres 2>&1 | grep -E 'processed|failed|type'
as psql -h /work -Atc 'select count(*), sum(abalance) = (select sum(delta) from pgbench_history) from pgbench_accounts' postgres
as psql -h /work -Atc "create table t as select g, md5(g::text) m from generate_series(1, 100000) g; create index on t(m); analyze t; select count(*) from t where m like 'ab%'" postgres
kill -9 "$(head -1 data/postmaster.pid)"
for i in $(seq 300); do pgrep -u postgres >/dev/null || break; sleep 0.1; done
as pg_ctl -D data -l server.log -w start >log 2>&1 || { cat log server.log >&2; exit 1; }
as psql -h /work -Atc 'select count(*) from t' postgres
as pg_ctl -D data -m fast -w stop
