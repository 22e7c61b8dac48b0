//! The `pageloom` binary.

fn main() {}
