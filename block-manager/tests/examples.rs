//! The examples run.

#[path = "../examples/swap.rs"]
mod swap;
#[path = "../examples/tiny_engine.rs"]
mod tiny_engine;

#[test]
fn tiny_engine_runs() {
    tiny_engine::main().unwrap();
}

#[test]
fn swap_runs() {
    swap::main().unwrap();
}
