//! What was seen against what was done. Pure.
//!
//! Enters: a program's own account, the metrics page and the rows of `--kernels-out`. Leaves: a line for each thing that was compared,
//! equal or not; what an account does not have is not compared.

use std::collections::{BTreeMap, BTreeSet};

use inferspan_gpu_check::truth::{Amount, Truth};
use serde::{Deserialize, Serialize};

/// A wait that is timed from inside and from outside differs by the probes' own time: this share of it, and this much in all, ns.
const WAIT_SHARE: f64 = 0.02;
const WAIT_NS: f64 = 5e6;

/// One thing that was compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Check {
    pub(crate) what: String,
    pub(crate) done: String,
    pub(crate) seen: String,
    pub(crate) is_equal: bool,
}

/// A row of `--kernels-out`, as far as it is of interest here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kernel {
    pub(crate) name: String,
    pub(crate) demangled: String,
    pub(crate) launches: u64,
    pub(crate) named_by: String,
}

/// The metrics page: the sum of a metric's samples whose labels contain a text.
pub(crate) fn sum(page: &str, metric: &str, label: &str) -> f64 {
    let samples = page.lines().filter_map(|line| line.strip_prefix(metric));
    let samples = samples.filter(|rest| rest.starts_with(['{', ' ']) && rest.contains(label));
    samples.filter_map(|rest| rest.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// Every comparison, unequal ones too.
pub(crate) fn checks(truth: &Truth, page: &str, kernels: &[Kernel]) -> Vec<Check> {
    let count = |metric: &str, label: &str| sum(page, metric, label) as u64;
    let launches = truth.launches.values().sum::<u64>();
    let mut checks = vec![
        equal("launches", launches, count("inferspan_cuda_launches_total", "")),
        equal("graph launches", truth.graph_launches, count("inferspan_cuda_graph_launches_total", "")),
        equal("events lost", 0, count("inferspan_events_dropped_total", "")),
    ];
    checks.extend(names(&truth.launches, kernels));
    if let Some(copies) = &truth.copies {
        for kind in ["h2h", "h2d", "d2h", "d2d", "p2p", "unknown"] {
            let done = copies.get(kind).copied().unwrap_or_default();
            let label = format!("kind=\"{kind}\"");
            let seen = |metric| count(metric, &label);
            let seen =
                Amount { count: seen("inferspan_cuda_copies_total"), bytes: seen("inferspan_cuda_copy_bytes_total") };
            let text = |amount: Amount| format!("{} of {} bytes", amount.count, amount.bytes);
            checks.push(Check {
                what: format!("copies {kind}"),
                done: text(done),
                seen: text(seen),
                is_equal: done == seen,
            });
        }
    }
    if let Some(done) = truth.wait_ns {
        let (done, seen) = (done as f64, sum(page, "inferspan_cuda_sync_wait_seconds_total", "") * 1e9);
        checks.push(Check {
            what: "time in waits".to_owned(),
            done: format!("{:.3} ms", done / 1e6),
            seen: format!("{:.3} ms", seen / 1e6),
            is_equal: (done - seen).abs() <= WAIT_SHARE * done + WAIT_NS,
        });
    }
    checks
}

fn equal(what: &str, done: u64, seen: u64) -> Check {
    Check { what: what.to_owned(), done: done.to_string(), seen: seen.to_string(), is_equal: done == seen }
}

/// Launches by name. Demanglers differ in spaces; an account may hold mangled names or demangled ones.
fn names(done: &BTreeMap<String, u64>, kernels: &[Kernel]) -> Vec<Check> {
    let bare = |name: &str| name.split_whitespace().collect::<String>();
    let mut expected: BTreeMap<String, u64> = BTreeMap::new();
    for (name, launches) in done {
        *expected.entry(bare(name)).or_default() += launches;
    }
    let mut seen: BTreeMap<String, u64> = BTreeMap::new();
    for kernel in kernels {
        let mangled = bare(&kernel.name);
        let name = if expected.contains_key(&mangled) { mangled } else { bare(&kernel.demangled) };
        *seen.entry(name).or_default() += kernel.launches;
    }
    let all: BTreeSet<&String> = expected.keys().chain(seen.keys()).collect();
    let of = |names: &BTreeMap<String, u64>, name: &str| names.get(name).copied().unwrap_or_default();
    all.into_iter().map(|name| equal(&format!("kernel `{name}`"), of(&expected, name), of(&seen, name))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# TYPE inferspan_cuda_launches counter
inferspan_cuda_launches_total{engine=\"0\",class=\"gemm\"} 30
inferspan_cuda_launches_total{engine=\"0\",class=\"other\"} 12
inferspan_cuda_copies_total{kind=\"h2d\"} 2
inferspan_cuda_copy_bytes_total{kind=\"h2d\"} 64
inferspan_cuda_sync_wait_seconds_total 0.5
";

    fn truth() -> Truth {
        let launches = BTreeMap::from([("void f<int>(int, int)".to_owned(), 30), ("_Z1gv".to_owned(), 12)]);
        let copies = BTreeMap::from([("h2d".to_owned(), Amount { count: 2, bytes: 64 })]);
        Truth { launches, copies: Some(copies), wait_ns: Some(501_000_000), ..Truth::default() }
    }

    fn kernel(name: &str, demangled: &str, launches: u64) -> Kernel {
        Kernel { name: name.to_owned(), demangled: demangled.to_owned(), launches, named_by: "handle".to_owned() }
    }

    #[test]
    fn what_was_seen_as_it_was_done_is_equal_in_both_spellings_of_a_name() {
        let kernels = [kernel("_Z1fIiEvii", "void f<int>(int,int)", 30), kernel("_Z1gv", "g()", 12)];
        let checks = checks(&truth(), PAGE, &kernels);
        assert!(checks.iter().all(|check| check.is_equal), "{checks:?}");
        assert!(checks.iter().any(|check| check.what == "copies h2d" && check.seen == "2 of 64 bytes"));
    }

    #[test]
    fn every_difference_is_told() {
        let kernels = [kernel("_Z1fIiEvii", "void f<int>(int, int)", 29), kernel("_Z1hv", "h()", 13)];
        let page = PAGE.replace("} 64", "} 63").replace("0.5", "0.4");
        let checks = checks(&truth(), &page, &kernels);
        let unequal: Vec<&str> =
            checks.iter().filter(|check| !check.is_equal).map(|check| check.what.as_str()).collect();
        let expected =
            ["kernel `_Z1gv`", "kernel `h()`", "kernel `voidf<int>(int,int)`", "copies h2d", "time in waits"];
        assert_eq!(unequal, expected);
    }

    #[test]
    fn what_an_account_does_not_have_is_not_compared() {
        let truth = Truth { copies: None, wait_ns: None, ..truth() };
        let checks = checks(&truth, PAGE, &[]);
        assert!(!checks.iter().any(|check| check.what.contains("copies") || check.what.contains("wait")));
    }
}
