//! A file system over a gofer that serves a scratch directory.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use sentry_memory::{UserReader, UserWriter};
use sentry_vfs::testing::TestCaller;
use sentry_vfs::{FileKind, FileOps, Inode, IoStart, OpenFlags, Owner, Pos, RenameFlags, SetAttr};

use super::*;

const ROOT: Owner = Owner { uid: 0, gid: 0 };

struct Scratch {
    dir: PathBuf,
    session: Arc<Session>,
    /// Reads the gofer's messages for as long as the session lives.
    fs: Arc<GoferFs>,
}

impl Scratch {
    fn new(read_only: bool, shared: bool, fill: impl FnOnce(&std::path::Path)) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("fs-gofer-test-{}-{n}", std::process::id()));
        fs::create_dir_all(dir.join("0")).unwrap();
        fill(&dir.join("0"));
        let session = Session::connect(serve(&dir, read_only)).unwrap();
        let fs = GoferFs::attach(&session, 0, Options { read_only, shared, dev: 77 }).unwrap();
        Self { dir, session, fs }
    }

    fn host(&self, path: &str) -> PathBuf {
        self.dir.join("0").join(path)
    }

    fn root(&self) -> Arc<dyn Inode> {
        self.fs.root()
    }

    fn at(&self, path: &str) -> Result<Arc<dyn Inode>> {
        path.split('/')
            .filter(|n| !n.is_empty())
            .try_fold(self.root(), |dir, name| dir.lookup(name.as_bytes()))
    }

    /// Requests that `work` makes.
    fn calls(&self, work: impl FnOnce()) -> u64 {
        let before = self.session.calls();
        work();
        self.session.calls() - before
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// A gofer's serving threads, in this process and without the jail.
fn serve(dir: &std::path::Path, read_only: bool) -> Vec<OwnedFd> {
    let mounts = vec![gofer::Mount { source: dir.into(), read_only, allow_special: true, recursive: true }];
    gofer::serve_unjailed(dir, mounts, 2).unwrap()
}

fn read(file: &dyn FileOps, at: u64) -> Result<Vec<u8>> {
    let mut buf = vec![0; 100];
    let caller = TestCaller::new(1);
    let io = caller.io(OpenFlags::empty());
    match file.try_read(&io, &mut UserWriter::buffer(&mut buf), Pos::At(at))? {
        IoStart::Done(n) => buf.truncate(n),
        IoStart::WouldBlock => panic!("a regular file blocks"),
    }
    Ok(buf)
}

fn write(file: &dyn FileOps, pos: Pos, text: &[u8]) -> usize {
    let caller = TestCaller::new(1);
    let io = caller.io(OpenFlags::empty());
    match file.try_write(&io, &mut UserReader::buffer(text), pos).unwrap() {
        IoStart::Done(n) => n,
        IoStart::WouldBlock => panic!("a regular file blocks"),
    }
}

fn names(dir: &dyn Inode) -> Vec<String> {
    let mut names = Vec::new();
    dir.list(0, &mut |e| {
        names.push(String::from_utf8(e.name).unwrap());
        true
    })
    .unwrap();
    names.sort();
    names
}

#[test]
fn what_is_known_is_not_asked_again() {
    let s = Scratch::new(true, false, |d| {
        fs::create_dir_all(d.join("usr/lib/deep")).unwrap();
        fs::write(d.join("usr/lib/deep/file"), "hello").unwrap();
        fs::write(d.join("usr/lib/other"), "x").unwrap();
        symlink("lib/other", d.join("usr/link")).unwrap();
    });
    // One request for a walk of four names; none for the walk itself afterwards.
    assert_eq!(s.calls(|| s.root().prefetch(&[b"usr", b"lib", b"deep", b"file"])), 1);
    let mut file = None;
    assert_eq!(s.calls(|| file = s.at("usr/lib/deep/file").ok()), 0);
    let file = file.unwrap();
    // A missing name at the end of a walk is remembered for the lookup that follows.
    assert_eq!(s.calls(|| s.root().prefetch(&[b"usr", b"lib", b"missing", b"more"])), 1);
    let lib = s.at("usr/lib").unwrap();
    assert_eq!(s.calls(|| assert_eq!(lib.lookup(b"missing").unwrap_err(), Errno::ENOENT)), 0);

    // Open, stat and close ask nothing; the first read does; a second open and read do not.
    let open = || Arc::clone(&file).open(OpenFlags::empty(), &TestCaller::new(1)).unwrap();
    assert_eq!(s.calls(|| assert_eq!((open().kind(), file.attr().unwrap().size), (FileKind::Regular, 5))), 0);
    assert_eq!(s.calls(|| assert_eq!(read(&*open(), 1).unwrap(), b"ello")), 1);
    assert_eq!(s.calls(|| assert_eq!(read(&*open(), 0).unwrap(), b"hello")), 0);

    // A listing brings attributes, link targets and absence.
    let usr = s.at("usr").unwrap();
    assert_eq!(s.calls(|| assert_eq!(names(&*usr), ["lib", "link"])), 1);
    let rest = || {
        let link = usr.lookup(b"link").unwrap();
        assert_eq!(link.readlink(&TestCaller::new(1)).unwrap(), b"lib/other");
        assert_eq!(link.attr().unwrap().kind(), FileKind::Symlink);
        assert_eq!(usr.lookup(b"nothing").unwrap_err(), Errno::ENOENT);
    };
    assert_eq!(s.calls(rest), 0);
    assert_eq!(usr.create(b"new", 0o644, ROOT).unwrap_err(), Errno::EROFS);
    assert_eq!(Arc::clone(&file).open(OpenFlags::WRONLY, &TestCaller::new(1)).unwrap_err(), Errno::EROFS);
}

#[test]
fn files_that_are_read_one_after_the_other_are_opened_together() {
    let s = Scratch::new(true, false, |d| {
        for n in 0..200 {
            fs::write(d.join(format!("f{n}")), format!("text {n}")).unwrap();
        }
    });
    let by_name = names(&*s.root());
    let mut listed = Vec::new();
    s.root()
        .list(0, &mut |entry| {
            listed.push(String::from_utf8(entry.name).unwrap());
            true
        })
        .unwrap();
    for order in [by_name, listed] {
        // The same directory as nobody has seen it yet.
        let fs = GoferFs::attach(&s.session, 0, s.fs.options).unwrap();
        let read_all = || {
            for name in &order {
                let file = fs.root().lookup(name.as_bytes()).unwrap();
                let file = file.open(OpenFlags::empty(), &TestCaller::new(1)).unwrap();
                let text = read(&*file, 0).unwrap();
                assert_eq!(text, format!("text {}", name.trim_start_matches('f')).as_bytes());
            }
        };
        // Some lookups until it is listed, then a sixteenth of the files, and a few more at the start.
        let calls = s.calls(read_all);
        assert!(calls < 40, "{calls}");
    }
}

#[test]
fn a_file_that_was_replaced_is_not_taken_for_the_one_opened_ahead() {
    let s = Scratch::new(false, false, |d| {
        for n in 0..8 {
            fs::write(d.join(format!("f{n}")), "old").unwrap();
        }
    });
    let root = s.root();
    let mut in_order = Vec::new();
    root.list(0, &mut |entry| {
        in_order.push(entry.name);
        true
    })
    .unwrap();
    // Behind the file system's back, as it may only happen in a race.
    let last = String::from_utf8(in_order.last().unwrap().clone()).unwrap();
    fs::write(s.host("other"), "new").unwrap();
    fs::rename(s.host("other"), s.host(&last)).unwrap();
    let open = |name: &[u8]| {
        let file = root.lookup(name).unwrap();
        file.open(OpenFlags::empty(), &TestCaller::new(1)).unwrap()
    };
    let seen: Vec<_> = in_order.iter().map(|name| read(&*open(name), 0).unwrap()).collect();
    assert!(seen.iter().take(in_order.len() - 1).all(|text| text == b"old"));
}

/// Directories `d0`, `d1`, … with eight files each, of which those of `d0` have been read in the order of the listing.
fn listed_and_read(read_only: bool) -> Scratch {
    let s = Scratch::new(read_only, false, |d| {
        for dir in 0..12 {
            fs::create_dir(d.join(format!("d{dir}"))).unwrap();
            for n in 0..8 {
                fs::write(d.join(format!("d{dir}/f{n}")), format!("old {n}")).unwrap();
            }
        }
    });
    listing(&*s.root());
    read_listed(&s, "d0");
    s
}

fn listing(dir: &dyn Inode) -> Vec<Vec<u8>> {
    let mut names = Vec::new();
    dir.list(0, &mut |entry| {
        names.push(entry.name);
        true
    })
    .unwrap();
    names
}

fn text_of(dir: &dyn Inode, name: &[u8]) -> String {
    let file = dir.lookup(name).unwrap().open(OpenFlags::empty(), &TestCaller::new(1)).unwrap();
    String::from_utf8(read(&*file, 0).unwrap()).unwrap()
}

fn read_listed(s: &Scratch, dir: &str) {
    let dir = s.at(dir).unwrap();
    for name in listing(&*dir) {
        let number = std::str::from_utf8(&name).unwrap().trim_start_matches('f').to_owned();
        assert_eq!(text_of(&*dir, &name), format!("old {number}"));
    }
}

fn inode_of(dir: &dyn Inode, name: &[u8]) -> Arc<GoferInode> {
    dir.lookup(name).unwrap().into_any().downcast().unwrap()
}

/// Gives up the host file as if it had been idle for long.
fn forget_file(dir: &dyn Inode, name: &[u8]) {
    let inode = inode_of(dir, name);
    while !inode.close_idle() {}
    assert!(!inode.has_host_file());
}

fn is_under_way(s: &Scratch) -> bool {
    s.fs.foretold.lock().asked.is_some()
}

#[test]
fn a_listed_directory_is_opened_before_it_is_read() {
    let s = listed_and_read(true);
    for n in 1..6 {
        // The listing, and the files.
        assert_eq!(s.calls(|| read_listed(&s, &format!("d{n}"))), 2, "{n}");
        assert!(!is_under_way(&s));
    }
    // Nobody reads what is listed: this is soon noticed.
    let dirs: Vec<_> = (6..12).map(|n| s.at(&format!("d{n}")).unwrap()).collect();
    assert_eq!(s.calls(|| dirs.iter().for_each(|dir| drop(listing(&**dir)))), 6 + 3);
    // Not again where it was in vain, whatever was wanted elsewhere.
    s.fs.foretold.lock().earned = gofer_protocol::MAX_TOGETHER;
    for name in listing(&*dirs[0]) {
        forget_file(&*dirs[0], &name);
    }
    assert_eq!(s.calls(|| drop(listing(&*dirs[0]))), 0);
    assert_eq!(s.calls(|| drop(listing(&*dirs[5]))), 1);
    assert!(is_under_way(&s));
}

#[test]
fn the_next_files_are_opened_while_the_present_ones_are_read() {
    let s = Scratch::new(true, false, |d| {
        for n in 0..100 {
            fs::write(d.join(format!("f{n}")), "text").unwrap();
        }
    });
    let root = s.root();
    let names = listing(&*root);
    let mut seen = 0;
    for name in &names {
        let before = is_under_way(&s);
        assert_eq!(text_of(&*root, name), "text");
        seen += usize::from(!before && is_under_way(&s));
    }
    // As many as there are requests, but for the ones at the start and at the end.
    assert!(seen >= 5, "{seen}");
    assert!(!is_under_way(&s));
    // Who stops in the middle has had one request made in vain at most, and gets fewer from then on.
    let s = Scratch::new(true, false, |d| {
        for n in 0..100 {
            fs::write(d.join(format!("f{n}")), "text").unwrap();
        }
    });
    let root = s.root();
    let names = listing(&*root);
    names.iter().take(40).for_each(|name| drop(text_of(&*root, name)));
    let open = || names.iter().filter(|name| inode_of(&*root, name).has_host_file()).count();
    s.fs.take_in();
    assert!(open() <= 40 + 2 * gofer_protocol::MAX_TOGETHER, "{}", open());
}

#[test]
fn names_that_moved_meanwhile_are_not_taken_for_others() {
    let s = listed_and_read(false);
    let dir = s.at("d1").unwrap();
    let asked_for = |dir: &Arc<dyn Inode>| {
        let names = listing(&**dir);
        assert!(is_under_way(&s));
        names
    };
    // Whoever takes a name away takes in first what is under way.
    let names = asked_for(&dir);
    let kept = dir.lookup(&names[7]).unwrap();
    dir.unlink(&names[0]).unwrap();
    assert!(!is_under_way(&s));
    assert_eq!(dir.lookup(&names[0]).unwrap_err(), Errno::ENOENT);
    let new = dir.create(&names[0], 0o644, ROOT).unwrap();
    let file = Arc::clone(&new).open(OpenFlags::RDWR, &TestCaller::new(1)).unwrap();
    write(&*file, Pos::At(0), b"new");
    assert_eq!(text_of(&*dir, &names[0]), "new");
    dir.rename(&names[0], &dir, &names[1], RenameFlags::empty()).unwrap();
    assert_eq!(text_of(&*dir, &names[1]), "new");
    // What is written through another descriptor is seen through the one that was opened ahead.
    let file = Arc::clone(&kept).open(OpenFlags::WRONLY, &TestCaller::new(1)).unwrap();
    kept.set_attr(&SetAttr { size: Some(0), ..SetAttr::default() }).unwrap();
    write(&*file, Pos::At(0), b"written");
    assert_eq!(text_of(&*dir, &names[7]), "written");

    // Another thread takes the names away after that: the answer is still under way, as `aside`.
    for way in 0..4 {
        let path = format!("d{}", way + 2);
        // What was asked for is wanted again.
        read_listed(&s, "d10");
        s.fs.foretold.lock().earned = gofer_protocol::MAX_TOGETHER;
        let dir = s.at(&path).unwrap();
        let names = asked_for(&dir);
        let aside = s.fs.foretold.lock().asked.take();
        let make = |dir: &Arc<dyn Inode>, name: &[u8]| {
            let inode = dir.create(name, 0o644, ROOT).unwrap();
            let file = Arc::clone(&inode).open(OpenFlags::RDWR, &TestCaller::new(1)).unwrap();
            write(&*file, Pos::At(0), b"new");
            drop(file);
            forget_file(&**dir, name);
            inode
        };
        // As the tree of the names of the VFS holds it.
        let held;
        let (mut at, mut name) = (Arc::clone(&dir), names[2].clone());
        match way {
            0 => {
                dir.unlink(&name).unwrap();
                held = make(&dir, &name);
            }
            1 => {
                held = make(&dir, b"new");
                dir.rename(b"new", &dir, &name, RenameFlags::empty()).unwrap();
            }
            2 => {
                held = make(&dir, b"new");
                dir.rename(b"new", &dir, &name, RenameFlags::EXCHANGE).unwrap();
            }
            _ => {
                // Another directory takes its place.
                let root = s.root();
                at = root.mkdir(b"other", 0o755, ROOT).unwrap();
                held = make(&at, &name);
                root.rename(b"other", &root, path.as_bytes(), RenameFlags::EXCHANGE).unwrap();
                at = s.at(&path).unwrap();
                name = names[2].clone();
            }
        }
        s.fs.foretold.lock().asked = aside;
        s.fs.take_in();
        assert_eq!(text_of(&*at, &name), "new", "{way}");
        drop(held);
        assert_eq!(fs::read(s.host(&path).join(std::str::from_utf8(&name).unwrap())).unwrap(), b"new");
        if way == 2 {
            assert_eq!(text_of(&*dir, b"new"), format!("old {}", &String::from_utf8_lossy(&name)[1..]));
        }
    }
}

#[test]
fn an_answer_of_another_directory_is_dropped() {
    let s = listed_and_read(false);
    let dir = s.at("d1").unwrap();
    // Looked at before, so that the listing is known.
    s.fs.foretold.lock().earned = 0;
    let names = listing(&*dir);
    // The gofer comes to the request when the names stand for other files; behind the file system's back, as in a race.
    fs::rename(s.host("d1"), s.host("d1-before")).unwrap();
    fs::rename(s.host("d2"), s.host("d1")).unwrap();
    s.fs.foretold.lock().earned = gofer_protocol::MAX_TOGETHER;
    listing(&*dir);
    assert!(is_under_way(&s));
    s.fs.take_in();
    for name in &names {
        assert!(!inode_of(&*dir, name).has_host_file());
    }
}

#[test]
fn walks_of_several_threads_take_in_what_the_others_asked_for() {
    let s = listed_and_read(true);
    for round in 0..20 {
        // As nobody has seen it yet; the one before may go with a request under way.
        let fs = GoferFs::attach(&s.session, 0, s.fs.options).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let root = fs.root();
                scope.spawn(move || {
                    for n in 0..12 {
                        let dir = root
                            .lookup(format!("d{}", (n * 5 + thread * 3 + round) % 12).as_bytes())
                            .unwrap();
                        for name in listing(&*dir) {
                            assert_eq!(text_of(&*dir, &name)[4..], String::from_utf8_lossy(&name)[1..]);
                        }
                    }
                });
            }
        });
        fs.foretold.lock().earned = gofer_protocol::MAX_TOGETHER;
        listing(&*fs.root().lookup(b"d0").unwrap());
    }
    assert!(!s.session.is_lost());
}

