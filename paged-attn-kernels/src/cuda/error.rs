//! What can be wrong with a call to the CUDA back end.

use thiserror::Error;

use super::Dtype;
use crate::{KernelError, KvDtype};

/// Why an operation was refused or failed.
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum CudaError {
    /// There is no GPU, or no driver for it.
    #[error("no CUDA device: {reason}")]
    NoDevice {
        /// What is missing.
        reason: String,
    },
    /// The device is too old for the kernels.
    #[error("{name} has compute capability {}.{}, and 8.0 is needed", capability.0, capability.1)]
    Capability {
        /// Name of the device.
        name: String,
        /// Its compute capability, major and minor.
        capability: (u32, u32),
    },
    /// The driver refused a call, or reports that something before it failed.
    #[error("{call}: {code}")]
    Driver {
        /// The function of the driver.
        call: &'static str,
        /// CUDA's name of the error, as `CUDA_ERROR_OUT_OF_MEMORY`.
        code: String,
    },
    /// The emulator stopped a kernel that did something wrong.
    #[error("the emulated kernel failed: {reason}")]
    Fault {
        /// What it did and where.
        reason: String,
    },
    /// No kernel was compiled for this.
    #[error("there is no kernel {name}")]
    NoKernel {
        /// The source and its variant.
        name: String,
    },
    /// Memory of one device in an operation on another.
    #[error("{name} belongs to another device")]
    OtherDevice {
        /// The argument.
        name: &'static str,
    },
    /// Activations of a type that the operation does not take there.
    #[error("{name} is {found:?}, not {expected:?}")]
    Dtype {
        /// The argument.
        name: &'static str,
        /// What it should be.
        expected: Dtype,
        /// What it is.
        found: Dtype,
    },
    /// Activations of one type over pages of another that have no kernel in common.
    #[error("{dtype:?} activations cannot be used with {} pages", kv_dtype.name())]
    KvDtype {
        /// Type of the activations.
        dtype: Dtype,
        /// Format of the pages.
        kv_dtype: KvDtype,
    },
    /// A number outside of what the operation takes.
    #[error("{name} is {found}: it must be {expected}")]
    Argument {
        /// The argument.
        name: &'static str,
        /// What it must be.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// Copies to or from the host cannot be captured in a graph.
    #[error("{call} is not possible while a graph is captured")]
    Capturing {
        /// What was tried.
        call: &'static str,
    },
    /// As the CPU back end would say.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}
