//! Nothing that a target chose moves the cursor: escape sequences and the like in every string that it controls, and every verb's stdout
//! and stderr searched for them.

#![allow(clippy::unwrap_used, reason = "a test that meets a surprise fails")]

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use inferspan::sanitise::is_unsafe;
use inferspan_tests::demo_engine::DemoEngine;
use inferspan_tests::judge::binary;
use inferspan_tests::live::may_trace;

/// A colour, a bell, a reversal of what follows, and a control character above ASCII.
const MARK: &str = "\u{1b}[31m\u{7}\u{202e}\u{9b}2J";
const REPLACED: char = '\u{fffd}';

/// A folder of the test's own.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let folder = Self(std::env::temp_dir().join(format!("inferspan-escapes-{}-{name}", std::process::id())));
        fs::create_dir_all(&folder.0).unwrap();
        folder
    }

    /// A folder in it, with the mark in its name.
    fn marked(&self, name: &str) -> PathBuf {
        let path = self.0.join(format!("{name}{MARK}"));
        fs::create_dir_all(&path).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A process group that is killed when dropped.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        // SAFETY: signals the group that this test made with `process_group(0)`; no memory is involved.
        unsafe { libc::kill(-(self.0.id() as i32), libc::SIGKILL) };
        let _ = self.0.wait();
    }
}

/// What `inferspan` says with these arguments, both streams; checked.
fn said(arguments: &[&str]) -> String {
    let output = Command::new(binary()).args(arguments).stdin(Stdio::null()).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8(text).unwrap();
    check(arguments, &text);
    text
}

fn check(arguments: &[&str], text: &str) {
    let through = text.chars().find(|&c| c != '\n' && is_unsafe(c));
    assert_eq!(through, None, "{arguments:?}:\n{text:?}");
}

fn cc(source: &str, arguments: &[&str], output: &Path) {
    let c = output.with_extension("c");
    fs::write(&c, source).unwrap();
    let status = Command::new("cc").args(["-shared", "-fPIC"]).arg(&c).args(arguments).arg("-o").arg(output).status();
    assert!(status.unwrap().success());
}

/// Puts bytes in the place of others in a file.
fn patch(file: &Path, old: &[u8], new: &[u8]) {
    assert_eq!(old.len(), new.len());
    let mut bytes = fs::read(file).unwrap();
    let mut found = 0;
    for at in 0..bytes.len() - old.len() {
        if bytes[at..].starts_with(old) {
            bytes[at..at + new.len()].copy_from_slice(new);
            found += 1;
        }
    }
    assert!(found > 0, "{old:?} is not in {}", file.display());
    fs::write(file, bytes).unwrap();
}

/// Libraries whose paths, names and symbols are marked.
struct Libraries {
    /// With the function that is probed.
    tokenizer: PathBuf,
    /// Without its symbols.
    stripped: PathBuf,
    /// Looks like a driver and calls itself otherwise.
    look: PathBuf,
    kernels: PathBuf,
}

impl Libraries {
    fn build(folder: &Folder) -> Self {
        let at = |place: &str, name: &str| folder.marked(place).join(name);
        let (tokenizer, stripped) = (at("whole", "tokenizers.abi3.so"), at("bare", "tokenizers.abi3.so"));
        let function = "_ZN10tokenizers9tokenizer11PyTokenizer19___pymethod_encode__17h00000PLANTED0000E";
        let source = format!("int {function}(int a) {{ return a + 1; }}\n");
        cc(&source, &[], &tokenizer);
        patch(&tokenizer, b"PLANTED", b"\x1b[31mPL");
        cc(&source, &["-s"], &stripped);
        let look = at("look", "liblook.so");
        cc("int cuLaunchKernel(void) { return 0; }\n", &[&format!("-Wl,-soname,evil{MARK}.so")], &look);

        let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/cuda/names");
        let runtime = at("kernels", "libcudart.so.13");
        let script = format!("-Wl,--version-script={fixtures}/runtime.map");
        let read = |name: &str| fs::read_to_string(format!("{fixtures}/{name}")).unwrap();
        cc(&read("runtime.c"), &["-Wl,-soname,libcudart.so.13", &script, "-ldl"], &runtime);
        let kernels = at("kernels", "libkernels.so");
        cc(&read("program.c"), &["-s", "-O2", "-DHANDLES", runtime.to_str().unwrap()], &kernels);
        patch(&kernels, b"rms_norm_kernel", b"rms\x1b[2Jm_kernel");
        Self { tokenizer, stripped, look, kernels }
    }
}

