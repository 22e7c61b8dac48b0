//! A step's work on the device: made once, run by every layer.

use bytemuck::Pod;

use super::decode::FewRows;
use super::params::{AttendItem, CombineItem};
use super::prefill;
use super::work::{Work, WorkShape};
use crate::cuda::driver::Address;
use crate::cuda::{Buffer, CudaError, Device, Dtype, Stream};
use crate::{AttendBatch, CacheLayout};

/// What a plan is made for besides the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlanShape<'a> {
    /// Of the cache.
    pub layout: &'a CacheLayout,
    /// Query heads, a multiple of the layout's key-value heads.
    pub num_heads: usize,
    /// Of `q` and `out`.
    pub dtype: Dtype,
    /// Keys that a row sees, its own included; 0: all before it.
    pub window: usize,
    /// Whether the bits of a sequence's results may depend on nothing but the sequence. Its keys
    /// are then split at fixed places, not so that the device is busy: a single sequence of up to
    /// 1,024 keys keeps no more CTAs busy than there are key-value heads.
    pub batch_invariant: bool,
    /// Whether all kernels that batches of few rows may need are launched, also those that this
    /// one does not: [`attend`](super::attend) can then be captured, and the graph be run after
    /// further plans.
    pub replayed: bool,
}

/// The work of one step, for any of a model's layers.
///
/// Keeps its buffers from step to step: planning allocates nothing once the largest step has been
/// seen. They stay where they are until they must grow, which changes [`epoch`](Self::epoch).
#[derive(Debug)]
pub struct AttendPlan {
    pub(super) shape: Option<WorkShape>,
    pub(super) dtype: Dtype,
    pub(super) num_tokens: usize,
    pub(super) launches: Launches,
    work: Work,
    block_tables: Buffer<u32>,
    few: Buffer<AttendItem>,
    many: Buffer<AttendItem>,
    combine: Buffer<CombineItem>,
    /// Lengths of `few`, `many` and `combine`.
    counts: Buffer<u32>,
    partial_out: Buffer<f32>,
    partial_lse: Buffer<f32>,
    epoch: u64,
}

/// Which kernels a plan needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Launches {
    pub(super) few: bool,
    pub(super) many: bool,
    pub(super) combine: bool,
}

/// Where kernels find the work.
#[derive(Debug, Clone, Copy)]
pub(super) struct WorkAddresses {
    pub(super) block_tables: Address,
    /// Items, and how many there are.
    pub(super) few: (Address, Address),
    pub(super) many: (Address, Address),
    pub(super) combine: (Address, Address),
    pub(super) partial_out: Address,
    pub(super) partial_lse: Address,
}

impl AttendPlan {
    /// An empty plan.
    ///
    /// # Errors
    /// [`CudaError::Driver`] if there is not enough memory.
    pub fn new(device: &Device) -> Result<Self, CudaError> {
        Ok(Self {
            shape: None,
            dtype: Dtype::F32,
            num_tokens: 0,
            launches: Launches {
                few: false,
                many: false,
                combine: false,
            },
            work: Work::default(),
            block_tables: device.alloc(1024)?,
            few: device.alloc(256)?,
            many: device.alloc(16)?,
            combine: device.alloc(64)?,
            counts: device.alloc(3)?,
            partial_out: device.alloc(0)?,
            partial_lse: device.alloc(0)?,
            epoch: 0,
        })
    }

