//! Every packed row is attended to every key that it sees, once.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::KvDtype;

const FEW: Tiling = Tiling {
    rows: 16,
    slots: Slots {
        num_ctas: 6,
        min_tiles: 2,
    },
    invariant_keys: 1024,
};

const MANY: Tiling = Tiling {
    rows: 128,
    slots: Slots {
        num_ctas: 4,
        min_tiles: 8,
    },
    invariant_keys: 4096,
};

/// A sequence: query rows and context.
type Lens = (u32, u32);

#[derive(Debug, Clone)]
struct Case {
    shape: WorkShape,
    sequences: Vec<Lens>,
}

fn shape(num_kv_heads: usize, group: usize) -> WorkShape {
    WorkShape {
        layout: CacheLayout {
            num_layers: 1,
            num_blocks: 1 << 20,
            block_size: 16,
            num_kv_heads,
            head_dim: 64,
            dtype: KvDtype::Bf16,
        },
        num_heads: num_kv_heads * group,
        window: 0,
        batch_invariant: false,
        few: FEW,
        many: Some(MANY),
    }
}

/// Block tables whose sequences' blocks follow each other, with one too many for each.
struct Owned {
    query_offsets: Vec<u32>,
    context_lens: Vec<u32>,
    block_tables: Vec<u32>,
    table_offsets: Vec<u32>,
}

impl Owned {
    fn new(sequences: &[Lens], block_size: usize) -> Self {
        let mut batch = Self {
            query_offsets: vec![0],
            context_lens: Vec::new(),
            block_tables: Vec::new(),
            table_offsets: vec![0],
        };
        for &(queries, context) in sequences {
            batch
                .query_offsets
                .push(batch.query_offsets.last().unwrap() + queries);
            batch.context_lens.push(context);
            let num_blocks = context.div_ceil(block_size as u32) + 1;
            let first = batch.block_tables.len() as u32;
            batch.block_tables.extend(first..first + num_blocks);
            batch.table_offsets.push(first + num_blocks);
        }
        batch
    }

    fn batch(&self) -> AttendBatch<'_> {
        AttendBatch {
            query_offsets: &self.query_offsets,
            context_lens: &self.context_lens,
            block_tables: &self.block_tables,
            table_offsets: &self.table_offsets,
        }
    }
}

fn plan(case: &Case) -> Work {
    let mut work = Work::default();
    let owned = Owned::new(&case.sequences, case.shape.layout.block_size);
    work.plan(&case.shape, &owned.batch()).unwrap();
    work
}

/// The keys that a kernel computes for a packed row of an item, as `visible_keys` in
/// `cuda/attention.cuh`.
fn visible(item: &AttendItem, packed: u32, group: u32, window: u32) -> Range<u32> {
    let end = item.first_position + packed / group + 1;
    let begin = if window == 0 {
        0
    } else {
        end.saturating_sub(window)
    };
    begin.max(item.kv_begin)..end.min(item.kv_end)
}

/// A packed row: first row of its sequence, number, key-value head.
type Row = (u32, u32, u32);

/// What rows' items say: keys, and the number of the partial result if it is one.
type Parts = HashMap<Row, Vec<(Range<u32>, Option<u32>)>>;

fn check(case: &Case) {
    let work = plan(case);
    let shape = &case.shape;
    let many = shape.many.map_or(0, |many| many.rows);
    for (items, rows) in [(&work.few, shape.few.rows), (&work.many, many)] {
        assert!(items.iter().all(|item| item.num_packed as usize <= rows));
        assert!(items.is_sorted_by_key(|item| Reverse(item.kv_end - item.kv_begin)));
    }
    let found = parts(case, &work);
    let combined = combined(&work);
    let mut num_rows = 0;
    let mut first_row = 0;
    for &(queries, context) in &case.sequences {
        let group = (shape.num_heads / shape.layout.num_kv_heads) as u32;
        for packed in 0..queries * group {
            let end = context - queries + packed / group + 1;
            let begin = match shape.window as u32 {
                0 => 0,
                window => end.saturating_sub(window),
            };
            for kv_head in 0..shape.layout.num_kv_heads as u32 {
                num_rows += 1;
                let row = (first_row, packed, kv_head);
                check_row(&found[&row], combined.get(&row), begin..end);
            }
        }
        first_row += queries;
    }
    assert_eq!(found.len(), num_rows);
}

