//! Files of experiments, and the report they make together.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

use super::experiment::{Basis, Bound, Cell, Check, Experiment, Plot, Table, root};
use super::whole_file::write_file;
use super::{plot, resume};

/// Where results of full runs are kept.
pub(crate) fn folder() -> PathBuf {
    root().join("benches/report")
}

/// Experiments of the report, in its order; what is not named comes last, by name.
const ORDER: [&str; 13] = [
    "memory-waste",
    "throughput",
    "improvements",
    "trace",
    "batch-size",
    "sampling",
    "shared-prefix",
    "kernel",
    "block-size",
    "page-size",
    "preemption",
    "prefix-cache",
    "fleet",
];

const INTRO: &str = "\
# Evaluation

The experiments of Kwon et al., *Efficient Memory Management for Large Language Model Serving with
PagedAttention* (SOSP 2023, [arXiv 2309.06180](https://arxiv.org/abs/2309.06180)), done again with
Pageloom. Each section says what the paper did, what is done here, and the command that does it again.

**What is simulated.** Sections marked *simulated* drive Pageloom's own scheduler and block manager on a
virtual clock, at the paper's scale: its models, its memory, its requests. Only the time of a step is
modelled. They come out the same for everyone, byte for byte.

**What is measured.** Sections marked *measured* ran on the machine they name, with a model and a pool that
fit it. Their absolute times are not the paper's and are not compared with them; ratios and shares are.

**Systems.** A *slot* is room for one token's keys and values in all layers.

| name | what it does |
|---|---|
| `ft` | FasterTransformer: takes a batch of whole requests, padded to the longest, and answers them together |
| `orca-max`, `orca-pow2`, `orca-oracle` | Orca: requests come and go between steps; each has a contiguous run of slots set aside on arrival, for the model's longest request, for the next power of two of its output, or for its true output |
| `paged` | the paper's own policy: blocks of 16 slots as tokens come, the last to arrive preempted first |
| `pageloom` | this project's: `paged` with prompts computed in parts, prefixes found again, int8 pages and room that admission learns to leave; `-16-bits` without int8 pages, `-tiers` with copies to the host when they are quicker |
| `capped` | an example of a policy of one's own: `paged`, but a request begins only if all that run would fit at their longest |

**Thresholds.** A sustainable request rate means nothing without the latency it is read at. The paper does
not state one; here the mean normalised latency (time from arrival to end, over output tokens) is read at
0.2 and at 0.5 s a token, and both are told.

**Rules.** All systems run on the same engine, and differ by admission and memory only. All get the same
requests. The paper's figures stand beside ours and are never taken in their place; those read off a plot
are good to about 2 % of its axis. Where a figure does not come out, its check falls short and stays so.
Dashed curves and paler bars are the paper's.

This file is assembled from `benches/report` by `cargo xtask bench report`, and `cargo xtask bench verify`
prints all checks.
";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder of results
    #[arg(long, value_name = "DIR")]
    from: Option<PathBuf>,
    /// The report [default: REPORT.md beside that folder]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Draws all plots again from the results, and joins the sections.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let folder = args.from.clone().unwrap_or_else(folder);
    let experiments = read_all(&folder)?;
    ensure!(
        !experiments.is_empty(),
        "no results in {}: run an experiment, such as `cargo xtask bench prefix-cache`",
        folder.display()
    );
    // Of a folder like ".", the name and what is beside it are not in its path.
    let folder = fs::canonicalize(&folder)?;
    let beside = folder.parent().unwrap_or(&folder);
    let path = (args.out.clone()).unwrap_or_else(|| beside.join("REPORT.md"));
    let links = links(&folder, &path)?;
    let mut text = INTRO.to_owned();
    text += &contents(&experiments);
    text += &shortfalls(&experiments);
    for experiment in &experiments {
        write(&folder, experiment)?;
        text += "\n";
        text += &section_of(experiment, &links);
    }
    write_file(&path, &text)?;
    println!("{}: {} experiments", path.display(), experiments.len());
    Ok(())
}

/// What leads from the report's folder to the results, an absolute path if they are not below it.
fn links(folder: &Path, report: &Path) -> anyhow::Result<String> {
    let from = std::path::absolute(report)?;
    let from = from.parent().unwrap_or(Path::new("/"));
    let from = fs::canonicalize(from).with_context(|| format!("cannot open {}", from.display()))?;
    let below = folder.strip_prefix(&from).unwrap_or(folder);
    Ok(below.join("").to_string_lossy().into_owned())
}

/// The results in a folder, in the report's order.
pub(crate) fn read_all(folder: &Path) -> anyhow::Result<Vec<Experiment>> {
    let mut experiments = Vec::new();
    if !folder.exists() {
        return Ok(experiments);
    }
    let unreadable = || format!("cannot read {}", folder.display());
    for entry in fs::read_dir(folder).with_context(unreadable)? {
        let path = entry.with_context(unreadable)?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "json")
        {
            experiments.push(Experiment::read(&path)?);
        }
    }
    let place = |name: &str| ORDER.iter().position(|&other| other == name);
    experiments.sort_by_key(|e| (place(&e.name).unwrap_or(ORDER.len()), e.stem()));
    Ok(experiments)
}

