//! A fixture for the table of descriptors: many connections, many descriptors.
//!
//! `crowd race|many`: sets up, prints `name number` lines and `ready`, waits for a line on stdin, runs, exits.

use std::io::{BufRead as _, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};

const CONNECTIONS: u32 = 20_000;
const SERVERS: u32 = 4;
const CLIENTS: u32 = 4;
const OPENERS: u32 = 2;
/// A quarter of what did not fit the old table: an unprivileged process may have some 20,000.
const FILES: usize = 15_000;
const PAIRS: usize = 1000;

fn wait_for_go() {
    println!("ready");
    std::io::stdout().flush().expect("stdout");
    std::io::stdin().lock().read_line(&mut String::new()).expect("stdin");
}

/// Threads that accept, answer and close, beside threads that connect, and threads that open and close files: every number is
/// wanted by another thread at the very moment it is free.
fn race() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("address");
    wait_for_go();
    let (next, done) = (AtomicU32::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for _ in 0..OPENERS {
            scope.spawn(|| {
                while !done.load(Relaxed) {
                    drop(std::fs::File::open("/dev/null"));
                    std::thread::yield_now();
                }
            });
        }
        let servers: Vec<_> = (0..SERVERS)
            .map(|_| {
                scope.spawn(|| {
                    for _ in 0..CONNECTIONS / SERVERS {
                        let (mut stream, _) = listener.accept().expect("accept");
                        let mut request = [0; 64];
                        let len = stream.read(&mut request).expect("request");
                        stream.write_all(&request[..len]).expect("answer");
                    }
                })
            })
            .collect();
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Relaxed);
                    if number >= CONNECTIONS {
                        return;
                    }
                    let mut stream = TcpStream::connect(address).expect("connect");
                    // In one call.
                    stream.write_all(format!("request {number:05}").as_bytes()).expect("request");
                    let mut answer = [0; 64];
                    assert!(stream.read(&mut answer).expect("answer") > 0);
                }
            });
        }
        for server in servers {
            server.join().expect("server");
        }
        done.store(true, Relaxed);
    });
}

/// Four of these have more descriptors than the old table of all of them held.
fn many() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the limit lives across the calls.
    unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
        limit.rlim_cur = limit.rlim_max;
        libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
    }
    if limit.rlim_cur < 18_000 {
        println!("refused 1");
        return wait_for_go();
    }
    let files: Vec<_> = (0..FILES).map(|_| std::fs::File::open("/dev/null").expect("open")).collect();
    let mut pairs: Vec<_> = (0..PAIRS).map(|_| UnixStream::pair().expect("pair")).collect();
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let mut client = TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
    let (last, _) = pairs.last_mut().expect("pairs");
    println!("unix {}\nclient {}", last.as_raw_fd(), client.as_raw_fd());
    wait_for_go();
    last.write_all(&[1; 2000]).expect("write");
    client.write_all(&[2; 2000]).expect("write");
    let (mut server, _) = listener.accept().expect("accept");
    println!("server {}", server.as_raw_fd());
    server.read_exact(&mut [0; 2000]).expect("read");
    // As many again, which come and go.
    for _ in 0..10_000 {
        drop(std::fs::File::open("/dev/null"));
    }
    drop(files);
}

fn main() {
    match std::env::args().nth(1).as_deref() {
        Some("race") => race(),
        Some("many") => many(),
        other => panic!("no scenario {other:?}"),
    }
}
