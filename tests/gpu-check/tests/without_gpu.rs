//! The check as it runs where there is no GPU: without CUDA at all, and against the fake libraries.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use inferspan_gpu_check::truth::{Amount, Truth};
use inferspan_harness::folder::Folder;
use inferspan_tests::cuda::{Driver, Fixture, Runtime};
use inferspan_tests::judge::binary;
use inferspan_tests::live::may_trace;
use serde_json::Value;

/// The folder, with the report, and how it ended.
struct Done {
    folder: Folder,
    output: Output,
}

impl Done {
    fn run(test: &str, libraries: &[PathBuf]) -> Self {
        let folder = Folder::scratch(&format!("gpu-check-{test}")).expect("a folder");
        let mut command = Command::new(env!("CARGO_BIN_EXE_gpu-check"));
        command
            .arg("--inferspan")
            .arg(binary())
            .args(["--launches", "2000", "--turns", "1", "--rounds", "40"])
            .arg(folder.path());
        command.env("LD_LIBRARY_PATH", std::env::join_paths(libraries).expect("no colon"));
        Self { folder, output: command.output().expect("gpu-check runs") }
    }

    fn report(&self) -> Value {
        let stderr = String::from_utf8_lossy(&self.output.stderr);
        assert_eq!(self.output.status.code(), Some(5), "{stderr}");
        let read = |name: &str| std::fs::read_to_string(self.folder.path().join(name)).expect("the report");
        assert!(read("report.md").contains("**No GPU"));
        assert!(stderr.contains("NOT DONE: facts of a GPU: needs the NVIDIA kernel module"), "{stderr}");
        serde_json::from_str(&read("report.json")).expect("JSON")
    }
}

/// A host with a GPU checks itself; these tests say nothing there.
fn has_gpu(test: &str) -> bool {
    let has = Path::new("/proc/driver/nvidia/version").exists();
    if has {
        eprintln!("SKIPPED {test}: needs a host without a GPU");
    }
    has
}

fn texts<'a>(list: &'a Value, field: &'a str) -> Vec<&'a str> {
    list.as_array().expect("a list").iter().map(|one| one[field].as_str().expect("a text")).collect()
}

#[test]
fn a_host_without_cuda_gets_a_report_of_what_it_lacks() {
    let test = "a_host_without_cuda_gets_a_report_of_what_it_lacks";
    if has_gpu(test) || !may_trace(test) {
        return;
    }
    let report = Done::run("bare", &[]).report();
    let missing = texts(&report["missing"], "step");
    for step in ["CUDA device", "CUDA program", "cost", "decode loop"] {
        assert!(missing.contains(&step), "{step}: {missing:?}");
    }
    assert_eq!(report["is_gpu"], false);
    assert!(report["host"]["facts"]["kernel"].is_string());
}

#[test]
fn on_both_drivers_points_are_chosen_right_and_the_program_is_counted() {
    let test = "on_both_drivers_points_are_chosen_right_and_the_program_is_counted";
    if has_gpu(test) || !may_trace(test) {
        return;
    }
    let Some(fixture) = Fixture::for_test(test) else { return };
    for (driver, runtime, chosen) in [(Driver::Old, Runtime::V12, 10), (Driver::New, Runtime::V13, 0)] {
        let report = Done::run("fake", &fixture.libraries(driver, Some(runtime))).report();
        assert_eq!(report["failed"], serde_json::json!([]));

        let libraries = report["libraries"].as_array().expect("a list");
        let cuda = libraries.iter().find(|library| library["what"] == "CUDA driver").expect("the driver");
        let points = cuda["points"].as_array().expect("a list");
        assert!(texts(&cuda["points"], "symbol").contains(&"cuLaunchKernelEx_ptsz"));
        for point in points {
            assert_eq!((&point["chosen"], &point["is_emulated"]), (&chosen.into(), &true.into()), "{driver:?} {point}");
        }
        let names: Vec<&Value> =
            report["names_at"].as_array().expect("a list").iter().map(|at| &at["displacement"]).collect();
        assert_eq!(names, [8, 8], "{driver:?}");

        for run in report["runs"].as_array().expect("a list") {
            for check in run["checks"].as_array().expect("a list") {
                assert!(check["is_equal"] == true, "{driver:?} {}: {check}", run["program"]);
            }
        }
        let runs: Vec<(&str, &str)> =
            texts(&report["runs"], "program").into_iter().zip(texts(&report["runs"], "level")).collect();
        let of = |program| [(program, "steps"), (program, "kernels")];
        assert_eq!(runs, [of("CUDA program (driver)"), of("CUDA program (runtime)")].concat());
        let cost = report["cost"]["ns"].as_object().expect("the cost");
        assert_eq!(cost.len(), 5, "{cost:?}");
        assert!(cost.values().all(|ns| ns.as_f64().is_some_and(|ns| ns > 0.0)), "{cost:?}");
    }
}

