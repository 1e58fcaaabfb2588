//! CUDA of processes whose libraries come in several copies, come late or go, and of processes that go in the middle of it.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use inferspan_harness::folder::Folder;
use inferspan_harness::proc;
use inferspan_tests::cuda::traced::{self, Seen, Tracer};
use inferspan_tests::cuda::{Driver, Fixture, Program, Pulse, Runtime};
use inferspan_tests::live::may_trace;

/// Launches of one thread in a ms when nothing is probed: 50 ns each is less than any takes here.
const MOST_A_MS: u64 = 20_000;
const DRIVERS: [Driver; 3] = [Driver::Old, Driver::New, Driver::None];

fn fixture(test: &str) -> Option<Fixture> {
    if may_trace(test) { Fixture::for_test(test) } else { None }
}

/// Where the runtime of CUDA 13 is found as well.
fn with_second_runtime(program: Program, fixture: &Fixture, driver: Driver) -> Program {
    let second = fixture.libcudart(driver, Runtime::V13);
    program.with_libraries(second.parent().expect("a folder").to_owned())
}

#[test]
fn launches_and_copies_through_two_runtimes_count_once_each() {
    // runtime 12 ─ (attach) ─ runtime 13 is mapped ─ (a moment) ─ both are used, on two threads
    let Some(fixture) = fixture("launches_and_copies_through_two_runtimes_count_once_each") else { return };
    let open = "dlopen libkernels-13.so; runtime libcudart.so.13";
    let both = "threads 2 { repeat 60 {
        launch gemm 1 1 1 32 1 1 0 1; launch late_gemm 2 1 1 64 1 1 0 2; launch-ex silu
        copy h2d 100 1; copy-other 7 2; copy d2h 9
    } }; sync device";
    for driver in DRIVERS {
        for is_late in [false, true] {
            let order = if is_late { ["wait", open] } else { [open, "wait"] };
            let script = format!("{}; sleep 1000000; {both}", order.join("; "));
            let program = with_second_runtime(fixture.program(driver, Runtime::V12).script(&script), &fixture, driver);
            let mut running = program.spawn().expect("start");
            running.start().expect("it waits");
            running.reach_wait().expect("it waits again");
            let tracer = Tracer::attach("two", running.pid(), &["--level", "kernels"]);
            running.start().expect("it waits");
            let (truth, seen) = traced::finish(running, tracer);
            eprintln!("{driver:?}, the second is mapped after the attach: {is_late}");
            assert_eq!(truth.total.launch_count(), 360);
            seen.assert_is(&truth.total, true);
            assert!(!seen.said.contains("warning"), "{}", seen.said);
        }
    }
}

#[test]
fn two_files_of_one_runtime_are_two_runtimes() {
    // The copy of a package, and that of the system: the same library, two inodes, both used.
    let Some(fixture) = fixture("two_files_of_one_runtime_are_two_runtimes") else { return };
    let folder = Folder::scratch("two-runtimes").expect("a folder");
    for runtime in [Runtime::V12, Runtime::V13] {
        let original = fixture.libcudart(Driver::New, runtime);
        let copy = folder.path().join(original.file_name().expect("a name"));
        fs::copy(&original, &copy).expect("a copy");
        let script = format!(
            "runtime {}; wait; repeat 50 {{ launch gemm; copy h2d 100 1; launch-other it 3 1 1 64 1 1 16 1; copy-other 11 1 }}",
            copy.display()
        );
        let mut running = fixture.program(Driver::New, runtime).script(&script).spawn().expect("start");
        running.start().expect("it waits");
        running.reach_wait().expect("it waits again");
        let maps = fs::read_to_string(format!("/proc/{}/maps", running.pid())).expect("maps");
        let is_mapped = |file: &Path| maps.lines().any(|line| line.ends_with(file.to_str().expect("UTF-8")));
        assert!(is_mapped(&original) && is_mapped(&copy), "{maps}");
        let tracer = Tracer::attach("copies", running.pid(), &["--level", "kernels"]);
        running.start().expect("it waits");
        let (truth, seen) = traced::finish(running, tracer);
        assert_eq!((truth.total.launch_count(), truth.total.copies["h2d"].count), (100, 100));
        seen.assert_is(&truth.total, true);
        let other = seen.kernels.iter().find(|kernel| kernel.name == "_Z12other_kernelPf").expect("the copy's");
        assert_eq!((other.launches, other.grid, other.shared_memory), (50, Some([3, 1, 1]), Some(16)), "{other:?}");
    }
}

