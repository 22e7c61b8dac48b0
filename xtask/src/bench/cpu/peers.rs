//! The engines that are timed, ours among them, and how each is run.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

use super::Setup;
use super::child::{Line, Running};

/// A run that takes longer has hung.
const LIMIT: Duration = Duration::from_secs(20 * 60);
/// Tokens in a prompt and in an answer.
pub(super) const PROMPT_LEN: usize = 128;
pub(super) const OUTPUT_LEN: usize = 128;

/// Which engine, on which file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Id {
    /// Pageloom in its mode of this number; 0 is the default.
    Pageloom(usize),
    /// Pageloom's default mode on one thread.
    PageloomOneThread,
    OpenVinoQ8,
    OpenVinoQ4,
    LlamaCppQ4,
    LlamaCppQ8,
    /// llama.cpp on the file that Pageloom is given.
    LlamaCppSame,
}

/// Tokens a second at one batch size.
#[derive(Debug, Clone, Copy, Deserialize, Serialize)]
pub(super) struct Rates {
    pub(super) batch_size: usize,
    pub(super) prefill: f64,
    pub(super) decode: f64,
    pub(super) all: f64,
}

/// Bytes resident, as `/proc` tells them.
#[derive(Debug, Clone, Copy, Default, Deserialize, Serialize)]
pub(super) struct Resident {
    #[serde(rename = "VmRSS")]
    pub(super) all: u64,
    #[serde(rename = "RssAnon")]
    pub(super) anonymous: u64,
    #[serde(rename = "RssFile")]
    pub(super) file: u64,
}

/// What one run of an engine told.
#[derive(Debug, Default, Clone)]
pub(super) struct Run {
    pub(super) rates: Vec<Rates>,
    /// From the launch of the process until it could answer.
    pub(super) ready: Option<Duration>,
    pub(super) resident_ready: Option<Resident>,
    pub(super) resident_done: Option<Resident>,
}

/// An engine that can be run.
pub(super) struct Engine {
    pub(super) id: Id,
    pub(super) name: String,
    pub(super) batch_sizes: Vec<usize>,
    program: Program,
    /// Why it is not run any more.
    pub(super) failure: Option<String>,
}

enum Program {
    Pageloom { binary: PathBuf, flags: Vec<String> },
    OpenVino { python: PathBuf, script: PathBuf },
    LlamaCpp { binary: PathBuf },
}

/// The engines of this run, and a line for each that is not here.
pub(super) fn find(setup: &Setup) -> (Vec<Engine>, Vec<String>) {
    let mut engines = Vec::new();
    let mut missing = Vec::new();
    for (index, mode) in setup.modes.iter().enumerate() {
        let flags = mode.split_whitespace().map(str::to_owned).collect();
        let mut engine = pageloom(setup, Id::Pageloom(index), mode_name(mode), flags);
        if index > 0 {
            engine
                .batch_sizes
                .retain(|size| [1, setup.largest()].contains(size));
        }
        engines.push(engine);
    }
    if setup.scaling {
        let one = ["--threads", "1"].map(str::to_owned).to_vec();
        let name = "Pageloom, 1 thread".to_owned();
        let mut engine = pageloom(setup, Id::PageloomOneThread, name, one);
        engine.batch_sizes = vec![setup.largest()];
        engines.push(engine);
    }
    add_openvino(setup, &mut engines, &mut missing);
    add_llama_cpp(setup, &mut engines, &mut missing);
    (engines, missing)
}

/// How a mode is called in tables.
pub(super) fn mode_name(mode: &str) -> String {
    match mode {
        "" => "Pageloom".to_owned(),
        flags => format!("Pageloom {flags}"),
    }
}

fn pageloom(setup: &Setup, id: Id, name: String, flags: Vec<String>) -> Engine {
    let binary = setup.pageloom.clone();
    let program = Program::Pageloom { binary, flags };
    engine(setup, id, name, program)
}

fn engine(setup: &Setup, id: Id, name: String, program: Program) -> Engine {
    Engine {
        id,
        name,
        batch_sizes: setup.batch_sizes.clone(),
        program,
        failure: None,
    }
}

