//! The state machine: sequences come, steps are planned and reported, sequences go.

use pageloom_block_manager::{BlockId, BlockManager, StepId, TokenId};
use slab::Slab;

use crate::{
    AdmissionError, Config, ConfigError, NewSequence, SchedulerStats, SeqId, StepPlan,
    queue::WaitingQueue,
    sequence::{Place, Sequence},
};

/// Decides what each step computes; see the [crate page](crate) for the rules.
#[derive(Debug)]
pub struct Scheduler {
    pub(crate) config: Config,
    pub(crate) blocks: BlockManager,
    pub(crate) sequences: Slab<Sequence>,
    pub(crate) waiting: WaitingQueue,
    /// Slots of the sequences that hold blocks, in order of arrival.
    pub(crate) running: Vec<u32>,
    pub(crate) num_parked: usize,
    pub(crate) plan: StepPlan,
    /// The step of `plan`, until it is reported.
    pub(crate) in_flight: Option<StepId>,
    pub(crate) next_step: u64,
    /// The head of the queue that did not fit, and the blocks available then: nothing is tried
    /// again before there are more.
    pub(crate) blocked: Option<(SeqId, usize)>,
    pub(crate) stats: SchedulerStats,
    next_generation: u64,
    /// Slots that ended in the step being reported; kept for their room.
    pub(crate) ended: Vec<u32>,
}

impl Scheduler {
    /// Makes a scheduler without sequences over `blocks`, which no other may use.
    ///
    /// # Errors
    /// Those of [`Config::validate`].
    pub fn new(config: Config, blocks: BlockManager) -> Result<Self, ConfigError> {
        config.validate()?;
        Ok(Scheduler {
            running: Vec::with_capacity(config.max_num_seqs),
            ended: Vec::with_capacity(config.max_num_seqs),
            plan: StepPlan {
                seqs: Vec::with_capacity(config.max_num_seqs),
                ..StepPlan::default()
            },
            config,
            blocks,
            sequences: Slab::new(),
            waiting: WaitingQueue::default(),
            num_parked: 0,
            in_flight: None,
            next_step: 0,
            blocked: None,
            stats: SchedulerStats::default(),
            next_generation: 0,
        })
    }

    /// Takes a sequence in at the end of the queue. Possible at any moment, also while a step
    /// is in flight.
    ///
    /// # Errors
    /// [`AdmissionError`] if it is empty, too long, could not even finish alone in the pool,
    /// or if the queue is full.
    pub fn add(&mut self, new: NewSequence) -> Result<SeqId, AdmissionError> {
        self.check_fits(new.prompt.len(), new.max_tokens)?;
        self.check_queue(1, new.prompt.len())?;
        let generation = self.next_generation;
        self.next_generation += 1;
        let entry = self.sequences.vacant_entry();
        let id = SeqId {
            index: u32::try_from(entry.key()).expect("fewer than 2^32 sequences"),
            generation,
        };
        let num_prompt = new.prompt.len();
        entry.insert(Sequence {
            id,
            place: Place::Waiting,
            in_flight: false,
            ending: false,
            queued: true,
            prompt_reported: false,
            score_prompt: new.score_prompt,
            table: None,
            num_computed: 0,
            num_committed: 0,
            num_slots: 0,
            tokens: new.prompt,
            num_prompt,
            max_len: num_prompt + new.max_tokens,
            arrival: generation,
            high_water: 0,
            num_scored: 0,
            num_cached: 0,
            namespace: new.namespace,
            followers: Vec::new(),
        });
        self.stats.num_queued += 1;
        self.stats.num_queued_tokens += num_prompt;
        match new.follows.filter(|&leader| self.is_prompt_pending(leader)) {
            Some(leader) => {
                self.sequences[leader.index()].followers.push(id);
                self.sequences[id.index()].place = Place::Parked { leader };
                self.num_parked += 1;
            }
            None => self.waiting.insert(generation, id.index),
        }
        Ok(id)
    }

    /// Whether a sequence of this size could be finished.
    ///
    /// # Errors
    /// [`AdmissionError::EmptyPrompt`], [`AdmissionError::TooLong`] or
    /// [`AdmissionError::NeverFits`].
    pub fn check_fits(
        &self,
        num_prompt_tokens: usize,
        max_tokens: usize,
    ) -> Result<(), AdmissionError> {
        if num_prompt_tokens == 0 {
            return Err(AdmissionError::EmptyPrompt);
        }
        let max_model_len = self.config.max_model_len;
        let longest = num_prompt_tokens
            .checked_add(max_tokens)
            .filter(|&len| len <= max_model_len)
            .ok_or(AdmissionError::TooLong {
                num_prompt_tokens,
                max_tokens,
                max_model_len,
            })?;
        // The last token is drawn but never computed, so it needs no slot.
        let num_slots = longest - usize::from(max_tokens > 0);
        let needed_blocks = num_slots.div_ceil(self.block_size());
        let num_blocks = self.blocks.config().num_blocks;
        if needed_blocks > num_blocks {
            return Err(AdmissionError::NeverFits {
                needed_blocks,
                num_blocks,
            });
        }
        Ok(())
    }

