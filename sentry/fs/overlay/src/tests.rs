//! The overlay over two tmpfs layers, by itself and under the VFS.

use std::collections::BTreeSet;

use fs_tmpfs::{TmpFs, TmpfsOptions};
use sentry_base::Errno;
use sentry_memory::{MemoryFile, UserReader, UserWriter};
use sentry_vfs::testing::TestCaller;
use sentry_vfs::{FileKind, FileOps, IoStart, OpenFlags, Owner, Pos, RenameFlags};

use super::*;

const ROOT: Owner = Owner { uid: 0, gid: 0 };

struct Layers {
    memory: Arc<MemoryFile>,
    lower: Arc<TmpFs>,
    fs: Arc<OverlayFs>,
    caller: TestCaller,
}

impl Layers {
    /// An overlay whose lower layer `fill` has filled.
    fn new(fill: impl FnOnce(&Layers, &Arc<dyn Inode>)) -> Self {
        let memory = MemoryFile::create(1 << 30).unwrap();
        let layer = || TmpFs::new(&memory, TmpfsOptions::default());
        let (lower, upper) = (layer(), layer());
        let fs = OverlayFs::new(layer(), layer(), 9).unwrap();
        let mut layers = Self { memory: Arc::clone(&memory), lower, fs, caller: TestCaller::new(1) };
        fill(&layers, &layers.lower.root());
        layers.fs = OverlayFs::new(layers.lower.clone(), upper, 9).unwrap();
        layers
    }

    fn root(&self) -> Arc<dyn Inode> {
        self.fs.root()
    }

    fn at(&self, path: &str) -> Result<Arc<dyn Inode>> {
        path.split('/').try_fold(self.root(), |dir, name| dir.lookup(name.as_bytes()))
    }

    fn open(&self, inode: &Arc<dyn Inode>, flags: OpenFlags) -> Arc<dyn FileOps> {
        Arc::clone(inode).open(flags, &self.caller).unwrap()
    }

    fn read(&self, file: &Arc<dyn FileOps>) -> String {
        let mut buf = vec![0; 4096];
        let io = self.caller.io(OpenFlags::empty());
        let IoStart::Done(n) = file.try_read(&io, &mut UserWriter::buffer(&mut buf), Pos::At(0)).unwrap()
        else {
            panic!("a regular file blocks")
        };
        String::from_utf8(buf[..n].to_vec()).unwrap()
    }

    fn write(&self, file: &Arc<dyn FileOps>, pos: Pos, text: &str) {
        let io = self.caller.io(OpenFlags::empty());
        let n = file.try_write(&io, &mut UserReader::buffer(text.as_bytes()), pos).unwrap();
        assert_eq!(n, IoStart::Done(text.len()));
    }

    /// A file with this text.
    fn file(&self, dir: &Arc<dyn Inode>, name: &str, text: &str) -> Arc<dyn Inode> {
        let inode = dir.create(name.as_bytes(), 0o644, ROOT).unwrap();
        self.write(&self.open(&inode, OpenFlags::WRONLY), Pos::At(0), text);
        inode
    }

    fn text(&self, path: &str) -> Result<String> {
        Ok(self.read(&self.open(&self.at(path)?, OpenFlags::empty())))
    }

    fn write_to(&self, path: &str, text: &str) {
        let inode = self.at(path).unwrap();
        self.write(&self.open(&inode, OpenFlags::WRONLY), Pos::At(0), text);
    }
}

fn names(dir: &Arc<dyn Inode>) -> Vec<String> {
    let mut names = Vec::new();
    dir.list(0, &mut |e| {
        names.push(String::from_utf8(e.name).unwrap());
        true
    })
    .unwrap();
    let unique: BTreeSet<_> = names.iter().cloned().collect();
    assert_eq!(unique.len(), names.len(), "{names:?}");
    unique.into_iter().collect()
}

