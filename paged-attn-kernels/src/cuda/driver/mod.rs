//! What the launchers need of a CUDA driver.

mod emulated;
#[cfg(feature = "cuda")]
mod real;

use std::fmt::Debug;

pub(crate) use emulated::Emulated;
#[cfg(feature = "cuda")]
pub(crate) use real::Real;

use super::code::Code;
use super::{CudaError, DeviceProperties};

/// An address in the device's address space.
pub(crate) type Address = u64;

/// A stream, an event or a graph of a driver.
pub(crate) type Handle = u64;

/// A kernel: an entry of compiled code.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kernel {
    pub(crate) code: &'static Code,
    pub(crate) entry: &'static str,
}

/// How many threads run a kernel, and with how much shared memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LaunchShape {
    /// CTAs along x, y and z; none of them zero.
    pub(crate) grid: [u32; 3],
    /// Threads of a CTA.
    pub(crate) threads: u32,
    /// Dynamic shared memory of a CTA.
    pub(crate) shared_bytes: u32,
}

/// A device's memory, streams and launches.
///
/// Handles and addresses are only used with the driver that gave them, and not after they were
/// dropped: the types over it ([`Buffer`](super::Buffer), [`Stream`](super::Stream), ...) see to that.
pub(crate) trait Driver: Debug + Send + Sync {
    fn properties(&self) -> &DeviceProperties;

    /// Device memory, at least 256-byte aligned, of unspecified contents. `bytes` is not zero.
    fn alloc(&self, bytes: usize) -> Result<Address, CudaError>;
    fn free(&self, address: Address);
    /// Page-locked host memory that kernels reach at the same address.
    fn alloc_pinned(&self, bytes: usize) -> Result<Address, CudaError>;
    fn free_pinned(&self, address: Address);

    fn new_stream(&self) -> Result<Handle, CudaError>;
    fn drop_stream(&self, stream: Handle);
    /// Waits for all of a stream's work.
    fn synchronize(&self, stream: Handle) -> Result<(), CudaError>;
    /// `data` may be changed once this returns.
    fn copy_in(&self, stream: Handle, to: Address, data: &[u8]) -> Result<(), CudaError>;
    /// Waits for the stream; `data` is complete then.
    fn copy_out(&self, stream: Handle, from: Address, data: &mut [u8]) -> Result<(), CudaError>;
    /// Copies between buffers of `len` bytes or more that do not overlap.
    fn copy(&self, stream: Handle, from: Address, to: Address, len: usize)
    -> Result<(), CudaError>;
    fn fill(&self, stream: Handle, to: Address, byte: u8, len: usize) -> Result<(), CudaError>;

    /// Launches `kernel` with the bytes of its one parameter.
    fn launch(
        &self,
        stream: Handle,
        kernel: Kernel,
        shape: LaunchShape,
        params: &[u8],
    ) -> Result<(), CudaError>;

    fn begin_capture(&self, stream: Handle) -> Result<(), CudaError>;
    fn end_capture(&self, stream: Handle) -> Result<Handle, CudaError>;
    fn launch_graph(&self, stream: Handle, graph: Handle) -> Result<(), CudaError>;
    fn drop_graph(&self, graph: Handle);

    fn new_event(&self) -> Result<Handle, CudaError>;
    fn drop_event(&self, event: Handle);
    fn record(&self, stream: Handle, event: Handle) -> Result<(), CudaError>;
    /// Makes what comes next on `stream` wait for `event`.
    fn wait(&self, stream: Handle, event: Handle) -> Result<(), CudaError>;
    /// Milliseconds from one recorded event to another; waits for both.
    fn elapsed_ms(&self, start: Handle, end: Handle) -> Result<f32, CudaError>;
}
