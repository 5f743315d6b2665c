//! Answers requests: one function a request, each a few host calls on a [`Tree`].

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use gofer_protocol::{
    Entry, Fid, FileHow, MAX_XATTR, Path, Place, ReplyWriter, Request, WireAttr, WireSetAttr, WireStatFs,
    WireTime, set,
};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, RawDir, RenameFlags, SeekFrom, Timespec, Timestamps, Uid,
    XattrFlags,
};
use rustix::io::Errno;

use crate::tree::{
    EntryAt, Node, Result, Tree, attr_at, attr_of, beneath, file_type, itself, regular_in, regular_only,
    target_at,
};

/// Writes the answer to `request` into `out` and gives the descriptors that go with it.
pub(crate) fn answer(tree: &Tree, request: &Request<'_>, out: &mut Vec<u8>) -> Vec<OwnedFd> {
    let mut reply = ReplyWriter::new(out);
    match perform(tree, request, &mut reply) {
        Ok(files) => {
            reply.descriptors(files.len());
            reply.finish();
            files
        }
        Err(errno) => {
            reply.fail(errno.raw_os_error());
            Vec::new()
        }
    }
}

fn perform(tree: &Tree, request: &Request<'_>, reply: &mut ReplyWriter<'_>) -> Result<Vec<OwnedFd>> {
    match *request {
        Request::Attach { mount } => {
            let fid = tree.attach(mount)?;
            let node = tree.node(itself(fid))?;
            reply.value(fid.0);
            reply.attr(&attr_of(node.as_fd())?);
        }
        Request::WalkPlus { at, names } => walk(tree, at, names, reply)?,
        Request::ListPlus { at, cookie } => list(tree, at, cookie, reply)?,
        Request::OpenFile { at, how } => return open(tree, at, how, reply).map(one),
        Request::OpenTogether { at, names } => return open_together(tree, at, names, reply),
        Request::Create { at, mode, uid, gid, how } => {
            tree.writable(at.fid)?;
            let entry = tree.entry(at)?;
            let flags = open_flags(how) | OFlags::CREATE | OFlags::EXCL;
            let file = beneath(entry.dir.as_fd(), entry.name(), flags, Mode::from_raw_mode(mode))?;
            let (_, file) = regular_only(file)?;
            own(file.as_fd(), uid, gid, Some(mode))?;
            return hand_out(tree, at, how, (attr_of(file.as_fd())?, file), reply).map(one);
        }
        Request::MakeDir { at, mode, uid, gid } => {
            let entry = writable_entry(tree, at)?;
            rustix::fs::mkdirat(&entry.dir, entry.name(), Mode::from_raw_mode(mode))?;
            made(&entry, FileType::Directory, uid, gid, Some(mode), reply)?;
        }
        Request::MakeSymlink { at, target, uid, gid } => {
            let entry = writable_entry(tree, at)?;
            rustix::fs::symlinkat(target, &entry.dir, entry.name())?;
            made(&entry, FileType::Symlink, uid, gid, None, reply)?;
        }
        Request::MakeNode { at, mode, uid, gid } => {
            if !tree.writable(at.fid)?.allow_special {
                return Err(Errno::PERM);
            }
            let entry = tree.entry(at)?;
            let kind = FileType::from_raw_mode(mode);
            rustix::fs::mknodat(&entry.dir, entry.name(), kind, Mode::from_raw_mode(mode), 0)?;
            made(&entry, kind, uid, gid, Some(mode), reply)?;
        }
        Request::Rename { from, to, flags } => {
            tree.writable(from.fid)?;
            tree.same_mount(from.fid, to.fid)?;
            let (from, to) = (tree.entry(from)?, tree.entry(to)?);
            let flags = RenameFlags::from_bits_truncate(flags);
            rustix::fs::renameat_with(&from.dir, from.name(), &to.dir, to.name(), flags)?;
        }
        Request::Link { from, to } => {
            tree.writable(from.fid)?;
            tree.same_mount(from.fid, to.fid)?;
            let to = tree.entry(to)?;
            if from.path.is_empty() {
                let Node::Kept(file) = tree.node(from)? else { return Err(Errno::PERM) };
                rustix::fs::linkat(&file, c"", &to.dir, to.name(), AtFlags::EMPTY_PATH)?;
            } else {
                let from = tree.entry(from)?;
                rustix::fs::linkat(&from.dir, from.name(), &to.dir, to.name(), AtFlags::empty())?;
            }
            reply.attr(&to.attr()?);
        }
        Request::Unlink { at, directory } => {
            let entry = writable_entry(tree, at)?;
            let flags = if directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
            rustix::fs::unlinkat(&entry.dir, entry.name(), flags)?;
        }
        Request::SetAttr { at, ref change } => {
            tree.writable(at.fid)?;
            let node = tree.node(at)?;
            set_attr(tree, at, &node, change)?;
            reply.attr(&attr_of(node.as_fd())?);
        }
        Request::StatFs { at } => {
            let st = rustix::fs::fstatfs(tree.node(at)?)?;
            reply.stat_fs(&WireStatFs {
                magic: st.f_type.cast_unsigned() & u64::from(u32::MAX),
                block_size: st.f_bsize.cast_unsigned(),
                blocks: st.f_blocks,
                blocks_free: st.f_bfree,
                blocks_available: st.f_bavail,
                files: st.f_files,
                files_free: st.f_ffree,
                name_max: st.f_namelen.cast_unsigned(),
            });
        }
        Request::GetXattr { at, name } => {
            let file = tree.open_to_read(at)?;
            if !readable_xattr(name.as_bytes()) {
                return Err(Errno::NODATA);
            }
            let mut value = vec![0_u8; MAX_XATTR];
            let len = rustix::fs::fgetxattr(file, name.as_bytes(), value.as_mut_slice())?;
            reply.bytes(value.get(..len).unwrap_or_default());
        }
        Request::ListXattr { at } => {
            let file = tree.open_to_read(at)?;
            let mut names = vec![0_u8; MAX_XATTR];
            let len = rustix::fs::flistxattr(file, names.as_mut_slice())?;
            let mut shown = Vec::new();
            for name in names.get(..len).unwrap_or_default().split_inclusive(|b| *b == 0) {
                if readable_xattr(name) {
                    shown.extend_from_slice(name);
                }
            }
            reply.bytes(&shown);
        }
        Request::SetXattr { at, name, value, flags } => {
            tree.writable(at.fid)?;
            let file = tree.open_to_read(at)?;
            if !name.as_bytes().starts_with(b"user.") {
                return Err(Errno::PERM);
            }
            rustix::fs::fsetxattr(file, name.as_bytes(), value, XattrFlags::from_bits_truncate(flags))?;
        }
        Request::RemoveXattr { at, name } => {
            tree.writable(at.fid)?;
            let file = tree.open_to_read(at)?;
            if !name.as_bytes().starts_with(b"user.") {
                return Err(Errno::PERM);
            }
            rustix::fs::fremovexattr(file, name.as_bytes())?;
        }
        Request::Sync { at } => {
            tree.writable(at.fid)?;
            rustix::fs::syncfs(tree.open_to_read(at)?)?;
        }
        Request::MakeTemp { at, mode, uid, gid } => {
            tree.writable(at.fid)?;
            let flags = OFlags::RDWR | OFlags::TMPFILE;
            let (_, file) = regular_only(tree.open(at, flags, Mode::from_raw_mode(mode))?)?;
            own(file.as_fd(), uid, gid, Some(mode))?;
            let how = FileHow::READ | FileHow::WRITE | FileHow::KEEP;
            return hand_out(tree, at, how, (attr_of(file.as_fd())?, file), reply).map(one);
        }
        Request::Close { fid } => tree.close(fid)?,
    }
    Ok(Vec::new())
}

