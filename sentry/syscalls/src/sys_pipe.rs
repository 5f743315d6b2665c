//! pipe(2), splice(2), tee(2), vmsplice(2).

use std::sync::Arc;

use fs_pipe::PipeEnd;
use sentry_base::{Errno, Events, Result};
use sentry_kernel::{BlockEnd, Current, SysResult, Task};
use sentry_memory::{UserReader, UserWriter};
use sentry_vfs::{FileDescription, FileOps, IoCtx, IoStart, OpenFlags, Pos};

use crate::args::{Bits, Ptr};
use crate::files::add_file;
use crate::fs_args::segments;
use crate::sys_io::size_limit;
use crate::table::syscalls;

syscalls! {
    22 pipe(fds: Ptr) [sync];
    275 splice(fd_in: i32, off_in: Ptr, fd_out: i32, off_out: Ptr, len: usize, flags: Bits) [wait, "copies"];
    276 tee(fd_in: i32, fd_out: i32, len: usize, flags: Bits) [wait, "copies"];
    278 vmsplice(fd: i32, iov: Ptr, count: usize, flags: Bits) [wait, "copies"];
    293 pipe2(fds: Ptr, flags: Bits) [sync];
}

/// `SPLICE_F_MOVE`, `_NONBLOCK`, `_MORE` and `_GIFT`.
const SPLICE_NONBLOCK: u32 = 2;
const SPLICE_ALL: u32 = 0xf;

/// The most that one step of a splice carries, in bytes.
const STEP: usize = 64 * 1024;

fn pipe(cx: &mut Current, fds: Ptr) -> Result<()> {
    pipe2(cx, fds, Bits(0))
}

fn pipe2(cx: &mut Current, fds: Ptr, flags: Bits) -> Result<()> {
    let flags = OpenFlags::from_bits_retain(flags.0);
    if !(OpenFlags::CLOEXEC | OpenFlags::NONBLOCK | OpenFlags::DIRECT).contains(flags) {
        return Err(Errno::EINVAL);
    }
    let cloexec = flags.contains(OpenFlags::CLOEXEC);
    let status = flags & (OpenFlags::NONBLOCK | OpenFlags::DIRECT);
    let (reader, writer) = fs_pipe::pipe(cx.task.as_ref(), status);
    let pid = cx.pid();
    let read_fd = add_file(cx, reader, status, cloexec)?;
    let write_fd = match add_file(cx, writer, status | OpenFlags::WRONLY, cloexec) {
        Ok(fd) => fd,
        Err(errno) => {
            let _ = cx.fds().close(read_fd, pid);
            return Err(errno);
        }
    };
    if let Err(errno) = cx.write_obj(fds.0, &[read_fd, write_fd]) {
        let _ = cx.fds().close(read_fd, pid);
        let _ = cx.fds().close(write_fd, pid);
        return Err(errno);
    }
    Ok(())
}

/// The end of a pipe behind a file.
fn pipe_end(file: &FileDescription) -> Option<&PipeEnd> {
    file.ops().as_any().downcast_ref()
}

/// Waits until `attempt` gives something, or not at all.
async fn wait<T>(
    cx: &mut Current,
    file: &FileDescription,
    events: Events,
    nonblock: bool,
    mut attempt: impl FnMut(&Task) -> Result<IoStart<T>> + Send,
) -> Result<T, BlockEnd> {
    match file.ops().wait_queue() {
        Some(queue) if !nonblock => cx.block_on(queue, events, None, attempt).await,
        _ => match attempt(&cx.task)? {
            IoStart::Done(value) => Ok(value),
            IoStart::WouldBlock => Err(Errno::EAGAIN.into()),
        },
    }
}

/// Waits for room in a pipe: at least one byte of `want`.
async fn wait_for_room(
    cx: &mut Current,
    file: &FileDescription,
    nonblock: bool,
    want: usize,
) -> Result<usize, BlockEnd> {
    let end = pipe_end(file).ok_or(Errno::EINVAL)?;
    wait(cx, file, Events::WRITABLE, nonblock, |task| {
        Ok(match end.room(task, want)? {
            0 => IoStart::WouldBlock,
            room => IoStart::Done(room),
        })
    })
    .await
}

/// Where the file side of a splice is: an offset of the caller's, the file's own, or none.
enum Place {
    Given(u64),
    Own,
    Stream,
}

