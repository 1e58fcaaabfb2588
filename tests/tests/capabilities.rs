//! Which capabilities another user than root needs for what, tried; and what is left of them once attach has attached.
//!
//! `INFERSPAN_BLESS=1 cargo test -p inferspan-tests --test capabilities` rewrites the table of docs/support-matrix.md.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use inferspan::discover::privilege::{Capability, Privileges, kernel};
use inferspan::proc::Proc;
use inferspan_harness::attached::Attached;
use inferspan_harness::folder::Folder;
use inferspan_harness::process::Signal;
use inferspan_tests::cuda::{Driver, Fixture, Runtime};
use inferspan_tests::demo_engine::DemoEngine;
use inferspan_tests::judge::binary;
use inferspan_tests::live::may_trace;
use inferspan_tests::signals::{repository, section, with_section};

use Capability::{Bpf, CheckpointRestore, DacReadSearch, Perfmon, SysAdmin, SysPtrace};

const TABLE: &str = "docs/support-matrix.md";
/// Linux has links of many uprobes since; before, `--uprobe-events` is what there is.
const UPROBE_LINKS: (u32, u32) = (6, 10);
/// `nobody`.
const OTHER: u32 = 65_534;
const LIMIT: Duration = Duration::from_mins(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    Roots,
    Own,
}

/// Whose server, and with what: the sets of the table, in its order. `None`: as root.
const SETS: [(Whose, Option<&[Capability]>); 13] = [
    (Whose::Roots, Some(&[])),
    (Whose::Roots, Some(&[Bpf, Perfmon, SysPtrace])),
    (Whose::Roots, Some(&[Bpf, Perfmon, DacReadSearch])),
    (Whose::Roots, Some(&[Bpf, SysPtrace, DacReadSearch])),
    (Whose::Roots, Some(&[Perfmon, SysPtrace, DacReadSearch])),
    (Whose::Roots, Some(&[Bpf, Perfmon, SysPtrace, DacReadSearch])),
    (Whose::Roots, Some(&[Bpf, Perfmon, SysPtrace, DacReadSearch, CheckpointRestore])),
    (Whose::Roots, Some(&[Bpf, Perfmon, SysPtrace, DacReadSearch, SysAdmin])),
    (Whose::Roots, Some(&[SysPtrace, DacReadSearch, SysAdmin])),
    (Whose::Own, Some(&[])),
    (Whose::Own, Some(&[Bpf, Perfmon])),
    (Whose::Own, Some(&[Bpf, Perfmon, SysAdmin])),
    (Whose::Roots, None),
];

/// `setpriv` that runs what follows as another user with these capabilities and no others.
fn as_other(capabilities: &[Capability]) -> Command {
    let mut command = Command::new("setpriv");
    command.args([format!("--reuid={OTHER}"), format!("--regid={OTHER}"), "--clear-groups".to_owned()]);
    let names: Vec<String> =
        capabilities.iter().map(|of| format!("+{}", of.name().trim_start_matches("CAP_").to_lowercase())).collect();
    if !names.is_empty() {
        let names = names.join(",");
        command.args([format!("--inh-caps={names}"), format!("--ambient-caps={names}")]);
    }
    command
}

/// A folder that the other user may look into and write to.
fn folder(name: &str) -> Folder {
    let folder = Folder::new(&format!("capabilities-{name}")).expect("a folder");
    give(folder.path());
    folder
}

fn give(folder: &Path) {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).expect("a mode");
    chown(folder, Some(OTHER), Some(OTHER)).expect("an owner");
}

/// What every server and tracer of this test is made of, where the other user can reach it.
struct Parts {
    folder: Folder,
}

