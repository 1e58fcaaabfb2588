//! Hundreds of requests open at once on the real vLLM 0.32, with the server's own `/metrics` as judge of every count.
//!
//! Needs root, `INFERSPAN_VLLM_VENV` and `INFERSPAN_VLLM_MODEL`; says loudly when it is skipped. `INFERSPAN_SCALE_OPEN`
//! (numbers, by comma) replaces how many requests are open at once. One server a test, since a start takes a minute or two.

use inferspan_harness::folder::Folder;
use inferspan_harness::installed::Vllm;
use inferspan_harness::server::Server;
use inferspan_harness::wait::Interrupt;
use inferspan_tests::judge::{Crowd, Target, crowded, verdict};
use inferspan_tests::live::may_trace;

/// As many sequences as a GPU server is given, and room for prompts of 3,000 words.
const ARGUMENTS: [&str; 6] = [
    "--max-model-len",
    "16384",
    "--max-num-seqs",
    "1024",
    // The model's weights are noise at any position.
    "--hf-overrides",
    "{\"max_position_embeddings\": 16384}",
];

/// (requests open at once, requests in all); each on the server that the one before leaves.
fn try_at(name: &str, arguments: &[&str], crowds: &[(usize, usize)]) -> anyhow::Result<Vec<String>> {
    if !may_trace(name) {
        return Ok(Vec::new());
    }
    let Some(installed) = Vllm::from_env() else { return Ok(Vec::new()) };
    let mut folder = Folder::new(&format!("vllm-scale-{name}"))?;
    let server = Server::start_vllm(
        &installed,
        folder.path(),
        &Interrupt::never(),
        &[&ARGUMENTS, arguments].concat(),
        // GiB an engine: at 512 bytes a token it holds two million. And no connection is closed while a client on a busy
        // machine is about to use it: that request would fail.
        &[("VLLM_CPU_KVCACHE_SPACE", "1"), ("VLLM_HTTP_TIMEOUT_KEEP_ALIVE", "600")],
    )?;
    let target = Target::from(&server);
    let mut crowd = Crowd { python: installed.venv.join("bin/python"), open: 4, requests: 16, seed: 1, record: false };
    // Kernels that are compiled at first use would be in the first measured times.
    crowd.warm(&target, &folder.path().join("warm-up.jsonl"))?;
    let mut faults = Vec::new();
    for (open, requests) in asked().unwrap_or_else(|| crowds.to_vec()) {
        // With two engines, so that one attach is as everybody's and one records.
        crowd = Crowd { open, requests, seed: crowd.seed + 1, record: name == "two-engines", ..crowd };
        eprintln!("{name}: {open} open");
        let report = crowded(&target, &crowd, &folder.path().join(open.to_string()))?;
        for table in &report.tables {
            eprintln!("{table}");
        }
        faults.extend(report.faults.iter().map(|fault| format!("{name}, {open} open: {fault}")));
    }
    if !faults.is_empty() {
        folder.keep();
    }
    Ok(faults)
}

/// `INFERSPAN_SCALE_OPEN`, with two requests in turn for each that is open.
fn asked() -> Option<Vec<(usize, usize)>> {
    let text = std::env::var("INFERSPAN_SCALE_OPEN").ok().filter(|text| !text.is_empty())?;
    let number = |text: &str| text.trim().parse().expect("INFERSPAN_SCALE_OPEN is a list of numbers");
    Some(text.split(',').map(number).map(|open: usize| (open, 2 * open)).collect())
}

#[test]
fn every_count_is_exact_with_700_requests_open() {
    verdict(&try_at("one-server", &[], &[(256, 512), (700, 1400)]).unwrap());
}

#[test]
fn every_count_is_exact_with_two_api_servers() {
    verdict(&try_at("two-api-servers", &["--api-server-count", "2"], &[(256, 512)]).unwrap());
}

#[test]
fn every_count_is_exact_with_two_engines() {
    verdict(&try_at("two-engines", &["--data-parallel-size", "2"], &[(256, 512)]).unwrap());
}
