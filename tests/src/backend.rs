//! What the real back ends of the tests have in common: a process that dies with the test, free ports, a small HTTP client.

use std::io::{Read as _, Seek as _};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde_json::Value;

/// The program that `variable` names, or `name` on the `PATH`. `None` says on stderr that the test is skipped, unless
/// `INFERSPAN_REQUIRE_BACKENDS` is set (as CI does): then it panics.
pub fn program(variable: &str, name: Option<&str>) -> Option<PathBuf> {
    let named = std::env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from);
    let found = named.or_else(|| {
        let folders = std::env::var_os("PATH")?;
        std::env::split_paths(&folders).map(|folder| folder.join(name.unwrap_or_default())).find(|path| path.is_file())
    });
    if let Some(path) = &found {
        assert!(path.is_file(), "{variable} names {}, which is no file", path.display());
    } else {
        let what = format!("SKIPPED: {variable} is not set; `cargo xtask test` sets it");
        assert!(std::env::var_os("INFERSPAN_REQUIRE_BACKENDS").is_none(), "{what}");
        eprintln!("{what}");
    }
    found
}

/// `count` different ports of the loopback interface that nobody listens on.
pub fn free_ports(count: usize) -> anyhow::Result<Vec<u16>> {
    // All are held until all are known, so that they differ.
    let listeners = (0..count).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).collect::<Result<Vec<_>, _>>()?;
    listeners.iter().map(|listener| Ok(listener.local_addr()?.port())).collect()
}

/// A folder of this test's own, removed with it.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    pub fn new(name: &str) -> anyhow::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let unique = format!("inferspan-{name}-{}-{}", std::process::id(), NEXT.fetch_add(1, Relaxed));
        let path = std::env::temp_dir().join(unique);
        std::fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        Ok(Self(path))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left in the temporary folder harms nobody.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A running back end: killed when dropped, its output kept for the message when something goes wrong.
#[derive(Debug)]
pub struct Backend {
    child: Child,
    log: std::fs::File,
}

impl Backend {
    /// Starts `command` and waits until `url` answers 2xx.
    pub fn start(command: &mut Command, folder: &Folder, url: &str) -> anyhow::Result<Self> {
        let log = std::fs::File::options().create(true).append(true).read(true).open(folder.path().join("log"))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log.try_clone()?);
        let child = command.spawn().with_context(|| format!("start {command:?}"))?;
        let mut this = Self { child, log };
        let deadline = Instant::now() + Duration::from_mins(1);
        while get(url).is_err() {
            if let Some(status) = this.child.try_wait()? {
                bail!("{command:?} ended with {status}:\n{}", this.output());
            }
            if Instant::now() > deadline {
                bail!("{command:?} does not answer at {url}:\n{}", this.output());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(this)
    }

    fn output(&mut self) -> String {
        let mut text = String::new();
        // A log that cannot be read is shown as an empty one.
        let _ = self.log.rewind().and_then(|()| self.log.read_to_string(&mut text));
        text
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        // It may be gone already; that is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The body of a GET that was answered 2xx.
pub fn get(url: &str) -> anyhow::Result<String> {
    let mut response = agent().get(url).call().with_context(|| format!("GET {url}"))?;
    Ok(response.body_mut().read_to_string()?)
}

/// The JSON body of a GET with query parameters.
pub fn get_json(url: &str, query: &[(&str, &str)]) -> anyhow::Result<Value> {
    let mut request = agent().get(url);
    for (key, value) in query {
        request = request.query(key, value);
    }
    let mut response = request.call().with_context(|| format!("GET {url} {query:?}"))?;
    Ok(serde_json::from_str(&response.body_mut().read_to_string()?)?)
}

/// The status and body of a POST, whatever the status.
pub fn post(url: &str, content_type: &str, body: &[u8]) -> anyhow::Result<(u16, String)> {
    let mut response =
        agent().post(url).content_type(content_type).send(body).with_context(|| format!("POST {url}"))?;
    Ok((response.status().as_u16(), response.body_mut().read_to_string()?))
}

fn agent() -> ureq::Agent {
    ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(10))).proxy(None).build().into()
}

/// Asks until `ask` has an answer; an error with the last reason after `timeout`.
pub fn wait_for<T>(timeout: Duration, mut ask: impl FnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let deadline = Instant::now() + timeout;
    loop {
        match ask() {
            Ok(answer) => return Ok(answer),
            Err(error) if Instant::now() > deadline => return Err(error.context(format!("waited {timeout:?}"))),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}
