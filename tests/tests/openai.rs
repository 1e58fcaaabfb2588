//! The second engine: any server of the OpenAI API, by its HTTP side alone. Tried on `transformers serve`, on CPU, with the tiny model.
//!
//! Needs root, `INFERSPAN_VLLM_VENV` and `INFERSPAN_VLLM_MODEL` (`transformers` and `accelerate` are in that environment); says loudly
//! when it is skipped.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::io;
use std::ops::ControlFlow;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use inferspan_harness::folder::Folder;
use inferspan_harness::http;
use inferspan_harness::installed::Vllm;
use inferspan_harness::process::Process;
use inferspan_harness::wait::{Interrupt, wait_for};
use inferspan_tests::judge::Attach;
use inferspan_tests::live::may_trace;
use inferspan_tests::traffic::Client;
use serde_json::{Value, json};

/// Python reads a gigabyte of libraries first.
const START: Duration = Duration::from_mins(4);

struct Transformers {
    process: Process,
    url: String,
    model: String,
}

impl Transformers {
    fn start(installed: &Vllm, folder: &Folder) -> anyhow::Result<Self> {
        let [port] = http::free_ports()?;
        let mut command = Command::new(installed.venv.join("bin/transformers"));
        command.args(["serve", "--device", "cpu", "--host", "127.0.0.1", "--port", &port.to_string()]);
        command.envs([("HF_HUB_OFFLINE", "1"), ("TRANSFORMERS_OFFLINE", "1"), ("DO_NOT_TRACK", "1")]);
        let process = Process::start("transformers serve", &mut command, folder.path())?;
        let model = installed.model.to_str().unwrap().to_owned();
        let mut server = Self { process, url: format!("http://127.0.0.1:{port}"), model };
        let health = format!("{}/health", server.url);
        wait_for("transformers serve", START, &Interrupt::never(), &mut [&mut server.process], || {
            Ok(http::answers(&health).then_some(()))
        })?;
        // The model is loaded by the first request.
        server.ask(false, 2)?;
        Ok(server)
    }

    fn body(&self, stream: bool, max_tokens: u64) -> String {
        let messages = json!([{"role": "user", "content": "tell me of the sea"}]);
        json!({"model": self.model, "messages": messages, "max_tokens": max_tokens, "stream": stream}).to_string()
    }

    /// The response (of a stream its last event), and the time to the first event with words in it.
    fn ask(&self, stream: bool, max_tokens: u64) -> io::Result<(Value, Option<f64>)> {
        let mut client = Client::new(&self.url);
        let request = client.request("POST", "/v1/chat/completions", &[], &self.body(stream, max_tokens));
        let started = Instant::now();
        let mut first = None;
        client.send(&[&request])?;
        let response = client.receive(&mut |event| {
            if event.contains("\"content\":\"") && !event.contains("\"content\":\"\"") {
                first.get_or_insert(started.elapsed().as_secs_f64());
            }
            ControlFlow::Continue(())
        })?;
        if response.status != 200 {
            return Err(io::Error::other(format!("{}: {}", response.status, response.body)));
        }
        Ok((serde_json::from_str(&response.body)?, first))
    }

    /// Leaves in the middle of a stream.
    fn leave(&self) -> io::Result<()> {
        let mut client = Client::new(&self.url);
        let request = client.request("POST", "/v1/chat/completions", &[], &self.body(true, 400));
        client.send(&[&request])?;
        let mut events = 0;
        client.receive(&mut |_| {
            events += 1;
            if events == 4 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        client.hang_up();
        Ok(())
    }
}

#[test]
fn a_server_of_the_openai_api_is_seen_by_its_http_side() {
    let test = "a_server_of_the_openai_api_is_seen_by_its_http_side";
    let Some(installed) = may_trace(test).then(Vllm::from_env).flatten() else { return };
    let folder = Folder::new("openai").unwrap();
    let server = Transformers::start(&installed, &folder).unwrap();
    let attach = Attach::start(server.process.pid(), folder.path(), &[]).unwrap();
    // 4 clients, 8 requests each, half of them streams, 3 to 10 tokens.
    let answers: Vec<(bool, Value, Option<f64>)> = thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|client| {
                let server = &server;
                scope.spawn(move || -> Vec<_> {
                    (0..8_u64)
                        .map(|n| {
                            let stream = (client + n) % 2 == 0;
                            let (answer, first) = server.ask(stream, 3 + n).unwrap();
                            (stream, answer, first)
                        })
                        .collect()
                })
            })
            .collect();
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    });
    server.leave().unwrap();
    let page = attach.metrics().unwrap();
    let finished = attach.finish().unwrap();

    let records: HashMap<&str, &Value> =
        finished.access.iter().filter_map(|record| Some((record["request_id"].as_str()?, record))).collect();
    assert_eq!((records.len(), finished.access.len()), (33, 33), "{:#?}", finished.access);
    let (mut prompt, mut output) = (0, 0);
    for (stream, answer, first) in &answers {
        let record = records[answer["id"].as_str().unwrap()];
        let usage = &answer["usage"];
        assert_eq!(record["prompt_tokens"], usage["prompt_tokens"], "{record}");
        assert_eq!(record["output_tokens"], usage["completion_tokens"], "{record}");
        assert_eq!((&record["outcome"], &record["incomplete"]), (&json!("length"), &Value::Null), "{record}");
        assert_eq!(record["stream"], json!(stream));
        prompt += usage["prompt_tokens"].as_u64().unwrap();
        output += usage["completion_tokens"].as_u64().unwrap();
        // Seen by the client after the server wrote it; before that it had to connect and send.
        match (record["seconds"]["ttft"].as_f64(), first) {
            (Some(ttft), Some(first)) => assert!(ttft > 0.0 && ttft <= *first, "{ttft} {first}"),
            (None, None) => assert!(!stream),
            other => panic!("{other:?} {record}"),
        }
        assert!(record["seconds"]["queue"].is_null() && record["seconds"]["ttft_engine"].is_null(), "{record}");
    }
    let left = finished.access.iter().filter(|record| record["outcome"] == "abort").count();
    assert_eq!(left, 1, "who left in the middle of a stream");

    let sum = |name: &str| page.sum(name, "");
    assert!((sum("inferspan_prompt_tokens_total") - prompt as f64).abs() < 0.5);
    assert!((sum("inferspan_generation_tokens_total") - output as f64).abs() < 0.5);
    assert!((sum("gen_ai_server_time_to_first_token_seconds_count") - 16.0).abs() < 0.5, "one a stream that succeeded");
    assert!(sum("inferspan_inter_token_seconds_count") > 16.0);
    let traces = std::fs::read_to_string(folder.path().join("traces.jsonl")).unwrap();
    assert!(traces.contains(r#"{"key":"inferspan.provenance","value":{"stringValue":"inferred"}}"#), "it is marked");
    assert!(!traces.contains(r#""stringValue":"observed""#), "nothing of it is more than that");
    assert!(!traces.contains("engine_side_unseen"));
    assert!(finished.stderr.lines().last().unwrap().ends_with("lost: none"), "{}", finished.stderr);
}
