//! Recordings: the same outputs as those of the run that they were made in, and nothing of what people wrote.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use inferspan::attach::Level;
use inferspan::core::Config;
use inferspan::export::flags::OutputArgs;
use inferspan::export::otlp::spans::Origin;
use inferspan::export::{Pressure, Sinks};
use inferspan::input::gpu::{Gpu, Gpus, Throttle};
use inferspan::input::{Input, LossStage, Lost};
use inferspan::recording::Entry;
use inferspan::recording::blocks::MAGIC;
use inferspan::recording::reader::Recording;
use inferspan::recording::recorder::Recorder;
use inferspan::recording::{Header, blocks};
use inferspan::run::pipeline::Pipeline;
use inferspan::run::recorded::Opened;
use inferspan::telemetry::Telemetry;
use inferspan_harness::folder::Folder;
use inferspan_tests::judge::Page;
use inferspan_tests::pipeline::{self, CAPTURES};
use proptest::prelude::*;

/// A file that goes with the test.
struct Temporary(PathBuf, #[expect(dead_code, reason = "its drop is what it is for")] Folder);

impl Temporary {
    fn new(name: &str) -> Self {
        let folder = Folder::scratch("recording").expect("a folder");
        Self(folder.path().join(name), folder)
    }
}

/// Through a file and back.
fn through_a_file(entries: Vec<Entry>, name: &str) -> Vec<Entry> {
    let file = Temporary::new(name);
    let mut recorder = Recorder::start(&file.0, &Header { servers: 1, ..Header::default() }).expect("a file");
    recorder.push(entries);
    assert_eq!(recorder.finish(0).failure, None);
    let mut recording = Recording::open(&file.0).expect("it was just written");
    let read: Vec<Entry> = std::iter::from_fn(|| recording.next_entry().expect("whole")).collect();
    let (end, entries) = read.split_last().expect("an end at least");
    assert_eq!(*end, Entry::Complete { late: 0 });
    entries.to_vec()
}

fn inputs(capture: &str) -> Vec<Input> {
    pipeline::events(capture).into_iter().map(Input::Event).collect()
}

#[test]
fn every_capture_gives_the_same_from_its_recording() {
    let mut seen = 0;
    for name in CAPTURES {
        for raw in [false, true] {
            let (made, entries) = pipeline::record(&inputs(name), raw);
            let read = through_a_file(entries.clone(), &format!("{name}-{raw}"));
            assert_eq!(read, entries, "{name}: a file changes nothing");
            let (again, unanswered) = pipeline::replay(read, raw);
            assert!(made == again, "{name} raw={raw}");
            seen += made.access.len();
            assert_eq!(unanswered, 0, "{name} raw={raw}");
        }
    }
    assert!(seen > 50, "{seen} requests");
}

#[test]
fn what_the_driver_of_the_gpus_says_is_replayed() {
    // 87 % busy ─ it does not answer any more
    let gpu = Gpu { busy_percent: Some(87), throttled: Some(vec![Throttle::PowerCap]), ..Gpu::default() };
    let gpus = Arc::new(Gpus { driver: Some("570.1".into()), all: vec![gpu] });
    let mut pipeline = Pipeline::new(1, 0, &Config::default());
    pipeline.record(false);
    for said in [Some(gpus), None] {
        pipeline.push(None, Input::Gpus(said));
    }
    let entries = through_a_file(pipeline.take_entries(), "gpus");
    let mut again = Pipeline::new(1, 0, &Config::default());
    for entry in entries {
        again.replay(entry, false);
    }
    assert_eq!(again.outputs().len(), 2);
    assert_eq!(pipeline.outputs(), again.outputs());
}

#[test]
fn a_recording_holds_no_bytes_and_a_raw_one_all() {
    for name in CAPTURES {
        let events = inputs(name);
        let bytes = |entries: &[Entry]| -> usize {
            let held = |entry: &Entry| match entry {
                Entry::Input { input: Input::Event(event), .. } => match &event.what {
                    inferspan::input::What::Data { bytes, .. } => bytes.len(),
                    _ => 0,
                },
                _ => 0,
            };
            entries.iter().map(held).sum()
        };
        assert_eq!(bytes(&pipeline::record(&events, false).1), 0, "{name}");
        assert!(bytes(&pipeline::record(&events, true).1) > 1000, "{name}");
    }
}

/// The texts of `prompt` and `content` in a capture's bodies are looked for in its recording.
#[test]
fn nothing_that_is_said_in_a_capture_is_in_its_recording() {
    let name = "v0.32_chat_stream.jsonl.gz";
    let content = |raw| {
        let (_, entries) = pipeline::record(&inputs(name), raw);
        rmp_serde::to_vec_named(&entries).expect("entries encode")
    };
    let said = |bytes: &[u8], what: &str| memchr::memmem::find(bytes, what.as_bytes()).is_some();
    let (scrubbed, raw) = (content(false), content(true));
    for word in ["\"content\"", "\"messages\"", "user-agent", "User-Agent"] {
        assert!(!said(&scrubbed, word), "{word}");
    }
    assert!(said(&raw, "\"content\"") && said(&raw, "\"messages\""));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Records missing anywhere, and told of: the replay makes the same of it.
    #[test]
    fn losses_are_replayed_as_they_were(
        which in 0..CAPTURES.len(),
        dropped in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
        told in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
    ) {
        let mut inputs = inputs(CAPTURES[which]);
        for index in dropped {
            let at = index.index(inputs.len());
            inputs.remove(at);
        }
        for (number, index) in told.into_iter().enumerate() {
            let at = index.index(inputs.len());
            let stage = [LossStage::DataRing, LossStage::EdgeRing, LossStage::Queue][number % 3];
            let time = match &inputs[at] {
                Input::Event(event) => event.at,
                _ => continue,
            };
            inputs.insert(at, Input::Lost(Lost { at: time, count: 1, stage }));
        }
        let (made, entries) = pipeline::record(&inputs, false);
        let (again, unanswered) = pipeline::replay(entries, false);
        prop_assert_eq!(made, again);
        prop_assert_eq!(unanswered, 0);
    }

    /// One wrong byte and a cut, anywhere: what is before them is read, whole, and nothing behind.
    #[test]
    fn a_damaged_recording_is_read_up_to_its_damage(at in any::<prop::sample::Index>(), with in 1u8.., cut in any::<prop::sample::Index>()) {
        let InBlocks { bytes, blocks, entries } = &*IN_BLOCKS;
        let (at, len) = (at.index(bytes.len()), 1 + cut.index(bytes.len()));
        let mut damaged = bytes.clone();
        damaged[at] ^= with;
        damaged.truncate(len);
        let file = Temporary::new("damaged");
        std::fs::write(&file.0, &damaged).expect("a file");
        // Blocks that are there, up to the one with the wrong byte. Eight bytes of a block's head are reserved, and say nothing.
        let whole = blocks.iter().take_while(|block| block.to <= len);
        let harmed = blocks.iter().position(|block| (block.from..block.to).contains(&at) && !(16..24).contains(&(at - block.from)));
        let whole = whole.count().min(harmed.unwrap_or(blocks.len()));
        let starts_wrong = at < MAGIC.len() + 4 && at < len;
        let Ok(mut recording) = Recording::open(&file.0) else {
            prop_assert!(starts_wrong || whole == 0, "{} blocks are whole", whole);
            return Ok(());
        };
        prop_assert!(!starts_wrong && whole > 0);
        let mut read = Vec::new();
        let damage = loop {
            match recording.next_entry() {
                Ok(Some(entry)) => read.push(entry),
                Ok(None) => break None,
                Err(damage) => break Some(damage),
            }
        };
        prop_assert_eq!(&read[..], &entries[..blocks[whole - 1].entries]);
        prop_assert_eq!(damage.is_none(), whole == blocks.len(), "{:?}", damage);
        pipeline::replay(read, false);
    }

    /// What a checksum does not find: payloads that were made to mislead.
    #[test]
    fn entries_that_make_no_sense_are_refused_or_harmless(at in any::<prop::sample::Index>(), with in 1u8..) {
        let (_, entries) = pipeline::record(&inputs(CAPTURES[2]), false);
        let mut payload = Vec::new();
        for entry in &entries {
            rmp_serde::encode::write_named(&mut payload, entry).expect("an entry encodes");
        }
        let len = payload.len();
        payload[at.index(len)] ^= with;
        let file = Temporary::new(&format!("misleading-{}-{with}", at.index(1 << 20)));
        let mut bytes = Vec::new();
        blocks::begin(&mut bytes).expect("memory");
        for block in [rmp_serde::to_vec_named(&Header { servers: 1, ..Header::default() }).expect("a header"), payload] {
            blocks::write(&mut bytes, &block).expect("memory");
        }
        std::fs::write(&file.0, &bytes).expect("a file");
        let mut recording = Recording::open(&file.0).expect("its header is right");
        let mut read = Vec::new();
        while let Ok(Some(entry)) = recording.next_entry() {
            read.push(entry);
        }
        pipeline::replay(read, false);
    }
}

/// A recording of small blocks.
struct InBlocks {
    bytes: Vec<u8>,
    blocks: Vec<Block>,
    entries: Vec<Entry>,
}

/// Where a block lies, and how many entries are in the file up to its end.
struct Block {
    from: usize,
    to: usize,
    entries: usize,
}

static IN_BLOCKS: LazyLock<InBlocks> = LazyLock::new(|| {
    let (_, mut entries) = pipeline::record(&inputs(CAPTURES[3]), false);
    entries.push(Entry::Complete { late: 0 });
    let header = rmp_serde::to_vec_named(&Header { servers: 1, ..Header::default() }).expect("a header");
    let pieces = entries.chunks(entries.len().div_ceil(12)).map(|chunk| {
        let mut payload = Vec::new();
        for entry in chunk {
            rmp_serde::encode::write_named(&mut payload, entry).expect("an entry encodes");
        }
        (payload, chunk.len())
    });
    let (mut bytes, mut blocks, mut count) = (Vec::new(), Vec::new(), 0);
    blocks::begin(&mut bytes).expect("memory");
    for (payload, more) in [(header, 0)].into_iter().chain(pieces) {
        let from = bytes.len();
        blocks::write(&mut bytes, &payload).expect("memory");
        count += more;
        blocks.push(Block { from, to: bytes.len(), entries: count });
    }
    assert!(blocks.len() > 8, "{} blocks", blocks.len());
    InBlocks { bytes, blocks, entries }
});

/// Folder of the recordings of real servers.
fn recordings() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/recordings")
}