fn add_openvino(setup: &Setup, engines: &mut Vec<Engine>, missing: &mut Vec<String>) {
    let Some(python) = &setup.openvino else {
        missing.push(
            "OpenVINO GenAI: not installed: pip install openvino-genai==2026.4.1.0 in a virtual \
             environment, then --openvino ITS/bin/python"
                .to_owned(),
        );
        return;
    };
    for (id, quantization) in [(Id::OpenVinoQ8, "Q8_0"), (Id::OpenVinoQ4, "Q4_0")] {
        let name = format!("OpenVINO {quantization}");
        if setup.peer_model(id).is_none() {
            missing.push(no_model(&name, quantization));
            continue;
        }
        let script = setup.root.join("benches/peers/openvino_genai_bench.py");
        let python = python.clone();
        let program = Program::OpenVino { python, script };
        engines.push(engine(setup, id, name, program));
    }
}

fn add_llama_cpp(setup: &Setup, engines: &mut Vec<Engine>, missing: &mut Vec<String>) {
    let Some(binary) = &setup.llama_batched_bench else {
        missing.push(
            "llama.cpp: not installed: benches/peers/README.md says how its \
             llama-batched-bench is built, then --llama-batched-bench PATH"
                .to_owned(),
        );
        return;
    };
    for (id, quantization) in [
        (Id::LlamaCppQ4, "Q4_0"),
        (Id::LlamaCppQ8, "Q8_0"),
        (Id::LlamaCppSame, "same file"),
    ] {
        let name = format!("llama.cpp {quantization}");
        if setup.peer_model(id).is_none() {
            missing.push(no_model(&name, quantization));
            continue;
        }
        let binary = binary.clone();
        engines.push(engine(setup, id, name, Program::LlamaCpp { binary }));
    }
}

fn no_model(name: &str, quantization: &str) -> String {
    let flag = if quantization == "Q8_0" { "q8" } else { "q4" };
    format!(
        "{name}: no model: llama-quantize --allow-requantize MODEL.gguf OUT.gguf {quantization}, \
         then --peer-model-{flag} OUT.gguf"
    )
}

impl Engine {
    /// Runs it once over its batch sizes.
    ///
    /// # Errors
    /// If it cannot be run, fails, or does not say what it should.
    pub(super) fn run(&self, setup: &Setup) -> anyhow::Result<Run> {
        let sizes: Vec<String> = self.batch_sizes.iter().map(usize::to_string).collect();
        let sizes = sizes.join(",");
        let run = match &self.program {
            Program::Pageloom { binary, flags } => {
                let mut command = Command::new(binary);
                command.args(["bench", "--json", "--batch-sizes", &sizes]);
                command.args(lengths(["--prompt-len", "--output-len"]));
                command.arg("--model").arg(&setup.model).args(flags);
                if !flags.iter().any(|flag| flag == "--threads") {
                    command.args(["--threads", &setup.threads.to_string()]);
                }
                parse_pageloom(&Running::start(command)?.finish(LIMIT)?)?
            }
            Program::OpenVino { python, script } => {
                let mut command = Command::new(python);
                command.arg(script).arg(self.peer_model(setup)?);
                command.args(["--batch-sizes", &sizes]);
                command.args(lengths(["--prompt-len", "--output-len"]));
                command.args(["--threads", &setup.threads.to_string()]);
                parse_openvino(&Running::start(command)?.finish(LIMIT)?)?
            }
            Program::LlamaCpp { binary } => {
                let mut command = Command::new(binary);
                command.arg("-m").arg(self.peer_model(setup)?);
                // Room for the largest batch and some more.
                let context = 40_960.max(setup.largest() * (PROMPT_LEN + OUTPUT_LEN));
                command.args(["-c", &context.to_string()]);
                command.args("-b 2048 -ub 512 -fa on --output-format jsonl".split(' '));
                command
                    .args(lengths(["-npp", "-ntg"]))
                    .args(["-npl", &sizes]);
                command.args(["-t", &setup.threads.to_string()]);
                parse_llama_cpp(&Running::start(command)?.finish(LIMIT)?)?
            }
        };
        let found: Vec<usize> = run.rates.iter().map(|rates| rates.batch_size).collect();
        ensure!(
            found == self.batch_sizes,
            "it told of the batch sizes {found:?}, not {:?}",
            self.batch_sizes
        );
        Ok(run)
    }

    /// What OpenVINO says when it is given the references: lines of JSON.
    ///
    /// # Errors
    /// If it fails.
    pub(super) fn answer_references(&self, setup: &Setup) -> Option<anyhow::Result<Vec<Line>>> {
        let Program::OpenVino { python, script } = &self.program else {
            return None;
        };
        let run = || {
            let mut command = Command::new(python);
            command.arg(script).arg(self.peer_model(setup)?);
            command.arg("--references").arg(&setup.references);
            command.args(["--threads", &setup.threads.to_string()]);
            Running::start(command)?.finish(LIMIT)
        };
        Some(run())
    }

