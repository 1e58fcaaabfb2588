//! What this process may do, and what stands between it and a server.
//!
//! Pure, but for [`Privileges::own`] and [`kernel`]. Enters: effective capabilities, and a server as found. Leaves: whether it can be
//! traced, wholly or in part, and in words why not; which capabilities a run that is attached still needs. What each is needed for was
//! measured: `tests/tests/capabilities.rs` tries sets of them, and docs/support-matrix.md has its table.

use super::ServerProcesses;
use crate::engine;
use crate::input::Role;
use crate::proc::{OWN, Proc};

/// A capability that matters here, by its number in include/uapi/linux/capability.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Capability {
    DacOverride = 1,
    DacReadSearch = 2,
    SysPtrace = 19,
    SysAdmin = 21,
    SysResource = 24,
    Perfmon = 38,
    Bpf = 39,
    CheckpointRestore = 40,
}

impl Capability {
    /// Every one, by its number.
    pub const ALL: [Self; 8] = [
        Self::DacOverride,
        Self::DacReadSearch,
        Self::SysPtrace,
        Self::SysAdmin,
        Self::SysResource,
        Self::Perfmon,
        Self::Bpf,
        Self::CheckpointRestore,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::DacOverride => "CAP_DAC_OVERRIDE",
            Self::DacReadSearch => "CAP_DAC_READ_SEARCH",
            Self::SysPtrace => "CAP_SYS_PTRACE",
            Self::SysAdmin => "CAP_SYS_ADMIN",
            Self::SysResource => "CAP_SYS_RESOURCE",
            Self::Perfmon => "CAP_PERFMON",
            Self::Bpf => "CAP_BPF",
            Self::CheckpointRestore => "CAP_CHECKPOINT_RESTORE",
        }
    }
}

/// What another user than root needs to trace a server, whoever runs it.
pub const NEEDED: &str = "CAP_BPF, CAP_PERFMON, CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH";

/// Links of many uprobes that filter processes came with it. Uprobes before are perf events, which take CAP_SYS_ADMIN.
const UPROBE_LINKS: (u32, u32) = (6, 10);

/// What a run that is attached may still do, besides following processes and libraries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Later {
    /// Uprobes, each a perf event.
    UprobeEvents,
    /// Opening files in folders that are not its own.
    Reopening,
}

/// The running kernel's version, major and minor.
pub fn kernel() -> Option<(u32, u32)> {
    kernel_version(&Proc::this().kernel_value("kernel/osrelease")?)
}

/// Of a release as the kernel says it.
pub fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|char: char| !char.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// Why the kernel says no, when these are missing.
pub fn why_refused(missing: &[Capability]) -> String {
    if missing.is_empty() {
        return "the capabilities are there, so a security module, kernel lockdown or seccomp profile forbids it"
            .to_owned();
    }
    format!("missing {}", listed(missing, " and "))
}

/// Their names.
pub fn listed(capabilities: &[Capability], between: &str) -> String {
    let names: Vec<&str> = capabilities.iter().map(|capability| capability.name()).collect();
    names.join(between)
}

/// Effective capabilities of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Privileges(pub u64);

impl Privileges {
    /// Those of this process; none when they cannot be read.
    pub fn own() -> Self {
        Self(Proc::this().status(OWN).map(|status| status.effective).unwrap_or_default())
    }

    pub fn has(self, capability: Capability) -> bool {
        self.0 & (1 << capability as u64) != 0
    }

    /// Of the capabilities to load and attach the programs, those missing. CAP_SYS_ADMIN stands for both (capabilities(7)).
    pub fn missing_for_bpf(self) -> Vec<Capability> {
        if self.has(Capability::SysAdmin) {
            return Vec::new();
        }
        [Capability::Bpf, Capability::Perfmon].into_iter().filter(|capability| !self.has(*capability)).collect()
    }

    /// Of the capabilities to look into processes of any user, those missing: what they hold (CAP_SYS_PTRACE), and the folders and files
    /// through which that shows. CAP_DAC_OVERRIDE stands for CAP_DAC_READ_SEARCH.
    pub fn missing_for_looking(self) -> Vec<Capability> {
        let ptrace = Some(Capability::SysPtrace).filter(|capability| !self.has(*capability));
        let reads = self.has(Capability::DacReadSearch) || self.has(Capability::DacOverride);
        ptrace.into_iter().chain((!reads).then_some(Capability::DacReadSearch)).collect()
    }

    /// Whether uprobes can be attached by a kernel of this version.
    pub fn may_probe(self, kernel: Option<(u32, u32)>) -> bool {
        self.has(Capability::SysAdmin) || kernel.is_some_and(|version| version >= UPROBE_LINKS)
    }

