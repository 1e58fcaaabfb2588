//! Finds the name of a function in the libraries of its process.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use blazesym::Pid;
use blazesym::symbolize::source::{Process, Source as Symbols};
use blazesym::symbolize::{Input, Symbolized, Symbolizer};

use super::maps::Maps;
use super::{Ask, named};
use crate::attach::files;
use crate::attach::plan::{FileId, Library};
use crate::elf::Image;
use crate::input::cuda::{Api, Class, KernelName, NamedBy};
use crate::kernel::Table;
use crate::names;
use crate::names::cache::Cache;
use crate::proc::Proc;
use crate::proc::text::Mapping;

/// Tables that are kept; a worker launches out of a dozen libraries.
const MAX_TABLES: usize = 64;
/// Processes of which the newest epoch is known.
const MAX_PROCESSES: usize = 1024;
/// Handles in variables of a process that are read at a time.
const MAX_VARIABLES: usize = 1 << 17;

/// A library that was read.
#[derive(Debug)]
struct Read {
    table: Table,
    /// What an address in the file is higher than its offset, in the executable segment.
    above: u64,
}

pub(super) struct Resolver {
    maps: Maps,
    read: HashMap<FileId, Option<Rc<Read>>>,
    /// By process and file: handles, as its variables held them when they were last read.
    held: HashMap<(u32, FileId), HashMap<u64, u64>>,
    /// The newest epoch of each process's functions: what was read of it in an earlier one may not hold any more.
    epochs: HashMap<u32, u32>,
    symbols: Option<Symbolizer>,
    cache: Option<Cache>,
}

impl Resolver {
    pub(super) fn new() -> Self {
        let cache = Cache::open();
        let (maps, read, held, epochs) = (Maps::default(), HashMap::new(), HashMap::new(), HashMap::new());
        Self { maps, read, held, epochs, symbols: None, cache }
    }

    pub(super) fn maps(&mut self, process: u32, maps: Vec<Mapping>) {
        self.maps.know(process, maps);
    }

    pub(super) fn name(&mut self, ask: &Ask) -> Arc<KernelName> {
        let (process, function) = (ask.key.process, ask.key.function);
        if self.epochs.len() >= MAX_PROCESSES {
            self.epochs.clear();
        }
        let newest = self.epochs.entry(process).or_insert(ask.key.epoch);
        if ask.key.epoch > *newest {
            *newest = ask.key.epoch;
            self.held.retain(|(of, _), _| *of != process);
            self.maps.renew(process);
        }
        let is_host =
            ask.key.api == Api::Runtime && self.maps.find(process, function).is_some_and(|mapping| mapping.executable);
        if is_host {
            if let Some(name) = self.in_library(process, function, Table::of_host) {
                return named(&name, NamedBy::Registration);
            }
        } else if let Some(text) = &ask.text {
            return named(text, NamedBy::Handle);
        }
        for &caller in ask.callers.iter().filter(|&&caller| caller != 0) {
            if let Some(name) = self.in_library(process, caller, Table::of_launch) {
                return named(&name, NamedBy::LaunchSite);
            }
        }
        if let Some(name) = self.by_variable(process, function) {
            return named(&name, NamedBy::HandleVariable);
        }
        if is_host && let Some(symbol) = self.symbol(process, function) {
            return named(&symbol, NamedBy::Symbol);
        }
        Arc::new(self.by_caller(ask))
    }

    /// What the library that an address lies in says of it.
    fn in_library(&mut self, process: u32, address: u64, of: fn(&Table, u64) -> Option<&str>) -> Option<String> {
        let mapping = self.maps.find(process, address)?;
        let read = self.library(process, &mapping)?;
        let linked = address.checked_sub(bias(&mapping, &read)?)?;
        of(&read.table, linked).map(str::to_owned)
    }

