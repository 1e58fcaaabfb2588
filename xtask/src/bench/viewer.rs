//! Somebody who looks at the page of a run: asks what the open page asks (`tracer-user/src/ui/page/main.js`), as often.
//!
//! Enters: the address of a view. Leaves: how many pictures came, and why one did not. It stands in for the browser, which is on another
//! machine where people work; its own CPU time is on this one all the same.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use inferspan_harness::http;
use serde_json::Value;

/// `EVERY` of the page.
const EVERY: Duration = Duration::from_secs(1);

pub(super) struct Viewer {
    is_over: Arc<AtomicBool>,
    looking: JoinHandle<Result<u32>>,
}

impl Viewer {
    /// Looks at the page of `url` from now on.
    pub(super) fn start(url: String) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&is_over);
        let looking = thread::spawn(move || {
            let (mut pictures, mut newest) = (0, None);
            while !ends.load(Ordering::Relaxed) {
                let began = Instant::now();
                look(&url, &mut newest)?;
                pictures += 1;
                thread::sleep(EVERY.saturating_sub(began.elapsed()));
            }
            Ok(pictures)
        });
        Self { is_over, looking }
    }

    /// Pictures that came.
    pub(super) fn stop(self) -> Result<u32> {
        self.is_over.store(true, Ordering::Relaxed);
        self.looking.join().ok().context("who looks at the page panicked")?
    }
}

/// One turn of the page; `newest`: end of the newest step that it has, ns.
fn look(url: &str, newest: &mut Option<String>) -> Result<()> {
    let overview = http::json(&format!("{url}/ui/api/overview"), &[])?;
    http::json(&format!("{url}/ui/api/requests"), &[("limit", "50")])?;
    let server = &overview["servers"][0];
    // The number is over 2^53, and text.
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    if server["engines"][0].is_null() {
        return Ok(());
    }
    let (name, engine) = (text(&server["server"]), text(&server["engines"][0]["engine"]));
    let mut asked = vec![("server", name.as_str()), ("engine", engine.as_str()), ("limit", "3000")];
    let from = newest.clone();
    asked.extend(from.as_deref().map(|from| ("from_ns", from)));
    let steps = http::json(&format!("{url}/ui/api/steps"), &asked)?;
    let Some(steps) = steps["steps"].as_array() else { bail!("{url} told of no steps: {steps}") };
    *newest = steps.last().map(|step| text(&step["end_ns"])).or(from);
    Ok(())
}
