//! A fleet of replicas behind a router, on virtual time.

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::machine::{NUM_HOST_SLOTS, NUM_SLOTS};
use super::replica::{Replica, Waits};
use super::router::{self, Fleet, Load, Prompt, Router};
use super::workload::{Amount, Data, ID_LEN, Request, Workload};

/// A fleet to simulate.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Task {
    pub(crate) data: Data,
    pub(crate) num_replicas: usize,
    pub(crate) router: &'static str,
    /// Requests a second for each replica.
    pub(crate) load: f64,
    /// Seconds in which requests arrive.
    pub(crate) duration_s: f64,
}

impl Task {
    /// Seconds whose requests are not counted, while caches fill.
    fn warm_up_s(&self) -> f64 {
        self.duration_s / 3.0
    }
}

/// What came of it, after the warm-up.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// Of the whole run.
    pub(crate) num_requests: usize,
    /// Percent of the prompts' tokens that were found in a cache.
    pub(crate) hit_percent: f64,
    /// Time to the first token, seconds: half and 99 % of requests have less.
    pub(crate) ttft_p50_s: f64,
    pub(crate) ttft_p99_s: f64,
    /// Percent of the time that a replica computes.
    pub(crate) busy_percent: f64,
    /// Seconds that replicas compute for 1,000 tokens of output.
    pub(crate) busy_s_per_1000: f64,
}

/// Sums over all replicas, up to some time.
#[derive(Debug, Clone, Copy, Default)]
struct Totals {
    num_queries: u64,
    num_hits: u64,
    busy_s: f64,
    num_drawn: usize,
}

/// # Errors
/// A router that does not exist, or a request that can never be served.
pub(crate) fn simulate(task: &Task, workload: &Workload) -> anyhow::Result<Outcome> {
    let requests = workload.requests(Amount {
        rate: task.load * task.num_replicas as f64,
        duration_s: task.duration_s,
    });
    let mut run = Run::new(task)?;
    let num_before = requests.partition_point(|request| request.at_s < task.warm_up_s());
    let (before, counted) = requests.split_at(num_before);
    run.play(workload, before)?;
    run.advance(task.warm_up_s())?;
    let warm = run.totals();
    run.waits.clear();
    run.play(workload, counted)?;
    run.advance(task.duration_s)?;
    let end = run.totals();
    // Those still without a first token count too.
    run.advance(f64::MAX)?;
    let mut waits = run.waits;
    waits.sort_by(f64::total_cmp);
    let percentile = |percent: usize| {
        let wait = waits.get(waits.len().saturating_sub(1) * percent / 100);
        wait.copied().context("no request after the warm-up")
    };
    let num_queries = (end.num_queries - warm.num_queries) as f64;
    let busy_s = end.busy_s - warm.busy_s;
    let whole_s = (task.duration_s - task.warm_up_s()) * task.num_replicas as f64;
    Ok(Outcome {
        num_requests: requests.len(),
        hit_percent: 100.0 * (end.num_hits - warm.num_hits) as f64 / num_queries,
        ttft_p50_s: percentile(50)?,
        ttft_p99_s: percentile(99)?,
        busy_percent: 100.0 * busy_s / whole_s,
        busy_s_per_1000: 1000.0 * busy_s / (end.num_drawn - warm.num_drawn) as f64,
    })
}

struct Run {
    replicas: Vec<Replica>,
    router: Box<dyn Router>,
    /// Of each replica: when its step ends, and its load. Beside each other, since they
    /// are looked at for every request.
    ends_s: Vec<f64>,
    loads: Vec<Load>,
    waits: Waits,
    prefixes: Vec<u64>,
}

impl Run {
    fn new(task: &Task) -> anyhow::Result<Self> {
        let num_replicas = task.num_replicas;
        let named = router::ALL
            .into_iter()
            .find(|(name, _)| *name == task.router);
        let (_, make) = named.with_context(|| {
            let known = router::ALL.map(|(name, _)| name).join(", ");
            format!("no router {:?}; there are {known}", task.router)
        })?;
        Ok(Self {
            replicas: (0..num_replicas)
                .map(|_| Replica::new())
                .collect::<anyhow::Result<_>>()?,
            router: make(Fleet {
                num_replicas,
                num_slots: NUM_SLOTS + NUM_HOST_SLOTS,
            }),
            ends_s: vec![f64::INFINITY; num_replicas],
            loads: vec![Load::default(); num_replicas],
            waits: Waits::new(),
            prefixes: Vec::new(),
        })
    }

    fn play(&mut self, workload: &Workload, requests: &[Request]) -> anyhow::Result<()> {
        for &request in requests {
            self.advance(request.at_s)?;
            workload.prefixes(request, &mut self.prefixes);
            let prompt = Prompt {
                prefixes: &self.prefixes,
                block_len: ID_LEN,
            };
            let chosen = self.router.route(&prompt, &self.loads);
            let replica = &mut self.replicas[chosen];
            let output = workload.output(request);
            replica.add(request.at_s, workload.prompt(request), output)?;
            self.look_at(chosen);
        }
        Ok(())
    }

    fn advance(&mut self, to_s: f64) -> anyhow::Result<()> {
        for at in 0..self.replicas.len() {
            if self.ends_s[at] <= to_s {
                self.replicas[at].advance(to_s, &mut self.waits)?;
                self.look_at(at);
            }
        }
        Ok(())
    }

    fn look_at(&mut self, replica: usize) {
        self.ends_s[replica] = self.replicas[replica].ends_s();
        self.loads[replica] = self.replicas[replica].figures.load;
    }

    fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for replica in &self.replicas {
            let stats = replica.stats();
            totals.num_queries += stats.num_prefix_queries;
            totals.num_hits += stats.num_prefix_hits;
            totals.busy_s += replica.figures.busy_s;
            totals.num_drawn += replica.figures.num_drawn;
        }
        totals
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_router_lists_those_there_are() {
        let workload = Workload::load(Data::AzureCode).unwrap();
        let task = Task {
            data: Data::AzureCode,
            num_replicas: 1,
            router: "random",
            load: 1.0,
            duration_s: 1.0,
        };
        let error = simulate(&task, &workload).unwrap_err().to_string();
        assert!(error.contains("round-robin"), "{error}");
    }

    #[test]
    fn one_replica_is_the_same_behind_every_router() {
        let workload = Workload::load(Data::Mooncake).unwrap();
        let outcomes = router::ALL.map(|(router, _)| {
            let task = Task {
                data: Data::Mooncake,
                num_replicas: 1,
                router,
                load: 0.5,
                duration_s: 300.0,
            };
            serde_json::to_string(&simulate(&task, &workload).unwrap()).unwrap()
        });
        assert!(outcomes.iter().all(|outcome| *outcome == outcomes[0]));
        assert!(
            !outcomes[0].contains("\"hit_percent\":0.0"),
            "{}",
            outcomes[0]
        );
    }
}
