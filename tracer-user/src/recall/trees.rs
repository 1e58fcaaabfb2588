//! Trees out of spans that come line by line: one trace a line, or a collector's batches, which part traces as they like.
//!
//! Enters: spans. Leaves: trees of one root each, its descendants behind it, parents before children, in the order in which their traces
//! began. Invariant: at most [`MAX_SPANS`] and [`MAX_BYTES`] wait (above, the trace that began first leaves), none for more than [`WINDOW`]
//! lines without another of its trace. Counted: spans without a root in that window, and spans that came twice.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use super::otlp::Read;
use crate::input::Server;
use crate::model::keys::span;
use crate::output::{Span, SpanId, TraceId, Value};

/// Lines after the last one of a trace in which more of it may come: a collector parts what came at once into batches that follow each other.
const WINDOW: u64 = 64;
/// Spans that wait for more of their traces at most.
const MAX_SPANS: usize = 65_536;
/// Bytes of them at most, about: 1 KiB a span.
const MAX_BYTES: usize = 64 << 20;
/// Levels of a tree of ours: request, generation, decode, step.
const MAX_DEPTH: usize = 8;

/// A tree of one root, which comes first.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tree {
    pub server: Arc<Server>,
    pub spans: Vec<Span>,
}

#[derive(Debug, Default)]
pub(super) struct Trees {
    open: HashMap<TraceId, Open>,
    /// In the order in which they began.
    order: VecDeque<TraceId>,
    spans: usize,
    bytes: usize,
    line: u64,
    /// Spans whose root did not come.
    pub rootless: u64,
    /// Spans that came twice.
    pub twice: u64,
}

#[derive(Debug, Default)]
struct Open {
    spans: Vec<Read>,
    bytes: usize,
    /// The line that brought the last of it.
    line: u64,
}

impl Trees {
    /// Takes the spans of a line, and gives the trees that are over.
    pub(super) fn push(&mut self, spans: Vec<Read>) -> Vec<Tree> {
        self.line += 1;
        for read in spans {
            let id = read.span.trace_id;
            let open = self.open.entry(id).or_insert_with(|| {
                self.order.push_back(id);
                Open::default()
            });
            let bytes = bytes(&read.span);
            open.line = self.line;
            open.bytes += bytes;
            open.spans.push(read);
            self.spans += 1;
            self.bytes += bytes;
        }
        self.take(|trees, first| trees.spans > MAX_SPANS || trees.bytes > MAX_BYTES || first.line + WINDOW < trees.line)
    }

    /// Nothing more comes.
    pub(super) fn finish(&mut self) -> Vec<Tree> {
        self.take(|_, _| true)
    }

    fn take(&mut self, is_over: impl Fn(&Self, &Open) -> bool) -> Vec<Tree> {
        let mut out = Vec::new();
        while let Some(id) = self.order.front() {
            if self.open.get(id).is_some_and(|first| !is_over(self, first)) {
                break;
            }
            let first = self.open.remove(id).unwrap_or_default();
            self.order.pop_front();
            self.spans -= first.spans.len();
            self.bytes -= first.bytes;
            self.part(first.spans, &mut out);
        }
        out
    }

    /// Parts the spans of a trace into the trees of its roots: several requests may be in one trace.
    fn part(&mut self, mut reads: Vec<Read>, out: &mut Vec<Tree>) {
        let mut parents: HashMap<SpanId, Option<SpanId>> = HashMap::with_capacity(reads.len());
        let before = reads.len();
        reads.retain(|Read { span, .. }| {
            let is_new = !parents.contains_key(&span.span_id);
            if is_new {
                parents.insert(span.span_id, span.parent.filter(|_| !is_root(span)));
            }
            is_new
        });
        self.twice += (before - reads.len()) as u64;
        let mut places: BTreeMap<SpanId, usize> = BTreeMap::new();
        for read in reads.iter().filter(|read| is_root(&read.span)) {
            places.insert(read.span.span_id, out.len());
            out.push(Tree { server: Arc::clone(&read.server), spans: vec![read.span.clone()] });
        }
        let mut depths: Vec<(usize, Vec<usize>)> = places.values().map(|place| (*place, vec![0])).collect();
        depths.sort_unstable();
        let first = depths.first().map_or(0, |(place, _)| *place);
        for Read { span, .. } in reads.into_iter().filter(|read| !is_root(&read.span)) {
            let Some((root, depth)) = root_of(&parents, span.span_id) else {
                self.rootless += 1;
                continue;
            };
            let Some(&place) = places.get(&root) else {
                self.rootless += 1;
                continue;
            };
            out[place].spans.push(span);
            depths[place - first].1.push(depth);
        }
        for (place, depths) in depths {
            in_order(&mut out[place].spans, &depths);
        }
    }
}

/// What a span takes, about.
fn bytes(of: &Span) -> usize {
    let attributes = |all: &Vec<(&'static str, Value)>| {
        let of_value = |value: &Value| match value {
            Value::Str(text) => text.len(),
            Value::StrList(list) => list.iter().map(|text| size_of_val(text) + text.len()).sum(),
            Value::Bool(_) | Value::Int(_) | Value::Float(_) => 0,
        };
        all.capacity() * size_of::<(&str, Value)>() + all.iter().map(|(_, value)| of_value(value)).sum::<usize>()
    };
    let events = of.events.iter().map(|event| size_of_val(event) + attributes(&event.attributes));
    let links = of.links.iter().map(|link| size_of_val(link) + attributes(&link.attributes));
    let state = of.trace_state.as_ref().map_or(0, String::len);
    size_of::<Read>() + state + attributes(&of.attributes) + events.chain(links).sum::<usize>()
}

