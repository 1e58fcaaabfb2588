//! CUDA of a process, traced on this kernel, against what the process says that it did.

use std::time::Duration;

use inferspan_tests::attached::Attached;
use inferspan_tests::cuda::traced::{self, Tracer};
use inferspan_tests::cuda::{Driver, Fixture, Patch, Runtime};
use inferspan_tests::judge::binary;
use inferspan_tests::live::may_trace;

const ALL: [(Driver, Runtime); 6] = [
    (Driver::Old, Runtime::V12),
    (Driver::Old, Runtime::V13),
    (Driver::New, Runtime::V12),
    (Driver::New, Runtime::V13),
    (Driver::None, Runtime::V12),
    (Driver::None, Runtime::V13),
];

/// Each of them once; an attach takes seconds, because the kernel takes the probes of the one before back until then.
const FEW: [(Driver, Runtime); 3] =
    [(Driver::Old, Runtime::V12), (Driver::New, Runtime::V13), (Driver::None, Runtime::V12)];

/// Launches in each way, a graph over two streams, copies of each kind, waits of each kind, memory.
const EVERYTHING: &str = "
malloc weights 1048576; malloc pinned 4096 host; malloc pool 4096 async
capture decode 1 {
    launch rms_norm 4 1 1 128 1 1 0 1
    event forked 1; await forked 2
    launch silu 3 1 1 64 1 1 0 2
    event joined 2; await joined 1
    copy d2d 100 1; memset 10 1
}
repeat 50 {
    step
    launch gemm 8 2 3 4 5 6 49152 1
    launch-ex attention 7 1 1 128 1 1 1024 2
    launch-cooperative add 2
    copy h2d 4096 1; copy d2h 100 now; copy default-h2d 77 1; copy peer 55 2; copy2d d2d 64 3 1; copy h2h 5
    memset 1000 1
    graph-launch decode 1
    sync stream 1
    step-end
    sleep 300
}
sync device
free pinned
";

fn fixture(test: &str) -> Option<Fixture> {
    if may_trace(test) { Fixture::for_test(test) } else { None }
}

#[test]
fn every_call_is_counted_on_every_driver_and_runtime() {
    let Some(fixture) = fixture("every_call_is_counted_on_every_driver_and_runtime") else { return };
    for (number, (driver, runtime)) in ALL.into_iter().enumerate() {
        let program = fixture.program(driver, runtime);
        // Each level with each driver and each runtime, and both kinds of streams.
        let (level, program) = match number {
            0 | 3 => ("steps", program),
            1 | 2 => ("kernels", program),
            4 => ("steps", program.per_thread()),
            _ => ("kernels", program.per_thread()),
        };
        let (truth, seen) = traced::run("everything", &program.script(EVERYTHING), &["--level", level]);
        eprintln!("{driver:?} {runtime:?} {level}");
        seen.assert_is(&truth.total, true);
        assert_eq!(seen.count("inferspan_cuda_memory_bytes", ""), 0, "it has ended");
        assert_eq!(seen.count("inferspan_cuda_memory_peak_bytes", ""), truth.peak_bytes);
        assert!(!seen.said.contains("warning"), "{}", seen.said);
    }
}

#[test]
fn a_program_of_the_drivers_api_is_seen_without_a_runtime() {
    let Some(fixture) = fixture("a_program_of_the_drivers_api_is_seen_without_a_runtime") else { return };
    for driver in [Driver::Old, Driver::New] {
        let script = "repeat 100 { launch _attn_fwd 3 2 1 128 1 1 512 1; launch-ex matmul_kernel 9; sync stream 1 }";
        let program = fixture.driver_program(driver).script(script);
        let (truth, seen) = traced::run("driver", &program, &["--level", "kernels"]);
        assert_eq!(seen.by_name(), truth.total.by_name(), "{}", seen.said);
        assert!(seen.kernels.iter().all(|kernel| kernel.named_by == "handle"));
    }
}

#[test]
fn a_kernel_without_links_of_many_probes_is_served_as_well() {
    let Some(fixture) = fixture("a_kernel_without_links_of_many_probes_is_served_as_well") else { return };
    let (truth, seen) = traced::run(
        "events",
        &fixture.program(Driver::New, Runtime::V12).script(EVERYTHING),
        &["--uprobe-events", "--level", "kernels"],
    );
    seen.assert_is(&truth.total, true);
}

