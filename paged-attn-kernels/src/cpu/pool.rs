//! A persistent thread pool for the many short parallel regions of a step.
//!
//! A step of a small model runs some 200 regions of 10 to 1,000 us each. Workers
//! spin for a moment after a region, since the next one is usually near, then
//! sleep. A region is open while tasks are left: workers that wake up late do
//! not hold up the caller, who closes it after taking the last task.
//!
//! ```text
//! state: | epoch (32) | open (1) | workers inside (16) |
//! caller   publish job, epoch + 1, open -> take tasks -> close -> wait until nobody is inside
//! worker   sees an open epoch it has not seen -> enters -> takes tasks -> leaves
//! ```
//!
//! Each thread has a share of consecutive tasks, takes those first, and then helps the others. The
//! next region's shares are alike, so what a thread wrote is often read by itself: a line that
//! comes from another core costs as much as one from memory.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::affinity;
use super::disjoint::DisjointSlice;
use crate::KernelError;

const OPEN: u64 = 1 << 16;
const INSIDE: u64 = OPEN - 1;
const EPOCH: u64 = 1 << 17;

/// Spins before a worker sleeps: some 50 us on current x86.
const SPINS: u32 = 1000;

type Task<'a> = dyn Fn(usize, usize) + Sync + 'a;

/// The region being run. Its reference is valid while the region is open or anyone is inside.
#[derive(Clone, Copy)]
struct Job {
    task: *const Task<'static>,
    num_tasks: usize,
    /// Into how many parts the tasks are shared out.
    num_shares: usize,
}

impl Job {
    fn share(&self, i: usize) -> Range<usize> {
        let start = |i: usize| i * self.num_tasks / self.num_shares;
        start(i)..start(i + 1)
    }
}

/// A counter alone in its cache lines: processors fetch them in pairs.
#[repr(align(128))]
struct Counter(AtomicUsize);

struct Shared {
    state: AtomicU64,
    /// The next task of each thread's share.
    next: Box<[Counter]>,
    job: UnsafeCell<Option<Job>>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    sleepers: AtomicUsize,
    gate: Mutex<()>,
    bell: Condvar,
    shutdown: AtomicBool,
    /// Whether `busy_ns` is kept.
    timed: AtomicBool,
    /// Nanoseconds in tasks, of all threads together.
    busy_ns: AtomicU64,
}

impl Shared {
    /// Runs tasks, and adds how long that took if times are kept.
    fn timed(&self, tasks: impl FnOnce()) {
        let began = self.timed.load(Ordering::Relaxed).then(Instant::now);
        tasks();
        if let Some(began) = began {
            let ns = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
            self.busy_ns.fetch_add(ns, Ordering::Relaxed);
        }
    }
}

// SAFETY: `job` is written only by the caller that holds `ThreadPool::caller` while the region is
// closed and nobody is inside, and read only by workers inside an open region (see `enter`); the
// acquire/release pairs on `state` order the two. The rest is atomics and locks.
unsafe impl Sync for Shared {}
// SAFETY: the raw pointer in `job` is to a `Sync` closure, and only followed as described above.
unsafe impl Send for Shared {}

thread_local! {
    static IN_REGION: Cell<bool> = const { Cell::new(false) };
}

/// A fixed set of threads that run short parallel regions; the calling thread is one of them.
pub struct ThreadPool {
    shared: Arc<Shared>,
    caller: Mutex<()>,
    workers: Vec<JoinHandle<()>>,
}