fn one(file: OwnedFd) -> Vec<OwnedFd> {
    vec![file]
}

fn writable_entry<'a>(tree: &Tree, at: Place<'a>) -> Result<EntryAt<'a>> {
    tree.writable(at.fid)?;
    tree.entry(at)
}

/// Attributes of the start, then of each name below it, until one is missing or cannot have children. The reply's
/// value is the errno of the first name that is not there, 0 if all are or the walk met a link.
fn walk(tree: &Tree, at: Place<'_>, names: Path<'_>, reply: &mut ReplyWriter<'_>) -> Result<()> {
    let node = tree.node(at)?;
    let start = attr_of(node.as_fd())?;
    let target = match (file_type(&start), &node) {
        (FileType::Symlink, Node::Path(link)) => target_at(link.as_fd(), b""),
        _ => Vec::new(),
    };
    if !reply.entry(&Entry { name: b"", attr: start, cookie: 0, target: &target }) {
        return Err(Errno::OVERFLOW);
    }
    if file_type(&start) != FileType::Directory {
        return Ok(());
    }
    let Node::Path(mut dir) = node else { return Ok(()) };
    let mut names = names.names().peekable();
    while let Some(name) = names.next() {
        let attr = match attr_at(dir.as_fd(), name.as_bytes()) {
            Ok(attr) => attr,
            Err(errno) => {
                reply.value(errno.raw_os_error().cast_unsigned());
                return Ok(());
            }
        };
        let kind = file_type(&attr);
        let target =
            if kind == FileType::Symlink { target_at(dir.as_fd(), name.as_bytes()) } else { Vec::new() };
        if !reply.entry(&Entry { name: b"", attr, cookie: 0, target: &target }) || kind != FileType::Directory
        {
            return Ok(());
        }
        if names.peek().is_some() {
            // A directory that is gone since: the names below it are asked for again, if anyone wants them.
            match beneath(dir.as_fd(), name.as_bytes(), OFlags::PATH | OFlags::DIRECTORY, Mode::empty()) {
                Ok(next) => dir = next,
                Err(_) => return Ok(()),
            }
        }
    }
    Ok(())
}

