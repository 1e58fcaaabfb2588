//! The timeline of a traced run, as Perfetto's own importer understands it.
//!
//! Enters: the file, the run that it was drawn of. Leaves: nothing, when the file holds what the workers did and what the spans say.

use std::collections::BTreeMap;
use std::path::Path;

use inferspan_harness::perfetto::{Perfetto, Rows};
use serde_json::Value;

use super::steps::{Counts, Run, Span, Truth};

/// What Perfetto's importer complains of.
const COMPLAINTS: &str =
    "select name, value from stats where value > 0 and (severity <> 'info' or name like '%error%')";
/// Calls on the worker's threads, by category.
const CALLS: &str = "select s.category, count(*) from slice s join thread_track on s.track_id = thread_track.id \
     join thread using (utid) where thread.name like 'CUDA calls of thread %' group by 1";
/// Arrows by what they join. The importer lets an arrow begin at the slice that began first: a prefill begins behind its step.
const ARROWS: &str = "select case when 'request' in (a.category, b.category) then 'request' else 'call' end, count(*) from flow \
     join slice a on a.id = slice_out join slice b on b.id = slice_in where 'step' in (a.name, b.name) and \
     ('request' in (a.category, b.category) or b.category like 'cuda,%') group by 1";
const ALL_ARROWS: &str = "select count(*) from flow";
/// From a request over its step to what that launched, with the step's id at each end.
const CHAINS: &str = "with ends as (select slice_out as one, slice_in as other from flow \
     union all select slice_in, slice_out from flow) select count(*) from ends join slice request on request.id = one \
     join slice step on step.id = other join flow on flow.slice_out = step.id join slice call on call.id = flow.slice_in \
     where request.category = 'request' and step.name = 'step' and call.category like 'cuda,%' and \
     extract_arg(step.arg_set_id, 'debug.step') = extract_arg(call.arg_set_id, 'debug.step') and \
     extract_arg(request.arg_set_id, 'debug.step') = extract_arg(step.arg_set_id, 'debug.step')";

/// Holds it against the run: each step and call is there once, with an arrow for each link of a request and each step's first call.
/// Says loudly when there is no Perfetto to ask.
///
/// # Panics
/// When any of it differs.
pub fn assert_is(run: &Run, file: &Path, what: &str) {
    let Some(perfetto) = Perfetto::from_env() else { return };
    let queries = [COMPLAINTS, "select count(*) from slice where name = 'step'", CALLS, ARROWS, CHAINS, ALL_ARROWS];
    let answers = perfetto.query(file, &queries).expect("it opens");
    assert_eq!(answers[0], Rows::new(), "{what}: the importer complains");
    let number = |value: &Value| value.as_u64().unwrap_or_else(|| panic!("{value} is no number"));
    assert_eq!(number(&answers[1][0][0]), run.truth.len() as u64, "{what}: steps");
    let counts = run.truth.iter().map(Truth::counts).fold(Counts::default(), Counts::plus);
    let (mut launches, mut others) = (0, BTreeMap::new());
    for row in &answers[2] {
        let (category, count) = (row[0].as_str().expect("a category"), number(&row[1]));
        match category.trim_start_matches("cuda,") {
            of @ ("copy" | "graph" | "wait") => *others.entry(of).or_default() += count,
            _ => launches += count,
        }
    }
    // Without `--sample` every call is drawn.
    let expected = BTreeMap::from([
        ("copy", counts.h2d.0 + counts.d2h.0),
        ("graph", counts.graph_launches),
        ("wait", counts.waits),
    ]);
    assert_eq!((launches, others), (counts.launches, expected), "{what}: calls\n{}", run.evidence(&[]));
    let steps: BTreeMap<&str, &Span> = run.seen.iter().map(|step| (step.id.as_str(), step)).collect();
    let is_drawn = |span: &&Span| {
        let step = span.links.first().and_then(|link| steps.get(link.as_str()));
        step.is_some_and(|step| span.start.max(step.start) < step.end && span.end > span.start)
    };
    let is_drawn = |span: &&Span| span.name != "engine_step" && is_drawn(span);
    let links = run.spans.iter().filter(is_drawn).count() as u64;
    let arrows: BTreeMap<&str, u64> =
        answers[3].iter().map(|row| (row[0].as_str().unwrap_or_default(), number(&row[1]))).collect();
    let steps = run.truth.len() as u64;
    assert_eq!(arrows, BTreeMap::from([("request", links), ("call", steps)]), "{what}: arrows");
    assert_eq!(number(&answers[5][0][0]), links + steps, "{what}: arrows in all");
    assert_eq!(number(&answers[4][0][0]), links, "{what}: chains from a request to a launch");
    eprintln!("{what}: {steps} steps, {launches} launches, {links} arrows from requests in the timeline");
}
