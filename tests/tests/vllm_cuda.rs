//! The real vLLM on CPU, whose worker drives the fake CUDA: requests, engine steps and launches meet.
//!
//! ```text
//! worker   │ step 1: launches, copies, wait │ step 2 …      its own account, step by step
//! engine   ├──────── engine_step ───────────┤ ├────         traced: with the totals of that step, exactly
//! request       decode_step ──link──▶ engine_step           each to the step whose account names the request
//! ```
//!
//! Needs root, gcc, `INFERSPAN_VLLM_VENV` and `INFERSPAN_VLLM_MODEL`; says loudly when it is skipped.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use inferspan_harness::folder::Folder;
use inferspan_harness::installed::Vllm;
use inferspan_harness::wait::Interrupt;
use inferspan_tests::cuda::vllm::{self, Cuda, Mode, WorkerStep};
use inferspan_tests::cuda::{Driver, Fixture};
use inferspan_tests::judge::{Attach, Target};
use inferspan_tests::live::may_trace;
use inferspan_tests::traffic::{Kind, Load, Until};
use serde_json::Value;

#[derive(Debug, Clone)]
struct Span {
    id: String,
    name: String,
    trace: String,
    end: u64,
    attributes: BTreeMap<String, Value>,
    links: Vec<String>,
}

impl Span {
    fn count(&self, key: &str) -> u64 {
        let value = self.attributes.get(key).map_or(&Value::Null, |value| &value["intValue"]);
        value.as_u64().or_else(|| value.as_str()?.parse().ok()).unwrap_or(0)
    }

    fn text(&self, key: &str) -> &str {
        self.attributes.get(key).and_then(|value| value["stringValue"].as_str()).unwrap_or_default()
    }
}

fn spans(path: &Path) -> Vec<Span> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut spans = Vec::new();
    for line in fs::read_to_string(path).expect("traces").lines() {
        let request: Value = serde_json::from_str(line).expect("JSON");
        for scope in list(&request["resourceSpans"]).iter().flat_map(|resource| list(&resource["scopeSpans"])) {
            spans.extend(list(&scope["spans"]).iter().map(|span| Span {
                id: text(&span["spanId"]),
                name: text(&span["name"]),
                trace: text(&span["traceId"]),
                end: text(&span["endTimeUnixNano"]).parse().unwrap_or(0),
                attributes:
                    list(&span["attributes"]).iter().map(|pair| (text(&pair["key"]), pair["value"].clone())).collect(),
                links: list(&span["links"]).iter().map(|link| text(&link["spanId"])).collect(),
            }));
        }
    }
    spans
}

/// What a step did, as its worker says and as its span says.
fn of_worker(step: &WorkerStep) -> BTreeMap<&'static str, u64> {
    let amount = |kind: &str| step.copies.get(kind).copied().unwrap_or_default();
    BTreeMap::from([
        ("launches", step.launches.values().sum()),
        ("graph launches", step.graph_launches),
        ("h2d", amount("h2d").count),
        ("h2d bytes", amount("h2d").bytes),
        ("d2h", amount("d2h").count),
        ("d2h bytes", amount("d2h").bytes),
        ("waits", step.syncs.values().sum()),
    ])
}

fn of_span(span: &Span) -> BTreeMap<&'static str, u64> {
    BTreeMap::from([
        ("launches", span.count("inferspan.cuda.launches")),
        ("graph launches", span.count("inferspan.cuda.graph_launches")),
        ("h2d", span.count("inferspan.cuda.copies.h2d")),
        ("h2d bytes", span.count("inferspan.cuda.copy_bytes.h2d")),
        ("d2h", span.count("inferspan.cuda.copies.d2h")),
        ("d2h bytes", span.count("inferspan.cuda.copy_bytes.d2h")),
        ("waits", span.count("inferspan.cuda.sync_waits")),
    ])
}

fn monotonic_ns() -> u64 {
    inferspan::source::ring::monotonic_ns()
}

