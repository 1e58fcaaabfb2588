use super::*;
use crate::core::Config;
use crate::input::cuda::{Activity, ActivityKind, Api, Class, NamedBy, Sums};
use crate::input::{Event, Fact, Input, What};
use crate::model::generation::StepRef;
use crate::model::keys::attribute;
use crate::output::{EngineStep, Value};

const ENGINE: u32 = 10;

/// A server with one engine, whose process calls CUDA itself.
fn core() -> Core {
    let mut core = Core::new(Config::default());
    core.about.hears_of(0, Some(ENGINE));
    core
}

fn see(core: &mut Core, at: EventNanos, process: u32, seen: Seen) -> Vec<Output> {
    let mut out = Vec::new();
    let what = What::Cuda(Box::new(seen));
    core.push(Input::Event(Event { at, process, thread: process, what }), &mut out);
    out
}

fn tell(core: &mut Core, fact: Fact) {
    core.push(Input::Fact(fact), &mut Vec::new());
}

fn call(core: &mut Core, at: EventNanos, what: CallKind) -> Vec<Output> {
    let call = Call { what, entered: at, stream: 7, caller: 0xa, capture: None };
    see(core, at, ENGINE, Seen::Call(call))
}

fn launches(first: EventNanos, last: EventNanos, launches: u64) -> Seen {
    Seen::Burst(Sums { first, last, launches, ..Sums::default() })
}

/// A step ends; as it leaves.
fn step(core: &mut Core, start: Option<EventNanos>, end: EventNanos) -> (Option<EngineStep>, Vec<Output>) {
    let reference = StepRef { engine: 0, stamp: end as i64 };
    let step = Step { reference, start, end, requests: 1, tokens: 1, first_tokens: 0, stats: None };
    let mut out = Vec::new();
    core.step_leaves(&step, &mut out);
    let left = out.iter().find_map(|output| match output {
        Output::Step(step) => Some((**step).clone()),
        _ => None,
    });
    (left, out)
}

#[test]
fn a_rank_is_what_the_title_says_and_else_the_order_of_the_processes() {
    // engine 10 ─ workers 20 (TP1), 21 (TP0)
    let mut core = core();
    for tgid in [20, 21] {
        tell(&mut core, Fact::Process { tgid, role: Role::Worker });
        tell(&mut core, Fact::Parent { tgid, parent: ENGINE });
    }
    let ranks = |core: &mut Core| [20, 21].map(|process| core.place(process).rank);
    assert_eq!(ranks(&mut core), [Some(0), Some(1)], "nobody says");
    tell(&mut core, Fact::Rank { tgid: 20, rank: 1 });
    assert_eq!(ranks(&mut core), [Some(0), Some(1)], "of one alone, which would be two of 1");
    tell(&mut core, Fact::Rank { tgid: 21, rank: 0 });
    assert_eq!(ranks(&mut core), [Some(1), Some(0)]);
}

#[test]
fn a_step_that_nothing_says_the_start_of_begins_with_its_first_call() {
    // ■ │S1│ (idle) … ■ 1000-1100 ─ S2 2000│ (idle) │S3 3000│
    let mut core = core();
    see(&mut core, 150, ENGINE, launches(110, 150, 1));
    assert!(step(&mut core, Some(100), 200).0.is_some());
    see(&mut core, 1100, ENGINE, launches(1000, 1100, 4));
    let (left, out) = step(&mut core, None, 2000);
    let left = left.expect("its first call says when it began");
    let cuda = left.cuda.as_ref().expect("calls");
    assert_eq!((left.end_ns - left.start_ns, cuda.launches, cuda.begins_with_call), (1000, 3, true));
    let says_so =
        |(key, value): &(&str, Value)| *key == attribute::CUDA_BEGINS_WITH_CALL && *value == Value::Bool(true);
    assert!(left.span().attributes.iter().any(says_so));
    let is_timed = |output: &Output| matches!(output, Output::Metric(Metric::Step { .. }));
    assert!(!out.iter().any(is_timed), "how long it took is not known");
    assert!(step(&mut core, None, 3000).0.is_none(), "nothing was called");
}

#[test]
fn a_server_that_starts_has_no_step_that_began_long_ago() {
    // (attached) ■ warm-up ─ … ─ first step 2000│
    let mut core = core();
    see(&mut core, 150, ENGINE, launches(110, 150, 1));
    assert!(step(&mut core, None, 2000).0.is_none());
}

#[test]
fn a_step_names_its_graphs_and_what_they_hold() {
    // capture (two kernels) → graph 9 · │ 9 twice, 4 once (of before the attach) S1 │ 9 is updated · 9 once S2│
    let mut core = core();
    let key = FunctionKey { process: ENGINE, epoch: 0, function: 3, api: Api::Driver };
    let short = || "rms_norm".to_owned();
    let name =
        KernelName { name: short(), demangled: short(), short: short(), class: Class::Norm, named_by: NamedBy::Handle };
    see(&mut core, 1, ENGINE, Seen::Function { key, callers: [0; 4], text: None });
    tell(&mut core, Fact::Kernel { function: key, name: Arc::new(name) });
    call(&mut core, 2, CallKind::CaptureBegin { number: 1, into: 0 });
    let (grid, block) = ([1; 3], [32, 1, 1]);
    for _ in 0..2 {
        let launch = Launch { key, stream: 7, grid, block, shared: 0, capture: Some(1), weight: 1 };
        see(&mut core, 3, ENGINE, Seen::Launch(launch));
    }
    call(&mut core, 4, CallKind::CaptureEnd { graph: 5, number: 1, nodes: 2 });
    call(&mut core, 5, CallKind::Instantiate { exec: 9, graph: 5 });
    for exec in [9, 4, 9] {
        call(&mut core, 50, CallKind::GraphLaunch { exec });
    }
    let graphs = |(left, _): (Option<EngineStep>, Vec<Output>)| {
        let attributes = left.expect("a step").span().attributes;
        attributes.into_iter().find_map(|(key, value)| match value {
            Value::StrList(words) if key == attribute::CUDA_GRAPHS => {
                Some(words.iter().map(ToString::to_string).collect::<Vec<_>>())
            }
            _ => None,
        })
    };
    see(&mut core, 60, ENGINE, Seen::Burst(Sums { first: 50, last: 60, graph_launches: 3, ..Sums::default() }));
    let first = graphs(step(&mut core, Some(40), 100)).expect("graphs");
    assert_eq!(first, ["graph 0x9 ×2: rms_norm ×2", "graph 0x4 ×1: contents unknown"]);
    call(&mut core, 110, CallKind::ExecUpdate { exec: 9 });
    call(&mut core, 120, CallKind::GraphLaunch { exec: 9 });
    see(&mut core, 130, ENGINE, Seen::Burst(Sums { first: 120, last: 130, graph_launches: 4, ..Sums::default() }));
    let second = graphs(step(&mut core, Some(100), 200)).expect("graphs");
    assert_eq!(second, ["graph 0x9 ×1: changed since: rms_norm ×2"]);
}

