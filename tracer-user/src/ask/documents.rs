//! Answers as programs read them.

use serde_json::{Value, json};

use crate::store::Request;
use crate::ui::requests::record;
use crate::ui::spans::span;
use crate::why::Verdict;
use crate::why::slow::Slowness;

/// One of the `requests` of an `inferspan.why/1`.
pub(super) fn why(request: &Request, verdict: &Verdict, paragraph: &str, how: Option<&Slowness>) -> Value {
    let root = request.trace.spans.first();
    let record = request.record.as_deref();
    json!({
        "trace_id": root.map(|root| root.trace_id),
        "span_id": root.map(|root| root.span_id),
        "request_id": record.and_then(|record| record.request_id.as_deref()),
        "server": request.trace.server.instance(),
        "outcome": request.trace.merit.outcome,
        "seconds": request.trace.merit.seconds,
        "times_the_median": how.map(|how| json!({"first_token": how.first_token, "per_token": how.per_token})),
        "causes": verdict.causes,
        "unseen": verdict.unseen,
        "text": paragraph,
    })
}

/// One of the `requests` of an `inferspan.trace/1`.
pub(super) fn trace(request: &Request, verdict: &Verdict, paragraph: &str) -> Value {
    json!({
        "record": record(request),
        "spans": request.trace.spans.iter().map(span).collect::<Vec<_>>(),
        "why": {"causes": verdict.causes, "unseen": verdict.unseen, "text": paragraph},
    })
}
