//! Steps over random pages, attended on a device and by the definition.

use half::{bf16, f16};
use pageloom_paged_attn_kernels::cuda::attention::{AttendArgs, AttendPlan, PlanShape, attend};
use pageloom_paged_attn_kernels::cuda::{Buffer, CudaError, Data, Device, Dtype, KvCache, Stream};
use pageloom_paged_attn_kernels::reference::{self, Query};
use pageloom_paged_attn_kernels::{AttendBatch, CacheLayout, KvDtype, Rows};

use crate::common::{Random, TestData, on_each, relative_error};

/// Elements between rows of `q` and `out`.
pub(crate) const GAP: usize = 8;

pub(crate) const LAYER: usize = 1;

#[derive(Clone)]
pub(crate) struct Case {
    pub(crate) head_dim: usize,
    pub(crate) kv: KvDtype,
    pub(crate) block_size: usize,
    pub(crate) num_kv_heads: usize,
    pub(crate) group: usize,
    /// Query rows and context of each sequence.
    pub(crate) sequences: Vec<(u32, u32)>,
    pub(crate) window: usize,
    pub(crate) soft_cap: f32,
    pub(crate) batch_invariant: bool,
}

impl Case {
    pub(crate) fn new(head_dim: usize, kv: KvDtype, sequences: &[(u32, u32)]) -> Self {
        Self {
            head_dim,
            kv,
            block_size: 16,
            num_kv_heads: 2,
            group: 4,
            sequences: sequences.to_vec(),
            window: 0,
            soft_cap: 0.0,
            batch_invariant: false,
        }
    }

    pub(crate) fn num_heads(&self) -> usize {
        self.num_kv_heads * self.group
    }

    pub(crate) fn stride(&self) -> usize {
        self.num_heads() * self.head_dim + GAP
    }

    pub(crate) fn num_tokens(&self) -> usize {
        self.sequences
            .iter()
            .map(|&(queries, _)| queries as usize)
            .sum()
    }

    pub(crate) fn layout(&self) -> CacheLayout {
        let blocks = |&(_, context): &(u32, u32)| (context as usize).div_ceil(self.block_size);
        CacheLayout {
            num_layers: 2,
            // A few are nobody's.
            num_blocks: self.sequences.iter().map(blocks).sum::<usize>() + 3,
            block_size: self.block_size,
            num_kv_heads: self.num_kv_heads,
            head_dim: self.head_dim,
            dtype: self.kv,
        }
    }

    pub(crate) fn shape<'a>(&self, layout: &'a CacheLayout, dtype: Dtype) -> PlanShape<'a> {
        PlanShape {
            layout,
            num_heads: self.num_heads(),
            dtype,
            window: self.window,
            batch_invariant: self.batch_invariant,
            replayed: false,
        }
    }

    pub(crate) fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }
}

/// A step and what it attends to.
pub(crate) struct Step {
    pub(crate) query_offsets: Vec<u32>,
    pub(crate) context_lens: Vec<u32>,
    pub(crate) block_tables: Vec<u32>,
    pub(crate) table_offsets: Vec<u32>,
    pub(crate) q: Vec<f32>,
    pub(crate) pages: Vec<u8>,
}

impl Step {
    pub(crate) fn new<T: TestData>(case: &Case, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let layout = case.layout();
        let order = random.permutation(layout.num_blocks);
        let mut step = Self {
            query_offsets: vec![0],
            context_lens: Vec::new(),
            block_tables: Vec::new(),
            table_offsets: vec![0],
            q: Vec::new(),
            pages: Vec::new(),
        };
        for &(queries, context) in &case.sequences {
            step.query_offsets
                .push(step.query_offsets.last().unwrap() + queries);
            step.context_lens.push(context);
            let first = step.block_tables.len();
            let num_blocks = (context as usize).div_ceil(case.block_size);
            step.block_tables.extend(&order[first..first + num_blocks]);
            step.table_offsets.push(step.block_tables.len() as u32);
        }
        let q = random.normals(case.num_tokens() * case.stride());
        step.q = q.iter().map(|&x| T::from_f32(x).to_f32()).collect();
        step.write_pages(case, &mut random);
        step
    }

    /// Fills the slots of all sequences' tokens; others stay NaN.
    pub(crate) fn write_pages(&mut self, case: &Case, random: &mut Random) {
        let layout = case.layout();
        let row = case.head_dim * case.kv.bytes();
        let panels = case.num_kv_heads * case.block_size;
        let block_bytes = 2 * panels * (row + case.kv.scale_bytes());
        self.pages = vec![0xff; layout.num_layers * layout.num_blocks * block_bytes];
        for (s, &context) in self.context_lens.iter().enumerate() {
            for token in 0..context as usize {
                let block = self.table_offsets[s] as usize + token / case.block_size;
                let block = self.block_tables[block] as usize + LAYER * layout.num_blocks;
                for half in 0..2 {
                    for head in 0..case.num_kv_heads {
                        let at = (half * case.num_kv_heads + head) * case.block_size
                            + token % case.block_size;
                        let page = &mut self.pages[block * block_bytes..][..block_bytes];
                        write_row(&mut page[at * row..][..row], case.kv, random);
                        if case.kv.scale_bytes() > 0 {
                            let scale = scale(case.kv, random).to_le_bytes();
                            page[2 * panels * row + 4 * at..][..4].copy_from_slice(&scale);
                        }
                    }
                }
            }
        }
    }

    pub(crate) fn queries<T: TestData>(&self, stream: &Stream) -> Buffer<T> {
        let numbers: Vec<T> = self.q.iter().map(|&x| T::from_f32(x)).collect();
        let mut q = stream.device().alloc(numbers.len()).unwrap();
        q.upload(stream, &numbers).unwrap();
        q
    }

