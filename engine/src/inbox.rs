//! What clients and the engine's thread share.

use std::{
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::watch;

use crate::{
    EngineStats, Request, RequestError,
    limits::{Limits, num_queued_tokens},
    mailbox::Mailbox,
};

/// A client's wish.
pub(crate) enum Command {
    Submit(Box<Submission>),
    /// The client of this mailbox has left.
    Abort(Arc<Mailbox>),
}

pub(crate) struct Submission {
    pub(crate) request: Request,
    pub(crate) arrival: Duration,
    pub(crate) mailbox: Arc<Mailbox>,
}

/// Sequences and prompt tokens that wait.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Load {
    pub(crate) num_seqs: usize,
    pub(crate) num_tokens: usize,
}

impl std::ops::AddAssign for Load {
    fn add_assign(&mut self, other: Load) {
        self.num_seqs += other.num_seqs;
        self.num_tokens += other.num_tokens;
    }
}

pub(crate) struct Inbox {
    pub(crate) commands: Vec<Command>,
    /// Load of the submissions in `commands`.
    pub(crate) pending: Load,
    /// Load of the engine when it last told, and of what it took since.
    pub(crate) taken: Load,
    /// No more requests.
    pub(crate) draining: bool,
    /// Stop when idle, and at this time in any case.
    pub(crate) stop_at: Option<Instant>,
    /// The thread is gone.
    pub(crate) dead: bool,
    pub(crate) stats: EngineStats,
}

/// Shared by all handles, all streams and the engine's thread.
pub(crate) struct Shared {
    pub(crate) limits: Arc<Limits>,
    pub(crate) start: Instant,
    inbox: Mutex<Inbox>,
    /// Something came in.
    wake: Condvar,
    /// Set to true when the thread has ended.
    pub(crate) stopped: watch::Sender<bool>,
    /// Milliseconds after `start` when the thread last got somewhere.
    progress_ms: AtomicU64,
    /// Whether it has work since then.
    busy: AtomicBool,
    executor_healthy: AtomicBool,
}

impl Shared {
    pub(crate) fn new(limits: Arc<Limits>, stats: EngineStats) -> Self {
        Shared {
            limits,
            start: Instant::now(),
            inbox: Mutex::new(Inbox {
                commands: Vec::new(),
                pending: Load::default(),
                taken: Load::default(),
                draining: false,
                stop_at: None,
                dead: false,
                stats,
            }),
            wake: Condvar::new(),
            stopped: watch::Sender::new(false),
            progress_ms: AtomicU64::new(0),
            busy: AtomicBool::new(false),
            executor_healthy: AtomicBool::new(true),
        }
    }

    /// A poisoned lock means that a thread panicked while it held it; what it guards is whole
    /// between any two statements.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn wait<'a>(&self, inbox: MutexGuard<'a, Inbox>) -> MutexGuard<'a, Inbox> {
        self.wake
            .wait(inbox)
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn wake(&self) {
        self.wake.notify_one();
    }

    pub(crate) fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// Checks a request on the caller's thread, so that nothing the engine would refuse waits
    /// for it, however long its step takes.
    pub(crate) fn submit(&self, request: Request) -> Result<Arc<Mailbox>, RequestError> {
        self.limits.check(&request)?;
        let load = Load {
            num_seqs: request.num_seqs(),
            num_tokens: num_queued_tokens(&request)?,
        };
        let mut inbox = self.lock();
        if inbox.dead {
            return Err(RequestError::EngineDead);
        }
        if inbox.draining {
            return Err(RequestError::ShuttingDown);
        }
        self.check_queue(&inbox, load)?;
        inbox.pending += load;
        let mailbox = Arc::new(Mailbox::new(request.n));
        inbox.commands.push(Command::Submit(Box::new(Submission {
            request,
            arrival: self.now(),
            mailbox: mailbox.clone(),
        })));
        drop(inbox);
        self.wake();
        Ok(mailbox)
    }

    fn check_queue(&self, inbox: &Inbox, load: Load) -> Result<(), RequestError> {
        let config = self.limits.config();
        let num_queued = inbox.taken.num_seqs + inbox.pending.num_seqs;
        let num_queued_tokens = inbox.taken.num_tokens + inbox.pending.num_tokens;
        let fits = |used: usize, more: usize, cap: usize| {
            used.checked_add(more).is_some_and(|sum| sum <= cap)
        };
        if fits(num_queued, load.num_seqs, config.max_num_queued_requests)
            && fits(
                num_queued_tokens,
                load.num_tokens,
                config.max_num_queued_tokens,
            )
        {
            return Ok(());
        }
        Err(RequestError::QueueFull {
            num_queued,
            num_queued_tokens,
        })
    }

    /// A client leaves: if the engine still works for it, the engine is told.
    pub(crate) fn leave(&self, mailbox: &Arc<Mailbox>) {
        if mailbox.close() {
            self.lock().commands.push(Command::Abort(mailbox.clone()));
            self.wake();
        }
    }

    /// Notes that the thread got somewhere and whether it goes on.
    pub(crate) fn note_progress(&self, busy: bool) {
        let now = u64::try_from(self.now().as_millis()).expect("less than 584 million years");
        self.progress_ms.store(now, Ordering::Relaxed);
        self.busy.store(busy, Ordering::Release);
    }

    pub(crate) fn note_executor(&self, healthy: bool) {
        self.executor_healthy.store(healthy, Ordering::Relaxed);
    }

    pub(crate) fn is_healthy(&self) -> bool {
        if self.lock().dead || !self.executor_healthy.load(Ordering::Relaxed) {
            return false;
        }
        let busy = self.busy.load(Ordering::Acquire);
        let progress = Duration::from_millis(self.progress_ms.load(Ordering::Relaxed));
        !busy || self.now().saturating_sub(progress) <= self.limits.config().stall_timeout
    }
}
