//! Checks of the host: kernel, privileges, and whether the very programs of `attach` load and attach here.
//!
//! They are attached for a moment with no process to trace, and, for the uprobes, to a function of inferspan's own that
//! nobody calls.

use std::path::Path;

use aya::maps::MapType;
use aya::sys::is_map_supported;
use tracer_ebpf::wire::call::FUNCTION_ENCODE;

use super::Check;
use crate::attach::LoadError;
use crate::attach::family::{Point, TIMED};
use crate::attach::loader::{Options, Probes, Rings};
use crate::attach::prologue::Why;
use crate::attach::rings::RINGS;
use crate::discover::privilege::{Capability, Privileges, kernel_version, listed};
use crate::proc::text::Mapping;
use crate::proc::{FIRST_PID_NAMESPACE, OWN, Proc};

/// Ring buffers came with 5.8; attach cookies, by which one program serves all tokenizer functions, with 5.15.
const OLDEST: (u32, u32) = (5, 8);
const RECOMMENDED: (u32, u32) = (5, 15);
/// Since 5.11 BPF memory is charged to the memory cgroup and no longer to `RLIMIT_MEMLOCK`.
const MEMCG_ACCOUNTING: (u32, u32) = (5, 11);

const ROOT: &str = "run as root (sudo)";

pub(super) fn checks() -> Vec<Check> {
    let privileges = Privileges::own();
    let proc = Proc::this();
    let release = proc.kernel_value("kernel/osrelease");
    let version = release.as_deref().and_then(kernel_version);
    let mut checks = vec![
        kernel(release.as_deref(), version),
        architecture(std::env::consts::ARCH),
        btf(Path::new("/sys/kernel/btf/vmlinux").exists()),
        pid_namespace(proc.namespace(OWN, "pid")),
        capabilities(privileges),
        process_access(privileges),
        mapped_files(privileges),
        lockdown(read("/sys/kernel/security/lockdown").as_deref()),
        perf_event_paranoid(proc.kernel_value("kernel/perf_event_paranoid").as_deref(), privileges),
        memlock(version, proc.limits(OWN).ok().as_deref(), privileges),
    ];
    checks.push(supported(
        "ring_buffer",
        "map type ringbuf",
        is_map_supported(MapType::RingBuf).map_err(|error| chain(&error)),
    ));
    let mut loaded = load();
    checks.push(syscalls(loaded.as_ref().map(|(probes, _)| probes.attached())));
    match &mut loaded {
        Ok((probes, _rings)) => {
            let attached = attach_to_self(probes);
            checks.extend([children(probes.not_following.as_deref()), uprobes(attached, probes.uses_events())]);
        }
        Err(_) => checks.extend([not_tried("new_processes"), not_tried("uprobes")]),
    }
    checks
}

/// The programs of `attach`, attached to the host's tracepoints and filtering for no process. The rings are among the maps
/// that programs still to be loaded refer to.
fn load() -> Result<(Probes, Rings), LoadError> {
    // The smallest rings: nothing is to come through them.
    let options = Options { ring_bytes: [4096; RINGS.len()], ..Options::default() };
    let (mut probes, rings) = Probes::load(&options)?;
    probes.attach()?;
    Ok((probes, rings))
}

/// A place for a uprobe. Never called: a return probe rewrites its caller's frame, in every process of this binary.
#[inline(never)]
extern "C" fn never_called(value: u64) -> u64 {
    // Unlike any other function, so that the compiler does not merge it with one that runs.
    std::hint::black_box(value).wrapping_mul(0x1_f3a7_5eed).rotate_left(29)
}

/// Uprobes in this binary.
fn attach_to_self(probes: &mut Probes) -> Result<(), String> {
    let proc = Proc::this();
    let maps = proc.maps(OWN).map_err(|error| error.to_string())?;
    let address = never_called as *const () as u64;
    let offset = file_offset(&maps, address).ok_or("inferspan's own code is not mapped from a file")?;
    let point = Point {
        programs: TIMED,
        function: FUNCTION_ENCODE,
        offset,
        quickest: 0,
        is_emulated: false,
        why: Why::default(),
        code: Vec::new(),
        symbol: "never_called".to_owned(),
    };
    let links = probes.attach_points(&proc.executable(OWN), &[point], None);
    links.map(drop).map_err(|error| error.to_string())
}

/// Where in its file the code at `address` lies.
fn file_offset(maps: &[Mapping], address: u64) -> Option<u64> {
    let mapping = maps.iter().find(|mapping| mapping.executable && (mapping.start..mapping.end).contains(&address))?;
    mapping.offset.checked_add(address - mapping.start)
}

