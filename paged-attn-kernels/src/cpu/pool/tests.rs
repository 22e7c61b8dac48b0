use super::*;

#[test]
fn time_in_tasks_is_kept_when_asked_and_of_all_threads() {
    for num_threads in [1, 2] {
        let pool = ThreadPool::new(num_threads);
        let nap = |_| std::thread::sleep(Duration::from_millis(5));
        pool.for_each(2, nap);
        assert_eq!(pool.busy(), Duration::ZERO);
        pool.set_timed(true);
        pool.for_each(2, nap);
        assert!(
            pool.busy() >= Duration::from_millis(10),
            "{:?}",
            pool.busy()
        );
    }
}

#[test]
fn every_index_runs_exactly_once() {
    for num_threads in [1, 2, 3, 7] {
        let pool = ThreadPool::new(num_threads);
        for num_tasks in [0, 1, 2, 3, 17, 1000] {
            let counts: Vec<AtomicUsize> = (0..num_tasks).map(|_| AtomicUsize::new(0)).collect();
            pool.for_each(num_tasks, |i| {
                counts[i].fetch_add(1, Ordering::Relaxed);
            });
            pool.for_each_in_order(num_tasks, |_, i| {
                counts[i].fetch_add(1, Ordering::Relaxed);
            });
            assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 2));
        }
    }
}

#[test]
fn threads_begin_with_their_own_share_and_help_when_it_is_done() {
    let pool = ThreadPool::new(2);
    // The caller's first task lasts until all others are done, which the other thread has to do.
    let done = AtomicUsize::new(0);
    let order = Mutex::new(Vec::new());
    pool.for_each_with_worker(10, |worker, i| {
        if worker == 0 && i == 0 {
            while done.load(Ordering::Acquire) < 9 {
                std::thread::yield_now();
            }
        } else {
            order.lock().unwrap().push((worker, i));
            done.fetch_add(1, Ordering::AcqRel);
        }
    });
    let order = order.into_inner().unwrap();
    let own: Vec<_> = (5..10).map(|i| (1, i)).collect();
    assert_eq!(order[..5], own);
    assert!(order.len() >= 9);
}

#[test]
fn every_item_is_changed_by_its_own_task() {
    let mut items: Vec<usize> = vec![7; 100];
    ThreadPool::new(3).for_each_mut(&mut items, |_, index, item| *item += index);
    assert!(
        items
            .iter()
            .enumerate()
            .all(|(index, item)| *item == 7 + index)
    );
}

#[test]
fn no_two_tasks_share_a_worker_at_once() {
    let pool = ThreadPool::new(4);
    let busy: Vec<AtomicBool> = (0..4).map(|_| AtomicBool::new(false)).collect();
    for _ in 0..2000 {
        pool.for_each_with_worker(9, |worker, _| {
            assert!(!busy[worker].swap(true, Ordering::SeqCst));
            std::hint::spin_loop();
            busy[worker].store(false, Ordering::SeqCst);
        });
    }
}

#[test]
fn a_panicking_task_reaches_the_caller_and_the_pool_lives_on() {
    let pool = ThreadPool::new(3);
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        pool.for_each(100, |i| assert!(i != 37, "task 37"));
    }));
    assert!(outcome.is_err());
    let sum = AtomicUsize::new(0);
    pool.for_each(10, |i| {
        sum.fetch_add(i, Ordering::Relaxed);
    });
    assert_eq!(sum.into_inner(), 45);
}

#[test]
fn callers_on_several_threads_take_turns() {
    let pool = ThreadPool::new(2);
    let sum = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..200 {
                    pool.for_each(5, |i| {
                        sum.fetch_add(i, Ordering::Relaxed);
                    });
                }
            });
        }
    });
    assert_eq!(sum.into_inner(), 4 * 200 * 10);
}

#[test]
fn a_region_inside_a_region_is_refused() {
    let pool = ThreadPool::new(2);
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        pool.for_each(2, |_| pool.for_each(2, |_| {}));
    }));
    assert!(outcome.is_err());
}

#[cfg(target_os = "linux")]
mod pinning {
    use std::sync::Barrier;

    use super::*;
    use crate::cpu::{allowed_cpus, pin_current_thread};

    /// The CPU that each worker runs on.
    fn seen_cpus(pool: &ThreadPool) -> Vec<usize> {
        let num_threads = pool.num_threads();
        let seen: Vec<AtomicUsize> = (0..num_threads).map(|_| AtomicUsize::new(0)).collect();
        // Nobody leaves before all are here: each worker gets one task.
        let all_here = Barrier::new(num_threads);
        pool.for_each_with_worker(num_threads, |worker, _| {
            all_here.wait();
            // SAFETY: it takes no arguments and writes no memory.
            let cpu = unsafe { libc::sched_getcpu() };
            seen[worker].store(usize::try_from(cpu).unwrap(), Ordering::Relaxed);
        });
        seen.into_iter().map(AtomicUsize::into_inner).collect()
    }

    #[test]
    fn workers_run_on_the_cpus_asked_for() {
        let allowed = allowed_cpus().unwrap();
        // Each CPU is worker 0's once, and each is every worker's.
        for first in 0..allowed.len() {
            let mut cpus = allowed.clone();
            cpus.rotate_left(first);
            for num_threads in [1, 2, allowed.len(), allowed.len() + 1] {
                // A thread of its own, since pinning is for good.
                std::thread::scope(|scope| {
                    scope.spawn(|| {
                        let pool = ThreadPool::new(num_threads);
                        pool.pin_workers(&cpus).unwrap();
                        pin_current_thread(cpus[0]).unwrap();
                        let expected: Vec<usize> =
                            cpus.iter().copied().cycle().take(num_threads).collect();
                        for _ in 0..20 {
                            assert_eq!(seen_cpus(&pool), expected);
                        }
                    });
                });
            }
        }
    }

    #[test]
    fn a_caller_that_is_not_pinned_keeps_its_cpus() {
        let before = allowed_cpus().unwrap();
        let pool = ThreadPool::new(3);
        pool.pin_workers(&before[..1]).unwrap();
        pool.for_each(10, |_| {});
        assert_eq!(allowed_cpus().unwrap(), before);
        let workers = &seen_cpus(&pool)[1..];
        assert!(workers.iter().all(|cpu| *cpu == before[0]), "{workers:?}");
    }

    #[test]
    fn a_cpu_that_is_not_there_pins_nobody() {
        let allowed = allowed_cpus().unwrap();
        let pool = ThreadPool::new(2);
        let missing = allowed.last().unwrap() + 1;
        let refused = pool.pin_workers(&[allowed[0], missing]);
        assert!(
            matches!(refused, Err(KernelError::Cpu { cpu, .. }) if cpu == missing),
            "{refused:?}"
        );
    }
}
