//! A process that makes known system calls, for the live tests of the kernel side.
//!
//! `sockets SCENARIO [LIBRARY]`: sets up, prints `name fd` lines and `ready`, waits for a line on stdin, makes the scenario's calls,
//! exits. Every call is made directly, so that a test knows the exact system calls.

use std::io::{BufRead as _, Write as _};
use std::mem::zeroed;

/// A failed call ends the fixture; the test sees the message and a process that is gone.
fn check(what: &str, result: isize) -> isize {
    assert!(result >= 0, "{what}: {}", std::io::Error::last_os_error());
    result
}

fn read(fd: i32, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    // SAFETY: `bytes` holds `len`.
    let got = check("read", unsafe { libc::read(fd, bytes.as_mut_ptr().cast(), len) });
    bytes.truncate(got as usize);
    bytes
}

fn write(fd: i32, bytes: &[u8]) -> usize {
    // SAFETY: the slice holds its length.
    check("write", unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) }) as usize
}

/// Bytes that differ from place to place.
fn pattern(len: u32) -> Vec<u8> {
    (0..len).map(|index| (index / 251) as u8 ^ index as u8).collect()
}

/// Reads until `len` bytes came; gives the lengths of the reads.
fn read_whole(fd: i32, len: usize) -> Vec<usize> {
    let mut lens = Vec::new();
    while lens.iter().sum::<usize>() < len {
        lens.push(read(fd, len).len());
    }
    lens
}

fn iovecs(pieces: &[&[u8]]) -> Vec<libc::iovec> {
    pieces.iter().map(|piece| libc::iovec { iov_base: piece.as_ptr() as *mut _, iov_len: piece.len() }).collect()
}

fn writev(fd: i32, pieces: &[&[u8]]) {
    let vectors = iovecs(pieces);
    // SAFETY: the vectors point to live slices.
    check("writev", unsafe { libc::writev(fd, vectors.as_ptr(), vectors.len() as i32) });
}

fn readv(fd: i32, lens: &[usize]) {
    let mut buffers: Vec<Vec<u8>> = lens.iter().map(|len| vec![0; *len]).collect();
    let vectors: Vec<_> = buffers
        .iter_mut()
        .map(|buffer| libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() })
        .collect();
    // SAFETY: the vectors point to live buffers.
    check("readv", unsafe { libc::readv(fd, vectors.as_ptr(), vectors.len() as i32) });
}

fn sendto(fd: i32, bytes: &[u8]) {
    // SAFETY: the slice holds its length; no address.
    check("sendto", unsafe { libc::sendto(fd, bytes.as_ptr().cast(), bytes.len(), 0, std::ptr::null(), 0) });
}

fn recvfrom(fd: i32, len: usize, flags: i32) {
    let mut bytes = vec![0; len];
    let none = std::ptr::null_mut();
    // SAFETY: `bytes` holds `len`; no address.
    check("recvfrom", unsafe { libc::recvfrom(fd, bytes.as_mut_ptr().cast(), len, flags, none, none.cast()) });
}

fn sendmsg(fd: i32, pieces: &[&[u8]]) {
    let mut vectors = iovecs(pieces);
    // SAFETY: all-zero is a valid msghdr.
    let mut header: libc::msghdr = unsafe { zeroed() };
    header.msg_iov = vectors.as_mut_ptr();
    header.msg_iovlen = vectors.len();
    // SAFETY: the header points to live vectors.
    check("sendmsg", unsafe { libc::sendmsg(fd, &raw const header, 0) });
}

fn recvmsg(fd: i32, len: usize) {
    let mut bytes = vec![0u8; len];
    let mut vector = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: len };
    // SAFETY: all-zero is a valid msghdr.
    let mut header: libc::msghdr = unsafe { zeroed() };
    header.msg_iov = &raw mut vector;
    header.msg_iovlen = 1;
    // SAFETY: the header points to a live vector.
    check("recvmsg", unsafe { libc::recvmsg(fd, &raw mut header, 0) });
}

fn close(fd: i32) {
    // SAFETY: closes a number, whatever it is.
    check("close", unsafe { libc::close(fd) } as isize);
}

