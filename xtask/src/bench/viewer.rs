//! Somebody who looks at the page of a run: asks what the open page asks (`tracer-user/src/ui/page/main.js`), as often.
//!
//! Enters: the address of a view. Leaves: how many pictures came, and why one did not. It stands in for the browser, which is on another
//! machine where people work; what it takes itself is told.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use inferspan_harness::{http, proc};
use serde_json::Value;

/// `EVERY` of the page.
const EVERY: Duration = Duration::from_secs(1);

/// A page that is looked at.
pub(super) struct Viewer {
    is_over: Arc<AtomicBool>,
    looking: JoinHandle<Result<Looked>>,
}

pub(super) struct Looked {
    pub(super) pictures: u32,
    /// CPU time of who looked.
    pub(super) cpu_nanos: u64,
}

impl Viewer {
    /// Looks at the page of `url` from now on.
    pub(super) fn start(url: String) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&is_over);
        let looking = thread::spawn(move || {
            let mut page = Page { url, connection: http::Connection::default(), engine: None, newest: None };
            let mut pictures = 0;
            while !ends.load(Ordering::Relaxed) {
                let began = Instant::now();
                page.turn()?;
                pictures += 1;
                thread::sleep(EVERY.saturating_sub(began.elapsed()));
            }
            Ok(Looked { pictures, cpu_nanos: proc::own_cpu_nanos() })
        });
        Self { is_over, looking }
    }

    pub(super) fn stop(self) -> Result<Looked> {
        self.is_over.store(true, Ordering::Relaxed);
        self.looking.join().ok().context("who looks at the page panicked")?
    }
}

struct Page {
    url: String,
    connection: http::Connection,
    /// Server and engine whose steps it shows.
    engine: Option<(String, String)>,
    /// End of the newest step that it has, unix ns.
    newest: Option<String>,
}

impl Page {
    fn get(&self, what: &str, parameters: &[(&str, &str)]) -> Result<String> {
        self.connection.text(&format!("{}/ui/api/{what}", self.url), parameters)
    }

    fn turn(&mut self) -> Result<()> {
        let overview = self.get("overview", &[])?;
        self.get("requests", &[("limit", "50")])?;
        if self.engine.is_none() {
            let overview: Value = serde_json::from_str(&overview).context("the overview is no JSON")?;
            let server = &overview["servers"][0];
            let engine = &server["engines"][0]["engine"];
            let name = server["server"].as_str().filter(|_| !engine.is_null());
            self.engine = name.map(|name| (name.to_owned(), engine.to_string()));
        }
        let Some((server, engine)) = &self.engine else { return Ok(()) };
        let mut asked = vec![("server", server.as_str()), ("engine", engine.as_str()), ("limit", "3000")];
        asked.extend(self.newest.as_deref().map(|from| ("from_ns", from)));
        let steps = self.get("steps", &asked)?;
        // Reading all of it is the browser's work.
        let newest = steps.rsplit_once("\"end_ns\":").map(|(_, rest)| rest.trim_start_matches(['"', ' ']));
        let newest = newest.and_then(|rest| rest.split(|digit: char| !digit.is_ascii_digit()).next());
        self.newest = newest.map(str::to_owned).or(self.newest.take());
        Ok(())
    }
}
