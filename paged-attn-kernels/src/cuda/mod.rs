//! The CUDA back end: the same operations on an NVIDIA GPU.
//!
//! ```text
//!  launchers      blocks.rs, attention/, elementwise/, sample/     check shapes, fill in params.rs, launch
//!  Device, Stream, Buffer, KvCache                                 memory and order
//!  Driver         driver/real.rs: libcuda | driver/emulated.rs: the PTX emulator
//!  embedded code  ../../cuda/*.cu -> PTX and cubins (`cargo xtask kernels`)
//! ```
//!
//! Nothing of CUDA is needed to build, and a machine without a driver gets
//! [`CudaError::NoDevice`] from [`Device::open`]. [`Device::emulated`] runs the same launchers and
//! the same PTX on the CPU, slowly and with every memory access checked: that is how the kernels
//! are tested where there is no GPU.
//!
//! Launches are asynchronous, in the order of their [`Stream`]. What two streams do to the same
//! memory at once is the caller's to order, by [`Stream::wait_for`] or [`Stream::synchronize`].

pub mod attention;
pub mod blocks;
mod buffer;
mod cache;
mod code;
mod device;
mod driver;
mod dtype;
pub mod elementwise;
mod embedded;
mod error;
pub mod fp8;
mod paged;
mod params;
pub mod sample;
mod stream;

pub use buffer::{Buffer, Rows, RowsMut};
pub use cache::{KvCache, KvSnapshot};
pub use code::ptx;
pub use device::{Device, DeviceProperties};
pub use dtype::{Data, Dtype};
pub use error::CudaError;
pub use paged::{Paged, PagedRows};
pub use stream::{Event, Graph, Stream};