impl Parts {
    fn new() -> Option<Self> {
        let fixture = Fixture::for_test("the_table_of_capabilities_is_what_was_tried")?;
        let folder = folder("parts");
        let cuda = folder.path().join("cuda");
        for library in fixture.libraries(Driver::New, Some(Runtime::V12)) {
            fs::create_dir_all(&cuda).expect("a folder");
            run(Command::new("cp").arg("-r").arg(library).arg(&cuda));
        }
        let copy = |from: &Path, to: &str| fs::copy(from, folder.path().join(to)).expect("a copy");
        copy(&binary(), "inferspan");
        copy(Path::new(env!("CARGO_BIN_EXE_test-engine")), "test-engine");
        run(Command::new("chmod").args(["-R", "a+rX"]).arg(folder.path()));
        Some(Self { folder })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A server with two tokenizer libraries, one of which is deleted as soon as it is mapped.
    fn server(&self, whose: Whose) -> Server {
        let folder = folder(&format!("server-{whose:?}"));
        let libraries = ["there", "deleted"].map(|name| folder.path().join(name).join("tokenizers.abi3.so"));
        for library in &libraries {
            let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tokenizers.c");
            fs::create_dir_all(library.parent().expect("a folder")).expect("a folder");
            run(Command::new("cc").args(["-O1", "-shared", "-fPIC", "-o"]).arg(library).arg(source));
        }
        let mut command = match whose {
            Whose::Roots => Command::new("env"),
            Whose::Own => as_other(&[]),
        };
        command.arg(self.file("test-engine")).arg("--cuda").arg(self.file("cuda"));
        command.arg("--cuda-account").arg(folder.path().join("account.jsonl"));
        command.env("LD_PRELOAD", std::env::join_paths(&libraries).expect("paths"));
        let engine = DemoEngine::start(command, folder.path(), |_, announced| Some(announced)).expect("a server");
        fs::remove_file(&libraries[1]).expect("it was mapped");
        Server { engine, _folder: folder }
    }

    /// `inferspan attach` on a server, with these capabilities as another user, or as root.
    fn attach(&self, server: &Server, set: Option<&[Capability]>, out: &Path, more: &[&str]) -> Command {
        let mut command = set.map_or_else(|| Command::new("env"), as_other);
        command.arg(self.file("inferspan")).args(["attach", "-p", &server.engine.target.pid.to_string()]);
        command.arg("--access-log").arg(out.join("access.jsonl")).arg("--metrics-out").arg(out.join("metrics.txt"));
        command.args(more).env("HOME", out).stdout(Stdio::null());
        command
    }
}

struct Server {
    engine: DemoEngine,
    _folder: Folder,
}

fn run(command: &mut Command) {
    assert!(command.status().expect("it starts").success(), "{command:?}");
}

/// The launches that a metrics page counts.
fn launches(page: &str) -> u64 {
    let counts = page.lines().filter(|line| line.starts_with("inferspan_cuda_launches_total{"));
    counts.filter_map(|line| line.split_whitespace().next_back()?.parse::<u64>().ok()).sum()
}

/// What came of an attach.
#[derive(Debug, PartialEq, Eq)]
enum Tried {
    Refused(String),
    Attached { probes: bool, probes_of_deleted: bool },
}

fn word(is: bool) -> &'static str {
    if is { "yes" } else { "no" }
}

impl Parts {
    fn tried(&self, server: &Server, set: Option<&[Capability]>, more: &[&str]) -> Tried {
        let out = folder("out");
        let _ = fs::remove_file(out.path().join("access.jsonl"));
        let attached = match Attached::start(&mut self.attach(server, set, out.path(), more)) {
            Ok(attached) => attached,
            Err(error) => {
                let said = error.to_string();
                assert!(said.contains("exit status: 4") && said.contains("fix: "), "{said}");
                let missing = said.lines().find_map(|line| Some(line.split_once("missing ")?.1));
                return Tried::Refused(missing.unwrap_or_else(|| panic!("nothing is named: {said}")).to_owned());
            }
        };
        server.engine.answer(6).expect("answers");
        attached.signal(Signal::INT).expect("it runs");
        let (status, said) = attached.end(LIMIT).expect("it ends");
        assert!(status.success() && said.contains("lost: none"), "{set:?}: {said}");
        let read = |name: &str| fs::read_to_string(out.path().join(name)).expect("inferspan wrote it");
        assert!(read("access.jsonl").lines().count() >= 6, "{set:?}: {said}");
        let launches = launches(&read("metrics.txt"));
        let is_probed = |name: &str| !said.contains(&format!("{name}/tokenizers.abi3.so is not probed"));
        assert_eq!(launches > 0, is_probed("there"), "{set:?}: the driver's probes go as the tokenizer's: {said}");
        Tried::Attached { probes: launches > 0, probes_of_deleted: is_probed("deleted") }
    }
}

