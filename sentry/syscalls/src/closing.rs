//! `close(2)`, which waits for a socket that lingers (`socket(7)`, `SO_LINGER`).

use std::sync::Arc;

use sentry_base::{Nanos, WaitClass, WaitEnd, mono_now};
use sentry_kernel::{Call, Current};
use sentry_net::SocketFile;
use sentry_vfs::FileDescription;

pub(crate) fn close(cx: &mut Current, fd: i32) -> Call<'_> {
    let fds = cx.fds();
    let file = match fds.remove(fd) {
        Ok(file) => file,
        Err(errno) => return Call::Done(Err(errno.into())),
    };
    // The last descriptor of a socket that is to be emptied first.
    if Arc::strong_count(&file) == 1
        && let Ok(socket) = SocketFile::of(&file)
        && let Some(limit) = socket.lingers()
    {
        let until = mono_now().saturating_add(limit);
        return Call::Wait(Box::pin(async move {
            linger(cx, &file, until).await;
            fds.closed(file, cx.pid());
            Ok(0)
        }));
    }
    fds.closed(file, cx.pid());
    Call::Done(Ok(0))
}

/// Waits until the other end's system has taken what was sent (`sk_stream_wait_close`), a signal comes or time is over.
async fn linger(cx: &mut Current, file: &Arc<FileDescription>, until: Nanos) {
    /// How often that is looked at: what tells of it tells a writer, who wants more room than this.
    const STEP: Nanos = 2_000_000;
    while SocketFile::of(file).is_ok_and(|socket| socket.lingers().is_some()) {
        let next = mono_now().saturating_add(STEP).min(until);
        cx.task.sleeper().arm();
        let end = cx.sleep(WaitClass::Interruptible, Some(next)).await;
        if matches!(end, WaitEnd::Interrupted | WaitEnd::Killed) || next == until {
            return;
        }
    }
}
