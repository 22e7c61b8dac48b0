//! The profile of a runner.

mod support;

use std::time::Duration;

use pageloom_model_runner::{KvDtype, Operation, SharedProfile, WeightDtype};
use support::{runner, scores};

#[test]
fn a_profile_accounts_for_every_step_and_changes_no_number() {
    let tokens: Vec<u32> = (1..41).collect();
    let mut runner = runner("llama", WeightDtype::F32, KvDtype::F32, 16);
    let plain = scores(&mut runner, 16, &tokens, 8, 2);
    let profile = SharedProfile::default();
    runner.profile_into(profile.clone());
    let timed = scores(&mut runner, 16, &tokens, 8, 2);
    assert_eq!(plain, timed);

    let taken = profile.take();
    assert_eq!((taken.num_steps, taken.num_threads), (5, 2));
    let sum: Duration = Operation::ALL.map(|op| taken.time(op)).iter().sum();
    assert!(sum <= taken.run_time, "{taken:?}");
    for operation in [
        Operation::Linear,
        Operation::Output,
        Operation::Attention,
        Operation::Norm,
        Operation::Sampling,
    ] {
        assert!(taken.time(operation) > Duration::ZERO, "{operation:?}");
    }
    assert!(taken.busy_time > Duration::ZERO && taken.busy_time <= 2 * taken.run_time);
    assert_eq!(profile.take(), Default::default());
}
