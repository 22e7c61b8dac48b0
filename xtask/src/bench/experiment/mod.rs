//! What an experiment gives: parameters, tables, curves and checks, as JSON that is the only source of
//! its plots and of its section in the report.
//!
//! ```text
//! run ──> Experiment ──> NAME.json ──┬──> NAME-PLOT.svg, NAME.md ──> benches/REPORT.md
//!                                    └──> verify: each check, paper, ours, difference
//! ```
//!
//! Simulated figures and measured ones are never in the same file: the first must come out the same for
//! everyone, byte for byte, the second carry the class of the machine they were measured on. Numbers are
//! kept to six digits, below which the mathematical functions of platforms differ.

mod check;
mod shown;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use pageloom_paged_attn_kernels::cpu::Isa;
use serde::{Deserialize, Serialize};

use super::report;
pub(crate) use check::{Bound, Check};
pub(crate) use shown::{Axis, Cell, Plot, PlotKind, Scale, Series, Source, Table};

/// Flags that all experiments have.
#[derive(clap::Args, Debug, Clone, Default)]
pub(crate) struct RunArgs {
    /// Fewer points and shorter traces: within a minute
    #[arg(long)]
    pub(crate) quick: bool,
    /// Compute again what an interrupted run has saved
    #[arg(long)]
    pub(crate) fresh: bool,
    /// Folder for JSON, plots and section [default: benches/report; in Cargo's target folder
    /// bench/quick with --quick, bench/own where data or systems are of your choice]
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
}

impl RunArgs {
    /// The same for a run of someone's own choice, whose results are not to replace the recorded
    /// ones.
    pub(crate) fn apart(&self, is_own: bool) -> Self {
        let mut run = self.clone();
        if is_own && !run.quick {
            run.out.get_or_insert_with(|| target().join("bench/own"));
        }
        run
    }

    /// Where results go.
    pub(crate) fn folder(&self) -> PathBuf {
        match &self.out {
            Some(folder) => folder.clone(),
            None if self.quick => target().join("bench/quick"),
            None => report::folder(),
        }
    }
}

/// The workspace's root.
pub(crate) fn root() -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    folder.parent().unwrap_or(folder).to_owned()
}

/// The folder of build results, where unfinished runs are kept too.
pub(crate) fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(folder) => PathBuf::from(folder),
        None => root().join("target"),
    }
}

/// One experiment's results.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Experiment {
    /// Of the command, and of the files.
    pub(crate) name: String,
    pub(crate) title: String,
    pub(crate) basis: Basis,
    /// Of the paper, like "Fig 12".
    pub(crate) figures: Vec<String>,
    /// What makes it again.
    pub(crate) command: String,
    pub(crate) parameters: BTreeMap<String, Cell>,
    /// What the paper did, in Markdown.
    pub(crate) paper: String,
    /// What is done here, in Markdown.
    pub(crate) ours: String,
    pub(crate) tables: Vec<Table>,
    pub(crate) plots: Vec<Plot>,
    pub(crate) checks: Vec<Check>,
    /// What the figures say, and what limits them; a paragraph each.
    pub(crate) notes: Vec<String>,
    /// Files of the points it was made from, removed when it is written: until then an interruption
    /// loses nothing.
    #[serde(skip)]
    pub(crate) points: Vec<PathBuf>,
}

/// Where an experiment's own numbers come from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Basis {
    Simulated,
    Measured(Machine),
}

/// The class of a machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Machine {
    pub(crate) arch: String,
    pub(crate) num_cores: usize,
    /// The instruction set that the kernels chose.
    pub(crate) instructions: String,
}

impl Machine {
    /// The one this runs on.
    pub(crate) fn this() -> Self {
        Self {
            arch: std::env::consts::ARCH.to_owned(),
            num_cores: std::thread::available_parallelism().map_or(1, |n| n.get()),
            instructions: Isa::detect().name().to_owned(),
        }
    }
}

