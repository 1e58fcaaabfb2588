//! Engine steps: the newest of those that were asked for, oldest first.

use std::sync::Arc;

use serde_json::{Value, json};

use super::query::Query;
use super::{Shown, ns, seconds};
use crate::output::EngineStep;
use crate::output::cuda::{Mode, StepCuda};

/// Steps that are told where no `limit` is asked for, and at most.
const STEPS: usize = 1_000;
const MAX_STEPS: usize = 50_000;

impl Shown {
    pub(super) fn steps(&self, query: &Query) -> Result<Value, String> {
        let (server, engine) = (query.text("server"), query.number::<u32>("engine")?);
        let (from, to) = (query.number("from_ns")?.unwrap_or(0), query.number("to_ns")?.unwrap_or(u64::MAX));
        let limit = query.number("limit")?.unwrap_or(STEPS).min(MAX_STEPS);
        let mut found: Vec<(Arc<str>, Arc<EngineStep>)> = {
            let store = self.kept.store();
            let steps = store.steps();
            let keys = steps.engines().map(|(key, _)| key);
            let keys = keys.filter(|key| server.is_none_or(|server| *key.server == *server));
            let keys = keys.filter(|key| engine.is_none_or(|engine| key.engine == engine));
            let its = keys.flat_map(|key| {
                let its = steps.during(key, from, to).rev().take(limit);
                its.map(|step| (Arc::clone(&key.server), Arc::clone(step)))
            });
            its.collect()
        };
        found.sort_by_key(|(_, step)| (step.end_ns, step.engine));
        let first = found.len().saturating_sub(limit);
        let told: Vec<Value> = found[first..].iter().map(|(server, step)| told(server, step)).collect();
        Ok(json!({"steps": told}))
    }
}

fn told(server: &str, step: &EngineStep) -> Value {
    json!({
        "server": server,
        "engine": step.engine,
        "trace_id": step.trace_id,
        "span_id": step.span_id,
        "start_ns": ns(step.start_ns),
        "end_ns": ns(step.end_ns),
        "requests": step.requests,
        "prefill_tokens": step.prefill_tokens,
        "decode_tokens": step.decode_tokens,
        "running": step.stats.map(|stats| stats.running),
        "waiting": step.stats.map(|stats| stats.waiting),
        "kv_cache_usage": step.stats.map(|stats| stats.kv_cache_usage),
        "cuda": step.cuda.as_deref().map(cuda),
    })
}

fn cuda(of: &StepCuda) -> Value {
    json!({
        "launches": of.launches,
        "graph_launches": of.graph_launches,
        "gap_s": seconds(of.gap_ns),
        "wait_s": seconds(of.wait_ns),
        "mode": of.mode().map(Mode::name),
    })
}
