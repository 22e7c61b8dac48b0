//! How a case is timed.

use anyhow::{Result, ensure};
use half::bf16;
use pageloom_paged_attn_kernels::cuda::{Buffer, CudaError, Device, Stream};

use super::{Measure, Row};
use crate::bench::lengths::SplitMix;

/// Data of one case, all its copies together: several times the L2 cache of any GPU so far.
const ROTATED_BYTES: usize = 512 << 20;
/// Most copies, where one is small.
const MAX_COPIES: usize = 64;
/// Runs of a captured graph.
const NUM_RUNS: usize = 15;

/// A device, its copy rate, and what was measured on it.
pub(super) struct Bench {
    pub(super) device: Device,
    pub(super) stream: Stream,
    /// GB/s of a copy, bytes read and written.
    pub(super) copy_rate: f64,
    pub(super) rows: Vec<Row>,
    pub(super) quick: bool,
}

/// Milliseconds of one call.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    pub(super) median: f64,
    pub(super) range: (f64, f64),
}

impl Bench {
    /// Measures the copy rate.
    pub(super) fn new(device: &Device, quick: bool) -> Result<Self> {
        let mut bench = Self {
            device: device.clone(),
            stream: device.new_stream()?,
            copy_rate: 0.0,
            rows: Vec::new(),
            quick,
        };
        let bytes = if quick { 256 << 20 } else { 1 << 30 };
        let from: Buffer<u8> = bench.random(bytes)?;
        let mut to: Buffer<u8> = device.alloc(bytes)?;
        to.copy_from(&bench.stream, &from)?;
        let mut milliseconds = Vec::new();
        for _ in 0..NUM_RUNS {
            let start = bench.stream.record()?;
            to.copy_from(&bench.stream, &from)?;
            milliseconds.push(start.elapsed_ms(&bench.stream.record()?)?);
        }
        bench.copy_rate = 2.0 * bytes as f64 / Times::of(&milliseconds, 1)?.median / 1e6;
        Ok(bench)
    }

    /// How many copies of data of that size a case needs.
    pub(super) fn num_copies(&self, bytes: usize) -> usize {
        let all = if self.quick {
            ROTATED_BYTES / 8
        } else {
            ROTATED_BYTES
        };
        all.div_ceil(bytes.max(1)).clamp(1, MAX_COPIES)
    }

    /// Times `call` of each of `0..num_copies`.
    pub(super) fn time(
        &self,
        num_copies: usize,
        mut call: impl FnMut(usize) -> Result<(), CudaError>,
    ) -> Result<Times> {
        // Outside of the capture once: code is loaded and attributes are set by then.
        call(0)?;
        self.stream.synchronize()?;
        let all = || (0..num_copies).try_for_each(&mut call);
        Times::of(&self.stream.time_captured(NUM_RUNS, all)?, num_copies)
    }

    pub(super) fn add(
        &mut self,
        table: &'static str,
        case: String,
        times: Times,
        measure: Measure,
    ) {
        eprintln!("{table}: {case}: {:.4} ms", times.median);
        self.rows.push(Row {
            table,
            case,
            ms: times.median,
            range_ms: times.range,
            measure,
        });
    }

    /// `bytes` moved in that time.
    pub(super) fn percent_of_copy(&self, bytes: usize, times: Times) -> Measure {
        Measure::PercentOfCopy(100.0 * bytes as f64 / times.median / 1e6 / self.copy_rate)
    }

    /// A buffer of random bits: zeros would be faster than data is.
    pub(super) fn random(&self, bytes: usize) -> Result<Buffer<u8>> {
        let mut random = SplitMix(bytes as u64);
        let piece: Vec<u8> = (0..(bytes.min(1 << 22)).div_ceil(8))
            .flat_map(|_| random.next().to_le_bytes())
            .collect();
        let mut data = piece.repeat(bytes.div_ceil(piece.len().max(1)));
        data.truncate(bytes);
        let mut buffer = self.device.alloc(bytes)?;
        buffer.upload(&self.stream, &data)?;
        Ok(buffer)
    }

    /// Activations between -1 and 1.
    pub(super) fn activations(&self, len: usize) -> Result<Buffer<bf16>> {
        let mut random = SplitMix(len as u64);
        let data: Vec<bf16> = (0..len)
            .map(|_| bf16::from_f64(2.0 * random.uniform() - 1.0))
            .collect();
        let mut buffer = self.device.alloc(len)?;
        buffer.upload(&self.stream, &data)?;
        Ok(buffer)
    }
}

impl Times {
    /// Of `milliseconds`, each of `num_calls` calls.
    fn of(milliseconds: &[f32], num_calls: usize) -> Result<Self> {
        let mut times: Vec<f64> = milliseconds
            .iter()
            .map(|&ms| f64::from(ms) / num_calls as f64)
            .collect();
        times.sort_by(f64::total_cmp);
        ensure!(!times.is_empty(), "nothing was timed");
        Ok(Self {
            median: times[times.len() / 2],
            range: (times[0], times[times.len() - 1]),
        })
    }
}
