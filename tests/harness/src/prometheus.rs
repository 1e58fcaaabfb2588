//! A real Prometheus on a free port, its query API, and `promtool`.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::folder::Folder;
use crate::http;
use crate::installed::program;
use crate::process::Process;
use crate::wait::{Interrupt, retry, wait_for};

/// It starts within a second or two, later on a busy machine.
const START_LIMIT: Duration = Duration::from_mins(1);

/// A running Prometheus; stopped when dropped.
#[derive(Debug)]
pub struct Prometheus {
    pub process: Process,
    /// The query API and UI.
    pub url: String,
    _folder: Option<Folder>,
}

/// One element of an instant vector.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

impl Prometheus {
    /// Starts that of `INFERSPAN_PROMETHEUS` (or of the `PATH`), which scrapes `target` every 200 ms, exemplars included;
    /// `None` (loudly) when there is no binary.
    pub fn start(target: SocketAddr) -> Option<Self> {
        let program = program("INFERSPAN_PROMETHEUS", Some("prometheus"))?;
        let folder = Folder::scratch("prometheus").expect("a folder for Prometheus");
        let config = folder.path().join("prometheus.yml");
        let scrape = format!(
            "global: {{scrape_interval: 200ms, scrape_timeout: 200ms}}\n\
             scrape_configs: [{{job_name: inferspan, static_configs: [{{targets: ['{target}']}}]}}]\n"
        );
        std::fs::write(&config, scrape).expect("a configuration for Prometheus");
        // What it keeps goes with its folder.
        let started = Self::start_with(&program, &config, folder.path(), Duration::ZERO, &Interrupt::never());
        Some(Self { _folder: Some(folder), ..started.expect("Prometheus starts") })
    }

    /// Starts `program` with this configuration and its data beside it; what it prints goes to `folder`. It may take `patience` to stop.
    pub fn start_with(
        program: &Path,
        config: &Path,
        folder: &Path,
        patience: Duration,
        interrupt: &Interrupt,
    ) -> Result<Self> {
        let [port] = http::free_ports()?;
        let mut command = Command::new(program);
        command
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", config.with_file_name("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .args(["--enable-feature=exemplar-storage", "--log.level=warn"]);
        let mut process = Process::start("prometheus", &mut command, folder)?.with_patience(patience);
        let url = format!("http://127.0.0.1:{port}");
        let ready = format!("{url}/-/ready");
        let answers = || Ok(http::answers(&ready).then_some(()));
        wait_for("Prometheus", START_LIMIT, interrupt, &mut [&mut process], answers)?;
        Ok(Self { process, url, _folder: None })
    }

    /// The instant vector (or scalar) of `expression`; an error when Prometheus does not take it.
    pub fn query(&self, expression: &str) -> Result<Vec<Sample>> {
        let answer = http::json(&format!("{}/api/v1/query", self.url), &[("query", expression)])?;
        if answer["status"] != "success" {
            bail!("{expression}: {answer}");
        }
        let result = &answer["data"]["result"];
        if answer["data"]["resultType"] == "scalar" {
            return Ok(vec![Sample { labels: BTreeMap::new(), value: number(&result[1])? }]);
        }
        result.as_array().into_iter().flatten().map(sample).collect()
    }

    /// The single value of `expression`, waited for.
    pub fn value(&self, expression: &str) -> Result<f64> {
        retry(Duration::from_secs(20), || match &self.query(expression)?[..] {
            [one] => Ok(one.value),
            several => bail!("{expression} has {} values, not one: {several:?}", several.len()),
        })
    }

    /// Waits until `expression` is `value`.
    pub fn wait_for_value(&self, expression: &str, value: f64) -> Result<()> {
        retry(Duration::from_secs(20), || {
            let got = self.query(expression)?;
            if got.iter().map(|sample| sample.value).eq([value]) {
                Ok(())
            } else {
                bail!("{expression} is {got:?}, not {value}")
            }
        })
    }

    /// The exemplars of the series that `expression` names: their labels and value.
    pub fn exemplars(&self, expression: &str) -> Result<Vec<Sample>> {
        let query = [("query", expression), ("start", "0"), ("end", "4102444800")];
        let answer = http::json(&format!("{}/api/v1/query_exemplars", self.url), &query)?;
        let series = answer["data"].as_array().into_iter().flatten();
        series
            .flat_map(|series| series["exemplars"].as_array().into_iter().flatten())
            .map(|exemplar| Ok(Sample { labels: labels(&exemplar["labels"]), value: number(&exemplar["value"])? }))
            .collect()
    }
}

fn sample(element: &Value) -> Result<Sample> {
    Ok(Sample { labels: labels(&element["metric"]), value: number(&element["value"][1])? })
}

fn labels(value: &Value) -> BTreeMap<String, String> {
    let pairs = value.as_object().into_iter().flatten();
    pairs.map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned())).collect()
}

fn number(value: &Value) -> Result<f64> {
    value.as_str().context("a number as text")?.parse().context("a number")
}

/// What `promtool check metrics` (`INFERSPAN_PROMTOOL`, or on the `PATH`) has to say about `text`: empty when it is clean.
/// `None` (loudly) when there is no binary.
pub fn check_metrics(text: &str) -> Option<String> {
    let program = program("INFERSPAN_PROMTOOL", Some("promtool"))?;
    let mut child = Command::new(program)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool starts");
    child.stdin.take().expect("its stdin is piped").write_all(text.as_bytes()).expect("promtool reads");
    let output = child.wait_with_output().expect("promtool ends");
    let mut said = String::from_utf8_lossy(&output.stdout).into_owned();
    said.push_str(&String::from_utf8_lossy(&output.stderr));
    if !output.status.success() && said.is_empty() {
        said = output.status.to_string();
    }
    Some(said)
}
