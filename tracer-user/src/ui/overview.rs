//! The whole at a glance: who serves, how it goes, and what watching it costs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use serde_json::{Value, json};

use super::{Shown, ns};
use crate::core::view::EngineNow;
use crate::export::usage::Usage;
use crate::input::{LossStage, Probe};
use crate::store::Store;
use crate::store::histogram::Histogram;
use crate::store::now::ServerNow;
use crate::store::recently::{Second, WINDOW};
use crate::telemetry::Telemetry;

/// Names of models that are listed.
const MAX_MODELS: usize = 200;
const SECOND: u64 = 1_000_000_000;

impl Shown {
    pub(super) fn overview(&self) -> Value {
        let open = self.open_now();
        let (now_ns, kept, engines, latency, series, outcomes, models) = {
            let store = self.kept.store();
            let now_ns = self.now_ns(store.newest_ns());
            // Of a file the second that it ends in is as whole as it gets.
            let until = if self.time == super::Time::Newest { now_ns.saturating_add(SECOND) } else { now_ns };
            let recently = store.recently();
            let models: Vec<String> = store.models().take(MAX_MODELS).map(str::to_owned).collect();
            (
                now_ns,
                kept(&store),
                engines(&store),
                recently.latency(now_ns),
                recently.series(until),
                recently.outcomes(now_ns),
                models,
            )
        };
        let open_count = open.as_ref().map(|now| now.servers.iter().map(|server| server.open_count).sum::<usize>());
        let servers: Vec<Value> = match open.filter(|now| !now.servers.is_empty()) {
            Some(now) => now.servers.iter().map(server).collect(),
            None => engines.into_iter().map(|(server, engines)| as_left(&server, &engines, open_count)).collect(),
        };
        let outcomes: BTreeMap<&str, u64> = outcomes.iter().map(|(outcome, count)| (outcome.name(), *count)).collect();
        let mut kept = kept;
        kept["missed"] = json!(self.kept.missed());
        json!({
            "now_ns": ns(now_ns),
            "servers": servers,
            "open_count": open_count,
            "window_s": WINDOW,
            "latency": {
                "ttft": spread(&latency.ttft),
                "inter_token": spread(&latency.inter_token),
                "e2e": spread(&latency.e2e),
            },
            "series": series.iter().map(second).collect::<Vec<_>>(),
            "models": models,
            "outcomes": outcomes,
            "lost": lost(&self.telemetry),
            "tracer": tracer(&self.telemetry),
            "store": kept,
        })
    }
}

fn kept(store: &Store) -> Value {
    let dropped = store.dropped();
    json!({
        "requests": store.requests_count(),
        "steps": store.steps().count(),
        "bytes": store.held_bytes(),
        "limit_bytes": store.limits().bytes,
        "dropped_requests": dropped.requests,
        "dropped_steps": dropped.steps,
        "steps_without_launches": store.steps().launches_dropped(),
    })
}

fn server(of: &ServerNow) -> Value {
    json!({
        "server": of.server,
        "open_count": of.open_count,
        "engines": of.engines.iter().map(engine).collect::<Vec<_>>(),
    })
}

fn engine(of: &EngineNow) -> Value {
    json!({
        "engine": of.engine,
        "running": of.running,
        "waiting": of.waiting,
        "kv_cache_usage": of.kv_cache_usage,
        "tokens": of.tokens,
    })
}

/// The engines as their newest steps left them: of a file, where nothing is open now, or where what is open is not known.
fn engines(store: &Store) -> BTreeMap<Arc<str>, Vec<Value>> {
    let mut servers: BTreeMap<Arc<str>, Vec<Value>> = BTreeMap::new();
    for (key, steps) in store.steps().engines() {
        let stats = steps.back().and_then(|step| step.stats);
        servers.entry(Arc::clone(&key.server)).or_default().push(json!({
            "engine": key.engine,
            "running": stats.map(|stats| stats.running),
            "waiting": stats.map(|stats| stats.waiting),
            "kv_cache_usage": stats.map(|stats| stats.kv_cache_usage),
            "tokens": null,
        }));
    }
    servers
}

/// `open_count`: 0, or not known.
fn as_left(server: &str, engines: &[Value], open_count: Option<usize>) -> Value {
    json!({"server": server, "open_count": open_count, "engines": engines})
}

/// `buckets`: the upper edge of each, and how many are in it and not in the one before.
fn spread(of: &Histogram) -> Value {
    json!({
        "count": of.count(),
        "p50": of.quantile(0.5),
        "p95": of.quantile(0.95),
        "p99": of.quantile(0.99),
        "buckets": of.shown(),
    })
}

fn second(of: &Second) -> Value {
    json!({
        "t": of.at,
        "requests": of.requests,
        "failed": of.failed,
        "output_tokens": of.output_tokens,
        "running": of.queues.map(|queues| queues.running),
        "waiting": of.queues.map(|queues| queues.waiting),
        "kv_cache_usage": of.queues.map(|queues| queues.kv_cache_usage),
    })
}

/// What was lost, by where; nothing where nothing was.
fn lost(telemetry: &Telemetry) -> BTreeMap<&'static str, u64> {
    let stages = LossStage::ALL.into_iter().map(|stage| (stage.name(), telemetry.lost(stage)));
    let limit = ("spans_over_limit", telemetry.spans_dropped_limit.load(Relaxed));
    stages.chain([limit]).filter(|(_, count)| *count > 0).collect()
}

fn tracer(telemetry: &Telemetry) -> Value {
    let used = Usage::read();
    json!({
        "cpu_seconds": used.map(|used| used.cpu_seconds),
        "memory_bytes": used.map(|used| used.resident_bytes),
        "events": Probe::ALL.into_iter().map(|probe| telemetry.delivered(probe)).sum::<u64>(),
    })
}