fn socket(domain: i32) -> i32 {
    // SAFETY: no pointers.
    check("socket", unsafe { libc::socket(domain, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) } as isize) as i32
}

fn loopback(port: u16) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: port.to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes([127, 0, 0, 1]) },
        sin_zero: [0; 8],
    }
}

/// A listener on a free port of the loopback, and the port.
fn listen() -> (i32, u16) {
    let fd = socket(libc::AF_INET);
    let mut address = loopback(0);
    let mut len = size_of::<libc::sockaddr_in>() as u32;
    // SAFETY: the address lives across the calls and `len` is its size.
    unsafe {
        check("bind", libc::bind(fd, (&raw const address).cast(), len) as isize);
        check("listen", libc::listen(fd, 16) as isize);
        check("getsockname", libc::getsockname(fd, (&raw mut address).cast(), &raw mut len) as isize);
    }
    (fd, u16::from_be(address.sin_port))
}

fn connect(port: u16) -> i32 {
    let fd = socket(libc::AF_INET);
    let address = loopback(port);
    // SAFETY: the address lives across the call.
    check("connect", unsafe { libc::connect(fd, (&raw const address).cast(), size_of_val(&address) as u32) } as isize);
    fd
}

fn accept(listener: i32) -> i32 {
    let mut address = loopback(0);
    let mut len = size_of_val(&address) as u32;
    // SAFETY: the address lives across the call and `len` is its size.
    let fd = unsafe { libc::accept4(listener, (&raw mut address).cast(), &raw mut len, libc::SOCK_CLOEXEC) };
    check("accept4", fd as isize) as i32
}

fn unix_pair() -> [i32; 2] {
    let mut pair = [0; 2];
    // SAFETY: two descriptors fit.
    check("socketpair", unsafe { libc::socketpair(libc::AF_UNIX, libc::SOCK_STREAM, 0, pair.as_mut_ptr()) } as isize);
    pair
}

fn dup(fd: i32) -> i32 {
    // SAFETY: no pointers.
    unsafe { libc::dup(fd) }
}

fn pipe() -> [i32; 2] {
    let mut pair = [0; 2];
    // SAFETY: two descriptors fit.
    check("pipe", unsafe { libc::pipe(pair.as_mut_ptr()) } as isize);
    pair
}

fn open(path: &std::ffi::CStr) -> i32 {
    // SAFETY: the path ends in NUL.
    check("open", unsafe { libc::open(path.as_ptr(), libc::O_RDWR) } as isize) as i32
}

/// What is open when a test attaches.
struct Before {
    listener: i32,
    port: u16,
    client: i32,
    server: i32,
    unix: [i32; 2],
    pipe: [i32; 2],
    event: i32,
    file: i32,
}

impl Before {
    fn set_up() -> Self {
        let (listener, port) = listen();
        let client = connect(port);
        let server = accept(listener);
        // SAFETY: no pointers.
        let event = check("eventfd", unsafe { libc::eventfd(0, 0) } as isize) as i32;
        Self { listener, port, client, server, unix: unix_pair(), pipe: pipe(), event, file: open(c"/dev/null") }
    }

    fn print(&self) {
        println!("listener {}\nclient {}\nserver {}", self.listener, self.client, self.server);
        println!(
            "unix0 {}\nunix1 {}\npipe1 {}\nevent {}\nfile {}",
            self.unix[0], self.unix[1], self.pipe[1], self.event, self.file
        );
        println!("port {}\nready", self.port);
    }

    /// Every data call, exact bytes.
    fn calls(&self) {
        write(self.client, b"hello tcp");
        read(self.server, 100);
        writev(self.client, &[b"ab", b"", b"cde"]);
        readv(self.server, &[2, 3]);
        sendto(self.unix[0], b"over unix");
        recvfrom(self.unix[1], 100, libc::MSG_PEEK);
        recvfrom(self.unix[1], 100, 0);
        sendmsg(self.unix[0], &[b"mes", b"sage"]);
        recvmsg(self.unix[1], 100);
    }

