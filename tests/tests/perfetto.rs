//! Timelines in Perfetto's own importer: what it counts is what the run said.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use inferspan::export::flags::OutputArgs;
use inferspan::export::{Pressure, Sinks};
use inferspan::output::{Output, Trace};
use inferspan::recording::reader::Recording;
use inferspan::run::recorded::Opened;
use inferspan::telemetry::Telemetry;
use inferspan_harness::folder::Folder;
use inferspan_harness::perfetto::{Perfetto, Rows};
use inferspan_tests::madeup::cuda;
use inferspan_tests::outputs;
use inferspan_tests::outputs::EPOCH_NS;
use inferspan_tests::pipeline::{self, Made};
use serde_json::{Value, json};

/// What the importer could not read or had to give up, of either format.
const COMPLAINTS: &str =
    "select name, value from stats where value > 0 and (severity <> 'info' or name like '%error%')";

/// Steps of the made-up CUDA calls.
const STEPS: u8 = 40;

/// Both files that a run writes.
struct Files {
    folder: Folder,
}

impl Files {
    fn new(name: &str) -> Self {
        Self { folder: Folder::scratch(name).unwrap() }
    }

    fn paths(&self) -> [PathBuf; 2] {
        ["t.pftrace", "t.json"].map(|name| self.folder.path().join(name))
    }

    fn flags(&self) -> OutputArgs {
        let [perfetto, chrome] = self.paths().map(Some);
        OutputArgs { perfetto, chrome, ..OutputArgs::default() }
    }
}

fn write(files: &Files, mut outputs: Vec<Output>) {
    let mut sinks = Sinks::open(&files.flags(), Arc::default(), Pressure::Wait).unwrap();
    sinks.push(&mut outputs);
    assert_eq!(sinks.finish().failures, Vec::<String>::new());
}

fn recording(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("fixtures/recordings/{name}.isrec"))
}

fn made(name: &str) -> Made {
    let mut recording = Recording::open(&recording(name)).unwrap();
    let entries = std::iter::from_fn(|| recording.next_entry().unwrap()).collect();
    pipeline::replay(entries, false).0
}

/// What a request's spans are called in a timeline.
fn title(trace: &Trace, place: usize) -> String {
    let span = &trace.spans[place];
    let text = |key: &str| {
        span.attributes.iter().find(|(k, _)| *k == key).map(|(_, value)| match value {
            inferspan::output::Value::Str(text) => text.to_string(),
            other => panic!("{key}: {other:?}"),
        })
    };
    if place > 0 {
        return span.name.to_owned();
    }
    let known = Some(trace.server.model.clone()).filter(|model| !model.is_empty());
    let model = text("gen_ai.request.model").or_else(|| text("gen_ai.response.model")).or(known);
    let outcome = text("inferspan.outcome").unwrap();
    model.map_or_else(|| outcome.clone(), |model| format!("{model} {outcome}"))
}

/// Number of slices and sum of their times, ns, by name; numbers of arrows and of counts.
#[derive(Debug, Default, PartialEq)]
struct Sums {
    slices: BTreeMap<String, (u64, u64)>,
    arrows: u64,
    counts: BTreeMap<String, u64>,
}

fn sums_of(made: &Made) -> Sums {
    let mut sums = Sums::default();
    let mut add = |name: String, ns: u64| {
        let (count, sum) = sums.slices.entry(name).or_default();
        *count += 1;
        *sum += ns;
    };
    let steps: HashMap<_, _> = made.steps.iter().map(|step| (step.span_id, step)).collect();
    for trace in &made.traces {
        for (place, span) in trace.spans.iter().enumerate() {
            add(title(trace, place), span.end_ns - span.start_ns);
            span.events.iter().for_each(|event| add(event.name.to_owned(), 0));
            let step = span.links.first().and_then(|link| steps.get(&link.span_id));
            let meet = step.is_some_and(|step| span.start_ns.max(step.start_ns) < step.end_ns);
            sums.arrows += u64::from(meet && span.end_ns > span.start_ns);
        }
    }
    for step in &made.steps {
        add("step".to_owned(), step.end_ns - step.start_ns);
        for what in ["requests running", "requests waiting", "KV cache use"] {
            *sums.counts.entry(format!("engine {} {what}", step.engine)).or_default() +=
                u64::from(step.stats.is_some());
        }
    }
    sums
}

