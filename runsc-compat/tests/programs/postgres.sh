# PostgreSQL at the address $2: `postgres.sh serve ADDRESS` says "ready" and ends with its input, `postgres.sh load ADDRESS
# TRANSACTIONS` prints what ought to be the same everywhere.
set -e
PATH=/usr/lib/postgresql/15/bin:$PATH
case $1 in
serve)
  at=/tmp/pg
  mkdir -p $at && chown postgres $at && cd $at
  as() { setpriv --reuid postgres --regid postgres --clear-groups "$@"; }
  as initdb -D data -A trust -N >log 2>&1 || { cat log >&2; exit 1; }
  echo 'host all all 10.77.0.0/24 trust' >>data/pg_hba.conf
  printf "unix_socket_directories='%s'\nlisten_addresses='%s'\n" $at "$2" >>data/postgresql.conf
  as pg_ctl -D data -l server.log -w -t 100 start >log 2>&1 || { cat log server.log >&2; exit 1; }
  echo ready
  cat >/dev/null
  as pg_ctl -D data -m fast -w -t 100 stop >/dev/null
  ;;
load)
  export PGHOST=$2 PGUSER=postgres
  pgbench -i -s 1 -q postgres >/tmp/init 2>&1 || { cat /tmp/init >&2; exit 1; }
  pgbench -c 8 -j 2 -t "$3" postgres 2>&1 | grep -E 'processed|failed'
  psql -Atc 'select count(*), sum(abalance) = (select sum(delta) from pgbench_history) from pgbench_accounts' postgres
  psql -Atc "select repeat('packet', 1000000)" postgres | sha256sum
  ;;
esac
