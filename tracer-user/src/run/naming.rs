//! Names of launched functions: at once where the handle says it, else from the libraries of the process, in the background. And of
//! libraries that allocate.
//!
//! Enters: functions as they are first launched, allocations. Leaves: a name each, sooner or later; the last resort is where it was launched. The thread
//! that feeds the run never waits for a library to be read. In this order: the text that the driver's handle points to; what the library
//! that holds the function registered for it; what the call returns into; which variable holds the handle; a symbol; the caller.

mod maps;
mod resolve;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use tracer_ebpf::wire::cuda::NAME_AT;

use self::resolve::Resolver;
use crate::input::Fact;
use crate::input::cuda::{Api, Call, CallKind, FunctionKey, KernelName, NamedBy, Seen};
use crate::kernel::name::Kernel;
use crate::proc::Proc;
use crate::proc::text::Mapping;

/// Functions that wait for their library to be read; what comes then is named by its caller alone.
const MAX_WAITING: usize = 65_536;
/// How long the end of a run waits for names: the largest library takes a second.
const LAST: Duration = Duration::from_secs(20);
/// Longest name, bytes; cutlass has some of 11,000.
const NAME_MAX: usize = 64 << 10;

/// What the thread is told.
#[derive(Debug)]
enum Word {
    Name(Ask),
    /// A place in a process that allocates.
    Caller(u32, u64),
    /// Where a process has its libraries: it may be gone when a name is looked for.
    Maps(u32, Vec<Mapping>),
}

/// A function that has no name yet.
#[derive(Debug)]
struct Ask {
    key: FunctionKey,
    callers: [u64; 4],
    /// What its handle points to, where that looks like a name.
    text: Option<String>,
}

#[derive(Debug)]
pub(super) struct Naming {
    ask: Sender<Word>,
    answers: Receiver<Fact>,
    waiting: usize,
    thread: Option<JoinHandle<()>>,
    /// How far behind a handle the address of its name is, by process, where it is not [`NAME_AT`].
    names_at: HashMap<u32, u32>,
    /// Places that allocate, of which the library was asked for.
    callers: HashSet<(u32, u64)>,
}

impl Default for Naming {
    fn default() -> Self {
        let (ask, asked) = bounded::<Word>(MAX_WAITING);
        let (answer, answers) = unbounded();
        let work = move || {
            let mut resolver = Resolver::new();
            for word in asked {
                match word {
                    Word::Maps(process, maps) => resolver.maps(process, maps),
                    Word::Name(ask) => {
                        let name = resolver.name(&ask);
                        if answer.send(Fact::Kernel { function: ask.key, name }).is_err() {
                            return;
                        }
                    }
                    Word::Caller(process, address) => {
                        let library = resolver.library_at(process, address);
                        if answer.send(Fact::Caller { process, address, library }).is_err() {
                            return;
                        }
                    }
                }
            }
        };
        // Without a thread there are no names but those of handles.
        let thread = std::thread::Builder::new().name("inferspan-names".to_owned()).spawn(work).ok();
        Self { ask, answers, waiting: 0, thread, names_at: HashMap::new(), callers: HashSet::new() }
    }
}

impl Naming {
    /// A process has seen something: the name of a function that says it itself; others are looked for, as are libraries that allocate.
    pub(super) fn meet(&mut self, process: u32, seen: &Seen) -> Option<Fact> {
        if let Seen::Call(Call { what: CallKind::Alloc { .. }, caller, .. }) = seen {
            self.allocates(process, *caller);
        }
        let Seen::Function { key, callers, text } = seen else { return None };
        // Its page may not have been in memory when the program looked; and long names it cuts.
        let is_whole = |text: &&String| text.len() + 1 < tracer_ebpf::wire::cuda::NAME_MAX;
        let whole = text.as_ref().filter(is_whole).cloned();
        let name_at = self.names_at.get(&key.process).copied().unwrap_or(NAME_AT);
        let text = whole.or_else(|| name_of_handle(key.process, key.function, name_at));
        if let (Api::Driver, Some(text)) = (key.api, &text) {
            return Some(Fact::Kernel { function: *key, name: named(text, NamedBy::Handle) });
        }
        if self.ask.try_send(Word::Name(Ask { key: *key, callers: *callers, text })).is_ok() {
            self.waiting += 1;
        }
        None
    }

    fn allocates(&mut self, process: u32, caller: u64) {
        // One that finds no room stays `unknown`.
        let is_new = caller != 0 && self.callers.len() < MAX_WAITING && self.callers.insert((process, caller));
        if is_new && self.ask.try_send(Word::Caller(process, caller)).is_ok() {
            self.waiting += 1;
        }
    }

    /// A process is gone, or has another image: its number may be another one's.
    pub(super) fn ended(&mut self, process: u32) {
        self.callers.retain(|(of, _)| *of != process);
    }

    /// The libraries of a process were looked at.
    pub(super) fn maps(&mut self, process: u32) {
        if let Ok(maps) = Proc::this().maps(process) {
            // What finds no room is read when it is needed.
            let _ = self.ask.try_send(Word::Maps(process, maps));
        }
    }

    /// How far behind the handles of a process the addresses of their names are.
    pub(super) fn names_at(&mut self, process: u32, offset: u32) {
        if offset == NAME_AT {
            self.names_at.remove(&process);
        } else {
            self.names_at.insert(process, offset);
        }
    }

    /// What was found since the last call.
    pub(super) fn found(&mut self) -> Vec<Fact> {
        let found: Vec<Fact> = self.answers.try_iter().collect();
        self.waiting = self.waiting.saturating_sub(found.len());
        found
    }

    /// The rest of them; waits for a bounded time.
    pub(super) fn last(&mut self) -> Vec<Fact> {
        let until = Instant::now() + LAST;
        let mut found = Vec::new();
        while self.waiting > 0 && self.thread.is_some() {
            let Ok(named) = self.answers.recv_deadline(until) else { break };
            self.waiting -= 1;
            found.push(named);
        }
        found
    }
}

fn named(name: &str, named_by: NamedBy) -> Arc<KernelName> {
    let Kernel { name, demangled, short, class } = Kernel::named(name);
    Arc::new(KernelName { name, demangled, short, class, named_by })
}

/// What the handle points to, read from the process.
fn name_of_handle(process: u32, handle: u64, name_at: u32) -> Option<String> {
    let proc = Proc::this();
    let mut pointer = [0; 8];
    proc.memory(process, handle.checked_add(u64::from(name_at))?, &mut pointer).ok()?;
    let mut address = u64::from_le_bytes(pointer);
    let mut name = Vec::new();
    // To the end of a page each time: what lies behind it may not be mapped.
    while name.len() < NAME_MAX {
        let mut page = vec![0; 4096 - (address % 4096) as usize];
        proc.memory(process, address, &mut page).ok()?;
        let end = page.iter().position(|&byte| byte == 0);
        name.extend_from_slice(&page[..end.unwrap_or(page.len())]);
        if end.is_some() {
            let is_name = !name.is_empty() && name.iter().all(u8::is_ascii_graphic);
            return if is_name { String::from_utf8(name).ok() } else { None };
        }
        address = address.checked_add(page.len() as u64)?;
    }
    None
}
