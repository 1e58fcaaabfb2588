//! The scrape endpoint: `/metrics` and `/healthz` over HTTP/1, from a thread of its own.
//!
//! Binds loopback unless a host is named; there, only requests for a name of loopback are answered, or a web page could read it by a name
//! of its own that it lets lead here. Bounded: [`MAX_CONNECTIONS`] at a time, each for one request, with a time-out for its headers and one
//! for its whole life. A connection over that takes the place of the one that has waited longest without asking, so that clients that say
//! nothing, however many, keep no scrape out.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, ALLOW, CONTENT_TYPE, HOST, HeaderValue};
use hyper::http::uri::Authority;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, Version};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::oneshot;

use super::connections::Connections;
use super::{Exposition, text};
use crate::exit::{Code, Failure};

/// The port that README, help and `deploy/` name: that of OpenTelemetry's Prometheus exporters.
pub const PORT: u16 = 9464;

/// Clients that are waited for at a time; Prometheus needs one. A quarter of the descriptors that a process may have by default.
const MAX_CONNECTIONS: usize = 256;

/// Clients that the kernel holds until they are accepted. Linux takes no more by default (`net.core.somaxconn`).
const BACKLOG: u32 = 4096;

/// For the request's headers, which a scraper sends at once.
const HEADER_TIMEOUT: Duration = Duration::from_secs(2);

/// For a whole connection; Prometheus gives a scrape 10 s by default.
const LIFETIME: Duration = Duration::from_secs(10);

/// A running endpoint; ends when dropped.
#[derive(Debug)]
pub struct MetricsServer {
    address: SocketAddr,
    _stop: oneshot::Sender<()>,
}

impl MetricsServer {
    /// Binds `address` and serves `exposition` from a new thread.
    pub fn start(address: &str, exposition: Exposition) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = {
            let _context = runtime.enter();
            bind(address)?
        };
        let address = listener.local_addr()?;
        let (stop, stopped) = oneshot::channel();
        std::thread::Builder::new().name("inferspan-http".into()).spawn(move || {
            runtime.block_on(async move {
                tokio::select! {
                    () = serve(listener, address.ip(), exposition) => {}
                    _ = stopped => {}
                }
            });
        })?;
        Ok(Self { address, _stop: stop })
    }

    /// The bound address; tells the port when 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// `9464`, `:9464`, `host:9464`, `[::1]:9464`.
fn parse(address: &str) -> Result<Vec<SocketAddr>, Failure> {
    let bad = |why: String| {
        Failure::new(
            Code::Usage,
            format!("--metrics {address:?} is no address to listen on: {why}"),
            "give a port (9464) or host:port (127.0.0.1:9464, 0.0.0.0:9464, [::1]:9464)",
        )
    };
    let port_only = address.strip_prefix(':').unwrap_or(address);
    if let Ok(port) = port_only.parse::<u16>() {
        return Ok(vec![(Ipv4Addr::LOCALHOST, port).into()]);
    }
    let addresses: Vec<SocketAddr> = address.to_socket_addrs().map_err(|error| bad(error.to_string()))?.collect();
    if addresses.is_empty() { Err(bad("the host has no address".to_owned())) } else { Ok(addresses) }
}

/// Inside a runtime.
fn bind(address: &str) -> Result<TcpListener, Failure> {
    let mut last = None;
    for candidate in parse(address)? {
        match listen(candidate) {
            Ok(listener) => return Ok(listener),
            Err(error) => last = Some(error),
        }
    }
    let error = last.unwrap_or_else(|| std::io::ErrorKind::AddrNotAvailable.into());
    let fix = match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            "another process listens there (perhaps another inferspan); choose another port, or 0 for a free one"
        }
        std::io::ErrorKind::PermissionDenied => "ports below 1024 need CAP_NET_BIND_SERVICE; choose another port",
        _ => "choose an address of this host",
    };
    Err(Failure::new(Code::Finding, format!("cannot listen for metrics on {address}: {error}"), fix))
}

fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Whom requests are answered for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Names {
    /// Bound to loopback: its names alone.
    Loopback,
    Any,
}

