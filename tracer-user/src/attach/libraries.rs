//! Which functions of which processes are probed.
//!
//! Enters: processes and their roles, as they come and go. Leaves: probes of every family that is of interest in them, and what a user
//! should know. Invariants: a file is read once a family and process probed once a file, however often they are looked at; the probes
//! of one process end with it, those of a file with the session.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use super::family::{FAMILIES, Family, Point, Scope};
use super::files;
use super::loader::{Link, Probes};
use super::plan::{self, FileId, Library};
use crate::input::{Probe, Role};
use crate::proc::text::Mapping;

/// What attaching to the libraries of some processes gave.
#[derive(Debug, Default)]
pub struct Attached {
    pub probed: Vec<Probed>,
    /// Why a library that is mapped is not probed; for the user.
    pub warnings: Vec<String>,
}

/// No call of a family's functions in a process can be missed from now on.
#[derive(Debug, Clone, Copy)]
pub struct Probed {
    pub family: &'static Family,
    pub process: u32,
    /// Functions that were probed for it and were not before.
    pub functions: usize,
}

impl Attached {
    /// Functions that were probed with this kind of probe.
    pub fn functions(&self, probe: Probe) -> usize {
        self.probed.iter().filter(|probed| probed.family.probe == probe).map(|probed| probed.functions).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.probed.is_empty() && self.warnings.is_empty()
    }
}

/// Index into [`FAMILIES`].
type Number = usize;

#[derive(Debug, Default)]
pub struct Libraries {
    /// What to probe in files that were read.
    points: BTreeMap<(Number, FileId), Vec<Point>>,
    /// Probed for every process.
    attached: BTreeSet<(Number, FileId)>,
    /// Probed in a process, or tried to be.
    tried: BTreeSet<(u32, Number, FileId)>,
    /// The user knows why.
    refused: BTreeSet<(Number, FileId)>,
    links: BTreeMap<u32, Vec<Link>>,
}

impl Libraries {
    /// Probes what is new in `processes`, whose mappings are given. Best effort: what cannot be probed is told of.
    pub fn attach(&mut self, probes: &mut Probes, processes: &[(u32, Role, Vec<Mapping>)]) -> Attached {
        let mut result = Attached::default();
        for (number, family) in FAMILIES.into_iter().enumerate() {
            let of_interest = processes.iter().filter(|(_, role, _)| family.roles.contains(role));
            let maps = of_interest.map(|(process, _, mappings)| (*process, mappings.as_slice()));
            let mut refusals: BTreeMap<u32, Vec<(FileId, String)>> = BTreeMap::new();
            let mut found: BTreeMap<u32, usize> = BTreeMap::new();
            for library in plan::libraries(maps, family.is_library) {
                for &process in &library.processes {
                    if !self.tried.insert((process, number, library.id())) {
                        continue;
                    }
                    match self.attach_one(probes, number, &library, process) {
                        Ok(functions) => *found.entry(process).or_default() += functions,
                        Err(why) => {
                            let path = library.path.display();
                            let text =
                                format!("the {} in {path} is not probed: {why}; {}", family.what, family.without);
                            refusals.entry(process).or_default().push((library.id(), text));
                        }
                    }
                }
            }
            // An executable that is a shell around a library of Python has no table of its own.
            let unseen = refusals.into_iter().filter(|(process, _)| !found.contains_key(process));
            for (file, text) in unseen.flat_map(|(_, refused)| refused) {
                if self.refused.insert((number, file)) {
                    result.warnings.push(text);
                }
            }
            result.probed.extend(found.into_iter().map(|(process, functions)| Probed { family, process, functions }));
        }
        result
    }

    fn attach_one(
        &mut self,
        probes: &mut Probes,
        number: Number,
        library: &Library,
        process: u32,
    ) -> Result<usize, String> {
        let family = FAMILIES[number];
        let key = (number, library.id());
        if self.attached.contains(&key) {
            return Ok(0);
        }
        let path = files::reach(library).map_err(|error| error.to_string())?;
        let points = match self.points.entry(key) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(files::points(&path, family).map_err(|error| error.to_string())?),
        };
        if points.is_empty() {
            return Err(family.hidden.to_owned());
        }
        let one = (family.scope == Scope::Process).then_some(process);
        let links = probes.attach_points(family.programs, &path, points, one).map_err(|error| error.to_string())?;
        match family.scope {
            Scope::Process => self.links.entry(process).or_default().extend(links),
            // They end with the session.
            Scope::File => {
                self.attached.insert(key);
            }
        }
        Ok(points.len())
    }

    /// A process has ended: its number may be another one's.
    pub fn ended(&mut self, probes: &mut Probes, process: u32) {
        self.tried.retain(|(of, _, _)| *of != process);
        probes.detach(self.links.remove(&process).unwrap_or_default());
    }
}
