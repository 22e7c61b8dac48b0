//! How many drafts are worth computing for a sequence.

use super::MAX_SPECULATIVE_TOKENS;

/// Most drafts of one sequence in its next step: two more than before when all of the last ones
/// were accepted, one less than those when one was rejected, and never none.
///
/// A rejected draft costs a row. On texts that repeat themselves little, most rows would be those;
/// on the two workloads of `cargo xtask bench speculative` this computes a third fewer drafts and
/// loses one accepted token in ten.
///
/// Source: the schedule `heuristic` of Hugging Face transformers' assisted generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DraftLimit(usize);

impl Default for DraftLimit {
    /// The proposer's own limit holds until a draft is rejected.
    fn default() -> Self {
        DraftLimit(MAX_SPECULATIVE_TOKENS)
    }
}

impl DraftLimit {
    pub(crate) fn most(self) -> usize {
        self.0
    }

    /// Takes in what became of the `num_drafts` of a step.
    pub(crate) fn observe(&mut self, num_drafts: usize, num_accepted: usize) {
        if num_drafts == 0 {
            return;
        }
        self.0 = match num_accepted == num_drafts {
            true => (self.0 + 2).min(MAX_SPECULATIVE_TOKENS),
            false => (num_drafts - 1).max(1),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_shrinks_while_drafts_are_rejected_and_grows_back() {
        let mut limit = DraftLimit::default();
        let mut mosts = Vec::new();
        for (num_drafts, num_accepted) in [(4, 3), (3, 0), (2, 1), (1, 0), (0, 0), (1, 1), (3, 3)] {
            limit.observe(num_drafts, num_accepted);
            mosts.push(limit.most());
        }
        assert_eq!(mosts, [3, 2, 1, 1, 1, 3, 5]);
        for _ in 0..40 {
            limit.observe(1, 1);
        }
        assert_eq!(limit.most(), MAX_SPECULATIVE_TOKENS);
    }
}
