//! The real vLLM on CPU, whose workers drive the fake CUDA: requests, engine steps and launches meet.
//!
//! ```text
//! worker   │ step 1: launches, copies, wait │ step 2 …      its own account, step by step
//! engine   ├──────── engine_step ───────────┤ ├────         traced: with the totals of that step, exactly
//! request       decode_step ──link──▶ engine_step           each to the step whose account names the request
//! ```
//!
//! Needs root, gcc, `INFERSPAN_VLLM_VENV` and `INFERSPAN_VLLM_MODEL`; says loudly when it is skipped.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::Duration;

use inferspan::source::ring::monotonic_ns;
use inferspan_harness::folder::Folder;
use inferspan_harness::installed::Vllm;
use inferspan_harness::process::Signal;
use inferspan_harness::server::Server;
use inferspan_harness::wait::Interrupt;
use inferspan_tests::cuda::steps::{Counts, Run, Span, Truth};
use inferspan_tests::cuda::timeline;
use inferspan_tests::cuda::vllm::{self, Cuda, Mode};
use inferspan_tests::cuda::{Driver, Fixture};
use inferspan_tests::judge::{Attach, Target};
use inferspan_tests::live::may_trace;
use inferspan_tests::traffic::{Kind, Load, Until};
use serde_json::Value;

/// A started server, and where its account is.
struct Started {
    server: Server,
    folder: Folder,
}

/// What is not the same for all servers.
struct Setup {
    driver: Driver,
    ahead: bool,
    late: Option<(u32, Duration)>,
}

const PLAIN: Setup = Setup { driver: Driver::New, ahead: false, late: None };

impl Started {
    /// `None`, said loudly, when something is missing.
    fn start(test: &str, name: &str, setup: &Setup, arguments: &[&str]) -> Option<Self> {
        if !may_trace(test) {
            return None;
        }
        let (installed, fixture) = (Vllm::from_env()?, Fixture::for_test(test)?);
        let folder = Folder::new(&format!("vllm-cuda-{name}")).expect("a folder");
        // Short prompts and decodes are graphs, and prompts of more than 64 tokens are not: all modes of a step in one server.
        let &Setup { driver, ahead, late } = setup;
        let cuda = Cuda { fixture: &fixture, driver, mode: Mode::FullAndPiecewise, ahead, late };
        let arguments = [&["--max-num-seqs", "64"], arguments].concat();
        let server =
            vllm::start(&installed, &cuda, folder.path(), &Interrupt::never(), &arguments).expect("vLLM starts");
        let started = Self { server, folder };
        // It compiles at its first samples.
        started.send(2, 6, 99);
        Some(started)
    }

    fn send(&self, clients: usize, requests: usize, seed: u64) {
        let target = Target::from(&self.server);
        let kinds = vec![Kind::CompletionStream, Kind::Completion, Kind::Long];
        Load { url: target.url, model: target.model, kinds, clients, until: Until::Requests(requests), seed }
            .run()
            .expect("every request is answered");
    }

    /// Traces so many clients with three requests each; what was written is in `place`.
    fn trace(&self, clients: usize, level: &str, place: &Path) -> Run {
        self.trace_with(&["--level", level], place, |_| self.send(clients, 3 * clients, clients as u64))
    }

    /// Traces what `send` sends.
    fn trace_with(&self, flags: &[&str], place: &Path, send: impl FnOnce(&Attach)) -> Run {
        let kernels = place.join("kernels.jsonl");
        let kernels = ["--engine-steps", "all", "--kernels-out", kernels.to_str().expect("UTF-8")];
        let attach = Attach::start(self.server.pid, place, &[&kernels, flags].concat()).expect("inferspan attaches");
        let from = monotonic_ns();
        send(&attach);
        // The last step's totals come when its threads are looked at.
        std::thread::sleep(Duration::from_millis(500));
        let page = attach.metrics().expect("its page");
        let said = attach.finish().expect("inferspan ends").stderr;
        let account = vllm::read(self.folder.path()).expect("the workers' account");
        Run::new(&place.join("traces.jsonl"), &account, from, page, said)
    }
}

