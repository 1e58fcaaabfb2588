//! A pass over a host's processes.
//!
//! Enters: a PID, or nothing. Leaves: [`ServerProcesses`], or the [`Failure`] that fits. What a process has is read between
//! two readings of its start time, so what is reported belongs to it and not to a later process of the same number.
//! Processes that end meanwhile are left out.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use super::argv;
use super::failure::{self, Hidden};
use super::kind::is_tokenizer;
use super::package;
use super::tree::{self, Forest, Look, Member, Part, Seen};
use super::{Host, MappedFile, ServerProcess, ServerProcesses, TcpSocket, UnixSocket, container};
use crate::engine::process::Program;
use crate::engine::{self, ENGINES, Engine};
use crate::exit::Failure;
use crate::input::Server;
use crate::proc::root::Root;
use crate::proc::text::{self, Mapping, Stat};
use crate::proc::{FIRST_PID_NAMESPACE, OWN};
use crate::sanitise::printable;

/// Descriptors of a process that are looked at for what it serves and talks to.
const DESCRIPTORS_MAX: usize = 65_536;

/// ZeroMQ names its threads so (libzmq, `ZMQbg/IO/0`, `ZMQbg/Reaper`).
const ZMQ_THREAD: &[u8] = b"ZMQbg/";

impl Host {
    /// As [`super::server`].
    pub fn server(&self, pid: u32) -> Result<ServerProcesses, Failure> {
        if pid == 0 || pid > failure::PID_MAX {
            return Err(failure::no_pid(pid));
        }
        let stat = self.living(pid)?;
        let survey = Survey::of(self);
        let Some(root) = survey.forest.root_of(pid, &survey) else { return Err(self.no_server(&survey, &stat)) };
        let found = survey.server(root).ok_or_else(|| failure::gone(pid))?;
        if !self.same_process(pid, stat.start_ticks) {
            let other = self.proc.stat(pid).is_ok_and(|now| now.start_ticks != stat.start_ticks);
            return Err(if other { failure::reused(pid) } else { failure::gone(pid) });
        }
        Ok(found)
    }

    /// As [`super::servers`].
    pub fn servers(&self) -> Vec<ServerProcesses> {
        let survey = Survey::of(self);
        survey.forest.roots(&survey).into_iter().filter_map(|root| survey.server(root)).collect()
    }

    /// As [`super::same_process`].
    pub fn same_process(&self, pid: u32, start_ticks: u64) -> bool {
        self.proc.stat(pid).is_ok_and(|stat| stat.start_ticks == start_ticks && !is_dead(&stat))
    }

    /// Start time of a process, in clock ticks since boot; `None` when there is no such process.
    pub fn start_ticks(&self, pid: u32) -> Option<u64> {
        self.proc.stat(pid).ok().map(|stat| stat.start_ticks)
    }

    /// Whether it is a process, server or not, that is alive and may be looked into; why not, if not.
    pub fn process(&self, pid: u32) -> Result<(), Failure> {
        self.living(pid).map(|_| ())
    }