#[test]
fn nothing_is_asked_ahead_of_a_shared_mount() {
    let s = Scratch::new(true, true, |d| {
        for n in 0..40 {
            fs::write(d.join(format!("f{n}")), format!("old {n}")).unwrap();
        }
    });
    for _ in 0..3 {
        s.fs.foretold.lock().earned = gofer_protocol::MAX_TOGETHER;
        let root = s.root();
        for name in listing(&*root) {
            text_of(&*root, &name);
            assert!(!is_under_way(&s));
        }
    }
}

#[test]
fn many_lookups_become_one_listing() {
    let s = Scratch::new(true, false, |d| {
        for n in 0..200 {
            fs::write(d.join(format!("f{n}")), "").unwrap();
        }
    });
    let root = s.root();
    let all = || (0..200).for_each(|n| drop(root.lookup(format!("f{n}").as_bytes()).unwrap()));
    assert!(s.calls(all) < 10);
    assert_eq!(s.calls(all), 0);
}

#[test]
fn changes_reach_the_host_and_the_cache() {
    let s = Scratch::new(false, false, |_| {});
    let root = s.root();
    let file = root.create(b"f", 0o640, ROOT).unwrap();
    assert_eq!(file.attr().unwrap().mode & 0o7777, 0o640);
    let open = Arc::clone(&file).open(OpenFlags::RDWR, &TestCaller::new(1)).unwrap();
    assert_eq!(write(&*open, Pos::At(0), b"hello"), 5);
    assert_eq!(write(&*open, Pos::Append, b" world"), 6);
    assert_eq!(file.attr().unwrap().size, 11);
    assert_eq!(fs::read(s.host("f")).unwrap(), b"hello world");

    let dir = root.mkdir(b"d", 0o755, ROOT).unwrap();
    root.rename(b"f", &dir, b"g", RenameFlags::empty()).unwrap();
    assert_eq!(names(&*root), ["d"]);
    assert_eq!(names(&*dir), ["g"]);
    assert!(Arc::ptr_eq(&dir.lookup(b"g").unwrap(), &file));
    // The moved directory is known under its new name.
    root.rename(b"d", &root, b"e", RenameFlags::empty()).unwrap();
    file.set_attr(&SetAttr { mode: Some(0o600), ..SetAttr::default() }).unwrap();
    assert_eq!(fs::metadata(s.host("e/g")).unwrap().mode() & 0o7777, 0o600);

    // A second name is the same inode.
    dir.link(b"h", &file).unwrap();
    assert!(Arc::ptr_eq(&dir.lookup(b"h").unwrap(), &file));
    assert_eq!(file.attr().unwrap().nlink, 2);
    dir.unlink(b"g").unwrap();
    assert_eq!(file.attr().unwrap().nlink, 1);
    // The last name goes while the file is open.
    dir.unlink(b"h").unwrap();
    file.set_attr(&SetAttr { size: Some(5), ..SetAttr::default() }).unwrap();
    assert_eq!(read(&*open, 0).unwrap(), b"hello");
    assert_eq!(file.attr().unwrap().nlink, 0);
    root.rmdir(b"e").unwrap();
    assert_eq!(root.lookup(b"e").unwrap_err(), Errno::ENOENT);
    assert!(names(&*root).is_empty());
}

