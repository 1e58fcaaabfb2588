//! Receivers of OTLP in this process, over gRPC and HTTP, and what must have come to them.

use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

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
pub(crate) enum Mood {
    Takes,
    Refuses,
    Hangs,
}

#[derive(Clone)]
pub(crate) struct Receiver {
    pub requests: Arc<Mutex<Vec<ExportTraceServiceRequest>>>,
    /// The `x-tenant` header of each request that had one.
    pub tenants: Arc<Mutex<Vec<String>>>,
    /// How many requests came compressed.
    pub gzipped: Arc<AtomicUsize>,
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
pub(crate) fn grpc(mood: Mood) -> (tokio::runtime::Runtime, String, Receiver) {
    grpc_with(mood, tonic::transport::Server::builder())
}

pub(crate) fn grpc_with(
    mood: Mood,
    mut server: tonic::transport::Server,
) -> (tokio::runtime::Runtime, String, Receiver) {
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
pub(crate) struct Post {
    pub path: String,
    pub content_type: String,
    pub encoding: String,
    pub tenant: String,
    pub body: Vec<u8>,
}

impl Post {
    pub(crate) fn decode(&self) -> ExportTraceServiceRequest {
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

pub(crate) type Posts = Arc<Mutex<Vec<Post>>>;

pub(crate) trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

/// Starts an HTTP receiver that answers `status`; returns its URL and what comes.
pub(crate) fn http(status: u16) -> (String, Posts) {
    http_with(status, |stream| Some(Box::new(stream)))
}

/// As [`http`], with a redirect to `to`.
pub(crate) fn redirecting(to: &str) -> (String, Posts) {
    answering(format!("307 X\r\nlocation: {to}"), |stream| Some(Box::new(stream)))
}

/// `open` makes of a connection what HTTP is spoken on, or nothing.
pub(crate) fn http_with(
    status: u16,
    open: impl Fn(TcpStream) -> Option<Box<dyn Stream>> + Send + 'static,
) -> (String, Posts) {
    answering(format!("{status} X"), open)
}

/// `head`: the status, and headers besides the usual ones.
fn answering(head: String, open: impl Fn(TcpStream) -> Option<Box<dyn Stream>> + Send + 'static) -> (String, Posts) {
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
            let head = format!("HTTP/1.1 {head}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            stream.get_mut().write_all(head.as_bytes()).unwrap();
            stream.get_mut().flush().unwrap();
        }
    });
    (url, requests)
}

/// Spans of all requests, each with the service name of its resource.
pub(crate) fn received(requests: &[ExportTraceServiceRequest]) -> Vec<(String, Span)> {
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

pub(crate) fn value(attributes: &[KeyValue], key: &str) -> Option<Value> {
    attributes.iter().find(|pair| pair.key == key)?.value.clone()?.value
}

#[expect(clippy::unnecessary_wraps, reason = "compared with what `value` finds")]
pub(crate) fn string(text: &str) -> Option<Value> {
    Some(Value::StringValue(text.into()))
}

/// Every field of the hand-made request and step must have arrived.
pub(crate) fn assert_everything_arrived(requests: &[ExportTraceServiceRequest]) {
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