#[test]
fn a_name_is_read_where_the_driver_itself_reads_it() {
    // Handles with the name at 16 and another text at 8 ─ a moment, in which a name that is longer than a record's is read.
    let Some(fixture) = fixture("a_name_is_read_where_the_driver_itself_reads_it") else { return };
    let long = "k".repeat(1500);
    let script = format!("repeat 20 {{ launch _attn_fwd 3; launch-ex matmul_kernel 9; launch {long} }}; sleep 300000");
    for (driver, folder) in [(Driver::Old, "driver-old-16"), (Driver::New, "driver-new-16")] {
        let program = fixture.driver_program(driver).with_libraries(fixture.folder().join(folder));
        let (truth, seen) = traced::run("names", &program.script(&script), &["--level", "kernels"]);
        assert_eq!(truth.total.by_name().len(), 3);
        assert_eq!(seen.by_name(), truth.total.by_name(), "{}", seen.said);
        assert!(seen.kernels.iter().all(|kernel| kernel.named_by == "handle"));
    }
}

#[test]
fn a_capture_through_the_drivers_api_launches_nothing() {
    let Some(fixture) = fixture("a_capture_through_the_drivers_api_launches_nothing") else { return };
    let script = "capture decode 1 {
                      launch _attn_fwd 1 1 1 32 1 1 0 1; launch matmul_kernel 1 1 1 32 1 1 0 1; launch matmul_kernel
                  };
                  repeat 10 { graph-launch decode 1; launch _attn_fwd 1 1 1 32 1 1 0 1 }";
    for driver in [Driver::Old, Driver::New] {
        let (truth, seen) = traced::run("capture", &fixture.driver_program(driver).script(script), &[]);
        assert_eq!(truth.total.captured, 2);
        seen.assert_is(&truth.total, true);
    }
}

#[test]
fn a_kernel_has_the_shape_it_was_launched_in() {
    let Some(fixture) = fixture("a_kernel_has_the_shape_it_was_launched_in") else { return };
    for (driver, runtime) in FEW {
        let script = "launch gemm 8 2 3 4 5 6 49152 1; repeat 3 { launch gemm 16 2 3 4 5 6 1024 2 }";
        let program = fixture.program(driver, runtime).script(script);
        let (truth, seen) = traced::run("shape", &program, &["--level", "kernels"]);
        let [kernel] = seen.kernels.as_slice() else { panic!("{:?}", seen.kernels) };
        assert_eq!(kernel.launches, truth.total.launch_count());
        let shape = (kernel.grid, kernel.block, kernel.shared_memory, kernel.streams);
        assert_eq!(shape, (Some([16, 2, 3]), Some([4, 5, 6]), Some(1024), Some(2)), "{driver:?} {runtime:?}");
    }
}

#[test]
fn sampling_leaves_launches_out_and_no_count() {
    let Some(fixture) = fixture("sampling_leaves_launches_out_and_no_count") else { return };
    let program = fixture.program(Driver::New, Runtime::V13).script("repeat 1000 { launch gemm; launch silu }");
    let (truth, seen) = traced::run("sample", &program, &["--level", "kernels", "--sample", "10"]);
    seen.assert_is(&truth.total, true);
    let events = seen.count("inferspan_events_total", "probe=\"cuda\"");
    assert!((200..400).contains(&events), "{events} records of 2,000 launches");
}

#[test]
fn sixty_four_threads_lose_no_launch() {
    let Some(fixture) = fixture("sixty_four_threads_lose_no_launch") else { return };
    let script = "threads 64 { repeat 100 { launch gemm 1 1 1 1 1 1 0 1; copy h2d 10 1; launch silu; sync stream 1 } }";
    for ((driver, runtime), level) in FEW.into_iter().zip(["kernels", "steps", "kernels"]) {
        let program = fixture.program(driver, runtime).script(script);
        let (truth, seen) = traced::run("threads", &program, &["--level", level]);
        seen.assert_is(&truth.total, true);
    }
}

#[test]
fn a_late_attach_sees_what_comes_and_names_it() {
    // launches ─ (attach) ─ launches of the same, and of another one
    let Some(fixture) = fixture("a_late_attach_sees_what_comes_and_names_it") else { return };
    for (driver, runtime) in FEW {
        let script = "step; repeat 100 { launch gemm; launch silu }; step-end; wait; step; repeat 70 { launch gemm; launch attention }; step-end";
        let mut running = fixture.program(driver, runtime).script(script).spawn().expect("start");
        running.start().expect("it waits");
        running.reach_wait().expect("it waits again");
        let tracer = Tracer::attach("late", running.pid(), &["--level", "steps"]);
        running.start().expect("it waits");
        let (truth, seen) = traced::finish(running, tracer);
        let thread = truth.threads.last().expect("a thread");
        assert_eq!(seen.by_name(), thread.steps[1].tally.by_name(), "{driver:?} {runtime:?} {}", seen.said);
    }
}