fn number(value: &Value) -> u64 {
    value.as_u64().or_else(|| value.as_str()?.parse().ok()).unwrap_or_else(|| panic!("{value} is no number"))
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text")).to_owned()
}

/// What the importer says of the same; nothing when it complains.
fn sums_in(perfetto: &Perfetto, file: &Path) -> Sums {
    let queries = [
        COMPLAINTS,
        "select name, count(*), sum(dur) from slice group by name",
        "select count(*) from flow",
        "select track.name, count(*) from counter join track on track.id = track_id group by track.name",
        "select count(*) from slice where dur < 0",
    ];
    let answers: [Rows; 5] = perfetto.query(file, &queries).unwrap().try_into().unwrap();
    let [complaints, slices, arrows, counts, open] = answers;
    assert_eq!(complaints, Rows::new(), "{}", file.display());
    assert_eq!(open, [[json!(0)]], "{}: no slice is left open", file.display());
    Sums {
        slices: slices.iter().map(|row| (text(&row[0]), (number(&row[1]), number(&row[2])))).collect(),
        arrows: number(&arrows[0][0]),
        // The importer of JSON adds the name of the value.
        counts: counts.iter().map(|row| (text(&row[0]).replace(" value", ""), number(&row[1]))).collect(),
    }
}

#[test]
fn a_recordings_timeline_holds_what_the_run_said() {
    let Some(perfetto) = Perfetto::from_env() else { return };
    for name in ["vllm-0.32-mixed", "vllm-0.32-api2", "vllm-0.32-dp2", "vllm-0.32-700-open"] {
        let files = Files::new(name);
        let telemetry = Arc::<Telemetry>::default();
        let sinks = Sinks::open(&files.flags(), Arc::clone(&telemetry), Pressure::Wait).unwrap();
        let played = Opened::open(&recording(name)).unwrap().run(2000, sinks, telemetry);
        assert_eq!(played.finished.summary.failures, Vec::<String>::new(), "{name}");
        let said = sums_of(&made(name));
        assert!(said.slices["step"].0 > 100 && said.arrows > 100, "{name}: {said:?}");
        for file in files.paths() {
            assert_eq!(sums_in(&perfetto, &file), said, "{name}: {}", file.display());
        }
    }
}

#[test]
fn slices_nest_as_the_tree_does_and_requests_share_no_lane() {
    let Some(perfetto) = Perfetto::from_env() else { return };
    let name = "vllm-0.32-mixed";
    let files = Files::new("nesting");
    let telemetry = Arc::<Telemetry>::default();
    let sinks = Sinks::open(&files.flags(), Arc::clone(&telemetry), Pressure::Wait).unwrap();
    Opened::open(&recording(name)).unwrap().run(2000, sinks, telemetry);
    let mut pairs: BTreeMap<(String, String), u64> = BTreeMap::new();
    for trace in made(name).traces {
        let names: HashMap<_, _> =
            trace.spans.iter().enumerate().map(|(place, span)| (span.span_id, title(&trace, place))).collect();
        for (place, span) in trace.spans.iter().enumerate().filter(|(_, span)| span.name == "decode_step") {
            let parent = names[&span.parent.unwrap()].clone();
            *pairs.entry((parent, title(&trace, place))).or_default() += 1;
        }
    }
    assert_eq!(pairs.len(), 1, "decode is what has steps: {pairs:?}");
    for file in files.paths() {
        let queries = [
            "select up.name, s.name, count(*) from slice s join slice up on up.id = s.parent_id where s.name = 'decode_step' \
             group by 1, 2",
            "select count(*) from slice where depth = 0 and category = 'request' and name not like 'tiny %' and name <> 'rejected' and dur > 0 and \
             track_id not in (select track_id from slice where name in ('generation', 'detokenize', 'tokenize'))",
        ];
        let [nested, strays]: [Rows; 2] = perfetto.query(&file, &queries).unwrap().try_into().unwrap();
        let nested: BTreeMap<_, _> =
            nested.iter().map(|row| ((text(&row[0]), text(&row[1])), number(&row[2]))).collect();
        assert_eq!(nested, pairs, "{}", file.display());
        assert_eq!(strays, [[json!(0)]], "{}", file.display());
    }
}

