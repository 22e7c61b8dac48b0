//! Tokens a second of all engines, in rounds: each engine runs once in every round, one after the
//! other, so that a slow minute of the machine hits all of them alike.

use std::collections::BTreeMap;

use pageloom_benches::machine::{self, Rates as MachineRates};

use super::Setup;
use super::peers::{Engine, Id, Run};
use super::tables::{self, Figure};

/// Everything that was measured in the rounds.
#[derive(Default)]
pub(super) struct Rounds {
    runs: BTreeMap<Id, Vec<Run>>,
    /// What the machine could do at the beginning of each round.
    pub(super) machine: Vec<MachineRates>,
}

/// One of the three rates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rate {
    Prefill,
    Decode,
    All,
}

impl Rounds {
    /// A rate of an engine at a batch size, over the rounds.
    pub(super) fn rate(&self, id: Id, batch_size: usize, rate: Rate) -> Figure {
        let runs = self.runs.get(&id).map_or(&[][..], Vec::as_slice);
        let rates = runs.iter().flat_map(|run| &run.rates);
        rates
            .filter(|rates| rates.batch_size == batch_size)
            .map(|rates| match rate {
                Rate::Prefill => rates.prefill,
                Rate::Decode => rates.decode,
                Rate::All => rates.all,
            })
            .collect()
    }

    /// Something else that the runs of an engine told.
    pub(super) fn told(&self, id: Id, of: impl Fn(&Run) -> Option<f64>) -> Figure {
        let runs = self.runs.get(&id).map_or(&[][..], Vec::as_slice);
        runs.iter().filter_map(of).collect()
    }
}

/// Runs the rounds. An engine that fails is told of and left out from then on.
pub(super) fn run(setup: &Setup, engines: &mut [Engine]) -> Rounds {
    let mut rounds = Rounds::default();
    for round in 1..=setup.runs {
        rounds.machine.push(machine::measure(setup.threads));
        for engine in &mut *engines {
            if engine.failure.is_some() {
                continue;
            }
            eprintln!("round {round} of {}: {}", setup.runs, engine.name);
            match engine.run(setup) {
                Ok(run) => rounds.runs.entry(engine.id).or_default().push(run),
                Err(error) => {
                    eprintln!("{}: {error:#}", engine.name);
                    engine.failure = Some(format!("{error:#}"));
                }
            }
        }
    }
    rounds
}

pub(super) fn print(setup: &Setup, engines: &[Engine], rounds: &Rounds) {
    for &batch_size in &setup.batch_sizes {
        let mut rows = Vec::new();
        for engine in engines {
            let rate = |rate| rounds.rate(engine.id, batch_size, rate);
            if rate(Rate::All).is_empty() {
                continue;
            }
            let mut row = vec![engine.name.clone()];
            row.extend([Rate::Prefill, Rate::Decode, Rate::All].map(|r| rate(r).show(0)));
            rows.push(row);
        }
        tables::print(
            &format!("Tokens a second, {batch_size} at once: median (lowest..highest)"),
            &["engine", "prefill", "decode", "all"],
            &rows,
        );
    }
    for engine in engines {
        if let Some(failure) = &engine.failure {
            println!("\n{}: {failure}", engine.name);
        }
    }
}
