//! Where outputs go: pipes, links, permissions; from outside.

#![allow(clippy::unwrap_used, reason = "a test that meets a surprise fails")]

use std::fs::{self, File, Permissions};
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use inferspan_harness::process::{Signal, send};
use inferspan_tests::demo_engine::DemoEngine;
use inferspan_tests::judge::binary;
use inferspan_tests::live::may_trace;

const ENGINE: &str = env!("CARGO_BIN_EXE_test-engine");
const RECORDING: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/recordings/vllm-0.32-mixed.isrec");
const FLAGS: [&str; 6] = ["--access-log", "--metrics-out", "--traces-out", "--perfetto", "--chrome", "--kernels-out"];
/// Of what ends at once.
const AT_ONCE: Duration = Duration::from_secs(10);

/// A folder of the test's own.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str, mode: u32) -> Self {
        let folder = Self(std::env::temp_dir().join(format!("inferspan-outputs-{}-{name}", std::process::id())));
        fs::create_dir_all(&folder.0).unwrap();
        fs::set_permissions(&folder.0, Permissions::from_mode(mode)).unwrap();
        folder
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.join(name.trim_start_matches('-'))
    }

    fn pipe(&self, name: &str) -> PathBuf {
        let path = self.at(name);
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn start(arguments: &[&str]) -> Child {
    let mut command = Command::new(binary());
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Its exit code, and what it said; fails where it does not end in time.
fn end(mut child: Child, limit: Duration) -> (Option<i32>, String) {
    let begun = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begun.elapsed() > limit {
            child.kill().unwrap();
            panic!("it did not end within {limit:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    (child.wait().unwrap().code(), said)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_pipe_that_nobody_reads_is_refused_before_anything_is_attached() {
    let folder = Folder::new("unread", 0o755);
    let pipe = folder.pipe("pipe");
    let refused = |(code, said): (Option<i32>, String)| {
        assert_eq!(code, Some(2), "{said}");
        assert!(
            said.contains("is a named pipe that nobody reads") && said.contains("start its reader first"),
            "{said}"
        );
        assert!(!said.contains("attached"), "{said}");
    };
    for flag in FLAGS {
        refused(end(start(&["replay", RECORDING, flag, text(&pipe)]), AT_ONCE));
    }
    if !may_trace("a_pipe_that_nobody_reads_is_refused_before_anything_is_attached") {
        return;
    }
    let engine = DemoEngine::start(Command::new(ENGINE), &folder.at("engine"), |_, announced| Some(announced)).unwrap();
    let pid = engine.target.pid.to_string();
    for flag in FLAGS {
        refused(end(start(&["attach", "-p", &pid, flag, text(&pipe)]), AT_ONCE));
    }
    refused(end(start(&["record", "-p", &pid, "-o", text(&pipe)]), AT_ONCE));
}

#[test]
fn a_pipe_that_is_read_gets_what_a_file_gets() {
    let folder = Folder::new("read", 0o755);
    for flag in FLAGS {
        let (pipe, file) = (folder.pipe(&format!("{flag}.pipe")), folder.at(flag));
        let (code, said) = end(start(&["replay", RECORDING, flag, text(&file)]), AT_ONCE * 6);
        assert_eq!(code, Some(0), "{said}");
        let reader = {
            let pipe = pipe.clone();
            std::thread::spawn(move || fs::read(pipe).unwrap())
        };
        let through = loop {
            let (code, said) = end(start(&["replay", RECORDING, flag, text(&pipe)]), AT_ONCE * 6);
            // The reader may not have come yet.
            if !said.contains("nobody reads") {
                assert_eq!(code, Some(0), "{said}");
                break reader.join().unwrap();
            }
        };
        let own = |bytes: &[u8]| {
            let text = String::from_utf8_lossy(bytes).into_owned();
            text.lines().filter(|line| !line.contains("inferspan_self_")).collect::<Vec<_>>().join("\n")
        };
        assert_eq!(own(&through), own(&fs::read(&file).unwrap()), "{flag}");
    }
}

#[test]
fn a_reader_that_stalls_does_not_hang_the_run() {
    if !may_trace("a_reader_that_stalls_does_not_hang_the_run") {
        return;
    }
    // the reader opens the pipe and reads nothing | attach, some requests | SIGTERM
    let folder = Folder::new("stalled", 0o755);
    let engine = DemoEngine::start(Command::new(ENGINE), &folder.at("engine"), |_, announced| Some(announced)).unwrap();
    let pid = engine.target.pid.to_string();
    for arguments in [["attach", "--traces-out"], ["attach", "--metrics-out"], ["record", "-o"]] {
        let pipe = folder.pipe(&format!("{}-{}.pipe", arguments[0], arguments[1]));
        let opened = {
            let pipe = pipe.clone();
            std::thread::spawn(move || File::open(pipe).unwrap())
        };
        // So that the pipe is full from the start.
        fs::OpenOptions::new().write(true).open(&pipe).map(|mut writer| fill(&mut writer)).unwrap();
        let (verb, flag) = (arguments[0], arguments[1]);
        let mut child = start(&[verb, "-p", &pid, flag, text(&pipe)]);
        let stalled = opened.join().unwrap();
        wait_until_attached(&mut child);
        for _ in 0..4 {
            let _ = engine.target.metrics_text();
        }
        send(child.id(), Signal::TERM).unwrap();
        let (code, said) = end(child, Duration::from_secs(40));
        assert!(matches!(code, Some(0 | 1)), "{verb} {flag}: {code:?} {said}");
        drop(stalled);
    }
}

/// Writes until the pipe takes no more.
fn fill(writer: &mut File) {
    use std::io::Write as _;
    use std::os::fd::AsRawFd as _;
    // SAFETY: sets a flag of a descriptor that is open; no memory is involved.
    unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
    while writer.write(&[b'\n'; 4096]).is_ok() {}
}

fn wait_until_attached(child: &mut Child) {
    let mut stderr = child.stderr.take().unwrap();
    let (mut said, mut byte) = (Vec::new(), [0]);
    while !String::from_utf8_lossy(&said).contains("Ctrl-C stops") {
        assert!(stderr.read(&mut byte).unwrap() > 0, "it ended: {}", String::from_utf8_lossy(&said));
        said.extend(byte);
    }
    child.stderr = Some(stderr);
}

#[test]
fn outputs_are_for_their_owner_and_group() {
    let folder = Folder::new("mode", 0o755);
    for flag in FLAGS {
        let file = folder.at(flag);
        let (code, said) = end(start(&["replay", RECORDING, flag, text(&file)]), AT_ONCE * 6);
        assert_eq!(code, Some(0), "{said}");
        let mode = fs::metadata(&file).unwrap().mode() & 0o777;
        assert_eq!(mode & !0o640, 0, "{flag}: {mode:o}");
    }
}

#[test]
fn a_link_in_a_folder_that_others_can_write_is_not_followed() {
    let (own, shared) = (Folder::new("own", 0o755), Folder::new("shared", 0o1777));
    let precious = own.at("precious");
    fs::write(&precious, "kept").unwrap();
    for flag in FLAGS {
        let link = shared.at(flag);
        symlink(&precious, &link).unwrap();
        let (code, said) = end(start(&["replay", RECORDING, flag, text(&link)]), AT_ONCE);
        assert_eq!(code, Some(2), "{flag}: {said}");
        assert!(said.contains("is a link in a folder that others can write") && said.contains("fix:"), "{said}");
    }
    assert_eq!(fs::read_to_string(&precious).unwrap(), "kept");
    let link = own.at("link");
    symlink(&precious, &link).unwrap();
    let (code, said) = end(start(&["replay", RECORDING, "--access-log", text(&link)]), AT_ONCE * 6);
    assert_eq!(code, Some(0), "a link of one's own: {said}");
    assert_ne!(fs::read_to_string(&precious).unwrap(), "kept");
}

#[test]
fn what_was_lost_is_called_by_its_name() {
    // /dev/full takes no byte
    for (flag, unit) in [("--traces-out", "spans lost)"), ("--access-log", "records lost)")] {
        let (code, said) = end(start(&["replay", RECORDING, flag, "/dev/full"]), AT_ONCE * 6);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains(unit) && !said.contains("lines lost"), "{flag}: {said}");
    }
}