/// What `inferspan replay` writes of a recording: access log and traces.
fn replayed(file: &Path, name: &str) -> (String, String) {
    let (log, traces) = (Temporary::new(&format!("{name}-log")), Temporary::new(&format!("{name}-traces")));
    let flags =
        OutputArgs { access_log: Some(log.0.clone()), traces_out: Some(traces.0.clone()), ..OutputArgs::default() };
    let opened = Opened::open(file).expect("a recording");
    let telemetry = Arc::new(Telemetry::default());
    let origin = Origin::of_recording(opened.header());
    let sinks = Sinks::open_as(&flags, Arc::clone(&telemetry), Pressure::Wait, origin).expect("two files");
    let played = opened.run(flags.max_spans, sinks, telemetry);
    assert!(played.damage.is_none() && played.unanswered == 0 && played.missing == 0, "{played:?}");
    let read = |file: &Temporary| std::fs::read_to_string(&file.0).expect("it was just written");
    (read(&log), read(&traces))
}

#[test]
fn the_recordings_of_real_servers_give_what_the_live_runs_exported() {
    let traces_file = recordings().join("traces.json");
    let bless = std::env::var_os("INFERSPAN_BLESS").is_some();
    let text = std::fs::read_to_string(&traces_file).unwrap_or_else(|_| "{}".to_owned());
    let mut expected: BTreeMap<String, String> = serde_json::from_str(&text).expect("names and sums");
    for name in ["vllm-0.32-mixed", "vllm-0.32-api2", "vllm-0.32-dp2"] {
        let (log, traces) = replayed(&recordings().join(format!("{name}.isrec")), name);
        let sum = format!("{:016x}", xxhash_rust::xxh3::xxh3_64(traces.as_bytes()));
        let log_file = recordings().join(format!("{name}.access.jsonl.gz"));
        if bless {
            let mut packed = flate2::GzBuilder::new().write(Vec::new(), flate2::Compression::best());
            packed.write_all(log.as_bytes()).expect("memory");
            std::fs::write(log_file, packed.finish().expect("memory")).expect("the repository can be written");
            expected.insert(name.to_owned(), sum);
            continue;
        }
        let mut then = String::new();
        let packed = std::fs::File::open(&log_file).expect("the log of the live run");
        flate2::read::GzDecoder::new(packed).read_to_string(&mut then).expect("it unpacks");
        assert!(log.lines().count() > 40, "{name}");
        for (now, then) in log.lines().zip(then.lines()) {
            assert_eq!(now, then, "{name}");
        }
        assert_eq!(log, then, "{name}");
        assert_eq!(Some(&sum), expected.get(name), "{name}: the traces");
    }
    if bless {
        let text = serde_json::to_string_pretty(&expected).expect("names and sums");
        std::fs::write(traces_file, text + "\n").expect("the repository can be written");
    }
}