/// All launches of a program that was killed, but for those that it was in: one a thread at most.
fn assert_all_before_the_end(seen: &Seen, pulse: Pulse, what: &str) {
    let Pulse { begun, done } = pulse;
    let launches = seen.count("inferspan_cuda_launches_total", "");
    assert!((done..=begun).contains(&launches), "{what}: {launches} of {done} to {begun} launches\n{}", seen.said);
    let by_name: u64 = seen.kernels.iter().map(|kernel| kernel.launches).sum();
    assert_eq!(by_name, launches, "{what}: {:?}", seen.kernels);
    assert!(seen.said.contains("inferspan: the server has ended"), "{what}: {}", seen.said);
}

#[test]
fn threads_in_tight_loops_that_are_ended_have_told_all_but_the_last_call() {
    // 4 threads │ launch launch launch … ✕       by `_exit` of another thread, or by SIGKILL
    let Some(fixture) = fixture("threads_in_tight_loops_that_are_ended_have_told_all_but_the_last_call") else {
        return;
    };
    let folder = Folder::scratch("ended").expect("a folder");
    for (driver, runtime, level) in [
        (Driver::Old, Runtime::V12, "steps"),
        (Driver::New, Runtime::V13, "kernels"),
        (Driver::None, Runtime::V12, "kernels"),
    ] {
        for is_killed in [false, true] {
            let pulse = folder.path().join("pulse");
            let end = if is_killed { "wait" } else { "exit 0" };
            let script =
                format!("background 4 {{ repeat 100000000 {{ launch gemm; launch silu }} }}; sleep 500000; {end}");
            let mut running =
                fixture.program(driver, runtime).with_pulse(&pulse).script(&script).spawn().expect("start");
            let tracer = Tracer::attach("ended", running.pid(), &["--level", level]);
            running.start().expect("it waits");
            if is_killed {
                running.reach_wait().expect("its time");
                running.kill().expect("it runs");
            } else {
                running.wait().expect("it ends");
            }
            let ended = Instant::now();
            let seen = tracer.end();
            let took = ended.elapsed();
            let pulse = Pulse::read(&pulse).expect("its pulse");
            let what = format!("{driver:?} {runtime:?} {level}, killed: {is_killed}");
            assert!(pulse.begun > 10_000, "{what}: {pulse:?}");
            assert_all_before_the_end(&seen, pulse, &what);
            assert!(took < Duration::from_secs(15), "{what}: {took:?}");
            eprintln!("{what}: {pulse:?}, inferspan ended after {took:?}");
        }
    }
}

#[test]
fn a_process_that_is_killed_in_a_wait_leaves_what_it_did_before() {
    // 40 kernels of 50 ms, a copy ─ a wait of 2 s ─ ✕ after half a second of it
    let Some(fixture) = fixture("a_process_that_is_killed_in_a_wait_leaves_what_it_did_before") else { return };
    for (driver, runtime) in [(Driver::Old, Runtime::V12), (Driver::None, Runtime::V13)] {
        let script =
            "sync device; repeat 40 { launch slow 1 1 1 1 1 1 0 1 }; copy h2d 10 1; background 1 { sync stream 1 };
                      sleep 500000; exit 0";
        let mut running = fixture.program(driver, runtime).script(script).spawn().expect("start");
        let tracer = Tracer::attach("waits", running.pid(), &["--level", "kernels"]);
        running.start().expect("it waits");
        running.wait().expect("it ends");
        let seen = tracer.end();
        let counted = ["launches", "copies"].map(|what| seen.count(&format!("inferspan_cuda_{what}_total"), ""));
        assert_eq!(counted, [40, 1], "{driver:?}: {}", seen.said);
        // A wait that did not return has no length.
        let waited = seen.page.sum("inferspan_cuda_sync_wait_seconds_total", "");
        assert!(waited < 0.1, "{driver:?}: waited {waited} s");
        assert!(seen.said.contains("inferspan: the server has ended"), "{}", seen.said);
    }
}

