//! Metrics in a real Prometheus: scraped, queried, exemplars followed, and `promtool` content.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::FileTypeExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use inferspan::export::flags::OutputArgs;
use inferspan::export::{Pressure, Sinks};
use inferspan::input::{Delivered, LossStage, Probe};
use inferspan::output::{Labels, Metric, Outcome, Output};
use inferspan::telemetry::Telemetry;
use inferspan_harness::folder::Folder;
use inferspan_harness::http;
use inferspan_harness::prometheus::{Prometheus, check_metrics};
use inferspan_tests::outputs;

fn open() -> (Sinks, Arc<Telemetry>, SocketAddr) {
    let telemetry = Arc::new(Telemetry::default());
    let args = OutputArgs {
        metrics: Some("127.0.0.1:0".into()),
        access_log: Some("/dev/null".into()),
        ..OutputArgs::default()
    };
    let sinks = Sinks::open(&args, Arc::clone(&telemetry), Pressure::Drop).unwrap();
    let address = sinks.metrics_address().unwrap();
    (sinks, telemetry, address)
}

/// Status line, headers and body of a GET.
fn fetch(address: SocketAddr, path: &str, accept: &str) -> (String, String) {
    fetch_as(address, path, accept, "localhost")
}

/// As [`fetch`], by a name.
fn fetch_as(address: SocketAddr, path: &str, accept: &str, host: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {host}\r\naccept: {accept}\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_lowercase(), body.to_owned())
}

const OPENMETRICS: &str = "application/openmetrics-text;version=1.0.0";

