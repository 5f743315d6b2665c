//! Calls on the caller's memory, and copies between processes: mmap(2), munmap(2), mprotect(2), mremap(2), brk(2),
//! madvise(2), msync(2), mincore(2), mlock(2), pkeys(7), process_vm_readv(2).

use std::sync::Arc;

use platform::AddrRange;
use sentry_base::{Errno, Result};
use sentry_kernel::pidfd::PidFd;
use sentry_kernel::ptrace::{Access, may_access};
use sentry_kernel::{CallerMemory, Current, Mm};
use sentry_memory::{IoSeg, UserMemory, UserReader, UserWriter};
use sentry_mm::{FileMapping, MappedFile, MmapArgs, VmFlags, madv, map_flags};
use sentry_vfs::{MountFlags, cap};

use fs_tmpfs::open_tmpfs_file;

use crate::args::{Bits, Ptr};
use crate::fs_args::{cut, total};
use crate::table::syscalls;
use crate::turn::Turn;

syscalls! {
    9 mmap(addr: Ptr, len: u64, prot: Bits, flags: Bits, fd: i32, offset: u64) [sync, "no huge pages"];
    10 mprotect(addr: Ptr, len: u64, prot: Bits) [sync];
    11 munmap(addr: Ptr, len: u64) [sync];
    12 brk(addr: Ptr) [sync];
    25 mremap(addr: Ptr, old_len: u64, new_len: u64, flags: Bits, new_addr: Ptr) [sync];
    26 msync(addr: Ptr, len: u64, flags: Bits) [sync];
    27 mincore(addr: Ptr, len: u64, vec: Ptr) [sync, "pages of files count as resident"];
    28 madvise(addr: Ptr, len: u64, advice: i32) [sync, "advice on paging is taken and without effect"];
    149 mlock(addr: Ptr, len: u64) [sync, "accounted; the host decides about paging"];
    150 munlock(addr: Ptr, len: u64) [sync];
    151 mlockall(flags: Bits) [sync, "accounted; the host decides about paging"];
    152 munlockall() [sync];
    310 process_vm_readv(pid: i32, local: Ptr, nr_local: u64, remote: Ptr, nr_remote: u64, flags: u64) [wait];
    311 process_vm_writev(pid: i32, local: Ptr, nr_local: u64, remote: Ptr, nr_remote: u64, flags: u64) [wait];
    216 remap_file_pages(addr: Ptr, len: u64, prot: Bits, page: u64, flags: Bits) [sync];
    323 userfaultfd(flags: Bits) [sync, "EPERM, as for a user without privileges"];
    440 process_madvise(pidfd: i32, segments: Ptr, count: u64, advice: i32, flags: Bits) [sync];
    325 mlock2(addr: Ptr, len: u64, flags: Bits) [sync, "accounted; the host decides about paging"];
    329 pkey_mprotect(addr: Ptr, len: u64, prot: Bits, pkey: i32) [sync, "without keys, as on a processor that has none"];
    330 pkey_alloc(flags: u64, rights: u64) [sync, "there are no keys"];
    331 pkey_free(pkey: i32) [sync, "there are no keys"];
}

fn mmap(cx: &mut Current, addr: Ptr, len: u64, prot: Bits, flags: Bits, fd: i32, offset: u64) -> Result<u64> {
    if !offset.is_multiple_of(platform::PAGE_SIZE) {
        return Err(Errno::EINVAL);
    }
    let mut flags = flags;
    // Mapping /dev/zero is how one asked for anonymous memory before there was a flag.
    if flags.0 & map_flags::ANONYMOUS == 0 && fs_dev::is_zero(&**cx.file(fd)?.ops()) {
        flags.0 |= map_flags::ANONYMOUS;
    }
    let file =
        if flags.0 & map_flags::ANONYMOUS == 0 { Some(mapping(cx, fd, prot, flags, offset)?) } else { None };
    let args = MmapArgs { addr: addr.0, len, prot: prot.0, flags: flags.0, file };
    cx.mm().mmap(&args, &cx.mm_limits())
}

const PROT_WRITE: u32 = 2;