#[test]
fn a_process_that_ends_does_not_disturb_another_one() {
    // parent │ ─ (attach) ────────────── launches, copies ─ end         both traced, by one tracer
    // child  │ ─ (attach) launch launch … ✕
    let Some(fixture) = fixture("a_process_that_ends_does_not_disturb_another_one") else { return };
    let folder = Folder::scratch("disturbed").expect("a folder");
    let (pulse, fifo) = (folder.path().join("pulse"), folder.path().join("fifo"));
    let child = fixture
        .program(Driver::New, Runtime::V13)
        .script("background 3 { repeat 100000000 { launch gemm } }; sleep 300000; exit 0");
    let parent = fixture
        .program(Driver::New, Runtime::V13)
        .script("wait; repeat 500 { launch silu; copy h2d 10 1 }; sync device");
    let mut command = Command::new("sh");
    command.args(["-c", r#"mkfifo "$1"; FAKE_CUDA_PULSE="$2" "$3" "$4" <"$1" >/dev/null & exec "$3" "$5""#, "sh"]);
    let (child_words, parent_words) = (child.words(), parent.words());
    command.arg(&fifo).arg(&pulse).args(&child_words).arg(&parent_words[1]);
    let mut running = parent.spawn_with(command).expect("start");
    // Opens when the child does.
    let mut input = fs::OpenOptions::new().write(true).open(&fifo).expect("the child reads");
    // The child is `ready` when its account has begun.
    let start = Instant::now();
    while fs::metadata(&pulse).map_or(0, |file| file.len()) == 0 {
        assert!(start.elapsed() < Duration::from_secs(10), "the child does not start");
        std::thread::sleep(Duration::from_millis(10));
    }
    std::thread::sleep(Duration::from_millis(200));
    let root = running.pid();
    let tracer = Tracer::attach("disturbed", root, &["--level", "kernels"]);
    let family = proc::family(root).expect("processes");
    let [_, other] = family[..] else { panic!("one child: {family:?}") };
    running.start().expect("it waits");
    running.reach_wait().expect("it waits again");
    std::io::Write::write_all(&mut input, b"go\n").expect("the child reads");
    while proc::is_running(other) {
        assert!(start.elapsed() < Duration::from_mins(1), "the child does not end");
        std::thread::sleep(Duration::from_millis(5));
    }
    running.start().expect("it waits");
    let (truth, seen) = traced::finish(running, tracer);
    let Pulse { begun, done } = Pulse::read(&pulse).expect("its pulse");
    let of = |process: u32| {
        seen.kernels.iter().filter(|kernel| kernel.process == process).map(|kernel| kernel.launches).sum::<u64>()
    };
    assert_eq!(of(root), truth.total.launch_count(), "{:?}", seen.kernels);
    assert!(
        (done..=begun).contains(&of(other)) && begun > 10_000,
        "{} of {done} to {begun}: {:?}",
        of(other),
        seen.kernels
    );
    assert_eq!(seen.count("inferspan_cuda_copies_total", ""), 500, "{}", seen.said);
}

#[test]
fn a_driver_that_comes_after_the_attach_takes_over_from_the_runtime() {
    // (attach: a runtime alone) ─ launches at full speed, the driver is mapped by the first ─ (2 s) ─ launches of another kernel
    //
    // While the one's probes are taken back and the other's are placed, a launch is seen by neither, for as long as is said; none is
    // seen by both.
    let Some(fixture) = fixture("a_driver_that_comes_after_the_attach_takes_over_from_the_runtime") else { return };
    for (driver, runtime) in [(Driver::Old, Runtime::V12), (Driver::New, Runtime::V13)] {
        let script = "repeat 200000 { launch gemm 1 1 1 1 1 1 0 1 }; sleep 2000000; wait; repeat 3000 { launch silu; copy h2d 10 1 }";
        let mut running = fixture.program(driver, runtime).late().script(script).spawn().expect("start");
        let maps = fs::read_to_string(format!("/proc/{}/maps", running.pid())).expect("maps");
        assert!(maps.contains("libcudart.so.") && !maps.contains("libcuda.so.1"), "{maps}");
        let tracer = Tracer::attach("over", running.pid(), &["--level", "steps"]);
        running.start().expect("it waits");
        running.reach_wait().expect("it waits again");
        running.start().expect("it waits");
        let (truth, seen) = traced::finish(running, tracer);
        let (seen_of, made_of) = (seen.by_name(), truth.total.by_name());
        let of = |all: &std::collections::BTreeMap<&str, u64>, part: &str| -> u64 {
            all.iter().filter(|(name, _)| name.contains(part)).map(|(_, count)| count).sum()
        };
        let what = format!("{driver:?} {runtime:?}: {seen_of:?} of {made_of:?}\n{}", seen.said);
        assert_eq!(of(&seen_of, "silu"), 3000, "{what}");
        assert_eq!(seen.count("inferspan_cuda_copies_total", ""), 3000, "{what}");
        let gemm = of(&seen_of, "gemm");
        let said =
            seen.said.split(" came to process ").nth(1).unwrap_or_else(|| panic!("nothing is said of it: {what}"));
        let ms: u64 =
            said.split_once(" ms launches").and_then(|(text, _)| text.rsplit(' ').next()?.parse().ok()).expect("ms");
        assert!(gemm > 0 && gemm <= 200_000, "a launch was seen twice: {what}");
        assert!(200_000 - gemm <= ms * MOST_A_MS, "more are missing than {ms} ms hold: {what}");
        assert_eq!(seen.count("inferspan_cuda_launches_total", ""), gemm + 3000, "{what}");
        eprintln!("{driver:?} {runtime:?}: {gemm} of 200,000 launches, the driver took {ms} ms");
    }
}
#[test]
fn a_function_of_a_library_that_is_where_another_one_was_is_another_kernel() {
    // one library, 30 times ─ it goes, another one comes to its place ─ the other's kernel, 20 times, at the same address
    const TEST: &str = "a_function_of_a_library_that_is_where_another_one_was_is_another_kernel";
    let Some(fixture) = fixture(TEST) else { return };
    let folder = Folder::scratch("reused").expect("a folder");
    let one = fixture.common("libkernels-12.so");
    let other = folder.path().join("libother.so");
    let mut bytes = fs::read(&one).expect("a library");
    let (from, to) = (b"late_rms_norm_kernel", b"next_rms_norm_kernel");
    let at = memchr::memmem::find(&bytes, from).expect("the name");
    bytes[at..at + from.len()].copy_from_slice(to);
    // Tables of kernels are kept by build-id, and another library has another one.
    let note = memchr::memmem::find(&bytes, b"\x03\0\0\0GNU\0").expect("a build-id");
    bytes[note + 8] ^= 0xff;
    fs::write(&other, bytes).expect("a library");
    for driver in [Driver::None, Driver::New] {
        let script = format!(
            "dlopen {}; repeat 30 {{ launch late_norm }}; sleep 1500000; dlclose; dlopen {}; repeat 20 {{ launch late_norm }}; sleep 1500000",
            one.display(),
            other.display()
        );
        let (truth, seen) =
            traced::run("reused", &fixture.program(driver, Runtime::V12).script(&script), &["--level", "steps"]);
        let handles: Vec<u64> = truth.total.launches.iter().map(|launches| launches.handle).collect();
        assert!(handles.len() == 2 && handles[0] == handles[1], "the other is elsewhere: {handles:?}");
        assert_eq!(seen.by_name(), truth.total.by_name(), "{driver:?}: {}", seen.said);
    }
}