#[test]
fn prometheus_scrapes_and_its_query_api_returns_the_values() {
    let (mut sinks, telemetry, address) = open();
    let Some(prometheus) = Prometheus::start(address) else { return };
    telemetry.add_delivered(Delivered { probe: Probe::Syscall, count: 1234 });
    telemetry.add_lost(LossStage::DataRing, 5);
    telemetry.spans_exported.fetch_add(17, Relaxed);
    telemetry.spans_dropped_limit.fetch_add(2, Relaxed);
    for n in 1..=2 {
        sinks.push(&mut outputs::all(n));
    }
    let pair = format!(r#"server="{}",model="Qwen/Qwen3-8B",engine="0""#, outputs::SERVER);
    for (expression, value) in [
        (format!(r#"inferspan_requests_total{{{pair},outcome="length"}}"#), 2.0),
        (format!(r#"inferspan_requests_total{{{pair},outcome="error"}}"#), 0.0),
        (format!(r#"inferspan_generations_total{{{pair},finish_reason="length"}}"#), 2.0),
        (format!(r#"inferspan_generations_total{{{pair},finish_reason="repetition"}}"#), 0.0),
        (format!("inferspan_requests_running{{{pair}}}"), 3.0),
        (format!("inferspan_requests_waiting{{{pair}}}"), 1.0),
        (format!("inferspan_kv_cache_usage_ratio{{{pair}}}"), 0.25),
        (format!("inferspan_preemptions_total{{{pair}}}"), 2.0),
        (format!("inferspan_prompt_tokens_total{{{pair}}}"), 24.0),
        (format!("inferspan_prompt_cached_tokens_total{{{pair}}}"), 16.0),
        (format!("inferspan_generation_tokens_total{{{pair}}}"), 6.0),
        (format!("inferspan_prefix_cache_queries_total{{{pair}}}"), 24.0),
        (format!("inferspan_prefix_cache_hits_total{{{pair}}}"), 16.0),
        (format!("inferspan_request_parse_seconds_sum{{{pair}}}"), 0.002),
        (format!("inferspan_request_tokenize_seconds_sum{{{pair}}}"), 0.006),
        (format!("inferspan_request_queue_seconds_sum{{{pair}}}"), 0.03),
        (format!("inferspan_request_prefill_seconds_sum{{{pair}}}"), 0.08),
        (format!("inferspan_request_decode_seconds_sum{{{pair}}}"), 0.26),
        (format!("inferspan_request_inference_seconds_sum{{{pair}}}"), 0.34),
        (format!("inferspan_request_detokenize_seconds_sum{{{pair}}}"), 0.004),
        (format!("inferspan_request_ttft_engine_seconds_sum{{{pair}}}"), 0.11),
        (format!("inferspan_usage_differs_total{{{pair}}}"), 2.0),
        (format!("inferspan_inter_token_seconds_count{{{pair}}}"), 2.0),
        (format!("inferspan_engine_step_seconds_count{{{pair}}}"), 2.0),
        (
            format!(
                r#"gen_ai_server_request_duration_seconds_count{{server="{}",gen_ai_operation_name="text_completion",gen_ai_provider_name="vllm",gen_ai_request_model="Qwen/Qwen3-8B",error_type=""}}"#,
                outputs::SERVER
            ),
            2.0,
        ),
        ("gen_ai_server_time_to_first_token_seconds_sum".into(), 0.12),
        ("gen_ai_server_time_per_output_token_seconds_sum".into(), 0.14),
        // 15 ms in the queue: told apart below 300 ms, where vLLM's own histogram starts.
        (format!(r#"inferspan_request_queue_seconds_bucket{{{pair},le="0.01"}}"#), 0.0),
        (format!(r#"inferspan_request_queue_seconds_bucket{{{pair},le="0.025"}}"#), 2.0),
        (r#"inferspan_events_total{probe="syscall"}"#.into(), 1234.0),
        (r#"inferspan_events_dropped_total{stage="data_ring"}"#.into(), 5.0),
        ("inferspan_spans_exported_total".into(), 17.0),
        (r#"inferspan_spans_dropped_total{reason="trace_limit"}"#.into(), 2.0),
        (r#"inferspan_traces_left_out_total{reason="sampler"}"#.into(), 0.0),
        ("inferspan_engine_steps_missed_total".into(), 0.0),
        (r#"inferspan_level{level="requests"}"#.into(), 1.0),
        ("count(inferspan_build_info)".into(), 1.0),
    ] {
        prometheus.wait_for_value(&format!("round({expression}, 0.0001)"), value).unwrap();
    }
    assert!(prometheus.value("inferspan_self_memory_bytes").unwrap() > 1e6);
    assert!(prometheus.value("inferspan_self_cpu_seconds_total").unwrap() > 0.0);

    let exemplars = prometheus.exemplars("gen_ai_server_time_to_first_token_seconds_bucket").unwrap();
    let latest = exemplars.last().expect("an exemplar");
    assert_eq!(latest.labels["trace_id"], outputs::request_trace_id(2).to_string());
    assert_eq!(latest.labels["span_id"], outputs::span_id(2, 0).to_string());
    assert!((latest.value - 0.06).abs() < 1e-9);
    sinks.finish();
}

#[test]
fn promtool_has_nothing_to_say() {
    let (mut sinks, _, address) = open();
    sinks.push(&mut outputs::all(1));
    let (head, text) = fetch(address, "/metrics", "text/plain");
    assert!(head.contains("content-type: text/plain; version=0.0.4; charset=utf-8"), "{head}");
    assert!(!text.contains("# EOF") && !text.contains(" # {"));
    if let Some(said) = check_metrics(&text) {
        assert_eq!(said, "");
    }
}

#[test]
fn openmetrics_carries_exemplars_and_its_end() {
    let (mut sinks, _, address) = open();
    sinks.push(&mut outputs::all(1));
    let (head, text) = fetch(address, "/metrics", OPENMETRICS);
    assert!(head.contains("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8"), "{head}");
    assert!(text.ends_with("# EOF\n"));
    let exemplar =
        format!(r#" # {{trace_id="{}",span_id="{}"}} 0.06"#, outputs::request_trace_id(1), outputs::span_id(1, 0));
    let bucket = text.lines().find(|line| line.starts_with("gen_ai_server_time_to_first_token") && line.contains('#'));
    assert!(bucket.unwrap().ends_with(&exemplar), "{bucket:?}");
}

#[test]
fn other_paths_are_answered_and_the_health_check_is_ok() {
    let (_sinks, _, address) = open();
    assert_eq!(http::text(&format!("http://{address}/healthz")).unwrap(), "ok\n");
    assert!(fetch(address, "/", "*/*").0.starts_with("http/1.1 404"));
}

/// So that a thousand clients and what serves them fit into this process.
fn allow_many_descriptors() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: writes one `rlimit`, which `limit` is.
    assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) }, 0);
    limit.rlim_cur = limit.rlim_max.min(8_192);
    // SAFETY: reads one `rlimit`, which `limit` is.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }, 0);
}

#[test]
fn a_scrape_succeeds_beside_a_thousand_clients_that_say_nothing_or_little() {
    // 1,000 clients, half of them with half a request, and each that is closed comes again | a scrape, five times
    const CLIENTS: usize = 1_000;
    allow_many_descriptors();
    let (_sinks, _, address) = open();
    let slow = move |number: usize| {
        let mut stream = TcpStream::connect(address).unwrap();
        if number.is_multiple_of(2) {
            // It may be closed already.
            let _ = stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: loc");
        }
        stream.set_nonblocking(true).unwrap();
        stream
    };
    let mut clients: Vec<TcpStream> = (0..CLIENTS).map(slow).collect();
    let is_over = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&is_over);
    let come_again = std::thread::spawn(move || {
        while !seen.load(Relaxed) {
            for (number, client) in clients.iter_mut().enumerate() {
                let is_closed = !matches!(client.read(&mut [0]), Err(error) if error.kind() == ErrorKind::WouldBlock);
                if is_closed {
                    *client = slow(number);
                }
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    for _ in 0..5 {
        let start = Instant::now();
        let (head, body) = fetch(address, "/metrics", OPENMETRICS);
        let took = start.elapsed();
        assert!(head.starts_with("http/1.1 200") && body.ends_with("# EOF\n"), "{head}");
        assert!(took < Duration::from_secs(2), "{took:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
    is_over.store(true, Relaxed);
    come_again.join().unwrap();
}

#[test]
fn a_page_that_lets_its_own_name_lead_to_loopback_reads_nothing() {
    let (_sinks, _, address) = open();
    for host in ["localhost", "127.0.0.1:9464", "[::1]:9464", "127.1.2.3"] {
        assert!(fetch_as(address, "/metrics", OPENMETRICS, host).0.starts_with("http/1.1 200"), "{host}");
    }
    for host in ["evil.example", "evil.example:9464", "localhost.evil.example", "192.168.0.1", ""] {
        let (head, body) = fetch_as(address, "/metrics", OPENMETRICS, host);
        assert!(head.starts_with("http/1.1 421") && body.contains("--metrics HOST:PORT"), "{host:?}: {head}\n{body}");
        assert!(!body.contains("inferspan_build_info"), "{body}");
    }
}

#[test]
fn a_client_that_invents_models_does_not_grow_us() {
    let (mut sinks, _, address) = open();
    let request = |n: u32| {
        Output::Metric(Metric::Request {
            labels: Labels {
                server: "vllm-42".into(),
                model: format!("model-{n}\n{}", "x".repeat(500)).into(),
                engine: 0,
            },
            outcome: Outcome::Rejected,
            operation: "chat",
            provider: "vllm".into(),
            error_type: Some(format!("code {n}").into()),
            trace_id: outputs::request_trace_id(1),
            span_id: outputs::span_id(1, 0),
            seconds: outputs::access(1).seconds,
            time_per_output_token: None,
        })
    };
    sinks.push(&mut (0..5000).map(request).collect());
    let (_, text) = fetch(address, "/metrics", "text/plain");
    let rejected: Vec<f64> = text
        .lines()
        .filter(|line| line.starts_with("inferspan_requests_total{") && line.contains(r#"outcome="rejected""#))
        .map(|line| line.rsplit(' ').next().unwrap().parse().unwrap())
        .collect();
    assert_eq!(rejected.len(), 129, "128 models and the rest");
    assert!((rejected.iter().sum::<f64>() - 5000.0).abs() < f64::EPSILON, "every request is counted");
    assert!(
        text.contains(
            r#"inferspan_requests_total{server="other",model="other",engine="other",outcome="rejected"} 4872"#
        )
    );
    assert!(text.contains(r#"error_type="other""#));
    assert!(text.lines().all(|line| line.len() < 600));
    if let Some(said) = check_metrics(&text) {
        assert_eq!(said, "");
    }
}

#[test]
fn the_series_of_the_unknown_model_go_over_to_its_name_and_servers_do_not_mix() {
    let (mut sinks, _, address) = open();
    let of = |server: &str, model: &str| Labels { server: server.into(), model: model.into(), engine: 0 };
    let scheduler = |labels, running| {
        let (waiting, kv_cache_usage, prefix_queries, prefix_hits) = (0, 0.5, 1, 1);
        Output::Metric(Metric::Scheduler { labels, running, waiting, kv_cache_usage, prefix_queries, prefix_hits })
    };
    sinks.push(&mut vec![
        scheduler(of("chat-1", "unknown"), 3),
        scheduler(of("chat-2", "unknown"), 5),
        Output::Metric(Metric::Preempted { labels: of("chat-1", "unknown"), count: 2 }),
        Output::Metric(Metric::ModelKnown { server: "chat-1".into(), model: "m".into() }),
        Output::Metric(Metric::ModelKnown { server: "chat-2".into(), model: "m".into() }),
        Output::Metric(Metric::Preempted { labels: of("chat-1", "m"), count: 1 }),
        scheduler(of("chat-2", "m"), 6),
    ]);
    let (_, text) = fetch(address, "/metrics", "text/plain");
    assert!(!text.contains(r#""unknown",engine"#), "{text}");
    for line in [
        r#"inferspan_requests_running{server="chat-1",model="m",engine="0"} 3"#,
        r#"inferspan_requests_running{server="chat-2",model="m",engine="0"} 6"#,
        r#"inferspan_preemptions_total{server="chat-1",model="m",engine="0"} 3"#,
        r#"inferspan_prefix_cache_hits_total{server="chat-2",model="m",engine="0"} 2"#,
    ] {
        assert!(text.lines().any(|shown| shown == line), "{line} is not in {text}");
    }
}

#[test]
fn the_metrics_file_is_whole_openmetrics_and_the_same_every_time() {
    let folder = Folder::scratch("metrics").unwrap();
    let texts = [0, 1].map(|n| {
        let file = folder.path().join(format!("metrics-{n}"));
        let args = OutputArgs {
            metrics_out: Some(file.clone()),
            access_log: Some("/dev/null".into()),
            ..OutputArgs::default()
        };
        let mut sinks = Sinks::open(&args, Arc::default(), Pressure::Wait).unwrap();
        sinks.push(&mut outputs::all(1));
        assert_eq!(sinks.finish().failures, Vec::<String>::new());
        std::fs::read_to_string(&file).unwrap()
    });
    assert!(texts[0].ends_with("# EOF\n"));
    let of_the_target = |text: &str| {
        let lines = text.lines().filter(|line| !line.contains("inferspan_self_"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(of_the_target(&texts[0]), of_the_target(&texts[1]));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "no temporary file is left");
}

#[test]
fn a_device_is_written_to_not_replaced() {
    let args = OutputArgs {
        metrics_out: Some("/dev/null".into()),
        access_log: Some("/dev/null".into()),
        ..OutputArgs::default()
    };
    assert_eq!(Sinks::open(&args, Arc::default(), Pressure::Wait).unwrap().finish().failures, Vec::<String>::new());
    assert!(std::fs::metadata("/dev/null").unwrap().file_type().is_char_device());
}
