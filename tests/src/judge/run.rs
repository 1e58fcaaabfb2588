//! The whole check: quiet point, attach, mixed load, quiet point, comparison; and a late attach into a running load.

use std::path::Path;
use std::thread;
use std::time::Duration;

use super::{Attach, Expect, Table, Target, check_access, check_traces, compare, compare_ttft};
use crate::traffic::{self, Kind, Load, Until};

/// What a check found.
#[derive(Debug, Default)]
pub struct Report {
    pub tables: Vec<Table>,
    pub faults: Vec<String>,
}

/// Kinds of which each request is one engine request that is neither rejected nor left.
const SINGLE: [Kind; 6] =
    [Kind::Completion, Kind::CompletionStream, Kind::Chat, Kind::ChatStream, Kind::Tokens, Kind::Shared];

/// How much to send.
#[derive(Debug, Clone)]
pub struct Plan {
    pub kinds: Vec<Kind>,
    pub until: Until,
    pub clients: usize,
    pub seed: u64,
    pub expect: Expect,
}

fn load(target: &Target, kinds: &[Kind], clients: usize, until: Until, seed: u64) -> Load {
    Load { url: target.url.clone(), model: target.model.clone(), kinds: kinds.to_vec(), clients, until, seed }
}

/// Attaches at a quiet point, so that every number can be compared exactly.
pub fn at_rest(target: &Target, plan: &Plan, folder: &Path) -> std::io::Result<Report> {
    target.quiet()?;
    let attach = Attach::start(target.pid, folder, &[])?;
    eprintln!("attached after {:.3} s", attach.took.as_secs_f64());
    let before = target.quiet()?;
    let mixed = load(target, &plan.kinds, plan.clients, plan.until, plan.seed).run()?;
    // More long sequences at once than any small KV cache holds.
    let pressed = load(target, &[Kind::Long], 8, Until::Requests(24), plan.seed + 3).run()?;
    let between = target.quiet()?;
    let ours_between = attach.metrics()?;
    let single = load(target, &SINGLE, 2, Until::Requests(30), plan.seed + 1).run()?;
    let after = target.quiet()?;
    let ours = attach.metrics()?;
    let cpu = attach.cpu();
    let finished = attach.finish()?;
    eprintln!(
        "{} requests, {} completion tokens in {:.1} s; inferspan used {cpu:.2} s of CPU; {:?}",
        mixed.requests.len(),
        mixed.completion_tokens,
        mixed.elapsed,
        mixed.kinds
    );
    let sent = [mixed.requests, pressed.requests, single.requests].concat();
    let cancelled = sent.iter().filter(|sent| sent.aborted).map(|sent| sent.generations).sum();
    let tables = vec![
        compare(&after.since(&before), &ours, &finished.access, cancelled),
        compare_ttft(&after.since(&between), &ours.since(&ours_between), false),
    ];
    let mut faults: Vec<String> = tables.iter().flat_map(Table::faults).collect();
    if after.since(&before).sum("vllm:num_preemptions_total", "") < 0.5 {
        faults.push("nothing was preempted, so that path was not tried".to_owned());
    }
    if !sent.iter().any(|sent| matches!(sent.kind, Kind::Stop | Kind::StopStream) && sent.finish_reasons == ["stop"]) {
        faults.push("no stop string was hit, so that path was not tried".to_owned());
    }
    for (name, dropped) in ["edge_ring", "data_ring", "queue", "decode"]
        .map(|stage| (stage, ours.sum("inferspan_events_dropped_total", &format!("stage=\"{stage}\""))))
    {
        if dropped > 0.0 {
            faults.push(format!("{dropped} events dropped at {name}"));
        }
    }
    let (found, wrong) = check_access(&sent, &finished.access, &target.model, plan.expect);
    faults.extend(wrong);
    faults.extend(check_traces(&sent, &found, &finished.access, &finished.traces, plan.expect));
    Ok(Report { tables, faults })
}

/// Attaches while a load is running: what began after that is complete, and what began before does no harm.
pub fn under_load(target: &Target, plan: &Plan, folder: &Path) -> std::io::Result<Report> {
    let running = load(target, &plan.kinds, plan.clients, plan.until, plan.seed + 2);
    let sender = thread::spawn(move || running.run());
    thread::sleep(Duration::from_secs(2));
    let attach = Attach::record(target.pid, folder)?;
    let attached = traffic::wall();
    let sent = sender.join().map_err(|_| std::io::Error::other("the load panicked"))??.requests;
    target.quiet()?;
    attach.metrics()?;
    let finished = attach.finish()?;
    let expect = Expect { since: attached, ..plan.expect };
    let later = sent.iter().filter(|sent| sent.started >= attached).count();
    let mut faults = Vec::new();
    if later * 4 < sent.len() || later == sent.len() {
        faults.push(format!("{later} of {} requests began after the attach: no late attach", sent.len()));
    }
    let (found, wrong) = check_access(&sent, &finished.access, &target.model, expect);
    faults.extend(wrong);
    faults.extend(check_traces(&sent, &found, &finished.access, &finished.traces, expect));
    faults.extend(finished.replay_faults);
    if finished.access.len() > sent.len() {
        faults.push(format!("{} records for {} requests", finished.access.len(), sent.len()));
    }
    Ok(Report { tables: Vec::new(), faults })
}

impl Report {
    /// Prints the tables, and panics with the faults if there are any.
    pub fn judge(&self) {
        for table in &self.tables {
            eprintln!("{table}");
        }
        super::verdict(&self.faults);
    }
}