    /// Whether the queue has room for `num_seqs` more sequences with `num_tokens` prompt tokens
    /// in all.
    ///
    /// # Errors
    /// [`AdmissionError::QueueFull`].
    pub fn check_queue(&self, num_seqs: usize, num_tokens: usize) -> Result<(), AdmissionError> {
        let room = |used: usize, more: usize, cap: usize| {
            used.checked_add(more).is_some_and(|sum| sum <= cap)
        };
        let (stats, config) = (&self.stats, &self.config);
        if room(stats.num_queued, num_seqs, config.max_num_queued_requests)
            && room(
                stats.num_queued_tokens,
                num_tokens,
                config.max_num_queued_tokens,
            )
        {
            return Ok(());
        }
        Err(AdmissionError::QueueFull {
            num_queued: stats.num_queued,
            num_queued_tokens: stats.num_queued_tokens,
            max_num_queued: config.max_num_queued_requests,
            max_num_queued_tokens: config.max_num_queued_tokens,
        })
    }

    /// Ends a sequence at any moment: its text is complete, or nobody wants it any more.
    ///
    /// Its blocks are released at once, or with the report of the step in flight if it is part
    /// of it, since until then the executor may write to them. Returns whether the sequence was
    /// alive.
    pub fn finish(&mut self, id: SeqId) -> bool {
        let Some(sequence) = self.alive(id) else {
            return false;
        };
        if sequence.in_flight {
            self.sequences[id.index()].ending = true;
            return true;
        }
        let arrival = sequence.arrival;
        match sequence.place {
            Place::Waiting => self.waiting.remove(arrival),
            Place::Parked { leader } => {
                let leader = &mut self.sequences[leader.index()];
                leader.followers.retain(|&follower| follower != id);
                self.num_parked -= 1;
            }
            Place::Running => {
                let place = self.running_place(arrival);
                self.running.remove(place);
            }
            Place::Gone => unreachable!("swept before the report returned"),
        }
        self.close(id.index);
        self.sequences.remove(id.index());
        true
    }

    /// Whether any sequence waits or runs.
    #[must_use]
    pub fn has_work(&self) -> bool {
        !self.sequences.is_empty()
    }

    /// The step that was planned and not reported yet.
    #[must_use]
    pub fn plan(&self) -> Option<&StepPlan> {
        self.in_flight.map(|_| &self.plan)
    }

    /// Prompt and output so far; `None` once the sequence has ended.
    #[must_use]
    pub fn tokens(&self, id: SeqId) -> Option<&[TokenId]> {
        self.alive(id).map(|sequence| sequence.tokens.as_slice())
    }

    /// The sequence's block table; `None` while it holds no blocks.
    #[must_use]
    pub fn blocks(&self, id: SeqId) -> Option<&[BlockId]> {
        let table = self.alive(id)?.table?;
        Some(self.blocks.blocks(table))
    }

    /// The block manager, to look at.
    #[must_use]
    pub fn block_manager(&self) -> &BlockManager {
        &self.blocks
    }

    /// The configuration this scheduler was made from.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Figures now and so far.
    #[must_use]
    pub fn stats(&self) -> SchedulerStats {
        SchedulerStats {
            num_running: self.running.len(),
            num_waiting: self.waiting.len() + self.num_parked,
            ..self.stats
        }
    }

    pub(crate) fn block_size(&self) -> usize {
        self.blocks.config().block_size
    }

    /// Where in `running` the sequence with this arrival is, or would be.
    pub(crate) fn running_place(&self, arrival: u64) -> usize {
        self.running
            .partition_point(|&slot| self.sequences[slot as usize].arrival < arrival)
    }

    fn alive(&self, id: SeqId) -> Option<&Sequence> {
        self.sequences
            .get(id.index())
            .filter(|sequence| sequence.id == id && !sequence.ending)
    }

    fn is_prompt_pending(&self, id: SeqId) -> bool {
        self.alive(id)
            .is_some_and(|sequence| !sequence.prompt_reported)
    }

    /// Gives back what a sequence holds, on whatever way it goes.
    pub(crate) fn close(&mut self, slot: u32) {
        let sequence = &mut self.sequences[slot as usize];
        if let Some(table) = sequence.table.take() {
            self.blocks.release(table);
        }
        self.unqueue(slot);
        self.unpark_followers(slot);
    }

    /// Stops counting a sequence in the queue caps.
    pub(crate) fn unqueue(&mut self, slot: u32) {
        let sequence = &mut self.sequences[slot as usize];
        if core::mem::take(&mut sequence.queued) {
            self.stats.num_queued -= 1;
            self.stats.num_queued_tokens -= sequence.num_prompt;
        }
    }

    /// Lets those who waited for this sequence's prompt into the queue, at their own places.
    pub(crate) fn unpark_followers(&mut self, slot: u32) {
        let followers = core::mem::take(&mut self.sequences[slot as usize].followers);
        for follower in followers {
            let sequence = &mut self.sequences[follower.index()];
            sequence.place = Place::Waiting;
            self.num_parked -= 1;
            self.waiting.insert(sequence.arrival, follower.index);
        }
    }
}