/// Entries after `cookie`, as many as one message holds. The reply's value is 1 where the listing is complete.
fn list(tree: &Tree, at: Place<'_>, cookie: u64, reply: &mut ReplyWriter<'_>) -> Result<()> {
    let dir = tree.open(at, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
    if cookie != 0 {
        rustix::fs::seek(&dir, SeekFrom::Start(cookie))?;
    }
    let mut buf = Vec::<u8>::with_capacity(32 * 1024);
    let mut entries = RawDir::new(&dir, buf.spare_capacity_mut());
    let mut any = false;
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        // A name that went away since the kernel listed it is left out.
        let Ok(attr) = attr_at(dir.as_fd(), name) else { continue };
        let link = file_type(&attr) == FileType::Symlink;
        let target = if link { target_at(dir.as_fd(), name) } else { Vec::new() };
        let full = !reply.entry(&Entry { name, attr, cookie: entry.next_entry_cookie(), target: &target });
        if full {
            return if any { Ok(()) } else { Err(Errno::OVERFLOW) };
        }
        any = true;
    }
    reply.value(1);
    Ok(())
}

fn open_flags(how: FileHow) -> OFlags {
    let mut flags = match (how.contains(FileHow::READ), how.contains(FileHow::WRITE)) {
        (_, false) => OFlags::RDONLY,
        (false, true) => OFlags::WRONLY,
        (true, true) => OFlags::RDWR,
    };
    flags.set(OFlags::TRUNC, how.contains(FileHow::TRUNCATE));
    flags
}

fn open(tree: &Tree, at: Place<'_>, how: FileHow, reply: &mut ReplyWriter<'_>) -> Result<OwnedFd> {
    if how.contains(FileHow::WRITE) {
        tree.writable(at.fid)?;
    }
    if at.path.is_empty()
        && let Ok(Node::Kept(file)) = tree.node(at)
    {
        // It has no name to be opened by: what is open already is all that there is.
        let open = rustix::fs::fcntl_getfl(&file)?;
        if how.contains(FileHow::WRITE) && !open.intersects(OFlags::WRONLY | OFlags::RDWR) {
            return Err(Errno::ACCESS);
        }
        reply.value(Fid::NONE.0);
        reply.attr(&attr_of(file.as_fd())?);
        return file.try_clone().map_err(|_| Errno::MFILE);
    }
    let opened = tree.open_regular(at, open_flags(how))?;
    hand_out(tree, at, how, opened, reply)
}

/// Opens the first of `names` and, where they can be, the others.
fn open_together(
    tree: &Tree,
    at: Place<'_>,
    names: Path<'_>,
    reply: &mut ReplyWriter<'_>,
) -> Result<Vec<OwnedFd>> {
    let dir = tree.directory(at)?;
    let mut files = Vec::new();
    for (cookie, name) in (0..).zip(names.names()) {
        let (attr, file) = match regular_in(dir.as_fd(), name, OFlags::RDONLY) {
            Ok(opened) => opened,
            Err(errno) if cookie == 0 => return Err(errno),
            Err(_) => continue,
        };
        if !reply.entry(&Entry { name: b"", attr, cookie, target: b"" }) {
            return Err(Errno::OVERFLOW);
        }
        files.push(file);
    }
    Ok(files)
}

