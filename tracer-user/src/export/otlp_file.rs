//! Traces as OTLP/JSON lines: one `ExportTraceServiceRequest` a line, one trace a request.
//!
//! The form that a collector's file exporter writes, its `otlpjsonfile` receiver and Jaeger's UI read, and an OTLP/HTTP
//! endpoint takes as `application/json`: camelCase, hex ids, 64-bit numbers as strings. The same trace gives the same bytes.

use opentelemetry::InstrumentationScope;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans};
use opentelemetry_proto::transform::common::tonic::Attributes;

use super::otlp::spans::{self, Origin};
use crate::output::Trace;

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
