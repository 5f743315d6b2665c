//! execve(2), execveat(2).

use sentry_base::{Errno, Result};
use sentry_kernel::{Current, ExecSpec, Stop, SysResult, execve as exec};
use sentry_memory::UserMemory;
use sentry_vfs::LookupFlags;

use crate::args::{Bits, DirFd, PathPtr, Ptr};
use crate::table::syscalls;

syscalls! {
    59 execve(path: PathPtr, argv: Ptr, envp: Ptr) [wait];
    322 execveat(dir: DirFd, path: PathPtr, argv: Ptr, envp: Ptr, flags: Bits) [wait];
}

async fn execve(cx: &mut Current, path: PathPtr, argv: Ptr, envp: Ptr) -> SysResult<()> {
    let path = cx.path(path.0)?;
    let (argv, envp) = vectors(cx, argv, envp)?;
    let spec = ExecSpec {
        base: None,
        filename: path.clone(),
        path,
        flags: LookupFlags::FOLLOW,
        name_vanishes: false,
        argv,
        envp,
    };
    Err(exec(cx, spec).await)
}

async fn execveat(
    cx: &mut Current,
    dir: DirFd,
    path: PathPtr,
    argv: Ptr,
    envp: Ptr,
    flags: Bits,
) -> SysResult<()> {
    const EMPTY_PATH: u32 = libc::AT_EMPTY_PATH as u32;
    const NOFOLLOW: u32 = libc::AT_SYMLINK_NOFOLLOW as u32;
    if flags.0 & !(EMPTY_PATH | NOFOLLOW) != 0 {
        return Err(Errno::EINVAL.into());
    }
    let path = cx.path(path.0)?;
    if path.is_empty() && flags.0 & EMPTY_PATH == 0 {
        return Err(Errno::ENOENT.into());
    }
    let mut lookup = LookupFlags::empty();
    if flags.0 & NOFOLLOW == 0 {
        lookup |= LookupFlags::FOLLOW;
    }
    if flags.0 & EMPTY_PATH != 0 {
        lookup |= LookupFlags::EMPTY;
    }
    let (mut base, mut filename, mut name_vanishes) = (None, path.clone(), false);
    if dir.0 != libc::AT_FDCWD && !path.starts_with(b"/") {
        let file = cx.file_or_path(dir.0)?;
        base = Some(file.location().cloned().ok_or(Errno::EACCES)?);
        name_vanishes = cx.fds().cloexec(dir.0)?;
        filename = format!("/dev/fd/{}", dir.0).into_bytes();
        if !path.is_empty() {
            filename.push(b'/');
            filename.extend_from_slice(&path);
        }
    }
    let (argv, envp) = vectors(cx, argv, envp)?;
    Err(exec(cx, ExecSpec { base, path, flags: lookup, filename, name_vanishes, argv, envp }).await)
}

type Strings = Vec<Vec<u8>>;

/// The argument and environment vectors. `E2BIG` as soon as they are more than a program may get.
fn vectors(cx: &Current, argv: Ptr, envp: Ptr) -> Result<(Strings, Strings), Stop> {
    let limit = sentry_loader::strings_limit(cx.rlimit(abi::process::rlimit::STACK));
    let mut reader = StringReader { cx, left: limit, window: Vec::new(), window_at: 0 };
    Ok((reader.vector(argv.0)?, reader.vector(envp.0)?))
}

/// Reads many strings that mostly lie side by side: a page at a time instead of a copy for each.
struct StringReader<'a> {
    cx: &'a Current,
    /// Bytes of strings and pointers that may still come.
    left: u64,
    window: Vec<u8>,
    window_at: u64,
}

const PAGE: u64 = 4096;
/// `MAX_ARG_STRLEN`.
const STRING_MAX: usize = 128 << 10;

impl StringReader<'_> {
    fn vector(&mut self, at: u64) -> Result<Strings> {
        let mut out = Vec::new();
        if at == 0 {
            return Ok(out);
        }
        let mut at = at;
        let mut chunk = [0_u8; 512];
        loop {
            let to_page_end = usize::try_from(PAGE - at % PAGE).unwrap_or(8).max(8);
            let len = chunk.len().min(to_page_end) / 8 * 8;
            let part = chunk.get_mut(..len).ok_or(Errno::EFAULT)?;
            let got = self.cx.task.copy_in_partial(at, part)? / 8 * 8;
            if got == 0 {
                return Err(Errno::EFAULT);
            }
            for bytes in part.get(..got).unwrap_or_default().chunks_exact(8) {
                let pointer = u64::from_le_bytes(bytes.try_into().unwrap_or_default());
                if pointer == 0 {
                    return Ok(out);
                }
                let string = self.string(pointer)?;
                self.spend(string.len() as u64 + 9)?;
                out.push(string);
            }
            at = at.checked_add(got as u64).ok_or(Errno::EFAULT)?;
        }
    }

    fn spend(&mut self, bytes: u64) -> Result<()> {
        self.left = self.left.checked_sub(bytes).ok_or(Errno::E2BIG)?;
        Ok(())
    }

    /// The bytes from `at` to the end of its page, or as many as can be read; at least one.
    fn bytes(&mut self, at: u64) -> Result<&[u8]> {
        let inside = at.checked_sub(self.window_at).and_then(|o| usize::try_from(o).ok());
        let hit = inside.is_some_and(|offset| offset < self.window.len());
        if !hit {
            let len = usize::try_from(PAGE - at % PAGE).unwrap_or(1);
            self.window.resize(len, 0);
            let got = self.cx.task.copy_in_partial(at, &mut self.window);
            self.window.truncate(*got.as_ref().unwrap_or(&0));
            self.window_at = at;
            got?;
        }
        let offset = usize::try_from(at.wrapping_sub(self.window_at)).unwrap_or(0);
        self.window.get(offset..).filter(|b| !b.is_empty()).ok_or(Errno::EFAULT)
    }

    fn string(&mut self, mut at: u64) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        loop {
            let bytes = self.bytes(at)?;
            if let Some(end) = bytes.iter().position(|b| *b == 0) {
                out.extend_from_slice(bytes.get(..end).unwrap_or_default());
                return Ok(out);
            }
            out.extend_from_slice(bytes);
            if out.len() >= STRING_MAX {
                return Err(Errno::E2BIG);
            }
            at = at.checked_add(bytes.len() as u64).ok_or(Errno::EFAULT)?;
        }
    }
}
