//! The live view: a page, what it reads, and the same as Jaeger's query API tells it.
//!
//! Enters: a store that is being filled ([`Kept`]) and the tracer's own account. Leaves: answers to GETs, bounded by the store and by the
//! `limit` that was asked for. Invariant: an answer is made off the core's thread, and the store is locked no longer than it takes to
//! copy what the answer is made of. No answer runs anything in a browser but this page's own files ([`POLICY`]), and no other site's
//! scripts may read one: there is no CORS header.
//!
//! `/` is the page, `/ui/NAME` its files, `/ui/api/…` what it reads (`inferspan.ui/1`), `/api/…` Jaeger's API.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyper::StatusCode;
use hyper::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, HeaderValue, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use hyper::http::request::Parts;
use serde_json::{Value, json};

use self::query::Query;
use crate::export::kept::Kept;
use crate::export::otlp::spans::Origin;
use crate::sanitise;
use crate::serve::address::Known;
use crate::serve::{Made, Manners, Pages, Response, Server, answer};
use crate::store::now::Now;
use crate::telemetry::Telemetry;

pub mod flags;
mod jaeger;
mod overview;
mod page;
mod query;
mod request;
pub mod requests;
pub mod spans;
mod steps;

/// What examples name; nothing else known listens there.
const PORT: u16 = 9465;

const MANNERS: Manners = Manners {
    known: Known { flag: "--ui", what: "the live view", port: PORT },
    keeps_alive: true,
    // A page asks every second, or every few when nobody looks at it.
    header_timeout: Duration::from_secs(15),
    lifetime: Duration::from_mins(5),
    made: Made::Apart,
};

/// Nothing is loaded but the page's own files, and nobody frames it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
const JSON: &str = "application/json";
/// Version of what the page reads.
const SCHEMA: &str = "inferspan.ui/1";

/// What time it is for the view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Time {
    /// The host's, in a run on it.
    Wall,
    /// When the newest thing that is kept ended: of a file.
    Newest,
}

/// What is shown.
#[derive(Debug, Clone)]
pub struct Shown {
    pub kept: Kept,
    pub telemetry: Arc<Telemetry>,
    pub origin: Origin,
    pub time: Time,
    /// Most spans of a step's trace.
    pub max_spans: usize,
}

/// A view that is being served; ends when dropped.
#[derive(Debug)]
pub struct Ui(Server);

impl Ui {
    /// Binds `address` and serves the view from threads of its own.
    pub fn start(address: &str, shown: Shown) -> anyhow::Result<Self> {
        Server::start(address, MANNERS, Arc::new(shown)).map(Self)
    }

    pub fn address(&self) -> SocketAddr {
        self.0.address()
    }

    /// As a user is told of it.
    pub fn told(&self) -> String {
        format!("live view at http://{}/", self.address())
    }
}

impl Pages for Shown {
    fn answer(&self, request: &Parts) -> Response {
        let (path, query) = (request.uri.path(), Query::of(request));
        let path: Vec<&str> = path.split('/').skip(1).collect();
        match path[..] {
            ["" | "ui"] | ["ui", ""] => file("index.html"),
            ["ui", "api", "overview"] => own(Ok(self.overview())),
            ["ui", "api", "requests"] => own(self.requests(&query)),
            ["ui", "api", "request", trace, span] => match self.request(trace, span) {
                Some(found) => own(Ok(found)),
                None => refused(StatusCode::NOT_FOUND, "no such request is kept"),
            },
            ["ui", "api", "steps"] => own(self.steps(&query)),
            ["ui", "api", ..] => refused(StatusCode::NOT_FOUND, "no such part of the API is here"),
            ["ui", ..] => file(request.uri.path().trim_start_matches("/ui/")),
            ["api", ref path @ ..] => jaeger::respond(self, path, &query),
            _ => refused(StatusCode::NOT_FOUND, "nothing is here"),
        }
    }

    fn is_ready(&self, request: &Parts) -> bool {
        let shows_open = ["/ui/api/overview", "/ui/api/requests"].contains(&request.uri.path());
        !shows_open || self.time == Time::Newest || self.kept.is_fresh()
    }

    fn finish(&self, response: &mut Response) {
        let headers = response.headers_mut();
        headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
        headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
}

impl Shown {
    /// A run on this host.
    pub fn live(kept: Kept, telemetry: Arc<Telemetry>, max_spans: usize) -> Self {
        Self { kept, telemetry, origin: Origin::of_this_process(true), time: Time::Wall, max_spans }
    }

    /// What is open; of a file nothing is. `None` where that is not known.
    fn open_now(&self) -> Option<Arc<Now>> {
        match self.time {
            Time::Wall => self.kept.now(),
            Time::Newest => Some(Arc::default()),
        }
    }

    /// Unix ns.
    fn now_ns(&self, newest_ns: u64) -> u64 {
        match self.time {
            Time::Newest => newest_ns,
            Time::Wall => {
                let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
            }
        }
    }
}

fn file(name: &str) -> Response {
    match page::file(name) {
        Some(file) => answer(StatusCode::OK, file.content_type, file.bytes),
        None => refused(StatusCode::NOT_FOUND, "the page has no such file"),
    }
}

/// A document of ours.
fn own(document: Result<Value, String>) -> Response {
    match document {
        Ok(mut document) => {
            document["schema"] = json!(SCHEMA);
            told(StatusCode::OK, &document)
        }
        Err(why) => refused(StatusCode::BAD_REQUEST, &why),
    }
}

fn refused(status: StatusCode, why: &str) -> Response {
    told(status, &json!({"schema": SCHEMA, "error": why}))
}

/// JSON, which a person may read in a terminal.
fn told(status: StatusCode, document: &Value) -> Response {
    answer(status, JSON, sanitise::json(&document.to_string()).into_owned())
}

/// Times on the wall clock do not fit a double, which JSON's numbers are in a browser.
fn ns(at: u64) -> Value {
    Value::String(at.to_string())
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}
