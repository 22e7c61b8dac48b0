//! The most memory that a program has had, watched from outside.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// How often a program is looked at.
const POLL: Duration = Duration::from_millis(10);

/// Bytes resident: the most there ever was of each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Peak {
    /// Of all kinds together, as the system keeps it.
    pub(super) all: u64,
    pub(super) anonymous: u64,
    /// Pages of files, which the system may take away again.
    pub(super) file: u64,
}

impl Peak {
    /// Takes in what `/proc/PID/status` says; false once the program has ended.
    fn note(&mut self, status: &str) -> bool {
        let field = |name: &str| -> Option<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
            Some(1024 * kib)
        };
        let fields = (field("VmHWM:"), field("RssAnon:"), field("RssFile:"));
        let (Some(all), Some(anonymous), Some(file)) = fields else {
            return false;
        };
        *self = Peak {
            all: self.all.max(all),
            anonymous: self.anonymous.max(anonymous),
            file: self.file.max(file),
        };
        true
    }
}

/// A thread that watches a program.
pub(super) struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Peak>,
}

impl Watch {
    /// Watches the process of this id.
    pub(super) fn start(pid: u32) -> Watch {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let path = format!("/proc/{pid}/status");
        let thread = std::thread::spawn(move || {
            let mut peak = Peak::default();
            while !stopped.load(Ordering::Relaxed)
                && std::fs::read_to_string(&path).is_ok_and(|status| peak.note(&status))
            {
                std::thread::sleep(POLL);
            }
            peak
        });
        Watch { stop, thread }
    }

    /// What was seen; `None` if nothing was, as where there is no `/proc`.
    pub(super) fn finish(self) -> Option<Peak> {
        self.stop.store(true, Ordering::Relaxed);
        let peak = self.thread.join().ok()?;
        (peak != Peak::default()).then_some(peak)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_of_each_is_kept_and_the_end_is_seen() {
        let status = |high: u64, anonymous: u64, file: u64| {
            format!("Name: x\nVmHWM:\t{high} kB\nRssAnon:\t{anonymous} kB\nRssFile: {file} kB\n")
        };
        let mut peak = Peak::default();
        assert!(peak.note(&status(10, 4, 6)));
        assert!(peak.note(&status(12, 9, 3)));
        assert!(peak.note(&status(12, 2, 1)));
        // A process that has ended and was not waited for has no memory left to tell of.
        assert!(!peak.note("Name: x\nState: Z (zombie)\n"));
        let kib = [peak.all, peak.anonymous, peak.file].map(|bytes| bytes / 1024);
        assert_eq!(kib, [12, 9, 6]);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_running_program_is_seen() {
        let watch = Watch::start(std::process::id());
        std::thread::sleep(3 * POLL);
        let peak = watch.finish().unwrap();
        assert!(peak.all > 0 && peak.anonymous > 0, "{peak:?}");
    }
}
