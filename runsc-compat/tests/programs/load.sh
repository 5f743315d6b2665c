# nginx and iperf3 at the address $1, and those that load them: `load.sh serve ADDRESS MB` says "ready" and ends with its
# input, `load.sh load ADDRESS SECONDS` prints what ought to be the same everywhere.
set -e
at=/tmp/load
mkdir -p $at/www $at/tmp
case $1 in
serve)
  head -c "$3"000000 /dev/urandom >$at/www/big
  cat >$at/nginx.conf <<N
user root; worker_processes 2; pid $at/pid; error_log stderr; daemon off;
events { worker_connections 512; }
http {
  access_log off; sendfile on; keepalive_requests 1000000;
  client_body_temp_path $at/tmp; proxy_temp_path $at/tmp; fastcgi_temp_path $at/tmp; uwsgi_temp_path $at/tmp; scgi_temp_path $at/tmp;
  server { listen $2:8084; root $at/www; }
}
N
  nginx -c $at/nginx.conf >$at/log 2>&1 </dev/null &
  iperf3 -s -B "$2" >/dev/null 2>&1 </dev/null &
  for port in 8084 5201; do
    n=0
    until (exec 3<>"/dev/tcp/$2/$port") 2>/dev/null; do
      n=$((n + 1)); [ $n -lt 600 ] || { cat $at/log >&2; exit 1; }
      sleep 0.1
    done
  done
  sha256sum <$at/www/big
  echo ready
  cat >/dev/null
  ;;
load)
  exec 3<>"/dev/tcp/$2/8084"
  printf 'GET /big HTTP/1.0\r\n\r\n' >&3
  echo "download $(sed '1,/^\r$/d' <&3 | sha256sum | cut -d' ' -f1)"
  exec 3>&-
  wrk -t 2 -c 16 -d "$3" --timeout 60s "http://$2:8084/big" >$at/wrk || cat $at/wrk
  grep -c -e 'Non-2xx' -e 'Socket errors' $at/wrk || true
  for how in '-P 1' '-P 8' '-R -P 1' '-R -P 8'; do
    # The server of the run before may still be busy with its end.
    for n in $(seq 50); do
      # shellcheck disable=SC2086
      iperf3 -c "$2" -t "$3" $how >$at/iperf 2>&1 && break
      sleep 0.2
    done
    echo "iperf3 $how: $(grep -c 'receiver$' $at/iperf)"
  done
  ;;
esac
