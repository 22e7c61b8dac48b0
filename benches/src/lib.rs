//! What the benches of the workspace share: the limits of the machine they run on.

pub mod machine;
