//! Where the libraries of a process lie in its memory.
//!
//! Enters: addresses in a process. Leaves: the mapping of a file that they lie in. Mappings are read again when an address is in none that is
//! known: a library may have been mapped since.

use std::collections::HashMap;

use crate::proc::Proc;
use crate::proc::text::Mapping;

/// Processes whose mappings are kept.
const MAX_PROCESSES: usize = 64;
/// An address that is in no mapping makes them be read again, so often for one process; a program that launches out of generated code has
/// many such.
const MAX_READS: u32 = 256;

#[derive(Debug, Default)]
pub(super) struct Maps {
    of: HashMap<u32, (Vec<Mapping>, u32)>,
}

impl Maps {
    /// The mapping that an address lies in.
    pub(super) fn find(&mut self, process: u32, address: u64) -> Option<Mapping> {
        let holds = |mapping: &&Mapping| (mapping.start..mapping.end).contains(&address);
        if let Some(mapping) = self.of.get(&process).and_then(|(maps, _)| maps.iter().find(holds)) {
            return Some(mapping.clone());
        }
        self.read(process);
        self.of.get(&process)?.0.iter().find(holds).cloned()
    }

    /// Executable mappings, one a file.
    pub(super) fn libraries(&mut self, process: u32) -> Vec<Mapping> {
        if !self.of.contains_key(&process) {
            self.read(process);
        }
        let mut libraries: Vec<Mapping> = Vec::new();
        for mapping in self.of.get(&process).into_iter().flat_map(|(maps, _)| maps) {
            let is_known = |library: &Mapping| (library.device, library.inode) == (mapping.device, mapping.inode);
            if mapping.executable && !libraries.iter().any(is_known) {
                libraries.push(mapping.clone());
            }
        }
        libraries
    }

    /// What a process maps, as somebody read it.
    pub(super) fn know(&mut self, process: u32, maps: Vec<Mapping>) {
        self.make_room(process);
        self.of.insert(process, (maps, 0));
    }

    /// What was known of a process may be another library's by now. One that is gone keeps what is known.
    pub(super) fn renew(&mut self, process: u32) {
        if self.of.contains_key(&process)
            && let Some(maps) = of_living(process)
        {
            self.of.insert(process, (maps, 0));
        }
    }

    fn make_room(&mut self, process: u32) {
        if self.of.len() >= MAX_PROCESSES && !self.of.contains_key(&process) {
            self.of.clear();
        }
    }

    fn read(&mut self, process: u32) {
        self.make_room(process);
        let (maps, reads) = self.of.entry(process).or_default();
        *reads += 1;
        if *reads <= MAX_READS {
            // One that is gone keeps what is known.
            *maps = of_living(process).unwrap_or_else(|| std::mem::take(maps));
        }
    }
}

/// What a process maps; nothing of one that is gone. One that has ended and was not waited for says that it maps nothing.
fn of_living(process: u32) -> Option<Vec<Mapping>> {
    Proc::this().maps(process).ok().filter(|maps| !maps.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_of_a_process_that_ended_and_was_not_waited_for_stays() {
        let mut ended = std::process::Command::new("true").spawn().expect("a process");
        let stat = std::path::PathBuf::from(format!("/proc/{}/stat", ended.id()));
        while !std::fs::read_to_string(&stat).expect("it is not waited for").contains(") Z ") {
            std::thread::yield_now();
        }
        let mut maps = Maps::default();
        maps.know(ended.id(), Proc::this().maps(std::process::id()).expect("maps"));
        let known = maps.of[&ended.id()].0.len();
        maps.renew(ended.id());
        assert!(maps.find(ended.id(), 1).is_none(), "nothing lies there, so they are read again");
        assert_eq!(maps.of[&ended.id()].0.len(), known);
        ended.wait().expect("it has ended");
    }

    #[test]
    fn what_is_known_of_a_process_is_read_again_while_it_lives() {
        let (this, gone) = (std::process::id(), u32::MAX);
        let mut maps = Maps::default();
        let stale = Proc::this().maps(this).expect("maps")[..1].to_vec();
        for process in [this, gone] {
            maps.know(process, stale.clone());
            maps.renew(process);
        }
        assert!(maps.of[&this].0.len() > 1);
        assert_eq!(maps.of[&gone].0.len(), 1);
    }
}
