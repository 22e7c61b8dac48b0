//! Threads pinned to CPUs.
#![cfg(target_os = "linux")]

mod support;

use pageloom_model_runner::{
    Checkpoint, CpuRunner, KvDtype, LoadError, LoadOptions, Model, RunnerConfig, WeightDtype,
    allowed_cpus,
};
use support::{model_path, runner, scores};

const BLOCK_SIZE: usize = 16;

fn load(cpu_affinity: Vec<usize>) -> Result<CpuRunner, LoadError> {
    let checkpoint = Checkpoint::open(&model_path("llama"))?;
    let options = LoadOptions {
        dtype: WeightDtype::F32,
        num_threads: 3,
        cpu_affinity,
        ..LoadOptions::default()
    };
    let config = RunnerConfig {
        block_size: BLOCK_SIZE,
        num_blocks: 128,
        num_host_blocks: 0,
        kv_dtype: KvDtype::F32,
    };
    Ok(CpuRunner::new(Model::load(&checkpoint, options)?, config).unwrap())
}

#[test]
fn whoever_runs_the_steps_is_pinned_and_no_one_else() {
    let before = allowed_cpus().unwrap();
    let tokens: Vec<u32> = (1..41).collect();
    let mut plain = runner("llama", WeightDtype::F32, KvDtype::F32, BLOCK_SIZE);
    let expected = scores(&mut plain, BLOCK_SIZE, &tokens, 8, 2);
    for &cpu in &before {
        // The first CPU is that of the steps; the others are the workers'.
        let mut cpus = vec![cpu];
        cpus.extend(before.iter().filter(|other| **other != cpu));
        let mut runner = load(cpus).unwrap();
        assert_eq!(allowed_cpus().unwrap(), before, "the thread that loads");
        // The steps may move to another thread.
        for _ in 0..2 {
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    assert_eq!(allowed_cpus().unwrap(), before);
                    let found = scores(&mut runner, BLOCK_SIZE, &tokens, 8, 2);
                    assert_eq!(allowed_cpus().unwrap(), [cpu]);
                    assert_eq!(found, expected);
                });
            });
        }
    }
    assert_eq!(allowed_cpus().unwrap(), before);
}

#[test]
fn a_cpu_that_is_not_there_is_refused_at_load() {
    let missing = allowed_cpus().unwrap().last().unwrap() + 1;
    let refused = load(vec![missing]).map(drop).unwrap_err();
    assert!(matches!(refused, LoadError::Affinity(_)), "{refused}");
    let message = refused.to_string();
    assert!(message.contains(&format!("CPU {missing} ")), "{message}");
}
