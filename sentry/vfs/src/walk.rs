//! The path walk (`path_resolution(7)`, `openat2(2)`, `fs/namei.c`).
//!
//! A walk whose names are all cached takes one short shared lock a component and copies nothing. At the first name
//! that is not cached, the file system is told of all remaining ones, so that a remote one can fetch them at once.

use core::ops::Range;
use std::borrow::Cow;
use std::sync::Arc;

use sentry_base::{Errno, Result};

use crate::access::{Access, check_inode, check_location};
use crate::dentry::Known;
use crate::{Caller, Credentials, Dentry, FileKind, FsContextView, Location, MountFlags, MountNamespace};

/// `PATH_MAX`, with the terminating NUL.
pub const PATH_MAX: usize = 4096;
/// The longest name.
pub const NAME_MAX: usize = 255;
/// Symbolic links that one walk may follow.
const MAX_LINKS: u32 = 40;

bitflags::bitflags! {
    /// How to look up.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct LookupFlags: u32 {
        /// Follow a symbolic link in the last place.
        const FOLLOW = 1;
        /// The result must be a directory.
        const DIRECTORY = 2;
        /// An empty path means the base itself (`AT_EMPTY_PATH`).
        const EMPTY = 4;
        /// `RESOLVE_NO_XDEV`
        const NO_XDEV = 0x100;
        /// `RESOLVE_NO_MAGICLINKS`
        const NO_MAGICLINKS = 0x200;
        /// `RESOLVE_NO_SYMLINKS`
        const NO_SYMLINKS = 0x400;
        /// `RESOLVE_BENEATH`
        const BENEATH = 0x800;
        /// `RESOLVE_IN_ROOT`
        const IN_ROOT = 0x1000;
        /// `RESOLVE_CACHED`
        const CACHED = 0x2000;
    }
}

impl LookupFlags {
    /// The flags of `openat2(2)`'s `resolve`; `EINVAL` for unknown ones and for both `BENEATH` and `IN_ROOT`.
    pub fn from_resolve(resolve: u64) -> Result<Self> {
        if resolve & !0x3f != 0 || resolve & 0x18 == 0x18 {
            return Err(Errno::EINVAL);
        }
        Ok(u32::try_from(resolve << 8).map_or(Self::empty(), Self::from_bits_truncate))
    }
}

/// Who walks, and from where.
#[derive(Clone, Copy)]
pub struct PathCx<'a> {
    pub ns: &'a MountNamespace,
    pub root: &'a Location,
    pub cwd: &'a Location,
    /// Bits that new objects do not get.
    pub umask: u32,
    /// Whose permissions count: not always `caller`'s own (`access(2)`).
    pub creds: &'a Credentials,
    pub caller: &'a dyn Caller,
}

impl core::fmt::Debug for PathCx<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "PathCx(cwd {:?})", self.cwd.dentry)
    }
}

/// The directory and name that a path's last component stands for.
#[derive(Debug)]
pub struct Parent {
    pub dir: Location,
    pub last: Last,
    /// The path ended in a slash: only a directory will do.
    pub trailing_slash: bool,
}

/// The last component of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Last {
    Name(Vec<u8>),
    Dot,
    DotDot,
    /// `/`, or the end of a magic link: the directory of the [`Parent`] is the object itself.
    Here,
}

impl<'a> PathCx<'a> {
    pub fn new(
        ns: &'a MountNamespace,
        fs: &'a FsContextView,
        creds: &'a Credentials,
        caller: &'a dyn Caller,
    ) -> Self {
        Self { ns, root: &fs.root, cwd: &fs.cwd, umask: fs.umask, creds, caller }
    }

    /// Looks a path up, relative to `base` (the working directory if `None`).
    pub fn lookup(&self, base: Option<&Location>, path: &[u8], flags: LookupFlags) -> Result<Location> {
        let mut walk = Walk::start(self, base, path, flags)?;
        loop {
            match walk.walk_to_last()? {
                Step::Here => {}
                Step::Dots(up) => walk.dots(up)?,
                Step::Name(name) => {
                    let child = walk.child(&name)?.ok_or(Errno::ENOENT)?;
                    if child.inode().kind() == FileKind::Symlink
                        && (walk.trailing_slash || flags.contains(LookupFlags::FOLLOW))
                    {
                        walk.follow(&child)?;
                        continue;
                    }
                    walk.at = child;
                }
            }
            if (walk.trailing_slash || flags.contains(LookupFlags::DIRECTORY)) && !walk.at.is_dir() {
                return Err(Errno::ENOTDIR);
            }
            return Ok(walk.at);
        }
    }

