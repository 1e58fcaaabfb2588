//! The API server: one event loop that speaks HTTP, with a thread for tokenising and libzmq's for the engine.
//!
//! Like uvicorn on uvloop: every socket's bytes are read and written by the main thread, one `write` a chunk; a request
//! is answered before the next one of its connection is begun; a client that goes away aborts what it asked for.

mod answers;

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::engine::Client;
use crate::generation::Generation;
use crate::http::{self, Parsed, Request};
use crate::metrics::Metrics;
use crate::openai::{self, Choice, Identity, Kind, Plan, Prompt, Usage};
use crate::scheduler::Limits;
use crate::sys::{self, Poller, Wake};
use crate::tokenizer::Tokenizer;
use crate::trouble::{self, Decoder, Troubles};
use crate::wire;
use crate::zmtp::{Delivery, Endpoint, Io, Socket};

/// What an API server is told at start.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Config {
    pub index: usize,
    pub servers: usize,
    pub client: Client,
    pub model: String,
    pub limits: Limits,
    /// Descriptor of the shared metrics.
    pub metrics_fd: i32,
    /// Descriptor of the listening socket.
    pub listener_fd: i32,
    /// vLLM's `--enable-prompt-tokens-details`.
    pub prompt_tokens_details: bool,
    /// Of each client's connection, bytes; `None`: the kernel's own.
    pub send_buffer: Option<u32>,
    /// A library that is called for each message that is taken up.
    pub decoder: Option<PathBuf>,
    pub troubles: Troubles,
}

/// vLLM's VLLM_HTTP_TIMEOUT_KEEP_ALIVE.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// uvloop's read buffer.
const READ: usize = 256_000;
const LISTENER: u64 = 0;
const WAKE: u64 = 1;
const FIRST_CONNECTION: u64 = 16;
/// The ROUTER; the PULL is the other socket.
const INPUT: usize = 0;

enum Event {
    Engine(Delivery),
    /// The pool thread is done with a request.
    Tokenized(Box<Tokenized>),
}

struct Tokenized {
    connection: u64,
    identity: Identity,
    base_id: String,
    plan: Plan,
    prompts: Vec<Vec<u32>>,
    arrival: f64,
    keep_alive: bool,
}

struct Connection {
    socket: File,
    peer: SocketAddr,
    input: Vec<u8>,
    output: VecDeque<Vec<u8>>,
    blocked: bool,
    /// A request is being answered.
    busy: bool,
    close: bool,
    idle: Option<Instant>,
    continued: bool,
}

/// A request that the engine works on.
struct Active {
    connection: u64,
    identity: Identity,
    stream: bool,
    include_usage: bool,
    keep_alive: bool,
    opened: bool,
    choices: Vec<Choice>,
    vectors: Vec<Vec<f32>>,
    usage: Usage,
    /// Unfinished engine requests, one list a prompt.
    live: Vec<Vec<String>>,
}

struct Server {
    config: Config,
    poller: Poller,
    listener: TcpListener,
    connections: HashMap<u64, Connection>,
    active: HashMap<u64, Active>,
    generations: HashMap<String, Generation>,
    next: u64,
    io: Io,
    pool: Sender<Box<Tokenized>>,
    tokenizer: Arc<Tokenizer>,
    metrics: Metrics,
    decoder: Option<Decoder>,
}

/// Serves until `stop`, or until the engine is gone.
pub fn run(config: Config, listener: TcpListener, stop: &AtomicBool, announce: impl Fn()) -> anyhow::Result<()> {
    let (events, incoming) = channel();
    let wake = Arc::new(Wake::new()?);
    let bind = |path| UnixListener::bind(path).context("an ipc endpoint");
    let sockets = vec![
        Socket { kind: "ROUTER", identity: Some(Vec::new()), endpoint: Endpoint::Bind(bind(&config.client.input)?) },
        Socket { kind: "PULL", identity: None, endpoint: Endpoint::Bind(bind(&config.client.output)?) },
    ];
    let (from_engine, woken) = (events.clone(), Arc::clone(&wake));
    let io = Io::start("ZMQbg/IO/1", sockets, move |delivery| {
        let sent = from_engine.send(Event::Engine(delivery)).is_ok();
        woken.signal();
        sent
    })?;
    let tokenizer = Arc::new(Tokenizer::default());
    let (pool, jobs) = channel();
    let (vocabulary, woken, troubles) = (Arc::clone(&tokenizer), Arc::clone(&wake), config.troubles);
    thread::Builder::new()
        .name("vllm".to_owned())
        .spawn(move || tokenize(&jobs, &vocabulary, troubles, &events, &woken))?;
    let poller = Poller::new()?;
    listener.set_nonblocking(true)?;
    poller.add(listener.as_fd(), LISTENER)?;
    poller.add(wake.fd(), WAKE)?;
    let metrics = Metrics::open(config.metrics_fd, config.servers, config.index, &config.model)?;
    let decoder = trouble::decoder(config.decoder.as_deref())?;
    let mut server = Server {
        config,
        poller,
        listener,
        connections: HashMap::new(),
        active: HashMap::new(),
        generations: HashMap::new(),
        next: FIRST_CONNECTION,
        io,
        pool,
        tokenizer,
        metrics,
        decoder,
    };
    while !stop.load(Relaxed) {
        for ready in server.poller.wait(Duration::from_millis(500))? {
            match ready.token {
                LISTENER => server.accept()?,
                WAKE => {
                    wake.drain();
                    if !server.drain(&incoming, &announce) {
                        return Ok(());
                    }
                }
                token => {
                    if ready.writable {
                        server.flush(token);
                    }
                    if ready.readable {
                        server.read(token);
                    }
                }
            }
        }
        server.close_idle();
    }
    Ok(())
}

