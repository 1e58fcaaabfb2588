//! The standard variables, each in a process of its own, and what came of them at a receiver.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use inferspan::export::flags::OutputArgs;
use inferspan::export::{Pressure, Sinks};
use inferspan_harness::folder::Folder;
use inferspan_tests::outputs;

use super::receiver::{
    Mood, Post, assert_everything_arrived, grpc, grpc_with, http, http_with, redirecting, string, value,
};

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
    command.args(["--exact", "variables::child_exports", "--nocapture"]).env(CHILD, "1").envs(vars.iter().copied());
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
fn a_redirect_takes_no_header_and_no_trace_to_another_origin() {
    // the export -> the back end: 307 -> another origin, which must hear nothing
    let (other, stolen) = http(200);
    let (url, asked) = redirecting(&other);
    let (went_well, said) = child(&[
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", &url),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=secret"),
    ]);
    assert!(!went_well, "{said}");
    assert!(said.contains(&format!("it redirects to {other}, which is not followed")), "{said}");
    assert_eq!(asked.lock().unwrap()[0].tenant, "secret");
    assert_eq!(stolen.lock().unwrap().len(), 0, "the other origin was asked");
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
    let folder = Folder::scratch("tls").unwrap();
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
    let folder = Folder::scratch("mtls").unwrap();
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
