//! Small kernels for the PTX emulator.

use pageloom_paged_attn_kernels::emulator::{
    Cause, Fault, LaunchConfig, Memory, Module, Stats, launch,
};

/// A kernel of one pointer, `%rd1`, whose thread is `%r1`.
pub(crate) fn kernel(body: &str) -> String {
    format!(
        ".version 9.0\n.target sm_80\n.address_size 64\n\
         .extern .shared .align 16 .b8 dyn[];\n\
         .visible .entry k(.param .u64 k_param_0)\n{{\n\
         .reg .pred %p<9>; .reg .b16 %rs<9>; .reg .b32 %r<64>; .reg .f32 %f<64>; .reg .b64 %rd<9>;\n\
         .reg .f64 %fd<9>;\n\
         ld.param.u64 %rd1, [k_param_0];\nmov.u32 %r1, %tid.x;\n{body}\nret;\n}}\n"
    )
}

/// A kernel's run over a buffer of words.
pub(crate) struct Run {
    pub(crate) memory: Memory,
    pub(crate) address: u64,
    pub(crate) result: Result<Stats, Fault>,
}

impl Run {
    /// Runs one block over a buffer of words.
    pub(crate) fn new(body: &str, threads: u32, words: &[u32]) -> Self {
        let module = Module::parse(&kernel(body)).expect("the kernel is PTX");
        let mut memory = Memory::new();
        let address = memory.alloc(words.len() * 4);
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        memory
            .write(address, &bytes)
            .expect("the buffer is allocated");
        let config = LaunchConfig {
            grid: [1; 3],
            block: [threads, 1, 1],
            dynamic_shared_bytes: 4096,
        };
        let entry = module.entry("k").expect("the kernel is there");
        let result = launch(entry, config, &address.to_le_bytes(), &mut memory);
        Self {
            memory,
            address,
            result,
        }
    }

    pub(crate) fn words(&self, len: usize) -> Vec<u32> {
        self.result.as_ref().expect("the kernel runs");
        let mut bytes = vec![0; len * 4];
        self.memory
            .read(self.address, &mut bytes)
            .expect("the buffer is allocated");
        bytes
            .chunks_exact(4)
            .map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect()
    }

    pub(crate) fn cause(self) -> Cause {
        match self.result {
            Err(Fault::Thread { cause, .. }) => cause,
            other => panic!("expected a thread's fault, got {other:?}"),
        }
    }
}

/// Stores `%r2` at word `%tid.x`.
pub(crate) const STORE: &str =
    "mul.wide.u32 %rd2, %r1, 4; add.s64 %rd3, %rd1, %rd2; st.global.u32 [%rd3], %r2;";
