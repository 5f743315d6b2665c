# Build packages, install one by dpkg -i, make a local repository, and install from it by apt-get.
package() { # name depends
  mkdir -p "p/$1/DEBIAN" "p/$1/usr/share/$1" "p/$1/etc"
  printf 'Package: %s\nVersion: 1.0\nArchitecture: all\nMaintainer: n <e@example.org>\nDescription: %s\n%s' "$1" "$1" "${2:+Depends: $2
}" >"p/$1/DEBIAN/control"
  printf '#!/bin/sh\nset -e\necho "postinst %s $1"\n' "$1" >"p/$1/DEBIAN/postinst" && chmod 755 "p/$1/DEBIAN/postinst"
  printf '/etc/%s.conf\n' "$1" >"p/$1/DEBIAN/conffiles" && echo "$1" >"p/$1/etc/$1.conf"
  for i in $(seq 50); do echo "$1 $i" >"p/$1/usr/share/$1/$i"; done
  quiet dpkg-deb --root-owner-group -b "p/$1" "repo/$1_1.0_all.deb"
}
mkdir repo
package casemate-one && package casemate-two casemate-one && package casemate-three 'casemate-two, tar'
sha256sum repo/*
dpkg -i repo/casemate-one_1.0_all.deb 2>&1 | grep -v 'Reading database'
dpkg -s casemate-one && dpkg -L casemate-one | wc -l
(cd repo && apt-ftparchive packages . >Packages 2>/dev/null)
echo 'deb [trusted=yes] file:///work/repo ./' >/etc/apt/sources.list
quiet apt-get update
apt-get install -y -qq casemate-three 2>&1 | grep -v -e 'Reading database' -e '^debconf' || true
dpkg -l 'casemate-*' | grep '^ii' | awk '{ print $2, $3 }'
cat /usr/share/casemate-three/7
apt-get purge -y -qq casemate-two 2>&1 | grep -v 'Reading database'
dpkg -l 'casemate-*' | grep -E '^(ii|rc)' | awk '{ print $1, $2 }'
ls /etc/casemate*
dpkg --audit; dpkg -V casemate-one
