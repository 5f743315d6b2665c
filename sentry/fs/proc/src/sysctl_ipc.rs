//! The part of `/proc/sys` that belongs to an IPC namespace (`ipc/ipc_sysctl.c`, `ipc/mq_sysctl.c`): each file speaks of the
//! namespace of whoever reads or writes it.

use std::sync::Arc;

use sentry_base::{Errno, Result};
use sentry_ipc::{IpcNamespace, Limit};
use sentry_kernel::Kernel;
use sentry_vfs::pseudo::{Content, PseudoFs};
use sentry_vfs::{Caller, Inode};

type Entry = (&'static str, Arc<dyn Inode>);

/// What lies in `/proc/sys/kernel`.
pub(crate) fn kernel(fs: &Arc<PseudoFs>, kernel: &Arc<Kernel>) -> Vec<Entry> {
    const SEM: &[Limit] = &[Limit::SemMsl, Limit::SemMns, Limit::SemOpm, Limit::SemMni];
    entries(
        fs,
        kernel,
        &[
            ("msgmax", &[Limit::MsgMax]),
            ("msgmnb", &[Limit::MsgMnb]),
            ("msgmni", &[Limit::MsgMni]),
            ("sem", SEM),
            ("shm_rmid_forced", &[Limit::ShmRmidForced]),
            ("shmall", &[Limit::ShmAll]),
            ("shmmax", &[Limit::ShmMax]),
            ("shmmni", &[Limit::ShmMni]),
        ],
    )
}

/// What lies in `/proc/sys/fs/mqueue`.
pub(crate) fn mqueue(fs: &Arc<PseudoFs>, kernel: &Arc<Kernel>) -> Vec<Entry> {
    entries(
        fs,
        kernel,
        &[
            ("msg_default", &[Limit::MqMsgDefault]),
            ("msg_max", &[Limit::MqMsgMax]),
            ("msgsize_default", &[Limit::MqMsgsizeDefault]),
            ("msgsize_max", &[Limit::MqMsgsizeMax]),
            ("queues_max", &[Limit::MqQueuesMax]),
        ],
    )
}

fn entries(
    fs: &Arc<PseudoFs>,
    kernel: &Arc<Kernel>,
    rows: &[(&'static str, &'static [Limit])],
) -> Vec<Entry> {
    let file = |limits| fs.file(0o644, Numbers { kernel: Arc::clone(kernel), limits });
    rows.iter().map(|(name, limits)| (*name, file(*limits))).collect()
}

/// A line of numbers.
struct Numbers {
    kernel: Arc<Kernel>,
    limits: &'static [Limit],
}

impl Numbers {
    fn namespace(&self, caller: &dyn Caller) -> Arc<IpcNamespace> {
        match crate::task_of(caller) {
            Some(task) => task.ipc(),
            None => self.kernel.first_ipc().extension(),
        }
    }
}

impl Content for Numbers {
    fn text(&self, caller: &dyn Caller) -> Result<Vec<u8>> {
        let namespace = self.namespace(caller);
        let numbers: Vec<_> =
            self.limits.iter().map(|limit| namespace.limits.get(*limit).to_string()).collect();
        Ok((numbers.join("\t") + "\n").into_bytes())
    }

    /// Takes as many numbers as there are; the rest stays (`proc_dointvec`).
    fn store(&self, caller: &dyn Caller, data: &[u8]) -> Result<usize> {
        let text = core::str::from_utf8(data).map_err(|_| Errno::EINVAL)?;
        let namespace = self.namespace(caller);
        let mut words = text.trim_matches('\0').split_ascii_whitespace().peekable();
        if words.peek().is_none() {
            return Err(Errno::EINVAL);
        }
        for (limit, word) in self.limits.iter().zip(words) {
            namespace.set_limit(*limit, number(word).ok_or(Errno::EINVAL)?)?;
        }
        Ok(data.len())
    }
}

/// A number as `simple_strtoul` reads it: hexadecimal after `0x`, octal after `0`.
fn number(word: &str) -> Option<u64> {
    match word.strip_prefix("0x").or_else(|| word.strip_prefix("0X")) {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None if word.len() > 1 && word.starts_with('0') => u64::from_str_radix(word, 8).ok(),
        None => word.parse().ok(),
    }
}