    /// Looks up all but the last component, for a call that makes, removes or renames it.
    pub fn lookup_parent(&self, base: Option<&Location>, path: &[u8], flags: LookupFlags) -> Result<Parent> {
        let mut walk = Walk::start(self, base, path, flags)?;
        let last = match walk.walk_to_last()? {
            Step::Here => Last::Here,
            Step::Dots(false) => Last::Dot,
            Step::Dots(true) => Last::DotDot,
            Step::Name(name) => {
                if !walk.at.is_dir() {
                    return Err(Errno::ENOTDIR);
                }
                let name = walk.path.get(name).unwrap_or_default().to_vec();
                if name.len() > NAME_MAX {
                    return Err(Errno::ENAMETOOLONG);
                }
                Last::Name(name)
            }
        };
        Ok(Parent { dir: walk.at, last, trailing_slash: walk.trailing_slash })
    }

    /// Whether the walker's credentials allow `want` at this place.
    pub fn check(&self, at: &Location, want: Access) -> Result<()> {
        check_location(at, want, self.creds, self.caller)
    }
}

/// What a walk has come to.
pub(crate) enum Step {
    /// The path is used up.
    Here,
    /// The last component is `.` or, if true, `..`.
    Dots(bool),
    /// The last component: a range of the path.
    Name(Range<usize>),
}

/// A walk under way.
pub(crate) struct Walk<'c, 'a> {
    cx: &'c PathCx<'a>,
    flags: LookupFlags,
    /// What `/` means and `..` does not pass.
    root: &'c Location,
    pub(crate) at: Location,
    pub(crate) path: Cow<'c, [u8]>,
    pos: usize,
    pub(crate) trailing_slash: bool,
    links: u32,
    prefetched: bool,
}

impl<'c, 'a> Walk<'c, 'a> {
    pub(crate) fn start(
        cx: &'c PathCx<'a>,
        base: Option<&'c Location>,
        path: &'c [u8],
        flags: LookupFlags,
    ) -> Result<Self> {
        if path.len() >= PATH_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        if path.is_empty() && !flags.contains(LookupFlags::EMPTY) {
            return Err(Errno::ENOENT);
        }
        let base = base.unwrap_or(cx.cwd);
        let confined = flags.intersects(LookupFlags::BENEATH | LookupFlags::IN_ROOT);
        let root = if confined { base } else { cx.root };
        let at = if path.first() == Some(&b'/') {
            if flags.contains(LookupFlags::BENEATH) {
                return Err(Errno::EXDEV);
            }
            if flags.contains(LookupFlags::NO_XDEV) && !Arc::ptr_eq(&root.mount, &base.mount) {
                return Err(Errno::EXDEV);
            }
            root
        } else {
            base
        };
        Ok(Self {
            cx,
            flags,
            root,
            at: at.clone(),
            path: Cow::Borrowed(path),
            pos: 0,
            trailing_slash: false,
            links: 0,
            prefetched: false,
        })
    }

    /// The next component from `self.pos` on, and where the one after it begins.
    fn next(&self) -> Option<(Range<usize>, usize)> {
        let rest = self.path.get(self.pos..)?;
        let start = self.pos + rest.iter().position(|b| *b != b'/')?;
        let name = self.path.get(start..)?;
        let end = start + name.iter().position(|b| *b == b'/').unwrap_or(name.len());
        let tail = self.path.get(end..)?;
        let next = end + tail.iter().position(|b| *b != b'/').unwrap_or(tail.len());
        Some((start..end, next))
    }

    fn component(&self, range: &Range<usize>) -> &[u8] {
        self.path.get(range.clone()).unwrap_or_default()
    }

    /// Walks up to the last component.
    pub(crate) fn walk_to_last(&mut self) -> Result<Step> {
        loop {
            let Some((range, next)) = self.next() else {
                return Ok(Step::Here);
            };
            if !self.at.is_dir() {
                return Err(Errno::ENOTDIR);
            }
            check_inode(&**self.at.inode(), Access::EXEC, self.cx.creds, self.cx.caller)?;
            let end = range.end;
            self.pos = next;
            let dots = match self.component(&range) {
                b"." => Some(false),
                b".." => Some(true),
                _ => None,
            };
            if next == self.path.len() {
                self.trailing_slash = next > end;
                return Ok(dots.map_or(Step::Name(range), Step::Dots));
            }
            if let Some(up) = dots {
                self.dots(up)?;
                continue;
            }
            let child = self.child(&range)?.ok_or(Errno::ENOENT)?;
            match child.inode().kind() {
                FileKind::Directory => self.at = child,
                FileKind::Symlink => self.follow(&child)?,
                _ => return Err(Errno::ENOTDIR),
            }
        }
    }

    /// `.` or, with `up`, `..`.
    pub(crate) fn dots(&mut self, up: bool) -> Result<()> {
        if !up {
            return Ok(());
        }
        loop {
            if self.at == *self.root {
                return if self.flags.contains(LookupFlags::BENEATH) { Err(Errno::EXDEV) } else { Ok(()) };
            }
            if !self.at.is_mount_root() {
                break;
            }
            match self.at.mount.point() {
                Some(_) if self.flags.contains(LookupFlags::NO_XDEV) => return Err(Errno::EXDEV),
                Some(point) => self.at = point,
                None => return Ok(()),
            }
        }
        if let Some(parent) = self.at.dentry.parent() {
            self.at.dentry = parent;
        }
        self.cross_down()
    }

