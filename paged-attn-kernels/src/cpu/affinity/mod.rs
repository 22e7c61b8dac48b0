//! Which CPUs threads run on.

#[cfg(target_os = "linux")]
#[path = "linux.rs"]
mod system;
#[cfg(not(target_os = "linux"))]
#[path = "elsewhere.rs"]
mod system;

pub(super) use system::pin_thread;

use crate::KernelError;

/// The CPUs that the calling thread may run on, ascending, as the system counts them.
///
/// # Errors
/// [`KernelError::Affinity`] if the system does not say; elsewhere than on Linux always.
pub fn allowed_cpus() -> Result<Vec<usize>, KernelError> {
    system::allowed_cpus()
}

/// Checks that the calling thread may run on each of these CPUs, and that there are any.
///
/// # Errors
/// [`KernelError::Zero`] if there are none, [`KernelError::Cpu`] for the first that it may not run
/// on, and those of [`allowed_cpus`].
pub fn check_cpus(cpus: &[usize]) -> Result<(), KernelError> {
    if cpus.is_empty() {
        let name = "the number of CPUs";
        return Err(KernelError::Zero { name });
    }
    let allowed = allowed_cpus()?;
    match cpus.iter().find(|cpu| !allowed.contains(cpu)) {
        None => Ok(()),
        Some(&cpu) => Err(KernelError::Cpu {
            cpu,
            allowed: ranges(&allowed),
        }),
    }
}

/// Binds the calling thread to a CPU. Threads that it starts later are bound to it too.
///
/// # Errors
/// [`KernelError::Affinity`] if the system refuses, as for a CPU that is not there; elsewhere than
/// on Linux always.
pub fn pin_current_thread(cpu: usize) -> Result<(), KernelError> {
    system::pin_current_thread(cpu)
}

/// Ascending numbers as `0-3,6`.
fn ranges(cpus: &[usize]) -> String {
    let runs = cpus.chunk_by(|a, b| a + 1 == *b);
    let runs: Vec<String> = runs
        .filter_map(|run| match (run.first()?, run.last()?) {
            (first, last) if first == last => Some(first.to_string()),
            (first, last) => Some(format!("{first}-{last}")),
        })
        .collect();
    runs.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_shown_as_ranges() {
        assert_eq!(ranges(&[0, 1, 2, 3, 6, 8, 9]), "0-3,6,8-9");
        assert_eq!(ranges(&[5]), "5");
        assert_eq!(ranges(&[]), "");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_cpu_that_is_not_there_is_refused_by_its_number() {
        let allowed = allowed_cpus().unwrap();
        assert_eq!(check_cpus(&allowed), Ok(()));
        for cpu in [allowed.last().unwrap() + 1, 1 << 20, usize::MAX] {
            let shown = ranges(&allowed);
            let expected = KernelError::Cpu {
                cpu,
                allowed: shown,
            };
            assert_eq!(check_cpus(&[allowed[0], cpu]), Err(expected));
        }
        assert!(matches!(check_cpus(&[]), Err(KernelError::Zero { .. })));
        for cpu in [1 << 20, usize::MAX] {
            let refused = pin_current_thread(cpu);
            assert!(matches!(refused, Err(KernelError::Affinity { .. })));
        }
    }
}
