//! tmpfs and the VFS's path calls on it, with a test task.

use std::sync::Arc;

use sentry_base::Errno;
use sentry_memory::{MemoryFile, UserReader, UserWriter};
use sentry_vfs::testing::TestCaller;
use sentry_vfs::*;

use crate::{MemfdMaker, TmpFs, TmpfsOptions, open_tmpfs_file, seal};

struct World {
    memory: Arc<MemoryFile>,
    fs: Arc<TmpFs>,
    ns: Arc<MountNamespace>,
    caller: TestCaller,
    view: FsContextView,
    creds: Credentials,
}

fn user(uid: u32) -> Credentials {
    Credentials::new(uid, uid, Arc::from([]), CapSet::EMPTY)
}

impl World {
    fn new() -> Self {
        Self::with(TmpfsOptions { mode: 0o755, ..TmpfsOptions::default() })
    }

    fn with(options: TmpfsOptions) -> Self {
        let memory = MemoryFile::create(1 << 30).unwrap();
        let fs = TmpFs::new(&memory, options);
        let ns = MountNamespace::new(
            &Vfs::new(),
            Arc::clone(&fs) as Arc<dyn FileSystem>,
            MountFlags::empty(),
            "none",
        );
        let root = ns.root();
        Self {
            memory,
            fs,
            view: FsContextView { root: root.clone(), cwd: root, umask: 0o022 },
            ns,
            caller: TestCaller::new(1),
            creds: Credentials::root(),
        }
    }

    fn cx(&self) -> PathCx<'_> {
        PathCx::new(&self.ns, &self.view, &self.creds, &self.caller)
    }

    fn open(&self, path: &str, flags: OpenFlags) -> Result<Arc<FileDescription>, Errno> {
        let how = OpenHow { flags, mode: 0o666, resolve: LookupFlags::empty() };
        match self.cx().open(None, path.as_bytes(), how)? {
            Opened::File(file) => Ok(file),
            Opened::Wait(_) | Opened::Leased(..) => panic!("{path} makes its opener wait"),
        }
    }

    fn put(&self, path: &str, text: &[u8]) {
        let file = self.open(path, OpenFlags::CREAT | OpenFlags::WRONLY | OpenFlags::TRUNC).unwrap();
        assert_eq!(self.write(&file, 0, text), Ok(text.len()));
    }

    fn write(&self, file: &FileDescription, at: u64, text: &[u8]) -> Result<usize, Errno> {
        let mut src = UserReader::buffer(text);
        match file.ops().try_write(&self.caller.io(file.flags()), &mut src, Pos::At(at))? {
            IoStart::Done(n) => Ok(n),
            IoStart::WouldBlock => panic!("blocks"),
        }
    }

    fn read(&self, file: &FileDescription, at: u64, len: usize) -> Vec<u8> {
        let mut buf = vec![0; len];
        let mut dst = UserWriter::buffer(&mut buf);
        let IoStart::Done(n) =
            file.ops().try_read(&self.caller.io(file.flags()), &mut dst, Pos::At(at)).unwrap()
        else {
            panic!("blocks")
        };
        buf.truncate(n);
        buf
    }

    fn stat(&self, path: &str) -> Result<Attr, Errno> {
        self.cx().lookup(None, path.as_bytes(), LookupFlags::empty())?.inode().attr()
    }

    fn mkdir(&self, path: &str) {
        self.cx().mkdir(None, path.as_bytes(), 0o777).unwrap();
    }

    fn rename(&self, from: &str, to: &str, flags: RenameFlags) -> Result<(), Errno> {
        self.cx().rename(None, from.as_bytes(), None, to.as_bytes(), flags)
    }

    fn names(&self, path: &str) -> Vec<String> {
        let file = self.open(path, OpenFlags::DIRECTORY).unwrap();
        let mut out = Vec::new();
        let mut position = 0;
        as_dir(file.ops())
            .unwrap()
            .read_entries(&mut position, &mut |e| {
                out.push(String::from_utf8(e.name.clone()).unwrap());
                true
            })
            .unwrap();
        out
    }

    fn path(&self, at: &Location) -> String {
        String::from_utf8(at.display_path(&self.view.root)).unwrap()
    }
}

