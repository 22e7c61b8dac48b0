//! Tables, plots and checks of fleets.

use super::machine::{NUM_HOST_SLOTS, NUM_SLOTS};
use super::simulate::{Outcome, Task};
use super::sustain::{Sustained, Target};
use super::workload::{Data, Workload};
use super::{NAME, router};
use crate::bench::experiment::{
    Axis, Bound, Cell, Check, Experiment, Plot, PlotKind, Series, Source, Table,
};

/// `outcomes` are of the tasks, in their order.
pub(crate) fn experiment(
    workloads: &[Workload],
    tasks: &[Task],
    outcomes: &[Outcome],
) -> Experiment {
    let mut experiment = describe(workloads);
    let both: Vec<Point<'_>> = tasks.iter().zip(outcomes).collect();
    for workload in workloads {
        let data = workload.data;
        let of_data = both.iter().filter(|(task, _)| task.data == data);
        let of_data: Vec<Point<'_>> = of_data.copied().collect();
        experiment.tables.push(table(data, &of_data));
        if data == Data::Mooncake {
            experiment.plots.push(plot(
                data,
                &of_data,
                ("hits", "prefix hits (% of prompt tokens)"),
                |outcome| outcome.hit_percent,
            ));
        }
        experiment.plots.push(plot(
            data,
            &of_data,
            ("ttft", "time to first token, 99th percentile (s)"),
            |outcome| outcome.ttft_p99_s,
        ));
        experiment.checks.extend(checks(data, &of_data));
    }
    experiment
}

/// Adds the loads that fleets sustain.
pub(crate) fn sustained(experiment: &mut Experiment, found: &[(&Target, &Sustained)]) {
    let columns = [
        ("trace", 0),
        ("replicas", 0),
        ("TTFT p99, s", 0),
        ("router", 0),
        ("load sustained, req/s a replica", 2),
        ("over round-robin", 2),
        ("replica-s per 1,000 output tokens", 2),
    ];
    let title = "Load sustained, and what tokens cost at it";
    let mut table = Table::new(title, &columns);
    for (target, sustained) in found {
        let task = &target.task;
        let base = found
            .iter()
            .find(|(other, _)| other.task.data == task.data && other.task.router == "round-robin");
        table.rows.push(vec![
            task.data.name().into(),
            task.num_replicas.into(),
            Cell::Text(format!("below {}", target.ttft_s)),
            task.router.into(),
            Cell::Number(sustained.load),
            base.map(|(_, base)| sustained.load / base.load).into(),
            Cell::Number(sustained.replica_s_per_1000),
        ]);
    }
    experiment.tables.push(table);
    let of = |router: &str| {
        let of_router = |(target, _): &&(&Target, &Sustained)| {
            target.task.data == Data::Mooncake && target.task.router == router
        };
        found
            .iter()
            .find(of_router)
            .map(|(_, sustained)| sustained.load)
    };
    if let (Some(aware), Some(base)) = (of("prefix-aware"), of("round-robin")) {
        let name = format!(
            "{}: load sustained, prefix-aware over round-robin",
            Data::Mooncake.name()
        );
        let check = Check::new(name, aware / base, Bound::AtLeast(1.3));
        experiment.checks.push(check.unit("times"));
    }
}

type Point<'a> = (&'a Task, &'a Outcome);

fn describe(workloads: &[Workload]) -> Experiment {
    let mut experiment = Experiment::simulated(NAME, "Beyond one machine");
    experiment.parameter("model of a replica", "Llama-3-8B, one A100 of 80 GB");
    experiment.parameter("tokens of a replica's pool", NUM_SLOTS);
    experiment.parameter("tokens of its host memory", NUM_HOST_SLOTS);
    for workload in workloads {
        let data = workload.data;
        experiment.parameter(
            &format!("{}: requests a second for a replica", data.name()),
            data.load(),
        );
        experiment.parameter(
            &format!("{}: left out, longer than the context", data.name()),
            workload.num_too_long,
        );
    }
    experiment.figures = vec!["section 4.6".into()];
    experiment.paper = "The paper serves from one machine, of one to eight GPUs.".into();
    experiment.ours = "A router spreads the requests of real services over replicas, each of which has \
        Pageloom's scheduler and block manager of its own, on one virtual clock. The load of a replica is \
        the same for all fleets: a larger fleet gets copies of the trace with other texts, each begun \
        elsewhere in the trace; a smaller one gets only some conversations of it, at their own times. Mooncake's \
        block ids are expanded to tokens, so hits are what the prefix cache itself finds; the Azure \
        traces tell no texts, and have none. `least-loaded` sends to where the fewest tokens are in \
        flight, prompts and what was drawn; `least-waiting` to where the fewest tokens of prompts wait to be \
        computed; `prefix-aware` to where it sent most of the prompt before, less than a pool ago, unless 2 \
        tokens more than at the least loaded wait there for each token saved. Step times are \
        the 13B's in proportion. The first third of each run is not counted, since the caches fill."
        .into();
    experiment.notes = NOTES.map(str::to_owned).into();
    experiment
}

