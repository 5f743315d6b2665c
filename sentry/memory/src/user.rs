//! Copies between the Sentry and an application, and the cursors that read and write calls move along.

use sentry_base::{Errno, Result};

/// Application memory as the kernel sees it. An implementation resolves faults that Linux would resolve (a page not
/// yet present) before it gives up with `EFAULT`.
pub trait UserMemory: Send + Sync {
    /// Copies in from `addr`; returns the bytes copied before the first bad page, `EFAULT` when that is none.
    fn copy_in_partial(&self, addr: u64, dst: &mut [u8]) -> Result<usize>;
    /// Copies out to `addr`, under the same rule.
    fn copy_out_partial(&self, addr: u64, src: &[u8]) -> Result<usize>;

    /// Copies in all of `dst` or fails with `EFAULT`.
    fn copy_in(&self, addr: u64, dst: &mut [u8]) -> Result<()> {
        if dst.is_empty() {
            return Ok(());
        }
        let len = dst.len();
        if self.copy_in_partial(addr, dst)? == len { Ok(()) } else { Err(Errno::EFAULT) }
    }

    /// Copies out all of `src` or fails with `EFAULT`; the part before the bad page may have been written.
    fn copy_out(&self, addr: u64, src: &[u8]) -> Result<()> {
        if src.is_empty() || self.copy_out_partial(addr, src)? == src.len() {
            Ok(())
        } else {
            Err(Errno::EFAULT)
        }
    }
}

/// Reads a NUL-terminated string of at most `max` bytes (the NUL included); `too_long` when there is no NUL by then.
pub fn copy_in_cstr(mem: &dyn UserMemory, addr: u64, max: usize, too_long: Errno) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    let mut at = addr;
    while out.len() < max {
        // Never past a page's end, so that a string just before an unmapped page is read whole.
        let to_page_end = 4096 - usize::try_from(at % 4096).unwrap_or(0);
        let want = to_page_end.min(max - out.len()).min(256);
        let mut chunk = [0_u8; 256];
        let chunk = chunk.get_mut(..want).ok_or(Errno::EFAULT)?;
        let got = mem.copy_in_partial(at, chunk)?;
        let got = chunk.get(..got).ok_or(Errno::EFAULT)?;
        if let Some(end) = got.iter().position(|b| *b == 0) {
            out.extend_from_slice(got.get(..end).unwrap_or_default());
            return Ok(out);
        }
        out.extend_from_slice(got);
        if got.len() < want {
            return Err(Errno::EFAULT);
        }
        at = at.checked_add(want as u64).ok_or(Errno::EFAULT)?;
    }
    Err(too_long)
}

/// One segment of a vectored transfer (`struct iovec`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct IoSeg {
    pub addr: u64,
    pub len: u64,
}

enum Target<'a> {
    User { mem: &'a dyn UserMemory, segs: &'a [IoSeg] },
    Buffer(&'a mut [u8]),
}

/// Where the bytes of a read go: application segments, or a buffer of the Sentry.
pub struct UserWriter<'a> {
    target: Target<'a>,
    /// Bytes of the current segment already used, or of the buffer.
    used: usize,
    done: usize,
    total: usize,
}

impl core::fmt::Debug for UserWriter<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "UserWriter({} of {})", self.done, self.total)
    }
}

fn seg_total(segs: &[IoSeg]) -> usize {
    segs.iter().fold(0_usize, |sum, s| sum.saturating_add(usize::try_from(s.len).unwrap_or(usize::MAX)))
}

/// The largest piece that goes through a bounce buffer at once.
const BOUNCE: usize = 64 * 1024;

impl<'a> UserWriter<'a> {
    pub fn user(mem: &'a dyn UserMemory, segs: &'a [IoSeg]) -> Self {
        Self { target: Target::User { mem, segs }, used: 0, done: 0, total: seg_total(segs) }
    }

    pub fn buffer(buf: &'a mut [u8]) -> Self {
        let total = buf.len();
        Self { target: Target::Buffer(buf), used: 0, done: 0, total }
    }

    /// Bytes that still fit.
    pub fn remaining(&self) -> usize {
        self.total - self.done
    }

    /// Bytes written so far.
    pub fn written(&self) -> usize {
        self.done
    }

