//! Drafts from the sequence itself.

use pageloom_model_runner::TokenId;

use super::{NgramConfig, Proposer};

/// Proposes what followed the last tokens where they occurred before: the place that has most of
/// them in common, of several the latest.
///
/// There is no index: a call reads the sequence once, from its end, and stops at the first place
/// with all `prompt_lookup_max` tokens; O(tokens * `prompt_lookup_max`) comparisons at worst, and
/// in most texts one a token. It takes no memory that would have to be kept, forked or swapped.
#[derive(Debug, Clone)]
pub struct Ngram {
    config: NgramConfig,
}

impl Ngram {
    /// A proposer with these bounds; no more than a place before the end is ever looked at, so any
    /// values do.
    #[must_use]
    pub fn new(config: NgramConfig) -> Self {
        Ngram { config }
    }

    /// How many tokens before the end the best place lies, if there is one.
    fn distance(&self, tokens: &[TokenId]) -> Option<usize> {
        let (&last, before) = tokens.split_last()?;
        let most = self.config.prompt_lookup_max;
        let mut best = None;
        let mut least = self.config.prompt_lookup_min.max(1);
        let ends = before.iter().enumerate().rev();
        for (end, _) in ends.filter(|&(_, &token)| token == last) {
            let distance = before.len() - end;
            let pairs = before[..end].iter().rev().zip(before.iter().rev());
            let same = pairs.take(most.saturating_sub(1));
            let num_common = 1 + same.take_while(|(a, b)| a == b).count();
            if num_common >= least {
                best = Some(distance);
                least = num_common + 1;
            }
            if least > most {
                break;
            }
        }
        best
    }
}

impl Proposer for Ngram {
    fn propose(&mut self, tokens: &[TokenId], drafts: &mut Vec<TokenId>) {
        let Some(distance) = self.distance(tokens) else {
            return;
        };
        let start = tokens.len() - distance;
        for at in 0..self.config.num_speculative_tokens {
            // Past the end it goes on with what was just proposed: a loop goes round again.
            let draft = match tokens.get(start + at) {
                Some(&token) => token,
                None => drafts[at - distance],
            };
            drafts.push(draft);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn propose(tokens: &[TokenId], (min, max): (usize, usize), num: usize) -> Vec<TokenId> {
        let mut ngram = Ngram::new(NgramConfig {
            num_speculative_tokens: num,
            prompt_lookup_min: min,
            prompt_lookup_max: max,
        });
        let mut drafts = Vec::new();
        ngram.propose(tokens, &mut drafts);
        drafts
    }

    #[test]
    fn what_followed_the_last_tokens_before_is_proposed() {
        let tokens = [1, 2, 3, 4, 5, 6, 9, 2, 3];
        assert_eq!(propose(&tokens, (2, 2), 3), [4, 5, 6]);
        assert_eq!(propose(&tokens, (1, 3), 2), [4, 5]);
        assert!(propose(&tokens, (3, 3), 3).is_empty(), "1 2 3 and 9 2 3");
    }

    #[test]
    fn the_longest_match_wins_and_of_equals_the_latest() {
        // "1 2 3" before 7; "2 3" before 8, later.
        let tokens = [1, 2, 3, 7, 5, 2, 3, 8, 1, 2, 3];
        assert_eq!(propose(&tokens, (1, 3), 1), [7]);
        assert_eq!(propose(&tokens, (1, 2), 1), [8]);
        assert_eq!(propose(&tokens, (1, 9), 1), [7]);
    }

    #[test]
    fn a_loop_goes_round_again() {
        assert_eq!(propose(&[9, 4, 4], (1, 2), 3), [4, 4, 4]);
        assert_eq!(propose(&[1, 2, 1, 2], (2, 2), 5), [1, 2, 1, 2, 1]);
    }

    #[test]
    fn nothing_is_proposed_without_a_match() {
        for tokens in [&[][..], &[5], &[1, 2, 3, 4]] {
            assert!(propose(tokens, (1, 4), 4).is_empty(), "{tokens:?}");
        }
    }

    /// The definition, place by place.
    fn slowly(tokens: &[TokenId], (min, max): (usize, usize), num: usize) -> Vec<TokenId> {
        let len = tokens.len();
        for n in (min..=max.min(len)).rev() {
            for start in (0..len - n).rev() {
                if tokens[start..start + n] == tokens[len - n..] {
                    let cycle = tokens[start + n..].iter().cycle();
                    return cycle.take(num).copied().collect();
                }
            }
        }
        Vec::new()
    }

    proptest! {
        #[test]
        fn it_is_the_same_as_trying_every_place(
            tokens in prop::collection::vec(0..4u32, 0..40),
            min in 1..4usize,
            more in 0..4usize,
            num in 1..7usize,
        ) {
            let bounds = (min, min + more);
            prop_assert_eq!(propose(&tokens, bounds, num), slowly(&tokens, bounds, num));
        }
    }
}
