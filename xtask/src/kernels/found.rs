//! What a machine found, as rows of a table, and what is wrong with it.
//!
//! Enters: the guest's findings (`tests/src/bin/kernel-guest.rs`). Leaves: a row a level, and a sentence for each fault.

use std::fmt::Write as _;

use serde_json::Value;

/// What all that are pinned end with.
const FLAVOUR: &str = "-cloud-amd64";
/// Columns, in their order.
const HEAD: [&str; 10] = [
    "kernel",
    "level",
    "programs",
    "probes by",
    "requests",
    "prompt tokens",
    "generation tokens",
    "launches",
    "copies",
    "lost",
];
/// Of the counts that are shown, in the order of their columns.
const SHOWN: [&str; 5] = ["requests", "prompt tokens", "generation tokens", "launches", "copies"];
/// What only probes of functions count.
const PROBED: [&str; 3] = ["launches", "graph launches", "copies"];
/// The first kernel that tells a program which of its probes it stands at (`bpf_get_attach_cookie`).
const COOKIES: (u32, u32) = (5, 15);

pub(super) type Row = [String; HEAD.len()];

/// The rows of a machine, and its faults.
pub(super) fn rows(findings: &[Value]) -> (Vec<Row>, Vec<String>) {
    let (mut rows, mut faults) = (Vec::new(), Vec::new());
    let mut kernel = String::from("unknown");
    let mut programs = String::new();
    let mut probes = true;
    for finding in findings {
        if let Some(found) = finding.get("programs") {
            kernel = text(&finding["release"]);
            probes = version(&kernel) >= COOKIES;
            programs = share(found);
            faults.extend(refused(found, probes).map(|said| format!("{kernel}: {said}")));
        } else if let Some(level) = finding.get("level") {
            rows.push(row(&kernel, &programs, level, probes));
            let at = format!("{kernel}, level {}", text(&level["name"]));
            faults.extend(wrong(level, probes).map(|said| format!("{at}: {said}")));
        } else if let Some(error) = finding["end"]["error"].as_str() {
            faults.push(format!("{kernel}: {error}"));
        }
    }
    (rows, faults)
}

