//! Device memory, and rows of activations in it.

use std::marker::PhantomData;

use bytemuck::Pod;

use super::driver::Address;
use super::{CudaError, Data, Device, Dtype, Stream};
use crate::KernelError;
use crate::error::check_len;
use crate::rows;

/// Device memory for `len` elements; freed when dropped.
#[derive(Debug)]
pub struct Buffer<T> {
    device: Device,
    address: Address,
    len: usize,
    element: PhantomData<T>,
}

impl<T: Pod> Buffer<T> {
    pub(super) fn new(device: &Device, len: usize) -> Result<Self, CudaError> {
        let bytes = len
            .checked_mul(size_of::<T>())
            .ok_or(KernelError::OutOfMemory {
                bytes: usize::MAX,
                reason: format!("{len} elements of {} bytes", size_of::<T>()),
            })?;
        Ok(Self {
            device: device.clone(),
            // An empty buffer has an address too, so that kernels get no null pointers.
            address: device.driver().alloc(bytes.max(1))?,
            len,
            element: PhantomData,
        })
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where it lies.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Copies `data` to its start.
    ///
    /// # Errors
    /// [`KernelError::Length`] if `data` is longer than the buffer, [`CudaError::OtherDevice`],
    /// [`CudaError::Capturing`], [`CudaError::Driver`].
    pub fn upload(&mut self, stream: &Stream, data: &[T]) -> Result<(), CudaError> {
        self.device.check_same("stream", stream.device())?;
        if data.len() > self.len {
            check_len("data", self.len, data.len())?;
        }
        if data.is_empty() {
            return Ok(());
        }
        let bytes = bytemuck::cast_slice(data);
        self.device
            .driver()
            .copy_in(stream.handle(), self.address, bytes)
    }

    /// Copies all of it to the host, after what the stream does before.
    ///
    /// # Errors
    /// [`CudaError::OtherDevice`], [`CudaError::Capturing`], [`CudaError::Driver`].
    pub fn download(&self, stream: &Stream) -> Result<Vec<T>, CudaError> {
        self.device.check_same("stream", stream.device())?;
        let mut data = vec![T::zeroed(); self.len];
        if !data.is_empty() {
            let bytes = bytemuck::cast_slice_mut(&mut data);
            self.device
                .driver()
                .copy_out(stream.handle(), self.address, bytes)?;
        }
        Ok(data)
    }

    /// Copies all of `from` to its start.
    ///
    /// # Errors
    /// [`KernelError::Length`] if `from` is longer, [`CudaError::OtherDevice`],
    /// [`CudaError::Driver`]; [`CudaError::Capturing`] on the emulator.
    pub fn copy_from(&mut self, stream: &Stream, from: &Self) -> Result<(), CudaError> {
        self.device.check_same("stream", stream.device())?;
        self.device.check_same("from", &from.device)?;
        if from.len > self.len {
            check_len("from", self.len, from.len)?;
        }
        if from.is_empty() {
            return Ok(());
        }
        let bytes = from.len * size_of::<T>();
        let driver = self.device.driver();
        driver.copy(stream.handle(), from.address, self.address, bytes)
    }

    /// Sets every byte.
    ///
    /// # Errors
    /// [`CudaError::OtherDevice`], [`CudaError::Driver`].
    pub fn fill(&mut self, stream: &Stream, byte: u8) -> Result<(), CudaError> {
        self.device.check_same("stream", stream.device())?;
        if self.len == 0 {
            return Ok(());
        }
        let bytes = self.len * size_of::<T>();
        let driver = self.device.driver();
        driver.fill(stream.handle(), self.address, byte, bytes)
    }

    /// Makes room for `len` elements. Contents are unspecified afterwards if it grew.
    ///
    /// Growing waits for what uses the old memory, and moves the buffer: graphs that were captured
    /// with it must be captured again.
    ///
    /// # Errors
    /// [`CudaError::Driver`] if there is not enough memory.
    pub fn reserve(&mut self, len: usize) -> Result<(), CudaError> {
        if len > self.len {
            *self = Self::new(&self.device, len.max(self.len + self.len / 2))?;
        }
        Ok(())
    }

    pub(super) fn address(&self) -> Address {
        self.address
    }
}

impl<T: Data> Buffer<T> {
    /// Rows that start `stride` elements apart.
    pub fn rows(&self, stride: usize) -> Rows<'_> {
        self.rows_from(0, stride)
    }

    /// As [`rows`](Self::rows), the first at element `offset`: a column range of wider rows.
    pub fn rows_from(&self, offset: usize, stride: usize) -> Rows<'_> {
        let offset = offset.min(self.len);
        Rows {
            device: &self.device,
            address: self.address + (offset * size_of::<T>()) as Address,
            len: self.len - offset,
            stride,
            dtype: T::DTYPE,
        }
    }

    /// As [`rows`](Self::rows), to write.
    pub fn rows_mut(&mut self, stride: usize) -> RowsMut<'_> {
        self.rows_mut_from(0, stride)
    }

    /// As [`rows_from`](Self::rows_from), to write.
    pub fn rows_mut_from(&mut self, offset: usize, stride: usize) -> RowsMut<'_> {
        RowsMut(self.rows_from(offset, stride))
    }
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        self.device.driver().free(self.address);
    }
}

/// Rows of activations on a device at a fixed distance, of any [`Dtype`].
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    device: &'a Device,
    address: Address,
    /// Elements from the first row's start to the end of the buffer.
    len: usize,
    stride: usize,
    dtype: Dtype,
}

impl<'a> Rows<'a> {
    /// Their number format.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Checks that `num_rows` rows of `width` lie inside of the buffer, and the device.
    pub(super) fn check(
        &self,
        name: &'static str,
        device: &Device,
        num_rows: usize,
        width: usize,
    ) -> Result<(), CudaError> {
        device.check_same(name, self.device)?;
        rows::check(name, num_rows, width, self.stride, self.len)?;
        Ok(())
    }

    pub(super) fn address(&self) -> Address {
        self.address
    }

    /// Elements from one row to the next.
    pub(super) fn stride(&self) -> usize {
        self.stride
    }
}

/// As [`Rows`], for an output.
#[derive(Debug)]
pub struct RowsMut<'a>(Rows<'a>);

impl<'a> RowsMut<'a> {
    /// Their number format.
    pub fn dtype(&self) -> Dtype {
        self.0.dtype
    }

    /// To read.
    pub fn as_rows(&self) -> Rows<'_> {
        self.0
    }

    /// As [`Rows::check`], and that the rows do not overlap.
    pub(super) fn check(
        &self,
        name: &'static str,
        device: &Device,
        num_rows: usize,
        width: usize,
    ) -> Result<(), CudaError> {
        self.0.check(name, device, num_rows, width)?;
        if num_rows > 1 && self.0.stride < width {
            return Err(CudaError::Kernel(KernelError::OverlappingRows {
                name,
                width,
                stride: self.0.stride,
            }));
        }
        Ok(())
    }

    pub(super) fn address(&self) -> Address {
        self.0.address
    }
}