#[test]
fn every_decode_step_links_to_the_step_that_holds_its_launches() {
    const TEST: &str = "every_decode_step_links_to_the_step_that_holds_its_launches";
    let Some(started) = Started::start(TEST, "one", &PLAIN, &[]) else { return };
    let mut modes = BTreeSet::new();
    for (clients, level) in [(1, "steps"), (8, "kernels"), (64, "steps")] {
        let place = started.folder.path().join(format!("{clients}-{level}"));
        let run = started.trace(clients, level, &place);
        let what = format!("{clients} clients, level {level}");
        assert_eq!(run.assert_counts(&what), 0, "estimated steps of an engine that does not schedule ahead");
        for (at, (span, truth)) in run.steps().enumerate() {
            let mode = span.text("inferspan.cuda.mode");
            assert_eq!(mode, truth.mode(), "{what}: step {at}\n{}", run.evidence(&[at]));
            modes.insert(truth.mode());
        }
        let linked = links(&run, &what);
        assert!(linked > 3 * clients, "{what}: {linked} decode steps\n{}", run.evidence(&[]));
        back(&run, &what);
        shares(&run, &what);
        memory(&run, &what);
        let named = names(&run, &place);
        eprintln!("{what}: {} steps equal, {linked} decode steps linked, {named} kernels named", run.truth.len());
    }
    assert_eq!(modes, BTreeSet::from(["eager", "graph", "piecewise"]));
}

/// Every decode step links to one step, whose account names its request; how many there are.
fn links(run: &Run, what: &str) -> usize {
    let steps: BTreeMap<&str, usize> = run.seen.iter().enumerate().map(|(at, span)| (span.id.as_str(), at)).collect();
    let ids = run.spans.iter().map(|span| (span.trace.as_str(), span.text("inferspan.engine.request_id")));
    let ids: BTreeMap<&str, &str> = ids.filter(|(_, id)| !id.is_empty()).collect();
    let decode_steps: Vec<_> = run.spans.iter().filter(|span| span.name == "decode_step").collect();
    for span in &decode_steps {
        let [link] = span.links.as_slice() else { panic!("{what}: a decode step with {} links", span.links.len()) };
        let Some(at) = steps.get(link.as_str()) else {
            panic!("{what}: {} names a step that is not there\n{}", span.trace, run.evidence(&[]))
        };
        let truth = &run.truth[*at].ranks[0];
        let id = ids.get(span.trace.as_str()).expect("a request has its engine's id");
        let evidence = || run.evidence(&[*at]);
        assert!(truth.requests.contains_key(*id), "{what}: {id} is none of {:?}\n{}", truth.requests, evidence());
        assert!(truth.graph_launches + truth.launches.values().sum::<u64>() > 0, "{what}: nothing\n{}", evidence());
    }
    decode_steps.len()
}

/// A step links to the requests that it gave something for: to all whose response said early whose it is, as a stream does.
fn back(run: &Run, what: &str) {
    let is_root = |span: &&Span| span.name == "inference_request";
    let roots: BTreeMap<&str, &Span> =
        run.spans.iter().filter(is_root).map(|span| (span.trace.as_str(), span)).collect();
    let of_id: BTreeSet<&str> = roots.values().map(|root| root.id.as_str()).collect();
    let steps: BTreeMap<&str, &Span> = run.seen.iter().map(|step| (step.id.as_str(), step)).collect();
    for step in &run.seen {
        assert!(step.links.iter().all(|link| of_id.contains(link.as_str())), "{what}: a step links to no request");
    }
    let mut linked = 0;
    for span in run.spans.iter().filter(|span| span.name == "decode_step") {
        let (root, step) = (roots[span.trace.as_str()], steps[span.links[0].as_str()]);
        if root.is_set("gen_ai.request.stream") && step.count("inferspan.batch.requests") <= 32 {
            assert!(step.links.contains(&root.id), "{what}: {} does not link back to {}", step.id, root.trace);
            linked += 1;
        }
    }
    assert!(linked > 0, "{what}: no step links back");
}