/// Writes an experiment's JSON, plots and section, each file whole or not at all, the JSON last; then
/// removes the points that it was made from.
pub(crate) fn write(folder: &Path, experiment: &Experiment) -> anyhow::Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let stem = experiment.stem();
    for drawn in &experiment.plots {
        let svg = plot::draw(drawn).with_context(|| format!("plot {:?}", drawn.name))?;
        write_file(&folder.join(plot_file(experiment, drawn)), &svg)?;
    }
    write_file(&folder.join(format!("{stem}.md")), &section(experiment))?;
    write_file(&folder.join(format!("{stem}.json")), &experiment.to_json()?)?;
    resume::remove(&experiment.points)
}

fn plot_file(experiment: &Experiment, plot: &Plot) -> String {
    format!("{}-{}.svg", experiment.stem(), plot.name)
}

/// Links to all sections, and how many of their checks hold.
fn contents(experiments: &[Experiment]) -> String {
    let mut text =
        "\n| experiment | of the paper | basis | checks that hold |\n|---|---|---|---:|\n"
            .to_owned();
    for experiment in experiments {
        let passed = experiment.checks.iter().filter(|check| check.passed);
        let _ = writeln!(
            text,
            "| [{}](#{}) | {} | {} | {} of {} |",
            experiment.title,
            anchor(&heading(experiment)),
            experiment.figures.join(", "),
            basis(experiment),
            passed.count(),
            experiment.checks.len()
        );
    }
    text
}

/// Checks that do not hold, of all experiments.
fn shortfalls(experiments: &[Experiment]) -> String {
    let mut rows = String::new();
    for experiment in experiments {
        for check in experiment.checks.iter().filter(|check| !check.passed) {
            let [name, paper, ours, _, bound, _] = check_cells(check);
            let link = format!("[{}](#{})", experiment.title, anchor(&heading(experiment)));
            let _ = writeln!(rows, "| {link} | {name} | {paper} | {ours} | {bound} |");
        }
    }
    match rows.is_empty() {
        true => String::new(),
        false => format!(
            "\n**What falls short.** The sections say why.\n\n\
             | experiment | check | paper | ours | must be |\n|---|---|---:|---:|---|\n{rows}"
        ),
    }
}

/// As GitHub makes one of a heading.
fn anchor(heading: &str) -> String {
    let letters = heading.to_lowercase();
    let kept = letters
        .chars()
        .filter(|c| c.is_alphanumeric() || *c == ' ' || *c == '-');
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

fn basis(experiment: &Experiment) -> &'static str {
    match experiment.basis {
        Basis::Simulated => "simulated",
        Basis::Measured(_) => "measured",
    }
}

fn heading(experiment: &Experiment) -> String {
    format!("{} ({})", experiment.title, basis(experiment))
}

/// Everything about an experiment, for its own file.
pub(crate) fn section(experiment: &Experiment) -> String {
    section_of(experiment, "")
}

/// `folder` comes before the names of plots.
fn section_of(experiment: &Experiment, folder: &str) -> String {
    let mut text = format!("## {}\n\n", heading(experiment));
    if !experiment.paper.is_empty() {
        let figures = experiment.figures.join(", ");
        let _ = writeln!(text, "**The paper** ({figures}). {}\n", experiment.paper);
    }
    let _ = write!(text, "**Here.** {}", experiment.ours);
    if let Basis::Measured(machine) = &experiment.basis {
        let _ = write!(
            text,
            " Measured on {} cores, {}, {}.",
            machine.num_cores, machine.arch, machine.instructions
        );
    }
    let _ = writeln!(text, "\n\n```sh\n{}\n```", experiment.command);
    for table in &experiment.tables {
        text += &table_text(table);
    }
    for plot in &experiment.plots {
        let file = format!("{folder}{}", plot_file(experiment, plot));
        let _ = writeln!(
            text,
            "\n![{}]({file})\n\n*{}*",
            plot.title,
            plot::caption(plot)
        );
    }
    for note in &experiment.notes {
        let _ = writeln!(text, "\n{note}");
    }
    if !experiment.checks.is_empty() {
        text += &checks_text(&experiment.checks);
    }
    if !experiment.parameters.is_empty() {
        let shown = |(name, value): (&String, &Cell)| format!("{name} {}", cell_text(value, 6));
        let all: Vec<String> = experiment.parameters.iter().map(shown).collect();
        let _ = writeln!(text, "\nParameters: {}.", all.join("; "));
    }
    text
}

fn table_text(table: &Table) -> String {
    let mut text = format!("\n{}\n\n|", table.title);
    for column in &table.columns {
        let _ = write!(text, " {} |", column.name);
    }
    text += "\n|";
    for (i, _) in table.columns.iter().enumerate() {
        let is_text = |row: &Vec<Cell>| matches!(row.get(i), Some(Cell::Text(_)));
        let words = table.rows.iter().any(is_text) && i == 0;
        text += if words { "---|" } else { "---:|" };
    }
    text += "\n";
    for row in &table.rows {
        text += "|";
        for (cell, column) in row.iter().zip(&table.columns) {
            let _ = write!(text, " {} |", cell_text(cell, column.decimals));
        }
        text += "\n";
    }
    text
}