/// What a descriptor gives to be mapped.
fn mapping(cx: &Current, fd: i32, prot: Bits, flags: Bits, offset: u64) -> Result<FileMapping> {
    let file = cx.file(fd)?;
    if flags.0 & map_flags::HUGETLB != 0 {
        return Err(Errno::EINVAL);
    }
    let open = file.flags();
    let mut writable = open.writes();
    if flags.0 & map_flags::TYPE != map_flags::PRIVATE
        && open_tmpfs_file(file.ops()).is_some_and(fs_tmpfs::OpenTmpfs::is_write_sealed)
    {
        if prot.0 & PROT_WRITE != 0 {
            return Err(Errno::EPERM);
        }
        writable = false;
    }
    let noexec = file.location().is_some_and(|l| l.mount.flags().contains(MountFlags::NOEXEC));
    Ok(FileMapping {
        file: file.ops().mappable()?,
        offset,
        readable: open.reads(),
        writable,
        noexec,
        name: Some(file as Arc<dyn MappedFile>),
    })
}

fn mprotect(cx: &mut Current, addr: Ptr, len: u64, prot: Bits) -> Result<()> {
    cx.mm().mprotect(addr.0, len, prot.0, &cx.mm_limits())
}

fn munmap(cx: &mut Current, addr: Ptr, len: u64) -> Result<()> {
    cx.mm().munmap(addr.0, len)
}

fn brk(cx: &mut Current, addr: Ptr) -> Result<u64> {
    Ok(cx.mm().brk(addr.0, &cx.mm_limits()))
}

fn mremap(
    cx: &mut Current,
    addr: Ptr,
    old_len: u64,
    new_len: u64,
    flags: Bits,
    new_addr: Ptr,
) -> Result<u64> {
    cx.mm().mremap(addr.0, old_len, new_len, flags.0, new_addr.0, &cx.mm_limits())
}

fn msync(cx: &mut Current, addr: Ptr, len: u64, flags: Bits) -> Result<()> {
    cx.mm().msync(addr.0, len, flags.0)
}

fn mincore(cx: &mut Current, addr: Ptr, len: u64, vec: Ptr) -> Result<()> {
    /// Bytes that one look covers.
    const PIECE: u64 = 256 << 20;
    let mm = cx.mm();
    let Some(whole) = mm.mincore_range(addr.0, len)? else { return Ok(()) };
    let (mut at, mut to) = (whole.start, vec.0);
    while at < whole.end {
        let end = whole.end.min(at.saturating_add(PIECE));
        let pages = mm.mincore(AddrRange { start: at, end })?;
        cx.copy_out(to, &pages)?;
        to = to.checked_add(pages.len() as u64).ok_or(Errno::EFAULT)?;
        at = end;
    }
    Ok(())
}

fn madvise(cx: &mut Current, addr: Ptr, len: u64, advice: i32) -> Result<()> {
    cx.mm().madvise(addr.0, len, advice)
}

/// Gives advice on the memory of a process that the caller may look into. Advice that destroys is the process's own to
/// give, on itself.
fn process_madvise(
    cx: &mut Current,
    pidfd: i32,
    segments_at: Ptr,
    count: u64,
    advice: i32,
    flags: Bits,
) -> Result<u64> {
    if flags.0 != 0 {
        return Err(Errno::EINVAL);
    }
    let list = segments(cx, segments_at, count)?;
    let file = cx.file(pidfd)?;
    let group = PidFd::group_of(&file)?;
    let task = group.threads().first().cloned().ok_or(Errno::ESRCH)?;
    let own = Arc::ptr_eq(&task.mm(), &cx.mm());
    let gentle = matches!(advice, madv::COLD | madv::PAGEOUT | madv::WILLNEED | madv::COLLAPSE);
    if !own && !gentle {
        return Err(Errno::EINVAL);
    }
    if !may_access(&cx.task, &task, Access::Read) {
        return Err(Errno::EPERM);
    }
    if !own && !cx.creds().has_cap(cap::SYS_NICE) {
        return Err(Errno::EPERM);
    }
    let mm = task.mm();
    let mut done = 0_u64;
    for segment in list {
        match mm.madvise(segment.addr, segment.len, advice) {
            Ok(()) => done = done.saturating_add(segment.len),
            Err(error) if done == 0 => return Err(error),
            Err(_) => break,
        }
    }
    Ok(done)
}

