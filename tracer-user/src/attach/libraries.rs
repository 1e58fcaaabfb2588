//! Which functions of which processes are probed.
//!
//! Enters: processes and their roles, as they come and go. Leaves: probes of every family that is of interest in them, and what a user
//! should know. Invariants: a file is read once a family and process probed once a file, however often they are looked at; the probes
//! of one process end with it, those of a file with the session.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::Level;
use super::family::{FAMILIES, Family, Library as Kind, Point, Scope};
use super::files;
use super::handles::{self, NamesAt};
use super::links::Link;
use super::loader::Probes;
use super::plan::{self, FileId, Library};
use crate::discover::printable_path;
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

#[derive(Debug)]
pub struct Libraries {
    level: Level,
    /// What files call themselves.
    sonames: BTreeMap<FileId, Option<String>>,
    /// What to probe in files that were read; `None`: they only look like such a library.
    points: BTreeMap<(Number, FileId), Option<Vec<Point>>>,
    /// Where the handles of drivers that were read keep their names.
    names_at: BTreeMap<FileId, NamesAt>,
    /// The same of processes.
    names_of: BTreeMap<u32, NamesAt>,
    /// Probed for every process.
    attached: BTreeSet<(Number, FileId)>,
    /// Probed in a process, or tried to be.
    tried: BTreeSet<(u32, Number, FileId)>,
    /// Families of which a process maps a library, probed or not.
    present: BTreeSet<(u32, Number)>,
    /// The user knows why.
    refused: BTreeSet<(Number, FileId, String)>,
    links: BTreeMap<(u32, Number), Vec<Link>>,
    /// Since when what stood in for a library that came is taken back, until the library itself is probed.
    gave_way: Option<Instant>,
    /// For the user, at the end of this round.
    said: Vec<String>,
    /// Of files, in whatever process: they end with the session.
    of_files: Vec<Link>,
}

/// A process whose libraries are looked at.
pub type Process = (u32, Role, Vec<Mapping>);

impl Libraries {
    pub fn new(level: Level) -> Self {
        Self {
            level,
            sonames: BTreeMap::new(),
            points: BTreeMap::new(),
            names_at: BTreeMap::new(),
            names_of: BTreeMap::new(),
            attached: BTreeSet::new(),
            tried: BTreeSet::new(),
            present: BTreeSet::new(),
            refused: BTreeSet::new(),
            links: BTreeMap::new(),
            gave_way: None,
            said: Vec::new(),
            of_files: Vec::new(),
        }
    }

    pub fn level(&self) -> Level {
        self.level
    }

    /// Probes what is new in `processes`, whose mappings are given. Best effort: what cannot be probed is told of. `has_messages`: they
    /// are an engine's whose messages are read.
    pub fn attach(&mut self, probes: &mut Probes, processes: &[Process], has_messages: bool) -> Attached {
        let mut result = Attached::default();
        for (number, family) in FAMILIES.into_iter().enumerate() {
            if family.level <= self.level && (has_messages || !family.needs_messages) {
                self.attach_family(probes, number, processes, has_messages, &mut result);
            }
        }
        result
    }

    fn attach_family(
        &mut self,
        probes: &mut Probes,
        number: Number,
        processes: &[Process],
        has_messages: bool,
        result: &mut Attached,
    ) {
        let family = FAMILIES[number];
        let of_interest = processes.iter().filter(|(_, role, _)| family.is_of_interest_in(*role, has_messages));
        let maps = of_interest.map(|(process, _, mappings)| (*process, mappings.as_slice()));
        let mut refusals: BTreeMap<u32, Vec<(FileId, String)>> = BTreeMap::new();
        let mut found: BTreeMap<u32, usize> = BTreeMap::new();
        for library in plan::libraries(maps, |path| family.library.may_be(path)) {
            if !self.is_called_so(family, &library) {
                continue;
            }
            for &process in &library.processes {
                let is_besides = family.unless.is_some_and(|other| self.present.contains(&(process, number_of(other))));
                if is_besides || !self.tried.insert((process, number, library.id())) {
                    continue;
                }
                let mappings = processes.iter().find(|(of, ..)| *of == process).map_or(&[][..], |(.., of)| of);
                let (functions, why) = self.attach_one(probes, number, &library, process, mappings);
                *found.entry(process).or_default() += functions.unwrap_or(0);
                let path = printable_path(&library.path);
                for why in why {
                    let text = format!("the {} in {path} is not probed: {why}; {}", family.what, family.without);
                    refusals.entry(process).or_default().push((library.id(), text));
                }
                if functions.is_none() {
                    found.remove(&process);
                }
            }
        }
        // An executable that is a shell around a library of Python has no table of its own.
        let is_told =
            |process: &u32| family.scope == Scope::File || !found.contains_key(process) || family.library.is_by_name();
        let unseen = refusals.into_iter().filter(|(process, _)| is_told(process));
        for (file, text) in unseen.flat_map(|(_, refused)| refused) {
            if self.refused.insert((number, file, text.clone())) {
                result.warnings.push(text);
            }
        }
        result.warnings.append(&mut self.said);
        result.probed.extend(found.into_iter().map(|(process, functions)| Probed { family, process, functions }));
    }

