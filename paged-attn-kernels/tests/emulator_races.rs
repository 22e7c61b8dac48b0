//! What the PTX emulator says of missing barriers and waits.

mod emulator_common;

use emulator_common::{Run, STORE, kernel};
use pageloom_paged_attn_kernels::emulator::{Cause, Fault, Module};

/// Each thread writes a shared word and reads that of the thread 32 further on.
fn exchange(barrier: &str) -> String {
    format!(
        "shl.b32 %r3, %r1, 2; mov.u32 %r4, dyn; add.s32 %r4, %r4, %r3;\n\
         st.shared.u32 [%r4], %r1;\n{barrier}\n\
         xor.b32 %r3, %r3, 128; mov.u32 %r4, dyn; add.s32 %r4, %r4, %r3;\n\
         ld.shared.u32 %r2, [%r4];\n{STORE}"
    )
}

#[test]
fn a_missing_barrier_is_a_race() {
    let cause = Run::new(&exchange(""), 64, &[0; 64]).cause();
    assert!(
        matches!(
            cause,
            Cause::Race {
                access: "write",
                ..
            } | Cause::Race { .. }
        ),
        "{cause:?}"
    );
    let cause = Run::new(&exchange("bar.warp.sync -1;"), 64, &[0; 64]).cause();
    assert!(matches!(cause, Cause::Race { .. }), "{cause:?}");
    let run = Run::new(&exchange("bar.sync 0;"), 64, &[0; 64]);
    let expected: Vec<u32> = (0..64).map(|i| i ^ 32).collect();
    assert_eq!(run.words(64), expected);
    assert_eq!(run.result.map(|s| s.barriers), Ok(1));
}

#[test]
fn within_a_warp_its_own_barrier_is_enough() {
    let body = exchange("").replace("128", "4");
    assert!(matches!(
        Run::new(&body, 32, &[0; 32]).cause(),
        Cause::Race { .. }
    ));
    let body = exchange("bar.warp.sync -1;").replace("128", "4");
    let expected: Vec<u32> = (0..32).map(|i| i ^ 1).collect();
    assert_eq!(Run::new(&body, 32, &[0; 32]).words(32), expected);
}

#[test]
fn overwriting_what_another_warp_reads_is_a_race() {
    // Every thread reads word 0; then, with no barrier, the last thread writes it.
    let body = |barrier: &str| {
        format!(
            "setp.eq.u32 %p1, %r1, 0; @%p1 st.shared.u32 [dyn], %r1; bar.sync 0;\n\
             ld.shared.u32 %r2, [dyn]; {barrier}\n\
             setp.eq.u32 %p1, %r1, 63; @%p1 st.shared.u32 [dyn], %r1;"
        )
    };
    let cause = Run::new(&body(""), 64, &[0]).cause();
    assert!(
        matches!(
            cause,
            Cause::Race {
                access: "write",
                other: "read",
                ..
            }
        ),
        "{cause:?}"
    );
    assert!(Run::new(&body("bar.sync 0;"), 64, &[0]).result.is_ok());
}

#[test]
fn atomics_do_not_race_with_each_other_but_with_reads() {
    let body = |barrier: &str| {
        format!(
            "setp.eq.u32 %p1, %r1, 0; mov.u32 %r2, 0; @%p1 st.shared.u32 [dyn], %r2; bar.sync 0;\n\
             atom.shared.add.u32 %r3, [dyn], %r1; {barrier} ld.shared.u32 %r2, [dyn]; {STORE}"
        )
    };
    assert_eq!(
        Run::new(&body("bar.sync 0;"), 64, &[0; 64]).words(64),
        [2016; 64]
    );
    assert!(matches!(
        Run::new(&body(""), 64, &[0; 64]).cause(),
        Cause::Race { .. }
    ));
}

/// Copies 16 bytes into shared memory and reads them.
fn copied(between: &str) -> String {
    format!(
        "mov.u32 %r3, dyn; cp.async.cg.shared.global.L2::128B [%r3], [%rd1], 16;\n\
         cp.async.commit_group;\n{between}\nld.shared.u32 %r2, [%r3+12]; {STORE}"
    )
}

