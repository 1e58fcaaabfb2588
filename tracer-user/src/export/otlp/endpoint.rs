//! Where traces go and how: the `--otlp` flag and the standard `OTEL_*` variables, resolved once, as pure data.
//!
//! The flag wins over the variables. What is refused: a scheme other than http and https, `http/json`, a URL without a host, an
//! exporter other than `otlp` and `none`.

use reqwest::Url;

use crate::exit::{Code, Failure};

/// Wire protocol of the export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Grpc,
    HttpProtobuf,
}

/// A resolved destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// With the path to post to when the protocol is HTTP.
    pub url: String,
    pub protocol: Protocol,
    /// What the user wrote it in, for messages.
    pub source: &'static str,
}

const FLAG: &str = "--otlp";
const EXPORTER: &str = "OTEL_TRACES_EXPORTER";
const TRACES_ENDPOINT: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
const PROTOCOL: &str = "OTEL_EXPORTER_OTLP_PROTOCOL";
const TRACES_PATH: &str = "/v1/traces";

/// The variable `OTEL_EXPORTER_OTLP_TRACES_<name>`, or else `OTEL_EXPORTER_OTLP_<name>`, that is set, and its value.
pub(super) fn signal(env: impl Fn(&str) -> Option<String>, name: &str) -> Option<(String, String)> {
    [format!("OTEL_EXPORTER_OTLP_TRACES_{name}"), format!("OTEL_EXPORTER_OTLP_{name}")].into_iter().find_map(
        |variable| {
            let value = env(&variable)?.trim().to_owned();
            (!value.is_empty()).then_some((variable, value))
        },
    )
}

/// The destination that `flag` and the variables (looked up by `env`) ask for; `None` when they ask for none.
pub fn resolve(flag: Option<&str>, env: impl Fn(&str) -> Option<String>) -> Result<Option<Endpoint>, Failure> {
    let env = |name: &str| env(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
    let (url, source) = if let Some(url) = flag {
        (url.trim().to_owned(), FLAG)
    } else {
        let exporter = env(EXPORTER);
        if exporter.as_deref() == Some("none")
            || env("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"))
        {
            return Ok(None);
        }
        if let Some(other) = exporter.as_deref().filter(|exporter| *exporter != "otlp") {
            let what = format!("{EXPORTER}={other:?} is not supported");
            return Err(Failure::new(Code::Usage, what, "set it to otlp or none, unset it, or use --otlp"));
        }
        if let Some(url) = env(TRACES_ENDPOINT) {
            (url, TRACES_ENDPOINT)
        } else if let Some(url) = env(ENDPOINT) {
            (url, ENDPOINT)
        } else if exporter.is_some() {
            // The exporter is asked for by name: the specification's own endpoint.
            let is_http = signal(env, "PROTOCOL").is_some_and(|(_, protocol)| protocol != "grpc");
            (format!("http://localhost:{}", if is_http { 4318 } else { 4317 }), EXPORTER)
        } else {
            return Ok(None);
        }
    };
    let (url, parsed) = parse(url, source, env)?;
    let (path, port) = (parsed.path(), parsed.port());
    let has_path = !matches!(path, "" | "/");
    let protocol = match signal(env, "PROTOCOL").as_ref().map(|(_, protocol)| protocol.as_str()) {
        // A path says HTTP louder than a variable that was set for something else.
        _ if source == FLAG && path.ends_with(TRACES_PATH) => Protocol::HttpProtobuf,
        Some("grpc") => Protocol::Grpc,
        Some("http/protobuf") => Protocol::HttpProtobuf,
        Some(other) => {
            return Err(Failure::new(
                Code::Usage,
                format!("the OTLP protocol {other:?} is not supported"),
                format!("set {PROTOCOL} to grpc or http/protobuf, or unset it"),
            ));
        }
        None if has_path || port == Some(4318) => Protocol::HttpProtobuf,
        None => Protocol::Grpc,
    };
    let url = match protocol {
        Protocol::Grpc => url,
        // The signal's own variable is taken as it is; the others are a base (specification, "Endpoint URLs for OTLP/HTTP").
        Protocol::HttpProtobuf if source == TRACES_ENDPOINT || path.ends_with(TRACES_PATH) => url,
        Protocol::HttpProtobuf => format!("{}{TRACES_PATH}", url.trim_end_matches('/')),
    };
    Ok(Some(Endpoint { url, protocol, source }))
}

