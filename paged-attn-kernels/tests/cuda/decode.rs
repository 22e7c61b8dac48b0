//! Attention of few rows, and in f32 of any number, on a device, against the definition in f64.
//!
//! What no sequence owns of a cache is NaN, and so is what outputs hold beforehand.

mod steps;

use crate::common::{TestData, on_each, relative_error};
use half::{bf16, f16};
use pageloom_paged_attn_kernels::cuda::attention::{AttendPlan, PlanShape};
use pageloom_paged_attn_kernels::cuda::{CudaError, Dtype};
use pageloom_paged_attn_kernels::reference::{self, Query};
use pageloom_paged_attn_kernels::{AttendBatch, KernelError, KvDtype, Rows};
use steps::{Case, LAYER, Step, attend_into, check, check_halves, dense, run, run_over, upload};

const HALVES: [KvDtype; 4] = [KvDtype::Bf16, KvDtype::F16, KvDtype::Int8, KvDtype::Fp8];

#[test]
fn decodes_match_for_every_head_dim_and_format() {
    for head_dim in [64, 80, 96, 128, 256] {
        for kv in HALVES {
            check_halves(&Case::new(
                head_dim,
                kv,
                &[(1, 1), (1, 16), (1, 17), (1, 150)],
            ));
        }
    }
}

#[test]
fn f32_matches_for_every_head_dim_and_format() {
    for head_dim in [64, 80, 96, 128, 256] {
        for kv in [KvDtype::F32].into_iter().chain(HALVES) {
            check::<f32>(&Case::new(head_dim, kv, &[(1, 1), (1, 17), (7, 75)]));
        }
    }
}

#[test]
fn groups_of_any_size_match() {
    for group in [1, 3, 7, 8, 16, 20] {
        for kv in [KvDtype::Bf16, KvDtype::Int8] {
            let mut case = Case::new(64, kv, &[(1, 40), (1, 65)]);
            case.group = group;
            check::<bf16>(&case);
        }
    }
}

#[test]
fn blocks_of_any_size_match() {
    for block_size in [8, 16, 32, 64, 128] {
        let len = block_size as u32;
        for kv in [KvDtype::F16, KvDtype::Fp8] {
            let mut case = Case::new(64, kv, &[(1, 1), (1, len), (1, len + 1), (1, 3 * len - 1)]);
            case.block_size = block_size;
            check::<f16>(&case);
        }
    }
}

#[test]
fn rows_of_speculated_tokens_see_one_key_more_each() {
    for (window, soft_cap) in [(0, 0.0), (5, 0.0), (0, 2.0), (64, 5.0)] {
        for kv in [KvDtype::Bf16, KvDtype::Int8, KvDtype::Fp8] {
            let mut case = Case::new(64, kv, &[(2, 2), (5, 5), (3, 70), (8, 200)]);
            (case.window, case.soft_cap) = (window, soft_cap);
            check::<bf16>(&case);
        }
    }
}

#[test]
fn windows_and_soft_caps_match() {
    for window in [1, 15, 16, 63, 64, 65, 100] {
        for soft_cap in [0.0, 3.0] {
            let mut case = Case::new(64, KvDtype::Bf16, &[(1, 64), (1, 65), (1, 130), (1, 260)]);
            (case.window, case.soft_cap) = (window, soft_cap);
            check::<bf16>(&case);
            case.kv = KvDtype::F32;
            check::<f32>(&case);
        }
    }
}

#[test]
fn keys_that_are_split_are_summed() {
    for kv in HALVES {
        let mut case = Case::new(64, kv, &[(1, 1500)]);
        case.num_kv_heads = 1;
        check_halves(&case);
        case.batch_invariant = true;
        check_halves(&case);
    }
    let mut case = Case::new(80, KvDtype::F32, &[(2, 1100), (1, 30)]);
    check::<f32>(&case);
    // The second of two pieces holds no key that the first row sees.
    case.sequences = vec![(3, 1026)];
    case.batch_invariant = true;
    check::<f32>(&case);
    case.kv = KvDtype::Bf16;
    check::<bf16>(&case);
}

#[test]
fn a_context_of_32_thousand_keys_matches() {
    let mut case = Case::new(64, KvDtype::Bf16, &[(1, 32_768), (1, 3)]);
    (case.num_kv_heads, case.group) = (1, 8);
    check::<bf16>(&case);
    case.kv = KvDtype::Fp8;
    check::<bf16>(&case);
}

