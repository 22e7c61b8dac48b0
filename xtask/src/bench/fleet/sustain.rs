//! The load at which requests begin to wait too long, and so what a token costs.

use serde::{Deserialize, Serialize};

use super::simulate::{Task, simulate};
use super::workload::Workload;
use crate::bench::paper::knee::Curve;

/// A load to find: that of the task is where the search begins.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Target {
    pub(crate) task: Task,
    /// What 99 % of the requests must have their first token in, seconds.
    pub(crate) ttft_s: f64,
}

/// What was found.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Sustained {
    /// Requests a second for each replica.
    pub(crate) load: f64,
    /// Seconds of a replica, busy or not, for 1,000 tokens of output.
    pub(crate) replica_s_per_1000: f64,
}

/// # Errors
/// Those of the simulation; or if no load has this time to the first token.
pub(crate) fn sustained(target: &Target, workload: &Workload) -> anyhow::Result<Sustained> {
    let ttft_s = |load: f64| {
        let task = Task {
            load,
            ..target.task.clone()
        };
        Ok(simulate(&task, workload)?.ttft_p99_s)
    };
    let load = Curve::default().crossing(target.ttft_s, target.task.load, ttft_s)?;
    Ok(Sustained {
        load,
        replica_s_per_1000: 1000.0 / (load * workload.mean_output()),
    })
}
