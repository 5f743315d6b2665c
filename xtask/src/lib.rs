//! Developer tasks, and the parts that the end-to-end tests and the benchmarks share with them.
//!
//! Purpose: build root filesystems and bundles, start programs under a supervisor that sees what they leave behind,
//! and hold the workspace to its own rules (direction of dependencies, ratchets).
//! Invariants: nothing outside the cache directory, the target directory and a test's own temporary directory is
//! written; a root filesystem in the cache is complete or absent, and never written to once it is there.
//! Lock ranks: none; the cache is guarded by a file lock. Threat: none, all input is the project's own.
#![allow(
    clippy::indexing_slicing,
    reason = "a developer's tool may stop with a panic; its input is the project's own files"
)]

pub mod bundle;
pub mod crates;
pub mod demo;
pub mod engine;
pub mod gonet;
pub mod jobs;
pub mod layers;
pub mod native;
pub mod place;
pub mod processes;
pub mod programs;
pub mod python;
pub mod ratchet;
pub mod rootfs;
pub mod shell;
pub mod source;
pub mod suites;
pub mod supervise;
pub mod test;
pub mod trial;
