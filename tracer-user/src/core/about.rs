//! What is known of the server: who it is, what its model is called, its clocks, and what its processes do.
//!
//! Enters: facts, and what the traffic teaches. Leaves: labels, roles, times. Invariant: the model's name is told once, when it first
//! is known; labels change with it.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use crate::clock::Clock;
use crate::input::{Fact, Probe, Role, Server};
use crate::model::trace_ids;
use crate::output::{Labels, Metric, ServerProcess};

#[derive(Debug)]
pub(super) struct About {
    pub server: Arc<Server>,
    /// The run's identity, which its trace ids are made of.
    pub run: u64,
    pub clock: Clock,
    /// The model label while the server's name for it is not known.
    learned_model: Option<Arc<str>>,
    /// Made once for each name of the model.
    labels: BTreeMap<u32, Labels>,
    /// The name under which the model's series went over to their own, once.
    told: bool,
    news: Option<Metric>,
    roles: BTreeMap<u32, Role>,
    /// Of workers whose titles say them.
    ranks: BTreeMap<u32, u32>,
    /// The process that sends an engine's outputs.
    engine_processes: BTreeMap<u32, u32>,
    /// Processes of which more is known than was told.
    met: Vec<ServerProcess>,
    tokenizer_probed: HashSet<u32>,
    /// Moves on when a role, or an engine's process, is another one.
    changes: u64,
}

/// What ended with a process.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Gone {
    /// Engines that it ran.
    pub engines: BTreeSet<u32>,
    /// It was the last one with the role of an engine.
    pub was_last_engine: bool,
}

impl Default for About {
    fn default() -> Self {
        let server = Server::default();
        Self {
            run: trace_ids::run_identity(&server),
            server: Arc::new(server),
            clock: Clock::default(),
            learned_model: None,
            labels: BTreeMap::new(),
            told: false,
            news: None,
            roles: BTreeMap::new(),
            ranks: BTreeMap::new(),
            engine_processes: BTreeMap::new(),
            met: Vec::new(),
            tokenizer_probed: HashSet::new(),
            changes: 0,
        }
    }
}

impl About {
    pub(super) fn fact(&mut self, fact: Fact) {
        match fact {
            Fact::Server(server) => {
                self.run = trace_ids::run_identity(&server);
                self.server = server;
                self.model_may_be_known();
            }
            Fact::Process { tgid, role } => {
                self.roles.insert(tgid, role);
                self.changes += 1;
                self.meets(tgid, role, None);
            }
            Fact::Rank { tgid, rank } => {
                self.ranks.insert(tgid, rank);
                self.changes += 1;
            }
            Fact::Clock { event_ns, unix_ns } => self.clock.anchor(event_ns, unix_ns),
            Fact::EngineClock { offset_ns } => self.clock.set_engine_offset(offset_ns),
            Fact::Probed { tgid, probe: Probe::Tokenizer } => {
                self.tokenizer_probed.insert(tgid);
            }
            // What these show is taken where it comes; that none came says nothing.
            Fact::Probed { .. } | Fact::Parent { .. } | Fact::Kernel { .. } | Fact::Caller { .. } => {}
        }
    }

    /// An engine said its version.
    pub(super) fn version(&mut self, version: String) {
        if self.server.engine_version.is_none() {
            self.server = Arc::new(Server { engine_version: Some(version), ..(*self.server).clone() });
        }
    }

    /// A response said what model gave it.
    pub(super) fn response_model(&mut self, model: &str) {
        if self.learned_model.is_none() {
            self.learned_model = Some(model.into());
            self.model_may_be_known();
        }
    }

    fn model_may_be_known(&mut self) {
        self.labels.clear();
        if let Some(model) = self.model().filter(|_| !self.told) {
            self.told = true;
            self.news = Some(Metric::ModelKnown { server: Arc::from(self.server.instance()), model });
        }
    }

    fn model(&self) -> Option<Arc<str>> {
        if self.server.model.is_empty() {
            self.learned_model.clone()
        } else {
            Some(Arc::from(self.server.model.as_str()))
        }
    }

    /// That the model's name is known, the first time that it is.
    pub(super) fn news(&mut self) -> Option<Metric> {
        self.news.take()
    }

    /// The labels of an engine's series.
    pub(super) fn labels(&self, engine: u32) -> Labels {
        if let Some(labels) = self.labels.get(&engine) {
            return labels.clone();
        }
        let model = self.model().unwrap_or_else(|| Arc::from("unknown"));
        Labels { server: Arc::from(self.server.instance()), model, engine }
    }