#[test]
fn a_lazily_opened_file_outlives_its_name() {
    let s = Scratch::new(false, false, |d| fs::write(d.join("f"), "text").unwrap());
    let open = s.at("f").unwrap().open(OpenFlags::empty(), &TestCaller::new(1)).unwrap();
    s.root().unlink(b"f").unwrap();
    assert_eq!(read(&*open, 0).unwrap(), b"text");
    let open = {
        let f = s.root().create(b"a", 0o644, ROOT).unwrap();
        let open = f.open(OpenFlags::RDWR, &TestCaller::new(1)).unwrap();
        write(&*open, Pos::At(0), b"old");
        open
    };
    s.root().create(b"b", 0o644, ROOT).unwrap();
    s.root().rename(b"b", &s.root(), b"a", RenameFlags::empty()).unwrap();
    assert_eq!(read(&*open, 0).unwrap(), b"old");
}

#[test]
fn files_in_use_stay_open_on_the_host() {
    let many = IDLE_FILES + 100;
    let s = Scratch::new(true, false, |d| {
        fs::write(d.join("hot"), "hot").unwrap();
        for n in 0..many {
            // In directories of their own: none is opened for another's sake.
            fs::create_dir(d.join(n.to_string())).unwrap();
            fs::write(d.join(format!("{n}/f")), "cold").unwrap();
        }
    });
    let hot = s.at("hot").unwrap();
    let cold: Vec<_> = (0..many).map(|n| s.at(&format!("{n}/f")).unwrap()).collect();
    let use_once = |inode: &Arc<dyn Inode>| {
        let file = Arc::clone(inode).open(OpenFlags::empty(), &TestCaller::new(1)).unwrap();
        read(&*file, 0).unwrap();
    };
    use_once(&hot);
    // However often one file is closed, it takes one place.
    assert_eq!(s.calls(|| (0..2 * many).for_each(|_| use_once(&hot))), 0);
    for inode in &cold {
        use_once(inode);
        assert_eq!(s.calls(|| use_once(&hot)), 0);
    }
    assert!(s.fs.idle.lock().len() <= IDLE_FILES);
    // The one that waited longest had to go.
    assert_eq!(s.calls(|| use_once(&cold[many - 1])), 0);
    assert_eq!(s.calls(|| use_once(&cold[0])), 1);
}

