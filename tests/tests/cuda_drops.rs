//! What is left of CUDA when records find no room: totals, names, memory and collectives whole, and of graphs what is sure.

use std::time::{Duration, Instant};

use inferspan_harness::process::Signal;
use inferspan_tests::attached::Attached;
use inferspan_tests::cuda::traced::{self, Seen, Tracer};
use inferspan_tests::cuda::{Driver, Fixture, Program, Running, Runtime, Truth};
use inferspan_tests::live::may_trace;
use serde_json::Value;

/// Each of them once.
const FEW: [(Driver, Runtime); 3] =
    [(Driver::Old, Runtime::V12), (Driver::New, Runtime::V13), (Driver::None, Runtime::V12)];

fn fixture(test: &str) -> Option<Fixture> {
    if may_trace(test) { Fixture::for_test(test) } else { None }
}

/// Starts a script, and lets its second part happen while inferspan stands still for at least a second.
fn stand_still(running: &mut Running, signal: impl Fn(Signal)) {
    running.start().expect("it waits");
    running.reach_wait().expect("the first part");
    signal(Signal::STOP);
    let stopped = Instant::now();
    running.start().expect("it waits");
    running.reach_wait().expect("the second part");
    std::thread::sleep(Duration::from_secs(1).saturating_sub(stopped.elapsed()));
    signal(Signal::CONT);
    running.start().expect("it waits");
}

fn run_while_it_stands_still(test: &str, program: Program, script: &str) -> (Truth, Seen) {
    let mut running = program.script(script).spawn().expect("start");
    let tracer = Tracer::attach(test, running.pid(), &["--level", "kernels"]);
    stand_still(&mut running, |signal| tracer.signal(signal));
    traced::finish(running, tracer)
}

/// Memory and collectives against the program's account.
fn assert_holds(truth: &Truth, seen: &Seen) {
    assert_eq!(seen.count("inferspan_cuda_memory_peak_bytes", ""), truth.peak_bytes, "{}", seen.said);
    assert_eq!(seen.count("inferspan_cuda_memory_bytes", ""), 0, "it has ended");
    let amount = truth.total.collectives["AllReduce"];
    let counted = ["inferspan_nccl_collectives_total", "inferspan_nccl_bytes_total"];
    let counted = counted.map(|name| seen.count(name, "kind=\"all_reduce\""));
    assert_eq!(counted, [amount.count, amount.bytes], "{}", seen.said);
}

fn lost(seen: &Seen, stage: &str) -> u64 {
    seen.count("inferspan_events_dropped_total", &format!("stage=\"{stage}\""))
}

#[test]
fn what_finds_no_room_is_counted_and_no_total_is_short() {
    // attached ─ first ─ (inferspan stands still for a second: 200,100 launches, most find the ring full) ─ last ─ (2.5 s) ─ end
    //
    // Each launch is told by itself here, so totals made of what was told would lack all that was lost. `silu`, the graph and its
    // kernel are met only when the ring is full: neither a name nor a capture may depend on what was told of them, nor may memory and
    // collectives, whose ring is another.
    let Some(fixture) = fixture("what_finds_no_room_is_counted_and_no_total_is_short") else { return };
    for (driver, runtime) in FEW {
        let script = "
            launch gemm 1 1 1 1 1 1 0 1; malloc weights 1048576; dlopen libnccl.so.2; sleep 1000000; wait
            repeat 100000 { launch gemm 1 1 1 1 1 1 0 1; launch attention 2 1 1 1 1 1 0 2 }
            capture late 1 { launch add 1 1 1 1 1 1 0 1 }
            malloc workspace 5000000; free workspace
            repeat 100 {
                launch silu 3 1 1 1 1 1 0 1; copy h2d 10 1; memset 7 1; graph-launch late 1
                malloc block 70000; collective all-reduce 1000 bf16 1; free block
            }
            wait
            launch silu 3 1 1 1 1 1 0 1; copy d2h 5 2
            sleep 2500000
        ";
        let (truth, seen) = run_while_it_stands_still("full", fixture.program(driver, runtime), script);
        // NCCL launches a kernel each where there is a driver.
        let of_nccl = if driver == Driver::None { 0 } else { 100 };
        assert_eq!(truth.total.launch_count(), 200_102 + of_nccl);
        seen.assert_is(&truth.total, true);
        assert_holds(&truth, &seen);
        let told = seen.count("inferspan_events_total", "probe=\"cuda\"");
        assert!(lost(&seen, "launch_ring") > 100_000, "{told} told\n{}", seen.said);
        assert!(told < 100_000, "{told} of 200,102 launches were told: these totals could be made of them");
        assert!(seen.said.contains("records were lost: the ring of CUDA calls was full"), "{}", seen.said);
        // What the launches crowded out was their own: processes, sockets and rare calls have other rings.
        for stage in ["edge_ring", "data_ring", "cuda_table", "rare_ring"] {
            assert_eq!(lost(&seen, stage), 0, "{stage}\n{}", seen.said);
        }
        eprintln!("{driver:?} {runtime:?}: {told} told, {} lost", lost(&seen, "launch_ring"));
    }
}