/// What the steps did is shared out among their requests, once.
fn shares(run: &Run, what: &str) {
    let has_requests = |step: &&Span| step.count("inferspan.batch.requests") > 0;
    for of in ["launches", "copies.h2d", "copy_bytes.h2d", "copies.d2h", "copy_bytes.d2h"] {
        let key = format!("inferspan.cuda.share.{of}");
        let shared: f64 = run.spans.iter().filter_map(|span| span.seconds(&key)).sum();
        let key = format!("inferspan.cuda.{of}");
        let whole: u64 = run.seen.iter().filter(has_requests).map(|step| step.count(&key)).sum();
        assert!(
            whole > 0 && (shared - whole as f64).abs() < 1e-3,
            "{what}: {shared} of {whole} {of}\n{}",
            run.evidence(&[])
        );
    }
}

/// Device memory of the worker: what its steps allocated and did not free, and the most of it.
fn memory(run: &Run, what: &str) {
    let calls = run.truth.iter().flat_map(|truth| &truth.ranks).flat_map(|step| &step.memory);
    let (mut live, mut peak) = (0, 0);
    for bytes in calls {
        live += bytes;
        peak = peak.max(live);
    }
    let seen = ["", "_peak"].map(|of| run.page.sum(&format!("inferspan_cuda_memory{of}_bytes"), "") as i64);
    assert_eq!(seen, [live, peak], "{what}\n{}", run.evidence(&[]));
    assert!(peak > 0, "{what}: no step allocated");
}

/// A rank reads the clock just before a collective: behind by so much, ns, it is behind.
const CLEAR_NS: u64 = 1_000_000;

/// The collectives of each step are its ranks', and rank 1 is the one that the other waits for.
fn collectives(run: &Run, what: &str) {
    let (mut apart, mut clear) = (Vec::new(), 0);
    for (at, (span, truth)) in run.steps().enumerate() {
        let evidence = || format!("{what}: step {at}\n{}", run.evidence(&[at]));
        let entered: usize = truth.ranks.iter().map(|step| step.collectives.len()).sum();
        assert_eq!(span.count("inferspan.cuda.collectives"), entered as u64, "{}", evidence());
        let skew = span.seconds("inferspan.cuda.collective_skew_seconds").unwrap_or_else(|| panic!("{}", evidence()));
        let really = truth.collective_skew_ns().expect("a step has one at least") as f64 / 1e9;
        // A rank reads the clock just before the call, and may be put aside in between.
        apart.push((skew - really).abs());
        assert!((skew - really).abs() < 0.02, "{skew} s, really {really} s: {}", evidence());
        if let Some(last) = truth.straggler(CLEAR_NS) {
            assert!(span.has("inferspan.cuda.straggler_rank"), "{}", evidence());
            assert_eq!(span.count("inferspan.cuda.straggler_rank"), u64::from(last), "{}", evidence());
            clear += 1;
        }
    }
    assert!(2 * clear > run.truth.len(), "{what}: {clear} of {} steps are clear", run.truth.len());
    apart.sort_by(f64::total_cmp);
    assert!(apart[apart.len() / 2] < 0.001, "{what}: off by {apart:?} s");
    let stragglers = run.seen.iter().filter(|span| span.count("inferspan.cuda.straggler_rank") == 1).count();
    assert!(2 * stragglers > run.seen.len(), "{what}: {stragglers} of {}\n{}", run.seen.len(), run.evidence(&[]));
    let kinds = [("AllReduce", "all_reduce"), ("AllGather", "all_gather")];
    for (theirs, ours) in kinds {
        let made = run.truth.iter().flat_map(|truth| &truth.ranks).flat_map(|step| &step.collectives);
        let made = made.filter(|(kind, ..)| kind == theirs).fold((0, 0), |sum, of| (sum.0 + 1, sum.1 + of.1));
        let label = format!("kind=\"{ours}\"");
        let seen =
            ["collectives", "bytes"].map(|of| run.page.sum(&format!("inferspan_nccl_{of}_total"), &label) as u64);
        assert_eq!(seen, [made.0, made.1], "{what}: {ours}\n{}", run.evidence(&[]));
        assert!(made.0 > 0, "{what}: no {theirs}");
    }
}

