# Common to all jobs. Standard output is what is compared with the host; noise goes through `quiet` to a log that is
# shown only when a step fails. $LONG is set in the long form.
set -euo pipefail
export SOURCE_DATE_EPOCH=1700000000 TZ=UTC DEBIAN_FRONTEND=noninteractive
cd /work
quiet() {
  "$@" >/tmp/log 2>&1 || { local code=$?; echo "failed with $code: $*" >&2; tail -n 60 /tmp/log >&2; return "$code"; }
}
# Names, kinds, modes, owners, sizes and contents of all that is below a directory.
digest() {
  (cd "$1" && find . \( -type f -printf '%p %y %m %U:%G %s %n ' -exec sh -c 'sha256sum <"$0"' {} \; \) -o -printf '%p %y %m %U:%G %l\n') \
    | LC_ALL=C sort | sha256sum
}