#[test]
fn memory_and_collectives_are_exact_when_their_ring_is_full() {
    // attached ─ (inferspan stands still: 120,000 rare calls, most find no room, the largest block among them) ─ end
    let Some(fixture) = fixture("memory_and_collectives_are_exact_when_their_ring_is_full") else { return };
    for (driver, runtime) in FEW {
        let script = "
            malloc weights 1048576; dlopen libnccl.so.2; sleep 1000000; wait
            repeat 40000 { malloc block 70000; collective all-reduce 10 bf16 1; free block }
            malloc workspace 5000000; free workspace; malloc kept 300
            wait
            launch silu
        ";
        let (truth, seen) = run_while_it_stands_still("rare", fixture.program(driver, runtime), script);
        assert!(lost(&seen, "rare_ring") > 50_000, "{}", seen.said);
        assert_holds(&truth, &seen);
        seen.assert_is(&truth.total, false);
    }
}

/// What the slices of graph launches say in a timeline of Chrome's: nodes, and whether they may differ.
fn graph_launches(file: &std::path::Path) -> Vec<(Option<u64>, bool)> {
    let text = std::fs::read_to_string(file).expect("a timeline");
    let events: Vec<Value> = serde_json::from_str(&text).expect("JSON");
    let graphs = events.iter().filter(|event| event["args"]["replays"].is_number());
    graphs.map(|event| (event["args"]["nodes"].as_u64(), event["args"]["contents"] == "changed since")).collect()
}

#[test]
fn a_graph_is_listed_when_launches_are_lost_and_not_when_nodes_may_be() {
    // (inferspan stands still: a flood ─ a capture of three nodes) ─ launched ─ updated ─ launched
    //
    // Launches that crowd out each other leave the list whole; rare calls that do leave none.
    let Some(fixture) = fixture("a_graph_is_listed_when_launches_are_lost_and_not_when_nodes_may_be") else { return };
    let file = std::env::temp_dir().join(format!("inferspan-test-cuda-graphs-{}.json", std::process::id()));
    let nodes = "launch add 1 1 1 1 1 1 0 1; copy d2d 8 1; launch silu 1 1 1 1 1 1 0 1";
    let launches = "repeat 150000 { launch gemm 1 1 1 1 1 1 0 1 }";
    let rare = "repeat 40000 { malloc block 70000; free block }";
    let arguments = ["--cuda-only", "--level", "kernels", "--chrome"].map(str::to_owned);
    let arguments = [&arguments[..], &[file.display().to_string()]].concat();
    let both = |nodes| vec![(nodes, false), (nodes, true)];
    for (flood, expected) in [(launches, both(Some(3))), (rare, both(None))] {
        // The file gets over the flood in the pause.
        let script = format!(
            "launch gemm 1 1 1 1 1 1 0 1; wait; {flood}; capture late 1 {{ {nodes} }}; wait; sleep 4000000
             graph-launch late 1; capture late 1 {{ {nodes} }}; graph-launch late 1"
        );
        let mut running = fixture.program(Driver::New, Runtime::V13).script(&script).spawn().expect("start");
        let recorder = Attached::start("attach", running.pid(), &arguments);
        stand_still(&mut running, |signal| recorder.signal(signal));
        running.finish().expect("its account");
        let (_, said) = recorder.end();
        assert!(said.contains("records were lost: the ring of"), "{said}");
        assert_eq!(graph_launches(&file), expected, "{flood}\n{said}");
    }
    let _ = std::fs::remove_file(&file);
}
