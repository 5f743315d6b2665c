//! Bytes in memory that nobody can change any more (`memfd_create(2)`, seals).

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const SEALS: libc::c_int = libc::F_SEAL_SEAL | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE;

fn memfd(executable: bool) -> io::Result<File> {
    /// `MFD_EXEC` (6.3): older kernels do not know it and make every memfd executable.
    const MFD_EXEC: libc::c_uint = 0x10;
    let base = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    let mut fd = -1;
    if executable {
        // SAFETY: the name is a C string.
        fd = unsafe { libc::memfd_create(c"casemate".as_ptr(), base | MFD_EXEC) };
    }
    if fd < 0 {
        // SAFETY: the name is a C string.
        fd = unsafe { libc::memfd_create(c"casemate".as_ptr(), base) };
    }
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made the descriptor for us alone.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd) }))
}

fn seal(file: &File) -> io::Result<()> {
    // SAFETY: integers only.
    let done = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, SEALS) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A sealed file that holds `bytes`, at offset 0.
pub fn of_bytes(bytes: &[u8]) -> io::Result<OwnedFd> {
    let mut file = memfd(false)?;
    file.write_all(bytes)?;
    file.seek(SeekFrom::Start(0))?;
    seal(&file)?;
    Ok(file.into())
}

/// A sealed, executable copy of `source`.
pub fn executable(source: &mut File) -> io::Result<OwnedFd> {
    let mut file = memfd(true)?;
    io::copy(source, &mut file)?;
    seal(&file)?;
    Ok(file.into())
}
