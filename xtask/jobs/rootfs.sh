# Makes of a Debian root filesystem, $1, the one that the jobs run in. Runs as root in a mount namespace of its own.
set -euo pipefail
root=$1
cat >"$root/etc/apt/sources.list" <<S
deb http://deb.debian.org/debian bookworm main
deb-src http://deb.debian.org/debian bookworm main
S
cp /etc/resolv.conf "$root/etc/resolv.conf"
# No service is started by its package.
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d" && chmod 755 "$root/usr/sbin/policy-rc.d"
mount --bind "$root" "$root"
cd "$root"
mount -t proc proc proc
mount --rbind /dev dev
inside() { chroot . env DEBIAN_FRONTEND=noninteractive HOME=/root sh -ec "$1"; }
inside 'apt-get update -qq
apt-get install -y -qq --no-install-recommends g++ cmake ninja-build dpkg-dev golang-go cargo rustc nodejs npm \
  default-jdk-headless python3-pip python3-venv rsync sqlite3 redis-server postgresql-15 tmux gdb attr acl cpio \
  libpython3.11-testsuite apt-utils libarchive-tools file librust-semver-dev librust-serde-json-dev zip unzip xz-utils bzip2'
inside 'mkdir -p /usr/src/jobs && cd /usr/src/jobs
apt-get source --download-only -qq zlib sed bzip2 libjsoncpp
for source in *.dsc; do dpkg-source --no-check -x "$source"; done
rm -f -- *.dsc *.tar.* *.asc'
# Certificates as the host trusts them, for what comes from the language registries.
mkdir -p etc/ssl && mount --bind /etc/ssl etc/ssl
inside 'mkdir -p /opt/wheels && cd /opt/wheels && pip download -q flask pytest
mkdir -p /opt/npm && cd /opt/npm && npm init -y >/dev/null
npm install --no-audit --no-fund --cache /opt/npm-cache mocha@10 semver@7 chai@4 && rm -rf node_modules'
umount etc/ssl
rm -rf var/lib/apt/lists/* var/cache/apt/archives/* etc/resolv.conf
