//! Timings of Casemate against the host, runc and runsc, as ratios taken in one run.
//!
//! Purpose: the `report` program prints a table of everything that users wait for, from one system call to a build.
//! Invariants: every figure of one row is taken in the same run on the same machine, in turn, several times, and the
//! median counts; a peer that is not installed is left out, one that fails shows as such.
//! Lock ranks: none. Threat: none.
#![allow(clippy::indexing_slicing, reason = "a developer's tool; its input is its own")]
#![allow(clippy::cast_precision_loss, reason = "figures are medians of noisy times")]

pub mod chart;
pub mod docs;
pub mod peer;
pub mod rows;
mod scripts;
pub mod table;
pub mod veth;
