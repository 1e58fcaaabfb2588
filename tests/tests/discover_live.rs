//! Discovery on this host: the binary, real processes, namespaces and users.
//!
//! The servers here are shells and sleeps that carry vLLM's command line and titles, which is what discovery goes by. What
//! needs root is skipped without it, and says so.

#![allow(clippy::unwrap_used, reason = "a test that meets a surprise fails")]

use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use inferspan::discover;
use inferspan::input::Role;
use inferspan_harness::folder::Folder;
use serde_json::Value;

/// The binary, built for the profile of this test.
fn inferspan() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let profile = if cfg!(debug_assertions) { "dev" } else { "release" };
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let status = Command::new(cargo)
            .args(["build", "--quiet", "--package", "inferspan", "--profile", profile])
            .status()
            .unwrap();
        assert!(status.success(), "the binary builds");
        let deps = std::env::current_exe().unwrap();
        deps.parent().unwrap().parent().unwrap().join("inferspan")
    })
}

fn run(arguments: &[&str]) -> Output {
    Command::new(inferspan()).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What `--json` printed.
fn document(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("{error}: {:?}\n{}\n{}", output.status, text(&output.stdout), text(&output.stderr))
    })
}

fn is_root() -> bool {
    // SAFETY: geteuid has no preconditions and cannot fail.
    let root = unsafe { libc::geteuid() } == 0;
    if !root {
        eprintln!("skipped: this needs root (namespaces, other users)");
    }
    root
}

/// A process group that is killed when dropped.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        // SAFETY: signals the group that this test made with `process_group(0)`; no memory is involved.
        unsafe { libc::kill(-(self.0.id() as i32), libc::SIGKILL) };
        let _ = self.0.wait();
    }
}

/// A shell named `vllm` whose words are `serve MODEL …`: bash runs the script `serve` of its directory. It starts an engine
/// with a worker, by title.
fn server_in(directory: &Path, wrap: &[&str], model: &str) -> Group {
    std::fs::create_dir_all(directory).unwrap();
    let engine = directory.join("engine");
    let mut script = std::fs::File::create(&engine).unwrap();
    writeln!(script, "(exec -a VLLM::Worker_TP0 sleep 600) &\nwait").unwrap();
    let mut script = std::fs::File::create(directory.join("serve")).unwrap();
    writeln!(script, "(exec -a VLLM::EngineCore bash {}) &\nwait", engine.display()).unwrap();
    let mut command = match wrap.split_first() {
        None => {
            let mut command = Command::new("bash");
            command.arg0("vllm");
            command.args(["serve", model]);
            command
        }
        Some((program, arguments)) => {
            let mut command = Command::new(program);
            command.args(arguments).args(["bash", "-c", &format!("exec -a vllm bash serve {model}")]);
            command
        }
    };
    Group(command.current_dir(directory).process_group(0).stdin(Stdio::null()).spawn().unwrap())
}

fn directory(name: &str) -> Folder {
    Folder::scratch(&format!("live-{name}")).unwrap()
}

