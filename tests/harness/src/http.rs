//! Small reads from loopback servers, and ports for them.

use std::net::TcpListener;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

/// Far above what a server on this machine takes.
const LIMIT: Duration = Duration::from_secs(10);

fn agent() -> ureq::Agent {
    // No proxy: an environment's HTTP_PROXY is not for loopback.
    let config =
        ureq::Agent::config_builder().timeout_global(Some(LIMIT)).http_status_as_error(false).proxy(None).build();
    config.into()
}

/// Whether `url` answers with success.
pub fn answers(url: &str) -> bool {
    agent().get(url).call().is_ok_and(|response| response.status().is_success())
}

/// The body of `url` as text.
pub fn text(url: &str) -> Result<String> {
    Connection::default().text(url, &[])
}

/// The JSON of `url` with the query `parameters`.
pub fn json(url: &str, parameters: &[(&str, &str)]) -> Result<Value> {
    let mut response = agent()
        .get(url)
        .query_pairs(parameters.iter().copied())
        .call()
        .with_context(|| format!("cannot read {url}"))?;
    let status = response.status();
    // Hundreds of traces of hundreds of spans; ureq's own limit is 10 MB.
    let body =
        response.body_mut().with_config().limit(1 << 30).read_to_vec().with_context(|| format!("cannot read {url}"))?;
    let value: Value = serde_json::from_slice(&body).with_context(|| format!("{url} answered {status} and no JSON"))?;
    if !status.is_success() {
        bail!("{url} answered {status}: {value}");
    }
    Ok(value)
}

/// Reads again and again over one connection, as a browser does.
#[derive(Debug)]
pub struct Connection(ureq::Agent);

impl Default for Connection {
    fn default() -> Self {
        Self(agent())
    }
}

impl Connection {
    /// The body of `url` with the query `parameters`.
    pub fn text(&self, url: &str, parameters: &[(&str, &str)]) -> Result<String> {
        let request = self.0.get(url).query_pairs(parameters.iter().copied());
        let mut response = request.call().with_context(|| format!("cannot read {url}"))?;
        let status = response.status();
        let body = response.body_mut().with_config().limit(1 << 30).read_to_string();
        let body = body.with_context(|| format!("cannot read {url}"))?;
        if !status.is_success() {
            bail!("{url} answered {status}: {}", body.lines().next().unwrap_or_default());
        }
        Ok(body)
    }
}

/// The status and body of a GET, whatever the status.
pub fn get(url: &str) -> Result<(u16, String)> {
    let mut response = agent().get(url).call().with_context(|| format!("cannot read {url}"))?;
    let body = response.body_mut().with_config().limit(1 << 30).read_to_string();
    Ok((response.status().as_u16(), body.with_context(|| format!("cannot read {url}"))?))
}

/// The status and body of a POST, whatever the status.
pub fn post(url: &str, content_type: &str, body: &[u8]) -> Result<(u16, String)> {
    let mut response =
        agent().post(url).content_type(content_type).send(body).with_context(|| format!("POST {url}"))?;
    Ok((response.status().as_u16(), response.body_mut().read_to_string()?))
}

/// `N` TCP ports that are free on loopback at the moment.
pub fn free_ports<const N: usize>() -> Result<[u16; N]> {
    let mut ports = [0; N];
    // All are held until all are known, so that no port comes twice.
    let mut held = Vec::with_capacity(N);
    for port in &mut ports {
        let listener = TcpListener::bind("127.0.0.1:0").context("no free TCP port on 127.0.0.1")?;
        *port = listener.local_addr().context("no free TCP port on 127.0.0.1")?.port();
        held.push(listener);
    }
    Ok(ports)
}