#[test]
fn every_decode_step_links_to_the_step_that_holds_its_launches() {
    const TEST: &str = "every_decode_step_links_to_the_step_that_holds_its_launches";
    if !may_trace(TEST) {
        return;
    }
    let (Some(installed), Some(fixture)) = (Vllm::from_env(), Fixture::for_test(TEST)) else { return };
    let folder = Folder::new("vllm-cuda").unwrap();
    let cuda = Cuda { fixture: &fixture, driver: Driver::New, mode: Mode::Full };
    let arguments = ["--max-num-seqs", "64"];
    let server = vllm::start(&installed, &cuda, folder.path(), &Interrupt::never(), &arguments).unwrap();
    let target = Target::from(&server);
    let load = |clients: usize, requests: usize, seed: u64| Load {
        url: target.url.clone(),
        model: target.model.clone(),
        kinds: vec![Kind::CompletionStream, Kind::Completion],
        clients,
        until: Until::Requests(requests),
        seed,
    };
    load(2, 4, 99).run().unwrap();
    for (clients, level) in [(1, "steps"), (8, "kernels"), (64, "steps")] {
        let place = folder.path().join(format!("{clients}-{level}"));
        let kernels = place.join("kernels.jsonl");
        let flags = ["--level", level, "--engine-steps", "all", "--kernels-out", kernels.to_str().expect("UTF-8")];
        let attach = Attach::start(target.pid, &place, &flags).unwrap();
        let from = monotonic_ns();
        load(clients, 3 * clients, clients as u64).run().unwrap();
        // The last step's totals come when its threads are looked at.
        std::thread::sleep(std::time::Duration::from_millis(500));
        let finished = attach.finish().unwrap();
        let account = vllm::read(folder.path()).unwrap();
        let mut truth: Vec<&WorkerStep> = account.steps.iter().filter(|step| step.start_ns > from).collect();
        truth.sort_by_key(|step| step.end_ns);
        let spans = spans(&place.join("traces.jsonl"));
        let mut steps: Vec<&Span> = spans.iter().filter(|span| span.name == "engine_step").collect();
        steps.sort_by_key(|step| step.end);
        let (seen, expected): (Vec<_>, Vec<_>) =
            (steps.iter().map(|span| of_span(span)).collect(), truth.iter().map(|step| of_worker(step)).collect());
        let differing: Vec<_> =
            seen.iter().zip(&expected).enumerate().filter(|(_, (seen, expected))| seen != expected).collect();
        assert!(differing.is_empty(), "{clients} clients: {differing:#?}\n{}", finished.stderr);
        assert_eq!(seen.len(), expected.len(), "{clients} clients: steps\n{}", finished.stderr);
        for (span, step) in steps.iter().zip(&truth) {
            let mode = if step.graph_launches == 1 { "graph" } else { "eager" };
            assert_eq!(span.text("inferspan.cuda.mode"), mode);
        }

        // By the step that a link names, who was in it.
        let in_step: BTreeMap<&str, &WorkerStep> =
            steps.iter().zip(&truth).map(|(span, step)| (span.id.as_str(), *step)).collect();
        let ids: BTreeMap<&str, &str> = spans
            .iter()
            .map(|span| (span.trace.as_str(), span.text("inferspan.engine.request_id")))
            .filter(|(_, id)| !id.is_empty())
            .collect();
        let mut linked = 0;
        for span in spans.iter().filter(|span| span.name == "decode_step") {
            let [link] = span.links.as_slice() else { panic!("a decode step with {} links", span.links.len()) };
            let step = in_step.get(link.as_str()).expect("the step that a decode step names is there");
            let id = ids.get(span.trace.as_str()).expect("a request has its engine's id");
            assert!(step.requests.contains_key(*id), "{id} is not in the step that it names: {:?}", step.requests);
            assert!(step.graph_launches + step.launches.values().sum::<u64>() > 0);
            linked += 1;
        }
        assert!(linked > 3 * clients, "{linked} decode steps");

        // By name, all steps together.
        let mut by_name: BTreeMap<&str, u64> = BTreeMap::new();
        for (name, count) in truth.iter().flat_map(|step| &step.launches) {
            *by_name.entry(name).or_default() += count;
        }
        let rows: Vec<Value> = fs::read_to_string(&kernels)
            .expect("kernels")
            .lines()
            .map(|line| serde_json::from_str(line).expect("a row"))
            .collect();
        let named: BTreeMap<&str, u64> = rows
            .iter()
            .map(|row| (row["name"].as_str().unwrap_or_default(), row["launches"].as_u64().unwrap_or(0)))
            .collect();
        assert_eq!(named, by_name);
        eprintln!(
            "{clients} clients, level {level}: {} steps equal, {linked} decode steps linked, {} kernels named",
            steps.len(),
            rows.len()
        );
    }
}
