//! Every HTTP request that a client sent has exactly one access-log object, and it says what the client saw.

use serde_json::Value;

use crate::traffic::{Kind, Sent};

/// What a kind of server lets us expect.
#[derive(Debug, Clone, Copy)]
pub struct Expect {
    /// The tokenizer library is probed, so `tokenize` is known.
    pub tokenizer: bool,
    /// Only requests begun after this moment are judged, unix seconds: when the tracer was attached.
    pub since: f64,
}

/// Index in `log` of the record of each of `sent`, and what is wrong.
pub fn check(sent: &[Sent], log: &[Value], model: &str, expect: Expect) -> (Vec<Option<usize>>, Vec<String>) {
    let mut faults = Vec::new();
    let mut spans = std::collections::BTreeSet::new();
    for record in log.iter().filter(|record| !spans.insert((record["trace_id"].as_str(), record["span_id"].as_str()))) {
        faults.push(format!("another record has the same trace_id and span_id: {record}"));
    }
    let (found, taken) = assign(sent, log, expect);
    for (request, found) in sent.iter().zip(&found).filter(|(request, _)| request.started >= expect.since) {
        match found {
            None => faults.push(format!("no record of {request:?}")),
            Some(index) => {
                let wrong = differences(request, &log[*index], model, expect);
                if !wrong.is_empty() {
                    faults.push(format!("{}\n  sent {request:?}\n  logged {}", wrong.join("; "), log[*index]));
                }
            }
        }
    }
    for (record, _) in log.iter().zip(&taken).filter(|(_, taken)| !**taken) {
        // Of one begun before the attach the HTTP side may be unseen, and with it all that would tell whose it is.
        if expect.since > 0.0 && (record["method"].is_null() || finished(record) < expect.since) {
            continue;
        }
        faults.push(format!("a record of no request: {record}"));
    }
    (found, faults)
}

/// Joins requests and records: names first, by falling certainty; then what is left, by what it looks like and when.
fn assign(sent: &[Sent], log: &[Value], expect: Expect) -> (Vec<Option<usize>>, Vec<bool>) {
    let mut taken = vec![false; log.len()];
    let mut found = vec![None; sent.len()];
    // One that is judged has a record; one from before the attach may have none, and must not take another's.
    let (judged, early): (Vec<usize>, Vec<usize>) =
        (0..sent.len()).partition(|index| sent[*index].started >= expect.since);
    let order = [judged, early].concat();
    for same in [by_trace, by_request_id, by_response_id, by_looks] {
        for &index in &order {
            if found[index].is_some() {
                continue;
            }
            let request = &sent[index];
            let apart = |record: &Value| (finished(record) - request.started - request.e2e).abs();
            let candidates = (0..log.len()).filter(|record| !taken[*record] && same(request, &log[*record]));
            if let Some(nearest) = candidates.min_by(|a, b| apart(&log[*a]).total_cmp(&apart(&log[*b]))) {
                taken[nearest] = true;
                found[index] = Some(nearest);
            }
        }
    }
    (found, taken)
}

/// When a record's request was over, unix seconds.
fn finished(record: &Value) -> f64 {
    let time = record["time"].as_str().and_then(|time| time.parse::<jiff::Timestamp>().ok());
    time.map_or(0.0, |time| time.as_nanosecond() as f64 / 1e9)
}

fn by_trace(sent: &Sent, record: &Value) -> bool {
    sent.trace.as_ref().is_some_and(|(trace, _)| record["trace_id"] == trace.as_str())
}

/// The log has the id as the client sees it: the response's, which ends with what the client sent.
fn by_request_id(sent: &Sent, record: &Value) -> bool {
    let logged = record["request_id"].as_str();
    sent.trace.is_none()
        && sent
            .request_id
            .as_ref()
            .is_some_and(|id| logged.is_some_and(|logged| logged == id || logged.ends_with(&format!("-{id}"))))
}

fn by_response_id(sent: &Sent, record: &Value) -> bool {
    sent.trace.is_none() && sent.id.is_some() && record["request_id"].as_str() == sent.id.as_deref()
}

/// Aborted and rejected requests without a name.
fn by_looks(sent: &Sent, record: &Value) -> bool {
    sent.trace.is_none()
        && sent.id.is_none()
        && record["path"] == sent.path
        && record["status"].as_u64() == sent.status.map(u64::from)
        && (record["outcome"] == "abort") == sent.aborted
}

