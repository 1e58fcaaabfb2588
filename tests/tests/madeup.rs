//! `inferspan replay` of made-up logs: every token of every request is counted. `cargo xtask bench` does the same with
//! thousands of open requests, and a million of them.

use std::fs::File;
use std::io::{self, BufWriter};
use std::process::{Command, Stdio};

use inferspan_harness::folder::Folder;
use inferspan_tests::judge::{Page, binary};
use inferspan_tests::madeup::{Account, Plan, write};
use serde_json::Value;

const PLAN: Plan = Plan {
    open: 24,
    requests: 96,
    tokens: 12,
    prompt: 50,
    stream: false,
    per_message: 0,
    waiting: 30,
    both_ends: true,
    http: true,
    blank: false,
};

/// Replays what a plan makes: its account, the metrics, the access log. Through a pipe, as the bench does it.
fn replayed(name: &str, plan: &Plan) -> io::Result<(Account, Page, Vec<Value>)> {
    let folder = Folder::new(name)?;
    let at = |file: &str| folder.path().join(file);
    let account = write(plan, BufWriter::new(File::create(at("log.jsonl"))?))?;
    let mut reader = Command::new("cat").arg(at("log.jsonl")).stdout(Stdio::piped()).spawn()?;
    let output = Command::new(binary())
        .args(["replay", "/dev/stdin", "--metrics-out"])
        .arg(at("page.prom"))
        .arg("--access-log")
        .arg(at("access.jsonl"))
        .stdin(reader.stdout.take().ok_or_else(|| io::Error::other("no stdout"))?)
        .output()?;
    reader.wait()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let page = Page::parse(&std::fs::read_to_string(at("page.prom"))?);
    let access = std::fs::read_to_string(at("access.jsonl"))?;
    let access = access.lines().map(serde_json::from_str).collect::<serde_json::Result<_>>()?;
    Ok((account, page, access))
}

fn check(name: &str, plan: &Plan) -> io::Result<()> {
    let (account, page, access) = replayed(name, plan)?;
    let finished = page.sum("inferspan_generations_total", "finish_reason=\"length\"");
    let counted = [
        page.sum("inferspan_generation_tokens_total", ""),
        page.sum("inferspan_prompt_tokens_total", ""),
        page.sum("inferspan_prefix_cache_queries_total", ""),
        finished,
    ];
    let held = [account.generation_tokens, account.prompt_tokens, account.prefix_queries, account.finished];
    assert_eq!(counted.map(|count| count as u64), held, "{name}");
    let whole = |record: &&Value| record["outcome"] == "length" && record["incomplete"].is_null();
    let whole = access.iter().filter(whole).count();
    assert_eq!(whole, if plan.http { plan.requests } else { 0 }, "{name}: records that are whole");
    let tokens: u64 = access.iter().filter_map(|record| record["output_tokens"].as_u64()).sum();
    assert_eq!(tokens, account.generation_tokens, "{name}: tokens in the access log");
    Ok(())
}

#[test]
fn every_token_of_a_made_up_log_is_counted() {
    check("plain", &PLAN).unwrap();
    check("stream", &Plan { stream: true, ..PLAN }).unwrap();
    check("few-a-message", &Plan { stream: true, per_message: 5, waiting: 0, ..PLAN }).unwrap();
    // The messages that are repeated, cut at 8,192 bytes.
    check("engine-only", &Plan { open: 300, requests: 300, waiting: 0, http: false, both_ends: false, ..PLAN })
        .unwrap();
}

#[test]
fn a_blank_log_has_the_same_calls_and_nothing_in_them() {
    let folder = Folder::new("blank").unwrap();
    let account = |plan: &Plan| write(plan, File::create(folder.path().join("log.jsonl")).unwrap()).unwrap();
    assert_eq!(account(&Plan { blank: true, ..PLAN }), account(&PLAN));
    let (_, page, access) = replayed("blank-replayed", &Plan { blank: true, ..PLAN }).unwrap();
    assert!(page.sum("inferspan_generation_tokens_total", "").abs() < 0.5 && access.is_empty());
}
