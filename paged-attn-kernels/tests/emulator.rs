//! The PTX emulator on small kernels written by hand.

mod emulator_common;

use emulator_common::{Run, STORE, kernel};
use pageloom_paged_attn_kernels::emulator::{
    Cause, Fault, LaunchConfig, Memory, Module, ParseError, launch,
};

#[test]
fn threads_of_a_partial_warp_store_their_own_words() {
    let run = Run::new(
        &format!("mad.lo.s32 %r2, %r1, %r1, 5; {STORE}"),
        40,
        &[7; 41],
    );
    let expected: Vec<u32> = (0..40).map(|i| i * i + 5).chain([7]).collect();
    assert_eq!(run.words(41), expected);
    assert_eq!(run.result.map(|s| s.global_store_bytes), Ok(160));
}

#[test]
fn a_store_past_the_end_faults_with_its_place() {
    let run = Run::new(&format!("mov.u32 %r2, 1; {STORE}"), 8, &[0; 7]);
    let Err(Fault::Thread { at, cause }) = run.result else {
        panic!("{:?}", run.result)
    };
    assert_eq!((at.thread, at.kernel.as_str()), ([7, 0, 0], "k"));
    let address = run.address;
    let Cause::OutOfBounds {
        address: found,
        bytes: 4,
        nearest: Some(nearest),
        ..
    } = cause
    else {
        panic!("{cause:?}")
    };
    assert_eq!(
        (found, nearest.address, nearest.bytes),
        (address + 28, address, 28)
    );
}

#[test]
fn a_misaligned_vector_load_faults() {
    let body = "ld.global.v4.u32 {%r2, %r3, %r4, %r5}, [%rd1+8];";
    let cause = Run::new(body, 1, &[0; 8]).cause();
    assert!(
        matches!(cause, Cause::Misaligned { bytes: 16, .. }),
        "{cause:?}"
    );
}

#[test]
fn shared_memory_ends_where_it_was_asked_to() {
    let cause = Run::new("mov.u32 %r2, dyn; st.shared.u32 [%r2+4096], %r1;", 1, &[0]).cause();
    assert!(
        matches!(cause, Cause::OutOfBounds { address: 4096, .. }),
        "{cause:?}"
    );
}

#[test]
fn lanes_that_part_meet_again_at_a_shuffle() {
    // Odd lanes take the longer way; all exchange with their neighbour afterwards.
    let body = format!(
        "and.b32 %r3, %r1, 1; setp.eq.u32 %p1, %r3, 0; mov.u32 %r4, 100; @%p1 bra $L1;\n\
         mov.u32 %r4, 200; add.s32 %r4, %r4, %r1;\n\
         $L1: shfl.sync.bfly.b32 %r2|%p2, %r4, 1, 31, -1; {STORE}"
    );
    let expected: Vec<u32> = (0..32)
        .map(|i| if i % 2 == 0 { 201 + i } else { 100 })
        .collect();
    assert_eq!(Run::new(&body, 32, &[0; 32]).words(32), expected);
}

#[test]
fn shuffles_stay_within_their_segments() {
    let shuffle = |instruction: &str| {
        let body = format!("{instruction}; @!%p1 add.s32 %r2, %r2, 1000; {STORE}");
        Run::new(&body, 32, &[0; 32]).words(32)
    };
    // Segments of 8: clamp 31 - 7 in the upper byte; the highest lane of a segment below.
    let down = shuffle("shfl.sync.down.b32 %r2|%p1, %r1, 3, 0x1807, -1");
    let up = shuffle("shfl.sync.up.b32 %r2|%p1, %r1, 3, 0x1800, -1");
    let idx = shuffle("shfl.sync.idx.b32 %r2|%p1, %r1, 11, 0x1807, -1");
    for lane in 0..32u32 {
        let within = lane % 8;
        assert_eq!(
            down[lane as usize],
            if within < 5 { lane + 3 } else { lane + 1000 }
        );
        assert_eq!(
            up[lane as usize],
            if within >= 3 { lane - 3 } else { lane + 1000 }
        );
        assert_eq!(idx[lane as usize], lane - within + 3);
    }
}

