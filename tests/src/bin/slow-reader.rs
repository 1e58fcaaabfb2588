//! A process whose clients read nothing for a while, for the live tests of writes that are refused.
//!
//! `slow-reader CALL CONNECTIONS`: makes so many pairs of sockets (TCP; of a `unix` call unix), prints the first two servers' numbers and
//! `ready`, waits for a line on stdin. Then each server writes by CALL until its socket takes no more, tries a hundred times again, and, when
//! the client has read all, once more. Every call is made directly, so that a test knows the exact system calls.

use std::io::{BufRead as _, ErrorKind, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;
use std::{mem, ptr, thread};

/// So much is asked for at first: more than any buffer here holds, so that a part is taken.
const MUCH: usize = 300_000;
const AGAIN: usize = 100;

fn set(fd: i32, option: i32, value: i32) {
    let len = size_of::<i32>() as libc::socklen_t;
    // SAFETY: the value is four readable bytes.
    let result = unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, option, (&raw const value).cast(), len) };
    assert_eq!(result, 0, "setsockopt: {}", std::io::Error::last_os_error());
}

/// A server's socket and its client's, with buffers as small as the kernel makes them.
fn pair(call: &str, listener: &TcpListener) -> (OwnedFd, OwnedFd) {
    if call == "unix" {
        let (server, client) = UnixStream::pair().expect("a pair");
        server.set_nonblocking(true).expect("non-blocking");
        client.set_nonblocking(true).expect("non-blocking");
        return (server.into(), client.into());
    }
    // The window is agreed on when the connection is made.
    // SAFETY: no pointers.
    let raw = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0) };
    assert!(raw >= 0, "socket: {}", std::io::Error::last_os_error());
    set(raw, libc::SO_RCVBUF, 4096);
    let address = libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: listener.local_addr().expect("an address").port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes([127, 0, 0, 1]) },
        sin_zero: [0; 8],
    };
    // SAFETY: the address lives across the call.
    let result = unsafe { libc::connect(raw, (&raw const address).cast(), size_of_val(&address) as u32) };
    assert_eq!(result, 0, "connect: {}", std::io::Error::last_os_error());
    // SAFETY: the socket is new and nobody else's.
    let client = unsafe { TcpStream::from_raw_fd(raw) };
    let (server, _) = listener.accept().expect("accept");
    set(server.as_raw_fd(), libc::SO_SNDBUF, 4096);
    server.set_nonblocking(true).expect("non-blocking");
    client.set_nonblocking(true).expect("non-blocking");
    (server.into(), client.into())
}

/// Writes `bytes` by `call`: two halves and an empty buffer where it takes several. Bytes taken; `None`: it was refused.
fn put(call: &str, fd: i32, bytes: &[u8]) -> Option<usize> {
    let (first, second) = bytes.split_at(bytes.len() / 2);
    let vector = |piece: &[u8]| libc::iovec { iov_base: piece.as_ptr() as *mut _, iov_len: piece.len() };
    let mut vectors = [vector(first), vector(second), vector(&[])];
    // SAFETY: the pointers are to live slices and vectors, and the lengths theirs; all-zero is a valid msghdr.
    let result = unsafe {
        match call {
            "write" => libc::write(fd, bytes.as_ptr().cast(), bytes.len()),
            "writev" => libc::writev(fd, vectors.as_ptr(), 3),
            "sendmsg" => {
                let mut header: libc::msghdr = mem::zeroed();
                (header.msg_iov, header.msg_iovlen) = (vectors.as_mut_ptr(), 3);
                libc::sendmsg(fd, &raw const header, 0)
            }
            "sendmmsg" => {
                let mut message: libc::mmsghdr = mem::zeroed();
                (message.msg_hdr.msg_iov, message.msg_hdr.msg_iovlen) = (vectors.as_mut_ptr(), 3);
                let sent = libc::sendmmsg(fd, &raw mut message, 1, 0);
                if sent == 1 { message.msg_len as isize } else { -1 }
            }
            _ => libc::sendto(fd, bytes.as_ptr().cast(), bytes.len(), 0, ptr::null(), 0),
        }
    };
    let error = std::io::Error::last_os_error();
    assert!(result >= 0 || error.kind() == ErrorKind::WouldBlock, "{call}: {error}");
    usize::try_from(result).ok()
}

/// Reads until `len` bytes came.
fn read(client: &OwnedFd, mut len: usize) {
    let mut client = std::fs::File::from(client.try_clone().expect("a copy"));
    let mut bytes = vec![0; 65_536];
    while len > 0 {
        match client.read(&mut bytes) {
            Ok(n) => len -= n,
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(Duration::from_millis(1)),
            Err(error) => panic!("read: {error}"),
        }
    }
}

/// As many descriptors as this process may have.
fn raise_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid place for the result, and then a valid argument.
    unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
        limit.rlim_cur = limit.rlim_max;
        libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
    }
}

fn main() {
    raise_limit();
    let arguments: Vec<String> = std::env::args().collect();
    let (call, connections) = (arguments[1].as_str(), arguments[2].parse().expect("a number"));
    let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
    let pairs: Vec<_> = (0..connections).map(|_| pair(call, &listener)).collect();
    for (number, (server, _)) in pairs.iter().take(2).enumerate() {
        println!("server{number} {}", server.as_raw_fd());
    }
    println!("ready");
    std::io::stdout().flush().expect("stdout");
    std::io::stdin().lock().read_line(&mut String::new()).expect("stdin");
    let bytes = vec![b'x'; MUCH];
    let mut taken = vec![0; connections];
    for ((server, _), taken) in pairs.iter().zip(&mut taken) {
        for _ in 0..AGAIN {
            *taken += put(call, server.as_raw_fd(), &bytes).unwrap_or(0);
        }
    }
    for ((server, client), taken) in pairs.iter().zip(taken) {
        read(client, taken);
        assert_eq!(put(call, server.as_raw_fd(), b"all of it!"), Some(10), "there is room again");
        assert_eq!(put(call, server.as_raw_fd(), b"and again."), Some(10));
    }
    println!("done");
}
