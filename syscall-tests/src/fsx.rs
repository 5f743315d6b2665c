//! Random file operations against a model in memory: what is read must be what was written, by whatever way.
//!
//! `syscall-tests fsx [--seed N] [--seconds N] [--ops N] [--dir DIR]` works on a few files with reads, writes, appends,
//! vectored and positioned I/O, truncation, shared and private mappings, `fallocate` in its modes, copies between the
//! files, renames, links, descriptors that are closed and opened again, and files that have lost their names. After each
//! operation a piece of the file, and now and then all of it, is compared with the model. A difference ends the run with
//! the seed and the last operations.

use std::collections::VecDeque;
use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::harness::{errno, errno_name};
use crate::sys::{self, Map, PAGE};

/// The longest that a file gets, in bytes.
const MAX_SIZE: usize = 384 * 1024;
/// Files at the same time.
const FILES: usize = 3;
/// Operations that are shown when something is wrong.
const SHOWN: usize = 60;

/// A small generator (xorshift64*): the same numbers for the same seed everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() >> 11) as usize % n.max(1)
    }
}

/// One file: its descriptor, its mapping if it has one, and what it must hold.
struct File {
    path: PathBuf,
    fd: OwnedFd,
    /// A shared mapping of the first bytes, kept over other operations.
    map: Option<Map>,
    model: Vec<u8>,
    unlinked: bool,
    stamp: u8,
}

struct Run {
    random: Random,
    dir: PathBuf,
    files: Vec<File>,
    names: u64,
    log: VecDeque<String>,
}

type Step = Result<(), String>;

fn failed(call: &str) -> String {
    format!("{call}: {}", errno_name(errno()))
}

fn text(path: &Path) -> CString {
    CString::new(path.as_os_str().as_encoded_bytes()).expect("no NUL in a path")
}

/// Parses the arguments, runs, and gives the exit status.
pub fn main(args: &[String]) -> i32 {
    let mut seed = u64::from(std::process::id()) ^ Instant::now().elapsed().as_nanos() as u64;
    let started = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    seed ^= started.map_or(1, |d| d.as_nanos() as u64);
    let (mut seconds, mut ops, mut dir) = (5, u64::MAX, std::env::temp_dir());
    for pair in args.chunks(2) {
        let [name, value] = pair else { return usage() };
        match (name.as_str(), value.parse::<u64>()) {
            ("--seed", Ok(n)) => seed = n,
            ("--seconds", Ok(n)) => seconds = n,
            ("--ops", Ok(n)) => ops = n,
            ("--dir", _) => dir = value.into(),
            _ => return usage(),
        }
    }
    println!("seed {seed}");
    let dir = dir.join(format!("fsx-{}", std::process::id()));
    if let Err(e) = std::fs::create_dir_all(&dir) {
        eprintln!("cannot make {}: {e}", dir.display());
        return 2;
    }
    let mut run =
        Run { random: Random(seed | 1), dir: dir.clone(), files: Vec::new(), names: 0, log: VecDeque::new() };
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut done = 0;
    let outcome = loop {
        if done >= ops || (done % 64 == 0 && Instant::now() >= end) {
            break run.check_all();
        }
        if let Err(why) = run.step() {
            break Err(why);
        }
        done += 1;
    };
    let _ = std::fs::remove_dir_all(&dir);
    match outcome {
        Ok(()) => {
            println!("{done} operations, no difference");
            0
        }
        Err(why) => {
            for line in &run.log {
                println!("  {line}");
            }
            println!("after {done} operations of seed {seed}: {why}");
            1
        }
    }
}

fn usage() -> i32 {
    eprintln!("usage: syscall-tests fsx [--seed N] [--seconds N] [--ops N] [--dir DIR]");
    2
}

impl Run {
    fn note(&mut self, line: String) {
        self.log.push_back(line);
        if self.log.len() > SHOWN {
            self.log.pop_front();
        }
    }

    fn new_name(&mut self) -> PathBuf {
        self.names += 1;
        self.dir.join(format!("f{}", self.names))
    }

