//! The demo's CUDA: the engine drives fake libraries, since neither this machine nor CI needs to have a GPU, and what was traced of each
//! step is held against what the engine says that it did.
//!
//! Enters: the engine's account, the trace file, the rows of kernels. Leaves: one step, drawn. Fails when any count differs.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::shell;

/// Classes of kernels that are shown.
const CLASSES: usize = 3;
/// The first step that is seen has no span where nothing tells since when (a first chunk of a prompt).
const MOST_UNSEEN: usize = 1;

/// The fake libraries, and where their user's account is.
pub(super) struct Fake {
    libraries: PathBuf,
    account: PathBuf,
    /// Lines of the account from before the attach.
    before: usize,
}

impl Fake {
    /// Builds the libraries; `None`, said loudly, without a C compiler.
    ///
    /// `program` makes them: `cuda-libraries`.
    pub(super) fn ready(program: &Path, folder: &Path) -> Result<Option<Self>> {
        let compiler = std::env::var("CC").unwrap_or_else(|_| "gcc".to_owned());
        if Command::new(&compiler).arg("--version").output().is_err() {
            eprintln!("SKIPPED: the demo shows no CUDA: its fake libraries need gcc, or a C compiler named by CC");
            return Ok(None);
        }
        let printed = shell::step("building the fake CUDA libraries", || shell::output(&mut Command::new(program)))?;
        let (libraries, account) = (PathBuf::from(printed.trim()), folder.join("cuda-account.jsonl"));
        Ok(Some(Self { libraries, account, before: 0 }))
    }

    /// What the engine is told.
    pub(super) fn engine_arguments(&self) -> [OsString; 4] {
        let path = |path: &Path| path.as_os_str().to_owned();
        ["--cuda".into(), path(&self.libraries), "--cuda-account".into(), path(&self.account)]
    }

    /// What `attach` is told: each launch by itself, every step.
    pub(super) fn attach_arguments(folder: &Path) -> [OsString; 6] {
        let kernels = folder.join("kernels.jsonl").into_os_string();
        ["--level".into(), "kernels".into(), "--engine-steps".into(), "all".into(), "--kernels-out".into(), kernels]
    }

    /// From now on it is attached.
    pub(super) fn attached(&mut self) -> Result<()> {
        self.before = json_lines(&self.account)?.len();
        Ok(())
    }

    /// Holds the traced steps against the account, and draws one of each mode. `is_over`: attach has ended, and told of kernels.
    pub(super) fn show(&self, folder: &Path, is_over: bool) -> Result<String> {
        let mut account = json_lines(&self.account)?;
        let did: Vec<Did> = account.drain(self.before..).map(|line| Did::read(&line)).collect();
        let steps = steps(&folder.join(super::TRACES_OUT))?;
        let mut matched = 0;
        for step in &steps {
            // The engine writes its account just before it says the step's end.
            let its: Vec<&Did> = did.iter().filter(|did| (step.start..=step.end).contains(&did.end)).collect();
            let [its] = its[..] else { bail!("{} steps of the engine end within the traced step {step:?}", its.len()) };
            ensure!(its.counts == step.counts, "a step differs: the engine did {its:?}, and traced was {step:?}");
            matched += 1;
        }
        ensure!(
            matched + MOST_UNSEEN >= did.len(),
            "{matched} steps were traced of the {} that the engine made",
            did.len()
        );
        let mut text = String::new();
        let most =
            |mode: &str| steps.iter().filter(|step| step.mode == mode).max_by_key(|step| step.counts["launches"]);
        let (Some(eager), Some(graph)) = (most("eager"), most("graph")) else {
            bail!("no step of each mode among {}", steps.len());
        };
        eager.draw(&mut text);
        let _ = writeln!(text, "  one of decodes alone: {}", graph.summary());
        let _ = writeln!(text, "  {matched} steps traced, each with the counts that the engine itself says");
        if is_over {
            let launches: u64 = did.iter().map(|did| did.counts["launches"]).sum();
            let rows = json_lines(&folder.join("kernels.jsonl"))?;
            let told: u64 = rows.iter().filter_map(|row| row["launches"].as_u64()).sum();
            ensure!(told == launches, "attach counted {told} launches, and the engine made {launches}");
            let names = rows.iter().filter(|row| row["named_by"] != "caller").count();
            ensure!(names == rows.len(), "{names} of {} kernels have names", rows.len());
            let _ = writeln!(text, "  {launches} launches in all, of {names} kernels: none missing, all named");
        }
        Ok(text)
    }
}

fn json_lines(path: &Path) -> Result<Vec<Value>> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let lines = text.lines().map(serde_json::from_str);
    lines.collect::<Result<_, _>>().with_context(|| format!("{} holds what is no JSON", path.display()))
}

/// Counts of a step, by what they are of.
type Counts = BTreeMap<&'static str, u64>;

