//! What this machine can do at most: reading memory, multiplying and adding.
//!
//! Rooflines are drawn with these. Each is measured for a fraction of a second, best of a few, since
//! anything else that runs makes it lower and nothing makes it higher.

#[cfg(target_arch = "x86_64")]
mod amx;
mod loops;

use std::sync::Barrier;
use std::time::{Duration, Instant};

/// How long a loop is timed.
const TIME: Duration = Duration::from_millis(60);
/// How often; the best counts.
const TRIES: usize = 3;
/// Memory read through by all threads together: more than caches hold, so that none of it is found
/// there the next time.
const READ_BYTES: usize = 768 << 20;

/// A rate on one thread and on all.
#[derive(Debug, Clone, Copy)]
pub struct Rate {
    /// On one thread.
    pub one: f64,
    /// On all threads at once.
    pub all: f64,
}

/// Limits of this machine, in 10^9 a second. A multiply-add is two operations.
#[derive(Debug, Clone, Copy)]
pub struct Rates {
    /// Threads that `all` stands for.
    pub num_threads: usize,
    /// Bytes read from memory, in order.
    pub read: Rate,
    /// f32 operations, by the widest fused multiply-add there is.
    pub fma: Rate,
    /// Operations of `vpdpbusd` (u8 x i8, 512 bits), if the machine has it.
    pub vnni: Option<Rate>,
    /// Operations of `tdpbf16ps` (AMX), if the machine has it and lets us.
    pub amx_bf16: Option<Rate>,
    /// Operations of `tdpbssd` (AMX).
    pub amx_int8: Option<Rate>,
}

/// Measures the limits of this machine with so many threads.
#[must_use]
pub fn measure(num_threads: usize) -> Rates {
    let num_threads = num_threads.max(1);
    Rates {
        num_threads,
        read: read_rate(num_threads),
        fma: both(num_threads, &|_| loops::fma()),
        vnni: loops::has_vnni().then(|| both(num_threads, &|_| loops::vnni())),
        amx_bf16: amx_rate(num_threads, true),
        amx_int8: amx_rate(num_threads, false),
    }
}

fn read_rate(num_threads: usize) -> Rate {
    // Written, not zeroed: untouched pages would all be the same page of zeros.
    let memory: Vec<u64> = (0..(READ_BYTES / 8) as u64).collect();
    let read = |num_parts: usize, part: usize| {
        let len = memory.len() / num_parts;
        let part = &memory[part * len..(part + 1) * len];
        std::hint::black_box(loops::sum(part));
        (len * 8) as f64
    };
    Rate {
        one: best(1, &|part| read(1, part)),
        all: best(num_threads, &|part| read(num_threads, part)),
    }
}

#[cfg(target_arch = "x86_64")]
fn amx_rate(num_threads: usize, bf16: bool) -> Option<Rate> {
    let has = if bf16 {
        amx::has_bf16()
    } else {
        amx::has_int8()
    };
    let allowed = has && amx::ask_permission();
    // SAFETY: the two conditions were just checked.
    allowed.then(|| both(num_threads, &|_| unsafe { amx::run(bf16) }))
}

#[cfg(not(target_arch = "x86_64"))]
fn amx_rate(_: usize, _: bool) -> Option<Rate> {
    None
}

fn both(num_threads: usize, work: &(dyn Fn(usize) -> f64 + Sync)) -> Rate {
    Rate {
        one: best(1, work),
        all: best(num_threads, work),
    }
}

/// `work(thread)` does something so many times and returns how often; the result is in 10^9 a
/// second, of all threads together.
fn best(num_threads: usize, work: &(dyn Fn(usize) -> f64 + Sync)) -> f64 {
    let tries = (0..TRIES).map(|_| once(num_threads, work));
    tries.fold(0.0, f64::max) / 1e9
}

fn once(num_threads: usize, work: &(dyn Fn(usize) -> f64 + Sync)) -> f64 {
    let barrier = Barrier::new(num_threads);
    let timed = |thread| {
        barrier.wait();
        let began = Instant::now();
        let mut done = 0.0;
        loop {
            done += work(thread);
            let elapsed = began.elapsed();
            if elapsed >= TIME {
                return done / elapsed.as_secs_f64();
            }
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..num_threads)
            .map(|thread| scope.spawn(move || timed(thread)))
            .collect();
        let rates = threads.into_iter().map(|thread| thread.join());
        rates.map(|rate| rate.expect("a loop does not panic")).sum()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_positive_and_in_the_order_the_instructions_promise() {
        let rates = measure(1);
        assert!(rates.read.one > 0.1 && rates.fma.one > 0.1, "{rates:?}");
        if let Some(vnni) = rates.vnni {
            assert!(vnni.one > rates.fma.one, "{rates:?}");
        }
    }
}
