//! What `inferspan why` says of requests that are sent on purpose: who sends them, how it is asked, and how its answer is read.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use inferspan_harness::attached::Attached;
use inferspan_harness::process::Signal;
use serde_json::{Value, json};

use crate::judge::{Target, binary};
use crate::traffic::Client;

/// Requests leave when nothing can join them any more.
pub const SETTLED: Duration = Duration::from_millis(1_500);

/// A request to send.
#[derive(Debug, Clone)]
pub struct Asked {
    pub id: String,
    pub prompt: String,
    pub max_tokens: u32,
    /// After the others began.
    pub after: Duration,
}

impl Asked {
    /// Of a prompt of about so many tokens, that shares no beginning with another.
    pub fn new(id: &str, tokens: usize, max_tokens: u32, after_ms: u64) -> Self {
        Self::marked(id, "", tokens, max_tokens, after_ms)
    }

    /// With `mark` at the beginning of its prompt.
    pub fn marked(id: &str, mark: &str, tokens: usize, max_tokens: u32, after_ms: u64) -> Self {
        let prompt = format!("{mark} {id}{}", " ba".repeat(tokens));
        Self { id: id.to_owned(), prompt, max_tokens, after: Duration::from_millis(after_ms) }
    }

    fn body(&self, model: &str, more: &Value) -> String {
        let mut body = json!({
            "model": model,
            "prompt": self.prompt,
            "max_tokens": self.max_tokens,
            "ignore_eos": true,
            "stream": true,
        });
        for (key, value) in more.as_object().into_iter().flatten() {
            body[key] = value.clone();
        }
        body.to_string()
    }
}

/// Sends all, each by a client of its own, and waits for their ends. `more` is in every body.
///
/// # Panics
/// Where one is not answered.
pub fn send(target: &Target, all: &[Asked], more: &Value) {
    let begun = Instant::now();
    thread::scope(|scope| {
        for asked in all {
            scope.spawn(move || {
                thread::sleep(asked.after.saturating_sub(begun.elapsed()));
                let mut client = Client::new(&target.url);
                let headers = [("X-Request-Id", asked.id.as_str())];
                let request = client.request("POST", "/v1/completions", &headers, &asked.body(&target.model, more));
                client.exchange(&request).expect("an answer");
            });
        }
    });
}

fn set_receive_room(stream: &TcpStream, bytes: libc::c_int) {
    let length = size_of_val(&bytes) as libc::socklen_t;
    // SAFETY: the descriptor is open, and the value is as long as the length says.
    let set = unsafe {
        libc::setsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF, (&raw const bytes).cast(), length)
    };
    assert_eq!(set, 0, "SO_RCVBUF");
}

/// Sends one, and takes nothing of the response for a while.
///
/// # Panics
/// Where it is not answered whole.
pub fn read_late(target: &Target, asked: &Asked, more: &Value, pause: Duration) {
    let mut stream = TcpStream::connect(target.url.trim_start_matches("http://")).expect("a connection");
    set_receive_room(&stream, 4 << 10);
    let body = asked.body(&target.model, more);
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nHost: a\r\nX-Request-Id: {}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        asked.id,
        body.len()
    );
    stream.write_all(format!("{head}{body}").as_bytes()).expect("it is sent");
    thread::sleep(pause);
    // Eight megabytes through the small one took six minutes.
    set_receive_room(&stream, 1 << 20);
    let (mut all, mut bytes) = (String::new(), vec![0; 64 << 10]);
    while !all.contains("[DONE]") {
        let count = stream.read(&mut bytes).expect("the response");
        assert!(count > 0, "the response is whole: {} bytes", all.len());
        all.push_str(&String::from_utf8_lossy(&bytes[..count]));
    }
}

/// `inferspan`, whose sockets are in a folder of the test's own.
pub fn inferspan(folder: &Path) -> Command {
    let mut command = Command::new(binary());
    command.env("INFERSPAN_RUN_DIR", folder.join("run"));
    command
}

/// # Panics
/// Where it does not attach.
pub fn attach(target: &Target, folder: &Path) -> Attached {
    let mut command = inferspan(folder);
    command.args(["attach", "-p", &target.pid.to_string(), "--access-log"]);
    command.arg(folder.join("access.jsonl")).stdout(Stdio::null());
    Attached::start(&mut command).expect("inferspan attaches")
}

/// # Panics
/// Where it does not end well.
pub fn detach(attached: Attached) {
    attached.signal(Signal::INT).expect("it runs");
    let (status, said) = attached.end(Duration::from_mins(1)).expect("inferspan ends");
    assert!(status.success(), "{said}");
}

/// The requests of `inferspan WORDS --json`.
///
/// # Panics
/// Where it does not answer.
pub fn ask(folder: &Path, words: &[&str]) -> Vec<Value> {
    let output = inferspan(folder).args(words).arg("--json").output().expect("inferspan runs");
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    let document: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    document["requests"].as_array().expect("requests").clone()
}

/// The kinds of a request's causes, the one that cost most first.
pub fn kinds(request: &Value) -> Vec<&str> {
    let causes = request["causes"].as_array();
    causes.into_iter().flatten().filter_map(|cause| cause["kind"].as_str()).collect()
}

/// Of its first cause.
pub fn evidence(request: &Value) -> &str {
    request["causes"][0]["evidence"].as_str().unwrap_or_default()
}

/// The request of this id.
pub fn of<'a>(requests: &'a [Value], id: &str) -> Option<&'a Value> {
    requests.iter().find(|of| of["request_id"].as_str().is_some_and(|known| known.contains(id)))
}