    /// A process that is alive, is a process, is no kernel thread and may be looked into.
    pub(super) fn living(&self, pid: u32) -> Result<Stat, Failure> {
        let stat = self.proc.stat(pid).map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => failure::forbidden(pid, "?"),
            _ => failure::no_process(pid, &self.hidden(pid)),
        })?;
        let status = self.proc.status(pid).map_err(|_| failure::gone(pid))?;
        if status.tgid != pid {
            let name = self.proc.stat(status.tgid).map(|process| process.comm).unwrap_or_default();
            return Err(failure::thread(pid, status.tgid, &name));
        }
        if is_dead(&stat) {
            return Err(failure::zombie(pid, &stat.comm));
        }
        if stat.kernel_thread {
            let inside = self.inside(pid, &Survey::of(self), true);
            return Err(failure::kernel_thread(pid, &stat.comm, &Hidden { inside, ..Hidden::default() }));
        }
        match self.proc.descriptors(pid) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(failure::forbidden(pid, &stat.comm)),
            Err(_) => Err(failure::gone(pid)),
            Ok(_) => Ok(stat),
        }
    }

    /// Why a process that can be looked into leads to no server.
    fn no_server(&self, survey: &Survey<'_>, stat: &Stat) -> Failure {
        let below: Vec<u32> = survey.forest.roots_below(stat.pid, survey).into_iter().collect();
        if !below.is_empty() {
            return failure::servers_below(stat.pid, &stat.comm, &below);
        }
        let kind = match survey.forest.get(stat.pid) {
            None if stat.pid == std::process::id() => "inferspan itself",
            None => return failure::gone(stat.pid),
            Some(Seen { title: Some(_), .. }) => "a worker whose engine is gone",
            Some(Seen { program: Program::Other, .. }) => "another program",
            Some(_) => "a Python program",
        };
        let inside = self.inside(stat.pid, survey, true);
        failure::no_server(stat.pid, &stat.comm, kind, &Hidden { inside, ..Hidden::default() })
    }

    /// Why a process that may exist is not seen.
    fn hidden(&self, pid: u32) -> Hidden {
        let survey = Survey::of(self);
        let root = self.proc.status(OWN).is_ok_and(|status| status.euid == Some(0));
        let namespace = self.proc.namespace(OWN, "pid");
        Hidden {
            hidepid: text::hidepid(&self.proc.mounts(OWN)).filter(|_| !root).map(str::to_owned),
            inner_namespace: namespace.is_some_and(|inode| inode != FIRST_PID_NAMESPACE),
            inside: self.inside(pid, &survey, false),
        }
    }

    /// Processes whose PID in an inner namespace is `pid`; those of servers if there are any, else all unless `servers_only`.
    fn inside(&self, pid: u32, survey: &Survey<'_>, servers_only: bool) -> Vec<u32> {
        let matches = |outer: &u32| {
            self.proc
                .status(*outer)
                .is_ok_and(|status| status.namespace_pids.len() > 1 && status.namespace_pids.last() == Some(&pid))
        };
        let all: Vec<u32> = survey.forest.pids().filter(matches).collect();
        let servers: Vec<u32> =
            all.iter().copied().filter(|outer| survey.forest.root_of(*outer, survey).is_some()).collect();
        if servers_only || !servers.is_empty() { servers } else { all }
    }

    /// Inode of a process's network namespace.
    pub fn network_namespace(&self, pid: u32) -> Option<u64> {
        self.proc.namespace(pid, "net")
    }

    fn seen(&self, pid: u32) -> Option<Seen> {
        let stat = self.proc.stat(pid).ok().filter(|stat| !is_dead(stat))?;
        if stat.kernel_thread {
            return Some(Seen { stat, title: None, program: Program::Other });
        }
        let words = self.proc.arguments(pid);
        let title = engine::title(words.first().map(String::as_str).unwrap_or_default(), &stat.comm);
        let program = argv::program(&words);
        Some(Seen { stat, title, program })
    }
}

fn is_dead(stat: &Stat) -> bool {
    matches!(stat.state, 'Z' | 'X' | 'x')
}

/// One pass over the host, and what a closer look at single processes has shown so far.
struct Survey<'a> {
    host: &'a Host,
    forest: Forest,
    holdings: RefCell<HashMap<u32, Rc<Holdings>>>,
    sockets: RefCell<HashMap<u64, Rc<Sockets>>>,
}

/// What one process holds.
#[derive(Debug, Default)]
struct Holdings {
    readable: bool,
    zmq: bool,
    tcp: Vec<TcpSocket>,
    unix: Vec<UnixSocket>,
    gpus: BTreeSet<String>,
    mapped: Vec<Mapping>,
    network_namespace: Option<u64>,
}

/// The sockets of one network namespace, by inode.
#[derive(Debug, Default)]
struct Sockets {
    tcp: HashMap<u64, text::Tcp>,
    unix: HashMap<u64, text::Unix>,
}

impl Look for Survey<'_> {
    fn talks(&self, pid: u32) -> bool {
        let holdings = self.holdings(pid);
        holdings.zmq || holdings.tcp.iter().any(|socket| socket.peer.is_none())
    }

    fn runs_engine(&self, pid: u32) -> bool {
        self.zmq(pid)
            && self
                .holdings(pid)
                .mapped
                .iter()
                .any(|mapping| ENGINES.iter().any(|engine| engine.is_library(&mapping.path)))
    }
}

impl<'a> Survey<'a> {
    fn of(host: &'a Host) -> Self {
        let pids = host.proc.processes().unwrap_or_default();
        let own = std::process::id();
        let forest = Forest::new(pids.into_iter().filter(|pid| *pid != own).filter_map(|pid| host.seen(pid)));
        Self { host, forest, holdings: RefCell::default(), sockets: RefCell::default() }
    }

