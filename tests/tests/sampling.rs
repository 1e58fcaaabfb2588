//! What sampling lets through to a trace file, and that nothing else is missing a thing.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::collections::BTreeMap;
use std::sync::Arc;

use inferspan::export::flags::{OutputArgs, Sample};
use inferspan::export::{Pressure, Sinks, Summary};
use inferspan::output::{Merit, Outcome, Output};
use inferspan::sample::LeftOut;
use inferspan::sample::policy::EngineSteps;
use inferspan::telemetry::Telemetry;
use inferspan_harness::folder::Folder;
use inferspan_tests::outputs;
use serde_json::Value;

/// What the trace file holds (spans a trace id), the access log's lines and the metrics, after `outputs` went through.
struct Run {
    spans: BTreeMap<String, usize>,
    records: usize,
    metrics: String,
    summary: Summary,
}

impl Run {
    fn has_request(&self, n: u8) -> bool {
        self.spans.contains_key(&outputs::request_trace_id(n).to_string())
    }

    fn has_step(&self, n: u8) -> bool {
        self.spans.contains_key(&outputs::step_trace_id(n).to_string())
    }

    fn metric(&self, line: &str) -> &str {
        let found = self.metrics.lines().find_map(|shown| shown.strip_prefix(line));
        found.unwrap_or_else(|| panic!("{line} is not in {}", self.metrics)).trim()
    }
}

fn run(args: OutputArgs, mut outputs: Vec<Output>) -> Run {
    let folder = Folder::scratch("sampling").unwrap();
    let path = |name: &str| folder.path().join(name);
    let args = OutputArgs {
        traces_out: Some(path("traces")),
        access_log: Some(path("access")),
        metrics_out: Some(path("metrics")),
        ..args
    };
    let mut sinks = Sinks::open(&args, Arc::new(Telemetry::default()), Pressure::Wait).unwrap();
    sinks.push(&mut outputs);
    let summary = sinks.finish();
    assert_eq!(summary.failures, Vec::<String>::new());
    let read = |name: &str| std::fs::read_to_string(path(name)).unwrap();
    let mut spans = BTreeMap::new();
    for line in read("traces").lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        for span in line["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().unwrap() {
            *spans.entry(span["traceId"].as_str().unwrap().to_owned()).or_default() += 1;
        }
    }
    Run { spans, records: read("access").lines().count(), metrics: read("metrics"), summary }
}

fn sampled(policy: &str) -> OutputArgs {
    OutputArgs { sample: vec![Sample::Requests(policy.parse().unwrap())], ..OutputArgs::default() }
}

/// Everything that request `n` says, with another end.
fn ended(n: u8, merit: Merit) -> Vec<Output> {
    let mut all = outputs::all(n);
    for output in &mut all {
        if let Output::Trace(trace) = output {
            trace.merit = merit;
        }
    }
    all
}

fn merit(outcome: Outcome, seconds: f64, parent_sampled: Option<bool>) -> Merit {
    Merit { outcome: Some(outcome), seconds, parent_sampled }
}