/// Nonlinear mappings are made of linear ones, as Linux has made them since 4.0.
fn remap_file_pages(cx: &mut Current, addr: Ptr, len: u64, prot: Bits, page: u64, flags: Bits) -> Result<()> {
    let start = addr.0 & !(platform::PAGE_SIZE - 1);
    let len = len & !(platform::PAGE_SIZE - 1);
    if prot.0 != 0 || len == 0 || start.checked_add(len).is_none() {
        return Err(Errno::EINVAL);
    }
    let offset = page.checked_mul(platform::PAGE_SIZE).ok_or(Errno::EINVAL)?;
    if offset.checked_add(len).is_none_or(|end| i64::try_from(end).is_err()) {
        return Err(Errno::EINVAL);
    }
    let mm = cx.mm();
    let found = mm.find(start).filter(|m| m.flags.is_shared()).ok_or(Errno::EINVAL)?;
    if start + len > found.range.end {
        return Err(Errno::EINVAL);
    }
    let backing = mm.file_at(start).ok_or(Errno::EINVAL)?;
    let args = MmapArgs {
        addr: start,
        len,
        prot: found.flags.prot().bits(),
        flags: map_flags::SHARED | map_flags::FIXED | map_flags::POPULATE | flags.0 & map_flags::NONBLOCK,
        file: Some(FileMapping {
            file: backing.file,
            name: backing.name,
            offset,
            readable: true,
            writable: found.flags.contains(VmFlags::MAYWRITE),
            noexec: !found.flags.contains(VmFlags::MAYEXEC),
        }),
    };
    mm.mmap(&args, &cx.mm_limits()).map(drop)
}

/// Page faults are the host's to handle here: nobody inside gets them handed over.
fn userfaultfd(_cx: &mut Current, flags: Bits) -> Result<()> {
    const USER_MODE_ONLY: u32 = 1;
    const CLOEXEC: u32 = 0o2_000_000;
    const NONBLOCK: u32 = 0o4000;
    if flags.0 & !(USER_MODE_ONLY | CLOEXEC | NONBLOCK) != 0 {
        return Err(Errno::EINVAL);
    }
    Err(Errno::EPERM)
}

fn mlock(cx: &mut Current, addr: Ptr, len: u64) -> Result<()> {
    cx.mm().mlock(addr.0, len, false, &cx.mm_limits())
}

fn mlock2(cx: &mut Current, addr: Ptr, len: u64, flags: Bits) -> Result<()> {
    const ONFAULT: u32 = 1;
    if flags.0 & !ONFAULT != 0 {
        return Err(Errno::EINVAL);
    }
    cx.mm().mlock(addr.0, len, flags.0 & ONFAULT != 0, &cx.mm_limits())
}

fn munlock(cx: &mut Current, addr: Ptr, len: u64) -> Result<()> {
    cx.mm().munlock(addr.0, len)
}

fn mlockall(cx: &mut Current, flags: Bits) -> Result<()> {
    cx.mm().mlockall(flags.0, &cx.mm_limits())
}

fn munlockall(cx: &mut Current) -> Result<()> {
    cx.mm().munlockall();
    Ok(())
}

fn pkey_mprotect(cx: &mut Current, addr: Ptr, len: u64, prot: Bits, pkey: i32) -> Result<()> {
    if pkey != -1 {
        return Err(Errno::EINVAL);
    }
    mprotect(cx, addr, len, prot)
}

fn pkey_alloc(_cx: &mut Current, flags: u64, rights: u64) -> Result<u64> {
    const DISABLE_ACCESS_AND_WRITE: u64 = 3;
    if flags != 0 || rights & !DISABLE_ACCESS_AND_WRITE != 0 {
        return Err(Errno::EINVAL);
    }
    Err(Errno::ENOSPC)
}

fn pkey_free(_cx: &mut Current, _pkey: i32) -> Result<()> {
    Err(Errno::EINVAL)
}

async fn process_vm_readv(
    cx: &mut Current,
    pid: i32,
    local: Ptr,
    nr_local: u64,
    remote: Ptr,
    nr_remote: u64,
    flags: u64,
) -> Result<usize> {
    let Some(copy) = RemoteCopy::new(cx, pid, (local, nr_local), (remote, nr_remote), flags)? else {
        return Ok(0);
    };
    copy.run(cx, |memory, local, mm, addr, part| {
        let got = mm.copy_in_partial(addr, part)?;
        UserWriter::user(memory, local).write(part.get(..got).unwrap_or_default())
    })
    .await
}

