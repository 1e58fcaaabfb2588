//! What a request's tree says that its access record said.
//!
//! Enters: a tree. Leaves: the record; `None` of a request that was still open when its run ended. What no span or attribute says is `None`;
//! of the further engine requests of a beam search, which are folded in a tree, no records are made.

use super::trees::Tree;
use super::words;
use crate::model::keys::{attribute, event, span};
use crate::output::{
    AccessRecord, FinishReason, GenerationRecord, GenerationSeconds, Incomplete, Merit, RequestSeconds, Span,
    UnixNanos, Value,
};

/// What a sampler would be told of it; whether its caller's was sampled, the tree does not say.
pub(super) fn merit(tree: &Tree) -> Merit {
    let Some(root) = tree.spans.first() else { return Merit::default() };
    let outcome = text(root, attribute::OUTCOME).and_then(words::outcome);
    Merit { outcome, seconds: seconds_of(root), parent_sampled: None }
}

pub(super) fn record(tree: &Tree) -> Option<AccessRecord> {
    let root = tree.spans.first()?;
    let generations = generations(tree);
    let reasons = match value(root, attribute::FINISH_REASONS) {
        Some(Value::StrList(reasons)) => reasons.iter().filter_map(|reason| words::finish_reason(reason)).collect(),
        _ => Vec::new(),
    };
    let owned = |key| text(root, key).map(str::to_owned);
    Some(AccessRecord {
        v: 1,
        time: UnixNanos(root.end_ns),
        trace_id: root.trace_id,
        span_id: root.span_id,
        request_id: owned(attribute::RESPONSE_ID),
        method: owned(attribute::HTTP_METHOD),
        path: owned(attribute::URL_PATH),
        status: count(root, attribute::HTTP_STATUS).and_then(|status| u16::try_from(status).ok()),
        model: owned(attribute::REQUEST_MODEL),
        stream: flag(root, attribute::REQUEST_STREAM),
        outcome: text(root, attribute::OUTCOME).and_then(words::outcome)?,
        finish_reasons: reasons,
        prompt_tokens: count(root, attribute::INPUT_TOKENS),
        cached_tokens: count(root, attribute::CACHED_TOKENS),
        output_tokens: count(root, attribute::OUTPUT_TOKENS),
        // It is said where there were any, and known where there was an engine request.
        preemptions: count(root, attribute::PREEMPTIONS).or_else(|| (!generations.is_empty()).then_some(0)),
        incomplete: incomplete(root),
        server: tree.server.instance(),
        seconds: seconds(tree, root),
        generations,
    })
}

fn incomplete(root: &Span) -> Incomplete {
    text(root, attribute::INCOMPLETE).map(words::incomplete).unwrap_or_default()
}

fn seconds(tree: &Tree, root: &Span) -> RequestSeconds {
    let took = |name| child(tree, root, name).map(seconds_of);
    let first_token = root.events.iter().find(|of| of.name == event::FIRST_TOKEN);
    let has_http = text(root, attribute::HTTP_METHOD).is_some();
    RequestSeconds {
        parse: took(span::PARSE),
        tokenize: took(span::TOKENIZE),
        queue: float(root, attribute::LATENCY_QUEUE),
        prefill: float(root, attribute::LATENCY_PREFILL),
        decode: float(root, attribute::LATENCY_DECODE),
        detokenize: took(span::DETOKENIZE),
        ttft: first_token.filter(|_| has_http).and_then(|of| between(root.start_ns, of.at_ns)),
        ttft_engine: float(root, attribute::LATENCY_TTFT),
        e2e: float(root, attribute::LATENCY_E2E),
    }
}