    /// Whether a file calls itself as a library of the family does.
    fn is_called_so(&mut self, family: &Family, library: &Library) -> bool {
        let Kind::Soname(is_called) = family.library else { return true };
        let soname = self
            .sonames
            .entry(library.id())
            .or_insert_with(|| files::reach(library).and_then(|path| files::soname(&path)).unwrap_or_default());
        soname.as_deref().is_some_and(is_called)
    }

    /// How many functions of a library were probed in a process, `None` where it is not probed at all; and why some, or all, were not.
    fn attach_one(
        &mut self,
        probes: &mut Probes,
        number: Number,
        library: &Library,
        process: u32,
        mappings: &[Mapping],
    ) -> (Option<usize>, Vec<String>) {
        let family = FAMILIES[number];
        let key = (number, library.id());
        if self.attached.contains(&key) {
            return (Some(0), Vec::new());
        }
        let because = |error: &dyn std::fmt::Display| (None, vec![error.to_string()]);
        let path = match files::reach(library) {
            Ok(path) => path,
            Err(error) => return because(&error),
        };
        let points = match self.points.entry(key) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => match files::points(&path, family) {
                Ok(points) => new.insert(points),
                Err(error) => return because(&error),
            },
        };
        let Some(points) = points.as_deref() else { return (None, Vec::new()) };
        if points.is_empty() {
            return because(&family.hidden);
        }
        let (points, why) = if family.scope == Scope::Process {
            as_in_file(process, mappings, library, points)
        } else {
            (points.to_vec(), Vec::new())
        };
        self.make_way(probes, number, process);
        if family.names_kernels {
            // Before the first launch is seen.
            let names_at = *self.names_at.entry(library.id()).or_insert_with(|| handles::names_at(&path));
            self.names_of.insert(process, names_at);
            probes.set_names_at(process, names_at.offset);
        }
        let one = (family.scope == Scope::Process).then_some(process);
        let links = match probes.attach_points(&path, &points, one) {
            Ok(links) => links,
            Err(error) => return because(&error),
        };
        if let Some(since) = self.gave_way.take() {
            let ms = since.elapsed().as_millis() + 1;
            self.said.push(format!(
                "the {} came to process {process} while it was traced: for {ms} ms {}",
                family.what, family.without
            ));
        }
        match family.scope {
            Scope::Process => self.links.entry((process, number)).or_default().extend(links),
            Scope::File => {
                self.attached.insert(key);
                self.of_files.extend(links);
            }
        }
        (Some(points.len()).filter(|&count| count > 0), why)
    }

    /// Where the handles of a process keep their names.
    pub fn names_at(&self, process: u32) -> NamesAt {
        self.names_of.get(&process).copied().unwrap_or_default()
    }

    /// A library of the family is there: what stands in for it goes first, so that nothing is seen twice.
    fn make_way(&mut self, probes: &mut Probes, number: Number, process: u32) {
        self.present.insert((process, number));
        for (other, family) in FAMILIES.iter().enumerate() {
            if family.unless.is_some_and(|of| number_of(of) == number)
                && let Some(links) = self.links.remove(&(process, other))
            {
                self.gave_way = Some(Instant::now());
                probes.detach(links);
            }
        }
    }

    /// All that is probed.
    pub fn into_links(self) -> Vec<Link> {
        self.of_files.into_iter().chain(self.links.into_values().flatten()).collect()
    }

    /// A process has ended: its number may be another one's.
    pub fn ended(&mut self, probes: &mut Probes, process: u32) {
        self.tried.retain(|(of, _, _)| *of != process);
        self.present.retain(|(of, _)| *of != process);
        if self.names_of.remove(&process).is_some() {
            probes.set_names_at(process, NamesAt::default().offset);
        }
        let its = (0..FAMILIES.len()).filter_map(|number| self.links.remove(&(process, number))).flatten();
        probes.detach_later(its.collect());
    }
}

fn number_of(family: &'static Family) -> Number {
    FAMILIES.iter().position(|other| std::ptr::eq(*other, family)).unwrap_or(FAMILIES.len())
}

/// The points whose code is the file's; and why the others are left alone.
fn as_in_file(process: u32, mappings: &[Mapping], library: &Library, points: &[Point]) -> (Vec<Point>, Vec<String>) {
    let (mut good, mut why) = (Vec::new(), Vec::new());
    for point in points {
        match files::is_as_in_file(process, mappings, library, point) {
            Ok(()) => good.push(point.clone()),
            Err(patched) => why.push(format!("{} in process {process}: {patched}", point.symbol)),
        }
    }
    (good, why)
}
