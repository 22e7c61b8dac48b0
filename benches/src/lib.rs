//! Pageloom benches.