#[test]
fn more_items_than_ctas_are_all_computed() {
    let sequences: Vec<(u32, u32)> = (0..40).map(|i| (1, 1 + 7 * i % 90)).collect();
    for kv in [KvDtype::F16, KvDtype::Int8] {
        check::<f16>(&Case::new(64, kv, &sequences));
    }
}

#[test]
fn f32_attends_to_prompts_too() {
    let mut case = Case::new(64, KvDtype::F32, &[(40, 40), (33, 90), (1, 70)]);
    check::<f32>(&case);
    case.window = 20;
    check::<f32>(&case);
}

#[test]
fn two_runs_give_the_same_bits() {
    on_each(|device, stream| {
        let case = Case::new(64, KvDtype::Bf16, &[(1, 900), (2, 30)]);
        let step = Step::new::<bf16>(&case, 3);
        let first = run::<bf16>(device, stream, &case, &step);
        assert!(first == run::<bf16>(device, stream, &case, &step));
    });
}

#[test]
fn invariant_plans_give_the_same_bits_in_any_batch() {
    on_each(|device, stream| {
        for kv in [KvDtype::Bf16, KvDtype::Fp8] {
            let mut case = Case::new(64, kv, &[(1, 1300), (2, 30), (1, 400)]);
            case.batch_invariant = true;
            let among = Step::new::<bf16>(&case, 5);
            let width = case.num_heads() * case.head_dim;
            let found = run::<bf16>(device, stream, &case, &among);
            // The first sequence alone, over the same pages.
            let mut alone = case.clone();
            alone.sequences.truncate(1);
            let mut step = Step::new::<bf16>(&alone, 5);
            step.q = among.q[..alone.stride()].to_vec();
            step.pages = among.pages.clone();
            step.block_tables = among.block_tables.clone();
            let cache = upload(device, stream, &case, &step);
            let found_alone = dense(&alone, &run_over::<bf16>(stream, &cache, &alone, &step));
            assert!(found[..width] == found_alone, "{kv:?}");
        }
    });
}

#[test]
fn a_graph_runs_what_was_planned_last() {
    on_each(|device, stream| {
        // Long contexts, so that the first plan's buffers are large enough for the second.
        let case = Case::new(64, KvDtype::Bf16, &[(1, 1500), (1, 900)]);
        let step = Step::new::<bf16>(&case, 9);
        let cache = upload(device, stream, &case, &step);
        let layout = case.layout();
        let mut plan = AttendPlan::new(device).unwrap();
        let shape = PlanShape {
            replayed: true,
            ..case.shape(&layout, Dtype::Bf16)
        };
        plan.plan(stream, &shape, &step.batch()).unwrap();
        let epoch = plan.epoch();
        let q = step.queries::<bf16>(stream);
        let mut out = device.alloc::<bf16>(step.q.len()).unwrap();
        let graph = stream
            .capture(|| attend_into(stream, &cache, &mut plan, (&case, &q, &mut out)))
            .unwrap();
        for context_lens in [[1500, 900], [20, 100], [700, 1]] {
            let mut case = case.clone();
            for (sequence, context) in case.sequences.iter_mut().zip(context_lens) {
                sequence.1 = context;
            }
            let batch = AttendBatch {
                context_lens: &context_lens,
                ..step.batch()
            };
            plan.plan(stream, &shape, &batch).unwrap();
            assert_eq!(plan.epoch(), epoch);
            out.upload(stream, &vec![bf16::NAN; step.q.len()]).unwrap();
            // SAFETY: nothing was dropped or has grown, as the epoch says.
            unsafe { stream.launch_graph(&graph) }.unwrap();
            let found = out.download(stream).unwrap();
            let query = Query {
                layer: LAYER,
                num_heads: case.num_heads(),
                q: Rows::new(&step.q, case.stride()),
                scale: f64::from(case.scale()),
                window: 0,
                soft_cap: 0.0,
            };
            let snapshot = cache.snapshot(stream).unwrap();
            let expected = reference::attend(&snapshot, &batch, &query).unwrap();
            let error = relative_error(&dense(&case, &found), &expected);
            assert!(error <= bf16::BOUND, "{context_lens:?}: {error:.2e}");
        }
    });
}

#[test]
fn a_key_that_is_nan_makes_its_own_rows_nan_and_no_others() {
    for kv in HALVES {
        let layout = nan_case(kv).layout();
        // Of formats with scales, the scale or a number.
        let scales = 2 * layout.num_kv_heads * layout.block_size * layout.head_dim;
        check_nan(kv, if kv == KvDtype::Int8 { scales } else { 0 });
    }
}

