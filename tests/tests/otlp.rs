//! Export over OTLP to receivers in this process: what arrives, and what happens when nothing does.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use inferspan::cli::output::OutputArgs;
use inferspan::exit::Failure;
use inferspan::export::{Pressure, Sinks};
use inferspan::output::{Output, Trace};
use inferspan::telemetry::Telemetry;
use inferspan_tests::backend::Folder;
use inferspan_tests::outputs;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use prost::Message as _;
use tonic::codec::CompressionEncoding;
use tonic::{Request, Response, Status};

/// What the receiver does with a request.
#[derive(Clone, Copy, PartialEq)]
enum Mood {
    Takes,
    Refuses,
    Hangs,
}

#[derive(Clone)]
struct Receiver {
    requests: Arc<Mutex<Vec<ExportTraceServiceRequest>>>,
    /// The `x-tenant` header of each request that had one.
    tenants: Arc<Mutex<Vec<String>>>,
    /// How many requests came compressed.
    gzipped: Arc<AtomicUsize>,
    mood: Mood,
}

#[tonic::async_trait]
impl TraceService for Receiver {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        match self.mood {
            Mood::Takes => {
                if let Some(tenant) = request.metadata().get("x-tenant") {
                    self.tenants.lock().unwrap().push(tenant.to_str().unwrap().to_owned());
                }
                if request.metadata().get("grpc-encoding").is_some_and(|encoding| encoding == "gzip") {
                    self.gzipped.fetch_add(1, Relaxed);
                }
                self.requests.lock().unwrap().push(request.into_inner());
                Ok(Response::new(ExportTraceServiceResponse::default()))
            }
            Mood::Refuses => Err(Status::permission_denied("who are you")),
            Mood::Hangs => {
                tokio::time::sleep(Duration::from_mins(10)).await;
                Err(Status::deadline_exceeded("never"))
            }
        }
    }
}

/// Starts a gRPC receiver; the runtime ends it when dropped.
fn grpc(mood: Mood) -> (tokio::runtime::Runtime, String, Receiver) {
    grpc_with(mood, tonic::transport::Server::builder())
}

fn grpc_with(mood: Mood, mut server: tonic::transport::Server) -> (tokio::runtime::Runtime, String, Receiver) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let receiver = Receiver { requests: Arc::default(), tenants: Arc::default(), gzipped: Arc::default(), mood };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let service = TraceServiceServer::new(receiver.clone()).accept_compressed(CompressionEncoding::Gzip);
    runtime.spawn(async move {
        let incoming =
            tonic::transport::server::TcpIncoming::from(tokio::net::TcpListener::from_std(listener).unwrap());
        server.add_service(service).serve_with_incoming(incoming).await.unwrap();
    });
    (runtime, url, receiver)
}

/// What came over HTTP.
#[derive(Default)]
struct Post {
    path: String,
    content_type: String,
    encoding: String,
    tenant: String,
    body: Vec<u8>,
}

impl Post {
    fn decode(&self) -> ExportTraceServiceRequest {
        if self.encoding.is_empty() {
            return ExportTraceServiceRequest::decode(&self.body[..]).unwrap();
        }
        assert_eq!((&*self.encoding, &self.body[..2]), ("gzip", &[0x1f, 0x8b][..]));
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(&self.body[..]).read_to_end(&mut plain).unwrap();
        assert!(self.body.len() < plain.len());
        ExportTraceServiceRequest::decode(&plain[..]).unwrap()
    }
}

type Posts = Arc<Mutex<Vec<Post>>>;

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

/// Starts an HTTP receiver that answers `status`; returns its URL and what comes.
fn http(status: u16) -> (String, Posts) {
    http_with(status, |stream| Some(Box::new(stream)))
}