/// The renderer's pool thread.
fn tokenize(
    jobs: &Receiver<Box<Tokenized>>,
    tokenizer: &Tokenizer,
    troubles: Troubles,
    events: &Sender<Event>,
    wake: &Wake,
) {
    for mut job in jobs {
        troubles.tokenizing(&job.plan);
        job.prompts = job
            .plan
            .prompts
            .iter()
            .map(|prompt| match prompt {
                Prompt::Text(text) => tokenizer.encode(text),
                Prompt::Tokens(tokens) => tokens.clone(),
            })
            .collect();
        if events.send(Event::Tokenized(job)).is_err() {
            return;
        }
        wake.signal();
    }
}

impl Server {
    fn accept(&mut self) -> io::Result<()> {
        let (stream, peer) = match self.listener.accept() {
            Ok(accepted) => accepted,
            // Another API server was faster, or the client is gone already.
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionAborted) => {
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        if let Some(bytes) = self.config.send_buffer {
            sys::set_send_buffer(stream.as_fd(), bytes)?;
        }
        let token = self.next;
        self.next += 1;
        self.poller.add(stream.as_fd(), token)?;
        let connection = Connection {
            // A file reads with read(2) and writes with write(2), as libuv does; a TcpStream would not.
            socket: File::from(OwnedFd::from(stream)),
            peer,
            input: Vec::new(),
            output: VecDeque::new(),
            blocked: false,
            busy: false,
            close: false,
            idle: None,
            continued: false,
        };
        self.connections.insert(token, connection);
        Ok(())
    }

    fn read(&mut self, token: u64) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        let mut bytes = vec![0; READ];
        match connection.socket.read(&mut bytes) {
            Ok(0) => self.disconnect(token),
            Ok(n) => {
                connection.input.extend(&bytes[..n]);
                connection.idle = None;
                self.advance(token);
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(_) => self.disconnect(token),
        }
    }

    /// Begins the next request, if it is all there and nothing is being answered.
    fn advance(&mut self, token: u64) {
        while let Some(connection) = self.connections.get_mut(&token).filter(|connection| !connection.busy) {
            if connection.input.is_empty() {
                return;
            }
            match http::parse(&connection.input) {
                Parsed::More { expects } => {
                    if expects && !connection.continued {
                        connection.continued = true;
                        self.write(token, b"HTTP/1.1 100 Continue\r\n\r\n".to_vec());
                    }
                    return;
                }
                Parsed::Invalid => {
                    connection.close = true;
                    connection.input.clear();
                    self.write(token, http::invalid());
                    return;
                }
                Parsed::Request(request, used) => {
                    connection.input.drain(..used);
                    connection.busy = true;
                    connection.continued = false;
                    self.begin(token, &request);
                }
            }
        }
    }

    fn begin(&mut self, token: u64, request: &Request) {
        let arrival = sys::wall();
        let keep_alive = request.keep_alive;
        if let Some(kind) = Kind::of_path(&request.path) {
            if request.method != "POST" {
                return self.answer(token, request, 405, "{\"detail\":\"Method Not Allowed\"}", "application/json");
            }
            let plan = match openai::plan(kind, &request.body, &self.config.model) {
                Ok(plan) => plan,
                Err(reject) => {
                    return self.answer(token, request, reject.status, &reject.body, "application/json");
                }
            };
            let rid = request.request_id.clone().unwrap_or_else(|| format!("{:016x}", self.random()));
            let base_id = format!("{}-{rid}", kind.prefix());
            let identity =
                Identity { kind, id: base_id.clone(), created: arrival as u64, model: self.config.model.clone() };
            let job =
                Tokenized { connection: token, identity, base_id, plan, prompts: Vec::new(), arrival, keep_alive };
            // The pool thread lives as long as its sender, which is ours.
            let _ = self.pool.send(Box::new(job));
            return;
        }
        let json = "application/json";
        match (request.method.as_str(), request.path.as_str()) {
            ("GET", "/health" | "/ping") => self.answer(token, request, 200, "", json),
            ("GET", "/version") => self.answer(token, request, 200, "{\"version\":\"0.32.0\"}", json),
            ("GET", "/metrics") => {
                let page = self.metrics.render();
                self.answer(token, request, 200, &page, "text/plain; version=1.0.0; charset=utf-8");
            }
            ("GET", "/v1/models") => {
                let body = format!(
                    "{{\"object\":\"list\",\"data\":[{{\"id\":{},\"object\":\"model\",\"created\":{},\"owned_by\":\"vllm\",\
                     \"max_model_len\":{}}}]}}",
                    openai::quote(&self.config.model),
                    arrival as u64,
                    self.config.limits.max_model_len
                );
                self.answer(token, request, 200, &body, json);
            }
            ("POST", "/tokenize") => {
                let prompt = serde_json::from_slice::<serde_json::Value>(&request.body).unwrap_or_default();
                let tokens = self.tokenizer.encode(prompt["prompt"].as_str().unwrap_or_default());
                let body = format!(
                    "{{\"count\":{},\"max_model_len\":{},\"tokens\":{tokens:?},\"token_strs\":null}}",
                    tokens.len(),
                    self.config.limits.max_model_len
                );
                self.answer(token, request, 200, &body, json);
            }
            (_, "/health" | "/ping" | "/version" | "/metrics" | "/v1/models" | "/tokenize") => {
                self.answer(token, request, 405, "{\"detail\":\"Method Not Allowed\"}", json);
            }
            _ => self.answer(token, request, 404, "{\"detail\":\"Not Found\"}", json),
        }
    }

    /// Answers at once, without the engine.
    fn answer(&mut self, token: u64, request: &Request, status: u16, body: &str, content: &str) {
        for part in http::response(status, content, body.as_bytes().to_vec(), request.keep_alive) {
            self.write(token, part);
        }
        self.end(token, &request.path, status, request.keep_alive);
    }

    /// The response is written: the connection is free for the next request.
    fn end(&mut self, token: u64, path: &str, status: u16, keep_alive: bool) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        println!("INFO:     {} - \"{path} HTTP/1.1\" {status}", connection.peer);
        connection.busy = false;
        connection.idle = Some(Instant::now());
        connection.close |= !keep_alive;
        if connection.close && connection.output.is_empty() {
            self.connections.remove(&token);
        }
    }