#[test]
fn walks_follow_links_and_stop_where_linux_stops() {
    let w = World::new();
    let cx = w.cx();
    w.mkdir("/a");
    w.mkdir("/a/b/");
    w.put("/a/b/f", b"hello");
    cx.symlink(b"b", None, b"/a/rel").unwrap();
    cx.symlink(b"/a/b", None, b"/abs").unwrap();
    cx.symlink(b"../a/rel/f", None, b"/a/chain").unwrap();
    cx.symlink(b"loop", None, b"/loop").unwrap();
    cx.symlink(b"gone", None, b"/dangling").unwrap();
    let get = |path: &str, flags| cx.lookup(None, path.as_bytes(), flags).map(|l| w.path(&l));
    let follow = LookupFlags::FOLLOW;
    assert_eq!(get("/a/rel/f", follow).unwrap(), "/a/b/f");
    assert_eq!(get("abs/../b/./f", follow).unwrap(), "/a/b/f");
    assert_eq!(get("/a/chain", follow).unwrap(), "/a/b/f");
    assert_eq!(get("/a/chain", LookupFlags::empty()).unwrap(), "/a/chain");
    assert_eq!(get("/abs/", LookupFlags::empty()).unwrap(), "/a/b");
    assert_eq!(get("/../..//a", follow).unwrap(), "/a");
    assert_eq!(get("/loop", follow), Err(Errno::ELOOP));
    assert_eq!(get("/a/b/f/", follow), Err(Errno::ENOTDIR));
    assert_eq!(get("/a/b/f/..", follow), Err(Errno::ENOTDIR));
    assert_eq!(get("/a/b/f", LookupFlags::DIRECTORY), Err(Errno::ENOTDIR));
    assert_eq!(get("", follow), Err(Errno::ENOENT));
    assert_eq!(get("", LookupFlags::EMPTY).unwrap(), "/");
    assert_eq!(get(&"x".repeat(256), follow), Err(Errno::ENAMETOOLONG));
    assert_eq!(get(&"x".repeat(255), follow), Err(Errno::ENOENT));
    assert_eq!(get(&"/".repeat(4096), follow), Err(Errno::ENAMETOOLONG));
    assert_eq!(get("/abs/f", LookupFlags::NO_SYMLINKS), Err(Errno::ELOOP));
    let base = cx.lookup(None, b"/a", follow).unwrap();
    let beneath = |path: &str, flags| cx.lookup(Some(&base), path.as_bytes(), flags).map(|l| w.path(&l));
    assert_eq!(beneath("b/../b", LookupFlags::BENEATH).unwrap(), "/a/b");
    assert_eq!(beneath("..", LookupFlags::BENEATH), Err(Errno::EXDEV));
    assert_eq!(beneath("/b", LookupFlags::BENEATH), Err(Errno::EXDEV));
    assert_eq!(beneath("/../b", LookupFlags::IN_ROOT).unwrap(), "/a/b");
    // Creation through links.
    w.open("/dangling", OpenFlags::CREAT).unwrap();
    assert!(w.stat("/gone").is_ok());
    assert_eq!(w.open("/dangling", OpenFlags::CREAT | OpenFlags::EXCL).unwrap_err(), Errno::EEXIST);
    assert_eq!(w.open("/abs", OpenFlags::NOFOLLOW).unwrap_err(), Errno::ELOOP);
    assert_eq!(w.open("/new/", OpenFlags::CREAT).unwrap_err(), Errno::EISDIR);
    assert_eq!(w.open("/a", OpenFlags::WRONLY).unwrap_err(), Errno::EISDIR);
    assert_eq!(w.open("/a", OpenFlags::CREAT).unwrap_err(), Errno::EISDIR);
}