    /// What must not be seen: descriptors that are no stream sockets, before and after attach, and a reused number.
    fn noise(&self) {
        write(self.pipe[1], b"NOISE pipe");
        read(self.pipe[0], 100);
        write(self.event, &1u64.to_ne_bytes());
        read(self.event, 8);
        write(self.file, b"NOISE file");
        let [from, to] = pipe();
        write(to, b"NOISE new pipe");
        read(from, 100);
        let reused = self.unix[0];
        close(reused);
        let file = open(c"/dev/null");
        assert_eq!(file, reused, "the lowest free number is used again");
        write(file, b"NOISE in a socket's number");
        close(file);
        let socket = unix_pair();
        assert_eq!(socket[0], reused);
        write(socket[0], b"a socket again");
        println!("again {}", socket[0]);
        // A number moves from one thing to another without a close().
        // SAFETY: no pointers.
        check("dup2", unsafe { libc::dup2(self.file, socket[0]) } as isize);
        write(socket[0], b"NOISE after dup2");
        // SAFETY: no pointers.
        let copy = check("dup", unsafe { libc::dup(socket[1]) } as isize) as i32;
        println!("copy {copy}");
        assert_eq!(read(copy, 100), b"a socket again");
    }

    /// A new connection from its accept to its end.
    fn lifetime(&self) {
        let client = connect(self.port);
        let server = accept(self.listener);
        println!("new_client {client}\nnew_server {server}");
        write(client, b"first");
        read(server, 100);
        // SAFETY: no pointers.
        check("shutdown", unsafe { libc::shutdown(client, libc::SHUT_WR) } as isize);
        assert!(read(server, 100).is_empty());
        close(server);
        close(client);
    }

    /// A client that leaves with data unread: a reset, no end of stream.
    fn reset(&self) {
        let client = connect(self.port);
        let server = accept(self.listener);
        println!("reset_server {server}");
        write(client, b"request");
        read(server, 100);
        write(server, b"response that nobody reads");
        close(client);
        let mut byte = 0u8;
        // SAFETY: one byte fits.
        let got = unsafe { libc::recv(server, (&raw mut byte).cast(), 1, 0) };
        assert_eq!((got, std::io::Error::last_os_error().raw_os_error()), (-1, Some(libc::ECONNRESET)));
    }

    /// Payloads above every cap.
    fn large(&self) {
        let bytes = pattern(1_000_000);
        let sent = write(self.client, &bytes[..60_000]);
        assert_eq!(read_whole(self.server, sent), [sent]);
        let size = 4_000_000i32;
        // SAFETY: the option is an int that lives across the call.
        let enlarge = |fd, option| unsafe {
            libc::setsockopt(fd, libc::SOL_SOCKET, option, (&raw const size).cast(), size_of_val(&size) as u32)
        };
        check("SO_SNDBUFFORCE", enlarge(self.unix[0], libc::SO_SNDBUFFORCE) as isize);
        check("SO_RCVBUFFORCE", enlarge(self.unix[1], libc::SO_RCVBUFFORCE) as isize);
        assert_eq!(write(self.unix[0], &bytes), bytes.len());
        assert_eq!(read_whole(self.unix[1], bytes.len()), [bytes.len()]);
        let pieces: Vec<&[u8]> = bytes.chunks(100).take(60).collect();
        writev(self.unix[0], &pieces);
        read(self.unix[1], 60_000);
    }

    /// Many buffers of one call, as the Rust front end writes its events.
    fn vectors(&self) {
        let bytes = pattern(120_000);
        for size in [100, 1000] {
            writev(self.client, &bytes.chunks(size).take(120).collect::<Vec<_>>());
            read_whole(self.server, size * 120);
        }
        writev(self.client, &[&bytes[..1000], &bytes[1000..100_000], &bytes[100_000..101_000]]);
        read_whole(self.server, 101_000);
    }

