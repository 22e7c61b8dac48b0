//! A rule of admission set on the engine decides who begins, and changes no output.

mod support;

use pageloom_engine::{
    EngineConfig, Request,
    scheduler::{Admission, Applicant, SeqId},
};
use support::{Harness, alone, engine, greedy, prompt};

/// Lets a request in when none else is.
#[derive(Debug, Default)]
struct OneAtATime(Option<SeqId>);

impl Admission for OneAtATime {
    fn admit(&mut self, applicant: &Applicant) -> bool {
        let free = self.0.is_none();
        if free {
            self.0 = Some(applicant.id);
        }
        free
    }

    fn leave(&mut self, id: SeqId) {
        assert_eq!(self.0.take(), Some(id), "only who was let in leaves");
    }
}

#[test]
fn a_rule_of_admission_holds_requests_back_and_changes_no_output() {
    let requests: Vec<Request> = (1..5).map(|i| greedy(prompt(i, 20), 10)).collect();
    let most_at_once = |rule: Option<OneAtATime>| {
        let mut engine = engine(EngineConfig::default());
        if let Some(rule) = rule {
            engine.set_admission(Box::new(rule));
        }
        let mut harness = Harness::new(engine);
        let ids: Vec<_> = requests
            .iter()
            .map(|request| harness.add(request))
            .collect();
        let mut most = 0;
        while harness.engine.has_work() {
            harness.step();
            most = most.max(harness.engine.stats().num_running);
        }
        for (id, request) in ids.iter().zip(&requests) {
            assert_eq!(harness.transcripts[id].outcomes, alone(request).outcomes);
        }
        most
    };
    assert_eq!(most_at_once(None), 4);
    assert_eq!(most_at_once(Some(OneAtATime::default())), 1);
}
