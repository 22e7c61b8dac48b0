//! How much memory the KV cache gets.

use std::fmt;
use std::fs;

/// Share of the available memory that the KV cache takes unless told otherwise.
pub const DEFAULT_SHARE: f64 = 0.25;
/// Assumed available where the system does not say.
const UNKNOWN_AVAILABLE_BYTES: u64 = 4 << 30;

/// What the plan depends on.
#[derive(Debug, Clone)]
pub struct MemoryRequest {
    /// Memory free to take; `None` where the system does not say.
    pub available_bytes: Option<u64>,
    /// Bytes of keys and values in one block, all layers.
    pub bytes_per_block: u64,
    /// Tokens in one block.
    pub block_size: usize,
    /// Longest sequence the model can attend over.
    pub model_context: usize,
    /// `--max-model-len`.
    pub max_model_len: Option<usize>,
    /// `--max-num-seqs`.
    pub max_num_seqs: usize,
    /// `--kv-cache-memory-bytes`.
    pub kv_cache_bytes: Option<u64>,
}

/// The KV cache's size and the context that fits it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Blocks in the pool.
    pub num_blocks: usize,
    /// Bytes of the pool.
    pub kv_cache_bytes: u64,
    /// Longest sequence, prompt and output.
    pub max_model_len: usize,
    /// Requests of that length that fit at once.
    pub max_full_requests: usize,
    /// Whether `max_model_len` was lowered to fit the pool.
    pub shortened: bool,
}

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// `--max-model-len` is past what the model was trained for.
    #[error("--max-model-len {asked}: this model's context is {model_context} tokens")]
    ContextTooLong {
        /// What was asked for.
        asked: usize,
        /// What the model has.
        model_context: usize,
    },
    /// The pool would take more than there is.
    #[error("--kv-cache-memory-bytes {asked} is more than the {available} bytes available")]
    NotAvailable {
        /// What was asked for.
        asked: u64,
        /// What there is.
        available: u64,
    },
    /// The pool cannot hold a sequence of the wanted length.
    #[error(
        "{wanted} tokens of context need {needed} bytes of KV cache and {got} bytes are granted: \
         raise --kv-cache-memory-bytes or lower --max-model-len"
    )]
    TooSmall {
        /// Tokens of one sequence.
        wanted: usize,
        /// Bytes it needs.
        needed: u64,
        /// Bytes there are.
        got: u64,
    },
    /// A count is zero or too large to count with.
    #[error("{what} is out of range: {value}")]
    OutOfRange {
        /// Which.
        what: &'static str,
        /// Its value.
        value: u64,
    },
}

impl MemoryRequest {
    /// Sizes the pool.
    ///
    /// Unless told a size: a quarter of the available memory, but no more than
    /// `max_num_seqs` sequences of full length can use. If not even one fits, the context is
    /// shortened, unless its length was asked for.
    ///
    /// # Errors
    /// [`PlanError`] if what was asked for does not fit.
    pub fn plan(&self) -> Result<MemoryPlan, PlanError> {
        let in_range = |what, value: u64| match value {
            0 => Err(PlanError::OutOfRange { what, value }),
            value => Ok(value),
        };
        let per_block = in_range("the size of a block", self.bytes_per_block)?;
        let block_size = in_range("--block-size", self.block_size as u64)?;
        let max_num_seqs = in_range("--max-num-seqs", self.max_num_seqs as u64)?;
        let asked_len = self.max_model_len.unwrap_or(self.model_context);
        let wanted_len = in_range("--max-model-len", asked_len as u64)?;
        if asked_len > self.model_context {
            return Err(PlanError::ContextTooLong {
                asked: asked_len,
                model_context: self.model_context,
            });
        }
        let blocks_per_request = wanted_len.div_ceil(block_size);
        let available = self.available_bytes.unwrap_or(UNKNOWN_AVAILABLE_BYTES);
        let budget = match self.kv_cache_bytes {
            Some(asked) if self.available_bytes.is_some_and(|there| asked > there) => {
                return Err(PlanError::NotAvailable { asked, available });
            }
            Some(asked) => asked,
            None => {
                let most = blocks_per_request
                    .saturating_mul(max_num_seqs)
                    .saturating_mul(per_block);
                most.min((available as f64 * DEFAULT_SHARE) as u64)
            }
        };
        // Block ids are 32 bits wide, and so are slots.
        let num_blocks = (budget / per_block).min(u64::from(u32::MAX) / block_size);
        let fits = num_blocks * block_size;
        let shortened = fits < wanted_len;
        if shortened && (self.max_model_len.is_some() || fits == 0) {
            return Err(PlanError::TooSmall {
                wanted: asked_len,
                needed: blocks_per_request.saturating_mul(per_block),
                got: budget,
            });
        }
        let max_model_len = wanted_len.min(fits);
        Ok(MemoryPlan {
            num_blocks: num_blocks as usize,
            kv_cache_bytes: num_blocks * per_block,
            max_model_len: max_model_len as usize,
            max_full_requests: (num_blocks / max_model_len.div_ceil(block_size)) as usize,
            shortened,
        })
    }
}

/// Bytes this process may still take: what the system calls available, or what its control group
/// leaves of it; `None` where neither is known.
pub fn available_bytes() -> Option<u64> {
    let system = fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| parse_meminfo(&text));
    let read = |name| fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok();
    let group = || {
        let limit: u64 = read("memory.max")?.trim().parse().ok()?;
        let used: u64 = read("memory.current")?.trim().parse().ok()?;
        Some(group_available(limit, used, &read("memory.stat")?))
    };
    match (system, group()) {
        (Some(system), Some(group)) => Some(system.min(group)),
        (system, group) => system.or(group),
    }
}

