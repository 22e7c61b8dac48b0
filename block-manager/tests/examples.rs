//! The examples run.

// Their `main` is public for these tests and for nobody else.
#![allow(unreachable_pub)]

#[path = "../examples/swap.rs"]
mod swap;
#[path = "../examples/tiny_engine.rs"]
mod tiny_engine;

#[test]
fn tiny_engine() {
    tiny_engine::main().unwrap();
}

#[test]
fn swap() {
    swap::main().unwrap();
}