    /// Of these, what a run that is attached still needs: maps are read and programs loaded all along, and processes and libraries come
    /// later. One that is there and stands for one that is missing stays.
    #[must_use]
    pub fn kept(self, later: &[Later]) -> Self {
        use Capability::{Bpf, CheckpointRestore, DacOverride, DacReadSearch, Perfmon, SysAdmin, SysPtrace};
        let stands_in =
            later.contains(&Later::UprobeEvents) || [Bpf, Perfmon, CheckpointRestore].iter().any(|of| !self.has(*of));
        let writes = later.contains(&Later::Reopening) || !self.has(DacReadSearch);
        let kept = [Bpf, Perfmon, SysPtrace, DacReadSearch, CheckpointRestore]
            .into_iter()
            .chain(stands_in.then_some(SysAdmin))
            .chain(writes.then_some(DacOverride));
        Self(kept.map(|capability| 1 << capability as u64).sum::<u64>() & self.0)
    }

    /// Those that matter here, by their number.
    pub fn listed(self) -> Vec<Capability> {
        Capability::ALL.into_iter().filter(|capability| self.has(*capability)).collect()
    }
}

/// Whether a server can be traced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Traceable {
    Yes,
    /// What will be missing.
    Partly(Vec<String>),
    /// What stands in the way.
    No(Vec<String>),
}

/// Whether `server` can be traced with `privileges` on a kernel of this version.
pub fn traceable(server: &ServerProcesses, privileges: Privileges, kernel: Option<(u32, u32)>) -> Traceable {
    let engine = engine::by_name(&server.server.engine);
    let of = |role: Role| server.processes.iter().filter(move |process| process.role == role);
    let mut obstacles = Vec::new();
    let mut missing = privileges.missing_for_bpf();
    if of(Role::Api).chain(of(Role::Engine)).any(|process| !process.readable) {
        missing.extend(privileges.missing_for_looking());
        if missing.is_empty() {
            obstacles.push(format!("it may not be looked into: {}", why_refused(&missing)));
        }
    } else if engine.has_messages() && of(Role::Engine).next().is_none() {
        obstacles.push("it has no engine process (still starting, or it runs inside the API process)".to_owned());
    }
    if !missing.is_empty() {
        obstacles.push(format!("run as root, or with {}", listed(&missing, ", ")));
    }
    if let Some(version) = &server.server.engine_version
        && let Some(oldest) = engine.oldest()
        && !is_supported(version, oldest)
    {
        obstacles.push(format!("{} {version} is older than {}.{}", engine.name(), oldest.0, oldest.1));
    }
    if !obstacles.is_empty() {
        return Traceable::No(obstacles);
    }

    let mut limits = Vec::new();
    if server.tls {
        limits.push("no HTTP side: TLS".to_owned());
    }
    if !engine.has_messages() {
        limits.push("its HTTP side alone".to_owned());
    } else if of(Role::Api).next().is_none() {
        limits.push("no HTTP side: no API server in this process tree".to_owned());
    } else if of(Role::Api).all(|process| process.tokenizers.is_empty()) {
        limits.push("no tokenizer times: no known tokenizer library".to_owned());
    } else if !privileges.may_probe(kernel) {
        limits.push("no tokenizer times: before Linux 6.10, uprobes need CAP_SYS_ADMIN".to_owned());
    }
    if limits.is_empty() { Traceable::Yes } else { Traceable::Partly(limits) }
}

