//! One trace as a waterfall: a row a span, indented below its parent, with a bar over the root's time.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::units::{fit, padded};
use super::{Inked, Style, duration};
use crate::model::keys::attribute;
use crate::output::{Span, SpanId, SpanStatus, Trace, Value};
use crate::sanitise::sanitise;

/// Rows drawn of one trace; the rest is counted.
const MAX_ROWS: usize = 24;

/// Columns of the name, of the duration, and between columns.
const NAME: usize = 30;
const TIME: usize = 8;

/// The rows of `trace`, each with a line end.
pub fn render(trace: &Trace, style: Style) -> String {
    lines(trace, style).iter().map(|line| style.inked(line) + "\n").collect()
}

/// The rows of `trace`, in pieces of a colour each. `~` stands before what is inferred.
pub fn lines(trace: &Trace, style: Style) -> Vec<Vec<Inked>> {
    let Some(root) = trace.spans.first() else { return Vec::new() };
    let title = format!("  trace {}{}", root.trace_id, about(root));
    let mut lines = vec![vec![(0, fit(&title, style.width, style))]];
    let rows = rows(&trace.spans);
    let whole = (root.end_ns.saturating_sub(root.start_ns)).max(1);
    let columns = style.width.saturating_sub(2 + NAME + 1 + TIME + 2).max(10);
    for (span, depth) in rows.iter().take(MAX_ROWS) {
        let name = padded(&label(span, *depth), NAME, style);
        let sure = if is_inferred(span) { "~" } else { "" };
        let took = format!("{sure}{}", duration(span.end_ns.saturating_sub(span.start_ns) as f64 / 1e9));
        let color = match span.status {
            SpanStatus::Error(_) => 31,
            SpanStatus::Unset => 36,
        };
        let bar = bar(span, root.start_ns, whole, columns, style);
        lines.push(vec![(0, format!("  {name} {took:>TIME$} ")), (color, bar)]);
    }
    if rows.len() > MAX_ROWS {
        let dots = if style.unicode { "…" } else { "..." };
        lines.push(vec![(0, format!("  {dots} and {} more spans", rows.len() - MAX_ROWS))]);
    }
    lines
}

fn is_inferred(span: &Span) -> bool {
    let is = |value: &Value| matches!(value, Value::Str(text) if &**text == "inferred");
    span.attributes.iter().any(|(key, value)| *key == attribute::PROVENANCE && is(value))
}

/// What the root says about the request: model, how it ended, tokens.
fn about(root: &Span) -> String {
    let mut out = String::new();
    for (key, unit) in [
        (attribute::OUTCOME, ""),
        (attribute::INPUT_TOKENS, " in"),
        (attribute::OUTPUT_TOKENS, " out"),
        (attribute::REQUEST_MODEL, ""),
    ] {
        let Some((_, value)) = root.attributes.iter().find(|(known, _)| *known == key) else { continue };
        let _ = match value {
            Value::Str(text) => write!(out, "  {}{unit}", sanitise(text, 40)),
            Value::Int(number) => write!(out, "  {number}{unit}"),
            Value::Bool(_) | Value::Float(_) | Value::StrList(_) => continue,
        };
    }
    out
}

/// Spans in tree order with their depth: children by start, below their parent. One whose parent is not here hangs below the root.
fn rows(spans: &[Span]) -> Vec<(&Span, usize)> {
    let Some(root) = spans.first() else { return Vec::new() };
    let known: BTreeMap<SpanId, usize> = spans.iter().enumerate().map(|(at, span)| (span.span_id, at)).collect();
    let mut children: BTreeMap<SpanId, Vec<&Span>> = BTreeMap::new();
    for (at, span) in spans.iter().enumerate().skip(1) {
        // A parent comes before its child; anything else would be a loop.
        let parent = span.parent.filter(|id| known.get(id).is_some_and(|parent| *parent < at)).unwrap_or(root.span_id);
        children.entry(parent).or_default().push(span);
    }
    for of_one in children.values_mut() {
        of_one.sort_by_key(|span| span.start_ns);
    }
    let mut rows = Vec::with_capacity(spans.len());
    let mut open = vec![(root, 0)];
    while let Some((span, depth)) = open.pop() {
        rows.push((span, depth));
        // Taken out, so that a span id that occurs twice cannot hang its children in two places.
        let below = children.remove(&span.span_id).unwrap_or_default();
        open.extend(below.into_iter().rev().map(|child| (child, depth + 1)));
    }
    rows
}

fn label(span: &Span, depth: usize) -> String {
    let mut name = "  ".repeat(depth.min(6));
    name.push_str(span.name);
    let number = |key| {
        span.attributes.iter().find_map(|(known, value)| match value {
            Value::Int(number) if *known == key => Some(*number),
            _ => None,
        })
    };
    if let Some(step) = number(attribute::STEP) {
        let _ = write!(name, " {step}");
    } else if let (Some(first), Some(last)) = (number(attribute::FIRST_STEP), number(attribute::LAST_STEP)) {
        let _ = write!(name, " {first}-{last}");
    }
    name
}

