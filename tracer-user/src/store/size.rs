//! How many bytes what is kept takes: its own, those behind it, and a share for the maps that find it.

use crate::output::{AccessRecord, EngineStep, GenerationRecord, Span, SpanLink, Trace, Value};

/// Of the places in maps and queues that an entry takes, bytes.
const INDEX: usize = 256;

pub fn of_trace(trace: &Trace) -> usize {
    size_of::<Trace>() + INDEX + trace.spans.iter().map(of_span).sum::<usize>()
}

pub fn of_record(record: &AccessRecord) -> usize {
    let texts = [&record.request_id, &record.method, &record.path, &record.model];
    let texts = texts.iter().map(|text| text.as_ref().map_or(0, String::capacity)).sum::<usize>();
    let generation = |of: &GenerationRecord| size_of::<GenerationRecord>() + of.engine_request_id.capacity();
    size_of::<AccessRecord>()
        + texts
        + record.server.capacity()
        + record.generations.iter().map(generation).sum::<usize>()
}

pub fn of_step(step: &EngineStep) -> usize {
    let cuda = step.cuda.as_ref().map_or(0, |cuda| {
        size_of_val(&**cuda)
            + size_of_val(&cuda.top[..])
            + size_of_val(&cuda.kernels[..])
            + cuda.graphs.iter().map(|graph| size_of_val(graph) + size_of_val(&graph.kernels[..])).sum::<usize>()
    });
    size_of::<EngineStep>() + INDEX / 2 + size_of_val(&step.batch[..]) + cuda
}

fn of_span(span: &Span) -> usize {
    size_of::<Span>()
        + span.trace_state.as_ref().map_or(0, String::capacity)
        + of_attributes(&span.attributes)
        + span.events.iter().map(|event| size_of_val(event) + of_attributes(&event.attributes)).sum::<usize>()
        + span.links.iter().map(|link| size_of::<SpanLink>() + of_attributes(&link.attributes)).sum::<usize>()
}

fn of_attributes(attributes: &[(&'static str, Value)]) -> usize {
    let behind = |value: &Value| match value {
        Value::Str(text) => text.len(),
        Value::StrList(texts) => texts.iter().map(|text| size_of_val(text) + text.len()).sum(),
        Value::Bool(_) | Value::Int(_) | Value::Float(_) => 0,
    };
    size_of_val(attributes) + attributes.iter().map(|(_, value)| behind(value)).sum::<usize>()
}
