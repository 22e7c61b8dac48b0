//! Paged attention on a GPU, through the interface that both back ends have.

use std::marker::PhantomData;

use super::attention::{AttendArgs, AttendPlan, PlanShape, attend};
use super::blocks::{BlockPairs, KvRows, WriteKvArgs, check_slots, copy_blocks, write_kv};
use super::{Buffer, CudaError, Data, Device, KvCache, Rows, Stream};
use crate::error::check_len;
use crate::{AttendBatch, CacheLayout, LayerQuery, PagedAttention};

/// A GPU as a [`PagedAttention`] device, with activations of type `T` and a stream of its own.
#[derive(Debug)]
pub struct Paged<T> {
    stream: Stream,
    data: PhantomData<T>,
}

/// Dense rows on the device.
#[derive(Debug)]
pub struct PagedRows<T> {
    buffer: Buffer<T>,
    width: usize,
}

impl<T: Data> Paged<T> {
    /// A stream on `device`.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn new(device: &Device) -> Result<Self, CudaError> {
        Ok(Self {
            stream: device.new_stream()?,
            data: PhantomData,
        })
    }

    fn device(&self) -> &Device {
        self.stream.device()
    }
}

impl<T: Data> PagedRows<T> {
    fn rows(&self) -> Rows<'_> {
        self.buffer.rows(self.width)
    }
}

impl<T: Data> PagedAttention for Paged<T> {
    type Cache = KvCache;
    type Rows = PagedRows<T>;
    type Plan = AttendPlan;
    type Error = CudaError;

    fn name(&self) -> String {
        format!("{}, {:?}", self.device().properties().name, T::DTYPE)
    }

    fn new_cache(&self, layout: CacheLayout) -> Result<KvCache, CudaError> {
        KvCache::new(self.device(), layout)
    }

    fn upload(&self, data: &[f32], width: usize) -> Result<PagedRows<T>, CudaError> {
        let num_rows = data.len().checked_div(width).unwrap_or(0);
        check_len("data", num_rows * width, data.len())?;
        let data: Vec<T> = data.iter().map(|&x| T::from_f32(x)).collect();
        let mut buffer = self.device().alloc(data.len())?;
        buffer.upload(&self.stream, &data)?;
        Ok(PagedRows { buffer, width })
    }

    fn download(&self, rows: &PagedRows<T>) -> Result<Vec<f32>, CudaError> {
        let data = rows.buffer.download(&self.stream)?;
        Ok(data.into_iter().map(T::to_f32).collect())
    }

    fn write_kv(
        &self,
        cache: &mut KvCache,
        layer: usize,
        slots: &[u32],
        (k, v): (&PagedRows<T>, &PagedRows<T>),
    ) -> Result<(), CudaError> {
        check_slots(cache.layout(), slots)?;
        let mut on_device = self.device().alloc(slots.len())?;
        on_device.upload(&self.stream, slots)?;
        let args = WriteKvArgs {
            layer,
            slots: &on_device,
            num_tokens: slots.len(),
            rows: KvRows::Apart {
                k: k.rows(),
                v: v.rows(),
            },
            rotary: None,
        };
        write_kv(&self.stream, cache, &args)
    }

    fn new_plan(&self) -> Result<AttendPlan, CudaError> {
        AttendPlan::new(self.device())
    }

    fn plan(
        &self,
        plan: &mut AttendPlan,
        cache: &KvCache,
        num_heads: usize,
        batch: &AttendBatch<'_>,
    ) -> Result<(), CudaError> {
        let shape = PlanShape {
            layout: cache.layout(),
            num_heads,
            dtype: T::DTYPE,
            window: 0,
            batch_invariant: false,
            replayed: false,
        };
        plan.plan(&self.stream, &shape, batch)
    }

    fn attend(
        &self,
        cache: &KvCache,
        plan: &mut AttendPlan,
        layer: LayerQuery<'_, PagedRows<T>>,
    ) -> Result<(), CudaError> {
        let width = layer.out.width;
        let args = AttendArgs {
            layer: layer.layer,
            q: layer.q.rows(),
            out: layer.out.buffer.rows_mut(width),
            scale: layer.scale,
            soft_cap: 0.0,
        };
        attend(&self.stream, cache, plan, args)
    }

    fn copy_blocks(&self, cache: &mut KvCache, pairs: &[(u32, u32)]) -> Result<(), CudaError> {
        let mut on_device = BlockPairs::new(self.device())?;
        on_device.set(&self.stream, pairs)?;
        copy_blocks(&self.stream, cache, &on_device)
    }
}
