//! The register file that a context runs with.

/// General registers, in the order and with the names of `struct user_regs_struct` (`<sys/user.h>`), which
/// `PTRACE_GETREGS` shows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Regs {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    /// The system call's number at a system call, else `u64::MAX`.
    pub orig_rax: u64,
    pub rip: u64,
    pub cs: u64,
    pub eflags: u64,
    pub rsp: u64,
    pub ss: u64,
    pub fs_base: u64,
    pub gs_base: u64,
}

impl Regs {
    /// The six arguments of a system call (`syscall(2)`, x86-64).
    pub fn syscall_args(&self) -> [u64; 6] {
        [self.rdi, self.rsi, self.rdx, self.r10, self.r8, self.r9]
    }
}

/// Extended processor state as a signal frame holds it: an XSAVE image with Linux's `_fpx_sw_bytes`, or empty
/// for the initial state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FpuState(pub Vec<u8>);