/// A small file of the kernel's, without the newline.
fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|text| text.trim_end().to_owned())
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

fn kernel(release: Option<&str>, version: Option<(u32, u32)>) -> Check {
    let (Some(release), Some(version)) = (release, version) else {
        return Check::warn("kernel", "its version cannot be read", "mount /proc");
    };
    if version < OLDEST {
        Check::fail(
            "kernel",
            format!("Linux {release} has no BPF ring buffers, which came with 5.8"),
            "use Linux 5.15 or later",
        )
    } else if version < RECOMMENDED {
        let detail = format!("Linux {release} has no BPF attach cookies (5.15), so there will be no tokenizer times");
        Check::warn("kernel", detail, "use Linux 5.15 or later")
    } else {
        Check::ok("kernel", format!("Linux {release}"))
    }
}

fn architecture(architecture: &str) -> Check {
    match architecture {
        "x86_64" => Check::ok("architecture", architecture),
        other => Check::fail(
            "architecture",
            format!("{other}: the programs read the registers of x86-64 system calls"),
            "run on an x86-64 host",
        ),
    }
}

fn btf(present: bool) -> Check {
    if present {
        Check::ok("btf", "/sys/kernel/btf/vmlinux")
    } else {
        Check::warn(
            "btf",
            "the kernel has no type information (/sys/kernel/btf/vmlinux)",
            "none needed for a server that has started; a kernel with CONFIG_DEBUG_INFO_BTF has it",
        )
    }
}

fn pid_namespace(namespace: Option<u64>) -> Check {
    match namespace {
        Some(FIRST_PID_NAMESPACE) => Check::ok("pid_namespace", "the host's"),
        Some(_) => Check::fail(
            "pid_namespace",
            "inferspan runs in a pid namespace of its own, but the kernel reports processes by the host's numbers",
            "run on the host, or share its pid namespace (docker: --pid=host, Kubernetes: hostPID: true)",
        ),
        None => Check::warn("pid_namespace", "/proc/self/ns/pid cannot be read", "mount /proc"),
    }
}

fn capabilities(privileges: Privileges) -> Check {
    let missing = privileges.missing_for_bpf();
    if missing.is_empty() {
        Check::ok("capabilities", "may load and attach BPF programs")
    } else {
        let missing = listed(&missing, " and ");
        Check::fail(
            "capabilities",
            format!("{missing} missing: no program can be loaded"),
            format!("{ROOT}, or give it {missing}"),
        )
    }
}

fn process_access(privileges: Privileges) -> Check {
    let missing = privileges.missing_for_looking();
    if missing.is_empty() {
        Check::ok("process_access", "may look into other users' processes")
    } else {
        let missing = listed(&missing, " and ");
        Check::warn(
            "process_access",
            format!("without {missing} only one's own processes can be looked into"),
            format!("{ROOT}, or give it {missing}"),
        )
    }
}

/// A library that was deleted or replaced since it was mapped is reached by `/proc/PID/map_files` alone.
fn mapped_files(privileges: Privileges) -> Check {
    if privileges.has(Capability::CheckpointRestore) || privileges.has(Capability::SysAdmin) {
        Check::ok("mapped_files", "a library that was deleted since it was mapped can be read")
    } else {
        Check::warn(
            "mapped_files",
            "without CAP_CHECKPOINT_RESTORE a library that was deleted or replaced since it was mapped is not probed",
            format!("{ROOT}, or give it CAP_CHECKPOINT_RESTORE (CAP_SYS_ADMIN before Linux 5.9)"),
        )
    }
}

/// `none [integrity] confidentiality`: the mode in force is in brackets.
fn lockdown(text: Option<&str>) -> Check {
    let mode = text.and_then(|text| text.split_once('[')?.1.split_once(']')).map(|(mode, _)| mode);
    match mode {
        Some("confidentiality") => Check::fail(
            "lockdown",
            "confidentiality: BPF programs may not read what system calls were given",
            "boot with lockdown=integrity or without lockdown",
        ),
        Some(mode) => Check::ok("lockdown", mode),
        None => Check::ok("lockdown", "not in force"),
    }
}

