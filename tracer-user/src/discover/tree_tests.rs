use super::*;
use crate::discover::argv;

/// A process table line: pid, parent, title or command line. The start time is the PID.
fn seen(pid: u32, parent: u32, line: &str) -> Seen {
    let words: Vec<String> = match line.split_once(" -c ") {
        Some((before, code)) => before.split(' ').chain(["-c", code]).map(str::to_owned).collect(),
        None => line.split(' ').map(str::to_owned).collect(),
    };
    Seen {
        stat: Stat { pid, comm: String::new(), state: 'S', parent, kernel_thread: false, start_ticks: u64::from(pid) },
        title: crate::engine::title(&words[0], ""),
        program: argv::program(&words),
    }
}

/// What [`Look`] answers: PIDs that talk, PIDs that run vLLM's engine.
struct Looks<'a>(&'a [u32], &'a [u32]);

impl Look for Looks<'_> {
    fn talks(&self, pid: u32) -> bool {
        self.0.contains(&pid)
    }
    fn runs_engine(&self, pid: u32) -> bool {
        self.1.contains(&pid)
    }
}

const SPAWN: &str = "python -c from multiprocessing.spawn import spawn_main; spawn_main(5)";
const TRACKER: &str = "python -B -c from multiprocessing.resource_tracker import main;main(3)";
const FORKSERVER: &str = "python -c from multiprocessing.forkserver import main; main(3)";

/// Roles as text: `pid role[index][ rank]`.
fn described(processes: &[(u32, u32, &str)], looks: &Looks<'_>, zmq: &[u32], listening: &[(u32, u64)]) -> Vec<String> {
    let forest = Forest::new(processes.iter().map(|&(pid, parent, line)| seen(pid, parent, line)));
    let roots: Vec<u32> = forest.roots(looks).into_iter().collect();
    let mut out = Vec::new();
    for root in roots {
        let pids = forest.descend(root);
        for pid in &pids {
            assert_eq!(forest.root_of(*pid, looks), Some(root), "every process gives the same server");
        }
        let inodes: Vec<Vec<u64>> = pids
            .iter()
            .map(|pid| listening.iter().filter(|(holder, _)| holder == pid).map(|(_, inode)| *inode).collect())
            .collect();
        let members: Vec<Member<'_>> = pids
            .iter()
            .zip(&inodes)
            .map(|(pid, inodes)| Member {
                seen: forest.get(*pid).expect("seen"),
                zmq: zmq.contains(pid),
                listening: inodes,
            })
            .collect();
        for (pid, part) in pids.iter().zip(roles(&members)) {
            let index = part.index.map(|index| index.to_string()).unwrap_or_default();
            out.push(format!("{pid} {:?}{index} {}", part.role, part.rank).trim_end().to_owned());
        }
    }
    out
}

#[test]
fn one_api_server_one_engine_one_worker() {
    let processes = [
        (1, 0, "systemd"),
        (50, 1, "bash"),
        (100, 50, "/venv/bin/python /venv/bin/vllm serve m"),
        (110, 100, TRACKER),
        (111, 100, "VLLM::EngineCore"),
        (120, 111, "VLLM::Worker"),
        (130, 120, "/usr/bin/cc1plus -O3"),
        (900, 1, "postgres"),
    ];
    let expected = ["100 Api0", "110 Other", "111 Engine0", "120 Worker0", "130 Other"];
    assert_eq!(described(&processes, &Looks(&[], &[]), &[], &[]), expected);
}

#[test]
fn several_api_servers_and_data_parallel_engines() {
    let processes = [
        (100, 1, "/venv/bin/python /venv/bin/vllm serve m -dp 2"),
        (111, 100, "VLLM::DPCoordinator"),
        (112, 100, "VLLM::EngineCore_DP0"),
        (113, 100, "VLLM::EngineCore_DP1"),
        (114, 100, "VLLM::APIServer_0"),
        (115, 100, "VLLM::APIServer_1"),
        (120, 112, "VLLM::Worker_DP0_TP0"),
        (121, 112, "VLLM::Worker_DP0_TP1"),
        (122, 113, "VLLM::Worker_TP0"),
    ];
    let expected = [
        "100 Other",
        "111 Coordinator",
        "112 Engine0",
        "120 Worker0 TP0",
        "121 Worker0 TP1",
        "113 Engine1",
        "122 Worker1 TP0",
        "114 Api0",
        "115 Api1",
    ];
    assert_eq!(described(&processes, &Looks(&[], &[]), &[], &[]), expected);
}

#[test]
fn the_rust_front_end_speaks_http_instead_of_the_launcher() {
    let processes = [
        (100, 1, "/venv/bin/python /venv/bin/vllm serve m"),
        (111, 100, "VLLM::EngineCore"),
        (112, 100, "/venv/vllm-rs frontend --listen-fd 3"),
    ];
    assert_eq!(described(&processes, &Looks(&[], &[]), &[], &[]), ["100 Other", "111 Engine0", "112 Api0"]);
}

#[test]
fn headless_nodes_have_no_api_server() {
    let processes = [(100, 1, "vllm serve m --headless"), (111, 100, "VLLM::EngineCore_DP2")];
    assert_eq!(described(&processes, &Looks(&[], &[]), &[], &[]), ["100 Other", "111 Engine2"]);
}

#[test]
fn without_titles_a_forked_engine_is_known_by_its_zmq_threads() {
    // vLLM 0.8 on a single GPU: the engine is a fork, with its parent's command line and its listening socket.
    let processes = [
        (100, 1, "/venv/bin/python /venv/bin/vllm serve m"),
        (110, 100, TRACKER),
        (111, 100, "/venv/bin/python /venv/bin/vllm serve m"),
    ];
    let found = described(&processes, &Looks(&[], &[]), &[100, 111], &[(100, 7), (111, 7)]);
    assert_eq!(found, ["100 Api0", "110 Other", "111 Engine0"]);
}

