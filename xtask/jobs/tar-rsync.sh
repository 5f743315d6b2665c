# tar and rsync -aHAX there and back: links, sparse files, times, extended attributes, ACLs, owners, FIFOs.
mkdir -p tree/sub/deep "tree/with space" && cd tree
for i in $(seq "$([ -n "${LONG:-}" ] && echo 300 || echo 40)"); do head -c $((i * 97)) /dev/zero | tr '\0' "$(printf "\\$(printf %o $((i % 90 + 33)))")" >"sub/f$i"; done
ln sub/f1 sub/hard && ln sub/f1 hard2 && ln -s sub/f2 soft && ln -s /nowhere dangling && mkfifo fifo
truncate -s 50M sparse && echo end | dd of=sparse bs=1 seek=20000000 conv=notrunc status=none
chmod 4755 sub/f3 && chmod 1777 sub/deep && chmod 2755 'with space' && chown 12:34 sub/f4 && chown -h 56:78 soft
setfattr -n user.color -v blue sub/f5 && setfattr -n user.empty sub/f6 && setfattr -n user.dir -v 'a b' sub
setfacl -m u:1234:rw,g:99:r sub/f7 && setfacl -d -m u:1234:rx 'with space'
touch -d '2001-02-03 04:05:06.789012345' sub/f8 && touch -h -d '2010-01-01' soft && echo ü >'ünïcode'
find . -exec touch -h -d '2020-01-01 00:00:00.123456789' {} + && cd ..
look() {
  (cd "$1" && find . -printf '%p %y %m %U:%G %s %n %T@ %l\n' | grep -v -E '^\S+( \S+)? d ' | sort && find . -type d -printf '%p %m %U:%G %T@\n' | sort &&
    find . -type f -print0 | sort -z | xargs -0 sha256sum && find . -print0 | sort -z | xargs -0 getfattr -hd -m - &&
    find . ! -type l -print0 | sort -z | xargs -0 getfacl -p && stat -c %i hard2 sub/hard | uniq | wc -l)
}
look tree >a && sha256sum a
tar --xattrs --acls --sparse -cf t.tar tree && mkdir x && tar --xattrs --acls --xattrs-include='*' -xpf t.tar -C x
look x/tree >b && diff a b && echo 'tar: same' && stat -c %b x/tree/sparse | awk '{ print ($1 < 1000 ? "sparse" : "full") }'
rsync -aHAX --sparse tree/ y/ && look y >c && diff a c && echo 'rsync: same'
echo more >>tree/sub/f9 && rm tree/sub/f10
# Whether rsync gives a directory its time again after the last change in it depends on how long that took.
rsync -aHAXi --delete tree/ y/ && look tree | grep -v '^\./sub [0-9]' >d && look y | grep -v '^\./sub [0-9]' >e && diff d e && echo 'rsync again: same'
tar -czf t.tgz tree && tar -tzf t.tgz | sort | sha256sum && tar -dzf t.tgz && echo compared
tar -cJf - tree | tar -xJf - -O tree/sub/f20 | sha256sum
(cd tree && find . -print0 | sort -z | cpio -0o --quiet -H newc 2>/dev/null || bsdtar -cf - --format=cpio .) | wc -c | awk '{ print ($1 > 1000) }'
zip -qry t.zip tree -x '*fifo' && unzip -qo t.zip -d z && cmp tree/sub/f30 z/tree/sub/f30 && readlink z/tree/dangling