/// Every name and text of a tree.
fn dump(l: &Layers, dir: &Arc<dyn Inode>) -> Vec<String> {
    let mut out = Vec::new();
    for name in names(dir) {
        let child = dir.lookup(name.as_bytes()).unwrap();
        match child.kind() {
            FileKind::Directory => {
                out.extend(dump(l, &child).into_iter().map(|inner| format!("{name}/{inner}")));
            }
            FileKind::Regular => out.push(format!("{name}={}", l.read(&l.open(&child, OpenFlags::empty())))),
            _ => {}
        }
        out.push(name);
    }
    out
}

fn sample(l: &Layers, root: &Arc<dyn Inode>) {
    let etc = root.mkdir(b"etc", 0o750, Owner { uid: 3, gid: 4 }).unwrap();
    l.file(&etc, "passwd", "root");
    l.file(&etc, "group", "wheel");
    let deep = etc.mkdir(b"deep", 0o755, ROOT).unwrap();
    l.file(&deep, "file", "deep");
    let twin = l.file(root, "twin", "twin");
    root.link(b"twin2", &twin).unwrap();
    root.symlink(b"link", b"etc/passwd", ROOT).unwrap();
}

#[test]
fn a_change_copies_up_and_leaves_the_lower_layer_alone() {
    let l = Layers::new(sample);
    let before = dump(&l, &l.lower.root());
    let passwd = l.at("etc/passwd").unwrap();
    let ino = passwd.attr().unwrap().ino;
    let reader = l.open(&passwd, OpenFlags::empty());
    assert_eq!(l.read(&reader), "root");
    l.write(&l.open(&passwd, OpenFlags::WRONLY), Pos::Append, "+x");
    // A descriptor from before sees what was written.
    assert_eq!(l.read(&reader), "root+x");
    assert_eq!(l.text("etc/passwd").unwrap(), "root+x");
    assert_eq!(l.at("etc/passwd").unwrap().attr().unwrap().ino, ino);
    assert!(Arc::ptr_eq(&l.at("etc/passwd").unwrap(), &passwd));
    let etc = l.at("etc").unwrap().attr().unwrap();
    assert_eq!((etc.mode & 0o7777, etc.uid, etc.gid, etc.dev), (0o750, 3, 4, 9));
    drop(passwd);
    assert_eq!(l.at("etc/passwd").unwrap().attr().unwrap().ino, ino);

    l.at("etc/group").unwrap().set_attr(&SetAttr { mode: Some(0o600), ..SetAttr::default() }).unwrap();
    assert_eq!(l.at("etc/group").unwrap().attr().unwrap().mode & 0o7777, 0o600);
    assert_eq!(l.text("etc/group").unwrap(), "wheel");
    l.root().unlink(b"link").unwrap();
    l.file(&l.at("etc/deep").unwrap(), "new", "");
    assert_eq!(dump(&l, &l.lower.root()), before);
}

#[test]
fn removed_names_stay_away() {
    let l = Layers::new(sample);
    let etc = l.at("etc").unwrap();
    etc.unlink(b"passwd").unwrap();
    assert_eq!(etc.lookup(b"passwd").unwrap_err(), Errno::ENOENT);
    assert_eq!(names(&etc), ["deep", "group"]);
    // Nothing of the inode need be in use for that.
    drop(etc);
    assert_eq!(names(&l.at("etc").unwrap()), ["deep", "group"]);
    l.file(&l.at("etc").unwrap(), "passwd", "mine");
    assert_eq!(l.text("etc/passwd").unwrap(), "mine");
    l.at("etc").unwrap().unlink(b"passwd").unwrap();
    assert_eq!(l.text("etc/passwd").unwrap_err(), Errno::ENOENT);

    // A directory made anew does not show the old one's contents.
    let etc = l.at("etc").unwrap();
    assert_eq!(etc.rmdir(b"deep").unwrap_err(), Errno::ENOTEMPTY);
    l.at("etc/deep").unwrap().unlink(b"file").unwrap();
    etc.rmdir(b"deep").unwrap();
    etc.mkdir(b"deep", 0o700, ROOT).unwrap();
    assert!(names(&l.at("etc/deep").unwrap()).is_empty());
}

