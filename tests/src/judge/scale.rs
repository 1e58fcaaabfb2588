//! The check at scale: hundreds of requests open at once, every count compared exactly.
//!
//! Enters: a server at rest, a Python with the real `openai` client, how many requests are open at once. Leaves: a table, and
//! faults grouped by what is wrong, since a fault at this size is seldom alone. The client's account of every request, the
//! access log, both `/metrics` and the faults are left in the folder.

use std::collections::{BTreeMap, HashMap};
use std::fmt::{Display, Write as _};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Deserialize;
use serde_json::Value;

use super::{Attach, Report, Table, Target, compare, compare_ttft};

/// Requests shown of each kind of fault.
const SHOWN: usize = 3;

/// What is sent.
#[derive(Debug, Clone)]
pub struct Crowd {
    /// A Python with the `openai` package.
    pub python: PathBuf,
    /// Requests open at once.
    pub open: usize,
    /// In all.
    pub requests: usize,
    pub seed: u64,
    /// It is recorded, and the recording replayed.
    pub record: bool,
}

/// What `load.py` prints.
#[derive(Debug, Deserialize)]
struct Account {
    requests: usize,
    streams: usize,
    most_open: usize,
    prompt_tokens: u64,
    completion_tokens: u64,
    longest_prompt: u64,
    finish_reasons: BTreeMap<String, u64>,
    errors: Vec<String>,
    elapsed: f64,
}

impl Crowd {
    /// Sends it all, for the server's own good; the requests one by one go to `log`.
    pub fn warm(&self, target: &Target, log: &Path) -> io::Result<()> {
        self.run(target, log).map(|_| ())
    }

    /// Sends it all; the requests one by one go to `log`.
    fn run(&self, target: &Target, log: &Path) -> io::Result<Account> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/vllm/load.py");
        let output = Command::new(&self.python)
            .arg(script)
            .args(["--url", &target.url, "--model", &target.model])
            .args(["--open", &self.open.to_string(), "--requests", &self.requests.to_string()])
            .args(["--seed", &self.seed.to_string(), "--log"])
            .arg(log)
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()?;
        if !output.status.success() {
            return Err(io::Error::other(format!("load.py ended with {}", output.status)));
        }
        Ok(serde_json::from_slice(&output.stdout)?)
    }
}

/// Attaches at a quiet point, sends a crowd, and compares at the next quiet point.
pub fn crowded(target: &Target, crowd: &Crowd, folder: &Path) -> io::Result<Report> {
    target.quiet()?;
    let attach = if crowd.record {
        Attach::record_without_traces(target.pid, folder)?
    } else {
        Attach::start_without_traces(target.pid, folder, &[])?
    };
    let before = target.quiet()?;
    let sent_log = folder.join("sent.jsonl");
    let account = crowd.run(target, &sent_log)?;
    let after = target.quiet()?;
    let ours = attach.metrics()?;
    fs::write(folder.join("server.prom"), target.metrics_text()?)?;
    fs::write(folder.join("inferspan.prom"), attach.metrics_text()?)?;
    let cpu = attach.cpu();
    let finished = attach.finish()?;
    fs::write(folder.join("stderr.txt"), &finished.stderr)?;
    let grown = after.since(&before);
    let preempted = grown.sum("vllm:num_preemptions_total", "");
    eprintln!(
        "{} requests ({} streamed, at most {} open), {} prompt tokens (longest {}), {} completion tokens in {:.1} s, \
         {preempted} preemptions; inferspan used {cpu:.2} s of CPU ({:.1} us a token); {:?}",
        account.requests,
        account.streams,
        account.most_open,
        account.prompt_tokens,
        account.longest_prompt,
        account.completion_tokens,
        account.elapsed,
        cpu * 1e6 / account.completion_tokens.max(1) as f64,
        account.finish_reasons
    );
    let tables = vec![compare(&grown, &ours, &finished.access, 0), compare_ttft(&grown, &ours, true)];
    let mut faults: Vec<String> = tables.iter().flat_map(Table::faults).collect();
    if account.most_open < crowd.open || account.requests != crowd.requests {
        faults.push(format!("not the load that was asked for ({crowd:?}): {account:?}"));
    }
    faults.extend(account.errors.iter().take(SHOWN).map(|error| format!("a request failed: {error}")));
    let served = grown.sum("vllm:generation_tokens_total", "");
    if (served - account.completion_tokens as f64).abs() > 0.5 {
        faults.push(format!("the clients got {} tokens, the server counts {served}", account.completion_tokens));
    }
    let last = finished.stderr.lines().last().unwrap_or_default();
    if !last.ends_with("lost: none") {
        faults.push(format!("the last line on stderr is no `lost: none`: {last}"));
    }
    faults.extend(finished.replay_faults);
    let sent = fs::read_to_string(sent_log)?;
    let sent: Vec<Value> = sent.lines().map(serde_json::from_str).collect::<serde_json::Result<_>>()?;
    faults.extend(check(&sent, &finished.access));
    let report = Report { tables, faults };
    fs::write(folder.join("report.txt"), report.text())?;
    Ok(report)
}