const NOTES: [&str; 4] = [
    "Behind a router that ignores texts, hits fall with the fleet: a conversation's next turn seldom comes to \
     the replica that has the one before. Behind `prefix-aware` they stay at about a fifth from 8 replicas on, since \
     the caches of a fleet grow with its load. Fewer prompts are then computed, and the fleet takes more load \
     at the same time to the first token.",
    "`least-loaded` balances what replicas hold, not what they have to do: tokens in flight are mostly those of \
     prompts long computed, which cost little. Where prompts are short and answers long (Azure's \
     conversations) its times are worse than those of taking turns, and its checks fall short. What makes a \
     request wait is prompts: `least-waiting` counts those alone, and is the better of the two from 8 replicas on. \
     `prefix-aware` falls back to it, and is it where nothing is in common.",
    "A replica is busy while any request is in it, and a step of one request takes nearly the time of a step of \
     ten; so at a given load busy seconds say little about cost. The last table says what tokens cost if a \
     fleet is loaded as far as its time to the first token allows. Its runs are a quarter as long.",
    "Small fleets play the whole hour, larger ones as much of it as about 40,000 requests take, at least 240 s \
     of Mooncake and 30 s of Azure: 1,000 replicas play only that. One replica gets few whole conversations, \
     and bursts hit it harder; in a large fleet the copies' bursts even out, which real ones need not do. \
     Routers know every load at once; no message takes time, and no replica fails.",
];

fn table(data: Data, points: &[Point<'_>]) -> Table {
    let columns = [
        ("replicas", 0),
        ("router", 0),
        ("s played", 0),
        ("requests", 0),
        ("prefix hits, %", 1),
        ("TTFT p50, s", 3),
        ("TTFT p99, s", 3),
        ("busy, %", 1),
        ("busy replica-s per 1,000 output tokens", 2),
    ];
    let mut table = Table::new(data.name(), &columns);
    for (task, outcome) in points {
        table.rows.push(vec![
            task.num_replicas.into(),
            task.router.into(),
            Cell::Number(task.duration_s),
            outcome.num_requests.into(),
            Cell::Number(outcome.hit_percent),
            Cell::Number(outcome.ttft_p50_s),
            Cell::Number(outcome.ttft_p99_s),
            Cell::Number(outcome.busy_percent),
            Cell::Number(outcome.busy_s_per_1000),
        ]);
    }
    table
}

/// `what` is the end of the plot's name, and the y axis.
fn plot(
    data: Data,
    points: &[Point<'_>],
    what: (&str, &str),
    value: impl Fn(&Outcome) -> f64,
) -> Plot {
    let (name, label) = what;
    let series = router::ALL.into_iter().map(|(router, _)| Series {
        name: router.to_owned(),
        source: Source::Simulated,
        points: points
            .iter()
            .filter(|(task, _)| task.router == router)
            .map(|(task, outcome)| (task.num_replicas as f64, value(outcome)))
            .collect(),
    });
    Plot {
        name: format!("{}-{name}", data.short()),
        title: format!("{}: by router and size of the fleet", data.name()),
        caption: "The load of each replica is the same for all fleets.".into(),
        kind: PlotKind::Lines,
        x: Axis::log("replicas"),
        y: match name {
            "ttft" => Axis::log(label),
            _ => Axis::linear(label),
        },
        series: series.filter(|series| !series.points.is_empty()).collect(),
        thresholds: Vec::new(),
    }
}

/// From this many replicas on, routers must differ.
const FLEET: usize = 8;

fn checks(data: Data, points: &[Point<'_>]) -> Vec<Check> {
    let of = |router: &str, num_replicas: usize| {
        let found = points
            .iter()
            .find(|(task, _)| task.router == router && task.num_replicas == num_replicas);
        found.map(|(_, outcome)| *outcome)
    };
    let sizes = points
        .iter()
        .filter(|(task, _)| task.router == "round-robin");
    let sizes = sizes.map(|(task, _)| task.num_replicas);
    let mut checks = Vec::new();
    for size in sizes.filter(|&size| size >= FLEET) {
        let Some(base) = of("round-robin", size) else {
            continue;
        };
        if let Some(aware) = of("prefix-aware", size)
            && data == Data::Mooncake
        {
            checks.push(
                Check::new(
                    format!(
                        "{}, {size} replicas: hits of prefix-aware less those of round-robin",
                        data.name()
                    ),
                    aware.hit_percent - base.hit_percent,
                    Bound::AtLeast(0.0),
                )
                .unit("points")
                .required(),
            );
        }
        if let Some(least) = of("least-loaded", size) {
            checks.push(Check::new(
                format!("{}, {size} replicas: p99 of time to first token, least-loaded over round-robin", data.name()),
                least.ttft_p99_s / base.ttft_p99_s,
                Bound::AtMost(1.0),
            ));
        }
    }
    checks
}
