//! Files of one directory that are opened together: a program that reads one after the other asks the gofer once for several.
//!
//! Which ones those are depends on whether it goes by the listing or by the names, as a shell's patterns do; how many, on what
//! became of those before: a directory whose files are wanted here and there is asked for few that nobody wants.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use gofer_protocol::{DecodeError, MAX_TOGETHER, Path, Request, WireAttr};
use sentry_base::{Errno, Result};

use super::GoferInode;
use crate::GoferFs;
use crate::dir::Known;

/// What a directory has seen of files that were opened with others.
#[derive(Debug, Default)]
pub(crate) struct Ahead {
    /// Requests for a single file so far, up to [`Self::BEFORE`].
    single: usize,
    /// How many came with the last request, and how many of all have been wanted since.
    given: usize,
    wanted: usize,
    /// The file of the last request.
    last: Option<Arc<[u8]>>,
}

impl Ahead {
    /// Files that are asked for one by one before others come with them.
    const BEFORE: usize = 2;
    const MOST: usize = MAX_TOGETHER - 1;

    /// How many the next request may bring along.
    fn next(&mut self) -> usize {
        if self.single < Self::BEFORE {
            self.single += 1;
            return 0;
        }
        let width = match self.given {
            0 => 3,
            given if self.wanted * 2 >= given => (given * 2 + 1).min(Self::MOST),
            given => given / 2,
        };
        if width == 0 {
            self.single = 0;
        }
        (self.given, self.wanted) = (width, 0);
        width
    }
}

/// A file of an answer: its place among the names, what it is, and itself.
type Opened = (u64, WireAttr, OwnedFd);

impl GoferInode {
    /// A file that came with another one's is wanted.
    pub(super) fn was_of_use(&self) {
        let parent = self.state.lock().places.first().map(|place| Arc::clone(&place.parent));
        if let Some(parent) = parent {
            parent.dir.lock().ahead.wanted += 1;
        }
    }

    /// Opens this file for reading, and others of its directory that are likely to be next. `None` where that is not worth it,
    /// or nothing is certain.
    pub(super) fn open_together(&self, fs: &GoferFs) -> Result<Option<Arc<OwnedFd>>> {
        // What another may replace on the host meanwhile is opened when it is wanted.
        if fs.options.shared {
            return Ok(None);
        }
        let _tree = fs.tree.read();
        let place = self.state.lock().places.first().map(|p| (Arc::clone(&p.parent), Arc::clone(&p.name)));
        let Some((parent, name)) = place else { return Ok(None) };
        let others = {
            let mut dir = parent.dir.lock();
            let width = dir.ahead.next();
            let last = dir.ahead.last.replace(Arc::clone(&name));
            let others = dir.files_after(&name, last.as_deref(), width);
            dir.ahead.given = others.len();
            others
        };
        if others.is_empty() {
            return Ok(None);
        }
        let names: Vec<&[u8]> = std::iter::once(&*name).chain(others.iter().map(|name| &**name)).collect();
        let joined = names.join(&b'/');
        let at = parent.locate(fs)?;
        let request =
            Request::OpenTogether { at: at.at()?, names: Path::new(&joined).map_err(|_| Errno::EINVAL)? };
        let opened = fs.session.call(&request, |reply| {
            let mut opened: Vec<Opened> = Vec::new();
            for file in reply.files.drain(..) {
                let entry = reply.body.entry()?.ok_or(DecodeError::Short)?;
                opened.push((entry.cookie, entry.attr, file));
            }
            Ok(opened)
        })?;
        let mut mine = None;
        for (cookie, attr, file) in opened {
            let host = (attr.dev, attr.ino);
            match usize::try_from(cookie).ok().and_then(|n| names.get(n).map(|name| (n, *name))) {
                Some((0, _)) if host == self.host => mine = Some(Arc::new(file)),
                Some((0, _)) | None => {}
                Some((_, name)) => parent.keep_ahead(fs, name, host, file),
            }
        }
        Ok(mine)
    }

    /// Keeps a child's file until it is wanted, or has waited for too long among the idle ones.
    fn keep_ahead(&self, fs: &GoferFs, name: &[u8], host: (u64, u64), file: OwnedFd) {
        let known = self.dir.lock().known(name, |_| true);
        let child = match known {
            Known::Live(child) => child,
            Known::Seed(seed) => {
                let Ok(child) = self.adopt(fs, name, &seed) else { return };
                // Nothing else holds it until a walk comes for it.
                fs.remember(Arc::clone(&child));
                child
            }
            Known::Absent | Known::Unknown => return,
        };
        if child.host != host {
            return;
        }
        let enters = {
            let mut state = child.state.lock();
            if state.has_host_file() {
                return;
            }
            state.read = Some(Arc::new(file));
            state.is_ahead = true;
            state.enters_queue()
        };
        if enters {
            fs.now_idle(&child);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_come_along_as_long_as_they_are_wanted() {
        let mut ahead = Ahead::default();
        let mut asked = |wanted: fn(usize) -> usize| {
            let width = ahead.next();
            ahead.wanted = wanted(width);
            width
        };
        assert_eq!([(); 6].map(|()| asked(|width| width)), [0, 0, 3, 7, 15, 15]);
        // Nobody wants them: few, then none for a while.
        assert_eq!([(); 8].map(|()| asked(|_| 0)), [15, 7, 3, 1, 0, 0, 0, 3]);
    }
}
