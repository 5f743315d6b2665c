//! Typed arguments: how a raw register becomes an argument, and how a trace shows it.

use core::fmt::Write;

use sentry_kernel::Current;

/// An argument type of a row.
pub trait SysArg: Sized {
    fn from_raw(raw: u64) -> Self;
    fn show(cx: &Current, raw: u64, out: &mut String);
}

macro_rules! integers {
    ($($ty:ty)*) => {
        $(impl SysArg for $ty {
            #[allow(clippy::cast_possible_truncation, reason = "Linux takes the low bits of a register")]
            fn from_raw(raw: u64) -> Self {
                raw as $ty
            }
            fn show(_cx: &Current, raw: u64, out: &mut String) {
                let _ = write!(out, "{}", Self::from_raw(raw));
            }
        })*
    };
}

integers! { i32 u32 i64 u64 usize }

/// A pointer into user memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ptr(pub u64);

impl Ptr {
    pub fn is_null(self) -> bool {
        self.0 == 0
    }
}

impl SysArg for Ptr {
    fn from_raw(raw: u64) -> Self {
        Self(raw)
    }
    fn show(_cx: &Current, raw: u64, out: &mut String) {
        let _ = if raw == 0 { write!(out, "NULL") } else { write!(out, "{raw:#x}") };
    }
}

/// A pointer to a path, shown as the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathPtr(pub u64);

impl SysArg for PathPtr {
    fn from_raw(raw: u64) -> Self {
        Self(raw)
    }
    fn show(cx: &Current, raw: u64, out: &mut String) {
        let _ = match cx.path(raw) {
            Ok(path) => write!(out, "{:?}", String::from_utf8_lossy(&path)),
            Err(_) => write!(out, "{raw:#x}"),
        };
    }
}

/// The directory argument of an `*at` call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirFd(pub i32);

impl SysArg for DirFd {
    fn from_raw(raw: u64) -> Self {
        Self(i32::from_raw(raw))
    }
    fn show(_cx: &Current, raw: u64, out: &mut String) {
        let fd = i32::from_raw(raw);
        let _ = if fd == libc::AT_FDCWD { write!(out, "AT_FDCWD") } else { write!(out, "{fd}") };
    }
}

/// Flag words and modes, shown in hexadecimal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bits(pub u32);

impl SysArg for Bits {
    fn from_raw(raw: u64) -> Self {
        Self(u32::from_raw(raw))
    }
    fn show(_cx: &Current, raw: u64, out: &mut String) {
        let _ = write!(out, "{:#x}", u32::from_raw(raw));
    }
}

/// Copies in a structure that may grow (`copy_struct_from_user`): one shorter than `dst` is filled up with zeroes, one
/// longer must hold nothing but zeroes past it. `EINVAL` below `min`, `E2BIG` above a page or for unknown contents.
pub(crate) fn copy_struct(
    cx: &Current,
    at: Ptr,
    size: usize,
    min: usize,
    dst: &mut [u8],
) -> sentry_base::Result<()> {
    use sentry_base::Errno;
    if size < min {
        return Err(Errno::EINVAL);
    }
    if size > 4096 {
        return Err(Errno::E2BIG);
    }
    let known = size.min(dst.len());
    cx.copy_in(at.0, dst.get_mut(..known).unwrap_or_default())?;
    if size > known {
        let mut rest = vec![0; size - known];
        cx.copy_in(at.0.wrapping_add(known as u64), &mut rest)?;
        if rest.iter().any(|b| *b != 0) {
            return Err(Errno::E2BIG);
        }
    }
    Ok(())
}