fn place(cx: &Current, file: &FileDescription, offset: Ptr) -> Result<Place> {
    match (offset.is_null(), file.ops().seekable()) {
        (true, true) => Ok(Place::Own),
        (true, false) => Ok(Place::Stream),
        (false, true) => {
            let at: i64 = cx.read_obj(offset.0)?;
            Ok(Place::Given(u64::try_from(at).map_err(|_| Errno::EINVAL)?))
        }
        (false, false) => Err(Errno::EINVAL),
    }
}

impl Place {
    /// Runs one transfer at this place and moves on by what it moved.
    fn at(
        &mut self,
        file: &FileDescription,
        transfer: impl FnOnce(Pos) -> Result<IoStart<usize>>,
    ) -> Result<IoStart<usize>> {
        match self {
            Self::Stream => transfer(Pos::Stream),
            Self::Given(at) => {
                let start = transfer(Pos::At(*at))?;
                if let IoStart::Done(n) = start {
                    *at += n as u64;
                }
                Ok(start)
            }
            Self::Own => {
                let mut at = file.position().lock();
                let start = transfer(Pos::At(*at))?;
                if let IoStart::Done(n) = start {
                    *at += n as u64;
                }
                Ok(start)
            }
        }
    }

    fn store(&self, cx: &Current, offset: Ptr) -> Result<()> {
        match self {
            Self::Given(at) => cx.write_obj(offset.0, at),
            _ => Ok(()),
        }
    }
}

async fn splice(
    cx: &mut Current,
    fd_in: i32,
    off_in: Ptr,
    fd_out: i32,
    off_out: Ptr,
    len: usize,
    flags: Bits,
) -> SysResult<usize> {
    if len == 0 {
        return Ok(0);
    }
    if flags.0 & !SPLICE_ALL != 0 {
        return Err(Errno::EINVAL.into());
    }
    let (input, output) = (cx.file(fd_in)?, cx.file(fd_out)?);
    if !input.flags().reads() || !output.flags().writes() {
        return Err(Errno::EBADF.into());
    }
    let nonblock = flags.0 & SPLICE_NONBLOCK != 0;
    let nonblock_in = nonblock || input.flags().contains(OpenFlags::NONBLOCK);
    let nonblock_out = nonblock || output.flags().contains(OpenFlags::NONBLOCK);
    match (pipe_end(&input), pipe_end(&output)) {
        (Some(from), Some(to)) => {
            if !off_in.is_null() || !off_out.is_null() {
                return Err(Errno::ESPIPE.into());
            }
            if from.same_pipe(to) {
                return Err(Errno::EINVAL.into());
            }
            let room = wait_for_room(cx, &output, nonblock_out, len.min(STEP)).await?;
            let data = wait(cx, &input, Events::READABLE, nonblock_in, |_| Ok(from.take(room))).await?;
            to.append(&data);
            Ok(data.len())
        }
        (Some(from), None) => {
            if !off_in.is_null() {
                return Err(Errno::ESPIPE.into());
            }
            if output.flags().contains(OpenFlags::APPEND) {
                return Err(Errno::EINVAL.into());
            }
            let mut at = place(cx, &output, off_out)?;
            let moved =
                pipe_to_file(cx, &input, from, &output, &mut at, len, (nonblock_in, nonblock_out)).await?;
            at.store(cx, off_out)?;
            Ok(moved)
        }
        (None, Some(to)) => {
            if !off_out.is_null() {
                return Err(Errno::ESPIPE.into());
            }
            let mut at = place(cx, &input, off_in)?;
            let room = wait_for_room(cx, &output, nonblock_out, len.min(STEP)).await?;
            let mut data = vec![0; room];
            let io_flags = input.flags();
            let n = wait(cx, &input, Events::READABLE, nonblock_in, |task| {
                let io = IoCtx { caller: task, flags: io_flags };
                at.at(&input, |pos| input.ops().try_read(&io, &mut UserWriter::buffer(&mut data), pos))
            })
            .await?;
            to.append(data.get(..n).unwrap_or_default());
            at.store(cx, off_in)?;
            Ok(n)
        }
        (None, None) => Err(Errno::EINVAL.into()),
    }
}

