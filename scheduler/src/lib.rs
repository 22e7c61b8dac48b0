//! Pageloom scheduler.