    fn cross_down(&mut self) -> Result<()> {
        if self.at.dentry.is_mountpoint()
            && self.cx.ns.follow_mounts(&mut self.at)
            && self.flags.contains(LookupFlags::NO_XDEV)
        {
            return Err(Errno::EXDEV);
        }
        Ok(())
    }

    /// The child of the present directory, across mounts; `None` where there is none.
    pub(crate) fn child(&mut self, range: &Range<usize>) -> Result<Option<Location>> {
        let Some(dentry) = self.child_dentry(range)? else { return Ok(None) };
        let mut child = Location { mount: Arc::clone(&self.at.mount), dentry };
        if child.dentry.is_mountpoint()
            && self.cx.ns.follow_mounts(&mut child)
            && self.flags.contains(LookupFlags::NO_XDEV)
        {
            return Err(Errno::EXDEV);
        }
        Ok(Some(child))
    }

    fn child_dentry(&mut self, range: &Range<usize>) -> Result<Option<Arc<Dentry>>> {
        let volatile = self.at.inode().volatile_names();
        let name = self.component(range);
        if !volatile {
            match self.at.dentry.known(name) {
                Known::Present(dentry) => return Ok(Some(dentry)),
                Known::Absent => return Ok(None),
                Known::Unknown => {}
            }
        }
        if name.len() > NAME_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        if self.flags.contains(LookupFlags::CACHED) {
            return Err(Errno::EAGAIN);
        }
        if !self.prefetched {
            self.prefetched = true;
            self.prefetch(range);
        }
        self.at.mount.superblock().lookup(&self.at.dentry, self.component(range))
    }

    /// Tells the file system of all the names from `range` on.
    fn prefetch(&self, range: &Range<usize>) {
        if self.pos >= self.path.len() {
            return;
        }
        let mut names = vec![self.component(range)];
        names.extend(
            self.path
                .get(self.pos..)
                .unwrap_or_default()
                .split(|b| *b == b'/')
                .filter(|n| !n.is_empty() && *n != b".")
                .take_while(|n| *n != b".." && n.len() <= NAME_MAX),
        );
        if names.len() > 1 {
            self.at.inode().prefetch(&names);
        }
    }

    /// The open file without a place that `link`, the last name of the path, leads to.
    pub(crate) fn placeless(&self, link: &Location) -> Option<Arc<crate::FileDescription>> {
        let restricted = LookupFlags::NO_MAGICLINKS
            | LookupFlags::NO_SYMLINKS
            | LookupFlags::BENEATH
            | LookupFlags::IN_ROOT
            | LookupFlags::NO_XDEV;
        if self.flags.intersects(restricted) {
            return None;
        }
        link.inode().magic_file(self.cx.caller)
    }

    /// Goes on at the target of `link`, a child of the present directory.
    pub(crate) fn follow(&mut self, link: &Location) -> Result<()> {
        self.links += 1;
        if self.links > MAX_LINKS
            || self.flags.contains(LookupFlags::NO_SYMLINKS)
            || link.mount.flags().contains(MountFlags::NOSYMFOLLOW)
        {
            return Err(Errno::ELOOP);
        }
        self.prefetched = false;
        let inode = link.inode();
        if let Some(target) = inode.magic_link(self.cx.caller) {
            if self.flags.contains(LookupFlags::NO_MAGICLINKS) {
                return Err(Errno::ELOOP);
            }
            let target = target?;
            if self.flags.intersects(LookupFlags::BENEATH | LookupFlags::IN_ROOT) {
                return Err(Errno::EXDEV);
            }
            if self.flags.contains(LookupFlags::NO_XDEV) && !Arc::ptr_eq(&target.mount, &self.at.mount) {
                return Err(Errno::EXDEV);
            }
            self.at = target;
            return Ok(());
        }
        let mut path = inode.readlink(self.cx.caller)?;
        match path.first() {
            None => return Err(Errno::ENOENT),
            Some(b'/') => {
                if self.flags.contains(LookupFlags::BENEATH) {
                    return Err(Errno::EXDEV);
                }
                if self.flags.contains(LookupFlags::NO_XDEV) && !Arc::ptr_eq(&self.root.mount, &self.at.mount)
                {
                    return Err(Errno::EXDEV);
                }
                self.at = self.root.clone();
            }
            Some(_) => {}
        }
        let rest = self.path.get(self.pos..).unwrap_or_default();
        if !rest.is_empty() || self.trailing_slash {
            path.push(b'/');
            path.extend_from_slice(rest);
        }
        self.path = Cow::Owned(path);
        self.pos = 0;
        self.trailing_slash = false;
        Ok(())
    }
}
