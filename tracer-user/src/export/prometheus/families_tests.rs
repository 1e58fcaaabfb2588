use prometheus_client::encoding::text::encode;

use super::*;
use crate::output::RequestSeconds;
use crate::output::{SpanId, TraceId};

fn labels(server: &str, model: &str) -> Labels {
    Labels { server: server.into(), model: model.into(), engine: 0 }
}

fn request(labels: Labels) -> Metric {
    Metric::Request {
        labels,
        outcome: Outcome::Stop,
        operation: "chat",
        provider: "vllm".into(),
        error_type: None,
        trace_id: TraceId([1; 16]),
        span_id: SpanId([2; 8]),
        seconds: RequestSeconds { ttft: Some(0.1), e2e: Some(1.0), ..RequestSeconds::default() },
        time_per_output_token: Some(0.01),
    }
}

fn after(metrics: &[Metric]) -> String {
    let mut registry = Registry::default();
    let mut families = Families::register(&mut registry);
    for metric in metrics {
        families.apply(metric);
    }
    let mut text = String::new();
    encode(&mut text, &registry).unwrap();
    text
}

#[test]
fn what_was_counted_before_the_name_was_known_goes_over_to_it() {
    let known = Metric::ModelKnown { server: "a".into(), model: "m".into() };
    let early = [
        request(labels("a", "unknown")),
        Metric::Step { labels: labels("a", ""), seconds: 0.01 },
        request(labels("b", "unknown")),
        known,
        request(labels("a", "m")),
        Metric::Step { labels: labels("a", "m"), seconds: 0.01 },
    ];
    let text = after(&early);
    assert!(!text.lines().any(|line| line.contains(r#"server="a""#) && line.contains(r#"model="unknown""#)), "{text}");
    for line in [
        r#"inferspan_requests_total{server="a",model="m",engine="0",outcome="stop"} 2"#,
        r#"inferspan_engine_step_seconds_count{server="a",model="m",engine="0"} 2"#,
        r#"gen_ai_server_request_duration_seconds_count{server="a",gen_ai_operation_name="chat",gen_ai_provider_name="vllm",gen_ai_request_model="m"} 2"#,
        r#"inferspan_requests_total{server="b",model="unknown",engine="0",outcome="stop"} 1"#,
    ] {
        assert!(text.contains(line), "{line} is not in {text}");
    }
}

#[test]
fn counts_are_added_where_the_name_was_there_already() {
    let metrics = [
        request(labels("a", "m")),
        request(labels("a", "unknown")),
        Metric::ModelKnown { server: "a".into(), model: "m".into() },
        request(labels("a", "m")),
    ];
    let text = after(&metrics);
    assert!(text.contains(r#"inferspan_requests_total{server="a",model="m",engine="0",outcome="stop"} 3"#));
    assert!(!text.contains(r#"inferspan_requests_total{server="a",model="unknown""#));
    // Two histograms cannot be added; none of their observations is lost.
    let counted = |model: &str| {
        let model = format!(r#"gen_ai_request_model="{model}"}} "#);
        let line = text.lines().find(|line| line.contains("duration_seconds_count") && line.contains(&model));
        line.unwrap().rsplit(' ').next().unwrap().to_owned()
    };
    assert_eq!((&*counted("m"), &*counted("unknown")), ("2", "1"));
}

#[test]
fn two_servers_of_one_model_have_gauges_of_their_own() {
    let scheduler = |server, running| Metric::Scheduler {
        labels: labels(server, "m"),
        running,
        waiting: 0,
        kv_cache_usage: 0.0,
        prefix_queries: 0,
        prefix_hits: 0,
    };
    let text = after(&[scheduler("a", 3), scheduler("b", 5)]);
    assert!(text.contains(r#"inferspan_requests_running{server="a",model="m",engine="0"} 3"#));
    assert!(text.contains(r#"inferspan_requests_running{server="b",model="m",engine="0"} 5"#));
}

#[test]
fn first_tokens_and_contradicted_usage_are_counted() {
    let first = Metric::FirstToken {
        labels: labels("a", "m"),
        ttft_engine: 0.055,
        trace_id: TraceId([1; 16]),
        span_id: SpanId([2; 8]),
    };
    let text = after(&[first, Metric::UsageDiffers { labels: labels("a", "m") }]);
    let bucket =
        r#"inferspan_request_ttft_engine_seconds_bucket{le="0.06",server="a",model="m",engine="0"} 1 # {trace_id="01"#;
    assert!(text.contains(bucket), "{text}");
    assert!(text.contains(r#"inferspan_usage_differs_total{server="a",model="m",engine="0"} 1"#));
}