#[test]
fn a_shared_mount_shows_what_the_host_changed() {
    let s = Scratch::new(false, true, |d| fs::write(d.join("f"), "1").unwrap());
    let root = s.root();
    let file = root.lookup(b"f").unwrap();
    assert_eq!(names(&*root), ["f"]);
    fs::write(s.host("f"), "12345").unwrap();
    fs::write(s.host("g"), "").unwrap();
    std::thread::sleep(std::time::Duration::from_millis(5));
    assert_eq!(file.attr().unwrap().size, 5);
    assert_eq!(names(&*root), ["f", "g"]);
    assert!(Arc::ptr_eq(&root.lookup(b"f").unwrap(), &file));
    fs::remove_file(s.host("f")).unwrap();
    fs::create_dir(s.host("f")).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(5));
    assert_eq!(root.lookup(b"f").unwrap().kind(), FileKind::Directory);
    assert!(root.volatile_names());
}

#[test]
fn a_lost_gofer_is_an_io_error() {
    let (ours, theirs) = hostsys::sock::packet_pair().unwrap();
    let mut hello = Vec::new();
    gofer_protocol::Hello::Ready { version: gofer_protocol::VERSION }.encode(&mut hello);
    use std::os::fd::AsFd;
    hostsys::sock::send(theirs.as_fd(), &hello, &[], 0).unwrap();
    let session = Session::connect(vec![ours]).unwrap();
    drop(theirs);
    let options = Options { read_only: true, shared: false, dev: 1 };
    assert_eq!(GoferFs::attach(&session, 0, options).unwrap_err(), Errno::EIO);
    assert!(session.is_lost());
}