/// A trace as kineto writes it: one kernel launched by itself, two by a graph, a copy, a wait, and a kernel of nobody.
const TRACE: &str = r#"[
    {"ph": "X", "cat": "cuda_runtime", "name": "cudaLaunchKernel", "dur": 3, "args": {"correlation": 1}},
    {"ph": "X", "cat": "kernel", "name": "void norm<float>(int)", "dur": 9, "args": {"correlation": 1}},
    {"ph": "X", "cat": "cuda_runtime", "name": "cudaGraphLaunch", "dur": 5, "args": {"correlation": 2}},
    {"ph": "X", "cat": "cuda_driver", "name": "cuGraphLaunch", "dur": 4, "args": {"correlation": 2}},
    {"ph": "X", "cat": "kernel", "name": "gemm", "dur": 9, "args": {"correlation": 2}},
    {"ph": "X", "cat": "kernel", "name": "gemm", "dur": 9, "args": {"correlation": 2}},
    {"ph": "X", "cat": "cuda_runtime", "name": "cudaMemcpyAsync", "dur": 2, "args": {"correlation": 3}},
    {"ph": "X", "cat": "gpu_memcpy", "name": "Memcpy HtoD (Pinned -> Device)", "dur": 1, "args": {"correlation": 3, "bytes": 4096}},
    {"ph": "X", "cat": "cuda_runtime", "name": "cudaDeviceSynchronize", "dur": 1500.5, "args": {"correlation": 4}},
    {"ph": "X", "cat": "kernel", "name": "stranger", "dur": 9, "args": {"correlation": 99}},
    {"ph": "X", "cat": "cpu_op", "name": "aten::mm", "dur": 9, "args": {}}
]"#;

#[test]
fn the_decode_loops_account_is_read_from_the_profilers_trace() {
    let test = "the_decode_loops_account_is_read_from_the_profilers_trace";
    // What it takes of PyTorch beyond the trace.
    let program = "import json, sys, types; torch = types.ModuleType('torch'); torch.__version__ = '2'; \
        torch.version = types.SimpleNamespace(cuda='13'); torch.cuda = types.SimpleNamespace(get_device_name=lambda: 'GPU'); \
        sys.modules['torch'] = torch; import decode_loop; print(json.dumps(decode_loop.account_of(json.loads(sys.argv[1]))))";
    let mut python = Command::new("python3");
    python.args(["-B", "-c", program, TRACE]).env("PYTHONPATH", env!("CARGO_MANIFEST_DIR"));
    let Ok(output) = python.output() else {
        eprintln!("SKIPPED {test}: needs python3");
        return;
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let truth: Truth = serde_json::from_slice(&output.stdout).expect("an account");
    assert_eq!(truth.launches, BTreeMap::from([("void norm<float>(int)".to_owned(), 1)]));
    assert_eq!(truth.graph_launches, 1);
    let copies = BTreeMap::from([("h2d".to_owned(), Amount { count: 1, bytes: 4096 })]);
    assert_eq!((truth.copies, truth.waits, truth.wait_ns), (Some(copies), Some(1), Some(1_500_500)));
    assert!(truth.notes.iter().any(|note| note.contains("stranger")), "{:?}", truth.notes);
}
