# redis-server and redis-benchmark over a Unix socket.
n=$([ -n "${LONG:-}" ] && echo 100000 || echo 5000)
redis-server --port 0 --unixsocket /work/s --save '' --dir /work --appendonly yes --daemonize no >log 2>&1 &
for i in $(seq 200); do redis-cli -s s ping 2>/dev/null | grep -q PONG && break; sleep 0.05; done
redis-benchmark -s s -n "$n" -c 20 -q -t ping,set,get,incr,lpush,lrange_100,mset --csv | cut -d, -f1
redis-benchmark -s s -n "$n" -c 20 -P 16 -q -t set,get --csv | cut -d, -f1
redis-cli -s s eval 'for i=1,1000 do redis.call("set", "k"..i, i*i) end return redis.call("get", "k77")' 0
redis-cli -s s dbsize
redis-cli -s s bgsave && for i in $(seq 200); do [ -s dump.rdb ] && redis-cli -s s info persistence | grep -q 'rdb_bgsave_in_progress:0' && break; sleep 0.05; done
redis-cli -s s info persistence | tr -d '\r' | grep -E 'rdb_last_bgsave_status|aof_last_write_status'
redis-check-rdb dump.rdb | grep -c 'Checksum OK'
redis-cli -s s shutdown nosave
wait
