//! Anonymous files, mappings of the caller, and copies to and from the memory of other processes.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::check;

/// A new anonymous file that can be sealed, closed on exec (`memfd_create(2)`).
pub fn memfd(name: &CStr) -> io::Result<OwnedFd> {
    // SAFETY: the name is a C string that lives through the call.
    let fd = check(unsafe {
        libc::syscall(libc::SYS_memfd_create, name.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING)
    })?;
    // SAFETY: the kernel has just made this descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Sets the length of a file in bytes (`ftruncate(2)`).
pub fn set_len(file: BorrowedFd<'_>, len: u64) -> io::Result<()> {
    let len = i64::try_from(len).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?;
    // SAFETY: no memory is passed.
    check(unsafe { libc::syscall(libc::SYS_ftruncate, file.as_raw_fd(), len) })?;
    Ok(())
}

/// Adds seals (`F_SEAL_*`) to an anonymous file (`fcntl(2)`, `F_ADD_SEALS`).
pub fn add_seals(file: BorrowedFd<'_>, seals: i32) -> io::Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::syscall(libc::SYS_fcntl, file.as_raw_fd(), libc::F_ADD_SEALS, seals) })?;
    Ok(())
}

/// Frees the pages of a part of a file, which reads as zeroes from then on (`fallocate(2)`, `FALLOC_FL_PUNCH_HOLE`).
pub fn punch_hole(file: BorrowedFd<'_>, offset: u64, len: u64) -> io::Result<()> {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: no memory is passed.
    check(unsafe { libc::syscall(libc::SYS_fallocate, file.as_raw_fd(), mode, offset, len) })?;
    Ok(())
}

/// Maps `len` bytes of `file` from `offset` on at an address that the kernel picks (`mmap(2)`, `MAP_SHARED`).
///
/// The mapping stays until it is unmapped by [`unmap`]; nothing borrows it.
pub fn map_shared(file: BorrowedFd<'_>, offset: u64, len: usize, writable: bool) -> io::Result<*mut u8> {
    let prot = libc::PROT_READ | if writable { libc::PROT_WRITE } else { 0 };
    let offset = i64::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EOVERFLOW))?;
    // SAFETY: a new mapping where the kernel finds room touches no memory that is in use.
    let at =
        unsafe { libc::mmap(std::ptr::null_mut(), len, prot, libc::MAP_SHARED, file.as_raw_fd(), offset) };
    if at == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(at.cast()) }
}

/// Unmaps `len` bytes at `at` (`munmap(2)`).
///
/// # Safety
/// Nothing may use that memory any more.
pub unsafe fn unmap(at: *mut u8, len: usize) -> io::Result<()> {
    // SAFETY: the caller says that the memory is unused.
    if unsafe { libc::munmap(at.cast(), len) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Copies from `from` in the memory of process `pid` (`process_vm_readv(2)`); returns the bytes before the first
/// address that cannot be read.
pub fn read_process(pid: i32, from: u64, into: &mut [u8]) -> io::Result<usize> {
    let local = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    // One remote element per page, so that a copy stops at the first bad page and not before it.
    transfer(libc::SYS_process_vm_readv, pid, from, local)
}

/// Copies to `to` in the memory of process `pid` (`process_vm_writev(2)`), which respects protections; returns the
/// bytes before the first address that cannot be written.
pub fn write_process(pid: i32, to: u64, from: &[u8]) -> io::Result<usize> {
    let local = libc::iovec { iov_base: from.as_ptr().cast_mut().cast(), iov_len: from.len() };
    transfer(libc::SYS_process_vm_writev, pid, to, local)
}

fn transfer(call: libc::c_long, pid: i32, remote: u64, local: libc::iovec) -> io::Result<usize> {
    let remote = libc::iovec { iov_base: remote as *mut libc::c_void, iov_len: local.iov_len };
    // SAFETY: the local vector is a slice that the caller lends, mutably where the call writes it; the remote one
    // belongs to another process.
    let copied = check(unsafe {
        libc::syscall(call, pid, &raw const local, 1usize, &raw const remote, 1usize, 0usize)
    })?;
    Ok(copied as usize)
}
