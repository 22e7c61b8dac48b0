//! The paper's workloads.

use serde::Serialize;

use super::machine::{CONTEXT_LEN, Model};
use super::random::Mt19937;
use super::trace::{Arrival, Lengths, Load, artifact, committed, poisson, read_lengths};
use crate::bench::lengths::SplitMix;

/// Which requests are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) enum Data {
    ShareGpt,
    Alpaca,
    Chatbot,
    /// Sentences to translate behind examples, which all prompts begin with.
    Translation {
        /// Tokens of the examples.
        prefix: u32,
    },
}

impl Data {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Data::ShareGpt => "ShareGPT",
            Data::Alpaca => "Alpaca",
            Data::Chatbot => "chatbot",
            Data::Translation { .. } => "translation",
        }
    }

    /// Requests that a padded batch holds (the artifact's, by hand; for the chatbot, whose requests
    /// are as long as the context, as many as fit).
    pub(crate) fn padded_batch(self, model: Model) -> usize {
        match (self, model) {
            (Data::ShareGpt, Model::Opt13b) => 5,
            (Data::ShareGpt, Model::Opt66b) => 2,
            (Data::ShareGpt, Model::Opt175b) => 24,
            (Data::Alpaca, Model::Opt13b) => 14,
            (Data::Alpaca, Model::Opt66b) => 8,
            (Data::Alpaca, Model::Opt175b) => 80,
            (Data::Chatbot | Data::Translation { .. }, model) => model.num_slots() / CONTEXT_LEN,
        }
    }
}

/// Lengths, read.
#[derive(Debug)]
pub(crate) struct Dataset {
    pub(crate) data: Data,
    pub(crate) lengths: Vec<Lengths>,
}

/// Rows of `alpaca_lengths.csv.gz` that are of the original data; longer answers of another model
/// follow.
const ALPACA_ROWS: usize = 5000;
/// Most tokens that the chatbot is shown, and most that it answers with.
const CHATBOT_TOKENS: usize = 1024;
/// How many of the chatbot's requests begin a conversation.
const NEW_CONVERSATIONS: f64 = 0.5;

impl Dataset {
    /// Reads it from `benches/data`.
    ///
    /// # Errors
    /// Those of [`read_lengths`].
    pub(crate) fn load(data: Data) -> anyhow::Result<Self> {
        let read = |name, columns| read_lengths(&committed(name), columns);
        let tokens = ["prompt_tokens", "output_tokens"];
        let mut lengths = match data {
            Data::ShareGpt => read("sharegpt_lengths.csv.gz", ["prompt_len", "output_len"])?,
            Data::Alpaca => {
                let mut lengths = read("alpaca_lengths.csv.gz", tokens)?;
                lengths.truncate(ALPACA_ROWS);
                lengths
            }
            Data::Chatbot => read("sharegpt_8k_lengths_llama2tok.csv.gz", tokens)?,
            Data::Translation { prefix } => translations(prefix as usize),
        };
        // The artifact's systems always draw one token, and compute one.
        for request in &mut lengths {
            request.output = request.output.max(1);
            request.prompt = request.prompt.max(1);
        }
        if data != Data::Chatbot {
            lengths.retain(|request| request.total() < CONTEXT_LEN);
        }
        Ok(Dataset { data, lengths })
    }

    /// Requests to play.
    pub(crate) fn trace(&self, load: Load) -> Vec<Arrival> {
        match self.data {
            Data::ShareGpt | Data::Alpaca => artifact(&self.lengths, load),
            Data::Chatbot => chatbot(&self.lengths, load),
            Data::Translation { prefix } => {
                let mut trace = artifact(&self.lengths, load);
                for arrival in &mut trace {
                    arrival.shared = prefix;
                }
                trace
            }
        }
    }
}

/// Sentences of [`translations`].
const NUM_SENTENCES: usize = 3000;
/// Median tokens of a sentence, and the standard deviation of their logarithm: a mean of 32.6.
const SENTENCE: (f64, f64) = (28.0, 0.55);
/// The same of a translation's tokens over its sentence's: a mean of 39 tokens.
const TRANSLATION: (f64, f64) = (1.15, 0.25);

/// Lengths of sentences behind `prefix` tokens, and of their translations. Drawn, not measured: both
/// are log-normal, with means as of news sentences in a tokenizer of 32,000 words.
fn translations(prefix: usize) -> Vec<Lengths> {
    let mut random = SplitMix(0);
    let mut draw = |(median, deviation): (f64, f64)| {
        let radius = (-2.0 * random.uniform().ln()).sqrt();
        let normal = radius * (core::f64::consts::TAU * random.uniform()).cos();
        median * (deviation * normal).exp()
    };
    let mut request = |_| {
        let sentence = draw(SENTENCE).max(1.0);
        Lengths {
            prompt: prefix + sentence.round() as usize,
            output: (sentence * draw(TRANSLATION)).round() as usize,
        }
    };
    (0..NUM_SENTENCES).map(&mut request).collect()
}

