# bzip2: make -j2 and its own tests, then a round trip of a larger file.
cp -a /usr/src/jobs/bzip2-* bzip2 && cd bzip2
quiet make -j2 bzip2 bzip2recover libbz2.a
make test 2>&1 | grep -E 'Doing|cmp|worked' | head -20
sha256sum ./*.a bzip2 bzip2recover
seq "$([ -n "${LONG:-}" ] && echo 3000000 || echo 100000)" >numbers && ./bzip2 -k numbers && sha256sum numbers.bz2 && ./bzip2 -dc numbers.bz2 | cmp - numbers && echo same
