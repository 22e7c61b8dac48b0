//! The requests of a scenario: what they ask, when they come, and how they are given up.

use std::time::Duration;

use pageloom_engine::{BeamSearch, EarlyStopping, EngineConfig, Request, SchedulingPolicy};
use pageloom_model_runner::SamplingParams;
use proptest::prelude::*;

use super::{prompts::trunk, scenario::millis};

/// A request and what its client does.
#[derive(Debug, Clone)]
pub(crate) struct Arrival {
    /// Time since the arrival before.
    pub(crate) gap: Duration,
    /// It comes while a step is in flight, if one is to come.
    pub(crate) in_flight: bool,
    pub(crate) prompt: PromptSpec,
    /// It asks for no more tokens than the pool can hold, and may need all of it.
    pub(crate) fits: bool,
    /// All but the prompt.
    pub(crate) request: Request,
    pub(crate) abort: Option<Abort>,
    pub(crate) spoil: Option<Spoil>,
}

/// A place in a tree of prompts: families share nothing, their branches share the trunk, and what
/// follows another request shares its prompt and output, as the next turn of a chat does.
#[derive(Debug, Clone)]
pub(crate) struct PromptSpec {
    pub(crate) family: u32,
    pub(crate) trunk: usize,
    pub(crate) branch: u32,
    pub(crate) tail: usize,
    /// So many requests back is the one that it follows, and so many of its tokens are kept.
    pub(crate) follows: Option<(usize, usize)>,
}

/// When a client gives its request up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Abort {
    /// Before a step saw it.
    AtOnce,
    /// So long after its arrival, between two steps.
    After(Duration),
    /// In flight: between the halves of the step that is so many steps after its arrival.
    InStep(usize),
    /// When its consumer has read so many of its events.
    AfterEvents(usize),
}

/// What makes a request one that must be refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spoil {
    EmptyPrompt,
    LongPrompt,
    UnknownToken,
    NoSequences,
    ManySequences,
    BestOf,
    BeamTopK,
    LengthPenalty,
    Priority,
    MaxTokens,
    MinTokens,
    Temperature,
    Logprobs,
    PromptLogprobs,
    EmptyStop,
}

impl Arrival {
    /// The arrival with values that the configuration accepts, unless it is spoilt.
    pub(crate) fn fit(mut self, config: &EngineConfig) -> Self {
        let most = config.max_n.min(config.max_num_seqs);
        let request = &mut self.request;
        request.n = request.n.min(most);
        request.best_of = request.best_of.map(|all| all.clamp(request.n, most));
        if config.scheduling_policy == SchedulingPolicy::Fcfs {
            request.priority = 0;
        }
        self
    }
}

pub(crate) fn arrivals() -> impl Strategy<Value = Vec<Arrival>> {
    prop_oneof![
        6 => prop::collection::vec(arrival(), 1..20),
        1 => prop::collection::vec(arrival(), 20..50),
    ]
}

fn arrival() -> impl Strategy<Value = Arrival> {
    let gap = prop_oneof![
        4 => Just(Duration::ZERO),
        4 => millis(1..60),
        1 => millis(60..1_500),
    ];
    let abort = prop_oneof![
        1 => Just(Abort::AtOnce),
        4 => millis(0..1_000).prop_map(Abort::After),
        4 => (0..80usize).prop_map(Abort::InStep),
        3 => (0..60usize).prop_map(Abort::AfterEvents),
    ];
    (
        gap,
        prop::bool::weighted(0.2),
        (prompts(), prop::bool::weighted(0.9)),
        requests(),
        prop::option::weighted(0.2, abort),
        prop::option::weighted(0.04, spoils()),
    )
        .prop_map(
            |(gap, in_flight, (prompt, fits), request, abort, spoil)| Arrival {
                gap,
                in_flight,
                prompt,
                fits,
                request,
                abort,
                spoil,
            },
        )
}

prop_compose! {
    fn prompts()(
        family in 0..3u32,
        trunk in prop_oneof![2 => Just(0), 3 => 0..24usize],
        branch in 0..3u32,
        tail in prop_oneof![3 => 1..6usize, 3 => 6..20usize, 1 => 20..90usize],
        follows in prop::option::weighted(0.25, (1..4usize, 1..80usize)),
    ) -> PromptSpec {
        PromptSpec { family, trunk, branch, tail, follows }
    }
}

/// The trunks of some families.
pub(crate) fn shared_prefixes() -> impl Strategy<Value = Vec<Vec<u32>>> {
    let prefix = (0..3u32, 1..24usize).prop_map(|(family, len)| trunk(family, len).collect());
    prop::collection::vec(prefix, 1..3)
}

