//! How traces are sent: the standard `OTEL_EXPORTER_OTLP_*` variables besides endpoint and protocol, resolved once.
//!
//! The signal's own variable (`OTEL_EXPORTER_OTLP_TRACES_*`) wins over the general one. Enters: the endpoint and a look-up of
//! variables. Leaves: values that work, files read. A value that would not do what it says is refused, with its variable's name;
//! the exporter would leave it out in silence.

use std::time::Duration;

use reqwest::header::{HeaderName, HeaderValue};

use super::endpoint::{Endpoint, signal};
use super::spans::percent_decode;
use crate::exit::{Code, Failure};

/// The back end's time for one batch by default, as the specification has it.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// Resolved options of one endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// For one batch, retries included.
    pub timeout: Duration,
    pub gzip: bool,
    /// PEM files, for TLS only.
    pub tls: Tls,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tls {
    /// Certificates that are trusted besides the system's.
    pub trusted: Option<Vec<u8>>,
    pub identity: Option<Identity>,
}

/// The client's certificate and its key.
#[derive(Clone, PartialEq, Eq)]
pub struct Identity {
    pub certificate: Vec<u8>,
    pub key: Vec<u8>,
}

impl std::fmt::Debug for Identity {
    /// A key is nobody's to read.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").finish_non_exhaustive()
    }
}

/// The options that the variables (looked up by `env`) ask for.
pub fn resolve(endpoint: &Endpoint, env: impl Fn(&str) -> Option<String>) -> Result<Options, Failure> {
    let refuse = |variable: &str, value: &str, fix: &str| {
        Failure::new(Code::Usage, format!("{variable}={value:?} cannot be used"), fix)
    };
    let timeout = match signal(&env, "TIMEOUT") {
        None => DEFAULT_TIMEOUT,
        Some((variable, value)) => value
            .parse()
            .ok()
            .filter(|millis| *millis > 0)
            .map(Duration::from_millis)
            .ok_or_else(|| refuse(&variable, &value, "set it to a number of milliseconds above 0, or unset it"))?,
    };
    let gzip = match signal(&env, "COMPRESSION") {
        None => false,
        Some((_, value)) if value.eq_ignore_ascii_case("none") => false,
        Some((_, value)) if value.eq_ignore_ascii_case("gzip") => true,
        Some((variable, value)) => return Err(refuse(&variable, &value, "set it to gzip or none, or unset it")),
    };
    if let Some((variable, list)) = signal(&env, "HEADERS")
        && !are_headers(&list)
    {
        // The value may hold a secret.
        let what = format!("{variable} is no list of headers");
        return Err(Failure::new(Code::Usage, what, "write key=value,key=value with percent-encoded values"));
    }
    let tls = if endpoint.url.starts_with("https:") { tls(&env)? } else { Tls::default() };
    Ok(Options { timeout, gzip, tls })
}

fn are_headers(list: &str) -> bool {
    list.split(',').all(|pair| {
        pair.split_once('=').is_some_and(|(key, value)| {
            HeaderName::from_bytes(key.trim().as_bytes()).is_ok()
                && HeaderValue::from_str(&percent_decode(value.trim())).is_ok()
        })
    })
}

fn tls(env: &impl Fn(&str) -> Option<String>) -> Result<Tls, Failure> {
    let file = |name: &str| {
        let Some((variable, path)) = signal(env, name) else { return Ok(None) };
        std::fs::read(&path).map(|pem| Some((variable.clone(), pem))).map_err(|error| {
            let what = format!("{variable} names {path}, which cannot be read: {error}");
            Failure::new(Code::Usage, what, "name a readable PEM file, or unset it")
        })
    };
    let trusted = file("CERTIFICATE")?.map(|(_, pem)| pem);
    let identity = match (file("CLIENT_CERTIFICATE")?, file("CLIENT_KEY")?) {
        (None, None) => None,
        (Some((_, certificate)), Some((_, key))) => Some(Identity { certificate, key }),
        (Some((variable, _)), None) | (None, Some((variable, _))) => {
            let what = format!("{variable} is set alone: a client's certificate and its key go together");
            let fix = "set OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE and OTEL_EXPORTER_OTLP_CLIENT_KEY, or neither";
            return Err(Failure::new(Code::Usage, what, fix));
        }
    };
    Ok(Tls { trusted, identity })
}

#[cfg(test)]
mod tests {
    use super::super::endpoint::Protocol;
    use super::*;

    fn resolved(url: &str, vars: &[(&str, &str)]) -> Result<Options, String> {
        let endpoint = Endpoint { url: url.into(), protocol: Protocol::Grpc, source: "--otlp" };
        let env = |name: &str| vars.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        resolve(&endpoint, env).map_err(|failure| failure.what)
    }

    #[test]
    fn the_signals_own_variable_wins() {
        let options = resolved(
            "http://h",
            &[
                ("OTEL_EXPORTER_OTLP_TIMEOUT", "5000"),
                ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "250"),
                ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
            ],
        )
        .unwrap();
        assert_eq!((options.timeout, options.gzip), (Duration::from_millis(250), true));
        let none = [("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"), ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "none")];
        assert!(!resolved("http://h", &none).unwrap().gzip);
        let plain = Options { timeout: DEFAULT_TIMEOUT, gzip: false, tls: Tls::default() };
        assert_eq!(resolved("https://h", &[]), Ok(plain));
    }

    #[test]
    fn what_would_not_do_what_it_says_is_refused_by_name() {
        for (variable, value) in [
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "0"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd"),
            ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "deflate"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "authorization"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "a=b,c d=e"),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere/ca.pem"),
            ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", "/dev/null"),
            ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "/dev/null"),
        ] {
            let what = resolved("https://h", &[(variable, value)]).unwrap_err();
            assert!(what.contains(variable), "{what}");
        }
        let secret = resolved("http://h", &[("OTEL_EXPORTER_OTLP_HEADERS", "token s3cret")]).unwrap_err();
        assert!(!secret.contains("s3cret"));
        assert!(resolved("http://h", &[("OTEL_EXPORTER_OTLP_HEADERS", "a=b,authorization=Bearer%20x")]).is_ok());
    }

    #[test]
    fn certificates_are_read_for_tls_only() {
        assert!(resolved("http://h", &[("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere/ca.pem")]).is_ok());
    }
}
