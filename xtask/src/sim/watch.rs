//! An executor that looks at what it is given, and notes what goes wrong.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard},
};

use anyhow::{Result, ensure};
use pageloom_engine::{EngineConfig, Executor, ExecutorError, SimExecutor};
use pageloom_model_runner::{Batch, RowError, StepOutput};

/// What a [`Watch`] saw.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// The first thing wrong with a batch.
    pub(crate) wrong: Option<String>,
    /// Steps that failed as a whole, by an injected fault.
    pub(crate) failed: Vec<FailedStep>,
    /// Rows that failed by an injected fault.
    pub(crate) num_failed_rows: usize,
    /// The step before.
    last_step: Option<u64>,
}

/// A step that failed as a whole.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FailedStep {
    pub(crate) step: u64,
    pub(crate) num_seqs: usize,
    /// It only did the transfers that one before it left undone.
    pub(crate) owed: bool,
}

/// A simulator that checks each batch.
pub(crate) struct Watch {
    inner: SimExecutor,
    config: EngineConfig,
    poison_token: Option<u32>,
    seen: Arc<Mutex<Seen>>,
    submitted: Option<FailedStep>,
}

impl Watch {
    /// The executor, and where it notes what it sees.
    pub(crate) fn new(
        inner: SimExecutor,
        config: &EngineConfig,
        poison_token: Option<u32>,
    ) -> (Self, Arc<Mutex<Seen>>) {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let watch = Watch {
            inner,
            config: config.clone(),
            poison_token,
            seen: seen.clone(),
            submitted: None,
        };
        (watch, seen)
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().expect("nothing panics while it is held")
    }

    fn check(&self, batch: &Batch, last_step: Option<u64>) -> Result<()> {
        let config = &self.config;
        batch.check(config.block_size)?;
        batch.check_transfers(config.num_blocks, config.num_host_blocks)?;
        let num_tokens = batch.tokens.len();
        ensure!(
            num_tokens <= config.max_num_batched_tokens,
            "{num_tokens} tokens are over the budget of {}",
            config.max_num_batched_tokens
        );
        let slots: HashSet<_> = batch.slots.iter().collect();
        ensure!(slots.len() == num_tokens, "a slot is written twice");
        let owed = batch.context_lens.is_empty();
        let follows = match last_step {
            None => !owed,
            Some(last) if owed => batch.step == last,
            Some(last) => batch.step > last,
        };
        ensure!(follows, "step {} after {last_step:?}", batch.step);
        ensure!(!owed || batch.has_transfers(), "a step of nothing");
        check_transfers(batch)
    }
}

/// The transfers of one list may be done in any order: none writes what another reads or writes.
fn check_transfers(batch: &Batch) -> Result<()> {
    let lists = [
        ("swap_outs", &batch.swap_outs, false),
        ("swap_ins", &batch.swap_ins, false),
        ("copies", &batch.copies, true),
    ];
    for (name, list, one_tier) in lists {
        let written: HashSet<_> = list.iter().map(|&(_, dst)| dst).collect();
        ensure!(written.len() == list.len(), "{name} writes a block twice");
        let reads_written = list.iter().any(|(src, _)| written.contains(src));
        ensure!(
            !(one_tier && reads_written),
            "{name} reads what it writes: {list:?}"
        );
    }
    // Brought in and copied are different blocks, else one of them would be lost.
    let brought: HashSet<_> = batch.swap_ins.iter().map(|&(_, dst)| dst).collect();
    let lost = batch.copies.iter().find(|(_, dst)| brought.contains(dst));
    ensure!(lost.is_none(), "{lost:?} overwrites what is brought in");
    Ok(())
}

impl Executor for Watch {
    fn vocab_size(&self) -> usize {
        self.inner.vocab_size()
    }

    fn submit(&mut self, batch: Batch) -> Result<(), ExecutorError> {
        let last_step = self.seen().last_step.replace(batch.step);
        if let Err(error) = self.check(&batch, last_step) {
            let wrong = format!("step {}: {error:#}", batch.step);
            self.seen().wrong.get_or_insert(wrong);
        }
        let step = FailedStep {
            step: batch.step,
            num_seqs: batch.context_lens.len(),
            owed: batch.context_lens.is_empty(),
        };
        match self.inner.submit(batch) {
            Ok(()) => self.submitted = Some(step),
            Err(error) => {
                self.seen().failed.push(step);
                return Err(error);
            }
        }
        Ok(())
    }

    fn wait(&mut self) -> Result<(Batch, StepOutput), ExecutorError> {
        // Noted first: it may panic.
        let step = self.submitted.take();
        self.seen().failed.extend(step);
        let (batch, output) = self.inner.wait()?;
        let mut seen = self.seen();
        seen.failed.pop();
        let injected = |row: &&Result<_, RowError>| match row {
            Err(RowError::NotANumber { token }) => Some(*token) != self.poison_token,
            _ => false,
        };
        seen.num_failed_rows += output.rows.iter().filter(injected).count();
        drop(seen);
        Ok((batch, output))
    }
}
