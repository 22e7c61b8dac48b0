//! How much memory there is to take.

use std::fs;

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

#[cfg(test)]
mod tests {
    use super::*;

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