#[test]
fn a_caller_that_does_not_sample_is_not_exported_but_measured() {
    let all = [
        ended(1, merit(Outcome::Stop, 0.2, Some(false))),
        ended(2, merit(Outcome::Stop, 0.2, Some(true))),
        ended(3, merit(Outcome::Error, 9.0, Some(false))),
        ended(4, merit(Outcome::Stop, 0.2, None)),
    ];
    let run = run(OutputArgs::default(), all.concat());
    assert_eq!([1, 2, 3, 4].map(|n| run.has_request(n)), [false, true, false, true]);
    assert_eq!([1, 2, 3, 4].map(|n| run.has_step(n)), [false, true, false, true], "only steps of what is exported");
    assert_eq!(run.records, 4);
    assert_eq!(run.metric(r#"inferspan_traces_left_out_total{reason="traceparent"}"#), "2");
    assert_eq!(run.metric(r#"inferspan_traces_left_out_total{reason="engine_steps"}"#), "2");
    let requests = format!(
        r#"inferspan_requests_total{{server="{}",model="Qwen/Qwen3-8B",engine="0",outcome="length"}}"#,
        outputs::SERVER
    );
    assert_eq!(run.metric(&requests), "4");
    assert_eq!(run.summary.requests, 4);
    assert_eq!(run.summary.left_out.left_out(LeftOut::Traceparent), 2);
    assert_eq!(
        run.summary.left_out_line().unwrap(),
        "not exported as traces: 2 engine steps that no exported request links to, 2 requests by their traceparent"
    );
}

#[test]
fn a_share_keeps_what_went_wrong_and_what_was_slow() {
    let all = [
        ended(1, merit(Outcome::Stop, 0.2, None)),
        ended(2, merit(Outcome::Error, 0.2, None)),
        ended(3, merit(Outcome::Abort, 0.2, None)),
        ended(4, merit(Outcome::Rejected, 0.2, None)),
        ended(5, merit(Outcome::Unknown, 0.2, None)),
        ended(6, merit(Outcome::Length, 2.5, None)),
    ];
    let run = run(sampled("0,slow>2s"), all.concat());
    assert_eq!([1, 2, 3, 4, 5, 6].map(|n| run.has_request(n)), [false, true, true, true, true, true]);
    assert_eq!(run.metric(r#"inferspan_traces_left_out_total{reason="sampler"}"#), "1");
    assert_eq!(run.records, 6);
}

#[test]
fn a_share_draws_the_same_traces_every_time() {
    let all = || (0..200).flat_map(|n| ended(n, merit(Outcome::Stop, 0.2, None))).collect::<Vec<_>>();
    // The hand-made ids differ in their first bytes only, which say nothing: all or none are drawn.
    let (some, again) = (run(sampled("0.5"), all()), run(sampled("0.5"), all()));
    assert_eq!(some.spans, again.spans);
    let left = some.summary.left_out.left_out(LeftOut::Sampler);
    assert!(left == 0 || left == 200, "{left}");
    assert_eq!(run(sampled("1"), all()).summary.left_out.left_out(LeftOut::Sampler), 0);
}

#[test]
fn engine_steps_go_out_by_links_all_or_not_at_all() {
    let all = || {
        let mut all = outputs::all(1);
        all.push(Output::Step(Box::new(outputs::step(2))));
        // The step of request 3 ends after it.
        all.push(Output::Trace(outputs::request(3)));
        all.push(Output::Step(Box::new(outputs::step(3))));
        // The step of request 4 never comes.
        all.push(Output::Trace(outputs::request(4)));
        all
    };
    let with = |engine_steps| run(OutputArgs { engine_steps, ..OutputArgs::default() }, all());
    let linked = with(EngineSteps::Linked);
    assert_eq!([1, 2, 3, 4].map(|n| linked.has_step(n)), [true, false, true, false]);
    assert!(linked.spans.values().all(|&spans| spans == 1 || spans == 7), "each once");
    assert_eq!(linked.metric(r#"inferspan_traces_left_out_total{reason="engine_steps"}"#), "1");
    assert_eq!(linked.metric("inferspan_engine_steps_missed_total"), "1");
    let every = with(EngineSteps::All);
    assert_eq!([1, 2, 3, 4].map(|n| every.has_step(n)), [true, true, true, false]);
    let off = with(EngineSteps::Off);
    assert_eq!([1, 2, 3, 4].map(|n| off.has_step(n)), [false; 4]);
    assert_eq!(off.metric(r#"inferspan_traces_left_out_total{reason="engine_steps"}"#), "3");
    assert_eq!(off.summary.spans_exported, 21);
}

#[test]
fn none_exports_nothing() {
    let run = run(sampled("none,ignore-parent"), outputs::all(1));
    assert!(run.spans.is_empty());
    assert_eq!((run.records, run.summary.requests), (1, 1));
}