#[test]
fn an_unlinked_lower_file_can_still_be_written() {
    let l = Layers::new(sample);
    let passwd = l.at("etc/passwd").unwrap();
    let reader = l.open(&passwd, OpenFlags::empty());
    l.at("etc").unwrap().unlink(b"passwd").unwrap();
    assert_eq!(passwd.attr().unwrap().nlink, 0);
    l.write(&l.open(&passwd, OpenFlags::RDWR), Pos::At(0), "ROOT");
    assert_eq!(l.read(&reader), "ROOT");
    assert_eq!(l.text("etc/passwd").unwrap_err(), Errno::ENOENT);
}

#[test]
fn a_lower_file_that_was_moved_gets_more_names() {
    let l = Layers::new(sample);
    let etc = l.at("etc").unwrap();
    let passwd = l.at("etc/passwd").unwrap();
    etc.rename(b"passwd", &etc, b"group", RenameFlags::empty()).unwrap();
    etc.link(b"more", &l.at("etc/group").unwrap()).unwrap();
    etc.rename(b"group", &etc, b"other", RenameFlags::empty()).unwrap();
    etc.link(b"even more", &passwd).unwrap();
    assert_eq!(passwd.attr().unwrap().nlink, 3);
    assert_eq!(l.text("etc/even more").unwrap(), l.text("etc/other").unwrap());
    for name in ["more", "even more", "other"] {
        etc.unlink(name.as_bytes()).unwrap();
    }
    assert_eq!(etc.link(b"again", &passwd).unwrap_err(), Errno::ENOENT);
    // One that was copied where it stood, too.
    let file = l.at("etc/deep/file").unwrap();
    l.write_to("etc/deep/file", "D");
    l.at("etc/deep").unwrap().unlink(b"file").unwrap();
    assert_eq!(etc.link(b"again", &file).unwrap_err(), Errno::ENOENT);
}

#[test]
fn directories_move_with_their_lower_contents() {
    let l = Layers::new(sample);
    let root = l.root();
    l.write_to("etc/passwd", "R");
    l.at("etc").unwrap().unlink(b"group").unwrap();
    root.rename(b"etc", &root, b"conf", RenameFlags::empty()).unwrap();
    assert_eq!(names(&root), ["conf", "link", "twin", "twin2"]);
    assert_eq!(names(&l.at("conf").unwrap()), ["deep", "passwd"]);
    assert_eq!(l.text("conf/passwd").unwrap(), "Root");
    assert_eq!(l.text("conf/deep/file").unwrap(), "deep");
    // A lower directory below it is copied up at its new place.
    l.write_to("conf/deep/file", "D");
    assert_eq!(l.text("conf/deep/file").unwrap(), "Deep");
    // The old name is free, and shows nothing of the old.
    let etc = root.mkdir(b"etc", 0o755, ROOT).unwrap();
    assert!(names(&etc).is_empty());
    assert_eq!(root.rename(b"etc", &root, b"conf", RenameFlags::empty()).unwrap_err(), Errno::ENOTEMPTY);
    // Deeper, over an empty lower directory, and back.
    l.at("conf/deep").unwrap().rename(b"file", &etc, b"file", RenameFlags::empty()).unwrap();
    let conf = l.at("conf").unwrap();
    root.rename(b"etc", &conf, b"deep", RenameFlags::empty()).unwrap();
    assert_eq!(l.text("conf/deep/file").unwrap(), "Deep");
    assert_eq!(l.at("etc").unwrap_err(), Errno::ENOENT);
    root.rename(b"twin", &conf, b"deep", RenameFlags::EXCHANGE).unwrap();
    assert_eq!((l.text("conf/deep").unwrap(), l.text("twin/file").unwrap()), ("twin".into(), "Deep".into()));
}

