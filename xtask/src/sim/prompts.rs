//! The tree of prompts.

use super::{arrivals::PromptSpec, script::Line};

/// The tokens of a place in the tree of prompts, at most `context` of them.
pub(crate) fn prompt(spec: &PromptSpec, before: &[Line], context: usize) -> Vec<u32> {
    let mut tokens: Vec<u32> = Vec::new();
    let followed = spec.follows.and_then(|(back, kept)| {
        let line = &before[before.len().checked_sub(back)?];
        Some((line, kept))
    });
    if let Some((line, kept)) = followed {
        tokens.extend(&line.request.prompt);
        let expected = line.expected.as_ref().map(|e| &e.transcript);
        let outcome = expected.and_then(|alone| alone.outcomes.get(&0));
        tokens.extend(outcome.into_iter().flat_map(|o| &o.tokens).map(|t| t.id));
        tokens.truncate(kept);
    } else {
        tokens.extend(trunk(spec.family, spec.trunk));
    }
    tokens.extend((0..spec.tail).map(|at| token(spec.family, spec.branch, at)));
    tokens.truncate(context);
    tokens
}

/// What the prompts of a family begin with.
pub(crate) fn trunk(family: u32, len: usize) -> impl Iterator<Item = u32> {
    (0..len).map(move |at| token(family, u32::MAX, at))
}

/// An ordinary token, below every vocabulary's size.
fn token(family: u32, branch: u32, at: usize) -> u32 {
    let mixed = (family + 1)
        .wrapping_mul(0x9E37_79B1)
        .wrapping_add(branch.wrapping_mul(0x85EB_CA77))
        .wrapping_add((at as u32).wrapping_mul(0xC2B2_AE3D));
    3 + (mixed ^ mixed >> 15).wrapping_mul(0x2C1B_3C6D) % 93
}
