//! Ranks of workers: their places among those of their engine, as their titles say.
//!
//! Enters: what tells workers apart (`TP1`, `PP0_PCP1_TP0_EP3`), and their engines. Leaves: a number each, as vLLM numbers them: the
//! pipeline's stage counts most, then the context's part, then the tensor's. Others of a title's words (`EP`, `DCP`) are these numbers again. Refused:
//! a worker whose title says none of them, and all of an engine where two have the same.

use std::collections::{BTreeMap, BTreeSet};

use super::ServerProcess;
use crate::input::{Fact, Role};

/// What a rank is made of, what counts most first.
const PARTS: [&str; 3] = ["PP", "PCP", "TP"];

/// Numbers of these parts; those that a title does not have are 0.
fn parts(rank: &str) -> Option<[u32; PARTS.len()]> {
    let mut parts = [None; PARTS.len()];
    for word in rank.split('_') {
        let digits = word.trim_start_matches(|char: char| char.is_ascii_uppercase());
        let name = &word[..word.len() - digits.len()];
        if let Some(part) = PARTS.iter().position(|part| *part == name) {
            parts[part] = digits.parse().ok();
        }
    }
    parts.iter().any(Option::is_some).then(|| parts.map(Option::unwrap_or_default))
}

/// A fact for each worker whose rank is known.
pub(super) fn ranks(processes: &[ServerProcess]) -> Vec<Fact> {
    let mut engines: BTreeMap<Option<u32>, Vec<(u32, [u32; PARTS.len()])>> = BTreeMap::new();
    for process in processes.iter().filter(|process| process.role == Role::Worker) {
        if let Some(parts) = parts(&process.rank) {
            engines.entry(process.index).or_default().push((process.pid, parts));
        }
    }
    let mut facts = Vec::new();
    for workers in engines.values() {
        let sizes: [u32; PARTS.len()] = std::array::from_fn(|part| {
            workers.iter().map(|(_, parts)| parts[part]).max().unwrap_or(0).saturating_add(1)
        });
        let number = |parts: &[u32; PARTS.len()]| {
            parts.iter().zip(sizes).try_fold(0_u32, |number, (part, size)| number.checked_mul(size)?.checked_add(*part))
        };
        let ranks: Vec<(u32, u32)> = workers.iter().filter_map(|(pid, parts)| Some((*pid, number(parts)?))).collect();
        let distinct: BTreeSet<u32> = ranks.iter().map(|(_, rank)| *rank).collect();
        if distinct.len() == ranks.len() {
            facts.extend(ranks.into_iter().map(|(tgid, rank)| Fact::Rank { tgid, rank }));
        }
    }
    facts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(workers: &[(u32, u32, &str)]) -> Vec<(u32, u32)> {
        let processes: Vec<ServerProcess> =
            workers.iter().map(|(pid, engine, rank)| worker(*pid, *engine, rank)).collect();
        let number = |fact: Fact| match fact {
            Fact::Rank { tgid, rank } => (tgid, rank),
            other => panic!("{other:?}"),
        };
        ranks(&processes).into_iter().map(number).collect()
    }

    fn worker(pid: u32, engine: u32, rank: &str) -> ServerProcess {
        ServerProcess {
            pid,
            parent: 1,
            start_ticks: 0,
            namespace_pid: None,
            role: Role::Worker,
            index: Some(engine),
            rank: rank.to_owned(),
            comm: String::new(),
            tcp: Vec::new(),
            unix: Vec::new(),
            tokenizers: Vec::new(),
            network_namespace: None,
            clock_offset_ns: 0,
            readable: true,
        }
    }

    #[test]
    fn a_title_says_the_rank_whatever_the_number_of_the_process() {
        assert_eq!(found(&[(20, 0, "TP1"), (21, 0, "TP0")]), [(20, 1), (21, 0)]);
        // Each engine has its own.
        assert_eq!(found(&[(20, 0, "TP0"), (21, 1, "TP0")]), [(20, 0), (21, 0)]);
    }

    #[test]
    fn stages_of_a_pipeline_count_before_parts_of_a_tensor() {
        let workers = [(20, 0, "PP0_TP0_EP0"), (21, 0, "PP0_TP1_EP1"), (22, 0, "PP1_TP0_EP0"), (23, 0, "PP1_TP1_EP1")];
        assert_eq!(found(&workers), [(20, 0), (21, 1), (22, 2), (23, 3)]);
    }

    #[test]
    fn titles_that_say_nothing_or_the_same_give_no_rank() {
        assert_eq!(found(&[(20, 0, ""), (21, 0, "EP1"), (22, 0, "7")]), []);
        assert_eq!(found(&[(20, 0, "TP0"), (21, 0, "TP0")]), []);
    }
}