    /// A child that inherits, opens its own, and ends.
    fn child(&self) {
        // SAFETY: the child makes system calls only, and leaves by _exit.
        let child = unsafe { libc::fork() };
        check("fork", child as isize);
        if child == 0 {
            write(self.unix[0], b"from the child");
            let client = connect(self.port);
            write(client, b"the child's own");
            // SAFETY: ends the process.
            unsafe { libc::_exit(0) };
        }
        println!("child {child}");
        // SAFETY: waits for an own child, status not wanted.
        check("waitpid", unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) } as isize);
        read(self.unix[1], 100);
        let thread = std::thread::spawn({
            let fd = self.unix[0];
            move || write(fd, b"from a thread")
        });
        assert_eq!(thread.join().ok(), Some(13));
    }

    /// The first thread ends before another one writes.
    fn leader(&self) -> ! {
        let fd = self.unix[0];
        std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(200));
            write(fd, b"after the leader");
            std::process::exit(0);
        });
        // SAFETY: ends this thread; nothing of its stack is used by the other.
        unsafe { libc::syscall(libc::SYS_exit, 0) };
        unreachable!("the thread is gone");
    }

    /// Another thread than the first replaces the process's image; the new one writes at once.
    fn exec(&self) -> ! {
        let path = std::env::current_exe().expect("own path");
        let path = std::ffi::CString::new(path.into_os_string().into_encoded_bytes()).expect("a path");
        let kept = check("dup", dup(self.unix[0]) as isize) as i32;
        println!("kept {kept}");
        std::io::stdout().flush().expect("stdout");
        std::thread::spawn(move || {
            let number = std::ffi::CString::new(kept.to_string()).expect("digits");
            let arguments = [path.as_ptr(), c"after-exec".as_ptr(), number.as_ptr(), std::ptr::null()];
            // SAFETY: the strings end in NUL and the array in a null pointer.
            unsafe { libc::execv(path.as_ptr(), arguments.as_ptr()) };
            panic!("execv: {}", std::io::Error::last_os_error());
        });
        loop {
            std::thread::sleep(std::time::Duration::from_secs(1));
        }
    }

    /// More than a small ring holds.
    fn flood(&self) {
        let bytes = [7u8; 4096];
        for _ in 0..2000 {
            write(self.unix[0], &bytes);
            read(self.unix[1], 4096);
        }
    }
}

/// Maps the library at `path` and gives its `use_tokenizer`.
fn tokenizer(path: &str) -> extern "C" fn(i32, i32) {
    let path = std::ffi::CString::new(path).expect("a path");
    // SAFETY: both names end in NUL; the symbol has this type (fixtures/tokenizers.c).
    unsafe {
        let library = libc::dlopen(path.as_ptr(), libc::RTLD_NOW);
        assert!(!library.is_null(), "the library loads");
        let function = libc::dlsym(library, c"use_tokenizer".as_ptr());
        assert!(!function.is_null(), "the library is the fixture");
        std::mem::transmute::<*mut libc::c_void, extern "C" fn(i32, i32)>(function)
    }
}

fn main() {
    let scenario = std::env::args().nth(1).unwrap_or_default();
    if scenario == "after-exec" {
        let kept = std::env::args().nth(2).and_then(|number| number.parse().ok()).expect("a number");
        write(kept, b"kept over exec");
        write(unix_pair()[0], b"new after exec");
        std::thread::sleep(std::time::Duration::from_millis(100));
        write(kept, b"and later");
        return;
    }
    let tokenizer = std::env::args().nth(2).map(|path| tokenizer(&path));
    let before = Before::set_up();
    before.print();
    std::io::stdout().flush().expect("stdout");
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).expect("stdin");
    match scenario.as_str() {
        "calls" => before.calls(),
        "noise" => before.noise(),
        "lifetime" => before.lifetime(),
        "reset" => before.reset(),
        "large" => before.large(),
        "vectors" => before.vectors(),
        "child" => before.child(),
        "leader" => before.leader(),
        "exec" => before.exec(),
        "flood" => before.flood(),
        "tokenizer" => {
            let tokenizer = tokenizer.expect("sockets tokenizer PATH");
            tokenizer(5, 100);
            std::thread::spawn(move || tokenizer(5, 100)).join().expect("thread");
        }
        other => panic!("no scenario {other:?}"),
    }
    std::io::stdout().flush().expect("stdout");
}
