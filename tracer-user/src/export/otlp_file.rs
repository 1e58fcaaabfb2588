//! Traces as OTLP/JSON lines: one `ExportTraceServiceRequest` a line, one trace a request.
//!
//! The form that a collector's file exporter writes, its `otlpjsonfile` receiver and Jaeger's UI read, and an OTLP/HTTP
//! endpoint takes as `application/json`: camelCase, hex ids, 64-bit numbers as strings. The same trace gives the same bytes.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use opentelemetry::InstrumentationScope;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans};
use opentelemetry_proto::transform::common::tonic::Attributes;

use super::lines::{Fate, Lines};
use super::log_file::LogFile;
use super::otlp::spans::{self, Origin};
use super::sink::{Context, Sink};
use crate::out_file::Existing;
use crate::output::Trace;

/// Spans that wait for the file at most; about 12 MB of traces as they come, shared with the OTLP queue.
const QUEUE_SPANS: u64 = 16_384;

#[derive(Debug)]
struct TraceFile(Lines<Trace>);

impl Sink for TraceFile {
    fn trace(&mut self, trace: &Arc<Trace>) {
        self.0.push(trace, trace.spans.len() as u64);
    }

    fn takes_traces(&self) -> bool {
        true
    }

    fn finish(self: Box<Self>) -> Option<String> {
        self.0.finish()
    }
}

pub fn open(context: &Context<'_>) -> anyhow::Result<Option<Box<dyn Sink>>> {
    let Some(path) = context.flags.traces_out.as_deref() else { return Ok(None) };
    let file = LogFile::open(path, "traces", Existing::Dropped, context.reopen)?;
    let (scope, origin, telemetry) = (spans::scope(), context.origin.clone(), Arc::clone(context.telemetry));
    let count = move |fate, spans| {
        let counter = match fate {
            Fate::Written => &telemetry.spans_exported,
            Fate::QueueFull => &telemetry.spans_dropped_queue,
            Fate::WriteFailed => &telemetry.spans_dropped_export,
        };
        counter.fetch_add(spans, Relaxed);
    };
    let render = move |trace: &Trace, line: &mut Vec<u8>| Ok(write(trace, &scope, &origin, line)?);
    let about = format!("trace file {}", path.display());
    let lines = Lines::start(about, "spans", Box::new(file), QUEUE_SPANS, context.pressure, count, render)?;
    Ok(Some(Box::new(TraceFile(lines))))
}

/// The export request that holds `trace` and nothing else.
pub fn request(trace: &Trace, scope: &InstrumentationScope, origin: &Origin) -> ExportTraceServiceRequest {
    let attributes = Attributes::from(spans::resource(&trace.server, trace.service, origin)).0;
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(Resource { attributes, ..Resource::default() }),
            scope_spans: vec![ScopeSpans {
                scope: Some((scope, None).into()),
                spans: spans::spans(trace, scope).into_iter().map(Into::into).collect(),
                ..ScopeSpans::default()
            }],
            ..ResourceSpans::default()
        }],
    }
}

/// Appends `trace` to `line` as JSON.
pub fn write(
    trace: &Trace,
    scope: &InstrumentationScope,
    origin: &Origin,
    line: &mut Vec<u8>,
) -> Result<(), serde_json::Error> {
    serde_json::to_writer(line, &request(trace, scope, origin))
}