#[test]
fn permissions_sticky_and_set_gid() {
    let mut w = World::new();
    w.mkdir("/pub");
    w.mkdir("/priv");
    w.put("/priv/f", b"");
    w.put("/mine", b"");
    {
        let cx = w.cx();
        let at = |p: &str| cx.lookup(None, p.as_bytes(), LookupFlags::empty()).unwrap();
        cx.chmod(&at("/pub"), 0o3777).unwrap();
        cx.chown(&at("/pub"), None, Some(50)).unwrap();
        cx.chmod(&at("/priv"), 0o700).unwrap();
        cx.chmod(&at("/mine"), 0o600).unwrap();
        cx.mkdir(None, b"/pub/sub", 0o777).unwrap();
    }
    assert_eq!(w.stat("/pub/sub").unwrap().mode & 0o7777, 0o2755);
    w.creds = user(7);
    assert_eq!(w.stat("/priv/f"), Err(Errno::EACCES));
    assert_eq!(w.open("/mine", OpenFlags::empty()).unwrap_err(), Errno::EACCES);
    assert_eq!(w.open("/new", OpenFlags::CREAT).unwrap_err(), Errno::EACCES);
    w.put("/pub/f", b"");
    let attr = w.stat("/pub/f").unwrap();
    assert_eq!((attr.uid, attr.gid, attr.mode & 0o7777), (7, 50, 0o644));
    w.creds = user(8);
    assert_eq!(w.cx().unlink(None, b"/pub/f"), Err(Errno::EPERM));
    assert_eq!(w.rename("/pub/f", "/pub/g", RenameFlags::empty()), Err(Errno::EPERM));
    let at = w.cx().lookup(None, b"/pub/f", LookupFlags::empty()).unwrap();
    assert_eq!(w.cx().chmod(&at, 0o777), Err(Errno::EPERM));
    assert_eq!(w.cx().chown(&at, Some(8), None), Err(Errno::EPERM));
    assert_eq!(w.cx().set_times(&at, Some(SetTime::Now), Some(SetTime::Now)), Err(Errno::EACCES));
    w.creds = user(7);
    w.cx().chmod(&at, 0o4755).unwrap();
    let file = w.open("/pub/f", OpenFlags::WRONLY).unwrap();
    *w.caller.creds.lock() = Arc::new(user(7));
    w.write(&file, 0, b"x").unwrap();
    assert_eq!(w.stat("/pub/f").unwrap().mode & 0o7777, 0o755);
    w.cx().unlink(None, b"/pub/f").unwrap();
}

