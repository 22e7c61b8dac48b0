//! The asynchronous front: any number of clients, one thread with the engine.

use std::{
    fmt,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use crate::{
    Engine, EngineConfig, EngineStats, Request, RequestError, RequestEvent,
    inbox::Shared,
    mailbox::{Mailbox, Taken},
    worker::Worker,
};

/// A handle to an engine that runs on a thread of its own. Clones are handles to the same one.
///
/// The thread sleeps while there is nothing to do, and ends with [`shutdown`](Self::shutdown) or
/// when the last handle is dropped; requests unfinished then end with
/// [`FinishReason::Abort`](crate::FinishReason::Abort).
#[derive(Clone, Debug)]
pub struct AsyncEngine(Arc<Handle>);

struct Handle(Arc<Shared>);

impl Drop for Handle {
    fn drop(&mut self) {
        stop(&self.0, Duration::ZERO);
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsyncEngine").finish_non_exhaustive()
    }
}

impl AsyncEngine {
    /// Moves `engine` to a new thread.
    ///
    /// # Panics
    /// If the operating system gives no thread.
    #[must_use]
    pub fn spawn(engine: Engine) -> Self {
        Self::spawn_observed(engine, |_| {})
    }

    /// The same, and `observe` gets the engine's figures after each step, on the engine's thread:
    /// the next step waits for it.
    ///
    /// # Panics
    /// If the operating system gives no thread.
    #[must_use]
    pub fn spawn_observed(
        engine: Engine,
        observe: impl FnMut(&EngineStats) + Send + 'static,
    ) -> Self {
        let shared = Arc::new(Shared::new(engine.limits.clone(), engine.stats()));
        let worker = Worker::new(engine, shared.clone(), Box::new(observe));
        thread::Builder::new()
            .name("pageloom-engine".to_owned())
            .spawn(move || worker.run())
            .expect("the operating system gives a thread");
        AsyncEngine(Arc::new(Handle(shared)))
    }

    /// Takes a request in, all its sequences or none. Never waits for a step.
    ///
    /// # Errors
    /// [`RequestError`] names the field that is not accepted, or says that there is no room,
    /// that the engine takes no more requests, or that it has stopped.
    pub async fn submit(&self, request: Request) -> Result<RequestStream, RequestError> {
        let shared = self.0.0.clone();
        let mailbox = shared.submit(request)?;
        Ok(RequestStream { mailbox, shared })
    }

    /// Figures as of the last step; requests that came since then count as waiting.
    #[must_use]
    pub fn stats(&self) -> EngineStats {
        let inbox = self.0.0.lock();
        let mut stats = inbox.stats.clone();
        stats.num_waiting += inbox.pending.num_seqs;
        stats
    }

    /// The engine's configuration.
    #[must_use]
    pub fn config(&self) -> &EngineConfig {
        self.0.0.limits.config()
    }

    /// Whether requests get answers: the thread lives, the last steps did not all fail, and if
    /// there is work, a step was completed within
    /// [`stall_timeout`](EngineConfig::stall_timeout).
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        self.0.0.is_healthy()
    }

    /// Refuses requests from now on; those taken in are finished.
    pub fn begin_drain(&self) {
        self.0.0.lock().draining = true;
    }

    /// Refuses requests, waits until those taken in are finished, ends what is unfinished after
    /// `timeout` with [`FinishReason::Abort`](crate::FinishReason::Abort), and returns when the
    /// thread has stopped.
    ///
    /// A step under way is not interrupted; a caller who cannot wait for it races this future
    /// with a timer.
    pub async fn shutdown(&self, timeout: Duration) {
        let mut stopped = self.0.0.stopped.subscribe();
        stop(&self.0.0, timeout);
        // The sender lives as long as this handle.
        let _ = stopped.wait_for(|&stopped| stopped).await;
    }
}

/// Tells the thread to stop when idle, or after `timeout`; the earliest of all such times counts.
fn stop(shared: &Shared, timeout: Duration) {
    let mut inbox = shared.lock();
    inbox.draining = true;
    // A time-out beyond the clock's range is none.
    let stop_at = Instant::now().checked_add(timeout);
    let far = || Instant::now() + Duration::from_secs(365 * 24 * 3600);
    let stop_at = stop_at.unwrap_or_else(far);
    inbox.stop_at = Some(
        inbox
            .stop_at
            .map_or(stop_at, |earlier| earlier.min(stop_at)),
    );
    drop(inbox);
    shared.wake();
}

/// The events of a request, in order. Dropping it aborts the request if it is unfinished: its
/// blocks are free within a step.
///
/// What a client does not take in time is merged: it finds fewer and larger
/// [`OutputDelta`](crate::OutputDelta)s.
pub struct RequestStream {
    mailbox: Arc<Mailbox>,
    shared: Arc<Shared>,
}

impl RequestStream {
    /// The next event; `None` once every sequence has ended and everything was taken.
    ///
    /// Cancel safe: an event is taken only when it is returned.
    pub async fn next(&mut self) -> Option<RequestEvent> {
        loop {
            match self.mailbox.take() {
                Taken::Event(event) => return Some(event),
                Taken::End => return None,
                Taken::Nothing => self.mailbox.arrival().await,
            }
        }
    }
}

impl Drop for RequestStream {
    fn drop(&mut self) {
        self.shared.leave(&self.mailbox);
    }
}

impl fmt::Debug for RequestStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestStream").finish_non_exhaustive()
    }
}
