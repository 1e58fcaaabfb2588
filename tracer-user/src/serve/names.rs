//! For whom requests are answered.
//!
//! Bound to loopback, only requests for a name of loopback are, or a web page could read what is served by a name of its own that it lets
//! lead here (DNS rebinding).

use std::net::{IpAddr, Ipv4Addr};

use hyper::Version;
use hyper::header::HOST;
use hyper::http::request::Parts;
use hyper::http::uri::Authority;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Names {
    /// Bound to loopback: its names alone.
    Loopback,
    Any,
}

impl Names {
    pub(super) fn of(bound: IpAddr) -> Self {
        if bound.to_canonical().is_loopback() { Self::Loopback } else { Self::Any }
    }

    pub(super) fn has(self, request: &Parts) -> bool {
        self == Self::Any || is_for_loopback(request)
    }
}

/// Whether a request is for a name of this machine's loopback; one of HTTP/1.0 may name nobody.
fn is_for_loopback(request: &Parts) -> bool {
    let named = request.uri.authority().map(Authority::as_str);
    let header = || request.headers.get(HOST).map(|host| host.to_str().unwrap_or_default());
    match named.or_else(header) {
        Some(name) => is_loopback_name(name),
        None => request.version <= Version::HTTP_10,
    }
}

/// `localhost`, an address of 127.0.0.0/8, or `[::1]`; with any port, or none.
fn is_loopback_name(name: &str) -> bool {
    let (host, port) = match name.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port),
        _ => (name, "0"),
    };
    let is_name = host.eq_ignore_ascii_case("localhost")
        || host == "[::1]"
        || host.parse::<Ipv4Addr>().is_ok_and(|address| address.is_loopback());
    is_name && port.parse::<u16>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_loopback_are_told_from_names_that_may_lead_there() {
        for name in ["localhost", "LOCALHOST:9464", "127.0.0.1", "127.0.0.1:9464", "127.9.9.9:1", "[::1]", "[::1]:9464"]
        {
            assert!(is_loopback_name(name), "{name}");
        }
        for name in [
            "",
            ":9464",
            "evil.example",
            "localhost.evil.example:9464",
            "127.0.0.1.evil.example",
            "10.0.0.1:9464",
            "::1",
        ] {
            assert!(!is_loopback_name(name), "{name}");
        }
    }
}