/// `open` makes of a connection what HTTP is spoken on, or nothing.
fn http_with(status: u16, open: impl Fn(TcpStream) -> Option<Box<dyn Stream>> + Send + 'static) -> (String, Posts) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v1/traces", listener.local_addr().unwrap());
    let requests = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&requests);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Some(stream) = open(stream.unwrap()) else { continue };
            let mut stream = BufReader::new(stream);
            let (mut post, mut length) = (Post::default(), 0);
            for line in stream.by_ref().lines() {
                let line = line.unwrap();
                if line.is_empty() {
                    break;
                }
                if let Some(rest) = line.strip_prefix("POST ") {
                    rest.split(' ').next().unwrap().clone_into(&mut post.path);
                } else if let Some((key, value)) = line.split_once(": ") {
                    match &*key.to_ascii_lowercase() {
                        "content-type" => value.clone_into(&mut post.content_type),
                        "content-encoding" => value.clone_into(&mut post.encoding),
                        "x-tenant" => value.clone_into(&mut post.tenant),
                        "content-length" => length = value.parse().unwrap(),
                        _ => {}
                    }
                }
            }
            post.body = vec![0; length];
            stream.read_exact(&mut post.body).unwrap();
            seen.lock().unwrap().push(post);
            let head = format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            stream.get_mut().write_all(head.as_bytes()).unwrap();
            stream.get_mut().flush().unwrap();
        }
    });
    (url, requests)
}

fn open(url: &str, pressure: Pressure) -> (Sinks, Arc<Telemetry>) {
    let telemetry = Arc::new(Telemetry::default());
    // The access log keeps the lines off the test's own output.
    let args = OutputArgs { otlp: Some(url.into()), access_log: Some("/dev/null".into()), ..OutputArgs::default() };
    (Sinks::open(&args, Arc::clone(&telemetry), pressure).unwrap(), telemetry)
}

/// Spans of all requests, each with the service name of its resource.
fn received(requests: &[ExportTraceServiceRequest]) -> Vec<(String, Span)> {
    let resources = requests.iter().flat_map(|request| &request.resource_spans);
    resources
        .flat_map(|resource| {
            let Some(Value::StringValue(service)) =
                value(&resource.resource.as_ref().unwrap().attributes, "service.name")
            else {
                panic!("no service.name");
            };
            resource.scope_spans.iter().flat_map(|scope| &scope.spans).map(move |span| (service.clone(), span.clone()))
        })
        .collect()
}

fn value(attributes: &[KeyValue], key: &str) -> Option<Value> {
    attributes.iter().find(|pair| pair.key == key)?.value.clone()?.value
}

#[expect(clippy::unnecessary_wraps, reason = "compared with what `value` finds")]
fn string(text: &str) -> Option<Value> {
    Some(Value::StringValue(text.into()))
}