impl ThreadPool {
    /// Starts a pool of `num_threads` threads, the caller of each region included.
    ///
    /// `num_threads` 0 counts as 1. Fewer threads run if the system refuses to start more.
    pub fn new(num_threads: usize) -> ThreadPool {
        let num_threads = num_threads.clamp(1, INSIDE as usize);
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            next: (0..num_threads)
                .map(|_| Counter(AtomicUsize::new(0)))
                .collect(),
            job: UnsafeCell::new(None),
            panic: Mutex::new(None),
            sleepers: AtomicUsize::new(0),
            gate: Mutex::new(()),
            bell: Condvar::new(),
            shutdown: AtomicBool::new(false),
            timed: AtomicBool::new(false),
            busy_ns: AtomicU64::new(0),
        });
        let workers = (1..num_threads)
            .map_while(|worker| {
                let shared = Arc::clone(&shared);
                std::thread::Builder::new()
                    .name(format!("pageloom-{worker}"))
                    .spawn(move || work(&shared, worker))
                    .ok()
            })
            .collect();
        ThreadPool {
            shared,
            caller: Mutex::new(()),
            workers,
        }
    }

    /// Number of threads that take part in a region, the caller included.
    pub fn num_threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Pins the pool's own threads: worker `i` to the CPU `cpus[i % cpus.len()]`.
    ///
    /// Worker 0 is whoever calls: that thread is pinned to `cpus[0]` by its owner, with
    /// [`pin_current_thread`](super::pin_current_thread), because threads that it starts
    /// afterwards would be bound to the same CPU.
    ///
    /// # Errors
    /// [`KernelError::Zero`] if there are no CPUs, [`KernelError::Cpu`] if the calling thread may
    /// not run on one of them, [`KernelError::Affinity`] if the system refuses or has no such thing.
    pub fn pin_workers(&self, cpus: &[usize]) -> Result<(), KernelError> {
        affinity::check_cpus(cpus)?;
        // The first is the caller's.
        let cpus = cpus.iter().cycle().skip(1);
        self.workers
            .iter()
            .zip(cpus)
            .try_for_each(|(worker, &cpu)| affinity::pin_thread(worker, cpu))
    }

    /// Whether the time in tasks is kept from now on; it is not at first.
    pub fn set_timed(&self, timed: bool) {
        self.shared.timed.store(timed, Ordering::Relaxed);
    }

    /// Time in tasks so far, of all threads together, while it was kept. What is missing to the time
    /// of all threads is spent alone, waiting for another thread, or asleep.
    pub fn busy(&self) -> Duration {
        Duration::from_nanos(self.shared.busy_ns.load(Ordering::Relaxed))
    }

    /// Calls `task(index)` once for every index below `num_tasks` and returns when all are done.
    ///
    /// Each thread begins with a share of consecutive indices, in ascending order, and takes from
    /// the others' when it is done. Does not allocate.
    ///
    /// # Panics
    /// With the payload of a task that panicked, once no thread runs the region any more; and when
    /// called from inside a region.
    pub fn for_each(&self, num_tasks: usize, task: impl Fn(usize) + Sync) {
        self.for_each_with_worker(num_tasks, |_, index| task(index));
    }

    /// As [`for_each`](Self::for_each), also telling which thread runs the task.
    ///
    /// `task(worker, index)`: no two tasks run at the same time with the same `worker`, which is
    /// below [`num_threads`](Self::num_threads).
    ///
    /// # Panics
    /// As [`for_each`](Self::for_each).
    pub fn for_each_with_worker(&self, num_tasks: usize, task: impl Fn(usize, usize) + Sync) {
        self.region(num_tasks, self.num_threads(), &task);
    }

    /// As [`for_each_with_worker`](Self::for_each_with_worker), but indices are handed out in
    /// ascending order to whichever thread is free: for tasks of unequal length, longest first.
    ///
    /// # Panics
    /// As [`for_each`](Self::for_each).
    pub fn for_each_in_order(&self, num_tasks: usize, task: impl Fn(usize, usize) + Sync) {
        self.region(num_tasks, 1, &task);
    }

    fn region(&self, num_tasks: usize, num_shares: usize, task: &Task<'_>) {
        assert!(
            !IN_REGION.get(),
            "a parallel region was started inside another one"
        );
        let guard = self.caller.lock().unwrap_or_else(PoisonError::into_inner);
        IN_REGION.set(true);
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            if self.workers.is_empty() || num_tasks < 2 {
                self.shared
                    .timed(|| (0..num_tasks).for_each(|index| task(0, index)));
            } else {
                self.run(num_tasks, num_shares, task);
            }
        }));
        IN_REGION.set(false);
        drop(guard);
        if let Err(payload) = outcome {
            resume_unwind(payload);
        }
    }

    /// Calls `task(worker, index, item)` once for every item, each item with one task.
    ///
    /// # Panics
    /// As [`for_each`](Self::for_each).
    pub fn for_each_mut<T: Send>(
        &self,
        items: &mut [T],
        task: impl Fn(usize, usize, &mut T) + Sync,
    ) {
        let num_tasks = items.len();
        let items = DisjointSlice::new(items);
        self.for_each_with_worker(num_tasks, |worker, index| {
            // SAFETY: every index is handed out once.
            let item = unsafe { items.part(index..index + 1) };
            task(worker, index, &mut item[0]);
        });
    }

    fn run(&self, num_tasks: usize, num_shares: usize, task: &Task<'_>) {
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes. The pointer is followed by threads inside the region,
        // and this function does not return before the region is closed and empty.
        let task: *const Task<'static> = unsafe { std::mem::transmute(task as *const Task<'_>) };
        let job = Job {
            task,
            num_tasks,
            num_shares,
        };
        // SAFETY: the region is closed and nobody is inside: `caller` is held, and the call before
        // left it so.
        unsafe { *shared.job.get() = Some(job) };
        for (i, next) in shared.next.iter().enumerate().take(num_shares) {
            next.0.store(job.share(i).start, Ordering::Relaxed);
        }
        let epoch = shared.state.load(Ordering::Relaxed) & !(INSIDE | OPEN);
        // Sequentially consistent against the sleepers' count: either a worker that is about to
        // sleep sees the open region, or this thread sees that it sleeps.
        shared
            .state
            .store(epoch.wrapping_add(EPOCH) | OPEN, Ordering::SeqCst);
        if shared.sleepers.load(Ordering::SeqCst) > 0 {
            drop(shared.gate.lock().unwrap_or_else(PoisonError::into_inner));
            shared.bell.notify_all();
        }
        shared.timed(|| take_tasks(shared, job, 0));
        shared.state.fetch_and(!OPEN, Ordering::AcqRel);
        let mut spins = 0u32;
        while shared.state.load(Ordering::Acquire) & INSIDE != 0 {
            spins += 1;
            if spins < SPINS {
                std::hint::spin_loop()
            } else {
                std::thread::yield_now()
            }
        }
        let panic = shared
            .panic
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(payload) = panic {
            resume_unwind(payload);
        }
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.shared.shutdown.store(true, Ordering::SeqCst);
        drop(
            self.shared
                .gate
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        );
        self.shared.bell.notify_all();
        for worker in self.workers.drain(..) {
            // A worker catches its tasks' panics, so it ends normally.
            let _ = worker.join();
        }
    }
}

