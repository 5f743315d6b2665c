# git on a repository of many files: add, clone, status, gc, fsck.
export GIT_AUTHOR_DATE='1700000000 +0000' GIT_COMMITTER_DATE='1700000000 +0000' HOME=/work
git config --global user.name n && git config --global user.email e@example.org && git config --global init.defaultBranch main
n=$([ -n "${LONG:-}" ] && echo 50 || echo 8)
git init -q origin && cd origin
for d in $(seq "$n"); do
  mkdir "d$d" && (cd "d$d" && for f in $(seq 100); do echo "file $d $f" >"f$f"; done)
done
git add . && git commit -qm first
for d in $(seq 1 5 "$n"); do echo changed >>"d$d/f7"; git rm -q "d$d/f9"; git mv "d$d/f11" "d$d/moved"; done
git commit -qam second
git rev-parse HEAD
cd .. && git clone -q origin copy && cd copy
git status --porcelain | wc -l
git ls-files | wc -l
rm d1/f1 && echo x >d1/f2 && echo new >d1/new && chmod +x d1/f3 && ln -sf f3 d1/f4
git status --porcelain
git diff | sha256sum
git stash -q && git status --porcelain
git gc -q && git count-objects -v | grep -v size
git fsck 2>&1
git log --format='%H %s' --stat -M | sha256sum
git checkout -qb side HEAD~1 && echo side >side && git add side && git commit -qm side && git merge -q -m merged main && git rev-parse HEAD
git archive HEAD | sha256sum
digest .git/objects >/dev/null