/// Every field of the hand-made request and step must have arrived.
fn assert_everything_arrived(requests: &[ExportTraceServiceRequest]) {
    let spans = received(requests);
    assert_eq!(spans.len(), 8);
    let find = |name: &str| spans.iter().find(|(_, span)| span.name == name).unwrap();

    let sent = outputs::request(1);
    let (service, root) = find("inference_request");
    assert_eq!(service, "vllm");
    assert_eq!(root.trace_id, sent.spans[0].trace_id.0);
    assert_eq!(root.span_id, sent.spans[0].span_id.0);
    assert_eq!(root.parent_span_id, outputs::remote_parent(1).0);
    assert_eq!(root.flags, 0x301, "sampled, and its parent known to be remote");
    assert_eq!(root.trace_state, "vendor=value");
    assert_eq!(root.kind, SpanKind::Server as i32);
    assert_eq!((root.start_time_unix_nano, root.end_time_unix_nano), (sent.spans[0].start_ns, sent.spans[0].end_ns));
    assert_eq!(root.status.as_ref().unwrap().code, StatusCode::Unset as i32);
    assert_eq!(root.attributes.len(), sent.spans[0].attributes.len());
    assert_eq!(value(&root.attributes, "url.path"), string("/v1/completions"));
    assert_eq!(value(&root.attributes, "http.response.status_code"), Some(Value::IntValue(200)));
    assert_eq!(value(&root.attributes, "gen_ai.request.stream"), Some(Value::BoolValue(true)));
    assert_eq!(value(&root.attributes, "gen_ai.latency.e2e"), Some(Value::DoubleValue(0.2)));
    let Some(Value::ArrayValue(reasons)) = value(&root.attributes, "gen_ai.response.finish_reasons") else {
        panic!("no list");
    };
    assert_eq!(reasons.values, ["length", "stop"].map(|text| AnyValue { value: string(text) }));
    assert_eq!(root.events.len(), 1);
    assert_eq!(root.events[0].name, "first_token");
    assert_eq!(root.events[0].time_unix_nano, sent.spans[0].events[0].at_ns);
    assert_eq!(value(&root.events[0].attributes, "tokens"), Some(Value::IntValue(1)));

    let (_, step) = find("decode_step");
    assert_eq!(step.parent_span_id, outputs::span_id(1, 4).0);
    assert_eq!(step.flags, 0x101, "sampled, and its parent known to be local");
    assert_eq!(step.kind, SpanKind::Internal as i32);
    assert_eq!(step.links.len(), 1);
    assert_eq!(step.links[0].trace_id, outputs::step_trace_id(1).0);
    assert_eq!(step.links[0].span_id, outputs::span_id(1, 100).0);
    assert_eq!(value(&step.links[0].attributes, "inferspan.link"), string("engine_step"));

    let (service, step) = find("engine_step");
    assert_eq!(service, "vllm-engine");
    assert_eq!(step.parent_span_id, Vec::<u8>::new());
    assert_eq!(value(&step.attributes, "inferspan.batch.requests"), Some(Value::IntValue(3)));
    let status = find("detokenize").1.status.as_ref().unwrap();
    assert_eq!((status.code, &*status.message), (StatusCode::Error as i32, "engine_error"));

    let resource = requests[0].resource_spans[0].resource.as_ref().unwrap();
    assert_eq!(value(&resource.attributes, "service.version"), string("0.32.0"));
    assert_eq!(value(&resource.attributes, "process.pid"), Some(Value::IntValue(4242)));
    assert_eq!(value(&resource.attributes, "service.instance.id"), string(outputs::SERVER));
    assert_eq!(value(&resource.attributes, "container.id"), string(&"3f4a".repeat(16)));
    assert_eq!(value(&resource.attributes, "telemetry.distro.name"), string("inferspan"));
    let scope = requests[0].resource_spans[0].scope_spans[0].scope.as_ref().unwrap();
    assert_eq!(scope.name, "inferspan");
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

/// Set for a child process of the tests below.
const CHILD: &str = "INFERSPAN_TEST_CHILD";

/// Spans that the child is to export; 8 when not set.
const EXPECTED: &str = "INFERSPAN_TEST_EXPECTED";

/// Exports where the standard variables say, in a child of [`child`]; does nothing among the other tests.
#[test]
fn child_exports() {
    if std::env::var_os(CHILD).is_some() {
        let args = OutputArgs { access_log: Some("/dev/null".into()), ..OutputArgs::default() };
        let mut sinks = Sinks::open(&args, Arc::default(), Pressure::Drop).unwrap();
        sinks.push(&mut outputs::all(1));
        let summary = sinks.finish();
        let expected = std::env::var(EXPECTED).map_or(8, |spans| spans.parse().unwrap());
        assert_eq!((summary.spans_exported, summary.failures), (expected, vec![]));
    }
}

/// Variables belong to a process, so the export runs in one of its own: this program, again. Says whether it went well, and what it said.
fn child(vars: &[(&str, &str)]) -> (bool, String) {
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child_exports", "--nocapture"]).env(CHILD, "1").envs(vars.iter().copied());
    let output = command.output().unwrap();
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    (output.status.success(), said)
}

fn child_goes_well(vars: &[(&str, &str)]) {
    let (went_well, said) = child(vars);
    assert!(went_well, "{said}");
}

#[test]
fn the_standard_variables_alone_turn_export_on() {
    let child = child_goes_well;
    let (_runtime, url, receiver) = grpc(Mood::Takes);
    child(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &url),
        ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=prod,service.name=mine"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=team%20a"),
    ]);
    let requests = receiver.requests.lock().unwrap();
    assert_everything_arrived(&requests);
    let resource = requests[0].resource_spans[0].resource.as_ref().unwrap();
    assert_eq!(value(&resource.attributes, "deployment.environment.name"), string("prod"));
    assert_eq!(*receiver.tenants.lock().unwrap(), vec!["team a"; requests.len()]);

    let (url, requests) = http(200);
    let base = url.trim_end_matches("/v1/traces");
    child(&[("OTEL_EXPORTER_OTLP_ENDPOINT", base), ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")]);
    assert_eq!(requests.lock().unwrap()[0].path, "/v1/traces");
}

#[test]
fn tls_trusts_the_certificate_that_the_variable_names_and_no_other() {
    let certificate = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let pem = certificate.cert.pem();
    let der = certificate.cert.der().clone();
    let key = rustls::pki_types::PrivateKeyDer::try_from(certificate.signing_key.serialize_der()).unwrap();
    let identity = tonic::transport::Identity::from_pem(&pem, certificate.signing_key.serialize_pem());
    let tls = tonic::transport::ServerTlsConfig::new().identity(identity);
    let server = tonic::transport::Server::builder().tls_config(tls).unwrap();
    let (_runtime, url, receiver) = grpc_with(Mood::Takes, server);
    let url = url.replace("http://127.0.0.1", "https://localhost");
    let folder = Folder::new("tls").unwrap();
    let file = folder.path().join("ca.pem");
    std::fs::write(&file, pem).unwrap();

    let (went_well, said) = child(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &url)]);
    assert!(!went_well, "an unknown certificate was trusted");
    assert!(said.to_lowercase().contains("certificate"), "{said}");
    assert!(receiver.requests.lock().unwrap().is_empty());

    let file = file.to_str().unwrap();
    let (went_well, said) = child(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &url), ("OTEL_EXPORTER_OTLP_CERTIFICATE", file)]);
    assert!(went_well, "{said}");
    assert_everything_arrived(&receiver.requests.lock().unwrap());

    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = Arc::new(config.with_no_client_auth().with_single_cert(vec![der], key).unwrap());
    let (url, posts) = http_with(200, move |mut stream| {
        let mut tls = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
        // A client that does not trust us breaks the handshake off.
        while tls.is_handshaking() {
            tls.complete_io(&mut stream).ok()?;
        }
        Some(Box::new(rustls::StreamOwned::new(tls, stream)))
    });
    let url = url.replace("http://127.0.0.1", "https://localhost");
    let (went_well, said) = child(&[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", &url)]);
    assert!(!went_well, "{said}");
    assert!(posts.lock().unwrap().is_empty());
    let vars = [("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", &*url), ("OTEL_EXPORTER_OTLP_CERTIFICATE", file)];
    let (went_well, said) = child(&vars);
    assert!(went_well, "{said}");
    let posts = posts.lock().unwrap();
    let decoded: Vec<_> = posts.iter().map(Post::decode).collect();
    assert_everything_arrived(&decoded);
}

#[test]
fn batches_are_compressed_when_the_variable_says_gzip_over_both_protocols() {
    const COMPRESSION: &str = "OTEL_EXPORTER_OTLP_COMPRESSION";
    const TRACES_COMPRESSION: &str = "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION";
    let (_runtime, url, receiver) = grpc(Mood::Takes);
    child_goes_well(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &url), (COMPRESSION, "none")]);
    assert_eq!(receiver.gzipped.load(Relaxed), 0);
    receiver.requests.lock().unwrap().clear();
    child_goes_well(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &url), (COMPRESSION, "gzip")]);
    assert_eq!(receiver.gzipped.load(Relaxed), receiver.requests.lock().unwrap().len());
    assert_everything_arrived(&receiver.requests.lock().unwrap());

    let (url, posts) = http(200);
    let tenant = ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "x-tenant=b");
    child_goes_well(&[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", &url), (TRACES_COMPRESSION, "gzip"), tenant]);
    let mut posts = posts.lock().unwrap();
    assert!(posts.iter().all(|post| post.encoding == "gzip" && post.tenant == "b"));
    assert_everything_arrived(&posts.drain(..).map(|post| post.decode()).collect::<Vec<_>>());
    drop(posts);

    let (went_well, said) = child(&[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", &url), (COMPRESSION, "zstd")]);
    assert!(!went_well && said.contains(COMPRESSION) && said.contains("gzip or none"), "{said}");
}

#[test]
fn what_the_variables_turn_off_or_name_wrongly_is_off_or_refused() {
    let (_runtime, url, receiver) = grpc(Mood::Takes);
    let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", &*url);
    for off in [("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none"), ("OTEL_TRACES_SAMPLER", "always_off")]
    {
        child_goes_well(&[endpoint, off, (EXPECTED, "0")]);
        assert!(receiver.requests.lock().unwrap().is_empty(), "{off:?}");
    }
    for (variable, wrong) in [
        ("OTEL_TRACES_EXPORTER", "console"),
        ("OTEL_TRACES_SAMPLER", "xray"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant"),
        ("OTEL_EXPORTER_OTLP_INSECURE", "maybe"),
    ] {
        let (went_well, said) = child(&[endpoint, (variable, wrong)]);
        assert!(!went_well && said.contains("\n  fix: "), "{variable}: {said}");
        assert!(said.contains(variable) || said.contains(wrong), "{variable}: {said}");
    }
    assert!(receiver.requests.lock().unwrap().is_empty());

    let bare = url.trim_start_matches("http://");
    child_goes_well(&[("OTEL_EXPORTER_OTLP_ENDPOINT", bare), ("OTEL_EXPORTER_OTLP_INSECURE", "true")]);
    assert_everything_arrived(&receiver.requests.lock().unwrap());
}

#[test]
fn the_timeout_is_the_variables() {
    let (_runtime, url, _receiver) = grpc(Mood::Hangs);
    let started = Instant::now();
    let timeout = ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "300");
    let (went_well, _) = child(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &url), timeout]);
    assert!(!went_well);
    assert!(started.elapsed() < Duration::from_secs(6), "took {:?}", started.elapsed());
}

#[test]
fn the_clients_certificate_is_shown_over_both_protocols() {
    let server = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let client = rcgen::generate_simple_self_signed(["inferspan".to_owned()]).unwrap();
    let folder = Folder::new("mtls").unwrap();
    let file = |name: &str, text: String| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let ca = file("ca.pem", server.cert.pem());
    let certificate = file("client.pem", client.cert.pem());
    let key = file("client.key", client.signing_key.serialize_pem());
    let trusted = ("OTEL_EXPORTER_OTLP_CERTIFICATE", &*ca);
    let own = [("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", &*certificate), ("OTEL_EXPORTER_OTLP_CLIENT_KEY", &*key)];

    let identity = tonic::transport::Identity::from_pem(server.cert.pem(), server.signing_key.serialize_pem());
    let tls = tonic::transport::ServerTlsConfig::new()
        .identity(identity)
        .client_ca_root(tonic::transport::Certificate::from_pem(client.cert.pem()));
    let builder = tonic::transport::Server::builder().tls_config(tls).unwrap();
    let (_runtime, url, receiver) = grpc_with(Mood::Takes, builder);
    let url = url.replace("http://127.0.0.1", "https://localhost");
    let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", &*url);
    assert!(!child(&[endpoint, trusted]).0, "without a certificate");
    assert!(!child(&[endpoint, trusted, own[0]]).0, "without its key");
    child_goes_well(&[endpoint, trusted, own[0], own[1]]);
    assert_everything_arrived(&receiver.requests.lock().unwrap());

    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(client.cert.der().clone()).unwrap();
    let verifier =
        rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build();
    let der = rustls::pki_types::PrivateKeyDer::try_from(server.signing_key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_client_cert_verifier(verifier.unwrap());
    let config = Arc::new(config.with_single_cert(vec![server.cert.der().clone()], der).unwrap());
    let (url, posts) = http_with(200, move |mut stream| {
        let mut tls = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
        while tls.is_handshaking() {
            tls.complete_io(&mut stream).ok()?;
        }
        Some(Box::new(rustls::StreamOwned::new(tls, stream)))
    });
    let url = url.replace("http://127.0.0.1", "https://localhost");
    let endpoint = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", &*url);
    assert!(!child(&[endpoint, trusted]).0, "without a certificate");
    child_goes_well(&[endpoint, trusted, own[0], own[1]]);
    let decoded: Vec<_> = posts.lock().unwrap().iter().map(Post::decode).collect();
    assert_everything_arrived(&decoded);
}