/// Checks that the parts are all of `keys`, each once, and that all their results are summed.
fn check_row(parts: &[(Range<u32>, Option<u32>)], combined: Option<&Vec<u32>>, keys: Range<u32>) {
    let mut partials: Vec<u32> = parts.iter().filter_map(|part| part.1).collect();
    partials.sort_unstable();
    match parts.len() {
        1 => assert!(partials.is_empty() && combined.is_none()),
        n => assert!(partials.len() == n && combined == Some(&partials)),
    }
    let mut parts = parts.to_vec();
    parts.retain(|(keys, _)| !keys.is_empty());
    parts.sort_unstable_by_key(|(keys, _)| keys.start);
    let mut next = keys.start;
    for (part, _) in parts {
        assert_eq!(part.start, next, "of {keys:?}");
        next = part.end;
    }
    assert_eq!(next, keys.end, "of {keys:?}");
}

/// What each row's items say; no two of them write the same partial result.
fn parts(case: &Case, work: &Work) -> Parts {
    let shape = &case.shape;
    let group = (shape.num_heads / shape.layout.num_kv_heads) as u32;
    let mut found = Parts::new();
    let mut used = vec![false; work.num_partials as usize];
    for item in work.few.iter().chain(&work.many) {
        let is_empty = item.kv_begin >= item.kv_end || item.num_packed == 0;
        assert!(!is_empty, "{item:?}");
        for i in 0..item.num_packed {
            let packed = item.first_packed + i;
            let partial = (item.partial != NO_PARTIAL).then(|| item.partial + i);
            if let Some(partial) = partial {
                let was_used = std::mem::replace(&mut used[partial as usize], true);
                assert!(!was_used, "{item:?}");
            }
            let keys = visible(item, packed, group, shape.window as u32);
            let row = (item.first_row, packed, item.kv_head);
            found.entry(row).or_default().push((keys, partial));
        }
    }
    assert!(used.iter().all(|&used| used), "a result without an item");
    found
}

/// The numbers of the partial results that are summed for each row, in order.
fn combined(work: &Work) -> HashMap<Row, Vec<u32>> {
    let mut combined = HashMap::new();
    for item in &work.combine {
        for i in 0..item.num_packed {
            let row = (item.first_row, item.first_packed + i, item.kv_head);
            let parts = (0..item.num_splits).map(|s| item.partial + s * item.num_packed + i);
            assert!(combined.insert(row, parts.collect()).is_none(), "{item:?}");
        }
    }
    combined
}