    pub(crate) fn batch(&self) -> AttendBatch<'_> {
        AttendBatch {
            query_offsets: &self.query_offsets,
            context_lens: &self.context_lens,
            block_tables: &self.block_tables,
            table_offsets: &self.table_offsets,
        }
    }
}

/// Random numbers; of a format with scales, any bits that are numbers.
pub(crate) fn write_row(row: &mut [u8], kv: KvDtype, random: &mut Random) {
    for bytes in row.chunks_exact_mut(kv.bytes()) {
        match kv {
            KvDtype::F32 => bytes.copy_from_slice(&random.normal().to_le_bytes()),
            KvDtype::Bf16 => bytes.copy_from_slice(&bf16::from_f32(random.normal()).to_le_bytes()),
            KvDtype::F16 => bytes.copy_from_slice(&f16::from_f32(random.normal()).to_le_bytes()),
            KvDtype::Int8 => bytes[0] = (random.below(255) as i32 - 127) as i8 as u8,
            KvDtype::Fp8 => bytes[0] = (random.below(127) + 128 * random.below(2)) as u8,
            _ => panic!("{kv:?} is not tested"),
        }
    }
}

/// Scales with which numbers are about as large as normal ones.
pub(crate) fn scale(kv: KvDtype, random: &mut Random) -> f32 {
    let largest = if kv == KvDtype::Int8 { 127.0 } else { 120.0 };
    (1.0 + random.below(1000) as f32 / 1000.0) / largest
}

/// A cache with a step's pages.
pub(crate) fn upload(device: &Device, stream: &Stream, case: &Case, step: &Step) -> KvCache {
    let mut cache = KvCache::new(device, case.layout()).unwrap();
    cache.upload(stream, &step.pages).unwrap();
    cache
}

/// What the device finds, dense; what lies between rows must not change.
pub(crate) fn run<T: TestData>(
    device: &Device,
    stream: &Stream,
    case: &Case,
    step: &Step,
) -> Vec<T> {
    let cache = upload(device, stream, case, step);
    dense(case, &run_over(stream, &cache, case, step))
}

/// Rows without what lies between them.
pub(crate) fn dense<T: TestData>(case: &Case, found: &[T]) -> Vec<T> {
    let width = case.stride() - GAP;
    let rows = found.chunks_exact(case.stride());
    assert!(
        rows.clone()
            .all(|row| row[width..].iter().all(|x| x.to_f32().is_nan()))
    );
    rows.flat_map(|row| row[..width].to_vec()).collect()
}

/// `out` after a step, which was NaN before.
pub(crate) fn run_over<T: TestData>(
    stream: &Stream,
    cache: &KvCache,
    case: &Case,
    step: &Step,
) -> Vec<T> {
    let device = stream.device();
    let mut plan = AttendPlan::new(device).unwrap();
    let shape = case.shape(cache.layout(), T::DTYPE);
    plan.plan(stream, &shape, &step.batch()).unwrap();
    let q = step.queries(stream);
    let mut out = device.alloc::<T>(step.q.len()).unwrap();
    out.upload(stream, &vec![T::poison(); step.q.len()])
        .unwrap();
    attend_into(stream, cache, &mut plan, (case, &q, &mut out)).unwrap();
    out.download(stream).unwrap()
}

pub(crate) type Buffers<'a, T> = (&'a Case, &'a Buffer<T>, &'a mut Buffer<T>);

pub(crate) fn attend_into<T: Data>(
    stream: &Stream,
    cache: &KvCache,
    plan: &mut AttendPlan,
    (case, q, out): Buffers<'_, T>,
) -> Result<(), CudaError> {
    let args = AttendArgs {
        layer: LAYER,
        q: q.rows(case.stride()),
        out: out.rows_mut(case.stride()),
        scale: case.scale(),
        soft_cap: case.soft_cap,
    };
    attend(stream, cache, plan, args)
}

pub(crate) fn expected(device: &Device, stream: &Stream, case: &Case, step: &Step) -> Vec<f64> {
    let snapshot = upload(device, stream, case, step).snapshot(stream).unwrap();
    let query = Query {
        layer: LAYER,
        num_heads: case.num_heads(),
        q: Rows::new(&step.q, case.stride()),
        scale: f64::from(case.scale()),
        window: case.window,
        soft_cap: f64::from(case.soft_cap),
    };
    reference::attend(&snapshot, &step.batch(), &query).unwrap()
}

pub(crate) fn check<T: TestData>(case: &Case) {
    on_each(|device, stream| {
        let step = Step::new::<T>(case, 7);
        let found = run::<T>(device, stream, case, &step);
        let error = relative_error(&found, &expected(device, stream, case, &step));
        // 8-bit pages are multiplied in bf16, whatever the queries are.
        let bound = match (T::DTYPE, case.kv) {
            (Dtype::F32, _) => f32::BOUND,
            (_, KvDtype::Int8 | KvDtype::Fp8) => bf16::BOUND,
            _ => T::BOUND,
        };
        let Case {
            head_dim,
            kv,
            block_size,
            group,
            window,
            ..
        } = case;
        let what =
            format!("{head_dim} {kv:?}, blocks of {block_size}, group {group}, window {window}");
        assert!(
            error <= bound,
            "{:?} {what}: {error:.2e} > {bound:.0e}",
            T::DTYPE
        );
        println!("{:?} {what}: {error:.2e}", T::DTYPE);
    });
}

/// Checks a case with every type of activations that goes with its pages, but f32.
pub(crate) fn check_halves(case: &Case) {
    if case.kv != KvDtype::F16 {
        check::<bf16>(case);
    }
    if case.kv != KvDtype::Bf16 {
        check::<f16>(case);
    }
}
