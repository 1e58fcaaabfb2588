//! What its steps did with CUDA, where that is seen.

use std::collections::BTreeMap;

use super::Kind;
use super::judge::{Charge, Judge, middle};
use super::ledger::Ledger;
use super::limits;
use super::usual::took_of;
use super::words::{count, number, percent, time};
use crate::output::EngineStep;
use crate::output::cuda::StepCuda;

/// A step with what it did.
type Seen<'a> = (&'a EngineStep, &'a StepCuda);

pub(super) fn judge(judge: &mut Judge<'_>) {
    let Some((from, to)) = judge.case.in_engine() else { return };
    let seen = judge.steps_within(from, to).iter().filter_map(|step| Some((*step, step.cuda.as_deref()?)));
    let seen: Vec<Seen<'_>> = seen.collect();
    if seen.is_empty() {
        return;
    }
    fallback(judge, &seen);
    straggler(judge, &seen);
    launches(judge, &seen);
    waits(judge, &seen);
}

fn charge(judge: &Judge<'_>, kind: Kind) -> Charge {
    Charge { kind, inferred: true, floor: judge.floor(limits::LEAST, limits::LEAST_SHARE_OF_WORK) }
}

/// Against steps of such batches that ran with their graph.
fn fallback(judge: &mut Judge<'_>, seen: &[Seen<'_>]) {
    let with_graph = |requests: u64| {
        let is_like = |other: &&Seen<'_>| {
            !other.1.fell_back && other.0.prefill_tokens == 0 && other.0.requests.max(1).ilog2() == requests.ilog2()
        };
        let like: Vec<u64> = seen.iter().filter(is_like).map(|other| took_of(other.0)).collect();
        if like.len() >= limits::LIKE { middle(like) } else { judge.usual.step_before(requests) }
    };
    let fell: Vec<(&EngineStep, u64)> = seen
        .iter()
        .filter(|(step, cuda)| cuda.fell_back && step.prefill_tokens == 0)
        .filter_map(|(step, _)| Some((*step, with_graph(step.requests.max(1))?)))
        .collect();
    let (took, usual) =
        (middle(fell.iter().map(|of| took_of(of.0)).collect()), middle(fell.iter().map(|of| of.1).collect()));
    let (Some(took), Some(usual)) = (took, usual) else { return };
    let claim = |ledger: &mut Ledger| {
        let over = |of: &(&EngineStep, u64)| took_of(of.0).saturating_sub(of.1);
        fell.iter().map(|of| ledger.claim_some(of.0.start_ns, of.0.end_ns, over(of))).sum()
    };
    judge.blame(&charge(judge, Kind::EagerFallback), claim, |_| {
        format!(
            "{} of its {} ran without the graph that such batches run with: {} instead of {}",
            number(fell.len() as u64),
            count(seen.len() as u64, "step"),
            time(took),
            time(usual)
        )
    });
}

fn straggler(judge: &mut Judge<'_>, seen: &[Seen<'_>]) {
    let late = seen.iter().filter_map(|(step, cuda)| Some((*step, cuda.straggler?, cuda.collective_skew_ns?)));
    let late: Vec<(&EngineStep, u32, u64)> = late.collect();
    let mut by_rank: BTreeMap<u32, usize> = BTreeMap::new();
    for (_, rank, _) in &late {
        *by_rank.entry(*rank).or_default() += 1;
    }
    let Some((rank, times)) = by_rank.into_iter().max_by_key(|of| of.1) else { return };
    if (times as f64) < late.len() as f64 * limits::LAST {
        return;
    }
    let its = || late.iter().filter(|of| of.1 == rank);
    let Some(skew) = middle(its().map(|of| of.2).collect()) else { return };
    let claim = |ledger: &mut Ledger| its().map(|of| ledger.claim_some(of.0.start_ns, of.0.end_ns, of.2)).sum();
    judge.blame(&charge(judge, Kind::Straggler), claim, |_| {
        let steps = count(late.len() as u64, "step");
        format!("rank {rank} came last to the collectives in {times} of {steps}, {} behind the first", time(skew))
    });
}

/// Sums over steps whose calls are surely theirs.
#[derive(Debug, Default)]
struct Sums {
    steps: f64,
    took: f64,
    gap: f64,
    wait: f64,
    launches: f64,
    waits: f64,
}

impl Sums {
    fn of(seen: &[Seen<'_>]) -> Self {
        let mut sums = Self::default();
        for (step, cuda) in seen {
            let processes = f64::from(cuda.processes.max(1));
            sums.steps += 1.0;
            sums.took += took_of(step) as f64;
            sums.gap += cuda.gap_ns as f64;
            sums.wait += cuda.wait_ns as f64 / processes;
            sums.launches += cuda.launches.saturating_add(cuda.graph_launches) as f64 / processes;
            sums.waits += cuda.waits as f64 / processes;
        }
        sums
    }
}

fn launches(judge: &mut Judge<'_>, seen: &[Seen<'_>]) {
    let sums = Sums::of(seen);
    let each = sums.launches / sums.steps;
    let is_bound = sums.gap >= sums.took * limits::GAP && sums.gap > 2.0 * sums.wait;
    if !is_bound || each < limits::MANY_LAUNCHES {
        return;
    }
    let claim = |ledger: &mut Ledger| {
        seen.iter().map(|(step, cuda)| ledger.claim_some(step.start_ns, step.end_ns, cuda.gap_ns)).sum()
    };
    judge.blame(&charge(judge, Kind::LaunchBound), claim, |_| {
        let share = percent(sums.gap / sums.took.max(1.0));
        format!("nothing was enqueued or waited for in {share} of its steps' time, with {each:.0} launches a step")
    });
}

fn waits(judge: &mut Judge<'_>, seen: &[Seen<'_>]) {
    let sums = Sums::of(seen);
    let each = sums.waits / sums.steps;
    if sums.wait < sums.took * limits::WAITING || each < limits::MANY_WAITS {
        return;
    }
    let claim = |ledger: &mut Ledger| {
        let of_one = |cuda: &StepCuda| cuda.wait_ns / u64::from(cuda.processes.max(1));
        seen.iter().map(|(step, cuda)| ledger.claim_some(step.start_ns, step.end_ns, of_one(cuda))).sum()
    };
    judge.blame(&charge(judge, Kind::SyncBound), claim, |_| {
        let share = percent(sums.wait / sums.took.max(1.0));
        format!("the CPU waited for the GPU {each:.0} times a step, {share} of its steps' time")
    });
}