/// Launches by name, all steps together, are the workers' own; how many names there are.
fn names(run: &Run, place: &Path) -> usize {
    let mut by_name: BTreeMap<&str, u64> = BTreeMap::new();
    for (name, count) in run.truth.iter().flat_map(|truth| &truth.ranks).flat_map(|step| &step.launches) {
        *by_name.entry(name).or_default() += count;
    }
    let text = fs::read_to_string(place.join("kernels.jsonl")).expect("kernels");
    let rows: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("a row")).collect();
    let mut named: BTreeMap<&str, u64> = BTreeMap::new();
    for row in &rows {
        *named.entry(row["name"].as_str().unwrap_or_default()).or_default() += row["launches"].as_u64().unwrap_or(0);
    }
    assert_eq!(named, by_name, "{}", run.evidence(&[]));
    named.len()
}

#[test]
fn two_workers_are_one_step_and_their_skew_is_their_own() {
    // rank 0 │ ■■■ ─ wait │      │■■■ ─ wait │
    // rank 1 │   ■■■ wait │      │ ■■■  wait │        first calls apart: the skew
    // engine ├── step ────┤      ├── step ───┤        launches of both, processes 2
    const TEST: &str = "two_workers_are_one_step_and_their_skew_is_their_own";
    // Rank 1 comes late to collectives, and not to its steps.
    let setup = Setup { late: Some((1, Duration::from_millis(4))), ..PLAIN };
    let Some(started) = Started::start(TEST, "two", &setup, &["--tensor-parallel-size", "2"]) else { return };
    for (clients, level) in [(1, "steps"), (8, "kernels")] {
        let place = started.folder.path().join(format!("{clients}-{level}"));
        let run = started.trace(clients, level, &place);
        let what = format!("two workers, {clients} clients, level {level}");
        assert_eq!(run.assert_counts(&what), 0, "estimated steps of an engine that does not schedule ahead");
        let mut apart = Vec::new();
        for (at, (span, truth)) in run.steps().enumerate() {
            let evidence = || format!("{what}: step {at}\n{}", run.evidence(&[at]));
            assert_eq!(truth.ranks.len(), 2, "{}", evidence());
            assert_eq!(span.text("inferspan.cuda.mode"), truth.mode(), "{}", evidence());
            assert_eq!(span.count("inferspan.cuda.processes"), 2, "{}", evidence());
            let skew = span.seconds("inferspan.cuda.skew_seconds").unwrap_or(-1.0);
            let length = (span.end - span.start) as f64 / 1e9;
            assert!((0.0..=length).contains(&skew), "{skew} s of {length} s\n{}", evidence());
            // A worker reads the clock just before its first call, and may be put aside in between.
            let off = (skew - truth.skew_ns() as f64 / 1e9).abs();
            assert!(off < 0.02, "the skew is off by {off} s\n{}", evidence());
            apart.push(off);
        }
        apart.sort_by(f64::total_cmp);
        let median = apart[apart.len() / 2];
        assert!(median < 0.001, "{what}: skews are off by {median} s\n{}", run.evidence(&[]));
        collectives(&run, &what);
        names(&run, &place);
        eprintln!("{what}: {} steps equal, skews off by {median:.6} s (median)", run.truth.len());
    }
}