#[test]
fn code_that_was_patched_in_memory_is_left_alone_and_the_program_lives() {
    let Some(fixture) = fixture("code_that_was_patched_in_memory_is_left_alone_and_the_program_lives") else { return };
    for (driver, patch) in [(Driver::Old, Patch::ReadExecute), (Driver::New, Patch::ReadWriteExecute)] {
        let script = "malloc block 4096; repeat 20 { launch gemm; launch-ex silu; copy h2d 10 1 }";
        let program = fixture.program(driver, Runtime::V13).patched(patch).script(script);
        let (truth, seen) = traced::run("patched", &program, &["--level", "steps"]);
        assert!(seen.said.contains("cuLaunchKernel in process"), "{}", seen.said);
        assert!(truth.patched["cuLaunchKernel"] >= 20, "{:?}", truth.patched);
        assert_eq!(seen.count("inferspan_cuda_copies_total", ""), 20, "the rest is seen");
    }
}

#[test]
fn libraries_that_only_look_like_cuda_are_not_counted() {
    let Some(fixture) = fixture("libraries_that_only_look_like_cuda_are_not_counted") else { return };
    let script = "repeat 10 { launch-stub gemm 2; launch gemm; copy-stub 64 1 }";
    let program = fixture.program(Driver::Old, Runtime::V12).script(script);
    let (truth, seen) = traced::run("stub", &program, &["--level", "kernels"]);
    seen.assert_is(&truth.total, true);
}

#[test]
fn a_library_that_is_mapped_after_the_attach_is_probed() {
    // attached ─ dlopen ─ (a moment) ─ launches of its kernels
    let Some(fixture) = fixture("a_library_that_is_mapped_after_the_attach_is_probed") else { return };
    let script =
        "dlopen libkernels-13.so; dlopen libnccl.so.2; sleep 1000000; repeat 30 { collective all-reduce 1000 bf16 1 }";
    let program = fixture.program(Driver::New, Runtime::V13).script(script);
    let (truth, seen) = traced::run("dlopen", &program, &["--level", "steps"]);
    seen.assert_is(&truth.total, true);
    assert_eq!(seen.count("inferspan_nccl_collectives_total", "kind=\"all_reduce\""), 30);
    assert_eq!(seen.count("inferspan_nccl_bytes_total", "kind=\"all_reduce\""), 30 * 2000);
}

#[test]
fn a_process_that_exits_in_the_middle_has_told_all_it_launched() {
    let Some(fixture) = fixture("a_process_that_exits_in_the_middle_has_told_all_it_launched") else { return };
    for (driver, runtime) in FEW {
        let script = "threads 4 { repeat 50 { launch gemm; copy h2d 8 1 } }; launch silu; exit 0";
        let mut running = fixture.program(driver, runtime).script(script).spawn().expect("start");
        let tracer = Tracer::attach("exit", running.pid(), &[]);
        running.start().expect("it waits");
        running.wait().expect("it ends");
        let seen = tracer.end();
        assert_eq!(seen.count("inferspan_cuda_launches_total", ""), 201, "{driver:?} {runtime:?} {}", seen.said);
        assert_eq!(seen.count("inferspan_cuda_copies_total", ""), 200);
        assert_eq!(seen.kernels.iter().map(|kernel| kernel.launches).sum::<u64>(), 201);
        assert!(seen.kernels.iter().all(|kernel| !kernel.name.starts_with("unknown")), "{:?}", seen.kernels);
    }
}

#[test]
fn a_handle_that_is_used_again_is_another_kernel() {
    // first, 30 times ─ unload ─ second, 20 times, behind the same handle
    let Some(fixture) = fixture("a_handle_that_is_used_again_is_another_kernel") else { return };
    for driver in [Driver::Old, Driver::New] {
        let script = "repeat 30 { launch first_kernel }; unload; repeat 20 { launch second_kernel }";
        let program = fixture.driver_program(driver).script(script);
        let (truth, seen) = traced::run("unload", &program, &["--level", "steps"]);
        assert_eq!(seen.by_name(), truth.total.by_name(), "{}", seen.said);
    }
}

