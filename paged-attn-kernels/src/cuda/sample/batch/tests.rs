//! What is refused, and how lists are laid out.

use super::*;

fn refused(row: SampleRow<'_>) -> &'static str {
    let batch = SampleBatch {
        vocab_size: 10,
        rows: &[SampleRow::default(), row],
        logprobs: &[],
    };
    match Packed::default().fill(&batch) {
        Err(CudaError::Argument { name, .. }) => name,
        other => panic!("{other:?}"),
    }
}

#[test]
fn parameters_out_of_range_are_refused_by_name() {
    let row = SampleRow::default();
    for temperature in [-1.0, f32::NAN, f32::INFINITY] {
        assert_eq!(refused(SampleRow { temperature, ..row }), "temperature");
    }
    for top_p in [0.0, 1.5, f32::NAN] {
        assert_eq!(refused(SampleRow { top_p, ..row }), "top_p");
    }
    for min_p in [-0.1, 1.1, f32::NAN] {
        assert_eq!(refused(SampleRow { min_p, ..row }), "min_p");
    }
    for penalty in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        let row = SampleRow {
            repetition_penalty: penalty,
            ..row
        };
        assert_eq!(refused(row), "repetition_penalty");
    }
    assert_eq!(
        refused(SampleRow {
            presence_penalty: f32::NAN,
            ..row
        }),
        "presence_penalty"
    );
    assert_eq!(
        refused(SampleRow {
            frequency_penalty: f32::MAX,
            ..row
        }),
        "frequency_penalty"
    );
    assert_eq!(
        refused(SampleRow {
            bias: &[(1, f32::NAN)],
            ..row
        }),
        "bias"
    );
    assert_eq!(
        refused(SampleRow {
            logits_row: usize::MAX,
            ..row
        }),
        "logits_row"
    );
}

#[test]
fn logprobs_of_a_draw_that_is_not_there_are_refused() {
    let wanted = |token, num_top| LogprobRow {
        logits_row: 0,
        token,
        num_top,
    };
    for (row, want) in [
        (wanted(LogprobToken::Drawn(1), 0), "drawn"),
        (wanted(LogprobToken::Known(3), MAX_TOP + 1), "num_top"),
    ] {
        let batch = SampleBatch {
            vocab_size: 10,
            rows: &[SampleRow::default()],
            logprobs: &[row],
        };
        let got = Packed::default().fill(&batch);
        assert!(matches!(got, Err(CudaError::Argument { name, .. }) if name == want));
    }
}

#[test]
fn lists_of_rows_lie_one_after_the_other() {
    let plain = SampleRow {
        history: &[1, 2],
        ..Default::default()
    };
    let row = SampleRow {
        logits_row: 4,
        history: &[5, 6, 7],
        presence_penalty: 1.0,
        banned: &[8],
        bias: &[(9, 1.0), (3, 2.0), (9, -1.0)],
        ..plain
    };
    let batch = SampleBatch {
        vocab_size: 10,
        rows: &[plain, row],
        logprobs: &[],
    };
    let mut packed = Packed::default();
    packed.fill(&batch).unwrap();
    assert_eq!(packed.tokens, [5, 6, 7, 8]);
    assert_eq!(packed.bias_tokens, [3, 9, 9]);
    assert_eq!(packed.bias, [2.0, 1.0, -1.0]);
    assert_eq!((packed.num_adjusted, packed.num_logits_rows), (1, 5));
    assert_eq!(
        (packed.rows[0].adjusted_row, packed.rows[1].adjusted_row),
        (NONE, 0)
    );
    let banned = packed.rows[1].banned;
    assert_eq!((banned.begin, banned.end), (3, 4));
}
