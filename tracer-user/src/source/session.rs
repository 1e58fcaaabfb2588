//! A session: attached programs, and the thread that reads what they see.
//!
//! Enters: processes to trace. Leaves: inputs, out of one channel. Invariant: dropping it detaches everything.

use crossbeam_channel::Receiver;

use super::ring::{Command, Reader, monotonic_ns};
use crate::attach::family::FAMILIES;
use crate::attach::handles::NamesAt;
use crate::attach::libraries::{Attached, Libraries};
use crate::attach::links::{Link, take_back};
use crate::attach::loader::{Options, Probes};
use crate::attach::table::Table;
use crate::attach::{Level, LoadError, Target};
use crate::console;
use crate::input::{EventNanos, Input, Role};
use crate::output::Verdict;
use crate::proc::{FIRST_PID_NAMESPACE, OWN, Proc};

/// Attached programs and their running reader.
#[derive(Debug)]
pub struct Session {
    probes: Probes,
    reader: Reader,
    adopted: Vec<(u32, u32)>,
    libraries: Libraries,
}

impl Session {
    /// Loads, attaches, classifies the descriptors that are open, and starts to read.
    pub fn start(options: &Options, targets: &[Target]) -> Result<Self, LoadError> {
        in_first_pid_namespace()?;
        let (mut probes, mut rings) = Probes::load(options)?;
        if options.debug_log {
            debug_log(&mut probes)?;
        }
        let table = &mut rings.table;
        let refused = |error| LoadError::Other(format!("the table of traced processes: {error}"));
        // Before the programs run, so that the first event of a busy connection is not cut to the small cap.
        let now = monotonic_ns();
        let captured: Vec<u32> = targets.iter().filter(|target| target.capture).map(|target| target.tgid).collect();
        let made: Vec<_> = captured.iter().map(|tgid| table.look(*tgid, now)).collect();
        for target in targets {
            table.add_target(*target).map_err(refused)?;
        }
        probes.attach()?;
        // Again, for what was opened or closed while nobody looked; then for children born in between.
        for (tgid, made) in captured.iter().zip(&made) {
            table.correct(*tgid, made);
            table.look(*tgid, monotonic_ns());
            table.set_known(*tgid);
        }
        let mut adopted = Vec::new();
        for (parent, child) in unknown_children(targets, table) {
            table.add_target(child).map_err(refused)?;
            if child.capture {
                table.look(child.tgid, monotonic_ns());
                table.set_known(child.tgid);
            }
            adopted.push((parent, child.tgid));
        }
        let reader = Reader::spawn(rings).map_err(|error| LoadError::Other(format!("reader thread: {error}")))?;
        Ok(Self { probes, reader, adopted, libraries: Libraries::new(options.level) })
    }

    /// Batches of inputs, as they come.
    pub fn inputs(&self) -> &Receiver<Vec<Input>> {
        self.reader.inputs()
    }

    /// Processes that were born while this attached, after their parents: they are traced as these are.
    pub fn adopted(&self) -> &[(u32, u32)] {
        &self.adopted
    }

    /// Says what a connection speaks, and so how much of it is captured. `from` is the time of the first event of the
    /// connection that is meant; another that has its number since is left alone.
    pub fn tell(&self, verdict: Verdict, from: EventNanos) {
        self.reader.tell(Command::Verdict(verdict, from));
    }

    /// Traces the process as well, or changes what is looked at in it.
    pub fn set_target(&self, target: Target) {
        self.reader.tell(Command::Target(target));
    }

    /// How much is observed.
    pub fn level(&self) -> Level {
        self.libraries.level()
    }

    /// Why children that start later are not followed, when they are not.
    pub fn not_following(&self) -> Option<&str> {
        self.probes.not_following.as_deref()
    }

    /// Whether each uprobe is a perf event.
    pub fn uses_events(&mut self) -> bool {
        self.probes.uses_events()
    }

    /// Programs and probes attached.
    pub fn attached(&self) -> usize {
        self.probes.attached()
    }