    fn step(&mut self) -> Step {
        if self.files.len() < FILES {
            return self.create();
        }
        let at = self.random.below(self.files.len());
        match self.random.below(100) {
            0..18 => self.write(at),
            18..23 => self.append(at),
            23..28 => self.write_vectored(at),
            28..42 => self.read(at),
            42..50 => self.truncate(at),
            50..62 => self.mapped_write(at),
            62..67 => self.private_map(at),
            67..72 => self.remap(at),
            72..80 => self.allocate(at),
            80..84 => self.copy_between(at),
            84..89 => self.rename(at),
            89..93 => self.reopen(at),
            93..95 => self.link(at),
            95..96 => self.unlink(at),
            96..97 => self.sync(at),
            97..98 => self.seek_holes(at),
            _ => self.check(at),
        }
    }

    fn create(&mut self) -> Step {
        let path = self.new_name();
        let flags = libc::O_CREAT | libc::O_EXCL | libc::O_RDWR;
        self.note(format!("create {}", path.display()));
        let fd = unsafe { libc::open(text(&path).as_ptr(), flags, 0o600) };
        if fd < 0 {
            return Err(failed("open"));
        }
        let fd = sys::own(fd);
        self.files.push(File { path, fd, map: None, model: Vec::new(), unlinked: false, stamp: 1 });
        Ok(())
    }

    /// A random range that ends within the largest size.
    fn range(&mut self) -> (usize, usize) {
        let len = match self.random.below(4) {
            0 => 1 + self.random.below(64),
            1 => 1 + self.random.below(4096),
            _ => 1 + self.random.below(48 * 1024),
        };
        let mut off = self.random.below(MAX_SIZE - len);
        if self.random.below(4) == 0 {
            off -= off % PAGE;
        }
        (off, len)
    }

    /// Bytes that no earlier operation wrote.
    fn bytes(&mut self, at: usize, len: usize) -> Vec<u8> {
        let file = &mut self.files[at];
        file.stamp = file.stamp.wrapping_add(1).max(1);
        let stamp = file.stamp;
        (0..len).map(|i| stamp ^ (i as u8).wrapping_mul(31)).collect()
    }

    fn write(&mut self, at: usize) -> Step {
        let (off, len) = self.range();
        let data = self.bytes(at, len);
        self.note(format!("{at}: pwrite {off}+{len}"));
        let file = &mut self.files[at];
        let n = unsafe { libc::pwrite(file.fd.as_raw_fd(), data.as_ptr().cast(), len, off as i64) };
        if n != len as isize {
            return Err(format!("pwrite gave {n}, {}", errno_name(errno())));
        }
        store(&mut file.model, off, &data);
        self.look(at, off, len)
    }

    fn append(&mut self, at: usize) -> Step {
        let len = 1 + self.random.below(5000);
        if self.files[at].model.len() + len > MAX_SIZE {
            return Ok(());
        }
        let data = self.bytes(at, len);
        self.note(format!("{at}: append {len}"));
        let file = &mut self.files[at];
        let fd = file.fd.as_raw_fd();
        unsafe { libc::fcntl(fd, libc::F_SETFL, libc::O_APPEND) };
        let n = unsafe { libc::write(fd, data.as_ptr().cast(), len) };
        unsafe { libc::fcntl(fd, libc::F_SETFL, 0) };
        if n != len as isize {
            return Err(format!("write gave {n}, {}", errno_name(errno())));
        }
        let off = file.model.len();
        store(&mut file.model, off, &data);
        let end = unsafe { libc::lseek(fd, 0, libc::SEEK_CUR) };
        if end != file.model.len() as i64 {
            return Err(format!("the position after an append is {end}, not {}", file.model.len()));
        }
        self.look(at, off, len)
    }