/// Moves up to `len` bytes from a pipe to a file: waits for the first, then takes what is there.
async fn pipe_to_file(
    cx: &mut Current,
    input: &Arc<FileDescription>,
    from: &PipeEnd,
    output: &Arc<FileDescription>,
    at: &mut Place,
    len: usize,
    (nonblock_in, nonblock_out): (bool, bool),
) -> Result<usize, BlockEnd> {
    let mut moved = 0;
    while moved < len {
        let want = (len - moved).min(STEP);
        let taken =
            wait(cx, input, Events::READABLE, nonblock_in || moved > 0, |_| Ok(from.take(want))).await;
        let data = match taken {
            Ok(data) if data.is_empty() => break,
            Ok(data) => data,
            Err(end) if moved == 0 => return Err(end),
            Err(_) => break,
        };
        let io_flags = output.flags();
        let mut written = 0;
        let mut end = None;
        while written < data.len() {
            let rest = data.get(written..).unwrap_or_default();
            let step = wait(cx, output, Events::WRITABLE, nonblock_out, |task| {
                let io = IoCtx { caller: task, flags: io_flags };
                at.at(output, |pos| {
                    let allowed = match pos {
                        Pos::At(start) => size_limit(task, output, start, rest.len() as u64)?,
                        _ => u64::MAX,
                    };
                    let rest = usize::try_from(allowed).ok().and_then(|n| rest.get(..n)).unwrap_or(rest);
                    output.ops().try_write(&io, &mut UserReader::buffer(rest), pos)
                })
            })
            .await;
            match step {
                Ok(0) => break,
                Ok(n) => written += n,
                Err(stop) => {
                    end = Some(stop);
                    break;
                }
            }
        }
        from.give_back(data.get(written..).unwrap_or_default());
        moved += written;
        match end {
            Some(stop) if moved == 0 => return Err(stop),
            None if written == data.len() => {}
            _ => break,
        }
    }
    Ok(moved)
}

async fn tee(cx: &mut Current, fd_in: i32, fd_out: i32, len: usize, flags: Bits) -> SysResult<usize> {
    if flags.0 & !SPLICE_ALL != 0 {
        return Err(Errno::EINVAL.into());
    }
    if len == 0 {
        return Ok(0);
    }
    let (input, output) = (cx.file(fd_in)?, cx.file(fd_out)?);
    if !input.flags().reads() || !output.flags().writes() {
        return Err(Errno::EBADF.into());
    }
    let (Some(from), Some(to)) = (pipe_end(&input), pipe_end(&output)) else {
        return Err(Errno::EINVAL.into());
    };
    if from.same_pipe(to) {
        return Err(Errno::EINVAL.into());
    }
    let nonblock = flags.0 & SPLICE_NONBLOCK != 0;
    // First the data, then the room: `tee` at the end of the file is 0 even into a full pipe.
    let data = wait(cx, &input, Events::READABLE, nonblock, |_| Ok(from.peek(len.min(STEP)))).await?;
    if data.is_empty() {
        return Ok(0);
    }
    let room = wait_for_room(cx, &output, nonblock, data.len()).await?;
    let data = data.get(..room).unwrap_or(&data);
    to.append(data);
    Ok(data.len())
}

async fn vmsplice(cx: &mut Current, fd: i32, iov: Ptr, count: usize, flags: Bits) -> SysResult<usize> {
    if flags.0 & !SPLICE_ALL != 0 {
        return Err(Errno::EINVAL.into());
    }
    let file = cx.file(fd)?;
    let end = pipe_end(&file).ok_or(Errno::EBADF)?;
    let segs = segments(cx, iov, count)?;
    let nonblock = flags.0 & SPLICE_NONBLOCK != 0;
    let io_flags = file.flags();
    let task = Arc::clone(&cx.task);
    if end.is_writer() {
        let mut src = UserReader::user(task.as_ref(), &segs);
        let mut moved = 0;
        while src.remaining() > 0 {
            let step = wait(cx, &file, Events::WRITABLE, nonblock, |task| {
                end.try_write(&IoCtx { caller: task, flags: io_flags }, &mut src, Pos::Stream)
            })
            .await;
            match step {
                Ok(n) => moved += n,
                Err(end) if moved == 0 => return Err(end.into()),
                Err(_) => break,
            }
        }
        Ok(moved)
    } else {
        let mut dst = UserWriter::user(task.as_ref(), &segs);
        let n = wait(cx, &file, Events::READABLE, nonblock, |task| {
            end.try_read(&IoCtx { caller: task, flags: io_flags }, &mut dst, Pos::Stream)
        })
        .await?;
        Ok(n)
    }
}
