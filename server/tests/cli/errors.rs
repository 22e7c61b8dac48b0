//! What cannot be done, and how the binary says so.

use crate::{failure, pageloom, run, text};

#[test]
fn what_cannot_be_done_is_an_error_that_says_why() {
    for (args, part) in [
        (&["serve", "--device", "cuda"][..], "CUDA"),
        (
            &["serve", "--port", "0", "--max-model-len", "100000"],
            "256",
        ),
        (
            &["serve", "--port", "0", "--kv-cache-memory-bytes", "1K"],
            "--kv-cache-memory-bytes",
        ),
        (
            &["serve", "--port", "0", "--kv-cache-memory-bytes", "900T"],
            "available",
        ),
        (
            &["serve", "--port", "0", "--swap-space", "900000"],
            "--swap-space of 900000.00 GiB is more than",
        ),
        (
            &["generate", "--prompt", "a", "--swap-space", "1e-9"],
            "--swap-space of 1 B is less than one block",
        ),
        (
            &["serve", "--port", "0", "--max-num-seqs", "0"],
            "--max-num-seqs",
        ),
        (
            &["serve", "--port", "0", "--chat-template", "/no/such/file"],
            "/no/such/file",
        ),
        (
            &["serve", "--port", "0", "--shared-prefix", "/no/such/file"],
            "--shared-prefix /no/such/file: cannot open it",
        ),
        (
            &["serve", "--port", "0", "--shared-prefix", "/dev/null"],
            "--shared-prefix /dev/null: it is empty",
        ),
        (
            &[
                "serve",
                "--port",
                "0",
                "--no-enable-prefix-caching",
                "--shared-prefix",
                "/dev/null",
            ],
            "--shared-prefix: shared prefixes are kept in the prefix cache",
        ),
        (
            &["serve", "--port", "0", "--step-log", "/no/such/folder/log"],
            "--step-log /no/such/folder/log",
        ),
        (
            &["serve", "--port", "0", "--prompt-lookup-max", "3"],
            "--prompt-lookup-max: only with --speculative ngram",
        ),
        (
            &[
                "bench",
                "--speculative",
                "ngram",
                "--num-speculative-tokens",
                "33",
            ],
            "--num-speculative-tokens must be between 1 and 32, got 33",
        ),
        (
            &[
                "generate",
                "--prompt",
                "a",
                "--speculative",
                "ngram",
                "--prompt-lookup-min",
                "3",
                "--prompt-lookup-max",
                "2",
            ],
            "--prompt-lookup-min must be between 1 and 2, got 3",
        ),
        (&["generate", "--prompt", ""], "prompt"),
        (
            &["generate", "--prompt", "a", "--temperature", "9"],
            "temperature",
        ),
        (
            &["generate", "--prompt", "a", "--temperature", "NaN"],
            "temperature",
        ),
        (&["generate", "--prompt", "a", "--n", "0"], "--n 0"),
        (
            &["generate", "--prompt", "a", "--n", "1000000000"],
            "--n 1000000000: must be between 1 and 128",
        ),
        (
            &["generate", "--prompt", "a", "--n", "3", "--best-of", "2"],
            "--best-of 2: must be between --n (3)",
        ),
        (
            &[
                "generate",
                "--prompt",
                "a",
                "--best-of",
                "17",
                "--beam-search",
            ],
            "--best-of 17: must be at most 16",
        ),
        (
            &[
                "generate",
                "--prompt",
                "a",
                "--n",
                "2",
                "--temperature",
                "0",
            ],
            "--n 2: all would be equal",
        ),
        (
            &[
                "generate",
                "--prompt",
                "a",
                "--beam-search",
                "--temperature",
                "0.5",
            ],
            "--temperature 0.5",
        ),
        (
            &["generate", "--prompt", "a", "--beam-search", "--top-k", "5"],
            "top_k",
        ),
        (
            &[
                "generate",
                "--prompt",
                "a",
                "--beam-search",
                "--length-penalty",
                "NaN",
            ],
            "length_penalty",
        ),
        (
            &[
                "generate",
                "--prompt",
                "a",
                "--n",
                "4",
                "--max-num-seqs",
                "3",
            ],
            "--n 4: --max-num-seqs",
        ),
        (
            &[
                "generate",
                "--prompt",
                "a",
                "--n",
                "8",
                "--max-tokens",
                "200",
                "--kv-cache-memory-bytes",
                "64K",
            ],
            "--max-tokens",
        ),
        (&["bench", "--batch-sizes", "0"], "--batch-sizes"),
        (&["bench", "--output-len", "1"], "--output-len"),
    ] {
        let message = failure(&run(args));
        assert!(
            message.starts_with("error: ") && message.contains(part),
            "{args:?}: {message}"
        );
        assert!(!message.contains("panicked"), "{args:?}: {message}");
    }
    for space in ["-1", "NaN", "inf", "4GiB"] {
        let output = run(&["generate", "--prompt", "a", "--swap-space", space]);
        let message = text(&output.stderr);
        assert!(!output.status.success(), "{space}: {message}");
        assert!(message.contains("--swap-space"), "{space}: {message}");
        assert!(message.contains("GiB"), "{space}: {message}");
    }
    for args in [["--length-penalty", "2"], ["--early-stopping", "true"]] {
        let output = run(&[&["generate", "--prompt", "a"], &args[..]].concat());
        let message = text(&output.stderr);
        assert!(
            !output.status.success() && message.contains("--beam-search"),
            "{message}"
        );
    }
    for model in ["/no/such/model.gguf", "nonsense", "a/b/c"] {
        let output = pageloom(&["generate", "--prompt", "a", "--model", model])
            .output()
            .unwrap();
        assert!(failure(&output).contains(model));
    }
}
