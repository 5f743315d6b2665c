//! A gofer's answers over a scratch directory, without the jail.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path as HostPath, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use gofer_protocol::{
    Entry, Fid, FileHow, Name, Path, Place, Reply, Request, RequestWriter, WireAttr, WireSetAttr, set,
};
use rustix::fs::{Mode, OFlags};

use super::*;

/// A jail root with mount 0 writable and mount 1 read-only, removed at the end.
struct Scratch {
    dir: PathBuf,
    tree: Tree,
}

impl Scratch {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("gofer-test-{}-{n}", std::process::id()));
        for mount in ["0", "1", "outside"] {
            fs::create_dir_all(dir.join(mount)).unwrap();
        }
        fs::write(dir.join("outside/secret"), "secret").unwrap();
        let root = rustix::fs::open(&dir, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let mount =
            |read_only| Mount { source: dir.clone(), read_only, allow_special: !read_only, recursive: true };
        let tree = Tree::new(root, vec![mount(false), mount(true)]);
        Self { dir, tree }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Sends a request through the wire format and back.
    fn call(&self, request: &Request<'_>) -> Result<(Answer, Vec<OwnedFd>), i32> {
        let (mut wire, mut out) = (Vec::new(), Vec::new());
        RequestWriter::encode(request, &mut wire).unwrap();
        let files = serve::answer(&self.tree, &Request::decode(&wire).unwrap(), &mut out);
        let reply = Reply::decode(&out).unwrap()?;
        assert_eq!(reply.descriptors(), files.len());
        Ok((Answer(out), files))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

#[derive(Debug)]
struct Answer(Vec<u8>);

impl Answer {
    fn reply(&self) -> Reply<'_> {
        Reply::decode(&self.0).unwrap().unwrap()
    }

    fn attr(&self) -> WireAttr {
        self.reply().attr().unwrap()
    }

    fn entries(&self) -> Vec<Entry<'_>> {
        let mut reply = self.reply();
        std::iter::from_fn(|| reply.entry().unwrap()).collect()
    }
}

fn at(fid: u32, path: &str) -> Place<'_> {
    Place { fid: Fid(fid), path: Path::new(path.as_bytes()).unwrap() }
}

fn open(path: &str, how: FileHow) -> Request<'_> {
    Request::OpenFile { at: at(0, path), how }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[test]
fn a_walk_gives_every_component_and_says_where_it_stopped() {
    let s = Scratch::new();
    fs::create_dir_all(s.path("0/usr/lib")).unwrap();
    fs::write(s.path("0/usr/lib/x"), "12345").unwrap();
    symlink("lib/x", s.path("0/usr/l")).unwrap();
    let walk = |from: &str, names: &str| {
        let names = Path::new(names.as_bytes()).unwrap();
        let (answer, _) = s.call(&Request::WalkPlus { at: at(0, from), names }).unwrap();
        let entries = answer.entries().iter().map(|e| (e.attr.size, e.target.to_vec())).collect::<Vec<_>>();
        (entries, answer.reply().value().cast_signed())
    };
    let (all, stop) = walk("", "usr/lib/x");
    assert_eq!((all.len(), stop), (4, 0));
    assert_eq!(all[3].0, 5);
    assert_eq!(walk("usr", "lib/y/z").1, libc::ENOENT);
    assert_eq!(walk("usr", "lib/y/z").0.len(), 2);
    // A walk ends at a link, whose target comes along, and at a file.
    let (entries, stop) = walk("", "usr/l/more");
    assert_eq!((entries.len(), stop), (3, 0));
    assert_eq!(entries[2].1, b"lib/x");
    assert_eq!(walk("", "usr/lib/x/more").0.len(), 4);
    assert_eq!(walk("usr/l", "").0[0].1, b"lib/x");
}

#[test]
fn a_listing_goes_on_from_its_cookie() {
    let s = Scratch::new();
    for n in 0..2000 {
        fs::write(s.path(&format!("0/file-with-a-rather-long-name-{n:04}")), "").unwrap();
    }
    let (mut cookie, mut names, mut calls) = (0, Vec::new(), 0);
    loop {
        let (answer, _) = s.call(&Request::ListPlus { at: at(0, ""), cookie }).unwrap();
        for entry in answer.entries() {
            names.push(entry.name.to_vec());
            cookie = entry.cookie;
        }
        calls += 1;
        if answer.reply().value() == 1 {
            break;
        }
    }
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 2000);
    assert!(calls > 1);
}