/// Whether a version is not older than this one; a version that does not read as one is taken to be new.
pub fn is_supported(version: &str, oldest: (u32, u32)) -> bool {
    let mut numbers = version.split('.').map(|number| number.parse::<u32>().ok());
    match (numbers.next().flatten(), numbers.next().flatten()) {
        // A source checkout without tags calls itself 0.1.dev….
        _ if version.contains("dev") => true,
        (Some(major), Some(minor)) => (major, minor) >= oldest,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::discover::{MappedFile, ServerProcess};
    use crate::input::Server;

    const ALL: Privileges = Privileges(u64::MAX);
    const NEW: Option<(u32, u32)> = Some((6, 18));

    fn process(role: Role) -> ServerProcess {
        ServerProcess {
            pid: 1,
            parent: 0,
            start_ticks: 1,
            namespace_pid: None,
            role,
            index: Some(0),
            rank: String::new(),
            comm: String::new(),
            tcp: vec![],
            unix: vec![],
            tokenizers: vec![MappedFile {
                path: "/t.so".into(),
                open_path: "/proc/1/root/t.so".into(),
                device: (0, 1),
                inode: 2,
                address: 3,
                offset: 4,
                deleted: false,
            }],
            network_namespace: None,
            clock_offset_ns: 0,
            readable: true,
        }
    }

    fn server(processes: Vec<ServerProcess>) -> ServerProcesses {
        let server = Server { engine_version: Some("0.32.0+cpu".into()), ..Server::default() };
        ServerProcesses { server: Arc::new(server), processes, gpus: vec![], tls: false }
    }

    fn whole() -> ServerProcesses {
        server(vec![process(Role::Api), process(Role::Engine)])
    }

    fn only(traceable: Traceable) -> (bool, String) {
        match traceable {
            Traceable::Yes => panic!("nothing is missing"),
            Traceable::Partly(why) => (true, why.join("; ")),
            Traceable::No(why) => (false, why.join("; ")),
        }
    }

    #[test]
    fn a_whole_server_and_root_is_traceable() {
        assert_eq!(traceable(&whole(), ALL, NEW), Traceable::Yes);
    }

    #[test]
    fn every_obstacle_is_named() {
        let mut hidden = whole();
        hidden.processes[1].readable = false;
        assert!(only(traceable(&hidden, ALL, NEW)).1.contains("a security module"));
        let (_, why) = only(traceable(&hidden, Privileges(1 << 38 | 1 << 39), NEW));
        assert_eq!(why, "run as root, or with CAP_SYS_PTRACE, CAP_DAC_READ_SEARCH");

        let (partly, why) = only(traceable(&whole(), Privileges(1 << 38), NEW));
        assert!(!partly && why == "run as root, or with CAP_BPF", "{why}");

        let (partly, why) = only(traceable(&server(vec![process(Role::Api)]), ALL, NEW));
        assert!(!partly && why.contains("no engine process"), "{why}");

        let mut old = whole();
        old.server = Arc::new(Server { engine_version: Some("0.7.3".into()), ..Server::default() });
        assert!(only(traceable(&old, ALL, NEW)).1.contains("0.7.3 is older"));
    }

    #[test]
    fn every_limit_is_named() {
        let mut tls = whole();
        tls.tls = true;
        assert_eq!(only(traceable(&tls, ALL, NEW)), (true, "no HTTP side: TLS".to_owned()));

        let (partly, why) = only(traceable(&server(vec![process(Role::Engine)]), ALL, NEW));
        assert!(partly && why.contains("no API server"), "{why}");

        let mut rust = whole();
        rust.processes[0].tokenizers.clear();
        assert!(only(traceable(&rust, ALL, NEW)).1.contains("no known tokenizer"));

        let (partly, why) = only(traceable(&whole(), Privileges(1 << 38 | 1 << 39), Some((6, 9))));
        assert!(partly && why.contains("CAP_SYS_ADMIN"), "{why}");
        assert_eq!(traceable(&whole(), Privileges(1 << 38 | 1 << 39), NEW), Traceable::Yes);
    }

    #[test]
    fn what_is_kept_is_what_comes_later_needs() {
        use Capability::{Bpf, CheckpointRestore, DacOverride, DacReadSearch, Perfmon, SysAdmin, SysPtrace};
        let of = |capabilities: &[Capability]| {
            Privileges(capabilities.iter().map(|capability| 1 << *capability as u64).sum())
        };
        let always = [DacReadSearch, SysPtrace, Perfmon, Bpf, CheckpointRestore];
        assert_eq!(ALL.kept(&[]).listed(), always);
        assert_eq!(ALL.kept(&[]).0.count_ones(), 5, "and nothing that has no name here");
        assert_eq!(ALL.kept(&[Later::Reopening]).listed(), [&[DacOverride], &always[..]].concat());
        let events = [DacReadSearch, SysPtrace, SysAdmin, Perfmon, Bpf, CheckpointRestore];
        assert_eq!(ALL.kept(&[Later::UprobeEvents]).listed(), events);
        // What stands for others that are missing, and nothing that was not there.
        let old = [DacOverride, SysPtrace, SysAdmin];
        assert_eq!(of(&old).kept(&[]).listed(), old);
        let four = [DacReadSearch, SysPtrace, Perfmon, Bpf];
        assert_eq!(of(&four).kept(&[Later::UprobeEvents, Later::Reopening]).listed(), four);
        assert_eq!(Privileges(0).kept(&[]), Privileges(0));
    }

    #[test]
    fn versions_are_told_old_from_new() {
        for (version, expected) in [
            ("0.7.3", false),
            ("0.8.5", true),
            ("0.32.0+cpu", true),
            ("1.0", true),
            ("0.1.dev1+g12", true),
            ("main", true),
            ("0", true),
        ] {
            assert_eq!(is_supported(version, (0, 8)), expected, "{version}");
        }
    }
}