#[test]
fn an_8_bit_value_that_is_nan_makes_its_own_rows_nan_and_no_others() {
    for kv in [KvDtype::Int8, KvDtype::Fp8] {
        let layout = nan_case(kv).layout();
        let panel = layout.num_kv_heads * layout.block_size;
        check_nan(kv, 2 * panel * layout.head_dim + 4 * panel);
    }
    let layout = nan_case(KvDtype::Fp8).layout();
    check_nan(
        KvDtype::Fp8,
        layout.num_kv_heads * layout.block_size * layout.head_dim,
    );
}

fn nan_case(kv: KvDtype) -> Case {
    Case::new(64, kv, &[(1, 70), (1, 70)])
}

/// Writes a NaN `offset` bytes after the start of the first sequence's second block.
fn check_nan(kv: KvDtype, offset: usize) {
    on_each(|device, stream| {
        let case = nan_case(kv);
        let mut step = Step::new::<f16>(&case, 4);
        let layout = case.layout();
        let bytes = step.pages.len() / 2 / layout.num_blocks;
        let block = step.block_tables[1] as usize + LAYER * layout.num_blocks;
        step.pages[block * bytes + offset..][..4].copy_from_slice(&[0xff; 4]);
        let width = case.group * case.head_dim;
        let is_nan = match kv {
            KvDtype::Bf16 => nans(&run::<bf16>(device, stream, &case, &step), width),
            _ => nans(&run::<f16>(device, stream, &case, &step), width),
        };
        // Of the first sequence, the first key-value head.
        assert_eq!(is_nan, [true, false, false, false], "{kv:?}");
    });
}

/// For each key-value head of each row, whether all its numbers are NaN; they are if one is.
fn nans<T: TestData>(found: &[T], width: usize) -> Vec<bool> {
    let heads = found.chunks_exact(width);
    heads
        .map(|head| {
            let num_nan = head.iter().filter(|x| x.to_f32().is_nan()).count();
            assert!(num_nan == 0 || num_nan == width, "{num_nan} of {width}");
            num_nan > 0
        })
        .collect()
}

#[test]
fn an_empty_batch_is_nothing_to_do() {
    let case = Case::new(64, KvDtype::Bf16, &[]);
    on_each(|device, stream| {
        let step = Step::new::<bf16>(&case, 1);
        assert!(run::<bf16>(device, stream, &case, &step).is_empty());
    });
}

#[test]
fn what_does_not_fit_is_refused() {
    on_each(|device, stream| {
        let case = Case::new(64, KvDtype::Bf16, &[(1, 10)]);
        let step = Step::new::<bf16>(&case, 1);
        let cache = upload(device, stream, &case, &step);
        let layout = case.layout();
        let q = device.alloc::<bf16>(step.q.len()).unwrap();
        let mut out = device.alloc::<bf16>(step.q.len()).unwrap();
        let mut plan = AttendPlan::new(device).unwrap();
        let mut refused = |plan: &mut AttendPlan, change: &dyn Fn(&mut Case)| {
            let mut case = case.clone();
            change(&mut case);
            let buffers = (&case, &q, &mut out);
            attend_into(stream, &cache, plan, buffers).unwrap_err()
        };
        let unplanned = refused(&mut plan, &|_| ());
        assert_eq!(unplanned, CudaError::Kernel(KernelError::PlanMismatch));
        let shape = case.shape(&layout, Dtype::Bf16);
        plan.plan(stream, &shape, &step.batch()).unwrap();
        let capped = refused(&mut plan, &|case| case.soft_cap = f32::NAN);
        assert!(
            matches!(
                capped,
                CudaError::Argument {
                    name: "soft_cap",
                    ..
                }
            ),
            "{capped}"
        );
        plan.plan(
            stream,
            &PlanShape {
                dtype: Dtype::F16,
                ..shape
            },
            &step.batch(),
        )
        .unwrap();
        let other_type = refused(&mut plan, &|_| ());
        assert!(
            matches!(other_type, CudaError::Dtype { name: "q", .. }),
            "{other_type}"
        );
        let short = AttendBatch {
            context_lens: &[0],
            ..step.batch()
        };
        plan.plan(stream, &shape, &short).unwrap_err();
        let emptied = refused(&mut plan, &|_| ());
        assert_eq!(emptied, CudaError::Kernel(KernelError::PlanMismatch));
    });
}
