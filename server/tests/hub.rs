//! `--model ORG/NAME` against a hub of the test's own.
#![cfg(unix)]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::extract::Path as UrlPath;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::json;

fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../model-runner/tests/models")
}

/// Serves files of a folder as the repository `org/name`, the way the hub does: with a commit, an
/// etag, and any range of bytes.
struct Hub {
    address: SocketAddr,
    downloads: Arc<AtomicUsize>,
    _runtime: tokio::runtime::Runtime,
}

impl Hub {
    fn start(folder: PathBuf, files: &'static [&'static str]) -> Hub {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let downloads = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&downloads);
        let listing = async move || {
            let siblings: Vec<_> = files.iter().map(|f| json!({"rfilename": f})).collect();
            axum::Json(json!({"siblings": siblings, "sha": "abc123"}))
        };
        let file = async move |UrlPath(name): UrlPath<String>, headers: HeaderMap| {
            count.fetch_add(1, Ordering::Relaxed);
            serve(&folder.join(&name), &name, &headers)
        };
        let app = Router::new()
            .route("/api/models/org/name/revision/main", get(listing))
            .route("/org/name/resolve/main/{*file}", get(file));
        let listener = runtime
            .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
            .unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(async move { axum::serve(listener, app).await });
        Hub {
            address,
            downloads,
            _runtime: runtime,
        }
    }

    fn generate(&self, home: &Path, model: &str) -> Output {
        Command::new(env!("CARGO_BIN_EXE_pageloom"))
            .args([
                "generate",
                "--prompt",
                "a",
                "--max-tokens",
                "3",
                "--threads",
                "1",
            ])
            .args(["--model", model])
            .env("HF_ENDPOINT", format!("http://{}", self.address))
            .env("HF_HOME", home)
            .env_remove("HF_HUB_CACHE")
            .output()
            .unwrap()
    }
}

fn serve(path: &Path, name: &str, headers: &HeaderMap) -> Response {
    let Ok(bytes) = std::fs::read(path) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let range = headers["range"]
        .to_str()
        .unwrap()
        .strip_prefix("bytes=")
        .unwrap();
    let (start, end) = range.split_once('-').unwrap();
    let start: usize = start.parse().unwrap();
    let end = end.parse().map_or(bytes.len(), |last: usize| last + 1);
    let headers = [
        ("etag", format!("\"{}\"", name.replace('/', "-"))),
        ("x-repo-commit", "abc123".to_owned()),
        (
            "content-range",
            format!("bytes {start}-{}/{}", end - 1, bytes.len()),
        ),
    ];
    (
        StatusCode::PARTIAL_CONTENT,
        headers,
        bytes[start..end].to_vec(),
    )
        .into_response()
}

#[test]
fn a_folder_is_fetched_once_and_then_found_without_the_hub() {
    let files = &[
        "README.md",
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors",
        "pytorch_model.bin",
    ];
    let hub = Hub::start(models().join("smollm2"), files);
    let home = tempfile::tempdir().unwrap();
    let first = hub.generate(home.path(), "org/name");
    assert!(
        first.status.success(),
        "{}",
        String::from_utf8_lossy(&first.stderr)
    );
    let downloads = hub.downloads.load(Ordering::Relaxed);
    // Two requests a file: its facts, its bytes. Neither the page about it nor the pickle.
    assert_eq!(downloads, 8);
    let second = hub.generate(home.path(), "org/name");
    assert!(
        second.status.success(),
        "{}",
        String::from_utf8_lossy(&second.stderr)
    );
    assert_eq!(hub.downloads.load(Ordering::Relaxed), downloads);
}

#[test]
fn a_gguf_file_is_named_or_is_the_only_one() {
    let home = tempfile::tempdir().unwrap();
    let one = Hub::start(models().join("gguf"), &["README.md", "llama-q8_0.gguf"]);
    let output = one.generate(home.path(), "org/name");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let several = Hub::start(
        models().join("gguf"),
        &["llama-q8_0.gguf", "llama-q4_0.gguf"],
    );
    let home = tempfile::tempdir().unwrap();
    let output = several.generate(home.path(), "org/name");
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(message.contains("org/name:llama-q4_0.gguf"), "{message}");
    let output = several.generate(home.path(), "org/name:llama-q4_0.gguf");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn a_repository_without_usable_weights_is_an_error() {
    let hub = Hub::start(
        models().join("smollm2"),
        &["config.json", "pytorch_model.bin"],
    );
    let home = tempfile::tempdir().unwrap();
    for (model, part) in [
        ("org/name", "neither safetensors nor GGUF"),
        ("org/name:none.gguf", "no file none.gguf"),
        ("org/other", "org/other"),
        ("org/name@v2", "org/name@v2"),
    ] {
        let output = hub.generate(home.path(), model);
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{message}");
        assert!(message.contains(part), "{message}");
    }
    assert_eq!(hub.downloads.load(Ordering::Relaxed), 0);
}
