//! What the descriptors of a process are, from `/proc`, without touching the process.
//!
//! Enters: a pid and descriptor numbers. Leaves: classes. A descriptor that is gone has none.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use super::Proc;
use crate::decode::record::net::Class;

/// Longest protocol name the kernel knows is shorter (`struct proto::name` is 32 bytes).
const PROTOCOL_BYTES: usize = 32;

/// The class of one descriptor; an error when it cannot be looked at (closed, process gone, no permission).
pub fn class_of(pid: u32, fd: u32) -> io::Result<Class> {
    let proc = Proc::this();
    if !proc.descriptor(pid, fd)?.starts_with(b"socket:") {
        return Ok(Class::Ignored);
    }
    protocol(&proc.path(pid, &format!("fd/{fd}"))).map(|name| class_of_protocol(&name))
}

/// `AF_UNIX` stream sockets are "UNIX-STREAM" since Linux 5.15; before, all unix sockets are "UNIX".
fn class_of_protocol(name: &[u8]) -> Class {
    match name {
        b"TCP" | b"TCPv6" | b"MPTCP" | b"MPTCPv6" => Class::Tcp,
        b"UNIX" | b"UNIX-STREAM" => Class::Unix,
        _ => Class::Ignored,
    }
}

/// The protocol of the socket behind a `/proc/<pid>/fd/<n>` link: sockfs shows it as an extended attribute, in any network
/// namespace, where `/proc/<pid>/net` would need a table each.
fn protocol(path: &Path) -> io::Result<Vec<u8>> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut name = [0u8; PROTOCOL_BYTES];
    // SAFETY: both strings end in NUL and `name` is as long as is said.
    let len = unsafe {
        libc::getxattr(path.as_ptr(), c"system.sockprotoname".as_ptr(), name.as_mut_ptr().cast(), name.len())
    };
    let len = usize::try_from(len).map_err(|_| io::Error::last_os_error())?;
    let name = &name[..len.min(PROTOCOL_BYTES)];
    Ok(name.split(|byte| *byte == 0).next().unwrap_or_default().to_vec())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::unix::net::{UnixDatagram, UnixStream};

    use super::*;

    fn class(descriptor: &impl std::os::fd::AsRawFd) -> Class {
        class_of(std::process::id(), descriptor.as_raw_fd() as u32).unwrap()
    }

    #[test]
    fn sockets_are_told_from_each_other_and_from_the_rest() {
        assert_eq!(class(&TcpListener::bind("127.0.0.1:0").unwrap()), Class::Tcp);
        assert_eq!(class(&UnixStream::pair().unwrap().0), Class::Unix);
        assert_eq!(class(&std::fs::File::open("/dev/null").unwrap()), Class::Ignored);
        assert_eq!(class(&std::net::UdpSocket::bind("127.0.0.1:0").unwrap()), Class::Ignored);
        assert!(class_of(std::process::id(), 1_000_000).is_err());
        drop(UnixDatagram::pair());
    }
}
