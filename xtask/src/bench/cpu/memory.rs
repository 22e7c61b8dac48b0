//! Memory of a server, and its time from launch to ready.

use anyhow::{Context, ensure};
use serde_json::json;

use super::Setup;
use super::peers::{OUTPUT_LEN, PROMPT_LEN, Resident};
use super::server::Server;
use super::tables::{Figure, mib};

/// Memory of one server.
#[derive(Debug, Clone, serde::Serialize)]
pub(super) struct Memory {
    /// Bytes of weights and of the KV pool, as the program says.
    pub(super) weights: f64,
    pub(super) pool: f64,
    pub(super) ready: Resident,
    /// After a batch that has written every block of the pool.
    pub(super) done: Resident,
}

impl Memory {
    /// Bytes that are neither weights nor KV pool: when ready, where nothing of the pool has been
    /// written, and after the batch.
    pub(super) fn beyond(&self) -> [f64; 2] {
        let ready = self.ready.all as f64 - self.weights;
        let done = self.done.all as f64 - self.weights - self.pool;
        [ready, done]
    }

    /// Rows of a table.
    pub(super) fn rows(&self) -> Vec<Vec<String>> {
        let [ready, done] = self.beyond();
        let row = |name: &str, resident: Resident, pool: f64, beyond: f64| {
            let bytes = [
                resident.all as f64,
                resident.anonymous as f64,
                resident.file as f64,
                self.weights,
                pool,
                beyond,
            ];
            let mut row = vec![name.to_owned()];
            row.extend(bytes.map(|bytes| format!("{:.1}", mib(bytes))));
            row
        };
        vec![
            row("Pageloom, ready", self.ready, 0.0, ready),
            row("Pageloom, after the batch", self.done, self.pool, done),
        ]
    }
}

/// Runs a batch through a server whose pool is just large enough for it, and looks at its memory.
///
/// # Errors
/// If the server fails, or does not say how large weights and pool are.
pub(super) fn measure(setup: &Setup) -> anyhow::Result<Memory> {
    let batch_size = setup.largest();
    let [len, seqs] = [PROMPT_LEN + OUTPUT_LEN, batch_size].map(|n| n.to_string());
    // The default pool holds so many sequences of full length, no more: all blocks get written.
    let flags = [
        "--max-model-len",
        &len,
        "--max-num-seqs",
        &seqs,
        "--no-enable-prefix-caching",
    ];
    let server = Server::start(setup, &flags.map(str::to_owned))?;
    let size = |what: &str| {
        let line = server
            .summary
            .lines()
            .find(|line| line.starts_with("memory"));
        let found = line.and_then(|line| bytes_after(line, what));
        found.with_context(|| {
            format!(
                "it does not say how large its {what}are: {}",
                server.summary
            )
        })
    };
    let (weights, pool) = (size("weights ")?, size("KV cache ")?);
    let ready = server.resident()?;
    // Any ids will do, as long as no two prompts are alike.
    let prompts: Vec<Vec<usize>> = (0..batch_size)
        .map(|row| {
            (0..PROMPT_LEN)
                .map(|i| 100 + (row * 7919 + i * 104_729) % 40_000)
                .collect()
        })
        .collect();
    let body = json!({
        "prompt": prompts,
        "max_tokens": OUTPUT_LEN,
        "ignore_eos": true,
        "temperature": 0,
    });
    let answer = server.post("/v1/completions", &body)?;
    let num_tokens = answer["usage"]["completion_tokens"].as_u64();
    ensure!(
        num_tokens == Some((batch_size * OUTPUT_LEN) as u64),
        "{num_tokens:?} tokens were generated"
    );
    let done = server.resident()?;
    Ok(Memory {
        weights,
        pool,
        ready,
        done,
    })
}

/// Seconds from launch to ready, so many times.
///
/// # Errors
/// If a server does not come up.
pub(super) fn startup(setup: &Setup, times: usize) -> anyhow::Result<Figure> {
    // The first reads the model into the page cache.
    Server::start(setup, &[])?;
    let ready = (0..times).map(|_| Ok(Server::start(setup, &[])?.ready.as_secs_f64()));
    ready
        .collect::<anyhow::Result<Vec<f64>>>()
        .map(Figure::from_iter)
}

/// The bytes that a text gives as "256.5 MiB" after a word.
pub(super) fn bytes_after(text: &str, word: &str) -> Option<f64> {
    let mut words = text.split_once(word)?.1.split_whitespace();
    let number: f64 = words.next()?.parse().ok()?;
    let unit = words.next()?.trim_end_matches([',', '.', ';']);
    let scale = match unit {
        "B" | "bytes" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        "TiB" => 40,
        _ => return None,
    };
    Some(number * (1u64 << scale) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_from_the_summary() {
        let text = "memory    weights 256.5 MiB, KV cache 1.5 GiB bf16 = 1024 blocks";
        assert_eq!(bytes_after(text, "weights "), Some(256.5 * 1024.0 * 1024.0));
        assert_eq!(bytes_after(text, "KV cache "), Some(1.5 * 1_073_741_824.0));
        assert_eq!(bytes_after(text, "swap space "), None);
        assert_eq!(bytes_after("weights many, KV", "weights "), None);
    }

    #[test]
    fn what_is_neither_weights_nor_pool_remains() {
        let resident = |all| Resident {
            all,
            ..Resident::default()
        };
        let memory = Memory {
            weights: 100.0,
            pool: 50.0,
            ready: resident(110),
            done: resident(175),
        };
        assert_eq!(memory.beyond(), [10.0, 25.0]);
    }
}
