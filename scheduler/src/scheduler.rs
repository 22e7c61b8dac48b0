//! The state machine: sequences come, fork, and go.

use core::time::Duration;

use pageloom_block_manager::{BlockId, BlockManager, StepId, TableId, TokenId};
use slab::Slab;

use crate::{
    Admission, AdmissionError, Config, ConfigError, NewSequence, PreemptionMode, SchedulerStats,
    SchedulingPolicy, SeqId, StepPlan, StepTimes,
    cost::Costs,
    group::{Group, Order, Place},
    headroom::Headroom,
    queue::WaitingQueue,
    sequence::Sequence,
};

/// Decides what each step computes; see the [crate page](crate) for the rules.
#[derive(Debug)]
pub struct Scheduler {
    pub(crate) config: Config,
    pub(crate) blocks: BlockManager,
    pub(crate) sequences: Slab<Sequence>,
    pub(crate) groups: Slab<Group>,
    pub(crate) waiting: WaitingQueue,
    /// Slots of the sequences of the running groups, group by group in their order.
    pub(crate) running: Vec<u32>,
    /// Seats of the running groups.
    pub(crate) num_seats: usize,
    /// Members of running groups that have no table.
    pub(crate) num_tableless: usize,
    /// Drafts were proposed since the last plan.
    pub(crate) has_drafts: bool,
    pub(crate) plan: StepPlan,
    /// The step of `plan`, until it is reported.
    pub(crate) in_flight: Option<StepId>,
    pub(crate) next_step: u64,
    /// The head of the queue that did not fit, and the blocks available then: nothing is tried
    /// again before there are more.
    pub(crate) blocked: Option<(Order, usize)>,
    /// Tables that keep what they hold in the cache, and their blocks, each once.
    pub(crate) held: (Vec<TableId>, Vec<BlockId>),
    pub(crate) costs: Costs,
    pub(crate) headroom: Headroom,
    pub(crate) stats: SchedulerStats,
    next_generation: u64,
    next_arrival: u64,
    pub(crate) admission: Option<Box<dyn Admission>>,
    /// Groups that the rule of admission let in.
    pub(crate) num_admitted: usize,
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
        let num_blocks = blocks.config().num_blocks;
        if config.num_resident_blocks >= num_blocks {
            return Err(ConfigError::Resident {
                num_resident_blocks: config.num_resident_blocks,
                num_blocks,
            });
        }
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
            groups: Slab::new(),
            waiting: WaitingQueue::default(),
            num_seats: 0,
            num_tableless: 0,
            has_drafts: false,
            in_flight: None,
            next_step: 0,
            blocked: None,
            held: Default::default(),
            costs: Costs::default(),
            headroom: Headroom::default(),
            stats: SchedulerStats::default(),
            next_generation: 0,
            next_arrival: 0,
            admission: None,
            num_admitted: 0,
        })
    }

    /// Asks `admission` about every request before it begins. For a scheduler without sequences.
    ///
    /// # Panics
    /// If there are any: nothing was asked about them.
    pub fn set_admission(&mut self, admission: Box<dyn Admission>) {
        assert!(self.sequences.is_empty(), "sequences were let in already");
        self.admission = Some(admission);
    }

    /// Takes a sequence in, the first of a new group, at its place in the queue. Possible at any
    /// moment, also while a step is in flight.
    ///
    /// `now` is the time of arrival, on any clock; only priorities look at it.
    ///
    /// # Errors
    /// [`AdmissionError`] if it is empty, too long, could not even finish alone in the pool,
    /// or if the queue is full.
    pub fn add(&mut self, new: NewSequence, now: Duration) -> Result<SeqId, AdmissionError> {
        self.check_fits(new.prompt.len(), new.max_tokens, new.num_seqs)?;
        self.check_queue(new.num_seqs, new.prompt.len() * new.num_seqs)?;
        let order = self.next_order(new.priority, now);
        let num_prompt = new.prompt.len();
        let queued = (new.num_seqs, num_prompt * new.num_seqs);
        let first = self.next_id();
        let group = self.groups.insert(Group {
            first,
            admitted: false,
            order,
            priority: new.priority,
            place: Place::Waiting,
            members: Vec::with_capacity(new.num_seqs),
            num_seats: new.num_seqs,
            lockstep: new.lockstep,
            queued: Some(queued),
            num_blocks_lost: 0,
        });
        let group = u32::try_from(group).expect("fewer than 2^32 groups");
        let id = self.insert(|id| Sequence {
            id,
            group,
            in_flight: false,
            ending: false,
            gone: false,
            prompt_reported: false,
            score_prompt: new.score_prompt,
            table: None,
            num_computed: 0,
            num_committed: 0,
            num_slots: 0,
            tokens: new.prompt,
            drafts: Vec::new(),
            num_prompt,
            max_len: num_prompt + new.max_tokens,
            high_water: 0,
            num_scored: 0,
            num_cached: 0,
            namespace: new.namespace,
        });
        self.groups[group as usize].members.push(id.index);
        self.stats.num_queued += queued.0;
        self.stats.num_queued_tokens += queued.1;
        self.stats.num_waiting += 1;
        self.waiting.insert(order, group);
        Ok(id)
    }

    /// Adds to the group of `parent` a sequence with the same tokens but for the last, which is
    /// `last`. It shares all blocks of `parent`.
    ///
    /// For the moment after [`update`](Self::update) has reported the token that `last` is an
    /// alternative to, before the next step is planned. `None` if `parent` has ended.
    ///
    /// # Panics
    /// If anything but the last token of `parent` is still to be computed, or if its group has
    /// as many sequences as it was let in for. In lockstep it may have more until the next step
    /// is planned: survivors are forked before losers end.
    pub fn fork(&mut self, parent: SeqId, last: TokenId) -> Option<SeqId> {
        let sequence = self.alive(parent)?;
        assert!(
            !sequence.is_behind() && !sequence.in_flight,
            "fork of sequence {parent}, which has not just drawn a token"
        );
        let group = sequence.group;
        let Group {
            members,
            num_seats,
            lockstep,
            ..
        } = &self.groups[group as usize];
        assert!(
            *lockstep || members.len() < *num_seats,
            "fork of sequence {parent}, whose group has all its {num_seats} sequences"
        );
        let table = self.fork_table(parent.index);
        let parent = &self.sequences[parent.index()];
        let mut child = parent.clone();
        // `clone` takes no more room than it needs, and the child is to grow.
        child
            .tokens
            .reserve_exact(child.max_len - child.tokens.len());
        *child.tokens.last_mut().expect("never empty") = last;
        child.table = Some(table);
        child.num_slots = child.num_computed;
        child.score_prompt = false;
        let (after, group) = (self.last_place_of(group), group as usize);
        let id = self.insert(|id| Sequence { id, ..child });
        self.groups[group].members.push(id.index);
        self.running.insert(after, id.index);
        Some(id)
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
        if self.groups[sequence.group as usize].place == Place::Running {
            let place = self.place_of(id.index);
            self.running.remove(place);
        }
        self.close(id.index);
        self.sequences.remove(id.index());
        true
    }

    /// Tells how long the step reported last took, from which
    /// [`PreemptionMode::Auto`] learns. Once that knows that copying takes longer than computing
    /// again, evicted blocks are not copied to the host either: whoever hit one would wait for both
    /// copies.
    pub fn observe(&mut self, times: StepTimes) {
        let ops = &self.plan.ops;
        let num_blocks = ops.swap_outs.len() + ops.swap_ins.len();
        self.costs.observe(times, num_blocks, self.plan.num_tokens);
        if self.config.preemption_mode == PreemptionMode::Auto {
            let never_pays = self.costs.swap_never_pays(self.block_size());
            self.blocks.keep_evicted(!never_pays);
        }
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

    /// The sequence's block table; `None` while it holds no blocks of the device.
    #[must_use]
    pub fn blocks(&self, id: SeqId) -> Option<&[BlockId]> {
        let sequence = self.alive(id)?;
        let running = self.groups[sequence.group as usize].place == Place::Running;
        let table = sequence.table.filter(|_| running)?;
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
            ..self.stats
        }
    }

    pub(crate) fn block_size(&self) -> usize {
        self.blocks.config().block_size
    }

    fn next_order(&mut self, priority: i32, now: Duration) -> Order {
        let arrival = self.next_arrival;
        self.next_arrival += 1;
        let due = match self.config.policy {
            SchedulingPolicy::Fcfs => 0,
            SchedulingPolicy::Priority { ageing } => {
                let micros = |time: Duration| i64::try_from(time.as_micros()).unwrap_or(i64::MAX);
                let later = micros(ageing).saturating_mul(priority.into());
                micros(now).saturating_add(later)
            }
        };
        Order { due, arrival }
    }

    /// The id that the next sequence gets.
    fn next_id(&self) -> SeqId {
        SeqId {
            index: u32::try_from(self.sequences.vacant_key()).expect("fewer than 2^32 sequences"),
            generation: self.next_generation,
        }
    }

    fn insert(&mut self, make: impl FnOnce(SeqId) -> Sequence) -> SeqId {
        let id = self.next_id();
        self.next_generation += 1;
        self.sequences.insert(make(id));
        id
    }

    pub(crate) fn group_of(&self, slot: u32) -> &Group {
        &self.groups[self.sequences[slot as usize].group as usize]
    }

    /// Where in `running` the first member of a group with this order is, or would be.
    pub(crate) fn first_place(&self, order: Order) -> usize {
        self.running
            .partition_point(|&slot| self.group_of(slot).order < order)
    }

    /// Behind the last member of the running group.
    fn last_place_of(&self, group: u32) -> usize {
        let group = &self.groups[group as usize];
        self.first_place(group.order) + group.members.len()
    }

    fn place_of(&self, slot: u32) -> usize {
        let first = self.first_place(self.group_of(slot).order);
        let behind = self.running[first..].iter().position(|&s| s == slot);
        first + behind.expect("members of running groups run")
    }

    pub(crate) fn alive(&self, id: SeqId) -> Option<&Sequence> {
        self.sequences
            .get(id.index())
            .filter(|sequence| sequence.id == id && !sequence.ending)
    }

    /// Gives back what a sequence holds, on whatever way it goes, and takes it out of its group,
    /// which goes with its last member.
    pub(crate) fn close(&mut self, slot: u32) {
        let sequence = &mut self.sequences[slot as usize];
        let (group, table) = (sequence.group, sequence.table.take());
        let members = &mut self.groups[group as usize].members;
        members.retain(|&member| member != slot);
        let is_last = members.is_empty();
        if let Some(table) = table {
            self.blocks.release(table);
        }
        let entry = &mut self.groups[group as usize];
        let running = entry.place == Place::Running;
        if running && table.is_none() {
            self.num_tableless -= 1;
        }
        if !running {
            self.stats.num_waiting -= 1;
        }
        if is_last {
            let seats = entry.num_seats;
            let (order, first, admitted) = (entry.order, entry.first, entry.admitted);
            self.unqueue(group);
            if let Some(admission) = self.admission.as_mut().filter(|_| admitted) {
                admission.leave(first);
                self.num_admitted -= 1;
            }
            if running {
                self.num_seats -= seats;
            } else {
                self.waiting.remove(order);
            }
            self.groups.remove(group as usize);
        } else if !entry.lockstep && entry.num_seats > 1 && entry.members.len() < entry.num_seats {
            // It forks no more once one of it has ended.
            entry.num_seats -= 1;
            if running {
                self.num_seats -= 1;
            }
        }
    }

    /// Stops counting a group in the queue caps.
    pub(crate) fn unqueue(&mut self, group: u32) {
        if let Some((num_seqs, num_tokens)) = self.groups[group as usize].queued.take() {
            self.stats.num_queued -= num_seqs;
            self.stats.num_queued_tokens -= num_tokens;
        }
    }
}
