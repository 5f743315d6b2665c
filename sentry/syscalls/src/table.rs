//! The table of all rows, and the macro that writes them.
//!
//! ```text
//! syscalls! {
//!     39 getpid() [sync];
//!     35 nanosleep(req: Ptr, rem: Ptr) [wait];
//!     0 read(fd: i32, buf: Ptr, len: usize) [call];
//!     41 socket(domain: i32, kind: i32, protocol: i32) [sync, "AF_UNIX only"];
//! }
//! ```
//!
//! `sync` rows name a function `fn(&mut Current, ..) -> Result<impl IntoRax, impl Into<Stop>>`, `wait` rows an
//! `async fn` of that shape, `call` rows a function that returns a [`Call`] itself: tried at once, boxed only when it
//! has to wait.

use sentry_kernel::{Row, SyscallTable};

/// Writes `pub const ROWS: &[Row]` for one family.
macro_rules! syscalls {
    ($($nr:literal $name:ident($($arg:ident: $ty:ty),*) [$kind:ident $(, $note:literal)?];)*) => {
        pub const ROWS: &[sentry_kernel::Row] = &[$(
            sentry_kernel::Row {
                nr: $nr,
                name: stringify!($name),
                args: &[$(sentry_kernel::syscall::Arg {
                    name: stringify!($arg),
                    show: <$ty as $crate::args::SysArg>::show,
                }),*],
                note: concat!($($note)?),
                call: {
                    fn call(cx: &mut sentry_kernel::Current, raw: [u64; 6]) -> sentry_kernel::Call<'_> {
                        #[allow(unused_variables, reason = "a call without arguments reads none")]
                        let [a, b, c, d, e, f] = raw;
                        $crate::table::syscalls!(@bind [a b c d e f] $($arg: $ty),*);
                        $crate::table::syscalls!(@$kind cx $name $($arg)*)
                    }
                    call
                },
            },
        )*];
    };
    (@bind [$($raw:ident)*]) => {};
    (@bind [$raw:ident $($rest:ident)*] $arg:ident: $ty:ty $(, $args:ident: $tys:ty)*) => {
        let $arg = <$ty as $crate::args::SysArg>::from_raw($raw);
        $crate::table::syscalls!(@bind [$($rest)*] $($args: $tys),*);
    };
    (@sync $cx:ident $name:ident $($arg:ident)*) => {
        sentry_kernel::Call::Done(
            $name($cx $(, $arg)*).map(sentry_kernel::IntoRax::into_rax).map_err(Into::into),
        )
    };
    (@wait $cx:ident $name:ident $($arg:ident)*) => {
        sentry_kernel::Call::Wait(Box::pin(async move {
            $name($cx $(, $arg)*).await.map(sentry_kernel::IntoRax::into_rax).map_err(Into::into)
        }))
    };
    (@call $cx:ident $name:ident $($arg:ident)*) => {
        $name($cx $(, $arg)*)
    };
}
pub(crate) use syscalls;

/// Numbers above the last of x86-64's table are no calls.
const NUMBERS: usize = 512;

/// The families, each with its rows.
const FAMILIES: &[&[Row]] = &[
    crate::sys_aio::ROWS,
    crate::sys_attr::ROWS,
    crate::sys_cred::ROWS,
    crate::sys_epoll::ROWS,
    crate::sys_event::ROWS,
    crate::sys_exec::ROWS,
    crate::sys_fd::ROWS,
    crate::sys_futex::ROWS,
    crate::sys_inotify::ROWS,
    crate::sys_io::ROWS,
    crate::sys_misc::ROWS,
    crate::sys_mm::ROWS,
    crate::sys_mqueue::ROWS,
    crate::sys_mount::ROWS,
    crate::sys_mount_fd::ROWS,
    crate::sys_path::ROWS,
    crate::sys_pipe::ROWS,
    crate::sys_poll::ROWS,
    crate::sys_process::ROWS,
    crate::sys_sched::ROWS,
    crate::sys_seccomp::ROWS,
    crate::sys_ptrace::ROWS,
    crate::sys_signal::ROWS,
    crate::sys_socket::ROWS,
    crate::sys_stat::ROWS,
    crate::sys_sysv::ROWS,
    crate::sys_time::ROWS,
    crate::sys_timer::ROWS,
];

/// Every supported call by number.
pub struct Table {
    rows: Vec<Option<&'static Row>>,
}

impl core::fmt::Debug for Table {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Table({} calls)", self.rows().count())
    }
}

impl Default for Table {
    fn default() -> Self {
        Self::new()
    }
}

impl Table {
    pub fn new() -> Self {
        let mut rows = vec![None; NUMBERS];
        for row in FAMILIES.iter().flat_map(|family| family.iter()) {
            if let Some(slot) = rows.get_mut(row.nr as usize) {
                *slot = Some(row);
            }
        }
        Self { rows }
    }

    /// The supported calls in the order of their numbers.
    pub fn rows(&self) -> impl Iterator<Item = &'static Row> + '_ {
        self.rows.iter().flatten().copied()
    }
}

impl SyscallTable for Table {
    fn row(&self, nr: u64) -> Option<&Row> {
        self.rows.get(usize::try_from(nr).ok()?).copied().flatten()
    }

    fn name(&self, nr: u64) -> &'static str {
        match self.row(nr) {
            Some(row) => row.name,
            None => abi::syscall_name(nr).unwrap_or("unknown"),
        }
    }
}
