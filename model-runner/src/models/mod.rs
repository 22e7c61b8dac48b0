//! Model definitions: one file a family, over the operations of [`ops`](crate::ops).

mod llama;

pub use llama::{Activations, Llama};
