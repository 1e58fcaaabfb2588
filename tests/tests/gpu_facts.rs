//! Facts of GPUs, from a fake NVML that gcc builds: in `ls`, in `doctor`, on the metrics page; and without it, or with one that hangs,
//! everything else as ever.

use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use inferspan_harness::attached::Attached;
use inferspan_harness::folder::Folder;
use inferspan_harness::http;
use inferspan_harness::process::Signal;
use inferspan_tests::demo_engine::DemoEngine;
use inferspan_tests::judge::Page;
use inferspan_tests::judge::binary;
use inferspan_tests::live::may_trace;
use inferspan_tests::signals::families;
use serde_json::{Value, json};

/// The folder of the fake `libnvidia-ml.so.1`, built once; nothing without gcc.
fn nvml(test: &str) -> Option<&'static PathBuf> {
    static BUILT: OnceLock<Option<PathBuf>> = OnceLock::new();
    let built = BUILT.get_or_init(|| {
        let compiler = std::env::var("CC").unwrap_or_else(|_| "gcc".to_owned());
        Command::new(&compiler).arg("--version").output().ok()?;
        // Of all runs of these tests, since none of its statics is dropped.
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("nvml");
        std::fs::create_dir_all(&folder).expect("a folder");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/nvml/nvml.c");
        let mut build = Command::new(&compiler);
        build.args(["-std=gnu11", "-O1", "-Wall", "-shared", "-fPIC", "-Wl,-soname,libnvidia-ml.so.1", "-o"]);
        let status = build.arg(folder.join("libnvidia-ml.so.1")).arg(source).status().expect("gcc");
        assert!(status.success(), "the fake NVML is not built");
        Some(folder)
    });
    if built.is_none() {
        eprintln!("SKIPPED {test}: needs gcc, or a C compiler named by CC");
    }
    built.as_ref()
}

/// Whether this machine's own NVML would be found where the fake one is not.
fn has_real_nvml(test: &str) -> bool {
    let found = inferspan::gpu::read().is_ok();
    if found {
        eprintln!("SKIPPED {test}: needs a machine without NVML");
    }
    found
}

fn inferspan(library: Option<&PathBuf>, environment: &[(&str, &str)]) -> Command {
    let mut command = Command::new(binary());
    command.envs(environment.iter().copied());
    if let Some(folder) = library {
        command.env("LD_LIBRARY_PATH", folder);
    }
    command
}

fn document(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)))
}

fn check(mut command: Command) -> (String, String) {
    let document = document(&command.args(["doctor", "--json"]).output().expect("inferspan runs"));
    let checks = document["checks"].as_array().expect("checks");
    let check = checks.iter().find(|check| check["name"] == "gpus").expect("a check of GPUs");
    let text = |name: &str| check[name].as_str().expect("a text").to_owned();
    (text("status"), text("detail"))
}

/// A process that does nothing, and ends with this.
struct Idle(Child);

impl Drop for Idle {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// One that is traced, and the tracer; both end with this.
struct Traced {
    _target: Idle,
    tracer: Attached,
    url: String,
}

impl Traced {
    fn start(command: Command) -> Self {
        Self::start_as(command, &["attach"])
    }

    /// By a verb and flags of its own.
    fn start_as(mut command: Command, verb: &[&str]) -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").port();
        let target = Idle(Command::new("sleep").arg("600").spawn().expect("sleep"));
        let (pid, address) = (target.0.id().to_string(), format!("127.0.0.1:{port}"));
        command.args(verb).args(["--cuda-only", "-p", &pid, "--metrics", &address]).stdout(Stdio::null());
        let tracer = Attached::start(&mut command).expect("inferspan attaches");
        assert!(!tracer.said.contains("NVML"), "nothing is said about it: {}", tracer.said);
        Self { _target: target, tracer, url: format!("http://{address}/metrics") }
    }

