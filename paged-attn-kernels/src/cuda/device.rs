//! A GPU, or the emulation of one.

use std::fmt;
use std::sync::Arc;

use bytemuck::Pod;

use super::driver::{Driver, Emulated};
use super::{Buffer, CudaError, Stream};

/// A GPU whose memory and streams can be used. Clones are the same device.
#[derive(Clone)]
pub struct Device {
    driver: Arc<dyn Driver>,
}

/// What a device has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceProperties {
    /// Its name, as the driver says it.
    pub name: String,
    /// Compute capability, major and minor.
    pub capability: (u32, u32),
    /// Multiprocessors.
    pub num_sms: u32,
    /// Shared memory that a CTA can have.
    pub shared_bytes: u32,
    /// Device memory.
    pub memory_bytes: usize,
    /// Whether it is the emulator.
    pub emulated: bool,
}

impl Device {
    /// How many devices the driver shows.
    ///
    /// # Errors
    /// [`CudaError::NoDevice`] where there is no usable driver.
    pub fn count() -> Result<usize, CudaError> {
        #[cfg(feature = "cuda")]
        return super::driver::Real::count();
        #[cfg(not(feature = "cuda"))]
        Err(CudaError::NoDevice {
            reason: "built without the feature `cuda`".to_owned(),
        })
    }

    /// The `ordinal`-th device, from 0.
    ///
    /// # Errors
    /// [`CudaError::NoDevice`] where there is no such device or no usable driver,
    /// [`CudaError::Capability`] for one that is too old, [`CudaError::Driver`].
    pub fn open(ordinal: usize) -> Result<Self, CudaError> {
        #[cfg(feature = "cuda")]
        return Ok(Self {
            driver: Arc::new(super::driver::Real::open(ordinal)?),
        });
        #[cfg(not(feature = "cuda"))]
        Self::count().map(|count| unreachable!("device {ordinal} of {count}"))
    }

    /// A device that runs the kernels' PTX on the CPU, in [the emulator](crate::emulator).
    ///
    /// Thousands of times slower than a GPU, and exact about memory: reads of what was never
    /// written give NaN, and accesses outside of a buffer or races in shared memory are errors.
    pub fn emulated() -> Self {
        Self {
            driver: Arc::new(Emulated::new()),
        }
    }

    /// What it has.
    pub fn properties(&self) -> &DeviceProperties {
        self.driver.properties()
    }

    /// A buffer of `len` elements whose contents are unspecified.
    ///
    /// # Errors
    /// [`CudaError::Driver`] if there is not enough memory.
    pub fn alloc<T: Pod>(&self, len: usize) -> Result<Buffer<T>, CudaError> {
        Buffer::new(self, len)
    }

    /// A stream: launches run in its order.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn new_stream(&self) -> Result<Stream, CudaError> {
        Stream::new(self)
    }

    pub(super) fn driver(&self) -> &dyn Driver {
        &*self.driver
    }

    /// Refuses what was allocated on another device.
    pub(super) fn check_same(&self, name: &'static str, other: &Device) -> Result<(), CudaError> {
        match Arc::ptr_eq(&self.driver, &other.driver) {
            true => Ok(()),
            false => Err(CudaError::OtherDevice { name }),
        }
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Device").field(self.properties()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On a machine without a GPU this is what users get; on one with a GPU there is nothing to see.
    #[test]
    fn a_machine_without_a_gpu_says_so_and_does_not_panic() {
        match Device::open(0) {
            Ok(device) => assert!(device.properties().capability >= (8, 0)),
            Err(error) => assert!(
                matches!(
                    error,
                    CudaError::NoDevice { .. } | CudaError::Capability { .. }
                ),
                "{error}"
            ),
        }
        assert!(Device::open(usize::MAX).is_err());
    }
}