#[test]
fn cuda_calls_are_drawn_where_and_when_they_were_made() {
    let Some(perfetto) = Perfetto::from_env() else { return };
    let files = Files::new("cuda");
    write(&files, cuda::all(STEPS));
    let (steps, ranks) = (u64::from(STEPS), cuda::RANKS.len() as u64);
    for file in files.paths() {
        let queries = [
            COMPLAINTS,
            "select pid, process.name from process where pid > 0 order by pid",
            "select t.name, s.name, category, count(*), sum(dur) from slice s join thread_track on s.track_id = thread_track.id \
             join thread t using (utid) where tid = 5007 and t.name like 'CUDA%' group by 1, 2, 3 order by 2",
            "select count(distinct track_id), count(*) from slice where track_id in \
             (select track.id from track left join thread_track tt on tt.id = track.id left join thread using (utid) \
             where coalesce(thread.name, track.name) like 'stream 0x% (launch order, not GPU time)')",
            "select a.name, count(*) from flow join slice a on a.id = slice_out join slice b on b.id = slice_in \
             where extract_arg(a.arg_set_id, 'debug.step') = extract_arg(b.arg_set_id, 'debug.step') or \
             extract_arg(a.arg_set_id, 'args.step') = extract_arg(b.arg_set_id, 'args.step') group by 1",
            "select max(value), count(*) from counter join track on track.id = track_id where track.name like 'device memory%'",
            "select distinct coalesce(extract_arg(arg_set_id, 'debug.grid'), extract_arg(arg_set_id, 'args.grid')), \
             coalesce(extract_arg(arg_set_id, 'debug.kernel'), extract_arg(arg_set_id, 'args.kernel')) \
             from slice where name = 'ampere_gemm_128x64' and arg_set_id > 0 order by 1 desc limit 1",
            "select distinct coalesce(extract_arg(arg_set_id, 'debug.kernels'), extract_arg(arg_set_id, 'args.kernels')) as of \
             from slice where of is not null",
        ];
        let at = file.display();
        let answers: [Rows; 8] = perfetto.query(&file, &queries).unwrap().try_into().unwrap();
        let [complaints, processes, calls, streams, arrows, memory, kernels, graphs] = answers;
        assert_eq!(complaints, Rows::new(), "{at}");
        let name = |what: &str| format!("{} {what}", outputs::SERVER);
        let rank = |n: u64| json!([5000 + n, name(&format!("worker 0 rank {n}"))]);
        assert_eq!(json!(processes), json!([[4300, name("engine 0")], rank(0), rank(1)]), "{at}");
        let thread = "CUDA calls of thread 5007";
        let call = |title: &str, category: &str, ns: u64| json!([thread, title, category, steps, steps * ns]);
        let expected = json!([
            call("all_reduce", "cuda,collective", 0),
            call("ampere_gemm_128x64", "cuda,gemm", 0),
            call("copy h2d", "cuda,copy", 0),
            call("flash_fwd_kernel", "cuda,attention", 0),
            call("graph 0xabc", "cuda,graph", 0),
            call("wait for stream", "cuda,wait", 5_000_000),
        ]);
        assert_eq!(json!(calls), expected, "{at}");
        assert_eq!(expected.as_array().unwrap().len(), cuda::CALLS);
        // Two streams of each rank; a wait puts nothing on one.
        assert_eq!(json!(streams), json!([[2 * ranks, steps * ranks * 5]]), "{at}");
        assert_eq!(json!(arrows), json!([["step", steps * ranks]]), "{at}: one arrow from a step to each thread");
        assert_eq!(number(&json!(memory[0][0].as_f64().unwrap() as u64)), 1 << 35, "{at}");
        assert_eq!(memory[0][1], json!(steps * ranks * 2), "{at}");
        assert_eq!(json!(kernels), json!([["128x2x1", "void ns::ampere_gemm_128x64<float>(int)"]]), "{at}");
        assert_eq!(json!(graphs), json!([["flash_fwd_kernel ×300, ampere_gemm_128x64 ×112"]]), "{at}");
    }
}

