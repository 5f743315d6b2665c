//! Files of one directory that are opened together: a program that reads one after the other asks the gofer once for several.
//!
//! Which ones those are depends on whether it goes by the listing or by the names, as a shell's patterns do; how many, on what
//! became of those before: a directory whose files are wanted here and there is asked for few that nobody wants.
//!
//! Once half of them have been wanted the gofer is asked for the next ones, and opens them while the program does its work.
//! So it is for the first ones of a directory that is listed, where what was opened ahead before was wanted. One request of a
//! file system is under way so; who wants a file, and finds that it is not here, takes in the answer first.
//!
//! **Names that move meanwhile.** No lock is held between the question and the answer, so a name may stand for another file
//! when the gofer comes to it. An answer says which file each one is, and holds it open, so that its number belongs to no
//! other: it is taken for the file that the sandbox knows under that name, or closed. Whoever takes a name away lets nothing
//! be under way before.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};

use gofer_protocol::{DecodeError, MAX_TOGETHER, Path, Request, WireAttr};
use sentry_base::{Errno, Result};

use super::GoferInode;
use crate::GoferFs;
use crate::dir::Known;
use crate::session::{Answer, Broken, Ticket};

type FileName = Arc<[u8]>;

/// What a directory has seen of files that were opened with others.
#[derive(Debug, Default)]
pub(crate) struct Ahead {
    /// Requests for a single file so far, up to [`Self::BEFORE`].
    single: usize,
    /// How many came with the last request, and how many of all have been wanted since.
    given: usize,
    wanted: usize,
    /// The file of the last request.
    last: Option<FileName>,
    /// The last of the files that came: what is next comes after it, by name or in the listing.
    edge: Option<FileName>,
    by_name: bool,
    /// A program has listed the directory.
    is_listed: bool,
}

impl Ahead {
    /// Files that are asked for one by one before others come with them, unless some came already and were wanted.
    const BEFORE: usize = 2;
    const MOST: usize = MAX_TOGETHER - 1;

    /// How many the next request may bring along.
    fn next(&mut self) -> usize {
        let goes_well = self.wanted > 0 && self.is_wanted();
        if self.single < Self::BEFORE && !goes_well {
            self.single += 1;
            return 0;
        }
        let width = match self.given {
            0 => 3,
            given if self.is_wanted() => (given * 2 + 1).min(Self::MOST),
            given => given / 2,
        };
        if width == 0 {
            self.single = 0;
        }
        (self.given, self.wanted) = (width, 0);
        width
    }

    /// Those that came are asked for.
    fn came(&mut self, names: &[FileName]) {
        (self.given, self.wanted) = (names.len(), 0);
        self.edge = names.last().cloned();
    }

    fn is_wanted(&self) -> bool {
        self.wanted * 2 >= self.given
    }

    /// Where the next request goes on, and for how many files, if it is to be sent before one is wanted: once for those
    /// that came.
    fn goes_on(&mut self) -> Option<(FileName, usize)> {
        let edge = if self.is_wanted() { self.edge.take() } else { None };
        edge.map(|edge| (edge, (self.given * 2 + 1).min(MAX_TOGETHER)))
    }
}

/// What a file system has asked for before anyone wanted it, and what it may ask for.
#[derive(Debug, Default)]
pub(crate) struct Foretold {
    pub asked: Option<Asked>,
    /// How many files of listed directories may be asked for: it takes wanted ones to have unwanted ones.
    pub earned: usize,
}

impl Foretold {
    /// What a wanted file earns.
    const FOR_EACH: usize = 2;
    /// A request in vain, and a smaller one.
    const MOST: usize = MAX_TOGETHER + MAX_TOGETHER / 2;

    /// A file is wanted, of a directory that a program listed or not. Whether nothing is under way.
    fn earn(&mut self, is_listed: bool) -> bool {
        if is_listed {
            self.earned = (self.earned + Self::FOR_EACH).min(Self::MOST);
        }
        self.asked.is_none()
    }
}

/// A request that is under way.
#[derive(Debug)]
pub(crate) struct Asked {
    ticket: Ticket,
    dir: Weak<GoferInode>,
    names: Vec<FileName>,
}

/// A file of an answer: its place among the names, what it is, and itself.
type Opened = (u64, WireAttr, OwnedFd);

fn files_of(reply: &mut Answer<'_>) -> core::result::Result<Vec<Opened>, Broken> {
    let mut opened = Vec::new();
    for file in reply.files.drain(..) {
        let entry = reply.body.entry()?.ok_or(DecodeError::Short)?;
        opened.push((entry.cookie, entry.attr, file));
    }
    Ok(opened)
}