fn differences(sent: &Sent, record: &Value, model: &str, expect: Expect) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut same = |what: &str, logged: &Value, wanted: Value| {
        if *logged != wanted {
            wrong.push(format!("{what} is {logged}, not {wanted}"));
        }
    };
    same("v", &record["v"], 1.into());
    same("method", &record["method"], sent.method.into());
    same("path", &record["path"], sent.path.into());
    if let Some(status) = sent.status {
        same("status", &record["status"], status.into());
    }
    let rejected = sent.status.is_some_and(|status| status >= 400);
    if let Some((trace, _)) = &sent.trace {
        same("trace_id", &record["trace_id"], trace.as_str().into());
    }
    if let Some(id) = &sent.id {
        same("request_id", &record["request_id"], id.as_str().into());
    }
    if rejected {
        same("outcome", &record["outcome"], "rejected".into());
        same("generations", &record["generations"], Value::Array(Vec::new()));
        return wrong;
    }
    same("model", &record["model"], model.into());
    same("stream", &record["stream"], sent.stream.into());
    if sent.aborted {
        same("outcome", &record["outcome"], "abort".into());
        // Events were read by the client, so that many tokens at least were made.
        if record["output_tokens"].as_u64().unwrap_or(0) < sent.events {
            wrong.push(format!("{} output tokens, but {} events were read", record["output_tokens"], sent.events));
        }
        return wrong;
    }
    same("incomplete", &record["incomplete"], Value::Null);
    let generations = record["generations"].as_array().map_or(0, Vec::len);
    same("number of generations", &generations.into(), sent.generations.into());
    if let Some(tokens) = sent.prompt_tokens {
        same("prompt_tokens", &record["prompt_tokens"], tokens.into());
    }
    if sent.kind != Kind::Embedding {
        if let Some(tokens) = sent.completion_tokens {
            same("output_tokens", &record["output_tokens"], tokens.into());
        }
        let mut logged: Vec<&str> =
            record["finish_reasons"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let mut seen: Vec<&str> = sent.finish_reasons.iter().map(String::as_str).collect();
        for reasons in [&mut logged, &mut seen] {
            reasons.sort_unstable();
            reasons.dedup();
        }
        if logged != seen {
            wrong.push(format!("finish_reasons are {logged:?}, not {seen:?}"));
        }
        if !record["outcome"].as_str().is_some_and(|outcome| seen.contains(&outcome)) {
            wrong.push(format!("outcome {} is none of {seen:?}", record["outcome"]));
        }
    }
    if let Some(cached) = sent.cached_tokens.filter(|_| sent.generations == 1)
        && record["cached_tokens"].as_u64() != Some(cached)
    {
        wrong.push(format!("cached_tokens is {}, not {cached}", record["cached_tokens"]));
    }
    wrong.extend(times(sent, &record["seconds"], expect));
    wrong
}

/// Durations are there, and fit into what the client measured.
fn times(sent: &Sent, seconds: &Value, expect: Expect) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut names = vec!["queue", "prefill", "ttft", "e2e"];
    if expect.tokenizer {
        names.push("parse");
        // Token ids need no tokenizer.
        if sent.kind != Kind::Tokens {
            names.push("tokenize");
        }
    }
    if sent.kind != Kind::Embedding {
        names.extend(["decode", "detokenize"]);
    }
    for name in names {
        match seconds[name].as_f64() {
            None => wrong.push(format!("seconds.{name} is {}", seconds[name])),
            // The server cannot be longer about it than its client saw; scheduling on a full machine adds to the client.
            Some(value) if value < 0.0 || value > sent.e2e + 0.005 => {
                wrong.push(format!("seconds.{name} is {value}, the client saw {} in all", sent.e2e));
            }
            Some(_) => {}
        }
    }
    // A pipelined request waits for the one before it, on its client's clock.
    if let Some(e2e) = seconds["e2e"].as_f64()
        && sent.kind != Kind::Pipelined
        && (e2e - sent.e2e).abs() > 0.1 + sent.e2e * 0.1
    {
        wrong.push(format!("seconds.e2e is {e2e}, the client saw {}", sent.e2e));
    }
    wrong
}