#[test]
fn the_table_of_capabilities_is_what_was_tried() {
    if !may_trace("the_table_of_capabilities_is_what_was_tried") {
        return;
    }
    if kernel().is_none_or(|version| version < UPROBE_LINKS) {
        eprintln!("SKIPPED the_table_of_capabilities_is_what_was_tried: the table is Linux 6.10's and later");
        return;
    }
    let Some(parts) = Parts::new() else { return };
    let (roots, own) = (parts.server(Whose::Roots), parts.server(Whose::Own));
    let mut table = String::from(
        "| server of | capabilities | requests | tokenizer times, CUDA | the same before 6.10 | of a deleted library |\n\
         |---|---|---|---|---|---|\n",
    );
    for (whose, set) in SETS {
        let (server, owner) = match whose {
            Whose::Roots => (&roots, "root"),
            Whose::Own => (&own, "the same user"),
        };
        let names = match set {
            None => "all (root)".to_owned(),
            Some([]) => "none".to_owned(),
            Some(set) => set.iter().map(|of| format!("`{}`", of.name())).collect::<Vec<_>>().join(", "),
        };
        let cells = match parts.tried(server, set, &[]) {
            Tried::Refused(missing) => format!("no: {missing} | no | no | no"),
            Tried::Attached { probes, probes_of_deleted } => {
                let Tried::Attached { probes: by_events, .. } = parts.tried(server, set, &["--uprobe-events"]) else {
                    panic!("{set:?}: refused with --uprobe-events alone");
                };
                format!("yes | {} | {} | {}", word(probes), word(by_events), word(probes_of_deleted))
            }
        };
        writeln!(table, "| {owner} | {names} | {cells} |").expect("a string");
    }
    let document = fs::read_to_string(repository(TABLE)).expect("the document");
    if std::env::var_os("INFERSPAN_BLESS").is_some() {
        let blessed = with_section(&document, "capabilities", &table).expect("marks");
        fs::write(repository(TABLE), blessed).expect("written");
        return;
    }
    assert_eq!(section(&document, "capabilities").expect("marks"), table.trim_end(), "{TABLE} says something else");
}

/// Programs that a process holds attached: a link each.
fn links(pid: u32) -> usize {
    let open = fs::read_dir(format!("/proc/{pid}/fd")).expect("descriptors").filter_map(Result::ok);
    let is_one = |path: &PathBuf| path.to_str().is_some_and(|path| path.contains("bpf_link"));
    open.filter_map(|entry| fs::read_link(entry.path()).ok()).filter(is_one).count()
}

/// Waits for the probes of what came: they are placed when the mapping is seen, and as perf events one after the other, once the kernel
/// has taken others' back. They stand when there are more than before and for two seconds no more come.
fn settle(pid: u32, before: usize) {
    let (start, mut seen, mut since) = (Instant::now(), before, Instant::now());
    while start.elapsed() < LIMIT && (seen <= before || since.elapsed() < Duration::from_secs(2)) {
        std::thread::sleep(Duration::from_millis(100));
        let now = links(pid);
        if now != seen {
            (seen, since) = (now, Instant::now());
        }
    }
}