    /// The kernel whose handle one of the process's variables holds.
    fn by_variable(&mut self, process: u32, handle: u64) -> Option<String> {
        for mapping in self.maps.libraries(process) {
            let Some(read) = self.library(process, &mapping) else { continue };
            let Some(bias) = bias(&mapping, &read) else { continue };
            let key = (process, (mapping.device, mapping.inode));
            let known = |held: &HashMap<u64, u64>| held.get(&handle).copied();
            if self.held.get(&key).and_then(known).is_none() && !read.table.handles().is_empty() {
                let mut held = HashMap::new();
                for &(variable, host) in read.table.handles().iter().take(MAX_VARIABLES) {
                    let mut bytes = [0; 8];
                    let address = variable.wrapping_add(bias);
                    if Proc::this().memory(process, address, &mut bytes).is_ok() && bytes != [0; 8] {
                        held.insert(u64::from_le_bytes(bytes), host);
                    }
                }
                self.held.insert(key, held);
            }
            if let Some(host) = self.held.get(&key).and_then(known) {
                return read.table.of_host(host).map(str::to_owned);
            }
        }
        None
    }

    fn library(&mut self, process: u32, mapping: &Mapping) -> Option<Rc<Read>> {
        let id = (mapping.device, mapping.inode);
        if let Some(known) = self.read.get(&id) {
            return known.clone();
        }
        if self.read.len() >= MAX_TABLES {
            self.read.clear();
        }
        let library = Library {
            device: mapping.device,
            inode: mapping.inode,
            path: mapping.path.clone(),
            through: (process, mapping.start, mapping.end),
            processes: vec![process],
        };
        let read = read(&library, self.cache.as_ref()).map(Rc::new);
        self.read.insert(id, read.clone());
        read
    }

    /// A symbol, of an ELF file or of generated code that has a perf map.
    fn symbol(&mut self, process: u32, address: u64) -> Option<String> {
        let symbols = self.symbols.get_or_insert_with(|| Symbolizer::builder().enable_demangling(false).build());
        let source = Symbols::Process(Process::new(Pid::from(process)));
        match symbols.symbolize_single(&source, Input::AbsAddr(address)).ok()? {
            Symbolized::Sym(symbol) => Some(symbol.name.into_owned()),
            Symbolized::Unknown(_) => None,
        }
    }

    /// Nothing says the name: the library that launched it, and where; not the runtime, which everybody launches through.
    fn by_caller(&mut self, ask: &Ask) -> KernelName {
        let mut places = ask.callers.iter().filter(|&&caller| caller != 0).filter_map(|&caller| {
            let mapping = self.maps.find(ask.key.process, caller)?;
            let name = mapping.path.file_name()?.to_string_lossy().into_owned();
            Some((name, caller - mapping.start + mapping.offset))
        });
        let first = places.next();
        let is_runtime = |name: &str| name.starts_with("libcudart") || name.starts_with("libcuda.so");
        let place = match first {
            Some((name, offset)) if is_runtime(&name) => {
                places.find(|(name, _)| !is_runtime(name)).or(Some((name, offset)))
            }
            other => other,
        };
        let name = place.map_or_else(
            || format!("unknown:{:#x}", ask.key.function),
            |(library, offset)| format!("unknown:{library}+{offset:#x}"),
        );
        let class = Class::Other;
        KernelName { demangled: name.clone(), short: name.clone(), name, class, named_by: NamedBy::Caller }
    }
}

/// What an address in the process is higher than in the file.
fn bias(mapping: &Mapping, read: &Read) -> Option<u64> {
    mapping.start.checked_sub(mapping.offset.checked_add(read.above)?)
}

/// Reads a library: nothing where it is no such file.
fn read(library: &Library, cache: Option<&Cache>) -> Option<Read> {
    let file = names::Library::open(&files::reach(library).ok()?).ok()?;
    let image = Image::read(&file).ok()?;
    let above = image.code().first().map(|code| code.address.wrapping_sub(code.offset))?;
    let table = names::table(&file, cache).ok()?;
    Some(Read { table, above })
}