async fn serve(listener: TcpListener, bound: IpAddr, exposition: Exposition) {
    let names = if bound.to_canonical().is_loopback() { Names::Loopback } else { Names::Any };
    let open = Arc::new(Mutex::new(Connections::new(MAX_CONNECTIONS)));
    loop {
        // The rest waits in the backlog meanwhile.
        let wait = lock(&open).make_room(Instant::now());
        if let Some(wait) = wait {
            tokio::time::sleep(wait).await;
            continue;
        }
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors, or the peer went away: make room, try again, but do not spin.
            lock(&open).close_one(Instant::now());
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let (exposition, its) = (exposition.clone(), Arc::clone(&open));
        // Held until the task is listed: it must not end before.
        let mut all = lock(&open);
        let number = all.next();
        let task = tokio::spawn(async move {
            // A peer that breaks off a scrape is its own problem.
            let _ = tokio::time::timeout(LIFETIME, converse(stream, names, &exposition, &its, number)).await;
            lock(&its).ended(number);
        });
        all.opened(number, task.abort_handle(), Instant::now());
    }
}

/// One request, and its answer.
async fn converse(
    stream: TcpStream,
    names: Names,
    exposition: &Exposition,
    open: &Mutex<Connections>,
    number: u64,
) -> hyper::Result<()> {
    let service = service_fn(|request| {
        lock(open).asked(number);
        let response = respond(&request, names, exposition);
        async move { Ok::<_, Infallible>(response) }
    });
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .keep_alive(false)
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

/// The list is whole at every unlock, so a panic elsewhere does not spoil it.
fn lock(open: &Mutex<Connections>) -> MutexGuard<'_, Connections> {
    open.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a request is for a name of this machine's loopback; one of HTTP/1.0 may name nobody.
fn is_for_loopback(request: &Request<Incoming>) -> bool {
    let named = request.uri().authority().map(Authority::as_str);
    let header = || request.headers().get(HOST).map(|host| host.to_str().unwrap_or_default());
    match named.or_else(header) {
        Some(name) => is_loopback_name(name),
        None => request.version() <= Version::HTTP_10,
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

fn respond(request: &Request<Incoming>, names: Names, exposition: &Exposition) -> Response<Full<Bytes>> {
    if names == Names::Loopback && !is_for_loopback(request) {
        let said = "inferspan answers here for localhost, 127.0.0.1 and [::1] alone, and this request is for another name; \
                    to be reached by one, start it with --metrics HOST:PORT\n";
        return answer(StatusCode::MISDIRECTED_REQUEST, "text/plain; charset=utf-8", said.into());
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = answer(StatusCode::METHOD_NOT_ALLOWED, text::PLAIN, "only GET and HEAD\n".into());
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match request.uri().path() {
        "/metrics" => {
            let Ok(openmetrics) = exposition.openmetrics() else {
                return answer(StatusCode::INTERNAL_SERVER_ERROR, text::PLAIN, "the metrics did not encode\n".into());
            };
            let accept = request.headers().get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
            if text::wants_openmetrics(&accept.collect::<Vec<_>>().join(",")) {
                answer(StatusCode::OK, text::OPENMETRICS, openmetrics)
            } else {
                answer(StatusCode::OK, text::PLAIN, text::plain(&openmetrics))
            }
        }
        "/healthz" => answer(StatusCode::OK, "text/plain; charset=utf-8", "ok\n".into()),
        _ => answer(StatusCode::NOT_FOUND, "text/plain; charset=utf-8", "try /metrics or /healthz\n".into()),
    }
}

fn answer(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_alone_is_loopback() {
        assert_eq!(parse("9464").unwrap(), ["127.0.0.1:9464".parse().unwrap()]);
        assert_eq!(parse(":9464").unwrap(), ["127.0.0.1:9464".parse().unwrap()]);
        assert_eq!(parse("[::1]:9464").unwrap(), ["[::1]:9464".parse().unwrap()]);
        assert_eq!(parse("0.0.0.0:9464").unwrap(), ["0.0.0.0:9464".parse().unwrap()]);
    }

    #[test]
    fn what_is_no_address_is_a_usage_error() {
        for address in ["", "port", "70000", "127.0.0.1", "host:"] {
            assert_eq!(parse(address).unwrap_err().code, Code::Usage, "{address}");
        }
    }

    #[test]
    fn an_address_in_use_says_so_and_what_to_do() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let _context = runtime.enter();
        let failure = bind(&taken.local_addr().unwrap().to_string()).unwrap_err();
        assert!(failure.what.contains("in use"), "{failure}");
        assert!(failure.fix.contains("another port"), "{failure}");
    }

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
