//! `inferspan why` on the real vLLM 0.32 on CPU: troubles that users meet, each named by its cause.
//!
//! Needs root, `INFERSPAN_VLLM_VENV` and `INFERSPAN_VLLM_MODEL`; says loudly when it is skipped. One server for all, since a start takes a
//! minute or two.

use std::thread;
use std::time::Duration;

use inferspan_harness::folder::Folder;
use inferspan_harness::installed::Vllm;
use inferspan_harness::server::Server;
use inferspan_harness::wait::Interrupt;
use inferspan_tests::blame::{Asked, SETTLED, ask, attach, detach, evidence, kinds, read_late, send};
use inferspan_tests::judge::Target;
use inferspan_tests::live::may_trace;
use serde_json::{Value, json};

/// 8 sequences at once, and room for 5,120 tokens of them; prompts are computed 1,024 tokens a step.
const ARGUMENTS: [&str; 14] = [
    "--max-model-len",
    "4096",
    "--max-num-seqs",
    "8",
    "--num-gpu-blocks-override",
    "160",
    "--block-size",
    "32",
    "--max-num-batched-tokens",
    "1024",
    "--max-logprobs",
    "20",
    // The model's weights are noise at any position.
    "--hf-overrides",
    "{\"max_position_embeddings\": 16384}",
];

struct Stage {
    target: Target,
    folder: Folder,
}

impl Stage {
    /// Sends all while traced, then asks for each of the ids.
    fn traced<const N: usize>(&self, all: &[Asked], more: &Value, ids: [&str; N]) -> [Value; N] {
        let attached = attach(&self.target, self.folder.path());
        send(&self.target, all, more);
        thread::sleep(SETTLED);
        let told = ids.map(|id| self.why(id));
        detach(attached);
        told
    }

    fn why(&self, id: &str) -> Value {
        ask(self.folder.path(), &["why", &format!("cmpl-{id}")]).remove(0)
    }
}

#[test]
fn troubles_of_a_real_server_are_named() {
    if !may_trace("troubles_of_a_real_server_are_named") {
        return;
    }
    let Some(installed) = Vllm::from_env() else { return };
    let folder = Folder::new("vllm-why").expect("a folder");
    let server = Server::start_vllm(&installed, folder.path(), &Interrupt::never(), &ARGUMENTS, &[]).expect("vLLM");
    let stage = Stage { target: Target::from(&server), folder };
    let none = json!({});
    // What the first requests wait for is compiled then.
    send(&stage.target, &[Asked::new("warm", 20, 20, 0), Asked::new("warmer", 1_500, 20, 10)], &none);
    send(&stage.target, &[Asked::new("warm", 20, 20, 0)], &json!({"logprobs": 5}));

    // 40 at once, of which 8 run.
    let crowd: Vec<Asked> = (0..40).map(|n| Asked::new(&format!("queue-{n}"), 20, 100, n * 10)).collect();
    let [last] = stage.traced(&crowd, &none, ["queue-39"]);
    assert_eq!(kinds(&last)[0], "queued", "{last:#}");
    assert!(evidence(&last).contains("batch full"), "{last:#}");

    // One that gives tokens, and one that comes behind, when a prompt of some 3,000 tokens is computed.
    let three = [Asked::new("giving", 20, 60, 0), Asked::new("long", 1_700, 8, 120), Asked::new("behind", 20, 8, 140)];
    let [giving, long, behind] = stage.traced(&three, &none, ["giving", "long", "behind"]);
    assert_eq!(kinds(&long)[0], "long_prefill", "{long:#}");
    assert_eq!(kinds(&giving)[0], "prefill_of_others", "{giving:#}");
    assert_eq!(kinds(&behind)[0], "prefill_of_others", "{behind:#}");

    // Two of 3,000 tokens each: the younger one loses its blocks.
    let two = [Asked::new("older", 20, 3_000, 0), Asked::new("younger", 20, 3_000, 300)];
    let [younger] = stage.traced(&two, &none, ["younger"]);
    assert_eq!(kinds(&younger)[0], "preempted", "{younger:#}");

    // A text of 300 KB of which 16 tokens are taken: the tokenizer reads all of it.
    let text = [Asked::new("text", 100_000, 4, 0)];
    let [text] = stage.traced(&text, &json!({"truncate_prompt_tokens": 16}), ["text"]);
    assert_eq!(kinds(&text)[0], "slow_tokenizer", "{text:#}");

    // Its grammar is compiled while nobody else is there, after a batch of 8.
    let kinds_of_keys = (0..60).map(|n| {
        let pattern = format!("^[a-z]{{1,{}}}[0-9]{{3,40}}(foo|bar|baz){{2,9}}$", n + 20);
        (format!("key{n}"), json!({"type": "string", "pattern": pattern}))
    });
    let properties: serde_json::Map<String, Value> = kinds_of_keys.collect();
    let required: Vec<&String> = properties.keys().collect();
    let schema = json!({"type": "object", "required": required, "properties": properties});
    let attached = attach(&stage.target, stage.folder.path());
    send(&stage.target, &(0..8).map(|n| Asked::new(&format!("before-{n}"), 20, 30, 0)).collect::<Vec<_>>(), &none);
    send(&stage.target, &[Asked::new("grammar", 20, 30, 0)], &json!({"structured_outputs": {"json": schema}}));
    thread::sleep(SETTLED);
    let grammar = stage.why("grammar");
    detach(attached);
    assert_eq!(kinds(&grammar)[0], "grammar", "{grammar:#}");

    // 16 answers with the likeliest tokens beside each, some 8 MB: twice what a socket holds on loopback. Their client waits.
    let attached = attach(&stage.target, stage.folder.path());
    let slow = Asked::new("slow-reader", 20, 500, 0);
    read_late(&stage.target, &slow, &json!({"logprobs": 20, "n": 16}), Duration::from_secs(30));
    thread::sleep(SETTLED);
    let slow = stage.why("slow-reader");
    detach(attached);
    assert_eq!(kinds(&slow)[0], "slow_client", "{slow:#}");
}