#[test]
fn times_are_those_of_the_unix_clock() {
    let Some(perfetto) = Perfetto::from_env() else { return };
    let files = Files::new("clock");
    write(&files, cuda::all(1));
    let [perfetto_file, chrome] = files.paths();
    let first = |file: &Path| number(&perfetto.query(file, &["select min(ts) from slice"]).unwrap()[0][0][0]);
    assert_eq!(first(&perfetto_file), EPOCH_NS);
    let events: Vec<Value> = serde_json::from_str(&std::fs::read_to_string(&chrome).unwrap()).unwrap();
    assert_eq!(events[0]["args"]["clock"], "CLOCK_REALTIME");
    assert_eq!(first(&chrome) + number(&events[0]["args"]["unix_ns"]), EPOCH_NS);
}

#[test]
fn a_timeline_that_breaks_off_is_read_up_to_there() {
    let Some(perfetto) = Perfetto::from_env() else { return };
    let files = Files::new("broken");
    write(&files, cuda::all(STEPS));
    for file in files.paths() {
        let whole = std::fs::read(&file).unwrap();
        let count = |bytes: &[u8]| {
            let cut = file.with_extension(format!("cut.{}", file.extension().unwrap().display()));
            std::fs::write(&cut, bytes).unwrap();
            let answers = perfetto.query(&cut, &["select count(*) from slice"]).unwrap();
            number(&answers[0][0][0])
        };
        let all = count(&whole);
        for share in [3, 7] {
            let read = count(&whole[..=whole.len() * share / 10]);
            let fair = all * share as u64 / 10;
            assert!(read.abs_diff(fair) * 10 < all, "{}: {read} of {all} at {share}0 %", file.display());
        }
    }
}

#[test]
fn an_empty_run_is_a_timeline_too() {
    let Some(perfetto) = Perfetto::from_env() else { return };
    let files = Files::new("empty");
    write(&files, Vec::new());
    for file in files.paths() {
        assert_eq!(perfetto.query(&file, &[COMPLAINTS]).unwrap(), [Rows::new()], "{}", file.display());
    }
}

#[test]
fn hand_made_requests_hold_every_kind_of_note() {
    let Some(perfetto) = Perfetto::from_env() else { return };
    let files = Files::new("notes");
    write(&files, outputs::all(1));
    let [file, _] = files.paths();
    let sql = "select key, count(*) from args where key like 'debug.%' group by key order by key";
    let rows = perfetto.query(&file, &[COMPLAINTS, sql]).unwrap();
    assert_eq!(rows[0], Rows::new());
    let keys: Vec<String> = rows[1].iter().map(|row| text(&row[0])).collect();
    for (key, _) in outputs::request(1).spans.iter().flat_map(|span| &span.attributes) {
        // The importer writes dots within a key as underscores, and adds places to lists.
        let key = format!("debug.{}", key.replace('.', "_"));
        assert!(keys.iter().any(|known| known.starts_with(&key)), "{key} is not in {keys:?}");
    }
}
