//! Calls of libraries that have what their contract says and nothing else, traced on this kernel, against what was called.

use std::process::Command;

use inferspan_tests::cuda::traced::{self, Seen, Tracer};
use inferspan_tests::cuda::{Driver, Fixture, Runtime, Truth};
use inferspan_tests::live::may_trace;

/// Through which libraries a program of the fixture calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Through {
    /// The driver's API; no runtime is mapped.
    Driver,
    /// The runtime; no driver is mapped.
    Runtime(Runtime),
    /// NCCL, of which `ncclBcast` does its work itself, or goes on to `ncclBroadcast`.
    Nccl { goes_on: bool },
}

fn fixture(test: &str) -> Option<Fixture> {
    if may_trace(test) { Fixture::for_test(test) } else { None }
}

/// Runs a case of `fixtures/cuda/calls/program.c`, traced.
fn run(fixture: &Fixture, case: &str, through: Through, arguments: &[&str]) -> (Truth, Seen) {
    let (api, library) = match through {
        Through::Driver => ("driver", "calls/libcuda.so.1"),
        Through::Runtime(Runtime::V12) => ("runtime", "calls/libcudart.so.12"),
        Through::Runtime(Runtime::V13) => ("runtime", "calls/libcudart.so.13"),
        Through::Nccl { goes_on: false } => ("runtime", "calls/libnccl.so.2"),
        Through::Nccl { goes_on: true } => ("runtime", "calls-through/libnccl.so.2"),
    };
    let mut command = Command::new(fixture.folder().join("calls/calls"));
    command.args([case, api]).arg(fixture.folder().join(library));
    let mut running = fixture.program(Driver::None, Runtime::V12).spawn_with(command).expect("the program starts");
    let tracer = Tracer::attach(case, running.pid(), arguments);
    running.start().expect("it waits");
    traced::finish(running, tracer)
}

/// Launches that were work, nodes that were none, as the program counts them.
fn assert_launches(fixture: &Fixture, case: &str) {
    for through in [Through::Driver, Through::Runtime(Runtime::V13)] {
        let (truth, seen) = run(fixture, case, through, &[]);
        eprintln!("{case} {through:?}");
        assert!(truth.total.launch_count() > 0 && truth.total.captured > 0, "{truth:?}");
        seen.assert_is(&truth.total, true);
    }
}

#[test]
fn two_captures_of_a_thread_end_in_either_order() {
    // A ├──────────────┤ · A ├────┤
    // B     ├────┤       · B   ├────────┤
    let Some(fixture) = fixture("two_captures_of_a_thread_end_in_either_order") else { return };
    assert_launches(&fixture, "nested");
}

#[test]
fn what_another_thread_launches_into_a_capture_is_a_node() {
    // one thread: begin · launch                       launch (work)
    // another:                  launch · launch elsewhere (work) · end
    let Some(fixture) = fixture("what_another_thread_launches_into_a_capture_is_a_node") else { return };
    assert_launches(&fixture, "threads");
}

#[test]
fn a_capture_that_fails_to_begin_captures_nothing() {
    // begin (fails) · launch (work) ─ begin · end (of another thread's) · launch · end · launch (work)
    let Some(fixture) = fixture("a_capture_that_fails_to_begin_captures_nothing") else { return };
    assert_launches(&fixture, "failed");
}

#[test]
fn a_stream_joins_a_capture_over_an_event() {
    // A ├─ e ───── f ┤ launch (work)
    // B    └ node ─┘   launch (work)
    let Some(fixture) = fixture("a_stream_joins_a_capture_over_an_event") else { return };
    assert_launches(&fixture, "forked");
}

#[test]
fn each_thread_has_a_default_stream_of_its_own() {
    // one thread: begin (0, per thread) · 0 · 2        end (2) · 0 (work)
    // another:                                 0 (work)
    let Some(fixture) = fixture("each_thread_has_a_default_stream_of_its_own") else { return };
    assert_launches(&fixture, "per-thread");
}

#[test]
fn a_handle_behind_the_reset_of_a_device_is_another_kernel() {
    // alpha, 3 times ─ reset ─ beta, twice, behind the same handle
    let Some(fixture) = fixture("a_handle_behind_the_reset_of_a_device_is_another_kernel") else { return };
    let (truth, seen) = run(&fixture, "reset", Through::Driver, &[]);
    assert_eq!(truth.total.by_name().len(), 2);
    seen.assert_is(&truth.total, true);
}

#[test]
fn copies_and_sets_of_every_form_have_their_bytes() {
    let Some(fixture) = fixture("copies_and_sets_of_every_form_have_their_bytes") else { return };
    let forms = [
        ("copies", Runtime::V12, "steps"),
        ("copies", Runtime::V13, "kernels"),
        ("batches-12", Runtime::V12, "kernels"),
        ("batches-13", Runtime::V13, "steps"),
    ];
    for (case, runtime, level) in forms {
        let (truth, seen) = run(&fixture, case, Through::Runtime(runtime), &["--level", level]);
        eprintln!("{case} {runtime:?}");
        assert!(!truth.total.copies.is_empty());
        seen.assert_is(&truth.total, false);
    }
}

#[test]
fn memory_of_every_form_is_held_until_it_is_freed() {
    let Some(fixture) = fixture("memory_of_every_form_is_held_until_it_is_freed") else { return };
    let (truth, seen) = run(&fixture, "memory", Through::Runtime(Runtime::V13), &[]);
    assert_eq!((truth.live_bytes, truth.peak_bytes), (7120, 18_360));
    assert_eq!(seen.count("inferspan_cuda_memory_peak_bytes", ""), truth.peak_bytes, "{}", seen.said);
}

#[test]
fn a_broadcast_counts_once_whichever_way_it_goes() {
    let Some(fixture) = fixture("a_broadcast_counts_once_whichever_way_it_goes") else { return };
    for goes_on in [false, true] {
        let (truth, seen) = run(&fixture, "collectives", Through::Nccl { goes_on }, &[]);
        assert_eq!(truth.total.collectives.len(), 5);
        for (kind, amount) in &truth.total.collectives {
            let label = format!("kind=\"{kind}\"");
            let counted = ["inferspan_nccl_collectives_total", "inferspan_nccl_bytes_total"];
            let counted = counted.map(|name| seen.count(name, &label));
            assert_eq!(counted, [amount.count, amount.bytes], "{kind}, goes on: {goes_on}\n{}", seen.said);
        }
    }
}