fn perf_event_paranoid(text: Option<&str>, privileges: Privileges) -> Check {
    let level = text.and_then(|text| text.trim().parse::<i32>().ok());
    let exempt = privileges.has(Capability::Perfmon) || privileges.has(Capability::SysAdmin);
    match level {
        None => Check::warn(
            "perf_event_paranoid",
            "no perf events: uprobes cannot be attached",
            "use a kernel with CONFIG_PERF_EVENTS",
        ),
        // -1 lets everyone; every other level wants CAP_PERFMON for what uprobes are.
        Some(level) if exempt || level < 0 => {
            Check::ok("perf_event_paranoid", format!("{level}, which does not apply to inferspan here"))
        }
        Some(level) => Check::warn(
            "perf_event_paranoid",
            format!("{level}, and CAP_PERFMON is missing: uprobes cannot be attached"),
            format!("{ROOT}, or give it CAP_PERFMON"),
        ),
    }
}

/// The soft limit, from the line `Max locked memory  8388608  8388608  bytes`.
fn memlock(version: Option<(u32, u32)>, limits: Option<&str>, privileges: Privileges) -> Check {
    /// The rings and maps together.
    const NEEDED: u64 = 64 << 20;
    if version.is_some_and(|version| version >= MEMCG_ACCOUNTING) {
        return Check::ok("memlock", "not needed: this kernel charges BPF memory to the cgroup");
    }
    if privileges.has(Capability::SysResource) {
        return Check::ok("memlock", "may raise its limit");
    }
    let line = limits.and_then(|limits| limits.lines().find_map(|line| line.strip_prefix("Max locked memory")));
    match line.and_then(|line| line.split_ascii_whitespace().next()) {
        Some("unlimited") => Check::ok("memlock", "unlimited"),
        Some(limit) if limit.parse::<u64>().is_ok_and(|limit| limit >= NEEDED) => {
            Check::ok("memlock", format!("{limit} bytes"))
        }
        limit => Check::warn(
            "memlock",
            format!("{} bytes, which is too little for the rings on a kernel before 5.11", limit.unwrap_or("?")),
            "raise it (ulimit -l unlimited), or give it CAP_SYS_RESOURCE",
        ),
    }
}

fn supported(name: &'static str, what: &str, answer: Result<bool, String>) -> Check {
    match answer {
        Ok(true) => Check::ok(name, format!("{what}: yes")),
        Ok(false) => Check::fail(
            name,
            format!("{what}: this kernel does not have it"),
            "use Linux 5.15 or later with CONFIG_BPF_SYSCALL",
        ),
        Err(error) => Check::fail(name, format!("{what}: could not be tried: {error}"), refused(&error)),
    }
}

/// Most refusals are of permission.
fn refused(error: &str) -> String {
    if error.contains("os error 1)") || error.contains("os error 13)") {
        format!("{ROOT}, or give it CAP_BPF and CAP_PERFMON; in a container also a seccomp profile that allows bpf(2)")
    } else {
        "see the error; `dmesg` may say more".to_owned()
    }
}

/// docs/architecture.md, decision 2.
fn syscalls(attached: Result<usize, &LoadError>) -> Check {
    match attached {
        Ok(programs) => Check::ok(
            "syscalls",
            format!("by one program at the raw tracepoint sys_exit: loaded and attached, {programs} programs in all"),
        ),
        Err(LoadError::Permission { what }) => {
            Check::fail("syscalls", format!("the kernel refuses {what}: not permitted"), refused("(os error 1)"))
        }
        Err(error) => Check::fail("syscalls", error.to_string(), "see the error; report it with the kernel's version"),
    }
}

fn not_tried(name: &'static str) -> Check {
    Check::warn(name, "not tried: no program is loaded", "see syscalls")
}

fn children(not_following: Option<&str>) -> Check {
    match not_following {
        None => Check::ok("new_processes", "processes that a server starts later are followed"),
        Some(why) => {
            let detail = format!("processes that a server starts later are not followed: {why}");
            Check::warn(
                "new_processes",
                detail,
                "attach when the server has started; a kernel with CONFIG_DEBUG_INFO_BTF has it",
            )
        }
    }
}

