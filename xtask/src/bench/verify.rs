//! All checks of all experiments in one table.

use anyhow::{bail, ensure};

use super::experiment::{Experiment, RunArgs, target};
use super::{
    batch_size, fleet, improvements, memory_waste, page_size, preemption, prefix_cache, report,
    sampling, shared_prefix, throughput,
};

/// Simulations, by name, that can be made within seconds.
type Make = fn(&RunArgs) -> anyhow::Result<Experiment>;
const SIMULATED: [(&str, Make); 10] = [
    (memory_waste::NAME, memory_waste::experiment),
    (throughput::NAME, throughput::experiment),
    (batch_size::NAME, batch_size::experiment),
    (sampling::NAME, sampling::experiment),
    (shared_prefix::NAME, shared_prefix::experiment),
    (page_size::NAME, page_size::experiment),
    (improvements::NAME, improvements::experiment),
    ("preemption", preemption::experiment),
    ("prefix-cache", prefix_cache::experiment),
    (fleet::NAME, fleet::experiment),
];

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run the quick versions of the simulations and check those, instead of reading benches/report
    #[arg(long)]
    quick: bool,
}

/// # Errors
/// If a check that is required falls short.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let experiments = if args.quick {
        quick()?
    } else {
        report::read_all(&report::folder())?
    };
    ensure!(
        !experiments.is_empty(),
        "no results in {}: run experiments, or --quick",
        report::folder().display()
    );
    tell(&experiments)
}

/// Prints the table.
fn tell(experiments: &[Experiment]) -> anyhow::Result<()> {
    let mut rows = vec![
        ["check", "paper", "ours", "difference", "must be", ""]
            .map(str::to_owned)
            .to_vec(),
    ];
    let (mut num_passed, mut missed) = (0, Vec::new());
    for experiment in experiments {
        for check in &experiment.checks {
            let mut cells = report::check_cells(check).to_vec();
            cells[0] = format!("{}: {}", experiment.stem(), cells[0]);
            cells[5] = cells[5].replace('*', "");
            num_passed += usize::from(check.passed);
            if check.required && !check.passed {
                missed.push(cells[0].clone());
            }
            rows.push(cells);
        }
    }
    print(&rows);
    println!("\n{num_passed} of {} pass", rows.len() - 1);
    if !missed.is_empty() {
        bail!("required, and short of it: {}", missed.join("; "));
    }
    Ok(())
}

/// Runs every simulation's quick version; results are kept apart from those of full runs.
fn quick() -> anyhow::Result<Vec<Experiment>> {
    let run = RunArgs {
        quick: true,
        fresh: true,
        out: Some(target().join("bench/verify")),
    };
    let mut experiments = Vec::new();
    for (name, make) in SIMULATED {
        eprintln!("{name}");
        let mut experiment = make(&run)?;
        experiment.finish_run(&run)?;
        report::write(&run.folder(), &experiment)?;
        experiments.push(experiment);
    }
    Ok(experiments)
}

/// In columns, numbers to the right.
fn print(rows: &[Vec<String>]) {
    let width = |i: usize| {
        rows.iter()
            .map(|row| row[i].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..6).map(width).collect();
    for row in rows {
        let mut line = format!("{:<width$}", row[0], width = widths[0]);
        for i in 1..4 {
            line += &format!("  {:>width$}", row[i], width = widths[i]);
        }
        line += &format!("  {:<width$}  {}", row[4], row[5], width = widths[4]);
        println!("{}", line.trim_end());
    }
}

#[cfg(test)]
mod tests {
    use super::super::experiment::{Bound, Check};
    use super::super::resume;
    use super::*;

    #[test]
    fn only_a_required_check_that_falls_short_fails() {
        let told = |check: Check| {
            let mut experiment = Experiment::simulated("example", "An example");
            experiment.checks.push(check);
            experiment.finish().unwrap();
            tell(&[experiment])
        };
        let check = |ours| Check::new("rate", ours, Bound::AtLeast(1.0));
        told(check(1.0).required()).unwrap();
        told(check(0.9)).unwrap();
        let error = told(check(0.9).required()).unwrap_err().to_string();
        assert!(error.contains("example: rate"), "{error}");
    }

    #[test]
    fn names_are_those_of_the_experiments() {
        let run = RunArgs {
            quick: true,
            fresh: true,
            out: Some("unit-test".into()),
        };
        let prefix_cache = prefix_cache::experiment(&run).unwrap();
        assert!(SIMULATED.iter().any(|(name, _)| *name == prefix_cache.name));
        // The same for everyone, to the last byte.
        let again = prefix_cache::experiment(&run).unwrap();
        assert_eq!(prefix_cache.to_json().unwrap(), again.to_json().unwrap());
        resume::remove(&again.points).unwrap();
    }
}
