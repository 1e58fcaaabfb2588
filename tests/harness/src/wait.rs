//! Waiting for what comes up, with an end: a limit, a process that ended, or a user who has had enough.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::process::Process;

/// How often something that is waited for is looked at.
pub(crate) const POLL: Duration = Duration::from_millis(100);

/// Set when the user pressed Ctrl-C, or something told us to go.
#[derive(Debug, Clone, Default)]
pub struct Interrupt {
    came: Arc<AtomicBool>,
    /// Begins a line that says what is waited for.
    prefix: &'static str,
}

impl Interrupt {
    /// Catches SIGINT, SIGTERM and SIGHUP from now on.
    pub fn catch(prefix: &'static str) -> Result<Self> {
        let came = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&came)).context("cannot catch signals")?;
        }
        Ok(Self { came, prefix })
    }

    /// One that never comes: a test ends with its process.
    pub fn never() -> Self {
        Self::default()
    }

    pub fn came(&self) -> bool {
        self.came.load(Ordering::Relaxed)
    }

    /// Fails when it came.
    pub fn check(&self) -> Result<()> {
        if self.came() {
            return Err(Interrupted.into());
        }
        Ok(())
    }

    /// Sleeps for `time`, less if it comes.
    pub fn sleep(&self, time: Duration) {
        let end = Instant::now() + time;
        while !self.came() && Instant::now() < end {
            std::thread::sleep(POLL.min(end.saturating_duration_since(Instant::now())));
        }
    }
}

/// The user, or a signal, ended the work early.
#[derive(Debug)]
pub struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// Asks `probe` until it has an answer; fails after `limit`, when one of `processes` ends, or on Ctrl-C. Shows that it waits.
pub fn wait_for<T>(
    what: &str,
    limit: Duration,
    interrupt: &Interrupt,
    processes: &mut [&mut Process],
    mut probe: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let started = Instant::now();
    let mut shown = 0;
    loop {
        interrupt.check()?;
        if let Some(answer) = probe()? {
            return Ok(answer);
        }
        for process in processes.iter_mut() {
            process.check_running()?;
        }
        let waited = started.elapsed();
        if waited > limit {
            let tails: Vec<String> = processes.iter().map(|process| process.tail(15)).collect();
            bail!("{what}: not within {} s\n{}", limit.as_secs(), tails.join("\n"));
        }
        // A line every ten seconds.
        if waited.as_secs() / 10 > shown {
            shown = waited.as_secs() / 10;
            eprintln!("{}waiting for {what}: {} s …", interrupt.prefix, waited.as_secs());
        }
        std::thread::sleep(POLL);
    }
}

/// Asks until `ask` has an answer; an error with the last reason after `timeout`.
pub fn retry<T>(timeout: Duration, mut ask: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + timeout;
    loop {
        match ask() {
            Ok(answer) => return Ok(answer),
            Err(error) if Instant::now() > deadline => return Err(error.context(format!("waited {timeout:?}"))),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}