#[test]
fn a_second_runtime_and_a_deleted_file_are_probed_as_well() {
    let Some(fixture) = fixture("a_second_runtime_and_a_deleted_file_are_probed_as_well") else { return };
    let folder = std::env::temp_dir().join(format!("inferspan-test-cuda-deleted-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let copy = folder.join("libcudart.so.12");
    std::fs::copy(fixture.libcudart(Driver::New, Runtime::V12), &copy).expect("a copy");
    let script = "repeat 40 { launch gemm; copy d2h 12 1 }; sync device";
    let program = fixture.program(Driver::New, Runtime::V12).with_libraries(folder.clone()).script(script);
    let mut running = program.spawn().expect("start");
    // As an upgrade of a package does it.
    std::fs::remove_file(&copy).expect("delete");
    let tracer = Tracer::attach("deleted", running.pid(), &[]);
    running.start().expect("it waits");
    let (truth, seen) = traced::finish(running, tracer);
    seen.assert_is(&truth.total, true);
    let _ = std::fs::remove_dir_all(&folder);
}

#[test]
fn a_process_in_namespaces_of_its_own_is_seen() {
    let Some(fixture) = fixture("a_process_in_namespaces_of_its_own_is_seen") else { return };
    let program =
        fixture.program(Driver::New, Runtime::V13).script("repeat 40 { launch gemm; copy d2h 12 1 }; sync device");
    let mut command = std::process::Command::new("unshare");
    command.args(["--mount", "--pid", "--fork", "--mount-proc", "--kill-child", "--"]).args(program.words());
    let mut running = match program.spawn_with(command) {
        Ok(running) => running,
        Err(error) => {
            eprintln!("SKIPPED a_process_in_namespaces_of_its_own_is_seen: needs unshare: {error}");
            return;
        }
    };
    let tracer = Tracer::attach("namespaces", running.pid(), &[]);
    running.start().expect("it waits");
    std::thread::sleep(Duration::from_millis(10));
    let (truth, seen) = traced::finish(running, tracer);
    seen.assert_is(&truth.total, true);
}

#[test]
fn a_recording_gives_the_same_kernels_and_counts() {
    let Some(fixture) = fixture("a_recording_gives_the_same_kernels_and_counts") else { return };
    let folder = std::env::temp_dir().join(format!("inferspan-test-cuda-record-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let file = |name: &str| folder.join(name).display().to_string();
    let outputs = |of: &str| {
        [
            "--kernels-out".to_owned(),
            file(&format!("{of}.jsonl")),
            "--metrics-out".to_owned(),
            file(&format!("{of}.txt")),
        ]
    };
    let mut running = fixture.program(Driver::New, Runtime::V13).script(EVERYTHING).spawn().expect("start");
    let arguments = ["--cuda-only", "--level", "kernels", "-o"].map(str::to_owned);
    let arguments = [&arguments[..], &[file("run.isrec")], &outputs("live")].concat();
    let recorder = Attached::start("record", running.pid(), &arguments);
    running.start().expect("it waits");
    let truth = running.finish().expect("its account");
    assert_eq!(recorder.end().0, Some(0));
    let replayed = std::process::Command::new(binary())
        .args(["replay", &file("run.isrec")])
        .args(outputs("replay"))
        .output()
        .expect("inferspan runs");
    assert!(replayed.status.success(), "{}", String::from_utf8_lossy(&replayed.stderr));
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).expect("it was written");
    assert_eq!(read("replay.jsonl"), read("live.jsonl"));
    assert_eq!(read("live.jsonl").lines().count(), truth.total.by_name().len());
    let cuda = |text: &str| -> Vec<String> {
        text.lines().filter(|line| line.starts_with("inferspan_cuda_")).map(str::to_owned).collect()
    };
    assert_eq!(cuda(&read("replay.txt")), cuda(&read("live.txt")));
    let _ = std::fs::remove_dir_all(&folder);
}

#[test]
fn threads_that_come_and_go_take_no_room_for_ever() {
    // 20 times 256 threads, more than the table holds ─ each a second apart from the next
    let Some(fixture) = fixture("threads_that_come_and_go_take_no_room_for_ever") else { return };
    let script = "repeat 20 { threads 256 { repeat 3 { launch gemm; copy h2d 10 1 } }; sleep 1200000 }";
    let (truth, seen) = traced::run("crowd", &fixture.program(Driver::New, Runtime::V13).script(script), &[]);
    seen.assert_is(&truth.total, true);
    assert_eq!(seen.count("inferspan_events_dropped_total", ""), 0, "{}", seen.said);
}