/// What was said last of each library.
fn libraries(outputs: &[Output]) -> BTreeMap<String, u64> {
    let said = outputs.iter().filter_map(|output| match output {
        Output::Metric(Metric::CudaLibraryMemory { library, live, .. }) => Some((library.to_string(), *live)),
        _ => None,
    });
    said.collect()
}

#[test]
fn memory_is_told_by_library_and_is_free_when_the_process_is_gone() {
    // allocates 100, and 30 of the host's · a second · its caller is named · ends
    const SECOND: EventNanos = 1_000_000_000;
    let mut core = core();
    let mut said = call(&mut core, 1, CallKind::Alloc { address: 1, bytes: 100, live: 100 });
    core.push(Input::Tick(SECOND), &mut said);
    assert_eq!(libraries(&said), BTreeMap::from([("unknown".to_owned(), 100)]));
    let held = |output: &Output| match output {
        Output::Metric(Metric::CudaMemory { held: [device, host], allocated, .. }) => {
            Some((device.live, host.live, *allocated))
        }
        _ => None,
    };
    assert_eq!(said.iter().find_map(held), Some((100, 0, Some(MemoryOf::Device))));
    let said = call(&mut core, 2, CallKind::HostAlloc { address: 1, bytes: 30 });
    assert_eq!(said.iter().find_map(held), Some((100, 30, Some(MemoryOf::Host))));
    tell(&mut core, Fact::Caller { process: ENGINE, address: 0xa, library: Arc::from("libc10_cuda.so") });
    let mut out = Vec::new();
    core.push(Input::Tick(2 * SECOND), &mut out);
    assert_eq!(libraries(&out), BTreeMap::from([("libc10_cuda.so".to_owned(), 100), ("unknown".to_owned(), 0)]));
    let mut out = Vec::new();
    let what = What::Exited;
    core.push(Input::Event(Event { at: 3 * SECOND, process: ENGINE, thread: ENGINE, what }), &mut out);
    assert_eq!(libraries(&out), BTreeMap::from([("libc10_cuda.so".to_owned(), 0)]));
    assert_eq!(out.iter().find_map(held), Some((0, 0, None)));
}

#[test]
fn memory_that_grows_is_said_once_and_marked_until_it_is_freed() {
    // a block every two seconds ─ 40 s ─ one is freed
    const SECOND: EventNanos = 1_000_000_000;
    let mut core = core();
    let mut out = Vec::new();
    for second in 1..40 {
        if second % 2 == 0 {
            out.extend(call(
                &mut core,
                second * SECOND,
                CallKind::Alloc { address: second, bytes: 1 << 20, live: second << 19 },
            ));
        }
        core.push(Input::Tick(second * SECOND + SECOND / 2), &mut out);
    }
    let growing = |outputs: &[Output]| outputs.iter().filter(|output| matches!(output, Output::Growing(_))).count();
    let marks = |outputs: &[Output]| -> Vec<bool> {
        let marks = outputs.iter().filter_map(|output| match output {
            Output::Metric(Metric::CudaMemoryGrowing { is_growing, .. }) => Some(*is_growing),
            _ => None,
        });
        marks.collect()
    };
    assert_eq!((growing(&out), marks(&out)), (1, vec![true]));
    let mut out = call(&mut core, 40 * SECOND, CallKind::Free { address: 2, bytes: 1 << 20, live: 18 << 20 });
    core.push(Input::Tick(50 * SECOND), &mut out);
    assert_eq!((growing(&out), marks(&out)), (0, vec![false]));
}

#[test]
fn a_record_of_what_the_gpu_did_is_counted_and_moves_nothing_else() {
    let mut core = core();
    let activity = Activity {
        kind: ActivityKind::Kernel,
        correlation: 4711,
        start: 1,
        end: 9,
        device: 0,
        stream: 7,
        graph_node: Some((1, 2)),
        name: Some("_Z3addPf".to_owned()),
        bytes: None,
    };
    let out = see(&mut core, 10, ENGINE, Seen::Activity(activity));
    let counted = |output: &&Output| matches!(output, Output::Metric(Metric::CudaActivity { .. }));
    assert_eq!(out.iter().filter(counted).count(), 1);
    assert!(!out.iter().any(|output| matches!(output, Output::Cuda(_) | Output::Step(_))), "{out:?}");
    assert_eq!(step(&mut core, Some(0), 20).0.and_then(|step| step.cuda), None, "it is no call");
}
