//! Every record of the access log has its trace, with every span of the tree, each inside its parent in time.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use serde_json::Value;

use super::Expect;
use crate::traffic::Sent;

/// One span of an OTLP/JSON file.
#[derive(Debug, Clone)]
struct Span {
    id: String,
    parent: String,
    name: String,
    start: u64,
    end: u64,
    attributes: BTreeMap<String, Value>,
    events: Vec<String>,
}

/// All spans of a file, by trace id.
#[derive(Debug, Default)]
pub struct Traces(BTreeMap<String, Vec<Span>>);

/// OTLP/JSON writes 64-bit numbers as strings; plain numbers are allowed when read.
fn number(value: &Value) -> u64 {
    value.as_u64().or_else(|| value.as_str()?.parse().ok()).unwrap_or(0)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

impl Traces {
    /// A file of export requests, one a line.
    pub fn read(path: &Path) -> io::Result<Self> {
        let mut traces = Self::default();
        for line in fs::read_to_string(path)?.lines() {
            let request: Value =
                serde_json::from_str(line).map_err(|error| io::Error::other(format!("{error}: {line}")))?;
            let resources = request["resourceSpans"].as_array().into_iter().flatten();
            let scopes = resources.flat_map(|resource| resource["scopeSpans"].as_array().into_iter().flatten());
            for span in scopes.flat_map(|scope| scope["spans"].as_array().into_iter().flatten()) {
                let attributes = span["attributes"].as_array().into_iter().flatten();
                traces.0.entry(text(&span["traceId"])).or_default().push(Span {
                    id: text(&span["spanId"]),
                    parent: text(&span["parentSpanId"]),
                    name: text(&span["name"]),
                    start: number(&span["startTimeUnixNano"]),
                    end: number(&span["endTimeUnixNano"]),
                    attributes: attributes.map(|pair| (text(&pair["key"]), pair["value"].clone())).collect(),
                    events: span["events"].as_array().into_iter().flatten().map(|event| text(&event["name"])).collect(),
                });
            }
        }
        Ok(traces)
    }

    /// Attributes of the spans with this name, of every trace: the values that OTLP/JSON gives.
    pub fn attributes(&self, name: &str) -> Vec<&BTreeMap<String, Value>> {
        let spans = self.0.values().flatten().filter(|span| span.name == name);
        spans.map(|span| &span.attributes).collect()
    }

    /// Traces in the file.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// `found` is the index in `log` of each of `sent`'s records.
pub fn check(sent: &[Sent], found: &[Option<usize>], log: &[Value], traces: &Traces, expect: Expect) -> Vec<String> {
    let mut faults = Vec::new();
    let judged = sent.iter().zip(found).filter(|(request, _)| request.started >= expect.since);
    for (request, index) in judged.filter_map(|(request, index)| Some((request, (*index)?))) {
        let record = &log[index];
        let wrong = match traces.0.get(&text(&record["trace_id"])) {
            None => vec!["no trace".to_owned()],
            Some(spans) => tree(request, record, spans, expect),
        };
        if !wrong.is_empty() {
            faults.push(format!("trace {}: {} ({request:?})", record["trace_id"], wrong.join("; ")));
        }
    }
    faults
}

fn tree(sent: &Sent, record: &Value, spans: &[Span], expect: Expect) -> Vec<String> {
    let Some(root) = spans.iter().find(|span| record["span_id"] == span.id.as_str()) else {
        return vec![format!("no span {}", record["span_id"])];
    };
    let mut wrong = Vec::new();
    if root.name != "inference_request" {
        wrong.push(format!("the root is called {}", root.name));
    }
    let parent = sent.trace.as_ref().map_or("", |(_, span)| span.as_str());
    if root.parent != parent {
        wrong.push(format!("the root's parent is {:?}, not {parent:?}", root.parent));
    }
    if root.attributes.get("inferspan.outcome").map(|value| &value["stringValue"]) != Some(&record["outcome"]) {
        wrong.push(format!("inferspan.outcome is {:?}", root.attributes.get("inferspan.outcome")));
    }
    let mut outside = Vec::new();
    inside(root, spans, &mut outside);
    if outside.len() > 3 {
        wrong.push(format!("{} spans are wrong, among them", outside.len()));
        outside.truncate(3);
    }
    wrong.extend(outside);
    if sent.status.is_some_and(|status| status >= 400) {
        return wrong;
    }
    if sent.aborted {
        if !root.events.iter().any(|event| event == "client_disconnected") {
            wrong.push("no event client_disconnected".to_owned());
        }
        return wrong;
    }
    phases(sent, record, root, spans, expect, &mut wrong);
    wrong
}

/// The phases of a request that went well.
fn phases(sent: &Sent, record: &Value, root: &Span, spans: &[Span], expect: Expect, wrong: &mut Vec<String>) {
    let children = |parent: &Span| -> Vec<&Span> { spans.iter().filter(|span| span.parent == parent.id).collect() };
    let below = children(root);
    let has = |spans: &[&Span], name: &str| spans.iter().any(|span| span.name == name);
    let mut names = vec!["parse_request"];
    if expect.tokenizer && sent.kind != crate::traffic::Kind::Tokens {
        names.push("tokenize");
    }
    if sent.kind != crate::traffic::Kind::Embedding {
        names.push("detokenize");
    }
    wrong.extend(names.iter().filter(|name| !has(&below, name)).map(|name| format!("no span {name}")));
    let generations: Vec<Vec<&Span>> = if sent.generations == 1 {
        vec![below]
    } else {
        below.iter().filter(|span| span.name.starts_with("generation")).map(|span| children(span)).collect()
    };
    if generations.len() != sent.generations {
        wrong.push(format!("{} generation spans for {} generations", generations.len(), sent.generations));
    }
    let mut tokens: Vec<u64> =
        record["generations"].as_array().into_iter().flatten().map(|g| number(&g["output_tokens"])).collect();
    tokens.sort_unstable();
    let mut decodes = 0;
    for spans in &generations {
        for name in ["queue_wait", "prefill"] {
            if !has(spans, name) {
                wrong.push(format!("no span {name}"));
            }
        }
        for decode in spans.iter().filter(|span| span.name == "decode") {
            decodes += 1;
            if children(decode).is_empty() {
                wrong.push("a decode without a decode_step".to_owned());
            }
        }
    }
    let wanted = tokens.iter().filter(|tokens| **tokens > 1).count();
    if decodes < wanted {
        wrong.push(format!("{decodes} decode spans for {wanted} generations with more than one token"));
    }
}

/// Everything below `parent` lies inside it, says how it is known, and ends no earlier than it starts.
fn inside(parent: &Span, spans: &[Span], wrong: &mut Vec<String>) {
    for child in spans.iter().filter(|span| span.parent == parent.id && span.id != parent.id) {
        if child.start < parent.start || child.end > parent.end || child.end < child.start {
            wrong.push(format!(
                "{} [{}, {}] is not inside {} [{}, {}]",
                child.name, child.start, child.end, parent.name, parent.start, parent.end
            ));
        }
        if !child.attributes.contains_key("inferspan.provenance") {
            wrong.push(format!("{} has no inferspan.provenance", child.name));
        }
        inside(child, spans, wrong);
    }
}