/// A step as the engine says.
#[derive(Debug)]
struct Did {
    /// Unix ns.
    end: u64,
    counts: Counts,
}

impl Did {
    fn read(line: &Value) -> Self {
        let number = |value: &Value| value.as_u64().unwrap_or(0);
        let launches = line["launches"].as_object().map_or(0, |of| of.values().map(number).sum());
        let counts = BTreeMap::from([
            ("launches", launches),
            ("graph launches", number(&line["graph_launches"])),
            ("h2d", number(&line["copies"]["h2d"])),
            ("h2d bytes", number(&line["copy_bytes"]["h2d"])),
            ("d2h", number(&line["copies"]["d2h"])),
            ("d2h bytes", number(&line["copy_bytes"]["d2h"])),
            ("waits", number(&line["waits"])),
        ]);
        Self { end: number(&line["end_ns"]), counts }
    }
}

/// A step as it was traced.
#[derive(Debug)]
struct Traced {
    start: u64,
    end: u64,
    mode: String,
    requests: u64,
    waited_ms: f64,
    counts: Counts,
    /// Launches and a kernel's name, by class.
    classes: BTreeMap<String, (u64, String)>,
}

impl Traced {
    fn read(span: &Value) -> Self {
        let attribute = |key: &str| {
            let list = span["attributes"].as_array().into_iter().flatten();
            list.filter(|pair| pair["key"] == key).map(|pair| &pair["value"]).next().unwrap_or(&Value::Null)
        };
        let count = |key: &str| number(&attribute(&format!("inferspan.cuda.{key}"))["intValue"]);
        let counts = BTreeMap::from([
            ("launches", count("launches")),
            ("graph launches", count("graph_launches")),
            ("h2d", count("copies.h2d")),
            ("h2d bytes", count("copy_bytes.h2d")),
            ("d2h", count("copies.d2h")),
            ("d2h bytes", count("copy_bytes.d2h")),
            ("waits", count("sync_waits")),
        ]);
        Self {
            start: number(&span["startTimeUnixNano"]),
            end: number(&span["endTimeUnixNano"]),
            mode: text(&attribute("inferspan.cuda.mode")["stringValue"]),
            requests: number(&attribute("inferspan.batch.requests")["intValue"]),
            waited_ms: attribute("inferspan.cuda.sync_wait_seconds")["doubleValue"].as_f64().unwrap_or(0.0) * 1e3,
            counts,
            classes: BTreeMap::new(),
        }
    }

    fn summary(&self) -> String {
        let count = |what: &str| self.counts[what];
        format!(
            "{}, {} launches, {} graph launches, {}+{} copies, waited {:.2} ms",
            self.mode,
            count("launches"),
            count("graph launches"),
            count("h2d"),
            count("d2h"),
            self.waited_ms
        )
    }

    fn draw(&self, text: &mut String) {
        let length = (self.end - self.start) as f64 / 1e6;
        let _ = writeln!(text, "  {}; {} requests answered in {length:.2} ms", self.summary(), self.requests);
        let mut classes: Vec<_> = self.classes.iter().collect();
        classes.sort_by_key(|(_, (count, _))| std::cmp::Reverse(*count));
        for (class, (count, name)) in classes.into_iter().take(CLASSES) {
            let _ = writeln!(text, "    {class:<14} ×{count:<3} {name}");
        }
    }
}

/// OTLP/JSON writes 64-bit numbers as strings.
fn number(value: &Value) -> u64 {
    value.as_u64().or_else(|| value.as_str()?.parse().ok()).unwrap_or(0)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// The engine steps of a trace file that launched anything, with the kernels of each.
fn steps(path: &Path) -> Result<Vec<Traced>> {
    let mut steps: BTreeMap<String, Traced> = BTreeMap::new();
    let mut launches: Vec<(String, String, String)> = Vec::new();
    for request in json_lines(path)? {
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        for scope in list(&request["resourceSpans"]).iter().flat_map(|resource| list(&resource["scopeSpans"])) {
            for span in list(&scope["spans"]) {
                let attributes: BTreeMap<String, String> = list(&span["attributes"])
                    .iter()
                    .map(|pair| (text(&pair["key"]), text(&pair["value"]["stringValue"])))
                    .collect();
                let of = |key: &str| attributes.get(key).cloned().unwrap_or_default();
                if span["name"] == "engine_step" && attributes.contains_key("inferspan.cuda.mode") {
                    steps.insert(text(&span["traceId"]), Traced::read(&span));
                } else if attributes.contains_key("inferspan.cuda.kernel") {
                    let (class, name) = (of("inferspan.cuda.kernel.class"), of("inferspan.cuda.kernel"));
                    launches.push((text(&span["traceId"]), class, name));
                }
            }
        }
    }
    for (trace, class, name) in launches {
        if let Some(step) = steps.get_mut(&trace) {
            step.classes.entry(class).or_insert((0, name)).0 += 1;
        }
    }
    Ok(steps.into_values().collect())
}