#[test]
fn votes_matches_and_reductions_cover_the_mask() {
    let collective = |instruction: &str| {
        let body = format!("setp.lt.u32 %p1, %r1, 5; shr.u32 %r3, %r1, 2; {instruction}; {STORE}");
        Run::new(&body, 32, &[0; 32]).words(32)
    };
    assert_eq!(collective("vote.sync.ballot.b32 %r2, %p1, -1"), [31; 32]);
    let any = collective("vote.sync.any.pred %p2, %p1, -1; selp.u32 %r2, 1, 0, %p2");
    let all = collective("vote.sync.all.pred %p2, %p1, -1; selp.u32 %r2, 1, 0, %p2");
    assert_eq!((any, all), (vec![1; 32], vec![0; 32]));
    let expected: Vec<u32> = (0..32).map(|lane| 15 << (lane / 4 * 4)).collect();
    assert_eq!(collective("match.any.sync.b32 %r2, %r3, -1"), expected);
    assert_eq!(collective("redux.sync.add.u32 %r2, %r1, -1"), [496; 32]);
    assert_eq!(
        collective("neg.s32 %r4, %r1; redux.sync.min.s32 %r2, %r4, -1"),
        [-31i32 as u32; 32]
    );
}

#[test]
fn a_lane_outside_its_mask_faults() {
    let cause = Run::new("shfl.sync.idx.b32 %r2, %r1, 0, 31, 1;", 32, &[0]).cause();
    assert_eq!(cause, Cause::NotInMask { mask: 1 });
}

#[test]
fn the_whole_block_reduces_a_predicate() {
    let body = format!(
        "setp.lt.u32 %p1, %r1, 37; bar.red.popc.u32 %r2, 0, %p1;\n\
         bar.red.and.pred %p2, 0, %p1; @%p2 add.s32 %r2, %r2, 1000;\n\
         bar.red.or.pred %p3, 0, !%p1; @%p3 add.s32 %r2, %r2, 500; {STORE}"
    );
    assert_eq!(Run::new(&body, 64, &[0; 64]).words(64), [537; 64]);
}

#[test]
fn functions_local_memory_and_branch_tables_work() {
    let function = ".func (.param .b32 out) twice(.param .b32 in)\n{\n.reg .b32 %r<3>;\n\
                    ld.param.u32 %r1, [in]; add.s32 %r2, %r1, %r1; st.param.b32 [out], %r2; ret;\n}\n";
    let body = format!(
        ".local .align 16 .b8 depot[64]; .reg .b64 %SP; .reg .b64 %SPL;\n\
         mov.u64 %SPL, depot; cvta.local.u64 %SP, %SPL;\n\
         and.b32 %r3, %r1, 3; mul.wide.u32 %rd2, %r3, 4; add.s64 %rd3, %SP, %rd2;\n\
         st.u32 [%rd3], %r1; add.s64 %rd3, %SPL, %rd2; ld.local.u32 %r4, [%rd3];\n\
         {{ .param .b32 a; st.param.b32 [a+0], %r4; .param .b32 b;\n\
         call.uni (b), twice, (a); ld.param.b32 %r5, [b+0]; }}\n\
         $LT: .branchtargets $LA, $LB, $LA, $LB;\n\
         brx.idx %r3, $LT;\n$LA: add.s32 %r2, %r5, 1; bra.uni $LE;\n\
         $LB: add.s32 %r2, %r5, 100;\n$LE: {STORE}"
    );
    let text = kernel(&body).replace(".visible .entry", &format!("{function}.visible .entry"));
    let module = Module::parse(&text).unwrap();
    let mut memory = Memory::new();
    let address = memory.alloc(64 * 4);
    let config = LaunchConfig {
        grid: [1; 3],
        block: [64, 1, 1],
        dynamic_shared_bytes: 0,
    };
    launch(
        module.entry("k").unwrap(),
        config,
        &address.to_le_bytes(),
        &mut memory,
    )
    .unwrap();
    for thread in 0..64u32 {
        let mut word = [0; 4];
        memory
            .read(address + 4 * u64::from(thread), &mut word)
            .unwrap();
        let expected = 2 * thread + if thread % 2 == 0 { 1 } else { 100 };
        assert_eq!(u32::from_le_bytes(word), expected, "thread {thread}");
    }
}

