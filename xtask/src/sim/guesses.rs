//! Drafts for a simulation: of what is known to come, some right and some wrong.

use pageloom_engine::Proposer;
use proptest::prelude::*;

use super::script::Line;

/// How good the guesses are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Guesses {
    /// Most tokens of one.
    most: usize,
    /// Of a hundred guesses, those in which a token is wrong.
    wrong_percent: u64,
}

prop_compose! {
    pub(crate) fn guesses()(
        most in 1..9usize,
        wrong_percent in prop_oneof![1 => Just(0), 4 => 1..60u64, 1 => Just(100)],
    ) -> Guesses {
        Guesses { most, wrong_percent }
    }
}

/// Guesses from what each request comes to alone.
pub(crate) struct Guesser {
    guesses: Guesses,
    /// Prompt and output of every sample, of every request.
    known: Vec<Vec<u32>>,
    vocab_size: usize,
}

impl Guesser {
    pub(crate) fn new(guesses: Guesses, lines: &[Line], vocab_size: usize) -> Self {
        let known = lines.iter().flat_map(|line| {
            let expected = line.expected.iter();
            let outcomes = expected.flat_map(|expected| {
                let returned = expected.transcript.outcomes.values();
                returned.chain(&expected.candidates)
            });
            outcomes.map(|outcome| {
                let output = outcome.tokens.iter().map(|token| token.id);
                line.request.prompt.iter().copied().chain(output).collect()
            })
        });
        Guesser {
            guesses,
            known: known.collect(),
            vocab_size,
        }
    }
}

impl Proposer for Guesser {
    /// The same for the same tokens.
    fn propose(&mut self, tokens: &[u32], drafts: &mut Vec<u32>) {
        let last = tokens.last().copied().unwrap_or(0);
        let chance = mix((tokens.len() as u64) << 32 | u64::from(last));
        let num_drafts = 1 + chance as usize % self.guesses.most;
        let known = self.known.iter().find(|known| known.starts_with(tokens));
        let rest = known.map_or(&[][..], |known| &known[tokens.len()..]);
        drafts.extend(rest.iter().take(num_drafts));
        // Past the end of what is known, anything.
        while drafts.len() < num_drafts {
            drafts.push(chance as u32 % self.vocab_size as u32);
        }
        if chance >> 32 & 0xFFFF < self.guesses.wrong_percent * 0x10000 / 100 {
            let wrong = &mut drafts[(chance >> 48) as usize % num_drafts];
            *wrong = (*wrong + 1) % self.vocab_size as u32;
        }
    }
}

/// The finaliser of splitmix64.
fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
