//! Graphs of a process: what was captured into them, and how often they were launched.
//!
//! Enters: captures, what is enqueued into them, instantiations. Leaves: what an instantiated graph holds, `None` when its capture was not
//! seen; and whether it was changed since.

use std::collections::BTreeMap;

use crate::input::cuda::{Call, CallKind, FunctionKey};

/// Graphs, captures and instantiated graphs that are kept; vLLM has some 70 of each.
const MAX_GRAPHS: usize = 4096;
/// Nodes that are listed of a graph.
const MAX_NODES: usize = 65_536;

/// What a graph holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Contents {
    /// Kernels, in the order in which they were captured.
    pub kernels: Vec<FunctionKey>,
    /// Kernels, copies and sets.
    pub nodes: u32,
}

/// An instantiated graph.
#[derive(Debug, Default)]
pub(super) struct Exec {
    /// `None`: not seen.
    pub contents: Option<Contents>,
    /// It was updated since, and may hold something else.
    pub changed: bool,
    pub replays: u64,
}

#[derive(Debug, Default)]
pub(super) struct Graphs {
    /// By thread and the number of its capture.
    captures: BTreeMap<(u32, u32), Contents>,
    captured: BTreeMap<u64, Contents>,
    execs: BTreeMap<u64, Exec>,
}

impl Graphs {
    /// Something was enqueued into a capture.
    pub(super) fn node(&mut self, thread: u32, number: u32, kernel: Option<FunctionKey>) {
        let Some(contents) = self.captures.get_mut(&(thread, number)) else { return };
        contents.nodes = contents.nodes.saturating_add(1);
        if contents.kernels.len() < MAX_NODES {
            contents.kernels.extend(kernel);
        }
    }

    pub(super) fn called(&mut self, thread: u32, call: &Call) {
        match call.what {
            CallKind::CaptureBegin { number } => {
                self.captures.insert((thread, number), Contents::default());
                bound(&mut self.captures);
            }
            CallKind::CaptureEnd { graph, number } => {
                if let Some(contents) = self.captures.remove(&(thread, number)) {
                    self.captured.insert(graph, contents);
                    bound(&mut self.captured);
                }
            }
            CallKind::Instantiate { exec, graph } => {
                let contents = self.captured.get(&graph).cloned();
                self.execs.insert(exec, Exec { contents, ..Exec::default() });
                bound(&mut self.execs);
            }
            CallKind::ExecUpdate { exec } => {
                if let Some(exec) = self.execs.get_mut(&exec) {
                    exec.changed = true;
                }
            }
            CallKind::ExecDestroy { exec } => {
                self.execs.remove(&exec);
            }
            CallKind::GraphLaunch { exec } if !call.captured => {
                self.execs.entry(exec).or_default().replays += 1;
                bound(&mut self.execs);
            }
            _ if call.captured => {
                // The newest capture of the thread: the record of a copy does not say which.
                let newest = self.captures.range((thread, 0)..=(thread, u32::MAX)).next_back().map(|(key, _)| *key);
                if let Some((thread, number)) = newest {
                    self.node(thread, number, None);
                }
            }
            _ => {}
        }
    }

    /// An instantiated graph that was heard of.
    pub(super) fn get(&self, exec: u64) -> Option<&Exec> {
        self.execs.get(&exec)
    }
}

/// The oldest numbers go first.
fn bound<K: Ord + Clone, V>(map: &mut BTreeMap<K, V>) {
    while map.len() > MAX_GRAPHS {
        map.pop_first();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::cuda::{Api, CopyKind};

    fn call(what: CallKind) -> Call {
        Call { what, entered: 0, stream: 7, caller: 0, captured: false }
    }

    #[test]
    fn a_graph_holds_what_was_captured_until_it_is_changed() {
        // begin · kernel · copy · end → graph 5 · instantiate → 9 · launch, twice · update
        let key = FunctionKey { process: 1, epoch: 0, function: 3, api: Api::Driver };
        let mut graphs = Graphs::default();
        graphs.called(1, &call(CallKind::CaptureBegin { number: 1 }));
        graphs.node(1, 1, Some(key));
        let copy = CallKind::Copy { kind: CopyKind::HostToDevice, bytes: 8 };
        graphs.called(1, &Call { captured: true, ..call(copy) });
        graphs.called(1, &call(CallKind::CaptureEnd { graph: 5, number: 1 }));
        graphs.node(1, 1, Some(key));
        graphs.called(1, &call(CallKind::Instantiate { exec: 9, graph: 5 }));
        graphs.called(1, &call(CallKind::GraphLaunch { exec: 9 }));
        graphs.called(1, &call(CallKind::GraphLaunch { exec: 9 }));
        let exec = graphs.get(9).expect("instantiated");
        assert_eq!((exec.replays, exec.contents.clone()), (2, Some(Contents { kernels: vec![key], nodes: 2 })));
        graphs.called(1, &call(CallKind::ExecUpdate { exec: 9 }));
        let exec = graphs.get(9).expect("still there");
        assert!(exec.changed && exec.contents.is_some());
    }

    #[test]
    fn a_graph_of_before_the_attach_has_replays_and_no_contents() {
        let mut graphs = Graphs::default();
        graphs.called(1, &call(CallKind::GraphLaunch { exec: 4 }));
        let exec = graphs.get(4).expect("heard of");
        assert_eq!((exec.replays, &exec.contents), (1, &None));
    }
}