#[test]
fn names_come_and_go() {
    let w = World::new();
    let cx = w.cx();
    w.mkdir("/d");
    w.mkdir("/d/e");
    w.put("/d/f", b"1");
    assert_eq!(w.stat("/d").unwrap().nlink, 3);
    assert_eq!(w.names("/d"), [".", "..", "e", "f"]);
    assert_eq!(cx.mkdir(None, b"/d/f", 0).map(|_| ()), Err(Errno::EEXIST));
    assert_eq!(cx.mkdir(None, b"/", 0).map(|_| ()), Err(Errno::EEXIST));
    assert_eq!(cx.rmdir(None, b"/d"), Err(Errno::ENOTEMPTY));
    assert_eq!(cx.rmdir(None, b"/d/."), Err(Errno::EINVAL));
    assert_eq!(cx.rmdir(None, b"/d/f"), Err(Errno::ENOTDIR));
    assert_eq!(cx.unlink(None, b"/d/e"), Err(Errno::EISDIR));
    assert_eq!(cx.unlink(None, b"/d/f/"), Err(Errno::ENOTDIR));
    let file = cx.lookup(None, b"/d/f", LookupFlags::empty()).unwrap();
    cx.link(&file, None, b"/hard").unwrap();
    assert_eq!(w.stat("/hard").unwrap().nlink, 2);
    assert_eq!(w.rename("/hard", "/d/f", RenameFlags::empty()), Ok(()));
    assert!(w.stat("/hard").is_ok(), "a rename onto the same file does nothing");
    cx.unlink(None, b"/d/f").unwrap();
    assert_eq!(w.path(&file), "/d/f (deleted)");
    assert_eq!(w.stat("/d/f"), Err(Errno::ENOENT));
    // A working directory that is moved, then removed.
    let cwd = cx.lookup(None, b"/d/e", LookupFlags::empty()).unwrap();
    w.rename("/d", "/moved", RenameFlags::empty()).unwrap();
    assert_eq!(w.path(&cwd), "/moved/e");
    assert_eq!(w.rename("/moved", "/moved/e/x", RenameFlags::empty()), Err(Errno::EINVAL));
    assert_eq!(w.rename("/moved/e", "/moved", RenameFlags::empty()), Err(Errno::ENOTEMPTY));
    cx.rmdir(None, b"/moved/e").unwrap();
    assert_eq!(cx.mkdir(Some(&cwd), b"x", 0o777).map(|_| ()), Err(Errno::ENOENT));
    assert_eq!(cx.lookup(Some(&cwd), b"..", LookupFlags::empty()).map(|l| w.path(&l)), Ok("/moved".into()));
    // Exchange, no-replace, whiteout.
    w.put("/a", b"a");
    w.put("/b", b"bb");
    w.rename("/a", "/b", RenameFlags::EXCHANGE).unwrap();
    assert_eq!((w.stat("/a").unwrap().size, w.stat("/b").unwrap().size), (2, 1));
    assert_eq!(w.rename("/a", "/b", RenameFlags::NOREPLACE), Err(Errno::EEXIST));
    w.rename("/a", "/c", RenameFlags::WHITEOUT).unwrap();
    let white = w.stat("/a").unwrap();
    assert_eq!((white.kind(), white.rdev), (FileKind::CharDevice, 0));
    assert_eq!(w.rename("/moved", "/b", RenameFlags::empty()), Err(Errno::ENOTDIR));
    assert_eq!(w.rename("/b", "/moved", RenameFlags::empty()), Err(Errno::EISDIR));
}

#[test]
fn mounts_cover_and_unmount() {
    let w = World::new();
    let cx = w.cx();
    w.mkdir("/mnt");
    w.mkdir("/other");
    w.put("/mnt/under", b"");
    let point = cx.lookup(None, b"/mnt", LookupFlags::empty()).unwrap();
    let second = TmpFs::new(&w.memory, TmpfsOptions::default());
    w.ns.mount_at(&point, second, MountFlags::NODEV, "tmpfs").unwrap();
    assert_eq!(w.stat("/mnt/under"), Err(Errno::ENOENT));
    w.mkdir("/mnt/in");
    let inside = cx.lookup(None, b"/mnt/in", LookupFlags::empty()).unwrap();
    assert_eq!(w.path(&inside), "/mnt/in");
    let up = cx.lookup(Some(&inside), b"../../other", LookupFlags::empty()).unwrap();
    assert_eq!(w.path(&up), "/other");
    assert_eq!(w.rename("/mnt/in", "/other/in", RenameFlags::empty()), Err(Errno::EXDEV));
    assert_eq!(cx.rmdir(None, b"/mnt"), Err(Errno::EBUSY));
    assert_eq!(cx.lookup(None, b"/mnt/in", LookupFlags::NO_XDEV).map(|_| ()), Err(Errno::EXDEV));
    // A recursive bind shows the same dentries at two places.
    let other = cx.lookup(None, b"/other", LookupFlags::empty()).unwrap();
    let root = w.ns.root();
    w.ns.bind(&root, &other, true).unwrap();
    assert!(w.stat("/other/mnt/in").is_ok());
    let twice = cx.lookup(None, b"/other/mnt/in", LookupFlags::empty()).unwrap();
    assert!(Arc::ptr_eq(&twice.dentry, &inside.dentry));
    assert_eq!(w.ns.mounts(&root).len(), 4);
    let lines: Vec<_> =
        w.ns.mounts(&root).iter().map(|m| String::from_utf8(m.mounts_line()).unwrap()).collect();
    assert_eq!(lines[1], "tmpfs /mnt tmpfs rw,nodev,relatime 0 0\n");
    drop((twice, up));
    let mounted = |p: &str| cx.lookup(None, p.as_bytes(), LookupFlags::empty()).unwrap();
    assert_eq!(w.ns.umount(mounted("/other"), UmountFlags::empty()), Err(Errno::EBUSY));
    w.ns.umount(mounted("/other"), UmountFlags::DETACH).unwrap();
    assert_eq!(w.names("/other"), [".", ".."]);
    assert_eq!(w.ns.umount(mounted("/mnt"), UmountFlags::empty()), Err(Errno::EBUSY));
    drop(inside);
    w.ns.umount(mounted("/mnt"), UmountFlags::empty()).unwrap();
    assert!(w.stat("/mnt/under").is_ok());
    assert_eq!(w.ns.umount(mounted("/mnt"), UmountFlags::empty()), Err(Errno::EINVAL));
}