/// Waits for the server of `model` with its worker; gives `ls --json`'s description of it.
fn listed(model: &str) -> Value {
    let start = Instant::now();
    loop {
        let document = document(&run(&["ls", "--json"]));
        assert_eq!(document["schema"], "inferspan.ls/1");
        let servers = document["servers"].as_array().unwrap();
        if let Some(server) = servers.iter().find(|server| server["model"] == model)
            && server["processes"].as_array().unwrap().len() == 3
        {
            return server.clone();
        }
        assert!(start.elapsed() < Duration::from_secs(20), "{model} is not listed: {document:#}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn pids(server: &Value) -> Vec<u32> {
    server["processes"].as_array().unwrap().iter().map(|process| process["pid"].as_u64().unwrap() as u32).collect()
}

/// The check called `target` in `doctor -p PID --json`, and the exit code.
fn target(output: &Output) -> (Value, Option<i32>) {
    let document = document(output);
    assert_eq!(document["schema"], "inferspan.doctor/1");
    let checks = document["checks"].as_array().unwrap();
    (checks.iter().find(|check| check["name"] == "target").unwrap().clone(), output.status.code())
}

fn doctor(pid: u32) -> (Value, Option<i32>) {
    target(&run(&["doctor", "--json", "-p", &pid.to_string()]))
}

#[test]
fn a_server_is_listed_and_found_from_each_of_its_processes() {
    let directory = directory("plain");
    let server = server_in(directory.path(), &[], "live-plain");
    let listed = listed("live-plain");
    assert_eq!(listed["pid"], server.0.id());
    let roles: Vec<&str> =
        listed["processes"].as_array().unwrap().iter().map(|process| process["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["api", "engine", "worker"]);
    for pid in pids(&listed) {
        let found = discover::server(pid).unwrap();
        assert_eq!(found.server.pid, server.0.id(), "from {pid}");
        assert_eq!(found.processes.len(), 3);
        assert_eq!(found.processes[2].role, Role::Worker);
        assert!(found.processes.iter().all(|process| discover::same_process(process.pid, process.start_ticks)));
    }
    let table = text(&run(&["ls"]).stdout);
    let row = table.lines().find(|line| line.contains("live-plain")).unwrap();
    assert!(table.starts_with("PID ") && row.contains(" 1 api, 1 engine, 1 worker "), "{table}");
    drop(server);
    assert!(!discover::same_process(listed["pid"].as_u64().unwrap() as u32, listed["start_ticks"].as_u64().unwrap()));
}

#[test]
fn wrong_pids_say_what_they_are() {
    let sleep = Group(Command::new("sleep").arg("600").process_group(0).spawn().unwrap());
    let failure = discover::server(sleep.0.id()).unwrap_err();
    assert_eq!(failure.code as u8, 5);
    assert!(failure.what.contains("`sleep`") && failure.fix.contains("inferspan ls"), "{failure}");

    // This test's threads are threads.
    let own = std::process::id();
    let thread = std::thread::spawn(|| {
        // SAFETY: gettid has no preconditions and cannot fail.
        let tid = unsafe { libc::gettid() } as u32;
        discover::server(tid).unwrap_err()
    });
    let failure = thread.join().unwrap();
    assert_eq!((failure.code as u8, failure.fix), (3, format!("use -p {own}")));

    let failure = discover::server(0).unwrap_err();
    assert_eq!(failure.code as u8, 2);
    assert_eq!(discover::server(4_194_305).unwrap_err().code as u8, 2);
    for wrong in ["0", "-5", "vllm"] {
        let output = run(&["doctor", "-p", wrong]);
        assert_eq!(output.status.code(), Some(2), "{wrong}");
        assert!(text(&output.stderr).contains("inferspan ls"));
    }
}

#[test]
fn the_dead_are_told_from_the_absent() {
    let mut child = Command::new("true").process_group(0).spawn().unwrap();
    let pid = child.id();
    let start = Instant::now();
    // Not waited for, so it stays a zombie.
    loop {
        let failure = discover::server(pid).unwrap_err();
        if failure.what.contains("zombie") {
            assert_eq!(failure.code as u8, 3);
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(10), "{failure}");
        std::thread::sleep(Duration::from_millis(10));
    }
    child.wait().unwrap();
    let failure = discover::server(pid).unwrap_err();
    assert_eq!(failure.code as u8, 3);
    assert!(failure.what.starts_with(&format!("there is no process {pid}")), "{failure}");
    let (check, code) = doctor(pid);
    assert_eq!((check["status"].as_str(), code), (Some("FAIL"), Some(1)));
}

#[test]
fn kernel_threads_are_refused() {
    let kthreadd = std::fs::read_to_string("/proc/2/comm").unwrap_or_default();
    if kthreadd.trim() != "kthreadd" {
        eprintln!("skipped: no kernel thread is seen from this pid namespace");
        return;
    }
    let failure = discover::server(2).unwrap_err();
    assert_eq!(failure.code as u8, 5);
    assert!(failure.what.contains("kernel"), "{failure}");
}

#[test]
fn a_wrapper_says_which_pid_to_use() {
    let directory = directory("wrapped");
    let wrapper = server_in(directory.path(), &["timeout", "600"], "live-wrapped");
    let server = listed("live-wrapped")["pid"].as_u64().unwrap();
    assert_ne!(server, u64::from(wrapper.0.id()));
    let failure = discover::server(wrapper.0.id()).unwrap_err();
    assert_eq!((failure.code as u8, failure.fix), (5, format!("use -p {server}")));
}

#[test]
fn a_server_in_a_pid_namespace_is_found_from_outside_and_its_inner_pid_is_explained() {
    if !is_root() {
        return;
    }
    let directory = directory("namespace");
    let _server = server_in(
        directory.path(),
        &["unshare", "--pid", "--fork", "--mount", "--mount-proc", "--kill-child"],
        "live-inner",
    );
    let listed = listed("live-inner");
    let processes = listed["processes"].as_array().unwrap();
    assert_eq!(processes[0]["namespace_pid"], 1);
    let engine = &processes[1];
    let inner = engine["namespace_pid"].as_u64().unwrap() as u32;
    assert!(inner > 1);
    assert_eq!(discover::server(engine["pid"].as_u64().unwrap() as u32).unwrap().server.model, "live-inner");
    // Whatever has this PID out here (init, or nothing), it is no server, and the user meant the one inside.
    let failure = discover::server(inner).unwrap_err();
    assert_eq!(failure.fix, format!("use -p {}", engine["pid"]), "{failure}");

    // From inside, the host's processes are not to be seen, and that is said.
    let inside = Command::new("unshare")
        .args(["--pid", "--fork", "--mount", "--mount-proc"])
        .arg(inferspan())
        .args(["doctor", "--json", "-p", &listed["pid"].to_string()])
        .output()
        .unwrap();
    let (check, code) = target(&inside);
    assert_eq!(code, Some(1));
    assert!(check["fix"].as_str().unwrap().contains("hostPID"), "{check}");
    let document = document(&inside);
    let namespace =
        document["checks"].as_array().unwrap().iter().find(|check| check["name"] == "pid_namespace").unwrap();
    assert_eq!(namespace["status"], "FAIL");
}

#[test]
fn without_privileges_the_missing_ones_are_named() {
    if !is_root() {
        return;
    }
    let directory = directory("nobody");
    let server = server_in(directory.path(), &[], "live-nobody");
    listed("live-nobody");
    // The build directory may not be open to others.
    let binary = directory.path().join("inferspan");
    std::fs::copy(inferspan(), &binary).unwrap();
    let as_nobody = |mount: &str, arguments: &str| {
        let script = format!(
            "{mount} exec setpriv --reuid=65534 --regid=65534 --clear-groups --bounding-set=-all {} {arguments}",
            binary.display()
        );
        Command::new("unshare").args(["--mount", "bash", "-c", &script]).output().unwrap()
    };
    let pid = server.0.id();

    let (check, code) = target(&as_nobody("", &format!("doctor --json -p {pid}")));
    assert_eq!((check["status"].as_str(), code), (Some("FAIL"), Some(1)));
    assert!(
        check["detail"].as_str().unwrap().contains("refused")
            && check["fix"].as_str().unwrap().contains("CAP_SYS_PTRACE")
    );

    let output = as_nobody("", "ls --json");
    let document = document(&output);
    let listed = document["servers"].as_array().unwrap().iter().find(|server| server["pid"] == pid).unwrap();
    assert_eq!(listed["traceable"], "no");
    assert_eq!(listed["reasons"][0], "run as root, or with CAP_BPF, CAP_PERFMON, CAP_SYS_PTRACE, CAP_DAC_READ_SEARCH");
    assert_eq!(listed["processes"][0]["listening"], Value::Null, "unknown is not empty");

    let hidden = "mount -t proc -o hidepid=2 proc /proc &&";
    let (check, _) = target(&as_nobody(hidden, &format!("doctor --json -p {pid}")));
    assert!(check["detail"].as_str().unwrap().contains("hidepid="), "{check}");
    let output = as_nobody(hidden, "ls");
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(0), ""));
    assert!(text(&output.stderr).contains("no inference server found"));
}

#[test]
fn doctor_is_plain_stable_and_ends_quietly_when_its_reader_does() {
    let first = run(&["doctor"]);
    let text = text(&first.stdout);
    assert!(!text.contains('\x1b'), "no colour off a terminal");
    let names: Vec<&str> =
        text.lines().filter(|line| !line.starts_with(' ')).filter_map(|line| line.split_whitespace().nth(1)).collect();
    let expected = [
        "kernel",
        "architecture",
        "btf",
        "pid_namespace",
        "capabilities",
        "process_access",
        "mapped_files",
        "lockdown",
        "perf_event_paranoid",
        "memlock",
        "ring_buffer",
        "syscalls",
        "new_processes",
        "uprobes",
        "gpus",
    ];
    assert_eq!(names, expected);
    let failed = text.lines().any(|line| line.starts_with("FAIL"));
    assert_eq!(first.status.code(), Some(i32::from(failed)));

    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = Command::new(inferspan())
        .arg("doctor")
        .stdout(writer)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
        .wait_with_output()
        .unwrap();
    assert!(!String::from_utf8_lossy(&output.stderr).contains("Broken pipe"));
}

#[test]
fn an_engine_of_another_name_is_found_like_vllm_and_its_endpoint_answers() {
    let directory = directory("demo");
    let announce = directory.path().join("ready.json");
    let mut command = Command::new(env!("CARGO_BIN_EXE_test-engine"));
    command.args(["--served-model-name", "live-demo", "--api-servers", "2", "--announce"]).arg(&announce);
    let engine = Group(command.process_group(0).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    let start = Instant::now();
    while !announce.exists() {
        assert!(start.elapsed() < Duration::from_secs(20), "the demo engine does not start");
        std::thread::sleep(Duration::from_millis(20));
    }
    let found = discover::server(engine.0.id()).unwrap();
    let of = |role: Role| -> Vec<Option<u32>> {
        found.processes.iter().filter(|process| process.role == role).map(|process| process.index).collect()
    };
    assert_eq!(
        (of(Role::Api), of(Role::Engine), of(Role::Worker)),
        (vec![Some(0), Some(1)], vec![Some(0)], vec![Some(0)])
    );
    assert_eq!(found.server.model, "live-demo");
    for process in &found.processes {
        assert_eq!(discover::server(process.pid).unwrap().server, found.server, "from {}", process.pid);
    }
    let document = document(&run(&["doctor", "--json", "-p", &engine.0.id().to_string()]));
    let check =
        |name: &str| document["checks"].as_array().unwrap().iter().find(|check| check["name"] == name).unwrap().clone();
    assert_eq!(check("target")["status"], "OK");
    assert_eq!(check("endpoint")["status"], "OK", "{}", check("endpoint"));
    assert_eq!(check("tokenizer")["status"], "WARN", "it has none of Hugging Face's");
}

#[test]
fn doctors_that_run_at_once_harm_neither_each_other_nor_what_starts_meanwhile() {
    // A doctor probes its own binary for a moment, which is the binary of all the others.
    let start = |arguments: &[&str]| {
        Command::new(inferspan()).args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let started: Vec<Child> =
        (0..8).flat_map(|_| [start(&["doctor", "--json"]), start(&["--version"]), start(&["ls"])]).collect();
    for child in started {
        let output = child.wait_with_output().unwrap();
        assert!(matches!(output.status.code(), Some(0 | 1)), "{:?}: {}", output.status, text(&output.stderr));
    }
}
