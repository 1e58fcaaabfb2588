//! What would be probed, and what would be left alone, and why; nothing is attached.
//!
//! Enters: processes with what they map, or one file. Leaves: for each family and library its points. The questions are those of
//! [`super::libraries`], asked of the same functions, and of the machine as it is now. It needs to read and nothing else. Refused:
//! nothing; what cannot be read says so in its place.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::exports::Exports;
use super::family::{FAMILIES, Family, Library as Kind, Point, Scope};
use super::files;
use super::handles::{self, NamesAt};
use super::libraries::Process;
use super::plan::{self, Library};

/// A library, as one family sees it.
#[derive(Debug, Clone)]
pub struct Surveyed {
    pub family: &'static Family,
    /// As its process sees it.
    pub path: PathBuf,
    pub soname: Option<String>,
    /// False: its name or its exports are like such a library's, and not both.
    pub is_one: bool,
    /// Those that map it and are of interest; none where a file was asked for.
    pub processes: Vec<u32>,
    /// Empty where nothing of it would be probed.
    pub points: Vec<Judged>,
    /// Why nothing of it would be probed.
    pub refused: Option<String>,
    /// Of a driver: where its handles keep the names of kernels.
    pub names_at: Option<NamesAt>,
}

/// A point, and why it would be left alone.
#[derive(Debug, Clone)]
pub struct Judged {
    pub point: Point,
    pub refused: Option<String>,
}

/// What would be probed in processes. `has_messages`: they are an engine's whose messages are read.
pub fn processes(processes: &[Process], has_messages: bool) -> Vec<Surveyed> {
    let everything = processes.iter().map(|(process, _, mappings)| (*process, mappings.as_slice()));
    let mut found = Vec::new();
    for library in plan::libraries(everything, |_| true) {
        let Ok(path) = files::reach(&library) else { continue };
        let families = FAMILIES.into_iter().filter(|family| has_messages || !family.needs_messages);
        for family in families.filter(|family| family.library.may_be(&library.path)) {
            let is_of_interest = |process: &u32| {
                processes
                    .iter()
                    .any(|(number, role, _)| number == process && family.is_of_interest_in(*role, has_messages))
            };
            let concerned: Vec<u32> = library.processes.iter().copied().filter(is_of_interest).collect();
            if concerned.is_empty() {
                continue;
            }
            let surveyed = survey(&path, &library.path, family);
            found.extend(surveyed.map(|surveyed| {
                let judged = judge(surveyed.points, family, processes, &concerned, &library);
                Surveyed { points: judged, processes: concerned, ..surveyed }
            }));
        }
    }
    leave_to_others(&mut found);
    found
}

/// What would be probed in a file, whoever maps it.
pub fn file(path: &Path) -> io::Result<Vec<Surveyed>> {
    File::open(path)?;
    let families = FAMILIES.into_iter().filter(|family| family.library.may_be(path));
    Ok(families.filter_map(|family| survey(path, path, family)).collect())
}

/// One file for one family; nothing where it is none of its libraries, and does not look like one.
fn survey(reached: &Path, shown: &Path, family: &'static Family) -> Option<Surveyed> {
    let soname = files::soname(reached).ok().flatten();
    let base = Surveyed {
        family,
        path: shown.to_owned(),
        soname,
        is_one: true,
        processes: Vec::new(),
        points: Vec::new(),
        refused: None,
        names_at: None,
    };
    let looks = |base, why: String| {
        Some(Surveyed { is_one: false, refused: Some(format!("it only looks like one: {why}")), ..base })
    };
    if let Kind::Soname(is_called) = family.library
        && !base.soname.as_deref().is_some_and(is_called)
    {
        let likeness = family.likeness?;
        let exports = Exports::read(&File::open(reached).ok()?).ok()??;
        let name = base.soname.clone().unwrap_or_else(|| "nothing".to_owned());
        return if exports.has(likeness) {
            looks(base, format!("it exports {likeness} and calls itself {name}"))
        } else {
            None
        };
    }
    match files::points(reached, family) {
        Ok(Some(points)) if points.is_empty() => Some(Surveyed { refused: Some(family.hidden.to_owned()), ..base }),
        Ok(Some(points)) => {
            let points = points.into_iter().map(|point| Judged { point, refused: None }).collect();
            let names_at = family.names_kernels.then(|| handles::names_at(reached));
            Some(Surveyed { points, names_at, ..base })
        }
        Ok(None) => looks(base, "it lacks exports that every such library has".to_owned()),
        Err(error) => Some(Surveyed { refused: Some(format!("it cannot be read: {error}")), ..base }),
    }
}

/// The points, each with what is against it in the first process where something is.
fn judge(
    points: Vec<Judged>,
    family: &Family,
    processes: &[Process],
    concerned: &[u32],
    library: &Library,
) -> Vec<Judged> {
    if family.scope != Scope::Process {
        return points;
    }
    let against = |point: &Point| {
        let mut maps = processes.iter().filter(|(process, ..)| concerned.contains(process));
        maps.find_map(|(process, _, mappings)| {
            let error = files::is_as_in_file(*process, mappings, library, point).err()?;
            Some(format!("in process {process}: {error}"))
        })
    };
    points.into_iter().map(|Judged { point, .. }| Judged { refused: against(&point), point }).collect()
}

/// A family that stands in for another is not probed where that one is.
fn leave_to_others(found: &mut [Surveyed]) {
    let there: BTreeSet<(&str, u32)> = found
        .iter()
        .filter(|library| !library.points.is_empty())
        .flat_map(|library| library.processes.iter().map(|process| (library.family.what, *process)))
        .collect();
    for library in found {
        let Some(other) = library.family.unless else { continue };
        if !library.points.is_empty() && library.processes.iter().all(|process| there.contains(&(other.what, *process)))
        {
            let why = format!("the {} is mapped, and sees them", other.what);
            library.points.iter_mut().for_each(|judged| judged.refused = Some(why.clone()));
        }
    }
}