    /// Messages of the other threads; false when the engine is gone.
    fn drain(&mut self, incoming: &Receiver<Event>, announce: &impl Fn()) -> bool {
        while let Ok(event) = incoming.try_recv() {
            match event {
                Event::Engine(Delivery::Closed(_)) => return false,
                Event::Engine(Delivery::Connected(_)) => {}
                Event::Engine(Delivery::Message(INPUT, _)) => {
                    // The engine's READY: ask what vLLM asks first.
                    let call = self.random();
                    self.io.send(INPUT, wire::encode_utility(self.config.index as u32, call, "get_supported_tasks"));
                }
                Event::Engine(Delivery::Message(_, message)) => self.outputs(&message, announce),
                Event::Tokenized(job) => self.submit(*job),
            }
        }
        // A finished response frees its connection for a pipelined request.
        let waiting: Vec<u64> =
            self.connections.iter().filter(|(_, c)| !c.busy && !c.input.is_empty()).map(|(t, _)| *t).collect();
        for token in waiting {
            self.advance(token);
        }
        true
    }

    /// The client is gone: what it asked for is aborted.
    fn disconnect(&mut self, token: u64) {
        self.connections.remove(&token);
        let gone: Vec<u64> =
            self.active.iter().filter(|(_, active)| active.connection == token).map(|(key, _)| *key).collect();
        for key in gone {
            let Some(active) = self.active.remove(&key) else { continue };
            for ids in active.live.iter().filter(|ids| !ids.is_empty()) {
                for id in ids {
                    self.generations.remove(id);
                }
                self.io.send(INPUT, wire::encode_abort(ids));
            }
        }
    }

    /// One write a chunk, unless the socket is full.
    fn write(&mut self, token: u64, chunk: Vec<u8>) {
        if chunk.is_empty() {
            return;
        }
        if let Some(connection) = self.connections.get_mut(&token) {
            connection.output.push_back(chunk);
            if !connection.blocked {
                self.flush(token);
            }
        }
    }

    fn flush(&mut self, token: u64) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        let mut blocked = false;
        while let Some(chunk) = connection.output.front_mut() {
            match connection.socket.write(chunk) {
                Ok(n) if n == chunk.len() => {
                    connection.output.pop_front();
                }
                Ok(n) => {
                    chunk.drain(..n);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    blocked = true;
                    break;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return self.disconnect(token),
            }
        }
        if blocked != connection.blocked {
            connection.blocked = blocked;
            if self.poller.want_write(connection.socket.as_fd(), token, blocked).is_err() {
                return self.disconnect(token);
            }
        }
        let Some(connection) = self.connections.get(&token) else { return };
        if connection.close && connection.output.is_empty() {
            self.connections.remove(&token);
        }
    }

    fn close_idle(&mut self) {
        self.connections.retain(|_, connection| {
            connection.busy || connection.idle.is_none_or(|since| since.elapsed() < KEEP_ALIVE)
        });
    }

    fn random(&mut self) -> u64 {
        use std::hash::{BuildHasher as _, RandomState};
        self.next += 1;
        RandomState::new().hash_one(self.next)
    }
}
