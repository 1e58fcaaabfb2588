//! One request: its record, its spans, and why it took as long as it did.

use serde_json::{Value, json};

use super::{Shown, requests, spans};
use crate::store::Request;
use crate::why::{self, Cause};

impl Shown {
    /// `None` where no such request is kept.
    pub(super) fn request(&self, trace: &str, span: &str) -> Option<Value> {
        let (found, around) = {
            let store = self.kept.store();
            let is_it = |request: &&Request| {
                let root = request.trace.spans.first();
                root.is_some_and(|root| root.trace_id.to_string() == trace && root.span_id.to_string() == span)
            };
            let found = store.find(trace).into_iter().find(is_it).cloned()?;
            let around = why::around(&store, &found.trace);
            (found, around)
        };
        let verdict = why::explain(&found.trace, &around);
        Some(json!({
            "record": requests::record(&found),
            "spans": found.trace.spans.iter().map(spans::span).collect::<Vec<_>>(),
            "why": {
                "causes": verdict.causes.iter().map(cause).collect::<Vec<_>>(),
                "unseen": verdict.unseen,
            },
        }))
    }
}

fn cause(of: &Cause) -> Value {
    json!({
        "kind": of.kind.name(),
        "seconds": of.seconds,
        "share": of.share,
        "evidence": of.evidence,
        "inferred": of.inferred,
    })
}