    fn zmq(&self, pid: u32) -> bool {
        if let Some(known) = self.holdings.borrow().get(&pid) {
            return known.zmq;
        }
        self.host.proc.thread_names(pid).any(|name| name.starts_with(ZMQ_THREAD))
    }

    fn holdings(&self, pid: u32) -> Rc<Holdings> {
        if let Some(known) = self.holdings.borrow().get(&pid) {
            return Rc::clone(known);
        }
        let holdings = Rc::new(self.look_into(pid));
        self.holdings.borrow_mut().insert(pid, Rc::clone(&holdings));
        holdings
    }

    fn look_into(&self, pid: u32) -> Holdings {
        let mut holdings = Holdings { zmq: self.zmq(pid), ..Holdings::default() };
        let (Ok(descriptors), Ok(maps)) = (self.host.proc.descriptors(pid), self.host.proc.maps(pid)) else {
            return holdings;
        };
        holdings.readable = true;
        holdings.mapped = maps;
        holdings.gpus = holdings
            .mapped
            .iter()
            .filter_map(|mapping| text::gpu(mapping.path.as_os_str().as_encoded_bytes()))
            .collect();
        holdings.network_namespace = self.host.network_namespace(pid);
        let sockets = self.sockets(pid, holdings.network_namespace);
        for fd in descriptors.into_iter().take(DESCRIPTORS_MAX) {
            let Ok(link) = self.host.proc.descriptor(pid, fd) else { continue };
            if let Some(inode) = text::socket_inode(&link) {
                if let Some(tcp) = sockets.tcp.get(&inode) {
                    holdings.tcp.push(TcpSocket { fd, inode, local: tcp.local, peer: tcp.peer });
                } else if let Some(unix) = sockets.unix.get(&inode) {
                    holdings.unix.push(UnixSocket { fd, inode, listening: unix.listening, path: unix.path.clone() });
                }
            } else if let Some(gpu) = text::gpu(&link) {
                holdings.gpus.insert(gpu);
            }
        }
        holdings.tcp.sort_by_key(|socket| socket.fd);
        holdings.unix.sort_by_key(|socket| socket.fd);
        holdings
    }

    /// The sockets that `pid` can have: those of its network namespace, read once.
    fn sockets(&self, pid: u32, namespace: Option<u64>) -> Rc<Sockets> {
        // Without a namespace to know it by, a process's table is its own.
        let namespace = namespace.unwrap_or(u64::from(pid));
        if let Some(known) = self.sockets.borrow().get(&namespace) {
            return Rc::clone(known);
        }
        let table = |name: &str| self.host.proc.sockets(pid, name);
        let (v4, v6, unix) = (table("tcp"), table("tcp6"), table("unix"));
        let sockets = Rc::new(Sockets {
            tcp: text::tcp(&v4).chain(text::tcp(&v6)).map(|socket| (socket.inode, socket)).collect(),
            unix: text::unix(&unix).map(|socket| (socket.inode, socket)).collect(),
        });
        self.sockets.borrow_mut().insert(namespace, Rc::clone(&sockets));
        sockets
    }

    /// The server whose first process is `root`; `None` when that is gone.
    fn server(&self, root: u32) -> Option<ServerProcesses> {
        let pids = self.forest.descend(root);
        let held: Vec<(&Seen, Rc<Holdings>)> =
            pids.iter().filter_map(|pid| Some((self.forest.get(*pid)?, self.holdings(*pid)))).collect();
        let inodes: Vec<Vec<u64>> = held
            .iter()
            .map(|(_, holdings)| {
                holdings.tcp.iter().filter(|socket| socket.peer.is_none()).map(|socket| socket.inode).collect()
            })
            .collect();
        let members: Vec<Member<'_>> = held
            .iter()
            .zip(&inodes)
            .map(|((seen, holdings), listening)| Member { seen, zmq: holdings.zmq, listening })
            .collect();
        let parts = tree::roles(&members);
        let alive: BTreeMap<u32, bool> = held
            .iter()
            .map(|(seen, _)| (seen.stat.pid, self.host.same_process(seen.stat.pid, seen.stat.start_ticks)))
            .collect();
        if alive.get(&root) != Some(&true) {
            return None;
        }
        let processes: Vec<ServerProcess> = held
            .iter()
            .zip(parts)
            .filter(|((seen, _), _)| alive.get(&seen.stat.pid) == Some(&true))
            .map(|((seen, holdings), part)| self.process(seen, holdings, part))
            .collect();
        Some(ServerProcesses {
            server: Arc::new(self.identity(root, &held)),
            gpus: held
                .iter()
                .flat_map(|(_, holdings)| holdings.gpus.iter().cloned())
                .collect::<BTreeSet<_>>()
                .into_iter()
                .collect(),
            tls: matches!(&members.first()?.seen.program, Program::Launcher(launch) if launch.tls),
            processes,
        })
    }