    fn write_vectored(&mut self, at: usize) -> Step {
        let (off, len) = self.range();
        let data = self.bytes(at, len);
        let cut = self.random.below(len);
        self.note(format!("{at}: pwritev {off}+{len} cut at {cut}"));
        let file = &mut self.files[at];
        let part = |b: &[u8]| libc::iovec { iov_base: b.as_ptr().cast_mut().cast(), iov_len: b.len() };
        let iov = [part(&data[..cut]), part(&data[cut..])];
        let n = unsafe { libc::pwritev(file.fd.as_raw_fd(), iov.as_ptr(), 2, off as i64) };
        if n != len as isize {
            return Err(format!("pwritev gave {n}, {}", errno_name(errno())));
        }
        store(&mut file.model, off, &data);
        self.look(at, off, len)
    }

    fn read(&mut self, at: usize) -> Step {
        let (off, len) = self.range();
        self.note(format!("{at}: read {off}+{len}"));
        self.look(at, off, len)
    }

    /// Compares a range, through the descriptor and through the kept mapping.
    fn look(&mut self, at: usize, off: usize, len: usize) -> Step {
        let file = &self.files[at];
        let want =
            file.model.get(off.min(file.model.len())..(off + len).min(file.model.len())).unwrap_or(&[]);
        let mut got = vec![0xa5; len];
        let n = unsafe { libc::pread(file.fd.as_raw_fd(), got.as_mut_ptr().cast(), len, off as i64) };
        if n < 0 {
            return Err(failed("pread"));
        }
        got.truncate(n as usize);
        differ("pread", off, &got, want)?;
        if let Some(map) = &file.map {
            let end = (off + len).min(map.len).min(file.model.len());
            if off < end {
                differ("a kept mapping", off, &map.bytes()[off..end], &file.model[off..end])?;
            }
        }
        Ok(())
    }

    fn truncate(&mut self, at: usize) -> Step {
        let size = self.random.below(MAX_SIZE);
        self.note(format!("{at}: truncate to {size}"));
        let by_path = self.random.below(2) == 0;
        let file = &mut self.files[at];
        let r = if by_path && !file.unlinked {
            unsafe { libc::truncate(text(&file.path).as_ptr(), size as i64) }
        } else {
            unsafe { libc::ftruncate(file.fd.as_raw_fd(), size as i64) }
        };
        if r != 0 {
            return Err(failed("truncate"));
        }
        let old = file.model.len();
        file.model.resize(size, 0);
        self.size_is(at)?;
        let from = old.min(size).saturating_sub(100);
        self.look(at, from, 5000)
    }

    fn size_is(&self, at: usize) -> Step {
        let file = &self.files[at];
        let size = sys::fstat(&file.fd)?.st_size;
        if size != file.model.len() as i64 {
            return Err(format!("fstat says {size} bytes, not {}", file.model.len()));
        }
        Ok(())
    }