/// Every request that a client sent has exactly one record, which says what the client saw.
fn check(sent: &[Value], access: &[Value]) -> Vec<String> {
    let mut wrong = Wrong::default();
    let mut records: HashMap<&str, Vec<&Value>> = HashMap::new();
    for record in access {
        match record["request_id"].as_str() {
            Some(id) => records.entry(id).or_default().push(record),
            None => wrong.add("a record has no request_id", record),
        }
        if !record["incomplete"].is_null() {
            wrong.add(&format!("a record is incomplete: {}", record["incomplete"]), record);
        }
    }
    for request in sent {
        let Some(id) = request["id"].as_str() else { continue };
        let Some(found) = records.remove(id) else {
            wrong.add("a request has no record", request);
            continue;
        };
        if found.len() > 1 {
            wrong.add("a request has several records", request);
        }
        let record = found[0];
        let pairs = [
            ("path", "path"),
            ("stream", "stream"),
            ("prompt_tokens", "prompt_tokens"),
            ("output_tokens", "completion_tokens"),
            ("finish_reasons", "finish_reasons"),
        ];
        for (logged, seen) in pairs {
            if record[logged] != request[seen] {
                wrong.add(&format!("{logged} is not what the client saw"), &format!("{request}\n    {record}"));
            }
        }
        if record["generations"].as_array().map(Vec::len) != Some(1) {
            wrong.add("a record has not one generation", record);
        }
    }
    for record in records.values().flatten() {
        wrong.add("a record of no request", record);
    }
    wrong.into_faults()
}

/// What is wrong, how often, and the first ones it is wrong with.
#[derive(Debug, Default)]
struct Wrong(BTreeMap<String, (usize, String)>);

impl Wrong {
    fn add(&mut self, what: &str, with: &dyn Display) {
        let (count, shown) = self.0.entry(what.to_owned()).or_default();
        *count += 1;
        if *count <= SHOWN {
            // A string takes every byte.
            let _ = write!(shown, "\n  {with}");
        }
    }

    fn into_faults(self) -> Vec<String> {
        self.0.into_iter().map(|(what, (count, shown))| format!("{count} times: {what}, for example{shown}")).collect()
    }
}

impl Report {
    /// All of it, for a file.
    fn text(&self) -> String {
        let mut text = String::new();
        for table in &self.tables {
            // A string takes every byte, here and below.
            let _ = writeln!(text, "{table}");
        }
        for fault in &self.faults {
            let _ = writeln!(text, "FAULT {fault}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn request(id: &str) -> Value {
        json!({"id": id, "path": "/v1/completions", "stream": true, "prompt_tokens": 7, "completion_tokens": 3,
               "finish_reasons": ["length"]})
    }

    fn record(id: &str) -> Value {
        json!({"request_id": id, "path": "/v1/completions", "stream": true, "prompt_tokens": 7, "output_tokens": 3,
               "finish_reasons": ["length"], "incomplete": null, "generations": [{}]})
    }

    #[test]
    fn what_differs_is_counted_by_what_it_is() {
        let sent: Vec<Value> = ["a", "b", "c"].map(request).to_vec();
        assert_eq!(check(&sent, &["a", "b", "c"].map(record)), Vec::<String>::new());

        let mut short = record("b");
        short["output_tokens"] = 2.into();
        let faults = check(&sent, &[record("a"), short, record("d")]);
        let heads: Vec<&str> = faults.iter().filter_map(|fault| fault.split(',').next()).collect();
        let wanted = [
            "1 times: a record of no request",
            "1 times: a request has no record",
            "1 times: output_tokens is not what the client saw",
        ];
        assert_eq!(heads, wanted);
    }
}