#[test]
fn a_copied_namespace_has_its_own_mounts() {
    let w = World::new();
    w.mkdir("/mnt");
    let point = w.cx().lookup(None, b"/mnt", LookupFlags::empty()).unwrap();
    let fs = TmpFs::new(&w.memory, TmpfsOptions::default());
    w.ns.mount_at(&point, fs, MountFlags::empty(), "tmpfs").unwrap();
    w.mkdir("/mnt/in");
    let cwd = w.cx().lookup(None, b"/mnt/in", LookupFlags::empty()).unwrap();
    let (copy, map) = w.ns.copy().unwrap();
    w.ns.umount(w.cx().lookup(None, b"/mnt", LookupFlags::empty()).unwrap(), UmountFlags::DETACH).unwrap();
    let view = FsContextView { root: copy.root(), cwd: map.translate(&cwd), umask: 0 };
    let cx = PathCx::new(&copy, &view, &w.creds, &w.caller);
    assert!(cx.lookup(None, b"/mnt/in", LookupFlags::empty()).is_ok());
    assert_eq!(cx.lookup(None, b".", LookupFlags::empty()).unwrap().display_path(&view.root), b"/mnt/in");
    assert_eq!(w.stat("/mnt/in"), Err(Errno::ENOENT));
}

#[test]
fn data_limits_and_holes() {
    let w = World::with(TmpfsOptions { size: Some(16 * 4096), inodes: Some(3), ..TmpfsOptions::default() });
    let file = w.open("/f", OpenFlags::CREAT | OpenFlags::RDWR).unwrap();
    assert_eq!(w.write(&file, 3 * 4096, b"tail"), Ok(4));
    assert_eq!(w.read(&file, 4096, 4), [0; 4]);
    assert_eq!(w.read(&file, 3 * 4096, 100), b"tail");
    assert_eq!(w.stat("/f").unwrap().blocks, 8);
    let seek = |at, whence| file.ops().seek(at, whence, 0, 3 * 4096 + 4);
    assert_eq!(seek(0, Whence::Data), Ok(3 * 4096));
    assert_eq!(seek(0, Whence::Hole), Ok(0));
    assert_eq!(seek(3 * 4096, Whence::Hole), Ok(3 * 4096 + 4));
    // 15 pages are left.
    assert_eq!(w.write(&file, 4 * 4096, &vec![1; 20 * 4096]), Ok(15 * 4096));
    assert_eq!(w.write(&file, 0, b"x"), Err(Errno::ENOSPC));
    assert_eq!(w.fs.usage().0, 16 * 4096);
    file.ops().allocate(3, 4 * 4096, 15 * 4096).unwrap();
    assert_eq!(w.read(&file, 4 * 4096, 2), [0, 0]);
    file.ops().truncate(10).unwrap();
    assert_eq!(w.fs.usage().0, 0);
    assert_eq!(file.ops().allocate(0, 0, 17 * 4096), Err(Errno::ENOSPC));
    file.ops().allocate(0, 0, 2 * 4096).unwrap();
    assert_eq!(w.stat("/f").unwrap().size, 2 * 4096);
    assert_eq!(file.ops().allocate(2, 0, 1), Err(Errno::EOPNOTSUPP));
    w.open("/g", OpenFlags::CREAT).unwrap();
    w.open("/h", OpenFlags::CREAT).unwrap();
    assert_eq!(w.open("/i", OpenFlags::CREAT).unwrap_err(), Errno::ENOSPC);
    w.cx().unlink(None, b"/g").unwrap();
    w.open("/i", OpenFlags::CREAT).unwrap();
    w.cx().unlink(None, b"/f").unwrap();
    assert_eq!(w.fs.usage().0, 2 * 4096, "an open file keeps its pages");
    drop(file);
    assert_eq!(w.fs.usage().0, 0);
}

