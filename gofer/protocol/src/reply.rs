//! What the gofer answers.
//!
//! Every reply is a [`Header`] and a body of its kind. The receiver knows from its request what to expect and takes
//! the body apart with [`Reply`].

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::wire::{Reader, Writer};
use crate::{DecodeError, Fid, VERSION, WireAttr, WireStatFs};

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Header {
    /// 0 for success.
    errno: u32,
    /// Its meaning depends on the request: a fid, the errno at which a walk stopped, 1 at a listing's end.
    value: u32,
    /// Entries in the body.
    count: u32,
    /// How many descriptors come with the reply.
    descriptors: u32,
}

/// The first message of the gofer: it serves, or why it does not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hello {
    Ready { version: u32 },
    Failed { cause: String },
}

impl Hello {
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut w = Writer::new(out);
        match self {
            Self::Ready { version } => {
                w.fixed(&[0_u32, *version]);
                w.bytes(b"");
            }
            Self::Failed { cause } => {
                w.fixed(&[1_u32, VERSION]);
                let text = cause.as_bytes();
                w.bytes(text.get(..4096).unwrap_or(text));
            }
        }
    }

    pub fn decode(message: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader(message);
        let (failed, version) = (r.u32()?, r.u32()?);
        let text = r.bytes()?;
        r.end()?;
        Ok(match failed {
            0 => Self::Ready { version },
            _ => Self::Failed { cause: String::from_utf8_lossy(text).into_owned() },
        })
    }
}

/// A name with its attributes: an element of a walk (where the name is empty) or of a listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    pub name: &'a [u8],
    pub attr: WireAttr,
    /// Where a listing goes on after this entry.
    pub cookie: u64,
    /// The target of a symbolic link, else empty.
    pub target: &'a [u8],
}

/// Encodes one reply in place.
#[derive(Debug)]
pub struct ReplyWriter<'a> {
    w: Writer<'a>,
    head: Header,
}

impl<'a> ReplyWriter<'a> {
    /// Starts a reply in `out`, whose contents it replaces.
    pub fn new(out: &'a mut Vec<u8>) -> Self {
        let head = Header { errno: 0, value: 0, count: 0, descriptors: 0 };
        let mut w = Writer::new(out);
        w.fixed(&head);
        Self { w, head }
    }

    /// Sets the field whose meaning depends on the request.
    pub fn value(&mut self, value: u32) {
        self.head.value = value;
    }

    /// Announces the descriptors that go with the reply.
    pub fn descriptors(&mut self, count: usize) {
        self.head.descriptors = u32::try_from(count).unwrap_or(u32::MAX);
    }

    pub fn attr(&mut self, attr: &WireAttr) {
        self.w.fixed(attr);
    }

    pub fn stat_fs(&mut self, stat: &WireStatFs) {
        self.w.fixed(stat);
    }

    pub fn bytes(&mut self, bytes: &[u8]) {
        self.w.bytes(bytes);
    }

    /// Adds an entry; false, with nothing added, where it does not fit any more.
    #[must_use]
    pub fn entry(&mut self, entry: &Entry<'_>) -> bool {
        let need = size_of::<WireAttr>()
            + size_of::<u64>()
            + 2 * size_of::<u32>()
            + entry.name.len()
            + entry.target.len();
        if need > self.w.room() {
            return false;
        }
        self.w.fixed(&entry.cookie);
        self.w.fixed(&entry.attr);
        self.w.bytes(entry.name);
        self.w.bytes(entry.target);
        self.head.count += 1;
        true
    }

    /// Ends a success.
    pub fn finish(self) {
        if self.w.overflow {
            Self::fail_into(self.w.out, libc::EOVERFLOW);
        } else if let Some(head) = self.w.out.get_mut(..size_of::<Header>()) {
            head.copy_from_slice(self.head.as_bytes());
        }
    }

    /// Ends with an error instead; what was written is dropped.
    pub fn fail(self, errno: i32) {
        Self::fail_into(self.w.out, errno);
    }