/// The URL, with a scheme if it has none, as it stands and taken apart.
fn parse(url: String, source: &str, env: impl Fn(&str) -> Option<String>) -> Result<(String, Url), Failure> {
    let scheme = match signal(env, "INSECURE") {
        None => "http",
        Some((_, value)) if value.eq_ignore_ascii_case("true") => "http",
        Some((_, value)) if value.eq_ignore_ascii_case("false") => "https",
        Some((variable, value)) => {
            let what = format!("{variable}={value:?} is neither true nor false");
            return Err(Failure::new(Code::Usage, what, "set it to true or false, or unset it"));
        }
    };
    let url = if url.contains("://") { url } else { format!("{scheme}://{url}") };
    let bad = |why: &str| {
        Failure::new(
            Code::Usage,
            format!("{source} {url:?} is no OTLP endpoint: {why}"),
            "give a URL such as http://127.0.0.1:4317 (gRPC) or http://127.0.0.1:4318/v1/traces (HTTP)",
        )
    };
    if url.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(bad("there is white space in it"));
    }
    let parsed = Url::parse(&url).map_err(|error| bad(&error.to_string()))?;
    if !matches!(parsed.scheme(), "http" | "https") {
        return Err(bad("the scheme must be http or https"));
    }
    Ok((url, parsed))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(flag: Option<&str>, vars: &[(&str, &str)]) -> Result<Option<(String, Protocol)>, String> {
        let env = |name: &str| vars.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        resolve(flag, env)
            .map(|endpoint| endpoint.map(|endpoint| (endpoint.url, endpoint.protocol)))
            .map_err(|failure| failure.what)
    }

    fn ok(flag: Option<&str>, vars: &[(&str, &str)]) -> (String, Protocol) {
        resolved(flag, vars).unwrap().unwrap()
    }

    #[test]
    fn nothing_asked_for_is_nothing() {
        assert_eq!(resolved(None, &[]), Ok(None));
        assert_eq!(resolved(None, &[("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")]), Ok(None));
        assert_eq!(resolved(None, &[(ENDPOINT, "http://c:4317"), ("OTEL_TRACES_EXPORTER", "none")]), Ok(None));
        assert_eq!(resolved(None, &[(ENDPOINT, "http://c:4317"), ("OTEL_SDK_DISABLED", "true")]), Ok(None));
        assert_eq!(resolved(None, &[("OTEL_SDK_DISABLED", "true"), (EXPORTER, "console")]), Ok(None));
    }

    #[test]
    fn the_flag_is_grpc_unless_path_port_or_variable_say_http() {
        assert_eq!(ok(Some("http://h:4317"), &[]), ("http://h:4317".into(), Protocol::Grpc));
        assert_eq!(ok(Some("https://h:4317"), &[]), ("https://h:4317".into(), Protocol::Grpc));
        assert_eq!(ok(Some("h:4317"), &[]), ("http://h:4317".into(), Protocol::Grpc));
        assert_eq!(ok(Some("http://h:4318"), &[]), ("http://h:4318/v1/traces".into(), Protocol::HttpProtobuf));
        assert_eq!(ok(Some("http://[::1]:4318/"), &[]), ("http://[::1]:4318/v1/traces".into(), Protocol::HttpProtobuf));
        assert_eq!(ok(Some("http://h:80/v1/traces"), &[]), ("http://h:80/v1/traces".into(), Protocol::HttpProtobuf));
        assert_eq!(ok(Some("http://h/otlp"), &[]), ("http://h/otlp/v1/traces".into(), Protocol::HttpProtobuf));
        assert_eq!(
            ok(Some("http://h:4317"), &[(PROTOCOL, "http/protobuf")]),
            ("http://h:4317/v1/traces".into(), Protocol::HttpProtobuf)
        );
        assert_eq!(ok(Some("http://h:4318"), &[(PROTOCOL, "grpc")]).1, Protocol::Grpc);
        assert_eq!(ok(Some("http://h/v1/traces"), &[(PROTOCOL, "grpc")]).1, Protocol::HttpProtobuf);
    }

    #[test]
    fn the_variables_turn_export_on_without_the_flag() {
        assert_eq!(ok(None, &[(ENDPOINT, "http://c:4317")]), ("http://c:4317".into(), Protocol::Grpc));
        assert_eq!(
            ok(None, &[(ENDPOINT, "http://c:9/base"), (PROTOCOL, "http/protobuf")]),
            ("http://c:9/base/v1/traces".into(), Protocol::HttpProtobuf)
        );
        let signal = [
            (ENDPOINT, "http://c:1"),
            (TRACES_ENDPOINT, "http://d:2/in"),
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf"),
        ];
        assert_eq!(ok(None, &signal), ("http://d:2/in".into(), Protocol::HttpProtobuf));
        assert_eq!(ok(Some("http://e:4317"), &[(ENDPOINT, "http://c:1")]).0, "http://e:4317");
    }

    #[test]
    fn the_exporter_by_name_alone_is_the_specifications_endpoint() {
        assert_eq!(ok(None, &[(EXPORTER, "otlp")]), ("http://localhost:4317".into(), Protocol::Grpc));
        let http = [(EXPORTER, "otlp"), (PROTOCOL, "http/protobuf")];
        assert_eq!(ok(None, &http), ("http://localhost:4318/v1/traces".into(), Protocol::HttpProtobuf));
        for other in ["console", "zipkin", "otlp,console"] {
            assert!(resolved(None, &[(EXPORTER, other), (ENDPOINT, "http://c:1")]).unwrap_err().contains(other));
            assert!(resolved(Some("http://h:4317"), &[(EXPORTER, other)]).is_ok());
        }
    }

    #[test]
    fn an_endpoint_without_a_scheme_is_plain_unless_insecure_is_false() {
        const INSECURE: &str = "OTEL_EXPORTER_OTLP_INSECURE";
        assert_eq!(ok(None, &[(ENDPOINT, "c:4317"), (INSECURE, "true")]).0, "http://c:4317");
        assert_eq!(ok(None, &[(ENDPOINT, "c:4317"), (INSECURE, "False")]).0, "https://c:4317");
        assert_eq!(ok(None, &[(ENDPOINT, "http://c:4317"), (INSECURE, "false")]).0, "http://c:4317");
        assert!(resolved(None, &[(ENDPOINT, "c:4317"), (INSECURE, "no")]).unwrap_err().contains(INSECURE));
    }

    #[test]
    fn what_cannot_work_is_refused_with_the_reason() {
        for (url, why) in [
            ("ftp://h", "scheme"),
            ("http://", "empty host"),
            ("http://:4317", "empty host"),
            ("http://h:port", "port"),
            ("http://a b", "white space"),
        ] {
            let what = resolved(Some(url), &[]).unwrap_err();
            assert!(what.contains(why), "{url}: {what}");
        }
        assert!(resolved(Some("http://h"), &[(PROTOCOL, "http/json")]).unwrap_err().contains("http/json"));
    }
}