    fn process(&self, seen: &Seen, holdings: &Holdings, part: Part) -> ServerProcess {
        let pid = seen.stat.pid;
        let namespaces = self.host.proc.status(pid).map(|status| status.namespace_pids).unwrap_or_default();
        ServerProcess {
            pid,
            parent: seen.stat.parent,
            start_ticks: seen.stat.start_ticks,
            namespace_pid: namespaces.get(1..).and_then(<[u32]>::last).copied(),
            role: part.role,
            index: part.index,
            rank: part.rank,
            comm: seen.stat.comm.clone(),
            tcp: holdings.tcp.clone(),
            unix: holdings.unix.clone(),
            tokenizers: self.mapped_files(pid, &holdings.mapped, is_tokenizer),
            network_namespace: holdings.network_namespace,
            // The kernel's own clock, which probes read, is the one without the offset.
            clock_offset_ns: self.host.proc.monotonic_offset_ns(pid).and_then(i64::checked_neg).unwrap_or_default(),
            readable: holdings.readable,
        }
    }

    /// The first executable mapping of each file that `wanted` asks for.
    fn mapped_files(&self, pid: u32, mapped: &[Mapping], wanted: fn(&Path) -> bool) -> Vec<MappedFile> {
        let mut files: Vec<MappedFile> = Vec::new();
        for mapping in mapped.iter().filter(|mapping| mapping.executable && wanted(&mapping.path)) {
            if files.iter().any(|file| (file.device, file.inode) == (mapping.device, mapping.inode)) {
                continue;
            }
            let open_path = if mapping.deleted {
                self.host.proc.mapped_file(pid, mapping.start, mapping.end)
            } else {
                self.host.proc.root_of(pid).join(mapping.path.strip_prefix("/").unwrap_or(&mapping.path))
            };
            files.push(MappedFile {
                path: mapping.path.clone(),
                open_path,
                device: mapping.device,
                inode: mapping.inode,
                address: mapping.start,
                offset: mapping.offset,
                deleted: mapping.deleted,
            });
        }
        files
    }

    /// Whose program it is where no command line tells: the engine that gave a process its title, or whose library one maps.
    fn engine_of(&self, held: &[(&Seen, Rc<Holdings>)]) -> &'static dyn Engine {
        let gave = |engine: &dyn Engine, seen: &Seen| {
            let words = self.host.proc.arguments(seen.stat.pid);
            engine.title(words.first().map(String::as_str).unwrap_or_default(), &seen.stat.comm).is_some()
        };
        let is_its = |engine: &&dyn Engine| {
            held.iter().any(|(seen, holdings)| {
                gave(*engine, seen) || holdings.mapped.iter().any(|mapping| engine.is_library(&mapping.path))
            })
        };
        ENGINES.into_iter().find(is_its).unwrap_or_else(|| engine::by_name(""))
    }

    fn identity(&self, root: u32, held: &[(&Seen, Rc<Holdings>)]) -> Server {
        let launch = match held.first().map(|(seen, _)| &seen.program) {
            Some(Program::Launcher(launch)) => launch.clone(),
            _ => argv::options(self.engine_of(held), &self.host.proc.arguments(root)),
        };
        let engine = engine::by_name(launch.engine);
        let version = engine.package().and_then(|package| {
            held.iter().find_map(|(seen, holdings)| {
                let directory = Root::open(&self.host.proc.root_of(seen.stat.pid))?;
                package::version(package, holdings.mapped.iter().map(|mapping| mapping.path.as_path()), &directory)
            })
        });
        Server {
            service: self.host.proc.variable(root, "OTEL_SERVICE_NAME").unwrap_or_else(|| engine.name().to_owned()),
            model: launch.served_model().map(|model| printable(model.as_bytes())).unwrap_or_default(),
            engine: engine.name().to_owned(),
            engine_version: version,
            container_id: container::container_id(&self.host.proc.cgroup(root)),
            pid: root,
            start_ticks: held.first().map(|(seen, _)| seen.stat.start_ticks).unwrap_or_default(),
        }
    }
}