fn generations(tree: &Tree) -> Vec<GenerationRecord> {
    let Some(root) = tree.spans.first() else { return Vec::new() };
    let own: Vec<&Span> = tree.spans.iter().filter(|of| of.name == span::GENERATION).collect();
    if !own.is_empty() {
        return own.into_iter().filter_map(|of| generation(tree, of)).collect();
    }
    let Some(id) = text(root, attribute::ENGINE_REQUEST_ID) else { return Vec::new() };
    let reason = match value(root, attribute::FINISH_REASONS) {
        Some(Value::StrList(reasons)) => reasons.first().and_then(|reason| words::finish_reason(reason)),
        _ => None,
    };
    let said = GenerationSeconds {
        queue: float(root, attribute::LATENCY_QUEUE),
        prefill: float(root, attribute::LATENCY_PREFILL),
        decode: float(root, attribute::LATENCY_DECODE),
    };
    vec![GenerationRecord {
        engine_request_id: id.to_owned(),
        finish_reason: reason,
        prompt_tokens: count(root, attribute::INPUT_TOKENS),
        cached_tokens: count(root, attribute::CACHED_TOKENS),
        output_tokens: count(root, attribute::OUTPUT_TOKENS).unwrap_or(0),
        preemptions: count(root, attribute::PREEMPTIONS).unwrap_or(0),
        seconds: said,
    }]
}

/// One of several engine requests: its phases hang below its span.
fn generation(tree: &Tree, of: &Span) -> Option<GenerationRecord> {
    let below = |name| child(tree, of, name);
    let prefill = below(span::PREFILL);
    let reason: Option<FinishReason> = text(of, attribute::FINISH_REASON).and_then(words::finish_reason);
    Some(GenerationRecord {
        engine_request_id: text(of, attribute::ENGINE_REQUEST_ID)?.to_owned(),
        finish_reason: reason,
        prompt_tokens: prefill.and_then(|of| count(of, attribute::PROMPT_TOKENS)),
        cached_tokens: prefill.and_then(|of| count(of, attribute::CACHED)),
        output_tokens: count(of, attribute::TOKENS).unwrap_or(0),
        preemptions: count(of, attribute::PREEMPTIONS).unwrap_or(0),
        seconds: GenerationSeconds {
            // The first wait: the others are preemptions.
            queue: below(span::QUEUE).map(seconds_of),
            prefill: prefill.map(seconds_of),
            decode: below(span::DECODE).map(seconds_of),
        },
    })
}

/// The first child of this name.
fn child<'t>(tree: &'t Tree, parent: &Span, name: &str) -> Option<&'t Span> {
    tree.spans.iter().find(|of| of.name == name && of.parent == Some(parent.span_id))
}

fn seconds_of(span: &Span) -> f64 {
    span.end_ns.saturating_sub(span.start_ns) as f64 / 1e9
}

fn between(from: u64, to: u64) -> Option<f64> {
    Some(to.checked_sub(from)? as f64 / 1e9)
}

pub(super) fn value<'s>(span: &'s Span, key: &str) -> Option<&'s Value> {
    span.attributes.iter().find(|(known, _)| *known == key).map(|(_, value)| value)
}

pub(super) fn text<'s>(span: &'s Span, key: &str) -> Option<&'s str> {
    match value(span, key)? {
        Value::Str(text) => Some(text),
        _ => None,
    }
}

/// A number that counts something: none below 0.
pub(super) fn count(span: &Span, key: &str) -> Option<u64> {
    match value(span, key)? {
        Value::Int(n) => u64::try_from(*n).ok(),
        _ => None,
    }
}

/// A number that is one, of any sign.
pub(super) fn float(span: &Span, key: &str) -> Option<f64> {
    match value(span, key)? {
        Value::Float(x) => Some(*x).filter(|x| x.is_finite()),
        // JSON has one kind of number: 1.0 may come back as 1.
        Value::Int(n) => Some(*n as f64),
        _ => None,
    }
}

pub(super) fn flag(span: &Span, key: &str) -> Option<bool> {
    match value(span, key)? {
        Value::Bool(is) => Some(*is),
        _ => None,
    }
}
