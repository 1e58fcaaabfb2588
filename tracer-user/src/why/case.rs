//! The tree of a request, as a judge reads it.
//!
//! Enters: a tree. Leaves: its phases by name. Of several engine requests the one that took longest is judged: the response waited for it.
//! What is not there is `None`; a tree that is not built as ours are gives less, and nothing wrong.

use std::collections::BTreeSet;

use crate::model::keys::{attribute, span};
use crate::output::{Outcome, Span, SpanId, Trace, TraceId, Value};

#[derive(Debug)]
pub(super) struct Case<'a> {
    pub(super) root: &'a Span,
    pub(super) outcome: Option<Outcome>,
    pub(super) parse: Option<&'a Span>,
    pub(super) tokenize: Option<&'a Span>,
    pub(super) detokenize: Option<&'a Span>,
    /// The engine requests that it had; one of them is judged.
    pub(super) generations: usize,
    /// The engine that ran it, where that is known.
    pub(super) engine: Option<u32>,
    /// How often that engine preempted it, as it says.
    pub(super) preemptions: u64,
    pub(super) waits: Vec<&'a Span>,
    pub(super) prefill: Option<&'a Span>,
    pub(super) decode: Option<&'a Span>,
    /// Parts of `decode`, in order.
    pub(super) pieces: Vec<&'a Span>,
    /// Steps that ended a prompt of this request, and its tokens without cached ones.
    own_prompts: Vec<((TraceId, SpanId), u64)>,
}

impl<'a> Case<'a> {
    /// `None` where there is no root.
    pub(super) fn of(trace: &'a Trace) -> Option<Self> {
        let root = trace.spans.first()?;
        let named = |name| trace.spans.iter().skip(1).filter(move |other| other.name == name);
        // They end with their last sign; the one that ends last was waited for.
        let longest = named(span::GENERATION).max_by_key(|of| of.end_ns);
        let parent = longest.map_or(root.span_id, |of| of.span_id);
        let below = |name, parent| named(name).filter(move |other| other.parent == Some(parent));
        let decode = below(span::DECODE, parent).next();
        let parts: BTreeSet<&str> = BTreeSet::from([span::DECODE_STEP, span::DECODE_STEPS]);
        let mut pieces: Vec<&Span> = trace.spans.iter().filter(|other| parts.contains(other.name)).collect();
        pieces.retain(|piece| decode.is_some_and(|decode| piece.parent == Some(decode.span_id)));
        pieces.sort_by_key(|piece| piece.start_ns);
        let of_engine = longest.unwrap_or(root);
        Some(Self {
            root,
            outcome: trace.merit.outcome,
            parse: named(span::PARSE).next(),
            tokenize: named(span::TOKENIZE).next(),
            detokenize: named(span::DETOKENIZE).next(),
            generations: named(span::GENERATION).count().max(1),
            engine: int(of_engine, attribute::ENGINE_INDEX).and_then(|engine| u32::try_from(engine).ok()),
            preemptions: int(of_engine, attribute::PREEMPTIONS).unwrap_or(0),
            waits: below(span::QUEUE, parent).collect(),
            prefill: below(span::PREFILL, parent).next(),
            decode,
            pieces,
            own_prompts: named(span::PREFILL).filter_map(prompt_of).collect(),
        })
    }

    /// First request byte read to last response byte written, ns.
    pub(super) fn whole(&self) -> u64 {
        took(self.root)
    }

    /// When its engine gave the last token that is known of.
    pub(super) fn last_token(&self) -> Option<u64> {
        // Where the HTTP side alone is seen, this is what was written, not what the engine gave.
        let decode = self.decode.filter(|decode| !is_inferred(decode));
        decode.or(self.prefill).map(|of| of.end_ns)
    }

    /// From when it was first scheduled to its last token.
    pub(super) fn in_engine(&self) -> Option<(u64, u64)> {
        let from = self.prefill.or(self.decode)?.start_ns;
        Some((from, self.decode.or(self.prefill)?.end_ns))
    }

    /// Waits for a first place, and those behind a preemption.
    pub(super) fn waits_for(&self, reason: &str) -> impl Iterator<Item = &'a Span> {
        self.waits.iter().copied().filter(move |wait| text(wait, attribute::REASON).unwrap_or("admission") == reason)
    }

    /// Tokens of its own prompts that were done in a step.
    pub(super) fn own_prompt_in(&self, step: (TraceId, SpanId)) -> u64 {
        let own = self.own_prompts.iter().filter(|(id, _)| *id == step);
        own.fold(0, |sum, (_, tokens)| sum.saturating_add(*tokens))
    }
}

fn prompt_of(prefill: &Span) -> Option<((TraceId, SpanId), u64)> {
    let link = prefill.links.first()?;
    Some(((link.trace_id, link.span_id), uncached(prefill)?))
}

/// Tokens of a prompt that were computed.
pub(super) fn uncached(prefill: &Span) -> Option<u64> {
    let cached = int(prefill, attribute::CACHED).unwrap_or(0);
    int(prefill, attribute::PROMPT_TOKENS).map(|tokens| tokens.saturating_sub(cached))
}

/// How long a span is, ns.
pub(super) fn took(of: &Span) -> u64 {
    of.end_ns.saturating_sub(of.start_ns)
}

/// Whether it is said that this is so.
pub(super) fn is(of: &Span, key: &str) -> bool {
    of.attributes.iter().any(|(known, value)| *known == key && *value == Value::Bool(true))
}

pub(super) fn int(of: &Span, key: &str) -> Option<u64> {
    of.attributes.iter().find_map(|(known, value)| match value {
        Value::Int(number) if *known == key => u64::try_from(*number).ok(),
        _ => None,
    })
}

/// A number that is one.
pub(super) fn float(of: &Span, key: &str) -> Option<f64> {
    of.attributes.iter().find_map(|(known, value)| match value {
        Value::Float(number) if *known == key && number.is_finite() => Some(*number),
        _ => None,
    })
}

pub(super) fn text<'a>(of: &'a Span, key: &str) -> Option<&'a str> {
    of.attributes.iter().find_map(|(known, value)| match value {
        Value::Str(text) if *known == key => Some(&**text),
        _ => None,
    })
}

pub(super) fn is_inferred(of: &Span) -> bool {
    text(of, attribute::PROVENANCE) == Some("inferred")
}
