//! Buffers that start at a cache line.

use std::ops::{Deref, DerefMut};

use bytemuck::Zeroable;

/// One cache line.
#[derive(Clone, Copy, Zeroable, bytemuck::Pod)]
#[repr(C, align(64))]
pub(crate) struct Line([u8; 64]);

/// A buffer that grows as needed, and does not shrink: what is added is made zero, which a buffer
/// that takes turns in two lengths should not pay for at each turn.
#[derive(Default)]
pub(crate) struct Lines(Vec<Line>);

impl Lines {
    /// Makes room for `num_bytes`, at least.
    pub(crate) fn grow(&mut self, num_bytes: usize) {
        let num_lines = num_bytes.div_ceil(size_of::<Line>());
        if num_lines > self.0.len() {
            self.0.resize(num_lines, Line::zeroed());
        }
    }

    pub(crate) fn as_slice<T: bytemuck::Pod>(&self) -> &[T] {
        bytemuck::cast_slice(&self.0)
    }

    pub(crate) fn as_mut_slice<T: bytemuck::Pod>(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(&mut self.0)
    }
}

/// Numbers that start at a cache line.
///
/// Kernels take any slice. Where rows start at cache lines, and are a multiple of 16 elements, no
/// vector straddles two of them (measured: a tenth faster linear layers).
#[derive(Default)]
pub struct AlignedFloats {
    lines: Lines,
    len: usize,
}

impl AlignedFloats {
    /// Makes the buffer `len` elements long. Those it never had are zero, others what they were.
    pub fn resize(&mut self, len: usize) {
        self.lines.grow(len * size_of::<f32>());
        self.len = len;
    }
}

impl Deref for AlignedFloats {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.lines.as_slice()[..self.len]
    }
}

impl DerefMut for AlignedFloats {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.lines.as_mut_slice()[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_start_at_a_cache_line_whatever_their_length() {
        let mut floats = AlignedFloats::default();
        assert!(floats.is_empty());
        for len in [1, 17, 4000, 3, 100_000] {
            floats.resize(len);
            assert_eq!(floats.len(), len);
            assert_eq!(floats.as_ptr() as usize % 64, 0);
            floats.fill(1.0);
        }
    }
}