fn bar(span: &Span, origin: u64, whole: u64, columns: usize, style: Style) -> String {
    let (full, thin) = if style.unicode { ("█", "▏") } else { ("#", "|") };
    let column = |at: u64| {
        let offset = at.saturating_sub(origin).min(whole);
        (u128::from(offset) * columns as u128 / u128::from(whole)) as usize
    };
    let (start, end) = (column(span.start_ns), column(span.end_ns));
    match end.saturating_sub(start) {
        // Shorter than a column, but there.
        0 => format!("{}{thin}", " ".repeat(start.min(columns - 1))),
        length => format!("{}{}", " ".repeat(start), full.repeat(length)),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::tests::PLAIN;
    use super::*;
    use crate::input::Server;
    use crate::output::{Service, SpanKind, TraceId};

    fn span(id: u8, parent: Option<u8>, name: &'static str, start_ms: u64, end_ms: u64) -> Span {
        Span {
            trace_id: TraceId([7; 16]),
            span_id: SpanId([id; 8]),
            parent: parent.map(|id| SpanId([id; 8])),
            parent_is_remote: false,
            trace_state: None,
            name,
            kind: SpanKind::Internal,
            start_ns: start_ms * 1_000_000,
            end_ns: end_ms * 1_000_000,
            status: SpanStatus::Unset,
            attributes: vec![],
            events: vec![],
            links: vec![],
        }
    }

    fn with(mut span: Span, attributes: &[(&'static str, i64)]) -> Span {
        span.attributes = attributes.iter().map(|(key, value)| (*key, Value::Int(*value))).collect();
        span
    }

    fn trace(spans: Vec<Span>) -> Trace {
        Trace {
            server: Arc::new(Server::default()),
            service: Service::Requests,
            spans,
            merit: crate::output::Merit::default(),
        }
    }

    const NARROW: Style = Style { width: 53, ..PLAIN };

    #[test]
    fn bars_lie_where_the_time_went() {
        let trace = trace(vec![
            span(1, None, "inference_request", 0, 100),
            span(2, Some(1), "queue_wait", 0, 10),
            span(4, Some(1), "decode", 50, 100),
            span(3, Some(1), "prefill", 10, 50),
            with(span(5, Some(4), "decode_step", 50, 51), &[(attribute::STEP, 1)]),
            with(span(6, Some(4), "decode_steps", 51, 100), &[(attribute::FIRST_STEP, 2), (attribute::LAST_STEP, 40)]),
        ]);
        let expected = "  trace 07070707070707070707070707070707\n\
            \x20 inference_request                 100ms ██████████\n\
            \x20   queue_wait                     10.0ms █\n\
            \x20   prefill                        40.0ms  ████\n\
            \x20   decode                         50.0ms      █████\n\
            \x20     decode_step 1                1.00ms      ▏\n\
            \x20     decode_steps 2-40            49.0ms      █████\n";
        assert_eq!(render(&trace, NARROW), expected);
    }

    #[test]
    fn without_unicode_it_is_plain_ascii() {
        let trace = trace((0..40).map(|n| span(n, (n > 0).then_some(0), "decode_step", u64::from(n), 40)).collect());
        let text = render(&trace, Style { unicode: false, ..NARROW });
        assert!(text.is_ascii(), "{text}");
        assert!(text.ends_with("... and 16 more spans\n"), "{text}");
    }

    #[test]
    fn what_is_inferred_is_marked() {
        let mut inferred = span(2, Some(1), "parse_request", 0, 10);
        inferred.attributes = vec![(attribute::PROVENANCE, Value::Str("inferred".into()))];
        let text = render(&trace(vec![span(1, None, "inference_request", 0, 100), inferred]), NARROW);
        assert!(text.contains(" 100ms ") && text.contains(" ~10.0ms "), "{text}");
    }

    #[test]
    fn orphans_loops_and_twins_are_drawn_once_and_end() {
        let spans = vec![
            span(1, Some(9), "root", 0, 10),
            span(2, Some(3), "child_before_parent", 0, 10),
            span(3, Some(2), "loops_back", 0, 10),
            span(3, Some(1), "twin", 0, 10),
            span(4, Some(77), "orphan", 0, 10),
        ];
        assert_eq!(rows(&spans).len(), 5);
        assert_eq!(render(&trace(vec![]), PLAIN), "");
    }

    #[test]
    fn a_span_outside_the_root_stays_inside_the_picture() {
        let trace = trace(vec![span(1, None, "root", 50, 60), span(2, Some(1), "early_and_late", 0, 500)]);
        assert!(render(&trace, NARROW).lines().all(|line| line.chars().count() <= 53));
    }
}