/// The table of all rows.
pub(super) fn table(rows: &[Row]) -> String {
    let head = HEAD.map(str::to_owned);
    let all: Vec<&Row> = std::iter::once(&head).chain(rows).collect();
    let mut shown = String::new();
    for row in &all {
        let cells = (0..HEAD.len()).map(|at| {
            let width = all.iter().map(|row| row[at].chars().count()).max().unwrap_or(0);
            format!("{:width$}", row[at])
        });
        let _ = writeln!(shown, "{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
    shown
}

fn row(kernel: &str, programs: &str, level: &Value, probes: bool) -> Row {
    let count = |what: &str| {
        let of = counts(level).find(|count| count.what == what);
        let shown = of.filter(|_| probes || !PROBED.contains(&what));
        shown.map_or_else(|| "-".to_owned(), |count| count.shown())
    };
    let [requests, prompt, generation, launches, copies] = SHOWN.map(count);
    // A sum of nothing is -0.
    let lost = pairs(&level["dropped"]).filter_map(|(_, count)| count.as_f64()).fold(0.0, std::ops::Add::add);
    let by = links(&level["links"]);
    let kernel = kernel.strip_suffix(FLAVOUR).unwrap_or(kernel).to_owned();
    let (name, programs) = (text(&level["name"]), programs.to_owned());
    [kernel, name, programs, by, requests, prompt, generation, launches, copies, format!("{lost:.0}")]
}

/// Which kinds of link the probes of functions have, by the kernel's names for links; a perf event may stand without one.
fn links(kinds: &Value) -> String {
    let of = |names: &[&str]| -> u64 {
        pairs(kinds).filter(|(kind, _)| names.contains(kind)).filter_map(|(_, count)| count.as_u64()).sum()
    };
    match (of(&["uprobe_multi", "uretprobe_multi"]), of(&["perf", "perf event"])) {
        (0, 0) => "-".to_owned(),
        (links, 0) => format!("{links} links of many"),
        (0, events) => format!("{events} perf events"),
        (links, events) => format!("{links} links of many, {events} perf events"),
    }
}

/// How many programs the kernel took.
fn share(programs: &Value) -> String {
    let taken: u64 = pairs(&programs["taken"]).filter_map(|(_, count)| count.as_u64()).sum();
    let refused: usize = pairs(&programs["refused"]).map(|(_, names)| pairs(names).count()).sum();
    format!("{taken} of {}", taken + refused as u64)
}

/// Programs that the kernel should have taken.
fn refused(programs: &Value, probes: bool) -> impl Iterator<Item = String> {
    let kinds = pairs(&programs["refused"]).filter(move |(kind, _)| probes || *kind != "uprobe");
    kinds.flat_map(|(kind, names)| {
        pairs(names).map(move |(name, said)| format!("the {kind} program {name} is refused: {}", text(said)))
    })
}

fn wrong(level: &Value, probes: bool) -> impl Iterator<Item = String> {
    let seen = counts(level).filter(move |count| probes || !PROBED.contains(&count.what.as_str()));
    let apart = seen.filter(|count| !count.holds()).map(|Count { what, server, ours, more }| {
        format!("{what}: the server says {server:.0}, and {more:.0} more that it dropped; inferspan {ours:.0}")
    });
    let faults = level["faults"].as_array().into_iter().flatten().map(text);
    let lost = pairs(&level["dropped"]).map(|(stage, count)| format!("lost: {stage} {count}"));
    apart.chain(faults).chain(lost)
}

/// What is counted by both.
struct Count {
    what: String,
    server: f64,
    ours: f64,
    /// What came for requests that were given up, which the server drops: inferspan has some of it, by when it came.
    more: f64,
}

impl Count {
    fn holds(&self) -> bool {
        (self.server..=self.server + self.more).contains(&self.ours)
    }

    fn shown(&self) -> String {
        let Self { server, ours, more, .. } = self;
        if *more > 0.0 { format!("{ours:.0} of {server:.0} (+{more:.0})") } else { format!("{ours:.0} of {server:.0}") }
    }
}

fn counts(level: &Value) -> impl Iterator<Item = Count> {
    let rows = level["counts"].as_array().into_iter().flatten();
    let number = |of: &Value| of.as_f64().unwrap_or(0.0);
    rows.map(move |row| Count {
        what: text(&row[0]),
        server: number(&row[1]),
        ours: number(&row[2]),
        more: number(&row[3]),
    })
}

fn pairs(of: &Value) -> impl Iterator<Item = (&str, &Value)> {
    of.as_object().into_iter().flatten().map(|(name, value)| (name.as_str(), value))
}

fn text(of: &Value) -> String {
    of.as_str().unwrap_or_default().to_owned()
}

/// `5.10.0-32-cloud-amd64` as (5, 10).
fn version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(['.', '-']).map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn findings(release: &str, kind: &str, prompt: u64) -> Vec<Value> {
        vec![
            json!({"release": release, "programs": {"taken": {"tracepoint": 5}, "refused": {kind: {"call": "unknown func"}}}}),
            json!({"level": {
                "name": "steps", "links": {"raw_tracepoint": 4, "uprobe_multi": 6, "uretprobe_multi": 1}, "dropped": {}, "faults": [],
                "counts": [["requests", 80.0, 80.0, 0.0], ["prompt tokens", 2986.0, prompt, 0.0],
                    ["generation tokens", 900.0, 902.0, 3.0], ["launches", 50.0, 0.0, 0.0]]}}),
            json!({"end": {"error": null}}),
        ]
    }

    #[test]
    fn counts_that_are_equal_are_no_fault_and_neither_is_what_the_server_dropped() {
        let (rows, faults) = rows(&findings("5.10.0-32-cloud-amd64", "uprobe", 2986));
        assert_eq!(faults, [""; 0], "an old kernel refuses programs of functions, and counts no launches");
        assert_eq!(rows[0][0], "5.10.0-32");
        assert_eq!(rows[0][2..7], ["5 of 6", "7 links of many", "80 of 80", "2986 of 2986", "902 of 900 (+3)"]);
        assert_eq!((rows[0][7].as_str(), rows[0][9].as_str()), ("-", "0"));
    }

    #[test]
    fn links_are_named_by_what_holds_them() {
        assert_eq!(links(&json!({"raw_tracepoint": 4})), "-");
        assert_eq!(links(&json!({"raw_tracepoint": 4, "perf": 85})), "85 perf events");
    }

    #[test]
    fn what_differs_or_is_refused_is_a_fault() {
        let (_, faults) = rows(&findings("6.1.0-50-cloud-amd64", "uprobe", 2930));
        assert_eq!(faults.len(), 3, "{faults:?}");
        assert!(
            faults[0].contains("call is refused")
                && faults[1].contains("2986, and 0 more that it dropped; inferspan 2930"),
            "{faults:?}"
        );
        let (_, faults) = rows(&findings("5.10.0-32-cloud-amd64", "tracepoint", 2986));
        assert_eq!(faults.len(), 1, "{faults:?}");
        let mut short = findings("5.10.0-32-cloud-amd64", "uprobe", 2986);
        short[1]["level"]["counts"][2][2] = 899.0.into();
        assert_eq!(rows(&short).1.len(), 1, "never less than the server counts");
    }
}
