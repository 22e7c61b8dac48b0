//! `GET /metrics`: the engine's figures under the names that dashboards made for vLLM read.

use std::fmt;
use std::sync::Arc;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use pageloom_engine::{EngineStats, Histogram};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::error::ApiError;
use super::state::AppState;

/// Constant facts about the KV cache, the labels of `vllm:cache_config_info`.
#[derive(Debug, Clone)]
pub struct CacheInfo {
    /// Tokens a block.
    pub block_size: usize,
    /// Blocks in the pool.
    pub num_blocks: usize,
    /// Number format of keys and values.
    pub cache_dtype: &'static str,
    /// Whether prompts with the same beginning share blocks.
    pub enable_prefix_caching: bool,
}

/// Answers `GET /metrics` in the OpenMetrics text format.
///
/// Every label comes from the server itself: no request adds a series.
///
/// # Errors
/// 500 if the text cannot be written.
pub(super) async fn metrics(State(app): State<Arc<AppState>>) -> Result<Response, ApiError> {
    let labels = [
        ("model_name".into(), app.names[0].clone().into()),
        ("engine".into(), "0".into()),
    ];
    let mut registry = Registry::with_labels(labels.into_iter());
    registry.register_collector(Box::new(Snapshot {
        stats: app.engine.stats(),
        cache: app.cache_info.clone(),
    }));
    let mut text = String::new();
    encode(&mut text, &registry)
        .map_err(|error| ApiError::internal(format!("metrics cannot be written: {error}")))?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], text).into_response())
}

#[derive(Debug)]
struct Snapshot {
    stats: EngineStats,
    cache: CacheInfo,
}

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        self.gauges(&mut encoder)?;
        self.counters(&mut encoder)?;
        self.finished(&mut encoder)?;
        self.histograms(&mut encoder)?;
        self.cache_config(&mut encoder)
    }
}

impl Snapshot {
    fn gauges(&self, encoder: &mut DescriptorEncoder) -> Result<(), fmt::Error> {
        let stats = &self.stats;
        let used = stats.num_referenced_blocks as f64 / stats.num_blocks.max(1) as f64;
        for (name, help, value) in [
            (
                "vllm:num_requests_running",
                "Sequences that hold KV blocks",
                stats.num_running as f64,
            ),
            (
                "vllm:num_requests_waiting",
                "Sequences that wait to be scheduled",
                stats.num_waiting as f64,
            ),
            (
                "vllm:kv_cache_usage_perc",
                "Share of the KV blocks that sequences use, 0 to 1",
                used,
            ),
            (
                "pageloom:physical_blocks",
                "KV blocks that sequences use",
                stats.num_referenced_blocks as f64,
            ),
            (
                "pageloom:logical_blocks",
                "The same, each counted for every sequence that shares it",
                stats.num_logical_blocks as f64,
            ),
            (
                "pageloom:resident_blocks",
                "KV blocks that shared prefixes keep for good",
                stats.num_resident_blocks as f64,
            ),
        ] {
            let gauge = ConstGauge::new(value);
            let metric = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            gauge.encode(metric)?;
        }
        Ok(())
    }

