//! Export over OTLP to receivers in this process: what arrives, and what happens when nothing does.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use inferspan::exit::Failure;
use inferspan::export::flags::OutputArgs;
use inferspan::export::{Pressure, Sinks};
use inferspan::output::{Output, Trace};
use inferspan::telemetry::Telemetry;
use inferspan_tests::outputs;

use self::receiver::{Mood, assert_everything_arrived, grpc, http, received};

#[path = "otlp/receiver.rs"]
mod receiver;
#[path = "otlp/variables.rs"]
mod variables;

fn open(url: &str, pressure: Pressure) -> (Sinks, Arc<Telemetry>) {
    let telemetry = Arc::new(Telemetry::default());
    // The access log keeps the lines off the test's own output.
    let args = OutputArgs { otlp: Some(url.into()), access_log: Some("/dev/null".into()), ..OutputArgs::default() };
    (Sinks::open(&args, Arc::clone(&telemetry), pressure).unwrap(), telemetry)
}

#[test]
fn every_field_arrives_over_grpc() {
    let (_runtime, url, receiver) = grpc(Mood::Takes);
    let (mut sinks, _) = open(&url, Pressure::Drop);
    sinks.push(&mut outputs::all(1));
    let summary = sinks.finish();
    assert_eq!((summary.requests, summary.spans_exported, summary.spans_dropped), (1, 8, 0));
    assert_eq!(summary.failures, Vec::<String>::new());
    assert_everything_arrived(&receiver.requests.lock().unwrap());
}

#[test]
fn every_field_arrives_over_http_protobuf() {
    let (url, requests) = http(200);
    let (mut sinks, _) = open(&url, Pressure::Drop);
    sinks.push(&mut outputs::all(1));
    let summary = sinks.finish();
    assert_eq!((summary.spans_exported, summary.spans_dropped, summary.failures), (8, 0, vec![]));
    let requests = requests.lock().unwrap();
    let decoded: Vec<_> = requests
        .iter()
        .map(|post| {
            assert_eq!((&*post.path, &*post.content_type), ("/v1/traces", "application/x-protobuf"));
            post.decode()
        })
        .collect();
    assert_everything_arrived(&decoded);
}

#[test]
fn spans_leave_while_the_run_goes_on() {
    let (_runtime, url, receiver) = grpc(Mood::Takes);
    let (mut sinks, telemetry) = open(&url, Pressure::Drop);
    sinks.push(&mut outputs::all(1));
    let deadline = Instant::now() + Duration::from_secs(10);
    while telemetry.spans_exported.load(Relaxed) < 8 {
        assert!(Instant::now() < deadline, "nothing was sent before the end");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(received(&receiver.requests.lock().unwrap()).len(), 8);
    sinks.finish();
}

#[test]
fn a_replay_waits_and_loses_nothing() {
    let (_runtime, url, receiver) = grpc(Mood::Takes);
    let (mut sinks, _) = open(&url, Pressure::Wait);
    // More spans than the queue holds.
    let traces = 70_000 / 7 + 1;
    for _ in 0..traces {
        sinks.push(&mut vec![Output::Trace(outputs::request(1))]);
    }
    let summary = sinks.finish();
    assert_eq!((summary.spans_exported, summary.spans_dropped), (traces * 7, 0));
    let requests = receiver.requests.lock().unwrap();
    assert_eq!(received(&requests).len() as u64, traces * 7);
    assert!(requests.iter().all(|request| received(std::slice::from_ref(request)).len() <= 512));
}

#[test]
fn a_back_end_that_hangs_blocks_nobody_and_every_span_is_counted() {
    let (_runtime, url, _receiver) = grpc(Mood::Hangs);
    let (mut sinks, telemetry) = open(&url, Pressure::Drop);
    let big = Trace { spans: vec![outputs::request(1).spans[1].clone(); 1000], ..outputs::request(1) };
    let started = Instant::now();
    for _ in 0..100 {
        sinks.push(&mut vec![Output::Trace(big.clone())]);
    }
    assert!(started.elapsed() < Duration::from_secs(2), "pushing took {:?}", started.elapsed());
    assert!(telemetry.spans_dropped_queue.load(Relaxed) >= 100_000 - 16_384 - 2_000);
    let summary = sinks.finish();
    assert!(started.elapsed() < Duration::from_secs(20), "finish took {:?}", started.elapsed());
    assert_eq!((summary.spans_exported, summary.spans_dropped), (0, 100_000));
    assert!(summary.failures[0].starts_with("OTLP export to http://127.0.0.1:"), "{:?}", summary.failures);
}

#[test]
fn a_back_end_that_refuses_is_named_with_its_reason() {
    let (_runtime, url, _receiver) = grpc(Mood::Refuses);
    let (mut sinks, telemetry) = open(&url, Pressure::Drop);
    sinks.push(&mut outputs::all(1));
    let summary = sinks.finish();
    assert_eq!((summary.spans_exported, summary.spans_dropped), (0, 8));
    assert_eq!(telemetry.spans_dropped_export.load(Relaxed), 8);
    assert!(summary.failures[0].contains("PermissionDenied"), "{:?}", summary.failures);

    let (url, _) = http(403);
    let (mut sinks, _) = open(&url, Pressure::Drop);
    sinks.push(&mut outputs::all(1));
    let summary = sinks.finish();
    assert_eq!(summary.spans_dropped, 8);
    assert!(summary.failures[0].contains("403"), "{:?}", summary.failures);
}

#[test]
fn a_back_end_that_is_not_there_ends_in_time_and_is_counted() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (mut sinks, _) = open(&format!("http://{free}"), Pressure::Drop);
    sinks.push(&mut outputs::all(1));
    let started = Instant::now();
    let summary = sinks.finish();
    assert!(started.elapsed() < Duration::from_secs(15));
    assert_eq!(summary.spans_dropped, 8);
    assert_eq!(summary.failures.len(), 1);
}

#[test]
fn a_replay_does_not_wait_for_a_back_end_that_is_not_there() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (mut sinks, _) = open(&format!("http://{free}"), Pressure::Wait);
    let started = Instant::now();
    for _ in 0..20_000 {
        sinks.push(&mut vec![Output::Trace(outputs::request(1))]);
    }
    let summary = sinks.finish();
    assert!(started.elapsed() < Duration::from_secs(20), "took {:?}", started.elapsed());
    assert_eq!((summary.spans_exported, summary.spans_dropped), (0, 140_000));
    assert!(summary.failures[0].contains("(140000 spans lost)"), "{:?}", summary.failures);
}

#[test]
fn a_bad_url_is_refused_before_the_run() {
    let args = OutputArgs { otlp: Some("ftp://h".into()), ..OutputArgs::default() };
    let error = Sinks::open(&args, Arc::default(), Pressure::Drop).unwrap_err();
    assert!(error.downcast_ref::<Failure>().unwrap().fix.contains("4317"));
}