/// Runs tasks until none is left; a panic is kept for the caller and drops the remaining tasks.
fn take_tasks(shared: &Shared, job: Job, worker: usize) {
    // SAFETY: this thread is the caller, or entered the open region; see `Job`.
    let task = unsafe { &*job.task };
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        // Its own share first.
        for i in (0..job.num_shares).map(|i| (worker + i) % job.num_shares) {
            let (next, end) = (&shared.next[i].0, job.share(i).end);
            while next.load(Ordering::Relaxed) < end {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= end {
                    break;
                }
                task(worker, index);
            }
        }
    }));
    if let Err(payload) = outcome {
        for next in &shared.next {
            next.0.store(job.num_tasks, Ordering::Relaxed);
        }
        *shared.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(payload);
    }
}

fn work(shared: &Shared, worker: usize) {
    IN_REGION.set(true);
    let mut seen = 0;
    while wait_for_region(shared, seen) {
        let Some(epoch) = enter(shared, seen) else {
            continue;
        };
        seen = epoch;
        // SAFETY: this thread is inside the open region, so `job` is set and not written.
        if let Some(job) = unsafe { *shared.job.get() } {
            shared.timed(|| take_tasks(shared, job, worker));
        }
        shared.state.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Counts this thread in if a region is open that it has not seen; returns its epoch.
fn enter(shared: &Shared, seen: u64) -> Option<u64> {
    let mut state = shared.state.load(Ordering::Acquire);
    while state & OPEN != 0 && state & !(INSIDE | OPEN) != seen {
        match shared.state.compare_exchange_weak(
            state,
            state + 1,
            Ordering::AcqRel,
            Ordering::Acquire,
        ) {
            Ok(_) => return Some(state & !(INSIDE | OPEN)),
            Err(now) => state = now,
        }
    }
    None
}

/// Waits until a region this thread has not seen is open; false when the pool shuts down.
fn wait_for_region(shared: &Shared, seen: u64) -> bool {
    let is_news = |order| {
        let state = shared.state.load(order);
        state & OPEN != 0 && state & !(INSIDE | OPEN) != seen
    };
    for _ in 0..SPINS {
        if is_news(Ordering::Acquire) {
            return true;
        }
        std::hint::spin_loop();
    }
    let mut gate = shared.gate.lock().unwrap_or_else(PoisonError::into_inner);
    shared.sleepers.fetch_add(1, Ordering::SeqCst);
    while !shared.shutdown.load(Ordering::SeqCst) && !is_news(Ordering::SeqCst) {
        gate = shared
            .bell
            .wait(gate)
            .unwrap_or_else(PoisonError::into_inner);
    }
    shared.sleepers.fetch_sub(1, Ordering::SeqCst);
    !shared.shutdown.load(Ordering::SeqCst)
}

#[cfg(test)]
mod tests;
