//! Memory of a process through CUDA, traced on this kernel: what it holds, and which library asked for it.

use inferspan_harness::process::Signal;
use inferspan_tests::cuda::traced::{self, Seen, Tracer};
use inferspan_tests::cuda::{Driver, Fixture, Runtime};
use inferspan_tests::live::may_trace;

fn fixture(test: &str) -> Option<Fixture> {
    if may_trace(test) { Fixture::for_test(test) } else { None }
}

/// What is seen of a script until it waits.
fn until_it_waits(test: &str, fixture: &Fixture, script: &str) -> Seen {
    let program = fixture.program(Driver::New, Runtime::V13).script(script);
    let mut running = program.spawn().expect("it starts");
    let tracer = Tracer::attach(test, running.pid(), &[]);
    running.start().expect("it waits");
    running.reach_wait().expect("it waits again");
    // Names of libraries come when they were looked for.
    std::thread::sleep(std::time::Duration::from_millis(500));
    tracer.signal(Signal::INT);
    tracer.end()
}

#[test]
fn memory_is_told_by_the_library_that_asked_for_it() {
    // device: 1 MiB + 8 KiB, of which the 8 KiB are freed ─ host: 4 KiB ─ (the tracer ends) ─ the program lives
    let test = "memory_is_told_by_the_library_that_asked_for_it";
    let Some(fixture) = fixture(test) else { return };
    let script = "malloc weights 1048576; malloc pool 8192 async; free pool; malloc pinned 4096 host; wait";
    let seen = until_it_waits("memory", &fixture, script);
    let program = fixture.program(Driver::New, Runtime::V13).path();
    let library = format!("library=\"{}\"", program.file_name().expect("a name").to_string_lossy());
    let of = |name: &str, label: &str| seen.count(&format!("inferspan_cuda_{name}"), label);
    assert_eq!(of("memory_library_bytes", &library), 1 << 20, "{}", seen.said);
    assert_eq!(of("memory_library_bytes", "library=\"unknown\""), 0);
    assert_eq!((of("memory_bytes", ""), of("memory_peak_bytes", "")), (1 << 20, (1 << 20) + 8192));
    assert_eq!((of("host_memory_bytes", ""), of("host_memory_peak_bytes", "")), (4096, 4096));
    let allocations = (of("allocations_total", "memory=\"device\""), of("allocations_total", "memory=\"host\""));
    assert_eq!(allocations, (2, 1));
    assert_eq!(of("memory_growing", ""), 0);
}

#[test]
fn memory_that_grows_and_is_not_freed_is_said_and_marked() {
    // 4 KiB every 2 s ─ 40 s ─ (the tracer ends)
    let test = "memory_that_grows_and_is_not_freed_is_said_and_marked";
    let Some(fixture) = fixture(test) else { return };
    let blocks: Vec<String> = (0..20).map(|block| format!("malloc block{block} 4096; sleep 2000000")).collect();
    let seen = until_it_waits("growing", &fixture, &format!("{}; wait", blocks.join("; ")));
    assert_eq!(seen.count("inferspan_cuda_memory_growing", ""), 1, "{}", seen.said);
    assert!(seen.said.contains("grows and nothing of it is freed"), "{}", seen.said);
    assert!(seen.said.contains("device memory grew and nothing of it was freed, 1 times"), "{}", seen.said);
}

#[test]
fn memory_that_is_freed_as_it_is_allocated_is_no_growth() {
    let test = "memory_that_is_freed_as_it_is_allocated_is_no_growth";
    let Some(fixture) = fixture(test) else { return };
    let script = "repeat 20 { malloc block 4096; sleep 2000; free block }; malloc last 8; free last";
    let program = fixture.program(Driver::New, Runtime::V12).script(script);
    let (truth, seen) = traced::run("freed", &program, &[]);
    assert_eq!(seen.count("inferspan_cuda_memory_peak_bytes", ""), truth.peak_bytes);
    assert_eq!(seen.count("inferspan_cuda_memory_library_bytes", ""), 0, "it has ended");
    assert!(!seen.said.contains("nothing of it"), "{}", seen.said);
}