    fn peer_model<'a>(&self, setup: &'a Setup) -> anyhow::Result<&'a Path> {
        setup.peer_model(self.id).context("it has no model")
    }
}

fn lengths(flags: [&str; 2]) -> [String; 4] {
    let [prompt, output] = flags.map(str::to_owned);
    [
        prompt,
        PROMPT_LEN.to_string(),
        output,
        OUTPUT_LEN.to_string(),
    ]
}

fn parse_pageloom(lines: &[Line]) -> anyhow::Result<Run> {
    let rates = lines.iter().map(|line| {
        serde_json::from_str(&line.text).with_context(|| format!("not rates: {}", line.text))
    });
    Ok(Run {
        rates: rates.collect::<anyhow::Result<_>>()?,
        ..Run::default()
    })
}

/// A line of `benches/peers/openvino_genai_bench.py`.
#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub(super) enum OpenVinoLine {
    Ready {},
    Memory {
        when: String,
        #[serde(flatten)]
        resident: Resident,
    },
    Rates(Rates),
    Score {
        index: usize,
        logprob: Vec<f64>,
    },
    Chat {
        index: usize,
        text: String,
    },
}

impl OpenVinoLine {
    /// The libraries print lines of their own, which are none.
    pub(super) fn parse(line: &Line) -> Option<OpenVinoLine> {
        serde_json::from_str(&line.text).ok()
    }
}

fn parse_openvino(lines: &[Line]) -> anyhow::Result<Run> {
    let mut run = Run::default();
    for line in lines {
        match OpenVinoLine::parse(line) {
            Some(OpenVinoLine::Ready {}) => run.ready = Some(line.at),
            Some(OpenVinoLine::Rates(rates)) => run.rates.push(rates),
            Some(OpenVinoLine::Memory { when, resident }) => match when.as_str() {
                "ready" => run.resident_ready = Some(resident),
                _ => run.resident_done = Some(resident),
            },
            Some(OpenVinoLine::Score { .. } | OpenVinoLine::Chat { .. }) | None => {}
        }
    }
    Ok(run)
}

/// A line of llama-batched-bench.
#[derive(Deserialize)]
struct LlamaCppLine {
    pl: usize,
    speed_pp: f64,
    speed_tg: f64,
    speed: f64,
}

fn parse_llama_cpp(lines: &[Line]) -> anyhow::Result<Run> {
    let found = lines
        .iter()
        .filter_map(|line| serde_json::from_str::<LlamaCppLine>(&line.text).ok());
    let rates = found.map(|line| Rates {
        batch_size: line.pl,
        prefill: line.speed_pp,
        decode: line.speed_tg,
        all: line.speed,
    });
    Ok(Run {
        rates: rates.collect(),
        ..Run::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(texts: &[&str]) -> Vec<Line> {
        let line = |(i, text): (u64, &&str)| Line {
            text: (*text).to_owned(),
            at: Duration::from_secs(i),
        };
        (0..).zip(texts).map(line).collect()
    }

    #[test]
    fn what_each_engine_prints_is_understood_among_other_lines() {
        let openvino = lines(&[
            "a warning of some library",
            r#"{"kind": "ready", "import_s": 1.0, "load_s": 2.0}"#,
            r#"{"kind": "memory", "when": "ready", "VmRSS": 7, "RssAnon": 5, "RssFile": 2}"#,
            r#"{"kind": "rates", "batch_size": 8, "prefill": 3, "decode": 2, "all": 2.5}"#,
        ]);
        let run = parse_openvino(&openvino).unwrap();
        assert_eq!(run.ready, Some(Duration::from_secs(1)));
        assert_eq!(run.resident_ready.unwrap().all, 7);
        assert_eq!((run.rates[0].batch_size, run.rates[0].decode), (8, 2.0));

        let llama = lines(&[
            r#"{"n_kv_max": 40960, "pp": 128, "tg": 128, "pl": 32, "speed_pp": 9.5, "speed_tg": 4, "speed": 5}"#,
        ]);
        let rates = parse_llama_cpp(&llama).unwrap().rates[0];
        assert_eq!((rates.batch_size, rates.prefill, rates.all), (32, 9.5, 5.0));
    }
}
