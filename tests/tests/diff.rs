//! `inferspan diff`: it finds what moved between two files, and nothing else.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use inferspan::export::terminal::units::width;
use inferspan::output::Outcome;
use inferspan_harness::folder::Folder;
use inferspan_tests::judge::binary;
use inferspan_tests::pipeline;
use inferspan_tests::timed::{self, Timed, spread};
use serde_json::Value;

/// Requests whose phases vary by half, each in its own way; `seed`: another run of the same server.
fn run(count: u32, seed: u64) -> impl Iterator<Item = Timed> {
    (0..count).map(move |n| {
        let vary = |of: u64, middle: f64| middle * (0.75 + spread(n.into(), of + 100 * seed) / 2.0);
        Timed {
            start: f64::from(n) / 4.0,
            tokenize: vary(1, 0.002),
            queue: vary(2, 0.01),
            prefill: vary(3, 0.1),
            per_token: vary(4, 0.02),
            detokenize: vary(5, 0.001),
            ..Timed::default()
        }
    })
}

struct Files {
    folder: Folder,
}

impl Files {
    fn new(name: &str) -> Self {
        Self { folder: Folder::new(name).unwrap() }
    }

    fn write(&self, name: &str, requests: impl Iterator<Item = Timed>) -> PathBuf {
        let path = self.folder.path().join(name);
        timed::write(&path, requests).unwrap();
        path
    }
}

fn diff(a: &Path, b: &Path, flags: &[&str]) -> Output {
    Command::new(binary()).arg("diff").args([a, b]).args(flags).env("LC_ALL", "C.UTF-8").output().unwrap()
}

/// What is found, as `phase verdict`, the whole of it, and the exit code.
fn found(a: &Path, b: &Path) -> (Vec<String>, Value, Option<i32>) {
    let output = diff(a, b, &["--json"]);
    let all: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    assert_eq!(all["schema"], "inferspan.diff/1");
    let words = |of: &Value| format!("{} {}", of["phase"].as_str().unwrap(), of["verdict"].as_str().unwrap());
    (all["findings"].as_array().unwrap().iter().map(words).collect(), all, output.status.code())
}

fn phase<'d>(diff: &'d Value, name: &str) -> &'d Value {
    diff["models"][0]["phases"].as_array().unwrap().iter().find(|of| of["name"] == name).unwrap()
}

#[test]
fn a_file_and_itself_do_not_differ() {
    let files = Files::new("diff-same");
    let made = files.write("a.jsonl", run(300, 0));
    let captures = pipeline::CAPTURES.map(|name| pipeline::captures().join(name));
    let recording = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/recordings/vllm-0.32-mixed.isrec");
    // The handshake has no requests.
    let others = captures.into_iter().filter(|path| !path.to_string_lossy().contains("handshake")).chain([recording]);
    for file in others.chain([made]) {
        let (found, _, code) = found(&file, &file);
        assert_eq!((found, code), (vec![], Some(0)), "{}", file.display());
    }
}

#[test]
fn another_run_of_the_same_server_does_not_differ() {
    let files = Files::new("diff-again");
    for seed in 1..6 {
        let (a, b) = (files.write("a.jsonl", run(400, 0)), files.write("b.jsonl", run(400, seed)));
        let (found, all, code) = found(&a, &b);
        assert_eq!((found, code), (vec![], Some(0)), "{all:#}");
    }
}

#[test]
fn a_prefill_that_is_a_fifth_slower_is_found_and_nothing_else() {
    // A: prefill 75 to 125 ms │ B, another run: 90 to 150 ms
    let files = Files::new("diff-prefill");
    let a = files.write("a.jsonl", run(300, 0));
    let b = files.write("b.jsonl", run(300, 1).map(|of| Timed { prefill: of.prefill * 1.2, ..of }));
    let (slower, all, code) = found(&a, &b);
    assert_eq!((slower, code), (vec!["prefill slower".to_owned()], Some(1)), "{all:#}");
    let finding = &all["findings"][0];
    let (low, high) = (finding["shift"]["low"].as_f64().unwrap(), finding["shift"]["high"].as_f64().unwrap());
    assert!(low > 0.0 && low <= 0.02 && (0.02..0.03).contains(&high), "20 ms are between {low} and {high}");
    assert!((finding["share"].as_f64().unwrap() - 0.2).abs() < 0.04, "{finding}");
    // What it is a part of is slower by it.
    assert_eq!(phase(&all, "ttft")["verdict"], "slower");
    assert_eq!(phase(&all, "ttft")["by"], serde_json::json!(["prefill"]));
    let text = String::from_utf8(diff(&a, &b, &[]).stdout).unwrap();
    assert!(text.lines().all(|line| width(line) <= 80), "{text}");
    assert!(
        text.lines().last().unwrap_or_default().contains("model m") || text.contains("Slower: prefill by"),
        "{text}"
    );
    let (faster, _, code) = found(&b, &a);
    assert_eq!((faster, code), (vec!["prefill faster".to_owned()], Some(0)), "what is faster is no finding");
}