impl GoferFs {
    /// Takes in what was asked for ahead. False if nothing was, or it failed; if the gofer is gone, the next call says so.
    pub(crate) fn take_in(&self) -> bool {
        let Some(asked) = self.foretold.lock().asked.take() else { return false };
        let Ok(opened) = self.session.collect(asked.ticket, files_of) else { return false };
        let Some(dir) = asked.dir.upgrade() else { return false };
        dir.dir.lock().ahead.came(&asked.names);
        for (cookie, attr, file) in opened {
            if let Some(name) = usize::try_from(cookie).ok().and_then(|n| asked.names.get(n)) {
                dir.keep_ahead(self, name, (attr.dev, attr.ino), file);
            }
        }
        true
    }
}

impl Drop for GoferFs {
    fn drop(&mut self) {
        if let Some(asked) = self.foretold.get_mut().asked.take() {
            self.session.forget(asked.ticket);
        }
    }
}

impl GoferInode {
    /// A file that came with another one's is wanted.
    pub(super) fn was_of_use(&self, fs: &GoferFs) {
        let parent = self.state.lock().places.first().map(|place| Arc::clone(&place.parent));
        let Some(parent) = parent else { return };
        let next = {
            let mut dir = parent.dir.lock();
            dir.ahead.wanted += 1;
            let is_free = fs.foretold.lock().earn(dir.ahead.is_listed);
            let place = if is_free { dir.ahead.goes_on() } else { None };
            place.map(|(edge, width)| dir.files_after(&edge, dir.ahead.by_name, width))
        };
        if let Some(names) = next {
            parent.ask_ahead(fs, names);
        }
    }

    /// This directory is listed from its start: asks for its first files where that has been worth it.
    pub(super) fn ask_listed(&self, fs: &GoferFs) {
        if fs.options.shared {
            return;
        }
        let earned = fs.foretold.lock().earned;
        if earned > 0 {
            fs.take_in();
        }
        let names = {
            let mut dir = self.dir.lock();
            dir.ahead.is_listed = true;
            if !dir.ahead.is_wanted() {
                return;
            }
            dir.ahead.by_name = false;
            dir.first_files(earned.min(MAX_TOGETHER))
        };
        let asked = names.len();
        if self.ask_ahead(fs, names) {
            let mut foretold = fs.foretold.lock();
            foretold.earned = foretold.earned.saturating_sub(asked);
        }
    }

    /// Has the gofer open files of this directory without waiting for them.
    fn ask_ahead(&self, fs: &GoferFs, names: Vec<FileName>) -> bool {
        if names.is_empty() {
            return false;
        }
        let joined = names.join(&b'/');
        let ticket = {
            let _tree = fs.tree.read();
            let Ok(place) = self.locate(fs) else { return false };
            let (Ok(at), Ok(names)) = (place.at(), Path::new(&joined)) else { return false };
            fs.session.ask(&Request::OpenTogether { at, names })
        };
        let Some(ticket) = ticket else { return false };
        // There was none: a session gives one ticket at a time.
        fs.foretold.lock().asked = Some(Asked { ticket, dir: Weak::clone(&self.this), names });
        true
    }

    /// Opens this file for reading, and others of its directory that are likely to be next. `None` where that is not worth it,
    /// or nothing is certain.
    pub(super) fn open_together(&self, fs: &GoferFs) -> Result<Option<Arc<OwnedFd>>> {
        // What another may replace on the host meanwhile is opened when it is wanted.
        if fs.options.shared {
            return Ok(None);
        }
        if fs.take_in()
            && let Some(file) = self.open_to_read(fs)
        {
            return Ok(Some(file));
        }
        let _tree = fs.tree.read();
        let place = self.state.lock().places.first().map(|p| (Arc::clone(&p.parent), Arc::clone(&p.name)));
        let Some((parent, name)) = place else { return Ok(None) };
        let others = {
            let mut dir = parent.dir.lock();
            fs.foretold.lock().earn(dir.ahead.is_listed);
            let width = dir.ahead.next();
            let last = dir.ahead.last.replace(Arc::clone(&name));
            dir.ahead.by_name = last.is_some_and(|last| dir.goes_by_name(&name, &last, width));
            let others = dir.files_after(&name, dir.ahead.by_name, width);
            dir.ahead.came(&others);
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
        let opened = fs.session.call(&request, files_of)?;
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
