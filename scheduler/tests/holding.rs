//! What is held for good.

use std::time::Duration;

use pageloom_scheduler::{
    AdmissionError, BlockManager, Config, ConfigError, Namespace, NewSequence, Scheduler, SeqResult,
};

fn scheduler(num_blocks: usize, num_resident_blocks: usize) -> Result<Scheduler, ConfigError> {
    let blocks = BlockManager::new(pageloom_block_manager::Config {
        block_size: 4,
        num_blocks,
        ..Default::default()
    });
    let config = Config {
        num_resident_blocks,
        ..Config::default()
    };
    Scheduler::new(config, blocks.expect("valid"))
}

/// Computes a prompt and nothing else.
fn compute(scheduler: &mut Scheduler, prompt: Vec<u32>) -> Result<usize, AdmissionError> {
    let new = NewSequence {
        prompt,
        ..NewSequence::default()
    };
    scheduler.add(new, Duration::ZERO)?;
    let plan = scheduler.schedule().expect("work");
    let (step, num_tokens) = (plan.step, plan.num_tokens);
    scheduler.update(step, &[SeqResult::Computed], &mut Vec::new());
    Ok(num_tokens)
}

#[test]
fn held_blocks_outlive_whatever_needs_room() {
    let mut scheduler = scheduler(8, 3).expect("valid");
    // Of ten tokens, two whole blocks; and nothing twice.
    let prefix: Vec<u32> = (0..10).collect();
    assert_eq!(compute(&mut scheduler, prefix.clone()), Ok(10));
    assert_eq!(scheduler.hold(&prefix, Namespace(0)), 8);
    assert_eq!(scheduler.hold(&prefix, Namespace(0)), 8);
    assert_eq!(scheduler.hold(&prefix, Namespace(1)), 0);
    assert_eq!(scheduler.num_held_blocks(), 2);
    for i in 1..9 {
        compute(&mut scheduler, (100 * i..100 * i + 20).collect()).expect("fits");
    }
    assert_eq!(compute(&mut scheduler, prefix), Ok(2));
    let needed = compute(&mut scheduler, (0..21).collect());
    let refused = AdmissionError::NeverFits {
        needed_blocks: 6,
        num_blocks: 5,
    };
    assert_eq!(needed, Err(refused));
    scheduler
        .block_manager()
        .check()
        .expect("nothing is broken");
}

#[test]
#[should_panic(expected = "2 blocks are held, and 1 were set aside")]
fn more_than_was_set_aside_is_not_held() {
    let mut scheduler = scheduler(8, 1).expect("valid");
    compute(&mut scheduler, (0..10).collect()).expect("fits");
    scheduler.hold(&(0..10).collect::<Vec<_>>(), Namespace(0));
}

#[test]
fn a_pool_that_would_be_held_as_a_whole_is_refused() {
    let error = scheduler(8, 8).err();
    let expected = ConfigError::Resident {
        num_resident_blocks: 8,
        num_blocks: 8,
    };
    assert_eq!(error, Some(expected));
}