#[test]
fn atomics_on_global_memory_count_every_thread() {
    let body = "red.global.add.u32 [%rd1], 2; atom.global.max.s32 %r2, [%rd1+4], %r1;\n\
                neg.s32 %r3, %r1; atom.global.min.s32 %r2, [%rd1+8], %r3;\n\
                atom.global.inc.u32 %r2, [%rd1+12], 9; mov.f32 %f1, 0f3F000000;\n\
                atom.global.add.f32 %f2, [%rd1+16], %f1; atom.global.cas.b32 %r2, [%rd1+20], 7, %r1;";
    let words = Run::new(body, 96, &[0, 0, 0, 0, 0, 7]).words(6);
    assert_eq!(words[..4], [192, 95, -95i32 as u32, 6]);
    assert_eq!((f32::from_bits(words[4]), words[5]), (48.0, 0));
}

#[test]
fn what_is_unknown_is_refused_with_its_line() {
    let text = kernel("frobnicate.u32 %r1, %r2;");
    let line = text.lines().position(|l| l.contains("frobnicate")).unwrap() as u32 + 1;
    let expected = |text: &str| ParseError::Unsupported {
        line,
        text: text.into(),
    };
    assert_eq!(
        Module::parse(&text).unwrap_err(),
        expected("frobnicate.u32")
    );
    let text = kernel("add.weird.u32 %r1, %r2, %r3;");
    assert_eq!(Module::parse(&text).unwrap_err(), expected("add.weird.u32"));
    let text = kernel("add.u32 %r1, %r99, 1;");
    assert_eq!(
        Module::parse(&text).unwrap_err(),
        ParseError::Undeclared {
            line,
            name: "%r99".into()
        }
    );
    let text = kernel("add.u32 %r1, %r2;");
    assert_eq!(
        Module::parse(&text).unwrap_err(),
        ParseError::Operands {
            line,
            text: "add.u32".into()
        }
    );
}

#[test]
fn launches_the_device_would_refuse_are_refused() {
    let module = Module::parse(&kernel("")).unwrap();
    let entry = module.entry("k").unwrap();
    let config = LaunchConfig {
        grid: [1; 3],
        block: [2048, 1, 1],
        dynamic_shared_bytes: 0,
    };
    let result = launch(entry, config, &[0; 8], &mut Memory::new());
    assert!(matches!(
        result,
        Err(Fault::Launch {
            what: "threads",
            given: 2048,
            ..
        })
    ));
    let config = LaunchConfig {
        block: [32, 1, 1],
        ..config
    };
    let result = launch(entry, config, &[0; 4], &mut Memory::new());
    assert!(matches!(
        result,
        Err(Fault::Launch {
            what: "bytes of parameters",
            ..
        })
    ));
}

#[test]
fn only_unordered_comparisons_hold_for_nan() {
    let outcome = |name: &str, a: f32, b: f32| {
        let body = format!(
            "mov.f32 %f1, 0f{:08X}; mov.f32 %f2, 0f{:08X}; setp.{name}.f32 %p1, %f1, %f2;\n\
             selp.u32 %r2, 1, 0, %p1; {STORE}",
            a.to_bits(),
            b.to_bits()
        );
        Run::new(&body, 1, &[7]).words(1)[0]
    };
    // Whether it holds for less, equal, greater and NaN.
    for (name, expected) in [
        ("eq", [0, 1, 0, 0]),
        ("ne", [1, 0, 1, 0]),
        ("lt", [1, 0, 0, 0]),
        ("le", [1, 1, 0, 0]),
        ("gt", [0, 0, 1, 0]),
        ("ge", [0, 1, 1, 0]),
        ("equ", [0, 1, 0, 1]),
        ("neu", [1, 0, 1, 1]),
        ("ltu", [1, 0, 0, 1]),
        ("leu", [1, 1, 0, 1]),
        ("gtu", [0, 0, 1, 1]),
        ("geu", [0, 1, 1, 1]),
        ("num", [1, 1, 1, 0]),
        ("nan", [0, 0, 0, 1]),
    ] {
        let found = [1.0, 2.0, 3.0, f32::NAN].map(|a| outcome(name, a, 2.0));
        assert_eq!(found, expected, "{name}");
    }
}
