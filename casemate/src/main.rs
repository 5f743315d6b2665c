//! The `casemate` binary: one static program that holds every process of a sandbox.
//!
//! The command line lives in `runsc-compat`; the sandbox process and the gofer are started by re-executing
//! this binary under an internal first argument.

fn main() {}
