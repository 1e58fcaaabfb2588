//! The scrape endpoint: `/metrics` and `/healthz` over HTTP/1, from a thread of its own.
//!
//! Binds loopback unless a host is named. Bounded: [`MAX_CONNECTIONS`] at a time (more wait in the kernel's backlog), each for one
//! request, with a time-out for its headers and one for its whole life: a peer that sends or reads nothing holds no slot for long.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, ToSocketAddrs as _};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::{Semaphore, oneshot};

use super::{Exposition, text};
use crate::exit::{Code, Failure};

/// Scrapers that are served at a time; Prometheus needs one.
const MAX_CONNECTIONS: usize = 32;

/// For the request's headers.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// For a whole connection.
const LIFETIME: Duration = Duration::from_secs(30);

/// A running endpoint; ends when dropped.
#[derive(Debug)]
pub struct MetricsServer {
    address: SocketAddr,
    _stop: oneshot::Sender<()>,
}

impl MetricsServer {
    /// Binds `address` and serves `exposition` from a new thread.
    pub fn start(address: &str, exposition: Exposition) -> anyhow::Result<Self> {
        let listener = bind(address)?;
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        std::thread::Builder::new().name("inferspan-http".into()).spawn(move || {
            runtime.block_on(async move {
                tokio::select! {
                    () = serve(listener, exposition) => {}
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

fn bind(address: &str) -> Result<TcpListener, Failure> {
    TcpListener::bind(&parse(address)?[..]).map_err(|error| {
        let fix = match error.kind() {
            std::io::ErrorKind::AddrInUse => {
                "another process listens there (perhaps another inferspan); choose another port, or 0 for a free one"
            }
            std::io::ErrorKind::PermissionDenied => "ports below 1024 need CAP_NET_BIND_SERVICE; choose another port",
            _ => "choose an address of this host",
        };
        Failure::new(Code::Finding, format!("cannot listen for metrics on {address}: {error}"), fix)
    })
}

async fn serve(listener: TcpListener, exposition: Exposition) {
    // Only fails when the runtime has no I/O driver, and it has.
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors, or the peer went away: try again, but do not spin.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let exposition = exposition.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let response = respond(&request, &exposition);
                async move { Ok::<_, Infallible>(response) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .keep_alive(false)
                .header_read_timeout(HEADER_TIMEOUT)
                .max_buf_size(16 * 1024)
                .serve_connection(TokioIo::new(stream), service);
            // A peer that breaks off a scrape is its own problem.
            let _ = tokio::time::timeout(LIFETIME, connection).await;
            drop(slot);
        });
    }
}

fn respond(request: &Request<Incoming>, exposition: &Exposition) -> Response<Full<Bytes>> {
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
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let failure = bind(&taken.local_addr().unwrap().to_string()).unwrap_err();
        assert!(failure.what.contains("in use"), "{failure}");
        assert!(failure.fix.contains("another port"), "{failure}");
    }
}
