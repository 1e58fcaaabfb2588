//! The whole pure pipeline: inputs in, outputs out.
//!
//! Invariants: nothing panics, whatever the times are; the same inputs give the same outputs; a recording that is made on the way, written
//! and read again, gives the same outputs; what is held is bounded by what came in.

use inferspan::core::Config;
use inferspan::input::{Input, What};
use inferspan::output::Output;
use inferspan::recording::Entry;
use inferspan::run::pipeline::Pipeline;

use crate::inputs::inputs;

/// As live: 20 ms, ns.
const LAG: u64 = 20_000_000;
/// What decoders may hold besides what came in, a connection: windows of JSON's ends (64 KiB each) and what vectors grow by.
const SLACK: usize = 64 * 512 * 1024;

/// What leaves, and what a recording has of it.
fn run(inputs: &[(Option<usize>, Input)], config: &Config, record: bool) -> (Vec<Output>, Vec<Entry>) {
    let mut pipeline = Pipeline::new(2, LAG, config);
    if record {
        pipeline.record(false);
    }
    let (mut outputs, mut entries, mut given) = (Vec::new(), Vec::new(), 0);
    for (server, input) in inputs {
        if let Input::Event(event) = input
            && let What::Data { bytes, .. } = &event.what
        {
            given += bytes.len();
        }
        pipeline.push(*server, input.clone());
        outputs.append(pipeline.outputs());
        entries.append(&mut pipeline.take_entries());
        let held = pipeline.held_bytes();
        assert!(held <= 8 * given + SLACK, "{held} bytes are held of {given}");
        let _ = pipeline.verdicts();
    }
    for view in pipeline.views() {
        let _ = (view.open().count(), view.engines().count(), view.now());
    }
    while pipeline.finish_part() {}
    outputs.append(pipeline.outputs());
    entries.append(&mut pipeline.take_entries());
    assert!(pipeline.spans_dropped() < u64::MAX && pipeline.late() <= inputs.len() as u64 * 2);
    (outputs, entries)
}

/// The first two that are not the same. Verdicts are the source's, and a replay has none.
fn difference(one: &[Output], other: &[Output]) -> Option<(Option<Output>, Option<Output>)> {
    let is_told = |output: &&Output| !matches!(output, Output::Verdict(_));
    let (mut one, mut other) = (one.iter().filter(is_told), other.iter().filter(is_told));
    loop {
        match (one.next(), other.next()) {
            (None, None) => return None,
            // As text where they are not equal: a number that is none does not equal itself.
            (Some(a), Some(b)) if a == b || format!("{a:?}") == format!("{b:?}") => {}
            (a, b) => return Some((a.cloned(), b.cloned())),
        }
    }
}

/// Everything between the sources and the exporters.
pub fn pipeline(bytes: &[u8]) {
    let Some((&first, rest)) = bytes.split_first() else { return };
    let max_spans = [2_000, 1, 0, 50][usize::from(first & 3)];
    let config = Config { max_spans, closes_visible: first & 4 == 0 };
    let inputs = inputs(rest);
    let (outputs, entries) = run(&inputs, &config, true);
    let (again, _) = run(&inputs, &config, false);
    assert_eq!(difference(&outputs, &again), None, "the same inputs give the same outputs, recorded or not");

    let mut replay = Pipeline::new(2, LAG, &config);
    for entry in entries {
        let packed = rmp_serde::to_vec_named(&entry).expect("an entry is written");
        let read: Entry = rmp_serde::from_slice(&packed).expect("what was written is read");
        replay.replay(read, false);
    }
    assert_eq!(replay.unanswered(), 0, "a recording of this version fits");
    assert_eq!(difference(&outputs, replay.outputs()), None, "a recording gives the same outputs");
}
