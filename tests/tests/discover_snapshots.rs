//! Discovery over recorded and made-up `/proc` snapshots: what a live host gives only on the right machine.
//!
//! A snapshot is a text file: `== PATH` starts a file below the `/proc` to be built, `== PATH -> TARGET` is a symbolic
//! link, `\xNN` is a byte. `fixtures/proc/vllm-0.32.0*.txt` were taken from real servers; tables of sockets and mappings
//! are cut to the lines that concern the server.

#![allow(clippy::unwrap_used, reason = "a test that meets a surprise fails")]

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use inferspan::discover::{Host, ServerProcesses};
use inferspan::input::{Fact, Role};

/// A directory of the shape of `/proc`, removed when dropped.
struct Snapshot(PathBuf);

impl Snapshot {
    fn unpack(text: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let root = std::env::temp_dir().join(format!("inferspan-proc-{}-{count}", std::process::id()));
        fs::create_dir_all(&root).unwrap();
        for section in text.split("== ").skip(1) {
            let (head, body) = section.split_once('\n').unwrap();
            let create = |path: &str| {
                let path = root.join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                path
            };
            match head.split_once(" -> ") {
                Some((path, target)) => symlink(target, create(path)).unwrap(),
                None => fs::write(create(head), unescape(body)).unwrap(),
            }
        }
        for process in fs::read_dir(&root).unwrap() {
            fs::create_dir_all(process.unwrap().path().join("fd")).unwrap();
        }
        Self(root)
    }

