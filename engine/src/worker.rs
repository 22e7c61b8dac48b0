//! The thread that owns the engine.

use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Instant,
};

use crate::{
    Engine, EngineStats, FinishReason, RequestId,
    executor::panic_message,
    inbox::{Command, Load, Shared, Submission},
    mailbox::Mailbox,
};

pub(crate) struct Worker {
    engine: Engine,
    shared: Arc<Shared>,
    mailboxes: HashMap<RequestId, Arc<Mailbox>>,
    /// Called after each step.
    observe: Box<dyn FnMut(&EngineStats) + Send>,
    /// Room for the commands being done.
    commands: Vec<Command>,
}

/// Whether the thread goes on.
#[derive(PartialEq)]
enum Next {
    Step,
    Stop,
}

impl Worker {
    pub(crate) fn new(
        engine: Engine,
        shared: Arc<Shared>,
        observe: Box<dyn FnMut(&EngineStats) + Send>,
    ) -> Self {
        Worker {
            engine,
            shared,
            mailboxes: HashMap::new(),
            observe,
            commands: Vec::new(),
        }
    }

    /// Serves until told to stop. Whatever happens, no client is left waiting.
    pub(crate) fn run(mut self) {
        let served = catch_unwind(AssertUnwindSafe(|| self.serve()));
        let reason = match served {
            Ok(Ok(())) => FinishReason::Abort,
            Ok(Err(error)) => FinishReason::Error(error.to_string()),
            // A bug of the engine, since an executor's panics are caught where it is called.
            Err(payload) => FinishReason::Error(panic_message(&*payload)),
        };
        let mut inbox = self.shared.lock();
        inbox.dead = true;
        let left = std::mem::take(&mut inbox.commands);
        drop(inbox);
        for command in left {
            if let Command::Submit(submission) = command {
                submission.mailbox.fail(&reason);
            }
        }
        for mailbox in self.mailboxes.values() {
            mailbox.fail(&reason);
        }
        self.shared.stopped.send_replace(true);
    }

    fn serve(&mut self) -> Result<(), crate::EngineError> {
        while self.next() == Next::Step {
            self.do_commands();
            let begun = self.engine.begin_step(self.shared.now())?;
            // What the commands led to, while the executor works; and the queue's new room.
            self.deliver();
            if begun {
                let shared = self.shared.clone();
                self.engine.end_step(|| shared.now());
                self.shared.note_executor(self.engine.is_executor_healthy());
                let stats = self.deliver();
                (self.observe)(&stats);
            }
        }
        Ok(())
    }

    /// Sleeps until there is something to do, and takes the commands.
    fn next(&mut self) -> Next {
        let busy = self.engine.has_work();
        self.shared.note_progress(busy);
        let mut inbox = self.shared.lock();
        while inbox.commands.is_empty() && !busy {
            if inbox.stop_at.is_some() {
                return Next::Stop;
            }
            inbox = self.shared.wait(inbox);
        }
        self.shared.note_progress(true);
        std::mem::swap(&mut self.commands, &mut inbox.commands);
        let pending = std::mem::take(&mut inbox.pending);
        inbox.taken += pending;
        inbox.stats.num_waiting += pending.num_seqs;
        if inbox.stop_at.is_some_and(|at| at <= Instant::now()) {
            drop(inbox);
            self.do_commands();
            self.engine.abort_all(self.shared.now());
            self.deliver();
            return Next::Stop;
        }
        Next::Step
    }

    fn do_commands(&mut self) {
        let mut commands = std::mem::take(&mut self.commands);
        for command in commands.drain(..) {
            match command {
                Command::Submit(submission) => self.submit(submission),
                Command::Abort(mailbox) => {
                    if let Some(id) = mailbox.id() {
                        self.engine.abort(id, self.shared.now());
                    }
                }
            }
        }
        self.commands = commands;
    }

    fn submit(&mut self, submission: Box<Submission>) {
        let Submission {
            request,
            arrival,
            mailbox,
        } = *submission;
        if mailbox.is_closed() {
            return;
        }
        match self.engine.add(request, arrival) {
            Ok(id) => {
                mailbox.set_id(id);
                self.mailboxes.insert(id, mailbox);
            }
            // It was checked at the door, with the same limits.
            Err(error) => mailbox.fail(&FinishReason::Error(error.to_string())),
        }
    }

    /// Hands out the engine's events, and its figures before them: a client who knows how its
    /// request ended finds figures that know it too.
    fn deliver(&mut self) -> EngineStats {
        let stats = self.engine.stats();
        let queue = self.engine.queue_load();
        let mut inbox = self.shared.lock();
        inbox.stats.clone_from(&stats);
        inbox.taken = queue;
        drop(inbox);
        for (id, event) in self.engine.drain_events() {
            if let Some(mailbox) = self.mailboxes.get(&id)
                && !mailbox.push(event)
            {
                self.mailboxes.remove(&id);
            }
        }
        stats
    }
}

impl Engine {
    /// What counts in the queue caps.
    fn queue_load(&self) -> Load {
        let stats = self.scheduler.stats();
        Load {
            num_seqs: stats.num_queued,
            num_tokens: stats.num_queued_tokens,
        }
    }
}
