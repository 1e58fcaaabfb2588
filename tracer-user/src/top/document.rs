//! One picture for programs and for `--once`: JSON of schema `inferspan.top/1`, or text.

use serde_json::{Value, json};

use super::cells::Cells;
use super::picture::{Picture, Row, Sort, What, stage};
use crate::export::meter::Figures;
use crate::export::terminal::table::{PHASES, joined};
use crate::export::terminal::{Style, live};

/// Changes with every change that a reader would notice.
pub const SCHEMA: &str = "inferspan.top/1";
/// Rows of text.
const MAX_ROWS: usize = 40;

/// As text; every line fits the width.
pub fn text(picture: &Picture, sort: Sort, style: Style) -> String {
    let figures = &picture.figures;
    let room = style.width;
    let mut state = live::state(figures);
    state.extend(live::cost(figures));
    state.extend(picture.missed());
    let mut lines = vec![
        style.inked(&joined(&live::load(figures), room, style)),
        style.inked(&joined(&state, room, style)),
        picture.counts(),
    ];
    let rows = picture.rows(sort, "");
    if !rows.is_empty() {
        let cells = Cells::of(picture, style);
        lines.push(style.paint(2, cells.header().trim_end()));
        lines.extend(rows.iter().take(MAX_ROWS).map(|row| style.inked(&cells.row(picture, row)).trim_end().to_owned()));
        if rows.len() > MAX_ROWS {
            lines.push(format!("{} {} more", if style.unicode { "…" } else { "..." }, rows.len() - MAX_ROWS));
        }
    }
    lines.join("\n") + "\n"
}

/// As JSON. Times are seconds; what is not known is null.
pub fn json(picture: &Picture, sort: Sort) -> Value {
    let rows = picture.rows(sort, "");
    let open = picture.now.as_ref().map(|_| rows.iter().filter_map(|row| open(picture, row)).collect::<Vec<_>>());
    let over = rows.iter().filter_map(|row| over(picture, row));
    let servers = picture.servers().iter().map(|server| {
        let engines = server.engines.iter().map(|engine| {
            json!({
                "engine": engine.engine,
                "running": engine.running,
                "waiting": engine.waiting,
                "kv_cache_usage": engine.kv_cache_usage,
                "tokens": engine.tokens,
            })
        });
        json!({
            "server": server.server,
            "open_count": server.open_count,
            "engines": engines.collect::<Vec<_>>(),
        })
    });
    json!({
        "schema": SCHEMA,
        "servers": servers.collect::<Vec<_>>(),
        "figures": figures(&picture.figures),
        "open_count": picture.open_count(),
        "open": open,
        "over_count": picture.over_count,
        "missed": picture.missed,
        "over": over.collect::<Vec<_>>(),
        "steps": picture.steps.iter().map(steps).collect::<Vec<_>>(),
    })
}

fn figures(of: &Figures) -> Value {
    json!({
        "requests": of.requests,
        "failed": of.failed,
        "requests_per_second": of.requests_rate,
        "failed_per_second": of.failed_rate,
        "tokens_per_second": of.tokens_rate,
        "ttft_p50": of.ttft_p50,
        "ttft_p95": of.ttft_p95,
        "running": of.running,
        "waiting": of.waiting,
        "kv_cache_usage": of.kv_cache_usage,
        "lost": of.lost,
        "tracer_cpu": of.cpu,
        "tracer_memory_bytes": of.memory_bytes,
    })
}

fn phases(row: &Row) -> Value {
    let phase = |((name, ..), seconds): (&(&str, char, char, u8), f64)| json!({ "name": name, "seconds": seconds });
    PHASES.iter().zip(row.phases).map(phase).collect()
}

fn open(picture: &Picture, row: &Row) -> Option<Value> {
    let What::Open(server, at) = row.what else { return None };
    let (server, open) = picture.open(server, at)?;
    Some(json!({
        "server": server.server,
        "id": open.id,
        "route": open.route,
        "model": open.model,
        "stage": stage(open.stage),
        "age": row.age,
        "ttft": row.ttft,
        "queue": row.queue,
        "time_per_output_token": row.per_token,
        "prompt_tokens": open.prompt_tokens,
        "output_tokens": open.output_tokens,
        "preemptions": open.preemptions,
        "engine": open.engine,
        "phases": phases(row),
    }))
}

/// The access log's record, and the phases.
fn over(picture: &Picture, row: &Row) -> Option<Value> {
    let What::Over(at) = row.what else { return None };
    let record = picture.over.get(at)?.record.as_deref()?;
    let mut value = serde_json::to_value(record).ok()?;
    value.as_object_mut()?.insert("phases".into(), phases(row));
    Some(value)
}

fn steps(of: &super::picture::EngineSteps) -> Value {
    let step = |step: &std::sync::Arc<crate::output::EngineStep>| {
        json!({
            "seconds": step.end_ns.saturating_sub(step.start_ns) as f64 / 1e9,
            "requests": step.requests,
            "prefill_tokens": step.prefill_tokens,
            "decode_tokens": step.decode_tokens,
            "running": step.stats.map(|stats| stats.running),
            "waiting": step.stats.map(|stats| stats.waiting),
            "kv_cache_usage": step.stats.map(|stats| stats.kv_cache_usage),
        })
    };
    json!({ "server": &*of.server, "engine": of.engine, "steps": of.steps.iter().map(step).collect::<Vec<_>>() })
}
