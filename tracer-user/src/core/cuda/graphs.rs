//! Graphs of a process: what was captured into them, and how often they were launched.
//!
//! Enters: captures, what is enqueued into them, instantiations. Leaves: what an instantiated graph holds; nothing when its capture was not
//! seen whole, and whether it was changed since. Invariant: a list has as many nodes as were enqueued, or there is none.

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
    /// It was updated since, and may hold others.
    pub changed: bool,
    pub replays: u64,
}

/// A capture that goes on.
#[derive(Debug, Default)]
struct Capture {
    contents: Contents,
    /// The graph that it goes into; 0 for a new one.
    into: u64,
}

#[derive(Debug, Default)]
pub(super) struct Graphs {
    /// By number.
    captures: BTreeMap<u32, Capture>,
    captured: BTreeMap<u64, Contents>,
    execs: BTreeMap<u64, Exec>,
}

impl Graphs {
    /// Something was enqueued into a capture.
    pub(super) fn node(&mut self, number: u32, kernel: Option<FunctionKey>) {
        let Some(Capture { contents, .. }) = self.captures.get_mut(&number) else { return };
        contents.nodes = contents.nodes.saturating_add(1);
        if contents.kernels.len() < MAX_NODES {
            contents.kernels.extend(kernel);
        }
    }

    pub(super) fn called(&mut self, call: &Call) {
        if let Some(number) = call.capture {
            self.node(number, None);
            return;
        }
        match call.what {
            CallKind::CaptureBegin { number, into } => {
                self.captures.insert(number, Capture { into, ..Capture::default() });
                bound(&mut self.captures);
            }
            CallKind::CaptureEnd { graph, number, nodes } => self.captured(graph, number, nodes),
            CallKind::GraphDestroy { graph } => {
                self.captured.remove(&graph);
            }
            CallKind::Instantiate { exec, graph } => {
                let contents = self.captured.get(&graph).cloned();
                self.execs.insert(exec, Exec { contents, changed: false, replays: 0 });
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
            CallKind::GraphLaunch { exec } => {
                self.execs.entry(exec).or_default().replays += 1;
                bound(&mut self.execs);
            }
            _ => {}
        }
    }

    /// A capture has ended, into which so many nodes were enqueued.
    fn captured(&mut self, graph: u64, number: u32, nodes: u32) {
        let before = self.captured.remove(&graph);
        let Some(Capture { mut contents, into }) = self.captures.remove(&number) else { return };
        if contents.nodes != nodes {
            return;
        }
        if into != 0 {
            // What it held before is part of it.
            let Some(Contents { mut kernels, nodes }) = before else { return };
            kernels.append(&mut contents.kernels);
            contents = Contents { kernels, nodes: nodes.saturating_add(contents.nodes) };
        }
        self.captured.insert(graph, contents);
        bound(&mut self.captured);
    }

    /// Records of these calls were lost: what is known may be another graph's.
    pub(super) fn lost(&mut self) {
        self.captures.clear();
        self.captured.clear();
        for exec in self.execs.values_mut() {
            exec.contents = None;
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

    const KEY: FunctionKey = FunctionKey { process: 1, epoch: 0, function: 3, api: Api::Driver };

    fn call(what: CallKind) -> Call {
        Call { what, entered: 0, stream: 7, caller: 0, capture: None }
    }

    /// Capture `number` of a kernel and a copy, as the kernel side counted it, into graph 5.
    fn capture(graphs: &mut Graphs, number: u32, into: u64, nodes: u32) {
        graphs.called(&call(CallKind::CaptureBegin { number, into }));
        graphs.node(number, Some(KEY));
        let copy = CallKind::Copy { kind: CopyKind::HostToDevice, bytes: 8 };
        graphs.called(&Call { capture: Some(number), ..call(copy) });
        graphs.called(&call(CallKind::CaptureEnd { graph: 5, number, nodes }));
    }

    /// What graph 5 holds, instantiated.
    fn contents(graphs: &mut Graphs) -> Option<Contents> {
        graphs.called(&call(CallKind::Instantiate { exec: 9, graph: 5 }));
        graphs.get(9).expect("instantiated").contents.clone()
    }

    #[test]
    fn a_graph_holds_what_was_captured_and_says_that_it_was_changed() {
        // begin · kernel · copy · end → graph 5 · instantiate → 9 · launch, twice · update
        let mut graphs = Graphs::default();
        capture(&mut graphs, 1, 0, 2);
        graphs.node(1, Some(KEY));
        assert_eq!(contents(&mut graphs), Some(Contents { kernels: vec![KEY], nodes: 2 }));
        graphs.called(&call(CallKind::GraphLaunch { exec: 9 }));
        graphs.called(&call(CallKind::GraphLaunch { exec: 9 }));
        let exec = |graphs: &Graphs| graphs.get(9).map(|exec| (exec.replays, exec.changed, exec.contents.is_some()));
        assert_eq!(exec(&graphs), Some((2, false, true)));
        graphs.called(&call(CallKind::ExecUpdate { exec: 9 }));
        assert_eq!(exec(&graphs), Some((2, true, true)));
    }

    #[test]
    fn captures_at_the_same_time_have_lists_of_their_own() {
        // begin 1 · begin 2 · kernel into 1 · end 2 → 6 · end 1 → 5
        let mut graphs = Graphs::default();
        for number in [1, 2] {
            graphs.called(&call(CallKind::CaptureBegin { number, into: 0 }));
        }
        graphs.node(1, Some(KEY));
        graphs.called(&call(CallKind::CaptureEnd { graph: 6, number: 2, nodes: 0 }));
        graphs.called(&call(CallKind::CaptureEnd { graph: 5, number: 1, nodes: 1 }));
        assert_eq!(contents(&mut graphs).map(|contents| contents.nodes), Some(1));
    }

    #[test]
    fn a_list_that_lacks_a_node_is_none() {
        // Three were enqueued, two were told. Then: whole, and a record of any graph is lost.
        let mut graphs = Graphs::default();
        capture(&mut graphs, 1, 0, 3);
        assert_eq!(contents(&mut graphs), None);
        capture(&mut graphs, 2, 0, 2);
        assert!(contents(&mut graphs).is_some());
        graphs.lost();
        assert_eq!(graphs.get(9).expect("still there").contents, None);
        assert_eq!(contents(&mut graphs), None);
    }

    #[test]
    fn a_handle_that_is_used_again_inherits_no_list() {
        let mut graphs = Graphs::default();
        capture(&mut graphs, 1, 0, 2);
        graphs.called(&call(CallKind::GraphDestroy { graph: 5 }));
        assert_eq!(contents(&mut graphs), None);
    }

    #[test]
    fn a_capture_into_a_graph_adds_to_what_it_holds() {
        let mut graphs = Graphs::default();
        capture(&mut graphs, 1, 5, 2);
        assert_eq!(contents(&mut graphs), None, "what it held before was not seen");
        capture(&mut graphs, 2, 0, 2);
        capture(&mut graphs, 3, 5, 2);
        assert_eq!(contents(&mut graphs).map(|contents| contents.nodes), Some(4));
    }

    #[test]
    fn a_graph_of_before_the_attach_has_replays_and_no_contents() {
        let mut graphs = Graphs::default();
        graphs.called(&call(CallKind::GraphLaunch { exec: 4 }));
        let exec = graphs.get(4).expect("heard of");
        assert_eq!((exec.replays, &exec.contents), (1, &None));
    }
}