    /// Writes as much of `src` as fits. Returns the bytes written before a bad page; `EFAULT` if that is none of a
    /// non-empty write.
    pub fn write(&mut self, mut src: &[u8]) -> Result<usize> {
        let mut moved = 0;
        while !src.is_empty() && self.remaining() > 0 {
            let n = match &mut self.target {
                Target::Buffer(buf) => {
                    let rest = buf.get_mut(self.used..).unwrap_or_default();
                    let n = rest.len().min(src.len());
                    if let (Some(to), Some(from)) = (rest.get_mut(..n), src.get(..n)) {
                        to.copy_from_slice(from);
                    }
                    self.used += n;
                    n
                }
                Target::User { mem, segs } => {
                    let Some(seg) = segs.first() else { break };
                    let left = usize::try_from(seg.len).unwrap_or(usize::MAX).saturating_sub(self.used);
                    if left == 0 {
                        *segs = segs.get(1..).unwrap_or_default();
                        self.used = 0;
                        continue;
                    }
                    let want = left.min(src.len());
                    let part = src.get(..want).unwrap_or_default();
                    let at = seg.addr.wrapping_add(self.used as u64);
                    match mem.copy_out_partial(at, part) {
                        Ok(n) => {
                            self.used += n;
                            if n < want {
                                self.done += n;
                                return Ok(moved + n);
                            }
                            n
                        }
                        Err(_) if moved > 0 => return Ok(moved),
                        Err(e) => return Err(e),
                    }
                }
            };
            self.done += n;
            moved += n;
            src = src.get(n..).unwrap_or_default();
        }
        Ok(moved)
    }

    /// Lets `source` fill buffers of at most 64 KiB until it gives less than asked, then `limit` or the target is
    /// reached. Returns the bytes written. An error after the first byte is dropped, as a read's is.
    pub fn fill(
        &mut self,
        limit: usize,
        mut source: impl FnMut(&mut [u8], usize) -> Result<usize>,
    ) -> Result<usize> {
        let mut total = 0;
        if let Target::Buffer(buf) = &mut self.target {
            let rest = buf.get_mut(self.used..).unwrap_or_default();
            let want = rest.len().min(limit);
            while total < want {
                let Some(part) = rest.get_mut(total..want) else { break };
                match source(part, total) {
                    Ok(0) => break,
                    Ok(n) => total += n,
                    Err(e) if total == 0 => return Err(e),
                    Err(_) => break,
                }
            }
            self.used += total;
            self.done += total;
            return Ok(total);
        }
        let mut bounce = vec![0_u8; self.remaining().min(limit).min(BOUNCE)];
        while total < limit && self.remaining() > 0 {
            let want = self.remaining().min(limit - total).min(BOUNCE);
            let Some(part) = bounce.get_mut(..want) else { break };
            let got = match source(part, total) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) if total == 0 => return Err(e),
                Err(_) => break,
            };
            match self.write(part.get(..got).unwrap_or_default()) {
                Ok(n) => {
                    total += n;
                    if n < got {
                        break;
                    }
                }
                Err(e) if total == 0 => return Err(e),
                Err(_) => break,
            }
            if got < want {
                break;
            }
        }
        Ok(total)
    }
}

#[derive(Clone, Copy)]
enum Source<'a> {
    User { mem: &'a dyn UserMemory, segs: &'a [IoSeg] },
    Buffer(&'a [u8]),
}

/// Where the bytes of a write come from. A clone is a second cursor at the same place: for looking before taking.
#[derive(Clone)]
pub struct UserReader<'a> {
    source: Source<'a>,
    used: usize,
    done: usize,
    total: usize,
}

impl core::fmt::Debug for UserReader<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "UserReader({} of {})", self.done, self.total)
    }
}

impl<'a> UserReader<'a> {
    pub fn user(mem: &'a dyn UserMemory, segs: &'a [IoSeg]) -> Self {
        Self { source: Source::User { mem, segs }, used: 0, done: 0, total: seg_total(segs) }
    }

    pub fn buffer(buf: &'a [u8]) -> Self {
        Self { source: Source::Buffer(buf), used: 0, done: 0, total: buf.len() }
    }

    /// Bytes not yet taken.
    pub fn remaining(&self) -> usize {
        self.total - self.done
    }

    /// Bytes taken so far.
    pub fn taken(&self) -> usize {
        self.done
    }

    /// Moves past up to `n` bytes without looking at them; returns how many.
    pub fn skip(&mut self, n: usize) -> usize {
        let mut left = n.min(self.remaining());
        let moved = left;
        self.done += moved;
        match &mut self.source {
            Source::Buffer(_) => self.used += moved,
            Source::User { segs, .. } => {
                while let Some(seg) = segs.first() {
                    let rest = usize::try_from(seg.len).unwrap_or(usize::MAX).saturating_sub(self.used);
                    if left < rest {
                        self.used += left;
                        break;
                    }
                    left -= rest;
                    *segs = segs.get(1..).unwrap_or_default();
                    self.used = 0;
                }
            }
        }
        moved
    }

