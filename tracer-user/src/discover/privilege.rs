//! What this process may do, and what stands between it and a server.
//!
//! Pure, but for [`Privileges::own`]. Enters: effective capabilities, and a server as found. Leaves: whether it can be
//! traced, wholly or in part, and in words why not.

use super::ServerProcesses;
use crate::engine;
use crate::input::Role;
use crate::proc::{OWN, Proc};

/// A capability that matters here, by its number in include/uapi/linux/capability.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Capability {
    SysPtrace = 19,
    SysAdmin = 21,
    SysResource = 24,
    Perfmon = 38,
    Bpf = 39,
}

impl Capability {
    pub fn name(self) -> &'static str {
        match self {
            Self::SysPtrace => "CAP_SYS_PTRACE",
            Self::SysAdmin => "CAP_SYS_ADMIN",
            Self::SysResource => "CAP_SYS_RESOURCE",
            Self::Perfmon => "CAP_PERFMON",
            Self::Bpf => "CAP_BPF",
        }
    }
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

/// Whether `server` can be traced with `privileges`.
pub fn traceable(server: &ServerProcesses, privileges: Privileges) -> Traceable {
    let engine = engine::by_name(&server.server.engine);
    let of = |role: Role| server.processes.iter().filter(move |process| process.role == role);
    let mut obstacles = Vec::new();
    let mut missing = privileges.missing_for_bpf();
    if of(Role::Api).chain(of(Role::Engine)).any(|process| !process.readable) {
        missing.push(Capability::SysPtrace);
    } else if engine.has_messages() && of(Role::Engine).next().is_none() {
        obstacles.push("it has no engine process (still starting, or it runs inside the API process)".to_owned());
    }
    if !missing.is_empty() {
        let missing: Vec<&str> = missing.into_iter().map(Capability::name).collect();
        obstacles.push(format!("run as root, or with {}", missing.join(", ")));
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
    } else if !privileges.has(Capability::SysAdmin) {
        limits.push("no tokenizer times: uprobes need CAP_SYS_ADMIN".to_owned());
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
        assert_eq!(traceable(&whole(), ALL), Traceable::Yes);
    }

    #[test]
    fn every_obstacle_is_named() {
        let mut hidden = whole();
        hidden.processes[1].readable = false;
        assert!(only(traceable(&hidden, ALL)).1.contains("CAP_SYS_PTRACE"));

        let (partly, why) = only(traceable(&whole(), Privileges(1 << 38)));
        assert!(!partly && why == "run as root, or with CAP_BPF", "{why}");

        let (partly, why) = only(traceable(&server(vec![process(Role::Api)]), ALL));
        assert!(!partly && why.contains("no engine process"), "{why}");

        let mut old = whole();
        old.server = Arc::new(Server { engine_version: Some("0.7.3".into()), ..Server::default() });
        assert!(only(traceable(&old, ALL)).1.contains("0.7.3 is older"));
    }

    #[test]
    fn every_limit_is_named() {
        let mut tls = whole();
        tls.tls = true;
        assert_eq!(only(traceable(&tls, ALL)), (true, "no HTTP side: TLS".to_owned()));

        let (partly, why) = only(traceable(&server(vec![process(Role::Engine)]), ALL));
        assert!(partly && why.contains("no API server"), "{why}");

        let mut rust = whole();
        rust.processes[0].tokenizers.clear();
        assert!(only(traceable(&rust, ALL)).1.contains("no known tokenizer"));

        let (partly, why) = only(traceable(&whole(), Privileges(1 << 38 | 1 << 39)));
        assert!(partly && why.contains("CAP_SYS_ADMIN"), "{why}");
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