fn is_root(of: &Span) -> bool {
    of.name == span::REQUEST || of.name == span::ENGINE_STEP
}

/// The root above a span, and how far above.
fn root_of(parents: &HashMap<SpanId, Option<SpanId>>, id: SpanId) -> Option<(SpanId, usize)> {
    let mut at = id;
    for depth in 0..=MAX_DEPTH {
        match parents.get(&at)? {
            Some(parent) => at = *parent,
            None => return Some((at, depth)),
        }
    }
    None
}

/// Parents before children: where they are not, by their depth.
fn in_order(spans: &mut Vec<Span>, depths: &[usize]) {
    let mut seen = std::collections::HashSet::with_capacity(spans.len());
    let is_fine = spans.iter().enumerate().all(|(place, span)| {
        let is_known = place == 0 || span.parent.is_some_and(|parent| seen.contains(&parent));
        seen.insert(span.span_id);
        is_known
    });
    if !is_fine {
        let mut keyed: Vec<(usize, Span)> = depths.iter().copied().zip(spans.drain(..)).collect();
        keyed.sort_by_key(|(depth, _)| *depth);
        spans.extend(keyed.into_iter().map(|(_, span)| span));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::{SpanKind, SpanStatus};

    fn read(trace: u8, id: u8, parent: u8, name: &'static str) -> Read {
        let span = Span {
            trace_id: TraceId([trace; 16]),
            span_id: SpanId([id; 8]),
            parent: (parent > 0).then_some(SpanId([parent; 8])),
            parent_is_remote: false,
            trace_state: None,
            name,
            kind: SpanKind::Internal,
            start_ns: 0,
            end_ns: 0,
            status: SpanStatus::Unset,
            attributes: Vec::new(),
            events: Vec::new(),
            links: Vec::new(),
        };
        Read { server: Arc::default(), writer: None, span }
    }

    fn ids(trees: &[Tree]) -> Vec<Vec<u8>> {
        trees.iter().map(|tree| tree.spans.iter().map(|span| span.span_id.0[0]).collect()).collect()
    }

    #[test]
    fn a_trace_in_two_batches_is_one_tree_with_its_parents_first() {
        // line 1: step 3 (below decode 2), decode 2 │ line 2: root 1, prefill 4
        let mut trees = Trees::default();
        let first = vec![read(9, 3, 2, span::DECODE_STEP), read(9, 2, 1, span::DECODE)];
        assert_eq!(trees.push(first), []);
        assert_eq!(trees.push(vec![read(9, 1, 0, span::REQUEST), read(9, 4, 1, span::PREFILL)]), []);
        assert_eq!(ids(&trees.finish()), [[1, 2, 4, 3]]);
    }

    #[test]
    fn requests_that_share_a_trace_are_trees_of_their_own_and_what_has_no_root_is_counted() {
        let mut trees = Trees::default();
        let line = vec![
            read(9, 1, 7, span::REQUEST),
            read(9, 2, 1, span::PREFILL),
            read(9, 3, 7, span::REQUEST),
            read(9, 4, 3, span::PREFILL),
            read(9, 4, 3, span::PREFILL),
            read(9, 5, 6, span::PREFILL),
            read(9, 8, 8, span::PREFILL),
        ];
        assert_eq!(trees.push(line), []);
        assert_eq!(ids(&trees.finish()), [[1, 2], [3, 4]]);
        assert_eq!((trees.rootless, trees.twice), (2, 1), "one below nothing, one below itself");
    }

    #[test]
    fn a_tree_leaves_when_no_more_of_it_came_for_a_while_and_when_too_many_wait() {
        let mut trees = Trees::default();
        trees.push(vec![read(9, 1, 0, span::REQUEST)]);
        let left = (0..=WINDOW).flat_map(|_| trees.push(Vec::new())).count();
        assert_eq!(left, 1);
        let many = (0..=MAX_SPANS).map(|_| read(8, 1, 0, span::REQUEST)).collect();
        assert_eq!(ids(&trees.push(many)), [[1]]);
        assert_eq!(trees.twice, MAX_SPANS as u64);
    }

    #[test]
    fn a_trace_that_is_kept_fresh_holds_no_more_than_the_bound_back() {
        // a span of trace 9 on each line, and a large one of another trace: 1 MiB each
        let mut trees = Trees::default();
        let mut left = Vec::new();
        for nth in 1..=80 {
            let mut large = read(nth, 1, 0, span::REQUEST);
            large.span.attributes = vec![("", Value::Str("x".repeat(1 << 20).into()))];
            left.extend(trees.push(vec![read(200, nth, 0, span::REQUEST), large]));
            assert!(trees.bytes <= MAX_BYTES);
        }
        assert!(left.len() > 64, "{}", left.len());
        left.extend(trees.finish());
        assert_eq!((left.len(), trees.bytes, trees.spans), (160, 0, 0));
    }
}
