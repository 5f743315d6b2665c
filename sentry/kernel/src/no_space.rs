//! The address space of a task that has none any more: a zombie.

use std::sync::Arc;

use platform::{
    Addr, AddrRange, AddressSpace, Advice, AtomicOp, Fault, FaultMode, MapSource, Prot, Sharing, SpaceError,
};

/// A space in which nothing is mapped and nothing can be.
pub(crate) struct NoSpace;

impl AddressSpace for NoSpace {
    fn map(&self, _: AddrRange, _: MapSource<'_>, _: Prot, _: Sharing) -> Result<(), SpaceError> {
        Err(SpaceError::Gone)
    }
    fn unmap(&self, _: AddrRange) -> Result<(), SpaceError> {
        Err(SpaceError::Gone)
    }
    fn protect(&self, _: AddrRange, _: Prot) -> Result<(), SpaceError> {
        Err(SpaceError::Gone)
    }
    fn move_pages(&self, _: AddrRange, _: Addr, _: u64) -> Result<(), SpaceError> {
        Err(SpaceError::Gone)
    }
    fn advise(&self, _: AddrRange, _: Advice) -> Result<(), SpaceError> {
        Err(SpaceError::Gone)
    }
    fn fork(&self, _: &[AddrRange], _: &[AddrRange]) -> Result<Arc<dyn AddressSpace>, SpaceError> {
        Err(SpaceError::Gone)
    }
    fn copy_in(&self, addr: Addr, _: &mut [u8], _: FaultMode) -> Result<usize, Fault> {
        Err(Fault { addr, access: Prot::READ })
    }
    fn copy_out(&self, addr: Addr, _: &[u8], _: FaultMode) -> Result<usize, Fault> {
        Err(Fault { addr, access: Prot::WRITE })
    }
    fn atomic_u32(&self, addr: Addr, _: AtomicOp) -> Result<u32, Fault> {
        Err(Fault { addr, access: Prot::READ })
    }
}
