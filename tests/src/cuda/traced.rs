//! A program of the fixture that `inferspan attach --cuda-only` traces, from outside.
//!
//! Enters: a program, flags. Leaves: what the program says that it did, and what inferspan says: the metrics page, the rows of kernels, stderr.

use std::collections::BTreeMap;
use std::fs;

use inferspan_harness::folder::Folder;
use inferspan_harness::process::Signal;
use serde::Deserialize;

use super::{Program, Running, Tally, Truth};
use crate::attached::Attached;
use crate::judge::page::Page;

/// A line of `--kernels-out`.
#[derive(Debug, Clone, Deserialize)]
pub struct Kernel {
    pub process: u32,
    pub name: String,
    pub demangled: String,
    pub short: String,
    pub class: String,
    pub launches: u64,
    pub grid: Option<[u32; 3]>,
    pub block: Option<[u32; 3]>,
    pub shared_memory: Option<u32>,
    pub streams: Option<u64>,
    pub named_by: String,
}

/// What was seen of a program.
#[derive(Debug)]
pub struct Seen {
    pub page: Page,
    pub kernels: Vec<Kernel>,
    /// What inferspan said on stderr.
    pub said: String,
}

/// A tracer that is attached to a program.
#[derive(Debug)]
pub struct Tracer {
    attached: Attached,
    folder: Folder,
}

impl Tracer {
    /// # Panics
    /// When it does not attach.
    pub fn attach(test: &str, pid: u32, arguments: &[&str]) -> Self {
        let folder = Folder::new(&format!("cuda-{test}-{pid}")).expect("a folder");
        let file = |name: &str| folder.path().join(name).display().to_string();
        let mut all = vec!["--cuda-only".to_owned(), "--kernels-out".to_owned(), file("kernels.jsonl")];
        all.extend(["--metrics-out".to_owned(), file("metrics.txt")]);
        all.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        Self { attached: Attached::start("attach", pid, &all), folder }
    }

    pub fn signal(&self, signal: Signal) {
        self.attached.signal(signal);
    }

    /// Waits until it has ended with its target.
    ///
    /// # Panics
    /// When it fails, or wrote what cannot be read.
    pub fn end(self) -> Seen {
        let (code, said) = self.attached.end();
        assert_eq!(code, Some(0), "{said}");
        let read = |name: &str| fs::read_to_string(self.folder.path().join(name)).expect("inferspan wrote it");
        let page = Page::parse(&read("metrics.txt"));
        let kernels = read("kernels.jsonl").lines().map(|line| serde_json::from_str(line).expect("a row")).collect();
        Seen { page, kernels, said }
    }
}

/// Runs a program from its start to its end, traced: what it did, and what was seen of it.
///
/// # Panics
/// When either fails.
pub fn run(test: &str, program: &Program, arguments: &[&str]) -> (Truth, Seen) {
    let mut running = program.spawn().expect("the program starts");
    let tracer = Tracer::attach(test, running.pid(), arguments);
    running.start().expect("it waits");
    finish(running, tracer)
}

/// Waits for both.
///
/// # Panics
/// When either fails.
pub fn finish(running: Running, tracer: Tracer) -> (Truth, Seen) {
    let truth = running.finish().expect("its account");
    (truth, tracer.end())
}

impl Seen {
    pub fn count(&self, name: &str, label: &str) -> u64 {
        self.page.sum(name, label) as u64
    }

    /// Launches by name.
    pub fn by_name(&self) -> BTreeMap<&str, u64> {
        self.kernels.iter().map(|kernel| (kernel.name.as_str(), kernel.launches)).collect()
    }

    /// Holds every count against the program's own. Kernels too, when `kernels` is told.
    ///
    /// # Panics
    /// When any differs.
    pub fn assert_is(&self, truth: &Tally, kernels: bool) {
        let kinds =
            [("h2h", "h2h"), ("h2d", "h2d"), ("d2h", "d2h"), ("d2d", "d2d"), ("default", "unknown"), ("peer", "p2p")];
        for (theirs, ours) in kinds {
            let amount = truth.copies.get(theirs).copied().unwrap_or_default();
            let label = format!("kind=\"{ours}\"");
            let seen = |name: &str| self.count(name, &label);
            let counted = (seen("inferspan_cuda_copies_total"), seen("inferspan_cuda_copy_bytes_total"));
            assert_eq!(counted, (amount.count, amount.bytes), "copies {theirs}\n{}", self.said);
        }
        assert_eq!(self.count("inferspan_cuda_launches_total", ""), truth.launch_count(), "launches\n{}", self.said);
        assert_eq!(self.count("inferspan_cuda_graph_launches_total", ""), truth.graph_launch_count(), "graph launches");
        let waited = self.page.sum("inferspan_cuda_sync_wait_seconds_total", "");
        let truth_waited = truth.sync_wait_ns as f64 / 1e9;
        assert!((waited - truth_waited).abs() <= 0.02 * truth_waited + 0.005, "waited {waited}, really {truth_waited}");
        if kernels {
            assert_eq!(self.by_name(), truth.by_name(), "{}", self.said);
        }
    }
}