fn cell_text(cell: &Cell, decimals: u8) -> String {
    match cell {
        Cell::Missing => "-".to_owned(),
        Cell::Integer(number) => number.to_string(),
        Cell::Text(text) => text.replace('|', "\\|"),
        Cell::Number(number) => {
            let text = format!("{number:.*}", usize::from(decimals));
            // Parameters are shown with as many digits as they need.
            match decimals {
                6 => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
                _ => text,
            }
        }
    }
}

fn checks_text(checks: &[Check]) -> String {
    let mut text =
        "\n| check | paper | ours | difference | must be | |\n|---|---:|---:|---:|---|---|\n"
            .to_owned();
    for check in checks {
        let cells = check_cells(check);
        let _ = writeln!(text, "| {} |", cells.join(" | "));
    }
    text
}

/// Name, paper, ours, difference, what it must be, outcome.
pub(crate) fn check_cells(check: &Check) -> [String; 6] {
    let with_unit = |number: Option<f64>| match number {
        None => "-".to_owned(),
        Some(number) if check.unit.is_empty() => short(number),
        Some(number) => format!("{} {}", short(number), check.unit),
    };
    let difference = match (check.paper, check.ours) {
        (Some(paper), Some(ours)) if matches!(check.bound, Bound::WithinPercent(_)) => {
            format!("{:+.1} %", 100.0 * (ours - paper) / paper)
        }
        (Some(paper), Some(ours)) => match short(ours - paper) {
            negative if negative.starts_with('-') => negative,
            positive => format!("+{positive}"),
        },
        _ => "-".to_owned(),
    };
    let bound = match check.bound {
        Bound::Within(by) => format!("within {}", short(by)),
        Bound::WithinPercent(percent) => format!("within {} %", short(percent)),
        Bound::AtLeast(least) => format!("at least {}", short(least)),
        Bound::AtMost(most) => format!("at most {}", short(most)),
        Bound::Between(least, most) => format!("{} to {}", short(least), short(most)),
    };
    let outcome = match (check.passed, check.required) {
        (true, _) => "pass",
        (false, true) => "**falls short, required**",
        (false, false) => "**falls short**",
    };
    [
        check.name.clone(),
        with_unit(check.paper),
        with_unit(check.ours),
        difference,
        bound,
        outcome.to_owned(),
    ]
}

/// About four digits, no zeros at the end.
fn short(number: f64) -> String {
    let decimals = match number.abs() {
        n if n >= 1000.0 => 0,
        n if n >= 100.0 => 1,
        n if n >= 1.0 => 2,
        _ => 4,
    };
    let text = format!("{number:.decimals$}");
    if !text.contains('.') {
        return text;
    }
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" {
        "0".to_owned()
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_has_every_section_and_says_what_falls_short() {
        let folder = tempfile::tempdir().unwrap();
        let results = folder.path().join("report");
        for (name, ours) in [("prefix-cache", 36.6), ("throughput", 1.2)] {
            let mut experiment = Experiment::simulated(name, &format!("About {name}"));
            let check = Check::new("figure", ours, Bound::Between(36.0, 37.0));
            experiment.checks.push(check.paper(36.5).unit("%"));
            experiment.finish().unwrap();
            write(&results, &experiment).unwrap();
        }
        let args = Args {
            from: Some(results.clone()),
            out: None,
        };
        run(&args).unwrap();
        let path = folder.path().join("REPORT.md");
        let text = fs::read_to_string(path).unwrap();
        let place = |part: &str| text.find(part).unwrap_or_else(|| panic!("{part}: {text}"));
        // In the report's order, not in that of names.
        assert!(place("## About throughput (simulated)") < place("## About prefix-cache"));
        place("(#about-prefix-cache-simulated)");
        place("| figure | 36.5 % | 36.6 % | +0.1 | 36 to 37 | pass |");
        place("| figure | 36.5 % | 1.2 % | -35.3 | 36 to 37 | **falls short** |");
        place("cargo xtask bench prefix-cache");
        // Links lead to the plots from wherever the report is.
        let beside = folder.path().join("REPORT.md");
        assert_eq!(
            links(&results.canonicalize().unwrap(), &beside).unwrap(),
            "report/"
        );
        let above = folder.path().join("none/../x/REPORT.md");
        assert!(links(&results, &above).is_err());
        let within = results.join("REPORT.md");
        assert_eq!(
            links(&results.canonicalize().unwrap(), &within).unwrap(),
            ""
        );
    }

    #[test]
    fn a_folder_without_results_is_no_report() {
        let folder = tempfile::tempdir().unwrap();
        let args = Args {
            from: Some(folder.path().to_owned()),
            out: None,
        };
        assert!(run(&args).is_err());
        assert!(!folder.path().join("REPORT.md").exists());
    }
}
