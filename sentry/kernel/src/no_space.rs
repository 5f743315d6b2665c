//! Stand-ins: the address space of a zombie, and the context of a task whose own is with its tracer.

use std::sync::Arc;
use std::task::{Context as Poller, Poll};

use platform::{
    Addr, AddrRange, AddressSpace, Advice, AtomicOp, Cause, Context, Fault, FaultMode, FpuState, Kick,
    MapSource, Prot, Regs, Sharing, SpaceError, TrapEvent,
};

/// A context in which nothing can run.
pub(crate) struct NoContext;

impl Context for NoContext {
    fn poll_switch(&mut self, _: &mut Poller<'_>, _: &mut Regs) -> Poll<TrapEvent> {
        Poll::Ready(TrapEvent::Died(Cause::Protocol("a task ran while its tracer had it")))
    }
    fn staged(&self, _: Addr) -> Option<&[u8]> {
        None
    }
    fn fpu(&mut self) -> Result<FpuState, SpaceError> {
        Err(SpaceError::Gone)
    }
    fn set_fpu(&mut self, _: &FpuState) -> Result<(), SpaceError> {
        Err(SpaceError::Gone)
    }
    fn kicker(&self) -> Arc<dyn Kick> {
        Arc::new(NoKick)
    }
}

struct NoKick;

impl Kick for NoKick {
    fn kick(&self) {}
}

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