#[test]
fn the_level_in_force_is_kept_and_a_recording_of_before_says_none() {
    let shown = |file: &Path| {
        let page = Temporary::new("level-page");
        let flags = OutputArgs { metrics_out: Some(page.0.clone()), ..OutputArgs::default() };
        let opened = Opened::open(file).expect("a recording");
        let telemetry = Arc::new(Telemetry::default());
        let sinks = Sinks::open_as(&flags, Arc::clone(&telemetry), Pressure::Wait, Origin::default()).expect("a file");
        opened.run(flags.max_spans, sinks, telemetry);
        let text = std::fs::read_to_string(&page.0).expect("it was just written");
        text.lines().find(|line| line.starts_with("inferspan_level{")).map(str::to_owned)
    };
    let file = Temporary::new("level");
    for level in [Level::Requests, Level::Kernels] {
        let header = Header { servers: 1, level: Some(level), ..Header::default() };
        Recorder::start(&file.0, &header).expect("a file").finish(0);
        assert_eq!(shown(&file.0), Some(format!("inferspan_level{{level=\"{}\"}} 1", level.name())));
    }
    assert_eq!(shown(&recordings().join("vllm-0.32-api2.isrec")), None, "nobody knows");
}

/// The server's own mean in that run, seconds (its `/metrics`, 1,400 requests); its event loop was up to 0.9 s behind. With the first
/// reading of the clock taken for the stamp it was 1.334.
const TTFT_OF_700_OPEN: f64 = 1.730_918;

#[test]
fn time_to_first_token_is_the_servers_when_its_event_loop_is_behind() {
    let page = Temporary::new("700-open-page");
    let flags = OutputArgs { metrics_out: Some(page.0.clone()), ..OutputArgs::default() };
    let opened = Opened::open(&recordings().join("vllm-0.32-700-open.isrec")).expect("a recording");
    let telemetry = Arc::new(Telemetry::default());
    let sinks = Sinks::open_as(&flags, Arc::clone(&telemetry), Pressure::Wait, Origin::default()).expect("a file");
    let played = opened.run(flags.max_spans, sinks, telemetry);
    assert!(played.damage.is_none() && played.unanswered == 0, "{played:?}");
    let page = Page::parse(&std::fs::read_to_string(&page.0).expect("it was just written"));
    let [sum, count] = ["sum", "count"].map(|of| page.sum(&format!("inferspan_request_ttft_engine_seconds_{of}"), ""));
    assert_eq!(count as u64, 1_400);
    assert!((sum / count - TTFT_OF_700_OPEN).abs() < 0.002, "{}", sum / count);
}
