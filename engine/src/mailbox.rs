//! The way of a request's events from the engine's thread to its client.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use crate::{FinishReason, OutputDelta, RequestEvent, RequestId};

/// Events of one request that its client has not taken yet.
///
/// A client that does not keep up finds fewer and larger deltas: what is not taken is merged, so
/// at most the prompt's event and one delta for each sequence wait here, and the engine never
/// waits for anybody.
#[derive(Debug)]
pub(crate) struct Mailbox {
    state: Mutex<State>,
    arrived: Notify,
}

#[derive(Debug)]
struct State {
    events: VecDeque<RequestEvent>,
    /// Sequences without a last delta yet.
    unfinished: Vec<usize>,
    /// The client has left.
    closed: bool,
    /// Set by the engine's thread once it knows.
    id: Option<RequestId>,
}

/// What [`Mailbox::take`] found.
#[derive(Debug, PartialEq)]
pub(crate) enum Taken {
    Event(RequestEvent),
    /// More is to come.
    Nothing,
    /// Every sequence has ended and everything was taken.
    End,
}

impl Mailbox {
    pub(crate) fn new(num_sequences: usize) -> Self {
        Mailbox {
            state: Mutex::new(State {
                events: VecDeque::new(),
                unfinished: (0..num_sequences).collect(),
                closed: false,
                id: None,
            }),
            arrived: Notify::new(),
        }
    }

    pub(crate) fn set_id(&self, id: RequestId) {
        self.lock().id = Some(id);
    }

    pub(crate) fn id(&self) -> Option<RequestId> {
        self.lock().id
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Adds an event. Returns whether more are to come.
    pub(crate) fn push(&self, event: RequestEvent) -> bool {
        let mut state = self.lock();
        if let RequestEvent::Output(delta) = &event
            && delta.finish.is_some()
        {
            state.unfinished.retain(|&index| index != delta.index);
        }
        if !state.closed {
            state.merge(event);
        }
        let more = !state.unfinished.is_empty();
        drop(state);
        self.arrived.notify_one();
        more
    }

    /// Ends every sequence that has not ended.
    pub(crate) fn fail(&self, reason: &FinishReason) {
        let unfinished = self.lock().unfinished.clone();
        for index in unfinished {
            self.push(RequestEvent::Output(OutputDelta {
                index,
                finish: Some(reason.clone()),
                ..OutputDelta::default()
            }));
        }
    }

    /// The oldest event that was not taken.
    pub(crate) fn take(&self) -> Taken {
        let mut state = self.lock();
        match state.events.pop_front() {
            Some(event) => Taken::Event(event),
            None if state.unfinished.is_empty() => Taken::End,
            None => Taken::Nothing,
        }
    }

    /// Waits until something was pushed since the last wait.
    pub(crate) async fn arrival(&self) {
        self.arrived.notified().await;
    }

    /// The client leaves. Returns whether the engine still works for it.
    pub(crate) fn close(&self) -> bool {
        let mut state = self.lock();
        state.closed = true;
        state.events = VecDeque::new();
        !state.unfinished.is_empty()
    }

    /// A poisoned lock means that a thread panicked while it held it; no state it guards is
    /// ever left half done.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn merge(&mut self, event: RequestEvent) {
        let RequestEvent::Output(new) = event else {
            self.events.push_back(event);
            return;
        };
        let waiting = self.events.iter_mut().find_map(|waiting| match waiting {
            RequestEvent::Output(delta) if delta.index == new.index => Some(delta),
            _ => None,
        });
        match waiting {
            Some(delta) => delta.append(new),
            None => self.events.push_back(RequestEvent::Output(new)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::GeneratedToken;

    fn delta(index: usize, text: &str, finish: Option<FinishReason>) -> RequestEvent {
        RequestEvent::Output(OutputDelta {
            index,
            text: text.to_owned(),
            tokens: vec![GeneratedToken {
                id: 1,
                logprobs: None,
            }],
            finish,
            score: None,
        })
    }

    #[test]
    fn what_a_slow_client_leaves_is_merged_by_sequence() {
        let mailbox = Mailbox::new(2);
        mailbox.push(RequestEvent::Prompt {
            num_cached_tokens: 3,
            logprobs: Vec::new(),
        });
        for (index, text) in [(0, "a"), (1, "x"), (0, "b"), (1, "y")] {
            assert!(mailbox.push(delta(index, text, None)));
        }
        assert!(mailbox.push(delta(0, "c", Some(FinishReason::Length))));
        assert!(!mailbox.push(delta(1, "", Some(FinishReason::Abort))));
        let mut taken = Vec::new();
        while let Taken::Event(event) = mailbox.take() {
            taken.push(event);
        }
        assert_eq!(taken.len(), 3);
        let RequestEvent::Output(first) = &taken[1] else {
            panic!("{taken:?}")
        };
        assert_eq!((first.text.as_str(), first.tokens.len()), ("abc", 3));
        assert_eq!(first.finish, Some(FinishReason::Length));
        assert_eq!(mailbox.take(), Taken::End);
    }

    #[test]
    fn a_failure_ends_every_sequence_that_had_not_ended() {
        let mailbox = Mailbox::new(2);
        mailbox.push(delta(0, "a", Some(FinishReason::Length)));
        mailbox.fail(&FinishReason::Abort);
        assert!(matches!(mailbox.take(), Taken::Event(_)));
        let Taken::Event(RequestEvent::Output(second)) = mailbox.take() else {
            panic!()
        };
        assert_eq!(
            (second.index, second.finish),
            (1, Some(FinishReason::Abort))
        );
        assert_eq!(mailbox.take(), Taken::End);
    }
}