async fn process_vm_writev(
    cx: &mut Current,
    pid: i32,
    local: Ptr,
    nr_local: u64,
    remote: Ptr,
    nr_remote: u64,
    flags: u64,
) -> Result<usize> {
    let Some(copy) = RemoteCopy::new(cx, pid, (local, nr_local), (remote, nr_remote), flags)? else {
        return Ok(0);
    };
    copy.run(cx, |memory, local, mm, addr, part| {
        let got = UserReader::user(memory, local).read(part)?;
        mm.copy_out_partial(addr, part.get(..got).unwrap_or_default())
    })
    .await
}

/// Moves a piece between segments of the caller and an address of the other process, by way of a buffer of its length.
type CopyPiece = fn(&CallerMemory, &[IoSeg], &Mm, u64, &mut [u8]) -> Result<usize>;

/// A checked request to copy between the caller and another process.
struct RemoteCopy {
    mm: Arc<Mm>,
    local: Vec<IoSeg>,
    remote: Vec<IoSeg>,
}

impl RemoteCopy {
    /// `None` where there is nothing to copy.
    fn new(
        cx: &Current,
        pid: i32,
        local: (Ptr, u64),
        remote: (Ptr, u64),
        flags: u64,
    ) -> Result<Option<Self>> {
        if flags != 0 {
            return Err(Errno::EINVAL);
        }
        let local = segments(cx, local.0, local.1)?;
        if local.iter().all(|s| s.len == 0) {
            return Ok(None);
        }
        let remote = segments(cx, remote.0, remote.1)?;
        let task = cx.find_task(pid).ok_or(Errno::ESRCH)?;
        if !may_access(&cx.task, &task, Access::Attach) {
            return Err(Errno::EPERM);
        }
        Ok(Some(Self { mm: task.mm(), local, remote }))
    }

    /// Copies piece by piece until the local segments are at their end or a piece is short; the error of the first piece counts. Other tasks
    /// have their turn in between, and a signal that kills ends it.
    async fn run(&self, cx: &mut Current, copy: CopyPiece) -> Result<usize> {
        const PIECE: usize = 64 * 1024;
        let memory = cx.memory();
        let limit = usize::try_from(total(&self.local)).unwrap_or(usize::MAX);
        let mut buf = vec![0; limit.min(PIECE)];
        let mut done = 0;
        let mut turn = Turn::new();
        for segment in &self.remote {
            let mut at = segment.addr;
            let mut left = usize::try_from(segment.len).unwrap_or(usize::MAX);
            while left > 0 && done < limit {
                turn.took(done as u64).await;
                if done > 0 && cx.sleeper().is_killed() {
                    return Ok(done);
                }
                let want = left.min(limit - done).min(PIECE);
                let local = cut(&self.local, done as u64, want as u64);
                let part = buf.get_mut(..want).unwrap_or_default();
                let moved = match copy(&memory, &local, &self.mm, at, part) {
                    Ok(moved) => moved,
                    Err(_) if done > 0 => return Ok(done),
                    Err(error) => return Err(error),
                };
                done += moved;
                if moved < want {
                    return Ok(done);
                }
                left -= want;
                at = at.wrapping_add(want as u64);
            }
        }
        Ok(done)
    }
}

/// The segments of an `iovec` array (`import_iovec`).
fn segments(cx: &Current, addr: Ptr, count: u64) -> Result<Vec<IoSeg>> {
    const COUNT_MAX: usize = 1024;
    let count = usize::try_from(count).ok().filter(|c| *c <= COUNT_MAX).ok_or(Errno::EINVAL)?;
    let mut bytes = vec![0; count * 16];
    cx.copy_in(addr.0, &mut bytes)?;
    let segment = |pair: &[u8]| {
        let word = |part: Option<&[u8]>| {
            part.and_then(|p| p.try_into().ok()).map(u64::from_ne_bytes).ok_or(Errno::EFAULT)
        };
        let len = word(pair.get(8..))?;
        if i64::try_from(len).is_err() {
            return Err(Errno::EINVAL);
        }
        Ok(IoSeg { addr: word(pair.get(..8))?, len })
    };
    bytes.chunks_exact(16).map(segment).collect()
}
