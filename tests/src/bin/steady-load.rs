//! A closed loop of streaming clients, light enough to leave the machine to the server; prints what they saw as JSON.
//!
//! Every client sends one completion after another, the same ones in the same order each time it is started.

use std::fmt::Write as _;
use std::io;
use std::ops::ControlFlow;
use std::time::Instant;

use clap::Parser;
use inferspan_tests::traffic::{Client, Random};
use serde::Serialize;

/// A closed loop of streaming clients.
#[derive(Debug, Parser)]
#[command(name = "steady-load", version)]
struct Arguments {
    /// The server, http://HOST:PORT.
    #[arg(long)]
    url: String,
    /// Name of the served model.
    #[arg(long)]
    model: String,
    /// Concurrent clients.
    #[arg(long, default_value_t = 8)]
    clients: u64,
    /// No request is begun after this time.
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Tokens of each answer.
    #[arg(long, default_value_t = 64)]
    tokens: u32,
    /// Words of each prompt.
    #[arg(long, default_value_t = 60)]
    words: usize,
}

#[derive(Debug, Default, Serialize)]
struct Summary {
    requests: usize,
    tokens: u64,
    /// From the first request to the last byte, seconds.
    elapsed: f64,
    tokens_per_second: f64,
    /// Between two events of a stream, seconds.
    itl_p50: f64,
    itl_p99: f64,
    /// To the first event with a token, seconds.
    ttft_p50: f64,
    /// CPU time of this program, to show that it is not the bottleneck, seconds.
    cpu: f64,
}

/// What one client saw.
#[derive(Debug, Default)]
struct Seen {
    requests: usize,
    tokens: u64,
    between: Vec<f64>,
    first: Vec<f64>,
}

fn prompt(words: usize, random: &mut Random) -> String {
    const WORDS: [&str; 8] = ["request", "token", "step", "queue", "model", "batch", "cache", "server"];
    let mut text = String::new();
    for _ in 0..words {
        // A string takes every byte.
        let _ = write!(text, "{} ", WORDS[random.within(0..WORDS.len() as u64) as usize]);
    }
    text
}

fn client(arguments: &Arguments, index: u64, start: Instant) -> io::Result<Seen> {
    let mut random = Random::new(index + 1);
    let mut client = Client::new(&arguments.url);
    let mut seen = Seen::default();
    while start.elapsed().as_secs_f64() < arguments.seconds {
        let body = serde_json::json!({
            "model": arguments.model, "prompt": prompt(arguments.words, &mut random), "max_tokens": arguments.tokens,
            "temperature": 0, "ignore_eos": true, "stream": true, "stream_options": {"include_usage": true}
        });
        let request = client.request("POST", "/v1/completions", &[], &body.to_string());
        let mut last = Instant::now();
        let mut any = false;
        let mut tokens = 0;
        client.send(&[&request])?;
        let response = client.receive(&mut |event| {
            let now = Instant::now();
            if event.contains("\"text\":") {
                let passed = (now - last).as_secs_f64();
                if any { &mut seen.between } else { &mut seen.first }.push(passed);
                (any, last) = (true, now);
            } else if let Some((_, rest)) = event.split_once("\"completion_tokens\":") {
                let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
                tokens = rest[..digits].parse().unwrap_or(0);
            }
            ControlFlow::Continue(())
        })?;
        if response.status != 200 || !response.whole || tokens != u64::from(arguments.tokens) {
            return Err(io::Error::other(format!("{tokens} tokens in {response:?}")));
        }
        seen.tokens += tokens;
        seen.requests += 1;
    }
    Ok(seen)
}

/// The value below which this share of `sorted` is.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    sorted.get(((sorted.len() as f64 - 1.0) * share).round() as usize).copied().unwrap_or(0.0)
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let start = Instant::now();
    let results: Vec<io::Result<Seen>> = std::thread::scope(|scope| {
        let arguments = &arguments;
        let clients: Vec<_> =
            (0..arguments.clients).map(|index| scope.spawn(move || client(arguments, index, start))).collect();
        clients
            .into_iter()
            .map(|client| client.join().unwrap_or_else(|_| Err(io::Error::other("a client panicked"))))
            .collect()
    });
    let mut all = Seen::default();
    for result in results {
        let Seen { requests, tokens, between, first } = result?;
        all.requests += requests;
        all.tokens += tokens;
        all.between.extend(between);
        all.first.extend(first);
    }
    let elapsed = start.elapsed().as_secs_f64();
    all.between.sort_by(f64::total_cmp);
    all.first.sort_by(f64::total_cmp);
    let summary = Summary {
        requests: all.requests,
        tokens: all.tokens,
        elapsed,
        tokens_per_second: all.tokens as f64 / elapsed,
        itl_p50: quantile(&all.between, 0.5),
        itl_p99: quantile(&all.between, 0.99),
        ttft_p50: quantile(&all.first, 0.5),
        cpu: inferspan_harness::proc::cpu_time(std::process::id()).as_secs_f64(),
    };
    println!("{}", serde_json::to_string(&summary)?);
    Ok(())
}
