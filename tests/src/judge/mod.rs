//! Attaches the real `inferspan` to a server and judges what it says by what the server and its clients say.
//!
//! Enters: a running target, its load, its own `/metrics`. Leaves: a table and a list of faults; no fault is forgiven here
//! that the project's own criteria do not forgive.

mod access;
mod attach;
pub(crate) mod page;
mod run;
mod scale;
mod spans;
mod table;

use std::thread;
use std::time::{Duration, Instant};

pub use access::{Expect, check as check_access};
pub use attach::{Attach, Finished, binary};
pub use page::Page;
pub use run::{Plan, Report, at_rest, under_load};
pub use scale::{Crowd, crowded};
pub use spans::{Traces, check as check_traces};
pub use table::{Table, compare, compare_ttft};

use inferspan_harness::server::Server;

use crate::traffic::Client;

/// A server to attach to.
#[derive(Debug, Clone)]
pub struct Target {
    /// `http://host:port`
    pub url: String,
    pub model: String,
    /// As the tracer's pid namespace counts.
    pub pid: u32,
}

impl From<&Server> for Target {
    fn from(server: &Server) -> Self {
        Self { url: server.url.clone(), model: server.model.clone(), pid: server.pid }
    }
}

impl Target {
    /// The text of the server's own `/metrics`. With several API servers, any of them answers for all.
    pub fn metrics_text(&self) -> std::io::Result<String> {
        Ok(Client::new(&self.url).get("/metrics")?.body)
    }

    /// The server's own `/metrics`.
    pub fn metrics(&self) -> std::io::Result<Page> {
        Ok(Page::parse(&self.metrics_text()?))
    }

    /// Waits until nothing runs, nothing waits and nothing is counted any more, then reads `/metrics`.
    pub fn quiet(&self) -> std::io::Result<Page> {
        let start = Instant::now();
        let mut before = self.metrics()?;
        loop {
            thread::sleep(Duration::from_millis(700));
            let page = self.metrics()?;
            let busy = page.sum("vllm:num_requests_running", "") + page.sum("vllm:num_requests_waiting", "");
            let moved = page.sum("vllm:generation_tokens_total", "") - before.sum("vllm:generation_tokens_total", "");
            if busy.abs() + moved.abs() < 0.5 {
                return Ok(page);
            }
            if start.elapsed() > Duration::from_mins(1) {
                return Err(std::io::Error::other("the server does not come to rest within 60 s"));
            }
            before = page;
        }
    }
}

/// Panics with every fault, unless there is none.
pub fn verdict(faults: &[String]) {
    for fault in faults.iter().take(40) {
        eprintln!("FAULT {fault}");
    }
    assert!(faults.is_empty(), "{} faults, the first: {}", faults.len(), faults[0]);
}