/// A server by its command lines and titles: shells and sleeps, all marked.
fn server(folder: &Folder, libraries: &Libraries) -> Group {
    let script = |name: &str, text: String| fs::write(folder.0.join(name), text).unwrap();
    let comm = r"printf '\033[31mx\302\2332J' > /proc/$$/comm";
    script("engine", format!("{comm}\n(exec -a 'x{MARK}::Worker_TP0' sleep 600) &\nwait\n"));
    script("serve", format!("{comm}\n(exec -a 'te{MARK}am::EngineCore' bash engine) &\nwait\n"));
    let Libraries { tokenizer, stripped, look, kernels } = libraries;
    let preload: Vec<&str> = [tokenizer, stripped, look, kernels].map(|path| path.to_str().unwrap()).to_vec();
    let mut command = Command::new("bash");
    command.arg0("vllm").args(["serve", &format!("model{MARK}")]).current_dir(&folder.0).process_group(0);
    command.env("OTEL_SERVICE_NAME", format!("service{MARK}"));
    command.env("LD_PRELOAD", preload.join(":")).env("LD_LIBRARY_PATH", kernels.parent().unwrap());
    Group(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
}

#[test]
fn no_verb_lets_a_string_of_the_targets_through() {
    let folder = Folder::new("verbs");
    let libraries = Libraries::build(&folder);
    let group = server(&folder, &libraries);
    let pid = group.0.id().to_string();
    let start = Instant::now();
    let listed = loop {
        let listed = said(&["ls"]);
        if listed.contains("1 api, 1 engine, 1 worker") {
            break listed;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "{listed}");
        std::thread::sleep(Duration::from_millis(50));
    };
    assert!(listed.contains(&format!("model{REPLACED}[31m")), "{listed}");
    let document = said(&["ls", "--json"]);
    assert!(document.contains("whole") && document.contains("service"), "{document}");

    let checked = said(&["doctor", "-p", &pid]);
    assert!(checked.contains(&format!("whole{REPLACED}[31m")) && checked.contains("model"), "{checked}");
    said(&["doctor", "-p", &pid, "--json"]);

    said(&["probes", "-p", &pid]);
    // The table cuts it before.
    let probed = said(&["probes", "-p", &pid, "--json"]);
    assert!(probed.contains(r"00000\u001b[31mPL"), "the symbol: {probed}");
    let look = libraries.look.to_str().unwrap();
    let looked = said(&["probes", look]);
    assert!(looked.contains(&format!("calls itself evil{REPLACED}[31m")), "the SONAME: {looked}");
    said(&["probes", look, "--json"]);

    let kernels = libraries.kernels.to_str().unwrap();
    for arguments in [["names", kernels].as_slice(), &["names", "-p", &pid]] {
        let named = said(arguments);
        // A kernel's name that could move the cursor is taken for none.
        assert!(named.contains("scale<float>") && named.contains("1 registrations could not be read"), "{named}");
    }
    said(&["names", kernels, "--json"]);
    said(&["names", "-p", &pid, "--json"]);
    for verb in ["names", "probes"] {
        said(&[verb, folder.marked("gone").join("none").to_str().unwrap()]);
        said(&[verb, folder.marked("gone").to_str().unwrap()]);
    }
    if !may_trace("no_verb_lets_a_string_of_the_targets_through") {
        return;
    }
    let attached = said(&["attach", "-p", &pid, "--duration", "1s", "--access-log", "/dev/null"]);
    assert!(attached.contains(&format!("serving model{REPLACED}[31m")), "{attached}");
    assert!(attached.contains(&format!("bare{REPLACED}[31m")), "the library that cannot be probed: {attached}");
    let failed = said(&["attach", "-p", &pid, "--name", MARK]);
    assert!(failed.contains("cannot be used with"), "{failed}");
    said(&["attach", "--name", MARK, "--access-log", "/dev/null"]);
}

#[test]
fn no_request_line_lets_a_string_of_a_clients_through() {
    const ENGINE: &str = env!("CARGO_BIN_EXE_test-engine");
    if !may_trace("no_request_line_lets_a_string_of_a_clients_through") {
        return;
    }
    let folder = Folder::new("requests");
    let mut command = Command::new(ENGINE);
    command.args(["--served-model-name", &format!("model{MARK}")]);
    let engine = DemoEngine::start(command, &folder.0, |_, announced| Some(announced)).unwrap();
    let mut attach = Command::new(binary());
    attach.args(["attach", "-p", &engine.target.pid.to_string()]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut attach = attach.args(["--duration", "4s"]).spawn().unwrap();
    let mut errors = BufReader::new(attach.stderr.take().unwrap());
    let mut text = String::new();
    while !text.lines().any(|line| line.starts_with("inferspan: attached")) {
        assert!(errors.read_line(&mut text).unwrap() > 0, "it ended:\n{text}");
    }
    let address = engine.target.url.strip_prefix("http://").unwrap();
    let escaped = r"\u001b[31m\u0007\u202e\u009b2J";
    for (path, model) in [("/v1/completions", "model"), ("/v1/completions", "other"), ("/v1/chat/completions", "model")]
    {
        let body = format!(
            r#"{{"model":"{model}{escaped}","prompt":"a","messages":[{{"role":"user","content":"a"}}],"max_tokens":2}}"#
        );
        let mut stream = TcpStream::connect(address).unwrap();
        let length = body.len();
        // Servers refuse ASCII's control characters in a head, and none above it.
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nX-Request-Id: id\u{202e}\u{9b}2J\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
    }
    errors.read_to_string(&mut text).unwrap();
    attach.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert!(attach.wait().unwrap().success(), "{text}");
    check(&["attach"], &text);
    assert!(text.contains("/v1/completions") && text.contains(REPLACED), "{text}");
}