/// Uprobes are only for the tokenizer's times and CUDA, so nothing here fails.
fn uprobes(attached: Result<(), String>, are_events: bool) -> Check {
    match attached {
        Ok(()) if are_events => {
            Check::ok("uprobes", "by perf events with attach cookies, one each: attached to inferspan itself")
        }
        Ok(()) => Check::ok("uprobes", "by links of many with attach cookies: attached to inferspan itself"),
        // CVE-2025-38466: every kernel with the fix wants CAP_SYS_ADMIN for uprobes by perf events, CAP_PERFMON or not.
        Err(error) => Check::warn(
            "uprobes",
            format!("no tokenizer times, no CUDA: {error}"),
            "run as root (sudo), or give it CAP_SYS_ADMIN, which kernels before 6.10 with the fix of CVE-2025-38466 want for uprobes; Linux 5.15 or later",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    const ROOT_CAPS: Privileges = Privileges(u64::MAX);
    const NONE: Privileges = Privileges(0);
    const BPF_ONLY: Privileges = Privileges(1 << 38 | 1 << 39);

    #[test]
    fn kernels_by_age() {
        for (release, status) in [
            ("6.18.0-rc1+", Status::Ok),
            ("5.15.0-91-generic", Status::Ok),
            ("5.10.0-28-cloud-amd64", Status::Warn),
            ("5.4.0", Status::Fail),
            ("4.18.0-553.el8.x86_64", Status::Fail),
            ("nonsense", Status::Warn),
        ] {
            assert_eq!(kernel(Some(release), kernel_version(release)).status, status, "{release}");
        }
    }

    #[test]
    fn lockdown_modes() {
        for (text, status) in [
            (Some("[none] integrity confidentiality"), Status::Ok),
            (Some("none [integrity] confidentiality"), Status::Ok),
            (Some("none integrity [confidentiality]"), Status::Fail),
            (None, Status::Ok),
        ] {
            assert_eq!(lockdown(text).status, status, "{text:?}");
        }
    }

    #[test]
    fn privileges_by_what_they_allow() {
        assert_eq!(capabilities(ROOT_CAPS).status, Status::Ok);
        assert_eq!(capabilities(BPF_ONLY).status, Status::Ok);
        assert!(capabilities(NONE).detail.contains("CAP_BPF and CAP_PERFMON"));
        assert!(process_access(BPF_ONLY).detail.contains("CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH"));
        assert_eq!(process_access(ROOT_CAPS).status, Status::Ok);
        assert_eq!((mapped_files(BPF_ONLY).status, mapped_files(ROOT_CAPS).status), (Status::Warn, Status::Ok));
        assert_eq!(uprobes(Ok(()), false).status, Status::Ok);
        let refused = uprobes(Err("not permitted".into()), true);
        assert!(refused.status == Status::Warn && refused.fix.is_some_and(|fix| fix.contains("CVE-2025-38466")));
        assert_eq!(children(Some("no BTF")).status, Status::Warn);
        assert_eq!(children(None).status, Status::Ok);
        assert_eq!(perf_event_paranoid(Some("4"), ROOT_CAPS).status, Status::Ok);
        assert_eq!(perf_event_paranoid(Some("2"), NONE).status, Status::Warn);
        assert_eq!(perf_event_paranoid(Some("-1"), NONE).status, Status::Ok);
    }

    #[test]
    fn locked_memory_matters_on_old_kernels_only() {
        let limits =
            "Limit  Soft  Hard\nMax locked memory         65536                65536                bytes     \n";
        assert_eq!(memlock(Some((6, 18)), Some(limits), NONE).status, Status::Ok);
        assert_eq!(memlock(Some((5, 10)), Some(limits), NONE).status, Status::Warn);
        assert_eq!(memlock(Some((5, 10)), Some(limits), ROOT_CAPS).status, Status::Ok);
        assert_eq!(memlock(Some((5, 10)), Some(&limits.replace("65536", "unlimited")), NONE).status, Status::Ok);
    }

    #[test]
    fn the_place_for_a_uprobe_is_where_its_code_is_in_the_file() {
        let maps = Proc::this().maps(OWN).unwrap();
        let address = never_called as *const () as u64;
        let offset = file_offset(&maps, address).expect("this test is mapped from a file") as usize;
        let file = std::fs::read("/proc/self/exe").unwrap();
        // SAFETY: the function's code is at least this long and readable.
        let code = unsafe { std::slice::from_raw_parts(address as *const u8, 8) };
        assert_eq!(&file[offset..offset + 8], code);
        assert_eq!(file_offset(&maps, 1), None);
    }

    #[test]
    fn refusals_name_the_permission() {
        let check =
            supported("ring_buffer", "x", Err("`bpf_map_create` failed: Operation not permitted (os error 1)".into()));
        assert!(check.status == Status::Fail && check.fix.is_some_and(|fix| fix.contains("CAP_BPF")));
        assert_eq!(supported("ring_buffer", "x", Ok(false)).status, Status::Fail);
        let check = syscalls(Err(&LoadError::Permission { what: "creating BPF maps".into() }));
        assert!(check.status == Status::Fail && check.fix.is_some_and(|fix| fix.contains("CAP_BPF")));
        assert_eq!(pid_namespace(Some(4_026_532_999)).status, Status::Fail);
        assert_eq!(pid_namespace(Some(FIRST_PID_NAMESPACE)).status, Status::Ok);
        assert_eq!(architecture("aarch64").status, Status::Fail);
    }
}
