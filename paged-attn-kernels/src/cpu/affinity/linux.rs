//! Affinity by `sched_setaffinity(2)` and its like.

use std::io;
use std::mem::size_of;
use std::os::unix::thread::JoinHandleExt;
use std::thread::JoinHandle;

use crate::KernelError;

/// CPUs that a `cpu_set_t` has bits for: 1024.
const NUM_CPUS: usize = libc::CPU_SETSIZE as usize;

fn refused(error: &io::Error) -> KernelError {
    KernelError::Affinity {
        reason: error.to_string(),
    }
}

fn empty_set() -> libc::cpu_set_t {
    // SAFETY: the type is an array of integers, for which zeros are a value: the empty set.
    unsafe { std::mem::zeroed() }
}

fn set_of(cpu: usize) -> Result<libc::cpu_set_t, KernelError> {
    if cpu >= NUM_CPUS {
        let reason = format!("CPU {cpu} is beyond the {NUM_CPUS} that can be named");
        return Err(KernelError::Affinity { reason });
    }
    let mut set = empty_set();
    // SAFETY: `cpu` is below the number of bits in the set, as was just checked.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    Ok(set)
}

pub(super) fn allowed_cpus() -> Result<Vec<usize>, KernelError> {
    let mut set = empty_set();
    // SAFETY: the set is as long as is said, and 0 is the calling thread.
    let status = unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) };
    if status != 0 {
        return Err(refused(&io::Error::last_os_error()));
    }
    // SAFETY: each number is below the number of bits in the set.
    let is_in = |cpu: &usize| unsafe { libc::CPU_ISSET(*cpu, &set) };
    Ok((0..NUM_CPUS).filter(is_in).collect())
}

pub(super) fn pin_current_thread(cpu: usize) -> Result<(), KernelError> {
    let set = set_of(cpu)?;
    // SAFETY: the set is as long as is said, and 0 is the calling thread.
    let status = unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) };
    match status {
        0 => Ok(()),
        _ => Err(refused(&io::Error::last_os_error())),
    }
}

/// Binds another thread to a CPU.
pub(in crate::cpu) fn pin_thread(thread: &JoinHandle<()>, cpu: usize) -> Result<(), KernelError> {
    let set = set_of(cpu)?;
    let len = size_of::<libc::cpu_set_t>();
    // SAFETY: the set is as long as is said, and the handle was not joined, so its thread's id is
    // valid even if the thread has ended.
    let status = unsafe { libc::pthread_setaffinity_np(thread.as_pthread_t(), len, &set) };
    match status {
        0 => Ok(()),
        error => Err(refused(&io::Error::from_raw_os_error(error))),
    }
}