#[test]
fn no_name_leads_out() {
    let s = Scratch::new();
    symlink("../outside", s.path("0/dir")).unwrap();
    symlink("../outside/secret", s.path("0/file")).unwrap();
    symlink(s.path("outside"), s.path("0/absolute")).unwrap();
    let read = FileHow::READ;
    let refused =
        |request: &Request<'_>| matches!(s.call(request), Err(libc::ELOOP | libc::ENOTDIR | libc::EACCES));
    assert!(refused(&open("dir/secret", read)));
    assert!(refused(&open("absolute/secret", read)));
    assert!(refused(&open("file", read)));
    let how = FileHow::WRITE;
    let create = |path| Request::Create { at: at(0, path), mode: 0o644, uid: 0, gid: 0, how };
    assert!(refused(&create("dir/new")));
    assert_eq!(s.call(&create("file")).unwrap_err(), libc::EEXIST);
    // Changes act on the link itself.
    let change = WireSetAttr { mask: set::SIZE, ..WireSetAttr::default() };
    assert!(s.call(&Request::SetAttr { at: at(0, "file"), change }).is_err());
    s.call(&Request::Link { from: at(0, "file"), to: at(0, "copy") }).unwrap();
    assert!(fs::symlink_metadata(s.path("0/copy")).unwrap().is_symlink());
    s.call(&Request::Unlink { at: at(0, "file"), directory: false }).unwrap();
    assert_eq!(fs::read(s.path("outside/secret")).unwrap(), b"secret");
}