/// A conversation under way: its next turn, those left, and which text it is.
struct Conversation {
    next: usize,
    end: usize,
    text: u32,
}

/// Turns of conversations: a request begins the next one, or goes on with any that was begun. It
/// is shown the end of what was said, so two turns have their beginnings in common until the text
/// is longer than that.
fn chatbot(turns: &[Lengths], load: Load) -> Vec<Arrival> {
    let mut random = Mt19937::python(load.seed.into());
    let mut conversations = split(turns);
    random.shuffle(&mut conversations);
    let mut fresh = conversations.iter().cycle();
    let mut open: Vec<Conversation> = Vec::new();
    let mut trace = Vec::new();
    for (at_s, number) in poisson(load).into_iter().zip(0..) {
        if (open.is_empty() || random.uniform() < NEW_CONVERSATIONS)
            && let Some(&(next, end)) = fresh.next()
        {
            let text = number;
            open.push(Conversation { next, end, text });
        } else {
            let last = open.len() - 1;
            open.swap(random.below(last as u32 + 1) as usize, last);
        }
        let Some(conversation) = open.last_mut() else {
            break;
        };
        let turn = turns[conversation.next];
        let prompt = turn.prompt.min(CHATBOT_TOKENS);
        trace.push(Arrival {
            at_s,
            lengths: Lengths {
                prompt,
                output: turn.output.min(CHATBOT_TOKENS),
            },
            text: conversation.text,
            offset: (turn.prompt - prompt) as u32,
            shared: 0,
        });
        conversation.next += 1;
        if conversation.next == conversation.end {
            open.pop();
        }
    }
    trace
}

/// Conversations, as ranges of their turns: a row goes on with the one before if its prompt has
/// room for that one's prompt and output.
fn split(turns: &[Lengths]) -> Vec<(usize, usize)> {
    let mut conversations = Vec::new();
    let mut begin = 0;
    for end in 1..=turns.len() {
        let goes_on = end < turns.len() && turns[end].prompt >= turns[end - 1].total();
        if !goes_on {
            conversations.push((begin, end));
            begin = end;
        }
    }
    conversations
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn translations_are_as_long_as_is_said() {
        let dataset = Dataset::load(Data::Translation { prefix: 80 }).unwrap();
        let mean = |f: fn(&Lengths) -> usize| {
            dataset.lengths.iter().map(f).sum::<usize>() as f64 / NUM_SENTENCES as f64
        };
        assert!((mean(|r| r.prompt) - 112.6).abs() < 1.0);
        assert!((mean(|r| r.output) - 39.0).abs() < 1.5);
        let load = Load {
            rate: 5.0,
            duration_s: 10.0,
            seed: 0,
        };
        let trace = dataset.trace(load);
        assert!(trace.iter().all(|arrival| arrival.shared == 80));
    }

    #[test]
    fn alpacas_lengths_are_the_papers() {
        let lengths = Dataset::load(Data::Alpaca).unwrap().lengths;
        let mean = |f: fn(&Lengths) -> usize| lengths.iter().map(f).sum::<usize>() as f64 / 5000.0;
        // Figure 11: 19.31 and 58.45, of another tokenizer.
        assert_eq!(lengths.len(), ALPACA_ROWS);
        assert!((mean(|r| r.prompt) - 19.31).abs() < 1.0);
        assert!((mean(|r| r.output) - 58.45).abs() < 1.0);
    }

    #[test]
    fn turns_continue_what_was_said() {
        let turn = |prompt, output| Lengths { prompt, output };
        let turns = [turn(10, 5), turn(20, 5), turn(30, 1), turn(7, 2)];
        assert_eq!(split(&turns), [(0, 3), (3, 4)]);
        let load = Load {
            rate: 5.0,
            duration_s: 100.0,
            seed: 1,
        };
        let trace = chatbot(&turns, load);
        assert_eq!(trace, chatbot(&turns, load));
        for (i, arrival) in trace.iter().enumerate() {
            let before = trace[..i].iter().rfind(|a| a.text == arrival.text);
            let grows = before.is_none_or(|b| b.lengths.total() <= arrival.lengths.prompt);
            assert!(grows, "{before:?} {arrival:?}");
        }
    }
}