#[test]
fn each_phase_that_is_slower_is_named() {
    type Slower = fn(Timed) -> Timed;
    let files = Files::new("diff-each");
    let a = files.write("a.jsonl", run(300, 0));
    let each: [(&str, Slower); 4] = [
        ("tokenize", |of| Timed { tokenize: of.tokenize * 1.2, ..of }),
        ("queue", |of| Timed { queue: of.queue * 1.2, ..of }),
        ("per_token", |of| Timed { per_token: of.per_token * 1.2, ..of }),
        ("detokenize", |of| Timed { detokenize: of.detokenize * 1.2, ..of }),
    ];
    for (name, slower) in each {
        let b = files.write("b.jsonl", run(300, 1).map(slower));
        let (slower, all, code) = found(&a, &b);
        assert_eq!((slower, code), (vec![format!("{name} slower")], Some(1)), "{all:#}");
    }
}

#[test]
fn a_slower_tail_is_found_where_the_middle_stays() {
    // every tenth request waits ten times as long
    let files = Files::new("diff-tail");
    let late = |(n, of): (usize, Timed)| Timed { queue: if n % 10 == 0 { of.queue * 10.0 } else { of.queue }, ..of };
    let a = files.write("a.jsonl", run(1000, 0));
    let b = files.write("b.jsonl", run(1000, 1).enumerate().map(late));
    // The shift of all is some percent, too: of the tail it is more than a tenth.
    let output = diff(&a, &b, &["--json", "--threshold", "10"]);
    let all: Value = serde_json::from_slice(&output.stdout).unwrap();
    let findings = all["findings"].as_array().unwrap();
    assert!(findings.iter().all(|of| of["phase"] == "queue" && of["verdict"] == "tail_slower"), "{all:#}");
    assert_eq!((findings.len(), output.status.code()), (1, Some(1)), "{all:#}");
}

#[test]
fn longer_prompts_and_answers_are_compared_by_token() {
    // B: prompts twice as long, whose prefill takes twice as long, and answers twice as long: nothing moved
    let files = Files::new("diff-lengths");
    let a = files.write("a.jsonl", run(300, 0));
    let longer = |of: Timed| Timed {
        prompt_tokens: 180,
        prefill: of.prefill * 2.0,
        output_tokens: 21,
        tokenize: of.tokenize * 1.8,
        ..of
    };
    let b = files.write("b.jsonl", run(300, 1).map(longer));
    let (found, all, code) = found(&a, &b);
    assert_eq!((found, code), (vec![], Some(0)), "{all:#}");
    assert_eq!(all["models"][0]["warnings"].as_array().unwrap().len(), 2, "{all:#}");
    assert_eq!(phase(&all, "prefill")["unit"], "seconds_a_prompt_token");
    for name in ["ttft", "e2e", "decode", "tokenize"] {
        assert_eq!(phase(&all, name)["verdict"], Value::Null, "{name} is not alike");
    }
}

#[test]
fn only_requests_of_the_same_model_that_went_well_are_compared() {
    // in B every third request is aborted late, and there is another model, which is slow
    let files = Files::new("diff-alike");
    let a = files.write("a.jsonl", run(300, 0));
    let odd = |(n, of): (usize, Timed)| match n % 3 {
        0 => Timed { prefill: 9.0, outcome: Outcome::Abort, ..of },
        1 => Timed { prefill: 5.0, model: "slow".into(), ..of },
        _ => of,
    };
    let b = files.write("b.jsonl", run(900, 1).enumerate().map(odd));
    let (found, all, _) = found(&a, &b);
    assert_eq!(found, Vec::<String>::new(), "{all:#}");
    assert_eq!(all["only_in_b"], serde_json::json!(["slow"]));
}

#[test]
fn of_too_few_requests_and_of_different_models_nothing_is_said() {
    let files = Files::new("diff-few");
    let few = files.write("few.jsonl", run(9, 0));
    let slow = files.write("slow.jsonl", run(9, 1).map(|of| Timed { prefill: 9.0, ..of }));
    let (found, all, code) = found(&few, &slow);
    assert_eq!((found, code), (vec![], Some(0)), "{all:#}");
    assert_eq!(phase(&all, "prefill")["verdict"], Value::Null);
    let other = files.write("other.jsonl", run(9, 1).map(|of| Timed { model: "other".into(), ..of }));
    let refused = diff(&few, &other, &[]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("no model is in both"));
}

#[test]
fn a_comparison_of_models_with_wide_names_fits_a_terminal() {
    let files = Files::new("diff-wide");
    let name = |of: Timed| Timed { model: "模型".repeat(30), ..of };
    let a = files.write(&format!("{}.jsonl", "模型".repeat(30)), run(100, 0).map(name));
    let b = files.write("b.jsonl", run(100, 1).map(name).map(|of| Timed { prefill: of.prefill * 2.0, ..of }));
    for locale in ["C.UTF-8", "C"] {
        let output = Command::new(binary()).arg("diff").args([&a, &b]).env("LC_ALL", locale).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("Slower: prefill") && text.lines().all(|line| width(line) <= 80), "{text}");
        assert!(locale != "C" || text.is_ascii(), "{text}");
    }
}