fn cases() -> impl Strategy<Value = Case> {
    let lens = prop_oneof![
        4 => (1u32..4, 1u32..3000),
        1 => (1u32..400, 1u32..3000),
        1 => (0u32..2, 1u32..200),
    ];
    let sequences = prop::collection::vec(lens, 0..6);
    let group = prop::sample::select(vec![1usize, 3, 4, 7, 8, 16, 20, 71]);
    let window = prop::sample::select(vec![0usize, 1, 63, 64, 200, 5000]);
    let flags = (any::<bool>(), any::<bool>(), 1usize..4);
    (sequences, group, window, flags).prop_map(|(sequences, group, window, flags)| {
        let (batch_invariant, has_many, num_kv_heads) = flags;
        let mut shape = shape(num_kv_heads, group);
        shape.window = window;
        shape.batch_invariant = batch_invariant;
        if !has_many {
            shape.many = None;
        }
        let sequences = sequences
            .into_iter()
            .map(|(queries, context)| (queries, context.max(queries)))
            .collect();
        Case { shape, sequences }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_row_meets_every_key_it_sees_once(case in cases()) {
        check(&case);
    }
}

#[test]
fn lengths_around_tiles_and_blocks_are_covered() {
    for window in [0, 1, 64, 65] {
        for context in [1, 15, 16, 17, 63, 64, 65, 127, 128, 129, 1023, 1024, 1025] {
            for queries in [1, 2, 9, 33] {
                let mut shape = shape(2, 4);
                shape.window = window;
                let sequences = vec![(queries.min(context), context)];
                check(&Case { shape, sequences });
            }
        }
    }
}

#[test]
fn few_rows_go_to_their_kernel_and_many_to_theirs() {
    let sequences = vec![(1, 100), (4, 100), (5, 100), (100, 100)];
    let work = plan(&Case {
        shape: shape(1, 8),
        sequences: sequences.clone(),
    });
    let rows = |items: &[AttendItem]| items.iter().map(|item| item.num_packed).sum::<u32>();
    assert_eq!((rows(&work.few), rows(&work.many)), (8 + 32, 40 + 800));
    let mut shape = shape(1, 8);
    shape.many = None;
    let work = plan(&Case { shape, sequences });
    assert_eq!((rows(&work.few), rows(&work.many)), (880, 0));
}

#[test]
fn a_long_sequence_is_split_evenly_at_tiles() {
    let sequences = vec![(1, 5000)];
    let work = plan(&Case {
        shape: shape(1, 8),
        sequences,
    });
    // 79 tiles over 6 CTAs.
    assert_eq!(work.few.len(), 6);
    for item in &work.few {
        assert_eq!(item.kv_begin % TILE_KEYS, 0);
        let len = item.kv_end - item.kv_begin;
        assert!((12 * TILE_KEYS..=14 * TILE_KEYS).contains(&len), "{item:?}");
    }
    assert_eq!(work.num_partials, 6 * 8);
}

#[test]
fn keys_before_the_window_are_not_read() {
    let mut shape = shape(1, 8);
    shape.window = 100;
    let work = plan(&Case {
        shape,
        sequences: vec![(3, 5000)],
    });
    let begin = work.few.iter().map(|item| item.kv_begin).min();
    // The first of the three rows sees 100 keys up to its own, 4997.
    assert_eq!(begin, Some(4998 - 100));
}

#[test]
fn an_invariant_plan_of_a_sequence_does_not_depend_on_the_batch() {
    let mut shape = shape(2, 4);
    shape.batch_invariant = true;
    let of = |sequences: Vec<Lens>, row: u32| {
        let work = plan(&Case { shape, sequences });
        let items = work.few.iter().chain(&work.many);
        let mut items: Vec<_> = items
            .filter(|item| item.first_row == row)
            .map(|item| {
                let is_partial = item.partial != NO_PARTIAL;
                (
                    item.first_packed,
                    item.kv_head,
                    item.kv_begin,
                    item.kv_end,
                    is_partial,
                )
            })
            .collect();
        items.sort_unstable();
        items
    };
    for (queries, context) in [(1, 900), (1, 3000), (2, 1025), (300, 9000)] {
        let alone = of(vec![(queries, context)], 0);
        let among = of(vec![(1, 7000), (queries, context), (40, 50)], 1);
        assert_eq!(alone, among);
    }
}

#[test]
fn batches_that_do_not_fit_leave_nothing_to_do() {
    let shape = shape(1, 8);
    let mut work = Work::default();
    let mut owned = Owned::new(&[(1, 50), (1, 60)], 16);
    work.plan(&shape, &owned.batch()).unwrap();
    assert_eq!(work.few.len(), 2);
    owned.context_lens[1] = 0;
    assert!(work.plan(&shape, &owned.batch()).is_err());
    assert!(work.few.is_empty() && work.block_tables.is_empty());
}

#[test]
fn more_packed_rows_than_32_bits_number_are_refused() {
    let mut shape = shape(1, 1 << 20);
    shape.layout.num_blocks = 1 << 10;
    let owned = Owned::new(&[(1 << 12, 1 << 12)], 16);
    let found = Work::default().plan(&shape, &owned.batch());
    assert!(
        matches!(found, Err(CudaError::Argument { .. })),
        "{found:?}"
    );
}
