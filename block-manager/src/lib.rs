//! Pageloom block-manager.