/// Requests of every kind.
fn requests() -> impl Strategy<Value = Request> {
    let shape = (
        prop_oneof![4 => Just(1usize), 3 => 2..6usize],
        prop_oneof![
            1 => Just(None),
            1 => Just(Some(0)),
            4 => (1..10usize).prop_map(Some),
            8 => (10..60usize).prop_map(Some),
        ],
        -1..3i32,
        prop::option::weighted(0.4, 0..2u8),
        prop::option::weighted(0.2, 0..3usize),
    );
    (shape, many(), sampling(), endings()).prop_map(|(shape, many, mut sampling, ending)| {
        let (best_of, beams) = many;
        if beams.is_some() {
            sampling.top_k = 0;
        }
        let (n, max_tokens, priority, salt, prompt_logprobs) = shape;
        let (stop, include_stop_in_output, ignore_eos, skip_special_tokens) = ending;
        Request {
            n,
            best_of,
            beams,
            max_tokens,
            sampling,
            stop,
            include_stop_in_output,
            ignore_eos,
            skip_special_tokens,
            prompt_logprobs,
            priority,
            cache_salt: salt.map(|salt| salt.to_string()),
            ..Request::new(Vec::new())
        }
    })
}

/// Whether the best of several sequences are wanted, and whether a search is to find them.
fn many() -> impl Strategy<Value = (Option<usize>, Option<BeamSearch>)> {
    let early_stopping = prop_oneof![
        Just(EarlyStopping::Heuristic),
        Just(EarlyStopping::Immediately),
        Just(EarlyStopping::Never),
    ];
    let length_penalty = prop_oneof![Just(1.0f32), Just(0.0f32), Just(-1.0f32), Just(2.0f32)];
    let beams =
        (length_penalty, early_stopping).prop_map(|(length_penalty, early_stopping)| BeamSearch {
            length_penalty,
            early_stopping,
        });
    (
        prop::option::weighted(0.25, 1..7usize),
        prop::option::weighted(0.15, beams),
    )
}

fn endings() -> impl Strategy<Value = (Vec<String>, bool, bool, bool)> {
    let stop = prop_oneof![
        Just("a"),
        Just("b"),
        Just("ab"),
        Just("aab"),
        Just("ba"),
        Just("7,")
    ];
    let stops = prop::collection::vec(stop.prop_map(str::to_owned), 1..3);
    (
        prop_oneof![2 => Just(Vec::new()), 1 => stops],
        any::<bool>(),
        prop::bool::weighted(0.7),
        prop::bool::weighted(0.8),
    )
}

prop_compose! {
    fn sampling()(
        temperature in prop_oneof![2 => Just(0.0f32), 3 => Just(1.0f32)],
        top_k in prop_oneof![3 => Just(0u32), 1 => 1..4u32],
        seed in 0..4u64,
        presence_penalty in prop_oneof![3 => Just(0.0f32), 1 => Just(0.5f32)],
        repetition_penalty in prop_oneof![4 => Just(1.0f32), 1 => Just(1.1f32)],
        // Few tokens to draw from: texts that meet stop strings, and each other.
        allowed_token_ids in prop_oneof![3 => Just(Vec::new()), 1 => Just(vec![2, 67, 68])],
        stop_token_ids in prop_oneof![
            2 => Just(Vec::new()),
            1 => prop::collection::vec(60..70u32, 1..3),
        ],
        min_tokens in prop_oneof![2 => Just(0), 1 => 1..6usize],
        logprobs in prop::option::weighted(0.3, 0..4usize),
    ) -> SamplingParams {
        SamplingParams {
            temperature,
            top_k,
            seed,
            presence_penalty,
            repetition_penalty,
            allowed_token_ids,
            stop_token_ids,
            min_tokens,
            logprobs,
            ..SamplingParams::default()
        }
    }
}

fn spoils() -> impl Strategy<Value = Spoil> {
    prop_oneof![
        Just(Spoil::EmptyPrompt),
        Just(Spoil::LongPrompt),
        Just(Spoil::UnknownToken),
        Just(Spoil::NoSequences),
        Just(Spoil::ManySequences),
        Just(Spoil::BestOf),
        Just(Spoil::BeamTopK),
        Just(Spoil::LengthPenalty),
        Just(Spoil::Priority),
        Just(Spoil::MaxTokens),
        Just(Spoil::MinTokens),
        Just(Spoil::Temperature),
        Just(Spoil::Logprobs),
        Just(Spoil::PromptLogprobs),
        Just(Spoil::EmptyStop),
    ]
}
