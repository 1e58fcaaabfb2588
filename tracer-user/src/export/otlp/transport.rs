//! The exporter for an endpoint: gRPC or HTTP, plain or TLS.
//!
//! TLS trusts the system's roots and the certificates that [`Options`] bring, and shows the client's own when there is one.
//! Headers and retries are the exporter's own, by the standard variables. Refused: redirects. Another origin would get the headers, keys
//! among them, and the traces; gRPC knows none.

use std::sync::{Arc, Mutex, PoisonError};

use opentelemetry_otlp::{Compression, SpanExporter, WithExportConfig as _, WithHttpConfig as _, WithTonicConfig as _};
use reqwest::redirect;
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

use super::endpoint::{Endpoint, Protocol};
use super::options::Options;

/// Why there is no exporter.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    #[error("{0}")]
    Build(#[from] opentelemetry_otlp::ExporterBuildError),
    #[error("TLS: {0}")]
    Http(#[from] reqwest::Error),
}

/// Where a back end last wanted to lead a request; nothing when it did not. Shared with the client, whose error does not say it.
#[derive(Debug, Clone, Default)]
pub struct Redirects(Arc<Mutex<Option<String>>>);

impl Redirects {
    /// What follows no redirect, and remembers it.
    fn policy(&self) -> redirect::Policy {
        let seen = self.clone();
        redirect::Policy::custom(move |attempt| {
            let url = attempt.url();
            // A query or a user's name may be a key.
            let to = format!("{}{}", url.origin().ascii_serialization(), url.path());
            *seen.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(to);
            attempt.stop()
        })
    }

    /// The one that was not followed, told once.
    pub fn take(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// An exporter without a resource. Must be called inside the runtime. `redirects`: hears of those that are not followed.
pub fn build(endpoint: &Endpoint, options: &Options, redirects: &Redirects) -> Result<SpanExporter, TransportError> {
    let is_tls = endpoint.url.starts_with("https:");
    if is_tls || endpoint.protocol == Protocol::HttpProtobuf {
        // The HTTP client needs a TLS provider at hand even when it speaks plain HTTP only. An error says that there is a
        // provider already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
    match endpoint.protocol {
        Protocol::Grpc => {
            let mut builder =
                SpanExporter::builder().with_tonic().with_endpoint(&endpoint.url).with_timeout(options.timeout);
            if is_tls {
                let mut tls = ClientTlsConfig::new().with_enabled_roots();
                if let Some(pem) = &options.tls.trusted {
                    tls = tls.ca_certificate(Certificate::from_pem(pem));
                }
                if let Some(own) = &options.tls.identity {
                    tls = tls.identity(Identity::from_pem(&own.certificate, &own.key));
                }
                builder = builder.with_tls_config(tls);
            }
            if options.gzip {
                builder = builder.with_compression(Compression::Gzip);
            }
            Ok(builder.build()?)
        }
        Protocol::HttpProtobuf => {
            let mut client = reqwest::Client::builder().timeout(options.timeout).redirect(redirects.policy());
            if let Some(pem) = &options.tls.trusted {
                client = client.tls_certs_merge(reqwest::Certificate::from_pem_bundle(pem)?);
            }
            if let Some(own) = &options.tls.identity {
                let pem = [&own.certificate[..], b"\n", &own.key].concat();
                client = client.identity(reqwest::Identity::from_pem(&pem)?);
            }
            let mut builder = SpanExporter::builder()
                .with_http()
                .with_http_client(client.build()?)
                .with_protocol(opentelemetry_otlp::Protocol::HttpBinary)
                .with_endpoint(&endpoint.url)
                .with_timeout(options.timeout);
            if options.gzip {
                builder = builder.with_compression(Compression::Gzip);
            }
            Ok(builder.build()?)
        }
    }
}
