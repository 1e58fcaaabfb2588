//! How many bytes what is kept takes: its own, those behind it, what an allocator takes beside, and a share for the maps that find it.

use std::sync::Arc;

use crate::output::cuda::StepCuda;
use crate::output::{AccessRecord, CudaCall, EngineStep, GenerationRecord, Span, Trace, Value};

/// What an allocation takes besides what was asked for: glibc's header, and half of the 16 bytes that it rounds up to.
const ALLOCATION: usize = 16;
/// Counts before what an `Arc` holds.
const COUNTS: usize = 16;
/// Of the places in maps and queues that a request, or a step, takes: its number in a map of numbers, in that of traces, and in a queue.
const INDEX: usize = 192;
/// Of the places that a name takes by which a request is found (or counted, as by its model's): the name itself, its place in the map, and
/// the list behind it.
const NAME: usize = 128;

pub fn of_trace(trace: &Trace) -> usize {
    let spans = behind(&trace.spans) + trace.spans.iter().map(behind_span).sum::<usize>();
    size_of::<Trace>() + COUNTS + ALLOCATION + INDEX + spans
}

pub fn of_record(record: &AccessRecord) -> usize {
    let texts = [&record.request_id, &record.method, &record.path, &record.model];
    let texts = texts.into_iter().flatten().chain([&record.server]).map(of_text).sum::<usize>();
    let own = [&record.request_id, &record.model].into_iter().flatten().map(|name| NAME + name.len()).sum::<usize>();
    let generation = |of: &GenerationRecord| of_text(&of.engine_request_id) + NAME + of.engine_request_id.len();
    let generations = behind(&record.generations) + record.generations.iter().map(generation).sum::<usize>();
    size_of::<AccessRecord>() + COUNTS + ALLOCATION + behind(&record.finish_reasons) + texts + own + generations
}

pub fn of_step(step: &EngineStep) -> usize {
    let batch = if step.batch.is_empty() { 0 } else { size_of_val(&step.batch[..]) + ALLOCATION };
    size_of::<EngineStep>() + COUNTS + ALLOCATION + INDEX + batch + step.cuda.as_deref().map_or(0, of_cuda)
}

/// Of a step's, one by one.
pub fn of_launches(launches: &[CudaCall]) -> usize {
    size_of_val(launches) + INDEX
}

fn of_cuda(cuda: &StepCuda) -> usize {
    let graphs = behind(&cuda.graphs) + cuda.graphs.iter().map(|graph| behind(&graph.kernels)).sum::<usize>();
    size_of::<StepCuda>() + ALLOCATION + behind(&cuda.top) + behind(&cuda.kernels) + graphs
}

/// What a list has allocated.
fn behind<T>(list: &Vec<T>) -> usize {
    if list.capacity() == 0 { 0 } else { list.capacity() * size_of::<T>() + ALLOCATION }
}

fn of_text(text: &String) -> usize {
    if text.capacity() == 0 { 0 } else { text.capacity() + ALLOCATION }
}

fn behind_span(span: &Span) -> usize {
    let events = behind(&span.events) + span.events.iter().map(|of| of_attributes(&of.attributes)).sum::<usize>();
    let links = behind(&span.links) + span.links.iter().map(|of| of_attributes(&of.attributes)).sum::<usize>();
    span.trace_state.as_ref().map_or(0, of_text) + of_attributes(&span.attributes) + events + links
}

fn of_attributes(attributes: &Vec<(&'static str, Value)>) -> usize {
    let text = |text: &Arc<str>| text.len() + COUNTS + ALLOCATION;
    let beyond = |value: &Value| match value {
        Value::Str(value) => text(value),
        Value::StrList(values) => behind(values) + values.iter().map(text).sum::<usize>(),
        Value::Bool(_) | Value::Int(_) | Value::Float(_) => 0,
    };
    behind(attributes) + attributes.iter().map(|(_, value)| beyond(value)).sum::<usize>()
}
