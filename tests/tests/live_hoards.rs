//! A server that is attached to and made to take memory: how much `inferspan` takes of it at most.

#![allow(clippy::unwrap_used, reason = "a test that meets a surprise fails")]

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use inferspan_harness::folder::Folder;
use inferspan_tests::judge::binary;
use inferspan_tests::live::may_trace;

/// What a run may take at most, bytes.
const MOST: u64 = 128 << 20;
const CONNECTIONS: usize = 3_000;
/// Bytes that each sends of its frame, 16 KiB at a time.
const PIECES: usize = 17;

/// A process that is killed when dropped.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// As many descriptors as may be had.
fn many_descriptors() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: reads into, then sets from, a limit of ours.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit), 0);
        limit.rlim_cur = limit.rlim_max;
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit), 0);
    }
}

#[test]
#[expect(clippy::zombie_processes, reason = "wait4 collects it, and says what it took")]
fn three_thousand_frames_of_two_gib_take_little() {
    // 3,000 clients greet ─ a frame of 2 GiB begins on each ─ 272 KiB of each come, 16 KiB at a time, all in turn
    if !may_trace("three_thousand_frames_of_two_gib_take_little") {
        return;
    }
    many_descriptors();
    let folder = Folder::new("live-hoards").unwrap();
    let at = |name: &str| folder.path().join(name);
    let mut server = Command::new(env!("CARGO_BIN_EXE_hoarder"));
    server.arg0("vllm").args(["serve", "hoard"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut server = Ended(server.spawn().unwrap());
    let mut port = String::new();
    BufReader::new(server.0.stdout.take().unwrap()).read_line(&mut port).unwrap();
    let port: u16 = port.trim().parse().unwrap();

    let attach = Command::new(binary())
        .args(["attach", "-p", &server.0.id().to_string(), "--metrics-out"])
        .arg(at("page"))
        .stdout(Stdio::null())
        .stderr(File::create(at("err")).unwrap())
        .spawn()
        .unwrap();
    let said = || fs::read_to_string(at("err")).unwrap();
    let start = Instant::now();
    while !said().contains("attached") {
        assert!(start.elapsed() < Duration::from_mins(1), "{}", said());
        std::thread::sleep(Duration::from_millis(50));
    }

    let mut clients: Vec<TcpStream> =
        (0..CONNECTIONS).map(|_| TcpStream::connect(("127.0.0.1", port)).unwrap()).collect();
    let greeting = [&[0xff][..], &[0; 8], &[0x7f, 3, 0], b"NULL", &[0; 48]].concat();
    for client in &mut clients {
        client.write_all(&greeting).unwrap();
    }
    std::thread::sleep(Duration::from_secs(1));
    let frame = [&[0x02][..], &(2_u64 << 30).to_be_bytes(), &[0x90; 64]].concat();
    for client in &mut clients {
        client.write_all(&frame).unwrap();
    }
    for _ in 0..PIECES {
        for (n, client) in clients.iter_mut().enumerate() {
            client.write_all(&[0x90; 16 << 10]).unwrap();
            // So that the tracer keeps up and holds all of it: 64 MiB/s.
            if n % 16 == 0 {
                std::thread::sleep(Duration::from_millis(4));
            }
        }
    }
    std::thread::sleep(Duration::from_secs(2));

    // SAFETY: signals a child of ours that was not waited for.
    unsafe { libc::kill(attach.id() as i32, libc::SIGINT) };
    // SAFETY: all zero is a `rusage`.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    let mut status = 0;
    // SAFETY: waits for a child of ours, and writes one status and one `rusage`, which these are.
    let waited = unsafe { libc::wait4(attach.id() as i32, &raw mut status, 0, &raw mut usage) };
    assert_eq!(waited, attach.id() as i32);
    let most = usage.ru_maxrss as u64 * 1024;
    let page = fs::read_to_string(at("page")).unwrap();
    let of = |stage: &str| {
        let counts = page.lines().filter(|line| line.contains(&format!(r#"stage="{stage}""#)));
        counts.filter_map(|line| line.split(' ').nth(1)?.parse::<u64>().ok()).sum::<u64>()
    };
    eprintln!("{} MiB, {} let go, {} lost in the ring", most >> 20, of("evicted"), of("data_ring"));
    assert!(most < MOST, "{} MiB: {}", most >> 20, said());
    assert!(of("evicted") > 100, "{page}");
}
