//! The same checks against the demo engine: in seconds, without Python, in another pid namespace too.
//!
//! Needs root for the attach; says loudly when it is skipped.

use std::fs;
use std::process::Command;
use std::time::Duration;

use inferspan_harness::folder::Folder;
use inferspan_harness::proc;
use inferspan_tests::demo_engine::DemoEngine;
use inferspan_tests::judge::{Expect, Plan, Target, at_rest, under_load};
use inferspan_tests::traffic::{Kind, Load, Until};

const ENGINE: &str = env!("CARGO_BIN_EXE_test-engine");

fn folder(name: &str) -> Folder {
    Folder::new(&format!("demo-{name}")).expect("a folder")
}

/// Few blocks, so that there are preemptions, and a small budget, so that prompts are chunked.
const ARGUMENTS: [&str; 7] =
    ["--blocks", "32", "--max-num-batched-tokens", "128", "--step-ms", "3", "--enable-prompt-tokens-details"];

fn plain(arguments: &[&str], folder: &Folder) -> DemoEngine {
    let mut command = Command::new(ENGINE);
    command.args(arguments);
    DemoEngine::start(command, folder.path(), |_, announced| Some(announced)).expect("the demo engine starts")
}

fn plan(seed: u64, until: Until) -> Plan {
    // The demo engine has no tokenizer library to probe.
    let expect = Expect { tokenizer: false, since: 0.0 };
    Plan { kinds: Kind::ALL.to_vec(), until, clients: 6, seed, expect }
}

/// Attaching takes privileges.
fn privileged(test: &str) -> bool {
    // SAFETY: geteuid has no arguments and cannot fail.
    let root = unsafe { libc::geteuid() } == 0;
    if !root {
        eprintln!("SKIPPED {test}: not root");
    }
    root
}

fn load(target: &Target, requests: usize) -> Load {
    Load {
        url: target.url.clone(),
        model: target.model.clone(),
        kinds: Kind::ALL.to_vec(),
        clients: 6,
        until: Until::Requests(requests),
        seed: 3,
    }
}

#[test]
fn every_number_and_every_tree_is_right() {
    if privileged("every_number_and_every_tree_is_right") {
        let folder = folder("rest");
        let engine = plain(&ARGUMENTS, &folder);
        at_rest(&engine.target, &plan(5, Until::Requests(200)), folder.path()).unwrap().judge();
    }
}

#[test]
fn requests_that_begin_after_a_late_attach_are_complete() {
    if privileged("requests_that_begin_after_a_late_attach_are_complete") {
        let folder = folder("late");
        let engine = plain(&ARGUMENTS, &folder);
        let plan = plan(6, Until::Elapsed(Duration::from_secs(6)));
        under_load(&engine.target, &plan, folder.path()).unwrap().judge();
    }
}

#[test]
fn a_server_in_another_pid_namespace_is_traced_from_the_host() {
    if !privileged("a_server_in_another_pid_namespace_is_traced_from_the_host") {
        return;
    }
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--mount-proc", "--kill-child", ENGINE]).args(ARGUMENTS);
    // The server is the one child of `unshare`, and pid 1 in there.
    let child_of = |unshare: u32, _| {
        fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children"))
            .ok()?
            .split_whitespace()
            .next()?
            .parse()
            .ok()
    };
    let folder = folder("namespace");
    let engine = DemoEngine::start(command, folder.path(), child_of).unwrap();
    at_rest(&engine.target, &plan(7, Until::Requests(80)), folder.path()).unwrap().judge();
}

#[test]
fn two_api_servers_are_one_target() {
    if privileged("two_api_servers_are_one_target") {
        let folder = folder("two");
        let engine = plain(&[&ARGUMENTS[..], &["--api-servers", "2"]].concat(), &folder);
        at_rest(&engine.target, &plan(8, Until::Requests(80)), folder.path()).unwrap().judge();
    }
}

#[test]
fn the_demo_engine_counts_what_its_clients_saw() {
    let folder = folder("own");
    for arguments in [&ARGUMENTS[..], &[&ARGUMENTS[..], &["--api-servers", "2"]].concat()] {
        let engine = plain(arguments, &folder);
        let before = engine.target.metrics().unwrap();
        let summary = load(&engine.target, 120).run().unwrap();
        let grown = engine.target.quiet().unwrap().since(&before);
        let whole = || summary.requests.iter().filter(|sent| sent.status == Some(200) && !sent.aborted);
        let reasons = |reason: &str| {
            let embeddings = whole().filter(|sent| reason == "stop" && sent.kind == Kind::Embedding).count();
            let said = whole().flat_map(|sent| &sent.finish_reasons).filter(|said| *said == reason).count();
            (said + embeddings) as f64
        };
        for reason in ["stop", "length"] {
            let counted = grown.sum("vllm:request_success_total", &format!("finished_reason=\"{reason}\""));
            assert!((counted - reasons(reason)).abs() < 0.5, "{reason}: {counted} counted, {} seen", reasons(reason));
        }
        let seen: u64 = whole().filter_map(|sent| sent.completion_tokens).sum();
        let histogram = grown.sum("vllm:request_generation_tokens_sum", "");
        assert!((histogram - seen as f64).abs() < 0.5, "{histogram} tokens counted, {seen} seen");
        let preemptions = grown.sum("vllm:num_preemptions_total", "");
        assert!(preemptions > 0.0, "32 blocks and 6 clients make preemptions");
        assert!(grown.sum("vllm:prefix_cache_hits_total", "") > 0.0, "shared prompts hit the prefix cache");
    }
}

#[test]
fn a_stopped_demo_engine_leaves_nothing_behind() {
    let folder = folder("stop");
    let engine = plain(&ARGUMENTS, &folder);
    let pid = engine.target.pid;
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    drop(engine);
    assert!(!children.trim().is_empty());
    for child in children.split_whitespace() {
        assert!(!proc::is_running(child.parse().unwrap()), "process {child} outlived its server");
    }
}
