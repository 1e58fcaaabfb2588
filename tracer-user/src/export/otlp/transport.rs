//! The exporter for an endpoint: gRPC or HTTP, plain or TLS.
//!
//! TLS trusts the system's roots and the certificates of `OTEL_EXPORTER_OTLP_CERTIFICATE` (PEM). Headers, time-out, retries and
//! compression are the exporter's own, by the standard variables.

use std::time::Duration;

use opentelemetry_otlp::{SpanExporter, WithExportConfig as _, WithHttpConfig as _, WithTonicConfig as _};
use tonic::transport::{Certificate, ClientTlsConfig};

use super::endpoint::{Endpoint, Protocol};

/// Why there is no exporter.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    #[error("{0}")]
    Build(#[from] opentelemetry_otlp::ExporterBuildError),
    #[error("{variable} names {path}, which cannot be read: {error}")]
    Certificate { variable: &'static str, path: String, error: std::io::Error },
    #[error("TLS: {0}")]
    Http(#[from] reqwest::Error),
}

/// An exporter without a resource, with `timeout` for a whole batch. Must be called inside the runtime.
pub fn build(endpoint: &Endpoint, timeout: Duration) -> Result<SpanExporter, TransportError> {
    let trusted = if endpoint.url.starts_with("https:") {
        // An error says that there is a provider already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        trusted_certificates(|name| std::env::var(name).ok())?
    } else {
        None
    };
    match endpoint.protocol {
        Protocol::Grpc => {
            let mut builder = SpanExporter::builder().with_tonic().with_endpoint(&endpoint.url).with_timeout(timeout);
            if endpoint.url.starts_with("https:") {
                let tls = ClientTlsConfig::new().with_enabled_roots();
                builder = builder.with_tls_config(match trusted {
                    Some(pem) => tls.ca_certificate(Certificate::from_pem(pem)),
                    None => tls,
                });
            }
            Ok(builder.build()?)
        }
        Protocol::HttpProtobuf => {
            // The client needs a TLS provider at hand even when it speaks plain HTTP only.
            let _ = rustls::crypto::ring::default_provider().install_default();
            let mut client = reqwest::Client::builder().timeout(timeout);
            if let Some(pem) = trusted {
                client = client.tls_certs_merge(reqwest::Certificate::from_pem_bundle(&pem)?);
            }
            Ok(SpanExporter::builder()
                .with_http()
                .with_http_client(client.build()?)
                .with_protocol(opentelemetry_otlp::Protocol::HttpBinary)
                .with_endpoint(&endpoint.url)
                .with_timeout(timeout)
                .build()?)
        }
    }
}

/// The PEM file that the standard variables name.
fn trusted_certificates(env: impl Fn(&str) -> Option<String>) -> Result<Option<Vec<u8>>, TransportError> {
    for variable in ["OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", "OTEL_EXPORTER_OTLP_CERTIFICATE"] {
        if let Some(path) = env(variable).filter(|path| !path.is_empty()) {
            return match std::fs::read(&path) {
                Ok(pem) => Ok(Some(pem)),
                Err(error) => Err(TransportError::Certificate { variable, path, error }),
            };
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_that_is_not_there_is_named_with_its_variable() {
        let env = |name: &str| (name == "OTEL_EXPORTER_OTLP_CERTIFICATE").then(|| "/nowhere/ca.pem".to_owned());
        let error = trusted_certificates(env).unwrap_err().to_string();
        assert!(error.starts_with("OTEL_EXPORTER_OTLP_CERTIFICATE names /nowhere/ca.pem"), "{error}");
        assert!(trusted_certificates(|_| None).unwrap().is_none());
    }
}