    /// Replaces the work by that of a new step, in the order of `stream`.
    ///
    /// # Errors
    /// Those of [`CacheLayout::validate`]; [`KernelError::HeadGroups`],
    /// [`KernelError::Offsets`], [`KernelError::ContextTooShort`],
    /// [`KernelError::TableTooShort`] or [`KernelError::Block`];
    /// [`CudaError::Argument`] for more rows than 32 bits number, or a device without the shared
    /// memory for `head_dim`; [`CudaError::OtherDevice`]; [`CudaError::Capturing`];
    /// [`CudaError::Driver`]. The plan is then empty and refuses to run.
    ///
    /// [`KernelError::HeadGroups`]: crate::KernelError::HeadGroups
    /// [`KernelError::Offsets`]: crate::KernelError::Offsets
    /// [`KernelError::ContextTooShort`]: crate::KernelError::ContextTooShort
    /// [`KernelError::TableTooShort`]: crate::KernelError::TableTooShort
    /// [`KernelError::Block`]: crate::KernelError::Block
    pub fn plan(
        &mut self,
        stream: &Stream,
        shape: &PlanShape<'_>,
        batch: &AttendBatch<'_>,
    ) -> Result<(), CudaError> {
        self.shape = None;
        let properties = stream.device().properties();
        // Before anything divides by its dimensions.
        shape.layout.validate()?;
        let work_shape = WorkShape {
            layout: *shape.layout,
            num_heads: shape.num_heads,
            window: shape.window,
            batch_invariant: shape.batch_invariant,
            few: FewRows::of(shape.dtype).tiling(properties, shape.layout)?,
            many: match FewRows::of(shape.dtype) {
                FewRows::F32 => None,
                FewRows::Halves => Some(prefill::tiling(properties, shape.layout)),
            },
        };
        self.work.plan(&work_shape, batch)?;
        self.upload(stream)?;
        self.launches = Launches {
            few: shape.replayed || !self.work.few.is_empty(),
            many: !self.work.many.is_empty(),
            combine: shape.replayed || !self.work.combine.is_empty(),
        };
        self.dtype = shape.dtype;
        self.num_tokens = batch.num_tokens();
        self.shape = Some(work_shape);
        Ok(())
    }

    /// Query rows of the step.
    pub fn num_tokens(&self) -> usize {
        self.num_tokens
    }

    /// Changes when a buffer has moved: graphs that were captured before must be captured again.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Where its buffers lie.
    pub(super) fn device(&self) -> &Device {
        self.counts.device()
    }

    pub(super) fn addresses(&self) -> WorkAddresses {
        let count = |i: usize| self.counts.address() + (i * size_of::<u32>()) as Address;
        WorkAddresses {
            block_tables: self.block_tables.address(),
            few: (self.few.address(), count(0)),
            many: (self.many.address(), count(1)),
            combine: (self.combine.address(), count(2)),
            partial_out: self.partial_out.address(),
            partial_lse: self.partial_lse.address(),
        }
    }

    fn upload(&mut self, stream: &Stream) -> Result<(), CudaError> {
        let work = &self.work;
        let num_partials = work.num_partials as usize;
        // Rows of any head dimension fit then, whatever the next plan's is.
        let partial_len = num_partials * crate::layout::MAX_HEAD_DIM;
        let mut moved = grow(&mut self.partial_out, partial_len)?;
        moved |= grow(&mut self.partial_lse, num_partials)?;
        moved |= put(&mut self.block_tables, stream, &work.block_tables)?;
        moved |= put(&mut self.few, stream, &work.few)?;
        moved |= put(&mut self.many, stream, &work.many)?;
        moved |= put(&mut self.combine, stream, &work.combine)?;
        let counts = [work.few.len(), work.many.len(), work.combine.len()];
        self.counts.upload(stream, &counts.map(|n| n as u32))?;
        self.epoch += u64::from(moved);
        Ok(())
    }
}

/// Makes room for `len` elements; says whether the buffer moved.
fn grow<T: Pod>(buffer: &mut Buffer<T>, len: usize) -> Result<bool, CudaError> {
    let before = buffer.len();
    buffer.reserve(len)?;
    Ok(buffer.len() != before)
}

/// As [`grow`], and copies `data` there.
fn put<T: Pod>(buffer: &mut Buffer<T>, stream: &Stream, data: &[T]) -> Result<bool, CudaError> {
    let moved = grow(buffer, data.len())?;
    buffer.upload(stream, data)?;
    Ok(moved)
}