    /// Probes the functions of every family that is of interest in the processes. Done after the sockets are live: reading an ELF file of
    /// 11 MB takes its time. What is probed already stays; a library that is stripped, or not there, is a warning.
    pub fn attach_libraries(&mut self, processes: &[(u32, Role)], has_messages: bool) -> Attached {
        // One that may not be looked into has been told of already.
        let looked = |(process, role): &(u32, Role)| Some((*process, *role, Proc::this().maps(*process).ok()?));
        let of_interest =
            |(_, role): &&(u32, Role)| FAMILIES.iter().any(|family| family.is_of_interest_in(*role, has_messages));
        let maps: Vec<_> = processes.iter().filter(of_interest).filter_map(looked).collect();
        self.libraries.attach(&mut self.probes, &maps, has_messages)
    }

    /// Where the handles of a process keep their names.
    pub fn names_at(&self, process: u32) -> NamesAt {
        self.libraries.names_at(process)
    }

    /// A process has ended: its number may be another one's.
    pub fn ended(&mut self, process: u32) {
        self.libraries.ended(&mut self.probes, process);
    }

    /// Stops to read, and passes on what was still on its way. What is attached is given back, to be dropped.
    pub fn detach(self, each: impl FnMut(Vec<Input>)) -> Attachment {
        self.reader.stop(each);
        Attachment { links: self.libraries.into_links(), probes: self.probes }
    }
}

/// What is attached and nobody reads any more; see [`Self::leave`].
#[derive(Debug)]
pub struct Attachment {
    links: Vec<Link>,
    probes: Probes,
}

impl Attachment {
    /// Takes it back. Where the kernel takes seconds for that, it is left to a process of its own, which ends as soon as this one has: a user
    /// does not wait for what the kernel does by itself. The last thing that a process does.
    pub fn leave(self) {
        if !self.links.iter().any(Link::is_slow) && !self.probes.is_leaving() {
            take_back(self.links);
            return;
        }
        // SAFETY: the child of this threaded process calls nothing but system calls, and allocates nothing.
        unsafe {
            let parent = libc::getpid();
            if libc::fork() != 0 {
                // This process's descriptors are no longer the last ones.
                std::mem::forget(self);
                return;
            }
            libc::setsid();
            for standard in 0..3 {
                libc::close(standard);
            }
            // Whoever closes a descriptor last waits.
            while libc::getppid() == parent {
                libc::usleep(2_000);
            }
            libc::_exit(0);
        }
    }
}

/// The kernel side sees thread-group ids of the first pid namespace; this process must see the same numbers.
fn in_first_pid_namespace() -> Result<(), LoadError> {
    match Proc::this().namespace(OWN, "pid") {
        Some(namespace) if namespace != FIRST_PID_NAMESPACE => Err(LoadError::PidNamespace),
        _ => Ok(()),
    }
}

/// Children of targets that are not traced, behind their parents: born after the targets were listed and before the fork
/// program ran.
fn unknown_children(targets: &[Target], table: &Table) -> Vec<(u32, Target)> {
    let proc = Proc::this();
    let parent_of = |pid: u32| Some((pid, proc.stat(pid).ok()?.parent));
    let parents: Vec<(u32, u32)> = proc.processes().unwrap_or_default().into_iter().filter_map(parent_of).collect();
    let mut children: Vec<(u32, Target)> = Vec::new();
    let mut from: Vec<Target> = targets.to_vec();
    while let Some(parent) = from.pop() {
        for (pid, _) in parents.iter().filter(|(_, of)| *of == parent.tgid) {
            let known = targets.iter().chain(children.iter().map(|(_, child)| child)).any(|target| target.tgid == *pid);
            if !known && !table.is_target(*pid) {
                let child = Target { tgid: *pid, ..parent };
                children.push((parent.tgid, child));
                from.push(child);
            }
        }
    }
    children
}

/// Prints the object's log records to stderr from a thread of its own, until the process ends.
fn debug_log(probes: &mut Probes) -> Result<(), LoadError> {
    let mut logger = aya_log::EbpfLogger::init_with_logger(probes.ebpf_mut(), StderrLog)
        .map_err(|error| LoadError::NoLog(error.to_string()))?;
    let print = move || {
        loop {
            logger.flush();
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    };
    std::thread::Builder::new()
        .name("inferspan-bpflog".to_owned())
        .spawn(print)
        .map_err(|error| LoadError::Other(format!("log thread: {error}")))?;
    Ok(())
}

struct StderrLog;

impl log::Log for StderrLog {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        console::say(&format!("bpf: {} {}", record.target(), record.args()));
    }

    fn flush(&self) {}
}
