//! Finished requests: each on a lane of its own for as long as it ran.

use std::collections::HashMap;

use super::arrows::Arrows;
use super::mark::{Mark, Note, Pen, Slice};
use super::rows::{Rows, Shape, nest};
use super::tracks::{Below, LONGEST, Tracks};
use crate::model::keys::attribute;
use crate::model::trace_ids::run_identity;
use crate::output::{Span, SpanId, Trace, Value};
use crate::sanitise::sanitise;

/// The note that names a request's trace, as the access log does.
pub(super) const TRACE_ID: &str = "trace_id";
/// Most requests at a time, and rows of one: its generations (`n`) overlap.
const LANES: usize = 4096;
const ROWS: usize = 64;

const CATEGORY: &[&str] = &["request"];

#[derive(Debug, Default)]
pub(super) struct Requests {
    /// Of each server.
    lanes: HashMap<u64, Rows>,
}

impl Requests {
    /// Draws a request; how many of its spans found no room.
    pub(super) fn draw(&mut self, request: &Trace, tracks: &mut Tracks, arrows: &mut Arrows, pen: &mut Pen<'_>) -> u64 {
        let spans = &request.spans;
        let all = spans.len() as u64;
        let start = spans.iter().map(|span| span.start_ns).min().unwrap_or(0);
        let end = spans.iter().map(|span| span.end_ns).max().unwrap_or(0);
        let Some(process) = tracks.process(&request.server, request.server.pid, pen) else { return all };
        let lanes = self.lanes.entry(run_identity(&request.server)).or_insert_with(|| Rows::new(LANES));
        let Some(lane) = lanes.place(start, end) else { return all };
        let lane = lane as u32;
        let Some(lane_track) = tracks.below(process, Below::Lane { lane, row: 0 }, pen) else { return all };

        let places: HashMap<SpanId, usize> =
            spans.iter().enumerate().map(|(place, span)| (span.span_id, place)).collect();
        let parent = |span: &Span| span.parent.and_then(|parent| places.get(&parent).copied());
        let shapes: Vec<_> =
            spans.iter().map(|span| Shape { start: span.start_ns, end: span.end_ns, parent: parent(span) }).collect();
        let mut left_out = 0;
        for (place, row) in nest(&shapes, ROWS) {
            let span = &spans[place];
            let found = match row {
                Some(0) => Some(lane_track),
                Some(row) => tracks.below(lane_track, Below::Lane { lane, row: row as u32 }, pen),
                None => None,
            };
            let Some(track) = found else {
                left_out += 1;
                continue;
            };
            let title = (place == 0).then(|| title(request, span));
            slice(span, track, title.as_deref(), pen);
            for event in &span.events {
                pen.mark(&Mark::Instant { track, at: event.at_ns, name: event.name, categories: CATEGORY });
            }
            // An arrow needs a slice that is there for a while.
            if let Some(link) = span.links.first().filter(|_| span.end_ns > span.start_ns) {
                arrows.link(u64::from_be_bytes(link.span_id.0), (track, span.start_ns), pen);
            }
        }
        left_out
    }
}

fn slice(span: &Span, track: u64, title: Option<&str>, pen: &mut Pen<'_>) {
    let trace_id = title.map(|_| span.trace_id.to_string());
    let mut notes: Vec<(&str, Note<'_>)> = Vec::with_capacity(span.attributes.len() + 2);
    if let Some(trace_id) = &trace_id {
        notes.push((TRACE_ID, Note::Text(trace_id)));
    }
    if let Some(link) = span.links.first() {
        notes.push(("step", Note::Hex(u64::from_be_bytes(link.span_id.0))));
    }
    notes.extend(span.attributes.iter().map(|(key, value)| (*key, Note::Value(value))));
    pen.mark(&Mark::Slice(Slice {
        track,
        start: span.start_ns,
        end: span.end_ns,
        name: title.unwrap_or(span.name),
        categories: CATEGORY,
        arrows_out: &[],
        arrow_in: None,
        notes: &notes,
    }));
}

/// `tiny length`: the model, and how it ended.
fn title(trace: &Trace, root: &Span) -> String {
    let find = |wanted: &str| {
        root.attributes.iter().find(|(key, _)| *key == wanted).and_then(|(_, value)| match value {
            Value::Str(text) => Some(&**text),
            _ => None,
        })
    };
    let known = Some(trace.server.model.as_str()).filter(|model| !model.is_empty());
    let model = find(attribute::REQUEST_MODEL).or(find(attribute::RESPONSE_MODEL)).or(known);
    let outcome = find(attribute::OUTCOME).unwrap_or("unfinished");
    let text = model.map_or_else(|| outcome.to_owned(), |model| format!("{model} {outcome}"));
    sanitise(&text, LONGEST).into_owned()
}
