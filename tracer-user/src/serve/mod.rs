//! Serves pages over HTTP/1, from a thread of its own.
//!
//! Enters: an address, [`Manners`], and whoever makes the answers. Leaves: a [`Server`], which ends when dropped. Binds loopback unless a
//! host is named; there, only requests for a name of loopback are answered ([`names`]). Only GET and HEAD are. Bounded:
//! [`MAX_CONNECTIONS`] at a time, with a time-out for headers and one for the whole life of a connection. A connection over that takes the
//! place of the one that has waited longest without asking, so that clients that say nothing, however many, keep nobody out.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::http::request::Parts;
use hyper::service::service_fn;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot};

use self::address::{Known, bind};
use self::connections::Connections;
use self::names::Names;

pub mod address;
mod connections;
mod names;

/// Clients that are waited for at a time. A quarter of the descriptors that a process may have by default.
const MAX_CONNECTIONS: usize = 256;
/// Answers that are made at a time, of those that take long.
const MAKERS: usize = 2;
/// An answer waits so long for what it is made of, and is then made of what there is: a run looks at what is open within half a second.
const PATIENCE: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(20);
/// Of a request's head, bytes.
const MAX_HEAD: usize = 16 * 1024;

pub const PLAIN: &str = "text/plain; charset=utf-8";

pub type Response = hyper::Response<Full<Bytes>>;

/// Makes answers.
pub trait Pages: Send + Sync + 'static {
    /// To a GET, or a HEAD, whose answer's body does not leave.
    fn answer(&self, request: &Parts) -> Response;

    /// Whether what the answer is made of is there; asks for it where it is not.
    fn is_ready(&self, _request: &Parts) -> bool {
        true
    }

    /// Puts on every answer, of whoever made it, what all of them have.
    fn finish(&self, _response: &mut Response) {}
}

/// How connections are dealt with.
#[derive(Debug, Clone, Copy)]
pub struct Manners {
    pub known: Known,
    /// A connection may ask more than once.
    pub keeps_alive: bool,
    /// For a request's headers, and until the next request.
    pub header_timeout: Duration,
    /// For a whole connection.
    pub lifetime: Duration,
    pub made: Made,
}

/// Where answers are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Made {
    /// On the thread that serves: they are quick.
    Here,
    /// On another, so that one that takes long keeps no other waiting.
    Apart,
}

/// A running server; ends when dropped.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    _stop: oneshot::Sender<()>,
}

impl Server {
    /// Binds `address` and serves `pages` from a new thread.
    pub fn start(address: &str, manners: Manners, pages: Arc<dyn Pages>) -> anyhow::Result<Self> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(MAKERS).build()?;
        let listener = {
            let _context = runtime.enter();
            bind(address, manners.known)?
        };
        let address = listener.local_addr()?;
        let (stop, stopped) = oneshot::channel();
        let makers = Arc::new(Semaphore::new(MAKERS));
        let host = Host { pages, names: Names::of(address.ip()), manners, makers };
        std::thread::Builder::new().name("inferspan-http".into()).spawn(move || {
            runtime.block_on(async move {
                tokio::select! {
                    () = serve(listener, host) => {}
                    _ = stopped => {}
                }
            });
            // An answer that is being made is nobody's any more.
            runtime.shutdown_background();
        })?;
        Ok(Self { address, _stop: stop })
    }

    /// The bound address; tells the port when 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Who answers, and how.
#[derive(Clone)]
struct Host {
    pages: Arc<dyn Pages>,
    names: Names,
    manners: Manners,
    /// One permit a thread that makes answers: who asks waits for one here, where it is forgotten with its connection, and not in the
    /// runtime's own queue, which has no end.
    makers: Arc<Semaphore>,
}

async fn serve(listener: TcpListener, host: Host) {
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
        let (host, its) = (host.clone(), Arc::clone(&open));
        // Held until the task is listed: it must not end before.
        let mut all = lock(&open);
        let number = all.next();
        let task = tokio::spawn(async move {
            // A peer that breaks off is its own problem.
            let _ = tokio::time::timeout(host.manners.lifetime, converse(stream, &host, &its, number)).await;
            lock(&its).ended(number);
        });
        all.opened(number, task.abort_handle(), Instant::now());
    }
}

/// The requests of a connection, and their answers.
async fn converse(stream: TcpStream, host: &Host, open: &Mutex<Connections>, number: u64) -> hyper::Result<()> {
    let service = service_fn(|request: Request<Incoming>| {
        lock(open).asked(number);
        let (parts, _) = request.into_parts();
        async move { Ok::<_, Infallible>(respond(parts, host).await) }
    });
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .keep_alive(host.manners.keeps_alive)
        .header_read_timeout(host.manners.header_timeout)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

/// The list is whole at every unlock, so a panic elsewhere does not spoil it.
fn lock(open: &Mutex<Connections>) -> MutexGuard<'_, Connections> {
    open.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn respond(request: Parts, host: &Host) -> Response {
    let Host { pages, names, manners, .. } = host;
    let mut response = if !names.has(&request) {
        let said = format!(
            "inferspan answers here for localhost, 127.0.0.1 and [::1] alone, and this request is for another name; \
             to be reached by one, start it with {} HOST:PORT\n",
            manners.known.flag
        );
        answer(StatusCode::MISDIRECTED_REQUEST, PLAIN, said)
    } else if !matches!(request.method, Method::GET | Method::HEAD) {
        let mut response = answer(StatusCode::METHOD_NOT_ALLOWED, PLAIN, "only GET and HEAD\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        response
    } else {
        match manners.made {
            Made::Here => pages.answer(&request),
            Made::Apart => made_apart(request, host).await,
        }
    };
    pages.finish(&mut response);
    response
}

/// An answer that may take long, on a thread that makes such.
async fn made_apart(request: Parts, host: &Host) -> Response {
    let since = Instant::now();
    // Before a maker is taken, so that others have their answers meanwhile.
    while !host.pages.is_ready(&request) && since.elapsed() < PATIENCE {
        tokio::time::sleep(POLL).await;
    }
    let made = match Arc::clone(&host.makers).acquire_owned().await {
        Ok(permit) => {
            let pages = Arc::clone(&host.pages);
            let make = move || {
                let _permit = permit;
                pages.answer(&request)
            };
            tokio::task::spawn_blocking(make).await.ok()
        }
        Err(_) => None,
    };
    made.unwrap_or_else(|| answer(StatusCode::INTERNAL_SERVER_ERROR, PLAIN, "the answer could not be made\n"))
}

pub fn answer(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
