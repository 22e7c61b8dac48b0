//! `pageloom serve`.

use std::fs::File;
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use axum::serve::ListenerExt;
use clap::Args;
use pageloom_engine::AsyncEngine;
use tokio::signal::unix::{SignalKind, signal};

use super::{CacheOptions, ModelOptions};
use crate::api::{self, ApiKeys, AppState, Limits, Seeds, now_unix};
use crate::bytes::parse_bytes;
use crate::launch::{EngineOptions, Launched, launch};
use crate::step_log::StepLog;

/// Time for the last answers to reach their clients once the engine has stopped.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(3);
/// Threads that serve connections. The engine has its own; these mostly wait.
const NUM_SERVER_THREADS: usize = 2;

/// Flags of `pageloom serve`.
#[derive(Debug, Clone, Args)]
pub struct ServeArgs {
    #[command(flatten)]
    model: ModelOptions,
    #[command(flatten)]
    cache: CacheOptions,
    #[command(flatten)]
    server: ServerOptions,
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Server")]
struct ServerOptions {
    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1")]
    host: String,
    /// Port to listen on; 0 takes any that is free
    #[arg(long, default_value_t = 8000)]
    port: u16,
    /// Key that clients must send as bearer token, for every path but /health; several are allowed
    #[arg(
        long,
        env = "PAGELOOM_API_KEY",
        hide_env_values = true,
        value_name = "KEY"
    )]
    api_key: Vec<String>,
    /// Name of the model in requests and answers; several are allowed [default: by the model]
    #[arg(long, num_args = 1.., value_name = "NAME")]
    served_model_name: Vec<String>,
    /// Seed for requests that bring none [default: random]
    #[arg(long)]
    seed: Option<u64>,
    /// Most sequences that wait; more are refused with 503 [default: 1024]
    #[arg(long)]
    max_num_queued_reqs: Option<usize>,
    /// Share KV blocks between prompts that begin alike (the default)
    #[arg(long, overrides_with = "no_enable_prefix_caching")]
    enable_prefix_caching: bool,
    /// Compute every prompt from its start
    #[arg(long)]
    no_enable_prefix_caching: bool,
    /// Beginning of prompts that is computed first of all and kept in the KV cache: text, or in a
    /// .json file {"messages": [...]} as chats begin; several are allowed
    #[arg(long, value_name = "FILE")]
    shared_prefix: Vec<PathBuf>,
    /// File that gets a line of JSON for each step of the engine
    #[arg(long, value_name = "FILE")]
    step_log: Option<PathBuf>,
    /// Seconds that running requests have to finish after SIGTERM or SIGINT
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    shutdown_timeout: u32,
    /// Largest request body, as 512K or 8MiB
    #[arg(long, default_value = "8MiB", value_parser = parse_bytes, value_name = "BYTES")]
    max_body_bytes: u64,
}

/// Serves until a signal ends it.
///
/// # Errors
/// If the port is taken, the model is missing or wrong, or memory does not suffice.
pub(super) fn run(args: ServeArgs) -> anyhow::Result<()> {
    let server = &args.server;
    check(server)?;
    // Before the model is loaded: a port in use shows at once.
    let listener = bind(server)?;
    let step_log = server.step_log.as_deref().map(make_file).transpose()?;
    let options = EngineOptions {
        prefix_caching: !server.no_enable_prefix_caching,
        max_num_queued_reqs: server.max_num_queued_reqs,
        shared_prefixes: server.shared_prefix.clone(),
        profile: None,
    };
    let launched = launch(&args.model, &args.cache, &options)?;
    say(&format!(
        "pageloom {}\n{}",
        env!("CARGO_PKG_VERSION"),
        launched.summary
    ));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(NUM_SERVER_THREADS)
        .enable_all()
        .build()
        .context("cannot start the server's threads")?;
    let timeout = Duration::from_secs(server.shutdown_timeout.into());
    let app = state(server, launched, step_log, options.prefix_caching)?;
    let outcome = runtime.block_on(serve(listener, app, timeout));
    // A tokeniser at work on a large prompt must not hold up the exit.
    runtime.shutdown_background();
    outcome
}

