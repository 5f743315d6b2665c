//! Linux error numbers.

use core::num::NonZeroU16;

/// An error number as Linux returns it (`errno(3)`, `include/uapi/asm-generic/errno.h`).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(NonZeroU16);

pub type Result<T, E = Errno> = core::result::Result<T, E>;

impl Errno {
    /// The errno of this number, `EIO` for zero and for numbers past 4095.
    pub fn from_raw(number: i32) -> Self {
        match u16::try_from(number).ok().filter(|n| *n < 4096).and_then(NonZeroU16::new) {
            Some(n) => Self(n),
            None => Self::EIO,
        }
    }

    /// A signal is due and the call is to be made again after it (`include/linux/errno.h`). Never shown to an
    /// application: the system-call edge turns it into a restart. For objects that send the caller a stop signal and
    /// have no wait of their own to be interrupted (terminals).
    pub const ERESTARTSYS: Self = match NonZeroU16::new(512) {
        Some(n) => Self(n),
        None => Self(NonZeroU16::MIN),
    };

    pub fn raw(self) -> i32 {
        i32::from(self.0.get())
    }

    /// The value that a system call returns in `rax` for this error.
    pub fn to_rax(self) -> u64 {
        (-i64::from(self.raw())).cast_unsigned()
    }

    /// The errno of a host error.
    pub fn from_io(error: &std::io::Error) -> Self {
        Self::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
    }
}

macro_rules! errnos {
    ($($name:ident)*) => {
        impl Errno {
            $(pub const $name: Self = Self(match NonZeroU16::new(libc::$name as u16) {
                Some(n) => n,
                None => NonZeroU16::MIN,
            });)*

            /// The constant's name, or `None` for a number without one.
            pub fn name(self) -> Option<&'static str> {
                $(if self == Self::$name { return Some(stringify!($name)); })*
                None
            }
        }
    };
}

#[expect(clippy::cast_possible_truncation, reason = "every errno constant is below 4096")]
mod consts {
    use super::{Errno, NonZeroU16};
    errnos! {
        EPERM ENOENT ESRCH EINTR EIO ENXIO E2BIG ENOEXEC EBADF ECHILD EAGAIN ENOMEM EACCES EFAULT ENOTBLK EBUSY
        EEXIST EXDEV ENODEV ENOTDIR EISDIR EINVAL ENFILE EMFILE ENOTTY ETXTBSY EFBIG ENOSPC ESPIPE EROFS EMLINK
        EPIPE EDOM ERANGE EDEADLK ENAMETOOLONG ENOLCK ENOSYS ENOTEMPTY ELOOP ENOMSG EIDRM ENODATA ETIME EBADMSG
        EOVERFLOW ENOTSOCK EDESTADDRREQ EMSGSIZE EPROTOTYPE ENOPROTOOPT EPROTONOSUPPORT ESOCKTNOSUPPORT
        EOPNOTSUPP EPFNOSUPPORT EAFNOSUPPORT EADDRINUSE EADDRNOTAVAIL ENETDOWN ENETUNREACH ENETRESET
        ECONNABORTED ECONNRESET ENOBUFS EISCONN ENOTCONN ESHUTDOWN ETOOMANYREFS ETIMEDOUT ECONNREFUSED
        EHOSTDOWN EHOSTUNREACH EALREADY EINPROGRESS ESTALE EDQUOT ECANCELED EOWNERDEAD ENOTRECOVERABLE EPROTO
        EUSERS EILSEQ ENOKEY ELIBBAD
    }
}

impl core::fmt::Debug for Errno {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "E{}", self.0),
        }
    }
}

impl core::fmt::Display for Errno {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        core::fmt::Debug::fmt(self, f)
    }
}

impl std::error::Error for Errno {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names() {
        assert_eq!(Errno::ENOENT.raw(), 2);
        assert_eq!(Errno::from_raw(11), Errno::EAGAIN);
        assert_eq!(format!("{}", Errno::ENOSYS), "ENOSYS");
        assert_eq!(Errno::EPERM.to_rax(), u64::MAX);
        assert_eq!(Errno::from_raw(0), Errno::EIO);
    }
}
