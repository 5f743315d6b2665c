//! How the kernel calls a system call: rows of a table, results, restarts.

use core::future::Future;
use core::pin::Pin;

use sentry_base::Errno;

use crate::Current;

/// How an interrupted call goes on once no handler runs or after one returns (`kernel/signal.c`, `ERESTART*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restart {
    /// `ERESTARTSYS`: again if no handler ran or the handler has `SA_RESTART`, else `EINTR`.
    Sys,
    /// `ERESTARTNOINTR`: always again.
    NoIntr,
    /// `ERESTARTNOHAND`: again only if no handler ran.
    NoHand,
    /// `ERESTART_RESTARTBLOCK`: as `NoHand`, but through `restart_syscall(2)` with what the task has stored.
    Block,
}

/// Why a call returns no value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    Errno(Errno),
    Restart(Restart),
    /// The registers hold the outcome already (`rt_sigreturn`, a successful `execve`), or the task is going away.
    RegistersSet,
}

impl From<Errno> for Stop {
    fn from(errno: Errno) -> Self {
        if errno == Errno::ERESTARTSYS { Self::Restart(Restart::Sys) } else { Self::Errno(errno) }
    }
}

pub type SysResult<T = u64> = Result<T, Stop>;

/// A call that is over, or one that may have to wait.
pub enum Call<'a> {
    Done(SysResult),
    Wait(Pin<Box<dyn Future<Output = SysResult> + Send + 'a>>),
}

impl core::fmt::Debug for Call<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Done(result) => write!(f, "Done({result:?})"),
            Self::Wait(_) => f.write_str("Wait"),
        }
    }
}

/// The code behind a row: the six raw arguments in, a [`Call`] out.
pub type Handler = for<'a> fn(&'a mut Current, [u64; 6]) -> Call<'a>;

/// How one argument is shown in a trace.
#[derive(Debug, Clone, Copy)]
pub struct Arg {
    pub name: &'static str,
    pub show: fn(&Current, u64, &mut String),
}

/// One system call: everything that is known about it.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    pub nr: u32,
    pub name: &'static str,
    pub args: &'static [Arg],
    /// What differs from Linux, for the generated support table; empty for full support.
    pub note: &'static str,
    pub call: Handler,
}

/// The table as the kernel uses it.
pub trait SyscallTable: Send + Sync {
    /// The row of a number; `None` for a call that is not there (`ENOSYS`, counted).
    fn row(&self, nr: u64) -> Option<&Row>;
    /// A name for any number, supported or not.
    fn name(&self, nr: u64) -> &'static str;
}

/// A value that a call returns in `rax`.
pub trait IntoRax {
    fn into_rax(self) -> u64;
}

macro_rules! into_rax {
    ($($ty:ty => |$v:ident| $e:expr;)*) => {
        $(impl IntoRax for $ty {
            fn into_rax(self) -> u64 {
                let $v = self;
                $e
            }
        })*
    };
}

into_rax! {
    () => |_v| 0;
    u64 => |v| v;
    u32 => |v| u64::from(v);
    usize => |v| v as u64;
    i32 => |v| i64::from(v).cast_unsigned();
    i64 => |v| v.cast_unsigned();
}