/// What every thread of a process may still do; and whether it can gain more.
fn threads(pid: u32) -> Vec<(Privileges, bool)> {
    let status = |thread: u32| Proc::this().status(format_args!("{pid}/task/{thread}")).ok();
    let threads = Proc::this().threads(pid).expect("threads").into_iter().filter_map(status);
    threads.map(|status| (Privileges(status.permitted | status.effective), status.no_new_privs)).collect()
}

#[test]
fn root_keeps_what_comes_later_needs_and_no_more_in_every_thread() {
    // a server and a log of another user's; attach as root ─ its threads ─ rename ─ HUP ─ requests ─ INT
    if !may_trace("root_keeps_what_comes_later_needs_and_no_more_in_every_thread") {
        return;
    }
    let Some(parts) = Parts::new() else { return };
    let server = parts.server(Whose::Own);
    let out = folder("kept");
    let metrics = ["--metrics", "127.0.0.1:0"];
    let attached = Attached::start(&mut parts.attach(&server, None, out.path(), &metrics)).expect("attached");
    let found = threads(attached.pid());
    assert!(found.len() >= 4, "reader, writer, metrics, names: {found:?}");
    for (privileges, no_new) in &found {
        let names = privileges.listed();
        assert!(*no_new && names.contains(&SysPtrace) && !names.contains(&Capability::SysResource), "{found:?}");
        assert_eq!(privileges.0.count_ones() as usize, names.len(), "nothing else: {found:?}");
        let is_new = kernel().is_some_and(|version| version >= UPROBE_LINKS);
        assert_eq!(names.contains(&SysAdmin), !is_new, "{found:?}");
    }
    assert!(attached.said.contains("inferspan: privileges: kept CAP_"), "{}", attached.said);

    let log = out.path().join("access.jsonl");
    fs::rename(&log, out.path().join("access.1")).expect("a rename");
    attached.signal(Signal::HUP).expect("it runs");
    std::thread::sleep(Duration::from_millis(500));
    server.engine.answer(6).expect("answers");
    attached.signal(Signal::INT).expect("it runs");
    let (status, said) = attached.end(LIMIT).expect("it ends");
    assert!(status.success() && said.contains("lost: none"), "{said}");
    assert!(fs::read_to_string(&log).expect("opened anew, in another user's folder").lines().count() >= 6, "{said}");
}

#[test]
fn what_comes_after_privileges_were_given_up_is_traced_as_what_was_there() {
    // attach as root to another user's process ─ it opens its driver, which was deleted meanwhile ─ launches
    let test = "what_comes_after_privileges_were_given_up_is_traced_as_what_was_there";
    if !may_trace(test) {
        return;
    }
    let Some(fixture) = Fixture::for_test(test) else { return };
    for more in [&[][..], &["--uprobe-events"]] {
        let script = "wait; repeat 50 { launch gemm 8; launch rms_norm 4 }";
        let program = fixture.program(Driver::New, Runtime::V12).late().script(script);
        // Its files lie in root's cache.
        let mut command = as_other(&[DacReadSearch]);
        command.args(program.words());
        let mut running = program.spawn_with(command).expect("a program");
        let out = folder("late");
        let mut attach = Command::new(binary());
        attach.args(["attach", "--cuda-only", "-p", &running.pid().to_string(), "--metrics-out"]);
        attach.arg(out.path().join("metrics.txt")).args(more).stdout(Stdio::null());
        let attached = Attached::start(&mut attach).expect("attached");
        assert!(attached.said.contains("inferspan: privileges: kept CAP_"), "{}", attached.said);
        let (before, start) = (links(attached.pid()), Instant::now());
        running.start().expect("it opens CUDA");
        running.reach_wait().expect("it is there");
        settle(attached.pid(), before);
        running.start().expect("it launches");
        let truth = running.finish().expect("its account");
        let (_, said) = attached.end(LIMIT).expect("it ends with its target");
        let launches = launches(&fs::read_to_string(out.path().join("metrics.txt")).expect("metrics"));
        assert_eq!((launches, truth.total.by_name().len()), (100, 2), "{:?}: {said}", start.elapsed());
    }
}