    fn fail_into(out: &mut Vec<u8>, errno: i32) {
        let errno = u32::try_from(errno).ok().filter(|e| *e != 0).unwrap_or(libc::EIO.cast_unsigned());
        Writer::new(out).fixed(&Header { errno, value: 0, count: 0, descriptors: 0 });
    }
}

/// A successful reply, to be taken apart as the request demands.
pub struct Reply<'a> {
    head: Header,
    r: Reader<'a>,
}

impl core::fmt::Debug for Reply<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Reply({:?})", self.head)
    }
}

impl<'a> Reply<'a> {
    /// The outer result is about the bytes, the inner about the request: the gofer's errno.
    pub fn decode(message: &'a [u8]) -> Result<Result<Self, i32>, DecodeError> {
        let mut r = Reader(message);
        let head: Header = r.fixed()?;
        if head.errno != 0 {
            return Ok(Err(i32::try_from(head.errno).unwrap_or(libc::EIO)));
        }
        Ok(Ok(Self { head, r }))
    }

    pub fn value(&self) -> u32 {
        self.head.value
    }

    pub fn fid(&self) -> Fid {
        Fid(self.head.value)
    }

    /// How many descriptors came along.
    pub fn descriptors(&self) -> usize {
        usize::try_from(self.head.descriptors).unwrap_or(usize::MAX)
    }

    pub fn attr(&mut self) -> Result<WireAttr, DecodeError> {
        self.r.fixed()
    }

    pub fn stat_fs(&mut self) -> Result<WireStatFs, DecodeError> {
        self.r.fixed()
    }

    pub fn bytes(&mut self) -> Result<&'a [u8], DecodeError> {
        self.r.bytes()
    }

    /// The next entry of a walk or listing; `None` after the last.
    pub fn entry(&mut self) -> Result<Option<Entry<'a>>, DecodeError> {
        let Some(left) = self.head.count.checked_sub(1) else { return Ok(None) };
        self.head.count = left;
        let cookie = self.r.u64()?;
        let attr = self.r.fixed()?;
        Ok(Some(Entry { cookie, attr, name: self.r.bytes()?, target: self.r.bytes()? }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::MAX_MESSAGE;

    #[test]
    fn entries_stop_at_the_length_cap_and_come_back_whole() {
        let mut out = Vec::new();
        let mut w = ReplyWriter::new(&mut out);
        let entry = Entry { name: &[b'n'; 255], attr: WireAttr::default(), cookie: 7, target: b"t" };
        let mut written = 0;
        while w.entry(&entry) {
            written += 1;
        }
        w.value(5);
        w.finish();
        assert!(written > 200 && out.len() <= MAX_MESSAGE);
        let mut reply = Reply::decode(&out).unwrap().unwrap();
        assert_eq!(reply.value(), 5);
        let mut read = 0;
        while let Some(got) = reply.entry().unwrap() {
            assert_eq!(got, entry);
            read += 1;
        }
        assert_eq!(read, written);
    }

    #[test]
    fn errors_and_hellos_survive_the_wire() {
        let mut out = Vec::new();
        let mut w = ReplyWriter::new(&mut out);
        w.attr(&WireAttr::default());
        w.fail(libc::ENOENT);
        assert_eq!(Reply::decode(&out).unwrap().unwrap_err(), libc::ENOENT);
        for hello in [Hello::Ready { version: 1 }, Hello::Failed { cause: "cannot mount /x: EPERM".into() }] {
            hello.encode(&mut out);
            assert_eq!(Hello::decode(&out), Ok(hello));
        }
    }

    proptest! {
        #[test]
        fn decoding_is_total(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Hello::decode(&bytes);
            let mut message = vec![0; 8];
            message.extend(&bytes);
            if let Ok(Ok(mut reply)) = Reply::decode(&message) {
                while let Ok(Some(_)) = reply.entry() {}
            }
        }
    }
}
