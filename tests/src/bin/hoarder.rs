//! A server that takes connections and what comes on them, and never answers.
//!
//! `hoarder ...`: prints the port of 127.0.0.1 that it listens on; ends when its stdin does.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::fd::AsRawFd as _;

fn main() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    println!("{}", listener.local_addr().expect("bound").port());
    std::io::stdout().flush().expect("stdout");
    let mut streams = Vec::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let polled = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let mut fds: Vec<libc::pollfd> = vec![polled(0), polled(listener.as_raw_fd())];
        fds.extend(streams.iter().map(|stream: &std::net::TcpStream| polled(stream.as_raw_fd())));
        // SAFETY: the vector holds as many entries as are named.
        let ready = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, -1) };
        assert!(ready > 0, "poll: {}", std::io::Error::last_os_error());
        if fds[0].revents != 0 {
            return;
        }
        for (stream, fd) in streams.iter_mut().zip(&fds[2..]) {
            if fd.revents != 0 {
                let _ = stream.read(&mut buffer);
            }
        }
        if fds[1].revents != 0 {
            streams.push(listener.accept().expect("a connection").0);
        }
    }
}