    /// Copies up to `dst.len()` bytes out of the source and moves past them: take no more than can be stored. Returns the bytes copied before a bad
    /// page; `EFAULT` if that is none of a non-empty copy.
    pub fn read(&mut self, dst: &mut [u8]) -> Result<usize> {
        let mut moved = 0;
        while moved < dst.len() && self.remaining() > 0 {
            let Some(to) = dst.get_mut(moved..) else { break };
            let n = match &mut self.source {
                Source::Buffer(buf) => {
                    let rest = buf.get(self.used..).unwrap_or_default();
                    let n = rest.len().min(to.len());
                    if let (Some(to), Some(from)) = (to.get_mut(..n), rest.get(..n)) {
                        to.copy_from_slice(from);
                    }
                    self.used += n;
                    n
                }
                Source::User { mem, segs } => {
                    let Some(seg) = segs.first() else { break };
                    let left = usize::try_from(seg.len).unwrap_or(usize::MAX).saturating_sub(self.used);
                    if left == 0 {
                        *segs = segs.get(1..).unwrap_or_default();
                        self.used = 0;
                        continue;
                    }
                    let want = left.min(to.len());
                    let Some(part) = to.get_mut(..want) else { break };
                    let at = seg.addr.wrapping_add(self.used as u64);
                    match mem.copy_in_partial(at, part) {
                        Ok(n) => {
                            self.used += n;
                            if n < want {
                                self.done += n;
                                return Ok(moved + n);
                            }
                            n
                        }
                        Err(_) if moved > 0 => return Ok(moved),
                        Err(e) => return Err(e),
                    }
                }
            };
            self.done += n;
            moved += n;
        }
        Ok(moved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 8,192 bytes of memory at address 0x1000.
    struct Flat(std::sync::Mutex<Vec<u8>>);

    impl UserMemory for Flat {
        fn copy_in_partial(&self, addr: u64, dst: &mut [u8]) -> Result<usize> {
            let mem = self.0.lock().unwrap();
            let at = usize::try_from(addr.checked_sub(0x1000).ok_or(Errno::EFAULT)?).unwrap();
            let rest = mem.get(at..).filter(|r| !r.is_empty()).ok_or(Errno::EFAULT)?;
            let n = rest.len().min(dst.len());
            dst[..n].copy_from_slice(&rest[..n]);
            Ok(n)
        }
        fn copy_out_partial(&self, addr: u64, src: &[u8]) -> Result<usize> {
            let mut mem = self.0.lock().unwrap();
            let at = usize::try_from(addr.checked_sub(0x1000).ok_or(Errno::EFAULT)?).unwrap();
            let rest = mem.get_mut(at..).filter(|r| !r.is_empty()).ok_or(Errno::EFAULT)?;
            let n = rest.len().min(src.len());
            rest[..n].copy_from_slice(&src[..n]);
            Ok(n)
        }
    }

    #[test]
    fn segments_are_walked_and_faults_give_partial_counts() {
        let mem = Flat(std::sync::Mutex::new(vec![0; 8192]));
        let segs = [
            IoSeg { addr: 0x1000, len: 3 },
            IoSeg { addr: 0, len: 0 },
            IoSeg { addr: 0x1000 + 8190, len: 10 },
        ];
        let mut w = UserWriter::user(&mem, &segs);
        assert_eq!(w.remaining(), 13);
        assert_eq!(w.write(b"abcdefgh").unwrap(), 5);
        assert_eq!(w.write(b"x"), Err(Errno::EFAULT));
        let mut r = UserReader::user(&mem, &segs);
        let mut buf = [0; 16];
        assert_eq!(r.read(&mut buf).unwrap(), 5);
        assert_eq!(&buf[..5], b"abcde");
        let mut r = UserReader::user(&mem, &segs);
        assert_eq!(r.skip(4), 4);
        assert_eq!(r.read(&mut buf[..1]).unwrap(), 1);
        assert_eq!(buf[0], b'e');
    }

    #[test]
    fn strings_end_at_a_nul_or_fail() {
        let mem = Flat(std::sync::Mutex::new(vec![b'x'; 8192]));
        mem.copy_out(0x1000 + 300, b"\0").unwrap();
        assert_eq!(copy_in_cstr(&mem, 0x1000, 4096, Errno::ENAMETOOLONG).unwrap().len(), 300);
        assert_eq!(copy_in_cstr(&mem, 0x1000, 300, Errno::ENAMETOOLONG), Err(Errno::ENAMETOOLONG));
        assert_eq!(copy_in_cstr(&mem, 0x1000 + 8000, 4096, Errno::ENAMETOOLONG), Err(Errno::EFAULT));
    }

    #[test]
    fn fill_stops_at_a_short_source() {
        let mut out = [0; 10];
        let mut w = UserWriter::buffer(&mut out);
        let n = w
            .fill(100, |buf, at| {
                let n = buf.len().min(6_usize.saturating_sub(at));
                buf[..n].fill(7);
                Ok(n)
            })
            .unwrap();
        assert_eq!(n, 6);
        assert_eq!(w.remaining(), 4);
    }
}