#[test]
fn nameless_files_and_seals() {
    let w = World::new();
    let how =
        OpenHow { flags: OpenFlags::TMPFILE | OpenFlags::RDWR, mode: 0o600, resolve: LookupFlags::empty() };
    let Opened::File(file) = w.cx().open(None, b"/", how).unwrap() else { panic!("waits") };
    assert_eq!(file.attr().unwrap().nlink, 0);
    w.cx().link(file.location().unwrap(), None, b"/named").unwrap();
    assert_eq!(w.stat("/named").unwrap().nlink, 1);
    let maker = MemfdMaker::new(&w.memory);
    let memfd = maker.create(b"x", libc::MFD_ALLOW_SEALING, &w.creds).unwrap();
    assert_eq!(w.path(memfd.location().unwrap()), "/memfd:x (deleted)");
    w.write(&memfd, 0, b"data").unwrap();
    let sealed = open_tmpfs_file(memfd.ops()).unwrap();
    sealed.add_seals(seal::SHRINK | seal::GROW).unwrap();
    assert_eq!(memfd.ops().truncate(1), Err(Errno::EPERM));
    assert_eq!(w.write(&memfd, 2, b"long"), Ok(2));
    sealed.add_seals(seal::WRITE | seal::SEAL).unwrap();
    assert_eq!(w.write(&memfd, 0, b"y"), Err(Errno::EPERM));
    assert_eq!(sealed.add_seals(0), Err(Errno::EPERM));
    assert_eq!(maker.create(b"x", 0x8000_0000, &w.creds).unwrap_err(), Errno::EINVAL);
}

#[test]
fn extended_attributes() {
    let mut w = World::new();
    w.put("/f", b"");
    let at = w.cx().lookup(None, b"/f", LookupFlags::empty()).unwrap();
    w.cx().set_xattr(&at, b"user.a", b"1", 0).unwrap();
    w.cx().set_xattr(&at, b"trusted.b", b"2", 0).unwrap();
    assert_eq!(w.cx().set_xattr(&at, b"user.a", b"1", libc::XATTR_CREATE), Err(Errno::EEXIST));
    assert_eq!(w.cx().set_xattr(&at, b"bogus", b"1", 0), Err(Errno::EOPNOTSUPP));
    w.creds = user(5);
    assert_eq!(w.cx().get_xattr(&at, b"user.a").unwrap(), b"1");
    assert_eq!(w.cx().get_xattr(&at, b"trusted.b"), Err(Errno::ENODATA));
    assert_eq!(w.cx().list_xattr(&at).unwrap(), b"user.a\0");
    assert_eq!(w.cx().remove_xattr(&at, b"user.a"), Err(Errno::EACCES));
}