#[test]
fn only_regular_files_are_donated() {
    let s = Scratch::new();
    rustix::fs::mkfifoat(rustix::fs::CWD, s.path("0/fifo"), Mode::RWXU).unwrap();
    fs::create_dir(s.path("0/dir")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(s.path("0/socket")).unwrap();
    for name in ["fifo", "dir", "socket", ""] {
        for how in [FileHow::READ, FileHow::WRITE] {
            assert!(s.call(&open(name, how)).is_err(), "{name}");
        }
    }
    fs::write(s.path("0/file"), "text").unwrap();
    let (answer, mut files) = s.call(&open("file", FileHow::READ)).unwrap();
    assert_eq!(answer.attr().size, 4);
    let file = File::from(files.pop().unwrap());
    let mut buf = [0; 4];
    file.read_exact_at(&mut buf, 0).unwrap();
    assert_eq!(&buf, b"text");
    assert!(!rustix::fs::fcntl_getfl(&file).unwrap().contains(OFlags::NONBLOCK));
    assert!(file.write_at(b"x", 0).is_err());
}

#[test]
fn a_read_only_mount_refuses_every_change() {
    let s = Scratch::new();
    fs::write(s.path("1/file"), "text").unwrap();
    let (file, new) = (at(1, "file"), at(1, "new"));
    let name = Name::new(b"user.x").unwrap();
    let how = FileHow::READ | FileHow::WRITE;
    let requests = [
        Request::OpenFile { at: file, how },
        Request::Create { at: new, mode: 0, uid: 0, gid: 0, how },
        Request::MakeDir { at: new, mode: 0, uid: 0, gid: 0 },
        Request::MakeSymlink { at: new, target: b"x", uid: 0, gid: 0 },
        Request::MakeNode { at: new, mode: libc::S_IFIFO, uid: 0, gid: 0 },
        Request::Rename { from: file, to: new, flags: 0 },
        Request::Link { from: file, to: new },
        Request::Unlink { at: file, directory: false },
        Request::SetAttr { at: file, change: WireSetAttr { mask: set::MODE, ..WireSetAttr::default() } },
        Request::SetXattr { at: file, name, value: b"", flags: 0 },
        Request::RemoveXattr { at: file, name },
        Request::Sync { at: file },
    ];
    for request in requests {
        assert_eq!(s.call(&request).unwrap_err(), libc::EROFS, "{request:?}");
    }
    let across = Request::Rename { from: at(0, "a"), to: new, flags: 0 };
    assert_eq!(s.call(&across).unwrap_err(), libc::EXDEV);
}

#[test]
fn files_are_opened_together_as_far_as_they_can_be() {
    let s = Scratch::new();
    fs::create_dir_all(s.path("0/d/sub")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, s.path("0/d/fifo"), Mode::RWXU).unwrap();
    symlink("../../outside/secret", s.path("0/d/link")).unwrap();
    for name in ["a", "b"] {
        fs::write(s.path("0/d").join(name), name).unwrap();
    }
    let ask = |names: &str| {
        let names = Path::new(names.as_bytes()).unwrap();
        s.call(&Request::OpenTogether { at: at(0, "d"), names })
    };
    let (answer, files) = ask("b/missing/fifo/sub/link/a").unwrap();
    let cookies: Vec<u64> = answer.entries().iter().map(|entry| entry.cookie).collect();
    assert_eq!(cookies, [0, 5]);
    for ((file, entry), text) in files.into_iter().zip(answer.entries()).zip(["b", "a"]) {
        let mut file = File::from(file);
        assert_eq!(file.metadata().unwrap().ino(), entry.attr.ino);
        let mut read = String::new();
        file.read_to_string(&mut read).unwrap();
        assert_eq!(read, text);
        assert!(file.write_all(b"x").is_err());
    }
    assert_eq!(ask("missing/a").unwrap_err(), libc::ENOENT);
    assert_eq!(ask("link/a").unwrap_err(), libc::EACCES);
    // One too many, or none, is no message.
    for count in [0, gofer_protocol::MAX_TOGETHER + 1] {
        let joined = vec!["a"; count].join("/");
        let names = Path::new(joined.as_bytes()).unwrap();
        let mut wire = Vec::new();
        RequestWriter::encode(&Request::OpenTogether { at: at(0, "d"), names }, &mut wire).unwrap();
        assert!(Request::decode(&wire).is_err(), "{count}");
    }
}

#[test]
fn changes_do_what_they_say() {
    let s = Scratch::new();
    let how = FileHow::READ | FileHow::WRITE | FileHow::KEEP;
    let (uid, gid) = if is_root() { (1234, 4321) } else { (fs::metadata(&s.dir).unwrap().uid(), 0) };
    let gid = if is_root() { gid } else { fs::metadata(&s.dir).unwrap().gid() };
    let create = Request::Create { at: at(0, "f"), mode: 0o4711, uid, gid, how };
    let (answer, mut files) = s.call(&create).unwrap();
    let attr = answer.attr();
    assert_eq!((attr.mode & 0o7777, attr.uid, attr.gid), (0o4711, uid, gid));
    File::from(files.pop().unwrap()).write_all(b"hello").unwrap();
    s.call(&Request::MakeDir { at: at(0, "d"), mode: 0o1777, uid, gid }).unwrap();
    assert_eq!(fs::metadata(s.path("0/d")).unwrap().permissions().mode() & 0o7777, 0o1777);
    s.call(&Request::MakeNode { at: at(0, "p"), mode: libc::S_IFIFO | 0o640, uid, gid }).unwrap();
    let removed = Request::MakeNode { at: at(0, "w"), mode: libc::S_IFCHR, uid, gid };
    let (mark, _) = s.call(&removed).unwrap();
    assert_eq!((mark.attr().mode, mark.attr().rdev), (libc::S_IFCHR, 0));
    fs::remove_file(s.path("0/w")).unwrap();
    s.call(&Request::MakeSymlink { at: at(0, "l"), target: b"f", uid, gid }).unwrap();
    assert_eq!(fs::read(s.path("0/l")).unwrap(), b"hello");
    s.call(&Request::Rename { from: at(0, "f"), to: at(0, "d/g"), flags: 0 }).unwrap();
    let taken = Request::Rename { from: at(0, "l"), to: at(0, "d"), flags: libc::RENAME_NOREPLACE };
    assert_eq!(s.call(&taken).unwrap_err(), libc::EEXIST);

    // The kept file outlives its name.
    let kept = answer.reply().fid();
    s.call(&Request::Unlink { at: at(0, "d/g"), directory: false }).unwrap();
    let mut change = WireSetAttr {
        mask: set::SIZE | set::MODE | set::MTIME,
        mode: 0o600,
        size: 2,
        ..WireSetAttr::default()
    };
    change.mtime.sec = 1_000_000_007;
    let (answer, _) =
        s.call(&Request::SetAttr { at: Place { fid: kept, path: Path::EMPTY }, change }).unwrap();
    let attr = answer.attr();
    assert_eq!((attr.size, attr.mode & 0o7777, attr.mtime.sec, attr.nlink), (2, 0o600, 1_000_000_007, 0));
    s.call(&Request::Close { fid: kept }).unwrap();
    for bad in [kept, Fid(0), Fid(99), Fid(u32::MAX), Fid::NONE] {
        assert_eq!(s.call(&Request::Close { fid: bad }).unwrap_err(), libc::EBADF);
    }
    assert_eq!(
        s.call(&Request::StatFs { at: Place { fid: kept, path: Path::EMPTY } }).unwrap_err(),
        libc::EBADF
    );
    s.call(&Request::Unlink { at: at(0, "d"), directory: true }).unwrap();
    assert!(!s.path("0/d").exists());
}

#[test]
fn a_path_longer_than_path_max_is_reached() {
    let s = Scratch::new();
    let name = "d".repeat(200);
    let depth = 30;
    let path = vec![name.as_str(); depth].join("/");
    for n in 1..=depth {
        let part = vec![name.as_str(); n].join("/");
        let made = s.call(&Request::MakeDir { at: at(0, &part), mode: 0o755, uid: 0, gid: 0 });
        assert!(made.is_ok() || !is_root());
    }
    let (answer, _) = s.call(&Request::WalkPlus { at: at(0, &path), names: Path::EMPTY }).unwrap();
    assert_eq!(answer.entries().len(), 1);
}

#[test]
fn a_directory_swapped_for_a_link_never_leaks() {
    let s = Scratch::new();
    fs::create_dir(s.path("0/real")).unwrap();
    fs::write(s.path("0/real/secret"), "plain").unwrap();
    symlink("../outside", s.path("0/trap")).unwrap();
    let dir: &HostPath = &s.dir;
    let done = AtomicU32::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            let exchange = rustix::fs::RenameFlags::EXCHANGE;
            while done.load(Ordering::Relaxed) == 0 {
                let (a, b) = (dir.join("0/real"), dir.join("0/trap"));
                rustix::fs::renameat_with(rustix::fs::CWD, &a, rustix::fs::CWD, &b, exchange).unwrap();
            }
        });
        for _ in 0..3000 {
            let names = Path::new(b"secret/secret").unwrap();
            let together = Request::OpenTogether { at: at(0, "real"), names };
            for request in [open("real/secret", FileHow::READ), together] {
                let Ok((_, files)) = s.call(&request) else { continue };
                for file in files {
                    let mut text = String::new();
                    File::from(file).read_to_string(&mut text).unwrap();
                    assert_eq!(text, "plain");
                }
            }
        }
        done.store(1, Ordering::Relaxed);
    });
}

#[test]
fn a_broken_message_or_a_descriptor_ends_the_session() {
    let s = Arc::new(Scratch::new());
    for (message, with_fd) in
        [(&b"\xff\xff\xff\xff"[..], false), (b"x", false), (&[1, 0, 0, 0, 0, 0, 0, 0], true)]
    {
        let (ours, theirs) = sock::packet_pair().unwrap();
        let scratch = Arc::clone(&s);
        let server = thread::spawn(move || {
            let Err(end) = serve(&scratch.tree, &theirs);
            end
        });
        let null = File::open("/dev/null").unwrap();
        let fds: &[_] = if with_fd { &[null.as_fd()] } else { &[] };
        sock::send(ours.as_fd(), message, fds, 0).unwrap();
        assert!(!matches!(server.join().unwrap(), End::Closed));
    }
}