    /// Writes through a shared mapping within the file, a fresh one or the kept one.
    fn mapped_write(&mut self, at: usize) -> Step {
        let size = self.files[at].model.len();
        if size == 0 {
            return Ok(());
        }
        let off = self.random.below(size);
        let len = 1 + self.random.below((size - off).min(20_000));
        let data = self.bytes(at, len);
        let sync = self.random.below(3) == 0;
        self.note(format!("{at}: mapped write {off}+{len}"));
        let file = &mut self.files[at];
        let fresh;
        let map = match &file.map {
            Some(map) if off + len <= map.len => map,
            _ => {
                fresh = shared(file.fd.as_raw_fd(), (off + len).next_multiple_of(PAGE))?;
                &fresh
            }
        };
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), map.at(off), len) };
        if sync && unsafe { libc::msync(map.at(0).cast(), map.len, libc::MS_SYNC) } != 0 {
            return Err(failed("msync"));
        }
        store(&mut file.model, off, &data);
        self.look(at, off, len)
    }

    /// What a private mapping shows, and that its writes stay its own.
    fn private_map(&mut self, at: usize) -> Step {
        let size = self.files[at].model.len();
        if size == 0 {
            return Ok(());
        }
        let off = self.random.below(size);
        self.note(format!("{at}: private mapping, looked at {off}"));
        let file = &self.files[at];
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let map = Map::new(size.next_multiple_of(PAGE), prot, libc::MAP_PRIVATE, file.fd.as_raw_fd(), 0)?;
        let end = (off + 3000).min(size);
        differ("a private mapping", off, &map.bytes()[off..end], &file.model[off..end])?;
        // The rest of the last page is zero.
        let tail = size % PAGE;
        if tail != 0 && map.bytes()[size..].iter().any(|b| *b != 0) && file.map.is_none() {
            return Err("the tail of the last page is not zero".into());
        }
        map.set(off, map.get(off).wrapping_add(1));
        self.look(at, off, 1)
    }

    /// Makes, or gives up, the mapping that is kept.
    fn remap(&mut self, at: usize) -> Step {
        let file = &mut self.files[at];
        if file.map.take().is_some() || file.model.is_empty() {
            self.note(format!("{at}: mapping given up"));
            return Ok(());
        }
        let len = file.model.len().next_multiple_of(PAGE);
        file.map = Some(shared(file.fd.as_raw_fd(), len)?);
        self.note(format!("{at}: mapping of {len} kept"));
        Ok(())
    }

    fn allocate(&mut self, at: usize) -> Step {
        let (off, len) = self.range();
        let (mode, name) = match self.random.below(6) {
            0 => (0, "fallocate"),
            1 => (libc::FALLOC_FL_KEEP_SIZE, "fallocate beyond"),
            2..4 => (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, "punch"),
            4 => (libc::FALLOC_FL_ZERO_RANGE, "zero range"),
            _ => (libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE, "zero range within"),
        };
        self.note(format!("{at}: {name} {off}+{len}"));
        let file = &mut self.files[at];
        if unsafe { libc::fallocate(file.fd.as_raw_fd(), mode, off as i64, len as i64) } != 0 {
            if errno() == libc::EOPNOTSUPP && mode & libc::FALLOC_FL_ZERO_RANGE != 0 {
                return Ok(());
            }
            return Err(failed("fallocate"));
        }
        if mode & libc::FALLOC_FL_KEEP_SIZE == 0 && off + len > file.model.len() {
            file.model.resize(off + len, 0);
        }
        if mode & (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE) != 0 {
            let size = file.model.len();
            file.model[off.min(size)..(off + len).min(size)].fill(0);
        }
        self.size_is(at)?;
        self.look(at, off.saturating_sub(10), len + 20)
    }

    fn copy_between(&mut self, at: usize) -> Step {
        let from = self.random.below(self.files.len());
        let size = self.files[from].model.len();
        if size == 0 || from == at {
            return Ok(());
        }
        let off = self.random.below(size);
        let len = 1 + self.random.below((size - off).min(30_000));
        let to = self.random.below(MAX_SIZE - len);
        self.note(format!("{at}: copy_file_range from {from} {off}+{len} to {to}"));
        let (source, target) = (self.files[from].fd.as_raw_fd(), self.files[at].fd.as_raw_fd());
        let (mut a, mut b, mut left) = (off as i64, to as i64, len);
        while left > 0 {
            let n = unsafe {
                libc::syscall(libc::SYS_copy_file_range, source, &raw mut a, target, &raw mut b, left, 0)
            };
            if n <= 0 {
                return Err(format!("copy_file_range gave {n}, {}", errno_name(errno())));
            }
            left -= n as usize;
        }
        let data = self.files[from].model[off..off + len].to_vec();
        store(&mut self.files[at].model, to, &data);
        self.look(at, to, len)
    }

    fn rename(&mut self, at: usize) -> Step {
        if self.files[at].unlinked {
            return Ok(());
        }
        let path = self.new_name();
        self.note(format!("{at}: rename to {}", path.display()));
        let file = &mut self.files[at];
        if unsafe { libc::rename(text(&file.path).as_ptr(), text(&path).as_ptr()) } != 0 {
            return Err(failed("rename"));
        }
        file.path = path;
        let (by_path, by_fd) = (std::fs::metadata(&file.path), sys::fstat(&file.fd)?);
        use std::os::unix::fs::MetadataExt;
        if by_path.map_err(|e| format!("stat after rename: {e}"))?.ino() != by_fd.st_ino {
            return Err("the name leads to another inode after a rename".into());
        }
        Ok(())
    }

    fn reopen(&mut self, at: usize) -> Step {
        self.note(format!("{at}: close and open"));
        let file = &mut self.files[at];
        let path = if file.unlinked {
            PathBuf::from(format!("/proc/self/fd/{}", file.fd.as_raw_fd()))
        } else {
            file.path.clone()
        };
        let fd = unsafe { libc::open(text(&path).as_ptr(), libc::O_RDWR) };
        if fd < 0 {
            return Err(failed("open"));
        }
        file.fd = sys::own(fd);
        self.size_is(at)?;
        self.check(at)
    }

    fn link(&mut self, at: usize) -> Step {
        if self.files[at].unlinked {
            return Ok(());
        }
        let path = self.new_name();
        self.note(format!("{at}: link {} and unlink the old name", path.display()));
        let file = &mut self.files[at];
        if unsafe { libc::link(text(&file.path).as_ptr(), text(&path).as_ptr()) } != 0 {
            return Err(failed("link"));
        }
        if unsafe { libc::unlink(text(&file.path).as_ptr()) } != 0 {
            return Err(failed("unlink"));
        }
        file.path = path;
        Ok(())
    }

    fn unlink(&mut self, at: usize) -> Step {
        let file = &mut self.files[at];
        if file.unlinked {
            // It has lived long enough.
            self.note(format!("{at}: dropped"));
            self.check(at)?;
            self.files.remove(at);
            return Ok(());
        }
        if unsafe { libc::unlink(text(&file.path).as_ptr()) } != 0 {
            return Err(failed("unlink"));
        }
        file.unlinked = true;
        self.note(format!("{at}: unlink"));
        Ok(())
    }

    fn sync(&mut self, at: usize) -> Step {
        self.note(format!("{at}: fsync"));
        if unsafe { libc::fsync(self.files[at].fd.as_raw_fd()) } != 0 {
            return Err(failed("fsync"));
        }
        Ok(())
    }

    /// Holes must read as zeroes.
    fn seek_holes(&mut self, at: usize) -> Step {
        self.note(format!("{at}: holes"));
        let file = &self.files[at];
        let (fd, size) = (file.fd.as_raw_fd(), file.model.len() as i64);
        let mut pos = 0;
        while pos < size {
            let hole = unsafe { libc::lseek(fd, pos, libc::SEEK_HOLE) };
            if hole < 0 {
                return Err(failed("SEEK_HOLE"));
            }
            let data = unsafe { libc::lseek(fd, hole, libc::SEEK_DATA) };
            let data = if data < 0 { size } else { data };
            if hole < size && file.model[hole as usize..data.min(size) as usize].iter().any(|b| *b != 0) {
                return Err(format!("bytes {hole}..{data} are called a hole"));
            }
            pos = data.max(hole + 1);
        }
        Ok(())
    }

    fn check(&mut self, at: usize) -> Step {
        self.note(format!("{at}: all of it"));
        self.size_is(at)?;
        let size = self.files[at].model.len();
        self.look(at, 0, size + 10)
    }

    fn check_all(&mut self) -> Step {
        (0..self.files.len()).try_for_each(|at| self.check(at))
    }
}

fn store(model: &mut Vec<u8>, off: usize, data: &[u8]) {
    if model.len() < off + data.len() {
        model.resize(off + data.len(), 0);
    }
    model[off..off + data.len()].copy_from_slice(data);
}

fn shared(fd: i32, len: usize) -> Result<Map, String> {
    Map::new(len, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, fd, 0)
}

fn differ(what: &str, off: usize, got: &[u8], want: &[u8]) -> Step {
    if got == want {
        return Ok(());
    }
    if got.len() != want.len() {
        return Err(format!("{what} at {off} gave {} bytes, not {}", got.len(), want.len()));
    }
    let first = got.iter().zip(want).position(|(a, b)| a != b).unwrap_or(0);
    let wrong = got.iter().zip(want).filter(|(a, b)| a != b).count();
    let (a, b) = (got[first], want[first]);
    Err(format!("{what}: byte {} is {a:#x}, not {b:#x} ({wrong} bytes differ)", off + first))
}