impl Experiment {
    /// A simulation, still without results. `name` is the command's.
    pub(crate) fn simulated(name: &str, title: &str) -> Self {
        Self {
            name: name.to_owned(),
            title: title.to_owned(),
            basis: Basis::Simulated,
            figures: Vec::new(),
            command: format!("cargo xtask bench {name}"),
            parameters: BTreeMap::new(),
            paper: String::new(),
            ours: String::new(),
            tables: Vec::new(),
            plots: Vec::new(),
            checks: Vec::new(),
            notes: Vec::new(),
            points: Vec::new(),
        }
    }

    /// Measured on this machine, still without results.
    pub(crate) fn measured(name: &str, title: &str) -> Self {
        Self {
            basis: Basis::Measured(Machine::this()),
            ..Self::simulated(name, title)
        }
    }

    /// Of its files: measured results never replace simulated ones.
    pub(crate) fn stem(&self) -> String {
        match self.basis {
            Basis::Simulated => self.name.clone(),
            Basis::Measured(_) => format!("{}-measured", self.name),
        }
    }

    pub(crate) fn parameter(&mut self, name: &str, value: impl Into<Cell>) {
        self.parameters.insert(name.to_owned(), value.into());
    }

    /// Writes JSON, plots and section to the folder of `args`, and prints the section.
    ///
    /// # Errors
    /// If a figure is not finite, a table is ragged, or a file cannot be written.
    pub(crate) fn publish(mut self, args: &RunArgs) -> anyhow::Result<()> {
        self.finish_run(args)?;
        let folder = args.folder();
        report::write(&folder, &self)?;
        println!("{}", report::section(&self));
        eprintln!("written: {}", folder.join(self.stem()).display());
        Ok(())
    }

    /// As [`finish`](Self::finish), and says in the command that the run was quick.
    pub(crate) fn finish_run(&mut self, args: &RunArgs) -> anyhow::Result<()> {
        if args.quick {
            self.command += " --quick";
        }
        self.finish()
    }

    /// Adds a flag to the command, with commas between its values; nothing if there are none.
    pub(crate) fn flag<T: ToString>(&mut self, name: &str, values: &[T]) {
        if !values.is_empty() {
            let values: Vec<String> = values.iter().map(T::to_string).collect();
            self.command += &format!(" --{name} {}", values.join(","));
        }
    }

    /// Rounds, judges the checks, and refuses what JSON or a table cannot hold.
    pub(crate) fn finish(&mut self) -> anyhow::Result<()> {
        for number in self.numbers() {
            ensure!(number.is_finite(), "a figure is {number}");
            *number = rounded(*number);
        }
        self.tables.iter().try_for_each(Table::check)?;
        for check in &mut self.checks {
            check.passed = check.holds();
        }
        Ok(())
    }

    /// All that are not of the checks' bounds.
    fn numbers(&mut self) -> impl Iterator<Item = &mut f64> {
        let rows = self.tables.iter_mut().flat_map(|table| &mut table.rows);
        let cells = rows.flatten().chain(self.parameters.values_mut());
        let cells = cells.filter_map(|cell| match cell {
            Cell::Number(number) => Some(number),
            _ => None,
        });
        let series = self.plots.iter_mut().flat_map(|plot| &mut plot.series);
        let points = series.flat_map(|series| &mut series.points);
        let points = points.flat_map(|(x, y)| [x, y]);
        let checks = self.checks.iter_mut();
        let checks = checks.flat_map(|check| check.paper.iter_mut().chain(&mut check.ours));
        cells.chain(points).chain(checks)
    }