/// What a control group leaves: file pages that nobody used lately count as used there, but the
/// kernel drops them when memory is wanted.
fn group_available(limit: u64, used: u64, stat: &str) -> u64 {
    let inactive = stat.lines().find_map(|l| l.strip_prefix("inactive_file "));
    let reclaimable: u64 = inactive.and_then(|n| n.trim().parse().ok()).unwrap_or(0);
    limit.saturating_sub(used.saturating_sub(reclaimable))
}

fn parse_meminfo(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// A number of bytes on the command line: `1073741824`, `512M`, `1GiB`, `1.5 GB`.
///
/// # Errors
/// A message if it is none.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let split = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let scale: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        // A bare letter means a power of two, as with memory limits of containers.
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return Err(format!("{unit:?} is no unit of bytes; try 512M or 4GiB")),
    };
    let bytes = match number.parse::<u64>() {
        Ok(whole) => whole.checked_mul(scale),
        Err(_) => number
            .parse::<f64>()
            .ok()
            .map(|number| number * scale as f64)
            .filter(|bytes| bytes.is_finite() && *bytes < u64::MAX as f64)
            .map(|bytes| bytes as u64),
    };
    match bytes {
        Some(0) | None => Err(format!("{text:?} is no number of bytes; try 512M or 4GiB")),
        Some(bytes) => Ok(bytes),
    }
}

/// Bytes as people read them.
#[derive(Debug, Clone, Copy)]
pub struct HumanBytes(pub u64);

impl fmt::Display for HumanBytes {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let bytes = self.0 as f64;
        match self.0 {
            0..=1023 => write!(f, "{} B", self.0),
            1024..=1_048_575 => write!(f, "{:.1} KiB", bytes / 1024.0),
            1_048_576..=1_073_741_823 => write!(f, "{:.1} MiB", bytes / 1_048_576.0),
            _ => write!(f, "{:.2} GiB", bytes / 1_073_741_824.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> MemoryRequest {
        MemoryRequest {
            available_bytes: Some(8 << 30),
            bytes_per_block: 1 << 20,
            block_size: 16,
            model_context: 1000,
            max_model_len: None,
            max_num_seqs: 4,
            kv_cache_bytes: None,
        }
    }

    #[test]
    fn the_pool_is_no_larger_than_all_sequences_can_use() {
        let plan = request().plan().unwrap();
        // 1000 tokens take 63 blocks.
        assert_eq!((plan.num_blocks, plan.max_full_requests), (4 * 63, 4));
        assert_eq!((plan.max_model_len, plan.shortened), (1000, false));
    }

    #[test]
    fn the_pool_is_no_larger_than_a_quarter_of_what_is_free() {
        let small = MemoryRequest {
            available_bytes: Some(400 << 20),
            ..request()
        };
        let plan = small.plan().unwrap();
        assert_eq!((plan.num_blocks, plan.max_full_requests), (100, 1));
    }

    #[test]
    fn a_context_that_does_not_fit_is_shortened_unless_it_was_asked_for() {
        let small = MemoryRequest {
            available_bytes: Some(40 << 20),
            ..request()
        };
        let plan = small.plan().unwrap();
        assert_eq!(
            (plan.num_blocks, plan.max_model_len, plan.shortened),
            (10, 160, true)
        );
        assert_eq!(plan.max_full_requests, 1);
        let asked = MemoryRequest {
            max_model_len: Some(1000),
            ..small
        };
        assert!(matches!(
            asked.plan(),
            Err(PlanError::TooSmall { wanted: 1000, .. })
        ));
    }

    #[test]
    fn what_cannot_be_granted_is_an_error() {
        let greedy = MemoryRequest {
            kv_cache_bytes: Some(9 << 30),
            ..request()
        };
        assert!(matches!(greedy.plan(), Err(PlanError::NotAvailable { .. })));
        let long = MemoryRequest {
            max_model_len: Some(1001),
            ..request()
        };
        assert!(matches!(long.plan(), Err(PlanError::ContextTooLong { .. })));
        let none = MemoryRequest {
            kv_cache_bytes: Some(1),
            ..request()
        };
        assert!(matches!(none.plan(), Err(PlanError::TooSmall { .. })));
        let zero = MemoryRequest {
            block_size: 0,
            ..request()
        };
        assert!(matches!(zero.plan(), Err(PlanError::OutOfRange { .. })));
    }

    #[test]
    fn bytes_are_read_with_their_units() {
        for (text, bytes) in [
            ("1", 1),
            ("512M", 512 << 20),
            ("1GiB", 1 << 30),
            ("1.5g", 3 << 29),
            ("2 GB", 2_000_000_000),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for bad in [
            "",
            "0",
            "-1",
            "1X",
            "GiB",
            "1e9",
            "99999999999999999999",
            "99999999T99",
            "1.2.3",
            "99999999999T",
        ] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn meminfo_is_in_kibibytes() {
        let text = "MemTotal:  100 kB\nMemAvailable:    50 kB\n";
        assert_eq!(parse_meminfo(text), Some(50 * 1024));
        assert_eq!(parse_meminfo("MemTotal: 1 kB"), None);
    }

    #[test]
    fn file_pages_that_can_be_dropped_do_not_count_as_used() {
        let stat = "anon 10\ninactive_file 30\nactive_file 5\n";
        assert_eq!(group_available(100, 60, stat), 70);
        assert_eq!(group_available(100, 60, ""), 40);
        assert_eq!(group_available(100, 200, ""), 0);
    }
}
