//! Fragments of `mma` and `ldmatrix` in the PTX emulator, against the tables of the PTX ISA.

use half::{bf16, f16};
use pageloom_paged_attn_kernels::emulator::{LaunchConfig, Memory, Module, launch};

/// Runs a warp over a buffer: each lane loads `loads` words into `%r10...`, the body computes, and
/// `stores` words of `%r30...` are stored.
fn run(body: &str, loads: usize, stores: usize, words: &[u32]) -> Vec<u32> {
    let mut text = String::from(
        ".version 9.0\n.target sm_80\n.address_size 64\n.extern .shared .align 16 .b8 dyn[];\n\
         .visible .entry k(.param .u64 in, .param .u64 out)\n{\n\
         .reg .b32 %r<64>; .reg .b64 %rd<9>;\n\
         ld.param.u64 %rd1, [in]; ld.param.u64 %rd2, [out]; mov.u32 %r1, %tid.x;\n",
    );
    text += &format!(
        "mul.wide.u32 %rd3, %r1, {}; add.s64 %rd3, %rd1, %rd3;\n",
        4 * loads
    );
    for i in 0..loads {
        text += &format!("ld.global.u32 %r{}, [%rd3+{}];\n", 10 + i, 4 * i);
    }
    text += body;
    text += &format!(
        "mul.wide.u32 %rd4, %r1, {}; add.s64 %rd4, %rd2, %rd4;\n",
        4 * stores
    );
    for i in 0..stores {
        text += &format!("st.global.u32 [%rd4+{}], %r{};\n", 4 * i, 30 + i);
    }
    text += "ret;\n}\n";
    let module = Module::parse(&text).expect("the kernel is PTX");
    let mut memory = Memory::new();
    let (input, output) = (memory.alloc(words.len() * 4), memory.alloc(32 * stores * 4));
    let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    memory.write(input, &bytes).expect("the input is allocated");
    let params = [input.to_le_bytes(), output.to_le_bytes()].concat();
    let config = LaunchConfig {
        grid: [1; 3],
        block: [32, 1, 1],
        dynamic_shared_bytes: 1024,
    };
    launch(
        module.entry("k").expect("the kernel"),
        config,
        &params,
        &mut memory,
    )
    .expect("it runs");
    let mut bytes = vec![0; 32 * stores * 4];
    memory
        .read(output, &mut bytes)
        .expect("the output is allocated");
    bytes
        .chunks_exact(4)
        .map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        .collect()
}

/// Small integers, exact in every format: sums of products are exact too.
fn value(seed: usize) -> f32 {
    (((seed * 2_654_435_761) >> 7) % 17) as f32 - 8.0
}

fn mma_matches(kind: &str, bits: fn(f32) -> u16) {
    let a: Vec<f32> = (0..256).map(value).collect();
    let b: Vec<f32> = (0..128).map(|i| value(i + 1000)).collect();
    let c: Vec<f32> = (0..128).map(|i| value(i + 2000)).collect();
    let mut words = Vec::new();
    for lane in 0..32 {
        let (group, thread) = (lane / 4, lane % 4);
        // The ISA's formulas, by the index of an item in its fragment.
        let a_item = |i: usize| {
            let row = if i < 2 || (4..6).contains(&i) {
                group
            } else {
                group + 8
            };
            let column = thread * 2 + (i & 1) + if i >= 4 { 8 } else { 0 };
            bits(a[row * 16 + column])
        };
        let b_item = |i: usize| {
            let row = thread * 2 + (i & 1) + if i >= 2 { 8 } else { 0 };
            bits(b[row * 8 + group])
        };
        let pair = |low: u16, high: u16| u32::from(low) | u32::from(high) << 16;
        words.extend((0..4).map(|r| pair(a_item(2 * r), a_item(2 * r + 1))));
        words.extend((0..2).map(|r| pair(b_item(2 * r), b_item(2 * r + 1))));
        for i in 0..4 {
            let row = if i < 2 { group } else { group + 8 };
            words.push(c[row * 8 + thread * 2 + (i & 1)].to_bits());
        }
    }
    let body = format!(
        "mma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32 {{%r30,%r31,%r32,%r33}}, \
         {{%r10,%r11,%r12,%r13}}, {{%r14,%r15}}, {{%r16,%r17,%r18,%r19}};\n"
    );
    let out = run(&body, 10, 4, &words);
    for lane in 0..32 {
        for i in 0..4 {
            let row = lane / 4 + if i < 2 { 0 } else { 8 };
            let column = lane % 4 * 2 + (i & 1);
            let sum: f32 = (0..16).map(|k| a[row * 16 + k] * b[k * 8 + column]).sum();
            let expected = sum + c[row * 8 + column];
            assert_eq!(
                f32::from_bits(out[lane * 4 + i]),
                expected,
                "lane {lane}, item {i}"
            );
        }
    }
}

#[test]
fn mma_of_bf16_follows_the_fragment_tables() {
    mma_matches("bf16", |x| bf16::from_f32(x).to_bits());
}

#[test]
fn mma_of_f16_follows_the_fragment_tables() {
    mma_matches("f16", |x| f16::from_f32(x).to_bits());
}

/// Four matrices of items 0, 1, 2, ... in shared memory; lane `l` gives the address of row `l`.
fn ldmatrix(instruction: &str, stores: usize) -> Vec<u32> {
    let words: Vec<u32> = (0..128).map(|w| (2 * w) | ((2 * w + 1) << 16)).collect();
    let body = format!(
        "mov.u32 %r2, dyn; shl.b32 %r3, %r1, 4; add.s32 %r2, %r2, %r3;\n\
         st.shared.v4.b32 [%r2], {{%r10,%r11,%r12,%r13}}; bar.sync 0;\n{instruction}\n"
    );
    run(&body, 4, stores, &words)
}

#[test]
fn ldmatrix_gives_each_lane_two_neighbours_of_a_row() {
    let out = ldmatrix(
        "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r30,%r31,%r32,%r33}, [%r2];",
        4,
    );
    for lane in 0..32 {
        for matrix in 0..4 {
            let item = (matrix * 64 + lane / 4 * 8 + lane % 4 * 2) as u32;
            assert_eq!(out[lane * 4 + matrix], item | (item + 1) << 16);
        }
    }
}

#[test]
fn ldmatrix_transposes() {
    let instruction = "ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%r30,%r31}, [%r2];";
    let out = ldmatrix(instruction, 2);
    for lane in 0..32 {
        for matrix in 0..2 {
            // Row and column change places: a column of the stored matrix.
            let item = (matrix * 64 + lane % 4 * 2 * 8 + lane / 4) as u32;
            assert_eq!(out[lane * 2 + matrix], item | (item + 8) << 16);
        }
    }
}

#[test]
fn ldmatrix_x1_reads_only_the_first_eight_addresses() {
    // Addresses of the other lanes are far out of bounds.
    let instruction = "setp.gt.u32 %p1, %r1, 7; @%p1 mov.u32 %r2, 0x100000;\n\
                       ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r30}, [%r2];";
    let out = ldmatrix(&format!(".reg .pred %p1; {instruction}"), 1);
    let expected = |lane: usize| (lane / 4 * 8 + lane % 4 * 2) as u32;
    assert!((0..32).all(|lane| out[lane] == expected(lane) | (expected(lane) + 1) << 16));
}