#[test]
fn without_titles_spawned_engines_and_workers_are_told_by_depth() {
    // vLLM 0.9, two data-parallel engines with two workers each.
    let processes = [
        (100, 1, "python3 -m vllm.entrypoints.openai.api_server --model m"),
        (110, 100, TRACKER),
        (111, 100, SPAWN),
        (112, 100, SPAWN),
        (120, 111, SPAWN),
        (121, 111, SPAWN),
        (122, 112, SPAWN),
        (123, 112, TRACKER),
        (130, 120, "gcc -c x.c"),
    ];
    let zmq = [100, 111, 112, 120, 121, 122];
    let found = described(&processes, &Looks(&[], &[]), &zmq, &[(100, 7), (120, 9)]);
    let expected = [
        "100 Api0",
        "110 Other",
        "111 Engine0",
        "120 Worker0",
        "130 Other",
        "121 Worker0",
        "112 Engine1",
        "122 Worker1",
        "123 Other",
    ];
    assert_eq!(found, expected);
}

#[test]
fn without_titles_spawned_api_servers_share_the_listening_socket() {
    let processes = [(100, 1, "vllm serve m"), (111, 100, SPAWN), (112, 100, SPAWN), (113, 100, SPAWN)];
    let found = described(&processes, &Looks(&[], &[]), &[111, 112, 113], &[(100, 7), (112, 7), (113, 7)]);
    assert_eq!(found, ["100 Other", "111 Engine0", "112 Api0", "113 Api1"]);
}

#[test]
fn a_forkserver_is_looked_through() {
    let processes = [
        (100, 1, "vllm serve m"),
        (101, 100, FORKSERVER),
        (111, 101, FORKSERVER),
        (112, 101, FORKSERVER),
        (120, 112, FORKSERVER),
        (121, 120, FORKSERVER),
    ];
    let found = described(&processes, &Looks(&[], &[]), &[100, 112, 121], &[]);
    assert_eq!(found, ["100 Api0", "101 Other", "111 Other", "112 Engine0", "120 Other", "121 Worker0"]);
}

#[test]
fn a_server_of_any_name_is_known_by_its_titled_child() {
    let processes = [(50, 1, "cargo test"), (100, 50, "demo-engine --port 8000"), (111, 100, "VLLM::EngineCore")];
    assert_eq!(described(&processes, &Looks(&[100], &[]), &[], &[]), ["100 Api0", "111 Engine0"]);
    let processes = [(100, 50, "python my_server.py"), (111, 100, "VLLM::EngineCore")];
    assert_eq!(described(&processes, &Looks(&[], &[]), &[], &[]), ["100 Api0", "111 Engine0"]);
}

#[test]
fn a_program_of_the_users_own_is_known_by_the_library_it_runs() {
    let processes = [(100, 1, "python my_server.py"), (111, 100, SPAWN), (200, 1, "python train.py")];
    let looks = Looks(&[], &[100, 111]);
    assert_eq!(described(&processes, &looks, &[100, 111], &[]), ["100 Api0", "111 Engine0"]);
}

#[test]
fn wrappers_and_supervisors_are_not_part_of_a_server() {
    let processes = [
        (1, 0, "tini -- vllm serve"),
        (10, 1, "python supervisor.py"),
        (100, 10, "vllm serve a"),
        (111, 100, "VLLM::EngineCore"),
        (200, 10, "timeout 60 vllm serve b"),
        (201, 200, "vllm serve b"),
        (211, 201, "VLLM::EngineCore"),
    ];
    let looks = Looks(&[10, 100, 201], &[]);
    assert_eq!(described(&processes, &looks, &[], &[]), ["100 Api0", "111 Engine0", "201 Api0", "211 Engine0"]);
    let forest = Forest::new(processes.iter().map(|&(pid, parent, line)| seen(pid, parent, line)));
    assert_eq!(forest.root_of(10, &looks), None);
    assert_eq!(forest.root_of(200, &looks), None);
    assert_eq!(forest.roots_below(200, &looks).into_iter().collect::<Vec<_>>(), [201]);
    assert_eq!(forest.roots_below(10, &looks).into_iter().collect::<Vec<_>>(), [100, 201]);
}

#[test]
fn an_orphaned_engine_is_a_server_and_an_orphaned_worker_is_none() {
    let processes =
        [(1, 0, "init"), (111, 1, "VLLM::EngineCore"), (120, 111, "VLLM::Worker"), (300, 1, "VLLM::Worker_TP1")];
    assert_eq!(described(&processes, &Looks(&[], &[]), &[], &[]), ["111 Engine0", "120 Worker0"]);
}

#[test]
fn a_reused_parent_pid_is_no_parent_and_loops_end() {
    // 100 died, its PID went to a shell that is younger than the engine it seems to have.
    let mut young = seen(100, 1, "demo-engine");
    young.stat.start_ticks = 1000;
    let forest = Forest::new([young, seen(111, 100, "VLLM::EngineCore")]);
    assert_eq!(forest.root_of(111, &Looks(&[100], &[])), Some(111));
    let mut a = seen(7, 8, "vllm serve");
    let mut b = seen(8, 7, "vllm serve");
    a.stat.start_ticks = 5;
    b.stat.start_ticks = 5;
    let forest = Forest::new([a, b]);
    assert!(forest.root_of(7, &Looks(&[], &[])).is_some());
    assert_eq!(forest.descend(7), [7, 8]);
}