#[test]
fn a_missing_wait_for_a_copy_is_seen() {
    let words = [1, 2, 3, 4];
    let cause = Run::new(&copied(""), 1, &words).cause();
    assert!(
        matches!(cause, Cause::CopyPending { thread: 0, .. }),
        "{cause:?}"
    );
    let cause = Run::new(&copied("cp.async.wait_group 1;"), 1, &words).cause();
    assert!(matches!(cause, Cause::CopyPending { .. }), "{cause:?}");
    assert_eq!(
        Run::new(&copied("cp.async.wait_group 0;"), 1, &words).words(2),
        [4, 2]
    );
    assert_eq!(
        Run::new(&copied("cp.async.wait_all;"), 1, &words).words(2),
        [4, 2]
    );
}

#[test]
fn a_short_copy_fills_with_zeros() {
    let body = copied("cp.async.wait_all;").replace("16;", "16, %r9;");
    let body = format!("mov.u32 %r9, 8; {body}");
    assert_eq!(Run::new(&body, 1, &[1, 2, 3, 4]).words(1), [0]);
    let body = body.replace("%r3+12", "%r3+4");
    assert_eq!(Run::new(&body, 1, &[1, 2, 3, 4]).words(1), [2]);
}

#[test]
fn another_thread_needs_a_barrier_after_the_wait() {
    let body = |barrier: &str| {
        format!(
            "setp.ne.u32 %p1, %r1, 0; @%p1 bra $L1;\n\
             cp.async.ca.shared.global [dyn], [%rd1], 4; cp.async.wait_all;\n\
             $L1: {barrier} ld.shared.u32 %r2, [dyn]; {STORE}"
        )
    };
    assert_eq!(
        Run::new(&body("bar.sync 0;"), 64, &[9; 64]).words(64),
        [9; 64]
    );
    assert!(matches!(
        Run::new(&body(""), 64, &[9; 64]).cause(),
        Cause::Race { .. }
    ));
}

#[test]
fn a_barrier_that_not_all_reach_is_a_deadlock() {
    // Lane 0 waits for lane 1 in its warp, which waits at a barrier for lane 0.
    let body = "setp.eq.u32 %p1, %r1, 0; @%p1 bra $L1; bar.sync 0; ret;\n$L1: bar.warp.sync 3;";
    let run = Run::new(body, 32, &[0]);
    assert!(
        matches!(run.result, Err(Fault::Deadlock { waiting: 32, .. })),
        "{:?}",
        run.result
    );
    // Threads that have ended are not waited for.
    let body = "setp.lt.u32 %p1, %r1, 40; @%p1 bra $L1; ret;\n$L1: bar.sync 0;";
    assert!(Run::new(body, 64, &[0]).result.is_ok());
}

#[test]
fn an_aligned_barrier_must_not_be_reached_on_two_ways() {
    let body = "setp.eq.u32 %p1, %r1, 0; @%p1 bra $L1; bar.sync 0; ret;\n$L1: bar.sync 0;";
    let cause = Run::new(body, 32, &[0]).cause();
    assert!(
        matches!(cause, Cause::BarrierDivergence { .. }),
        "{cause:?}"
    );
}

#[test]
fn damaged_text_is_an_error_and_never_a_panic() {
    let text = kernel(&exchange("bar.sync 0;"));
    for end in 0..text.len() {
        if text.is_char_boundary(end) {
            let _ = Module::parse(&text[..end]);
        }
    }
    // Every token once left out.
    let words: Vec<&str> = text.split_inclusive([' ', '\n', ',']).collect();
    for skip in 0..words.len() {
        let damaged: String = words
            .iter()
            .enumerate()
            .filter(|(i, _)| *i != skip)
            .map(|(_, w)| *w)
            .collect();
        let _ = Module::parse(&damaged);
    }
}