    fn host(&self) -> Host {
        Host::at(&self.0)
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn unescape(text: &str) -> Vec<u8> {
    let mut pieces = text.split("\\x");
    let mut bytes = pieces.next().unwrap().as_bytes().to_vec();
    for piece in pieces {
        let (hex, rest) = piece.split_at(2);
        bytes.push(u8::from_str_radix(hex, 16).unwrap());
        bytes.extend_from_slice(rest.as_bytes());
    }
    bytes
}

/// `pid role index rank`, one a process.
fn roles(found: &ServerProcesses) -> Vec<String> {
    let line = |process: &inferspan::discover::ServerProcess| {
        let index = process.index.map(|index| index.to_string()).unwrap_or_default();
        format!("{} {:?}{index} {}", process.pid, process.role, process.rank).trim_end().to_owned()
    };
    found.processes.iter().map(line).collect()
}

#[test]
fn a_real_server_is_found_whole_from_any_of_its_processes() {
    let snapshot = Snapshot::unpack(include_str!("../fixtures/proc/vllm-0.32.0.txt"));
    let host = snapshot.host();
    let servers = host.servers();
    assert_eq!(servers.len(), 1);
    let found = &servers[0];
    for pid in [20777, 21230, 21231, 21574] {
        assert_eq!(&host.server(pid).unwrap(), found, "from {pid}");
    }
    assert_eq!(roles(found), ["20777 Api0", "21230 Other", "21231 Engine0", "21574 Worker0"]);

    let server = &found.server;
    assert_eq!((server.pid, server.start_ticks), (20777, 73673));
    assert_eq!((server.service.as_str(), server.model.as_str(), server.engine.as_str()), ("vllm", "tiny", "vllm"));
    assert_eq!(server.engine_version.as_deref(), Some("0.32.0+cpu"));
    assert_eq!(server.container_id, None);

    let api = &found.processes[0];
    assert_eq!(api.listening(), ["127.0.0.1:8123".parse().unwrap()]);
    let tokenizer = &api.tokenizers[0];
    assert_eq!((api.tokenizers.len(), tokenizer.inode, tokenizer.device), (1, 10_038_069, (0xfe, 0)));
    assert_eq!((tokenizer.address, tokenizer.offset), (0x7f67_850c_1000, 0x2c_0000));
    assert!(tokenizer.open_path.starts_with(snapshot.0.join("20777/root/root/.cache")));
    assert_eq!(api.unix.iter().filter(|socket| socket.listening).count(), 2, "the ROUTER and the PULL socket");
    assert_eq!(
        api.unix.iter().filter(|socket| !socket.listening && socket.path.is_some()).count(),
        2,
        "the engine's connections"
    );

    let facts = found.facts();
    assert!(matches!(&facts[0], Fact::Server(fact) if fact == server));
    assert_eq!(facts[1], Fact::EngineClock { offset_ns: 0 });
    assert!(facts.contains(&Fact::Process { tgid: 21231, role: Role::Engine }));
}

#[test]
fn a_real_server_of_many_processes_and_another_prefix_is_found_whole() {
    // `--data-parallel-size 2 --api-server-count 2`, VLLM_PROCESS_NAME_PREFIX=TEAM
    let snapshot = Snapshot::unpack(include_str!("../fixtures/proc/vllm-0.32.0-dp2.txt"));
    let host = snapshot.host();
    let found = host.server(28894).unwrap();
    let expected = [
        "28894 Other",
        "29231 Other",
        "29232 Coordinator",
        "29277 Engine0",
        "29771 Worker0",
        "29278 Engine1",
        "30120 Worker1",
        "29279 Api0",
        "29280 Api1",
    ];
    assert_eq!(roles(&found), expected);
    for process in &found.processes {
        assert_eq!(host.server(process.pid).unwrap(), found, "from {}", process.pid);
    }
    let api = found.processes.iter().filter(|process| process.role == Role::Api);
    assert!(api.into_iter().all(|api| api.listening() == ["0.0.0.0:8123".parse().unwrap()]));
}

#[test]
fn a_process_is_the_same_only_with_its_start_time() {
    let snapshot = Snapshot::unpack(include_str!("../fixtures/proc/vllm-0.32.0.txt"));
    let host = snapshot.host();
    assert!(host.same_process(20777, 73673));
    assert!(!host.same_process(20777, 73674), "the PID was given to another process");
    assert!(!host.same_process(20778, 73673), "there is no such process");
}

/// A process of a made-up snapshot.
struct Process {
    pid: u32,
    parent: u32,
    /// Words of the command line, separated by spaces; `|` is a space inside a word.
    line: &'static str,
    /// Names of threads beside the main one.
    threads: &'static [&'static str],
    /// Inode of the TCP socket that it listens on, port 8000.
    listens: Option<u64>,
    more: &'static str,
}

fn built(processes: &[Process]) -> Snapshot {
    let mut text = String::new();
    for Process { pid, parent, line, threads, listens, more } in processes {
        let comm = line.split(' ').next().unwrap().rsplit('/').next().unwrap();
        let cmdline = line.replace(' ', "\\x00").replace('|', " ");
        let _ = write!(
            text,
            "== {pid}/stat\n{pid} ({comm}) S {parent} {pid} {pid} 0 -1 4194560 0 0 0 0 0 0 0 0 20 0 1 0 {pid} 0 0\n\
             == {pid}/status\nName:\t{comm}\nTgid:\t{pid}\nPid:\t{pid}\nUid:\t0\t0\t0\t0\nNSpid:\t{pid}\n\
             == {pid}/cmdline\n{cmdline}\\x00\n== {pid}/maps\n== {pid}/ns/net -> net:[4026531833]\n\
             == {pid}/net/tcp\nheader\n   0: 00000000:1F40 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 77 1 0\n"
        );
        for (at, thread) in threads.iter().enumerate() {
            let _ = writeln!(text, "== {pid}/task/{}/comm\n{thread}", pid * 100 + at as u32);
        }
        if let Some(inode) = listens {
            let _ = writeln!(text, "== {pid}/fd/3 -> socket:[{inode}]");
        }
        text += &more.replace("PID", &pid.to_string());
    }
    Snapshot::unpack(&text)
}

const ZMQ: &[&str] = &["ZMQbg/Reaper", "ZMQbg/IO/0"];

fn process(pid: u32, parent: u32, line: &'static str) -> Process {
    Process { pid, parent, line, threads: &[], listens: None, more: "" }
}

const SPAWN: &str = "/venv/bin/python -c from|multiprocessing.spawn|import|spawn_main;|spawn_main(tracker_fd=5,|pipe_handle=7) --multiprocessing-fork";

#[test]
fn vllm_0_8_without_titles_is_found_by_command_line_and_sockets() {
    let snapshot = built(&[
        process(1, 0, "/sbin/init"),
        Process {
            threads: ZMQ,
            listens: Some(77),
            more: "== PID/cgroup\n0::/system.slice/docker-4c01db0b339c4f1b0a6f0c2e7d1b8f0f4c01db0b339c4f1b0a6f0c2e7d1b8f0f.scope\n\
                   == PID/environ\nSECRET=s3cret\\x00OTEL_SERVICE_NAME=chat\\x00\n\
                   == PID/fd/20 -> /dev/nvidia0\n== PID/fd/21 -> /dev/nvidiactl\n",
            ..process(
                500,
                1,
                "/usr/bin/python3 -m vllm.entrypoints.openai.api_server --model org/m --served-model-name chat --tensor-parallel-size 2",
            )
        },
        process(510, 500, "/usr/bin/python3 -c from|multiprocessing.resource_tracker|import|main;main(43)"),
        Process { threads: ZMQ, ..process(511, 500, SPAWN) },
        Process { threads: ZMQ, more: "== PID/fd/9 -> /dev/nvidia1\n", ..process(520, 511, SPAWN) },
        Process { threads: ZMQ, ..process(521, 511, SPAWN) },
        process(600, 1, "/usr/bin/python3 train.py"),
    ]);
    let servers = snapshot.host().servers();
    assert_eq!(servers.len(), 1);
    let found = &servers[0];
    assert_eq!(roles(found), ["500 Api0", "510 Other", "511 Engine0", "520 Worker0", "521 Worker0"]);
    assert_eq!((found.server.model.as_str(), found.server.service.as_str()), ("chat", "chat"));
    assert_eq!(found.server.engine_version, None);
    assert_eq!(found.gpus, ["nvidia0", "nvidia1"]);
    assert!(found.server.container_id.as_ref().is_some_and(|id| id.starts_with("4c01db0b339c")));
    assert_eq!(snapshot.host().server(521).unwrap().server.pid, 500);
    assert!(!format!("{found:?}").contains("s3cret"), "nothing else of the environment is kept");
}

#[test]
fn vllm_0_9_forked_engines_and_spawned_api_servers_are_told_apart() {
    let launcher = "/venv/bin/python /venv/bin/vllm serve org/m --api-server-count 2";
    let snapshot = built(&[
        Process { listens: Some(77), ..process(500, 1, launcher) },
        Process { threads: ZMQ, listens: Some(77), ..process(511, 500, launcher) },
        Process { threads: ZMQ, listens: Some(77), ..process(512, 500, SPAWN) },
        Process { threads: ZMQ, listens: Some(77), ..process(513, 500, SPAWN) },
    ]);
    assert_eq!(roles(&snapshot.host().server(511).unwrap()), ["500 Other", "511 Engine0", "512 Api0", "513 Api1"]);
}

#[test]
fn an_engine_in_a_time_namespace_has_its_clock_corrected() {
    let snapshot = built(&[
        process(500, 1, "/venv/bin/python /venv/bin/vllm serve m"),
        Process {
            more: "== PID/timens_offsets\nmonotonic           3600        500000000\nboottime 0 0\n",
            ..process(511, 500, "VLLM::EngineCore")
        },
    ]);
    let facts = snapshot.host().server(500).unwrap().facts();
    assert!(facts.contains(&Fact::EngineClock { offset_ns: -3_600_500_000_000 }), "{facts:?}");
}

#[test]
fn targets_cannot_drive_the_terminal_by_their_names() {
    let snapshot = built(&[
        process(500, 1, "vllm serve m\x1b]0;evil\x07 --served-model-name \u{202e}evil\x1b[2J"),
        process(511, 500, "VLLM::EngineCore"),
    ]);
    let found = snapshot.host().server(500).unwrap();
    assert_eq!(found.server.model, "\u{FFFD}evil\u{FFFD}[2J");
}

#[test]
fn a_reused_or_vanished_snapshot_is_not_a_server() {
    let snapshot = built(&[process(500, 1, "vllm serve m"), process(511, 500, "VLLM::EngineCore")]);
    let host = snapshot.host();
    fs::remove_dir_all(snapshot.0.join("500")).unwrap();
    assert_eq!(host.server(500).unwrap_err().code as u8, 3);
    // The engine is still there, an orphan.
    assert_eq!(roles(&host.server(511).unwrap()), ["511 Engine0"]);
    fs::write(snapshot.0.join("511/stat"), "garbage").unwrap();
    assert_eq!(host.server(511).unwrap_err().code as u8, 3);
    assert!(host.servers().is_empty());
    assert!(Host::at(Path::new("/nonexistent")).servers().is_empty());
}