    /// The same results give the same text, byte for byte.
    pub(crate) fn to_json(&self) -> anyhow::Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// # Errors
    /// If the file is not there or no experiment, has the name of another, or says of a check what its
    /// figures do not.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let experiment: Self = serde_json::from_str(&text).with_context(|| {
            format!(
                "{} is not what this version writes: run its experiment again, or remove it",
                path.display()
            )
        })?;
        // Plots and section are written beside it under this name.
        ensure!(
            path.file_stem() == Some(OsStr::new(&experiment.stem())),
            "{}: it holds the results {:?}, whose file has another name",
            path.display(),
            experiment.stem()
        );
        for plot in &experiment.plots {
            ensure!(
                !plot.name.contains(['/', '\\']),
                "{}: {:?} is no name of a plot",
                path.display(),
                plot.name
            );
        }
        let tables = experiment.tables.iter().try_for_each(Table::check);
        tables.with_context(|| path.display().to_string())?;
        for check in &experiment.checks {
            ensure!(
                check.passed == check.holds(),
                "{}: {:?}: `passed` is not what its figures say",
                path.display(),
                check.name
            );
        }
        Ok(experiment)
    }
}

/// To six digits.
fn rounded(number: f64) -> f64 {
    format!("{number:.5e}").parse().unwrap_or(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Experiment {
        let mut example = Experiment::simulated("example", "An example");
        example.parameter("rate", 0.1 + 0.2);
        example.parameter("requests", 7usize);
        example.parameter("missing", None::<f64>);
        let mut table = Table::new("Figures.", &[("system", 0), ("rate, req/s", 2)]);
        table.rows.push(vec!["ours".into(), (2.0 / 3.0).into()]);
        table.rows.push(vec!["a whole number".into(), 2.0.into()]);
        example.tables.push(table);
        example.plots.push(Plot {
            name: "rate".to_owned(),
            title: "Rates".to_owned(),
            caption: String::new(),
            kind: PlotKind::Lines,
            x: Axis::linear("x"),
            y: Axis::log("y"),
            series: vec![Series {
                name: "ours".to_owned(),
                source: Source::Paper("Fig 12a".to_owned()),
                points: vec![(1.0, 2.0)],
            }],
            thresholds: Vec::new(),
        });
        let check = Check::new("rate", 1.0 / 3.0, Bound::Within(0.05));
        example.checks.push(check.paper(0.3).required());
        example
    }

    #[test]
    fn json_brings_back_what_was_written() {
        let mut written = example();
        written.finish().unwrap();
        let folder = tempfile::tempdir().unwrap();
        report::write(folder.path(), &written).unwrap();
        let path = folder.path().join("example.json");
        let read = Experiment::read(&path).unwrap();
        assert_eq!(read, written);
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(read.to_json().unwrap(), text);
        assert!(text.contains("\"rate\": 0.3,"), "{text}");
        assert!(folder.path().join("example-rate.svg").exists());
        // Someone makes a check pass by hand.
        let lie = text.replace("\"ours\": 0.333333", "\"ours\": 0.5");
        assert_ne!(lie, text);
        std::fs::write(&path, lie).unwrap();
        let error = Experiment::read(&path).unwrap_err().to_string();
        assert!(error.contains("passed"), "{error}");
        for (from, to, reason) in [
            ("\"notes\"", "\"remarks\"", "run its experiment again"),
            ("\"example\"", "\"../example\"", "another name"),
            (
                "\"name\": \"rate\"",
                "\"name\": \"../rate\"",
                "no name of a plot",
            ),
            ("\"a whole number\",", "", "does not fit the columns"),
            ("{", "", "run its experiment again"),
        ] {
            std::fs::write(&path, text.replacen(from, to, 1)).unwrap();
            let error = format!("{:#}", Experiment::read(&path).unwrap_err());
            assert!(
                error.contains("example.json") && error.contains(reason),
                "{error}"
            );
        }
    }

    #[test]
    fn what_json_cannot_hold_is_refused() {
        let mut nan = example();
        nan.plots[0].series[0].points.push((1.0, f64::NAN));
        assert!(nan.finish().is_err());
        let mut infinite = example();
        infinite.tables[0].rows[0][1] = f64::INFINITY.into();
        assert!(infinite.finish().is_err());
        let mut ragged = example();
        ragged.tables[0].rows[0].pop();
        assert!(ragged.finish().is_err());
    }

    #[test]
    fn measured_results_do_not_replace_simulated_ones() {
        let measured = Experiment::measured("example", "An example");
        assert_ne!(measured.stem(), example().stem());
    }
}
