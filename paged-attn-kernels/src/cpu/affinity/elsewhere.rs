//! Systems where Pageloom cannot pin threads.

use std::thread::JoinHandle;

use crate::KernelError;

fn unsupported() -> KernelError {
    KernelError::Affinity {
        reason: "only Linux is supported".to_owned(),
    }
}

pub(super) fn allowed_cpus() -> Result<Vec<usize>, KernelError> {
    Err(unsupported())
}

pub(super) fn pin_current_thread(_: usize) -> Result<(), KernelError> {
    Err(unsupported())
}

pub(in crate::cpu) fn pin_thread(_: &JoinHandle<()>, _: usize) -> Result<(), KernelError> {
    Err(unsupported())
}
