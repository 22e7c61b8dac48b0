//! What holds after each half of a step, and when all is done.

use anyhow::{Context, Result, ensure};
use pageloom_engine::{
    Engine, FinishReason,
    scheduler::{PlannedSeq, SeqId},
};

use super::{clients::Client, scenario::Scenario};

/// The block manager's own invariants, and that every block of both tiers is accounted for.
pub(crate) fn blocks(engine: &Engine) -> Result<()> {
    let blocks = engine.scheduler().block_manager();
    blocks.check()?;
    let stats = blocks.stats();
    for tier in [stats.device, stats.host] {
        let sum = tier.num_free + tier.num_cached + tier.num_referenced + tier.num_pinned;
        ensure!(sum == tier.num_blocks, "{sum} blocks add up in {tier:?}");
    }
    Ok(())
}

/// The step in flight, if one is: within the budget, and no slot that it writes can be read or
/// written by anybody else.
pub(crate) fn plan(engine: &Engine) -> Result<()> {
    let (scheduler, config) = (engine.scheduler(), engine.config());
    let Some(plan) = scheduler.plan() else {
        return Ok(());
    };
    let num_tokens: usize = plan.seqs.iter().map(|seq| seq.positions.len()).sum();
    ensure!(
        num_tokens == plan.num_tokens && num_tokens <= config.max_num_batched_tokens,
        "{num_tokens} tokens, said to be {}, of {} in a step",
        plan.num_tokens,
        config.max_num_batched_tokens
    );
    let num_running = scheduler.stats().num_running;
    ensure!(
        plan.seqs.len() <= num_running && num_running <= config.max_num_seqs,
        "{} sequences planned, {num_running} run, on {} seats",
        plan.seqs.len(),
        config.max_num_seqs
    );
    plan.seqs.iter().try_for_each(|seq| planned(engine, seq))
}

/// The sequences of the step in flight.
pub(crate) fn planned_ids(engine: &Engine) -> Vec<SeqId> {
    let plan = engine.scheduler().plan();
    plan.map_or_else(Vec::new, |plan| {
        plan.seqs.iter().map(|seq| seq.id).collect()
    })
}

/// After a step its sequences hold blocks for their tokens, and none for drafts any more.
pub(crate) fn tables(engine: &Engine, planned: &[SeqId]) -> Result<()> {
    let scheduler = engine.scheduler();
    for &id in planned {
        let tokens = scheduler.tokens(id).unwrap_or_default();
        let blocks = scheduler.blocks(id).unwrap_or_default();
        ensure!(
            blocks.len() <= tokens.len().div_ceil(engine.config().block_size),
            "{id} keeps {} blocks for {} tokens",
            blocks.len(),
            tokens.len()
        );
    }
    Ok(())
}

fn planned(engine: &Engine, planned: &PlannedSeq) -> Result<()> {
    let (scheduler, config) = (engine.scheduler(), engine.config());
    let PlannedSeq {
        id,
        positions,
        num_drafts,
        ..
    } = planned;
    ensure!(!positions.is_empty(), "{id} computes nothing");
    let threshold = config.long_prefill_token_threshold;
    ensure!(
        threshold == 0 || positions.len() - num_drafts <= threshold,
        "{id} computes {positions:?}, more than {threshold}"
    );
    let tokens = scheduler
        .tokens(*id)
        .context("a dead sequence is planned")?;
    let end = positions.end - num_drafts;
    ensure!(
        end <= tokens.len()
            && (!planned.sample || end == tokens.len())
            && (*num_drafts == 0 || (planned.sample && positions.start + 1 == end)),
        "{planned:?} of {} tokens",
        tokens.len()
    );
    let blocks = scheduler
        .blocks(*id)
        .with_context(|| format!("{id} is planned and has no blocks"))?;
    let size = config.block_size;
    for place in positions.start / size..positions.end.div_ceil(size) {
        let block = *blocks
            .get(place)
            .with_context(|| format!("{id} writes {positions:?} of {} blocks", blocks.len()))?;
        let num_holders = scheduler.block_manager().num_references(block);
        ensure!(
            num_holders == 1,
            "{id} writes block {block}, which {num_holders} tables hold"
        );
    }
    Ok(())
}

/// The end: nothing runs, waits, or is held, in either tier; and the figures add up to what the
/// clients saw.
pub(crate) fn idle(engine: &Engine, clients: &[Client<'_>]) -> Result<()> {
    blocks(engine)?;
    let scheduler = engine.scheduler();
    let stats = scheduler.stats();
    let left = [
        stats.num_running,
        stats.num_waiting,
        stats.num_queued,
        stats.num_queued_tokens,
    ];
    ensure!(left == [0; 4] && !engine.has_work(), "left over: {stats:?}");
    // But for the shared prefixes, which are held for good.
    let (num_held, stats) = (
        scheduler.num_held_blocks(),
        scheduler.block_manager().stats(),
    );
    ensure!(
        stats.num_tables <= engine.config().shared_prefixes.len(),
        "{} tables left",
        stats.num_tables
    );
    for (tier, num_held) in [(stats.device, num_held), (stats.host, 0)] {
        let num_left = tier.num_free + tier.num_cached;
        ensure!(
            num_left + num_held == tier.num_blocks,
            "still held, beside {num_held}: {tier:?}"
        );
    }
    let outcomes = || clients.iter().flat_map(|c| c.transcript.outcomes.values());
    let seen = |ends: fn(&FinishReason) -> bool| {
        outcomes().filter(|outcome| outcome.ended(ends)).count() as u64
    };
    let stats = engine.stats();
    let counted = stats.finished;
    // What is computed to be ranked is counted, and may not be seen.
    let ends = [
        (
            counted.stop,
            seen(|reason| matches!(reason, FinishReason::Stop(_))),
        ),
        (
            counted.length,
            seen(|reason| *reason == FinishReason::Length),
        ),
        (counted.abort, seen(|reason| *reason == FinishReason::Abort)),
        (
            counted.error,
            seen(|reason| matches!(reason, FinishReason::Error(_))),
        ),
    ];
    let requests = || clients.iter().map(|client| &client.line.request);
    let is_ranked = requests().any(|request| request.num_seqs() > request.n);
    ensure!(
        ends.iter()
            .all(|(counted, seen)| counted == seen || (is_ranked && counted > seen)),
        "ends counted and seen: {ends:?}"
    );
    let num_tokens: usize = outcomes().map(|o| o.tokens.len()).sum();
    let all_seen = !is_ranked && requests().all(|request| request.beams.is_none());
    ensure!(
        !all_seen || stats.num_generation_tokens == num_tokens as u64,
        "{} tokens counted, {num_tokens} seen",
        stats.num_generation_tokens
    );
    Ok(())
}

/// Every whole block of the shared prefixes is held, unless something happened to the step that was
/// to compute it.
pub(crate) fn held(scenario: &Scenario, engine: &Engine) -> Result<()> {
    let (most, held) = (
        scenario.config.num_resident_blocks(),
        engine.scheduler().num_held_blocks(),
    );
    let disturbed = !scenario.executor.faults.is_empty() || scenario.abort_all_at.is_some();
    ensure!(
        held == most || (disturbed && held < most),
        "{held} blocks of shared prefixes are held, and {most} were to be"
    );
    Ok(())
}
