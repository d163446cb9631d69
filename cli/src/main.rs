//! The `foreshard` binary.
fn main() {}