#[test]
fn an_engine_that_schedules_ahead_gives_each_step_its_own() {
    // worker  launches B1 · B2 │ B3 │ B4 │ …        engine  │ step 1 │ step 2 │ step 3 …
    // waits           for B1 ──┘ B2 ┘                          B1's, though B2 was launched before its end
    //
    // A step that says of itself that it is estimated may have launches of its neighbours: a wait that begins late, as Python's threads
    // do, does not part them for sure. All together are exact.
    const TEST: &str = "an_engine_that_schedules_ahead_gives_each_step_its_own";
    let Some(started) = Started::start(TEST, "ahead", &Setup { ahead: true, ..PLAIN }, &["--async-scheduling"]) else {
        return;
    };
    for (clients, level) in [(1, "steps"), (8, "kernels")] {
        let place = started.folder.path().join(format!("{clients}-{level}"));
        let run = started.trace(clients, level, &place);
        let what = format!("scheduled ahead, {clients} clients, level {level}");
        let estimated = run.assert_counts(&what);
        assert!(2 * estimated < run.truth.len(), "{what}: {estimated} steps are estimated\n{}", run.evidence(&[]));
        eprintln!("{what}: {} steps, {estimated} of them estimated", run.truth.len());
    }
}

#[test]
fn the_old_drivers_trampolines_a_timeline_and_forced_losses_lose_no_count() {
    // run 1 │ 8 clients, a timeline of all of it
    // run 2 │ inferspan stands still ─ two requests, thousands of launches a step: most find no room ─ it goes on
    const TEST: &str = "the_old_drivers_trampolines_a_timeline_and_forced_losses_lose_no_count";
    let Some(started) = Started::start(TEST, "old", &Setup { driver: Driver::Old, ..PLAIN }, &[]) else { return };
    let place = started.folder.path().join("timeline");
    let file = place.join("run.pftrace");
    let flags = ["--level", "kernels", "--perfetto", file.to_str().expect("UTF-8")];
    let run = started.trace_with(&flags, &place, |_| started.send(8, 24, 8));
    let what = "the old driver, a timeline";
    assert_eq!(run.assert_counts(what), 0);
    assert!(links(&run, what) > 24);
    names(&run, &place);
    timeline::assert_is(&run, &file, what);

    let place = started.folder.path().join("losses");
    let run = started.trace_with(&["--level", "kernels"], &place, |attach| {
        attach.signal(Signal::STOP).expect("it runs");
        vllm::burst(started.folder.path(), 6000).expect("a file");
        started.send(1, 2, 5);
        vllm::burst(started.folder.path(), 0).expect("no file");
        std::thread::sleep(Duration::from_millis(200));
        attach.signal(Signal::CONT).expect("it runs");
        started.send(1, 2, 6);
    });
    let what = "the old driver, losses";
    let made = run.truth.iter().map(Truth::counts).fold(Counts::default(), Counts::plus);
    let total = |name: &str, label: &str| run.page.sum(name, label) as u64;
    let lost = total("inferspan_events_dropped_total", "stage=\"launch_ring\"");
    assert!(made.launches > 60_000 && lost > 1000, "{made:?}, {lost} lost\n{}", run.said);
    let copies = |kind: &str| {
        let label = format!("kind=\"{kind}\"");
        (total("inferspan_cuda_copies_total", &label), total("inferspan_cuda_copy_bytes_total", &label))
    };
    let seen = Counts {
        launches: total("inferspan_cuda_launches_total", ""),
        graph_launches: total("inferspan_cuda_graph_launches_total", ""),
        h2d: copies("h2d"),
        d2h: copies("d2h"),
        waits: made.waits,
    };
    assert_eq!(seen, made, "{what}\n{}", run.evidence(&[]));
    names(&run, &place);
    eprintln!("{what}: {} launches, {lost} records lost", made.launches);
}