fn check(server: &ServerOptions) -> anyhow::Result<()> {
    if server.api_key.iter().any(String::is_empty) {
        bail!("--api-key: a key must not be empty");
    }
    let is_bad = |name: &&String| name.is_empty() || name.chars().any(char::is_control);
    if let Some(name) = server.served_model_name.iter().find(is_bad) {
        bail!("--served-model-name {name:?}: a name must be printable text");
    }
    Ok(())
}

fn make_file(path: &Path) -> anyhow::Result<File> {
    File::create(path).with_context(|| format!("--step-log {}: cannot make it", path.display()))
}

fn bind(server: &ServerOptions) -> anyhow::Result<TcpListener> {
    let address = (server.host.as_str(), server.port);
    let listener = TcpListener::bind(address)
        .with_context(|| format!("cannot listen on {}:{}", server.host, server.port))?;
    listener
        .set_nonblocking(true)
        .context("cannot use the listening socket")?;
    let open = listener.local_addr().is_ok_and(|a| !a.ip().is_loopback());
    if open && server.api_key.is_empty() {
        eprintln!(
            "warning: anybody who reaches {} can use this server: there is no --api-key",
            server.host
        );
    }
    Ok(listener)
}

fn state(
    server: &ServerOptions,
    launched: Launched,
    step_log: Option<File>,
    prefix_caching: bool,
) -> anyhow::Result<Arc<AppState>> {
    let names = match server.served_model_name.as_slice() {
        [] => vec![launched.name],
        names => names.to_vec(),
    };
    let engine = match step_log {
        None => AsyncEngine::spawn(launched.engine),
        Some(file) => {
            let mut log = StepLog::new(file, launched.engine.stats());
            AsyncEngine::spawn_observed(launched.engine, move |stats| log.note(stats))
        }
    };
    Ok(Arc::new(AppState {
        limits: Limits {
            max_model_len: launched.config.max_model_len,
            vocab_size: launched.vocab_size,
            max_num_seqs: launched.config.max_num_seqs,
        },
        cache_info: launched.summary.cache_info(prefix_caching),
        engine,
        tokenizer: launched.tokenizer,
        template: launched.template.map(Arc::new),
        names,
        seeds: Seeds::new(server.seed).context("the system has no random numbers to give")?,
        api_keys: ApiKeys::new(&server.api_key),
        max_body_bytes: usize::try_from(server.max_body_bytes).unwrap_or(usize::MAX),
        created: now_unix(),
    }))
}

/// Serves until SIGTERM or SIGINT, then drains.
///
/// ```text
/// signal --> no new connections, no new requests --> running requests end, or are aborted
///            after `timeout` --> their answers are flushed --> exit
/// ```
async fn serve(listener: TcpListener, app: Arc<AppState>, timeout: Duration) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    let address = listener.local_addr().context("the socket has no address")?;
    let listener = tokio::net::TcpListener::from_std(listener)
        .context("cannot use the listening socket")?
        // Tokens are small packets that somebody waits for.
        .tap_io(|connection| {
            let _ = connection.set_nodelay(true);
        });
    let engine = app.engine.clone();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = axum::serve(listener, api::router(app)).with_graceful_shutdown(async {
        let _ = stopped.await;
    });
    let mut server = tokio::spawn(server.into_future());
    say(&format!("serving   http://{address}"));
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        outcome = &mut server => {
            return outcome.context("the server failed")?.context("the server stopped");
        }
    }
    say(&format!(
        "stopping: running requests have {} s to finish; a second signal ends them now",
        timeout.as_secs()
    ));
    let _ = stop.send(());
    tokio::select! {
        () = engine.shutdown(timeout) => {}
        // A step under way is not interrupted; it may take longer than is left.
        () = tokio::time::sleep(timeout + FLUSH_TIMEOUT) => {}
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    }
    match tokio::time::timeout(FLUSH_TIMEOUT, server).await {
        Ok(outcome) => outcome
            .context("the server failed")?
            .context("the server stopped"),
        Err(_) => bail!("some clients did not take their answers in time"),
    }
}

/// Prints to standard output; a closed pipe there is no reason to stop.
fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}