    /// The page, once it `has` what is waited for.
    fn page(&self, has: impl Fn(&str) -> bool) -> String {
        let start = Instant::now();
        loop {
            let page = http::text(&self.url).expect("a page");
            if has(&page) {
                return page;
            }
            assert!(start.elapsed() < Duration::from_secs(20), "{page}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Ends it as a user does; how long it took.
    fn end(self) -> Duration {
        let start = Instant::now();
        self.tracer.signal(Signal::INT).expect("it runs");
        let (status, said) = self.tracer.end(Duration::from_mins(1)).expect("inferspan ends");
        assert!(status.success(), "{said}");
        start.elapsed()
    }
}

#[test]
fn every_metric_of_the_table_is_served_with_the_drivers_values() {
    let test = "every_metric_of_the_table_is_served_with_the_drivers_values";
    let Some(library) = nvml(test).filter(|_| may_trace(test)) else { return };
    let traced = Traced::start(inferspan(Some(library), &[("FAKE_NVML_XIDS", "31,79,31")]));
    let page_text = traced.page(|page| page.contains("inferspan_gpu_throttled"));
    let shown = families(&page_text);
    for row in inferspan::export::prometheus::gpu::rows() {
        let family = shown.get(&row.name).unwrap_or_else(|| panic!("{} is not on the page:\n{page_text}", row.name));
        assert_eq!((family.kind.as_str(), &family.labels[..]), (row.kind.name(), &strings(&row.labels)[..]));
        assert_eq!(family.help.trim_end_matches('.'), row.help);
    }
    let page = Page::parse(&page_text);
    let first = "gpu=\"0\",uuid=\"GPU-aaaa\",name=\"NVIDIA H100 80GB HBM3\"";
    for (name, expected) in [
        ("memory_used_bytes", 68_719_476_736.0),
        ("memory_total_bytes", 85_899_345_920.0),
        ("utilization_ratio", 0.87),
        ("sm_clock_hertz", 1.98e9),
        ("memory_clock_hertz", 2.619e9),
        ("power_watts", 612.5),
        ("temperature_celsius", 64.0),
    ] {
        let seen = page.sum(&format!("inferspan_gpu_{name}"), first);
        assert!((seen - expected).abs() <= expected * 1e-9, "{name}: {seen}");
    }
    let of = |name: &str, label: &str| page.sum(&format!("inferspan_gpu_{name}"), &format!("{first},{label}")) as u64;
    assert_eq!(of("ecc_errors_total", "kind=\"corrected\""), 3, "since the driver was loaded");
    assert_eq!((of("throttled", "reason=\"power_cap\""), of("throttled", "reason=\"hardware_thermal\"")), (1, 0));
    assert_eq!((of("xid_errors_total", "xid=\"31\""), of("xid_errors_total", "xid=\"79\"")), (2, 1), "each once");
    assert!(!page_text.lines().any(|line| line.starts_with("inferspan_gpu_xid_errors") && line.contains("gpu=\"1\"")));
    // What the second one cannot say is not there.
    assert_eq!(page_text.lines().filter(|line| line.starts_with("inferspan_gpu_temperature_celsius{")).count(), 1);
    assert!(!page_text.lines().any(|line| line.starts_with("inferspan_gpu_ecc_errors") && line.contains("gpu=\"1\"")));
    assert!(page_text.contains("name=\"NVIDIA \\\"Quoted\\\" 1\""), "labels are escaped");
    traced.end();
}

fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

#[test]
fn a_replay_says_of_the_gpus_what_the_live_run_said() {
    let test = "a_replay_says_of_the_gpus_what_the_live_run_said";
    let Some(library) = nvml(test).filter(|_| may_trace(test)) else { return };
    let folder = Folder::scratch("gpu-replay").expect("a folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("UTF-8").to_owned();
    let (recording, live, again) = (path("run.isrec"), path("live"), path("again"));
    let verb = ["record", "-o", &recording, "--metrics-out", &live];
    let traced = Traced::start_as(inferspan(Some(library), &[]), &verb);
    traced.page(|page| page.contains("inferspan_gpu_throttled"));
    traced.end();
    let replay = inferspan(None, &[]).args(["replay", &recording, "--metrics-out", &again]).output().expect("it runs");
    assert!(replay.status.success(), "{}", String::from_utf8_lossy(&replay.stderr));
    let of_gpus = |path: &str| -> Vec<String> {
        let page = std::fs::read_to_string(path).expect("a page");
        page.lines().filter(|line| line.contains("inferspan_gpu_")).map(str::to_owned).collect()
    };
    assert!(of_gpus(&live).len() > 20, "{:?}", of_gpus(&live));
    assert_eq!(of_gpus(&live), of_gpus(&again));
}

#[test]
fn without_nvml_only_these_metrics_are_missing() {
    let test = "without_nvml_only_these_metrics_are_missing";
    if !may_trace(test) || has_real_nvml(test) {
        return;
    }
    let traced = Traced::start(inferspan(None, &[]));
    std::thread::sleep(Duration::from_millis(300));
    let page = traced.page(|page| page.contains("inferspan_self_memory_bytes"));
    assert!(!page.contains("inferspan_gpu_"), "{page}");
    traced.end();
    let (status, detail) = check(inferspan(None, &[]));
    assert_eq!(status, "OK");
    assert!(detail.contains("libnvidia-ml.so.1 is not there"), "{detail}");
}

#[test]
fn a_driver_that_hangs_holds_up_neither_the_page_nor_the_end() {
    let test = "a_driver_that_hangs_holds_up_neither_the_page_nor_the_end";
    let Some(library) = nvml(test).filter(|_| may_trace(test)) else { return };
    let traced = Traced::start(inferspan(Some(library), &[("FAKE_NVML", "hang")]));
    std::thread::sleep(Duration::from_millis(300));
    let page = traced.page(|page| page.contains("inferspan_self_memory_bytes"));
    assert!(!page.contains("inferspan_gpu_"), "{page}");
    let took = traced.end();
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[test]
fn a_doctor_names_the_gpus_and_what_is_wrong_with_them() {
    let Some(library) = nvml("a_doctor_names_the_gpus_and_what_is_wrong_with_them") else { return };
    let (status, detail) = check(inferspan(Some(library), &[("FAKE_NVML_PIDS", "41,42")]));
    assert_eq!(status, "OK", "{detail}");
    let first = "driver 570.86.10: 0 NVIDIA H100 80GB HBM3 (GPU-aaaa), 64.0 of 80.0 GiB in use, by 41, 42, 87 % busy, \
                 SM at 1980 MHz, memory at 2619 MHz; 1 ";
    assert!(detail.starts_with(first), "{detail}");
    let (status, detail) = check(inferspan(Some(library), &[("FAKE_NVML", "hot")]));
    assert_eq!(status, "WARN");
    assert!(detail.starts_with("GPU 0 is slowed down now (hardware_thermal, hardware)"), "{detail}");
    let (status, detail) = check(inferspan(Some(library), &[("FAKE_NVML_XIDS", "79")]));
    assert_eq!(status, "WARN");
    assert!(detail.starts_with("GPU 0 had critical errors (Xid 79 ×1)"), "{detail}");
    let (status, detail) = check(inferspan(Some(library), &[("FAKE_NVML", "broken")]));
    assert_eq!(status, "WARN");
    assert!(detail.contains("no facts and metrics of GPUs"), "{detail}");
}

#[test]
fn a_server_has_the_gpus_on_which_its_processes_compute() {
    let Some(library) = nvml("a_server_has_the_gpus_on_which_its_processes_compute") else { return };
    let command = Command::new(env!("CARGO_BIN_EXE_test-engine"));
    let folder = Folder::scratch("gpu-ls").expect("a folder");
    let engine = DemoEngine::start(command, folder.path(), |_, announced| Some(announced)).expect("demo engine");
    let pid = engine.target.pid;
    let ls = |pids: &str, arguments: &[&str]| {
        let mut command = inferspan(Some(library), &[("FAKE_NVML_PIDS", pids), ("FAKE_NVML_XIDS", "13,13")]);
        command.arg("ls").args(arguments).output().expect("inferspan runs")
    };
    let server = |pids: &str| {
        let document = document(&ls(pids, &["--json"]));
        let servers = document["servers"].as_array().expect("servers");
        servers.iter().find(|server| server["pid"] == pid).cloned().expect("the demo engine is a server")
    };
    let facts = &server(&pid.to_string())["gpu_facts"];
    assert_eq!(facts.as_array().map(Vec::len), Some(1), "{facts}");
    assert_eq!((&facts[0]["uuid"], &facts[0]["processes"]), (&json!("GPU-aaaa"), &json!([pid])));
    assert_eq!(facts[0]["ecc_errors"], json!({ "corrected": 3, "uncorrected": 0 }));
    assert_eq!(facts[0]["xid_errors"], json!({ "13": 2 }));
    assert_eq!(facts[0]["utilization"], json!({ "gpu_percent": 87, "memory_percent": 43 }));
    assert_eq!(server("1")["gpu_facts"], json!([]), "another's GPU");
    let table = String::from_utf8(ls(&pid.to_string(), &[]).stdout).expect("a table");
    assert!(table.contains("1x NVIDIA H100 80GB HBM3 (0)"), "{table}");
}
