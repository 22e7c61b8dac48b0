//! Rules of admission: who is asked about, when, and what follows.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use pageloom_scheduler::{
    Admission, Applicant, BlockManager, Config, NewSequence, Scheduler, SeqId, SeqResult,
};

/// What the rule was asked, in order.
#[derive(Debug, Clone, PartialEq)]
enum Call {
    Begin(usize),
    Admit(Applicant),
    Leave(SeqId),
}

/// Lets `room` requests be in at once, and writes down what it is asked.
#[derive(Debug)]
struct AtMost {
    room: usize,
    calls: Arc<Mutex<Vec<Call>>>,
}

impl Admission for AtMost {
    fn begin_step(&mut self, num_requests: usize) {
        self.calls.lock().unwrap().push(Call::Begin(num_requests));
    }

    fn admit(&mut self, applicant: &Applicant) -> bool {
        self.calls.lock().unwrap().push(Call::Admit(*applicant));
        let admits = self.room > 0;
        self.room -= usize::from(admits);
        admits
    }

    fn leave(&mut self, id: SeqId) {
        self.calls.lock().unwrap().push(Call::Leave(id));
        self.room += 1;
    }
}

fn scheduler(num_blocks: usize, room: usize) -> (Scheduler, Arc<Mutex<Vec<Call>>>) {
    let blocks = BlockManager::new(pageloom_block_manager::Config {
        block_size: 4,
        num_blocks,
        prefix_caching: false,
        ..Default::default()
    });
    let config = Config {
        watermark: 0.0,
        max_num_batched_tokens: 256,
        ..Config::default()
    };
    let mut scheduler = Scheduler::new(config, blocks.unwrap()).unwrap();
    let calls = Arc::default();
    scheduler.set_admission(Box::new(AtMost {
        room,
        calls: Arc::clone(&calls),
    }));
    (scheduler, calls)
}

fn add(scheduler: &mut Scheduler, num_prompt: u32, max_tokens: usize) -> SeqId {
    let new = NewSequence {
        prompt: (0..num_prompt).collect(),
        max_tokens,
        ..Default::default()
    };
    scheduler.add(new, Duration::ZERO).unwrap()
}

/// Runs a step; returns who took part.
fn step(scheduler: &mut Scheduler) -> Vec<SeqId> {
    let plan = scheduler.schedule().expect("work waits");
    let ids = plan.seqs.iter().map(|p| p.id).collect();
    let result = |sample| match sample {
        true => SeqResult::Token(7),
        false => SeqResult::Computed,
    };
    let results: Vec<_> = plan.seqs.iter().map(|p| result(p.sample)).collect();
    let step = plan.step;
    scheduler.update(step, &results, &mut Vec::new());
    ids
}

#[test]
fn who_is_refused_waits_with_those_behind_until_another_leaves() {
    let (mut s, calls) = scheduler(64, 1);
    let first = add(&mut s, 3, 2);
    let second = add(&mut s, 5, 1);
    add(&mut s, 1, 1);
    assert_eq!(step(&mut s), [first]);
    assert_eq!(step(&mut s), [first]);
    assert_eq!(step(&mut s), [second]);
    let applicant = |id, num_prompt_tokens, max_tokens, budget| {
        Call::Admit(Applicant {
            id,
            num_prompt_tokens,
            max_tokens,
            num_seqs: 1,
            budget,
        })
    };
    let expected = [
        Call::Begin(0),
        applicant(first, 3, 2, 256),
        applicant(second, 5, 1, 253),
        Call::Begin(1),
        applicant(second, 5, 1, 255),
        Call::Leave(first),
        Call::Begin(0),
        applicant(second, 5, 1, 256),
    ];
    assert_eq!(calls.lock().unwrap()[..8], expected);
}

#[test]
fn a_preempted_request_is_not_asked_about_again() {
    // Both prompts fit, and not what they grow to.
    let (mut s, calls) = scheduler(5, 9);
    add(&mut s, 8, 8);
    add(&mut s, 8, 8);
    while s.has_work() {
        step(&mut s);
    }
    assert!(s.stats().num_preemptions_by_recompute > 0);
    let calls = calls.lock().unwrap();
    let admitted = calls.iter().filter(|call| matches!(call, Call::Admit(_)));
    assert_eq!(admitted.count(), 2);
    let left = calls.iter().filter(|call| matches!(call, Call::Leave(_)));
    assert_eq!(left.count(), 2);
}

#[test]
fn a_request_that_is_ended_before_it_was_let_in_does_not_leave() {
    let (mut s, calls) = scheduler(64, 0);
    let id = add(&mut s, 3, 2);
    assert!(s.schedule().is_none());
    assert!(s.finish(id));
    assert!(!s.has_work());
    assert!(!calls.lock().unwrap().contains(&Call::Leave(id)));
}