    /// An engine was heard of; `process`: where it sends from, when that was seen.
    pub(super) fn hears_of(&mut self, engine: u32, process: Option<u32>) {
        if !self.labels.contains_key(&engine) {
            self.labels.insert(engine, self.labels(engine));
        }
        if let Some(process) = process
            && self.engine_processes.insert(engine, process) != Some(process)
        {
            self.changes += 1;
            self.meets(process, self.role(process).unwrap_or(Role::Engine), Some(engine));
        }
    }

    fn meets(&mut self, process: u32, role: Role, engine: Option<u32>) {
        self.met.push(ServerProcess { server: Arc::clone(&self.server), process, role, engine });
    }

    /// Processes that were met since the last call.
    pub(super) fn take_met(&mut self) -> impl Iterator<Item = ServerProcess> + '_ {
        self.met.drain(..)
    }

    pub(super) fn role(&self, process: u32) -> Option<Role> {
        self.roles.get(&process).copied()
    }

    /// The rank of a worker, as its title says it.
    pub(super) fn rank(&self, process: u32) -> Option<u32> {
        self.ranks.get(&process).copied()
    }

    /// How often roles and engines' processes have changed: what was made of them is right as long as this stands.
    pub(super) fn changes(&self) -> u64 {
        self.changes
    }

    /// The process that sends each engine's outputs.
    pub(super) fn engine_processes(&self) -> &BTreeMap<u32, u32> {
        &self.engine_processes
    }

    /// Processes of a role, in the order of their numbers.
    pub(super) fn of_role(&self, role: Role) -> impl Iterator<Item = u32> {
        self.roles.iter().filter(move |(_, of)| **of == role).map(|(process, _)| *process)
    }

    pub(super) fn is_tokenizer_probed(&self, process: u32) -> bool {
        self.tokenizer_probed.contains(&process)
    }

    /// A process is gone.
    pub(super) fn exited(&mut self, process: u32) -> Gone {
        let role = self.roles.remove(&process);
        self.ranks.remove(&process);
        self.changes += 1;
        let engines =
            self.engine_processes.iter().filter(|(_, of)| **of == process).map(|(&engine, _)| engine).collect();
        self.engine_processes.retain(|_, of| *of != process);
        self.tokenizer_probed.remove(&process);
        let was_last_engine = role == Some(Role::Engine) && !self.roles.values().any(|&role| role == Role::Engine);
        Gone { engines, was_last_engine }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(model: &str) -> Fact {
        Fact::Server(Arc::new(Server { service: "vllm".into(), model: model.into(), pid: 7, ..Server::default() }))
    }

    #[test]
    fn the_models_name_is_told_once() {
        // a server without a name for it · a response names it · the server's own name comes late
        let mut about = About::default();
        about.fact(server(""));
        about.hears_of(0, None);
        assert_eq!(&*about.labels(0).model, "unknown");
        assert_eq!(about.news(), None);
        about.response_model("learned");
        assert!(matches!(about.news(), Some(Metric::ModelKnown { model, .. }) if &*model == "learned"));
        assert_eq!(&*about.labels(0).model, "learned");
        about.response_model("another");
        about.fact(server("own"));
        assert_eq!((&*about.labels(0).model, &*about.labels(3).model), ("own", "own"));
        assert_eq!(about.news(), None);
    }

    #[test]
    fn a_process_that_ends_takes_its_engines_along() {
        // engine 0 at process 20, engine 1 at 21 · 20 ends · 21 ends
        let mut about = About::default();
        for (engine, process) in [(0, 20), (1, 21)] {
            about.fact(Fact::Process { tgid: process, role: Role::Engine });
            about.hears_of(engine, Some(process));
        }
        assert_eq!(about.exited(20), Gone { engines: [0].into(), was_last_engine: false });
        assert_eq!(about.exited(21), Gone { engines: [1].into(), was_last_engine: true });
        assert_eq!(about.exited(21), Gone::default(), "it is gone already");
    }

    #[test]
    fn an_engine_says_its_version_once() {
        let mut about = About::default();
        about.version("0.32.0".into());
        about.version("0.1.0".into());
        assert_eq!(about.server.engine_version.as_deref(), Some("0.32.0"));
    }
}
