//! Files of `memfd_create(2)`.

use std::sync::Arc;

use sentry_base::{Errno, Result};
use sentry_memory::MemoryFile;
use sentry_vfs::{Credentials, Dentry, FileDescription, FileSystem, Location, Mount, OpenFlags, Owner};

use crate::file::OpenTmpfs;
use crate::inode::{Body, TmpInode};
use crate::{TmpFs, TmpfsOptions};

/// Seals of `fcntl(2)` (`F_SEAL_*`).
pub mod seal {
    pub const SEAL: u32 = 1;
    pub const SHRINK: u32 = 2;
    pub const GROW: u32 = 4;
    pub const WRITE: u32 = 8;
    pub const FUTURE_WRITE: u32 = 16;
    pub const EXEC: u32 = 32;
    pub const ALL: u32 = 63;
}

/// Makes memory files, all on one internal mount.
#[derive(Debug)]
pub struct MemfdMaker {
    fs: Arc<TmpFs>,
    mount: Arc<Mount>,
}

impl MemfdMaker {
    pub fn new(memory: &Arc<MemoryFile>) -> Arc<Self> {
        let fs = TmpFs::new(memory, TmpfsOptions::default());
        let mount = Mount::detached(Arc::clone(&fs) as Arc<dyn FileSystem>);
        Arc::new(Self { fs, mount })
    }

    /// A new file, shown as `/memfd:name (deleted)`. `flags` holds `MFD_*`; `EINVAL` for unknown ones, for huge pages
    /// and for a name of more than 249 bytes.
    pub fn create(&self, name: &[u8], flags: u32, creds: &Credentials) -> Result<Arc<FileDescription>> {
        const KNOWN: u32 =
            libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING | libc::MFD_NOEXEC_SEAL | libc::MFD_EXEC;
        let both = libc::MFD_NOEXEC_SEAL | libc::MFD_EXEC;
        if flags & !KNOWN != 0 || flags & both == both || name.len() > 249 {
            return Err(Errno::EINVAL);
        }
        let no_exec = flags & libc::MFD_NOEXEC_SEAL != 0;
        let mode = if no_exec { 0o666 } else { 0o777 };
        let owner = Owner { uid: creds.fsuid, gid: creds.fsgid };
        let inode = TmpInode::nameless(self.fs.shared(), mode, owner)?;
        if let Body::File { seals, .. } = &mut inode.state.write().body {
            *seals = match (flags & libc::MFD_ALLOW_SEALING != 0, no_exec) {
                (_, true) => seal::EXEC,
                (true, false) => 0,
                (false, false) => seal::SEAL,
            };
        }
        let ops = Arc::new(OpenTmpfs::new(Arc::clone(&inode)));
        let name = [b"memfd:", name].concat();
        let dentry = Dentry::detached(inode, None, &name);
        let location = Location { mount: Arc::clone(&self.mount), dentry };
        Ok(FileDescription::new(ops, OpenFlags::RDWR | OpenFlags::LARGEFILE, Some(location)))
    }
}
