//! Runs a kernel over a grid.

use super::block::Block;
use super::exec::Machine;
use super::fault::Fault;
use super::memory::Memory;
use super::program::Entry;
use super::shared::Shared;
use super::stats::Stats;
use super::warp::{Place, Warp};

/// The shape of a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaunchConfig {
    /// Blocks of the grid: x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block: x, y, z.
    pub block: [u32; 3],
    /// Bytes of shared memory besides the kernel's static variables.
    pub dynamic_shared_bytes: u32,
}

/// Threads a block may have.
const MAX_THREADS: u64 = 1024;
/// Shared memory a block may have on devices of compute capability 9.0.
const MAX_SHARED_BYTES: u64 = 227 << 10;

/// Runs every block of a grid, one after the other in ascending order, x fastest.
///
/// `params`: the kernel's parameters as it lays them out, [`Entry::param_bytes`] of them.
///
/// # Errors
/// [`Fault::Launch`] for a shape or parameters the device would refuse, [`Fault::Thread`] for what
/// a thread does wrong, [`Fault::Deadlock`] and [`Fault::Endless`] for blocks that never end.
/// Memory keeps what was written before.
pub fn launch(
    entry: &Entry,
    config: LaunchConfig,
    params: &[u8],
    memory: &mut Memory,
) -> Result<Stats, Fault> {
    let shared_bytes = entry.shared_bytes + config.dynamic_shared_bytes as usize;
    check(entry, &config, (params, shared_bytes))?;
    let threads: u32 = config.block.iter().product();
    let num_warps = threads.div_ceil(32) as usize;
    let mut machine = Machine {
        entry,
        memory,
        shared: Shared::new(shared_bytes, num_warps),
        params,
        stats: Stats::default(),
        arrivals: [0; 16],
    };
    let mut warps: Vec<Warp> = (0..num_warps)
        .map(|index| Warp::new(entry, index))
        .collect();
    let [columns, rows, layers] = config.grid;
    for z in 0..layers {
        for y in 0..rows {
            for x in 0..columns {
                let place = Place {
                    grid: config.grid,
                    block: config.block,
                    index: [x, y, z],
                    dynamic_shared_bytes: config.dynamic_shared_bytes,
                };
                Block {
                    machine: &mut machine,
                    warps: &mut warps,
                    place,
                }
                .run()?;
            }
        }
    }
    Ok(machine.stats)
}

fn check(
    entry: &Entry,
    config: &LaunchConfig,
    (params, shared_bytes): (&[u8], usize),
) -> Result<(), Fault> {
    let refuse = |what, given, limit| {
        Err(Fault::Launch {
            kernel: entry.name.clone(),
            what,
            given,
            limit,
        })
    };
    if params.len() != entry.param_bytes {
        return refuse(
            "bytes of parameters",
            params.len() as u64,
            entry.param_bytes as u64,
        );
    }
    let threads = config
        .block
        .iter()
        .fold(1u64, |n, d| n.saturating_mul(u64::from(*d)));
    let limit = entry
        .max_threads
        .map_or(MAX_THREADS, |max| MAX_THREADS.min(u64::from(max)));
    if threads > limit {
        return refuse("threads", threads, limit);
    }
    let [x, y, z] = config.grid;
    if y > 65535 || z > 65535 || x > i32::MAX as u32 {
        return refuse("blocks of a dimension", u64::from(x.max(y).max(z)), 65535);
    }
    if x == 0 || y == 0 || z == 0 || threads == 0 {
        return refuse("blocks or threads of a dimension", 0, 1);
    }
    if shared_bytes as u64 > MAX_SHARED_BYTES {
        return refuse(
            "bytes of shared memory",
            shared_bytes as u64,
            MAX_SHARED_BYTES,
        );
    }
    Ok(())
}