/// Fills the reply that a donated file goes with.
fn hand_out(
    tree: &Tree,
    at: Place<'_>,
    how: FileHow,
    (attr, file): (WireAttr, OwnedFd),
    reply: &mut ReplyWriter<'_>,
) -> Result<OwnedFd> {
    let kept = if how.contains(FileHow::KEEP) { tree.keep(at.fid, &file)? } else { Fid::NONE };
    reply.value(kept.0);
    reply.attr(&attr);
    Ok(file)
}

/// Gives a new object its owner. A change of owner may clear mode bits, which are then set again.
fn own(node: BorrowedFd<'_>, uid: u32, gid: u32, mode: Option<u32>) -> Result<()> {
    let attr = attr_of(node)?;
    if attr.uid != uid || attr.gid != gid {
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        rustix::fs::chownat(node, c"", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?;
    }
    if let Some(mode) = mode.map(|m| m & 0o7777)
        && attr_of(node)?.mode & 0o7777 != mode
    {
        chmod(node, mode)?;
    }
    Ok(())
}

fn chmod(node: BorrowedFd<'_>, mode: u32) -> Result<()> {
    let by_node =
        hostsys::mount::chmod_node(node, mode).map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO));
    match by_node {
        // Before Linux 6.6 only a descriptor that is not O_PATH will do.
        Err(Errno::NOSYS) => rustix::fs::fchmod(node, Mode::from_raw_mode(mode)),
        other => other,
    }
}

/// Sets owner and mode of what was just made at an entry, and answers with its attributes.
fn made(
    entry: &EntryAt<'_>,
    kind: FileType,
    uid: u32,
    gid: u32,
    mode: Option<u32>,
    reply: &mut ReplyWriter<'_>,
) -> Result<()> {
    let flags = if kind == FileType::Directory { OFlags::DIRECTORY } else { OFlags::PATH };
    let node = beneath(entry.dir.as_fd(), entry.name(), flags, Mode::empty())?;
    let attr = attr_of(node.as_fd())?;
    if file_type(&attr) != kind {
        return Err(Errno::AGAIN);
    }
    own(node.as_fd(), uid, gid, mode)?;
    reply.attr(&attr_of(node.as_fd())?);
    Ok(())
}

fn set_attr(tree: &Tree, at: Place<'_>, node: &Node, change: &WireSetAttr) -> Result<()> {
    let has = |bit: u32| change.mask & bit != 0;
    if has(set::SIZE) {
        match node {
            Node::Kept(file) => rustix::fs::ftruncate(file, change.size)?,
            Node::Path(_) => rustix::fs::ftruncate(tree.open_regular(at, OFlags::WRONLY)?.1, change.size)?,
        }
    }
    if has(set::UID) || has(set::GID) {
        let uid = has(set::UID).then(|| Uid::from_raw(change.uid));
        let gid = has(set::GID).then(|| Gid::from_raw(change.gid));
        rustix::fs::chownat(node, c"", uid, gid, AtFlags::EMPTY_PATH)?;
    }
    if has(set::MODE) {
        match chmod(node.as_fd(), change.mode) {
            Err(Errno::BADF) => {
                let file = tree.open_to_read(at)?;
                rustix::fs::fchmod(file, Mode::from_raw_mode(change.mode))?;
            }
            other => other?,
        }
    }
    if has(set::ATIME) || has(set::MTIME) {
        let times = Timestamps {
            last_access: set_time(has(set::ATIME), has(set::ATIME_NOW), change.atime),
            last_modification: set_time(has(set::MTIME), has(set::MTIME_NOW), change.mtime),
        };
        rustix::fs::utimensat(node, c"", &times, AtFlags::EMPTY_PATH)?;
    }
    Ok(())
}

fn set_time(wanted: bool, now: bool, at: WireTime) -> Timespec {
    match (wanted, now) {
        (false, _) => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
        (true, true) => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW },
        (true, false) => Timespec { tv_sec: at.sec, tv_nsec: at.nsec.into() },
    }
}

/// Attributes that describe the file to its users. Labels of the host's security modules and of its overlays stay
/// with the host.
fn readable_xattr(name: &[u8]) -> bool {
    name.starts_with(b"user.")
        || name.starts_with(b"security.capability")
        || name.starts_with(b"system.posix_acl_")
}
