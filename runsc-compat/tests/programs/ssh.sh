# sshd at the address $2, and scp: `ssh.sh serve ADDRESS MB DIR` says "ready" and ends with its input, `ssh.sh copy ADDRESS MB
# DIR` prints what ought to be the same everywhere. DIR holds the keys of both.
set -e
at=/tmp/ssh-$1
mkdir -p "$at" && chmod 700 "$at" && cd "$at"
cp "$4"/host "$4"/host.pub "$4"/user "$4"/user.pub .
chmod 600 host user
case $1 in
serve)
  mkdir -p /run/sshd && chmod 755 /run/sshd
  cp user.pub authorized
  head -c "$3"000000 /dev/urandom >big
  /usr/sbin/sshd -D -e -f /dev/null -p 2222 -h "$at/host" -o ListenAddress="$2" -o AuthorizedKeysFile="$at/authorized" \
    -o StrictModes=no -o UsePAM=no -o PidFile=none -o PermitRootLogin=yes -o Subsystem='sftp internal-sftp' \
    >log 2>&1 </dev/null &
  n=0
  until (exec 3<>"/dev/tcp/$2/2222") 2>/dev/null; do
    n=$((n + 1)); [ $n -lt 600 ] || { cat log >&2; exit 1; }
    sleep 0.1
  done
  sha256sum <big
  echo ready
  cat >/dev/null
  kill $!
  ;;
copy)
  options="-F /dev/null -i user -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o BatchMode=yes"
  # shellcheck disable=SC2086
  scp -P 2222 $options "root@$2:/tmp/ssh-serve/big" big
  echo "down $(sha256sum <big | cut -d' ' -f1)"
  # shellcheck disable=SC2086
  scp -P 2222 $options big "root@$2:/tmp/ssh-serve/back"
  # shellcheck disable=SC2086
  echo "up $(ssh -p 2222 $options "root@$2" sha256sum </dev/null /tmp/ssh-serve/back | cut -d' ' -f1)"
  ;;
esac