#[test]
fn renames_over_lower_names() {
    let l = Layers::new(sample);
    let etc = l.at("etc").unwrap();
    let group = l.at("etc/group").unwrap();
    etc.rename(b"passwd", &etc, b"group", RenameFlags::empty()).unwrap();
    assert_eq!(names(&etc), ["deep", "group"]);
    assert_eq!(l.text("etc/group").unwrap(), "root");
    assert_eq!(group.attr().unwrap().nlink, 0);
    etc.unlink(b"group").unwrap();
    assert_eq!(names(&etc), ["deep"]);
    assert_eq!(l.root().rename(b"link", &etc, b"deep", RenameFlags::empty()).unwrap_err(), Errno::EISDIR);
    assert_eq!(l.root().rename(b"twin", &etc, b"deep", RenameFlags::NOREPLACE).unwrap_err(), Errno::EEXIST);
}

#[test]
fn hard_links_of_the_lower_layer_stay_together() {
    let l = Layers::new(sample);
    let twin = l.at("twin").unwrap();
    assert!(Arc::ptr_eq(&twin, &l.at("twin2").unwrap()));
    assert_eq!(twin.attr().unwrap().nlink, 2);
    l.write_to("twin2", "T");
    drop(twin);
    assert_eq!((l.text("twin").unwrap(), l.text("twin2").unwrap()), ("Twin".into(), "Twin".into()));
    let root = l.root();
    root.link(b"twin3", &l.at("twin").unwrap()).unwrap();
    assert_eq!(l.at("twin").unwrap().attr().unwrap().nlink, 3);
    root.rename(b"twin", &root, b"twin4", RenameFlags::empty()).unwrap();
    root.unlink(b"twin2").unwrap();
    let twin = l.at("twin4").unwrap();
    assert!(Arc::ptr_eq(&twin, &l.at("twin3").unwrap()));
    assert_eq!(twin.attr().unwrap().nlink, 2);
    root.unlink(b"twin3").unwrap();
    root.unlink(b"twin4").unwrap();
    assert_eq!(twin.attr().unwrap().nlink, 0);
    assert_eq!(l.read(&l.open(&twin, OpenFlags::empty())), "Twin");
}

#[test]
fn a_listing_survives_copy_ups() {
    let l = Layers::new(|l, root| {
        for n in 0..300 {
            l.file(root, &format!("f{n:03}"), "x");
        }
    });
    l.file(&l.root(), "upper", "");
    let (mut seen, mut cookie) = (Vec::new(), 0);
    loop {
        let mut last = None;
        l.root()
            .list(cookie, &mut |e| {
                last = Some(e);
                false
            })
            .unwrap();
        let Some(entry) = last else { break };
        cookie = entry.next_cookie;
        let child = l.root().lookup(&entry.name).unwrap();
        assert_eq!(child.attr().unwrap().ino, entry.ino);
        // The one just seen and the one after next.
        child.set_attr(&SetAttr { mode: Some(0o600), ..SetAttr::default() }).unwrap();
        if let Ok(ahead) = l.root().lookup(format!("f{:03}", (seen.len() + 2) % 300).as_bytes()) {
            ahead.set_attr(&SetAttr { mode: Some(0o640), ..SetAttr::default() }).unwrap();
        }
        seen.push(entry.name);
    }
    assert_eq!(seen.len(), 301);
    assert_eq!(seen.iter().collect::<BTreeSet<_>>().len(), 301);
}

#[test]
fn nameless_files_leave_no_note() {
    let l = Layers::new(sample);
    let notes = || l.fs.tables.lock().upper.len();
    let before = notes();
    let file = l.root().tmpfile(0o600, ROOT).unwrap();
    l.write(&l.open(&file, OpenFlags::RDWR), Pos::At(0), "x");
    drop(file);
    assert_eq!(notes(), before);
    l.file(&l.root(), "f", "x");
    l.root().unlink(b"f").unwrap();
    assert_eq!(notes(), before);
    assert!(l.memory.limit() > 0);
}
