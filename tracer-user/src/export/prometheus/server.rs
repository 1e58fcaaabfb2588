//! The scrape endpoint: `/metrics` and `/healthz`, served as [`crate::serve`] does it, one request a connection.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use hyper::header::ACCEPT;
use hyper::http::request::Parts;

use super::{Exposition, text};
use crate::serve::address::Known;
use crate::serve::{self, Made, Manners, Pages, Response, Server, answer};

/// The port that README, help and `deploy/` name: that of OpenTelemetry's Prometheus exporters.
pub const PORT: u16 = 9464;

const MANNERS: Manners = Manners {
    known: Known { flag: "--metrics", what: "metrics", port: PORT },
    keeps_alive: false,
    // A scraper sends them at once.
    header_timeout: Duration::from_secs(2),
    // Prometheus gives a scrape 10 s by default.
    lifetime: Duration::from_secs(10),
    made: Made::Here,
};

/// A running endpoint; ends when dropped.
#[derive(Debug)]
pub struct MetricsServer(Server);

impl MetricsServer {
    /// Binds `address` and serves `exposition` from a new thread.
    pub fn start(address: &str, exposition: Exposition) -> anyhow::Result<Self> {
        Server::start(address, MANNERS, Arc::new(exposition)).map(Self)
    }

    /// The bound address; tells the port when 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.0.address()
    }
}

impl Pages for Exposition {
    fn answer(&self, request: &Parts) -> Response {
        match request.uri.path() {
            "/metrics" => {
                let Ok(openmetrics) = self.openmetrics() else {
                    return answer(StatusCode::INTERNAL_SERVER_ERROR, text::PLAIN, "the metrics did not encode\n");
                };
                let accept = request.headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
                if text::wants_openmetrics(&accept.collect::<Vec<_>>().join(",")) {
                    answer(StatusCode::OK, text::OPENMETRICS, openmetrics)
                } else {
                    answer(StatusCode::OK, text::PLAIN, text::plain(&openmetrics))
                }
            }
            "/healthz" => answer(StatusCode::OK, serve::PLAIN, "ok\n"),
            _ => answer(StatusCode::NOT_FOUND, serve::PLAIN, "try /metrics or /healthz\n"),
        }
    }
}