#[test]
fn the_cache_gives_up_what_nobody_uses_and_deep_trees_drop() {
    let w = World::new();
    let mut cwd = w.ns.root();
    for _ in 0..20_000 {
        let cx = w.cx();
        let next = cx.mkdir(Some(&cwd), b"d", 0o777).unwrap();
        cwd = next;
    }
    let sb = Arc::clone(cwd.mount.superblock());
    for i in 0..60_000 {
        let name = format!("/missing{i}");
        assert_eq!(w.stat(&name), Err(Errno::ENOENT));
    }
    assert!(sb.cached() <= 50_000 + 20_001, "{}", sb.cached());
    drop(cwd);
    sb.shrink();
    sb.shrink();
    assert!(sb.cached() < 100, "{}", sb.cached());
}

#[test]
fn a_listing_survives_changes() {
    let w = World::new();
    for i in 0..300 {
        w.put(&format!("/f{i}"), b"");
    }
    let file = w.open("/", OpenFlags::DIRECTORY).unwrap();
    let dir = as_dir(file.ops()).unwrap();
    let mut seen = Vec::new();
    let mut position = 0;
    loop {
        let before = seen.len();
        dir.read_entries(&mut position, &mut |e| {
            let room = seen.len() < before + 10;
            if room {
                seen.push(e.name.clone());
            }
            room
        })
        .unwrap();
        if seen.len() == before {
            break;
        }
        // `rm -r` removes what it has just read.
        for name in &seen[before..] {
            if name.as_slice() != b"." && name.as_slice() != b".." {
                w.cx().unlink(None, name).unwrap();
            }
        }
    }
    assert_eq!(seen.len(), 302);
    assert_eq!(w.names("/"), [".", ".."]);
}

#[test]
fn inotify_hears_of_names_and_files() {
    let w = World::new();
    w.mkdir("/d");
    let inotify = Inotify::new();
    let ops: Arc<dyn FileOps> = Arc::clone(&inotify) as Arc<dyn FileOps>;
    let heard = || {
        let mut buf = vec![0; 4096];
        let io = w.caller.io(OpenFlags::empty());
        let n = match ops.try_read(&io, &mut UserWriter::buffer(&mut buf), Pos::Stream).unwrap() {
            IoStart::Done(n) => n,
            IoStart::WouldBlock => 0,
        };
        let mut out = Vec::new();
        let mut rest = &buf[..n];
        while !rest.is_empty() {
            let word = |at: usize| u32::from_ne_bytes(rest[at..at + 4].try_into().unwrap());
            let len = 16 + word(12) as usize;
            let name: Vec<u8> = rest[16..len].iter().copied().take_while(|b| *b != 0).collect();
            out.push((word(0), word(4), String::from_utf8(name).unwrap()));
            rest = &rest[len..];
        }
        out
    };
    let dir = w.cx().lookup(None, b"/d", LookupFlags::empty()).unwrap();
    let wd = inotify.add_watch(&dir, watch::event::ALL).unwrap();
    assert_eq!(wd, 1);
    w.put("/d/f", b"x");
    let e = |mask: u32, name: &str| (1, mask, name.to_owned());
    use watch::event::*;
    assert_eq!(heard(), [e(CREATE, "f"), e(OPEN, "f"), e(CLOSE_WRITE, "f")]);
    w.rename("/d/f", "/d/g", RenameFlags::empty()).unwrap();
    assert_eq!(heard(), [e(MOVED_FROM, "f"), e(MOVED_TO, "g")]);
    w.mkdir("/d/s");
    w.cx().unlink(None, b"/d/g").unwrap();
    assert_eq!(heard(), [e(CREATE | ISDIR, "s"), e(DELETE, "g")]);
    // Who holds a directory open puts its end off.
    drop(dir);
    w.cx().rmdir(None, b"/d/s").unwrap();
    w.cx().rmdir(None, b"/d").unwrap();
    assert_eq!(heard(), [e(DELETE | ISDIR, "s"), e(DELETE_SELF, ""), e(IGNORED, "")]);
    assert_eq!(inotify.remove_watch(wd), Err(Errno::EINVAL));
}