    fn counters(&self, encoder: &mut DescriptorEncoder) -> Result<(), fmt::Error> {
        let stats = &self.stats;
        for (name, help, value) in [
            (
                "vllm:prefix_cache_queries",
                "Prompt tokens looked up in the prefix cache",
                stats.num_prefix_queries,
            ),
            (
                "vllm:prefix_cache_hits",
                "Prompt tokens found in the prefix cache",
                stats.num_prefix_hits,
            ),
            (
                "vllm:num_preemptions",
                "Requests whose blocks were taken away",
                stats.num_preemptions_by_swap + stats.num_preemptions_by_recompute,
            ),
            (
                "pageloom:preemptions_by_swap",
                "Requests preempted whose blocks were copied to the host",
                stats.num_preemptions_by_swap,
            ),
            (
                "pageloom:preemptions_by_recompute",
                "Requests preempted whose blocks were released, to be computed again",
                stats.num_preemptions_by_recompute,
            ),
            (
                "pageloom:computed_tokens",
                "Tokens computed, recomputed ones included",
                stats.num_computed_tokens,
            ),
            (
                "pageloom:recomputed_tokens",
                "Tokens computed again after a preemption",
                stats.num_recomputed_tokens,
            ),
            (
                "vllm:spec_decode_num_drafts",
                "How often a sequence had guesses at its next tokens in a step",
                stats.num_drafts,
            ),
            (
                "vllm:spec_decode_num_draft_tokens",
                "Guesses computed",
                stats.num_draft_tokens,
            ),
            (
                "vllm:spec_decode_num_accepted_tokens",
                "Guesses that were what was drawn",
                stats.num_accepted_tokens,
            ),
            (
                "pageloom:swapped_out_tokens",
                "Tokens of preempted requests copied to the host, in whole blocks",
                stats.num_swapped_out_blocks * stats.block_size as u64,
            ),
            (
                "pageloom:swapped_in_tokens",
                "Tokens of preempted requests copied back, in whole blocks",
                stats.num_swapped_in_blocks * stats.block_size as u64,
            ),
            (
                "pageloom:copied_blocks",
                "KV blocks copied because a shared one was to be written",
                stats.num_copied_blocks,
            ),
            (
                "vllm:prompt_tokens",
                "Prompt tokens processed, cached ones included",
                stats.num_prompt_tokens,
            ),
            (
                "vllm:generation_tokens",
                "Tokens generated",
                stats.num_generation_tokens,
            ),
        ] {
            let counter = ConstCounter::new(value);
            let metric = encoder.encode_descriptor(name, help, None, counter.metric_type())?;
            counter.encode(metric)?;
        }
        Ok(())
    }

    fn finished(&self, encoder: &mut DescriptorEncoder) -> Result<(), fmt::Error> {
        let counts = self.stats.finished;
        let mut family = encoder.encode_descriptor(
            "vllm:request_success",
            "Sequences that ended, by reason",
            None,
            MetricType::Counter,
        )?;
        for (reason, count) in [
            ("stop", counts.stop),
            ("length", counts.length),
            ("abort", counts.abort),
            ("error", counts.error),
        ] {
            let labels = [("finished_reason", reason)];
            ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn histograms(&self, encoder: &mut DescriptorEncoder) -> Result<(), fmt::Error> {
        let stats = &self.stats;
        let all: [(&str, &str, &Histogram); 7] = [
            (
                "vllm:time_to_first_token_seconds",
                "From arrival to the first token",
                &stats.time_to_first_token,
            ),
            (
                "vllm:inter_token_latency_seconds",
                "Between two tokens of a sequence",
                &stats.inter_token_latency,
            ),
            (
                "vllm:e2e_request_latency_seconds",
                "From arrival to the last token",
                &stats.e2e_latency,
            ),
            (
                "vllm:request_queue_time_seconds",
                "From arrival to the first step",
                &stats.queue_time,
            ),
            (
                "vllm:request_prefill_time_seconds",
                "From the first step to the first token",
                &stats.prefill_time,
            ),
            (
                "vllm:request_decode_time_seconds",
                "From the first token to the last",
                &stats.decode_time,
            ),
            (
                "vllm:iteration_tokens_total",
                "Tokens computed in a step",
                &stats.iteration_tokens,
            ),
        ];
        for (name, help, histogram) in all {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
            let buckets: Vec<(f64, u64)> = histogram.buckets().collect();
            metric.encode_histogram::<NoLabelSet>(
                histogram.sum(),
                histogram.count(),
                &buckets,
                None,
            )?;
        }
        Ok(())
    }

    fn cache_config(&self, encoder: &mut DescriptorEncoder) -> Result<(), fmt::Error> {
        let cache = &self.cache;
        let labels = [
            ("block_size", cache.block_size.to_string()),
            ("num_gpu_blocks", "0".to_owned()),
            ("num_cpu_blocks", cache.num_blocks.to_string()),
            ("cache_dtype", cache.cache_dtype.to_owned()),
            (
                "enable_prefix_caching",
                cache.enable_prefix_caching.to_string(),
            ),
        ];
        let mut family = encoder.encode_descriptor(
            "vllm:cache_config_info",
            "How the KV cache is set up",
            None,
            MetricType::Gauge,
        )?;
        ConstGauge::new(1i64).encode(family.encode_family(&labels.as_slice())?)
    }
}
