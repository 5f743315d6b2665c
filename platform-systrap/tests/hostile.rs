//! What applications may not do.
mod common;
fn main() {
    common::run(&[]);
}
