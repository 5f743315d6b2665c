//! Mount options (`tmpfs(5)`).

use sentry_base::{Errno, Result};

/// What a tmpfs is mounted with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TmpfsOptions {
    /// Bytes of data; `None` for no limit of its own.
    pub size: Option<u64>,
    pub inodes: Option<u64>,
    /// Permission bits of the root.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

impl Default for TmpfsOptions {
    fn default() -> Self {
        Self { size: None, inodes: None, mode: 0o1777, uid: 0, gid: 0 }
    }
}

impl TmpfsOptions {
    /// Reads comma-separated options, `EINVAL` for one that tmpfs does not know. `ram` is what percentages are of.
    pub fn parse(text: &str, ram: u64) -> Result<Self> {
        let mut options = Self::default();
        for item in text.split(',').filter(|i| !i.is_empty()) {
            let (key, value) = item.split_once('=').unwrap_or((item, ""));
            match key {
                "size" => options.size = limit(bytes(value, ram)?),
                "nr_blocks" => options.size = limit(bytes(value, ram)?.saturating_mul(4096)),
                "nr_inodes" => options.inodes = limit(bytes(value, ram)?),
                "mode" => {
                    options.mode = u32::from_str_radix(value, 8).map_err(|_| Errno::EINVAL)? & 0o7777;
                }
                "uid" => options.uid = value.parse().map_err(|_| Errno::EINVAL)?,
                "gid" => options.gid = value.parse().map_err(|_| Errno::EINVAL)?,
                // Accepted for what they are on Linux and without effect here.
                "huge" | "mpol" | "inode32" | "inode64" | "noswap" => {}
                _ => return Err(Errno::EINVAL),
            }
        }
        Ok(options)
    }

    /// The options as `/proc/mounts` shows them.
    pub fn text(&self) -> String {
        let mut parts = Vec::new();
        if let Some(size) = self.size {
            parts.push(format!("size={}k", size / 1024));
        }
        if let Some(inodes) = self.inodes {
            parts.push(format!("nr_inodes={inodes}"));
        }
        if self.mode != 0o1777 {
            parts.push(format!("mode={:o}", self.mode));
        }
        if self.uid != 0 {
            parts.push(format!("uid={}", self.uid));
        }
        if self.gid != 0 {
            parts.push(format!("gid={}", self.gid));
        }
        parts.join(",")
    }
}

/// Zero stands for no limit.
fn limit(value: u64) -> Option<u64> {
    (value > 0).then_some(value)
}

/// A number with an optional suffix `k`, `m`, `g`, `t` or `%`.
fn bytes(text: &str, ram: u64) -> Result<u64> {
    let (digits, unit) = match text.char_indices().next_back() {
        Some((at, c)) if !c.is_ascii_digit() => (text.get(..at).unwrap_or_default(), Some(c)),
        _ => (text, None),
    };
    let number: u64 = digits.parse().map_err(|_| Errno::EINVAL)?;
    let shift = match unit.map(|c| c.to_ascii_lowercase()) {
        None => 0,
        Some('k') => 10,
        Some('m') => 20,
        Some('g') => 30,
        Some('t') => 40,
        Some('%') => return Ok(ram / 100 * number),
        Some(_) => return Err(Errno::EINVAL),
    };
    number.checked_mul(1 << shift).ok_or(Errno::EINVAL)
}
